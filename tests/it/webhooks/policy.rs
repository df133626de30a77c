//! An endpoint made by a token with a filter and a field policy: what it may not see leaves the gateway on no way, first
//! sent, tried again or replayed, and is in nothing that tells of it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use serde_json::{Value, json};
use simcast::{auth::hash_token, globalsim::simulator::Config};
use tokio::net::TcpListener;

use crate::support::{Bus, PATIENCE, World, http, on_both_buses};

/// Headers and body of each request, as text.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(HeaderMap, String)>>>, Arc<AtomicBool>);

/// Refuses each third event until it is well.
async fn receiver() -> (String, Seen) {
    let seen = Seen::default();
    let take = |State(Seen(seen, is_well)): State<Seen>, headers: HeaderMap, body: String| async move {
        let id = headers["webhook-id"].to_str().unwrap();
        let refused = !is_well.load(Ordering::Relaxed) && id.bytes().map(u32::from).sum::<u32>() % 3 == 0;
        seen.lock().unwrap().push((headers, body));
        if refused { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::NO_CONTENT }
    };
    let router = Router::new().route("/hook", post(take)).with_state(seen.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, seen)
}

/// Asks as a token; text of the answer.
async fn ask(gateway: SocketAddr, token: &str, path: &str, body: Option<Value>) -> String {
    let url = format!("http://{gateway}{path}");
    let request = match body {
        None => http().get(url),
        Some(body) => http().post(url).header("content-type", "application/json").body(body.to_string()),
    };
    let answer = request.bearer_auth(token).send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{path}: {status}: {text}");
    text
}

async fn json_of(gateway: SocketAddr, token: &str, path: &str) -> Value {
    serde_json::from_str(&ask(gateway, token, path, None).await).unwrap()
}

async fn a_token_s_fields_and_filter_hold_for_its_webhooks(bus: Bus) {
    const MASKED: &str = "sct_masked";
    let config = Config { sims: 20, events_per_second: 20.0, history: Duration::ZERO, ..Config::default() };
    let world = World::on(bus, config).await;
    let hash: String = hash_token(MASKED).iter().map(|byte| format!("{byte:02x}")).collect();
    let tokens = format!(
        "[{{ name = \"masked\", sha256 = \"{hash}\", roles = [\"read\", \"webhooks\"], \
         filter = {{ event_type = [\"connection\", \"data_usage_update\"] }}, \
         fields = {{ iccid = \"pseudonym\", msisdn = \"drop\", ip_address = \"drop\" }} }}]"
    );
    let pseudonyms = "p".repeat(32);
    let more =
        [("SIMCAST__AUTH__TOKENS", tokens.as_str()), ("SIMCAST__AUTH__PSEUDONYM_KEY", pseudonyms.as_str())];
    let gateway = world.gateway_with(&more).await;
    let at = gateway.http;
    let (url, seen) = receiver().await;
    let settings = json!({ "url": url, "from": "earliest", "retry_schedule": [0, 0] });
    let made: Value = serde_json::from_str(&ask(at, MASKED, "/v1/webhooks", Some(settings)).await).unwrap();
    let id = made["id"].as_str().unwrap().to_owned();
    let path = |rest: &str| format!("/v1/webhooks/{id}{rest}");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while seen.0.lock().unwrap().len() < 150 {
        assert!(tokio::time::Instant::now() < deadline, "{} arrived", seen.0.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.sim.pause();
    let stats = async || json_of(at, MASKED, &path("/stats")).await;
    loop {
        let stats = stats().await;
        if stats["pending"] == 0 && stats["behind"] == 0 && stats["dead_lettered"] != 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{stats}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What tells of it.
    let mut told = vec![
        ask(at, MASKED, &path("/deliveries"), None).await,
        ask(at, MASKED, &path("/deliveries?status=dead_lettered"), None).await,
        ask(at, MASKED, &path(""), None).await,
    ];
    let dead = json_of(at, MASKED, &path("/deliveries?status=dead_lettered")).await;
    let dead = dead["deliveries"].as_array().unwrap().clone();
    assert!(dead.len() > 5, "{dead:?}");
    told.push(
        ask(at, MASKED, &path(&format!("/deliveries/{}", dead[0]["id"].as_str().unwrap())), None).await,
    );
    let event_id = dead[0]["event_id"].as_str().unwrap();
    let trace = ask(at, MASKED, &format!("/v1/events/{event_id}/trace"), None).await;
    assert!(
        serde_json::from_str::<Value>(&trace).unwrap()["webhooks"].as_array().unwrap().len() >= 2,
        "{trace}"
    );
    told.push(trace);
    // Sent again: what was given up, one alone, and everything.
    seen.1.store(true, Ordering::Relaxed);
    for wanted in [json!({ "only": "failed" }), json!({})] {
        let begun = ask(at, MASKED, &path("/replay"), Some(wanted)).await;
        let replay: Value = serde_json::from_str(&begun).unwrap();
        let replay = path(&format!("/replays/{}", replay["replay_id"].as_str().unwrap()));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let shown = json_of(at, MASKED, &replay).await;
            if shown["state"] == "done" {
                told.push(shown.to_string());
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{shown}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let again = path(&format!("/deliveries/{}/retry", dead[0]["id"].as_str().unwrap()));
    told.push(ask(at, MASKED, &again, Some(json!({}))).await);
    let retried = || {
        let seen = seen.0.lock().unwrap();
        let of_it = |headers: &HeaderMap| headers["webhook-id"].to_str().unwrap() == event_id;
        seen.iter().filter(|(headers, _)| headers.contains_key("webhook-replay") && of_it(headers)).count()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while retried() < 3 {
        assert!(tokio::time::Instant::now() < deadline, "{} of 3", retried());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seen = seen.0.lock().unwrap().clone();
    let replayed = seen.iter().filter(|(headers, _)| headers.contains_key("webhook-replay")).count();
    assert!(replayed >= dead.len() * 2, "{replayed} replayed, {} were given up", dead.len());
    let mut pseudonyms = BTreeSet::new();
    for (_, body) in &seen {
        let event: Value = serde_json::from_str(body).unwrap();
        let data = &event["data"];
        let kind = data["event_type"].as_str().unwrap();
        assert!(["connection", "data_usage_update"].contains(&kind), "{body}");
        let iccid = data["iccid"].as_str().unwrap();
        assert!(iccid.starts_with("p_") && data["msisdn"].is_null(), "{body}");
        pseudonyms.insert(iccid.to_owned());
    }
    assert!(pseudonyms.len() > 5, "SIMs are told apart still: {pseudonyms:?}");
    let texts = seen.iter().map(|(headers, body)| format!("{headers:?}{body}")).chain(told);
    let fleet = world.sim.fleet();
    for text in texts {
        let shown = fleet.iter().find(|sim| text.contains(&sim.iccid) || text.contains(&sim.msisdn));
        assert!(shown.is_none(), "{shown:?} in {text}");
    }
    gateway.stop().await;
}

on_both_buses!(a_token_s_fields_and_filter_hold_for_its_webhooks);
