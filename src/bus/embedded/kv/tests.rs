//! A store whose disk fails.

use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

use super::*;

/// Memory whose syncs fail from a moment on.
#[derive(Debug, Default)]
struct Failing {
    memory: InMemoryBackend,
    failed: Arc<AtomicBool>,
}

impl StorageBackend for Failing {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        self.memory.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.memory.write(offset, data)
    }
}

#[test]
fn a_failed_write_is_refused_and_the_next_one_opens_the_file_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let kv = Kv::open(Some(&path)).unwrap();
    kv.write(Bucket::State, "kept".into(), Op::Put(Bytes::from_static(b"1"))).unwrap();
    let backend = Failing::default();
    let failed = Arc::clone(&backend.failed);
    *kv.db.write() = Db::Open(builder().create_with_backend(backend).unwrap());
    let mut watch = kv.watch(Bucket::State, "").unwrap();
    assert_eq!(watch.try_recv(), Ok(Change::Synced));

    failed.store(true, Ordering::Relaxed);
    let error = kv.write(Bucket::State, "k".into(), Op::Create(Bytes::new())).unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(kv.get(Bucket::State, "k").is_err(), "a read must not take an unknown state for an answer");
    kv.write(Bucket::State, "k".into(), Op::Create(Bytes::new())).unwrap();
    assert_eq!(kv.get(Bucket::State, "kept").unwrap().unwrap().value, b"1"[..]);
    assert!(matches!(watch.try_recv(), Ok(Change::Put(entry)) if entry.key == "k"));
    assert!(watch.try_recv().is_err(), "a refused write was announced");
}
