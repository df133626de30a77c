//! Keeps the request budget over gateways that take turns at polling: what this one may send is noted on the bus
//! before it is sent, and what the one before it noted is counted first (see
//! [`budget`](crate::globalsim::budget)).
//!
//! The note is written by compare-and-set, so that a gateway that was stopped and goes on after another has taken
//! over finds that out here too, before it sends anything.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::RETRY;
use crate::{
    bus::{Bucket, Bus, Change, Entry, KvError},
    globalsim::budget::{Gate, Noted},
};

/// Key in [`Bucket::State`].
pub const KEY: &str = "budget";
/// Pause after a note that could not be written; what was noted before may be spent meanwhile.
const PAUSE: Duration = Duration::from_millis(250);

/// When this gateway first saw the newest note of another.
#[derive(Debug, Default)]
pub struct Witness(Mutex<Option<(u64, Instant)>>);

impl Witness {
    /// Watches the notes while another gateway polls.
    pub async fn watch(&self, bus: &Arc<dyn Bus>) -> ! {
        loop {
            if let Ok(mut changes) = bus.kv_watch(Bucket::State, KEY).await {
                while let Some(change) = changes.recv().await {
                    if let Change::Put(entry) = change
                        && entry.key == KEY
                    {
                        self.see(entry.revision);
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn see(&self, revision: u64) {
        let mut newest = self.0.lock();
        if newest.is_none_or(|(seen, _)| revision > seen) {
            *newest = Some((revision, Instant::now()));
        }
    }

    /// How long ago a note was seen for the first time.
    fn seen_ago(&self, revision: u64) -> Duration {
        let newest = *self.0.lock();
        newest.filter(|(seen, _)| *seen == revision).map_or(Duration::ZERO, |(_, at)| at.elapsed())
    }
}

/// Notes what may be sent, again and again; comes back when another gateway has taken over. `by` names this run.
pub async fn run(gate: &Gate, bus: &Arc<dyn Bus>, witness: &Witness, by: &str) {
    let mut revision = take_over(gate, bus, witness, by).await;
    loop {
        let note = gate.note(by);
        let value = serde_json::to_vec(&note.noted).unwrap_or_default().into();
        let written = match revision {
            Some(revision) => bus.kv_update(Bucket::State, KEY, value, revision).await,
            None => bus.kv_create(Bucket::State, KEY, value).await,
        };
        match written {
            Ok(written) => {
                revision = Some(written);
                gate.grant(&note);
                gate.note_is_due().await;
            }
            Err(KvError::Unavailable(why)) => {
                tracing::warn!(why, "the request budget can't be noted on the bus; nothing is sent without");
                tokio::time::sleep(PAUSE).await;
            }
            Err(KvError::Conflict) => {
                // Or it is a write of our own, of which the answer was lost.
                let entry = read(bus).await;
                match entry.filter(|entry| noted(entry).is_some_and(|noted| noted.by == by)) {
                    Some(entry) => revision = Some(entry.revision),
                    None => {
                        gate.revoke();
                        return;
                    }
                }
            }
        }
    }
}

/// Notes that nothing more will be sent, so that the next gateway need not count what was kept in reserve. Where that
/// fails it counts it.
pub async fn leave(gate: &Gate, bus: &Arc<dyn Bus>, by: &str) {
    gate.revoke();
    let Ok(Some(entry)) = bus.kv_get(Bucket::State, KEY).await else { return };
    if noted(&entry).is_some_and(|noted| noted.by == by) {
        let noted = Noted { reserve: 0, ..gate.note(by).noted };
        let value = serde_json::to_vec(&noted).unwrap_or_default().into();
        let _ = bus.kv_update(Bucket::State, KEY, value, entry.revision).await;
    }
}

/// Counts what is noted; gives its revision.
async fn take_over(gate: &Gate, bus: &Arc<dyn Bus>, witness: &Witness, by: &str) -> Option<u64> {
    gate.revoke();
    let entry = read(bus).await?;
    match noted(&entry) {
        // This run's own: it is counted already.
        Some(noted) if noted.by == by => {}
        Some(noted) => {
            let seen_ago = witness.seen_ago(entry.revision);
            gate.take_over(&noted, seen_ago);
            let (taken, usage) = (noted.taken.iter().map(|(_, count)| count).sum::<u32>(), gate.usage());
            tracing::debug!(
                taken,
                reserve = noted.reserve,
                seen_ago_ms = seen_ago.as_millis() as u64,
                used = usage.used_total,
                "what another gateway may have sent is counted"
            );
        }
        None => {
            tracing::error!("what is noted of the request budget can't be understood; a minute is waited");
            gate.assume_spent();
        }
    }
    Some(entry.revision)
}

fn noted(entry: &Entry) -> Option<Noted> {
    serde_json::from_slice(&entry.value).ok()
}

/// As long as it takes.
async fn read(bus: &Arc<dyn Bus>) -> Option<Entry> {
    loop {
        match bus.kv_get(Bucket::State, KEY).await {
            Ok(entry) => return entry,
            Err(error) => {
                tracing::error!(%error, "what is noted of the request budget can't be read; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
