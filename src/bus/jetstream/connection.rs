//! The connection to NATS: one per process, kept up for as long as the process lives.
//!
//! async-nats reconnects by itself, at once and then after 2^n ms without jitter; a fleet of gateways would come back
//! in step, so the pause is our own. What was sent and not acknowledged is nobody's business here: every write to the
//! stream waits for its acknowledgement ([`append`](super::append), [`kv`](super::kv)). Credentials are read anew for
//! each connection, so that rotating them needs no restart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Auth, AuthError, Client, ConnectOptions, Event,
    connection::State,
    jetstream::{self, context::ContextBuilder},
};
use tokio::time::Instant;

use super::{Config, OpenError};

/// How long a start waits for a server.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks meanwhile.
const CONNECT_LOOK: Duration = Duration::from_millis(20);
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

/// A connection that has been up once.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) context: jetstream::Context,
    /// Of the server that answered first.
    pub(super) server_version: String,
}

impl Connection {
    /// Connects; waits for a server for half a minute.
    ///
    /// # Errors
    /// [`OpenError`] says what is in the way.
    pub(super) async fn open(config: &Config) -> Result<Self, OpenError> {
        let options = options(config).await?;
        let client = options.connect(&config.urls[..]).await.map_err(|error| OpenError::Unreachable {
            urls: shown(&config.urls),
            reason: error.to_string(),
        })?;
        let deadline = Instant::now() + CONNECT_PATIENCE;
        while client.connection_state() != State::Connected {
            if Instant::now() >= deadline {
                return Err(OpenError::Unreachable {
                    urls: shown(&config.urls),
                    reason: format!("no server answered within {} s", CONNECT_PATIENCE.as_secs()),
                });
            }
            tokio::time::sleep(CONNECT_LOOK).await;
        }
        let server_version = client.server_info().version;
        if !is_new_enough(&server_version) {
            return Err(OpenError::OldServer { version: server_version });
        }
        let context =
            ContextBuilder::new().timeout(REQUEST_TIMEOUT).ack_timeout(REQUEST_TIMEOUT).build(client.clone());
        Ok(Self { client, context, server_version })
    }

    /// Why nothing can be asked of the servers; None while it can.
    pub(super) fn trouble(&self) -> Option<String> {
        match self.client.connection_state() {
            State::Connected => None,
            State::Pending | State::Disconnected => Some("no NATS server answers".to_owned()),
        }
    }
}

async fn options(config: &Config) -> Result<ConnectOptions, OpenError> {
    let mut options = match (&config.credentials_file, &config.nkey_file) {
        (Some(path), _) => {
            // A file that can't be read now would fail in the background, again and again.
            credentials(path).await?;
            with_keys(path.clone(), |path, nonce| async move {
                let (jwt, pair) = credentials(&path).await.map_err(AuthError::new)?;
                let mut auth = Auth::new();
                auth.jwt = Some(jwt);
                auth.signature = Some(pair.sign(&nonce).map_err(AuthError::new)?);
                Ok(auth)
            })
        }
        (None, Some(path)) => {
            nkey(path).await?;
            with_keys(path.clone(), |path, nonce| async move {
                let pair = nkey(&path).await.map_err(AuthError::new)?;
                let mut auth = Auth::new();
                auth.nkey = Some(pair.public_key());
                auth.signature = Some(pair.sign(&nonce).map_err(AuthError::new)?);
                Ok(auth)
            })
        }
        // The client itself does not look for them in an address (0.51, `connector.rs`).
        (None, None) => match config.urls.iter().find_map(|url| login(url)) {
            Some((user, password)) => ConnectOptions::with_user_and_password(user, password),
            None => ConnectOptions::new(),
        },
    };
    if let Some(ca) = &config.tls_ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = &config.tls_client {
        options = options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    metrics::gauge!(CONNECTED).set(0.0);
    Ok(options
        .name(concat!("simcast/", env!("CARGO_PKG_VERSION")))
        .retry_on_initial_connect()
        .ping_interval(PING_EVERY)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(|event| async move { note(&event) }))
}

/// User and password of an address.
fn login(url: &str) -> Option<(String, String)> {
    let (_, rest) = url.split_once("://")?;
    let (login, _) = rest.rsplit_once('@')?;
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((plain(user), plain(password)))
}

fn with_keys<F, Fut>(path: PathBuf, answer: F) -> ConnectOptions
where
    F: Fn(Arc<Path>, Vec<u8>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Auth, AuthError>> + Send + Sync + 'static,
{
    let path: Arc<Path> = path.into();
    ConnectOptions::with_auth_callback(move |nonce| answer(Arc::clone(&path), nonce))
}

/// JWT and key of a credentials file. Reads the disk in place: callbacks of async-nats must be `Sync`, which tokio's
/// file operations are not, and the file has a few lines.
async fn credentials(path: &Path) -> Result<(String, nkeys::KeyPair), OpenError> {
    let unusable = |reason: String| OpenError::Key { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let block = |name: &str| {
        let (_, rest) = text.split_once(&format!("BEGIN {name}"))?;
        rest.lines().skip(1).map(str::trim).find(|line| !line.is_empty() && !line.starts_with('-'))
    };
    let jwt = block("NATS USER JWT").ok_or_else(|| unusable("it holds no user JWT".to_owned()))?;
    let seed = block("USER NKEY SEED").ok_or_else(|| unusable("it holds no nkey seed".to_owned()))?;
    let pair = nkeys::KeyPair::from_seed(seed).map_err(|error| unusable(error.to_string()))?;
    Ok((jwt.to_owned(), pair))
}

/// Key of a file whose first line that is no comment is a seed.
async fn nkey(path: &Path) -> Result<nkeys::KeyPair, OpenError> {
    let unusable = |reason: String| OpenError::Key { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let seed = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with(['#', '-']));
    let seed = seed.ok_or_else(|| unusable("it holds no nkey seed".to_owned()))?;
    nkeys::KeyPair::from_seed(seed).map_err(|error| unusable(error.to_string()))
}

fn reconnect_delay(attempt: usize) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(16);
    let pause = RECONNECT_MIN.saturating_mul(1 << doublings).min(RECONNECT_MAX);
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn note(event: &Event) {
    match event {
        Event::Connected => {
            metrics::gauge!(CONNECTED).set(1.0);
            tracing::info!("connected to NATS");
        }
        Event::Disconnected => {
            metrics::gauge!(CONNECTED).set(0.0);
            metrics::counter!(DISCONNECTS).increment(1);
            tracing::warn!("the connection to NATS is lost; it is made again");
        }
        // One for each message that was dropped; the tail asks for no more than it has room for.
        Event::SlowConsumer(_) => {}
        event => tracing::warn!(%event, "NATS"),
    }
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
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        for attempt in 2..200 {
            let delay = reconnect_delay(attempt);
            assert!((RECONNECT_MIN / 2..=RECONNECT_MAX).contains(&delay), "{attempt}: {delay:?}");
        }
    }

    #[test]
    fn logins_are_found_in_addresses() {
        let found = |url| login(url);
        assert_eq!(found("nats://me:p%40ss@one:4222"), Some(("me".to_owned(), "p@ss".to_owned())));
        assert_eq!(found("tls://me@one"), Some(("me".to_owned(), String::new())));
        assert_eq!(found("nats://one:4222"), None);
    }

    #[test]
    fn passwords_are_not_shown() {
        let urls = ["nats://me:pass@one:4222".to_owned(), "tls://two".to_owned()];
        assert_eq!(shown(&urls), "one:4222, tls://two");
    }
}
