//! What filters and indexes look at, in front of each stored body, readable without parsing JSON.
//!
//! Layout, little-endian: flags u16, gateway u8, time i64 and observed_at i64 (microseconds since the epoch), the
//! [`Provenance`] in 25 bytes, then eight texts, each a u16 length (`0xFFFF` = absent) and its bytes: id, event_type,
//! iccid, device_id, country, country_code, operator, network_type.

use bytes::Bytes;
use jiff::Timestamp;

use super::{Cursor, Event, Provenance, cursor, provenance};

/// One mark on an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Flag {
    /// Observed more than `late_after_s` after its time.
    Late = 1,
    /// Read by the backfill of the first start.
    Backfill = 1 << 1,
    /// Made by simcast out of other data.
    Derived = 1 << 2,
    /// Read again from upstream after the log lost it.
    Repaired = 1 << 3,
    /// Appended without details, which may follow as `<id>~details`.
    Partial = 1 << 4,
    /// The details of a partial event.
    Enriched = 1 << 5,
    /// Another identity under an event_id already taken.
    Conflict = 1 << 6,
    /// Upstream's timestamp could not be read.
    TimeUnknown = 1 << 7,
}

impl Flag {
    /// Every flag, in the order in which they are written.
    pub const ALL: [Self; 8] = [
        Self::Late,
        Self::Backfill,
        Self::Derived,
        Self::Repaired,
        Self::Partial,
        Self::Enriched,
        Self::Conflict,
        Self::TimeUnknown,
    ];

    /// As spelled in every encoding.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Backfill => "backfill",
            Self::Derived => "derived",
            Self::Repaired => "repaired",
            Self::Partial => "partial",
            Self::Enriched => "enriched",
            Self::Conflict => "conflict",
            Self::TimeUnknown => "time_unknown",
        }
    }

    /// Reads the spelling, without case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flag| flag.as_str().eq_ignore_ascii_case(text))
    }
}

/// A set of [`Flag`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(pub u16);

impl Flags {
    /// Adds one.
    pub fn insert(&mut self, flag: Flag) {
        self.0 |= flag as u16;
    }

    /// Whether one is in.
    pub fn contains(self, flag: Flag) -> bool {
        self.0 & flag as u16 != 0
    }

    /// Whether the sets share one.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The flags in, in writing order.
    pub fn iter(self) -> impl Iterator<Item = Flag> {
        Flag::ALL.into_iter().filter(move |flag| self.contains(*flag))
    }
}

impl FromIterator<Flag> for Flags {
    fn from_iter<I: IntoIterator<Item = Flag>>(flags: I) -> Self {
        let mut set = Self::default();
        flags.into_iter().for_each(|flag| set.insert(flag));
        set
    }
}

/// The filterable part of an event, borrowed from wherever it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keys<'a> {
    /// Marks.
    pub flags: Flags,
    /// One of the gateway's own.
    pub gateway: bool,
    /// When it happened, microseconds since the epoch; `observed_us` where upstream's timestamp is unreadable.
    pub time_us: i64,
    /// When it was appended, microseconds since the epoch.
    pub observed_us: i64,
    /// How it came; None for the gateway's own.
    pub provenance: Option<Provenance>,
    /// Event id.
    pub id: &'a str,
    /// Raw event type.
    pub event_type: &'a str,
    /// SIM.
    pub iccid: Option<&'a str>,
    /// Device.
    pub device_id: Option<&'a str>,
    /// Country name of `network`.
    pub country: Option<&'a str>,
    /// ISO code of `network`.
    pub country_code: Option<&'a str>,
    /// Operator of `network`.
    pub operator: Option<&'a str>,
    /// Radio access technology of `network`.
    pub network_type: Option<&'a str>,
}

/// Why an event can't be stored. It is bad input: retrying does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {bytes} bytes long; at most {max} can be stored")]
pub struct SealError {
    /// Which field.
    pub field: &'static str,
    /// Its length.
    pub bytes: usize,
    /// The bound.
    pub max: usize,
}

/// Why stored bytes are no keys: the record is damaged or of a later version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stored event keys are damaged")]
pub struct KeysError;

const ABSENT: u16 = u16::MAX;
const TEXT_BYTES_MAX: usize = ABSENT as usize - 1;
const FIXED_BYTES: usize = PROVENANCE_AT + provenance::BYTES;
const PROVENANCE_AT: usize = 19;

impl<'a> Keys<'a> {
    /// The keys of an event about to be stored.
    pub fn of(event: &'a Event, observed_at: Timestamp) -> Self {
        let network = event.network.as_ref();
        Self {
            flags: event.flags,
            gateway: event.gateway,
            time_us: event.time.unwrap_or(observed_at).as_microsecond(),
            observed_us: observed_at.as_microsecond(),
            provenance: event.provenance,
            id: &event.id,
            event_type: &event.event_type,
            iccid: event.iccid.as_ref().map(super::Iccid::as_str),
            device_id: event.device_id.as_deref(),
            country: network.and_then(|n| n.country.as_deref()),
            country_code: network.and_then(|n| n.country_code.as_deref()),
            operator: network.and_then(|n| n.operator.as_deref()),
            network_type: network.and_then(|n| n.network_type.as_deref()),
        }
    }

    /// Appends the stored form.
    ///
    /// # Errors
    /// [`SealError`] where a text is longer than 65,534 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), SealError> {
        out.extend_from_slice(&self.flags.0.to_le_bytes());
        out.push(u8::from(self.gateway));
        out.extend_from_slice(&self.time_us.to_le_bytes());
        out.extend_from_slice(&self.observed_us.to_le_bytes());
        Provenance::encode(self.provenance, out);
        for (field, text) in [
            ("id", Some(self.id)),
            ("event_type", Some(self.event_type)),
            ("iccid", self.iccid),
            ("device_id", self.device_id),
            ("network.country", self.country),
            ("network.country_code", self.country_code),
            ("network.operator", self.operator),
            ("network.network_type", self.network_type),
        ] {
            match text {
                None => out.extend_from_slice(&ABSENT.to_le_bytes()),
                Some(text) if text.len() <= TEXT_BYTES_MAX => {
                    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
                Some(text) => return Err(SealError { field, bytes: text.len(), max: TEXT_BYTES_MAX }),
            }
        }
        Ok(())
    }

    /// Reads the stored form; `bytes` may go on behind it.
    ///
    /// # Errors
    /// [`KeysError`] where the bytes are not what [`Keys::encode`] wrote.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, KeysError> {
        let (fixed, mut rest) = bytes.split_at_checked(FIXED_BYTES).ok_or(KeysError)?;
        let word = |at: usize| -> Result<i64, KeysError> {
            let slice = fixed.get(at..at + 8).ok_or(KeysError)?;
            Ok(i64::from_le_bytes(slice.try_into().map_err(|_| KeysError)?))
        };
        let (time_us, observed_us) = (word(3)?, word(11)?);
        let provenance =
            fixed.get(PROVENANCE_AT..).and_then(|bytes| bytes.try_into().ok()).ok_or(KeysError)?;
        let provenance = Provenance::decode(provenance).ok_or(KeysError)?;
        let mut text = || -> Result<Option<&'a str>, KeysError> {
            let (len, tail) = rest.split_at_checked(2).ok_or(KeysError)?;
            let len = u16::from_le_bytes([len[0], len[1]]);
            rest = tail;
            if len == ABSENT {
                return Ok(None);
            }
            let (value, tail) = rest.split_at_checked(usize::from(len)).ok_or(KeysError)?;
            rest = tail;
            std::str::from_utf8(value).map(Some).map_err(|_| KeysError)
        };
        Ok(Self {
            flags: Flags(u16::from_le_bytes([fixed[0], fixed[1]])),
            gateway: fixed[2] != 0,
            time_us,
            observed_us,
            provenance,
            id: text()?.ok_or(KeysError)?,
            event_type: text()?.ok_or(KeysError)?,
            iccid: text()?,
            device_id: text()?,
            country: text()?,
            country_code: text()?,
            operator: text()?,
            network_type: text()?,
        })
    }
}

/// An event as it lies in the log: shared bytes and a sequence. Cloning copies nothing.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    seq: u64,
    keys_len: u32,
    body: Bytes,
}

impl StoredEvent {
    /// `body` is [`Keys`] in its first `keys_len` bytes, then JSON, as [`Event::seal`] made it.
    pub fn new(seq: u64, keys_len: u32, body: Bytes) -> Self {
        Self { seq, keys_len, body }
    }

    /// Place in the log; increasing, not always dense.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Keys and JSON, as stored.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Bytes of the body that are keys.
    pub fn keys_len(&self) -> u32 {
        self.keys_len
    }

    /// The filterable part.
    ///
    /// # Errors
    /// [`KeysError`] where the body is damaged; the log checks this before it hands an event out.
    pub fn keys(&self) -> Result<Keys<'_>, KeysError> {
        Keys::decode(&self.body)
    }

    /// The JSON event without its cursor.
    pub fn json(&self) -> &[u8] {
        self.body.get(self.keys_len as usize..).unwrap_or_default()
    }

    /// The cursor after this event.
    pub fn cursor(&self, incarnation: u64) -> Cursor {
        let tag = self.keys().map_or(0, |keys| cursor::tag(keys.id));
        Cursor { incarnation, seq: self.seq, tag }
    }

    /// Bytes that the event takes in memory and, about, on the wire.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_survive(flags in 0u16..256, gateway: bool, time: i64, observed: i64,
            read in proptest::option::of(0_i64..), id in ".{0,20}",
            ty in ".{0,20}", texts in proptest::array::uniform6(proptest::option::of(".{0,12}"))) {
            let [iccid, device, country, code, operator, rat] = &texts;
            let provenance = read.map(|us| Provenance {
                via: crate::event::Via::Sweep, asked_us: us, answered_us: us / 2, not_seen_us: Some(us / 3) });
            let keys = Keys { flags: Flags(flags), gateway, time_us: time, observed_us: observed, provenance, id: &id,
                event_type: &ty, iccid: iccid.as_deref(), device_id: device.as_deref(), country: country.as_deref(),
                country_code: code.as_deref(), operator: operator.as_deref(), network_type: rat.as_deref() };
            let mut bytes = Vec::new();
            keys.encode(&mut bytes).unwrap();
            prop_assert_eq!(Keys::decode(&bytes), Ok(keys));
            for cut in 0..bytes.len() {
                prop_assert!(Keys::decode(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_text_too_long_names_its_field() {
        let long = "x".repeat(70_000);
        let event = Event { device_id: Some(long), ..Event::new("e", "/globalsim/t".into(), "connection") };
        let error = event.seal(Timestamp::UNIX_EPOCH, jiff::SignedDuration::from_secs(300)).unwrap_err();
        assert_eq!(error.field, "device_id");
    }
}
