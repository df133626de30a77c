//! Reading: a position is found by index, records are checked before anyone sees them, and each call looks at a
//! bounded number of them.
//!
//! A reader never holds a lock while it reads the disk or evaluates a filter, so it never stalls an append; in
//! exchange each step looks again at what is kept, and stops where retention has overtaken it.

use std::{collections::BTreeSet, io, sync::Arc};

use super::{
    Direction, Hole, Log, ReadError, ReadPage, ReadRequest,
    disk::DiskFile,
    index::{Index, Record, Take, terms_for},
    record::{Damaged, Frame, Seed},
    segment::{Load, Segment, load, lost_positions},
    state::State,
};
use crate::event::{GapReason, StoredEvent};

/// Records looked at in one call.
const LOOKS_MAX: usize = 16_384;
/// Records looked up under one lock.
const STEP_RECORDS: usize = 1_024;
/// A filter with an index term looks through recent events only over so many positions.
const RECENT_POSITIONS: u64 = 4_096;
/// Lookups of a term that cost about as much as a look at a record.
const TERMS_PER_LOOK: usize = 4;

/// What to look at next, all on one side of the position.
enum Step {
    /// Nothing lies there.
    End,
    /// Events in memory, and the position that they reach.
    Recent(Vec<StoredEvent>, u64),
    /// A finished segment; its index needs no lock.
    Sealed(Arc<Segment>),
    /// Records of the active segment, which begins at a position.
    Active(u64, Arc<dyn DiskFile>, Plan),
}

/// Records to look at, and what that settles.
pub(crate) struct Plan {
    pub(super) loads: Vec<Load>,
    pub(super) holes: Vec<(u64, u64)>,
    /// Positions that were found damaged before.
    lost: BTreeSet<u64>,
    /// Position up to which everything is evaluated once they have been looked at.
    pub(super) to: u64,
}

impl Log {
    /// See [`Log::read`].
    pub(crate) fn read_page(&self, request: ReadRequest<'_>) -> Result<ReadPage, ReadError> {
        let terms = terms_for(request.predicate.index_term());
        let mut pass = Pass {
            page: ReadPage { next: request.from, ..ReadPage::default() },
            request,
            bytes: 0,
            full: false,
            is_damaged: false,
        };
        let mut looks = 0;
        let mut position = request.from;
        while !pass.full && looks < LOOKS_MAX {
            let step = match self.step(position, request.direction, terms.as_deref()) {
                Err(ReadError::Expired { .. }) if position != request.from => break,
                step => step?,
            };
            position = match step {
                Step::End => {
                    pass.page.at_end = true;
                    break;
                }
                Step::Recent(events, to) => {
                    looks += events.len();
                    pass.recent(events, to)
                }
                Step::Sealed(segment) => {
                    let index = segment.index()?;
                    let span = (segment.first_position(), segment.summary.last_seq);
                    let holes = segment.holes(&*index);
                    let plan = plan(&*index, &holes, span, position, request.direction, terms.as_deref());
                    looks += plan.cost(terms.as_deref());
                    let to = pass.records(&*segment.file, Seed::of(self.incarnation), plan)?;
                    self.note(&mut pass, segment.summary.base_seq);
                    to
                }
                Step::Active(base_seq, file, plan) => {
                    looks += plan.cost(terms.as_deref());
                    let to = pass.records(&*file, Seed::of(self.incarnation), plan)?;
                    self.note(&mut pass, base_seq);
                    to
                }
            };
            pass.page.next = position;
        }
        Ok(pass.page)
    }

    fn note(&self, pass: &mut Pass<'_>, base_seq: u64) {
        if std::mem::take(&mut pass.is_damaged) {
            self.suspect(base_seq);
        }
    }

    fn step(&self, position: u64, direction: Direction, terms: Option<&[u64]>) -> Result<Step, ReadError> {
        let state = self.state.read();
        let (first, last) = (state.first_seq(), state.last_seq());
        let (at_end, distance) = match direction {
            Direction::Forward if position.saturating_add(1) < state.first_position() => {
                return Err(ReadError::Expired { first_seq: first });
            }
            Direction::Forward => (position >= last, last.saturating_sub(position)),
            Direction::Backward => (position <= first || last < first, 0),
        };
        if at_end {
            return Ok(Step::End);
        }
        let recent_from = state.recent.after();
        let in_recent = match direction {
            Direction::Forward => position >= recent_from,
            Direction::Backward => position > recent_from + 1 && last > recent_from,
        };
        if in_recent && (terms.is_none() || distance <= RECENT_POSITIONS) {
            let (events, complete) = state.recent.next(position, direction, STEP_RECORDS / 4);
            let to = match (direction, complete) {
                (Direction::Forward, true) => last,
                (Direction::Backward, true) => recent_from + 1,
                (_, false) => events.last().map_or(position, StoredEvent::seq),
            };
            return Ok(Step::Recent(events, to));
        }
        Ok(state.step_on_disk(position, direction, terms))
    }
}

impl State {
    fn step_on_disk(&self, position: u64, direction: Direction, terms: Option<&[u64]>) -> Step {
        let place = match direction {
            Direction::Forward => self.sealed.partition_point(|one| one.summary.last_seq <= position),
            Direction::Backward if self.active.base_seq < position => self.sealed.len(),
            // The segment that holds the positions below; if there is none, the position is at the first.
            Direction::Backward => {
                match self.sealed.partition_point(|one| one.first_position() < position).checked_sub(1) {
                    Some(place) => place,
                    None => return Step::End,
                }
            }
        };
        if let Some(segment) = self.sealed.get(place) {
            return Step::Sealed(Arc::clone(segment));
        }
        let index = &self.active.index;
        let first =
            index.holes.first().map_or(self.active.base_seq, |(first, _)| self.active.base_seq.min(*first));
        let span = (first, self.active.last_seq);
        let plan = plan(index, &index.holes, span, position, direction, terms);
        Step::Active(self.active.base_seq, Arc::clone(&self.active.file), plan)
    }
}

impl Plan {
    fn cost(&self, terms: Option<&[u64]>) -> usize {
        1 + self.loads.len() + terms.map_or(0, |terms| terms.len() / TERMS_PER_LOOK)
    }
}

/// Chooses the next records of one segment; `span` is its first and last position.
pub(super) fn plan(
    index: &dyn Index,
    holes: &[(u64, u64)],
    span: (u64, u64),
    position: u64,
    direction: Direction,
    terms: Option<&[u64]>,
) -> Plan {
    let range = match direction {
        Direction::Forward => index.partition(&|record| record.seq <= position)..index.len(),
        Direction::Backward => 0..index.partition(&|record| record.seq < position),
    };
    let take = Take { direction, max: STEP_RECORDS };
    let mut ordinals = match terms {
        None => take.of(range.start, range.end).map(|n| n as u32).collect(),
        Some(terms) => {
            let mut found = Vec::new();
            for term in terms {
                index.postings(*term, range.start as u32..range.end as u32, take, &mut found);
            }
            found.sort_unstable();
            found.dedup();
            found
        }
    };
    if direction == Direction::Backward {
        ordinals.reverse();
    }
    ordinals.truncate(STEP_RECORDS);
    let lost = lost_positions(index);
    let kept = ordinals.iter().map(|ordinal| *ordinal as usize).filter(|n| !index.record(*n).erased);
    let loads: Vec<_> = kept.map(|ordinal| Load::of(index, ordinal, &lost)).collect();
    let to = match (ordinals.last(), direction) {
        (Some(last), _) if ordinals.len() == STEP_RECORDS => index.record(*last as usize).seq,
        (_, Direction::Forward) => span.1,
        (_, Direction::Backward) => span.0,
    };
    let passed = |hole: &(u64, u64)| match direction {
        Direction::Forward => hole.1 > position && hole.0 <= to,
        Direction::Backward => hole.0 < position && hole.1 >= to,
    };
    Plan { loads, holes: holes.iter().copied().filter(passed).collect(), lost, to }
}

/// A page being filled.
struct Pass<'a> {
    request: ReadRequest<'a>,
    page: ReadPage,
    bytes: usize,
    full: bool,
    /// A record was found damaged that was not known to be.
    is_damaged: bool,
}

impl Pass<'_> {
    /// Takes events from memory; gives the position reached.
    fn recent(&mut self, events: Vec<StoredEvent>, to: u64) -> u64 {
        for event in events {
            let Ok(keys) = event.keys() else { continue };
            if self.request.predicate.matches(&keys) {
                if !self.has_room(event.bytes()) {
                    return self.stopped_at(event.seq());
                }
                self.page.events.push(event);
            }
        }
        to
    }

    /// Takes records from the disk; gives the position reached.
    fn records(&mut self, file: &dyn DiskFile, seed: Seed, plan: Plan) -> io::Result<u64> {
        let mut to = plan.to;
        let mut damaged = Vec::new();
        load(file, seed, &plan.loads, |seq, frame| {
            match frame.and_then(|frame| frame.keys().map(|keys| (frame, keys))) {
                Err(Damaged) => {
                    damaged.push((seq, seq));
                    self.is_damaged |= !plan.lost.contains(&seq);
                }
                Ok((frame, keys)) if self.request.predicate.matches(&keys) => {
                    if !self.has_room(frame.body.len()) {
                        to = self.stopped_at(seq);
                        return false;
                    }
                    self.page.events.push(stored(&frame));
                }
                Ok(_) => {}
            }
            true
        })?;
        self.add_holes(plan.holes.into_iter().chain(damaged), to);
        Ok(to)
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        let crowded = self.bytes > 0 && self.bytes + bytes > self.request.max_bytes;
        if crowded || self.page.events.len() >= self.request.limit {
            self.full = true;
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// The position just before a record that did not fit.
    fn stopped_at(&self, seq: u64) -> u64 {
        match self.request.direction {
            Direction::Forward => seq - 1,
            Direction::Backward => seq + 1,
        }
    }

    /// Reports the parts of ranges that lie between the page's position and `to`, joined, in reading order.
    fn add_holes(&mut self, ranges: impl Iterator<Item = (u64, u64)>, to: u64) {
        let (low, high) = match self.request.direction {
            Direction::Forward => (self.page.next.saturating_add(1), to),
            Direction::Backward => (to, self.page.next.saturating_sub(1)),
        };
        let mut ranges: Vec<_> =
            ranges.map(|(a, b)| (a.max(low), b.min(high))).filter(|(a, b)| a <= b).collect();
        ranges.sort_unstable();
        if self.request.direction == Direction::Backward {
            ranges.reverse();
        }
        for (first_seq, last_seq) in ranges {
            match self.page.holes.last_mut() {
                Some(hole) if hole.last_seq + 1 == first_seq => hole.last_seq = last_seq,
                Some(hole) if last_seq + 1 == hole.first_seq => hole.first_seq = first_seq,
                _ => self.page.holes.push(Hole { first_seq, last_seq, reason: GapReason::Corruption }),
            }
        }
    }
}

fn stored(frame: &Frame<'_>) -> StoredEvent {
    StoredEvent::new(frame.seq, frame.keys_len, bytes::Bytes::copy_from_slice(frame.body))
}

impl Log {
    /// See [`Log::get`].
    pub(crate) fn read_one(&self, seq: u64) -> io::Result<Option<StoredEvent>> {
        let found = {
            let state = self.state.read();
            if let Some(event) = state.recent.get(seq) {
                return Ok(Some(event));
            }
            let place = state.sealed.partition_point(|one| one.summary.last_seq < seq);
            match state.sealed.get(place) {
                Some(segment) => Err(Arc::clone(segment)),
                None => {
                    let active = &state.active;
                    Ok((active.base_seq, Arc::clone(&active.file), load_of(&active.index, seq)))
                }
            }
        };
        let (base_seq, file, wanted) = match found {
            Ok(found) => found,
            Err(segment) => {
                let wanted = load_of(&*segment.index()?, seq);
                (segment.summary.base_seq, Arc::clone(&segment.file), wanted)
            }
        };
        let Some(wanted) = wanted else { return Ok(None) };
        let mut event = None;
        load(&*file, Seed::of(self.incarnation), &[wanted], |_, frame| {
            event = frame.ok().filter(|frame| frame.keys().is_ok()).map(|frame| stored(&frame));
            true
        })?;
        if event.is_none() && !wanted.lost {
            self.suspect(base_seq);
        }
        Ok(event)
    }
}

fn load_of(index: &dyn Index, seq: u64) -> Option<Load> {
    let ordinal = index.partition(&|record| record.seq < seq);
    let is_it = |record: Record| record.seq == seq && !record.erased;
    let is_there = ordinal < index.len() && is_it(index.record(ordinal));
    is_there.then(|| Load::of(index, ordinal, &lost_positions(index)))
}
