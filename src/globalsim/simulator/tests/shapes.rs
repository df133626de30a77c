//! Field sets equal to those of the API document's examples.

use serde_json::{Value, json};

use super::*;

const DEVICE_KEYS: [&str; 3] = ["device_id", "device_name", "sim"];

/// The document's per-SIM examples, one per event type that it shows.
fn sim_examples() -> Vec<Value> {
    let norway = json!({"country": "Norway", "operator": "Telenor Norway", "network_code": "24201"});
    let sweden = json!({"country": "Sweden", "operator": "Telia Sweden", "network_code": "24001"});
    vec![
        json!({"event_id": "evt_abc123", "event_type": "connection", "timestamp": "2025-11-05T08:00:00Z",
            "network": norway, "details": {"network_type": "4G", "signal_strength": -65}}),
        json!({"event_id": "evt_def456", "event_type": "data_usage_update",
            "timestamp": "2025-11-05T09:30:00Z",
            "details": {"current_usage_mb": 870.5, "period": "current_month"}}),
        json!({"event_id": "evt_ghi789", "event_type": "network_change", "timestamp": "2025-11-04T16:20:00Z",
            "previous_network": norway, "current_network": sweden, "details": {"reason": "roaming"}}),
    ]
}

/// Same keys at every level, same kind of value at every leaf.
fn assert_same_shape(got: &Value, want: &Value, at: &str) {
    match (got, want) {
        (Value::Object(got), Value::Object(want)) => {
            let names = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(got), names(want), "fields, in the document's order, of {at}");
            for (key, want) in want {
                assert_same_shape(&got[key], want, &format!("{at}.{key}"));
            }
        }
        (Value::String(_), Value::String(_)) | (Value::Number(_), Value::Number(_)) => {}
        _ => panic!("{at}: {got} is not like {want}"),
    }
}

fn device_of(bench: &Bench) -> SimInfo {
    bench.sim.fleet().into_iter().find(|sim| sim.device_id.is_some()).unwrap()
}

#[tokio::test]
async fn per_sim_rows_are_as_documented() {
    let bench = bench(quiet()).await;
    let iccid = device_of(&bench).iccid;
    for example in sim_examples() {
        bench.sim.inject(spec(&iccid, example["event_type"].as_str().unwrap(), 0));
        let body = bench.ok(&format!("/sims/{iccid}/activity?limit=1")).await;
        assert_eq!(keys(&body), BTreeSet::from(["iccid", "activity", "total"]));
        assert_eq!(body["iccid"], iccid);
        assert_same_shape(&body["activity"][0], &example, "row");
    }
}

#[tokio::test]
async fn account_rows_are_as_documented() {
    let bench = bench(quiet()).await;
    let iccid = device_of(&bench).iccid;
    bench.sim.inject(spec(&iccid, "connection", 0));
    let body = bench.ok("/sims/activity?limit=20&offset=0").await;
    let example = json!({
        "activity": [{"event_id": "evt_abc123", "iccid": "8901234567890123456", "msisdn": "+4791234567",
            "device_id": "iot_dev_abc123", "event_type": "connection", "timestamp": "2025-11-05T08:00:00Z",
            "network": {"country": "Norway", "operator": "Telenor Norway"}}],
        "total": 2, "limit": 20, "offset": 0
    });
    assert_eq!(keys(&body), keys(&example));
    assert_eq!((&body["total"], &body["limit"], &body["offset"]), (&json!(1), &json!(20), &json!(0)));
    assert_same_shape(&body["activity"][0], &example["activity"][0], "row");
}

#[tokio::test]
async fn account_rows_of_other_types_lack_details_and_codes() {
    let bench = bench(quiet()).await;
    let iccid = device_of(&bench).iccid;
    let who = ["event_id", "iccid", "msisdn", "device_id", "event_type", "timestamp"];
    let cases: [(&str, &[&str]); 4] = [
        ("disconnection", &["network"]),
        ("network_change", &["previous_network", "current_network"]),
        ("data_usage_update", &[]),
        ("location_update", &["network"]),
    ];
    for (event_type, networks) in cases {
        bench.sim.inject(spec(&iccid, event_type, 0));
        let row = bench.rows("limit=1").await.remove(0);
        assert_eq!(row["event_type"], event_type);
        assert_eq!(keys(&row), who.iter().chain(networks).copied().collect(), "{event_type}");
        for network in networks {
            assert_eq!(keys(&row[network]), BTreeSet::from(["country", "operator"]));
        }
    }
}

#[tokio::test]
async fn one_event_has_one_identity_in_both_lists() {
    let bench = bench(quiet()).await;
    let truth = bench.sim.inject(EventSpec::default());
    let account = bench.rows("").await.remove(0);
    let per_sim = rows_of(&bench.ok(&format!("/sims/{}/activity", truth.iccid)).await).remove(0);
    for key in ["event_id", "event_type", "timestamp"] {
        assert_eq!(account[key], per_sim[key], "{key}");
    }
    assert_eq!(per_sim, truth.row);
    assert_eq!(account, truth.account_row);
}

#[tokio::test]
async fn sessions_are_as_documented() {
    let bench = bench(quiet()).await;
    let sim = device_of(&bench);
    bench.sim.inject(spec(&sim.iccid, "connection", 9_000));
    bench.sim.inject(spec(&sim.iccid, "data_usage_update", 4_000));
    bench.sim.inject(spec(&sim.iccid, "disconnection", 0));
    let body = bench.ok(&format!("/sims/{}/sessions", sim.iccid)).await;
    let example = json!({
        "iccid": "8901234567890123456",
        "sessions": [{"session_id": "ses_abc123", "start_time": "2025-11-05T08:00:00Z",
            "end_time": "2025-11-05T10:30:00Z", "duration_seconds": 9000,
            "network": {"country": "Norway", "country_code": "NO", "operator": "Telenor Norway",
                "network_code": "24201", "network_type": "4G"},
            "data_usage": {"upload_mb": 2.5, "download_mb": 45.3, "total_mb": 47.8},
            "ip_address": "10.123.45.67"}],
        "total": 2,
        "summary": {"total_sessions": 2, "total_data_mb": 113.1, "average_session_duration_seconds": 13050}
    });
    assert_eq!(keys(&body), keys(&example));
    assert_same_shape(&body["sessions"][0], &example["sessions"][0], "session");
    assert_same_shape(&body["summary"], &example["summary"], "summary");
    let session = &body["sessions"][0];
    assert_eq!(session["duration_seconds"], 9_000);
    assert_eq!((&body["total"], &body["summary"]["total_sessions"]), (&json!(1), &json!(1)));
    assert_eq!(body["summary"]["average_session_duration_seconds"], 9_000);
    assert_eq!(body["summary"]["total_data_mb"], session["data_usage"]["total_mb"]);

    let device = percent(sim.device_id.as_deref().unwrap());
    assert_eq!(bench.ok(&format!("/devices/{device}/sim/sessions")).await, body);
}

#[tokio::test]
async fn an_open_session_grows_and_has_no_end() {
    let bench = bench(quiet()).await;
    let iccid = device_of(&bench).iccid;
    let path = format!("/sims/{iccid}/sessions");
    bench.sim.inject(spec(&iccid, "connection", 100));
    let before = bench.ok(&path).await["sessions"][0].clone();
    assert_eq!(before["end_time"], Value::Null);
    bench.sim.inject(spec(&iccid, "data_usage_update", 10));
    let after = bench.ok(&path).await["sessions"][0].clone();
    assert_eq!(after["session_id"], before["session_id"]);
    let total = |session: &Value| session["data_usage"]["total_mb"].as_f64().unwrap();
    assert!(total(&after) > total(&before), "{before} then {after}");

    let lists = faults::Lists { open_end_absent: true, ..Default::default() };
    bench.sim.set_faults(Faults { lists, ..Faults::default() });
    assert!(!keys(&bench.ok(&path).await["sessions"][0]).contains("end_time"));
}

#[tokio::test]
async fn device_information_is_as_documented() {
    let bench = bench(quiet()).await;
    let sim = device_of(&bench);
    let device = sim.device_id.clone().unwrap();
    let body = bench.ok(&format!("/devices/{}/sim", percent(&device))).await;
    let example = json!({"device_id": "iot_dev_abc123", "device_name": "Temperature Sensor 01",
        "sim": {"iccid": "8901234567890123456", "status": "active", "msisdn": "+4791234567",
            "current_network": {"country": "Norway", "operator": "Telenor Norway", "network_type": "4G"},
            "data_usage_mb": 125.4, "linked_at": "2025-10-15T10:00:00Z"}});
    assert_same_shape(&body, &example, "device");
    assert_eq!((&body["device_id"], &body["sim"]["iccid"]), (&json!(device), &json!(sim.iccid)));
}

#[tokio::test]
async fn every_device_is_reachable_however_odd_its_id() {
    let bench = bench(Config { sims: 100, requests_per_minute: 1_000, ..quiet() }).await;
    let devices: Vec<String> = bench.sim.fleet().into_iter().filter_map(|sim| sim.device_id).collect();
    assert!(devices.iter().any(|id| id.contains('/')) && devices.iter().any(|id| !id.is_ascii()));
    for device in devices {
        let body = bench.ok(&format!("/devices/{}/sim", percent(&device))).await;
        assert_eq!(body["device_id"], device);
        assert_eq!(keys(&body), DEVICE_KEYS.into());
        let activity = bench.ok(&format!("/devices/{}/sim/activity", percent(&device))).await;
        assert_eq!(activity["iccid"], body["sim"]["iccid"]);
    }
}

#[tokio::test]
async fn a_relinked_device_shows_its_new_sim_and_old_events_keep_the_old() {
    let bench = bench(quiet()).await;
    let sim = device_of(&bench);
    let other = bench.sim.fleet().into_iter().find(|other| other.iccid != sim.iccid).unwrap();
    let device = sim.device_id.clone().unwrap();
    bench.sim.inject(spec(&sim.iccid, "connection", 5));
    assert!(bench.sim.relink(&device, &other.iccid));
    let body = bench.ok(&format!("/devices/{}/sim", percent(&device))).await;
    assert_eq!(body["sim"]["iccid"], other.iccid);
    assert_eq!(bench.rows("").await[0]["device_id"], device);

    let lists = faults::Lists { joined_at_read: true, ..Default::default() };
    bench.sim.set_faults(Faults { lists, ..Faults::default() });
    assert!(!keys(&bench.rows("").await[0]).contains("device_id"));
    assert!(!bench.sim.relink(&device, "nobody"));
}

fn percent(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[tokio::test]
async fn per_sim_lists_can_be_anonymous_or_say_that_they_are_another_sims() {
    let bench = bench(with_history()).await;
    let iccid = bench.sim.fleet()[0].iccid.clone();
    let path = format!("/sims/{iccid}/activity");
    for (envelope_absent, envelope_wrong) in [(true, 0.0), (false, 1.0)] {
        let lists = faults::Lists { envelope_absent, envelope_wrong, ..Default::default() };
        bench.sim.set_faults(Faults { lists, ..Faults::default() });
        let said = bench.ok(&path).await["iccid"].clone();
        let other = bench.sim.fleet().iter().skip(1).any(|sim| said == sim.iccid.as_str());
        assert_eq!((said.is_null(), other), (envelope_absent, !envelope_absent));
    }
}
