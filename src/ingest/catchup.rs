//! Reading holes: from the rows below a hole up to those above it, handing rows on as they come.
//!
//! Upwards, since a head that grows meanwhile is then simply read at the end: however fast rows come in, each request
//! brings nearly a page of rows not read before. Rows go on in the order in which they stand, and what has been read
//! stays read: a failure costs the request that failed, not the walk.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    holes::{Edge, Hole},
    intake::Via,
    page::{PAGE_ROWS, PageSource, Slot},
    seek,
    session::{Halt, Session},
    status::Mode,
    sweep,
    upstream::{Item, Window, WindowSource},
    walk::{Toward, WalkError, Walker},
};
use crate::globalsim::budget::Class;

/// Pause after a request that failed although it was tried several times.
const PAUSE: Duration = Duration::from_secs(2);
/// Walks lost in a row, after which the hole is left to a complete sweep.
const LOST_MAX: u32 = 3;
/// Looks at where counting says that the bottom is, before it is searched for by time.
const GUESSES_MAX: u32 = 3;
/// Rows of the bottom that the first of them is to show; rows come in between counting and asking. Grows.
const GUESS_ROWS: u64 = 24;

/// Closes holes until nothing can be appended any more.
pub async fn run(session: &Session) -> Halt {
    let mut lost = 0;
    loop {
        let mut changed = std::pin::pin!(session.holes.changed.notified());
        changed.as_mut().enable();
        // A hole without edges takes a complete sweep, which closes all.
        let hole = session.holes.oldest().filter(|_| !session.holes.any_edgeless());
        let Some(hole) = hole.filter(|_| follows_order(session)) else {
            changed.await;
            continue;
        };
        match close(session, &hole).await {
            Ok(()) => lost = 0,
            Err(halt @ Halt::Stopped(_)) => return halt,
            Err(Halt::Upstream(error)) => {
                let pause = error.retry_after().unwrap_or(PAUSE).min(PAUSE * 30);
                tokio::time::sleep(session.upstream.jittered(pause)).await;
            }
            Err(Halt::Lost) => {
                lost += 1;
                session.walk_lost();
                if lost >= LOST_MAX {
                    tracing::warn!("a hole can't be read from its bottom: it is left to a complete sweep");
                    session.holes.give_up();
                    session.sweep_now.notify_one();
                }
            }
        }
        if !session.has_hole() {
            session.show_backlog(None);
        }
    }
}

fn follows_order(session: &Session) -> bool {
    matches!(session.mode(), Mode::NewestFirst | Mode::Unknown)
}

async fn close(session: &Session, hole: &Hole) -> Result<(), Halt> {
    let mut edge = hole.bottom.clone();
    // Without dates: a row whose time upstream can't read either is in no list by date.
    let source = session.source(Class::CatchUp, Window::default());
    // Of before the request that gave the rows at hand: it may have been the one that shows the newest row.
    let mut mark = session.holes.mark();
    let (mut walker, mut rows) = bottom(session, &source, &edge).await?;
    let reaches_down =
        |slot: &Slot<Item>| edge.keys.contains(&slot.key) || slot.time.is_some_and(|time| time <= edge.depth);
    if !rows.iter().any(reaches_down) {
        // The list ends above what was read.
        let oldest = rows.iter().filter_map(|slot| slot.time).min();
        sweep::check_for_gap(session, oldest.unwrap_or_else(|| walker.asked_at())).await?;
    }
    let mut last = LastRows::default();
    while follows_order(session) {
        last.extend(&rows);
        let keys: Vec<u64> = rows.iter().filter(|slot| slot.unique).map(|slot| slot.key).collect();
        session.intake.take(rows, Via::CatchUp, walker.asked_at(), session.past()).await?;
        if session.holes.reaches_top(&edge, keys) {
            break;
        }
        edge = session.holes.raise_bottom(&edge, last.edge(&edge), walker.place());
        session.show_backlog(Some(session.holes.backlog(walker.place())));
        let mark_next = session.holes.mark();
        rows = match next(session, &mut walker).await? {
            Some(rows) => rows,
            None => {
                session.holes.reached_head(Timestamp::MIN, mark, last.edge(&edge).keys);
                break;
            }
        };
        mark = mark_next;
    }
    session.walk_done();
    Ok(())
}

/// The next rows, however long upstream takes to answer again.
async fn next(
    session: &Session,
    walker: &mut Walker<'_, WindowSource<'_>>,
) -> Result<Option<Vec<Slot<Item>>>, Halt> {
    loop {
        match walker.next().await {
            Err(WalkError::Source(error)) => {
                tracing::warn!(%error, "a hole is read on from where a request failed");
                let pause = error.retry_after().unwrap_or(PAUSE).min(PAUSE * 30);
                tokio::time::sleep(session.upstream.jittered(pause)).await;
            }
            Err(WalkError::Lost) => return Err(Halt::Lost),
            Ok(rows) => return Ok(rows),
        }
    }
}

/// The walk up from an edge, with its first rows: found by counting where upstream's count can be had, else by time.
async fn bottom<'s>(
    session: &Session,
    source: &'s WindowSource<'s>,
    edge: &Edge,
) -> Result<(Walker<'s, WindowSource<'s>>, Vec<Slot<Item>>), Halt> {
    let mut shown = GUESS_ROWS;
    for _ in 0..GUESSES_MAX {
        let Some(at) = session.holes.rows_above(edge) else { break };
        let page = source.fetch((at + shown).saturating_sub(PAGE_ROWS)).await?;
        if page.slots.iter().any(|slot| edge.keys.contains(&slot.key)) {
            return Ok(Walker::start(source, Toward::Start, page));
        }
        shown *= 3;
    }
    Ok(seek::up(source, session.order(), Some(edge.depth)).await?)
}

/// The rows that a walk read last.
#[derive(Debug, Default)]
struct LastRows(VecDeque<(u64, Option<Timestamp>)>);

impl LastRows {
    fn extend(&mut self, rows: &[Slot<Item>]) {
        self.0.extend(rows.iter().filter(|slot| slot.unique).map(|slot| (slot.key, slot.time)));
        let excess = self.0.len().saturating_sub(PAGE_ROWS as usize);
        self.0.drain(..excess);
    }

    /// They as an edge to go on from; `before` where they have no time.
    fn edge(&self, before: &Edge) -> Edge {
        let depth = self.0.iter().filter_map(|(_, time)| *time).min().unwrap_or(before.depth);
        Edge { keys: Arc::new(self.0.iter().map(|(key, _)| *key).collect()), depth, count: None }
    }
}
