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
    session::{Halt, Session},
    upstream::Window,
};
use crate::{
    bus::{Bus, NewEvent},
    event::{Event, Gap, GapReason, Predicate, identity::FieldHasher},
    globalsim::budget::Class,
    log::{Direction, ReadRequest},
};

/// Events looked at, newest first, to find one of upstream's with a time before the pause.
const LOOK_BACK: usize = 256;

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
    let page = session.upstream.page(Class::CatchUp, &window, 0).await?;
    let full = page.slots.len() as u64 >= PAGE_ROWS;
    Ok(full || page.slots.iter().any(|slot| slot.time.is_none_or(|shown| shown <= time)))
}

/// Appends the gap event. Its id says what it is about, so that a crash does not announce it twice.
///
/// # Errors
/// [`Halt`].
pub async fn announce(session: &Session, from: Timestamp, to: Timestamp) -> Result<(), Halt> {
    metrics::counter!(names::GAPS).increment(1);
    tracing::error!(%from, %to, "upstream has forgotten rows that were never read");
    let gap = Gap {
        from: None,
        to: None,
        from_time: Some(from),
        to_time: Some(to),
        lost: None,
        reason: GapReason::Upstream,
    };
    let mut hasher = FieldHasher::new("gap");
    hasher.field(Some(&from.to_string()));
    let identity = hasher.finish_u64();
    let event = Event::gateway(format!("gap_{identity:016x}"), "simcast.gap", to, gap.to_json());
    session.intake.announce(NewEvent { event, identity, content: 0 }).await?;
    Ok(())
}
