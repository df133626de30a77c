//! What upstream sent and the log can't hold, kept for an operator to see: the newest rows with reason and time.
//!
//! A row here counts as read: it is not asked for again and again. Once upstream shows it in a form that is an event,
//! it is taken like any other. The text is for people: long digit sequences, which are numbers of SIMs and
//! subscribers, show their last four digits only.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::globalsim::wire::BAD_ROW_BYTES_MAX;

/// Rows kept.
const ROWS_MAX: usize = 100;
/// Digit sequences of so many digits and more are personal.
const PERSONAL_DIGITS: usize = 6;
/// Digits of them that are shown.
const SHOWN_DIGITS: usize = 4;
/// Rows that are remembered so that each is counted once.
const KEYS_MAX: usize = 10_000;
/// Bytes of a reason that are kept.
const REASON_BYTES_MAX: usize = 300;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// When it was read.
    pub at: Timestamp,
    /// `row` for one that is no event, `details` for one of a SIM's list that is not that SIM's event, `event` for one
    /// that can't be stored.
    pub what: &'static str,
    /// Why, without personal digits.
    pub reason: String,
    /// Its text, cut and without personal digits.
    pub raw: String,
}

/// The newest rows. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Quarantine(Arc<VecDeque<Arc<Quarantined>>>);

impl Quarantine {
    /// Adds a row; the oldest makes room.
    pub fn add(&mut self, at: Timestamp, what: &'static str, reason: &str, raw: &str) {
        let (reason, raw) = (shown(reason), masked(raw, BAD_ROW_BYTES_MAX));
        let rows = Arc::make_mut(&mut self.0);
        rows.push_back(Arc::new(Quarantined { at, what, reason, raw }));
        if rows.len() > ROWS_MAX {
            rows.pop_front();
        }
    }

    /// The newest.
    pub fn last(&self) -> Option<&Quarantined> {
        self.0.back().map(Arc::as_ref)
    }

    /// The newest one's reason and time, for `GET /v1/stream`.
    pub fn summary(&self) -> Value {
        json!({
            "kept": self.0.len(),
            "last_at": self.last().map(|row| row.at.to_string()),
            "last_reason": self.last().map(|row| &row.reason),
        })
    }

    /// All of them, newest first.
    pub fn to_json(&self) -> Value {
        let shown = |row: &Arc<Quarantined>| json!({"at": row.at.to_string(), "what": row.what, "reason": row.reason, "raw": row.raw});
        json!({"rows_max": ROWS_MAX, "rows": self.0.iter().rev().map(shown).collect::<Vec<_>>()})
    }
}

/// Keys of rows that can't be read, so that each is counted once.
#[derive(Debug, Default)]
pub struct RecentKeys {
    keys: HashSet<u64>,
    order: VecDeque<u64>,
}

impl RecentKeys {
    /// Whether it is new.
    pub fn insert(&mut self, key: u64) -> bool {
        let new = self.keys.insert(key);
        if new {
            self.order.push_back(key);
            if self.order.len() > KEYS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.keys.remove(&oldest);
            }
        }
        new
    }
}

/// A reason without personal digits, for logs and operators.
pub fn shown(reason: &str) -> String {
    masked(reason, REASON_BYTES_MAX)
}

/// A text with personal digits replaced, at most so many bytes.
fn masked(text: &str, bytes_max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(bytes_max));
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (part, hidden) = match digits {
            0 => (first.len_utf8(), 0),
            PERSONAL_DIGITS.. => (digits, digits - SHOWN_DIGITS),
            _ => (digits, 0),
        };
        let (shown, after) = rest.split_at(part);
        if out.len() + part > bytes_max {
            break;
        }
        out.extend(std::iter::repeat_n('*', hidden));
        out.push_str(&shown[hidden..]);
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_people_are_hidden_and_texts_are_cut() {
        let text = r#"{"msisdn":"+4791234567","iccid":8901234567890123456,"n":12345,"å":1}"#;
        let hidden = r#"{"msisdn":"+******4567","iccid":***************3456,"n":12345,"å":1}"#;
        assert_eq!(masked(text, 4_096), hidden);
        assert_eq!(masked("åå", 3), "å");
        assert_eq!(masked(&"1".repeat(30), 10), "");
    }

    #[test]
    fn the_newest_are_kept() {
        let mut quarantine = Quarantine::default();
        for n in 0..150 {
            quarantine.add(Timestamp::UNIX_EPOCH, "row", "it is odd", &n.to_string());
        }
        let shown = quarantine.to_json();
        assert_eq!(shown["rows"].as_array().map(Vec::len), Some(ROWS_MAX));
        assert_eq!(shown["rows"][0]["raw"], "149");
        assert_eq!(quarantine.summary()["last_reason"], "it is odd");
    }
}
