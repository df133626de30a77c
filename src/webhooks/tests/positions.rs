//! A store that takes no positions for a while: what is sent meanwhile would be sent again after a crash.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::rig::Rig;
use crate::{
    bus::{
        AppendError, Appended, Bucket, Bus, Change, Entry, Fence, Fill, Health, KvError, Lease, NewEvent,
        embedded::Embedded,
    },
    clock::{SharedClock, TokioClock},
    event::Filter,
    log::Log,
    webhooks::{CHECKPOINT, SAVE_GRACE, endpoint::Settings, outbound::Script},
};

/// An embedded bus whose positions can't be written while it is told so.
#[derive(Debug)]
struct Forgetful {
    inner: Arc<Embedded>,
    refuses: AtomicBool,
}

#[async_trait]
impl Bus for Forgetful {
    async fn append(&self, batch: Vec<NewEvent>, fence: Option<Fence>) -> Result<Vec<Appended>, AppendError> {
        self.inner.append(batch, fence).await
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
        if bucket == Bucket::Cursors && self.refuses.load(Ordering::Relaxed) {
            return Err(KvError::Unavailable("told so".to_owned()));
        }
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

    async fn lease(&self, name: &str, ttl: Duration) -> Result<Lease, KvError> {
        self.inner.lease(name, ttl).await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn fill(&self) -> watch::Receiver<Fill> {
        self.inner.fill()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

/// An event is appended as often.
const EVERY: Duration = Duration::from_millis(100);

type Sent = Arc<Mutex<Vec<(String, Instant)>>>;

/// A receiver that takes all, and a bus that may be told to take no positions.
fn rig() -> (Rig, Arc<Forgetful>, Sent) {
    let clock: SharedClock =
        Arc::new(TokioClock::starting_at(Timestamp::from_second(1_760_000_000).unwrap()));
    let sent = Sent::default();
    let seen = sent.clone();
    let script = Script(Arc::new(move |headers, _| {
        seen.lock().push((headers["webhook-id"].to_str().unwrap().to_owned(), Instant::now()));
        200
    }));
    let inner = Embedded::in_memory(clock.clone());
    let bus = Arc::new(Forgetful { inner, refuses: AtomicBool::new(false) });
    (Rig::on(bus.clone(), Vec::new(), clock, Some(script)), bus, sent)
}

/// Appends for so long; gives how many events there are.
async fn append_for(rig: &Rig, from: u64, time: Duration) -> u64 {
    let count = (time.as_millis() / EVERY.as_millis()) as u64;
    for n in from..from + count {
        rig.append(n..n + 1).await;
        tokio::time::sleep(EVERY).await;
    }
    from + count
}

fn distinct(sent: &Sent) -> u64 {
    sent.lock().iter().map(|(id, _)| id.clone()).collect::<BTreeSet<_>>().len() as u64
}

#[tokio::test(start_paused = true)]
async fn sending_stops_while_positions_can_not_be_written_and_goes_on_afterwards() {
    let (rig, bus, sent) = rig();
    rig.create(Settings::new("http://127.0.0.1:9999/hook", Filter::default())).await;
    let gateway = rig.serve();
    let before = append_for(&rig, 0, Duration::from_secs(3)).await;
    bus.refuses.store(true, Ordering::Relaxed);
    let refused_at = Instant::now();
    let appended = append_for(&rig, before, Duration::from_secs(30)).await;
    let last = sent.lock().last().unwrap().1.duration_since(refused_at);
    // It takes a turn to see the first failure, and one to see that the grace is over.
    assert!(last <= SAVE_GRACE + CHECKPOINT * 3, "sent {last:?} after the last position");
    assert!(last >= SAVE_GRACE - CHECKPOINT, "a store that stumbles stops nothing: {last:?}");
    bus.refuses.store(false, Ordering::Relaxed);
    rig.eventually(|| distinct(&sent) == appended).await;
    assert_eq!(sent.lock().len() as u64, appended, "some were sent twice");
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_positions_can_not_be_written_repeats_no_more_than_was_sent_in_the_grace() {
    let (rig, bus, sent) = rig();
    rig.create(Settings::new("http://127.0.0.1:9999/hook", Filter::default())).await;
    let gateway = rig.serve();
    let before = append_for(&rig, 0, Duration::from_secs(3)).await;
    bus.refuses.store(true, Ordering::Relaxed);
    let appended = append_for(&rig, before, Duration::from_secs(30)).await;
    gateway.kill().await;
    let sent_before = sent.lock().len() as u64;
    bus.refuses.store(false, Ordering::Relaxed);
    rig.reopen();
    let gateway = rig.serve();
    rig.eventually(|| distinct(&sent) == appended).await;
    let again = sent.lock().len() as u64 - appended;
    // Since the last position: the grace, and the turns at both ends of it.
    let window = (SAVE_GRACE + CHECKPOINT * 4).as_millis() / EVERY.as_millis();
    assert!(again <= window as u64, "{again} sent again, {window} allowed");
    assert!(again > 0 && sent_before < appended, "{again}, {sent_before} of {appended}");
    gateway.stop().await;
}
