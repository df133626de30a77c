//! The local copy of the stream that all reads use, and the one tail that fills it.
//!
//! A stream can be read by filter, time and id only through consumers that cost the server something each; a log can
//! do it for nothing, and there is one read path on both buses. So each process copies the stream into a log at the
//! stream's own sequences, which are thus the same for every gateway, and a cursor of one is good at all others.
//!
//! - **What is in the copy has been checked.** Before a tail begins, the newest event of the copy is compared with
//!   what the stream has at its sequence, byte by byte: a stream that lost its end (a server that lost power, a backup
//!   that was put back) and gave the sequences to other events is noticed however far it has come since, because the
//!   time of its append lies in an event. Then the copy is [stale](Fill::Stale): readers have seen what the stream does
//!   not have, so nothing is mended under them. The bus must be closed and opened again, which builds the copy anew;
//!   cursors that readers kept tell by incarnation or tag that they are of another history.
//! - **`evaluated` says how far the copy is complete**, also where a sequence holds no event (fences) or nothing any
//!   more (removed). Appends rest on it: they go in only if the stream's last sequence is the one that the copy has
//!   evaluated (see [`append`](super::append)).
//! - **A tail that breaks is begun anew** behind what has been received, after a pause that doubles from
//!   [`PAUSE_MIN`] to [`PAUSE_MAX`] and is jittered. A watchdog compares with the stream's last sequence every
//!   [`WATCH_EVERY`], since a consumer can be silently dead.
//! - **What was lost before it came to the stream** is a hole in the copy as well ([`standin`]), so that readers get
//!   the same gap whichever store they read.
//! - **Memory is bounded**: two requests of the tail, the filler's queue and one batch in each hand, about 30 MiB.

mod filler;
pub(super) mod place;
pub(super) mod puller;

use std::{collections::HashSet, path::PathBuf, sync::Arc, thread::JoinHandle, time::Duration};

use async_nats::jetstream::{
    self,
    context::GetStreamErrorKind,
    stream::{Info, RawMessageErrorKind},
};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    filler::{Batch, Filler},
    place::{Place, PlaceError},
    puller::{Broken, Puller},
};
use super::{Chance, erase, standin, subject};
use crate::{
    bus::{Fill, embedded::caretaker::Caretaker},
    clock::SharedClock,
    event::Predicate,
    log::{Damage, Direction, Log, Options, ReadRequest, Tombstone},
};

/// Messages of the stream that are no events; a counter.
pub(super) const FOREIGN: &str = "simcast_nats_foreign_messages_total";
/// Times that the tail was begun again; a counter.
pub(super) const RESTARTS: &str = "simcast_nats_tail_restarts_total";

/// Messages and bytes that are written together.
const BATCH_MESSAGES: usize = 4_096;
const BATCH_BYTES: usize = 4 << 20;
/// How often the stream is asked for its last sequence.
const WATCH_EVERY: Duration = Duration::from_secs(3);
/// How often it is looked whether the connection was made anew: the server has then forgotten what was asked for, and
/// says nothing of it until the tail would notice the silence.
const LINK_EVERY: Duration = Duration::from_millis(250);
/// Pause before a broken tail is begun again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Times in a row that the servers say that there is no such stream before that is believed: some seconds.
const MISSING_MAX: u32 = 4;
/// Looks that find the tail behind and nothing new before it is begun again.
const LOOKS_BEHIND_MAX: u32 = 4;
/// Erased SIMs that may wait for somebody to take note.
const ERASED_TOLD_MAX: usize = 1_024;
/// Newest events looked for in the stream before a copy whose events were all removed there is given up.
const COMPARED_EVENTS: usize = 16;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) log: Arc<Log>,
    place: Arc<Place>,
    incarnation: u64,
    evaluated: watch::Sender<u64>,
    fill: watch::Sender<Fill>,
    trouble: Mutex<Option<String>>,
    /// What was erased, by position: where it is not in the copy yet, its place is.
    erased: RwLock<Arc<Vec<Tombstone>>>,
    /// ICCIDs of SIMs that were erased here because another gateway did; the receiver until it is taken.
    pub(super) erased_elsewhere: (mpsc::Sender<String>, Mutex<Option<mpsc::Receiver<String>>>),
    /// Asks the watchdog to look now.
    look: Notify,
    stopping: CancellationToken,
}

/// What makes the copy worthless.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Stale(String);

/// Why a tail ended.
enum End {
    Stopping,
    Stale(Stale),
    Broken(Broken),
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// How to reach the stream.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) client: async_nats::Client,
    pub(super) context: jetstream::Context,
    pub(super) stream: String,
    /// Begins every subject of the JetStream API.
    pub(super) api_prefix: String,
    pub(super) subjects: Subjects,
}

/// By which a message of the stream tells what it is. What is neither is none of the copy's business.
#[derive(Debug, Clone)]
pub(super) struct Subjects {
    /// Begins the subjects that hold events.
    pub(super) events: String,
    /// Of what stands for a lost event.
    pub(super) lost: String,
}

impl Subjects {
    pub(super) fn new(prefix: &str) -> Self {
        Self { events: subject::events(prefix), lost: subject::lost(prefix) }
    }
}

impl Source {
    /// The stream as it is now.
    pub(super) async fn stream(&self) -> Result<jetstream::stream::Stream, Broken> {
        self.context.get_stream(&self.stream).await.map_err(Broken::of)
    }
}

/// What runs beside the caller.
#[derive(Debug)]
pub(super) struct Running {
    tail: tokio::task::JoinHandle<()>,
    filler: JoinHandle<()>,
    caretaker: JoinHandle<()>,
}

/// Why there is no mirror.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The directory is in use, or the disk refuses.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The stream could not be asked.
    #[error("{0}")]
    Stream(String),
}

impl From<Broken> for OpenError {
    fn from(Broken(reason): Broken) -> Self {
        Self::Stream(reason)
    }
}

impl From<std::io::Error> for OpenError {
    fn from(error: std::io::Error) -> Self {
        Self::Place(error.into())
    }
}

/// Opens the copy of a stream, in a directory or in memory, and deletes one that is not of this stream's history.
/// `options` say how long events are kept; the rest of them follows from the stream.
///
/// # Errors
/// [`OpenError`].
pub(super) async fn open(
    cache: Option<PathBuf>,
    options: Options,
    source: &Source,
    stopping: CancellationToken,
) -> Result<Arc<Mirror>, OpenError> {
    let stream = source.stream().await?;
    let info = stream.cached_info();
    let incarnation = super::provision::incarnation_of(&info.config)
        .ok_or_else(|| OpenError::Stream(format!("the stream {} was not made by simcast", source.stream)))?;
    let options = Options { incarnation, first_seq: info.state.first_sequence.max(1), ..options };
    let name = source.stream.clone();
    let (place, mut log) = blocking(move || {
        let place = Place::open(cache.as_deref(), &name)?;
        let log = place.log(options)?;
        Ok((Arc::new(place), Arc::new(log)))
    })
    .await?;
    // What was erased while this gateway was away must not be looked for in the stream.
    let erased =
        erase::announced(source, incarnation).await.map_err(|error| OpenError::Stream(error.to_string()))?;
    let (copy, announced) = (Arc::clone(&log), erased.clone());
    let iccids = blocking(move || Ok(copy.erase_at(&announced)?)).await?;
    if let Err(Stale(reason)) = verify(&log, log.bounds().last_seq, &stream).await? {
        tracing::warn!(reason, "the local copy of the stream is built again");
        let emptied = Arc::clone(&place);
        log = blocking(move || {
            emptied.forget()?;
            Ok(Arc::new(emptied.log(options)?))
        })
        .await?;
    }
    let mirror = Mirror::new(place, log, info, stopping);
    mirror.expect_erased(&erased);
    mirror.tell_erased(iccids);
    Ok(mirror)
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, PlaceError> + Send + 'static,
) -> Result<T, OpenError> {
    let done = tokio::task::spawn_blocking(call).await;
    Ok(done.map_err(|error| OpenError::Stream(error.to_string()))??)
}

impl Mirror {
    /// A mirror of the stream `info` in the log of `place`, which may be empty.
    pub(super) fn new(
        place: Arc<Place>,
        log: Arc<Log>,
        info: &Info,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        let (evaluated, of) = (log.bounds().last_seq, info.state.last_sequence);
        let fill = if evaluated >= of { Fill::Complete } else { Fill::Filling { upto: evaluated, of } };
        Arc::new(Self {
            incarnation: log.incarnation(),
            log,
            place,
            evaluated: watch::Sender::new(evaluated),
            fill: watch::Sender::new(fill),
            trouble: Mutex::default(),
            erased: RwLock::default(),
            erased_elsewhere: {
                let (sender, receiver) = mpsc::channel(ERASED_TOLD_MAX);
                (sender, Mutex::new(Some(receiver)))
            },
            look: Notify::new(),
            stopping,
        })
    }

    /// Starts the tail and the threads that write and keep house.
    ///
    /// # Errors
    /// Where the system can't start a thread.
    pub(super) fn start(
        self: &Arc<Self>,
        source: Source,
        clock: SharedClock,
        chance: Chance,
    ) -> std::io::Result<Running> {
        let caretaker = Caretaker::start(Arc::clone(&self.log), clock)?;
        let filler = Filler::start(Arc::clone(self), source.subjects.clone(), caretaker.requests)?;
        let tail = Tail {
            mirror: Arc::clone(self),
            source,
            chance,
            received: *self.evaluated.borrow(),
            batches: filler.batches,
            behind: (0, 0),
            missing: 0,
            lost_before: HashSet::new(),
        };
        let tail = tokio::spawn(tail.run());
        Ok(Running { tail, filler: filler.thread, caretaker: caretaker.thread })
    }

    /// Notes what was erased: it does not come in any more, its place does.
    pub(super) fn expect_erased(&self, more: &[Tombstone]) {
        let mut erased = self.erased.write();
        let mut all = [erased.as_slice(), more].concat();
        all.sort_unstable_by_key(|one| one.seq);
        all.dedup_by_key(|one| one.seq);
        *erased = Arc::new(all);
    }

    /// What was erased, by position.
    fn erased(&self) -> Arc<Vec<Tombstone>> {
        Arc::clone(&self.erased.read())
    }

    /// How far the copy is complete.
    pub(super) fn evaluated(&self) -> watch::Receiver<u64> {
        self.evaluated.subscribe()
    }

    /// Whether everything that was there at the start has been copied.
    pub(super) fn fill(&self) -> watch::Receiver<Fill> {
        self.fill.subscribe()
    }

    /// Why the copy is worthless; None while it is not.
    pub(super) fn stale(&self) -> Option<String> {
        match &*self.fill.borrow() {
            Fill::Stale { reason } => Some(reason.clone()),
            _ => None,
        }
    }

    /// Why nothing can be appended at the moment; None while something can.
    pub(super) fn unwritable(&self) -> Option<String> {
        match &*self.fill.borrow() {
            Fill::Stale { reason } => Some(reason.clone()),
            Fill::Filling { upto, of } => {
                Some(format!("the local copy of the stream is being filled ({upto} of {of})"))
            }
            Fill::Complete => self.trouble.lock().clone(),
        }
    }

    /// Asks the watchdog to look at the stream now: somebody waits.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    /// Leaves the copy as a clean stop does, and lets another process have its directory.
    pub(super) fn close(&self) {
        if let Err(error) = self.log.close() {
            tracing::warn!(%error, "the local copy was not closed cleanly; the next start takes longer");
        }
        self.place.release();
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock() = trouble;
    }

    /// Everything up to a sequence has been written.
    fn advance(&self, upto: u64) {
        self.set_trouble(None);
        self.evaluated.send_if_modified(|evaluated| {
            let moves = upto > *evaluated;
            *evaluated = upto.max(*evaluated);
            moves
        });
        self.fill.send_if_modified(|fill| {
            let Fill::Filling { of, .. } = *fill else { return false };
            *fill = if upto >= of { Fill::Complete } else { Fill::Filling { upto, of } };
            true
        });
    }

    fn give_up(&self, Stale(reason): Stale) {
        tracing::error!(reason, "the local copy of the stream is of no use any more; it must be built again");
        self.place.distrust();
        self.fill.send_replace(Fill::Stale { reason });
    }
}

impl Running {
    /// Waits for all to end; the mirror's token must be cancelled.
    pub(super) async fn join(self) {
        if self.tail.await.is_err() {
            tracing::error!("the tail of the stream ended badly");
        }
        let threads = move || {
            // They fail only where they have panicked; there is nothing left to end then.
            let _ = self.filler.join();
            let _ = self.caretaker.join();
        };
        let _ = tokio::task::spawn_blocking(threads).await;
    }
}

/// Compares the copy with the stream: whether what it has is what the stream has, and whether it can go on.
///
/// # Errors
/// [`Stale`] inside, where it can't; [`Broken`] where the stream could not be asked.
pub(super) async fn verify(
    log: &Arc<Log>,
    evaluated: u64,
    stream: &jetstream::stream::Stream,
) -> Result<Result<(), Stale>, Broken> {
    let state = &stream.cached_info().state;
    let (first, last) = (state.first_sequence, state.last_sequence);
    if last < evaluated {
        return Ok(Err(Stale(format!(
            "the stream went back from sequence {evaluated} to {last}: it was restored or lost its end"
        ))));
    }
    if first > evaluated + 1 {
        return Ok(Err(Stale(format!(
            "the stream begins at sequence {first} by now, behind {evaluated}, where the copy ends"
        ))));
    }
    let newest = Arc::clone(log);
    let newest = tokio::task::spawn_blocking(move || {
        newest.read(ReadRequest {
            from: u64::MAX,
            direction: Direction::Backward,
            predicate: &Predicate::unfiltered(),
            limit: COMPARED_EVENTS,
            max_bytes: usize::MAX,
        })
    });
    let newest = newest.await.map_err(Broken::of)?.map_err(Broken::of)?;
    let still_there = newest.events.iter().filter(|event| event.seq() >= first);
    let mut removed = false;
    for event in still_there {
        match stream.get_raw_message(event.seq()).await {
            Ok(message) if message.payload == event.json() => return Ok(Ok(())),
            Ok(_) => {
                return Ok(Err(Stale(format!(
                    "the stream has another event at sequence {}: it was restored or lost its end",
                    event.seq()
                ))));
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => removed = true,
            Err(error) => return Err(Broken::of(error)),
        }
    }
    // Nothing of what was looked at is left in the stream.
    Ok(if removed { Err(Stale("the newest events were removed from the stream".to_owned())) } else { Ok(()) })
}

/// The task that receives.
struct Tail {
    mirror: Arc<Mirror>,
    source: Source,
    chance: Chance,
    /// Handed to the filler up to here.
    received: u64,
    batches: mpsc::Sender<Batch>,
    /// Where the last look found it behind, and how many looks have.
    behind: (u64, u32),
    /// Times in a row that the servers said that there is no such stream.
    missing: u32,
    /// Stretches that the stream itself says are lost.
    lost_before: HashSet<(u64, u64)>,
}

impl Tail {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            let began = Instant::now();
            match self.session().await {
                End::Stopping => return,
                End::Stale(stale) => return self.mirror.give_up(stale),
                End::Broken(Broken(reason)) => {
                    metrics::counter!(RESTARTS).increment(1);
                    tracing::warn!(reason, "the tail of the stream broke; it is begun again");
                    self.mirror.set_trouble(Some(format!("the stream can't be followed: {reason}")));
                }
            }
            if began.elapsed() > PAUSE_MAX {
                pause = PAUSE_MIN;
            }
            let jittered = self.chance.jittered(pause);
            tokio::select! {
                () = self.mirror.stopping.cancelled() => return,
                () = tokio::time::sleep(jittered) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One consumer, from its making to its end.
    async fn session(&mut self) -> End {
        let stopping = self.mirror.stopping.clone();
        let begun = tokio::select! {
            () = stopping.cancelled() => return End::Stopping,
            begun = self.begin() => begun,
        };
        let (stream, mut puller) = match begun {
            Ok(begun) => begun,
            Err(end) => return end,
        };
        self.mirror.set_trouble(None);
        let end = self.follow(&stream, &mut puller).await;
        puller.end(&stream).await;
        end
    }

    async fn begin(&mut self) -> Result<(jetstream::stream::Stream, Puller), End> {
        let stream = match self.source.context.get_stream(&self.source.stream).await {
            Ok(stream) => stream,
            Err(error) => return Err(self.not_found(error)),
        };
        self.missing = 0;
        self.check_identity(stream.cached_info())?;
        // Without them the comparison might look for what another gateway has just purged.
        match erase::announced(&self.source, self.mirror.incarnation).await {
            Ok(erased) => self.mirror.apply(erased).await.map_err(Broken::of)?,
            Err(error) => tracing::warn!(%error, "what other gateways erased can't be asked for"),
        }
        verify(&self.mirror.log, self.received, &stream).await?.map_err(End::Stale)?;
        let Source { client, api_prefix, .. } = &self.source;
        let puller = Puller::begin(client, &stream, api_prefix, self.received + 1).await?;
        if puller.pending == 0 {
            // The stream was asked before the consumer was made, so nothing up to its last sequence is left out.
            self.hand_over(Batch { upto: stream.cached_info().state.last_sequence, ..Batch::default() })
                .await?;
        }
        Ok((stream, puller))
    }

    /// What it means that the stream can't be asked for: it was deleted, where the servers say so again and again. A
    /// gateway that opens the bus anew makes it again.
    fn not_found(&mut self, error: jetstream::context::GetStreamError) -> End {
        let is_missing = matches!(error.kind(), GetStreamErrorKind::JetStream(said)
            if said.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND);
        self.missing = if is_missing { self.missing + 1 } else { 0 };
        match self.missing {
            MISSING_MAX => End::Stale(Stale("the stream was deleted".to_owned())),
            _ => Broken::of(error).into(),
        }
    }

    fn check_identity(&self, info: &Info) -> Result<(), End> {
        let named = super::provision::incarnation_of(&info.config);
        if named == Some(self.mirror.incarnation) {
            return Ok(());
        }
        Err(End::Stale(Stale("the stream was deleted and created again".to_owned())))
    }

    async fn follow(&mut self, stream: &jetstream::stream::Stream, puller: &mut Puller) -> End {
        let mut watch = tokio::time::interval(WATCH_EVERY);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        watch.reset();
        let mut link = tokio::time::interval(LINK_EVERY);
        link.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut damage = self.mirror.log.damage();
        damage.mark_changed();
        loop {
            let mirror = Arc::clone(&self.mirror);
            let result = tokio::select! {
                () = mirror.stopping.cancelled() => return End::Stopping,
                pulled = puller.next() => match pulled {
                    Ok(first) => self.receive(puller, first).await,
                    Err(broken) => Err(broken.into()),
                },
                _ = link.tick() => match puller.is_connected() {
                    true => Ok(()),
                    false => Err(Broken("the connection was made anew".to_owned()).into()),
                },
                _ = watch.tick() => self.look(stream, puller).await,
                () = mirror.look.notified() => self.look(stream, puller).await,
                Ok(()) = damage.changed() => {
                    let found = Arc::clone(&damage.borrow_and_update());
                    self.check_damage(stream, &found).await
                }
            };
            if let Err(end) = result {
                return end;
            }
        }
    }

    /// What the copy lost the stream has, so it is not for the poller to read it again: the copy is made anew. What was
    /// lost before it came to the stream is no damage of the copy.
    async fn check_damage(
        &mut self,
        stream: &jetstream::stream::Stream,
        found: &[Damage],
    ) -> Result<(), End> {
        for damage in found {
            let range = (damage.first_seq, damage.last_seq);
            if self.lost_before.contains(&range) {
                continue;
            }
            let is_told = damage.records.is_empty()
                && standin::is_told(stream, range, &self.source.subjects.lost).await.map_err(Broken::of)?;
            if !is_told {
                return Err(End::Stale(Stale("the local copy is damaged".to_owned())));
            }
            self.lost_before.insert(range);
        }
        Ok(())
    }

    /// Takes a message and whatever came with it.
    async fn receive(&mut self, puller: &mut Puller, first: puller::Pulled) -> Result<(), End> {
        let mut batch = Batch::default();
        let mut next = Some(first);
        let mut broken = None;
        while let Some(pulled) = next.take() {
            // Sequences only rise within a consumer; what a new one repeats has been written already.
            if pulled.seq > self.received.max(batch.upto) {
                batch.upto = pulled.seq;
                batch.bytes += pulled.bytes;
                batch.messages.push(pulled);
            }
            if batch.messages.len() < BATCH_MESSAGES && batch.bytes < BATCH_BYTES {
                next = puller.next_ready().await.unwrap_or_else(|error| {
                    broken = Some(error);
                    None
                });
            }
        }
        if batch.upto > 0 {
            self.hand_over(batch).await?;
        }
        broken.map_or(Ok(()), |broken| Err(broken.into()))
    }

    async fn hand_over(&mut self, batch: Batch) -> Result<(), End> {
        let upto = batch.upto;
        tokio::select! {
            () = self.mirror.stopping.cancelled() => return Err(End::Stopping),
            sent = self.batches.send(batch) => {
                sent.map_err(|_| Broken("the local copy is written no more".to_owned()))?;
            }
        }
        self.received = self.received.max(upto);
        Ok(())
    }

    /// Compares with the stream.
    async fn look(&mut self, stream: &jetstream::stream::Stream, puller: &mut Puller) -> Result<(), End> {
        let info = stream.get_info().await.map_err(Broken::of)?;
        self.check_identity(&info)?;
        let last = info.state.last_sequence;
        if last < self.received {
            let reason = format!(
                "the stream went back from sequence {} to {last}: it was restored or lost its end",
                self.received
            );
            return Err(End::Stale(Stale(reason)));
        }
        if last == self.received {
            return Ok(());
        }
        // Behind. Either messages are on their way, or what is left up to `last` was removed from the stream.
        let consumer = stream.consumer_info(puller.name()).await.map_err(Broken::of)?;
        if let Some(pulled) = puller.next_ready().await? {
            return self.receive(puller, pulled).await;
        }
        if consumer.num_pending == 0 && consumer.delivered.consumer_sequence == puller.delivered() {
            return self.hand_over(Batch { upto: last, ..Batch::default() }).await;
        }
        let looks = if self.behind.0 == self.received { self.behind.1 + 1 } else { 1 };
        self.behind = (self.received, looks);
        if looks < LOOKS_BEHIND_MAX {
            return Ok(());
        }
        self.behind.1 = 0;
        let received = self.received;
        Err(Broken(format!("nothing came behind sequence {received}, and the stream is at {last}")).into())
    }
}
