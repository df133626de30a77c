//! How many of upstream's events the log knows by day: what the poller's ledger compares with upstream's own counts.
//!
//! They are kept by quarter of an hour, since upstream's days may begin at another hour than UTC's, and all time zones
//! in use are whole quarters apart. The counts lie in the sidecars and stay with the ids, so a day is counted in full for as long as its ids are
//! known, whatever retention did to its bytes.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use super::{
    Direction, Log, ReadError, ReadRequest,
    index::{DAY_US, DayKey, Index, QUARTER_US, QUARTERS, type_term},
};
use crate::event::{Keys, Predicate};

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
        let mut counts = BTreeMap::<i32, u64>::new();
        for (quarter, count) in self.quarters(event_type)? {
            *counts.entry(quarter.div_euclid(QUARTERS)).or_default() += count;
        }
        Ok(counts.into_iter().filter_map(|(day, count)| Some((date(day)?, count))).collect())
    }

    /// The same for each quarter of an hour that has any, keyed by its beginning in seconds since the epoch.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn quarter_counts(&self, event_type: Option<&str>) -> io::Result<BTreeMap<i64, u64>> {
        let seconds = |quarter: i32| i64::from(quarter) * (QUARTER_US / 1_000_000);
        Ok(self.quarters(event_type)?.into_iter().map(|(quarter, count)| (seconds(quarter), count)).collect())
    }

    fn quarters(&self, event_type: Option<&str>) -> io::Result<BTreeMap<i32, u64>> {
        let wanted = event_type.map(type_term);
        let (active, sealed, retired) = {
            let state = self.state.read();
            (state.active.index.days(), Arc::clone(&state.sealed), Arc::clone(&state.retired))
        };
        let mut counts = BTreeMap::<i32, u64>::new();
        let mut add = |days: Vec<(DayKey, u32)>| {
            for (key, count) in days {
                if wanted.is_none_or(|wanted| wanted == key.event_type) {
                    *counts.entry(key.quarter).or_default() += u64::from(count);
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
        Ok(counts)
    }

    /// The same for one day and the events that a predicate matches, by reading: only those whose bytes are kept.
    /// Blocks on the disk; a predicate with an index term reads only the records that hold it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn count_day(&self, day: Date, predicate: &Predicate) -> Result<u64, ReadError> {
        let Some(number) = number(day) else { return Ok(0) };
        let quarters = number * QUARTERS..(number + 1) * QUARTERS;
        let mut count = 0;
        self.each_of(quarters, predicate, |_| count += 1)?;
        Ok(count)
    }

    /// The same for the quarters of an hour from `from` to before `until`, for each SIM; None is no SIM.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn count_by_sim(
        &self,
        from: Timestamp,
        until: Timestamp,
        predicate: &Predicate,
    ) -> Result<BTreeMap<Option<String>, u64>, ReadError> {
        let mut counts = BTreeMap::new();
        self.each_of(quarter(from)..quarter(until), predicate, |keys| {
            *counts.entry(keys.iccid.map(str::to_owned)).or_default() += 1;
        })?;
        Ok(counts)
    }

    /// Calls for each event of upstream's that lies in the quarters and matches.
    fn each_of(
        &self,
        quarters: Range<i32>,
        predicate: &Predicate,
        mut call: impl FnMut(&Keys<'_>),
    ) -> Result<(), ReadError> {
        for (first, last) in self.spans_of(&quarters) {
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
                for keys in within.filter_map(|event| event.keys().ok()) {
                    if DayKey::of(&keys).is_some_and(|key| quarters.contains(&key.quarter)) {
                        call(&keys);
                    }
                }
                from = page.next;
                if page.at_end {
                    break;
                }
            }
        }
        Ok(())
    }

    /// First and last position of the segments that may hold events of some quarters of an hour.
    fn spans_of(&self, quarters: &Range<i32>) -> Vec<(u64, u64)> {
        let state = self.state.read();
        let active = state.active.index.summary(state.active.base_seq, state.last_seq());
        let all = state.sealed.iter().map(|segment| segment.summary).chain([active]);
        let (start, end) = (i64::from(quarters.start), i64::from(quarters.end));
        let holds = |(low, high): (i64, i64)| {
            low.div_euclid(QUARTER_US) < end && start <= high.div_euclid(QUARTER_US)
        };
        all.filter(|one| one.times.is_some_and(holds)).map(|one| (one.base_seq, one.last_seq)).collect()
    }
}

/// The quarter of an hour of a time.
fn quarter(time: Timestamp) -> i32 {
    i32::try_from(time.as_microsecond().div_euclid(QUARTER_US)).unwrap_or(i32::MAX)
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
