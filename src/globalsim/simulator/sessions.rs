//! Data sessions of one SIM and their JSON. Volumes are kept in tenths of a megabyte, so that sums are exact and
//! print with the one decimal of the API document.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde::Serialize;

use super::operators::{Attachment, NetworkShape};
use super::query::Days;

/// Sessions kept per SIM; older ones are forgotten.
const SESSIONS_MAX: usize = 500;

/// One data session.
#[derive(Debug, Clone)]
pub(super) struct Session {
    id: String,
    start_s: i64,
    end_s: Option<i64>,
    network: Attachment,
    upload_tenths: u64,
    download_tenths: u64,
    ip: [u8; 4],
}

/// The sessions of one SIM, oldest first; at most the last one is open.
#[derive(Debug, Clone, Default)]
pub(super) struct Sessions(VecDeque<Session>);

#[derive(Debug, Serialize)]
struct SessionShape {
    session_id: String,
    start_time: String,
    /// Outer none: the field is absent. Inner none: null.
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Option<String>>,
    duration_seconds: i64,
    network: NetworkShape,
    data_usage: UsageShape,
    ip_address: String,
}

#[derive(Debug, Serialize)]
struct UsageShape {
    upload_mb: f64,
    download_mb: f64,
    total_mb: f64,
}

#[derive(Debug, Serialize)]
struct Summary {
    total_sessions: usize,
    total_data_mb: f64,
    average_session_duration_seconds: i64,
}

/// The answer of `/sims/{iccid}/sessions`.
#[derive(Debug, Serialize)]
pub(super) struct SessionsShape {
    iccid: String,
    sessions: Vec<SessionShape>,
    total: usize,
    summary: Summary,
}

/// One session as it really is, for test drivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct SessionTruth {
    /// SIM.
    pub iccid: String,
    /// Upstream's id.
    pub session_id: String,
    /// RFC 3339.
    pub start_time: String,
    /// RFC 3339; None while open.
    pub end_time: Option<String>,
    /// Upload and download in tenths of a megabyte.
    pub total_tenths: u64,
}

/// Seconds since the epoch as RFC 3339 in UTC.
pub(super) fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// Tenths as a decimal number.
pub(super) fn decimal(tenths: u64) -> f64 {
    tenths as f64 / 10.0
}

// === impl Session ===

impl Session {
    fn duration_s(&self, now_s: i64) -> i64 {
        (self.end_s.unwrap_or(now_s) - self.start_s).max(0)
    }

    fn total_tenths(&self) -> u64 {
        self.upload_tenths + self.download_tenths
    }

    fn shape(&self, now_s: i64, open_end_absent: bool) -> SessionShape {
        let [a, b, c, d] = self.ip;
        SessionShape {
            session_id: self.id.clone(),
            start_time: rfc3339(self.start_s),
            end_time: match self.end_s {
                None if open_end_absent => None,
                end => Some(end.map(rfc3339)),
            },
            duration_seconds: self.duration_s(now_s),
            network: self.network.in_session(),
            data_usage: UsageShape {
                upload_mb: decimal(self.upload_tenths),
                download_mb: decimal(self.download_tenths),
                total_mb: decimal(self.total_tenths()),
            },
            ip_address: format!("{a}.{b}.{c}.{d}"),
        }
    }
}

// === impl Sessions ===

impl Sessions {
    /// Opens a session, closing the one before.
    pub(super) fn open(&mut self, rng: &mut fastrand::Rng, at_s: i64, network: Attachment) {
        self.close(at_s);
        if self.0.len() == SESSIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Session {
            id: format!("ses_{:012x}", rng.u64(..) >> 16),
            start_s: at_s,
            end_s: None,
            network,
            upload_tenths: rng.u64(0..5),
            download_tenths: rng.u64(0..20),
            ip: [10, rng.u8(..), rng.u8(..), rng.u8(1..255)],
        });
    }

    /// Closes the open session, if any.
    pub(super) fn close(&mut self, at_s: i64) {
        if let Some(last) = self.0.back_mut().filter(|last| last.end_s.is_none()) {
            last.end_s = Some(at_s.max(last.start_s));
        }
    }

    /// Whether a session is open.
    pub(super) fn is_open(&self) -> bool {
        self.0.back().is_some_and(|last| last.end_s.is_none())
    }

    /// Adds traffic to the open session, if any.
    pub(super) fn grow(&mut self, upload_tenths: u64, download_tenths: u64) {
        if let Some(last) = self.0.back_mut().filter(|last| last.end_s.is_none()) {
            last.upload_tenths += upload_tenths;
            last.download_tenths += download_tenths;
        }
    }

    /// All of them, oldest first.
    pub(super) fn truth(&self, iccid: &str) -> impl Iterator<Item = SessionTruth> {
        self.0.iter().map(move |session| SessionTruth {
            iccid: iccid.to_owned(),
            session_id: session.id.clone(),
            start_time: rfc3339(session.start_s),
            end_time: session.end_s.map(rfc3339),
            total_tenths: session.total_tenths(),
        })
    }

    /// One page, newest first; `days` filters by start time, `total` and `summary` cover all that match.
    pub(super) fn page(
        &self,
        iccid: &str,
        now_s: i64,
        days: Days,
        (offset, limit): (usize, usize),
        open_end_absent: bool,
    ) -> SessionsShape {
        let matching: Vec<&Session> = self.0.iter().rev().filter(|s| days.contains(s.start_s)).collect();
        let total = matching.len();
        let seconds: i64 = matching.iter().map(|s| s.duration_s(now_s)).sum();
        let summary = Summary {
            total_sessions: total,
            total_data_mb: decimal(matching.iter().map(|s| s.total_tenths()).sum()),
            average_session_duration_seconds: seconds.checked_div(total as i64).unwrap_or(0),
        };
        let page = matching.into_iter().skip(offset).take(limit);
        let sessions = page.map(|s| s.shape(now_s, open_end_absent)).collect();
        SessionsShape { iccid: iccid.to_owned(), sessions, total, summary }
    }
}
