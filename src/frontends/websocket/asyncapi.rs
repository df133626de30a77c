//! `GET /asyncapi.json`: the WebSocket protocol as an AsyncAPI 3.0 document.
//!
//! Built from the same [`Shape`]s that reading and writing of messages are held to, and from the error table, so that
//! it can't describe another protocol than the one that runs.

use serde_json::{Map, Value, json};

use super::messages::{SUB_MAX, SUBPROTOCOL, Shape, client, server};
use crate::{
    event::{
        cursor::CURSOR_CHARS,
        filter::{FIELDS, KNOWN_TYPES},
        position::LAST_MAX,
    },
    frontends::{Limits, error::TABLE},
};

/// The document.
pub fn document(limits: &Limits) -> Value {
    let mut messages = Map::new();
    for shape in client::ALL.iter().chain(&server::ALL) {
        messages.insert(shape.name.to_owned(), message(shape));
    }
    let in_channel: Map<String, Value> =
        messages.keys().map(|name| (name.clone(), pointer("components/messages", name))).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "simcast: events over WebSocket",
            "version": env!("CARGO_PKG_VERSION"),
            "description": description(limits),
        },
        "defaultContentType": "application/json",
        "channels": {
            "events": {
                "address": "/v1/events/ws",
                "title": "Events, live and from any position",
                "description": "Opening the URL subscribes `default` by the query's filter and start, unless subscribe=none.",
                "messages": in_channel,
                "bindings": {"ws": {"method": "GET", "query": query()}},
            },
        },
        "operations": {
            "fromClient": operation("receive", "What clients send.", &client::ALL),
            "toClient": operation("send", "What the gateway sends.", &server::ALL),
        },
        "components": {
            "messages": messages,
            "schemas": {"Cursor": cursor(), "Filter": filter(limits), "Event": event()},
        },
        "x-subprotocol": SUBPROTOCOL,
        "x-close-codes": close_codes(),
    })
}

fn description(limits: &Limits) -> String {
    format!(
        "One JSON object per text frame, subprotocol `{SUBPROTOCOL}` (optional). Credential: Authorization header, \
         subprotocol `bearer.<base64url token>`, first message `auth`, or `?ticket=` from POST /v1/tickets. `id` is \
         optional and echoed. `n` of `events` is the 1-based ordinal of its first item since `subscribed`: there are \
         no holes. Resume with `after` = any cursor received. A quiet subscription gets a `bookmark` every {} s. \
         Close codes: 42xx reconnect now, 43xx back off, 44xx do not.",
        limits.heartbeat.as_secs()
    )
}

fn operation(action: &str, summary: &str, shapes: &[Shape]) -> Value {
    let messages: Vec<_> =
        shapes.iter().map(|shape| pointer("channels/events/messages", shape.name)).collect();
    let channel = json!({"$ref": "#/channels/events"});
    json!({"action": action, "summary": summary, "channel": channel, "messages": messages})
}

fn pointer(path: &str, name: &str) -> Value {
    json!({"$ref": format!("#/{path}/{name}")})
}

fn message(shape: &Shape) -> Value {
    let mut properties = Map::new();
    properties.insert("type".into(), json!({"const": shape.name}));
    for name in shape.required.iter().chain(shape.optional) {
        properties.insert((*name).to_owned(), field(shape, name));
    }
    let required: Vec<_> = ["type"].iter().chain(shape.required).collect();
    json!({
        "name": shape.name,
        "payload": {"type": "object", "required": required, "properties": properties},
    })
}

/// The schema of a field. Names mean the same in every message, but for `from`.
fn field(shape: &Shape, name: &str) -> Value {
    let text = || json!({"type": "string"});
    let text_or_null = || json!({"type": ["string", "null"]});
    let time_or_null = || json!({"type": ["string", "null"], "format": "date-time"});
    let whole = || json!({"type": "integer", "minimum": 0});
    let cursor_or_null = || json!({"oneOf": [pointer("components/schemas", "Cursor"), {"type": "null"}]});
    match name {
        "from" if shape.name == client::SUBSCRIBE.name => json!({"enum": ["now", "earliest"]}),
        "from" | "to" => cursor_or_null(),
        "id" => json!({"type": ["string", "number", "null"]}),
        "sub" => {
            json!({"type": "string", "pattern": format!("^[A-Za-z0-9_.-]{{1,{SUB_MAX}}}$"), "default": "default"})
        }
        "filter" => pointer("components/schemas", "Filter"),
        "after" | "cursor" | "oldest" | "newest" => pointer("components/schemas", "Cursor"),
        "since" | "server_time" => json!({"type": "string", "format": "date-time"}),
        "from_time" | "to_time" | "seen_until" => time_or_null(),
        "last" => json!({"type": "integer", "minimum": 1, "maximum": LAST_MAX}),
        "on_expired" => json!({"enum": ["fail", "earliest", "latest"], "default": "earliest"}),
        "limits" => json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        "warnings" => json!({"type": "array", "items": text()}),
        "items" => json!({"type": "array", "items": pointer("components/schemas", "Event"), "minItems": 1}),
        "n" => json!({"type": "integer", "minimum": 1}),
        "upstream" => json!({"enum": ["ok", "stale", "auth_failed", "rate_limited"]}),
        "reason" => json!({"enum": ["retention", "incarnation", "regressed", "upstream", "corruption"]}),
        "lost" | "expires_in_s" => json!({"type": ["integer", "null"], "minimum": 0}),
        "heartbeat_ms" | "in_s" | "reconnect_within_ms" => whole(),
        "code" => json!({"enum": TABLE.iter().map(|wire| wire.name).collect::<Vec<_>>()}),
        "field" | "hint" => text_or_null(),
        _ => text(),
    }
}

fn cursor() -> Value {
    json!({
        "type": "string",
        "minLength": CURSOR_CHARS,
        "maxLength": CURSOR_CHARS,
        "description": "A position, opaque, exclusive: reading after it gives what follows.",
    })
}

fn filter(limits: &Limits) -> Value {
    let list = json!({"type": "array", "items": {"type": "string"}, "maxItems": limits.filter_values});
    let lists: Map<String, Value> = FIELDS.iter().map(|name| ((*name).to_owned(), list.clone())).collect();
    json!({
        "type": "object",
        "description": "OR inside a list, AND across lists; empty means everything but simcast.* events.",
        "properties": lists,
        "additionalProperties": false,
    })
}

fn event() -> Value {
    json!({
        "type": "object",
        "description": "CloudEvents 1.0, structured mode.",
        "required": ["cursor", "specversion", "id", "source", "type", "time", "datacontenttype", "data"],
        "properties": {
            "cursor": pointer("components/schemas", "Cursor"),
            "specversion": {"const": "1.0"},
            "id": {"type": "string"},
            "source": {"type": "string"},
            "type": {"type": "string", "description": "globalsim.<event type>, or simcast.* for the gateway's own."},
            "subject": {"type": "string", "description": "ICCID; absent where the event has none."},
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": {"const": "application/json"},
            "data": {
                "type": "object",
                "properties": {
                    "event_type": {"type": "string", "examples": KNOWN_TYPES},
                    "observed_at": {"type": "string", "format": "date-time"},
                },
            },
        },
    })
}

fn query() -> Value {
    let text = json!({"type": "string"});
    let mut properties = Map::new();
    for name in FIELDS {
        properties.insert(
            name.to_owned(),
            json!({"type": "string", "description": "Repeated or comma-separated."}),
        );
    }
    for name in ["after", "since", "ticket"] {
        properties.insert(name.to_owned(), text.clone());
    }
    properties.insert("from".into(), json!({"enum": ["now", "earliest"]}));
    properties.insert("last".into(), json!({"type": "integer", "minimum": 1, "maximum": LAST_MAX}));
    properties.insert("on_expired".into(), json!({"enum": ["fail", "earliest", "latest"]}));
    properties.insert("subscribe".into(), json!({"enum": ["none", "default"]}));
    json!({"type": "object", "properties": properties})
}

fn close_codes() -> Value {
    let closing = TABLE.iter().filter_map(|wire| Some((wire.close?, wire.name)));
    let mut codes = Map::new();
    for (code, name) in closing {
        let names = codes.entry(code.to_string()).or_insert_with(|| json!([]));
        if let Some(names) = names.as_array_mut() {
            names.push(name.into());
        }
    }
    Value::Object(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_of_the_code_is_described_with_its_fields() {
        let document = document(&Limits::default());
        let channel = &document["channels"]["events"]["messages"];
        for (shapes, operation) in [(&client::ALL[..], "fromClient"), (&server::ALL[..], "toClient")] {
            for shape in shapes {
                let payload = &document["components"]["messages"][shape.name]["payload"];
                assert_eq!(payload["properties"]["type"]["const"], shape.name);
                for name in shape.required.iter().chain(shape.optional) {
                    assert!(payload["properties"][name].is_object(), "{}.{name}", shape.name);
                }
                for name in shape.required {
                    let required = payload["required"].as_array().unwrap();
                    assert!(required.iter().any(|found| found == name), "{}.{name}", shape.name);
                }
                assert!(channel[shape.name].is_object());
                let listed = document["operations"][operation]["messages"].as_array().unwrap();
                let reference = format!("#/channels/events/messages/{}", shape.name);
                assert!(listed.iter().any(|message| message["$ref"] == *reference), "{}", shape.name);
            }
        }
        assert_eq!(document["x-close-codes"]["4308"], json!(["slow"]));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, document: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
                    }
                    map.values().for_each(|value| walk(value, document));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, document)),
                _ => {}
            }
        }
        let document = document(&Limits::default());
        walk(&document, &document);
    }
}
