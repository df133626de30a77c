//! The programs of `docs/examples` beside the API document's own, on the same simulator.

use std::{path::PathBuf, process::Stdio};

use simcast::globalsim::simulator::{API_PATH, DEFAULT_API_KEY, EventSpec};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::support::{Gateway, PATIENCE, World, settled};

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run tests/run, which installs the clients"))
}

fn python() -> Command {
    Command::new(variable("SIMCAST_TEST_PYTHON"))
}

fn node() -> Command {
    Command::new(variable("SIMCAST_TEST_NODE"))
}

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a program to its end and gives what it printed.
async fn printed(command: &mut Command) -> String {
    let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await.expect("it hangs");
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A program that runs on, and its lines.
fn running(command: &mut Command, gateway: &Gateway) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = command
        .env("SIMCAST_URL", format!("http://{}", gateway.http))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("no line comes");
    line.unwrap().expect("the program ended")
}

fn api(world: &World) -> String {
    format!("{}{API_PATH}", world.sim.origin())
}

fn event(iccid: &str, event_type: &str) -> EventSpec {
    EventSpec {
        iccid: Some(iccid.to_owned()),
        event_type: Some(event_type.to_owned()),
        ..EventSpec::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_seven_days_are_those_that_the_original_prints() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let iccid = world.sim.fleet()[0].iccid.clone();
    for event_type in ["connection", "data_usage_update", "disconnection"].iter().cycle().take(30) {
        world.sim.inject(event(&iccid, event_type));
    }
    let original = printed(python().arg(file("tests/clients/document/sessions.py")).args([
        &api(&world),
        DEFAULT_API_KEY,
        &iccid,
    ]))
    .await;
    let ours = printed(
        python()
            .arg(file("docs/examples/sessions.py"))
            .arg(&iccid)
            .env("SIMCAST_URL", format!("http://{}", gateway.http)),
    )
    .await;
    assert!(original.contains("Total sessions: 10\n"), "{original}");
    assert_eq!(ours, original);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_monitor_prints_what_the_original_prints_and_goes_on() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    for sim in world.sim.fleet().iter().cycle().take(50) {
        world.sim.inject(event(&sim.iccid, "connection"));
    }
    settled(&world, gateway.http).await;
    let script = PathBuf::from(variable("SIMCAST_TEST_NODE_DIR")).join("monitor.mjs");
    let original = printed(node().arg(script).args([&api(&world), DEFAULT_API_KEY])).await;
    let mut original: Vec<_> = original.lines().map(str::to_owned).collect();
    assert_eq!(original.len(), 50, "a whole page");
    let (_child, mut lines) =
        running(node().arg(file("docs/examples/monitor.mjs")).arg("connection"), &gateway);
    let mut ours = Vec::new();
    for _ in 0..original.len() {
        ours.push(line(&mut lines).await);
    }
    original.sort();
    let mut sorted = ours.clone();
    sorted.sort();
    assert_eq!(sorted, original);
    let iccid = world.sim.fleet()[3].iccid.clone();
    world.sim.inject(event(&iccid, "disconnection"));
    world.sim.inject(event(&iccid, "connection"));
    assert!(line(&mut lines).await.starts_with(&format!("SIM {iccid} connected to ")));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_counts_what_the_original_does_not_see() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let fleet = world.sim.fleet();
    for n in 0..330 {
        let event_type = if n % 3 == 0 { "disconnection" } else { "connection" };
        world.sim.inject(event(&fleet[n % 7].iccid, event_type));
    }
    settled(&world, gateway.http).await;
    let original = python()
        .arg(file("tests/clients/document/report.py"))
        .args([&api(&world), DEFAULT_API_KEY])
        .kill_on_drop(true)
        .output();
    let original = tokio::time::timeout(PATIENCE, original).await.expect("it hangs").unwrap();
    // It asks for 1,000 rows where 100 are allowed: an error, or at best the first hundred.
    let total = String::from_utf8_lossy(&original.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("Total events: ")?.parse::<u64>().ok());
    assert!(!original.status.success() || total == Some(100), "{total:?}");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let ours = loop {
        let ours = printed(
            python()
                .arg(file("docs/examples/report.py"))
                .env("SIMCAST_URL", format!("http://{}", gateway.http)),
        )
        .await;
        if ours.contains("Total events: 330\n") || tokio::time::Instant::now() > deadline {
            break ours;
        }
    };
    let rows: Vec<Vec<&str>> = ours.lines().map(|line| line.split_whitespace().collect()).collect();
    for wanted in [["connection", "220"], ["disconnection", "110"], [&fleet[0].iccid, "48"]] {
        assert!(rows.iter().any(|row| row == &wanted), "{wanted:?}: {ours}");
    }
    gateway.stop().await;
}

/// The original is run by `document`: it prints everything again with each poll, and loses what exceeds ten rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_time_loop_prints_each_event_once_over_restarts_of_the_gateway() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let iccid = world.sim.fleet()[0].iccid.clone();
    let http = gateway.http.to_string();
    let (_child, mut lines) = running(python().arg(file("docs/examples/realtime.py")).arg(&iccid), &gateway);
    let mut gateway = Some(gateway);
    let (mut wanted, mut types) = (Vec::new(), Vec::new());
    // It follows once it has printed something.
    let first = world.sim.inject(event(&iccid, "location_update"));
    wanted.push(format!("{}: location_update", first.timestamp));
    types.push(line(&mut lines).await);
    for round in 0..3 {
        for n in 0..15 {
            let event_type = if n % 2 == 0 { "connection" } else { "disconnection" };
            let truth = world.sim.inject(event(&iccid, event_type));
            wanted.push(format!("{}: {event_type}", truth.timestamp));
        }
        while types.len() < wanted.len() {
            let line = line(&mut lines).await;
            if !line.starts_with("  Network: ") {
                types.push(line);
            }
        }
        if round < 2
            && let Some(stopped) = gateway.take()
        {
            stopped.stop().await;
            gateway = Some(world.gateway_with(&[("SIMCAST__HTTP__LISTEN", &http)]).await);
        }
    }
    assert_eq!(types.len(), wanted.len());
    types.sort();
    wanted.sort();
    assert_eq!(types, wanted, "each once");
    if let Some(gateway) = gateway {
        gateway.stop().await;
    }
}
