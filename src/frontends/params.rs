//! Filter and start from a query string: one reading of it for REST, SSE and WebSocket.
//!
//! A handler takes the parameters that it knows by name and gives the rest to [`Params::filter`], so that what
//! nobody asked for is an error that names it and suggests what was meant: a misspelled filter that is ignored would
//! deliver every event.

use std::borrow::Cow;

use jiff::Timestamp;
use percent_encoding::percent_decode_str;

use super::{
    Limits,
    error::{ApiError, Code},
};
use crate::event::{Filter, FilterLimits, OnExpired, Start, filter::FIELDS};

/// The parameters of a start, see [`Start::from_params`].
pub const START: [&str; 4] = ["from", "after", "since", "last"];

/// A decoded query string, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    left: Vec<(String, String)>,
    taken: Vec<&'static str>,
}

impl Params {
    /// Decodes a query string (without `?`).
    ///
    /// # Errors
    /// [`Code::InvalidUrl`] where it is longer than a URL may be, [`Code::InvalidParameter`] where it is no UTF-8.
    pub fn parse(query: Option<&str>, limits: &Limits) -> Result<Self, ApiError> {
        let query = query.unwrap_or_default();
        if query.len() > limits.url_bytes {
            return Err(url_too_long(limits));
        }
        let mut left = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            left.push((decode(name)?, decode(value)?));
        }
        Ok(Self { left, taken: Vec::new() })
    }

    /// Takes a parameter that may be given once.
    ///
    /// # Errors
    /// [`Code::InvalidParameter`] where it is repeated.
    pub fn take(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        self.taken.push(name);
        let mut value = None;
        let mut repeated = false;
        self.left.retain_mut(|(key, text)| {
            if key != name {
                return true;
            }
            repeated |= value.replace(std::mem::take(text)).is_some();
            false
        });
        if repeated {
            return Err(
                ApiError::new(Code::InvalidParameter, format!("{name} is given more than once")).field(name)
            );
        }
        Ok(value)
    }

    /// Takes a time.
    ///
    /// # Errors
    /// [`Code::InvalidParameter`] where it is none.
    pub fn take_time(&mut self, name: &'static str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        offset_plus(&text).parse().map(Some).map_err(|_| {
            ApiError::new(
                Code::InvalidParameter,
                format!("{name} is a time such as 2025-11-05T08:00:00Z, not {text:?}"),
            )
            .field(name)
        })
    }

    /// Takes a whole number within a range.
    ///
    /// # Errors
    /// [`Code::InvalidParameter`] where it is none.
    pub fn take_number(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Result<Option<u32>, ApiError> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        text.parse().ok().filter(|n| range.contains(n)).map(Some).ok_or_else(|| {
            let message =
                format!("{name} is a number from {} to {}, not {text:?}", range.start(), range.end());
            ApiError::new(Code::InvalidParameter, message).field(name)
        })
    }

    /// Takes a parameter that is one of a few words.
    ///
    /// # Errors
    /// [`Code::InvalidParameter`] where it is none of them.
    pub fn take_choice<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.take(name)? else { return Ok(None) };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(Some(*choice));
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let message = format!("{name} is {}, not {text:?}", words.join(" or "));
        Err(ApiError::new(Code::InvalidParameter, message).field(name))
    }

    /// Takes `from`, `after`, `since` and `last`; None where none is given.
    ///
    /// # Errors
    /// [`Code::InvalidStart`] or [`Code::InvalidCursor`], naming the parameter.
    pub fn take_start(&mut self) -> Result<Option<Start>, ApiError> {
        let [from, after, since, last] = START.map(|name| self.take(name));
        let since = since?.map(|text| offset_plus(&text).into_owned());
        let start =
            Start::from_params(from?.as_deref(), after?.as_deref(), since.as_deref(), last?.as_deref())?;
        Ok(start)
    }

    /// Takes `on_expired`.
    ///
    /// # Errors
    /// [`Code::InvalidStart`].
    pub fn take_on_expired(&mut self, default: OnExpired) -> Result<OnExpired, ApiError> {
        Ok(self.take("on_expired")?.map_or(Ok(default), |text| OnExpired::parse(&text))?)
    }

    /// What is left is the filter: each list repeated or comma-separated (`\,` is a comma inside a value). Gives
    /// warnings beside it: legal values that look like mistakes.
    ///
    /// # Errors
    /// [`Code::InvalidParameter`] for a name that neither the filter nor the handler knows, with a suggestion;
    /// [`Code::InvalidFilter`] for a bad value.
    pub fn filter(self, limits: &Limits) -> Result<(Filter, Vec<String>), ApiError> {
        self.filter_of(&FIELDS, limits)
    }

    /// The same for a path that knows some lists of the filter only.
    ///
    /// # Errors
    /// As [`Params::filter`].
    pub fn filter_of(
        self,
        fields: &[&'static str],
        limits: &Limits,
    ) -> Result<(Filter, Vec<String>), ApiError> {
        let mut lists: Vec<(&'static str, Vec<String>)> = Vec::new();
        for (name, value) in &self.left {
            let Some(field) = fields.iter().find(|field| *field == name) else {
                return Err(unknown(name, fields.iter().chain(&self.taken).copied()));
            };
            let values = split(value);
            match lists.iter_mut().find(|(known, _)| known == field) {
                Some((_, list)) => list.extend(values),
                None => lists.push((field, values)),
            }
        }
        Ok(Filter::build(lists, FilterLimits { values_per_list: limits.filter_values })?)
    }

    /// For handlers without a filter: nothing may be left.
    ///
    /// # Errors
    /// [`Code::InvalidParameter`] for the first name that was not taken.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => Err(unknown(name, self.taken.iter().copied())),
        }
    }
}

/// The error of a URL that is too long.
pub fn url_too_long(limits: &Limits) -> ApiError {
    ApiError::new(Code::InvalidUrl, format!("the URL is longer than {} bytes", limits.url_bytes))
        .hint("filter by iccid_prefix, or subscribe by a WebSocket message or over gRPC")
}

fn unknown(name: &str, known: impl Iterator<Item = &'static str>) -> ApiError {
    let known: Vec<_> = known.collect();
    let near = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(candidate, name), candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match near {
        Some((_, candidate)) => format!("did you mean {candidate}?"),
        None if known.is_empty() => "this path takes no parameters".to_owned(),
        None => format!("known are {}", known.join(", ")),
    };
    // The name is the client's own text and may be as long as a URL; what is echoed is cut.
    let shown: String = name.chars().take(64).collect();
    ApiError::new(Code::InvalidParameter, format!("{shown:?} is no parameter of this path"))
        .field(shown)
        .hint(hint)
}

fn decode(text: &str) -> Result<String, ApiError> {
    let spaced = if text.contains('+') { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) };
    percent_decode_str(&spaced)
        .decode_utf8()
        .map(Cow::into_owned)
        .map_err(|_| ApiError::new(Code::InvalidParameter, "the query string is no UTF-8"))
}

/// A time whose offset lost its plus sign to query decoding (`…T08:00:00 01:00`), repaired: everybody forgets to
/// write `%2B`.
fn offset_plus(text: &str) -> Cow<'_, str> {
    match text.rsplit_once(' ') {
        Some((time, offset))
            if time.contains(['T', 't']) && offset.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            Cow::Owned(format!("{time}+{offset}"))
        }
        _ => Cow::Borrowed(text),
    }
}

fn split(value: &str) -> Vec<String> {
    let mut values = vec![String::new()];
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, values.last_mut()) {
            ('\\', Some(last)) if chars.peek() == Some(&',') => {
                chars.next();
                last.push(',');
            }
            (',', _) => values.push(String::new()),
            (c, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filter_of(query: &str) -> Result<(Filter, Vec<String>), ApiError> {
        let limits = Limits::default();
        let mut params = Params::parse(Some(query), &limits)?;
        params.take_start()?;
        params.take_on_expired(OnExpired::Fail)?;
        params.filter(&limits)
    }

    #[test]
    fn lists_are_repeated_or_comma_separated_and_commas_can_be_escaped() {
        let (filter, _) = filter_of(
            r"event_type=connection,disconnection&event_type=network_change&country=Korea\,+Republic+of&operator=A%2CB",
        )
        .unwrap();
        assert_eq!(
            filter.to_json(),
            json!({
                "event_type": ["connection", "disconnection", "network_change"],
                "country": ["korea, republic of"],
                "operator": ["a", "b"],
            })
        );
    }

    #[test]
    fn what_nobody_knows_is_an_error_with_a_suggestion() {
        let cases = [
            ("icid=8901234567890123456", "icid", "did you mean iccid?"),
            ("event_types=connection", "event_types", "did you mean event_type?"),
            ("afte=x", "afte", "did you mean after?"),
            ("ICCID=8901234567890123456", "ICCID", "known are"),
            ("=x", "", "known are"),
        ];
        for (query, field, hint) in cases {
            let error = filter_of(query).unwrap_err();
            assert_eq!(error.code, Code::InvalidParameter, "{query}");
            assert_eq!(error.field.as_deref(), Some(field), "{query}");
            assert!(error.hint.as_deref().unwrap().starts_with(hint), "{query}: {:?}", error.hint);
        }
    }

    #[test]
    fn bad_values_name_their_parameter() {
        let cases = [
            ("iccid=123", Code::InvalidFilter, "iccid"),
            ("iccid=", Code::InvalidFilter, "iccid"),
            ("exclude_flags=lat", Code::InvalidFilter, "exclude_flags"),
            ("after=nonsense", Code::InvalidCursor, "after"),
            ("from=yesterday", Code::InvalidStart, "from"),
            ("from=now&last=3", Code::InvalidStart, "last"),
            ("last=0", Code::InvalidStart, "last"),
            ("last=3&last=4", Code::InvalidParameter, "last"),
            ("since=tomorrow", Code::InvalidStart, "since"),
            ("on_expired=never", Code::InvalidStart, "on_expired"),
        ];
        for (query, code, field) in cases {
            let error = filter_of(query).unwrap_err();
            assert_eq!((error.code, error.field.as_deref()), (code, Some(field)), "{query}");
        }
        assert_eq!(filter_of("iccid=%ff").unwrap_err().code, Code::InvalidParameter);
        let long = format!("iccid={}", "1".repeat(16 * 1024));
        assert_eq!(filter_of(&long).unwrap_err().code, Code::InvalidUrl);
    }

    #[test]
    fn an_offset_keeps_its_plus_sign() {
        let limits = Limits::default();
        for query in ["since=2025-11-05T09:00:00+01:00", "since=2025-11-05T09:00:00%2B01:00"] {
            let mut params = Params::parse(Some(query), &limits).unwrap();
            let expected = Start::Since("2025-11-05T08:00:00Z".parse().unwrap());
            assert_eq!(params.take_start().unwrap(), Some(expected), "{query}");
            params.finish().unwrap();
        }
    }

    #[test]
    fn numbers_and_choices_are_checked() {
        let limits = Limits::default();
        let params = || Params::parse(Some("limit=1001&order=up"), &limits).unwrap();
        let error = params().take_number("limit", 1..=1000).unwrap_err();
        assert_eq!(error.message, r#"limit is a number from 1 to 1000, not "1001""#);
        let error = params().take_choice("order", &[("asc", 1), ("desc", 2)]).unwrap_err();
        assert_eq!(error.message, r#"order is asc or desc, not "up""#);
        assert_eq!(params().take_number("limit", 1..=2000).unwrap(), Some(1001));
        assert_eq!(params().finish().unwrap_err().field.as_deref(), Some("limit"));
    }
}
