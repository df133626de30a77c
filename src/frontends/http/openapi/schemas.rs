//! The schemas of `/openapi.json`, written by hand: events leave as bytes that no type describes. Tests compare them
//! with what the gateway really answers.

mod lookup;
mod report;
mod sims;
mod webhooks;

use serde_json::{Map, Value, json};

use super::reference;
use crate::{
    event::{Flag, Via, cursor::CURSOR_CHARS},
    frontends::error::TABLE,
    ingest::DayState,
};

/// All schemas by name.
pub fn all() -> Value {
    json!({
        "Event": event(),
        "Network": network(),
        "Gap": gap(),
        "History": object(&[
            ("events", json!({"type": "array", "items": reference("Event")})),
            ("next_cursor", cursor()),
            ("caught_up", described(json!({"type": "boolean"}), "Nothing more lies in this direction now.")),
        ], &[
            ("gap", reference("Gap")),
            ("warnings", json!({"type": "array", "items": {"type": "string"}})),
        ]),
        "Activity": lookup::activity(),
        "Sessions": lookup::sessions(),
        "DeviceSim": lookup::device_sim(),
        "Report": report::report(),
        "Stream": stream(),
        "Trace": trace(),
        "Subscribers": subscribers(),
        "Ticket": object(&[
            ("ticket", json!({"type": "string"})),
            ("expires_in_s", json!({"type": "integer"})),
        ], &[]),
        "Error": object(&[("error", error())], &[]),
        "Sim": sims::sim(&[]),
        "SimDetails": sims::sim(&sims::beside()),
        "Sims": sims::page(),
        "SimErased": sim_erased(),
        "Webhook": webhooks::endpoint(&[]),
        "WebhookMade": webhooks::endpoint(&[("secret", described(text(), "Shown this once."))]),
        "Webhooks": object(&[("webhooks", list_of("Webhook"))], &[]),
        "Deleted": object(&[("id", text()), ("deleted", json!({"type": "boolean"}))], &[]),
        "WebhookTest": webhooks::test(),
        "WebhookStats": webhooks::stats(),
        "ReplayStarted": object(&[
            ("replay_id", described(nullable("string"), "Null for a dry run.")),
            ("count", json!({"type": "integer"})),
        ], &[("warnings", json!({"type": "array", "items": {"type": "string"}}))]),
        "Replay": webhooks::replay(),
        "Replays": object(&[("replays", list_of("Replay"))], &[]),
        "ReplayCancelled": object(&[("replay_id", text()), ("cancelled", json!({"type": "boolean"}))], &[]),
        "Delivery": webhooks::delivery(),
        "Deliveries": object(&[("deliveries", list_of("Delivery")), ("next", nullable("string"))], &[]),
        "Attempt": webhooks::attempt(),
        "AttemptsErased": object(&[("iccid", text()), ("attempts_removed", json!({"type": "integer"}))], &[]),
    })
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

/// The answer to an erasure.
fn sim_erased() -> Value {
    let count = |what: &str| described(json!({"type": "integer"}), what);
    let removed = object(
        &[
            ("events", count("Events of the SIM.")),
            ("mentions", count("Records of others that mentioned it and do so no more.")),
            ("keys", count("Entries of the key-value buckets.")),
            ("webhook_attempts", count("On the gateway that was asked.")),
        ],
        &[
            (
                "upstream_answers",
                count("Answers of upstream that the gateway that was asked kept in memory."),
            ),
            ("registry_entries", count("Entries of its registry of SIMs.")),
            ("report_days", count("Days of its roll-ups.")),
        ],
    );
    let left = object(&[("what", text()), ("cure", text())], &[]);
    object(
        &[
            ("iccid", text()),
            ("removed", removed),
            (
                "left",
                described(
                    json!({"type": "array", "items": left}),
                    "What could not be removed, and how it is.",
                ),
            ),
            (
                "out_of_reach",
                described(json!({"type": "array", "items": text()}), "What no gateway can remove."),
            ),
        ],
        &[],
    )
}

fn list_of(name: &str) -> Value {
    json!({"type": "array", "items": reference(name)})
}

/// An object whose first fields are always there and whose second ones may be.
fn object(always: &[(&str, Value)], perhaps: &[(&str, Value)]) -> Value {
    let properties: Map<_, _> =
        always.iter().chain(perhaps).map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let required: Vec<_> = always.iter().map(|(name, _)| *name).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = description.into();
    schema
}

fn cursor() -> Value {
    let schema = json!({"type": "string", "minLength": CURSOR_CHARS, "maxLength": CURSOR_CHARS});
    described(schema, "Opaque position in the stream, exclusive: \"after this\".")
}

fn text() -> Value {
    json!({"type": "string"})
}

fn nullable(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

fn time() -> Value {
    json!({"type": "string", "format": "date-time"})
}

fn nullable_time() -> Value {
    json!({"type": ["string", "null"], "format": "date-time"})
}

fn one_of_null(schema: Value) -> Value {
    json!({"oneOf": [schema, {"type": "null"}]})
}

fn event() -> Value {
    let usage = object(&[("current_usage_mb", nullable("number")), ("period", nullable("string"))], &[]);
    let session = object(
        &[
            ("session_id", nullable("string")),
            ("start_time", nullable("string")),
            ("end_time", nullable("string")),
            ("duration_seconds", nullable("integer")),
            ("upload_mb", nullable("number")),
            ("download_mb", nullable("number")),
            ("total_mb", nullable("number")),
            ("ip_address", nullable("string")),
        ],
        &[],
    );
    let data = object(
        &[
            ("event_id", described(nullable("string"), "Upstream's id.")),
            ("event_type", described(text(), "As upstream spells it.")),
            ("iccid", nullable("string")),
            ("msisdn", nullable("string")),
            ("device_id", nullable("string")),
            ("timestamp", described(nullable("string"), "As upstream spells it.")),
            ("observed_at", described(time(), "When it was stored; never decreases along the stream.")),
            ("network", one_of_null(reference("Network"))),
            ("previous_network", one_of_null(reference("Network"))),
            ("signal_strength", nullable("integer")),
            ("usage", one_of_null(usage)),
            ("session", one_of_null(session)),
            ("details", described(json!({}), "As received.")),
            ("extra", described(json!({"type": "object"}), "What the model does not name, as received.")),
            ("flags", flags()),
        ],
        &[],
    );
    let schema = object(
        &[
            ("cursor", cursor()),
            ("specversion", json!({"type": "string", "const": "1.0"})),
            ("id", described(text(), "Unique and stable; deduplicate by it.")),
            ("source", text()),
            ("type", described(text(), "`globalsim.<event type>`, or `simcast.*`.")),
            ("time", time()),
            ("datacontenttype", json!({"type": "string", "const": "application/json"})),
            ("data", data),
        ],
        &[("subject", described(text(), "The ICCID."))],
    );
    described(schema, "CloudEvents 1.0, structured mode.")
}

fn flags() -> Value {
    let flags: Vec<_> = Flag::ALL.into_iter().map(Flag::as_str).collect();
    json!({"type": "array", "items": {"type": "string", "enum": flags}})
}

fn trace() -> Value {
    let readers: Vec<_> = Via::ALL.into_iter().map(Via::as_str).collect();
    let visible = object(
        &[
            ("after", described(nullable_time(), "An answer asked for at this time did not show it yet.")),
            ("before", described(time(), "An answer that was there at this time showed it.")),
        ],
        &[],
    );
    let read = object(
        &[
            ("by", json!({"type": "string", "enum": readers})),
            ("asked_at", described(time(), "When the answer that first showed it was asked for.")),
        ],
        &[],
    );
    let lag = object(
        &[
            (
                "source_ms",
                described(
                    nullable("integer"),
                    "From `time` to `read.asked_at`, milliseconds: what upstream and the way of reading took. \
                     Negative where upstream's clock is ahead.",
                ),
            ),
            (
                "gateway_ms",
                described(
                    nullable("integer"),
                    "From `visible.before` to `appended_at`, milliseconds: what the gateway took.",
                ),
            ),
        ],
        &[],
    );
    let related =
        object(&[("id", text()), ("cursor", cursor()), ("appended_at", time()), ("flags", flags())], &[]);
    let schema = object(
        &[
            ("id", text()),
            ("cursor", cursor()),
            ("event_type", text()),
            ("iccid", nullable("string")),
            ("time", described(nullable_time(), "Null where upstream's timestamp can't be read.")),
            (
                "visible",
                described(
                    one_of_null(visible),
                    "When it became visible upstream; null for the gateway's own events.",
                ),
            ),
            ("read", described(one_of_null(read), "The read it came by; null for the gateway's own events.")),
            ("appended_at", described(time(), "When it was stored: its `observed_at`.")),
            ("lag", lag),
            ("flags", flags()),
            (
                "related",
                described(
                    json!({"type": "array", "items": related}),
                    "Other stored events that are the same event of upstream's, such as `<id>~details`.",
                ),
            ),
        ],
        &[(
            "webhooks",
            described(
                list_of("Attempt"),
                "Attempts to send it, newest first, as this gateway made them; for tokens with the role `webhooks`.",
            ),
        )],
    );
    described(schema, "The way of one event. All times are by the gateway's clock, except `time`.")
}

fn network() -> Value {
    let fields = ["country", "country_code", "operator", "network_code", "mcc", "mnc", "network_type"];
    object(&fields.map(|name| (name, nullable("string"))), &[])
}

fn gap() -> Value {
    let reasons = ["retention", "incarnation", "regressed", "upstream", "corruption"];
    let schema = object(
        &[
            ("from", nullable("string")),
            ("to", nullable("string")),
            ("from_time", nullable_time()),
            ("to_time", nullable_time()),
            ("lost", described(nullable("integer"), "Positions missing, null where not known.")),
            ("reason", json!({"type": "string", "enum": reasons})),
        ],
        &[],
    );
    described(schema, "A range that can't be delivered.")
}

fn stream() -> Value {
    let states = ["ok", "stale", "auth_failed", "rate_limited"];
    let bus = object(
        &[
            ("kind", json!({"type": "string", "enum": ["embedded", "nats"]})),
            ("durability", described(text(), "What an acknowledged append survives.")),
            (
                "warning",
                described(
                    nullable("string"),
                    "Where that is less than one would expect: what may be lost, and the cure.",
                ),
            ),
            ("writable", json!({"type": "boolean"})),
            (
                "filling",
                described(
                    one_of_null(object(
                        &[("upto", json!({"type": "integer"})), ("of", json!({"type": "integer"}))],
                        &[],
                    )),
                    "How far this gateway's copy of the stream is, while it is not complete.",
                ),
            ),
        ],
        &[],
    );
    let gateway = object(
        &[
            ("version", text()),
            ("source", text()),
            ("started_at", time()),
            ("connections", json!({"type": "integer"})),
        ],
        &[],
    );
    let verdict = json!({"type": "string", "enum": DayState::ALL.map(DayState::as_str)});
    let judged = object(
        &[
            (
                "missing",
                described(
                    nullable("integer"),
                    "Events that neither upstream nor the log has; null if unknown.",
                ),
            ),
            ("reason", nullable("string")),
            ("checked_at", nullable_time()),
        ],
        &[],
    );
    let quarantine = object(
        &[
            ("kept", json!({"type": "integer"})),
            ("last_at", nullable_time()),
            ("last_reason", nullable("string")),
        ],
        &[],
    );
    let upstream = object(
        &[
            ("state", json!({"type": "string", "enum": states})),
            ("seen_until", nullable_time()),
            ("lag_seconds", nullable("number")),
            ("backlog_rows", nullable("integer")),
            ("drain_eta_seconds", nullable("number")),
            ("pass_seconds", nullable("number")),
            ("message", nullable("string")),
            ("partial", json!({"type": "integer"})),
            ("probe", json!({})),
            ("budget", json!({})),
            ("completeness", json!({"type": "object", "additionalProperties": verdict})),
            ("completeness_details", json!({"type": "object", "additionalProperties": judged})),
            (
                "sims",
                described(
                    json!({}),
                    "How far the sessions of SIMs are read, and how old they may become; null where they are not read.",
                ),
            ),
            ("quarantined", described(json!({"type": "integer"}), "Rows and events that can't be stored.")),
            ("quarantine", quarantine),
        ],
        &[],
    );
    object(
        &[
            ("events", described(json!({"type": "integer"}), "Events kept.")),
            (
                "damaged",
                described(
                    json!({"type": "integer"}),
                    "Positions of the log that can't be read; told as gaps.",
                ),
            ),
            ("oldest_cursor", described(cursor(), "Reading after it gives the oldest event.")),
            ("oldest_time", nullable_time()),
            ("newest_cursor", described(cursor(), "The live edge.")),
            ("newest_time", nullable_time()),
            ("incarnation", described(text(), "Identity of the log, hex.")),
            ("bus", bus),
            ("gateway", gateway),
            ("limits", json!({"type": "object", "additionalProperties": {"type": "integer"}})),
            ("upstream", upstream),
        ],
        &[],
    )
}

fn subscribers() -> Value {
    let subscription = object(
        &[
            ("sub", text()),
            ("filter", json!({"type": "object"})),
            ("cursor", cursor()),
            ("lag_events", json!({"type": "integer"})),
            ("delivered", json!({"type": "integer"})),
        ],
        &[],
    );
    let connection = object(
        &[
            ("conn", text()),
            ("kind", json!({"type": "string", "enum": ["websocket", "sse", "grpc"]})),
            ("principal", described(text(), "Name of the token.")),
            ("peer", nullable("string")),
            ("connected_at", time()),
            ("subscriptions", json!({"type": "array", "items": subscription})),
        ],
        &[],
    );
    object(
        &[
            ("connections", json!({"type": "integer"})),
            ("subscribers", json!({"type": "array", "items": connection})),
        ],
        &[],
    )
}

fn error() -> Value {
    let codes: Vec<_> = TABLE.iter().map(|wire| wire.name).collect();
    object(
        &[
            ("code", json!({"type": "string", "enum": codes})),
            ("message", text()),
            ("field", described(nullable("string"), "Parameter, header or body field at fault.")),
            ("hint", nullable("string")),
            ("request_id", nullable("string")),
        ],
        &[
            (
                "oldest",
                described(cursor(), "With `cursor_expired`: reading after it gives the oldest event."),
            ),
            ("newest", described(cursor(), "With `cursor_expired`: the live edge.")),
        ],
    )
}
