//! One activity row: what happened, and the two documented shapes of it.
//!
//! The account-wide list shows who (`iccid`, `msisdn`, `device_id`) but neither `details` nor `network_code`; the
//! per-SIM list shows the latter but not who. Oddities ([`Quirks`]) are decided once per event, so that a row
//! reads the same every time, as it would from a database.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::Relaxed};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::operators::{Attachment, NetworkShape};
use super::sessions::{decimal, rfc3339};

/// An oddity of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quirk {
    /// No `event_id`.
    MissingId,
    /// No `iccid` in the account-wide row.
    MissingIccid,
    /// Undocumented fields.
    ExtraFields,
    /// Objects and optional strings are null.
    Nulls,
    /// Numbers are strings.
    NumbersAsStrings,
    /// Timestamp with an offset other than Z.
    TimestampOffset,
    /// Timestamp with a fraction, and +00:00 in place of Z.
    TimestampFraction,
    /// Timestamp as seconds since the epoch.
    TimestampEpoch,
    /// Timestamp null.
    TimestampNull,
    /// Timestamp that is no time.
    TimestampNonsense,
}

/// The oddities of one row.
pub(super) type Quirks = Vec<Quirk>;

/// What `details` holds.
#[derive(Debug, Clone)]
pub(super) enum Details {
    /// connection, location_update.
    Signal { network_type: &'static str, strength: i32 },
    /// data_usage_update.
    Usage { month_tenths: u64 },
    /// network_change.
    Reason { reason: &'static str },
    /// disconnection.
    Closed { network_type: &'static str, reason: &'static str },
    /// Given by a test.
    Custom(Value),
}

/// An event before it is visible.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub event_id: String,
    /// Position in the fleet.
    pub sim: usize,
    pub iccid: Arc<str>,
    pub msisdn: Arc<str>,
    /// The device that was linked when it happened.
    pub device_id: Option<Arc<str>>,
    pub event_type: Arc<str>,
    /// Seconds since the epoch.
    pub at_s: i64,
    pub network: Option<Attachment>,
    /// The network before, in a network_change only.
    pub previous: Option<Attachment>,
    pub details: Details,
    pub quirks: Quirks,
    /// Fields given by a test, laid over both shapes.
    pub overlay: Map<String, Value>,
    /// Generated before the simulator started.
    pub history: bool,
    /// Held back on purpose, or stamped well in the past by a test.
    pub late: bool,
}

/// A visible event.
#[derive(Debug)]
pub(super) struct Row {
    /// Ordinal of becoming visible, from 1 without holes.
    pub n: u64,
    pub draft: Draft,
    pub visible_at: Timestamp,
    /// Microseconds since the epoch of the first complete answer that held it; 0 = none yet.
    first_served_us: AtomicI64,
    /// Microseconds since the epoch; 0 = still visible.
    removed_us: AtomicI64,
    /// How often its content changed.
    revision: AtomicU32,
}

/// What the account-wide list says about rows beyond the document.
#[derive(Debug, Clone, Default)]
pub(super) struct AccountView {
    /// With `details`, `network_code` and `network_type`.
    pub details: bool,
    /// `msisdn` and `device_id` to show in place of the stamped ones.
    pub identity_now: Option<(Arc<str>, Option<Arc<str>>)>,
}

#[derive(Serialize)]
struct AccountShape<'a> {
    event_id: &'a str,
    iccid: &'a str,
    msisdn: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<&'a str>,
    event_type: &'a str,
    timestamp: String,
    #[serde(flatten)]
    networks: Networks,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
}

#[derive(Serialize)]
struct SimShape<'a> {
    event_id: &'a str,
    event_type: &'a str,
    timestamp: String,
    #[serde(flatten)]
    networks: Networks,
    details: Value,
}

#[derive(Serialize)]
struct Networks {
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkShape>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_network: Option<NetworkShape>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_network: Option<NetworkShape>,
}

// === impl Quirk ===

impl Quirk {
    /// Whether a server could not place the row in time.
    fn undates(self) -> bool {
        matches!(self, Self::TimestampNull | Self::TimestampNonsense)
    }

    fn apply(self, row: &mut Map<String, Value>, at_s: i64) {
        match self {
            Self::MissingId => drop(row.shift_remove("event_id")),
            Self::MissingIccid => drop(row.shift_remove("iccid")),
            Self::ExtraFields => {
                row.insert("severity".to_owned(), json!("info"));
                row.insert("cell".to_owned(), json!({"id": 4_711, "area": ["0x1A2B", null]}));
            }
            Self::Nulls => {
                for key in ["network", "previous_network", "details", "msisdn", "device_id"] {
                    if let Some(value) = row.get_mut(key) {
                        *value = Value::Null;
                    }
                }
            }
            Self::NumbersAsStrings => row.values_mut().for_each(numbers_as_strings),
            _ => {
                row.insert("timestamp".to_owned(), self.timestamp(at_s));
            }
        }
    }

    fn timestamp(self, at_s: i64) -> Value {
        match self {
            Self::TimestampOffset => json!(rfc3339(at_s + 3_600).replace('Z', "+01:00")),
            Self::TimestampFraction => json!(rfc3339(at_s).replace('Z', ".000+00:00")),
            Self::TimestampEpoch => json!(at_s),
            Self::TimestampNonsense => json!("yesterday"),
            _ => Value::Null,
        }
    }
}

fn numbers_as_strings(value: &mut Value) {
    match value {
        Value::Number(number) => *value = Value::String(number.to_string()),
        Value::Object(map) => map.values_mut().for_each(numbers_as_strings),
        _ => {}
    }
}

// === impl Draft ===

impl Draft {
    /// Whether a server could not place the row in time, so that date filters leave it out.
    pub(super) fn is_undated(&self) -> bool {
        self.quirks.iter().any(|quirk| quirk.undates())
    }

    fn networks(&self, shape: impl Fn(Attachment) -> NetworkShape) -> Networks {
        match self.previous {
            Some(previous) => Networks {
                network: None,
                previous_network: Some(shape(previous)),
                current_network: self.network.map(shape),
            },
            None => {
                Networks { network: self.network.map(shape), previous_network: None, current_network: None }
            }
        }
    }

    fn is_plain(&self) -> bool {
        self.quirks.is_empty() && self.overlay.is_empty()
    }

    /// Writes `shape`, bent by quirks and overlay.
    fn write(&self, shape: &impl Serialize, out: impl Write) -> serde_json::Result<()> {
        if self.is_plain() {
            return serde_json::to_writer(out, shape);
        }
        let mut value = serde_json::to_value(shape)?;
        if let Value::Object(map) = &mut value {
            self.quirks.iter().for_each(|quirk| quirk.apply(map, self.at_s));
            map.extend(self.overlay.clone());
        }
        serde_json::to_writer(out, &value)
    }
}

// === impl Row ===

impl Row {
    /// A draft that becomes visible as number `n`.
    pub(super) fn new(n: u64, draft: Draft, visible_at: Timestamp) -> Self {
        Self {
            n,
            draft,
            visible_at,
            first_served_us: AtomicI64::new(0),
            removed_us: AtomicI64::new(0),
            revision: AtomicU32::new(0),
        }
    }

    fn details(&self) -> Value {
        let revision = self.revision.load(Relaxed);
        match &self.draft.details {
            Details::Signal { network_type, strength } => {
                json!({"network_type": network_type, "signal_strength": strength - revision as i32})
            }
            Details::Usage { month_tenths } => json!({
                "current_usage_mb": decimal(month_tenths + u64::from(revision)),
                "period": "current_month",
            }),
            Details::Reason { reason } if revision == 0 => json!({"reason": reason}),
            Details::Reason { reason } => json!({"reason": reason, "revision": revision}),
            Details::Closed { network_type, reason } if revision == 0 => {
                json!({"network_type": network_type, "reason": reason})
            }
            Details::Closed { network_type, reason } => {
                json!({"network_type": network_type, "reason": reason, "revision": revision})
            }
            Details::Custom(value) => value.clone(),
        }
    }

    /// The row as the account-wide list shows it.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write_account(&self, view: &AccountView, out: impl Write) -> serde_json::Result<()> {
        let draft = &self.draft;
        let (msisdn, device_id) = match &view.identity_now {
            Some((msisdn, device_id)) => (msisdn, device_id),
            None => (&draft.msisdn, &draft.device_id),
        };
        let networks = match view.details {
            true => draft.networks(Attachment::in_sim_row_with_type),
            false => draft.networks(Attachment::in_account_row),
        };
        let shape = AccountShape {
            event_id: &draft.event_id,
            iccid: &draft.iccid,
            msisdn,
            device_id: device_id.as_deref(),
            event_type: &draft.event_type,
            timestamp: rfc3339(draft.at_s),
            networks,
            details: view.details.then(|| self.details()),
        };
        draft.write(&shape, out)
    }

    /// The row as the per-SIM list shows it.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write_sim(&self, out: impl Write) -> serde_json::Result<()> {
        let shape = SimShape {
            event_id: &self.draft.event_id,
            event_type: &self.draft.event_type,
            timestamp: rfc3339(self.draft.at_s),
            networks: self.draft.networks(Attachment::in_sim_row),
            details: self.details(),
        };
        self.draft.write(&shape, out)
    }

    /// Notes that a complete answer held the row.
    pub(super) fn mark_served(&self, now: Timestamp) {
        let _ = self.first_served_us.compare_exchange(0, now.as_microsecond(), Relaxed, Relaxed);
    }

    /// Notes that the row is not visible any more.
    pub(super) fn mark_removed(&self, now: Timestamp) {
        let _ = self.removed_us.compare_exchange(0, now.as_microsecond(), Relaxed, Relaxed);
    }

    /// Changes the content, not the identity.
    pub(super) fn revise(&self) {
        self.revision.fetch_add(1, Relaxed);
    }

    /// When a complete answer first held the row.
    pub(super) fn first_served_at(&self) -> Option<Timestamp> {
        stamp(self.first_served_us.load(Relaxed))
    }

    /// When the row disappeared.
    pub(super) fn removed_at(&self) -> Option<Timestamp> {
        stamp(self.removed_us.load(Relaxed))
    }

    /// How often the content changed.
    pub(super) fn revision(&self) -> u32 {
        self.revision.load(Relaxed)
    }
}

fn stamp(microseconds: i64) -> Option<Timestamp> {
    match microseconds {
        0 => None,
        some => Timestamp::from_microsecond(some).ok(),
    }
}
