//! The JSON form: CloudEvents 1.0, structured mode, fields in the order of design section 3.
//!
//! The log keeps it without `cursor`, since a cursor depends on where the event lies; [`with_cursor`] splices it in
//! front once per event, and every subscriber shares the result.

use bytes::Bytes;
use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Cursor, Event, Flag, Iccid, Network, Session, StoredEvent, Usage, cursor::CURSOR_CHARS};

#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: Timestamp,
    datacontenttype: &'static str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    event_id: Option<&'a str>,
    event_type: &'a str,
    iccid: Option<&'a Iccid>,
    msisdn: Option<&'a str>,
    device_id: Option<&'a str>,
    timestamp: Option<&'a str>,
    observed_at: Timestamp,
    network: Option<&'a Network>,
    previous_network: Option<&'a Network>,
    signal_strength: Option<i32>,
    usage: Option<&'a Usage>,
    session: Option<&'a Session>,
    details: Option<&'a Value>,
    extra: &'a Map<String, Value>,
    flags: Vec<&'static str>,
}

#[derive(Deserialize)]
struct OwnedCloudEvent {
    id: String,
    source: String,
    r#type: String,
    time: Timestamp,
    data: OwnedData,
}

#[derive(Deserialize)]
struct OwnedData {
    event_id: Option<String>,
    event_type: String,
    iccid: Option<Iccid>,
    msisdn: Option<String>,
    device_id: Option<String>,
    timestamp: Option<String>,
    observed_at: Timestamp,
    network: Option<Network>,
    previous_network: Option<Network>,
    signal_strength: Option<i32>,
    usage: Option<Usage>,
    session: Option<Session>,
    details: Option<Value>,
    #[serde(default)]
    extra: Map<String, Value>,
    #[serde(default)]
    flags: Vec<String>,
}

/// `observed_at` in milliseconds, as every encoding shows it.
pub fn to_millis(time: Timestamp) -> Timestamp {
    time.round(Unit::Millisecond).unwrap_or(time)
}

/// Appends the JSON form, without cursor, to `out`.
pub fn write(event: &Event, observed_at: Timestamp, out: &mut Vec<u8>) {
    let observed_at = to_millis(observed_at);
    let cloud = CloudEvent {
        specversion: "1.0",
        id: &event.id,
        source: &event.source,
        r#type: event.cloud_type(),
        subject: event.iccid.as_ref().map(Iccid::as_str),
        time: event.time.unwrap_or(observed_at),
        datacontenttype: "application/json",
        data: Data {
            event_id: event.event_id.as_deref(),
            event_type: &event.event_type,
            iccid: event.iccid.as_ref(),
            msisdn: event.msisdn.as_deref(),
            device_id: event.device_id.as_deref(),
            timestamp: event.timestamp.as_deref(),
            observed_at,
            network: event.network.as_ref(),
            previous_network: event.previous_network.as_ref(),
            signal_strength: event.signal_strength,
            usage: event.usage.as_ref(),
            session: event.session.as_ref(),
            details: event.details.as_ref(),
            extra: &event.extra,
            flags: event.flags.iter().map(Flag::as_str).collect(),
        },
    };
    // Writing plain values into a Vec has no way to fail: no I/O, no map with keys that are not text.
    let _ = serde_json::to_writer(out, &cloud);
}

/// Reads the JSON form, with or without cursor, as it was written; gives the event and its `observed_at`.
///
/// # Errors
/// Where the text is not such an event.
pub fn read(json: &[u8]) -> Result<(Event, Timestamp), serde_json::Error> {
    let cloud: OwnedCloudEvent = serde_json::from_slice(json)?;
    let data = cloud.data;
    let flags: super::Flags = data.flags.iter().filter_map(|flag| Flag::parse(flag)).collect();
    let event = Event {
        id: cloud.id,
        source: cloud.source.into(),
        event_id: data.event_id,
        gateway: cloud.r#type.starts_with(super::GATEWAY_PREFIX),
        event_type: data.event_type,
        iccid: data.iccid,
        msisdn: data.msisdn,
        device_id: data.device_id,
        timestamp: data.timestamp,
        time: (!flags.contains(Flag::TimeUnknown)).then_some(cloud.time),
        network: data.network,
        previous_network: data.previous_network,
        signal_strength: data.signal_strength,
        usage: data.usage,
        session: data.session,
        details: data.details,
        extra: data.extra,
        flags,
        provenance: None,
    };
    Ok((event, data.observed_at))
}

/// Bytes that [`with_cursor`] adds.
pub const CURSOR_BYTES: usize = r#""cursor":"","#.len() + CURSOR_CHARS;

/// Appends `json` (an object without cursor) with the cursor in front.
pub fn write_with_cursor(json: &[u8], cursor: Cursor, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"cursor":""#);
    out.extend_from_slice(&cursor.encode());
    out.extend_from_slice(br#"","#);
    out.extend_from_slice(json.get(1..).unwrap_or_default());
}

/// The stored event as frontends show it.
pub fn with_cursor(event: &StoredEvent, incarnation: u64) -> Bytes {
    let mut out = Vec::with_capacity(event.json().len() + CURSOR_BYTES);
    write_with_cursor(event.json(), event.cursor(incarnation), &mut out);
    out.into()
}
