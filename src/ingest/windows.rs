//! Reading a list that has no order: windows that are small enough to be seen whole.
//!
//! One answer is one atomic view, so a window whose rows all fit one answer needs no paging and no order. Larger ones
//! are walked: where each row keeps its place relative to the others, overlaps prove as much as in a sorted list.
//! Where even that fails they are narrowed by type and by SIM, and what still does not fit is read in passes until
//! the rows found are as many as upstream counts; if they never are, the read says that it was not complete.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::{
    intake::Via,
    page::{ListPage, PAGE_ROWS, Slot},
    session::{Halt, Session},
    upstream::{Item, Window},
    walk::{OVERLAP, Toward, WalkError, Walker},
};
use crate::{event::Iccid, globalsim::budget::Class};

/// The documented types; others are learnt.
const TYPES: [&str; 5] =
    ["connection", "disconnection", "network_change", "data_usage_update", "location_update"];
/// SIMs and types that are learnt to narrow by.
const LEARNT_MAX: usize = 10_000;
/// Windows whose count is remembered.
const COUNTS_MAX: usize = 50_000;
/// Passes over a window that nothing else can read.
const PASSES_MAX: u32 = 4;
/// Pages of one such pass.
const PASS_PAGES_MAX: u64 = 200;

/// What is known of the windows.
#[derive(Debug, Default)]
pub struct Windows {
    /// Rows upstream counted when a window was last read completely.
    counts: HashMap<(Option<String>, Option<Iccid>), u64>,
    types: BTreeSet<String>,
    sims: BTreeSet<Iccid>,
    /// Windows that can't be walked are narrowed at once.
    unwalkable: bool,
}

/// How a read is to be paid and labelled.
#[derive(Debug, Clone, Copy)]
struct How {
    class: Class,
    via: Via,
    backfill_before: Option<Timestamp>,
}

impl Windows {
    /// Reads everything again, whatever upstream counts.
    pub fn forget_counts(&mut self) {
        self.counts.clear();
    }

    /// Reads a window; false if some of it could not be read for certain.
    ///
    /// # Errors
    /// [`Halt`].
    pub async fn read(
        &mut self,
        session: &Session,
        class: Class,
        window: Window,
        via: Via,
        backfill_before: Option<Timestamp>,
    ) -> Result<bool, Halt> {
        let how = How { class, via, backfill_before };
        let mut complete = true;
        // Narrowing has two levels below a window of days.
        let mut windows = vec![window];
        while let Some(window) = windows.pop() {
            let page = session.upstream.page(class, &window, 0).await?;
            session.observe(&page);
            self.learn(&page);
            let key = (window.event_type.clone(), window.iccid.clone());
            let total = page.total;
            if total.is_some() && self.counts.get(&key).copied() == total && !is_whole(&page) {
                session.intake.take(page.slots, how.via, page.asked_at, how.backfill_before).await?;
                continue;
            }
            let read = if is_whole(&page) {
                session.intake.take(page.slots, how.via, page.asked_at, how.backfill_before).await?;
                true
            } else if !self.unwalkable && self.walk(session, how, &window, page).await? {
                true
            } else if let Some(narrower) = self.narrower(session, how, &window, total).await? {
                windows.extend(narrower);
                true
            } else {
                passes(session, how, &window).await?
            };
            complete &= read;
            if let Some(total) = total.filter(|_| read && self.counts.len() < COUNTS_MAX) {
                self.counts.insert(key, total);
            }
        }
        Ok(complete)
    }

    async fn walk(
        &mut self,
        session: &Session,
        how: How,
        window: &Window,
        page: ListPage<Item>,
    ) -> Result<bool, Halt> {
        let source = session.source(how.class, window.clone());
        let (mut walker, mut rows) = Walker::start(&source, Toward::End, page);
        loop {
            self.learn_rows(&rows);
            session.intake.take(rows, how.via, walker.asked_at(), how.backfill_before).await?;
            rows = match walker.next().await {
                Ok(Some(rows)) => rows,
                Ok(None) => return Ok(true),
                Err(WalkError::Lost) => {
                    tracing::warn!(
                        "the list keeps no order at all: its windows are narrowed until they fit one page"
                    );
                    self.unwalkable = true;
                    return Ok(false);
                }
                Err(WalkError::Source(error)) => return Err(error.into()),
            };
        }
    }

    /// The parts of a window, if together they hold all that it counts.
    async fn narrower(
        &mut self,
        session: &Session,
        how: How,
        window: &Window,
        total: Option<u64>,
    ) -> Result<Option<Vec<Window>>, Halt> {
        let parts: Vec<Window> = if window.event_type.is_none() {
            let types = TYPES.iter().map(|t| (*t).to_owned()).chain(self.types.iter().cloned());
            let types: BTreeSet<String> = types.collect();
            types.into_iter().map(|t| Window { event_type: Some(t), ..window.clone() }).collect()
        } else if window.iccid.is_none() {
            self.sims.iter().map(|sim| Window { iccid: Some(sim.clone()), ..window.clone() }).collect()
        } else {
            return Ok(None);
        };
        // A type or a SIM never seen would be missed: its rows are in the count of the whole.
        let Some(total) = total else { return Ok(None) };
        let mut sum = 0;
        for part in &parts {
            let page = session.upstream.page_of(how.class, part, 0, 1).await?;
            sum += page.total.unwrap_or(0);
        }
        Ok((sum >= total).then_some(parts))
    }

    fn learn(&mut self, page: &ListPage<Item>) {
        self.learn_rows(&page.slots);
    }

    fn learn_rows(&mut self, rows: &[Slot<Item>]) {
        for row in rows.iter().filter_map(|slot| slot.row.as_ref().ok()) {
            if self.types.len() < LEARNT_MAX && !self.types.contains(&row.event.event_type) {
                self.types.insert(row.event.event_type.clone());
            }
            if let Some(iccid) = &row.event.iccid
                && self.sims.len() < LEARNT_MAX
                && !self.sims.contains(iccid)
            {
                self.sims.insert(iccid.clone());
            }
        }
    }
}

/// Whether an answer shows its whole window.
fn is_whole(page: &ListPage<Item>) -> bool {
    let rows = page.slots.len() as u64;
    page.offset == 0 && page.total.map_or(rows < PAGE_ROWS / 2, |total| total <= rows)
}

/// Reads a window again and again until the rows found are as many as counted.
async fn passes(session: &Session, how: How, window: &Window) -> Result<bool, Halt> {
    let mut found = HashSet::new();
    for _ in 0..PASSES_MAX {
        let before = found.len();
        let mut offset = 0;
        let mut total = None;
        for _ in 0..PASS_PAGES_MAX {
            let page = session.upstream.page(how.class, window, offset).await?;
            total = page.total.or(total);
            let rows = page.slots.len() as u64;
            found.extend(page.slots.iter().map(|slot| slot.key));
            session.intake.take(page.slots, how.via, page.asked_at, how.backfill_before).await?;
            if rows <= OVERLAP as u64 {
                break;
            }
            offset += rows - OVERLAP as u64;
        }
        let counted = total.is_none_or(|total| found.len() as u64 >= total);
        if counted && (total.is_some() || found.len() == before) {
            return Ok(true);
        }
    }
    Ok(false)
}
