//! One event as a message of the stream, both ways.
//!
//! The body is the event's JSON form without its cursor, so that any NATS client can read it. What the log keeps of
//! an event beside that form is in headers, since every gateway's mirror must come to the same bytes:
//!
//! | header | what |
//! |---|---|
//! | `Nats-Msg-Id` | the event's id: the server refuses it twice within its window |
//! | `content-type` | `application/cloudevents+json` |
//! | `Simcast-Identity` | [`Identity::hash`](crate::event::Identity::hash), 16 hex digits |
//! | `Simcast-Content` | hash of the non-volatile content, 8 hex digits |
//! | `Simcast-Read` | how it came: reader, when its answer was asked for, was there, and when the last one was asked for that did not show it or `-`; microseconds since the epoch |
//!
//! Only `Nats-Msg-Id` and the body are needed: what another program publishes as an event without the rest is read
//! all the same, with the identity that its fields give.

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::{
    event::{
        Provenance, SealError, Sealed, Via,
        identity::encode_id,
        json::{NotAnEvent, seal_again},
    },
    log::{BODY_BYTES_MAX, Entry},
};

pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";
const CONTENT_TYPE: &str = "content-type";
const CLOUD_EVENT: &str = "application/cloudevents+json";
const IDENTITY: &str = "Simcast-Identity";
const CONTENT: &str = "Simcast-Content";
const READ: &str = "Simcast-Read";

/// The headers of an event; a server and batches add others.
pub(super) const KEPT_HEADERS: [&str; 5] = [MESSAGE_ID, CONTENT_TYPE, IDENTITY, CONTENT, READ];

/// Room for the headers of a batch and a fence, which are added when the message is published.
const CONTROL_BYTES: usize = 1024;

/// A message to publish.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

impl Draft {
    /// The message of an event; `payload_max` is what the server takes, headers included.
    ///
    /// # Errors
    /// [`SealError`] where it is too large.
    pub(super) fn new(
        entry: &Entry,
        subject: String,
        provenance: Option<Provenance>,
        payload_max: usize,
    ) -> Result<Self, SealError> {
        let payload = entry.sealed.body.slice(entry.sealed.keys_len as usize..);
        let mut headers = HeaderMap::new();
        // Ids are of these characters already; a header must not break whatever they are.
        let is_plain = entry.sealed.id.bytes().all(|byte| byte.is_ascii_graphic());
        let id = if is_plain { entry.sealed.id.clone() } else { encode_id(&entry.sealed.id) };
        headers.insert(MESSAGE_ID, id);
        headers.insert(CONTENT_TYPE, CLOUD_EVENT);
        headers.insert(IDENTITY, format!("{:016x}", entry.identity));
        headers.insert(CONTENT, format!("{:08x}", entry.content));
        if let Some(read) = provenance {
            headers.insert(READ, write_read(read));
        }
        let draft = Self { subject, headers, payload };
        let too_large = |bytes, max| SealError { field: "event", bytes, max };
        let bytes = draft.bytes() + CONTROL_BYTES;
        if bytes > payload_max {
            return Err(too_large(bytes, payload_max));
        }
        if entry.sealed.body.len() > BODY_BYTES_MAX {
            return Err(too_large(entry.sealed.body.len(), BODY_BYTES_MAX));
        }
        // A message that no mirror can read would be appended again for ever.
        match seal_again(&draft.payload, provenance) {
            Ok((again, _)) if again.body == entry.sealed.body => Ok(draft),
            _ => Err(too_large(draft.payload.len(), 0)),
        }
    }

    /// Bytes of headers and body as the server counts them.
    pub(super) fn bytes(&self) -> usize {
        const FRAME: usize = "NATS/1.0\r\n\r\n".len();
        let fields = self.headers.iter().map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(|value| name.len() + value.as_str().len() + ": \r\n".len()).sum::<usize>()
        });
        FRAME + fields.sum::<usize>() + self.payload.len()
    }
}

/// The event of a message.
///
/// # Errors
/// [`NotAnEvent`] where it is none: the mirror leaves a hole.
pub(super) fn read(headers: Option<&HeaderMap>, payload: &[u8]) -> Result<Entry, NotAnEvent> {
    let header = |name: &str| headers.and_then(|headers| headers.get(name)).map(|value| value.as_str());
    let (sealed, computed): (Sealed, u64) = seal_again(payload, header(READ).and_then(parse_read))?;
    if sealed.body.len() > BODY_BYTES_MAX {
        return Err(SealError { field: "event", bytes: sealed.body.len(), max: BODY_BYTES_MAX }.into());
    }
    let identity = header(IDENTITY).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(computed);
    let content = header(CONTENT).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or_default();
    Ok(Entry { sealed, identity, content })
}

fn write_read(read: Provenance) -> String {
    let not_seen = read.not_seen_us.map_or_else(|| "-".to_owned(), |us| us.to_string());
    format!("{} {} {} {not_seen}", read.via.as_str(), read.asked_us, read.answered_us)
}

fn parse_read(text: &str) -> Option<Provenance> {
    let mut words = text.split(' ');
    let via = Via::parse(words.next()?)?;
    let (asked_us, answered_us) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let not_seen_us = match words.next()? {
        "-" => None,
        text => Some(text.parse().ok()?),
    };
    Some(Provenance { via, asked_us, answered_us, not_seen_us })
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::event::tests_support::full_event;

    fn entry(provenance: Option<Provenance>) -> Entry {
        let mut event = full_event();
        event.provenance = provenance;
        let sealed =
            event.seal("2025-11-05T08:00:00.412Z".parse().unwrap(), SignedDuration::from_secs(300)).unwrap();
        Entry { sealed, identity: u64::MAX - 1, content: 7 }
    }

    #[test]
    fn an_event_survives_as_a_message_with_all_that_the_log_keeps_of_it() {
        let at = Timestamp::UNIX_EPOCH;
        for provenance in [
            None,
            Some(Provenance::new(Via::CatchUp, at, at, None)),
            Some(Provenance { via: Via::Tail, asked_us: 3, answered_us: 5, not_seen_us: Some(-2) }),
        ] {
            let entry = entry(provenance);
            let draft = Draft::new(&entry, "s".into(), provenance, 1 << 20).unwrap();
            let back = read(Some(&draft.headers), &draft.payload).unwrap();
            assert_eq!((back.identity, back.content), (entry.identity, entry.content));
            assert_eq!((back.sealed.body, back.sealed.keys_len), (entry.sealed.body, entry.sealed.keys_len));
        }
    }

    #[test]
    fn what_another_program_published_has_the_identity_of_its_fields() {
        let draft = Draft::new(&entry(None), "s".into(), None, 1 << 20).unwrap();
        let event = full_event();
        let identity = crate::event::Identity {
            event_id: event.event_id.as_deref(),
            iccid: event.iccid.as_ref().map(crate::event::Iccid::as_str),
            event_type: &event.event_type,
            timestamp: event.timestamp.as_deref(),
        };
        assert_eq!(read(None, &draft.payload).unwrap().identity, identity.hash());
        assert!(read(None, b"hello").is_err() && read(None, b"{}").is_err());
    }

    #[test]
    fn an_event_that_the_server_would_not_take_is_refused_here() {
        let bytes = Draft::new(&entry(None), "s".into(), None, 1 << 20).unwrap().bytes() + CONTROL_BYTES;
        assert!(Draft::new(&entry(None), "s".into(), None, bytes).is_ok());
        assert_eq!(Draft::new(&entry(None), "s".into(), None, bytes - 1).unwrap_err().bytes, bytes);
    }
}
