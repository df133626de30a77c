//! Where a reader starts, and what it is told when it can't have a range.

use jiff::Timestamp;
use serde::Serialize;

use super::{Cursor, CursorError};

/// Largest `last=n`.
pub const LAST_MAX: u32 = 1000;

/// Where to start. All are exact: everything appended after the position is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// The live edge.
    #[default]
    Now,
    /// Oldest event kept.
    Earliest,
    /// After a cursor, exclusive.
    After(Cursor),
    /// First event appended at or after a time.
    Since(Timestamp),
    /// The last n matches, 1 to [`LAST_MAX`].
    Last(u32),
}

/// Why a start can't be understood; the field is one of `from`, `after`, `since`, `last`, `on_expired`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// Which parameter.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Start {
    /// Reads the four parameters that every text frontend shares; at most one may be given.
    ///
    /// # Errors
    /// [`StartError`] names the parameter.
    pub fn from_params(
        from: Option<&str>,
        after: Option<&str>,
        since: Option<&str>,
        last: Option<&str>,
    ) -> Result<Option<Self>, StartError> {
        let given = [("from", from), ("after", after), ("since", since), ("last", last)];
        let mut given = given.into_iter().filter_map(|(field, value)| value.map(|value| (field, value)));
        let Some((field, value)) = given.next() else { return Ok(None) };
        if let Some((other, _)) = given.next() {
            let message = format!("{field} and {other} exclude each other: give one start");
            return Err(StartError { field: other, message });
        }
        let start = match field {
            "from" => match value {
                "now" => Self::Now,
                "earliest" => Self::Earliest,
                _ => {
                    return Err(StartError {
                        field,
                        message: format!("from is now or earliest, not {value:?}"),
                    });
                }
            },
            "after" => Self::After(
                Cursor::parse(value)
                    .map_err(|e: CursorError| StartError { field, message: e.to_string() })?,
            ),
            "since" => Self::Since(value.parse().map_err(|_| StartError {
                field,
                message: format!("since is a time such as 2025-11-05T08:00:00Z, not {value:?}"),
            })?),
            _ => {
                let n = value.parse().ok().filter(|n| (1..=LAST_MAX).contains(n));
                Self::Last(n.ok_or_else(|| StartError {
                    field,
                    message: format!("last is a number from 1 to {LAST_MAX}, not {value:?}"),
                })?)
            }
        };
        Ok(Some(start))
    }
}

/// What a cursor outside the kept range does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExpired {
    /// The request fails with the oldest and newest cursor.
    Fail,
    /// A gap is announced, then the oldest event kept.
    Earliest,
    /// A gap is announced, then the live edge.
    Latest,
}

impl OnExpired {
    /// Reads `fail`, `earliest` or `latest`.
    ///
    /// # Errors
    /// [`StartError`] for the field `on_expired`.
    pub fn parse(text: &str) -> Result<Self, StartError> {
        match text {
            "fail" => Ok(Self::Fail),
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => Err(StartError {
                field: "on_expired",
                message: format!("on_expired is fail, earliest or latest, not {text:?}"),
            }),
        }
    }
}

/// Why a range can't be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// Older than what the log keeps.
    Retention,
    /// The cursor belongs to another log.
    Incarnation,
    /// The log went back in time.
    Regressed,
    /// Upstream no longer had it.
    Upstream,
    /// A record is damaged on disk.
    Corruption,
}

impl GapReason {
    /// As spelled in every frontend.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Incarnation => "incarnation",
            Self::Regressed => "regressed",
            Self::Upstream => "upstream",
            Self::Corruption => "corruption",
        }
    }
}

/// A range that a reader can't have; what is not known is None and null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Cursor before the range.
    pub from: Option<Cursor>,
    /// Cursor at its end; reading goes on from there.
    pub to: Option<Cursor>,
    /// Time before the range.
    pub from_time: Option<Timestamp>,
    /// Time at its end.
    pub to_time: Option<Timestamp>,
    /// How many log positions are missing, matching or not.
    pub lost: Option<u64>,
    /// Why.
    pub reason: GapReason,
}

impl Gap {
    /// The JSON fields, in the order of design section 4.
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        use serde_json::Value;
        let cursor = |c: &Option<Cursor>| c.map_or(Value::Null, |c| Value::String(c.to_string()));
        let time = |t: &Option<Timestamp>| t.map_or(Value::Null, |t| Value::String(t.to_string()));
        let mut map = serde_json::Map::new();
        map.insert("from".into(), cursor(&self.from));
        map.insert("to".into(), cursor(&self.to));
        map.insert("from_time".into(), time(&self.from_time));
        map.insert("to_time".into(), time(&self.to_time));
        map.insert("lost".into(), self.lost.map_or(Value::Null, Value::from));
        map.insert("reason".into(), self.reason.as_str().into());
        map
    }
}
