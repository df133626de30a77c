//! The table of the document: written anew where that is asked for, else compared with what the runs came to.
//!
//! What the promise is about (which runs there are, recall, copies, gaps) must be the same to the letter. The other
//! figures depend on which of two tasks is first at some millisecond; those of a run are held to the bounds of its
//! scenario, and the document tells those of the run that wrote it.

use std::{fs, path::PathBuf};

use parking_lot::Mutex;

use super::figures::Figures;

/// Parts write one document, in tests that may run at the same time.
static DOCUMENT: Mutex<()> = Mutex::new(());
/// Set to write the document.
const BLESS: &str = "SIMCAST_BLESS";
const HEAD: &str = "| row | what is done | exposed | in the log | forgotten | recall | copies | gaps | put aside | worst \
                    minute | p50 | p99 | loop: shown | recall | lines each | end |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
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
}

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/GUARANTEES.md"))
}

/// Holds the document's part to these lines, or writes it.
pub fn check(part: &str, lines: &[Line]) {
    let (begin, end) =
        (format!("<!-- adversary: {part} -->\n"), format!("<!-- end of adversary: {part} -->\n"));
    let lines: Vec<String> = lines.iter().map(Line::to_markdown).collect();
    let _alone = DOCUMENT.lock();
    let document = fs::read_to_string(path()).unwrap();
    let (before, rest) = document.split_once(&begin).expect("the document has the part's marker");
    let (told, after) = rest.split_once(&end).expect("the document has the end of the part");
    if std::env::var_os(BLESS).is_some() {
        let table = lines.join("\n");
        fs::write(path(), format!("{before}{begin}{HEAD}{table}\n{end}{after}")).unwrap();
        return;
    }
    let told: Vec<_> = told.lines().skip(2).map(exact).collect();
    let are: Vec<_> = lines.iter().map(|line| exact(line)).collect();
    assert_eq!(told, are, "docs/GUARANTEES.md tells otherwise: SIMCAST_BLESS=1 cargo test --lib adversary");
}

/// The columns that must be the same.
fn exact(line: &str) -> Vec<String> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    EXACT.iter().map(|at| cells.get(*at).copied().unwrap_or_default().to_owned()).collect()
}
