//! Erasing what is known of one SIM, wherever a gateway keeps it: `POST /v1/erase`, `simcast erase`.
//!
//! The bus goes first: it has the log, from which all else could come back. Then the live rings, then each [`Target`] that
//! keeps something of its own. Each step may be done again and does no harm, so an erasure that was interrupted is
//! simply asked for once more. Other gateways of the bus learn from it what to erase in their copies, and forget the SIM
//! in their own targets ([`Erasure::follow`]).
//!
//! A SIM that is erased may still be active: what upstream shows of it from then on comes in as ever.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    bus::{Bucket, Bus, EraseError, Erased, Left},
    event::Iccid,
    hub::Hub,
    lookup::Lookup,
    views::{registry, rollup::Rollup},
    webhooks::Webhooks,
};

/// Something that keeps what it knows of SIMs outside the bus.
#[async_trait]
pub trait Target: std::fmt::Debug + Send + Sync + 'static {
    /// What it keeps, as answers name it: `webhook_attempts`.
    fn name(&self) -> &'static str;

    /// Forgets a SIM; gives how many entries that were. What it has on a disk is gone when this returns.
    async fn forget(&self, iccid: &Iccid) -> Result<u64, EraseError>;
}

#[async_trait]
impl Target for Webhooks {
    fn name(&self) -> &'static str {
        "webhook_attempts"
    }

    async fn forget(&self, iccid: &Iccid) -> Result<u64, EraseError> {
        self.forget_sim(iccid).await.map_err(|error| EraseError(format!("attempts of webhooks: {error}")))
    }
}

#[async_trait]
impl Target for registry::Handle {
    fn name(&self) -> &'static str {
        "registry_entries"
    }

    async fn forget(&self, iccid: &Iccid) -> Result<u64, EraseError> {
        let known = self.forget(iccid).await.map_err(|error| EraseError(format!("the registry: {error}")))?;
        Ok(u64::from(known))
    }
}

#[async_trait]
impl Target for Rollup {
    fn name(&self) -> &'static str {
        "report_days"
    }

    async fn forget(&self, iccid: &Iccid) -> Result<u64, EraseError> {
        let (rollup, iccid) = (self.clone(), iccid.clone());
        let forget = move || Rollup::forget(&rollup, iccid.as_str()).map_err(|error| error.to_string());
        let forgotten =
            tokio::task::spawn_blocking(forget).await.unwrap_or_else(|error| Err(error.to_string()));
        forgotten.map_err(|error| EraseError(format!("roll-ups: {error}")))
    }
}

#[async_trait]
impl Target for Lookup {
    fn name(&self) -> &'static str {
        "upstream_answers"
    }

    async fn forget(&self, iccid: &Iccid) -> Result<u64, EraseError> {
        Ok(Self::forget(self, iccid))
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// On the bus.
    pub bus: Erased,
    /// By each target, in their order.
    pub targets: Vec<(&'static str, u64)>,
    /// What no gateway can reach.
    pub out_of_reach: &'static [&'static str],
}

impl Report {
    /// The answer of `POST /v1/erase`, described in the OpenAPI document as `SimErased`.
    pub fn to_json(&self, iccid: &Iccid) -> Value {
        let Erased { events, mentions, keys, left } = &self.bus;
        let mut removed = json!({ "events": events, "mentions": mentions, "keys": keys });
        for (name, count) in &self.targets {
            removed[name] = (*count).into();
        }
        let left: Vec<_> = left.iter().map(|left| json!({ "what": left.what, "cure": left.cure })).collect();
        json!({ "iccid": iccid.as_str(), "removed": removed, "left": left, "out_of_reach": self.out_of_reach })
    }
}

/// What is out of reach of every gateway.
const OUT_OF_REACH: &[&str] = &[
    "upstream itself, and what it shows of the SIM from now on, which comes in as before",
    "receivers of webhooks, and whoever has read or subscribed to events",
    "logs of programs, proxies and receivers",
    "backups and file system snapshots; blocks that the file system has freed and not used again",
];
/// The same with NATS.
const OUT_OF_REACH_SHARED: &[&str] = &[
    OUT_OF_REACH[0],
    OUT_OF_REACH[1],
    OUT_OF_REACH[2],
    OUT_OF_REACH[3],
    "copies that other NATS clients made, mirrors and sources of the stream, and backups of it; the servers free purged \
     messages in their own time",
    "copies of gateways that are away: they erase before they serve again; what they wrote down of webhook attempts goes \
     with them, or by its age where their copy was made anew meanwhile",
];

/// Erases. Clones are the same.
#[derive(Debug, Clone)]
pub struct Erasure(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    hub: Hub,
    bus: Arc<dyn Bus>,
    targets: Vec<Arc<dyn Target>>,
    /// Held while one runs.
    alone: Mutex<()>,
}

impl Erasure {
    /// Of a bus, the hub that reads it, and whatever else keeps something of SIMs.
    pub fn new(hub: Hub, bus: Arc<dyn Bus>, targets: Vec<Arc<dyn Target>>) -> Self {
        Self(Arc::new(Shared { hub, bus, targets, alone: Mutex::default() }))
    }

    /// Erases a SIM. Goes on to its end even if the caller stops waiting.
    ///
    /// # Errors
    /// [`EraseError`]: what is done stays done, and asking again goes on.
    pub async fn erase(&self, iccid: Iccid) -> Result<Report, EraseError> {
        let shared = Arc::clone(&self.0);
        let erasing = tokio::spawn(async move { shared.erase(&iccid).await });
        erasing.await.unwrap_or_else(|error| Err(EraseError(error.to_string())))
    }

    /// Forgets, in the targets of this gateway, SIMs that another one erased, until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        let following = async {
            let Some(mut elsewhere) = self.0.bus.erased_elsewhere() else { return };
            while let Some(iccid) = elsewhere.recv().await {
                self.forget(&iccid).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = following => {}
        }
        // A bus of one gateway has nothing to tell.
        stop.cancelled().await;
    }

    async fn forget(&self, iccid: &str) {
        let Ok(iccid) = Iccid::parse(iccid) else { return };
        let _alone = self.0.alone.lock().await;
        self.0.hub.forget_rings();
        if let Err(error) = self.0.forget(&iccid).await {
            tracing::error!(%error, "a SIM that another gateway erased was not forgotten by all of this one");
        }
    }
}

impl Shared {
    async fn erase(&self, iccid: &Iccid) -> Result<Report, EraseError> {
        let _alone = self.alone.lock().await;
        let mut bus = self.bus.erase(iccid).await?;
        self.hub.forget_rings();
        let targets = self.forget(iccid).await?;
        bus.left.extend(self.endpoints_that_name(iccid).await?);
        let out_of_reach = if self.bus.is_shared() { OUT_OF_REACH_SHARED } else { OUT_OF_REACH };
        tracing::info!(
            events = bus.events,
            mentions = bus.mentions,
            left = bus.left.len(),
            "a SIM was erased"
        );
        Ok(Report { bus, targets, out_of_reach })
    }

    async fn forget(&self, iccid: &Iccid) -> Result<Vec<(&'static str, u64)>, EraseError> {
        let mut forgotten = Vec::new();
        for target in &self.targets {
            forgotten.push((target.name(), target.forget(iccid).await?));
        }
        Ok(forgotten)
    }

    /// Endpoints whose settings name the SIM: whoever made them wants them so.
    async fn endpoints_that_name(&self, iccid: &Iccid) -> Result<Vec<Left>, EraseError> {
        let endpoints = self.bus.kv_list(Bucket::Endpoints, "").await;
        let endpoints = endpoints.map_err(|error| EraseError(error.to_string()))?;
        let names_it = |value: &[u8]| memchr::memmem::find(value, iccid.as_str().as_bytes()).is_some();
        let left = endpoints.iter().filter(|entry| names_it(&entry.value)).map(|entry| Left {
            what: format!("the settings of {} of the webhooks name the SIM", entry.key),
            cure: "change its filter or delete it, then erase again".to_owned(),
        });
        Ok(left.collect())
    }
}
