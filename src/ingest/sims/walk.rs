//! The walk over the pages of a SIM's list of sessions: which page comes next, and whether all of it was seen.
//!
//! The document gives the list no order. A list that falls (newest first) is read down to what ended before the last
//! read, one that rises is read backwards from its end, any other to its end. That a session is gone is told only if
//! the whole list was read, so sessions are counted, not rows: a list that ignores `offset` shows its first page for
//! every page asked for. The walk asks nobody; its owner asks for `offset` and hands in the answer.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;

use super::diff::session_id;
use crate::{
    event::Iccid,
    globalsim::wire::SessionRow,
    ingest::page::PAGE_ROWS,
    sabotage::{self, Bug},
};

/// Pages of one SIM's sessions in one read.
pub const PAGES_MAX: u32 = 20;

/// A walk under way.
#[derive(Debug)]
pub struct Walk<'a> {
    iccid: &'a Iccid,
    /// Sessions that must be found, where the list has them.
    open: &'a BTreeMap<String, u32>,
    /// What started before this need not be looked for.
    oldest: Timestamp,
    offset: u64,
    pages: u32,
    direction: Direction,
    seen: HashSet<String>,
    rows: Vec<SessionRow>,
    is_whole: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    /// From the end, in steps of the rows that the first page had.
    Backward {
        step: u64,
    },
}

impl<'a> Walk<'a> {
    /// A walk over the list of `iccid` that has to find `open` and what started from `oldest` on.
    pub fn new(iccid: &'a Iccid, open: &'a BTreeMap<String, u32>, oldest: Timestamp) -> Self {
        let (seen, rows) = (HashSet::new(), Vec::new());
        Self {
            iccid,
            open,
            oldest,
            offset: 0,
            pages: 0,
            direction: Direction::Forward,
            seen,
            rows,
            is_whole: false,
        }
    }

    /// Where the next page begins, rows.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes in the page at [`Walk::offset`]: its rows, of which some could not be read, how many it had, and how many
    /// upstream says there are. False ends the walk.
    pub fn take(&mut self, rows: Vec<SessionRow>, count: u64, total: Option<u64>) -> bool {
        self.pages += 1;
        let starts: Vec<_> = rows.iter().filter_map(SessionRow::start).collect();
        let is_falling = starts.windows(2).all(|pair| pair[0] >= pair[1]);
        let is_rising = !is_falling && starts.windows(2).all(|pair| pair[0] <= pair[1]);
        let before = self.seen.len();
        self.seen.extend(rows.iter().map(|row| session_id(row, self.iccid)));
        let is_nothing_new = self.seen.len() == before;
        self.rows.extend(rows);

        let is_last = match self.direction {
            Direction::Forward => total.is_some_and(|total| self.offset + count >= total),
            Direction::Backward { .. } => self.offset == 0,
        };
        if is_last || count == 0 || is_nothing_new {
            // Without a total, a page that was not filled is the last.
            self.is_whole = match total {
                Some(total) if sabotage::on(Bug::CountRows) => self.rows.len() as u64 >= total,
                Some(total) => self.seen.len() as u64 >= total,
                None => count < PAGE_ROWS,
            };
            return false;
        }
        // Going back from the end, the first row of a page is its oldest.
        let oldest_here = match self.direction {
            Direction::Forward => starts.last().filter(|_| is_falling),
            Direction::Backward { .. } => starts.first(),
        };
        let is_reached = oldest_here.is_some_and(|start| *start < self.oldest);
        if is_reached && self.open.keys().all(|id| self.seen.contains(id)) || self.pages == PAGES_MAX {
            return false;
        }
        if let (1, true, Some(total)) = (self.pages, is_rising, total) {
            self.direction = Direction::Backward { step: count };
            self.offset = total;
            self.seen.clear();
            self.rows.clear();
        }
        self.offset = match self.direction {
            Direction::Forward => self.offset + count,
            Direction::Backward { step } => self.offset.saturating_sub(step),
        };
        true
    }

    /// What was read, a session maybe more than once, and whether the SIM has no session besides.
    pub fn end(self) -> (Vec<SessionRow>, bool) {
        (self.rows, self.is_whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Session;

    const HOUR_S: i64 = 3_600;

    /// Sessions by the hour at which they start.
    fn rows(hours: impl IntoIterator<Item = i64>) -> Vec<SessionRow> {
        let row = |hour: i64| {
            let start = Timestamp::from_second(hour * HOUR_S).unwrap().to_string();
            let session = Session {
                session_id: Some(format!("s{hour}")),
                start_time: Some(start),
                ..Session::default()
            };
            SessionRow { iccid: None, session, network: None, extra: serde_json::Map::new() }
        };
        hours.into_iter().map(row).collect()
    }

    /// A server's list.
    struct List {
        rows: Vec<SessionRow>,
        page_rows: usize,
        has_total: bool,
        ignores_offset: bool,
    }

    impl List {
        fn new(hours: impl IntoIterator<Item = i64>) -> Self {
            Self { rows: rows(hours), page_rows: 100, has_total: true, ignores_offset: false }
        }

        /// The hours of the sessions found, how many pages that took, and whether it is all.
        fn walk(&self, open: &[&str], oldest_hour: i64) -> (Vec<i64>, u32, bool) {
            let iccid = Iccid::parse("8947080012345678901").unwrap();
            let open = open.iter().map(|id| ((*id).to_owned(), 0)).collect();
            let mut walk = Walk::new(&iccid, &open, Timestamp::from_second(oldest_hour * HOUR_S).unwrap());
            loop {
                let from = if self.ignores_offset { 0 } else { walk.offset() as usize };
                let page: Vec<_> = self.rows.iter().skip(from).take(self.page_rows).cloned().collect();
                let count = page.len() as u64;
                if !walk.take(page, count, self.has_total.then_some(self.rows.len() as u64)) {
                    break;
                }
            }
            let pages = walk.pages;
            let (rows, is_whole) = walk.end();
            let hours: std::collections::BTreeSet<_> =
                rows.iter().map(|row| row.start().unwrap().as_second() / HOUR_S).collect();
            (hours.into_iter().collect(), pages, is_whole)
        }
    }

    fn all(hours: std::ops::Range<i64>) -> Vec<i64> {
        hours.collect()
    }

    #[test]
    fn a_short_list_is_whole_after_one_page() {
        assert_eq!(List::new((0..5).rev()).walk(&[], 0), (all(0..5), 1, true));
        assert_eq!(List::new([]).walk(&["s1"], 0), (vec![], 1, true));
    }

    #[test]
    fn a_falling_list_is_read_down_to_what_is_known_and_to_open_sessions() {
        let list = List::new((0..950).rev());
        assert_eq!(list.walk(&[], 900), (all(850..950), 1, false));
        assert_eq!(list.walk(&["s700"], 900), (all(650..950), 3, false));
        assert_eq!(list.walk(&["none"], 900), (all(0..950), 10, true));
    }

    #[test]
    fn a_rising_list_is_read_from_its_end_in_pages_of_any_size() {
        let mut list = List::new(0..950);
        assert_eq!(list.walk(&[], 900), (all(850..950), 2, false));
        list.page_rows = 70;
        assert_eq!(list.walk(&["s805"], 900), (all(740..950), 4, false));
        assert_eq!(list.walk(&["none"], 900).0, all(0..950));
    }

    #[test]
    fn a_list_without_an_order_is_read_to_its_end() {
        let mixed = (0..251).map(|n| n * 100 % 251);
        assert_eq!(List::new(mixed).walk(&[], 250), (all(0..251), 3, true));
    }

    /// One page shown for every page asked for is no second page.
    #[test]
    fn a_list_that_ignores_offsets_is_never_taken_for_the_whole() {
        for has_total in [true, false] {
            for hours in [(0..150).rev().collect::<Vec<_>>(), (0..150).collect()] {
                let list = List { ignores_offset: true, has_total, ..List::new(hours.iter().copied()) };
                let (found, pages, is_whole) = list.walk(&["s20"], 0);
                assert_eq!((found.len(), is_whole), (100, false), "{hours:?}");
                assert!(pages <= 3, "{pages} pages");
            }
        }
    }

    #[test]
    fn without_a_total_an_unfilled_page_is_the_last() {
        let list = |hours| List { has_total: false, ..List::new(hours) };
        assert_eq!(list(0..5).walk(&[], 0), (all(0..5), 2, true));
        assert_eq!(list(0..100).walk(&[], 0), (all(0..100), 2, true));
        assert_eq!(list(0..150).walk(&[], 0), (all(0..150), 3, true));
        let short = List { ignores_offset: true, ..list(0..5) };
        assert_eq!(short.walk(&[], 0), (all(0..5), 2, true));
    }

    #[test]
    fn the_walk_ends_after_so_many_pages() {
        let (found, pages, is_whole) = List::new((0..5_000).rev()).walk(&["none"], 0);
        assert_eq!((found.len(), pages, is_whole), (2_000, PAGES_MAX, false));
    }
}
