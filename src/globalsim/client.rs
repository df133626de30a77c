//! One request, one whole answer.
//!
//! The client never retries on its own but for authentication: when to ask again is the caller's plan, and each
//! request costs a slot. What it gives is a complete page or a typed [`Error`].

mod answer;
mod auth;
mod exchange;
#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;
mod transport;

use std::{sync::Arc, time::Duration};

use jiff::civil::Date;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Url, redirect};

use self::{
    auth::Auth,
    exchange::{Answer, Exchange},
    transport::Transport,
};
use super::{
    budget::{Class, Gate},
    error::Error,
    key::{AuthStyle, KeySource, Style},
    wire::{BadRow, DeviceSim, Page, Row, SessionPage, answer::Listing},
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

/// Everything but RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The client. Clones share the connection, the key and the gate.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<Config>,
    base: Arc<str>,
    exchange: Arc<Exchange>,
}

impl Client {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Key`] or [`Error::Config`].
    pub fn new(config: Config, gate: Gate, clock: SharedClock) -> Result<Self, Error> {
        let base = checked_base(&config.base_url)?;
        let auth = Auth::new(config.key.clone(), config.auth)?;
        let transport = Transport::Http(http_client(&config, &base)?);
        let base = Arc::from(base.as_str().trim_end_matches('/'));
        let exchange = Arc::new(Exchange { transport, gate, clock, auth });
        Ok(Self { config: Arc::new(config), base, exchange })
    }

    /// A client of a simulator in the same runtime, without sockets: where tokio's clock is paused, it moves on when
    /// nobody has anything to do, and not while the kernel carries bytes.
    ///
    /// # Errors
    /// [`Error::Key`] or [`Error::Config`].
    #[cfg(test)]
    pub(crate) fn in_memory(
        config: Config,
        dialer: super::simulator::Dialer,
        gate: Gate,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        let base = Arc::from(checked_base(&config.base_url)?.as_str().trim_end_matches('/'));
        let auth = Auth::new(config.key.clone(), config.auth)?;
        let exchange = Arc::new(Exchange { transport: Transport::Memory(dialer), gate, clock, auth });
        Ok(Self { config: Arc::new(config), base, exchange })
    }

    /// Name of this upstream, as configured.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// `GET /sims/activity`: all SIMs.
    ///
    /// # Errors
    /// See [`Error`]; never a part of a page.
    pub async fn activity(&self, class: Class, q: &ActivityQuery) -> Result<Page<Row>, Error> {
        let mut query = paging(q.limit, q.offset);
        push(&mut query, "event_type", q.event_type.as_deref());
        push(&mut query, "iccid", q.iccid.as_ref().map(Iccid::as_str));
        push(&mut query, "device_id", q.device_id.as_deref());
        push_dates(&mut query, q.start_date, q.end_date);
        let answer = self.get(class, &["sims", "activity"], &query).await?;
        rows(answer, None, false)
    }

    /// `GET /sims/{iccid}/activity`: one SIM, with details.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sim_activity(&self, class: Class, iccid: &Iccid, q: &PageQuery) -> Result<Page<Row>, Error> {
        let query = activity_query(q);
        let answer = self.get(class, &["sims", iccid.as_str(), "activity"], &query).await?;
        rows(answer, Some(iccid), true)
    }

    /// `GET /sims/{iccid}/sessions`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sim_sessions(
        &self,
        class: Class,
        iccid: &Iccid,
        q: &SessionQuery,
    ) -> Result<SessionPage, Error> {
        let query = session_query(q);
        let answer = self.get(class, &["sims", iccid.as_str(), "sessions"], &query).await?;
        sessions(answer, Some(iccid))
    }

    /// `GET /devices/{device_id}/sim`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn device_sim(&self, class: Class, device_id: &str) -> Result<DeviceSim, Error> {
        let mut answer = self.get(class, &["devices", device_id, "sim"], &[]).await?;
        let body = answer.body.take();
        DeviceSim::read(body, answer.answered_at).map_err(|reason| answer.wrong_shape(&reason))
    }

    /// `GET /devices/{device_id}/sim/sessions`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn device_sessions(
        &self,
        class: Class,
        device_id: &str,
        q: &SessionQuery,
    ) -> Result<SessionPage, Error> {
        let query = session_query(q);
        let answer = self.get(class, &["devices", device_id, "sim", "sessions"], &query).await?;
        sessions(answer, None)
    }

    /// `GET /devices/{device_id}/sim/activity`: the SIM that is in the device now, with details.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn device_activity(
        &self,
        class: Class,
        device_id: &str,
        q: &PageQuery,
    ) -> Result<Page<Row>, Error> {
        let query = activity_query(q);
        let answer = self.get(class, &["devices", device_id, "sim", "activity"], &query).await?;
        rows(answer, None, true)
    }

    /// Reads the key again, as on SIGHUP; true if it changed.
    ///
    /// # Errors
    /// [`Error::Key`]; the old key stays in use.
    pub fn reload_key(&self) -> Result<bool, Error> {
        Ok(self.exchange.auth.reload()?)
    }

    /// How many different keys were loaded so far: grows with each replacement.
    pub fn keys_loaded(&self) -> u64 {
        self.exchange.auth.loaded()
    }

    /// The header style that upstream accepts; None before the first accepted request.
    pub fn auth_style_in_use(&self) -> Option<Style> {
        self.exchange.auth.style_in_use()
    }

    /// The gate that this client's requests pass.
    pub fn gate(&self) -> &Gate {
        &self.exchange.gate
    }

    /// The same client, giving up with [`Error::BudgetExhausted`] after `wait` where the budget has no room.
    pub fn with_slot_wait(&self, wait: Duration) -> Self {
        let config = Arc::new(Config { slot_wait: Some(wait), ..(*self.config).clone() });
        Self { config, ..self.clone() }
    }

    async fn get(&self, class: Class, path: &[&str], query: &[(&str, String)]) -> Result<Answer, Error> {
        let url = url(&self.base, path, query)?;
        self.exchange.get(&self.config, class, url).await
    }
}

fn checked_base(text: &str) -> Result<Url, Error> {
    let wrong = |why: &str| Error::Config(format!("base_url {why}"));
    // The text itself is not repeated: it may hold a password.
    let base = Url::parse(text.trim()).map_err(|error| wrong(&format!("is no URL: {error}")))?;
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
        return Err(wrong("must be http:// or https:// and a host"));
    }
    if !base.username().is_empty() || base.password().is_some() {
        return Err(wrong("must not hold a user or password; the key goes into api_key or api_key_file"));
    }
    if base.query().is_some() || base.fragment().is_some() {
        return Err(wrong("must not have a query or a fragment"));
    }
    Ok(base)
}

fn http_client(config: &Config, base: &Url) -> Result<reqwest::Client, Error> {
    // An error means that a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("simcast/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .connect_timeout(config.connect_timeout)
        .timeout(config.total_timeout)
        .tcp_nodelay(true);
    if base.scheme() == "http" {
        // Without TLS there is nothing to verify, and an image without CA certificates must still do.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| Error::Config(error.without_url().to_string()))
}

/// Every segment is percent-encoded, so a device id is always one segment, whatever it holds.
fn url(base: &str, path: &[&str], query: &[(&str, String)]) -> Result<Url, Error> {
    let unaddressable =
        |said: &str| Error::Invalid { status: 0, said: format!("not sent: {said} can't be part of a URL") };
    let mut text = base.to_owned();
    for segment in path {
        // URL rules resolve these before sending, even when they are encoded.
        if matches!(*segment, "" | "." | "..") {
            return Err(unaddressable(&format!("the id {segment:?}")));
        }
        text.push('/');
        text.extend(utf8_percent_encode(segment, SEGMENT));
    }
    let mut url = Url::parse(&text).map_err(|_| unaddressable("the id"))?;
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    Ok(url)
}

fn paging(limit: u32, offset: u64) -> Vec<(&'static str, String)> {
    vec![("limit", limit.clamp(1, LIMIT_MAX).to_string()), ("offset", offset.to_string())]
}

fn push(query: &mut Vec<(&'static str, String)>, name: &'static str, value: Option<&str>) {
    query.extend(value.map(|value| (name, value.to_owned())));
}

fn push_dates(query: &mut Vec<(&'static str, String)>, start: Option<Date>, end: Option<Date>) {
    query.extend(start.map(|day| ("start_date", day.to_string())));
    query.extend(end.map(|day| ("end_date", day.to_string())));
}

fn activity_query(q: &PageQuery) -> Vec<(&'static str, String)> {
    let mut query = paging(q.limit, q.offset);
    push(&mut query, "event_type", q.event_type.as_deref());
    query
}

fn session_query(q: &SessionQuery) -> Vec<(&'static str, String)> {
    let mut query = paging(q.limit, q.offset);
    push_dates(&mut query, q.start_date, q.end_date);
    query
}

fn rows(mut answer: Answer, asked: Option<&Iccid>, own_list: bool) -> Result<Page<Row>, Error> {
    let body = answer.body.take();
    let mut listing = Listing::open(body, "activity").map_err(|reason| answer.wrong_shape(&reason))?;
    let rows = listing.activity(asked, own_list).map_err(|reason| answer.wrong_shape(&reason))?;
    Ok(page(rows, &listing, &answer))
}

fn sessions(mut answer: Answer, asked: Option<&Iccid>) -> Result<SessionPage, Error> {
    let body = answer.body.take();
    let mut listing = Listing::open(body, "sessions").map_err(|reason| answer.wrong_shape(&reason))?;
    let rows = listing.sessions(asked).map_err(|reason| answer.wrong_shape(&reason))?;
    let (iccid, summary) = (listing.iccid(), listing.summary.take());
    Ok(SessionPage { page: page(rows, &listing, &answer), iccid, summary })
}

fn page<T>(rows: Vec<Result<T, BadRow>>, listing: &Listing, answer: &Answer) -> Page<T> {
    Page {
        rows,
        total: listing.total,
        limit: listing.limit,
        offset: listing.offset,
        server_date: answer.server_date,
        asked_at: answer.asked_at,
        answered_at: answer.answered_at,
    }
}
