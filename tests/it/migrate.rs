//! From an embedded log to NATS with the real binary: a reader goes on with the cursor it kept, whatever happened to
//! the migration.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;
use simcast::globalsim::simulator::Config;

use super::{
    clients::{Seen, Socket},
    nats_server::{NEWEST, OLDEST, Server},
    support::{ChildGateway, PATIENCE, World, assert_exactly_once, get, run, settled, simcast},
};

const MIGRATE: [&str; 3] = ["migrate", "--to", "nats"];

/// Messages and last sequence of the stream and of all its buckets.
async fn state_of(server: &Server) -> Vec<(u64, u64, Value)> {
    let context = server.context().await;
    let mut state = Vec::new();
    for name in ["SIMCAST", "KV_SIMCAST_state", "KV_SIMCAST_endpoints", "KV_SIMCAST_cursors"] {
        let info = context.get_stream(name).await.unwrap().cached_info().clone();
        state.push((
            info.state.messages,
            info.state.last_sequence,
            serde_json::to_value(&info.config).unwrap(),
        ));
    }
    state
}

/// Starts the migration and kills it once a part is copied.
fn kill_in_the_middle(env: &[(String, String)]) {
    let mut child = simcast()
        .args(MIGRATE)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let copied = lines.find(|line| line.starts_with("copied up to sequence"));
    child.kill().unwrap();
    child.wait().unwrap();
    copied.expect("nothing was copied");
}

async fn moved(version: &'static str) {
    let mut world = World::new(Config {
        sims: 40,
        events_per_second: 20.0,
        history: Duration::from_secs(7_200),
        history_events_per_second: 0.7,
        ..Config::default()
    })
    .await;
    let details = ("SIMCAST__UPSTREAM__DETAILS", "off");
    let gateway = ChildGateway::start(&world.settings_with(&[details]));
    let mut socket = Socket::open(gateway.http, "from=earliest").await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 700 {
        seen.extend(socket.events().await.unwrap());
    }
    seen.truncate(700);
    drop(socket);
    world.sim.pause();
    let before = settled(&world, gateway.http).await;
    assert!(before.len() > 4_000, "only {}", before.len());

    let data = world.dir.path().join("data").to_string_lossy().into_owned();
    world.nats = Some(Server::start(version).await);
    let mut env = world.settings_of("mirror");
    env.push((details.0.to_owned(), details.1.to_owned()));
    env.push(("SIMCAST__BUS__EMBEDDED__PATH".to_owned(), data));
    // The command does not need it: it says itself where to.
    let without_kind: Vec<_> = env.iter().filter(|(name, _)| name != "SIMCAST__BUS__KIND").cloned().collect();
    let dir = tempfile::tempdir().unwrap();
    let simcast = |args: &[&str], env: &[(String, String)]| {
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        run(args, &env, dir.path())
    };
    let (code, _, said) = simcast(&MIGRATE, &without_kind);
    assert!(code == Some(1) && said.contains("stop the gateway"), "{said}");
    assert_eq!(gateway.terminate(), Some(0));

    let no_urls: Vec<_> =
        without_kind.iter().filter(|(name, _)| name != "SIMCAST__BUS__NATS__URLS").cloned().collect();
    let (code, _, said) = simcast(&MIGRATE, &no_urls);
    assert!(code == Some(64) && said.contains("bus.nats.urls"), "{said}");
    let (code, told, said) = simcast(&[&MIGRATE[..], &["--dry-run"]].concat(), &without_kind);
    assert_eq!(code, Some(0), "{said}");
    assert!(told.contains(&format!("sequences    1 to {}\n", before.len())), "{told}");
    assert!(
        told.contains(&format!("events       {} (", before.len())) && told.contains("to be made"),
        "{told}"
    );
    let server = world.nats.as_ref().unwrap();
    assert!(server.context().await.get_stream("SIMCAST").await.is_err(), "a dry run made a stream");

    kill_in_the_middle(&env);
    let stream = server.context().await.get_stream("SIMCAST").await.unwrap();
    let copied = stream.cached_info().state.messages;
    assert!((1..before.len() as u64).contains(&copied), "{copied} of {}", before.len());
    let (code, _, said) = simcast(&["serve"], &env);
    assert!(code == Some(1) && said.contains("migration that has not finished"), "{code:?} {said}");
    let (code, told, said) = simcast(&MIGRATE, &without_kind);
    assert_eq!(code, Some(0), "{told}{said}");
    assert!(told.contains("begun and filled up to") && told.contains("kind = \"nats\""), "{told}");
    println!("{told}");
    let done = state_of(server).await;
    let (code, told, said) = simcast(&MIGRATE, &env);
    assert!(code == Some(0) && told.starts_with("already done"), "{told}{said}");
    assert_eq!(state_of(server).await, done, "a second run changed something");

    let gateway = ChildGateway::start(&env);
    let began = Instant::now();
    // Readers are told to wait until the copy is filled.
    while get(gateway.http, "/v1/events?limit=1").await.0 != 200 {
        assert!(began.elapsed() < PATIENCE, "the copy is never filled");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.sim.inject_burst(120);
    let after = settled(&world, gateway.http).await;
    assert!(after[..before.len()] == before[..], "old events are others, or elsewhere");
    assert!(after.len() > before.len());
    let mut socket =
        Socket::open(gateway.http, &format!("after={}", seen.last().unwrap().cursor)).await.unwrap();
    while seen.len() < after.len() {
        seen.extend(socket.events().await.unwrap());
    }
    let expected: Vec<_> = after.iter().map(Seen::of).collect();
    assert!(seen == expected, "a hole or a repeat");
    assert_exactly_once(&world.sim.truth(), &after);
    let most = world.sim.max_requests_in_any_60s();
    assert!(most <= 400, "{most} requests in a minute");
    assert_eq!(gateway.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_moves_to_the_oldest_nats_and_readers_go_on() {
    moved(OLDEST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_moves_to_the_newest_nats_and_readers_go_on() {
    moved(NEWEST).await;
}
