//! A world: the simulator, a data directory, and gateways that come and go on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use simcast::{
    app, clock,
    config::{self, Sources},
    globalsim::simulator::{self, TruthEvent},
    observability::Metrics,
};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::nats_server::{self, Server};

/// How long anything may take before a test gives up: generous, since it only ends tests that fail.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the gateways of a world keep their events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    Embedded,
    Nats,
}

/// Runs an async function of the bus as a test on each.
macro_rules! on_both_buses {
    ($test:ident) => {
        mod $test {
            use crate::support::Bus;
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn embedded() {
                super::$test(Bus::Embedded).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn nats() {
                super::$test(Bus::Nats).await;
            }
        }
    };
}
pub(crate) use on_both_buses;

/// The simulator, a directory for the gateway's data, and a NATS server where the world has one.
pub struct World {
    pub sim: simulator::Handle,
    pub dir: TempDir,
    pub nats: Option<Server>,
}

impl World {
    pub async fn new(config: simulator::Config) -> Self {
        Self::on(Bus::Embedded, config).await
    }

    pub async fn on(bus: Bus, config: simulator::Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nats = match bus {
            Bus::Embedded => None,
            Bus::Nats => Some(Server::start(nats_server::NEWEST).await),
        };
        let sim = simulator::start(config, listener, clock::system());
        Self { sim, dir: TempDir::new().unwrap(), nats }
    }

    /// A quiet fleet without history: what a test injects is all there is.
    pub async fn quiet() -> Self {
        Self::quiet_on(Bus::Embedded).await
    }

    pub async fn quiet_on(bus: Bus) -> Self {
        Self::on(
            bus,
            simulator::Config {
                sims: 20,
                events_per_second: 0.0,
                history: Duration::ZERO,
                ..simulator::Config::default()
            },
        )
        .await
    }

    /// What a gateway of this world is configured with.
    pub fn settings(&self) -> Vec<(String, String)> {
        self.settings_of("data")
    }

    /// The same for one of several gateways, with a directory of its own.
    pub fn settings_of(&self, name: &str) -> Vec<(String, String)> {
        let data = self.dir.path().join(name).to_string_lossy().into_owned();
        let bus = match &self.nats {
            None => vec![("BUS__EMBEDDED__PATH", data)],
            Some(server) => vec![
                ("BUS__KIND", "nats".to_owned()),
                ("BUS__NATS__URLS", server.url()),
                ("BUS__NATS__CACHE_PATH", data),
                // A server lends no more than its disk has.
                ("BUS__NATS__RETENTION_BYTES", "256MiB".to_owned()),
            ],
        };
        [
            ("UPSTREAM__BASE_URL", self.sim.base_url()),
            ("UPSTREAM__API_KEY", simulator::DEFAULT_API_KEY.to_owned()),
            ("HTTP__LISTEN", "127.0.0.1:0".to_owned()),
            ("GRPC__LISTEN", "127.0.0.1:0".to_owned()),
            ("ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
            // Receivers of webhooks are on this machine; gateways that share a bus share the key.
            ("WEBHOOKS__ALLOWED_NETWORKS", "127.0.0.0/8".to_owned()),
            ("WEBHOOKS__SECRET_KEY", "5a".repeat(32)),
            // Most tests compare what the log holds with what upstream listed.
            ("UPSTREAM__SESSIONS", "false".to_owned()),
        ]
        .into_iter()
        .chain(bus)
        .map(|(key, value)| (format!("SIMCAST__{key}"), value))
        .collect()
    }

    /// The same with some settings replaced or added.
    pub fn settings_with(&self, change: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut env = self.settings();
        env.retain(|(name, _)| !change.iter().any(|(other, _)| name == other));
        env.extend(change.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        env
    }

    /// A gateway in this process.
    pub async fn gateway(&self) -> Gateway {
        self.gateway_with(&[]).await
    }

    pub async fn gateway_with(&self, more: &[(&str, &str)]) -> Gateway {
        let env = self.settings_with(more);
        let config = config::load(&Sources { env, ..Sources::default() }).unwrap();
        let running = app::start(config, clock::system(), Metrics::install().unwrap()).await.unwrap();
        Gateway { http: running.http, grpc: running.grpc, admin: running.admin, running }
    }

    /// The same, as a child process of the real binary.
    pub fn child(&self) -> ChildGateway {
        ChildGateway::start(&self.settings())
    }

    /// What the log must hold, by upstream's event_id.
    pub fn exposed(&self) -> BTreeSet<String> {
        self.sim.truth().into_iter().filter_map(|event| event.event_id).collect()
    }
}

/// A gateway in this process.
pub struct Gateway {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub running: app::Running,
}

impl Gateway {
    pub async fn stop(self) {
        self.running.lifecycle.drain();
        let ended = self.running.join().await;
        assert_eq!((ended.left, ended.failure), (0, None), "a clean stop");
    }
}

/// A gateway in a process of its own.
pub struct ChildGateway {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    child: Child,
}

impl ChildGateway {
    pub fn start(settings: &[(String, String)]) -> Self {
        let mut child = simcast()
            .arg("serve")
            .envs(settings.iter().map(|(key, value)| (key, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = child.stderr.take().unwrap();
        // Read all along, so that the pipe never fills; shown when the start fails.
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).map(|_| text)
        });
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let listening: BTreeMap<String, String> = lines
            .take(3)
            .filter_map(|line| line.split_once(' ').map(|(name, addr)| (name.to_owned(), addr.to_owned())))
            .collect();
        if listening.len() < 3 {
            child.kill().unwrap();
            panic!("the gateway ended before it listened:\n{}", log.join().unwrap().unwrap());
        }
        let addr = |name: &str| listening[name].parse().unwrap();
        Self { http: addr("http"), grpc: addr("grpc"), child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, then its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        signal(self.pid(), "TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for ChildGateway {
    fn drop(&mut self) {
        // Only for tests that fail half-way; a child that has ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The real binary, without what the environment of the tests might configure.
pub fn simcast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simcast"));
    for (name, _) in std::env::vars() {
        if name.starts_with("SIMCAST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end: exit code, standard output, standard error.
pub fn run(args: &[&str], env: &[(&str, &str)], dir: &Path) -> (Option<i32>, String, String) {
    let mut child = simcast()
        .args(args)
        .envs(env.iter().copied())
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut err_pipe = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        err_pipe.read_to_string(&mut text).unwrap();
        text
    });
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    (child.wait().unwrap().code(), out, errors.join().unwrap())
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
}

/// GET, as JSON, whatever the status.
pub async fn get(addr: SocketAddr, path: &str) -> (u16, Value) {
    let answer = http().get(format!("http://{addr}{path}")).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
}

pub fn http() -> reqwest::Client {
    // Another test of this process may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Everything stored, oldest first, through REST.
pub async fn stored(addr: SocketAddr) -> Vec<Value> {
    let client = http();
    let mut events = Vec::new();
    let mut after = String::new();
    loop {
        let url = format!("http://{addr}/v1/events?limit=1000{after}");
        let page: Value =
            serde_json::from_slice(&client.get(url).send().await.unwrap().bytes().await.unwrap()).unwrap();
        events.extend(page["events"].as_array().unwrap_or_else(|| panic!("{page}")).iter().cloned());
        if page["caught_up"] == true {
            return events;
        }
        after = format!("&after={}", page["next_cursor"].as_str().unwrap());
    }
}

/// Waits until the log holds as many different upstream events as the simulator has shown and no longer changes.
pub async fn settled(world: &World, http: SocketAddr) -> Vec<Value> {
    let deadline = tokio::time::Instant::now() + PATIENCE * 2;
    loop {
        let exposed = world.exposed();
        let events = stored(http).await;
        let have: BTreeSet<_> = upstream_ids(&events).into_keys().collect();
        if exposed.is_subset(&have) && exposed == world.exposed() {
            return events;
        }
        let missing: Vec<_> = exposed.difference(&have).take(5).collect();
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} shown, {} kept, missing {missing:?}",
            exposed.len(),
            have.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How often each upstream event is in the log, completed copies apart.
pub fn upstream_ids(events: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in events {
        let id = event["id"].as_str().unwrap();
        if !id.ends_with("~details") {
            *counts.entry(event["data"]["event_id"].as_str().unwrap_or(id).to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

/// Every event that was shown is kept exactly once, and nothing else.
pub fn assert_exactly_once(truth: &[TruthEvent], events: &[Value]) {
    let shown: BTreeSet<_> = truth.iter().filter_map(|event| event.event_id.clone()).collect();
    let kept = upstream_ids(events);
    let lost: Vec<_> = shown.iter().filter(|id| !kept.contains_key(*id)).collect();
    let twice: Vec<_> = kept.iter().filter(|(_, count)| **count != 1).collect();
    let invented: Vec<_> = kept.keys().filter(|id| !shown.contains(*id)).collect();
    assert!(
        lost.is_empty() && twice.is_empty() && invented.is_empty(),
        "lost {lost:?}, twice {twice:?}, invented {invented:?}"
    );
}
