//! The same events, in the same order, with the same cursors, through every transport and every client.

use std::{collections::BTreeSet, net::SocketAddr, process::Stdio};

use serde_json::{Value, json};
use simcast::{
    globalsim::simulator::{Config, EventSpec},
    proto::{self, subscribe_request::Start},
};
use tokio::process::Command;

use super::{
    clients::{self, Seen},
    support::{Bus, Gateway, World, assert_exactly_once, on_both_buses, settled, stored},
    webhooks,
};

async fn a_world_with_history_and_life(bus: Bus) -> (World, Gateway) {
    let world = World::on(
        bus,
        Config {
            sims: 50,
            events_per_second: 20.0,
            history: std::time::Duration::from_secs(3600),
            history_events_per_second: 0.2,
            ..Config::default()
        },
    )
    .await;
    let gateway = world.gateway().await;
    (world, gateway)
}

fn matching(events: &[Value], types: &[&str]) -> Vec<Seen> {
    events
        .iter()
        .filter(|event| types.is_empty() || types.contains(&event["data"]["event_type"].as_str().unwrap()))
        .map(Seen::of)
        .collect()
}

async fn every_transport_gives_the_same_events_in_the_same_order(bus: Bus) {
    let (world, gateway) = a_world_with_history_and_life(bus).await;
    // Followers join while history is still being read and events keep coming.
    let count = 400;
    let types = ["connection", "disconnection"];
    let filter = proto::Filter { event_type: types.map(str::to_owned).to_vec(), ..Default::default() };
    let query = "event_type=connection,disconnection";
    let from = format!("{query}&from=earliest");
    let earliest = Some(Start::FromEarliest(true));
    let (ws, sse, grpc, rest, webhook) = tokio::join!(
        clients::websocket(gateway.http, &from, count),
        clients::sse(gateway.http, &from, count),
        clients::grpc(gateway.grpc, filter, earliest, count),
        clients::rest(gateway.http, query, None, count),
        webhooks::received(gateway.http, json!({ "event_type": types, "exclude_flags": [] }), count),
    );
    world.sim.pause();
    let events = settled(&world, gateway.http).await;
    let expected = matching(&events, &types);
    for (name, seen) in
        [("websocket", ws), ("sse", sse), ("grpc", grpc), ("rest", rest), ("webhook", webhook)]
    {
        assert_eq!(seen[..count], expected[..count], "{name}");
    }
    assert_exactly_once(&world.sim.truth(), &events);
    gateway.stop().await;
}

on_both_buses!(every_transport_gives_the_same_events_in_the_same_order);

async fn every_documented_field_of_an_event_arrives(bus: Bus) {
    let world = World::quiet_on(bus).await;
    let gateway = world.gateway().await;
    for event_type in
        ["connection", "disconnection", "network_change", "data_usage_update", "location_update"]
    {
        world.sim.inject(EventSpec { event_type: Some(event_type.into()), ..EventSpec::default() });
    }
    let mut overlay = serde_json::Map::new();
    overlay.insert("brand_new_field".into(), json!({"deep": [1, "two", null]}));
    world.sim.inject(EventSpec { event_type: Some("sim_swapped".into()), overlay, ..EventSpec::default() });
    let events = settled(&world, gateway.http).await;
    for truth in world.sim.truth() {
        let event = (events.iter())
            .find(|event| event["data"]["event_id"].as_str() == truth.event_id.as_deref())
            .unwrap_or_else(|| panic!("{truth:?}"));
        let data = &event["data"];
        assert_eq!(data["iccid"], truth.iccid);
        assert_eq!(event["subject"], truth.iccid);
        assert_eq!(data["msisdn"], truth.msisdn);
        assert_eq!(data["device_id"].as_str(), truth.device_id.as_deref());
        assert_eq!(data["event_type"], truth.event_type);
        assert_eq!(data["timestamp"], truth.row["timestamp"]);
        assert_eq!(data["details"], truth.row["details"], "details come from the per-SIM row");
        let network = truth.row.get("network").or_else(|| truth.row.get("current_network"));
        for field in ["country", "operator", "network_code"] {
            assert_eq!(
                data["network"][field],
                network.map_or(Value::Null, |n| n[field].clone()),
                "{field} of {event}"
            );
        }
        if truth.event_type == "network_change" {
            assert_eq!(data["previous_network"]["operator"], truth.row["previous_network"]["operator"]);
            assert_eq!(data["extra"]["current_network"], truth.row["current_network"]);
        }
        if truth.event_type == "data_usage_update" {
            assert_eq!(data["usage"]["current_usage_mb"], truth.row["details"]["current_usage_mb"]);
        }
        if truth.event_type == "sim_swapped" {
            assert_eq!(data["extra"]["brand_new_field"], json!({"deep": [1, "two", null]}));
            assert_eq!(event["type"], "globalsim.sim_swapped");
        }
    }
    assert_eq!(events.len(), 6);
    gateway.stop().await;
}

on_both_buses!(every_documented_field_of_an_event_arrives);

/// Runs an independent client until it has `count` events.
async fn external(
    program: &str,
    script: &str,
    gateway: &Gateway,
    transport: &str,
    count: usize,
) -> Vec<Value> {
    let variable = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: run tests/run, which installs the clients"))
    };
    let script = if script.ends_with(".mjs") {
        format!("{}/{script}", variable("SIMCAST_TEST_NODE_DIR"))
    } else {
        format!("{}/tests/clients/python/{script}", env!("CARGO_MANIFEST_DIR"))
    };
    let child = Command::new(variable(program))
        .arg(script)
        .args(["--transport", transport, "--count", &count.to_string()])
        .args(["--base", &format!("http://{}", gateway.http), "--grpc", &gateway.grpc.to_string()])
        .args(["--proto", concat!(env!("CARGO_MANIFEST_DIR"), "/proto")])
        .args(["--filter", r#"{"event_type":["connection","network_change"]}"#])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output =
        tokio::time::timeout(super::support::PATIENCE * 2, child).await.expect("the client hangs").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{transport}: {errors}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn python_and_node_clients_see_the_same_through_every_transport(bus: Bus) {
    let (world, gateway) = a_world_with_history_and_life(bus).await;
    let count = 300;
    let mut seen = Vec::new();
    for transport in ["ws", "sse", "grpc", "rest"] {
        let (python, node) = tokio::join!(
            external("SIMCAST_TEST_PYTHON", "follow.py", &gateway, transport, count),
            external("SIMCAST_TEST_NODE", "follow.mjs", &gateway, transport, count),
        );
        seen.push((format!("python {transport}"), python));
        seen.push((format!("node {transport}"), node));
    }
    let events = stored(gateway.http).await;
    let expected = matching(&events, &["connection", "network_change"]);
    let iccids: BTreeSet<_> = world.sim.truth().into_iter().map(|event| event.iccid).collect();
    for (name, events) in seen {
        assert_eq!(events.len(), count, "{name}");
        assert_eq!(events.iter().map(Seen::of).collect::<Vec<_>>(), expected[..count], "{name}");
        assert!(events.iter().all(|event| iccids.contains(event["iccid"].as_str().unwrap())), "{name}");
        assert!(
            events.iter().all(|event| event["type"].as_str().unwrap().starts_with("globalsim.")),
            "{name}"
        );
    }
    gateway.stop().await;
}

on_both_buses!(python_and_node_clients_see_the_same_through_every_transport);

async fn a_cursor_of_one_transport_resumes_in_every_other(bus: Bus) {
    let (world, gateway) = a_world_with_history_and_life(bus).await;
    let all = clients::websocket(gateway.http, "from=earliest", 300).await;
    world.sim.pause();
    let cut = all[120].cursor.clone();
    let expected = &all[121..300];
    let after = format!("after={cut}");
    let http: SocketAddr = gateway.http;
    let start = Some(Start::After(cut.clone()));
    let (ws, sse, grpc, rest) = tokio::join!(
        clients::websocket(http, &after, 179),
        clients::sse(http, &after, 179),
        clients::grpc(gateway.grpc, proto::Filter::default(), start, 179),
        clients::rest(http, "", Some(&cut), 179),
    );
    for seen in [ws, sse, grpc, rest] {
        assert_eq!(&seen[..179], expected);
    }
    gateway.stop().await;
}

on_both_buses!(a_cursor_of_one_transport_resumes_in_every_other);
