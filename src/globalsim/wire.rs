//! What upstream sends, understood field by field.
//!
//! Nothing is decoded by derive: one odd field must not cost the row, one odd row must not cost the page, and a
//! field that upstream adds tomorrow must arrive. Each field is read from the JSON value by what it most likely
//! means (numbers as text, text as numbers, null as absent); what can't be understood, or is not named by the model,
//! stays under its own name in `extra`. Only a row that is no event at all becomes a [`BadRow`].
//!
//! Two shapes of one event exist. Account-wide rows have iccid, msisdn, device_id; per-SIM rows have details and
//! network_code. [`Row::merge_details`] unites them; [`Row::content`] is computed over what both carry, so both give
//! the same.
//!
//! Derived, not received: `mcc` and `mnc` out of `network_code`, and `country_code` out of the MCC where upstream
//! gives none (activity rows never do; sessions do).

pub(super) mod answer;
mod fields;
mod plmn;
mod row;
#[cfg(test)]
mod tests;
pub mod time;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::event::{Event, Flags, Iccid, Identity, Network, Session, identity::generated_id};

/// The longest part of a bad row that is kept, bytes.
pub const BAD_ROW_BYTES_MAX: usize = 4096;

/// One activity row of either shape, normalized; without id and source, see [`Row::into_event`].
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The event; `id` and `source` are empty, flags are none.
    pub event: Event,
    /// Hash of the content that account-wide and per-SIM rows both carry and that does not change by itself.
    pub content: u32,
    /// Whether this is all that upstream knows: a per-SIM row, or an account-wide one that carries details.
    pub complete: bool,
}

impl Row {
    /// What tells this event from others.
    pub fn identity(&self) -> Identity<'_> {
        Identity {
            event_id: self.event.event_id.as_deref(),
            iccid: self.event.iccid.as_ref().map(Iccid::as_str),
            event_type: &self.event.event_type,
            timestamp: self.event.timestamp.as_deref(),
        }
    }

    /// [`Identity::hash`].
    pub fn identity_hash(&self) -> u64 {
        self.identity().hash()
    }

    /// Upstream's id, where it gave one.
    pub fn event_id(&self) -> Option<&str> {
        self.event.event_id.as_deref()
    }

    /// Completes this row by its richer copy: absent fields are filled, present ones stay. The caller has made sure
    /// that both are one event (same [`Row::identity_hash`]). `content` stays this row's, since later sweeps compare
    /// it with account-wide rows.
    pub fn merge_details(&mut self, richer: Row) {
        row::merge(&mut self.event, richer.event);
        self.complete |= richer.complete;
    }

    /// What two rows without event_id have in common when they are equal, in either shape.
    pub fn content_key(&self) -> [u8; 12] {
        let mut key = [0; 12];
        key[..8].copy_from_slice(&self.identity_hash().to_be_bytes());
        key[8..].copy_from_slice(&self.content.to_be_bytes());
        key
    }

    /// The id where upstream gave none, see `event::identity::generated_id`. `ordinal` counts
    /// the rows of one page that have the same [`Row::content_key`], from 0.
    pub fn generated_id(&self, ordinal: u32) -> String {
        generated_id(&self.content_key(), ordinal)
    }

    /// The event, named. `source` is `/globalsim/<upstream name>`.
    pub fn into_event(self, source: &Arc<str>, id: String, flags: Flags) -> Event {
        Event { id, source: Arc::clone(source), flags, ..self.event }
    }
}

/// A row that is no event: quarantined and counted, the page goes on. `raw` holds personal data: it is not for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Why, naming the field.
    pub reason: String,
    /// The row's JSON, cut at [`BAD_ROW_BYTES_MAX`].
    pub raw: String,
}

/// One whole page.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The rows in upstream's order, bad ones in their places.
    pub rows: Vec<Result<T, BadRow>>,
    /// `total` as upstream states it; an alarm, never a loop bound.
    pub total: Option<u64>,
    /// `limit` as upstream echoes it (account-wide only).
    pub limit: Option<u64>,
    /// `offset` as upstream echoes it (account-wide only).
    pub offset: Option<u64>,
    /// The answer's Date header: upstream's clock, whole seconds.
    pub server_date: Option<Timestamp>,
    /// When the request was sent, by our clock.
    pub asked_at: Timestamp,
    /// When the whole answer was there, by our clock.
    pub answered_at: Timestamp,
}

/// One data session as upstream lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRow {
    /// SIM, where row, envelope or request named it.
    pub iccid: Option<Iccid>,
    /// The session; `end_time` None while open.
    pub session: Session,
    /// Network that it ran on.
    pub network: Option<Network>,
    /// What the model does not name.
    pub extra: Map<String, Value>,
}

/// One page of sessions.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionPage {
    /// The sessions.
    pub page: Page<SessionRow>,
    /// SIM that the answer names.
    pub iccid: Option<Iccid>,
    /// `summary` as received.
    pub summary: Option<Value>,
}

/// A device and the SIM in it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceSim {
    /// Device id as its owner chose it.
    pub device_id: Option<String>,
    /// Its name.
    pub device_name: Option<String>,
    /// SIM; None for a device without one.
    pub iccid: Option<Iccid>,
    /// `active` and others.
    pub status: Option<String>,
    /// Phone number.
    pub msisdn: Option<String>,
    /// Network that the SIM is on.
    pub current_network: Option<Network>,
    /// Megabytes with upstream's digits.
    pub data_usage_mb: Option<serde_json::Number>,
    /// When the SIM was linked, as spelled.
    pub linked_at: Option<String>,
    /// The whole answer as received.
    pub raw: Value,
    /// When the answer was there, by our clock.
    pub answered_at: Timestamp,
}
