//! Erasing: the file is written anew from what it holds, so that no free page keeps what was deleted.

use std::{fs, io, path::Path};

use redb::{Database, ReadableDatabase, ReadableTable, TableError};

use super::{COUNTERS, Db, Kv, KvError, Op, open_file, table, unavailable};
use crate::bus::{Bucket, DEVICE_KEY_PREFIX, SIM_KEY_PREFIX, is_of_sim};

/// Every bucket there is.
const BUCKETS: [Bucket; 4] = [Bucket::State, Bucket::Endpoints, Bucket::Cursors, Bucket::Lease];
/// Ends the name of the file while it is written.
const TEMPORARY: &str = "redb.tmp";

impl Kv {
    /// Deletes what is kept of one SIM, under its own key or its device's, and frees the file of whatever was ever deleted where it still
    /// holds the ICCID; gives how many entries were deleted. Writes wait meanwhile.
    pub(in crate::bus::embedded) fn erase(&self, iccid: &str) -> Result<u64, KvError> {
        let mut deleted = 0;
        for prefix in [SIM_KEY_PREFIX, DEVICE_KEY_PREFIX] {
            for listed in self.list(Bucket::State, prefix)? {
                while let Some(entry) =
                    self.get(Bucket::State, &listed.key)?.filter(|entry| is_of_sim(entry, iccid))
                {
                    match self.write(Bucket::State, entry.key, Op::Delete(entry.revision)) {
                        Ok(_) => deleted += 1,
                        // Its writer was faster.
                        Err(KvError::Conflict) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        let Some(path) = self.path.as_deref() else { return Ok(deleted) };
        let _writers = self.watchers.lock();
        let mut db = self.db.write();
        let open = db.get()?;
        if memchr::memmem::find(&fs::read(path).map_err(unavailable)?, iccid.as_bytes()).is_none() {
            return Ok(deleted);
        }
        let temporary = path.with_extension(TEMPORARY);
        let copied = copy(open, &temporary);
        if let Err(error) = copied {
            let _ = fs::remove_file(&temporary);
            return Err(unavailable(error));
        }
        // The old one is closed before the new one gets its name.
        *db = Db::Broken("the file is written anew".to_owned());
        let replaced = replace(&temporary, path);
        *db = match open_file(path) {
            Ok(opened) => Db::Open(opened),
            Err(error) => Db::Broken(error.to_string()),
        };
        replaced.map_err(unavailable)?;
        db.get().map(|_| deleted)
    }
}

/// Removes what a crash left of a file that was written anew.
pub(super) fn tidy(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.with_extension(TEMPORARY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn replace(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)?;
    fs::File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// Writes all that a store holds into a new file, durably.
fn copy(from: &Database, path: &Path) -> Result<(), redb::Error> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let to = open_file(path)?;
    let (read, write) = (from.begin_read()?, to.begin_write()?);
    for bucket in BUCKETS {
        let old = match read.open_table(table(bucket)) {
            Ok(old) => old,
            Err(TableError::TableDoesNotExist(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut new = write.open_table(table(bucket))?;
        for item in old.iter()? {
            let (key, value) = item?;
            new.insert(key.value(), value.value())?;
        }
    }
    match read.open_table(COUNTERS) {
        Ok(old) => {
            let mut new = write.open_table(COUNTERS)?;
            for item in old.iter()? {
                let (key, value) = item?;
                new.insert(key.value(), value.value())?;
            }
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    write.commit()?;
    Ok(())
}
