//! Several gateways on one NATS: one polls, all serve.

use std::time::{Duration, Instant};

use serde_json::Value;
use simcast::globalsim::simulator::Config;

use super::{
    clients::{Seen, Socket},
    nats_server::Server,
    support::{Bus, ChildGateway, PATIENCE, World, assert_exactly_once, get, settled, signal, stored},
};

const KILLS: usize = 20;

/// Whether a gateway is the one that polls; None where it does not answer yet.
async fn polls(gateway: &ChildGateway) -> Option<bool> {
    let (status, shown) =
        tokio::time::timeout(Duration::from_secs(5), get(gateway.http, "/v1/stream")).await.ok()?;
    (status == 200).then(|| shown["upstream"]["polled_here"] == true)
}

/// Waits until one of the gateways polls; gives which.
async fn poller(gateways: &[ChildGateway]) -> usize {
    let began = Instant::now();
    loop {
        for (at, gateway) in gateways.iter().enumerate() {
            if polls(gateway).await == Some(true) {
                return at;
            }
        }
        assert!(began.elapsed() < PATIENCE, "nobody polls");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn child(world: &World, name: &str) -> ChildGateway {
    ChildGateway::start(&world.settings_of(name))
}

/// A reader that is cut all the time and goes on at the other gateway with the same cursor.
async fn wander(http: [std::net::SocketAddr; 2], seen: &mut Vec<Seen>, until: Instant) {
    let mut turn = 0;
    while Instant::now() < until {
        turn += 1;
        let start = seen.last().map_or("from=earliest".to_owned(), |last| format!("after={}", last.cursor));
        let Ok(mut socket) = Socket::open(http[turn % 2], &start).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let cut = tokio::time::Instant::now() + Duration::from_millis(700);
        while let Ok(Some(events)) = tokio::time::timeout_at(cut, socket.events()).await {
            seen.extend(events);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_poller_is_killed_twenty_times_and_nothing_is_lost_doubled_or_asked_too_often() {
    let world = World::on(
        Bus::Nats,
        Config {
            sims: 100,
            events_per_second: 10.0,
            history: Duration::from_secs(1800),
            history_events_per_second: 0.3,
            ..Config::default()
        },
    )
    .await;
    let mut names = vec!["one", "two"];
    let mut gateways = vec![child(&world, "one"), child(&world, "two")];
    let mut seen = Vec::new();
    let mut longest = Duration::ZERO;
    for kill in 0..KILLS {
        let at = poller(&gateways).await;
        // Each life sees a part of a minute of the budget.
        let http = [gateways[0].http, gateways[1].http];
        wander(http, &mut seen, Instant::now() + Duration::from_secs(2)).await;
        let (name, killed) = (names.remove(at), gateways.remove(at));
        names.push(name);
        match kill % 4 {
            // Stopped in the middle of whatever it did, and going on when another polls.
            3 => {
                let pid = killed.pid();
                signal(pid, "STOP");
                let began = Instant::now();
                poller(&gateways).await;
                longest = longest.max(began.elapsed());
                println!("takeover {kill} from a stopped one: {:?}", began.elapsed());
                signal(pid, "CONT");
                tokio::time::sleep(Duration::from_secs(1)).await;
                gateways.push(killed);
                continue;
            }
            // A clean stop hands over at once.
            2 => assert_eq!(killed.terminate(), Some(0)),
            _ => killed.kill(),
        }
        let began = Instant::now();
        gateways.push(child(&world, name));
        poller(&gateways).await;
        longest = longest.max(began.elapsed());
        println!("takeover {kill}: {:?}", began.elapsed());
    }
    world.sim.pause();
    let events = settled(&world, gateways[0].http).await;
    assert_exactly_once(&world.sim.truth(), &events);
    // Both serve the same, cursors and all.
    let edge = events.last().unwrap()["cursor"].clone();
    let began = Instant::now();
    loop {
        let other = stored(gateways[1].http).await;
        if other.iter().any(|event| event["cursor"] == edge) {
            assert_eq!(other[..events.len()], events[..]);
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the other gateway does not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let http = [gateways[0].http, gateways[1].http];
    while !seen.iter().any(|one| one.cursor.as_str() == edge) {
        wander(http, &mut seen, Instant::now() + Duration::from_secs(1)).await;
        assert!(began.elapsed() < PATIENCE, "the reader does not come to the end");
    }
    let expected: Vec<_> = events.iter().map(Seen::of).collect();
    // Completed copies may have followed meanwhile.
    assert_eq!(seen[..expected.len()], expected[..], "a hole or a repeat");
    let most = world.sim.max_requests_in_any_60s();
    assert!(most <= 400, "{most} requests in a minute");
    assert!(longest < Duration::from_secs(15), "a takeover took {longest:?}");
    println!(
        "{KILLS} pollers gone, {} events, at most {most} requests in 60 s, longest takeover {longest:?}",
        events.len()
    );
}

/// Subscribers of a gateway that does not poll can tell quiet from blind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_does_not_poll_shows_what_the_poller_sees() {
    let world = World::quiet_on(Bus::Nats).await;
    let gateways = [child(&world, "one"), child(&world, "two")];
    let at = poller(&gateways).await;
    let other = &gateways[1 - at];
    let began = Instant::now();
    loop {
        let (_, shown) = get(other.http, "/v1/stream").await;
        let upstream = &shown["upstream"];
        if upstream["state"] == "ok" && upstream["seen_until"].is_string() {
            assert_eq!(upstream["polled_here"], false);
            assert!(upstream["lag_seconds"].as_f64().unwrap() < 10.0, "{shown}");
            assert_eq!(shown["bus"]["kind"], "nats");
            assert_eq!(shown["bus"]["filling"], Value::Null);
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{shown}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The stream is deleted under the gateways: they begin anew in the same processes, and what upstream still shows is
/// read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_deleted_is_made_and_filled_again() {
    let world = World::quiet_on(Bus::Nats).await;
    let gateway = world.gateway().await;
    world.sim.inject_burst(30);
    assert!(settled(&world, gateway.http).await.len() >= 30);
    let server: &Server = world.nats.as_ref().unwrap();
    server.context().await.delete_stream("SIMCAST").await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, gateway.running.join()).await.unwrap();
    assert!(ended.restart.is_some() && ended.failure.is_none(), "{ended:?}");
    let gateway = world.gateway().await;
    let events = settled(&world, gateway.http).await;
    assert_exactly_once(&world.sim.truth(), &events);
    gateway.stop().await;
}
