//! The JSON form: CloudEvents 1.0, structured mode, fields in the order of design section 3.
//!
//! The log keeps it without `cursor`, since a cursor depends on where the event lies; [`with_cursor`] splices it in
//! front once per event, and every subscriber shares the result.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Cursor, Event, Flag, Iccid, Identity, Keys, Network, Provenance, SealError, Sealed, Session, StoredEvent,
    Usage, cursor::CURSOR_CHARS,
};

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

/// What [`Keys`] hold, borrowed from a JSON form. [`read`] would make texts of it all, and a mirror of millions of
/// events is rebuilt through this.
#[derive(Deserialize)]
struct Seen<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    r#type: Text<'a>,
    time: Timestamp,
    #[serde(borrow)]
    data: SeenData<'a>,
}

#[derive(Deserialize)]
struct SeenData<'a> {
    #[serde(borrow)]
    event_id: Option<Text<'a>>,
    #[serde(borrow)]
    event_type: Text<'a>,
    #[serde(borrow)]
    iccid: Option<Text<'a>>,
    #[serde(borrow)]
    device_id: Option<Text<'a>>,
    #[serde(borrow)]
    timestamp: Option<Text<'a>>,
    observed_at: Timestamp,
    #[serde(borrow)]
    network: Option<SeenNetwork<'a>>,
    #[serde(borrow, default)]
    flags: Vec<Text<'a>>,
}

#[derive(Deserialize)]
struct SeenNetwork<'a> {
    #[serde(borrow, default)]
    country: Option<Text<'a>>,
    #[serde(borrow, default)]
    country_code: Option<Text<'a>>,
    #[serde(borrow, default)]
    operator: Option<Text<'a>>,
    #[serde(borrow, default)]
    network_type: Option<Text<'a>>,
}

/// Borrowed where nothing in it is escaped. A type of its own, since serde borrows no `Cow` inside an `Option`.
#[derive(Debug, Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

impl Text<'_> {
    /// The text, where there is one.
    pub(crate) fn of<'a>(text: Option<&'a Text<'_>>) -> Option<&'a str> {
        text.map(|text| text.0.as_ref())
    }
}

/// Why a text can't be stored as an event.
#[derive(Debug, thiserror::Error)]
pub enum NotAnEvent {
    /// It is no event's JSON form.
    #[error("it is no event: {0}")]
    Json(#[from] serde_json::Error),
    /// A field is too long.
    #[error(transparent)]
    TooLong(#[from] SealError),
    /// The cursor could not be spliced into it.
    #[error("it is no JSON object without a cursor")]
    Form,
}

/// Seals an event again out of its JSON form, exactly as [`Event::seal`] did, and gives its
/// [`Identity::hash`](super::Identity::hash). How it came is not in the JSON.
///
/// # Errors
/// [`NotAnEvent`]; retrying does not help.
pub fn seal_again(json: &[u8], provenance: Option<Provenance>) -> Result<(Sealed, u64), NotAnEvent> {
    if !json.starts_with(b"{\"") || json.starts_with(br#"{"cursor""#) {
        return Err(NotAnEvent::Form);
    }
    let seen: Seen<'_> = serde_json::from_slice(json)?;
    let data = &seen.data;
    let flags: super::Flags = data.flags.iter().filter_map(|flag| Flag::parse(&flag.0)).collect();
    let network = data.network.as_ref();
    let time = if flags.contains(Flag::TimeUnknown) { data.observed_at } else { seen.time };
    let keys = Keys {
        flags,
        gateway: seen.r#type.0.starts_with(super::GATEWAY_PREFIX),
        time_us: time.as_microsecond(),
        observed_us: data.observed_at.as_microsecond(),
        provenance,
        id: &seen.id.0,
        event_type: &data.event_type.0,
        iccid: Text::of(data.iccid.as_ref()),
        device_id: Text::of(data.device_id.as_ref()),
        country: Text::of(network.and_then(|n| n.country.as_ref())),
        country_code: Text::of(network.and_then(|n| n.country_code.as_ref())),
        operator: Text::of(network.and_then(|n| n.operator.as_ref())),
        network_type: Text::of(network.and_then(|n| n.network_type.as_ref())),
    };
    let identity = Identity {
        event_id: Text::of(data.event_id.as_ref()),
        iccid: keys.iccid,
        event_type: keys.event_type,
        timestamp: Text::of(data.timestamp.as_ref()),
    };
    let identity = identity.hash();
    let mut body = Vec::with_capacity(json.len() + 256);
    keys.encode(&mut body)?;
    let keys_len = body.len() as u32;
    body.extend_from_slice(json);
    let sealed =
        Sealed { id: seen.id.0.into_owned(), keys_len, body: body.into(), observed_at: data.observed_at };
    Ok((sealed, identity))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Flags, Via, tests_support::full_event};

    proptest! {
        #[test]
        fn sealing_again_gives_the_same_bytes(
            texts in proptest::array::uniform6(proptest::option::of(".{0,12}")),
            id in ".{1,20}", gateway: bool, flags in 0u16..256, times in (0i64..4_000_000_000_000, 0i64..4_000_000_000_000),
            network: bool, read in proptest::option::of(0_i64..4_000_000_000_000_000),
        ) {
            let [event_id, device, country, code, operator, rat] = texts;
            let mut event = if gateway {
                Event::gateway(&*id, "simcast.gap", Timestamp::from_millisecond(times.0).unwrap(), Map::new())
            } else {
                full_event()
            };
            event.id = id;
            event.event_id = event_id;
            event.device_id = device;
            event.network = network.then(|| Network {
                country, country_code: code, operator, network_type: rat, ..Network::default()
            });
            event.flags = Flags(flags & !(Flag::TimeUnknown as u16));
            event.provenance = read.map(|us| Provenance {
                via: Via::Sweep, asked_us: us, answered_us: us + 1, not_seen_us: (us % 2 == 0).then_some(us) });
            if times.1 % 5 == 0 {
                event.time = None;
            }
            let identity = Identity {
                event_id: event.event_id.as_deref(), iccid: event.iccid.as_ref().map(Iccid::as_str),
                event_type: &event.event_type, timestamp: event.timestamp.as_deref(),
            }.hash();
            let (id, provenance) = (event.id.clone(), event.provenance);
            let sealed = event.seal(Timestamp::from_millisecond(times.1).unwrap(), jiff::SignedDuration::from_secs(300)).unwrap();
            let json = &sealed.body[sealed.keys_len as usize..];
            let (again, hash) = seal_again(json, provenance).unwrap();
            prop_assert_eq!((&again.body, again.keys_len, &again.id, again.observed_at, hash),
                (&sealed.body, sealed.keys_len, &id, sealed.observed_at, identity));
        }

        #[test]
        fn foreign_bytes_are_refused_quietly(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(seal_again(&bytes, None).is_err());
        }
    }

    #[test]
    fn what_the_cursor_can_not_be_spliced_into_is_refused() {
        let sealed = full_event().seal(Timestamp::UNIX_EPOCH, jiff::SignedDuration::MAX).unwrap();
        let json = std::str::from_utf8(&sealed.body[sealed.keys_len as usize..]).unwrap();
        assert!(seal_again(json.as_bytes(), None).is_ok());
        let shown = with_cursor(&sealed.clone().at(1), 1);
        for bad in [format!(" {json}"), format!("[{json}]"), String::from_utf8(shown.to_vec()).unwrap()] {
            assert!(matches!(seal_again(bad.as_bytes(), None), Err(NotAnEvent::Form)), "{bad}");
        }
    }
}
