//! Reading a list that has no order: windows that are small enough to be seen whole.
//!
//! One answer is one atomic view, so a window whose rows all fit one answer needs no paging and no order. Larger ones
//! are walked where each row keeps its place relative to the others, since overlaps prove as much there as in a sorted
//! list. Whether rows have places is asked, not believed: the same page is read twice. Where they have none, windows
//! are narrowed by day, by type and by SIM; the counts of the parts must add up to that of the whole, so that a type
//! or a SIM never seen before is noticed. What still does not fit is read in passes until the rows found are as many
//! as upstream counts; if they never are, the read says that it was not complete.

use std::collections::{BTreeSet, HashMap, HashSet};

use futures_util::{FutureExt, future::BoxFuture};
use jiff::{Timestamp, civil::Date};

use super::{
    intake::Via,
    page::{ListPage, PAGE_ROWS, Slot},
    probe::{day_of, day_plus},
    session::{Halt, Session},
    upstream::{Item, Window},
    walk::{OVERLAP, Toward, WalkError, Walker},
};
use crate::{
    event::Iccid,
    globalsim::{budget::Class, error::Kind},
};

/// The documented types; others are learnt.
pub const TYPES: [&str; 5] =
    ["connection", "disconnection", "network_change", "data_usage_update", "location_update"];
/// SIMs and types that are learnt to narrow by.
const LEARNT_MAX: usize = 10_000;
/// Windows whose count is remembered.
const COUNTS_MAX: usize = 50_000;
/// Requests for passes over a window that nothing else can read.
const PASS_REQUESTS_MAX: u32 = 240;
/// Requests for counting where rows without a time are.
const UNDATED_REQUESTS_MAX: u32 = 400;
/// One pair of neighbours in so many may have changed places between two answers and rows still have places.
const PLACES_CHANGED: usize = 20;
/// Days that a window is narrowed into; what is longer is not.
const DAYS_MAX: i64 = 40;
/// Before any event.
const LONG_AGO: Date = jiff::civil::date(2000, 1, 1);

/// What is known of the windows.
#[derive(Debug, Default)]
pub struct Windows {
    /// Rows upstream counted when a window was last read completely.
    counts: HashMap<Window, u64>,
    types: BTreeSet<String>,
    sims: BTreeSet<Iccid>,
    /// Rows have no places: windows that don't fit an answer are narrowed at once.
    unwalkable: bool,
    /// Rows that lists by date left out when they were last all read.
    undated: u64,
}

/// How a read is to be paid and labelled.
#[derive(Debug, Clone, Copy)]
struct How {
    class: Class,
    via: Via,
    backfill_before: Option<Timestamp>,
}

/// What reading a window gave.
#[derive(Debug, Clone, Copy)]
struct Part {
    complete: bool,
    /// Rows upstream counted in it before it was read.
    total: Option<u64>,
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
        Ok(self.part(session, how, window).await?.complete)
    }

    fn part<'a>(
        &'a mut self,
        session: &'a Session,
        how: How,
        window: Window,
    ) -> BoxFuture<'a, Result<Part, Halt>> {
        async move {
            let page = session.upstream.page(how.class, &window, 0).await?;
            if window.event_type.is_none() && window.iccid.is_none() {
                // Parts are too short to tell an order from.
                session.observe(&page);
            }
            self.learn_rows(&page.slots);
            let total = page.total;
            let unchanged = total.is_some() && self.counts.get(&window).copied() == total;
            if unchanged || is_whole(&page) {
                session.intake.take(page.slots, how.via, page.asked_at, how.backfill_before).await?;
                return Ok(Part { complete: true, total });
            }
            let reachable = match (total, session.upstream.refused_offset()) {
                (Some(total), Some(refused)) => total <= refused,
                _ => true,
            };
            let walks =
                !self.unwalkable && reachable && self.rows_have_places(session, how, &window, &page).await?;
            let complete = if walks && self.walk(session, how, &window, page).await? {
                true
            } else {
                self.narrowed(session, how, &window, total).await?
                    || self.passes(session, how, &window).await?
            };
            if let Some(total) = total.filter(|_| complete && self.counts.len() < COUNTS_MAX) {
                self.counts.insert(window, total);
            }
            Ok(Part { complete, total })
        }
        .boxed()
    }

    /// Whether a page that is read once more shows the same rows in the same order, but for what came or went.
    async fn rows_have_places(
        &mut self,
        session: &Session,
        how: How,
        window: &Window,
        page: &ListPage<Item>,
    ) -> Result<bool, Halt> {
        let again = session.upstream.page(how.class, window, 0).await?;
        let at: HashMap<u64, usize> =
            again.slots.iter().enumerate().map(|(at, slot)| (slot.key, at)).collect();
        let shared: Vec<usize> =
            page.slots.iter().filter(|s| s.unique).filter_map(|s| at.get(&s.key).copied()).collect();
        let changed = shared.windows(2).filter(|pair| pair[0] > pair[1]).count();
        let fixed = shared.len() * 2 >= page.slots.len() && changed * PLACES_CHANGED <= shared.len();
        session.intake.take(again.slots, how.via, again.asked_at, how.backfill_before).await?;
        if !fixed {
            self.has_no_places();
        }
        Ok(fixed)
    }

    fn has_no_places(&mut self) {
        tracing::warn!("the list keeps no order at all: its windows are narrowed until they fit one page");
        self.unwalkable = true;
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
                    self.has_no_places();
                    return Ok(false);
                }
                // Its end is too deep; parts of it may not be.
                Err(WalkError::Source(error)) if error.kind() == Kind::Invalid => return Ok(false),
                Err(WalkError::Source(error)) => return Err(error.into()),
            };
        }
    }

    /// Reads a window by its parts; false where they don't hold all that it counts, or one could not be read.
    async fn narrowed(
        &mut self,
        session: &Session,
        how: How,
        window: &Window,
        total: Option<u64>,
    ) -> Result<bool, Halt> {
        if let Some(days) = days_of(session, window) {
            // Days leave no time out, so there is nothing to be counted.
            let mut complete = true;
            for day in days {
                complete &= self.part(session, how, day).await?.complete;
            }
            return Ok(complete);
        }
        // A type or a SIM never seen would be missed: its rows are in the count of the whole.
        let Some(total) = total else { return Ok(false) };
        let parts = self.parts_of(window);
        if parts.is_empty() {
            return Ok(false);
        }
        let (mut complete, mut sum) = (true, 0);
        for part in parts {
            let read = self.part(session, how, part).await?;
            complete &= read.complete;
            sum += read.total.unwrap_or(0);
        }
        if sum < total {
            // Rows that went meanwhile are in neither.
            let now = session.upstream.page_of(how.class, window, 0, 1).await?;
            complete &= now.total.is_some_and(|now| sum >= now);
        }
        Ok(complete)
    }

    /// By type, then by SIM.
    fn parts_of(&self, window: &Window) -> Vec<Window> {
        if window.event_type.is_none() {
            let types = TYPES.iter().map(|t| (*t).to_owned()).chain(self.types.iter().cloned());
            let types: BTreeSet<String> = types.collect();
            types.into_iter().map(|t| Window { event_type: Some(t), ..window.clone() }).collect()
        } else if window.iccid.is_none() {
            self.sims.iter().map(|sim| Window { iccid: Some(sim.clone()), ..window.clone() }).collect()
        } else {
            Vec::new()
        }
    }

    /// Reads a window again and again until the rows found are as many as counted.
    async fn passes(&mut self, session: &Session, how: How, window: &Window) -> Result<bool, Halt> {
        let mut found = HashSet::new();
        let (mut before, mut offset) = (0, 0);
        for _ in 0..PASS_REQUESTS_MAX {
            let page = match session.upstream.page(how.class, window, offset).await {
                // What is further down can only be seen once it has moved up.
                Err(error) if error.kind() == Kind::Invalid && offset > 0 => {
                    (before, offset) = (found.len(), 0);
                    continue;
                }
                page => page?,
            };
            let (total, rows) = (page.total, page.slots.len() as u64);
            self.learn_rows(&page.slots);
            found.extend(page.slots.iter().map(|slot| slot.key));
            session.intake.take(page.slots, how.via, page.asked_at, how.backfill_before).await?;
            offset += rows.saturating_sub(OVERLAP as u64);
            let ended = rows <= OVERLAP as u64 || total.is_some_and(|total| offset + OVERLAP as u64 >= total);
            match total {
                Some(total) if found.len() as u64 >= total => return Ok(true),
                // Nothing to count by: a pass that finds nothing new has to do.
                None if ended && found.len() == before => return Ok(true),
                _ => {}
            }
            if ended {
                (before, offset) = (found.len(), 0);
            }
        }
        Ok(false)
    }

    /// Reads rows that no list by date shows: as many as upstream counts more without dates than with. They are looked
    /// for where the counts differ, by type and by SIM, so that no list has to be read for them wholly.
    ///
    /// # Errors
    /// [`Halt`].
    pub async fn read_undated(
        &mut self,
        session: &Session,
        backfill_before: Option<Timestamp>,
    ) -> Result<bool, Halt> {
        let how = How { class: Class::Sweep, via: Via::Tail, backfill_before };
        let Some(undated) = undated_in(session, how, &Window::default()).await? else { return Ok(true) };
        if undated == self.undated {
            return Ok(true);
        }
        let mut requests = 0;
        let (mut found, mut complete) = (0, true);
        let mut windows = self.parts_of(&Window::default());
        while let Some(window) = windows.pop() {
            requests += 2;
            if requests > UNDATED_REQUESTS_MAX {
                tracing::warn!(undated, found, "rows without a time are in too many places to be looked for");
                return Ok(false);
            }
            match undated_in(session, how, &window).await?.unwrap_or(0) {
                0 => {}
                _ if window.iccid.is_none() => windows.extend(self.parts_of(&window)),
                here => {
                    found += here;
                    complete &= self.part(session, how, window).await?.complete;
                }
            }
        }
        if found < undated {
            complete &= self.passes(session, how, &Window::default()).await?;
        }
        if complete {
            self.undated = undated;
        }
        Ok(complete)
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

/// Rows of a window that lists by date leave out; None where upstream does not count.
async fn undated_in(session: &Session, how: How, window: &Window) -> Result<Option<u64>, Halt> {
    let dated = Window { start: Some(LONG_AGO), ..window.clone() };
    let dated = session.upstream.page_of(how.class, &dated, 0, 1).await?.total;
    let all = session.upstream.page_of(how.class, window, 0, 1).await?.total;
    Ok(all.zip(dated).map(|(all, dated)| all.saturating_sub(dated)))
}

/// The days of a window that is open at its end, the last one open too; None where it can't be told apart which rows
/// a day has.
fn days_of(session: &Session, window: &Window) -> Option<Vec<Window>> {
    let findings = session.findings();
    let (start, None) = (window.start?, window.end) else { return None };
    let today = day_of(session.clock.now());
    let before = i64::from(!findings.start_inclusive?);
    let after = i64::from(!findings.end_inclusive?);
    let mut days = Vec::new();
    // Whatever the zone of upstream's days, the last has begun nowhere yet.
    let last = day_plus(today, 1);
    let mut day = start;
    while day < last {
        if days.len() as i64 >= DAYS_MAX {
            return None;
        }
        let (start, end) = (Some(day_plus(day, -before)), Some(day_plus(day, after)));
        days.push(Window { start, end, ..window.clone() });
        day = day_plus(day, 1);
    }
    // A window that is its own last day is not narrowed by it.
    (!days.is_empty()).then(|| {
        days.push(Window { start: Some(day_plus(last, -before)), ..window.clone() });
        days
    })
}
