//! `[[auth.tokens]]`: the one list of tables, read apart from the table of keys.
//!
//! Nothing that was written as a token or hash is ever repeated in a message.

use std::sync::Arc;

use serde_json::Value as Json;

use super::{
    Mistake,
    schema::{TOKEN_KEYS, TOKENS},
    source::{Located, Origin, Raw},
    value::is_name,
};
use crate::{
    auth::{Role, Roles, TOKEN_PREFIX, TokenConfig},
    event::{FieldPolicy, Filter, FilterLimits, policy::FieldRule},
};

/// Reads all tokens; `key` is the pseudonym key, if any.
pub fn read(list: &Located, key: Option<&str>, mistakes: &mut Vec<Mistake>) -> Vec<TokenConfig> {
    let Raw::List(entries) = &list.raw else {
        mistakes.push(Mistake {
            key: TOKENS.into(),
            origin: list.origin.clone(),
            problem: "it is no list of tables".into(),
            cure: "paste what \"simcast token new\" prints".into(),
        });
        return Vec::new();
    };
    let mut tokens: Vec<TokenConfig> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let origin = if entry.origin == Origin::Default { &list.origin } else { &entry.origin };
        let mut reader = Reader { path: format!("{TOKENS}[{index}]"), origin: origin.clone(), mistakes };
        if let Some(token) = reader.token(&entry.raw, key) {
            if tokens.iter().any(|other| other.name == token.name) {
                reader.wrong(
                    "name",
                    format!("{:?} is the name of another token too", token.name),
                    "rename one",
                );
            }
            if tokens.iter().any(|other| other.sha256 == token.sha256) {
                reader.wrong("sha256", "another token has the same", "make one with \"simcast token new\"");
            }
            tokens.push(token);
        }
    }
    tokens
}

struct Reader<'m> {
    path: String,
    origin: Origin,
    mistakes: &'m mut Vec<Mistake>,
}

impl Reader<'_> {
    fn wrong(&mut self, field: &str, problem: impl Into<String>, cure: impl Into<String>) {
        self.mistakes.push(Mistake {
            key: if field.is_empty() { self.path.clone() } else { format!("{}.{field}", self.path) },
            origin: self.origin.clone(),
            problem: problem.into(),
            cure: cure.into(),
        });
    }

    fn token(&mut self, raw: &Raw, pseudonym_key: Option<&str>) -> Option<TokenConfig> {
        let Raw::Table(fields) = raw else {
            self.wrong("", "it is no table", "paste what \"simcast token new\" prints");
            return None;
        };
        for (name, _) in fields {
            if !TOKEN_KEYS.contains(&name.as_str()) {
                let near = TOKEN_KEYS
                    .iter()
                    .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
                let near = near.copied().unwrap_or_default();
                self.wrong(
                    name,
                    "there is no such key",
                    format!("did you mean {near}? A token has {}", TOKEN_KEYS.join(", ")),
                );
            }
        }
        let get = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, located)| &located.raw);
        // All are read before any is missed, so that one token's mistakes are reported together.
        let name = self.name(get("name"));
        let sha256 = self.sha256(get("sha256"));
        let roles = self.roles(get("roles"));
        let filter = get("filter").map(|raw| self.filter(raw));
        let fields = get("fields").map(|raw| self.fields(raw, pseudonym_key));
        let expires = get("expires").map(|raw| self.expires(raw));
        Some(TokenConfig {
            name: name?,
            sha256: sha256?,
            roles: roles?,
            filter: filter.flatten(),
            fields: fields.flatten(),
            expires: expires.flatten(),
        })
    }

    fn name(&mut self, raw: Option<&Raw>) -> Option<String> {
        match raw {
            Some(Raw::Text(text)) if is_name(text) => Some(text.clone()),
            _ => {
                self.wrong("name", "a name is needed", "give 1 to 64 characters of A-Z a-z 0-9 _ . -");
                None
            }
        }
    }

    fn sha256(&mut self, raw: Option<&Raw>) -> Option<[u8; 32]> {
        let cure = "give the 64 hex digits that \"simcast token new\" prints";
        match raw {
            Some(Raw::Text(text)) if text.starts_with(TOKEN_PREFIX) => {
                self.wrong("sha256", "this is a token, not its hash: treat it as exposed", cure);
                None
            }
            Some(Raw::Text(text)) => {
                let mut hash = [0; 32];
                if hex::decode_to_slice(text, &mut hash).is_err() {
                    self.wrong("sha256", "it is no SHA-256 in hex", cure);
                    return None;
                }
                Some(hash)
            }
            _ => {
                self.wrong("sha256", "the hash of the token is needed", cure);
                None
            }
        }
    }

    fn roles(&mut self, raw: Option<&Raw>) -> Option<Roles> {
        let cure = "give a list of read, webhooks, admin";
        let items = match raw {
            Some(Raw::List(items)) if !items.is_empty() => items,
            _ => {
                self.wrong("roles", "at least one role is needed", cure);
                return None;
            }
        };
        let mut roles = Vec::new();
        for item in items {
            match &item.raw {
                Raw::Text(text) => match Role::parse(text) {
                    Some(role) => roles.push(role),
                    None => self.wrong("roles", format!("{text:?} is no role"), cure),
                },
                other => self.wrong("roles", format!("{} is no role", other.type_name()), cure),
            }
        }
        (roles.len() == items.len()).then(|| roles.into_iter().collect())
    }

    fn filter(&mut self, raw: &Raw) -> Option<Filter> {
        match Filter::from_json(&to_json(raw), FilterLimits { values_per_list: 10_000 }) {
            Ok((filter, _)) => Some(filter),
            Err(error) => {
                let field =
                    if error.field == "filter" { "filter".into() } else { format!("filter.{}", error.field) };
                self.wrong(&field, error.message, error.hint.unwrap_or_else(|| "correct it".into()));
                None
            }
        }
    }

    fn fields(&mut self, raw: &Raw, pseudonym_key: Option<&str>) -> Option<FieldPolicy> {
        let Raw::Table(entries) = raw else {
            self.wrong(
                "fields",
                "it is no table",
                r#"give for example { iccid = "last4", msisdn = "drop" }"#,
            );
            return None;
        };
        let mut policy = FieldPolicy {
            key: Arc::from(pseudonym_key.unwrap_or_default().as_bytes()),
            ..FieldPolicy::default()
        };
        for (name, located) in entries {
            let field = format!("fields.{name}");
            let rule = match &located.raw {
                Raw::Text(text) => FieldRule::parse(text),
                _ => None,
            };
            match (name.as_str(), rule) {
                ("iccid" | "msisdn" | "ip_address", None) => {
                    self.wrong(&field, "there is no such rule", "give keep, drop, last4 or pseudonym");
                }
                ("iccid" | "msisdn" | "ip_address", Some(FieldRule::Pseudonym))
                    if pseudonym_key.is_none() =>
                {
                    self.wrong(
                        &field,
                        "pseudonyms need a key",
                        "set auth.pseudonym_key to 32 or more random characters",
                    );
                }
                ("iccid", Some(rule)) => policy.iccid = rule,
                ("msisdn", Some(rule)) => policy.msisdn = rule,
                ("ip_address", Some(rule)) => policy.ip_address = rule,
                ("details", Some(FieldRule::Keep)) => policy.details = true,
                ("extra", Some(FieldRule::Keep)) => policy.extra = true,
                ("details" | "extra", Some(FieldRule::Drop)) => {}
                ("details" | "extra", _) => self.wrong(&field, "there is no such rule", "give keep or drop"),
                _ => self.wrong(
                    &field,
                    "there is no such field",
                    "fields are iccid, msisdn, ip_address, details, extra",
                ),
            }
        }
        Some(policy)
    }

    fn expires(&mut self, raw: &Raw) -> Option<jiff::Timestamp> {
        let parsed = match raw {
            Raw::Text(text) => text.parse().ok(),
            _ => None,
        };
        if parsed.is_none() {
            self.wrong("expires", "it is no time with a zone", "give for example 2027-01-31T00:00:00Z");
        }
        parsed
    }
}

fn to_json(raw: &Raw) -> Json {
    match raw {
        Raw::Text(text) => text.as_str().into(),
        Raw::Integer(digits) => digits.parse::<i64>().map_or(Json::Null, Json::from),
        Raw::Boolean(value) => (*value).into(),
        Raw::Other(name) => serde_json::json!({ "unreadable": name }),
        Raw::List(items) => items.iter().map(|item| to_json(&item.raw)).collect(),
        Raw::Table(entries) => {
            Json::Object(entries.iter().map(|(key, item)| (key.clone(), to_json(&item.raw))).collect())
        }
    }
}
