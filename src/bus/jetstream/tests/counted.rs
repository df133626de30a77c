//! The table of faults: a gateway goes on appending under its lease while something breaks again and again; what it was
//! told to be durable is compared with what the stream has in the end.

use std::collections::BTreeSet;

use super::{
    faults::{batch, complete, ids},
    proxy::Proxy,
    *,
};
use crate::guarantees::Table;

/// The faults, in the order of the table.
const FAULTS: [&str; 10] = [
    "server stopped and started",
    "server killed (-9) and started",
    "connection cut",
    "answers lost for a second, then the connection",
    "consumers deleted",
    "leader changed every 5 s, three servers",
    "leader killed, three servers",
    "stream deleted",
    "store wiped",
    DISK_FULL,
];
const DISK_FULL: &str = "disk of the server full, then room and a restart of it";
/// Longest that nothing may be appended, whatever the fault. A lease that was lost with the answers to its renewals must
/// run out before it can be taken again.
const STALL_MAX: Duration = Duration::from_secs(30);
const LEASE_TTL: Duration = Duration::from_secs(10);
const EVENTS_OF_A_BATCH: usize = 5;
/// Of the server whose disk is filled; it lends three quarters of what it finds.
const DISK_MIB: u32 = 64;

/// What became of a run.
#[derive(Default)]
struct Run {
    /// Acknowledged in the history that there is.
    acknowledged: Vec<String>,
    /// Acknowledged in histories that are no more, as the gateway was told.
    told: usize,
    /// Longest time between two acknowledgements.
    stall: Duration,
}

/// Opens the bus as a gateway does, which tries again.
async fn insist_open(config: &Config) -> Arc<JetStream> {
    let began = std::time::Instant::now();
    loop {
        match JetStream::open(config.clone(), clock::system()).await {
            Ok(bus) => return bus,
            Err(error) => assert!(error.retryable() && began.elapsed() < STALL_MAX, "{error}"),
        }
    }
}

/// Appends until the first acknowledgement after `over`. Opens the bus anew where its copy says that the stream is not
/// the one that it was, as a gateway does.
async fn appending(config: &Config, over: &CancellationToken) -> Run {
    let mut run = Run::default();
    let mut bus = insist_open(config).await;
    let mut last = std::time::Instant::now();
    let mut lease = None;
    for n in 0.. {
        let events = batch(&format!("e{n}-"), EVENTS_OF_A_BATCH);
        let ends = over.is_cancelled();
        loop {
            assert!(last.elapsed() < STALL_MAX, "nothing is taken: {:?}", bus.health().unwritable);
            if matches!(&*bus.fill().borrow(), Fill::Stale { .. }) {
                lease = None;
                bus.shutdown().await;
                run.told += std::mem::take(&mut run.acknowledged).len();
                bus = insist_open(config).await;
            }
            if lease.is_none() {
                let mut fill = bus.fill();
                lease = tokio::select! {
                    taken = bus.lease("poller", LEASE_TTL) => taken.ok(),
                    _ = fill.wait_for(|fill| matches!(fill, Fill::Stale { .. })) => None,
                    () = tokio::time::sleep(STALL_MAX) => None,
                };
            }
            let Some(held) = &lease else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            match bus.append(events.clone(), Some(held.fence)).await {
                Ok(_) => break,
                Err(AppendError::Fenced) => lease = None,
                Err(error) => assert!(error.retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        run.stall = run.stall.max(last.elapsed());
        last = std::time::Instant::now();
        run.acknowledged.extend(events.into_iter().map(|new| new.event.id));
        if ends {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(lease);
    bus.shutdown().await;
    run
}

/// Appends while `breaks`, which says how often it did, and holds the document to what that came to.
async fn under(fault: &'static str, config: Config, breaks: impl AsyncFnOnce() -> usize) {
    let over = CancellationToken::new();
    let breaking = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let times = breaks().await;
        over.cancel();
        times
    };
    let (run, times) = tokio::join!(appending(&config, &over), breaking);
    // As a gateway sees it that knows nothing.
    let bus = insist_open(&config).await;
    complete(&bus).await;
    let stored: Vec<String> = ids(&bus).into_values().collect();
    bus.shutdown().await;
    let distinct: BTreeSet<_> = stored.iter().collect();
    let lost = run.acknowledged.iter().filter(|id| !distinct.contains(id)).count();
    let doubled = stored.len() - distinct.len();
    let events = run.acknowledged.len() + run.told;
    let stall = run.stall.as_secs_f64();
    let line = format!("| {fault} | {times} | {events} | {lost} | {} | {doubled} | {stall:.1} s |", run.told);
    println!("{line}");
    assert_eq!((lost, doubled), (0, 0), "{line}");
    let table = Table {
        name: "faults",
        head: "| fault | times | events | lost | told as lost | doubled | longest stall |\n|---|---|---|---|---|---|---|\n",
        exact: &[0, 1, 3, 5],
        tests: "counted",
    };
    table.check_some(&FAULTS, &[line]);
}

async fn pause() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_started_again() {
    let mut server = Server::start(NEWEST).await;
    under(FAULTS[0], config(&server, "S"), async || {
        for _ in 0..5 {
            server.stop().await;
            server.restart().await;
            pause().await;
        }
        5
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed() {
    let mut server = Server::start(NEWEST).await;
    under(FAULTS[1], config(&server, "S"), async || {
        for _ in 0..5 {
            server.kill().await;
            server.restart().await;
            pause().await;
        }
        5
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut() {
    let server = Server::start(NEWEST).await;
    let proxy = Proxy::start(server.socket()).await;
    under(FAULTS[2], Config { urls: vec![proxy.url()], ..config(&server, "S") }, async || {
        for _ in 0..20 {
            proxy.reset();
            tokio::time::sleep(Duration::from_millis(330)).await;
        }
        20
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost() {
    let server = Server::start(NEWEST).await;
    let proxy = Proxy::start(server.socket()).await;
    under(FAULTS[3], Config { urls: vec![proxy.url()], ..config(&server, "S") }, async || {
        for _ in 0..5 {
            proxy.mute();
            pause().await;
            proxy.reset();
            pause().await;
        }
        5
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_are_deleted() {
    let server = Server::start(NEWEST).await;
    under(FAULTS[4], config(&server, "S"), async || {
        for _ in 0..5 {
            assert!(server.delete_consumers("S").await > 0);
            pause().await;
        }
        5
    })
    .await;
}

/// A cluster, and how to reach all of it.
async fn three() -> ([Server; 3], Config) {
    let nodes = Server::cluster(NEWEST).await;
    let urls = nodes.iter().map(Server::url).collect();
    let config = Config { urls, replicas: 3, ..config(&nodes[0], "S") };
    (nodes, config)
}

/// Name of the leader, once there is one.
async fn leader(nodes: &[Server; 3]) -> String {
    for _ in 0..100 {
        for node in nodes {
            if let Ok(stream) = node.context().await.get_stream("S").await
                && let Some(cluster) = &stream.cached_info().cluster
                && let Some(leader) = &cluster.leader
            {
                return leader.clone();
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the stream has no leader");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_changes_every_5_s() {
    let (nodes, config) = three().await;
    under(FAULTS[5], config, async || {
        let client = async_nats::connect(nodes[0].url()).await.unwrap();
        let mut changes = 0;
        while changes < 4 {
            let before = leader(&nodes).await;
            let _ = client.request("$JS.API.STREAM.LEADER.STEPDOWN.S", Bytes::new()).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            changes += usize::from(leader(&nodes).await != before);
        }
        changes
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed() {
    let (mut nodes, config) = three().await;
    under(FAULTS[6], config, async || {
        for _ in 0..3 {
            let leader = leader(&nodes).await;
            let at = ["a", "b", "c"].iter().position(|name| *name == leader).unwrap();
            nodes[at].kill().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            nodes[at].restart().await;
            pause().await;
        }
        3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_deleted() {
    let server = Server::start(NEWEST).await;
    under(FAULTS[7], config(&server, "S"), async || {
        for _ in 0..2 {
            server.context().await.delete_stream("S").await.unwrap();
            // Until the gateway has made it again.
            while server.context().await.get_stream("S").await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            pause().await;
        }
        2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_wiped() {
    let mut server = Server::start(NEWEST).await;
    under(FAULTS[8], config(&server, "S"), async || {
        for _ in 0..2 {
            server.kill().await;
            std::fs::remove_dir_all(server.store()).unwrap();
            server.restart().await;
            while server.context().await.get_stream("S").await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            pause().await;
        }
        2
    })
    .await;
}

/// This version of the server gives up a stream that it can't write until it is started again: the gateway needs no
/// restart. Each time another gateway, which only reads, shows all there is while nothing can be appended, and goes on
/// with the stream afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full() {
    let options = server::Options { disk_mib: Some(DISK_MIB), ..server::Options::new(NEWEST) };
    let mut server = Server::start_with(options).await;
    let config = Config { retention_bytes: 32 << 20, ..config(&server, "S") };
    let reader = insist_open(&config).await;
    let reading = Arc::clone(&reader);
    under(DISK_FULL, config, async || {
        for _ in 0..3 {
            server.disk().fill(256 << 10);
            wait("the disk to be full", async || !server.is_healthy().await).await;
            let refused = reading.append(batch("refused", 1), None).await.unwrap_err();
            assert!(matches!(refused, AppendError::Unavailable(_)), "{refused}");
            let shown = ids(&reading);
            pause().await;
            assert_eq!(ids(&reading), shown, "nothing is added, and nothing taken away");
            server.disk().free();
            pause().await;
            assert!(!server.is_healthy().await, "docs/GUARANTEES.md says that it must be started again");
            server.stop().await;
            server.restart().await;
            wait("what follows", async || ids(&reading).len() > shown.len()).await;
            assert!(
                shown.iter().all(|(seq, id)| ids(&reading).get(seq) == Some(id)),
                "the past is another one"
            );
        }
        3
    })
    .await;
    reader.shutdown().await;
}

/// Until something holds; half a minute at most.
async fn wait(what: &str, holds: impl AsyncFn() -> bool) {
    let began = std::time::Instant::now();
    while !holds().await {
        assert!(began.elapsed() < STALL_MAX, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
