//! What roll-ups cost: how fast events are counted, how large that is, and how soon a month of it is answered.
//!
//! `cargo bench --bench report`. `SIMCAST_BENCH_EVENTS` (default 5,000,000) of `SIMCAST_BENCH_SIMS` (20,000) over 30
//! days go through a log in memory that keeps less than a day of them, and are counted along with it. The floor of
//! counting is reading the same pages and looking at nothing but their keys; that of the report is reading its files.
//! `SIMCAST_BENCH_DIR` is where these lie. Then the same of the registry, for a fifth of the events and five times the
//! SIMs.

mod registry;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use simcast::{
    event::{Event, Iccid, Network, Predicate, Session, StoredEvent},
    log::{Entry, Log, Options, follow::Follower},
    views::{
        report::{Interval, Period, Query, compute},
        rollup::{Config, Rollup},
    },
};

type Failure = Box<dyn std::error::Error>;

/// When the month begins, a midnight.
const BEGIN_S: i64 = 1_759_276_800;
const MONTH_S: i64 = 30 * 86_400;
/// Events between two looks at the log.
const CHUNK: u64 = 20_000;
/// Reports of each kind.
const REPORTS: usize = 50;

fn main() -> Result<(), Failure> {
    let number = |name: &str, default: u64| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (count, sims) = (number("SIMCAST_BENCH_EVENTS", 5_000_000)?, number("SIMCAST_BENCH_SIMS", 20_000)?);
    let root = std::env::var_os("SIMCAST_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let root = root.join(format!("simcast-bench-report-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let result = runtime.block_on(async {
        run(&root.join("rollup"), count, sims).await?;
        registry::run(&root.join("registry"), count / 5, sims * 5).await
    });
    fs::remove_dir_all(&root)?;
    result
}

fn entry(n: u64, count: u64, sims: u64) -> Result<Entry, Failure> {
    let sim = fastrand::u64(..sims);
    let second = BEGIN_S + (n as i128 * i128::from(MONTH_S) / i128::from(count)) as i64;
    // One in fifty comes days late.
    let late = if n.is_multiple_of(50) {
        fastrand::i64(0..7 * 86_400).min(second - BEGIN_S)
    } else {
        fastrand::i64(0..60)
    };
    let types = ["connection", "disconnection", "network_change", "data_usage_update", "session_updated"];
    let event_type = types[fastrand::usize(..types.len())];
    let mut event = Event::new(format!("evt_{n:012}"), Arc::from("/globalsim/default"), event_type);
    event.event_id = Some(event.id.clone());
    event.iccid = Some(Iccid::parse(&format!("894700000000{sim:07}"))?);
    event.msisdn = Some(format!("+47{sim:08}"));
    event.device_id = Some(format!("iot_dev_{sim}"));
    event.time = Some(Timestamp::from_second((second - late).max(BEGIN_S))?);
    event.timestamp = event.time.map(|time| time.to_string());
    let countries =
        [("Norway", "NO"), ("Sweden", "SE"), ("Denmark", "DK"), ("Germany", "DE"), ("France", "FR")];
    let network = |country: (&str, &str)| Network {
        country: Some(country.0.to_owned()),
        country_code: Some(country.1.to_owned()),
        operator: Some(format!("{} {}", country.0, fastrand::u8(..3))),
        network_type: Some(["2G", "4G", "5G"][fastrand::usize(..3)].to_owned()),
        ..Network::default()
    };
    let country = || countries[fastrand::usize(..5)];
    event.network = Some(network(country()));
    if event_type == "network_change" {
        event.previous_network = Some(network(country()));
    }
    if event_type == "session_updated" {
        // A session of a SIM lasts about a day.
        event.session = Some(Session {
            session_id: Some(format!("sess_{sim}_{}", second / 86_400)),
            start_time: Some(Timestamp::from_second(second / 86_400 * 86_400)?.to_string()),
            total_mb: format!("{}.25", second % 86_400 / 60).parse().ok(),
            ..Session::default()
        });
    }
    let sealed = event.seal(Timestamp::from_second(second)?, SignedDuration::from_secs(300))?;
    Ok(Entry { sealed, identity: n, content: 0 })
}

async fn run(root: &Path, count: u64, sims: u64) -> Result<(), Failure> {
    fastrand::seed(7);
    let options = Options {
        segment_bytes: 8 << 20,
        retention_bytes: 96 << 20,
        retention_days: 1,
        ..Options::default()
    };
    let log = Arc::new(Log::in_memory_with(options));
    let rollup = Rollup::open(&Config { directory: Some(root.to_owned()) }, &log)?;
    let mut counted = rollup.follow()?;
    let (mut floor, _) = Follower::new(&log, Predicate::unfiltered(), None);
    let (mut counting, mut reading) = (Duration::ZERO, Duration::ZERO);
    let (mut commits, mut looked_at, mut cells) = (0_u32, 0_u64, 0);
    let mut n = 0;
    while n < count {
        let end = count.min(n + CHUNK);
        for first in (n..end).step_by(1_000) {
            let entries = (first..end.min(first + 1_000)).map(|n| entry(n, count, sims));
            log.append(entries.collect::<Result<_, _>>()?)?;
        }
        n = end;
        let started = Instant::now();
        while !floor.is_at_edge() {
            let page = floor.next().await?;
            looked_at +=
                page.events.iter().filter_map(|event: &StoredEvent| event.keys().ok()).count() as u64;
        }
        reading += started.elapsed();
        let started = Instant::now();
        while !counted.is_at_edge() {
            let page = counted.next().await?;
            rollup.count(&page, counted.cursor());
        }
        cells = cells.max(rollup.size().1);
        if rollup.size().1 >= simcast::views::rollup::CELLS_MAX {
            rollup.commit()?;
            commits += 1;
        }
        counting += started.elapsed();
        log.maintain(Timestamp::from_second(
            BEGIN_S + (n as i128 * i128::from(MONTH_S) / i128::from(count)) as i64,
        )?)?;
    }
    // A report is there once something has been counted that came behind its period.
    let mut last = Event::new("evt_last", Arc::from("/globalsim/default"), "connection");
    last.time = Some(Timestamp::from_second(BEGIN_S + MONTH_S)?);
    let sealed = last.seal(Timestamp::from_second(BEGIN_S + MONTH_S)?, SignedDuration::from_secs(300))?;
    log.append(vec![Entry { sealed, identity: count, content: 0 }])?;
    let page = counted.next().await?;
    rollup.count(&page, counted.cursor());
    let started = Instant::now();
    rollup.commit()?;
    counting += started.elapsed();
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    println!(
        "count: {:.0} events/s with {} commits; read only ({looked_at}): {:.0} events/s; ratio {:.2}",
        rate(counting),
        commits + 1,
        rate(reading),
        counting.as_secs_f64() / reading.as_secs_f64()
    );
    println!(
        "log keeps {} of {count} events; roll-ups on disk {:.1} MiB; cells in memory at most {cells}; VmHWM {} MiB",
        log.bounds().events,
        rollup.size().0 as f64 / f64::from(1 << 20),
        memory_mib("VmHWM")?
    );
    reports(&rollup, root, count)
}

/// A line of this process's status.
fn memory_mib(name: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1_024)
}

fn reports(rollup: &Rollup, root: &Path, count: u64) -> Result<(), Failure> {
    let [from, to] = [BEGIN_S, BEGIN_S + MONTH_S].map(Timestamp::from_second);
    let period = Period::new(from?, to?)?;
    let one_sim = simcast::event::Filter::build(
        [("iccid", vec!["8947000000000000001".to_owned()])],
        simcast::event::FilterLimits::default(),
    )?;
    let kinds = [
        ("everything, by hour", Predicate::default(), Some(Interval::Hour)),
        ("everything, by day", Predicate::default(), Some(Interval::Day)),
        ("one SIM", one_sim.0.into(), None),
    ];
    for (name, predicate, interval) in kinds {
        let query = Query { predicate, period, interval };
        let mut took = Vec::new();
        for _ in 0..REPORTS {
            let started = Instant::now();
            let report = compute(rollup, &query)?;
            let shown = simcast::frontends::http::report::show(&report, 10, None).to_string();
            took.push(started.elapsed());
            if interval.is_some() && report.sums.total.events != count as i64 {
                return Err(format!("{} of {count} events: {}", report.sums.total.events, shown.len()).into());
            }
        }
        print(&format!("30 days, {name}"), took);
    }
    let mut took = Vec::new();
    for _ in 0..REPORTS {
        let started = Instant::now();
        let mut bytes = 0;
        for file in fs::read_dir(root)? {
            let file = fs::read(file?.path())?;
            bytes += std::hint::black_box(crc(&file));
        }
        std::hint::black_box(bytes);
        took.push(started.elapsed());
    }
    print("floor: read and check the same files", took);
    Ok(())
}

fn crc(bytes: &[u8]) -> u64 {
    u64::from(crc32c::crc32c(bytes))
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let ms = |at: usize| took[at].as_secs_f64() * 1e3;
    println!(
        "{what}: p50 {:.1} ms, p99 {:.1} ms, n = {}",
        ms(took.len() / 2),
        ms(took.len() * 99 / 100),
        took.len()
    );
}
