//! A simulator, a log in memory and a poller between them, in one thread and without sockets: tokio's clock is paused
//! and jumps to the next timer whenever nobody has anything to do, so days pass in seconds, and alike each time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bus::{
        AppendError, Appended, Bucket, Bus, Change, Entry, Fence, Fill, Health, KvError, Lease, NewEvent,
        embedded::Embedded,
    },
    clock::{SharedClock, TokioClock},
    event::Predicate,
    globalsim::{
        budget::{BudgetConfig, Gate},
        client::{self, Client},
        key::{KeySource, Secret},
        simulator::{self, Faults, TruthEvent},
    },
    ingest::{Config, Error, Ingest, StatusReceiver},
    log::{Direction, Log, ReadRequest},
};

/// The longest that anything is waited for; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// When every test begins: just before noon, so that most see one day only.
const START: &str = "2025-11-05T11:30:00Z";

pub(crate) struct Rig {
    pub sim: simulator::Handle,
    pub bus: Arc<dyn Bus>,
    pub clock: SharedClock,
    pub config: Config,
    pub budget: u32,
    /// Pollers started: each has randomness of its own.
    runs: AtomicU64,
    pub key: KeySource,
    /// From sending a request to its whole answer, and from its head to its end.
    pub timeouts: (Duration, Duration),
    /// The budget that all runs share, as restarts do by their journal; None: each run has one of its own.
    pub gate: Option<Gate>,
}

pub(crate) struct Run {
    pub status: StatusReceiver,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Drop for Run {
    /// A run that is dropped without being stopped has crashed: nothing is finished or written down.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One event of the log: its id and its JSON.
pub(crate) struct Logged {
    pub id: String,
    pub body: Value,
    /// When it was appended.
    pub observed_at: Timestamp,
}

impl Logged {
    pub fn data(&self, field: &str) -> &Value {
        &self.body["data"][field]
    }

    pub fn has(&self, flag: &str) -> bool {
        self.data("flags").as_array().is_some_and(|flags| flags.iter().any(|f| f == flag))
    }
}

impl Rig {
    /// A quiet account with some past; requests cost nothing worth counting.
    pub async fn new(faults: Faults) -> Self {
        Self::with(simulator::Config { faults, ..quiet() }).await
    }

    pub async fn with(config: simulator::Config) -> Self {
        let config = simulator::Config { requests_per_minute: 1_000_000, ..config };
        let rig = Self::as_delivered(config).await;
        let timeouts = (Duration::from_secs(3), Duration::from_secs(2));
        Self { budget: 100_000, gate: None, timeouts, ..rig }
    }

    /// Everything as it is by default: budget, time limits, and the rate that upstream enforces.
    pub async fn as_delivered(config: simulator::Config) -> Self {
        let clock: SharedClock = Arc::new(TokioClock::starting_at(START.parse().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sim = simulator::start(config, listener, Arc::clone(&clock));
        let bus = Embedded::in_memory(Arc::clone(&clock));
        let key = KeySource::Inline(Secret::new(simulator::DEFAULT_API_KEY).unwrap());
        let client = client::Config::new(sim.base_url(), key.clone());
        let budget = BudgetConfig::default();
        Self {
            sim,
            bus,
            // What is not activity would be in the way of comparing the log with it.
            config: Config { sessions: false, ..Config::default() },
            budget: budget.requests_per_minute,
            key,
            timeouts: (client.total_timeout, client.body_timeout),
            gate: Some(Gate::open(budget, Arc::clone(&clock)).unwrap()),
            clock,
            runs: AtomicU64::new(0),
        }
    }

    /// The rig's log as a poller is given it.
    pub fn attended(&self) -> Arc<dyn Bus> {
        Arc::new(Attended(self.bus.clone()))
    }

    /// Starts a poller on the rig's log.
    pub fn run(&self) -> Run {
        self.run_on(self.bus.clone())
    }

    /// A client of the rig's upstream.
    pub fn client(&self) -> Client {
        let budget = BudgetConfig {
            requests_per_minute: self.budget,
            limit_per_minute: self.budget,
            journal: None,
            shared: self.config.shared,
        };
        let shared = self.gate.clone();
        let gate = shared.unwrap_or_else(|| Gate::open(budget, Arc::clone(&self.clock)).unwrap());
        let config = client::Config {
            total_timeout: self.timeouts.0,
            body_timeout: self.timeouts.1,
            ..client::Config::new(self.sim.base_url(), self.key.clone())
        };
        Client::in_memory(config, self.sim.dialer(), gate, Arc::clone(&self.clock)).unwrap()
    }

    /// Starts a poller on another bus, such as one around the rig's own.
    pub fn run_on(&self, bus: Arc<dyn Bus>) -> Run {
        let client = self.client();
        let gate = client.gate().clone();
        let bus = Arc::new(Attended(bus));
        let seed = self.runs.fetch_add(1, Ordering::Relaxed);
        let ingest = Ingest::new(self.config.clone(), client, gate, bus, Arc::clone(&self.clock), seed);
        let status = ingest.status();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(ingest.run(shutdown.clone()));
        Run { status, shutdown, task }
    }

    /// Everything of upstream's in the log, in its order.
    pub fn logged(&self) -> Vec<Logged> {
        self.read(&Predicate::default())
    }

    /// The same with the gateway's own events.
    pub fn everything(&self) -> Vec<Logged> {
        self.read(&Predicate::unfiltered())
    }

    fn read(&self, predicate: &Predicate) -> Vec<Logged> {
        let request = ReadRequest {
            from: 0,
            direction: Direction::Forward,
            predicate,
            limit: usize::MAX,
            max_bytes: usize::MAX,
        };
        let mut logged = Vec::new();
        let mut from = 0;
        loop {
            let page = self.bus.log().read(ReadRequest { from, ..request }).unwrap();
            for event in &page.events {
                let body = serde_json::from_slice(event.json()).unwrap();
                let keys = event.keys().unwrap();
                let observed_at = Timestamp::from_microsecond(keys.observed_us).unwrap();
                logged.push(Logged { id: keys.id.to_owned(), body, observed_at });
            }
            if page.at_end {
                return logged;
            }
            from = page.next;
        }
    }

    /// Waits until the log has every event that the truth has and upstream still shows or has shown, and compares.
    pub async fn settled(&self) -> Vec<Logged> {
        let mut edge = self.bus.log().edge();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            edge.borrow_and_update();
            let missing = self.missing();
            if missing.is_empty() {
                break;
            }
            if tokio::time::timeout_at(deadline, edge.changed()).await.is_err() {
                let all = self.everything();
                let likely =
                    |event: &&Logged| event.data("event_id").as_str() == missing[0].event_id.as_deref();
                let like: Vec<_> = all.iter().filter(likely).map(|event| &event.body).collect();
                panic!("{} events never arrived, such as {:?}; alike: {like:?}", missing.len(), missing[0]);
            }
        }
        self.check_each_once()
    }

    /// Events of the truth that the log lacks.
    fn missing(&self) -> Vec<TruthEvent> {
        let mut have: BTreeMap<Key, usize> = BTreeMap::new();
        for logged in self.logged().iter().filter(|logged| !logged.has("enriched")) {
            *have.entry(key_of(logged)).or_default() += 1;
        }
        let mut missing = self.sim.truth();
        // What was taken away may have gone before it was read.
        missing.retain(|truth| truth.removed_at.is_none() && !have.contains_key(&truth_key(truth)));
        missing
    }

    /// Every event of the log is true and there once.
    pub fn check_each_once(&self) -> Vec<Logged> {
        let logged = self.logged();
        let mut have: BTreeMap<Key, usize> = BTreeMap::new();
        for event in logged.iter().filter(|event| !event.has("enriched")) {
            *have.entry(key_of(event)).or_default() += 1;
        }
        let mut happened: BTreeMap<Key, usize> = BTreeMap::new();
        for truth in self.sim.truth() {
            *happened.entry(truth_key(&truth)).or_default() += 1;
        }
        for (key, copies) in have {
            // Rows without event_id may be equal and yet be two events.
            let most = happened.get(&key).map_or(0, |times| if key.0.is_some() { 1 } else { *times });
            assert!((1..=most).contains(&copies), "{copies} of {most}: {key:?}");
        }
        let mut ids: Vec<&str> = logged.iter().map(|event| event.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), logged.len(), "ids repeat");
        logged
    }
}

impl Run {
    /// Waits until the status is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&crate::ingest::Status) -> bool) {
        let seen = self.status.wait_for(|status| wanted(status));
        let waited = tokio::time::timeout(PATIENCE, seen).await.map(|seen| seen.map(drop));
        assert!(matches!(waited, Ok(Ok(()))), "{what}: {:?}", self.status.borrow());
    }

    /// Waits until everything visible at this moment has been read and is durable.
    pub async fn seen(&mut self, now: Timestamp) {
        self.until("all was seen", |status| status.seen_until.is_some_and(|seen| seen > now)).await;
    }

    /// Ends it where it stands, as a kill does.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Stops it and waits for its end.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it ends").unwrap().unwrap();
    }
}

/// A bus whose threads hold the paused clock: otherwise it jumps ahead while an append is on its way, by as much as the
/// machine happens to be busy.
#[derive(Debug)]
struct Attended(Arc<dyn Bus>);

/// Waits while the clock stands still. Tokio does not advance a paused clock while something blocking is running.
pub(super) async fn standing<T>(wait: impl Future<Output = T>) -> T {
    let (done, until) = std::sync::mpsc::channel::<()>();
    let held = tokio::task::spawn_blocking(move || until.recv().is_ok());
    let result = wait.await;
    drop(done);
    held.await.unwrap();
    result
}

#[async_trait]
impl Bus for Attended {
    async fn append(&self, batch: Vec<NewEvent>, fence: Option<Fence>) -> Result<Vec<Appended>, AppendError> {
        standing(self.0.append(batch, fence)).await
    }

    fn log(&self) -> &Arc<Log> {
        self.0.log()
    }

    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError> {
        standing(self.0.kv_get(bucket, key)).await
    }

    async fn kv_create(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        standing(self.0.kv_create(bucket, key, value)).await
    }

    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, at: u64) -> Result<u64, KvError> {
        standing(self.0.kv_update(bucket, key, value, at)).await
    }

    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        standing(self.0.kv_put(bucket, key, value)).await
    }

    async fn kv_delete(&self, bucket: Bucket, key: &str, revision: u64) -> Result<(), KvError> {
        standing(self.0.kv_delete(bucket, key, revision)).await
    }

    async fn kv_list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError> {
        standing(self.0.kv_list(bucket, prefix)).await
    }

    async fn kv_watch(&self, bucket: Bucket, prefix: &str) -> Result<mpsc::Receiver<Change>, KvError> {
        self.0.kv_watch(bucket, prefix).await
    }

    async fn lease(&self, name: &str, ttl: Duration) -> Result<Lease, KvError> {
        self.0.lease(name, ttl).await
    }

    fn fill(&self) -> watch::Receiver<Fill> {
        self.0.fill()
    }

    fn health(&self) -> Health {
        self.0.health()
    }

    async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

/// An account in which nothing happens unless a test makes it, with a few hundred rows of past.
pub(crate) fn quiet() -> simulator::Config {
    simulator::Config {
        events_per_second: 0.0,
        history: Duration::from_secs(80_000),
        history_events_per_second: 0.005,
        sims: 20,
        ..simulator::Config::default()
    }
}

/// What tells events apart for a reader that trusts no id: id as upstream gave it, SIM, type, time.
pub(super) type Key = (Option<String>, Option<String>, String, Option<String>);

pub(super) fn key_of(logged: &Logged) -> Key {
    let text = |field| logged.data(field).as_str().map(str::to_owned);
    (text("event_id"), text("iccid"), text("event_type").unwrap_or_default(), text("timestamp"))
}

pub(super) fn truth_key(truth: &TruthEvent) -> Key {
    let row = &truth.account_row;
    let text = |field: &str| match &row[field] {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    };
    (text("event_id"), text("iccid"), text("event_type").unwrap_or_default(), text("timestamp"))
}
