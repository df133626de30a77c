//! Everything that has a state and is not a request: fleet, traffic, visible rows, the truth, and time passing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::Config;
use super::faults::{Faults, OutageMode};
use super::fleet::Fleet;
use super::index::{Filter, Layout, Page, Visible};
use super::meter::Stats;
use super::query::Params;
use super::row::{Draft, Row};
use super::traffic::{EventSpec, Traffic};
use super::truth::Ledger;

/// Late events held back at the same time; beyond that an event is exposed at once.
const HELD_BACK_MAX: usize = 100_000;
/// Events in the history.
const HISTORY_MAX: f64 = 2_000_000.0;
/// Fastest traffic, events per second.
const RATE_MAX: f64 = 100_000.0;
/// Events generated per wake-up, so that a stalled machine does not stall longer.
const CATCH_UP_MAX: usize = 10_000;

/// A late event waiting for its moment; the earliest is the greatest.
#[derive(Debug)]
struct HeldBack(Reverse<(Instant, u64)>, Draft);

/// The simulated account.
#[derive(Debug)]
pub(super) struct World {
    fleet: Fleet,
    traffic: Traffic,
    /// Chance for faults and late arrivals, apart from the traffic's, so that switches do not change the story.
    chance: fastrand::Rng,
    faults: Faults,
    outage_until: Option<Instant>,
    burst_left: u32,
    visible: Visible,
    visible_max: usize,
    ledger: Ledger,
    held_back: BinaryHeap<HeldBack>,
    held_back_count: u64,
    rate: f64,
    paused: bool,
    next_arrival: Option<Instant>,
    removed: u64,
}

impl PartialEq for HeldBack {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for HeldBack {}

impl PartialOrd for HeldBack {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HeldBack {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

// === impl World ===

impl World {
    /// The account with its history, at `now`.
    pub(super) fn new(config: &Config, now: Timestamp) -> Self {
        let mut seeds = fastrand::Rng::with_seed(config.seed);
        let mut world = Self {
            fleet: Fleet::new(&mut seeds.fork(), config.sims, now.as_second()),
            traffic: Traffic::new(seeds.fork(), config.tie_seconds),
            chance: seeds.fork(),
            faults: Faults::default(),
            outage_until: None,
            burst_left: 0,
            visible: Visible::default(),
            visible_max: config.visible_rows.max(1),
            ledger: Ledger::new(config.truth_events),
            held_back: BinaryHeap::new(),
            held_back_count: 0,
            rate: 0.0,
            paused: false,
            next_arrival: None,
            removed: 0,
        };
        world.set_faults(config.faults.clone());
        world.tell_history(config, now);
        world.set_rate(config.events_per_second);
        world
    }

    fn tell_history(&mut self, config: &Config, now: Timestamp) {
        let rate = config.history_events_per_second;
        if !rate.is_finite() || rate <= 0.0 {
            return;
        }
        // No event carries the second in which the simulator starts: history is closed.
        let end = now.as_second() as f64;
        let mut at = end - config.history.as_secs_f64().min(HISTORY_MAX / rate);
        loop {
            at += self.traffic.wait_s(rate);
            if at >= end {
                break;
            }
            let mut draft = self.traffic.next(&mut self.fleet, &self.faults.content, at as i64);
            draft.history = true;
            let visible_at = Timestamp::from_second(draft.at_s).unwrap_or(now);
            self.expose_drawn(draft, visible_at, now);
        }
    }

    // --- switches

    /// Replaces all switches.
    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.visible.set_layout(Layout { ties: faults.tie_order, shuffled: faults.any_unsorted() });
        let length = faults.outage.and_then(|outage| outage.for_ms);
        self.outage_until = length.map(|ms| Instant::now() + Duration::from_millis(ms));
        self.burst_left = 0;
        self.faults = faults;
    }

    /// The switches now.
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What a request meets during an outage.
    pub(super) fn outage(&self) -> Option<OutageMode> {
        let over = self.outage_until.is_some_and(|until| Instant::now() >= until);
        self.faults.outage.filter(|_| !over).map(|outage| outage.mode)
    }

    /// Events per second; zero, negative and not finite mean none.
    pub(super) fn set_rate(&mut self, rate: f64) {
        self.rate = if rate.is_finite() && rate > 0.0 { rate.min(RATE_MAX) } else { 0.0 };
        self.schedule(Instant::now());
    }

    /// Stops or resumes the traffic. Late events held back still come out.
    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.schedule(Instant::now());
    }

    fn schedule(&mut self, from: Instant) {
        let runs = self.rate > 0.0 && !self.paused;
        self.next_arrival = runs.then(|| from + self.wait());
    }

    fn wait(&mut self) -> Duration {
        Duration::try_from_secs_f64(self.traffic.wait_s(self.rate)).unwrap_or(Duration::from_secs(86_400))
    }

    // --- time

    /// When something happens next by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let held_back = self.held_back.peek().map(|held| held.0.0.0);
        [self.next_arrival, held_back].into_iter().flatten().min()
    }

    /// Lets everything happen that is due.
    pub(super) fn run_due(&mut self, now: Timestamp) {
        let instant = Instant::now();
        for _ in 0..CATCH_UP_MAX {
            let Some(due) = self.next_arrival.filter(|due| *due <= instant) else { break };
            self.generate(now);
            self.next_arrival = Some(due + self.wait());
        }
        while self.held_back.peek().is_some_and(|held| held.0.0.0 <= instant) {
            if let Some(HeldBack(_, draft)) = self.held_back.pop() {
                self.expose_drawn(draft, now, now);
            }
        }
        self.expire(now);
    }

    fn generate(&mut self, now: Timestamp) {
        let mut draft = self.traffic.next(&mut self.fleet, &self.faults.content, now.as_second());
        let late = &self.faults.late;
        let is_late = late.probability > 0.0 && self.chance.f64() < late.probability;
        if !is_late || self.held_back.len() >= HELD_BACK_MAX {
            self.expose_drawn(draft, now, now);
            return;
        }
        let delay_ms = (-(1.0 - self.chance.f64()).ln() * late.mean_ms as f64).min(late.max_ms as f64);
        let due = Instant::now() + Duration::from_millis(delay_ms as u64);
        draft.late = true;
        self.held_back_count += 1;
        self.held_back.push(HeldBack(Reverse((due, self.held_back_count)), draft));
    }

    fn expire(&mut self, now: Timestamp) {
        let Some(keep_s) = self.faults.paging.retention_s else { return };
        let floor = now.as_second().saturating_sub(i64::try_from(keep_s).unwrap_or(i64::MAX));
        while let Some(row) = self.visible.oldest().filter(|row| row.draft.at_s < floor) {
            self.remove(&row, now);
        }
    }

    // --- events

    /// One event now, as asked.
    pub(super) fn inject(&mut self, spec: EventSpec, now: Timestamp) -> Arc<Row> {
        let draft = self.traffic.on_request(&mut self.fleet, spec, now);
        self.expose(draft, now, now)
    }

    /// `count` events of the usual traffic now; none of them late.
    pub(super) fn inject_burst(&mut self, count: usize, now: Timestamp) -> Vec<Arc<Row>> {
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            let draft = self.traffic.next(&mut self.fleet, &self.faults.content, now.as_second());
            rows.push(self.expose(draft, now, now));
        }
        rows
    }

    /// One event that happened up to so many seconds ago, or just then.
    fn inject_late(&mut self, within_s: u64, just: bool, now: Timestamp) {
        let age_s = if just { within_s } else { self.between(0, within_s) };
        let age = SignedDuration::from_secs(i64::try_from(age_s).unwrap_or(i64::MAX));
        let timestamp = Some(now.saturating_sub(age).unwrap_or(now));
        let spec = EventSpec { timestamp, ..EventSpec::default() };
        let mut draft = self.traffic.on_request(&mut self.fleet, spec, now);
        draft.late = true;
        self.expose(draft, now, now);
    }

    /// Exposes a generated event, and now and then once more.
    fn expose_drawn(&mut self, draft: Draft, visible_at: Timestamp, now: Timestamp) {
        let p = self.faults.content.duplicate_row;
        if p > 0.0 && self.chance.f64() < p {
            self.expose(draft.clone(), visible_at, now);
        }
        self.expose(draft, visible_at, now);
    }

    fn expose(&mut self, draft: Draft, visible_at: Timestamp, now: Timestamp) -> Arc<Row> {
        let row = Arc::new(Row::new(self.ledger.last() + 1, draft, visible_at));
        self.ledger.push(row.clone());
        self.visible.insert(&row);
        if self.visible.len() > self.visible_max {
            self.remove_oldest(1, now);
        }
        row
    }

    fn remove(&mut self, row: &Row, now: Timestamp) {
        row.mark_removed(now);
        self.visible.remove(row);
        self.removed += 1;
    }

    /// Retention: takes the oldest rows away.
    pub(super) fn remove_oldest(&mut self, count: usize, now: Timestamp) {
        for _ in 0..count {
            let Some(row) = self.visible.oldest() else { break };
            self.remove(&row, now);
        }
    }

    /// Erasure: takes random rows away, as the paging switches choose them.
    pub(super) fn erase(&mut self, count: usize, now: Timestamp) {
        for _ in 0..count {
            if let Some(row) = self.random_row().filter(|row| self.may_erase(row)) {
                self.remove(&row, now);
            }
        }
    }

    fn may_erase(&self, row: &Row) -> bool {
        !self.faults.paging.erase_only_served || row.first_served_at().is_some()
    }

    fn random_row(&mut self) -> Option<Arc<Row>> {
        let among = self.visible.len().min(self.faults.paging.erase_within.unwrap_or(usize::MAX));
        let position = (among > 0).then(|| self.chance.usize(..among))?;
        self.visible.newest_but(position)
    }

    /// What changes between two requests for the account-wide list.
    pub(super) fn between_pages(&mut self, now: Timestamp) {
        let paging = self.faults.paging.clone();
        self.inject_burst(paging.inserts as usize, now);
        for n in 0..paging.late {
            self.inject_late(paging.late_within_s, n % 2 == 1, now);
        }
        self.remove_oldest(paging.removes_oldest as usize, now);
        self.erase(paging.erases as usize, now);
        for _ in 0..paging.revisions {
            if let Some(row) = self.random_row() {
                row.revise();
            }
        }
        self.expire(now);
    }

    // --- reading

    /// Offset and number of rows that a list answers now.
    pub(super) fn window(&mut self, params: &Params) -> (usize, usize) {
        let (offset, limit) = params.window(&self.faults.lists);
        if !self.strikes(self.faults.lists.short_page) {
            return (offset, limit);
        }
        (offset, self.chance.usize(..limit.max(1)))
    }

    /// A page of the account-wide list.
    pub(super) fn account_page(&mut self, filter: &Filter<'_>, window: (usize, usize)) -> Page {
        if !self.faults.lists.reshuffle {
            return self.visible.page(filter, self.faults.order, window);
        }
        let mut page = self.visible.page(filter, self.faults.order, (0, usize::MAX));
        self.chance.shuffle(&mut page.rows);
        page.rows = page.rows.into_iter().skip(window.0).take(window.1).collect();
        page
    }

    /// A page of one SIM's list.
    pub(super) fn sim_page(&self, filter: &Filter<'_>, window: (usize, usize)) -> Page {
        self.visible.page(filter, self.faults.order_of_sims(), window)
    }

    /// Who there is.
    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Moves a device to another SIM. False: no such SIM.
    pub(super) fn relink(&mut self, device: &str, iccid: &str, now: Timestamp) -> bool {
        self.fleet.relink(device, iccid, now.as_second())
    }

    /// What really happened.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Adds the world's figures.
    pub(super) fn fill(&self, stats: Stats) -> Stats {
        Stats {
            sims: self.fleet.len(),
            visible_rows: self.visible.len(),
            exposed: self.ledger.last(),
            held_back: self.held_back.len(),
            removed: self.removed,
            truth_dropped: self.ledger.dropped(),
            events_per_second: self.rate,
            paused: self.paused,
            ..stats
        }
    }

    // --- chance

    /// Whether something of this probability happens now.
    pub(super) fn strikes(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.chance.f64() < probability
    }

    /// A number between two bounds, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.chance.u64(low..=high.max(low))
    }

    /// Whether this request falls into a burst of 429.
    pub(super) fn in_burst(&mut self) -> bool {
        if self.burst_left == 0 && self.strikes(self.faults.errors.too_many) {
            self.burst_left = self.faults.errors.too_many_burst.max(1);
        }
        let hit = self.burst_left > 0;
        self.burst_left = self.burst_left.saturating_sub(1);
        hit
    }
}
