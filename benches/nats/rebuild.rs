//! How fast a gateway with an empty cache has its copy of the stream, and what memory that takes.
//!
//! Beside it a floor: a plain consumer that reads the same stream and builds nothing. Each runs in a process of its
//! own, so that its memory is its own; `mirror` is the backend alone, `gateway` is `simcast serve` from its start.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use futures_util::StreamExt as _;
use simcast::bus::{Bus as _, Fill};
use tempfile::TempDir;

use super::{
    nats_server::{NEWEST, Options, Server},
    support::{
        Gateway, Outcome, STREAM, cpu_seconds, disk_bytes, fill, jetstream, median, memory_mib, setting,
    },
};

/// Events of one append while the stream is filled: as many as an atomic batch may have.
const FILL_BATCH: u64 = 1_000;
/// How long one reading of the stream may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Messages that the floor asks for at once, as many as the mirror does.
const PULL_MESSAGES: usize = 4_096;

/// One reading of the stream.
struct Reading {
    seconds: f64,
    cpu: f64,
    high_mib: f64,
    /// What the server spent meanwhile.
    server_cpu: f64,
}

pub async fn measure() -> Outcome<()> {
    let (events, sims) = (setting("EVENTS", 500_000.0) as u64, setting("SIMS", 20_000.0) as u64);
    let server = Server::start_with(Options { sync_always: false, ..Options::new(NEWEST) }).await;
    let first = TempDir::new()?;
    let bus = jetstream(server.url(), Some(first.path()), 1).await?;
    let took = fill(&*bus, 0..events, FILL_BATCH, sims).await?;
    bus.shutdown().await;
    drop(bus);
    let state = server.context().await.get_stream(STREAM).await?.cached_info().state.clone();
    let per_event = |bytes: u64| bytes as f64 / events as f64;
    println!(
        "{events} events of {sims} SIMs appended in {:.1} s; bytes per event: {:.0} as the stream counts them, {:.0} \
         on the server's disk, {:.0} in a mirror",
        took.as_secs_f64(),
        per_event(state.bytes),
        per_event(disk_bytes(&server.store())?),
        per_event(disk_bytes(first.path())?),
    );
    drop(first);
    println!(
        "server: {:.0} MiB, {:.0} at most",
        memory_mib(server.pid(), "VmRSS")?,
        memory_mib(server.pid(), "VmHWM")?
    );
    let names = ["plain consumer", "mirror", "gateway"];
    let mut readings: [Vec<Reading>; 3] = Default::default();
    for _ in 0..(setting("RUNS", 3.0) as usize).max(1) {
        for (name, of_name) in names.iter().zip(&mut readings) {
            let before = cpu_seconds(server.pid())?;
            let mut reading = match *name {
                "plain consumer" => child("floor", &[server.url(), events.to_string()]).await?,
                "mirror" => child("mirror", &[server.url()]).await?,
                _ => gateway(&server).await?,
            };
            reading.server_cpu = cpu_seconds(server.pid())? - before;
            of_name.push(reading);
        }
    }
    println!(
        "{:<15} {:>8} {:>9} {:>14} {:>15} {:>10}",
        "", "seconds", "events/s", "CPU µs/event", "server µs/event", "VmHWM MiB"
    );
    for (name, of_name) in names.iter().zip(&readings) {
        let of = |figure: fn(&Reading) -> f64| median(of_name.iter().map(figure).collect());
        let seconds = of(|reading| reading.seconds);
        println!(
            "{name:<15} {seconds:>8.2} {:>9.0} {:>14.2} {:>15.2} {:>10.0}",
            events as f64 / seconds,
            of(|reading| reading.cpu) * 1e6 / events as f64,
            of(|reading| reading.server_cpu) * 1e6 / events as f64,
            of(|reading| reading.high_mib),
        );
    }
    Ok(())
}

/// Runs this program in one of its other roles.
async fn child(role: &str, args: &[String]) -> Outcome<Reading> {
    let child = tokio::process::Command::new(std::env::current_exe()?)
        .arg(role)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output());
    let output = ended.await.map_err(|_| format!("{role} took too long"))??;
    let figures: Vec<f64> =
        String::from_utf8(output.stdout)?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match figures[..] {
        [seconds, cpu, high_mib] => Ok(Reading { seconds, cpu, high_mib, server_cpu: 0.0 }),
        _ => Err(format!("{role} failed: {}", output.status).into()),
    }
}

async fn gateway(server: &Server) -> Outcome<Reading> {
    let cache = TempDir::new()?;
    let gateway = Gateway::start(&server.url(), cache.path())?;
    let seconds = gateway.filled(PATIENCE).await?.as_secs_f64();
    let pid = gateway.pid();
    Ok(Reading { seconds, cpu: cpu_seconds(pid)?, high_mib: memory_mib(pid, "VmHWM")?, server_cpu: 0.0 })
}

/// What a role has to say at its end.
fn report(began: Instant) -> Outcome<()> {
    let (seconds, pid) = (began.elapsed().as_secs_f64(), std::process::id());
    println!("{seconds} {} {}", cpu_seconds(pid)?, memory_mib(pid, "VmHWM")?);
    Ok(())
}

/// Reads so many messages and forgets them.
pub async fn floor(args: &[String]) -> Outcome<()> {
    let [url, events] = args else { return Err("floor <url> <events>".into()) };
    let (began, mut left) = (Instant::now(), events.parse::<u64>()?);
    let context = async_nats::jetstream::new(async_nats::connect(url).await?);
    let stream = context.get_stream(STREAM).await?;
    let consumer = stream.create_consumer(pull::Config {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    });
    let mut messages = consumer.await?.stream().max_messages_per_batch(PULL_MESSAGES).messages().await?;
    while left > 0 {
        messages.next().await.ok_or("the consumer ended")??;
        left -= 1;
    }
    report(began)
}

/// Opens the backend with an empty cache and waits until it is complete.
pub async fn mirror(args: &[String]) -> Outcome<()> {
    let [url] = args else { return Err("mirror <url>".into()) };
    let cache = TempDir::new()?;
    let began = Instant::now();
    let bus = jetstream(url.clone(), Some(cache.path()), 1).await?;
    bus.fill().wait_for(|fill| *fill == Fill::Complete).await?;
    report(began)?;
    bus.shutdown().await;
    Ok(())
}
