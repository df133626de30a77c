//! The whole path: how long after upstream shows an event a WebSocket subscriber has it, and how fast a burst gets
//! through.
//!
//! A simulator, a gateway with everything that `simcast serve` starts (log on disk, default budget, default
//! configuration) and one subscriber, each on threads of its own, all on one clock. Every measurement has a new
//! simulator, which upstream's rate limit does not remember, and a new data directory.
//!
//! Latency: Poisson arrivals, first without measuring until the budget's first burst is used up. Measured from the
//! moment from which upstream would answer with the event to the moment at which the subscriber has read it from its
//! socket. `first` is the first copy of an event, with or without details; `complete` the first with details.
//! Burst: many events become visible in one moment; until the subscriber has the last one.
//!
//! About four minutes with `cargo bench --bench latency`. Settings, with their defaults:
//! `SIMCAST_BENCH_EVENTS` (300, measured in each mode), `SIMCAST_BENCH_RATE` (10 events a second),
//! `SIMCAST_BENCH_WARM_UP_S` (10), `SIMCAST_BENCH_SIMS` (100), `SIMCAST_BENCH_BURST` (5000),
//! `SIMCAST_BENCH_UPSTREAM_MS` (100: each answer of upstream takes a random time up to this).

#[path = "shared/get.rs"]
mod get;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    error::Error,
    net::SocketAddr,
    sync::mpsc as std_mpsc,
    time::Duration,
};

use futures_util::StreamExt as _;
use get::get;
use jiff::Timestamp;
use serde_json::Value;
use simcast::{
    app,
    clock::{self, SharedClock},
    config::{self, Sources},
    globalsim::simulator::{self, Faults, TruthEvent},
    observability::Metrics,
};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout_at},
};
use tokio_tungstenite::{client_async, tungstenite::Message};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How long the start-up may take, and how long after the last event its details may come.
const START_UP_MAX: Duration = Duration::from_secs(60);
const LAST_MAX: Duration = Duration::from_secs(20);
/// How long a burst may take.
const BURST_MAX: Duration = Duration::from_secs(90);
/// Rows of a page that are new when pages overlap by four (design goal of a walk).
const ROWS_OF_A_PAGE: f64 = 96.0;
const REQUESTS_PER_MINUTE: f64 = 400.0;
/// A figure in the gateway's metrics: requests by class.
const REQUESTS: &str = "simcast_upstream_requests_total{";

/// What is measured, and what is asked of it.
struct Mode {
    name: &'static str,
    details: &'static str,
    /// Whether the account-wide list shows whole rows, so that nothing need be asked per SIM.
    complete_rows: bool,
    /// Goals for `first`, in seconds: p50, p99.
    goals: (Option<f64>, Option<f64>),
}

const MODES: [Mode; 4] = [
    Mode { name: "wait", details: "wait", complete_rows: false, goals: (Some(0.6), None) },
    Mode { name: "follow", details: "follow", complete_rows: false, goals: (Some(0.25), Some(0.5)) },
    Mode { name: "off", details: "off", complete_rows: false, goals: (Some(0.25), Some(0.5)) },
    Mode { name: "wait, whole rows", details: "wait", complete_rows: true, goals: (Some(0.25), Some(0.5)) },
];

fn main() -> Outcome<()> {
    // `cargo test --benches` runs this too, without the flag.
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("run by cargo bench");
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure())
}

fn setting(name: &str, default: f64) -> f64 {
    std::env::var(format!("SIMCAST_BENCH_{name}")).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn measure() -> Outcome<()> {
    let rate = setting("RATE", 10.0);
    println!(
        "{} SIMs, upstream answers within {} ms, 400 requests a minute, load average {}\n",
        setting("SIMS", 100.0),
        setting("UPSTREAM_MS", 100.0),
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
    );
    println!("visible to received, {rate} events a second, milliseconds:");
    let titles = ["p50", "p90", "p99", "max"].map(|title| format!("{title:>6}")).join(" ");
    println!("{:<17} {:<9} {:>6} {titles}   goal", "details", "copy", "events");
    let mut notes = Vec::new();
    for mode in &MODES {
        notes.push(latency(mode, rate).await?);
    }
    println!("\nhow it was measured:");
    for (mode, note) in MODES.iter().zip(notes) {
        println!("{:<17} {note}", mode.name);
    }
    burst().await
}

/// Prints the rows of one mode; gives what was done beside.
async fn latency(mode: &Mode, rate: f64) -> Outcome<String> {
    let mut world = World::start(mode).await?;
    let started = world.started_up().await?;
    world.sim.set_rate(rate);
    sleep(Duration::from_secs_f64(setting("WARM_UP_S", 10.0))).await;
    let (after, before) = (world.sim.stats().exposed, world.requests());
    let (began, events) = (Instant::now(), setting("EVENTS", 300.0) as u64);
    while world.sim.stats().exposed < after + events {
        world.receive_until(Instant::now() + Duration::from_millis(100)).await;
    }
    let (took, spent) = (began.elapsed(), difference(&world.requests(), &before));
    world.sim.pause();
    let shown = world.sim.truth_after(after, usize::MAX).events;
    let wanted: HashSet<_> = shown.iter().filter_map(|event| event.event_id.clone()).collect();
    let last = Instant::now() + LAST_MAX;
    let complete_too = mode.details != "off";
    while Instant::now() < last && !world.has_all(&wanted, complete_too) {
        world.receive_until(last.min(Instant::now() + Duration::from_millis(100))).await;
    }

    let first = Spread::of(&shown, |id| world.received.get(id).map(|copies| copies.first));
    let complete = Spread::of(&shown, |id| world.received.get(id).and_then(|copies| copies.complete));
    let log = Spread::of(&shown, |id| world.received.get(id).map(|copies| copies.appended));
    let ms = |goal: Option<f64>| goal.map_or("-".to_owned(), |s| format!("{:.0}", s * 1e3));
    let goal = format!("p50 < {}, p99 < {}", ms(mode.goals.0), ms(mode.goals.1));
    let met = mode.goals.0.is_none_or(|goal| first.at(0.5) < goal)
        && mode.goals.1.is_none_or(|goal| first.at(0.99) < goal)
        && first.missing == 0;
    println!("{:<17} {:<9} {first}   {goal}: {}", mode.name, "first", if met { "met" } else { "MISSED" });
    println!("{:<17} {:<9} {log}", "", "appended");
    if mode.details != "off" {
        println!("{:<17} {:<9} {complete}", "", "complete");
    }
    let bare = |event: &&TruthEvent| {
        let copies = event.event_id.as_ref().and_then(|id| world.received.get(id));
        copies.is_some_and(|copies| copies.complete != Some(copies.first))
    };
    let bare = shown.iter().filter(bare).count();
    world.stop().await;
    let minutes = took.as_secs_f64() / 60.0;
    Ok(format!(
        "{started}; {:.1} events/s came; {} of {} had no details at first, {} never; requests a minute: {}",
        shown.len() as f64 / took.as_secs_f64(),
        bare,
        shown.len(),
        complete.missing,
        spent
            .iter()
            .map(|(class, n)| format!("{class} {:.0}", *n as f64 / minutes))
            .collect::<Vec<_>>()
            .join(", "),
    ))
}

async fn burst() -> Outcome<()> {
    let mode = &MODES[0];
    let count = setting("BURST", 5000.0) as usize;
    let mut world = World::start(mode).await?;
    let started = world.started_up().await?;
    let before = world.requests();
    let shown = world.sim.inject_burst(count);
    let visible_at = shown.first().ok_or("an empty burst")?.visible_at;
    let wanted: HashSet<_> = shown.iter().filter_map(|event| event.event_id.clone()).collect();
    let end = Instant::now() + BURST_MAX;
    while Instant::now() < end && !world.has_all(&wanted, false) {
        world.receive_until(Instant::now() + Duration::from_millis(5)).await;
    }
    let spent = difference(&world.requests(), &before);
    let spread = Spread::of(&shown, |id| world.received.get(id).map(|copies| copies.first));
    let took = spread.at(1.0);
    let total: u64 = spent.values().sum();
    let walk: u64 = ["tail", "catch_up"].iter().filter_map(|class| spent.get(*class)).sum();
    let ceiling = REQUESTS_PER_MINUTE / 60.0 * ROWS_OF_A_PAGE;
    let got = (count - spread.missing) as f64;
    println!("\n{count} events visible at once at {visible_at}, details = {:?}; {started}", mode.details);
    println!(
        "received            {got:.0} of {count}, half after {:.2} s, all after {took:.2} s",
        spread.at(0.5)
    );
    println!("rate                {:.0} events/s", got / took);
    println!("ceiling             {ceiling:.0} rows/s = 400/60 requests/s, 96 new rows each");
    println!(
        "share of ceiling    {:.2} (above 1 is possible: a rested budget gives 20 requests at once)",
        got / took / ceiling
    );
    println!("requests meanwhile  {total}: {}", list(&spent));
    println!(
        "tail and catch-up   {:.2} of the requests (goal: at least 0.90), {:.1} new rows a request",
        walk as f64 / total.max(1) as f64,
        got / walk.max(1) as f64
    );
    world.stop().await;
    Ok(())
}

/// What reached the subscriber of one event.
struct Copies {
    first: Timestamp,
    /// By the gateway's stamp in the first copy.
    appended: Timestamp,
    complete: Option<Timestamp>,
}

/// A copy of an event on its way to the measurement.
struct Received {
    at: Timestamp,
    event: Value,
}

/// Simulator, gateway, subscriber.
struct World {
    sim: simulator::Handle,
    gateway: app::Running,
    metrics: Metrics,
    feed: mpsc::UnboundedReceiver<Received>,
    received: HashMap<String, Copies>,
    _stop_sim: oneshot::Sender<()>,
    _data: TempDir,
}

impl World {
    async fn start(mode: &Mode) -> Outcome<Self> {
        let clock = clock::system();
        let (sim, stop_sim) = simulator(mode, clock.clone())?;
        let data = TempDir::new()?;
        let settings = [
            ("UPSTREAM__BASE_URL", sim.base_url()),
            ("UPSTREAM__API_KEY", simulator::DEFAULT_API_KEY.to_owned()),
            ("UPSTREAM__DETAILS", mode.details.to_owned()),
            ("BUS__EMBEDDED__PATH", data.path().join("data").to_string_lossy().into_owned()),
            ("HTTP__LISTEN", "127.0.0.1:0".to_owned()),
            ("GRPC__LISTEN", "127.0.0.1:0".to_owned()),
            ("ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
        ];
        let env = settings.into_iter().map(|(key, value)| (format!("SIMCAST__{key}"), value)).collect();
        let config = config::load(&Sources { env, ..Sources::default() })?;
        let metrics = Metrics::install()?;
        let gateway = app::start(config, clock.clone(), metrics.clone()).await?;
        let feed = subscriber(gateway.http, clock)?;
        let received = HashMap::new();
        Ok(Self { sim, gateway, metrics, feed, received, _stop_sim: stop_sim, _data: data })
    }

    /// Waits until the gateway has looked for what there was (nothing) and says so; tells what that took.
    async fn started_up(&self) -> Outcome<String> {
        let began = Instant::now();
        loop {
            let upstream = get(self.gateway.http, "/v1/stream").await?["upstream"].take();
            let backfill = upstream["backfill"]["state"].as_str().unwrap_or_default().to_owned();
            if upstream["state"] == "ok" && backfill == "done" {
                let requests = self.sim.stats().requests;
                let took = began.elapsed().as_secs_f64();
                return Ok(format!(
                    "start-up {took:.1} s, backfill {backfill}, {requests} of 400 requests of the window used"
                ));
            }
            if began.elapsed() > START_UP_MAX {
                return Err(format!("the gateway did not start up in time: {upstream}").into());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Takes what the subscriber has until a time.
    async fn receive_until(&mut self, until: Instant) {
        while let Ok(Some(Received { at, event })) = timeout_at(until, self.feed.recv()).await {
            let data = &event["data"];
            let Some(id) = data["event_id"].as_str() else { continue };
            let partial = data["flags"].as_array().is_some_and(|flags| flags.iter().any(|f| f == "partial"));
            let appended = data["observed_at"].as_str().and_then(|text| text.parse().ok()).unwrap_or(at);
            let copies = (self.received.entry(id.to_owned())).or_insert_with(|| Copies {
                first: at,
                appended,
                complete: None,
            });
            if !partial && copies.complete.is_none() {
                copies.complete = Some(at);
            }
        }
    }

    fn has_all(&self, wanted: &HashSet<String>, complete: bool) -> bool {
        let has = |id| self.received.get(id).is_some_and(|copies| !complete || copies.complete.is_some());
        wanted.iter().all(has)
    }

    /// Requests sent so far by all gateways of this process, by class.
    fn requests(&self) -> BTreeMap<String, u64> {
        let mut requests = BTreeMap::new();
        for line in self.metrics.render().lines().filter(|line| line.starts_with(REQUESTS)) {
            let class = line.split("class=\"").nth(1).and_then(|rest| rest.split('"').next());
            let count = line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok());
            if let (Some(class), Some(count)) = (class, count) {
                *requests.entry(class.to_owned()).or_insert(0) += count as u64;
            }
        }
        requests
    }

    async fn stop(self) {
        self.gateway.lifecycle.stop();
        self.gateway.join().await;
    }
}

fn difference(after: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let less = |class: &String, n: u64| n - before.get(class).copied().unwrap_or(0);
    after.iter().map(|(class, n)| (class.clone(), less(class, *n))).filter(|(_, n)| *n > 0).collect()
}

fn list(requests: &BTreeMap<String, u64>) -> String {
    requests.iter().map(|(class, n)| format!("{class} {n}")).collect::<Vec<_>>().join(", ")
}

/// A simulator on a thread of its own; it ends when the sender is dropped.
fn simulator(mode: &Mode, clock: SharedClock) -> Outcome<(simulator::Handle, oneshot::Sender<()>)> {
    let mut faults = Faults::default();
    faults.lists.account_details = mode.complete_rows;
    faults.transport.slow = 1.0;
    faults.transport.slow_max_ms = setting("UPSTREAM_MS", 100.0) as u64;
    let config = simulator::Config {
        sims: setting("SIMS", 100.0) as usize,
        events_per_second: 0.0,
        history: Duration::ZERO,
        faults,
        ..simulator::Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (started, handle) = std_mpsc::channel();
    let (stop, stopped) = oneshot::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = TcpListener::bind("127.0.0.1:0").await else { return };
            let sim = simulator::start(config, listener, clock);
            let _ = started.send(sim.clone());
            // Nothing is ever sent: this waits for the drop.
            let _: Result<(), _> = stopped.await;
            sim.shutdown().await;
        });
    });
    Ok((handle.recv()?, stop))
}

/// A WebSocket on a thread of its own, so that nothing delays the stamp of what it reads.
fn subscriber(http: SocketAddr, clock: SharedClock) -> Outcome<mpsc::UnboundedReceiver<Received>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (opened, ready) = std_mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(stream) = TcpStream::connect(http).await else { return };
            let Ok((mut socket, _)) = client_async(format!("ws://{http}/v1/events/ws"), stream).await else {
                return;
            };
            while let Some(Ok(message)) = socket.next().await {
                let at = clock.now();
                let Message::Text(text) = message else { continue };
                let Ok(mut message) = serde_json::from_str::<Value>(&text) else { continue };
                if message["type"] == "caught_up" {
                    let _ = opened.send(());
                }
                for event in message["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
                    if sender.send(Received { at, event }).is_err() {
                        return;
                    }
                }
            }
        });
    });
    ready.recv()?;
    Ok(receiver)
}

/// Times since visible, ascending, in seconds.
struct Spread {
    seconds: Vec<f64>,
    missing: usize,
}

impl Spread {
    fn of(shown: &[TruthEvent], at: impl Fn(&str) -> Option<Timestamp>) -> Self {
        let since = |event: &TruthEvent| {
            let at = at(event.event_id.as_deref()?)?;
            Some(at.duration_since(event.visible_at).as_secs_f64())
        };
        let mut seconds: Vec<f64> = shown.iter().filter_map(since).collect();
        seconds.sort_by(f64::total_cmp);
        Self { missing: shown.len() - seconds.len(), seconds }
    }

    /// A quantile, 0 to 1.
    fn at(&self, q: f64) -> f64 {
        let rank = (q * self.seconds.len() as f64).ceil() as usize;
        self.seconds.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>6}", self.seconds.len())?;
        for q in [0.5, 0.9, 0.99, 1.0] {
            write!(f, " {:>6.0}", self.at(q) * 1e3)?;
        }
        if self.missing > 0 {
            write!(f, "   ({} did not come)", self.missing)?;
        }
        Ok(())
    }
}
