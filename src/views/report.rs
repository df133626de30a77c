//! The report: what a period looked like, out of the [roll-ups](super::rollup), or out of the log where these can't
//! tell.
//!
//! A report is about the events that a [`Predicate`] matches, and that decides what it is computed from: everything
//! from the roll-ups; chosen SIMs from their part by SIM, which knows neither hours nor networks; anything else by
//! counting the events that the log still holds, by the same rules ([`Counter`]).
//!
//! Hours are whole UTC hours and what is by SIM is by whole UTC days, so a [`Period`] is widened to both.

mod sums;

use std::{io, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;

pub use sums::{Row, Sums};

use super::rollup::{
    Meta, Rollup,
    cells::Names,
    count::{Counter, DAYS_KEPT, HOUR_US},
};
use crate::{
    event::{Flag, Keys, Predicate, StoredEvent},
    log::{Direction, Log, ReadError, ReadRequest},
};

/// Cells of a report that is counted from the log; about 150 MiB.
pub const LOG_CELLS_MAX: usize = 500_000;

/// Events and bytes of one read of the log.
const PAGE_EVENTS: usize = 1_024;
const PAGE_BYTES: usize = 1 << 20;

/// Reports out of roll-ups at a time.
const AT_A_TIME: usize = 4;

/// How long a report waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// Whole hours from, inclusive, to, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// Hours since the epoch.
    pub from_hour: i64,
    /// Hours since the epoch.
    pub to_hour: i64,
}

/// Why there is no such period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeriodError {
    /// It ends before it begins.
    #[error("the period ends before it begins")]
    Empty,
    /// It is longer than what is kept.
    #[error("the period is longer than the {DAYS_KEPT} days that are kept")]
    TooLong,
}

impl Period {
    /// The smallest one of whole UTC hours that holds all from `from` to before `to`.
    ///
    /// # Errors
    /// [`PeriodError`].
    pub fn new(from: Timestamp, to: Timestamp) -> Result<Self, PeriodError> {
        if to <= from {
            return Err(PeriodError::Empty);
        }
        let from_hour = from.as_microsecond().div_euclid(HOUR_US);
        let to_hour = (to.as_microsecond() - 1).div_euclid(HOUR_US) + 1;
        if to_hour - from_hour > i64::from(DAYS_KEPT) * 24 {
            return Err(PeriodError::TooLong);
        }
        Ok(Self { from_hour, to_hour })
    }

    /// The same, widened to whole UTC days.
    pub fn whole_days(self) -> Self {
        Self {
            from_hour: self.from_hour.div_euclid(24) * 24,
            to_hour: (self.to_hour - 1).div_euclid(24) * 24 + 24,
        }
    }

    /// The UTC days that it touches, since the epoch.
    pub fn days(self) -> std::ops::RangeInclusive<i32> {
        let day = |hour: i64| i32::try_from(hour.div_euclid(24)).unwrap_or_default();
        day(self.from_hour)..=day(self.to_hour - 1)
    }

    /// Its ends.
    pub fn times(self) -> [Timestamp; 2] {
        [self.from_hour, self.to_hour].map(time_of_hour)
    }
}

/// When an hour since the epoch begins.
pub fn time_of_hour(hour: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_hours(hour)).unwrap_or(Timestamp::MAX)
}

/// Hours of one point of the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// One.
    Hour,
    /// The 24 of a UTC day.
    Day,
}

/// What a report was computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// All roll-ups.
    Rollup,
    /// The roll-ups by SIM.
    SimRollup,
    /// The events that the log holds.
    Log,
}

impl Source {
    /// What a report about a predicate is computed from.
    pub fn of(predicate: &Predicate) -> Self {
        if predicate.is_empty() {
            Self::Rollup
        } else if predicate.is_of_sims() {
            Self::SimRollup
        } else {
            Self::Log
        }
    }

    /// As spelled in the answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollup => "rollup",
            Self::SimRollup => "sim_rollup",
            Self::Log => "log",
        }
    }
}

/// What to report.
#[derive(Debug, Clone)]
pub struct Query {
    /// About which events.
    pub predicate: Predicate,
    /// When they happened.
    pub period: Period,
    /// Points of the series; None is an hour where the source knows hours, else a day.
    pub interval: Option<Interval>,
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// Out of what.
    pub source: Source,
    /// What counts by hour: whole days where the source knows no hours.
    pub period: Period,
    /// What counts by SIM.
    pub days: Period,
    /// Points of the series.
    pub interval: Interval,
    /// The sums.
    pub sums: Sums,
    /// Their texts.
    pub names: Names,
    /// How far the source reaches.
    pub meta: Meta,
    /// Days of which roll-ups were lost to damage, since the epoch.
    pub damaged: Vec<i32>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The roll-ups are not made yet.
    #[error("the roll-ups are being made: {counted} of {of} positions are counted")]
    Building {
        /// Positions counted.
        counted: u64,
        /// Positions that the log has.
        of: u64,
    },
    /// SIMs are counted by whole days.
    #[error("chosen SIMs are counted by day: there is no series by hour")]
    NoHours,
    /// More would have to be counted than memory is given.
    #[error("the report would have more than {LOG_CELLS_MAX} cells")]
    TooLarge,
    /// Others are being computed.
    #[error("too many reports are being computed")]
    Busy,
    /// The disk refuses.
    #[error("the report can't be read: {0}")]
    Io(#[from] io::Error),
}

/// Who computes reports: so many at a time, and one of those that count the log. Clones are the same.
#[derive(Debug, Clone)]
pub struct Reports {
    rollup: Rollup,
    turns: Arc<Semaphore>,
    log_turns: Arc<Semaphore>,
}

impl Reports {
    /// Out of these roll-ups and their log.
    pub fn new(rollup: Rollup) -> Self {
        let turns = |count| Arc::new(Semaphore::new(count));
        Self { rollup, turns: turns(AT_A_TIME), log_turns: turns(1) }
    }

    /// Out of roll-ups in memory, for tests of what asks for reports.
    #[cfg(test)]
    pub(crate) fn in_memory(log: &Arc<Log>) -> Self {
        match Rollup::open(&super::rollup::Config::default(), log) {
            Ok(rollup) => Self::new(rollup),
            Err(error) => panic!("{error}"),
        }
    }

    /// The roll-ups.
    pub fn rollup(&self) -> &Rollup {
        &self.rollup
    }

    /// Computes a report when it is its turn.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn compute(&self, query: Query) -> Result<Report, Error> {
        let turns = if Source::of(&query.predicate) == Source::Log { &self.log_turns } else { &self.turns };
        let turn = tokio::time::timeout(TURN_WITHIN, Arc::clone(turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(Error::Busy) };
        let rollup = self.rollup.clone();
        let work = tokio::task::spawn_blocking(move || {
            // Held until the work is done, also where nobody waits for it any more.
            let _turn = turn;
            compute(&rollup, &query)
        });
        work.await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
    }
}

/// Computes a report. Blocks: on the disk, and where it counts the log, for seconds.
///
/// # Errors
/// [`Error`].
pub fn compute(rollup: &Rollup, query: &Query) -> Result<Report, Error> {
    let source = Source::of(&query.predicate);
    let days = query.period.whole_days();
    let period = if source == Source::SimRollup { days } else { query.period };
    let interval = match (source, query.interval) {
        (Source::SimRollup, Some(Interval::Hour)) => return Err(Error::NoHours),
        (Source::SimRollup, None) => Interval::Day,
        (_, interval) => interval.unwrap_or(Interval::Hour),
    };
    let mut sums = Sums::new(period, interval, source);
    let (names, meta, damaged) = match source {
        Source::Rollup | Source::SimRollup => {
            let meta = rollup.meta();
            // A period that was over before what is counted now is as complete as it will be.
            let reaches = meta.as_of.is_some_and(|as_of| as_of >= period.times()[1]);
            if !meta.is_ready && !reaches {
                let of = rollup.log().bounds().last_seq;
                return Err(Error::Building { counted: meta.cursor.map_or(0, |cursor| cursor.seq), of });
            }
            let predicate = (source == Source::SimRollup).then_some(&query.predicate);
            rollup.read(days.days(), |day, cell| sums.add(day, &cell, predicate))?
        }
        Source::Log => {
            let (counter, meta) = count_log(rollup.log(), &query.predicate, days)?;
            for (day, cells) in &counter.days {
                cells.visit(|cell| sums.add(*day, &cell, None));
            }
            (counter.names, meta, Vec::new())
        }
    };
    sums.join_countries(&names);
    Ok(Report { source, period, days, interval, sums, names, meta, damaged })
}

/// Counts what the log holds of a predicate. Sessions are followed from the oldest event on, so that their data falls
/// on the day that showed it.
fn count_log(log: &Log, predicate: &Predicate, days: Period) -> Result<(Counter, Meta), Error> {
    let mut counter = Counter::default();
    let stored = |id: &str| -> Option<StoredEvent> { log.get(log.find(id)?.seq).ok().flatten() };
    let bounds = log.bounds();
    let edge = *log.edge().borrow();
    let mut position = log.begins_at().saturating_sub(1);
    while position < edge {
        let request = ReadRequest {
            from: position,
            direction: Direction::Forward,
            predicate,
            limit: PAGE_EVENTS,
            max_bytes: PAGE_BYTES,
        };
        let page = match log.read(request) {
            Err(ReadError::Expired { first_seq }) => {
                counter.skipped.positions += (first_seq - 1).saturating_sub(position);
                position = first_seq - 1;
                continue;
            }
            Err(ReadError::Io(error)) => return Err(error.into()),
            Ok(page) => page,
        };
        for event in page.events.iter().filter(|event| event.seq() <= edge) {
            let Ok(keys) = event.keys() else { continue };
            if keys.gateway {
                continue;
            }
            let first = keys.id.strip_suffix("~details").filter(|_| keys.flags.contains(Flag::Enriched));
            match first.and_then(stored) {
                // Only the completed copy tells that the event is wanted.
                Some(first) if !first.keys().is_ok_and(|first| predicate.matches(&first)) => {
                    // It counts as it first came, at a place that only the copy knows.
                    let flags = first.keys().map_or(keys.flags, |first| first.flags);
                    counter.add(event, &Keys { flags, ..keys });
                }
                _ => counter.count(event, stored),
            }
        }
        counter.days.retain(|day, _| days.days().contains(day));
        counter.skipped.positions +=
            page.holes.iter().map(|hole| hole.last_seq + 1 - hole.first_seq).sum::<u64>();
        if counter.cells() > LOG_CELLS_MAX {
            return Err(Error::TooLarge);
        }
        if page.next <= position {
            break;
        }
        position = page.next;
    }
    let meta = Meta {
        since: bounds.first_time,
        as_of: bounds.last_time,
        cursor: Some(log.cursor_at(edge)),
        skipped: counter.skipped,
        is_ready: true,
    };
    Ok((counter, meta))
}

#[cfg(test)]
mod tests;
