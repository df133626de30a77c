//! Whole answers: the envelope around rows, in the documented form or as a bare array.

use serde_json::{Map, Value};

use super::{
    BadRow, DeviceSim, Row, SessionRow,
    fields::{Fields, count_of},
    row::{self, Context},
    time,
};
use crate::event::{Iccid, Session};
use jiff::Timestamp;

/// An answer that holds a list.
#[derive(Debug)]
pub(in crate::globalsim) struct Listing {
    rows: Vec<Value>,
    pub total: Option<u64>,
    pub limit: Option<u64>,
    pub offset: Option<u64>,
    pub iccid: Option<Value>,
    pub summary: Option<Value>,
}

impl Listing {
    /// Opens the answer; `list` is the name of its list, `activity` or `sessions`.
    ///
    /// # Errors
    /// A sentence that says why this is no such answer.
    pub fn open(body: Value, list: &str) -> Result<Self, String> {
        let mut object = match body {
            Value::Array(rows) => return Ok(Self::bare(rows)),
            Value::Object(object) => object,
            _ => return Err(format!("expected an object with {list:?}, got a bare value")),
        };
        let total = count_of(object.get("total"));
        let rows = match object.get_mut(list).map(Value::take) {
            Some(Value::Array(rows)) => rows,
            // Some servers write an empty list as null.
            Some(Value::Null) if total == Some(0) => Vec::new(),
            Some(_) => return Err(format!("{list:?} is no list")),
            None => return Err(format!("there is no {list:?}, only {}", names(&object))),
        };
        Ok(Self {
            rows,
            total,
            limit: count_of(object.get("limit")),
            offset: count_of(object.get("offset")),
            iccid: object.shift_remove("iccid").filter(|value| !value.is_null()),
            summary: object.shift_remove("summary").filter(|value| !value.is_null()),
        })
    }

    fn bare(rows: Vec<Value>) -> Self {
        Self { rows, total: None, limit: None, offset: None, iccid: None, summary: None }
    }

    /// The rows as events.
    ///
    /// # Errors
    /// Where there are rows and none of them is an event: another API's answer.
    pub fn activity(
        &mut self,
        asked: Option<&Iccid>,
        own_list: bool,
    ) -> Result<Vec<Result<Row, BadRow>>, String> {
        let rows = std::mem::take(&mut self.rows);
        if !rows.is_empty() && !rows.iter().any(row::looks_like_event) {
            return Err("none of the rows is an event".to_owned());
        }
        let context = Context { asked, envelope: self.iccid.as_ref(), own_list };
        Ok(rows.into_iter().map(|value| row::row(value, context)).collect())
    }

    /// The rows as sessions.
    ///
    /// # Errors
    /// Where there are rows and none of them is a session.
    pub fn sessions(&mut self, asked: Option<&Iccid>) -> Result<Vec<Result<SessionRow, BadRow>>, String> {
        let rows = std::mem::take(&mut self.rows);
        if !rows.is_empty() && !rows.iter().any(looks_like_session) {
            return Err("none of the rows is a session".to_owned());
        }
        let context = Context { asked, envelope: self.iccid.as_ref(), own_list: true };
        let read = |value: Value| session(&value, context).map_err(|reason| row::bad(reason, &value));
        Ok(rows.into_iter().map(read).collect())
    }

    /// The SIM that the answer as a whole is about, where it can be read.
    pub fn iccid(&self) -> Option<Iccid> {
        let context = Context { asked: None, envelope: self.iccid.as_ref(), own_list: true };
        row::iccid(None, context).ok().flatten()
    }
}

/// The names of an object's members, for an error message.
fn names(object: &Map<String, Value>) -> String {
    for name in ["detail", "error", "message"] {
        if let Some(text) = object.get(name).and_then(Value::as_str) {
            return format!("{name}: {text:?}");
        }
    }
    let names: Vec<&str> = object.keys().take(8).map(String::as_str).collect();
    if names.is_empty() { "an empty object".to_owned() } else { names.join(", ") }
}

fn looks_like_session(value: &Value) -> bool {
    ["session_id", "start_time"].iter().any(|name| value.get(name).is_some())
}

fn session(value: &Value, context: Context<'_>) -> Result<SessionRow, String> {
    let Value::Object(object) = value else { return Err("the session is no object".to_owned()) };
    if !looks_like_session(value) {
        return Err("the session has neither session_id nor start_time".to_owned());
    }
    let iccid = row::iccid(object.get("iccid"), context)?;
    let mut fields = Fields::new(object.clone());
    fields.take("iccid");
    let network = fields.network("network");
    let mut session = Session {
        session_id: fields.text("session_id"),
        start_time: fields.text("start_time"),
        end_time: fields.text("end_time"),
        duration_seconds: fields.integer("duration_seconds"),
        ip_address: fields.text("ip_address"),
        ..Session::default()
    };
    if let Some(mut usage) = fields.object("data_usage") {
        session.upload_mb = usage.number("upload_mb");
        session.download_mb = usage.number("download_mb");
        session.total_mb = usage.number("total_mb");
        fields.give_back("data_usage", usage);
    }
    Ok(SessionRow { iccid, session, network, extra: fields.rest() })
}

impl SessionRow {
    /// When it began, where that can be read.
    pub fn start(&self) -> Option<Timestamp> {
        self.session.start_time.as_deref().and_then(time::parse)
    }

    /// When it ended; None while open and where it can't be read.
    pub fn end(&self) -> Option<Timestamp> {
        self.session.end_time.as_deref().and_then(time::parse)
    }

    /// Whether upstream names no end.
    pub fn is_open(&self) -> bool {
        self.session.end_time.is_none()
    }
}

impl DeviceSim {
    /// Reads the answer of `/devices/{device_id}/sim`.
    ///
    /// # Errors
    /// A sentence that says why this is no such answer.
    pub(in crate::globalsim) fn read(raw: Value, answered_at: Timestamp) -> Result<Self, String> {
        let Value::Object(object) = &raw else { return Err("expected an object with \"sim\"".to_owned()) };
        let nested = match object.get("sim") {
            Some(Value::Object(sim)) => Some(sim.clone()),
            // A device without a SIM.
            Some(Value::Null) => Some(Map::new()),
            _ => None,
        };
        let Some(sim) = nested.or_else(|| object.contains_key("iccid").then(|| object.clone())) else {
            return Err(format!("there is no \"sim\", only {}", names(object)));
        };
        let context = Context { asked: None, envelope: None, own_list: true };
        let iccid = row::iccid(sim.get("iccid"), context)?;
        let (mut outer, mut sim) = (Fields::new(object.clone()), Fields::new(sim));
        Ok(Self {
            device_id: outer.text("device_id"),
            device_name: outer.text("device_name"),
            iccid,
            status: sim.text("status"),
            msisdn: sim.text("msisdn"),
            current_network: sim.network("current_network"),
            data_usage_mb: sim.number("data_usage_mb"),
            linked_at: sim.text("linked_at"),
            raw,
            answered_at,
        })
    }
}
