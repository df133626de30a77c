//! What one delivery costs: server CPU per event and subscriber, beside a bare write loop.
//!
//! The server is a child process on one core: the gateway's own listeners, hub and in-memory bus, or the floor, a
//! loop that gives each connection a prefix and one shared chunk by one vectored write. The clients are this process
//! on the other core. Both go in lockstep, batch by batch: the next one is published when every subscriber has the
//! last, so that what is measured is work, not queues. Runs alternate; medians are printed.
//!
//! `SIMCAST_BENCH_SUBSCRIBERS` (1000), `SIMCAST_BENCH_RUNS` (3), `SIMCAST_BENCH_SCALE` (1.0, share of batches).

mod support;

use std::{
    cell::Cell,
    error::Error,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    rc::Rc,
    time::Instant,
};

use simcast::proto::{SubscribeRequest, event_service_client::EventServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    task::LocalSet,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// In every event once, in JSON and protobuf alike.
const NEEDLE: &[u8] = b"globalsim.connection";
const STREAMS_PER_CONNECTION: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Floor,
    WebSocket,
    Sse,
    Grpc,
}

impl Transport {
    const ALL: [Self; 4] = [Self::Floor, Self::WebSocket, Self::Sse, Self::Grpc];

    fn name(self) -> &'static str {
        match self {
            Self::Floor => "write loop",
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::Grpc => "grpc",
        }
    }
}

fn main() -> Outcome<()> {
    match std::env::args().nth(1).as_deref() {
        Some("floor") => support::floor::run(),
        Some("gateway") => support::gateway::run(),
        // `cargo bench` passes --bench.
        _ => measure(),
    }
}

fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Events in a batch, and how many batches make a run.
fn plan() -> [(usize, usize); 3] {
    let scale = setting("SIMCAST_BENCH_SCALE", 1.0);
    [(1, 200), (8, 100), (64, 30)].map(|(size, batches)| (size, ((batches as f64 * scale) as usize).max(5)))
}

fn measure() -> Outcome<()> {
    let subscribers = setting("SIMCAST_BENCH_SUBSCRIBERS", 1000.0) as usize;
    let runs = (setting("SIMCAST_BENCH_RUNS", 3.0) as usize).max(1);
    let pinned = pin_self();
    println!("{subscribers} subscribers that take everything, {runs} alternating runs, medians");
    println!(
        "{}",
        if pinned { "server on core 0, clients on core 1" } else { "not pinned: taskset is missing" }
    );
    let mut results: Vec<((Transport, usize), Vec<(f64, f64)>)> = Vec::new();
    let mut memory = Vec::new();
    for run in 0..runs {
        for transport in Transport::ALL {
            let (rows, per_connection) = one_run(transport, subscribers, pinned)?;
            for (size, cost, rate) in rows {
                match results.iter_mut().find(|(key, _)| *key == (transport, size)) {
                    Some((_, values)) => values.push((cost, rate)),
                    None => results.push(((transport, size), vec![(cost, rate)])),
                }
            }
            if run == 0 {
                memory.push((transport, per_connection));
            }
        }
    }
    println!(
        "\n{:<12} {:>6} {:>14} {:>9} {:>14}",
        "transport", "batch", "us/delivery", "ratio", "deliveries/s"
    );
    for (size, _) in plan() {
        let median = |transport| {
            let values = results.iter().find(|(key, _)| *key == (transport, size));
            values.map_or((f64::NAN, f64::NAN), |(_, values)| {
                let pick = |mut list: Vec<f64>| {
                    list.sort_by(f64::total_cmp);
                    list[list.len() / 2]
                };
                (pick(values.iter().map(|v| v.0).collect()), pick(values.iter().map(|v| v.1).collect()))
            })
        };
        let floor = median(Transport::Floor).0;
        for transport in Transport::ALL {
            let (cost, rate) = median(transport);
            println!("{:<12} {size:>6} {cost:>14.2} {:>9.2} {rate:>14.0}", transport.name(), cost / floor);
        }
    }
    println!("\nresident bytes per idle subscriber:");
    for (transport, bytes) in memory {
        println!("{:<12} {bytes:>8.0}", transport.name());
    }
    Ok(())
}

/// Cost in microseconds and deliveries per second for each batch size, and memory per idle subscriber.
fn one_run(transport: Transport, subscribers: usize, pinned: bool) -> Outcome<(Vec<(usize, f64, f64)>, f64)> {
    let mut server = Server::start(transport, subscribers, pinned)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let before = server.resident_bytes()?;
    let clients = Clients::default();
    local.block_on(&runtime, clients.connect(transport, server.addr, subscribers))?;
    server.wait_ready()?;
    let per_connection = (server.resident_bytes()? - before) / subscribers as f64;
    let mut rows = Vec::new();
    for (size, batches) in plan() {
        // The first batches grow buffers; they are not counted.
        for _ in 0..3 {
            server.publish(size)?;
            local.block_on(&runtime, clients.wait(size * subscribers));
        }
        let (cpu, started) = (server.cpu_seconds()?, Instant::now());
        for _ in 0..batches {
            server.publish(size)?;
            local.block_on(&runtime, clients.wait(size * subscribers));
        }
        let deliveries = (size * subscribers * batches) as f64;
        let cost = (server.cpu_seconds()? - cpu) * 1e6 / deliveries;
        rows.push((size, cost, deliveries / started.elapsed().as_secs_f64()));
    }
    Ok((rows, per_connection))
}

/// The child.
struct Server {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    addr: SocketAddr,
}

impl Server {
    fn start(transport: Transport, subscribers: usize, pinned: bool) -> Outcome<Self> {
        let exe = std::env::current_exe()?;
        let mut command = if pinned {
            let mut command = Command::new("taskset");
            command.args(["-c", "0"]).arg(exe);
            command
        } else {
            Command::new(exe)
        };
        let role = if transport == Transport::Floor { "floor" } else { "gateway" };
        let mut child = command
            .args([role, &subscribers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().ok_or("no stdin")?;
        let mut answers = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let nth = usize::from(transport == Transport::Grpc);
        let addr = line.split_whitespace().nth(nth).ok_or("the server gave no address")?.parse()?;
        Ok(Self { child, commands, answers, addr })
    }

    fn publish(&mut self, events: usize) -> Outcome<()> {
        writeln!(self.commands, "{events}")?;
        Ok(self.commands.flush()?)
    }

    /// A command that does nothing, answered when all before it are done.
    fn wait_ready(&mut self) -> Outcome<()> {
        self.publish(0)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(())
    }

    /// User and system time of all threads, from clock ticks of 10 ms.
    fn cpu_seconds(&self) -> Outcome<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<_> = stat.rsplit_once(')').ok_or("stat")?.1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / 100.0)
    }

    fn resident_bytes(&self) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).ok_or("VmRSS")?;
        Ok(line.split_whitespace().nth(1).ok_or("VmRSS")?.parse::<f64>()? * 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All subscribers, and how many events they have together.
#[derive(Clone, Default)]
struct Clients {
    received: Rc<Cell<usize>>,
    ready: Rc<Cell<usize>>,
    target: Rc<Cell<usize>>,
    arrived: Rc<Notify>,
}

impl Clients {
    async fn connect(&self, transport: Transport, addr: SocketAddr, subscribers: usize) -> Outcome<()> {
        if transport == Transport::Grpc {
            self.connect_grpc(addr, subscribers).await?;
        } else {
            for _ in 0..subscribers {
                let stream = TcpStream::connect(addr).await?;
                tokio::task::spawn_local(self.clone().read_socket(transport, stream, addr));
            }
        }
        while self.ready.get() < subscribers {
            self.arrived.notified().await;
        }
        Ok(())
    }

    async fn read_socket(self, transport: Transport, mut stream: TcpStream, addr: SocketAddr) {
        let ready: &[u8] = match transport {
            Transport::WebSocket | Transport::Sse => b"caught_up",
            _ => b"",
        };
        let request = match transport {
            Transport::WebSocket => format!(
                "GET /v1/events/ws HTTP/1.1\r\nhost: {addr}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ),
            Transport::Sse => format!("GET /v1/events/sse HTTP/1.1\r\nhost: {addr}\r\n\r\n"),
            _ => String::new(),
        };
        if stream.write_all(request.as_bytes()).await.is_err() {
            return;
        }
        if ready.is_empty() {
            self.ready.set(self.ready.get() + 1);
            self.arrived.notify_one();
        }
        let mut buffer = vec![0; 64 * 1024];
        let mut kept = 0;
        let mut waiting = !ready.is_empty();
        while let Ok(n @ 1..) = stream.read(&mut buffer[kept..]).await {
            let filled = kept + n;
            if waiting && support::find(&buffer[..filled], ready) > 0 {
                waiting = false;
                self.ready.set(self.ready.get() + 1);
                self.arrived.notify_one();
            }
            self.count(support::find(&buffer[..filled], NEEDLE));
            // A needle cut by the end of the buffer is found with the next read, a whole one never twice.
            kept = (NEEDLE.len() - 1).min(filled);
            buffer.copy_within(filled - kept..filled, 0);
        }
    }

    async fn connect_grpc(&self, addr: SocketAddr, subscribers: usize) -> Outcome<()> {
        let mut client = None;
        for n in 0..subscribers {
            if n % STREAMS_PER_CONNECTION == 0 {
                client = Some(EventServiceClient::connect(format!("http://{addr}")).await?);
            }
            let Some(client) = &mut client else { continue };
            let mut stream = client.subscribe(SubscribeRequest::default()).await?.into_inner();
            let this = self.clone();
            tokio::task::spawn_local(async move {
                use simcast::proto::subscribe_response::Control;
                while let Ok(Some(message)) = stream.message().await {
                    if let Some(Control::CaughtUp(_)) = message.control {
                        this.ready.set(this.ready.get() + 1);
                        this.arrived.notify_one();
                    }
                    this.count(message.events.len());
                }
            });
        }
        Ok(())
    }

    fn count(&self, events: usize) {
        self.received.set(self.received.get() + events);
        if self.received.get() >= self.target.get() {
            self.arrived.notify_one();
        }
    }

    async fn wait(&self, events: usize) {
        self.target.set(self.target.get() + events);
        while self.received.get() < self.target.get() {
            self.arrived.notified().await;
        }
    }
}

fn pin_self() -> bool {
    let pid = std::process::id().to_string();
    let done = Command::new("taskset").args(["-a", "-c", "-p", "1", &pid]).stdout(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}
