//! The simulator held to the API document, and each switch to its effect.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;
use crate::clock::{self, TokioClock};

mod access;
mod client;
mod content;
mod lists;
mod paging;
mod shapes;
mod story;
mod transport;

/// A clock reading of no importance.
const NOON: &str = "2025-11-05T12:00:00Z";

/// An account in which nothing happens unless a test makes it.
fn quiet() -> Config {
    Config { events_per_second: 0.0, history: Duration::ZERO, sims: 20, ..Config::default() }
}

/// As [`quiet`], with a day of history.
fn with_history() -> Config {
    Config { history: Duration::from_secs(86_400), history_events_per_second: 0.02, ..quiet() }
}

fn noon() -> Timestamp {
    NOON.parse().unwrap()
}

/// The simulator and a client of it.
struct Bench {
    sim: Handle,
    http: reqwest::Client,
}

#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

async fn bench(config: Config) -> Bench {
    bench_at(config, Arc::new(TokioClock::starting_at(noon()))).await
}

async fn bench_at(config: Config, clock: clock::SharedClock) -> Bench {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // The pool's timer would let a paused clock run while an answer is on its way.
    let http = reqwest::Client::builder().no_proxy().pool_idle_timeout(None).build().unwrap();
    Bench { sim: start(config, listener, clock), http }
}

async fn bench_with(faults: Faults) -> Bench {
    bench(Config { faults, ..with_history() }).await
}

impl Bench {
    fn request(&self, target: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{target}", self.sim.base_url())).bearer_auth(DEFAULT_API_KEY)
    }

    async fn try_get(&self, target: &str) -> Result<Reply, reqwest::Error> {
        reply(self.request(target)).await
    }

    async fn get(&self, target: &str) -> Reply {
        self.try_get(target).await.unwrap()
    }

    /// The answer's JSON; the status must be 200.
    async fn ok(&self, target: &str) -> Value {
        let reply = self.get(target).await;
        assert_eq!(reply.status, StatusCode::OK, "{target}: {}", reply.body);
        reply.body
    }

    /// The rows of one page of the account-wide list.
    async fn rows(&self, query: &str) -> Vec<Value> {
        rows_of(&self.ok(&format!("/sims/activity?{query}")).await)
    }

    /// All rows of a list, in pages of 100.
    async fn walk(&self, path: &str) -> Vec<Value> {
        let mut rows = Vec::new();
        for page in 0..100 {
            let body = self.ok(&format!("{path}?limit=100&offset={}", page * 100)).await;
            let found = rows_of(&body);
            if found.is_empty() {
                return rows;
            }
            rows.extend(found);
        }
        panic!("{path} did not end within 100 pages")
    }

    async fn control(&self, path: &str) -> Value {
        reply(self.http.get(format!("{}/_sim{path}", self.sim.origin()))).await.unwrap().body
    }

    async fn control_post(&self, path: &str, body: Value) -> Reply {
        let request = self.http.post(format!("{}/_sim{path}", self.sim.origin()));
        let request = request.header("content-type", "application/json").body(body.to_string());
        reply(request).await.unwrap()
    }

    fn struck(&self, fault: &str) -> u64 {
        self.sim.stats().faults.get(fault).copied().unwrap_or(0)
    }
}

async fn reply(request: reqwest::RequestBuilder) -> Result<Reply, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.bytes().await?;
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    Ok(Reply { status, headers, body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) })
}

fn rows_of(body: &Value) -> Vec<Value> {
    let list = body.get("activity").unwrap_or(body);
    list.as_array().unwrap_or_else(|| panic!("no list in {body}")).clone()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

fn ids(rows: &[Value]) -> Vec<String> {
    rows.iter().map(|row| row["event_id"].as_str().unwrap().to_owned()).collect()
}

fn times(rows: &[Value]) -> Vec<Timestamp> {
    rows.iter().map(|row| row["timestamp"].as_str().unwrap().parse().unwrap()).collect()
}

/// An event of a type on a SIM, so many seconds before noon.
fn spec(iccid: &str, event_type: &str, seconds_ago: i64) -> EventSpec {
    let at = Timestamp::from_second(noon().as_second() - seconds_ago).unwrap();
    EventSpec {
        iccid: Some(iccid.to_owned()),
        event_type: Some(event_type.to_owned()),
        timestamp: Some(at),
        ..EventSpec::default()
    }
}
