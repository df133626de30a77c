//! A gateway's webhooks without the gateway: a bus that outlives what is killed.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{self, Auth, Principal, Role, TokenConfig, hash_token},
    bus::{Bus, NewEvent, embedded::Embedded},
    clock::{self, SharedClock, TokioClock},
    event::{Event, Filter, FilterLimits, Iccid, Start},
    hub::{self, Hub},
    webhooks::{
        self, Parts, Webhooks,
        attempts::{self, Attempts},
        courier::Live,
        endpoint::{Condition, Settings},
        outbound::{self, Outbound, Script},
        service::Shown,
        store::{ReplayState, Store},
        supervisor::Supervisor,
        testing::Receiver,
    },
};

pub(super) const ICCIDS: [&str; 3] = ["8947000000000000001", "8947000000000000002", "8946000000000000003"];

/// How long something may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Rig {
    bus: Arc<dyn Bus>,
    hub: Hub,
    auth: Arc<Auth>,
    clock: SharedClock,
    attempts: Attempts,
    script: Option<Script>,
    supervisor: Mutex<Option<Supervisor>>,
    current: Mutex<Webhooks>,
    pub(super) webhooks: Webhooks,
    pub(super) admin: Principal,
    stop_hub: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop_hub.cancel();
    }
}

/// What serves.
pub(super) struct Serving {
    draining: CancellationToken,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    /// As SIGTERM does.
    pub(super) async fn stop(self) {
        self.draining.cancel();
        self.task.await.unwrap();
        self.stop.cancel();
    }

    /// As SIGKILL does: nothing more is written.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Where receivers are a function.
fn answer_by(parts: &mut Parts, script: Option<&Script>) {
    if let Some(script) = script {
        parts.outbound = Outbound::scripted(outbound::Config::new(parts.guard.clone()), script.clone());
    }
}

pub(super) fn filter(json: &Value) -> Filter {
    Filter::from_json(json, FilterLimits::default()).unwrap().0
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::build(Vec::new())
    }

    /// `admin` sees all, `scoped` one SIM, `other` another.
    pub(super) fn with_tokens() -> Self {
        let token = |name: &str, iccid: Option<&str>| TokenConfig {
            name: name.to_owned(),
            sha256: hash_token(name),
            roles: [Role::Webhooks].into_iter().collect(),
            filter: iccid.map(|iccid| filter(&serde_json::json!({ "iccid": [iccid] }))),
            fields: None,
            expires: None,
        };
        Self::build(vec![
            token("admin", None),
            token("scoped", Some(ICCIDS[0])),
            token("other", Some(ICCIDS[1])),
        ])
    }

    /// Under a paused clock: receivers are a function.
    pub(super) fn scripted(script: Script) -> Self {
        let clock: SharedClock =
            Arc::new(TokioClock::starting_at(Timestamp::from_second(1_760_000_000).unwrap()));
        Self::build_with(Vec::new(), clock, Some(script))
    }

    fn build(tokens: Vec<TokenConfig>) -> Self {
        Self::build_with(tokens, clock::system(), None)
    }

    fn build_with(tokens: Vec<TokenConfig>, clock: SharedClock, script: Option<Script>) -> Self {
        Self::on(Embedded::in_memory(clock.clone()), tokens, clock, script)
    }

    /// On a bus of the test's own.
    pub(super) fn on(
        bus: Arc<dyn Bus>,
        tokens: Vec<TokenConfig>,
        clock: SharedClock,
        script: Option<Script>,
    ) -> Self {
        let hub = Hub::new(hub::Config::default(), bus.log().clone());
        let stop_hub = CancellationToken::new();
        tokio::spawn(hub.clone().run(stop_hub.clone()));
        let is_open = tokens.is_empty();
        let auth = Arc::new(Auth::new(auth::Config { tokens }, clock.clone()));
        let attempts = Attempts::open(attempts::Config::default(), clock.clone()).unwrap();
        let admin = if is_open { Principal::anonymous() } else { (*auth.named("admin").unwrap()).clone() };
        let mut parts = Parts::in_memory(hub.clone(), bus.clone(), auth.clone(), clock.clone()).unwrap();
        parts.attempts = attempts.clone();
        answer_by(&mut parts, script.as_ref());
        let (webhooks, supervisor) = webhooks::new(parts);
        let (supervisor, current) = (Mutex::new(Some(supervisor)), Mutex::new(webhooks.clone()));
        Self { bus, hub, auth, clock, attempts, script, supervisor, current, webhooks, admin, stop_hub }
    }

    pub(super) fn principal(&self, name: &str) -> Principal {
        (*self.auth.named(name).unwrap()).clone()
    }

    /// Another process on the same bus.
    pub(super) fn reopen(&self) {
        let mut parts =
            Parts::in_memory(self.hub.clone(), self.bus.clone(), self.auth.clone(), self.clock.clone())
                .unwrap();
        answer_by(&mut parts, self.script.as_ref());
        let (webhooks, supervisor) =
            webhooks::new(Parts { attempts: self.attempts.clone(), seed: fastrand::u64(..), ..parts });
        *self.supervisor.lock() = Some(supervisor);
        *self.current.lock() = webhooks;
    }

    pub(super) fn serve(&self) -> Serving {
        let supervisor = self.supervisor.lock().take().unwrap();
        let (draining, stop) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(supervisor.run(draining.clone(), stop.clone()));
        Serving { draining, stop, task }
    }

    pub(super) fn bus(&self) -> &Arc<dyn Bus> {
        &self.bus
    }

    fn now(&self) -> MutexGuard<'_, Webhooks> {
        self.current.lock()
    }

    pub(super) fn store(&self) -> Store {
        self.now().store()
    }

    pub(super) fn settings(&self, receiver: &Receiver) -> Settings {
        Settings::new(receiver.url(), Filter::default())
    }

    pub(super) async fn create(&self, settings: Settings) -> (Shown, String) {
        let webhooks = self.now().clone();
        webhooks.create(&self.admin, settings, Start::Earliest, None).await.unwrap()
    }

    pub(super) async fn append(&self, range: Range<u64>) {
        let events = range.map(|n| {
            let mut event = Event::new(format!("e{n}"), "/globalsim/t".into(), "connection");
            event.iccid = Iccid::parse(ICCIDS[n as usize % 3]).ok();
            event.time = Some(self.clock.now());
            NewEvent { event, identity: n, content: 0 }
        });
        self.bus.append(events.collect(), None).await.unwrap();
    }

    pub(super) fn live(&self, id: &str) -> Option<Arc<Live>> {
        self.now().live_of(id)
    }

    /// That of the only endpoint.
    pub(super) fn any_live(&self) -> Option<Arc<Live>> {
        self.now().any_live()
    }

    /// Types of all events in the log.
    pub(super) fn types(&self) -> Vec<String> {
        let log = self.bus.log();
        let all = (1..=log.bounds().last_seq).filter_map(|seq| log.get(seq).unwrap());
        all.map(|event| event.keys().unwrap().event_type.to_owned()).collect()
    }

    /// For tests in which days pass: no time is too long.
    pub(super) async fn eventually(&self, holds: impl Fn() -> bool) {
        while !holds() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    }

    pub(super) async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < PATIENCE, "{what}: not in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn until_condition(&self, id: &str, condition: Condition) {
        let started = Instant::now();
        loop {
            let webhooks = self.now().clone();
            let shown = webhooks.get(&self.admin, id).await.unwrap();
            if shown.condition == condition {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{condition:?}: {shown:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn until_replayed(&self, id: &str, replay: &str) {
        let started = Instant::now();
        loop {
            let found = self.webhooks.get_replay(&self.admin, id, replay).await.unwrap();
            if found.state != ReplayState::Running {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{found:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
