//! How fast the log takes events and how soon it is there after a stop and after a crash.
//!
//! `cargo bench --bench log`. Appends go through the bus, as the poller's do, and each batch is answered after its
//! fsync; the floor beside it is the same bytes written and synced by a bare loop. `SIMCAST_BENCH_EVENTS` (default
//! 1,000,000) is how many events the log holds when it is started, `SIMCAST_BENCH_DIR` where it lies.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use simcast::{
    bus::{
        Bus, NewEvent,
        embedded::{Config, Embedded},
    },
    clock,
    event::{Event, Filter, FilterLimits, Iccid, Network, Predicate},
    log::{Direction, Entry, Log, Options, ReadRequest},
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let count = match std::env::var("SIMCAST_BENCH_EVENTS") {
        Ok(text) => text.parse()?,
        Err(_) => 1_000_000,
    };
    let root = std::env::var_os("SIMCAST_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let root = root.join(format!("simcast-bench-log-{}", std::process::id()));
    let result = run(&root, count);
    fs::remove_dir_all(&root)?;
    result
}

fn run(root: &Path, count: u64) -> Result<(), Failure> {
    fs::create_dir_all(root)?;
    for (batch, batches) in [(1, 500), (100, 200)] {
        appends(root, batch, batches)?;
    }
    start_up(&root.join("log"), count)
}

fn event(n: u64) -> Result<Event, Failure> {
    let mut event = Event::new(format!("evt_{n:016x}"), Arc::from("/globalsim/default"), "connection");
    event.event_id = Some(event.id.clone());
    event.iccid = Some(Iccid::parse(&format!("894700000000{:07}", n % 20_000))?);
    event.msisdn = Some("+4791234567".to_owned());
    event.device_id = Some(format!("iot_dev_{}", n % 20_000));
    event.timestamp = Some("2025-11-05T08:00:00Z".to_owned());
    event.time = Some("2025-11-05T08:00:00Z".parse()?);
    event.network = Some(Network {
        country: Some("Norway".to_owned()),
        country_code: Some("NO".to_owned()),
        operator: Some("Telenor Norway".to_owned()),
        network_code: Some("24201".to_owned()),
        mcc: Some("242".to_owned()),
        mnc: Some("01".to_owned()),
        network_type: Some("4G".to_owned()),
    });
    event.signal_strength = Some(-65);
    event.details =
        Some(json!({"network_type": "4G", "signal_strength": -65, "cell": {"lac": 1234, "ci": 567890}}));
    Ok(event)
}

/// Events per second through the bus, beside a loop that only writes and syncs as many bytes.
fn appends(root: &Path, batch: u64, batches: u64) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let config = Config { path: Some(root.join(format!("bus-{batch}"))), ..Config::default() };
    let bus = Embedded::open(config, clock::system())?;
    let mut all = Vec::new();
    for first in (0..batches).map(|n| n * batch) {
        let new = |n| Ok(NewEvent { event: event(n)?, identity: n, content: n as u32 });
        all.push((first..first + batch).map(new).collect::<Result<Vec<_>, Failure>>()?);
    }
    let started = Instant::now();
    runtime.block_on(async {
        for batch in all {
            bus.append(batch, None).await?;
        }
        Ok::<_, Failure>(())
    })?;
    let took = started.elapsed();
    let bytes = bus.log().get(1)?.map_or(0, |stored| stored.bytes()) * batch as usize;
    let floor = bare_loop(&root.join("floor"), bytes, batches)?;
    let rate = |took: Duration| (batch * batches) as f64 / took.as_secs_f64();
    println!(
        "append, batches of {batch:>3}: {:>8.0} events/s; bare write and fdatasync {:>8.0}; ratio {:.2}",
        rate(took),
        rate(floor),
        took.as_secs_f64() / floor.as_secs_f64()
    );
    Ok(())
}

fn bare_loop(path: &Path, bytes: usize, batches: u64) -> Result<Duration, Failure> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
    let buffer = vec![7; bytes];
    let started = Instant::now();
    for _ in 0..batches {
        file.write_all(&buffer)?;
        file.sync_data()?;
    }
    Ok(started.elapsed())
}

fn start_up(path: &Path, count: u64) -> Result<(), Failure> {
    let options = Options { retention_bytes: u64::MAX, ..Options::default() };
    let log = Log::open(path, options)?;
    let started = Instant::now();
    let mut next = 0;
    while next < count {
        let end = count.min(next + 1_000);
        log.append((next..end).map(entry).collect::<Result<_, _>>()?)?;
        next = end;
    }
    println!("filled with {count} events in {:.1} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    log.maintain(Timestamp::UNIX_EPOCH)?;
    log.close()?;
    println!("indexes of all segments written in {:.1} s", started.elapsed().as_secs_f64());
    drop(log);
    timed_open(path, options, count, "clean stop")?;
    // The open before was not followed by a clean stop: now the last segment has no sidecar, as after a crash.
    timed_open(path, options, count, "killed")?;
    lose_the_end(path)?;
    let log = timed_open(path, options, count - 1, "killed, last sidecar lost, torn tail")?;
    reads(&log)
}

fn entry(n: u64) -> Result<Entry, Failure> {
    let observed_at = Timestamp::from_millisecond(1_700_000_000_000 + n as i64)?;
    let sealed = event(n)?.seal(observed_at, SignedDuration::MAX)?;
    Ok(Entry { sealed, identity: n, content: n as u32 })
}

fn timed_open(path: &Path, options: Options, expected: u64, what: &str) -> Result<Log, Failure> {
    let started = Instant::now();
    let log = Log::open(path, options)?;
    let opened = started.elapsed();
    let known = log.find("evt_of_nobody").is_some();
    let ready = started.elapsed();
    let found = log.bounds().events;
    if known || found != expected {
        return Err(format!("{found} of {expected} events after: {what}").into());
    }
    let started = Instant::now();
    for n in 0..1_000 {
        log.find(&format!("nobody_{n}"));
    }
    println!(
        "start after {what}: open {:.3} s, ready to append {:.3} s; then {:.1} µs to look up an unknown id",
        opened.as_secs_f64(),
        ready.as_secs_f64(),
        started.elapsed().as_secs_f64() * 1_000.0
    );
    Ok(log)
}

/// Removes the newest sidecar and cuts the last record.
fn lose_the_end(path: &Path) -> Result<(), Failure> {
    let newest = |extension: &str| -> Result<Option<PathBuf>, Failure> {
        let mut found = Vec::new();
        for file in fs::read_dir(path)? {
            found.push(file?.path());
        }
        found.retain(|path| path.extension().is_some_and(|e| e == extension));
        Ok(found.into_iter().max())
    };
    if let Some(sidecar) = newest("idx")? {
        fs::remove_file(sidecar)?;
    }
    if let Some(segment) = newest("seg")? {
        let file = OpenOptions::new().write(true).open(segment)?;
        file.set_len(file.metadata()?.len() - 100)?;
    }
    Ok(())
}

fn reads(log: &Log) -> Result<(), Failure> {
    let filters = [
        ("everything", Predicate::default()),
        ("one SIM", predicate("iccid", "8947000000000000007")?),
        ("no match, indexed", predicate("device_id", "nobody")?),
    ];
    for (what, predicate) in &filters {
        let (mut from, mut events, mut calls) = (log.bounds().first_seq - 1, 0, 0);
        let started = Instant::now();
        loop {
            let request = ReadRequest {
                from,
                direction: Direction::Forward,
                predicate,
                limit: 256,
                max_bytes: 256 << 10,
            };
            let page = log.read(request)?;
            (events, calls, from) = (events + page.events.len(), calls + 1, page.next);
            if page.at_end {
                break;
            }
        }
        let took = started.elapsed().as_secs_f64();
        println!("read through, {what}: {events} events in {took:.3} s, {calls} calls");
    }
    Ok(())
}

fn predicate(list: &str, value: &str) -> Result<Predicate, Failure> {
    Ok(Filter::build([(list, vec![value.to_owned()])], FilterLimits::default())?.0.into())
}
