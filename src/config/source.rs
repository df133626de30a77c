//! Where values come from: the TOML file with the line of each value, environment variables, flags.

use std::{fmt, ops::Range, path::PathBuf, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Mistake,
    schema::{self, ENV_PREFIX},
};

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the file, at this line.
    File(Arc<str>, usize),
    /// In this environment variable.
    Env(String),
    /// By this flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file, line) => write!(f, "{file}:{line}"),
            Self::Env(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// What a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// TOML file.
    pub file: Option<PathBuf>,
    /// Environment; variables without the prefix are passed over.
    pub env: Vec<(String, String)>,
    /// Key, value as text, and the flag that gave it.
    pub flags: Vec<(&'static str, String, &'static str)>,
}

impl Sources {
    /// A file, if any, and the environment of this process. Variables that are not text can't be ours.
    pub fn of_process(file: Option<PathBuf>) -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self { file, env: env.collect(), flags: Vec::new() }
    }

    /// Sets a key from a flag.
    pub fn flag(&mut self, path: &'static str, value: impl ToString, flag: &'static str) {
        self.flags.push((path, value.to_string(), flag));
    }
}

/// A value as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raw {
    /// Text, or a date and time.
    Text(String),
    /// Decimal digits.
    Integer(String),
    /// Switch.
    Boolean(bool),
    /// List.
    List(Vec<Located>),
    /// Table.
    Table(Vec<(String, Located)>),
    /// A type that no key takes.
    Other(&'static str),
}

impl Raw {
    /// For messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(name) => name,
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Value.
    pub raw: Raw,
    /// Place.
    pub origin: Origin,
}

impl Located {
    /// Whether numbers and switches may be spelled as text.
    pub fn loose(&self) -> bool {
        matches!(self.origin, Origin::Env(_) | Origin::Flag(_))
    }
}

/// All values given, each with its path, weakest first; `mistakes` takes what can't be read.
pub fn collect(sources: &Sources, mistakes: &mut Vec<Mistake>) -> Vec<(String, Located)> {
    let mut found = Vec::new();
    if let Some(path) = &sources.file {
        let name: Arc<str> = path.display().to_string().into();
        match std::fs::read_to_string(path) {
            Ok(text) => flatten(String::new(), parse(&text, &name, mistakes), &mut found),
            Err(error) => mistakes.push(Mistake {
                key: "--config".into(),
                origin: Origin::Default,
                problem: format!("{name} can't be read: {error}"),
                cure: "give the path of a readable TOML file".into(),
            }),
        }
    }
    let mut env: Vec<_> = sources.env.iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    env.sort();
    for (name, value) in env {
        let path = name[ENV_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        let raw = if path == schema::TOKENS { inline(value) } else { Raw::Text(value.clone()) };
        found.push((path, Located { raw, origin: Origin::Env(name.clone()) }));
    }
    for (path, value, flag) in &sources.flags {
        let located = Located { raw: Raw::Text(value.clone()), origin: Origin::Flag(flag) };
        found.push(((*path).to_owned(), located));
    }
    found
}

/// Reads TOML text that is part of this program or of a variable.
pub fn inline(text: &str) -> Raw {
    match DeValue::parse(text) {
        Ok(value) => convert(value.into_inner(), &|_| Origin::Default),
        Err(_) => Raw::Text(text.to_owned()),
    }
}

fn parse(text: &str, name: &Arc<str>, mistakes: &mut Vec<Mistake>) -> Vec<(String, Located)> {
    let line = |span: Range<usize>| {
        let before = text.get(..span.start).unwrap_or(text);
        Origin::File(Arc::clone(name), before.matches('\n').count() + 1)
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        mistakes.push(Mistake {
            key: "TOML".into(),
            origin: error.span().map_or_else(|| Origin::File(Arc::clone(name), 1), line),
            problem: error.message().replace('\n', ", "),
            cure: "correct the syntax (https://toml.io)".into(),
        });
    }
    match convert(DeValue::Table(table.into_inner()), &line) {
        Raw::Table(entries) => entries,
        _ => Vec::new(),
    }
}

fn convert(value: DeValue<'_>, line: &dyn Fn(Range<usize>) -> Origin) -> Raw {
    let locate = |spanned: Spanned<DeValue<'_>>| {
        let origin = line(spanned.span());
        Located { raw: convert(spanned.into_inner(), line), origin }
    };
    match value {
        DeValue::String(text) => Raw::Text(text.into_owned()),
        DeValue::Integer(number) => {
            // Digits that are too many for the type are kept, so that the message can show them.
            let plain = i128::from_str_radix(number.as_str(), number.radix());
            Raw::Integer(plain.map_or_else(|_| number.to_string(), |n| n.to_string()))
        }
        DeValue::Boolean(value) => Raw::Boolean(value),
        DeValue::Datetime(time) => Raw::Text(time.to_string()),
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Array(items) => Raw::List(items.into_iter().map(locate).collect()),
        DeValue::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| {
                let origin = line(key.span());
                let raw = locate(value).raw;
                (key.into_inner().into_owned(), Located { raw, origin })
            });
            Raw::Table(entries.collect())
        }
    }
}

/// Descends into sections, so that what remains are keys, right or wrong.
fn flatten(prefix: String, entries: Vec<(String, Located)>, found: &mut Vec<(String, Located)>) {
    for (name, located) in entries {
        let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match located.raw {
            Raw::Table(inner) if schema::is_section(&path) => flatten(path, inner, found),
            _ => found.push((path, located)),
        }
    }
}
