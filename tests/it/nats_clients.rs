//! Other NATS clients read the stream by what docs/NATS.md promises them: two that share no code with the gateway,
//! compared with what its REST interface gives.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use serde_json::{Value, json};
use simcast::{
    event::Cursor,
    globalsim::simulator::{Config, EventSpec},
};
use tokio::process::Command;

use super::support::{Bus, PATIENCE, World, settled};

/// Runs a reader until it has `count` events; gives its lines.
pub async fn reader(client: &str, server: &str, count: usize, filter: &[&str]) -> Vec<Value> {
    let variable = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: run tests/run, which installs the clients"))
    };
    let (program, script) = match client {
        "python" => (
            variable("SIMCAST_TEST_PYTHON"),
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python/nats_follow.py").to_owned(),
        ),
        _ => {
            (variable("SIMCAST_TEST_NODE"), format!("{}/nats_follow.mjs", variable("SIMCAST_TEST_NODE_DIR")))
        }
    };
    let child = Command::new(program)
        .arg(script)
        .args(["--server", server, "--count", &count.to_string()])
        .args(filter)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, child).await.expect("the reader hangs").unwrap();
    assert!(output.status.success(), "{client}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The line that a reader must print for an event of REST. The body is compared as text: the same bytes.
pub fn expected(mut event: Value) -> Value {
    let cursor = event.as_object_mut().unwrap().shift_remove("cursor").unwrap();
    let seq = Cursor::parse(cursor.as_str().unwrap()).unwrap().seq;
    json!({"seq": seq, "id": event["id"], "content_type": "application/cloudevents+json", "body": event.to_string()})
}

pub fn without_subject(mut line: Value) -> Value {
    line.as_object_mut().unwrap().shift_remove("subject");
    line
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_read_from_the_stream_what_the_gateway_gives() {
    let config = Config {
        sims: 30,
        events_per_second: 10.0,
        history: Duration::from_secs(1800),
        history_events_per_second: 0.1,
        ..Config::default()
    };
    let world = World::on(Bus::Nats, config).await;
    let gateway = world.gateway().await;
    let server = world.nats.as_ref().unwrap().url();
    // They join while history is still being read and events keep coming.
    let (count, busy) = (200, world.sim.fleet()[0].iccid.clone());
    let types: &[&str] = &["--event-type", "connection", "--event-type", "network_change"];
    let (python, node, python_types, node_types) = tokio::join!(
        reader("python", &server, count, &[]),
        reader("node", &server, count, &[]),
        reader("python", &server, 60, types),
        reader("node", &server, 60, types),
    );
    world.sim.pause();
    let events = settled(&world, gateway.http).await;
    let all: Vec<Value> = events.iter().cloned().map(expected).collect();
    let typed: Vec<Value> = events
        .iter()
        .filter(|event| {
            ["connection", "network_change"].contains(&event["data"]["event_type"].as_str().unwrap())
        })
        .cloned()
        .map(expected)
        .collect();
    for (name, lines, expected) in [
        ("python", python, &all),
        ("node", node, &all),
        ("python, by type", python_types, &typed),
        ("node, by type", node_types, &typed),
    ] {
        let (skipped, seen): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|line| line.get("skipped").is_some());
        let seen: Vec<_> = seen.into_iter().map(without_subject).collect();
        assert!(seen.len() == count || seen.len() == 60, "{name}: {}", seen.len());
        assert_eq!(seen[..], expected[..seen.len()], "{name}");
        let skipped: BTreeSet<_> = skipped.iter().map(|line| line["skipped"].as_str().unwrap()).collect();
        let wanted = if name.contains("type") { vec![] } else { vec!["simcast.ctl.fence.poller"] };
        assert!(skipped.into_iter().eq(wanted), "{name} skips what is no event, and nothing else");
    }

    // One SIM, from a position on: a sequence is a place to go on from, as a cursor is.
    let of_sim: Vec<Value> =
        events.iter().filter(|event| event["data"]["iccid"] == *busy).cloned().map(expected).collect();
    assert!(of_sim.len() > 3, "{} events of {busy}", of_sim.len());
    let after = of_sim[1]["seq"].to_string();
    let by_sim = ["--iccid", &busy, "--after", &after];
    for client in ["python", "node"] {
        let lines = reader(client, &server, of_sim.len() - 2, &by_sim).await;
        assert_eq!(lines.into_iter().map(without_subject).collect::<Vec<_>>(), of_sim[2..], "{client}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_filter_asks_for_is_found_whatever_devices_are_called() {
    let world = World::quiet_on(Bus::Nats).await;
    let gateway = world.gateway().await;
    let long = "d".repeat(97);
    let names = ["Målepunkt 7/*>", "-", "a.b", &long];
    for name in names {
        let overlay = [("device_id".to_owned(), json!(name))].into_iter().collect();
        world.sim.inject(EventSpec { event_type: Some("odd.type".into()), overlay, ..EventSpec::default() });
    }
    let events = settled(&world, gateway.http).await;
    let server = world.nats.as_ref().unwrap().url();
    for name in names {
        let of_device = events.iter().find(|event| event["data"]["device_id"] == *name);
        let of_device = expected(of_device.unwrap_or_else(|| panic!("{name} in {events:?}")).clone());
        for client in ["python", "node"] {
            let lines = reader(client, &server, 1, &["--device", name]).await;
            assert!(lines[0]["subject"].as_str().unwrap().starts_with("simcast.events.odd=2Etype."));
            assert_eq!(without_subject(lines[0].clone()), of_device, "{client}: {name}");
        }
    }
    gateway.stop().await;
}
