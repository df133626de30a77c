//! What the NATS backend costs beside the embedded log: appends, building a mirror anew, and several gateways on one
//! stream.
//!
//! One or several gateways, one or three servers: which is enough is a question of figures, and these are what the
//! README's plan rests on. Servers are real ones on loopback addresses of this run's own. All share the machine, so
//! CPU time is measured beside wall-clock, which depends more on what else the machine does.
//!
//! `cargo bench --bench nats`, some ten minutes. It needs `SIMCAST_TEST_NATS_2_15`, the path of a nats-server 2.15
//! (`tests/run` installs one under `target/tools`). Settings, with their defaults: `SIMCAST_BENCH_PARTS`
//! (append,rebuild,fanout), `SIMCAST_BENCH_EVENTS` (500000, in the stream that is copied), `SIMCAST_BENCH_SIMS`
//! (20000, of which they are), `SIMCAST_BENCH_RUNS` (3, rebuilds of which the median is printed),
//! `SIMCAST_BENCH_SUBSCRIBERS` (2000, of all gateways together), `SIMCAST_BENCH_SCALE` (1.0, share of batches and
//! seconds). What is stored lies under `TMPDIR`, where 15 GB must be free: a server lends no more than
//! three quarters of it.

mod append;
mod fanout;
#[path = "../../tests/it/nats_server.rs"]
#[expect(clippy::unwrap_used, reason = "written for tests, which fail by panicking")]
mod nats_server;
mod rebuild;
mod support;

use std::time::Duration;

use support::Outcome;

/// How long a part may take, whatever happens.
const PART_MAX: Duration = Duration::from_secs(1_800);

fn main() -> Outcome<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("floor") => support::runtime()?.block_on(rebuild::floor(&args[1..])),
        Some("mirror") => support::runtime()?.block_on(rebuild::mirror(&args[1..])),
        _ if args.iter().any(|arg| arg == "--bench") => support::runtime()?.block_on(measure()),
        // `cargo test --benches` runs this too, without the flag.
        _ => {
            println!("run by cargo bench");
            Ok(())
        }
    }
}

async fn measure() -> Outcome<()> {
    if std::env::var_os("SIMCAST_TEST_NATS_2_15").is_none_or(|path| !std::path::Path::new(&path).is_file()) {
        return Err("SIMCAST_TEST_NATS_2_15 must be the path of a nats-server 2.15; tests/run installs one \
                    as target/tools/nats-server-2.15.1"
            .into());
    }
    let parts = std::env::var("SIMCAST_BENCH_PARTS").unwrap_or_else(|_| "append,rebuild,fanout".to_owned());
    for part in parts.split(',') {
        println!("\n{part}; load average {}", std::fs::read_to_string("/proc/loadavg")?.trim());
        let done = async {
            match part {
                "append" => append::measure().await,
                "rebuild" => rebuild::measure().await,
                "fanout" => fanout::measure().await,
                other => Err(format!("there is no part {other}").into()),
            }
        };
        tokio::time::timeout(PART_MAX, done).await.map_err(|_| format!("{part} took too long"))??;
    }
    Ok(())
}
