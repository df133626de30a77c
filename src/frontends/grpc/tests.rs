//! The services as a client sees them: an ordinary tonic client against the router, over loopback TCP, or over a pipe
//! in memory where tokio's clock is paused.

mod interact;
mod live;
mod services;
mod sims;
mod subscribe;
mod unary;
mod web;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::{
    auth::{self, Auth, CookieSessions, Roles, Tickets, TokenConfig},
    bus::{Bus, embedded::Embedded},
    clock::{SharedClock, TokioClock},
    event::{Cursor, Event, Filter, FilterLimits, Iccid, Predicate, identity::Identity},
    frontends::{
        Limits, Parts, Registry, WebConfig,
        listener::{Deadlines, Listener, Protocol, Serve},
    },
    hub::Hub,
    ingest::status::Status as Upstream,
    log::{Entry, Log},
    proto::{SubscribeRequest, SubscribeResponse, event_service_client::EventServiceClient},
    views::registry::{Tokens, open},
    webhooks,
};

const TYPES: [&str; 3] = ["connection", "disconnection", "network_change"];

/// Far beyond what any step takes: a hang fails instead of hanging.
const HANG: Duration = Duration::from_secs(120);

fn time(n: u64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + n as i64).unwrap()
}

fn iccid(n: u64) -> String {
    format!("8947{:015}", n % 5)
}

fn append(log: &Log, range: std::ops::Range<u64>) {
    let entry = |n: u64| {
        let id = format!("evt_{n}");
        let mut event = Event::new(id.clone(), "/globalsim/test".into(), TYPES[(n % 3) as usize]);
        event.iccid = Iccid::parse(&iccid(n)).ok();
        event.msisdn = Some("+4791234567".into());
        event.time = Some(time(n));
        let kind = event.event_type.clone();
        let identity =
            Identity { event_id: Some(&id), iccid: None, event_type: &kind, timestamp: None }.hash();
        let sealed = event.seal(time(n), SignedDuration::from_secs(300)).unwrap();
        Entry { sealed, identity, content: 0 }
    };
    log.append(range.map(entry).collect()).unwrap();
}

fn json_filter(filter: serde_json::Value) -> Filter {
    Filter::from_json(&filter, FilterLimits::default()).unwrap().0
}

/// The ids that a reader of `filter` must get after a position, read one by one from the log.
fn oracle(log: &Log, filter: serde_json::Value, after: u64) -> Vec<String> {
    let predicate = Predicate::from(json_filter(filter));
    (after + 1..=log.bounds().last_seq)
        .filter_map(|seq| log.get(seq).unwrap())
        .filter(|event| predicate.matches(&event.keys().unwrap()))
        .map(|event| event.keys().unwrap().id.to_owned())
        .collect()
}

#[derive(Default)]
struct Setup {
    tokens: Vec<TokenConfig>,
    limits: Limits,
    reflection: bool,
    allowed_origins: Vec<String>,
}

fn token(name: &str) -> TokenConfig {
    TokenConfig {
        name: name.into(),
        sha256: auth::hash_token(name),
        roles: Roles { read: true, ..Roles::default() },
        filter: None,
        fields: None,
        expires: None,
    }
}

/// A gateway without poller: log, hub, and the router.
struct Gateway {
    context: Context,
    router: axum::Router,
    upstream: watch::Sender<Arc<Upstream>>,
    stop_hub: CancellationToken,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.context.stop.cancel();
        self.stop_hub.cancel();
    }
}

impl Gateway {
    fn start(setup: Setup) -> Self {
        let clock: SharedClock = Arc::new(TokioClock::starting_at(time(0)));
        let bus: Arc<dyn Bus> = Embedded::in_memory(Arc::clone(&clock));
        let hub = Hub::new(crate::hub::Config::default(), bus.log().clone());
        let (upstream, status) = watch::channel(Arc::default());
        let stop_hub = CancellationToken::new();
        tokio::spawn(hub.clone().run(stop_hub.clone()));
        let auth = Arc::new(Auth::new(auth::Config { tokens: setup.tokens }, Arc::clone(&clock)));
        let parts = webhooks::Parts::in_memory(hub.clone(), bus.clone(), auth.clone(), clock.clone());
        let (webhooks, _) = webhooks::new(parts.unwrap());
        let (sims, registry) = open(Default::default(), bus.log(), Arc::clone(&clock));
        tokio::spawn(registry.run(stop_hub.clone()));
        let context = Context::new(Parts {
            lookup: crate::frontends::tests_support::nobody(&bus, &status, &clock),
            hub,
            bus,
            status,
            webhooks,
            sims,
            sim_tokens: Tokens::new(&[7; 32]),
            auth,
            tickets: Arc::new(Tickets::new(Arc::clone(&clock))),
            sessions: Arc::new(CookieSessions::new(Arc::clone(&clock))),
            registry: Registry::new(&setup.limits, Arc::clone(&clock)),
            limits: setup.limits,
            web: WebConfig { allowed_origins: setup.allowed_origins, ..WebConfig::default() },
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            source: "test".into(),
            started_at: clock.now(),
            clock,
        });
        let router = router(context.clone(), Config { reflection: setup.reflection }).unwrap();
        Self { context, router, upstream, stop_hub }
    }

    fn log(&self) -> &Arc<Log> {
        self.context.hub.log()
    }

    /// Appends and waits until the hub has it, so that `now` is behind it.
    async fn append(&self, range: std::ops::Range<u64>) {
        append(self.log(), range);
        let last = self.log().bounds().last_seq;
        while self.context.hub.edge().seq < last {
            tokio::task::yield_now().await;
        }
    }

    /// Serves the listener that the gateway has; gives its address.
    async fn listen(&self) -> SocketAddr {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "grpc.listen").unwrap();
        let address = listener.local_addr();
        tokio::spawn(listener.serve(Serve {
            router: self.router.clone(),
            protocol: Protocol::Http2AndHttp1,
            deadlines: Deadlines::default(),
            connections: 100,
            tls: None,
            draining: self.context.draining.clone(),
            stop: self.context.stop.clone(),
        }));
        address
    }

    async fn channel(&self) -> Channel {
        let address = self.listen().await;
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel().await)
    }

    /// A client over a pipe in memory: no socket, so that a paused clock advances only when nothing can happen.
    async fn pipe_client(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.pipe_channel().await)
    }

    async fn pipe_channel(&self) -> Channel {
        let router = self.router.clone();
        let connect = tower::service_fn(move |_: http::Uri| {
            let (near, far) = tokio::io::duplex(64 * 1024);
            tokio::spawn(serve(router.clone(), far));
            async move { Ok::<_, std::io::Error>(TokioIo::new(near)) }
        });
        Endpoint::from_static("http://pipe").connect_with_connector(connect).await.unwrap()
    }
}

async fn serve(router: axum::Router, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = TowerToHyperService::new(router);
    // The peer goes away in the middle of things: that is no failure of a test.
    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn soon<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, step).await.expect("the step hangs")
}

fn authorized<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

type Responses = tonic::Streaming<SubscribeResponse>;

async fn subscribe(client: &mut EventServiceClient<Channel>, request: SubscribeRequest) -> Responses {
    soon(client.subscribe(request)).await.unwrap().into_inner()
}

async fn next(responses: &mut Responses) -> SubscribeResponse {
    soon(responses.message()).await.unwrap().expect("the stream has ended")
}

async fn failure(responses: &mut Responses) -> Status {
    // Held as a whole: heartbeats alone would go on for ever.
    soon(async {
        loop {
            match responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error"),
                Err(status) => return status,
            }
        }
    })
    .await
}

fn ids(response: &SubscribeResponse) -> Vec<String> {
    response.events.iter().map(|event| event.id.clone()).collect()
}

/// Events until `caught_up`, with the control messages on the way.
async fn history(responses: &mut Responses) -> (Vec<String>, Vec<proto::subscribe_response::Control>) {
    let (mut got, mut controls) = (Vec::new(), Vec::new());
    loop {
        let response = next(responses).await;
        got.extend(ids(&response));
        if let Some(control) = response.control {
            let end = matches!(control, proto::subscribe_response::Control::CaughtUp(_));
            controls.push(control);
            if end {
                return (got, controls);
            }
        }
    }
}

fn cursor_of(text: &str) -> Cursor {
    Cursor::parse(text).unwrap()
}
