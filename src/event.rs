//! The domain model: what one event is, wherever it came from and however it leaves.
//!
//! Nothing here does I/O. Upstream rows become an [`Event`] (in `globalsim::wire`), the bus stamps and
//! [seals](Event::seal) it into a [`StoredEvent`], and from then on only bytes travel: filters and indexes read the
//! [`Keys`] in front of the body, frontends splice a cursor before the JSON. An event is decoded again only where a
//! frontend needs another encoding ([`protobuf`]) or a field policy rewrites it ([`policy`]).

pub mod cursor;
pub mod filter;
pub mod identity;
pub mod json;
pub mod keys;
pub mod policy;
pub mod position;
pub mod protobuf;
pub mod provenance;

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

pub use cursor::{Cursor, CursorError};
pub use filter::{Filter, FilterError, FilterLimits, Predicate};
pub use identity::{Iccid, Identity};
pub use keys::{Flag, Flags, Keys, SealError, StoredEvent};
pub use policy::FieldPolicy;
pub use position::{Gap, GapReason, OnExpired, Start};
pub use provenance::{Provenance, Via};

/// Prefix of the types that the gateway itself emits; an empty filter never matches them.
pub const GATEWAY_PREFIX: &str = "simcast.";

/// One event before it is stored: complete but for `observed_at`, which the bus stamps at append.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Stable id, see [`identity`].
    pub id: String,
    /// `/globalsim/<upstream name>`, or `/simcast` for the gateway's own events.
    pub source: Arc<str>,
    /// Upstream's event_id, where it gave one.
    pub event_id: Option<String>,
    /// Event type as upstream spells it; `unknown` where it gave none.
    pub event_type: String,
    /// True for the gateway's own events (`simcast.*`).
    pub gateway: bool,
    /// SIM that the event belongs to.
    pub iccid: Option<Iccid>,
    /// Phone number, E.164.
    pub msisdn: Option<String>,
    /// Device id as its owner chose it.
    pub device_id: Option<String>,
    /// Upstream's timestamp as spelled.
    pub timestamp: Option<String>,
    /// The same, understood; None where it could not be ([`Flag::TimeUnknown`]).
    pub time: Option<Timestamp>,
    /// Network after the event.
    pub network: Option<Network>,
    /// Network before it, for a change.
    pub previous_network: Option<Network>,
    /// As upstream gives it.
    pub signal_strength: Option<i32>,
    /// Usage sample.
    pub usage: Option<Usage>,
    /// Session, for `session_*`.
    pub session: Option<Session>,
    /// `details` as received, null and absent alike None.
    pub details: Option<Value>,
    /// What the model does not name.
    pub extra: Map<String, Value>,
    /// See [`Flag`].
    pub flags: Flags,
    /// How it came; None for the gateway's own. Kept beside the event, and in none of its encodings.
    pub provenance: Option<Provenance>,
}

/// A mobile network as a SIM sees it. All codes are strings, since leading zeros count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Country name.
    pub country: Option<String>,
    /// ISO 3166-1 alpha-2.
    pub country_code: Option<String>,
    /// Operator name.
    pub operator: Option<String>,
    /// PLMN, MCC and MNC together.
    pub network_code: Option<String>,
    /// Mobile country code.
    pub mcc: Option<String>,
    /// Mobile network code, two or three digits.
    pub mnc: Option<String>,
    /// Radio access technology as spelled upstream.
    pub network_type: Option<String>,
}

/// A data-usage sample: a gauge, never a difference.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Megabytes with upstream's digits.
    pub current_usage_mb: Option<Number>,
    /// `current_month`.
    pub period: Option<String>,
}

/// One data session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// Upstream's id.
    pub session_id: Option<String>,
    /// RFC 3339 as spelled upstream.
    pub start_time: Option<String>,
    /// None while open.
    pub end_time: Option<String>,
    /// Whole seconds.
    pub duration_seconds: Option<i64>,
    /// Megabytes with upstream's digits.
    pub upload_mb: Option<Number>,
    /// Megabytes with upstream's digits.
    pub download_mb: Option<Number>,
    /// Megabytes with upstream's digits.
    pub total_mb: Option<Number>,
    /// Address that the SIM had.
    pub ip_address: Option<String>,
}

impl Event {
    /// An event with an id, a source and a type, everything else absent.
    pub fn new(id: impl Into<String>, source: Arc<str>, event_type: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            source,
            event_id: None,
            event_type: event_type.into(),
            gateway: false,
            iccid: None,
            msisdn: None,
            device_id: None,
            timestamp: None,
            time: None,
            network: None,
            previous_network: None,
            signal_strength: None,
            usage: None,
            session: None,
            details: None,
            extra: Map::new(),
            flags: Flags::default(),
            provenance: None,
        }
    }

    /// One of the gateway's own events; `event_type` starts with [`GATEWAY_PREFIX`], `body` is kept in `extra`.
    pub fn gateway(
        id: impl Into<String>,
        event_type: &str,
        time: Timestamp,
        body: Map<String, Value>,
    ) -> Self {
        let mut event = Self::new(id, Arc::from("/simcast"), event_type);
        event.gateway = true;
        event.time = Some(time);
        event.timestamp = Some(time.to_string());
        event.extra = body;
        event
    }

    /// CloudEvents `type`: `globalsim.` and the event type, bytes outside `[a-z0-9_]` as `_`; gateway types as they are.
    pub fn cloud_type(&self) -> String {
        cloud_type(&self.event_type, self.gateway)
    }

    /// Stamps the event and encodes it for the log: [`Keys`], then the JSON of design section 3 without `cursor`.
    ///
    /// `late_after` is how long after its time an event may be observed before it is flagged late.
    ///
    /// # Errors
    /// [`SealError`] when a field is longer than the stored form allows; the event is bad, retrying does not help.
    pub fn seal(
        mut self,
        observed_at: Timestamp,
        late_after: jiff::SignedDuration,
    ) -> Result<Sealed, SealError> {
        match self.time {
            None => self.flags.insert(Flag::TimeUnknown),
            Some(time) if observed_at.duration_since(time) > late_after => self.flags.insert(Flag::Late),
            Some(_) => {}
        }
        let mut body = Vec::with_capacity(1024);
        Keys::of(&self, observed_at).encode(&mut body)?;
        let keys_len = body.len();
        json::write(&self, observed_at, &mut body);
        Ok(Sealed { id: self.id, keys_len: keys_len as u32, body: body.into(), observed_at })
    }
}

/// An event ready for the log.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The event's id.
    pub id: String,
    /// Bytes of `body` that are [`Keys`]; the rest is JSON.
    pub keys_len: u32,
    /// Keys, then JSON.
    pub body: bytes::Bytes,
    /// When it was stamped.
    pub observed_at: Timestamp,
}

impl Sealed {
    /// Gives the event its place in the log.
    pub fn at(self, seq: u64) -> StoredEvent {
        StoredEvent::new(seq, self.keys_len, self.body)
    }
}

/// CloudEvents type of an event type.
pub fn cloud_type(event_type: &str, gateway: bool) -> String {
    if gateway {
        return event_type.to_owned();
    }
    let mut out = String::with_capacity("globalsim.".len() + event_type.len());
    out.push_str("globalsim.");
    out.extend(event_type.chars().map(|c| match c {
        'a'..='z' | '0'..='9' | '_' => c,
        _ => '_',
    }));
    out
}

#[cfg(test)]
pub(crate) mod tests_support {
    //! One event with every field set, for tests of the encodings.

    use super::*;

    pub(crate) fn full_event() -> Event {
        let mut event = Event::new("evt_abc123", Arc::from("/globalsim/default"), "connection");
        event.event_id = Some("evt_abc123".into());
        event.iccid = Iccid::parse("8901234567890123456").ok();
        event.msisdn = Some("+4791234567".into());
        event.device_id = Some("iot_dev_abc123".into());
        event.timestamp = Some("2025-11-05T08:00:00Z".into());
        event.time = "2025-11-05T08:00:00Z".parse().ok();
        event.network = Some(Network {
            country: Some("Norway".into()),
            country_code: Some("NO".into()),
            operator: Some("Telenor Norway".into()),
            network_code: Some("24201".into()),
            mcc: Some("242".into()),
            mnc: Some("01".into()),
            network_type: Some("4G".into()),
        });
        event.signal_strength = Some(-65);
        event.details = Some(serde_json::json!({"network_type": "4G", "signal_strength": -65}));
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_is_the_one_of_the_contract() {
        let observed_at = "2025-11-05T08:00:00.412Z".parse().unwrap();
        let sealed =
            tests_support::full_event().seal(observed_at, jiff::SignedDuration::from_secs(300)).unwrap();
        let stored = sealed.at(7);
        let shown = json::with_cursor(&stored, 9);
        let cursor = stored.cursor(9).to_string();
        let expected = format!(
            "{}{cursor}{}",
            r#"{"cursor":""#,
            r#"","specversion":"1.0","id":"evt_abc123","source":"/globalsim/default","type":"globalsim.connection","subject":"8901234567890123456","time":"2025-11-05T08:00:00Z","datacontenttype":"application/json","data":{"event_id":"evt_abc123","event_type":"connection","iccid":"8901234567890123456","msisdn":"+4791234567","device_id":"iot_dev_abc123","timestamp":"2025-11-05T08:00:00Z","observed_at":"2025-11-05T08:00:00.412Z","network":{"country":"Norway","country_code":"NO","operator":"Telenor Norway","network_code":"24201","mcc":"242","mnc":"01","network_type":"4G"},"previous_network":null,"signal_strength":-65,"usage":null,"session":null,"details":{"network_type":"4G","signal_strength":-65},"extra":{},"flags":[]}}"#
        );
        assert_eq!(std::str::from_utf8(&shown).unwrap(), expected);
        let (back, at) = json::read(&shown).unwrap();
        assert_eq!((back, at), (tests_support::full_event(), observed_at));
    }

    #[test]
    fn late_and_unreadable_times_are_flagged() {
        let late_after = jiff::SignedDuration::from_secs(300);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let flags = |observed: &str, event: Event| {
            let stored = event.seal(at(observed), late_after).unwrap().at(1);
            stored.keys().unwrap().flags
        };
        assert!(!flags("2025-11-05T08:05:00Z", tests_support::full_event()).contains(Flag::Late));
        assert!(flags("2025-11-05T08:05:01Z", tests_support::full_event()).contains(Flag::Late));
        let unknown = Event { time: None, ..tests_support::full_event() };
        let stored = unknown.seal(at("2025-11-05T08:05:01Z"), late_after).unwrap().at(1);
        assert!(stored.keys().unwrap().flags.contains(Flag::TimeUnknown));
        assert!(std::str::from_utf8(stored.json()).unwrap().contains(r#""time":"2025-11-05T08:05:01Z""#));
    }

    #[test]
    fn types_are_made_safe_but_kept_raw() {
        assert_eq!(cloud_type("sim-swap!", false), "globalsim.sim_swap_");
        assert_eq!(cloud_type("simcast.gap", false), "globalsim.simcast_gap");
        assert_eq!(cloud_type("simcast.gap", true), "simcast.gap");
    }

    #[test]
    fn digits_of_amounts_survive() {
        let mut event = tests_support::full_event();
        event.usage =
            Some(serde_json::from_str(r#"{"current_usage_mb":870.50,"period":"current_month"}"#).unwrap());
        let stored =
            event.seal("2025-11-05T08:00:00Z".parse().unwrap(), jiff::SignedDuration::MAX).unwrap().at(1);
        assert!(std::str::from_utf8(stored.json()).unwrap().contains(r#""current_usage_mb":870.50"#));
    }
}
