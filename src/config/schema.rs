//! The table of keys. Adding a key is adding a row here and a field in `build`; a test fails when one is missing.

use super::value::Kind;

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `section.key`.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its value as TOML where none is given.
    pub default: Fallback,
    /// Why one would change it; shown in the default file.
    pub doc: &'static str,
}

/// Value of a key that is not given.
#[derive(Debug, Clone, Copy)]
pub enum Fallback {
    /// This, as TOML.
    Is(&'static str),
    /// None; the example is shown in the default file.
    Unset(&'static str),
}

impl Key {
    /// Name of the environment variable that overrides it.
    pub fn env(&self) -> String {
        let mut name = String::from(ENV_PREFIX);
        name.push_str(&self.path.replace('.', "__").to_ascii_uppercase());
        name
    }

    /// Section and key.
    pub fn split(&self) -> (&'static str, &'static str) {
        self.path.rsplit_once('.').unwrap_or(("", self.path))
    }
}

/// What environment variables of the configuration begin with.
pub const ENV_PREFIX: &str = "SIMCAST__";

/// The list of tables that is read apart.
pub const TOKENS: &str = "auth.tokens";

/// Keys of one entry of [`TOKENS`].
pub const TOKEN_KEYS: [&str; 6] = ["name", "sha256", "roles", "filter", "fields", "expires"];

/// Sections and keys that other builds have, and what to say about them here.
pub const ABSENT: [(&str, &str); 3] = [
    ("auth.jwt", "this build knows tokens only; use [[auth.tokens]]"),
    ("http.tls", "this build serves no TLS; put a TLS proxy in front"),
    ("grpc.tls", "this build serves no TLS; put a TLS proxy in front"),
];

use Fallback::{Is, Unset};

const fn key(path: &'static str, kind: Kind, default: Fallback, doc: &'static str) -> Key {
    Key { path, kind, default, doc }
}

/// Every key, in the order of the default file.
pub const KEYS: [Key; 54] = [
    key(
        "upstream.name",
        Kind::Name,
        Is("\"default\""),
        "Last part of every event's source, /globalsim/<name>.",
    ),
    key(
        "upstream.base_url",
        Kind::Url,
        Unset("\"https://api.wayscloud.services/v1/globalsim\""),
        "The GlobalSIM API, up to what comes before /sims. Required.",
    ),
    key(
        "upstream.api_key",
        Kind::Secret,
        Unset("\"wayscloud_...\""),
        "API key; this or api_key_file is required.",
    ),
    key(
        "upstream.api_key_file",
        Kind::Path,
        Unset("\"/run/secrets/globalsim-api-key\""),
        "File whose only line is the API key.",
    ),
    key(
        "upstream.auth",
        Kind::Choice(&["auto", "bearer", "x-api-key"]),
        Is("\"auto\""),
        "How the key is sent: Authorization: Bearer, X-API-Key, or whichever the API accepts.",
    ),
    key(
        "upstream.requests_per_minute",
        Kind::Integer(10, 100_000),
        Is("400"),
        "Requests that the gateway allows itself in any 60 s; the rest of the limit is left to your other programs.",
    ),
    key(
        "upstream.limit_per_minute",
        Kind::Integer(10, 100_000),
        Is("500"),
        "Requests that the API allows per key in any 60 s, as documented; never passed.",
    ),
    key(
        "upstream.backfill_days",
        Kind::Integer(0, 31),
        Is("1"),
        "Days before the very first start that are read; their events carry the flag backfill.",
    ),
    key(
        "upstream.details",
        Kind::Choice(&["wait", "follow", "off"]),
        Is("\"wait\""),
        "Rows of the account-wide list lack details: wait for them a little, let a complete copy follow, or do without.",
    ),
    key(
        "upstream.details_wait_ms",
        Kind::Integer(0, 10_000),
        Is("800"),
        "Longest wait for details, milliseconds.",
    ),
    key(
        "upstream.sessions",
        Kind::Boolean,
        Is("true"),
        "Read the sessions of SIMs and the SIMs of devices too, told as session_* and sim_linked; at most a fifth of the requests.",
    ),
    key(
        "ingest.late_after_s",
        Kind::Seconds(1, 86_400),
        Is("300"),
        "Events observed later than this after their time are flagged late, seconds.",
    ),
    key(
        "ingest.lateness",
        Kind::Seconds(60, 7200),
        Is("\"10m\""),
        "How late an event may show up in the API and still be found by sweeps; more costs requests.",
    ),
    key(
        "bus.kind",
        Kind::Choice(&["embedded", "nats"]),
        Is("\"embedded\""),
        "Where events are made durable: in files of this gateway's own, or on NATS JetStream, for several gateways.",
    ),
    key(
        "bus.embedded.path",
        Kind::Path,
        Is("\"./simcast-data\""),
        "Directory of the log, made when missing.",
    ),
    key(
        "bus.embedded.retention_days",
        Kind::Integer(1, 3650),
        Is("7"),
        "Days that events are kept; at least backfill_days.",
    ),
    key(
        "bus.embedded.retention_bytes",
        Kind::Size(64 << 20, 64 << 40),
        Is("\"10GiB\""),
        "Bytes that events may take; the oldest go first.",
    ),
    key(
        "bus.nats.urls",
        Kind::NatsUrls,
        Unset("[\"nats://127.0.0.1:4222\"]"),
        "NATS servers, one or more of the same cluster; nats:// or tls://, user:password@ or token@ before the host. Required with bus.kind = \"nats\".",
    ),
    key(
        "bus.nats.credentials_file",
        Kind::Path,
        Unset("\"/run/secrets/simcast.creds\""),
        "JWT and seed as \"nsc generate creds\" writes them; read anew at each reconnect.",
    ),
    key(
        "bus.nats.nkey_file",
        Kind::Path,
        Unset("\"/run/secrets/simcast.nk\""),
        "Seed of an nkey, in place of credentials_file.",
    ),
    key(
        "bus.nats.tls_ca",
        Kind::Path,
        Unset("\"/run/secrets/nats-ca.pem\""),
        "Certificates that the servers' own are checked against, in place of the system's.",
    ),
    key(
        "bus.nats.tls_cert",
        Kind::Path,
        Unset("\"/run/secrets/nats-client.pem\""),
        "Client certificate, with tls_key.",
    ),
    key("bus.nats.tls_key", Kind::Path, Unset("\"/run/secrets/nats-client.key\""), "Its key."),
    key(
        "bus.nats.stream",
        Kind::StreamName,
        Is("\"SIMCAST\""),
        "Name of the stream, and first part of its key-value buckets' names.",
    ),
    key(
        "bus.nats.subject_prefix",
        Kind::SubjectPrefix,
        Is("\"simcast\""),
        "First part of its subjects: <prefix>.events.<event_type>.<iccid>.<device>.",
    ),
    key(
        "bus.nats.replicas",
        Kind::Integer(1, 5),
        Is("1"),
        "Servers that hold each event: 1, or 3 or 5 in a cluster of as many.",
    ),
    key(
        "bus.nats.retention_days",
        Kind::Integer(1, 3650),
        Is("7"),
        "Days that the stream keeps events; at least backfill_days.",
    ),
    key(
        "bus.nats.retention_bytes",
        Kind::Size(64 << 20, 64 << 40),
        Is("\"10GiB\""),
        "Bytes that events may take on each server that holds them; the oldest go first.",
    ),
    key(
        "bus.nats.cache_path",
        Kind::Path,
        Is("\"./simcast-data/nats\""),
        "Directory of this gateway's copy of the stream, which all reads use. May be lost: it is filled anew.",
    ),
    key(
        "bus.nats.monitoring_url",
        Kind::Url,
        Unset("\"http://127.0.0.1:8222\""),
        "Monitoring port of a NATS server: only there can be read how often it syncs.",
    ),
    key(
        "http.listen",
        Kind::Address,
        Is("\"127.0.0.1:8080\""),
        "REST, WebSocket, Server-Sent Events and the console.",
    ),
    key(
        "http.allowed_origins",
        Kind::Origins,
        Is("[]"),
        "Origins besides the gateway's own whose pages may call it, here and by grpc-web.",
    ),
    key(
        "http.allowed_hosts",
        Kind::Hosts,
        Is("[]"),
        "Names under which the gateway is reached, besides loopback names and the listen address.",
    ),
    key("grpc.listen", Kind::Address, Is("\"127.0.0.1:50051\""), "gRPC and grpc-web."),
    key(
        "grpc.reflection",
        Kind::Boolean,
        Is("true"),
        "Whether clients such as grpcurl may ask for the schema.",
    ),
    key("admin.listen", Kind::Address, Is("\"127.0.0.1:9090\""), "/healthz, /readyz and /metrics."),
    key(
        "auth.pseudonym_key",
        Kind::Secret,
        Unset("\"replace-by-32-or-more-random-characters\""),
        "Key of the pseudonyms; required where a token has a field rule pseudonym. Changing it changes them all.",
    ),
    key(
        "webhooks.allowed_networks",
        Kind::Networks,
        Is("[]"),
        "Networks inside which receivers may be; all that lie inside are refused otherwise.",
    ),
    key(
        "webhooks.secret_key",
        Kind::Secret,
        Unset("\"base64 or hex of 32 random bytes\""),
        "Key under which secrets of webhooks are stored; this or secret_key_file. The same on every gateway.",
    ),
    key(
        "webhooks.secret_key_file",
        Kind::Path,
        Unset("\"/run/secrets/simcast-webhooks-key\""),
        "File whose only line is that key. With the embedded log one is made in its directory if none is given.",
    ),
    key(
        "webhooks.proxy",
        Kind::Secret,
        Unset("\"http://user:password@proxy.example.com:3128\""),
        "Egress proxy that speaks CONNECT; it then has to keep names from leading inside.",
    ),
    key(
        "webhooks.ca_file",
        Kind::Path,
        Unset("\"/etc/ssl/receivers-ca.pem\""),
        "Certificates that receivers' own are checked against, beside the system's.",
    ),
    key("webhooks.attempts_days", Kind::Integer(1, 3650), Is("7"), "Days that the log of attempts is kept."),
    key(
        "webhooks.attempts_bytes",
        Kind::Size(16 << 20, 1 << 40),
        Is("\"1GiB\""),
        "Bytes that the log of attempts may take on this gateway.",
    ),
    key(
        "sims.iccids",
        Kind::Iccids,
        Is("[]"),
        "SIMs to know of before any event names them; they are listed as source config.",
    ),
    key(
        "sims.file",
        Kind::Path,
        Unset("\"/etc/simcast/sims.txt\""),
        "File of such SIMs, one ICCID a line; # begins a comment.",
    ),
    key(
        "limits.connections",
        Kind::Integer(1, 1_000_000),
        Is("10000"),
        "Connections of all frontends together; more are refused. Each needs a file descriptor.",
    ),
    key(
        "limits.subscriptions_per_connection",
        Kind::Integer(1, 1000),
        Is("32"),
        "Subscriptions on one WebSocket or gRPC stream.",
    ),
    key("limits.filter_values", Kind::Integer(1, 100_000), Is("1000"), "Values in one list of a filter."),
    key(
        "limits.filter_values_body",
        Kind::Integer(1, 100_000),
        Is("10000"),
        "Values in one list of a filter that comes in the body of a REST request.",
    ),
    key("limits.url_bytes", Kind::Size(1 << 10, 1 << 20), Is("\"16KiB\""), "Longest URL of a request."),
    key("limits.body_bytes", Kind::Size(1 << 10, 64 << 20), Is("\"1MiB\""), "Longest body of a request."),
    key(
        "log.format",
        Kind::Choice(&["text", "json"]),
        Is("\"text\""),
        "Log lines for people or for machines.",
    ),
    key(
        "log.level",
        Kind::Level,
        Is("\"info\""),
        "error, warn, info, debug or trace; for one part: \"info,simcast::ingest=debug\".",
    ),
];

/// Finds a key.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether a path is a section, so that it must hold a table.
pub fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// What to do about a path that is no key.
pub fn advice(path: &str) -> String {
    let is_or_in =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if let Some((_, advice)) = ABSENT.iter().find(|(prefix, _)| is_or_in(prefix)) {
        return (*advice).to_owned();
    }
    let nearest = |candidates: &mut dyn Iterator<Item = (f64, String)>| {
        let best = candidates.max_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(score, _)| *score > 0.8).map(|(_, name)| format!("did you mean {name}?"))
    };
    let near = match path.rsplit_once('.') {
        // One word can only be a section.
        None => nearest(&mut KEYS.iter().map(|key| {
            let section = key.split().0;
            (strsim::jaro_winkler(section, path), format!("[{section}]"))
        })),
        Some((_, last)) => nearest(&mut KEYS.iter().map(|key| {
            // The right key in the wrong section is as likely as a slip within the right one.
            let alike = strsim::jaro_winkler(key.split().1, last) - 0.02;
            (strsim::jaro_winkler(key.path, path).max(alike), key.path.to_owned())
        })),
    };
    near.unwrap_or_else(|| "run \"simcast check --print-defaults\" for all keys".to_owned())
}
