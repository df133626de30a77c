//! What can't be delivered: retention that overtakes a reader or the hub, and damaged records. Whatever happens, each
//! position is delivered once or announced once, in order, and a cursor never speaks for what was not handed out.

use std::ops::RangeInclusive;

use super::*;
use crate::log::Options;

const KEEP_BYTES: u64 = 12_000;

fn options(retention_bytes: u64) -> Options {
    // Nothing in memory: readers go to the segments, as far behind.
    Options { incarnation: 7, segment_bytes: 3_000, retention_bytes, recent_bytes: 0, ..Options::default() }
}

fn expire(log: &Log) -> u64 {
    log.maintain(Timestamp::from_second(1_700_000_100).unwrap()).unwrap();
    log.bounds().first_seq
}

fn unfiltered(start: Start, on_expired: OnExpired) -> Spec {
    Spec { on_expired, ..spec(Encoding::WebSocket, json!({}), start) }
}

/// Positions handed out, and those announced as missing.
#[derive(Debug, Default)]
struct Account {
    delivered: Vec<u64>,
    gaps: Vec<(RangeInclusive<u64>, GapReason, Option<u64>)>,
    position: u64,
}

impl Account {
    fn after(position: u64) -> Self {
        Self { position, ..Self::default() }
    }

    /// Books one delivery: it must go on exactly where the last one ended.
    fn book(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Batch(batch) => {
                for id in ids(&batch) {
                    let seq = id.strip_prefix("evt_").unwrap().parse::<u64>().unwrap() + 1;
                    assert_eq!(seq, self.position + 1, "{self:?}");
                    self.delivered.push(seq);
                    self.position = seq;
                }
                assert_eq!(batch.cursor.seq, self.position, "the cursor speaks for what was handed out");
            }
            Delivery::Gap(gap) => {
                let (from, to) = (gap.from.unwrap().seq, gap.to.unwrap().seq);
                assert_eq!(from, self.position, "{self:?} {gap:?}");
                self.gaps.push((from + 1..=to, gap.reason, gap.lost));
                self.position = to;
            }
            Delivery::CaughtUp(_) => {}
            Delivery::Failed(error) => panic!("{error}"),
        }
    }

    async fn read_to(&mut self, sub: &mut Subscription, last: u64) {
        while self.position < last {
            let next = tokio::time::timeout(std::time::Duration::from_secs(20), sub.next()).await;
            self.book(next.expect("something is delivered"));
        }
    }
}

#[tokio::test]
async fn a_reader_overtaken_by_retention_is_told_exactly_what_it_lost() {
    let log = Arc::new(Log::in_memory_with(options(KEEP_BYTES)));
    let config = Config { batch_events: 4, ring_bytes: 3_000, ..Config::default() };
    let (hub, _stop) = start_hub(config, &log);
    for filtered in [false, true] {
        let start = log.bounds().last_seq;
        let mut wanted = unfiltered(Start::Now, OnExpired::Earliest);
        if filtered {
            // Another outlet, all the same events.
            wanted.predicate = predicate(json!({"iccid_prefix": ["8947"]}));
        }
        while hub.edge().seq < start {
            tokio::task::yield_now().await;
        }
        let mut sub = hub.subscribe(wanted).await.unwrap();
        let mut account = Account::after(start);
        append(&log, start..start + 10);
        account.read_to(&mut sub, start + 6).await;
        let seen = account.position;
        append(&log, start + 10..start + 200);
        while hub.edge().seq < start + 200 {
            tokio::task::yield_now().await;
        }
        let first = expire(&log);
        assert!(first > seen + 1);
        account.read_to(&mut sub, start + 200).await;
        let lost = first - 1 - seen;
        assert_eq!(account.gaps, [(seen + 1..=first - 1, GapReason::Retention, Some(lost))]);
        assert_eq!(account.delivered.len() as u64, 200 - lost);
    }
}

#[tokio::test]
async fn a_reader_that_wants_to_fail_or_the_newest_gets_that_in_mid_stream() {
    let log = Arc::new(Log::in_memory_with(options(KEEP_BYTES)));
    let config = Config { batch_events: 4, ring_bytes: 3_000, ..Config::default() };
    let (hub, _stop) = start_hub(config, &log);
    let mut failing = hub.subscribe(unfiltered(Start::Now, OnExpired::Fail)).await.unwrap();
    let mut latest = hub.subscribe(unfiltered(Start::Now, OnExpired::Latest)).await.unwrap();
    append(&log, 0..200);
    while hub.edge().seq < 200 {
        tokio::task::yield_now().await;
    }
    let first = expire(&log);
    let failed = loop {
        match failing.next().await {
            Delivery::CaughtUp(_) => {}
            other => break other,
        }
    };
    let Delivery::Failed(Error::Expired { oldest, newest, reason }) = failed else { panic!("{failed:?}") };
    assert_eq!((oldest.seq, newest.seq, reason), (first - 1, 200, GapReason::Retention));
    append(&log, 200..210);
    let mut account = Account::after(0);
    account.read_to(&mut latest, 210).await;
    let (range, reason, lost) = &account.gaps[0];
    assert_eq!((account.gaps.len(), *reason, *lost), (1, GapReason::Retention, Some(*range.end())));
    assert!(*range.end() >= 200);
}

#[tokio::test]
async fn a_hub_overtaken_by_retention_goes_on_and_says_so() {
    let log = Arc::new(Log::in_memory_with(options(KEEP_BYTES)));
    append(&log, 0..5);
    let hub = Hub::new(Config::default(), log.clone());
    let mut sub = hub.subscribe(unfiltered(Start::Now, OnExpired::Earliest)).await.unwrap();
    // Nobody runs the hub while the log goes round once.
    append(&log, 5..200);
    let first = expire(&log);
    assert!(first > 7);
    let stop = CancellationToken::new();
    tokio::spawn(hub.clone().run(stop.clone()));
    let mut account = Account::after(5);
    account.read_to(&mut sub, 200).await;
    assert_eq!(account.gaps, [(6..=first - 1, GapReason::Retention, Some(first - 6))]);
    append(&log, 200..210);
    account.read_to(&mut sub, 210).await;
    assert_eq!(account.gaps.len(), 1);
}

/// Overwrites the bodies of some events where they lie on the disk.
fn damage(directory: &std::path::Path, numbers: &[u64]) {
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        for n in numbers {
            let text = format!("\"id\":\"evt_{n}\"");
            if let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) {
                bytes[at] ^= 1;
            }
        }
        // In place: the log has the file open.
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    }
}

#[tokio::test]
async fn damaged_records_are_announced_in_their_place_behind_and_live() {
    let directory = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(directory.path(), options(1 << 30)).unwrap());
    append(&log, 0..5);
    let hub = Hub::new(Config::default(), log.clone());
    let mut live = hub.subscribe(unfiltered(Start::Now, OnExpired::Earliest)).await.unwrap();
    append(&log, 5..60);
    damage(directory.path(), &[2, 20, 21, 30]);
    let stop = CancellationToken::new();
    tokio::spawn(hub.clone().run(stop.clone()));
    let mut behind = hub.subscribe(unfiltered(Start::Earliest, OnExpired::Earliest)).await.unwrap();
    let mut account = Account::after(0);
    account.read_to(&mut behind, 60).await;
    let corrupt = |range: RangeInclusive<u64>| {
        let lost = range.end() - range.start() + 1;
        (range, GapReason::Corruption, Some(lost))
    };
    let expected = [corrupt(3..=3), corrupt(21..=22), corrupt(31..=31)];
    assert_eq!(account.gaps, expected);
    let mut account = Account::after(5);
    account.read_to(&mut live, 60).await;
    assert_eq!(account.gaps, expected[1..], "a live reader is told as well");
    append(&log, 60..70);
    account.read_to(&mut live, 70).await;
    assert_eq!(account.gaps.len(), 2);
}

#[tokio::test]
async fn history_tells_every_damaged_range() {
    let directory = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(directory.path(), options(1 << 30)).unwrap());
    append(&log, 0..60);
    damage(directory.path(), &[20, 30, 59]);
    let hub = Hub::new(Config::default(), log.clone());
    for order in [Order::Asc, Order::Desc] {
        let mut position = if order == Order::Asc { HistoryStart::Oldest } else { HistoryStart::Newest };
        let (mut count, mut gaps) = (0, Vec::new());
        for _ in 0..20 {
            let page = hub
                .history(HistoryQuery {
                    encoding: Encoding::WebSocket,
                    predicate: predicate(json!({})),
                    policy: None,
                    position,
                    since: None,
                    until: None,
                    event_since: None,
                    event_until: None,
                    limit: 1000,
                    order,
                    on_expired: OnExpired::Fail,
                })
                .await
                .unwrap();
            count += page.count;
            gaps.extend(page.gap.map(|gap| gap.to.unwrap().seq));
            if page.caught_up {
                break;
            }
            position = match order {
                Order::Asc => HistoryStart::After(page.next),
                Order::Desc => HistoryStart::Before(page.next),
            };
        }
        gaps.sort_unstable();
        assert_eq!((count, gaps), (57, vec![21, 31, 60]), "{order:?}");
    }
}
