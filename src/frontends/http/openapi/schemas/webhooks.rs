//! The schemas of `/v1/webhooks`.

use serde_json::{Value, json};

use super::{described, list_of, nullable, nullable_time, object, one_of_null, reference, text, time};

fn integer() -> Value {
    json!({"type": "integer"})
}

fn status() -> Value {
    let words = ["active", "paused", "disabled", "failing", "suspended"];
    described(
        json!({"type": "string", "enum": words}),
        "`failing`: only probes are sent. `suspended`: the token that made it is no longer valid, or its receiver no longer allowed.",
    )
}

/// An endpoint, with fields that are only there in some answers.
pub(super) fn endpoint(more: &[(&str, Value)]) -> Value {
    let batch = object(&[("max_events", integer()), ("max_wait_ms", integer())], &[]);
    let mut always = vec![
        ("id", text()),
        ("url", text()),
        ("description", text()),
        ("filter", json!({"type": "object"})),
        ("headers", json!({"type": "object"})),
        ("ordering", json!({"type": "string", "enum": ["none", "per_sim", "strict"]})),
        ("max_in_flight", integer()),
        ("rate_limit_per_second", nullable("integer")),
        ("batch", one_of_null(batch)),
        ("timeout_ms", integer()),
        ("retry_schedule", json!({"type": "array", "items": {"type": "integer"}})),
        ("status", status()),
        ("reason", nullable("string")),
        ("cursor", described(text(), "Everything up to here is settled or pending.")),
        ("pending", described(integer(), "Events taken up and not settled.")),
        ("secrets", described(integer(), "Secrets that sign.")),
        ("created_at", time()),
        ("updated_at", time()),
        ("created_by", described(text(), "Name of the token that made it.")),
    ];
    always.extend(more.iter().cloned());
    object(&always, &[("warnings", json!({"type": "array", "items": {"type": "string"}}))])
}

/// The result of a test.
pub(super) fn test() -> Value {
    object(
        &[("id", text()), ("delivered", json!({"type": "boolean"})), ("attempt", reference("Attempt"))],
        &[],
    )
}

/// How an endpoint is doing.
pub(super) fn stats() -> Value {
    let latency = object(&[("p50", nullable("number")), ("p99", nullable("number"))], &[]);
    let failure = object(&[("at", time()), ("reason", text())], &[]);
    object(
        &[
            ("status", status()),
            ("failing_since", nullable_time()),
            ("lag_events", described(integer(), "`behind` and `pending`.")),
            (
                "lag_seconds",
                described(json!({"type": "number"}), "Age of the oldest event that is not settled."),
            ),
            ("behind", described(integer(), "Positions of the log not taken up, matching or not.")),
            ("pending", integer()),
            ("failed", described(integer(), "Of the pending ones, those that wait for another attempt.")),
            ("oldest_attempt_at", nullable_time()),
            ("delivered", integer()),
            ("dead_lettered", integer()),
            ("skipped", integer()),
            ("attempts", described(json!({"type": "object"}), "Attempts by outcome.")),
            ("latency_ms", described(latency, "From `observed_at` to the answer, first attempts.")),
            ("last_delivered_at", nullable_time()),
            ("last_failure", one_of_null(failure)),
            ("owner", described(text(), "The gateway that serves it.")),
        ],
        &[],
    )
}

/// A replay.
pub(super) fn replay() -> Value {
    object(
        &[
            ("replay_id", text()),
            ("state", json!({"type": "string", "enum": ["running", "done", "cancelled"]})),
            ("count", described(integer(), "Events that matched when it was asked for.")),
            ("delivered", integer()),
            ("dead_lettered", integer()),
            ("skipped", integer()),
            (
                "lost",
                described(integer(), "Log positions that were gone before they were read, matching or not."),
            ),
            ("only", json!({"type": "string", "enum": ["all", "failed"]})),
            ("filter", json!({"type": "object"})),
            ("rate_limit_per_second", nullable("integer")),
            ("created_at", time()),
            ("ended_at", nullable_time()),
        ],
        &[],
    )
}

/// A delivery.
pub(super) fn delivery() -> Value {
    let words = ["pending", "delivered", "failed", "dead_lettered", "skipped"];
    object(
        &[
            ("id", text()),
            ("event_id", nullable("string")),
            ("status", json!({"type": "string", "enum": words})),
            ("attempts", integer()),
            ("last_attempt_at", nullable_time()),
            ("next_attempt_at", nullable_time()),
            ("last_error", described(nullable("string"), "A status, or what went wrong on the way to one.")),
        ],
        &[("history", list_of("Attempt"))],
    )
}

/// An attempt.
pub(super) fn attempt() -> Value {
    let part = |what: &str| described(nullable("number"), what);
    let timings = object(
        &[
            ("dns", part("Null where the connection was there already, as the next two.")),
            ("connect", part("")),
            ("tls", part("")),
            ("first_byte", part("From the start to the head of the answer.")),
            ("total", part("")),
        ],
        &[],
    );
    let error = object(&[("kind", text()), ("message", nullable("string"))], &[]);
    object(
        &[
            ("webhook_id", text()),
            ("at", time()),
            ("attempt", described(integer(), "The how manieth, from 1.")),
            (
                "outcome",
                json!({"type": "string", "enum": ["delivered", "failed", "dead_lettered", "skipped"]}),
            ),
            ("status", nullable("integer")),
            ("error", one_of_null(error)),
            ("timings_ms", timings),
            ("remote", nullable("string")),
            ("answer", described(nullable("string"), "Its first 4 KiB.")),
            ("answer_truncated", json!({"type": "boolean"})),
            ("events", described(integer(), "Events in the request.")),
            ("replay_id", nullable("string")),
            ("next_attempt_at", nullable_time()),
        ],
        &[],
    )
}
