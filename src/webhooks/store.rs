//! What of the webhooks lies in the key-value store, and how.
//!
//! | bucket | key | what |
//! |---|---|---|
//! | endpoints | `endpoint/<id>` | [`StoredEndpoint`]: what was asked for, secrets encrypted |
//! | endpoints | `replay/<id>/<rid>` | [`Replay`]: what was asked for, and how it ended |
//! | cursors | `<id>` | [`Checkpoint`]: owner and position, written by the owner only |
//! | lease | `gateway/<member>` | see [`ownership`](super::ownership) |
//!
//! Requests may reach any gateway, so they write what is wanted; the owner sees it by watching, and writes what is.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    endpoint::{Endpoint, Private, StoredEndpoint},
    feed::Saved,
    secret::Sealer,
};
use crate::{
    bus::{Bucket, Bus, KvError},
    event::Cursor,
    log::Log,
};

/// Begins the keys of endpoints.
pub const ENDPOINT: &str = "endpoint/";
/// Begins the keys of replays.
pub const REPLAY: &str = "replay/";

/// Why the store does not give or take something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key-value store.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// What lies there can't be read.
    #[error("{key} can't be read: {reason}")]
    Unreadable {
        /// Where.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where an endpoint stands. Written by its owner alone, each time on the condition that nobody else has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The gateway that serves it; empty where none does.
    pub owner: String,
    /// The cursor of `live.cursor`: tells whether the log still is the one that the sequences are of.
    pub cursor: String,
    /// The endpoint's own way through the log.
    pub live: Saved,
    /// Seeks that have been carried out, see [`Endpoint::seeks`].
    #[serde(default)]
    pub seeks: u64,
    /// Since when the receiver has been failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
    /// Replays that are under way, by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replays: BTreeMap<String, ReplayPosition>,
    /// What has been counted.
    #[serde(default)]
    pub totals: Totals,
}

impl Checkpoint {
    /// An endpoint that nobody serves, behind a position.
    pub fn at(cursor: Cursor) -> Self {
        Self {
            owner: String::new(),
            cursor: cursor.to_string(),
            live: Saved { cursor: cursor.seq, pending: Vec::new() },
            seeks: 0,
            failing_since: None,
            replays: BTreeMap::new(),
            totals: Totals::default(),
        }
    }

    /// The same before the oldest event kept.
    pub fn earliest(log: &Log) -> Self {
        Self::at(log.cursor_at(log.begins_at().saturating_sub(1)))
    }
}

/// Where a replay stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayPosition {
    /// Its way through the log.
    pub feed: Saved,
    /// What became of its events.
    pub progress: Progress,
}

/// What became of the events of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Delivered.
    pub delivered: u64,
    /// Given up after the last attempt.
    pub dead_lettered: u64,
    /// Neither: no longer kept, or refused by the receiver for good.
    pub skipped: u64,
    /// Positions of the log that were gone before they were read, whether or not their events matched.
    #[serde(default)]
    pub lost: u64,
}

/// What an endpoint's owner has counted since it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Totals {
    /// Events delivered.
    pub delivered: u64,
    /// Events given up.
    pub dead_lettered: u64,
    /// Events neither delivered nor given up: see [`Progress::skipped`].
    pub skipped: u64,
    /// Attempts, by outcome: `2xx`, `3xx`, `4xx`, `5xx`, or what went wrong on the way.
    pub attempts: BTreeMap<String, u64>,
    /// Microseconds from `observed_at` to the answer that took an event at its first attempt.
    pub latency: Histogram,
    /// When the last event was delivered.
    pub last_delivered_at: Option<Timestamp>,
    /// When the last attempt failed, and how.
    pub last_failure: Option<(Timestamp, String)>,
}

/// Counts of durations: eight buckets to each power of two microseconds, below 128 in steps of 16.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram(Vec<u64>);

impl Histogram {
    /// Powers of two that are told apart: up to 2^37 microseconds, 38 hours.
    const BUCKETS: usize = 32;
    /// Parts of a power of two, so that a quantile is off by an eighth at most.
    const PARTS: usize = 8;

    /// Counts one.
    pub fn add(&mut self, microseconds: u64) {
        let bucket = Self::bucket(microseconds);
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, 0);
        }
        self.0[bucket] += 1;
    }

    fn bucket(microseconds: u64) -> usize {
        // Up to 128 us in steps of 16.
        if microseconds < 128 {
            return (microseconds / 16) as usize;
        }
        let power = 63 - microseconds.leading_zeros() as usize;
        let part = ((microseconds >> (power - 3)) & 7) as usize;
        ((power - 6) * Self::PARTS + part).min(Self::BUCKETS * Self::PARTS - 1)
    }

    /// Upper end of a bucket, microseconds.
    fn upper(bucket: usize) -> u64 {
        if bucket < Self::PARTS {
            return (bucket as u64 + 1) * 16;
        }
        let (power, part) = (bucket / Self::PARTS + 6, (bucket % Self::PARTS) as u64);
        (1_u64 << power) + (part + 1) * (1_u64 << (power - 3))
    }

    /// The value that a part of all counts (0..1) does not pass, microseconds; None where nothing was counted.
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let total: u64 = self.0.iter().sum();
        let wanted = (total as f64 * part).ceil().max(1.0) as u64;
        let mut sum = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            sum += count;
            if total > 0 && sum >= wanted {
                return Some(Self::upper(bucket));
            }
        }
        None
    }
}

/// Which events a replay sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Only {
    /// Every match.
    #[default]
    All,
    /// Those that were dead-lettered.
    Failed,
}

/// A replay that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// `rpl_` and 16 hex digits.
    pub id: String,
    /// Of which endpoint.
    pub webhook: String,
    /// Position after which it begins.
    pub from: u64,
    /// Last position that it looks at.
    pub to: u64,
    /// Cursor of `to`, which tells whether the log is still the same.
    pub to_cursor: String,
    /// Beside the endpoint's own filter.
    pub filter: serde_json::Value,
    /// See [`Only`].
    pub only: Only,
    /// Just this event, where it is a retry of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Requests begun in a second, at most.
    pub rate_limit_per_second: Option<u32>,
    /// Events that it would send when it was asked for.
    pub count: u64,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// See [`ReplayState`].
    pub state: ReplayState,
    /// What became of its events, once it has ended.
    #[serde(default)]
    pub progress: Progress,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// Whether a replay goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayState {
    /// It does.
    Running,
    /// Each of its events was delivered, given up or skipped.
    Done,
    /// Somebody cancelled it.
    Cancelled,
}

/// The webhooks' part of the key-value store.
#[derive(Debug, Clone)]
pub struct Store {
    bus: Arc<dyn Bus>,
    sealer: Option<Arc<Sealer>>,
}

/// A value with the revision that the next write needs.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// What lies there.
    pub value: T,
    /// Revision of it.
    pub revision: u64,
}

impl Store {
    /// `sealer` is None where no key for secrets is configured: then nothing can be created or read.
    pub fn new(bus: Arc<dyn Bus>, sealer: Option<Arc<Sealer>>) -> Self {
        Self { bus, sealer }
    }

    /// Whether secrets can be kept.
    pub fn can_seal(&self) -> bool {
        self.sealer.is_some()
    }

    /// The bus under it.
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.bus
    }

    fn seal(&self, endpoint: &Endpoint) -> Result<Bytes, StoreError> {
        let unreadable = |reason: String| StoreError::Unreadable { key: key_of(&endpoint.id), reason };
        let sealer =
            self.sealer.as_ref().ok_or_else(|| unreadable("no key for secrets is configured".into()))?;
        let private = encode(&endpoint.private)?;
        let sealed =
            sealer.seal(&private, endpoint.id.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
        encode(&endpoint.to_stored(sealed))
    }

    /// Reads what lies under the key of an endpoint.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] where it is damaged or encrypted with another key.
    pub fn open(&self, key: &str, bytes: &[u8]) -> Result<Endpoint, StoreError> {
        let unreadable = |reason: String| StoreError::Unreadable { key: key.to_owned(), reason };
        let stored: StoredEndpoint = decode(key, bytes)?;
        let sealer =
            self.sealer.as_ref().ok_or_else(|| unreadable("no key for secrets is configured".into()))?;
        let private = sealer
            .open(&stored.sealed, stored.id.as_bytes())
            .map_err(|error| unreadable(error.to_string()))?;
        let private: Private = decode(key, &private)?;
        stored.open(private).map_err(|error| unreadable(error.to_string()))
    }

    /// All endpoints that can be read, by id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn endpoints(&self) -> Result<Vec<Endpoint>, StoreError> {
        let entries = self.bus.kv_list(Bucket::Endpoints, ENDPOINT).await?;
        let opened = entries.iter().map(|entry| self.open(&entry.key, &entry.value));
        // One that can't be read is logged by whoever should serve it.
        Ok(opened.filter_map(Result::ok).collect())
    }

    /// One endpoint.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn endpoint(&self, id: &str) -> Result<Option<At<Endpoint>>, StoreError> {
        let key = key_of(id);
        let Some(entry) = self.bus.kv_get(Bucket::Endpoints, &key).await? else { return Ok(None) };
        Ok(Some(At { value: self.open(&key, &entry.value)?, revision: entry.revision }))
    }

    /// Stores a new endpoint and where it begins: the position first, so that no owner finds one without the other.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create(&self, endpoint: &Endpoint, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let value = self.seal(endpoint)?;
        self.create_checkpoint(&endpoint.id, checkpoint).await?;
        self.bus.kv_create(Bucket::Endpoints, &key_of(&endpoint.id), value).await?;
        Ok(())
    }

    /// Stores a changed endpoint.
    ///
    /// # Errors
    /// [`KvError::Conflict`] where somebody else changed it meanwhile.
    pub async fn update(&self, endpoint: &Endpoint, revision: u64) -> Result<u64, StoreError> {
        let value = self.seal(endpoint)?;
        Ok(self.bus.kv_update(Bucket::Endpoints, &key_of(&endpoint.id), value, revision).await?)
    }

    /// Deletes an endpoint; its owner, or whoever sees that it has none, clears away the rest.
    ///
    /// # Errors
    /// [`KvError::Conflict`] where somebody else changed it meanwhile.
    pub async fn delete(&self, id: &str, revision: u64) -> Result<(), StoreError> {
        Ok(self.bus.kv_delete(Bucket::Endpoints, &key_of(id), revision).await?)
    }

    /// Where an endpoint stands, as last written.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoint(&self, id: &str) -> Result<Option<At<Checkpoint>>, StoreError> {
        let Some(entry) = self.bus.kv_get(Bucket::Cursors, id).await? else { return Ok(None) };
        Ok(Some(At { value: decode(id, &entry.value)?, revision: entry.revision }))
    }

    /// Writes where an endpoint begins.
    ///
    /// # Errors
    /// [`KvError::Conflict`] where it stands somewhere already.
    pub async fn create_checkpoint(&self, id: &str, checkpoint: &Checkpoint) -> Result<u64, StoreError> {
        Ok(self.bus.kv_create(Bucket::Cursors, id, encode(checkpoint)?).await?)
    }

    /// Writes where an endpoint stands.
    ///
    /// # Errors
    /// [`KvError::Conflict`] where this gateway does not own it any more.
    pub async fn save(&self, id: &str, checkpoint: &Checkpoint, revision: u64) -> Result<u64, StoreError> {
        Ok(self.bus.kv_update(Bucket::Cursors, id, encode(checkpoint)?, revision).await?)
    }

    /// Removes what is left of endpoints that are no more: the position of `id` and its replays.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn clear(&self, id: &str) -> Result<(), StoreError> {
        for entry in self.bus.kv_list(Bucket::Endpoints, &format!("{REPLAY}{id}/")).await? {
            self.bus.kv_delete(Bucket::Endpoints, &entry.key, entry.revision).await?;
        }
        if let Some(entry) = self.bus.kv_get(Bucket::Cursors, id).await? {
            self.bus.kv_delete(Bucket::Cursors, id, entry.revision).await?;
        }
        Ok(())
    }

    /// Ids of all endpoints that have a position.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn positions(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.bus.kv_list(Bucket::Cursors, "").await?.into_iter().map(|entry| entry.key).collect())
    }

    /// The replays of an endpoint.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replays(&self, id: &str) -> Result<Vec<At<Replay>>, StoreError> {
        let entries = self.bus.kv_list(Bucket::Endpoints, &format!("{REPLAY}{id}/")).await?;
        entries
            .into_iter()
            .map(|entry| Ok(At { value: decode(&entry.key, &entry.value)?, revision: entry.revision }))
            .collect()
    }

    /// One replay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replay(&self, webhook: &str, id: &str) -> Result<Option<At<Replay>>, StoreError> {
        let key = format!("{REPLAY}{webhook}/{id}");
        let Some(entry) = self.bus.kv_get(Bucket::Endpoints, &key).await? else { return Ok(None) };
        Ok(Some(At { value: decode(&key, &entry.value)?, revision: entry.revision }))
    }

    /// Stores a new replay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_replay(&self, replay: &Replay) -> Result<(), StoreError> {
        let key = format!("{REPLAY}{}/{}", replay.webhook, replay.id);
        self.bus.kv_create(Bucket::Endpoints, &key, encode(replay)?).await?;
        Ok(())
    }

    /// Stores how a replay goes on.
    ///
    /// # Errors
    /// [`KvError::Conflict`] where somebody else changed it meanwhile.
    pub async fn update_replay(&self, replay: &Replay, revision: u64) -> Result<(), StoreError> {
        let key = format!("{REPLAY}{}/{}", replay.webhook, replay.id);
        self.bus.kv_update(Bucket::Endpoints, &key, encode(replay)?, revision).await?;
        Ok(())
    }

    /// Removes a replay that has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_replay(&self, replay: &At<Replay>) -> Result<(), StoreError> {
        let key = format!("{REPLAY}{}/{}", replay.value.webhook, replay.value.id);
        Ok(self.bus.kv_delete(Bucket::Endpoints, &key, replay.revision).await?)
    }
}

/// The key of an endpoint.
pub fn key_of(id: &str) -> String {
    format!("{ENDPOINT}{id}")
}

fn encode(value: &impl Serialize) -> Result<Bytes, StoreError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| StoreError::Unreadable { key: "a value".into(), reason: error.to_string() })
}

/// Reads a value.
///
/// # Errors
/// [`StoreError::Unreadable`].
pub fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Unreadable { key: key.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_quantile_is_off_by_an_eighth_at_most(values in proptest::collection::vec(1_u64..100_000_000, 1..200)) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|value| histogram.add(*value));
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let at = sorted[(sorted.len() * 99).div_ceil(100) - 1];
            let shown = histogram.quantile(0.99).unwrap();
            prop_assert!(shown >= at && shown as f64 <= at as f64 * 1.126 + 16.0, "{} for {}", shown, at);
        }
    }
}
