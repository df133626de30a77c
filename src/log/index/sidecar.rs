//! The index of a finished segment, as a file beside it that is read in place.
//!
//! Layout, little-endian: a header of [`HEADER_BYTES`] with counts, ranges and two CRCs, then the records (32 bytes
//! each), holes (16), a directory of the sorted ids by their first bits (4), the ids (16), what is remembered of
//! each (24), the sorted terms (16), their ordinals (4), the counts by quarter of an hour and type (16) and the records
//! found damaged (32). The first bit of a record's offset, which no segment is long enough for, marks the place of an
//! erased event. When retention removes a segment whose ids must still be known, a sidecar with nothing but ids
//! and counts stays.
//!
//! A sidecar is never trusted: its header is checked when it is opened, the rest before it is first used, and one
//! that is damaged is made again from its segment.

mod encode;

use std::{fmt, ops::Range, sync::OnceLock};

pub(crate) use self::encode::{encode, encode_ids};
use super::{DayKey, Index, Lost, Record, Take, live::LiveIndex};
use crate::log::{
    KnownId,
    disk::Mapped,
    record::{Damaged, u32_at, u64_at},
};

const HEADER_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"scindex\x04";
/// The same layout, with places of erased events: a simcast that does not know them makes its own.
const MAGIC_ERASED: [u8; 8] = *b"scindex\x05";
/// Marks the place of an erased event in the offset of its record.
const ERASED_BIT: u32 = 1 << 31;
const RECORD_BYTES: usize = 32;
const HOLE_BYTES: usize = 16;
const ID_BYTES: usize = 16;
const KNOWN_BYTES: usize = 24;
const TERM_BYTES: usize = 16;
const DAY_BYTES: usize = 16;
const LOST_BYTES: usize = 32;
/// Ids that share a directory entry, about.
const IDS_PER_BUCKET: usize = 8;
/// No segment holds more; keeps arithmetic on damaged counts from overflowing.
const COUNT_MAX: usize = 1 << 28;

/// What a sidecar's header says of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) base_seq: u64,
    /// Last position, readable or not; below `base_seq` where there is none.
    pub(crate) last_seq: u64,
    /// Of the segment file.
    pub(crate) bytes: u64,
    pub(crate) records: u64,
    /// First record or hole.
    pub(crate) first_seq: Option<u64>,
    /// First and last observation, microseconds.
    pub(crate) observed: Option<(i64, i64)>,
    /// Smallest and largest event time, microseconds.
    pub(crate) times: Option<(i64, i64)>,
}

/// An opened sidecar.
pub(crate) struct Sidecar {
    bytes: Mapped,
    layout: Layout,
    summary: Summary,
    sound: OnceLock<bool>,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("summary", &self.summary).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    records: usize,
    holes: usize,
    directory_bits: u32,
    ids: usize,
    terms: usize,
    ordinals: usize,
    days: usize,
    lost: usize,
}

impl Layout {
    fn holes_at(self) -> usize {
        HEADER_BYTES + self.records * RECORD_BYTES
    }
    fn directory_at(self) -> usize {
        self.holes_at() + self.holes * HOLE_BYTES
    }
    fn ids_at(self) -> usize {
        self.directory_at() + 4 * ((1 << self.directory_bits) + 1)
    }
    fn known_at(self) -> usize {
        self.ids_at() + self.ids * ID_BYTES
    }
    fn terms_at(self) -> usize {
        self.known_at() + self.ids * KNOWN_BYTES
    }
    fn ordinals_at(self) -> usize {
        self.terms_at() + self.terms * TERM_BYTES
    }
    fn days_at(self) -> usize {
        self.ordinals_at() + self.ordinals * 4
    }
    fn lost_at(self) -> usize {
        self.days_at() + self.days * DAY_BYTES
    }
    fn end(self) -> usize {
        self.lost_at() + self.lost * LOST_BYTES
    }
}

fn bucket_of(id: u128, bits: u32) -> u64 {
    if bits == 0 { 0 } else { (id >> (128 - bits)) as u64 }
}

impl Sidecar {
    /// Reads the header of a sidecar of this log.
    ///
    /// # Errors
    /// [`Damaged`], or of another log or version; it must be made again.
    pub(crate) fn open(bytes: Mapped, incarnation: u64) -> Result<Self, Damaged> {
        let header = (*bytes).as_ref().get(..HEADER_BYTES).ok_or(Damaged)?;
        let whole = [MAGIC, MAGIC_ERASED].iter().any(|magic| header[..8] == *magic)
            && crc32c::crc32c(&header[..HEADER_BYTES - 4]) == u32_at(header, HEADER_BYTES - 4)
            && u64_at(header, 8) == incarnation;
        let count = |n: usize| Some(u32_at(header, 88 + 4 * n) as usize).filter(|n| *n <= COUNT_MAX);
        let layout = whole
            .then(|| {
                Some(Layout {
                    records: count(0)?,
                    holes: count(1)?,
                    ids: count(2)?,
                    terms: count(3)?,
                    ordinals: count(4)?,
                    directory_bits: count(5).filter(|bits| *bits < 28)? as u32,
                    days: count(6)?,
                    lost: count(7)?,
                })
            })
            .flatten()
            .ok_or(Damaged)?;
        if layout.end() != (*bytes).as_ref().len() {
            return Err(Damaged);
        }
        let range = |at: usize| {
            let (low, high) = (u64_at(header, at) as i64, u64_at(header, at + 8) as i64);
            (low <= high).then_some((low, high))
        };
        let summary = Summary {
            base_seq: u64_at(header, 16),
            last_seq: u64_at(header, 24),
            bytes: u64_at(header, 32),
            records: u64_at(header, 40),
            first_seq: Some(u64_at(header, 48)).filter(|seq| *seq != u64::MAX),
            observed: range(56),
            times: range(72),
        };
        Ok(Self { bytes, layout, summary, sound: OnceLock::new() })
    }

    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Whether all of it is as it was written; found out once, by reading all of it.
    pub(crate) fn is_sound(&self) -> bool {
        *self.sound.get_or_init(|| {
            let bytes = self.bytes();
            let sound = crc32c::crc32c(&bytes[HEADER_BYTES..]) == u32_at(bytes, HEADER_BYTES - 8);
            if !sound {
                tracing::error!(base_seq = self.summary.base_seq, "an index file of the log is damaged");
            }
            sound
        })
    }

    /// The same as an index that can grow. Asks for a sidecar that is sound.
    pub(crate) fn to_live(&self) -> LiveIndex {
        let ids = (0..self.layout.ids).map(|n| (self.id(n), self.known(n))).collect();
        let terms = (0..self.layout.terms).map(|n| {
            let term = self.u64(self.layout.terms_at() + n * TERM_BYTES);
            (term, self.list(term).map(|n| self.ordinal(n)).collect())
        });
        let records: Vec<_> = (0..self.layout.records).map(|n| self.record(n)).collect();
        LiveIndex {
            erased: records.iter().filter(|record| record.erased).count() as u64,
            records,
            holes: self.holes(),
            ids,
            postings: terms.collect(),
            days: self.days().into_iter().collect(),
            lost: self.lost(),
            times: self.summary.times,
            end: self.summary.bytes,
        }
    }

    fn known(&self, n: usize) -> KnownId {
        let at = self.layout.known_at() + n * KNOWN_BYTES;
        KnownId { seq: self.u64(at), identity: self.u64(at + 8), content: self.u32(at + 16) }
    }

    fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    fn u32(&self, at: usize) -> u32 {
        u32_at(self.bytes(), at)
    }

    fn u64(&self, at: usize) -> u64 {
        u64_at(self.bytes(), at)
    }

    fn u128(&self, at: usize) -> u128 {
        u128::from(self.u64(at)) | u128::from(self.u64(at + 8)) << 64
    }

    fn id(&self, n: usize) -> u128 {
        self.u128(self.layout.ids_at() + n * ID_BYTES)
    }

    /// The part of the ordinals that belongs to a term.
    fn list(&self, term: u64) -> Range<usize> {
        let at = |n: usize| self.layout.terms_at() + n * TERM_BYTES;
        let n = partition(0, self.layout.terms, |n| self.u64(at(n)) < term);
        if n == self.layout.terms || self.u64(at(n)) != term {
            return 0..0;
        }
        let start = self.u32(at(n) + 8) as usize;
        start..start + self.u32(at(n) + 12) as usize
    }

    fn ordinal(&self, n: usize) -> u32 {
        self.u32(self.layout.ordinals_at() + 4 * n)
    }
}

fn partition(mut low: usize, mut high: usize, before: impl Fn(usize) -> bool) -> usize {
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

impl Index for Sidecar {
    fn len(&self) -> usize {
        self.layout.records
    }

    fn record(&self, ordinal: usize) -> Record {
        let at = HEADER_BYTES + ordinal * RECORD_BYTES;
        Record {
            seq: self.u64(at),
            observed_us: self.u64(at + 8) as i64,
            offset: self.u32(at + 16) & !ERASED_BIT,
            erased: self.u32(at + 16) & ERASED_BIT != 0,
            tag: self.u32(at + 20),
            time_us: self.u64(at + 24) as i64,
        }
    }

    fn end(&self) -> u64 {
        self.summary.bytes
    }

    fn find(&self, id: u128) -> Option<KnownId> {
        let bucket = bucket_of(id, self.layout.directory_bits) as usize;
        let directory = self.layout.directory_at();
        let (low, high) = (self.u32(directory + 4 * bucket), self.u32(directory + 4 * bucket + 4));
        let n = partition(low as usize, high as usize, |n| self.id(n) < id);
        if n >= high as usize || self.id(n) != id {
            return None;
        }
        Some(self.known(n))
    }

    fn holes(&self) -> Vec<(u64, u64)> {
        let at = |n: usize| self.layout.holes_at() + n * HOLE_BYTES;
        (0..self.layout.holes).map(|n| (self.u64(at(n)), self.u64(at(n) + 8))).collect()
    }

    fn days(&self) -> Vec<(DayKey, u32)> {
        let at = |n: usize| self.layout.days_at() + n * DAY_BYTES;
        let entry = |n| {
            let key = DayKey { quarter: self.u32(at(n)) as i32, event_type: self.u64(at(n) + 8) };
            (key, self.u32(at(n) + 4))
        };
        (0..self.layout.days).map(entry).collect()
    }

    fn lost(&self) -> Vec<Lost> {
        let at = |n: usize| self.layout.lost_at() + n * LOST_BYTES;
        let one =
            |n| Lost { seq: self.u64(at(n)), time_us: self.u64(at(n) + 8) as i64, id: self.u128(at(n) + 16) };
        (0..self.layout.lost).map(one).collect()
    }

    fn postings(&self, term: u64, range: Range<u32>, take: Take, out: &mut Vec<u32>) {
        let list = self.list(term);
        let start = partition(list.start, list.end, |n| self.ordinal(n) < range.start);
        let end = partition(list.start, list.end, |n| self.ordinal(n) < range.end);
        out.extend(take.of(start, end).map(|n| self.ordinal(n)));
    }
}
