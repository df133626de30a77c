//! The registry: what is known of each SIM, from the log's events and the configuration's list.
//!
//! One compact entry per SIM in memory, the newest of each thing by the time of the events ([`entry`]). A follower of
//! the log keeps it current; a checkpoint with the position that it is good for bounds what a start has to read. What
//! is in it is a function of the events up to that position, read from the oldest or from any checkpoint, so that it can
//! be made again at any time from what the log holds; it may know more than that, since retention takes events and not
//! entries.

mod checkpoint;
mod entry;
mod glance;
mod page;
mod sessions;
mod shown;
mod state;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::state::State;
use super::megabytes::Megabytes;
use crate::{
    clock::SharedClock,
    event::{Cursor, Filter, Iccid, Predicate},
    log::{Log, ReadPage, follow::Follower},
};

pub use page::{Listing, Place, Presence, Query, Sort, Tokens};
pub use shown::{LastEvent, MonthUsage, OpenSession, Reported, Sim, Source};

/// SIMs that are kept; events of further ones are counted, and nothing else is known of these.
pub const SIMS_MAX: usize = 1_000_000;

/// Shortest time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// A checkpoint takes at most one part in this of the time, however many SIMs there are.
const CHECKPOINT_SHARE: u32 = 20;
/// Between two attempts to read a log that the disk does not give.
const RETRY: Duration = Duration::from_secs(1);

/// How the registry is kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where its checkpoint lies; None: in memory only.
    pub directory: Option<PathBuf>,
    /// SIMs that are known without an event.
    pub iccids: Vec<Iccid>,
    /// SIMs that are kept.
    pub sims_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { directory: None, iccids: Vec::new(), sims_max: SIMS_MAX }
    }
}

/// Why a SIM was not forgotten for good.
#[derive(Debug, thiserror::Error)]
#[error("the registry's checkpoint can't be written: {0}")]
pub struct Error(#[from] io::Error);

/// The registry as others see it; clones are the same.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    log: Arc<Log>,
    clock: SharedClock,
    state: RwLock<State>,
    /// Held while a checkpoint is written; `state` is only read meanwhile.
    writing: Mutex<()>,
    iccids: Mutex<(u64, Arc<[Iccid]>)>,
}

/// One SIM with the position that it is known at.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The SIM.
    pub sim: Sim,
    /// Up to where the log is in it.
    pub as_of: Cursor,
    /// `observed_at` of the newest event that is in the registry.
    pub as_of_time: Option<jiff::Timestamp>,
}

impl Handle {
    /// What is known of a SIM, where a reader with this predicate may see it. May read the disk.
    pub fn find(&self, iccid: &Iccid, predicate: &Predicate) -> Option<Found> {
        let now = self.0.clock.now();
        let state = self.0.state.read();
        let (iccid, entry) = state.sims.get_key_value(iccid)?;
        predicate.matches(&entry.keys(iccid)).then(|| Found {
            sim: Sim::of(iccid, entry, self.0.log.incarnation(), now),
            as_of: self.0.log.cursor_at(state.position),
            as_of_time: state.as_of(),
        })
    }

    /// What is known of a SIM.
    pub fn get(&self, iccid: &Iccid) -> Option<Sim> {
        let state = self.0.state.read();
        let entry = state.sims.get(iccid)?;
        Some(Sim::of(iccid, entry, self.0.log.incarnation(), self.0.clock.now()))
    }

    /// A page of SIMs. Looks at all of them, which takes a tenth of a second for a million, and may read the disk.
    pub fn list(&self, query: &Query) -> Listing {
        let (now, incarnation) = (self.0.clock.now(), self.0.log.incarnation());
        let state = self.0.state.read();
        let show = |iccid: &Iccid, entry: &_| Sim::of(iccid, entry, incarnation, now);
        let (sims, next, total) = page::read(&state, query, show);
        let as_of = self.0.log.cursor_at(state.position);
        Listing { sims, next, total, as_of, as_of_time: state.as_of() }
    }

    /// SIMs that are known.
    pub fn len(&self) -> usize {
        self.0.state.read().sims.len()
    }

    /// Whether no SIM is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All SIMs that are known, in order. Shared: nothing is copied unless a SIM came or went since the last call.
    pub fn iccids(&self) -> Arc<[Iccid]> {
        let state = self.0.state.read();
        let mut known = self.0.iccids.lock();
        if known.0 != state.generation {
            *known = (state.generation, state.sims.keys().cloned().collect());
        }
        Arc::clone(&known.1)
    }

    /// Positions of the log that are not in the registry yet.
    pub fn lag(&self) -> u64 {
        let edge = *self.0.log.edge().borrow();
        edge.saturating_sub(self.0.state.read().position)
    }

    /// Removes a SIM, for good once this returns: events of it that lie in the log by now are not taken in any more,
    /// and no checkpoint has it. One that the configuration names is back with the next start. Gives whether it was
    /// known.
    ///
    /// # Errors
    /// Where the disk refuses; the SIM is gone from memory, and calling it again tries the rest again.
    pub async fn forget(&self, iccid: &Iccid) -> Result<bool, Error> {
        let (shared, iccid) = (Arc::clone(&self.0), iccid.clone());
        let forget = move || {
            let edge = *shared.log.edge().borrow();
            let known = shared.state.write().forget(&iccid, edge);
            shared.checkpoint().map(|()| known)
        };
        let forgotten = tokio::task::spawn_blocking(forget).await;
        Ok(forgotten.unwrap_or_else(|error| Err(io::Error::other(error)))?)
    }
}

impl Shared {
    fn absorb(&self, page: &ReadPage) {
        let (sims, online, refused) = {
            let mut state = self.state.write();
            let refused = state.refused;
            state.absorb(&page.events, page.next);
            (state.sims.len(), state.online, state.refused - refused)
        };
        metrics::gauge!("simcast_registry_sims").set(sims as f64);
        metrics::gauge!("simcast_registry_sims_online").set(online as f64);
        metrics::counter!("simcast_registry_refused_total").increment(refused);
        let edge = *self.log.edge().borrow();
        metrics::gauge!("simcast_registry_lag_events").set(edge.saturating_sub(page.next) as f64);
    }

    /// Blocks on the disk.
    fn checkpoint(&self) -> io::Result<()> {
        let Some(directory) = &self.config.directory else { return Ok(()) };
        // First this one: whoever waits for it must not keep the state from being changed.
        let _writing = self.writing.lock();
        let state = self.state.read();
        checkpoint::write(directory, &state, self.log.cursor_at(state.position))
    }
}

/// The part that runs.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    follower: Follower,
}

/// Reads the checkpoint, where there is a good one of this log. Blocks on the disk.
pub fn open(config: Config, log: &Arc<Log>, clock: SharedClock) -> (Handle, Registry) {
    let mut state = State::new(config.sims_max);
    let read = config.directory.as_ref().map_or(Ok(None), |path| checkpoint::read(path, &mut state));
    let kept = read.unwrap_or_else(|error| {
        tracing::warn!(%error, "the registry's checkpoint can't be used; it is made again from the log");
        None
    });
    let (follower, goes_on) = Follower::new(log, Predicate::new(Filter::default(), None), kept);
    if !goes_on {
        state = State::new(config.sims_max);
    }
    state.position = follower.position();
    state.configure(&config.iccids);
    let shared = Arc::new(Shared {
        config,
        log: Arc::clone(log),
        clock,
        state: RwLock::new(state),
        writing: Mutex::default(),
        iccids: Mutex::new((0, Arc::default())),
    });
    (Handle(Arc::clone(&shared)), Registry { shared, follower })
}

impl Registry {
    /// Follows the log until told to stop, and leaves a checkpoint.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut unwritten = false;
        let mut next_checkpoint = Instant::now() + CHECKPOINT_EVERY;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                page = self.follower.next() => match page {
                    Ok(page) => {
                        self.blocking(move |shared| shared.absorb(&page)).await;
                        unwritten = true;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the registry can't read the log");
                        tokio::time::sleep(RETRY).await;
                    }
                },
                () = tokio::time::sleep_until(next_checkpoint), if unwritten => {
                    let took = self.checkpoint().await;
                    unwritten = false;
                    next_checkpoint = Instant::now() + CHECKPOINT_EVERY.max(took * CHECKPOINT_SHARE);
                }
            }
        }
        if unwritten {
            self.checkpoint().await;
        }
    }

    /// Writes a checkpoint and gives how long that took. Without one the next start reads more of the log.
    async fn checkpoint(&self) -> Duration {
        let begun = Instant::now();
        self.blocking(|shared| {
            if let Err(error) = shared.checkpoint() {
                tracing::warn!(%error, "the registry's checkpoint can't be written");
            }
        })
        .await;
        begun.elapsed()
    }

    async fn blocking(&self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        if let Err(error) = tokio::task::spawn_blocking(move || work(&shared)).await {
            tracing::error!(%error, "the registry was interrupted");
        }
    }
}

#[cfg(test)]
mod tests;
