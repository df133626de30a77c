//! What servers, networks and other people do to a stream while a gateway uses it.

use std::{collections::BTreeMap, path::Path};

use futures_util::StreamExt as _;

use super::{proxy::Proxy, *};
use crate::{
    bus::Fill,
    event::Predicate,
    log::{CursorState, Direction, ReadRequest},
};

/// A stream may have been made with another window than gateways make it with.
const LONG_WINDOW: Duration = Duration::from_secs(4);

/// Appends until it succeeds; at most a minute.
async fn insist(bus: &Arc<JetStream>, batch: Vec<NewEvent>) -> Vec<Appended> {
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match bus.append(batch.clone(), None).await {
            Ok(answers) => return answers,
            Err(error) => {
                assert!(error.retryable() && tokio::time::Instant::now() < until, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Ids by sequence; stamps must not decrease.
pub(super) fn ids(bus: &JetStream) -> BTreeMap<u64, String> {
    let (mut ids, mut from, mut newest) = (BTreeMap::new(), 0, i64::MIN);
    from = from.max(bus.log().bounds().first_seq.saturating_sub(1));
    loop {
        let request = ReadRequest {
            from,
            direction: Direction::Forward,
            predicate: &Predicate::unfiltered(),
            limit: 1000,
            max_bytes: usize::MAX,
        };
        let page = bus.log().read(request).unwrap();
        assert!(page.holes.is_empty(), "{:?}", page.holes);
        for event in &page.events {
            let keys = event.keys().unwrap();
            assert!(keys.observed_us >= newest, "stamps go back at {}", event.seq());
            newest = keys.observed_us;
            ids.insert(event.seq(), keys.id.to_owned());
        }
        if page.at_end {
            return ids;
        }
        from = page.next;
    }
}

/// What a gateway sees that knows nothing: the stream itself, by a mirror of its own.
async fn ids_in_stream(server: &Server) -> BTreeMap<u64, String> {
    let bus = open(config(server, "S")).await;
    complete(&bus).await;
    let ids = ids(&bus);
    bus.shutdown().await;
    ids
}

pub(super) async fn complete(bus: &JetStream) {
    let mut fill = bus.fill();
    let complete = fill.wait_for(|fill| *fill == Fill::Complete);
    tokio::time::timeout(Duration::from_secs(60), complete).await.expect("never complete").unwrap();
}

async fn stale(bus: &JetStream) -> String {
    let mut fill = bus.fill();
    let stale = fill.wait_for(|fill| matches!(fill, Fill::Stale { .. }));
    match &*tokio::time::timeout(Duration::from_secs(60), stale).await.expect("never stale").unwrap() {
        Fill::Stale { reason } => reason.clone(),
        other => panic!("{other:?}"),
    }
}

fn assert_once(ids: &BTreeMap<u64, String>, expected: usize) {
    let distinct: std::collections::BTreeSet<_> = ids.values().collect();
    assert_eq!((ids.len(), distinct.len()), (expected, expected), "{ids:?}");
}

pub(super) fn batch(prefix: &str, count: usize) -> Vec<NewEvent> {
    (0..count).map(|n| event(&format!("{prefix}{n}"))).collect()
}

async fn a_lost_answer(version: &'static str) {
    let server = Server::start(version).await;
    let proxy = Proxy::start(server.socket()).await;
    let bus = open(Config { urls: vec![proxy.url()], ..config(&server, "S") }).await;
    bus.append(batch("before", 3), None).await.unwrap();
    // Sees every answer of the server, to whomever.
    let mut answers = server.context().await.client().subscribe("_INBOX.>").await.unwrap();
    for round in 0..3 {
        let events = batch(&format!("r{round}-"), 5);
        proxy.mute();
        let append = tokio::spawn({
            let (bus, events) = (Arc::clone(&bus), events.clone());
            async move { bus.append(events, None).await }
        });
        // Not only stored: the answer has been sent to the connection that loses it.
        let lost = async {
            while !answers.next().await.unwrap().payload.windows(8).any(|part| part == b"\"batch\":") {}
        };
        tokio::time::timeout(Duration::from_secs(30), lost).await.unwrap();
        server.wait_for_messages("S", 3 + 5 * (round + 1)).await;
        proxy.reset();
        let error = append.await.unwrap().expect_err("an answer came");
        assert!(error.retryable(), "{error}");
        let answers = insist(&bus, events).await;
        assert!(answers.iter().all(|answer| matches!(answer, Appended::Known(_))), "{answers:?}");
    }
    assert_once(&ids(&bus), 18);
    assert_eq!(ids_in_stream(&server).await, ids(&bus));
    bus.shutdown().await;
}

on_both!(a_lost_answer_stores_once, a_lost_answer);

async fn killed_server(version: &'static str) {
    let mut server = Server::start(version).await;
    let bus = open(config(&server, "S")).await;
    let appender = tokio::spawn({
        let bus = Arc::clone(&bus);
        async move {
            for n in 0..60 {
                insist(&bus, batch(&format!("b{n}-"), 20)).await;
            }
        }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.restart().await;
    }
    appender.await.unwrap();
    assert_once(&ids(&bus), 1200);
    assert_eq!(ids_in_stream(&server).await, ids(&bus));
    complete(&bus).await;
    // The last append may have been answered before the last kill.
    let healthy = async {
        while bus.health().unwritable.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), healthy).await.expect("it is writable again");
    bus.shutdown().await;
}

on_both!(a_server_killed_while_appending_costs_and_doubles_nothing, killed_server);

async fn racing_gateways(version: &'static str) {
    let server = Server::start(version).await;
    let (one, two) = (open(config(&server, "S")).await, open(config(&server, "S")).await);
    let run = |bus: Arc<JetStream>| {
        tokio::spawn(async move {
            let mut stored = 0;
            for n in 0..30 {
                let answers = insist(&bus, batch(&format!("b{n}-"), 7)).await;
                stored += answers.iter().filter(|answer| matches!(answer, Appended::Stored(_))).count();
            }
            stored
        })
    };
    let (first, second) = (run(Arc::clone(&one)), run(Arc::clone(&two)));
    assert_eq!(first.await.unwrap() + second.await.unwrap(), 210);
    assert_once(&ids(&one), 210);
    assert_eq!(one.log().incarnation(), two.log().incarnation());
    complete(&two).await;
    assert_eq!(ids_in_stream(&server).await, ids(&one));
    for bus in [one, two] {
        bus.shutdown().await;
    }
}

on_both!(racing_gateways_store_once_and_stamp_in_order, racing_gateways);

async fn beyond_the_window(version: &'static str) {
    let server = Server::start(version).await;
    let cache = tempfile::tempdir().unwrap();
    let config = Config {
        duplicate_window: Duration::from_millis(100),
        cache_path: Some(cache.path().to_owned()),
        ..config(&server, "S")
    };
    let bus = open(config.clone()).await;
    let stored = bus.append(batch("e", 5), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let known: Vec<_> = stored
        .into_iter()
        .map(|answer| match answer {
            Appended::Stored(seq) | Appended::Known(seq) => Appended::Known(seq),
        })
        .collect();
    assert_eq!(bus.append(batch("e", 5), None).await.unwrap(), known);
    bus.shutdown().await;
    for cache_path in [config.cache_path.clone(), None] {
        let bus = open(Config { cache_path, ..config.clone() }).await;
        assert_eq!(insist(&bus, batch("e", 5)).await, known);
        bus.shutdown().await;
    }
}

on_both!(ids_are_known_longer_than_the_servers_window, beyond_the_window);

/// The server knows ids that no event of the stream has: by a message that is none, by one that was removed.
async fn phantoms(version: &'static str) {
    let server = Server::start(version).await;
    let context = server.context().await;
    for (stream, window) in
        [("S", Config::new(vec![], Chance::seeded(1)).duplicate_window), ("T", LONG_WINDOW)]
    {
        let bus = open(Config { duplicate_window: window, ..config(&server, stream) }).await;
        let control = format!("{}.ctl.other", stream.to_lowercase());
        for (n, size) in [1, 3].into_iter().enumerate() {
            let name = format!("e{n}-");
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("{name}0"));
            let sent = context.publish_with_headers(control.clone(), headers, "".into()).await.unwrap();
            sent.await.unwrap();
            context.get_stream(stream).await.unwrap().purge().filter(&control).await.unwrap();
            let began = std::time::Instant::now();
            let answers =
                bus.append(batch(&name, size), None).await.expect("waited until the window was over");
            assert!(answers.iter().all(|answer| matches!(answer, Appended::Stored(_))), "{answers:?}");
            assert!(began.elapsed() < 3 * window, "{:?}", began.elapsed());
            assert!(window < LONG_WINDOW || began.elapsed() > window / 2, "nothing was refused");
        }
        let found = context.get_stream(stream).await.unwrap();
        for (seq, id) in ids(&bus) {
            let message = found.get_raw_message(seq).await.unwrap();
            assert_eq!(message.headers.get("Nats-Msg-Id").unwrap().as_str(), id, "as other readers have it");
        }
        bus.shutdown().await;
    }
}

on_both!(an_id_that_only_the_server_remembers_is_stored_once_it_forgets, phantoms);

async fn consumer_deleted(version: &'static str) {
    let server = Server::start(version).await;
    let bus = open(config(&server, "S")).await;
    for n in 0..4 {
        insist(&bus, batch(&format!("b{n}-"), 3)).await;
        assert_eq!(server.delete_consumers("S").await, 1, "each gateway has one consumer");
    }
    insist(&bus, batch("last", 3)).await;
    assert_once(&ids(&bus), 15);
    bus.shutdown().await;
    assert_eq!(server.delete_consumers("S").await, 0, "a stopped gateway leaves its consumer behind");
}

on_both!(a_deleted_consumer_is_made_again, consumer_deleted);

/// Sequences that hold nothing, or nothing for us, don't stop anything.
async fn holes(version: &'static str) {
    let server = Server::start(version).await;
    let bus = open(config(&server, "S")).await;
    let context = server.context().await;
    bus.append(batch("a", 3), None).await.unwrap();
    // Not an event, another subject of the stream, and a last message that is removed again.
    context.publish("s.events.x.-.-", "garbage".into()).await.unwrap().await.unwrap();
    bus.append(batch("b", 1), None).await.unwrap();
    context.publish("s.ctl.other", "x".into()).await.unwrap().await.unwrap();
    bus.append(batch("c", 1), None).await.unwrap();
    let stream = context.get_stream("S").await.unwrap();
    for n in 0..2 {
        context.publish("s.ctl.other", "x".into()).await.unwrap().await.unwrap();
        // Single messages can't be deleted; a subject can be emptied.
        stream.purge().filter("s.ctl.other").await.unwrap();
        insist(&bus, batch(&format!("d{n}"), 1)).await;
    }
    assert_once(&ids(&bus), 7);
    // A gateway that begins where everything behind an event has been removed knows that it is complete.
    context.publish("s.ctl.other", "x".into()).await.unwrap().await.unwrap();
    stream.purge().filter("s.ctl.other").await.unwrap();
    let late = open(config(&server, "S")).await;
    insist(&late, batch("e", 1)).await;
    assert_once(&ids(&late), 8);
    for bus in [bus, late] {
        bus.shutdown().await;
    }
}

on_both!(sequences_without_an_event_stop_nothing, holes);

async fn stream_deleted(version: &'static str) {
    let server = Server::start(version).await;
    let cache = tempfile::tempdir().unwrap();
    let config = Config { cache_path: Some(cache.path().to_owned()), ..config(&server, "S") };
    let bus = open(config.clone()).await;
    bus.append(batch("a", 3), None).await.unwrap();
    let cursor = bus.log().cursor_at(2);
    server.context().await.delete_stream("S").await.unwrap();
    let error = bus.append(batch("b", 1), None).await.unwrap_err();
    assert!(error.retryable(), "{error}");
    until(|| bus.health().unwritable.is_some()).await;
    // Somebody makes it again.
    let other = open(Config { cache_path: None, ..config.clone() }).await;
    insist(&other, batch("x", 5)).await;
    stale(&bus).await;
    assert!(bus.append(batch("b", 1), None).await.unwrap_err().retryable());
    assert_eq!(ids(&bus).len(), 3, "what readers have seen stays until the bus is opened again");
    bus.shutdown().await;
    let again = open(config).await;
    insist(&again, batch("b", 1)).await;
    assert_once(&ids(&again), 6);
    assert_eq!(again.log().check(cursor), Err(CursorState::OtherIncarnation));
    for bus in [other, again] {
        bus.shutdown().await;
    }
}

on_both!(a_stream_deleted_and_made_again_is_another_history, stream_deleted);

async fn store_wiped(version: &'static str) {
    let mut server = Server::start(version).await;
    let cache = tempfile::tempdir().unwrap();
    let config = Config { cache_path: Some(cache.path().to_owned()), ..config(&server, "S") };
    let bus = open(config.clone()).await;
    bus.append(batch("a", 3), None).await.unwrap();
    let cursor = bus.log().cursor_at(2);
    bus.shutdown().await;
    server.kill().await;
    std::fs::remove_dir_all(server.store()).unwrap();
    server.restart().await;
    let bus = open(config).await;
    assert_eq!(bus.log().check(cursor), Err(CursorState::OtherIncarnation));
    assert!(matches!(bus.append(batch("a", 3), None).await.unwrap()[0], Appended::Stored(_)));
    bus.shutdown().await;
}

on_both!(a_wiped_store_is_another_history, store_wiped);

async fn mirror_deleted(version: &'static str) {
    let server = Server::start(version).await;
    let cache = tempfile::tempdir().unwrap();
    let config = Config { cache_path: Some(cache.path().to_owned()), ..config(&server, "S") };
    let bus = open(config.clone()).await;
    for n in 0..5 {
        bus.append(batch(&format!("b{n}-"), 100), None).await.unwrap();
    }
    let (before, cursor) = (ids(&bus), bus.log().cursor_at(250));
    assert!(matches!(
        JetStream::open(config.clone(), clock::system()).await,
        Err(error) if error.to_string().contains("in use by another simcast process")
    ));
    bus.shutdown().await;
    for deleted in [None, Some("S/mirror.json"), Some("S/log"), Some("S")] {
        if let Some(deleted) = deleted {
            let path = cache.path().join(deleted);
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }
        let bus = open(config.clone()).await;
        if deleted.is_none() {
            assert_eq!(bus.log().bounds().events, 500, "a copy that is there is used");
        }
        complete(&bus).await;
        assert_eq!(ids(&bus), before);
        assert_eq!(bus.log().check(cursor), Ok(250));
        assert!(matches!(bus.append(batch("b0-", 1), None).await.unwrap()[..], [Appended::Known(1)]));
        bus.shutdown().await;
    }
}

on_both!(a_deleted_mirror_is_built_again, mirror_deleted);

/// A stream whose first messages are gone: what lies before them is gone, not missing.
async fn old_messages_removed(version: &'static str) {
    let server = Server::start(version).await;
    let cache = tempfile::tempdir().unwrap();
    let config = Config { cache_path: Some(cache.path().to_owned()), ..config(&server, "S") };
    let bus = open(config.clone()).await;
    bus.append(batch("a", 10), None).await.unwrap();
    let cursor = bus.log().cursor_at(3);
    bus.shutdown().await;
    let other = open(Config { cache_path: None, ..config.clone() }).await;
    complete(&other).await;
    other.append(batch("b", 10), None).await.unwrap();
    let stream = server.context().await.get_stream("S").await.unwrap();
    stream.purge().sequence(16).await.unwrap();
    insist(&other, batch("c", 1)).await;
    let bus = open(config.clone()).await;
    complete(&bus).await;
    assert_eq!(ids(&bus).keys().copied().collect::<Vec<_>>(), [16, 17, 18, 19, 20, 21]);
    assert_eq!(bus.log().check(cursor), Err(CursorState::Expired));
    // All of it.
    stream.purge().await.unwrap();
    bus.shutdown().await;
    let fresh = open(Config { cache_path: None, ..config.clone() }).await;
    complete(&fresh).await;
    assert_eq!((ids(&fresh).len(), fresh.log().bounds().last_seq), (0, 21));
    assert_eq!(insist(&fresh, batch("d", 1)).await, [Appended::Stored(22)]);
    for bus in [other, fresh] {
        bus.shutdown().await;
    }
}

on_both!(what_the_stream_removed_is_gone_and_not_missing, old_messages_removed);

/// A gateway that stops while others wait answers them.
async fn closed(version: &'static str) {
    let server = Server::start(version).await;
    let bus = open(config(&server, "S")).await;
    bus.append(batch("a", 3), None).await.unwrap();
    let appends: Vec<_> = (0..20)
        .map(|n| {
            let bus = Arc::clone(&bus);
            tokio::spawn(async move { bus.append(batch(&format!("b{n}-"), 50), None).await })
        })
        .collect();
    bus.shutdown().await;
    let mut stored = 3;
    for append in appends {
        match append.await.unwrap() {
            Ok(answers) => stored += answers.len(),
            Err(error) => assert!(matches!(error, AppendError::Closed), "{error}"),
        }
    }
    assert!(ids(&bus).len() >= stored, "what was acknowledged is readable");
    assert!(matches!(bus.append(batch("c", 1), None).await, Err(AppendError::Closed)));
    bus.shutdown().await;
}

on_both!(a_closed_gateway_says_so, closed);

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() { copy_directory(&from, &to) } else { std::fs::copy(from, to).map(drop).unwrap() }
    }
}

/// The server comes back with an older copy of its store. `online`: the gateway runs all the while.
async fn regression(version: &'static str, online: bool) {
    let mut server = Server::start(version).await;
    let (cache, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = Config { cache_path: Some(cache.path().to_owned()), ..config(&server, "S") };
    let bus = open(config.clone()).await;
    bus.append(batch("a", 3), None).await.unwrap();
    server.stop().await;
    copy_directory(&server.store(), backup.path());
    server.restart().await;
    insist(&bus, batch("b", 3)).await;
    let (kept, lost, beyond) = (bus.log().cursor_at(2), bus.log().cursor_at(5), bus.log().cursor_at(6));
    if !online {
        bus.shutdown().await;
    }
    server.kill().await;
    std::fs::remove_dir_all(server.store()).unwrap();
    copy_directory(backup.path(), &server.store());
    server.restart().await;
    let other = open(Config { cache_path: None, ..config.clone() }).await;
    complete(&other).await;
    // One event lies where another one was, and the stream may be longer than it ever was.
    insist(&other, batch("x", if online { 2 } else { 7 })).await;
    if online {
        stale(&bus).await;
        assert!(bus.append(batch("y", 1), None).await.unwrap_err().retryable());
        bus.shutdown().await;
    }
    let bus = open(config).await;
    complete(&bus).await;
    insist(&bus, batch("y", 1)).await;
    assert_eq!(ids_in_stream(&server).await, ids(&bus));
    assert_eq!(bus.log().check(kept), Ok(2));
    assert_eq!(bus.log().check(lost), Err(CursorState::Regressed));
    assert_eq!(bus.log().check(beyond), Err(CursorState::Regressed));
    for bus in [other, bus] {
        bus.shutdown().await;
    }
}

async fn regression_online(version: &'static str) {
    regression(version, true).await;
}

async fn regression_offline(version: &'static str) {
    regression(version, false).await;
}

on_both!(a_stream_that_went_back_under_a_gateway_is_noticed, regression_online);
on_both!(a_stream_that_went_back_while_it_was_down_is_noticed, regression_offline);

async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never holds");
}
