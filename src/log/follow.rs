//! Reading the log once, from a kept position to its edge and then along with it.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Direction, Hole, Log, ReadError, ReadPage, ReadRequest};
use crate::event::{Cursor, GapReason, Predicate};

/// Events and bytes of one page.
const PAGE_EVENTS: usize = 1_024;
const PAGE_BYTES: usize = 1 << 20;

/// A position that moves along the log.
#[derive(Debug)]
pub struct Follower {
    log: Arc<Log>,
    edge: watch::Receiver<u64>,
    predicate: Predicate,
    position: u64,
}

impl Follower {
    /// Behind `after`, a position of this log; from the oldest event where there is none, or none of this log any more.
    /// Gives whether it goes on from `after`.
    pub fn new(log: &Arc<Log>, predicate: Predicate, after: Option<Cursor>) -> (Self, bool) {
        let kept = after.and_then(|cursor| log.check(cursor).ok());
        let position = kept.unwrap_or_else(|| log.begins_at().saturating_sub(1));
        (Self { log: Arc::clone(log), edge: log.edge(), predicate, position }, kept.is_some())
    }

    /// Position up to which pages have been given.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The cursor of that position, to be kept with what was made of the pages.
    pub fn cursor(&self) -> Cursor {
        self.log.cursor_at(self.position)
    }

    /// Whether everything that the log holds now has been given.
    pub fn is_at_edge(&self) -> bool {
        self.position >= *self.edge.borrow()
    }

    /// The next page, once there is one; it may hold no event. A range that retention took, or that is damaged, is
    /// among its holes. Nothing is lost where the call is given up.
    ///
    /// # Errors
    /// Where the disk refuses; the same page is read again by the next call.
    pub async fn next(&mut self) -> Result<ReadPage, ReadError> {
        let position = self.position;
        // A log that is closed for ever has no more pages.
        if self.edge.wait_for(|edge| *edge > position).await.is_err() {
            return std::future::pending().await;
        }
        let (log, predicate) = (Arc::clone(&self.log), self.predicate.clone());
        let read = tokio::task::spawn_blocking(move || read(&log, &predicate, position));
        let page = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))?;
        self.position = page.next;
        Ok(page)
    }
}

fn read(log: &Log, predicate: &Predicate, from: u64) -> Result<ReadPage, ReadError> {
    let request = ReadRequest {
        from,
        direction: Direction::Forward,
        predicate,
        limit: PAGE_EVENTS,
        max_bytes: PAGE_BYTES,
    };
    match log.read(request) {
        Err(ReadError::Expired { first_seq }) => {
            let gone = Hole { first_seq: from + 1, last_seq: first_seq - 1, reason: GapReason::Retention };
            Ok(ReadPage { next: first_seq - 1, holes: vec![gone], ..ReadPage::default() })
        }
        page => page,
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{
        event::{Event, Filter},
        log::{Entry, Options},
    };

    fn append(log: &Log, numbers: std::ops::Range<u64>) {
        let entry = |n: u64| {
            let event = Event::new(format!("evt_{n}"), "/globalsim/test".into(), "connection");
            let at = Timestamp::from_second(1_700_000_000 + n as i64).unwrap();
            Entry { sealed: event.seal(at, SignedDuration::MAX).unwrap(), identity: n, content: 0 }
        };
        log.append(numbers.map(entry).collect()).unwrap();
    }

    async fn read_to_edge(follower: &mut Follower) -> (Vec<u64>, Vec<Hole>) {
        let (mut seqs, mut holes) = (Vec::new(), Vec::new());
        while !follower.is_at_edge() {
            let page = follower.next().await.unwrap();
            seqs.extend(page.events.iter().map(crate::event::StoredEvent::seq));
            holes.extend(page.holes);
        }
        (seqs, holes)
    }

    fn everything() -> Predicate {
        Predicate::new(Filter::default(), None)
    }

    #[tokio::test]
    async fn it_goes_on_where_it_was_and_from_the_oldest_where_that_is_another_log() {
        let log = Arc::new(Log::in_memory(1));
        append(&log, 0..3_000);
        let (mut first, kept) = Follower::new(&log, everything(), None);
        assert!(!kept);
        assert_eq!(read_to_edge(&mut first).await, ((1..=3_000).collect(), vec![]));
        append(&log, 3_000..3_010);
        let (mut second, kept) = Follower::new(&log, everything(), Some(first.cursor()));
        assert!(kept);
        assert_eq!(read_to_edge(&mut second).await.0, (3_001..=3_010).collect::<Vec<_>>());

        let other = Arc::new(Log::in_memory(2));
        append(&other, 0..5);
        let (mut third, kept) = Follower::new(&other, everything(), Some(second.cursor()));
        assert!(!kept);
        assert_eq!(read_to_edge(&mut third).await.0, (1..=5).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_retention_takes_before_it_was_read_is_told() {
        let options = Options { segment_bytes: 4 << 10, retention_bytes: 8 << 10, ..Options::default() };
        let log = Arc::new(Log::in_memory_with(options));
        append(&log, 0..10);
        let (mut follower, _) = Follower::new(&log, everything(), None);
        append(&log, 10..500);
        log.maintain(Timestamp::from_second(1_700_001_000).unwrap()).unwrap();
        let oldest = log.bounds().first_seq;
        assert!(oldest > 1);
        let (seqs, holes) = read_to_edge(&mut follower).await;
        assert_eq!(seqs, (oldest..=500).collect::<Vec<_>>());
        assert_eq!(holes, [Hole { first_seq: 1, last_seq: oldest - 1, reason: GapReason::Retention }]);
    }
}
