//! A disk in memory: what a log without a directory lives on, and in tests a disk that keeps apart what was written
//! and what would survive a loss of power, and fails on command.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use parking_lot::{Mutex, RwLock};

use super::{Disk, DiskFile, Mapped};

/// The directory.
#[derive(Default)]
pub(crate) struct MemoryDisk {
    files: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
    #[cfg(test)]
    faults: Arc<faults::Faults>,
    #[cfg(test)]
    durable: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct MemoryFile {
    bytes: RwLock<Vec<u8>>,
    #[cfg(test)]
    durable: RwLock<Vec<u8>>,
    #[cfg(test)]
    unreadable: Mutex<Vec<std::ops::Range<u64>>>,
    #[cfg(test)]
    faults: Arc<faults::Faults>,
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFile").finish_non_exhaustive()
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        #[cfg(test)]
        self.faults.step()?;
        let file = Arc::new(MemoryFile {
            #[cfg(test)]
            faults: Arc::clone(&self.faults),
            ..MemoryFile::default()
        });
        self.files.lock().insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.files.lock().get(name).cloned();
        Ok(file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?)
    }

    fn map(&self, name: &str) -> io::Result<Mapped> {
        let file = self.files.lock().get(name).cloned();
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let bytes = file.bytes.read().clone();
        Ok(Box::new(bytes))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        #[cfg(test)]
        self.faults.step()?;
        let mut files = self.files.lock();
        let file = files.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        #[cfg(test)]
        self.faults.step()?;
        self.files.lock().remove(name);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        {
            self.faults.step()?;
            *self.durable.lock() = self.files.lock().clone();
        }
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.read();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        #[cfg(test)]
        if self.unreadable.lock().iter().any(|bad| bad.start < offset + len as u64 && offset < bad.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        let (bytes, result) = self.faults.write(bytes);
        let mut all = self.bytes.write();
        let end = offset as usize + bytes.len();
        if all.len() < end {
            all.resize(end, 0);
        }
        all[offset as usize..end].copy_from_slice(bytes);
        #[cfg(test)]
        result?;
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        self.faults.step()?;
        self.bytes.write().resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        {
            self.faults.sync()?;
            *self.durable.write() = self.bytes.read().clone();
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod faults {
    //! Failing on command, and losing power.

    use super::*;

    /// What goes wrong next. One disk's calls are numbered from 0.
    #[derive(Debug, Default)]
    pub(crate) struct Faults {
        state: Mutex<State>,
    }

    #[derive(Debug, Default)]
    struct State {
        steps: u64,
        /// From this step on everything fails, as after a loss of power.
        dead_from: Option<u64>,
        /// Bytes that can still be written.
        space: Option<usize>,
        failing_sync: bool,
    }

    impl Faults {
        /// Counts one step.
        pub(super) fn step(&self) -> io::Result<()> {
            let mut state = self.state.lock();
            let dead = state.dead_from.is_some_and(|from| state.steps >= from);
            state.steps += 1;
            if dead { Err(io::Error::other("power is lost")) } else { Ok(()) }
        }

        /// How much of a write happens, and what it answers.
        pub(super) fn write<'a>(&self, bytes: &'a [u8]) -> (&'a [u8], io::Result<()>) {
            if let Err(error) = self.step() {
                return (&[], Err(error));
            }
            let mut state = self.state.lock();
            match &mut state.space {
                Some(space) if *space < bytes.len() => {
                    let fits = std::mem::take(space);
                    (&bytes[..fits], Err(io::ErrorKind::StorageFull.into()))
                }
                Some(space) => {
                    *space -= bytes.len();
                    (bytes, Ok(()))
                }
                None => (bytes, Ok(())),
            }
        }

        pub(super) fn sync(&self) -> io::Result<()> {
            self.step()?;
            if self.state.lock().failing_sync { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
        }
    }

    impl MemoryDisk {
        /// From the given step on everything fails.
        pub(crate) fn lose_power_at(&self, step: u64) {
            self.faults.state.lock().dead_from = Some(step);
        }

        /// How many steps there have been.
        pub(crate) fn steps(&self) -> u64 {
            self.faults.state.lock().steps
        }

        /// Only so many more bytes can be written; None is without bound.
        pub(crate) fn leave_space(&self, bytes: Option<usize>) {
            self.faults.state.lock().space = bytes;
        }

        /// fsync answers EIO, or stops doing so.
        pub(crate) fn fail_sync(&self, failing: bool) {
            self.faults.state.lock().failing_sync = failing;
        }

        /// What a machine finds after a loss of power: synced names and bytes, and of what was not synced the
        /// given share of each file's unsynced tail (in 1/256).
        pub(crate) fn after_power_loss(&self, share: u8) -> Self {
            let mut files = BTreeMap::new();
            for (name, file) in self.durable.lock().iter() {
                let (durable, written) = (file.durable.read().clone(), file.bytes.read().clone());
                let extra = written.len().saturating_sub(durable.len()) * usize::from(share) / 256;
                let mut bytes = durable;
                let start = bytes.len();
                if extra > 0 {
                    bytes.extend_from_slice(&written[start..start + extra]);
                }
                files.insert(name.clone(), bytes);
            }
            Self::holding(files)
        }

        /// A disk that holds these files, all durable.
        pub(crate) fn holding(files: BTreeMap<String, Vec<u8>>) -> Self {
            let disk = Self::default();
            for (name, bytes) in files {
                let file = Arc::new(MemoryFile {
                    durable: RwLock::new(bytes.clone()),
                    bytes: RwLock::new(bytes),
                    faults: Arc::clone(&disk.faults),
                    ..MemoryFile::default()
                });
                disk.files.lock().insert(name, file);
            }
            *disk.durable.lock() = disk.files.lock().clone();
            disk
        }

        /// Changes bits of a file where it lies, under whoever has it open.
        pub(crate) fn flip(&self, name: &str, at: usize, mask: u8) {
            if let Some(file) = self.files.lock().get(name) {
                file.bytes.write()[at] ^= mask;
                if let Some(byte) = file.durable.write().get_mut(at) {
                    *byte ^= mask;
                }
            }
        }

        /// Reads of these bytes of a file answer EIO.
        pub(crate) fn fail_reads(&self, name: &str, bytes: std::ops::Range<u64>) {
            if let Some(file) = self.files.lock().get(name) {
                file.unreadable.lock().push(bytes);
            }
        }

        /// All files as they are written, synced or not: what a killed process leaves.
        pub(crate) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
            self.files.lock().iter().map(|(name, file)| (name.clone(), file.bytes.read().clone())).collect()
        }
    }
}
