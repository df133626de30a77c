//! What all parts need: events, the two backends, and what the system knows of a process.

#[path = "../shared/event.rs"]
mod example;
#[path = "../shared/get.rs"]
mod get;

use std::{
    error::Error,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use get::get;
use jiff::Timestamp;
use simcast::{
    bus::{
        Bus, NewEvent,
        jetstream::{self, Chance, JetStream},
    },
    clock,
    event::{Provenance, Via},
};

pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Rows of a page of upstream's: what the poller appends at once while it has a backlog.
pub const PAGE: u64 = 100;
pub const STREAM: &str = "SIMCAST";
/// What a server is lent; R3 has it three times on one disk here.
const RETENTION_BYTES: u64 = 10 << 30;
/// Linux tells times of processes in ticks of which a second has so many, on every machine (`USER_HZ`).
const TICKS: f64 = 100.0;

pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

pub fn setting(name: &str, default: f64) -> f64 {
    std::env::var(format!("SIMCAST_BENCH_{name}")).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A bus on NATS that counts as a gateway's; without a directory its copy is in memory.
pub async fn jetstream(url: String, cache: Option<&Path>, replicas: usize) -> Outcome<Arc<JetStream>> {
    let config = jetstream::Config {
        cache_path: cache.map(Path::to_path_buf),
        replicas,
        retention_bytes: RETENTION_BYTES / replicas as u64,
        ..jetstream::Config::new(vec![url], Chance::seeded(fastrand::u64(..)))
    };
    Ok(JetStream::open(config, clock::system()).await?)
}

/// As the poller hands it on, with what it notes of it.
pub fn event(n: u64, sims: u64) -> NewEvent {
    let mut event = example::event(n, sims);
    let asked = Timestamp::from_microsecond(1_762_329_600_000_000 + n as i64).unwrap_or_default();
    event.provenance = Some(Provenance::new(Via::Tail, asked, asked, Some(asked)));
    NewEvent { event, identity: n, content: n as u32 }
}

/// A quantile of ascending values.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// Seconds on a CPU, of all threads that a process has or had.
pub fn cpu_seconds(pid: u32) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before may hold spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS)
}

/// A line of a process's status in MiB: `VmRSS` is what it has in memory now, `VmHWM` the most it ever had, and
/// `RssAnon` what of it is no mapped file.
pub fn memory_mib(pid: u32, name: &str) -> Outcome<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).ok_or("no such line")?;
    Ok(line.split_whitespace().nth(1).ok_or("no value")?.parse::<f64>()? / 1024.0)
}

/// Bytes on disk under a directory.
pub fn disk_bytes(directory: &Path) -> Outcome<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

/// `simcast serve` on a stream, with an upstream that is not there: what it serves is appended by the benchmark.
pub struct Gateway {
    child: Child,
    pub http: SocketAddr,
    pub started: Instant,
}

impl Gateway {
    pub fn start(nats: &str, cache: &Path) -> Outcome<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_simcast"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SIMCAST_")) {
            command.env_remove(name);
        }
        let cache = cache.to_string_lossy().into_owned();
        let retention = RETENTION_BYTES.to_string();
        let settings = [
            // Nobody listens at the discard port of loopback.
            ("UPSTREAM__BASE_URL", "http://127.0.0.1:9/v1/globalsim"),
            ("UPSTREAM__API_KEY", "wayscloud_api_benchmark"),
            ("HTTP__LISTEN", "127.0.0.1:0"),
            ("GRPC__LISTEN", "127.0.0.1:0"),
            ("ADMIN__LISTEN", "127.0.0.1:0"),
            ("BUS__KIND", "nats"),
            ("BUS__NATS__URLS", nats),
            ("BUS__NATS__CACHE_PATH", &cache),
            ("BUS__NATS__RETENTION_BYTES", &retention),
        ];
        command.arg("serve").envs(settings.map(|(key, value)| (format!("SIMCAST__{key}"), value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let started = Instant::now();
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let http = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("http ").and_then(|addr| addr.parse().ok()));
        let Some(http) = http else {
            let _ = child.kill();
            let _ = child.wait();
            return Err("a gateway ended before it listened".into());
        };
        Ok(Self { child, http, started })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its copy of the stream is complete; gives the time since its start.
    pub async fn filled(&self, patience: Duration) -> Outcome<Duration> {
        while self.started.elapsed() < patience {
            let shown = get(self.http, "/v1/stream").await?;
            if shown["bus"]["kind"] == "nats" && shown["bus"]["filling"].is_null() {
                return Ok(self.started.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("a gateway did not fill its copy in time".into())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Appends events `range` in batches; gives how long that took.
pub async fn fill(bus: &dyn Bus, range: std::ops::Range<u64>, batch: u64, sims: u64) -> Outcome<Duration> {
    let started = Instant::now();
    let mut next = range.start;
    while next < range.end {
        let end = range.end.min(next + batch);
        bus.append((next..end).map(|n| event(n, sims)).collect(), None).await?;
        next = end;
    }
    Ok(started.elapsed())
}
