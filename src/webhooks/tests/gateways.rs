//! Two gateways on one NATS server: each endpoint has one owner at a time, whoever is killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{self, Auth, Principal},
    bus::{
        Bus, NewEvent,
        jetstream::{
            JetStream,
            tests::server::{NEWEST, Server},
            tests_support::config,
        },
    },
    clock,
    event::{Event, Filter, Iccid, Start},
    hub::{self, Hub},
    webhooks::{
        self, Parts, Webhooks,
        endpoint::{Ordering, Settings},
        ownership,
        testing::{Act, Receiver},
    },
};

/// Events a second, of so many SIMs.
const RATE: u64 = 20;
const SIMS: u64 = 5;
const KILL_EVERY: Duration = Duration::from_secs(10);
const KILLS: usize = 4;

/// One gateway's part: bus, hub, webhooks.
struct Gateway {
    bus: Arc<JetStream>,
    webhooks: Webhooks,
    stop: CancellationToken,
    supervisor: JoinHandle<()>,
    hub: JoinHandle<()>,
}

impl Gateway {
    async fn start(server: &Server) -> Self {
        let clock = clock::system();
        let bus = JetStream::open(config(server.url(), "S"), clock.clone()).await.unwrap();
        let hub = Hub::new(hub::Config::default(), bus.log().clone());
        let stop = CancellationToken::new();
        let auth = Arc::new(Auth::new(auth::Config::default(), clock.clone()));
        let parts = Parts::in_memory(hub.clone(), bus.clone(), auth, clock).unwrap();
        let (webhooks, supervisor) = webhooks::new(Parts { seed: fastrand::u64(..), ..parts });
        let hub = tokio::spawn(hub.run(stop.clone()));
        let supervisor = tokio::spawn(supervisor.run(stop.clone(), stop.clone()));
        Self { bus, webhooks, stop, supervisor, hub }
    }

    /// As SIGKILL: what it was doing is not finished, nothing is given up.
    async fn kill(self) {
        self.supervisor.abort();
        self.hub.abort();
        let _ = self.supervisor.await;
        self.bus.shutdown().await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.supervisor.await.unwrap();
        self.bus.shutdown().await;
    }
}

fn event(n: u64) -> NewEvent {
    let mut event = Event::new(format!("e{n}"), "/globalsim/t".into(), "connection");
    event.iccid = Iccid::parse(&format!("894700000000000{:04}", n % SIMS)).ok();
    event.time = Some(clock::system().now());
    NewEvent { event, identity: n, content: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_every_ten_seconds_costs_no_event_and_no_order() {
    let server = Server::start(NEWEST).await;
    let mut gateways = vec![Gateway::start(&server).await, Gateway::start(&server).await];
    let mut receivers = Vec::new();
    for ordering in [Ordering::None, Ordering::PerSim, Ordering::Strict] {
        let receiver = Receiver::start(|_| Act::Status(200)).await;
        let mut settings = Settings::new(receiver.url(), Filter::default());
        settings.ordering = ordering;
        let principal = Principal::anonymous();
        gateways[0].webhooks.create(&principal, settings, Start::Earliest, None).await.unwrap();
        receivers.push((ordering, receiver));
    }
    // Through a bus of its own, as a poller that is not killed.
    let poller = JetStream::open(config(server.url(), "S"), clock::system()).await.unwrap();
    let stop = CancellationToken::new();
    let appending = {
        let (poller, stop) = (poller.clone(), stop.clone());
        tokio::spawn(async move {
            let mut n = 0;
            let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE as u32);
            while !stop.is_cancelled() {
                tick.tick().await;
                poller.append(vec![event(n)], None).await.unwrap();
                n += 1;
            }
            n
        })
    };
    for kill in 0..KILLS {
        tokio::time::sleep(KILL_EVERY).await;
        gateways.remove(kill % 2).kill().await;
        gateways.insert(kill % 2, Gateway::start(&server).await);
    }
    stop.cancel();
    let appended = appending.await.unwrap();
    let ids = |receiver: &Receiver| -> Vec<String> {
        receiver.requests().iter().map(|got| got.header("webhook-id").unwrap().to_owned()).collect()
    };
    let started = Instant::now();
    let distinct = |receiver: &Receiver| ids(receiver).into_iter().collect::<BTreeSet<_>>().len() as u64;
    while receivers.iter().any(|(_, receiver)| distinct(receiver) < appended) {
        let missing: Vec<_> = receivers.iter().map(|(_, receiver)| appended - distinct(receiver)).collect();
        assert!(started.elapsed() < ownership::TTL * 3, "not delivered: {missing:?} of {appended}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (ordering, receiver) in &receivers {
        let ids = ids(receiver);
        let again = ids.len() as u64 - appended;
        // The window is 200 ms and the time of a write; a second's worth for each kill is far above it.
        assert!(again <= KILLS as u64 * RATE, "{ordering:?}: {again} sent again");
        if *ordering == Ordering::None {
            continue;
        }
        // Where an event arrives for the first time, all before it in its lane have.
        let (mut last, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for request in receiver.requests() {
            let event: Value = serde_json::from_slice(&request.body).unwrap();
            let number: u64 = event["id"].as_str().unwrap()[1..].parse().unwrap();
            if seen.insert(number) {
                let lane = if *ordering == Ordering::Strict { 0 } else { number % SIMS };
                let before = last.insert(lane, number);
                let step = if *ordering == Ordering::Strict { 1 } else { SIMS };
                let expected = before.map_or(lane, |before: u64| before + step);
                assert_eq!(number, expected, "{ordering:?}");
            }
        }
    }
    for gateway in gateways {
        gateway.stop().await;
    }
    poller.shutdown().await;
}
