//! What a segment's index answers, whether it is still growing in memory or lies in a sidecar file.
//!
//! Terms are (field, folded text) hashed to 64 bits: a collision costs a needless look at a record, never a wrong
//! answer, since every candidate is matched again.

pub(crate) mod live;
pub(crate) mod sidecar;

use std::{fmt, ops::Range};

use super::{Direction, KnownId};
use crate::event::{
    Flag, Keys,
    filter::{IndexTerm, fold},
    identity::FieldHasher,
};

/// What is known of a record without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) seq: u64,
    pub(crate) observed_us: i64,
    /// Of its frame in the segment file.
    pub(crate) offset: u32,
    /// Of its id, for cursors.
    pub(crate) tag: u32,
    /// Its event's time; `observed_us` where that is not readable.
    pub(crate) time_us: i64,
    /// It holds the place of an erased event: its id, its tag and its counts are known, and nobody is given it.
    pub(crate) erased: bool,
}

/// A record that was found damaged. Its id is not known any more, so that the event can be appended again, and its
/// bytes count as damaged for good, even if they can be read one day: the event would be there twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) seq: u64,
    pub(crate) time_us: i64,
    /// Hash of its id; 0 where it was not indexed.
    pub(crate) id: u128,
}

/// One segment's index. Ordinals count its records from 0.
pub(crate) trait Index: fmt::Debug + Send + Sync {
    /// Records in it.
    fn len(&self) -> usize;
    /// One of them; `ordinal` is below [`Index::len`].
    fn record(&self, ordinal: usize) -> Record;
    /// Where the bytes of its last record end.
    fn end(&self) -> u64;
    /// What is remembered of an id.
    fn find(&self, id: u128) -> Option<KnownId>;
    /// Ranges of positions (inclusive) that were unreadable when the index was made.
    fn holes(&self) -> Vec<(u64, u64)>;
    /// Upstream's events by quarter of an hour and type.
    fn days(&self) -> Vec<(DayKey, u32)>;
    /// Records found damaged, by position.
    fn lost(&self) -> Vec<Lost>;
    /// Adds the ordinals within `range` of records that hold the term: the first `max` in reading direction.
    fn postings(&self, term: u64, range: Range<u32>, take: Take, out: &mut Vec<u32>);

    /// How many records lie at positions for which `before` holds; it holds for a prefix.
    fn partition(&self, before: &dyn Fn(Record) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.record(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Where a record's frame must have ended.
    fn bound(&self, ordinal: usize) -> u64 {
        if ordinal + 1 < self.len() { u64::from(self.record(ordinal + 1).offset) } else { self.end() }
    }
}

/// How many ordinals, from which end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Take {
    pub(crate) direction: Direction,
    pub(crate) max: usize,
}

impl Take {
    /// The part of `0..len` that is taken.
    pub(crate) fn of(self, start: usize, end: usize) -> Range<usize> {
        match self.direction {
            Direction::Forward => start..end.min(start.saturating_add(self.max)),
            Direction::Backward => end.saturating_sub(self.max).max(start)..end,
        }
    }
}

const ICCID: &str = "iccid";
const DEVICE: &str = "device_id";
const EVENT_TYPE: &str = "event_type";

/// The terms under which a record can be found.
pub(crate) fn terms_of(keys: &Keys<'_>) -> [Option<u64>; 3] {
    [
        keys.iccid.map(iccid_term),
        keys.device_id.map(|text| term(DEVICE, &fold(text))),
        Some(type_term(keys.event_type)),
    ]
}

/// The terms one of which every match holds; None where any record can match.
pub(crate) fn terms_for(wanted: IndexTerm<'_>) -> Option<Vec<u64>> {
    let (field, texts) = match wanted {
        IndexTerm::All => return None,
        IndexTerm::Iccid(texts) => (ICCID, texts),
        IndexTerm::Device(texts) => (DEVICE, texts),
        IndexTerm::EventType(texts) => (EVENT_TYPE, texts),
    };
    Some(texts.iter().map(|text| term(field, text)).collect())
}

/// Under what an event is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DayKey {
    /// Quarter of an hour of the event's time, counted from the epoch: days of every time zone consist of these.
    pub(crate) quarter: i32,
    /// Term of its type.
    pub(crate) event_type: u64,
}

impl DayKey {
    /// None for what upstream does not list under a day: the gateway's own and derived events, completed copies,
    /// events without a readable time.
    pub(crate) fn of(keys: &Keys<'_>) -> Option<Self> {
        let uncounted = [Flag::Derived, Flag::Enriched, Flag::TimeUnknown].into_iter().collect();
        let counted = !keys.gateway && !keys.flags.intersects(uncounted);
        let quarter = i32::try_from(keys.time_us.div_euclid(QUARTER_US)).ok()?;
        counted.then(|| Self { quarter, event_type: type_term(keys.event_type) })
    }
}

/// The term of a SIM.
pub(crate) fn iccid_term(iccid: &str) -> u64 {
    term(ICCID, &fold(iccid))
}

/// The term of an event type.
pub(crate) fn type_term(event_type: &str) -> u64 {
    term(EVENT_TYPE, &fold(event_type))
}

/// Microseconds of a quarter of an hour.
pub(crate) const QUARTER_US: i64 = 15 * 60 * 1_000_000;
/// Quarters of an hour in a day.
pub(crate) const QUARTERS: i32 = 96;
/// Microseconds of a day.
pub(crate) const DAY_US: i64 = QUARTERS as i64 * QUARTER_US;

fn term(field: &str, folded: &str) -> u64 {
    let mut hasher = FieldHasher::new(field);
    hasher.field(Some(folded));
    hasher.finish_u64()
}
