//! A GlobalSIM API of our own: the whole documented API under `/v1/globalsim`, with a believable fleet behind it,
//! an enforced rate limit, and every awkwardness that the API document permits as a switch.
//!
//! It exists for three uses. Tests start it in process on port 0, break it by [`Faults`] and compare what the
//! gateway published with [`Handle::truth`]. Tests that kill processes run it as a child (`simcast simulate`) and
//! do the same over HTTP under `/_sim`, which is outside authentication and rate limit. People run it to see the
//! gateway live without an account.
//!
//! One seed gives one fleet and one story: which SIM does what in which order comes from the seed, only the times
//! come from the clock. With a clock that starts at a given time the history is the same to the byte.
//!
//! `GET /_sim/stats`, `/_sim/truth?after=N&limit=M`, `/_sim/fleet`, `/_sim/requests`, `/_sim/faults`;
//! `POST /_sim/faults` (replaces all switches), `/_sim/inject` (an [`EventSpec`]), `/_sim/burst {"count"}`,
//! `/_sim/rate {"events_per_second"}`, `/_sim/pause`, `/_sim/resume`, `/_sim/keys {"keys"}`,
//! `/_sim/relink {"device_id", "iccid"}`, `/_sim/remove {"oldest", "random"}`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::SharedClock;

mod api;
mod body;
mod cache;
mod control;
pub mod faults;
mod fleet;
mod gate;
mod index;
mod meter;
mod operators;
mod query;
mod row;
mod server;
mod sessions;
#[cfg(test)]
mod tests;
mod traffic;
mod truth;
mod world;

pub use faults::{Faults, InvalidFaults};
pub use fleet::SimInfo;
pub use meter::{RequestRecord, Stats};
pub use row::Quirk;
pub use server::Dialer;
pub use sessions::SessionTruth;
pub use traffic::EventSpec;
pub use truth::{TruthEvent, TruthPage};

use cache::Cache;
use meter::Meter;
use world::World;

/// Path under which the API lives.
pub const API_PATH: &str = "/v1/globalsim";
/// The key that a default configuration accepts.
pub const DEFAULT_API_KEY: &str = "wayscloud_api_simulator";

/// What the simulated account is like.
#[derive(Debug, Clone)]
pub struct Config {
    /// SIMs in the fleet, at least 1.
    pub sims: usize,
    /// Decides fleet, story and faults.
    pub seed: u64,
    /// Mean of the Poisson arrivals, events per second, at most 100,000; 0 = nothing happens by itself.
    pub events_per_second: f64,
    /// How far the past goes back at start; cut where it would hold more than 2,000,000 events.
    pub history: Duration,
    /// Events per second in that past; 0 = no past.
    pub history_events_per_second: f64,
    /// Timestamps are multiples of this many seconds, at least 1; more makes more events tie.
    pub tie_seconds: u32,
    /// Requests per key in any sliding 60 s; more are answered 429.
    pub requests_per_minute: usize,
    /// Keys that are accepted.
    pub api_keys: Vec<String>,
    /// Where a key may be.
    pub auth_styles: Vec<AuthStyle>,
    /// Rows kept visible, at least 1; the oldest make room. About 1 KiB each.
    pub visible_rows: usize,
    /// Events that the truth ledger remembers, at least 1; beyond, the first are forgotten and counted. About
    /// 0.5 KiB each.
    pub truth_events: usize,
    /// Switches at start; content switches apply to the history too.
    pub faults: Faults,
}

/// Where a key may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthStyle {
    /// `Authorization: Bearer`, as the API document says.
    Bearer,
    /// `X-API-Key`, as the provider's clients do.
    XApiKey,
}

/// A running simulator. Clones are the same one; it runs until [`Handle::shutdown`].
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// Who may ask, and how often.
#[derive(Debug)]
struct Access {
    keys: Vec<String>,
    styles: Vec<AuthStyle>,
    per_minute: usize,
}

/// What requests, driver and handles share. The meter may be locked while the world is, not the
/// other way round; the others are locked alone.
#[derive(Debug)]
struct Shared {
    access: Mutex<Access>,
    world: Mutex<World>,
    meter: Mutex<Meter>,
    cache: Mutex<Cache>,
    clock: SharedClock,
    address: SocketAddr,
    /// The driver must look again at what is due.
    changed: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sims: 100,
            seed: 1,
            events_per_second: 2.0,
            history: Duration::from_secs(86_400),
            history_events_per_second: 0.1,
            tie_seconds: 1,
            requests_per_minute: 500,
            api_keys: vec![DEFAULT_API_KEY.to_owned()],
            auth_styles: vec![AuthStyle::Bearer, AuthStyle::XApiKey],
            visible_rows: 200_000,
            truth_events: 1_000_000,
            faults: Faults::default(),
        }
    }
}

/// Starts the simulator on a bound listener. Must be called inside a tokio runtime; generates the history before
/// it returns.
pub fn start(config: Config, listener: TcpListener, clock: SharedClock) -> Handle {
    let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let world = World::new(&config, clock.now());
    let shared = Arc::new(Shared {
        access: Mutex::new(Access {
            keys: config.api_keys,
            styles: config.auth_styles,
            per_minute: config.requests_per_minute,
        }),
        world: Mutex::new(world),
        meter: Mutex::new(Meter::default()),
        cache: Mutex::new(Cache::default()),
        clock,
        address,
        changed: Notify::new(),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    shared.tasks.spawn(server::serve(shared.clone(), listener));
    shared.tasks.spawn(server::drive(shared.clone()));
    Handle { shared }
}

// === impl Shared ===

impl Shared {
    /// Changes the world at one moment. The clock is read under the lock: a request that is answered later than an
    /// event's `visible_at` sees it.
    fn change<T>(&self, change: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let mut world = self.world.lock();
        let now = self.clock.now();
        change(&mut world, now)
    }
}

// === impl Handle ===

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Scheme, host and port, no trailing slash; `/_sim` lives right under it.
    pub fn origin(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// The API's base as the API document writes it: [`Self::origin`] and `/v1/globalsim`.
    pub fn base_url(&self) -> String {
        format!("{}{API_PATH}", self.origin())
    }

    /// Connections without sockets, for clients in the same runtime.
    pub fn dialer(&self) -> Dialer {
        Dialer::new(self.shared.clone())
    }

    /// Makes one event visible now.
    pub fn inject(&self, spec: EventSpec) -> TruthEvent {
        let row = self.shared.change(|world, now| world.inject(spec, now));
        TruthEvent::from(&*row)
    }

    /// Makes `count` events of the usual traffic visible now, in one step.
    pub fn inject_burst(&self, count: usize) -> Vec<TruthEvent> {
        let rows = self.shared.change(|world, now| world.inject_burst(count, now));
        rows.iter().map(|row| TruthEvent::from(&**row)).collect()
    }

    /// Sets the mean arrival rate in events per second.
    pub fn set_rate(&self, events_per_second: f64) {
        self.shared.world.lock().set_rate(events_per_second);
        self.shared.changed.notify_one();
    }

    /// Stops the traffic; late events that are held back still come out.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Resumes the traffic.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        self.shared.world.lock().set_paused(paused);
        self.shared.changed.notify_one();
    }

    /// Replaces all switches.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.world.lock().set_faults(faults);
        self.shared.changed.notify_one();
    }

    /// The switches now.
    pub fn faults(&self) -> Faults {
        self.shared.world.lock().faults().clone()
    }

    /// Replaces the accepted keys.
    pub fn set_api_keys(&self, keys: Vec<String>) {
        self.shared.access.lock().keys = keys;
    }

    /// Sets the enforced requests per key in any sliding 60 s.
    pub fn set_requests_per_minute(&self, requests: usize) {
        self.shared.access.lock().per_minute = requests;
    }

    /// Takes the oldest rows away, as retention does.
    pub fn remove_oldest(&self, count: usize) {
        self.shared.change(|world, now| world.remove_oldest(count, now));
    }

    /// Takes random rows away, as erasure does; the `paging.erase_*` switches narrow the choice.
    pub fn erase(&self, count: usize) {
        self.shared.change(|world, now| world.erase(count, now));
    }

    /// Moves a device to another SIM. False: no such SIM.
    pub fn relink(&self, device_id: &str, iccid: &str) -> bool {
        self.shared.change(|world, now| world.relink(device_id, iccid, now))
    }

    /// The fleet, in order of creation.
    pub fn fleet(&self) -> Vec<SimInfo> {
        self.shared.world.lock().fleet().infos()
    }

    /// The sessions of all SIMs, as they really are.
    pub fn sessions(&self) -> Vec<SessionTruth> {
        self.shared.world.lock().fleet().sessions()
    }

    /// Every event that ever became visible and is remembered ([`Config::truth_events`]), in that order.
    pub fn truth(&self) -> Vec<TruthEvent> {
        self.truth_after(0, usize::MAX).events
    }

    /// At most `limit` events whose ordinal is above `after`.
    pub fn truth_after(&self, after: u64, limit: usize) -> TruthPage {
        let (rows, last, dropped) = {
            let world = self.shared.world.lock();
            let ledger = world.ledger();
            (ledger.rows_after(after, limit), ledger.last(), ledger.dropped())
        };
        TruthPage { events: rows.iter().map(|row| TruthEvent::from(&**row)).collect(), last, dropped }
    }

    /// The figures so far.
    pub fn stats(&self) -> Stats {
        let stats = self.shared.meter.lock().stats();
        self.shared.world.lock().fill(stats)
    }

    /// Most API requests in any sliding 60 s, all keys together, refused ones included.
    pub fn max_requests_in_any_60s(&self) -> usize {
        self.shared.meter.lock().stats().max_requests_in_any_60s
    }

    /// The last 10,000 API requests, oldest first.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.shared.meter.lock().recent()
    }

    /// Stops listening, drops every connection and waits for all tasks to end.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}
