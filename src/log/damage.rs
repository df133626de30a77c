//! Finding damaged records, and forgetting their ids so that their events can be appended again.
//!
//! Every record is checked when it is read, and all of them in turn by maintenance ([`SCRUB_BYTES`] a minute), since
//! damage that nobody reads can't be repaired while upstream still has the events. A segment in which a record turned
//! out to be damaged gets a new sidecar that names it as lost. Only when that sidecar is durable does the log forget
//! the ids: whatever happens then, the bytes of a lost record are never delivered again, even if the disk gives them
//! back one day, and the event can be there once more but never twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    Log,
    disk::DiskFile,
    index::{DAY_US, DayKey, Index, Lost, live::LiveIndex},
    record::{Damaged, Seed},
    segment::{Load, Segment, load, lost_positions, write_sidecar},
    state::State,
};

/// Positions of the log that can't be read; a gauge.
pub const DAMAGED: &str = "simcast_log_damaged_records";

/// Bytes of segments read through by one round of maintenance, and seconds between two rounds: 10 GiB in three
/// hours, one MiB a second.
const SCRUB_BYTES: u64 = 64 << 20;
const SCRUB_EVERY_S: i64 = 60;
/// Seconds between the starts of two turns through the whole log at least.
const SCRUB_TURN_S: i64 = 3_600;
/// What was lost in front of all that is left may have happened so much earlier.
const EARLIER_US: i64 = DAY_US;
/// Upstream's clock may be ahead of ours by so much.
const AHEAD_US: i64 = 300 * 1_000_000;

/// A stretch of positions whose records can't be read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// First position, inclusive.
    pub first_seq: u64,
    /// Last position, inclusive.
    pub last_seq: u64,
    /// Bounds of the times of the events that lay there: exact where `records` is not empty, else what the records
    /// around them suggest.
    pub times: (Timestamp, Timestamp),
    /// What is known of the records; empty where their index was lost with them.
    pub records: Vec<LostRecord>,
}

impl Damage {
    /// How many positions it spans.
    pub fn positions(&self) -> u64 {
        self.last_seq - self.first_seq + 1
    }
}

/// What is known of a record that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostRecord {
    /// Its position.
    pub seq: u64,
    /// [`id_hash`](crate::event::identity::id_hash) of its id; the log has forgotten it unless it was appended again.
    pub id: u128,
    /// Its event's time.
    pub time: Timestamp,
}

/// What maintenance remembers of its rounds.
#[derive(Debug, Default)]
pub(super) struct Care {
    /// Segments that begin at or before this were read through in this turn.
    scrubbed: u64,
    /// When the last round was, and when the first one of this turn.
    round_at: Option<Timestamp>,
    turn_at: Option<Timestamp>,
}

impl Log {
    /// The stretches that can't be read, in order of position; changes when damage is found and when retention
    /// removes it. Complete once the first [`Log::maintain`] has run.
    pub fn damage(&self) -> watch::Receiver<Arc<Vec<Damage>>> {
        self.damage.subscribe()
    }

    /// Notes that a record of the segment that begins at `base_seq` could not be read; the next maintenance looks.
    pub(super) fn suspect(&self, base_seq: u64) {
        if self.suspects.lock().insert(base_seq) {
            tracing::error!(base_seq, "a record of this segment of the log is damaged");
        }
    }

    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.lock().is_empty()
    }

    /// Reads through the segments that readers found damaged and those whose turn it is.
    pub(super) fn examine(&self, care: &mut Care, now: Timestamp) -> io::Result<()> {
        let mut due = std::mem::take(&mut *self.suspects.lock());
        due.extend(self.scrub_next(care, now));
        let mut result = Ok(());
        for base_seq in due {
            if let Err(error) = self.examine_segment(base_seq) {
                self.suspects.lock().insert(base_seq);
                result = result.and(Err(error));
            }
        }
        result
    }

    /// The segments whose turn it is to be read through.
    fn scrub_next(&self, care: &mut Care, now: Timestamp) -> Vec<u64> {
        let waits = |since: Option<Timestamp>, seconds: i64| {
            // A clock that was set back is no reason to wait for long.
            since.is_some_and(|since| (0..seconds).contains(&now.duration_since(since).as_secs()))
        };
        if waits(care.round_at, SCRUB_EVERY_S) || (care.scrubbed == 0 && waits(care.turn_at, SCRUB_TURN_S)) {
            return Vec::new();
        }
        care.round_at = Some(now);
        if care.scrubbed == 0 {
            care.turn_at = Some(now);
        }
        let state = self.state.read();
        let sealed = state.sealed.iter().map(|segment| (segment.summary.base_seq, segment.summary.bytes));
        let active = (state.active.base_seq, state.active.index.end);
        let mut bytes = 0;
        let mut due = Vec::new();
        for (base_seq, size) in sealed.chain([active]).filter(|(base_seq, _)| *base_seq > care.scrubbed) {
            if bytes + size > SCRUB_BYTES && !due.is_empty() {
                break;
            }
            bytes += size;
            due.push(base_seq);
        }
        care.scrubbed = due.last().copied().filter(|last| *last != state.active.base_seq).unwrap_or(0);
        due
    }

    pub(super) fn examine_segment(&self, base_seq: u64) -> io::Result<()> {
        let active = {
            let state = self.state.read();
            let is_it = state.active.base_seq == base_seq;
            is_it.then(|| (Arc::clone(&state.active.file), loads(&state.active.index)))
        };
        if let Some((file, loads)) = active {
            if verify(&*file, Seed::of(self.incarnation), &loads)?.lost.is_empty() {
                return Ok(());
            }
            // Only a finished segment has a sidecar in which the damage can be noted.
            self.finish_active(base_seq)?;
        }
        let place = |state: &State| state.sealed.iter().position(|one| one.summary.base_seq == base_seq);
        let segment = {
            let state = self.state.read();
            place(&state).map(|place| Arc::clone(&state.sealed[place]))
        };
        // Retention may have removed it.
        let Some(segment) = segment else { return Ok(()) };
        let index = segment.index()?;
        let found = verify(&*segment.file, Seed::of(self.incarnation), &loads(&*index))?;
        if found.lost.len() == index.lost().len() {
            return Ok(());
        }
        let amended = amended(segment.to_live()?, &found);
        let summary = amended.summary(base_seq, segment.summary.last_seq);
        let sidecar = write_sidecar(&*self.disk, &amended, self.incarnation, &summary)?;
        let mut replaced = Segment::mapped(Arc::clone(&segment.file), sidecar, self.incarnation);
        replaced.lost_before = segment.lost_before;
        let lost = found.lost.len() - index.lost().len();
        tracing::error!(
            base_seq,
            lost,
            "records of the log are damaged; what upstream still has is read again"
        );
        let mut state = self.state.write();
        if let Some(place) = place(&state) {
            Arc::make_mut(&mut state.sealed)[place] = Arc::new(replaced);
        }
        if let Some(last) = found.lost.last() {
            state.recent.forget_through(*last);
        }
        // Whoever finds an id unknown must find it among the damage.
        self.publish_damage(&state);
        Ok(())
    }

    /// Goes on in a new segment, so that the one that begins at `base_seq` can get a sidecar.
    pub(super) fn finish_active(&self, base_seq: u64) -> io::Result<()> {
        let mut writer = self.writer.lock();
        if let Some(stopped) = writer.why_stopped() {
            return Err(stopped);
        }
        let last_seq = {
            let active = &self.state.read().active;
            if active.base_seq != base_seq {
                return Ok(());
            }
            active.last_seq
        };
        self.sync_skipped()?;
        let next = self.next_segment(&mut writer, last_seq + 1)?;
        self.state.write().roll(next, self.incarnation);
        writer.begun_segment();
        Ok(())
    }

    /// Tells those who asked for [`Log::damage`] what there is now.
    pub(super) fn publish_damage(&self, state: &State) {
        let now = damage_of(state);
        let positions: u64 = now.iter().map(Damage::positions).sum();
        metrics::gauge!(DAMAGED).set(positions as f64);
        self.damage.send_if_modified(|before| {
            let changed = **before != now;
            if changed {
                *before = Arc::new(now);
            }
            changed
        });
    }
}

/// What reading all records of a segment gave.
struct Found {
    /// Positions of those that can't be read.
    lost: Vec<u64>,
    /// Counts of the others.
    days: BTreeMap<DayKey, u32>,
}

fn verify(file: &dyn DiskFile, seed: Seed, loads: &[Load]) -> io::Result<Found> {
    let mut found = Found { lost: Vec::new(), days: BTreeMap::new() };
    load(file, seed, loads, |seq, frame| {
        let day = frame.and_then(|frame| match frame.tombstone() {
            Some(tombstone) => Ok(tombstone.day),
            None => frame.keys().map(|keys| DayKey::of(&keys)),
        });
        match day {
            Err(Damaged) => found.lost.push(seq),
            Ok(day) => day.into_iter().for_each(|day| *found.days.entry(day).or_default() += 1),
        }
        true
    })?;
    Ok(found)
}

fn loads(index: &dyn Index) -> Vec<Load> {
    let lost = lost_positions(index);
    (0..index.len()).map(|ordinal| Load::of(index, ordinal, &lost)).collect()
}

/// The index without the ids and counts of what was found lost.
fn amended(mut index: LiveIndex, found: &Found) -> LiveIndex {
    let before: BTreeSet<u64> = index.lost.iter().map(|lost| lost.seq).collect();
    let ids: HashMap<u64, u128> = index.ids.iter().map(|(id, known)| (known.seq, *id)).collect();
    for seq in found.lost.iter().filter(|seq| !before.contains(seq)) {
        let id = ids.get(seq).copied().unwrap_or_default();
        index.ids.remove(&id);
        let place = index.partition(&|record| record.seq < *seq);
        let record = index.records.get_mut(place);
        let time_us = record.as_ref().map_or(0, |record| record.time_us);
        // A damaged tombstone is damage like any other.
        if record.is_some_and(|record| std::mem::take(&mut record.erased)) {
            index.erased -= 1;
        }
        index.lost.push(Lost { seq: *seq, time_us, id });
    }
    index.lost.sort_unstable_by_key(|lost| lost.seq);
    index.days.clone_from(&found.days);
    index
}

fn damage_of(state: &State) -> Vec<Damage> {
    let active = state.active.index.summary(state.active.base_seq, state.last_seq());
    let spans: Vec<_> =
        state.sealed.iter().map(|segment| segment.summary).chain([active]).map(|one| one.observed).collect();
    let mut all = Vec::new();
    let mut before_us = None;
    let mut add = |n: usize, index: &dyn Index, holes: &[(u64, u64)]| {
        let after = spans[n + 1..].iter().find_map(|span| span.map(|(first, _)| first));
        add_lost(&mut all, &index.lost());
        add_holes(&mut all, index, holes, before_us, after.unwrap_or(i64::MAX));
        before_us = index.len().checked_sub(1).map(|last| index.record(last).time_us).or(before_us);
    };
    for (n, segment) in state.sealed.iter().enumerate() {
        match segment.index() {
            Ok(index) => add(n, &*index, &segment.holes(&*index)),
            Err(error) => tracing::error!(%error, "the index of a log segment can't be read"),
        }
    }
    add(state.sealed.len(), &state.active.index, &state.active.index.holes);
    all.sort_unstable_by_key(|damage| damage.first_seq);
    all
}

/// Adds the records of one segment that were found lost, neighbours together.
fn add_lost(all: &mut Vec<Damage>, lost: &[Lost]) {
    let start = all.len();
    for one in lost {
        let time = timestamp(one.time_us);
        let record = LostRecord { seq: one.seq, id: one.id, time };
        match all[start..].last_mut().filter(|last| last.last_seq + 1 == one.seq) {
            Some(last) => {
                last.last_seq = one.seq;
                last.times = (last.times.0.min(time), last.times.1.max(time));
                last.records.push(record);
            }
            None => {
                let (first_seq, last_seq) = (one.seq, one.seq);
                all.push(Damage { first_seq, last_seq, times: (time, time), records: vec![record] });
            }
        }
    }
}

/// Adds the stretches of one segment of which nothing is known. What lay in them was appended before what lies behind
/// them, and events are appended after they happened; how long after, only the other records of the segment suggest,
/// and the last one before it, whose event happened at `before_us`.
fn add_holes(
    all: &mut Vec<Damage>,
    index: &dyn Index,
    holes: &[(u64, u64)],
    before_us: Option<i64>,
    after_us: i64,
) {
    if holes.is_empty() {
        return;
    }
    let earliest = (0..index.len()).map(|n| index.record(n).time_us).min();
    let low = match (before_us, earliest) {
        (Some(before), earliest) => earliest.map_or(before, |earliest| earliest.min(before)),
        (None, Some(earliest)) => earliest.saturating_sub(EARLIER_US),
        (None, None) => i64::MIN,
    };
    for (first_seq, last_seq) in holes {
        let next = index.partition(&|record| record.seq <= *last_seq);
        let high = if next < index.len() { index.record(next).observed_us } else { after_us };
        let times = (timestamp(low), timestamp(high.saturating_add(AHEAD_US).max(low)));
        all.push(Damage { first_seq: *first_seq, last_seq: *last_seq, times, records: Vec::new() });
    }
}

fn timestamp(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(if us < 0 { Timestamp::MIN } else { Timestamp::MAX })
}
