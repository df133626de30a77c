//! What a body may say of an endpoint. A mistake names its field; what is not known is a mistake.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    event::{Filter, FilterLimits, Start},
    frontends::{ApiError, Code},
    webhooks::{
        Webhooks,
        endpoint::{BatchRule, Ordering, Settings},
    },
};

/// The fields of a body that have not been read yet.
#[derive(Debug, Clone)]
pub struct Fields {
    left: Map<String, Value>,
}

fn wrong(field: &str, message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidParameter, message.into()).field(field.to_owned())
}

impl Fields {
    pub fn new(left: Map<String, Value>) -> Self {
        Self { left }
    }

    /// A field as it is; None where it is missing.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.left.shift_remove(name)
    }

    fn given(&mut self, name: &str) -> Option<Value> {
        self.take(name).filter(|value| !value.is_null())
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.given(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, format!("{name} must be a text"))),
        }
    }

    pub fn number(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.given(name) else { return Ok(None) };
        let number = value.as_u64();
        number.map(Some).ok_or_else(|| wrong(name, format!("{name} must be a whole number, not {value}")))
    }

    pub fn small(&mut self, name: &str) -> Result<Option<u32>, ApiError> {
        let Some(number) = self.number(name)? else { return Ok(None) };
        let small = u32::try_from(number);
        small.map(Some).map_err(|_| wrong(name, format!("{name} is too large: {number}")))
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.given(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(wrong(name, format!("{name} must be true or false"))),
        }
    }

    pub fn time(&mut self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let time = super::timestamp(&text);
        let message = || format!("{name} is a time such as 2025-11-05T08:00:00Z, not {text:?}");
        time.map(Some).ok_or_else(|| wrong(name, message()))
    }

    /// Nothing may be left.
    pub fn finish(&self) -> Result<(), ApiError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => {
                let shown: String = name.chars().take(64).collect();
                let message = format!("{shown:?} is no field of this request");
                Err(ApiError::new(Code::InvalidBody, message).field(shown).hint("see /openapi.json"))
            }
        }
    }
}

/// The start, as in every frontend.
pub fn start_of(fields: &mut Fields) -> Result<Option<Start>, ApiError> {
    let from = fields.text("from")?;
    let after = fields.text("after")?;
    let since = fields.text("since")?;
    let last = fields.number("last")?.map(|last| last.to_string());
    Ok(Start::from_params(from.as_deref(), after.as_deref(), since.as_deref(), last.as_deref())?)
}

/// Reads settings over those that are there; null is the default. Gives warnings about the filter.
pub fn apply(
    fields: &mut Fields,
    settings: &mut Settings,
    limits: FilterLimits,
    is_new: bool,
) -> Result<Vec<String>, ApiError> {
    let defaults = Settings::new("", Filter::default());
    let mut warnings = Vec::new();
    let filter = fields.take("filter");
    if is_new || filter.is_some() {
        let mut value = filter.filter(|value| !value.is_null()).unwrap_or_else(|| Value::Object(Map::new()));
        // Days of history at the first start are no news, unless somebody wants them.
        if let Value::Object(lists) = &mut value
            && !lists.contains_key("exclude_flags")
        {
            lists.insert("exclude_flags".into(), Value::from(vec!["backfill"]));
        }
        let (filter, warned) = Webhooks::filter(&value, limits)?;
        settings.filter = filter;
        warnings = warned;
    }
    if let Some(value) = fields.take("description") {
        settings.description = match value {
            Value::Null => defaults.description,
            Value::String(text) => text,
            _ => return Err(wrong("description", "description must be a text")),
        };
    }
    if let Some(value) = fields.take("headers") {
        settings.headers = headers(value)?;
    }
    if let Some(value) = fields.take("ordering") {
        settings.ordering = match value.as_str() {
            None if value.is_null() => defaults.ordering,
            Some("none") => Ordering::None,
            Some("per_sim") => Ordering::PerSim,
            Some("strict") => Ordering::Strict,
            _ => return Err(wrong("ordering", format!("ordering is none, per_sim or strict, not {value}"))),
        };
    }
    if fields.left.contains_key("max_in_flight") {
        settings.max_in_flight = fields.small("max_in_flight")?.unwrap_or(defaults.max_in_flight);
    }
    if fields.left.contains_key("rate_limit_per_second") {
        settings.rate_limit_per_second = fields.small("rate_limit_per_second")?;
    }
    if fields.left.contains_key("timeout_ms") {
        settings.timeout_ms = fields.number("timeout_ms")?.unwrap_or(defaults.timeout_ms);
    }
    if let Some(value) = fields.take("batch") {
        settings.batch = batch(value)?;
    }
    if let Some(value) = fields.take("retry_schedule") {
        let seconds = |value: &Value| value.as_u64().and_then(|seconds| u32::try_from(seconds).ok());
        settings.retry_schedule =
            match &value {
                Value::Null => defaults.retry_schedule,
                Value::Array(items) => items.iter().map(seconds).collect::<Option<_>>().ok_or_else(|| {
                    wrong("retry_schedule", "retry_schedule must be a list of whole seconds")
                })?,
                _ => return Err(wrong("retry_schedule", "retry_schedule must be a list of whole seconds")),
            };
    }
    Ok(warnings)
}

fn headers(value: Value) -> Result<BTreeMap<String, String>, ApiError> {
    let mut headers = BTreeMap::new();
    match value {
        Value::Null => {}
        Value::Object(map) => {
            for (name, value) in map {
                let Value::String(text) = value else {
                    return Err(wrong("headers", format!("the header {name:?} must have a text")));
                };
                headers.insert(name, text);
            }
        }
        _ => return Err(wrong("headers", "headers must be an object of texts")),
    }
    Ok(headers)
}

fn batch(value: Value) -> Result<Option<BatchRule>, ApiError> {
    let map = match value {
        Value::Null => return Ok(None),
        Value::Object(map) => map,
        _ => return Err(wrong("batch", "batch must be an object with max_events and max_wait_ms, or null")),
    };
    let mut fields = Fields::new(map);
    let max_events = fields.number("max_events").map_err(|error| error.field("batch.max_events"))?;
    let max_wait_ms = fields.number("max_wait_ms").map_err(|error| error.field("batch.max_wait_ms"))?;
    fields.finish()?;
    let max_events = max_events.ok_or_else(|| wrong("batch.max_events", "batch.max_events is missing"))?;
    let max_events = usize::try_from(max_events).unwrap_or(usize::MAX);
    Ok(Some(BatchRule { max_events, max_wait_ms: max_wait_ms.unwrap_or(1_000) }))
}
