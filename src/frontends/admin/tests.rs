//! Health, readiness and metrics, without sockets.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::{
    frontends::tests_support::{Fixture, ICCIDS, Sample, get, send},
    ingest::Status,
};

fn admin(fixture: &Fixture) -> Router {
    router(fixture.context.clone(), Metrics::install().unwrap())
}

#[tokio::test]
async fn a_stale_upstream_degrades_but_serves() {
    let fixture = Fixture::new(vec![]);
    let router = admin(&fixture);
    let answer = get(&router, "/readyz").await;
    assert_eq!((answer.status.as_u16(), answer.json()["degraded"].clone()), (200, json!([])));
    let stale = Status { message: Some("upstream answered 500".into()), ..Status::default() };
    fixture.upstream.send_replace(Arc::new(stale));
    let answer = get(&router, "/readyz").await;
    assert_eq!(answer.status.as_u16(), 200);
    let expected = json!([{"part": "upstream", "state": "stale", "message": "upstream answered 500"}]);
    assert_eq!(answer.json()["degraded"], expected);
}

#[tokio::test]
async fn draining_and_a_closed_bus_take_traffic_away_but_not_the_process() {
    let fixture = Fixture::new(vec![]);
    let router = admin(&fixture);
    fixture.context.bus.shutdown().await;
    let answer = get(&router, "/readyz").await;
    assert_eq!(answer.status.as_u16(), 503);
    assert_eq!(answer.json()["reasons"].as_array().unwrap().len(), 1, "{}", answer.text);
    fixture.context.draining.cancel();
    let answer = get(&router, "/readyz").await;
    assert_eq!(answer.json()["reasons"][0], "draining");
    assert_eq!(get(&router, "/healthz").await.status.as_u16(), 200);
}

#[tokio::test]
async fn metrics_show_the_state_at_the_time_of_asking() {
    let fixture = Fixture::new(vec![]);
    fixture.append(&[Sample::new("evt_1", "connection", ICCIDS[0], 1)]);
    let guard = fixture.context.registry.connect(Kind::Sse, "a", None).unwrap();
    let answer = get(&admin(&fixture), "/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    for line in
        ["simcast_connections{kind=\"sse\"}", "simcast_log_events", "simcast_upstream_state{state=\"ok\"}"]
    {
        assert!(answer.text.contains(line), "{line} is missing in {}", answer.text);
    }
    drop(guard);
}

#[tokio::test]
async fn quarantined_rows_are_shown_without_numbers() {
    let fixture = Fixture::new(vec![]);
    let mut status = Status::default();
    status.quarantine.add(jiff::Timestamp::UNIX_EPOCH, "row", "iccid is odd", r#"{"msisdn":"+4791234567"}"#);
    fixture.upstream.send_replace(Arc::new(status));
    let shown = get(&admin(&fixture), "/quarantine").await.json();
    assert_eq!(shown["rows"][0]["reason"], "iccid is odd");
    assert_eq!(shown["rows"][0]["raw"], r#"{"msisdn":"+******4567"}"#);
}

#[tokio::test]
async fn nothing_else_is_served() {
    let router = admin(&Fixture::new(vec![]));
    assert_eq!(get(&router, "/v1/events").await.error().0, 404);
    assert_eq!(send(&router, "POST", "/readyz", &[]).await.error().0, 405);
}
