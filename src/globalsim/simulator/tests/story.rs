//! The fleet and its story: believable, repeatable, and told to the truth ledger.

use std::collections::HashMap;

use serde_json::json;
use tokio::time::sleep;

use super::fleet::luhn_digit;
use super::operators::OPERATORS;
use super::traffic::EVENT_TYPES;
use super::*;

fn seeded(seed: u64) -> Config {
    Config { seed, sims: 300, ..with_history() }
}

#[tokio::test(start_paused = true)]
async fn one_seed_gives_one_fleet_and_one_history() {
    let (a, b, c) = (bench(seeded(7)).await, bench(seeded(7)).await, bench(seeded(8)).await);
    assert_eq!(a.sim.fleet(), b.sim.fleet());
    assert_eq!(a.sim.truth(), b.sim.truth());
    assert!(a.sim.truth().len() > 1_000);
    assert_eq!(a.sim.inject_burst(50), b.sim.inject_burst(50), "and one future");
    assert_ne!(a.sim.fleet(), c.sim.fleet());
    assert_ne!(a.sim.truth(), c.sim.truth());
}

#[tokio::test]
async fn switches_do_not_change_the_story() {
    let plain = bench(seeded(7)).await;
    let odd = bench(seeded(7)).await;
    odd.sim.set_faults(Faults { order: faults::Order::Unsorted, ..Faults::default() });
    odd.get("/sims/activity").await;
    assert_eq!(plain.sim.inject_burst(20).len(), 20);
    odd.sim.inject_burst(20);
    let story = |bench: &Bench| bench.sim.truth().into_iter().map(|event| event.row).collect::<Vec<_>>();
    assert_eq!(story(&plain), story(&odd));
}

#[tokio::test]
async fn sims_have_believable_numbers() {
    let bench = bench(seeded(1)).await;
    let fleet = bench.sim.fleet();
    assert_eq!(fleet.len(), 300);
    let iccids: BTreeSet<&str> = fleet.iter().map(|sim| &*sim.iccid).collect();
    assert_eq!(iccids.len(), 300, "unique");
    assert!(iccids.iter().all(|iccid| iccid.len() == 19
        && iccid.starts_with("89")
        && iccid.bytes().all(|byte| byte.is_ascii_digit())));
    let correct = iccids.iter().filter(|iccid| iccid[18..] == luhn_digit(&iccid[..18]).to_string()).count();
    assert!((280..300).contains(&correct), "mostly but not all correct: {correct}");
    assert!(fleet.iter().all(|sim| sim.msisdn.starts_with('+') && (9..=16).contains(&sim.msisdn.len())));
    let linked = fleet.iter().filter(|sim| sim.device_id.is_some()).count();
    assert!((240..300).contains(&linked), "{linked}");
}

#[test]
fn the_check_digit_is_that_of_the_documents_correct_iccid() {
    assert_eq!(luhn_digit("890123456789023456"), 7);
    // The document's other one ends in 6 and fails.
    assert_eq!(luhn_digit("890123456789012345"), 5);
}

#[test]
fn operators_have_true_plmns() {
    let codes: BTreeSet<&str> = OPERATORS.iter().map(|operator| operator.plmn).collect();
    assert_eq!(codes.len(), OPERATORS.len());
    assert!(codes.iter().all(|code| matches!(code.len(), 5 | 6)));
    let plmn = |name: &str| OPERATORS.iter().find(|operator| operator.name == name).unwrap().plmn;
    assert_eq!((plmn("Telenor Norway"), plmn("Telia Sweden")), ("24201", "24001"));
}

#[tokio::test]
async fn a_sims_story_makes_sense() {
    let bench = bench(seeded(3)).await;
    let truth = bench.sim.truth();
    let seen: BTreeSet<&str> = truth.iter().map(|event| &*event.event_type).collect();
    assert_eq!(seen, EVENT_TYPES.into());
    let mut connected: HashMap<&str, bool> = HashMap::new();
    let mut network: HashMap<&str, &Value> = HashMap::new();
    for event in &truth {
        let is_connected = connected.entry(&event.iccid).or_default();
        match &*event.event_type {
            "connection" => assert!(!std::mem::replace(is_connected, true), "connects twice: {event:?}"),
            "disconnection" => assert!(std::mem::replace(is_connected, false), "was not on: {event:?}"),
            "network_change" | "data_usage_update" => assert!(*is_connected, "{event:?}"),
            _ => {}
        }
        if let (Some(before), Some(from)) = (network.get(&*event.iccid), event.row.get("previous_network")) {
            assert_eq!(*before, from);
        }
        if let Some(now) = event.row.get("current_network").or_else(|| event.row.get("network")) {
            network.insert(&event.iccid, now);
        }
    }
    let abroad = truth.iter().filter(|event| event.row["details"]["reason"] == "roaming").count();
    assert!(abroad > 10, "{abroad}");
}

#[tokio::test(start_paused = true)]
async fn traffic_arrives_at_the_target_rate_and_can_be_held() {
    let bench = bench(Config { events_per_second: 5.0, ..quiet() }).await;
    sleep(Duration::from_secs(200)).await;
    let exposed = bench.sim.stats().exposed;
    // Poisson with mean 1,000: three standard deviations are 95.
    assert!((900..1_100).contains(&exposed), "{exposed}");
    bench.sim.pause();
    let held = bench.sim.stats().exposed;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(bench.sim.stats().exposed, held);
    bench.sim.resume();
    bench.sim.set_rate(50.0);
    sleep(Duration::from_secs(100)).await;
    let more = bench.sim.stats().exposed - held;
    assert!((4_750..5_250).contains(&more), "{more}");
}

#[tokio::test(start_paused = true)]
async fn every_event_is_visible_in_its_own_second() {
    let bench = bench(Config { events_per_second: 20.0, ..quiet() }).await;
    sleep(Duration::from_secs(30)).await;
    let truth = bench.sim.truth();
    assert!(truth.len() > 400);
    for event in &truth {
        assert_eq!(event.timestamp.as_second(), event.visible_at.as_second(), "{event:?}");
        assert!(!event.late && !event.history);
    }
    assert!(truth.windows(2).any(|pair| pair[0].timestamp == pair[1].timestamp), "ties");
}

#[tokio::test]
async fn timestamps_tie_when_asked_to() {
    let bench = bench(Config { tie_seconds: 3_600, ..with_history() }).await;
    let times: BTreeSet<i64> = bench.sim.truth().iter().map(|event| event.timestamp.as_second()).collect();
    assert!((24..=25).contains(&times.len()), "{}", times.len());
    assert!(times.iter().all(|time| time % 3_600 == 0));
}

#[tokio::test]
async fn truth_is_the_union_of_what_is_visible() {
    let bench = bench(with_history()).await;
    bench.sim.inject_burst(150);
    let listed: BTreeSet<String> = ids(&bench.walk("/sims/activity").await).into_iter().collect();
    let truth = bench.sim.truth();
    assert_eq!(truth.iter().filter_map(|event| event.event_id.clone()).collect::<BTreeSet<_>>(), listed);
    assert!(truth.iter().all(|event| event.first_served_at.is_some() && event.removed_at.is_none()));
    assert!(truth.iter().map(|event| event.n).eq(1..=truth.len() as u64));

    let mut per_sim = BTreeSet::new();
    for sim in bench.sim.fleet() {
        per_sim.extend(ids(&bench.walk(&format!("/sims/{}/activity", sim.iccid)).await));
    }
    assert_eq!(per_sim, listed);
}

#[tokio::test]
async fn memory_is_bounded_by_the_configured_rows() {
    let bench = bench(Config { visible_rows: 100, truth_events: 150, ..quiet() }).await;
    let events = bench.sim.inject_burst(400);
    let stats = bench.sim.stats();
    assert_eq!((stats.visible_rows, stats.exposed), (100, 400));
    assert_eq!((stats.removed, stats.truth_dropped), (300, 250));
    let truth = bench.sim.truth();
    assert_eq!(truth.first().unwrap().n, 251);
    assert_eq!(truth.iter().filter(|event| event.removed_at.is_none()).count(), 100);
    let listed = ids(&bench.rows("limit=100").await);
    let newest = events.iter().rev().take(100).filter_map(|event| event.event_id.clone());
    assert!(listed.into_iter().eq(newest));
}

#[tokio::test]
async fn injected_events_are_as_asked() {
    let bench = bench(quiet()).await;
    let asked = EventSpec {
        event_id: Some("evt_mine".to_owned()),
        details: Some(json!({"deep": [1, {"a": null}]})),
        overlay: json!({"network": "n/a"}).as_object().unwrap().clone(),
        ..spec("8999000000000000007", "sim_swap", 120)
    };
    let truth = bench.sim.inject(asked);
    assert!(truth.late);
    let row = bench.rows("iccid=8999000000000000007").await.remove(0);
    assert_eq!(row["event_id"], "evt_mine");
    assert_eq!(row["event_type"], "sim_swap");
    assert_eq!(row["timestamp"], "2025-11-05T11:58:00Z");
    assert_eq!(row["network"], "n/a");
    assert_eq!(truth.row["details"], json!({"deep": [1, {"a": null}]}));
    assert_eq!(bench.sim.fleet().len(), 21, "joined the fleet");
}

#[tokio::test]
async fn usage_grows_within_a_month_and_starts_over_in_the_next() {
    let bench = bench(quiet()).await;
    let iccid = bench.sim.fleet()[0].iccid.clone();
    let at = |time: &str| EventSpec {
        timestamp: Some(time.parse().unwrap()),
        ..spec(&iccid, "data_usage_update", 0)
    };
    let usage = |time: &str| bench.sim.inject(at(time)).row["details"]["current_usage_mb"].as_f64().unwrap();
    let october: Vec<f64> = (0..40).map(|_| usage("2025-10-31T23:59:59Z")).collect();
    assert!(october.is_sorted() && october[0] < october[39], "{october:?}");
    let november = usage("2025-11-01T00:00:00Z");
    assert!(november < 70.0 && november < october[39], "{november} after {october:?}");
}

#[tokio::test]
async fn the_handle_works_over_http_too() {
    let bench = bench(quiet()).await;
    let injected = bench.control_post("/inject", json!({"event_type": "connection"})).await;
    assert_eq!(injected.body["event_type"], "connection");
    assert_eq!(bench.control_post("/burst", json!({"count": 9})).await.body, json!({"injected": 9}));
    let page: TruthPage = serde_json::from_value(bench.control("/truth?after=2&limit=3").await).unwrap();
    assert_eq!((page.last, page.dropped), (10, 0));
    assert_eq!(page.events, bench.sim.truth()[2..5]);

    let order = bench.control_post("/faults", json!({"order": "oldest"})).await;
    assert_eq!((order.status, &order.body["order"]), (StatusCode::OK, &json!("oldest")));
    assert_eq!(bench.sim.faults().order, faults::Order::Oldest);
    for wrong in [json!({"oder": "oldest"}), json!({"transport": {"reset": 2.0}})] {
        let refused = bench.control_post("/faults", wrong).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    bench.control_post("/remove", json!({"oldest": 2, "random": 1})).await;
    assert_eq!((bench.sim.stats().removed, bench.sim.stats().visible_rows), (3, 7));
    bench.control_post("/rate", json!({"events_per_second": 3.5})).await;
    bench.control_post("/pause", json!({})).await;
    let stats: Stats = serde_json::from_value(bench.control("/stats").await).unwrap();
    assert_eq!((stats.events_per_second, stats.paused), (3.5, true));
    bench.control_post("/resume", json!({})).await;
    assert!(!bench.sim.stats().paused);
    bench.control_post("/keys", json!({"keys": ["other"]})).await;
    assert_eq!(bench.get("/sims/activity").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn shutdown_ends_every_connection() {
    let bench = bench(quiet()).await;
    bench.ok("/sims/activity").await;
    bench.sim.shutdown().await;
    assert!(bench.try_get("/sims/activity").await.unwrap_err().is_connect());
}
