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
//! Slots are noted in a [`journal`] before the request is sent, so that the promise holds over restarts. Where several
//! gateways share a key, they are noted in advance where the others find them ([`share`]).
//!
//! # Who goes first
//!
//! When several wait, a class that has used less than its floor in the last minute, and has got nothing for as long as
//! its floor spreads requests, goes first, the longest waiting of these; beyond the floors the order is strictly that of [`Class`]. Floors are shares of the allowance
//! ([`Class::floor`]) and sum up to about a quarter, so no class waits longer for its floor than a slot takes to come
//! back, and a backlog of tail and catch-up still gets over nine tenths. Within a class, first come, first served.
//! The last twentieth of the minute's slots is not for details beyond their floor: where a busy fleet wants more of them
//! than there are, a burst spends so many slots at once, and until these come back, three seconds of every minute, the
//! tail would have none.
//! Requests that nobody waits for are not sent while they would empty the bucket ([`Gate::has_spare`]).
//!
//! # How fast
//!
//! At most [`BURST_MAX`] at once, else evenly: a token bucket filled at the allowance. After a 429 the allowance is
//! halved (once per 10 s at most) and grows back by a twentieth of the configured rate every 30 s; a Retry-After
//! stops every class.

mod journal;
mod pace;
mod queue;
mod share;
mod table;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use self::{
    journal::{Boot, Journal},
    queue::{Inner, Place, State},
};
use crate::{
    clock::SharedClock,
    sabotage::{self, Bug},
};

pub use pace::BURST_MAX;
pub use share::{Note, Noted, noted_in};

/// How long a slot stays taken after the answer: upstream's window, and a margin for clocks that run unlike and for
/// the 10 ms steps of the time since boot.
pub const HOLD: Duration = Duration::from_millis(60_050);

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
    /// Whether gateways on other machines use the same key. Nothing is sent then before [`Gate::grant`].
    pub shared: bool,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { requests_per_minute: 400, limit_per_minute: 500, journal: None, shared: false }
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
    /// How long nothing is sent at all, since upstream asked for it or the journal can't be written.
    pub paused_for: Option<Duration>,
    /// Why the journal could not be written, where it could not; nothing is sent meanwhile.
    pub journal_error: Option<String>,
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
        let state = State::new(asked, journal, found, config.shared, now);
        Ok(Self(Arc::new(Inner::new(asked, state))))
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
        if state.ready_at(now) != Some(now) || !state.may_take(class) {
            return None;
        }
        state.take(class, now).map(|index| Slot { gate: Arc::clone(&self.0), index })
    }

    /// Whether a request that nobody waits for may be sent now: while nobody else waits, and only as long as it leaves
    /// half a burst and a twentieth of the minute to whoever comes next.
    pub fn has_spare(&self) -> bool {
        self.0.state.lock().has_spare(Instant::now())
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
            waiting: state.waiting(),
            factor: state.pace.factor(),
            paused_for: state.pace.paused_for(now),
            journal_error: state.journal_error.clone(),
        }
    }

    /// Says that upstream answered 429, for how long it wants silence if it said so.
    pub fn on_rate_limited(&self, retry_after: Option<Duration>) {
        if sabotage::on(Bug::IgnoreRefusal) {
            return;
        }
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

/// As good as never for a timer.
fn far_off() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
