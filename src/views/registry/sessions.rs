//! The data sessions of one SIM: the one that is open, and what those of a month used.
//!
//! A session belongs to the month (UTC) in which it began, with the newest amount that the log has of it: upstream
//! shows cumulative amounts, and may correct one after the session has ended. The newest sessions are kept one by one
//! for that; older ones are added up, and a correction of such a one is not taken any more.

use jiff::{Timestamp, tz::Offset};
use serde::{Deserialize, Serialize};

use super::entry::Stamp;
use crate::{event::Session, views::megabytes::Megabytes};

/// Sessions of one SIM that are kept one by one.
pub(super) const KEPT: usize = 16;

/// A month of UTC, counted from year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Month(i32);

impl Month {
    /// The month that a time lies in.
    pub fn of(time: Timestamp) -> Self {
        let date = Offset::UTC.to_datetime(time).date();
        Self(i32::from(date.year()) * 12 + i32::from(date.month()) - 1)
    }

    pub(super) fn of_us(us: i64) -> Option<Self> {
        Timestamp::from_microsecond(us).ok().map(Self::of)
    }
}

impl std::fmt::Display for Month {
    /// `2026-11`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.0.div_euclid(12), self.0.rem_euclid(12) + 1)
    }
}

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sessions {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kept: Vec<Record>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    folded: Option<Folded>,
}

/// One session, by the newest event about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: Box<str>,
    pub(super) start_us: i64,
    pub(super) updated: Stamp,
    pub(super) upload: Option<Megabytes>,
    pub(super) download: Option<Megabytes>,
    total: Option<Megabytes>,
    ended: bool,
}

impl Record {
    /// Its total, or the sum of both ways where upstream gives none.
    pub(super) fn total(&self) -> Option<Megabytes> {
        self.total.or_else(|| Some(self.upload?.plus(self.download?)))
    }
}

/// Sessions of one month that are not kept one by one any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Folded {
    month: Month,
    total: Megabytes,
    sessions: u64,
    /// No session that began before this is new, unless an event says that it began or ended.
    until_us: i64,
}

impl Sessions {
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.folded.is_none()
    }

    /// Takes in an event about a session. The log's order counts here, not the events' times: each says what upstream
    /// showed when it was appended.
    pub(super) fn absorb(&mut self, event_type: &str, session: &Session, at: Stamp) {
        let Some(id) = session.session_id.as_deref() else { return };
        let start = session.start_time.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
        let start_us = start.map(Timestamp::as_microsecond);
        let record = match self.kept.iter_mut().position(|record| &*record.id == id) {
            Some(known) => &mut self.kept[known],
            None => {
                let start_us = start_us.unwrap_or(at.us);
                let old = self.folded.as_ref().is_some_and(|folded| start_us <= folded.until_us);
                if old && event_type == "session_updated" {
                    return;
                }
                self.kept.push(Record {
                    id: id.into(),
                    start_us,
                    updated: at,
                    upload: None,
                    download: None,
                    total: None,
                    ended: false,
                });
                let last = self.kept.len() - 1;
                &mut self.kept[last]
            }
        };
        record.start_us = start_us.unwrap_or(record.start_us);
        record.updated = at;
        record.ended |= event_type == "session_ended" || session.end_time.is_some();
        for (amount, number) in [
            (&mut record.upload, &session.upload_mb),
            (&mut record.download, &session.download_mb),
            (&mut record.total, &session.total_mb),
        ] {
            *amount = number.as_ref().and_then(Megabytes::of).or(*amount);
        }
        if self.kept.len() > KEPT {
            self.fold_oldest();
        }
    }

    fn fold_oldest(&mut self) {
        // One that is open goes only where all are: what it will have used is not known yet.
        let oldest = (0..self.kept.len()).min_by_key(|n| {
            let record = &self.kept[*n];
            (!record.ended, record.start_us, record.updated)
        });
        let Some(record) = oldest.map(|n| self.kept.remove(n)) else { return };
        let Some(month) = Month::of_us(record.start_us) else { return };
        let folded = self.folded.get_or_insert(Folded {
            month,
            total: Megabytes::default(),
            sessions: 0,
            until_us: record.start_us,
        });
        folded.until_us = folded.until_us.max(record.start_us);
        if folded.month < month {
            (folded.month, folded.total, folded.sessions) = (month, Megabytes::default(), 0);
        }
        if folded.month == month {
            folded.total = folded.total.plus(record.total().unwrap_or_default());
            folded.sessions += 1;
        }
    }

    /// The newest session that has not ended.
    pub(super) fn open(&self) -> Option<&Record> {
        self.kept.iter().filter(|record| !record.ended).max_by_key(|record| (record.start_us, record.updated))
    }

    /// What the sessions that began in a month used, and how many they are.
    pub(super) fn used_in(&self, month: Month) -> (Megabytes, u64) {
        let folded = self.folded.as_ref().filter(|folded| folded.month == month);
        let folded = folded.map_or_else(Default::default, |folded| (folded.total, folded.sessions));
        let kept = self.kept.iter().filter(|record| Month::of_us(record.start_us) == Some(month));
        kept.fold(folded, |(sum, count), record| (sum.plus(record.total().unwrap_or_default()), count + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str, start: &str, total: &str) -> Session {
        Session {
            session_id: Some(id.into()),
            start_time: Some(start.into()),
            total_mb: serde_json::from_str(total).ok(),
            ..Session::default()
        }
    }

    fn month(text: &str) -> Month {
        Month::of(text.parse().unwrap())
    }

    fn at(seq: u64) -> Stamp {
        Stamp { us: 0, seq }
    }

    #[test]
    fn a_session_counts_once_with_its_newest_amount_in_the_month_of_its_start() {
        let mut sessions = Sessions::default();
        sessions.absorb("session_started", &session("a", "2026-10-31T23:59:59Z", "0"), at(1));
        assert_eq!(&*sessions.open().unwrap().id, "a");
        sessions.absorb("session_updated", &session("a", "2026-10-31T23:59:59Z", "1.5"), at(2));
        sessions.absorb("session_ended", &session("a", "2026-10-31T23:59:59Z", "2.25"), at(3));
        sessions.absorb("session_updated", &session("a", "2026-10-31T23:59:59Z", "2.5"), at(4));
        sessions.absorb("session_started", &session("b", "2026-11-01T00:00:00Z", "0.1"), at(5));
        assert_eq!(&*sessions.open().unwrap().id, "b");
        let used = |text| {
            let (used, count) = sessions.used_in(month(text));
            (used.to_string(), count)
        };
        assert_eq!(used("2026-10-15T00:00:00Z"), ("2.5".into(), 1));
        assert_eq!(used("2026-11-15T00:00:00Z"), ("0.1".into(), 1));
        assert_eq!(month("2026-11-15T00:00:00Z").to_string(), "2026-11");
        assert_eq!(month("2025-12-31T23:59:59Z").to_string(), "2025-12");
    }

    #[test]
    fn sessions_beyond_those_that_are_kept_still_count() {
        let mut sessions = Sessions::default();
        for n in 0..100_u64 {
            // The second half lies in November.
            let start = format!("2026-{:02}-{:02}T{:02}:00:00Z", 10 + n / 50, 1 + n % 25, n % 24);
            let name = format!("s{n}");
            sessions.absorb("session_started", &session(&name, &start, "0"), at(2 * n));
            sessions.absorb("session_ended", &session(&name, &start, "0.1"), at(2 * n + 1));
        }
        assert_eq!(sessions.kept.len(), KEPT);
        let (used, count) = sessions.used_in(month("2026-11-01T00:00:00Z"));
        assert_eq!((used.to_string(), count), ("5".into(), 50));
        // It was added up long ago, and would count twice.
        sessions.absorb("session_updated", &session("s50", "2026-11-01T02:00:00Z", "7"), at(500));
        assert_eq!(sessions.used_in(month("2026-11-01T00:00:00Z")).0.to_string(), "5");
    }
}
