//! The gateway without its poller: the real listeners, frontends, hub and bus, the bus in memory.

use std::{error::Error, io::BufRead as _, sync::Arc, time::Duration};

use simcast::{
    auth::{self, Auth, CookieSessions, Tickets},
    bus::{Bus, NewEvent, embedded::Embedded},
    clock,
    frontends::{
        self, Context, Limits, Parts, Registry, WebConfig,
        listener::{Deadlines, Listener, Protocol, Serve},
    },
    globalsim::{
        KeySource, Secret,
        budget::{BudgetConfig, Gate},
        client::{self, Client},
    },
    hub::{self, Hub},
    ingest::Status,
    lookup::Lookup,
    views::registry,
    webhooks,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Publishes a batch per line of standard input.
pub fn run() -> Result<(), Box<dyn Error>> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // A thread that ends takes its CPU time with it, which is then missing from the sum.
    runtime.worker_threads(1).thread_keep_alive(Duration::from_secs(3600)).enable_all();
    runtime.build()?.block_on(serve())
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let clock = clock::system();
    let bus: Arc<dyn Bus> = Embedded::in_memory(clock.clone());
    let hub = Hub::new(hub::Config::default(), bus.log().clone());
    let http = Listener::bind("127.0.0.1:0".parse()?, "http.listen")?;
    let grpc = Listener::bind("127.0.0.1:0".parse()?, "grpc.listen")?;
    let (_status, receiver) = watch::channel(Arc::new(Status::default()));
    let stop = CancellationToken::new();
    let limits = Limits::default();
    let auth = Arc::new(Auth::new(auth::Config::default(), clock.clone()));
    let parts = webhooks::Parts::in_memory(hub.clone(), bus.clone(), auth.clone(), clock.clone())?;
    let (webhooks, _) = webhooks::new(parts);
    let (sims, _) = registry::open(registry::Config::default(), bus.log(), clock.clone());
    let gate = Gate::open(BudgetConfig::default(), clock.clone())?;
    // Nobody is asked.
    let upstream = client::Config::new("http://127.0.0.1:9", KeySource::Inline(Secret::new("key")?));
    let client = Client::new(upstream, gate, clock.clone())?;
    let lookup = Arc::new(Lookup::new(&client, bus.clone(), receiver.clone(), clock.clone()));
    let context = Context::new(Parts {
        hub: hub.clone(),
        bus: bus.clone(),
        status: receiver,
        webhooks,
        lookup,
        sims,
        sim_tokens: registry::Tokens::new(&[0; 32]),
        auth,
        tickets: Arc::new(Tickets::new(clock.clone())),
        sessions: Arc::new(CookieSessions::new(clock.clone())),
        registry: Registry::new(&limits, clock.clone()),
        limits,
        web: WebConfig { listen: vec![http.local_addr(), grpc.local_addr()], ..WebConfig::default() },
        draining: stop.clone(),
        stop: stop.clone(),
        source: "default".into(),
        started_at: clock.now(),
        clock,
    });
    println!("{} {}", http.local_addr(), grpc.local_addr());
    let serve = |router, protocol| Serve {
        router,
        protocol,
        deadlines: Deadlines::default(),
        connections: 10_000,
        tls: None,
        draining: stop.clone(),
        stop: stop.clone(),
    };
    let web = frontends::http::router(
        context.clone(),
        frontends::websocket::routes(context.clone()),
        frontends::sse::routes(context.clone()),
    );
    let rpc = frontends::grpc::router(context, frontends::grpc::Config::default())?;
    tokio::spawn(hub.run(stop.clone()));
    tokio::spawn(http.serve(serve(web, Protocol::Http1)));
    tokio::spawn(grpc.serve(serve(rpc, Protocol::Http2AndHttp1)));

    let mut commands = commands();
    let mut n = 0;
    while let Some(size) = commands.recv().await {
        if size == 0 {
            println!("ready");
            continue;
        }
        let batch: Vec<NewEvent> = (n..n + size).map(super::event).collect();
        n += size;
        bus.append(batch, None).await?;
    }
    Ok(())
}

fn commands() -> mpsc::Receiver<u64> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(size) = line.trim().parse() else { return };
            if sender.blocking_send(size).is_err() {
                return;
            }
        }
    });
    receiver
}
