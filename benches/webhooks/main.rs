//! How fast webhooks go out, how late they come, and what a receiver that hangs costs the others.
//!
//! A gateway's webhooks on an embedded log in files, one receiver in a process of its own on loopback; both share the
//! machine. The receiver's own ceiling, as wrk reaches it by posting the same body over as many connections, is
//! measured in the same run.
//!
//! `cargo bench --bench webhooks`, some three minutes; wrk must be there (Debian: wrk). Settings, with their defaults:
//! `SIMCAST_BENCH_PARTS` (speed,latency,isolation,backlog), `SIMCAST_BENCH_SECONDS` (8, each measurement),
//! `SIMCAST_BENCH_PAIRS` (5, of the isolation part), `SIMCAST_BENCH_EVENTS` (1000000, of the backlog part).

#[path = "../shared/event.rs"]
mod event;
mod receiver;
mod stage;

use std::time::{Duration, Instant};

use receiver::Child;
use stage::{Outcome, Stage};

fn main() -> Outcome<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("receiver") => receiver::run(),
        _ if args.iter().any(|arg| arg == "--bench") => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(measure())
        }
        // `cargo test --benches` runs this too, without the flag.
        _ => {
            println!("run by cargo bench");
            Ok(())
        }
    }
}

fn setting(name: &str, default: u64) -> Outcome<u64> {
    std::env::var(name).map_or(Ok(default), |text| Ok(text.parse()?))
}

async fn measure() -> Outcome<()> {
    let parts =
        std::env::var("SIMCAST_BENCH_PARTS").unwrap_or_else(|_| "speed,latency,isolation,backlog".to_owned());
    let seconds = setting("SIMCAST_BENCH_SECONDS", 8)?;
    for part in parts.split(',') {
        println!("\n{part}; load average {}", std::fs::read_to_string("/proc/loadavg")?.trim());
        match part {
            "speed" => speed(seconds).await?,
            "latency" => latency(seconds).await?,
            "isolation" => isolation(seconds, setting("SIMCAST_BENCH_PAIRS", 5)?).await?,
            "backlog" => backlog(setting("SIMCAST_BENCH_EVENTS", 1_000_000)?).await?,
            other => return Err(format!("there is no part {other}").into()),
        }
    }
    Ok(())
}

/// Appends of which the 99th percentile is taken.
const APPENDS: u64 = 600;

/// Deliveries a second from a backlog, to one endpoint and to a hundred, beside the receiver's own ceiling. An append
/// is three wake-ups and a sync: how long these take while another program keeps the cores busy, here wrk that posts
/// to the same receiver while the gateway sends nothing, is what the machine itself costs it.
async fn speed(seconds: u64) -> Outcome<()> {
    println!(
        "                        deliveries/s  of the ceiling  gateway CPU µs  append p99 ms: idle, beside wrk, meanwhile"
    );
    for (name, endpoints, ordering) in
        [("1 endpoint", 1, "none"), ("1 endpoint, per SIM", 1, "per_sim"), ("100 endpoints", 100, "none")]
    {
        let receiver = Child::start()?;
        let stage = Stage::new()?;
        let idle = stage.append_p99(APPENDS).await?;
        let (ceiling, beside) = tokio::join!(receiver.ceiling(seconds.max(5)), stage.append_p99(APPENDS));
        let (ceiling, beside) = (ceiling?, beside?);
        // As much as nobody sends in the time: to a hundred, each event goes a hundred times.
        let backlog = 60_000 * seconds / endpoints;
        stage.append(0, backlog).await?;
        for n in 0..endpoints {
            stage.webhook(&receiver.url(&format!("/ok/{n}")), ordering, None).await?;
        }
        receiver.take().await?;
        let cpu = stage::cpu_seconds()?;
        let started = Instant::now();
        let serving = stage.serve();
        let busy = stage.append_p99(APPENDS).await?;
        tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(started.elapsed())).await;
        let (took, got) = (started.elapsed().as_secs_f64(), receiver.take().await?);
        let cpu = (stage::cpu_seconds()? - cpu) * 1e6 / got.count as f64;
        let rate = got.count as f64 / took;
        println!(
            "{name:<22}  {rate:>12.0}  {:>14.2}  {cpu:>14.1}  {:.2} {:.2} {:.2}",
            rate / ceiling,
            idle * 1e3,
            beside * 1e3,
            busy * 1e3
        );
        serving.stop().await;
    }
    Ok(())
}

/// From append to the receiver, at a steady rate.
async fn latency(seconds: u64) -> Outcome<()> {
    println!("events/s  p50 ms  p99 ms");
    for rate in [100, 1_000] {
        let (receiver, stage) = (Child::start()?, Stage::new()?);
        stage.webhook(&receiver.url("/ok/0"), "none", None).await?;
        let serving = stage.serve();
        stage.steady(rate, 1).await?;
        receiver.take().await?;
        stage.steady(rate, seconds).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let got = receiver.take().await?;
        println!("{rate:>8}  {:>6.2}  {:>6.2}", got.p50_us as f64 / 1e3, got.p99_us as f64 / 1e3);
        if got.count < rate * seconds {
            return Err(format!("{} of {} arrived", got.count, rate * seconds).into());
        }
        serving.stop().await;
    }
    Ok(())
}

/// 100 endpoints, each for a SIM of its own, 200 events a second for all of them; in every second run one endpoint
/// hangs for its whole timeout. Pairs of runs, one without and one with.
async fn isolation(seconds: u64, pairs: u64) -> Outcome<()> {
    println!("p99 ms of the 99 others: all healthy, one hanging");
    let mut moved = Vec::new();
    for _ in 0..pairs {
        let mut p99 = [0.0; 2];
        for (n, hangs) in [false, true].into_iter().enumerate() {
            let (receiver, stage) = (Child::start()?, Stage::new()?);
            for sim in 0..100 {
                let path = if hangs && sim == 0 { "/hang".to_owned() } else { format!("/ok/{sim}") };
                stage.webhook(&receiver.url(&path), "none", Some(sim)).await?;
            }
            let serving = stage.serve();
            stage.steady(200, 2).await?;
            receiver.take().await?;
            stage.steady(200, seconds).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            p99[n] = receiver.take().await?.p99_us as f64 / 1e3;
            serving.stop().await;
        }
        println!("{:.2} {:.2}", p99[0], p99[1]);
        moved.push((p99[1] - p99[0], p99[0]));
    }
    moved.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (by, of) = moved[moved.len() / 2];
    println!("median: moved by {by:.2} ms of {of:.2} ms; allowed {:.2}", (of * 0.1).max(2.0));
    Ok(())
}

/// A backlog that one endpoint gets in the order of each SIM, with the memory that it takes.
async fn backlog(events: u64) -> Outcome<()> {
    let (receiver, stage) = (Child::start()?, Stage::new()?);
    stage.append(0, events).await?;
    stage.webhook(&receiver.url("/ordered"), "per_sim", None).await?;
    let before = stage::resident_mib()?;
    let (started, serving) = (Instant::now(), stage.serve());
    let (mut arrived, mut most) = (0, 0.0_f64);
    while arrived < events {
        tokio::time::sleep(Duration::from_millis(500)).await;
        arrived += receiver.take().await?.count;
        most = most.max(stage::resident_mib()?);
        if started.elapsed() > Duration::from_secs(600) {
            return Err(format!("{arrived} of {events} arrived").into());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    serving.stop().await;
    let disordered = receiver.disordered().await?;
    println!(
        "{events} events in {seconds:.0} s, {:.0} a second; {disordered} out of the order of their SIM; resident MiB \
         before {before:.0}, at most {most:.0}",
        events as f64 / seconds
    );
    if disordered > 0 { Err("the order was not kept".into()) } else { Ok(()) }
}
