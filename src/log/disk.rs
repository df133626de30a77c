//! The few file operations that the log is built on, so that the same code runs on a directory, in memory, and in
//! tests on a disk that fails or loses power at any step.

mod memory;
mod untouched;

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use memory::MemoryDisk;
pub(crate) use untouched::Untouched;

/// Bytes of a file that does not change any more.
pub(crate) type Mapped = Box<dyn AsRef<[u8]> + Send + Sync>;

/// One flat directory.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates a file, emptied if it exists.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// The bytes of a file that nobody writes any more.
    fn map(&self, name: &str) -> io::Result<Mapped>;
    /// Renames over whatever has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; one that is not there is removed already.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync(&self) -> io::Result<()>;
}

/// One file.
pub(crate) trait DiskFile: Send + Sync + fmt::Debug {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`, or as much as there is; gives how much.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`; after an error any part may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes durable.
    fn sync(&self) -> io::Result<()>;
}

/// Writes a whole file so that either all of it or nothing is there after a crash.
pub(crate) fn write_atomically(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}{TEMPORARY}");
    let file = disk.create(&temporary)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    disk.rename(&temporary, name)?;
    disk.sync()
}

/// Ends the names of files that are not finished.
pub(crate) const TEMPORARY: &str = ".tmp";

/// A real directory. Only its owner may read what it holds.
#[derive(Debug)]
pub(crate) struct OsDisk {
    directory: PathBuf,
}

impl OsDisk {
    /// Creates the directory if it is missing.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options
    }
}

impl Disk for OsDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is no text is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = Self::options().create(true).truncate(true).open(self.directory.join(name))?;
        Ok(Arc::new(OsFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OsFile(Self::options().open(self.directory.join(name))?)))
    }

    fn map(&self, name: &str) -> io::Result<Mapped> {
        let file = File::open(self.directory.join(name))?;
        if file.metadata()?.len() == 0 {
            return Ok(Box::new(Vec::new()));
        }
        #[expect(
            unsafe_code,
            reason = "memory maps are unsafe where the file may be cut while mapped; the \
            directory is locked, and finished sidecars are only ever unlinked"
        )]
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Box::new(map))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

#[derive(Debug)]
struct OsFile(File);

impl DiskFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset + filled as u64;
            match std::os::unix::fs::FileExt::read_at(&self.0, &mut buffer[filled..], at) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, bytes, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
