//! The schemas of `/v1/sims`.

use serde_json::{Value, json};

use super::{
    cursor, described, list_of, nullable, nullable_time, object, one_of_null, reference, text, time,
};

/// A SIM, with what stands beside its fields where it is alone.
pub(super) fn sim(beside: &[(&str, Value)]) -> Value {
    let last_event = object(&[("id", text()), ("type", text()), ("time", time()), ("cursor", cursor())], &[]);
    let session = object(
        &[
            ("session_id", text()),
            ("started_at", time()),
            ("updated_at", described(time(), "When the amounts were so.")),
            ("upload_mb", nullable("number")),
            ("download_mb", nullable("number")),
            ("total_mb", nullable("number")),
        ],
        &[],
    );
    let reported = object(
        &[
            ("current_usage_mb", json!({"type": "number"})),
            ("period", nullable("string")),
            ("time", described(time(), "When it was so.")),
        ],
        &[],
    );
    let usage = object(
        &[
            ("month", described(text(), "The current month of UTC, such as `2026-11`.")),
            ("reported", described(one_of_null(reported), "What upstream last reported in that month.")),
            (
                "sessions_mb",
                described(json!({"type": "number"}), "Sum of the sessions that began in that month."),
            ),
            ("sessions", described(json!({"type": "integer"}), "How many these are.")),
        ],
        &[],
    );
    let names =
        json!({"type": "array", "items": {"type": "string", "enum": ["device_id", "msisdn", "network"]}});
    let mut fields = vec![
        ("iccid", described(nullable("string"), "Null where the token may not see it.")),
        ("msisdn", nullable("string")),
        ("device_id", nullable("string")),
        ("derived", described(names, "Fields that come from another event than the newest.")),
        ("online", described(nullable("boolean"), "By the newest event that tells; null where none does.")),
        ("network", described(one_of_null(reference("Network")), "Of the newest event that names one.")),
        ("first_seen", nullable_time()),
        ("last_seen", described(nullable_time(), "Time of the newest event; not after it was observed.")),
        ("last_event", one_of_null(last_event)),
        ("open_session", described(one_of_null(session), "The newest session that has not ended.")),
        ("usage", usage),
        ("events", described(json!({"type": "integer"}), "Events that were read.")),
        ("source", json!({"type": "string", "enum": ["log", "config"]})),
    ];
    fields.extend_from_slice(beside);
    object(&fields, &[])
}

/// What one SIM shows beside its entry.
pub(super) fn beside() -> Vec<(&'static str, Value)> {
    let age = || nullable("integer");
    let bound = described(
        nullable("number"),
        "How old it may become, as the fleet is now; null where sessions are not read.",
    );
    let sessions = object(
        &[
            ("as_of", described(nullable_time(), "When its sessions were last read; null: never.")),
            ("age_seconds", age()),
            ("stale_after_seconds", bound),
        ],
        &[],
    );
    let device = object(
        &[
            ("device_name", nullable("string")),
            ("status", nullable("string")),
            ("linked_at", nullable("string")),
            ("data_usage_mb", nullable("number")),
            ("as_of", described(time(), "When it was looked up.")),
            ("age_seconds", json!({"type": "integer"})),
        ],
        &[],
    );
    let mut fields = vec![("sessions", sessions), ("device", one_of_null(device))];
    fields.extend(as_of());
    fields
}

/// Up to where the log is in an answer.
pub(super) fn as_of() -> [(&'static str, Value); 2] {
    [
        ("as_of", described(cursor(), "Events up to here are in the answer.")),
        ("as_of_time", described(nullable_time(), "`observed_at` of the newest event that is in it.")),
    ]
}

/// A page.
pub(super) fn page() -> Value {
    let mut fields = vec![
        ("sims", list_of("Sim")),
        ("next", described(nullable("string"), "Token of the next page; null where this is the last.")),
        ("total", described(json!({"type": "integer"}), "SIMs that match, on all pages.")),
    ];
    fields.extend(as_of());
    object(&fields, &[("warnings", json!({"type": "array", "items": {"type": "string"}}))])
}
