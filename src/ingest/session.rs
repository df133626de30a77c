//! What the readers of one run share.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp, civil::Date};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{
    board::Board,
    findings::Findings,
    gap::Before,
    holes::{Edge, Holes},
    intake::{Intake, Stopped},
    names,
    page::{ListPage, Order, Slot},
    position::PositionStore,
    probe::{day_of, day_plus},
    status::Mode,
    upstream::{Item, Upstream, Window, WindowSource},
    walk::WalkError,
};
use crate::{
    clock::SharedClock,
    globalsim::{budget::Class, budget::Gate, error::Error},
    sabotage::{self, Bug},
};

/// Clocks of upstream's hosts may differ by this much from each other and from what orders the list.
pub const SKEW: SignedDuration = SignedDuration::from_secs(5);

/// Days before today from which the tail, sweeps and the alarm read: whatever zone upstream's days are in, and
/// whether `start_date` includes its day or not, the last ten hours are within.
const WINDOW_DAYS: i64 = 2;

/// Seconds of a day.
const DAY_S: i64 = 24 * 3600;
/// How long after midnight UTC a day of upstream's may begin while nobody knows: twelve hours west of it.
const ZONE_MAX_S: i64 = 12 * 3600;

/// Lost walks in a row after which paging is not trusted.
const LOST_MAX: u32 = 4;

/// Announced gaps that are remembered.
pub const GAPS_MAX: usize = 256;

/// Why a reader stopped what it was doing.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// Nothing can be appended any more: the run ends.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Upstream failed; tried again later.
    #[error(transparent)]
    Upstream(#[from] Error),
    /// The list could not be followed; tried again later.
    #[error("the list changed so fast that it could not be followed")]
    Lost,
}

impl From<WalkError<Error>> for Halt {
    fn from(error: WalkError<Error>) -> Self {
        match error {
            WalkError::Source(error) => Self::Upstream(error),
            WalkError::Lost => Self::Lost,
        }
    }
}

/// Shared by tail, sweep and backfill.
#[derive(Debug)]
pub struct Session {
    /// Where to ask.
    pub upstream: Arc<Upstream>,
    /// Where rows go.
    pub intake: Arc<Intake>,
    /// What is shown.
    pub board: Arc<Board>,
    /// How far it has come.
    pub position: PositionStore,
    /// Time.
    pub clock: SharedClock,
    /// The request budget, to be shown.
    pub gate: Gate,
    /// Longest time after which a row may become visible and still be found by sweeps.
    pub lateness: Duration,
    /// What upstream is like.
    findings: Mutex<Findings>,
    /// Lost walks in a row.
    lost: Mutex<u32>,
    /// Something may lie deeper than the tail reads: sweep now.
    pub sweep_now: Notify,
    /// It may lie in a closed day: compare its counts now.
    pub ledger_now: Notify,
    /// Stretches that were announced as lost.
    gaps: Mutex<Vec<(Timestamp, Timestamp)>>,
    /// How long it took to read the window of a list without order wholly, when that was last done.
    pass: Mutex<Option<Duration>>,
    /// What may hold rows that nobody has read.
    pub holes: Holes,
    /// Until the first complete sweep of a first start: rows older than this are backfill, whoever finds them.
    past: Mutex<Option<Timestamp>>,
    /// Until the first complete sweep of a restart: what the log had before.
    resumed: Mutex<Option<Before>>,
    /// The newest position of the log when the first of the holes that are open now was found.
    seq_before_hole: Mutex<u64>,
    /// The last complete sweep of a list with an order, or tail page that reached as deep.
    swept: Mutex<Option<Swept>>,
    /// The tail itself read down to the depth of a sweep, at this time.
    pub covered: watch::Sender<Option<Timestamp>>,
}

/// A read of every row visible when it began, from the newest down to a depth.
#[derive(Debug, Clone, Copy)]
pub struct Swept {
    /// When it began, by our clock.
    pub sent_at: Timestamp,
    /// Rows older than this it may have left out.
    pub depth: Timestamp,
}

impl Session {
    /// A session.
    #[expect(clippy::too_many_arguments, reason = "the composition root of the readers")]
    pub fn new(
        upstream: Arc<Upstream>,
        intake: Arc<Intake>,
        board: Arc<Board>,
        position: PositionStore,
        clock: SharedClock,
        gate: Gate,
        lateness: Duration,
        findings: Findings,
    ) -> Self {
        Self {
            upstream,
            intake,
            board,
            position,
            clock,
            gate,
            lateness,
            findings: Mutex::new(findings),
            lost: Mutex::new(0),
            sweep_now: Notify::new(),
            ledger_now: Notify::new(),
            gaps: Mutex::default(),
            pass: Mutex::default(),
            holes: Holes::default(),
            past: Mutex::default(),
            resumed: Mutex::default(),
            seq_before_hole: Mutex::default(),
            swept: Mutex::default(),
            covered: watch::Sender::new(None),
        }
    }

    /// What holds until the first complete sweep: rows older than `past` are backfill; `resumed` is what the log had
    /// before a restart.
    pub fn begin(&self, past: Option<Timestamp>, resumed: Option<Before>) {
        (*self.past.lock(), *self.resumed.lock()) = (past, resumed);
    }

    /// Notes stretches that were announced as lost.
    pub fn know_gaps(&self, more: Vec<(Timestamp, Timestamp)>) {
        let mut gaps = self.gaps.lock();
        gaps.extend(more);
        let excess = gaps.len().saturating_sub(GAPS_MAX);
        gaps.drain(..excess);
    }

    /// Stretches that were announced as lost, as far as they are remembered.
    pub fn gaps(&self) -> Vec<(Timestamp, Timestamp)> {
        self.gaps.lock().clone()
    }

    /// Rows older than this are backfill.
    pub fn past(&self) -> Option<Timestamp> {
        *self.past.lock()
    }

    /// What the log had before a restart, while no sweep is complete.
    pub fn resumed(&self) -> Option<Before> {
        *self.resumed.lock()
    }

    /// A sweep is complete: what is found from now on came late.
    pub fn begun(&self) {
        self.begin(None, None);
    }

    /// The findings now.
    pub fn findings(&self) -> Findings {
        self.findings.lock().clone()
    }

    /// How to read now.
    pub fn mode(&self) -> Mode {
        self.findings.lock().mode()
    }

    /// The order to walk in now.
    pub fn order(&self) -> Order {
        self.findings.lock().walk_order()
    }

    /// Checks a page against the findings.
    pub fn observe(&self, page: &ListPage<Item>) {
        let changed = self.findings.lock().observe(page, self.upstream.refused_offset());
        if changed {
            self.swept.lock().take();
            self.open_hole();
        }
    }

    /// The last complete sweep, if the list has kept its order since.
    pub fn swept(&self) -> Option<Swept> {
        *self.swept.lock()
    }

    /// A sweep is complete, or the tail read as deep.
    pub fn has_swept(&self, swept: Swept) {
        *self.swept.lock() = Some(swept);
    }

    /// Changes a finding.
    pub fn find(&self, change: impl FnOnce(&mut Findings)) {
        let another_mode = {
            let mut findings = self.findings.lock();
            let before = findings.mode();
            change(&mut findings);
            findings.mode() != before
        };
        if another_mode {
            self.open_hole();
        }
        self.show();
    }

    /// Puts findings and budget on the board.
    pub fn show(&self) {
        let findings = self.findings();
        let horizon = match findings.mode() {
            Mode::Windows => self.windows_horizon_s(&findings),
            _ => self.lateness.as_secs(),
        };
        findings.show(&self.board, horizon);
        if !self.has_hole() && self.board.status().backlog_rows.is_some() {
            self.show_backlog(None);
        }
        let usage = self.gate.usage();
        self.board.update(|status| status.pass_s = self.last_pass().map(|took| took.as_secs_f64()));
        let classes: serde_json::Map<_, _> = Class::ALL
            .iter()
            .zip(usage.used.iter().zip(usage.waiting))
            .map(|(class, (used, waiting))| {
                (class.as_str().to_owned(), serde_json::json!({"used": used, "waiting": waiting}))
            })
            .collect();
        let budget = serde_json::json!({
            "requests_per_minute": usage.requests_per_minute,
            "allowance": usage.allowance,
            "used": usage.used_total,
            "paused_for_seconds": usage.paused_for.map(|pause| pause.as_secs_f64()),
            "classes": classes,
        });
        self.board.update(|status| status.budget = budget);
    }

    /// The window of a list without order was read wholly, which took so long.
    pub fn note_pass(&self, took: Duration) {
        *self.pass.lock() = Some(took);
    }

    /// How long that took the last time: a row may be read so much later than it becomes visible.
    pub fn last_pass(&self) -> Option<Duration> {
        *self.pass.lock()
    }

    /// In an unsorted list everything in the tail's window is read again and again: a row is found if it appears while
    /// its time still lies in the window. Just after midnight the window is shortest; what one reading takes is lost.
    /// `day_starts_s` is of windows asked for a day earlier where `start_date` may exclude its day.
    fn windows_horizon_s(&self, findings: &Findings) -> u64 {
        let excluded = if findings.start_inclusive == Some(true) { 0 } else { DAY_S };
        let starts = findings.day_starts_s.map_or(ZONE_MAX_S, |second| second.clamp(-ZONE_MAX_S, ZONE_MAX_S));
        let reading = self.last_pass().map_or(0, |took| took.as_secs());
        u64::try_from(WINDOW_DAYS * DAY_S - excluded - starts).unwrap_or(0).saturating_sub(reading)
    }

    /// A walk could not be followed to its end.
    pub fn walk_lost(&self) {
        metrics::counter!(names::LOST_WALKS).increment(1);
        let mut lost = self.lost.lock();
        *lost += 1;
        if *lost == LOST_MAX {
            tracing::warn!("walks are lost again and again: the list is read in windows that fit one page");
            self.find(|findings| findings.paging_lost = true);
        }
    }

    /// A walk came to its end.
    pub fn walk_done(&self) {
        *self.lost.lock() = 0;
    }

    /// Rows may be missing and nobody knows between which: until a sweep that begins after this is complete,
    /// `seen_until` stands still.
    pub fn open_hole(&self) {
        self.before_hole();
        self.holes.open_edgeless();
        self.sweep_now.notify_one();
    }

    /// The same where it is known that they lie below rows with these keys and above `bottom`.
    pub fn open_hole_between(&self, bottom: Edge, top: HashSet<u64>) {
        self.before_hole();
        self.holes.open(bottom, top);
    }

    fn before_hole(&self) {
        if !self.has_hole() {
            *self.seq_before_hole.lock() = self.intake.log().bounds().last_seq;
        }
    }

    /// The newest position of the log when the first of the holes that are open now was found.
    pub fn seq_before_hole(&self) -> u64 {
        *self.seq_before_hole.lock()
    }

    /// Whether rows may be missing.
    pub fn has_hole(&self) -> bool {
        self.holes.any()
    }

    /// Puts on the board how many rows are known to wait, and how long reading them will take.
    pub fn show_backlog(&self, rows: Option<u64>) {
        let eta = rows.and_then(|rows| self.holes.note_backlog(rows));
        self.intake.shed(rows.is_some());
        self.board.update(|status| (status.backlog_rows, status.drain_eta_s) = (rows, eta));
    }

    /// The first day of the tail's window.
    pub fn window_day(&self) -> Date {
        day_plus(day_of(self.clock.now()), -WINDOW_DAYS)
    }

    /// A window of the list as a source for walking.
    pub fn source(&self, class: Class, window: Window) -> WindowSource<'_> {
        WindowSource { upstream: &self.upstream, class, window }
    }

    /// How deep a complete sweep must read.
    pub async fn depth(&self) -> Timestamp {
        let floor = self.position.get().await.floor;
        let lateness = if sabotage::on(Bug::SweepWithoutLateness) { Duration::ZERO } else { self.lateness };
        let lateness = SignedDuration::try_from(lateness).unwrap_or(SignedDuration::MAX);
        floor.saturating_sub(lateness).and_then(|t| t.saturating_sub(SKEW)).unwrap_or(Timestamp::MIN)
    }
}

/// The keys by which a later page is recognised to join this one.
pub fn keys(slots: &[Slot<Item>]) -> HashSet<u64> {
    slots.iter().filter(|slot| slot.unique).map(|slot| slot.key).collect()
}
