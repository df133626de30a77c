//! The stream that a migration fills: what there is of it, its making, and the step that opens it to gateways.

use async_nats::jetstream::{self, context::GetStreamErrorKind, stream::Info};
use serde::{Deserialize, Serialize};

use super::{MigrateError, Survey};
use crate::{
    bus::{
        Bucket, KvError,
        jetstream::{
            Config, OpenError,
            kv::Buckets,
            provision::{
                Drift, MIGRATION, compare, compare_bucket, get_or_create, incarnation_of, wanted_bucket,
                wanted_stream,
            },
        },
    },
    log::Log,
};

/// Key in [`Bucket::State`] that says that a migration has come to its end.
pub const KEY: &str = "migration";

/// All buckets of a stream.
const BUCKETS: [Bucket; 4] = [Bucket::State, Bucket::Endpoints, Bucket::Cursors, Bucket::Lease];

/// What there is of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No stream, and nothing in the buckets.
    Nothing,
    /// A migration of this log that has not finished.
    Begun {
        /// Copied up to this sequence.
        upto: u64,
        /// Bytes that the stream keeps.
        max_bytes: u64,
    },
    /// This log was migrated before.
    Complete {
        /// Last sequence that was copied.
        upto: u64,
    },
}

/// Looks; changes nothing.
pub(super) async fn look(
    config: &Config,
    context: &jetstream::Context,
    buckets: &Buckets,
    log: &Log,
) -> Result<Found, MigrateError> {
    if let Some(info) = get(context, &config.stream).await? {
        return judge(config, context, buckets, &info, log).await;
    }
    for bucket in BUCKETS {
        let name = Buckets::name(&config.stream, bucket);
        if get(context, &format!("KV_{name}")).await?.is_none_or(|info| info.state.messages == 0) {
            continue;
        }
        let entries = buckets.list(bucket, "").await;
        let entries = entries.map_err(|source| MigrateError::KeyValue { bucket: name.clone(), source })?;
        if !entries.is_empty() {
            let stream = config.stream.clone();
            return Err(MigrateError::InUse { bucket: name, keys: entries.len(), stream });
        }
    }
    Ok(Found::Nothing)
}

async fn get(context: &jetstream::Context, name: &str) -> Result<Option<Info>, OpenError> {
    match context.get_stream(name).await {
        Ok(found) => Ok(Some(found.cached_info().clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(ref said) if said.code() == 404 => Ok(None),
            _ => Err(OpenError::Provision { object: name.to_owned(), reason: error.to_string() }),
        },
    }
}

/// What the key says.
#[derive(Serialize, Deserialize)]
struct Finished {
    /// Of the log, 16 hex digits: a bucket may outlive its stream.
    incarnation: String,
    upto: u64,
}

/// Up to which sequence a migration of a log has brought its events; None where none has come to its end.
pub(in crate::bus::jetstream) async fn finished(
    buckets: &Buckets,
    incarnation: u64,
) -> Result<Option<u64>, KvError> {
    let entry = buckets.get(Bucket::State, KEY).await?;
    let finished = entry.and_then(|entry| serde_json::from_slice::<Finished>(&entry.value).ok());
    let ours = finished.filter(|finished| finished.incarnation == format!("{incarnation:016x}"));
    Ok(ours.map(|finished| finished.upto))
}

/// What a stream that exists is to this log.
async fn judge(
    config: &Config,
    context: &jetstream::Context,
    buckets: &Buckets,
    info: &Info,
    log: &Log,
) -> Result<Found, MigrateError> {
    let stream = config.stream.clone();
    let (incarnation, metadata) = (incarnation_of(&info.config), &info.config.metadata);
    let foreign = |holds: String| Err(MigrateError::Foreign { stream: stream.clone(), holds });
    match incarnation {
        None => return foreign(format!("{} messages of another program", info.state.messages)),
        Some(other) if other != log.incarnation() => {
            let messages = info.state.messages;
            return foreign(format!("the log {other:016x} ({messages} messages)"));
        }
        Some(_) => {}
    }
    let (first, last) = (log.begins_at(), log.bounds().last_seq);
    let moved = |what: String| {
        let cure = format!("delete the stream (nats stream rm {stream}) and its buckets, and run this again");
        Err(MigrateError::Moved { what, cure })
    };
    if !metadata.contains_key(MIGRATION) {
        return foreign("a log of this name that no migration has brought there".to_owned());
    }
    let state = Buckets::name(&config.stream, Bucket::State);
    let upto = match get(context, &format!("KV_{state}")).await? {
        // It is made after the stream.
        None => None,
        Some(_) => finished(buckets, log.incarnation())
            .await
            .map_err(|source| MigrateError::KeyValue { bucket: state, source })?,
    };
    let Some(upto) = upto else {
        let begins = info.state.first_sequence.max(1);
        let upto = info.state.last_sequence;
        if begins != first {
            return moved(format!(
                "the migration that has begun is of a log whose first sequence is {begins}, this one begins at {first}"
            ));
        }
        if upto > last {
            return moved(format!("stream {stream} ends at sequence {upto}, behind the log's last, {last}"));
        }
        let max_bytes = u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX);
        return Ok(Found::Begun { upto, max_bytes });
    };
    if last > upto {
        return Err(MigrateError::Moved {
            what: format!(
                "the log was migrated up to sequence {upto} and has gone on to {last} since: a gateway was started on it again"
            ),
            cure: format!(
                "what came behind {upto} is only there. Upstream shows a week; a gateway on stream {stream} reads that again by itself. Only if no gateway has used the stream yet, delete it and its buckets (nats stream rm {stream}) and run this again"
            ),
        });
    }
    Ok(Found::Complete { upto })
}

/// Makes what is missing; gives the sequence up to which the stream is filled.
pub(super) async fn make(
    config: &Config,
    context: &jetstream::Context,
    buckets: &Buckets,
    log: &Log,
) -> Result<u64, MigrateError> {
    let first = log.begins_at();
    let mut wanted = wanted_stream(config, log.incarnation());
    wanted.first_sequence = (first > 1).then_some(first);
    wanted.metadata.insert(
        MIGRATION.to_owned(),
        format!("finished once {KEY} in bucket {} says so", Buckets::name(&config.stream, Bucket::State)),
    );
    let (found, _) = get_or_create(context, &wanted).await?;
    let mut drift = compare(&wanted, &found);
    for bucket in BUCKETS {
        let wanted = wanted_bucket(config, bucket);
        let (found, _) = get_or_create(context, &wanted).await?;
        drift.extend(compare_bucket(&wanted, &found));
    }
    let harmful: Vec<Drift> = drift.into_iter().filter(|one| one.harmful).collect();
    if !harmful.is_empty() {
        return Err(OpenError::Drift(harmful).into());
    }
    // A gateway may have been faster, and what the server made is looked at like what was there.
    let found = match get(context, &config.stream).await? {
        Some(info) => Some(judge(config, context, buckets, &info, log).await?),
        None => None,
    };
    match found {
        Some(Found::Begun { upto, .. }) => Ok(upto.max(first.saturating_sub(1))),
        _ => Err(MigrateError::Mismatch {
            what: "it changed while it was made".to_owned(),
            stream: config.stream.clone(),
        }),
    }
}

/// Opens the stream to gateways: the last step.
pub(super) async fn finish(
    config: &Config,
    context: &jetstream::Context,
    buckets: &Buckets,
    incarnation: u64,
    survey: &Survey,
) -> Result<(), MigrateError> {
    let stream = config.stream.clone();
    let mismatch = |what: String| MigrateError::Mismatch { what, stream: stream.clone() };
    let missing = || mismatch("it was deleted".to_owned());
    let info = get(context, &stream).await?.ok_or_else(missing)?;
    let (begins, ends) = (info.state.first_sequence.max(1), info.state.last_sequence);
    if (begins, ends.max(begins - 1)) != (survey.first_seq, survey.last_seq.max(survey.first_seq - 1)) {
        return Err(mismatch(format!("it holds sequences {begins} to {ends}")));
    }
    let done = Finished { incarnation: format!("{incarnation:016x}"), upto: survey.last_seq };
    let done = serde_json::to_vec(&done).unwrap_or_default().into();
    buckets.put(Bucket::State, KEY, done).await.map(drop).map_err(|source| {
        let bucket = Buckets::name(&config.stream, Bucket::State);
        MigrateError::KeyValue { bucket, source }
    })
}
