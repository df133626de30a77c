//! The task that serves one endpoint: takes up events, sends them, settles them.
//!
//! One task per endpoint and its own window are what keeps receivers from hurting each other: one that hangs holds
//! its own requests and nothing else. The task never waits for the store: checkpoints are copies that the supervisor
//! takes of [`Core`]. It stops sending where it may no longer be the owner ([`Members::holds`](super::ownership::Members::holds)), and where copies can't
//! be written, since what it sent meanwhile would all be sent again after a crash.

mod errands;
mod settle;
mod supply;

use std::{collections::BTreeSet, sync::Arc};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    Tools,
    attempt::{Done, Job, Prepared},
    core::{Core, FeedKey, rules},
    endpoint::Endpoint,
    errand::{self, Errand},
    feed::Feed,
    source::Source,
    store::Replay,
};
use crate::auth::Principal;
use supply::{next, next_of};

/// Units that are held ready to be sent, or as many as the window is wide: few, since each copy names them all.
const READY_MAX: usize = 64;
/// Events taken up while each waits for the one before.
const STRICT_AHEAD: usize = 200;
/// A quiet endpoint looks this often at how far the log has come.
const IDLE: Duration = Duration::from_secs(2);
/// Pause after the log could not be read, or the egress proxy failed.
const TROUBLE: Duration = Duration::from_secs(5);
/// What waited while a receiver failed is spread over this when it is back.
const HASTE: Duration = Duration::from_secs(2);

/// What the courier is to do.
#[derive(Debug, Clone)]
pub struct Order {
    /// What was asked for.
    pub endpoint: Arc<Endpoint>,
    /// Whose token made it, as that token is now; None where it is no longer valid.
    pub principal: Option<Arc<Principal>>,
    /// Replays of it that have not ended.
    pub replays: Arc<Vec<Replay>>,
}

/// What others share with a courier.
#[derive(Debug)]
pub struct Live {
    /// See [`Core`].
    pub core: Mutex<Core>,
    /// Copies can be written; false stops sending.
    pub saves: watch::Sender<bool>,
}

/// See the head of this file.
pub struct Courier {
    tools: Arc<Tools>,
    /// See [`Members::term`](super::ownership::Members::term).
    term: u64,
    live: Arc<Live>,
    order: watch::Receiver<Order>,
    current: Order,
    prepared: Option<Arc<Prepared>>,
    source: Option<Source>,
    replay: Option<(String, Source)>,
    /// Not before: the log could not be read.
    read_again: Instant,
    posts: FuturesUnordered<BoxFuture<'static, Done>>,
    errands: FuturesUnordered<BoxFuture<'static, Errand>>,
    /// The replay had its turn last.
    replay_was_last: bool,
    /// The receiver said so; the store does not show it yet.
    disabling: bool,
    /// Gaps that are being told: nothing behind them is taken up meanwhile.
    telling: usize,
    /// Replays that have been seen, and those whose end is being written.
    known: BTreeSet<String>,
    closing: BTreeSet<String>,
}

impl std::fmt::Debug for Courier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Courier").field("endpoint", &self.current.endpoint.id).finish_non_exhaustive()
    }
}

impl Courier {
    /// A courier that goes on where `live` stands, as long as the term lasts in which the endpoint was taken over.
    pub fn new(tools: Arc<Tools>, term: u64, live: Arc<Live>, order: watch::Receiver<Order>) -> Self {
        let current = order.borrow().clone();
        Self {
            tools,
            term,
            live,
            order,
            current,
            prepared: None,
            source: None,
            replay: None,
            read_again: Instant::now(),
            posts: FuturesUnordered::new(),
            errands: FuturesUnordered::new(),
            replay_was_last: false,
            disabling: false,
            telling: 0,
            known: BTreeSet::new(),
            closing: BTreeSet::new(),
        }
    }

    /// Serves until `stop`, then lets what is on its way arrive; `lost` ends it at once.
    pub async fn run(mut self, stop: CancellationToken, lost: CancellationToken) {
        self.adopt(None);
        for (key, first) in self.buried() {
            self.announce(key, first);
        }
        while !lost.is_cancelled() {
            let stopping = stop.is_cancelled();
            if stopping && self.posts.is_empty() && self.errands.is_empty() {
                return;
            }
            if !stopping {
                self.open_sources().await;
                self.pump();
            }
            self.look_after_validity();
            let wake_at = self.wake_at(stopping);
            let reads = !stopping && Instant::now() >= self.read_again;
            let (wants_live, wants_replay) =
                (reads && self.wants(&FeedKey::Live), reads && self.wants_replay());
            let mut saves = self.live.saves.subscribe();
            tokio::select! {
                biased;
                () = lost.cancelled() => return,
                () = stop.cancelled(), if !stopping => {}
                Some(done) = self.posts.next(), if !self.posts.is_empty() => {
                    self.finish(done);
                    // Those that have ended meanwhile, without another look at everything else.
                    for _ in 0..READY_MAX {
                        match self.posts.next().now_or_never() {
                            Some(Some(done)) => self.finish(done),
                            _ => break,
                        }
                    }
                }
                Some(errand) = self.errands.next(), if !self.errands.is_empty() => self.returned(errand),
                changed = self.order.changed(), if !stopping => {
                    if changed.is_err() {
                        return;
                    }
                    let before = self.current.clone();
                    self.current = self.order.borrow_and_update().clone();
                    self.adopt(Some(before));
                }
                supply = next(&mut self.source), if wants_live => self.supplied(FeedKey::Live, supply),
                supply = next_of(&mut self.replay), if wants_replay => {
                    if let Some((id, _)) = &self.replay {
                        self.supplied(FeedKey::Replay(id.clone()), supply);
                    }
                }
                _ = saves.changed() => {}
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }

    /// Takes what was asked for; what did not change stays as it is.
    fn adopt(&mut self, before: Option<Order>) {
        let now = Instant::now();
        let endpoint = self.current.endpoint.clone();
        let old = before.as_ref().map(|order| order.endpoint.clone());
        let shown = |order: &Order| {
            let filter = order.endpoint.filter.clone();
            (filter, order.principal.as_ref().map(|one| (one.scope.clone(), one.policy.clone())))
        };
        let view_changed = before.as_ref().is_none_or(|before| shown(before) != shown(&self.current));
        if endpoint.disabled.is_some() {
            self.disabling = false;
        }
        let mut core = self.live.core.lock();
        core.live.set_rules(rules(&endpoint));
        core.pace.set(endpoint.max_in_flight, endpoint.rate_limit_per_second, now);
        let resumed = old.as_ref().is_some_and(|old| {
            (old.paused || old.disabled.is_some()) && !endpoint.paused && endpoint.disabled.is_none()
        });
        if resumed || old.as_ref().is_some_and(|old| old.url != endpoint.url) {
            core.pace.reset();
            core.failing_since = None;
            core.changed = true;
            core.live.hasten(now, HASTE);
        }
        if endpoint.seeks > core.seeks {
            core.seeks = endpoint.seeks;
            let cursor = endpoint.seek_to.as_deref().and_then(|text| crate::event::Cursor::parse(text).ok());
            if let Some(cursor) = cursor {
                core.live = Feed::new(rules(&endpoint), cursor.seq);
                self.source = None;
            }
            core.changed = true;
        }
        for replay in self.current.replays.iter() {
            match core.replays.get_mut(&replay.id) {
                Some(running) if running.replay.is_none() => running.learn(replay.clone(), now),
                Some(_) => {}
                // What is watched may be a moment old, and a replay that has ended must not begin again.
                None if self.known.insert(replay.id.clone()) => {
                    let begins =
                        errand::begin_replay(self.tools.clone(), endpoint.id.clone(), replay.id.clone());
                    self.errands.push(begins.boxed());
                }
                None => {}
            }
        }
        drop(core);
        if view_changed {
            (self.source, self.replay) = (None, None);
        }
        self.prepare();
        self.close_replays();
    }

    /// Makes the endpoint ready, or not: what is in the way is shown as its status.
    fn prepare(&mut self) {
        let (endpoint, tools) = (self.current.endpoint.clone(), &self.tools);
        self.prepared = None;
        let Some(principal) = &self.current.principal else { return };
        let url = tools.guard.check(&endpoint.url).map_err(|error| error.to_string());
        let (outbound, hub, clock) = (tools.outbound.clone(), tools.hub.clone(), tools.clock.clone());
        let policy = principal.policy.clone();
        let prepared = url.and_then(|url| {
            Prepared::new(endpoint.clone(), url, policy, outbound, hub, clock)
                .map_err(|error| error.to_string())
        });
        match prepared {
            Ok(prepared) => self.prepared = Some(Arc::new(prepared)),
            Err(error) => tracing::error!(webhook = endpoint.id, error, "a webhook can't be served"),
        }
    }

    /// Whether events may be sent.
    fn serves(&self) -> bool {
        let endpoint = &self.current.endpoint;
        self.prepared.is_some()
            && !endpoint.paused
            && endpoint.disabled.is_none()
            && !self.disabling
            && *self.live.saves.borrow()
            && self.tools.members.holds(self.term)
    }

    /// Takes up what is staged, then starts what may be started.
    fn pump(&mut self) {
        if !self.serves() {
            return;
        }
        let Some(prepared) = self.prepared.clone() else { return };
        let (live, now) = (self.live.clone(), Instant::now());
        let mut core = live.core.lock();
        let core = &mut *core;
        self.take_up(core, &FeedKey::Live, now);
        let replay = self.replay.as_ref().map(|(id, _)| FeedKey::Replay(id.clone()));
        if let Some(key) = &replay {
            self.take_up(core, key, now);
        }
        let wall_us = self.tools.clock.now().as_microsecond();
        // Those that have been taken up wholly still have units to send.
        let replays: Vec<FeedKey> = core.replays.keys().cloned().map(FeedKey::Replay).collect();
        loop {
            let key = self.choose(core, &replays, now);
            let Some(key) = key else { break };
            if !core.pace.admit(core.in_flight(), now) {
                break;
            }
            let Some(unit) = core.feed(&key).and_then(|feed| feed.start(now, wall_us)) else { break };
            let job = Job {
                key: key.clone(),
                members: unit.members.clone(),
                items: std::mem::take(&mut unit.items),
                attempt: unit.attempts + 1,
            };
            self.replay_was_last = key != FeedKey::Live;
            core.changed = true;
            self.posts.push(prepared.clone().attempt(job).boxed());
        }
    }

    /// The feed that may send next: the endpoint's own and its replays take turns.
    fn choose(&self, core: &mut Core, replays: &[FeedKey], now: Instant) -> Option<FeedKey> {
        let in_flight = core.in_flight();
        if !core.pace.admits(in_flight, now) {
            return None;
        }
        let due = |feed: &Feed| feed.next_due().is_some_and(|due| due <= now);
        let live = due(&core.live).then_some(FeedKey::Live);
        if live.is_some() && (self.replay_was_last || replays.is_empty()) {
            return live;
        }
        for key in replays {
            let FeedKey::Replay(id) = key else { continue };
            let Some(running) = core.replays.get_mut(id).filter(|running| running.replay.is_some()) else {
                continue;
            };
            if !due(&running.feed) {
                continue;
            }
            let on_their_way = running.feed.in_flight();
            if running.pace.as_mut().is_none_or(|pace| pace.admit(on_their_way, now)) {
                return Some(key.clone());
            }
        }
        live
    }

    /// What is on its way is given up when this gateway may no longer be the owner: whoever is sends it again.
    fn look_after_validity(&mut self) {
        if self.posts.is_empty() || self.tools.members.holds(self.term) {
            return;
        }
        tracing::warn!(webhook = self.current.endpoint.id, "deliveries are given up: the lease ran out");
        self.posts = FuturesUnordered::new();
        let now = Instant::now();
        let mut core = self.live.core.lock();
        let keys: Vec<FeedKey> =
            core.replays.keys().cloned().map(FeedKey::Replay).chain([FeedKey::Live]).collect();
        for key in keys {
            let Some(feed) = core.feed(&key) else { continue };
            let firsts: Vec<u64> = feed
                .pending()
                .filter(|unit| unit.in_flight)
                .filter_map(|unit| unit.members.first().copied())
                .collect();
            firsts.into_iter().for_each(|first| feed.give_back(first, now));
        }
    }

    fn wake_at(&self, stopping: bool) -> Instant {
        let now = Instant::now();
        let mut at = now + IDLE;
        if stopping || !self.serves() {
            return at;
        }
        let core = self.live.core.lock();
        let opens = core.pace.opens_at(core.in_flight());
        let feeds = core.replays.values().map(|running| (&running.feed, running.pace.as_ref()));
        for (feed, pace) in feeds.chain([(&core.live, None)]) {
            let Some(due) = feed.next_due() else { continue };
            if due > now {
                at = at.min(due);
                continue;
            }
            let own = pace.and_then(|pace| pace.opens_at(feed.in_flight()));
            // Without a time it waits for an answer.
            if let Some(opens) = [opens, own].into_iter().flatten().max() {
                at = at.min(opens.max(now + Duration::from_millis(1)));
            }
        }
        if core.live.next_due().is_none()
            && let Some(opens) = opens
            && core.pace.failing()
        {
            at = at.min(opens.max(now + Duration::from_millis(1)));
        }
        drop(core);
        self.tools
            .members
            .valid_until()
            .map_or(at, |until| at.min(until.max(now + Duration::from_millis(50))))
    }
}
