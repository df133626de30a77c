//! Roll-ups: what happened by hour and by SIM, kept for 400 days though the log keeps 7.
//!
//! | kept | by | of |
//! |---|---|---|
//! | kinds | UTC hour, event type, country, operator, network type | events, late, repaired, sessions, data |
//! | SIMs | UTC day, SIM | events by type, late, repaired, sessions, data by country, changes of country |
//! | changes | UTC day, from country, to country | network changes |
//!
//! Events are counted ([`count`]) into cells in memory ([`cells`]). Twice a minute, and whenever there are
//! [`CELLS_MAX`] of them, they are added to the files of their days ([`codec`]) and committed together with the
//! position in the log ([`store`]): a kill at any time loses or doubles nothing. A late event of a closed day opens it
//! again that way. Memory holds those cells, a table of [`sessions`], and one day while its file is written.
//!
//! Each gateway has its own, made from what the log holds when it begins: [`Meta::since`].

pub mod cells;
pub mod codec;
pub mod count;
pub mod data;
pub mod sessions;
pub mod sim;
pub mod store;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::{RwLock, RwLockUpgradableReadGuard, RwLockWriteGuard};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use self::{
    cells::{Day, Names},
    codec::Cell,
    count::{Counter, DAYS_KEPT, Skipped, day_of},
    sim::Sim,
    store::{Kept, Store},
};
use crate::{
    bus::Fill,
    event::{Cursor, Predicate, StoredEvent},
    log::{CursorState, Hole, Log, ReadPage, follow::Follower},
    sabotage::{self, Bug},
};

/// Cells in memory at which they are committed; about 30 MiB.
pub const CELLS_MAX: usize = 100_000;

/// How long what was counted may stay in memory only: what a kill makes the next start read again.
const COMMIT_EVERY: Duration = Duration::from_secs(30);

/// How soon a disk that refused is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// SIMs that are being erased at a time.
const ERASING_MAX: usize = 1_000;

/// How roll-ups are kept.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Directory of its own, made when missing; None keeps them in memory.
    pub directory: Option<PathBuf>,
}

/// The disk refuses.
#[derive(Debug, thiserror::Error)]
#[error("the roll-ups can't be kept: {0}")]
pub struct Error(#[from] io::Error);

/// The roll-ups of one gateway; clones are the same.
#[derive(Debug, Clone)]
pub struct Rollup(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    log: Arc<Log>,
    store: Store,
    state: RwLock<State>,
    is_ready: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    counter: Counter,
    kept: Kept,
    /// Up to where events of these SIMs are not counted: they were erased while they might have been on their way.
    erasing: HashMap<Sim, u64>,
    is_dirty: bool,
}

/// How far the roll-ups reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// When the first event that was counted was appended; None where there was none.
    pub since: Option<Timestamp>,
    /// When the last one was.
    pub as_of: Option<Timestamp>,
    /// Position up to which the log is counted.
    pub cursor: Option<Cursor>,
    /// What could not be counted.
    pub skipped: Skipped,
    /// Whether everything that the log held when the gateway started has been counted.
    pub is_ready: bool,
}

impl Rollup {
    /// Opens what was kept, of this log. Blocks on the disk.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn open(config: &Config, log: &Arc<Log>) -> Result<Self, Error> {
        let store = Store::open(config.directory.clone())?;
        let kept = store.load()?;
        Ok(Self::on(store, kept, log))
    }

    fn on(store: Store, mut kept: Kept, log: &Arc<Log>) -> Self {
        let counter = Counter {
            sessions: std::mem::take(&mut kept.sessions),
            skipped: kept.skipped,
            ..Counter::default()
        };
        let state = RwLock::new(State { counter, kept, ..State::default() });
        Self(Arc::new(Shared { log: Arc::clone(log), store, state, is_ready: AtomicBool::new(false) }))
    }

    /// Where they lie.
    pub fn log(&self) -> &Arc<Log> {
        &self.0.log
    }

    /// Bytes on disk; and cells in memory.
    pub fn size(&self) -> (u64, usize) {
        (self.0.store.bytes(), self.0.state.read().counter.cells())
    }

    /// How far they reach.
    pub fn meta(&self) -> Meta {
        self.meta_of(&self.0.state.read())
    }

    fn meta_of(&self, state: &State) -> Meta {
        Meta {
            since: state.kept.since,
            as_of: state.kept.as_of,
            cursor: state.kept.cursor,
            skipped: state.counter.skipped,
            is_ready: self.0.is_ready.load(Ordering::Acquire),
        }
    }

    /// Gives every cell of some days, and which of these days lost a file to damage. Blocks on the disk; counting and
    /// committing wait meanwhile.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn read(
        &self,
        days: RangeInclusive<i32>,
        mut call: impl FnMut(i32, Cell<'_>),
    ) -> io::Result<(Names, Meta, Vec<i32>)> {
        let state = self.0.state.read();
        let mut names = state.counter.names.clone();
        let mut damaged: Vec<_> = state.kept.damaged.iter().copied().filter(|d| days.contains(d)).collect();
        for (day, number) in state.kept.files.range(days.clone()) {
            let bytes = self.0.store.day(*day, *number)?;
            if codec::visit(&bytes, &mut names, |cell| call(*day, cell)).is_err() {
                tracing::error!(day, "the roll-up of a day is damaged");
                damaged.push(*day);
            }
        }
        for (day, cells) in state.counter.days.range(days) {
            cells.visit(|cell| call(*day, cell));
        }
        damaged.sort_unstable();
        damaged.dedup();
        Ok((names, self.meta_of(&state), damaged))
    }

    /// Where to go on reading: behind what was counted. Where the log is another one, or went back, everything is
    /// counted anew; what was counted of one that merely lost its oldest events is kept.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn follow(&self) -> Result<Follower, Error> {
        let mut state = self.0.state.write();
        if let Some(cursor) = state.kept.cursor
            && matches!(self.0.log.check(cursor), Err(CursorState::OtherIncarnation | CursorState::Regressed))
        {
            tracing::warn!("the roll-ups are of another history; they are made again");
            let before = std::mem::take(&mut *state);
            self.0.store.commit(&Kept::default(), &before.kept.files)?;
        }
        let after = state.kept.cursor;
        let (follower, goes_on) = Follower::new(&self.0.log, Predicate::unfiltered(), after);
        if let Some(cursor) = after.filter(|_| !goes_on) {
            state.counter.skipped.positions += follower.position().saturating_sub(cursor.seq);
        }
        Ok(follower)
    }

    /// Counts a page. `cursor` is the one behind it.
    pub fn count(&self, page: &ReadPage, cursor: Cursor) {
        let log = &self.0.log;
        let stored = |id: &str| -> Option<StoredEvent> { log.get(log.find(id)?.seq).ok().flatten() };
        let mut state = self.0.state.write();
        let State { counter, kept, erasing, is_dirty } = &mut *state;
        for event in &page.events {
            let Ok(keys) = event.keys() else { continue };
            let is_erased = |until: &u64| event.seq() <= *until;
            if !erasing.is_empty() && erasing.get(&Sim::pack(keys.iccid)).is_some_and(is_erased) {
                continue;
            }
            counter.count(event, stored);
            let observed = Timestamp::from_microsecond(keys.observed_us).ok();
            kept.since = kept.since.or(observed);
            kept.as_of = observed.or(kept.as_of);
        }
        let lost = |hole: &Hole| (hole.last_seq + 1).saturating_sub(hole.first_seq);
        counter.skipped.positions += page.holes.iter().map(lost).sum::<u64>();
        erasing.retain(|_, until| *until > cursor.seq);
        kept.cursor = Some(cursor);
        *is_dirty = true;
    }

    /// Writes down what has been counted since the last time. Blocks on the disk.
    ///
    /// # Errors
    /// Where the disk refuses: nothing of it is written then, and nothing lost.
    pub fn commit(&self) -> Result<(), Error> {
        let state = self.0.state.upgradable_read();
        if state.is_dirty { self.rewrite(state, None).map(drop) } else { Ok(()) }
    }

    /// Removes a SIM from every day, in memory and on disk; gives of how many days. What was counted by hour names no
    /// SIM and stays. The SIM's events must be gone from the log before: those that were read and not yet counted are
    /// passed over. Blocks on the disk.
    ///
    /// # Errors
    /// Where the disk refuses: the SIM may then still be there.
    pub fn forget(&self, iccid: &str) -> Result<u64, Error> {
        let sim = Sim::pack(Some(iccid));
        let edge = *self.0.log.edge().borrow();
        let mut state = self.0.state.write();
        if state.erasing.len() >= ERASING_MAX {
            return Err(io::Error::other("too many SIMs are being erased at once").into());
        }
        if sim == Sim::NONE {
            return Ok(0);
        }
        if state.kept.cursor.is_none_or(|cursor| cursor.seq < edge) {
            state.erasing.insert(sim, edge);
        }
        for day in state.counter.days.values_mut() {
            // The day is written again even where this was all that was new.
            day.sims.remove(&sim);
        }
        drop(state);
        self.rewrite(self.0.state.upgradable_read(), Some(sim))
    }

    fn rewrite(&self, state: RwLockUpgradableReadGuard<'_, State>, gone: Option<Sim>) -> Result<u64, Error> {
        let mut names = state.counter.names.clone();
        let mut kept = Kept { skipped: state.counter.skipped, ..state.kept.clone() };
        kept.sessions = state.counter.sessions.clone();
        let mut removed = 0;
        let candidates = match gone {
            Some(_) => state.kept.files.keys().chain(state.counter.days.keys()).copied().collect(),
            None => state.counter.days.keys().copied().collect::<std::collections::BTreeSet<_>>(),
        };
        let newest = kept.as_of.map_or(i32::MIN, |time| day_of(time.as_microsecond()));
        let oldest = newest.saturating_sub(DAYS_KEPT);
        for day in candidates.into_iter().filter(|day| *day > oldest) {
            let number = state.kept.files.get(&day).copied();
            let mut cells = match number {
                None => Day::default(),
                Some(number) => self.day(day, number, &mut names, &mut kept)?,
            };
            let had = gone.is_some_and(|sim| cells.sims.remove(&sim).is_some());
            removed += u64::from(had);
            match state.counter.days.get(&day) {
                None if !had => continue,
                None => {}
                Some(more) => cells.add(more),
            }
            let number = number.unwrap_or_default() + u64::from(!sabotage::on(Bug::RollUpInPlace));
            self.0.store.write_day(day, number, codec::encode(&cells, &names))?;
            kept.files.insert(day, number);
        }
        kept.files.retain(|day, _| *day > oldest);
        kept.damaged.retain(|day| *day > oldest);
        self.0.store.commit(&kept, &state.kept.files)?;
        let mut state: RwLockWriteGuard<'_, State> = RwLockUpgradableReadGuard::upgrade(state);
        // The table of sessions stays where it grows; that in the copy was only to be written.
        kept.sessions = sessions::Sessions::default();
        state.kept = kept;
        state.counter.days = BTreeMap::new();
        state.counter.names = Names::default();
        state.is_dirty = false;
        Ok(removed)
    }

    /// The cells of a day's file. One that is damaged is given up, and said to be.
    fn day(&self, day: i32, number: u64, names: &mut Names, kept: &mut Kept) -> io::Result<Day> {
        let mut cells = Day::default();
        let bytes = self.0.store.day(day, number)?;
        if codec::visit(&bytes, names, |cell| cells.add_cell(&cell)).is_err() {
            tracing::error!(day, "the roll-up of a day is damaged; it is begun anew");
            kept.damaged.push(day);
            return Ok(Day::default());
        }
        Ok(cells)
    }

    /// Counts what the log holds, as [`Rollup::run`] does, for tests of what asks for reports.
    #[cfg(test)]
    pub(crate) async fn count_all(&self) -> Result<(), Box<dyn std::error::Error>> {
        let mut follower = self.follow()?;
        while !follower.is_at_edge() {
            let page = follower.next().await?;
            self.count(&page, follower.cursor());
        }
        self.0.is_ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Counts along with the log until the gateway drains, then commits.
    pub async fn run(self, mut fill: watch::Receiver<Fill>, draining: CancellationToken) {
        let work = async {
            // A copy that is being filled would look like a log that went back. The bus that fills it outlives this.
            let _ = fill.wait_for(|fill| !matches!(fill, Fill::Filling { .. })).await;
            self.keep_counting().await;
        };
        tokio::select! {
            () = work => {}
            () = draining.cancelled() => {}
        }
        if let Err(error) = self.blocking(Self::commit).await {
            tracing::error!(%error, "the last of the roll-ups is counted again by the next start");
        }
    }

    async fn keep_counting(&self) {
        let mut follower = loop {
            match self.blocking(Self::follow).await {
                Ok(follower) => break follower,
                Err(error) => tracing::error!(%error, "the roll-ups can't begin"),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        };
        let target = *self.0.log.edge().borrow();
        let mut commit_at = Instant::now() + COMMIT_EVERY;
        loop {
            if follower.position() >= target {
                self.0.is_ready.store(true, Ordering::Release);
            }
            let is_full = self.0.state.read().counter.cells() >= CELLS_MAX;
            if is_full || Instant::now() >= commit_at {
                commit_at = Instant::now() + COMMIT_EVERY;
                if let Err(error) = self.blocking(Self::commit).await {
                    tracing::error!(%error, "the roll-ups wait for the disk");
                    if is_full {
                        tokio::time::sleep(RETRY_AFTER).await;
                        continue;
                    }
                }
            }
            let page = tokio::select! {
                page = follower.next() => page,
                () = tokio::time::sleep_until(commit_at) => continue,
            };
            match page {
                Ok(page) => {
                    let cursor = follower.cursor();
                    let counted = self.blocking(move |own: &Self| {
                        own.count(&page, cursor);
                        Ok(())
                    });
                    if let Err(error) = counted.await {
                        tracing::error!(%error, "a page of events was not counted");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the roll-ups can't read the log");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&own));
        done.await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
    }
}

#[cfg(test)]
mod tests;
