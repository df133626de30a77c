//! `/openapi.json` against what runs: the same routes, the same fields.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Value, json};

use super::*;
use crate::event::{Provenance, Via, tests_support::full_event};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

#[tokio::test]
async fn what_is_documented_runs_and_nothing_else_does() {
    let fixture = filled();
    fixture.know_sims().await;
    let router = fixture.http();
    let document = get(&router, "/openapi.json").await.json();
    assert_eq!(document, openapi::document());
    let paths = document["paths"].as_object().unwrap();
    for (path, operations) in paths {
        let target = path.replace("{id}", "evt_1").replace("{iccid}", ICCIDS[0]);
        for method in METHODS {
            let answer = respond(&router, &method.to_uppercase(), &target, &[], "").await;
            let status = answer.status().as_u16();
            let documented = operations.get(method).is_some();
            assert_eq!(documented, status != 405, "{method} {path}: {status}");
            if documented {
                let described = operations[method]["responses"].get(status.to_string());
                assert!(described.is_some(), "{method} {path}: {status}");
                // Nothing is refused here but the WebSocket that nobody asked for, and what is not there: webhooks,
                // and devices and sessions, of which the log knows nothing while upstream is away.
                let is_webhook = path.starts_with("/v1/webhooks") && [400, 404].contains(&status);
                let is_socket = path == "/v1/events/ws" && status == 426;
                let is_asked = path.starts_with("/v1/devices") || path.ends_with("/sessions");
                let is_away = is_asked && status == 503;
                assert!(status < 300 || is_socket || is_webhook || is_away, "{path}: {status}");
            }
        }
    }
    for route in routes::TABLE {
        assert!(document["paths"][route.path][route.method].is_object(), "{}", route.path);
    }
    assert_eq!(
        paths.values().map(|path| path.as_object().unwrap().len()).sum::<usize>(),
        routes::TABLE.len()
    );
}

#[test]
fn operations_have_ids_of_their_own_and_references_lead_somewhere() {
    let document = openapi::document();
    let ids: HashSet<_> = routes::TABLE.iter().map(|route| route.id).collect();
    assert_eq!(ids.len(), routes::TABLE.len());
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 10);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                found.push(reference.clone());
            }
            map.values().for_each(|value| collect_references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| collect_references(value, found)),
        _ => {}
    }
}

/// Every filter and start parameter that the parser knows is documented, and the reverse.
#[tokio::test]
async fn documented_parameters_are_the_ones_that_are_read() {
    let router = filled().http();
    let names = |group: &[routes::Parameter]| group.iter().map(|p| p.name).collect::<Vec<_>>();
    assert_eq!(names(routes::FILTER), crate::event::filter::FIELDS);
    assert_eq!(names(routes::START), crate::frontends::params::START);
    let lists = routes::TABLE.iter().filter(|route| ["listEvents", "listSims"].contains(&route.id));
    for (path, parameter) in lists
        .flat_map(|route| route.parameters.iter().copied().flatten().map(|parameter| (route.path, parameter)))
    {
        // An empty value is wrong for each of them; a name that is not read would be called unknown instead.
        let answer = get(&router, &format!("{path}?{}=", parameter.name)).await;
        let (status, _, message, field) = answer.error();
        assert_eq!((status, field.as_deref()), (400, Some(parameter.name)), "{message}");
        assert!(!message.contains("no parameter"), "{message}");
    }
}

/// Checks the answer against the schema: fields that are there are described, required ones are there.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema.get("$ref") {
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        return check(document, document.pointer(pointer).unwrap(), value, place);
    }
    if let Some(choices) = schema.get("oneOf") {
        let choice = &choices[usize::from(value.is_null())];
        return check(document, choice, value, place);
    }
    if let Some(kind) = schema.get("type") {
        let kinds: Vec<_> = kind.as_array().cloned().unwrap_or_else(|| vec![kind.clone()]);
        let of = match value {
            Value::Null => json!("null"),
            Value::Bool(_) => json!("boolean"),
            Value::Number(n) if n.is_i64() || n.is_u64() => json!("integer"),
            Value::Number(_) => json!("number"),
            Value::String(_) => json!("string"),
            Value::Array(_) => json!("array"),
            Value::Object(_) => json!("object"),
        };
        let fits = kinds.contains(&of) || (of == "integer" && kinds.contains(&json!("number")));
        assert!(fits, "{place} is {of}, documented as {kind}");
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
        list.iter().enumerate().for_each(|(n, item)| check(document, items, item, &format!("{place}[{n}]")));
    }
    let (Some(properties), Some(map)) = (schema.get("properties"), value.as_object()) else { return };
    let there: BTreeSet<_> = map.keys().map(String::as_str).collect();
    for name in schema["required"].as_array().unwrap() {
        assert!(there.contains(name.as_str().unwrap()), "{place} lacks {name}");
    }
    for (name, value) in map {
        // The poller's object grows by itself; what is documented of it is a part.
        let open = place.ends_with(".upstream");
        match properties.get(name) {
            Some(schema) => check(document, schema, value, &format!("{place}.{name}")),
            None => assert!(open, "{place}.{name} is not documented"),
        }
    }
}

#[tokio::test]
async fn answers_fit_their_schemas() {
    let fixture = filled();
    let mut event = full_event();
    event.previous_network.clone_from(&event.network);
    event.usage = Some(serde_json::from_value(json!({"current_usage_mb": 1.5})).unwrap());
    event.session = Some(serde_json::from_value(json!({"session_id": "s", "total_mb": 2})).unwrap());
    let mut completed = event.clone();
    completed.id.push_str("~details");
    completed.provenance = Some(Provenance::new(Via::Details, at(2), at(3), Some(at(1))));
    let entries = [event, completed].map(|event| {
        let sealed = event.seal(at(4), jiff::SignedDuration::MAX).unwrap();
        crate::log::Entry { sealed, identity: 1, content: 0 }
    });
    fixture.context.hub.log().append(entries.into()).unwrap();
    fixture.know_sims().await;
    let guard = fixture.context.registry.connect(registry::Kind::Grpc, "anonymous", None).unwrap();
    let _subscription = guard.subscription("default", &json!({})).unwrap();
    let router = fixture.http();
    let document = openapi::document();
    let other = Cursor { incarnation: 8, seq: 1, tag: 0 };
    let cases = [
        ("GET", "/v1/events?event_type=conection,connection".to_owned(), "History"),
        ("GET", format!("/v1/events?after={other}&on_expired=earliest"), "History"),
        ("GET", "/v1/events/evt_abc123".to_owned(), "Event"),
        ("GET", "/v1/events/gw_3".to_owned(), "Event"),
        ("GET", "/v1/events/evt_abc123/trace".to_owned(), "Trace"),
        ("GET", "/v1/events/evt_abc123~details/trace".to_owned(), "Trace"),
        ("GET", "/v1/events/gw_3/trace".to_owned(), "Trace"),
        ("GET", "/v1/stream".to_owned(), "Stream"),
        ("GET", "/v1/sims?iccid=8901234567890123456".to_owned(), "Sims"),
        ("GET", "/v1/sims".to_owned(), "Sims"),
        ("GET", "/v1/sims/8901234567890123456".to_owned(), "SimDetails"),
        ("GET", "/v1/subscribers".to_owned(), "Subscribers"),
        ("POST", "/v1/tickets".to_owned(), "Ticket"),
        ("GET", "/v1/events/none".to_owned(), "Error"),
        ("GET", format!("/v1/events?after={other}"), "Error"),
    ];
    for (method, target, schema) in cases {
        let answer = send(&router, method, &target, &[]).await.json();
        check(&document, &document["components"]["schemas"][schema], &answer, schema);
    }
}

/// Parameters of the streams are read by frontends of their own; they must read what is documented here.
#[tokio::test]
async fn documented_parameters_of_the_sse_stream_are_read() {
    let router = filled().http();
    let sse = routes::TABLE.iter().find(|route| route.id == "streamSse").unwrap();
    for parameter in sse.parameters.iter().flat_map(|group| group.iter()).filter(|p| p.name != "ticket") {
        let answer = get(&router, &format!("{}?{}=", sse.path, parameter.name)).await;
        let (status, _, message, field) = answer.error();
        assert_eq!((status, field.as_deref()), (400, Some(parameter.name)), "{message}");
        assert!(!message.contains("no parameter"), "{message}");
    }
}
