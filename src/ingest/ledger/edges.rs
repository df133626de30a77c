//! Where upstream's days begin and end, learnt from what their windows show.
//!
//! The API document says neither in which zone `start_date` and `end_date` are nor whether they include their day.
//! What the ledger needs is less: for a window asked for day D, from which time to which its rows lie, counted from
//! D's midnight UTC. Both ends lie on whole quarters of an hour in every time zone in use. A row that a window shows
//! bounds them from one side; a row of the log that lies beside the window's rows and is not among them, from the
//! other. What is left is a handful of readings between which no row lies, so that they count alike; the plainest is
//! taken.

use serde::{Deserialize, Serialize};

/// Seconds of a day.
pub const DAY_S: i64 = 24 * 3600;
/// Days begin and end on multiples of this, whatever the zone.
const STEP_S: i64 = 900;
/// Zones in use, seconds east of UTC.
const ZONE_MIN_S: i64 = -12 * 3600;
const ZONE_MAX_S: i64 = 14 * 3600;
/// Ends lie within so many seconds of midnight; a window may be a day wider at either end.
const REACH_S: i64 = 4 * DAY_S;

/// First second of a window's rows and the second after the last, from midnight UTC of the day it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First second.
    pub start: i64,
    /// The second after the last.
    pub end: i64,
}

impl Span {
    /// A UTC day.
    pub const UTC: Self = Self { start: 0, end: DAY_S };
}

/// What is known of both ends. Seconds, both bounds possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edges {
    start: (i64, i64),
    end: (i64, i64),
}

impl Default for Edges {
    fn default() -> Self {
        Self { start: (-REACH_S, REACH_S), end: (-REACH_S, REACH_S) }
    }
}

/// What one answer says of its window's ends, in seconds from midnight UTC of the day asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evidence {
    /// Time of the oldest row known to be shown.
    pub first: Option<i64>,
    /// Time of the newest row known to be shown.
    pub last: Option<i64>,
    /// Beginning of the last quarter of an hour before `first` with a row that is not shown.
    pub before: Option<i64>,
    /// Beginning of the first quarter of an hour after `last` with a row that is not shown.
    pub after: Option<i64>,
}

impl Edges {
    /// Takes evidence in. Where it contradicts what was known, upstream has changed or rows were erased: only the new
    /// counts then.
    pub fn learn(&mut self, evidence: Evidence) {
        let narrowed = self.narrowed(evidence);
        *self = if narrowed.span().is_some() { narrowed } else { Self::default().narrowed(evidence) };
    }

    fn narrowed(self, evidence: Evidence) -> Self {
        let floor = |second: i64| second.div_euclid(STEP_S) * STEP_S;
        let Self { mut start, mut end } = self;
        if let Some(first) = evidence.first {
            start.1 = start.1.min(floor(first));
        }
        if let Some(last) = evidence.last {
            end.0 = end.0.max(floor(last) + STEP_S);
        }
        if let Some(before) = evidence.before {
            start.0 = start.0.max(floor(before) + STEP_S);
        }
        if let Some(after) = evidence.after {
            end.1 = end.1.min(floor(after));
        }
        Self { start, end }
    }

    /// By when windows begin at the latest.
    pub fn starts_by(&self) -> i64 {
        self.start.1
    }

    /// The plainest reading that agrees with all evidence: UTC before others, whole hours before quarters, zones near
    /// UTC before far ones, days as asked for before days more or less. None where nothing agrees.
    pub fn span(&self) -> Option<Span> {
        let zones = (ZONE_MIN_S / STEP_S..=ZONE_MAX_S / STEP_S).map(|step| step * STEP_S);
        let days = [0, -1, 1].into_iter().flat_map(|start| [0, -1, 1].map(|end| (start, end)));
        let within = |(low, high): (i64, i64), value: i64| low <= value && value <= high;
        days.flat_map(|days| zones.clone().map(move |zone| (days, zone)))
            .map(|((start, end), zone)| {
                let odd = i64::from(start != 0) + i64::from(end != 0);
                let span = Span { start: start * DAY_S - zone, end: (1 + end) * DAY_S - zone };
                ((odd, zone % 3600 != 0, zone.abs(), zone), span)
            })
            .filter(|(_, span)| {
                span.start < span.end && within(self.start, span.start) && within(self.end, span.end)
            })
            .min_by_key(|(cost, _)| *cost)
            .map(|(_, span)| span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_S: i64 = 3600;

    fn learnt(zone_hours: i64, rows: &[i64]) -> Option<Span> {
        let (start, end) = (-zone_hours * HOUR_S, DAY_S - zone_hours * HOUR_S);
        let shown = || rows.iter().copied().filter(|row| (start..end).contains(row));
        let mut edges = Edges::default();
        edges.learn(Evidence {
            first: shown().min(),
            last: shown().max(),
            before: rows.iter().copied().filter(|row| *row < start).max(),
            after: rows.iter().copied().filter(|row| *row >= end).min(),
        });
        edges.span()
    }

    #[test]
    fn the_zone_is_read_off_the_rows() {
        let dense: Vec<i64> = (-DAY_S..2 * DAY_S).step_by(600).collect();
        for zone in -12..=14 {
            let span = Span { start: -zone * HOUR_S, end: DAY_S - zone * HOUR_S };
            assert_eq!(learnt(zone, &dense), Some(span), "{zone}");
        }
    }

    #[test]
    fn few_rows_leave_it_open_and_the_plainest_is_taken() {
        assert_eq!(Edges::default().span(), Some(Span::UTC));
        assert_eq!(learnt(0, &[12 * HOUR_S]), Some(Span::UTC));
        assert_eq!(learnt(2, &[-5 * HOUR_S, HOUR_S, 20 * HOUR_S, 30 * HOUR_S]), Some(Span::UTC));
        let away = learnt(2, &[-5 * HOUR_S, -HOUR_S, 20 * HOUR_S, 23 * HOUR_S]);
        assert_eq!(away, Some(Span { start: -HOUR_S, end: 23 * HOUR_S }));
    }

    #[test]
    fn a_window_that_is_a_day_wider_is_told_apart_and_a_change_is_learnt_anew() {
        let mut edges = Edges::default();
        edges.learn(Evidence { first: Some(-23 * HOUR_S), last: Some(23 * HOUR_S), ..Evidence::default() });
        assert_eq!(edges.span(), Some(Span { start: -DAY_S, end: DAY_S }));
        let day = Evidence {
            first: Some(10),
            last: Some(DAY_S - 10),
            before: Some(-HOUR_S / 4),
            after: Some(DAY_S),
        };
        edges.learn(day);
        assert_eq!(edges.span(), Some(Span::UTC));
    }
}
