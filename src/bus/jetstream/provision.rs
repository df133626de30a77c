//! The stream and its buckets: made where they are missing, read back, and compared with what is needed.
//!
//! Servers before 2.12 ignore settings that they do not know, accounts have limits of their own, and somebody may have
//! made or changed the stream by hand. So nothing is believed that was not read back. A difference that would break a
//! promise stops the start; another is told with its cure. Nothing that exists is changed from here: whoever set it so
//! may have had a reason, and changing what stored events depend on is an operator's decision.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    self,
    context::{CreateStreamErrorKind, GetStreamErrorKind},
    stream::{
        Compression, Config as StreamConfig, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType,
    },
};
use serde::Deserialize;

use super::{Config, OpenError, kv::Buckets};
use crate::bus::Bucket;

/// Metadata of the stream. The incarnation is drawn when it is made: a stream that is deleted and made again is
/// another one, though its sequences begin anew.
const INCARNATION: &str = "simcast_incarnation";
const SCHEMA: &str = "simcast_schema";
const VERSION: &str = "simcast_version";
/// A stream that a migration has made: gateways use it only once that has [finished](super::migrate::finished).
pub(super) const MIGRATION: &str = "simcast_migration";
/// Grows with every change of subjects, bodies or headers that an older gateway could not read.
const SCHEMA_NOW: &str = "1";

/// How long the server itself refuses an id twice: the least that it permits. The gateways know ids for as long as
/// events are kept (see [`append`](super::append)), and a server (2.15.1) has been seen to refuse an id that is not in
/// the stream until the window was over.
pub(super) const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);
/// Consumers of the stream: one for each gateway, and those of other programs. From 2.15 on a server has its own
/// limit of 1,000 where none is given.
const CONSUMERS_MAX: i32 = 1_000;
/// Writes of an endpoint that are kept, to see what was changed.
const ENDPOINT_HISTORY: i64 = 5;
/// A value of more bytes is not ours: positions of endpoints with full exception sets are some 100 KB.
const VALUE_BYTES_MAX: i32 = 1 << 20;
/// What a server says that is asked to keep more bytes than it has (`JSStorageResourcesExceededErr`).
const NO_STORAGE: jetstream::ErrorCode = jetstream::ErrorCode::STORAGE_RESOURCES_EXCEEDED;
/// How long the monitoring port may take to answer.
const MONITORING_TIMEOUT: Duration = Duration::from_secs(3);
/// More of an answer of it is not read.
const MONITORING_BYTES_MAX: u64 = 1 << 20;

/// All there are.
pub(super) const BUCKETS: [Bucket; 4] = [Bucket::State, Bucket::Endpoints, Bucket::Cursors, Bucket::Lease];

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field} is {have}, not {want}; {cure}")]
pub struct Drift {
    /// Stream or bucket.
    pub object: String,
    /// As the `nats` command names it.
    pub field: &'static str,
    /// What is needed.
    pub want: String,
    /// What there is.
    pub have: String,
    /// What to do.
    pub cure: String,
    /// Whether a promise would be broken.
    pub harmful: bool,
}

/// What an acknowledged append survives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durability {
    /// One sentence.
    pub says: String,
    /// Where that is less than one would expect: what may be lost, and the cure.
    pub warning: Option<String>,
}

/// What the start found.
#[derive(Debug, Clone)]
pub struct Provisioned {
    /// Identity of the stream.
    pub incarnation: u64,
    /// Whether it was made now.
    pub created: bool,
    /// Differences that break no promise.
    pub drift: Vec<Drift>,
    /// What an acknowledged append survives.
    pub durability: Durability,
}

/// Makes what is missing, and compares.
///
/// # Errors
/// [`OpenError`].
pub(super) async fn provision(
    config: &Config,
    context: &jetstream::Context,
    server_version: &str,
    incarnation: u64,
) -> Result<Provisioned, OpenError> {
    let wanted = wanted_stream(config, incarnation);
    let (found, created) = get_or_create(context, &wanted).await?;
    let mut drift = compare(&wanted, &found);
    for bucket in BUCKETS {
        let wanted = wanted_bucket(config, bucket);
        let (found, _) = get_or_create(context, &wanted).await?;
        drift.extend(compare_bucket(&wanted, &found));
    }
    let incarnation = incarnation_of(&found).unwrap_or_default();
    if found.metadata.contains_key(MIGRATION) {
        let buckets = Buckets::new(context.clone(), &config.stream);
        let finished = super::migrate::finished(&buckets, incarnation).await.map_err(|error| {
            let object = Buckets::name(&config.stream, Bucket::State);
            OpenError::Provision { object, reason: error.to_string() }
        })?;
        if finished.is_none() {
            return Err(OpenError::Migrating { stream: found.name });
        }
    }
    let harmful: Vec<Drift> = drift.iter().filter(|one| one.harmful).cloned().collect();
    if !harmful.is_empty() {
        return Err(OpenError::Drift(harmful));
    }
    let durability = durability_of(config, &found, server_version).await;
    Ok(Provisioned { incarnation, created, drift, durability })
}

/// What an append to a stream survives, for which the monitoring port is asked where one is given.
pub(super) async fn durability_of(
    config: &Config,
    stream: &StreamConfig,
    server_version: &str,
) -> Durability {
    let sync = match &config.monitoring_url {
        Some(url) => ask_sync(url).await.map(Some),
        None => Ok(None),
    };
    let told = |sync| durability(stream.num_replicas, stream.persist_mode, server_version, sync);
    match sync {
        Ok(sync) => told(sync),
        Err(error) => {
            let warning = format!(
                "bus.nats.monitoring_url does not tell how often the server syncs ({error}); give the monitoring port of a NATS server, http://host:8222 as a rule"
            );
            Durability { warning: Some(warning), ..told(None) }
        }
    }
}

/// Identity of a stream; None where it was not made by a gateway.
pub(super) fn incarnation_of(config: &StreamConfig) -> Option<u64> {
    u64::from_str_radix(config.metadata.get(INCARNATION)?, 16).ok()
}

pub(super) async fn get_or_create(
    context: &jetstream::Context,
    wanted: &StreamConfig,
) -> Result<(StreamConfig, bool), OpenError> {
    let failed = |reason: String| OpenError::Provision { object: wanted.name.clone(), reason };
    for _ in 0..2 {
        match context.get_stream(&wanted.name).await {
            Ok(found) => return Ok((found.cached_info().config.clone(), false)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(ref said) if said.code() == 404 => {}
                _ => return Err(failed(error.to_string())),
            },
        }
        match context.create_stream(wanted.clone()).await {
            Ok(_) => {
                tracing::info!(name = wanted.name, "made on NATS");
                // What was asked for is not what there is: it is read back.
                let made =
                    context.get_stream(&wanted.name).await.map_err(|error| failed(error.to_string()))?;
                return Ok((made.cached_info().config.clone(), true));
            }
            // Another gateway was faster; its own incarnation makes the settings differ.
            Err(error) if said(&error.kind()) == Some(jetstream::ErrorCode::STREAM_NAME_EXIST) => {}
            Err(error) if said(&error.kind()) == Some(NO_STORAGE) => {
                return Err(failed(format!(
                    "the server has not {} bytes to lend; lower bus.nats.retention_bytes, or raise max_file_store of the server or the account",
                    wanted.max_bytes
                )));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    }
    Err(failed("it appears and disappears".to_owned()))
}

fn said(kind: &CreateStreamErrorKind) -> Option<jetstream::ErrorCode> {
    match kind {
        CreateStreamErrorKind::JetStream(said) => Some(said.error_code()),
        _ => None,
    }
}

pub(super) fn wanted_stream(config: &Config, incarnation: u64) -> StreamConfig {
    let max_age = Duration::from_secs(u64::from(config.retention_days) * 24 * 3_600);
    StreamConfig {
        name: config.stream.clone(),
        description: Some("Events of the GlobalSIM API, kept by simcast".to_owned()),
        subjects: subjects(&config.subject_prefix),
        retention: RetentionPolicy::Limits,
        max_age,
        max_bytes: i64::try_from(config.retention_bytes).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        num_replicas: config.replicas,
        max_consumers: CONSUMERS_MAX,
        duplicate_window: config.duplicate_window.min(max_age),
        compression: Some(Compression::S2),
        deny_delete: true,
        allow_direct: true,
        allow_atomic_publish: true,
        metadata: HashMap::from([
            (INCARNATION.to_owned(), format!("{incarnation:016x}")),
            (SCHEMA.to_owned(), SCHEMA_NOW.to_owned()),
            (VERSION.to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]),
        ..StreamConfig::default()
    }
}

fn subjects(prefix: &str) -> Vec<String> {
    vec![format!("{prefix}.events.>"), format!("{prefix}.ctl.>")]
}

/// The stream under a bucket, as the clients of NATS make it (ADR-8).
pub(super) fn wanted_bucket(config: &Config, bucket: Bucket) -> StreamConfig {
    let name = Buckets::name(&config.stream, bucket);
    StreamConfig {
        subjects: vec![format!("$KV.{name}.>")],
        name: format!("KV_{name}"),
        retention: RetentionPolicy::Limits,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: if bucket == Bucket::Endpoints { ENDPOINT_HISTORY } else { 1 },
        max_message_size: VALUE_BYTES_MAX,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: config.replicas,
        max_consumers: CONSUMERS_MAX,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..StreamConfig::default()
    }
}

/// Notes where two settings differ.
struct Comparison<'c> {
    object: &'c str,
    drift: Vec<Drift>,
}

impl Comparison<'_> {
    fn check<T: PartialEq + std::fmt::Debug>(
        &mut self,
        field: &'static str,
        want: &T,
        have: &T,
        harmful: bool,
        cure: impl Into<String>,
    ) {
        if want != have {
            self.drift.push(Drift {
                object: self.object.to_owned(),
                field,
                want: format!("{want:?}"),
                have: format!("{have:?}"),
                cure: cure.into(),
                harmful,
            });
        }
    }
}

pub(super) fn compare(wanted: &StreamConfig, found: &StreamConfig) -> Vec<Drift> {
    let name = &wanted.name;
    let edit = |flag: String| format!("run: nats stream edit {name} {flag}");
    let remake = "give simcast a stream of its own: set bus.nats.stream and bus.nats.subject_prefix to names that nobody uses";
    let mut c = Comparison { object: name, drift: Vec::new() };
    let (mut want, mut have) = (wanted.subjects.clone(), found.subjects.clone());
    want.sort();
    have.sort();
    c.check("subjects", &want, &have, true, remake);
    c.check("metadata simcast_incarnation", &true, &incarnation_of(found).is_some(), true, remake);
    let schema = |config: &StreamConfig| config.metadata.get(SCHEMA).cloned().unwrap_or_default();
    c.check(
        "metadata simcast_schema",
        &schema(wanted),
        &schema(found),
        true,
        "a gateway of another version has made it: run that version, or begin with another bus.nats.stream",
    );
    c.check("retention", &wanted.retention, &found.retention, true, remake);
    c.check("storage", &wanted.storage, &found.storage, true, remake);
    c.check("allow_atomic", &true, &found.allow_atomic_publish, true, edit("--allow-batch".to_owned()));
    c.check("discard", &wanted.discard, &found.discard, true, edit("--discard=old".to_owned()));
    c.check(
        "sealed",
        &false,
        &found.sealed,
        true,
        "a sealed stream takes nothing ever again: begin with another",
    );
    c.check("no_ack", &false, &found.no_ack, true, edit("--ack".to_owned()));
    let async_mode = found.persist_mode == Some(PersistenceMode::Async);
    c.check(
        "persist_mode async",
        &false,
        &async_mode,
        true,
        "it acknowledges before anything is written: begin with another stream",
    );
    // A limit per subject forgets events of a SIM while others are kept.
    let unlimited = |limit: i64| if limit < 1 { -1 } else { limit };
    let per_subject = unlimited(found.max_messages_per_subject);
    c.check("max_msgs_per_subject", &-1, &per_subject, true, edit("--max-msgs-per-subject=-1".to_owned()));
    let days = wanted.max_age.as_secs() / 86_400;
    c.check("max_age", &wanted.max_age, &found.max_age, false, edit(format!("--max-age={days}d")));
    c.check(
        "max_bytes",
        &wanted.max_bytes,
        &found.max_bytes,
        false,
        edit(format!("--max-bytes={}", wanted.max_bytes)),
    );
    c.check("max_msgs", &-1, &unlimited(found.max_messages), false, edit("--max-msgs=-1".to_owned()));
    let replicas = edit(format!("--replicas={}", wanted.num_replicas));
    c.check("num_replicas", &wanted.num_replicas, &found.num_replicas, false, replicas);
    // An event above it would be refused for ever; 0 and -1 are none.
    let message_size = if found.max_message_size < 1 { -1 } else { found.max_message_size };
    c.check("max_msg_size", &-1, &message_size, true, edit("--max-msg-size=-1".to_owned()));
    let source = "it takes events from elsewhere than the gateways: begin with another stream";
    c.check("mirror", &false, &found.mirror.is_some(), true, source);
    let sources = found.sources.as_ref().is_some_and(|sources| !sources.is_empty());
    c.check("sources", &false, &sources, true, source);
    let transformed = "it stores events under other subjects: begin with another stream";
    c.check("subject_transform", &false, &found.subject_transform.is_some(), true, transformed);
    let copied = edit("--no-republish, if nobody needs the copies".to_owned());
    c.check("republish", &false, &found.republish.is_some(), false, copied);
    let deletable = edit("--deny-delete".to_owned());
    c.check("deny_delete", &true, &found.deny_delete, false, deletable);
    let rollup =
        "a message can remove those before it, and that can't be taken back: begin with another stream";
    c.check("allow_rollup_hdrs", &false, &found.allow_rollup, false, rollup);
    let direct = edit("--allow-direct".to_owned());
    c.check("allow_direct", &true, &found.allow_direct, false, direct);
    let compression = edit("--compression=s2".to_owned());
    let named = |compression: &Option<Compression>| match compression {
        Some(Compression::S2) => "s2",
        _ => "none",
    };
    let (want, have) = (named(&wanted.compression), named(&found.compression));
    c.check("compression", &want, &have, false, compression);
    let consumers =
        "it can't be changed: each gateway needs one; begin with another stream if that is too few";
    c.check("max_consumers", &wanted.max_consumers, &found.max_consumers, false, consumers);
    let window = edit(format!("--dupe-window={}ms", wanted.duplicate_window.as_millis()));
    c.check("duplicate_window", &wanted.duplicate_window, &found.duplicate_window, false, window);
    c.drift
}

pub(super) fn compare_bucket(wanted: &StreamConfig, found: &StreamConfig) -> Vec<Drift> {
    let name = &wanted.name;
    let cure = |flag: &str| format!("run: nats stream edit {name} {flag}");
    let mut c = Comparison { object: name, drift: Vec::new() };
    let foreign = "it belongs to another program: set bus.nats.stream to a name that nobody uses";
    c.check("subjects", &wanted.subjects, &found.subjects, true, foreign);
    c.check("storage", &wanted.storage, &found.storage, true, foreign);
    c.check("retention", &wanted.retention, &found.retention, true, foreign);
    let unlimited = |limit: i64| if limit < 1 { -1 } else { limit };
    // What a bucket has no room for is refused, and the poller could not keep its notes.
    c.check("max_bytes", &-1, &unlimited(found.max_bytes), false, cure("--max-bytes=-1"));
    c.check("max_msgs", &-1, &unlimited(found.max_messages), false, cure("--max-msgs=-1"));
    c.check("discard", &wanted.discard, &found.discard, false, cure("--discard=new"));
    let size = unlimited(i64::from(found.max_message_size));
    let takes_all = size == -1 || size >= i64::from(VALUE_BYTES_MAX);
    c.check(
        "max_msg_size enough",
        &true,
        &takes_all,
        false,
        cure(&format!("--max-msg-size={VALUE_BYTES_MAX}")),
    );
    // What expires by itself would be forgotten: floors, endpoints, the request budget.
    c.check("max_age", &Duration::ZERO, &found.max_age, true, cure("--max-age=0"));
    let keeps = found.max_messages_per_subject >= 1;
    let per_key = wanted.max_messages_per_subject;
    let deeper = cure(&format!("--max-msgs-per-subject={per_key}"));
    c.check("max_msgs_per_subject set", &true, &keeps, true, deeper.clone());
    if keeps {
        c.check("max_msgs_per_subject", &per_key, &found.max_messages_per_subject, false, deeper);
    }
    let replicas = cure(&format!("--replicas={}", wanted.num_replicas));
    c.check("num_replicas", &wanted.num_replicas, &found.num_replicas, false, replicas);
    c.drift
}

/// How often a server syncs what it has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    Always,
    Every(Duration),
}

/// The part of `/varz` that says it. Neither is told to clients, only at the monitoring port.
#[derive(Debug, Deserialize)]
struct Varz {
    jetstream: VarzJetStream,
}

#[derive(Debug, Deserialize)]
struct VarzJetStream {
    config: Option<VarzConfig>,
}

#[derive(Debug, Deserialize)]
struct VarzConfig {
    #[serde(default)]
    sync_interval: u64,
    #[serde(default)]
    sync_always: bool,
}

async fn ask_sync(url: &str) -> Result<Sync, String> {
    // Fails only where one is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let said = |error: reqwest::Error| error.without_url().to_string();
    let client = reqwest::Client::builder().timeout(MONITORING_TIMEOUT).no_proxy().build().map_err(said)?;
    let answer =
        client.get(format!("{url}/varz")).send().await.and_then(|a| a.error_for_status()).map_err(said)?;
    if answer.content_length().is_some_and(|bytes| bytes > MONITORING_BYTES_MAX) {
        return Err("the answer is not that of a NATS server".to_owned());
    }
    let body = answer.bytes().await.map_err(said)?;
    let varz: Varz = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    let config = varz.jetstream.config.ok_or("JetStream is not enabled there")?;
    Ok(match config.sync_always {
        true => Sync::Always,
        false => Sync::Every(Duration::from_nanos(config.sync_interval)),
    })
}

fn durability(
    replicas: usize,
    mode: Option<PersistenceMode>,
    version: &str,
    sync: Option<Sync>,
) -> Durability {
    let servers = match replicas {
        1 => "one server".to_owned(),
        n => format!("{} of {n} servers", n / 2 + 1),
    };
    let synced = match sync {
        Some(Sync::Always) => "synced to disk before it is acknowledged".to_owned(),
        Some(Sync::Every(every)) => {
            format!("synced to disk within {} s after it is acknowledged", every.as_secs_f64())
        }
        None => "synced to disk as the server's sync_interval says, which clients are not told".to_owned(),
    };
    let says = format!("on {servers} (NATS {version}), {synced}");
    let cure = "set sync_interval: always in the jetstream block of the server's configuration";
    let warning = match (sync, replicas) {
        (Some(Sync::Always), _) if mode != Some(PersistenceMode::Async) => None,
        (Some(Sync::Every(every)), 1) => Some(format!(
            "a loss of power of the one server may lose up to {} s of acknowledged events; {cure}",
            every.as_secs_f64()
        )),
        (Some(Sync::Every(every)), n) => Some(format!(
            "a loss of power of {} servers at once may lose up to {} s of acknowledged events; {cure}",
            n / 2 + 1,
            every.as_secs_f64()
        )),
        _ => Some(format!(
            "it is not known how often the server syncs (its default is every 2 minutes); set bus.nats.monitoring_url to be told, and {cure}"
        )),
    };
    Durability { says, warning }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::jetstream::tests_support::config;

    fn wanted() -> StreamConfig {
        wanted_stream(&config("nats://127.0.0.1:4222".to_owned(), "S"), 7)
    }

    #[test]
    fn what_breaks_a_promise_is_told_from_what_does_not() {
        assert!(compare(&wanted(), &wanted()).is_empty());
        let change = |change: fn(&mut StreamConfig)| {
            let mut found = wanted();
            change(&mut found);
            compare(&wanted(), &found).into_iter().map(|one| (one.field, one.harmful)).collect::<Vec<_>>()
        };
        assert_eq!(change(|c| c.allow_atomic_publish = false), [("allow_atomic", true)]);
        assert_eq!(change(|c| c.subjects = vec!["other.>".into()]), [("subjects", true)]);
        assert_eq!(change(|c| c.discard = DiscardPolicy::New), [("discard", true)]);
        assert_eq!(change(|c| c.max_messages_per_subject = 1), [("max_msgs_per_subject", true)]);
        assert_eq!(change(|c| c.persist_mode = Some(PersistenceMode::Async)), [("persist_mode async", true)]);
        assert_eq!(
            change(|c| c.metadata.clear()),
            [("metadata simcast_incarnation", true), ("metadata simcast_schema", true)]
        );
        assert_eq!(change(|c| c.max_age = Duration::from_secs(60)), [("max_age", false)]);
        assert_eq!(change(|c| c.num_replicas = 3), [("num_replicas", false)]);
    }

    #[test]
    fn a_difference_names_the_cure() {
        let mut found = wanted();
        found.allow_atomic_publish = false;
        assert_eq!(
            compare(&wanted(), &found)[0].to_string(),
            "S: allow_atomic is false, not true; run: nats stream edit S --allow-batch"
        );
    }

    #[test]
    fn durability_is_said_as_it_is() {
        let always = durability(3, None, "2.15.1", Some(Sync::Always));
        assert_eq!(always.says, "on 2 of 3 servers (NATS 2.15.1), synced to disk before it is acknowledged");
        assert_eq!(always.warning, None);
        let lazy = durability(1, None, "2.12.8", Some(Sync::Every(Duration::from_secs(120))));
        assert!(
            lazy.warning.is_some_and(|w| w.contains("up to 120 s") && w.contains("sync_interval: always"))
        );
        let unknown = durability(1, None, "2.12.8", None);
        assert!(unknown.warning.is_some_and(|w| w.contains("monitoring_url")));
    }
}
