//! What the ledger has found out about each window, kept across restarts.
//!
//! Keyed by the day that the window is asked for. Verdicts are kept rather than worked out again: a restart does not
//! cost the requests of a week, and a day whose rows upstream has forgotten meanwhile can't be judged any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp, civil::Date};
use serde::{Deserialize, Serialize};

use super::edges::{DAY_S, Edges, Span};
use crate::{
    bus::{Bucket, Bus},
    ingest::{findings::Findings, probe::day_plus, status::DayState, sweep::midnight, upstream::Window},
};

/// Key in [`Bucket::State`].
const KEY: &str = "ledger";
/// Types that are remembered to narrow by.
const TYPES_MAX: usize = 64;

/// What is known of one window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The verdict.
    pub state: DayState,
    /// Why it is not `verified`, for the operator.
    pub reason: Option<String>,
    /// Upstream's count less the log's when everything shown was last known to be read: rows listed twice, rows
    /// that are no events, less what upstream has forgotten.
    pub surplus: Option<i64>,
    /// The span that was counted.
    pub span: Span,
    /// Events that the log must have, as far as upstream has ever counted rows that the log lacked.
    pub owed: Option<u64>,
    /// Of these, how many upstream no longer shows.
    pub missing: u64,
    /// Whether the count was found wrong by reading everything.
    pub miscounted: bool,
    /// Whether that was announced.
    pub announced: bool,
    /// Repairs in a row that came to no end.
    pub failures: u32,
    /// When to look next.
    #[serde(skip)]
    pub due: Option<Timestamp>,
    /// When it was last compared.
    #[serde(skip)]
    pub checked_at: Option<Timestamp>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            state: DayState::Pending,
            reason: None,
            surplus: None,
            span: Span::UTC,
            owed: None,
            missing: 0,
            miscounted: false,
            announced: false,
            failures: 0,
            due: None,
            checked_at: None,
        }
    }
}

impl Record {
    /// A verdict.
    pub fn judge(&mut self, state: DayState, reason: Option<String>) {
        (self.state, self.reason) = (state, reason);
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Book {
    incarnation: u64,
    /// Whether `start_date` and `end_date` were taken to include their day when `edges` was learnt.
    inclusive: (bool, bool),
    edges: Edges,
    /// By the day that the window is asked for.
    pub records: BTreeMap<Date, Record>,
    /// Types seen beside the documented ones.
    types: BTreeSet<String>,
}

impl Book {
    /// What was kept; an empty book where nothing was, or it was of another log.
    pub async fn load(bus: &Arc<dyn Bus>) -> Self {
        let incarnation = bus.log().incarnation();
        let kept = match bus.kv_get(Bucket::State, KEY).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "the ledger can't be read; days are verified again");
                None
            }
        };
        let book: Option<Self> = kept.and_then(|entry| serde_json::from_slice(&entry.value).ok());
        book.filter(|book| book.incarnation == incarnation).unwrap_or_else(|| Self {
            incarnation,
            inclusive: (true, true),
            ..Self::default()
        })
    }

    /// Keeps it.
    pub async fn store(&self, bus: &Arc<dyn Bus>) {
        let value = serde_json::to_vec(self).unwrap_or_default();
        if let Err(error) = bus.kv_put(Bucket::State, KEY, value.into()).await {
            tracing::warn!(%error, "the ledger can't be written; a restart would verify days again");
        }
    }

    /// Whether what is kept of it equals what is kept of another.
    pub fn is_kept_as(&self, other: &Self) -> bool {
        let kept = |record: &Record| Record { due: None, checked_at: None, ..record.clone() };
        let records =
            |book: &Self| book.records.iter().map(|(day, one)| (*day, kept(one))).collect::<Vec<_>>();
        self.edges == other.edges
            && self.inclusive == other.inclusive
            && self.types == other.types
            && records(self) == records(other)
    }

    /// Forgets edges that were learnt under another reading of the dates, and days too old to be followed.
    pub fn refresh(&mut self, findings: &Findings, first: Date) {
        let inclusive = (findings.start_inclusive == Some(true), findings.end_inclusive == Some(true));
        if self.inclusive != inclusive {
            (self.inclusive, self.edges) = (inclusive, Edges::default());
        }
        self.records.retain(|day, _| *day >= first);
    }

    /// The window to ask for, of a day; a day wider at an end where it is not known that the end is included.
    pub fn window(&self, day: Date) -> Window {
        let (start, end) = self.inclusive;
        Window {
            start: Some(day_plus(day, if start { 0 } else { -1 })),
            end: Some(day_plus(day, if end { 0 } else { 1 })),
            ..Window::default()
        }
    }

    /// What is known of where windows begin and end.
    pub fn edges(&mut self) -> &mut Edges {
        &mut self.edges
    }

    /// Where a window's rows lie, as far as is known.
    pub fn span(&self) -> Span {
        self.edges.span().unwrap_or(Span::UTC)
    }

    /// The times that a day's window shows: from the first to before the second.
    pub fn times(&self, day: Date) -> (Timestamp, Timestamp) {
        let (midnight, span) = (midnight(day), self.span());
        let at = |second| midnight.saturating_add(SignedDuration::from_secs(second)).unwrap_or(midnight);
        (at(span.start), at(span.end))
    }

    /// The days whose windows together show a UTC day.
    pub fn covering(&self, day: Date) -> impl Iterator<Item = Date> {
        let span = self.span();
        let before = (span.start > 0).then(|| day_plus(day, -1));
        let after = (span.end < DAY_S).then(|| day_plus(day, 1));
        [Some(day), before, after].into_iter().flatten()
    }

    /// The record of a window.
    pub fn record(&mut self, day: Date) -> &mut Record {
        self.records.entry(day).or_default()
    }

    /// The verdict of a UTC day: the worst of the windows that show it and reach behind `origin`.
    pub fn verdict(&self, day: Date, origin: Timestamp) -> Record {
        let rank = |record: &Record| match record.state {
            DayState::Verified => 0,
            DayState::Pending => 1,
            DayState::Unavailable => 2,
            DayState::Gap => 3,
        };
        let of = |day| self.records.get(&day).cloned().unwrap_or_default();
        let shown = self.covering(day).filter(|day| self.times(*day).1 > origin);
        shown.map(of).max_by_key(rank).unwrap_or_default()
    }

    /// Remembers a type to narrow by.
    pub fn learn_type(&mut self, event_type: &str) {
        if self.types.len() < TYPES_MAX && !self.types.contains(event_type) {
            self.types.insert(event_type.to_owned());
        }
    }

    /// Types seen.
    pub fn types(&self) -> impl Iterator<Item = &String> {
        self.types.iter()
    }
}
