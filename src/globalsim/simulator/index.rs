//! The visible rows, sorted once on arrival, so that a page costs a binary search and not a sort.
//!
//! Each of the account-wide list and the lists by event type, ICCID and device is a [`VecDeque`] in time order;
//! newest-first is the same deque read backwards. Rows come and go mostly at the two ends, where a deque is cheap.
//! A shuffled copy of each exists only while some list is unsorted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::faults::{Order, TieOrder};
use super::row::Row;
use super::traffic::spread;

#[derive(Debug)]
struct Entry {
    /// Where the row stands: unique, because `minor` is.
    key: (i64, u64),
    at_s: i64,
    row: Arc<Row>,
}

/// How rows are keyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Layout {
    /// Order inside one second.
    pub ties: TieOrder,
    /// Keep the shuffled copies.
    pub shuffled: bool,
}

#[derive(Debug, Default)]
struct List(VecDeque<Entry>);

#[derive(Debug, Default)]
struct Index {
    by_time: List,
    shuffled: List,
}

/// Every visible row.
#[derive(Debug, Default)]
pub(super) struct Visible {
    layout: Layout,
    all: Index,
    by_type: HashMap<Arc<str>, Index>,
    by_iccid: HashMap<Arc<str>, Index>,
    by_device: HashMap<Arc<str>, Index>,
    /// Rows that date filters leave out.
    undated: usize,
}

/// Which rows a list shows; absent = all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Filter<'a> {
    pub iccid: Option<&'a str>,
    pub device_id: Option<&'a str>,
    pub event_type: Option<&'a str>,
    /// First second.
    pub from_s: Option<i64>,
    /// The second after the last.
    pub until_s: Option<i64>,
}

/// One page of a list.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub rows: Vec<Arc<Row>>,
    /// Rows that match, whatever the page.
    pub total: usize,
}

// === impl Filter ===

impl Filter<'_> {
    fn has_dates(&self) -> bool {
        self.from_s.is_some() || self.until_s.is_some()
    }

    fn matches(&self, entry: &Entry) -> bool {
        let draft = &entry.row.draft;
        self.from_s.is_none_or(|from| entry.at_s >= from)
            && self.until_s.is_none_or(|until| entry.at_s < until)
            && !(self.has_dates() && draft.is_undated())
            && self.iccid.is_none_or(|iccid| *draft.iccid == *iccid)
            && self.device_id.is_none_or(|id| draft.device_id.as_deref() == Some(id))
            && self.event_type.is_none_or(|event_type| *draft.event_type == *event_type)
    }
}

// === impl List ===

impl List {
    fn insert(&mut self, entry: Entry) {
        if self.0.back().is_none_or(|last| last.key < entry.key) {
            return self.0.push_back(entry);
        }
        let at = self.0.partition_point(|other| other.key < entry.key);
        self.0.insert(at, entry);
    }

    fn remove(&mut self, key: (i64, u64)) {
        if let Ok(at) = self.0.binary_search_by(|other| other.key.cmp(&key)) {
            self.0.remove(at);
        }
    }

    /// The range of positions between two seconds; only in a list in time order.
    fn range(&self, from_s: Option<i64>, until_s: Option<i64>) -> std::ops::Range<usize> {
        let position = |second: i64| self.0.partition_point(|entry| entry.at_s < second);
        let low = from_s.map_or(0, position);
        let high = until_s.map_or(self.0.len(), position);
        low..high.max(low)
    }
}

fn take<'a>(entries: impl Iterator<Item = &'a Entry>, (offset, limit): (usize, usize)) -> Vec<Arc<Row>> {
    entries.skip(offset).take(limit).map(|entry| entry.row.clone()).collect()
}

// === impl Index ===

impl Index {
    fn insert(&mut self, row: &Arc<Row>, layout: Layout) {
        let (time, shuffled) = keys(row, layout);
        let at_s = row.draft.at_s;
        self.by_time.insert(Entry { key: time, at_s, row: row.clone() });
        if layout.shuffled {
            self.shuffled.insert(Entry { key: shuffled, at_s, row: row.clone() });
        }
    }

    fn remove(&mut self, row: &Row, layout: Layout) {
        let (time, shuffled) = keys(row, layout);
        self.by_time.remove(time);
        if layout.shuffled {
            self.shuffled.remove(shuffled);
        }
    }

    /// `exact`: every entry between the filter's seconds matches, nothing else needs a look.
    fn page(&self, filter: &Filter<'_>, exact: bool, order: Order, window: (usize, usize)) -> Page {
        let range = self.by_time.range(filter.from_s, filter.until_s);
        let total = range.len();
        let entries = self.by_time.0.range(range);
        let shuffled = self.shuffled.0.iter();
        match (exact, order) {
            (true, Order::Unsorted) if filter.has_dates() => {
                Page { rows: take(shuffled.filter(|entry| filter.matches(entry)), window), total }
            }
            (true, Order::Unsorted) => Page { rows: take(shuffled, window), total },
            (false, Order::Unsorted) => scan(shuffled, filter, window),
            (true, Order::Oldest) => Page { rows: take(entries, window), total },
            (true, _) => Page { rows: take(entries.rev(), window), total },
            (false, Order::Oldest) => scan(entries, filter, window),
            (false, _) => scan(entries.rev(), filter, window),
        }
    }
}

fn keys(row: &Row, layout: Layout) -> ((i64, u64), (i64, u64)) {
    let minor = match layout.ties {
        TieOrder::Arrival => row.n,
        TieOrder::Random => spread(row.n),
    };
    ((row.draft.at_s, minor), (spread(row.n ^ 0x5EED) as i64, row.n))
}

fn scan<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    filter: &Filter<'_>,
    (offset, limit): (usize, usize),
) -> Page {
    let mut page = Page::default();
    for entry in entries.filter(|entry| filter.matches(entry)) {
        if page.total >= offset && page.rows.len() < limit {
            page.rows.push(entry.row.clone());
        }
        page.total += 1;
    }
    page
}

fn put(map: &mut HashMap<Arc<str>, Index>, key: &Arc<str>, row: &Arc<Row>, layout: Layout) {
    map.entry(key.clone()).or_default().insert(row, layout);
}

fn forget(map: &mut HashMap<Arc<str>, Index>, key: &Arc<str>, row: &Row, layout: Layout) {
    if let Some(index) = map.get_mut(key) {
        index.remove(row, layout);
        if index.by_time.0.is_empty() {
            map.remove(key);
        }
    }
}

// === impl Visible ===

impl Visible {
    /// How many rows are visible.
    pub(super) fn len(&self) -> usize {
        self.all.by_time.0.len()
    }

    /// Adds a row in its sorted places.
    pub(super) fn insert(&mut self, row: &Arc<Row>) {
        let layout = self.layout;
        self.all.insert(row, layout);
        put(&mut self.by_type, &row.draft.event_type, row, layout);
        put(&mut self.by_iccid, &row.draft.iccid, row, layout);
        if let Some(device) = &row.draft.device_id {
            put(&mut self.by_device, device, row, layout);
        }
        self.undated += usize::from(row.draft.is_undated());
    }

    /// Takes a row out everywhere.
    pub(super) fn remove(&mut self, row: &Row) {
        let layout = self.layout;
        self.all.remove(row, layout);
        forget(&mut self.by_type, &row.draft.event_type, row, layout);
        forget(&mut self.by_iccid, &row.draft.iccid, row, layout);
        if let Some(device) = &row.draft.device_id {
            forget(&mut self.by_device, device, row, layout);
        }
        self.undated -= usize::from(row.draft.is_undated());
    }

    /// The oldest row by event time.
    pub(super) fn oldest(&self) -> Option<Arc<Row>> {
        self.all.by_time.0.front().map(|entry| entry.row.clone())
    }

    /// The row at a position counted from the newest.
    pub(super) fn newest_but(&self, position: usize) -> Option<Arc<Row>> {
        let last = self.len().checked_sub(1)?;
        self.all.by_time.0.get(last.checked_sub(position)?).map(|entry| entry.row.clone())
    }

    /// Re-keys everything when the layout changed.
    pub(super) fn set_layout(&mut self, layout: Layout) {
        if layout == self.layout {
            return;
        }
        let mut rows: Vec<Arc<Row>> = self.all.by_time.0.iter().map(|entry| entry.row.clone()).collect();
        *self = Self { layout, ..Self::default() };
        rows.sort_unstable_by_key(|row| keys(row, layout).0);
        rows.iter().for_each(|row| self.insert(row));
    }

    /// One page: `window` = offset and limit.
    pub(super) fn page(&self, filter: &Filter<'_>, order: Order, window: (usize, usize)) -> Page {
        let dates_exact = self.undated == 0 || !filter.has_dates();
        let (index, exact) = match (filter.iccid, filter.device_id, filter.event_type) {
            (Some(iccid), device, event_type) => {
                (self.by_iccid.get(iccid), device.is_none() && event_type.is_none())
            }
            (None, Some(device), event_type) => (self.by_device.get(device), event_type.is_none()),
            (None, None, Some(event_type)) => (self.by_type.get(event_type), true),
            (None, None, None) => (Some(&self.all), true),
        };
        index.map(|index| index.page(filter, exact && dates_exact, order, window)).unwrap_or_default()
    }
}
