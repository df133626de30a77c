//! Where events become durable, and the small state beside them: the seam between the embedded log and NATS.
//!
//! # Contract
//!
//! Every backend keeps these promises; `conformance` checks them by one suite for all.
//!
//! - **Append.** [`Bus::append`] returns after the batch is durable as [`Health::durability`] says, one answer per
//!   event, in order. An event whose id is known is not stored again: it answers [`Appended::Known`]. After an error
//!   the caller may append the same batch again; what was stored by the failed call then answers `Known`. Callers
//!   must not rely on a batch being atomic. Sequences strictly increase, not always by one. `observed_at` is stamped
//!   here and never decreases along the log.
//! - **Read.** There is one read path, [`Bus::log`], on every backend. An event is readable there only after it is
//!   durable, and at the latest when its append has returned.
//! - **Key-value.** Revisions are per bucket, increase, and are never reused. `create`, `update` and `delete` are
//!   compare-and-set and durable when they return; a lost race answers [`KvError::Conflict`] and changes nothing.
//! - **Lease.** At most one holder per name; [`Fence`] grows with each holder, and an append with an older fence
//!   answers [`AppendError::Fenced`], for ever.
//! - **Erase.** After [`Bus::erase`] nothing that was readable when it was called gives an event of the SIM, or its ICCID,
//!   any more, here and on every gateway of the bus; ids stay known, positions stay positions, and readers get no gap.
//!   What is appended from then on is stored as ever. Erasing again does no harm.
//! - **Errors** say whether retrying can help ([`AppendError::retryable`], [`KvError::retryable`]).

pub mod conformance;
pub mod embedded;
pub mod jetstream;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::{
    event::{Event, Iccid, SealError},
    log::Log,
};

/// An event to append.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event; its `id` is what appends are deduplicated by.
    pub event: Event,
    /// [`Identity::hash`](crate::event::Identity::hash), kept beside the id to tell conflicts from repeats.
    pub identity: u64,
    /// Hash of the non-volatile content, kept beside the id to count revisions.
    pub content: u32,
}

/// What became of one event of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Stored at this sequence.
    Stored(u64),
    /// Its id was known, at this sequence if it is still kept.
    Known(u64),
}

/// Proof of being the current holder of a lease; grows with each holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// Why a batch was not, or not wholly, appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The event can't be stored as it is; the others of the batch were not stored either.
    #[error("event {index} of the batch can't be stored: {source}")]
    BadEvent {
        /// Its place in the batch.
        index: usize,
        /// Why.
        source: SealError,
    },
    /// The store can't take it now: disk full, I/O error, server away.
    #[error("the log can't be written: {0}")]
    Unavailable(String),
    /// Another holder has taken over; this one must stop.
    #[error("another gateway has taken over polling")]
    Fenced,
    /// The gateway is stopping.
    #[error("the log is closed")]
    Closed,
}

impl AppendError {
    /// Whether the same batch may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// The key-value buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bucket {
    /// Poller state: floor, probe, ledger. Documented, others may read it.
    State,
    /// Webhook endpoints.
    Endpoints,
    /// Webhook positions.
    Cursors,
    /// Leases.
    Lease,
}

impl Bucket {
    /// Name without the stream's prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Endpoints => "endpoints",
            Self::Cursors => "cursors",
            Self::Lease => "lease",
        }
    }
}

/// A value with the revision that compare-and-set needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Revision of this write, unique in its bucket.
    pub revision: u64,
    /// Value.
    pub value: Bytes,
}

/// One thing that a watcher sees: first the entries that exist, then `Synced`, then changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Written.
    Put(Entry),
    /// Deleted.
    Deleted {
        /// Key.
        key: String,
    },
    /// All entries that existed when the watch began have been sent.
    Synced,
}

/// Why a key-value call failed.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// Somebody else wrote first; nothing was changed.
    #[error("the key was changed by somebody else")]
    Conflict,
    /// The store can't be reached or written.
    #[error("the key-value store is unavailable: {0}")]
    Unavailable(String),
}

impl KvError {
    /// Whether the same call may succeed later without reading again.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Begins the key under which what is known of one SIM lies in [`Bucket::State`]; its ICCID follows. [`Bus::erase`]
/// removes it.
pub const SIM_KEY_PREFIX: &str = "sim/";
/// The same of a device; its id follows. [`Bus::erase`] removes those whose value names the SIM.
pub const DEVICE_KEY_PREFIX: &str = "device/";

/// Whether an entry of [`Bucket::State`] is of a SIM.
fn is_of_sim(entry: &Entry, iccid: &str) -> bool {
    let names_it = || memchr::memmem::find(&entry.value, iccid.as_bytes()).is_some();
    entry.key.strip_prefix(SIM_KEY_PREFIX) == Some(iccid)
        || (entry.key.starts_with(DEVICE_KEY_PREFIX) && names_it())
}

/// What [`Bus::erase`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Erased {
    /// Events of the SIM.
    pub events: u64,
    /// Other records that mentioned it and do so no more.
    pub mentions: u64,
    /// Entries of the key-value buckets.
    pub keys: u64,
    /// What could not be removed, and what to do about it.
    pub left: Vec<Left>,
}

/// Something that an erasure knows of and could not remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// What it is and where.
    pub what: String,
    /// How it is removed.
    pub cure: String,
}

/// An erasure was not, or not wholly, done. Asking again goes on.
#[derive(Debug, thiserror::Error)]
#[error("the SIM can't be erased now: {0}; ask again, what is done stays done")]
pub struct EraseError(pub String);

/// A lease that is held until it is dropped or lost.
#[derive(Debug)]
pub struct Lease {
    /// Passed to [`Bus::append`].
    pub fence: Fence,
    /// Becomes true when the lease is lost; the holder must stop at once.
    pub lost: watch::Receiver<bool>,
    /// Dropping it releases the lease.
    pub release: tokio_util::sync::DropGuard,
}

/// What an operator must know of the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// `embedded` or `nats`.
    pub kind: &'static str,
    /// What an acknowledged append survives, one sentence.
    pub durability: String,
    /// Where that is less than one would expect: what may be lost, and the cure.
    pub warning: Option<String>,
    /// None while appends can succeed; otherwise why not.
    pub unwritable: Option<String>,
}

/// How far [`Bus::log`] is with holding what has been appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fill {
    /// What was there when the bus was opened is readable, and whatever is appended becomes so.
    Complete,
    /// A copy is being filled: what lies behind `upto` can't be read yet, ids that lie there are not known yet, and
    /// appends wait.
    Filling {
        /// Sequence up to which it is complete.
        upto: u64,
        /// Sequence up to which it must be.
        of: u64,
    },
    /// It holds a history that is no more. Close the bus and open it again; until then reads give the old history
    /// and appends fail.
    Stale {
        /// What happened.
        reason: String,
    },
}

/// The backend. See the contract at the head of this file.
#[async_trait]
pub trait Bus: Send + Sync + std::fmt::Debug + 'static {
    /// Makes a batch durable. At most 1,000 events.
    async fn append(&self, batch: Vec<NewEvent>, fence: Option<Fence>) -> Result<Vec<Appended>, AppendError>;

    /// The one read path.
    fn log(&self) -> &Arc<Log>;

    /// Reads a key.
    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError>;

    /// Writes a key that must not exist; gives its revision.
    async fn kv_create(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError>;

    /// Writes a key that must be at `revision`; gives the new one.
    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, revision: u64)
    -> Result<u64, KvError>;

    /// Writes a key whatever it holds; gives the new revision.
    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError>;

    /// Deletes a key that must be at `revision`.
    async fn kv_delete(&self, bucket: Bucket, key: &str, revision: u64) -> Result<(), KvError>;

    /// All entries whose key starts with `prefix`, by key.
    async fn kv_list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError>;

    /// Follows the entries whose key starts with `prefix`. A watcher that falls 1,024 changes behind is ended and
    /// must watch again.
    async fn kv_watch(&self, bucket: Bucket, prefix: &str) -> Result<mpsc::Receiver<Change>, KvError>;

    /// Takes the lease `name`, waiting for its holder to release or lose it.
    async fn lease(&self, name: &str, ttl: Duration) -> Result<Lease, KvError>;

    /// Removes what is stored of a SIM so far. One at a time.
    async fn erase(&self, iccid: &Iccid) -> Result<Erased, EraseError>;

    /// SIMs that another gateway erased, and this one now too: for what else keeps something of them. A message of it
    /// may be missing where nobody took them for long. The first caller gets it.
    fn erased_elsewhere(&self) -> Option<mpsc::Receiver<String>> {
        None
    }

    /// Whether other gateways may use the same store at the same time. If not, whatever an earlier process held is free.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether [`Bus::log`] holds everything; a backend whose log is the only one is always complete, and its
    /// receiver never changes.
    fn fill(&self) -> watch::Receiver<Fill> {
        watch::Sender::new(Fill::Complete).subscribe()
    }

    /// State of the backend.
    fn health(&self) -> Health;

    /// Finishes what is being written, then closes. Appends answer [`AppendError::Closed`] from then on.
    async fn shutdown(&self);
}
