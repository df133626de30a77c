//! Which SIM's sessions are read next, and how old what is known of each may become.
//!
//! Two lines. SIMs of which an event told that their sessions changed wait in the one, first come first served, each a
//! moment so that upstream has the session by then. In the other are all: those never read first, then those with an
//! open session every few minutes, the rest once a day, whoever is most overdue first. One turn in four belongs to the
//! second line, so that a busy fleet does not keep it waiting for ever; what one line does not need the other gets.
//! Pure: time is passed in.

use std::collections::{BTreeSet, HashMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::event::Iccid;

/// From an event to the read that it causes.
pub const SETTLE: SignedDuration = SignedDuration::from_secs(2);
/// How often a SIM with an open session is read, where the budget gives as much.
pub const OPEN_EVERY: SignedDuration = SignedDuration::from_secs(300);
/// How often any other is.
pub const SWEEP_EVERY: SignedDuration = SignedDuration::from_hours(24);
/// Pause before a read that failed is tried again; doubles up to the longest.
const RETRY_MIN: SignedDuration = SignedDuration::from_secs(10);
const RETRY_MAX: SignedDuration = SignedDuration::from_secs(1_800);
/// One turn in so many belongs to the second line.
const SECOND_LINE: u32 = 4;
/// SIMs that are followed; the sessions of others are not read.
pub const SIMS_MAX: usize = 1_000_000;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Schedule {
    sims: HashMap<Iccid, Sim>,
    touched: VecDeque<(Timestamp, Iccid)>,
    all: BTreeSet<(Timestamp, Iccid)>,
    turns: u32,
    open: usize,
    unread: usize,
}

#[derive(Debug, Default)]
struct Sim {
    read_at: Option<Timestamp>,
    /// It has been asked for, to whatever effect.
    asked: bool,
    open: bool,
    touched: bool,
    failures: u32,
    due: Timestamp,
}

impl Schedule {
    /// Takes up a SIM, or what a record says of it.
    pub fn know(&mut self, iccid: &Iccid, read_at: Option<Timestamp>, is_open: bool) {
        if self.sims.contains_key(iccid) || self.sims.len() >= SIMS_MAX {
            return;
        }
        let due = read_at.map_or(Timestamp::MIN, |at| next_read(at, is_open));
        let sim = Sim { read_at, asked: read_at.is_some(), open: is_open, touched: false, failures: 0, due };
        self.unread += usize::from(read_at.is_none());
        self.open += usize::from(is_open);
        self.all.insert((due, iccid.clone()));
        self.sims.insert(iccid.clone(), sim);
    }

    /// An event told that a SIM's sessions changed.
    pub fn touch(&mut self, iccid: &Iccid, now: Timestamp) {
        self.know(iccid, None, false);
        if let Some(sim) = self.sims.get_mut(iccid)
            && !std::mem::replace(&mut sim.touched, true)
        {
            self.touched.push_back((after(now, SETTLE), iccid.clone()));
        }
    }

    /// The SIM whose turn it is; None where nothing is due. It must be [`read`](Self::read) or have
    /// [`failed`](Self::failed) before it has another.
    pub fn next(&mut self, now: Timestamp) -> Option<Iccid> {
        let touched = self.touched.front().is_some_and(|(due, _)| *due <= now);
        let any = self.all.first().is_some_and(|(due, _)| *due <= now);
        self.turns = self.turns.wrapping_add(1);
        let iccid = match (touched, any) {
            (false, false) => return None,
            (true, true) if self.turns.is_multiple_of(SECOND_LINE) => self.all.pop_first()?.1,
            (true, _) => self.touched.pop_front()?.1,
            (false, true) => self.all.pop_first()?.1,
        };
        let sim = self.sims.get_mut(&iccid)?;
        self.all.remove(&(sim.due, iccid.clone()));
        if std::mem::take(&mut sim.touched) {
            self.touched.retain(|(_, one)| *one != iccid);
        }
        Some(iccid)
    }

    /// A SIM was read, or is not known upstream.
    pub fn read(&mut self, iccid: &Iccid, at: Timestamp, is_open: bool) {
        if let Some(sim) = self.sims.get_mut(iccid) {
            self.unread -= usize::from(!std::mem::replace(&mut sim.asked, true));
            self.open = self.open + usize::from(is_open) - usize::from(sim.open);
            (sim.read_at, sim.open, sim.failures, sim.due) = (Some(at), is_open, 0, next_read(at, is_open));
            self.all.insert((sim.due, iccid.clone()));
        }
    }

    /// A SIM could not be read.
    pub fn failed(&mut self, iccid: &Iccid, now: Timestamp) {
        if let Some(sim) = self.sims.get_mut(iccid) {
            let pause = RETRY_MIN.checked_mul(1 << sim.failures.min(16)).unwrap_or(RETRY_MAX).min(RETRY_MAX);
            sim.failures += 1;
            sim.due = after(now, pause);
            self.all.insert((sim.due, iccid.clone()));
        }
    }

    /// When something is due; None where there is no SIM.
    #[cfg(test)]
    fn next_due(&self) -> Option<Timestamp> {
        let touched = self.touched.front().map(|(due, _)| *due);
        let any = self.all.first().map(|(due, _)| *due);
        touched.into_iter().chain(any).min()
    }

    /// How the fleet stands, and how old the sessions of a SIM may become at a rate of reads: seconds from an event to
    /// the read that it causes, between reads of a SIM with an open session, and between those of any other. Computed
    /// from what waits now, by the rule at the head of this file.
    pub fn shown(&self, now: Timestamp, reads_per_minute: f64) -> Value {
        let per_second = (reads_per_minute / 60.0).max(1e-6);
        let waiting = self.touched.len() as f64;
        // While touched SIMs wait, the second line has its quarter only.
        let second = if self.touched.is_empty() { per_second } else { per_second / f64::from(SECOND_LINE) };
        let first = per_second * f64::from(SECOND_LINE - 1) / f64::from(SECOND_LINE);
        let behind = behind_s(self.open as f64, self.sims.len().saturating_sub(self.open) as f64, second);
        let oldest = self.sims.values().filter_map(|sim| sim.read_at).min();
        json!({
            "known": self.sims.len(),
            "unread": self.unread,
            "with_open_session": self.open,
            "waiting": self.touched.len(),
            "reads_per_minute": (reads_per_minute * 10.0).round() / 10.0,
            "oldest_read_seconds": oldest.map(|at| now.duration_since(at).as_secs().max(0)),
            "stale_seconds": {
                "after_an_event": (SETTLE.as_secs_f64() + (waiting + 1.0) / first).round(),
                "open": (OPEN_EVERY.as_secs_f64() + behind).round(),
                "others": (SWEEP_EVERY.as_secs_f64() + behind).round(),
            },
        })
    }
}

/// How long whoever is due waits for its turn: whoever is most overdue goes first, so all wait as long, and the turns
/// that they then take are those that there are. Seconds; solved by halving.
fn behind_s(open: f64, rest: f64, reads_per_second: f64) -> f64 {
    let wanted = |behind: f64| {
        open / (OPEN_EVERY.as_secs_f64() + behind) + rest / (SWEEP_EVERY.as_secs_f64() + behind)
    };
    if wanted(0.0) <= reads_per_second {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, (open + rest) / reads_per_second);
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if wanted(middle) > reads_per_second { low = middle } else { high = middle }
    }
    high
}

fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn next_read(at: Timestamp, is_open: bool) -> Timestamp {
    after(at, if is_open { OPEN_EVERY } else { SWEEP_EVERY })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iccid(n: u64) -> Iccid {
        Iccid::parse(&format!("8947{n:015}")).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_sim_that_moved_goes_before_those_that_wait_for_their_day() {
        let mut schedule = Schedule::default();
        (1..=3).for_each(|n| schedule.know(&iccid(n), Some(at(0)), n == 3));
        assert_eq!(schedule.next(at(10)), None);
        schedule.touch(&iccid(2), at(10));
        assert_eq!(schedule.next(at(11)), None, "upstream is given a moment");
        assert_eq!(schedule.next_due(), Some(at(12)));
        assert_eq!(schedule.next(at(12)), Some(iccid(2)));
        schedule.read(&iccid(2), at(12), true);
        assert_eq!(schedule.next(at(300)), Some(iccid(3)), "open, and five minutes old");
        schedule.read(&iccid(3), at(300), false);
        assert_eq!(schedule.next(at(312)), Some(iccid(2)));
        schedule.read(&iccid(2), at(312), false);
        assert_eq!(schedule.next(at(86_399)), None);
        assert_eq!(schedule.next(at(86_400)), Some(iccid(1)), "once a day");
    }

    #[test]
    fn neither_line_starves_the_other() {
        let mut schedule = Schedule::default();
        (0..100).for_each(|n| schedule.know(&iccid(n), None, false));
        let mut unread = 100;
        for turn in 0..400 {
            schedule.touch(&iccid(1_000), at(turn * 10));
            let now = at(turn * 10 + 5);
            let next = schedule.next(now).unwrap();
            unread -= usize::from(next < iccid(1_000));
            schedule.read(&next, now, false);
        }
        assert_eq!(unread, 0, "a quarter of the turns was theirs");
        assert_eq!(schedule.shown(at(0), 60.0)["unread"], 0);
    }

    #[test]
    fn what_failed_comes_again_ever_later() {
        let mut schedule = Schedule::default();
        schedule.know(&iccid(1), None, false);
        let (mut now, mut waits) = (at(0), Vec::new());
        for _ in 0..12 {
            assert_eq!(schedule.next(now), Some(iccid(1)));
            schedule.failed(&iccid(1), now);
            let due = schedule.next_due().unwrap();
            waits.push(due.duration_since(now).as_secs());
            assert_eq!(schedule.next(after(due, SignedDuration::from_secs(-1))), None);
            now = due;
        }
        assert_eq!(waits[..4], [10, 20, 40, 80]);
        assert_eq!(waits[8..], [1_800; 4]);
    }

    /// The table of docs/SIMS.md.
    #[test]
    fn how_old_sessions_may_become() {
        let stale = |sims: u64, open: u64| {
            let mut schedule = Schedule::default();
            (0..sims).for_each(|n| schedule.know(&iccid(n), Some(at(0)), n < open));
            let shown = schedule.shown(at(1), 60.0);
            let of = |what: &str| shown["stale_seconds"][what].as_f64().unwrap();
            (of("after_an_event"), of("open"), of("others"))
        };
        assert_eq!(stale(1_000, 100), (3.0, 300.0, 86_400.0));
        assert_eq!(stale(10_000, 1_000), (3.0, 1_115.0, 87_215.0));
        assert_eq!(stale(100_000, 10_000), (3.0, 37_105.0, 123_205.0));
    }
}
