//! The table of the document: written anew where that is asked for, else compared with what the runs came to.
//!
//! What the promise is about (which runs there are, recall, copies, gaps) must be the same to the letter. The other
//! figures depend on which of two tasks is first at some millisecond; those of a run are held to the bounds of its
//! scenario, and the document tells those of the run that wrote it.

use super::{figures::Figures, rows};
use crate::guarantees::Table;

const HEAD: &str = "| row | what is done | exposed | in the log | forgotten | recall | copies | gaps | put aside | worst \
                    minute | p50 | p99 | loop: shown | recall | lines each | end |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
const HEAD_ON_NATS: &str = "| row | recall | copies | gaps | p99 |\n|---|---|---|---|---|\n";
/// Columns that must be the same: row, what is done, recall, copies, gaps, put aside.
const EXACT: [usize; 6] = [0, 1, 5, 6, 7, 8];

/// One line.
pub struct Line {
    pub row: &'static str,
    pub what: &'static str,
    pub figures: Figures,
}

impl Line {
    pub fn to_markdown(&self) -> String {
        let Self { row, what, figures: f } = self;
        let loops = &f.document;
        format!(
            "| {row} | {what} | {} | {} | {} | {:.3} | {:.3} | {} | {} | {} | {:.1} s | {:.1} s | {} | {:.2} | {:.1} | {} |",
            f.exposed,
            f.logged,
            f.forgotten,
            f.recall(),
            f.copies(),
            f.gaps,
            f.unusable,
            f.worst_minute,
            f.p50_s,
            f.p99_s,
            loops.shown,
            loops.recall(),
            loops.lines_each(),
            loops.ended
        )
    }

    fn to_markdown_on_nats(&self) -> String {
        let Self { row, figures: f, .. } = self;
        format!("| {row} | {:.3} | {:.3} | {} | {:.1} s |", f.recall(), f.copies(), f.gaps, f.p99_s)
    }
}

/// Holds the document's part to these lines, or writes it.
pub fn check(part: &str, lines: &[Line]) {
    let name = format!("adversary: {part}");
    let table = Table { name: &name, head: HEAD, exact: &EXACT, tests: "adversary" };
    table.check(&lines.iter().map(Line::to_markdown).collect::<Vec<_>>());
}

/// Holds the document's table of runs on NATS to these lines, or writes them into it.
pub fn check_on_nats(lines: &[Line]) {
    let parts = [rows::moving, rows::parameters, rows::late, rows::contents, rows::failures, rows::together];
    let rows: Vec<_> = parts.iter().flat_map(|part| part()).map(|scenario| scenario.row).collect();
    // All but the time.
    let table =
        Table { name: "adversary on NATS", head: HEAD_ON_NATS, exact: &[0, 1, 2, 3], tests: "on_nats" };
    table.check_some(&rows, &lines.iter().map(Line::to_markdown_on_nats).collect::<Vec<_>>());
}
