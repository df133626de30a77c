//! The index of a segment that is being written, or whose sidecar is not made yet.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use smallvec::SmallVec;

use super::{DayKey, Index, Lost, Record, Take, sidecar::Summary, terms_of};
use crate::{
    event::{Keys, cursor, identity::id_hash},
    log::{
        KnownId,
        record::{Damaged, Frame, Tombstone},
    },
};

/// Grows by appending; knows everything that the sidecar will hold.
#[derive(Debug, Default, Clone)]
pub(crate) struct LiveIndex {
    pub(crate) records: Vec<Record>,
    pub(crate) holes: Vec<(u64, u64)>,
    pub(crate) ids: HashMap<u128, KnownId>,
    pub(crate) postings: HashMap<u64, SmallVec<[u32; 3]>>,
    /// Upstream's events by day and type.
    pub(crate) days: BTreeMap<DayKey, u32>,
    /// Records found damaged, by position.
    pub(crate) lost: Vec<Lost>,
    /// Smallest and largest event time, microseconds.
    pub(crate) times: Option<(i64, i64)>,
    pub(crate) end: u64,
    /// Records that hold the places of erased events.
    pub(crate) erased: u64,
}

/// All that the index keeps of a record, worked out before the index is locked.
#[derive(Debug, Clone)]
pub(crate) struct Indexed {
    record: Record,
    bytes: u64,
    id: u128,
    known: KnownId,
    terms: [Option<u64>; 3],
    day: Option<DayKey>,
}

impl Indexed {
    pub(crate) fn new(frame: &Frame<'_>, keys: &Keys<'_>, offset: u64) -> Self {
        let Frame { seq, identity, content, .. } = *frame;
        Self {
            record: Record {
                seq,
                observed_us: keys.observed_us,
                offset: offset as u32,
                tag: cursor::tag(keys.id),
                time_us: keys.time_us,
                erased: false,
            },
            bytes: frame.bytes() as u64,
            id: id_hash(keys.id),
            known: KnownId { seq, identity, content },
            terms: terms_of(keys),
            day: DayKey::of(keys),
        }
    }

    /// Of what stays of an erased event. No term finds it.
    pub(crate) fn erased(tombstone: &Tombstone, bytes: usize, offset: u64) -> Self {
        let Tombstone { seq, identity, content, id, tag, observed_us, time_us, day } = *tombstone;
        Self {
            record: Record { seq, observed_us, offset: offset as u32, tag, time_us, erased: true },
            bytes: bytes as u64,
            id,
            known: KnownId { seq, identity, content },
            terms: [None; 3],
            day,
        }
    }

    /// Of a frame, whichever of both it holds.
    ///
    /// # Errors
    /// [`Damaged`] where it holds neither.
    pub(crate) fn of(frame: &Frame<'_>, offset: u64) -> Result<Self, Damaged> {
        match frame.tombstone() {
            Some(tombstone) => Ok(Self::erased(&tombstone, frame.bytes(), offset)),
            None => frame.keys().map(|keys| Self::new(frame, &keys, offset)),
        }
    }

    /// As if it lay `by` bytes later.
    pub(crate) fn moved(mut self, by: u64) -> Self {
        self.record.offset += by as u32;
        self
    }
}

impl LiveIndex {
    /// An index of a segment whose records begin at `offset`.
    pub(crate) fn starting_at(offset: u64) -> Self {
        Self { end: offset, ..Self::default() }
    }

    /// What the sidecar's header will say.
    pub(crate) fn summary(&self, base_seq: u64, last_seq: u64) -> Summary {
        let first = self.records.first();
        let hole = self.holes.first().map(|(first, _)| *first);
        let record = first.map(|record| record.seq);
        Summary {
            base_seq,
            last_seq,
            bytes: self.end,
            records: (self.records.len() - self.lost.len()) as u64 - self.erased,
            first_seq: hole.into_iter().chain(record).min(),
            observed: first.zip(self.records.last()).map(|(a, b)| (a.observed_us, b.observed_us)),
            times: self.times,
        }
    }

    /// Positions that can't be read, as a frame says that ends at `end`.
    pub(crate) fn add_hole(&mut self, (first, last): (u64, u64), end: u64) {
        self.end = end;
        match self.holes.last_mut() {
            Some(before) if before.1 + 1 == first => before.1 = last,
            _ => self.holes.push((first, last)),
        }
    }

    pub(crate) fn add(&mut self, indexed: Indexed) {
        let Indexed { record, bytes, id, known, terms, day } = indexed;
        let ordinal = self.records.len() as u32;
        self.records.push(record);
        self.erased += u64::from(record.erased);
        self.end = u64::from(record.offset) + bytes;
        self.ids.insert(id, known);
        for term in terms.into_iter().flatten() {
            self.postings.entry(term).or_default().push(ordinal);
        }
        if let Some(day) = day {
            *self.days.entry(day).or_default() += 1;
        }
        let time_us = record.time_us;
        let (low, high) = self.times.unwrap_or((time_us, time_us));
        self.times = Some((low.min(time_us), high.max(time_us)));
    }
}

impl Index for LiveIndex {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn record(&self, ordinal: usize) -> Record {
        self.records[ordinal]
    }

    fn end(&self) -> u64 {
        self.end
    }

    fn find(&self, id: u128) -> Option<KnownId> {
        self.ids.get(&id).copied()
    }

    fn holes(&self) -> Vec<(u64, u64)> {
        self.holes.clone()
    }

    fn days(&self) -> Vec<(DayKey, u32)> {
        self.days.iter().map(|(key, count)| (*key, *count)).collect()
    }

    fn lost(&self) -> Vec<Lost> {
        self.lost.clone()
    }

    fn postings(&self, term: u64, range: Range<u32>, take: Take, out: &mut Vec<u32>) {
        let Some(list) = self.postings.get(&term) else { return };
        let start = list.partition_point(|ordinal| *ordinal < range.start);
        let end = list.partition_point(|ordinal| *ordinal < range.end);
        out.extend_from_slice(&list[take.of(start, end)]);
    }
}
