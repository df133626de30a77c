//! Filters against a naive oracle, and the message of each mistake.

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::json;

use super::*;

fn keys_with<'a>(event_type: &'a str) -> Keys<'a> {
    Keys {
        flags: Flags::default(),
        gateway: false,
        time_us: 0,
        observed_us: 0,
        provenance: None,
        id: "e",
        event_type,
        iccid: None,
        device_id: None,
        country: None,
        country_code: None,
        operator: None,
        network_type: None,
    }
}

/// The contract of design section 4, written the slow way over the JSON form.
fn oracle(filter: &Value, keys: &Keys<'_>) -> bool {
    let list = |name: &str| -> Vec<String> {
        filter
            .get(name)
            .and_then(Value::as_array)
            .map_or(vec![], |items| items.iter().map(|v| v.as_str().unwrap().to_lowercase()).collect())
    };
    let one = |name: &str, values: &[Option<&str>]| {
        let list = list(name);
        list.is_empty() || values.iter().flatten().any(|v| list.contains(&v.to_lowercase()))
    };
    let prefixes = list("iccid_prefix");
    let excluded = list("exclude_flags");
    (!keys.gateway || list("event_type").contains(&keys.event_type.to_lowercase()))
        && one("iccid", &[keys.iccid])
        && one("device_id", &[keys.device_id])
        && one("event_type", &[Some(keys.event_type)])
        && (prefixes.is_empty() || keys.iccid.is_some_and(|i| prefixes.iter().any(|p| i.starts_with(p))))
        && one("country", &[keys.country, keys.country_code])
        && one("operator", &[keys.operator])
        && one("network_type", &[keys.network_type])
        && !keys.flags.iter().any(|flag| excluded.contains(&flag.as_str().to_owned()))
}

const ICCIDS: [&str; 3] = ["8947000000000000001", "8947000000000000002", "8946000000000000003"];
const TYPES: [&str; 4] = ["connection", "Connection", "network_change", "simcast.gap"];
const NAMES: [&str; 6] = ["Norway", "NORWAY", "no", "Ærø", "ærø", "x y"];

fn any_filter() -> impl Strategy<Value = Value> {
    let names = || vec(select(&NAMES[..]), 0..3);
    (
        vec(select(&ICCIDS[..]), 0..3),
        names(),
        vec(select(&TYPES[..]), 0..3),
        vec(select(&["89", "8947", "8946000000000000003"][..]), 0..2),
        names(),
        names(),
        names(),
        vec(select(&["late", "backfill", "partial"][..]), 0..2),
    )
        .prop_map(|(iccid, device, ty, prefix, country, operator, rat, flags)| {
            json!({"iccid": iccid, "device_id": device, "event_type": ty, "iccid_prefix": prefix,
                   "country": country, "operator": operator, "network_type": rat, "exclude_flags": flags})
        })
}

prop_compose! {
    fn any_keys()(flags in 0u16..32, ty in select(&TYPES[..]), iccid in option::of(select(&ICCIDS[..])),
        texts in proptest::array::uniform5(option::of(select(&NAMES[..])))) -> Keys<'static> {
        let [device_id, country, country_code, operator, network_type] = texts;
        Keys { flags: Flags(flags), gateway: ty.starts_with("simcast."), iccid, device_id, country, country_code,
               operator, network_type, ..keys_with(ty) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn agrees_with_the_oracle(filter in any_filter(), keys in any_keys()) {
        let (built, _) = Filter::from_json(&filter, FilterLimits::default()).unwrap();
        prop_assert_eq!(built.matches(&keys), oracle(&filter, &keys));
        let (again, _) = Filter::from_json(&built.to_json(), FilterLimits::default()).unwrap();
        prop_assert_eq!(&again, &built, "the JSON form is lossless");
    }

    #[test]
    fn a_scope_only_ever_narrows(filter in any_filter(), scope in any_filter(), keys in any_keys()) {
        let build = |v| Filter::from_json(v, FilterLimits::default()).unwrap().0;
        let (filter, scope) = (build(&filter), build(&scope));
        let both = Predicate::new(filter.clone(), Some(scope.clone()));
        let expected = filter.matches(&keys)
            && (scope.is_empty() || scope.matches(&keys) || (keys.gateway && in_scope(&scope, &keys)));
        prop_assert_eq!(both.matches(&keys), expected);
    }

    #[test]
    fn what_matches_is_under_the_index_term(filter in any_filter(), scope in option::of(any_filter()), keys in any_keys()) {
        let build = |v| Filter::from_json(&v, FilterLimits::default()).unwrap().0;
        let predicate = Predicate::new(build(filter), scope.map(build));
        if predicate.matches(&keys) {
            let under = |list: &[String], v: Option<&str>| v.is_some_and(|v| list.contains(&fold(v).into_owned()));
            let candidate = match predicate.index_term() {
                IndexTerm::Iccid(list) => under(list, keys.iccid),
                IndexTerm::Device(list) => under(list, keys.device_id),
                IndexTerm::EventType(list) => under(list, Some(keys.event_type)),
                IndexTerm::All => true,
            };
            prop_assert!(candidate);
        }
    }
}

fn refused(filter: Value) -> FilterError {
    Filter::from_json(&filter, FilterLimits { values_per_list: 3 }).unwrap_err()
}

#[test]
fn mistakes_name_the_field_and_the_fix() {
    let error = refused(json!({"iccid": ["12"]}));
    assert_eq!((error.field.as_str(), error.message.contains("18 to 22 digits")), ("iccid", true), "{error}");
    let error = refused(json!({"iccids": []}));
    assert_eq!((error.field.as_str(), error.hint.as_deref()), ("iccids", Some("did you mean iccid?")));
    assert_eq!(refused(json!({"iccid_prefix": ["89x"]})).field, "iccid_prefix");
    assert_eq!(refused(json!({"exclude_flags": ["old"]})).field, "exclude_flags");
    assert_eq!(refused(json!({"country": ["a", "b", "c", "d"]})).field, "country");
    assert_eq!(refused(json!({"country": [1]})).field, "country");
    assert_eq!(refused(json!({"country": [""]})).field, "country");
    assert_eq!(refused(json!([])).field, "filter");
}

#[test]
fn an_unknown_type_is_accepted_with_a_warning() {
    let (filter, warnings) =
        Filter::from_json(&json!({"event_type": "sim_teleported"}), FilterLimits::default()).unwrap();
    assert!(filter.matches(&keys_with("sim_teleported")));
    assert_eq!(warnings.len(), 1);
}

#[test]
fn gateway_events_must_be_named() {
    let gap = Keys { gateway: true, ..keys_with("simcast.gap") };
    assert!(!Filter::default().matches(&gap));
    let (named, warnings) =
        Filter::from_json(&json!({"event_type": ["simcast.gap"]}), FilterLimits::default()).unwrap();
    assert!(named.matches(&gap) && warnings.is_empty());
}
