//! kill -9 of the real binary: nothing lost, nothing twice, the request budget kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;
use simcast::globalsim::simulator::{Config, Faults, faults};

use super::{
    clients::Socket,
    support::{PATIENCE, World, stored},
};

const KILLS: usize = 300;
/// Longest life of one gateway. Most are shorter than a start takes, some see a sweep end.
const LIFE_MS_MAX: u64 = 1_400;

/// A list that changes between any two requests, rows that come late, ids that repeat or lack, and one answer in
/// seven broken on its way.
fn adversary() -> Faults {
    Faults {
        tie_order: faults::TieOrder::Random,
        late: faults::Late { probability: 0.1, mean_ms: 4_000, max_ms: 30_000 },
        paging: faults::Paging { inserts: 1, revisions: 1, ..Default::default() },
        lists: faults::Lists { short_page: 0.03, ..Default::default() },
        content: faults::Content {
            duplicate_id: 0.02,
            duplicate_row: 0.02,
            missing_id: 0.02,
            unknown_type: 0.02,
            extra_fields: 0.05,
            nulls: 0.05,
            numbers_as_strings: 0.05,
            ..Default::default()
        },
        errors: faults::Errors {
            server_error: 0.04,
            too_many: 0.005,
            too_many_burst: 2,
            ..Default::default()
        },
        transport: faults::Transport {
            reset: 0.02,
            reset_in_body: 0.02,
            truncate: 0.02,
            truncate_json: 0.02,
            html: 0.02,
            slow: 0.1,
            slow_min_ms: 5,
            slow_max_ms: 200,
            ..Default::default()
        },
        ..Faults::default()
    }
}

/// What tells two events apart without trusting any id of ours: event_id, ICCID, type and time as upstream wrote them.
type Key = [String; 4];

fn key_of(row: &Value) -> Key {
    ["event_id", "iccid", "event_type", "timestamp"].map(|field| match &row[field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

/// How often each event is to be in the log: rows without event_id may be equal and yet be two events.
fn wanted(world: &World) -> BTreeMap<Key, usize> {
    let mut counts = BTreeMap::new();
    for truth in world.sim.truth() {
        let count = counts.entry(key_of(&truth.account_row)).or_insert(0);
        *count = if truth.event_id.is_some() { 1 } else { *count + 1 };
    }
    counts
}

/// How often each is. Completed copies follow their event and are not counted.
fn kept(events: &[Value]) -> BTreeMap<Key, usize> {
    let mut counts = BTreeMap::new();
    for event in events.iter().filter(|event| !event["id"].as_str().unwrap().ends_with("~details")) {
        *counts.entry(key_of(&event["data"])).or_insert(0) += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_kills_under_faults_lose_nothing_and_double_nothing() {
    let world = World::new(Config {
        sims: 100,
        events_per_second: 20.0,
        history: Duration::from_secs(3600),
        history_events_per_second: 0.5,
        faults: adversary(),
        ..Config::default()
    })
    .await;
    let mut rng = fastrand::Rng::with_seed(11);
    // A subscriber through all of it: what it was given must still be there in the end, at the same cursor.
    let mut given = Vec::new();
    let mut last = None::<String>;
    for _ in 0..KILLS {
        let gateway = world.child();
        let start = last.as_ref().map_or("from=earliest".to_owned(), |cursor| format!("after={cursor}"));
        let http = gateway.http;
        let reader = async {
            let mut got = Vec::new();
            if let Ok(mut socket) = Socket::open(http, &start).await {
                while let Some(events) = socket.events().await {
                    got.extend(events);
                }
            }
            got
        };
        let pause = Duration::from_millis(rng.u64(1..LIFE_MS_MAX));
        let killer = async move {
            tokio::time::sleep(pause).await;
            tokio::task::spawn_blocking(move || gateway.kill()).await.unwrap();
        };
        let (got, ()) = tokio::join!(reader, killer);
        last = got.last().map(|seen| seen.cursor.clone()).or(last);
        given.extend(got);
    }
    // The faults end and the gateway lives, so that there is an end to compare.
    world.sim.pause();
    world.sim.set_faults(Faults::default());
    let gateway = world.child();
    let deadline = tokio::time::Instant::now() + PATIENCE * 3;
    let events = loop {
        let (want, events) = (wanted(&world), stored(gateway.http).await);
        let have = kept(&events);
        let lacking: Vec<_> =
            want.iter().filter(|(key, n)| have.get(*key).unwrap_or(&0) < n).take(5).collect();
        if lacking.is_empty() && want == wanted(&world) {
            assert_eq!(want, have, "nothing twice, nothing invented");
            break events;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} shown, lacking {lacking:?}", want.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let ids: BTreeSet<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len(), "no id twice in the log");

    let cursors: Vec<_> = events.iter().map(super::clients::Seen::of).collect();
    assert!(given.len() > 1_000, "only {} events reached the subscriber", given.len());
    assert_eq!(
        given,
        cursors[..given.len()],
        "what a subscriber was given is what the log kept, without a hole"
    );

    let worst = world.sim.max_requests_in_any_60s();
    let stats = world.sim.stats();
    assert!(worst <= 400, "{worst} requests in 60 s with requests_per_minute = 400, over {KILLS} restarts");
    eprintln!(
        "{KILLS} kills: {} events shown and kept once, {} given to the subscriber, {} requests, {worst} in the worst \
         minute, faults {:?}",
        ids.len(),
        given.len(),
        stats.requests,
        stats.faults
    );
    assert_eq!(gateway.terminate(), Some(0));
}

/// 20 restarts within a minute must not add up to more than the budget, as upstream counts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_restarts_in_a_minute_stay_within_a_small_budget() {
    let world = World::new(Config {
        sims: 20,
        events_per_second: 20.0,
        history: Duration::ZERO,
        ..Config::default()
    })
    .await;
    let mut settings = world.settings();
    settings.push(("SIMCAST__UPSTREAM__REQUESTS_PER_MINUTE".into(), "60".into()));
    for n in 0..20 {
        let gateway = super::support::ChildGateway::start(&settings);
        tokio::time::sleep(Duration::from_millis(500)).await;
        if n % 2 == 0 {
            gateway.kill();
        } else {
            assert_eq!(gateway.terminate(), Some(0));
        }
    }
    let worst = world.sim.max_requests_in_any_60s();
    assert!((1..=60).contains(&worst), "{worst} requests in 60 s with requests_per_minute = 60");
}
