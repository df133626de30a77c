//! An embedded log as it lies on the disk, read and never changed: what a migration copies.
//!
//! The directory's lock is held all along, so no gateway can go on with the log meanwhile. What a crash left half done
//! is repaired in memory only, in the log as in the small state.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{OpenError, kv::Kv, lock_directory};
use crate::{
    bus::{Bucket, Entry},
    log::Log,
};

/// Why there is no snapshot. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing to copy.
    #[error(
        "{path} holds no log: set bus.embedded.path to the directory that the gateway has used so far (a relative path counts from the working directory)"
    )]
    NoLog {
        /// The directory.
        path: PathBuf,
    },
    /// A gateway has it.
    #[error(
        "{path} is in use by another simcast process: stop the gateway (or the other migration), and keep it stopped until the migration has ended"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It can't be read.
    #[error("{path} can't be read: {source}; run this as the user that the gateway runs as")]
    Unreadable {
        /// The directory or the file in it.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The key-value file is damaged or of another version.
    #[error(
        "{path} can't be opened: {reason}; start the gateway once on the embedded log, or run the version of simcast that wrote it"
    )]
    KeyValue {
        /// The file.
        path: PathBuf,
        /// What redb says.
        reason: String,
    },
}

/// See the head of this file.
#[derive(Debug)]
pub struct Snapshot {
    log: Arc<Log>,
    entries: BTreeMap<Bucket, Vec<Entry>>,
    /// Held while the directory is ours.
    _lock: File,
}

impl Snapshot {
    /// Locks a data directory and reads it. Blocks on the disk.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is in the way and what to do.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| SnapshotError::Unreadable { path, source }
        };
        let log_path = path.join("log");
        // Before anything is locked: that makes what is missing.
        if !Log::is_in(&log_path).map_err(unreadable(&log_path))? {
            return Err(SnapshotError::NoLog { path: path.to_owned() });
        }
        let lock = lock_directory(path).map_err(|error| match error {
            OpenError::Locked { path } => SnapshotError::InUse { path },
            OpenError::Unusable { path, source } => SnapshotError::Unreadable { path, source },
            OpenError::KeyValue { path, reason } => SnapshotError::KeyValue { path, reason },
        })?;
        let log = Log::open_untouched(&log_path).map_err(unreadable(&log_path))?;
        let kv_path = path.join("state.redb");
        let broken = |error: &dyn std::fmt::Display| SnapshotError::KeyValue {
            path: kv_path.clone(),
            reason: error.to_string(),
        };
        let bytes = match std::fs::read(&kv_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(unreadable(&kv_path))?,
        };
        let kv = Kv::open_copy(&bytes).map_err(|error| broken(&error))?;
        let mut entries = BTreeMap::new();
        // Leases are of gateways that run.
        for bucket in [Bucket::State, Bucket::Endpoints, Bucket::Cursors] {
            entries.insert(bucket, kv.list(bucket, "").map_err(|error| broken(&error))?);
        }
        Ok(Self { log: Arc::new(log), entries, _lock: lock })
    }

    /// The log; nothing may be appended.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// What each bucket holds, by key.
    pub fn entries(&self) -> &BTreeMap<Bucket, Vec<Entry>> {
        &self.entries
    }

    /// What a key holds.
    pub fn get(&self, bucket: Bucket, key: &str) -> Option<&Entry> {
        self.entries.get(&bucket)?.iter().find(|entry| entry.key == key)
    }

    /// Has another value copied than the one that lies there.
    pub fn replace(&mut self, bucket: Bucket, key: &str, value: bytes::Bytes) {
        let entries = self.entries.entry(bucket).or_default();
        match entries.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => entry.value = value,
            None => entries.push(Entry { key: key.to_owned(), revision: 0, value }),
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
    }
}
