//! The small state beside the stream: key-value buckets of JetStream, as its own clients know them.
//!
//! A bucket is a stream `KV_<bucket>` whose subjects are the keys; a revision is a sequence of it, compare-and-set is
//! the condition `Nats-Expected-Last-Subject-Sequence` on a publish, and a deletion is a message with the header
//! `KV-Operation: DEL` (ADR-8). It is spoken here without async-nats' own `kv` module: reads must come from the leader
//! (that one reads from any replica, which may be behind), a lost race must be told from a lost answer, and a watcher
//! must end rather than restart at another place.
//!
//! Keys are written with `/` and `[A-Za-z0-9_-]` as they are and every other byte as `=XX`.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::PublishErrorKind,
        stream::{LastRawMessageErrorKind, Stream},
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{sync::mpsc, time::timeout};

use super::{
    connection::REQUEST_TIMEOUT,
    subject::{escape, unescape},
};
use crate::bus::{Bucket, Change, Entry, KvError};

/// Changes that a watcher may be behind before it is ended.
const WATCH_BEHIND_MAX: usize = 1024;
/// How long the entries that exist may take to arrive.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(15);
/// A consumer that its gateway has left is removed by the server after this.
const INACTIVE: Duration = Duration::from_secs(60);
/// A watcher hears from the server at least this often, or it ends.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a request for changes stands before it is renewed.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// Times that a key is created anew over its deletion while others do the same.
const RACES_MAX: u32 = 8;

const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const OPERATION: &str = "KV-Operation";
const DELETED: &str = "DEL";

/// The buckets of one stream.
#[derive(Debug, Clone)]
pub(super) struct Buckets {
    context: jetstream::Context,
    /// Name of the stream of events, first part of the buckets' names.
    stream: String,
}

impl Buckets {
    pub(super) fn new(context: jetstream::Context, stream: &str) -> Self {
        Self { context, stream: stream.to_owned() }
    }

    /// Name of a bucket.
    pub(super) fn name(stream: &str, bucket: Bucket) -> String {
        format!("{stream}_{}", bucket.name())
    }

    fn subject(&self, bucket: Bucket, key: &str) -> String {
        format!("{}{}", self.subjects(bucket), encode(key))
    }

    /// What begins the subjects of a bucket.
    fn subjects(&self, bucket: Bucket) -> String {
        format!("$KV.{}.", Self::name(&self.stream, bucket))
    }

    /// The stream under a bucket. Asks nobody.
    async fn stream(&self, bucket: Bucket) -> Result<Stream<()>, KvError> {
        let name = format!("KV_{}", Self::name(&self.stream, bucket));
        self.context.get_stream_no_info(name).await.map_err(unavailable)
    }

    /// See [`Bus::kv_get`](crate::bus::Bus::kv_get).
    pub(super) async fn get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError> {
        let last = self.last(bucket, key).await?;
        Ok(last.filter(|last| !last.deleted).map(|last| Entry {
            key: key.to_owned(),
            revision: last.revision,
            value: last.value,
        }))
    }

    /// The last message of a key, deletion or not, as the leader has it.
    async fn last(&self, bucket: Bucket, key: &str) -> Result<Option<Last>, KvError> {
        let subject = self.subject(bucket, key);
        match self.stream(bucket).await?.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(Some(Last {
                revision: message.sequence,
                deleted: is_deletion(&message.headers),
                value: message.payload,
            })),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// See [`Bus::kv_create`](crate::bus::Bus::kv_create).
    pub(super) async fn create(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        let mut expected = 0;
        for _ in 0..RACES_MAX {
            match self.publish(bucket, key, value.clone(), Some(expected), false).await {
                Err(KvError::Conflict) => {}
                done => return done,
            }
            // A key that was deleted has a last message too.
            match self.last(bucket, key).await? {
                Some(last) if last.deleted => expected = last.revision,
                Some(_) => return Err(KvError::Conflict),
                None => expected = 0,
            }
        }
        Err(KvError::Conflict)
    }

    /// See [`Bus::kv_update`](crate::bus::Bus::kv_update).
    pub(super) async fn update(
        &self,
        bucket: Bucket,
        key: &str,
        value: Bytes,
        revision: u64,
    ) -> Result<u64, KvError> {
        self.publish(bucket, key, value, Some(written(revision)?), false).await
    }

    /// See [`Bus::kv_put`](crate::bus::Bus::kv_put).
    pub(super) async fn put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.publish(bucket, key, value, None, false).await
    }

    /// See [`Bus::kv_delete`](crate::bus::Bus::kv_delete).
    pub(super) async fn delete(&self, bucket: Bucket, key: &str, revision: u64) -> Result<(), KvError> {
        self.publish(bucket, key, Bytes::new(), Some(written(revision)?), true).await.map(drop)
    }

    /// Whether nothing is left of a key, not even its deletion.
    pub(super) async fn is_forgotten(&self, bucket: Bucket, key: &str) -> Result<bool, KvError> {
        Ok(self.last(bucket, key).await?.is_none())
    }

    /// Removes a key with its deletions. The error comes with what an operator can do.
    pub(super) async fn purge(&self, bucket: Bucket, key: &str) -> Result<(), (KvError, String)> {
        let (subject, name) = (self.subject(bucket, key), Self::name(&self.stream, bucket));
        let cure =
            || format!("as an operator, run: nats stream purge KV_{name} --subject='{subject}' --force");
        let stream = self.stream(bucket).await.map_err(|error| (error, cure()))?;
        match stream.purge().filter(subject.as_str()).await {
            Ok(_) => Ok(()),
            Err(error) => Err((unavailable(error), cure())),
        }
    }

    async fn publish(
        &self,
        bucket: Bucket,
        key: &str,
        value: Bytes,
        expected: Option<u64>,
        deletes: bool,
    ) -> Result<u64, KvError> {
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert(EXPECTED, expected.to_string());
        }
        if deletes {
            headers.insert(OPERATION, DELETED);
        }
        let sent = self.context.publish_with_headers(self.subject(bucket, key), headers, value).await;
        let acknowledged = match sent {
            Ok(acknowledged) => acknowledged.await,
            Err(error) => Err(error),
        };
        match acknowledged {
            Ok(acknowledged) => Ok(acknowledged.sequence),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Err(KvError::Conflict),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// See [`Bus::kv_list`](crate::bus::Bus::kv_list).
    pub(super) async fn list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError> {
        let mut watch = self.begin(bucket, prefix).await?;
        let entries = watch.snapshot().await;
        watch.end().await;
        entries
    }

    /// See [`Bus::kv_watch`](crate::bus::Bus::kv_watch).
    pub(super) async fn watch(
        &self,
        bucket: Bucket,
        prefix: &str,
    ) -> Result<mpsc::Receiver<Change>, KvError> {
        let mut watch = self.begin(bucket, prefix).await?;
        // Before anything is given back: what is written from now on is a change and not part of what there was.
        let entries = watch.snapshot().await?;
        let (changes, receiver) = mpsc::channel(entries.len() + 1 + WATCH_BEHIND_MAX);
        for change in entries.into_iter().map(Change::Put).chain([Change::Synced]) {
            // The channel was made large enough, and its receiver is still here.
            let _ = changes.try_send(change);
        }
        tokio::spawn(watch.forward(changes));
        Ok(receiver)
    }

    async fn begin(&self, bucket: Bucket, prefix: &str) -> Result<Watch, KvError> {
        let stream = self.stream(bucket).await?;
        // With a name, since that is a request which permissions can be given for by the bucket.
        let inbox = self.context.client().new_inbox();
        let config = pull::Config {
            name: inbox.rsplit('.').next().map(|unique| format!("watch_{unique}")),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            filter_subject: format!("{}>", self.subjects(bucket)),
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(unavailable)?;
        let info = consumer.cached_info();
        let (name, pending) = (info.name.clone(), info.num_pending);
        let messages = consumer.stream().heartbeat(HEARTBEAT).expires(PULL_EXPIRES).messages();
        let messages = timeout(REQUEST_TIMEOUT, messages).await.map_err(unavailable)?.map_err(unavailable)?;
        Ok(Watch {
            stream,
            name,
            pending,
            messages,
            subjects: self.subjects(bucket),
            prefix: prefix.to_owned(),
        })
    }
}

/// What a key holds.
struct Last {
    revision: u64,
    deleted: bool,
    value: Bytes,
}

/// A consumer of a bucket: first the last message of each key, then all that follow.
struct Watch {
    stream: Stream<()>,
    name: String,
    /// Messages there were when it began.
    pending: u64,
    messages: pull::Stream,
    subjects: String,
    prefix: String,
}

impl Watch {
    /// The entries there were, by key.
    async fn snapshot(&mut self) -> Result<Vec<Entry>, KvError> {
        let read = async {
            let mut entries = BTreeMap::new();
            while self.pending > 0 {
                let (change, left) = self.next().await?;
                self.pending = (self.pending - 1).min(left);
                match change {
                    Some(Change::Put(entry)) => drop(entries.insert(entry.key.clone(), entry)),
                    Some(Change::Deleted { key }) => drop(entries.remove(&key)),
                    _ => {}
                }
            }
            Ok(entries.into_values().collect())
        };
        timeout(SNAPSHOT_TIMEOUT, read).await.map_err(unavailable)?
    }

    /// The next message as a change, if it is of the prefix, and how many follow that are there already.
    async fn next(&mut self) -> Result<(Option<Change>, u64), KvError> {
        let message =
            self.messages.next().await.ok_or_else(|| KvError::Unavailable("the watch ended".into()))?;
        let message = message.map_err(unavailable)?;
        let info = message.info().map_err(unavailable)?;
        let (revision, left) = (info.stream_sequence, info.pending);
        let key = message.subject.strip_prefix(self.subjects.as_str()).and_then(unescape);
        let Some(key) = key.filter(|key| key.starts_with(&self.prefix)) else { return Ok((None, left)) };
        let change = match message.headers.as_ref().is_some_and(is_deletion) {
            true => Change::Deleted { key },
            false => Change::Put(Entry { key, revision, value: message.payload.clone() }),
        };
        Ok((Some(change), left))
    }

    /// Hands changes on until nobody wants them, the reader is too far behind, or the server has lost the consumer.
    async fn forward(mut self, changes: mpsc::Sender<Change>) {
        loop {
            let next = tokio::select! {
                () = changes.closed() => break,
                next = self.next() => next,
            };
            let Ok((change, _)) = next else { break };
            // A reader that can't take the change has lost count.
            if change.is_some_and(|change| changes.try_send(change).is_err()) {
                break;
            }
        }
        self.end().await;
    }

    /// Removes the consumer now instead of when the server notices.
    async fn end(self) {
        let _ = timeout(REQUEST_TIMEOUT, self.stream.delete_consumer(&self.name)).await;
    }
}

/// A revision that some write has had: the server takes 0 for "no such key", which nobody who updates means.
fn written(revision: u64) -> Result<u64, KvError> {
    if revision == 0 { Err(KvError::Conflict) } else { Ok(revision) }
}

fn is_deletion(headers: &HeaderMap) -> bool {
    headers.get(OPERATION).is_some()
}

fn encode(key: &str) -> String {
    escape(key, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'-'))
}

fn unavailable(error: impl std::fmt::Display) -> KvError {
    KvError::Unavailable(error.to_string())
}
