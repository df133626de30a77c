//! The whole poller against the simulator: what the log holds at the end is what really happened.

mod account;
mod adversary;
mod capabilities;
mod edges;
mod fleet;
mod ledger;
mod logs;
mod nats;
mod overload;
mod provenance;
mod repair;
pub(crate) mod rig;
mod share;
mod sims;
mod store;
mod unsorted;

use rig::{Rig, quiet};

use super::*;
use crate::globalsim::simulator::{self, Faults, faults};

async fn backfilled(run: &mut rig::Run) {
    run.until("backfill", |status| matches!(status.backfill, BackfillState::Done { .. })).await;
}

#[tokio::test(start_paused = true)]
async fn past_and_present_arrive_once() {
    let rig = Rig::new(Faults::default()).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    let past = rig.settled().await.len();
    rig.sim.inject_burst(350);
    let logged = rig.settled().await;
    assert!(logged[..past].iter().all(|event| event.has("backfill")));
    let fresh = logged[past..].iter().filter(|event| !event.has("backfill") || event.has("enriched"));
    assert_eq!(fresh.count(), logged.len() - past);
    run.seen(rig.clock.now()).await;
    run.stop().await;
}

/// Every list that the API document leaves possible ends in the same log.
async fn every_event_arrives_once(faults: Faults, mode: Mode) {
    let rig = Rig::new(faults).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    for count in [1, 30, 250] {
        rig.sim.inject_burst(count);
        rig.settled().await;
    }
    assert_eq!(run.status.borrow().mode, mode);
    run.seen(rig.clock.now()).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_list_with_the_oldest_first() {
    let faults = Faults { order: faults::Order::Oldest, ..Faults::default() };
    every_event_arrives_once(faults, Mode::OldestFirst).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_without_order() {
    let faults = Faults { order: faults::Order::Unsorted, ..Faults::default() };
    every_event_arrives_once(faults, Mode::Windows).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_changes_between_any_two_requests() {
    let paging = faults::Paging {
        inserts: 3,
        erases: 1,
        erase_within: Some(300),
        erase_only_served: true,
        revisions: 1,
        ..Default::default()
    };
    let rig =
        Rig::with(simulator::Config { faults: Faults { paging, ..Faults::default() }, ..quiet() }).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.sim.inject_burst(400);
    run.seen(rig.clock.now()).await;
    // Changes stop, so that there is an end to compare.
    rig.sim.set_faults(Faults::default());
    rig.settled().await;
    run.stop().await;
}

/// Each way in which the API document may be read otherwise.
#[tokio::test(start_paused = true)]
async fn every_reading_of_the_list_parameters() {
    use faults::{Lists, Total};
    let lists = [
        Lists { page_cap: Some(37), ..Lists::default() },
        Lists { total: Total::Absent, ..Lists::default() },
        Lists { total: Total::Capped(150), ..Lists::default() },
        Lists { total: Total::OffBy(7), ..Lists::default() },
        Lists { total: Total::OffBy(-7), bare_array: true, ..Lists::default() },
        Lists { offset_ignored: true, ..Lists::default() },
        Lists { start_date_exclusive: true, end_date_exclusive: true, ..Lists::default() },
        Lists { day_offset_minutes: -720, account_details: true, ..Lists::default() },
        Lists { day_offset_minutes: 840, joined_at_read: true, ..Lists::default() },
    ];
    let check = |lists: Lists| async move {
        let shown = format!("{lists:?}");
        let rig = Rig::new(Faults { lists, ..Faults::default() }).await;
        let mut run = rig.run();
        backfilled(&mut run).await;
        rig.sim.inject_burst(130);
        rig.settled().await;
        run.stop().await;
        shown
    };
    let checked = futures_util::future::join_all(lists.map(check)).await;
    assert_eq!(checked.len(), 9, "{checked:?}");
}

#[tokio::test(start_paused = true)]
async fn clocks_and_times_that_are_wrong() {
    for skew in [-3_600, 3_600] {
        let content = faults::Content { clock_skew_s: skew, odd_timestamp: 0.2, ..Default::default() };
        let faults = Faults { content, ..Faults::default() };
        let rig = Rig::with(simulator::Config { faults, ..quiet() }).await;
        let mut run = rig.run();
        backfilled(&mut run).await;
        rig.sim.inject_burst(40);
        rig.settled().await;
        run.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_upstream_forgot_meanwhile_is_announced() {
    let rig = Rig::new(Faults::default()).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    run.stop().await;
    rig.sim.inject_burst(30);
    rig.sim.remove_oldest(1_000_000);
    rig.sim.inject_burst(10);
    let mut run = rig.run();
    rig.settled().await;
    run.until("the hole is closed", |status| status.seen_until.is_some()).await;
    let gaps: Vec<_> =
        rig.everything().into_iter().filter(|e| e.data("event_type") == "simcast.gap").collect();
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].data("extra")["reason"], "upstream");
    run.stop().await;
}

/// The backlog is longer than a sweep holds, or the list can't be swept at all.
#[tokio::test(start_paused = true)]
async fn what_upstream_forgot_is_announced_however_the_rest_is_read() {
    let orders =
        [(faults::Order::Newest, 6_000), (faults::Order::Oldest, 6_000), (faults::Order::Unsorted, 0)];
    for (order, burst) in orders {
        let rig = Rig::new(Faults { order, ..Faults::default() }).await;
        let mut run = rig.run();
        backfilled(&mut run).await;
        rig.settled().await;
        run.seen(rig.clock.now()).await;
        run.stop().await;
        let now = rig.clock.now();
        let floor = now - SignedDuration::from_secs(60);
        let kept =
            Position { floor, origin: now - SignedDuration::from_hours(24), backfill: None, log: None };
        let value = serde_json::to_vec(&kept).unwrap().into();
        rig.bus.kv_put(crate::bus::Bucket::State, position::KEY, value).await.unwrap();
        rig.sim.inject_burst(30);
        rig.sim.remove_oldest(1_000_000);
        for n in 0..30 {
            // Times in no order, so that a list without order shows that it has none.
            let at = now - SignedDuration::from_secs(n * 7 % 30);
            rig.sim.inject(simulator::EventSpec { timestamp: Some(at), ..Default::default() });
        }
        rig.sim.inject_burst(burst);
        let mut run = rig.run();
        rig.settled().await;
        run.until("the hole is closed", |status| status.seen_until.is_some()).await;
        let gaps = rig.everything().into_iter().filter(|e| e.data("event_type") == "simcast.gap").count();
        assert_eq!(gaps, 1, "{order:?}");
        run.stop().await;
    }
}

/// However much the log has of after the floor: what lies before it is found.
#[tokio::test(start_paused = true)]
async fn what_a_busy_fleet_lost_is_announced() {
    for order in [faults::Order::Newest, faults::Order::Oldest, faults::Order::Unsorted] {
        let rig = Rig::new(Faults { order, ..Faults::default() }).await;
        let mut run = rig.run();
        backfilled(&mut run).await;
        rig.settled().await;
        let floor = rig.clock.now();
        tokio::time::sleep(Duration::from_secs(30)).await;
        rig.sim.inject_burst(700);
        rig.settled().await;
        run.seen(rig.clock.now()).await;
        run.stop().await;
        let kept =
            Position { floor, origin: floor - SignedDuration::from_hours(24), backfill: None, log: None };
        let value = serde_json::to_vec(&kept).unwrap().into();
        rig.bus.kv_put(crate::bus::Bucket::State, position::KEY, value).await.unwrap();
        rig.sim.remove_oldest(1_000_000);
        for n in 0..300 {
            // Times in no order, so that a list without order shows that it has none.
            let at = rig.clock.now() - SignedDuration::from_secs(n * 7 % 20);
            rig.sim.inject(simulator::EventSpec { timestamp: Some(at), ..Default::default() });
        }
        let mut run = rig.run();
        rig.settled().await;
        run.until("the hole is closed", |status| status.seen_until.is_some()).await;
        let gaps = rig.everything().into_iter().filter(|e| e.data("event_type") == "simcast.gap").count();
        assert_eq!(gaps, 1, "{order:?}");
        run.stop().await;
    }
}

/// Rows older than ids are remembered are not appended: after so long a pause that is a hole too.
#[tokio::test(start_paused = true)]
async fn a_pause_longer_than_ids_are_kept_is_announced() {
    let rig = Rig::new(Faults::default()).await;
    let floor = rig.clock.now() - SignedDuration::from_hours(24 * 9);
    let kept = Position { floor, origin: floor, backfill: None, log: None };
    let value = serde_json::to_vec(&kept).unwrap().into();
    rig.bus.kv_put(crate::bus::Bucket::State, position::KEY, value).await.unwrap();
    let mut run = rig.run();
    run.until("all was seen", |status| status.seen_until.is_some()).await;
    let gaps: Vec<_> =
        rig.everything().into_iter().filter(|e| e.data("event_type") == "simcast.gap").collect();
    assert_eq!(gaps.len(), 1);
    assert_eq!(*gaps[0].data("extra").pointer("/from_time").unwrap(), floor.to_string());
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_gateway_polls_and_another_takes_over() {
    let rig = Rig::new(Faults::default()).await;
    let mut first = rig.run();
    backfilled(&mut first).await;
    let second = rig.run();
    rig.sim.inject_burst(20);
    rig.settled().await;
    assert!(second.status.borrow().last_success.is_none(), "it asks for nothing while the other polls");
    first.stop().await;
    rig.sim.inject_burst(20);
    rig.settled().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn answers_that_break_cost_nothing_but_themselves() {
    let faults = Faults {
        errors: faults::Errors { server_error: 0.1, too_many: 0.03, too_many_burst: 2, ..Default::default() },
        transport: faults::Transport {
            reset: 0.05,
            truncate: 0.05,
            truncate_json: 0.05,
            html: 0.05,
            reset_in_body: 0.05,
            ..Default::default()
        },
        ..Faults::default()
    };
    let rig = Rig::new(faults).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.sim.inject_burst(250);
    rig.settled().await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn late_rows_are_found_by_the_alarm() {
    let rig = Rig::new(Faults::default()).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.sim.inject_burst(150);
    rig.settled().await;
    let at = rig.clock.now() - SignedDuration::from_secs(300);
    let late = simulator::EventSpec { timestamp: Some(at), ..Default::default() };
    rig.sim.inject(late);
    let logged = rig.settled().await;
    assert!(logged.iter().any(|event| !event.has("backfill") && event.has("late")));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_where_it_stopped() {
    let rig = Rig::new(Faults::default()).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    run.seen(rig.clock.now()).await;
    run.stop().await;
    let before = rig.settled().await.len();
    rig.sim.inject_burst(1_500);
    let mut run = rig.run();
    let logged = rig.settled().await;
    assert!(logged[before..].iter().all(|event| !event.has("backfill") || event.has("enriched")));
    run.seen(rig.clock.now()).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_loses_nothing() {
    let rig = Rig::new(Faults::default()).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    let mode = faults::OutageMode::Unavailable;
    rig.sim.set_faults(Faults { outage: Some(faults::Outage { mode, for_ms: None }), ..Faults::default() });
    run.until("stale", |status| status.state == UpstreamState::Stale).await;
    rig.sim.inject_burst(7_000);
    rig.sim.set_faults(Faults::default());
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_said_and_not_hammered() {
    let rig = Rig::new(Faults::default()).await;
    rig.sim.set_api_keys(vec!["another".to_owned()]);
    let mut run = rig.run();
    run.until("refused", |status| status.state == UpstreamState::AuthFailed).await;
    let asked = rig.sim.stats().requests;
    assert!(asked <= 2, "{asked}: one for each style of sending the key");
    assert!(run.status.borrow().message.as_ref().is_some_and(|m| m.contains("401")));
    run.stop().await;
    assert!(rig.logged().is_empty());
}

#[tokio::test(start_paused = true)]
async fn odd_rows_are_told_apart_or_quarantined() {
    let content = faults::Content {
        duplicate_id: 0.1,
        missing_id: 0.1,
        unknown_type: 0.1,
        extra_fields: 0.2,
        nulls: 0.2,
        numbers_as_strings: 0.2,
        ..Default::default()
    };
    let rig =
        Rig::with(simulator::Config { faults: Faults { content, ..Faults::default() }, ..quiet() }).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    rig.sim.inject_burst(200);
    rig.settled().await;
    assert!(run.status.borrow().conflicts > 0);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn details_come_with_the_event_or_follow_it() {
    let mut rig = Rig::new(Faults::default()).await;
    rig.config.details_wait = Duration::from_secs(20);
    let mut run = rig.run();
    backfilled(&mut run).await;
    let before = rig.settled().await.len();
    rig.sim.inject_burst(5);
    let logged = rig.settled().await;
    let fresh: Vec<_> = logged[before..].iter().filter(|event| !event.has("backfill")).collect();
    assert_eq!(fresh.len(), 5);
    for event in fresh {
        assert!(!event.has("partial") && !event.data("details").is_null(), "{}", event.body);
    }
    run.until("the past is completed", |status| status.partial == 0).await;
    let logged = rig.check_each_once();
    let partial: Vec<_> = logged.iter().filter(|event| event.has("partial")).collect();
    assert!(!partial.is_empty());
    for event in partial {
        let id = format!("{}~details", event.id);
        let whole = logged.iter().find(|other| other.id == id).expect("it is followed");
        assert!(whole.has("enriched") && !whole.has("partial") && !whole.data("details").is_null());
        assert_eq!(whole.data("event_id"), event.data("event_id"));
    }
    run.stop().await;
}
