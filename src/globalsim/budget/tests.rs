//! The promises of the gate, counted by a receiver that sees each request at some moment between sending and answer.

use std::{
    collections::VecDeque,
    path::Path,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use jiff::Timestamp;
use proptest::prelude::*;
use tokio::time::{advance, sleep};

use super::*;
use crate::clock::{Clock, TokioClock};

const MINUTE: Duration = Duration::from_secs(60);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

fn config(requests_per_minute: u32, journal: Option<&Path>) -> BudgetConfig {
    BudgetConfig {
        requests_per_minute,
        limit_per_minute: 500,
        journal: journal.map(Path::to_owned),
        shared: false,
    }
}

fn clock() -> SharedClock {
    Arc::new(TokioClock::starting_at("2025-11-05T08:00:00Z".parse().unwrap()))
}

fn gate(requests_per_minute: u32) -> Gate {
    Gate::open(config(requests_per_minute, None), clock()).unwrap()
}

/// A machine whose time since boot follows tokio's clock.
fn boot(id: u8) -> Boot {
    let started = Instant::now();
    Boot { id: Some([id; 16]), uptime: Arc::new(move || Some(MINUTE * 60 + started.elapsed())) }
}

/// The most arrivals in any window of 60 s.
fn most_in_a_minute(mut arrivals: Vec<Instant>) -> usize {
    arrivals.sort();
    let mut window = VecDeque::new();
    let mut most = 0;
    for at in arrivals {
        window.push_back(at);
        while window.front().is_some_and(|first| at.duration_since(*first) > MINUTE) {
            window.pop_front();
        }
        most = most.max(window.len());
    }
    most
}

#[derive(Debug, Clone)]
struct Request {
    class: Class,
    start_ms: u64,
    patience_ms: Option<u64>,
    arrives_ms: u64,
    answered_ms: u64,
    refused: bool,
}

fn request() -> impl Strategy<Value = Request> {
    let class = (0usize..6).prop_map(|at| Class::ALL[at]);
    let times = (0u64..200_000, 0u64..5_000, 0u64..5_000);
    let patience = proptest::option::weighted(0.2, 0u64..3_000);
    (class, times, patience, proptest::bool::weighted(0.02)).prop_map(
        |(class, times, patience_ms, refused)| {
            let (start_ms, arrives_ms, more_ms) = times;
            Request { class, start_ms, patience_ms, arrives_ms, answered_ms: arrives_ms + more_ms, refused }
        },
    )
}

/// Runs one request; gives the moment at which the receiver counts it.
async fn run(gate: Gate, r: Request) -> Option<Instant> {
    sleep(Duration::from_millis(r.start_ms)).await;
    let slot = match r.patience_ms {
        Some(ms) => tokio::time::timeout(Duration::from_millis(ms), gate.acquire(r.class)).await.ok()?,
        None => gate.acquire(r.class).await,
    };
    sleep(Duration::from_millis(r.arrives_ms)).await;
    let arrived = Instant::now();
    sleep(Duration::from_millis(r.answered_ms - r.arrives_ms)).await;
    if r.refused {
        gate.on_rate_limited(None);
    }
    slot.finish();
    Some(arrived)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_receiver_never_counts_more(per_minute in 1u32..60, requests in proptest::collection::vec(request(), 1..200)) {
        let (wanted, most) = runtime().block_on(async {
            let gate = gate(per_minute);
            let wanted = requests.iter().filter(|r| r.patience_ms.is_none()).count();
            let tasks: Vec<_> = requests.into_iter().map(|r| tokio::spawn(run(gate.clone(), r))).collect();
            let mut arrivals = Vec::new();
            for task in tasks {
                arrivals.extend(task.await.unwrap());
            }
            assert!(arrivals.len() >= wanted, "a request that waits is served in the end");
            assert_eq!(gate.usage().waiting, [0; 6]);
            (wanted, most_in_a_minute(arrivals))
        });
        prop_assert!(most <= per_minute as usize, "{most} of {wanted} in a minute, {per_minute} allowed");
    }

    #[test]
    fn restarts_do_not_add_up(per_minute in 1u32..40, rounds in proptest::collection::vec((0u64..20_000, 0usize..30, any::<bool>()), 1..25)) {
        let most = runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (clock, boot) = (clock(), boot(1));
            let mut arrivals = Vec::new();
            let mut path = dir.path().join("0");
            for (round, (pause_ms, wanted, killed)) in rounds.into_iter().enumerate() {
                let gate = Gate::open_on(config(per_minute, Some(&path)), clock.clone(), boot.clone()).unwrap();
                let slots: Vec<Slot> = (0..wanted).map_while(|_| gate.try_acquire(Class::Tail)).collect();
                advance(Duration::from_millis(pause_ms / 4)).await;
                arrivals.extend(slots.iter().map(|_| Instant::now()));
                if killed {
                    // What lies on disk at this moment is what a killed process leaves.
                    let next = dir.path().join(format!("{}", round + 1));
                    std::fs::copy(&path, &next).unwrap();
                    path = next;
                }
                drop((slots, gate));
                advance(Duration::from_millis(pause_ms)).await;
            }
            most_in_a_minute(arrivals)
        });
        prop_assert!(most <= per_minute as usize, "{most} in a minute, {per_minute} allowed");
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_restarts_in_a_minute_stay_under_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, boot) = (clock(), boot(1));
    let open = |path: &Path| Gate::open_on(config(100, Some(path)), clock.clone(), boot.clone()).unwrap();
    let all_there_are =
        |gate: &Gate| std::iter::from_fn(|| gate.try_acquire(Class::CatchUp)).collect::<Vec<_>>();
    let mut path = dir.path().join("0");
    let mut sent = Vec::new();
    for round in 1..=20 {
        let gate = open(&path);
        let first = all_there_are(&gate);
        advance(Duration::from_secs(2)).await;
        let second = all_there_are(&gate);
        sent.push(first.len() + second.len());
        // Killed: what lies on disk now is all that the next one knows.
        let next = dir.path().join(round.to_string());
        std::fs::copy(&path, &next).unwrap();
        path = next;
    }
    // Each process alone would send 8: the burst, and 2 s of the allowance.
    assert_eq!((sent[0], sent.iter().sum::<usize>()), (8, 100));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_counts_from_the_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, boot) = (clock(), boot(1));
    let path = dir.path().join("journal");
    let gate = Gate::open_on(config(1, Some(&path)), clock.clone(), boot.clone()).unwrap();
    let in_flight = gate.acquire(Class::Tail).await;
    let copy = dir.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    advance(MINUTE * 5).await;
    let gate = Gate::open_on(config(1, Some(&copy)), clock.clone(), boot.clone()).unwrap();
    assert_eq!(gate.usage().used, [1, 0, 0, 0, 0, 0]);
    advance(HOLD - Duration::from_millis(1)).await;
    assert!(gate.try_acquire(Class::Tail).is_none());
    advance(Duration::from_millis(1)).await;
    assert!(gate.try_acquire(Class::Tail).is_some());
    drop(in_flight);
}

/// A wall clock that can be set.
#[derive(Debug)]
struct Settable(TokioClock, AtomicI64);

impl Clock for Settable {
    fn now(&self) -> Timestamp {
        self.0.now() + jiff::SignedDuration::from_secs(self.1.load(Ordering::Relaxed))
    }
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_set_frees_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for step_s in [3600, -3600] {
        let path = dir.path().join(step_s.to_string());
        let clock = Arc::new(Settable(TokioClock::starting_at(Timestamp::UNIX_EPOCH), AtomicI64::new(0)));
        let boot = boot(1);
        let gate = Gate::open_on(config(1, Some(&path)), clock.clone(), boot.clone()).unwrap();
        gate.acquire(Class::Tail).await.finish();
        drop(gate);
        clock.1.store(step_s, Ordering::Relaxed);
        let gate = Gate::open_on(config(1, Some(&path)), clock.clone(), boot).unwrap();
        assert!(gate.try_acquire(Class::Tail).is_none(), "{step_s}");
        advance(HOLD).await;
        assert!(gate.try_acquire(Class::Tail).is_some(), "{step_s}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_the_whole_allowance_counts_as_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let (clock, first, second) = (clock(), boot(1), boot(2));
    let open = |boot: &Boot| Gate::open_on(config(10, Some(&path)), clock.clone(), boot.clone()).unwrap();
    let gate = open(&first);
    gate.acquire(Class::Tail).await.finish();
    drop(gate);
    advance(MINUTE * 10).await;
    assert_eq!(open(&second).usage().used_total, 10);
    // A second restart in the same boot does not begin the minute again.
    advance(MINUTE / 2).await;
    let gate = open(&second);
    assert_eq!(gate.usage().used_total, 10);
    advance(MINUTE / 2 + Duration::from_millis(50)).await;
    assert_eq!(gate.usage().used_total, 0);
    drop(gate);
    // Where the system does not name its boot, each start counts as one.
    assert_eq!(open(&Boot { id: None, ..second.clone() }).usage().used_total, 10);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_journal_only_counts_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let open = || Gate::open_on(config(10, Some(&path)), clock(), boot(1)).unwrap();
    drop(open());
    let clean = std::fs::read(&path).unwrap();
    let used_with = |bytes: Vec<u8>| {
        std::fs::write(&path, bytes).unwrap();
        open().usage().used_total
    };
    assert_eq!(used_with(clean.clone()), 0);
    let flipped = |at: usize| {
        let mut bytes = clean.clone();
        bytes[at] ^= 1;
        bytes
    };
    assert_eq!(used_with(flipped(40)), 1);
    assert_eq!(used_with(flipped(9)), 10);
    assert_eq!(used_with(clean[..40].to_vec()), 1);
    assert_eq!(used_with(b"{}".to_vec()), 10);
}

#[tokio::test(start_paused = true)]
async fn two_gateways_can_not_share_a_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let _first = Gate::open(config(10, Some(&path)), clock()).unwrap();
    let second = Gate::open(config(10, Some(&path)), clock());
    assert!(matches!(second, Err(BudgetError::InUse { .. })), "{second:?}");
}

#[tokio::test]
async fn the_ceiling_is_kept() {
    for asked in [0, 501] {
        assert!(matches!(Gate::open(config(asked, None), clock()), Err(BudgetError::OutOfRange { .. })));
    }
}

/// Lets `workers` of a class ask again and again for `minutes`; gives how many got through.
async fn saturate(gate: &Gate, loads: &[(Class, usize)], rtt: Duration, span: Duration) -> [u64; 6] {
    let counts: Arc<[AtomicU64; 6]> = Arc::default();
    let until = Instant::now() + span;
    let mut tasks = Vec::new();
    for (class, workers) in loads {
        for _ in 0..*workers {
            let (gate, counts, class) = (gate.clone(), Arc::clone(&counts), *class);
            tasks.push(tokio::spawn(async move {
                loop {
                    let slot = gate.acquire(class).await;
                    if Instant::now() >= until {
                        return;
                    }
                    counts[class.index()].fetch_add(1, Ordering::Relaxed);
                    sleep(rtt).await;
                    slot.finish();
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    std::array::from_fn(|class| counts[class].load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn a_catch_up_alone_gets_nearly_the_whole_budget() {
    let gate = gate(400);
    let counts = saturate(&gate, &[(Class::CatchUp, 2)], Duration::from_millis(100), MINUTE * 10).await;
    assert!((3600 + 360..=4400).contains(&counts[Class::CatchUp.index()]), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn floors_hold_and_priority_rules_beyond_them() {
    let gate = gate(400);
    let loads: Vec<(Class, usize)> = Class::ALL.into_iter().map(|class| (class, 3)).collect();
    let counts = saturate(&gate, &loads, Duration::from_millis(100), MINUTE * 10).await;
    let [tail, catch_up, others @ ..] = counts;
    for (class, count) in Class::ALL.into_iter().zip(counts) {
        let floor = u64::from(class.floor(400)) * 10;
        assert!(count * 100 >= floor * 95, "{class:?} got {count} of {floor}");
    }
    let total: u64 = counts.iter().sum();
    assert!((tail + catch_up) * 10 >= total * 9, "{counts:?}");
    assert!(others[0] <= 115 && others[1] <= 30, "nothing beyond the floors is left: {counts:?}");
    assert!(tail > catch_up * 4, "{counts:?}");
}

/// Each class wants 60 requests a minute, of ever less: what is missing is taken from the last class first, down to
/// what each keeps whatever the others want, and from the tail only when no other has more than that.
#[tokio::test(start_paused = true)]
async fn overload_is_shed_class_by_class_and_the_tail_last() {
    const WANTED: u32 = 60;
    for per_minute in [400, 310, 250, 190, 130, 95] {
        let gate = gate(per_minute);
        let until = Instant::now() + MINUTE * 12;
        let counts: Arc<[AtomicU64; 6]> = Arc::default();
        let mut tasks = tokio::task::JoinSet::new();
        for class in Class::ALL {
            let (gate, counts) = (gate.clone(), Arc::clone(&counts));
            tasks.spawn(async move {
                let mut turns = tokio::time::interval(MINUTE / WANTED);
                turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while Instant::now() < until {
                    turns.tick().await;
                    gate.acquire(class).await.finish();
                    counts[class.index()].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        let got = counts.each_ref().map(|count| count.load(Ordering::Relaxed) / 12);
        let has_all = |class: Class| got[class.index()] * 100 >= u64::from(WANTED) * 94;
        let shed: Vec<Class> = Class::ALL.into_iter().filter(|class| !has_all(*class)).collect();
        let message = format!("of {per_minute}: {got:?}");
        assert!(Class::ALL.ends_with(&shed), "{message}");
        assert_eq!(shed.is_empty(), per_minute >= 360 * 105 / 100, "{message}");
        // All but the first of those that lack something keep little more than their floor.
        for class in shed.iter().skip(1) {
            let floor = u64::from(class.floor(per_minute));
            assert!((floor * 9 / 10..=floor + 4).contains(&got[class.index()]), "{class:?} {message}");
        }
        assert!(has_all(Class::Tail), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn even_a_tiny_budget_serves_every_class() {
    let gate = gate(3);
    let loads: Vec<(Class, usize)> = Class::ALL.into_iter().map(|class| (class, 2)).collect();
    let counts = saturate(&gate, &loads, Duration::from_millis(100), MINUTE * 20).await;
    assert!(counts.iter().all(|count| *count >= 5), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_bounded_and_refills_evenly() {
    let gate = gate(400);
    let at_once = |gate: &Gate| std::iter::from_fn(|| gate.try_acquire(Class::Tail)).count();
    assert_eq!(at_once(&gate), BURST_MAX as usize);
    advance(Duration::from_secs(1)).await;
    assert_eq!(at_once(&gate), 6);
    advance(Duration::from_secs(60)).await;
    assert_eq!(at_once(&gate), BURST_MAX as usize);
}

#[tokio::test(start_paused = true)]
async fn refusals_halve_the_allowance_and_it_grows_back() {
    let gate = gate(400);
    gate.on_rate_limited(None);
    gate.on_rate_limited(None);
    assert_eq!(gate.usage().allowance, 200);
    advance(Duration::from_secs(10)).await;
    gate.on_rate_limited(None);
    assert_eq!(gate.usage().allowance, 100);
    advance(Duration::from_secs(29)).await;
    assert_eq!(gate.usage().allowance, 100);
    advance(Duration::from_secs(1)).await;
    assert_eq!(gate.usage().allowance, 120);
    advance(Duration::from_secs(30 * 14)).await;
    assert_eq!((gate.usage().allowance, gate.usage().factor), (400, 1.0));
}

#[tokio::test(start_paused = true)]
async fn retry_after_stops_every_class() {
    let gate = gate(400);
    gate.on_rate_limited(Some(Duration::from_secs(42)));
    let started = Instant::now();
    for class in Class::ALL {
        assert!(gate.try_acquire(class).is_none());
    }
    assert_eq!(gate.usage().paused_for, Some(Duration::from_secs(42)));
    gate.acquire(Class::Details).await.finish();
    assert_eq!(started.elapsed().as_secs(), 42);
    assert_eq!(gate.usage().paused_for, None);
}

#[tokio::test(start_paused = true)]
async fn giving_up_spends_nothing() {
    let gate = gate(1);
    let held = gate.acquire(Class::Tail).await;
    let waited = tokio::time::timeout(Duration::from_secs(1), gate.acquire(Class::Details)).await;
    assert!(waited.is_err());
    assert_eq!((gate.usage().waiting, gate.usage().used_total), ([0; 6], 1));
    // Somebody who waits with nothing known of the answer is woken by it.
    let waiter = tokio::spawn({
        let gate = gate.clone();
        async move { gate.acquire(Class::Details).await.finish() }
    });
    sleep(Duration::from_secs(5)).await;
    let answered = Instant::now();
    held.finish();
    waiter.await.unwrap();
    assert_eq!(answered.elapsed().as_millis(), HOLD.as_millis());
}

#[tokio::test(start_paused = true)]
async fn a_takeover_may_count_everything_as_spent() {
    let gate = gate(30);
    gate.assume_spent();
    assert!(gate.try_acquire(Class::Tail).is_none());
    let started = Instant::now();
    gate.acquire(Class::Tail).await.finish();
    assert!(started.elapsed() >= MINUTE, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_that_can_not_be_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let gate = Gate::open_on(config(100, Some(&path)), clock(), boot(1)).unwrap();
    let writable = |yes: bool| {
        let mut state = gate.0.state.lock();
        state.table.journal.as_mut().unwrap().set_writable(&path, yes).unwrap();
    };
    writable(false);
    assert!(gate.try_acquire(Class::Tail).is_none());
    let usage = gate.usage();
    assert!(usage.journal_error.is_some() && usage.used_total == 0, "{usage:?}");
    let waiter = tokio::spawn({
        let gate = gate.clone();
        async move { gate.acquire(Class::Tail).await }
    });
    sleep(Duration::from_secs(10)).await;
    assert!(!waiter.is_finished());
    writable(true);
    let slot = waiter.await.unwrap();
    let usage = gate.usage();
    assert_eq!((usage.journal_error, usage.used_total), (None, 1));
    slot.finish();
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_leaves_something_to_others() {
    let gate = gate(400);
    let mut spent = 0;
    while gate.has_spare() {
        gate.try_acquire(Class::Details).unwrap().finish();
        spent += 1;
    }
    assert_eq!(spent, 11, "half of a burst of 20 is left");
    for left in 0..9 {
        assert!(gate.try_acquire(Class::Details).is_some(), "only {left} were left");
    }
    assert!(gate.try_acquire(Class::Details).is_none());

    // Over a minute, a twentieth of the allowance is left.
    let mut spent = 20;
    for _ in 0..590 {
        advance(Duration::from_millis(100)).await;
        while gate.has_spare() {
            gate.try_acquire(Class::Details).unwrap().finish();
            spent += 1;
        }
    }
    assert_eq!(spent, 380);
}

#[tokio::test(start_paused = true)]
async fn the_smallest_budget_has_something_to_spare() {
    let gate = gate(1);
    assert!(gate.has_spare());
    gate.try_acquire(Class::Details).unwrap().finish();
    assert!(!gate.has_spare());
    advance(HOLD + MINUTE).await;
    assert!(gate.has_spare());
}

fn shared(requests_per_minute: u32) -> Gate {
    let config = BudgetConfig { shared: true, ..config(requests_per_minute, None) };
    Gate::open(config, clock()).unwrap()
}

/// Notes once, as if the store took so long.
async fn note(gate: &Gate, by: &str, store_ms: u64) -> Noted {
    let note = gate.note(by);
    sleep(Duration::from_millis(store_ms)).await;
    gate.grant(&note);
    note.noted
}

#[test]
fn a_shared_gate_sends_what_was_noted_and_for_so_long_only() {
    runtime().block_on(async {
        let gate = shared(400);
        assert!(gate.try_acquire(Class::Tail).is_none(), "nothing was noted");
        let noted = note(&gate, "a", 0).await;
        assert_eq!((noted.reserve, noted.taken.len()), (10, 0));
        let mut sent = 0;
        while tokio::time::timeout(MINUTE, gate.acquire(Class::Tail)).await.is_ok() {
            sent += 1;
        }
        assert_eq!(sent, 10, "not even when waited for a minute");
        advance(HOLD - MINUTE).await;
        let noted = note(&gate, "a", 0).await;
        assert_eq!(noted.taken.iter().map(|(_, count)| count).sum::<u32>(), 0, "they are free again");
        advance(share::VALID).await;
        assert!(gate.try_acquire(Class::Tail).is_none(), "it went stale");
        let _ = note(&gate, "a", 0).await;
        assert!(gate.try_acquire(Class::Tail).is_some());
        gate.revoke();
        assert!(gate.try_acquire(Class::Tail).is_none());
    });
}

/// The bus was put back to before this gateway polled: what it knows itself still counts.
#[test]
fn a_note_that_lacks_what_a_gateway_has_sent_frees_none_of_it() {
    runtime().block_on(async {
        let gate = shared(400);
        let noted = note(&gate, "a", 0).await;
        (0..8).for_each(|_| gate.try_acquire(Class::Tail).unwrap().finish());
        gate.revoke();
        advance(Duration::from_secs(10)).await;
        let old = Noted { by: "b".to_owned(), reserve: 0, taken: vec![(30, 3)] };
        gate.take_over(&old, Duration::ZERO);
        assert_eq!(gate.usage().used_total, 8);
        advance(Duration::from_secs(40)).await;
        assert_eq!(gate.usage().used_total, 8, "not free when the note says");
        // A note that has them is counted instead of them.
        let taken = vec![(11, 8), (40, 2)];
        gate.take_over(&Noted { by: "b".to_owned(), reserve: noted.reserve, taken }, Duration::ZERO);
        assert_eq!(gate.usage().used_total, 20);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Gateways take turns at any moment, each knowing only the newest note of the one before, whatever that was doing;
    /// some saw it when it was written, some when they came, and some come back after others.
    #[test]
    fn a_receiver_counts_no_more_over_gateways_that_take_turns(
        turns in proptest::collection::vec(
            (0u64..20_000, 0u64..400, 0u64..3_000, 0u64..15_000, 0u64..20_000),
            1..12,
        )
    ) {
        runtime().block_on(async {
            let mut arrivals = Vec::new();
            let mut noted: Option<(Noted, Instant)> = None;
            let gates = [shared(60), shared(60), shared(60)];
            for (turn, (length, store_ms, answer_ms, pause_ms, blind_ms)) in turns.into_iter().enumerate() {
                // Three of them, and new ones again and again.
                let gate = if turn % 4 == 3 { shared(60) } else { gates[turn % 3].clone() };
                sleep(Duration::from_millis(pause_ms)).await;
                if let Some((noted, at)) = &noted {
                    gate.take_over(noted, at.elapsed().saturating_sub(Duration::from_millis(blind_ms)));
                }
                let by = turn.to_string();
                let until = Instant::now() + Duration::from_millis(length);
                let keep = async {
                    loop {
                        let note = gate.note(&by);
                        // Written at some moment of this wait: the next one may find it or the one before.
                        noted = Some((note.noted.clone(), Instant::now()));
                        sleep(Duration::from_millis(store_ms)).await;
                        gate.grant(&note);
                        gate.note_is_due().await;
                        sleep(Duration::from_millis(1)).await;
                    }
                };
                let send = async {
                    loop {
                        let slot = gate.acquire(Class::Tail).await;
                        arrivals.push(Instant::now());
                        tokio::spawn(async move {
                            sleep(Duration::from_millis(answer_ms)).await;
                            slot.finish();
                        });
                    }
                };
                let _ = tokio::time::timeout_at(until, async { tokio::join!(keep, send) }).await;
                gate.revoke();
            }
            let most = most_in_a_minute(arrivals);
            assert!(most <= 60, "{most}");
        });
    }
}

#[tokio::test]
async fn a_journal_is_told_to_who_takes_over_by_notes_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let clock = crate::clock::system();
    assert_eq!(noted_in(&path, 400, &clock).unwrap(), None);
    assert!(!path.exists());
    let gate = Gate::open(config(400, Some(&path)), clock.clone()).unwrap();
    let mut slots: Vec<Slot> = (0..5).map(|_| gate.try_acquire(Class::Tail).unwrap()).collect();
    slots.pop().unwrap().finish();
    // Killed with four requests on their way.
    slots.into_iter().for_each(std::mem::forget);
    drop(gate);
    let before = std::fs::read(&path).unwrap();
    let noted = noted_in(&path, 400, &clock).unwrap().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!((noted.reserve, noted.taken.iter().map(|(_, count)| count).sum::<u32>()), (0, 5));
    assert!(noted.taken.iter().all(|(seconds, _)| (58..=61).contains(seconds)), "{noted:?}");
    let next = Gate::open(BudgetConfig { shared: true, ..config(400, None) }, clock).unwrap();
    next.take_over(&noted, Duration::ZERO);
    assert_eq!(next.usage().used_total, 5);
}
