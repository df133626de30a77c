//! From an HTTP response to a whole JSON body, or to the error that upstream meant.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use reqwest::Response;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Config;
use crate::{
    globalsim::{
        error::{Error, SAID_CHARS_MAX},
        key::Secret,
    },
    sabotage::{self, Bug},
};

/// No more silence than this is accepted from a Retry-After.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// What is read of a failed answer's body.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// A page that is not JSON is shown so far.
const SNIPPET_CHARS: usize = 80;

/// Reads responses of one request.
pub(super) struct Reader {
    pub config: Arc<Config>,
    /// For blotting it out of what upstream says.
    pub secret: Secret,
    /// When the whole answer must be there.
    pub deadline: Instant,
    /// Our clock, for a Retry-After date of an upstream without Date header.
    pub now: Timestamp,
}

/// What the head of an answer says beside its body.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Head {
    pub server_date: Option<Timestamp>,
}

impl Reader {
    /// The JSON of a 200, or the error.
    pub async fn read(&self, response: Response) -> Result<(Head, Value), Error> {
        let status = response.status();
        let head = Head { server_date: response.headers().get(header::DATE).and_then(http_date) };
        if status == StatusCode::OK {
            let kind = content_type(response.headers());
            let body = self.body(response, self.config.body_bytes_max).await?;
            return self.json(&body, &kind).map(|value| (head, value));
        }
        let retry_after = retry_after(response.headers(), head.server_date.unwrap_or(self.now));
        let redirect = response
            .headers()
            .get(header::LOCATION)
            .map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        if status.is_redirection() || status.is_success() || status.is_informational() {
            return Err(self.odd_status(status, redirect));
        }
        // Whatever goes wrong with the body of a failure, the failure is what counts.
        let body = self.body(response, ERROR_BYTES_MAX).await.unwrap_or_default();
        let said = self.said(&body);
        Err(match status.as_u16() {
            401 => Error::Auth { tried: String::new(), said },
            403 => Error::Forbidden { said },
            404 => Error::NotFound { said },
            429 => Error::RateLimited { retry_after, said },
            status @ 500.. => Error::Server { status, retry_after, said },
            status => Error::Invalid { status, said },
        })
    }

    fn odd_status(&self, status: StatusCode, redirect: Option<String>) -> Error {
        let reason = match redirect {
            Some(to) => format!("a redirect to {to:?}, which is not followed"),
            None => "a page comes with 200 and nothing else".to_owned(),
        };
        Error::NotGlobalSim { status: status.as_u16(), reason: self.shown(&reason, SAID_CHARS_MAX) }
    }

    async fn body(&self, mut response: Response, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let too_large = Error::TooLarge { bytes_max };
        if response.content_length().is_some_and(|bytes| bytes > bytes_max as u64) {
            return Err(too_large);
        }
        let deadline = self.deadline.min(Instant::now() + self.config.body_timeout);
        let mut body = Vec::new();
        loop {
            let chunk = timeout_at(deadline, response.chunk())
                .await
                .map_err(|_| timeout("finish its answer", self.config.body_timeout))?
                .or_else(|error| if sabotage::on(Bug::CutBodyIsWhole) { Ok(None) } else { Err(error) })
                .map_err(|error| transport(error, &self.config))?;
            let Some(chunk) = chunk else { return Ok(body) };
            if body.len() + chunk.len() > bytes_max {
                return Err(too_large);
            }
            body.extend_from_slice(&chunk);
        }
    }

    fn json(&self, body: &[u8], content_type: &str) -> Result<Value, Error> {
        let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
        serde_json::from_slice(body).or_else(|error| {
            let text = String::from_utf8_lossy(body);
            let start = text.trim_start();
            if error.is_eof() && start.starts_with(['{', '[']) {
                if sabotage::on(Bug::CutBodyIsWhole)
                    && let Some((rows, _)) = start.rsplit_once('}')
                    && let Ok(value) = serde_json::from_str(&format!("{rows}}}]}}"))
                {
                    return Ok(value);
                }
                return Err(Error::Transport(format!("the answer is cut off after {} bytes", body.len())));
            }
            let reason = match start.chars().next() {
                None => "an empty body".to_owned(),
                Some(_) => format!("not JSON but {content_type}: {:?}", self.shown(start, SNIPPET_CHARS)),
            };
            Err(Error::NotGlobalSim { status: 200, reason })
        })
    }

    /// An answer that is JSON, but not the one that was asked for.
    pub fn wrong_shape(&self, reason: &str) -> Error {
        Error::NotGlobalSim { status: 200, reason: self.shown(reason, SAID_CHARS_MAX) }
    }

    /// What an error body says: `detail` (text, object, or a list of `{msg}`), else `error`, else `message`.
    fn said(&self, body: &[u8]) -> String {
        let text = match serde_json::from_slice::<Value>(body) {
            Ok(value) => spoken(&value),
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let start: String = text.trim().chars().take(SNIPPET_CHARS).collect();
                start
            }
        };
        self.shown(&text, SAID_CHARS_MAX)
    }

    /// Without the key, without control characters, cut.
    fn shown(&self, text: &str, chars_max: usize) -> String {
        let text = self.secret.redact(text);
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max).collect()
    }
}

fn spoken(value: &Value) -> String {
    let member =
        ["detail", "error", "message"].iter().find_map(|name| value.get(name).filter(|v| !v.is_null()));
    match member {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let each: Vec<String> = items.iter().map(complaint).collect();
            each.join("; ")
        }
        Some(Value::Object(object)) => match object.get("msg").or_else(|| object.get("message")) {
            Some(Value::String(text)) => text.clone(),
            _ => Value::Object(object.clone()).to_string(),
        },
        Some(other) => other.to_string(),
        None if value.is_object() || value.is_array() => value.to_string(),
        None => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    }
}

/// One item of a validation list: `{loc: [query, limit], msg}`.
fn complaint(item: &Value) -> String {
    let Some(msg) = item.get("msg").and_then(Value::as_str) else {
        return item.as_str().map_or_else(|| item.to_string(), str::to_owned);
    };
    let place = item.get("loc").and_then(Value::as_array).map(|loc| {
        let parts: Vec<String> =
            loc.iter().map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned)).collect();
        parts.join(".")
    });
    place.map_or_else(|| msg.to_owned(), |place| format!("{place}: {msg}"))
}

/// Seconds or an HTTP date; a date is compared with `now`, which is upstream's own Date where it sends one.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?;
    let text = value.to_str().ok()?.trim();
    let wait = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(RETRY_AFTER_MAX),
        Err(_) => Duration::try_from(http_date(value)?.duration_since(now)).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

fn http_date(value: &http::HeaderValue) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    let since = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Timestamp::from_second(i64::try_from(since.as_secs()).ok()?).ok()
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.map_or("of no type", |text| text.split(';').next().unwrap_or(text)).chars().take(60).collect()
}

pub(super) fn timeout(what: &'static str, after: Duration) -> Error {
    Error::Timeout { what, after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX) }
}

/// A failure below HTTP. The URL is left out: it names SIMs and devices.
pub(super) fn transport(error: reqwest::Error, config: &Config) -> Error {
    if error.is_timeout() {
        return match error.is_connect() {
            true => timeout("accept the connection", config.connect_timeout),
            false => timeout("answer", config.total_timeout),
        };
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    Error::Transport(text.chars().take(SAID_CHARS_MAX).collect())
}
