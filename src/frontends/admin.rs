//! The admin listener: is it alive, should traffic go here, and what does it count. No personal data, nothing that
//! changes state, hence no tokens; by default it listens on loopback only.

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use super::{
    Context,
    http::{body, unknown_method, unknown_path},
    registry::Kind,
};
use crate::{
    ingest::UpstreamState,
    observability::{Degraded, Metrics, Readiness},
};

#[derive(Debug, Clone)]
struct Admin {
    context: Context,
    metrics: Metrics,
}

/// The admin listener's router: `/healthz`, `/readyz`, `/metrics`, `/quarantine`.
pub fn router(context: Context, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(prometheus))
        .route("/quarantine", get(quarantine))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(Admin { context, metrics })
}

async fn healthz() -> Response {
    body::json(StatusCode::OK, &json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let readiness = readiness(&admin.context);
    let shown = json!({
        "ready": readiness.ready,
        "reasons": readiness.reasons,
        "degraded": readiness.degraded,
    });
    body::json(readiness.status(), &shown)
}

/// The answer of `/readyz`. A stale upstream is no reason to take traffic away: every other gateway sees the same
/// one, and readers can be served from the log.
pub fn readiness(context: &Context) -> Readiness {
    let status = context.status.borrow().clone();
    let mut degraded = Vec::new();
    if status.state != UpstreamState::Ok {
        let message = match (&status.message, status.seen_until) {
            (Some(message), _) => message.clone(),
            (None, Some(seen)) => format!("upstream has been read up to {seen}"),
            (None, None) => "upstream has not been read yet".to_owned(),
        };
        degraded.push(Degraded { part: "upstream", state: status.state.as_str().to_owned(), message });
    }
    let health = context.bus.health();
    if let Some(message) = health.warning.clone() {
        degraded.push(Degraded { part: "bus", state: "weak_durability".to_owned(), message });
    }
    Readiness::judge(&health, context.draining.is_cancelled(), degraded)
}

/// What upstream sent and the log can't hold; numbers of SIMs and subscribers show their last digits only.
async fn quarantine(State(admin): State<Admin>) -> Response {
    let rows = admin.context.status.borrow().quarantine.to_json();
    body::json(StatusCode::OK, &rows)
}

async fn prometheus(State(admin): State<Admin>) -> Response {
    gauge(&admin.context);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], admin.metrics.render()).into_response()
}

/// Sets the gauges that are read off state rather than counted as things happen.
fn gauge(context: &Context) {
    let bounds = context.hub.log().bounds();
    let status = context.status.borrow().clone();
    let ready = readiness(context).ready;
    metrics::gauge!("simcast_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::gauge!("simcast_ready").set(f64::from(u8::from(ready)));
    metrics::gauge!("simcast_log_events").set(bounds.events as f64);
    metrics::gauge!("simcast_log_last_sequence").set(bounds.last_seq as f64);
    for kind in Kind::ALL {
        let open = context.registry.connections_of(kind) as f64;
        metrics::gauge!("simcast_connections", "kind" => kind.as_str()).set(open);
    }
    for state in UpstreamState::ALL {
        let is = f64::from(u8::from(state == status.state));
        metrics::gauge!("simcast_upstream_state", "state" => state.as_str()).set(is);
    }
    if let Some(seen) = status.seen_until {
        let lag = context.clock.now().duration_since(seen).as_secs_f64().max(0.0);
        metrics::gauge!("simcast_upstream_lag_seconds").set(lag);
    }
}

#[cfg(test)]
mod tests;
