//! Bounded reads of what is stored: the same predicate, policy and encodings as live.

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    Error, Hub,
    frame::{self, Encoding, Item, Joiner},
    subscription::{before_last, gap_of, join, resolve_cursor},
    trace,
};
use std::sync::Arc;

use crate::{
    event::{Cursor, FieldPolicy, Gap, Keys, OnExpired, Predicate},
    log::{Direction, Hole, ReadPage, ReadRequest},
};

/// Most events that one history read gives.
pub const HISTORY_MAX: u32 = 1000;

/// Bytes of events that one history read gives, at most, but at least one event.
const HISTORY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Pages of the log that one history read looks at, at most: a sparse filter gets a short answer and a cursor to go
/// on from, never a read without end.
const PAGES_MAX: usize = 64;

/// Oldest or newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    #[default]
    Asc,
    /// Newest first.
    Desc,
}

/// Where a history read starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryStart {
    /// Before the oldest event.
    Oldest,
    /// Behind the newest event, for [`Order::Desc`].
    Newest,
    /// Behind a cursor, for [`Order::Asc`].
    After(Cursor),
    /// Up to a cursor: the event at the cursor is not given again, for [`Order::Desc`].
    Before(Cursor),
    /// First event observed at or after a time.
    Since(Timestamp),
    /// The last n matches.
    Last(u32),
}

/// A history read.
#[derive(Debug, Clone)]
pub struct HistoryQuery {
    /// How.
    pub encoding: Encoding,
    /// Which events.
    pub predicate: Predicate,
    /// Which fields of them.
    pub policy: Option<Arc<FieldPolicy>>,
    /// From where.
    pub position: HistoryStart,
    /// Only events observed at or after; ends a [`Order::Desc`] read.
    pub since: Option<Timestamp>,
    /// Only events observed before.
    pub until: Option<Timestamp>,
    /// Only events that happened at or after.
    pub event_since: Option<Timestamp>,
    /// Only events that happened before.
    pub event_until: Option<Timestamp>,
    /// At most so many, 1 to [`HISTORY_MAX`].
    pub limit: u32,
    /// Oldest or newest first.
    pub order: Order,
    /// What a cursor outside the kept range does.
    pub on_expired: OnExpired,
}

/// What a history read gave.
#[derive(Debug, Clone)]
pub struct History {
    /// Events joined as in a batch, without its end: JSON by commas, protobuf elements one after the other.
    pub bytes: Bytes,
    /// Events inside.
    pub count: u32,
    /// Go on from here, in the same order.
    pub next: Cursor,
    /// Nothing more lies in this direction at the moment.
    pub caught_up: bool,
    /// Set where the start was out of range, or a range is damaged.
    pub gap: Option<Gap>,
}

impl Hub {
    /// Reads stored events.
    ///
    /// # Errors
    /// [`Error::Expired`] where the start is out of range and `on_expired` says fail.
    pub async fn history(&self, query: HistoryQuery) -> Result<History, Error> {
        self.read(move |hub| read(hub, &query)).await
    }

    /// Stored events by sequence, each as [`Encoding::Items`] shows it. None for one that is
    /// no longer kept or can't be read. At most [`HISTORY_MAX`] are looked at.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the log can't be read.
    pub async fn items(
        &self,
        seqs: Vec<u64>,
        policy: Option<Arc<FieldPolicy>>,
    ) -> Result<Vec<Option<Item>>, Error> {
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        self.read(move |hub| {
            let log = hub.log();
            let read = |seq: u64| {
                let found = log.get(seq).map_err(|error| Error::Unavailable(error.to_string()))?;
                Ok(found.and_then(|event| {
                    let body =
                        frame::encode(&event, log.incarnation(), Encoding::Items, policy.as_deref()).ok()?;
                    Some(Item { event, body })
                }))
            };
            seqs.into_iter().take(HISTORY_MAX as usize).map(read).collect()
        })
        .await
    }

    /// One stored event by id. None where it is unknown, no longer kept, or outside the predicate, which to the
    /// reader must look the same.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the log can't be read.
    pub async fn event(
        &self,
        id: &str,
        predicate: &Predicate,
        policy: Option<&Arc<FieldPolicy>>,
        encoding: Encoding,
    ) -> Result<Option<Bytes>, Error> {
        let (id, predicate, policy) = (id.to_owned(), predicate.clone(), policy.cloned());
        self.read(move |hub| {
            let log = hub.log();
            let Some(event) = trace::visible(log, &id, &predicate)? else { return Ok(None) };
            frame::encode(&event, log.incarnation(), encoding, policy.as_deref())
                .map(Some)
                .map_err(|error| Error::Unavailable(error.to_string()))
        })
        .await
    }
}

fn read(hub: &Hub, query: &HistoryQuery) -> Result<History, Error> {
    let log = hub.log();
    let unavailable = |error: crate::log::ReadError| Error::Unavailable(error.to_string());
    let mut gap = None;
    let mut from = match query.position {
        HistoryStart::Oldest => log.bounds().first_seq.saturating_sub(1),
        HistoryStart::Newest => u64::MAX,
        HistoryStart::After(cursor) | HistoryStart::Before(cursor) => {
            let (at, missing) = resolve_cursor(hub, cursor, query.on_expired)?;
            gap = missing;
            at.seq
        }
        HistoryStart::Since(time) => log.position_at(time).map_err(unavailable)?,
        HistoryStart::Last(n) => before_last(log, n, &query.predicate).map_err(unavailable)?,
    };
    let mut out = Joiner::new(query.encoding, 0);
    let mut caught_up = false;
    for _ in 0..PAGES_MAX {
        let missing = query.limit as usize - out.starts.len();
        let mut page = log
            .read(ReadRequest {
                from,
                direction: if query.order == Order::Asc { Direction::Forward } else { Direction::Backward },
                predicate: &query.predicate,
                limit: missing,
                max_bytes: HISTORY_BYTES_MAX.saturating_sub(out.len()),
            })
            .map_err(unavailable)?;
        // One answer has room for one gap: it ends before the next, which heads the next answer.
        let untold = page.holes.get(usize::from(gap.is_none())).copied();
        if gap.is_none() {
            gap = page.holes.first().map(|hole| gap_of(log, hole));
        }
        if let Some(hole) = &untold {
            cut(&mut page, hole, query.order);
        }
        let past_end = trim(&mut page, query);
        if let Some(joined) = join(log, &page, query.encoding, query.policy.as_deref()) {
            out.extend(joined);
        }
        from = page.next;
        caught_up = page.at_end || past_end;
        if untold.is_some()
            || caught_up
            || out.starts.len() >= query.limit as usize
            || out.len() >= HISTORY_BYTES_MAX
        {
            break;
        }
    }
    // Going down, position `n` means "everything above n - 1 is read": the event at the cursor is not given again.
    let next = log.cursor_at(if from == u64::MAX { log.bounds().last_seq } else { from });
    let count = out.starts.len() as u32;
    Ok(History { bytes: out.into_items(), count, next, caught_up, gap })
}

/// Ends a page before a hole.
fn cut(page: &mut ReadPage, hole: &Hole, order: Order) {
    let before = |seq: u64| match order {
        Order::Asc => seq < hole.first_seq,
        Order::Desc => seq > hole.last_seq,
    };
    page.events.retain(|event| before(event.seq()));
    page.next = match order {
        Order::Asc => hole.first_seq - 1,
        Order::Desc => hole.last_seq + 1,
    };
    page.at_end = false;
}

/// Drops what the time bounds exclude; true where nothing further in this direction can lie within them. Only
/// `observed_at` orders the log, so only its bounds can end a read.
fn trim(page: &mut ReadPage, query: &HistoryQuery) -> bool {
    let us = |time: Option<Timestamp>| time.map(Timestamp::as_microsecond);
    let (since, until) = (us(query.since), us(query.until));
    let (event_since, event_until) = (us(query.event_since), us(query.event_until));
    let beyond = |keys: &Keys<'_>| match query.order {
        Order::Asc => until.is_some_and(|until| keys.observed_us >= until),
        Order::Desc => since.is_some_and(|since| keys.observed_us < since),
    };
    let end = page.events.iter().position(|event| event.keys().is_ok_and(|keys| beyond(&keys)));
    if let Some(end) = end {
        // The cursor stays before what was left out, so that a reader may go on with a later bound.
        page.next = match (query.order, page.events.get(end)) {
            (Order::Asc, Some(event)) => event.seq() - 1,
            (Order::Desc, Some(event)) => event.seq() + 1,
            (_, None) => page.next,
        };
        page.events.truncate(end);
    }
    page.events.retain(|event| {
        event.keys().is_ok_and(|keys| {
            until.is_none_or(|until| keys.observed_us < until)
                && since.is_none_or(|since| keys.observed_us >= since)
                && event_since.is_none_or(|since| keys.time_us >= since)
                && event_until.is_none_or(|until| keys.time_us < until)
        })
    });
    end.is_some()
}
