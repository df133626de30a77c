//! Why a request gave no page, in terms of what the caller can do about it.
//!
//! Every variant costs one answer and nothing else: the position of a walk does not move on an error, so the same
//! request may be sent again (design section 12.7).

use std::time::Duration;

use super::key::KeyError;

/// The longest text of upstream's that an error repeats, characters.
pub const SAID_CHARS_MAX: usize = 500;

/// What kind of failure it is; also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 401: the key is not accepted in any style.
    Auth,
    /// 403: the key is known but lacks a scope.
    Forbidden,
    /// 429.
    RateLimited,
    /// 404.
    NotFound,
    /// 400, 422 and other refusals of the request as such.
    Invalid,
    /// An answer that is not GlobalSIM's: HTML, a redirect, JSON of another shape.
    NotGlobalSim,
    /// The body is larger than allowed.
    TooLarge,
    /// A deadline passed.
    Timeout,
    /// No whole answer arrived: refused, reset, cut off, TLS.
    Transport,
    /// 5xx.
    Server,
    /// No slot of the request budget within the time allowed for waiting.
    BudgetExhausted,
    /// The key can't be read or the client can't be built: a mistake in the configuration.
    Config,
}

impl Kind {
    /// As shown in metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate_limited",
            Self::NotFound => "not_found",
            Self::Invalid => "invalid",
            Self::NotGlobalSim => "not_globalsim",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::Transport => "transport",
            Self::Server => "server",
            Self::BudgetExhausted => "budget_exhausted",
            Self::Config => "config",
        }
    }
}

/// A failed request. `said` is what upstream's body said, at most [`SAID_CHARS_MAX`] characters, the key blotted out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// 401.
    #[error("upstream does not accept the API key (401{}), tried as {tried}", said_after(.said))]
    Auth {
        /// Which header styles were tried.
        tried: String,
        /// What upstream said.
        said: String,
    },
    /// 403.
    #[error("upstream accepts the API key but refuses the request (403{}): a scope is missing", said_after(.said))]
    Forbidden {
        /// What upstream said.
        said: String,
    },
    /// 429.
    #[error("upstream's rate limit was hit (429{})", said_after(.said))]
    RateLimited {
        /// How long upstream wants us to be silent.
        retry_after: Option<Duration>,
        /// What upstream said.
        said: String,
    },
    /// 404.
    #[error("upstream does not know it (404{})", said_after(.said))]
    NotFound {
        /// What upstream said.
        said: String,
    },
    /// 400, 422, other 4xx, or a path that can't be expressed in a URL (`status` 0: not sent).
    #[error("upstream can't take the request ({status}{})", said_after(.said))]
    Invalid {
        /// HTTP status; 0 where nothing was sent.
        status: u16,
        /// What upstream said.
        said: String,
    },
    /// Not an answer of this API.
    #[error("the answer is not GlobalSIM's ({status}): {reason}; check base_url")]
    NotGlobalSim {
        /// HTTP status.
        status: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// Body over the bound.
    #[error("the answer is larger than {bytes_max} bytes")]
    TooLarge {
        /// The bound.
        bytes_max: usize,
    },
    /// Deadline.
    #[error("upstream did not {what} within {after_ms} ms")]
    Timeout {
        /// `accept the connection`, `answer` or `finish its answer`.
        what: &'static str,
        /// The deadline, milliseconds.
        after_ms: u64,
    },
    /// Network.
    #[error("no whole answer from upstream: {0}")]
    Transport(String),
    /// 5xx.
    #[error("upstream failed ({status}{})", said_after(.said))]
    Server {
        /// HTTP status.
        status: u16,
        /// How long upstream wants us to wait.
        retry_after: Option<Duration>,
        /// What upstream said.
        said: String,
    },
    /// Our own gate.
    #[error("the request budget had no room within {waited_ms} ms")]
    BudgetExhausted {
        /// How long was waited, milliseconds.
        waited_ms: u64,
    },
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The configuration can't make a client.
    #[error("the upstream client can't be set up: {0}")]
    Config(String),
}

fn said_after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

impl Error {
    /// What kind of failure.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Auth { .. } => Kind::Auth,
            Self::Forbidden { .. } => Kind::Forbidden,
            Self::RateLimited { .. } => Kind::RateLimited,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Invalid { .. } => Kind::Invalid,
            Self::NotGlobalSim { .. } => Kind::NotGlobalSim,
            Self::TooLarge { .. } => Kind::TooLarge,
            Self::Timeout { .. } => Kind::Timeout,
            Self::Transport(_) => Kind::Transport,
            Self::Server { .. } => Kind::Server,
            Self::BudgetExhausted { .. } => Kind::BudgetExhausted,
            Self::Key(_) | Self::Config(_) => Kind::Config,
        }
    }

    /// Whether the same request may succeed a little later without anybody changing anything.
    pub fn retryable(&self) -> bool {
        match self {
            // 501 is how this platform says "not yet available" (its Terraform provider treats it so).
            Self::Server { status, .. } => *status != 501,
            // A proxy's HTML page or a cut body comes with 200 too, and goes away by itself.
            Self::NotGlobalSim { .. } => true,
            Self::RateLimited { .. } | Self::Timeout { .. } | Self::Transport(_) => true,
            Self::BudgetExhausted { .. } => true,
            Self::Invalid { status, .. } => *status == 408 || *status == 425,
            Self::Auth { .. } | Self::Forbidden { .. } | Self::NotFound { .. } => false,
            Self::TooLarge { .. } | Self::Key(_) | Self::Config(_) => false,
        }
    }

    /// How long upstream asked us to wait, at most an hour.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Auth { .. } => Some(401),
            Self::Forbidden { .. } => Some(403),
            Self::RateLimited { .. } => Some(429),
            Self::NotFound { .. } => Some(404),
            Self::Invalid { status: 0, .. } => None,
            Self::Invalid { status, .. }
            | Self::NotGlobalSim { status, .. }
            | Self::Server { status, .. } => Some(*status),
            _ => None,
        }
    }
}
