//! Closed days: what appears too late for every sweep is found by counting, and each day says how it stands.

use jiff::{civil::Date, tz::TimeZone};

use super::{
    backfilled,
    rig::{Rig, Run},
    *,
};
use crate::globalsim::simulator::{
    EventSpec,
    faults::{Content, Lists, Order, Paging, Total},
};

const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// A week of about 60 rows a day.
fn week(faults: Faults) -> simulator::Config {
    simulator::Config {
        events_per_second: 0.0,
        history: Duration::from_secs(600_000),
        history_events_per_second: 0.0007,
        sims: 5,
        faults,
        ..simulator::Config::default()
    }
}

async fn rig_of(config: simulator::Config, backfill_days: u32) -> Rig {
    let mut rig = Rig::with(config).await;
    rig.config.backfill_days = backfill_days;
    rig.config.details = DetailsMode::Off;
    // Hours pass cheaply, and the ledger still asks every five seconds.
    rig.budget = 120;
    rig
}

fn day(rig: &Rig, age: i64) -> Date {
    probe::day_plus(rig.clock.now().to_zoned_datetime(TimeZone::UTC).date(), -age)
}

fn states(status: &Status) -> Vec<DayState> {
    status.completeness.values().map(|one| one.state).collect()
}

/// Waits until every day of at most these ages has a state.
async fn judged(rig: &Rig, run: &mut Run, ages: std::ops::RangeInclusive<i64>, state: DayState) {
    let days: Vec<Date> = ages.map(|age| day(rig, age)).collect();
    run.until("the days are judged", |status| {
        days.iter().all(|day| status.completeness.get(day).is_some_and(|one| one.state == state))
    })
    .await;
}

fn late(rig: &Rig, hours: i64) -> simulator::TruthEvent {
    let timestamp = Some(rig.clock.now() - HOUR * hours as i32);
    rig.sim.inject(EventSpec { timestamp, ..Default::default() })
}

fn has(rig: &Rig, event: &simulator::TruthEvent) -> bool {
    let id = event.event_id.as_deref();
    rig.logged().iter().any(|logged| logged.data("event_id").as_str() == id)
}

/// What was asked for since so many requests, as query strings.
fn asked_since(rig: &Rig, requests: usize) -> Vec<String> {
    rig.sim.requests().into_iter().skip(requests).map(|request| request.target).collect()
}

#[tokio::test(start_paused = true)]
async fn a_row_that_appears_a_day_late_is_found_by_counting_and_by_nothing_else() {
    for counts in [true, false] {
        let total = if counts { Total::Exact } else { Total::Absent };
        let lists = Lists { total, ..Lists::default() };
        let rig = rig_of(week(Faults { lists, ..Faults::default() }), 7).await;
        let mut run = rig.run();
        backfilled(&mut run).await;
        let state = if counts { DayState::Verified } else { DayState::Unavailable };
        judged(&rig, &mut run, 1..=6, state).await;
        // The newest page would show it.
        rig.sim.inject_burst(150);
        rig.settled().await;
        let row = late(&rig, 30);
        if counts {
            let logged = rig.settled().await;
            let found = logged.iter().find(|one| one.data("event_id").as_str() == row.event_id.as_deref());
            assert!(found.is_some_and(|found| found.has("late") && !found.has("backfill")));
            assert_eq!(run.status.borrow().late_found, 0, "no sweep found it");
            judged(&rig, &mut run, 1..=6, DayState::Verified).await;
        } else {
            tokio::time::sleep(Duration::from_secs(900)).await;
            assert!(!has(&rig, &row));
        }
        run.stop().await;
    }
}

/// No rise of the total tells of a row that came as another went.
#[tokio::test(start_paused = true)]
async fn an_insertion_hidden_by_a_removal_is_found_by_counting_its_day() {
    let paging = Paging { erase_within: Some(1), erase_only_served: true, ..Paging::default() };
    let rig = rig_of(week(Faults { paging, ..Faults::default() }), 7).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    judged(&rig, &mut run, 1..=6, DayState::Verified).await;
    rig.sim.inject_burst(150);
    for hours in [30, 40] {
        // What goes is a row of today.
        rig.sim.inject_burst(1);
        rig.settled().await;
        rig.sim.erase(1);
        late(&rig, hours);
        rig.settled().await;
    }
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn only_the_parts_that_differ_are_asked_for() {
    let config = simulator::Config {
        history: Duration::from_secs(130_000),
        history_events_per_second: 0.02,
        sims: 3,
        ..week(Faults::default())
    };
    let rig = rig_of(config, 3).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    judged(&rig, &mut run, 1..=1, DayState::Verified).await;
    let before = rig.sim.requests().len();
    let event_type = Some("data_usage_update".to_owned());
    let iccid = rig.sim.fleet()[1].iccid.clone();
    let timestamp = Some(rig.clock.now() - HOUR * 20);
    rig.sim.inject(EventSpec { timestamp, event_type, iccid: Some(iccid.clone()), ..Default::default() });
    rig.settled().await;
    judged(&rig, &mut run, 1..=1, DayState::Verified).await;
    let asked = asked_since(&rig, before);
    let of = |wanted: &[&str], unwanted: &[&str]| {
        let fits = |target: &&String| {
            wanted.iter().all(|part| target.contains(part))
                && !unwanted.iter().any(|part| target.contains(part))
        };
        asked.iter().filter(fits).count()
    };
    let types = of(&["limit=1&", "event_type="], &["iccid="]);
    let sims = of(&["limit=1&", "event_type=data_usage_update", "iccid="], &[]);
    let read = of(&["limit=100&", "event_type=data_usage_update", &format!("iccid={iccid}")], &[]);
    let other_reads = of(&["limit=100&", "event_type="], &[]) - read;
    assert_eq!((types, sims, other_reads), (5, 3, 0), "{asked:#?}");
    assert!((1..=5).contains(&read), "{read}: {asked:#?}");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_total_that_does_not_count_verifies_nothing() {
    for total in [Total::Absent, Total::Capped(40), Total::OffBy(7), Total::OffBy(-3)] {
        let lists = Lists { total, ..Lists::default() };
        let rig = rig_of(week(Faults { lists, ..Faults::default() }), 7).await;
        let mut run = rig.run();
        backfilled(&mut run).await;
        judged(&rig, &mut run, 1..=6, DayState::Unavailable).await;
        let status = run.status.borrow().clone();
        assert!(status.completeness[&day(&rig, 2)].reason.is_some(), "{total:?}");
        run.stop().await;
    }
}

/// Wherever upstream's days begin, they are verified, and what is late in them is found.
#[tokio::test(start_paused = true)]
async fn days_of_other_zones_and_exclusive_dates_are_verified() {
    let (exclusive, zone) = ((true, true), |minutes| ((false, false), minutes));
    for ((start_date_exclusive, end_date_exclusive), day_offset_minutes) in
        [(exclusive, 0), ((false, true), 0), zone(120), zone(-300), (exclusive, 330), zone(840), zone(-720)]
    {
        let lists =
            Lists { start_date_exclusive, end_date_exclusive, day_offset_minutes, ..Lists::default() };
        for order in [Order::Newest, Order::Unsorted] {
            let what = format!("{lists:?} {order:?}");
            let rig = rig_of(week(Faults { order, lists: lists.clone(), ..Faults::default() }), 7).await;
            let mut run = rig.run();
            backfilled(&mut run).await;
            // Yesterday's last hours may belong to a day of upstream's that is not over.
            judged(&rig, &mut run, 2..=6, DayState::Verified).await;
            late(&rig, 40);
            rig.settled().await;
            judged(&rig, &mut run, 2..=6, DayState::Verified).await;
            assert!(!states(&run.status.borrow()).contains(&DayState::Gap), "{what}");
            run.stop().await;
        }
    }
}

/// Rows that make counts differ for ever are read through once.
#[tokio::test(start_paused = true)]
async fn odd_rows_are_accounted_for_and_not_read_again_and_again() {
    let content = Content {
        duplicate_row: 0.1,
        duplicate_id: 0.1,
        missing_id: 0.1,
        odd_timestamp: 0.2,
        missing_iccid: 0.1,
        unknown_type: 0.1,
        ..Content::default()
    };
    let rig = rig_of(week(Faults { content, ..Faults::default() }), 7).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    judged(&rig, &mut run, 1..=7, DayState::Verified).await;
    let before = rig.sim.requests().len();
    tokio::time::sleep(Duration::from_secs(1_500)).await;
    let asked = asked_since(&rig, before.min(10_000));
    let by_day: Vec<_> = asked.iter().filter(|target| target.contains("end_date=")).collect();
    assert!(by_day.iter().all(|target| target.contains("limit=1&")), "{by_day:?}");
    rig.check_each_once();
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_and_then_forgotten_is_a_gap_that_survives_a_restart() {
    let mut rig = rig_of(week(Faults::default()), 7).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    judged(&rig, &mut run, 1..=6, DayState::Verified).await;
    run.stop().await;
    // So slow that there is time between counting and reading.
    rig.budget = 40;
    let mut run = rig.run();
    run.seen(rig.clock.now()).await;
    late(&rig, 50);
    late(&rig, 50);
    let gone = day(&rig, 2);
    run.until("the difference is noticed", |status| status.completeness[&gone].state == DayState::Pending)
        .await;
    rig.sim.remove_oldest(rig.sim.stats().visible_rows - 10);
    run.until("the day is judged", |status| status.completeness[&gone].state == DayState::Gap).await;
    assert_eq!(run.status.borrow().completeness[&gone].missing, Some(2));
    judged(&rig, &mut run, 3..=6, DayState::Verified).await;
    tokio::time::sleep(Duration::from_secs(700)).await;
    run.stop().await;
    let mut run = rig.run();
    run.until("it is known at once", |status| status.completeness.contains_key(&gone)).await;
    assert_eq!(run.status.borrow().completeness[&gone].state, DayState::Gap);
    run.stop().await;
    let gaps: Vec<_> =
        rig.everything().into_iter().filter(|e| e.data("event_type") == "simcast.gap").collect();
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].data("extra")["lost"], 2);
}

#[tokio::test(start_paused = true)]
async fn verdicts_survive_a_restart_and_cost_nothing_again() {
    let rig = rig_of(week(Faults::default()), 7).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    judged(&rig, &mut run, 1..=6, DayState::Verified).await;
    let before = states(&run.status.borrow());
    run.stop().await;
    let mode = faults::OutageMode::Unavailable;
    let mut run = rig.run();
    run.until("it is shown", |status| !status.completeness.is_empty()).await;
    rig.sim.set_faults(Faults { outage: Some(faults::Outage { mode, for_ms: None }), ..Faults::default() });
    assert_eq!(states(&run.status.borrow()), before);
    run.stop().await;
}

/// A day that a gap event covers is a gap, however well its counts agree.
#[tokio::test(start_paused = true)]
async fn days_of_an_announced_gap_are_gaps() {
    let rig = rig_of(week(Faults::default()), 7).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    judged(&rig, &mut run, 1..=6, DayState::Verified).await;
    run.stop().await;
    let now = rig.clock.now();
    let kept = Position { floor: now - HOUR * 60, origin: now - HOUR * 24 * 7, backfill: None, log: None };
    let value = serde_json::to_vec(&kept).unwrap().into();
    rig.bus.kv_put(crate::bus::Bucket::State, position::KEY, value).await.unwrap();
    rig.sim.remove_oldest(1_000_000);
    rig.sim.inject_burst(3);
    for _ in 0..2 {
        let mut run = rig.run();
        judged(&rig, &mut run, 1..=2, DayState::Gap).await;
        judged(&rig, &mut run, 4..=6, DayState::Verified).await;
        run.stop().await;
    }
}

/// Outage and retention together, without a restart: what upstream forgot meanwhile is announced, in every order.
#[tokio::test(start_paused = true)]
async fn what_upstream_forgot_during_an_outage_is_announced_once() {
    for order in [Order::Newest, Order::Oldest, Order::Unsorted] {
        for rows in [10, 250] {
            let rig = Rig::new(Faults { order, ..Faults::default() }).await;
            let mut run = rig.run();
            backfilled(&mut run).await;
            rig.settled().await;
            run.seen(rig.clock.now()).await;
            let outage = Some(faults::Outage { mode: faults::OutageMode::Unavailable, for_ms: None });
            rig.sim.set_faults(Faults { order, outage, ..Faults::default() });
            run.until("stale", |status| status.state == UpstreamState::Stale).await;
            rig.sim.inject_burst(30);
            tokio::time::sleep(Duration::from_secs(60)).await;
            rig.sim.remove_oldest(1_000_000);
            for n in 0..rows {
                // Times in no order, so that a list without order shows that it has none.
                let at = rig.clock.now() - SignedDuration::from_secs(n * 7 % 30);
                rig.sim.inject(EventSpec { timestamp: Some(at), ..Default::default() });
            }
            rig.sim.set_faults(Faults { order, ..Faults::default() });
            rig.settled().await;
            run.seen(rig.clock.now()).await;
            let gaps = rig.everything().into_iter().filter(|e| e.data("event_type") == "simcast.gap").count();
            assert_eq!(gaps, 1, "{order:?} {rows}");
            run.stop().await;
        }
    }
}

/// A fleet that was quiet during an outage lost nothing, and nothing is said to be lost.
#[tokio::test(start_paused = true)]
async fn a_quiet_outage_is_no_gap() {
    for order in [Order::Newest, Order::Oldest, Order::Unsorted] {
        let rig = Rig::new(Faults { order, ..Faults::default() }).await;
        let mut run = rig.run();
        backfilled(&mut run).await;
        rig.settled().await;
        run.seen(rig.clock.now()).await;
        let outage = Some(faults::Outage { mode: faults::OutageMode::Unavailable, for_ms: Some(60_000) });
        rig.sim.set_faults(Faults { order, outage, ..Faults::default() });
        run.until("stale", |status| status.state == UpstreamState::Stale).await;
        rig.sim.inject_burst(250);
        rig.settled().await;
        run.seen(rig.clock.now()).await;
        assert_eq!(
            rig.everything().iter().filter(|e| e.data("event_type") == "simcast.gap").count(),
            0,
            "{order:?}"
        );
        run.stop().await;
    }
}

/// A row that is no event is kept for the operator, read once, and taken when it has become one.
#[tokio::test(start_paused = true)]
async fn a_row_that_is_no_event_is_shown_and_taken_when_it_can_be_read() {
    let rig = rig_of(week(Faults::default()), 7).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    judged(&rig, &mut run, 1..=6, DayState::Verified).await;
    // The newest page would show it.
    rig.sim.inject_burst(150);
    rig.settled().await;
    let timestamp = Some(rig.clock.now() - HOUR * 30);
    let bad = serde_json::json!({"iccid": "+4791234567890", "msisdn": "+4791234567"});
    let spec = EventSpec { timestamp, event_id: Some("evt_bad".into()), ..Default::default() };
    rig.sim.inject(EventSpec { overlay: bad.as_object().unwrap().clone(), ..spec.clone() });
    run.until("it is shown", |status| status.quarantined == 1).await;
    judged(&rig, &mut run, 1..=6, DayState::Verified).await;
    let shown = run.status.borrow().to_json(rig.clock.now())["quarantine"].to_string();
    let kept = run.status.borrow().quarantine.to_json().to_string();
    assert!(kept.contains("evt_bad") && !kept.contains("4791234567"), "{kept}");
    assert!(shown.contains("iccid") && !shown.contains("4791234567"), "{shown}");
    let before = rig.sim.requests().len();
    tokio::time::sleep(Duration::from_secs(200)).await;
    let read = asked_since(&rig, before).into_iter().filter(|target| target.contains("end_date="));
    assert_eq!(read.filter(|target| target.contains("limit=100&")).count(), 0);
    rig.sim.inject(spec);
    run.until("it was taken", |status| status.appended > 0).await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(rig.logged().iter().any(|one| one.id == "evt_bad"));
    judged(&rig, &mut run, 1..=6, DayState::Verified).await;
    run.stop().await;
}
