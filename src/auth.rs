//! Who may see what: tokens, their roles, and the filter and field policy that every read is held to.
//!
//! Only the SHA-256 of a token is ever configured, and it is compared in constant time against all of them, so that
//! neither the file nor the clock gives a token away. With no token configured the gateway is *open*: everybody is
//! the same anonymous principal with all roles, which `config` allows only while every listener is on loopback.
//!
//! A browser's EventSource and WebSocket can't send headers, and a long-lived token must not stand in a URL: hence
//! [`Tickets`] (single use, 30 s) and the [`CookieSessions`] that a ticket is exchanged for on SSE.

pub mod pass;
pub mod token;

use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    clock::SharedClock,
    event::{FieldPolicy, Filter, Predicate},
};

pub use pass::{CookieSession, CookieSessions, IssueError, Tickets};
pub use token::{TOKEN_PREFIX, hash_token, new_token};

/// What a token may do. Roles do not imply each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Read events, SIMs, reports; subscribe.
    Read,
    /// Manage webhooks.
    Webhooks,
    /// See subscribers, erase SIMs.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Read, Self::Webhooks, Self::Admin];

    /// As spelled in the configuration and in errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Webhooks => "webhooks",
            Self::Admin => "admin",
        }
    }

    /// Reads `read`, `webhooks` or `admin`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// A set of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles {
    /// [`Role::Read`].
    pub read: bool,
    /// [`Role::Webhooks`].
    pub webhooks: bool,
    /// [`Role::Admin`].
    pub admin: bool,
}

impl Roles {
    /// Every role.
    pub const ALL: Self = Self { read: true, webhooks: true, admin: true };

    /// Whether `role` is in the set.
    pub fn contains(self, role: Role) -> bool {
        match role {
            Role::Read => self.read,
            Role::Webhooks => self.webhooks,
            Role::Admin => self.admin,
        }
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        let mut set = Self::default();
        for role in roles {
            match role {
                Role::Read => set.read = true,
                Role::Webhooks => set.webhooks = true,
                Role::Admin => set.admin = true,
            }
        }
        set
    }
}

/// One `[[auth.tokens]]` entry.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenConfig {
    /// Shown in logs and to admins instead of the token.
    pub name: String,
    /// SHA-256 of the token's text.
    pub sha256: [u8; 32],
    /// What it may do.
    pub roles: Roles,
    /// ANDed to every filter of its holder.
    pub filter: Option<Filter>,
    /// Which personal fields its holder sees.
    pub fields: Option<FieldPolicy>,
    /// When it stops working; streams that are open then are closed.
    pub expires: Option<Timestamp>,
}

/// The section `[auth]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// Tokens; none means open.
    pub tokens: Vec<TokenConfig>,
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq)]
pub struct Principal {
    /// Name of the token, `anonymous` in open mode.
    pub name: String,
    /// What it may do.
    pub roles: Roles,
    /// ANDed to every filter; None means everything.
    pub scope: Option<Filter>,
    /// How personal fields are shown; None means unchanged.
    pub policy: Option<Arc<FieldPolicy>>,
    /// When its token stops working; None means never.
    pub expires_at: Option<Timestamp>,
}

/// Why a request has no principal. All are 401 / UNAUTHENTICATED / close code 4401.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No token came with it.
    #[error("a token is needed: send it as \"Authorization: Bearer <token>\"")]
    Missing,
    /// Not one of the configured tokens.
    #[error("the token is not known to this gateway")]
    Unknown,
    /// Known, but past its expiry.
    #[error("the token has expired")]
    Expired,
}

/// The token lacks a role: 403 `forbidden`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token lacks the role {:?}", role.as_str())]
pub struct Forbidden {
    /// The role that was needed.
    pub role: Role,
}

/// The filter looks at a field that the token may not see: 403 `forbidden_field`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token may not see {field}, so it can't filter on it")]
pub struct ForbiddenField {
    /// The field, as in the filter.
    pub field: &'static str,
}

impl Principal {
    /// Everybody, in open mode.
    pub fn anonymous() -> Self {
        Self { name: "anonymous".into(), roles: Roles::ALL, scope: None, policy: None, expires_at: None }
    }

    /// Whether it may act in `role`.
    ///
    /// # Errors
    /// [`Forbidden`] names the role that is missing.
    pub fn require(&self, role: Role) -> Result<(), Forbidden> {
        if self.roles.contains(role) { Ok(()) } else { Err(Forbidden { role }) }
    }

    /// Whether its token has stopped working at `now`.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The one way from a reader's filter to what is evaluated: ANDed with the token's own.
    ///
    /// # Errors
    /// [`ForbiddenField`] where the filter would reveal what the policy hides.
    pub fn predicate(&self, filter: Filter) -> Result<Predicate, ForbiddenField> {
        if let Some(field) = self.policy.as_ref().and_then(|policy| policy.forbidden_field(&filter)) {
            return Err(ForbiddenField { field });
        }
        Ok(Predicate::new(filter, self.scope.clone()))
    }
}

/// Finds the principal of a token. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Auth {
    tokens: Vec<([u8; 32], Arc<Principal>)>,
    anonymous: Arc<Principal>,
    clock: SharedClock,
}

impl Auth {
    /// Takes the configured tokens.
    pub fn new(config: Config, clock: SharedClock) -> Self {
        let tokens = config.tokens.into_iter().map(|token| {
            let principal = Principal {
                name: token.name,
                roles: token.roles,
                scope: token.filter.filter(|filter| !filter.is_empty()),
                policy: token.fields.filter(|policy| !policy.keeps_all()).map(Arc::new),
                expires_at: token.expires,
            };
            (token.sha256, Arc::new(principal))
        });
        Self { tokens: tokens.collect(), anonymous: Arc::new(Principal::anonymous()), clock }
    }

    /// Whether nobody needs a token.
    pub fn open(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The principal of a token's name, for what its holder has left behind: None once the token is gone or expired.
    /// What was made while nobody needed a token stays with whoever runs the gateway.
    pub fn named(&self, name: &str) -> Option<Arc<Principal>> {
        if name == self.anonymous.name {
            return Some(Arc::clone(&self.anonymous));
        }
        let found =
            self.tokens.iter().map(|(_, principal)| principal).find(|principal| principal.name == name)?;
        (!found.expired(self.clock.now())).then(|| Arc::clone(found))
    }

    /// The principal of a token's text (without `Bearer `). In open mode everybody is anonymous, token or not.
    ///
    /// # Errors
    /// [`AuthError`]; its text is for the client and tells nothing about other tokens.
    pub fn authenticate(&self, bearer: Option<&str>) -> Result<Arc<Principal>, AuthError> {
        if self.open() {
            return Ok(Arc::clone(&self.anonymous));
        }
        let hash = hash_token(bearer.ok_or(AuthError::Missing)?);
        let mut found = None;
        for (known, principal) in &self.tokens {
            // All are compared: the time taken must not tell which one came close, or whether one did.
            if bool::from(known.ct_eq(&hash)) {
                found = Some(principal);
            }
        }
        let principal = found.ok_or(AuthError::Unknown)?;
        if principal.expired(self.clock.now()) {
            return Err(AuthError::Expired);
        }
        Ok(Arc::clone(principal))
    }
}

/// The token in the value of an `Authorization` header; the scheme's case does not count (RFC 9110 section 11.1).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests;
