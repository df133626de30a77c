//! The conformance suite on both kinds of storage, and what the embedded backend promises beyond it.

use super::*;
use crate::{
    bus::conformance::{event, run_all},
    clock, guarantees,
};

fn on_disk(path: &Path) -> Config {
    Config { path: Some(path.to_owned()), ..Config::default() }
}

#[tokio::test]
async fn conforms_in_memory() {
    let kept = run_all(async || Embedded::in_memory(clock::system()) as Arc<dyn Bus>).await.unwrap();
    guarantees::conforms("in memory", &kept);
}

#[tokio::test]
async fn conforms_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    let kept = run_all(async || {
        next.set(next.get() + 1);
        let path = dir.path().join(next.get().to_string());
        Embedded::open(on_disk(&path), clock::system()).unwrap() as Arc<dyn Bus>
    })
    .await
    .unwrap();
    guarantees::conforms("on disk", &kept);
}

/// Each look at it is a minute earlier.
#[derive(Debug)]
struct BackwardClock(std::sync::atomic::AtomicI64);

impl clock::Clock for BackwardClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.fetch_sub(60, Ordering::Relaxed)).unwrap()
    }
}

#[tokio::test]
async fn a_clock_that_steps_back_does_not_take_the_log_along() {
    let clock = Arc::new(BackwardClock(1_700_000_000.into()));
    run_all(async || Embedded::in_memory(Arc::clone(&clock) as SharedClock) as Arc<dyn Bus>).await.unwrap();
    let bus = Embedded::in_memory(clock);
    let ids: Vec<_> = (0..64).map(|n| n.to_string()).collect();
    let appends = ids.iter().map(|id| bus.append(vec![event(id)], None));
    for answer in futures_util::future::join_all(appends).await {
        answer.unwrap();
    }
    let stamps: Vec<_> =
        (1..=64).map(|seq| bus.log().get(seq).unwrap().unwrap().keys().unwrap().observed_us).collect();
    assert!(stamps.is_sorted(), "{stamps:?}");
}

#[tokio::test]
async fn events_and_their_ids_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Embedded::open(on_disk(dir.path()), clock::system()).unwrap();
    let batch = vec![event("a"), event("b")];
    assert_eq!(bus.append(batch.clone(), None).await.unwrap(), [Appended::Stored(1), Appended::Stored(2)]);
    let (incarnation, cursor) = (bus.log().incarnation(), bus.log().cursor_at(2));
    drop(bus);
    let bus = Embedded::open(on_disk(dir.path()), clock::system()).unwrap();
    assert_eq!(bus.log().incarnation(), incarnation);
    assert_eq!(bus.log().check(cursor), Ok(2));
    assert_eq!(bus.append(batch, None).await.unwrap(), [Appended::Known(1), Appended::Known(2)]);
    assert_eq!(bus.append(vec![event("c")], None).await.unwrap(), [Appended::Stored(3)]);
}

/// Nobody tidies up by hand: the writer asks for it by the clock that stamps the events.
#[tokio::test(start_paused = true)]
async fn retention_goes_by_the_clock_that_stamps_events() {
    let start: Timestamp = "2025-11-05T11:30:00Z".parse().unwrap();
    let clock: SharedClock = Arc::new(clock::TokioClock::starting_at(start));
    let config = Config { segment_bytes: 3_000, retention_days: 7, ..Config::default() };
    let bus = Embedded::open(config, Arc::clone(&clock)).unwrap();
    let days_kept = |bus: &Embedded| {
        let first = bus.log().bounds().first_time.unwrap();
        clock.now().duration_since(first).as_hours() / 24
    };
    for hour in 0..24 * 10 {
        bus.append(vec![event(&format!("e{hour}"))], None).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3_600)).await;
    }
    // The thread that keeps house is outside the paused time.
    for _ in 0..500 {
        if days_kept(&bus) <= 7 {
            break;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(10))).await.unwrap();
    }
    assert_eq!(days_kept(&bus), 7);
    let counted: u64 = bus.log().day_counts(None).unwrap().values().sum();
    assert!(counted == 0, "events without a time count on no day");
    assert!(
        bus.append(vec![event("e60")], None).await.unwrap() == [Appended::Known(61)],
        "ids are kept longer"
    );
}

#[tokio::test]
async fn an_event_too_long_is_refused_as_bad() {
    let bus = Embedded::in_memory(clock::system());
    let mut long = event("long");
    long.event.details = Some("x".repeat(crate::log::BODY_BYTES_MAX).into());
    let error = bus.append(vec![event("short"), long], None).await.unwrap_err();
    assert!(matches!(error, AppendError::BadEvent { index: 1, .. }), "{error}");
    assert_eq!(bus.log().bounds().events, 0);
}

#[tokio::test]
async fn a_second_process_is_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let first = Embedded::open(on_disk(dir.path()), clock::system()).unwrap();
    let error = Embedded::open(on_disk(dir.path()), clock::system()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }) && error.retryable(), "{error}");
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("bus.embedded.path"), "{error}");
    first.shutdown().await;
    Embedded::open(on_disk(dir.path()), clock::system()).unwrap();
}

#[test]
fn a_path_that_is_no_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = Embedded::open(on_disk(&file), clock::system()).unwrap_err();
    assert!(matches!(error, OpenError::Unusable { .. }) && !error.retryable(), "{error}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn state_and_fences_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Embedded::open(on_disk(dir.path()), clock::system()).unwrap();
    let revision = bus.kv_put(Bucket::State, "floor", Bytes::from_static(b"7")).await.unwrap();
    let deleted = bus.kv_create(Bucket::State, "gone", Bytes::new()).await.unwrap();
    bus.kv_delete(Bucket::State, "gone", deleted).await.unwrap();
    let fence = bus.lease("poller", Duration::from_secs(1)).await.unwrap().fence;
    drop(bus);

    let bus = Embedded::open(on_disk(dir.path()), clock::system()).unwrap();
    let entry = bus.kv_get(Bucket::State, "floor").await.unwrap().unwrap();
    assert_eq!((entry.revision, &entry.value[..]), (revision, &b"7"[..]));
    assert!(bus.kv_create(Bucket::State, "gone", Bytes::new()).await.unwrap() > deleted + 1);
    let newer = bus.lease("poller", Duration::from_secs(1)).await.unwrap().fence;
    assert!(newer > fence);
    assert!(matches!(bus.append(vec![event("e")], Some(fence)).await, Err(AppendError::Fenced)));
}

#[tokio::test]
async fn nobody_else_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let bus = Embedded::open(on_disk(&path), clock::system()).unwrap();
    bus.append(vec![event("e")], None).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in std::fs::read_dir(&path).unwrap() {
        let file = file.unwrap().path();
        assert_eq!(mode(&file), if file.is_dir() { 0o700 } else { 0o600 }, "{}", file.display());
    }
}

/// Everything below a directory.
pub(in crate::bus) fn files(directory: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found
}

#[tokio::test]
async fn a_snapshot_of_what_a_kill_left_changes_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (live, killed) = (dir.path().join("live"), dir.path().join("killed"));
    let bus = Embedded::open(on_disk(&live), clock::system()).unwrap();
    bus.append((0..50).map(|n| event(&format!("e{n}"))).collect(), None).await.unwrap();
    for key in ["b", "a", "gone"] {
        bus.kv_put(Bucket::State, key, key.into()).await.unwrap();
    }
    let gone = bus.kv_get(Bucket::State, "gone").await.unwrap().unwrap();
    bus.kv_delete(Bucket::State, "gone", gone.revision).await.unwrap();
    bus.lease("poller", Duration::from_secs(1)).await.unwrap();
    std::fs::create_dir_all(killed.join("log")).unwrap();
    for (path, bytes) in files(&live) {
        std::fs::write(killed.join(path.strip_prefix(&live).unwrap()), bytes).unwrap();
    }
    let before = files(&killed);
    let mut snapshot = snapshot::Snapshot::open(&killed).unwrap();
    assert!(matches!(snapshot::Snapshot::open(&killed), Err(snapshot::SnapshotError::InUse { .. })));
    assert_eq!((snapshot.log().bounds().events, snapshot.log().incarnation()), (50, bus.log().incarnation()));
    let keys = |snapshot: &snapshot::Snapshot, bucket| -> Vec<_> {
        snapshot.entries()[&bucket].iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect()
    };
    assert_eq!(keys(&snapshot, Bucket::State), [("a".to_owned(), "a".into()), ("b".to_owned(), "b".into())]);
    assert!(!snapshot.entries().contains_key(&Bucket::Lease) && keys(&snapshot, Bucket::Cursors).is_empty());
    snapshot.replace(Bucket::State, "b", "new".into());
    snapshot.replace(Bucket::State, "0", "first".into());
    assert_eq!(snapshot.get(Bucket::State, "b").unwrap().value, "new");
    assert_eq!(snapshot.entries()[&Bucket::State][0].key, "0");
    drop(snapshot);
    assert_eq!(files(&killed), before);
    // It is a log as before.
    let again = Embedded::open(on_disk(&killed), clock::system()).unwrap();
    assert_eq!(again.log().bounds().events, 50);
    again.shutdown().await;
    bus.shutdown().await;
}

/// What redb deletes stays in free pages; after an erasure no file has it, and the store is what it was.
#[tokio::test]
async fn an_erasure_leaves_nothing_in_free_pages_and_the_store_as_it_was() {
    let gone = Iccid::parse("8901234567890123456").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bus = Embedded::open(on_disk(dir.path()), clock::system()).unwrap();
    let fence = bus.lease("poller", Duration::from_secs(1)).await.unwrap().fence;
    for n in 0..50 {
        let value = format!("{n} {gone}");
        bus.kv_put(Bucket::Cursors, &format!("key{n}"), value.into()).await.unwrap();
    }
    for n in 0..50 {
        bus.kv_put(Bucket::Cursors, &format!("key{n}"), n.to_string().into()).await.unwrap();
    }
    bus.kv_put(Bucket::State, &format!("sim/{gone}"), Bytes::from_static(b"x")).await.unwrap();
    let file = dir.path().join("state.redb");
    let holds = || memchr::memmem::find(&std::fs::read(&file).unwrap(), gone.as_str().as_bytes()).is_some();
    assert!(holds());
    let before = bus.kv_list(Bucket::Cursors, "").await.unwrap();
    let mut watch = bus.kv_watch(Bucket::State, "sim/").await.unwrap();
    let erased = bus.erase(&gone).await.unwrap();
    assert_eq!((erased.keys, holds()), (1, false));
    assert_eq!(bus.kv_list(Bucket::Cursors, "").await.unwrap(), before);
    assert!(matches!(watch.recv().await, Some(Change::Put(_))));
    assert_eq!(watch.recv().await, Some(Change::Synced));
    assert_eq!(watch.recv().await, Some(Change::Deleted { key: format!("sim/{gone}") }));
    let last = before.iter().map(|entry| entry.revision).max().unwrap();
    assert_eq!(bus.kv_put(Bucket::Cursors, "new", Bytes::new()).await.unwrap(), last + 1);
    bus.shutdown().await;
    assert!(bus.erase(&gone).await.is_err(), "a closed bus says so");
    // What a crash leaves of the new file is cleared away.
    std::fs::write(dir.path().join("state.redb.tmp"), gone.as_str()).unwrap();
    drop(bus);
    let bus = Embedded::open(on_disk(dir.path()), clock::system()).unwrap();
    assert!(!dir.path().join("state.redb.tmp").exists());
    assert!(bus.lease("poller", Duration::from_secs(1)).await.unwrap().fence > fence);
    assert_eq!(bus.kv_list(Bucket::Cursors, "key").await.unwrap(), before);
    assert!(!holds());
}
