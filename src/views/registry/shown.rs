//! A SIM as it is shown: what its entry says at a moment, within what a reader may see.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Number;

use super::{
    entry::{At, Entry},
    sessions::Month,
};
use crate::event::{Cursor, FieldPolicy, Iccid, Network, cursor};

/// What is known of a SIM. None is not known, or hidden by the reader's policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sim {
    /// Its number.
    pub iccid: Option<String>,
    /// Its phone number.
    pub msisdn: Option<String>,
    /// The device that it is in.
    pub device_id: Option<String>,
    /// Which of `device_id`, `msisdn` and `network` do not come from the newest event, but from another one.
    pub derived: Vec<&'static str>,
    /// By the newest event that tells.
    pub online: Option<bool>,
    /// The network of the newest event that names one.
    pub network: Option<Network>,
    /// Time of the oldest event that was read.
    pub first_seen: Option<Timestamp>,
    /// Time of the newest event; not after it was observed.
    pub last_seen: Option<Timestamp>,
    /// The newest event.
    pub last_event: Option<LastEvent>,
    /// The newest session that has not ended.
    pub open_session: Option<OpenSession>,
    /// Data of the current month.
    pub usage: MonthUsage,
    /// Events that were read; the completed copy of a partial event is not counted.
    pub events: u64,
    /// How the gateway knows of it.
    pub source: Source,
}

/// The newest event of a SIM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastEvent {
    /// Its id.
    pub id: String,
    /// Its type as upstream spells it.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its time as it says.
    pub time: Timestamp,
    /// Its place in the stream.
    pub cursor: String,
}

/// A session that has not ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpenSession {
    /// Upstream's id.
    pub session_id: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When the amounts were so.
    pub updated_at: Timestamp,
    /// Megabytes.
    pub upload_mb: Option<Number>,
    /// Megabytes.
    pub download_mb: Option<Number>,
    /// Megabytes.
    pub total_mb: Option<Number>,
}

/// Data of one month (UTC).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MonthUsage {
    /// Such as `2026-11`.
    pub month: String,
    /// What upstream last reported in that month.
    pub reported: Option<Reported>,
    /// Sum of the sessions that began in it, megabytes.
    pub sessions_mb: Number,
    /// How many these are.
    pub sessions: u64,
}

/// A usage sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reported {
    /// Megabytes with upstream's digits.
    pub current_usage_mb: Number,
    /// `current_month`.
    pub period: Option<String>,
    /// When it was so.
    pub time: Timestamp,
}

/// How the gateway knows of a SIM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// From events.
    Log,
    /// From `sims.iccids` or `sims.file` only.
    Config,
}

impl Source {
    /// As spelled in every encoding.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Config => "config",
        }
    }
}

impl Sim {
    /// What the entry of a log says at `now`.
    pub(super) fn of(iccid: &Iccid, entry: &Entry, incarnation: u64, now: Timestamp) -> Self {
        let month = Month::of(now);
        let (used, sessions) = entry.sessions.used_in(month);
        Self {
            iccid: Some(iccid.as_str().to_owned()),
            msisdn: entry.msisdn.as_ref().map(|msisdn| msisdn.value.to_string()),
            device_id: entry.device_id().map(str::to_owned),
            derived: derived(entry),
            online: entry.is_online(),
            network: entry.network.as_ref().map(|network| (*network.value).clone()),
            first_seen: entry.first_us.map(time),
            last_seen: entry.last_us().map(time),
            last_event: entry.last.as_ref().map(|last| LastEvent {
                id: last.value.id.to_string(),
                event_type: last.value.event_type.to_string(),
                time: time(last.value.time_us),
                cursor: Cursor { incarnation, seq: last.at.seq, tag: cursor::tag(&last.value.id) }
                    .to_string(),
            }),
            open_session: entry.sessions.open().map(|session| OpenSession {
                session_id: session.id.to_string(),
                started_at: time(session.start_us),
                updated_at: time(session.updated.us),
                upload_mb: session.upload.map(super::Megabytes::to_number),
                download_mb: session.download.map(super::Megabytes::to_number),
                total_mb: session.total().map(super::Megabytes::to_number),
            }),
            usage: MonthUsage {
                month: month.to_string(),
                reported: entry.sample_of(month).map(|sample| Reported {
                    current_usage_mb: sample.value.current_usage_mb.clone(),
                    period: sample.value.period.as_deref().map(str::to_owned),
                    time: time(sample.at.us),
                }),
                sessions_mb: used.to_number(),
                sessions,
            },
            events: entry.events,
            source: if entry.is_blank() { Source::Config } else { Source::Log },
        }
    }

    /// The same as a policy shows it.
    #[must_use]
    pub fn under(mut self, policy: Option<&FieldPolicy>) -> Self {
        if let Some(policy) = policy {
            self.iccid = self.iccid.and_then(|iccid| policy.show_iccid(&iccid));
            self.msisdn = self.msisdn.and_then(|msisdn| policy.show_msisdn(&msisdn));
        }
        self
    }
}

fn derived(entry: &Entry) -> Vec<&'static str> {
    let newest = entry.last.as_ref().map(|last| last.at);
    let other = |at| newest != Some(at);
    let mut names = Vec::new();
    if entry.device.as_ref().is_some_and(|device| device.value.is_some() && other(device.at)) {
        names.push("device_id");
    }
    let elsewhere = |of: Option<&At<Box<str>>>| of.is_some_and(|value| other(value.at));
    if elsewhere(entry.msisdn.as_ref()) {
        names.push("msisdn");
    }
    if entry.network.as_ref().is_some_and(|network| other(network.at)) {
        names.push("network");
    }
    names
}

fn time(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or_default()
}
