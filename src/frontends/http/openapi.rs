//! `GET /openapi.json`: OpenAPI 3.1, built from the [table of routes](super::routes::TABLE).

mod schemas;

use std::{collections::BTreeMap, sync::LazyLock};

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    body,
    routes::{AUTH_ERRORS, Access, COMMON_ERRORS, Kind, Parameter, Route, TABLE},
};
use crate::{event::cursor::CURSOR_CHARS, frontends::Code};

static TEXT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

/// `GET /openapi.json`.
pub async fn serve() -> Response {
    body::bytes(StatusCode::OK, [TEXT.clone()])
}

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in TABLE {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "simcast",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "GlobalSIM events as a durable, filtered, live stream. \
                            Without configured tokens no credential is needed.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas::all(),
        },
    })
}

fn operation(route: &Route) -> Value {
    let parameters: Vec<_> = route.parameters.iter().flat_map(|group| group.iter()).map(parameter).collect();
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "description": format!("{}{}", route.description, role(route.access)),
        "parameters": parameters,
        "responses": responses(route),
    });
    match route.access {
        Access::Public => operation["security"] = json!([]),
        // The header is one of several ways.
        Access::Own => operation["security"] = json!([{}, {"bearer": []}]),
        Access::Role(_) | Access::Either(..) => {}
    }
    if route.body {
        operation["requestBody"] = json!({
            "required": false,
            "content": {"application/json": {"schema": {"type": "object"}}},
        });
    }
    operation
}

fn role(access: Access) -> String {
    match access {
        Access::Public => String::new(),
        Access::Own => " Needs the role `read`.".to_owned(),
        Access::Role(role) => format!(" Needs the role `{}`.", role.as_str()),
        Access::Either(role, other) => {
            format!(" Needs the role `{}` or `{}`.", role.as_str(), other.as_str())
        }
    }
}

fn parameter(parameter: &Parameter) -> Value {
    let schema = match parameter.kind {
        Kind::Path | Kind::Text => json!({"type": "string"}),
        Kind::List => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Time => json!({"type": "string", "format": "date-time"}),
        Kind::Cursor => json!({"type": "string", "minLength": CURSOR_CHARS, "maxLength": CURSOR_CHARS}),
        Kind::Number(low, high, default) => {
            let mut schema = json!({"type": "integer", "minimum": low, "maximum": high});
            if let Some(default) = default {
                schema["default"] = default.into();
            }
            schema
        }
        Kind::Choice(words) => json!({"type": "string", "enum": words, "default": words[0]}),
        Kind::OptionalChoice(words) => json!({"type": "string", "enum": words}),
    };
    let path = parameter.kind == Kind::Path;
    let mut shown = json!({
        "name": parameter.name,
        "in": if path { "path" } else { "query" },
        "required": path,
        "description": parameter.description,
        "schema": schema,
    });
    if parameter.kind == Kind::List {
        shown["style"] = "form".into();
        shown["explode"] = true.into();
        shown["description"] = format!(
            "{} Repeated or comma-separated; `\\,` is a comma inside a value.",
            parameter.description
        )
        .into();
    }
    shown
}

fn responses(route: &Route) -> Value {
    let success = route.success;
    let mut shown = json!({"description": success.description});
    if !success.content_type.is_empty() {
        let schema = match success.schema {
            "" => json!({}),
            name => reference(name),
        };
        shown["content"] = json!({success.content_type: {"schema": schema}});
    }
    let mut responses = Map::from_iter([(success.status.to_string(), shown)]);
    let upgrade = success.status == StatusCode::SWITCHING_PROTOCOLS.as_u16();
    if upgrade {
        let wanted = json!({"description": "The request does not ask for a WebSocket."});
        responses.insert(StatusCode::UPGRADE_REQUIRED.as_u16().to_string(), wanted);
    }
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    let auth = if upgrade || route.access == Access::Public { &[][..] } else { AUTH_ERRORS };
    for code in COMMON_ERRORS.iter().chain(auth).chain(route.errors) {
        by_status.entry(code.wire().http).or_default().push(code.as_str());
    }
    for (status, codes) in by_status {
        let description = codes.iter().map(|code| format!("`{code}`")).collect::<Vec<_>>().join(", ");
        let mut shown = json!({
            "description": description,
            "content": {"application/json": {"schema": reference("Error")}},
        });
        if status == Code::Draining.wire().http || status == Code::RateLimited.wire().http {
            shown["headers"] =
                json!({"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}});
        }
        responses.insert(status.to_string(), shown);
    }
    Value::Object(responses)
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}
