//! Lists in which rows have no order, or not even a place, and rows that pin themselves to the top of one.

use std::time::Duration;

use jiff::SignedDuration;

use super::{
    backfilled,
    rig::{Logged, Rig, Run, quiet},
};
use crate::{
    globalsim::simulator::{self, EventSpec, Faults, Quirk, faults},
    ingest::Mode,
};

/// What is said to have been seen is in the log.
async fn seen_is_stored(rig: &Rig, run: &mut Run) {
    run.seen(rig.clock.now()).await;
    let upstream = |logged: &Vec<Logged>| logged.iter().filter(|event| !event.has("enriched")).count();
    let logged = upstream(&rig.logged());
    assert_eq!(upstream(&rig.settled().await), logged);
}

fn reshuffled() -> Faults {
    let lists = faults::Lists { reshuffle: true, ..Default::default() };
    Faults { order: faults::Order::Unsorted, lists, ..Faults::default() }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_shuffled_anew_for_each_request_is_read_wholly() {
    let rig = Rig::new(reshuffled()).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    seen_is_stored(&rig, &mut run).await;
    assert_eq!(run.status.borrow().mode, Mode::Windows);
    // A SIM and a type that are in no part known so far; then so many of one that no part holds them in one answer.
    for event_type in ["connection", "policy_alert"] {
        let iccid = Some("89450000000000000021".to_owned());
        rig.sim.inject(EventSpec { iccid, event_type: Some(event_type.to_owned()), ..Default::default() });
    }
    seen_is_stored(&rig, &mut run).await;
    for _ in 0..130 {
        let iccid = Some("89450000000000000039".to_owned());
        let event_type = Some("location_update".to_owned());
        rig.sim.inject(EventSpec { iccid, event_type, ..Default::default() });
    }
    seen_is_stored(&rig, &mut run).await;
    run.until("a pass is told", |status| status.pass_s.is_some()).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn rows_without_a_time_in_a_list_without_order_are_read() {
    for faults in [Faults { order: faults::Order::Unsorted, ..Faults::default() }, reshuffled()] {
        let rig = Rig::with(simulator::Config { faults, ..quiet() }).await;
        let mut run = rig.run();
        backfilled(&mut run).await;
        rig.settled().await;
        for quirk in [Quirk::TimestampNull, Quirk::TimestampNonsense] {
            let event_type = Some("connection".to_owned());
            rig.sim.inject(EventSpec { event_type, quirks: vec![quirk], ..Default::default() });
        }
        // They are looked for once a minute.
        rig.settled().await;
        run.seen(rig.clock.now()).await;
        run.stop().await;
    }
}

/// A row stamped in the future stands above whatever comes: that two pages share it proves nothing.
#[tokio::test(start_paused = true)]
async fn a_row_pinned_to_the_top_hides_no_hole() {
    // Upstream's count would tell of the hole too; here it tells nothing.
    let lists = faults::Lists { total: faults::Total::Absent, ..Default::default() };
    let rig = Rig::new(Faults { lists, ..Faults::default() }).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    let ahead = rig.clock.now() + SignedDuration::from_secs(3_600);
    rig.sim.inject(EventSpec { timestamp: Some(ahead), ..Default::default() });
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    let began = tokio::time::Instant::now();
    rig.sim.inject_burst(350);
    seen_is_stored(&rig, &mut run).await;
    assert!(began.elapsed() < Duration::from_secs(10), "no sweep was waited for: {:?}", began.elapsed());
    run.stop().await;
}
