//! What people run today, beside simcast: the API document's own monitoring loop in Python, word for word, on the
//! simulator that a gateway polls at the same time.

use serde_json::Value;
use simcast::globalsim::simulator::{DEFAULT_API_KEY, Faults, faults};
use tokio::process::Command;

use super::support::{PATIENCE, World, assert_exactly_once, settled};

/// What the loop did.
#[derive(Debug, PartialEq)]
struct Outcome {
    shown: u64,
    printed: u64,
    lines: u64,
    died: Option<String>,
}

async fn document_loop(world: &World, polls: u32, first: u32, per_poll: u32, more: &[&str]) -> Outcome {
    let python = std::env::var("SIMCAST_TEST_PYTHON")
        .expect("SIMCAST_TEST_PYTHON is not set: run tests/run, which installs the clients");
    let child = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python/document_loop.py"))
        .args(["--origin", &world.sim.origin(), "--key", DEFAULT_API_KEY])
        .args(["--iccid", &world.sim.fleet()[0].iccid, "--polls", &polls.to_string()])
        .args(["--first", &first.to_string(), "--per-poll", &per_poll.to_string()])
        .args(more)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, child).await.expect("the loop hangs").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |name: &str| said[name].as_u64().unwrap();
    Outcome {
        shown: count("shown"),
        printed: count("printed"),
        lines: count("lines"),
        died: said["died"].as_str().map(str::to_owned),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_loop_loses_half_of_a_busy_sim_and_simcast_nothing() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let outcome = document_loop(&world, 50, 20, 20, &[]).await;
    assert_eq!(outcome, Outcome { shown: 1_000, printed: 500, lines: 500, died: None }, "recall 0.50");
    assert_exactly_once(&world.sim.truth(), &settled(&world, gateway.http).await);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_loop_repeats_a_quiet_sim_for_ever_and_simcast_nothing() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let outcome = document_loop(&world, 100, 10, 0, &[]).await;
    assert_eq!(outcome, Outcome { shown: 10, printed: 10, lines: 1_000, died: None }, "100 copies of each");
    assert_exactly_once(&world.sim.truth(), &settled(&world, gateway.http).await);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_loop_sees_nothing_new_where_the_oldest_come_first_and_simcast_everything() {
    let world = World::quiet().await;
    world.sim.set_faults(Faults { order: faults::Order::Oldest, ..Faults::default() });
    let gateway = world.gateway().await;
    let outcome = document_loop(&world, 20, 10, 5, &[]).await;
    assert_eq!(
        outcome,
        Outcome { shown: 105, printed: 10, lines: 200, died: None },
        "the first ten for ever"
    );
    assert_exactly_once(&world.sim.truth(), &settled(&world, gateway.http).await);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_loop_dies_of_one_failed_answer_or_one_null_and_simcast_of_none() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let outcome = document_loop(&world, 5, 3, 3, &["--network", "null"]).await;
    assert_eq!(outcome, Outcome { shown: 3, printed: 1, lines: 1, died: Some("TypeError".into()) });
    assert_exactly_once(&world.sim.truth(), &settled(&world, gateway.http).await);

    let errors = faults::Errors { server_error: 1.0, ..Default::default() };
    world.sim.set_faults(Faults { errors, ..Faults::default() });
    let outcome = document_loop(&world, 5, 3, 3, &[]).await;
    assert_eq!(outcome, Outcome { shown: 3, printed: 0, lines: 0, died: Some("KeyError".into()) });
    world.sim.set_faults(Faults::default());
    assert_exactly_once(&world.sim.truth(), &settled(&world, gateway.http).await);
    gateway.stop().await;
}
