//! Counting requests as the receiver sees them: the enforced limit per key, and the figures by which tests judge
//! a client's budget.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The window of the documented limit ("500 requests/minute per API key").
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Requests remembered one by one.
const RECENT_MAX: usize = 10_000;

/// One request, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Arrival by the wall clock.
    pub at: Timestamp,
    /// Path and query as sent.
    pub target: String,
    /// Status answered; 0 = reset or never answered.
    pub status: u16,
}

/// Figures about the whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// SIMs in the fleet.
    pub sims: usize,
    /// Rows visible now.
    pub visible_rows: usize,
    /// Events ever exposed.
    pub exposed: u64,
    /// Events generated but still held back as late.
    pub held_back: usize,
    /// Rows taken away by retention or erasure.
    pub removed: u64,
    /// Events that the truth ledger has forgotten.
    pub truth_dropped: u64,
    /// Target rate in events per second.
    pub events_per_second: f64,
    /// Whether traffic stands still.
    pub paused: bool,
    /// API requests, whatever the answer.
    pub requests: u64,
    /// Most API requests in any sliding 60 s, all keys together, refused ones included.
    pub max_requests_in_any_60s: usize,
    /// Requests refused because a key was over its limit (not by a fault).
    pub limit_refusals: u64,
    /// API requests by path pattern.
    pub paths: BTreeMap<String, u64>,
    /// API requests by status; 0 = reset or never answered.
    pub statuses: BTreeMap<u16, u64>,
    /// How often each fault struck.
    pub faults: BTreeMap<String, u64>,
    /// Requests to `/_sim`, not counted above.
    pub control_requests: u64,
}

/// Arrivals of the last 60 s and the most there ever were.
#[derive(Debug, Default)]
struct Window {
    arrivals: VecDeque<Instant>,
    most: usize,
}

/// All counts.
#[derive(Debug, Default)]
pub(super) struct Meter {
    all: Window,
    accepted: HashMap<String, Window>,
    stats: Stats,
    recent: VecDeque<RequestRecord>,
    next: u64,
}

// === impl Window ===

impl Window {
    /// Forgets arrivals that are 60 s old: a window of 60 s holds one of its two ends.
    fn expire(&mut self, now: Instant) {
        while self.arrivals.front().is_some_and(|at| now.duration_since(*at) >= WINDOW) {
            self.arrivals.pop_front();
        }
    }

    fn add(&mut self, now: Instant) {
        self.expire(now);
        self.arrivals.push_back(now);
        self.most = self.most.max(self.arrivals.len());
    }
}

// === impl Meter ===

impl Meter {
    /// Notes an arrival at the API and gives it a number for [`Self::answered`].
    pub(super) fn arrived(&mut self, now: Instant, at: Timestamp, path: &str, target: String) -> u64 {
        self.all.add(now);
        self.stats.requests += 1;
        *self.stats.paths.entry(path.to_owned()).or_default() += 1;
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(RequestRecord { at, target, status: 0 });
        self.next += 1;
        self.next
    }

    /// Notes the answer to an arrival.
    pub(super) fn answered(&mut self, number: u64, status: u16) {
        *self.stats.statuses.entry(status).or_default() += 1;
        let oldest = self.next + 1 - self.recent.len() as u64;
        let place = number.checked_sub(oldest).and_then(|place| usize::try_from(place).ok());
        if let Some(record) = place.and_then(|place| self.recent.get_mut(place)) {
            record.status = status;
        }
    }

    /// Asks for a slot of a key. Refused requests take none.
    ///
    /// # Errors
    /// How long until a slot is free.
    pub(super) fn admit(&mut self, key: &str, per_minute: usize, now: Instant) -> Result<(), Duration> {
        let window = self.accepted.entry(key.to_owned()).or_default();
        window.expire(now);
        if window.arrivals.len() < per_minute {
            window.add(now);
            return Ok(());
        }
        self.stats.limit_refusals += 1;
        // The slot that frees the key is the one `per_minute` from the end; with a limit of 0 there is none.
        let frees =
            window.arrivals.len().checked_sub(per_minute.max(1)).and_then(|at| window.arrivals.get(at));
        Err(frees.map_or(WINDOW, |at| (*at + WINDOW).saturating_duration_since(now)))
    }

    /// Notes that a fault struck.
    pub(super) fn struck(&mut self, fault: &str) {
        *self.stats.faults.entry(fault.to_owned()).or_default() += 1;
    }

    /// Notes a request to `/_sim`.
    pub(super) fn control(&mut self) {
        self.stats.control_requests += 1;
    }

    /// The counts of this meter; those of the world are left at zero.
    pub(super) fn stats(&self) -> Stats {
        Stats { max_requests_in_any_60s: self.all.most, ..self.stats.clone() }
    }

    /// The last 10,000 requests, oldest first.
    pub(super) fn recent(&self) -> Vec<RequestRecord> {
        self.recent.iter().cloned().collect()
    }
}
