//! Appending: encode, write, sync, and only then show.
//!
//! A full disk is waited out: what was written of a refused batch is cut off again before the next one. A failed
//! sync is final until a restart, since the system may have dropped the pages that it could not write, and a second
//! sync would then succeed over a hole.

use std::{io, sync::Arc};

use super::{
    Entry, Log,
    index::live::Indexed,
    record::{BODY_BYTES_MAX, Frame, Seed, Tombstone},
    state::Active,
};
use crate::{
    event::StoredEvent,
    sabotage::{self, Bug},
};

/// What only the appending thread knows.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    buffer: Vec<u8>,
    /// Bytes may lie behind the last record.
    dirty: bool,
    /// No append can succeed any more.
    stopped: Option<Stopped>,
}

/// Why no append can succeed any more.
#[derive(Debug, Clone, thiserror::Error)]
enum Stopped {
    #[error("the log is closed")]
    Closed,
    #[error("{0}; restart to recover")]
    Failed(String),
}

impl Writer {
    /// Why nothing can be appended any more.
    pub(crate) fn why_stopped(&self) -> Option<io::Error> {
        self.stopped.clone().map(io::Error::other)
    }

    /// A sync failed: unless for lack of space that is final.
    fn unconfirmed(&mut self, error: io::Error) -> io::Error {
        if !is_full(&error) {
            let reason = format!("the disk did not confirm a write: {error}");
            tracing::error!(%error, "the disk did not confirm a write; the log is read-only until a restart");
            self.stopped = Some(Stopped::Failed(reason));
        }
        error
    }

    /// The active segment is a new one.
    pub(crate) fn begun_segment(&mut self) {
        self.dirty = false;
    }
}

/// Records that are written and synced together, or a hole.
#[derive(Default)]
struct Piece {
    indexed: Vec<Indexed>,
    events: Vec<StoredEvent>,
    hole: Option<(u64, u64)>,
    /// Last position, where the records hold the places of erased events.
    erased: Option<u64>,
}

impl Log {
    /// As [`Log::append`], at given sequences: they must increase and lie above the last one. For a log that mirrors
    /// another store.
    ///
    /// # Errors
    /// As [`Log::append`]; also where a sequence is not above the one before.
    pub fn append_at(&self, entries: Vec<(u64, Entry)>) -> io::Result<()> {
        self.append_locked(&mut self.writer.lock(), entries)
    }

    /// Notes that nothing can be read at a range of positions, both ends inclusive, above the last one: readers get it
    /// as a [`Hole`](super::Hole). For a log that mirrors another store, which has lost what lay there.
    ///
    /// # Errors
    /// As [`Log::append_at`].
    pub fn append_hole(&self, first_seq: u64, last_seq: u64) -> io::Result<()> {
        let mut writer = self.writer.lock();
        if first_seq <= self.state.read().last_seq() || last_seq < first_seq {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a hole that can't lie there"));
        }
        if let Some(stopped) = writer.why_stopped() {
            return Err(stopped);
        }
        let hole = (first_seq, last_seq);
        writer.buffer.clear();
        Frame::of_hole(hole).encode(Seed::of(self.incarnation), &mut writer.buffer);
        let result = self.write(&mut writer, Piece { hole: Some(hole), ..Piece::default() });
        *self.trouble.lock() = result.as_ref().err().map(ToString::to_string);
        result
    }

    /// Notes events that were erased before they came here: as [`Log::append_at`], what stays of each. For a log that
    /// mirrors another store.
    ///
    /// # Errors
    /// As [`Log::append_at`].
    pub fn append_erased(&self, erased: &[Tombstone]) -> io::Result<()> {
        let mut writer = self.writer.lock();
        let before = self.state.read().last_seq();
        let places = [before].into_iter().chain(erased.iter().map(|one| one.seq));
        if !places.is_sorted_by(|one, next| one < next) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an erased event that can't lie there"));
        }
        if let Some(stopped) = writer.why_stopped() {
            return Err(stopped);
        }
        writer.buffer.clear();
        let mut piece = Piece { erased: erased.last().map(|last| last.seq), ..Piece::default() };
        for tombstone in erased {
            let at = writer.buffer.len();
            tombstone.encode(Seed::of(self.incarnation), &mut writer.buffer);
            let bytes = writer.buffer.len() - at;
            piece.indexed.push(Indexed::erased(tombstone, bytes, at as u64));
        }
        let result = self.write(&mut writer, piece);
        *self.trouble.lock() = result.as_ref().err().map(ToString::to_string);
        result
    }

    /// As [`Log::append_at`], at the next sequences.
    pub(crate) fn append_next(&self, entries: Vec<Entry>) -> io::Result<Vec<u64>> {
        let mut writer = self.writer.lock();
        let first = self.state.read().last_seq() + 1;
        let numbered: Vec<_> = (first..).zip(entries).collect();
        let seqs = numbered.iter().map(|(seq, _)| *seq).collect();
        self.append_locked(&mut writer, numbered)?;
        Ok(seqs)
    }

    fn append_locked(&self, writer: &mut Writer, entries: Vec<(u64, Entry)>) -> io::Result<()> {
        let mut last = self.state.read().last_seq();
        for (seq, entry) in &entries {
            if *seq <= last || entry.sealed.body.len() > BODY_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "an entry that can't be stored there",
                ));
            }
            last = *seq;
        }
        let result = self.write_all(writer, entries);
        *self.trouble.lock() = result.as_ref().err().map(ToString::to_string);
        result
    }

    fn write_all(&self, writer: &mut Writer, entries: Vec<(u64, Entry)>) -> io::Result<()> {
        if let Some(stopped) = writer.why_stopped() {
            return Err(stopped);
        }
        let mut piece = Piece::default();
        writer.buffer.clear();
        for (seq, Entry { sealed, identity, content }) in entries {
            if writer.buffer.len() as u64 >= self.options.segment_bytes {
                self.write(writer, std::mem::take(&mut piece))?;
            }
            let frame =
                Frame { seq, identity, content, keys_len: sealed.keys_len, body: sealed.body.as_ref() };
            let keys = frame
                .keys()
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an event without keys"))?;
            piece.indexed.push(Indexed::new(&frame, &keys, writer.buffer.len() as u64));
            frame.encode(Seed::of(self.incarnation), &mut writer.buffer);
            piece.events.push(sealed.at(seq));
        }
        self.write(writer, piece)
    }

    /// Syncs the last segment where appends have not.
    pub(super) fn sync_skipped(&self) -> io::Result<()> {
        let file = self.state.read().active.file.clone();
        if self.options.syncs { Ok(()) } else { file.sync() }
    }

    /// Creates the segment that begins at a position, durably.
    pub(crate) fn next_segment(&self, writer: &mut Writer, base_seq: u64) -> io::Result<Active> {
        let next = Active::create(&*self.disk, self.incarnation, base_seq)?;
        next.confirm(&*self.disk).map_err(|error| writer.unconfirmed(error))?;
        Ok(next)
    }

    /// Writes the buffer durably, then publishes its records.
    fn write(&self, writer: &mut Writer, piece: Piece) -> io::Result<()> {
        if piece.events.is_empty() && piece.hole.is_none() && piece.erased.is_none() {
            return Ok(());
        }
        let (mut end, empty, last_seq) = {
            let active = &self.state.read().active;
            (active.index.end, active.index.records.is_empty(), active.last_seq)
        };
        if !empty && end + writer.buffer.len() as u64 > self.options.segment_bytes {
            self.sync_skipped()?;
            let next = self.next_segment(writer, last_seq + 1)?;
            end = next.index.end;
            self.state.write().roll(next, self.incarnation);
            writer.begun_segment();
        }
        let file = self.state.read().active.file.clone();
        if writer.dirty {
            file.truncate(end)?;
        }
        writer.dirty = true;
        if !sabotage::on(Bug::ShowBeforeWrite) {
            file.write_at(&writer.buffer, end)?;
        }
        let skips = sabotage::on(Bug::SkipSync) || !self.options.syncs;
        let synced = if skips { Ok(()) } else { file.sync() };
        synced.map_err(|error| writer.unconfirmed(error))?;
        writer.dirty = false;
        let Piece { indexed, events, hole, erased } = piece;
        let indexed = indexed.into_iter().map(|one| one.moved(end)).collect();
        let last_seq = hole.map(|(_, last)| last).or(erased).or(events.last().map(StoredEvent::seq));
        match (hole, erased) {
            (Some(hole), _) => self.state.write().publish_hole(hole, end + writer.buffer.len() as u64),
            (None, Some(last)) => self.state.write().publish_erased(indexed, last),
            (None, None) => self.state.write().publish(indexed, events),
        }
        if let Some(last_seq) = last_seq {
            self.edge.send_replace(last_seq);
        }
        if sabotage::on(Bug::ShowBeforeWrite) {
            file.write_at(&writer.buffer, end)?;
        }
        writer.buffer.clear();
        Ok(())
    }

    /// Leaves the files as a clean stop does, so that the next start reads no segment. Reads go on; appends fail.
    ///
    /// # Errors
    /// Where the disk refuses; the next start then reads the last segment through.
    pub fn close(&self) -> io::Result<()> {
        // An erasure that is under way comes to its end: it and this write sidecars.
        let _care = self.maintenance.lock();
        let mut writer = self.writer.lock();
        if writer.stopped.is_some() {
            return Ok(());
        }
        writer.stopped = Some(Stopped::Closed);
        let (file, index, base_seq, last_seq) = {
            let active = &self.state.read().active;
            (active.file.clone(), active.index.clone(), active.base_seq, active.last_seq)
        };
        if writer.dirty {
            file.truncate(index.end)?;
            file.sync()?;
        }
        self.sync_skipped()?;
        let sealed = Arc::clone(&self.state.read().sealed);
        for segment in sealed.iter() {
            segment.finish(&*self.disk)?;
        }
        let summary = index.summary(base_seq, last_seq);
        super::segment::write_sidecar(&*self.disk, &index, self.incarnation, &summary).map(|_| ())
    }
}

/// Whether the disk may take the same write later.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
