//! Each mistake with its message; sources by precedence; secrets that stay secret.

use std::{collections::BTreeSet, fs, time::Duration};

use super::{
    schema::{Fallback, KEYS, Key},
    value::Kind,
    *,
};
use crate::event::policy::FieldRule;

const GOOD: &str =
    "[upstream]\nbase_url = \"https://api.example.com/v1/globalsim\"\napi_key = \"topsecret\"\n";
const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

struct Case {
    dir: tempfile::TempDir,
    sources: Sources,
}

impl Case {
    fn new(toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("simcast.toml");
        fs::write(&file, toml).unwrap();
        Self { dir, sources: Sources { file: Some(file), ..Sources::default() } }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((name.into(), value.into()));
        self
    }

    fn load(&self) -> Result<Config, Mistakes> {
        load(&self.sources)
    }

    /// The mistakes as shown, without the directory of the file.
    fn mistakes(&self) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        let mistakes = self.load().expect_err("a mistake was expected");
        mistakes.0.iter().map(|mistake| mistake.to_string().replace(&dir, "")).collect()
    }
}

/// `toml` after a configuration that is otherwise right has exactly this mistake.
fn check(toml: &str, expected: &str) {
    assert_eq!(Case::new(&format!("{GOOD}{toml}")).mistakes(), [expected], "{toml}");
}

#[test]
fn the_smallest_configuration_has_the_documented_defaults() {
    let config = Case::new(GOOD).load().unwrap();
    assert_eq!(config.upstream.name, "default");
    assert_eq!((config.upstream.requests_per_minute, config.upstream.limit_per_minute), (400, 500));
    assert_eq!((config.upstream.auth, config.upstream.details), (AuthStyle::Auto, Details::Wait));
    assert_eq!(config.upstream.details_wait, Duration::from_millis(800));
    assert_eq!(
        config.ingest,
        Ingest { late_after: Duration::from_secs(300), lateness: Duration::from_secs(600) }
    );
    assert_eq!((config.embedded.retention_days, config.embedded.retention_bytes), (7, 10 << 30));
    assert_eq!(config.http.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.grpc, Grpc { listen: "127.0.0.1:50051".parse().unwrap(), reflection: true });
    assert_eq!(config.admin.listen, "127.0.0.1:9090".parse().unwrap());
    assert_eq!((config.limits.connections, config.limits.subscriptions_per_connection), (10_000, 32));
    assert_eq!((config.limits.url_bytes, config.limits.body_bytes), (16 << 10, 1 << 20));
    assert!(config.auth.tokens.is_empty() && config.warnings.is_empty());
}

#[test]
fn mistakes_in_one_key_are_named_with_place_and_cure() {
    for (toml, expected) in [
        (
            "request_per_minute = 300",
            "upstream.request_per_minute (simcast.toml:4): there is no such key; did you mean upstream.requests_per_minute?",
        ),
        (
            "requests_per_minute = \"fast\"",
            "upstream.requests_per_minute (simcast.toml:4): a text does not fit here; give a whole number from 10 to 100000",
        ),
        (
            "requests_per_minute = 5",
            "upstream.requests_per_minute (simcast.toml:4): 5 is out of range; give a whole number from 10 to 100000",
        ),
        (
            "requests_per_minute = 501",
            "upstream.requests_per_minute (simcast.toml:4): requests_per_minute, 501, is more than limit_per_minute, 500; set upstream.requests_per_minute to 500 or less",
        ),
        (
            "requests_per_minute = 9.5",
            "upstream.requests_per_minute (simcast.toml:4): a fraction does not fit here; give a whole number from 10 to 100000",
        ),
        (
            "auth = \"basic\"",
            "upstream.auth (simcast.toml:4): \"basic\" is unknown; give one of auto, bearer, x-api-key",
        ),
        (
            "name = \"a b\"",
            "upstream.name (simcast.toml:4): \"a b\" is no name; give 1 to 64 characters of A-Z a-z 0-9 _ . -",
        ),
        (
            "api_key_file = \"/run/key\"",
            "upstream.api_key (simcast.toml:3): api_key and api_key_file are both set; leave one of them out",
        ),
        (
            "\n[http]\nlisten = \"localhost:8080\"",
            "http.listen (simcast.toml:6): \"localhost:8080\" is no address; give an IP address and port such as 127.0.0.1:8080 or [::1]:8080",
        ),
        (
            "[http]\nlisten = \"0.0.0.0:8080\"",
            "http.listen (simcast.toml:5): 0.0.0.0:8080 can be reached from other machines, and nobody needs a token; run \"simcast token new\" and paste what it prints, or listen on 127.0.0.1",
        ),
        (
            "[admin]\nlisten = \"[::]:9090\"",
            "admin.listen (simcast.toml:5): [::]:9090 can be reached from other machines, and nobody needs a token; run \"simcast token new\" and paste what it prints, or listen on 127.0.0.1",
        ),
        (
            "[grpc]\nlisten = \"127.0.0.1:8080\"",
            "grpc.listen (simcast.toml:5): 127.0.0.1:8080 is the address of http.listen too; give another port",
        ),
        (
            "[http]\nallowed_origins = [\"*\"]",
            "http.allowed_origins (simcast.toml:5): \"*\" would let any page in a user's browser read the stream; give scheme, host and port as the browser sends them, such as https://console.example.com",
        ),
        (
            "[http]\nallowed_hosts = [\"https://a.example\"]",
            "http.allowed_hosts (simcast.toml:5): \"https://a.example\" is no host name; give a name such as simcast.example.com, without port",
        ),
        (
            "[bus]\nkind = \"nats\"",
            "bus.nats.urls: no NATS server is given; set it, or SIMCAST__BUS__NATS__URLS, to nats://host:4222",
        ),
        (
            "[bus]\nkind = \"kafka\"",
            "bus.kind (simcast.toml:5): \"kafka\" is unknown; give one of embedded, nats",
        ),
        (
            "[bus.nats]\nurls = [\"http://localhost\"]",
            "bus.nats.urls (simcast.toml:5): it is no address of a NATS server; give nats://host:port or tls://host:port, with user:password@ or token@ before the host where it wants them",
        ),
        (
            "[bus.nats]\nurl = [\"nats://localhost\"]",
            "bus.nats.url (simcast.toml:5): there is no such key; did you mean bus.nats.urls?",
        ),
        (
            "[bus.nats]\nstream = \"sim.cast\"",
            "bus.nats.stream (simcast.toml:5): \"sim.cast\" is no name of a stream; give 1 to 32 characters of A-Z a-z 0-9 _ -",
        ),
        (
            "[bus.nats]\nsubject_prefix = \"sim..cast\"",
            "bus.nats.subject_prefix (simcast.toml:5): \"sim..cast\" begins no subject; give words of A-Z a-z 0-9 _ - with dots between, 64 characters at most",
        ),
        (
            "[bus]\nkind = \"nats\"\n[bus.nats]\nurls = [\"localhost\"]\nreplicas = 2",
            "bus.nats.replicas (simcast.toml:8): of 2 servers no more may fail than of 1; give 1, 3 or 5",
        ),
        (
            "[bus]\nkind = \"nats\"\n[bus.nats]\nurls = [\"localhost\"]\ntls_key = \"/dev/null\"",
            "bus.nats.tls_key (simcast.toml:8): it is of no use without bus.nats.tls_cert; set bus.nats.tls_cert too",
        ),
        (
            "[bus]\nkind = \"nats\"\n[bus.nats]\nurls = [\"localhost\"]\nnkey_file = \"/nowhere/x\"",
            "bus.nats.nkey_file (simcast.toml:8): /nowhere/x can't be read: No such file or directory (os error 2); give a file that this user may read",
        ),
        (
            "[bus.embedded]\nretention_bytes = \"10GB\"",
            "bus.embedded.retention_bytes (simcast.toml:5): \"10GB\" can't be read; give a size from 64MiB to 64TiB",
        ),
        (
            "[bus.embedded]\nretention_days = 2\n[upstream2]",
            "upstream2 (simcast.toml:6): there is no such key; did you mean [upstream]?",
        ),
        (
            "backfill_days = 8",
            "upstream.backfill_days (simcast.toml:4): 7 days are kept but 8 are read at the first start; set bus.embedded.retention_days to 8 or more, or lower upstream.backfill_days",
        ),
        (
            "[ingest]\nlateness = \"3h\"",
            "ingest.lateness (simcast.toml:5): 3h is out of range; give a time from 1m to 2h",
        ),
        (
            "[log]\nlevel = \"loud\"",
            "log.level (simcast.toml:5): \"loud\" is no log level: use one of off, error, warn, info, debug, trace; give a level such as \"info\" or \"info,simcast=debug\"",
        ),
        (
            "[auth]\npseudonym_key = \"short\"",
            "auth.pseudonym_key (simcast.toml:5): it is shorter than 32 characters, so that pseudonyms could be guessed; give 32 or more random characters",
        ),
        (
            "[auth]\ntokens = 3",
            "auth.tokens (simcast.toml:5): it is no list of tables; paste what \"simcast token new\" prints",
        ),
        (
            "[auth.jwt]\nissuer = \"x\"",
            "auth.jwt (simcast.toml:4): there is no such key; this build knows tokens only; use [[auth.tokens]]",
        ),
    ] {
        check(toml, expected);
    }
    assert_eq!(
        Case::new("upstream = 3").mistakes()[0],
        "upstream (simcast.toml:1): it is a section; write [upstream] and its keys below"
    );
}

#[test]
fn an_empty_configuration_says_what_is_needed() {
    let mistakes = load(&Sources::default()).unwrap_err().0;
    let keys: Vec<_> = mistakes.iter().map(|mistake| mistake.key.as_str()).collect();
    assert_eq!(keys, ["upstream.base_url", "upstream.api_key"]);
}

#[test]
fn urls_are_checked_and_trimmed() {
    let url = |url: &str| {
        let toml = format!("[upstream]\napi_key = \"k\"\nbase_url = \"{url}\"\n");
        Case::new(&toml).load().map(|config| (config.upstream.base_url, config.warnings.len()))
    };
    assert_eq!(
        url("https://api.example.com/v1/globalsim/").unwrap(),
        ("https://api.example.com/v1/globalsim".into(), 0)
    );
    assert_eq!(url("http://127.0.0.1:9/v1").unwrap().1, 0);
    assert_eq!(url("http://[::1]:9/v1").unwrap().1, 0);
    assert_eq!(url("http://api.example.com/v1").unwrap().1, 1, "plain HTTP with a key deserves a warning");
    for bad in [
        "ftp://x/",
        "api.example.com",
        "https://",
        "https://u:p@x/",
        "https://x/?a=1",
        "https://x/#a",
        "https://x/a b",
    ] {
        let mistakes = url(bad).unwrap_err().0;
        assert_eq!(mistakes.len(), 1, "{bad}: {mistakes:?}");
        assert_eq!(mistakes[0].key, "upstream.base_url", "{bad}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let toml = "[upstream]\nrequests_per_minute = 1\nnam = \"x\"\n[http]\nlisten = 8080\n[[auth.tokens]]\nname = \"a b\"\nrole = []\n";
    let shown = Case::new(toml).env("SIMCAST__GRPC__LISTEN", "x").mistakes();
    let keys: BTreeSet<_> =
        shown.iter().map(|line| line.split(' ').next().unwrap().trim_end_matches(':')).collect();
    let expected = [
        "auth.tokens[0].name",
        "auth.tokens[0].role",
        "auth.tokens[0].roles",
        "auth.tokens[0].sha256",
        "grpc.listen",
        "http.listen",
        "upstream.api_key",
        "upstream.base_url",
        "upstream.nam",
        "upstream.requests_per_minute",
    ];
    assert_eq!(keys, BTreeSet::from(expected));
    assert_eq!(shown.len(), expected.len(), "{shown:#?}");
}

#[test]
fn syntax_errors_have_a_line_and_do_not_hide_the_rest() {
    let shown = Case::new(&format!("{GOOD}auth = \nnam = \"x\"\n")).mistakes();
    assert!(shown.iter().any(|line| line.starts_with("TOML (simcast.toml:4): ")), "{shown:#?}");
    assert!(shown.iter().any(|line| line.starts_with("upstream.nam (simcast.toml:5): ")), "{shown:#?}");
}

#[test]
fn a_missing_file_is_a_mistake() {
    let sources = Sources { file: Some("/nonexistent/simcast.toml".into()), ..Sources::default() };
    let mistakes = load(&sources).unwrap_err().0;
    assert!(mistakes[0].problem.contains("can't be read"), "{mistakes:?}");
}

#[test]
fn the_environment_wins_over_the_file_and_flags_win_over_both() {
    let mut case = Case::new(&format!("{GOOD}name = \"file\"\n[log]\nlevel = \"debug\"\n"))
        .env("SIMCAST__UPSTREAM__NAME", "env")
        .env("SIMCAST__HTTP__ALLOWED_ORIGINS", "https://a.example, https://B.example:8443")
        .env("SIMCAST__GRPC__REFLECTION", "false")
        .env("SIMCAST__BUS__EMBEDDED__RETENTION_BYTES", "1GiB")
        .env("OTHER__UPSTREAM__NAME", "no");
    case.sources.flag("http.listen", "127.0.0.1:1", "--http");
    let config = case.load().unwrap();
    assert_eq!(config.upstream.name, "env");
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.http.allowed_origins, ["https://a.example", "https://b.example:8443"]);
    assert!(!config.grpc.reflection);
    assert_eq!(config.embedded.retention_bytes, 1 << 30);
    assert_eq!(config.http.listen, "127.0.0.1:1".parse().unwrap());
    let origin =
        |key: &str| config.effective.iter().find(|shown| shown.key == key).unwrap().origin.to_string();
    assert_eq!(origin("upstream.name"), "SIMCAST__UPSTREAM__NAME");
    assert_eq!(origin("http.listen"), "--http");
    assert_eq!(origin("grpc.listen"), "default");
    assert!(origin("log.level").ends_with("simcast.toml:6"), "{}", origin("log.level"));
}

#[test]
fn a_mistyped_variable_is_a_mistake_too() {
    assert_eq!(
        Case::new(GOOD).env("SIMCAST__UPSTREAM__BASEURL", "x").mistakes(),
        [
            "upstream.baseurl (SIMCAST__UPSTREAM__BASEURL): there is no such key; did you mean upstream.base_url?"
        ]
    );
    assert_eq!(
        Case::new(GOOD).env("SIMCAST__GRPC__REFLECTION", "yes").mistakes(),
        [
            "grpc.reflection (SIMCAST__GRPC__REFLECTION): \"yes\" is neither true nor false; give true or false"
        ]
    );
}

#[test]
fn secrets_are_never_shown() {
    let key = "k".repeat(40);
    let toml = format!(
        "{GOOD}[auth]\npseudonym_key = \"{key}\"\n[[auth.tokens]]\nname = \"a\"\nsha256 = \"{HASH}\"\nroles = [\"read\"]\n\
         fields = {{ iccid = \"pseudonym\" }}\n"
    );
    let config = Case::new(&toml).load().unwrap();
    let shown = format!("{config:?}");
    for secret in ["topsecret", &key, format!("{:?}", key.as_bytes()).trim_matches(['[', ']'])] {
        assert!(!shown.contains(secret), "{shown}");
    }
    for wrong in ["top\\nsecret", "  "] {
        let case = Case::new(&format!("[upstream]\nbase_url = \"https://x\"\napi_key = \"{wrong}\"\n"));
        let shown = format!("{:?}", case.load().unwrap_err());
        assert!(!shown.contains("top"), "{shown}");
    }
}

#[test]
fn the_key_file_is_read_when_the_configuration_is_checked() {
    let case = Case::new("");
    let file = case.dir.path().join("key");
    let toml = format!("[upstream]\nbase_url = \"https://x\"\napi_key_file = {:?}\n", file.to_str().unwrap());
    fs::write(case.sources.file.as_ref().unwrap(), toml).unwrap();
    assert!(case.mistakes()[0].contains("key can't be read: "), "{:?}", case.mistakes());
    fs::write(&file, "two\nlines\n").unwrap();
    assert!(case.mistakes()[0].contains("must be one line"), "{:?}", case.mistakes());
    fs::write(&file, "topsecret\n").unwrap();
    assert_eq!(case.load().unwrap().upstream.api_key, KeySource::File(file));
}

#[test]
fn tokens_are_read_with_filter_fields_and_expiry() {
    let toml = format!(
        "{GOOD}[http]\nlisten = \"0.0.0.0:8080\"\n[auth]\npseudonym_key = \"{}\"\n[[auth.tokens]]\nname = \"partner\"\nsha256 = \"{HASH}\"\n\
         roles = [\"read\", \"webhooks\"]\nfilter = {{ country = [\"NO\"] }}\nfields = {{ iccid = \"pseudonym\", details = \"keep\" }}\nexpires = 2027-01-31T00:00:00Z\n",
        "p".repeat(32)
    );
    let config = Case::new(&toml).load().unwrap();
    let [token] = &config.auth.tokens[..] else { panic!("{:?}", config.auth) };
    assert_eq!(hex::encode(token.sha256), HASH);
    assert_eq!((token.roles.read, token.roles.webhooks, token.roles.admin), (true, true, false));
    assert_eq!(token.filter.as_ref().unwrap().to_json(), serde_json::json!({"country": ["no"]}));
    let fields = token.fields.as_ref().unwrap();
    assert_eq!(
        (fields.iccid, fields.msisdn, fields.details, fields.extra),
        (FieldRule::Pseudonym, FieldRule::Keep, true, false)
    );
    assert_eq!(&*fields.key, "p".repeat(32).as_bytes());
    assert_eq!(token.expires, Some("2027-01-31T00:00:00Z".parse().unwrap()));
}

#[test]
fn tokens_may_come_from_the_environment() {
    let list = format!("[{{ name = \"a\", sha256 = \"{HASH}\", roles = [\"read\"] }}]");
    let config = Case::new(GOOD).env("SIMCAST__AUTH__TOKENS", &list).load().unwrap();
    assert_eq!(config.auth.tokens[0].name, "a");
}

#[test]
fn mistakes_in_tokens_are_named() {
    let token = |lines: &str| {
        format!("[[auth.tokens]]\nname = \"a\"\nroles = [\"read\"]\nsha256 = \"{HASH}\"\n{lines}")
    };
    for (toml, expected) in [
        (
            token("filter = { iccid = [\"12\"] }"),
            "auth.tokens[0].filter.iccid (simcast.toml:4): \"12\" is not an ICCID: 18 to 22 digits are needed, spaces and a final F are allowed; correct it",
        ),
        (
            token("filter = { contry = [\"NO\"] }"),
            "auth.tokens[0].filter.contry (simcast.toml:4): \"contry\" is no filter key; did you mean country?",
        ),
        (
            token("fields = { iccid = \"hide\" }"),
            "auth.tokens[0].fields.iccid (simcast.toml:4): there is no such rule; give keep, drop, last4 or pseudonym",
        ),
        (
            token("fields = { iccid = \"pseudonym\" }"),
            "auth.tokens[0].fields.iccid (simcast.toml:4): pseudonyms need a key; set auth.pseudonym_key to 32 or more random characters",
        ),
        (
            token("expires = 2027-01-31"),
            "auth.tokens[0].expires (simcast.toml:4): it is no time with a zone; give for example 2027-01-31T00:00:00Z",
        ),
        (
            token("").replace(HASH, "sct_abc"),
            "auth.tokens[0].sha256 (simcast.toml:4): this is a token, not its hash: treat it as exposed; give the 64 hex digits that \"simcast token new\" prints",
        ),
        (
            token("").replace("[\"read\"]", "[\"root\"]"),
            "auth.tokens[0].roles (simcast.toml:4): \"root\" is no role; give a list of read, webhooks, admin",
        ),
        (
            format!("{}{}", token(""), token("").replace("\"a\"", "\"b\"")),
            "auth.tokens[1].sha256 (simcast.toml:8): another token has the same; make one with \"simcast token new\"",
        ),
    ] {
        check(&toml, expected);
    }
}

/// A value that is legal and not the default.
fn other(key: &Key) -> String {
    match key.kind {
        Kind::Text | Kind::Name | Kind::Path => "other".into(),
        Kind::Secret if key.path == "webhooks.secret_key" => "5a".repeat(32),
        Kind::Secret if key.path == "webhooks.proxy" => "http://other.example:3128".into(),
        Kind::Secret => "o".repeat(32),
        Kind::Choice(choices) => {
            let default = match key.default {
                Fallback::Is(text) => text.trim_matches('"'),
                Fallback::Unset(_) => "",
            };
            (*choices.iter().find(|choice| **choice != default).unwrap_or(&default)).to_owned()
        }
        Kind::Integer(_, max) if key.path == "upstream.limit_per_minute" => max.to_string(),
        Kind::Integer(min, max) => (min + 7).min(max).to_string(),
        Kind::Size(_, max) | Kind::Seconds(_, max) => max.to_string(),
        Kind::Boolean => "false".into(),
        Kind::Address => "127.0.0.1:1".into(),
        Kind::Url => "https://other.example".into(),
        Kind::Origins => "https://other.example".into(),
        Kind::Iccids => "8901234567890123456".into(),
        Kind::Hosts => "other.example".into(),
        Kind::Networks => "10.1.0.0/16".into(),
        Kind::NatsUrls => "nats://other.example".into(),
        Kind::StreamName | Kind::SubjectPrefix => "other".into(),
        Kind::Level => "trace".into(),
    }
}

/// NATS wants more, files must exist, and a key is used by tokens only: they have tests of their own.
const APART: [&str; 6] = [
    "bus.kind",
    "upstream.api_key_file",
    "auth.pseudonym_key",
    "webhooks.secret_key_file",
    "webhooks.ca_file",
    "sims.file",
];

#[test]
fn every_key_of_the_table_reaches_the_configuration() {
    let bare = |config: Config| format!("{:?}", Config { effective: Vec::new(), ..config });
    let base = Case::new(GOOD).load().unwrap();
    for key in KEYS.iter().filter(|key| !APART.contains(&key.path)) {
        let mut case = Case::new(GOOD).env(&key.env(), &other(key));
        if let Some(twin) = match key.path {
            "bus.nats.tls_cert" => Some("SIMCAST__BUS__NATS__TLS_KEY"),
            "bus.nats.tls_key" => Some("SIMCAST__BUS__NATS__TLS_CERT"),
            _ => None,
        } {
            case = case.env(twin, "twin");
        }
        let changed = case.load().unwrap();
        // The key's debug output is blotted out, so that it is compared apart.
        let differs =
            changed.upstream.api_key != base.upstream.api_key || bare(changed) != bare(base.clone());
        assert!(differs, "{} changes nothing", key.path);
    }
}

#[test]
fn all_that_is_wrong_about_nats_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let toml = format!(
        "{GOOD}\n[bus]\nkind = \"nats\"\n[bus.nats]\nurls = [\"http://localhost\"]\nreplicas = 4\n\
         credentials_file = \"/nowhere/c\"\nnkey_file = {file:?}\ntls_ca = \"/nowhere/ca\"\ntls_cert = {file:?}\n\
         cache_path = \"{}/below\"\nstream = \"a b\"\nsubject_prefix = \"*\"\nretention_bytes = \"1KiB\"\n\
         monitoring_url = \"localhost\"",
        file.display()
    );
    let Mistakes(mistakes) = Case::new(&toml).load().unwrap_err();
    let mut keys: Vec<_> = mistakes.iter().filter_map(|one| one.key.strip_prefix("bus.nats.")).collect();
    keys.sort_unstable();
    let wrong = [
        "cache_path",
        "credentials_file",
        "monitoring_url",
        "nkey_file",
        "replicas",
        "retention_bytes",
        "stream",
        "subject_prefix",
        "tls_ca",
        "tls_cert",
        "urls",
    ];
    assert_eq!(keys, wrong, "{mistakes:#?}");
    let cache = mistakes.iter().find(|one| one.key == "bus.nats.cache_path").unwrap();
    assert!(cache.problem.ends_with("/file: not a directory"), "{}", cache.problem);
}

#[test]
fn a_login_that_is_not_used_is_told() {
    let toml = format!(
        "{GOOD}\n[bus]\nkind = \"nats\"\n[bus.nats]\nurls = [\"nats://me:pass@127.0.0.1\"]\nnkey_file = \"/dev/null\""
    );
    let warnings = Case::new(&toml).load().unwrap().warnings;
    assert!(warnings.iter().any(|one| one.contains("nkey_file is used instead")), "{warnings:?}");
}

#[test]
fn nats_is_configured_and_its_passwords_are_not_shown() {
    let toml = format!(
        "{GOOD}\n[bus]\nkind = \"nats\"\n[bus.nats]\nurls = [\"nats://me:pass@127.0.0.1:4222/\", \"tls://n2\"]"
    );
    let config = Case::new(&toml).load().unwrap();
    assert_eq!(config.bus, BusKind::Nats);
    assert_eq!(config.nats.urls, ["nats://me:pass@127.0.0.1:4222", "tls://n2"]);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let shown = config.effective.iter().find(|shown| shown.key == "bus.nats.urls").unwrap();
    assert_eq!(shown.value.as_deref(), Some("[\"nats://***@127.0.0.1:4222\", \"tls://n2\"]"));
    assert!(!format!("{config:?}").contains("pass@"), "{config:?}");
    let elsewhere = toml.replace("127.0.0.1", "nats.example");
    let warnings = Case::new(&elsewhere).load().unwrap().warnings;
    assert!(
        warnings.iter().any(|w| w.contains("nats://***@nats.example:4222 is another machine")),
        "{warnings:?}"
    );
    let unused = Case::new(&toml.replace("kind = \"nats\"", "kind = \"embedded\"")).load().unwrap();
    assert!(unused.warnings.iter().any(|w| w.contains("NATS is not used")), "{:?}", unused.warnings);
}

#[test]
fn the_default_file_is_right_and_complete() {
    let text = default_file();
    let uncommented: String = text
        .lines()
        .take_while(|line| !line.starts_with("#[[auth.tokens]]"))
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        // Of two ways to give a key one is enough, and examples of keys and certificates are none.
        .filter(|line| {
            !["api_key_file", "secret_key", "ca_file", "file ="].iter().any(|name| line.starts_with(name))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let example = Case::new(&uncommented).load().unwrap();
    let mut changed: Vec<_> = Vec::new();
    let plain = Case::new(GOOD).load().unwrap();
    for (one, two) in example.effective.iter().zip(&plain.effective) {
        if one.value != two.value {
            changed.push(one.key.as_str());
        }
    }
    let examples = KEYS.iter().filter(|key| matches!(key.default, Fallback::Unset(_)));
    let left_out = ["upstream.api_key", "webhooks.secret_key", "webhooks.ca_file", "sims.file"];
    let examples =
        examples.map(|key| key.path).filter(|path| !left_out.iter().any(|one| path.starts_with(one)));
    assert_eq!(changed, examples.collect::<Vec<_>>(), "all others are defaults");
    assert_eq!(load(&Case::new(&text).sources).unwrap_err().0.len(), 2, "as printed it sets nothing");
    for key in &KEYS {
        assert!(text.contains(&key.env()) && text.contains(key.doc), "{}", key.path);
    }
}
