//! The schemas of the documented paths of the API.

use serde_json::{Value, json};

use super::{described, nullable, nullable_time, object, text, time};

/// A list as upstream has it, and where it is from.
fn answer(fields: &[(&str, Value)], more: &[(&str, Value)]) -> Value {
    let mut always = fields.to_vec();
    always.extend([
        ("as_of", described(time(), "When this was so.")),
        ("age_seconds", json!({"type": "number"})),
        ("source", json!({"type": "string", "enum": ["upstream", "cache", "log"]})),
    ]);
    let mut sometimes = more.to_vec();
    sometimes.push((
        "truncated",
        described(
            json!({"type": "boolean"}),
            "More is kept than was looked through; `total` counts what was.",
        ),
    ));
    object(&always, &sometimes)
}

fn network() -> Value {
    json!({"type": "object", "additionalProperties": {"type": "string"}})
}

/// A page of activity.
pub(super) fn activity() -> Value {
    let mut row = object(
        &[("event_id", nullable("string")), ("event_type", text()), ("timestamp", nullable("string"))],
        &[
            ("iccid", nullable("string")),
            ("msisdn", nullable("string")),
            ("device_id", nullable("string")),
            ("network", network()),
            ("previous_network", network()),
            ("current_network", network()),
            ("details", json!({})),
        ],
    );
    // What upstream adds tomorrow is passed on.
    row["additionalProperties"] = true.into();
    answer(
        &[("activity", json!({"type": "array", "items": row})), ("total", nullable("integer"))],
        &[
            ("iccid", nullable("string")),
            ("limit", json!({"type": "integer"})),
            ("offset", json!({"type": "integer"})),
        ],
    )
}

/// A page of sessions.
pub(super) fn sessions() -> Value {
    let amount = nullable("number");
    let usage = object(
        &[("upload_mb", amount.clone()), ("download_mb", amount.clone()), ("total_mb", amount.clone())],
        &[],
    );
    let mut row = object(
        &[
            ("session_id", nullable("string")),
            ("start_time", nullable_time()),
            ("end_time", described(nullable_time(), "Null while it is open.")),
            ("duration_seconds", nullable("integer")),
            ("network", json!({"type": ["object", "null"]})),
            ("data_usage", usage),
            ("ip_address", nullable("string")),
        ],
        &[],
    );
    row["additionalProperties"] = true.into();
    let summary = described(json!({"type": ["object", "null"]}), "As upstream gives it, or counted alike.");
    answer(
        &[
            ("iccid", nullable("string")),
            ("sessions", json!({"type": "array", "items": row})),
            ("total", nullable("integer")),
            ("summary", summary),
        ],
        &[],
    )
}

/// A device and its SIM.
pub(super) fn device_sim() -> Value {
    let mut out = answer(
        &[
            ("device_id", text()),
            ("device_name", nullable("string")),
            ("sim", json!({"type": ["object", "null"]})),
        ],
        &[],
    );
    out["additionalProperties"] = true.into();
    out
}
