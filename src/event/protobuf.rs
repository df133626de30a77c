//! The protobuf form: `simcast.v1.Event`. Encoded once per event; `cursor` (field 100) is appended likewise.

use jiff::Timestamp;
use prost::Message as _;

use super::{Cursor, Event, Iccid, Network, Session, StoredEvent, Usage, json};
use crate::proto;

/// A wire timestamp.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// A wire timestamp understood; None outside what [`Timestamp`] holds.
pub fn from_timestamp(time: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

impl From<&Network> for proto::Network {
    fn from(n: &Network) -> Self {
        Self {
            country: n.country.clone(),
            country_code: n.country_code.clone(),
            operator: n.operator.clone(),
            network_code: n.network_code.clone(),
            mcc: n.mcc.clone(),
            mnc: n.mnc.clone(),
            network_type: n.network_type.clone(),
        }
    }
}

impl From<&Usage> for proto::Usage {
    fn from(u: &Usage) -> Self {
        Self {
            current_usage_mb: u.current_usage_mb.as_ref().map(ToString::to_string),
            period: u.period.clone(),
        }
    }
}

impl From<&Session> for proto::Session {
    fn from(s: &Session) -> Self {
        let number = |n: &Option<serde_json::Number>| n.as_ref().map(ToString::to_string);
        Self {
            session_id: s.session_id.clone(),
            start_time: s.start_time.clone(),
            end_time: s.end_time.clone(),
            duration_seconds: s.duration_seconds,
            upload_mb: number(&s.upload_mb),
            download_mb: number(&s.download_mb),
            total_mb: number(&s.total_mb),
            ip_address: s.ip_address.clone(),
        }
    }
}

/// The message for an event; `cursor` is left empty.
pub fn message(event: &Event, observed_at: Timestamp) -> proto::Event {
    let text = |iccid: &Option<Iccid>| iccid.as_ref().map(|i| i.as_str().to_owned()).unwrap_or_default();
    proto::Event {
        id: event.id.clone(),
        source: event.source.to_string(),
        r#type: event.cloud_type(),
        subject: text(&event.iccid),
        time: Some(timestamp(event.time.unwrap_or(observed_at))),
        event_type: event.event_type.clone(),
        iccid: text(&event.iccid),
        msisdn: event.msisdn.clone(),
        device_id: event.device_id.clone(),
        observed_at: Some(timestamp(observed_at)),
        network: event.network.as_ref().map(Into::into),
        previous_network: event.previous_network.as_ref().map(Into::into),
        signal_strength: event.signal_strength,
        usage: event.usage.as_ref().map(Into::into),
        session: event.session.as_ref().map(Into::into),
        details_json: event.details.as_ref().map(ToString::to_string).unwrap_or_default(),
        extra_json: if event.extra.is_empty() {
            String::new()
        } else {
            serde_json::to_string(&event.extra).unwrap_or_default()
        },
        flags: event.flags.iter().map(|flag| flag.as_str().to_owned()).collect(),
        event_id: event.event_id.clone(),
        timestamp: event.timestamp.clone(),
        cursor: String::new(),
    }
}

/// Why a stored event can't be shown as protobuf: its JSON is damaged.
pub type ProtobufError = serde_json::Error;

/// Encodes a stored event with its cursor as one element of a `repeated Event events = 1` field: tag, length,
/// message. A batch is then the plain concatenation of such elements.
///
/// # Errors
/// Where the stored JSON can't be read.
pub fn encode_element(event: &StoredEvent, cursor: Cursor) -> Result<Vec<u8>, ProtobufError> {
    let (decoded, observed_at) = json::read(event.json())?;
    Ok(element(&decoded, observed_at, cursor))
}

/// As [`encode_element`], from a decoded event.
pub fn element(event: &Event, observed_at: Timestamp, cursor: Cursor) -> Vec<u8> {
    element_of(message(event, observed_at), cursor)
}

/// As [`element`], from a message.
pub fn element_of(mut message: proto::Event, cursor: Cursor) -> Vec<u8> {
    message.cursor = cursor.to_string();
    let len = message.encoded_len();
    let mut out = Vec::with_capacity(len + 1 + prost::length_delimiter_len(len));
    out.push(0x0A);
    // A Vec grows as needed: encoding into it can't run out of room.
    let _ = message.encode_length_delimited(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests_support::full_event;

    #[test]
    fn a_batch_is_the_concatenation_of_its_elements() {
        let (event, observed_at) = (full_event(), "2025-11-05T08:00:00.412Z".parse().unwrap());
        let cursor = Cursor { incarnation: 1, seq: 2, tag: 3 };
        let one = element(&event, observed_at, cursor);
        let batch = [one.clone(), one].concat();
        let decoded = proto::SubscribeResponse::decode(batch.as_slice()).unwrap();
        assert_eq!(decoded.events.len(), 2);
        assert_eq!(decoded.events[0], decoded.events[1]);
        assert_eq!(decoded.events[0].cursor, cursor.to_string());
        let mut bare = decoded.events[0].clone();
        bare.cursor.clear();
        assert_eq!(bare, message(&event, observed_at));
    }
}
