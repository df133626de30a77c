//! What really happened: every event that ever became visible, for tests to compare with what the gateway has.

use std::collections::VecDeque;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row::{AccountView, Quirk, Row};

/// One event as it was exposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TruthEvent {
    /// Ordinal of becoming visible, from 1, without holes. A row listed twice has two.
    pub n: u64,
    /// As served; none where the row shows none.
    pub event_id: Option<String>,
    /// ICCID, also where the row does not show it.
    pub iccid: String,
    /// MSISDN at the time of the event.
    pub msisdn: String,
    /// Device that was linked at the time of the event.
    pub device_id: Option<String>,
    /// Event type as served.
    pub event_type: String,
    /// When it happened, whole seconds, whatever the row shows.
    pub timestamp: Timestamp,
    /// When the API would first have shown it (history: when it happened).
    pub visible_at: Timestamp,
    /// When a complete answer first held it. A client that hung up in between may still not have it.
    pub first_served_at: Option<Timestamp>,
    /// When retention or erasure took it away.
    pub removed_at: Option<Timestamp>,
    /// Generated before the simulator started.
    pub history: bool,
    /// Became visible well after it happened.
    pub late: bool,
    /// How often its content changed.
    pub revision: u32,
    /// Its oddities.
    pub quirks: Vec<Quirk>,
    /// The per-SIM row as served now.
    pub row: Value,
    /// The account-wide row as documented.
    pub account_row: Value,
}

/// A part of the truth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TruthPage {
    /// Events with `n` above the one asked for, ascending.
    pub events: Vec<TruthEvent>,
    /// Highest `n` there is.
    pub last: u64,
    /// Events forgotten because the ledger is bounded; they have the lowest `n`.
    pub dropped: u64,
}

/// Every event that became visible, up to a bound.
#[derive(Debug)]
pub(super) struct Ledger {
    rows: VecDeque<Arc<Row>>,
    rows_max: usize,
    dropped: u64,
}

impl From<&Row> for TruthEvent {
    fn from(row: &Row) -> Self {
        let draft = &row.draft;
        let mut account = Vec::new();
        let mut per_sim = Vec::new();
        // Writing into memory does not fail; were a row unencodable, null says so.
        let _ = row.write_account(&AccountView::default(), &mut account);
        let _ = row.write_sim(&mut per_sim);
        let per_sim: Value = serde_json::from_slice(&per_sim).unwrap_or_default();
        Self {
            n: row.n,
            event_id: per_sim.get("event_id").and_then(Value::as_str).map(str::to_owned),
            iccid: draft.iccid.to_string(),
            msisdn: draft.msisdn.to_string(),
            device_id: draft.device_id.as_deref().map(str::to_owned),
            event_type: draft.event_type.to_string(),
            timestamp: Timestamp::from_second(draft.at_s).unwrap_or_default(),
            visible_at: row.visible_at,
            first_served_at: row.first_served_at(),
            removed_at: row.removed_at(),
            history: draft.history,
            late: draft.late,
            revision: row.revision(),
            quirks: draft.quirks.clone(),
            row: per_sim,
            account_row: serde_json::from_slice(&account).unwrap_or_default(),
        }
    }
}

// === impl Ledger ===

impl Ledger {
    /// Remembers at most `rows_max` events, the newest.
    pub(super) fn new(rows_max: usize) -> Self {
        Self { rows: VecDeque::new(), rows_max: rows_max.max(1), dropped: 0 }
    }

    /// Notes an event that became visible; `n` must be one above the last.
    pub(super) fn push(&mut self, row: Arc<Row>) {
        if self.rows.len() == self.rows_max {
            self.rows.pop_front();
            self.dropped += 1;
        }
        self.rows.push_back(row);
    }

    /// Events ever exposed.
    pub(super) fn last(&self) -> u64 {
        self.dropped + self.rows.len() as u64
    }

    /// Events forgotten.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// At most `limit` rows with `n` above `after`.
    pub(super) fn rows_after(&self, after: u64, limit: usize) -> Vec<Arc<Row>> {
        let skip = usize::try_from(after.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        let from = skip.min(self.rows.len());
        let to = from.saturating_add(limit).min(self.rows.len());
        self.rows.range(from..to).cloned().collect()
    }
}
