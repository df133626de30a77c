//! The receiver in Rust of `docs/WEBHOOKS.md`, compiled as it stands there, with the official library.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{SECRET, ask, from_the_document};
use crate::support::{PATIENCE, World, settled};

include!("../../fixtures/receiver.rs.txt");

/// What it stored. One test uses it.
static STORED: Mutex<Vec<String>> = Mutex::new(Vec::new());

async fn store(body: &Bytes) {
    let event: Value = serde_json::from_slice(body).unwrap();
    STORED.lock().unwrap().push(event["id"].as_str().unwrap().to_owned());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_in_rust_takes_what_the_gateway_signs_and_nothing_else() {
    assert_eq!(from_the_document("rust"), include_str!("../../fixtures/receiver.rs.txt"));
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let wh = Arc::new(standardwebhooks::Webhook::new(SECRET).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let router = Router::new().route("/hook", post(hook)).with_state(wh);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let settings = json!({ "url": url, "from": "earliest", "secret": SECRET, "ordering": "strict" });
    let made = ask(gateway.http, "", settings).await;
    world.sim.inject_burst(50);
    let events = settled(&world, gateway.http).await;
    let expected: Vec<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while STORED.lock().unwrap().len() < expected.len() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} of {}",
            STORED.lock().unwrap().len(),
            expected.len()
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(*STORED.lock().unwrap(), expected);
    let id = made["id"].as_str().unwrap();
    ask(gateway.http, &format!("/{id}/rotate-secret"), json!({ "overlap_s": 0 })).await;
    let refused = ask(gateway.http, &format!("/{id}/test"), json!({})).await;
    assert_eq!(
        (&refused["delivered"], &refused["attempt"]["status"]),
        (&json!(false), &json!(401)),
        "{refused}"
    );
    gateway.stop().await;
}
