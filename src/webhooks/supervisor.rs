//! Who serves what: follows what was asked for, takes over endpoints that belong to this gateway, copies where they
//! stand, and gives them up.

use std::{collections::BTreeMap, io, num::NonZero, sync::Arc};

use futures_util::{StreamExt, future::join_all, stream};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, MissedTickBehavior, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    CHECKPOINT, SAVE_GRACE, Tools,
    core::Core,
    courier::{Courier, Live, Order},
    endpoint::Endpoint,
    names,
    store::{At, Checkpoint, ENDPOINT, REPLAY, Replay, ReplayState, StoreError, decode},
};
use crate::{
    auth::Principal,
    bus::{Bucket, Change, Fill, KvError},
};

/// How often it is looked whether an endpoint can be taken over, and what the log must keep.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before what is asked for is watched again.
const WATCH_AGAIN: Duration = Duration::from_millis(500);
/// Takeovers at the same time.
const CLAIMS: usize = 32;
/// How long what is on its way may take when an endpoint is given up; the longest timeout and a connection.
const HANDOVER_MAX: Duration = Duration::from_secs(70);
/// The same when the gateway stops: a part of what a drain may take.
const DRAIN: Duration = Duration::from_secs(6);
/// A position without an endpoint is taken for a leftover after this.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);
/// How long one write may take.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// What was asked for, as this gateway has seen it.
#[derive(Debug, Default)]
pub struct Table {
    /// Endpoints by id.
    pub endpoints: BTreeMap<String, Arc<Endpoint>>,
    /// Replays of each endpoint, ended or not.
    pub replays: BTreeMap<String, BTreeMap<String, Replay>>,
    /// Endpoints that can't be read, and why: mostly another key for secrets.
    pub unreadable: BTreeMap<String, String>,
    /// What existed when the gateway started has been seen.
    pub synced: bool,
}

impl Table {
    fn put(&mut self, tools: &Tools, key: &str, value: &[u8]) {
        if let Some(id) = key.strip_prefix(ENDPOINT) {
            match tools.store.open(key, value) {
                Ok(endpoint) => {
                    self.unreadable.remove(id);
                    self.endpoints.insert(id.to_owned(), Arc::new(endpoint));
                }
                Err(error) => {
                    tracing::error!(%error, "a webhook can't be served");
                    self.unreadable.insert(id.to_owned(), error.to_string());
                }
            }
        } else if let Some((webhook, id)) = key.strip_prefix(REPLAY).and_then(|rest| rest.split_once('/')) {
            match decode::<Replay>(key, value) {
                Ok(replay) => {
                    self.replays.entry(webhook.to_owned()).or_default().insert(id.to_owned(), replay);
                }
                Err(error) => tracing::error!(%error, "a replay can't be read"),
            }
        }
    }

    fn delete(&mut self, key: &str) {
        if let Some(id) = key.strip_prefix(ENDPOINT) {
            self.endpoints.remove(id);
            self.unreadable.remove(id);
        } else if let Some((webhook, id)) = key.strip_prefix(REPLAY).and_then(|rest| rest.split_once('/'))
            && let Some(replays) = self.replays.get_mut(webhook)
        {
            replays.remove(id);
        }
    }

    fn running(&self, webhook: &str) -> Vec<Replay> {
        let all = self.replays.get(webhook).into_iter().flat_map(BTreeMap::values);
        all.filter(|replay| replay.state == ReplayState::Running).cloned().collect()
    }
}

/// An endpoint that this gateway serves.
#[derive(Debug)]
struct Task {
    live: Arc<Live>,
    order: watch::Sender<Order>,
    /// In which it was taken over.
    term: u64,
    /// Of its checkpoint.
    revision: u64,
    /// Since when copies have not been written.
    unsaved_since: Option<Instant>,
    stop: CancellationToken,
    lost: CancellationToken,
    /// Dropped, it ends at once: an endpoint that is lost must not be served a moment longer.
    handle: AbortOnDropHandle<()>,
    /// It is being given up, since then.
    leaving: Option<Instant>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Supervisor {
    tools: Arc<Tools>,
    tasks: BTreeMap<String, Task>,
    leftovers: Leftovers,
    /// The lag that is being looked up for the metric.
    lag: Option<AbortOnDropHandle<()>>,
}

/// Threads that may be given up inside another runtime.
struct Apart(Option<tokio::runtime::Runtime>);

impl Drop for Apart {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Positions without an endpoint.
#[derive(Debug, Default)]
enum Leftovers {
    #[default]
    Unknown,
    /// Seen then.
    Suspected(Instant, Vec<String>),
    Cleared,
}

impl Supervisor {
    pub(super) fn new(tools: Arc<Tools>) -> Self {
        Self { tools, tasks: BTreeMap::new(), leftovers: Leftovers::Unknown, lag: None }
    }

    /// Serves until `draining`, then gives everything up; `stop` ends it at once.
    pub async fn run(mut self, draining: CancellationToken, stop: CancellationToken) {
        let leave = CancellationToken::new();
        let members = AbortOnDropHandle::new(tokio::spawn(self.tools.members.clone().run(leave.clone())));
        let mut alive = self.tools.members.watch();
        let mut changes = None;
        let mut tick = tokio::time::interval(CHECKPOINT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        while !draining.is_cancelled() {
            if changes.is_none() {
                changes = self.watch(&draining).await;
                self.reconcile().await;
                continue;
            }
            tokio::select! {
                biased;
                () = draining.cancelled() => break,
                _ = tick.tick() => {
                    self.save(false).await;
                    self.reap().await;
                    if looked.elapsed() >= LOOK {
                        looked = Instant::now();
                        self.reconcile().await;
                        self.hold();
                        self.report();
                        if let Err(error) = self.clear_leftovers().await {
                            tracing::debug!(%error, "what is left of deleted webhooks is cleared away later");
                        }
                    }
                }
                change = recv(&mut changes) => match change {
                    Some(change) => {
                        self.changed(change);
                        while let Some(Some(more)) = changes.as_mut().map(|changes| changes.try_recv().ok()) {
                            self.changed(more);
                        }
                        self.reconcile().await;
                    }
                    None => changes = None,
                },
                _ = alive.changed() => self.reconcile().await,
            }
        }
        self.leave(&stop).await;
        leave.cancel();
        let _ = members.await;
        self.tools.attempts.flush().await;
    }

    /// As [`run`](Self::run), on threads of its own, one fewer than the machine has cores: however much is delivered,
    /// appends and live feeds find a core that is free. With both cores of two busy delivering, the three wake-ups of an
    /// append took five times as long.
    ///
    /// # Errors
    /// The threads can't be started.
    pub async fn run_apart(self, draining: CancellationToken, stop: CancellationToken) -> io::Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.saturating_sub(1).max(1))
            .thread_name("simcast-webhooks")
            .enable_all()
            .build()?;
        let ended = runtime.spawn(self.run(draining, stop));
        let _runtime = Apart(Some(runtime));
        ended.await.map_err(io::Error::other)
    }

    /// Follows what is asked for, from all there is.
    async fn watch(&self, draining: &CancellationToken) -> Option<mpsc::Receiver<Change>> {
        let watched = async {
            let mut changes = self.tools.store.bus().kv_watch(Bucket::Endpoints, "").await?;
            let mut table = Table::default();
            loop {
                match changes.recv().await {
                    Some(Change::Put(entry)) => table.put(&self.tools, &entry.key, &entry.value),
                    Some(Change::Deleted { key }) => table.delete(&key),
                    Some(Change::Synced) => break,
                    None => return Err(KvError::Unavailable("the watch ended".into())),
                }
            }
            table.synced = true;
            *self.tools.table.write() = table;
            Ok(changes)
        };
        let watched = tokio::select! {
            () = draining.cancelled() => return None,
            watched = watched => watched,
        };
        match watched {
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(%error, "webhooks can't be followed; it is tried again");
                tokio::time::sleep(WATCH_AGAIN).await;
                None
            }
        }
    }

    fn changed(&self, change: Change) {
        let mut table = self.tools.table.write();
        match change {
            Change::Put(entry) => table.put(&self.tools, &entry.key, &entry.value),
            Change::Deleted { key } => table.delete(&key),
            Change::Synced => {}
        }
    }

    /// Makes what is served what should be.
    async fn reconcile(&mut self) {
        let tools = self.tools.clone();
        let (wanted, deleted) = {
            let table = tools.table.read();
            if !table.synced {
                return;
            }
            let wanted: Vec<_> = (table.endpoints.values())
                .map(|endpoint| (endpoint.clone(), Arc::new(table.running(&endpoint.id))))
                .collect();
            let gone =
                |id: &&String| !table.endpoints.contains_key(*id) && !table.unreadable.contains_key(*id);
            let deleted: Vec<String> = self.tasks.keys().filter(gone).cloned().collect();
            (wanted, deleted)
        };
        for id in deleted {
            if let Some(task) = self.forget(&id) {
                task.lost.cancel();
                let _ = task.handle.await;
                if let Err(error) = tools.store.clear(&id).await {
                    tracing::debug!(%error, id, "the rest of a deleted webhook is cleared away later");
                }
            }
        }
        // Until a copy of the stream is complete, positions behind its edge look as if the log had gone back.
        let is_complete = matches!(*tools.store.bus().fill().borrow(), Fill::Complete);
        let may_act = tools.members.valid() && is_complete;
        let mut claims = Vec::new();
        for (endpoint, replays) in wanted {
            let order = Order { principal: self.principal(&endpoint), endpoint, replays };
            let is_mine = tools.members.is_mine(&order.endpoint.id);
            match self.tasks.get_mut(&order.endpoint.id) {
                Some(task) => {
                    task.order.send_if_modified(|current| {
                        let same = Arc::ptr_eq(&current.endpoint, &order.endpoint)
                            && current.replays == order.replays
                            && current.principal == order.principal;
                        if !same {
                            *current = order;
                        }
                        !same
                    });
                    if !is_mine && task.leaving.is_none() {
                        task.leaving = Some(Instant::now());
                        task.stop.cancel();
                    }
                }
                None if is_mine && may_act => claims.push(order),
                None => {}
            }
        }
        let claimed = stream::iter(claims.into_iter().map(|order| claim(tools.clone(), order)));
        let claimed: Vec<_> = claimed.buffer_unordered(CLAIMS).collect().await;
        for claimed in claimed.into_iter().flatten() {
            self.start(claimed);
        }
    }

    /// Whose token made it, as that token is now.
    fn principal(&self, endpoint: &Endpoint) -> Option<Arc<Principal>> {
        self.tools.auth.named(&endpoint.created_by)
    }

    fn start(&mut self, Claimed { order, term, revision, core }: Claimed) {
        let id = order.endpoint.id.clone();
        let live = Arc::new(Live { core: Mutex::new(core), saves: watch::Sender::new(true) });
        let (sender, receiver) = watch::channel(order);
        let (stop, lost) = (CancellationToken::new(), CancellationToken::new());
        let courier = Courier::new(self.tools.clone(), term, live.clone(), receiver);
        let handle = AbortOnDropHandle::new(tokio::spawn(courier.run(stop.clone(), lost.clone())));
        self.tools.lives.write().insert(id.clone(), live.clone());
        let (unsaved_since, leaving) = (None, None);
        let task = Task { live, order: sender, term, revision, unsaved_since, stop, lost, handle, leaving };
        self.tasks.insert(id, task);
    }

    fn forget(&mut self, id: &str) -> Option<Task> {
        self.tools.lives.write().remove(id);
        self.tasks.remove(id)
    }

    /// Writes copies of what changed; `at_once` of everything.
    async fn save(&mut self, at_once: bool) {
        let tools = &self.tools;
        let (now, wall, log) = (Instant::now(), tools.clock.now(), tools.hub.log());
        let mut writes = Vec::new();
        for (id, task) in &self.tasks {
            let saved = task.live.core.lock().save(tools.members.me(), log, now, wall, at_once);
            if let Some(saved) = saved {
                let revision = task.revision;
                writes.push(async move { (id.clone(), write(tools, id, &saved, revision).await) });
            }
        }
        let written = join_all(writes).await;
        for (id, result) in written {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            match result {
                Ok(revision) => {
                    metrics::counter!(names::CHECKPOINTS).increment(1);
                    task.revision = revision;
                    task.unsaved_since = None;
                    task.live.saves.send_if_modified(|saves| !std::mem::replace(saves, true));
                }
                Err(StoreError::Kv(KvError::Conflict)) => {
                    tracing::warn!(webhook = id, "another gateway serves this webhook now");
                    task.lost.cancel();
                    self.forget(&id);
                }
                Err(error) => {
                    task.live.core.lock().changed = true;
                    let since = *task.unsaved_since.get_or_insert(now);
                    if now.duration_since(since) >= SAVE_GRACE
                        && task.live.saves.send_if_modified(|saves| std::mem::replace(saves, false))
                    {
                        tracing::error!(webhook = id, %error, "deliveries wait: positions can't be written");
                    }
                }
            }
        }
    }

    /// Takes leave of couriers that have ended.
    async fn reap(&mut self) {
        let overdue = |task: &Task| task.leaving.is_some_and(|since| since.elapsed() >= HANDOVER_MAX);
        let term = self.tools.members.term();
        let over = |task: &&Task| overdue(task) || task.term != term;
        self.tasks.values().filter(over).for_each(|task| task.lost.cancel());
        let ended: Vec<String> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.handle.is_finished())
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            let Some(mut task) = self.forget(&id) else { continue };
            if let Err(error) = (&mut task.handle).await {
                tracing::error!(webhook = id, %error, "the courier of a webhook failed; it begins anew");
            }
            self.release(&id, &task).await;
        }
    }

    /// Writes where an endpoint stands, and that nobody serves it.
    async fn release(&self, id: &str, task: &Task) {
        let tools = &self.tools;
        let saved = task.live.core.lock().save("", tools.hub.log(), Instant::now(), tools.clock.now(), true);
        let Some(saved) = saved else { return };
        if let Err(error) = write(tools, id, &saved, task.revision).await {
            tracing::debug!(webhook = id, %error, "a webhook was not given up; it is taken over when the lease ends");
        }
    }

    /// Gives everything up.
    async fn leave(&mut self, stop: &CancellationToken) {
        self.tasks.values().for_each(|task| task.stop.cancel());
        let deadline = Instant::now() + DRAIN;
        while !self.tasks.is_empty() && Instant::now() < deadline && !stop.is_cancelled() {
            self.save(false).await;
            self.reap().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        let left = std::mem::take(&mut self.tasks);
        for task in left.values() {
            task.lost.cancel();
        }
        let releases = left.iter().map(|(id, task)| self.release(id, task));
        join_all(releases).await;
    }

    /// What the log must keep for the slowest endpoint.
    fn hold(&self) {
        let table = self.tools.table.read();
        // One that is not served has a position that is not known here; one that can't be read is served when its key is back.
        let all_served = table.synced
            && table.unreadable.is_empty()
            && table.endpoints.keys().all(|id| self.tasks.contains_key(id));
        let settled = self.tasks.values().map(|task| task.live.core.lock().settled()).min();
        let hold = match (all_served, settled) {
            (true, settled) => settled,
            // On the embedded log that is so for moments; on a mirror the server keeps what it keeps.
            (false, _) => return,
        };
        // What is gone is told by whoever would have read it.
        let _ = self.tools.hub.log().hold(hold);
    }

    fn report(&mut self) {
        let mut failing = 0;
        let mut slowest = None;
        for task in self.tasks.values() {
            let (is_failing, settled) = {
                let core = task.live.core.lock();
                (core.failing_since.is_some(), core.settled())
            };
            failing += usize::from(is_failing);
            slowest = Some(slowest.unwrap_or(u64::MAX).min(settled));
        }
        metrics::gauge!(names::OWNED).set(self.tasks.len() as f64);
        metrics::gauge!(names::FAILING).set(failing as f64);
        // A disk that is slow holds up this figure and nothing else.
        if self.lag.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            let tools = self.tools.clone();
            self.lag = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                let lag_s = match slowest {
                    Some(settled) => tools.lag_seconds(settled).await,
                    None => None,
                };
                metrics::gauge!(names::LAG_SECONDS).set(lag_s.unwrap_or(0.0));
            })));
        }
    }

    /// Removes positions of endpoints that are no more: deleted while nobody served them. What looks like one is looked
    /// at again much later, since an endpoint is made after its position.
    async fn clear_leftovers(&mut self) -> Result<(), StoreError> {
        let tools = self.tools.clone();
        match std::mem::take(&mut self.leftovers) {
            Leftovers::Unknown => {
                let positions = tools.store.positions().await?;
                let table = tools.table.read();
                let known =
                    |id: &String| table.endpoints.contains_key(id) || table.unreadable.contains_key(id);
                let orphans = positions.into_iter().filter(|id| !known(id)).collect();
                self.leftovers = Leftovers::Suspected(Instant::now(), orphans);
            }
            Leftovers::Suspected(since, orphans) if since.elapsed() < LEFTOVER_AGE => {
                self.leftovers = Leftovers::Suspected(since, orphans);
            }
            Leftovers::Suspected(_, orphans) => {
                self.leftovers = Leftovers::Cleared;
                for id in orphans {
                    if tools.store.endpoint(&id).await?.is_none() && tools.members.is_mine(&id) {
                        tools.store.clear(&id).await?;
                    }
                }
            }
            Leftovers::Cleared => self.leftovers = Leftovers::Cleared,
        }
        Ok(())
    }
}

async fn recv(changes: &mut Option<mpsc::Receiver<Change>>) -> Option<Change> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

/// Writes a checkpoint; a lost answer to an earlier write of our own is told from a lost race.
async fn write(tools: &Tools, id: &str, saved: &Checkpoint, revision: u64) -> Result<u64, StoreError> {
    let late = || StoreError::Kv(KvError::Unavailable("the write took too long".into()));
    match timeout(WRITE_MAX, tools.store.save(id, saved, revision)).await {
        Ok(Err(StoreError::Kv(KvError::Conflict))) => {
            let found = timeout(WRITE_MAX, tools.store.checkpoint(id)).await.map_err(|_| late())??;
            match found {
                Some(found) if found.value.owner == tools.members.me() => {
                    timeout(WRITE_MAX, tools.store.save(id, saved, found.revision))
                        .await
                        .map_err(|_| late())?
                }
                _ => Err(StoreError::Kv(KvError::Conflict)),
            }
        }
        Ok(result) => result,
        Err(_) => Err(late()),
    }
}

/// An endpoint that was taken over.
struct Claimed {
    order: Order,
    term: u64,
    /// Of its checkpoint.
    revision: u64,
    core: Core,
}

/// Takes an endpoint over, if nobody serves it.
async fn claim(tools: Arc<Tools>, order: Order) -> Option<Claimed> {
    let id = order.endpoint.id.clone();
    // Before anything is looked at: what is found may be somebody else's in a later one.
    let term = tools.members.term();
    let taken = async {
        let Some(At { value: mut saved, revision }) = tools.store.checkpoint(&id).await? else {
            tracing::error!(
                webhook = id,
                "the position of a webhook is gone; it begins at the oldest event kept"
            );
            tools.store.create_checkpoint(&id, &Checkpoint::earliest(tools.hub.log())).await?;
            return Ok(None);
        };
        if !tools.members.may_take(&saved.owner).await? {
            return Ok(None);
        }
        saved.owner = tools.members.me().to_owned();
        let revision = tools.store.save(&id, &saved, revision).await?;
        Ok::<_, StoreError>(Some((saved, revision)))
    };
    match timeout(WRITE_MAX * 2, taken).await {
        Ok(Ok(Some((saved, revision)))) => {
            let (now, wall) = (Instant::now(), tools.clock.now());
            let core = Core::restore(&order.endpoint, saved, tools.hub.log(), now, wall);
            Some(Claimed { order, term, revision, core })
        }
        Ok(Ok(None)) | Ok(Err(StoreError::Kv(KvError::Conflict))) => None,
        Ok(Err(error)) => {
            tracing::warn!(webhook = id, %error, "a webhook can't be taken over; it is tried again");
            None
        }
        Err(_) => None,
    }
}
