//! Holes: stretches of the list, below the newest rows, that may hold rows nobody has read.
//!
//! The tail finds them. Where it knows what lies below (the last page that joined) and above (its newest page), the
//! hole has edges, and the [`catchup`](super::catchup) reads just that stretch, from its bottom up. Where it does not
//! (after a start, when the way to read changes) only a complete sweep closes it. While any hole is open `seen_until`
//! stands still.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp, civil::Date};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::page::{PAGE_ROWS, Slot};

/// Holes kept apart; a new one beyond that is joined with the newest, and what lies between is read again.
const HOLES_MAX: usize = 32;
/// Fewer rows between two holes are read again rather than searched past.
const RUN_ROWS_MIN: u64 = 3 * PAGE_ROWS;

/// `total` of the tail's window, with the day on which that begins: counts of different windows can't be compared.
pub type Count = (Option<Date>, u64);

/// Rows from which downwards everything has been read.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Keys of rows of the top of it; a page that shows one reaches it.
    pub keys: Arc<HashSet<u64>>,
    /// No row of it is older.
    pub depth: Timestamp,
    /// What upstream counted when its first row was the first of the list.
    pub count: Option<Count>,
}

/// A hole with edges.
#[derive(Debug, Clone)]
pub struct Hole {
    /// Grows from hole to hole.
    pub number: u64,
    /// What lies below.
    pub bottom: Edge,
    /// Keys of the lowest rows that lie above.
    top: Arc<HashSet<u64>>,
    /// Rows known to have been read above it.
    run_rows: u64,
}

/// The holes that are open.
#[derive(Debug, Default)]
pub struct Holes {
    state: Mutex<State>,
    /// Something was opened or closed.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    opened: u64,
    /// Number of the newest hole without edges, and the one up to which they are closed.
    edgeless: u64,
    edgeless_closed: u64,
    /// Oldest first.
    holes: VecDeque<Hole>,
    /// Rows by which the tail's next page joins, since everything below has been read by somebody else.
    reached: Arc<HashSet<u64>>,
    /// The newest count of the tail's window.
    count: Option<Count>,
    drain: Option<Drain>,
}

/// How a backlog shrinks.
#[derive(Debug, Clone, Copy)]
struct Drain {
    began: Instant,
    rows: u64,
}

impl Holes {
    /// Opens one without edges.
    pub fn open_edgeless(&self) {
        let mut state = self.state.lock();
        state.opened += 1;
        state.edgeless = state.opened;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Opens one between what was read down to `bottom` and the rows in `top`.
    pub fn open(&self, bottom: Edge, top: HashSet<u64>) {
        let mut state = self.state.lock();
        state.opened += 1;
        let (number, top) = (state.opened, Arc::new(top));
        let full = state.holes.len() >= HOLES_MAX;
        match state.holes.back_mut() {
            Some(last) if full || last.run_rows < RUN_ROWS_MIN => {
                (last.number, last.top, last.run_rows) = (number, top, 0);
            }
            _ => state.holes.push_back(Hole { number, bottom, top, run_rows: 0 }),
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The tail has read so many rows above the newest hole, without a break.
    pub fn tail_joined(&self, rows: u64) {
        if let Some(last) = self.state.lock().holes.back_mut() {
            last.run_rows += rows;
        }
    }

    /// Whether any is open.
    pub fn any(&self) -> bool {
        self.any_edgeless() || self.any_with_edges()
    }

    /// Whether one without edges is open.
    pub fn any_edgeless(&self) -> bool {
        let state = self.state.lock();
        state.edgeless_closed < state.edgeless
    }

    /// Whether one with edges is open.
    pub fn any_with_edges(&self) -> bool {
        !self.state.lock().holes.is_empty()
    }

    /// The oldest hole with edges.
    pub fn oldest(&self) -> Option<Hole> {
        self.state.lock().holes.front().cloned()
    }

    /// To be taken before a read begins that closes holes, or before the request of its last page where it ends at
    /// the newest row: [`close`](Self::close), [`reached_head`](Self::reached_head).
    pub fn mark(&self) -> u64 {
        self.state.lock().opened
    }

    /// Everything has been read down to where complete sweeps reach: holes opened before the mark are closed.
    pub fn close(&self, mark: u64) {
        let mut state = self.state.lock();
        state.edgeless_closed = state.edgeless_closed.max(mark.min(state.edgeless));
        state.holes.retain(|hole| hole.number > mark);
        self.closed(state);
    }

    /// Whether rows read upwards from the bottom of the oldest hole have come to its top; then it is closed. True as
    /// well where somebody else has closed it.
    pub fn reaches_top(&self, bottom: &Edge, rows: impl IntoIterator<Item = u64>) -> bool {
        let mut state = self.state.lock();
        let Some(hole) = state.holes.front().filter(|hole| Arc::ptr_eq(&hole.bottom.keys, &bottom.keys))
        else {
            return true;
        };
        let reached = rows.into_iter().any(|key| hole.top.contains(&key));
        if reached {
            state.holes.pop_front();
            self.closed(state);
        }
        reached
    }

    /// Everything from the bottom of the oldest hole up to `edge` has been read, with `rows_above` rows above it: that
    /// is its bottom now.
    pub fn raise_bottom(&self, bottom: &Edge, mut edge: Edge, rows_above: u64) -> Edge {
        let mut state = self.state.lock();
        edge.count = state.count.map(|(start, count)| (start, count.saturating_sub(rows_above)));
        if let Some(hole) =
            state.holes.front_mut().filter(|hole| Arc::ptr_eq(&hole.bottom.keys, &bottom.keys))
        {
            hole.bottom = edge.clone();
        }
        edge
    }

    /// Rows left to read where so many lie above what has been read of the oldest hole.
    pub fn backlog(&self, rows_above: u64) -> u64 {
        let read: u64 = self.state.lock().holes.iter().map(|hole| hole.run_rows).sum();
        rows_above.saturating_sub(read)
    }

    /// A walk came to the newest row, at whose request the mark had been taken, and everything from `depth` up to it
    /// has been read: the holes there are closed, and the tail may join the walk's last rows.
    pub fn reached_head(&self, depth: Timestamp, mark: u64, last_rows: Arc<HashSet<u64>>) {
        let mut state = self.state.lock();
        state.holes.retain(|hole| hole.number > mark || hole.bottom.depth < depth);
        state.reached = last_rows;
        self.closed(state);
    }

    /// The oldest hole can't be read from its bottom: a complete sweep is needed.
    pub fn give_up(&self) {
        let mut state = self.state.lock();
        if state.holes.pop_front().is_some() {
            state.opened += 1;
            state.edgeless = state.opened;
        }
        self.closed(state);
    }

    fn closed(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        if state.holes.is_empty() && state.edgeless_closed >= state.edgeless {
            state.drain = None;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Rows that another walk read last, at the newest row.
    pub fn reached(&self) -> Arc<HashSet<u64>> {
        Arc::clone(&self.state.lock().reached)
    }

    /// Notes what upstream counts in the tail's window.
    pub fn note_count(&self, count: Count) {
        self.state.lock().count = Some(count);
    }

    /// How many rows upstream counts more than it did when `edge` was the newest: about where the edge is now.
    pub fn rows_above(&self, edge: &Edge) -> Option<u64> {
        let ((start, count), (start_then, count_then)) = (self.state.lock().count?, edge.count?);
        (start == start_then).then(|| count.saturating_sub(count_then))
    }

    /// Notes how many rows are left to read; gives the seconds until none is, once there is a pace to tell it from.
    pub fn note_backlog(&self, rows: u64) -> Option<f64> {
        let mut state = self.state.lock();
        let drain = *state.drain.get_or_insert(Drain { began: Instant::now(), rows });
        let read = drain.rows.saturating_sub(rows);
        (read > 0).then(|| rows as f64 * drain.began.elapsed().as_secs_f64() / read as f64)
    }
}

/// How far ahead of the clock upstream's rows usually are, seconds: zero, or what its clock is wrong by.
#[derive(Debug, Default)]
pub struct Lead {
    samples: VecDeque<i64>,
}

/// Rows that the usual lead is told from.
const LEADS_MAX: usize = 255;
/// Fewer say nothing.
const LEADS_MIN: usize = 16;

impl Lead {
    /// Notes a row that the tail saw first.
    pub fn observe(&mut self, asked_at: Timestamp, time: Timestamp) {
        self.samples.push_back(time.duration_since(asked_at).as_secs());
        if self.samples.len() > LEADS_MAX {
            self.samples.pop_front();
        }
    }

    /// The latest time that a row read now may have and still have the next ones placed above it. A row stamped later
    /// is pinned to the top of the list for a while: that two pages share it says nothing of what lies between.
    pub fn front(&self, asked_at: Timestamp, skew: SignedDuration) -> Timestamp {
        let mut leads: Vec<i64> = self.samples.iter().copied().collect();
        let middle = leads.len() / 2;
        let usual = match leads.len() {
            LEADS_MIN.. => *leads.select_nth_unstable(middle).1,
            _ => 0,
        };
        let ahead = SignedDuration::from_secs(usual.max(0)).saturating_add(skew);
        asked_at.saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }
}

/// The rows by which a later page is recognised to join these: those that are told from all others and that are not
/// pinned. Where no row has a time, all.
pub fn joinable<R>(slots: &[Slot<R>], front: Timestamp) -> HashSet<u64> {
    let any_time = slots.iter().any(|slot| slot.time.is_some());
    let steady = |slot: &&Slot<R>| slot.unique && (!any_time || slot.time.is_some_and(|time| time <= front));
    slots.iter().filter(steady).map(|slot| slot.key).collect()
}
