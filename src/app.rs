//! The composition root: a checked configuration becomes a running gateway. `main` and the tests use the same one.
//!
//! What can fail is done first and in this order: ports, data directory, upstream's key. A gateway that returns from
//! [`start`] has all its listeners bound; upstream being away is not a reason to refuse, since what is stored can be
//! read all the same.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Auth, CookieSessions, Tickets},
    bus::{
        Bus, Fill,
        embedded::{self, Embedded},
        jetstream::{self, JetStream},
    },
    clock::SharedClock,
    config::{self, BusKind, Config},
    frontends::{
        self, Context, Limits, Parts, Registry, WebConfig,
        listener::{BindError, Deadlines, Listener, Protocol, Serve},
    },
    globalsim::{
        budget::{BudgetConfig, BudgetError, Gate},
        client::{self, Client},
    },
    hub::{self, Hub},
    ingest::{self, Ingest},
    lifecycle::{Ended, Lifecycle},
    lookup::Lookup,
    observability::Metrics,
    views::registry,
    webhooks::{
        self,
        attempts::{self, Attempts},
        guard::{Guard, GuardConfig},
        outbound::{self, Outbound, Proxy},
        secret::{Sealer, SealerError},
        supervisor::Supervisor,
    },
};

/// Name of the budget journal in the data directory.
pub const BUDGET_JOURNAL: &str = "budget.journal";

/// Name of the key for secrets in the data directory, where none is configured.
pub const WEBHOOKS_KEY: &str = "webhooks.key";

/// Why a gateway does not start. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken or not ours.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The data directory can't be used.
    #[error(transparent)]
    Data(#[from] embedded::OpenError),
    /// The stream on NATS can't be used.
    #[error(transparent)]
    Nats(#[from] jetstream::OpenError),
    /// The request budget can't be kept.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The upstream client can't be built.
    #[error("upstream: {0}")]
    Upstream(#[from] crate::globalsim::error::Error),
    /// The webhooks can't be served.
    #[error("webhooks: {0}")]
    Webhooks(String),
    /// gRPC reflection can't be built.
    #[error(transparent)]
    Grpc(#[from] frontends::grpc::ReflectionError),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Entropy(getrandom::Error),
    /// The thread for blocking work died.
    #[error("start-up was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Running {
    /// REST, SSE, WebSocket.
    pub http: SocketAddr,
    /// gRPC and grpc-web.
    pub grpc: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
    /// To drain or stop it.
    pub lifecycle: Lifecycle,
    /// Where its events are; for tests and embedders.
    pub bus: Arc<dyn Bus>,
    client: Client,
}

impl Running {
    /// What SIGHUP does: reads the API key file again.
    pub fn reloader(&self) -> impl Fn() + Send + Sync + 'static {
        let client = self.client.clone();
        move || match client.reload_key() {
            Ok(changed) => tracing::info!(changed, "the upstream API key was read again"),
            Err(error) => tracing::error!(%error, "the upstream API key was not reloaded; the old one stays"),
        }
    }

    /// Waits for a drain and for everything to end, then closes the log.
    pub async fn join(self) -> Ended {
        let ended = self.lifecycle.join().await;
        self.bus.shutdown().await;
        ended
    }
}

/// Starts a gateway.
///
/// # Errors
/// [`StartError`]; nothing of the gateway is left running then.
pub async fn start(config: Config, clock: SharedClock, metrics: Metrics) -> Result<Running, StartError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let http = Listener::bind(config.http.listen, "http.listen")?;
    let grpc = Listener::bind(config.grpc.listen, "grpc.listen")?;
    let admin = Listener::bind(config.admin.listen, "admin.listen")?;

    let bus: Arc<dyn Bus> = match config.bus {
        BusKind::Embedded => {
            let (bus_config, bus_clock) = (embedded_config(&config), clock.clone());
            tokio::task::spawn_blocking(move || Embedded::open(bus_config, bus_clock)).await??
        }
        BusKind::Nats => JetStream::open(jetstream_config(&config), clock.clone()).await?,
    };
    let gate = Gate::open(budget_config(&config), clock.clone())?;
    let client = Client::new(client_config(&config.upstream), gate.clone(), clock.clone())?;

    let lifecycle = Lifecycle::new();
    let hub = Hub::new(hub::Config::default(), bus.log().clone());
    let ingest = Ingest::new(
        ingest_config(&config),
        client.clone(),
        gate,
        bus.clone(),
        clock.clone(),
        fastrand::u64(..),
    );
    let auth = Arc::new(Auth::new(config.auth.clone(), clock.clone()));
    let (webhooks, supervisor) = webhooks::new(webhooks_parts(&config, &hub, &bus, &auth, &clock)?);
    let (sims, registry) = {
        let (config, log, clock) = (registry_config(&config), Arc::clone(bus.log()), clock.clone());
        tokio::task::spawn_blocking(move || registry::open(config, &log, clock)).await?
    };
    let limits = limits(&config.limits);
    let web = WebConfig {
        listen: vec![http.local_addr(), grpc.local_addr()],
        allowed_hosts: config.http.allowed_hosts.clone(),
        allowed_origins: config.http.allowed_origins.clone(),
    };
    let context = Context::new(Parts {
        hub: hub.clone(),
        bus: bus.clone(),
        status: ingest.status(),
        webhooks,
        sims,
        sim_tokens: registry::Tokens::new(&page_key()?),
        lookup: Arc::new(Lookup::new(&client, bus.clone(), ingest.status(), clock.clone())),
        auth,
        tickets: Arc::new(Tickets::new(clock.clone())),
        sessions: Arc::new(CookieSessions::new(clock.clone())),
        clock: clock.clone(),
        registry: Registry::new(&limits, clock.clone()),
        limits: limits.clone(),
        web,
        draining: lifecycle.draining.clone(),
        stop: lifecycle.stop.clone(),
        source: config.upstream.name.as_str().into(),
        started_at: clock.now(),
    });
    let grpc_config = frontends::grpc::Config { reflection: config.grpc.reflection };
    let routers = (
        frontends::http::router(
            context.clone(),
            frontends::websocket::routes(context.clone()),
            frontends::sse::routes(context.clone()),
        ),
        frontends::grpc::router(context.clone(), grpc_config)?,
        frontends::admin::router(context, metrics.clone()),
    );

    let running = Running {
        http: http.local_addr(),
        grpc: grpc.local_addr(),
        admin: admin.local_addr(),
        lifecycle: lifecycle.clone(),
        bus,
        client,
    };
    let serve = |router, protocol| Serve {
        router,
        protocol,
        deadlines: Deadlines::default(),
        connections: limits.connections,
        tls: None,
        draining: lifecycle.draining.clone(),
        stop: lifecycle.stop.clone(),
    };
    lifecycle.spawn_background("registry", registry.run(lifecycle.stop.clone()));
    lifecycle.spawn_background("hub", hub.run(lifecycle.stop.clone()));
    lifecycle.spawn("http listener", http.serve(serve(routers.0, Protocol::Http1)));
    lifecycle.spawn("grpc listener", grpc.serve(serve(routers.1, Protocol::Http2AndHttp1)));
    lifecycle.spawn("admin listener", admin.serve(serve(routers.2, Protocol::Http1)));
    lifecycle.spawn_background("metrics upkeep", until(lifecycle.stop.clone(), metrics.upkeep()));
    lifecycle.spawn("poller", poll(ingest, lifecycle.clone()));
    lifecycle.spawn("webhooks", deliver(supervisor, lifecycle.clone()));
    lifecycle.spawn("history watch", watch_history(running.bus.clone(), lifecycle.clone()));
    tracing::info!(http = %running.http, grpc = %running.grpc, admin = %running.admin, "listening");
    Ok(running)
}

/// The key of page tokens; it need not outlive the process.
fn page_key() -> Result<[u8; 32], StartError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(StartError::Entropy)?;
    Ok(key)
}

async fn poll(ingest: Ingest, lifecycle: Lifecycle) {
    if let Err(error) = ingest.run(lifecycle.draining.clone()).await {
        lifecycle.fail(format!("the poller gave up: {error}"));
    }
}

async fn deliver(supervisor: Supervisor, lifecycle: Lifecycle) {
    let (draining, stop) = (lifecycle.draining.clone(), lifecycle.stop.clone());
    if let Err(error) = supervisor.run_apart(draining, stop).await {
        lifecycle.fail(format!("webhooks are not served any more: {error}"));
    }
}

/// A log whose history is no more is of no use: a new gateway opens the new one. Clients come back with cursors that
/// tell of which history they are.
async fn watch_history(bus: Arc<dyn Bus>, lifecycle: Lifecycle) {
    let mut fill = bus.fill();
    let stale = async {
        loop {
            if let Fill::Stale { reason } = &*fill.borrow_and_update() {
                return reason.clone();
            }
            if fill.changed().await.is_err() {
                // This bus has one history for ever.
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        reason = stale => lifecycle.restart(reason),
        () = lifecycle.draining.cancelled() => {}
    }
}

/// What the webhooks are made of.
fn webhooks_parts(
    config: &Config,
    hub: &Hub,
    bus: &Arc<dyn Bus>,
    auth: &Arc<Auth>,
    clock: &SharedClock,
) -> Result<webhooks::Parts, StartError> {
    let section = &config.webhooks;
    let wrong = |what: String| StartError::Webhooks(what);
    let allowed_networks = section.allowed_networks.iter().filter_map(|text| text.parse().ok()).collect();
    let guard = Guard::new(GuardConfig { allowed_networks });
    let mut way_out = outbound::Config::new(guard.clone());
    if let Some(text) = &section.proxy {
        way_out.proxy = Some(Proxy::parse(text.expose()).map_err(wrong)?);
    }
    if let Some(path) = &section.ca_file {
        way_out.extra_roots = outbound::read_roots(path).map_err(wrong)?;
    }
    let data = match config.bus {
        BusKind::Embedded => config.embedded.path.clone(),
        // Beside the copy, whose own directory is emptied when the stream is another one.
        BusKind::Nats => {
            let mut beside = config.nats.cache_path.clone().into_os_string();
            beside.push("-webhooks");
            beside.into()
        }
    };
    let kept = attempts::Config {
        directory: Some(data.join("attempts")),
        retention: Duration::from_secs(u64::from(section.attempts_days) * 86_400),
        retention_bytes: section.attempts_bytes,
        ..attempts::Config::default()
    };
    let attempts = Attempts::open(kept, clock.clone()).map_err(|error| {
        wrong(format!("the log of attempts can't be kept in {}: {error}", data.display()))
    })?;
    Ok(webhooks::Parts {
        hub: hub.clone(),
        bus: bus.clone(),
        auth: auth.clone(),
        clock: clock.clone(),
        guard,
        outbound: Outbound::new(way_out).map_err(|error| wrong(error.to_string()))?,
        sealer: sealer(config).map_err(|error| wrong(error.to_string()))?.map(Arc::new),
        attempts,
        seed: fastrand::u64(..),
    })
}

/// The key for secrets. With the embedded log one is made where none is given; gateways that share a bus must be given
/// the same.
fn sealer(config: &Config) -> Result<Option<Sealer>, SealerError> {
    let section = &config.webhooks;
    match (&section.secret_key, &section.secret_key_file) {
        (Some(text), _) => Sealer::parse(text.expose()).map(Some),
        (None, Some(path)) => Sealer::from_file(path).map(Some),
        (None, None) if config.bus == BusKind::Embedded => {
            Sealer::from_file_or_new(&config.embedded.path.join(WEBHOOKS_KEY)).map(Some)
        }
        (None, None) => Ok(None),
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}

fn embedded_config(config: &Config) -> embedded::Config {
    embedded::Config {
        path: Some(config.embedded.path.clone()),
        late_after: late_after(config),
        retention_days: config.embedded.retention_days,
        retention_bytes: config.embedded.retention_bytes,
        // The webhooks.
        has_reader: true,
        ..embedded::Config::default()
    }
}

/// The stream on NATS; `doctor` looks at the same one.
pub fn jetstream_config(config: &Config) -> jetstream::Config {
    let nats = config.nats.clone();
    jetstream::Config {
        credentials_file: nats.credentials_file,
        nkey_file: nats.nkey_file,
        tls_ca: nats.tls_ca,
        tls_client: nats.tls_client,
        stream: nats.stream,
        subject_prefix: nats.subject_prefix,
        replicas: nats.replicas,
        retention_days: nats.retention_days,
        retention_bytes: nats.retention_bytes,
        cache_path: Some(nats.cache_path),
        late_after: late_after(config),
        monitoring_url: nats.monitoring_url,
        ..jetstream::Config::new(nats.urls, jetstream::Chance::seeded(fastrand::u64(..)))
    }
}

/// What is known of SIMs; on NATS beside the copy, whose own directory is emptied when the stream is another one.
fn registry_config(config: &Config) -> registry::Config {
    let directory = match config.bus {
        BusKind::Embedded => config.embedded.path.join("views"),
        BusKind::Nats => {
            let mut beside = config.nats.cache_path.clone().into_os_string();
            beside.push("-views");
            beside.into()
        }
    };
    let iccids = config.sims.iccids.clone();
    registry::Config { directory: Some(directory), iccids, ..registry::Config::default() }
}

fn late_after(config: &Config) -> SignedDuration {
    SignedDuration::try_from(config.ingest.late_after).unwrap_or(SignedDuration::MAX)
}

/// The budget of the upstream. What a restart must know of it lies where the rest lies: beside the log, or on the bus
/// that other gateways share.
pub fn budget_config(config: &Config) -> BudgetConfig {
    let shared = config.bus == BusKind::Nats;
    BudgetConfig {
        requests_per_minute: config.upstream.requests_per_minute,
        limit_per_minute: config.upstream.limit_per_minute,
        journal: (!shared).then(|| config.embedded.path.join(BUDGET_JOURNAL)),
        shared,
    }
}

/// The client of an upstream; `doctor` asks with the same one.
pub fn client_config(upstream: &config::Upstream) -> client::Config {
    client::Config {
        name: upstream.name.clone(),
        auth: upstream.auth,
        ..client::Config::new(upstream.base_url.clone(), upstream.api_key.clone())
    }
}

fn ingest_config(config: &Config) -> ingest::Config {
    let upstream = &config.upstream;
    ingest::Config {
        name: upstream.name.clone(),
        backfill_days: upstream.backfill_days,
        details: match upstream.details {
            config::Details::Wait => ingest::DetailsMode::Wait,
            config::Details::Follow => ingest::DetailsMode::Follow,
            config::Details::Off => ingest::DetailsMode::Off,
        },
        details_wait: upstream.details_wait,
        lateness: config.ingest.lateness,
        sessions: upstream.sessions,
        iccids: Vec::new(),
        shared: config.bus == BusKind::Nats,
        ids_kept_days: match config.bus {
            BusKind::Embedded => ingest::Config::default().ids_kept_days,
            // A copy that is built again knows no more than the stream does.
            BusKind::Nats => ingest::Config::default().ids_kept_days.min(config.nats.retention_days),
        },
    }
}

fn limits(config: &config::Limits) -> Limits {
    Limits {
        connections: config.connections,
        subscriptions_per_connection: config.subscriptions_per_connection,
        filter_values: config.filter_values,
        filter_values_body: config.filter_values_body,
        url_bytes: config.url_bytes,
        body_bytes: config.body_bytes,
        ..Limits::default()
    }
}
