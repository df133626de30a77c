//! Signed webhooks: at least once, one receiver never hurting another.
//!
//! ```text
//! log --hub (filter, encode once)--> source --> feed --> attempt --guard--> receiver
//!                                               |  ^          |
//!                                   checkpoint <-  +- verdict <--> attempt log
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`endpoint`] | what was asked for |
//! | [`source`] | where events come from: the hub, like any subscriber |
//! | [`feed`] | how far the log has been taken up, and what is not settled: pure |
//! | [`pace`], [`verdict`] | how fast a receiver is asked; what its answers mean: pure |
//! | [`attempt`], [`outbound`], [`guard`], [`signature`] | one request; the only way out of the gateway |
//! | [`courier`], [`core`], [`errand`] | the task that serves one endpoint, its state, its writes |
//! | [`supervisor`], [`ownership`], [`store`] | who serves what, checkpoints, what lies in the key-value store |
//! | [`attempts`] | what was tried, for people |
//! | [`diagnosis`] | why a signature fails, for who builds a receiver |
//! | [`notices`] | what the stream is told |
//! | [`service`] | what REST, gRPC and the command line ask for |
//!
//! **What survives.** The state of an endpoint is a cursor, a bounded set of what is not settled, and counts, copied
//! into one key by its owner at most every [`CHECKPOINT`] and only when something changed. A delivery costs no write of
//! its own. After a crash what was settled since the last copy is sent again under the same `webhook-id`, and nothing
//! else is; nothing is lost. While copies can't be written for [`SAVE_GRACE`], nothing is sent.

pub mod attempt;
pub mod attempts;
pub mod core;
pub mod courier;
pub mod diagnosis;
pub mod endpoint;
pub mod errand;
pub mod feed;
pub mod guard;
mod names;
pub mod notices;
pub mod outbound;
pub mod ownership;
pub mod pace;
pub mod secret;
pub mod service;
pub mod signature;
pub mod source;
pub mod store;
pub mod supervisor;
#[cfg(test)]
pub(crate) mod testing;
pub mod verdict;

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, RwLock};
use tokio::time::Duration;

use crate::{
    auth::Auth,
    bus::Bus,
    clock::SharedClock,
    event::Predicate,
    hub::Hub,
    log::{Direction, ReadRequest},
};

use self::{
    attempts::Attempts,
    courier::Live,
    guard::{Guard, GuardConfig},
    outbound::Outbound,
    ownership::Members,
    secret::Sealer,
    store::Store,
    supervisor::{Supervisor, Table},
};

pub use service::{ServiceError, Webhooks};

/// Endpoints, at most.
pub const ENDPOINTS_MAX: usize = 1_000;
/// Copies of what changed are written at most this often.
pub const CHECKPOINT: Duration = Duration::from_millis(200);
/// How long deliveries go on while copies can't be written.
pub const SAVE_GRACE: Duration = Duration::from_secs(5);

/// What the webhooks are made of.
#[derive(Debug)]
pub struct Parts {
    /// Where events come from.
    pub hub: Hub,
    /// Where state goes.
    pub bus: Arc<dyn Bus>,
    /// Whose tokens count.
    pub auth: Arc<Auth>,
    /// Wall clock.
    pub clock: SharedClock,
    /// Which receivers are allowed.
    pub guard: Guard,
    /// The way to them.
    pub outbound: Outbound,
    /// Encrypts secrets; None where no key is configured, and then no endpoint can be made.
    pub sealer: Option<Arc<Sealer>>,
    /// Where attempts are written down.
    pub attempts: Attempts,
    /// Seed of whatever is drawn: ids, jitter.
    pub seed: u64,
}

impl Parts {
    /// Receivers on this machine, attempts in memory, a key that is known: for tests and benchmarks.
    ///
    /// # Errors
    /// Where the machine gives no thread, or its certificates can't be read.
    pub fn in_memory(
        hub: Hub,
        bus: Arc<dyn Bus>,
        auth: Arc<Auth>,
        clock: SharedClock,
    ) -> std::io::Result<Self> {
        let allowed_networks = ["127.0.0.0/8"].iter().filter_map(|text| text.parse().ok()).collect();
        let guard = Guard::new(GuardConfig { allowed_networks });
        let outbound = Outbound::new(outbound::Config::new(guard.clone())).map_err(std::io::Error::other)?;
        let sealer = Sealer::parse(&"5a".repeat(32)).map_err(std::io::Error::other)?;
        let attempts = Attempts::open(attempts::Config::default(), clock.clone())?;
        Ok(Self { hub, bus, auth, clock, guard, outbound, sealer: Some(Arc::new(sealer)), attempts, seed: 7 })
    }
}

/// What all parts of the webhooks share.
#[derive(Debug)]
pub struct Tools {
    hub: Hub,
    auth: Arc<Auth>,
    clock: SharedClock,
    guard: Guard,
    outbound: Outbound,
    attempts: Attempts,
    store: Store,
    members: Members,
    chance: Mutex<fastrand::Rng>,
    table: RwLock<Table>,
    /// What this gateway serves.
    lives: RwLock<HashMap<String, Arc<Live>>>,
}

impl Tools {
    /// A number in 0..1.
    fn chance(&self) -> f64 {
        self.chance.lock().f64()
    }

    /// How long the first event behind a position has been there; None where there is none.
    async fn lag_seconds(&self, position: u64) -> Option<f64> {
        let log = self.hub.log().clone();
        // A record is read for it.
        let read = tokio::task::spawn_blocking(move || {
            let predicate = Predicate::unfiltered();
            let request = ReadRequest {
                from: position.max(log.begins_at().saturating_sub(1)),
                direction: Direction::Forward,
                predicate: &predicate,
                limit: 1,
                max_bytes: 1,
            };
            let page = log.read(request).ok()?;
            page.events.first()?.keys().ok().map(|keys| keys.observed_us)
        });
        let observed_us = read.await.ok()??;
        Some((self.clock.now().as_microsecond().saturating_sub(observed_us).max(0)) as f64 / 1e6)
    }

    /// `prefix` and 16 hex digits.
    fn new_id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}", self.chance.lock().u64(..))
    }
}

/// Makes the webhooks of a gateway: what requests ask, and what serves them once it runs.
pub fn new(parts: Parts) -> (Webhooks, Supervisor) {
    let Parts { hub, bus, auth, clock, guard, outbound, sealer, attempts, seed } = parts;
    let mut chance = fastrand::Rng::with_seed(seed);
    let me = format!("{:016x}", chance.u64(..));
    let members = Members::new(bus.clone(), me);
    let tools = Arc::new(Tools {
        hub,
        auth,
        clock,
        guard,
        outbound,
        attempts,
        store: Store::new(bus, sealer),
        members,
        chance: Mutex::new(chance),
        table: RwLock::default(),
        lives: RwLock::default(),
    });
    (Webhooks::new(tools.clone()), Supervisor::new(tools))
}

#[cfg(test)]
mod tests;
