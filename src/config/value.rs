//! What a key can hold: the types of the table, and the reading of one value into one of them.

use std::net::SocketAddr;

use super::source::Raw;
use crate::{event::Iccid, observability::logs};

/// Type of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// 1 to 64 of `[A-Za-z0-9_.-]`.
    Name,
    /// Text that is never shown.
    Secret,
    /// A file or directory.
    Path,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A whole number within bounds.
    Integer(u64, u64),
    /// Bytes within bounds: a number, or text such as `"10GiB"`.
    Size(u64, u64),
    /// Seconds within bounds: a number, or text such as `"10m"`.
    Seconds(u64, u64),
    /// `true` or `false`.
    Boolean,
    /// IP address and port.
    Address,
    /// `http://` or `https://` without query.
    Url,
    /// List of `scheme://host[:port]`.
    Origins,
    /// List of addresses of NATS servers.
    NatsUrls,
    /// Name of a stream, 1 to 32 of `[A-Za-z0-9_-]`: it becomes part of file and bucket names.
    StreamName,
    /// One or more tokens of a NATS subject.
    SubjectPrefix,
    /// List of host names without port.
    Hosts,
    /// List of networks, `address/bits`.
    Networks,
    /// List of ICCIDs.
    Iccids,
    /// Log level or directives.
    Level,
}

/// A value that fits its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing given and no default.
    Unset,
    /// Text.
    Text(String),
    /// Number: plain, bytes, or seconds.
    Integer(u64),
    /// Switch.
    Boolean(bool),
    /// Texts.
    List(Vec<String>),
}

/// Why a value does not fit, and what would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Lower-case fact.
    pub what: String,
    /// Imperative.
    pub cure: String,
}

pub(super) fn problem<T>(what: impl Into<String>, cure: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { what: what.into(), cure: cure.into() })
}

const SIZES: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
const TIMES: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];

impl Kind {
    /// Reads a value from a file or, where `loose`, from the text of a variable or flag.
    pub fn read(self, raw: &Raw, loose: bool) -> Result<Value, Problem> {
        match self {
            Self::Boolean => self.boolean(raw, loose),
            Self::Integer(min, max) => self.number(raw, loose, &[], min, max),
            Self::Size(min, max) => self.number(raw, true, &SIZES, min, max),
            Self::Seconds(min, max) => self.number(raw, true, &TIMES, min, max),
            Self::Origins => self.list(raw, loose, origin),
            Self::Hosts => self.list(raw, loose, host),
            Self::Networks => self.list(raw, loose, network),
            Self::NatsUrls => self.list(raw, loose, nats_url),
            Self::Iccids => self.list(raw, loose, iccid),
            _ => match raw {
                Raw::Text(text) => self.text(text),
                other => self.mistyped(other),
            },
        }
    }

    /// What it takes, for messages.
    pub fn wanted(self) -> String {
        match self {
            Self::Text | Self::Secret | Self::Level => "a text".into(),
            Self::Path => "a path as text".into(),
            Self::Name => "1 to 64 characters of A-Z a-z 0-9 _ . -".into(),
            Self::Choice(choices) => format!("one of {}", choices.join(", ")),
            Self::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Self::Size(min, max) => format!("a size from {} to {}", size(min), size(max)),
            Self::Seconds(min, max) => format!("a time from {} to {}", seconds(min), seconds(max)),
            Self::Boolean => "true or false".into(),
            Self::Address => "an IP address and port such as 127.0.0.1:8080 or [::1]:8080".into(),
            Self::Url => "a URL such as https://api.example.com/v1/globalsim".into(),
            Self::Origins => r#"a list such as ["https://console.example.com"]"#.into(),
            Self::Hosts => r#"a list such as ["simcast.example.com"]"#.into(),
            Self::Networks => r#"a list such as ["127.0.0.0/8", "10.1.0.0/16"]"#.into(),
            Self::Iccids => r#"a list such as ["8901234567890123456"]"#.into(),
            Self::NatsUrls => r#"a list such as ["nats://127.0.0.1:4222"]"#.into(),
            Self::StreamName => "1 to 32 characters of A-Z a-z 0-9 _ -".into(),
            Self::SubjectPrefix => "words of A-Z a-z 0-9 _ - with dots between, 64 characters at most".into(),
        }
    }

    fn mistyped<T>(self, raw: &Raw) -> Result<T, Problem> {
        problem(format!("{} does not fit here", raw.type_name()), format!("give {}", self.wanted()))
    }

    fn boolean(self, raw: &Raw, loose: bool) -> Result<Value, Problem> {
        match raw {
            Raw::Boolean(value) => Ok(Value::Boolean(*value)),
            Raw::Text(text) if loose && (text == "true" || text == "false") => {
                Ok(Value::Boolean(text == "true"))
            }
            Raw::Text(text) if loose => {
                problem(format!("{text:?} is neither true nor false"), "give true or false")
            }
            other => self.mistyped(other),
        }
    }

    fn number(
        self,
        raw: &Raw,
        loose: bool,
        units: &[(&str, u64)],
        min: u64,
        max: u64,
    ) -> Result<Value, Problem> {
        let text = match raw {
            Raw::Integer(text) => text,
            Raw::Text(text) if loose => text,
            other => return self.mistyped(other),
        };
        let cure = format!("give {}", self.wanted());
        let (digits, factor) = units
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits.trim(), *factor)))
            .unwrap_or((text, 1));
        let value = digits.replace('_', "").parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
        match value {
            Some(value) if (min..=max).contains(&value) => Ok(Value::Integer(value)),
            Some(_) => problem(format!("{text} is out of range"), cure),
            None => problem(format!("{text:?} can't be read"), cure),
        }
    }

    fn list(
        self,
        raw: &Raw,
        loose: bool,
        check: fn(&str) -> Result<String, Problem>,
    ) -> Result<Value, Problem> {
        let items: Vec<&str> = match raw {
            Raw::Text(text) if loose => {
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
            }
            Raw::List(items) => {
                let texts = items.iter().map(|item| match &item.raw {
                    Raw::Text(text) => Ok(text.as_str()),
                    other => self.mistyped(other),
                });
                texts.collect::<Result<_, _>>()?
            }
            other => return self.mistyped(other),
        };
        items.into_iter().map(check).collect::<Result<_, _>>().map(Value::List)
    }

    fn text(self, text: &str) -> Result<Value, Problem> {
        let cure = || format!("give {}", self.wanted());
        if text.trim().is_empty() {
            return problem("it is empty", cure());
        }
        match self {
            Self::Choice(choices) if !choices.contains(&text) => {
                problem(format!("{text:?} is unknown"), cure())
            }
            Self::Name if !is_name(text) => problem(format!("{text:?} is no name"), cure()),
            Self::StreamName if !is_word(text) || text.len() > 32 => {
                problem(format!("{text:?} is no name of a stream"), cure())
            }
            Self::SubjectPrefix if text.len() > 64 || !text.split('.').all(is_word) => {
                problem(format!("{text:?} begins no subject"), cure())
            }
            Self::Address if text.parse::<SocketAddr>().is_err() => {
                problem(format!("{text:?} is no address"), cure())
            }
            Self::Url => url(text).map(Value::Text),
            Self::Level => match logs::check_level(text) {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(error) => {
                    problem(error.to_string(), r#"give a level such as "info" or "info,simcast=debug""#)
                }
            },
            _ => Ok(Value::Text(text.to_owned())),
        }
    }

    /// The value as TOML.
    pub fn show(self, value: &Value) -> Option<String> {
        Some(match (self, value) {
            (_, Value::Unset) => return None,
            (Self::Secret, _) => "\"***\"".to_owned(),
            (Self::Size(..), Value::Integer(n)) => format!("{:?}", size(*n)),
            (Self::Seconds(..), Value::Integer(n)) => format!("{:?}", seconds(*n)),
            (_, Value::Integer(n)) => n.to_string(),
            (_, Value::Boolean(b)) => b.to_string(),
            (_, Value::Text(text)) => format!("{text:?}"),
            (Self::NatsUrls, Value::List(items)) => {
                let shown: Vec<_> = items.iter().map(|url| without_password(url)).collect();
                format!("{shown:?}")
            }
            (_, Value::List(items)) => format!("{items:?}"),
        })
    }
}

/// Whether a text can name an upstream or a token: 1 to 64 of `[A-Za-z0-9_.-]`.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether a text can be a token of a subject or the name of a stream.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

fn size(bytes: u64) -> String {
    unit(bytes, &SIZES).unwrap_or_else(|| bytes.to_string())
}

fn seconds(n: u64) -> String {
    unit(n, &TIMES).unwrap_or_else(|| format!("{n}s"))
}

fn unit(n: u64, units: &[(&str, u64)]) -> Option<String> {
    let (name, factor) = units.iter().rev().find(|(_, factor)| n >= *factor && n.is_multiple_of(*factor))?;
    Some(format!("{}{name}", n / factor))
}

/// Scheme and authority of a URL, and the rest.
fn split_url(text: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let parsed: http::uri::Authority = authority.parse().ok()?;
    (matches!(scheme, "http" | "https") && !parsed.host().is_empty()).then_some((scheme, authority, path))
}

fn url(text: &str) -> Result<String, Problem> {
    let cure = format!("give {}", Kind::Url.wanted());
    let Some((_, authority, path)) = split_url(text) else {
        return problem("it is no http:// or https:// URL", cure);
    };
    if authority.contains('@') {
        return problem(
            "it holds a user name",
            "leave out everything up to the @; the key goes into api_key",
        );
    }
    if path.contains(['?', '#']) {
        return problem("it has a query or fragment", "leave out everything from the ? or # on");
    }
    if text.parse::<http::Uri>().is_err() {
        return problem("it holds characters that a URL can't have", cure);
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn origin(text: &str) -> Result<String, Problem> {
    let cure = "give scheme, host and port as the browser sends them, such as https://console.example.com";
    if text == "*" {
        return problem("\"*\" would let any page in a user's browser read the stream", cure);
    }
    match split_url(text) {
        Some((_, authority, "")) if !authority.contains('@') => Ok(text.to_ascii_lowercase()),
        _ => problem(format!("{text:?} is no origin"), cure),
    }
}

/// A URL to be shown: what stands before the @ is blotted out.
pub fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}

fn nats_url(text: &str) -> Result<String, Problem> {
    let cure = "give nats://host:port or tls://host:port, with user:password@ or token@ before the host where it wants them";
    // Without scheme it is nats://, as NATS' own tools have it.
    let (scheme, rest) = text.split_once("://").unwrap_or(("nats", text));
    let authority = rest.trim_end_matches('/');
    let parsed: Option<http::uri::Authority> = authority.parse().ok();
    if parsed.is_none_or(|parsed| parsed.host().is_empty()) || !matches!(scheme, "nats" | "tls") {
        // The text may hold a password.
        return problem("it is no address of a NATS server", cure);
    }
    Ok(format!("{scheme}://{authority}"))
}

fn iccid(text: &str) -> Result<String, Problem> {
    match Iccid::parse(text) {
        Ok(iccid) => Ok(iccid.into()),
        Err(_) => problem(format!("{text:?} is no ICCID"), "give 18 to 22 digits"),
    }
}

fn network(text: &str) -> Result<String, Problem> {
    match text.parse::<ipnet::IpNet>() {
        Ok(network) => Ok(network.trunc().to_string()),
        Err(_) => problem(
            format!("{text:?} is no network"),
            "give an address and the bits that count, such as 127.0.0.0/8",
        ),
    }
}

fn host(text: &str) -> Result<String, Problem> {
    let parsed: Option<http::uri::Authority> = text.parse().ok();
    match parsed {
        Some(authority) if authority.host() == text && !text.contains('*') => Ok(text.to_ascii_lowercase()),
        _ => problem(
            format!("{text:?} is no host name"),
            "give a name such as simcast.example.com, without port",
        ),
    }
}
