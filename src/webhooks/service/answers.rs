//! What the webhooks answer, and why they do not do something.

use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    bus::KvError,
    event::Filter,
    webhooks::{
        attempts::Attempt,
        endpoint::{Condition, Endpoint, SettingError},
        store::{Only, StoreError, Totals},
    },
};

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// There is no such thing, or the caller may not know of it.
    #[error("there is no {what} {id:?}")]
    NotFound {
        /// `webhook`, `replay` or `delivery`.
        what: &'static str,
        /// As asked.
        id: String,
    },
    /// A field of the request.
    #[error("{message}")]
    Invalid {
        /// Which.
        field: String,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The filter looks at what the token may not see.
    #[error("{message}")]
    ForbiddenField {
        /// Which.
        field: String,
        /// Why.
        message: String,
    },
    /// Not in this state.
    #[error("{0}")]
    Conflict(String),
    /// A position that is not kept.
    #[error("{message}")]
    Expired {
        /// Oldest position.
        oldest: String,
        /// Newest position.
        newest: String,
        /// What is wrong.
        message: String,
    },
    /// So many are allowed.
    #[error("{0}")]
    Limit(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Kv(KvError::Conflict) => {
                Self::Conflict("somebody else changed it at the same time; try again".into())
            }
            other => {
                tracing::warn!(error = %other, "a request for webhooks failed");
                Self::Unavailable("the store of webhooks can't be used now".into())
            }
        }
    }
}

impl From<SettingError> for ServiceError {
    fn from(error: SettingError) -> Self {
        Self::Invalid { field: error.field.to_owned(), message: error.message, hint: None }
    }
}

impl From<crate::hub::Error> for ServiceError {
    fn from(error: crate::hub::Error) -> Self {
        match &error {
            crate::hub::Error::Expired { oldest, newest, .. } => Self::Expired {
                oldest: oldest.to_string(),
                newest: newest.to_string(),
                message: error.to_string(),
            },
            crate::hub::Error::Unavailable(_) => Self::Unavailable(error.to_string()),
        }
    }
}

/// An endpoint as shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// What was asked for.
    pub endpoint: Arc<Endpoint>,
    /// See [`Condition`].
    pub condition: Condition,
    /// Why, where it is not active.
    pub reason: Option<String>,
    /// Everything up to here is settled or pending.
    pub cursor: String,
    /// Events that are not settled.
    pub pending: u64,
}

/// How an endpoint is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// See [`Condition`].
    pub condition: Condition,
    /// Since when its receiver has been failing.
    pub failing_since: Option<Timestamp>,
    /// Positions of the log that have not been taken up, whether or not they match.
    pub behind: u64,
    /// Events taken up and not settled.
    pub pending: u64,
    /// Of these, events that have failed and wait.
    pub waiting: u64,
    /// Age of the oldest event that is not settled, seconds; 0 where none is.
    pub lag_seconds: f64,
    /// When the oldest one that is pending was first tried.
    pub oldest_attempt_at: Option<Timestamp>,
    /// Since it was made.
    pub totals: Totals,
    /// The gateway that serves it; empty where none does at the moment.
    pub owner: String,
}

/// What a test event met.
#[derive(Debug, Clone, PartialEq)]
pub struct TestResult {
    /// `webhook-id` of it.
    pub id: String,
    /// The receiver took it.
    pub delivered: bool,
    /// What was written down.
    pub attempt: Attempt,
}

/// A replay that is asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReplayRequest {
    /// First event observed at or after; None is everything kept.
    pub since: Option<Timestamp>,
    /// Only events observed before; None is up to now.
    pub until: Option<Timestamp>,
    /// Beside the endpoint's own.
    pub filter: Filter,
    /// See [`Only`].
    pub only: Only,
    /// Requests begun in a second, at most.
    pub rate_limit_per_second: Option<u32>,
    /// Only counts.
    pub dry_run: bool,
}

/// A delivery: one event at one endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// `dlv_` and the position of the event.
    pub id: String,
    /// The event, where it is known.
    pub event_id: Option<String>,
    /// See [`Status`].
    pub status: Status,
    /// Attempts made.
    pub attempts: u32,
    /// When the next is due.
    pub next_attempt_at: Option<Timestamp>,
    /// How the last one failed: a status, or what went wrong.
    pub last_error: Option<String>,
    /// When the last attempt was made, where that is known.
    pub last_attempt_at: Option<Timestamp>,
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not tried yet, or on its way.
    Pending,
    /// Arrived.
    Delivered,
    /// It failed and is tried again.
    Failed,
    /// Given up.
    DeadLettered,
    /// Refused by the receiver for good.
    Skipped,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Delivered, Self::Failed, Self::DeadLettered, Self::Skipped];

    /// As spelled everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::DeadLettered => "dead_lettered",
            Self::Skipped => "skipped",
        }
    }

    /// Reads the spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// A page of deliveries, newest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Deliveries {
    /// What was found.
    pub deliveries: Vec<Delivery>,
    /// Where to go on; None at the end.
    pub next: Option<String>,
}
