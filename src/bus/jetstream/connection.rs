//! The connection to NATS: one per process, kept up for as long as the process lives.
//!
//! async-nats reconnects by itself, at once and then after 2^n ms without jitter; a fleet of gateways would come back
//! in step, so the pause is our own. What was sent and not acknowledged is nobody's business here: every write to the
//! stream waits for its acknowledgement ([`append`](super::append), [`kv`](super::kv)).

mod login;
mod refusal;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, ClientError, ConnectErrorKind, ConnectOptions, Event, ServerError,
    connection::State,
    jetstream::{self, context::ContextBuilder},
};
use tokio::time::Instant;

use super::{Chance, Config, OpenError};

/// How long a start waits for a server.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// Longest pause between its attempts.
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest wait for an answer to a request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that answers no ping for two of these is taken for dead; the client's own default is a minute.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Pause before the second attempt to reconnect; doubles.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(4);
/// The first server with fenced atomic batches.
const VERSION_MIN: (u64, u64) = (2, 12);

/// 1 while connected; a gauge.
const CONNECTED: &str = "simcast_nats_connected";
/// Connections lost; a counter.
const DISCONNECTS: &str = "simcast_nats_disconnects_total";

/// Whether the last attempt to reconnect was refused for its login.
type Refused = Arc<AtomicBool>;

/// A connection that has been up once.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) context: jetstream::Context,
    /// Of the server that answered first.
    pub(super) server_version: String,
    refused: Refused,
    /// What to do about a login that is refused.
    login_cure: String,
}

impl Connection {
    /// Connects; waits for a server for half a minute, but not for one that refuses the login or fails in TLS: that
    /// does not pass by itself, and is to be told at once.
    ///
    /// # Errors
    /// [`OpenError`] says what is in the way.
    pub(super) async fn open(config: &Config) -> Result<Self, OpenError> {
        Self::open_within(config, CONNECT_PATIENCE).await
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) async fn open_within(config: &Config, patience: Duration) -> Result<Self, OpenError> {
        let refused = Refused::default();
        let deadline = Instant::now() + patience;
        let mut attempt = 1;
        let client = loop {
            let connecting = options(config, &refused).await?.connect(&config.urls[..]);
            let error = match connecting.await {
                Ok(client) => break client,
                Err(error) => refusal::of(config, &error).await,
            };
            if !matches!(error, OpenError::Unreachable { .. }) || Instant::now() >= deadline {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(reconnect_delay(attempt, &config.chance).min(CONNECT_PAUSE_MAX)).await;
        };
        let server_version = client.server_info().version;
        if !is_new_enough(&server_version) {
            return Err(OpenError::OldServer { version: server_version });
        }
        let context =
            ContextBuilder::new().timeout(REQUEST_TIMEOUT).ack_timeout(REQUEST_TIMEOUT).build(client.clone());
        Ok(Self { client, context, server_version, refused, login_cure: login::cure(config).await })
    }

    /// Why nothing can be asked of the servers; None while it can.
    pub(super) fn trouble(&self) -> Option<String> {
        match self.client.connection_state() {
            State::Connected => None,
            State::Pending | State::Disconnected if self.refused.load(Ordering::Relaxed) => {
                Some(format!("NATS refuses the login; {}", self.login_cure))
            }
            State::Pending | State::Disconnected => Some("no NATS server answers".to_owned()),
        }
    }
}

async fn options(config: &Config, refused: &Refused) -> Result<ConnectOptions, OpenError> {
    let mut options = login::options(config).await?;
    if let Some(ca) = &config.tls_ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = &config.tls_client {
        options = options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    metrics::gauge!(CONNECTED).set(0.0);
    let (refused, chance) = (Arc::clone(refused), config.chance.clone());
    Ok(options
        .name(concat!("simcast/", env!("CARGO_PKG_VERSION")))
        .ping_interval(PING_EVERY)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .reconnect_delay_callback(move |attempt| reconnect_delay(attempt, &chance))
        .event_callback(move |event| {
            note(&event, &refused);
            async {}
        }))
}

fn reconnect_delay(attempt: usize, chance: &Chance) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(16);
    let pause = RECONNECT_MIN.saturating_mul(1 << doublings).min(RECONNECT_MAX);
    chance.jittered(pause)
}

fn note(event: &Event, refused: &Refused) {
    match event {
        Event::Connected => {
            refused.store(false, Ordering::Relaxed);
            metrics::gauge!(CONNECTED).set(1.0);
            tracing::info!("connected to NATS");
        }
        Event::Disconnected => {
            metrics::gauge!(CONNECTED).set(0.0);
            metrics::counter!(DISCONNECTS).increment(1);
            tracing::warn!("the connection to NATS is lost; it is made again");
        }
        Event::ServerError(ServerError::AuthorizationViolation) => {
            refused.store(true, Ordering::Relaxed);
            tracing::warn!("NATS has ended the login; the connection is made again");
        }
        // Of an attempt to reconnect only its kind is told, as text.
        Event::ClientError(ClientError::Other(kind)) if is_login(kind) => {
            refused.store(true, Ordering::Relaxed);
            tracing::warn!(kind, "NATS refuses the login; it is tried again");
        }
        // One for each message that was dropped; the tail asks for no more than it has room for.
        Event::SlowConsumer(_) => {}
        event => tracing::warn!(%event, "NATS"),
    }
}

fn is_login(kind: &str) -> bool {
    [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication]
        .iter()
        .any(|login| login.to_string() == kind)
}

/// Whether a server has fenced atomic batches. A version that can't be read is of a build of somebody's own; what it
/// lacks shows when the stream is made.
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-']).map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= VERSION_MIN,
        _ => true,
    }
}

/// Addresses without what may be a password in them.
fn shown(urls: &[String]) -> String {
    let bare = |url: &String| url.rsplit_once('@').map_or(url.clone(), |(_, host)| host.to_owned());
    urls.iter().map(bare).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_without_atomic_batches_are_told_from_others() {
        for version in ["2.12.0", "2.12.8", "2.15.1", "v2.14.0", "2.12.0-RC.3", "3.0.0", "main"] {
            assert!(is_new_enough(version), "{version}");
        }
        for version in ["2.9.25", "2.10.27", "2.11.11", "1.4.1"] {
            assert!(!is_new_enough(version), "{version}");
            let said = OpenError::OldServer { version: version.to_owned() }.to_string();
            assert!(said.contains(version) && said.contains("2.12"), "{said}");
        }
    }

    #[test]
    fn reconnecting_starts_at_once_and_stays_within_bounds() {
        let chance = Chance::seeded(1);
        assert_eq!(reconnect_delay(1, &chance), Duration::ZERO);
        for attempt in 2..200 {
            let delay = reconnect_delay(attempt, &chance);
            assert!((RECONNECT_MIN / 2..=RECONNECT_MAX).contains(&delay), "{attempt}: {delay:?}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let urls = ["nats://me:pass@one:4222".to_owned(), "tls://two".to_owned()];
        assert_eq!(shown(&urls), "one:4222, tls://two");
    }
}
