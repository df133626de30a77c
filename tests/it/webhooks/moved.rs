//! Webhooks over `simcast migrate`: each goes on where it stood, under the same id and secret.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{SECRET, ask};
use crate::{
    nats_server::{NEWEST, Server},
    support::{ChildGateway, PATIENCE, World, get, run, settled},
};

/// Ids in the order in which they came, of requests that the secret signs.
type Signed = Arc<Mutex<Vec<String>>>;

/// A receiver with the official library; it refuses what is not signed.
async fn receiver() -> (String, Signed) {
    let signed = Signed::default();
    let take = |State(signed): State<Signed>, headers: HeaderMap, body: Bytes| async move {
        let wh = standardwebhooks::Webhook::new(SECRET).unwrap();
        if wh.verify(&body, &headers).is_err() {
            return StatusCode::UNAUTHORIZED;
        }
        signed.lock().unwrap().push(headers["webhook-id"].to_str().unwrap().to_owned());
        StatusCode::NO_CONTENT
    };
    let router = Router::new().route("/hook", post(take)).with_state(signed.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, signed)
}

async fn until(signed: &Signed, count: usize) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while signed.lock().unwrap().len() < count {
        assert!(tokio::time::Instant::now() < deadline, "{} of {count}", signed.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_go_on_after_a_migration_with_their_positions_and_secrets() {
    let mut world = World::quiet().await;
    let data = world.dir.path().join("data");
    // The key is the one that the gateway makes in its directory.
    let without_key = |mut env: Vec<(String, String)>| {
        env.retain(|(name, _)| name != "SIMCAST__WEBHOOKS__SECRET_KEY");
        env
    };
    let gateway = ChildGateway::start(&without_key(world.settings()));
    let (steady_url, steady) = receiver().await;
    let (paused_url, paused) = receiver().await;
    let settings =
        |url: &str| json!({ "url": url, "from": "earliest", "secret": SECRET, "ordering": "strict" });
    let made = ask(gateway.http, "", settings(&steady_url)).await;
    let steady_id = made["id"].as_str().unwrap().to_owned();
    let made = ask(gateway.http, "", settings(&paused_url)).await;
    let paused_id = made["id"].as_str().unwrap().to_owned();
    world.sim.inject_burst(40);
    let first = settled(&world, gateway.http).await.len();
    until(&paused, first).await;
    ask(gateway.http, &format!("/{paused_id}/pause"), json!({})).await;
    world.sim.inject_burst(40);
    let second = settled(&world, gateway.http).await.len();
    until(&steady, second).await;
    assert_eq!(gateway.terminate(), Some(0));

    world.nats = Some(Server::start(NEWEST).await);
    let mut env = without_key(world.settings_of("mirror"));
    env.push(("SIMCAST__BUS__EMBEDDED__PATH".to_owned(), data.to_string_lossy().into_owned()));
    let key = data.join("webhooks.key").to_string_lossy().into_owned();
    env.push(("SIMCAST__WEBHOOKS__SECRET_KEY_FILE".to_owned(), key));
    let dir = tempfile::tempdir().unwrap();
    let borrowed: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let (code, told, said) = run(&["migrate", "--to", "nats"], &borrowed, dir.path());
    assert_eq!(code, Some(0), "{told}{said}");

    let gateway = ChildGateway::start(&env);
    let began = Instant::now();
    while get(gateway.http, "/v1/events?limit=1").await.0 != 200 {
        assert!(began.elapsed() < PATIENCE, "the copy is never filled");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let shown = get(gateway.http, "/v1/webhooks").await.1;
    let ids: BTreeSet<&str> =
        shown["webhooks"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids, BTreeSet::from([steady_id.as_str(), paused_id.as_str()]), "{shown}");
    world.sim.inject_burst(40);
    let events = settled(&world, gateway.http).await;
    let expected: Vec<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    until(&steady, expected.len()).await;
    assert_eq!(paused.lock().unwrap().len(), first, "it is paused still");
    ask(gateway.http, &format!("/{paused_id}/resume"), json!({})).await;
    until(&paused, expected.len()).await;
    for signed in [&steady, &paused] {
        assert_eq!(*signed.lock().unwrap(), expected, "a hole or a repeat");
    }
    let stats: Value = get(gateway.http, &format!("/v1/webhooks/{steady_id}/stats")).await.1;
    assert_eq!(stats["delivered"], json!(expected.len()), "counts go on: {stats}");
    assert_eq!(gateway.terminate(), Some(0));
}
