//! From sources to a [`Config`]: every value is read and checked first, then the sections are filled.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    Admin, BusKind, Confidential, Config, Details, Effective, Embedded, Grpc, Http, Ingest, Limits, Mistake,
    Mistakes, Nats, Sims, Upstream, Webhooks, rules,
    schema::{self, Fallback, KEYS},
    source::{Located, Origin, Sources, collect, inline},
    tokens,
    value::Value,
};
use crate::{
    auth,
    globalsim::{AuthStyle, KeySource},
    observability::{LogConfig, LogFormat},
};

/// Reads, checks and composes a configuration.
///
/// # Errors
/// [`Mistakes`], all of them; exit code 64.
pub fn load(sources: &Sources) -> Result<Config, Mistakes> {
    let mut mistakes = Vec::new();
    let given = collect(sources, &mut mistakes);
    let mut values = Values::defaults();
    let mut token_list = None;
    for (path, located) in given {
        if path == schema::TOKENS {
            token_list = Some(located);
        } else {
            values.set(&path, &located, &mut mistakes);
        }
    }
    let pseudonym_key = values.set_text("auth.pseudonym_key");
    let tokens = token_list.map_or_else(Vec::new, |list| tokens::read(&list, pseudonym_key, &mut mistakes));
    let checked = rules::check(&values, &tokens, &mut mistakes);
    let Some(key) = checked.key.filter(|_| mistakes.is_empty()) else {
        return Err(Mistakes(mistakes));
    };
    let effective = values.effective(&tokens);
    let mut config = values.config(key, auth::Config { tokens }, checked.warnings, effective);
    config.sims.iccids = checked.iccids;
    Ok(config)
}

/// The value of every key, and where it comes from.
pub struct Values {
    held: BTreeMap<&'static str, (Value, Origin)>,
    /// Keys with a mistake: rules between keys pass over them.
    bad: BTreeSet<&'static str>,
}

impl Values {
    fn defaults() -> Self {
        let held = KEYS.iter().map(|key| {
            let value = match key.default {
                Fallback::Is(text) => key.kind.read(&inline(text), false).unwrap_or(Value::Unset),
                Fallback::Unset(_) => Value::Unset,
            };
            (key.path, (value, Origin::Default))
        });
        Self { held: held.collect(), bad: BTreeSet::new() }
    }

    fn set(&mut self, path: &str, located: &Located, mistakes: &mut Vec<Mistake>) {
        let mut wrong = |problem: String, cure: String| {
            mistakes.push(Mistake { key: path.to_owned(), origin: located.origin.clone(), problem, cure });
        };
        let Some(key) = schema::find(path) else {
            if schema::is_section(path) {
                wrong("it is a section".into(), format!("write [{path}] and its keys below"));
            } else {
                wrong("there is no such key".into(), schema::advice(path));
            }
            return;
        };
        match key.kind.read(&located.raw, located.loose()) {
            Ok(value) => {
                // A stronger source repairs what a weaker one has wrong only if that is corrected too: a mistake
                // that waits in the file until a variable is unset would be found at the worst time.
                self.held.insert(key.path, (value, located.origin.clone()));
            }
            Err(problem) => {
                self.bad.insert(key.path);
                wrong(problem.what, problem.cure);
            }
        }
    }

    /// Whether a key has no mistake of its own.
    pub fn good(&self, path: &str) -> bool {
        !self.bad.contains(path)
    }

    /// Where a key's value comes from.
    pub fn origin(&self, path: &str) -> Origin {
        self.held.get(path).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    fn get(&self, path: &str) -> &Value {
        self.held.get(path).map_or(&Value::Unset, |(value, _)| value)
    }

    /// Text of a key that is set.
    pub fn set_text(&self, path: &str) -> Option<&str> {
        match self.get(path) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn text(&self, path: &str) -> String {
        self.set_text(path).unwrap_or_default().to_owned()
    }

    /// Number of a key.
    pub fn number(&self, path: &str) -> u64 {
        match self.get(path) {
            Value::Integer(number) => *number,
            _ => 0,
        }
    }

    // The table bounds every number below these types' largest, so that the conversions never saturate.
    fn small(&self, path: &str) -> u32 {
        u32::try_from(self.number(path)).unwrap_or(u32::MAX)
    }

    fn count(&self, path: &str) -> usize {
        usize::try_from(self.number(path)).unwrap_or(usize::MAX)
    }

    fn seconds(&self, path: &str) -> Duration {
        Duration::from_secs(self.number(path))
    }

    /// Texts of a key.
    pub fn list(&self, path: &str) -> Vec<String> {
        match self.get(path) {
            Value::List(items) => items.clone(),
            _ => Vec::new(),
        }
    }

    /// Address of a key; one that can't be read is a mistake already, any will do then.
    pub fn address(&self, path: &str) -> SocketAddr {
        let parsed = self.set_text(path).and_then(|text| text.parse().ok());
        parsed.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    fn effective(&self, tokens: &[auth::TokenConfig]) -> Vec<Effective> {
        let shown = KEYS.iter().map(|key| Effective {
            key: key.path.to_owned(),
            value: key.kind.show(self.get(key.path)),
            origin: self.origin(key.path),
        });
        let tokens = tokens.iter().enumerate().map(|(index, token)| Effective {
            key: format!("{}[{index}]", schema::TOKENS),
            value: Some(format!("{:?}", token.name)),
            origin: Origin::Default,
        });
        shown.chain(tokens).collect()
    }

    fn config(
        &self,
        key: KeySource,
        auth: auth::Config,
        warnings: Vec<String>,
        effective: Vec<Effective>,
    ) -> Config {
        Config {
            upstream: self.upstream(key),
            ingest: Ingest {
                late_after: self.seconds("ingest.late_after_s"),
                lateness: self.seconds("ingest.lateness"),
            },
            bus: match self.text("bus.kind").as_str() {
                "nats" => BusKind::Nats,
                _ => BusKind::Embedded,
            },
            nats: self.nats(),
            embedded: Embedded {
                path: PathBuf::from(self.text("bus.embedded.path")),
                retention_days: self.small("bus.embedded.retention_days"),
                retention_bytes: self.number("bus.embedded.retention_bytes"),
            },
            http: Http {
                listen: self.address("http.listen"),
                allowed_origins: self.list("http.allowed_origins"),
                allowed_hosts: self.list("http.allowed_hosts"),
            },
            grpc: Grpc {
                listen: self.address("grpc.listen"),
                reflection: *self.get("grpc.reflection") == Value::Boolean(true),
            },
            admin: Admin { listen: self.address("admin.listen") },
            auth,
            webhooks: Webhooks {
                allowed_networks: self.list("webhooks.allowed_networks"),
                secret_key: self.set_text("webhooks.secret_key").map(Confidential::new),
                secret_key_file: self.set_text("webhooks.secret_key_file").map(PathBuf::from),
                proxy: self.set_text("webhooks.proxy").map(Confidential::new),
                ca_file: self.set_text("webhooks.ca_file").map(PathBuf::from),
                attempts_days: self.small("webhooks.attempts_days"),
                attempts_bytes: self.number("webhooks.attempts_bytes"),
            },
            sims: Sims::default(),
            limits: Limits {
                connections: self.count("limits.connections"),
                subscriptions_per_connection: self.count("limits.subscriptions_per_connection"),
                filter_values: self.count("limits.filter_values"),
                filter_values_body: self.count("limits.filter_values_body"),
                url_bytes: self.count("limits.url_bytes"),
                body_bytes: self.count("limits.body_bytes"),
            },
            log: LogConfig {
                format: match self.text("log.format").as_str() {
                    "json" => LogFormat::Json,
                    _ => LogFormat::Text,
                },
                level: self.text("log.level"),
            },
            warnings,
            effective,
        }
    }

    fn nats(&self) -> Nats {
        let file = |path| self.set_text(path).map(PathBuf::from);
        Nats {
            urls: self.list("bus.nats.urls"),
            credentials_file: file("bus.nats.credentials_file"),
            nkey_file: file("bus.nats.nkey_file"),
            tls_ca: file("bus.nats.tls_ca"),
            tls_client: file("bus.nats.tls_cert").zip(file("bus.nats.tls_key")),
            stream: self.text("bus.nats.stream"),
            subject_prefix: self.text("bus.nats.subject_prefix"),
            replicas: self.count("bus.nats.replicas"),
            retention_days: self.small("bus.nats.retention_days"),
            retention_bytes: self.number("bus.nats.retention_bytes"),
            cache_path: PathBuf::from(self.text("bus.nats.cache_path")),
            monitoring_url: self.set_text("bus.nats.monitoring_url").map(str::to_owned),
        }
    }

    fn upstream(&self, api_key: KeySource) -> Upstream {
        Upstream {
            name: self.text("upstream.name"),
            base_url: self.text("upstream.base_url"),
            api_key,
            auth: match self.text("upstream.auth").as_str() {
                "bearer" => AuthStyle::Bearer,
                "x-api-key" => AuthStyle::XApiKey,
                _ => AuthStyle::Auto,
            },
            requests_per_minute: self.small("upstream.requests_per_minute"),
            limit_per_minute: self.small("upstream.limit_per_minute"),
            backfill_days: self.small("upstream.backfill_days"),
            details: match self.text("upstream.details").as_str() {
                "follow" => Details::Follow,
                "off" => Details::Off,
                _ => Details::Wait,
            },
            details_wait: Duration::from_millis(self.number("upstream.details_wait_ms")),
            sessions: *self.get("upstream.sessions") == Value::Boolean(true),
        }
    }
}
