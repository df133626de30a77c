//! One way through the log: how far it has been taken up, and what of that is not settled yet.
//!
//! ```text
//! log:   1  2  3  4  5  6  7  8  9 ...
//!        delivered  ^     ^  ^cursor
//!                   pending
//! ```
//!
//! Everything at or before the cursor is settled (delivered, dead-lettered, skipped, or it did not match) unless it is
//! in the pending set. That set holds what is under way as well as what waits for another attempt, so a
//! [`Saved`] copy of the two is the whole truth at that moment: after a crash exactly what was settled since the last
//! copy is sent again, however long some other delivery hangs. The set is bounded ([`Feed::room`]); when it is full
//! the cursor stands still, and nothing is ever dropped.
//!
//! A unit is what goes into one request: an event, or several in a batch, whose members stay together over retries.
//! Units of one lane go one after the other in log order; units without a lane go as they come due.
//!
//! Nothing here waits or does I/O: time comes in, decisions go out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tokio::time::{Duration, Instant};

use super::endpoint::{BatchRule, Ordering};
use crate::{
    event::identity::FieldHasher,
    hub::frame::Item,
    sabotage::{self, Bug},
};

/// Bytes of events in one batch, at most; a single event may be larger.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// A queue in which one unit is attempted at a time.
type Lane = u64;

/// Why the last attempt of a unit failed, as shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// Status of the answer; None where there was none.
    pub status: Option<u16>,
    /// `status`, or what went wrong on the way to one (`dns`, `connect`, `tls`, `timeout`, ...).
    pub kind: String,
}

/// What goes into one request.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Sequences, ascending; the first names the unit.
    pub members: SmallVec<[u64; 1]>,
    /// Attempts that failed.
    pub attempts: u32,
    /// When the first attempt began, microseconds since the epoch; None before it.
    pub first_attempt_us: Option<i64>,
    /// Not before.
    pub due: Instant,
    /// Of the last attempt.
    pub last: Option<LastFailure>,
    /// Its retries are used up: it is announced as dead, then removed.
    pub dead: bool,
    /// An attempt is on its way.
    pub in_flight: bool,
    /// The events, while they are at hand; else they are read again.
    pub items: Vec<Item>,
    lane: Option<Lane>,
}

/// A copy that survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Position up to which everything is taken up.
    pub cursor: u64,
    /// What of it is not settled, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<SavedUnit>,
}

/// A unit that is not settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedUnit {
    /// Sequences.
    #[serde(rename = "s")]
    pub members: SmallVec<[u64; 1]>,
    /// Lane, where it has one.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<u64>,
    /// Attempts that failed.
    #[serde(rename = "a", default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// When the first began, microseconds since the epoch.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub first_attempt_us: Option<i64>,
    /// Not before, microseconds since the epoch; 0 is at once.
    #[serde(rename = "d", default, skip_serializing_if = "is_zero_i64")]
    pub due_us: i64,
    /// Of the last attempt.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastFailure>,
    /// Waits to be announced as dead.
    #[serde(rename = "x", default, skip_serializing_if = "std::ops::Not::not")]
    pub dead: bool,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_zero_i64(n: &i64) -> bool {
    *n == 0
}

/// How a feed groups and orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Which events wait for which.
    pub ordering: Ordering,
    /// How many go together.
    pub batch: Option<BatchRule>,
    /// Wait before the first attempt.
    pub first_wait: Duration,
    /// Events that may be unsettled before the cursor stops.
    pub pending_max: usize,
}

/// One way through the log. See the head of this file.
#[derive(Debug)]
pub struct Feed {
    rules: Rules,
    cursor: u64,
    units: BTreeMap<u64, Unit>,
    /// Events in `units`.
    events: usize,
    /// Units that may be attempted when their time has come: no lane, or first of their lane; not in flight, not dead.
    waiting: BTreeSet<(Instant, u64)>,
    /// Units of each lane, in order; the first is in `waiting`, in flight, or dead.
    lanes: HashMap<Lane, VecDeque<u64>>,
    /// Units that still take members, by lane.
    open: HashMap<Option<Lane>, u64>,
    in_flight: usize,
}

impl Feed {
    /// A feed that has taken up everything up to `cursor`.
    pub fn new(rules: Rules, cursor: u64) -> Self {
        Self {
            rules,
            cursor,
            units: BTreeMap::new(),
            events: 0,
            waiting: BTreeSet::new(),
            lanes: HashMap::new(),
            open: HashMap::new(),
            in_flight: 0,
        }
    }

    /// Goes on where a copy was made. `now` and `now_us` are the same moment.
    pub fn restore(rules: Rules, saved: Saved, now: Instant, now_us: i64) -> Self {
        let mut feed = Self::new(rules, saved.cursor);
        for unit in saved.pending {
            let wait = Duration::from_micros(unit.due_us.saturating_sub(now_us).max(0) as u64);
            feed.add(Unit {
                members: unit.members,
                attempts: unit.attempts,
                first_attempt_us: unit.first_attempt_us,
                due: now + wait,
                last: unit.last,
                dead: unit.dead,
                in_flight: false,
                items: Vec::new(),
                lane: unit.lane,
            });
        }
        feed
    }

    /// What must be known after a restart.
    pub fn save(&self, now: Instant, now_us: i64) -> Saved {
        let is_kept = |unit: &&Unit| !(unit.in_flight && sabotage::on(Bug::ForgetOnItsWay));
        let pending = self.units.values().filter(is_kept).map(|unit| SavedUnit {
            members: unit.members.clone(),
            lane: unit.lane,
            attempts: unit.attempts,
            first_attempt_us: unit.first_attempt_us,
            due_us: match unit.due.saturating_duration_since(now).as_micros() as i64 {
                0 => 0,
                wait => now_us.saturating_add(wait),
            },
            last: unit.last.clone(),
            dead: unit.dead,
        });
        Saved { cursor: self.cursor, pending: pending.collect() }
    }

    /// Other rules from now on; what is pending keeps its lanes.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.open.clear();
    }

    /// Position up to which everything is taken up.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Position up to which everything is settled: what lies behind it is still needed from the log.
    pub fn settled(&self) -> u64 {
        self.units.keys().next().map_or(self.cursor, |first| first.saturating_sub(1).min(self.cursor))
    }

    /// Events that may be taken up now.
    pub fn room(&self) -> usize {
        self.rules.pending_max.saturating_sub(self.events)
    }

    /// Units that are not settled, ascending.
    pub fn pending(&self) -> impl Iterator<Item = &Unit> {
        self.units.values()
    }

    /// Events that are not settled.
    pub fn pending_events(&self) -> usize {
        self.events
    }

    /// Units that could be attempted at `now`, counted up to `max`.
    pub fn ready(&self, now: Instant, max: usize) -> usize {
        self.waiting.range(..=(now, u64::MAX)).take(max).count()
    }

    /// Units on their way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When the next unit comes due.
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Takes up an event; the cursor moves to it.
    pub fn take(&mut self, item: Item, now: Instant) {
        let seq = item.event.seq();
        self.cursor = self.cursor.max(seq);
        if self.units.contains_key(&seq) {
            return;
        }
        let lane = self.lane_of(&item);
        if let Some(rule) = self.rules.batch
            && self.join_open(&item, lane, rule, now)
        {
            return;
        }
        let holds_open = self.rules.batch.is_some();
        let wait = self.rules.batch.map_or(Duration::ZERO, |rule| Duration::from_millis(rule.max_wait_ms));
        self.add(Unit {
            members: SmallVec::from_elem(seq, 1),
            attempts: 0,
            first_attempt_us: None,
            due: now + wait.max(self.rules.first_wait),
            last: None,
            dead: false,
            in_flight: false,
            items: vec![item],
            lane,
        });
        if holds_open {
            self.open.insert(lane, seq);
        }
    }

    /// Everything up to `position` that was not taken up does not match.
    pub fn pass(&mut self, position: u64) {
        self.cursor = self.cursor.max(position);
    }

    fn lane_of(&self, item: &Item) -> Option<Lane> {
        match self.rules.ordering {
            Ordering::None => None,
            Ordering::Strict => Some(0),
            Ordering::PerSim => {
                let iccid = item.event.keys().ok()?.iccid?.to_owned();
                let mut hasher = FieldHasher::new("lane");
                hasher.field(Some(&iccid));
                Some(hasher.finish_u64())
            }
        }
    }

    /// Adds the event to a batch that is still open in its lane.
    fn join_open(&mut self, item: &Item, lane: Option<Lane>, rule: BatchRule, now: Instant) -> bool {
        let Some(first) = self.open.get(&lane).copied() else { return false };
        let Some(unit) = self.units.get_mut(&first) else {
            self.open.remove(&lane);
            return false;
        };
        let bytes: usize = unit.items.iter().map(|one| one.body.len()).sum();
        if unit.in_flight || unit.due <= now || bytes + item.body.len() > BATCH_BYTES_MAX {
            self.open.remove(&lane);
            return false;
        }
        unit.members.push(item.event.seq());
        unit.items.push(item.clone());
        self.events += 1;
        if unit.members.len() >= rule.max_events {
            let (before, lane) = (unit.due, unit.lane);
            unit.due = unit.due.min(now + self.rules.first_wait);
            self.open.remove(&lane);
            if self.waiting.remove(&(before, first)) {
                self.waiting.insert((unit.due, first));
            }
        }
        true
    }

    fn add(&mut self, unit: Unit) {
        let Some(first) = unit.members.first().copied() else { return };
        self.events += unit.members.len();
        let is_head = match unit.lane {
            None => true,
            Some(lane) => {
                let queue = self.lanes.entry(lane).or_default();
                queue.push_back(first);
                queue.len() == 1
            }
        };
        if is_head && !unit.dead {
            self.waiting.insert((unit.due, first));
        }
        self.units.insert(first, unit);
    }

    /// The next unit to attempt, marked as on its way: that which has been due longest.
    pub fn start(&mut self, now: Instant, now_us: i64) -> Option<&mut Unit> {
        let (due, first) = self.waiting.first().copied().filter(|(due, _)| *due <= now)?;
        self.waiting.remove(&(due, first));
        let unit = self.units.get_mut(&first)?;
        unit.in_flight = true;
        unit.first_attempt_us.get_or_insert(now_us);
        self.in_flight += 1;
        Some(unit)
    }

    /// The unit with this first member.
    pub fn get(&self, first: u64) -> Option<&Unit> {
        self.units.get(&first)
    }

    /// The unit is settled: delivered, skipped, or announced as dead. Gives it, if it was there.
    pub fn settle(&mut self, first: u64) -> Option<Unit> {
        let unit = self.units.remove(&first)?;
        self.events -= unit.members.len();
        self.in_flight -= usize::from(unit.in_flight);
        self.waiting.remove(&(unit.due, first));
        if let Some(lane) = unit.lane {
            self.advance(lane, first);
        }
        Some(unit)
    }

    /// The attempt that is on its way has settled the unit.
    pub fn arrived(&mut self, first: u64) -> Option<Unit> {
        self.under_way(first)?;
        self.settle(first)
    }

    /// The lane's next unit may go.
    fn advance(&mut self, lane: Lane, settled: u64) {
        let Some(queue) = self.lanes.get_mut(&lane) else { return };
        queue.retain(|first| *first != settled);
        let Some(head) = queue.front().copied() else {
            self.lanes.remove(&lane);
            return;
        };
        if let Some(unit) = self.units.get(&head).filter(|unit| !unit.in_flight && !unit.dead) {
            self.waiting.insert((unit.due, head));
        }
    }

    /// The attempt failed; another follows at `due`. `counts`: it used up one of the unit's attempts.
    pub fn retry(&mut self, first: u64, due: Instant, last: LastFailure, counts: bool) {
        let Some(unit) = self.under_way(first) else { return };
        unit.in_flight = false;
        unit.attempts += u32::from(counts);
        unit.due = due;
        unit.last = Some(last);
        // What waits is read again: its bytes are not kept for hours.
        unit.items = Vec::new();
        self.in_flight -= 1;
        self.waiting.insert((due, first));
    }

    /// The attempt failed and was the last: the unit waits to be announced.
    pub fn bury(&mut self, first: u64, last: LastFailure) {
        let Some(unit) = self.under_way(first) else { return };
        unit.in_flight = false;
        unit.attempts += 1;
        unit.last = Some(last);
        unit.dead = true;
        unit.items = Vec::new();
        self.in_flight -= 1;
    }

    /// An attempt that was begun was not made: the unit is due at once.
    pub fn give_back(&mut self, first: u64, now: Instant) {
        let Some(unit) = self.under_way(first) else { return };
        unit.in_flight = false;
        unit.due = now;
        self.in_flight -= 1;
        self.waiting.insert((now, first));
    }

    /// A unit that is on its way. One that is not has been taken up anew since (a seek), and what an attempt of before
    /// came to says nothing of it.
    fn under_way(&mut self, first: u64) -> Option<&mut Unit> {
        self.units.get_mut(&first).filter(|unit| unit.in_flight)
    }

    /// Brings everything that waits for another attempt forward, spread over `over`: the receiver is back.
    pub fn hasten(&mut self, now: Instant, over: Duration) {
        let waiting: Vec<_> = self.waiting.iter().copied().filter(|(due, _)| *due > now + over).collect();
        let count = waiting.len().max(1) as u32;
        for (n, (due, first)) in (0_u32..).zip(waiting) {
            let Some(unit) = self.units.get_mut(&first).filter(|unit| unit.attempts > 0) else { continue };
            let sooner = now + over * n / count;
            self.waiting.remove(&(due, first));
            unit.due = sooner;
            self.waiting.insert((sooner, first));
        }
        // Those behind the head of a lane must not sit out a time of before either.
        for unit in self.units.values_mut().filter(|unit| !unit.in_flight && unit.due > now + over) {
            if unit.attempts > 0 && !self.waiting.contains(&(unit.due, unit.members[0])) {
                unit.due = now;
            }
        }
    }

    /// Makes one unit due at once. False where nothing with that member is pending, or it is on its way.
    pub fn hurry(&mut self, member: u64, now: Instant) -> bool {
        let found = self.units.values_mut().find(|unit| unit.members.contains(&member));
        let Some(unit) = found.filter(|unit| !unit.in_flight && !unit.dead) else { return false };
        let first = unit.members[0];
        let was_waiting = self.waiting.remove(&(unit.due, first));
        unit.due = now;
        if was_waiting {
            self.waiting.insert((now, first));
        }
        true
    }

    /// Forgets the bytes of events that are not on their way; they are read again.
    pub fn shed(&mut self) {
        for unit in self.units.values_mut().filter(|unit| !unit.in_flight) {
            unit.items = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests;
