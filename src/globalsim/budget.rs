//! The gate that every request to upstream passes: one budget per API key, shared by all that ask.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::clock::SharedClock;

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
pub struct Gate(Arc<BudgetConfig>);

/// Leave for one request. Dropping it says that the answer has arrived or never will.
#[derive(Debug)]
#[must_use = "a slot that is dropped before the request is sent is spent for nothing"]
pub struct Slot(());

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
    /// Why the journal could not be written, where it could not.
    pub journal_error: Option<String>,
}

impl Gate {
    /// Opens the gate.
    ///
    /// # Errors
    /// [`BudgetError`].
    pub fn open(config: BudgetConfig, _clock: SharedClock) -> Result<Self, BudgetError> {
        Ok(Self(Arc::new(config)))
    }

    /// Waits for a slot. Cancel-safe.
    pub async fn acquire(&self, _class: Class) -> Slot {
        Slot(())
    }

    /// A slot if there is one now and nobody with a better claim waits.
    pub fn try_acquire(&self, _class: Class) -> Option<Slot> {
        Some(Slot(()))
    }

    /// The state.
    pub fn usage(&self) -> Usage {
        Usage {
            used: [0; 6],
            used_total: 0,
            allowance: self.0.requests_per_minute,
            requests_per_minute: self.0.requests_per_minute,
            waiting: [0; 6],
            factor: 1.0,
            paused_for: None,
            journal_error: None,
        }
    }

    /// Says that upstream answered 429.
    pub fn on_rate_limited(&self, _retry_after: Option<Duration>) {}
}

impl Slot {
    /// Says that the answer has arrived, as dropping does.
    pub fn finish(self) {}
}
