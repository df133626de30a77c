//! Finding and fetching what upstream counts and the log lacks: the window is narrowed to the types, then to the SIMs
//! whose counts differ, and only these are read.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::counts;
use crate::{
    event::Iccid,
    globalsim::{budget::Class, error::Error},
    ingest::{
        intake::Via,
        page::{ListPage, Order, PAGE_ROWS, PageSource, Slot},
        seek::{self, Down},
        session::{Halt, Session},
        status::Mode,
        upstream::{Item, Window},
        walk::{OVERLAP, Toward, Walker},
        windows::TYPES,
    },
};

/// A window with at most so many rows is read rather than narrowed.
const READ_AT_ONCE_MAX: u64 = 2 * PAGE_ROWS;
/// Rows that one window may have to be read: 17 minutes of the ledger's share of the default budget.
const READ_ROWS_MAX: u64 = 60_000;
/// Rows that are held in memory to be handed on oldest first.
const HELD_ROWS_MAX: u64 = 5_000;
/// SIMs that are asked for one by one.
const SIMS_MAX: usize = 1_000;
/// Share of the request budget that the ledger may use.
const BUDGET_SHARE: f64 = 0.1;

/// What a repair came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that upstream shows was read, and it shows as much as it counts.
    Read,
    /// Everything was read, but upstream counts other than it shows.
    Miscounted {
        /// Rows counted.
        counted: u64,
        /// Rows shown.
        shown: u64,
    },
    /// Too much differs to be read.
    TooLarge {
        /// Rows counted.
        counted: u64,
    },
}

/// Asks upstream at the ledger's pace.
#[derive(Debug)]
pub struct Asker<'s> {
    /// For whom.
    pub session: &'s Session,
    next: Mutex<Instant>,
}

impl<'s> Asker<'s> {
    /// One that may ask at once.
    pub fn new(session: &'s Session) -> Self {
        Self { session, next: Mutex::new(Instant::now()) }
    }

    /// Waits for its turn.
    async fn turn(&self) {
        let per_minute = f64::from(self.session.gate.usage().allowance).max(1.0) * BUDGET_SHARE;
        let at = {
            let mut next = self.next.lock();
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs_f64(60.0 / per_minute);
            at
        };
        tokio::time::sleep_until(at).await;
    }

    /// One row of a window and its count.
    ///
    /// # Errors
    /// Upstream's failure.
    pub async fn count(&self, window: &Window, offset: u64) -> Result<ListPage<Item>, Error> {
        self.turn().await;
        self.session.upstream.page_of(Class::Ledger, window, offset, 1).await
    }

    async fn page(&self, window: &Window, offset: u64) -> Result<ListPage<Item>, Error> {
        self.turn().await;
        self.session.upstream.page(Class::Ledger, window, offset).await
    }
}

/// A window for a walk; remembers where its rows ended.
struct Source<'a> {
    asker: &'a Asker<'a>,
    window: Window,
    end: AtomicU64,
    total: AtomicU64,
}

impl PageSource for Source<'_> {
    type Row = Item;
    type Error = Error;

    async fn fetch(&self, offset: u64) -> Result<ListPage<Item>, Error> {
        let page = self.asker.page(&self.window, offset).await?;
        if !page.slots.is_empty() {
            self.end.fetch_max(page.end(), Ordering::Relaxed);
        }
        if let Some(total) = page.total {
            self.total.store(total, Ordering::Relaxed);
        }
        Ok(page)
    }
}

/// One repair of one window.
#[derive(Debug)]
pub struct Repair<'s> {
    asker: &'s Asker<'s>,
    /// The times that the window shows.
    times: (Timestamp, Timestamp),
    /// Rows that a window may have to be read without being narrowed; a page where offsets can't be trusted.
    at_once_max: u64,
    /// Rows older than ids are remembered that the log does not know.
    pub too_old: u64,
    /// Types seen.
    pub types: BTreeSet<String>,
}

impl<'s> Repair<'s> {
    /// A repair of a window that shows these times; `types` are those known beside the documented ones.
    pub fn new(asker: &'s Asker<'s>, times: (Timestamp, Timestamp), types: BTreeSet<String>) -> Self {
        let pages = if asker.session.findings().pages() { READ_AT_ONCE_MAX } else { PAGE_ROWS };
        Self { asker, times, at_once_max: pages, too_old: 0, types }
    }

    /// Fetches what differs in a window of `total` rows. `narrow`: whether counts of its parts can be compared.
    ///
    /// # Errors
    /// [`Halt`]; what was read until then was taken.
    pub async fn run(&mut self, window: &Window, total: u64, narrow: bool) -> Result<Outcome, Halt> {
        let differing = if narrow && total > self.at_once_max {
            self.differing_types(window, total).await?
        } else {
            vec![(window.clone(), total)]
        };
        let rows_max = if self.at_once_max == PAGE_ROWS { PAGE_ROWS } else { READ_ROWS_MAX };
        let mut outcome = Outcome::Read;
        for (part, total) in differing {
            let read = match total {
                _ if total > rows_max => Outcome::TooLarge { counted: total },
                _ => self.read(part).await?,
            };
            if outcome == Outcome::Read {
                outcome = read;
            }
        }
        Ok(outcome)
    }

    /// The parts by type, then by SIM, whose counts differ from the log's.
    async fn differing_types(&self, window: &Window, total: u64) -> Result<Vec<(Window, u64)>, Halt> {
        let log = self.asker.session.intake.log();
        let types: BTreeSet<String> =
            TYPES.iter().map(|name| (*name).to_owned()).chain(self.types.iter().cloned()).collect();
        let mut differing = Vec::new();
        let mut sum = 0;
        for event_type in types {
            let part = Window { event_type: Some(event_type.clone()), ..window.clone() };
            let counted = self.asker.count(&part, 0).await?.total.unwrap_or(0);
            sum += counted;
            let own = counts::quarters(log, Some(&event_type)).await?.count(self.times);
            if counted == own {
                continue;
            }
            match self.differing_sims(&part, &event_type, counted).await? {
                Some(sims) => differing.extend(sims),
                None => differing.push((part, counted)),
            }
        }
        // Of a type that nobody has seen yet nothing can be asked: its rows are in the count of the whole.
        Ok(if sum == total { differing } else { vec![(window.clone(), total)] })
    }

    /// None where asking SIM by SIM would take more requests than reading, or leaves rows out.
    async fn differing_sims(
        &self,
        window: &Window,
        event_type: &str,
        total: u64,
    ) -> Result<Option<Vec<(Window, u64)>>, Halt> {
        if total <= self.at_once_max {
            return Ok(None);
        }
        // Where there is no paging at all, nothing but narrowing helps.
        let requests = match self.at_once_max {
            PAGE_ROWS => SIMS_MAX as u64,
            _ => total / (PAGE_ROWS - OVERLAP as u64),
        };
        let sims = counts::by_sim(self.asker.session.intake.log(), self.times, event_type).await?;
        if sims.len() as u64 >= requests.min(SIMS_MAX as u64) {
            return Ok(None);
        }
        let mut differing = Vec::new();
        let mut sum = 0;
        for (sim, own) in sims {
            let Some(iccid) = sim.and_then(|sim| Iccid::parse(&sim).ok()) else { return Ok(None) };
            let part = Window { iccid: Some(iccid), ..window.clone() };
            let counted = self.asker.count(&part, 0).await?.total.unwrap_or(0);
            sum += counted;
            if counted != own {
                differing.push((part, counted));
            }
        }
        Ok((sum == total).then_some(differing))
    }

    /// Reads a window wholly.
    async fn read(&mut self, window: Window) -> Result<Outcome, Halt> {
        let session = self.asker.session;
        let source = Source { asker: self.asker, window, end: AtomicU64::new(0), total: AtomicU64::new(0) };
        let first = source.fetch(0).await?;
        let (asked_at, total) = (first.asked_at, first.total.unwrap_or(0));
        let newest_first = session.mode() != Mode::Windows && session.order() == Order::NewestFirst;
        // Oldest first, so that a day that is missing wholly is appended in its order.
        let (mut walker, mut rows) = if newest_first && total <= HELD_ROWS_MAX {
            let held = seek::down(&source, Order::NewestFirst, first, HELD_ROWS_MAX as usize, |_| false);
            let Down::Reached(rows) = held.await? else { return Err(Halt::Lost) };
            (None, rows)
        } else if newest_first {
            let (walker, rows) = seek::up(&source, Order::NewestFirst, None).await?;
            (Some(walker), rows)
        } else {
            let (walker, rows) = Walker::start(&source, Toward::End, first);
            (Some(walker), rows)
        };
        loop {
            self.note(&rows);
            let asked_at = walker.as_ref().map_or(asked_at, Walker::asked_at);
            session.intake.take(rows, Via::Ledger, asked_at, None).await?;
            rows = match &mut walker {
                Some(walker) => match walker.next().await? {
                    Some(rows) => rows,
                    None => break,
                },
                None => break,
            };
        }
        drop(walker);
        let (shown, counted) = (source.end.into_inner(), source.total.into_inner());
        Ok(if shown == counted { Outcome::Read } else { Outcome::Miscounted { counted, shown } })
    }

    /// Learns from rows, and counts those that can't be taken any more.
    fn note(&mut self, rows: &[Slot<Item>]) {
        for slot in rows {
            let Ok(row) = &slot.row else { continue };
            self.types.insert(row.event.event_type.clone());
            if self.asker.session.intake.is_forgotten(row) {
                self.too_old += 1;
            }
        }
    }
}
