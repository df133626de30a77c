//! A finished segment, and how records are read out of a segment file.
//!
//! The file begins with a header that says whose it is; everything after it is frames. The header is written and
//! synced before the first record. Once recovery has checked it, it is only a witness: name, index and frames say
//! the same, so a damaged header costs nothing.

use std::{collections::BTreeSet, io, sync::Arc};

use parking_lot::RwLock;

use super::{
    disk::{Disk, DiskFile},
    index::{
        Index, Record,
        live::LiveIndex,
        sidecar::{self, Sidecar, Summary},
    },
    record::{Damaged, Frame, Seed, u32_at, u64_at},
    recovery::scan,
};

/// Bytes in front of the first frame.
pub(crate) const FILE_HEADER_BYTES: u64 = 40;
const MAGIC: [u8; 8] = *b"scastlog";
/// Grows with every change of what lies in a segment; 2 added to each event how it came.
pub(crate) const VERSION: u32 = 2;
/// Bytes read at once; longer records are read alone.
const READ_BYTES: u64 = 256 << 10;
/// Bytes between two wanted records that are read along rather than jumped over.
const READ_GAP_BYTES: u64 = 16 << 10;

/// File names of the segment that begins at a sequence; they sort like their sequences.
pub(crate) fn segment_name(base_seq: u64) -> String {
    format!("{base_seq:020}.seg")
}

/// Its sidecar.
pub(crate) fn sidecar_name(base_seq: u64) -> String {
    format!("{base_seq:020}.idx")
}

/// The ids that stay when it is removed.
pub(crate) fn ids_name(base_seq: u64) -> String {
    format!("{base_seq:020}.ids")
}

/// The first bytes of a segment file.
pub(crate) fn file_header(incarnation: u64, base_seq: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&incarnation.to_le_bytes());
    header.extend_from_slice(&base_seq.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    header
}

/// What a segment file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileHeader {
    Of {
        incarnation: u64,
        base_seq: u64,
    },
    /// Written in another format.
    Version(u32),
    Damaged,
}

impl FileHeader {
    pub(crate) fn read(file: &dyn DiskFile) -> io::Result<Self> {
        let mut header = [0; FILE_HEADER_BYTES as usize];
        let read = match file.read_at(&mut header, 0) {
            Err(error) if error.raw_os_error() == Some(EIO) => 0,
            read => read?,
        };
        if read < header.len() || header[..8] != MAGIC || crc32c::crc32c(&header[..36]) != u32_at(&header, 36)
        {
            return Ok(Self::Damaged);
        }
        Ok(match u32_at(&header, 8) {
            VERSION => Self::Of { incarnation: u64_at(&header, 16), base_seq: u64_at(&header, 24) },
            other => Self::Version(other),
        })
    }
}

/// A segment to which nothing is appended any more.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) summary: Summary,
    /// Positions in front of it whose segment is missing, inclusive.
    pub(crate) lost_before: Option<(u64, u64)>,
    incarnation: u64,
    slot: RwLock<Slot>,
}

#[derive(Debug, Clone)]
enum Slot {
    Live(Arc<LiveIndex>),
    Mapped(Arc<Sidecar>),
}

impl Segment {
    /// A segment whose sidecar is not written yet.
    pub(crate) fn live(
        file: Arc<dyn DiskFile>,
        index: LiveIndex,
        incarnation: u64,
        (base_seq, last_seq): (u64, u64),
    ) -> Self {
        let summary = index.summary(base_seq, last_seq);
        let slot = RwLock::new(Slot::Live(Arc::new(index)));
        Self { file, summary, lost_before: None, incarnation, slot }
    }

    /// A segment with a sidecar.
    pub(crate) fn mapped(file: Arc<dyn DiskFile>, sidecar: Sidecar, incarnation: u64) -> Self {
        let summary = *sidecar.summary();
        let slot = RwLock::new(Slot::Mapped(Arc::new(sidecar)));
        Self { file, summary, lost_before: None, incarnation, slot }
    }

    /// First position, readable or not, with those that are missing in front of it.
    pub(crate) fn first_position(&self) -> u64 {
        self.lost_before.map_or(self.summary.base_seq, |(first, _)| first)
    }

    /// First record or hole.
    pub(crate) fn first_seq(&self) -> Option<u64> {
        self.lost_before.map(|(first, _)| first).or(self.summary.first_seq)
    }

    /// Positions that can't be read, whatever their records are.
    pub(crate) fn holes(&self, index: &dyn Index) -> Vec<(u64, u64)> {
        self.lost_before.into_iter().chain(index.holes()).collect()
    }

    /// The index, made again from the segment where the sidecar turns out to be damaged.
    pub(crate) fn index(&self) -> io::Result<Arc<dyn Index>> {
        match self.slot.read().clone() {
            Slot::Live(index) => return Ok(index),
            Slot::Mapped(sidecar) if sidecar.is_sound() => return Ok(sidecar),
            Slot::Mapped(_) => {}
        }
        let mut slot = self.slot.write();
        if let Slot::Live(index) = &*slot {
            return Ok(Arc::clone(index) as Arc<dyn Index>);
        }
        let Summary { base_seq, last_seq, .. } = self.summary;
        let scanned = scan(&*self.file, Seed::of(self.incarnation), base_seq, Some(last_seq))?;
        let index = Arc::new(scanned.index);
        *slot = Slot::Live(Arc::clone(&index));
        Ok(index)
    }

    /// The index as one that can be changed.
    pub(crate) fn to_live(&self) -> io::Result<LiveIndex> {
        self.index()?;
        Ok(match &*self.slot.read() {
            Slot::Live(index) => (**index).clone(),
            Slot::Mapped(sidecar) => sidecar.to_live(),
        })
    }

    /// Whether the sidecar must still be written.
    pub(crate) fn needs_sidecar(&self) -> bool {
        matches!(&*self.slot.read(), Slot::Live(_))
    }

    /// Writes the sidecar if it is missing, and reads through it once if it has not been.
    pub(crate) fn finish(&self, disk: &dyn Disk) -> io::Result<()> {
        self.index()?;
        let Slot::Live(index) = self.slot.read().clone() else { return Ok(()) };
        let sidecar = write_sidecar(disk, &index, self.incarnation, &self.summary)?;
        *self.slot.write() = Slot::Mapped(Arc::new(sidecar));
        Ok(())
    }

    /// The sidecar, once [`Segment::finish`] has succeeded.
    pub(crate) fn sidecar(&self) -> Option<Arc<Sidecar>> {
        match &*self.slot.read() {
            Slot::Live(_) => None,
            Slot::Mapped(sidecar) => Some(Arc::clone(sidecar)),
        }
    }
}

/// Writes a sidecar durably and opens it.
pub(crate) fn write_sidecar(
    disk: &dyn Disk,
    index: &LiveIndex,
    incarnation: u64,
    summary: &Summary,
) -> io::Result<Sidecar> {
    let name = sidecar_name(summary.base_seq);
    super::disk::write_atomically(disk, &name, &sidecar::encode(index, incarnation, summary))?;
    Sidecar::open(disk.map(&name)?, incarnation).map_err(|Damaged| {
        io::Error::new(io::ErrorKind::InvalidData, "a sidecar changed while it was written")
    })
}

/// A record to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) seq: u64,
    pub(crate) offset: u64,
    /// Where its frame must have ended.
    pub(crate) bound: u64,
    /// Found damaged before; its bytes are not looked at again.
    pub(crate) lost: bool,
}

impl Load {
    /// The record at an ordinal; `lost` are the positions of [`Index::lost`].
    pub(crate) fn of(index: &dyn Index, ordinal: usize, lost: &BTreeSet<u64>) -> Self {
        let Record { seq, offset, .. } = index.record(ordinal);
        Self { seq, offset: u64::from(offset), bound: index.bound(ordinal), lost: lost.contains(&seq) }
    }
}

/// Positions of the records of an index that were found damaged.
pub(crate) fn lost_positions(index: &dyn Index) -> BTreeSet<u64> {
    index.lost().into_iter().map(|lost| lost.seq).collect()
}

/// Reads records, near ones by one call, and shows each in the order given until `visit` answers false.
pub(crate) fn load(
    file: &dyn DiskFile,
    seed: Seed,
    loads: &[Load],
    mut visit: impl FnMut(u64, Result<Frame<'_>, Damaged>) -> bool,
) -> io::Result<()> {
    let mut rest = loads;
    let mut buffer = Vec::new();
    while !rest.is_empty() {
        let (mut run, mut start, end) = near(rest);
        if fill(file, &mut buffer, start, end).is_err() {
            // One sector that can't be read must not hide its neighbours.
            (run, start) = (&rest[..1], rest[0].offset);
            fill_sectors(file, &mut buffer, start, rest[0].bound)?;
        }
        for one in run {
            let low = ((one.offset - start) as usize).min(buffer.len());
            let high = ((one.bound - start) as usize).clamp(low, buffer.len());
            let frame = if one.lost { Err(Damaged) } else { Frame::decode(seed, &buffer[low..high]) };
            if !visit(one.seq, frame.and_then(|f| if f.seq == one.seq { Ok(f) } else { Err(Damaged) })) {
                return Ok(());
            }
        }
        rest = &rest[run.len()..];
    }
    Ok(())
}

/// The same number on every Unix: the device failed.
const EIO: i32 = 5;

/// All bytes of a file; zeros where the device fails.
pub(crate) fn read_through(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let (mut bytes, len) = (Vec::new(), file.len()?);
    fill_sectors(file, &mut bytes, 0, len)?;
    Ok(bytes)
}

/// What a device reads at least.
const SECTOR_BYTES: u64 = 512;

/// As [`fill`]; where the device fails, what it does give sector by sector, and zeros for the rest.
fn fill_sectors(file: &dyn DiskFile, buffer: &mut Vec<u8>, start: u64, end: u64) -> io::Result<()> {
    let failed = |error: &io::Error| error.raw_os_error() == Some(EIO);
    match fill(file, buffer, start, end) {
        Err(error) if failed(&error) => {}
        result => return result,
    }
    buffer.clear();
    buffer.resize((end - start) as usize, 0);
    let mut at = start;
    while at < end {
        let next = (at / SECTOR_BYTES + 1).saturating_mul(SECTOR_BYTES).min(end);
        let sector = &mut buffer[(at - start) as usize..(next - start) as usize];
        match file.read_at(sector, at) {
            Err(error) if failed(&error) => sector.fill(0),
            read => drop(read?),
        }
        at = next;
    }
    Ok(())
}

fn fill(file: &dyn DiskFile, buffer: &mut Vec<u8>, start: u64, end: u64) -> io::Result<()> {
    buffer.clear();
    buffer.resize((end - start) as usize, 0);
    let read = file.read_at(buffer, start)?;
    buffer.truncate(read);
    Ok(())
}

/// The longest run of loads from the front that is worth one read, and its bytes.
fn near(loads: &[Load]) -> (&[Load], u64, u64) {
    let (mut start, mut end) = (loads[0].offset, loads[0].bound);
    let mut count = 1;
    for one in &loads[1..] {
        let gap = if one.offset >= end { one.offset - end } else { start.saturating_sub(one.bound) };
        let (low, high) = (start.min(one.offset), end.max(one.bound));
        if gap > READ_GAP_BYTES || high - low > READ_BYTES {
            break;
        }
        (start, end, count) = (low, high, count + 1);
    }
    (&loads[..count], start, end)
}
