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
    time::Duration,
};

use simcast::proto::{SubscribeRequest, event_service_client::EventServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    task::LocalSet,
    time::timeout,
};
use tonic::transport::Endpoint;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// In every event once, in JSON and protobuf alike.
const NEEDLE: &[u8] = b"globalsim.connection";
const STREAMS_PER_CONNECTION: usize = 100;
/// Windows of a client that expects many events; those of the HTTP/2 default (64 KiB for all streams together) would
/// measure how often it asks for more.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Events in a batch, and how many batches make a run.
const PLAN: [(usize, usize); 3] = [(1, 300), (8, 150), (64, 40)];
/// Batches before those that count.
const WARM_UP: usize = 5;
/// How long one batch may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);

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

    /// Times the write loop, at most.
    fn goal(self, events: usize) -> Option<f64> {
        match (self, events) {
            (Self::Floor, _) => None,
            (Self::Grpc, 1 | 8) => Some(2.0),
            _ => Some(1.5),
        }
    }
}

fn main() -> Outcome<()> {
    match std::env::args().nth(1).as_deref() {
        Some("floor") => support::floor::run(),
        Some("gateway") => support::gateway::run(),
        _ if std::env::args().any(|arg| arg == "--bench") => measure(),
        // `cargo test --benches` runs this too, without the flag.
        _ => {
            println!("run by cargo bench");
            Ok(())
        }
    }
}

fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn measure() -> Outcome<()> {
    let subscribers = setting("SIMCAST_BENCH_SUBSCRIBERS", 1000.0) as usize;
    let runs = (setting("SIMCAST_BENCH_RUNS", 3.0) as usize).max(1);
    let pinned = pin_self();
    println!("{subscribers} subscribers that take everything, {runs} alternating runs, medians");
    println!(
        "{}; load average {}",
        if pinned { "server on core 0, clients on core 1" } else { "not pinned: taskset is missing" },
        std::fs::read_to_string("/proc/loadavg")?.trim(),
    );
    // By run, transport and batch size.
    let mut costs: Vec<Vec<[f64; PLAN.len()]>> = Vec::new();
    let mut memory: Vec<Vec<f64>> = Vec::new();
    for run in 1..=runs {
        let (mut of_run, mut of_memory) = (Vec::new(), Vec::new());
        for transport in Transport::ALL {
            let (cost, bytes) = one_run(transport, subscribers, pinned)?;
            println!("run {run} {:<10} {}", transport.name(), cost.map(|us| format!("{us:>7.2}")).join(" "));
            of_run.push(cost);
            of_memory.push(bytes);
        }
        costs.push(of_run);
        memory.push(of_memory);
    }
    println!(
        "\n{:<11} {:>5} {:>16} {:>15} {:>9} {:>6} {:>6}",
        "transport", "batch", "us per delivery", "min to max", "per core", "ratio", "goal"
    );
    for (size, (events, _)) in PLAN.iter().enumerate() {
        for (nth, transport) in Transport::ALL.into_iter().enumerate() {
            let of_runs: Vec<f64> = costs.iter().map(|run| run[nth][size]).collect();
            // Of each run by itself, since what else the machine does changes between runs.
            let ratios: Vec<f64> = costs.iter().map(|run| run[nth][size] / run[0][size]).collect();
            let (low, high) = of_runs.iter().fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
            let cost = median(of_runs);
            println!(
                "{:<11} {events:>5} {cost:>16.2} {:>15} {:>7.0} k {:>6.2} {:>6}",
                transport.name(),
                format!("{low:.2} to {high:.2}"),
                1e3 / cost,
                median(ratios),
                transport.goal(*events).map_or("-".to_owned(), |goal| goal.to_string()),
            );
        }
    }
    println!("\nresident KiB of the server per idle subscriber:");
    for (nth, transport) in Transport::ALL.into_iter().enumerate().skip(1) {
        let goal = match transport {
            Transport::WebSocket => "8",
            Transport::Grpc => "12",
            Transport::Floor | Transport::Sse => "-",
        };
        let bytes = median(memory.iter().map(|run| run[nth]).collect());
        println!("{:<11} {:>6.1}   goal {goal}", transport.name(), bytes / 1024.0);
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Server CPU in microseconds per delivery for each batch size, and resident bytes per idle subscriber.
fn one_run(transport: Transport, subscribers: usize, pinned: bool) -> Outcome<([f64; PLAN.len()], f64)> {
    let mut server = Server::start(transport, subscribers, pinned)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let before = server.resident_bytes()?;
    let clients = Clients::default();
    local.block_on(&runtime, clients.connect(transport, server.addr, subscribers))?;
    server.wait_ready()?;
    let per_subscriber = (server.resident_bytes()? - before) / subscribers as f64;
    let scale = setting("SIMCAST_BENCH_SCALE", 1.0);
    let mut costs = [0.0; PLAN.len()];
    for (cost, (size, batches)) in costs.iter_mut().zip(PLAN) {
        let batches = ((batches as f64 * scale) as usize).max(5);
        // The first batches grow buffers; they are not counted.
        let mut cpu = 0.0;
        for batch in 0..WARM_UP + batches {
            if batch == WARM_UP {
                cpu = server.cpu_seconds()?;
            }
            server.publish(size)?;
            local.block_on(&runtime, clients.wait(size * subscribers))?;
        }
        *cost = (server.cpu_seconds()? - cpu) * 1e6 / (size * subscribers * batches) as f64;
    }
    Ok((costs, per_subscriber))
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

    /// Time on a CPU of all threads, in user and kernel mode.
    fn cpu_seconds(&self) -> Outcome<f64> {
        let mut nanoseconds = 0.0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += stat.split_whitespace().next().ok_or("schedstat")?.parse::<f64>()?;
        }
        Ok(nanoseconds / 1e9)
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
        let all = timeout(PATIENCE, async {
            while self.ready.get() < subscribers {
                self.arrived.notified().await;
            }
        });
        all.await.map_err(|_| format!("only {} subscribers are ready", self.ready.get()).into())
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
                let endpoint = Endpoint::from_shared(format!("http://{addr}"))?
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW);
                client = Some(EventServiceClient::new(endpoint.connect().await?));
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

    /// Waits until all have `events` more; a stream that broke off shows by its absence.
    async fn wait(&self, events: usize) -> Outcome<()> {
        self.target.set(self.target.get() + events);
        let all = timeout(PATIENCE, async {
            while self.received.get() < self.target.get() {
                self.arrived.notified().await;
            }
        });
        let missing = || format!("{} of {} events", self.received.get(), self.target.get());
        all.await.map_err(|_| format!("only {} came", missing()).into())
    }
}

fn pin_self() -> bool {
    let pid = std::process::id().to_string();
    let done = Command::new("taskset").args(["-a", "-c", "-p", "1", &pid]).stdout(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}
