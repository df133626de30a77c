//! The messages of `simcast.v1.json`: their names, and the reading of those that clients send.
//!
//! A key that the protocol does not know is an error: a misspelled `filter` that is ignored would deliver every event.

use serde_json::{Map, Value};

use crate::{
    event::{Cursor, Filter, FilterLimits, Gap, OnExpired, Start},
    frontends::{ApiError, Code, Limits},
};

/// The subprotocol, echoed where it is offered.
pub const SUBPROTOCOL: &str = "simcast.v1.json";
/// Prefix of the subprotocol that carries a token, base64url.
pub const BEARER_PROTOCOL: &str = "bearer.";
/// The subscription that opening the URL makes.
pub const DEFAULT_SUB: &str = "default";
/// Longest name of a subscription.
pub const SUB_MAX: usize = 64;
/// Longest text that a client may use as `id`.
const ID_MAX: usize = 128;

/// A message type with its fields beside `type`: those that are always there, then those that may be.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Value of `type`.
    pub name: &'static str,
    /// Always there.
    pub required: &'static [&'static str],
    /// There where it applies.
    pub optional: &'static [&'static str],
}

/// What clients send. [`parse`] and the AsyncAPI document are both held to it.
pub mod client {
    use super::Shape;

    const fn shape(
        name: &'static str,
        required: &'static [&'static str],
        optional: &'static [&'static str],
    ) -> Shape {
        Shape { name, required, optional }
    }

    /// A credential, first or renewed.
    pub const AUTH: Shape = shape("auth", &["token"], &["id"]);
    /// Opens a subscription.
    pub const SUBSCRIBE: Shape =
        shape("subscribe", &[], &["id", "sub", "filter", "from", "after", "since", "last", "on_expired"]);
    /// Changes a filter in place.
    pub const UPDATE: Shape = shape("update", &["filter"], &["id", "sub"]);
    /// Ends a subscription.
    pub const UNSUBSCRIBE: Shape = shape("unsubscribe", &[], &["id", "sub"]);
    /// Asks for a `pong`.
    pub const PING: Shape = shape("ping", &[], &["id"]);
    /// All of them.
    pub const ALL: [Shape; 5] = [AUTH, SUBSCRIBE, UPDATE, UNSUBSCRIBE, PING];
}

/// What the gateway sends.
pub mod server {
    use super::Shape;

    const fn shape(name: &'static str, required: &'static [&'static str]) -> Shape {
        Shape { name, required, optional: &[] }
    }

    /// First message.
    pub const WELCOME: Shape = shape("welcome", &["conn", "server_time", "heartbeat_ms", "limits"]);
    /// Answer to `auth` where it carried an `id`.
    pub const AUTHENTICATED: Shape = shape("authenticated", &["id", "expires_in_s"]);
    /// Answer to `subscribe`.
    pub const SUBSCRIBED: Shape = shape("subscribed", &["id", "sub", "cursor", "warnings"]);
    /// Answer to `update`.
    pub const UPDATED: Shape = shape("updated", &["id", "sub", "cursor", "warnings"]);
    /// Answer to `unsubscribe`.
    pub const UNSUBSCRIBED: Shape = shape("unsubscribed", &["id", "sub", "cursor"]);
    /// Events.
    pub const EVENTS: Shape = shape("events", &["sub", "n", "cursor", "items"]);
    /// History is done.
    pub const CAUGHT_UP: Shape = shape("caught_up", &["sub", "cursor"]);
    /// Heartbeat.
    pub const BOOKMARK: Shape = shape("bookmark", &["sub", "cursor", "seen_until", "upstream"]);
    /// A range that can't be delivered.
    pub const GAP: Shape = shape("gap", &["sub", "from", "to", "from_time", "to_time", "lost", "reason"]);
    /// The credential ends soon.
    pub const AUTH_EXPIRING: Shape = shape("auth_expiring", &["in_s"]);
    /// The gateway stops.
    pub const DRAINING: Shape = shape("draining", &["reconnect_within_ms"]);
    /// A mistake.
    pub const ERROR: Shape = Shape {
        name: "error",
        required: &["id", "code", "message", "field", "hint"],
        optional: &["sub", "oldest", "newest"],
    };
    /// Answer to `ping`.
    pub const PONG: Shape = shape("pong", &["id"]);
    /// All of them.
    pub const ALL: [Shape; 13] = [
        WELCOME,
        AUTHENTICATED,
        SUBSCRIBED,
        UPDATED,
        UNSUBSCRIBED,
        EVENTS,
        CAUGHT_UP,
        BOOKMARK,
        GAP,
        AUTH_EXPIRING,
        DRAINING,
        ERROR,
        PONG,
    ];
}

/// What a client asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Ask {
    Auth { token: String },
    Subscribe(Box<Subscribe>),
    Update { sub: String, filter: Filter, warnings: Vec<String> },
    Unsubscribe { sub: String },
    Ping,
}

/// A subscription to open.
#[derive(Debug, PartialEq)]
pub(super) struct Subscribe {
    pub(super) sub: String,
    pub(super) filter: Filter,
    pub(super) warnings: Vec<String>,
    pub(super) start: Start,
    pub(super) on_expired: OnExpired,
}

/// A message that has the form of one; what it asks for may still be wrong.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: Value,
    pub(super) ask: Result<Ask, ApiError>,
}

/// Reads a message.
///
/// # Errors
/// [`Code::InvalidMessage`] where it is no JSON object: the client speaks something else, and the connection ends.
pub(super) fn parse(text: &str, limits: &Limits) -> Result<Request, ApiError> {
    let map = match serde_json::from_str(text) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return Err(invalid("a message is a JSON object", None)),
        Err(error) => return Err(invalid(format!("this is no JSON: {error}"), None)),
    };
    let id = match map.get("id") {
        None | Some(Value::Null) => Value::Null,
        Some(Value::String(id)) if id.len() <= ID_MAX => Value::from(id.as_str()),
        Some(Value::Number(id)) if id.to_string().len() <= ID_MAX => Value::Number(id.clone()),
        Some(_) => {
            let ask =
                Err(invalid(format!("id is a text of at most {ID_MAX} bytes, or a number"), Some("id")));
            return Ok(Request { id: Value::Null, ask });
        }
    };
    let ask = ask(&map, limits);
    Ok(Request { id, ask })
}

fn ask(map: &Map<String, Value>, limits: &Limits) -> Result<Ask, ApiError> {
    let name = text(map, "type")?.ok_or_else(|| invalid("type is missing", Some("type")))?;
    let Some(shape) = client::ALL.iter().find(|shape| shape.name == name) else {
        let names: Vec<_> = client::ALL.iter().map(|shape| shape.name).collect();
        let shown: String = name.chars().take(SUB_MAX).collect();
        return Err(invalid(format!("{shown:?} is no message type"), Some("type"))
            .hint(format!("types are {}", names.join(", "))));
    };
    check_keys(map, shape)?;
    if shape.name == client::AUTH.name {
        let token = text(map, "token")?.unwrap_or_default().to_owned();
        return Ok(Ask::Auth { token });
    }
    if shape.name == client::PING.name {
        return Ok(Ask::Ping);
    }
    let sub = text(map, "sub")?.unwrap_or(DEFAULT_SUB).to_owned();
    check_sub(&sub)?;
    if shape.name == client::UNSUBSCRIBE.name {
        return Ok(Ask::Unsubscribe { sub });
    }
    let filter = map.get("filter").unwrap_or(&Value::Null);
    let filter_limits = FilterLimits { values_per_list: limits.filter_values };
    let (filter, warnings) = Filter::from_json(filter, filter_limits)?;
    if shape.name == client::UPDATE.name {
        return Ok(Ask::Update { sub, filter, warnings });
    }
    let start = start(map)?;
    let on_expired = text(map, "on_expired")?.map_or(Ok(OnExpired::Earliest), OnExpired::parse)?;
    Ok(Ask::Subscribe(Box::new(Subscribe { sub, filter, warnings, start, on_expired })))
}

fn start(map: &Map<String, Value>) -> Result<Start, ApiError> {
    let last = match map.get("last") {
        Some(Value::Number(n)) => Some(n.to_string()),
        _ => text(map, "last")?.map(str::to_owned),
    };
    let start =
        Start::from_params(text(map, "from")?, text(map, "after")?, text(map, "since")?, last.as_deref())?;
    Ok(start.unwrap_or_default())
}

fn check_keys(map: &Map<String, Value>, shape: &Shape) -> Result<(), ApiError> {
    for field in shape.required {
        if map.get(*field).is_none_or(Value::is_null) {
            return Err(invalid(format!("{field} is missing"), Some(field)));
        }
    }
    let known = || ["type"].iter().chain(shape.required).chain(shape.optional);
    match map.keys().find(|key| !known().any(|known| known == key)) {
        None => Ok(()),
        Some(key) => {
            let shown: String = key.chars().take(SUB_MAX).collect();
            let message = format!("{} has no key {shown:?}", shape.name);
            let keys: Vec<_> = known().copied().collect();
            Err(invalid(message, None).field(shown).hint(format!("its keys are {}", keys.join(", "))))
        }
    }
}

/// A subscription's name must go into messages without escaping.
pub(super) fn check_sub(sub: &str) -> Result<(), ApiError> {
    let fits = (1..=SUB_MAX).contains(&sub.len())
        && sub.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    match fits {
        true => Ok(()),
        false => {
            Err(invalid(format!("sub is 1 to {SUB_MAX} letters, digits, '_', '.' and '-'"), Some("sub")))
        }
    }
}

fn text<'m>(map: &'m Map<String, Value>, field: &'static str) -> Result<Option<&'m str>, ApiError> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(format!("{field} is a text"), Some(field))),
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>, field: Option<&'static str>) -> ApiError {
    let error = ApiError::new(Code::InvalidMessage, message);
    match field {
        Some(field) => error.field(field),
        None => error,
    }
}

/// A message of the gateway, as text.
pub(super) fn message(shape: &Shape, fields: impl IntoIterator<Item = (&'static str, Value)>) -> String {
    let mut map = Map::new();
    map.insert("type".into(), shape.name.into());
    map.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
    debug_assert!(shape.required.iter().all(|field| map.contains_key(*field)), "{map:?}");
    Value::Object(map).to_string()
}

/// A `gap` message.
pub(super) fn gap(sub: &str, gap: &Gap) -> String {
    let mut map = Map::new();
    map.insert("type".into(), server::GAP.name.into());
    map.insert("sub".into(), sub.into());
    map.extend(gap.to_json());
    Value::Object(map).to_string()
}

/// An `error` message; `sub` where it ends that subscription.
pub(super) fn error(id: &Value, sub: Option<&str>, error: &ApiError) -> String {
    let mut map = Map::new();
    map.insert("type".into(), server::ERROR.name.into());
    map.insert("id".into(), id.clone());
    map.extend(error.to_json(None));
    map.remove("request_id");
    if let Some(sub) = sub {
        map.insert("sub".into(), sub.into());
    }
    Value::Object(map).to_string()
}

/// The reason of a close frame: why, and where to resume.
pub(super) fn close_reason(code: &str, cursor: Option<Cursor>) -> String {
    match cursor {
        Some(cursor) => format!(r#"{{"code":"{code}","cursor":"{cursor}"}}"#),
        None => format!(r#"{{"code":"{code}"}}"#),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask_of(text: &str) -> Result<Ask, ApiError> {
        parse(text, &Limits::default()).unwrap().ask
    }

    #[test]
    fn every_mistake_names_its_field() {
        for (text, code, field) in [
            (r#"{}"#, Code::InvalidMessage, "type"),
            (r#"{"type":7}"#, Code::InvalidMessage, "type"),
            (r#"{"type":"subscrib"}"#, Code::InvalidMessage, "type"),
            (r#"{"type":"ping","id":[]}"#, Code::InvalidMessage, "id"),
            (r#"{"type":"auth"}"#, Code::InvalidMessage, "token"),
            (r#"{"type":"auth","token":5}"#, Code::InvalidMessage, "token"),
            (r#"{"type":"update"}"#, Code::InvalidMessage, "filter"),
            (r#"{"type":"subscribe","filters":{}}"#, Code::InvalidMessage, "filters"),
            (r#"{"type":"subscribe","sub":""}"#, Code::InvalidMessage, "sub"),
            (r#"{"type":"subscribe","sub":"a b"}"#, Code::InvalidMessage, "sub"),
            (r#"{"type":"subscribe","sub":3}"#, Code::InvalidMessage, "sub"),
            (r#"{"type":"subscribe","filter":[]}"#, Code::InvalidFilter, "filter"),
            (r#"{"type":"subscribe","filter":{"iccid":["12"]}}"#, Code::InvalidFilter, "iccid"),
            (r#"{"type":"subscribe","filter":{"event":["x"]}}"#, Code::InvalidFilter, "event"),
            (r#"{"type":"subscribe","after":"nonsense"}"#, Code::InvalidCursor, "after"),
            (r#"{"type":"subscribe","from":"then"}"#, Code::InvalidStart, "from"),
            (r#"{"type":"subscribe","from":"now","last":3}"#, Code::InvalidStart, "last"),
            (r#"{"type":"subscribe","last":1001}"#, Code::InvalidStart, "last"),
            (r#"{"type":"subscribe","on_expired":"x"}"#, Code::InvalidStart, "on_expired"),
        ] {
            let error = ask_of(text).unwrap_err();
            assert_eq!((error.code, error.field.as_deref()), (code, Some(field)), "{text}");
        }
        let long = format!(r#"{{"type":"unsubscribe","sub":"{}"}}"#, "a".repeat(65));
        assert_eq!(ask_of(&long).unwrap_err().field.as_deref(), Some("sub"));
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let Ask::Subscribe(subscribe) = ask_of(r#"{"type":"subscribe"}"#).unwrap() else { panic!() };
        let expected = Subscribe {
            sub: "default".into(),
            filter: Filter::default(),
            warnings: vec![],
            start: Start::Now,
            on_expired: OnExpired::Earliest,
        };
        assert_eq!(*subscribe, expected);
        let Ask::Subscribe(subscribe) = ask_of(r#"{"type":"subscribe","last":5}"#).unwrap() else { panic!() };
        assert_eq!(subscribe.start, Start::Last(5));
    }

    #[test]
    fn ids_come_back_as_they_were() {
        for id in [r#""a""#, "1", "18446744073709551616", "null"] {
            let request = parse(&format!(r#"{{"type":"ping","id":{id}}}"#), &Limits::default()).unwrap();
            assert_eq!(request.id.to_string(), id);
        }
        assert!(parse("[1]", &Limits::default()).is_err());
        assert!(parse("{", &Limits::default()).is_err());
    }
}
