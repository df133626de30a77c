//! One subscriber: a position, moved through the log and the ring.
//!
//! Ring and log hold the same events in the same order, so all a subscriber needs is the sequence up to which it has
//! been served. If the ring reaches back to that position, the next chunk comes from there; otherwise from the log.
//! Joining the ring in the middle of a chunk takes the rest of the chunk. That is the whole splice.

use std::{collections::VecDeque, sync::Arc};

use tokio::task::JoinHandle;

use super::{
    Error, Hub, Spec,
    frame::{self, Batch, Encoding, Joiner},
    ring::{Found, Outlet},
};
use crate::{
    event::{Cursor, FieldPolicy, Gap, GapReason, OnExpired, Predicate, Start},
    log::{CursorState, Direction, Hole, Log, ReadError, ReadPage, ReadRequest},
    sabotage::{self, Bug},
};

/// What a subscriber is handed.
#[derive(Debug)]
pub enum Delivery {
    /// Events, in log order.
    Batch(Batch),
    /// Once: everything that was stored when the subscription opened has been handed out.
    CaughtUp(Cursor),
    /// A range that can't be delivered; goes on behind it.
    Gap(Gap),
    /// The end: nothing follows.
    Failed(Error),
}

/// A page of the log, encoded for a subscriber behind the ring.
#[derive(Debug)]
struct Page {
    batch: Option<Batch>,
    /// Evaluated up to here.
    next: Cursor,
    gaps: Vec<Gap>,
}

/// A subscription. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    hub: Hub,
    outlet: Arc<Outlet>,
    predicate: Predicate,
    on_expired: OnExpired,
    opened_at: Cursor,
    /// Evaluated up to here, and all of it handed out.
    position: Cursor,
    /// The hub's edge when the subscription opened; None once caught up with it.
    target: Option<u64>,
    gaps: VecDeque<Gap>,
    /// A read that a cancelled `next` left running.
    reading: Option<Box<JoinHandle<Result<Page, Error>>>>,
}

impl Subscription {
    pub(super) async fn open(hub: Hub, spec: Spec) -> Result<Self, Error> {
        let Spec { encoding, predicate, policy, start, on_expired } = spec;
        let (outlet, edge) = {
            let mut table = hub.0.table.lock();
            let edge = hub.edge();
            (table.join(&predicate, encoding, policy, edge.seq), edge)
        };
        // From here on the drop of `this` leaves the outlet, whatever fails.
        let mut this = Self {
            hub,
            outlet,
            predicate,
            on_expired,
            opened_at: edge,
            position: edge,
            target: Some(edge.seq),
            gaps: VecDeque::new(),
            reading: None,
        };
        if start != Start::Now {
            let wanted = this.predicate.clone();
            let found = this.hub.read(move |hub| resolve(hub, start, &wanted, on_expired)).await?;
            this.position = found.0;
            this.opened_at = found.0;
            this.gaps.extend(found.1);
        }
        Ok(this)
    }

    /// The exact start: everything behind it that matches is delivered.
    pub fn opened_at(&self) -> Cursor {
        self.opened_at
    }

    /// The position up to which the predicate has been evaluated and every match handed out: resume from here.
    pub fn cursor(&self) -> Cursor {
        // The edge is read before the ring: chunks up to it are then in the ring already.
        let edge = self.hub.edge();
        match self.outlet.find(self.position.seq) {
            Found::Drained if edge.seq > self.position.seq => edge,
            _ => self.position,
        }
    }

    /// How many log positions lie between this subscriber and the newest event.
    pub fn lag_events(&self) -> u64 {
        self.hub.log().bounds().last_seq.saturating_sub(self.cursor().seq)
    }

    /// Changes what is delivered, from the current position on.
    pub fn update(&mut self, predicate: Predicate) {
        self.position = self.cursor();
        self.reading = None;
        let mut table = self.hub.0.table.lock();
        let edge = self.hub.edge();
        let next = table.join(&predicate, self.outlet.encoding, self.outlet.policy.clone(), edge.seq);
        table.leave(&self.predicate, &self.outlet);
        drop(table);
        self.outlet = next;
        self.predicate = predicate;
    }

    /// The next delivery. Cancel-safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Delivery {
        loop {
            if let Some(gap) = self.gaps.pop_front() {
                return Delivery::Gap(gap);
            }
            if self.target.is_some_and(|target| self.position.seq >= target) {
                self.target = None;
                return Delivery::CaughtUp(self.position);
            }
            // What is there already is taken without a place among those who wait.
            if let Found::Batch(batch) = self.outlet.find(self.position.seq) {
                self.position = batch.cursor;
                return Delivery::Batch(batch);
            }
            let outlet = self.outlet.clone();
            let mut changed = std::pin::pin!(outlet.changed.notified());
            // Registered before looking, so that a chunk pushed in between wakes us.
            changed.as_mut().enable();
            let edge = self.hub.edge();
            match outlet.find(self.position.seq) {
                Found::Batch(batch) => {
                    self.position = batch.cursor;
                    return Delivery::Batch(batch);
                }
                Found::Drained => {
                    if edge.seq > self.position.seq {
                        self.position = edge;
                    }
                    if self.target.is_none() {
                        changed.await;
                    }
                }
                Found::Behind => match self.read().await {
                    Ok(page) => {
                        self.position = page.next;
                        self.gaps.extend(page.gaps);
                        if let Some(batch) = page.batch {
                            return Delivery::Batch(batch);
                        }
                    }
                    Err(error) => return Delivery::Failed(error),
                },
            }
        }
    }

    /// Reads the log behind the position; a read that was cancelled is taken up again.
    async fn read(&mut self) -> Result<Page, Error> {
        let reading = self.reading.get_or_insert_with(|| {
            let (hub, outlet) = (self.hub.clone(), self.outlet.clone());
            let (predicate, position, on_expired) = (self.predicate.clone(), self.position, self.on_expired);
            Box::new(tokio::spawn(async move {
                hub.read(move |hub| read_page(hub, &outlet, &predicate, position, on_expired)).await
            }))
        });
        let done = reading.as_mut().await;
        self.reading = None;
        done.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
        self.hub.0.table.lock().leave(&self.predicate, &self.outlet);
    }
}

fn read_page(
    hub: &Hub,
    outlet: &Outlet,
    predicate: &Predicate,
    position: Cursor,
    on_expired: OnExpired,
) -> Result<Page, Error> {
    let log = hub.log();
    let request = ReadRequest {
        from: position.seq,
        direction: Direction::Forward,
        predicate,
        limit: hub.0.config.batch_events,
        max_bytes: hub.0.config.batch_bytes,
    };
    let read = match log.read(request) {
        Ok(read) => read,
        Err(ReadError::Expired { .. }) => {
            let (next, gap) = out_of_range(hub, Some(position), GapReason::Retention, on_expired)?;
            let told = !sabotage::on(Bug::SilentExpiry);
            return Ok(Page { batch: None, next, gaps: told.then_some(gap).into_iter().collect() });
        }
        Err(error) => return Err(Error::Unavailable(error.to_string())),
    };
    let (read, hole) = up_to_hole(read);
    let next = log.cursor_at(read.next);
    let gaps = hole.iter().map(|hole| gap_of(log, hole)).collect();
    let batch =
        join(log, &read, outlet.encoding, outlet.policy.as_deref()).map(|joiner| joiner.finish(next).0);
    Ok(Page { batch, next, gaps })
}

/// Cuts a page short at its first hole, or to that hole alone where nothing comes before it: so no batch's cursor
/// passes a gap that has not been told, and no gap's passes events that have not been handed out.
fn up_to_hole(mut page: ReadPage) -> (ReadPage, Option<Hole>) {
    let Some(hole) = page.holes.first().copied() else { return (page, None) };
    let before = page.events.partition_point(|event| event.seq() < hole.first_seq);
    page.events.truncate(before);
    if before > 0 {
        page.next = hole.first_seq - 1;
        return (page, None);
    }
    page.next = hole.last_seq;
    (page, Some(hole))
}

/// Encodes the events of a page; None where there are none.
pub(super) fn join(
    log: &Log,
    page: &ReadPage,
    encoding: Encoding,
    policy: Option<&FieldPolicy>,
) -> Option<Joiner> {
    let mut joiner = Joiner::new(encoding, page.events.iter().map(|event| event.bytes() + 64).sum());
    for event in &page.events {
        match frame::encode(event, log.incarnation(), encoding, policy) {
            Ok(bytes) => joiner.push(event, &bytes),
            Err(error) => tracing::error!(seq = event.seq(), %error, "stored event can't be encoded"),
        }
    }
    (!joiner.starts.is_empty()).then_some(joiner)
}

/// The gap that a hole in the log is to a reader.
pub(super) fn gap_of(log: &Log, hole: &Hole) -> Gap {
    Gap {
        from: Some(log.cursor_at(hole.first_seq.saturating_sub(1))),
        to: Some(log.cursor_at(hole.last_seq)),
        from_time: None,
        to_time: None,
        lost: Some(hole.last_seq - hole.first_seq + 1),
        reason: hole.reason,
    }
}

/// Where a reader goes on whose position lies outside what is kept, and the gap that tells it so.
pub(super) fn out_of_range(
    hub: &Hub,
    from: Option<Cursor>,
    reason: GapReason,
    on_expired: OnExpired,
) -> Result<(Cursor, Gap), Error> {
    let (oldest, newest) = hub.range();
    let to = match on_expired {
        OnExpired::Fail => return Err(Error::Expired { oldest, newest, reason }),
        OnExpired::Earliest => oldest,
        OnExpired::Latest => newest,
    };
    let bounds = hub.log().bounds();
    // Only sequences of one and the same history can be counted.
    let lost = from.filter(|_| reason == GapReason::Retention).map(|from| to.seq.saturating_sub(from.seq));
    let to_time = if on_expired == OnExpired::Earliest { bounds.first_time } else { bounds.last_time };
    Ok((to, Gap { from, to: Some(to), from_time: None, to_time, lost, reason }))
}

/// The position of a cursor, or where `on_expired` sends it.
pub(super) fn resolve_cursor(
    hub: &Hub,
    cursor: Cursor,
    on_expired: OnExpired,
) -> Result<(Cursor, Option<Gap>), Error> {
    let reason = match hub.log().check(cursor) {
        Ok(_) => return Ok((cursor, None)),
        Err(CursorState::Expired) => GapReason::Retention,
        Err(CursorState::OtherIncarnation) => GapReason::Incarnation,
        Err(CursorState::Regressed) => GapReason::Regressed,
    };
    out_of_range(hub, Some(cursor), reason, on_expired).map(|(to, gap)| (to, Some(gap)))
}

fn resolve(
    hub: &Hub,
    start: Start,
    predicate: &Predicate,
    on_expired: OnExpired,
) -> Result<(Cursor, Option<Gap>), Error> {
    let log = hub.log();
    let unavailable = |error: ReadError| Error::Unavailable(error.to_string());
    let seq = match start {
        Start::Now => return Ok((hub.edge(), None)),
        Start::Earliest => log.bounds().first_seq.saturating_sub(1),
        Start::After(cursor) => return resolve_cursor(hub, cursor, on_expired),
        Start::Since(time) => log.position_at(time).map_err(unavailable)?,
        Start::Last(n) => before_last(log, n, predicate).map_err(unavailable)?,
    };
    Ok((log.cursor_at(seq), None))
}

/// The position before the last `n` matches. Reads backwards a page at a time, at most the whole log.
pub(super) fn before_last(log: &Log, n: u32, predicate: &Predicate) -> Result<u64, ReadError> {
    let mut from = u64::MAX;
    let mut missing = n as usize;
    loop {
        let page = log.read(ReadRequest {
            from,
            direction: Direction::Backward,
            predicate,
            limit: missing,
            max_bytes: 1024 * 1024,
        })?;
        missing -= page.events.len().min(missing);
        if let (0, Some(first)) = (missing, page.events.last()) {
            return Ok(first.seq() - 1);
        }
        if page.at_end {
            return Ok(log.bounds().first_seq.saturating_sub(1));
        }
        from = page.next;
    }
}
