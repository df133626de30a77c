//! A SIM is erased from a whole gateway while it works: afterwards no file of it holds the ICCID, and nothing else has
//! changed for anybody.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, http::StatusCode, routing::post};
use serde_json::{Value, json};
use simcast::globalsim::simulator::Config;
use tokio::net::TcpListener;

use super::{
    clients::{Seen, Socket},
    support::{Bus, Gateway, PATIENCE, World, get, http, on_both_buses, run, stored},
};

/// A receiver that answers with what it was sent, so that the attempts hold it twice.
async fn receiver(status: StatusCode) -> String {
    let echo = move |body: Bytes| async move { (status, body) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(
        async move { axum::serve(listener, Router::new().route("/hook", post(echo))).await.unwrap() },
    );
    url
}

async fn create(gateway: &Gateway, url: &str) {
    let body = json!({ "url": url, "from": "earliest", "filter": {}, "retry_schedule": [0, 1, 1] });
    let request = http().post(format!("http://{}/v1/webhooks", gateway.http)).body(body.to_string());
    let answer = request.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(answer.status(), 201);
}

/// Files under a directory whose bytes hold a text.
fn files_with(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if memchr::memmem::find(&std::fs::read(&path).unwrap(), text.as_bytes()).is_some() {
            found.push(path);
        }
    }
    found
}

/// Runs the command; gives its answer.
async fn erase(world: &World, gateway: &Gateway, iccid: &str) -> Value {
    let (server, iccid, dir) =
        (format!("http://{}", gateway.http), iccid.to_owned(), world.dir.path().to_owned());
    let args = move || run(&["erase", "--iccid", &iccid, "--server", &server, "--json"], &[], &dir);
    let (code, out, errors) = tokio::task::spawn_blocking(args).await.unwrap();
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{out}");
    serde_json::from_str(&out).unwrap()
}

/// The state of the last closed day, once it is no longer being looked at.
async fn yesterday(gateway: &Gateway) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE * 2;
    loop {
        let (_, shown) = get(gateway.http, "/v1/stream").await;
        let days = shown["upstream"]["completeness"].as_object().cloned().unwrap_or_default();
        let now = simcast::clock::system().now().to_string();
        let closed = days.iter().rfind(|(day, _)| day.as_str() < &now[..10]);
        match closed.map(|(_, state)| state.as_str().unwrap().to_owned()) {
            Some(state) if state != "pending" => return state,
            _ => assert!(tokio::time::Instant::now() < deadline, "{shown}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn is_of(event: &Value, iccid: &str) -> bool {
    event["subject"] == iccid
}

async fn an_erased_sim_is_in_no_file_and_nobody_else_notices(bus: Bus) {
    let world = World::on(
        bus,
        Config {
            sims: 20,
            events_per_second: 20.0,
            history: Duration::from_secs(2 * 86_400),
            history_events_per_second: 0.003,
            ..Config::default()
        },
    )
    .await;
    let settings = [("SIMCAST__UPSTREAM__BACKFILL_DAYS", "2")];
    let gateway = world.gateway_with(&settings).await;
    for status in [StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR] {
        create(&gateway, &receiver(status).await).await;
    }
    let mut socket = Socket::open(gateway.http, "from=earliest").await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
    let reader = {
        let seen = seen.clone();
        tokio::spawn(async move {
            // A gap, an error or a hole in the ordinals is a panic.
            while let Some(events) = socket.events().await {
                seen.lock().unwrap().extend(events);
            }
        })
    };
    // All of the past has come in, and its last closed day is counted.
    while stored(gateway.http).await.len() < 500 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(yesterday(&gateway).await, "verified");
    let gone = world.sim.fleet()[3].iccid.clone();
    let before = stored(gateway.http).await;
    assert!(before.iter().filter(|event| is_of(event, &gone)).count() > 10);
    assert!(!files_with(world.dir.path(), &gone).is_empty());

    // While events come in, and the SIM is one of those that they come from.
    let answer = erase(&world, &gateway, &gone).await;
    assert!(answer["removed"]["events"].as_u64().unwrap() > 10, "{answer}");
    assert!(answer["removed"]["webhook_attempts"].as_u64().unwrap() > 5, "{answer}");
    let kept: BTreeSet<_> = before.iter().map(|event| event["cursor"].as_str().unwrap().to_owned()).collect();
    let after = stored(gateway.http).await;
    assert!(
        !after.iter().any(|event| is_of(event, &gone) && kept.contains(event["cursor"].as_str().unwrap()))
    );
    // New events of it come in as before, and are erased in turn once nothing more comes.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !stored(gateway.http).await.iter().any(|event| is_of(event, &gone)) {
        assert!(tokio::time::Instant::now() < deadline, "an active SIM goes on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.sim.pause();
    // What upstream shows last is in the log, and so are the copies that follow with details.
    let shown = world.sim.truth().len();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.sim.truth().len(), shown);
    // The attempts at what came last may be written down while the first erasure runs.
    erase(&world, &gateway, &gone).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let answer = erase(&world, &gateway, &gone).await;
    assert_eq!(answer["removed"]["events"], 0, "{answer}");

    let others: Vec<Value> = stored(gateway.http)
        .await
        .into_iter()
        .filter(|event| event["type"].as_str().unwrap().starts_with("globalsim."))
        .collect();
    let wanted: BTreeSet<_> =
        before.iter().filter(|event| !is_of(event, &gone)).map(|event| event["cursor"].to_string()).collect();
    let have: BTreeSet<_> = others.iter().map(|event| event["cursor"].to_string()).collect();
    assert!(wanted.is_subset(&have) && !others.iter().any(|event| is_of(event, &gone)));
    gateway.stop().await;
    reader.await.unwrap();
    // Everybody else's events reached the subscriber, in order, each once.
    let given = seen.lock().unwrap().clone();
    let cursors: BTreeSet<_> = given.iter().map(|seen| seen.cursor.as_str()).collect();
    assert_eq!(cursors.len(), given.len());
    assert!(others.iter().all(|event| cursors.contains(event["cursor"].as_str().unwrap())));
    assert_eq!(files_with(world.dir.path(), &gone), Vec::<PathBuf>::new());
    if let Some(server) = &world.nats {
        let names: Vec<_> = files_with(&server.store(), &gone)
            .iter()
            .map(|path| path.strip_prefix(server.store()).unwrap().to_string_lossy().into_owned())
            .collect();
        eprintln!("files of the server that still hold it: {names:?}");
    }

    // Upstream shows all of it still; a gateway that starts anew does not take it up again.
    let gateway = world.gateway_with(&settings).await;
    assert_eq!(yesterday(&gateway).await, "verified");
    let requests = world.sim.stats().requests;
    while world.sim.stats().requests < requests + 30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let again: Vec<_> = stored(gateway.http)
        .await
        .into_iter()
        .filter(|event| event["type"].as_str().unwrap().starts_with("globalsim."))
        .collect();
    assert_eq!(again, others);
    // Cursors of erased events are positions as ever.
    for event in before.iter().filter(|event| is_of(event, &gone)).take(20) {
        let (cursor, id) = (event["cursor"].as_str().unwrap(), event["id"].as_str().unwrap());
        let (status, page) = get(gateway.http, &format!("/v1/events?limit=1&after={cursor}")).await;
        assert_eq!((status, page["gap"].is_null()), (200, true), "{page}");
        assert_eq!(get(gateway.http, &format!("/v1/events/{id}/trace")).await.0, 404);
    }
    let (_, shown) = get(gateway.http, "/v1/stream").await;
    assert!(!shown["upstream"]["completeness"].to_string().contains("gap"), "{shown}");
    gateway.stop().await;
    assert_eq!(files_with(world.dir.path(), &gone), Vec::<PathBuf>::new());
}

on_both_buses!(an_erased_sim_is_in_no_file_and_nobody_else_notices);
