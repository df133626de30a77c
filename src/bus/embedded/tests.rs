//! The conformance suite on both kinds of storage, and what the embedded backend promises beyond it.

use super::*;
use crate::{
    bus::conformance::{event, run_all},
    clock,
};

fn on_disk(path: &Path) -> Config {
    Config { path: Some(path.to_owned()), ..Config::default() }
}

#[tokio::test]
async fn conforms_in_memory() {
    run_all(async || Embedded::in_memory(clock::system()) as Arc<dyn Bus>).await.unwrap();
}

#[tokio::test]
async fn conforms_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    run_all(async || {
        next.set(next.get() + 1);
        let path = dir.path().join(next.get().to_string());
        Embedded::open(on_disk(&path), clock::system()).unwrap() as Arc<dyn Bus>
    })
    .await
    .unwrap();
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

#[cfg(unix)]
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
