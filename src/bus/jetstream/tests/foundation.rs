//! Buckets, leases, and what the start makes and checks.

use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy};
use tokio::time::Instant;

use super::*;
use crate::bus::jetstream::tests::server::Options;

const TTL: Duration = Duration::from_secs(3);

async fn strange_keys(version: &'static str) {
    let server = Server::start(version).await;
    let bus = open(config(&server, "S")).await;
    let keys = ["a", "a/b", "a.b", "a/>", "a/*", "ø å", "=", "a/b/c d"];
    for key in keys {
        bus.kv_create(Bucket::State, key, Bytes::copy_from_slice(key.as_bytes())).await.unwrap();
    }
    for key in keys {
        assert_eq!(bus.kv_get(Bucket::State, key).await.unwrap().unwrap().value, key.as_bytes(), "{key}");
    }
    let listed = bus.kv_list(Bucket::State, "a/").await.unwrap();
    let listed: Vec<_> = listed.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(listed, ["a/*", "a/>", "a/b", "a/b/c d"]);
    // Another program sees the bucket as NATS' own clients make it.
    let store = server.context().await.get_key_value("S_state").await.unwrap();
    assert_eq!(store.get("a/b").await.unwrap().unwrap(), "a/b");
    store.put("from-outside", "x".into()).await.unwrap();
    let entry = bus.kv_get(Bucket::State, "from-outside").await.unwrap().unwrap();
    assert_eq!(entry.value, "x");
    store.delete("from-outside").await.unwrap();
    assert_eq!(bus.kv_get(Bucket::State, "from-outside").await.unwrap(), None);
    bus.kv_create(Bucket::State, "from-outside", Bytes::new()).await.unwrap();
    bus.shutdown().await;
}

on_both!(keys_of_any_characters_and_other_clients, strange_keys);

/// A watch is ended when its consumer is gone; nothing is skipped silently.
async fn watch_ends(version: &'static str) {
    let server = Server::start(version).await;
    let bus = open(config(&server, "S")).await;
    let mut watch = bus.kv_watch(Bucket::Endpoints, "").await.unwrap();
    assert_eq!(watch.recv().await, Some(Change::Synced));
    let revision = bus.kv_put(Bucket::Endpoints, "e", "1".into()).await.unwrap();
    let entry = Entry { key: "e".into(), revision, value: "1".into() };
    assert_eq!(watch.recv().await, Some(Change::Put(entry)));
    assert_eq!(server.delete_consumers("KV_S_endpoints").await, 1);
    let ended = tokio::time::timeout(Duration::from_secs(30), watch.recv()).await.unwrap();
    assert_eq!(ended, None);
    bus.shutdown().await;
}

on_both!(a_watch_whose_consumer_is_gone_ends, watch_ends);

/// A gateway that died holding the lease is followed once it has run out, one that stops at once.
async fn followed(version: &'static str) {
    let server = Server::start(version).await;
    let (one, two) = (open(config(&server, "S")).await, open(config(&server, "S")).await);
    let held = one.lease("poller", TTL).await.unwrap();
    let began = Instant::now();
    let next = tokio::time::timeout(TTL * 2, two.lease("poller", TTL));
    let stop = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        one.shutdown().await;
    };
    let (next, ()) = tokio::join!(next, stop);
    let next = next.unwrap().unwrap();
    assert!(*held.lost.borrow() && next.fence > held.fence);
    assert!(began.elapsed() < TTL, "it was released: {:?}", began.elapsed());
    // It dies: nothing of it runs any more, and nothing was released.
    let three = open(config(&server, "S")).await;
    let alive = server.context().await;
    let bucket = alive.get_key_value("S_lease").await.unwrap();
    let before = bucket.entry("poller").await.unwrap().unwrap();
    drop(next);
    two.shutdown().await;
    bucket.put("poller", before.value).await.unwrap();
    let began = Instant::now();
    let last = tokio::time::timeout(TTL * 3, three.lease("poller", TTL)).await.unwrap().unwrap();
    let took = began.elapsed();
    assert!(took >= TTL && took < TTL + Duration::from_secs(2), "{took:?}");
    assert!(!*last.lost.borrow());
    three.shutdown().await;
}

on_both!(a_lease_is_followed_when_it_has_run_out_or_at_once, followed);

/// While the server does not answer, the holder gives up before anybody could follow, and appends nothing afterwards.
async fn stopped_server(version: &'static str) {
    let server = Server::start(version).await;
    let bus = open(config(&server, "S")).await;
    let mut held = bus.lease("poller", TTL).await.unwrap();
    bus.append(vec![event("a")], Some(held.fence)).await.unwrap();
    server.pause();
    let began = Instant::now();
    tokio::time::timeout(TTL * 3, held.lost.wait_for(|lost| *lost)).await.unwrap().unwrap();
    assert!(began.elapsed() < TTL, "{:?}", began.elapsed());
    server.resume();
    let refused = bus.append(vec![event("b")], Some(held.fence)).await;
    assert!(matches!(refused, Err(AppendError::Fenced)), "{refused:?}");
    let again = tokio::time::timeout(TTL * 4, bus.lease("poller", TTL)).await.unwrap().unwrap();
    insist_fenced(&bus, "b", again.fence).await;
    bus.shutdown().await;
}

on_both!(a_holder_that_can_not_renew_gives_up_in_time, stopped_server);

/// A lease is kept while the server is killed and comes back.
async fn killed_server(version: &'static str) {
    let mut server = Server::start(version).await;
    let bus = open(config(&server, "S")).await;
    let held = bus.lease("poller", Duration::from_secs(10)).await.unwrap();
    server.kill().await;
    server.restart().await;
    insist_fenced(&bus, "a", held.fence).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!*held.lost.borrow(), "it was renewed");
    insist_fenced(&bus, "b", held.fence).await;
    bus.shutdown().await;
}

on_both!(a_lease_outlives_a_restart_of_the_server, killed_server);

/// Appends until the server takes it.
async fn insist_fenced(bus: &Arc<JetStream>, id: &str, fence: Fence) {
    for _ in 0..100 {
        match bus.append(vec![event(id)], Some(fence)).await {
            Ok(_) => return,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{id} was never taken");
}

async fn drift(version: &'static str) {
    let server = Server::start(version).await;
    let context = server.context().await;
    let foreign = StreamConfig {
        name: "S".to_owned(),
        subjects: vec!["s.events.>".to_owned()],
        discard: DiscardPolicy::New,
        ..StreamConfig::default()
    };
    context.create_stream(foreign).await.unwrap();
    let refused = JetStream::open(config(&server, "S"), clock::system()).await.unwrap_err();
    let OpenError::Drift(found) = &refused else { panic!("{refused}") };
    let fields: Vec<_> = found.iter().map(|one| one.field).collect();
    assert_eq!(
        fields,
        ["subjects", "metadata simcast_incarnation", "metadata simcast_schema", "allow_atomic", "discard"],
    );
    assert!(!refused.retryable());

    let bus = open(config(&server, "T")).await;
    assert!(bus.found().created && bus.found().drift.is_empty(), "{:?}", bus.found());
    let mut changed = context.get_stream("T").await.unwrap().cached_info().config.clone();
    changed.max_age = Duration::from_secs(3_600);
    changed.duplicate_window = Duration::from_secs(60);
    context.update_stream(changed).await.unwrap();
    let again = open(config(&server, "T")).await;
    let fields: Vec<_> = again.found().drift.iter().map(|one| (one.field, one.harmful)).collect();
    assert_eq!(fields, [("max_age", false), ("duplicate_window", false)]);
    assert_eq!(again.found().incarnation, bus.found().incarnation);
    for bus in [bus, again] {
        bus.shutdown().await;
    }
}

on_both!(what_is_not_as_it_must_be_is_told, drift);

/// Gateways that start together agree on one stream.
async fn together(version: &'static str) {
    let server = Server::start(version).await;
    let starts = (0..6).map(|_| open(config(&server, "S")));
    let gateways = futures_util::future::join_all(starts).await;
    let incarnation = gateways[0].found().incarnation;
    assert!(gateways.iter().all(|one| one.found().incarnation == incarnation));
    assert_eq!(gateways.iter().filter(|one| one.found().created).count(), 1);
    for bus in gateways {
        bus.shutdown().await;
    }
}

on_both!(gateways_that_start_together_make_one_stream, together);

async fn says_how_durable(version: &'static str) {
    for sync_always in [true, false] {
        let server = Server::start_with(Options { sync_always, ..Options::new(version) }).await;
        let asked = Config { monitoring_url: Some(server.monitoring_url()), ..config(&server, "S") };
        let bus = open(asked).await;
        let durability = &bus.found().durability;
        let said = format!("on one server (NATS {version}), synced to disk ");
        assert!(durability.says.starts_with(&said), "{durability:?}");
        assert_eq!(durability.says.contains("before it is acknowledged"), sync_always, "{durability:?}");
        let warned = durability.warning.as_ref().is_some_and(|warning| warning.contains("up to 120 s"));
        assert_eq!(warned, !sync_always, "{durability:?}");
        assert_eq!(bus.health().durability, durability.says);
        bus.shutdown().await;
    }
}

on_both!(how_durable_an_append_is_is_read_from_the_server, says_how_durable);

/// Three servers, three copies: the leader of the stream is killed, and everything goes on.
async fn cluster(version: &'static str) {
    let mut nodes = Server::cluster(version).await;
    let urls: Vec<_> = nodes.iter().map(Server::url).collect();
    let bus = open(Config { urls, replicas: 3, ..config(&nodes[0], "S") }).await;
    assert!(bus.found().drift.is_empty(), "{:?}", bus.found().drift);
    let lease = bus.lease("poller", Duration::from_secs(20)).await.unwrap();
    for round in 0..3 {
        insist_fenced(&bus, &format!("r{round}"), lease.fence).await;
        let stream = bus.connection.context.get_stream("S").await.unwrap();
        let leader =
            stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone()).unwrap();
        let at = ["a", "b", "c"].iter().position(|name| *name == leader).unwrap();
        nodes[at].kill().await;
        insist_fenced(&bus, &format!("killed{round}"), lease.fence).await;
        nodes[at].restart().await;
    }
    assert_eq!(bus.log().bounds().events, 6);
    bus.shutdown().await;
}

on_both!(a_cluster_that_loses_its_leader_loses_no_event, cluster);
