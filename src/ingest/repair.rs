//! Reading again what the log lost to a damaged disk, as long as upstream still has it.
//!
//! The log says which stretches are damaged and when their events happened, and no longer knows their ids
//! ([`crate::log::Damage`]). The days of these times are read like any other past; rows that come back carry the flag
//! `repaired`. What does not come back is announced once, as a gap event with its bounds in time. What is settled is
//! kept across restarts, so that neither the reading nor the announcement is repeated; a crash in between repeats the
//! reading, and known ids keep the repeats out of the log.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp, civil::Date};
use serde::{Deserialize, Serialize};

use super::{
    days::{Stretch, last_closed_day, read_day, read_to_head},
    gap,
    intake::Via,
    probe::{day_of, day_plus},
    session::{Halt, Session},
    status::Repair,
    sweep::midnight,
};
use crate::{
    bus::{Bucket, Bus},
    event::{Flag, Predicate, identity::id_hash},
    globalsim::budget::Class,
    log::{Damage, Direction, Log, ReadRequest},
};

/// Key in [`Bucket::State`].
const KEY: &str = "repair";
/// Pause before days that could not be read are tried again.
const PAUSE: Duration = Duration::from_secs(10);
/// Upstream's days may begin so much before or after UTC's.
const ZONE: SignedDuration = SignedDuration::from_hours(14);
/// Settled stretches that are kept; older ones are read again after a restart, to no effect.
const SETTLED_MAX: usize = 4_096;
/// Losses whose times lie so close together are announced as one.
const TOGETHER: SignedDuration = SignedDuration::from_hours(1);
/// Events and bytes of one read while counting what came back.
const READ_EVENTS: usize = 1_024;
const READ_BYTES: usize = 1 << 20;

/// What is kept across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The log that the positions are of.
    incarnation: u64,
    /// Stretches, both ends inclusive, that were read again as far as upstream had them.
    settled: Vec<(u64, u64)>,
    /// Newest position when the repair that is not finished began.
    began_at: Option<u64>,
    /// Events that came back.
    repaired: u64,
    /// Events that did not.
    lost: u64,
}

/// Repairs whatever is found damaged, until nothing can be appended any more. `began_at` is the newest position before
/// any reader began.
pub async fn run(session: &Session, bus: &Arc<dyn Bus>, began_at: u64) -> Halt {
    let mut repairs = Repairs::load(session, bus, began_at).await;
    let mut damage = bus.log().damage();
    loop {
        let all = Arc::clone(&damage.borrow_and_update());
        let open = repairs.open(&all);
        repairs.show(&all, &open);
        if open.is_empty() {
            if damage.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        }
        match repairs.repair(&open).await {
            Ok(()) => {}
            Err(halt @ Halt::Stopped(_)) => return halt,
            Err(halt) => {
                if matches!(halt, Halt::Lost) {
                    session.walk_lost();
                }
                tracing::warn!(error = %halt, "what the log lost could not be read again yet");
                tokio::time::sleep(session.upstream.jittered(PAUSE)).await;
            }
        }
    }
}

struct Repairs<'s> {
    session: &'s Session,
    bus: &'s Arc<dyn Bus>,
    log: Arc<Log>,
    kept: Kept,
    /// Where the next repair begins to count what came back, if it is the first.
    began_at: Option<u64>,
}

/// Events that did not come back, and when they happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Loss {
    times: (Timestamp, Timestamp),
    events: u64,
}

impl<'s> Repairs<'s> {
    async fn load(session: &'s Session, bus: &'s Arc<dyn Bus>, began_at: u64) -> Self {
        let log = Arc::clone(bus.log());
        let fresh = Kept { incarnation: log.incarnation(), ..Kept::default() };
        let kept = match bus.kv_get(Bucket::State, KEY).await {
            Ok(entry) => entry.and_then(|entry| serde_json::from_slice::<Kept>(&entry.value).ok()),
            Err(error) => {
                tracing::error!(%error, "what was repaired is not known; it is read again");
                None
            }
        };
        let kept = kept.filter(|kept| kept.incarnation == fresh.incarnation).unwrap_or(fresh);
        Self { session, bus, log, kept, began_at: Some(began_at) }
    }

    async fn write(&self) {
        let value = serde_json::to_vec(&self.kept).unwrap_or_default();
        if let Err(error) = self.bus.kv_put(Bucket::State, KEY, value.into()).await {
            tracing::error!(%error, "the state of repairs can't be written; a restart would repeat reads");
        }
    }

    /// The damage, or the parts of it, that nobody has seen to.
    fn open(&self, all: &[Damage]) -> Vec<Damage> {
        all.iter().flat_map(|one| unsettled(one, &self.kept.settled)).collect()
    }

    fn show(&self, all: &[Damage], open: &[Damage]) {
        let positions = |of: &[Damage]| of.iter().map(Damage::positions).sum();
        let Kept { repaired, lost, .. } = self.kept;
        let shown = Repair { damaged: positions(all), pending: positions(open), repaired, lost };
        self.session.board.update(|status| status.repair = shown);
    }

    async fn repair(&mut self, open: &[Damage]) -> Result<(), Halt> {
        if self.kept.began_at.is_none() {
            let newest = self.log.bounds().last_seq;
            self.kept.began_at = Some(self.began_at.take().unwrap_or(newest));
            self.write().await;
        }
        let positions: u64 = open.iter().map(Damage::positions).sum();
        let (session, now) = (self.session, self.session.clock.now());
        // What was seen lately is judged without asking the log, which has forgotten ids since.
        session.intake.forget_recent().await?;
        let days = self.days(open, now);
        tracing::warn!(positions, days = days.len(), "what the log lost is read again from upstream");
        let stretch = Stretch { class: Class::Ledger, via: Via::Repair, backfill_before: None };
        let closed = last_closed_day(now);
        for day in days.range(..=closed) {
            read_day(session, stretch, *day).await?;
        }
        if let Some(first) = days.iter().find(|day| **day > closed) {
            let depth = midnight(*first).max(session.intake.oldest_taken());
            read_to_head(session, stretch, depth).await?;
        }
        session.intake.settle().await?;
        let losses = self.losses(open).await;
        let lost: u64 = losses.iter().map(|loss| loss.events).sum();
        for Loss { times: (from, to), events } in together(losses) {
            let to = to.min(now);
            gap::announce_corruption(session, (from.min(to), to), events, open).await?;
        }
        session.intake.settle().await?;
        let Kept { settled, .. } = &mut self.kept;
        settled.extend(open.iter().map(|one| (one.first_seq, one.last_seq)));
        settled.drain(..settled.len().saturating_sub(SETTLED_MAX));
        self.kept.began_at = None;
        self.began_at = None;
        self.kept.lost += lost;
        self.kept.repaired += positions.saturating_sub(lost);
        self.write().await;
        tracing::warn!(positions, lost, "what the log lost was read again as far as upstream has it");
        Ok(())
    }

    /// The days on which what is missing may have happened, those that are too old to be taken left out.
    fn days(&self, open: &[Damage], now: Timestamp) -> BTreeSet<Date> {
        let oldest = self.session.intake.oldest_taken();
        let mut days = BTreeSet::new();
        let mut add = |(low, high): (Timestamp, Timestamp)| {
            let (low, high) = (low.max(oldest), high.min(now));
            if low > high {
                return;
            }
            let first = day_of(low.saturating_sub(ZONE).unwrap_or(low));
            let last = day_of(high.saturating_add(ZONE).unwrap_or(high).min(now));
            let mut day = first;
            // As many days as ids are remembered for, at most.
            while day <= last {
                days.insert(day);
                day = day_plus(day, 1);
            }
        };
        for one in open {
            match &one.records[..] {
                [] => add(one.times),
                known => {
                    known.iter().filter(|r| !self.is_there(r.id)).for_each(|r| add((r.time, r.time)));
                }
            }
        }
        days
    }

    fn is_there(&self, id: u128) -> bool {
        self.log.find_hash(id).is_ok_and(|known| known.is_some())
    }

    /// What did not come back.
    async fn losses(&self, open: &[Damage]) -> Vec<Loss> {
        let mut losses: Vec<Loss> = (open.iter().flat_map(|one| &one.records))
            .filter(|record| !self.is_there(record.id))
            .map(|record| Loss { times: (record.time, record.time), events: 1 })
            .collect();
        let unknown: Vec<_> = open.iter().filter(|one| one.records.is_empty()).cloned().collect();
        if unknown.is_empty() {
            return losses;
        }
        let (log, from) = (Arc::clone(&self.log), self.kept.began_at.unwrap_or(0));
        let known: HashSet<u128> =
            self.log.damage().borrow().iter().flat_map(|one| one.records.iter().map(|r| r.id)).collect();
        let counted = tokio::task::spawn_blocking(move || came_back(&log, from, unknown, &known)).await;
        losses.extend(counted.unwrap_or_default());
        losses
    }
}

/// What is missing of stretches whose records are not known: their positions, less the events that were appended
/// since and happened when theirs may have.
fn came_back(log: &Log, from: u64, unknown: Vec<Damage>, known: &HashSet<u128>) -> Vec<Loss> {
    let losses: Vec<_> =
        unknown.iter().map(|one| Loss { times: one.times, events: one.positions() }).collect();
    let mut times = Vec::new();
    let mut from = from;
    loop {
        let request = ReadRequest {
            from,
            direction: Direction::Forward,
            predicate: &Predicate::default(),
            limit: READ_EVENTS,
            max_bytes: READ_BYTES,
        };
        let page = match log.read(request) {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(%error, "what came back can't be counted");
                break;
            }
        };
        let fresh = page
            .events
            .iter()
            .filter_map(|event| event.keys().ok())
            .filter(|keys| !keys.flags.contains(Flag::Enriched) && !known.contains(&id_hash(keys.id)));
        times.extend(fresh.filter_map(|keys| Timestamp::from_microsecond(keys.time_us).ok()));
        if page.at_end {
            break;
        }
        from = page.next;
    }
    less(losses, times)
}

/// Losses without the events that may be theirs: each in turn, oldest first, taken from the one that ends first of
/// those that span its time, so that as many as possible find a place.
fn less(mut losses: Vec<Loss>, mut times: Vec<Timestamp>) -> Vec<Loss> {
    losses.sort_unstable_by_key(|loss| loss.times.1);
    times.sort_unstable();
    for time in times {
        let spans = |loss: &&mut Loss| loss.events > 0 && loss.times.0 <= time && time <= loss.times.1;
        if let Some(loss) = losses.iter_mut().find(spans) {
            loss.events -= 1;
        }
    }
    losses.retain(|loss| loss.events > 0);
    losses
}

/// Joins losses that lie close together.
fn together(mut losses: Vec<Loss>) -> Vec<Loss> {
    losses.sort_unstable_by_key(|loss| loss.times);
    let mut joined: Vec<Loss> = Vec::new();
    for loss in losses {
        match joined.last_mut() {
            Some(last) if loss.times.0.duration_since(last.times.1) <= TOGETHER => {
                last.times.1 = last.times.1.max(loss.times.1);
                last.events += loss.events;
            }
            _ => joined.push(loss),
        }
    }
    joined
}

/// The parts of a damaged stretch that lie outside the settled ones.
fn unsettled(one: &Damage, settled: &[(u64, u64)]) -> Vec<Damage> {
    let mut parts = vec![(one.first_seq, one.last_seq)];
    for (low, high) in settled {
        parts = (parts.into_iter())
            .flat_map(|(first, last)| {
                let before = (first < *low).then(|| (first, last.min(low - 1)));
                let after = (last > *high).then(|| (first.max(high + 1), last));
                before.into_iter().chain(after)
            })
            .collect();
    }
    let part = |(first_seq, last_seq): (u64, u64)| {
        let within = |seq: u64| (first_seq..=last_seq).contains(&seq);
        let records = one.records.iter().filter(|record| within(record.seq)).copied().collect();
        Damage { first_seq, last_seq, times: one.times, records }
    };
    parts.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn only_what_nobody_has_seen_to_is_open() {
        let one = Damage { first_seq: 5, last_seq: 9, times: (at(1), at(2)), records: Vec::new() };
        let open = |settled: &[(u64, u64)]| -> Vec<_> {
            unsettled(&one, settled).iter().map(|part| (part.first_seq, part.last_seq)).collect()
        };
        assert_eq!(open(&[]), [(5, 9)]);
        assert_eq!(open(&[(1, 4), (10, 12)]), [(5, 9)]);
        assert_eq!(open(&[(6, 7)]), [(5, 5), (8, 9)]);
        assert_eq!(open(&[(1, 5), (9, 9)]), [(6, 8)]);
        assert_eq!(open(&[(5, 7), (8, 20)]), []);
    }

    #[test]
    fn every_event_that_came_back_finds_the_loss_that_it_may_be() {
        let loss = |from, to, events| Loss { times: (at(from), at(to)), events };
        let all = vec![loss(0, 100, 1), loss(50, 100, 2), loss(0, 20, 1)];
        assert_eq!(less(all.clone(), vec![at(60), at(10), at(5), at(70)]), []);
        assert_eq!(less(all.clone(), vec![at(10), at(5), at(4)]), [loss(50, 100, 2)]);
        let left: u64 = less(all, vec![at(200), at(60)]).iter().map(|loss| loss.events).sum();
        assert_eq!(left, 3, "one lies outside of all");
    }

    #[test]
    fn losses_are_announced_together_where_they_lie_together() {
        let loss = |from, to, events| Loss { times: (at(from), at(to)), events };
        let joined = together(vec![loss(9_000, 9_000, 1), loss(0, 10, 1), loss(3_000, 4_000, 2)]);
        assert_eq!(joined, [loss(0, 4_000, 3), loss(9_000, 9_000, 1)]);
    }
}
