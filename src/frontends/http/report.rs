//! `GET /v1/report`: what a period looked like.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Response,
};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Map, Value, json};

use super::body;
use crate::{
    auth::Principal,
    event::FieldPolicy,
    frontends::{ApiError, Code, Context, params::Params},
    views::{
        report::{Error, Interval, Period, Query, Report, Row, Source, time_of_hour},
        rollup::{
            cells::{Names, Tally},
            data::Data,
            sim::Sim,
        },
    },
};

/// SIMs of a list unless `top` says otherwise.
pub const TOP_DEFAULT: u32 = 10;

/// Most SIMs of a list.
pub const TOP_MAX: u32 = 1_000;

/// Days of a report that does not say from when.
const DAYS_DEFAULT: i64 = 30;

/// `GET /v1/report`.
///
/// # Errors
/// As the route table lists.
pub async fn report(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    context.accepting()?;
    let mut params = Params::parse(query.as_deref(), &context.limits)?;
    let top = params.take_number("top", 1..=TOP_MAX)?.unwrap_or(TOP_DEFAULT);
    let choices = [("hour", Interval::Hour), ("day", Interval::Day)];
    let interval = params.take_choice("interval", &choices)?;
    let [from, to] = ["from", "to"].map(|name| take_time(&mut params, name));
    let (filter, warnings) = params.filter(&context.limits)?;
    let to = to?.unwrap_or_else(|| context.clock.now());
    let from = from?.unwrap_or(to - SignedDuration::from_hours(24 * DAYS_DEFAULT));
    let period = Period::new(from, to)
        .map_err(|error| ApiError::new(Code::InvalidParameter, error.to_string()).field("from"))?;
    let query = Query { predicate: principal.predicate(filter)?, period, interval };
    let report = context.reports.compute(query).await?;
    let mut shown = show(&report, top as usize, principal.policy.as_deref());
    let upstream = context.status.borrow().to_json(context.clock.now());
    shown["completeness"] = completeness(&upstream, report.days);
    if !warnings.is_empty() {
        shown["warnings"] = warnings.into();
    }
    Ok(body::json(StatusCode::OK, &shown))
}

/// A time, or a date: the beginning of that day in UTC.
fn take_time(params: &mut Params, name: &'static str) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = params.take(name)? else { return Ok(None) };
    // Everybody forgets that a plus sign in a query is a space.
    let text = text.replace(' ', "+");
    let date = text.parse::<Date>().ok().filter(|_| !text.contains(['T', 't']));
    let time = match date {
        Some(date) => TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok(),
        None => text.parse().ok(),
    };
    let known = time.filter(|time| time.as_second().unsigned_abs() < 1 << 36);
    known.map(Some).ok_or_else(|| {
        let message = format!("{name} is a date or a time such as 2025-11-05T08:00:00Z, not {text:?}");
        ApiError::new(Code::InvalidParameter, message).field(name)
    })
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Building { .. } => Self::new(Code::IndexBuilding, message)
                .hint("try again in a moment, or ask for a period that was over before")
                .retry_after(std::time::Duration::from_secs(1)),
            Error::NoHours => Self::new(Code::InvalidParameter, message)
                .field("interval")
                .hint("ask with interval=day, or leave it out"),
            Error::TooLarge => Self::new(Code::InvalidParameter, message)
                .field("from")
                .hint("ask for a shorter period, or filter by iccid or iccid_prefix only"),
            Error::Busy => {
                Self::new(Code::RateLimited, message).retry_after(std::time::Duration::from_secs(5))
            }
            Error::Io(_) => {
                tracing::error!(error = message, "a report failed");
                Self::new(Code::Unavailable, "the report can't be read")
            }
        }
    }
}

/// The answer, without completeness.
pub fn show(report: &Report, top: usize, policy: Option<&FieldPolicy>) -> Value {
    let (sums, names, meta) = (&report.sums, &report.names, &report.meta);
    let knows_networks = report.source != Source::SimRollup;
    let by = |list: &[Tally], label: &dyn Fn(&Names, u32) -> Map<String, Value>| -> Value {
        let there = list.iter().enumerate().filter(|(_, tally)| tally.events != 0);
        let mut rows: Vec<_> = there.map(|(name, tally)| (label(names, name as u32), tally.events)).collect();
        rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| key(&a.0).cmp(&key(&b.0))));
        rows.into_iter().map(|(row, events)| with(row, [("events", events.into())])).collect()
    };
    let plain = |field: &'static str| {
        move |names: &Names, name: u32| Map::from_iter([(field.to_owned(), names.text(name).into())])
    };
    let if_networks = |value: Value| if knows_networks { value } else { Value::Null };
    let events_of = |wanted: &str| -> i64 {
        let there =
            sums.types.iter().enumerate().filter(|(name, _)| names.text(*name as u32) == Some(wanted));
        there.map(|(_, tally)| tally.events).sum()
    };
    let series: Vec<_> = sums
        .series
        .iter()
        .filter(|(_, tally)| **tally != Tally::default())
        .map(|(hour, tally)| {
            json!({"time": time_of_hour(*hour).to_string(), "events": tally.events, "late": tally.late,
                   "repaired": tally.repaired, "total_mb": tally.data.total.to_number()})
        })
        .collect();
    let roaming: Vec<_> = {
        let mut rows: Vec<_> = sums.changes.iter().filter(|(_, count)| **count != 0).collect();
        rows.sort_by(|a, b| {
            b.1.cmp(a.1).then_with(|| {
                let texts = |change: &(u32, u32)| [names.text(change.0), names.text(change.1)];
                texts(a.0).cmp(&texts(b.0))
            })
        });
        let row = |((from, to), count): (&(u32, u32), &i64)| json!({"from": country(names, *from), "to": country(names, *to), "changes": count});
        rows.into_iter().map(row).collect()
    };
    let [from, to] = report.period.times();
    let [days_from, days_to] = report.days.times();
    let active = sums.sims.iter().filter(|(sim, row)| **sim != Sim::NONE && row.events != 0);
    let mean = (sums.total.timed != 0).then(|| sums.total.seconds as f64 / sums.total.timed as f64);
    json!({
        "from": from.to_string(),
        "to": to.to_string(),
        "days": {"from": days_from.to_string(), "to": days_to.to_string()},
        "interval": if report.interval == Interval::Hour { "hour" } else { "day" },
        "computed_from": report.source.as_str(),
        "rolled_up_since": meta.since.map(|time| time.to_string()),
        "as_of": meta.cursor.map(|cursor| cursor.to_string()),
        "as_of_time": meta.as_of.map(|time| time.to_string()),
        "not_counted": {
            "positions": meta.skipped.positions,
            "out_of_range": meta.skipped.out_of_range,
            "session_readings": meta.skipped.sessions,
            "damaged_days": report.damaged.iter().map(|day| date(*day)).collect::<Vec<_>>(),
        },
        "totals": {
            "events": sums.total.events,
            "sims": active.count(),
            "late": sums.total.late,
            "repaired": sums.total.repaired,
        },
        "by_type": by(&sums.types, &plain("event_type")),
        "by_country": if_networks(by(&sums.countries, &country)),
        "by_operator": if_networks(by(&sums.operators, &plain("operator"))),
        "by_network_type": if_networks(by(&sums.network_types, &plain("network_type"))),
        "series": series,
        "most_active": top_of(report, top, policy, |row| (row.events, 0), |row, _| {
            Map::from_iter([("events".to_owned(), row.events.into())])
        }),
        "data": data(report, top, policy),
        "sessions": {
            "started": events_of("session_started"),
            "ended": events_of("session_ended"),
            "total_mb": sums.total.data.total.to_number(),
            "mean_duration_seconds": mean,
        },
        "roaming": roaming,
    })
}

fn data(report: &Report, top: usize, policy: Option<&FieldPolicy>) -> Value {
    let (sums, names) = (&report.sums, &report.names);
    let there = sums.countries.iter().enumerate().filter(|(_, tally)| !tally.data.is_zero());
    let mut countries: Vec<_> =
        there.map(|(name, tally)| (country(names, name as u32), tally.data)).collect();
    countries.sort_by(|a, b| b.1.total.cmp(&a.1.total).then_with(|| key(&a.0).cmp(&key(&b.0))));
    let countries: Vec<_> = countries.into_iter().map(|(row, data)| with(row, amounts(data))).collect();
    let mut shown = Map::from_iter(amounts(sums.total.data).map(|(name, value)| (name.to_owned(), value)));
    let by_sim = top_of(
        report,
        top,
        policy,
        |row| (row.data.total.millionths(), i64::from(!row.data.is_zero())),
        |row, _| Map::from_iter(amounts(row.data).map(|(name, value)| (name.to_owned(), value))),
    );
    shown.insert("by_sim".to_owned(), by_sim);
    shown.insert("by_country".to_owned(), countries.into());
    Value::Object(shown)
}

/// The SIMs with the most of something, the ICCID deciding between equals; those with nothing of it are left out.
fn top_of(
    report: &Report,
    top: usize,
    policy: Option<&FieldPolicy>,
    rank: impl Fn(&Row) -> (i64, i64),
    show: impl Fn(&Row, &Names) -> Map<String, Value>,
) -> Value {
    let sims = report.sums.sims.iter().filter(|(sim, row)| **sim != Sim::NONE && rank(row) != (0, 0));
    let order = |a: &(&Sim, &Row), b: &(&Sim, &Row)| rank(b.1).cmp(&rank(a.1)).then(a.0.cmp(b.0));
    let mut rows: Vec<_> = sims.collect();
    if rows.len() > top {
        rows.select_nth_unstable_by(top, order);
        rows.truncate(top);
    }
    rows.sort_unstable_by(order);
    let shown = rows.into_iter().map(|(sim, row)| {
        let iccid = sim.text();
        let iccid = match policy {
            Some(policy) => iccid.and_then(|iccid| policy.show_iccid(&iccid)),
            None => iccid,
        };
        let mut shown = Map::from_iter([("iccid".to_owned(), iccid.into())]);
        shown.extend(show(row, &report.names));
        Value::Object(shown)
    });
    shown.collect()
}

fn amounts(data: Data) -> [(&'static str, Value); 3] {
    [
        ("upload_mb", Value::Number(data.upload.to_number())),
        ("download_mb", Value::Number(data.download.to_number())),
        ("total_mb", Value::Number(data.total.to_number())),
    ]
}

fn country(names: &Names, name: u32) -> Map<String, Value> {
    let (name, code) = names.country_of(name);
    Map::from_iter([("country".to_owned(), name.into()), ("country_code".to_owned(), code.into())])
}

fn key(row: &Map<String, Value>) -> Vec<&str> {
    row.values().map(|value| value.as_str().unwrap_or_default()).collect()
}

fn with<const N: usize>(mut row: Map<String, Value>, more: [(&str, Value); N]) -> Value {
    row.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Value::Object(row)
}

/// What the poller says of the days of the report: all that it follows, the last seven or so.
fn completeness(upstream: &Value, days: Period) -> Value {
    let wanted: Vec<_> = days.days().map(date).collect();
    let of = |name: &str| upstream[name].as_object().cloned().unwrap_or_default();
    let (states, mut details) = (of("completeness"), of("completeness_details"));
    let shown = states.into_iter().filter(|(day, _)| wanted.contains(day)).map(|(day, state)| {
        let detail = details.remove(&day).unwrap_or_default();
        let shown = json!({"state": state, "missing": detail["missing"], "reason": detail["reason"]});
        (day, shown)
    });
    Value::Object(shown.collect())
}

fn date(day: i32) -> String {
    time_of_hour(i64::from(day) * 24).to_zoned_datetime(TimeZone::UTC).date().to_string()
}
