//! How much of each data session has been counted: upstream shows sums, a day wants what was added on it.
//!
//! The table is bounded. Where it is full, the sessions that were seen least recently go, and what shows up later of a
//! session that began no later than one of those is told apart from a new one by its start: nothing is added for it,
//! and it is counted as unknown. So data is never counted twice.

use std::collections::HashMap;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::data::Data;

/// Sessions that are known at a time; about 100 bytes each in memory, 56 on disk.
pub const SESSIONS_MAX: usize = 200_000;

/// What is known of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Counted so far.
    pub data: Data,
    /// When it began, microseconds since the epoch.
    pub start_us: i64,
    /// Number of the reading that showed it last.
    pub seen: u64,
}

/// The table. Keys are hashes of session ids, so that it says nothing of any SIM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sessions {
    pub(super) known: HashMap<u128, Known>,
    /// Latest start of a session that was forgotten.
    pub(super) forgotten_us: Option<i64>,
    /// Number of the next reading.
    pub(super) readings: u64,
}

impl Sessions {
    /// What a reading of a session adds to what was counted of it; None where that can't be known any more.
    pub fn read(&mut self, id: &str, start: Option<Timestamp>, data: Data) -> Option<Data> {
        let key = key(id);
        let start_us = start.map_or(i64::MIN, Timestamp::as_microsecond);
        let before = match self.known.get(&key) {
            Some(known) => known.data,
            None if self.forgotten_us.is_some_and(|forgotten| start_us <= forgotten) => return None,
            None => Data::default(),
        };
        self.readings += 1;
        self.known.insert(key, Known { data, start_us, seen: self.readings });
        if self.known.len() > SESSIONS_MAX {
            self.forget_oldest(SESSIONS_MAX * 3 / 4);
        }
        Some(data.since(before))
    }

    fn forget_oldest(&mut self, keep: usize) {
        let mut seen: Vec<u64> = self.known.values().map(|known| known.seen).collect();
        let gone = seen.len().saturating_sub(keep);
        let (_, first_kept, _) = seen.select_nth_unstable(gone);
        let first_kept = *first_kept;
        let mut latest = self.forgotten_us;
        self.known.retain(|_, known| {
            let stays = known.seen >= first_kept;
            if !stays {
                latest = latest.max(Some(known.start_us));
            }
            stays
        });
        self.forgotten_us = latest;
    }
}

fn key(id: &str) -> u128 {
    let digest = Sha256::digest(id.as_bytes());
    digest.iter().take(16).fold(0, |key, byte| key << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::megabytes::Megabytes;

    fn total(bytes: i64) -> Data {
        Data { total: Megabytes::from_millionths(bytes), ..Data::default() }
    }

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    #[test]
    fn only_what_is_new_counts_and_corrections_may_be_negative() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.read("s", at(1), total(10)), Some(total(10)));
        assert_eq!(sessions.read("s", at(1), total(10)), Some(total(0)));
        assert_eq!(sessions.read("s", at(1), total(25)), Some(total(15)));
        assert_eq!(sessions.read("s", at(1), total(20)), Some(total(-5)));
        assert_eq!(sessions.read("other", at(2), total(7)), Some(total(7)));
    }

    #[test]
    fn what_was_forgotten_is_unknown_and_never_counted_again() {
        let mut sessions = Sessions::default();
        for n in 0..=SESSIONS_MAX as i64 {
            sessions.read(&n.to_string(), at(n), total(1));
        }
        assert_eq!(sessions.known.len(), SESSIONS_MAX * 3 / 4);
        assert_eq!(sessions.read("0", at(0), total(5)), None);
        let last = SESSIONS_MAX as i64;
        assert_eq!(sessions.read(&last.to_string(), at(last), total(5)), Some(total(4)));
        assert_eq!(sessions.read("new", at(last + 1), total(5)), Some(total(5)));
    }
}
