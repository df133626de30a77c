//! Closed days are counted: upstream's `total` for the day against the events that the log has of it.
//!
//! Tail and sweep find what becomes visible within the lateness allowed. What comes later, or was inserted while as
//! many rows vanished, shows in the count of its day and nowhere else. So each closed day of the last seven is asked
//! for with `limit=1` again and again, and where the counts differ, the day is narrowed to the types and SIMs that
//! differ and these are read ([`repair`]); what is new in them goes through the intake like any other row.
//!
//! Counts differ for harmless reasons too: rows listed twice, rows that are no events, undated ones, rows of before
//! the first start, rows that upstream has forgotten and the log still has. So the proof is not that the counts are
//! equal, but that everything shown was read when they differed by this much, and that they still do. A difference
//! that was read through once costs nothing until it changes.
//!
//! Verdicts of a UTC day:
//!
//! - `verified`: counts agree, or everything that upstream shows of the day was read.
//! - `pending`: not closed, not compared yet, or being repaired. A repair that fails is tried again, each time later.
//! - `gap`: upstream once counted rows that the log lacks, and no longer shows them; or a gap event covers the day.
//! - `unavailable`: no exact total; or the count was found wrong [`MISCOUNTS_MAX`] times in a row by reading
//!   everything; or more differs than may be read. It is compared on, but read again only when the difference changes.

mod book;
mod counts;
mod edges;
mod repair;

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp, civil::Date};
use tokio::time::Instant;

use self::{
    book::Book,
    counts::Quarters,
    edges::Evidence,
    repair::{Asker, Outcome, Repair},
};
use super::{
    gap, names,
    page::Order,
    probe::{day_of, day_plus},
    session::{Halt, Session},
    status::{Completeness, DayState, Mode},
    sweep::midnight,
    upstream::Window,
};

/// Days that are followed.
const DAYS: i64 = 7;
/// How often days are looked at: yesterday, the day before, older ones. 1.2 requests a minute in all.
const PERIODS: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3_600)];
/// Below this allowance (requests a minute) they are looked at less often.
const ALLOWANCE: f64 = 60.0;
/// Longest pause after repairs that came to no end.
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3_600);
/// Doublings of the pause.
const FAILURES_MAX: u32 = 12;
/// Alarms can't make rounds more frequent than this.
const PAUSE_MIN: Duration = Duration::from_secs(10);
/// A difference must last so long to be one: rows may be on their way.
const CONFIRM_AFTER: Duration = Duration::from_secs(5);
/// Times that a count is found wrong before it is not believed.
const MISCOUNTS_MAX: u32 = 3;
/// Days at the end of the list, where upstream forgets, say nothing of when windows begin.
const EDGE_DAYS: i64 = 2;

/// Compares until nothing can be appended any more.
pub async fn run(session: &Session) -> Halt {
    let mut ledger = Ledger::new(session).await;
    loop {
        ledger.publish().await;
        let due = ledger.next_due().await;
        tokio::time::sleep(PAUSE_MIN).await;
        tokio::select! {
            () = session.ledger_now.notified() => ledger.hurry(),
            () = tokio::time::sleep_until(due) => {}
        }
        if ledger.is_ready().await
            && let Err(halt) = ledger.round().await
        {
            return halt;
        }
    }
}

struct Ledger<'s> {
    session: &'s Session,
    asker: Asker<'s>,
    book: Book,
    /// As last written.
    stored: Book,
}

impl<'s> Ledger<'s> {
    async fn new(session: &'s Session) -> Self {
        let book = Book::load(session.position.bus()).await;
        session.know_gaps(gap::announced(session.intake.log()));
        Self { session, asker: Asker::new(session), stored: book.clone(), book }
    }

    /// Whether what is missing would not come by itself: no hole is open, and the past has been read.
    async fn is_ready(&self) -> bool {
        let session = self.session;
        !session.has_hole()
            && session.past().is_none()
            && session.resumed().is_none()
            && session.position.get().await.backfill.is_none()
    }

    /// The UTC days that are followed.
    async fn days(&self) -> impl DoubleEndedIterator<Item = Date> + use<> {
        let today = day_of(self.session.clock.now());
        let origin = day_of(self.session.position.get().await.origin);
        (1..=DAYS).rev().map(move |age| day_plus(today, -age)).filter(move |day| *day >= origin)
    }

    /// The windows that show these days and to which nothing can be added but late rows, newest first.
    async fn windows(&self) -> Vec<Date> {
        let lateness = SignedDuration::try_from(self.session.lateness).unwrap_or(SignedDuration::MAX);
        let closed = self.session.clock.now().saturating_sub(lateness).unwrap_or(Timestamp::MIN);
        let origin = self.session.position.get().await.origin;
        let days: BTreeSet<Date> = self.days().await.flat_map(|day| self.book.covering(day)).collect();
        let is_due = |day: &Date| {
            let (_, end) = self.book.times(*day);
            end <= closed && end > origin
        };
        days.into_iter().rev().filter(is_due).collect()
    }

    async fn next_due(&self) -> Instant {
        let now = self.session.clock.now();
        let due = |day: Date| self.book.records.get(&day).and_then(|record| record.due);
        let wait = self.windows().await.into_iter().map(|day| {
            due(day).map_or(Duration::ZERO, |due| due.duration_since(now).try_into().unwrap_or_default())
        });
        Instant::now() + wait.min().unwrap_or(PERIODS[0]).min(PERIODS[0])
    }

    /// Rows were counted that nobody has read: they may lie in the days that the tail's window reaches into.
    fn hurry(&mut self) {
        let first = day_plus(self.session.window_day(), -1);
        self.book.records.range_mut(first..).for_each(|(_, record)| record.due = None);
    }

    /// Compares the days that are due.
    ///
    /// # Errors
    /// [`Halt::Stopped`].
    async fn round(&mut self) -> Result<(), Halt> {
        let today = day_of(self.session.clock.now());
        self.book.refresh(&self.session.findings(), day_plus(today, -DAYS - 1));
        for day in self.windows().await {
            let now = self.session.clock.now();
            if self.book.record(day).due.is_some_and(|due| due > now) {
                continue;
            }
            match self.check(day).await {
                Ok(()) => {}
                Err(halt @ Halt::Stopped(_)) => return Err(halt),
                Err(halt) => {
                    metrics::counter!(names::LEDGER_REPAIRS, "outcome" => "failed").increment(1);
                    tracing::debug!(%day, error = %halt, "a closed day could not be compared");
                    let record = self.book.record(day);
                    record.failures += 1;
                    if record.state != DayState::Gap {
                        record.judge(DayState::Pending, Some(halt.to_string()));
                    }
                }
            }
            let age = day_of(now).since(day).map_or(1, |span| span.get_days()).max(1) as usize;
            let slower = (ALLOWANCE / f64::from(self.session.gate.usage().allowance).max(1.0)).max(1.0);
            let period = PERIODS[(age - 1).min(PERIODS.len() - 1)].mul_f64(slower);
            let record = self.book.record(day);
            let pause = match record.failures {
                0 => period,
                // Whatever the age: a repair is finished, or given up, before the day is too old.
                failures => PERIODS[0].mul_f64(slower) * 2_u32.saturating_pow(failures.min(FAILURES_MAX)),
            };
            record.checked_at = Some(now);
            let pause = pause.min(PAUSE_MAX.max(period));
            record.due = now.checked_add(SignedDuration::try_from(pause).unwrap_or_default()).ok();
            self.publish().await;
        }
        Ok(())
    }

    /// Compares one window.
    async fn check(&mut self, day: Date) -> Result<(), Halt> {
        let window = self.book.window(day);
        let Some(total) = self.total(day, &window).await? else { return Ok(()) };
        let (own, surplus) = self.compare(day, total).await?;
        if self.settled(day, own, surplus) {
            return Ok(());
        }
        tokio::time::sleep(CONFIRM_AFTER).await;
        let Some(total) = self.total(day, &window).await? else { return Ok(()) };
        let (own, surplus) = self.compare(day, total).await?;
        if self.settled(day, own, surplus) {
            return Ok(());
        }
        let origin = self.session.position.get().await.origin;
        let times = self.book.times(day);
        let is_cut = times.0 < origin;
        let record = self.book.record(day);
        let shrank = record.surplus.is_some_and(|before| surplus < before);
        let expected = record.surplus.unwrap_or(0).max(0);
        // Nobody knows how many rows of before the first start are counted, until they have been read once.
        if surplus > expected && !(is_cut && record.surplus.is_none()) {
            record.owed = record.owed.max(u64::try_from(own as i64 + surplus - expected).ok());
        }
        tracing::info!(%day, total, own, "upstream counts a closed day other than the log: reading what differs");
        if record.state != DayState::Gap {
            record.judge(DayState::Pending, Some("its counts differ: it is read again".to_owned()));
        }
        self.publish().await;
        let types: BTreeSet<String> = self.book.types().cloned().collect();
        let mut repair = Repair::new(&self.asker, times, types);
        let outcome = repair.run(&window, total, !is_cut).await?;
        let (too_old, types) = (repair.too_old, std::mem::take(&mut repair.types));
        types.iter().for_each(|event_type| self.book.learn_type(event_type));
        self.session.intake.settle().await?;
        self.judge(day, &window, outcome, shrank, too_old).await
    }

    /// What a repair has shown.
    async fn judge(
        &mut self,
        day: Date,
        window: &Window,
        outcome: Outcome,
        shrank: bool,
        too_old: u64,
    ) -> Result<(), Halt> {
        let Some(total) = self.total(day, window).await? else { return Ok(()) };
        let (own, surplus) = self.compare(day, total).await?;
        let (from, to) = self.book.times(day);
        let record = self.book.record(day);
        let label = match outcome {
            Outcome::Read => {
                let others = u64::try_from(surplus).unwrap_or(0);
                let owed = record.owed.map_or(0, |owed| owed.saturating_sub(others).saturating_sub(own));
                let lost = owed + too_old.min(others);
                (record.surplus, record.failures, record.missing) = (Some(surplus), 0, lost);
                record.miscounted = false;
                if lost == 0 {
                    record.owed = None;
                    let why = (others > 0).then(|| {
                        format!("{others} rows that upstream lists are no events of their own of this day: listed twice, unreadable, undated, or of before the first start")
                    });
                    record.judge(DayState::Verified, why);
                } else {
                    record.owed = Some(own + lost);
                    record.judge(
                        DayState::Gap,
                        Some("upstream no longer shows rows that it counted".to_owned()),
                    );
                    if !std::mem::replace(&mut record.announced, true) {
                        gap::announce_lost(self.session, (from, to), day, lost).await?;
                    }
                }
                "read"
            }
            Outcome::Miscounted { counted, shown } => {
                record.failures += 1;
                let why = format!("upstream counts {counted} rows and shows {shown}");
                if record.failures < MISCOUNTS_MAX {
                    record.judge(DayState::Pending, Some(why));
                } else {
                    (record.surplus, record.failures, record.owed) = (Some(surplus), 0, None);
                    record.miscounted = true;
                    record.judge(DayState::Unavailable, Some(why));
                }
                "miscounted"
            }
            // What has vanished at the far end of the list is in the log; the rest is too much to be read for that.
            Outcome::TooLarge { .. } if shrank => {
                record.surplus = Some(surplus);
                "too_large"
            }
            Outcome::TooLarge { counted } => {
                record.failures += 1;
                let why = format!("counts differ, and {counted} rows are too many to be read again");
                record.judge(DayState::Unavailable, Some(why));
                "too_large"
            }
        };
        metrics::counter!(names::LEDGER_REPAIRS, "outcome" => label).increment(1);
        Ok(())
    }

    /// Upstream's count of a window; None where it gives none to compare with, which is judged then.
    async fn total(&mut self, day: Date, window: &Window) -> Result<Option<u64>, Halt> {
        let page = self.asker.count(window, 0).await?;
        let why = match page.total {
            None => "upstream gives no total",
            Some(_) if self.session.findings().total_exact == Some(false) => {
                "upstream's total does not count its rows"
            }
            Some(total) => {
                let time = |page: &super::page::ListPage<_>| page.slots.first().and_then(|slot| slot.time);
                let first = time(&page);
                let is_known = self.book.records.get(&day).is_some_and(|record| record.surplus.is_some());
                let order = (self.session.mode() != Mode::Windows).then(|| self.session.order());
                let last = match order {
                    Some(_) if !is_known && total > 1 => time(&self.asker.count(window, total - 1).await?),
                    _ => None,
                };
                let quarters = counts::quarters(self.session.intake.log(), None).await?;
                self.learn(day, order, (first, last), &quarters);
                return Ok(Some(total));
            }
        };
        let record = self.book.record(day);
        record.failures = 0;
        if record.state != DayState::Gap {
            record.judge(DayState::Unavailable, Some(why.to_owned()));
        }
        Ok(None)
    }

    /// Learns from a window's first and last row in list order, of which the last is known only of sorted lists.
    fn learn(
        &mut self,
        day: Date,
        order: Option<Order>,
        (first, last): (Option<Timestamp>, Option<Timestamp>),
        quarters: &Quarters,
    ) {
        let (oldest, newest) = match order {
            Some(Order::NewestFirst) => (last, first),
            Some(Order::OldestFirst) => (first, last),
            _ => (first, first),
        };
        let midnight = midnight(day).as_second();
        let second = |time: Timestamp| time.as_second() - midnight;
        let mut evidence =
            Evidence { first: oldest.map(second), last: newest.map(second), ..Evidence::default() };
        if matches!(order, Some(Order::NewestFirst | Order::OldestFirst)) {
            let recent = day >= day_plus(day_of(self.session.clock.now()), -EDGE_DAYS);
            let before = oldest.filter(|_| recent).and_then(|time| quarters.before(time));
            let after = newest.and_then(|time| quarters.after(time));
            evidence.before = before.map(|quarter| quarter - midnight);
            evidence.after = after.map(|quarter| quarter - midnight);
        }
        let before = self.book.span();
        self.book.edges().learn(evidence);
        let span = self.book.span();
        let starts = self.book.edges().starts_by();
        self.session.find(|findings| findings.day_starts_s = Some(starts));
        if span != before {
            tracing::info!(start_s = span.start, end_s = span.end, "upstream's days begin and end elsewhere");
        }
    }

    /// The log's count of a window, and upstream's less that.
    async fn compare(&mut self, day: Date, total: u64) -> Result<(u64, i64), Halt> {
        let quarters = counts::quarters(self.session.intake.log(), None).await?;
        let own = quarters.count(self.book.times(day));
        let span = self.book.span();
        let record = self.book.record(day);
        if record.span != span {
            (record.span, record.surplus) = (span, None);
        }
        Ok((own, i64::try_from(total).unwrap_or(i64::MAX) - own as i64))
    }

    /// Whether a difference says nothing new; the verdict is given then.
    fn settled(&mut self, day: Date, own: u64, surplus: i64) -> bool {
        let record = self.book.record(day);
        if record.surplus.unwrap_or(0) != surplus {
            return false;
        }
        (record.surplus, record.failures) = (Some(surplus), 0);
        match record.owed {
            Some(owed) if own < owed && record.state == DayState::Gap => {}
            Some(owed) if own < owed => return false,
            _ if record.miscounted => record.state = DayState::Unavailable,
            _ => {
                (record.owed, record.missing) = (None, 0);
                if record.state != DayState::Verified {
                    record.judge(DayState::Verified, None);
                }
            }
        }
        true
    }

    /// Shows the verdicts, and keeps them.
    async fn publish(&mut self) {
        let origin = self.session.position.get().await.origin;
        let gaps = self.session.gaps();
        let shown = self.days().await.map(|day| {
            let record = self.book.verdict(day, origin);
            let (start, end) = (midnight(day), midnight(day_plus(day, 1)));
            let is_gap = gaps.iter().any(|(from, to)| *from < end && start < *to);
            let missing = match record.state {
                DayState::Verified if !is_gap => Some(0),
                DayState::Gap => Some(record.missing),
                _ => None,
            };
            let one = Completeness {
                state: if is_gap { DayState::Gap } else { record.state },
                missing,
                reason: if is_gap && record.state != DayState::Gap {
                    Some("upstream had forgotten rows before they were read".to_owned())
                } else {
                    record.reason
                },
                checked_at: record.checked_at,
            };
            (day, one)
        });
        let shown: std::collections::BTreeMap<_, _> = shown.collect();
        for state in DayState::ALL {
            let count = shown.values().filter(|one| one.state == state).count();
            metrics::gauge!(names::LEDGER_DAYS, "state" => state.as_str()).set(count as f64);
        }
        self.session.board.update(|status| status.completeness = shown);
        if !self.book.is_kept_as(&self.stored) {
            self.book.store(self.session.position.bus()).await;
            self.stored = self.book.clone();
        }
    }
}
