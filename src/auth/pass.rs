//! Short-lived stand-ins for a token, for clients that can't send headers: tickets and SSE cookie sessions.
//!
//! Both live in memory only. A restart forgets them; the client then asks for a new ticket, which it must be able to
//! do anyway since a ticket lasts 30 s.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::{
    Principal,
    token::{EntropyError, random_text},
};
use crate::clock::SharedClock;

/// How long a ticket may wait to be redeemed, seconds (`expires_in_s` of `POST /v1/tickets`).
pub const TICKET_SECONDS: i64 = 30;

/// How long a cookie session lasts at most, seconds.
pub const SESSION_SECONDS: i64 = 3600;

/// Most tickets, and most sessions, that are kept at a time.
pub const KEPT_MAX: usize = 10_000;

/// Why no ticket or session was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// [`KEPT_MAX`] are waiting; some expire soon.
    #[error("too many tickets or sessions are open")]
    Full,
    /// The principal's token has expired meanwhile.
    #[error("the token has expired")]
    Expired,
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl IssueError {
    /// Whether asking again later may help.
    pub fn retryable(self) -> bool {
        matches!(self, Self::Full)
    }
}

/// Single-use tickets. See [`TICKET_SECONDS`].
#[derive(Debug)]
pub struct Tickets(Vault);

impl Tickets {
    /// None issued yet.
    pub fn new(clock: SharedClock) -> Self {
        Self(Vault::new(clock, SignedDuration::from_secs(TICKET_SECONDS)))
    }

    /// A ticket for `principal`, safe in a URL.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn issue(&self, principal: Arc<Principal>) -> Result<String, IssueError> {
        Ok(self.0.put(principal)?.0)
    }

    /// Takes a ticket back: whom it was for, once; None where it is unknown, used, or too old.
    pub fn redeem(&self, ticket: &str) -> Option<Arc<Principal>> {
        self.0.take(ticket)
    }
}

/// A cookie to set.
#[derive(Clone, PartialEq, Eq)]
pub struct CookieSession {
    /// The cookie's value, safe without quoting.
    pub value: String,
    /// Its `Max-Age`, seconds.
    pub max_age_seconds: i64,
}

/// Sessions behind the SSE cookie. See [`SESSION_SECONDS`].
#[derive(Debug)]
pub struct CookieSessions(Vault);

impl CookieSessions {
    /// None open yet.
    pub fn new(clock: SharedClock) -> Self {
        Self(Vault::new(clock, SignedDuration::from_secs(SESSION_SECONDS)))
    }

    /// Opens a session, at most an hour and never past the token's expiry.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn create(&self, principal: Arc<Principal>) -> Result<CookieSession, IssueError> {
        let (value, lasts) = self.0.put(principal)?;
        Ok(CookieSession { value, max_age_seconds: lasts.as_secs() })
    }

    /// Whose session it is; None where it is unknown or over.
    pub fn lookup(&self, value: &str) -> Option<Arc<Principal>> {
        self.0.get(value)
    }
}

/// A bounded map from the hash of a secret to a principal, each entry with an end.
struct Vault {
    clock: SharedClock,
    lasts: SignedDuration,
    held: Mutex<HashMap<[u8; 32], Held>>,
}

/// For whom, and until when.
type Held = (Arc<Principal>, Timestamp);

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("held", &self.held.lock().len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for CookieSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CookieSession")
            .field("max_age_seconds", &self.max_age_seconds)
            .finish_non_exhaustive()
    }
}

impl Vault {
    fn new(clock: SharedClock, lasts: SignedDuration) -> Self {
        Self { clock, lasts, held: Mutex::default() }
    }

    fn put(&self, principal: Arc<Principal>) -> Result<(String, SignedDuration), IssueError> {
        let now = self.clock.now();
        let end = now.saturating_add(self.lasts).unwrap_or(Timestamp::MAX);
        let end = principal.expires_at.map_or(end, |expires| end.min(expires));
        if end <= now {
            return Err(IssueError::Expired);
        }
        let secret = random_text()?;
        let mut held = self.held.lock();
        if held.len() >= KEPT_MAX {
            held.retain(|_, (_, end)| *end > now);
        }
        if held.len() >= KEPT_MAX {
            return Err(IssueError::Full);
        }
        held.insert(key(&secret), (principal, end));
        Ok((secret, end.duration_since(now)))
    }

    fn take(&self, secret: &str) -> Option<Arc<Principal>> {
        let (principal, end) = self.held.lock().remove(&key(secret))?;
        (end > self.clock.now()).then_some(principal)
    }

    fn get(&self, secret: &str) -> Option<Arc<Principal>> {
        let held = self.held.lock();
        let (principal, end) = held.get(&key(secret))?;
        (*end > self.clock.now()).then(|| Arc::clone(principal))
    }
}

/// Looked up by hash, so that the time a lookup takes tells nothing about the secrets that are held.
fn key(secret: &str) -> [u8; 32] {
    super::sha256(secret.as_bytes())
}
