//! Erasing on real servers: from the stream, from every gateway's copy, whichever of them is away, and nothing is taken
//! for a stream that went back.

use super::{faults::complete, *};
use crate::{
    bus::conformance::event,
    event::{Predicate, StoredEvent},
    log::{Direction, ReadRequest},
};

const GONE: &str = "8901234567890123456";
const STAYS: &str = "8901234567890123472";

fn of(id: &str, iccid: &str) -> NewEvent {
    let mut new = event(id);
    new.event.iccid = Iccid::parse(iccid).ok();
    new
}

fn batch(iccid: &str, ids: std::ops::Range<u32>) -> Vec<NewEvent> {
    ids.map(|n| of(&format!("{}-{n}", &iccid[17..]), iccid)).collect()
}

fn ids(log: &Log) -> Vec<String> {
    let request = ReadRequest {
        from: log.begins_at().saturating_sub(1),
        direction: Direction::Forward,
        predicate: &Predicate::unfiltered(),
        limit: 10_000,
        max_bytes: usize::MAX,
    };
    let page = log.read(request).unwrap();
    assert_eq!(page.holes, []);
    let id = |event: &StoredEvent| event.keys().unwrap().id.to_owned();
    page.events.iter().map(id).collect()
}

/// Files under a directory that hold a text.
pub(crate) fn files_with(directory: &std::path::Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if memchr::memmem::find(&std::fs::read(&path).unwrap(), text.as_bytes()).is_some() {
            found.push(path);
        }
    }
    found
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One gateway erases while a second runs and a third is away; a fourth fills its copy afterwards.
async fn everywhere(version: &'static str) {
    let mut server = Server::start(version).await;
    let directory = tempfile::tempdir().unwrap();
    let on_disk =
        |name: &str| Config { cache_path: Some(directory.path().join(name)), ..config(&server, "S") };
    let one = open(on_disk("one")).await;
    complete(&one).await;
    one.append(batch(STAYS, 0..5), None).await.unwrap();
    one.append(batch(GONE, 0..40), None).await.unwrap();
    let (two, three) = (open(on_disk("two")).await, open(on_disk("three")).await);
    for bus in [&two, &three] {
        complete(bus).await;
    }
    // The newest of all are the SIM's, more than are looked for in the stream.
    one.append(batch(STAYS, 5..6), None).await.unwrap();
    one.append(batch(GONE, 40..70), None).await.unwrap();
    let last = one.log().bounds().last_seq;
    for bus in [&two, &three] {
        bus.mirror.evaluated().wait_for(|evaluated| *evaluated >= last).await.unwrap();
    }
    three.shutdown().await;
    assert!(!files_with(&directory.path().join("three"), GONE).is_empty());
    let cursors: Vec<_> = (1..=last).map(|seq| one.log().cursor_at(seq)).collect();
    let counts = one.log().quarter_counts(None).unwrap();

    let mut elsewhere = two.erased_elsewhere().unwrap();
    assert!(two.erased_elsewhere().is_none());
    let erased = one.erase(&Iccid::parse(GONE).unwrap()).await.unwrap();
    assert_eq!(erased, Erased { events: 70, ..Erased::default() });
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), elsewhere.recv()).await.unwrap().unwrap(), GONE);
    let left: Vec<String> = batch(STAYS, 0..6).into_iter().map(|new| new.event.id).collect();
    until("the second gateway erased it", || ids(two.log()) == left).await;
    let context = server.context().await;
    let state = context.get_stream("S").await.unwrap().cached_info().state.clone();
    assert_eq!((state.messages, state.last_sequence), (6, last));

    // Whoever looks at the stream again, or for the first time, finds nothing amiss.
    let three = open(on_disk("three")).await;
    let four = open(on_disk("four")).await;
    server.delete_consumers("S").await;
    for bus in [&one, &two, &three, &four] {
        complete(bus).await;
        bus.mirror.evaluated().wait_for(|evaluated| *evaluated >= last).await.unwrap();
        assert_eq!(ids(bus.log()), left);
        for (seq, cursor) in (1..).zip(&cursors) {
            assert_eq!(bus.log().check(*cursor), Ok(seq));
        }
        assert_eq!(bus.log().quarter_counts(None).unwrap(), counts);
        assert!((0..70).all(|n| bus.log().find(&format!("56-{n}")).is_some()));
        assert_eq!(*bus.fill().borrow(), Fill::Complete);
    }
    assert_eq!(four.log().damage().borrow().len(), 0);
    let again = four.append(batch(GONE, 0..70), None).await.unwrap();
    assert!(again.iter().all(|answer| matches!(answer, Appended::Known(_))), "{again:?}");
    let later = three.append(batch(GONE, 70..71), None).await.unwrap();
    assert!(matches!(later[..], [Appended::Stored(_)]), "{later:?}");
    one.erase(&Iccid::parse(GONE).unwrap()).await.unwrap();
    for bus in [&two, &three, &four] {
        until("what came later is erased too", || ids(bus.log()) == left).await;
    }
    for bus in [one, two, three, four] {
        bus.shutdown().await;
    }
    assert_eq!(files_with(directory.path(), GONE), Vec::<PathBuf>::new());
    // What the server keeps of it is its own matter; docs/PRIVACY.md tells what was seen here.
    let purged = files_with(&server.store(), GONE).len();
    server.stop().await;
    server.restart().await;
    let restarted = files_with(&server.store(), GONE).len();
    eprintln!(
        "{version}: files of the server that hold it after the purge: {purged}, after a restart: {restarted}"
    );
}

on_both!(a_sim_is_erased_from_the_stream_and_from_every_copy, everywhere);

/// Without the permission to purge, all else is done, and what is left is said with what to run.
async fn refused(version: &'static str) {
    let deny = "{ publish: { deny: [\"$JS.API.STREAM.PURGE.>\"] } }";
    let server = Server::start_with(server::Options {
        more: format!(
            "accounts {{ A {{ jetstream: enabled, users: [ {{ user: a, password: a, permissions: {deny} }} ] }} }}\n"
        ),
        login: "nats://a:a@".to_owned(),
        ..server::Options::new(version)
    })
    .await;
    let bus = open(config(&server, "S")).await;
    complete(&bus).await;
    bus.append(batch(GONE, 0..3), None).await.unwrap();
    let erased = bus.erase(&Iccid::parse(GONE).unwrap()).await.unwrap();
    assert_eq!(erased.events, 3);
    let last = bus.log().bounds().last_seq;
    let run = format!("nats stream purge S --subject='s.events.*.{GONE}.*' --seq={}", last + 1);
    assert!(erased.left[0].cure.contains(&run), "{erased:?}");
    // A copy that is made anew does not show it all the same.
    bus.shutdown().await;
    let bus = open(config(&server, "S")).await;
    complete(&bus).await;
    assert_eq!(ids(bus.log()), [""; 0]);
    bus.shutdown().await;
}

on_both!(a_purge_that_is_refused_leaves_nothing_readable_and_is_said, refused);
