//! Which key is sent, and how: state that all clones of a client share.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::globalsim::{
    error::Error,
    key::{AuthStyle, KeyError, KeySource, Secret, Style},
};

/// The other style is not tried again sooner, so that a revoked key costs one request at a time, yet an outage of
/// upstream's authentication at start can't pin the wrong style for ever.
const OTHER_STYLE_PAUSE: Duration = Duration::from_secs(60);

/// What one request is signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub secret: Secret,
    pub style: Style,
}

#[derive(Debug)]
pub(super) struct Auth {
    source: KeySource,
    configured: AuthStyle,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: Credentials,
    /// Upstream has accepted `current`.
    proven: bool,
    other_tried: Option<Instant>,
    /// Keys loaded, this one included.
    loaded: u64,
}

impl State {
    fn fresh(secret: Secret, configured: AuthStyle, loaded: u64) -> Self {
        let style = configured.first(&secret);
        Self { current: Credentials { secret, style }, proven: false, other_tried: None, loaded }
    }
}

impl Auth {
    pub fn new(source: KeySource, configured: AuthStyle) -> Result<Self, KeyError> {
        let state = Mutex::new(State::fresh(source.load()?, configured, 1));
        Ok(Self { source, configured, state })
    }

    pub fn current(&self) -> Credentials {
        self.state.lock().current.clone()
    }

    pub fn loaded(&self) -> u64 {
        self.state.lock().loaded
    }

    pub fn style_in_use(&self) -> Option<Style> {
        let state = self.state.lock();
        state.proven.then_some(state.current.style)
    }

    /// Whether a refusal with these may mean that the style is wrong (some frameworks answer 403 where the header
    /// that they look for is missing).
    pub fn in_doubt(&self, error: &Error) -> bool {
        match error {
            Error::Auth { .. } => true,
            Error::Forbidden { .. } => !self.state.lock().proven,
            _ => false,
        }
    }

    /// Upstream has accepted these: they are kept.
    pub fn accepted(&self, used: &Credentials) {
        let mut state = self.state.lock();
        if state.current.secret != used.secret {
            // The key was rotated while the request was on its way.
            return;
        }
        if !state.proven || state.current.style != used.style {
            tracing::info!(style = used.style.as_str(), "upstream accepts the API key");
        }
        state.current.style = used.style;
        state.proven = true;
        state.other_tried = None;
    }

    /// What to try after `used` was refused: what another request has found meanwhile, else a key that changed in
    /// its file, else the other style.
    pub fn after_refusal(&self, used: &Credentials) -> Option<Credentials> {
        let current = self.current();
        if current.secret != used.secret {
            return Some(current);
        }
        match self.reload() {
            Ok(true) => return Some(self.current()),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the API key was refused and can't be read again"),
        }
        let mut state = self.state.lock();
        if state.current != *used && state.proven {
            return Some(state.current.clone());
        }
        let rested = state.other_tried.is_none_or(|at| at.elapsed() >= OTHER_STYLE_PAUSE);
        if self.configured != AuthStyle::Auto || state.current != *used || !rested {
            return None;
        }
        state.other_tried = Some(Instant::now());
        Some(Credentials { secret: used.secret.clone(), style: used.style.other() })
    }

    /// Reads the key again; true if it changed. The old one stays where the new one can't be read.
    pub fn reload(&self) -> Result<bool, KeyError> {
        let secret = self.source.load()?;
        let mut state = self.state.lock();
        if state.current.secret == secret {
            return Ok(false);
        }
        tracing::info!("the API key was replaced");
        *state = State::fresh(secret, self.configured, state.loaded + 1);
        Ok(true)
    }
}
