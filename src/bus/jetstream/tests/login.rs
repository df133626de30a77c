//! Every way to log in, with real servers: right ones let the gateway work, wrong ones are told at once, by the key of
//! the configuration that is to be changed and without what is secret.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::{KeyPair, KeyPairType};
use rcgen::{CertificateParams, IsCa, Issuer};
use serde_json::json;

use super::*;
use crate::bus::jetstream::tests::server::{Options, address};

fn pair(kind: KeyPairType) -> KeyPair {
    let mut raw = [0; 32];
    getrandom::fill(&mut raw).unwrap();
    KeyPair::new_from_raw(kind, raw).unwrap()
}

async fn server(version: &'static str, login: &str, more: String) -> Server {
    Server::start_with(Options { more, login: login.to_owned(), ..Options::new(version) }).await
}

/// The same servers, but other letters before the host.
fn with_login(server: &Server, login: &str) -> Config {
    Config { urls: vec![format!("{login}{}", server.socket())], ..config(server, "S") }
}

/// All that the gateway does on NATS.
async fn works(config: Config, id: &str) {
    let bus = open(config).await;
    uses(&bus, id).await;
    bus.shutdown().await;
}

async fn uses(bus: &Arc<JetStream>, id: &str) {
    let lease = bus.lease("poller", Duration::from_secs(10)).await.unwrap();
    bus.append(vec![event(id)], Some(lease.fence)).await.unwrap();
    let found = async {
        while bus.log().find(id).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("the copy never has it");
    bus.kv_put(Bucket::State, id, "1".into()).await.unwrap();
    assert_eq!(bus.kv_list(Bucket::State, id).await.unwrap().len(), 1);
}

/// Is not let in, soon, and with an error that names all of `names`.
async fn refused(config: Config, names: &[&str]) {
    let began = tokio::time::Instant::now();
    let said = JetStream::open(config, clock::system()).await.unwrap_err();
    assert!(!said.retryable() && began.elapsed() < Duration::from_secs(5), "{said}");
    let said = said.to_string();
    assert!(names.iter().all(|name| said.contains(name)), "{names:?} in: {said}");
    assert!(!said.contains("s3cr3t"), "{said}");
}

async fn passwords_and_tokens(version: &'static str) {
    let one =
        server(version, "nats://me:s3cr3t%40@", "authorization { user: me, password: \"s3cr3t@\" }".into());
    let one = one.await;
    works(config(&one, "S"), "a").await;
    refused(with_login(&one, "nats://me:s3cr3t@"), &["bus.nats.urls", "\"me\""]).await;
    refused(with_login(&one, "nats://"), &["bus.nats.credentials_file", "bus.nats.nkey_file"]).await;
    let two = server(version, "nats://t-s3cr3t@", "authorization { token: t-s3cr3t }".into()).await;
    works(config(&two, "S"), "a").await;
    refused(with_login(&two, "nats://another-s3cr3t@"), &["bus.nats.urls", "token"]).await;
}

on_both!(a_password_or_a_token_in_an_address, passwords_and_tokens);

async fn nkey(version: &'static str) {
    let (known, unknown) = (pair(KeyPairType::User), pair(KeyPairType::User));
    let users = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", known.public_key());
    let server = server(version, "nats://", users).await;
    let file = server.directory().join("user.nk");
    let by_key = Config { nkey_file: Some(file.clone()), ..config(&server, "S") };
    std::fs::write(&file, format!("# a comment\n{}\n", known.seed().unwrap())).unwrap();
    works(by_key.clone(), "a").await;
    std::fs::write(&file, unknown.seed().unwrap()).unwrap();
    refused(by_key.clone(), &["bus.nats.nkey_file", &unknown.public_key()]).await;
    std::fs::write(&file, "SUnothing").unwrap();
    refused(by_key, &["bus.nats.nkey_file", "user.nk"]).await;
}

on_both!(a_file_with_an_nkey, nkey);

/// An operator of NATS with one account, as `nsc` would make them; servers keep them in memory.
struct Operator {
    account: KeyPair,
    configuration: String,
}

impl Operator {
    fn new() -> Self {
        let (operator, account) = (pair(KeyPairType::Operator), pair(KeyPairType::Account));
        let system = pair(KeyPairType::Account);
        let limits = |jetstream: i64| {
            json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1, "mem_storage": jetstream, "disk_storage": jetstream, "streams": jetstream,
                "consumer": jetstream,
            })
        };
        let of_account = |pair: &KeyPair, jetstream| {
            let claims = json!({"type": "account", "version": 2, "limits": limits(jetstream)});
            sign(&operator, &pair.public_key(), None, claims)
        };
        let itself = json!({"type": "operator", "version": 2, "system_account": system.public_key()});
        let itself = sign(&operator, &operator.public_key(), None, itself);
        let configuration = format!(
            "operator: {itself}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}",
            system.public_key(),
            system.public_key(),
            of_account(&system, 0),
            account.public_key(),
            of_account(&account, -1),
        );
        Self { account, configuration }
    }

    /// Writes the credentials of a new user, signed by `account`; gives its public key.
    fn credentials(account: &KeyPair, expires: Option<i64>, file: &Path) -> String {
        let user = pair(KeyPairType::User);
        let claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
        let jwt = sign(account, &user.public_key(), expires, claims);
        let seed = user.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        // As whoever rotates credentials should do it.
        let written = file.with_extension("new");
        std::fs::write(&written, text).unwrap();
        std::fs::rename(written, file).unwrap();
        user.public_key()
    }
}

/// A JWT of NATS' second version.
fn sign(issuer: &KeyPair, subject: &str, expires: Option<i64>, nats: serde_json::Value) -> String {
    let now = clock::system().now().as_second();
    let mut claims = json!({
        "jti": subject, "iat": now - 1, "iss": issuer.public_key(), "name": "test", "sub": subject, "nats": nats,
    });
    if let Some(expires) = expires {
        claims["exp"] = expires.into();
    }
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A file of credentials is read anew when the server ends the login, here because the old one expires.
async fn credentials(version: &'static str) {
    let operator = Operator::new();
    let server = server(version, "nats://", operator.configuration.clone()).await;
    let file = server.directory().join("simcast.creds");
    let by_file = Config { credentials_file: Some(file.clone()), ..config(&server, "S") };
    Operator::credentials(&pair(KeyPairType::Account), None, &file);
    refused(by_file.clone(), &["bus.nats.credentials_file", "simcast.creds"]).await;
    let in_seconds = |seconds: i64| Some(clock::system().now().as_second() + seconds);
    Operator::credentials(&operator.account, in_seconds(-5), &file);
    refused(by_file.clone(), &["bus.nats.credentials_file", "expired"]).await;

    let first = Operator::credentials(&operator.account, in_seconds(4), &file);
    let bus = open(by_file).await;
    uses(&bus, "a").await;
    let logged_in = async |user: &str| {
        let connections = server.monitoring("/connz?auth=true").await.unwrap_or_default();
        connections.contains(user)
    };
    assert!(logged_in(&first).await);
    // The old one runs out before the new one is there: the gateway says what is wrong, and waits.
    let until = |wanted: fn(Option<String>) -> bool| {
        let bus = Arc::clone(&bus);
        let waiting = async move {
            while !wanted(bus.health().unwritable) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting)
    };
    let told = |trouble: Option<String>| trouble.is_some_and(|trouble| trouble.contains("credentials_file"));
    until(told).await.expect("it is never said that the login is refused");
    let second = Operator::credentials(&operator.account, None, &file);
    until(|trouble| trouble.is_none()).await.expect("the new credentials are never used");
    uses(&bus, "b").await;
    assert!(logged_in(&second).await && !logged_in(&first).await);
    bus.shutdown().await;
}

on_both!(a_file_of_credentials_that_is_rotated, credentials);

/// A certificate authority in a directory.
struct Authority {
    issuer: Issuer<'static, rcgen::KeyPair>,
    pem: PathBuf,
    directory: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = directory.join(format!("{name}.pem"));
        std::fs::write(&pem, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), pem, directory: directory.to_owned() }
    }

    /// Certificate and key, as files.
    fn sign(&self, host: &str) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &self.issuer);
        let name = format!("{}-{host}", self.pem.file_stem().unwrap().to_string_lossy());
        let files = (self.directory.join(format!("{name}.crt")), self.directory.join(format!("{name}.key")));
        std::fs::write(&files.0, certificate.unwrap().pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

async fn tls(version: &'static str) {
    let directory = tempfile::tempdir().unwrap();
    let (ours, another) =
        (Authority::new(directory.path(), "ours"), Authority::new(directory.path(), "other"));
    let (certificate, key) = ours.sign(&address().to_string());
    let block = |more: &str| {
        format!("tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {:?}, {more} }}", ours.pem)
    };
    let one = server(version, "tls://", block("")).await;
    let trusting = |server: &Server, ca: &Authority, client: Option<(PathBuf, PathBuf)>| Config {
        tls_ca: Some(ca.pem.clone()),
        tls_client: client,
        ..config(server, "S")
    };
    works(trusting(&one, &ours, None), "a").await;
    refused(trusting(&one, &another, None), &["bus.nats.tls_ca (", "other.pem"]).await;
    refused(config(&one, "S"), &["set bus.nats.tls_ca"]).await;

    let two = server(version, "tls://", block("verify: true")).await;
    works(trusting(&two, &ours, Some(ours.sign("gateway"))), "a").await;
    refused(trusting(&two, &ours, None), &["bus.nats.tls_cert and bus.nats.tls_key"]).await;
    let foreign = trusting(&two, &ours, Some(another.sign("gateway")));
    refused(foreign, &["bus.nats.tls_cert (", "other-gateway.crt"]).await;

    let (certificate, key) = ours.sign("elsewhere");
    let named = format!("tls {{ cert_file: {certificate:?}, key_file: {key:?} }}");
    let three = server(version, "tls://", named).await;
    refused(trusting(&three, &ours, None), &["another name", "bus.nats.urls"]).await;
}

on_both!(encryption_and_certificates_on_both_sides, tls);
