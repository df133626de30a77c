//! The rig's log on NATS: a poller whose clock is paused, on a bus whose time is real.
//!
//! A server and its client can't be paused. So the bus lives on a runtime of its own; each call goes there and back
//! while the rig's clock stands still ([`standing`]), and takes along what that clock shows, which is what events are
//! stamped with. Simulated days stay as short, and as alike, as on the embedded log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::rig::standing;
use crate::{
    bus::{
        AppendError, Appended, Bucket, Bus, Change, Entry, EraseError, Erased, Fence, Fill, Health, KvError,
        Lease, NewEvent,
        jetstream::{
            JetStream,
            tests::server::{NEWEST, Options, Server},
            tests_support::config,
        },
    },
    clock::{Clock, SharedClock},
    event::Iccid,
    log::Log,
};

/// A server, and the runtime that talks to it.
pub(in crate::ingest) struct Nats {
    server: Server,
    runtime: Option<Runtime>,
    streams: AtomicU64,
}

impl Nats {
    pub async fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        // The server is not ended here, and half of the time would be the disk's.
        let options = Options { sync_always: false, volatile: true, ..Options::new(NEWEST) };
        let server = standing(runtime.spawn(Server::start_with(options))).await.unwrap();
        Self { server, runtime: Some(runtime), streams: AtomicU64::new(0) }
    }

    /// A stream that is made by the first gateway that opens it.
    pub fn stream(&self, clock: SharedClock) -> Stream<'_> {
        let name = format!("S{}", self.streams.fetch_add(1, Ordering::Relaxed));
        Stream { nats: self, name, clock, holders: watch::Sender::new(0) }
    }

    fn handle(&self) -> Handle {
        self.runtime.as_ref().expect("it runs").handle().clone()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        // One that is dropped by a task of another runtime must not be waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One stream and the gateways of one rig on it.
pub(in crate::ingest) struct Stream<'a> {
    nats: &'a Nats,
    name: String,
    clock: SharedClock,
    /// Gateways of this rig that hold the lease: one or none.
    holders: watch::Sender<usize>,
}

impl Stream<'_> {
    /// A gateway that starts: it has a connection and a copy of the stream of its own.
    pub async fn gateway(&self) -> Arc<dyn Bus> {
        let told = Arc::new(Told(AtomicI64::new(self.clock.now().as_microsecond())));
        let (config, shown) = (config(self.nats.server.url(), &self.name), Arc::clone(&told));
        let open = async move {
            let bus = JetStream::open(config, shown).await.unwrap();
            bus.fill().wait_for(|fill| *fill == Fill::Complete).await.unwrap();
            bus
        };
        let there = self.nats.handle();
        let bus = standing(there.spawn(open)).await.unwrap();
        Arc::new(Forwarded {
            bus,
            there,
            clock: Arc::clone(&self.clock),
            told,
            holders: self.holders.clone(),
        })
    }

    /// Waits until a gateway's copy has come to a sequence.
    pub async fn reached(&self, bus: &Arc<dyn Bus>, seq: u64) {
        let mut edge = bus.log().edge();
        let reached = async move { edge.wait_for(|edge| *edge >= seq).await.map(drop) };
        let waited = async { tokio::time::timeout(Duration::from_secs(30), reached).await };
        standing(self.nats.handle().spawn(waited)).await.unwrap().expect("it gets there").unwrap();
    }
}

/// What the rig's clock showed when it was last asked something.
#[derive(Debug)]
struct Told(AtomicI64);

impl Clock for Told {
    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

/// A bus that is called on its own runtime.
#[derive(Debug)]
struct Forwarded {
    bus: Arc<JetStream>,
    there: Handle,
    clock: SharedClock,
    told: Arc<Told>,
    holders: watch::Sender<usize>,
}

impl Forwarded {
    /// A call that goes on there when its caller is gone, as a request that has been sent does.
    async fn call<T, F>(&self, call: impl FnOnce(Arc<JetStream>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.told.0.store(self.clock.now().as_microsecond(), Ordering::SeqCst);
        self.there.spawn(call(Arc::clone(&self.bus))).await.unwrap()
    }
}

#[async_trait]
impl Bus for Forwarded {
    async fn append(&self, batch: Vec<NewEvent>, fence: Option<Fence>) -> Result<Vec<Appended>, AppendError> {
        self.call(|bus| async move { bus.append(batch, fence).await }).await
    }

    fn log(&self) -> &Arc<Log> {
        self.bus.log()
    }

    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError> {
        let key = key.to_owned();
        self.call(|bus| async move { bus.kv_get(bucket, &key).await }).await
    }

    async fn kv_create(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        let key = key.to_owned();
        self.call(|bus| async move { bus.kv_create(bucket, &key, value).await }).await
    }

    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, at: u64) -> Result<u64, KvError> {
        let key = key.to_owned();
        self.call(|bus| async move { bus.kv_update(bucket, &key, value, at).await }).await
    }

    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        let key = key.to_owned();
        self.call(|bus| async move { bus.kv_put(bucket, &key, value).await }).await
    }

    async fn kv_delete(&self, bucket: Bucket, key: &str, revision: u64) -> Result<(), KvError> {
        let key = key.to_owned();
        self.call(|bus| async move { bus.kv_delete(bucket, &key, revision).await }).await
    }

    async fn kv_list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError> {
        let prefix = prefix.to_owned();
        self.call(|bus| async move { bus.kv_list(bucket, &prefix).await }).await
    }

    async fn kv_watch(&self, bucket: Bucket, prefix: &str) -> Result<mpsc::Receiver<Change>, KvError> {
        let prefix = prefix.to_owned();
        self.call(|bus| async move { bus.kv_watch(bucket, &prefix).await }).await
    }

    /// The rig's clock stands while the lease is free and somebody is about to get it, and goes on while it is held.
    async fn lease(&self, name: &str, ttl: Duration) -> Result<Lease, KvError> {
        let (bus, name) = (Arc::clone(&self.bus), name.to_owned());
        let taking = self.there.spawn(async move { bus.lease(&name, ttl).await });
        let mut taking = AbortOnDropHandle::new(taking);
        let (mut free, mut held) = (self.holders.subscribe(), self.holders.subscribe());
        let taken = loop {
            tokio::select! {
                biased;
                taken = &mut taking => break taken,
                _ = free.wait_for(|holders| *holders == 0) => {}
            }
            let race = async {
                tokio::select! {
                    biased;
                    taken = &mut taking => Some(taken),
                    _ = held.wait_for(|holders| *holders > 0) => None,
                }
            };
            if let Some(taken) = standing(race).await {
                break taken;
            }
        };
        let Lease { fence, lost, release } = taken.unwrap()?;
        self.holders.send_modify(|holders| *holders += 1);
        let (released, holders) = (CancellationToken::new(), self.holders.clone());
        let given = released.clone().drop_guard();
        tokio::spawn(async move {
            released.cancelled().await;
            drop(release);
            holders.send_modify(|holders| *holders -= 1);
        });
        Ok(Lease { fence, lost, release: given })
    }

    async fn erase(&self, iccid: &Iccid) -> Result<Erased, EraseError> {
        let iccid = iccid.clone();
        self.call(|bus| async move { bus.erase(&iccid).await }).await
    }

    fn fill(&self) -> watch::Receiver<Fill> {
        self.bus.fill()
    }

    fn health(&self) -> Health {
        self.bus.health()
    }

    async fn shutdown(&self) {
        standing(self.call(|bus| async move { bus.shutdown().await })).await;
    }
}
