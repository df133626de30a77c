//! The documented query parameters, and the refusals that meet wrong ones.
//!
//! Error bodies carry `detail`, as the provider's own clients expect: a string, or for 422 a list of
//! `{loc, msg, type}`.

use std::collections::HashMap;

use axum::extract::Query;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use jiff::{civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use super::faults::{LimitOver, Lists};

/// The documented maximum of `limit`.
pub(super) const LIMIT_MAX: usize = 100;
/// The documented default of `limit`.
const LIMIT_DEFAULT: usize = 50;
const DAY_S: i64 = 86_400;

/// Half-open range of seconds that the date parameters ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Days {
    pub from_s: Option<i64>,
    pub until_s: Option<i64>,
}

/// Parsed parameters of any list. Which ones a list heeds is up to its handler.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Params {
    pub limit: usize,
    pub offset: usize,
    pub event_type: Option<String>,
    pub iccid: Option<String>,
    pub device_id: Option<String>,
    pub days: Days,
}

/// A refusal; asking again the same way gives the same answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    /// 422.
    #[error("invalid parameters")]
    Invalid(Vec<Value>),
    /// 404.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// 500: a row could not be written.
    #[error("row could not be encoded")]
    Encoding,
}

fn problem(parameter: &str, message: &str, kind: &str) -> Value {
    json!({"loc": ["query", parameter], "msg": message, "type": kind})
}

/// `{"detail": …}` with a status.
pub(super) fn detail(status: StatusCode, detail: &Value) -> Response {
    (status, axum::Json(json!({"detail": detail}))).into_response()
}

// === impl Refusal ===

impl From<serde_json::Error> for Refusal {
    fn from(_: serde_json::Error) -> Self {
        Self::Encoding
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Invalid(problems) => detail(StatusCode::UNPROCESSABLE_ENTITY, &Value::Array(problems)),
            Self::NotFound(what) => detail(StatusCode::NOT_FOUND, &json!(format!("{what} not found"))),
            Self::Encoding => detail(StatusCode::INTERNAL_SERVER_ERROR, &json!("Internal Server Error")),
        }
    }
}

// === impl Days ===

impl Days {
    /// Whether the second lies inside.
    pub(super) fn contains(self, second: i64) -> bool {
        self.from_s.is_none_or(|from| second >= from) && self.until_s.is_none_or(|until| second < until)
    }
}

// === impl Params ===

impl Params {
    /// Reads the query of `uri` under the current list switches.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] with one entry per wrong parameter.
    pub(super) fn parse(uri: &Uri, lists: &Lists) -> Result<Self, Refusal> {
        let pairs = Query::<HashMap<String, String>>::try_from_uri(uri)
            .map(|Query(pairs)| pairs)
            .map_err(|_| Refusal::Invalid(vec![problem("", "malformed query", "value_error")]))?;
        let mut problems = Vec::new();
        let limit = limit(&pairs, lists, &mut problems);
        let offset = offset(&pairs, lists, &mut problems);
        let text = |name: &str| pairs.get(name).filter(|text| !text.is_empty()).cloned();
        let params = Self {
            limit,
            offset,
            event_type: text("event_type").filter(|event_type| event_type != "all"),
            iccid: text("iccid"),
            device_id: text("device_id"),
            days: Days {
                from_s: day_start(&pairs, "start_date", lists, &mut problems)
                    .map(|start| start + if lists.start_date_exclusive { DAY_S } else { 0 }),
                until_s: day_start(&pairs, "end_date", lists, &mut problems)
                    .map(|start| start + if lists.end_date_exclusive { 0 } else { DAY_S }),
            },
        };
        if problems.is_empty() { Ok(params) } else { Err(Refusal::Invalid(problems)) }
    }

    /// Offset and number of rows to answer, after the switches.
    pub(super) fn window(&self, lists: &Lists) -> (usize, usize) {
        let offset = if lists.offset_ignored { 0 } else { self.offset };
        (offset, self.limit.min(lists.page_cap.unwrap_or(LIMIT_MAX)))
    }
}

fn limit(pairs: &HashMap<String, String>, lists: &Lists, problems: &mut Vec<Value>) -> usize {
    let Some(text) = pairs.get("limit") else { return LIMIT_DEFAULT };
    match (text.parse::<usize>(), lists.limit_over) {
        (Ok(limit @ 1..=LIMIT_MAX), _) => limit,
        (Ok(limit), LimitOver::Cut) if limit > LIMIT_MAX => LIMIT_MAX,
        (Ok(0), _) => {
            problems.push(problem(
                "limit",
                "Input should be greater than or equal to 1",
                "greater_than_equal",
            ));
            0
        }
        (Ok(_), _) => {
            problems.push(problem("limit", "Input should be less than or equal to 100", "less_than_equal"));
            0
        }
        (Err(_), _) => {
            problems.push(problem("limit", "Input should be a valid integer", "int_parsing"));
            0
        }
    }
}

fn offset(pairs: &HashMap<String, String>, lists: &Lists, problems: &mut Vec<Value>) -> usize {
    let Some(text) = pairs.get("offset") else { return 0 };
    match text.parse::<usize>() {
        Ok(offset) if lists.offset_cap.is_none_or(|cap| offset <= cap) => offset,
        Ok(_) => {
            problems.push(problem("offset", "Offset too large", "less_than_equal"));
            0
        }
        Err(_) => {
            problems.push(problem("offset", "Input should be a valid integer", "int_parsing"));
            0
        }
    }
}

/// The first second of the named day.
fn day_start(
    pairs: &HashMap<String, String>,
    name: &str,
    lists: &Lists,
    problems: &mut Vec<Value>,
) -> Option<i64> {
    let text = pairs.get(name).filter(|text| !text.is_empty())?;
    let date = (text.len() == 10).then(|| text.parse::<Date>().ok()).flatten();
    let midnight = date.and_then(|date| date.to_zoned_datetime(TimeZone::UTC).ok());
    if midnight.is_none() {
        problems.push(problem(name, "Input should be a date in the form YYYY-MM-DD", "date_parsing"));
    }
    midnight.map(|midnight| midnight.timestamp().as_second() - i64::from(lists.day_offset_minutes) * 60)
}
