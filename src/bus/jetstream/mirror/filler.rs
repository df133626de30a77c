//! The thread that writes what the tail received: decode, one append per batch, and only then say how far it is.
//!
//! The queue in front of it is short, so a slow disk slows the tail, which then asks the server for nothing more.

use std::{
    io::ErrorKind,
    sync::{Arc, mpsc as std_mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{Mirror, Stale, puller::Pulled};
use crate::{
    bus::jetstream::{message, mirror::Subjects},
    log::{Entry, Log, Tombstone},
};

/// Batches that may wait.
const QUEUE_BATCHES: usize = 2;
/// How long it waits before it tries again what the disk refused.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// A full disk is waited out; after so many other refusals the copy is given up.
const REFUSALS_MAX: u32 = 10;

/// Messages of the stream, or none and just how far it has been looked at.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) messages: Vec<Pulled>,
    pub(super) bytes: usize,
    /// Nothing else lies at or before this sequence.
    pub(super) upto: u64,
}

/// The running thread; it ends when the sender of `batches` is gone.
#[derive(Debug)]
pub(super) struct Filler {
    pub(super) batches: mpsc::Sender<Batch>,
    pub(super) thread: JoinHandle<()>,
}

impl Filler {
    /// Starts the thread. `subjects` tell what a message is; `caretaker` is asked for maintenance.
    pub(super) fn start(
        mirror: Arc<Mirror>,
        subjects: Subjects,
        caretaker: std_mpsc::SyncSender<()>,
    ) -> std::io::Result<Self> {
        let (batches, mut queue) = mpsc::channel(QUEUE_BATCHES);
        let thread = std::thread::Builder::new().name("simcast-mirror".into()).spawn(move || {
            while let Some(batch) = queue.blocking_recv() {
                if !fill(&mirror, &subjects, batch) {
                    return;
                }
                if mirror.log.needs_maintenance() {
                    // If one request is waiting already, it will do.
                    let _ = caretaker.try_send(());
                }
            }
        })?;
        Ok(Self { batches, thread })
    }
}

/// What is written by one call of the log.
enum Piece {
    Events(Vec<(u64, Entry)>),
    Lost(u64, u64),
    Erased(Vec<Tombstone>),
}

impl Piece {
    /// Writes it, or what a call before has not written of it.
    fn write(&self, log: &Log) -> std::io::Result<()> {
        let last = log.bounds().last_seq;
        match self {
            // The log takes entries by value; events are shared bytes, so a copy for another try costs little.
            Self::Events(entries) => {
                log.append_at(entries.iter().filter(|(seq, _)| *seq > last).cloned().collect())
            }
            Self::Lost(_, end) if *end <= last => Ok(()),
            Self::Lost(first, end) => log.append_hole(*first, *end),
            Self::Erased(erased) => {
                let behind = erased.partition_point(|one| one.seq <= last);
                log.append_erased(&erased[behind..])
            }
        }
    }
}

/// The pieces of a batch, in order. What was erased lies where it lay, whether the stream still has it or not.
fn pieces(known: u64, subjects: &Subjects, batch: Batch, erased: &[Tombstone]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut places = erased[erased.partition_point(|one| one.seq <= known)..].iter().peekable();
    let add_erased = |pieces: &mut Vec<Piece>, one: &Tombstone| match pieces.last_mut() {
        Some(Piece::Erased(erased)) => erased.push(*one),
        _ => pieces.push(Piece::Erased(vec![*one])),
    };
    for pulled in batch.messages {
        let seq = pulled.seq;
        if seq <= known {
            continue;
        }
        let mut is_erased = false;
        while let Some(one) = places.next_if(|one| one.seq <= seq) {
            is_erased |= one.seq == seq;
            add_erased(&mut pieces, one);
        }
        if is_erased {
            continue;
        }
        if pulled.subject.as_str() == subjects.lost {
            match pieces.last_mut() {
                Some(Piece::Lost(_, end)) if *end + 1 == seq => *end = seq,
                _ => pieces.push(Piece::Lost(seq, seq)),
            }
        }
        if !pulled.subject.starts_with(&subjects.events) {
            continue;
        }
        match message::read(pulled.headers.as_ref(), &pulled.payload) {
            Ok(entry) => match pieces.last_mut() {
                Some(Piece::Events(entries)) => entries.push((seq, entry)),
                _ => pieces.push(Piece::Events(vec![(seq, entry)])),
            },
            Err(error) => {
                metrics::counter!(super::FOREIGN).increment(1);
                tracing::warn!(seq, %error, "a message of the stream is no event; it is left out");
            }
        }
    }
    while let Some(one) = places.next_if(|one| one.seq <= batch.upto) {
        add_erased(&mut pieces, one);
    }
    pieces
}

/// Writes one batch, however often the disk refuses; false once the mirror is given up.
fn fill(mirror: &Mirror, subjects: &Subjects, batch: Batch) -> bool {
    let upto = batch.upto;
    let mut refusals = 0;
    for piece in pieces(mirror.log.bounds().last_seq, subjects, batch, &mirror.erased()) {
        while let Err(error) = piece.write(&mirror.log) {
            tracing::error!(%error, "the local copy of the stream can't be written; it is tried again");
            mirror.set_trouble(Some(format!("the local copy of the stream can't be written: {error}")));
            let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            refusals += u32::from(!is_full);
            if refusals == REFUSALS_MAX {
                mirror.give_up(Stale(format!("the local copy can't be written: {error}")));
            }
            if mirror.stopping.is_cancelled() || mirror.stale().is_some() {
                return false;
            }
            std::thread::sleep(RETRY_AFTER);
        }
    }
    mirror.advance(upto);
    true
}
