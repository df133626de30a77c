//! One answer of a list that changes between any two requests, reduced to what walking it needs.
//!
//! The walk, the sweep and the window reader know upstream only through [`PageSource`], so that tests can put any
//! list in its place, changing it as they like.

use std::future::Future;

use jiff::Timestamp;

use crate::event::{Provenance, Via};

/// Most rows that upstream gives in one answer.
pub const PAGE_ROWS: u64 = 100;

/// Rows that a list can have; what upstream says of more is nonsense, and would not fit what positions are counted in.
pub const ROWS_MAX: u64 = 1 << 40;

/// One row of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot<R> {
    /// What tells this row from others: identity hash, or a hash of the raw text where it could not be read.
    pub key: u64,
    /// Whether `key` is trusted to name one row only. Rows without an event_id may be equal to each other.
    pub unique: bool,
    /// Event time.
    pub time: Option<Timestamp>,
    /// Which of equal rows this is, counted by whoever read them contiguously; 0 for unique ones.
    pub ordinal: u32,
    /// When it was shown.
    pub shown: Shown,
    /// The row.
    pub row: R,
}

/// When an answer showed a row, by our clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// When the answer was asked for.
    pub asked_at: Timestamp,
    /// When it was there.
    pub answered_at: Timestamp,
    /// When an earlier answer was asked for that would have shown the row, had it been visible; None where nobody
    /// knows of one.
    pub not_seen_at: Option<Timestamp>,
}

impl Shown {
    /// The same as it is stored.
    pub fn by(self, via: Via) -> Provenance {
        Provenance::new(via, self.asked_at, self.answered_at, self.not_seen_at)
    }
}

/// One answer. All rows of one answer are one atomic view of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct ListPage<R> {
    /// Place of the first row in the list.
    pub offset: u64,
    /// Rows in upstream's order.
    pub slots: Vec<Slot<R>>,
    /// `total` as stated; may be wrong.
    pub total: Option<u64>,
    /// When it was asked, by our clock, and not later than upstream's own.
    pub asked_at: Timestamp,
    /// When it was asked, by our clock alone.
    pub sent_at: Timestamp,
}

impl<R> ListPage<R> {
    /// Place behind the last row.
    pub fn end(&self) -> u64 {
        self.offset + self.slots.len() as u64
    }

    /// Whether this answer shows the whole of its list: nothing before it, and upstream counts no more rows.
    pub fn is_whole_list(&self) -> bool {
        self.offset == 0
            && self.slots.len() < PAGE_ROWS as usize
            && self.total.is_some_and(|total| total <= self.end())
    }
}

/// A list that can be read by offset.
pub trait PageSource: Sync {
    /// What a row is.
    type Row: Send;
    /// Why a page could not be had, after whatever retries make sense.
    type Error: Send;

    /// Rows from `offset` on, at most [`PAGE_ROWS`].
    fn fetch(&self, offset: u64) -> impl Future<Output = Result<ListPage<Self::Row>, Self::Error>> + Send;
}

/// In which order a list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Times fall.
    NewestFirst,
    /// Times rise.
    OldestFirst,
    /// Neither.
    Unsorted,
}

impl Order {
    /// As shown to operators.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NewestFirst => "newest_first",
            Self::OldestFirst => "oldest_first",
            Self::Unsorted => "unsorted",
        }
    }
}

/// Fewest neighbours with different times from which an order is concluded.
const EVIDENCE_MIN: usize = 3;

/// The order that a page shows; None where too few neighbours differ in time.
///
/// One neighbour in five may stand the wrong way round: a list by arrival is almost sorted by time and has the fixed
/// order that walking needs, while a list without order shows about one in two.
pub fn order_of<R>(slots: &[Slot<R>]) -> Option<Order> {
    let times: Vec<Timestamp> = slots.iter().filter_map(|s| s.time).collect();
    let falls = times.windows(2).filter(|w| w[0] > w[1]).count();
    let rises = times.windows(2).filter(|w| w[0] < w[1]).count();
    let differing = falls + rises;
    if differing < EVIDENCE_MIN {
        None
    } else if rises * 5 <= differing {
        Some(Order::NewestFirst)
    } else if falls * 5 <= differing {
        Some(Order::OldestFirst)
    } else {
        Some(Order::Unsorted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(seconds: &[i64]) -> Vec<Slot<()>> {
        let slot = |s: &i64| Slot {
            key: *s as u64,
            unique: true,
            time: Timestamp::from_second(*s).ok(),
            ordinal: 0,
            shown: Shown::default(),
            row: (),
        };
        seconds.iter().map(slot).collect()
    }

    #[test]
    fn order_is_concluded_from_enough_neighbours_only() {
        let check =
            |seconds: &[i64], expected| assert_eq!(order_of(&slots(seconds)), expected, "{seconds:?}");
        check(&[], None);
        check(&[3, 2, 1], None);
        check(&[4, 4, 3, 2, 1], Some(Order::NewestFirst));
        check(&[1, 2, 2, 3, 4], Some(Order::OldestFirst));
        check(&[1, 4, 2, 3, 1], Some(Order::Unsorted));
        check(&[9, 8, 7, 8, 6, 5, 4], Some(Order::NewestFirst));
    }
}
