//! Real NATS servers for tests: started on addresses of their own, stopped by any means, gone with their test.
//!
//! Shared by the tests of the crate (`bus::jetstream`), those of whole gateways and the benchmark of this backend. Each server listens at a loopback
//! address that is made of this process's id, so that a fixed port is free and stays its own over restarts.

#![allow(dead_code, reason = "each program uses a part")]

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// The oldest version that is supported, and the newest there is.
pub const OLDEST: &str = "2.12.8";
pub const NEWEST: &str = "2.15.1";

const PATIENCE: Duration = Duration::from_secs(30);

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Options {
    pub version: &'static str,
    pub sync_always: bool,
    /// Its store is in memory where the system has a place for that, for tests that don't end it.
    pub volatile: bool,
    /// Its store is on a file system of its own, of so many MiB.
    pub disk_mib: Option<u32>,
    /// More of its configuration, at the top level.
    pub more: String,
    /// Scheme, user and password as clients must give them.
    pub login: String,
}

impl Options {
    pub fn new(version: &'static str) -> Self {
        let (more, login) = (String::new(), "nats://".to_owned());
        Self { version, sync_always: true, volatile: false, disk_mib: None, more, login }
    }
}

/// One server, or one node of a cluster.
#[derive(Debug)]
pub struct Server {
    options: Options,
    directory: tempfile::TempDir,
    address: Ipv4Addr,
    port: u16,
    config: PathBuf,
    disk: Option<Disk>,
    child: Option<Child>,
}

/// A file system in memory that only those see who are in the mount namespace of its keeper. It needs no privilege where
/// the system lets users have namespaces.
#[derive(Debug)]
pub struct Disk {
    keeper: Child,
    at: PathBuf,
}

impl Disk {
    fn mount(at: &Path, mib: u32) -> Self {
        use std::io::BufRead;
        std::fs::create_dir_all(at).unwrap();
        // It ends with its input, so with this process, however that ends.
        let script = "mount -t tmpfs -o size=\"$2\"m tmpfs \"$1\" && echo mounted && exec cat";
        let mut keeper = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(at)
            .arg(mib.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux) can be run");
        let mut said = String::new();
        std::io::BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(
            said.trim(),
            "mounted",
            "this system does not permit what the test needs, a small file system in a mount namespace of its own: \
             run as root, or let users have namespaces (sysctl kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0; docker run --security-opt seccomp=unconfined --cap-add SYS_ADMIN)"
        );
        Self { keeper, at: at.to_owned() }
    }

    /// Runs a program that sees it.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let keeper = self.keeper.id().to_string();
        command.args(["--preserve-credentials", "--user", "--mount", "--target", &keeper, "--"]).arg(program);
        command
    }

    /// Where this process sees it.
    fn path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(self.at.strip_prefix("/").unwrap_or(&self.at))
    }

    /// Fills it up but for so many bytes, with one file.
    pub fn fill(&self, but: u64) {
        use std::io::Write;
        let mut filler = std::fs::File::create(self.path().join("filler")).unwrap();
        let piece = vec![0; 64 << 10];
        let mut length = 0;
        let full = loop {
            match filler.write(&piece) {
                Ok(written) => length += written as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        filler.set_len(length.saturating_sub(but)).unwrap();
    }

    /// Takes that file away.
    pub fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Path of the binary of a version; tests/run installs it and says where.
fn binary(version: &str) -> PathBuf {
    let variable = match version {
        OLDEST => "SIMCAST_TEST_NATS_2_12",
        _ => "SIMCAST_TEST_NATS_2_15",
    };
    let path = std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run tests/run, which installs nats-server"));
    path.into()
}

/// A port that nobody else has at this process's address; the two after it are free too.
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(4_222);
    NEXT.fetch_add(3, Ordering::Relaxed)
}

/// Where all servers of this process listen.
pub fn address() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | a & 0x3f, b, c)
}

impl Server {
    /// A server of a version that syncs each write.
    pub async fn start(version: &'static str) -> Self {
        Self::start_with(Options::new(version)).await
    }

    pub async fn start_with(options: Options) -> Self {
        let mut server = Self::prepare(options, "alone", "");
        server.restart().await;
        server
    }

    /// Three servers that know each other, and that have chosen a leader.
    pub async fn cluster(version: &'static str) -> [Self; 3] {
        Self::cluster_with(Options::new(version)).await
    }

    pub async fn cluster_with(options: Options) -> [Self; 3] {
        let mut nodes = ["a", "b", "c"].map(|name| Self::prepare(options.clone(), name, ""));
        let routes: Vec<_> =
            nodes.iter().map(|node| format!("nats://{}:{}", node.address, node.port + 1)).collect();
        for node in &mut nodes {
            let cluster = format!(
                "cluster {{ name: test, listen: \"{}:{}\", routes: [{}] }}",
                node.address,
                node.port + 1,
                routes.join(", ")
            );
            let text = std::fs::read_to_string(&node.config).unwrap();
            std::fs::write(&node.config, text + &cluster).unwrap();
            node.spawn();
        }
        for node in &mut nodes {
            node.wait_until_ready().await;
        }
        nodes
    }

    fn prepare(options: Options, name: &str, more: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let directory = match options.volatile && memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let directory = directory.unwrap();
        let (address, port) = (address(), next_port());
        let config = directory.path().join("nats.conf");
        let store = directory.path().join("store");
        let sync = if options.sync_always { "always" } else { "\"2m\"" };
        let text = format!(
            "server_name: {name}\nlisten: \"{address}:{port}\"\nhttp: \"{address}:{}\"\n\
             jetstream {{ store_dir: \"{}\", sync_interval: {sync} }}\n{}\n{more}\n",
            port + 2,
            store.display(),
            options.more,
        );
        std::fs::write(&config, text).unwrap();
        let disk = options.disk_mib.map(|mib| Disk::mount(&store, mib));
        Self { options, directory, address, port, config, disk, child: None }
    }

    pub fn socket(&self) -> SocketAddr {
        (self.address, self.port).into()
    }

    /// As clients give it.
    pub fn url(&self) -> String {
        format!("{}{}", self.options.login, self.socket())
    }

    /// Of the running process; 0 where there is none.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    pub fn monitoring_url(&self) -> String {
        format!("http://{}:{}", self.address, self.port + 2)
    }

    /// Directory of what it stores.
    pub fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file system of its store, where it has one of its own.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("Options::disk_mib was given")
    }

    fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let binary = binary(self.options.version);
        let mut command = match &self.disk {
            Some(disk) => disk.command(&binary),
            None => Command::new(binary),
        };
        let child = command
            .arg("-c")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Starts it again, at the same address, with what it stored.
    pub async fn restart(&mut self) {
        self.spawn();
        self.wait_until_ready().await;
    }

    /// Ready is what the server itself calls so: recovered, and in a cluster with a leader.
    pub async fn wait_until_ready(&mut self) {
        let began = Instant::now();
        loop {
            if self.is_healthy().await {
                return;
            }
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
            if ended || began.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                panic!("nats-server {} does not come up:\n{log}", self.options.version);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn is_healthy(&self) -> bool {
        let answer = self.monitoring("/healthz").await;
        answer.is_some_and(|answer| answer.lines().next().is_some_and(|line| line.contains(" 200 ")))
    }

    /// What the monitoring port answers, head and all; None where it does not.
    pub async fn monitoring(&self, path: &str) -> Option<String> {
        let (address, request) = ((self.address, self.port + 2), format!("GET {path} HTTP/1.0\r\n\r\n"));
        let ask = move || {
            use std::io::{Read, Write};
            let mut stream = TcpStream::connect(address).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A clean stop.
    pub async fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        if let Some(mut child) = self.child.take() {
            tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        }
    }

    /// Stops it in the middle of whatever it does, until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(child) = &self.child {
            rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
        }
    }

    pub async fn context(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(async_nats::connect(self.url()).await.unwrap())
    }

    /// Waits until a stream has so many messages.
    pub async fn wait_for_messages(&self, stream: &str, count: u64) {
        let context = self.context().await;
        let began = Instant::now();
        while context.get_stream(stream).await.unwrap().cached_info().state.messages < count {
            assert!(began.elapsed() < PATIENCE, "{stream} never has {count} messages");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Deletes every consumer of a stream; gives how many there were.
    pub async fn delete_consumers(&self, stream: &str) -> usize {
        use futures_util::StreamExt;
        let stream = self.context().await.get_stream(stream).await.unwrap();
        let names: Vec<_> = stream.consumer_names().collect().await;
        let count = names.len();
        for name in names {
            stream.delete_consumer(&name.unwrap()).await.unwrap();
        }
        count
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
