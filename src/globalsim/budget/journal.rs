//! What a restart must know of the slots of the process before it.
//!
//! One small file with a fixed place for each slot, overwritten where it is: it never grows and is never rewritten,
//! so there is no moment at which a crash could find it half done. It is written, not fsynced: the system keeps what
//! a killed process wrote. What it may lose in a reboot is told by the boot id in the header, and then the whole
//! allowance counts as used.
//!
//! Times are noted by two clocks, the wall clock and the time since boot. The shorter of the two intervals counts, so
//! a wall clock that is set forward frees nothing early, and one that is set back only holds slots longer.
//!
//! Layout, little-endian. Header, 32 bytes: CRC32C of the rest, version u32, boot id 16 bytes, zeros. Slot, 32 bytes:
//! CRC32C of the rest, state u8 (0 free, 1 taken, 2 answered), class u8, zeros u16, wall clock i64 and time since boot
//! i64, both in milliseconds, zeros. A slot that can't be read counts as taken.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use super::{BudgetError, Class, HOLD};
use crate::clock::SharedClock;

const RECORD_BYTES: usize = 32;
const VERSION: u32 = 0x3142_4353;
const UNKNOWN: i64 = i64::MIN;

/// A larger file is not ours.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The machine's boot: which one it is, and the time since.
#[derive(Clone)]
pub(super) struct Boot {
    /// None where the system does not tell: each start is then taken for a reboot.
    pub id: Option<[u8; 16]>,
    pub uptime: Arc<dyn Fn() -> Option<Duration> + Send + Sync>,
}

impl std::fmt::Debug for Boot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Boot").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Boot {
    /// As Linux tells it.
    pub fn system() -> Self {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let digest = |text: String| {
            let mut id = [0; 16];
            id.copy_from_slice(&Sha256::digest(text.trim().as_bytes())[..16]);
            id
        };
        let uptime = || {
            let text = fs::read_to_string("/proc/uptime").ok()?;
            let seconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
            Duration::try_from_secs_f64(seconds).ok()
        };
        Self { id: id.map(digest), uptime: Arc::new(uptime) }
    }
}

/// A slot that is not free yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub index: u32,
    pub class: Option<Class>,
    /// How long it stays held.
    pub left: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Taken,
    Answered,
}

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    clock: SharedClock,
    boot: Boot,
}

impl Journal {
    /// Opens or makes the file; gives the slots that are not free yet. `slots` is the whole allowance.
    pub fn open(
        path: PathBuf,
        slots: u32,
        clock: SharedClock,
        boot: Boot,
    ) -> Result<(Self, Vec<Found>), BudgetError> {
        let file = lock(&path)?;
        let mut journal = Self { file, clock, boot };
        let found = journal
            .recover(slots, &path)
            .map_err(|error| BudgetError::Journal { path, why: error.to_string() })?;
        Ok((journal, found))
    }

    fn recover(&mut self, slots: u32, path: &Path) -> io::Result<Vec<Found>> {
        let mut bytes = Vec::new();
        (&mut self.file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        let fresh = bytes.is_empty();
        let found = self.found(&bytes, slots);
        // Room for all slots now, so that a full disk can't get between a request and its note.
        let room = (slots as usize + 1) * RECORD_BYTES;
        if bytes.len() < room {
            let padding = vec![0; room - bytes.len() / RECORD_BYTES * RECORD_BYTES];
            self.write_at(bytes.len() / RECORD_BYTES, &padding)?;
        }
        // Requests of a process that is gone end now; the next restart must not count them from its own start.
        for slot in found.iter().filter(|slot| slot.left == HOLD) {
            self.answered(slot.index, slot.class)?;
        }
        // Last: a start that is cut off before this finds the old header again.
        let header = self.header();
        self.write_at(0, &header)?;
        if fresh {
            // After a reboot a lost file would look like the first start.
            self.file.sync_all()?;
            sync_parent(path)?;
        }
        Ok(found)
    }

    /// How long each slot of a file that nobody uses stays held; changes nothing. None where there is no file.
    pub fn look(path: &Path, slots: u32, clock: &SharedClock) -> io::Result<Option<Vec<Duration>>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut journal = Self { file, clock: Arc::clone(clock), boot: Boot::system() };
        let mut bytes = Vec::new();
        (&mut journal.file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(Some(journal.found(&bytes, slots).into_iter().map(|slot| slot.left).collect()))
    }

    /// The slots that are not free yet, of all that the file holds.
    fn found(&self, bytes: &[u8], slots: u32) -> Vec<Found> {
        let ours = self.boot.id.is_some() && bytes.get(..RECORD_BYTES) == Some(self.header().as_slice());
        if bytes.is_empty() {
            Vec::new()
        } else if ours {
            self.still_held(bytes.get(RECORD_BYTES..).unwrap_or_default())
        } else {
            let records = bytes.len().div_ceil(RECORD_BYTES).saturating_sub(1) as u32;
            (0..slots.max(records)).map(|index| Found { index, class: None, left: HOLD }).collect()
        }
    }

    fn still_held(&self, bytes: &[u8]) -> Vec<Found> {
        let (wall, uptime) = self.times();
        let elapsed = |since: i64, now: i64| match (since, now) {
            (UNKNOWN, _) | (_, UNKNOWN) => u64::MAX,
            (since, now) => u64::try_from(now.saturating_sub(since)).unwrap_or(0),
        };
        let read = |(index, record): (usize, &[u8])| {
            let slot = |class, left| Found { index: index as u32, class, left };
            match decode(record) {
                Some((State::Free, ..)) => None,
                Some((State::Answered, class, then, then_up)) => {
                    let passed = elapsed(then, wall).min(elapsed(then_up, uptime));
                    let left = HOLD.checked_sub(Duration::from_millis(passed))?;
                    Some(slot(class, left))
                }
                Some((State::Taken, class, ..)) => Some(slot(class, HOLD)),
                None => Some(slot(None, HOLD)),
            }
        };
        bytes.chunks(RECORD_BYTES).enumerate().filter_map(read).collect()
    }

    pub fn taken(&mut self, index: u32, class: Option<Class>) -> io::Result<()> {
        self.note(index, State::Taken, class)
    }

    pub fn answered(&mut self, index: u32, class: Option<Class>) -> io::Result<()> {
        self.note(index, State::Answered, class)
    }

    /// Makes every later write fail, or work again.
    #[cfg(test)]
    pub fn set_writable(&mut self, path: &Path, writable: bool) -> io::Result<()> {
        self.file = OpenOptions::new().read(true).write(writable).open(path)?;
        Ok(())
    }

    fn note(&mut self, index: u32, state: State, class: Option<Class>) -> io::Result<()> {
        let (wall, uptime) = self.times();
        let mut record = [0; RECORD_BYTES];
        record[4] = state as u8;
        record[5] = class.map_or(u8::MAX, |class| class as u8);
        record[8..16].copy_from_slice(&wall.to_le_bytes());
        record[16..24].copy_from_slice(&uptime.to_le_bytes());
        seal(&mut record);
        self.write_at(index as usize + 1, &record)
    }

    fn write_at(&mut self, record: usize, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start((record * RECORD_BYTES) as u64))?;
        self.file.write_all(bytes)
    }

    fn times(&self) -> (i64, i64) {
        let uptime = (self.boot.uptime)().and_then(|up| i64::try_from(up.as_millis()).ok());
        (self.clock.now().as_millisecond(), uptime.unwrap_or(UNKNOWN))
    }

    fn header(&self) -> [u8; RECORD_BYTES] {
        let mut header = [0; RECORD_BYTES];
        header[4..8].copy_from_slice(&VERSION.to_le_bytes());
        header[8..24].copy_from_slice(&self.boot.id.unwrap_or_default());
        seal(&mut header);
        header
    }
}

fn lock(path: &Path) -> Result<File, BudgetError> {
    let failed = |error: io::Error| BudgetError::Journal { path: path.to_owned(), why: error.to_string() };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BudgetError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn seal(record: &mut [u8; RECORD_BYTES]) {
    let crc = crc32c::crc32c(&record[4..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
}

/// State, class, wall clock, time since boot; None where the record is damaged.
fn decode(record: &[u8]) -> Option<(State, Option<Class>, i64, i64)> {
    let record: &[u8; RECORD_BYTES] = record.try_into().ok()?;
    if *record == [0; RECORD_BYTES] {
        return Some((State::Free, None, 0, 0));
    }
    let word = |at: usize| record.get(at..at + 8).and_then(|b| b.try_into().ok()).map(i64::from_le_bytes);
    let crc = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
    let state = match record[4] {
        1 => State::Taken,
        2 => State::Answered,
        _ => return None,
    };
    let class = Class::ALL.get(usize::from(record[5])).copied();
    (crc == crc32c::crc32c(&record[4..])).then_some((state, class, word(8)?, word(16)?))
}
