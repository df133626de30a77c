//! Completing rows: the account-wide list lacks what a SIM's own list has.
//!
//! One task asks for SIMs, a few at a time and as the budget's details class allows; one answer serves every row of
//! that SIM that wants details. Two kinds of wants exist: a batch that waits a moment before it is appended, and an
//! event that was appended without and is to be followed by its complete copy. Both are bounded; what does not fit
//! stays partial and is counted.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    names,
    page::{PAGE_ROWS, Shown},
    upstream::Upstream,
};
use crate::{
    event::{Flags, Iccid, Provenance, Via},
    globalsim::{error::Error, wire::Row},
};

/// SIMs asked at a time.
const CONCURRENCY: usize = 8;
/// Those of them that nobody waits for. They are asked from what the budget has to spare only: a request that a
/// follower took is one that the next batch would wait for, longer than it can.
const FOLLOWERS: usize = 1;
/// How often it is looked whether the budget has something to spare.
const SPARE_LOOK: Duration = Duration::from_millis(250);
/// Rows that may want details; 10 MiB of rows.
const WANTS_MAX: usize = 10_000;
/// SIMs with waiting batches before it is hopeless for another batch to wait too.
const BUSY_SIMS: usize = 32;
/// Messages on the way to the task.
const QUEUE_MAX: usize = 1_024;
/// Answers without the row, or failures, before it stays partial.
const TRIES_MAX: u32 = 4;
/// Pause before a SIM is asked again; doubles.
const PAUSE: Duration = Duration::from_secs(2);
/// Pages of one SIM's list that are read for one set of wants.
const PAGES_MAX: u32 = 3;

/// A row that wants details.
#[derive(Debug)]
pub struct Want {
    /// Its SIM.
    pub iccid: Iccid,
    /// Its identity.
    pub identity: u64,
    /// Who wants them.
    pub goal: Goal,
}

/// Who wants details.
#[derive(Debug)]
pub enum Goal {
    /// A batch that waits.
    Wait(mpsc::UnboundedSender<Row>),
    /// An event that was appended without.
    Follow(Box<Partial>),
}

/// An event that was appended without details.
#[derive(Debug, Clone)]
pub struct Partial {
    /// The row as appended.
    pub row: Row,
    /// The id under which.
    pub id: String,
    /// The flags with which.
    pub flags: Flags,
    /// How it came; once completed, how its details came.
    pub provenance: Provenance,
}

/// Sends wants to the task.
#[derive(Debug, Clone)]
pub struct Details {
    sender: mpsc::Sender<Vec<Want>>,
    waiting: Arc<AtomicUsize>,
    shedding: Arc<watch::Sender<bool>>,
}

impl Details {
    /// The handle, and the task to be run beside the poller. Completed followers go to `completed`.
    pub fn new(
        upstream: Arc<Upstream>,
        completed: mpsc::Sender<Vec<Partial>>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let shedding = Arc::new(watch::Sender::new(false));
        let task = Task {
            shedding: shedding.subscribe(),
            upstream,
            completed,
            sims: HashMap::new(),
            turns: VecDeque::new(),
            wants: 0,
            waiting: Arc::clone(&waiting),
        };
        (Self { sender, waiting, shedding }, task.run(receiver))
    }

    /// Whether so many SIMs wait that a batch need not, or nothing is asked for.
    pub fn busy(&self) -> bool {
        *self.shedding.borrow() || self.waiting.load(Ordering::Relaxed) > BUSY_SIMS
    }

    /// Stops asking, also for what is being asked, and goes on with all of it later.
    pub fn shed(&self, shedding: bool) {
        self.shedding.send_if_modified(|now| std::mem::replace(now, shedding) != shedding);
    }

    /// Asks for details. What can't be taken is counted as staying partial.
    pub fn ask(&self, wants: Vec<Want>) {
        if let Err(refused) = self.sender.try_send(wants) {
            stays_partial(refused.into_inner().iter().filter(|w| w.follows()).count(), "overload");
        }
    }
}

/// Counts events that stay without details.
pub fn stays_partial(events: usize, why: &'static str) {
    metrics::counter!(names::PARTIAL, "why" => why).increment(events as u64);
}

impl Want {
    fn follows(&self) -> bool {
        matches!(self.goal, Goal::Follow(_))
    }

    /// Whether nobody waits for it any more.
    fn is_stale(&self) -> bool {
        matches!(&self.goal, Goal::Wait(sender) if sender.is_closed())
    }
}

struct Task {
    upstream: Arc<Upstream>,
    completed: mpsc::Sender<Vec<Partial>>,
    sims: HashMap<Iccid, Sim>,
    /// SIMs to ask, with the time from which.
    turns: VecDeque<(Instant, Iccid)>,
    wants: usize,
    waiting: Arc<AtomicUsize>,
    /// Rows are missing, and the budget is needed for them.
    shedding: watch::Receiver<bool>,
}

/// A SIM whose list is to be read now.
struct Turn {
    iccid: Iccid,
    identities: HashSet<u64>,
    waited_for: bool,
}

/// A row of a SIM's list.
struct Found {
    row: Row,
    shown: Shown,
}

#[derive(Default)]
struct Sim {
    wants: Vec<Want>,
    asked: bool,
    queued: bool,
    tries: u32,
}

impl Task {
    async fn run(mut self, mut receiver: mpsc::Receiver<Vec<Want>>) {
        let mut asked = FuturesUnordered::new();
        let mut followers = 0;
        loop {
            let shedding = *self.shedding.borrow_and_update();
            while !shedding
                && asked.len() < CONCURRENCY
                && let Some(turn) = self.next_turn(followers < FOLLOWERS && self.upstream.has_spare())
            {
                let upstream = Arc::clone(&self.upstream);
                let mut shedding = self.shedding.clone();
                followers += usize::from(!turn.waited_for);
                asked.push(async move {
                    let answer = tokio::select! {
                        biased;
                        answer = ask(&upstream, &turn.iccid, turn.identities) => Some(answer),
                        _ = shedding.wait_for(|shedding| *shedding) => None,
                    };
                    (turn.iccid, turn.waited_for, answer)
                });
            }
            let waited_for = self.turns.iter().filter(|(_, iccid)| is_waited_for(&self.sims, iccid));
            self.waiting.store(waited_for.count(), Ordering::Relaxed);
            let due = self.turns.iter().map(|(at, _)| *at).min();
            let free = !shedding && asked.len() < CONCURRENCY && followers < FOLLOWERS;
            // What is due by now was left for want of something to spare.
            let look_at = Instant::now() + SPARE_LOOK;
            let wake = async {
                match due {
                    Some(at) if free && at <= look_at => tokio::time::sleep_until(look_at).await,
                    Some(at) if free => tokio::time::sleep_until(at).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                wants = receiver.recv() => match wants {
                    Some(wants) => self.add(wants),
                    None => return,
                },
                Some((iccid, waited_for, answer)) = asked.next() => {
                    followers -= usize::from(!waited_for);
                    let done = self.answered(&iccid, answer);
                    if !done.is_empty() && self.completed.send(done).await.is_err() {
                        return;
                    }
                }
                Ok(()) = self.shedding.changed() => {}
                () = wake => {}
            }
        }
    }

    fn add(&mut self, wants: Vec<Want>) {
        for want in wants {
            if self.wants >= WANTS_MAX {
                stays_partial(usize::from(want.follows()), "overload");
                continue;
            }
            let fresh = !want.follows();
            let sim = self.sims.entry(want.iccid.clone()).or_default();
            self.wants += 1;
            if fresh {
                sim.tries = 0;
            }
            if !sim.asked && (!sim.queued || fresh) {
                // One that somebody waits for goes first.
                let turn = (Instant::now(), want.iccid.clone());
                if fresh {
                    self.turns.retain(|(_, iccid)| *iccid != want.iccid);
                    let at = self.turns.iter().position(|(_, i)| !is_waited_for(&self.sims, i));
                    self.turns.insert(at.unwrap_or(self.turns.len()), turn);
                } else {
                    self.turns.push_back(turn);
                }
            }
            let sim = self.sims.entry(want.iccid.clone()).or_default();
            sim.queued |= !sim.asked;
            sim.wants.push(want);
        }
    }

    /// The next SIM that is due; one that nobody waits for only with `followers_too`.
    fn next_turn(&mut self, followers_too: bool) -> Option<Turn> {
        let now = Instant::now();
        for _ in 0..self.turns.len() {
            let at = self
                .turns
                .iter()
                .position(|(at, iccid)| *at <= now && (followers_too || is_waited_for(&self.sims, iccid)))?;
            let (_, iccid) = self.turns.remove(at)?;
            let Some(sim) = self.sims.get_mut(&iccid) else { continue };
            sim.queued = false;
            let before = sim.wants.len();
            sim.wants.retain(|want| !want.is_stale());
            self.wants -= before - sim.wants.len();
            if sim.wants.is_empty() {
                self.sims.remove(&iccid);
                continue;
            }
            sim.asked = true;
            let waited_for = sim.wants.iter().any(|want| !want.follows());
            let identities = sim.wants.iter().map(|want| want.identity).collect();
            return Some(Turn { iccid, identities, waited_for });
        }
        None
    }

    /// Hands rows to those who want them; gives the followers that are complete now. The answer is None where it was given up to be asked again.
    fn answered(
        &mut self,
        iccid: &Iccid,
        answer: Option<Result<HashMap<u64, Found>, Error>>,
    ) -> Vec<Partial> {
        let Some(mut sim) = self.sims.remove(iccid) else { return Vec::new() };
        sim.asked = false;
        let before = sim.wants.len();
        let mut done = Vec::new();
        let answered = answer.is_some();
        let (rows, hopeless) = match answer {
            Some(Ok(rows)) => (rows, false),
            Some(Err(error)) => (HashMap::new(), !error.retryable()),
            None => (HashMap::new(), false),
        };
        let mut left = Vec::new();
        for want in std::mem::take(&mut sim.wants) {
            let Some(Found { row, shown }) = rows.get(&want.identity) else {
                if !want.is_stale() {
                    left.push(want);
                }
                continue;
            };
            match want.goal {
                Goal::Wait(sender) => {
                    // Whoever gave up waiting asks again as a follower.
                    let _ = sender.send(row.clone());
                }
                Goal::Follow(mut partial) => {
                    partial.row.merge_details(row.clone());
                    // Not seen before the same answer as the event itself.
                    let not_seen_us = partial.provenance.not_seen_us;
                    partial.provenance = Provenance { not_seen_us, ..shown.by(Via::Details) };
                    done.push(*partial);
                }
            }
        }
        sim.tries += u32::from(answered);
        if hopeless || sim.tries >= TRIES_MAX {
            stays_partial(left.iter().filter(|want| want.follows()).count(), "not_found");
            left.clear();
        }
        self.wants -= before - left.len();
        if !left.is_empty() {
            let pause = self.upstream.jittered(PAUSE * 2_u32.pow(sim.tries));
            self.turns.push_back((Instant::now() + pause, iccid.clone()));
            (sim.wants, sim.queued) = (left, true);
            self.sims.insert(iccid.clone(), sim);
        }
        done
    }
}

fn is_waited_for(sims: &HashMap<Iccid, Sim>, iccid: &Iccid) -> bool {
    sims.get(iccid).is_some_and(|sim| sim.wants.iter().any(|want| !want.follows() && !want.is_stale()))
}

/// Reads a SIM's list until all wanted rows are found, or it is hopeless.
async fn ask(
    upstream: &Upstream,
    iccid: &Iccid,
    mut identities: HashSet<u64>,
) -> Result<HashMap<u64, Found>, Error> {
    let mut found = HashMap::new();
    let mut offset = 0;
    let mut backwards = false;
    for _ in 0..PAGES_MAX {
        let page = upstream.sim_page(iccid, offset).await?;
        let rows = page.rows.len() as u64;
        let shown = Shown { asked_at: page.asked_at, answered_at: page.answered_at, not_seen_at: None };
        let times: Vec<_> = page.rows.iter().flatten().filter_map(|row| row.event.time).collect();
        for row in page.rows.into_iter().flatten() {
            if identities.remove(&row.identity_hash()) {
                found.insert(row.identity_hash(), Found { row, shown });
            }
        }
        let total = page.total.unwrap_or(u64::MAX);
        if identities.is_empty() || rows == 0 || (offset == 0 && rows >= total) {
            break;
        }
        // The newest rows are what is wanted most; where the list begins with the oldest they are at its end.
        let rising = times.windows(2).filter(|w| w[0] < w[1]).count() * 2 > times.len();
        if offset == 0 && rising && total != u64::MAX {
            backwards = true;
            offset = total;
        }
        offset = if backwards { offset.saturating_sub(PAGE_ROWS) } else { offset + rows };
    }
    Ok(found)
}
