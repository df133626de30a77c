//! A server whose disk is full, really: its store is on a small file system of its own, which a file fills up.

use super::{
    faults::{batch, complete, ids},
    *,
};

/// A server lends three quarters of what it finds.
const DISK_MIB: u32 = 64;
/// What is left when it is filled up: some seconds of appends.
const LEFT: u64 = 256 << 10;
const ROUNDS: usize = 3;

async fn full(version: &'static str) {
    let mut server =
        Server::start_with(server::Options { disk_mib: Some(DISK_MIB), ..server::Options::new(version) })
            .await;
    let config = Config { retention_bytes: 32 << 20, ..config(&server, "S") };
    let bus = open(config.clone()).await;
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        server.disk().fill(LEFT);
        // Until one is refused again and again: this batch is the one that a poller keeps. The oldest version stores a
        // part of a batch that it refuses, and may have room for the rest.
        let (kept, refused) = loop {
            let events = batch(&format!("r{round}-{acknowledged}-"), 20);
            if bus.append(events.clone(), None).await.is_err()
                && let Err(error) = bus.append(events.clone(), None).await
            {
                break (events, error);
            }
            acknowledged += events.len();
        };
        assert!(matches!(refused, AppendError::Unavailable(_)) && refused.retryable(), "{refused}");
        // The oldest version takes a part of what it refuses.
        assert!(version == OLDEST || bus.health().unwritable.is_some(), "/readyz must say so");
        let shown = ids(&bus);
        assert!(shown.len() >= acknowledged, "what was acknowledged is shown while the disk is full");
        server.disk().free();
        let heals = insist(&bus, &kept, Duration::from_secs(8)).await;
        assert_eq!(heals, version == OLDEST, "docs/GUARANTEES.md says otherwise");
        if !heals {
            server.stop().await;
            server.restart().await;
            assert!(insist(&bus, &kept, Duration::from_secs(30)).await, "nothing is taken after the restart");
        }
        assert_eq!(bus.health().unwritable, None);
        acknowledged += kept.len();
        assert!(shown.iter().all(|(seq, id)| ids(&bus).get(seq) == Some(id)), "the past is another one");
    }
    let shown = ids(&bus);
    let distinct: std::collections::BTreeSet<_> = shown.values().collect();
    assert_eq!((shown.len(), distinct.len()), (acknowledged, acknowledged), "nothing lost, nothing doubled");
    bus.shutdown().await;
    // A gateway that knows nothing finds the same.
    let fresh = open(config).await;
    complete(&fresh).await;
    assert_eq!(ids(&fresh), shown);
    fresh.shutdown().await;
}

/// Whether a batch goes in within a time.
async fn insist(bus: &Arc<JetStream>, batch: &[NewEvent], within: Duration) -> bool {
    let until = tokio::time::Instant::now() + within;
    while tokio::time::Instant::now() < until {
        match bus.append(batch.to_vec(), None).await {
            Ok(_) => return true,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

on_both!(a_server_whose_disk_is_full_loses_and_doubles_nothing, full);
