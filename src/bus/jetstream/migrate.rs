//! An embedded log becomes a stream: every event at its sequence, under the same incarnation, so that cursors of
//! readers go on working, and the small state beside it.
//!
//! - **Sequences.** The stream begins where the log does and numbers without a gap, so each position of the log gets a
//!   message: events as a gateway appends them, and what stands for a position without one ([`standin`](super::standin)). Atomic
//!   batches go in one after the other, each on the condition that the stream ends where it must. Whatever becomes of a
//!   batch, of this process or of the server, the stream's own last sequence says where to go on.
//! - **Nobody takes a part for the whole.** The stream is made with a mark in its metadata, so gateways refuse it
//!   ([`OpenError::Migrating`]) until the key [`KEY`] of the bucket of states says that everything is there: the last
//!   write of all. A change of the metadata would need a permission that gateways should not have.
//! - **Nothing is believed.** The log is read through before anything is written, and its digest is compared with that
//!   of what the stream gives back; the key-value entries are compared as well.
//! - **Nothing is overwritten.** A stream of another history is refused, and so are buckets that hold anything and
//!   belong to no migration of this log. The log itself is never changed ([`Snapshot`]).

mod messages;
mod target;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::jetstream::stream::Stream;
use tokio::{sync::mpsc, time::Instant};

use self::messages::{Batch, Digest, Messages, Stretches};
pub(super) use self::target::finished;
pub use self::target::{Found, KEY};
use super::{
    API_PREFIX, Config, OpenError,
    append::batch::{Condition, Refusal, publish},
    connection::Connection,
    erase,
    kv::Buckets,
    mirror::puller::{Broken, Puller},
    subject,
};
use crate::{
    bus::{Bucket, Entry, KvError, embedded::snapshot::Snapshot},
    event::SealError,
    log::ReadError,
};

/// Batches that are made ready while one is on its way.
const AHEAD: usize = 2;
/// How long it is tried again while nothing goes in or comes back.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a migration failed. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The servers, the stream or a bucket.
    #[error(transparent)]
    Target(#[from] OpenError),
    /// A stream of another history has the name.
    #[error(
        "stream {stream} exists and holds {holds}, not this log: set bus.nats.stream and bus.nats.subject_prefix to names that nobody uses, or stop all gateways on it and delete it with its buckets (nats stream rm {stream})"
    )]
    Foreign {
        /// Its name.
        stream: String,
        /// What it says of itself.
        holds: String,
    },
    /// A bucket is in use.
    #[error(
        "bucket {bucket} holds {keys} keys already and there is no stream {stream} to which they belong: delete the bucket (nats kv rm {bucket}), or set bus.nats.stream to a name that nobody uses"
    )]
    InUse {
        /// Its name.
        bucket: String,
        /// How many keys.
        keys: usize,
        /// The stream whose it would be.
        stream: String,
    },
    /// The log went on, or was shortened, behind the back of a migration.
    #[error("{what}; {cure}")]
    Moved {
        /// What differs.
        what: String,
        /// What to do.
        cure: String,
    },
    /// Retention of the stream would remove events while they come in.
    #[error(
        "the log takes some {needed} bytes as a stream, and stream {stream} keeps no more than {most}: set bus.nats.retention_bytes to more (and, where the stream exists already, run: nats stream edit {stream} --max-bytes={needed})"
    )]
    TooLarge {
        /// Bytes needed.
        needed: u64,
        /// Bytes kept.
        most: u64,
        /// The stream.
        stream: String,
    },
    /// An event does not fit into a message.
    #[error(
        "the event at sequence {seq} can't be a message: {source}; raise max_payload of the NATS servers"
    )]
    Event {
        /// Where it lies.
        seq: u64,
        /// Why not.
        source: SealError,
    },
    /// The log can't be read.
    #[error("the log at {path} can't be read: {source}; look at the disk, then run this again")]
    Log {
        /// Its directory.
        path: PathBuf,
        /// What the system says.
        source: ReadError,
    },
    /// Nothing goes in or comes back.
    #[error(
        "nothing could be {done} for {} s: {reason}; look at the NATS servers, then run this again: it goes on where it stopped",
        PATIENCE.as_secs()
    )]
    Stalled {
        /// What is done.
        done: &'static str,
        /// What was seen last.
        reason: String,
    },
    /// A bucket can't be read or written.
    #[error("bucket {bucket} can't be copied: {source}; look at the NATS servers, then run this again")]
    KeyValue {
        /// Its name.
        bucket: String,
        /// Why not.
        source: KvError,
    },
    /// What was copied is not what lies in the log.
    #[error(
        "the copy is not the log: {what}; stream {stream} stays closed to gateways. See that nothing else writes to it, delete it with its buckets (nats stream rm {stream}), and run this again"
    )]
    Mismatch {
        /// What differs.
        what: String,
        /// The stream.
        stream: String,
    },
    /// The thread for blocking work died.
    #[error("the migration was interrupted: {0}; run it again")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// How far a migration is; sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The log has been read up to here.
    Read(u64),
    /// The stream holds everything up to here.
    Copied(u64),
    /// The stream has given back everything up to here.
    Checked(u64),
}

/// Told how far it is, often.
pub type Tell = Arc<dyn Fn(Progress) + Send + Sync>;

/// What lies in the log.
#[derive(Debug, Clone)]
pub struct Survey {
    /// First position that is not gone.
    pub first_seq: u64,
    /// Last position; below the first where nothing is left.
    pub last_seq: u64,
    /// Events.
    pub events: u64,
    /// Positions that can't be read.
    pub lost: u64,
    /// Positions that never held an event.
    pub unused: u64,
    /// Bytes of the messages, about as a server counts them.
    pub bytes: u64,
    /// Entries of the small state.
    pub keys: usize,
    /// SHA-256 over all messages.
    pub digest: String,
    stretches: Stretches,
}

impl Survey {
    /// Of a log that is not there, for tests of what shows it.
    #[cfg(test)]
    pub(crate) fn sample(first_seq: u64, last_seq: u64) -> Self {
        let (digest, stretches) = (String::new(), Stretches::default());
        Self { first_seq, last_seq, events: 0, lost: 0, unused: 0, bytes: 0, keys: 0, digest, stretches }
    }

    /// How many messages it is.
    pub fn messages(&self) -> u64 {
        self.events + self.lost + self.unused
    }
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Report {
    /// Messages that went in; less than there are where an earlier run was interrupted.
    pub copied: u64,
    /// How long that took.
    pub copying: Duration,
    /// How long it took to read all back.
    pub checking: Duration,
}

/// See the head of this file.
pub struct Migration {
    config: Config,
    connection: Connection,
    buckets: Buckets,
    snapshot: Arc<Snapshot>,
    path: PathBuf,
    found: Found,
    tell: Tell,
}

impl std::fmt::Debug for Migration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Migration").field("config", &self.config).field("found", &self.found).finish()
    }
}

impl Migration {
    /// Connects and looks at the target; writes nothing. `path` is where the snapshot was taken.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub async fn open(
        config: Config,
        snapshot: Snapshot,
        path: PathBuf,
        tell: Tell,
    ) -> Result<Self, MigrateError> {
        let connection = Connection::open(&config).await?;
        let buckets = Buckets::new(connection.context.clone(), &config.stream);
        let found = target::look(&config, &connection.context, &buckets, snapshot.log()).await?;
        Ok(Self { config, connection, buckets, snapshot: Arc::new(snapshot), path, found, tell })
    }

    /// What there is of the target.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Reads the log through, and finds what would be in the way.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub async fn survey(&self) -> Result<Survey, MigrateError> {
        let log = self.snapshot.log();
        let (first_seq, last_seq) = (log.begins_at(), log.bounds().last_seq);
        let mut messages = self.messages(first_seq.saturating_sub(1), last_seq, Stretches::default());
        let tell = Arc::clone(&self.tell);
        let mut survey = Survey {
            first_seq,
            last_seq,
            events: 0,
            lost: 0,
            unused: 0,
            bytes: 0,
            keys: self.snapshot.entries().values().map(Vec::len).sum(),
            digest: String::new(),
            stretches: Stretches::default(),
        };
        let mut digest = Digest::new(&self.config.subject_prefix);
        let read = move || {
            while let Some(batch) = messages.next_batch()? {
                for (seq, draft) in (batch.first_seq..).zip(&batch.drafts) {
                    digest.add(seq, &draft.subject, Some(&draft.headers), &draft.payload);
                    survey.bytes += messages::stored_bytes(draft);
                }
                tell(Progress::Read(batch.last_seq()));
            }
            (survey.events, survey.lost, survey.unused) = messages.counts();
            survey.stretches = messages.into_stretches();
            survey.digest = digest.finish();
            Ok::<_, MigrateError>(survey)
        };
        let survey = tokio::task::spawn_blocking(read).await??;
        let most = match &self.found {
            Found::Begun { max_bytes, .. } => *max_bytes,
            _ => self.config.retention_bytes,
        };
        if survey.bytes > most {
            let stream = self.config.stream.clone();
            return Err(MigrateError::TooLarge { needed: survey.bytes, most, stream });
        }
        Ok(survey)
    }

    fn messages(&self, after: u64, last: u64, stretches: Stretches) -> Messages {
        Messages::new(
            Arc::clone(&self.snapshot),
            self.path.clone(),
            &self.config.subject_prefix,
            self.connection.client.max_payload(),
            (after, last),
            stretches,
        )
    }

    /// Copies whatever is not there yet, checks all of it, and opens the stream to gateways.
    ///
    /// # Errors
    /// [`MigrateError`]; after most of them the same can be run again.
    pub async fn run(&self, survey: &Survey) -> Result<Report, MigrateError> {
        let context = &self.connection.context;
        let from = target::make(&self.config, context, &self.buckets, self.snapshot.log()).await?;
        let began = Instant::now();
        self.copy(from, survey).await?;
        let (copying, began) = (began.elapsed(), Instant::now());
        self.check(survey).await?;
        let checking = began.elapsed();
        for (bucket, entries) in self.snapshot.entries() {
            let is_mark = |entry: &&Entry| *bucket == Bucket::State && entry.key == KEY;
            let mut entries: Vec<_> = entries.iter().filter(|entry| !is_mark(entry)).cloned().collect();
            if *bucket == Bucket::State {
                entries.extend(self.announcements().await?);
                entries.sort_by(|a, b| a.key.cmp(&b.key));
            }
            self.copy_bucket(*bucket, &entries).await?;
        }
        let incarnation = self.snapshot.log().incarnation();
        target::finish(&self.config, context, &self.buckets, incarnation, survey).await?;
        Ok(Report { copied: survey.last_seq.saturating_sub(from), copying, checking })
    }

    /// What was erased, as gateways tell each other: the stream has nothing at these positions, and copies of it must
    /// know their ids all the same.
    async fn announcements(&self) -> Result<Vec<Entry>, MigrateError> {
        let snapshot = Arc::clone(&self.snapshot);
        let erased = tokio::task::spawn_blocking(move || snapshot.log().tombstones()).await?;
        let erased =
            erased.map_err(|source| MigrateError::Log { path: self.path.clone(), source: source.into() })?;
        let announced = erase::announcements(self.snapshot.log().incarnation(), &erased);
        Ok(announced.into_iter().map(|(key, value)| Entry { key, revision: 0, value }).collect())
    }

    async fn stream(&self) -> Result<Stream, Broken> {
        self.connection.context.get_stream(&self.config.stream).await.map_err(Broken::of)
    }

    fn mismatch(&self, what: impl Into<String>) -> MigrateError {
        MigrateError::Mismatch { what: what.into(), stream: self.config.stream.clone() }
    }

    /// Publishes what follows `at`.
    async fn copy(&self, mut at: u64, survey: &Survey) -> Result<(), MigrateError> {
        let mut stalled = Stalled::new("copied");
        while at < survey.last_seq {
            let (sender, batches) = mpsc::channel(AHEAD);
            let mut messages = self.messages(at, survey.last_seq, Arc::clone(&survey.stretches));
            let reading = tokio::task::spawn_blocking(move || {
                while let Some(batch) = messages.next_batch().transpose() {
                    let failed = batch.is_err();
                    if sender.blocking_send(batch).is_err() || failed {
                        return;
                    }
                }
            });
            let before = at;
            let refused = self.publish_all(batches, &mut at).await?;
            reading.await?;
            let Some(reason) = refused else { continue };
            if at > before {
                stalled.moved();
            }
            stalled.again(reason).await?;
            // Whether it was stored or not: the stream knows.
            if let Ok(stream) = self.stream().await {
                at = stream.cached_info().state.last_sequence;
            }
        }
        Ok(())
    }

    /// Publishes one batch after the other and notes in `at` how far that is; gives why one did not go in.
    async fn publish_all(
        &self,
        mut batches: mpsc::Receiver<Result<Batch, MigrateError>>,
        at: &mut u64,
    ) -> Result<Option<String>, MigrateError> {
        while let Some(batch) = batches.recv().await {
            let batch = batch?;
            let end = batch.last_seq();
            let condition = Condition { stream: &self.config.stream, last_seq: *at, fence: None };
            match publish(&self.connection.client, batch.drafts, condition).await {
                Ok(last) if last == end => {
                    *at = last;
                    (self.tell)(Progress::Copied(last));
                }
                Ok(last) => return Ok(Some(format!("the stream gave sequence {last} in place of {end}"))),
                Err(
                    Refusal::Moved(reason)
                    | Refusal::Duplicate(reason)
                    | Refusal::Rejected(reason)
                    | Refusal::Unknown(reason),
                ) => return Ok(Some(reason)),
            }
        }
        Ok(None)
    }

    /// Reads the whole stream and compares it with the log.
    async fn check(&self, survey: &Survey) -> Result<(), MigrateError> {
        let mut digest = Digest::new(&self.config.subject_prefix);
        let mut stalled = Stalled::new("read back");
        let mut at = survey.first_seq.saturating_sub(1);
        let events = subject::events(&self.config.subject_prefix);
        let mut count = 0;
        while at < survey.last_seq {
            let before = at;
            let broken = self.read_back(&mut at, survey.last_seq, |pulled| {
                count += u64::from(pulled.subject.starts_with(&events));
                digest.add(pulled.seq, &pulled.subject, pulled.headers.as_ref(), &pulled.payload);
            });
            if let Err(broken) = broken.await? {
                if at > before {
                    stalled.moved();
                }
                stalled.again(broken.to_string()).await?;
            }
        }
        if count != survey.events {
            return Err(self.mismatch(format!("it holds {count} events in place of {}", survey.events)));
        }
        if digest.finish() != survey.digest {
            return Err(self.mismatch("its digest is another one"));
        }
        Ok(())
    }

    async fn read_back(
        &self,
        at: &mut u64,
        last: u64,
        mut visit: impl FnMut(&super::mirror::puller::Pulled),
    ) -> Result<Result<(), Broken>, MigrateError> {
        let stream = match self.stream().await {
            Ok(stream) => stream,
            Err(broken) => return Ok(Err(broken)),
        };
        let client = &self.connection.client;
        let mut puller = match Puller::begin(client, &stream, API_PREFIX, *at + 1).await {
            Ok(puller) => puller,
            Err(broken) => return Ok(Err(broken)),
        };
        let mut result = Ok(Ok(()));
        while *at < last {
            match puller.next().await {
                Ok(pulled) if pulled.seq == *at + 1 => {
                    visit(&pulled);
                    *at = pulled.seq;
                    if at.is_multiple_of(1_000) || *at == last {
                        (self.tell)(Progress::Checked(*at));
                    }
                }
                Ok(pulled) => {
                    result = Err(self.mismatch(format!(
                        "sequences {} to {} are missing",
                        *at + 1,
                        pulled.seq - 1
                    )));
                    break;
                }
                Err(broken) => {
                    result = Ok(Err(broken));
                    break;
                }
            }
        }
        puller.end(&stream).await;
        result
    }

    /// Makes a bucket hold what the log's has, and nothing else. Nobody else uses it: gateways refuse the stream.
    async fn copy_bucket(&self, bucket: Bucket, entries: &[Entry]) -> Result<(), MigrateError> {
        let name = Buckets::name(&self.config.stream, bucket);
        let failed = |source| MigrateError::KeyValue { bucket: name.clone(), source };
        let same = |a: &Entry, b: &Entry| a.key == b.key && a.value == b.value;
        let have = self.buckets.list(bucket, "").await.map_err(failed)?;
        for entry in entries.iter().filter(|entry| !have.iter().any(|one| same(one, entry))) {
            self.buckets.put(bucket, &entry.key, entry.value.clone()).await.map_err(failed)?;
        }
        for extra in have.iter().filter(|one| !entries.iter().any(|entry| entry.key == one.key)) {
            self.buckets.delete(bucket, &extra.key, extra.revision).await.map_err(failed)?;
        }
        let have = self.buckets.list(bucket, "").await.map_err(failed)?;
        match have.len() == entries.len() && have.iter().zip(entries).all(|(a, b)| same(a, b)) {
            true => Ok(()),
            false => Err(self.mismatch(format!("bucket {name} holds other entries"))),
        }
    }
}

/// Since when nothing has moved.
struct Stalled {
    done: &'static str,
    since: Option<Instant>,
}

impl Stalled {
    fn new(done: &'static str) -> Self {
        Self { done, since: None }
    }

    fn moved(&mut self) {
        self.since = None;
    }

    /// Waits a little; an error once that has taken too long.
    async fn again(&mut self, reason: String) -> Result<(), MigrateError> {
        if self.since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(MigrateError::Stalled { done: self.done, reason });
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
