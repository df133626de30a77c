//! One budget for several gateways, of which one asks at a time.
//!
//! A gateway that takes over must count what the one before it sent in the last minute, and can't ask it: it may be
//! dead, or stopped in the middle of a request. So whoever asks notes in advance, in a place that all share, which
//! slots it has taken and how many more it may take before it notes again (the reserve), and sends no more than that.
//! The next one holds them all: what was listed for what was left of its time, the reserve for the whole minute and as
//! long as it may be spent, both counted from when it first saw the note. That is later than when it was noted, so
//! nothing is freed early and no two clocks are compared; and a gateway that stood by has seen each note at once, so
//! that takeovers in close succession do not use up the budget by what they do not know.
//!
//! A gateway that was stopped and goes on must not spend the reserve of before: it has been counted for one minute
//! only. So it expires ([`VALID`]), by a clock that runs on meanwhile, sooner than anybody can take over.

use std::{cmp::Reverse, collections::BTreeMap, io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Gate, HOLD, journal::Journal};
use crate::clock::SharedClock;

/// How long what was noted may be spent, counted from before the note was written. The lease under which a gateway
/// asks lasts twice as long.
pub const VALID: Duration = Duration::from_secs(4);
/// Age of a note at which another is due.
const RENEW_AFTER: Duration = Duration::from_secs(2);
/// The reserve is this part of the budget: at full rate it lasts a second and a half. All of it counts as sent at a
/// takeover, so it is small; one that is used up sooner, by a burst, is noted anew sooner.
const RESERVE_SHARE: u32 = 40;
/// Smallest reserve.
const RESERVE_MIN: u32 = 5;
/// More entries are not of ours: lists go by the second.
const LIST_MAX: usize = 256;

/// What a gateway notes for the next one. As JSON it is the value of a key that others may read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Who: one run of one gateway.
    pub by: String,
    /// Requests that may be sent after this was noted.
    pub reserve: u32,
    /// Slots taken: seconds until they are free, rounded up, and how many.
    pub taken: Vec<(u64, u32)>,
}

/// What the journal of a gateway says that it has sent in the last minute, for one that takes over from it by notes.
/// Changes nothing. None where there is no journal.
///
/// # Errors
/// Where it can't be read.
pub fn noted_in(journal: &Path, requests_per_minute: u32, clock: &SharedClock) -> io::Result<Option<Noted>> {
    let Some(held) = Journal::look(journal, requests_per_minute, clock)? else { return Ok(None) };
    let seconds = |left: Duration| left.as_millis().div_ceil(1_000) as u64;
    let mut counts = BTreeMap::<u64, u32>::new();
    for left in held {
        *counts.entry(seconds(left)).or_default() += 1;
    }
    Ok(Some(Noted { by: "migrate".to_owned(), reserve: 0, taken: counts.into_iter().collect() }))
}

/// What may be sent before the next note.
#[derive(Debug, Clone, Copy)]
pub(super) struct Credit {
    left: u32,
    reserve: u32,
    renew_at: Instant,
    valid_until: Instant,
}

impl Credit {
    pub fn none(now: Instant) -> Self {
        Self { left: 0, reserve: 0, renew_at: now, valid_until: now }
    }

    pub fn allows(self, now: Instant) -> bool {
        self.left > 0 && now < self.valid_until
    }

    pub fn is_low(self, now: Instant) -> bool {
        self.left <= self.reserve / 2 || now >= self.renew_at
    }

    pub fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

/// A note, and what is needed to allow it once it is written.
#[derive(Debug)]
pub struct Note {
    /// To be written where the next gateway finds it.
    pub noted: Noted,
    at: Instant,
    sent: u64,
}

impl Gate {
    /// What has to be noted now so that [`grant`](Self::grant) may follow.
    pub fn note(&self, by: &str) -> Note {
        let mut state = self.0.state.lock();
        let at = Instant::now();
        state.advance(at);
        let mut taken: Vec<(u64, u32)> = Vec::new();
        for left in state.table.left(at) {
            let seconds = left.as_millis().div_ceil(1_000) as u64;
            match taken.last_mut() {
                Some((last, count)) if *last == seconds => *count += 1,
                _ => taken.push((seconds, 1)),
            }
        }
        let all = self.0.requests_per_minute;
        let reserve = (all / RESERVE_SHARE).max(RESERVE_MIN).min(all);
        Note { noted: Noted { by: by.to_owned(), reserve, taken }, at, sent: state.sent }
    }

    /// Allows what was noted.
    pub fn grant(&self, note: &Note) {
        let mut state = self.0.state.lock();
        // What was sent since the note was made is part of its reserve.
        let since = u32::try_from(state.sent - note.sent).unwrap_or(u32::MAX);
        state.credit = Some(Credit {
            left: note.noted.reserve.saturating_sub(since),
            reserve: note.noted.reserve,
            renew_at: note.at + RENEW_AFTER,
            valid_until: note.at + VALID,
        });
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Sends nothing more before the next [`grant`](Self::grant).
    pub fn revoke(&self) {
        let mut state = self.0.state.lock();
        if state.credit.is_some() {
            state.credit = Some(Credit::none(Instant::now()));
        }
    }

    /// Counts what another gateway noted before this one took over from it; `seen_ago` is how long ago this one saw
    /// that note for the first time.
    pub fn take_over(&self, noted: &Noted, seen_ago: Duration) {
        let mut state = self.0.state.lock();
        let now = Instant::now();
        state.advance(now);
        // What this one sent in an earlier turn is in the note as well, since each begins by counting what the one before
        // noted: it is not counted twice. Unless the bus has lost notes; so no slot is free sooner than either says.
        let own = state.table.take_held(now);
        let unknown = (HOLD + VALID).saturating_sub(seen_ago).min(HOLD);
        let listed = noted.taken.iter().take(LIST_MAX).flat_map(|(seconds, count)| {
            let left = Duration::from_secs(*seconds);
            // What was on its way may have arrived later.
            let left = if left < HOLD { left.saturating_sub(seen_ago) } else { unknown };
            std::iter::repeat_n(left, *count as usize)
        });
        let slots = listed.chain(std::iter::repeat_n(unknown, noted.reserve as usize));
        // However much is noted, all of the budget is the most that can be taken.
        let free = self.0.requests_per_minute.saturating_sub(state.table.used_total());
        let mut slots: Vec<Duration> = slots.collect();
        slots.sort_unstable_by_key(|left| Reverse(*left));
        slots.resize(slots.len().max(own.len()), Duration::ZERO);
        for (slot, own) in slots.iter_mut().zip(own) {
            *slot = own.max(*slot);
        }
        let slots = slots.into_iter().take(free as usize);
        if let Err(error) = state.table.hold(slots, now) {
            state.journal_failed(now, error);
        }
    }

    /// Waits until another note is due.
    pub async fn note_is_due(&self) {
        loop {
            let credit = self.0.state.lock().credit;
            let Some(credit) = credit else { return std::future::pending().await };
            if credit.is_low(Instant::now()) {
                return;
            }
            tokio::select! {
                () = self.0.credit_is_low.notified() => {}
                () = tokio::time::sleep_until(credit.renew_at) => {}
            }
        }
    }
}
