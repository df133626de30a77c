//! How events came: the read that is told is the one that found them, and the times told hold the truth between them.

use std::time::Duration;

use jiff::SignedDuration;

use super::{backfilled, rig::Rig};
use crate::{
    event::{Provenance, Via, identity::details_id},
    globalsim::simulator::{EventSpec, Faults, TruthEvent, faults},
};

/// Rows that appear while an answer is on its way are the ones to get wrong.
fn slow() -> Faults {
    let transport = faults::Transport { slow: 1.0, slow_min_ms: 40, slow_max_ms: 200, ..Default::default() };
    Faults { transport, ..Faults::default() }
}

fn stored(rig: &Rig, id: &str) -> Option<Provenance> {
    let event = rig.bus.log().get(rig.bus.log().find(id)?.seq).unwrap().unwrap();
    let keys = event.keys().unwrap();
    let provenance = keys.provenance.unwrap();
    // Stamps have whole milliseconds.
    assert!(provenance.answered_us / 1_000 <= keys.observed_us / 1_000, "{id}: {provenance:?}");
    Some(provenance)
}

/// How an event of the truth came; the times must hold its own between them.
fn of(rig: &Rig, truth: &TruthEvent) -> Provenance {
    let id = truth.event_id.as_deref().unwrap();
    let provenance = stored(rig, id).unwrap_or_else(|| panic!("{id} is not in the log"));
    let visible_us = truth.visible_at.as_microsecond();
    let Provenance { asked_us, answered_us, not_seen_us, .. } = provenance;
    assert!(asked_us <= answered_us && visible_us <= answered_us, "{provenance:?} of {truth:?}");
    assert!(not_seen_us.is_none_or(|not_seen| not_seen <= visible_us), "{provenance:?} of {truth:?}");
    assert!(not_seen_us.is_none_or(|not_seen| not_seen < asked_us), "{provenance:?} of {truth:?}");
    provenance
}

#[tokio::test(start_paused = true)]
async fn each_event_tells_the_read_that_found_it_and_between_which_times_it_appeared() {
    let rig = Rig::new(slow()).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    let past: Vec<_> = rig.sim.truth().iter().map(|truth| of(&rig, truth)).collect();
    assert!(past.iter().all(|found| found.not_seen_us.is_none()), "nobody looked before");
    assert!(past.iter().any(|found| found.via == Via::Backfill), "{past:?}");

    let mut while_on_its_way = 0;
    for n in 0..40 {
        tokio::time::sleep(Duration::from_millis(370 + n % 7 * 31)).await;
        let truth = rig.sim.inject(EventSpec::default());
        rig.settled().await;
        let found = of(&rig, &truth);
        assert_eq!(found.via, Via::Tail);
        let width = found.answered_us - found.not_seen_us.expect("a page before it joined");
        assert!(width <= 1_000_000, "{width}: a poll's interval and an answer's time");
        while_on_its_way += u32::from(found.asked_us < truth.visible_at.as_microsecond());
    }
    assert!(while_on_its_way > 0, "no row appeared while an answer was on its way");

    let burst = rig.sim.inject_burst(350);
    rig.settled().await;
    for truth in &burst {
        let found = of(&rig, truth);
        assert!(found.via == Via::CatchUp && found.not_seen_us.is_some(), "{found:?}");
    }

    let swept = run.status.borrow().last_sweep.expect("a sweep is complete");
    let at = rig.clock.now() - SignedDuration::from_secs(300);
    let late = rig.sim.inject(EventSpec { timestamp: Some(at), ..EventSpec::default() });
    rig.settled().await;
    let found = of(&rig, &late);
    assert_eq!(found.via, Via::Sweep);
    assert!(found.not_seen_us.is_some_and(|at| at >= swept.as_microsecond()), "{found:?} after {swept}");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_completed_copy_tells_how_its_details_came() {
    let mut rig = Rig::new(slow()).await;
    rig.config.details = crate::ingest::DetailsMode::Follow;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    let truth = rig.sim.inject(EventSpec::default());
    rig.settled().await;
    run.until("all is completed", |status| status.partial == 0).await;
    let partial = of(&rig, &truth);
    let completed = stored(&rig, &details_id(truth.event_id.as_deref().unwrap())).expect("it is followed");
    assert_eq!((partial.via, completed.via), (Via::Tail, Via::Details));
    assert_eq!(completed.not_seen_us, partial.not_seen_us);
    assert!(completed.asked_us > partial.answered_us, "{completed:?} after {partial:?}");
    run.stop().await;
}

/// Whatever the list is like, what is told of each event is true.
#[tokio::test(start_paused = true)]
async fn no_list_makes_the_times_lie() {
    use faults::{Lists, Order, Paging, Total};
    let with = |change: fn(&mut Faults)| {
        let mut faults = slow();
        change(&mut faults);
        faults
    };
    let all = [
        with(|faults| faults.order = Order::Oldest),
        with(|faults| faults.order = Order::Unsorted),
        with(|faults| {
            faults.lists = Lists { page_cap: Some(37), total: Total::OffBy(-7), ..Lists::default() }
        }),
        with(|faults| {
            faults.lists = Lists { total: Total::Absent, start_date_exclusive: true, ..Lists::default() }
        }),
        with(|faults| {
            faults.lists = Lists { day_offset_minutes: 840, total: Total::Capped(150), ..Lists::default() }
        }),
        with(|faults| {
            faults.paging =
                Paging { inserts: 2, erases: 1, erase_within: Some(300), revisions: 1, ..Paging::default() };
        }),
        with(|faults| faults.content.odd_timestamp = 0.3),
        with(|faults| faults.content.clock_skew_s = -3_600),
    ];
    let check = |faults: Faults| async move {
        let mut rig = Rig::new(faults.clone()).await;
        (rig.config.details, rig.budget) = (crate::ingest::DetailsMode::Off, 600);
        let mut run = rig.run();
        backfilled(&mut run).await;
        for n in 0..12 {
            let age = SignedDuration::from_secs(if n % 3 == 0 { 20 * n } else { 0 });
            let timestamp = Some(rig.clock.now() - age);
            rig.sim.inject(EventSpec { timestamp, ..EventSpec::default() });
            rig.sim.inject_burst(if n == 6 { 130 } else { 0 });
            tokio::time::sleep(Duration::from_millis(730)).await;
        }
        rig.sim.set_faults(Faults { paging: Paging::default(), ..faults });
        rig.settled().await;
        run.stop().await;
        // What was taken away may have gone before it was read.
        let there = |truth: &TruthEvent| rig.bus.log().find(truth.event_id.as_deref().unwrap()).is_some();
        rig.sim
            .truth()
            .iter()
            .filter(|truth| there(truth))
            .filter(|t| of(&rig, t).not_seen_us.is_some())
            .count()
    };
    let told = futures_util::future::join_all(all.map(check)).await;
    assert!(
        told.iter().filter(|count| **count > 0).count() > 4,
        "how many came with a lower bound: {told:?}"
    );
}
