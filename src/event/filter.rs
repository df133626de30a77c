//! Which events a reader wants: OR inside a list, AND across lists, empty = everything of upstream.
//!
//! A [`Filter`] is validated when it is made and matches [`Keys`] without allocating for ASCII text. A
//! [`Predicate`] is the AND of the reader's filter and its token's: the one thing that live, replay, history and
//! webhooks evaluate, so that they can't differ.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{
    GATEWAY_PREFIX, Iccid,
    keys::{Flag, Flags, Keys},
};

/// The lists of a filter, as spelled in JSON, queries and protobuf.
pub const FIELDS: [&str; 8] = [
    "iccid",
    "device_id",
    "event_type",
    "iccid_prefix",
    "country",
    "operator",
    "network_type",
    "exclude_flags",
];

/// Event types that exist today; another is accepted with a warning, since upstream may add one tomorrow.
pub const KNOWN_TYPES: [&str; 15] = [
    "connection",
    "disconnection",
    "network_change",
    "data_usage_update",
    "location_update",
    "session_started",
    "session_updated",
    "session_ended",
    "sim_linked",
    "simcast.gap",
    "simcast.capability_changed",
    "simcast.webhook.disabled",
    "simcast.webhook.failing",
    "simcast.webhook.recovered",
    "simcast.webhook.dead_lettered",
];

/// How long a filter's lists may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterLimits {
    /// Values in one list.
    pub values_per_list: usize,
}

impl Default for FilterLimits {
    fn default() -> Self {
        Self { values_per_list: 1000 }
    }
}

/// Why a filter is refused; `field` is the list at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FilterError {
    /// `filter`, or one of its lists.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A validated filter: text folded to lower case, lists sorted and free of repeats, so that equal filters are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Filter {
    iccid: Vec<String>,
    device_id: Vec<String>,
    event_type: Vec<String>,
    iccid_prefix: Vec<String>,
    country: Vec<String>,
    operator: Vec<String>,
    network_type: Vec<String>,
    exclude_flags: Flags,
}

/// The list by which the hub and the log's index find candidates cheaply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexTerm<'a> {
    /// Only these ICCIDs can match.
    Iccid(&'a [String]),
    /// Only these device ids (folded).
    Device(&'a [String]),
    /// Only these event types (folded).
    EventType(&'a [String]),
    /// Anything can match.
    All,
}

impl Filter {
    /// Builds a filter from named lists, as JSON, a query or protobuf give them. Gives warnings beside it: legal
    /// values that look like mistakes.
    ///
    /// # Errors
    /// [`FilterError`] for an unknown list, a malformed ICCID, a prefix that is no digits, an unknown flag, an empty
    /// value, or a list longer than `limits` allow.
    pub fn build<'v>(
        lists: impl IntoIterator<Item = (&'v str, Vec<String>)>,
        limits: FilterLimits,
    ) -> Result<(Self, Vec<String>), FilterError> {
        let mut filter = Self::default();
        let mut warnings = Vec::new();
        for (name, values) in lists {
            if !FIELDS.contains(&name) {
                return Err(FilterError {
                    field: name.to_owned(),
                    message: format!("{name:?} is no filter key"),
                    hint: Some(suggest(name)),
                });
            }
            if values.len() > limits.values_per_list {
                let max = limits.values_per_list;
                return Err(FilterError {
                    field: name.to_owned(),
                    message: format!("{name} has {} values; at most {max} are allowed", values.len()),
                    hint: Some("filter by iccid_prefix, or split the subscription".into()),
                });
            }
            for value in values {
                filter.add(name, &value, &mut warnings)?;
            }
        }
        for list in filter.lists_mut() {
            list.sort_unstable();
            list.dedup();
        }
        Ok((filter, warnings))
    }

    /// Reads the JSON form: an object of lists; a single text stands for a list of one.
    ///
    /// # Errors
    /// As [`Filter::build`], and where a value is no text.
    pub fn from_json(value: &Value, limits: FilterLimits) -> Result<(Self, Vec<String>), FilterError> {
        let wrong = |field: &str, message: String| FilterError {
            field: field.to_owned(),
            message,
            hint: Some(
                r#"a filter looks like {"event_type":["connection"],"iccid":["8901234567890123456"]}"#.into(),
            ),
        };
        let lists = match value {
            Value::Null => return Ok(Default::default()),
            Value::Object(map) => map,
            _ => return Err(wrong("filter", "filter must be an object of lists".into())),
        };
        let mut named = Vec::with_capacity(lists.len());
        for (name, value) in lists {
            let values = match value {
                Value::Null => Vec::new(),
                Value::String(text) => vec![text.clone()],
                Value::Array(items) => items
                    .iter()
                    .map(|item| item.as_str().map(str::to_owned))
                    .collect::<Option<_>>()
                    .ok_or_else(|| wrong(name, format!("{name} must be a list of texts")))?,
                _ => return Err(wrong(name, format!("{name} must be a list of texts"))),
            };
            named.push((name.as_str(), values));
        }
        Self::build(named, limits)
    }

    fn add(&mut self, name: &str, value: &str, warnings: &mut Vec<String>) -> Result<(), FilterError> {
        let refuse = |message: String, hint: Option<String>| {
            Err(FilterError { field: name.to_owned(), message, hint })
        };
        if value.is_empty() {
            return refuse(
                format!("{name} holds an empty text"),
                Some("leave the list out to match all".into()),
            );
        }
        match name {
            "iccid" => match Iccid::parse(value) {
                Ok(iccid) => {
                    if !iccid.luhn_ok() {
                        warnings.push(format!("iccid {iccid} has a wrong check digit; is it mistyped?"));
                    }
                    self.iccid.push(iccid.into());
                }
                Err(error) => return refuse(error.to_string(), None),
            },
            "iccid_prefix" => {
                if value.len() > 22 || !value.bytes().all(|b| b.is_ascii_digit()) {
                    return refuse(format!("{value:?} is no ICCID prefix: 1 to 22 digits are needed"), None);
                }
                self.iccid_prefix.push(value.to_owned());
            }
            "event_type" => {
                let folded = fold(value).into_owned();
                if !KNOWN_TYPES.contains(&folded.as_str()) {
                    warnings
                        .push(format!("event_type {value:?} has never been seen; it matches if it appears"));
                }
                self.event_type.push(folded);
            }
            "device_id" => self.device_id.push(fold(value).into_owned()),
            "country" => self.country.push(fold(value).into_owned()),
            "operator" => self.operator.push(fold(value).into_owned()),
            "network_type" => self.network_type.push(fold(value).into_owned()),
            _ => match Flag::parse(value) {
                Some(flag) => self.exclude_flags.insert(flag),
                None => {
                    let known: Vec<_> = Flag::ALL.into_iter().map(Flag::as_str).collect();
                    return refuse(
                        format!("{value:?} is no flag"),
                        Some(format!("flags are {}", known.join(", "))),
                    );
                }
            },
        }
        Ok(())
    }

    fn lists_mut(&mut self) -> [&mut Vec<String>; 7] {
        [
            &mut self.iccid,
            &mut self.device_id,
            &mut self.event_type,
            &mut self.iccid_prefix,
            &mut self.country,
            &mut self.operator,
            &mut self.network_type,
        ]
    }

    fn lists(&self) -> [(&'static str, &[String]); 7] {
        [
            ("iccid", &self.iccid),
            ("device_id", &self.device_id),
            ("event_type", &self.event_type),
            ("iccid_prefix", &self.iccid_prefix),
            ("country", &self.country),
            ("operator", &self.operator),
            ("network_type", &self.network_type),
        ]
    }

    /// Whether everything of upstream matches.
    pub fn is_empty(&self) -> bool {
        self.lists().iter().all(|(_, list)| list.is_empty()) && self.exclude_flags == Flags::default()
    }

    /// The JSON form, lists that are empty left out; equal filters give equal text.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (name, list) in self.lists() {
            if !list.is_empty() {
                map.insert(name.to_owned(), list.into());
            }
        }
        if self.exclude_flags != Flags::default() {
            let flags: Vec<_> = self.exclude_flags.iter().map(Flag::as_str).collect();
            map.insert("exclude_flags".to_owned(), flags.into());
        }
        Value::Object(map)
    }

    /// Which of the hidden-able fields this filter looks at: a reader must not learn by filtering what it may not see.
    pub fn uses_iccid(&self) -> bool {
        !self.iccid.is_empty() || !self.iccid_prefix.is_empty()
    }

    /// Whether it asks for some event types only.
    pub fn names_types(&self) -> bool {
        !self.event_type.is_empty()
    }

    /// Whether it leaves out events by their flags.
    pub fn excludes_flags(&self) -> bool {
        self.exclude_flags != Flags::default()
    }

    /// Whether it looks at nothing but which SIM an event is of.
    pub fn is_of_sims(&self) -> bool {
        let others = self.lists().into_iter().filter(|(name, _)| !matches!(*name, "iccid" | "iccid_prefix"));
        others.map(|(_, list)| list.len()).sum::<usize>() == 0 && self.exclude_flags == Flags::default()
    }

    /// Whether it lets a SIM through, whatever else it looks at.
    pub fn matches_sim(&self, iccid: Option<&str>) -> bool {
        let has_prefix = |iccid: &str| self.iccid_prefix.iter().any(|prefix| iccid.starts_with(prefix));
        is_in(&self.iccid, iccid) && (self.iccid_prefix.is_empty() || iccid.is_some_and(has_prefix))
    }

    /// Whether an event matches.
    pub fn matches(&self, keys: &Keys<'_>) -> bool {
        if keys.gateway && !self.names_gateway_type(keys.event_type) {
            return false;
        }
        !keys.flags.intersects(self.exclude_flags)
            && is_in(&self.event_type, Some(keys.event_type))
            && self.matches_sim(keys.iccid)
            && is_in(&self.device_id, keys.device_id)
            && (self.country.is_empty()
                || contains(&self.country, keys.country)
                || contains(&self.country, keys.country_code))
            && is_in(&self.operator, keys.operator)
            && is_in(&self.network_type, keys.network_type)
    }

    fn names_gateway_type(&self, event_type: &str) -> bool {
        event_type.starts_with(GATEWAY_PREFIX) && contains(&self.event_type, Some(event_type))
    }

    fn index_term(&self) -> IndexTerm<'_> {
        if !self.iccid.is_empty() {
            IndexTerm::Iccid(&self.iccid)
        } else if !self.device_id.is_empty() {
            IndexTerm::Device(&self.device_id)
        } else if !self.event_type.is_empty() {
            IndexTerm::EventType(&self.event_type)
        } else {
            IndexTerm::All
        }
    }
}

/// The AND of up to two filters: the reader's and its token's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Predicate {
    filter: Filter,
    scope: Option<Filter>,
    unfiltered: bool,
}

impl Predicate {
    /// A filter within a scope; the scope of a token without one is None.
    pub fn new(filter: Filter, scope: Option<Filter>) -> Self {
        Self { filter, scope: scope.filter(|scope| !scope.is_empty()), unfiltered: false }
    }

    /// Everything, the gateway's own events included: for readers inside the gateway.
    pub fn unfiltered() -> Self {
        Self { unfiltered: true, ..Self::default() }
    }

    /// The reader's own filter.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Whether an event matches both.
    pub fn matches(&self, keys: &Keys<'_>) -> bool {
        if self.unfiltered {
            return true;
        }
        self.filter.matches(keys) && self.scope.as_ref().is_none_or(|scope| in_scope(scope, keys))
    }

    /// Whether both look at nothing but which SIM an event is of.
    pub fn is_of_sims(&self) -> bool {
        !self.unfiltered && self.filter.is_of_sims() && self.scope.as_ref().is_none_or(Filter::is_of_sims)
    }

    /// Whether both let a SIM through, whatever else they look at.
    pub fn matches_sim(&self, iccid: Option<&str>) -> bool {
        self.filter.matches_sim(iccid) && self.scope.as_ref().is_none_or(|scope| scope.matches_sim(iccid))
    }

    /// Whether everything of upstream matches, so that no index is worth asking.
    pub fn is_empty(&self) -> bool {
        self.filter.is_empty() && self.scope.is_none()
    }

    /// The cheapest necessary condition: the reader's, or the token's where the reader has none.
    pub fn index_term(&self) -> IndexTerm<'_> {
        match (self.filter.index_term(), &self.scope) {
            (IndexTerm::All, Some(scope)) => scope.index_term(),
            (IndexTerm::EventType(types), Some(scope)) => match scope.index_term() {
                IndexTerm::All | IndexTerm::EventType(_) => IndexTerm::EventType(types),
                sharper => sharper,
            },
            (term, _) => term,
        }
    }
}

impl From<Filter> for Predicate {
    fn from(filter: Filter) -> Self {
        Self::new(filter, None)
    }
}

/// Whether a token's filter lets an event through. The rule that gateway events must be named binds the reader's
/// filter; a scope without types does not hide them from a reader who named them.
pub fn in_scope(scope: &Filter, keys: &Keys<'_>) -> bool {
    if keys.gateway && scope.event_type.is_empty() {
        return scope.matches(&Keys { gateway: false, ..*keys });
    }
    scope.matches(keys)
}

/// Lower case, borrowed where nothing changes. The one folding that filters and indexes share.
pub fn fold(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        }
    } else {
        Cow::Owned(text.to_lowercase())
    }
}

fn is_in(list: &[String], value: Option<&str>) -> bool {
    list.is_empty() || contains(list, value)
}

fn contains(list: &[String], value: Option<&str>) -> bool {
    value.is_some_and(|value| {
        let folded = fold(value);
        list.binary_search_by(|item| item.as_str().cmp(folded.as_ref())).is_ok()
    })
}

fn suggest(name: &str) -> String {
    let near = FIELDS
        .iter()
        .map(|field| (strsim::jaro_winkler(field, name), field))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((_, field)) => format!("did you mean {field}?"),
        None => format!("filter keys are {}", FIELDS.join(", ")),
    }
}

#[cfg(test)]
mod tests;
