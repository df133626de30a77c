//! What is shown of webhooks, as JSON; described in [`openapi`](crate::frontends::http::openapi).

use serde_json::{Map, Value, json};

use crate::webhooks::{
    attempts::Attempt,
    service::{Delivery, Shown, Stats},
    store::{Progress, Replay, ReplayState},
};

/// An endpoint.
pub fn endpoint(shown: &Shown) -> Map<String, Value> {
    let endpoint = &shown.endpoint;
    let headers: Map<_, _> =
        endpoint.shown_headers().map(|(name, value)| (name, Value::from(value))).collect();
    let value = json!({
        "id": endpoint.id,
        "url": endpoint.url,
        "description": endpoint.description,
        "filter": endpoint.filter.to_json(),
        "headers": headers,
        "ordering": endpoint.ordering.as_str(),
        "max_in_flight": endpoint.max_in_flight,
        "rate_limit_per_second": endpoint.rate_limit_per_second,
        "batch": endpoint.batch,
        "timeout_ms": endpoint.timeout_ms,
        "retry_schedule": endpoint.retry_schedule,
        "status": shown.condition.as_str(),
        "reason": shown.reason,
        "cursor": shown.cursor,
        "pending": shown.pending,
        "secrets": endpoint.private.secrets.len(),
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
        "created_by": endpoint.created_by,
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// How an endpoint is doing.
pub fn stats(stats: &Stats) -> Value {
    let totals = &stats.totals;
    let milliseconds = |us: Option<u64>| us.map(|us| us as f64 / 1e3);
    json!({
        "status": stats.condition.as_str(),
        "failing_since": stats.failing_since,
        "lag_events": stats.behind + stats.pending,
        "lag_seconds": stats.lag_seconds,
        "behind": stats.behind,
        "pending": stats.pending,
        "failed": stats.waiting,
        "oldest_attempt_at": stats.oldest_attempt_at,
        "delivered": totals.delivered,
        "dead_lettered": totals.dead_lettered,
        "skipped": totals.skipped,
        "attempts": totals.attempts,
        "latency_ms": {
            "p50": milliseconds(totals.latency.quantile(0.5)),
            "p99": milliseconds(totals.latency.quantile(0.99)),
        },
        "last_delivered_at": totals.last_delivered_at,
        "last_failure": totals.last_failure.as_ref().map(|(at, how)| json!({"at": at, "reason": how})),
        "owner": stats.owner,
    })
}

/// A delivery.
pub fn delivery(delivery: &Delivery) -> Value {
    json!({
        "id": delivery.id,
        "event_id": delivery.event_id,
        "status": delivery.status.as_str(),
        "attempts": delivery.attempts,
        "last_attempt_at": delivery.last_attempt_at,
        "next_attempt_at": delivery.next_attempt_at,
        "last_error": delivery.last_error,
    })
}

/// An attempt.
pub fn attempt(attempt: &Attempt) -> Value {
    let milliseconds = |us: Option<u64>| us.map(|us| us as f64 / 1e3);
    json!({
        "webhook_id": attempt.webhook,
        "at": attempt.at,
        "attempt": attempt.attempt,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "error": attempt.error_kind.as_ref().map(|kind| json!({"kind": kind, "message": attempt.error})),
        "timings_ms": {
            "dns": milliseconds(attempt.dns_us),
            "connect": milliseconds(attempt.connect_us),
            "tls": milliseconds(attempt.tls_us),
            "first_byte": milliseconds(attempt.first_byte_us),
            "total": milliseconds(Some(attempt.total_us)),
        },
        "remote": attempt.remote,
        "answer": attempt.answer,
        "answer_truncated": attempt.answer_truncated,
        "events": attempt.members,
        "replay_id": attempt.replay,
        "next_attempt_at": attempt.next_attempt_at,
    })
}

/// A replay.
pub fn replay(replay: &Replay) -> Value {
    let state = match replay.state {
        ReplayState::Running => "running",
        ReplayState::Done => "done",
        ReplayState::Cancelled => "cancelled",
    };
    let Progress { delivered, dead_lettered, skipped, lost } = replay.progress;
    json!({
        "replay_id": replay.id,
        "state": state,
        "count": replay.count,
        "delivered": delivered,
        "dead_lettered": dead_lettered,
        "skipped": skipped,
        "lost": lost,
        "only": replay.only,
        "filter": replay.filter,
        "rate_limit_per_second": replay.rate_limit_per_second,
        "created_at": replay.created_at,
        "ended_at": replay.ended_at,
    })
}
