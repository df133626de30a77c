//! An outlet: the chunks that all subscribers of one (encoding, policy, predicate) share.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame::{Batch, Encoding};
use crate::{
    event::FieldPolicy,
    sabotage::{self, Bug},
};

/// A batch in a ring.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Everything of the chunk, with the cursor of its last event.
    pub(super) batch: Batch,
    /// Sequence of each event and where it starts in the bytes.
    pub(super) starts: Vec<(u64, u32)>,
}

impl Chunk {
    fn last_seq(&self) -> u64 {
        self.batch.cursor.seq
    }

    fn bytes(&self) -> usize {
        self.batch.bytes.len() + self.batch.items.iter().map(|item| item.body.len()).sum::<usize>()
    }

    /// The part behind `position`; the chunk must reach beyond it.
    fn after(&self, position: u64) -> Batch {
        let skip = self.starts.partition_point(|(seq, _)| *seq <= position);
        match self.starts.get(skip) {
            Some((_, at)) if skip > 0 => Batch {
                bytes: self.batch.bytes.slice(*at as usize..),
                items: self.batch.items.after(skip),
                count: self.batch.count - skip as u32,
                cursor: self.batch.cursor,
            },
            _ => self.batch.clone(),
        }
    }
}

/// What a position finds in the ring.
#[derive(Debug)]
pub(super) enum Found {
    /// The next chunk, or the rest of one.
    Batch(Batch),
    /// Nothing beyond the position has matched so far.
    Drained,
    /// The ring no longer reaches back to the position: read the log.
    Behind,
}

/// One ring and those who wait on it.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) encoding: Encoding,
    pub(super) policy: Option<Arc<FieldPolicy>>,
    ring: Mutex<Ring>,
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct Ring {
    /// Every match beyond this sequence, up to the hub's edge, is in `chunks`.
    floor: u64,
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

impl Outlet {
    pub(super) fn new(encoding: Encoding, policy: Option<Arc<FieldPolicy>>, floor: u64) -> Self {
        let ring = Ring { floor, chunks: VecDeque::new(), bytes: 0 };
        Self { encoding, policy, ring: Mutex::new(ring), changed: Notify::new() }
    }

    /// Adds chunks, then forgets old ones beyond `bytes_max`, but never the newest.
    pub(super) fn push(&self, chunks: Vec<Chunk>, bytes_max: usize) {
        let mut ring = self.ring.lock();
        for chunk in chunks {
            ring.bytes += chunk.bytes();
            ring.chunks.push_back(chunk);
        }
        while ring.bytes > bytes_max && ring.chunks.len() > 1 {
            if let Some(old) = ring.chunks.pop_front() {
                ring.bytes -= old.bytes();
                ring.floor = old.last_seq();
            }
        }
    }

    /// Forgets everything up to `floor`.
    pub(super) fn restart(&self, floor: u64) {
        *self.ring.lock() = Ring { floor, chunks: VecDeque::new(), bytes: 0 };
    }

    /// What lies behind a position.
    pub(super) fn find(&self, position: u64) -> Found {
        let ring = self.ring.lock();
        if position + u64::from(sabotage::on(Bug::SpliceOffByOne)) < ring.floor {
            return Found::Behind;
        }
        // Mostly the newest chunk is wanted, or none; a search through the older ones would touch each of them.
        let mut newest = ring.chunks.iter().rev();
        let Some(last) = newest.next().filter(|chunk| chunk.last_seq() > position) else {
            return Found::Drained;
        };
        if newest.next().is_none_or(|before| before.last_seq() <= position) {
            return Found::Batch(last.after(position));
        }
        let at = ring.chunks.partition_point(|chunk| chunk.last_seq() <= position);
        ring.chunks.get(at).map_or(Found::Drained, |chunk| Found::Batch(chunk.after(position)))
    }

    /// Wakes all who wait, once per batch of events.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }
}
