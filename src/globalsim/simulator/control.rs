//! `/_sim`: the handle over HTTP, for tests that run the simulator as a process of its own. Outside
//! authentication, limit and faults; counted apart.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::query::{Refusal, detail};
use super::{EventSpec, Faults, Handle, RequestRecord, Shared, SimInfo, Stats, TruthEvent, TruthPage};

/// Truth events in one answer.
const TRUTH_LIMIT_MAX: usize = 10_000;
const TRUTH_LIMIT_DEFAULT: usize = 1_000;
/// Events in one burst.
const BURST_MAX: usize = 100_000;

#[derive(Debug, Deserialize)]
struct TruthQuery {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Burst {
    count: usize,
}

#[derive(Debug, Deserialize)]
struct Rate {
    events_per_second: f64,
}

#[derive(Debug, Deserialize)]
struct Keys {
    keys: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Remove {
    #[serde(default)]
    oldest: usize,
    #[serde(default)]
    random: usize,
}

#[derive(Debug, Deserialize)]
struct Relink {
    device_id: String,
    iccid: String,
}

/// The control endpoints.
pub(super) fn router(shared: &Arc<Shared>) -> Router {
    let handle = Handle { shared: shared.clone() };
    Router::new()
        .route("/stats", get(stats))
        .route("/truth", get(truth))
        .route("/fleet", get(fleet))
        .route("/requests", get(requests))
        .route("/faults", get(faults).post(set_faults))
        .route("/inject", post(inject))
        .route("/burst", post(burst))
        .route("/rate", post(set_rate))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/keys", post(set_keys))
        .route("/relink", post(relink))
        .route("/remove", post(remove))
        .layer(axum::middleware::from_fn_with_state(handle.clone(), count))
        .with_state(handle)
}

async fn count(State(handle): State<Handle>, request: Request, next: Next) -> Response {
    handle.shared.meter.lock().control();
    next.run(request).await
}

async fn stats(State(handle): State<Handle>) -> Json<Stats> {
    Json(handle.stats())
}

async fn truth(State(handle): State<Handle>, Query(query): Query<TruthQuery>) -> Json<TruthPage> {
    let limit = query.limit.unwrap_or(TRUTH_LIMIT_DEFAULT).min(TRUTH_LIMIT_MAX);
    Json(handle.truth_after(query.after, limit))
}

async fn fleet(State(handle): State<Handle>) -> Json<Vec<SimInfo>> {
    Json(handle.fleet())
}

async fn requests(State(handle): State<Handle>) -> Json<Vec<RequestRecord>> {
    Json(handle.requests())
}

async fn faults(State(handle): State<Handle>) -> Json<Faults> {
    Json(handle.faults())
}

async fn set_faults(State(handle): State<Handle>, Json(faults): Json<Faults>) -> Response {
    match faults.validate() {
        Ok(()) => {
            handle.set_faults(faults);
            Json(handle.faults()).into_response()
        }
        Err(error) => detail(StatusCode::UNPROCESSABLE_ENTITY, &json!(error.to_string())),
    }
}

async fn inject(State(handle): State<Handle>, Json(spec): Json<EventSpec>) -> Json<TruthEvent> {
    Json(handle.inject(spec))
}

async fn burst(State(handle): State<Handle>, Json(burst): Json<Burst>) -> Json<Value> {
    let injected = handle.inject_burst(burst.count.min(BURST_MAX)).len();
    Json(json!({"injected": injected}))
}

async fn set_rate(State(handle): State<Handle>, Json(rate): Json<Rate>) -> StatusCode {
    handle.set_rate(rate.events_per_second);
    StatusCode::NO_CONTENT
}

async fn pause(State(handle): State<Handle>) -> StatusCode {
    handle.pause();
    StatusCode::NO_CONTENT
}

async fn resume(State(handle): State<Handle>) -> StatusCode {
    handle.resume();
    StatusCode::NO_CONTENT
}

async fn set_keys(State(handle): State<Handle>, Json(keys): Json<Keys>) -> StatusCode {
    handle.set_api_keys(keys.keys);
    StatusCode::NO_CONTENT
}

async fn remove(State(handle): State<Handle>, Json(remove): Json<Remove>) -> StatusCode {
    handle.remove_oldest(remove.oldest);
    handle.erase(remove.random.min(BURST_MAX));
    StatusCode::NO_CONTENT
}

async fn relink(State(handle): State<Handle>, Json(relink): Json<Relink>) -> Response {
    match handle.relink(&relink.device_id, &relink.iccid) {
        true => StatusCode::NO_CONTENT.into_response(),
        false => Refusal::NotFound("SIM").into_response(),
    }
}
