//! Positions: where a time lies, what cursor belongs to a position, and whether a cursor still is one.

use std::{io, sync::Arc};

use jiff::Timestamp;

use super::{
    CursorState, KnownId, Log,
    index::{Index, Record},
    segment::Segment,
};
use crate::event::{Cursor, identity::id_hash};

impl Log {
    /// See [`Log::position_at`].
    pub(crate) fn position_before(&self, time: Timestamp) -> io::Result<u64> {
        let us = time.as_microsecond();
        let before = |record: Record| record.observed_us < us;
        let segment = {
            let state = self.state.read();
            let reaches = |one: &&Arc<Segment>| one.summary.observed.is_some_and(|(_, last)| last >= us);
            match state.sealed.iter().find(reaches) {
                Some(segment) => Arc::clone(segment),
                None => {
                    let index = &state.active.index;
                    let place = index.partition(&before);
                    let found = (place < index.len()).then(|| index.record(place).seq - 1);
                    return Ok(found.unwrap_or(state.last_seq()));
                }
            }
        };
        let index = segment.index()?;
        let place = index.partition(&before);
        Ok(if place < index.len() { index.record(place).seq - 1 } else { segment.summary.last_seq })
    }

    /// The last record at or before a position, and whether the position lies in a range that can't be read.
    fn place_of(&self, seq: u64) -> io::Result<(Option<Record>, bool)> {
        let sealed = {
            let state = self.state.read();
            if seq >= state.active.base_seq {
                let found = last_at(&state.active.index, seq);
                let lost = is_in(&state.active.index.holes, seq);
                if found.is_some() || lost {
                    return Ok((found, lost));
                }
            }
            let end = state.sealed.partition_point(|one| one.first_position() <= seq);
            state.sealed[..end].to_vec()
        };
        let mut lost = false;
        for (n, segment) in sealed.iter().rev().enumerate() {
            let index = segment.index()?;
            lost |= n == 0 && is_in(&segment.holes(&*index), seq);
            if let Some(record) = last_at(&*index, seq) {
                return Ok((Some(record), lost));
            }
        }
        Ok((None, lost))
    }

    /// See [`Log::cursor_at`].
    pub(crate) fn cursor_of(&self, seq: u64) -> Cursor {
        let record = self.place_of(seq).map(|(record, _)| record).unwrap_or_else(|error| {
            tracing::error!(%error, seq, "a position of the log can't be looked up");
            None
        });
        Cursor { incarnation: self.incarnation, seq, tag: record.map_or(0, |record| record.tag) }
    }

    /// See [`Log::check`].
    pub(crate) fn check_cursor(&self, cursor: Cursor) -> Result<u64, CursorState> {
        if cursor.incarnation != self.incarnation {
            return Err(CursorState::OtherIncarnation);
        }
        let (kept_from, first, last) = {
            let state = self.state.read();
            (state.first_position(), state.first_seq(), state.last_seq())
        };
        if cursor.seq > last {
            return Err(CursorState::Regressed);
        }
        if cursor.seq + 1 < kept_from {
            return Err(CursorState::Expired);
        }
        if cursor.seq < first {
            return Ok(cursor.seq);
        }
        match self.place_of(cursor.seq) {
            // What lay at a damaged position can't be compared; the position is one all the same.
            Ok((_, true)) => Ok(cursor.seq),
            Ok((record, false)) if record.map_or(0, |record| record.tag) == cursor.tag => Ok(cursor.seq),
            Ok(_) => Err(CursorState::Regressed),
            Err(error) => {
                tracing::error!(%error, seq = cursor.seq, "a cursor can't be checked; it is taken as it is");
                Ok(cursor.seq)
            }
        }
    }

    /// What is remembered of an id, or why that can't be said now. An append must not take silence for "unknown".
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn try_find(&self, id: &str) -> io::Result<Option<KnownId>> {
        self.find_hash(id_hash(id))
    }

    /// The same by the id's hash, as in [`LostRecord`](super::LostRecord).
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn find_hash(&self, hash: u128) -> io::Result<Option<KnownId>> {
        let (sealed, retired) = {
            let state = self.state.read();
            if let Some(known) = state.active.index.find(hash) {
                return Ok(Some(known));
            }
            (Arc::clone(&state.sealed), Arc::clone(&state.retired))
        };
        for segment in sealed.iter().rev() {
            if let Some(known) = segment.index()?.find(hash) {
                return Ok(Some(known));
            }
        }
        Ok(retired.iter().rev().filter(|ids| ids.is_sound()).find_map(|ids| ids.find(hash)))
    }
}

fn last_at(index: &dyn Index, seq: u64) -> Option<Record> {
    let place = index.partition(&|record| record.seq <= seq);
    place.checked_sub(1).map(|place| index.record(place))
}

fn is_in(holes: &[(u64, u64)], seq: u64) -> bool {
    holes.iter().any(|(first, last)| (*first..=*last).contains(&seq))
}
