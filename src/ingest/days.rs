//! Reading a long stretch of the past, oldest first: days before today in windows of their own, so that offsets stay
//! small, then from yesterday to the newest row.

use jiff::{Timestamp, civil::Date};

use super::{
    intake::Via,
    probe::{day_of, day_plus},
    seek,
    session::{Halt, SKEW, Session},
    status::Mode,
    upstream::Window,
    windows::Windows,
};
use crate::globalsim::budget::Class;

/// What is read for whom.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    /// Which budget pays.
    pub class: Class,
    /// Who finds the rows.
    pub via: Via,
    /// Rows older than this are backfill.
    pub backfill_before: Option<Timestamp>,
}

/// Reads one day wholly; upstream's days may begin at another hour, but together they leave no time out.
///
/// # Errors
/// [`Halt`]; the day has to be read again.
pub async fn read_day(session: &Session, stretch: Stretch, day: Date) -> Result<(), Halt> {
    let findings = session.findings();
    // Where it is not known whether a bound's own day is included, a day more is read; repeats cost only requests.
    let start = if findings.start_inclusive == Some(true) { day } else { day_plus(day, -1) };
    let end = if findings.end_inclusive == Some(true) { day } else { day_plus(day, 1) };
    let window = Window { start: Some(start), end: Some(end), ..Window::default() };
    read(session, stretch, window, None).await
}

/// Reads from a depth to the newest row.
///
/// # Errors
/// [`Halt`]; everything from the depth has to be read again, but rows taken are known then.
pub async fn read_to_head(session: &Session, stretch: Stretch, depth: Timestamp) -> Result<(), Halt> {
    // Where the list has an order the depth is found by it, and rows without a time are read too.
    let window = match session.mode() {
        Mode::Windows => Window::since(day_plus(day_of(depth), -2)),
        _ => Window::default(),
    };
    read(session, stretch, window, Some(depth)).await
}

async fn read(
    session: &Session,
    stretch: Stretch,
    window: Window,
    depth: Option<Timestamp>,
) -> Result<(), Halt> {
    let Stretch { class, via, backfill_before } = stretch;
    if session.mode() == Mode::Windows {
        let complete = Windows::default().read(session, class, window, via, backfill_before).await?;
        return if complete { Ok(()) } else { Err(Halt::Lost) };
    }
    let source = session.source(class, window);
    let (mut walker, mut rows) = seek::up(&source, session.order(), depth).await?;
    loop {
        session.intake.take(rows, via, walker.asked_at(), backfill_before).await?;
        rows = match walker.next().await? {
            Some(rows) => rows,
            None => break,
        };
    }
    session.walk_done();
    Ok(())
}

/// The day up to which days can be read for themselves: before it upstream's zone can't matter.
pub fn last_closed_day(now: Timestamp) -> Date {
    day_plus(day_of(now.saturating_sub(SKEW).unwrap_or(now)), -2)
}
