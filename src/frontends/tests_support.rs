//! A gateway in memory for the tests of frontends: a log that the test fills, no poller, no sockets.

use std::{collections::HashMap, sync::Arc};

use ::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::{Router, body::Body, response::Response};
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::{
    auth::{self, Role, TokenConfig, hash_token},
    bus::embedded,
    clock::Clock,
    event::{Event, Filter, FilterLimits, Iccid, StoredEvent, identity::Identity},
    globalsim::{
        budget::{BudgetConfig, Gate},
        client::{self, Client},
        key::{KeySource, Secret},
    },
    hub,
    ingest::{Status, UpstreamState},
    log::Entry,
    webhooks,
};

/// When the tests play.
pub(crate) const BASE: i64 = 1_760_000_000;

#[derive(Debug)]
struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        at(3600)
    }
}

/// Seconds after [`BASE`].
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(BASE + seconds).unwrap()
}

/// An event as the tests describe it.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub id: String,
    pub event_type: &'static str,
    pub iccid: &'static str,
    pub observed: i64,
    pub time: i64,
}

impl Sample {
    pub(crate) fn new(id: &str, event_type: &'static str, iccid: &'static str, observed: i64) -> Self {
        Self { id: id.to_owned(), event_type, iccid, observed, time: observed }
    }
}

pub(crate) const ICCIDS: [&str; 3] = ["8947000000000000001", "8947000000000000002", "8946000000000000003"];

/// The gateway.
pub(crate) struct Fixture {
    supervisor: Mutex<Option<webhooks::supervisor::Supervisor>>,
    registry: Mutex<Option<sim_registry::Registry>>,
    pub context: Context,
    pub upstream: watch::Sender<Arc<Status>>,
}

/// Lookups where upstream is away: what the log holds is all there is.
pub(crate) fn nobody(bus: &Arc<dyn Bus>, status: &StatusReceiver, clock: &SharedClock) -> Arc<Lookup> {
    let gate = Gate::open(BudgetConfig::default(), Arc::clone(clock)).unwrap();
    let key = KeySource::Inline(Secret::new("key").unwrap());
    // Port 9 is nobody's.
    let client =
        Client::new(client::Config::new("http://127.0.0.1:9", key), gate, Arc::clone(clock)).unwrap();
    Arc::new(Lookup::new(&client, Arc::clone(bus), status.clone(), Arc::clone(clock)))
}

/// A token named as its text, without `sct_`.
pub(crate) fn token(name: &str, roles: &[Role]) -> TokenConfig {
    TokenConfig {
        name: name.into(),
        sha256: hash_token(&format!("sct_{name}")),
        roles: roles.iter().copied().collect(),
        filter: None,
        fields: None,
        expires: None,
    }
}

pub(crate) fn filter(json: &Value) -> Filter {
    Filter::from_json(json, FilterLimits::default()).unwrap().0
}

impl Fixture {
    pub(crate) fn new(tokens: Vec<TokenConfig>) -> Self {
        Self::with(tokens, |_| {})
    }

    /// By the machine's clock.
    pub(crate) fn system() -> Self {
        Self::build(Vec::new(), crate::clock::system(), |_| {})
    }

    pub(crate) fn with(tokens: Vec<TokenConfig>, adjust: impl FnOnce(&mut Parts)) -> Self {
        Self::build(tokens, Arc::new(FixedClock), adjust)
    }

    fn build(tokens: Vec<TokenConfig>, clock: SharedClock, adjust: impl FnOnce(&mut Parts)) -> Self {
        let config = embedded::Config { incarnation: Some(7), ..embedded::Config::default() };
        let bus: Arc<dyn Bus> = embedded::Embedded::open(config, Arc::clone(&clock)).unwrap();
        let status = Status { state: UpstreamState::Ok, seen_until: Some(at(3590)), ..Status::default() };
        let (upstream, receiver) = watch::channel(Arc::new(status));
        let limits = Limits::default();
        let hub = hub::Hub::new(hub::Config::default(), Arc::clone(bus.log()));
        let auth = Arc::new(Auth::new(auth::Config { tokens }, Arc::clone(&clock)));
        let (webhooks, supervisor) = webhooks::new(
            webhooks::Parts::in_memory(hub.clone(), bus.clone(), auth.clone(), clock.clone()).unwrap(),
        );
        let (sims, registry) =
            sim_registry::open(sim_registry::Config::default(), bus.log(), Arc::clone(&clock));
        let mut parts = Parts {
            lookup: nobody(&bus, &receiver, &clock),
            hub,
            bus,
            status: receiver,
            webhooks,
            sims,
            sim_tokens: sim_registry::Tokens::new(&[7; 32]),
            auth,
            tickets: Arc::new(Tickets::new(Arc::clone(&clock))),
            sessions: Arc::new(CookieSessions::new(Arc::clone(&clock))),
            registry: Registry::new(&limits, Arc::clone(&clock)),
            clock,
            limits,
            web: WebConfig {
                listen: vec!["127.0.0.1:8080".parse().unwrap()],
                allowed_hosts: vec!["gateway.example".into()],
                allowed_origins: vec!["https://console.example".into()],
            },
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            source: "default".into(),
            started_at: at(0),
        };
        adjust(&mut parts);
        Self {
            context: Context::new(parts),
            upstream,
            supervisor: Mutex::new(Some(supervisor)),
            registry: Mutex::new(Some(registry)),
        }
    }

    /// Serves its webhooks, as a gateway does.
    pub(crate) fn serve_webhooks(&self) {
        let supervisor = self.supervisor.lock().take().unwrap();
        let (draining, stop) = (self.context.draining.clone(), self.context.stop.clone());
        tokio::spawn(supervisor.run(draining, stop));
    }

    /// Has the registry read the log, and waits until it has.
    pub(crate) async fn know_sims(&self) {
        let registry = self.registry.lock().take();
        if let Some(registry) = registry {
            tokio::spawn(registry.run(self.context.stop.clone()));
        }
        let caught_up = async {
            while self.context.sims.lag() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), caught_up).await.unwrap();
    }

    /// Appends to the log as the bus would, with times that the test chooses.
    pub(crate) fn append(&self, samples: &[Sample]) {
        let entries = samples.iter().map(|sample| {
            let gateway = sample.event_type.starts_with("simcast.");
            let source = if gateway { "/simcast" } else { "/globalsim/default" };
            let mut event = Event::new(sample.id.clone(), source.into(), sample.event_type);
            event.gateway = gateway;
            event.event_id = Some(sample.id.clone());
            event.iccid = (!gateway).then(|| Iccid::parse(sample.iccid).unwrap());
            event.time = Some(at(sample.time));
            let identity = Identity {
                event_id: Some(&sample.id),
                iccid: None,
                event_type: sample.event_type,
                timestamp: None,
            };
            let identity = identity.hash();
            Entry {
                sealed: event.seal(at(sample.observed), SignedDuration::MAX).unwrap(),
                identity,
                content: 0,
            }
        });
        self.context.hub.log().append(entries.collect()).unwrap();
    }

    /// The stored event at a sequence.
    pub(crate) fn stored(&self, seq: u64) -> StoredEvent {
        self.context.hub.log().get(seq).unwrap().unwrap()
    }

    /// The public listener's router, all of it.
    pub(crate) fn http(&self) -> Router {
        let context = || self.context.clone();
        super::http::router(context(), websocket::routes(context()), sse::routes(context()))
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Status, code, message and field of an error.
    pub(crate) fn error(&self) -> (u16, String, String, Option<String>) {
        let error = &self.json()["error"];
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        (self.status.as_u16(), text("code").unwrap(), text("message").unwrap(), text("field"))
    }
}

/// A request with its headers; `host` and a body are there unless the test says otherwise.
pub(crate) async fn send(router: &Router, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    send_body(router, method, target, headers, "").await
}

pub(crate) async fn send_body(
    router: &Router,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let (parts, body) = respond(router, method, target, headers, body).await.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

/// The answer with its body unread: that of a stream has no end.
pub(crate) async fn respond(
    router: &Router,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(target);
    let given: HashMap<_, _> = headers.iter().copied().collect();
    if !given.contains_key("host") {
        request = request.header(header::HOST, "localhost:8080");
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(*name, HeaderValue::from_str(value).unwrap());
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    router.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn get(router: &Router, target: &str) -> Answer {
    send(router, "GET", target, &[]).await
}

/// As the holder of a [`token`].
pub(crate) async fn get_as(router: &Router, name: &str, target: &str) -> Answer {
    let value = format!("Bearer sct_{name}");
    send(router, "GET", target, &[("authorization", &value)]).await
}
