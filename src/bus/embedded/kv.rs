//! The small state beside the log: poller state, endpoints, cursors, leases, in one redb file.
//!
//! Calls block and belong on a blocking thread. Writers that wait for the disk are joined: whoever gets the write
//! lock commits everything that has queued up meanwhile in one transaction, so that a thousand checkpoints cost a
//! few fsyncs, while each caller still sees its own compare-and-set answered in order of arrival.
//!
//! What is deleted or overwritten stays in free pages of the file until they are used again, so an erasure writes the
//! file anew ([`Kv::erase`]).

use std::{
    collections::VecDeque,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use redb::{
    Database, ReadableDatabase, ReadableTable, StorageBackend as _, StorageError, Table, TableDefinition,
    TableError,
    backends::{FileBackend, InMemoryBackend},
};
use tokio::sync::mpsc;

use crate::bus::{Bucket, Change, Entry, KvError};

mod erase;

/// Changes that a watcher may be behind before it is ended.
pub(super) const WATCH_BEHIND_MAX: usize = 1024;
/// Bytes of pages that redb may keep in memory.
const CACHE_BYTES: usize = 16 << 20;

/// Highest revision given, by bucket; also the fence counter and the fence of each lease, under their own keys.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const FENCE_COUNTER: &str = "fence";
const FENCE_PREFIX: &str = "fence/";

fn table(bucket: Bucket) -> TableDefinition<'static, &'static str, (u64, &'static [u8])> {
    TableDefinition::new(bucket.name())
}

/// One write.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// The key must not exist.
    Create(Bytes),
    /// The key must be at the revision.
    Update(Bytes, u64),
    /// Whatever the key holds.
    Put(Bytes),
    /// The key must be at the revision.
    Delete(u64),
    /// Gives the lease `key` to a new holder; answers its fence.
    Fence,
}

type Answer = Arc<Mutex<Option<Result<u64, KvError>>>>;

struct Pending {
    bucket: Bucket,
    key: String,
    op: Op,
    answer: Answer,
}

struct Watcher {
    bucket: Bucket,
    prefix: String,
    changes: mpsc::Sender<Change>,
}

enum Db {
    Open(Database),
    /// A write failed, after which redb wants the file opened again; the next write tries.
    Broken(String),
    Closed,
}

impl Db {
    fn get(&self) -> Result<&Database, KvError> {
        match self {
            Self::Open(db) => Ok(db),
            Self::Broken(reason) => Err(KvError::Unavailable(reason.clone())),
            Self::Closed => Err(closed()),
        }
    }
}

/// The store. All calls block on the disk.
pub(super) struct Kv {
    path: Option<PathBuf>,
    db: RwLock<Db>,
    queue: Mutex<VecDeque<Pending>>,
    /// Held while a transaction is written; guards the watchers so that a snapshot and the changes after it join.
    watchers: Mutex<Vec<Watcher>>,
}

impl std::fmt::Debug for Kv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kv").finish_non_exhaustive()
    }
}

impl Kv {
    /// Opens or creates the file; None keeps everything in memory.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, redb::Error> {
        let db = match path {
            None => builder().create_with_backend(InMemoryBackend::new())?,
            Some(path) => {
                erase::tidy(path)?;
                open_file(path)?
            }
        };
        let db = RwLock::new(Db::Open(db));
        Ok(Self { path: path.map(Path::to_owned), db, queue: Mutex::default(), watchers: Mutex::default() })
    }

    /// Opens a copy in memory of what such a file holds; empty bytes are an empty store.
    pub(super) fn open_copy(bytes: &[u8]) -> Result<Self, redb::Error> {
        let backend = InMemoryBackend::new();
        backend.set_len(bytes.len() as u64).map_err(std::io::Error::other)?;
        backend.write(0, bytes).map_err(std::io::Error::other)?;
        let db = RwLock::new(Db::Open(builder().create_with_backend(backend)?));
        Ok(Self { path: None, db, queue: Mutex::default(), watchers: Mutex::default() })
    }

    /// Reads a key.
    pub(super) fn get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError> {
        self.with_table(bucket, |table| {
            let entry = table.get(key)?;
            Ok(entry.map(|guard| {
                let (revision, value) = guard.value();
                Entry { key: key.to_owned(), revision, value: Bytes::copy_from_slice(value) }
            }))
        })
        .map(Option::flatten)
    }

    /// The entries under a prefix, by key.
    pub(super) fn list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError> {
        let listed = self.with_table(bucket, |table| {
            let mut entries = Vec::new();
            for item in table.range::<&str>((Bound::Included(prefix), Bound::Unbounded))? {
                let (key, value) = item?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                let (revision, bytes) = value.value();
                let value = Bytes::copy_from_slice(bytes);
                entries.push(Entry { key: key.value().to_owned(), revision, value });
            }
            Ok(entries)
        })?;
        Ok(listed.unwrap_or_default())
    }

    fn with_table<T>(
        &self,
        bucket: Bucket,
        read: impl FnOnce(&redb::ReadOnlyTable<&'static str, (u64, &'static [u8])>) -> Result<T, StorageError>,
    ) -> Result<Option<T>, KvError> {
        let guard = self.db.read();
        let db = guard.get()?;
        let transaction = db.begin_read().map_err(unavailable)?;
        match transaction.open_table(table(bucket)) {
            Ok(table) => read(&table).map(Some).map_err(unavailable),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Sends the entries under a prefix, `Synced`, then changes.
    pub(super) fn watch(&self, bucket: Bucket, prefix: &str) -> Result<mpsc::Receiver<Change>, KvError> {
        let mut watchers = self.watchers.lock();
        let entries = self.list(bucket, prefix)?;
        let (changes, receiver) = mpsc::channel(entries.len() + 1 + WATCH_BEHIND_MAX);
        for change in entries.into_iter().map(Change::Put).chain([Change::Synced]) {
            // The channel was made large enough, and its receiver is still here.
            let _ = changes.try_send(change);
        }
        watchers.retain(|watcher| !watcher.changes.is_closed());
        watchers.push(Watcher { bucket, prefix: prefix.to_owned(), changes });
        Ok(receiver)
    }

    /// Writes durably, together with whatever else is waiting; gives the revision or fence.
    pub(super) fn write(&self, bucket: Bucket, key: String, op: Op) -> Result<u64, KvError> {
        let answer = Answer::default();
        self.queue.lock().push_back(Pending { bucket, key, op, answer: Arc::clone(&answer) });
        let mut watchers = self.watchers.lock();
        if answer.lock().is_none() {
            // Whoever pushed is in the queue until a holder of the lock drains it, so this drain answers it.
            let batch: Vec<_> = self.queue.lock().drain(..).collect();
            self.commit(&batch, &mut watchers);
        }
        let result = answer.lock().take();
        result.unwrap_or_else(|| Err(closed()))
    }

    fn commit(&self, batch: &[Pending], watchers: &mut Vec<Watcher>) {
        let outcome = self.transact(batch);
        match outcome {
            Ok(results) => {
                for (pending, result) in batch.iter().zip(results) {
                    if let Ok(revision) = result {
                        notify(watchers, pending, revision);
                    }
                    *pending.answer.lock() = Some(result);
                }
            }
            Err(reason) => {
                tracing::error!(%reason, "key-value store can't be written");
                for pending in batch {
                    *pending.answer.lock() = Some(Err(KvError::Unavailable(reason.clone())));
                }
            }
        }
    }

    /// Opens the file again where that is needed, writes, and takes note of a failure.
    fn transact(&self, batch: &[Pending]) -> Result<Vec<Result<u64, KvError>>, String> {
        let reopened = match (&*self.db.read(), &self.path) {
            (Db::Broken(_), Some(path)) => Some(open_file(path).map_err(|error| error.to_string())?),
            _ => None,
        };
        if let Some(db) = reopened {
            *self.db.write() = Db::Open(db);
        }
        let failure = match self.db.read().get() {
            Ok(db) => match transact(db, batch) {
                Ok(results) => return Ok(results),
                Err(error) => error.to_string(),
            },
            Err(error) => return Err(error.to_string()),
        };
        *self.db.write() = Db::Broken(failure.clone());
        Err(failure)
    }

    /// The fence of each lease ever taken, by name.
    pub(super) fn fences(&self) -> Result<Vec<(String, u64)>, KvError> {
        let guard = self.db.read();
        let db = guard.get()?;
        let transaction = db.begin_read().map_err(unavailable)?;
        let table = match transaction.open_table(COUNTERS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(unavailable(error)),
        };
        let mut fences = Vec::new();
        for item in table.range(FENCE_PREFIX..).map_err(unavailable)? {
            let (key, fence) = item.map_err(unavailable)?;
            let Some(name) = key.value().strip_prefix(FENCE_PREFIX).map(str::to_owned) else { break };
            fences.push((name, fence.value()));
        }
        Ok(fences)
    }

    /// Waits for what is being written, then closes the file; every call answers `Unavailable` from then on.
    pub(super) fn close(&self) {
        let mut watchers = self.watchers.lock();
        watchers.clear();
        *self.db.write() = Db::Closed;
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn open_file(path: &Path) -> Result<Database, redb::Error> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    Ok(builder().create_with_backend(FileBackend::new(options.open(path)?)?)?)
}

/// Applies a batch in one durable transaction; each result stands only if the whole commit succeeds.
fn transact(db: &Database, batch: &[Pending]) -> Result<Vec<Result<u64, KvError>>, redb::Error> {
    let transaction = db.begin_write()?;
    let mut results = Vec::with_capacity(batch.len());
    {
        let mut counters = transaction.open_table(COUNTERS)?;
        for pending in batch {
            results.push(match &pending.op {
                Op::Fence => Ok(next_fence(&mut counters, &pending.key)?),
                op => {
                    let mut table = transaction.open_table(table(pending.bucket))?;
                    apply(&mut table, &mut counters, pending, op)?
                }
            });
        }
    }
    if results.iter().any(Result::is_ok) {
        transaction.commit()?;
    } else {
        transaction.abort()?;
    }
    Ok(results)
}

fn apply(
    table: &mut Table<'_, &'static str, (u64, &'static [u8])>,
    counters: &mut Table<'_, &'static str, u64>,
    pending: &Pending,
    op: &Op,
) -> Result<Result<u64, KvError>, redb::Error> {
    let key = pending.key.as_str();
    let current = table.get(key)?.map(|guard| guard.value().0);
    let allowed = match op {
        Op::Create(_) => current.is_none(),
        Op::Update(_, revision) | Op::Delete(revision) => current == Some(*revision),
        Op::Put(_) | Op::Fence => true,
    };
    if !allowed {
        return Ok(Err(KvError::Conflict));
    }
    let revision = bump(counters, pending.bucket.name())?;
    match op {
        Op::Create(value) | Op::Update(value, _) | Op::Put(value) => {
            table.insert(key, (revision, value.as_ref()))?;
        }
        Op::Delete(_) | Op::Fence => {
            table.remove(key)?;
        }
    }
    Ok(Ok(revision))
}

fn bump(counters: &mut Table<'_, &'static str, u64>, counter: &str) -> Result<u64, redb::Error> {
    let next = counters.get(counter)?.map_or(0, |guard| guard.value()) + 1;
    counters.insert(counter, next)?;
    Ok(next)
}

fn next_fence(counters: &mut Table<'_, &'static str, u64>, lease: &str) -> Result<u64, redb::Error> {
    let fence = bump(counters, FENCE_COUNTER)?;
    counters.insert(format!("{FENCE_PREFIX}{lease}").as_str(), fence)?;
    Ok(fence)
}

/// A watcher that can't take the change has lost count and is ended.
fn notify(watchers: &mut Vec<Watcher>, pending: &Pending, revision: u64) {
    let key = &pending.key;
    let change = match &pending.op {
        Op::Create(value) | Op::Update(value, _) | Op::Put(value) => {
            Change::Put(Entry { key: key.clone(), revision, value: value.clone() })
        }
        Op::Delete(_) => Change::Deleted { key: key.clone() },
        Op::Fence => return,
    };
    watchers.retain(|watcher| {
        watcher.bucket != pending.bucket
            || !key.starts_with(&watcher.prefix)
            || watcher.changes.try_send(change.clone()).is_ok()
    });
}

const CLOSED: &str = "the key-value store is closed";

fn closed() -> KvError {
    KvError::Unavailable(CLOSED.to_owned())
}

fn unavailable(error: impl std::fmt::Display) -> KvError {
    KvError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests;
