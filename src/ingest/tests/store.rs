//! A log that refuses: nothing is dropped, reordered or claimed meanwhile, and what can't be stored is counted.

use std::sync::{Arc, atomic::AtomicBool};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{backfilled, rig::Rig};
use crate::{
    bus::{
        AppendError, Appended, Bucket, Bus, Change, Entry, EraseError, Erased, Fence, Health, KvError, Lease,
        NewEvent,
    },
    event::{Iccid, SealError},
    globalsim::simulator::Faults,
    ingest::{DetailsMode, position},
    log::Log,
};

/// A bus whose appends fail as told.
#[derive(Debug)]
struct Moody {
    inner: Arc<dyn Bus>,
    away: AtomicBool,
    /// Ids that can't be stored.
    bad: Mutex<Vec<String>>,
    /// Ids of each batch that was refused or stored, in the order of the calls.
    refused: watch::Sender<Vec<Vec<String>>>,
    stored: Mutex<Vec<Vec<String>>>,
}

impl Moody {
    fn new(rig: &Rig) -> Arc<Self> {
        Arc::new(Self {
            inner: rig.bus.clone(),
            away: AtomicBool::new(false),
            bad: Mutex::default(),
            refused: watch::Sender::new(Vec::new()),
            stored: Mutex::default(),
        })
    }

    fn go_away(&self, away: bool) {
        self.away.store(away, std::sync::atomic::Ordering::SeqCst);
    }

    /// Waits until so many appends have been refused.
    async fn refusals(&self, count: usize) -> Vec<Vec<String>> {
        let mut refused = self.refused.subscribe();
        let enough = refused.wait_for(|refused| refused.len() >= count);
        tokio::time::timeout(std::time::Duration::from_secs(25), enough).await.unwrap().unwrap().clone()
    }
}

#[async_trait]
impl Bus for Moody {
    async fn append(&self, batch: Vec<NewEvent>, fence: Option<Fence>) -> Result<Vec<Appended>, AppendError> {
        let ids: Vec<String> = batch.iter().map(|new| new.event.id.clone()).collect();
        if self.away.load(std::sync::atomic::Ordering::SeqCst) {
            self.refused.send_modify(|refused| refused.push(ids));
            return Err(AppendError::Unavailable("told so".to_owned()));
        }
        if let Some(index) = ids.iter().position(|id| self.bad.lock().contains(id)) {
            let source = SealError { field: "event", bytes: 2, max: 1 };
            return Err(AppendError::BadEvent { index, source });
        }
        let answers = self.inner.append(batch, fence).await?;
        self.stored.lock().push(ids);
        Ok(answers)
    }

    fn log(&self) -> &Arc<Log> {
        self.inner.log()
    }

    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError> {
        self.inner.kv_get(bucket, key).await
    }

    async fn kv_create(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.inner.kv_create(bucket, key, value).await
    }

    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, at: u64) -> Result<u64, KvError> {
        self.inner.kv_update(bucket, key, value, at).await
    }

    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.inner.kv_put(bucket, key, value).await
    }

    async fn kv_delete(&self, bucket: Bucket, key: &str, revision: u64) -> Result<(), KvError> {
        self.inner.kv_delete(bucket, key, revision).await
    }

    async fn kv_list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError> {
        self.inner.kv_list(bucket, prefix).await
    }

    async fn kv_watch(&self, bucket: Bucket, prefix: &str) -> Result<mpsc::Receiver<Change>, KvError> {
        self.inner.kv_watch(bucket, prefix).await
    }

    async fn lease(&self, name: &str, ttl: std::time::Duration) -> Result<Lease, KvError> {
        self.inner.lease(name, ttl).await
    }

    async fn erase(&self, iccid: &Iccid) -> Result<Erased, EraseError> {
        self.inner.erase(iccid).await
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

async fn rig() -> (Rig, Arc<Moody>) {
    let mut rig = Rig::new(Faults::default()).await;
    // Completed copies would come whenever they like.
    rig.config.details = DetailsMode::Off;
    let bus = Moody::new(&rig);
    (rig, bus)
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_away_is_waited_for_and_nothing_is_claimed_meanwhile() {
    let (rig, bus) = rig().await;
    let mut run = rig.run_on(bus.clone());
    backfilled(&mut run).await;
    rig.settled().await;
    bus.go_away(true);
    rig.sim.inject_burst(150);
    let visible_at = rig.clock.now();
    let refused = bus.refusals(4).await;
    assert!(refused.iter().all(|batch| *batch == refused[0]), "the same batch is tried again: {refused:?}");
    let claimed = run.status.borrow().clone();
    assert!(claimed.seen_until.is_none_or(|seen| seen < visible_at), "{claimed:?}");
    assert!(claimed.floor.is_none_or(|floor| floor < visible_at), "{claimed:?}");
    let before = bus.stored.lock().len();
    bus.go_away(false);
    rig.settled().await;
    // What is shown as seen has been answered for, and so is in the wrapper's own books.
    run.seen(rig.clock.now()).await;
    assert_eq!(bus.stored.lock()[before], refused[0], "it goes before all that came later");
    let stored: Vec<String> = bus.stored.lock().concat();
    let logged: Vec<String> = rig.logged().into_iter().map(|event| event.id).collect();
    assert_eq!(logged, stored);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sweep_moves_no_floor_over_rows_that_are_not_durable() {
    let (mut rig, bus) = rig().await;
    rig.budget = 120;
    let mut run = rig.run_on(bus.clone());
    backfilled(&mut run).await;
    rig.settled().await;
    bus.go_away(true);
    rig.sim.inject_burst(150);
    let visible_at = rig.clock.now();
    // Sweeps are ten minutes apart at most.
    tokio::time::sleep(std::time::Duration::from_secs(700)).await;
    let claimed = run.status.borrow().clone();
    assert!(claimed.floor.is_some_and(|floor| floor < visible_at), "{claimed:?}");
    bus.go_away(false);
    rig.settled().await;
    run.until("the floor moves", |status| status.floor.is_some_and(|floor| floor > visible_at)).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_log_is_away_is_obeyed_and_the_next_run_reads_again() {
    let (rig, bus) = rig().await;
    let mut run = rig.run_on(bus.clone());
    backfilled(&mut run).await;
    rig.settled().await;
    bus.go_away(true);
    rig.sim.inject_burst(150);
    let visible_at = rig.clock.now();
    bus.refusals(2).await;
    run.stop().await;
    let kept = bus.kv_get(Bucket::State, position::KEY).await.unwrap().unwrap();
    let kept: position::Position = serde_json::from_slice(&kept.value).unwrap();
    assert!(kept.floor < visible_at, "{kept:?}");
    bus.go_away(false);
    let mut run = rig.run_on(bus.clone());
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_stored_is_counted_and_its_neighbours_are_stored() {
    let (rig, bus) = rig().await;
    let mut run = rig.run_on(bus.clone());
    backfilled(&mut run).await;
    let past = rig.settled().await.len();
    // Known before they are told, so that the first batch with them is refused.
    bus.go_away(true);
    let truth = rig.sim.inject_burst(20);
    let refused = bus.refusals(1).await;
    let bad: Vec<String> = [3, 11].iter().filter_map(|n| refused[0].get(*n).cloned()).collect();
    bus.bad.lock().clone_from(&bad);
    bus.go_away(false);
    run.seen(rig.clock.now()).await;
    assert_eq!(run.status.borrow().quarantined, bad.len() as u64);
    let logged = rig.check_each_once();
    assert_eq!(logged.len(), past + truth.len() - bad.len());
    assert!(!logged.iter().any(|event| bad.contains(&event.id)));
    run.stop().await;
}
