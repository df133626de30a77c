//! `simcast doctor` with NATS, as a process: what it says, what it leaves alone, and its exit code.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::PathBuf,
    time::Duration,
};

use async_nats::jetstream::{self, stream::Config};
use simcast::globalsim::simulator::EventSpec;

use super::{
    nats_server::{NEWEST, OLDEST, Options, Server},
    support::{ChildGateway, PATIENCE, World, run, settled},
};

/// What the doctor said, by line, and its exit code.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    text: String,
}

impl Told {
    /// Whether there is a line of a level about something that holds all of `words`.
    fn has(&self, level: &str, what: &str, words: &[&str]) -> bool {
        let mut lines = self.text.lines().peekable();
        while let Some(line) = lines.next() {
            let cure = lines.next_if(|next| next.trim_start().starts_with("-> ")).unwrap_or_default();
            let rest = line.strip_prefix(level).and_then(|rest| rest.trim_start().strip_prefix(what));
            if rest.is_some_and(|rest| words.iter().all(|word| rest.contains(word) || cure.contains(word))) {
                return true;
            }
        }
        false
    }
}

async fn doctor(settings: Vec<(String, String)>, dir: PathBuf) -> Told {
    let run = move || {
        let env: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (code, text, _) = run(&["doctor"], &env, &dir);
        Told { code, text }
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn a_world(options: Options) -> World {
    let mut world = World::quiet().await;
    world.nats = Some(Server::start_with(options).await);
    world
}

async fn told(world: &World, more: &[(&str, &str)]) -> Told {
    doctor(world.settings_with(more), world.dir.path().to_owned()).await
}

async fn change(context: &jetstream::Context, name: &str, change: impl FnOnce(&mut Config)) {
    let mut config = context.get_stream(name).await.unwrap().cached_info().config.clone();
    change(&mut config);
    context.update_stream(config).await.unwrap();
}

async fn what_differs_is_named(version: &'static str) {
    let world = a_world(Options::new(version)).await;
    let server = world.nats.as_ref().unwrap();
    let monitoring = [("SIMCAST__BUS__NATS__MONITORING_URL", server.monitoring_url())];
    let monitoring = monitoring.each_ref().map(|(name, value)| (*name, value.as_str()));

    // Before the first start there is nothing, and the doctor makes nothing.
    let before = told(&world, &monitoring).await;
    assert_eq!(before.code, Some(0), "{before:?}");
    assert!(before.has("ok", "NATS ", &[version, "answers in"]), "{before:?}");
    assert!(
        before.has("ok", "NATS stream", &["not there yet: SIMCAST, KV_SIMCAST_state", "first start"]),
        "{before:?}"
    );
    let context = server.context().await;
    assert!(context.get_stream("SIMCAST").await.is_err());

    // Beside a running gateway.
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let settings = [("SIMCAST__ADMIN__LISTEN", admin.as_str()), monitoring[0]];
    let gateway = ChildGateway::start(&world.settings_with(&settings));
    world.sim.inject(EventSpec::default());
    settled(&world, gateway.http).await;
    let beside = told(&world, &settings).await;
    assert_eq!(beside.code, Some(0), "{beside:?}");
    for (what, words) in [
        ("NATS stream", "SIMCAST: "),
        ("NATS settings", "as they should be"),
        ("NATS durability", "synced to disk before it is acknowledged"),
        ("NATS poller", "polls, and renewed its lease of 8 s"),
        ("NATS copy", "the running gateway has every event"),
        ("NATS clock", "agrees"),
    ] {
        assert!(beside.has("ok", what, &[words]), "{what}: {beside:?}");
    }

    let (host, process) = (rustix::system::uname(), format!("process {}, up since 20", gateway.pid()));
    let named = [host.nodename().to_str().unwrap(), &process];
    assert!(beside.has("ok", "NATS poller", &named), "{named:?}: {beside:?}");

    // Harmless differences are warnings, each with what there is, what is wanted, and the cure.
    change(&context, "SIMCAST", |config| {
        config.max_age = Duration::from_secs(3_600);
        config.duplicate_window = Duration::from_secs(60);
        config.compression = None;
    })
    .await;
    change(&context, "KV_SIMCAST_endpoints", |config| config.max_messages_per_subject = 2).await;
    let drifted = told(&world, &settings).await;
    assert_eq!(drifted.code, Some(0), "{drifted:?}");
    for words in [
        ["SIMCAST: max_age is 3600s, not 604800s", "nats stream edit SIMCAST --max-age=7d"],
        ["SIMCAST: duplicate_window is 60s, not 100ms", "--dupe-window=100ms"],
        ["SIMCAST: compression is \"none\", not \"s2\"", "--compression=s2"],
        ["KV_SIMCAST_endpoints: max_msgs_per_subject is 2, not 5", "--max-msgs-per-subject=5"],
    ] {
        assert!(drifted.has("warn", "NATS settings", &words), "{words:?}: {drifted:?}");
    }
    // What would lose events is a failure, and the exit code says so.
    change(&context, "SIMCAST", |config| config.max_messages_per_subject = 10).await;
    change(&context, "KV_SIMCAST_state", |config| config.max_age = Duration::from_secs(600)).await;
    let harmful = told(&world, &settings).await;
    assert_eq!(harmful.code, Some(1), "{harmful:?}");
    for words in ["SIMCAST: max_msgs_per_subject is 10, not -1", "KV_SIMCAST_state: max_age is 600s, not 0ns"]
    {
        assert!(harmful.has("FAIL", "NATS settings", &[words]), "{words:?}: {harmful:?}");
    }

    // After the gateway has gone.
    assert_eq!(gateway.terminate(), Some(0));
    let after = told(&world, &settings).await;
    assert!(after.has("ok", "NATS poller", &["no gateway polls"]), "{after:?}");
    assert!(after.has("ok", "NATS copy", &["of this stream; the gateway does not run"]), "{after:?}");
    context.delete_stream("SIMCAST").await.unwrap();
    let deleted = told(&world, &settings).await;
    assert!(deleted.has("warn", "NATS stream", &["it was deleted"]), "{deleted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_is_named_on_the_oldest() {
    what_differs_is_named(OLDEST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_is_named_on_the_newest() {
    what_differs_is_named(NEWEST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_syncs_late_and_an_account_without_room_are_told() {
    let more = "accounts { A { users: [ { user: me, password: pw } ], jetstream { max_file: 64MB, max_streams: 4 } } }";
    let options = Options {
        more: more.to_owned(),
        login: "nats://me:pw@".to_owned(),
        sync_always: false,
        ..Options::new(NEWEST)
    };
    let world = a_world(options).await;
    let url = world.nats.as_ref().unwrap().monitoring_url();
    let told_full = told(&world, &[]).await;
    assert_eq!(told_full.code, Some(1), "{told_full:?}");
    let bytes = ["bus.nats.retention_bytes takes 268435456", "may use 67108864", "raise max_file"];
    assert!(told_full.has("FAIL", "NATS account", &bytes), "{told_full:?}");
    assert!(
        told_full.has("FAIL", "NATS account", &["5 streams are to be made", "max_streams"]),
        "{told_full:?}"
    );

    // With a stream of its own, so that there is something to sync.
    let world = a_world(Options { sync_always: false, ..Options::new(NEWEST) }).await;
    let gateway = ChildGateway::start(&world.settings());
    gateway.terminate();
    let own = world.nats.as_ref().unwrap().monitoring_url();
    let late = told(&world, &[("SIMCAST__BUS__NATS__MONITORING_URL", &own)]).await;
    assert_eq!(late.code, Some(0), "{late:?}");
    assert!(late.has("warn", "NATS durability", &["up to 120 s", "sync_interval: always"]), "{late:?}");
    let unknown = told(&world, &[]).await;
    assert!(unknown.has("warn", "NATS durability", &["not known", "monitoring_url"]), "{unknown:?}");
    let wrong = url.replace("http://127", "http://126");
    let wrong = told(&world, &[("SIMCAST__BUS__NATS__MONITORING_URL", &wrong)]).await;
    assert!(wrong.has("warn", "NATS durability", &["monitoring_url does not tell"]), "{wrong:?}");
}

/// One of three servers is gone: nothing is lost yet, and the doctor says that the next one must not go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_gone_is_named() {
    let mut nodes = Server::cluster(NEWEST).await;
    let urls = nodes.each_ref().map(Server::url).join(",");
    let world = World::quiet().await;
    let mut settings = world.settings();
    for (name, value) in [("KIND", "nats"), ("NATS__URLS", &urls), ("NATS__REPLICAS", "3")] {
        settings.push((format!("SIMCAST__BUS__{name}"), value.to_owned()));
    }
    for (name, value) in
        [("RETENTION_BYTES", "64MiB"), ("CACHE_PATH", &world.dir.path().join("copy").to_string_lossy())]
    {
        settings.push((format!("SIMCAST__BUS__NATS__{name}"), value.to_owned()));
    }
    assert_eq!(ChildGateway::start(&settings).terminate(), Some(0));
    let healthy = doctor(settings.clone(), world.dir.path().to_owned()).await;
    assert_eq!(healthy.code, Some(0), "{healthy:?}");
    assert!(healthy.has("ok", "NATS stream", &["on 3 servers, leader "]), "{healthy:?}");
    nodes[2].kill().await;
    let began = std::time::Instant::now();
    loop {
        let told = doctor(settings.clone(), world.dir.path().to_owned()).await;
        if told.has("warn", "NATS stream", &["not up to date: c (", "fewer may fail"]) {
            assert_eq!(told.code, Some(0), "{told:?}");
            return;
        }
        // The others notice after some seconds; meanwhile there may be no leader, which is a failure.
        assert!(began.elapsed() < PATIENCE, "{told:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A server of another version, as far as clients look at it: it greets and answers pings.
fn old_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let info = format!(
                r#"INFO {{"server_id":"A","server_name":"old","version":"2.11.9","go":"","host":"{}","port":{},"headers":true,"max_payload":1048576,"proto":1}}"#,
                address.ip(),
                address.port()
            );
            let _ = write!(stream, "{info}\r\n");
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            for _ in lines.filter(|line| line == "PING") {
                let _ = stream.write_all(b"PONG\r\n");
            }
        }
    });
    format!("nats://{address}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_too_old_or_not_there_or_refuses_is_a_failure_with_its_cure() {
    let more = "authorization { user: me, password: pw }".to_owned();
    let world = a_world(Options { more, login: "nats://me:wr0ng@".to_owned(), ..Options::new(NEWEST) }).await;
    let refused = told(&world, &[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.has("FAIL", "NATS", &["refuses the login", "bus.nats.urls"]), "{refused:?}");
    assert!(!refused.text.contains("wr0ng"), "{refused:?}");
    let old = told(&world, &[("SIMCAST__BUS__NATS__URLS", &old_server())]).await;
    assert_eq!(old.code, Some(1), "{old:?}");
    assert!(old.has("FAIL", "NATS", &["2.11.9 is too old", "2.12", "update the server"]), "{old:?}");
    let nobody = format!("nats://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let nobody = told(&world, &[("SIMCAST__BUS__NATS__URLS", &nobody)]).await;
    assert!(nobody.has("FAIL", "NATS", &["can't be reached", "check bus.nats.urls"]), "{nobody:?}");
}
