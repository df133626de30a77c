//! What happens to an account and on the way to it: keys are replaced, the limit is smaller than documented, a proxy
//! answers from memory, devices move to other SIMs, a SIM's list does not say whose it is.

use std::fs;

use super::{
    backfilled,
    rig::{Rig, quiet},
    *,
};
use crate::globalsim::{
    key::KeySource,
    simulator::{
        EventSpec,
        faults::{Lists, Order, Transport},
    },
};

/// Requests that were refused for their key or their rate.
fn refused(rig: &Rig, status: u16) -> usize {
    rig.sim.requests().iter().filter(|request| request.status == status).count()
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_replaced_while_the_old_one_still_works_costs_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    fs::write(&path, "first\n").unwrap();
    let mut rig = Rig::new(Faults::default()).await;
    rig.key = KeySource::File(path.clone());
    rig.sim.set_api_keys(vec!["first".to_owned()]);
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    for key in ["second", "third"] {
        let before = refused(&rig, 401);
        let old = fs::read_to_string(&path).unwrap().trim().to_owned();
        rig.sim.set_api_keys(vec![old, key.to_owned()]);
        fs::write(&path, key).unwrap();
        rig.sim.inject_burst(30);
        rig.settled().await;
        assert_eq!(refused(&rig, 401), before, "the old key works");
        rig.sim.set_api_keys(vec![key.to_owned()]);
        rig.sim.inject_burst(150);
        rig.settled().await;
        run.seen(rig.clock.now()).await;
        // Requests that were on their way together.
        assert!((1..=20).contains(&(refused(&rig, 401) - before)), "{}", refused(&rig, 401) - before);
        assert_eq!(run.status.borrow().state, UpstreamState::Ok);
    }
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_refused_for_an_hour_loses_nothing_and_its_successor_is_found_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    fs::write(&path, "first").unwrap();
    let mut rig = Rig::new(Faults::default()).await;
    rig.key = KeySource::File(path.clone());
    rig.sim.set_api_keys(vec!["first".to_owned()]);
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    rig.sim.set_api_keys(vec!["second".to_owned()]);
    run.until("refused", |status| status.state == UpstreamState::AuthFailed).await;
    let (floor, before) = (run.status.borrow().floor, refused(&rig, 401));
    for _ in 0..60 {
        rig.sim.inject_burst(10);
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert!(refused(&rig, 401) - before <= 2 * 61, "it is not hammered: {}", refused(&rig, 401));
    assert_eq!((run.status.borrow().floor, run.status.borrow().state), (floor, UpstreamState::AuthFailed));
    fs::write(&path, "second").unwrap();
    let replaced_at = rig.clock.now();
    run.until("answered", |status| status.last_success > Some(replaced_at)).await;
    assert!(
        rig.clock.now().duration_since(replaced_at) < SignedDuration::from_secs(5),
        "it is found at once"
    );
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    assert_eq!(run.status.borrow().state, UpstreamState::Ok);
    run.stop().await;
}

/// Upstream counts requests in a sliding minute, as documented, but allows a quarter of what is documented.
#[tokio::test(start_paused = true)]
async fn a_limit_that_is_silently_smaller_is_learnt_and_nothing_is_lost() {
    const SMALL: usize = 100;
    let mut rig = Rig::with(simulator::Config { sims: 200, ..quiet() }).await;
    rig.budget = 400;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.sim.set_requests_per_minute(SMALL);
    rig.sim.set_rate(5.0);
    run.until("it is told", |status| status.state == UpstreamState::RateLimited).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let (asked, before) = (rig.sim.stats().requests, refused(&rig, 429));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let (asked, refused) = (rig.sim.stats().requests - asked, refused(&rig, 429) - before);
    let allowance = run.status.borrow().budget["allowance"].as_u64().unwrap();
    println!("{refused} of {asked} requests refused in ten minutes, allowance {allowance}");
    assert!(refused as u64 * 10 <= asked, "{refused} of {asked} refused");
    assert!(allowance <= SMALL as u64 * 3 / 2, "{allowance}");
    assert!(asked >= SMALL as u64 * 4, "{asked}: it goes on asking");
    rig.sim.pause();
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    run.stop().await;
}

/// Pages that a proxy keeps though it is told not to: what was not shown is not taken for seen.
#[tokio::test(start_paused = true)]
async fn a_proxy_that_answers_from_memory_hides_nothing_for_good() {
    let kinds =
        [(false, Order::Newest), (true, Order::Newest), (true, Order::Oldest), (true, Order::Unsorted)];
    for (cache_stubborn, order) in kinds {
        let transport = Transport { cache_ms: 20_000, cache_stubborn, ..Default::default() };
        let mut rig = Rig::new(Faults { order, transport, ..Faults::default() }).await;
        (rig.budget, rig.config.details) = (400, DetailsMode::Off);
        let mut run = rig.run();
        backfilled(&mut run).await;
        for n in 0..12 {
            rig.sim.inject_burst(if n == 7 { 300 } else { 6 });
            let late = rig.clock.now() - SignedDuration::from_secs(40 * n);
            rig.sim.inject(EventSpec { timestamp: Some(late), ..Default::default() });
            tokio::time::sleep(Duration::from_secs(7)).await;
            // An answer says in whole seconds when it was made.
            let seen = run.status.borrow().seen_until.map(|seen| seen - SignedDuration::from_secs(1));
            let logged: std::collections::HashSet<_> =
                rig.logged().into_iter().map(|event| event.data("event_id").to_string()).collect();
            let claimed = |truth: &simulator::TruthEvent| {
                seen.is_some_and(|seen| truth.visible_at < seen)
                    && truth.timestamp >= truth.visible_at - SignedDuration::from_secs(1)
            };
            for truth in rig.sim.truth().iter().filter(|truth| claimed(truth)) {
                let id = serde_json::to_string(&truth.event_id).unwrap();
                assert!(
                    logged.contains(&id),
                    "said to be seen at {seen:?}, {order:?}, {cache_stubborn}: {truth:?}"
                );
            }
        }
        rig.settled().await;
        run.seen(rig.clock.now()).await;
        run.stop().await;
    }
}

/// Rows that show the device's SIM of now, not of then: they are the same events as before.
#[tokio::test(start_paused = true)]
async fn a_device_that_moves_to_another_sim_changes_no_event_and_doubles_none() {
    let lists = Lists { joined_at_read: true, ..Lists::default() };
    let rig = Rig::new(Faults { lists, ..Faults::default() }).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    let fleet = rig.sim.fleet();
    let from = fleet.iter().find(|sim| sim.device_id.is_some()).unwrap();
    let to = fleet.iter().find(|sim| sim.device_id.is_none() || sim.device_id != from.device_id).unwrap();
    let device = from.device_id.clone().unwrap();
    let before = rig.sim.inject(EventSpec { iccid: Some(from.iccid.clone()), ..Default::default() });
    rig.settled().await;
    assert!(rig.sim.relink(&device, &to.iccid));
    let after = rig.sim.inject(EventSpec { iccid: Some(to.iccid.clone()), ..Default::default() });
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    run.stop().await;
    // Everything is read again.
    let mut run = rig.run();
    run.seen(rig.clock.now()).await;
    let logged = rig.settled().await;
    for (truth, sim) in [(before, from), (after, to)] {
        let of: Vec<_> = logged
            .iter()
            .filter(|event| {
                event.data("event_id").as_str() == truth.event_id.as_deref() && !event.has("enriched")
            })
            .collect();
        assert_eq!(of.len(), 1);
        assert_eq!(
            (of[0].data("iccid"), of[0].data("device_id")),
            (&sim.iccid.clone().into(), &device.clone().into())
        );
    }
    assert_eq!((run.status.borrow().revised, run.status.borrow().conflicts), (0, 0));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sims_list_that_does_not_say_whose_it_is_still_completes() {
    let lists = Lists { envelope_absent: true, ..Lists::default() };
    let mut rig = Rig::new(Faults { lists, ..Faults::default() }).await;
    rig.config.details_wait = Duration::from_secs(20);
    let mut run = rig.run();
    backfilled(&mut run).await;
    let truth = rig.sim.inject(EventSpec::default());
    let logged = rig.settled().await;
    let event = logged.iter().find(|event| Some(&event.id) == truth.event_id.as_ref()).unwrap();
    assert!(!event.has("partial") && event.data("iccid") == truth.iccid.as_str(), "{}", event.body);
    run.stop().await;
}

/// Details that upstream says are another SIM's are not mixed in, but kept for the operator.
#[tokio::test(start_paused = true)]
async fn details_of_another_sim_are_quarantined_and_the_event_stays_as_it_is() {
    let rig = Rig::with(simulator::Config { history_events_per_second: 0.0, ..quiet() }).await;
    let mut run = rig.run();
    run.seen(rig.clock.now()).await;
    let lists = Lists { envelope_wrong: 1.0, ..Lists::default() };
    rig.sim.set_faults(Faults { lists, ..Faults::default() });
    let truth = rig.sim.inject(EventSpec::default());
    rig.settled().await;
    run.until("it is told", |status| status.quarantined > 0).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let logged = rig.check_each_once();
    let of: Vec<_> =
        logged.iter().filter(|event| event.data("event_id").as_str() == truth.event_id.as_deref()).collect();
    assert_eq!(of.len(), 1);
    assert!(of[0].has("partial") && of[0].data("iccid") == truth.iccid.as_str(), "{}", of[0].body);
    let status = run.status.borrow().clone();
    assert_eq!((status.partial, status.quarantined), (1, 1));
    let kept = status.quarantine.last().unwrap();
    assert!(kept.what == "details" && kept.reason.contains("which was asked for"), "{kept:?}");
    assert!(!kept.raw.contains(&truth.iccid) && !kept.reason.contains(&truth.iccid), "{kept:?}");
    run.stop().await;
}
