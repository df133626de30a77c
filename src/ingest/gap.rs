//! Announcing what can't be read any more: upstream forgot rows while nobody polled.
//!
//! How long upstream keeps rows is not documented. It is noticed where it matters: after a pause, the first complete
//! sweep comes to the end of the list above the floor, and the newest event that the log has of before the pause is
//! not shown any more. A fleet that was merely quiet still shows it.

use jiff::Timestamp;

use super::{
    names,
    page::PAGE_ROWS,
    probe::{day_of, day_plus},
    seek,
    session::{Halt, Session},
    status::Mode,
    upstream::Window,
};
use crate::{
    bus::{Bus, NewEvent},
    event::{Event, Gap, GapReason, Predicate, identity::FieldHasher},
    globalsim::budget::Class,
    log::{Damage, Direction, ReadRequest},
    sabotage::{self, Bug},
};

/// Events looked at, newest first, to find one of upstream's with a time before the pause.
const LOOK_BACK: usize = 256;
/// Pages of a list without order that are looked through for a row of before the pause.
const LOOK_PAGES: u32 = 16;

/// The newest event time of before `floor` that the log has; None where it has none.
pub fn newest_before(bus: &dyn Bus, floor: Timestamp) -> Option<Timestamp> {
    let predicate = Predicate::default();
    let request = ReadRequest {
        from: u64::MAX,
        direction: Direction::Backward,
        predicate: &predicate,
        limit: LOOK_BACK,
        max_bytes: 1 << 20,
    };
    let page = bus.log().read(request).ok()?;
    let time = |event: &crate::event::StoredEvent| {
        let keys = event.keys().ok()?;
        Timestamp::from_microsecond(keys.time_us).ok().filter(|time| *time <= floor)
    };
    page.events.iter().filter_map(time).max()
}

/// Whether upstream still shows anything as old as `time`, of which it is known that it once showed an event.
///
/// # Errors
/// [`Halt`].
pub async fn still_shows(session: &Session, time: Timestamp) -> Result<bool, Halt> {
    let day = day_of(time);
    let window = Window { start: Some(day_plus(day, -1)), end: Some(day_plus(day, 1)), ..Window::default() };
    if session.mode() != Mode::Windows {
        return Ok(oldest(session, window).await?.is_some_and(|shown| shown <= time));
    }
    let mut offset = 0;
    for _ in 0..LOOK_PAGES {
        let page = session.upstream.page(Class::CatchUp, &window, offset).await?;
        if page.slots.iter().any(|slot| slot.time.is_none_or(|shown| shown <= time)) {
            return Ok(true);
        }
        if (page.slots.len() as u64) < PAGE_ROWS {
            return Ok(false);
        }
        offset = page.end();
    }
    // So many rows of those days are shown that an alarm would rest on nothing.
    Ok(true)
}

/// Time of the oldest row that a window shows; its list has an order. None where no row has a time.
///
/// # Errors
/// [`Halt`].
pub async fn oldest(session: &Session, window: Window) -> Result<Option<Timestamp>, Halt> {
    let source = session.source(Class::CatchUp, window);
    let (_, rows) = seek::up(&source, session.order(), None).await?;
    Ok(rows.iter().filter_map(|slot| slot.time).min())
}

/// Appends the gap event for rows that upstream forgot. Its id says what it is about, so that a crash does not announce it twice.
///
/// # Errors
/// [`Halt`].
pub async fn announce(session: &Session, from: Timestamp, to: Timestamp) -> Result<(), Halt> {
    tracing::error!(%from, %to, "upstream has forgotten rows that were never read");
    append(session, from, to, None).await
}

/// The same for rows that upstream may still show, but that are older than ids are remembered.
///
/// # Errors
/// [`Halt`].
pub async fn announce_too_old(session: &Session, from: Timestamp, to: Timestamp) -> Result<(), Halt> {
    tracing::error!(%from, %to, "rows of so long ago can't be told from repeats and are not read");
    append(session, from, to, Some("too old")).await
}

/// The same for events that were damaged in the log, and that upstream no longer has: `lost` of those that lay at
/// these positions.
///
/// # Errors
/// [`Halt`].
pub async fn announce_corruption(
    session: &Session,
    (from, to): (Timestamp, Timestamp),
    lost: u64,
    damage: &[Damage],
) -> Result<(), Halt> {
    tracing::error!(%from, %to, lost, "events were damaged in the log and upstream no longer has them");
    let places: String = damage.iter().map(|one| format!("{}-{} ", one.first_seq, one.last_seq)).collect();
    let gap = Gap { lost: Some(lost), reason: GapReason::Corruption, ..between(from, to) };
    append_gap(session, gap, (from, to), Some(&places)).await
}

fn between(from: Timestamp, to: Timestamp) -> Gap {
    Gap {
        from: None,
        to: None,
        from_time: Some(from),
        to_time: Some(to),
        lost: None,
        reason: GapReason::Upstream,
    }
}

async fn append(session: &Session, from: Timestamp, to: Timestamp, why: Option<&str>) -> Result<(), Halt> {
    append_gap(session, between(from, to), (from, to), why).await
}

async fn append_gap(
    session: &Session,
    gap: Gap,
    (from, to): (Timestamp, Timestamp),
    why: Option<&str>,
) -> Result<(), Halt> {
    if sabotage::on(Bug::ForgetGap) {
        return Ok(());
    }
    metrics::counter!(names::GAPS).increment(1);
    let mut hasher = FieldHasher::new("gap");
    hasher.field(Some(&from.to_string()));
    if why.is_some() {
        hasher.field(why);
    }
    let identity = hasher.finish_u64();
    let event = Event::gateway(format!("gap_{identity:016x}"), "simcast.gap", to, gap.to_json());
    session.intake.announce(NewEvent { event, identity, content: 0 }).await?;
    Ok(())
}
