//! The report of a whole gateway against an independent program that counts the events themselves, also after a kill;
//! and its CLI.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use simcast::{
    bus::NewEvent,
    clock::{Clock, SystemClock},
    event::{Event, Iccid, Network, Session},
    globalsim::simulator::Config,
};
use tokio::process::Command;

use super::support::{Bus, PATIENCE, World, get, on_both_buses, run, settled};

/// Compares every number of some reports with a count of the events by pandas; gives how many events there were.
async fn compare(http: std::net::SocketAddr, queries: &Value) -> u64 {
    let python = std::env::var("SIMCAST_TEST_PYTHON")
        .expect("SIMCAST_TEST_PYTHON is not set: run tests/run, which installs the clients");
    let child = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python/report.py"))
        .args(["--base", &format!("http://{http}"), "--queries", &queries.to_string()])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE * 2, child).await.expect("the program hangs").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["compared"].as_u64().unwrap(), queries.as_array().unwrap().len() as u64 * 12);
    said["events"].as_u64().unwrap()
}

/// Readings of a session as the gateway derives them from upstream's.
fn readings(iccid: &str, session: &str, totals: &[&str], began: Timestamp) -> Vec<NewEvent> {
    let of = |(n, total): (usize, &&str)| {
        let event_type = match n {
            0 => "session_started",
            n if n + 1 == totals.len() => "session_ended",
            _ => "session_updated",
        };
        let id = format!("{session}~{n}");
        let mut event = Event::new(id.clone(), "/globalsim/default".into(), event_type);
        event.event_id = Some(id);
        event.iccid = Iccid::parse(iccid).ok();
        event.time = Some(began + SignedDuration::from_mins(40 * n as i64));
        event.timestamp = event.time.map(|time| time.to_string());
        event.network = Some(Network {
            country: Some("Norway".into()),
            country_code: Some("NO".into()),
            ..Network::default()
        });
        event.session = Some(Session {
            session_id: Some(session.to_owned()),
            start_time: Some(began.to_string()),
            duration_seconds: Some(2_400 * n as i64),
            upload_mb: "0.3".parse().ok(),
            total_mb: total.parse().ok(),
            ..Session::default()
        });
        NewEvent { event, identity: n as u64, content: 0 }
    };
    totals.iter().enumerate().map(of).collect()
}

async fn a_report_is_what_the_events_add_up_to(bus: Bus) {
    let config = Config {
        sims: 30,
        events_per_second: 20.0,
        history: Duration::from_secs(3 * 86_400),
        history_events_per_second: 0.002,
        ..Config::default()
    };
    let world = World::on(bus, config).await;
    let backfill = [("SIMCAST__UPSTREAM__BACKFILL_DAYS", "4")];
    let gateway = world.gateway_with(&backfill).await;
    let began = SystemClock.now() - SignedDuration::from_hours(30);
    let fleet = world.sim.fleet();
    let (first, second) = (&fleet[0].iccid, &fleet[1].iccid);
    for (iccid, session, totals) in [
        (first, "sess_a", &["0", "0.1", "12.75", "12.70"][..]),
        (second, "sess_b", &["0.2", "870.50"][..]),
        // Upstream corrects a session that has ended.
        (first, "sess_a", &["12.70", "11"][..]),
    ] {
        let mut batch = readings(iccid, session, totals, began);
        if totals.len() == 2 && session == "sess_a" {
            for reading in &mut batch {
                reading.event.id.push_str("~again");
            }
        }
        gateway.running.bus.append(batch, None).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.sim.pause();
    let kept = settled(&world, gateway.http).await.len();
    let days_ago = |days: i64| (SystemClock.now() - SignedDuration::from_hours(24 * days)).to_string();
    let hour_ago = (SystemClock.now() - SignedDuration::from_mins(61)).to_string();
    let (from, to) = (days_ago(2), days_ago(1));
    let queries = json!([
        {},
        {"interval": "day", "top": 3},
        {"from": from, "to": hour_ago, "interval": "day"},
        {"from": &from[..10], "to": &to[..10]},
        {"iccid": [first, second]},
        {"country": ["Norway"], "from": days_ago(4)},
        {"country": ["SE"], "event_type": ["network_change", "connection"], "from": days_ago(4), "top": 1000},
    ]);
    let events = compare(gateway.http, &queries).await;
    assert!(events > 100 && events <= kept as u64, "{events} of {kept}");
    let (_, report) = get(gateway.http, "/v1/report").await;
    assert_eq!(report["data"]["total_mb"].to_string(), "881.5");
    let (status, refused) = get(gateway.http, &format!("/v1/report?iccid={first}&interval=hour")).await;
    assert_eq!((status, &refused["error"]["field"]), (400, &json!("interval")));
    gateway.stop().await;

    // The next one goes on from what was written down.
    let gateway = world.gateway_with(&backfill).await;
    assert_eq!(compare(gateway.http, &queries).await, events);
    gateway.stop().await;
}
on_both_buses!(a_report_is_what_the_events_add_up_to);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_costs_the_report_nothing_and_the_cli_shows_it() {
    let config = Config {
        sims: 30,
        events_per_second: 50.0,
        history: Duration::from_secs(86_400),
        history_events_per_second: 0.01,
        ..Config::default()
    };
    let world = World::new(config).await;
    for _ in 0..3 {
        let gateway = world.child();
        tokio::time::sleep(Duration::from_secs(2)).await;
        gateway.kill();
    }
    let gateway = world.child();
    world.sim.pause();
    settled(&world, gateway.http).await;
    let events = compare(gateway.http, &json!([{}, {"interval": "day"}])).await;

    let server = format!("http://{}", gateway.http);
    let report = |more: &[&str]| {
        let args: Vec<_> = ["report", "--server", &server].iter().chain(more).copied().collect();
        run(&args, &[], world.dir.path())
    };
    let (code, json, _) = report(&["--format", "json"]);
    let said: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, said["totals"]["events"].as_u64()), (Some(0), Some(events)));
    let (code, csv, _) = report(&["--format", "csv", "--days", "2"]);
    assert_eq!(code, Some(0));
    assert!(csv.contains(&format!("totals,,,events,{events}\n")), "{csv}");
    let (code, table, _) = report(&["--top", "2"]);
    assert_eq!(code, Some(0));
    assert!(table.contains("most active"), "{table}");
    let (code, _, error) = report(&["--from", "yesterday"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("from is a date or a time"), "{error}");
    assert_eq!(gateway.terminate(), Some(0));
}
