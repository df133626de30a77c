//! Opening a log, whatever state its files were left in.
//!
//! The last segment is the one that was being written. A clean stop leaves a sidecar beside it, and then every
//! record it names is known to have been acknowledged: one that can't be read any more is a hole. Without a sidecar
//! the process died: the segment is read through, whole frames are kept, a bad stretch between them is a hole, and
//! what follows the last whole frame is a write that was never acknowledged and is cut off. Earlier segments are
//! only read where their sidecar is missing or its header is damaged.

use std::{collections::BTreeSet, io, sync::Arc};

use super::{
    Options,
    disk::{Disk, DiskFile, TEMPORARY, write_atomically},
    index::{
        live::{Indexed, LiveIndex},
        sidecar::Sidecar,
    },
    record::{Damaged, Frame, Seed, next_frame, u32_at, u64_at},
    retention::retire_files,
    segment::{
        FILE_HEADER_BYTES, FileHeader, Segment, VERSION, file_header, ids_name, read_through, segment_name,
        sidecar_name,
    },
    state::{Active, State},
};
use crate::sabotage::{self, Bug};

const META: &str = "meta";
const META_MAGIC: [u8; 8] = *b"scastmet";

/// What was found on the disk.
pub(crate) struct Recovered {
    pub(crate) incarnation: u64,
    pub(crate) state: State,
}

/// Reads the disk, repairs what a crash left, and gives a log that can be appended to.
pub(crate) fn recover(disk: &dyn Disk, options: &Options) -> io::Result<Recovered> {
    let names = disk.list()?;
    for name in names.iter().filter(|name| name.ends_with(TEMPORARY)) {
        disk.remove(name)?;
    }
    let with_suffix = |suffix: &str| -> BTreeSet<u64> {
        names.iter().filter_map(|name| name.strip_suffix(suffix)?.parse().ok()).collect()
    };
    let (mut bases, ids) = (with_suffix(".seg"), with_suffix(".ids"));
    let incarnation = incarnation(disk, options, &bases)?;
    for base_seq in &ids {
        // The ids are written before the segment is removed: a crash came between.
        retire_files(disk, *base_seq)?;
        bases.remove(base_seq);
    }
    for orphan in with_suffix(".idx").difference(&bases) {
        disk.remove(&sidecar_name(*orphan))?;
    }
    let retired: Vec<_> = ids.iter().filter_map(|base_seq| open_ids(disk, *base_seq, incarnation)).collect();
    let last_retired = last_position(&retired);
    let mut segments =
        Segments { disk, incarnation, next_seq: last_retired.map(|last| last + 1), sealed: vec![] };
    let bases: Vec<_> = bases.into_iter().collect();
    for pair in bases.windows(2) {
        segments.open_sealed(pair[0], pair[1] - 1)?;
    }
    let active = match bases.last() {
        Some(base_seq) => segments.open_active(*base_seq)?,
        None => segments.create_active(segments.next_seq.unwrap_or(options.first_seq))?,
    };
    let state = State::new(segments.sealed, active, retired, options.recent_bytes);
    Ok(Recovered { incarnation, state })
}

fn last_position(retired: &[Arc<Sidecar>]) -> Option<u64> {
    retired.iter().map(|ids| ids.summary().last_seq).max()
}

/// The log's identity: from `meta`, else from the newest segment that names it, else a new one.
fn incarnation(disk: &dyn Disk, options: &Options, bases: &BTreeSet<u64>) -> io::Result<u64> {
    let stored = match disk.map(META) {
        Ok(bytes) => read_meta((*bytes).as_ref()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(incarnation) = stored {
        return Ok(incarnation);
    }
    let mut named = None;
    for base_seq in bases.iter().rev() {
        let file = disk.open(&segment_name(*base_seq))?;
        if let FileHeader::Of { incarnation, .. } = FileHeader::read(&*file)? {
            named = Some(incarnation);
            break;
        }
    }
    if named.is_none() && !bases.is_empty() {
        return Err(invalid("neither meta nor any segment says which log this is".to_owned()));
    }
    let incarnation = named.unwrap_or(options.incarnation);
    let mut meta = META_MAGIC.to_vec();
    meta.extend_from_slice(&1u32.to_le_bytes());
    meta.extend_from_slice(&incarnation.to_le_bytes());
    meta.extend_from_slice(&crc32c::crc32c(&meta).to_le_bytes());
    write_atomically(disk, META, &meta)?;
    Ok(incarnation)
}

fn read_meta(bytes: &[u8]) -> Option<u64> {
    let whole =
        bytes.len() == 24 && bytes[..8] == META_MAGIC && crc32c::crc32c(&bytes[..20]) == u32_at(bytes, 20);
    whole.then(|| u64_at(bytes, 12))
}

fn open_ids(disk: &dyn Disk, base_seq: u64, incarnation: u64) -> Option<Arc<Sidecar>> {
    let opened = disk.map(&ids_name(base_seq)).map(|bytes| Sidecar::open(bytes, incarnation));
    match opened {
        Ok(Ok(sidecar)) => Some(Arc::new(sidecar)),
        Ok(Err(Damaged)) => {
            tracing::error!(base_seq, "remembered ids are damaged; their events may be appended again");
            None
        }
        Err(error) => {
            tracing::error!(base_seq, %error, "remembered ids can't be read; their events may be appended again");
            None
        }
    }
}

struct Segments<'a> {
    disk: &'a dyn Disk,
    incarnation: u64,
    /// Position that the next segment must begin at; None before the first.
    next_seq: Option<u64>,
    sealed: Vec<Arc<Segment>>,
}

impl Segments<'_> {
    fn open_sealed(&mut self, base_seq: u64, last_seq: u64) -> io::Result<()> {
        let file = self.open_file(base_seq)?;
        let sidecar = self.sidecar(base_seq)?;
        let mut segment = match sidecar {
            Some(sidecar) if sidecar.summary().last_seq == last_seq => {
                Segment::mapped(file, sidecar, self.incarnation)
            }
            _ => {
                tracing::info!(base_seq, "making the index of a log segment");
                let scanned = scan(&*file, Seed::of(self.incarnation), base_seq, Some(last_seq))?;
                Segment::live(file, scanned.index, self.incarnation, (base_seq, last_seq))
            }
        };
        segment.lost_before = self.missing_before(base_seq);
        self.next_seq = Some(last_seq + 1);
        self.sealed.push(Arc::new(segment));
        Ok(())
    }

    fn open_active(&mut self, base_seq: u64) -> io::Result<Active> {
        let file = self.open_file(base_seq)?;
        let len = file.len()?;
        let clean = self.sidecar(base_seq)?.filter(|s| s.summary().bytes >= len && s.is_sound());
        let (mut index, last_seq) = match clean {
            Some(sidecar) => (sidecar.to_live(), sidecar.summary().last_seq),
            None => {
                let scanned = scan(&*file, Seed::of(self.incarnation), base_seq, None)?;
                self.cut_tail(&*file, base_seq, len, &scanned)?;
                let last_seq = scanned.last_seq;
                (scanned.index, last_seq)
            }
        };
        if let Some(lost) = self.missing_before(base_seq) {
            index.holes.insert(0, lost);
        }
        // It would call records unknown that are appended from now on.
        self.disk.remove(&sidecar_name(base_seq))?;
        self.disk.sync()?;
        Ok(Active { base_seq, file, index, last_seq })
    }

    fn cut_tail(&self, file: &dyn DiskFile, base_seq: u64, len: u64, scanned: &Scanned) -> io::Result<()> {
        let end = scanned.index.end;
        if end == FILE_HEADER_BYTES && len != FILE_HEADER_BYTES {
            // The crash came before the first append to it was acknowledged; its header may be unfinished too.
            file.truncate(0)?;
            file.write_at(&file_header(self.incarnation, base_seq), 0)?;
            return file.sync();
        }
        if len > end {
            let cut_bytes = len - end;
            tracing::warn!(
                base_seq,
                cut_bytes,
                last_seq = scanned.last_seq,
                "cut an unfinished write off the log"
            );
            file.truncate(end)?;
            file.sync()?;
        }
        Ok(())
    }

    fn create_active(&self, base_seq: u64) -> io::Result<Active> {
        let active = Active::create(self.disk, self.incarnation, base_seq)?;
        active.confirm(self.disk)?;
        Ok(active)
    }

    fn open_file(&self, base_seq: u64) -> io::Result<Arc<dyn DiskFile>> {
        let name = segment_name(base_seq);
        let file = self.disk.open(&name)?;
        match FileHeader::read(&*file)? {
            FileHeader::Of { incarnation, base_seq: base }
                if (incarnation, base) == (self.incarnation, base_seq) => {}
            FileHeader::Of { .. } => return Err(invalid(format!("{name} belongs to another log"))),
            FileHeader::Version(version) => {
                return Err(invalid(format!(
                    "{name} has format version {version}, this simcast reads {VERSION}: run the simcast that wrote it, \
                     or move the directory away to begin a new log"
                )));
            }
            FileHeader::Damaged => tracing::warn!(name, "header of a log segment is damaged"),
        }
        Ok(file)
    }

    fn sidecar(&self, base_seq: u64) -> io::Result<Option<Sidecar>> {
        let bytes = match self.disk.map(&sidecar_name(base_seq)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let sidecar = Sidecar::open(bytes, self.incarnation).ok();
        Ok(sidecar.filter(|sidecar| sidecar.summary().base_seq == base_seq))
    }

    fn missing_before(&self, base_seq: u64) -> Option<(u64, u64)> {
        let lost = self.next_seq.filter(|next| *next < base_seq).map(|next| (next, base_seq - 1));
        if let Some((first_seq, last_seq)) = lost {
            tracing::error!(first_seq, last_seq, "a segment of the log is missing");
        }
        // What retention removed is not lost.
        lost.filter(|_| !self.sealed.is_empty())
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// What reading through a segment gave.
pub(crate) struct Scanned {
    /// Ends behind the last whole frame.
    pub(crate) index: LiveIndex,
    /// Last record, or the position before the segment.
    pub(crate) last_seq: u64,
}

/// Reads through a segment and keeps what is whole. `last_seq` is the last position that it must have, where that is
/// known: what is missing up to there is a hole.
pub(crate) fn scan(
    file: &dyn DiskFile,
    seed: Seed,
    base_seq: u64,
    last_seq: Option<u64>,
) -> io::Result<Scanned> {
    let bytes = read_through(file)?;
    let mut index = LiveIndex::starting_at(FILE_HEADER_BYTES);
    let mut before = base_seq.saturating_sub(1);
    let mut at = FILE_HEADER_BYTES as usize;
    let mut whole = true;
    let cut_one_too_many = sabotage::on(Bug::CutOneTooMany);
    while at < bytes.len() {
        let decoded = Frame::decode(seed, &bytes[at..]);
        let hole = decoded.ok().and_then(|frame| Some((frame.hole()?, frame.bytes())));
        let fits = |(first, last): (u64, u64)| first > before && last_seq.is_none_or(|most| last <= most);
        if let Some((hole, length)) = hole.filter(|(hole, _)| fits(*hole)) {
            if !whole && hole.0 > before + 1 {
                index.holes.push((before + 1, hole.0 - 1));
            }
            at += length;
            index.add_hole(hole, at as u64);
            (before, whole) = (hole.1, true);
            continue;
        }
        let frame = decoded
            .and_then(|frame| Indexed::of(&frame, at as u64).map(|indexed| (frame, indexed)))
            .ok()
            .filter(|(frame, _)| frame.seq > before && last_seq.is_none_or(|last| frame.seq <= last))
            .filter(|(frame, _)| last_seq.is_some() || !cut_one_too_many || at + frame.bytes() < bytes.len());
        let Some((frame, indexed)) = frame else {
            whole = false;
            let Some(next) = next_frame(seed, &bytes, at + 1) else { break };
            at = next;
            continue;
        };
        if !whole && frame.seq > before + 1 {
            index.holes.push((before + 1, frame.seq - 1));
        }
        index.add(indexed);
        (before, whole) = (frame.seq, true);
        at += frame.bytes();
    }
    if let Some(last) = last_seq.filter(|last| *last > before) {
        index.holes.push((before + 1, last));
    }
    for (first_seq, last_seq) in &index.holes {
        tracing::error!(first_seq, last_seq, "records of the log are damaged");
    }
    Ok(Scanned { index, last_seq: before })
}
