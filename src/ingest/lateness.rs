//! How late rows become visible, measured on those that were found, and how many there are: what sweeps are sized by.

use std::{collections::VecDeque, time::Duration};

use jiff::{SignedDuration, Timestamp};

/// Rows that the estimate rests on.
const SAMPLES_MAX: usize = 4_096;
/// Rows below which it says nothing of clocks.
const SKEW_SAMPLES_MIN: usize = 20;
/// Rows below which it says nothing of depth.
const SAMPLES_MIN: usize = 500;

/// Seconds from event time to the read that found the row, lately.
#[derive(Debug, Clone, Default)]
pub struct Lateness {
    samples: VecDeque<(Timestamp, u32)>,
}

impl Lateness {
    /// Notes one row.
    pub fn observe(&mut self, read_at: Timestamp, time: Timestamp) {
        let late = read_at.duration_since(time).as_secs().clamp(0, i64::from(u32::MAX));
        self.samples.push_back((read_at, late as u32));
        if self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
    }

    /// Twice the 99.9th percentile within bounds; the upper bound while too little is known.
    pub fn depth(&self, min: Duration, max: Duration) -> Duration {
        if self.samples.len() < SAMPLES_MIN {
            return max;
        }
        let mut late: Vec<u32> = self.samples.iter().map(|(_, late)| *late).collect();
        late.sort_unstable();
        let at = (late.len() * 999 / 1000).min(late.len() - 1);
        Duration::from_secs(u64::from(late[at]) * 2).clamp(min, max)
    }

    /// By how much even the promptest rows are late: what upstream's stamps are behind. Zero while too little is known.
    pub fn skew(&self) -> SignedDuration {
        let least = self.samples.iter().map(|(_, late)| *late).min();
        SignedDuration::from_secs(i64::from(
            least.filter(|_| self.samples.len() >= SKEW_SAMPLES_MIN).unwrap_or(0),
        ))
    }

    /// Rows a second over the last minute.
    pub fn rate(&self, now: Timestamp) -> f64 {
        let minute = SignedDuration::from_secs(60);
        let recent = self.samples.iter().rev().take_while(|(at, _)| now.duration_since(*at) < minute);
        let count = recent.count();
        if count < SAMPLES_MAX {
            return count as f64 / 60.0;
        }
        let span = self.samples.front().map_or(minute, |(at, _)| now.duration_since(*at));
        count as f64 / span.as_secs_f64().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn the_depth_follows_the_latest_rows_within_bounds() {
        let (min, max) = (Duration::from_secs(60), Duration::from_secs(600));
        let mut lateness = Lateness::default();
        assert_eq!(lateness.depth(min, max), max, "nothing is known yet");
        (0..1_000).for_each(|i| lateness.observe(at(i), at(i - 1)));
        assert_eq!(lateness.depth(min, max), min);
        (0..10).for_each(|i| lateness.observe(at(1_000 + i), at(900)));
        assert_eq!(lateness.depth(min, max), Duration::from_secs(2 * 108));
        (0..10).for_each(|i| lateness.observe(at(2_000 + i), at(0)));
        assert_eq!(lateness.depth(min, max), max);
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let mut lateness = Lateness::default();
        (0..300).for_each(|i| lateness.observe(at(i), at(i)));
        assert_eq!(lateness.rate(at(299)), 1.0);
        assert_eq!(lateness.rate(at(600)), 0.0);
    }
}
