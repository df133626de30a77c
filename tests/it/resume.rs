//! Cut anywhere, resume by the last cursor: no hole, no repeat.

use std::time::Duration;

use simcast::globalsim::simulator::Config;

use super::{
    clients::{Seen, Socket},
    support::{Bus, World, assert_exactly_once, on_both_buses, settled},
};

/// Follows one filter through as many connections as it is cut into.
struct Follower {
    query: &'static str,
    types: &'static [&'static str],
    seen: Vec<Seen>,
    cuts: usize,
}

impl Follower {
    fn new(query: &'static str, types: &'static [&'static str]) -> Self {
        Self { query, types, seen: Vec::new(), cuts: 0 }
    }

    /// One connection: reads up to `events` events, then drops it wherever it is.
    async fn read(&mut self, addr: std::net::SocketAddr, events: usize, patience: Duration) {
        let start = match self.seen.last() {
            Some(last) => format!("after={}", last.cursor),
            None => "from=earliest".to_owned(),
        };
        let Ok(mut socket) = Socket::open(addr, &format!("{}&{start}", self.query)).await else { return };
        let target = self.seen.len() + events;
        while self.seen.len() < target {
            match tokio::time::timeout(patience, socket.events()).await {
                Ok(Some(batch)) => {
                    // Cut in the middle of a batch as well: what was not processed must come again.
                    let take = batch.len().min(target - self.seen.len());
                    self.seen.extend(batch.into_iter().take(take));
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.cuts += 1;
    }
}

/// A thousand cuts of the connection at random points, and the gateway restarted under the readers every fifty.
async fn a_thousand_cuts_and_twenty_restarts_leave_no_hole_and_no_repeat(bus: Bus) {
    let world = World::on(
        bus,
        Config {
            sims: 40,
            events_per_second: 60.0,
            history: Duration::from_secs(3600),
            history_events_per_second: 0.5,
            ..Config::default()
        },
    )
    .await;
    let mut rng = fastrand::Rng::with_seed(7);
    let mut followers = [
        Follower::new("sub=all", &[]),
        Follower::new("event_type=connection", &["connection"]),
        Follower::new("event_type=disconnection,network_change", &["disconnection", "network_change"]),
    ];
    followers[0].query = "";
    let mut gateway = world.gateway().await;
    for round in 0.. {
        let [a, b, c] = &mut followers;
        let mut plan = || (rng.usize(0..40), Duration::from_millis(rng.u64(1..120)));
        let (pa, pb, pc) = (plan(), plan(), plan());
        tokio::join!(
            a.read(gateway.http, pa.0, pa.1),
            b.read(gateway.http, pb.0, pb.1),
            c.read(gateway.http, pc.0, pc.1)
        );
        let cuts: usize = followers.iter().map(|follower| follower.cuts).sum();
        if cuts >= 1000 {
            break;
        }
        if round % 17 == 16 {
            gateway.stop().await;
            gateway = world.gateway().await;
        }
    }
    world.sim.pause();
    let events = settled(&world, gateway.http).await;
    for follower in &mut followers {
        follower.read(gateway.http, events.len(), Duration::from_secs(1)).await;
        let expected: Vec<_> = events
            .iter()
            .filter(|event| {
                follower.types.is_empty()
                    || follower.types.contains(&event["data"]["event_type"].as_str().unwrap())
            })
            .map(Seen::of)
            .collect();
        assert!(expected.len() > 100, "only {} events: nothing was tested", expected.len());
        assert_eq!(follower.seen.len(), expected.len(), "{}", follower.query);
        assert_eq!(follower.seen, expected, "{}", follower.query);
    }
    assert_exactly_once(&world.sim.truth(), &events);
    gateway.stop().await;
}

on_both_buses!(a_thousand_cuts_and_twenty_restarts_leave_no_hole_and_no_repeat);

/// `simcast tail` is the client that users run: it must do the same by itself.
async fn simcast_tail_goes_on_without_a_hole_over_restarts_of_the_gateway(bus: Bus) {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let world = World::on(
        bus,
        Config { sims: 20, events_per_second: 40.0, history: Duration::ZERO, ..Config::default() },
    )
    .await;
    // The address must stay the same over the restarts.
    let gateway = world.gateway().await;
    let http = gateway.http.to_string();
    let mut tail = tokio::process::Command::from(super::support::simcast())
        .args(["tail", "--server", &format!("http://{http}"), "--from", "earliest", "--json"])
        .args(["--event-type", "connection", "--event-type", "disconnection"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let mut gateway = Some(gateway);
    for _ in 0..3 {
        for _ in 0..40 {
            let line = tokio::time::timeout(super::support::PATIENCE, lines.next_line()).await.unwrap();
            let event: serde_json::Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
            seen.push(Seen::of(&event));
        }
        if let Some(old) = gateway.take() {
            old.stop().await;
        }
        gateway = Some(world.gateway_with(&[("SIMCAST__HTTP__LISTEN", &http)]).await);
    }
    let gateway = gateway.take().unwrap();
    world.sim.pause();
    let events = settled(&world, gateway.http).await;
    let expected: Vec<_> = events
        .iter()
        .filter(|event| {
            ["connection", "disconnection"].contains(&event["data"]["event_type"].as_str().unwrap())
        })
        .map(Seen::of)
        .collect();
    while seen.len() < expected.len() {
        let line = tokio::time::timeout(super::support::PATIENCE, lines.next_line()).await.unwrap();
        seen.push(Seen::of(&serde_json::from_str(&line.unwrap().unwrap()).unwrap()));
    }
    assert_eq!(seen, expected);
    super::support::signal(tail.id().unwrap(), "INT");
    assert!(tail.wait().await.unwrap().success(), "Ctrl-C ends tail cleanly");
    gateway.stop().await;
}

on_both_buses!(simcast_tail_goes_on_without_a_hole_over_restarts_of_the_gateway);
