//! Webhooks on an embedded log in files, without the rest of a gateway.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::json;
use simcast::{
    auth::{self, Auth, Principal},
    bus::{
        Bus, NewEvent,
        embedded::{Config, Embedded},
    },
    clock,
    event::{Event, Filter, FilterLimits, Start},
    hub::{self, Hub},
    webhooks::{
        self, Parts, Webhooks,
        endpoint::{Ordering, Settings},
        supervisor::Supervisor,
    },
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{event, receiver::now_us};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// SIMs of the events; the first hundred have endpoints of their own in the isolation part.
const SIMS: u64 = 100;

pub struct Stage {
    directory: PathBuf,
    bus: Arc<dyn Bus>,
    webhooks: Webhooks,
    supervisor: Mutex<Option<Supervisor>>,
    stop: CancellationToken,
    appended: Mutex<u64>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub struct Serving {
    draining: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    pub async fn stop(self) {
        self.draining.cancel();
        let _ = self.task.await;
    }
}

/// An event with the moment at which it was made.
fn new(n: u64) -> NewEvent {
    let mut event: Event = event::event(n, SIMS);
    event.details = Some(json!({"network_type": "4G", "signal_strength": -65, "sent_us": now_us()}));
    NewEvent { event, identity: n, content: 0 }
}

/// The JSON of an event.
pub fn body(n: u64) -> Outcome<String> {
    let mut out = Vec::new();
    simcast::event::json::write(&new(n).event, jiff::Timestamp::UNIX_EPOCH, &mut out);
    Ok(String::from_utf8(out)?)
}

impl Stage {
    pub fn new() -> Outcome<Self> {
        let directory = std::env::temp_dir().join(format!("simcast-bench-webhooks-{}", now_us()));
        let clock = clock::system();
        let config = Config { path: Some(directory.clone()), ..Config::default() };
        let bus: Arc<dyn Bus> = Embedded::open(config, clock.clone())?;
        let hub = Hub::new(hub::Config::default(), bus.log().clone());
        let stop = CancellationToken::new();
        tokio::spawn(hub.clone().run(stop.clone()));
        let auth = Arc::new(Auth::new(auth::Config::default(), clock.clone()));
        let mut parts = Parts::in_memory(hub, bus.clone(), auth, clock.clone())?;
        let attempts = webhooks::attempts::Config {
            directory: Some(directory.join("attempts")),
            ..webhooks::attempts::Config::default()
        };
        parts.attempts = webhooks::attempts::Attempts::open(attempts, clock)?;
        let (webhooks, supervisor) = webhooks::new(parts);
        let supervisor = Mutex::new(Some(supervisor));
        Ok(Self { directory, bus, webhooks, supervisor, stop, appended: Mutex::new(0) })
    }

    /// An endpoint for everything, or for one SIM.
    pub async fn webhook(&self, url: &str, ordering: &str, sim: Option<u64>) -> Outcome<()> {
        let filter = match sim {
            None => Filter::default(),
            Some(sim) => {
                let iccid = format!("894708{sim:013}");
                Filter::from_json(&json!({ "iccid": [iccid] }), FilterLimits::default())
                    .map_err(|e| e.message)?
                    .0
            }
        };
        let mut settings = Settings::new(url, filter);
        settings.ordering = if ordering == "per_sim" { Ordering::PerSim } else { Ordering::None };
        self.webhooks.create(&Principal::anonymous(), settings, Start::Earliest, None).await?;
        Ok(())
    }

    pub fn serve(&self) -> Serving {
        let draining = CancellationToken::new();
        let supervisor = self.supervisor.lock().take().expect("it serves once");
        let run = supervisor.run_apart(draining.clone(), self.stop.clone());
        let task = tokio::spawn(async move { run.await.expect("threads") });
        Serving { draining, task }
    }

    /// Appends so many events from `first` on.
    pub async fn append(&self, first: u64, count: u64) -> Outcome<()> {
        let first = 1_000_000_000 + first;
        for start in (first..first + count).step_by(500) {
            let batch = (start..(start + 500).min(first + count)).map(new).collect();
            self.bus.append(batch, None).await?;
        }
        Ok(())
    }

    fn next(&self, count: u64) -> u64 {
        let mut appended = self.appended.lock();
        *appended += count;
        *appended - count
    }

    /// The 99th percentile of so many appends of one event, seconds.
    pub async fn append_p99(&self, count: u64) -> Outcome<f64> {
        let mut took = Vec::new();
        for _ in 0..count {
            let event = new(self.next(1));
            let started = Instant::now();
            self.bus.append(vec![event], None).await?;
            took.push(started.elapsed().as_secs_f64());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        took.sort_by(f64::total_cmp);
        Ok(took[took.len() * 99 / 100])
    }

    /// Appends at a rate, every 10 ms what is due.
    pub async fn steady(&self, per_second: u64, seconds: u64) -> Outcome<()> {
        let started = Instant::now();
        let (mut done, all) = (0, per_second * seconds);
        while done < all {
            let due = ((started.elapsed().as_secs_f64() * per_second as f64) as u64).min(all);
            if due > done {
                let first = self.next(due - done);
                self.bus.append((first..first + due - done).map(new).collect(), None).await?;
                done = due;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// CPU time that this process has used, seconds.
pub fn cpu_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().ok_or("no stat")?.split_whitespace().collect();
    let ticks: f64 = fields.get(11).ok_or("no utime")?.parse::<f64>()?
        + fields.get(12).ok_or("no stime")?.parse::<f64>()?;
    // Linux counts in hundredths of a second for user space.
    Ok(ticks / 100.0)
}

/// Memory of this process that is resident and not of mapped files.
pub fn resident_mib() -> Outcome<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
