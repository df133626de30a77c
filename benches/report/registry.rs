//! What the registry of SIMs costs: how fast it follows the log, its memory for each SIM, a start from its checkpoint, and
//! a page of it.

use std::{fs, path::Path, sync::Arc, time::Instant};

use simcast::{
    event::{Predicate, StoredEvent},
    log::{Log, Options, follow::Follower},
    views::registry::{Config, Handle, Query, Sort, open},
};
use tokio_util::sync::CancellationToken;

use super::{CHUNK, Failure, REPORTS, entry, memory_mib, print};

/// SIMs on a page.
const PAGE: usize = 100;

pub async fn run(root: &Path, count: u64, sims: u64) -> Result<(), Failure> {
    let log = Arc::new(Log::in_memory_with(Options::default()));
    for first in (0..count).step_by(CHUNK as usize) {
        let entries = (first..count.min(first + CHUNK)).map(|n| entry(n, count, sims));
        log.append(entries.collect::<Result<_, _>>()?)?;
    }
    let started = Instant::now();
    let (mut floor, _) = Follower::new(&log, Predicate::unfiltered(), None);
    let mut looked_at = 0;
    while !floor.is_at_edge() {
        let page = floor.next().await?;
        looked_at += page.events.iter().filter_map(|event: &StoredEvent| event.keys().ok()).count();
    }
    let reading = started.elapsed();
    drop(floor);

    let config = Config { directory: Some(root.to_owned()), ..Config::default() };
    let before = memory_mib("VmRSS")?;
    let started = Instant::now();
    let (handle, registry) = open(config.clone(), &log, simcast::clock::system());
    let stop = CancellationToken::new();
    let task = tokio::spawn(registry.run(stop.clone()));
    while handle.lag() > 0 {
        tokio::task::yield_now().await;
    }
    let following = started.elapsed();
    let memory = memory_mib("VmRSS")?.saturating_sub(before);
    println!(
        "registry: {} SIMs of {count} events, {:.0} events/s; read only ({looked_at}): {:.0} events/s; ratio {:.2}",
        handle.len(),
        count as f64 / following.as_secs_f64(),
        count as f64 / reading.as_secs_f64(),
        following.as_secs_f64() / reading.as_secs_f64()
    );
    pages(&handle);
    stop.cancel();
    task.await?;
    let bytes: u64 = fs::read_dir(root)?.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum();
    drop(handle);
    let started = Instant::now();
    let (handle, _registry) = open(config, &log, simcast::clock::system());
    println!(
        "registry: {memory} MiB more in memory; checkpoint {:.1} MiB, {} SIMs read again in {:.0} ms",
        bytes as f64 / f64::from(1 << 20),
        handle.len(),
        started.elapsed().as_secs_f64() * 1e3
    );
    Ok(())
}

fn pages(handle: &Handle) {
    for (name, sort) in [("by number", Sort::Iccid), ("last seen first", Sort::LastSeen)] {
        let mut query = Query { sort, limit: PAGE, ..Query::default() };
        let took = (0..REPORTS).map(|_| {
            let started = Instant::now();
            let page = std::hint::black_box(handle.list(&query));
            let took = started.elapsed();
            query.after = page.next;
            took
        });
        print(&format!("registry: page of {PAGE} SIMs, {name}"), took.collect());
    }
}
