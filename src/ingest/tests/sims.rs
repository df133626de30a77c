//! Sessions and devices against the simulator's truth.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use serde_json::Value;

use super::rig::{Logged, Rig, quiet};
use crate::globalsim::simulator::{self, EventSpec, Faults, SessionTruth, faults};

/// The longest that a read may take to come about in these small fleets.
const PATIENCE: SignedDuration = SignedDuration::from_hours(2);

async fn rig(faults: Faults) -> Rig {
    rig_with(simulator::Config { faults, ..quiet() }).await
}

async fn rig_with(config: simulator::Config) -> Rig {
    let mut rig = Rig::with(config).await;
    rig.config.sessions = true;
    rig
}

/// Tenths of a megabyte, exactly.
fn tenths(value: &Value) -> Option<u64> {
    let text = value.as_number()?.to_string();
    let (whole, rest) = text.split_once('.').unwrap_or((&text, "0"));
    assert_eq!(rest.len(), 1, "{text}");
    Some(whole.parse::<u64>().ok()? * 10 + rest.parse::<u64>().ok()?)
}

/// What the log tells of each session: its start, end and last total, each told once.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Told {
    iccid: String,
    start: Option<String>,
    end: Option<String>,
    total: Option<u64>,
}

fn told(logged: &[Logged]) -> BTreeMap<String, Told> {
    let mut sessions: BTreeMap<String, Told> = BTreeMap::new();
    for event in logged.iter().filter(|event| event.id.starts_with("ses_")) {
        let session = event.data("session");
        let text = |field: &str| session[field].as_str().map(str::to_owned);
        let one = sessions.entry(text("session_id").unwrap()).or_default();
        one.iccid = event.data("iccid").as_str().unwrap().to_owned();
        let kind = event.data("event_type").as_str().unwrap();
        assert!(event.has("derived"), "{}", event.id);
        match kind {
            "session_started" => assert!(one.start.replace(text("start_time").unwrap()).is_none()),
            "session_ended" => assert!(one.end.replace(text("end_time").unwrap()).is_none()),
            other => assert_eq!(other, "session_updated"),
        }
        one.total = tenths(&session["total_mb"]).or(one.total);
    }
    sessions
}

/// The sessions of the truth that must have been told: not those that were over before the gateway was asked to look.
fn truth(rig: &Rig, origin: jiff::Timestamp) -> BTreeMap<String, Told> {
    let is_recent = |one: &SessionTruth| {
        one.end_time.as_ref().is_none_or(|end| end.parse::<jiff::Timestamp>().unwrap() >= origin)
    };
    let all = rig.sim.sessions().into_iter().filter(is_recent);
    all.map(|one| {
        let SessionTruth { iccid, session_id, start_time, end_time, total_tenths } = one;
        (session_id, Told { iccid, start: Some(start_time), end: end_time, total: Some(total_tenths) })
    })
    .collect()
}

/// Waits until the log tells the truth.
async fn comes_true(rig: &Rig, origin: jiff::Timestamp) -> Vec<Logged> {
    let deadline = rig.clock.now() + PATIENCE;
    loop {
        let logged = rig.logged();
        let (told, truth) = (told(&logged), truth(rig, origin));
        if told == truth {
            return logged;
        }
        if rig.clock.now() > deadline {
            let wrong: Vec<_> = truth.iter().filter(|(id, one)| told.get(*id) != Some(one)).take(3).collect();
            let shown: Vec<_> = wrong.iter().map(|(id, _)| told.get(*id)).collect();
            panic!("{} told, {} true; {wrong:?} but {shown:?}", told.len(), truth.len());
        }
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    }
}

/// Twenty SIMs that connect, use, roam and disconnect, with the poller killed and stopped in between.
async fn sessions_come_true(faults: Faults) {
    let rig = rig(faults).await;
    let origin = rig.clock.now() - SignedDuration::from_hours(24);
    for round in 0..6 {
        let mut run = rig.run();
        rig.sim.inject_burst(40);
        run.seen(rig.clock.now()).await;
        rig.sim.inject_burst(25);
        match round % 3 {
            0 => {
                comes_true(&rig, origin).await;
                run.stop().await;
            }
            // In the middle of it.
            1 => {
                tokio::time::sleep(std::time::Duration::from_millis(2_700 + 400 * round)).await;
                run.kill().await;
            }
            _ => run.stop().await,
        }
    }
    let run = rig.run();
    let logged = comes_true(&rig, origin).await;
    let true_total: u64 = truth(&rig, origin).values().filter_map(|one| one.total).sum();
    let told_total: u64 = told(&logged).values().filter_map(|one| one.total).sum();
    assert_eq!(told_total, true_total, "to the tenth of a megabyte");
    let ids: BTreeSet<_> = logged.iter().map(|event| &event.id).collect();
    assert_eq!(ids.len(), logged.len());
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn every_session_opens_grows_and_closes_once() {
    sessions_come_true(Faults::default()).await;
}

#[tokio::test(start_paused = true)]
async fn every_session_is_told_where_an_open_one_has_no_end_at_all() {
    let lists = faults::Lists { open_end_absent: true, ..Default::default() };
    sessions_come_true(Faults { lists, ..Faults::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn every_session_is_told_over_a_bad_line() {
    let transport = faults::Transport {
        reset: 0.1,
        reset_in_body: 0.1,
        truncate_json: 0.1,
        html: 0.05,
        ..Default::default()
    };
    sessions_come_true(Faults { transport, ..Faults::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_sim_with_many_sessions_is_read_page_by_page() {
    let rig = rig(Faults::default()).await;
    let iccid = rig.sim.fleet()[0].iccid.clone();
    let origin = rig.clock.now() - SignedDuration::from_hours(24);
    let run = rig.run();
    for n in 0..260 {
        let event_type = if n % 2 == 0 { "connection" } else { "disconnection" };
        let spec = EventSpec {
            iccid: Some(iccid.clone()),
            event_type: Some(event_type.into()),
            ..EventSpec::default()
        };
        rig.sim.inject(spec);
    }
    let logged = comes_true(&rig, origin).await;
    assert!(told(&logged).values().filter(|one| one.iccid == iccid).count() >= 130);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_moves_is_told_once_and_events_without_a_device_get_it() {
    let rig = rig(Faults::default()).await;
    let fleet = rig.sim.fleet();
    let from = fleet.iter().find(|sim| sim.device_id.is_some()).unwrap();
    let to = fleet.iter().rev().find(|sim| sim.iccid != from.iccid).unwrap();
    let device = from.device_id.clone().unwrap();
    let connect = |iccid: &str, overlay: Value| EventSpec {
        iccid: Some(iccid.to_owned()),
        event_type: Some("connection".into()),
        overlay: overlay.as_object().cloned().unwrap_or_default(),
        ..EventSpec::default()
    };
    let mut run = rig.run();
    rig.sim.inject(connect(&from.iccid, Value::Null));
    run.seen(rig.clock.now()).await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert!(rig.sim.relink(&device, &to.iccid));
    rig.sim.inject(connect(&to.iccid, Value::Null));
    let deadline = rig.clock.now() + PATIENCE;
    while links(&rig).is_empty() {
        assert!(rig.clock.now() < deadline, "the move was never told");
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    run.kill().await;
    let mut run = rig.run();
    // Upstream names no device on this one.
    let bare = rig.sim.inject(connect(&to.iccid, serde_json::json!({"device_id": null})));
    run.seen(rig.clock.now()).await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    let logged = rig.logged();
    let told = links(&rig);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["iccid"], to.iccid.as_str());
    assert_eq!(told[0]["device_id"], device.as_str());
    assert_eq!(told[0]["details"]["previous_iccid"], from.iccid.as_str());
    assert!(told[0]["details"]["device_name"].is_string() && told[0]["details"]["linked_at"].is_string());
    let bare = logged.iter().find(|event| Some(event.id.as_str()) == bare.event_id.as_deref()).unwrap();
    assert_eq!(bare.data("device_id"), device.as_str());
    assert_eq!(bare.data("extra")["derived"], serde_json::json!(["device_id"]));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_read_of_sims_is_shown() {
    let rig = rig(Faults::default()).await;
    let mut run = rig.run();
    run.until("every SIM of the past was read", |status| {
        status.sims["known"].as_u64().is_some_and(|known| known > 10) && status.sims["unread"] == 0
    })
    .await;
    let shown = run.status.borrow().sims.clone();
    assert!(shown["stale_seconds"]["after_an_event"].as_f64().unwrap() < 10.0, "{shown}");
    run.stop().await;
}

fn links(rig: &Rig) -> Vec<Value> {
    let logged = rig.logged();
    let all = logged.iter().filter(|event| event.data("event_type") == "sim_linked");
    all.map(|event| event.body["data"].clone()).collect()
}

async fn linked(rig: &Rig, within: SignedDuration) -> Value {
    let deadline = rig.clock.now() + within;
    loop {
        if let [link] = &links(rig)[..] {
            return link.clone();
        }
        assert!(rig.clock.now() < deadline, "{:?}", links(rig));
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    }
}

/// Sessions are read by the device, so the answer tells that another SIM is in it, though no event and no turn of the
/// device would for a day.
#[tokio::test(start_paused = true)]
async fn a_silent_move_is_seen_where_a_session_is_open() {
    let rig = rig(Faults::default()).await;
    let fleet = rig.sim.fleet();
    let from = fleet.iter().find(|sim| sim.device_id.is_some()).unwrap();
    let to = fleet.iter().rev().find(|sim| sim.iccid != from.iccid).unwrap();
    let device = from.device_id.clone().unwrap();
    let origin = rig.clock.now() - SignedDuration::from_hours(24);
    let run = rig.run();
    rig.sim.inject(EventSpec {
        iccid: Some(from.iccid.clone()),
        event_type: Some("connection".into()),
        ..EventSpec::default()
    });
    tokio::time::sleep(std::time::Duration::from_secs(1_200)).await;
    assert!(rig.sim.relink(&device, &to.iccid));
    let link = linked(&rig, SignedDuration::from_secs(420)).await;
    assert_eq!((&link["iccid"], &link["device_id"]), (&to.iccid.as_str().into(), &device.as_str().into()));
    assert_eq!(link["details"]["previous_iccid"], from.iccid.as_str());
    // The SIM that is in no device any more is still followed.
    rig.sim.inject(EventSpec {
        iccid: Some(from.iccid.clone()),
        event_type: Some("disconnection".into()),
        overlay: serde_json::json!({"device_id": null}).as_object().cloned().unwrap(),
        ..EventSpec::default()
    });
    comes_true(&rig, origin).await;
    assert_eq!(links(&rig).len(), 1);
    // By themselves are read those without a device, and others once, before their device is known.
    let asked = rig.sim.stats().paths;
    let asked = |path: &str| asked.get(path).copied().unwrap_or(0);
    let (by_device, by_sim) = (asked("/devices/{device_id}/sim/sessions"), asked("/sims/{iccid}/sessions"));
    assert!(by_device > by_sim, "{by_device} by device, {by_sim} by SIM");
    run.stop().await;
}

/// A device that upstream's device paths do not know is followed by what events tell.
#[tokio::test(start_paused = true)]
async fn the_move_of_a_device_that_upstream_does_not_know_is_told_from_events() {
    let rig = rig(Faults::default()).await;
    let origin = rig.clock.now() - SignedDuration::from_hours(24);
    let fleet = rig.sim.fleet();
    let [first, second] = [&fleet[0].iccid, &fleet[1].iccid];
    let connect = |iccid: &str| EventSpec {
        iccid: Some(iccid.to_owned()),
        event_type: Some("connection".into()),
        overlay: serde_json::json!({"device_id": "meter of ours"}).as_object().cloned().unwrap(),
        ..EventSpec::default()
    };
    let run = rig.run();
    rig.sim.inject(connect(first));
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    rig.sim.inject(connect(second));
    let link = linked(&rig, SignedDuration::from_secs(120)).await;
    assert_eq!(link["iccid"], second.as_str());
    assert_eq!(link["device_id"], "meter of ours");
    assert_eq!(link["details"]["previous_iccid"], first.as_str());
    assert_eq!(link["details"]["device_name"], Value::Null);
    comes_true(&rig, origin).await;
    run.kill().await;
    let run = rig.run();
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(links(&rig).len(), 1, "once, over a restart");
    run.stop().await;
}
