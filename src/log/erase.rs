//! Erasing: what was stored of a SIM leaves the files, and nobody who reads notices that something was there.
//!
//! A segment that holds the SIM is written anew. Its events become [`Tombstone`]s: position, hash of the id, the hashes
//! that appends compare, times and the type's hash stay, so that a row which upstream still shows is not appended again,
//! a cursor stays one, and the ledger's counts stay as they were. Readers get neither the event nor a gap. A record of
//! another SIM, or of none, that only mentions this one keeps everything but the digits of it.
//!
//! The order makes it safe against a crash: the new file is durable before it takes the old one's name, and the old
//! sidecar, whose offsets are of the old file, is gone before that; a sidecar that is missing is made again. Erasing
//! twice does nothing the second time. Readers that hold the old file read it to the end of their call. The file system
//! frees the old blocks and does not overwrite them.

use std::{cell::RefCell, collections::BTreeSet, io, sync::Arc};

use memchr::memmem::Finder;

use super::{
    Direction, Log,
    disk::{Disk, DiskFile, TEMPORARY},
    index::{
        Index, Record, Take, iccid_term,
        live::{Indexed, LiveIndex},
    },
    record::{Damaged, Frame, Seed, Tombstone},
    segment::{
        FILE_HEADER_BYTES, Load, Segment, file_header, load, lost_positions, read_through, segment_name,
        sidecar_name,
    },
};
use crate::sabotage::{self, Bug};

/// What an erasure changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Erased {
    /// Events of the SIM that are gone; what stays of each.
    pub events: Vec<Tombstone>,
    /// Positions of records of others that mentioned it and do so no more.
    pub redacted: Vec<u64>,
}

/// What becomes of a record.
enum Fate {
    Keep,
    Erase,
    /// The body with the digits struck out; its keys are as they were.
    Redact(Vec<u8>),
}

impl Log {
    /// Removes every event of a SIM up to a position, and every mention of its ICCID in other records, from all files.
    /// Appends and reads go on meanwhile. Durable when it returns; blocks on the disk.
    ///
    /// # Errors
    /// Where the disk refuses, or the log is closed: part of it may be done then, and the call can be made again.
    pub fn erase(&self, iccid: &str, through: u64) -> io::Result<Erased> {
        let finder = Finder::new(iccid.as_bytes());
        let decide = |frame: &Frame<'_>| {
            let keys_len = frame.keys_len as usize;
            match (frame.keys(), frame.body.split_at_checked(keys_len)) {
                _ if frame.seq > through => Fate::Keep,
                (Ok(keys), _) if keys.iccid == Some(iccid) => Fate::Erase,
                // An id or a device that is called like the SIM can't be struck out: they are what the event is.
                (Ok(_), Some((keys, _))) if find_number(&finder, keys, 0).is_some() => Fate::Erase,
                (Ok(_), Some((_, json))) if find_number(&finder, json, 0).is_some() => {
                    Fate::Redact(redacted(&finder, frame.body, keys_len))
                }
                _ => Fate::Keep,
            }
        };
        self.erase_where(|_, file| Ok(finder.find(&read_through(file)?).is_some()), decide)
    }

    /// The same for events that another log erased at the same positions: for a log that mirrors what that one mirrors.
    /// `erased` is in order of position. Gives the ICCIDs of those that were still here.
    ///
    /// # Errors
    /// As [`Log::erase`].
    pub fn erase_at(&self, erased: &[Tombstone]) -> io::Result<BTreeSet<String>> {
        let iccids = RefCell::new(BTreeSet::new());
        let is_meant = |frame: &Frame<'_>| {
            let place = erased.binary_search_by_key(&frame.seq, |one| one.seq).ok()?;
            let keys = frame.keys().ok()?;
            // Another history may have given the position to another event.
            let is_it = Tombstone::of(frame, &keys).id == erased[place].id;
            is_it.then(|| iccids.borrow_mut().extend(keys.iccid.map(str::to_owned)))
        };
        let decide = |frame: &Frame<'_>| is_meant(frame).map_or(Fate::Keep, |()| Fate::Erase);
        let mut here = Vec::new();
        for one in erased {
            if self.read_one(one.seq)?.is_some() {
                here.push(one.seq);
            }
        }
        let concerns = |span: (u64, u64), _: &dyn DiskFile| {
            let first = here.partition_point(|seq| *seq < span.0);
            Ok(here.get(first).is_some_and(|seq| *seq <= span.1))
        };
        self.erase_where(concerns, decide)?;
        Ok(iccids.into_inner())
    }

    /// What would stay of each event of a SIM up to a position, if it was erased: for those who must tell others first.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn erasable(&self, iccid: &str, through: u64) -> io::Result<Vec<Tombstone>> {
        let term = iccid_term(iccid);
        let mut all = Vec::new();
        let select = |index: &dyn Index| {
            let mut found = Vec::new();
            let take = Take { direction: Direction::Forward, max: usize::MAX };
            index.postings(term, 0..index.len() as u32, take, &mut found);
            found.into_iter().map(|ordinal| ordinal as usize).collect()
        };
        self.each_frame(select, |frame| {
            let keys = frame.keys().ok().filter(|keys| keys.iccid == Some(iccid) && frame.seq <= through);
            all.extend(keys.map(|keys| Tombstone::of(frame, &keys)));
        })?;
        Ok(all)
    }

    /// Whether the event at a position was erased.
    pub fn is_erased(&self, seq: u64) -> bool {
        let is_it = |index: &dyn Index| {
            let place = index.partition(&|record| record.seq < seq);
            place < index.len() && index.record(place).seq == seq && index.record(place).erased
        };
        let segment = {
            let state = self.state.read();
            let place = state.sealed.partition_point(|one| one.summary.last_seq < seq);
            match state.sealed.get(place).cloned() {
                Some(segment) => segment,
                None => return is_it(&state.active.index),
            }
        };
        segment.index().is_ok_and(|index| is_it(&*index))
    }

    /// What stays of every event that was erased, by position.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn tombstones(&self) -> io::Result<Vec<Tombstone>> {
        let mut all = Vec::new();
        let erased = |index: &dyn Index| (0..index.len()).filter(|n| index.record(*n).erased).collect();
        self.each_frame(erased, |frame| all.extend(frame.tombstone()))?;
        Ok(all)
    }

    /// Shows the whole frames of the records that `select` picks from each index, in order.
    fn each_frame(
        &self,
        select: impl Fn(&dyn Index) -> Vec<usize>,
        mut show: impl FnMut(&Frame<'_>),
    ) -> io::Result<()> {
        let loads_of = |index: &dyn Index| -> Vec<Load> {
            let lost = lost_positions(index);
            select(index).into_iter().map(|ordinal| Load::of(index, ordinal, &lost)).collect()
        };
        let mut visit = |file: &dyn DiskFile, loads: &[Load]| {
            load(file, Seed::of(self.incarnation), loads, |_, frame| {
                frame.iter().for_each(&mut show);
                true
            })
        };
        let (sealed, active) = {
            let state = self.state.read();
            let active = (Arc::clone(&state.active.file), loads_of(&state.active.index));
            (Arc::clone(&state.sealed), active)
        };
        for segment in sealed.iter() {
            visit(&*segment.file, &loads_of(&*segment.index()?))?;
        }
        visit(&*active.0, &active.1)
    }

    fn erase_where(
        &self,
        concerns: impl Fn((u64, u64), &dyn DiskFile) -> io::Result<bool>,
        decide: impl Fn(&Frame<'_>) -> Fate,
    ) -> io::Result<Erased> {
        let _care = self.maintenance.lock();
        if let Some(stopped) = self.writer.lock().why_stopped() {
            return Err(stopped);
        }
        let mut erased = Erased::default();
        if let Some((span, file)) = self.active_with_records()
            && concerns(span, &*file)?
        {
            self.finish_active(span.0)?;
        }
        let sealed = Arc::clone(&self.state.read().sealed);
        for segment in sealed.iter() {
            let base_seq = segment.summary.base_seq;
            if !concerns((base_seq, segment.summary.last_seq), &*segment.file)? {
                continue;
            }
            // Damage is noted first: what is lost must be called lost in the new file too.
            self.examine_segment(base_seq)?;
            self.rewrite(base_seq, &decide, &mut erased)?;
        }
        let last = sealed.last().map_or(0, |segment| segment.summary.last_seq);
        if !erased.events.is_empty() || !erased.redacted.is_empty() {
            self.state.write().recent.forget_through(last);
        }
        Ok(erased)
    }

    /// First and last position of the active segment and its file, unless nothing has been appended to it yet.
    fn active_with_records(&self) -> Option<((u64, u64), Arc<dyn DiskFile>)> {
        let active = &self.state.read().active;
        let span = (active.base_seq, active.last_seq);
        (active.index.end > FILE_HEADER_BYTES).then(|| (span, Arc::clone(&active.file)))
    }

    /// Writes one finished segment anew, unless nothing of it changes.
    fn rewrite(
        &self,
        base_seq: u64,
        decide: &impl Fn(&Frame<'_>) -> Fate,
        erased: &mut Erased,
    ) -> io::Result<()> {
        let found = {
            let state = self.state.read();
            state.sealed.iter().find(|one| one.summary.base_seq == base_seq).cloned()
        };
        let Some(segment) = found else { return Ok(()) };
        let (mut changed, last_seq) = (Erased::default(), segment.summary.last_seq);
        let (bytes, index) = self.written_anew(&segment, decide, &mut changed)?;
        // Damaged bytes may hold what is to go, and they hold nothing else that anybody can read.
        if changed == Erased::default() && index.lost.is_empty() && index.holes.is_empty() {
            return Ok(());
        }
        let file = replace_segment(&*self.disk, base_seq, &bytes)?;
        let mut replaced = Segment::live(file, index, self.incarnation, (base_seq, last_seq));
        replaced.lost_before = segment.lost_before;
        let replaced = Arc::new(replaced);
        {
            let mut state = self.state.write();
            let place = state.sealed.iter().position(|one| one.summary.base_seq == base_seq);
            if let Some(place) = place {
                Arc::make_mut(&mut state.sealed)[place] = Arc::clone(&replaced);
            }
        }
        erased.events.append(&mut changed.events);
        erased.redacted.append(&mut changed.redacted);
        replaced.finish(&*self.disk)
    }

    /// The bytes and the index of a segment after an erasure. What was damaged becomes a frame that says so: its bytes
    /// may hold what is to go.
    fn written_anew(
        &self,
        segment: &Segment,
        decide: &impl Fn(&Frame<'_>) -> Fate,
        changed: &mut Erased,
    ) -> io::Result<(Vec<u8>, LiveIndex)> {
        let (old, seed) = (segment.to_live()?, Seed::of(self.incarnation));
        let bytes = read_through(&*segment.file)?;
        let lost = lost_positions(&old);
        let mut out = file_header(self.incarnation, segment.summary.base_seq);
        let mut new = LiveIndex::starting_at(FILE_HEADER_BYTES);
        let mut holes = old.holes.iter().filter(|hole| hole.1 >= segment.summary.base_seq).peekable();
        for ordinal in 0..old.len() {
            let Load { seq, offset, bound, .. } = Load::of(&old, ordinal, &lost);
            while let Some(hole) = holes.next_if(|hole| hole.0 <= seq) {
                Frame::of_hole(*hole).encode(seed, &mut out);
            }
            let at = out.len() as u64;
            if lost.contains(&seq) {
                Frame::of_hole((seq, seq)).encode(seed, &mut out);
                new.records.push(Record { offset: at as u32, ..old.records[ordinal] });
                continue;
            }
            let stored = bytes.get(offset as usize..bound.min(bytes.len() as u64) as usize);
            let frame = Frame::decode(seed, stored.unwrap_or_default()).map_err(|Damaged| damaged(seq))?;
            let fate = if old.records[ordinal].erased { Fate::Keep } else { decide(&frame) };
            match fate {
                Fate::Keep => frame.encode(seed, &mut out),
                Fate::Redact(body) => {
                    Frame { body: &body, ..frame }.encode(seed, &mut out);
                    changed.redacted.push(seq);
                }
                Fate::Erase => {
                    let keys = frame.keys().map_err(|Damaged| damaged(seq))?;
                    let tombstone = Tombstone::of(&frame, &keys);
                    changed.events.push(tombstone);
                    if sabotage::on(Bug::ForgetErased) {
                        continue;
                    }
                    tombstone.encode(seed, &mut out);
                }
            }
            let written = Frame::decode(seed, &out[at as usize..]).map_err(|Damaged| damaged(seq))?;
            new.add(Indexed::of(&written, at).map_err(|Damaged| damaged(seq))?);
        }
        for hole in holes {
            Frame::of_hole(*hole).encode(seed, &mut out);
        }
        new.end = out.len() as u64;
        (new.holes, new.lost) = (old.holes, old.lost);
        Ok((out, new))
    }
}

fn damaged(seq: u64) -> io::Error {
    io::Error::other(format!("record {seq} can't be read any more; erase again"))
}

/// Gives a segment's name to new bytes: see the head of this file for the order.
fn replace_segment(disk: &dyn Disk, base_seq: u64, bytes: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
    let name = segment_name(base_seq);
    let temporary = format!("{name}{TEMPORARY}");
    let file = disk.create(&temporary)?;
    if let Err(error) = file.write_at(bytes, 0).and_then(|()| file.sync()) {
        // A full disk: what was written of it would only lie there.
        disk.remove(&temporary)?;
        return Err(error);
    }
    if !sabotage::on(Bug::KeepOldSidecar) {
        disk.remove(&sidecar_name(base_seq))?;
    }
    disk.sync()?;
    disk.rename(&temporary, &name)?;
    disk.sync()?;
    Ok(file)
}

/// Where a number stands by itself: not as a part of a longer one, which is another SIM's.
fn find_number(finder: &Finder<'_>, bytes: &[u8], from: usize) -> Option<usize> {
    let is_digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let mut at = from;
    while let Some(found) = bytes.get(at..).and_then(|rest| finder.find(rest)).map(|n| at + n) {
        if !is_digit(found.checked_sub(1)) && !is_digit(Some(found + finder.needle().len())) {
            return Some(found);
        }
        at = found + 1;
    }
    None
}

/// The body with the number struck out of its JSON: by asterisks in a text, else by a zero. The length stays.
fn redacted(finder: &Finder<'_>, body: &[u8], keys_len: usize) -> Vec<u8> {
    let mut out = body.to_vec();
    let mut from = keys_len;
    while let Some(at) = find_number(finder, body, from) {
        let end = at + finder.needle().len();
        if is_in_text(&body[keys_len..at]) {
            out[at..end].fill(b'*');
        } else {
            out[at..end].fill(b' ');
            out[at] = b'0';
        }
        from = end;
    }
    out
}

/// Whether a text of the JSON is open where this beginning of it ends.
fn is_in_text(beginning: &[u8]) -> bool {
    let (mut open, mut escaped) = (false, false);
    for byte in beginning {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = open,
            b'"' => open = !open,
            _ => {}
        }
    }
    open
}
