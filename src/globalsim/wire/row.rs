//! Activity rows: two shapes in, one [`Event`] out.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    BAD_ROW_BYTES_MAX, BadRow, Row,
    fields::{self, Fields},
    time,
};
use crate::event::{Event, Iccid, Network, Usage, identity::FieldHasher};

/// Deeper rows could not be read back once they are wrapped in an event and a message.
const DEPTH_MAX: usize = 64;

/// Texts that are stored as keys, and identities, are cut off here: longer ones are no names of anything.
const TEXT_BYTES_MAX: usize = 8192;

/// The type of an event to which upstream gave none.
const UNKNOWN_TYPE: &str = "unknown";

/// What is known of a row besides the row.
#[derive(Debug, Clone, Copy)]
pub(in crate::globalsim) struct Context<'a> {
    /// The SIM that was asked for in the path; rows of another one are not what was asked for.
    pub asked: Option<&'a Iccid>,
    /// `iccid` of the answer around the rows.
    pub envelope: Option<&'a Value>,
    /// Whether the rows come from a SIM's or a device's own list, which has all details there are.
    pub own_list: bool,
}

/// Reads one row.
pub(in crate::globalsim) fn row(value: Value, context: Context<'_>) -> Result<Row, BadRow> {
    match decode(&value, context) {
        Ok(row) => Ok(row),
        Err(reason) => Err(bad(reason, &value)),
    }
}

pub(super) fn bad(reason: String, value: &Value) -> BadRow {
    let mut raw = value.to_string();
    let cut = (0..=BAD_ROW_BYTES_MAX.min(raw.len())).rev().find(|at| raw.is_char_boundary(*at)).unwrap_or(0);
    raw.truncate(cut);
    BadRow { reason, raw }
}

/// Whether an object has anything by which an event is known. An answer without a single one is of another API.
pub(super) fn looks_like_event(value: &Value) -> bool {
    ["event_id", "event_type", "timestamp"].iter().any(|name| value.get(name).is_some())
}

fn decode(value: &Value, context: Context<'_>) -> Result<Row, String> {
    let Value::Object(object) = value else { return Err("the row is no object".to_owned()) };
    if !looks_like_event(value) {
        return Err("the row has neither event_id nor event_type nor timestamp".to_owned());
    }
    if deeper_than(value, DEPTH_MAX) {
        return Err(format!("the row is nested deeper than {DEPTH_MAX}"));
    }
    let iccid = iccid(object.get("iccid"), context)?;
    let mut fields = Fields::new(object.clone());
    fields.take("iccid");
    let carries_details = fields.get("details").is_some();
    let mut event = named(&mut fields);
    event.iccid = iccid;
    networks(&mut fields, &mut event);
    event.signal_strength =
        fields.integer("signal_strength").and_then(|n| narrow(&mut fields, "signal_strength", n));
    event.details = fields.take("details");
    lift_details(&mut event);
    event.extra = fields.rest();
    check_lengths(&event)?;
    Ok(Row { content: content(&event), event, complete: context.own_list || carries_details })
}

fn named(fields: &mut Fields) -> Event {
    let event_type = fields.text("event_type").unwrap_or_else(|| UNKNOWN_TYPE.to_owned());
    let mut event = Event::new(String::new(), Arc::from(""), event_type);
    event.event_id = fields.text("event_id");
    event.msisdn = fields.text("msisdn");
    event.device_id = fields.text("device_id");
    event.timestamp = fields.text("timestamp");
    event.time = event.timestamp.as_deref().and_then(time::parse);
    event
}

/// The row's own, else the envelope's, else the one asked for. All that are given must agree.
pub(super) fn iccid(own: Option<&Value>, context: Context<'_>) -> Result<Option<Iccid>, String> {
    let read = |value: Option<&Value>, place: &str| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => match fields::text_of(value).map(|text| Iccid::parse(&text)) {
            Some(Ok(iccid)) => Ok(Some(iccid)),
            Some(Err(error)) => Err(format!("iccid {place}: {error}")),
            None => Err(format!("iccid {place} is neither text nor number")),
        },
    };
    let own = read(own, "of the row")?;
    let envelope = read(context.envelope, "of the answer")?;
    let given = [own.as_ref(), envelope.as_ref(), context.asked];
    let mut given = given.into_iter().flatten();
    let Some(first) = given.next() else { return Ok(None) };
    match given.find(|other| *other != first) {
        None => Ok(Some(first.clone())),
        Some(other) => {
            Err(format!("iccid {first} of the row is not {other}, which was asked for or answered"))
        }
    }
}

/// `network` of a change is its current_network. Both originals stay in `extra`, so the change can be read as sent.
fn networks(fields: &mut Fields, event: &mut Event) {
    let original = |fields: &Fields, name: &str| match fields.get(name) {
        Some(Value::Object(object)) => fields::network_of(object.clone()).0,
        _ => None,
    };
    let current = original(fields, "current_network");
    event.previous_network = original(fields, "previous_network");
    for name in ["current_network", "previous_network"] {
        if fields.get(name).is_none() {
            fields.take(name);
        }
    }
    if current.is_some() && event.event_type == "network_change" {
        // A `network` beside it would say something else: it stays in extra as it is.
        event.network = current;
    } else {
        event.network = fields.network("network").or(current);
    }
}

/// A whole number that is no i32 is no signal strength: it goes back to where it was.
fn narrow(fields: &mut Fields, name: &str, number: i64) -> Option<i32> {
    let narrow = i32::try_from(number).ok();
    if narrow.is_none() {
        fields.put_if_absent(name, Value::from(number));
    }
    narrow
}

/// Copies what the model names out of `details`, which itself stays as received.
fn lift_details(event: &mut Event) {
    let Some(Value::Object(details)) = &event.details else { return };
    let text = |name: &str| details.get(name).and_then(fields::text_of);
    let network = event.network.get_or_insert_default();
    for (slot, name) in [
        (&mut network.network_type, "network_type"),
        (&mut network.network_code, "network_code"),
        (&mut network.mcc, "mcc"),
        (&mut network.mnc, "mnc"),
        (&mut network.country_code, "country_code"),
    ] {
        if slot.is_none() {
            *slot = text(name);
        }
    }
    fields::complete(network);
    if *network == Network::default() {
        event.network = None;
    }
    if event.signal_strength.is_none() {
        let strength = details.get("signal_strength").and_then(fields::integer_of);
        event.signal_strength = strength.and_then(|n| i32::try_from(n).ok());
    }
    let used = details.get("current_usage_mb").and_then(fields::number_of);
    if used.is_some() && event.usage.is_none() {
        event.usage = Some(Usage { current_usage_mb: used, period: text("period") });
    }
}

fn check_lengths(event: &Event) -> Result<(), String> {
    let network = event.network.as_ref();
    for (name, text) in [
        ("event_id", event.event_id.as_deref()),
        ("event_type", Some(event.event_type.as_str())),
        ("device_id", event.device_id.as_deref()),
        ("msisdn", event.msisdn.as_deref()),
        ("timestamp", event.timestamp.as_deref()),
        ("network.country", network.and_then(|n| n.country.as_deref())),
        ("network.country_code", network.and_then(|n| n.country_code.as_deref())),
        ("network.operator", network.and_then(|n| n.operator.as_deref())),
        ("network.network_type", network.and_then(|n| n.network_type.as_deref())),
    ] {
        let bytes = text.map_or(0, str::len);
        if bytes > TEXT_BYTES_MAX {
            return Err(format!("{name} is {bytes} bytes long; at most {TEXT_BYTES_MAX} make sense"));
        }
    }
    Ok(())
}

/// Over what both shapes carry and what does not change by itself: msisdn and device_id are joined when upstream is
/// read, details and codes are missing from account-wide rows.
fn content(event: &Event) -> u32 {
    let mut hasher = FieldHasher::new("content");
    for network in [&event.network, &event.previous_network] {
        hasher.field(network.as_ref().and_then(|n| n.country.as_deref()));
        hasher.field(network.as_ref().and_then(|n| n.operator.as_deref()));
    }
    (hasher.finish_u64() >> 32) as u32
}

fn deeper_than(value: &Value, levels: usize) -> bool {
    let Some(left) = levels.checked_sub(1) else { return true };
    match value {
        Value::Array(items) => items.iter().any(|item| deeper_than(item, left)),
        Value::Object(object) => object.values().any(|item| deeper_than(item, left)),
        _ => false,
    }
}

/// Fills what `event` lacks from `richer`.
pub(super) fn merge(event: &mut Event, richer: Event) {
    fill(&mut event.iccid, richer.iccid);
    fill(&mut event.msisdn, richer.msisdn);
    fill(&mut event.device_id, richer.device_id);
    merge_network(&mut event.network, richer.network);
    merge_network(&mut event.previous_network, richer.previous_network);
    fill(&mut event.signal_strength, richer.signal_strength);
    fill(&mut event.usage, richer.usage);
    fill(&mut event.session, richer.session);
    fill(&mut event.details, richer.details);
    for (name, value) in richer.extra {
        merge_value(&mut event.extra, name, value);
    }
}

fn fill<T>(slot: &mut Option<T>, richer: Option<T>) {
    if slot.is_none() {
        *slot = richer;
    }
}

fn merge_network(slot: &mut Option<Network>, richer: Option<Network>) {
    match (slot, richer) {
        (Some(network), Some(richer)) => {
            fill(&mut network.country, richer.country);
            fill(&mut network.country_code, richer.country_code);
            fill(&mut network.operator, richer.operator);
            fill(&mut network.network_code, richer.network_code);
            fill(&mut network.mcc, richer.mcc);
            fill(&mut network.mnc, richer.mnc);
            fill(&mut network.network_type, richer.network_type);
        }
        (slot, richer) => fill(slot, richer),
    }
}

/// Objects are united level by level (`extra.current_network` of one shape lacks network_code); else the present
/// value stays.
fn merge_value(into: &mut Map<String, Value>, name: String, value: Value) {
    match (into.get_mut(&name), value) {
        (None | Some(Value::Null), value) => {
            into.insert(name, value);
        }
        (Some(Value::Object(present)), Value::Object(richer)) => {
            richer.into_iter().for_each(|(name, value)| merge_value(present, name, value));
        }
        _ => {}
    }
}
