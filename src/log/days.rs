//! How many of upstream's events the log knows by day: what the poller's ledger compares with upstream's own counts.
//!
//! The counts lie in the sidecars and stay with the ids, so a day is counted in full for as long as its ids are
//! known, whatever retention did to its bytes.

use std::{collections::BTreeMap, io, sync::Arc};

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use super::{
    Direction, Log, ReadError, ReadRequest,
    index::{DAY_US, DayKey, Index, type_term},
};
use crate::event::Predicate;

/// Events and bytes of one read while counting.
const READ_EVENTS: usize = 1_024;
const READ_BYTES: usize = 1 << 20;

impl Log {
    /// Upstream's events by UTC day of their time, of all types or of one, each identity once: without the gateway's
    /// own events, derived ones, completed copies and events whose time is not readable. Days whose events retention
    /// removed count too, as long as their ids are known. Records that are known to be damaged do not count. Blocks
    /// on the disk when a sidecar is first used; cheap afterwards.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn day_counts(&self, event_type: Option<&str>) -> io::Result<BTreeMap<Date, u64>> {
        let wanted = event_type.map(type_term);
        let (active, sealed, retired) = {
            let state = self.state.read();
            (state.active.index.days(), Arc::clone(&state.sealed), Arc::clone(&state.retired))
        };
        let mut counts = BTreeMap::<i32, u64>::new();
        let mut add = |days: Vec<(DayKey, u32)>| {
            for (key, count) in days {
                if wanted.is_none_or(|wanted| wanted == key.event_type) {
                    *counts.entry(key.day).or_default() += u64::from(count);
                }
            }
        };
        add(active);
        for segment in sealed.iter() {
            add(segment.index()?.days());
        }
        for ids in retired.iter().filter(|ids| ids.is_sound()) {
            add(ids.days());
        }
        Ok(counts.into_iter().filter_map(|(day, count)| Some((date(day)?, count))).collect())
    }

    /// The same for one day and the events that a predicate matches, by reading: only those whose bytes are kept.
    /// Blocks on the disk; a predicate with an index term reads only the records that hold it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn count_day(&self, day: Date, predicate: &Predicate) -> Result<u64, ReadError> {
        let Some(number) = number(day) else { return Ok(0) };
        let mut count = 0;
        for (first, last) in self.spans_of(number) {
            let mut from = first.saturating_sub(1);
            while from < last {
                let request = ReadRequest {
                    from,
                    direction: Direction::Forward,
                    predicate,
                    limit: READ_EVENTS,
                    max_bytes: READ_BYTES,
                };
                let page = match self.read(request) {
                    Err(ReadError::Expired { first_seq }) if first_seq > from + 1 => {
                        // Retention came between.
                        from = first_seq - 1;
                        continue;
                    }
                    page => page?,
                };
                let within = page.events.iter().take_while(|event| event.seq() <= last);
                let counted = within.filter(|event| {
                    event.keys().ok().and_then(|keys| DayKey::of(&keys)).is_some_and(|key| key.day == number)
                });
                count += counted.count() as u64;
                from = page.next;
                if page.at_end {
                    break;
                }
            }
        }
        Ok(count)
    }

    /// First and last position of the segments that may hold events of a day.
    fn spans_of(&self, day: i32) -> Vec<(u64, u64)> {
        let state = self.state.read();
        let active = state.active.index.summary(state.active.base_seq, state.last_seq());
        let all = state.sealed.iter().map(|segment| segment.summary).chain([active]);
        let holds = |(low, high): (i64, i64)| {
            let day = i64::from(day);
            low.div_euclid(DAY_US) <= day && day <= high.div_euclid(DAY_US)
        };
        all.filter(|one| one.times.is_some_and(holds)).map(|one| (one.base_seq, one.last_seq)).collect()
    }
}

/// The date of a number of days since the epoch.
fn date(day: i32) -> Option<Date> {
    let start = Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_hours(24 * i64::from(day))).ok()?;
    Some(start.to_zoned_datetime(TimeZone::UTC).date())
}

fn number(day: Date) -> Option<i32> {
    let start = day.at(0, 0, 0, 0);
    let start = TimeZone::UTC.to_timestamp(start).ok()?;
    i32::try_from(start.as_microsecond().div_euclid(DAY_US)).ok()
}
