//! The stored stream: what has been appended, readable by everyone, in files of its own.
//!
//! The log is a row of segment files. Events are appended to the last one as checksummed frames ([`record`]) and are
//! visible once the disk has confirmed them ([`append`]). Each segment has an index ([`index`]) by id, SIM, device,
//! event type and time: in memory while it grows, a sidecar file afterwards. Sidecars are derived: one that is
//! missing or damaged is made again ([`recovery`]). Old segments are unlinked whole ([`retention`]). Readers
//! ([`reader`]) check every record, and report what is damaged as a [`Hole`] instead of delivering it; its id is
//! forgotten, so that the poller can append the event again ([`damage`]).

mod append;
mod copy;
mod damage;
mod days;
mod disk;
pub mod follow;
mod index;
mod positions;
mod reader;
mod record;
mod recovery;
mod retention;
mod segment;
mod state;

use std::{collections::BTreeSet, io, path::Path, sync::Arc};

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::event::{Cursor, GapReason, Predicate, Sealed, StoredEvent};

use self::{
    append::Writer,
    damage::Care,
    disk::{Disk, MemoryDisk, OsDisk, Untouched},
    state::State,
};

pub use copy::{Copied, CopyPage};
pub use damage::{DAMAGED, Damage, LostRecord};
pub use record::BODY_BYTES_MAX;

/// How a log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Identity of a log that has to be created; an existing log keeps its own.
    pub incarnation: u64,
    /// Position at which a log that has to be created begins: what lies before it counts as gone, not as missing.
    pub first_seq: u64,
    /// Size at which a segment is finished and the next begun; at most [`SEGMENT_BYTES_MAX`].
    pub segment_bytes: u64,
    /// Days that events are kept.
    pub retention_days: u32,
    /// Bytes of segments that are kept.
    pub retention_bytes: u64,
    /// Bytes of the newest events held in memory.
    pub recent_bytes: usize,
    /// Whether an append is synced before it is shown. A copy that can be made again needs that once a segment only: what
    /// a loss of power took from its end comes again, and what it damaged is found like any damage.
    pub syncs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            incarnation: 1,
            first_seq: 1,
            segment_bytes: 64 << 20,
            retention_days: 7,
            retention_bytes: 10 << 30,
            recent_bytes: 8 << 20,
            syncs: true,
        }
    }
}

/// Largest segment; offsets in a segment must fit 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// What the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Identity of the log.
    pub incarnation: u64,
    /// Sequence of the oldest event kept; `last_seq + 1` when none is.
    pub first_seq: u64,
    /// Sequence of the newest event ever appended; 0 before the first.
    pub last_seq: u64,
    /// Events kept.
    pub events: u64,
    /// `observed_at` of the oldest event kept.
    pub first_time: Option<Timestamp>,
    /// `observed_at` of the newest event kept.
    pub last_time: Option<Timestamp>,
}

/// What is remembered of an id, longer than its event is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownId {
    /// Where the event is or was.
    pub seq: u64,
    /// As given to append.
    pub identity: u64,
    /// As given to append.
    pub content: u32,
}

/// Which way to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From `from` (exclusive) upwards.
    Forward,
    /// From `from` (exclusive) downwards.
    Backward,
}

/// A bounded read.
#[derive(Debug, Clone, Copy)]
pub struct ReadRequest<'a> {
    /// Position to read from, exclusive. `u64::MAX` with [`Direction::Backward`] is the newest.
    pub from: u64,
    /// Which way.
    pub direction: Direction,
    /// What to give.
    pub predicate: &'a Predicate,
    /// At most so many events.
    pub limit: usize,
    /// At most so many bytes of bodies, but at least one event.
    pub max_bytes: usize,
}

/// What a read gave.
#[derive(Debug, Clone, Default)]
pub struct ReadPage {
    /// Matches, in the direction of the read.
    pub events: Vec<StoredEvent>,
    /// Position evaluated so far: the `from` of the next read. Moves past what does not match.
    pub next: u64,
    /// Nothing more lies in this direction at the moment.
    pub at_end: bool,
    /// Ranges that can't be read.
    pub holes: Vec<Hole>,
}

/// A range of the log that can't be delivered, both ends inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// First position missing.
    pub first_seq: u64,
    /// Last position missing.
    pub last_seq: u64,
    /// Why.
    pub reason: GapReason,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The position lies before the oldest event kept.
    #[error("the position is older than what is kept; the oldest event is {first_seq}")]
    Expired {
        /// Oldest kept.
        first_seq: u64,
    },
    /// The disk refused.
    #[error("the log can't be read: {0}")]
    Io(#[from] std::io::Error),
}

/// What is wrong with a cursor; reading may go on from the oldest event or the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorState {
    /// Older than what is kept.
    #[error("the cursor is older than what is kept")]
    Expired,
    /// Of another log.
    #[error("the cursor belongs to another log")]
    OtherIncarnation,
    /// The log went back in time: at that position lies another event, or none yet.
    #[error("the log no longer holds the event of the cursor")]
    Regressed,
}

/// The log of one gateway.
pub struct Log {
    incarnation: u64,
    options: Options,
    disk: Arc<dyn Disk>,
    state: RwLock<State>,
    /// Held while appending.
    writer: Mutex<Writer>,
    /// Held while sidecars are written and segments removed.
    maintenance: Mutex<Care>,
    /// Position after which somebody has still to read.
    held: Mutex<Option<u64>>,
    /// Segments in which a reader met damage since the last maintenance, by where they begin.
    suspects: Mutex<BTreeSet<u64>>,
    damage: watch::Sender<Arc<Vec<Damage>>>,
    /// Why the last append failed.
    trouble: Mutex<Option<String>>,
    edge: watch::Sender<u64>,
}

impl std::fmt::Debug for Log {
    /// Without the events: they hold what no log line may.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let last_seq = *self.edge.borrow();
        f.debug_struct("Log").field("last_seq", &last_seq).field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// An event with what is remembered of its id.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The event.
    pub sealed: Sealed,
    /// See [`KnownId::identity`].
    pub identity: u64,
    /// See [`KnownId::content`].
    pub content: u32,
}

impl Log {
    /// Opens the log in a directory, or creates it, and repairs what a crash left. The caller sees to it that nobody
    /// else has the directory. Blocks on the disk.
    ///
    /// # Errors
    /// Where the disk refuses, or the files belong to another log or a later version.
    pub fn open(directory: &Path, options: Options) -> io::Result<Self> {
        Self::open_on(Arc::new(OsDisk::open(directory)?), options)
    }

    /// Opens the log in a directory and leaves every file of it as it is: what recovery would repair is repaired in
    /// memory. Nothing may be appended. The caller sees to it that nobody else has the directory.
    ///
    /// # Errors
    /// As [`Log::open`]; also where there is no directory.
    pub fn open_untouched(directory: &Path) -> io::Result<Self> {
        Self::open_on(Arc::new(Untouched::open(directory)?), Options::default())
    }

    /// A log that lives in memory only.
    ///
    /// # Panics
    /// Never: memory refuses nothing.
    pub fn in_memory(incarnation: u64) -> Self {
        Self::in_memory_with(Options {
            incarnation,
            segment_bytes: 8 << 20,
            retention_bytes: 256 << 20,
            ..Options::default()
        })
    }

    /// As [`Log::in_memory`], kept as `options` say.
    ///
    /// # Panics
    /// Never: memory refuses nothing.
    pub fn in_memory_with(options: Options) -> Self {
        match Self::open_on(Arc::new(MemoryDisk::default()), options) {
            Ok(log) => log,
            Err(error) => unreachable!("memory refused: {error}"),
        }
    }

    fn open_on(disk: Arc<dyn Disk>, mut options: Options) -> io::Result<Self> {
        options.segment_bytes = options.segment_bytes.min(SEGMENT_BYTES_MAX);
        let recovery::Recovered { incarnation, state } = recovery::recover(&*disk, &options)?;
        let edge = watch::Sender::new(state.last_seq());
        Ok(Self {
            incarnation,
            options,
            disk,
            state: RwLock::new(state),
            writer: Mutex::default(),
            maintenance: Mutex::default(),
            held: Mutex::default(),
            suspects: Mutex::default(),
            damage: watch::Sender::default(),
            trouble: Mutex::default(),
            edge,
        })
    }

    /// Identity of this log, made when it was created.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What is kept.
    pub fn bounds(&self) -> Bounds {
        self.state.read().bounds(self.incarnation)
    }

    /// First position that is not gone, readable or not: at or before [`Bounds::first_seq`].
    pub fn begins_at(&self) -> u64 {
        self.state.read().first_position()
    }

    /// Until when events happened whose bytes retention has removed and whose ids are still known; None where there
    /// are none. The time of the latest one.
    pub fn retired_until(&self) -> Option<Timestamp> {
        let state = self.state.read();
        let times = state.retired.iter().filter_map(|ids| ids.summary().times);
        times.map(|(_, last)| last).max().and_then(|us| Timestamp::from_microsecond(us).ok())
    }

    /// Sequence of the newest readable event; changes after each append.
    pub fn edge(&self) -> watch::Receiver<u64> {
        self.edge.subscribe()
    }

    /// Appends entries whose ids are not known, in order; gives their sequences. Blocks on the disk.
    ///
    /// # Errors
    /// Where the disk refuses; nothing is readable then of what was not durable.
    pub fn append(&self, entries: Vec<Entry>) -> io::Result<Vec<u64>> {
        self.append_next(entries)
    }

    /// Why appends fail at the moment; None while they can succeed.
    pub fn unwritable(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// What is remembered of an id.
    pub fn find(&self, id: &str) -> Option<KnownId> {
        self.try_find(id).unwrap_or_else(|error| {
            tracing::error!(%error, id, "an id can't be looked up in the log");
            None
        })
    }

    /// The event at a sequence.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn get(&self, seq: u64) -> Result<Option<StoredEvent>, ReadError> {
        Ok(self.read_one(seq)?)
    }

    /// Reads matches, bounded in events, bytes and records looked at; a page may be empty and still make progress.
    ///
    /// # Errors
    /// [`ReadError::Expired`] going forward from before the oldest event.
    pub fn read(&self, request: ReadRequest<'_>) -> Result<ReadPage, ReadError> {
        self.read_page(request)
    }

    /// The position (exclusive) before the first event observed at or after `time`.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn position_at(&self, time: Timestamp) -> Result<u64, ReadError> {
        Ok(self.position_before(time)?)
    }

    /// The cursor of a position: tagged with the last event at or before it.
    pub fn cursor_at(&self, seq: u64) -> Cursor {
        self.cursor_of(seq)
    }

    /// Checks that a cursor is a position of this log; gives the position.
    ///
    /// # Errors
    /// [`CursorState`] says in which way it is not.
    pub fn check(&self, cursor: Cursor) -> Result<u64, CursorState> {
        self.check_cursor(cursor)
    }

    /// Smallest and largest event time kept, as events tell them; None where nothing is kept.
    pub fn event_times(&self) -> Option<(Timestamp, Timestamp)> {
        let (low, high) = self.state.read().event_times()?;
        Timestamp::from_microsecond(low).ok().zip(Timestamp::from_microsecond(high).ok())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A log on a disk that fails on command, for tests of what is built on it.

    use super::*;

    pub(crate) use super::disk::MemoryDisk;

    pub(crate) fn open_on(disk: &Arc<MemoryDisk>, options: Options) -> Arc<Log> {
        match Log::open_on(Arc::clone(disk) as Arc<dyn Disk>, options) {
            Ok(log) => Arc::new(log),
            Err(error) => panic!("{error}"),
        }
    }

    /// Changes a bit in the body of a stored event where it lies on the disk, found by a text that only it holds.
    pub(crate) fn damage(disk: &MemoryDisk, text: &str) {
        for (name, bytes) in disk.contents().into_iter().filter(|(name, _)| name.ends_with(".seg")) {
            if let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) {
                disk.flip(&name, at, 1);
                return;
            }
        }
        panic!("no event holds {text}");
    }
}

#[cfg(test)]
mod tests;
