//! Edges of the poller that a small slip would move, each with a wait short enough to notice.

use std::time::Duration;

use jiff::SignedDuration;

use super::{backfilled, rig::Rig};
use crate::{
    globalsim::simulator::{EventSpec, Faults, TruthEvent, faults},
    ingest::DetailsMode,
};

/// A row that appears five minutes late, deeper than the newest page reaches.
async fn late_row(rig: &Rig) -> TruthEvent {
    rig.sim.inject_burst(150);
    rig.settled().await;
    let at = rig.clock.now() - SignedDuration::from_secs(300);
    rig.sim.inject(EventSpec { timestamp: Some(at), ..EventSpec::default() })
}

async fn arrives_within(rig: &Rig, truth: &TruthEvent, seconds: u64) {
    let id = truth.event_id.as_deref().unwrap();
    let mut edge = rig.bus.log().edge();
    let there = async {
        while rig.bus.log().find(id).is_none() {
            edge.changed().await.unwrap();
        }
    };
    let came = tokio::time::timeout(Duration::from_secs(seconds), there).await;
    assert!(came.is_ok(), "{id} has not come within {seconds} s");
    rig.check_each_once();
}

#[tokio::test(start_paused = true)]
async fn a_rise_of_the_total_brings_a_sweep_at_once() {
    let mut rig = Rig::new(Faults::default()).await;
    rig.config.details = DetailsMode::Off;
    let mut run = rig.run();
    backfilled(&mut run).await;
    let late = late_row(&rig).await;
    // Sweeps that nobody calls for are two minutes apart at least.
    arrives_within(&rig, &late, 20).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_row_that_no_total_tells_of_is_swept_up() {
    let lists = faults::Lists { total: faults::Total::Absent, ..Default::default() };
    let mut rig = Rig::new(Faults { lists, ..Faults::default() }).await;
    (rig.config.details, rig.budget) = (DetailsMode::Off, 120);
    // More than a page lies between what is new and where the late row will be.
    for age in 60..210 {
        let at = rig.clock.now() - SignedDuration::from_secs(age);
        rig.sim.inject(EventSpec { timestamp: Some(at), ..EventSpec::default() });
    }
    let mut run = rig.run();
    backfilled(&mut run).await;
    let late = late_row(&rig).await;
    // Sweeps are ten minutes apart at most.
    arrives_within(&rig, &late, 700).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_appears_while_the_gateway_starts_is_no_backfill() {
    let transport =
        faults::Transport { slow: 1.0, slow_min_ms: 2_000, slow_max_ms: 2_000, ..Default::default() };
    let rig = Rig::new(Faults { transport, ..Faults::default() }).await;
    let mut run = rig.run();
    // The first page is there, the probe goes on.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let truth = rig.sim.inject(EventSpec::default());
    backfilled(&mut run).await;
    let logged = rig.settled().await;
    let event = logged.iter().find(|event| Some(&event.id) == truth.event_id.as_ref()).unwrap();
    assert!(!event.has("backfill"), "{}", event.body);
    run.stop().await;
}

/// What an end date includes, and in which zone its days are, is not documented.
#[tokio::test(start_paused = true)]
async fn the_tail_asks_for_rows_without_an_end() {
    let rig = Rig::new(Faults::default()).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    let before = rig.sim.requests().len();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let polls = rig.sim.requests().split_off(before);
    assert!(polls.iter().any(|poll| poll.target.contains("start_date=")), "{polls:?}");
    // The ledger asks for days that are over.
    let today = rig.clock.now().to_zoned_datetime(jiff::tz::TimeZone::UTC).date();
    let ends = |target: &str| target.split("end_date=").nth(1).and_then(|end| end.get(..10)?.parse().ok());
    let open = |day: jiff::civil::Date| day >= today;
    assert!(!polls.iter().any(|poll| ends(&poll.target).is_some_and(open)), "{polls:?}");
    run.stop().await;
}
