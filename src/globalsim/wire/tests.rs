//! Nothing is lost and nothing panics: the document's own examples, then whatever JSON there is.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Number, json};

use super::{answer::Listing, row::Context, *};
use crate::{
    event::{Flag, json as event_json, protobuf},
    proto,
};

const ACTIVITY: &str = include_str!("../../../tests/fixtures/globalsim/activity.json");
const SIM_ACTIVITY: &str = include_str!("../../../tests/fixtures/globalsim/sim_activity.json");
const SIM_SESSIONS: &str = include_str!("../../../tests/fixtures/globalsim/sim_sessions.json");
const DEVICE_SIM: &str = include_str!("../../../tests/fixtures/globalsim/device_sim.json");

const ICCID: &str = "8901234567890123456";

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn account_wide(value: Value) -> Result<Row, BadRow> {
    row::row(value, Context { asked: None, envelope: None, own_list: false })
}

fn rows(text: &str, own_list: bool) -> Vec<Row> {
    let mut listing = Listing::open(value(text), "activity").unwrap();
    listing.activity(None, own_list).unwrap().into_iter().map(Result::unwrap).collect()
}

/// The JSON form of a row's event as clients get it.
fn shown(row: Row) -> Value {
    let event = row.into_event(&Arc::from("/globalsim/default"), "id".to_owned(), Flags::default());
    let mut out = Vec::new();
    event_json::write(&event, Timestamp::UNIX_EPOCH, &mut out);
    let (back, _) = event_json::read(&out).unwrap();
    // An unreadable time is shown as observed_at and marked when the event is sealed.
    assert_eq!(Event { time: back.time, ..event }, back);
    serde_json::from_slice(&out).unwrap()
}

/// How often each scalar is there, with the name it has.
fn leaves(value: &Value) -> HashMap<(String, String), usize> {
    fn walk(name: &str, value: &Value, into: &mut HashMap<(String, String), usize>) {
        let text = match value {
            Value::Null => return,
            Value::Array(items) => return items.iter().for_each(|item| walk(name, item, into)),
            Value::Object(object) => return object.iter().for_each(|(name, item)| walk(name, item, into)),
            Value::String(text) if text.is_empty() => return,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        *into.entry((name.to_owned(), text)).or_default() += 1;
    }
    let mut into = HashMap::new();
    walk("", value, &mut into);
    into
}

/// The leaves of `original` that `kept` lacks.
fn lost(original: &Value, kept: &Value) -> Vec<(String, String)> {
    let kept = leaves(kept);
    let missing = |(leaf, count): &((String, String), usize)| kept.get(leaf).copied().unwrap_or(0) < *count;
    leaves(original).into_iter().filter(missing).map(|(leaf, _)| leaf).collect()
}

fn proto_network(network: &proto::Network) -> Value {
    json!({"country": network.country, "country_code": network.country_code, "operator": network.operator,
        "network_code": network.network_code, "network_type": network.network_type})
}

/// A protobuf event as JSON, by its own field names.
fn proto_shown(event: &proto::Event) -> Value {
    let parsed = |text: &str| if text.is_empty() { Value::Null } else { value(text) };
    let usage = event.usage.as_ref();
    json!({"event_id": event.event_id, "event_type": event.event_type, "iccid": event.iccid, "msisdn": event.msisdn,
        "device_id": event.device_id, "timestamp": event.timestamp, "signal_strength": event.signal_strength,
        "network": event.network.as_ref().map(proto_network),
        "previous_network": event.previous_network.as_ref().map(proto_network),
        "usage": {"current_usage_mb": usage.and_then(|u| u.current_usage_mb.clone()),
            "period": usage.and_then(|u| u.period.clone())},
        "details": parsed(&event.details_json), "extra": parsed(&event.extra_json)})
}

#[test]
fn every_field_of_the_documents_examples_survives_into_json_and_protobuf() {
    for (text, own_list) in [(ACTIVITY, false), (SIM_ACTIVITY, true)] {
        let originals = value(text)["activity"].as_array().unwrap().clone();
        for (original, row) in originals.into_iter().zip(rows(text, own_list)) {
            let message = protobuf::message(&row.event, Timestamp::UNIX_EPOCH);
            assert_eq!(lost(&original, &shown(row)["data"]), [], "{original}");
            assert_eq!(lost(&original, &proto_shown(&message)), [], "{original}");
        }
    }
}

#[test]
fn per_sim_examples_become_what_the_contract_shows() {
    let rows = rows(SIM_ACTIVITY, true);
    assert!(rows.iter().all(|row| row.complete));
    let shown: Vec<Value> = rows.into_iter().map(|row| shown(row)["data"].take()).collect();
    let [connection, usage, change] = shown.as_slice() else { panic!("{shown:?}") };
    assert_eq!(connection["iccid"], ICCID);
    assert_eq!(
        connection["network"],
        json!({"country": "Norway", "country_code": "NO", "operator": "Telenor Norway", "network_code": "24201",
            "mcc": "242", "mnc": "01", "network_type": "4G"})
    );
    assert_eq!(
        (&connection["signal_strength"], &connection["details"]["signal_strength"]),
        (&json!(-65), &json!(-65))
    );
    assert_eq!(usage["usage"].to_string(), r#"{"current_usage_mb":870.5,"period":"current_month"}"#);
    assert_eq!(usage["network"], Value::Null);
    assert_eq!((&change["network"]["country"], &change["network"]["mcc"]), (&json!("Sweden"), &json!("240")));
    assert_eq!(change["previous_network"]["operator"], "Telenor Norway");
    assert_eq!(change["extra"]["current_network"]["network_code"], "24001");
    assert_eq!(change["extra"]["previous_network"]["network_code"], "24201");
    assert_eq!(change["details"], json!({"reason": "roaming"}));
}

#[test]
fn the_two_shapes_of_one_event_are_one() {
    let (mut wide, own) = (rows(ACTIVITY, false).swap_remove(0), rows(SIM_ACTIVITY, true).swap_remove(0));
    assert_eq!((wide.identity_hash(), wide.content), (own.identity_hash(), own.content));
    assert_eq!(wide.content_key(), own.content_key());
    assert!(!wide.complete && own.complete);
    let (first, second) = (shown(wide.clone()), shown(own.clone()));
    wide.merge_details(own);
    assert!(wide.complete);
    let merged = shown(wide);
    assert_eq!((lost(&first, &merged), lost(&second, &merged)), (vec![], vec![]));
    assert_eq!(merged["data"]["msisdn"], "+4791234567");
    assert_eq!(merged["data"]["network"]["network_type"], "4G");
}

#[test]
fn a_merge_unites_networks_in_extra_too() {
    let change = |extra: Value| {
        let mut row = json!({"event_id": "e", "event_type": "network_change", "iccid": ICCID,
            "timestamp": "2025-11-05T08:00:00Z"});
        row.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        account_wide(row).unwrap()
    };
    let mut wide = change(json!({"msisdn": "1", "current_network": {"country": "Sweden"}}));
    let content = wide.content;
    wide.merge_details(change(json!({"current_network": {"country": "Sweden", "network_code": "24001"},
        "previous_network": {"country": "Norway"}, "details": {"reason": "roaming"}})));
    assert_eq!(wide.content, content, "later account-wide rows are compared with it");
    assert_eq!(wide.event.extra["current_network"], json!({"country": "Sweden", "network_code": "24001"}));
    assert_eq!(wide.event.network.unwrap().mnc.as_deref(), Some("01"));
    assert_eq!(wide.event.previous_network.unwrap().country.as_deref(), Some("Norway"));
}

#[test]
fn content_changes_with_the_network_and_with_nothing_volatile() {
    let base = json!({"event_id": "e", "event_type": "connection", "iccid": ICCID, "msisdn": "1", "device_id": "d",
        "timestamp": "t", "network": {"country": "Norway", "operator": "Telenor"}});
    let content = |name: &str, new: Value| {
        let mut row = base.clone();
        row[name] = new;
        account_wide(row).unwrap().content
    };
    let same = account_wide(base.clone()).unwrap().content;
    for (name, new) in [("msisdn", json!("2")), ("device_id", Value::Null), ("details", json!({"a": 1}))] {
        assert_eq!(content(name, new), same, "{name}");
    }
    assert_ne!(content("network", json!({"country": "Norway", "operator": "Telia"})), same);
    assert_ne!(content("previous_network", json!({"country": "Norway"})), same);
}

#[test]
fn sessions_are_read_with_their_digits() {
    let mut listing = Listing::open(value(SIM_SESSIONS), "sessions").unwrap();
    let sessions = listing.sessions(None).unwrap();
    let first = sessions[0].as_ref().unwrap();
    assert_eq!(first.iccid.as_ref().unwrap().as_str(), ICCID);
    assert_eq!(
        serde_json::to_value(&first.session).unwrap(),
        json!({"session_id": "ses_abc123", "start_time": "2025-11-05T08:00:00Z", "end_time": "2025-11-05T10:30:00Z",
            "duration_seconds": 9000, "upload_mb": value("2.5"), "download_mb": value("45.3"),
            "total_mb": value("47.8"), "ip_address": "10.123.45.67"})
    );
    for (original, session) in value(SIM_SESSIONS)["sessions"].as_array().unwrap().iter().zip(&sessions) {
        let session = session.as_ref().unwrap();
        let kept = json!({"session": session.session, "network": session.network, "extra": session.extra});
        assert_eq!(lost(original, &kept), []);
        assert!(!session.is_open() && session.start() < session.end());
    }
    assert_eq!(listing.summary.unwrap()["total_data_mb"].to_string(), "113.1");
    assert_eq!(listing.total, Some(2));
}

#[test]
fn an_open_session_has_no_end() {
    let body = json!({"sessions": [{"session_id": 7, "start_time": 1_762_329_600, "end_time": null, "apn": "iot",
        "data_usage": {"total_mb": "0.10", "roaming_mb": 3}}, {"ip_address": "10.0.0.1"}, "x"]});
    let sessions = Listing::open(body, "sessions").unwrap().sessions(None).unwrap();
    let open = sessions[0].as_ref().unwrap();
    assert!(open.is_open() && open.start().is_some());
    assert_eq!(open.session.session_id.as_deref(), Some("7"));
    assert_eq!(open.session.total_mb.as_ref().map(ToString::to_string).as_deref(), Some("0.10"));
    assert_eq!(Value::from(open.extra.clone()), json!({"apn": "iot", "data_usage": {"roaming_mb": 3}}));
    assert!(sessions[1].is_err() && sessions[2].is_err());
}

#[test]
fn a_device_tells_its_sim() {
    let device = DeviceSim::read(value(DEVICE_SIM), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(device.raw, value(DEVICE_SIM));
    assert_eq!(device.iccid.unwrap().as_str(), ICCID);
    assert_eq!(device.data_usage_mb.unwrap().to_string(), "125.4");
    assert_eq!(device.current_network.unwrap().network_type.as_deref(), Some("4G"));
    assert_eq!(
        [device.device_id, device.device_name, device.status, device.msisdn, device.linked_at]
            .map(Option::unwrap),
        ["iot_dev_abc123", "Temperature Sensor 01", "active", "+4791234567", "2025-10-15T10:00:00Z"]
    );
    let without = DeviceSim::read(json!({"device_id": "d", "sim": null}), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!((without.iccid, without.status), (None, None));
    assert!(DeviceSim::read(json!({"name": "x"}), Timestamp::UNIX_EPOCH).is_err());
}

#[test]
fn odd_fields_cost_neither_themselves_nor_the_row() {
    let row = account_wide(json!({"event_id": 17, "event_type": "sim-swap", "timestamp": 1_762_329_600_000_i64,
        "iccid": value("8901234567890123456"), "msisdn": {"e164": "+47"}, "device_id": "", "network": "Telenor",
        "signal_strength": "-65", "roaming": true, "imei": "350000000000000", "details": "none"}))
    .unwrap();
    let event = &row.event;
    assert_eq!((event.event_id.as_deref(), event.event_type.as_str()), (Some("17"), "sim-swap"));
    assert_eq!(event.time.unwrap().to_string(), "2025-11-05T08:00:00Z");
    assert_eq!((event.iccid.as_ref().unwrap().as_str(), event.signal_strength), (ICCID, Some(-65)));
    assert_eq!((&event.msisdn, &event.device_id, &event.network), (&None, &None, &None));
    assert_eq!(event.details, Some(json!("none")));
    assert_eq!(
        Value::from(event.extra.clone()),
        json!({"msisdn": {"e164": "+47"}, "network": "Telenor", "roaming": true, "imei": "350000000000000"})
    );
    for (given, expected, kept) in [
        (json!(-65.0), Some(-65), true),
        (json!("weak"), None, true),
        (json!(-65.5), None, true),
        (json!(99_999_999_999_i64), None, true),
        (json!(null), None, false),
        (json!(-65), Some(-65), false),
    ] {
        let row = account_wide(json!({"event_id": "e", "signal_strength": given})).unwrap();
        assert_eq!(row.event.signal_strength, expected, "{given}");
        assert_eq!(row.event.extra.get("signal_strength"), kept.then_some(&given));
    }
}

#[test]
fn a_row_without_a_readable_time_is_kept() {
    for timestamp in [Value::Null, json!("yesterday"), json!({"seconds": 5})] {
        let row = account_wide(json!({"event_id": "e", "event_type": "connection", "timestamp": timestamp}))
            .unwrap();
        assert_eq!(row.event.time, None);
        assert_eq!(lost(&json!({"timestamp": timestamp}), &shown(row)["data"]), []);
    }
}

#[test]
fn details_fill_the_network_but_never_overrule_it() {
    let row = account_wide(json!({"event_id": "e", "network": {"network_type": "LTE-M"},
        "details": {"network_type": "4G", "network_code": "310410"}}));
    let network = row.unwrap().event.network.unwrap();
    assert_eq!(network.network_type.as_deref(), Some("LTE-M"));
    assert_eq!((network.mcc.as_deref(), network.mnc.as_deref()), (Some("310"), Some("410")));
    assert_eq!(network.country_code.as_deref(), Some("US"));
    let stated =
        account_wide(json!({"event_id": "e", "network": {"country_code": "SJ", "network_code": "24201"}}));
    assert_eq!(stated.unwrap().event.network.unwrap().country_code.as_deref(), Some("SJ"));
}

#[test]
fn only_what_is_no_event_is_bad() {
    let other = Iccid::parse("8901234567890234567").unwrap();
    let asked = Iccid::parse(ICCID).unwrap();
    let bad = |value: Value, asked: Option<&Iccid>, envelope: Option<&Value>| {
        let raw = value.to_string();
        let bad = row::row(value, Context { asked, envelope, own_list: true }).unwrap_err();
        assert!(raw.starts_with(&bad.raw) && bad.raw.len() <= BAD_ROW_BYTES_MAX, "{bad:?}");
        bad.reason
    };
    let deep = (0..100).fold(json!(1), |inner, _| json!({ "a": inner }));
    for (row, why) in [
        (json!(null), "no object"),
        (json!([]), "no object"),
        (json!({"name": "x"}), "neither event_id"),
        (json!({"event_id": "e", "iccid": "12"}), "is not an ICCID"),
        (json!({"event_id": "e", "iccid": true}), "neither text nor number"),
        (json!({"event_id": "e", "device_id": "ø".repeat(5000)}), "device_id is 10000 bytes"),
        (json!({"event_id": "e", "x": deep}), "nested deeper"),
    ] {
        let reason = bad(row, None, None);
        assert!(reason.contains(why), "{reason}");
    }
    let row = json!({"event_id": "e", "iccid": "8901 2345 6789 0123 456F"});
    assert!(bad(row.clone(), Some(&other), None).contains(other.as_str()));
    assert!(bad(row.clone(), None, Some(&json!(other.as_str()))).contains(other.as_str()));
    assert!(bad(json!({"event_id": "e"}), Some(&other), Some(&json!(ICCID))).contains(ICCID));
    let agreed =
        row::row(row, Context { asked: Some(&asked), envelope: Some(&json!(ICCID)), own_list: true });
    assert_eq!(agreed.unwrap().event.iccid, Some(asked));
}

#[test]
fn details_of_null_are_no_details() {
    let complete =
        |details: Value| account_wide(json!({"event_id": "e", "details": details})).unwrap().complete;
    assert_eq!([complete(json!({})), complete(json!({"a": 1})), complete(Value::Null)], [true, true, false]);
}

#[test]
fn a_named_event_carries_name_source_and_flags() {
    let row = rows(ACTIVITY, false).swap_remove(1);
    let flags: Flags = [Flag::Backfill].into_iter().collect();
    let event = row.into_event(&Arc::from("/globalsim/lab"), "evt_xyz789".to_owned(), flags);
    assert_eq!((event.id.as_str(), &*event.source, event.flags), ("evt_xyz789", "/globalsim/lab", flags));
}

#[test]
fn rows_without_id_are_named_by_content_and_ordinal() {
    let row = |operator: &str| {
        account_wide(json!({"event_type": "connection", "iccid": ICCID, "timestamp": "2025-11-05T08:00:00Z",
            "network": {"operator": operator}}))
        .unwrap()
    };
    assert_eq!(row("a").generated_id(0), row("a").generated_id(0));
    assert_ne!(row("a").generated_id(0), row("a").generated_id(1));
    assert_ne!(row("a").generated_id(0), row("b").generated_id(0));
    assert_eq!(row("a").generated_id(0).len(), "gen_".len() + 32);
}

fn any_json() -> impl Strategy<Value = Value> {
    let number = "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,6})?([eE][+-]?[0-9]{1,3})?";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number.prop_map(|text| text.parse::<Number>().map_or(Value::Null, Value::Number)),
        ".{0,12}".prop_map(Value::from),
        "[0-9]{5,6}|-?[0-9]{1,3}(\\.[0-9])?|4G|Norway".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((known_name(), inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Names that mean something somewhere, and others.
fn known_name() -> impl Strategy<Value = String> {
    let known = "event_id|event_type|timestamp|msisdn|device_id|network|current_network|previous_network|details|\
        country|country_code|operator|network_code|mcc|mnc|network_type|signal_strength|current_usage_mb|period|\
        usage|extra|flags|session|id|data";
    prop_oneof![4 => known.prop_map(|name: String| name), 1 => "[a-z$]{1,4}"]
}

fn any_row() -> impl Strategy<Value = Value> {
    let event_type = prop_oneof![Just("network_change".to_owned()), Just("connection".to_owned()), ".{0,8}"];
    (proptest::collection::vec((known_name(), any_json()), 0..8), event_type).prop_map(
        |(members, event_type)| {
            let mut row: Map<String, Value> = members.into_iter().collect();
            row.insert("event_type".to_owned(), event_type.into());
            Value::Object(row)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_json_panics(body in any_json(), iccid in any_json()) {
        let wrapped = json!({"activity": [body.clone()], "sessions": [body.clone()], "iccid": iccid, "total": body});
        for list in ["activity", "sessions"] {
            for body in [body.clone(), wrapped.clone()] {
                if let Ok(mut listing) = Listing::open(body, list) {
                    let _ = (listing.iccid(), listing.activity(None, false), listing.sessions(None));
                }
            }
        }
        let _ = DeviceSim::read(wrapped, Timestamp::UNIX_EPOCH);
        let _ = DeviceSim::read(body, Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn nothing_of_a_row_is_lost(original in any_row()) {
        let row = account_wide(original.clone()).unwrap();
        prop_assert_eq!(lost(&original, &shown(row)["data"]), []);
    }

    #[test]
    fn a_merge_with_itself_changes_nothing(original in any_row()) {
        let row = account_wide(original).unwrap();
        let mut merged = row.clone();
        merged.merge_details(row.clone());
        prop_assert_eq!(merged, row);
    }

    #[test]
    fn nothing_of_a_session_is_lost(members in proptest::collection::vec((known_session_name(), any_json()), 0..8)) {
        let mut original: Map<String, Value> = members.into_iter().collect();
        original.insert("session_id".to_owned(), "s".into());
        let original = Value::Object(original);
        let mut listing = Listing::open(json!({"sessions": [original]}), "sessions").unwrap();
        let session = listing.sessions(None).unwrap().swap_remove(0).unwrap();
        let kept = json!({"session": session.session, "network": session.network, "extra": session.extra});
        prop_assert_eq!(lost(&original, &kept), []);
    }
}

fn known_session_name() -> impl Strategy<Value = String> {
    "start_time|end_time|duration_seconds|network|data_usage|upload_mb|total_mb|ip_address|apn"
        .prop_map(|name: String| name)
}
