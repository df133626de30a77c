//! One stream, one, two and four gateways, the same WebSocket subscribers shared out among them.
//!
//! All of it runs on this machine's cores, clients included, so wall-clock does not show what more machines give. CPU
//! time does: what a gateway spends on a delivery is what bounds it on a machine of its own. In lockstep, as in the
//! fan-out benchmark: the next batch is appended when every subscriber has the last.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use simcast::bus::Bus as _;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};

use super::{
    nats_server::{NEWEST, Options, Server},
    support::{Gateway, Outcome, cpu_seconds, event, fill, jetstream, memory_mib, setting},
};

const GATEWAYS: [usize; 3] = [1, 2, 4];
/// Events in a batch, and how many batches.
const PLAN: [(u64, u64); 3] = [(1, 400), (10, 150), (100, 40)];
/// Batches before those that count: they grow buffers.
const WARM_UP: u64 = 5;
/// Events in the stream before, so that the gateways have something to copy.
const HISTORY: u64 = 50_000;
const SIMS: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// In every event once.
const NEEDLE: &[u8] = b"globalsim.connection";
/// Ends a subscriber's start.
const READY: &[u8] = b"caught_up";

pub async fn measure() -> Outcome<()> {
    let subscribers = setting("SUBSCRIBERS", 2_000.0) as usize;
    println!("{subscribers} WebSocket subscribers that take everything, shared out; default sync");
    println!(
        "{:<9} {:>6} {:>13} {:>17} {:>15} {:>15} {:>12} {:>15}",
        "gateways",
        "batch",
        "deliveries/s",
        "CPU s/million",
        "and per gateway",
        "NATS µs/event",
        "idle MiB",
        "MiB at the end"
    );
    for gateways in GATEWAYS {
        run(gateways, subscribers).await?;
    }
    Ok(())
}

async fn run(count: usize, subscribers: usize) -> Outcome<()> {
    let server = Server::start_with(Options { sync_always: false, ..Options::new(NEWEST) }).await;
    let directory = TempDir::new()?;
    let bus = jetstream(server.url(), None, 1).await?;
    fill(&*bus, 0..HISTORY, 1_000, SIMS).await?;
    let mut next = HISTORY;
    let mut gateways = Vec::new();
    for n in 0..count {
        let gateway = Gateway::start(&server.url(), &directory.path().join(n.to_string()))?;
        gateway.filled(PATIENCE).await?;
        gateways.push(gateway);
    }
    let idle = memory(&gateways)?;
    let clients = Arc::new(Clients::default());
    for n in 0..subscribers {
        let http = gateways[n % count].http;
        tokio::spawn(Arc::clone(&clients).read(TcpStream::connect(http).await?, http));
    }
    clients.wait(|clients| clients.ready.load(Ordering::Acquire) >= subscribers).await?;
    let mut target = clients.received.load(Ordering::Acquire);
    for (size, batches) in PLAN {
        let batches = ((batches as f64 * setting("SCALE", 1.0)) as u64).max(1);
        let (mut before, mut began) = (Vec::new(), Instant::now());
        for batch in 0..WARM_UP + batches {
            if batch == WARM_UP {
                (before, began) = (cpu(&server, &gateways)?, Instant::now());
            }
            bus.append((next..next + size).map(|n| event(n, SIMS)).collect(), None).await?;
            next += size;
            target += size as usize * subscribers;
            clients.wait(|clients| clients.received.load(Ordering::Acquire) >= target).await?;
        }
        let wall = began.elapsed().as_secs_f64();
        let spent: Vec<f64> =
            cpu(&server, &gateways)?.iter().zip(before).map(|(now, then)| now - then).collect();
        let deliveries = (size * batches) as f64 * subscribers as f64;
        let of_gateways: f64 = spent[1..].iter().sum();
        // A gateway serves its share of the deliveries.
        let each: Vec<String> =
            spent[1..].iter().map(|cpu| format!("{:.2}", cpu * 1e6 * count as f64 / deliveries)).collect();
        println!(
            "{count:<9} {size:>6} {:>13.0} {:>17.2} {:>15} {:>15.0} {:>12} {:>15}",
            deliveries / wall,
            of_gateways * 1e6 / deliveries,
            each.join(" "),
            spent[0] * 1e6 / (size * batches) as f64,
            idle,
            memory(&gateways)?,
        );
    }
    bus.shutdown().await;
    Ok(())
}

/// CPU seconds of the server, then of each gateway.
fn cpu(server: &Server, gateways: &[Gateway]) -> Outcome<Vec<f64>> {
    std::iter::once(server.pid()).chain(gateways.iter().map(Gateway::pid)).map(cpu_seconds).collect()
}

/// Resident MiB of each gateway.
fn memory(gateways: &[Gateway]) -> Outcome<String> {
    let all: Outcome<Vec<String>> =
        (gateways.iter()).map(|gateway| Ok(format!("{:.0}", memory_mib(gateway.pid(), "VmRSS")?))).collect();
    Ok(all?.join(" "))
}

/// All subscribers, and what they have together.
#[derive(Default)]
struct Clients {
    received: AtomicUsize,
    ready: AtomicUsize,
    arrived: Notify,
}

impl Clients {
    async fn wait(&self, reached: impl Fn(&Self) -> bool) -> Outcome<()> {
        let all = timeout(PATIENCE, async {
            while !reached(self) {
                self.arrived.notified().await;
            }
        });
        let missing = || {
            let (ready, received) =
                (self.ready.load(Ordering::Acquire), self.received.load(Ordering::Acquire));
            format!("{ready} subscribers are ready and {received} events came: too few")
        };
        all.await.map_err(|_| missing().into())
    }

    async fn read(self: Arc<Self>, mut stream: TcpStream, addr: SocketAddr) {
        let request = format!(
            "GET /v1/events/ws HTTP/1.1\r\nhost: {addr}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        if stream.write_all(request.as_bytes()).await.is_err() {
            return;
        }
        let mut buffer = vec![0; 64 * 1024];
        let (mut kept, mut waiting) = (0, true);
        while let Ok(n @ 1..) = stream.read(&mut buffer[kept..]).await {
            let filled = kept + n;
            if waiting && memchr::memmem::find(&buffer[..filled], READY).is_some() {
                waiting = false;
                self.ready.fetch_add(1, Ordering::AcqRel);
                self.arrived.notify_one();
            }
            let events = memchr::memmem::find_iter(&buffer[..filled], NEEDLE).count();
            if events > 0 {
                self.received.fetch_add(events, Ordering::AcqRel);
                self.arrived.notify_one();
            }
            // A needle cut by the end of the buffer is found with the next read, a whole one never twice.
            kept = (NEEDLE.len() - 1).min(filled);
            buffer.copy_within(filled - kept..filled, 0);
        }
    }
}
