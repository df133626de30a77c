//! The feed against a model that keeps no cursor and no sets: a list of what happened to each event.
//!
//! The model knows, for each event of a made-up log, how often it was sent and whether it is settled. Steps are drawn:
//! events come, units are started, answered in any order, time passes, copies are made, and at any step the process
//! crashes and goes on from the last copy. What must hold is what [`Feed`] promises.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::event::{Event, Iccid, StoredEvent};

const PENDING_MAX: usize = 12;
const ICCIDS: [&str; 3] = ["8947000000000000001", "8947000000000000002", "8946000000000000003"];

fn item(seq: u64, sim: usize) -> Item {
    let mut event = Event::new(format!("e{seq}"), "/globalsim/t".into(), "connection");
    event.iccid = Iccid::parse(ICCIDS[sim]).ok();
    event.time = Some(Timestamp::UNIX_EPOCH);
    let event: StoredEvent = event.seal(Timestamp::UNIX_EPOCH, jiff::SignedDuration::MAX).unwrap().at(seq);
    Item { body: event.body().clone(), event }
}

fn rules(ordering: Ordering, batch: Option<BatchRule>) -> Rules {
    Rules { ordering, batch, first_wait: Duration::ZERO, pending_max: PENDING_MAX }
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    /// The next event of the log is taken up, if there is room; not all match.
    Take,
    /// The unit that has been due longest is sent.
    Start,
    /// A unit on its way is answered: the n-th of them.
    Answer(usize, Reply),
    /// Seconds pass.
    Pass(u64),
    /// A copy is written.
    Save,
    /// The process ends and another goes on from the last copy.
    Crash,
    /// The receiver was away and is back.
    Hasten,
}

#[derive(Debug, Clone, Copy)]
enum Reply {
    Ok,
    RetryIn(u64),
    Dead,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let reply =
        prop_oneof![4 => Just(Reply::Ok), 2 => (1_u64..60).prop_map(Reply::RetryIn), 1 => Just(Reply::Dead)];
    let step = prop_oneof![
        8 => Just(Step::Take),
        8 => Just(Step::Start),
        8 => (0_usize..8, reply).prop_map(|(n, reply)| Step::Answer(n, reply)),
        2 => (1_u64..40).prop_map(Step::Pass),
        3 => Just(Step::Save),
        1 => Just(Step::Crash),
        1 => Just(Step::Hasten),
    ];
    proptest::collection::vec(step, 1..300)
}

struct Model {
    /// SIM and whether it matches, by sequence.
    log: Vec<(usize, bool)>,
    feed: Feed,
    rules: Rules,
    now: Instant,
    /// Microseconds since the epoch; steps apart from `now` when the clock is set.
    wall_us: i64,
    saved: Saved,
    /// Events settled in the running process, and as of the last copy.
    settled: BTreeSet<u64>,
    settled_saved: BTreeSet<u64>,
    in_flight: Vec<u64>,
    /// Every start, in order.
    sent: Vec<SmallVec<[u64; 1]>>,
    /// Starts of events that the last copy, or the running process, held to be settled.
    wrong: Vec<u64>,
}

impl Model {
    fn new(log: Vec<(usize, bool)>, rules: Rules) -> Self {
        let feed = Feed::new(rules, 0);
        let saved = Saved { cursor: 0, pending: Vec::new() };
        Self {
            log,
            feed,
            rules,
            now: Instant::now(),
            wall_us: 1_000_000_000_000,
            saved,
            settled: BTreeSet::new(),
            settled_saved: BTreeSet::new(),
            in_flight: Vec::new(),
            sent: Vec::new(),
            wrong: Vec::new(),
        }
    }

    fn sim(&self, seq: u64) -> usize {
        self.log[seq as usize - 1].0
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Take => {
                let seq = self.feed.cursor() + 1;
                let Some((sim, matches)) = self.log.get(seq as usize - 1).copied() else { return };
                if !matches {
                    self.feed.pass(seq);
                } else if self.feed.room() > 0 {
                    self.feed.take(item(seq, sim), self.now);
                }
            }
            Step::Start => {
                let Some(unit) = self.feed.start(self.now, self.wall_us) else { return };
                let members = unit.members.clone();
                self.wrong.extend(members.iter().filter(|seq| self.settled.contains(seq)));
                self.in_flight.push(members[0]);
                self.sent.push(members);
            }
            Step::Answer(n, reply) => {
                if self.in_flight.is_empty() {
                    return;
                }
                let first = self.in_flight.remove(n % self.in_flight.len());
                let failure = LastFailure { status: Some(500), kind: "status".into() };
                match reply {
                    Reply::Ok => {
                        let unit = self.feed.arrived(first).unwrap();
                        self.settled.extend(unit.members);
                    }
                    Reply::RetryIn(seconds) => {
                        self.feed.retry(first, self.now + Duration::from_secs(seconds), failure, true);
                    }
                    Reply::Dead => {
                        self.feed.bury(first, failure);
                        assert!(self.feed.get(first).unwrap().dead);
                        let unit = self.feed.settle(first).unwrap();
                        self.settled.extend(unit.members);
                    }
                }
            }
            Step::Pass(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.wall_us += seconds as i64 * 1_000_000;
            }
            Step::Save => {
                self.saved = self.feed.save(self.now, self.wall_us);
                self.settled_saved = self.settled.clone();
            }
            Step::Crash => {
                let text = serde_json::to_string(&self.saved).unwrap();
                let saved: Saved = serde_json::from_str(&text).unwrap();
                assert_eq!(saved, self.saved);
                self.feed = Feed::restore(self.rules, saved, self.now, self.wall_us);
                self.settled = self.settled_saved.clone();
                self.in_flight.clear();
            }
            Step::Hasten => self.feed.hasten(self.now, Duration::from_secs(2)),
        }
        self.check();
    }

    /// What holds after every step.
    fn check(&self) {
        let pending: BTreeSet<u64> =
            self.feed.pending().flat_map(|unit| unit.members.iter().copied()).collect();
        assert_eq!(pending.len(), self.feed.pending_events(), "no event is in two units");
        assert!(pending.len() <= PENDING_MAX);
        for seq in 1..=self.feed.cursor() {
            let (_, matches) = self.log[seq as usize - 1];
            let known = pending.contains(&seq) || self.settled.contains(&seq);
            assert!(!matches || known, "{seq} is neither pending nor settled");
            assert!(!(pending.contains(&seq) && self.settled.contains(&seq)), "{seq} is both");
        }
        assert_eq!(self.feed.in_flight(), self.in_flight.len());
        assert!(pending.iter().all(|seq| *seq > self.feed.settled()));
        // One unit of a lane at a time, and the first of it.
        let mut lanes = BTreeMap::new();
        for unit in self.feed.pending() {
            if let Some(lane) = unit.lane {
                let is_first = lanes.insert(lane, ()).is_none();
                assert!(is_first || !unit.in_flight, "a unit overtakes its lane");
            }
        }
    }

    /// Everything is answered well until nothing is left.
    fn finish(&mut self) {
        for _ in 0..20_000 {
            let done = self.feed.cursor() as usize == self.log.len() && self.feed.pending_events() == 0;
            if done {
                return;
            }
            for step in [Step::Take, Step::Start, Step::Answer(0, Reply::Ok), Step::Pass(1)] {
                self.step(step);
            }
        }
        panic!("it does not come to an end: {:?}", self.feed);
    }
}

fn ordering() -> impl Strategy<Value = Ordering> {
    prop_oneof![Just(Ordering::None), Just(Ordering::PerSim), Just(Ordering::Strict)]
}

fn batch() -> impl Strategy<Value = Option<BatchRule>> {
    prop_oneof![
        2 => Just(None),
        1 => (2_usize..5, 0_u64..5_000).prop_map(|(max_events, max_wait_ms)| Some(BatchRule { max_events, max_wait_ms })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_sent_again_but_what_was_settled_since_the_last_copy(
        log in proptest::collection::vec((0_usize..3, proptest::bool::weighted(0.8)), 1..60),
        ordering in ordering(),
        batch in batch(),
        steps in steps(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _inside = runtime.enter();
        let mut model = Model::new(log, rules(ordering, batch));
        steps.into_iter().for_each(|step| model.step(step));
        model.finish();
        prop_assert!(model.wrong.is_empty(), "sent although settled: {:?}", model.wrong);
        let sent: BTreeSet<u64> = model.sent.iter().flatten().copied().collect();
        for (n, (_, matches)) in model.log.iter().enumerate() {
            prop_assert_eq!(sent.contains(&(n as u64 + 1)), *matches);
        }
    }

    /// Without crashes the first attempts of a lane come in the order of the log, and none before the one before is
    /// settled (which `check` looks at).
    #[test]
    fn a_lane_keeps_its_order(
        log in proptest::collection::vec((0_usize..3, Just(true)), 1..60),
        ordering in prop_oneof![Just(Ordering::PerSim), Just(Ordering::Strict)],
        batch in batch(),
        steps in steps(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _inside = runtime.enter();
        let mut model = Model::new(log, rules(ordering, batch));
        steps.into_iter().filter(|step| !matches!(step, Step::Crash)).for_each(|step| model.step(step));
        model.finish();
        let mut last: BTreeMap<usize, u64> = BTreeMap::new();
        for seq in model.sent.iter().flatten() {
            let lane = if ordering == Ordering::Strict { 0 } else { model.sim(*seq) };
            let before = last.entry(lane).or_default();
            // An attempt that is made again has the number of before; none goes back further.
            let of_lane = |one: &u64| ordering == Ordering::Strict || model.sim(*one) == lane;
            let again = model.sent.iter().filter(|unit| unit.contains(seq)).count() > 1;
            prop_assert!(*seq > *before || again, "{} after {}", seq, before);
            prop_assert!(of_lane(seq));
            *before = (*before).max(*seq);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_closes_when_it_is_full_or_old_enough() {
    let rule = BatchRule { max_events: 3, max_wait_ms: 500 };
    let (mut feed, now) = (Feed::new(rules(Ordering::None, Some(rule)), 0), Instant::now());
    for seq in 1..=4 {
        feed.take(item(seq, 0), now);
    }
    assert_eq!(feed.start(now, 0).unwrap().members.as_slice(), [1, 2, 3]);
    assert!(feed.start(now, 0).is_none(), "the fourth waits for more");
    let later = now + Duration::from_millis(500);
    assert_eq!(feed.start(later, 0).unwrap().members.as_slice(), [4]);
    feed.take(item(5, 0), later);
    assert_eq!(feed.get(4).unwrap().members.len(), 1, "what is on its way takes no more members");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_moves_no_retry_while_the_process_runs() {
    let (mut feed, now) = (Feed::new(rules(Ordering::None, None), 0), Instant::now());
    feed.take(item(1, 0), now);
    feed.start(now, 0);
    let failure = LastFailure { status: None, kind: "connect".into() };
    feed.retry(1, now + Duration::from_secs(300), failure, true);
    assert_eq!(feed.next_due(), Some(now + Duration::from_secs(300)));
    // Saved by one wall clock, restored 100 s later by it.
    let saved = feed.save(now, 5_000_000);
    let later = now + Duration::from_secs(100);
    let restored = Feed::restore(rules(Ordering::None, None), saved, later, 105_000_000);
    assert_eq!(restored.next_due(), Some(now + Duration::from_secs(300)));
    assert_eq!(restored.get(1).unwrap().attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_of_before_a_seek_says_nothing_of_what_is_taken_up_anew() {
    let now = Instant::now();
    let failure = || LastFailure { status: Some(500), kind: "status".into() };
    let mut feed = Feed::new(rules(Ordering::PerSim, None), 0);
    feed.take(item(1, 0), now);
    feed.take(item(2, 0), now);
    // Nothing has been started in this feed: whatever comes is of the one before.
    feed.retry(2, now + Duration::from_secs(5), failure(), true);
    feed.bury(2, failure());
    feed.give_back(2, now);
    assert!(feed.arrived(2).is_none());
    assert_eq!((feed.pending_events(), feed.in_flight()), (2, 0));
    assert_eq!(feed.start(now, 0).unwrap().members.as_slice(), [1]);
    assert!(feed.start(now, 0).is_none(), "the second waits for the first");
    feed.arrived(1).unwrap();
    assert_eq!(feed.start(now, 0).unwrap().members.as_slice(), [2]);
}
