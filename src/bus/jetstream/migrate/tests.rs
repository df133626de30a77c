//! Migrations on real servers: whole, interrupted anywhere, and refused.

use std::{collections::BTreeMap, path::Path};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::*;
use crate::{
    bus::{
        Bus, Fill,
        conformance::event,
        embedded::{self, Embedded, snapshot::SnapshotError, tests::files},
        jetstream::{
            JetStream,
            tests::{
                on_both,
                server::{self, NEWEST, OLDEST, Server},
            },
            tests_support,
        },
    },
    clock,
    event::{Cursor, Event, Filter, FilterLimits, Iccid, Predicate, Provenance, Via},
    log::{Copied, Direction, Log, Options, ReadRequest},
};

const INCARNATION: u64 = 0xABCD_0123;

fn entry(n: u64) -> crate::log::Entry {
    let mut event = Event::new(format!("evt_{n}"), Arc::from("/globalsim/test"), "connection");
    event.iccid = Iccid::parse(&format!("89470000000000000{:02}", n % 7)).ok();
    event.device_id = n.is_multiple_of(3).then(|| format!("Pumpe {n} \u{e5}*>"));
    let at = Timestamp::from_microsecond(1_700_000_000_000_000 + n as i64).unwrap();
    event.provenance = n.is_multiple_of(2).then(|| Provenance::new(Via::Sweep, at, at, None));
    let stamp = Timestamp::from_millisecond(clock::system().now().as_millisecond()).unwrap();
    let sealed = event.seal(stamp, SignedDuration::from_secs(300)).unwrap();
    crate::log::Entry { sealed, identity: n * 3, content: n as u32 }
}

fn config_of(path: &Path) -> embedded::Config {
    embedded::Config { path: Some(path.to_owned()), ..embedded::Config::default() }
}

/// A log of events from a sequence on, with some state beside it.
async fn source(path: &Path, first_seq: u64, count: u64) {
    let options = Options { incarnation: INCARNATION, first_seq, ..Options::default() };
    let log = Log::open(&path.join("log"), options).unwrap();
    for from in (0..count).step_by(500) {
        log.append((from..count.min(from + 500)).map(entry).collect()).unwrap();
    }
    log.close().unwrap();
    let bus = Embedded::open(config_of(path), clock::system()).unwrap();
    for (bucket, key) in [
        (Bucket::State, "floor"),
        (Bucket::State, "ledger"),
        (Bucket::Endpoints, "a b/\u{f8}"),
        (Bucket::Cursors, "c/1"),
    ] {
        bus.kv_put(bucket, key, format!("value of {key}").into()).await.unwrap();
    }
    let gone = bus.kv_create(Bucket::State, "gone", "x".into()).await.unwrap();
    bus.kv_delete(Bucket::State, "gone", gone).await.unwrap();
    bus.shutdown().await;
}

/// A migration that is cut as soon as it tells of a step.
async fn cut_at(config: &Config, path: &Path, step: Progress) {
    let reached = Arc::new(Notify::new());
    let tell = {
        let reached = Arc::clone(&reached);
        Arc::new(move |now| {
            if now == step {
                reached.notify_one()
            }
        })
    };
    let cut = migration(config, path, tell).await.unwrap();
    let survey = cut.survey().await.unwrap();
    tokio::select! {
        biased;
        () = reached.notified() => {}
        run = cut.run(&survey) => panic!("{step:?} never came: {run:?}"),
    }
}

fn silent() -> Tell {
    Arc::new(|_| {})
}

async fn migration(config: &Config, path: &Path, tell: Tell) -> Result<Migration, MigrateError> {
    // One that was cut reads on in a thread of its own until it notices, and holds the lock as long.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let snapshot = loop {
        match Snapshot::open(path) {
            Err(SnapshotError::InUse { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => break opened.unwrap(),
        }
    };
    Migration::open(config.clone(), snapshot, path.to_owned(), tell).await
}

async fn migrate(config: &Config, path: &Path) -> (Survey, Report) {
    let migration = migration(config, path, silent()).await.unwrap();
    let survey = migration.survey().await.unwrap();
    let report = migration.run(&survey).await.unwrap();
    (survey, report)
}

async fn gateway(config: Config) -> Arc<JetStream> {
    let bus = JetStream::open(config, clock::system()).await.unwrap();
    let mut fill = bus.fill();
    let complete = fill.wait_for(|fill| *fill == Fill::Complete);
    tokio::time::timeout(Duration::from_secs(30), complete).await.unwrap().unwrap();
    bus
}

/// Everything of a log, by position.
fn all(log: &Log) -> BTreeMap<u64, Option<(bytes::Bytes, u64, u32)>> {
    let (mut found, mut after) = (BTreeMap::new(), log.begins_at() - 1);
    loop {
        let page = log.copy_after(after).unwrap();
        for item in page.items {
            match item {
                Copied::Event(seq, entry) => {
                    drop(found.insert(seq, Some((entry.sealed.body, entry.identity, entry.content))));
                }
                Copied::Hole(first, last) => found.extend((first..=last).map(|seq| (seq, None))),
            }
        }
        if page.at_end {
            return found;
        }
        after = page.next;
    }
}

/// What a reader is given: ids and gaps in order.
fn read(log: &Log, predicate: &Predicate) -> Vec<String> {
    let (mut given, mut from) = (Vec::new(), log.begins_at() - 1);
    loop {
        let request =
            ReadRequest { from, direction: Direction::Forward, predicate, limit: 400, max_bytes: usize::MAX };
        let page = log.read(request).unwrap();
        let mut page_given: Vec<_> =
            page.events.iter().map(|event| (event.seq(), event.keys().unwrap().id.to_owned())).collect();
        page_given.extend(page.holes.iter().flat_map(|hole| {
            (hole.first_seq..=hole.last_seq).map(|seq| (seq, format!("{seq} {:?}", hole.reason)))
        }));
        page_given.sort();
        given.extend(page_given.into_iter().map(|(_, text)| text));
        if page.at_end {
            return given;
        }
        from = page.next;
    }
}

/// A log that begins above 1, with a record that the disk has damaged, one found to be, and a segment gone.
async fn whole(version: &'static str) {
    let server = Server::start(version).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let options =
        Options { incarnation: INCARNATION, first_seq: 40, segment_bytes: 100_000, ..Options::default() };
    let log = Log::open(&path.join("log"), options).unwrap();
    for n in 0..2_400 {
        log.append(vec![entry(n)]).unwrap();
        if n % 600 == 599 {
            log.maintain(clock::system().now()).unwrap();
        }
    }
    log.close().unwrap();
    drop(log);
    source(path, 40, 0).await;
    let mut segments: Vec<_> =
        files(path).into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "seg")).collect();
    assert!(segments.len() > 5, "{}", segments.len());
    std::fs::remove_file(&segments.remove(3).0).unwrap();
    for (at, id) in [(0, "\"evt_7\""), (4, "\"evt_")] {
        let (path, bytes) = &mut segments[at];
        let found = bytes.windows(id.len()).position(|window| window == id.as_bytes()).unwrap();
        bytes[found + 3] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    // The second start finds one of them damaged and writes that down.
    let bus = Embedded::open(config_of(path), clock::system()).unwrap();
    bus.append(vec![event("last")], None).await.unwrap();
    read(bus.log(), &Predicate::unfiltered());
    bus.log().maintain(clock::system().now()).unwrap();
    bus.shutdown().await;
    drop(bus);
    let before = files(path);

    let config = tests_support::config(server.url(), "S");
    let (survey, report) = migrate(&config, path).await;
    assert_eq!(files(path), before, "the log was changed");
    let source = Snapshot::open(path).unwrap();
    let bounds = source.log().bounds();
    assert_eq!((survey.first_seq, survey.last_seq), (40, bounds.last_seq));
    assert_eq!((survey.events, survey.unused, survey.keys), (bounds.events, 0, 4));
    assert!(survey.lost > 100, "{survey:?}");
    assert_eq!((report.copied, survey.messages()), (bounds.last_seq - 39, bounds.last_seq - 39));
    let info = server.context().await.get_stream("S").await.unwrap().cached_info().clone();
    let (stored, said) = (info.state.bytes, survey.bytes);
    assert!(stored <= said && said < stored * 5 / 4, "{stored} bytes, said to be {said}");
    assert_eq!(info.config.duplicate_window, config.duplicate_window);

    let cache = tempfile::tempdir().unwrap();
    {
        let bus = gateway(Config { cache_path: Some(cache.path().to_owned()), ..config.clone() }).await;
        assert_eq!(bus.log().incarnation(), INCARNATION);
        assert!(all(bus.log()) == all(source.log()), "the copy is another log");
        let lists = [("iccid", vec!["8947000000000000003".to_owned()])];
        let filtered: Predicate = Filter::build(lists, FilterLimits::default()).unwrap().0.into();
        let everything = Predicate::unfiltered();
        assert!(read(bus.log(), &everything) == read(source.log(), &everything), "readers are given others");
        // Nobody knows any more which filter a lost event matched, so every reader is told.
        let is_event = |text: &String| text.starts_with("evt_");
        let (new, old) = (read(bus.log(), &filtered), read(source.log(), &filtered));
        assert!(new.iter().filter(|one| is_event(one)).eq(old.iter().filter(|one| is_event(one))));
        assert!(old.iter().all(|one| new.contains(one)));
        for seq in 39..=bounds.last_seq {
            let old: Cursor = source.log().cursor_at(seq);
            assert_eq!(bus.log().check(old), Ok(seq), "{seq}");
        }
        // What was lost before is no damage of the copy.
        bus.log().maintain(clock::system().now()).unwrap();
        let lost: u64 = bus.log().damage().borrow().iter().map(crate::log::Damage::positions).sum();
        assert_eq!(lost, survey.lost);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(*bus.fill().borrow(), Fill::Complete);
        for (bucket, entries) in source.entries() {
            let mut have = bus.kv_list(*bucket, "").await.unwrap();
            have.retain(|entry| entry.key != KEY);
            let pairs = |of: &[Entry]| -> Vec<_> {
                of.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect()
            };
            assert_eq!(pairs(&have), pairs(entries));
        }
        // An id that came before is known, and what is new follows.
        let known = bus.log().find("evt_9").unwrap();
        assert_eq!((known.seq, known.identity, known.content), (49, 27, 9));
        bus.append(vec![event("last"), event("new")], None).await.unwrap();
        assert!(bus.log().find("new").unwrap().seq > bounds.last_seq);
        bus.shutdown().await;
    }
    let again = gateway(Config { cache_path: Some(cache.path().to_owned()), ..config.clone() }).await;
    let told: u64 = survey.lost;
    again.log().maintain(clock::system().now()).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(*again.fill().borrow(), Fill::Complete, "a copy that was opened again");
    assert_eq!(all(again.log()).values().filter(|one| one.is_none()).count() as u64, told);
    again.shutdown().await;
    drop(again);
    // Damage of the copy itself is told from what the stream has lost.
    let id = b"\"evt_2300\"";
    let (segment, mut bytes, at) = files(cache.path())
        .into_iter()
        .find_map(|(path, bytes)| {
            let at = bytes.windows(id.len()).position(|window| window == id)?;
            Some((path, bytes, at))
        })
        .unwrap();
    bytes[at + 3] ^= 1;
    std::fs::write(segment, bytes).unwrap();
    let bus = gateway(Config { cache_path: Some(cache.path().to_owned()), ..config.clone() }).await;
    assert!(bus.log().get(2_340).unwrap().is_none(), "the damage was not hit");
    bus.log().maintain(clock::system().now()).unwrap();
    let mut fill = bus.fill();
    let stale = fill.wait_for(|fill| matches!(fill, Fill::Stale { .. }));
    tokio::time::timeout(Duration::from_secs(30), stale).await.unwrap().unwrap();
    bus.shutdown().await;
    let bus = gateway(Config { cache_path: Some(cache.path().to_owned()), ..config.clone() }).await;
    assert_eq!(all(bus.log()).values().filter(|one| one.is_none()).count() as u64, told);
    bus.shutdown().await;
    drop(source);
    let done = migration(&config, path, silent()).await.unwrap();
    assert_eq!(*done.found(), Found::Complete { upto: bounds.last_seq });
}

on_both!(every_position_of_a_log_is_one_of_the_stream, whole);

/// Cut at each step, any number of times; gateways keep out until it is done.
async fn interrupted(version: &'static str) {
    let mut server = Server::start(version).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    source(path, 1, 3_500).await;
    let config = tests_support::config(server.url(), "S");
    let steps = [
        Progress::Copied(1_000),
        Progress::Copied(3_000),
        Progress::Checked(2_000),
        Progress::Checked(3_500),
    ];
    for (n, step) in steps.into_iter().enumerate() {
        cut_at(&config, path, step).await;
        let refused = JetStream::open(config.clone(), clock::system()).await.unwrap_err();
        assert!(matches!(refused, OpenError::Migrating { .. }) && !refused.retryable(), "{refused}");
        if n == 0 {
            // As if it had been cut between the stream and its buckets.
            server.context().await.delete_stream("KV_S_state").await.unwrap();
        }
        if n == 1 {
            server.kill().await;
            server.restart().await;
        }
        let again = migration(&config, path, silent()).await.unwrap();
        let Found::Begun { upto, .. } = again.found() else { panic!("{:?}", again.found()) };
        let at_least = if let Progress::Copied(seq) = step { seq } else { 3_500 };
        assert!(*upto >= at_least, "{upto} after {step:?}");
    }
    // A leftover of an older try in a bucket is put right.
    let store = server.context().await.get_key_value("S_state").await.unwrap();
    store.put("floor", "old".into()).await.unwrap();
    store.put("strange", "old".into()).await.unwrap();
    // The gateway was let go on with the old log in between.
    let bus = Embedded::open(config_of(path), clock::system()).unwrap();
    bus.append(vec![event("between")], None).await.unwrap();
    bus.kv_put(Bucket::State, "ledger", "newer".into()).await.unwrap();
    bus.shutdown().await;
    drop(bus);
    let (survey, report) = migrate(&config, path).await;
    assert_eq!((survey.events, report.copied), (3_501, 1));
    let bus = gateway(config.clone()).await;
    assert_eq!(bus.log().bounds().events, 3_501);
    assert_eq!(bus.log().find("between").unwrap().seq, 3_501);
    assert_eq!(bus.kv_get(Bucket::State, "ledger").await.unwrap().unwrap().value, "newer");
    let keys: Vec<_> = bus.kv_list(Bucket::State, "").await.unwrap().into_iter().map(|e| e.key).collect();
    assert_eq!(keys, ["floor", "ledger", KEY]);
    assert_eq!(bus.kv_get(Bucket::State, "floor").await.unwrap().unwrap().value, "value of floor");
    bus.shutdown().await;
}

on_both!(a_migration_that_is_cut_goes_on_where_it_stopped, interrupted);

/// The server is stopped and killed while a migration is at work.
async fn server_trouble(version: &'static str) {
    let mut server = Server::start(version).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    source(path, 7, 5_000).await;
    let config = tests_support::config(server.url(), "S");
    let reached = Arc::new(Notify::new());
    let tell = {
        let reached = Arc::clone(&reached);
        Arc::new(move |now| {
            if matches!(now, Progress::Copied(2_006) | Progress::Checked(2_000)) {
                reached.notify_one();
            }
        })
    };
    let cut = migration(&config, path, tell).await.unwrap();
    let survey = cut.survey().await.unwrap();
    let trouble = async {
        for _ in 0..2 {
            reached.notified().await;
            server.kill().await;
            server.restart().await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        run = cut.run(&survey) => assert_eq!(run.unwrap().copied, 5_000),
        () = trouble => {}
    }
    let bus = gateway(config).await;
    assert_eq!((bus.log().bounds().events, bus.log().bounds().first_seq), (5_000, 7));
    bus.shutdown().await;
}

on_both!(a_server_that_is_killed_meanwhile_does_no_harm, server_trouble);

/// A user who may do no more than a gateway.
async fn few_permissions(version: &'static str) {
    let deny = "{ publish: { deny: [\"$JS.API.STREAM.UPDATE.>\", \"$JS.API.STREAM.DELETE.>\"] } }";
    let more =
        format!("authorization {{ users: [ {{ user: me, password: secret, permissions: {deny} }} ] }}");
    let options =
        server::Options { more, login: "nats://me:secret@".to_owned(), ..server::Options::new(version) };
    let server = Server::start_with(options).await;
    let directory = tempfile::tempdir().unwrap();
    source(directory.path(), 1, 30).await;
    let config = tests_support::config(server.url(), "S");
    let (_, report) = migrate(&config, directory.path()).await;
    assert_eq!(report.copied, 30);
    let bus = gateway(config).await;
    let drift: Vec<_> = bus.found().drift.iter().map(|one| one.field).collect();
    assert_eq!((drift, bus.log().bounds().events), (vec![], 30));
    bus.shutdown().await;
}

on_both!(a_gateways_permissions_are_enough, few_permissions);

/// Nothing of somebody else is touched, and each refusal says what to do.
async fn refused(version: &'static str) {
    let server = Server::start(version).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let missing = Snapshot::open(&path).unwrap_err();
    assert!(matches!(missing, SnapshotError::NoLog { .. }) && !path.exists(), "{missing}");
    source(&path, 1, 30).await;
    let running = Embedded::open(config_of(&path), clock::system()).unwrap();
    let in_use = Snapshot::open(&path).unwrap_err();
    assert!(in_use.to_string().contains("stop the gateway"), "{in_use}");
    running.shutdown().await;
    drop(running);

    let config = tests_support::config(server.url(), "S");
    let other = gateway(config.clone()).await;
    other.append(vec![event("theirs")], None).await.unwrap();
    other.shutdown().await;
    let foreign = migration(&config, &path, silent()).await.unwrap_err();
    assert!(matches!(foreign, MigrateError::Foreign { .. }), "{foreign}");
    let context = server.context().await;
    assert_eq!(context.get_stream("S").await.unwrap().cached_info().state.messages, 1);
    let plain = async_nats::jetstream::stream::Config {
        name: "P".to_owned(),
        subjects: vec!["p.>".to_owned()],
        ..Default::default()
    };
    context.create_stream(plain).await.unwrap();
    let foreign = migration(&tests_support::config(server.url(), "P"), &path, silent()).await.unwrap_err();
    assert!(foreign.to_string().contains("another program"), "{foreign}");

    // The stream is deleted, its state is not.
    let state = context.get_key_value("S_state").await.unwrap();
    state.put("floor", "theirs".into()).await.unwrap();
    context.delete_stream("S").await.unwrap();
    let in_use = migration(&config, &path, silent()).await.unwrap_err();
    assert!(in_use.to_string().contains("nats kv rm S_state"), "{in_use}");
    assert!(context.get_stream("S").await.is_err(), "nothing was made");

    let small = Config { retention_bytes: 1_000, ..tests_support::config(server.url(), "T") };
    let tight = migration(&small, &path, silent()).await.unwrap().survey().await.unwrap_err();
    assert!(tight.to_string().contains("set bus.nats.retention_bytes"), "{tight}");
    assert!(context.get_stream("T").await.is_err(), "nothing was made");

    // Done, and then a gateway is started on the old log again.
    let config = tests_support::config(server.url(), "T");
    migrate(&config, &path).await;
    let bus = Embedded::open(config_of(&path), clock::system()).unwrap();
    bus.append(vec![event("more")], None).await.unwrap();
    bus.shutdown().await;
    drop(bus);
    let moved = migration(&config, &path, silent()).await.unwrap_err();
    assert!(moved.to_string().contains("up to sequence 30 and has gone on to 31"), "{moved}");
}

on_both!(what_is_in_the_way_is_told_and_left_alone, refused);

/// What somebody else writes to the stream meanwhile is found.
async fn disturbed(version: &'static str) {
    let server = Server::start(version).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    source(path, 1, 2_500).await;
    let config = tests_support::config(server.url(), "S");
    cut_at(&config, path, Progress::Copied(1_000)).await;
    // As far as the batch that was on its way is concerned, whatever became of it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.context().await.publish("s.events.a.b.c", "x".into()).await.unwrap().await.unwrap();
    let again = migration(&config, path, silent()).await.unwrap();
    let survey = again.survey().await.unwrap();
    let mismatch = again.run(&survey).await.unwrap_err();
    assert!(matches!(mismatch, MigrateError::Mismatch { .. }), "{mismatch}");
    drop(again);
    let refused = JetStream::open(config, clock::system()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Migrating { .. }), "{refused}");
}

on_both!(a_copy_that_is_not_the_log_stays_closed, disturbed);

/// A log of which retention has left nothing.
async fn empty(version: &'static str) {
    let server = Server::start(version).await;
    for (first_seq, stream) in [(1, "S"), (500, "T")] {
        let directory = tempfile::tempdir().unwrap();
        source(directory.path(), first_seq, 0).await;
        let config = tests_support::config(server.url(), stream);
        let (survey, _) = migrate(&config, directory.path()).await;
        assert_eq!(survey.messages(), 0);
        let bus = gateway(config.clone()).await;
        bus.append(vec![event("first")], None).await.unwrap();
        assert_eq!(bus.log().find("first").unwrap().seq, first_seq);
        bus.shutdown().await;
        let done = migration(&config, directory.path(), silent()).await.unwrap();
        assert!(matches!(done.found(), Found::Complete { .. }), "{done:?}");
    }
}

on_both!(a_log_without_events_keeps_its_place, empty);

/// What was erased from the log is not in the stream, and is known all the same.
async fn erased(version: &'static str) {
    let server = Server::start(version).await;
    let directory = tempfile::tempdir().unwrap();
    source(directory.path(), 1, 70).await;
    let bus = Embedded::open(config_of(directory.path()), clock::system()).unwrap();
    let gone = Iccid::parse("8947000000000000003").unwrap();
    assert_eq!(bus.erase(&gone).await.unwrap().events, 10);
    let cursors: Vec<_> = (1..=70).map(|seq| bus.log().cursor_at(seq)).collect();
    let counts = bus.log().quarter_counts(None).unwrap();
    bus.shutdown().await;
    let config = tests_support::config(server.url(), "S");
    let (survey, _) = migrate(&config, directory.path()).await;
    assert_eq!((survey.events, survey.lost, survey.unused), (60, 0, 10));
    let bus = gateway(config).await;
    assert_eq!(bus.log().bounds().events, 60);
    for (seq, cursor) in (1..).zip(&cursors) {
        assert_eq!(bus.log().check(*cursor), Ok(seq));
    }
    assert!((0..70).all(|n| bus.log().find(&format!("evt_{n}")).is_some()));
    assert_eq!(bus.log().quarter_counts(None).unwrap(), counts);
    bus.shutdown().await;
}

on_both!(what_was_erased_stays_erased_and_known, erased);
