//! Where the mirror lies: a directory that may be deleted at any time.
//!
//! A small file beside the log says of which stream it is, and in which incarnation. A directory without that file,
//! with another one, or that the log refuses to open is emptied and filled again: nothing in it is the only copy of
//! anything. A lock keeps a second process out, as for the embedded log.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::log::{Log, Options};

/// Grows with every change of what lies in the directory.
const VERSION: u32 = 1;
/// What a log in memory keeps at most, whatever the retention says.
const MEMORY_BYTES: u64 = 256 << 20;
const MEMORY_SEGMENT_BYTES: u64 = 8 << 20;

/// Of what the log beside it is a copy.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Label {
    version: u32,
    stream: String,
    incarnation: String,
}

/// Why the directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::bus::jetstream) enum PlaceError {
    /// Another process has it.
    #[error("in use by another simcast process")]
    Locked,
    /// The disk refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The directory of one stream's mirror, locked; without a path it is memory.
#[derive(Debug)]
pub(in crate::bus::jetstream) struct Place {
    directory: Option<PathBuf>,
    /// Held while the directory is ours.
    lock: Mutex<Option<File>>,
    stream: String,
}

impl Place {
    /// Creates the directory, for its owner only, and locks it.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub(in crate::bus::jetstream) fn open(cache: Option<&Path>, stream: &str) -> Result<Self, PlaceError> {
        let directory = cache.map(|cache| cache.join(stream));
        let mut held = None;
        if let Some(directory) = &directory {
            create_private(directory)?;
            held = Some(lock(&directory.join("lock"))?);
        }
        Ok(Self { directory, lock: Mutex::new(held), stream: stream.to_owned() })
    }

    /// Lets another process have the directory.
    pub(in crate::bus::jetstream) fn release(&self) {
        self.lock.lock().take();
    }

    /// The log, emptied first where it is of another stream or incarnation, or can't be read.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub(in crate::bus::jetstream) fn log(&self, options: Options) -> io::Result<Log> {
        let Some(directory) = &self.directory else {
            return Ok(Log::in_memory_with(Options {
                segment_bytes: options.segment_bytes.min(MEMORY_SEGMENT_BYTES),
                retention_bytes: options.retention_bytes.min(MEMORY_BYTES),
                ..options
            }));
        };
        let label = Label {
            version: VERSION,
            stream: self.stream.clone(),
            incarnation: format!("{:016x}", options.incarnation),
        };
        let path = directory.join("log");
        if read_label(directory).as_ref() == Some(&label) {
            match Log::open(&path, options) {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!(%error, "the local copy of the stream can't be read; it is built again");
                }
                opened => return opened,
            }
        }
        self.forget()?;
        let log = Log::open(&path, options)?;
        write_label(directory, &label)?;
        Ok(log)
    }

    /// Deletes the copy; the log that lies there must not be used any more.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub(in crate::bus::jetstream) fn forget(&self) -> io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        // The label first: half a log must not pass for a whole one.
        for removed in [fs::remove_file(label_path(directory)), fs::remove_dir_all(directory.join("log"))] {
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sees to it that the next start does not use the copy, whatever becomes of this process.
    pub(in crate::bus::jetstream) fn distrust(&self) {
        if let Some(directory) = &self.directory
            && let Err(error) = fs::remove_file(label_path(directory))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the local copy of the stream can't be marked for building again");
        }
    }
}

/// Incarnation of the stream that a copy is of; None where there is no copy of that stream.
pub(in crate::bus::jetstream) fn incarnation(cache: &Path, stream: &str) -> Option<u64> {
    let label = read_label(&cache.join(stream)).filter(|label| label.stream == stream)?;
    u64::from_str_radix(&label.incarnation, 16).ok()
}

fn label_path(directory: &Path) -> PathBuf {
    directory.join("mirror.json")
}

fn read_label(directory: &Path) -> Option<Label> {
    serde_json::from_slice(&fs::read(label_path(directory)).ok()?).ok()
}

fn write_label(directory: &Path, label: &Label) -> io::Result<()> {
    let temporary = directory.join("mirror.json.tmp");
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    io::Write::write_all(&mut file, &serde_json::to_vec(label)?)?;
    file.sync_all()?;
    fs::rename(&temporary, label_path(directory))
}

fn create_private(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

fn lock(path: &Path) -> Result<File, PlaceError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(PlaceError::Locked),
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}
