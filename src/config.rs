//! Every key, every default, and every mistake at once.
//!
//! One table, [`schema::KEYS`], says what can be configured; from it come the defaults, the commented default file,
//! the names of the environment variables, the type errors and the suggestions for mistyped keys. A [`Config`] is
//! made only when nothing is wrong; otherwise [`Mistakes`] lists all that is, each with its key, its place, and what
//! to do. Sources, later ones win: defaults, the TOML file, `SIMCAST__SECTION__KEY`, flags.
//!
//! Nobody but `app` and `cli` reads this module: each part is handed its own section.

mod build;
mod print;
mod rules;
pub mod schema;
mod sims;
mod source;
mod tokens;
mod value;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    auth,
    event::Iccid,
    globalsim::{AuthStyle, KeySource},
    observability::LogConfig,
};

pub use build::load;
pub use print::default_file;
pub use source::{Origin, Sources};
pub use value::is_name;

/// Everything that was configured, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[upstream]`
    pub upstream: Upstream,
    /// `[ingest]`
    pub ingest: Ingest,
    /// `bus.kind`
    pub bus: BusKind,
    /// `[bus.embedded]`
    pub embedded: Embedded,
    /// `[bus.nats]`
    pub nats: Nats,
    /// `[http]`
    pub http: Http,
    /// `[grpc]`
    pub grpc: Grpc,
    /// `[admin]`
    pub admin: Admin,
    /// `[auth]`
    pub auth: auth::Config,
    /// `[webhooks]`
    pub webhooks: Webhooks,
    /// `[sims]`
    pub sims: Sims,
    /// `[limits]`
    pub limits: Limits,
    /// `[log]`
    pub log: LogConfig,
    /// Legal, but worth a second look; to be logged at start.
    pub warnings: Vec<String>,
    /// What holds for each key and where it comes from, secrets blotted out; for `check`.
    pub effective: Vec<Effective>,
}

/// One key as it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Path of the key.
    pub key: String,
    /// Its value as TOML, `***` for a secret, None where it is unset.
    pub value: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// `[upstream]`: the GlobalSIM API.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Last part of every event's `source`.
    pub name: String,
    /// Without a slash at its end.
    pub base_url: String,
    /// The key, or the file that holds it; readable when the configuration was checked.
    pub api_key: KeySource,
    /// How the key is sent.
    pub auth: AuthStyle,
    /// Requests that the gateway allows itself in any 60 s.
    pub requests_per_minute: u32,
    /// Requests that upstream allows.
    pub limit_per_minute: u32,
    /// Days before the first start that are read.
    pub backfill_days: u32,
    /// Whether appends wait for details.
    pub details: Details,
    /// At most this long.
    pub details_wait: Duration,
    /// Whether the sessions of SIMs and the SIMs of devices are read.
    pub sessions: bool,
}

/// What is done about rows that lack details (design section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Details {
    /// Append waits a little for them.
    Wait,
    /// Append never waits; a completed copy follows.
    Follow,
    /// Never asked for.
    Off,
}

/// `[ingest]`: the poller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingest {
    /// Events observed later than this after their time are flagged `late`.
    pub late_after: Duration,
    /// How late an event may become visible upstream and still be found by sweeps.
    pub lateness: Duration,
}

/// `[bus.embedded]`: the log in files of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// Directory, made when missing.
    pub path: PathBuf,
    /// Days that events are kept.
    pub retention_days: u32,
    /// Bytes that events may take.
    pub retention_bytes: u64,
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Confidential(String);

impl Confidential {
    /// Keeps a text.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text, for whoever needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Confidential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `[sims]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sims {
    /// SIMs that are known without an event, from both keys, without repeats.
    pub iccids: Vec<Iccid>,
}

/// `[webhooks]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhooks {
    /// Networks, checked.
    pub allowed_networks: Vec<String>,
    /// Key under which secrets are stored.
    pub secret_key: Option<Confidential>,
    /// File that holds it.
    pub secret_key_file: Option<PathBuf>,
    /// URL of an egress proxy; may hold a password.
    pub proxy: Option<Confidential>,
    /// Certificates beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Days that attempts are kept.
    pub attempts_days: u32,
    /// Bytes that they may take.
    pub attempts_bytes: u64,
}

/// Where events are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusKind {
    /// In files of this gateway's own.
    Embedded,
    /// On NATS JetStream.
    Nats,
}

/// `[bus.nats]`: the stream on NATS JetStream, and this gateway's copy of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Nats {
    /// Servers, with scheme; may hold passwords.
    pub urls: Vec<String>,
    /// JWT and seed.
    pub credentials_file: Option<PathBuf>,
    /// Seed of an nkey.
    pub nkey_file: Option<PathBuf>,
    /// Certificates that the servers' are checked against; None: the system's.
    pub tls_ca: Option<PathBuf>,
    /// Client certificate and its key.
    pub tls_client: Option<(PathBuf, PathBuf)>,
    /// Name of the stream.
    pub stream: String,
    /// First part of its subjects.
    pub subject_prefix: String,
    /// Servers that hold each event.
    pub replicas: usize,
    /// Days that events are kept.
    pub retention_days: u32,
    /// Bytes that events may take.
    pub retention_bytes: u64,
    /// Directory of this gateway's copy.
    pub cache_path: PathBuf,
    /// Monitoring port of a server.
    pub monitoring_url: Option<String>,
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<_> = self.urls.iter().map(|url| value::without_password(url)).collect();
        f.debug_struct("Nats")
            .field("urls", &urls)
            .field("credentials_file", &self.credentials_file)
            .field("nkey_file", &self.nkey_file)
            .field("tls_ca", &self.tls_ca)
            .field("tls_client", &self.tls_client)
            .field("stream", &self.stream)
            .field("subject_prefix", &self.subject_prefix)
            .field("replicas", &self.replicas)
            .field("retention_days", &self.retention_days)
            .field("retention_bytes", &self.retention_bytes)
            .field("cache_path", &self.cache_path)
            .field("monitoring_url", &self.monitoring_url)
            .finish()
    }
}

/// `[http]`: REST, SSE, WebSocket, console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Origins besides the gateway's own whose pages may call it.
    pub allowed_origins: Vec<String>,
    /// Host names besides loopback names and the listen address under which the gateway is reached.
    pub allowed_hosts: Vec<String>,
}

/// `[grpc]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grpc {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether clients may ask for the schema.
    pub reflection: bool,
}

/// `[admin]`: health and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where to listen.
    pub listen: SocketAddr,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections of all frontends together.
    pub connections: usize,
    /// Subscriptions on one connection.
    pub subscriptions_per_connection: usize,
    /// Values in one list of a filter.
    pub filter_values: usize,
    /// The same where the filter comes in a REST body.
    pub filter_values_body: usize,
    /// Bytes of a request's URL.
    pub url_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Path of the key.
    pub key: String,
    /// Where it was given.
    pub origin: Origin,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub cure: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => write!(f, "{}: {}; {}", self.key, self.problem, self.cure),
            origin => write!(f, "{} ({origin}): {}; {}", self.key, self.problem, self.cure),
        }
    }
}

/// All that is wrong with a configuration; never empty. Terminal: it has to be edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "the configuration has {} {plural}:", self.0.len())?;
        for mistake in &self.0 {
            write!(f, "\n  {mistake}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
