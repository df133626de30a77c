//! What the poller shows of itself: whether the gateway sees upstream, up to when, and what it could not do.
//!
//! Frontends put it in `GET /v1/stream`, in bookmarks and heartbeats, so that a reader can tell a quiet fleet from a
//! blind gateway. It is a snapshot behind a watch channel: readers never wait for the poller.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{Timestamp, civil::Date};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::quarantine::Quarantine;

/// How every other part follows the poller.
pub type StatusReceiver = tokio::sync::watch::Receiver<Arc<Status>>;

/// Whether upstream can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UpstreamState {
    /// Polls succeed.
    Ok,
    /// No poll has succeeded yet, or none for longer than a few poll intervals.
    #[default]
    Stale,
    /// The key was refused; nothing is read until it is replaced.
    AuthFailed,
    /// Upstream answers 429 although the budget was kept.
    RateLimited,
}

impl UpstreamState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Stale, Self::AuthFailed, Self::RateLimited];

    /// The spelling of the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Stale => "stale",
            Self::AuthFailed => "auth_failed",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// How the list is read, which decides how late an event may appear and still be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Not known yet.
    #[default]
    Unknown,
    /// Sorted, newest first: overlapping pages from the head.
    NewestFirst,
    /// Sorted, oldest first: overlapping pages from the end.
    OldestFirst,
    /// Not sorted, or paging can't be trusted: windows that fit one page.
    Windows,
}

impl Mode {
    /// As shown to operators.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NewestFirst => "newest_first",
            Self::OldestFirst => "oldest_first",
            Self::Windows => "windows",
        }
    }
}

/// The first read of what happened before the gateway was installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackfillState {
    /// Not asked for.
    #[default]
    Off,
    /// Days read and days asked for.
    Running {
        /// Days read to the end.
        days_done: u32,
        /// Days to read.
        days_total: u32,
    },
    /// All days were read.
    Done {
        /// Days read.
        days_total: u32,
    },
}

impl BackfillState {
    fn to_json(self) -> Value {
        match self {
            Self::Off => json!({"state": "off"}),
            Self::Running { days_done, days_total } => {
                json!({"state": "running", "days_done": days_done, "days_total": days_total})
            }
            Self::Done { days_total } => {
                json!({"state": "done", "days_done": days_total, "days_total": days_total})
            }
        }
    }
}

/// What became of events that the disk lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repair {
    /// Positions of the log that can't be read.
    pub damaged: u64,
    /// Those of them that are still to be read again from upstream.
    pub pending: u64,
    /// Events that came back, since the log was made.
    pub repaired: u64,
    /// Events that upstream no longer had, announced as gaps, since the log was made.
    pub lost: u64,
}

impl Repair {
    fn to_json(self) -> Value {
        json!({
            "damaged": self.damaged,
            "pending": self.pending,
            "repaired": self.repaired,
            "lost": self.lost,
        })
    }
}

/// What is known of one UTC day's completeness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DayState {
    /// Upstream's count and the log's agree.
    Verified,
    /// Not compared yet, or being repaired.
    Pending,
    /// Something is missing and upstream no longer has it.
    Gap,
    /// Upstream gives no count to compare with.
    Unavailable,
}

impl DayState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Verified, Self::Pending, Self::Gap, Self::Unavailable];

    /// The spelling of the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Pending => "pending",
            Self::Gap => "gap",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A snapshot of the poller.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Whether upstream can be read.
    pub state: UpstreamState,
    /// Everything that upstream showed up to this time has been read; does not move while a hole is being walked.
    pub seen_until: Option<Timestamp>,
    /// Rows known to wait upstream for being read, about; None while the poller keeps up.
    pub backlog_rows: Option<u64>,
    /// Seconds until they are read, at the pace so far; None where there is no backlog or no pace yet.
    pub drain_eta_s: Option<f64>,
    /// Seconds that reading the window of a list without order takes, when it is read wholly; None in other modes.
    pub pass_s: Option<f64>,
    /// When a request last succeeded.
    pub last_success: Option<Timestamp>,
    /// What upstream said or what is wrong, for the operator; None while all is well.
    pub message: Option<String>,
    /// How the list is read.
    pub mode: Mode,
    /// How late an event may become visible upstream and still be found by sweeps alone, in seconds.
    pub horizon_s: u64,
    /// The durable floor: every event visible before it has been appended.
    pub floor: Option<Timestamp>,
    /// When the last complete sweep began.
    pub last_sweep: Option<Timestamp>,
    /// Events appended since start.
    pub appended: u64,
    /// Events that stayed partial since start.
    pub partial: u64,
    /// Rows and events that can't be stored, since start.
    pub quarantined: u64,
    /// The newest of them.
    pub quarantine: Quarantine,
    /// Rows seen again with changed content, since start.
    pub revised: u64,
    /// Events whose event_id another event had, since start.
    pub conflicts: u64,
    /// Rows found deeper than the tail reads, since start.
    pub late_found: u64,
    /// State of the backfill.
    pub backfill: BackfillState,
    /// Damage of the log and its repair.
    pub repair: Repair,
    /// How far the sessions of SIMs are read; null where they are not.
    pub sims: Value,
    /// What the probe found, with what later pages contradicted.
    pub probe: Value,
    /// Budget use by class.
    pub budget: Value,
    /// Days whose completeness is followed.
    pub completeness: BTreeMap<Date, Completeness>,
    /// What the gateway that polls shows of upstream, where that is another one.
    pub elsewhere: Option<Value>,
}

/// What is known of one UTC day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completeness {
    /// The verdict.
    pub state: DayState,
    /// Events that upstream counted and that neither it nor the log has any more; None where it is not known.
    pub missing: Option<u64>,
    /// Why the day is not verified, or what was odd about it.
    pub reason: Option<String>,
    /// When it was last compared with upstream, since start.
    pub checked_at: Option<Timestamp>,
}

impl Completeness {
    fn to_json(&self) -> Value {
        json!({
            "missing": self.missing,
            "reason": self.reason,
            "checked_at": self.checked_at.map(|at| at.to_string()),
        })
    }
}

impl Status {
    /// The `upstream` object of `GET /v1/stream`. `now` gives the lag: seconds since [`seen_until`](Self::seen_until).
    pub fn to_json(&self, now: Timestamp) -> Value {
        let lag = self.seen_until.map(|seen| (now.duration_since(seen).as_millis().max(0) as f64) / 1e3);
        let days: serde_json::Map<_, _> =
            self.completeness.iter().map(|(day, one)| (day.to_string(), one.state.as_str().into())).collect();
        let day_details: serde_json::Map<_, _> =
            self.completeness.iter().map(|(day, one)| (day.to_string(), one.to_json())).collect();
        if let Some(elsewhere) = &self.elsewhere {
            let mut shown = elsewhere.clone();
            shown["state"] = self.state.as_str().into();
            shown["message"] = self.message.clone().into();
            shown["lag_seconds"] = lag.into();
            shown["polled_here"] = false.into();
            return shown;
        }
        json!({
            "polled_here": self.last_success.is_some(),
            "state": self.state.as_str(),
            "seen_until": self.seen_until.map(|t| t.to_string()),
            "lag_seconds": lag,
            "backlog_rows": self.backlog_rows,
            "drain_eta_seconds": self.drain_eta_s.map(|eta| (eta * 10.0).round() / 10.0),
            "pass_seconds": self.pass_s.map(|took| (took * 10.0).round() / 10.0),
            "last_success": self.last_success.map(|t| t.to_string()),
            "message": self.message,
            "mode": self.mode.as_str(),
            "horizon_seconds": self.horizon_s,
            "floor": self.floor.map(|t| t.to_string()),
            "last_sweep": self.last_sweep.map(|t| t.to_string()),
            "appended": self.appended,
            "partial": self.partial,
            "quarantined": self.quarantined,
            "quarantine": self.quarantine.summary(),
            "revised": self.revised,
            "conflicts": self.conflicts,
            "late_found": self.late_found,
            "backfill": self.backfill.to_json(),
            "repair": self.repair.to_json(),
            "sims": self.sims,
            "probe": self.probe,
            "budget": self.budget,
            "completeness": days,
            "completeness_details": day_details,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_gateway_says_that_it_is_blind() {
        let shown = Status::default().to_json(Timestamp::UNIX_EPOCH);
        assert_eq!(shown["state"], "stale");
        assert_eq!(shown["seen_until"], Value::Null);
        assert_eq!(shown["lag_seconds"], Value::Null);
        assert_eq!(shown["backfill"]["state"], "off");
    }

    #[test]
    fn lag_is_measured_from_what_was_seen_and_never_negative() {
        let seen: Timestamp = "2025-11-05T08:00:00Z".parse().unwrap();
        let verified = Completeness {
            state: DayState::Verified,
            missing: Some(0),
            reason: None,
            checked_at: Some(seen),
        };
        let status = Status {
            seen_until: Some(seen),
            completeness: [("2025-11-04".parse().unwrap(), verified)].into(),
            ..Status::default()
        };
        let later = status.to_json("2025-11-05T08:00:01.5Z".parse().unwrap());
        assert_eq!(later["lag_seconds"].as_f64(), Some(1.5));
        assert_eq!(later["completeness"]["2025-11-04"], "verified");
        assert_eq!(later["completeness_details"]["2025-11-04"]["missing"], 0);
        let earlier = status.to_json("2025-11-05T07:59:59Z".parse().unwrap());
        assert_eq!(earlier["lag_seconds"].as_f64(), Some(0.0));
    }
}
