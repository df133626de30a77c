//! The schema of the report.

use serde_json::{Value, json};

use super::{cursor, described, list, nullable, nullable_time, object, one_of_null, text, time};

pub(super) fn report() -> Value {
    let count = || json!({"type": "integer"});
    let mb = || described(json!({"type": "number"}), "Megabytes, exact to the sixth decimal.");
    let country = || object(&[("country", nullable("string")), ("country_code", nullable("string"))], &[]);
    let by = |names: &[&'static str]| {
        let names = names.iter().map(|name| (*name, nullable("string")));
        list(object(&names.chain([("events", count())]).collect::<Vec<_>>(), &[]))
    };
    let amounts = |names: &[&'static str]| {
        let names = names.iter().map(|name| (*name, nullable("string")));
        let amounts = [("upload_mb", mb()), ("download_mb", mb()), ("total_mb", mb())];
        names.chain(amounts).collect::<Vec<_>>()
    };
    let unless_sims = |schema: Value| described(one_of_null(schema), "Null with `sim_rollup`.");
    let mut data = amounts(&[]);
    data.push(("by_sim", list(object(&amounts(&["iccid"]), &[]))));
    data.push(("by_country", list(object(&amounts(&["country", "country_code"]), &[]))));
    let point = object(
        &[
            ("time", time()),
            ("events", count()),
            ("late", count()),
            ("repaired", count()),
            ("total_mb", mb()),
        ],
        &[],
    );
    let completeness = object(
        &[
            ("state", text()),
            ("missing", described(nullable("integer"), "Null if unknown.")),
            ("reason", nullable("string")),
        ],
        &[],
    );
    let not_counted = object(
        &[
            ("positions", described(count(), "Positions of the log that could not be read, ever.")),
            (
                "out_of_range",
                described(count(), "Events older than 400 days, or in the future, when they came."),
            ),
            (
                "session_readings",
                described(count(), "Readings of sessions whose earlier ones are not known any more."),
            ),
            (
                "damaged_days",
                described(list(text()), "Days of the period whose roll-ups were lost to damage."),
            ),
        ],
        &[],
    );
    object(
        &[
            ("from", described(time(), "Beginning of what is counted by hour.")),
            ("to", described(time(), "Its end, exclusive.")),
            (
                "days",
                described(
                    object(&[("from", time()), ("to", time())], &[]),
                    "Bounds of what is counted by whole days.",
                ),
            ),
            ("interval", json!({"type": "string", "enum": ["hour", "day"]})),
            ("computed_from", json!({"type": "string", "enum": ["rollup", "sim_rollup", "log"]})),
            (
                "rolled_up_since",
                described(nullable_time(), "Events stored since then are counted; null where none was."),
            ),
            ("as_of", described(one_of_null(cursor()), "Everything up to here is counted.")),
            ("as_of_time", described(nullable_time(), "When the last event counted was stored.")),
            ("not_counted", not_counted),
            (
                "totals",
                object(
                    &[("events", count()), ("sims", count()), ("late", count()), ("repaired", count())],
                    &[],
                ),
            ),
            ("by_type", by(&["event_type"])),
            ("by_country", unless_sims(by(&["country", "country_code"]))),
            ("by_operator", unless_sims(by(&["operator"]))),
            ("by_network_type", unless_sims(by(&["network_type"]))),
            ("series", described(list(point), "Points without events are left out.")),
            ("most_active", list(object(&[("iccid", nullable("string")), ("events", count())], &[]))),
            (
                "data",
                described(
                    object(&data, &[]),
                    "What sessions moved, on the hour of the event that showed it.",
                ),
            ),
            (
                "sessions",
                object(
                    &[
                        ("started", count()),
                        ("ended", count()),
                        ("total_mb", mb()),
                        ("mean_duration_seconds", nullable("number")),
                    ],
                    &[],
                ),
            ),
            (
                "roaming",
                described(
                    list(object(&[("from", country()), ("to", country()), ("changes", count())], &[])),
                    "Network changes from one country to another.",
                ),
            ),
            (
                "completeness",
                described(
                    json!({"type": "object", "additionalProperties": completeness}),
                    "By day, for the days that the poller follows.",
                ),
            ),
        ],
        &[("warnings", list(text()))],
    )
}
