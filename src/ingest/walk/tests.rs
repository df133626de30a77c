//! The walk against a list in memory that changes between any two requests.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::ingest::{
    page::{Order, Shown},
    seek::{self, Down},
};

/// A list in time order; `rows` is newest first whatever the order shown.
struct List {
    order: Order,
    state: Mutex<State>,
    requests: AtomicU64,
    cap: u64,
    total: bool,
}

struct State {
    rows: Vec<(i64, u64)>,
    next_key: u64,
    now: i64,
    rng: fastrand::Rng,
    churn: Churn,
}

/// Gives the same rows whatever the offset.
struct Stuck;

impl PageSource for Stuck {
    type Row = ();
    type Error = ();

    async fn fetch(&self, offset: u64) -> Result<ListPage<()>, ()> {
        let at = |n: i64| Timestamp::from_second(1_000_000 - n).ok();
        let slot = |n: i64| Slot {
            key: n as u64,
            unique: true,
            time: at(n),
            ordinal: 0,
            shown: Shown::default(),
            row: (),
        };
        let slots = (0..100).map(slot).collect();
        Ok(ListPage {
            offset,
            slots,
            total: None,
            asked_at: Timestamp::UNIX_EPOCH,
            sent_at: Timestamp::UNIX_EPOCH,
        })
    }
}

#[tokio::test]
async fn a_list_that_ignores_offsets_is_given_up_not_searched_beyond_all_numbers() {
    let depth = Some(Timestamp::UNIX_EPOCH);
    let searched = seek::up(&Stuck, Order::NewestFirst, depth).await;
    assert!(matches!(searched, Err(WalkError::Lost)));
}

/// What happens before each request.
#[derive(Debug, Clone)]
struct Churn {
    heads: std::ops::RangeInclusive<u64>,
    late: u64,
    deletes: u64,
}

impl List {
    fn new(order: Order, len: u64, seed: u64, churn: Churn) -> Self {
        let rows = (0..len).map(|i| ((len - i) as i64, len - i)).collect();
        let rng = fastrand::Rng::with_seed(seed);
        let state = State { rows, next_key: len + 1, now: len as i64, rng, churn };
        Self { order, state: Mutex::new(state), requests: AtomicU64::new(0), cap: PAGE_ROWS, total: true }
    }

    fn keys(&self) -> BTreeSet<u64> {
        self.state.lock().rows.iter().map(|(_, key)| *key).collect()
    }

    fn page(&self, offset: u64) -> ListPage<()> {
        let state = self.state.lock();
        let len = state.rows.len() as u64;
        let shown: Box<dyn Iterator<Item = &(i64, u64)>> = match self.order {
            Order::OldestFirst => Box::new(state.rows.iter().rev()),
            _ => Box::new(state.rows.iter()),
        };
        let slots = shown.skip(offset as usize).take(self.cap as usize).map(|(time, key)| Slot {
            key: *key,
            unique: true,
            time: Timestamp::from_second(*time).ok(),
            ordinal: 0,
            shown: Shown::default(),
            row: (),
        });
        ListPage {
            offset,
            slots: slots.collect(),
            total: self.total.then_some(len),
            asked_at: Timestamp::UNIX_EPOCH,
            sent_at: Timestamp::UNIX_EPOCH,
        }
    }
}

impl State {
    fn change(&mut self) {
        let Churn { heads, late, deletes } = self.churn.clone();
        for _ in 0..self.rng.u64(heads) {
            self.now += self.rng.i64(0..2);
            self.rows.insert(0, (self.now, self.next_key));
            self.next_key += 1;
        }
        for _ in 0..self.rng.u64(0..=late) {
            let time = self.rng.i64(0..=self.now);
            let at = self.rows.partition_point(|(t, _)| *t > time);
            self.rows.insert(at, (time, self.next_key));
            self.next_key += 1;
        }
        for _ in 0..self.rng.u64(0..=deletes) {
            if !self.rows.is_empty() {
                // Runs of neighbours go together, as when a SIM is erased.
                let at = self.rng.usize(0..self.rows.len());
                let run = self.rng.usize(1..=6).min(self.rows.len() - at);
                self.rows.drain(at..at + run);
            }
        }
    }
}

impl PageSource for List {
    type Row = ();
    type Error = ();

    async fn fetch(&self, offset: u64) -> Result<ListPage<()>, ()> {
        if self.requests.fetch_add(1, Ordering::Relaxed) > 0 {
            self.state.lock().change();
        }
        Ok(self.page(offset))
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// None where the walk gave up, which it must say and not hide.
fn read_down(list: &List, depth: Option<i64>) -> Option<BTreeSet<u64>> {
    now(async {
        let head = match list.order {
            Order::OldestFirst => {
                let len = list.state.lock().rows.len() as u64;
                list.fetch(len.saturating_sub(PAGE_ROWS)).await.unwrap()
            }
            _ => list.fetch(0).await.unwrap(),
        };
        let depth = depth.map(|d| Timestamp::from_second(d).unwrap());
        let down = seek::down(list, list.order, head, usize::MAX, |rows| {
            depth.is_some_and(|depth| seek::passed(rows, depth))
        });
        let rows = match down.await {
            Ok(Down::Reached(rows)) => rows,
            Err(WalkError::Lost) => return None,
            other => panic!("{other:?}"),
        };
        assert!(rows.is_sorted_by_key(|slot| slot.time), "rows come oldest first");
        let keys: BTreeSet<u64> = rows.iter().map(|slot| slot.key).collect();
        assert_eq!(keys.len(), rows.len(), "no row comes twice");
        Some(keys)
    })
}

fn read_up(list: &List, depth: Option<i64>) -> Option<BTreeSet<u64>> {
    now(async {
        let depth = depth.map(|d| Timestamp::from_second(d).unwrap());
        let (mut walker, rows) = match seek::up(list, list.order, depth).await {
            Ok(found) => found,
            Err(WalkError::Lost) => return None,
            Err(other) => panic!("{other:?}"),
        };
        let mut keys: BTreeSet<u64> = rows.iter().map(|slot| slot.key).collect();
        loop {
            match walker.next().await {
                Ok(Some(rows)) => keys.extend(rows.iter().map(|slot| slot.key)),
                Ok(None) => return Some(keys),
                Err(WalkError::Lost) => return None,
                Err(other) => panic!("{other:?}"),
            }
        }
    })
}

/// Walks until one comes to its end, as the poller does: a run of deletions may take the very rows by which two pages
/// join, and a walk that is lost says so. One that ends must have missed nothing that was there when it began.
fn misses_nothing(
    list: &List,
    depth: Option<i64>,
    walk: impl Fn() -> Option<BTreeSet<u64>>,
) -> Result<bool, TestCaseError> {
    for _ in 0..5 {
        let before = list.keys();
        if let Some(read) = walk() {
            prop_assert_eq!(missed(&before, list, &read, depth), Vec::<u64>::new());
            return Ok(true);
        }
    }
    Ok(false)
}

/// Rows there at the start and at the end, above the depth, that were not read.
fn missed(before: &BTreeSet<u64>, list: &List, read: &BTreeSet<u64>, depth: Option<i64>) -> Vec<u64> {
    let state = list.state.lock();
    let wanted =
        state.rows.iter().filter(|(time, key)| before.contains(key) && depth.is_none_or(|d| *time >= d));
    wanted.map(|(_, key)| *key).filter(|key| !read.contains(key)).collect()
}

fn churns() -> impl Strategy<Value = Churn> {
    (0_u64..60, 0_u64..4, 0_u64..3).prop_map(|(heads, late, deletes)| Churn {
        heads: 0..=heads,
        late,
        deletes,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_down_misses_nothing(
        oldest_first: bool, len in 0_u64..2_000, depth in proptest::option::of(0_i64..2_000),
        seed: u64, churn in churns(), cap in 20_u64..=100, total: bool,
    ) {
        let order = if oldest_first { Order::OldestFirst } else { Order::NewestFirst };
        let heads_max = *churn.heads.end();
        let mut list = List::new(order, len, seed, churn);
        // Going backwards needs to know how long the list is.
        (list.cap, list.total) = (if oldest_first { 100 } else { cap }, total || oldest_first);
        // A head that grows by more than half a page per request may outrun any walk down it.
        let outrun = heads_max * 2 > list.cap;
        let ended = misses_nothing(&list, depth, || read_down(&list, depth))?;
        prop_assert!(ended || outrun, "no walk came to its end");
    }

    #[test]
    fn reading_up_misses_nothing(
        oldest_first: bool, len in 0_u64..2_000, depth in proptest::option::of(0_i64..2_000),
        seed: u64, churn in churns(), total: bool,
    ) {
        let order = if oldest_first { Order::OldestFirst } else { Order::NewestFirst };
        let mut list = List::new(order, len, seed, churn);
        list.total = total;
        prop_assert!(misses_nothing(&list, depth, || read_up(&list, depth))?, "no walk came to its end");
    }
}

#[test]
fn a_still_list_costs_one_request_per_page() {
    let still = Churn { heads: 0..=0, late: 0, deletes: 0 };
    let list = List::new(Order::NewestFirst, 960, 1, still);
    assert_eq!(read_down(&list, None).unwrap().len(), 960);
    assert_eq!(list.requests.load(Ordering::Relaxed), 10);
}

#[test]
fn a_head_that_grows_by_half_a_page_per_request_is_outrun() {
    let list = List::new(Order::NewestFirst, 4_000, 7, Churn { heads: 40..=60, late: 0, deletes: 0 });
    let before = list.keys();
    let read = read_down(&list, Some(1)).unwrap();
    assert!(before.is_subset(&read));
    // Without following the shift each page would yield half; with it most of a page.
    assert!(list.requests.load(Ordering::Relaxed) < 75, "{:?}", list.requests);
}

#[test]
fn a_source_that_ignores_the_offset_is_noticed() {
    struct Stuck(List);
    impl PageSource for Stuck {
        type Row = ();
        type Error = ();
        async fn fetch(&self, offset: u64) -> Result<ListPage<()>, ()> {
            Ok(ListPage { offset, ..self.0.page(0) })
        }
    }
    let stuck = Stuck(List::new(Order::NewestFirst, 500, 1, Churn { heads: 0..=0, late: 0, deletes: 0 }));
    let result = now(async {
        let head = stuck.fetch(0).await.unwrap();
        seek::down(&stuck, Order::NewestFirst, head, usize::MAX, |_| false).await
    });
    assert!(matches!(result, Err(WalkError::Lost)), "{result:?}");
}

/// All rows from the head down.
async fn walk_down<S: PageSource<Row = (), Error = ()>>(source: &S) -> BTreeSet<u64> {
    let (mut walker, rows) = Walker::start(source, Toward::End, source.fetch(0).await.unwrap());
    let mut keys: BTreeSet<u64> = rows.iter().map(|slot| slot.key).collect();
    while let Some(rows) = walker.next().await.unwrap() {
        keys.extend(rows.iter().map(|slot| slot.key));
    }
    keys
}

const STILL: Churn = Churn { heads: 0..=0, late: 0, deletes: 0 };

#[test]
fn equal_times_at_the_edge_of_a_page_are_all_read() {
    for at_once in [2, 7, 300] {
        let list = List::new(Order::NewestFirst, 960, 1, STILL);
        for (time, _) in &mut list.state.lock().rows {
            *time /= at_once;
        }
        assert_eq!(now(walk_down(&list)), list.keys(), "{at_once} rows a second");
    }
}

#[test]
fn a_total_that_is_too_small_ends_no_walk() {
    struct Counts(List, u64);
    impl PageSource for Counts {
        type Row = ();
        type Error = ();
        async fn fetch(&self, offset: u64) -> Result<ListPage<()>, ()> {
            Ok(ListPage { total: Some(self.1), ..self.0.page(offset) })
        }
    }
    for total in [0, 100, 150, 955] {
        let list = Counts(List::new(Order::NewestFirst, 960, 1, STILL), total);
        assert_eq!(now(walk_down(&list)), list.0.keys(), "total {total}");
    }
}

/// A list of so many rows that one page has them all: key, time. Keys from 100 on can't be recognised.
struct Script(Mutex<Vec<(u64, i64)>>);
impl PageSource for Script {
    type Row = ();
    type Error = ();
    async fn fetch(&self, offset: u64) -> Result<ListPage<()>, ()> {
        let rows = self.0.lock().clone();
        let slots = rows.into_iter().skip(offset as usize).map(|(key, second)| Slot {
            key,
            unique: key < 100,
            time: Timestamp::from_second(second).ok(),
            ordinal: 0,
            shown: Shown::default(),
            row: (),
        });
        Ok(ListPage {
            offset,
            slots: slots.collect(),
            total: None,
            asked_at: Timestamp::UNIX_EPOCH,
            sent_at: Timestamp::UNIX_EPOCH,
        })
    }
}

/// What stands behind the last row that is recognised stays there when another comes in between.
#[test]
fn a_row_that_is_not_recognised_is_read_once_however_often_the_rows_before_it_change() {
    let second = |keys: &[u64]| keys.iter().map(|key| (*key, 9)).collect::<Vec<_>>();
    let source = Script(Mutex::new(second(&[1, 2, 3, 4])));
    let read = now(async {
        let (mut walker, mut read) = Walker::start(&source, Toward::End, source.fetch(0).await.unwrap());
        for keys in [&[1, 2, 3, 4, 100][..], &[1, 2, 3, 4, 5, 100], &[1, 2, 3, 4, 5, 100, 6]] {
            *source.0.lock() = second(keys);
            walker.reopen();
            while let Some(rows) = walker.next().await.unwrap() {
                read.extend(rows);
            }
        }
        read
    });
    assert_eq!(read.iter().map(|slot| slot.key).collect::<Vec<_>>(), [1, 2, 3, 4, 100, 5, 6]);
}

/// A row that can't be recognised changes places with others of its second, and is not read twice; two equal ones are
/// two.
#[test]
fn equal_rows_that_change_places_within_their_second_are_counted_once_each() {
    let past = [(1, 1), (2, 2), (3, 3), (4, 4)];
    let later = [
        vec![(5, 9), (100, 9)],
        vec![(100, 9), (5, 9), (6, 9)],
        vec![(5, 9), (6, 9), (100, 9)],
        vec![(6, 9), (100, 9), (5, 9), (7, 9), (100, 9)],
    ];
    let source = Script(Mutex::new(past.to_vec()));
    let read = now(async {
        let (mut walker, mut read) = Walker::start(&source, Toward::End, source.fetch(0).await.unwrap());
        for rows in later {
            *source.0.lock() = [&past[..], &rows].concat();
            walker.reopen();
            while let Some(rows) = walker.next().await.unwrap() {
                read.extend(rows);
            }
        }
        read
    });
    let read = read.into_iter().map(|slot| (slot.key, slot.ordinal));
    let (anonymous, named): (Vec<_>, Vec<_>) = read.partition(|(key, _)| *key >= 100);
    assert_eq!(anonymous, [(100, 0), (100, 1)]);
    assert_eq!(named.len(), 7, "{named:?}");
}
