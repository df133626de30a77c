//! The newest rows, several times a second.
//!
//! A page that shares a row with the page before joins it: nothing lies between. A row that is pinned to the top of
//! the list, since it is stamped in the future or not at all, does not count: what came since stands below it. A page
//! that does not join is walked down from at once while that is a matter of pages; if it is more, its rows are
//! published all the same and the [hole](super::holes) below is left to the [`catchup`](super::catchup). While one is
//! open the tail polls seldom, so that nearly all of the budget goes to what is missing.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    head::Head,
    holes::{Count, Edge, Lead, joinable},
    intake::Via,
    names,
    page::{ListPage, Order, PAGE_ROWS, Slot},
    probe::day_plus,
    seek::{self, Down},
    session::{Halt, SKEW, Session, keys},
    status::{Mode, UpstreamState},
    sweep::{self, midnight},
    totals::{Totals, Verdict},
    upstream::{Item, Window},
    walk::{Toward, Walker},
    windows::Windows,
};
use crate::{
    globalsim::budget::Class,
    sabotage::{self, Bug},
};

/// Shortest and longest time between two polls.
const INTERVAL_MIN: Duration = Duration::from_millis(250);
const INTERVAL_MAX: Duration = Duration::from_secs(5);
/// Share of the request budget that the tail may use: 240 of 400 a minute are a poll each quarter of a second.
const BUDGET_SHARE: f64 = 0.6;
/// The same while rows are missing: 34 of 400 are a poll each 1.8 s, near the tail's floor.
const BACKLOG_SHARE: f64 = 0.085;
/// How often the list is read without any filter, in place of the usual poll: a row without a time may be missing
/// from a list by date.
const UNFILTERED_EVERY: Duration = Duration::from_secs(5);
/// How often a list without order is read wholly, whatever upstream counts.
const EVERYTHING_EVERY: Duration = Duration::from_secs(60);
/// How often the status shows findings and budget anew.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// Rows that a walk down may hold before what lies deeper is left to be read upwards.
const WALK_ROWS_MAX: usize = 1_000;
/// New rows, as upstream counts them, beyond which the whole of them is. Reading down has to hold back what it reads
/// until the end, and reads rows that came meanwhile twice.
const WALK_NEW_MAX: u64 = 400;
/// Failed polls in a row (each tried several times) after which the gateway counts as blind.
const FAILURES_MAX: u32 = 1;

/// The tail's own state.
pub struct Tail<'s> {
    session: &'s Session,
    /// The newest page before; None before the first.
    head: Option<Head>,
    /// The newest rows, down from which all has been read or is a known hole; None before the first.
    edge: Option<Edge>,
    lead: Lead,
    totals: Totals,
    unfiltered_at: Instant,
    failures: u32,
    /// When findings and budget last went on the board.
    shown_at: Instant,
}

impl<'s> Tail<'s> {
    /// A tail.
    pub fn new(session: &'s Session) -> Self {
        Self {
            session,
            head: None,
            edge: None,
            lead: Lead::default(),
            totals: Totals::default(),
            unfiltered_at: Instant::now(),
            failures: 0,
            shown_at: Instant::now(),
        }
    }

    /// Polls until nothing can be appended any more.
    pub async fn run(mut self) -> Halt {
        loop {
            let halt = match self.session.mode() {
                Mode::OldestFirst => self.oldest_first().await,
                Mode::Windows => self.windows().await,
                Mode::NewestFirst | Mode::Unknown => self.newest_first().await,
            };
            match halt {
                Ok(()) => {}
                Err(halt @ Halt::Stopped(_)) => return halt,
                Err(Halt::Lost) => self.session.walk_lost(),
                Err(Halt::Upstream(error)) => {
                    self.failures += 1;
                    if self.session.mode() == Mode::Windows {
                        // Without order no page shows that it joins what was read before.
                        self.session.open_hole();
                    }
                    if self.failures >= FAILURES_MAX {
                        self.session.board.update(|status| {
                            if status.state == UpstreamState::Ok {
                                status.state = UpstreamState::Stale;
                            }
                            status.message = Some(error.to_string());
                        });
                    }
                    let pause = error.retry_after().unwrap_or(INTERVAL_MAX).min(INTERVAL_MAX * 12);
                    tokio::time::sleep(self.session.upstream.jittered(pause)).await;
                }
            }
        }
    }

    fn interval(&self) -> Duration {
        let per_minute = f64::from(self.session.gate.usage().allowance).max(1.0);
        let share = if self.session.has_hole() { BACKLOG_SHARE } else { BUDGET_SHARE };
        Duration::from_secs_f64(60.0 / (per_minute * share)).clamp(INTERVAL_MIN, INTERVAL_MAX)
    }

    /// What joins the page before came since, whatever its time.
    fn past(&self, joins: bool) -> Option<Timestamp> {
        self.session.past().filter(|_| !joins || self.edge.is_none())
    }

    /// Sleeps until the next poll is due, counted from when the last began.
    async fn pace(&mut self, began: Instant) {
        if self.shown_at.elapsed() >= SHOW_EVERY {
            self.shown_at = Instant::now();
            self.session.show();
        }
        tokio::time::sleep_until(began + self.interval()).await;
    }

    /// A list with its newest row in front: the first page, again and again, while the order stays.
    async fn newest_first(&mut self) -> Result<(), Halt> {
        while matches!(self.session.mode(), Mode::NewestFirst | Mode::Unknown) {
            let began = Instant::now();
            // Holes are read without any filter anyway.
            let unfiltered = self.unfiltered_at.elapsed() >= UNFILTERED_EVERY && !self.session.has_hole();
            let window = if unfiltered {
                self.unfiltered_at = began;
                Window::default()
            } else {
                Window::since(self.session.window_day())
            };
            let page = self.session.upstream.page(Class::Tail, &window, 0).await?;
            self.failures = 0;
            self.session.observe(&page);
            if unfiltered && self.edge.is_some() && !page.is_whole_list() {
                self.glance(&window, page).await?;
            } else {
                self.head_page(window, page).await?;
            }
            self.pace(began).await;
        }
        Ok(())
    }

    /// A page of the list without dates. What it adds are rows without a time, which may stand anywhere in it, and
    /// many at its top: so it does not count among the pages that join each other.
    async fn glance(&mut self, window: &Window, page: ListPage<Item>) -> Result<(), Halt> {
        let past = self.past(self.joins(&page.slots));
        let head = Head::of(&page, window, self.session.findings().order);
        let fresh = self.head.as_ref().map(|before| before.above(&head, &page.slots)).unwrap_or_default();
        let mut rows: Vec<_> = page.slots.into_iter().rev().collect();
        self.mark_unseen(&head, &fresh, &mut rows);
        self.session.intake.take(rows, Via::Tail, page.asked_at, past).await?;
        Ok(())
    }

    /// Notes with rows that the page before would have shown them.
    fn mark_unseen(&self, head: &Head, fresh: &HashSet<u64>, rows: &mut [Slot<Item>]) {
        let Some(before) = &self.head else { return };
        for slot in rows {
            if fresh.contains(&slot.key) && before.would_show(head, slot) {
                slot.shown.not_seen_at = Some(before.sent_at);
            }
        }
    }

    /// Whether rows show that nothing lies between them and what has been read.
    fn joins(&self, slots: &[Slot<Item>]) -> bool {
        let reached = self.session.holes.reached();
        let known =
            |key| self.edge.as_ref().is_some_and(|edge| edge.keys.contains(key)) || reached.contains(key);
        slots.iter().any(|slot| slot.unique && known(&slot.key))
    }

    /// The newest rows as what the next page has to join.
    fn edge_of(&self, rows: &[Slot<Item>], asked_at: Timestamp, count: Option<Count>) -> Edge {
        let keys = joinable(rows, self.lead.front(asked_at, SKEW));
        let steady = rows.iter().filter(|slot| keys.contains(&slot.key));
        let depth = steady.filter_map(|slot| slot.time).min();
        let depth = depth.unwrap_or_else(|| asked_at.saturating_sub(SKEW).unwrap_or(asked_at));
        Edge { keys: Arc::new(keys), depth, count }
    }

    /// Learns how far ahead of the clock new rows are stamped.
    fn learn_lead(&mut self, page: &ListPage<Item>) {
        let Some(head) = &self.head else { return };
        for slot in page.slots.iter().filter(|slot| slot.unique && !head.has(slot)) {
            if let Some(time) = slot.time {
                self.lead.observe(page.asked_at, time);
            }
        }
    }

    async fn head_page(&mut self, window: Window, page: ListPage<Item>) -> Result<(), Halt> {
        let session = self.session;
        let (asked_at, total, whole) = (page.asked_at, page.total, page.is_whole_list());
        let count = total.map(|total| (window.start, total)).filter(|_| window.start.is_some());
        if let Some(count) = count {
            session.holes.note_count(count);
        }
        self.learn_lead(&page);
        let first = self.edge.is_none();
        let overlaps = self.joins(&page.slots);
        let joins = whole || overlaps;
        let depth = sweep::depth(session).await;
        let deep = whole || seek::passed(&page.slots, depth);
        let head = Head::of(&page, &window, session.findings().order);
        let mut fresh = self.head.as_ref().map(|before| before.above(&head, &page.slots)).unwrap_or_default();
        // The list ends above what was read before: nothing of it is there any more.
        let mut forgotten = whole && !overlaps && self.head.as_ref().is_some_and(|head| !head.is_empty());
        // Handed on with the oldest first.
        let mut rows: Vec<_> = page.slots.iter().rev().cloned().collect();
        let mut closed = joins || deep;
        if let Some(edge) = self.edge.as_ref().filter(|_| !closed) {
            metrics::counter!(names::HOLES).increment(1);
            let many = session.holes.rows_above(edge).is_some_and(|new| new > WALK_NEW_MAX);
            if !many && !session.has_hole() {
                let walked = self.walk_down(&window, page, depth).await;
                match walked {
                    Ok((Down::Reached(all), above)) => {
                        session.walk_done();
                        forgotten = above.is_none()
                            && !all.iter().any(|slot| slot.time.is_some_and(|time| time < depth));
                        (rows, closed) = (all, true);
                        let before = self.head.as_ref();
                        if let Some(above) = above.filter(|_| before.is_some_and(|b| b.leads_to(&head))) {
                            fresh = above;
                        }
                    }
                    Ok((Down::TooLong(all), _)) => rows = all,
                    Err(error) => {
                        tracing::warn!(%error, "the rows below the newest page could not be read yet");
                    }
                }
            }
            if !closed {
                // What was read is in one piece: its lowest rows are the top of the hole.
                let top = rows.iter().take(PAGE_ROWS as usize).filter(|slot| slot.unique);
                session.open_hole_between(edge.clone(), top.map(|slot| slot.key).collect());
                session.show_backlog(Some(session.holes.rows_above(edge).unwrap_or(rows.len() as u64)));
            }
        } else if !closed {
            session.open_hole();
        }
        self.mark_unseen(&head, &fresh, &mut rows);
        let swept = head.swept(depth).filter(|_| deep);
        self.edge = Some(self.edge_of(&rows, asked_at, count));
        self.head = Some(head);
        let via = if rows.len() > PAGE_ROWS as usize { Via::CatchUp } else { Via::Tail };
        let past = session.past().filter(|_| !joins || first);
        let taken = session.intake.take(rows, via, asked_at, past).await?;
        if joins {
            session.holes.tail_joined(taken.new);
        }
        if let Some(swept) = swept {
            session.has_swept(swept);
        }
        if forgotten || (whole && session.resumed().is_some()) {
            // Only a sweep looks for what upstream may have forgotten.
            session.open_hole();
        } else if deep && !session.has_hole() {
            session.begun();
            session.covered.send_replace(Some(asked_at));
        }
        if !session.has_hole() {
            session.intake.seen_until(asked_at).await?;
            // What a hole holds is counted by upstream, and explained once it is closed.
            self.check_total(&window, total);
        }
        Ok(())
    }

    /// Reads down from the newest page to the one before. Where it comes to that, the keys above it come with the rows.
    async fn walk_down(
        &self,
        window: &Window,
        page: ListPage<Item>,
        depth: Timestamp,
    ) -> Result<(Down<Item>, Option<HashSet<u64>>), Halt> {
        let session = self.session;
        let source = session.source(Class::CatchUp, window.clone());
        let later = Head::of(&page, window, session.findings().order);
        let (mut above, mut joined) = (HashSet::new(), false);
        let down = seek::down(&source, Order::NewestFirst, page, WALK_ROWS_MAX, |rows| {
            joined = self.joins(rows);
            match &self.head {
                Some(before) if joined => above.extend(before.above(&later, rows)),
                _ => above.extend(keys(rows)),
            }
            joined || seek::passed(rows, depth)
        });
        let down = down.await?;
        Ok((down, joined.then_some(above)))
    }

    /// Rows that upstream counts and nobody has read lie deeper than the tail reads.
    fn check_total(&mut self, window: &Window, total: Option<u64>) {
        let session = self.session;
        if session.findings().total_exact != Some(true) || window.start.is_none() {
            return;
        }
        let (read, deep) = (session.intake.distinct(), session.intake.found_by_ledger());
        match self.totals.check(window.start, total, read, deep) {
            _ if sabotage::on(Bug::IgnoreAlarm) => {}
            Verdict::Explained => {}
            Verdict::Missing(rows) => {
                metrics::counter!(names::ALARMS).increment(1);
                tracing::debug!(rows, "upstream counts more new rows than were read: sweeping now");
                session.sweep_now.notify_one();
                session.ledger_now.notify_one();
            }
            Verdict::Untrusted => {
                tracing::warn!("upstream's total rises without rows: it is not trusted any more");
                session.find(|findings| findings.total_exact = Some(false));
            }
        }
    }

    /// A list with its newest row at the end: a walk that is never over.
    async fn oldest_first(&mut self) -> Result<(), Halt> {
        let session = self.session;
        let day = session.window_day();
        let source = session.source(Class::Tail, Window::since(day));
        let head = session.upstream.page(Class::Tail, &source.window, 0).await?;
        let end = head.total.unwrap_or(0).saturating_sub(PAGE_ROWS / 2);
        let page = match end {
            0 => head,
            _ => session.upstream.page(Class::Tail, &source.window, end).await?,
        };
        session.observe(&page);
        let mut asked_at = page.asked_at;
        if self.head.is_some() || page.offset > 0 {
            // Nobody knows whether this joins what was read before.
            session.open_hole();
        }
        self.head = Some(Head::of(&page, &source.window, session.findings().order));
        self.edge = Some(self.edge_of(&page.slots, asked_at, None));
        let (mut walker, rows) = Walker::start(&source, Toward::End, page);
        session.intake.take(rows, Via::Tail, asked_at, session.past()).await?;
        let mut reached_end = false;
        while session.mode() == Mode::OldestFirst && session.window_day() == day {
            let began = Instant::now();
            while let Some(rows) = walker.next().await? {
                asked_at = asked_at.max(walker.asked_at());
                let past = session.past().filter(|_| !reached_end);
                session.intake.take(rows, Via::Tail, asked_at, past).await?;
            }
            reached_end = true;
            (self.failures, asked_at) = (0, walker.asked_at());
            if !session.has_hole() {
                session.intake.seen_until(asked_at).await?;
            }
            self.check_total(&source.window, walker.total());
            walker.reopen();
            self.pace(began).await;
        }
        Ok(())
    }

    /// A list without order: everything in the window, as often as the budget allows.
    async fn windows(&mut self) -> Result<(), Halt> {
        let session = self.session;
        let mut windows = Windows::default();
        let mut whole_at: Option<Instant> = None;
        while session.mode() == Mode::Windows {
            let began = Instant::now();
            // Now and then everything is read again: a row gone and another come leave the count as it was.
            let everything = whole_at.is_none_or(|at| at.elapsed() >= EVERYTHING_EVERY);
            if everything {
                windows.forget_counts();
                whole_at = Some(began);
            }
            let mark = session.holes.mark();
            let (watch, asked_at) = (session.upstream.watch(), session.clock.now());
            let window = Window::since(session.window_day());
            let mut complete = windows.read(session, Class::Tail, window, Via::Tail, session.past()).await?;
            if everything {
                complete &= windows.read_undated(session, session.past()).await?;
                session.note_pass(began.elapsed());
            }
            let asked_at = watch.seen(asked_at);
            if complete {
                // Nobody knows where a list without order ends: the gap reaches up to now.
                sweep::check_for_gap(session, asked_at).await?;
                session.begun();
            }
            self.failures = 0;
            // After a long outage the sweep reads the days below the window first.
            if complete && session.depth().await >= midnight(day_plus(session.window_day(), 1)) {
                session.holes.close(mark);
                session.intake.seen_until(asked_at).await?;
                session.covered.send_replace(Some(asked_at));
            }
            self.pace(began).await;
        }
        (self.head, self.edge) = (None, None);
        Ok(())
    }
}
