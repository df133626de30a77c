//! The one thread that appends: it drops what is known, stamps, seals, writes, and only then answers.
//!
//! Batches that queue up while the disk is busy are written together and share one fsync. Fences pass through the
//! same queue, so that a new holder of a lease finds everything that the old one appended in the log.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;

use super::caretaker::INTERVAL;
use crate::{
    bus::{AppendError, Appended, Fence, NewEvent},
    clock::SharedClock,
    event::{SealError, Sealed, identity::id_hash},
    log::{BODY_BYTES_MAX, Entry, Log},
    sabotage::{self, Bug},
};

/// Batches that may wait; a caller beyond that waits outside.
const QUEUE_BATCHES: usize = 64;
/// Batches that share one fsync at most.
const GROUP_BATCHES: usize = 32;

type AppendAnswer = Result<Vec<Appended>, AppendError>;

/// What the thread is told.
pub(super) enum Command {
    /// See [`crate::bus::Bus::append`].
    Append { batch: Vec<NewEvent>, fence: Option<Fence>, answer: oneshot::Sender<AppendAnswer> },
    /// From now on only this fence of the lease is valid.
    Fence { lease: String, fence: u64, done: oneshot::Sender<()> },
    /// Answer everything that is queued, then end.
    Close,
}

/// The running thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) commands: mpsc::SyncSender<Command>,
    pub(super) thread: JoinHandle<()>,
}

/// What the thread works with.
pub(super) struct State {
    pub(super) log: Arc<Log>,
    pub(super) clock: SharedClock,
    pub(super) late_after: SignedDuration,
    /// Newest stamp given; the clock may step back, even between two batches of one group.
    pub(super) newest: Timestamp,
    /// When maintenance was last asked for by the clock.
    pub(super) cared_at: Timestamp,
    /// Where to ask for maintenance.
    pub(super) caretaker: mpsc::SyncSender<()>,
    /// Newest fence by lease.
    pub(super) fences: HashMap<String, u64>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(state: State) -> std::io::Result<Self> {
        let (commands, queue) = mpsc::sync_channel(QUEUE_BATCHES);
        let thread =
            std::thread::Builder::new().name("simcast-log".into()).spawn(move || run(state, &queue))?;
        Ok(Self { commands, thread })
    }
}

fn run(mut state: State, queue: &mpsc::Receiver<Command>) {
    let mut group = Group::default();
    let mut open = true;
    while open {
        let Ok(first) = queue.recv() else { break };
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Append { batch, fence, answer } => {
                    state.take(&mut group, batch, fence, answer);
                }
                Command::Fence { lease, fence, done } => {
                    state.write(&mut group);
                    state.fences.insert(lease, fence);
                    // The caller may have gone away; the fence stays.
                    let _ = done.send(());
                }
                Command::Close => {
                    open = false;
                    break;
                }
            }
            next = if group.batches.len() < GROUP_BATCHES { queue.try_recv().ok() } else { None };
        }
        state.write(&mut group);
    }
    for command in queue.try_iter() {
        if let Command::Append { answer, .. } = command {
            let _ = answer.send(Err(AppendError::Closed));
        }
    }
}

fn short_enough(sealed: Sealed) -> Result<Sealed, SealError> {
    let bytes = sealed.body.len();
    if bytes > BODY_BYTES_MAX {
        return Err(SealError { field: "event", bytes, max: BODY_BYTES_MAX });
    }
    Ok(sealed)
}

/// Batches that will share one fsync.
#[derive(Default)]
struct Group {
    entries: Vec<Entry>,
    /// Where in `entries` an id of this group lies.
    places: HashMap<u128, usize>,
    batches: Vec<(Vec<Outcome>, oneshot::Sender<AppendAnswer>)>,
}

#[derive(Clone, Copy)]
enum Outcome {
    /// To be stored, at this place in the group.
    New(usize),
    /// The same id came earlier in the group.
    Repeat(usize),
    /// Stored long ago, at this sequence.
    Known(u64),
}

impl State {
    fn take(
        &mut self,
        group: &mut Group,
        batch: Vec<NewEvent>,
        fence: Option<Fence>,
        answer: oneshot::Sender<AppendAnswer>,
    ) {
        if fence.is_some_and(|fence| !self.fences.values().any(|newest| *newest == fence.0)) {
            let _ = answer.send(Err(AppendError::Fenced));
            return;
        }
        let before = group.entries.len();
        match self.seal(group, batch) {
            Ok(outcomes) => group.batches.push((outcomes, answer)),
            Err(error) => {
                group.entries.truncate(before);
                group.places.retain(|_, place| *place < before);
                let _ = answer.send(Err(error));
            }
        }
    }

    fn seal(&mut self, group: &mut Group, batch: Vec<NewEvent>) -> Result<Vec<Outcome>, AppendError> {
        let observed_at = self.stamp();
        let mut outcomes = Vec::with_capacity(batch.len());
        for (index, NewEvent { event, identity, content }) in batch.into_iter().enumerate() {
            let hash = id_hash(&event.id);
            let outcome = if let Some(place) = group.places.get(&hash) {
                Outcome::Repeat(*place)
            } else if let Some(known) =
                self.log.try_find(&event.id).map_err(|error| AppendError::Unavailable(error.to_string()))?
            {
                Outcome::Known(known.seq)
            } else {
                let sealed = event
                    .seal(observed_at, self.late_after)
                    .and_then(short_enough)
                    .map_err(|source| AppendError::BadEvent { index, source })?;
                let place = group.entries.len();
                group.entries.push(Entry { sealed, identity, content });
                group.places.insert(hash, place);
                Outcome::New(place)
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// The wall clock in whole milliseconds, never before the newest event.
    fn stamp(&mut self) -> Timestamp {
        let now = Timestamp::from_millisecond(self.clock.now().as_millisecond());
        let least = if sabotage::on(Bug::StampBackwards) { Timestamp::MIN } else { self.newest };
        self.newest = now.unwrap_or(self.newest).max(least);
        self.newest
    }

    /// Makes the group durable and answers its batches.
    fn write(&mut self, group: &mut Group) {
        let Group { entries, batches, .. } = std::mem::take(group);
        let written = if entries.is_empty() {
            Ok(Vec::new())
        } else {
            self.log.append(entries).map_err(|error| error.to_string())
        };
        let now = self.clock.now();
        let is_due = !(0..INTERVAL.as_secs() as i64).contains(&now.duration_since(self.cared_at).as_secs());
        if is_due {
            self.cared_at = now;
        }
        if is_due || self.log.needs_maintenance() {
            // If one request is waiting already, it will do.
            let _ = self.caretaker.try_send(());
        }
        for (outcomes, answer) in batches {
            let known = |outcome: &Outcome| match outcome {
                Outcome::Known(seq) => Some(Appended::Known(*seq)),
                Outcome::New(_) | Outcome::Repeat(_) => None,
            };
            let result = match &written {
                Ok(seqs) => Ok(outcomes
                    .iter()
                    .map(|outcome| match *outcome {
                        Outcome::New(place) => Appended::Stored(seqs[place]),
                        Outcome::Repeat(place) => Appended::Known(seqs[place]),
                        Outcome::Known(seq) => Appended::Known(seq),
                    })
                    .collect()),
                Err(reason) => outcomes
                    .iter()
                    .map(known)
                    .collect::<Option<_>>()
                    .ok_or_else(|| AppendError::Unavailable(reason.clone())),
            };
            // The caller may have gone away; what is stored stays stored.
            let _ = answer.send(result);
        }
    }
}
