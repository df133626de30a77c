//! What people run today, beside simcast: the API document's own monitoring loop in Python, word for word, on the
//! simulator that a gateway polls at the same time.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use simcast::clock::{Clock, SystemClock};
use simcast::globalsim::simulator::{API_PATH, DEFAULT_API_KEY, EventSpec, Faults, faults};
use tokio::process::Command;

use super::support::{PATIENCE, World, assert_exactly_once, settled};
use model::{Monitored, Record, monitor_sim_activity};

#[path = "../clients/document_loop.rs"]
mod model;

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

/// The same run by the model of the loop that the table of `docs/GUARANTEES.md` is made with.
async fn modelled_loop(world: &World, polls: u32, first: u32, per_poll: u32, network_null: bool) -> Outcome {
    let iccid = world.sim.fleet()[0].iccid.clone();
    let began = SystemClock.now() - SignedDuration::from_hours(1);
    let mut shown: HashSet<String> = HashSet::new();
    let mut happen = |count: u32| {
        for _ in 0..count {
            let at = began + SignedDuration::from_secs(shown.len() as i64);
            let at = Timestamp::from_second(at.as_second()).unwrap();
            let mut event = EventSpec {
                iccid: Some(iccid.clone()),
                event_type: Some("connection".to_owned()),
                timestamp: Some(at),
                ..EventSpec::default()
            };
            if network_null {
                event.overlay = json!({"network": null}).as_object().unwrap().clone();
            }
            world.sim.inject(event);
            shown.insert(at.to_string());
        }
    };
    happen(first);
    let mut polled = 1;
    let sleep = async || {
        if polled == polls {
            return false;
        }
        polled += 1;
        happen(per_poll);
        true
    };
    let sim = Monitored { path: API_PATH.to_owned(), key: DEFAULT_API_KEY.to_owned(), iccid: iccid.clone() };
    let dialer = world.sim.dialer();
    let mut record = Record::default();
    let running = monitor_sim_activity(|| dialer.dial(), &sim, &mut record, sleep);
    let died = tokio::time::timeout(PATIENCE, running).await.expect("the loop hangs");
    let printed: HashSet<&String> = record.lines.iter().map(|(_, at)| at).collect();
    Outcome {
        shown: shown.len() as u64,
        printed: printed.into_iter().filter(|at| shown.contains(*at)).count() as u64,
        lines: record.lines.len() as u64,
        died: died.map(str::to_owned),
    }
}

/// What the table says of the document's loop is said of a model of it; here the model is held to the text itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_of_the_documents_loop_does_what_its_text_does() {
    let oldest = Faults { order: faults::Order::Oldest, ..Faults::default() };
    let failing = faults::Errors { server_error: 1.0, ..Default::default() };
    let bare = faults::Lists { bare_array: true, ..Default::default() };
    let html = faults::Transport { html: 1.0, ..Default::default() };
    let cut = faults::Transport { truncate: 1.0, ..Default::default() };
    let cases = [
        (50, 20, 20, false, Faults::default()),
        (100, 10, 0, false, Faults::default()),
        (20, 10, 5, false, oldest),
        (5, 3, 3, true, Faults::default()),
        (5, 3, 3, false, Faults { errors: failing, ..Faults::default() }),
        (5, 3, 3, false, Faults { lists: bare, ..Faults::default() }),
        (5, 3, 3, false, Faults { transport: html, ..Faults::default() }),
        (5, 3, 3, false, Faults { transport: cut, ..Faults::default() }),
    ];
    for (polls, first, per_poll, network_null, faults) in cases {
        let said = format!("{polls} polls, {first} and {per_poll} events, {faults:?}");
        let (texts, models) = (World::quiet().await, World::quiet().await);
        texts.sim.set_faults(faults.clone());
        models.sim.set_faults(faults);
        let more: &[&str] = if network_null { &["--network", "null"] } else { &[] };
        let text = document_loop(&texts, polls, first, per_poll, more).await;
        let model = modelled_loop(&models, polls, first, per_poll, network_null).await;
        assert_eq!(text, model, "{said}");
    }
}
