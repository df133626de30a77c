//! Appending: every batch goes in only where the stream ends exactly where the local copy does.
//!
//! The server forgets ids after its window, the clocks of gateways differ, and an answer can get lost. One
//! condition settles all three: each batch carries `Nats-Expected-Last-Sequence`, the sequence up to which the
//! mirror has [evaluated](super::mirror::Mirror::evaluated) the stream. If it goes in, then
//!
//! - no id of it was in the stream, within the window or not, since the mirror knows all ids up to that sequence;
//! - its stamp is not before that of any event in the stream, whoever appended it, since it was not before the newest
//!   one of the mirror;
//! - an earlier try of the same batch whose answer was lost is not in the stream and never will be: it carried a
//!   sequence at most as high, at which something else lies now.
//!
//! If somebody else was faster, the server says so, the mirror catches up, and the batch is looked at again. That is
//! rare: one gateway polls. An unknown outcome is an error to the caller; before the next try the mirror catches up
//! with the stream's last sequence, so that what was stored after all is found.
//!
//! So the server's own look at `Nats-Msg-Id`, which is there for other readers, is never needed, and it is in the way
//! where the server remembers an id that the stream does not have: of a message that was removed, or of a batch that
//! came to nothing under a leader that was replaced. It can't be switched off; its window is as short as the server
//! permits, and an append waits until it is over. Leaving the header out instead would take from every reader what
//! [`message`](super::message) promises.
//!
//! A fence is one more condition on the first message, on the last sequence of the lease's own subject, and is
//! checked in the same step as the rest: the holder of an older lease is refused by the stream itself.

pub(super) mod batch;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex as SyncMutex;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use self::batch::{BATCH_MESSAGES_MAX, Condition, Refusal, publish};
use super::{
    message::Draft,
    mirror::{Mirror, Source},
    subject,
};
use crate::{
    bus::{AppendError, Appended, Fill, NewEvent},
    clock::SharedClock,
    event::{SealError, identity::id_hash},
    log::Entry,
};

/// How long one append may take, waiting included.
const APPEND_TIMEOUT: Duration = Duration::from_secs(15);
/// How much longer a stop waits for it: the last answer of the server.
const CLOSE_GRACE: Duration = Duration::from_secs(6);
/// Times that one append is refused because somebody else was faster.
const REFUSALS_MAX: u32 = 16;
/// Grows with each refusal behind the first.
const PAUSE: Duration = Duration::from_millis(10);
/// Pause after a refusal for an id in the server's window.
const WINDOW_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of one atomic batch; the server holds it back until its last message is there.
pub(super) const BATCH_BYTES_MAX: usize = 8 << 20;
/// How long the mirror may be behind before the watchdog is woken.
const WATCHDOG_AFTER: Duration = Duration::from_millis(200);

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Appender {
    pub(super) source: Source,
    pub(super) subject_prefix: String,
    pub(super) mirror: Arc<Mirror>,
    pub(super) clock: SharedClock,
    pub(super) late_after: SignedDuration,
    /// No append begins any more.
    pub(super) closing: CancellationToken,
    /// The mirror stops.
    pub(super) stopping: CancellationToken,
    /// Held by the append that is at work: batches go in one after the other.
    pub(super) state: Mutex<State>,
    /// Why the last batch was not taken, and how far the stream was evaluated then.
    pub(super) refused: SyncMutex<Option<(u64, String)>>,
}

/// What one append leaves for the next.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The mirror must have evaluated up to here before anything is looked up in it.
    target: u64,
    /// A batch was sent and nothing is known of it: the stream must be asked where it ends.
    uncertain: bool,
    /// Newest stamp given, for a stream whose events are all gone.
    newest: Option<Timestamp>,
}

/// The lease that an append is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FencedBy {
    /// Where the holders of the lease announce themselves.
    pub(super) subject: String,
    /// Sequence of the announcement of this holder.
    pub(super) seq: u64,
}

/// What is known of a batch before it is published.
struct Plan {
    /// By place in the batch: the sequence of an id that is in the stream.
    known: Vec<Option<u64>>,
    /// What is not, each id once, as many as fit into one atomic batch.
    drafts: Vec<Draft>,
    /// Their ids.
    ids: Vec<u128>,
}

impl Appender {
    /// See [`Bus::append`](crate::bus::Bus::append).
    pub(super) async fn append(
        &self,
        batch: Vec<NewEvent>,
        fence: Option<FencedBy>,
    ) -> Result<Vec<Appended>, AppendError> {
        if self.closing.is_cancelled() {
            return Err(AppendError::Closed);
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + APPEND_TIMEOUT;
        let mut state = tokio::select! {
            biased;
            () = self.closing.cancelled() => return Err(AppendError::Closed),
            state = self.state.lock() => state,
        };
        let batch = Arc::new(batch);
        let mut ours = HashSet::new();
        let mut refusals = 0;
        let mut refused = String::new();
        while refusals < REFUSALS_MAX {
            self.catch_up(&mut state, deadline).await?;
            let evaluated = *self.mirror.evaluated().borrow();
            let plan = self.plan(Arc::clone(&batch), &mut state).await?;
            if plan.drafts.is_empty() {
                return Ok(answers(&batch, &plan.known, ours));
            }
            let condition =
                Condition { stream: &self.source.stream, last_seq: evaluated, fence: fence.as_ref() };
            // Before anything is sent: this future may be dropped at any point.
            state.uncertain = true;
            match publish(&self.source.client, plan.drafts, condition).await {
                Ok(last) => {
                    self.refused.lock().take();
                    state.uncertain = false;
                    state.target = last;
                    ours.extend(plan.ids);
                }
                Err(Refusal::Moved(reason)) => {
                    if let Some(fence) = &fence {
                        self.check_fence(fence).await?;
                    }
                    (refused, refusals) = (reason, refusals + 1);
                    if refusals > 1 {
                        tokio::time::sleep(PAUSE * refusals).await;
                    }
                }
                // It is in the stream, and the next look finds it; or only in the window, which is over soon.
                Err(Refusal::Duplicate(reason)) => {
                    refused =
                        format!("{reason}; an id is refused until the stream's duplicate_window is over");
                    tokio::time::sleep(WINDOW_PAUSE).await;
                }
                Err(Refusal::Rejected(reason)) => {
                    state.uncertain = false;
                    return Err(self.refuse(evaluated, reason));
                }
                Err(Refusal::Unknown(reason)) => return Err(self.refuse(evaluated, reason)),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        let evaluated = *self.mirror.evaluated().borrow();
        Err(self.refuse(evaluated, format!("the stream refused the batch again and again: {refused}")))
    }

    fn refuse(&self, evaluated: u64, reason: String) -> AppendError {
        *self.refused.lock() = Some((evaluated, reason.clone()));
        AppendError::Unavailable(reason)
    }

    /// Why the stream takes nothing, as far as the last append shows and nobody's has shown otherwise since.
    pub(super) fn trouble(&self) -> Option<String> {
        let refused = self.refused.lock();
        let (evaluated, reason) = refused.as_ref()?;
        (*evaluated == *self.mirror.evaluated().borrow())
            .then(|| format!("the stream takes no events: {reason}"))
    }

    /// Refuses appends from now on, and waits for the one that is at work: its answer is worth the wait, and it is
    /// bounded.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        if tokio::time::timeout(APPEND_TIMEOUT + CLOSE_GRACE, self.state.lock()).await.is_err() {
            tracing::warn!("an append did not end in time; what became of it is found at the next start");
        }
    }

    /// Waits until the mirror knows everything that may have been stored.
    async fn catch_up(&self, state: &mut State, deadline: Instant) -> Result<(), AppendError> {
        let unavailable = AppendError::Unavailable;
        let mut fill = self.mirror.fill();
        let filled = async {
            // The sender lives in the mirror, which is here.
            let _ = fill.wait_for(|fill| !matches!(fill, Fill::Filling { .. })).await;
        };
        self.wait(deadline, filled).await?.map_err(|()| {
            let filling = self.mirror.unwritable();
            unavailable(filling.unwrap_or_else(|| "the local copy of the stream is not complete".to_owned()))
        })?;
        if state.uncertain {
            let stream = self.source.stream().await.map_err(|broken| unavailable(broken.to_string()))?;
            state.target = state.target.max(stream.cached_info().state.last_sequence);
        }
        let target = state.target;
        let mut evaluated = self.mirror.evaluated();
        let reached = async {
            let reached = evaluated.wait_for(|evaluated| *evaluated >= target);
            let mut reached = std::pin::pin!(reached);
            if tokio::time::timeout(WATCHDOG_AFTER, &mut reached).await.is_err() {
                self.mirror.look();
                let _ = reached.await;
            }
        };
        let waited = self.wait(deadline, reached).await?;
        if let Some(reason) = self.mirror.stale() {
            return Err(unavailable(reason));
        }
        waited.map_err(|()| unavailable(format!("the local copy of the stream does not reach {target}")))?;
        state.uncertain = false;
        Ok(())
    }

    /// Waits for something; the inner error is the deadline, or a mirror that is given up.
    async fn wait(
        &self,
        deadline: Instant,
        something: impl Future<Output = ()>,
    ) -> Result<Result<(), ()>, AppendError> {
        let mut fill = self.mirror.fill();
        tokio::select! {
            biased;
            () = something => Ok(Ok(())),
            () = self.stopping.cancelled() => Err(AppendError::Closed),
            _ = fill.wait_for(|fill| matches!(fill, Fill::Stale { .. })) => Ok(Err(())),
            () = tokio::time::sleep_until(deadline) => Ok(Err(())),
        }
    }

    /// Looks up the ids, stamps and seals what is new. Off the async threads: the disk may be asked for each id.
    async fn plan(&self, batch: Arc<Vec<NewEvent>>, state: &mut State) -> Result<Plan, AppendError> {
        let log = Arc::clone(&self.mirror.log);
        // Whole milliseconds, as every encoding shows it.
        let now = Timestamp::from_millisecond(self.clock.now().as_millisecond()).unwrap_or_default();
        let stamp = log.bounds().last_time.into_iter().chain(state.newest).fold(now, Timestamp::max);
        state.newest = Some(stamp);
        let (prefix, late_after) = (self.subject_prefix.clone(), self.late_after);
        let payload_max = self.source.client.max_payload();
        let planned = tokio::task::spawn_blocking(move || {
            let mut plan =
                Plan { known: Vec::with_capacity(batch.len()), drafts: Vec::new(), ids: Vec::new() };
            let (mut seen, mut bytes) = (HashSet::new(), 0);
            for (index, new) in batch.iter().enumerate() {
                let known = log.try_find(&new.event.id);
                let known = known.map_err(|error| AppendError::Unavailable(error.to_string()))?;
                plan.known.push(known.map(|known| known.seq));
                let hash = id_hash(&new.event.id);
                if known.is_some() || !seen.insert(hash) {
                    continue;
                }
                let draft = draft(new, stamp, late_after, &prefix, payload_max)
                    .map_err(|source| AppendError::BadEvent { index, source })?;
                bytes += draft.bytes();
                let is_full = plan.drafts.len() >= BATCH_MESSAGES_MAX || bytes > BATCH_BYTES_MAX;
                // What does not fit is sealed all the same: a bad event must be found before any is stored.
                if !is_full || plan.drafts.is_empty() {
                    plan.drafts.push(draft);
                    plan.ids.push(hash);
                }
            }
            Ok(plan)
        });
        planned.await.map_err(|error| AppendError::Unavailable(error.to_string()))?
    }

    /// Whether the refusal came from the fence: the stream is asked who announced himself last.
    async fn check_fence(&self, fence: &FencedBy) -> Result<(), AppendError> {
        let unavailable = |error: String| AppendError::Unavailable(error);
        let stream = self.source.stream().await.map_err(|broken| unavailable(broken.to_string()))?;
        match stream.get_last_raw_message_by_subject(&fence.subject).await {
            Ok(message) if message.sequence == fence.seq => Ok(()),
            Ok(_) => Err(AppendError::Fenced),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Err(AppendError::Fenced),
            Err(error) => Err(unavailable(error.to_string())),
        }
    }
}

fn draft(
    new: &NewEvent,
    stamp: Timestamp,
    late_after: SignedDuration,
    prefix: &str,
    payload_max: usize,
) -> Result<Draft, SealError> {
    let NewEvent { event, identity, content } = new;
    let (iccid, device) = (event.iccid.as_ref().map(|iccid| iccid.as_str()), event.device_id.as_deref());
    let subject = subject::event(prefix, &event.event_type, iccid, device);
    let sealed = event.clone().seal(stamp, late_after)?;
    let entry = Entry { sealed, identity: *identity, content: *content };
    Draft::new(&entry, subject, event.provenance, payload_max)
}

/// One answer per event: `Stored` for the first of an id that this call has stored.
fn answers(batch: &[NewEvent], known: &[Option<u64>], mut ours: HashSet<u128>) -> Vec<Appended> {
    let mut first = HashMap::new();
    let known = batch.iter().zip(known).map(|(new, known)| {
        let hash = id_hash(&new.event.id);
        let seq = *first.entry(hash).or_insert(known.unwrap_or_default());
        if ours.remove(&hash) { Appended::Stored(seq) } else { Appended::Known(seq) }
    });
    known.collect()
}
