//! Ready-made bytes: what a batch of events looks like in each encoding, built once and shared.

use std::sync::Arc;

use bytes::Bytes;

use crate::event::{Cursor, FieldPolicy, StoredEvent, json, policy, protobuf};

/// How events go to a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// JSON events joined by commas, closed by `]}`: the end of a WebSocket `events` message.
    WebSocket,
    /// Whole Server-Sent Events: `id:` and `data:` lines.
    Sse {
        /// With an `event:` line naming the event type.
        named: bool,
    },
    /// Elements of `repeated Event events = 1`, then `string cursor = 2`.
    Protobuf,
    /// JSON events apart ([`Batch::items`]), for who sends each by itself: webhooks.
    Items,
}

/// One event of a batch in the encoding [`Encoding::Items`].
#[derive(Debug, Clone)]
pub struct Item {
    /// As stored: its sequence, id and SIM.
    pub event: StoredEvent,
    /// Its JSON form with cursor, shared with everyone else who gets the event in this policy.
    pub body: Bytes,
}

/// The events of a batch, or of the rest of one.
#[derive(Debug, Clone, Default)]
pub struct Items {
    all: Option<Arc<[Item]>>,
    skip: usize,
}

impl Items {
    /// Without the first `count` of all.
    pub(super) fn after(&self, count: usize) -> Self {
        Self { all: self.all.clone(), skip: count }
    }
}

impl std::ops::Deref for Items {
    type Target = [Item];

    fn deref(&self) -> &[Item] {
        self.all.as_deref().and_then(|all| all.get(self.skip..)).unwrap_or_default()
    }
}

/// A batch as it goes to the socket.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Shared by all subscribers of the same encoding, policy and predicate; empty for [`Encoding::Items`].
    pub bytes: Bytes,
    /// The events apart; empty but for [`Encoding::Items`].
    pub items: Items,
    /// Events inside.
    pub count: u32,
    /// Resume after this batch.
    pub cursor: Cursor,
}

/// One event, encoded, without what joins it to its neighbours.
///
/// # Errors
/// Where the stored JSON can't be read, which the log's checksum makes a defect, not an accident.
pub fn encode(
    event: &StoredEvent,
    incarnation: u64,
    encoding: Encoding,
    policy: Option<&FieldPolicy>,
) -> Result<Bytes, serde_json::Error> {
    let cursor = event.cursor(incarnation);
    match (encoding, policy) {
        (Encoding::Protobuf, None) => protobuf::encode_element(event, cursor).map(Bytes::from),
        (Encoding::Protobuf, Some(policy)) => policy::rewrite_element(event, policy, cursor).map(Bytes::from),
        (Encoding::WebSocket | Encoding::Items, None) => Ok(json::with_cursor(event, incarnation)),
        (Encoding::WebSocket | Encoding::Items, Some(policy)) => {
            policy::rewrite_json(event, policy, cursor).map(Bytes::from)
        }
        (Encoding::Sse { named }, _) => {
            let json = encode(event, incarnation, Encoding::WebSocket, policy)?;
            let mut out = Vec::with_capacity(json.len() + 96);
            out.extend_from_slice(b"id: ");
            out.extend_from_slice(&cursor.encode());
            if named {
                out.extend_from_slice(b"\nevent: ");
                let name = event.keys().map_or("", |keys| keys.event_type);
                // A line break would end the field; upstream may spell a type in any way.
                out.extend(name.bytes().map(|b| if b.is_ascii_control() { b'_' } else { b }));
            }
            out.extend_from_slice(b"\ndata: ");
            out.extend_from_slice(&json);
            out.extend_from_slice(b"\n\n");
            Ok(out.into())
        }
    }
}

/// Joins encoded events and their end into one piece; notes where each event starts, so that a reader who joins in
/// the middle takes the rest.
pub(super) struct Joiner {
    encoding: Encoding,
    out: Vec<u8>,
    /// What [`Encoding::Items`] gathers instead of bytes, and how many bytes they hold.
    items: Vec<Item>,
    items_bytes: usize,
    /// Sequence of each event and where it starts.
    pub(super) starts: Vec<(u64, u32)>,
}

impl Joiner {
    pub(super) fn new(encoding: Encoding, capacity: usize) -> Self {
        let capacity = if encoding == Encoding::Items { 0 } else { capacity };
        let out = Vec::with_capacity(capacity);
        Self { encoding, out, items: Vec::new(), items_bytes: 0, starts: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.out.len() + self.items_bytes
    }

    pub(super) fn push(&mut self, event: &StoredEvent, encoded: &Bytes) {
        if self.encoding == Encoding::WebSocket && !self.starts.is_empty() {
            self.out.push(b',');
        }
        self.starts.push((event.seq(), self.out.len() as u32));
        if self.encoding == Encoding::Items {
            self.items_bytes += encoded.len();
            self.items.push(Item { event: event.clone(), body: encoded.clone() });
        } else {
            self.out.extend_from_slice(encoded);
        }
    }

    /// Appends what another joiner of the same encoding holds.
    pub(super) fn extend(&mut self, other: Self) {
        if self.encoding == Encoding::WebSocket && !self.starts.is_empty() && !other.starts.is_empty() {
            self.out.push(b',');
        }
        let base = self.out.len() as u32;
        self.starts.extend(other.starts.into_iter().map(|(seq, at)| (seq, base + at)));
        self.out.extend_from_slice(&other.out);
        self.items_bytes += other.items_bytes;
        self.items.extend(other.items);
    }

    /// The joined events without an end.
    pub(super) fn into_items(self) -> Bytes {
        self.out.into()
    }

    /// The batch, with what ends it in this encoding.
    pub(super) fn finish(mut self, cursor: Cursor) -> (Batch, Vec<(u64, u32)>) {
        match self.encoding {
            Encoding::WebSocket => self.out.extend_from_slice(b"]}"),
            Encoding::Sse { .. } | Encoding::Items => {}
            Encoding::Protobuf => {
                let text = cursor.encode();
                self.out.push(0x12);
                self.out.push(text.len() as u8);
                self.out.extend_from_slice(&text);
            }
        }
        let count = self.starts.len() as u32;
        let all = (!self.items.is_empty()).then(|| self.items.into());
        (Batch { bytes: self.out.into(), items: Items { all, skip: 0 }, count, cursor }, self.starts)
    }
}
