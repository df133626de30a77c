//! The default backend: the log in files of its own, the small state in redb, one process.
//!
//! With nothing but a directory this keeps every promise of [`Bus`]: an append is fsynced before it is answered, ids
//! are remembered for the whole retention, and two gateways can't open the same directory, since the first holds an
//! OS lock on it until it ends, however it ends.

pub(in crate::bus) mod caretaker;
mod kv;
pub mod snapshot;
mod writer;

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::{
    caretaker::Caretaker,
    kv::{Kv, Op},
    writer::{Command, State, Writer},
};
use super::{AppendError, Appended, Bucket, Bus, Change, Entry, Fence, Health, KvError, Lease, NewEvent};
use crate::{
    clock::SharedClock,
    log::{Log, Options},
};

/// Where the log lies and how long it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory, created if missing; None keeps everything in memory, for tests and demonstrations.
    pub path: Option<PathBuf>,
    /// How long after its time an event may be observed before it is flagged late.
    pub late_after: SignedDuration,
    /// Days that events are kept.
    pub retention_days: u32,
    /// Bytes of events kept; whichever bound is met first.
    pub retention_bytes: u64,
    /// Size at which a segment is closed and the next begun, bytes.
    pub segment_bytes: u64,
    /// Identity of a log that has to be created; None draws one. An existing log keeps its own.
    pub incarnation: Option<u64>,
    /// Somebody will say with [`Log::hold`] what is still to be read; until then retention waits for all of it. Who goes
    /// on at a kept position finds out where that is only after retention has had its first turn.
    pub has_reader: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: None,
            late_after: SignedDuration::from_secs(300),
            retention_days: 7,
            retention_bytes: 10 << 30,
            segment_bytes: 64 << 20,
            incarnation: None,
            has_reader: false,
        }
    }
}

/// Why a data directory can't be opened. Each message names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{path} is in use by another simcast process: stop that one, or set bus.embedded.path to another directory"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It can't be created, read or written.
    #[error(
        "{path} can't be used: {source}; make it a directory that this user can read and write, or set bus.embedded.path to another"
    )]
    Unusable {
        /// The directory or the file in it.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The key-value file is damaged or of another version.
    #[error("{path} can't be opened: {reason}; move it aside to start without webhook and poller state")]
    KeyValue {
        /// The file.
        path: PathBuf,
        /// What redb says.
        reason: String,
    },
}

impl OpenError {
    /// Whether opening may succeed later without anybody changing the configuration.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }
}

/// The embedded backend.
#[derive(Debug)]
pub struct Embedded {
    log: Arc<Log>,
    kv: Arc<Kv>,
    threads: Mutex<Option<Threads>>,
    commands: std::sync::mpsc::SyncSender<Command>,
    closed: AtomicBool,
    stopping: CancellationToken,
    /// One permit per lease name.
    leases: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Held while the directory is ours.
    lock: Mutex<Option<File>>,
    in_memory: bool,
}

impl Embedded {
    /// Opens a data directory, or creates it; recovers what a crash left. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`] says what is in the way and what to do.
    pub fn open(config: Config, clock: SharedClock) -> Result<Arc<Self>, OpenError> {
        let lock = config.path.as_deref().map(lock_directory).transpose()?;
        let kv_path = config.path.as_deref().map(|path| path.join("state.redb"));
        let kv = Kv::open(kv_path.as_deref()).map_err(|error| OpenError::KeyValue {
            path: kv_path.clone().unwrap_or_default(),
            reason: error.to_string(),
        })?;
        let log = Arc::new(open_log(&config)?);
        Self::start(config, clock, lock, kv, log)
    }

    fn start(
        config: Config,
        clock: SharedClock,
        lock: Option<File>,
        kv: Kv,
        log: Arc<Log>,
    ) -> Result<Arc<Self>, OpenError> {
        let kv_path = config.path.as_deref().map(|path| path.join("state.redb"));
        if let Some(path) = &config.path {
            // What was created in it must still be there after a loss of power: a fence is never given twice.
            File::open(path)
                .and_then(|directory| directory.sync_all())
                .map_err(|source| OpenError::Unusable { path: path.clone(), source })?;
        }
        let fences = kv.fences().map_err(|error| OpenError::KeyValue {
            path: kv_path.unwrap_or_default(),
            reason: error.to_string(),
        })?;
        let in_memory = config.path.is_none();
        let unusable = |source| OpenError::Unusable { path: config.path.clone().unwrap_or_default(), source };
        if config.has_reader {
            log.hold(Some(0));
        }
        let caretaker = Caretaker::start(Arc::clone(&log), Arc::clone(&clock)).map_err(unusable)?;
        let newest = log.bounds().last_time.unwrap_or(Timestamp::MIN);
        let writer = Writer::start(State {
            log: Arc::clone(&log),
            clock,
            late_after: config.late_after,
            newest,
            cared_at: Timestamp::MIN,
            caretaker: caretaker.requests,
            fences: fences.into_iter().collect(),
        });
        let writer = writer.map_err(unusable)?;
        Ok(Arc::new(Self {
            log,
            kv: Arc::new(kv),
            commands: writer.commands.clone(),
            threads: Mutex::new(Some(Threads { writer, caretaker: caretaker.thread })),
            closed: AtomicBool::new(false),
            stopping: CancellationToken::new(),
            leases: Mutex::default(),
            lock: Mutex::new(lock),
            in_memory,
        }))
    }

    /// A bus that lives in memory only, with default settings: for tests of what is built on a bus.
    ///
    /// # Panics
    /// Where the system can't start a thread.
    pub fn in_memory(clock: SharedClock) -> Arc<Self> {
        match Self::open(Config::default(), clock) {
            Ok(bus) => bus,
            Err(error) => panic!("a bus in memory needs nothing but a thread: {error}"),
        }
    }

    /// A bus on a log of the test's own, with everything else in memory.
    #[cfg(test)]
    pub(crate) fn on_log(log: Arc<Log>, clock: SharedClock) -> Arc<Self> {
        Self::start(Config::default(), clock, None, Kv::open(None).unwrap(), log).unwrap()
    }

    /// Runs a key-value call off the async threads.
    async fn kv_call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Kv) -> Result<T, KvError> + Send + 'static,
    ) -> Result<T, KvError> {
        let kv = Arc::clone(&self.kv);
        match tokio::task::spawn_blocking(move || call(&kv)).await {
            Ok(result) => result,
            Err(error) => Err(KvError::Unavailable(error.to_string())),
        }
    }

    async fn kv_write(&self, bucket: Bucket, key: &str, op: Op) -> Result<u64, KvError> {
        let key = key.to_owned();
        self.kv_call(move |kv| kv.write(bucket, key, op)).await
    }

    /// Sends a command to the writer and waits for its answer on a blocking thread: tokio's clock, where a test has
    /// paused it, must not run ahead while the disk works. None once the writer has ended.
    async fn tell<T: Send + 'static>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (answer, receiver) = oneshot::channel();
        let command = command(answer);
        let commands = self.commands.clone();
        let wait = move || {
            commands.send(command).ok()?;
            receiver.blocking_recv().ok()
        };
        tokio::task::spawn_blocking(wait).await.ok().flatten()
    }

    /// Refuses what comes from now on; gives what has still to be done, which blocks.
    fn stop(&self) -> impl FnOnce() + Send + 'static {
        self.closed.store(true, Ordering::Release);
        self.stopping.cancel();
        let threads = self.threads.lock().take();
        let lock = self.lock.lock().take();
        let (kv, log) = (Arc::clone(&self.kv), Arc::clone(&self.log));
        move || {
            if let Some(Threads { writer, caretaker }) = threads {
                // Sending or joining fails only where a thread has ended already.
                let _ = writer.commands.send(Command::Close);
                let _ = writer.thread.join();
                let _ = caretaker.join();
                if let Err(error) = log.close() {
                    tracing::warn!(%error, "the log was not closed cleanly; the next start takes longer");
                }
            }
            kv.close();
            drop(lock);
        }
    }
}

/// What runs beside the caller.
#[derive(Debug)]
struct Threads {
    writer: Writer,
    caretaker: std::thread::JoinHandle<()>,
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop()();
    }
}

#[async_trait]
impl Bus for Embedded {
    async fn append(&self, batch: Vec<NewEvent>, fence: Option<Fence>) -> Result<Vec<Appended>, AppendError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(AppendError::Closed);
        }
        let answered = self.tell(|answer| Command::Append { batch, fence, answer }).await;
        answered.unwrap_or(Err(AppendError::Closed))
    }

    fn log(&self) -> &Arc<Log> {
        &self.log
    }

    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError> {
        let key = key.to_owned();
        self.kv_call(move |kv| kv.get(bucket, &key)).await
    }

    async fn kv_create(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.kv_write(bucket, key, Op::Create(value)).await
    }

    async fn kv_update(
        &self,
        bucket: Bucket,
        key: &str,
        value: Bytes,
        revision: u64,
    ) -> Result<u64, KvError> {
        self.kv_write(bucket, key, Op::Update(value, revision)).await
    }

    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.kv_write(bucket, key, Op::Put(value)).await
    }

    async fn kv_delete(&self, bucket: Bucket, key: &str, revision: u64) -> Result<(), KvError> {
        self.kv_write(bucket, key, Op::Delete(revision)).await.map(|_| ())
    }

    async fn kv_list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError> {
        let prefix = prefix.to_owned();
        self.kv_call(move |kv| kv.list(bucket, &prefix)).await
    }

    async fn kv_watch(&self, bucket: Bucket, prefix: &str) -> Result<mpsc::Receiver<Change>, KvError> {
        let prefix = prefix.to_owned();
        self.kv_call(move |kv| kv.watch(bucket, &prefix)).await
    }

    /// The directory's lock keeps other processes out, so a lease is only lost by [`Bus::shutdown`]; `ttl` is not
    /// needed.
    async fn lease(&self, name: &str, _ttl: Duration) -> Result<Lease, KvError> {
        let closed = || KvError::Unavailable("the bus is closed".to_owned());
        let permits = {
            let mut leases = self.leases.lock();
            Arc::clone(leases.entry(name.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        let permit = tokio::select! {
            permit = permits.acquire_owned() => permit.map_err(|_| closed())?,
            () = self.stopping.cancelled() => return Err(closed()),
        };
        let fence = self.kv_write(Bucket::Lease, name, Op::Fence).await?;
        let lease = name.to_owned();
        self.tell(|done| Command::Fence { lease, fence, done }).await.ok_or_else(closed)?;
        let (lost_sender, lost) = watch::channel(false);
        let released = CancellationToken::new();
        let release = released.clone().drop_guard();
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = released.cancelled() => {}
                () = stopping.cancelled() => {
                    lost_sender.send_replace(true);
                }
            }
            drop(permit);
        });
        Ok(Lease { fence: Fence(fence), lost, release })
    }

    fn health(&self) -> Health {
        let durability = if self.in_memory {
            "in memory only: nothing survives the process"
        } else {
            "fsynced to the local disk before it is acknowledged"
        };
        let closed = self.closed.load(Ordering::Acquire).then(|| "the log is closed".to_owned());
        let unwritable = closed.or_else(|| self.log.unwritable());
        Health { kind: "embedded", durability: durability.to_owned(), warning: None, unwritable }
    }

    async fn shutdown(&self) {
        if let Err(error) = tokio::task::spawn_blocking(self.stop()).await {
            tracing::error!(%error, "the log was not closed cleanly");
        }
    }
}

fn open_log(config: &Config) -> Result<Log, OpenError> {
    let options = Options {
        incarnation: config.incarnation.unwrap_or_else(|| fastrand::Rng::new().u64(1..)),
        segment_bytes: config.segment_bytes,
        retention_days: config.retention_days,
        retention_bytes: config.retention_bytes,
        ..Options::default()
    };
    match &config.path {
        None => Ok(Log::in_memory_with(Options {
            segment_bytes: options.segment_bytes.min(MEMORY_SEGMENT_BYTES),
            retention_bytes: options.retention_bytes.min(MEMORY_BYTES),
            ..options
        })),
        Some(path) => {
            let path = path.join("log");
            Log::open(&path, options).map_err(|source| OpenError::Unusable { path, source })
        }
    }
}

/// What a log in memory keeps at most, whatever the retention says.
const MEMORY_BYTES: u64 = 256 << 20;
const MEMORY_SEGMENT_BYTES: u64 = 8 << 20;

/// Creates the directory, for its owner only, and locks it against other processes.
fn lock_directory(path: &Path) -> Result<File, OpenError> {
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Unusable { path, source }
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(unusable(path))?;
    let file_path = path.join("lock");
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&file_path).map_err(unusable(&file_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(unusable(&file_path)(source)),
    }
}

#[cfg(test)]
pub(in crate::bus) mod tests;
