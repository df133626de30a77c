//! Live fan-out: one tail reader, any number of subscribers.
//!
//! ```text
//! log --tail--> hub --index--> filter node --> outlet (encoding, policy): ring of ready-made chunks
//!                                                 ^ position          ^ position
//!                                              subscriber          subscriber
//! ```
//!
//! - An event is encoded once per encoding and policy, and matched once per distinct filter, through an index: the
//!   cost of an event follows its matches, not the number of subscribers.
//! - Subscribers that want the same thing share one [`outlet`](ring::Outlet): chunks of bytes that go to the socket
//!   as they are. A subscriber is a position in that ring, never a queue: a slow one costs nothing but its place.
//! - A subscriber behind the ring reads the log by the same predicate and joins the ring at an exact position: ring
//!   and log are both ordered by sequence, so the seam can neither repeat nor skip (see [`subscription`]).
//! - Memory is bounded by [`Config::ring_bytes_total`], shared by all outlets, plus one chunk per outlet.

pub mod frame;
pub mod history;
mod index;
mod ring;
pub mod subscription;
pub mod trace;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    event::{Cursor, FieldPolicy, GapReason, OnExpired, Predicate, Start},
    log::{Direction, Log, ReadError, ReadRequest},
};
pub use frame::{Batch, Encoding};
pub use history::{History, HistoryQuery, HistoryStart, Order};
pub use subscription::{Delivery, Subscription};
pub use trace::{Step, Trace};

/// Bounds of the hub.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Events in one batch, at most.
    pub batch_events: usize,
    /// Bytes of events in one batch, at most; a single event may be larger.
    pub batch_bytes: usize,
    /// Bytes that all rings together keep for subscribers that are a little behind.
    pub ring_bytes_total: usize,
    /// Bytes that one ring keeps, at most.
    pub ring_bytes: usize,
    /// Reads of the log for subscribers behind the ring that may run at the same time.
    pub concurrent_reads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_events: 256,
            batch_bytes: 256 * 1024,
            ring_bytes_total: 64 * 1024 * 1024,
            ring_bytes: 4 * 1024 * 1024,
            concurrent_reads: 4,
        }
    }
}

/// What a subscriber wants.
#[derive(Debug, Clone)]
pub struct Spec {
    /// How.
    pub encoding: Encoding,
    /// Which events.
    pub predicate: Predicate,
    /// Which fields of them; None shows all.
    pub policy: Option<Arc<FieldPolicy>>,
    /// From where.
    pub start: Start,
    /// What a start outside the kept range does.
    pub on_expired: OnExpired,
}

/// Why a subscriber or reader gets nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The start lies outside what is kept; retrying with it does not help.
    #[error("the cursor can't be resumed ({}): start at the oldest or newest cursor", reason.as_str())]
    Expired {
        /// Cursor before the oldest event kept.
        oldest: Cursor,
        /// Cursor of the newest event.
        newest: Cursor,
        /// In which way it lies outside.
        reason: GapReason,
    },
    /// The log can't be read now; retrying may help.
    #[error("the log can't be read: {0}")]
    Unavailable(String),
}

impl Error {
    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// The hub; cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    log: Arc<Log>,
    reads: Arc<Semaphore>,
    /// The position up to which every outlet has its chunks. Written under `table`'s lock, after the chunks.
    edge: Mutex<Cursor>,
    table: Mutex<index::Table>,
}

impl Hub {
    /// A hub at the edge of a log; nothing is delivered until [`Hub::run`] runs.
    pub fn new(config: Config, log: Arc<Log>) -> Self {
        let edge = log.cursor_at(log.bounds().last_seq);
        let reads = Arc::new(Semaphore::new(config.concurrent_reads.max(1)));
        Self(Arc::new(Shared { config, log, reads, edge: Mutex::new(edge), table: Mutex::default() }))
    }

    /// The log that this hub reads.
    pub fn log(&self) -> &Arc<Log> {
        &self.0.log
    }

    /// Everything up to here has been handed to the outlets.
    pub fn edge(&self) -> Cursor {
        *self.0.edge.lock()
    }

    /// Follows the log until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut edge = self.0.log.edge();
        loop {
            let behind = *edge.borrow_and_update() > self.edge().seq;
            if behind {
                if let Err(error) = self.publish_next() {
                    tracing::error!(%error, "live delivery waits: the log can't be read");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                // Subscribers get the thread between two pages of a long burst.
                tokio::task::yield_now().await;
                if shutdown.is_cancelled() {
                    return;
                }
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = edge.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Reads one page behind the edge and gives each outlet its chunks.
    fn publish_next(&self) -> Result<(), ReadError> {
        let shared = &*self.0;
        let unfiltered = Predicate::unfiltered();
        let page = match shared.log.read(ReadRequest {
            from: self.edge().seq,
            direction: Direction::Forward,
            predicate: &unfiltered,
            limit: shared.config.batch_events,
            max_bytes: shared.config.batch_bytes,
        }) {
            Err(ReadError::Expired { first_seq }) => {
                tracing::error!(
                    first_seq,
                    "retention has overtaken live delivery: it goes on at the oldest event"
                );
                self.restart_at(first_seq.saturating_sub(1));
                return Ok(());
            }
            page => page?,
        };
        if !page.holes.is_empty() {
            self.restart_at(page.next);
            return Ok(());
        }
        let cursor = match page.events.last() {
            Some(last) if last.seq() == page.next => last.cursor(shared.log.incarnation()),
            _ => shared.log.cursor_at(page.next),
        };
        let mut table = shared.table.lock();
        let outlets = table.publish(&shared.config, shared.log.incarnation(), &page);
        *shared.edge.lock() = cursor;
        drop(table);
        for outlet in outlets {
            outlet.wake();
        }
        Ok(())
    }

    /// Moves the edge over what can't be published as it is. Nothing of it goes to the outlets, so that everyone who
    /// has not read so far does so in the log, and is told there what is missing.
    fn restart_at(&self, seq: u64) {
        let cursor = self.0.log.cursor_at(seq);
        let mut table = self.0.table.lock();
        let outlets = table.restart(seq);
        *self.0.edge.lock() = cursor;
        drop(table);
        for outlet in outlets {
            outlet.wake();
        }
    }

    /// Gives up what lies ready in memory for subscribers that are a little behind: they read on in the log.
    pub fn forget_rings(&self) {
        let mut table = self.0.table.lock();
        let seq = self.0.edge.lock().seq;
        let outlets = table.restart(seq);
        drop(table);
        for outlet in outlets {
            outlet.wake();
        }
    }

    /// The cursors of the oldest and newest position, for those whose own is out of range.
    pub fn range(&self) -> (Cursor, Cursor) {
        let bounds = self.0.log.bounds();
        let oldest = self.0.log.cursor_at(bounds.first_seq.saturating_sub(1));
        (oldest, self.0.log.cursor_at(bounds.last_seq))
    }

    /// Opens a subscription.
    ///
    /// # Errors
    /// [`Error::Expired`] where the start is out of range and `on_expired` says fail; [`Error::Unavailable`] where
    /// the log can't be read.
    pub async fn subscribe(&self, spec: Spec) -> Result<Subscription, Error> {
        Subscription::open(self.clone(), spec).await
    }

    /// Runs a blocking read of the log, a bounded number at a time.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Hub) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.0.reads.clone().acquire_owned().await;
        let hub = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read(&hub)
        });
        task.await.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
    }
}

#[cfg(test)]
mod tests;
