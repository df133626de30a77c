//! What a courier has done beside sending, and what it does when that is done: notices, and where replays begin and end.

use futures_util::FutureExt;
use tokio::time::Instant;

use super::Courier;
use crate::webhooks::{
    core::{End, FeedKey, Running, rules},
    errand::{self, Errand},
    feed::Feed,
    store::{Replay, ReplayState},
};

impl Courier {
    /// Units that were given up and not announced when the gateway stopped.
    pub(super) fn buried(&self) -> Vec<(FeedKey, u64)> {
        let core = self.live.core.lock();
        let dead = |feed: &Feed| -> Vec<u64> {
            feed.pending().filter(|unit| unit.dead).filter_map(|unit| unit.members.first().copied()).collect()
        };
        let replays = core.replays.iter().map(|(id, one)| (FeedKey::Replay(id.clone()), dead(&one.feed)));
        let all = replays.chain([(FeedKey::Live, dead(&core.live))]);
        all.flat_map(|(key, firsts)| firsts.into_iter().map(move |first| (key.clone(), first))).collect()
    }

    /// Tells the stream that a unit was given up; it leaves its feed when that is durable.
    pub(super) fn announce(&mut self, key: FeedKey, first: u64) {
        let (tools, live, endpoint) = (self.tools.clone(), self.live.clone(), self.current.endpoint.clone());
        self.errands.push(errand::bury(tools, live, endpoint, key, first).boxed());
    }

    pub(super) fn returned(&mut self, errand: Errand) {
        match errand {
            Errand::Told | Errand::Disabled => {}
            Errand::GapTold => self.telling -= 1,
            Errand::ReplayBegins(replay) => self.begin(*replay),
            Errand::Buried { key, first } => {
                let mut core = self.live.core.lock();
                let unit = core.feed(&key).and_then(|feed| feed.settle(first));
                if let Some(unit) = unit {
                    core.count(&key, &unit, End::DeadLettered);
                }
                drop(core);
                self.close_replays();
            }
            Errand::ReplayClosed { id } => {
                let mut core = self.live.core.lock();
                core.replays.remove(&id);
                core.changed = true;
            }
        }
    }

    /// A replay that was asked for, and has not ended meanwhile, begins.
    pub(super) fn begin(&mut self, replay: Replay) {
        let now = Instant::now();
        let mut core = self.live.core.lock();
        if core.replays.contains_key(&replay.id) {
            return;
        }
        let mut running = Running::new(replay.clone(), rules(&self.current.endpoint), now);
        // An event that waits anyway is not sent twice.
        running.exhausted = replay.seq.is_some_and(|seq| core.live.hurry(seq, now));
        core.replays.insert(replay.id, running);
        core.changed = true;
        drop(core);
        self.close_replays();
    }

    /// Writes the end of replays that are through, and of those that were cancelled.
    pub(super) fn close_replays(&mut self) {
        let live = self.live.clone();
        let mut core = live.core.lock();
        let asked: Vec<&str> = self.current.replays.iter().map(|replay| replay.id.as_str()).collect();
        // A position whose request is no more.
        core.replays.retain(|id, running| running.replay.is_some() || asked.contains(&id.as_str()));
        let mut closed = Vec::new();
        for (id, running) in &core.replays {
            let is_cancelled = !asked.contains(&id.as_str());
            if running.replay.is_none() || self.closing.contains(id) || !(running.is_done() || is_cancelled) {
                continue;
            }
            let state = if is_cancelled { ReplayState::Cancelled } else { ReplayState::Done };
            closed.push((id.clone(), running.progress, state));
        }
        drop(core);
        for (id, progress, state) in closed {
            self.closing.insert(id.clone());
            if self.replay.as_ref().is_some_and(|(open, _)| *open == id) {
                self.replay = None;
            }
            let webhook = self.current.endpoint.id.clone();
            self.errands.push(errand::close_replay(self.tools.clone(), webhook, id, progress, state).boxed());
        }
    }
}
