//! Upstream changes while it is read: it is said once, and the gateway recovers by itself when upstream does.

use super::{
    backfilled,
    rig::{Logged, Rig},
    *,
};
use crate::globalsim::simulator::faults::{Lists, Total};

fn changes(rig: &Rig, capability: &str) -> Vec<Logged> {
    let is_it = |one: &Logged| {
        one.data("event_type") == "simcast.capability_changed"
            && one.data("extra")["capability"] == capability
    };
    rig.everything().into_iter().filter(is_it).collect()
}

fn set(rig: &Rig, lists: Lists) {
    rig.sim.set_faults(Faults { lists, ..Faults::default() });
}

#[tokio::test(start_paused = true)]
async fn a_total_that_stops_counting_is_announced_once_and_trusted_again_later() {
    let mut rig = Rig::new(Faults::default()).await;
    rig.budget = 60;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    set(&rig, Lists { total: Total::Capped(20), ..Lists::default() });
    run.until("it is not trusted", |status| status.probe["total_exact"] == false).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(changes(&rig, "total_exact").len(), 1);
    assert!(run.status.borrow().probe["changed_at"]["total_exact"].is_string());
    set(&rig, Lists::default());
    run.until("it is trusted", |status| status.probe["total_exact"] == true).await;
    tokio::time::sleep(Duration::from_secs(70)).await;
    let said = changes(&rig, "total_exact");
    assert_eq!(said.len(), 2);
    assert_eq!((&said[1].data("extra")["from"], &said[1].data("extra")["to"]), (&false.into(), &true.into()));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn offsets_that_are_ignored_and_later_honoured() {
    let mut rig =
        Rig::new(Faults { lists: Lists { offset_ignored: true, ..Lists::default() }, ..Faults::default() })
            .await;
    rig.budget = 60;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    assert_eq!(run.status.borrow().mode, Mode::Windows);
    // Twelve hours at least, less what one reading takes.
    let horizon = run.status.borrow().horizon_s;
    assert!((40_000..=172_800).contains(&horizon), "{horizon}");
    set(&rig, Lists::default());
    run.until("it is noticed", |status| status.mode == Mode::NewestFirst).await;
    rig.sim.inject_burst(150);
    rig.settled().await;
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(changes(&rig, "offset_honoured").len(), 1);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_changed_during_a_pause_is_announced_once_over_restarts() {
    let rig = Rig::new(Faults::default()).await;
    for (round, details) in [false, true, true].into_iter().enumerate() {
        set(&rig, Lists { account_details: details, ..Lists::default() });
        let mut run = rig.run();
        run.seen(rig.clock.now()).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(changes(&rig, "details_in_list").len(), usize::from(round > 0), "round {round}");
        run.stop().await;
    }
}
