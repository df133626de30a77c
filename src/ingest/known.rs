//! Which rows are events that the log has, and under which id a new one goes.
//!
//! The log remembers ids for as long as upstream may show a row again. In front of it a bounded set holds those seen
//! lately, appended or still on their way, so that a page that is read four times a second costs no look-ups.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    event::identity::id_hash,
    globalsim::wire::Row,
    log::{KnownId, Log},
    sabotage::{self, Bug},
};

/// Ids remembered in front of the log; a day at two events a second, 16 MiB.
const RECENT_MAX: usize = 200_000;

/// What is to be done with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Append it under this id; true: another event has its event_id.
    New(String, bool),
    /// It is in the log or on its way.
    Known,
    /// It is, and its content has changed since it was last seen.
    Revised,
}

/// The set.
#[derive(Debug)]
pub struct Known {
    log: Arc<Log>,
    recent: HashMap<u128, Seen>,
    order: VecDeque<u128>,
    recent_max: usize,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    identity: u64,
    content: u32,
}

impl Known {
    /// In front of `log`.
    pub fn new(log: Arc<Log>) -> Self {
        Self { log, recent: HashMap::new(), order: VecDeque::new(), recent_max: RECENT_MAX }
    }

    /// Judges a row and remembers it. `ordinal` tells rows without event_id apart that are equal.
    pub fn judge(&mut self, row: &Row, ordinal: u32) -> Verdict {
        let seen = Seen { identity: row.identity_hash(), content: row.content };
        let identity = row.identity();
        let Some(id) = identity.plain_id() else {
            return self.judge_id(row.generated_id(ordinal), seen, false).unwrap_or(Verdict::Known);
        };
        if let Some(verdict) = self.judge_id(id, seen, false) {
            return verdict;
        }
        let conflict = identity.conflict_id().unwrap_or_default();
        self.judge_id(conflict, seen, true).unwrap_or(Verdict::Known)
    }

    /// Forgets what is held in front of the log. Everything judged before must be in the log.
    pub fn forget_recent(&mut self) {
        self.recent.clear();
        self.order.clear();
    }

    /// None where the id belongs to another identity.
    fn judge_id(&mut self, id: String, seen: Seen, conflict: bool) -> Option<Verdict> {
        let hash = id_hash(&id);
        let before = self.recent.get(&hash).copied().or_else(|| {
            let KnownId { identity, content, .. } = self.log.find(&id)?;
            Some(Seen { identity, content })
        });
        match before {
            None => {
                self.remember(hash, seen);
                Some(Verdict::New(id, conflict))
            }
            Some(before) if before.identity != seen.identity && !sabotage::on(Bug::DedupeByEventId) => None,
            Some(before) => {
                self.remember(hash, seen);
                Some(if before.content == seen.content { Verdict::Known } else { Verdict::Revised })
            }
        }
    }

    fn remember(&mut self, hash: u128, seen: Seen) {
        if self.recent.insert(hash, seen).is_none() {
            self.order.push_back(hash);
            if self.order.len() > self.recent_max
                && let Some(oldest) = self.order.pop_front()
            {
                self.recent.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Event, tests_support::full_event},
        log::Entry,
    };

    fn row(event: Event, content: u32) -> Row {
        Row { event, content, complete: true }
    }

    fn known() -> Known {
        Known::new(Arc::new(Log::in_memory(1)))
    }

    #[test]
    fn a_row_is_new_once_and_a_change_is_counted_once() {
        let mut known = known();
        let new = Verdict::New("evt_abc123".into(), false);
        assert_eq!(known.judge(&row(full_event(), 1), 0), new);
        assert_eq!(known.judge(&row(full_event(), 1), 0), Verdict::Known);
        assert_eq!(known.judge(&row(full_event(), 2), 0), Verdict::Revised);
        assert_eq!(known.judge(&row(full_event(), 2), 0), Verdict::Known);
    }

    #[test]
    fn another_event_under_the_same_id_gets_its_own_and_keeps_it() {
        let mut known = known();
        known.judge(&row(full_event(), 1), 0);
        let other = Event { timestamp: Some("2025-11-05T09:00:00Z".into()), ..full_event() };
        let Verdict::New(id, true) = known.judge(&row(other.clone(), 1), 0) else { panic!("not new") };
        assert!(id.starts_with("evt_abc123~"), "{id}");
        assert_eq!(known.judge(&row(other, 1), 0), Verdict::Known);
        assert_eq!(known.judge(&row(full_event(), 1), 0), Verdict::Known);
    }

    #[test]
    fn rows_without_event_id_are_told_apart_by_their_ordinal() {
        let mut known = known();
        let anonymous = Event { event_id: None, ..full_event() };
        let mut judge = |ordinal| known.judge(&row(anonymous.clone(), 1), ordinal);
        assert!(matches!(judge(0), Verdict::New(..)));
        assert!(matches!(judge(1), Verdict::New(..)));
        assert_eq!((judge(0), judge(1)), (Verdict::Known, Verdict::Known));
    }

    #[test]
    fn what_fell_out_of_the_set_is_found_in_the_log() {
        let log = Arc::new(Log::in_memory(1));
        let mut known = Known { recent_max: 1, ..Known::new(Arc::clone(&log)) };
        let first = row(full_event(), 1);
        known.judge(&first, 0);
        let sealed = full_event().seal(jiff::Timestamp::UNIX_EPOCH, jiff::SignedDuration::MAX).unwrap();
        log.append(vec![Entry { sealed, identity: first.identity_hash(), content: 1 }]).unwrap();
        let other = Event { event_id: Some("evt_other".into()), ..full_event() };
        known.judge(&row(other, 1), 0);
        assert_eq!(known.recent.len(), 1);
        assert_eq!(known.judge(&first, 0), Verdict::Known);
        assert_eq!(known.judge(&row(full_event(), 2), 0), Verdict::Revised);
    }
}
