//! The messages that a log becomes, in order, and the digest by which two rows of messages are compared.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use async_nats::HeaderMap;
use sha2::{Digest as _, Sha256};

use super::MigrateError;
use crate::{
    bus::{
        embedded::snapshot::Snapshot,
        jetstream::{
            append::{BATCH_BYTES_MAX, batch::BATCH_MESSAGES_MAX},
            message::{Draft, KEPT_HEADERS},
            standin, subject,
        },
    },
    log::{Copied, Entry},
};

/// Stretches of positions that can't be read, in order, neighbours joined.
pub(super) type Stretches = Arc<Vec<(u64, u64)>>;

/// What a server stores beside subject, headers and body: its own frame, and the headers of the batch.
const STORED_BESIDE: usize = 192;

/// Messages that follow one another.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) first_seq: u64,
    pub(super) drafts: Vec<Draft>,
}

impl Batch {
    pub(super) fn last_seq(&self) -> u64 {
        self.first_seq + self.drafts.len() as u64 - 1
    }
}

/// Reads a log and makes a message of each position.
pub(super) struct Messages {
    snapshot: Arc<Snapshot>,
    path: PathBuf,
    prefix: String,
    payload_max: usize,
    /// Made up to here.
    at: u64,
    last: u64,
    /// What was read and is not made yet, and how far that reaches.
    items: VecDeque<Copied>,
    read_to: u64,
    /// What is known of holes before this begins.
    stretches: Stretches,
    /// What was found of them.
    found: Vec<(u64, u64)>,
    events: u64,
    unused: u64,
}

impl Messages {
    /// Of the positions behind `after` up to `last`. `stretches` are the holes among them where they are known: a
    /// message names the whole hole, wherever this begins.
    pub(super) fn new(
        snapshot: Arc<Snapshot>,
        path: PathBuf,
        prefix: &str,
        payload_max: usize,
        (after, last): (u64, u64),
        stretches: Stretches,
    ) -> Self {
        Self {
            snapshot,
            path,
            prefix: prefix.to_owned(),
            payload_max,
            at: after,
            last,
            items: VecDeque::new(),
            read_to: after,
            stretches,
            found: Vec::new(),
            events: 0,
            unused: 0,
        }
    }

    /// As many as go into one atomic batch; None at the end.
    pub(super) fn next_batch(&mut self) -> Result<Option<Batch>, MigrateError> {
        let first_seq = self.at + 1;
        let (mut drafts, mut bytes) = (Vec::new(), 0);
        while self.at < self.last && drafts.len() < BATCH_MESSAGES_MAX && bytes < BATCH_BYTES_MAX / 2 {
            let draft = self.next()?;
            bytes += draft.bytes();
            drafts.push(draft);
        }
        Ok((!drafts.is_empty()).then_some(Batch { first_seq, drafts }))
    }

    fn next(&mut self) -> Result<Draft, MigrateError> {
        let seq = self.at + 1;
        while self.items.is_empty() && self.read_to < seq {
            let page = self.snapshot.log().copy_after(self.read_to);
            let page = page.map_err(|source| MigrateError::Log { path: self.path.clone(), source })?;
            self.read_to = if page.at_end { self.last } else { page.next };
            self.items.extend(page.items);
        }
        self.at = seq;
        match self.items.front() {
            Some(Copied::Hole(first, last)) if *first <= seq => {
                if *last <= seq {
                    self.items.pop_front();
                }
                match self.found.last_mut() {
                    Some((_, end)) if *end + 1 == seq => *end = seq,
                    _ => self.found.push((seq, seq)),
                }
                let known = self.stretches.partition_point(|(_, end)| *end < seq);
                let known = self.stretches.get(known).filter(|(first, _)| *first <= seq);
                Ok(standin::lost(&self.prefix, known.copied().unwrap_or((seq, seq))))
            }
            Some(item) if item.first_seq() <= seq => match self.items.pop_front() {
                Some(Copied::Event(_, entry)) => {
                    self.events += 1;
                    self.event(seq, &entry)
                }
                // It was looked at before.
                _ => Ok(standin::unused(&self.prefix)),
            },
            _ => {
                self.unused += 1;
                Ok(standin::unused(&self.prefix))
            }
        }
    }

    /// The message that a gateway makes of an event when it appends it.
    fn event(&self, seq: u64, entry: &Entry) -> Result<Draft, MigrateError> {
        let stored = entry.sealed.clone().at(seq);
        // The log gives only events whose keys can be read.
        let Ok(keys) = stored.keys() else { return Ok(standin::unused(&self.prefix)) };
        let subject = subject::event(&self.prefix, keys.event_type, keys.iccid, keys.device_id);
        Draft::new(entry, subject, keys.provenance, self.payload_max)
            .map_err(|source| MigrateError::Event { seq, source })
    }

    /// Events, positions that can't be read, and positions that never held anything.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let lost = self.found.iter().map(|(first, last)| last - first + 1).sum();
        (self.events, lost, self.unused)
    }

    /// The holes that were met.
    pub(super) fn into_stretches(self) -> Stretches {
        Arc::new(self.found)
    }
}

/// Bytes that a message takes on a server, a little more rather than less.
pub(super) fn stored_bytes(draft: &Draft) -> u64 {
    (draft.bytes() + draft.subject.len() + STORED_BESIDE) as u64
}

/// Over messages: sequence, subject, the headers that a mirror reads, and body. What stands for a lost event counts
/// without its body, which says no more than its neighbours do.
pub(super) struct Digest {
    hash: Sha256,
    lost: String,
}

impl Digest {
    pub(super) fn new(prefix: &str) -> Self {
        Self { hash: Sha256::new(), lost: subject::lost(prefix) }
    }

    pub(super) fn add(&mut self, seq: u64, subject: &str, headers: Option<&HeaderMap>, payload: &[u8]) {
        self.hash.update(seq.to_le_bytes());
        self.field(Some(subject.as_bytes()));
        for name in KEPT_HEADERS {
            let value = headers.and_then(|headers| headers.get(name));
            self.field(value.map(|value| value.as_str().as_bytes()));
        }
        self.field((subject != self.lost).then_some(payload));
    }

    /// A length in front keeps neighbours apart.
    fn field(&mut self, bytes: Option<&[u8]>) {
        let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        self.hash.update(length.to_le_bytes());
        self.hash.update(bytes.unwrap_or_default());
    }

    pub(super) fn finish(self) -> String {
        hex::encode(self.hash.finalize())
    }
}
