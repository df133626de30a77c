//! Where the roll-ups lie: a file for each day and a small one that says which of them count.
//!
//! A day is written as a new file under the next number; the state file, written last and atomically, names the number
//! of each day together with the position in the log. So a crash at any step leaves the old state or the new one,
//! never a day that was counted twice.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::{
    codec::{Damaged, Reader, Writer},
    count::Skipped,
    data::Data,
    sessions::{Known, Sessions},
};
use crate::{event::Cursor, views::megabytes::Megabytes};

/// Name of the state file.
const STATE: &str = "state";
const MAGIC: &[u8; 8] = b"simcrst\x01";

/// What the state file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Everything up to here is counted.
    pub cursor: Option<Cursor>,
    /// When the first event that was counted was appended.
    pub since: Option<Timestamp>,
    /// When the last one was.
    pub as_of: Option<Timestamp>,
    /// What could not be counted.
    pub skipped: Skipped,
    /// Number of each day's file, by days since the epoch.
    pub files: BTreeMap<i32, u64>,
    /// Days of which a file was damaged: days since the epoch.
    pub damaged: Vec<i32>,
    /// Sessions.
    pub sessions: Sessions,
}

/// A directory, or memory.
#[derive(Debug)]
pub struct Store {
    directory: Option<PathBuf>,
    memory: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Writes until the disk refuses.
    #[cfg(test)]
    pub(super) fuse: Mutex<Option<usize>>,
}

impl Store {
    /// Opens or makes the directory; None keeps everything in memory.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn open(directory: Option<PathBuf>) -> io::Result<Self> {
        if let Some(directory) = &directory {
            fs::create_dir_all(directory)?;
        }
        Ok(Self {
            directory,
            memory: Mutex::default(),
            #[cfg(test)]
            fuse: Mutex::default(),
        })
    }

    /// What was committed last; nothing where that is damaged. Removes what does not count.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn load(&self) -> io::Result<Kept> {
        let kept = match self.read(STATE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error),
            Ok(bytes) => decode(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "the roll-ups are made again from what the log still holds");
                Kept::default()
            }),
        };
        let wanted: Vec<_> = kept.files.iter().map(|(day, number)| name(*day, *number)).collect();
        for found in self.list()? {
            if found != STATE && !wanted.contains(&found) {
                self.remove(&found);
            }
        }
        Ok(kept)
    }

    /// The bytes of a day's file.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn day(&self, day: i32, number: u64) -> io::Result<Vec<u8>> {
        self.read(&name(day, number))
    }

    /// Writes a day's file; it counts once [`Store::commit`] names it.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn write_day(&self, day: i32, number: u64, bytes: Vec<u8>) -> io::Result<()> {
        self.write(&name(day, number), bytes)
    }

    /// Makes a state the one that counts, and removes the files that `before` named and it does not.
    ///
    /// # Errors
    /// Where the disk refuses; the old state may then still be the one that counts.
    pub fn commit(&self, kept: &Kept, before: &BTreeMap<i32, u64>) -> io::Result<()> {
        self.write(STATE, encode(kept))?;
        for (day, number) in before.iter().filter(|(day, number)| kept.files.get(day) != Some(number)) {
            self.remove(&name(*day, *number));
        }
        Ok(())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        let names = self.list().unwrap_or_default();
        match &self.directory {
            None => self.memory.lock().values().map(|bytes| bytes.len() as u64).sum(),
            Some(directory) => {
                names.iter().filter_map(|name| fs::metadata(directory.join(name)).ok()).map(|m| m.len()).sum()
            }
        }
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        match &self.directory {
            Some(directory) => fs::read(directory.join(name)),
            None => self.memory.lock().get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }

    fn write(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        #[cfg(test)]
        if let Some(left) = &mut *self.fuse.lock() {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the test's disk is full"))?;
        }
        match &self.directory {
            Some(directory) => write_atomically(directory, name, &bytes),
            None => {
                self.memory.lock().insert(name.to_owned(), bytes);
                Ok(())
            }
        }
    }

    /// A file that can't be removed now is removed by the next start.
    fn remove(&self, name: &str) {
        match &self.directory {
            Some(directory) => {
                if let Err(error) = fs::remove_file(directory.join(name)) {
                    tracing::warn!(%error, name, "a file of the roll-ups can't be removed");
                }
            }
            None => drop(self.memory.lock().remove(name)),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let Some(directory) = &self.directory else {
            return Ok(self.memory.lock().keys().cloned().collect());
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }
}

fn name(day: i32, number: u64) -> String {
    format!("{day}-{number}.day")
}

fn write_atomically(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

fn encode(kept: &Kept) -> Vec<u8> {
    let mut file = Writer::new(MAGIC);
    file.text(&kept.cursor.map(|cursor| cursor.to_string()).unwrap_or_default());
    for time in [kept.since, kept.as_of] {
        file.signed(time.map_or(i64::MIN, Timestamp::as_microsecond));
    }
    let Skipped { positions, out_of_range, sessions } = kept.skipped;
    [positions, out_of_range, sessions].iter().for_each(|count| file.unsigned(u128::from(*count)));
    file.unsigned(kept.files.len() as u128);
    for (day, number) in &kept.files {
        file.signed(i64::from(*day));
        file.unsigned(u128::from(*number));
    }
    file.unsigned(kept.damaged.len() as u128);
    kept.damaged.iter().for_each(|day| file.signed(i64::from(*day)));
    file.signed(kept.sessions.forgotten_us.unwrap_or(i64::MAX));
    file.unsigned(u128::from(kept.sessions.readings));
    file.unsigned(kept.sessions.known.len() as u128);
    for (key, known) in &kept.sessions.known {
        file.unsigned(*key);
        let Data { upload, download, total } = known.data;
        [upload, download, total].iter().for_each(|amount| file.signed(amount.millionths()));
        file.signed(known.start_us);
        file.unsigned(u128::from(known.seen));
    }
    file.finish()
}

fn decode(bytes: &[u8]) -> Result<Kept, Damaged> {
    let mut file = Reader::new(bytes, MAGIC)?;
    let mut kept = Kept::default();
    match file.text()? {
        "" => {}
        text => kept.cursor = Some(Cursor::parse(text).map_err(|_| Damaged)?),
    }
    let time = |us: i64| Timestamp::from_microsecond(us).ok().filter(|_| us != i64::MIN);
    kept.since = time(file.signed()?);
    kept.as_of = time(file.signed()?);
    kept.skipped = Skipped { positions: file.word()?, out_of_range: file.word()?, sessions: file.word()? };
    for _ in 0..file.count()? {
        let day = i32::try_from(file.signed()?).map_err(|_| Damaged)?;
        kept.files.insert(day, file.word()?);
    }
    for _ in 0..file.count()? {
        kept.damaged.push(i32::try_from(file.signed()?).map_err(|_| Damaged)?);
    }
    kept.sessions.forgotten_us = Some(file.signed()?).filter(|us| *us != i64::MAX);
    kept.sessions.readings = file.word()?;
    for _ in 0..file.count()? {
        let key = file.unsigned()?;
        let mut amount = || file.signed().map(Megabytes::from_millionths);
        let data = Data { upload: amount()?, download: amount()?, total: amount()? };
        let known = Known { data, start_us: file.signed()?, seen: file.word()? };
        kept.sessions.known.insert(key, known);
    }
    Ok(kept)
}
