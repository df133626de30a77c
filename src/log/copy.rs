//! Reading everything that a log keeps of its positions, to write it elsewhere.
//!
//! Readers get events; a copy also needs what is remembered of their ids, and each position in turn, readable or not.

use std::io;

use jiff::Timestamp;

use super::{
    Direction, Entry, Log, ReadError,
    reader::{Plan, plan},
    record::{Frame, Seed},
    segment::load,
};
use crate::event::Sealed;

/// Bytes of bodies in one page, but at least one event.
const PAGE_BYTES: usize = 4 << 20;

/// What lies at one or more positions.
#[derive(Debug, Clone)]
pub enum Copied {
    /// An event.
    Event(u64, Entry),
    /// Positions that can't be read, both ends inclusive.
    Hole(u64, u64),
}

impl Copied {
    /// First position.
    pub fn first_seq(&self) -> u64 {
        match self {
            Self::Event(seq, _) | Self::Hole(seq, _) => *seq,
        }
    }

    /// Last position.
    pub fn last_seq(&self) -> u64 {
        match self {
            Self::Event(seq, _) | Self::Hole(_, seq) => *seq,
        }
    }
}

/// Some positions, in order.
#[derive(Debug, Clone, Default)]
pub struct CopyPage {
    /// What lies there. A position that nothing of this covers was never used.
    pub items: Vec<Copied>,
    /// Evaluated up to here: where the next page begins.
    pub next: u64,
    /// Nothing more follows.
    pub at_end: bool,
}

impl Log {
    /// The next positions behind `after`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn copy_after(&self, after: u64) -> Result<CopyPage, ReadError> {
        let (file, plan) = {
            let state = self.state.read();
            if after >= state.last_seq() {
                return Ok(CopyPage { items: Vec::new(), next: after, at_end: true });
            }
            if after.saturating_add(1) < state.first_position() {
                return Err(ReadError::Expired { first_seq: state.first_seq() });
            }
            let place = state.sealed.partition_point(|one| one.summary.last_seq <= after);
            match state.sealed.get(place).cloned() {
                Some(segment) => {
                    drop(state);
                    let index = segment.index()?;
                    let span = (segment.first_position(), segment.summary.last_seq);
                    let holes = segment.holes(&*index);
                    (segment.file.clone(), plan(&*index, &holes, span, after, Direction::Forward, None))
                }
                None => {
                    let active = &state.active;
                    let (index, span) = (&active.index, (active.base_seq, active.last_seq));
                    let plan = plan(index, &index.holes, span, after, Direction::Forward, None);
                    (active.file.clone(), plan)
                }
            }
        };
        let Plan { loads, holes, mut to, .. } = plan;
        let (mut items, mut bytes, mut before) = (Vec::new(), 0, after);
        load(&*file, Seed::of(self.incarnation), &loads, |seq, frame| {
            if bytes >= PAGE_BYTES {
                to = before;
                return false;
            }
            before = seq;
            match frame.ok().and_then(|frame| entry(&frame)) {
                Some(entry) => {
                    bytes += entry.sealed.body.len();
                    items.push(Copied::Event(seq, entry));
                }
                None => items.push(Copied::Hole(seq, seq)),
            }
            true
        })?;
        let within = |(first, last): (u64, u64)| (first.max(after + 1), last.min(to));
        let holes = holes.into_iter().map(within).filter(|(first, last)| first <= last);
        items.extend(holes.map(|(first, last)| Copied::Hole(first, last)));
        items.sort_by_key(Copied::first_seq);
        Ok(CopyPage { items, next: to, at_end: false })
    }

    /// Whether a directory holds a log.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn is_in(directory: &std::path::Path) -> io::Result<bool> {
        match std::fs::read_dir(directory) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn entry(frame: &Frame<'_>) -> Option<Entry> {
    let keys = frame.keys().ok()?;
    let sealed = Sealed {
        id: keys.id.to_owned(),
        keys_len: frame.keys_len,
        observed_at: Timestamp::from_microsecond(keys.observed_us).ok()?,
        body: bytes::Bytes::copy_from_slice(frame.body),
    };
    Some(Entry { sealed, identity: frame.identity, content: frame.content })
}
