//! What somebody asked for: where to, which events, how.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::Filter;

/// Seconds before each attempt, by default: the schedule of the Standard Webhooks specification, about 75 hours.
pub const SCHEDULE_S: [u32; 10] = [0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
/// Attempts that a schedule may have.
pub const ATTEMPTS_MAX: usize = 20;
/// Longest wait before one attempt, seconds.
pub const WAIT_MAX_S: u32 = 7 * 86_400;
/// Events in one batch, at most.
pub const BATCH_EVENTS_MAX: usize = 100;
/// Secrets that sign at the same time, at most.
pub const SECRETS_MAX: usize = 10;
/// Requests begun in a second that a limit may allow.
pub const RATE_MAX: u32 = 100_000;

/// Parts of names of headers whose values are credentials, as far as one can tell.
const CONFIDENTIAL: [&str; 6] = ["auth", "cookie", "key", "secret", "token", "password"];
/// Shown in place of a credential; given back, it stands for the value that is there.
pub const HIDDEN: &str = "***";

/// Which events wait for which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ordering {
    /// None does.
    #[default]
    None,
    /// An event waits until those before it of the same SIM are delivered or dead-lettered.
    PerSim,
    /// Each event waits for the one before.
    Strict,
}

impl Ordering {
    /// As spelled everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::PerSim => "per_sim",
            Self::Strict => "strict",
        }
    }
}

/// Several events in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRule {
    /// At most so many, 2 to [`BATCH_EVENTS_MAX`].
    pub max_events: usize,
    /// How long the first waits for more, milliseconds.
    pub max_wait_ms: u64,
}

/// Why an endpoint gets nothing until somebody resumes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    /// Since when.
    pub at: Timestamp,
    /// What the receiver said.
    pub reason: String,
}

/// A secret that signs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSecret {
    /// `whsec_` and base64.
    pub text: String,
    /// It signs until then; None for the current one.
    pub until: Option<Timestamp>,
}

impl std::fmt::Debug for LiveSecret {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveSecret").field("until", &self.until).finish_non_exhaustive()
    }
}

/// What lies encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Private {
    /// Newest first, at most [`SECRETS_MAX`].
    pub secrets: Vec<LiveSecret>,
    /// Sent with every request. Some hold credentials, so all are kept like secrets.
    pub headers: BTreeMap<String, String>,
}

/// An endpoint, as stored but for [`Private`].
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// `whk_` and 20 hex digits.
    pub id: String,
    /// Where to.
    pub url: String,
    /// Which events, beside what the creator's token allows.
    pub filter: Filter,
    /// For people.
    pub description: String,
    /// See [`Ordering`].
    pub ordering: Ordering,
    /// Requests on their way at the same time, at most.
    pub max_in_flight: u32,
    /// Requests begun in a second, at most.
    pub rate_limit_per_second: Option<u32>,
    /// None sends each event by itself.
    pub batch: Option<BatchRule>,
    /// How long an answer may take, milliseconds.
    pub timeout_ms: u64,
    /// Seconds before each attempt.
    pub retry_schedule: Vec<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Name of the token that made it; `anonymous` where none is needed.
    pub created_by: String,
    /// Somebody paused it.
    pub paused: bool,
    /// The receiver does not want any more.
    pub disabled: Option<Disabled>,
    /// Counts [`seek`](super::Webhooks::seek)s; a position of an earlier count is no more.
    pub seeks: u64,
    /// Where the last seek went, as a cursor.
    pub seek_to: Option<String>,
    /// Secrets and headers.
    pub private: Private,
}

/// What may be chosen, with the defaults of the contract.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// See [`Endpoint::url`].
    pub url: String,
    /// See [`Endpoint::filter`].
    pub filter: Filter,
    /// See [`Endpoint::description`].
    pub description: String,
    /// See [`Private::headers`].
    pub headers: BTreeMap<String, String>,
    /// See [`Endpoint::ordering`].
    pub ordering: Ordering,
    /// See [`Endpoint::max_in_flight`].
    pub max_in_flight: u32,
    /// See [`Endpoint::rate_limit_per_second`].
    pub rate_limit_per_second: Option<u32>,
    /// See [`Endpoint::batch`].
    pub batch: Option<BatchRule>,
    /// See [`Endpoint::timeout_ms`].
    pub timeout_ms: u64,
    /// See [`Endpoint::retry_schedule`].
    pub retry_schedule: Vec<u32>,
}

/// A setting that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SettingError {
    /// Which one.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Checks a limit of requests begun in a second, of an endpoint or of a replay.
///
/// # Errors
/// [`SettingError`] where there is one and it is none of 1 to [`RATE_MAX`].
pub fn check_rate(rate: Option<u32>) -> Result<(), SettingError> {
    match rate {
        Some(rate) if !(1..=RATE_MAX).contains(&rate) => Err(SettingError {
            field: "rate_limit_per_second",
            message: format!("rate_limit_per_second is 1 to {RATE_MAX}, not {rate}"),
        }),
        _ => Ok(()),
    }
}

impl Settings {
    /// The defaults for a receiver.
    pub fn new(url: impl Into<String>, filter: Filter) -> Self {
        Self {
            url: url.into(),
            filter,
            description: String::new(),
            headers: BTreeMap::new(),
            ordering: Ordering::None,
            max_in_flight: 16,
            rate_limit_per_second: None,
            batch: None,
            timeout_ms: 15_000,
            retry_schedule: SCHEDULE_S.to_vec(),
        }
    }

    /// Checks everything but the URL, which the guard checks.
    ///
    /// # Errors
    /// [`SettingError`] names the field.
    pub fn check(&self) -> Result<(), SettingError> {
        let wrong = |field, message: String| Err(SettingError { field, message });
        if self.description.chars().count() > 500 {
            return wrong("description", "description has at most 500 characters".into());
        }
        if !(1..=256).contains(&self.max_in_flight) {
            return wrong("max_in_flight", format!("max_in_flight is 1 to 256, not {}", self.max_in_flight));
        }
        check_rate(self.rate_limit_per_second)?;
        if let Some(BatchRule { max_events, max_wait_ms }) = self.batch {
            if !(2..=BATCH_EVENTS_MAX).contains(&max_events) {
                return wrong(
                    "batch.max_events",
                    format!("batch.max_events is 2 to {BATCH_EVENTS_MAX}, not {max_events}"),
                );
            }
            if max_wait_ms > 60_000 {
                return wrong(
                    "batch.max_wait_ms",
                    format!("batch.max_wait_ms is 0 to 60000, not {max_wait_ms}"),
                );
            }
        }
        if !(100..=60_000).contains(&self.timeout_ms) {
            return wrong("timeout_ms", format!("timeout_ms is 100 to 60000, not {}", self.timeout_ms));
        }
        if self.retry_schedule.is_empty() || self.retry_schedule.len() > ATTEMPTS_MAX {
            let message = format!("retry_schedule holds 1 to {ATTEMPTS_MAX} waits, one before each attempt");
            return wrong("retry_schedule", message);
        }
        if let Some(wait) = self.retry_schedule.iter().find(|wait| **wait > WAIT_MAX_S) {
            let message = format!("retry_schedule waits at most {WAIT_MAX_S} seconds, not {wait}");
            return wrong("retry_schedule", message);
        }
        self.check_headers()
    }

    fn check_headers(&self) -> Result<(), SettingError> {
        /// What the gateway or the protocol sets.
        const RESERVED: [&str; 12] = [
            "host",
            "content-length",
            "content-type",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "upgrade",
            "te",
            "trailer",
            "proxy-authorization",
            "proxy-connection",
            "user-agent",
        ];
        let wrong = |message: String| Err(SettingError { field: "headers", message });
        if self.headers.len() > 32 {
            return wrong(format!("headers has {} entries; at most 32 are allowed", self.headers.len()));
        }
        for (name, value) in &self.headers {
            let lower = name.to_ascii_lowercase();
            if http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
                return wrong(format!("{name:?} is no header name"));
            }
            if RESERVED.contains(&lower.as_str()) || lower.starts_with("webhook-") {
                return wrong(format!("the header {name:?} is set by the gateway; choose another name"));
            }
            if http::HeaderValue::from_str(value).is_err() || value.len() > 4_096 {
                return wrong(format!("the value of {name:?} must be visible text of at most 4096 bytes"));
            }
        }
        Ok(())
    }
}

/// What `GET` shows of where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It is being served.
    Active,
    /// Somebody paused it.
    Paused,
    /// The receiver asked for it.
    Disabled,
    /// Its receiver fails; only probes are sent.
    Failing,
    /// The token that made it is no longer valid, or its receiver is no longer allowed.
    Suspended,
}

impl Condition {
    /// As spelled everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Disabled => "disabled",
            Self::Failing => "failing",
            Self::Suspended => "suspended",
        }
    }
}

impl Endpoint {
    /// Its headers, values that look like credentials as [`HIDDEN`].
    pub fn shown_headers(&self) -> impl Iterator<Item = (String, String)> {
        self.private.headers.iter().map(|(name, value)| {
            let lower = name.to_ascii_lowercase();
            let hide = CONFIDENTIAL.iter().any(|part| lower.contains(part));
            (name.clone(), if hide { HIDDEN.to_owned() } else { value.clone() })
        })
    }

    /// Takes other settings.
    pub fn apply(&mut self, settings: Settings, now: Timestamp) {
        let Settings {
            url,
            filter,
            description,
            headers,
            ordering,
            max_in_flight,
            rate_limit_per_second,
            batch,
            timeout_ms,
            retry_schedule,
        } = settings;
        self.url = url;
        self.filter = filter;
        self.description = description;
        let before = std::mem::take(&mut self.private.headers);
        self.private.headers = headers;
        for (name, value) in &mut self.private.headers {
            if let (true, Some(there)) = (value == HIDDEN, before.get(name)) {
                value.clone_from(there);
            }
        }
        self.ordering = ordering;
        self.max_in_flight = max_in_flight;
        self.rate_limit_per_second = rate_limit_per_second;
        self.batch = batch;
        self.timeout_ms = timeout_ms;
        self.retry_schedule = retry_schedule;
        self.updated_at = now;
    }

    /// The settings it has.
    pub fn settings(&self) -> Settings {
        Settings {
            url: self.url.clone(),
            filter: self.filter.clone(),
            description: self.description.clone(),
            headers: self.private.headers.clone(),
            ordering: self.ordering,
            max_in_flight: self.max_in_flight,
            rate_limit_per_second: self.rate_limit_per_second,
            batch: self.batch,
            timeout_ms: self.timeout_ms,
            retry_schedule: self.retry_schedule.clone(),
        }
    }

    /// The form in which it is stored; `sealed` is [`Private`], encrypted.
    pub fn to_stored(&self, sealed: String) -> StoredEndpoint {
        StoredEndpoint {
            id: self.id.clone(),
            url: self.url.clone(),
            filter: self.filter.to_json(),
            description: self.description.clone(),
            ordering: self.ordering,
            max_in_flight: self.max_in_flight,
            rate_limit_per_second: self.rate_limit_per_second,
            batch: self.batch,
            timeout_ms: self.timeout_ms,
            retry_schedule: self.retry_schedule.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
            created_by: self.created_by.clone(),
            paused: self.paused,
            disabled: self.disabled.clone(),
            seeks: self.seeks,
            seek_to: self.seek_to.clone(),
            sealed,
        }
    }
}

/// An endpoint in the key-value store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredEndpoint {
    /// See [`Endpoint`], as all that follow.
    pub id: String,
    url: String,
    filter: Value,
    description: String,
    ordering: Ordering,
    max_in_flight: u32,
    rate_limit_per_second: Option<u32>,
    batch: Option<BatchRule>,
    timeout_ms: u64,
    retry_schedule: Vec<u32>,
    created_at: Timestamp,
    updated_at: Timestamp,
    created_by: String,
    paused: bool,
    disabled: Option<Disabled>,
    seeks: u64,
    seek_to: Option<String>,
    /// [`Private`], encrypted.
    pub sealed: String,
}

impl StoredEndpoint {
    /// The endpoint, with what was decrypted.
    ///
    /// # Errors
    /// Where its filter is none.
    pub fn open(self, private: Private) -> Result<Endpoint, crate::event::FilterError> {
        let limits = crate::event::FilterLimits { values_per_list: usize::MAX };
        let (filter, _) = Filter::from_json(&self.filter, limits)?;
        Ok(Endpoint {
            id: self.id,
            url: self.url,
            filter,
            description: self.description,
            ordering: self.ordering,
            max_in_flight: self.max_in_flight,
            rate_limit_per_second: self.rate_limit_per_second,
            batch: self.batch,
            timeout_ms: self.timeout_ms,
            retry_schedule: self.retry_schedule,
            created_at: self.created_at,
            updated_at: self.updated_at,
            created_by: self.created_by,
            paused: self.paused,
            disabled: self.disabled,
            seeks: self.seeks,
            seek_to: self.seek_to,
            private,
        })
    }
}
