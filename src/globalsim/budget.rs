//! The gate that every request to upstream passes: one budget per API key, shared by all that ask.
//!
//! # The promise
//!
//! Upstream never counts more than `requests_per_minute` requests in any 60 s, wherever its window begins, over
//! retries and restarts (design section 12.2). A request is counted by upstream at some moment between sending and
//! answering that we can't know. So a request takes a slot before it is sent and gives it back 60 s after its answer:
//! at the moment when upstream counts a request, the slots of all others that it counted in the 60 s before are still
//! taken, and there are only so many. Refused requests (429) count like others. A little more than 60 s is kept
//! ([`HOLD`]), for clocks that do not run alike.
//!
//! Slots are noted in a [`journal`] before the request is sent, so that the promise holds over restarts.
//!
//! # Who goes first
//!
//! When several wait, a class that has used less than its floor in the last minute goes first, the longest waiting
//! of these; beyond the floors the order is strictly that of [`Class`]. Floors are shares of the allowance
//! ([`Class::floor`]) and sum up to about a quarter, so no class waits longer for its floor than a slot takes to come
//! back, and a backlog of tail and catch-up still gets over nine tenths. Within a class, first come, first served.
//!
//! # How fast
//!
//! At most [`BURST_MAX`] at once, else evenly: a token bucket filled at the allowance. After a 429 the allowance is
//! halved (once per 10 s at most) and grows back by a twentieth of the configured rate every 30 s; a Retry-After
//! stops every class.

mod journal;
mod pace;
mod table;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

use self::{
    journal::{Boot, Journal},
    pace::Pace,
    table::Table,
};
use crate::clock::SharedClock;

pub use pace::BURST_MAX;

/// How long a slot stays taken after the answer: upstream's window, and a margin for clocks that run unlike and for
/// the 10 ms steps of the time since boot.
pub const HOLD: Duration = Duration::from_millis(60_050);

/// How long the gate stays shut after the journal could not be written.
const JOURNAL_RETRY: Duration = Duration::from_secs(1);

/// What a request is for; earlier ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The newest page, again and again.
    Tail,
    /// A walk through a backlog.
    CatchUp,
    /// A walk that looks for late rows.
    Sweep,
    /// Counting a closed day.
    Ledger,
    /// Sessions of SIMs that moved.
    Sessions,
    /// Details of single events, devices, and what clients ask for.
    Details,
}

impl Class {
    /// In order of priority.
    pub const ALL: [Self; 6] =
        [Self::Tail, Self::CatchUp, Self::Sweep, Self::Ledger, Self::Sessions, Self::Details];

    /// As shown in metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tail => "tail",
            Self::CatchUp => "catch_up",
            Self::Sweep => "sweep",
            Self::Ledger => "ledger",
            Self::Sessions => "sessions",
            Self::Details => "details",
        }
    }

    /// What this class gets of `allowance` whatever the others want: in 400 requests, 30 for the tail, 60 for
    /// catching up, 10 for sweeps, 2 for the ledger, 5 for sessions, 3 for details; at least 1.
    pub fn floor(self, allowance: u32) -> u32 {
        let of_400 = match self {
            Self::Tail => 30,
            Self::CatchUp => 60,
            Self::Sweep => 10,
            Self::Ledger => 2,
            Self::Sessions => 5,
            Self::Details => 3,
        };
        (allowance * of_400 / 400).max(1)
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// What may be spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetConfig {
    /// Requests in any 60 s, all classes together.
    pub requests_per_minute: u32,
    /// The documented ceiling of the key; `requests_per_minute` may not be above.
    pub limit_per_minute: u32,
    /// Where slots are noted down so that a restart knows of them; None for a budget that no restart shares.
    pub journal: Option<PathBuf>,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { requests_per_minute: 400, limit_per_minute: 500, journal: None }
    }
}

/// Why the gate can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// Zero, or over the ceiling.
    #[error("requests_per_minute is {asked}; it must be 1 to {limit} (limit_per_minute)")]
    OutOfRange {
        /// As configured.
        asked: u32,
        /// The ceiling.
        limit: u32,
    },
    /// Another process holds the journal.
    #[error("the budget journal {} is in use by another gateway", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// The journal can't be used.
    #[error("the budget journal {} can't be used: {why}", path.display())]
    Journal {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
}

/// The gate. Clones share one budget.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Inner>);

/// Leave for one request. Dropping it says that the answer has arrived or never will.
#[derive(Debug)]
#[must_use = "a slot that is dropped before the request is sent is spent for nothing"]
pub struct Slot {
    gate: Arc<Inner>,
    index: u32,
}

/// What the gate looks like now.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// Slots taken, in the order of [`Class::ALL`]: in flight, or answered in the last 60 s.
    pub used: [u32; 6],
    /// All slots taken, with those of an earlier process whose class is not known.
    pub used_total: u32,
    /// How many may be taken now.
    pub allowance: u32,
    /// How many may be taken when upstream does not complain.
    pub requests_per_minute: u32,
    /// Requests that wait, in the order of [`Class::ALL`].
    pub waiting: [u32; 6],
    /// `allowance` over `requests_per_minute`: below 1 after a 429.
    pub factor: f64,
    /// How long nothing is sent at all, since upstream asked for it.
    pub paused_for: Option<Duration>,
    /// Why the journal could not be written, where it could not; nothing is sent meanwhile.
    pub journal_error: Option<String>,
}

#[derive(Debug)]
struct Inner {
    requests_per_minute: u32,
    state: Mutex<State>,
    /// Tells waiters that the time for which they sleep has changed.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    table: Table,
    pace: Pace,
    waiting: [VecDeque<Waiter>; 6],
    next_ticket: u64,
    journal_error: Option<String>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    grant: oneshot::Sender<Slot>,
}

impl Gate {
    /// Opens the gate. Must be called inside a tokio runtime when its clock is paused.
    ///
    /// # Errors
    /// [`BudgetError`].
    pub fn open(config: BudgetConfig, clock: SharedClock) -> Result<Self, BudgetError> {
        Self::open_on(config, clock, Boot::system())
    }

    fn open_on(config: BudgetConfig, clock: SharedClock, boot: Boot) -> Result<Self, BudgetError> {
        let (asked, limit) = (config.requests_per_minute, config.limit_per_minute);
        if asked == 0 || asked > limit {
            return Err(BudgetError::OutOfRange { asked, limit });
        }
        let now = Instant::now();
        let (journal, found) = match config.journal {
            None => (None, Vec::new()),
            Some(path) => {
                let (journal, found) = Journal::open(path, asked, clock, boot)?;
                (Some(journal), found)
            }
        };
        let state = State {
            table: Table::new(journal, found, now),
            pace: Pace::new(asked, now),
            waiting: Default::default(),
            next_ticket: 0,
            journal_error: None,
        };
        let inner = Inner { requests_per_minute: asked, state: Mutex::new(state), changed: Notify::new() };
        Ok(Self(Arc::new(inner)))
    }

    /// Waits for a slot. Cancel-safe: a caller that stops waiting leaves the queue and spends nothing.
    pub async fn acquire(&self, class: Class) -> Slot {
        let mut place = Place::queue(&self.0, class);
        loop {
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let next = self.0.serve();
            tokio::select! {
                biased;
                grant = &mut place.grant => match grant {
                    Ok(slot) => return slot,
                    // Only a sender that is dropped unused gives this; queue again rather than fail.
                    Err(_) => place = Place::queue(&self.0, class),
                },
                () = changed => {}
                () = sleep_until(next.unwrap_or_else(far_off)) => {}
            }
        }
    }

    /// A slot if there is one now and nobody waits for it.
    pub fn try_acquire(&self, class: Class) -> Option<Slot> {
        self.0.serve();
        let mut state = self.0.state.lock();
        let now = Instant::now();
        if state.ready_at(now) != Some(now) {
            return None;
        }
        state.take(class, now).map(|index| Slot { gate: Arc::clone(&self.0), index })
    }

    /// The state.
    pub fn usage(&self) -> Usage {
        let mut state = self.0.state.lock();
        let now = Instant::now();
        state.advance(now);
        Usage {
            used: state.table.used(),
            used_total: state.table.used_total(),
            allowance: state.pace.allowance(),
            requests_per_minute: self.0.requests_per_minute,
            waiting: std::array::from_fn(|class| state.waiting[class].len() as u32),
            factor: state.pace.factor(),
            paused_for: state.pace.paused_for(now),
            journal_error: state.journal_error.clone(),
        }
    }

    /// Says that upstream answered 429, for how long it wants silence if it said so.
    pub fn on_rate_limited(&self, retry_after: Option<Duration>) {
        let mut state = self.0.state.lock();
        let now = Instant::now();
        if state.pace.on_rate_limited(now, retry_after) {
            tracing::warn!(
                allowance = state.pace.allowance(),
                used = state.table.used_total(),
                "upstream refused a request for its rate; sending slower"
            );
        }
    }

    /// Counts the whole allowance as used for the next 60 s: for a gateway that takes over from one whose journal it
    /// can't read.
    pub fn assume_spent(&self) {
        let mut state = self.0.state.lock();
        let now = Instant::now();
        state.advance(now);
        while state.table.used_total() < self.0.requests_per_minute {
            match state.table.take(None) {
                Ok(index) => state.note(now, index),
                Err(error) => return state.journal_failed(now, error),
            }
        }
    }
}

impl Slot {
    /// Says that the answer has arrived, as dropping does.
    pub fn finish(self) {}
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.state.lock().note(Instant::now(), self.index);
        self.gate.changed.notify_waiters();
    }
}

/// Somebody's place in the queue; dropping it leaves the queue.
struct Place {
    gate: Arc<Inner>,
    class: Class,
    ticket: u64,
    grant: oneshot::Receiver<Slot>,
}

impl Place {
    fn queue(gate: &Arc<Inner>, class: Class) -> Self {
        let (sender, grant) = oneshot::channel();
        let mut state = gate.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting[class.index()].push_back(Waiter { ticket, grant: sender });
        Self { gate: Arc::clone(gate), class, ticket, grant }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.waiting[self.class.index()].retain(|waiter| waiter.ticket != self.ticket);
    }
}

impl Inner {
    /// Gives slots to those who wait, as many as there are; says when the next one may be had.
    fn serve(self: &Arc<Self>) -> Option<Instant> {
        let now = Instant::now();
        let mut granted = Vec::new();
        let next = {
            let mut state = self.state.lock();
            loop {
                let ready_at = state.ready_at(now);
                if ready_at != Some(now) {
                    break ready_at;
                }
                let Some((class, waiter)) = state.next_waiter() else { break None };
                match state.take(class, now) {
                    Some(index) => granted.push((waiter, Slot { gate: Arc::clone(self), index })),
                    None => state.waiting[class.index()].push_front(waiter),
                }
            }
        };
        // Outside the lock: a slot that nobody takes any more is dropped here, and dropping locks.
        for (waiter, slot) in granted {
            let _ = waiter.grant.send(slot);
        }
        next
    }
}

impl State {
    fn advance(&mut self, now: Instant) {
        self.table.expire(now);
        self.pace.advance(now);
    }

    /// `now` where a slot can be taken now, a later time where it is known, None where it depends on an answer.
    fn ready_at(&mut self, now: Instant) -> Option<Instant> {
        self.advance(now);
        let by_pace = self.pace.ready_at(now);
        if self.table.used_total() < self.pace.allowance() {
            return Some(by_pace);
        }
        let by_table = [self.table.next_free(), self.pace.next_raise()].into_iter().flatten().min()?;
        Some(by_table.max(by_pace))
    }

    /// See the head of this file.
    fn next_waiter(&mut self) -> Option<(Class, Waiter)> {
        let (allowance, used) = (self.pace.allowance(), self.table.used());
        let heads = Class::ALL.into_iter().filter_map(|class| {
            let head = self.waiting[class.index()].front()?;
            Some((class, head.ticket))
        });
        let below_floor = |class: Class| used[class.index()] < class.floor(allowance);
        // Below a floor the ticket decides, beyond the order of classes.
        let (class, _) = heads.min_by_key(|(class, ticket)| match below_floor(*class) {
            true => (0, *ticket, *class),
            false => (1, 0, *class),
        })?;
        self.waiting[class.index()].pop_front().map(|waiter| (class, waiter))
    }

    fn take(&mut self, class: Class, now: Instant) -> Option<u32> {
        match self.table.take(Some(class)) {
            Ok(index) => {
                self.pace.spend();
                self.journal_error = None;
                Some(index)
            }
            Err(error) => {
                self.journal_failed(now, error);
                None
            }
        }
    }

    /// The answer has arrived.
    fn note(&mut self, now: Instant, index: u32) {
        // A slot without a noted end only counts for longer after a restart.
        if let Err(error) = self.table.answered(index, now) {
            self.journal_failed(now, error);
        }
    }

    fn journal_failed(&mut self, now: Instant, error: std::io::Error) {
        if self.journal_error.is_none() {
            tracing::error!(%error, "the budget journal can't be written: no requests are sent until it can");
        }
        self.journal_error = Some(error.to_string());
        self.pace.shut_until(now + JOURNAL_RETRY);
    }
}

/// As good as never for a timer.
fn far_off() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
