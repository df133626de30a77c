//! How far the poller has come, kept across restarts.
//!
//! Written only after what it speaks of is durable in the log; a crash in between repeats reads, and known ids keep
//! the repeats out of the log.

use std::sync::Arc;

use jiff::{Timestamp, civil::Date};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{RETRY, board::Board, names};
use crate::{
    bus::{Bucket, Bus, KvError},
    log::Log,
};

/// Key in [`Bucket::State`].
pub const KEY: &str = "floor";

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Every row that upstream showed before this, and that is not older than `origin`, has been appended.
    pub floor: Timestamp,
    /// Rows older than this were not asked for.
    pub origin: Timestamp,
    /// The first read of the past, while it is not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<BackfillPosition>,
    /// The log that all this is about, as it was when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogMark>,
}

/// A log and how far it had come. A log that is another one now, or ends before that, has lost events that the
/// position says are there: a backup was put back, or a server lost power before it had synced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// 16 hex digits.
    pub incarnation: String,
    /// Its newest sequence.
    pub seq: u64,
}

impl LogMark {
    /// The log as it is now.
    pub fn of(log: &Log) -> Self {
        let bounds = log.bounds();
        Self { incarnation: format!("{:016x}", bounds.incarnation), seq: bounds.last_seq }
    }
}

impl Position {
    /// What holds after a log has lost its end: all of it that is left was appended by the time at which its newest
    /// event was, so what was visible before that and is missing is found by sweeps from there, or by the ledger.
    /// None where nothing is left: then it is as at the very first start.
    pub fn checked(self, log: &Log) -> Option<Self> {
        let (Some(mark), now) = (&self.log, LogMark::of(log)) else { return Some(self) };
        if mark.incarnation == now.incarnation && mark.seq <= now.seq {
            return Some(self);
        }
        metrics::counter!(names::LOG_REGRESSIONS).increment(1);
        let newest = log.bounds().last_time;
        tracing::error!(
            ?mark,
            ?now,
            ?newest,
            "the log has lost events since it was last written: they are read again"
        );
        let floor = newest?.min(self.floor);
        Some(Self { floor, log: None, ..self })
    }
}

/// A position as it must be kept with a copy of a log that does not know the ids of removed events any more, which
/// happened until `until`: rows as old as those are not taken again. None where it stays as it is.
pub fn forgetting(kept: &[u8], until: Timestamp, log: &Log) -> Option<Vec<u8>> {
    let position: Position = serde_json::from_slice(kept).ok()?;
    // An event whose time was in the future must not keep out what happens until then.
    let first = log.bounds().first_time.unwrap_or(position.floor);
    let origin = until.min(first).min(position.floor);
    if origin <= position.origin {
        return None;
    }
    serde_json::to_vec(&Position { origin, ..position }).ok()
}

/// How far the backfill has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillPosition {
    /// Rows older than this are backfill.
    pub until: Timestamp,
    /// The day to read next.
    pub next_day: Date,
    /// Days to read in all.
    pub days: u32,
}

/// The position and its store.
#[derive(Debug)]
pub struct PositionStore {
    bus: Arc<dyn Bus>,
    board: Arc<Board>,
    position: Mutex<Position>,
}

impl PositionStore {
    /// Reads what was kept; None before the very first start. Waits for the store as long as it takes.
    ///
    /// # Errors
    /// What is kept can't be understood.
    pub async fn load(bus: &Arc<dyn Bus>) -> Result<Option<Position>, serde_json::Error> {
        loop {
            match bus.kv_get(Bucket::State, KEY).await {
                Ok(None) => return Ok(None),
                Ok(Some(entry)) => return serde_json::from_slice(&entry.value).map(Some),
                Err(error) => {
                    tracing::error!(%error, "the poller's position can't be read; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Goes on from a position; it is written at the next change.
    pub fn new(bus: Arc<dyn Bus>, board: Arc<Board>, position: Position) -> Self {
        board.update(|status| status.floor = Some(position.floor));
        Self { bus, board, position: Mutex::new(position) }
    }

    /// Where it is kept.
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.bus
    }

    /// The position now.
    pub async fn get(&self) -> Position {
        self.position.lock().await.clone()
    }

    /// Changes the position and writes it. A failed write is only logged: the next one carries it too, and until then
    /// a restart repeats a little.
    pub async fn change(&self, change: impl FnOnce(&mut Position)) {
        let mut position = self.position.lock().await;
        let before = position.clone();
        change(&mut position);
        if *position == before {
            return;
        }
        self.board.update(|status| status.floor = Some(position.floor));
        if let Err(error) = self.write(&position).await {
            tracing::error!(%error, "the poller's position can't be written; a restart would repeat reads");
        }
    }

    async fn write(&self, position: &Position) -> Result<(), KvError> {
        let marked = Position { log: Some(LogMark::of(self.bus.log())), ..position.clone() };
        let value = serde_json::to_vec(&marked).unwrap_or_default();
        self.bus.kv_put(Bucket::State, KEY, value.into()).await?;
        Ok(())
    }

    /// Writes the position although it did not change: at the first start, so that a crash does not look like one.
    pub async fn write_first(&self) {
        let position = self.position.lock().await;
        if let Err(error) = self.write(&position).await {
            tracing::error!(%error, "the poller's position can't be written");
        }
    }

    /// Moves the floor up, never down.
    pub async fn raise_floor(&self, floor: Timestamp) {
        self.change(|position| position.floor = position.floor.max(floor)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_knows_fewer_ids_takes_no_older_rows() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let position = Position { floor: at(1_000), origin: at(100), backfill: None, log: None };
        let kept = serde_json::to_vec(&position).unwrap();
        let log = Log::in_memory(1);
        let changed = |until| forgetting(&kept, until, &log);
        let read = |changed: Option<Vec<u8>>| serde_json::from_slice::<Position>(&changed.unwrap()).unwrap();
        assert_eq!(read(changed(at(500))), Position { origin: at(500), ..position.clone() });
        assert_eq!(read(changed(at(5_000))).origin, position.floor, "an event out of the future");
        assert_eq!((changed(at(100)), changed(at(50))), (None, None));
        assert_eq!(forgetting(b"?", at(500), &log), None);
    }
}
