//! What is done to segments that nobody appends to: their sidecars are written, and in time they are removed.
//!
//! Retention unlinks whole segments and never the active one. The ids of a removed segment stay for a while in a
//! file of their own, so that a row which upstream shows again is not appended again.

use std::{io, sync::Arc};

use jiff::Timestamp;

use super::{
    Log,
    append::is_full,
    disk::{Disk, TEMPORARY, write_atomically},
    index::{
        DAY_US,
        sidecar::{Sidecar, encode_ids},
    },
    record::Damaged,
    segment::{Segment, ids_name, segment_name, sidecar_name},
};

/// Ids are remembered for so many days at least: upstream can show a row for 7, and a day more for clocks.
const IDS_DAYS_MIN: u32 = 8;
/// How much further than its bounds the log may grow for a reader that asked it to wait.
const HELD_FACTOR: u64 = 2;

impl Log {
    /// Asks retention to leave what lies after `seq`, because somebody has still to read it; None lets go. It waits
    /// up to twice its bounds, in days and in bytes. Gives the positions after `seq`, both ends inclusive, that are
    /// gone already: what the holder has lost and must announce.
    pub fn hold(&self, seq: Option<u64>) -> Option<(u64, u64)> {
        *self.held.lock() = seq;
        let kept_from = self.state.read().first_position();
        seq.filter(|seq| seq.saturating_add(1) < kept_from).map(|seq| (seq + 1, kept_from - 1))
    }

    /// Whether [`Log::maintain`] has something to do that should not wait long.
    pub fn needs_maintenance(&self) -> bool {
        self.has_suspects() || self.state.read().sealed.iter().any(|segment| segment.needs_sidecar())
    }

    /// Writes missing sidecars, checks those that have not been read since the start, looks for damage, and removes
    /// what is older or more than is kept. Takes as long as the disk does; appends and reads go on meanwhile.
    ///
    /// # Errors
    /// Where the disk refuses; what could not be done is done by the next call.
    pub fn maintain(&self, now: Timestamp) -> io::Result<()> {
        let mut care = self.maintenance.lock();
        // On a full disk no sidecar can be written, and only retention makes room.
        let mut finished = self.examine(&mut care, now);
        let sealed = Arc::clone(&self.state.read().sealed);
        for segment in sealed.iter().rev() {
            finished = finished.and(segment.finish(&*self.disk));
        }
        let excess = self.excess(&sealed, now);
        for segment in &sealed[..excess] {
            self.retire(segment, now)?;
        }
        self.publish_damage(&self.state.read());
        self.forget_ids(now)?;
        finished
    }

    /// How many of the oldest segments must go.
    fn excess(&self, sealed: &[Arc<Segment>], now: Timestamp) -> usize {
        let (active, active_from) = {
            let active = &self.state.read().active;
            (active.index.end, active.index.summary(active.base_seq, active.last_seq).observed)
        };
        let mut bytes = active + sealed.iter().map(|segment| segment.summary.bytes).sum::<u64>();
        let held = *self.held.lock();
        let mut count = 0;
        for (n, segment) in sealed.iter().enumerate() {
            // One of which nothing can be read is as old as what follows it; else its damage would go unannounced.
            let following = || {
                let spans = sealed[n + 1..].iter().map(|segment| segment.summary.observed);
                spans.chain([active_from]).flatten().next().map(|(first, _)| first)
            };
            let newest = newest_us(segment).or_else(following);
            let is_held = held.is_some_and(|seq| seq < segment.summary.last_seq);
            let factor = if is_held { HELD_FACTOR } else { 1 };
            let days = i64::from(self.options.retention_days) * factor as i64;
            let old = newest.is_some_and(|newest| days_since(newest, now) >= days);
            if !old && bytes <= self.options.retention_bytes.saturating_mul(factor) {
                break;
            }
            bytes -= segment.summary.bytes;
            count += 1;
        }
        count
    }

    fn ids_days(&self) -> i64 {
        i64::from(self.options.retention_days.max(IDS_DAYS_MIN))
    }

    /// Removes one segment. Its ids are durable before anything is removed.
    fn retire(&self, segment: &Segment, now: Timestamp) -> io::Result<()> {
        let base_seq = segment.summary.base_seq;
        let mut ids = None;
        if newest_us(segment).is_some_and(|newest| days_since(newest, now) < self.ids_days()) {
            let sidecar = segment.sidecar().ok_or_else(|| io::Error::other("a sidecar is missing"))?;
            let name = ids_name(base_seq);
            let written = write_atomically(&*self.disk, &name, &encode_ids(&sidecar, self.incarnation));
            match written {
                Err(error) if is_full(&error) => {
                    // The sidecar holds the ids too, and a rename needs no room.
                    self.disk.remove(&format!("{name}{TEMPORARY}"))?;
                    self.disk.rename(&sidecar_name(base_seq), &name)?;
                    self.disk.sync()?;
                }
                written => written?,
            }
            let opened = Sidecar::open(self.disk.map(&name)?, self.incarnation);
            ids = Some(opened.map_err(|Damaged| {
                io::Error::new(io::ErrorKind::InvalidData, "the ids changed while they were written")
            })?);
        }
        {
            let mut state = self.state.write();
            Arc::make_mut(&mut state.sealed).retain(|one| one.summary.base_seq != base_seq);
            Arc::make_mut(&mut state.retired).extend(ids.map(Arc::new));
        }
        tracing::info!(
            base_seq,
            last_seq = segment.summary.last_seq,
            "retention removed a segment of the log"
        );
        retire_files(&*self.disk, base_seq)
    }

    fn forget_ids(&self, now: Timestamp) -> io::Result<()> {
        let limit_us = now.as_microsecond().saturating_sub(self.ids_days() * DAY_US);
        let forgotten = |ids: &Sidecar| ids.summary().observed.is_none_or(|(_, last)| last < limit_us);
        let gone: Vec<_> = {
            let mut state = self.state.write();
            let gone = state.retired.iter().filter(|ids| forgotten(ids)).cloned().collect();
            if state.retired.iter().any(|ids| forgotten(ids)) {
                Arc::make_mut(&mut state.retired).retain(|ids| !forgotten(ids));
            }
            gone
        };
        for ids in gone {
            self.disk.remove(&ids_name(ids.summary().base_seq))?;
        }
        Ok(())
    }
}

/// When the newest event of a segment was appended, microseconds since the epoch; None where none can be read.
fn newest_us(segment: &Segment) -> Option<i64> {
    segment.summary.observed.map(|(_, last)| last)
}

/// Whole days since a time, microseconds since the epoch.
fn days_since(at_us: i64, now: Timestamp) -> i64 {
    now.as_microsecond().saturating_sub(at_us).max(0) / DAY_US
}

/// Removes a segment's files, the segment first: a sidecar alone is removed by the next start.
pub(crate) fn retire_files(disk: &dyn Disk, base_seq: u64) -> io::Result<()> {
    disk.remove(&segment_name(base_seq))?;
    disk.remove(&sidecar_name(base_seq))?;
    disk.sync()
}
