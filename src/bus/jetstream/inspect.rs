//! What there is on NATS, without making or changing anything: for `simcast doctor`.
//!
//! Everything is asked with the permissions that the gateway has anyway. A stream that is missing is no mistake, since
//! the first start makes it; whether there is room for it is asked instead.

use std::time::Duration;

use async_nats::jetstream::{
    account::{Account, Limits},
    context::GetStreamErrorKind,
    stream::{Info, LastRawMessageErrorKind, Stream},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    API_PREFIX, Config, OpenError,
    connection::Connection,
    kv::Buckets,
    mirror::place,
    provision::{self, Drift, Durability},
    subject,
};
use crate::{bus::Bucket, clock::SharedClock};

/// How long a server may take to answer at all: somebody waits for it at a terminal.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions of which the fastest answer counts.
const ROUNDS: usize = 3;
/// Where a lease does not say how long it lasts.
const LEASE_TTL_UNKNOWN_S: u64 = 10;

/// What was found.
#[derive(Debug)]
pub struct Inspection {
    /// Name of the server that answered.
    pub server: String,
    /// Its version.
    pub version: String,
    /// Fastest answer.
    pub round_trip: Duration,
    /// The stream, where it is there.
    pub stream: Option<StreamSeen>,
    /// Names of the streams, buckets' ones included, that are not there.
    pub missing: Vec<String>,
    /// What differs from what is needed.
    pub drift: Vec<Drift>,
    /// What stands in the way of the account's limits: problem and cure.
    pub room: Vec<(String, String)>,
    /// What the account has and may have.
    pub account: String,
    /// What an acknowledged append survives; None without a stream.
    pub durability: Option<Durability>,
    /// Who polls; None where nobody does.
    pub holder: Option<Holder>,
    /// Whose history the local copy is of; None where there is no copy of this stream.
    pub copy: Option<u64>,
    /// By how much the clock of the stream's leader is ahead of this one; None without a stream.
    pub ahead: Option<SignedDuration>,
}

/// The stream as it is.
#[derive(Debug)]
pub struct StreamSeen {
    /// Messages, announcements included.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Sequence of the newest event.
    pub last_event: Option<u64>,
    /// Whose history it is.
    pub incarnation: Option<u64>,
    /// Servers that hold it, and the leader of them; one and none outside a cluster.
    pub replicas: (usize, Option<String>),
    /// Servers that are offline or behind, with what they are.
    pub behind: Vec<String>,
}

/// Who holds a lease.
#[derive(Debug)]
pub struct Holder {
    /// Where it runs: host, process, and since when. What it drew for itself where it does not say.
    pub name: String,
    /// Since the last renewal, by the server's clock.
    pub renewed: Duration,
    /// After so long without one somebody else may follow.
    pub ttl: Duration,
}

/// Asks.
///
/// # Errors
/// [`OpenError`] where nothing can be asked.
pub async fn inspect(config: &Config, lease: &str, clock: &SharedClock) -> Result<Inspection, OpenError> {
    let connection = Connection::open_within(config, PATIENCE).await?;
    let context = &connection.context;
    let failed = |object: &str, reason: String| OpenError::Provision { object: object.to_owned(), reason };
    let mut round_trip = Duration::MAX;
    let mut account = None;
    for _ in 0..ROUNDS {
        let asked = Instant::now();
        let answer = context.query_account().await.map_err(|error| failed("JetStream", error.to_string()))?;
        round_trip = round_trip.min(asked.elapsed());
        account = Some(answer);
    }
    let account = account.unwrap_or_default();

    let (mut missing, mut drift) = (Vec::new(), Vec::new());
    let wanted = provision::wanted_stream(config, 0);
    let found = find(&connection, &wanted.name).await?;
    match &found {
        Some(found) => drift.extend(provision::compare(&wanted, &found.cached_info().config)),
        None => missing.push(wanted.name.clone()),
    }
    for bucket in provision::BUCKETS {
        let wanted = provision::wanted_bucket(config, bucket);
        match find(&connection, &wanted.name).await? {
            Some(found) => drift.extend(provision::compare_bucket(&wanted, &found.cached_info().config)),
            None => missing.push(wanted.name),
        }
    }
    let (mut durability, mut ahead, mut seen, mut holder) = (None, None, None, None);
    if let Some(found) = &found {
        let info = found.cached_info();
        durability = Some(provision::durability_of(config, &info.config, &connection.server_version).await);
        let (server_now, difference) = clocks(&connection, &wanted.name, clock).await?;
        ahead = Some(difference);
        let newest = format!("{}>", subject::events(&config.subject_prefix));
        let last_event = match found.get_last_raw_message_by_subject(&newest).await {
            Ok(message) => Some(message.sequence),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
            Err(error) => return Err(failed(&wanted.name, error.to_string())),
        };
        seen = Some(see(info, last_event));
        holder = held(&connection, config, lease, server_now).await?;
    }
    Ok(Inspection {
        server: connection.client.server_info().server_name,
        round_trip,
        room: room(config, &account, found.is_some(), missing.len()),
        account: used(&account),
        version: connection.server_version,
        stream: seen,
        missing,
        drift,
        durability,
        holder,
        copy: config.cache_path.as_deref().and_then(|cache| place::incarnation(cache, &config.stream)),
        ahead,
    })
}

async fn find(connection: &Connection, name: &str) -> Result<Option<Stream>, OpenError> {
    match connection.context.get_stream(name).await {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(ref said) if said.code() == 404 => Ok(None),
            _ => Err(OpenError::Provision { object: name.to_owned(), reason: error.to_string() }),
        },
    }
}

fn see(info: &Info, last_event: Option<u64>) -> StreamSeen {
    let peers = info.cluster.iter().flat_map(|cluster| &cluster.replicas);
    let behind = peers.filter(|peer| peer.offline || !peer.current).map(|peer| {
        let state =
            if peer.offline { "offline".to_owned() } else { format!("{} behind", peer.lag.unwrap_or(0)) };
        format!("{} ({state})", peer.name)
    });
    StreamSeen {
        messages: info.state.messages,
        bytes: info.state.bytes,
        last_event,
        incarnation: provision::incarnation_of(&info.config),
        replicas: (
            info.config.num_replicas,
            info.cluster.as_ref().and_then(|cluster| cluster.leader.clone()),
        ),
        behind: behind.collect(),
    }
}

/// The time of the stream's leader, and by how much it is ahead of ours. The client does not keep it (0.51).
async fn clocks(
    connection: &Connection,
    stream: &str,
    clock: &SharedClock,
) -> Result<(Timestamp, SignedDuration), OpenError> {
    let failed = |reason: String| OpenError::Provision { object: stream.to_owned(), reason };
    let asked = clock.now();
    let answer = connection.client.request(format!("{API_PREFIX}.STREAM.INFO.{stream}"), "".into()).await;
    let answered = clock.now();
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    let said: Value = serde_json::from_slice(&answer.payload).map_err(|error| failed(error.to_string()))?;
    let server = said["ts"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let server = server.ok_or_else(|| failed("it does not say what time it is".to_owned()))?;
    // Between asking and the answer both clocks went on: what lies within is no difference.
    let ahead = server.duration_since(answered).max(SignedDuration::ZERO);
    let behind = asked.duration_since(server).max(SignedDuration::ZERO);
    Ok((server, ahead - behind))
}

async fn held(
    connection: &Connection,
    config: &Config,
    lease: &str,
    now: Timestamp,
) -> Result<Option<Holder>, OpenError> {
    let bucket = Buckets::name(&config.stream, Bucket::Lease);
    let failed = |reason: String| OpenError::Provision { object: bucket.clone(), reason };
    let stream = connection.context.get_stream_no_info(format!("KV_{bucket}")).await;
    let stream = stream.map_err(|error| failed(error.to_string()))?;
    let message = match stream.get_last_raw_message_by_subject(&format!("$KV.{bucket}.{lease}")).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
        // Without a bucket nobody holds anything.
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::JetStream(ref said) if said.code() == 404) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    // A lease that was given up is a deletion, which has no body.
    let Ok(value) = serde_json::from_slice::<Value>(&message.payload) else { return Ok(None) };
    let written = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos()).unwrap_or(now);
    Ok(Some(Holder {
        name: name(&value),
        renewed: Duration::try_from(now.duration_since(written)).unwrap_or_default(),
        ttl: Duration::from_secs(value["ttl_s"].as_u64().unwrap_or(LEASE_TTL_UNKNOWN_S)),
    }))
}

/// What a lease says of its holder.
fn name(lease: &Value) -> String {
    let text = |key: &str| lease[key].as_str().unwrap_or_default();
    let name = match lease["pid"].as_u64() {
        Some(pid) => format!("on {}, process {pid}, up since {}", text("host"), text("started")),
        None => text("holder").to_owned(),
    };
    // Whoever may write to the bucket must not write to the terminal.
    name.chars().filter(|char| !char.is_control()).collect()
}

/// What the account's limits leave no room for.
fn room(config: &Config, account: &Account, has_stream: bool, missing: usize) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut problem = |what: String, cure: &str| problems.push((what, cure.to_owned()));
    let tier = format!("R{}", config.replicas);
    let copies = u64::try_from(config.replicas).unwrap_or(u64::MAX);
    // With limits for each number of replicas a byte counts once, without as often as it is held.
    let (limits, reserved, streams, times) = if account.tiers.is_empty() {
        (&account.limits, account.reserved_storage, account.streams, copies)
    } else if let Some(tier) = account.tiers.get(&tier) {
        (&tier.limits, tier.reserved_storage, tier.streams, 1)
    } else {
        let mut tiers: Vec<_> = account.tiers.keys().map(String::as_str).collect();
        tiers.sort_unstable();
        let what =
            format!("the account has no limits for {} replicas, only {}", config.replicas, tiers.join(", "));
        problem(what, "set bus.nats.replicas to one of them, or give the account that tier");
        return problems;
    };
    let Limits { max_storage, max_streams, max_consumers, max_bytes_required, .. } = *limits;
    let needed = config.retention_bytes.saturating_mul(times);
    let others = if has_stream { 0 } else { reserved };
    if let Some(most) = max_storage.and_then(|most| u64::try_from(most).ok())
        && needed.saturating_add(others) > most
    {
        let held = if times > 1 {
            format!(" ({} on {times} servers)", config.retention_bytes)
        } else {
            String::new()
        };
        let promised =
            if others > 0 { format!(", of which {others} are promised to others") } else { String::new() };
        problem(
            format!(
                "bus.nats.retention_bytes takes {needed} bytes{held}, the account may use {most}{promised}"
            ),
            "lower bus.nats.retention_bytes, or raise max_file of the account",
        );
    }
    let one_stream = limits.storage_max_stream_bytes.and_then(|most| u64::try_from(most).ok());
    if let Some(most) = one_stream.filter(|most| *most > 0 && config.retention_bytes > *most) {
        problem(
            format!(
                "bus.nats.retention_bytes is {}, a stream of the account may have {most}",
                config.retention_bytes
            ),
            "lower bus.nats.retention_bytes, or raise disk_max_stream_bytes of the account",
        );
    }
    let exceeds = |count: usize, most: Option<i64>| {
        most.and_then(|most| usize::try_from(most).ok()).filter(|most| *most > 0 && count > *most)
    };
    if let Some(most) = exceeds(streams + missing, max_streams) {
        problem(
            format!("{missing} streams are to be made beside {streams}, the account may have {most}"),
            "raise max_streams of the account: simcast needs 5",
        );
    }
    if let Some(most) = exceeds(account.consumers + 1, max_consumers) {
        problem(
            format!("the account has {} consumers and may have {most}", account.consumers),
            "raise max_consumers of the account: each gateway needs one, and one for each watch of a bucket",
        );
    }
    if max_bytes_required && missing > 0 {
        problem(
            "the account demands max_bytes of every stream, and buckets have none".to_owned(),
            "unset max_bytes_required of the account",
        );
    }
    problems
}

fn used(account: &Account) -> String {
    let of = |most: Option<i64>| most.map_or_else(|| "no limit".to_owned(), |most| format!("at most {most}"));
    format!(
        "{} bytes in {} streams ({}; {})",
        account.storage,
        account.streams,
        of(account.limits.max_storage),
        of(account.limits.max_streams)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::jetstream::tests_support::config;

    #[test]
    fn a_holder_is_named_by_what_its_lease_says() {
        let lease = serde_json::json!({
            "holder": "7f", "ttl_s": 8, "host": "gw\u{1b}-1", "pid": 42, "started": "2026-01-02T03:04:05Z"
        });
        assert_eq!(name(&lease), "on gw-1, process 42, up since 2026-01-02T03:04:05Z");
        assert_eq!(name(&serde_json::json!({ "holder": "7f", "ttl_s": 8 })), "7f");
    }

    #[test]
    fn what_an_account_has_no_room_for_is_told() {
        let mut wanted = config(String::new(), "S");
        (wanted.retention_bytes, wanted.replicas) = (1_000, 3);
        let told = |change: fn(&mut Account), has_stream, missing| {
            let mut account = Account::default();
            change(&mut account);
            let told = room(&wanted, &account, has_stream, missing);
            told.into_iter().map(|(what, _)| what).collect::<Vec<_>>().join("|")
        };
        assert_eq!(told(|_| {}, false, 5), "");
        let storage: fn(&mut Account) = |account| {
            (account.limits.max_storage, account.reserved_storage) = (Some(3_000), 1);
        };
        assert!(told(storage, false, 5).contains("takes 3000 bytes (1000 on 3 servers)"));
        assert_eq!(told(storage, true, 0), "", "its own bytes are among the reserved ones");
        assert!(told(|account| account.limits.max_storage = Some(2_999), true, 0).contains("may use 2999"));
        let streams: fn(&mut Account) =
            |account| (account.limits.max_streams, account.streams) = (Some(5), 1);
        assert!(told(streams, false, 5).contains("5 streams are to be made beside 1"));
        assert_eq!(told(streams, false, 4), "");
        assert!(told(|account| account.limits.max_bytes_required = true, false, 1).contains("max_bytes"));
        let tiers: fn(&mut Account) = |account| {
            account.tiers.insert("R1".to_owned(), Default::default());
        };
        assert!(told(tiers, false, 5).contains("no limits for 3 replicas, only R1"));
    }
}
