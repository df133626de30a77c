//! The hub against a naive oracle: no hole, no repeat, nothing outside the predicate, wherever a reader joins.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::*;
use crate::{
    event::{Event, Filter, FilterLimits, Flags, Iccid, identity::Identity},
    log::Entry,
};

mod disk;
mod holes;

const TYPES: [&str; 3] = ["connection", "disconnection", "network_change"];

fn entry(n: u64) -> Entry {
    let id = format!("evt_{n}");
    let mut event = Event::new(id.clone(), "/globalsim/test".into(), TYPES[(n % 3) as usize]);
    event.iccid = Iccid::parse(&format!("8947{:015}", n % 5)).ok();
    event.device_id = (!n.is_multiple_of(4)).then(|| format!("Dev-{}", n % 4));
    event.time = Some(Timestamp::from_second(1_700_000_000 + n as i64).unwrap());
    event.flags = Flags::default();
    let identity =
        Identity { event_id: Some(&id), iccid: None, event_type: &event.event_type, timestamp: None }.hash();
    let observed = Timestamp::from_second(1_700_000_000 + n as i64).unwrap();
    Entry { sealed: event.seal(observed, SignedDuration::from_secs(300)).unwrap(), identity, content: 0 }
}

fn append(log: &Log, range: std::ops::Range<u64>) {
    log.append(range.map(entry).collect()).unwrap();
}

fn predicate(filter: serde_json::Value) -> Predicate {
    Filter::from_json(&filter, FilterLimits::default()).unwrap().0.into()
}

fn spec(encoding: Encoding, filter: serde_json::Value, start: Start) -> Spec {
    Spec { encoding, predicate: predicate(filter), policy: None, start, on_expired: OnExpired::Fail }
}

/// The ids in the bytes of a WebSocket batch, which must be valid JSON once opened.
fn ids(batch: &Batch) -> Vec<String> {
    let text = format!(r#"{{"items":[{}"#, std::str::from_utf8(&batch.bytes).unwrap());
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = value["items"].as_array().unwrap();
    assert_eq!(items.len(), batch.count as usize);
    let last = Cursor::parse(items.last().unwrap()["cursor"].as_str().unwrap()).unwrap();
    assert!(last.seq <= batch.cursor.seq, "a batch is evaluated at least up to its last event");
    items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

/// Everything up to the live edge of `log`, then stops.
async fn drain(sub: &mut Subscription, last_seq: u64) -> Vec<String> {
    let mut got = Vec::new();
    while sub.cursor().seq < last_seq {
        match tokio::time::timeout(std::time::Duration::from_millis(5), sub.next()).await {
            Ok(Delivery::Batch(batch)) => got.extend(ids(&batch)),
            Ok(Delivery::CaughtUp(_)) | Err(_) => {}
            Ok(other) => panic!("{other:?}"),
        }
    }
    got
}

fn expected(log: &Log, filter: &Predicate, after: u64) -> Vec<String> {
    (after + 1..=log.bounds().last_seq)
        .filter_map(|seq| log.get(seq).unwrap())
        .filter(|event| filter.matches(&event.keys().unwrap()))
        .map(|event| event.keys().unwrap().id.to_owned())
        .collect()
}

fn start_hub(config: Config, log: &Arc<Log>) -> (Hub, CancellationToken) {
    let hub = Hub::new(config, log.clone());
    let stop = CancellationToken::new();
    tokio::spawn(hub.clone().run(stop.clone()));
    (hub, stop)
}

/// Joins at random positions, with random filters, while events are appended in random batches, with rings so small
/// that readers fall out of them again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resuming_at_a_thousand_random_cut_points_neither_skips_nor_repeats() {
    let log = Arc::new(Log::in_memory(7));
    let config = Config { batch_events: 8, ring_bytes: 20_000, ..Config::default() };
    let (hub, _stop) = start_hub(config, &log);
    let mut rng = fastrand::Rng::with_seed(42);
    let filters = [
        json!({}),
        json!({"event_type": ["connection"]}),
        json!({"iccid": ["8947000000000000001", "8947000000000000003"]}),
        json!({"device_id": ["dev-1"], "event_type": ["network_change", "disconnection"]}),
        json!({"iccid_prefix": ["8947"], "exclude_flags": ["late"]}),
        json!({"iccid": ["8947999999999999999"]}),
    ];
    let mut appended: u64 = 0;
    let mut cuts = 0;
    while cuts < 1000 {
        let filter = filters[rng.usize(..filters.len())].clone();
        let wanted = predicate(filter.clone());
        let start_seq = if appended == 0 { 0 } else { rng.u64(appended.saturating_sub(300)..=appended) };
        let start = Start::After(log.cursor_at(start_seq));
        let mut sub = hub.subscribe(spec(Encoding::WebSocket, filter.clone(), start)).await.unwrap();
        let mut got = Vec::new();
        for _ in 0..rng.u32(1..4) {
            let next = appended + rng.u64(1..40);
            append(&log, appended..next);
            appended = next;
            if rng.bool() {
                // Cut in the middle of whatever it is doing, then resume by the cursor it has reached.
                let limit = rng.usize(0..60);
                while got.len() < limit {
                    match tokio::time::timeout(std::time::Duration::from_millis(1), sub.next()).await {
                        Ok(Delivery::Batch(batch)) => got.extend(ids(&batch)),
                        Ok(Delivery::CaughtUp(_)) => {}
                        Ok(other) => panic!("{other:?}"),
                        Err(_) => break,
                    }
                }
                let cursor = sub.cursor();
                drop(sub);
                sub = hub
                    .subscribe(spec(Encoding::WebSocket, filter.clone(), Start::After(cursor)))
                    .await
                    .unwrap();
                cuts += 1;
            }
        }
        got.extend(drain(&mut sub, log.bounds().last_seq).await);
        assert_eq!(got, expected(&log, &wanted, start_seq), "filter {filter} from {start_seq}");
    }
}

#[tokio::test]
async fn now_is_exact_and_an_idle_reader_costs_no_queue() {
    let log = Arc::new(Log::in_memory(7));
    append(&log, 0..10);
    let (hub, _stop) = start_hub(Config::default(), &log);
    let mut sub = hub.subscribe(spec(Encoding::WebSocket, json!({}), Start::Now)).await.unwrap();
    assert_eq!(sub.opened_at(), log.cursor_at(10));
    assert!(matches!(sub.next().await, Delivery::CaughtUp(c) if c == log.cursor_at(10)));
    append(&log, 10..300);
    let mut got = Vec::new();
    while got.len() < 290 {
        match sub.next().await {
            Delivery::Batch(batch) => got.extend(ids(&batch)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, (10..300).map(|n| format!("evt_{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_changed_filter_goes_on_from_the_same_position() {
    let log = Arc::new(Log::in_memory(7));
    let (hub, _stop) = start_hub(Config::default(), &log);
    let mut sub = hub
        .subscribe(spec(Encoding::WebSocket, json!({"event_type": ["connection"]}), Start::Now))
        .await
        .unwrap();
    append(&log, 0..30);
    let first = drain(&mut sub, 30).await;
    assert_eq!(first.len(), 10);
    let at = sub.cursor().seq;
    sub.update(predicate(json!({"event_type": ["disconnection"]})));
    append(&log, 30..60);
    let second = drain(&mut sub, 60).await;
    assert_eq!(second, expected(&log, &predicate(json!({"event_type": ["disconnection"]})), at));
}

#[tokio::test]
async fn cursors_out_of_range_fail_or_announce_a_gap() {
    let log = Arc::new(Log::in_memory(7));
    append(&log, 0..5);
    let (hub, _stop) = start_hub(Config::default(), &log);
    let foreign = Cursor { incarnation: 8, seq: 2, tag: 0 };
    let ahead = Cursor { incarnation: 7, seq: 99, tag: 0 };
    for (cursor, reason) in [(foreign, GapReason::Incarnation), (ahead, GapReason::Regressed)] {
        let wanted = spec(Encoding::WebSocket, json!({}), Start::After(cursor));
        let error = hub.subscribe(wanted.clone()).await.unwrap_err();
        assert!(
            matches!(&error, Error::Expired { reason: r, newest, .. } if *r == reason && newest.seq == 5)
        );
        assert!(!error.retryable());
        let mut sub =
            hub.subscribe(Spec { on_expired: OnExpired::Earliest, ..wanted.clone() }).await.unwrap();
        let Delivery::Gap(gap) = sub.next().await else { panic!("a gap comes first") };
        assert_eq!((gap.from, gap.to.map(|c| c.seq), gap.reason), (Some(cursor), Some(0), reason));
        assert_eq!(drain(&mut sub, 5).await.len(), 5);
        let sub = hub.subscribe(Spec { on_expired: OnExpired::Latest, ..wanted }).await.unwrap();
        assert_eq!(sub.opened_at().seq, 5);
    }
}

#[tokio::test]
async fn starts_and_history_agree_with_the_log() {
    let log = Arc::new(Log::in_memory(7));
    append(&log, 0..100);
    let (hub, _stop) = start_hub(Config::default(), &log);
    let filter = json!({"event_type": ["connection"]});
    let wanted = predicate(filter.clone());
    let all = expected(&log, &wanted, 0);
    let since = Start::Since(Timestamp::from_second(1_700_000_000 + 50).unwrap());
    for (start, from) in [(Start::Earliest, 0), (Start::Last(7), all.len() - 7), (Start::Last(1000), 0)] {
        let mut sub = hub.subscribe(spec(Encoding::WebSocket, filter.clone(), start)).await.unwrap();
        assert_eq!(drain(&mut sub, 100).await, all[from..], "{start:?}");
    }
    let mut sub = hub.subscribe(spec(Encoding::WebSocket, filter, since)).await.unwrap();
    assert_eq!(drain(&mut sub, 100).await, expected(&log, &wanted, 50));

    for order in [Order::Asc, Order::Desc] {
        let mut got: Vec<String> = Vec::new();
        let mut position = if order == Order::Asc { HistoryStart::Oldest } else { HistoryStart::Newest };
        loop {
            let page = hub
                .history(HistoryQuery {
                    encoding: Encoding::WebSocket,
                    predicate: wanted.clone(),
                    policy: None,
                    position,
                    since: None,
                    until: None,
                    event_since: None,
                    event_until: None,
                    limit: 7,
                    order,
                    on_expired: OnExpired::Fail,
                })
                .await
                .unwrap();
            let text = format!("[{}]", std::str::from_utf8(&page.bytes).unwrap());
            let items: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            assert_eq!(items.len(), page.count as usize);
            got.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            if page.caught_up {
                break;
            }
            position = if order == Order::Asc {
                HistoryStart::After(page.next)
            } else {
                HistoryStart::Before(page.next)
            };
        }
        if order == Order::Desc {
            got.reverse();
        }
        assert_eq!(got, all, "{order:?}");
    }
}

#[tokio::test]
async fn the_table_is_empty_when_the_last_reader_leaves() {
    let log = Arc::new(Log::in_memory(7));
    let hub = Hub::new(Config::default(), log);
    let filters =
        [json!({}), json!({"iccid": ["8947000000000000001"]}), json!({"event_type": ["connection"]})];
    let mut subs = Vec::new();
    for filter in &filters {
        for encoding in [Encoding::WebSocket, Encoding::Sse { named: false }, Encoding::Protobuf] {
            subs.push(hub.subscribe(spec(encoding, filter.clone(), Start::Now)).await.unwrap());
            subs.push(hub.subscribe(spec(encoding, filter.clone(), Start::Now)).await.unwrap());
        }
    }
    assert_eq!(hub.0.table.lock().len(), (3, 9));
    drop(subs);
    assert_eq!(hub.0.table.lock().len(), (0, 0));
}

/// What lies ready in memory for a reader that is behind goes with an erasure; the reader is told of no gap.
#[tokio::test]
async fn a_reader_that_is_behind_gets_nothing_of_what_was_erased() {
    let log = Arc::new(Log::in_memory(7));
    let (hub, _stop) = start_hub(Config::default(), &log);
    let mut sub = hub.subscribe(spec(Encoding::WebSocket, json!({}), Start::Now)).await.unwrap();
    append(&log, 0..40);
    while hub.edge().seq < 40 {
        tokio::task::yield_now().await;
    }
    log.erase(&format!("8947{:015}", 2), 40).unwrap();
    hub.forget_rings();
    append(&log, 40..50);
    let wanted = expected(&log, &predicate(json!({})), 0);
    assert_eq!(wanted.len(), 42);
    assert_eq!(drain(&mut sub, 50).await, wanted);
}
