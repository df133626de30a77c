//! Periods, and what a report is computed from.

use serde_json::json;

use super::*;
use crate::event::{Filter, FilterLimits};

fn period(from: &str, to: &str) -> Result<[String; 4], PeriodError> {
    let period = Period::new(from.parse().unwrap(), to.parse().unwrap())?;
    let [from, to] = period.times();
    let [first, end] = period.whole_days().times();
    Ok([from, to, first, end].map(|time| time.to_string()))
}

#[test]
fn a_period_is_the_smallest_one_of_whole_hours() {
    let cases = [
        ("2025-11-05T08:00:00Z", "2025-11-05T09:00:00Z", ["05T08", "05T09", "05T00", "06T00"]),
        ("2025-11-05T08:59:59Z", "2025-11-05T09:00:01Z", ["05T08", "05T10", "05T00", "06T00"]),
        ("2025-11-05T00:00:00Z", "2025-11-06T00:00:00Z", ["05T00", "06T00", "05T00", "06T00"]),
        ("2025-11-05T23:30:00Z", "2025-11-06T00:30:00Z", ["05T23", "06T01", "05T00", "07T00"]),
    ];
    for (from, to, expected) in cases {
        let expected = expected.map(|hour| format!("2025-11-{hour}:00:00Z"));
        assert_eq!(period(from, to).unwrap(), expected, "{from} {to}");
    }
    assert_eq!(period("2025-11-05T08:00:00Z", "2025-11-05T08:00:00Z"), Err(PeriodError::Empty));
    assert_eq!(period("2024-11-05T08:00:00Z", "2026-11-05T08:00:00Z"), Err(PeriodError::TooLong));
}

#[test]
fn what_the_roll_ups_by_sim_can_tell_comes_from_them() {
    let filter = |json: serde_json::Value| Filter::from_json(&json, FilterLimits::default()).unwrap().0;
    let source = |own: serde_json::Value, scope: serde_json::Value| {
        Source::of(&Predicate::new(filter(own), Some(filter(scope))))
    };
    let sims = || json!({"iccid": ["8947000000000000001"], "iccid_prefix": ["89"]});
    assert_eq!(source(json!({}), json!({})), Source::Rollup);
    assert_eq!(source(sims(), json!({})), Source::SimRollup);
    assert_eq!(source(json!({}), sims()), Source::SimRollup);
    for field in ["device_id", "event_type", "country", "operator", "network_type"] {
        assert_eq!(source(json!({field: ["x"]}), json!({})), Source::Log, "{field}");
        assert_eq!(source(sims(), json!({field: ["x"]})), Source::Log, "{field}");
    }
    assert_eq!(source(json!({"exclude_flags": ["late"]}), json!({})), Source::Log);
}
