//! From rows to durable events: judged, completed, appended, in the order in which they were taken.
//!
//! Every reader (tail, walk, sweep, backfill) hands its rows to [`Intake::take`], which judges them at once, so that
//! two readers that see the same row at the same time do not both append it. A queue then keeps the order while
//! batches wait a moment for details; the queue is bounded, and a full one stops the readers, never drops a row. A
//! reader that must know that its rows are durable calls [`Intake::settle`]: that is what the floor waits for.

mod writer;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use crate::event::Via;

use self::writer::{Batch, Pending, Work, Writer};
use super::{
    DetailsMode,
    board::Board,
    details::{Details, Goal, Want, stays_partial},
    known::{Known, Verdict},
    lateness::Lateness,
    names,
    page::Slot,
    quarantine::{self, RecentKeys},
    seek::sort_ascending,
    sims::Roster,
    upstream::{Item, Upstream},
};
use crate::{
    bus::{AppendError, Bus, Fence, NewEvent},
    clock::SharedClock,
    event::{Flag, Flags, identity::id_hash},
    globalsim::wire::Row,
    log::{Damage, Log},
    sabotage::{self, Bug},
};

/// Batches on their way; each is at most a page.
const QUEUE_MAX: usize = 64;

/// What became of the rows of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Rows not seen before, readable or not.
    pub new: u64,
    /// Rows seen before.
    pub known: u64,
}

/// The poller has stopped: the log was closed, or taken over by another gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing is appended any more")]
pub struct Stopped;

/// What is not appended.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows older than this were not asked for.
    pub origin: Timestamp,
    /// For how long ids are remembered; older rows can't be told from repeats.
    pub ids_kept: SignedDuration,
}

/// Takes rows from all readers.
#[derive(Debug)]
pub struct Intake {
    state: AsyncMutex<State>,
    queue: mpsc::Sender<Work>,
    details: Option<Details>,
    mode: DetailsMode,
    wait: Duration,
    limits: Limits,
    lateness: Mutex<Lateness>,
    distinct: AtomicU64,
    found_by_ledger: AtomicU64,
    log: Arc<Log>,
    board: Arc<Board>,
    clock: SharedClock,
}

#[derive(Debug)]
struct State {
    known: Known,
    bad_rows: RecentKeys,
    lost: LostIds,
}

/// How rows become events.
#[derive(Debug, Clone)]
pub struct IntakeConfig {
    /// `source` of the events.
    pub source: Arc<str>,
    /// Whether appends wait for details.
    pub details: DetailsMode,
    /// For how long.
    pub details_wait: Duration,
    /// What is not appended.
    pub limits: Limits,
    /// The run is to end: nothing is waited for any more.
    pub stopping: CancellationToken,
    /// Proof that this gateway is the one that polls.
    pub fence: Option<Fence>,
    /// Which SIM is in which device.
    pub roster: Arc<Roster>,
}

impl Intake {
    /// The intake, and the tasks to be run beside the readers: the details task (ends when the intake is dropped) and
    /// the writer (ends when all that was taken is durable after the intake is dropped, or with the reason why
    /// nothing can be appended any more).
    pub fn new(
        config: IntakeConfig,
        upstream: Arc<Upstream>,
        bus: Arc<dyn Bus>,
        board: Arc<Board>,
        clock: SharedClock,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send, impl Future<Output = Result<(), AppendError>> + Send)
    {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let (completed, completions) = mpsc::channel(QUEUE_MAX);
        let (details, details_task) = Details::new(Arc::clone(&upstream), completed);
        let writer = Writer {
            bus: Arc::clone(&bus),
            fence: config.fence,
            stopping: config.stopping,
            source: config.source,
            details: details.clone(),
            mode: config.details,
            board: Arc::clone(&board),
            clock: Arc::clone(&clock),
            upstream,
            roster: config.roster,
        };
        let intake = Self {
            state: AsyncMutex::new(State {
                known: Known::new(Arc::clone(bus.log())),
                bad_rows: RecentKeys::default(),
                lost: LostIds { damage: bus.log().damage(), of: Arc::default(), ids: HashSet::new() },
            }),
            queue,
            details: (config.details != DetailsMode::Off).then_some(details),
            mode: config.details,
            wait: config.details_wait,
            limits: config.limits,
            lateness: Mutex::new(Lateness::default()),
            distinct: AtomicU64::new(0),
            found_by_ledger: AtomicU64::new(0),
            log: Arc::clone(bus.log()),
            board,
            clock,
        };
        (Arc::new(intake), details_task, writer.run(receiver, completions))
    }

    /// Takes rows that were read together, in list order oldest first or to be sorted by time. Waits while the queue
    /// is full. `backfill_before` flags rows older than it.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn take(
        &self,
        mut rows: Vec<Slot<Item>>,
        via: Via,
        read_at: Timestamp,
        backfill_before: Option<Timestamp>,
    ) -> Result<Taken, Stopped> {
        sort_ascending(&mut rows);
        let stops = via == Via::Sweep && sabotage::on(Bug::StopAtKnown);
        if stops {
            rows.reverse();
        }
        let mut taken = Taken::default();
        // Held until the batch has its place in the queue: the order of judging is the order of appending.
        let mut state = self.state.lock().await;
        let mut fresh = Vec::new();
        for slot in rows {
            match self.judge(&mut state, slot, via, read_at, backfill_before) {
                Judged::New(pending) => {
                    taken.new += 1;
                    fresh.push(*pending);
                }
                Judged::Bad => taken.new += 1,
                Judged::Known if stops => break,
                Judged::Known => taken.known += 1,
            }
        }
        if via == Via::Ledger {
            self.found_by_ledger.fetch_add(taken.new, Ordering::Relaxed);
        } else if !matches!(via, Via::Backfill | Via::Repair) {
            self.distinct.fetch_add(taken.new, Ordering::Relaxed);
        }
        while !fresh.is_empty() {
            let rest = fresh.split_off(fresh.len().min(super::page::PAGE_ROWS as usize));
            let batch = self.batch(std::mem::replace(&mut fresh, rest), via);
            self.queue.send(Work::Batch(batch)).await.map_err(|_| Stopped)?;
        }
        Ok(taken)
    }

    /// Waits until everything taken before is durable.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn settle(&self) -> Result<(), Stopped> {
        let (done, settled) = oneshot::channel();
        self.queue.send(Work::Settle(done)).await.map_err(|_| Stopped)?;
        settled.await.map_err(|_| Stopped)
    }

    /// Forgets which rows were seen lately, once they are durable: the log has lost some of them and knows better.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn forget_recent(&self) -> Result<(), Stopped> {
        let mut state = self.state.lock().await;
        self.settle().await?;
        state.known.forget_recent();
        Ok(())
    }

    /// Rows of before this are not taken.
    pub fn oldest_taken(&self) -> Timestamp {
        let Limits { origin, ids_kept } = self.limits;
        self.clock.now().saturating_sub(ids_kept).unwrap_or(Timestamp::MIN).max(origin)
    }

    /// Appends one of the gateway's own events.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn announce(&self, event: NewEvent) -> Result<(), Stopped> {
        self.queue.send(Work::Announce(Box::new(event))).await.map_err(|_| Stopped)
    }

    /// Appends events made of other data.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn derive(&self, mut events: Vec<NewEvent>, via: Via) -> Result<(), Stopped> {
        while !events.is_empty() {
            let rest = events.split_off(events.len().min(super::page::PAGE_ROWS as usize));
            let batch = std::mem::replace(&mut events, rest);
            self.queue.send(Work::Derived(batch, via)).await.map_err(|_| Stopped)?;
        }
        Ok(())
    }

    /// Says that everything that upstream showed up to this time has been taken; shown once it is durable.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn seen_until(&self, at: Timestamp) -> Result<(), Stopped> {
        self.queue.send(Work::Seen(at)).await.map_err(|_| Stopped)
    }

    /// Rows taken that were new, other than backfilled ones; what a rise of upstream's total is compared with.
    pub fn distinct(&self) -> u64 {
        self.distinct.load(Ordering::Relaxed)
    }

    /// Whether rows go on without waiting for their details, since the budget is needed for rows that are missing.
    pub fn shed(&self, shedding: bool) {
        if let Some(details) = &self.details {
            details.shed(shedding);
        }
    }

    /// Rows that the ledger found. They lie in closed days: a rise of the total in the tail's window may have been
    /// theirs, but is long past when they are found.
    pub fn found_by_ledger(&self) -> u64 {
        self.found_by_ledger.load(Ordering::Relaxed)
    }

    /// Where events go.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Whether a row that was asked for is older than ids are remembered, and not in the log.
    pub fn is_forgotten(&self, row: &Row) -> bool {
        let edge = self.clock.now().saturating_sub(self.limits.ids_kept).unwrap_or(Timestamp::MIN);
        let is_old = row.event.time.is_some_and(|time| self.limits.origin <= time && time < edge);
        is_old && row.identity().plain_id().is_some_and(|id| self.log.find(&id).is_none())
    }

    /// How late rows were lately.
    pub fn lateness(&self) -> Lateness {
        self.lateness.lock().clone()
    }

    fn judge(
        &self,
        state: &mut State,
        slot: Slot<Item>,
        via: Via,
        read_at: Timestamp,
        backfill_before: Option<Timestamp>,
    ) -> Judged {
        let shown = slot.shown;
        let row = match slot.row {
            Ok(row) => row,
            Err(bad) => {
                if !state.bad_rows.insert(slot.key) {
                    return Judged::Known;
                }
                metrics::counter!(names::QUARANTINED, "what" => "row").increment(1);
                let now = self.clock.now();
                self.board.update(|status| {
                    status.quarantined += 1;
                    status.quarantine.add(now, "row", &bad.reason, &bad.raw);
                });
                let reason = quarantine::shown(&bad.reason);
                tracing::warn!(reason, bytes = bad.raw.len(), "a row of upstream's is no event");
                return Judged::Bad;
            }
        };
        if row.event.time.is_some_and(|time| self.is_too_old(time)) {
            return Judged::Known;
        }
        let (id, conflict) = match state.known.judge(&row, slot.ordinal) {
            Verdict::New(id, conflict) => (id, conflict),
            Verdict::Known => return Judged::Known,
            Verdict::Revised => {
                metrics::counter!(names::REVISED).increment(1);
                self.board.update(|status| status.revised += 1);
                return Judged::Known;
            }
        };
        let mut flags = Flags::default();
        if conflict {
            metrics::counter!(names::CONFLICTS).increment(1);
            self.board.update(|status| status.conflicts += 1);
            flags.insert(Flag::Conflict);
        }
        let time = row.event.time;
        let repaired = state.lost.has(&id, via, time);
        if repaired {
            flags.insert(Flag::Repaired);
        }
        let backfill_before =
            backfill_before.map(|edge| if sabotage::on(Bug::BackfillEdge) { read_at } else { edge });
        if backfill_before.is_some_and(|edge| time.is_none_or(|time| time < edge)) {
            flags.insert(Flag::Backfill);
        } else if let Some(time) = time
            && matches!(via, Via::Tail | Via::Sweep)
            && !repaired
        {
            self.lateness.lock().observe(read_at, time);
        }
        if via == Via::Sweep && !repaired {
            self.board.update(|status| status.late_found += 1);
        }
        Judged::New(Box::new(Pending {
            identity: row.identity_hash(),
            content: row.content,
            row,
            id,
            flags,
            provenance: shown.by(via),
        }))
    }

    /// Older than what was asked for, or than ids are remembered.
    fn is_too_old(&self, time: Timestamp) -> bool {
        let old = time < self.oldest_taken();
        if old {
            metrics::counter!(names::TOO_OLD).increment(1);
        }
        old
    }

    /// Asks for the details that the batch's rows lack.
    fn batch(&self, rows: Vec<Pending>, via: Via) -> Batch {
        let mut batch = Batch { rows, via, taken_at: Instant::now(), completions: None };
        let Some(details) = &self.details else {
            stays_partial(batch.rows.iter().filter(|pending| !pending.row.complete).count(), "off");
            return batch;
        };
        let waits = self.mode == DetailsMode::Wait
            && matches!(via, Via::Tail | Via::Sweep)
            && !self.wait.is_zero()
            && !details.busy();
        if waits {
            let (sender, receiver) = mpsc::unbounded_channel();
            let wants: Vec<Want> = batch
                .rows
                .iter()
                .filter(|pending| !pending.row.complete && !pending.flags.contains(Flag::Backfill))
                .filter_map(|pending| {
                    let iccid = pending.row.event.iccid.clone()?;
                    Some(Want { iccid, identity: pending.identity, goal: Goal::Wait(sender.clone()) })
                })
                .collect();
            if !wants.is_empty() {
                batch.completions = Some((receiver, wants.len(), batch.taken_at + self.wait));
                details.ask(wants);
            }
        }
        batch
    }
}

enum Judged {
    New(Box<Pending>),
    Known,
    Bad,
}

/// What the log lost to damage, to recognise it when upstream shows it again.
#[derive(Debug)]
struct LostIds {
    damage: watch::Receiver<Arc<Vec<Damage>>>,
    /// What `ids` was made of.
    of: Arc<Vec<Damage>>,
    ids: HashSet<u128>,
}

impl LostIds {
    /// Whether a row that the log does not know is one that it had: by its id, or where ids were lost too, by its
    /// time and by who found it.
    fn has(&mut self, id: &str, via: Via, time: Option<Timestamp>) -> bool {
        let now = Arc::clone(&self.damage.borrow());
        if now.is_empty() {
            return false;
        }
        if !Arc::ptr_eq(&now, &self.of) {
            self.ids = now.iter().flat_map(|one| one.records.iter().map(|record| record.id)).collect();
            self.of = now;
        }
        let within = |one: &Damage| {
            one.records.is_empty() && time.is_some_and(|time| one.times.0 <= time && time <= one.times.1)
        };
        self.ids.contains(&id_hash(id)) || (via == Via::Repair && self.of.iter().any(within))
    }
}
