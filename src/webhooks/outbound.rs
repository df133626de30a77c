//! The one way out to receivers: pooled HTTP/1.1 and HTTP/2, checked addresses, deadlines, and nothing followed.
//!
//! A connection is made by [`connector`] to an address that the [`Guard`] has checked at that moment, and goes there
//! for as long as it lives. Redirects are answers like others; compressed bodies stay compressed; of an answer at most
//! [`READ_MAX`] are read, and what arrives too slowly is left: the head of an answer decides, and a body that hangs,
//! drips or never ends only costs its connection.
//!
//! A request that fails on a pooled connection without any answer is sent once more on a new one: a receiver that
//! closes an idle connection at that moment is no fault. It may thus see a request twice, as after any failure.
//!
//! A connection on which an answer did not come in time carries no further request. Of HTTP/1.1 that is so anyhow; an
//! HTTP/2 connection whose other end has vanished would otherwise stay in the pool and swallow each one that follows.

mod answer;
mod connector;

use std::{
    error::Error as StdError,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{
        Client, Error,
        connect::{CaptureConnection, capture_connection},
    },
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::time::{Instant, timeout_at};

pub use self::answer::{Answer, Control, RetryAfter};

use self::connector::{ConnectError, Connector};
use super::guard::{CheckedUrl, Guard};

/// Bytes of an answer that are read, and those that are kept.
pub const READ_MAX: usize = 16 * 1024;
/// See [`READ_MAX`].
pub const KEPT_MAX: usize = 4 * 1024;
/// A body may take this much longer than its head did not.
const BODY_GRACE: Duration = Duration::from_millis(500);
/// Connections are made anew after this, so that a name which leads elsewhere is followed.
const CLIENT_AGE_MAX: Duration = Duration::from_secs(300);
/// Headers of an answer, at most.
const ANSWER_HEADERS_MAX: usize = 64;

/// How receivers are reached.
#[derive(Debug, Clone)]
pub struct Config {
    /// Decides where to.
    pub guard: Guard,
    /// An egress proxy that speaks CONNECT. It then looks names up, and has to keep them from leading inside; addresses
    /// in URLs are still checked here.
    pub proxy: Option<Proxy>,
    /// How long a connection may take, with its lookup and its handshake.
    pub connect_timeout: Duration,
    /// Certificate authorities beside the system's.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Idle connections that are kept to one receiver.
    pub idle_per_host: usize,
    /// How long they are kept.
    pub idle: Duration,
}

impl Config {
    /// The defaults.
    pub fn new(guard: Guard) -> Self {
        Self {
            guard,
            proxy: None,
            connect_timeout: Duration::from_secs(5),
            extra_roots: Vec::new(),
            idle_per_host: 64,
            idle: Duration::from_secs(60),
        }
    }
}

/// An egress proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Host and port.
    pub address: String,
    /// Value of `Proxy-Authorization`.
    pub authorization: Option<HeaderValue>,
}

impl Proxy {
    /// Reads `http://[user:password@]host:port`.
    ///
    /// # Errors
    /// A sentence that does not repeat the text, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = url::Url::parse(text).map_err(|error| format!("it is no URL: {error}"))?;
        if url.scheme() != "http" || !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err("it is no http:// URL of host and port alone".to_owned());
        }
        let host = url.host_str().ok_or("it names no host")?;
        let address = format!("{host}:{}", url.port_or_known_default().unwrap_or(80));
        let authorization = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let decoded =
                    |text| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
                let login = format!("{}:{}", decoded(user), decoded(password.unwrap_or_default()));
                let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
                Some(HeaderValue::from_str(&value).map_err(|_| "its login can't be sent".to_owned())?)
            }
        };
        Ok(Self { address, authorization })
    }
}

/// Reads certificates in PEM.
///
/// # Errors
/// A sentence.
pub fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let roots: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(roots) }
}

impl std::fmt::Debug for Proxy {
    /// Without the login.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

/// One request and what came of it.
#[derive(Debug)]
pub struct Exchange {
    /// The answer, or why there is none.
    pub result: Result<Answer, Failure>,
    /// Who answered, or would have.
    pub remote: Option<SocketAddr>,
    /// What took how long.
    pub timings: Timings,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// For the operator; holds no secret.
    pub message: String,
}

/// Kinds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The guard lets nobody connect there.
    Refused,
    /// The name can't be looked up.
    Dns,
    /// Nobody listens there, or nobody is there.
    Connect,
    /// Its certificate, or the handshake.
    Tls,
    /// The egress proxy, not the receiver.
    Proxy,
    /// The connection was not there in time.
    ConnectTimeout,
    /// The answer did not begin in time.
    HeaderTimeout,
    /// The connection ended before an answer.
    Reset,
    /// What came was no HTTP.
    Protocol,
}

impl FailureKind {
    /// As spelled everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Proxy => "proxy",
            Self::ConnectTimeout => "connect_timeout",
            Self::HeaderTimeout => "timeout",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
        }
    }
}

/// What took how long; None for the parts of a connection that was there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Looking the name up.
    pub dns: Option<Duration>,
    /// Connecting.
    pub connect: Option<Duration>,
    /// The TLS handshake.
    pub tls: Option<Duration>,
    /// From the start to the head of the answer.
    pub first_byte: Option<Duration>,
    /// All of it.
    pub total: Duration,
}

/// What is known of a connection.
#[derive(Debug, Clone)]
struct Made {
    remote: SocketAddr,
    dns: Duration,
    connect: Duration,
    tls: Option<Duration>,
    used: Arc<AtomicBool>,
}

type Pool = Client<Connector, Full<Bytes>>;

/// See the head of this file; cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbound(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    connector: Connector,
    pool: Mutex<(Pool, Instant)>,
    /// Answers in place of receivers, for tests whose clock is paused: sockets know no paused clock.
    #[cfg(test)]
    script: Option<Script>,
}

/// Answers a request: its headers and body.
#[cfg(test)]
#[derive(Clone)]
pub(crate) struct Script(pub(crate) Arc<Answering>);

/// Headers and body give a status.
#[cfg(test)]
pub(crate) type Answering = dyn Fn(&HeaderMap, &Bytes) -> u16 + Send + Sync;

#[cfg(test)]
impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Outbound {
    /// Makes the client.
    ///
    /// # Errors
    /// Where the system's certificates can't be used.
    pub fn new(config: Config) -> Result<Self, rustls::Error> {
        let connector = Connector::new(&config)?;
        let pool = Mutex::new((build(&config, &connector), Instant::now()));
        Ok(Self(Arc::new(Inner {
            config,
            connector,
            pool,
            #[cfg(test)]
            script: None,
        })))
    }

    /// A client whose receivers are a function.
    #[cfg(test)]
    pub(crate) fn scripted(config: Config, script: Script) -> Self {
        let connector = Connector::new(&config).unwrap();
        let pool = Mutex::new((build(&config, &connector), Instant::now()));
        Self(Arc::new(Inner { config, connector, pool, script: Some(script) }))
    }

    fn pool(&self) -> Pool {
        let mut pool = self.0.pool.lock();
        if pool.1.elapsed() >= CLIENT_AGE_MAX {
            *pool = (build(&self.0.config, &self.0.connector), Instant::now());
        }
        pool.0.clone()
    }

    /// One POST; the head of an answer must be there within `timeout`.
    pub async fn post(
        &self,
        url: &CheckedUrl,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Exchange {
        let started = Instant::now();
        #[cfg(test)]
        if let Some(Script(script)) = &self.0.script {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let answer = Answer {
                status: script(&headers, &body),
                retry_after: None,
                control: None,
                body: Bytes::new(),
                truncated: false,
            };
            let timings = Timings { total: started.elapsed(), ..Timings::default() };
            return Exchange { result: Ok(answer), remote: None, timings };
        }
        let deadline = started + timeout;
        let mut again = true;
        loop {
            let pool = self.pool();
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = url.uri().clone();
            *request.headers_mut() = headers.clone();
            let connection = capture_connection(&mut request);
            let answered = match timeout_at(deadline, pool.request(request)).await {
                Ok(answered) => answered,
                Err(_) => return silent(&connection, timeout, started),
            };
            match answered {
                Ok(response) => return answer::read(response, started, deadline + BODY_GRACE).await,
                Err(error) => {
                    let made = Use::of(made_of(&connection));
                    if made.as_ref().is_some_and(|made| !made.is_new) && std::mem::take(&mut again) {
                        continue;
                    }
                    return failed(classify(&error), made, started);
                }
            }
        }
    }
}

/// Nothing has come in time: the connection, or the answer on it.
fn silent(connection: &CaptureConnection, timeout: Duration, started: Instant) -> Exchange {
    let within = timeout.as_millis();
    let Some(made) = Use::of(made_of(connection)) else {
        let message = format!("no connection within {within} ms");
        return failed(Failure { kind: FailureKind::ConnectTimeout, message }, None, started);
    };
    if let Some(connected) = connection.connection_metadata().as_ref() {
        connected.poison();
    }
    let message = format!("no answer within {within} ms");
    failed(Failure { kind: FailureKind::HeaderTimeout, message }, Some(made), started)
}

/// A connection, as one request has it.
struct Use {
    made: Made,
    /// Made for this request, or at least used by none before it.
    is_new: bool,
}

impl Use {
    fn of(made: Option<Made>) -> Option<Self> {
        made.map(|made| Self { is_new: !made.used.swap(true, Ordering::Relaxed), made })
    }

    fn timings(made: Option<&Self>, first_byte: Option<Duration>, started: Instant) -> Timings {
        let new = made.filter(|made| made.is_new).map(|made| &made.made);
        Timings {
            dns: new.map(|made| made.dns),
            connect: new.map(|made| made.connect),
            tls: new.and_then(|made| made.tls),
            first_byte,
            total: started.elapsed(),
        }
    }
}

fn build(config: &Config, connector: &Connector) -> Pool {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(config.idle)
        .pool_max_idle_per_host(config.idle_per_host)
        .http1_max_headers(ANSWER_HEADERS_MAX)
        .http2_max_header_list_size(READ_MAX as u32)
        .build(connector.clone())
}

fn failed(failure: Failure, made: Option<Use>, started: Instant) -> Exchange {
    Exchange {
        result: Err(failure),
        remote: made.as_ref().map(|made| made.made.remote),
        timings: Use::timings(made.as_ref(), None, started),
    }
}

fn made_of(connection: &CaptureConnection) -> Option<Made> {
    let mut extensions = http::Extensions::new();
    connection.connection_metadata().as_ref()?.get_extras(&mut extensions);
    extensions.remove()
}

fn classify(error: &Error) -> Failure {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    let mut message = error.to_string();
    let mut kind = if error.is_connect() { FailureKind::Connect } else { FailureKind::Reset };
    while let Some(one) = source {
        if let Some(connect) = one.downcast_ref::<ConnectError>() {
            return Failure { kind: connect.kind, message: connect.message.clone() };
        }
        if let Some(protocol) = one.downcast_ref::<hyper::Error>()
            && (protocol.is_parse() || protocol.is_parse_status() || protocol.is_parse_too_large())
        {
            kind = FailureKind::Protocol;
        }
        message = one.to_string();
        source = one.source();
    }
    Failure { kind, message }
}

#[cfg(test)]
mod tests;
