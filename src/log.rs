//! The stored stream. (In-memory reading side; segments follow.)

use std::collections::HashMap;

use jiff::Timestamp;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::event::{Cursor, GapReason, Predicate, Sealed, StoredEvent, cursor::tag, identity::id_hash};

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
#[derive(Debug)]
pub struct Log {
    incarnation: u64,
    inner: RwLock<Inner>,
    edge: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<StoredEvent>,
    ids: HashMap<u128, KnownId>,
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
    /// A log that lives in memory only.
    pub fn in_memory(incarnation: u64) -> Self {
        Self { incarnation, inner: RwLock::default(), edge: watch::Sender::new(0) }
    }

    /// Identity of this log, made when it was created.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What is kept.
    pub fn bounds(&self) -> Bounds {
        let inner = self.inner.read();
        let time = |e: Option<&StoredEvent>| {
            e.and_then(|e| e.keys().ok().and_then(|k| Timestamp::from_microsecond(k.observed_us).ok()))
        };
        Bounds {
            incarnation: self.incarnation,
            first_seq: inner.events.first().map_or(*self.edge.borrow() + 1, StoredEvent::seq),
            last_seq: *self.edge.borrow(),
            events: inner.events.len() as u64,
            first_time: time(inner.events.first()),
            last_time: time(inner.events.last()),
        }
    }

    /// Sequence of the newest readable event; changes after each append.
    pub fn edge(&self) -> watch::Receiver<u64> {
        self.edge.subscribe()
    }

    /// Appends entries whose ids are not known, in order; gives their sequences. Blocks on the disk.
    ///
    /// # Errors
    /// Where the disk refuses; nothing is readable then of what was not durable.
    pub fn append(&self, entries: Vec<Entry>) -> std::io::Result<Vec<u64>> {
        let mut seqs = Vec::with_capacity(entries.len());
        let mut inner = self.inner.write();
        let mut last = *self.edge.borrow();
        for Entry { sealed, identity, content } in entries {
            last += 1;
            inner.ids.insert(id_hash(&sealed.id), KnownId { seq: last, identity, content });
            inner.events.push(sealed.at(last));
            seqs.push(last);
        }
        drop(inner);
        self.edge.send_replace(last);
        Ok(seqs)
    }

    /// Why appends fail at the moment; None while they can succeed.
    pub fn unwritable(&self) -> Option<String> {
        None
    }

    /// What is remembered of an id.
    pub fn find(&self, id: &str) -> Option<KnownId> {
        self.inner.read().ids.get(&id_hash(id)).copied()
    }

    /// The event at a sequence.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn get(&self, seq: u64) -> Result<Option<StoredEvent>, ReadError> {
        let inner = self.inner.read();
        Ok(inner.events.binary_search_by_key(&seq, StoredEvent::seq).ok().map(|i| inner.events[i].clone()))
    }

    /// Reads matches, bounded in events, bytes and records looked at; a page may be empty and still make progress.
    ///
    /// # Errors
    /// [`ReadError::Expired`] going forward from before the oldest event.
    pub fn read(&self, request: ReadRequest<'_>) -> Result<ReadPage, ReadError> {
        let inner = self.inner.read();
        let first_seq = inner.events.first().map_or(0, StoredEvent::seq);
        if request.direction == Direction::Forward && request.from + 1 < first_seq {
            return Err(ReadError::Expired { first_seq });
        }
        let mut page = ReadPage { next: request.from, at_end: true, ..Default::default() };
        let mut bytes = 0;
        let mut visit = |event: &StoredEvent| {
            let Ok(keys) = event.keys() else { return true };
            if request.predicate.matches(&keys) {
                if page.events.len() >= request.limit
                    || (bytes + event.bytes() > request.max_bytes && bytes > 0)
                {
                    page.at_end = false;
                    return false;
                }
                bytes += event.bytes();
                page.events.push(event.clone());
            }
            page.next = event.seq();
            true
        };
        match request.direction {
            Direction::Forward => {
                let at = inner.events.partition_point(|e| e.seq() <= request.from);
                inner.events[at..].iter().all(&mut visit);
            }
            Direction::Backward => {
                let at = inner.events.partition_point(|e| e.seq() < request.from);
                inner.events[..at].iter().rev().all(&mut visit);
            }
        }
        Ok(page)
    }

    /// The position (exclusive) before the first event observed at or after `time`.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn position_at(&self, time: Timestamp) -> Result<u64, ReadError> {
        let inner = self.inner.read();
        let us = time.as_microsecond();
        let at = inner.events.partition_point(|e| e.keys().is_ok_and(|k| k.observed_us < us));
        Ok(inner.events.get(at).map_or(*self.edge.borrow(), |e| e.seq() - 1))
    }

    /// The cursor of a position: tagged with the last event at or before it.
    pub fn cursor_at(&self, seq: u64) -> Cursor {
        let inner = self.inner.read();
        let at = inner.events.partition_point(|e| e.seq() <= seq);
        let tag = at.checked_sub(1).and_then(|i| inner.events[i].keys().ok()).map_or(0, |k| tag(k.id));
        Cursor { incarnation: self.incarnation, seq, tag }
    }

    /// Checks that a cursor is a position of this log; gives the position.
    ///
    /// # Errors
    /// [`CursorState`] says in which way it is not.
    pub fn check(&self, cursor: Cursor) -> Result<u64, CursorState> {
        if cursor.incarnation != self.incarnation {
            return Err(CursorState::OtherIncarnation);
        }
        if cursor.seq > *self.edge.borrow() {
            return Err(CursorState::Regressed);
        }
        let first = self.bounds().first_seq;
        if cursor.seq + 1 < first {
            return Err(CursorState::Expired);
        }
        if cursor.seq >= first && self.cursor_at(cursor.seq).tag != cursor.tag {
            return Err(CursorState::Regressed);
        }
        Ok(cursor.seq)
    }
}
