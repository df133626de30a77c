//! More rows than the tail can read: a backlog is drained at the pace of the budget, and fresh rows go on flowing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    backfilled,
    rig::{Rig, Run, quiet},
};
use crate::{
    event::Predicate,
    globalsim::simulator::{self, Faults, TruthEvent, faults},
    log::{Direction, ReadRequest},
};

/// New rows that a page brings while its neighbours share four with it.
const ROWS_OF_A_PAGE: f64 = 96.0;
/// Requests a minute: the default budget.
const BUDGET: u32 = 400;

/// An account with little past behind an upstream that answers within a tenth of a second, and the default budget.
async fn loaded(events_per_second: f64) -> Rig {
    let transport = faults::Transport { slow: 1.0, slow_min_ms: 40, slow_max_ms: 100, ..Default::default() };
    let config =
        simulator::Config { faults: Faults { transport, ..Faults::default() }, sims: 200, ..quiet() };
    let mut rig = Rig::with(config).await;
    rig.budget = BUDGET;
    rig.sim.set_rate(events_per_second);
    rig
}

async fn rested(rig: &Rig) -> (Run, Arrivals) {
    let mut run = rig.run();
    backfilled(&mut run).await;
    run.seen(rig.clock.now()).await;
    (run, Arrivals::follow(rig))
}

/// When each event came into the log, by the paused clock: what the log stamps comes from a thread that has no part
/// in it.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<HashMap<String, Timestamp>>>);

impl Arrivals {
    fn follow(rig: &Rig) -> Self {
        let arrivals = Self::default();
        let (noted, log, clock) = (arrivals.clone(), Arc::clone(rig.bus.log()), Arc::clone(&rig.clock));
        let mut edge = rig.bus.log().edge();
        tokio::spawn(async move {
            let mut from = *log.edge().borrow() + 1;
            while edge.changed().await.is_ok() {
                let predicate = Predicate::default();
                let request = ReadRequest {
                    from,
                    direction: Direction::Forward,
                    predicate: &predicate,
                    limit: usize::MAX,
                    max_bytes: usize::MAX,
                };
                let page = log.read(request).unwrap();
                from = page.next;
                let now = clock.now();
                for event in &page.events {
                    noted.0.lock().insert(event.keys().unwrap().id.to_owned(), now);
                }
            }
        });
        arrivals
    }
}

/// Waits until everything visible now has been read, and gives how long that took.
async fn drained(rig: &Rig, run: &mut Run) -> Duration {
    let began = Instant::now();
    run.seen(rig.clock.now()).await;
    began.elapsed()
}

/// Seconds from visible to stored, of those events of the truth that are asked for; every one must be there, once.
fn lateness(rig: &Rig, arrivals: &Arrivals, wanted: impl Fn(&TruthEvent) -> bool) -> Vec<f64> {
    rig.check_each_once();
    let stored = arrivals.0.lock();
    let late = |truth: &TruthEvent| {
        let at = truth.event_id.as_ref().and_then(|id| stored.get(id));
        at.unwrap_or_else(|| panic!("lost: {truth:?}")).duration_since(truth.visible_at).as_secs_f64()
    };
    let mut late: Vec<f64> = rig.sim.truth().iter().filter(|truth| wanted(truth)).map(late).collect();
    late.sort_by(f64::total_cmp);
    late
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_drained_at_the_pace_of_the_budget_while_fresh_rows_flow() {
    const BURST: usize = 15_000;
    let rig = loaded(10.0).await;
    let (mut run, arrivals) = rested(&rig).await;
    // Until the slots of the start are free again.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let (asked, exposed) = (rig.sim.stats().requests, rig.sim.stats().exposed);
    let began = rig.clock.now();
    rig.sim.inject_burst(BURST);
    let first_fresh = rig.sim.stats().exposed;
    run.until("a backlog is told", |status| {
        status.backlog_rows.is_some_and(|rows| rows > 5_000)
            && status.drain_eta_s.is_some_and(|eta| eta < 90.0)
    })
    .await;
    let took = drained(&rig, &mut run).await;
    let asked = (rig.sim.stats().requests - asked) as f64;
    let rows = (rig.sim.stats().exposed - exposed) as f64;
    let until = rig.clock.now();
    rig.sim.pause();
    run.seen(rig.clock.now()).await;
    let of_requests = rows / (asked * ROWS_OF_A_PAGE);
    let of_budget = rows / (took.as_secs_f64() * f64::from(BUDGET) / 60.0 * ROWS_OF_A_PAGE);
    let fresh = lateness(&rig, &arrivals, |truth| {
        truth.n > first_fresh && truth.visible_at > began && truth.visible_at < until
    });
    let (p50, p99) = (percentile(&fresh, 0.5), percentile(&fresh, 0.99));
    println!(
        "{rows} rows in {took:?} by {asked} requests: {of_requests:.3} of what they can hold, {of_budget:.3} of \
         what the budget gives; {} fresh rows p50 {p50:.2} s, p99 {p99:.2} s",
        fresh.len()
    );
    assert!(of_requests >= 0.90, "{of_requests}");
    assert!(of_budget >= 0.90, "{of_budget}");
    assert!(p99 < 2.2, "{p99}");
    assert_eq!(run.status.borrow().backlog_rows, None);
    assert!(rig.sim.max_requests_in_any_60s() <= BUDGET as usize);
    run.stop().await;
}

/// Rows come that fast for so long; none may be later than `lag_max`, nor take longer to be drained.
async fn sustained(events_per_second: f64, span: Duration, lag_max: Duration) {
    let rig = loaded(1.0).await;
    let (mut run, arrivals) = rested(&rig).await;
    // Until the slots of the start are free again.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let n = rig.sim.stats().exposed;
    rig.sim.set_rate(events_per_second);
    tokio::time::sleep(span).await;
    rig.sim.set_rate(1.0);
    let took = drained(&rig, &mut run).await;
    rig.sim.pause();
    run.seen(rig.clock.now()).await;
    let late = lateness(&rig, &arrivals, |truth| truth.n > n);
    let (p50, p99, max) = (percentile(&late, 0.5), percentile(&late, 0.99), percentile(&late, 1.0));
    println!(
        "{} rows at {events_per_second}/s: p50 {p50:.2} s, p99 {p99:.2} s, at most {max:.2} s; drained in {took:?}",
        late.len()
    );
    assert!(max < lag_max.as_secs_f64(), "{max}");
    assert!(took < lag_max, "{took:?}");
    assert!(rig.sim.max_requests_in_any_60s() <= BUDGET as usize);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_hundred_events_a_second_for_minutes_are_followed() {
    sustained(200.0, Duration::from_secs(90), Duration::from_secs(4)).await;
}

#[tokio::test(start_paused = true)]
async fn five_hundred_events_a_second_for_a_minute_are_drained() {
    sustained(500.0, Duration::from_secs(60), Duration::from_secs(45)).await;
}

/// While rows are missing the budget goes to them: nothing is asked for details, closed days wait, and the newest rows
/// are looked at all the same.
#[tokio::test(start_paused = true)]
async fn a_backlog_sheds_details_and_counting_and_the_tail_goes_on() {
    let rig = loaded(10.0).await;
    let (mut run, _) = rested(&rig).await;
    tokio::time::sleep(Duration::from_secs(70)).await;
    let asked = |since: usize| {
        let requests: Vec<_> = rig.sim.requests().into_iter().skip(since).map(|one| one.target).collect();
        let count = |is_it: fn(&str) -> bool| requests.iter().filter(|target| is_it(target)).count();
        let details = count(|target| !target.contains("/sims/activity"));
        let days = count(|target| target.contains("end_date="));
        let tail = count(|target| target.contains("offset=0") && !target.contains("end_date="));
        (details, days, tail)
    };
    let (details, ..) = asked(0);
    assert!(details > 0, "rows wait for their details while there is budget for them");
    rig.sim.inject_burst(15_000);
    run.until("a backlog is told", |status| status.backlog_rows.is_some()).await;
    // What is on its way already comes.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (since, began) = (rig.sim.requests().len(), Instant::now());
    run.until("it is drained", |status| status.backlog_rows.is_none()).await;
    let (details, days, tail) = asked(since);
    let took = began.elapsed().as_secs_f64();
    println!("in {took:.1} s: {details} for details, {days} for closed days, {tail} of the tail");
    assert_eq!(details, 0);
    assert!(days as f64 <= took / 60.0 * f64::from(BUDGET) / 100.0 + 1.0, "{days}");
    assert!(tail as f64 >= took / 2.2, "{tail}");
    let (since, n) = (rig.sim.requests().len(), rig.sim.stats().exposed);
    rig.sim.pause();
    run.seen(rig.clock.now()).await;
    run.until("details are asked for again", |_| asked(since).0 > 0).await;
    assert!(rig.check_each_once().iter().filter(|event| !event.has("enriched")).count() as u64 >= n);
    run.stop().await;
}
