//! What readers see: finished segments, the one that grows, and the newest events in memory.
//!
//! It changes only after the disk has confirmed, in one step under its lock; readers hold that lock for the time it
//! takes to look up or clone a bounded number of entries, never while the disk works.

use std::{collections::VecDeque, io, sync::Arc};

use jiff::Timestamp;

use super::{
    Bounds, Direction,
    disk::{Disk, DiskFile},
    index::{
        live::{Indexed, LiveIndex},
        sidecar::Sidecar,
    },
    segment::{FILE_HEADER_BYTES, Segment, file_header, segment_name},
};
use crate::event::StoredEvent;

/// The segment that is appended to.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) base_seq: u64,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) index: LiveIndex,
    /// Last position ever given, in this segment or before it.
    pub(crate) last_seq: u64,
}

impl Active {
    /// Creates the file; nothing may be appended before it is [confirmed](Self::confirm).
    pub(crate) fn create(disk: &dyn Disk, incarnation: u64, base_seq: u64) -> io::Result<Self> {
        let file = disk.create(&segment_name(base_seq))?;
        file.write_at(&file_header(incarnation, base_seq), 0)?;
        let index = LiveIndex::starting_at(FILE_HEADER_BYTES);
        Ok(Self { base_seq, file, index, last_seq: base_seq.saturating_sub(1) })
    }

    /// Makes the file and its name durable.
    pub(crate) fn confirm(&self, disk: &dyn Disk) -> io::Result<()> {
        self.file.sync()?;
        disk.sync()
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct State {
    /// Oldest first.
    pub(crate) sealed: Arc<Vec<Arc<Segment>>>,
    pub(crate) active: Active,
    /// Ids of segments that are gone, oldest first.
    pub(crate) retired: Arc<Vec<Arc<Sidecar>>>,
    pub(crate) recent: Recent,
}

impl State {
    pub(crate) fn new(
        sealed: Vec<Arc<Segment>>,
        active: Active,
        retired: Vec<Arc<Sidecar>>,
        recent_bytes: usize,
    ) -> Self {
        let recent =
            Recent { events: VecDeque::new(), after: active.last_seq, bytes: 0, bytes_max: recent_bytes };
        Self { sealed: Arc::new(sealed), active, retired: Arc::new(retired), recent }
    }

    /// Last position ever given.
    pub(crate) fn last_seq(&self) -> u64 {
        self.active.last_seq
    }

    /// First position kept; the one after the last where nothing is kept.
    pub(crate) fn first_seq(&self) -> u64 {
        let sealed = self.sealed.iter().find_map(|segment| segment.first_seq());
        let active = || self.active.index.summary(self.active.base_seq, 0).first_seq;
        sealed.or_else(active).unwrap_or(self.last_seq() + 1)
    }

    /// First position that is not gone: before the first record where sequences are sparse.
    pub(crate) fn first_position(&self) -> u64 {
        let hole = self.active.index.holes.first().map(|(first, _)| *first);
        let active = || hole.map_or(self.active.base_seq, |hole| hole.min(self.active.base_seq));
        self.sealed.first().map_or_else(active, |segment| segment.first_position())
    }

    pub(crate) fn bounds(&self, incarnation: u64) -> Bounds {
        let active = self.active.index.summary(self.active.base_seq, self.last_seq());
        let all = || self.sealed.iter().map(|segment| segment.summary).chain([active]);
        let time = |us: Option<i64>| us.and_then(|us| Timestamp::from_microsecond(us).ok());
        Bounds {
            incarnation,
            first_seq: self.first_seq(),
            last_seq: self.last_seq(),
            events: all().map(|summary| summary.records).sum(),
            first_time: time(all().find_map(|summary| summary.observed).map(|(first, _)| first)),
            last_time: time(all().filter_map(|summary| summary.observed).map(|(_, last)| last).max()),
        }
    }

    /// Smallest and largest event time kept, microseconds.
    pub(crate) fn event_times(&self) -> Option<(i64, i64)> {
        let sealed = self.sealed.iter().filter_map(|segment| segment.summary.times);
        sealed.chain(self.active.index.times).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// Shows what was made durable.
    pub(crate) fn publish(&mut self, indexed: Vec<Indexed>, events: Vec<StoredEvent>) {
        for one in indexed {
            self.active.index.add(one);
        }
        for event in events {
            self.active.last_seq = event.seq();
            self.recent.push(event);
        }
    }

    /// Shows that nothing can be read at a range of positions. What is in memory ends behind it: readers are told by
    /// the index alone.
    pub(crate) fn publish_hole(&mut self, hole: (u64, u64), end: u64) {
        self.active.index.add_hole(hole, end);
        self.active.last_seq = hole.1;
        self.recent.forget_through(hole.1);
    }

    /// Shows the places of erased events, of which nothing is in memory.
    pub(crate) fn publish_erased(&mut self, indexed: Vec<Indexed>, last_seq: u64) {
        for one in indexed {
            self.active.index.add(one);
        }
        self.active.last_seq = last_seq;
        self.recent.forget_through(last_seq);
    }

    /// Goes on in a new segment; the old one still needs its sidecar.
    pub(crate) fn roll(&mut self, next: Active, incarnation: u64) {
        let old = std::mem::replace(&mut self.active, next);
        let span = (old.base_seq, old.last_seq);
        let segment = Segment::live(old.file, old.index, incarnation, span);
        Arc::make_mut(&mut self.sealed).push(Arc::new(segment));
    }
}

/// The newest events, so that the live tail never reads the disk. Holds every event after position `after`.
#[derive(Debug)]
pub(crate) struct Recent {
    events: VecDeque<StoredEvent>,
    after: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    fn push(&mut self, event: StoredEvent) {
        self.bytes += event.bytes();
        self.events.push_back(event);
        while self.bytes > self.bytes_max {
            let Some(evicted) = self.events.pop_front() else { break };
            self.bytes -= evicted.bytes();
            self.after = evicted.seq();
        }
    }

    /// Gives up the events up to a position: what the disk no longer has is not to be read from here either.
    pub(crate) fn forget_through(&mut self, seq: u64) {
        let end = self.events.partition_point(|event| event.seq() <= seq);
        self.bytes -= self.events.drain(..end).map(|event| event.bytes()).sum::<usize>();
        self.after = self.after.max(seq);
    }

    /// Every event after this position is held.
    pub(crate) fn after(&self) -> u64 {
        self.after
    }

    /// The event at a position.
    pub(crate) fn get(&self, seq: u64) -> Option<StoredEvent> {
        self.events.binary_search_by_key(&seq, StoredEvent::seq).ok().map(|n| self.events[n].clone())
    }

    /// Up to `max` events next to `from` (exclusive), in reading direction, and whether that is all.
    pub(crate) fn next(&self, from: u64, direction: Direction, max: usize) -> (Vec<StoredEvent>, bool) {
        match direction {
            Direction::Forward => {
                let start = self.events.partition_point(|event| event.seq() <= from);
                let end = self.events.len().min(start + max);
                (self.events.range(start..end).cloned().collect(), end == self.events.len())
            }
            Direction::Backward => {
                let end = self.events.partition_point(|event| event.seq() < from);
                let start = end.saturating_sub(max);
                (self.events.range(start..end).rev().cloned().collect(), start == 0)
            }
        }
    }
}
