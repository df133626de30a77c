//! All that changes while an endpoint is served, in one place under one lock: its feeds, its pace, its counts.
//!
//! The courier changes it, the supervisor copies it into checkpoints, requests look at it. Nobody holds the lock over
//! an await.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tokio::time::{Duration, Instant};

use super::{
    endpoint::Endpoint,
    feed::{Feed, Rules, Saved, Unit},
    pace::Pace,
    store::{Checkpoint, Only, Progress, Replay, ReplayPosition, Totals},
};
use crate::{
    event::{Cursor, Gap},
    log::{CursorState, Log},
};

/// Events of one endpoint that may be unsettled before its cursor stops.
pub const PENDING_MAX: usize = 1_000;
/// A position that only passed events which do not match is written at most this often.
const QUIET_SAVE: Duration = Duration::from_secs(5);

/// Which of an endpoint's feeds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FeedKey {
    /// Its own.
    Live,
    /// A replay's.
    Replay(String),
}

/// A replay that is under way.
#[derive(Debug)]
pub struct Running {
    /// What was asked for; None until the watch of requests has told it. Nothing is sent before.
    pub replay: Option<Replay>,
    /// Its way through the log.
    pub feed: Feed,
    /// What became of its events.
    pub progress: Progress,
    /// Its own rate.
    pub pace: Option<Pace>,
    /// Everything has been taken up.
    pub exhausted: bool,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Core {
    /// The endpoint's own way through the log.
    pub live: Feed,
    /// Replays under way, by id.
    pub replays: BTreeMap<String, Running>,
    /// How fast the receiver is asked.
    pub pace: Pace,
    /// Since when it has been failing.
    pub failing_since: Option<Timestamp>,
    /// Where to go on, where the log is not the one of the checkpoint: it leads to what has to be told.
    pub foreign: Option<Cursor>,
    /// See [`Checkpoint::seeks`].
    pub seeks: u64,
    /// What has been counted.
    pub totals: Totals,
    /// Something was settled since the last copy.
    pub changed: bool,
    saved_at: Instant,
    saved_cursor: u64,
}

/// The rules of an endpoint's feeds.
pub fn rules(endpoint: &Endpoint) -> Rules {
    Rules {
        ordering: endpoint.ordering,
        batch: endpoint.batch,
        first_wait: Duration::from_secs(endpoint.retry_schedule.first().copied().unwrap_or(0).into()),
        pending_max: PENDING_MAX,
    }
}

impl Core {
    /// Goes on where a checkpoint was made. Where the log is no longer the one that its sequences are of, what was
    /// pending is found again by reading all that is kept.
    pub fn restore(
        endpoint: &Endpoint,
        mut saved: Checkpoint,
        log: &Log,
        now: Instant,
        wall: Timestamp,
    ) -> Self {
        let cursor = Cursor::parse(&saved.cursor).ok();
        let is_foreign = cursor.is_some_and(|cursor| {
            matches!(log.check(cursor), Err(CursorState::OtherIncarnation | CursorState::Regressed))
        });
        if is_foreign {
            saved.live = Saved { cursor: log.begins_at().saturating_sub(1), pending: Vec::new() };
            saved.replays.clear();
        }
        let rules = rules(endpoint);
        let saved_cursor = saved.live.cursor;
        let wall_us = wall.as_microsecond();
        let failing = saved.failing_since.is_some();
        let replays = saved.replays.into_iter().map(|(id, position)| {
            let ReplayPosition { feed, progress } = position;
            (id, (Feed::restore(rules, feed, now, wall_us), progress))
        });
        let replays: BTreeMap<_, _> = replays.collect();
        let mut core = Self {
            live: Feed::restore(rules, saved.live, now, wall_us),
            replays: BTreeMap::new(),
            pace: Pace::new(endpoint.max_in_flight, endpoint.rate_limit_per_second, failing, now),
            failing_since: saved.failing_since,
            foreign: cursor.filter(|_| is_foreign),
            seeks: saved.seeks,
            totals: saved.totals,
            changed: true,
            saved_at: now,
            saved_cursor,
        };
        for (id, (feed, progress)) in replays {
            core.replays.insert(id, Running { replay: None, feed, progress, pace: None, exhausted: false });
        }
        core
    }

    /// A feed.
    pub fn feed(&mut self, key: &FeedKey) -> Option<&mut Feed> {
        match key {
            FeedKey::Live => Some(&mut self.live),
            FeedKey::Replay(id) => self.replays.get_mut(id).map(|running| &mut running.feed),
        }
    }

    /// Requests on their way.
    pub fn in_flight(&self) -> usize {
        self.live.in_flight() + self.replays.values().map(|running| running.feed.in_flight()).sum::<usize>()
    }

    /// Position up to which the log is not needed any more.
    pub fn settled(&self) -> u64 {
        let replays = self.replays.values().map(|running| running.feed.settled());
        replays.chain([self.live.settled()]).min().unwrap_or(0)
    }

    /// A unit is settled for good: counts its events.
    pub fn count(&mut self, key: &FeedKey, unit: &Unit, end: End) {
        let events = unit.members.len() as u64;
        let totals = match end {
            End::Delivered => &mut self.totals.delivered,
            End::DeadLettered => &mut self.totals.dead_lettered,
            End::Skipped => &mut self.totals.skipped,
        };
        *totals += events;
        if let FeedKey::Replay(id) = key
            && let Some(running) = self.replays.get_mut(id)
        {
            let progress = &mut running.progress;
            *match end {
                End::Delivered => &mut progress.delivered,
                End::DeadLettered => &mut progress.dead_lettered,
                End::Skipped => &mut progress.skipped,
            } += events;
        }
        self.changed = true;
    }

    /// A copy for the store, if one is due.
    pub fn save(
        &mut self,
        owner: &str,
        log: &Log,
        now: Instant,
        wall: Timestamp,
        at_once: bool,
    ) -> Option<Checkpoint> {
        let moved = self.live.cursor() != self.saved_cursor;
        let due = self.changed || (moved && now.duration_since(self.saved_at) >= QUIET_SAVE);
        if !due && !at_once {
            return None;
        }
        let wall_us = wall.as_microsecond();
        (self.changed, self.saved_at, self.saved_cursor) = (false, now, self.live.cursor());
        Some(Checkpoint {
            owner: owner.to_owned(),
            cursor: log.cursor_at(self.live.cursor()).to_string(),
            live: self.live.save(now, wall_us),
            seeks: self.seeks,
            failing_since: self.failing_since,
            replays: (self.replays.iter())
                .map(|(id, running)| {
                    let feed = running.feed.save(now, wall_us);
                    (id.clone(), ReplayPosition { feed, progress: running.progress })
                })
                .collect(),
            totals: self.totals.clone(),
        })
    }
}

/// How a unit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The receiver took it.
    Delivered,
    /// Its attempts are used up.
    DeadLettered,
    /// It is no longer kept, or the receiver refused it for good.
    Skipped,
}

impl Running {
    /// A replay that was asked for.
    pub fn new(replay: Replay, rules: Rules, now: Instant) -> Self {
        let feed = Feed::new(rules, replay.from);
        let mut running =
            Self { replay: None, feed, progress: Progress::default(), pace: None, exhausted: false };
        running.learn(replay, now);
        running
    }

    /// Fills in what was asked for.
    pub fn learn(&mut self, replay: Replay, now: Instant) {
        self.pace = replay.rate_limit_per_second.map(|rate| Pace::new(u32::MAX, Some(rate), false, now));
        self.replay = Some(replay);
    }

    /// A range of the log is gone: counts the positions of it that it would have looked at.
    pub fn lose(&mut self, gap: &Gap) {
        let whole = gap.lost.unwrap_or(0);
        let own = self.replay.as_ref().filter(|replay| replay.only == Only::All).map(|replay| {
            let end = gap.to.map_or(replay.to, |to| to.seq.min(replay.to));
            end.saturating_sub(self.feed.cursor())
        });
        self.progress.lost += own.map_or(whole, |own| own.min(whole));
    }

    /// Whether each of its events is settled.
    pub fn is_done(&self) -> bool {
        self.exhausted && self.feed.pending_events() == 0
    }
}
