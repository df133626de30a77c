//! A real directory that is read and never changed: what is written stays in memory.
//!
//! Recovery repairs what it finds. Who copies a log must see it repaired, and must leave the only copy as it is.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};

use super::{Disk, DiskFile, Mapped, MemoryDisk, OsDisk, OsFile};

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Untouched {
    directory: PathBuf,
    /// Reads only.
    below: OsDisk,
    /// What was created since.
    above: MemoryDisk,
    /// Files below that were removed since.
    gone: Mutex<BTreeSet<String>>,
}

impl Untouched {
    /// The directory must exist.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::read_dir(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            below: OsDisk { directory: directory.to_owned() },
            above: MemoryDisk::default(),
            gone: Mutex::default(),
        })
    }

    fn is_above(&self, name: &str) -> bool {
        self.above.open(name).is_ok()
    }

    fn check_there(&self, name: &str) -> io::Result<()> {
        if self.gone.lock().contains(name) { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }
}

impl Disk for Untouched {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names: BTreeSet<String> = self.below.list()?.into_iter().collect();
        names.retain(|name| !self.gone.lock().contains(name));
        names.extend(self.above.list()?);
        Ok(names.into_iter().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.above.create(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        if self.is_above(name) {
            return self.above.open(name);
        }
        self.check_there(name)?;
        let below = OsFile(File::open(self.directory.join(name))?);
        let len = below.len()?;
        Ok(Arc::new(Changed { below, state: RwLock::new(State { kept: len, above: Vec::new() }) }))
    }

    fn map(&self, name: &str) -> io::Result<Mapped> {
        if self.is_above(name) {
            return self.above.map(name);
        }
        self.check_there(name)?;
        self.below.map(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if self.is_above(from) {
            return self.above.rename(from, to);
        }
        let bytes = self.map(from)?;
        self.above.create(to)?.write_at((*bytes).as_ref(), 0)?;
        self.remove(from)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.above.remove(name)?;
        self.gone.lock().insert(name.to_owned());
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A file below: so many of its bytes, and what was written behind them.
#[derive(Debug)]
struct Changed {
    below: OsFile,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    kept: u64,
    above: Vec<u8>,
}

impl DiskFile for Changed {
    fn len(&self) -> io::Result<u64> {
        let state = self.state.read();
        Ok(state.kept + state.above.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state.read();
        let below = (state.kept.saturating_sub(offset) as usize).min(buffer.len());
        let (from_below, from_above) = buffer.split_at_mut(below);
        let read = self.below.read_at(from_below, offset)?;
        if read < from_below.len() {
            return Ok(read);
        }
        let start = (offset + read as u64 - state.kept.min(offset + read as u64)) as usize;
        let rest = state.above.get(start..).unwrap_or_default();
        let more = rest.len().min(from_above.len());
        from_above[..more].copy_from_slice(&rest[..more]);
        Ok(read + more)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.write();
        // Recovery cuts before it writes, so nothing is written over what lies below.
        let start = offset.checked_sub(state.kept).ok_or(io::ErrorKind::Unsupported)? as usize;
        let end = start + bytes.len();
        if state.above.len() < end {
            state.above.resize(end, 0);
        }
        state.above[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.write();
        let above = len.saturating_sub(state.kept) as usize;
        state.above.truncate(above);
        state.kept = state.kept.min(len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
