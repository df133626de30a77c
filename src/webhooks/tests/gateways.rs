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
        Self::seeded(server, fastrand::u64(..)).await
    }

    /// One whose name, and the names of what is made through it, follow from the seed.
    async fn seeded(server: &Server, seed: u64) -> Self {
        let clock = clock::system();
        let bus = JetStream::open(config(server.url(), "S"), clock.clone()).await.unwrap();
        let hub = Hub::new(hub::Config::default(), bus.log().clone());
        let stop = CancellationToken::new();
        let auth = Arc::new(Auth::new(auth::Config::default(), clock.clone()));
        let parts = Parts::in_memory(hub.clone(), bus.clone(), auth, clock).unwrap();
        let (webhooks, supervisor) = webhooks::new(Parts { seed, ..parts });
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

/// Appends through a bus of its own, whoever is killed.
struct Poller {
    bus: Arc<JetStream>,
    stop: CancellationToken,
    appending: JoinHandle<u64>,
}

impl Poller {
    async fn start(server: &Server) -> Self {
        let bus = JetStream::open(config(server.url(), "S"), clock::system()).await.unwrap();
        let stop = CancellationToken::new();
        let (to, until) = (bus.clone(), stop.clone());
        let appending = tokio::spawn(async move {
            let mut n = 0;
            let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE as u32);
            while !until.is_cancelled() {
                tick.tick().await;
                to.append(vec![event(n)], None).await.unwrap();
                n += 1;
            }
            n
        });
        Self { bus, stop, appending }
    }

    /// Gives how many events there are.
    async fn stop(self) -> u64 {
        self.stop.cancel();
        let appended = self.appending.await.unwrap();
        self.bus.shutdown().await;
        appended
    }
}

/// Waits until each receiver has all of e0, e1, ...
async fn all_arrive(receivers: impl Iterator<Item = &Receiver> + Clone, appended: u64) {
    let distinct = |receiver: &Receiver| {
        let got = receiver.requests();
        got.iter().filter_map(|got| got.header("webhook-id")).collect::<BTreeSet<_>>().len() as u64
    };
    let started = Instant::now();
    while receivers.clone().any(|receiver| distinct(receiver) < appended) {
        let missing: Vec<_> = receivers.clone().map(|receiver| appended - distinct(receiver)).collect();
        assert!(started.elapsed() < ownership::TTL * 3, "not delivered: {missing:?} of {appended}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where an event arrived for the first time, all before it in its lane had.
fn assert_order(ordering: Ordering, receiver: &Receiver) {
    let step = match ordering {
        Ordering::None => return,
        Ordering::PerSim => SIMS,
        Ordering::Strict => 1,
    };
    let (mut last, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for request in receiver.requests() {
        let event: Value = serde_json::from_slice(&request.body).unwrap();
        let number: u64 = event["id"].as_str().unwrap()[1..].parse().unwrap();
        if seen.insert(number) {
            let lane = number % step;
            let expected = last.insert(lane, number).map_or(lane, |before: u64| before + step);
            assert_eq!(number, expected, "{ordering:?}");
        }
    }
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
    let poller = Poller::start(&server).await;
    for kill in 0..KILLS {
        tokio::time::sleep(KILL_EVERY).await;
        gateways.remove(kill % 2).kill().await;
        gateways.insert(kill % 2, Gateway::start(&server).await);
    }
    let appended = poller.stop().await;
    all_arrive(receivers.iter().map(|(_, receiver)| receiver), appended).await;
    for (ordering, receiver) in &receivers {
        let again = receiver.requests().len() as u64 - appended;
        // The window is 200 ms and the time of a write; a second's worth for each kill is far above it.
        assert!(again <= KILLS as u64 * RATE, "{ordering:?}: {again} sent again");
        assert_order(*ordering, receiver);
    }
    for gateway in gateways {
        gateway.stop().await;
    }
}

/// Two serve, a third comes and takes its share: a handover between those who live repeats nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_joins_takes_its_share_and_nothing_is_lost_doubled_or_out_of_order() {
    const ENDPOINTS: usize = 12;
    /// It is seen at the next look, what was on its way arrives, and it looks each second for what is free.
    const BOUND: Duration = ownership::RENEW.saturating_mul(2).saturating_add(Duration::from_secs(2));
    let server = Server::start(NEWEST).await;
    let mut gateways = vec![Gateway::seeded(&server, 1).await, Gateway::seeded(&server, 2).await];
    let mut receivers = Vec::new();
    for _ in 0..ENDPOINTS {
        // An answer that takes its time: something is on its way at any moment.
        let receiver = Receiver::start(|_| Act::After(20, 200)).await;
        let mut settings = Settings::new(receiver.url(), Filter::default());
        settings.ordering = Ordering::PerSim;
        let principal = Principal::anonymous();
        gateways[0].webhooks.create(&principal, settings, Start::Earliest, None).await.unwrap();
        receivers.push(receiver);
    }
    let poller = Poller::start(&server).await;
    let served = |gateways: &[Gateway]| gateways.iter().map(|one| one.webhooks.served()).collect::<Vec<_>>();
    let started = Instant::now();
    let all_served = |gateways: &[Gateway]| {
        served(gateways).iter().all(|count| *count > 0) && served(gateways).iter().sum::<usize>() == ENDPOINTS
    };
    while !all_served(&gateways) || receivers.iter().any(|receiver| receiver.requests().len() < 20) {
        assert!(started.elapsed() < ownership::TTL * 3, "{:?}", served(&gateways));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gateways.push(Gateway::seeded(&server, 4).await);
    let joined = Instant::now();
    while !all_served(&gateways) {
        assert!(joined.elapsed() < BOUND * 4, "{:?}", served(&gateways));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("handover took {:?}, {BOUND:?} expected: {:?}", joined.elapsed(), served(&gateways));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let appended = poller.stop().await;
    all_arrive(receivers.iter(), appended).await;
    for receiver in &receivers {
        assert_eq!(receiver.requests().len() as u64, appended, "some was sent again");
        assert_order(Ordering::PerSim, receiver);
    }
    for gateway in gateways {
        gateway.stop().await;
    }
}
