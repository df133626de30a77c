//! Where a courier's events come from: when a feed takes more, what a source had, how it gets into the feed.

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Courier, READY_MAX, STRICT_AHEAD, TROUBLE};
use crate::{
    event::{Gap, Predicate},
    webhooks::{
        core::{Core, FeedKey},
        endpoint::Ordering,
        errand, names,
        source::{Source, Supply, Wanted},
        store::Replay,
    },
};

impl Courier {
    fn wanted(&self) -> Option<Wanted> {
        let principal = self.current.principal.as_ref()?;
        Some(Wanted {
            endpoint: self.current.endpoint.id.clone(),
            predicate: Predicate::new(self.current.endpoint.filter.clone(), principal.scope.clone()),
            policy: principal.policy.clone(),
        })
    }

    /// Opens the source of the endpoint's own feed, and of the replay whose turn it is.
    pub(super) async fn open_sources(&mut self) {
        if !self.serves() || Instant::now() < self.read_again {
            return;
        }
        let Some(wanted) = self.wanted() else { return };
        if self.source.is_none() {
            let cursor = {
                let mut core = self.live.core.lock();
                let seq = core.live.cursor();
                core.foreign.take().unwrap_or_else(|| self.tools.hub.log().cursor_at(seq))
            };
            match Source::live(&self.tools.hub, wanted.clone(), cursor).await {
                Ok(source) => self.source = Some(source),
                Err(error) => self.trouble(&error.to_string()),
            }
        }
        let turn = self.turn();
        if self.replay.as_ref().map(|(id, _)| id) == turn.as_ref().map(|(id, _, _)| id) {
            return;
        }
        self.replay = None;
        if let Some((id, replay, reached)) = turn {
            match Source::replay(&self.tools.hub, wanted, &replay, reached).await {
                Ok(source) => self.replay = Some((id, source)),
                Err(error) => self.trouble(&error.to_string()),
            }
        }
    }

    /// The replay whose turn it is: single events first, then in the order in which they were asked for.
    fn turn(&self) -> Option<(String, Replay, u64)> {
        let core = self.live.core.lock();
        let open = core.replays.iter().filter(|(_, running)| !running.exhausted);
        let known = open.filter_map(|(id, one)| Some((id, one.replay.as_ref()?, one.feed.cursor())));
        known
            .min_by_key(|(id, replay, _)| (replay.seq.is_none(), replay.created_at, (*id).clone()))
            .map(|(id, replay, reached)| (id.clone(), replay.clone(), reached))
    }

    pub(super) fn trouble(&mut self, error: &str) {
        tracing::warn!(
            webhook = self.current.endpoint.id,
            error,
            "webhook deliveries wait: the log can't be read"
        );
        self.read_again = Instant::now() + TROUBLE;
    }

    /// Whether a feed takes more events.
    pub(super) fn wants(&self, key: &FeedKey) -> bool {
        let staged = match key {
            FeedKey::Live => self.source.as_ref().map(|source| source.staged.len()),
            FeedKey::Replay(_) => self.replay.as_ref().map(|(_, source)| source.staged.len()),
        };
        let told = *key != FeedKey::Live || self.telling == 0;
        staged == Some(0) && told && self.serves() && self.takes(&mut self.live.core.lock(), key)
    }

    pub(super) fn wants_replay(&self) -> bool {
        self.replay.as_ref().is_some_and(|(id, _)| self.wants(&FeedKey::Replay(id.clone())))
    }

    pub(super) fn takes(&self, core: &mut Core, key: &FeedKey) -> bool {
        let ordering = self.current.endpoint.ordering;
        // A receiver that fails is not sent anything new but one probe at a time.
        let failing = core.pace.failing();
        let Some(feed) = core.feed(key) else { return false };
        let ready_max = READY_MAX.max(self.current.endpoint.max_in_flight as usize);
        let ready = feed.ready(Instant::now(), ready_max);
        feed.room() > 0
            && ready < ready_max
            && !(failing && ready + feed.in_flight() > 0)
            && (ordering != Ordering::Strict || feed.pending_events() < STRICT_AHEAD)
    }

    /// A source had something.
    pub(super) fn supplied(&mut self, key: FeedKey, supply: Supply) {
        match supply {
            // Taken up by the next pump.
            Supply::Events => {}
            Supply::Gone(events) => {
                if let FeedKey::Replay(id) = &key {
                    let mut core = self.live.core.lock();
                    core.totals.skipped += events;
                    if let Some(running) = core.replays.get_mut(id) {
                        running.progress.skipped += events;
                    }
                    core.changed = true;
                }
            }
            Supply::Gap(gap) => self.lost(&key, &gap),
            Supply::End => {
                if let FeedKey::Replay(id) = &key {
                    if let Some(running) = self.live.core.lock().replays.get_mut(id) {
                        running.exhausted = true;
                    }
                    self.replay = None;
                    self.close_replays();
                }
            }
            Supply::Failed(error) => {
                match key {
                    FeedKey::Live => self.source = None,
                    FeedKey::Replay(_) => self.replay = None,
                }
                self.trouble(&error.to_string());
            }
        }
    }

    /// A range of the log is gone. It is told before the cursor passes it; of a replay, whose events were sent once or
    /// told then, it is counted.
    fn lost(&mut self, key: &FeedKey, gap: &Gap) {
        if let FeedKey::Replay(id) = key {
            let mut core = self.live.core.lock();
            if let Some(running) = core.replays.get_mut(id) {
                running.lose(gap);
            }
            core.changed = true;
            return;
        }
        tracing::error!(
            webhook = self.current.endpoint.id,
            lost = gap.lost,
            reason = gap.reason.as_str(),
            "events were gone before a webhook could be sent"
        );
        metrics::counter!(names::GAPS).increment(1);
        let tools = self.tools.clone();
        self.telling += 1;
        self.errands.push(errand::gap(tools, self.current.endpoint.clone(), gap.clone()).boxed());
    }

    /// Moves staged events into their feed, as far as it takes them.
    pub(super) fn take_up(&mut self, core: &mut Core, key: &FeedKey, now: Instant) {
        let mut staged = match key {
            FeedKey::Live => self.source.as_mut().map(|source| std::mem::take(&mut source.staged)),
            FeedKey::Replay(_) => self.replay.as_mut().map(|(_, source)| std::mem::take(&mut source.staged)),
        }
        .unwrap_or_default();
        while !staged.is_empty() && self.takes(core, key) {
            let (Some(feed), Some(item)) = (core.feed(key), staged.pop_front()) else { break };
            feed.take(item, now);
        }
        let source = match key {
            FeedKey::Live => self.source.as_mut(),
            FeedKey::Replay(_) => self.replay.as_mut().map(|(_, source)| source),
        };
        if let Some(source) = source {
            source.staged = staged;
            let told = *key != FeedKey::Live || self.telling == 0;
            if source.staged.is_empty() && source.is_settled() && told {
                let position = source.position();
                if let Some(feed) = core.feed(key) {
                    feed.pass(position);
                }
            }
        }
    }
}

pub(super) async fn next(source: &mut Option<Source>) -> Supply {
    match source {
        Some(source) => source.next().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn next_of(replay: &mut Option<(String, Source)>) -> Supply {
    match replay {
        Some((_, source)) => source.next().await,
        None => std::future::pending().await,
    }
}
