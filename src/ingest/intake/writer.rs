//! The one task that appends: takes batches in order, lets each wait for details until its deadline, and does not
//! give up a batch while the log may come back.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::Via;
use crate::{
    bus::{AppendError, Appended, Bus, Fence, NewEvent},
    clock::SharedClock,
    event::{Event, Flag, Flags, Provenance, identity::details_id},
    globalsim::wire::Row,
    ingest::{
        DetailsMode,
        board::Board,
        details::{Details, Goal, Partial, Want},
        names,
        sims::Roster,
        upstream::Upstream,
    },
    sabotage::{self, Bug},
};

/// First and longest pause before a batch that could not be appended is tried again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A row on its way to the log.
#[derive(Debug)]
pub struct Pending {
    /// Identity hash.
    pub identity: u64,
    /// Content hash.
    pub content: u32,
    /// The row.
    pub row: Row,
    /// Id under which it goes.
    pub id: String,
    /// Flags with which.
    pub flags: Flags,
    /// How it came.
    pub provenance: Provenance,
}

/// Rows that wait: where their details arrive, how many, and until when.
type Completions = (mpsc::UnboundedReceiver<Row>, usize, Instant);

/// At most a page of rows.
#[derive(Debug)]
pub struct Batch {
    /// Oldest first.
    pub rows: Vec<Pending>,
    /// Who found them.
    pub via: Via,
    /// When they were taken.
    pub taken_at: Instant,
    /// None where nothing is waited for.
    pub completions: Option<Completions>,
}

/// What the queue holds.
#[derive(Debug)]
pub enum Work {
    /// To append.
    Batch(Batch),
    /// One of the gateway's own, to append.
    Announce(Box<NewEvent>),
    /// Made of other data, to append.
    Derived(Vec<NewEvent>, Via),
    /// To show when all before is durable.
    Seen(Timestamp),
    /// To answer when all before is durable.
    Settle(oneshot::Sender<()>),
}

/// The task's own things.
pub struct Writer {
    pub bus: Arc<dyn Bus>,
    pub stopping: CancellationToken,
    /// Proof that this gateway is the one that polls.
    pub fence: Option<Fence>,
    pub source: Arc<str>,
    pub details: Details,
    pub mode: DetailsMode,
    pub board: Arc<Board>,
    pub clock: SharedClock,
    pub upstream: Arc<Upstream>,
    pub roster: Arc<Roster>,
}

impl Writer {
    /// Runs until the queue is closed and empty.
    pub async fn run(
        self,
        mut queue: mpsc::Receiver<Work>,
        mut completions: mpsc::Receiver<Vec<Partial>>,
    ) -> Result<(), AppendError> {
        loop {
            tokio::select! {
                biased;
                // What is still queued is read again after the start.
                () = self.stopping.cancelled() => return Ok(()),
                work = queue.recv() => match work {
                    Some(Work::Batch(batch)) => self.batch(batch).await?,
                    Some(Work::Announce(event)) => self.append(vec![*event], Via::Sweep).await?,
                    Some(Work::Derived(events, via)) => self.append(events, via).await?,
                    Some(Work::Seen(at)) => self.seen(at),
                    Some(Work::Settle(done)) => {
                        // Whoever asked may have been stopped meanwhile.
                        let _ = done.send(());
                    }
                    None => return Ok(()),
                },
                Some(partials) = completions.recv() => self.completed(partials).await?,
            }
        }
    }

    fn seen(&self, at: Timestamp) {
        let lag = self.clock.now().duration_since(at).as_secs_f64().max(0.0);
        metrics::gauge!(names::LAG_SECONDS).set(lag);
        self.board.update(|status| status.seen_until = status.seen_until.max(Some(at)));
    }

    async fn batch(&self, mut batch: Batch) -> Result<(), AppendError> {
        tokio::select! {
            () = complete(&mut batch) => {}
            () = self.stopping.cancelled() => {}
        }
        let mut wants = Vec::new();
        let mut events = Vec::with_capacity(batch.rows.len());
        for Pending { identity, content, row, id, mut flags, provenance } in batch.rows {
            if !row.complete {
                flags.insert(Flag::Partial);
                if self.mode != DetailsMode::Off
                    && let Some(iccid) = row.event.iccid.clone()
                {
                    let partial = Partial { row: row.clone(), id: id.clone(), flags, provenance };
                    wants.push(Want { iccid, identity, goal: Goal::Follow(Box::new(partial)) });
                }
            }
            let mut event = row.into_event(&self.source, id, flags);
            self.add_device(&mut event);
            event.provenance = Some(provenance);
            events.push(NewEvent { event, identity, content });
        }
        let asked_for_more = !wants.is_empty();
        self.append(events, batch.via).await?;
        metrics::histogram!(names::APPEND_SECONDS).record(batch.taken_at.elapsed().as_secs_f64());
        if asked_for_more {
            self.details.ask(wants);
        }
        Ok(())
    }

    /// Appends the complete copies of events that were appended without details.
    async fn completed(&self, partials: Vec<Partial>) -> Result<(), AppendError> {
        let events = partials.into_iter().map(|Partial { row, id, flags, provenance }| {
            let mut kept = Flags::default();
            flags.iter().filter(|flag| *flag != Flag::Partial).for_each(|flag| kept.insert(flag));
            kept.insert(Flag::Enriched);
            let (identity, content) = (row.identity_hash(), row.content);
            let mut event = row.into_event(&self.source, details_id(&id), kept);
            self.add_device(&mut event);
            event.provenance = Some(provenance);
            NewEvent { event, identity, content }
        });
        self.append(events.collect(), Via::Details).await
    }

    /// The device that is known where upstream names none, marked as not upstream's.
    fn add_device(&self, event: &mut Event) {
        if event.device_id.is_none()
            && let Some(device) = event.iccid.as_ref().and_then(|iccid| self.roster.device_of(iccid))
        {
            event.device_id = Some(device.as_ref().to_owned());
            event.extra.insert("derived".to_owned(), vec!["device_id"].into());
        }
    }

    /// Appends; comes back when it is durable. The same batch is tried until the log takes it.
    async fn append(&self, mut events: Vec<NewEvent>, via: Via) -> Result<(), AppendError> {
        let mut pause = RETRY_MIN;
        while !events.is_empty() {
            match self.bus.append(events.clone(), self.fence).await {
                Ok(answers) => {
                    self.count(&events, &answers, via);
                    return Ok(());
                }
                Err(AppendError::BadEvent { index, source }) if index < events.len() => {
                    let bad = events.remove(index);
                    if sabotage::on(Bug::BadEventTakesBatch) {
                        events.clear();
                    }
                    metrics::counter!(names::QUARANTINED, "what" => "event").increment(1);
                    let (now, reason) = (self.clock.now(), source.to_string());
                    let raw = format!("{} of {}", bad.event.id, bad.event.event_type);
                    self.board.update(|status| {
                        status.quarantined += 1;
                        status.quarantine.add(now, "event", &reason, &raw);
                    });
                    tracing::error!(id = %bad.event.id, reason = %source, "an event can't be stored");
                }
                Err(error) if error.retryable() => {
                    metrics::counter!(names::APPEND_RETRIES).increment(1);
                    tracing::error!(%error, events = events.len(), "the log can't be written; polling waits for it");
                    tokio::select! {
                        () = tokio::time::sleep(self.upstream.jittered(pause)) => {}
                        () = self.stopping.cancelled() => return Ok(()),
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn count(&self, events: &[NewEvent], answers: &[Appended], via: Via) {
        let now = self.clock.now();
        let mut stored = 0;
        let mut partial = 0;
        for (event, answer) in events.iter().zip(answers) {
            if !matches!(answer, Appended::Stored(_)) {
                continue;
            }
            stored += 1;
            let event = &event.event;
            partial += u64::from(event.flags.contains(Flag::Partial));
            for flag in event.flags.iter() {
                metrics::counter!(names::FLAGGED, "flag" => flag.as_str()).increment(1);
            }
            if let Some(time) = event.time.filter(|_| matches!(via, Via::Tail | Via::Sweep | Via::CatchUp)) {
                let lag = now.duration_since(time).as_secs_f64().max(0.0);
                metrics::histogram!(names::SOURCE_LAG_SECONDS).record(lag);
            }
        }
        metrics::counter!(names::EVENTS, "via" => via.as_str()).increment(stored);
        self.board.update(|status| {
            status.appended += stored;
            match via {
                Via::Details => status.partial = status.partial.saturating_sub(stored),
                _ => status.partial += partial,
            }
        });
    }
}

/// Waits for the details of a batch until its deadline, and merges what comes.
async fn complete(batch: &mut Batch) {
    let Some((mut receiver, mut missing, deadline)) = batch.completions.take() else { return };
    while missing > 0 {
        let Ok(Some(richer)) = timeout_at(deadline, receiver.recv()).await else { return };
        missing -= 1;
        let identity = richer.identity_hash();
        let mut richer = Some(richer);
        for pending in batch.rows.iter_mut().filter(|pending| pending.identity == identity) {
            if let Some(richer) = richer.take() {
                pending.row.merge_details(richer);
            }
        }
    }
}
