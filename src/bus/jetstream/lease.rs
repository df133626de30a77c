//! Leases: at most one gateway polls, at most one owns an endpoint.
//!
//! A lease is a key in the bucket of leases. Who creates it holds it and writes it anew every third of its time to
//! live; who finds it watches its revision. Clocks of machines are never compared: a lease has run out when the same
//! revision has stood for the whole time to live by the watcher's own monotonic clock, which began to count after that
//! write. The holder counts from before each write and gives up a tenth earlier, so it has stopped before anybody can
//! follow; a machine that was suspended finds out the same way, since its clock runs on. Times to live of the server
//! (bucket or message) are not used: async-nats can't renew one, and replicas have disagreed on expiry.
//!
//! That alone keeps two from polling at once except for a process that is stopped between a look at the clock and its
//! next write to the stream. The fence closes that: each holder announces itself by a message of the stream under the
//! lease's own subject, and every batch carries the condition that this announcement is the last one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Chance, append::FencedBy, kv::Buckets, subject};
use crate::bus::{AppendError, Bucket, Entry, Fence, KvError, Lease};

/// How often somebody who waits looks at the lease.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_millis(250);
/// Renewals in one time to live.
const RENEWALS: u32 = 3;
/// The holder gives up this part of the time to live before anybody may follow.
const MARGIN_PART: u32 = 10;
/// Age at which an announcement is made again, so that retention of the stream never removes the one in use. At
/// upstream's ceiling of 833 events a second, 3 GiB come in between.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(3_600);

/// What the key holds.
#[derive(Debug, Serialize)]
struct Held {
    /// Drawn by each holder, so that it knows a write of its own whose answer was lost.
    holder: String,
    /// For people who look at the bucket, as the rest is.
    ttl_s: u64,
    /// Name of the machine or container.
    host: String,
    /// Process there.
    pid: u32,
    /// When it opened the bus, by its own clock.
    started: Timestamp,
}

/// What this process is called by its machine; empty where it has no name.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The leases that this process takes.
#[derive(Debug)]
pub(super) struct Leases {
    buckets: Buckets,
    context: jetstream::Context,
    prefix: String,
    chance: Chance,
    started: Timestamp,
    stopping: CancellationToken,
    /// By the fence that was given out: the announcement that counts now.
    announced: Arc<Mutex<HashMap<u64, Announced>>>,
}

#[derive(Debug, Clone)]
struct Announced {
    by: FencedBy,
    at: Instant,
}

impl Leases {
    pub(super) fn new(
        buckets: Buckets,
        context: jetstream::Context,
        prefix: &str,
        chance: Chance,
        started: Timestamp,
        stopping: CancellationToken,
    ) -> Self {
        let prefix = prefix.to_owned();
        Self { buckets, context, prefix, chance, started, stopping, announced: Arc::default() }
    }

    /// See [`Bus::lease`](crate::bus::Bus::lease).
    pub(super) async fn lease(&self, name: &str, ttl: Duration) -> Result<Lease, KvError> {
        let closed = || KvError::Unavailable("the bus is closed".to_owned());
        let held = Held {
            holder: format!("{:016x}", self.chance.name()),
            ttl_s: ttl.as_secs(),
            host: host(),
            pid: std::process::id(),
            started: self.started,
        };
        let value: Bytes = serde_json::to_vec(&held).unwrap_or_default().into();
        let (revision, since) = tokio::select! {
            () = self.stopping.cancelled() => return Err(closed()),
            taken = self.take(name, &held, &value, ttl) => taken?,
        };
        let holding =
            Holding { buckets: self.buckets.clone(), name: name.to_owned(), holder: held.holder, value };
        let announced = tokio::select! {
            () = self.stopping.cancelled() => Err(closed()),
            announced = self.announce(name, None) => announced,
        };
        let fence = match announced {
            Ok(announced) => {
                let fence = announced.by.seq;
                self.announced.lock().insert(fence, announced);
                fence
            }
            Err(error) => {
                // Whether it is in the stream or not: the next holder announces itself behind it.
                holding.release(revision).await;
                return Err(error);
            }
        };
        let (lost_sender, lost) = watch::channel(false);
        let released = CancellationToken::new();
        let release = released.clone().drop_guard();
        let (stopping, table) = (self.stopping.clone(), Arc::clone(&self.announced));
        tokio::spawn(async move {
            let mut revision = revision;
            let is_lost = tokio::select! {
                () = released.cancelled() => false,
                () = stopping.cancelled() => false,
                () = holding.keep(&mut revision, since, ttl) => true,
            };
            table.lock().remove(&fence);
            lost_sender.send_replace(true);
            if !is_lost {
                holding.release(revision).await;
            }
        });
        Ok(Lease { fence: Fence(fence), lost, release })
    }

    /// Waits until the lease can be taken, and takes it; gives the revision and a moment before the write.
    async fn take(
        &self,
        name: &str,
        held: &Held,
        value: &Bytes,
        ttl: Duration,
    ) -> Result<(u64, Instant), KvError> {
        // The revision that stands, and since when at the latest.
        let mut standing: Option<(u64, Instant)> = None;
        loop {
            let found = self.buckets.get(Bucket::Lease, name).await?;
            let now = Instant::now();
            let write = match found {
                None => Some(self.buckets.create(Bucket::Lease, name, value.clone()).await),
                // A write whose answer was lost.
                Some(entry) if holder(&entry).is_some_and(|found| found == held.holder) => {
                    Some(Ok(entry.revision))
                }
                Some(entry) => match standing {
                    Some((revision, since)) if revision == entry.revision => match since.elapsed() >= ttl {
                        true => Some(self.buckets.update(Bucket::Lease, name, value.clone(), revision).await),
                        false => None,
                    },
                    _ => {
                        standing = Some((entry.revision, now));
                        None
                    }
                },
            };
            match write {
                Some(Ok(revision)) => return Ok((revision, now)),
                // Somebody else was faster, or it is not known: look again.
                Some(Err(KvError::Conflict)) => {}
                Some(Err(error @ KvError::Unavailable(_))) => {
                    tracing::debug!(%error, name, "a lease was not taken")
                }
                None => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Announces a holder in the stream; `after` is the announcement that must be the last one.
    async fn announce(&self, name: &str, after: Option<u64>) -> Result<Announced, KvError> {
        let subject = subject::fence(&self.prefix, name);
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert("Nats-Expected-Last-Subject-Sequence", after.to_string());
        }
        let at = Instant::now();
        let unavailable = |error: jetstream::context::PublishError| match error.kind() {
            jetstream::context::PublishErrorKind::WrongLastSequence => KvError::Conflict,
            _ => KvError::Unavailable(error.to_string()),
        };
        let sent = self.context.publish_with_headers(subject.clone(), headers, Bytes::new());
        let acknowledged = sent.await.map_err(unavailable)?.await.map_err(unavailable)?;
        Ok(Announced { by: FencedBy { subject, seq: acknowledged.sequence }, at })
    }

    /// The condition that a batch under this fence must carry. Not to be called while such a batch is on its way: an
    /// announcement that has grown old is made again here.
    pub(super) async fn condition(&self, fence: Fence) -> Result<FencedBy, AppendError> {
        let announced = self.announced.lock().get(&fence.0).cloned();
        // A lease that was given up is not ours, whether anybody holds it or not.
        let announced = announced.ok_or(AppendError::Fenced)?;
        if announced.at.elapsed() < ANNOUNCE_EVERY {
            return Ok(announced.by);
        }
        let name = announced.by.subject.rsplit('.').next().unwrap_or_default().to_owned();
        match self.announce_again(&name, announced.by.seq).await {
            Ok(again) => {
                let by = again.by.clone();
                if let Some(announced) = self.announced.lock().get_mut(&fence.0) {
                    *announced = again;
                }
                Ok(by)
            }
            Err(KvError::Conflict) => Err(AppendError::Fenced),
            Err(KvError::Unavailable(reason)) => Err(AppendError::Unavailable(reason)),
        }
    }

    /// `token` is as in the subject.
    async fn announce_again(&self, token: &str, after: u64) -> Result<Announced, KvError> {
        let name = subject::unescape(token).unwrap_or_default();
        self.announce(&name, Some(after)).await
    }
}

/// A lease that is held.
struct Holding {
    buckets: Buckets,
    name: String,
    holder: String,
    value: Bytes,
}

impl Holding {
    /// Renews it until it is lost. `since` is a moment before the last write that succeeded.
    async fn keep(&self, revision: &mut u64, mut since: Instant, ttl: Duration) {
        let lasts = ttl - ttl / MARGIN_PART;
        loop {
            tokio::time::sleep_until((since + ttl / RENEWALS).max(Instant::now() + RETRY)).await;
            let (now, ends) = (Instant::now(), since + lasts);
            if now >= ends {
                tracing::warn!(name = self.name, "a lease ran out before it could be renewed");
                return;
            }
            let update = self.buckets.update(Bucket::Lease, &self.name, self.value.clone(), *revision);
            match tokio::time::timeout_at(ends, update).await {
                Ok(Ok(renewed)) => (*revision, since) = (renewed, now),
                Ok(Err(KvError::Conflict)) => match self.buckets.get(Bucket::Lease, &self.name).await {
                    // A renewal whose answer was lost.
                    Ok(Some(entry)) if holder(&entry).as_deref() == Some(&self.holder) => {
                        *revision = entry.revision
                    }
                    Ok(_) => {
                        tracing::warn!(name = self.name, "a lease was taken by another gateway");
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "a lease can't be looked at"),
                },
                Ok(Err(error @ KvError::Unavailable(_))) => {
                    tracing::warn!(%error, name = self.name, "a lease can't be renewed; it is tried again");
                }
                Err(_) => {}
            }
        }
    }

    /// Gives it up, so that nobody has to wait until it has run out.
    async fn release(&self, revision: u64) {
        match self.buckets.delete(Bucket::Lease, &self.name, revision).await {
            Ok(()) => {}
            // A renewal was on its way when it ended.
            Err(KvError::Conflict) => {
                if let Ok(Some(entry)) = self.buckets.get(Bucket::Lease, &self.name).await
                    && holder(&entry).as_deref() == Some(&self.holder)
                {
                    let _ = self.buckets.delete(Bucket::Lease, &self.name, entry.revision).await;
                }
            }
            Err(error) => tracing::debug!(%error, name = self.name, "a lease was not released; it runs out"),
        }
    }
}

fn holder(entry: &Entry) -> Option<String> {
    #[derive(Deserialize)]
    struct Only {
        holder: String,
    }
    serde_json::from_slice::<Only>(&entry.value).ok().map(|held| held.holder)
}
