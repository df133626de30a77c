//! kill -9 of the real binary: nothing lost, nothing twice, the request budget kept.

use std::{collections::BTreeSet, time::Duration};

use simcast::globalsim::simulator::Config;

use super::{
    clients::Socket,
    support::{World, assert_exactly_once, settled},
};

const KILLS: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_kills_under_load_lose_nothing_and_double_nothing() {
    let world = World::new(Config {
        sims: 100,
        events_per_second: 50.0,
        history: Duration::from_secs(3600),
        history_events_per_second: 0.5,
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
        let pause = Duration::from_millis(rng.u64(1..700));
        let killer = async move {
            tokio::time::sleep(pause).await;
            tokio::task::spawn_blocking(move || gateway.kill()).await.unwrap();
        };
        let (got, ()) = tokio::join!(reader, killer);
        last = got.last().map(|seen| seen.cursor.clone()).or(last);
        given.extend(got);
    }
    let gateway = world.child();
    world.sim.pause();
    let events = settled(&world, gateway.http).await;
    assert_exactly_once(&world.sim.truth(), &events);
    let ids: BTreeSet<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len(), "no id twice in the log");

    let cursors: Vec<_> = events.iter().map(super::clients::Seen::of).collect();
    assert!(!given.is_empty());
    assert_eq!(
        given,
        cursors[..given.len()],
        "what a subscriber was given is what the log kept, without a hole"
    );

    let worst = world.sim.max_requests_in_any_60s();
    assert!(worst <= 400, "{worst} requests in 60 s with requests_per_minute = 400, over {KILLS} restarts");
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
