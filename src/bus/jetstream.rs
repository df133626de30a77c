//! The backend for several gateways: the stream lives on NATS JetStream, and each gateway keeps a copy of it.
//!
//! What is appended goes to the stream as one atomic batch ([`append`]) under the fence of whoever polls ([`lease`]);
//! one consumer per process copies the stream into a log ([`mirror`]), which is what all reads use, so there is one
//! read path on both buses. The small state lies in key-value buckets ([`kv`]). Stream and buckets are made and checked
//! at start ([`provision`]). A SIM is erased from all of it ([`erase`]). What other NATS clients may rely on: [`subject`] and [`message`]. An embedded log becomes a
//! stream by [`migrate`].

mod append;
mod connection;
mod erase;
pub mod inspect;
mod kv;
mod lease;
mod message;
pub mod migrate;
mod mirror;
pub mod provision;
mod standin;
mod subject;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
pub(crate) mod tests_support;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::{
    append::Appender,
    connection::Connection,
    kv::Buckets,
    lease::Leases,
    mirror::{Mirror, Running, Source, place::PlaceError},
    provision::{Drift, Durability, Provisioned},
};
use super::{
    AppendError, Appended, Bucket, Bus, Change, Entry, EraseError, Erased, Fence, Fill, Health, KvError,
    Lease, NewEvent,
};
use crate::{
    clock::SharedClock,
    event::Iccid,
    log::{Log, Options},
};

/// Begins the subjects of the JetStream API.
const API_PREFIX: &str = "$JS.API";

/// Where the stream is, and how it is made.
#[derive(Clone)]
pub struct Config {
    /// Servers of one cluster, with scheme; may hold user and password.
    pub urls: Vec<String>,
    /// JWT and seed.
    pub credentials_file: Option<PathBuf>,
    /// Seed of an nkey, where there are no credentials.
    pub nkey_file: Option<PathBuf>,
    /// Certificates that the servers' are checked against; None: those of the system.
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
    /// How long the server itself refuses an id twice.
    pub duplicate_window: Duration,
    /// Directory of the copy, created if missing; None keeps it in memory, for tests.
    pub cache_path: Option<PathBuf>,
    /// How long after its time an event may be observed before it is flagged late.
    pub late_after: SignedDuration,
    /// Monitoring port of a server, to be asked how often it syncs.
    pub monitoring_url: Option<String>,
    /// For pauses, and names that must differ from those of other gateways: seeded by chance, but in tests.
    pub chance: Chance,
}

/// Where this backend takes chance from.
#[derive(Debug, Clone)]
pub struct Chance(Arc<Mutex<fastrand::Rng>>);

impl Chance {
    /// Draws that this seed decides.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// A number to name something by, not 0.
    fn name(&self) -> u64 {
        self.0.lock().u64(1..)
    }

    /// Half to the whole of a pause.
    fn jittered(&self, pause: Duration) -> Duration {
        pause.mul_f64(0.5 + self.0.lock().f64() / 2.0)
    }
}

impl Config {
    /// The defaults for these servers.
    pub fn new(urls: Vec<String>, chance: Chance) -> Self {
        Self {
            urls,
            credentials_file: None,
            nkey_file: None,
            tls_ca: None,
            tls_client: None,
            stream: "SIMCAST".to_owned(),
            subject_prefix: "simcast".to_owned(),
            replicas: 1,
            retention_days: 7,
            retention_bytes: 10 << 30,
            duplicate_window: provision::DUPLICATE_WINDOW,
            cache_path: None,
            late_after: SignedDuration::from_secs(300),
            monitoring_url: None,
            chance,
        }
    }
}

impl std::fmt::Debug for Config {
    /// Without the addresses, which may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("stream", &self.stream)
            .field("subject_prefix", &self.subject_prefix)
            .field("replicas", &self.replicas)
            .field("cache_path", &self.cache_path)
            .finish_non_exhaustive()
    }
}

/// Why the stream can't be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No server answers.
    #[error(
        "NATS at {urls} can't be reached: {reason}; check bus.nats.urls, the network and the server's log"
    )]
    Unreachable {
        /// Without passwords.
        urls: String,
        /// What was seen.
        reason: String,
    },
    /// A server without fenced atomic batches.
    #[error(
        "NATS server {version} is too old: simcast appends by fenced atomic batches, which 2.12 and later have; update the server"
    )]
    OldServer {
        /// As it calls itself.
        version: String,
    },
    /// A server answers, but does not take the login.
    #[error("NATS at {urls} refuses the login; {cure}")]
    Login {
        /// Without passwords.
        urls: String,
        /// Names the key.
        cure: String,
    },
    /// A server answers, but there is no encryption that both sides trust.
    #[error("NATS at {urls} can't be talked to by TLS: {reason}; {cure}")]
    Tls {
        /// Without passwords.
        urls: String,
        /// What was seen.
        reason: String,
        /// Names the key.
        cure: String,
    },
    /// A file of keys is of no use.
    #[error(
        "{key} = {path} can't be used: {reason}; give a file that this user may read and that holds what its name says"
    )]
    Key {
        /// Of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The stream or a bucket can't be made or asked for.
    #[error(
        "{object} can't be made or asked for on NATS: {reason}; check that JetStream is enabled and that this user may use it"
    )]
    Provision {
        /// Its name.
        object: String,
        /// What the server says.
        reason: String,
    },
    /// They are not as they must be.
    #[error("NATS is set up so that events would be lost: {}", join(.0))]
    Drift(Vec<Drift>),
    /// A migration has not come to its end.
    #[error(
        "stream {stream} is the target of a migration that has not finished: run \"simcast migrate --to nats\" again until it says that all is copied, or delete the stream to begin without the old events"
    )]
    Migrating {
        /// Its name.
        stream: String,
    },
    /// The directory of the copy can't be used.
    #[error(
        "{path} can't be used: {reason}; stop the other process, or set bus.nats.cache_path to another directory"
    )]
    Cache {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

fn join(drift: &[Drift]) -> String {
    drift.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl OpenError {
    /// Whether opening may succeed later without anybody changing the configuration.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Provision { .. } | Self::Cache { .. })
    }
}

/// The backend on NATS.
#[derive(Debug)]
pub struct JetStream {
    connection: Connection,
    found: Provisioned,
    buckets: Buckets,
    leases: Leases,
    mirror: Arc<Mirror>,
    appender: Appender,
    /// Held while a batch under a fence is on its way: its announcement must not be made anew meanwhile.
    fenced: AsyncMutex<()>,
    /// Held while a SIM is erased.
    erasing: AsyncMutex<()>,
    retention_days: u32,
    running: Mutex<Option<Running>>,
    stopping: CancellationToken,
}

impl JetStream {
    /// Connects, makes or checks stream and buckets, and opens the copy. Does not wait until that is filled
    /// ([`Bus::fill`]).
    ///
    /// # Errors
    /// [`OpenError`] says what is in the way and what to do.
    pub async fn open(config: Config, clock: SharedClock) -> Result<Arc<Self>, OpenError> {
        let connection = Connection::open(&config).await?;
        let context = connection.context.clone();
        let found =
            provision::provision(&config, &context, &connection.server_version, config.chance.name()).await?;
        for drift in &found.drift {
            tracing::warn!("NATS: {drift}");
        }
        if let Some(warning) = &found.durability.warning {
            tracing::warn!("NATS: {warning}");
        }
        tracing::info!(stream = config.stream, durability = found.durability.says, "events are kept on NATS");

        let stopping = CancellationToken::new();
        let source = Source {
            client: connection.client.clone(),
            context: context.clone(),
            stream: config.stream.clone(),
            api_prefix: API_PREFIX.to_owned(),
            subjects: mirror::Subjects::new(&config.subject_prefix),
        };
        let options = Options {
            retention_days: config.retention_days,
            retention_bytes: config.retention_bytes,
            syncs: false,
            ..Options::default()
        };
        let cache = config.cache_path.clone().unwrap_or_default();
        let unusable = |reason: String| OpenError::Cache { path: cache.clone(), reason };
        let mirror = mirror::open(config.cache_path.clone(), options, &source, stopping.clone()).await;
        let mirror = mirror.map_err(|error| match error {
            mirror::OpenError::Place(PlaceError::Locked) => unusable(PlaceError::Locked.to_string()),
            mirror::OpenError::Place(PlaceError::Io(error)) => unusable(error.to_string()),
            mirror::OpenError::Stream(reason) => {
                OpenError::Provision { object: config.stream.clone(), reason }
            }
        })?;
        let running = mirror
            .start(source.clone(), clock.clone(), config.chance.clone())
            .map_err(|error| unusable(error.to_string()))?;
        let buckets = Buckets::new(context.clone(), &config.stream);
        tokio::spawn(erase::follow(
            buckets.clone(),
            Arc::clone(&mirror),
            config.chance.clone(),
            stopping.clone(),
        ));
        // Whole seconds: for people.
        let started = Timestamp::from_second(clock.now().as_second()).unwrap_or_default();
        let leases = Leases::new(
            buckets.clone(),
            context,
            &config.subject_prefix,
            config.chance,
            started,
            stopping.clone(),
        );
        let appender = Appender {
            source,
            subject_prefix: config.subject_prefix,
            mirror: Arc::clone(&mirror),
            clock,
            late_after: config.late_after,
            closing: CancellationToken::new(),
            stopping: stopping.clone(),
            state: AsyncMutex::default(),
            refused: Mutex::default(),
        };
        Ok(Arc::new(Self {
            connection,
            found,
            buckets,
            leases,
            mirror,
            appender,
            fenced: AsyncMutex::default(),
            erasing: AsyncMutex::default(),
            retention_days: config.retention_days,
            running: Mutex::new(Some(running)),
            stopping,
        }))
    }

    /// What the start found: for `check` and `doctor`.
    pub fn found(&self) -> &Provisioned {
        &self.found
    }

    fn open_still(&self) -> Result<(), KvError> {
        match self.stopping.is_cancelled() {
            true => Err(KvError::Unavailable("the bus is closed".to_owned())),
            false => Ok(()),
        }
    }
}

impl Drop for JetStream {
    fn drop(&mut self) {
        // Tasks and threads end by themselves.
        self.stopping.cancel();
    }
}

#[async_trait]
impl Bus for JetStream {
    async fn append(&self, batch: Vec<NewEvent>, fence: Option<Fence>) -> Result<Vec<Appended>, AppendError> {
        let Some(fence) = fence else { return self.appender.append(batch, None).await };
        if self.stopping.is_cancelled() {
            return Err(AppendError::Closed);
        }
        let _in_flight = self.fenced.lock().await;
        let condition = self.leases.condition(fence).await?;
        self.appender.append(batch, Some(condition)).await
    }

    fn log(&self) -> &Arc<Log> {
        &self.mirror.log
    }

    fn fill(&self) -> watch::Receiver<Fill> {
        self.mirror.fill()
    }

    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError> {
        self.open_still()?;
        self.buckets.get(bucket, key).await
    }

    async fn kv_create(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.open_still()?;
        self.buckets.create(bucket, key, value).await
    }

    async fn kv_update(
        &self,
        bucket: Bucket,
        key: &str,
        value: Bytes,
        revision: u64,
    ) -> Result<u64, KvError> {
        self.open_still()?;
        self.buckets.update(bucket, key, value, revision).await
    }

    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.open_still()?;
        self.buckets.put(bucket, key, value).await
    }

    async fn kv_delete(&self, bucket: Bucket, key: &str, revision: u64) -> Result<(), KvError> {
        self.open_still()?;
        self.buckets.delete(bucket, key, revision).await
    }

    async fn kv_list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError> {
        self.open_still()?;
        self.buckets.list(bucket, prefix).await
    }

    async fn kv_watch(&self, bucket: Bucket, prefix: &str) -> Result<mpsc::Receiver<Change>, KvError> {
        self.open_still()?;
        self.buckets.watch(bucket, prefix).await
    }

    /// A gateway whose copy is not complete lets others have it. Who gets it has in its copy all that any holder
    /// before it has appended: what is new is judged by that.
    async fn lease(&self, name: &str, ttl: Duration) -> Result<Lease, KvError> {
        let closed = || KvError::Unavailable("the bus is closed".to_owned());
        self.open_still()?;
        let (mut fill, mut evaluated) = (self.mirror.fill(), self.mirror.evaluated());
        tokio::select! {
            () = self.stopping.cancelled() => return Err(closed()),
            _ = fill.wait_for(|fill| *fill == Fill::Complete) => {}
        }
        let mut lease = self.leases.lease(name, ttl).await?;
        let fence = lease.fence.0;
        tokio::select! {
            () = self.stopping.cancelled() => return Err(closed()),
            _ = lease.lost.wait_for(|lost| *lost) => {
                return Err(KvError::Unavailable("the lease was lost before it could be used".to_owned()));
            }
            _ = evaluated.wait_for(|evaluated| *evaluated >= fence) => {}
        }
        Ok(lease)
    }

    async fn erase(&self, iccid: &Iccid) -> Result<Erased, EraseError> {
        self.erase_sim(iccid).await
    }

    fn erased_elsewhere(&self) -> Option<mpsc::Receiver<String>> {
        self.mirror.erased_elsewhere.1.lock().take()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn health(&self) -> Health {
        let closed = self.stopping.is_cancelled().then(|| "the bus is closed".to_owned());
        let unwritable = closed
            .or_else(|| self.connection.trouble())
            .or_else(|| self.mirror.unwritable())
            .or_else(|| self.appender.trouble());
        let Durability { says, warning } = self.found.durability.clone();
        Health { kind: "nats", durability: says, warning, unwritable }
    }

    async fn shutdown(&self) {
        self.appender.close().await;
        self.stopping.cancel();
        let running = self.running.lock().take();
        if let Some(running) = running {
            running.join().await;
            let mirror = Arc::clone(&self.mirror);
            let _ = tokio::task::spawn_blocking(move || mirror.close()).await;
            // Releases of leases are on their way.
            let _ = tokio::time::timeout(connection::REQUEST_TIMEOUT, self.connection.client.flush()).await;
        }
    }
}
