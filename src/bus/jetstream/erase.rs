//! Erasing a SIM from the stream, from this gateway's copy, and from those of all others, also the ones that are away.
//!
//! Copies lie at the stream's sequences, so one gateway can tell the others what to erase without naming the SIM: it
//! writes what stays of each event ([`Tombstone`]: position, hashes, times) into the bucket of states, under
//! [`ANNOUNCED`]. Each gateway applies that to its copy, at once if it runs, else before it looks at the stream again;
//! one whose copy is filled anew puts the places in where the stream has nothing any more. So ids stay known and cursors
//! go on working everywhere, and the copy's newest events are compared with the stream only after what is purged has
//! left both. An announcement is removed when no copy can hold what it tells of.
//!
//! The order: wait until the copy has everything that the stream has at this moment, announce, erase in the copy, purge
//! the stream up to that moment by the subjects of the SIM. After a crash at any point the same can be asked again: the
//! purge needs no copy, and what was announced is applied whatever happens.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Chance, JetStream,
    kv::Buckets,
    mirror::{Mirror, Source},
    subject,
};
use crate::{
    bus::{
        Bucket, Change, DEVICE_KEY_PREFIX, EraseError, Erased, Fill, KvError, Left, SIM_KEY_PREFIX, is_of_sim,
    },
    event::{Iccid, identity::FieldHasher},
    log::Tombstone,
};

/// Begins the keys of announcements.
pub(super) const ANNOUNCED: &str = "erase.";
/// Events of one announcement: some 700 KB, where a value may have 1 MiB.
const EVENTS_MAX: usize = 8_000;
/// How long the copy may take to get what the stream has.
const CATCH_UP: Duration = Duration::from_secs(30);
/// Pause before announcements are followed again.
const PAUSE: Duration = Duration::from_secs(5);
/// An announcement outlives what it tells of by twice the retention, which waits for readers, and never goes before
/// this: ids are known for so long at least.
const KEPT_DAYS_MIN: i64 = 8;

/// Keys and values that announce the events, in order of position: of these alone, so that saying it again changes nothing.
pub(super) fn announcements(incarnation: u64, erased: &[Tombstone]) -> Vec<(String, Bytes)> {
    let one = |events: &[Tombstone]| {
        let value = Tombstone::encode_all(incarnation, events);
        let newest_s = events.iter().map(Tombstone::observed_s).max().unwrap_or_default();
        let mut hasher = FieldHasher::new("erase");
        hasher.field(Some(&hex::encode(&value)));
        (format!("{ANNOUNCED}{newest_s:012}.{:016x}", hasher.finish_u64()), Bytes::from(value))
    };
    erased.chunks(EVENTS_MAX).map(one).collect()
}

/// Everything that is announced, by position.
///
/// # Errors
/// Where the bucket can't be read.
pub(super) async fn announced(source: &Source, incarnation: u64) -> Result<Vec<Tombstone>, KvError> {
    let buckets = Buckets::new(source.context.clone(), &source.stream);
    let entries = buckets.list(Bucket::State, ANNOUNCED).await?;
    let mut all: Vec<_> =
        entries.iter().flat_map(|entry| Tombstone::decode_all(incarnation, &entry.value)).collect();
    all.sort_unstable_by_key(|one| one.seq);
    all.dedup_by_key(|one| one.seq);
    Ok(all)
}

impl Mirror {
    /// Erases in the copy what was announced; what is not there yet will not come in. Tells which SIMs that were.
    pub(super) async fn apply(self: &Arc<Self>, erased: Vec<Tombstone>) -> io::Result<()> {
        if erased.is_empty() {
            return Ok(());
        }
        self.expect_erased(&erased);
        let mirror = Arc::clone(self);
        let erase = move || mirror.log.erase_at(&erased);
        let iccids = tokio::task::spawn_blocking(erase).await.map_err(io::Error::other)??;
        self.tell_erased(iccids);
        Ok(())
    }

    pub(super) fn tell_erased(&self, iccids: BTreeSet<String>) {
        for iccid in iccids {
            if self.erased_elsewhere.0.try_send(iccid).is_err() {
                tracing::warn!(
                    "nobody takes note that a SIM was erased; its attempts of webhooks stay until they are old"
                );
            }
        }
    }
}

/// Applies announcements as they come, until the bus closes.
pub(super) async fn follow(
    buckets: Buckets,
    mirror: Arc<Mirror>,
    chance: Chance,
    stopping: CancellationToken,
) {
    let following = async {
        loop {
            if let Err(error) = follow_once(&buckets, &mirror).await {
                tracing::warn!(error, "erasures of other gateways can't be followed; it is tried again");
            }
            tokio::time::sleep(chance.jittered(PAUSE)).await;
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = following => {}
    }
}

async fn follow_once(buckets: &Buckets, mirror: &Arc<Mirror>) -> Result<(), String> {
    let mut changes = buckets.watch(Bucket::State, ANNOUNCED).await.map_err(|error| error.to_string())?;
    while let Some(change) = changes.recv().await {
        let Change::Put(entry) = change else { continue };
        let erased = Tombstone::decode_all(mirror.log.incarnation(), &entry.value);
        mirror.expect_erased(&erased);
        let Some(last) = erased.last().map(|last| last.seq) else { continue };
        // What is being written at this moment may not have been expected yet.
        let mut evaluated = mirror.evaluated();
        evaluated.wait_for(|evaluated| *evaluated >= last).await.map_err(|error| error.to_string())?;
        mirror.apply(erased).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

impl JetStream {
    /// See the head of this file.
    pub(super) async fn erase_sim(&self, iccid: &Iccid) -> Result<Erased, EraseError> {
        let failed = |error: &dyn std::fmt::Display| EraseError(error.to_string());
        let _alone = self.erasing.lock().await;
        if self.stopping.is_cancelled() {
            return Err(EraseError("the bus is closed".to_owned()));
        }
        if *self.mirror.fill().borrow() != Fill::Complete {
            return Err(EraseError("the local copy of the stream is not complete".to_owned()));
        }
        let source = &self.appender.source;
        let stream = source.stream().await.map_err(|error| failed(&error.0))?;
        let through = stream.cached_info().state.last_sequence;
        self.mirror.look();
        let mut evaluated = self.mirror.evaluated();
        let caught_up = evaluated.wait_for(|evaluated| *evaluated >= through);
        timeout(CATCH_UP, caught_up)
            .await
            .map_err(|_| EraseError("the local copy is behind the stream".to_owned()))?
            .map_err(|error| failed(&error))?;

        let (log, sim) = (Arc::clone(&self.mirror.log), iccid.as_str().to_owned());
        let erasable = tokio::task::spawn_blocking(move || log.erasable(&sim, through)).await;
        let erasable = erasable.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        for (key, value) in announcements(self.mirror.log.incarnation(), &erasable) {
            self.buckets.put(Bucket::State, &key, value).await.map_err(|error| failed(&error))?;
        }
        self.mirror.expect_erased(&erasable);
        let (log, sim) = (Arc::clone(&self.mirror.log), iccid.as_str().to_owned());
        let removed = tokio::task::spawn_blocking(move || log.erase(&sim, through)).await;
        let removed = removed.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;

        let mut left = Vec::new();
        let subjects =
            format!("{}.events.*.{}.*", self.appender.subject_prefix, subject::token(iccid.as_str()));
        if let Err(error) = stream.purge().filter(subjects.as_str()).sequence(through + 1).await {
            let (name, seq) = (&source.stream, through + 1);
            tracing::warn!(%error, "the stream was not purged of a SIM");
            left.push(Left {
                what: format!("messages of the stream {name}: the servers refused the purge, or did not answer ({error})"),
                cure: format!(
                    "as an operator, run: nats stream purge {name} --subject='{subjects}' --seq={seq} --force; or let \
                     gateways publish to $JS.API.STREAM.PURGE.{name} and erase again"
                ),
            });
        }
        if !removed.redacted.is_empty() {
            left.push(Left {
                what: format!(
                    "{} messages of other SIMs in the stream {} that mention this one: a message can't be changed there",
                    removed.redacted.len(),
                    source.stream
                ),
                cure: "they go with the stream's retention; gateways do not show the mention, unless their copy is made \
                       anew"
                    .to_owned(),
            });
        }
        let (keys, kept) = self.erase_key(iccid).await.map_err(|error| failed(&error))?;
        left.extend(kept);
        self.forget_announcements().await;
        // Whoever follows announcements here may have been faster.
        let (events, mentions) = (erasable.len() as u64, removed.redacted.len() as u64);
        Ok(Erased { events, mentions, keys, left })
    }

    /// Removes the SIM's own key and its device's, and what the bucket remembers of its deletion: the key is the ICCID.
    async fn erase_key(&self, iccid: &Iccid) -> Result<(u64, Option<Left>), KvError> {
        let key = format!("{SIM_KEY_PREFIX}{iccid}");
        let mut keys = vec![key.clone()];
        let devices = self.buckets.list(Bucket::State, DEVICE_KEY_PREFIX).await?;
        keys.extend(
            devices.into_iter().filter(|entry| is_of_sim(entry, iccid.as_str())).map(|entry| entry.key),
        );
        let mut deleted = 0;
        for key in &keys {
            let get = || self.buckets.get(Bucket::State, key);
            while let Some(entry) = get().await?.filter(|entry| is_of_sim(entry, iccid.as_str())) {
                match self.buckets.delete(Bucket::State, key, entry.revision).await {
                    Ok(()) => deleted += 1,
                    // Its writer was faster.
                    Err(KvError::Conflict) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if self.buckets.is_forgotten(Bucket::State, &key).await? {
            return Ok((deleted, None));
        }
        let purged = self.buckets.purge(Bucket::State, &key).await;
        let left = purged.err().map(|(error, cure)| Left {
            what: format!("the name of a deleted key, which is the ICCID, in the bucket of states ({error})"),
            cure,
        });
        Ok((deleted, left))
    }

    /// Removes announcements of what no copy can hold any more.
    async fn forget_announcements(&self) {
        let days = (2 * i64::from(self.retention_days)).max(KEPT_DAYS_MIN) + 1;
        let oldest_s = self.appender.clock.now().as_second() - days * 24 * 3_600;
        let Ok(entries) = self.buckets.list(Bucket::State, ANNOUNCED).await else { return };
        let is_old = |key: &str| {
            let newest_s =
                key.strip_prefix(ANNOUNCED).and_then(|rest| rest.split('.').next()?.parse::<i64>().ok());
            newest_s.is_some_and(|newest_s| newest_s < oldest_s)
        };
        for entry in entries.iter().filter(|entry| is_old(&entry.key)) {
            if let Err(error) = self.buckets.delete(Bucket::State, &entry.key, entry.revision).await {
                tracing::debug!(%error, "an old announcement of an erasure stays for now");
            }
        }
    }
}

impl Tombstone {
    /// When it was appended, whole seconds since the epoch.
    fn observed_s(&self) -> i64 {
        Timestamp::from_microsecond(self.observed_us).map_or(0, Timestamp::as_second)
    }
}
