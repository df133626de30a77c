//! The poller: turns a rate-limited, offset-paged list that changes while it is read into events appended exactly
//! once, or into a hole that is announced.
//!
//! Six readers share one budget and one [`intake`]: the [`tail`] reads the newest rows several times a second, the
//! [`catchup`] closes the [`holes`] that the tail could not join, the [`sweep`] looks for rows that appear late and
//! alone moves the floor, the [`ledger`] counts closed days, the [`backfill`] reads the past at the first start, and
//! [`details`] completes rows. [`sims`] reads sessions and devices. All of them rest on [`walk`], which reads a list that moves under it without missing a
//! row. `status` is what the rest of the gateway sees.

mod backfill;
mod board;
mod capabilities;
mod catchup;
mod days;
mod details;
mod findings;
mod gap;
mod head;
mod holes;
mod intake;
mod known;
mod lateness;
mod ledger;
mod names;
mod page;
mod position;
mod probe;
mod quarantine;
mod repair;
mod seek;
mod session;
mod share;
pub mod sims;
mod standby;
pub mod status;
mod sweep;
mod tail;
#[cfg(test)]
pub(crate) mod tests;
mod totals;
mod upstream;
mod walk;
mod windows;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::status::{BackfillState, Completeness, DayState, Mode, Status, StatusReceiver, UpstreamState};
use self::{
    board::Board,
    findings::Findings,
    intake::{Intake, IntakeConfig, Limits},
    position::{BackfillPosition, Position, PositionStore},
    session::{Halt, Session},
    tail::Tail,
    upstream::{Upstream, Window},
};
pub use self::{
    position::{KEY as POSITION_KEY, forgetting},
    share::KEY as BUDGET_KEY,
};
use crate::{
    bus::{AppendError, Bus, Fence},
    clock::SharedClock,
    event::Iccid,
    globalsim::{
        budget::{Class, Gate},
        client::Client,
    },
};

/// Name of the lease whose holder polls.
pub const LEASE: &str = "poller";
/// How long a gateway that fell silent keeps it.
const LEASE_TTL: Duration = Duration::from_secs(8);
/// Pause before the lease, or a first page that failed, is asked for again.
const PAUSE: Duration = Duration::from_secs(2);
/// Pause before a failed read or write of what is kept on the bus is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Without backfill, rows this much older than the first read still count as new: they may have appeared late.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// What is done about rows that lack details (design section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DetailsMode {
    /// Wait a little, then append without and let the complete copy follow.
    #[default]
    Wait,
    /// Append without at once and let the complete copy follow.
    Follow,
    /// Do without.
    Off,
}

/// How to poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of this upstream, part of events' `source`.
    pub name: String,
    /// Days before the very first start that are read.
    pub backfill_days: u32,
    /// What is done about rows that lack details.
    pub details: DetailsMode,
    /// Longest wait for them.
    pub details_wait: Duration,
    /// Longest time after which a row may become visible and still be found by sweeps.
    pub lateness: Duration,
    /// Days that the log remembers ids; older rows can't be told from repeats and are not appended.
    pub ids_kept_days: u32,
    /// Whether the sessions of SIMs, and the SIMs of devices, are read and told as events.
    pub sessions: bool,
    /// SIMs that are read though no event has told of them.
    pub iccids: Vec<Iccid>,
    /// Whether other gateways are on the same bus and use the same key. The gate must know it too
    /// ([`BudgetConfig::shared`](crate::globalsim::budget::BudgetConfig::shared)).
    pub shared: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            backfill_days: 1,
            details: DetailsMode::Wait,
            details_wait: Duration::from_millis(800),
            lateness: Duration::from_secs(600),
            ids_kept_days: 7,
            sessions: true,
            iccids: Vec::new(),
            shared: false,
        }
    }
}

/// Why polling ended though nobody asked for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is kept of the position can't be understood.
    #[error("the poller's position (key {key} of bucket state) can't be read: {source}", key = position::KEY)]
    Position {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The log takes nothing any more.
    #[error("events can't be appended any more: {0}")]
    Append(#[from] AppendError),
    /// A task of the poller panicked; its message is in the log.
    #[error("a part of the poller broke down")]
    Broken,
}

impl Error {
    /// Whether polling may go on if it is started again.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Broken)
    }
}

/// How one turn at polling ended.
enum Turn {
    Stopped,
    /// Another gateway polls now.
    Lost,
}

/// The poller.
#[derive(Debug)]
pub struct Ingest {
    config: Config,
    client: Client,
    gate: Gate,
    bus: Arc<dyn Bus>,
    clock: SharedClock,
    rng_seed: u64,
    board: Arc<Board>,
    /// Of what other gateways may have sent.
    witness: share::Witness,
}

impl Ingest {
    /// A poller; nothing is asked before [`run`](Self::run).
    pub fn new(
        config: Config,
        client: Client,
        gate: Gate,
        bus: Arc<dyn Bus>,
        clock: SharedClock,
        rng_seed: u64,
    ) -> Self {
        let (board, witness) = (Arc::new(Board::new()), share::Witness::default());
        Self { config, client, gate, bus, clock, rng_seed, board, witness }
    }

    /// What the poller shows of itself.
    pub fn status(&self) -> StatusReceiver {
        self.board.receiver()
    }

    /// Polls until `shutdown`; then finishes the append in flight. Where several gateways share a bus, waits until it
    /// is this one's turn.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        loop {
            let lease = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                lease = self.bus.lease(LEASE, LEASE_TTL) => lease,
                () = self.stand_by() => continue,
            };
            self.board.update(|status| status.elsewhere = None);
            let mut lease = match lease {
                Ok(lease) => lease,
                Err(error) => {
                    tracing::error!(%error, "the right to poll can't be asked for; trying again");
                    tokio::select! {
                        () = shutdown.cancelled() => return Ok(()),
                        () = tokio::time::sleep(PAUSE) => continue,
                    }
                }
            };
            let lost = async {
                // A sender that is gone has given the lease up too.
                let _ = lease.lost.wait_for(|lost| *lost).await;
            };
            match self.turn(&shutdown, lease.fence, lost).await? {
                Turn::Stopped => return Ok(()),
                Turn::Lost => {
                    tracing::warn!("another gateway polls now");
                    self.board.update(|status| {
                        status.state = UpstreamState::Stale;
                        status.message = Some("another gateway polls".to_owned());
                    });
                }
            }
        }
    }

    /// Polls while this gateway holds the lease.
    async fn turn(
        &self,
        shutdown: &CancellationToken,
        fence: Fence,
        lost: impl Future<Output = ()> + Send,
    ) -> Result<Turn, Error> {
        let stopping = shutdown.child_token();
        let mut tasks = JoinSet::new();
        let turn = tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(Turn::Stopped),
            () = lost => Ok(Turn::Lost),
            () = self.share_budget() => Ok(Turn::Lost),
            () = self.tell() => Ok(Turn::Lost),
            ended = self.read(&mut tasks, fence, &stopping) => ended,
        };
        stopping.cancel();
        self.gate.revoke();
        if self.config.shared && matches!(turn, Ok(Turn::Stopped)) {
            share::leave(&self.gate, &self.bus, &self.run_name()).await;
        }
        // Only the append in flight is waited for; the other task just ends.
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Err(error)) = ended {
                match error {
                    AppendError::Fenced => return Ok(Turn::Lost),
                    AppendError::Closed if shutdown.is_cancelled() => {}
                    error => return Err(error.into()),
                }
            }
        }
        turn
    }

    /// Keeps the budget with other gateways; comes back when one of them has taken over.
    async fn share_budget(&self) {
        if !self.config.shared {
            return std::future::pending().await;
        }
        share::run(&self.gate, &self.bus, &self.witness, &self.run_name()).await;
    }

    /// Shows what the gateway that polls tells, and sees what it notes, as long as it is waited for.
    async fn stand_by(&self) {
        match self.config.shared {
            true => tokio::select! {
                never = standby::follow(&self.board, &self.bus) => never,
                never = self.witness.watch(&self.bus) => never,
            },
            false => std::future::pending().await,
        }
    }

    /// Tells other gateways what this one sees.
    async fn tell(&self) {
        match self.config.shared {
            true => standby::tell(&self.board, &self.bus, &self.clock).await,
            false => std::future::pending().await,
        }
    }

    /// Tells notes of this run from those of any other: a restart has forgotten what it sent.
    fn run_name(&self) -> String {
        format!("{:016x}", self.rng_seed)
    }

    /// Starts the tasks and runs the readers; comes back only when they can't go on.
    async fn read(
        &self,
        tasks: &mut JoinSet<Result<(), AppendError>>,
        fence: Fence,
        stopping: &CancellationToken,
    ) -> Result<Turn, Error> {
        let upstream = Arc::new(Upstream::new(self.client.clone(), Arc::clone(&self.board), self.rng_seed));
        let kept = PositionStore::load(&self.bus).await.map_err(|source| Error::Position { source })?;
        let kept = kept.and_then(|position| position.checked(self.bus.log()));
        let mut findings = Findings::default();
        let first_start = kept.is_none();
        let roster = Arc::new(sims::Roster::default());
        let kept_sims = async {
            match self.config.sessions {
                true => sims::load(&self.bus, &roster).await,
                false => sims::Kept::default(),
            }
        };
        let (first_at, kept_sims) = tokio::join!(self.probe(&upstream, &mut findings), kept_sims);
        let position = kept.unwrap_or_else(|| self.first_position(first_at));
        let ids_kept = SignedDuration::from_hours(24 * i64::from(self.config.ids_kept_days));
        let source: Arc<str> = format!("/globalsim/{}", self.config.name).into();
        let config = IntakeConfig {
            source: Arc::clone(&source),
            details: self.config.details,
            details_wait: self.config.details_wait,
            limits: Limits { origin: position.origin, ids_kept },
            stopping: stopping.clone(),
            fence: Some(fence),
            roster: Arc::clone(&roster),
        };
        let (intake, details, writer) = Intake::new(
            config,
            Arc::clone(&upstream),
            Arc::clone(&self.bus),
            Arc::clone(&self.board),
            Arc::clone(&self.clock),
        );
        tasks.spawn(writer);
        let until_stopped = stopping.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = details => {}
                () = until_stopped.cancelled() => {}
            }
            Ok(())
        });
        let newest_before = self.bus.log().bounds().last_seq;
        let until = position.backfill.as_ref().map(|backfill| backfill.until);
        let backfill_before = position.backfill.as_ref().filter(|_| first_start).map(|b| b.until);
        let store = PositionStore::new(Arc::clone(&self.bus), Arc::clone(&self.board), position);
        store.write_first().await;
        let floor = store.get().await.floor;
        let resumed = match first_start {
            true => None,
            false => gap::before(self.bus.log(), newest_before, floor).await.map_err(|_| Error::Broken)?,
        };
        let session = Session::new(
            upstream,
            intake,
            Arc::clone(&self.board),
            store,
            Arc::clone(&self.clock),
            self.gate.clone(),
            self.config.lateness,
            findings,
        );
        session.begin(backfill_before, resumed);
        let oldest_taken = self.clock.now().saturating_sub(ids_kept).unwrap_or(Timestamp::MIN);
        if !first_start && floor < oldest_taken {
            // Where it can't be taken any more, the readers find out too.
            let _ = gap::announce_too_old(&session, floor, oldest_taken).await;
        }
        session.show();
        let backfill = async {
            match backfill::run(&session).await {
                Ok(()) => std::future::pending().await,
                Err(halt) => halt,
            }
        };
        let sims = async {
            if !self.config.sessions {
                return std::future::pending().await;
            }
            sims::run(&session, &self.bus, &roster, &source, kept_sims, &self.config.iccids, until).await
        };
        let halt = tokio::select! {
            // In one order, not in one that chance decides: none of them ends unless all do.
            biased;
            halt = repair::run(&session, &self.bus, newest_before) => halt,
            halt = backfill => halt,
            halt = capabilities::run(&session) => halt,
            halt = ledger::run(&session) => halt,
            halt = sweep::run(&session) => halt,
            halt = Tail::new(&session).run() => halt,
            halt = catchup::run(&session) => halt,
            halt = sims => halt,
        };
        debug_assert!(matches!(halt, Halt::Stopped(_)), "readers go on after anything else");
        if stopping.is_cancelled() {
            return Ok(Turn::Stopped);
        }
        // The writer has ended and says why; if it does not, it broke down.
        drop(session);
        match tasks.join_next().await {
            Some(Ok(Err(AppendError::Fenced))) => Ok(Turn::Lost),
            Some(Ok(Err(error))) => Err(error.into()),
            _ => Err(Error::Broken),
        }
    }

    /// Reads the first page, as long as that takes, and probes; gives when the page was asked for.
    async fn probe(&self, upstream: &Upstream, findings: &mut Findings) -> Timestamp {
        loop {
            let window = Window::since(probe::day_plus(probe::day_of(self.clock.now()), -2));
            match upstream.page(Class::Tail, &window, 0).await {
                Ok(first) => {
                    if let Err(error) = probe::probe(upstream, Class::Tail, findings, &window, &first).await {
                        tracing::warn!(%error, "the probe was not finished; what it would tell is assumed");
                    }
                    return first.asked_at;
                }
                Err(_) => {
                    // The failure is on the board and in the log.
                    tokio::time::sleep(upstream.jittered(PAUSE)).await;
                }
            }
        }
    }

    fn first_position(&self, first_at: Timestamp) -> Position {
        let days = self.config.backfill_days;
        let back = if days == 0 { GRACE } else { SignedDuration::from_hours(24 * i64::from(days)) };
        let origin = first_at.saturating_sub(back).unwrap_or(Timestamp::MIN);
        let backfill =
            (days > 0).then(|| BackfillPosition { until: first_at, next_day: probe::day_of(origin), days });
        Position { floor: first_at, origin, backfill, log: None }
    }
}
