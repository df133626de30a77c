//! What the gateway tells of its webhooks on the stream itself: `simcast.webhook.*`.
//!
//! They are events like any other: durable, replayable, filtered, and what a dead-letter list is read from. Their ids
//! follow from what they tell, so telling it twice stores it once.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    endpoint::Endpoint,
    feed::{LastFailure, Unit},
};
use crate::{
    bus::NewEvent,
    event::{Event, Gap, Iccid, StoredEvent, identity::FieldHasher},
};

/// An event, or a range of the log, was given up.
pub const DEAD_LETTERED: &str = "simcast.webhook.dead_lettered";
/// The receiver wants no more.
pub const DISABLED: &str = "simcast.webhook.disabled";
/// The receiver fails; only probes are sent.
pub const FAILING: &str = "simcast.webhook.failing";
/// It is back.
pub const RECOVERED: &str = "simcast.webhook.recovered";
/// Begins the types above.
pub const PREFIX: &str = "simcast.webhook.";

fn notice(endpoint: &Endpoint, event_type: &str, parts: &[&str], at: Timestamp, more: Value) -> NewEvent {
    let mut hasher = FieldHasher::new(event_type);
    hasher.field(Some(&endpoint.id));
    parts.iter().for_each(|part| hasher.field(Some(part)));
    let identity = hasher.finish_u64();
    let mut body = Map::new();
    body.insert("webhook_id".into(), json!(endpoint.id));
    body.insert("description".into(), json!(endpoint.description));
    body.insert("host".into(), json!(host(&endpoint.url)));
    if let Value::Object(more) = more {
        body.extend(more);
    }
    let event = Event::gateway(format!("whn_{identity:016x}"), event_type, at, body);
    NewEvent { event, identity, content: 0 }
}

/// The host alone: paths and queries of receivers hold tokens.
fn host(url: &str) -> Option<String> {
    url.parse::<http::Uri>().ok()?.host().map(str::to_owned)
}

/// An event was given up. `event` is None where it is no longer kept.
pub fn dead_lettered(
    endpoint: &Endpoint,
    seq: u64,
    incarnation: u64,
    event: Option<&StoredEvent>,
    unit: &Unit,
    at: Timestamp,
) -> NewEvent {
    let keys = event.and_then(|event| event.keys().ok());
    let (status, reason) =
        unit.last.as_ref().map_or((None, "gone"), |last| (last.status, last.kind.as_str()));
    let more = json!({
        "event_id": keys.map(|keys| keys.id),
        "event_type": keys.map(|keys| keys.event_type),
        "seq": seq,
        "attempts": unit.attempts,
        "reason": reason,
        "status": status,
    });
    let parts = [&format!("{incarnation:x}") as &str, &seq.to_string()];
    let mut new = notice(endpoint, DEAD_LETTERED, &parts, at, more);
    // Of the SIM that the event was of: a token that may not see the one does not see the other.
    new.event.iccid = keys.and_then(|keys| Iccid::parse(keys.iccid?).ok());
    new.event.device_id = keys.and_then(|keys| keys.device_id.map(str::to_owned));
    new
}

/// A range of the log was gone before it was read: the notice of the endpoint, and the gap itself.
pub fn lost(endpoint: &Endpoint, gap: &Gap, at: Timestamp) -> Vec<NewEvent> {
    let shown = gap.to_json();
    let to = gap.to.map_or_else(String::new, |to| to.to_string());
    let more = json!({ "lost": gap.lost, "reason": gap.reason.as_str(), "gap": shown });
    let told = notice(endpoint, DEAD_LETTERED, &["range", &to], at, more);
    let mut hole = notice(endpoint, "simcast.gap", &[&to], at, Value::Object(shown));
    hole.event.id = format!("gap_{:016x}", hole.identity);
    vec![told, hole]
}

/// The receiver wants no more.
pub fn disabled(endpoint: &Endpoint, reason: &str, at: Timestamp) -> NewEvent {
    notice(endpoint, DISABLED, &[&at.to_string()], at, json!({ "reason": reason }))
}

/// The receiver fails.
pub fn failing(endpoint: &Endpoint, last: &LastFailure, at: Timestamp) -> NewEvent {
    notice(endpoint, FAILING, &[&at.to_string()], at, json!({ "status": last.status, "reason": last.kind }))
}

/// The receiver is back, after failing since `since`.
pub fn recovered(endpoint: &Endpoint, since: Timestamp, at: Timestamp) -> NewEvent {
    let more = json!({ "failing_since": since.to_string() });
    notice(endpoint, RECOVERED, &[&since.to_string()], at, more)
}

/// What a dead-letter notice says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Of which endpoint.
    pub webhook: String,
    /// Position of the event; None where a range is meant.
    pub seq: Option<u64>,
    /// Its id, if it was kept still.
    pub event_id: Option<String>,
    /// Its type.
    pub event_type: Option<String>,
    /// Attempts that failed.
    pub attempts: u32,
    /// `status`, what went wrong on the way, `gone`, or the reason of a gap.
    pub reason: String,
    /// Status of the last answer.
    pub status: Option<u16>,
    /// Positions of a range.
    pub lost: Option<u64>,
}

/// Reads a dead-letter notice; None for any other event.
pub fn read_dead_letter(event: &StoredEvent) -> Option<DeadLetter> {
    event.keys().ok().filter(|keys| keys.gateway && keys.event_type == DEAD_LETTERED)?;
    let body: Value = serde_json::from_slice(event.json()).ok()?;
    let extra = body.get("data")?.get("extra")?;
    let text = |name: &str| extra.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name: &str| extra.get(name).and_then(Value::as_u64);
    Some(DeadLetter {
        webhook: text("webhook_id")?,
        seq: number("seq"),
        event_id: text("event_id"),
        event_type: text("event_type"),
        attempts: number("attempts").unwrap_or(0) as u32,
        reason: text("reason").unwrap_or_default(),
        status: number("status").map(|status| status as u16),
        lost: number("lost"),
    })
}

/// Whether an event tells something of this endpoint: it never gets those.
pub fn is_about(event: &StoredEvent, endpoint: &str) -> bool {
    let Ok(keys) = event.keys() else { return false };
    if !keys.gateway || !keys.event_type.starts_with("simcast.") {
        return false;
    }
    let body = serde_json::from_slice::<Value>(event.json()).ok();
    let webhook = body.as_ref().and_then(|body| body.get("data")?.get("extra")?.get("webhook_id")?.as_str());
    webhook == Some(endpoint)
}
