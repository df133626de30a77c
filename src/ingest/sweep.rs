//! Looking for rows that became visible late, and closing holes: from the newest row down to where the last complete
//! sweep began, less the longest time that a row may take to appear.
//!
//! Only a complete sweep moves the floor, and only after everything it read is durable. So for each row there is a
//! first sweep that begins after the row became visible; the one before began before that, so the row lies above the
//! depth of this one and is read.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{
    days::{Stretch, last_closed_day, read_day, read_to_head},
    gap,
    intake::Via,
    names,
    page::{ListPage, PAGE_ROWS},
    probe::{day_of, day_plus},
    seek::{self, Down},
    session::{Halt, Session, Swept},
    status::Mode,
    upstream::{Item, Window},
};
use crate::{
    globalsim::budget::Class,
    sabotage::{self, Bug},
};

/// Sweeps are at least and at most this far apart, but for alarms and holes.
const PERIOD_MIN: Duration = Duration::from_secs(120);
const PERIOD_MAX: Duration = Duration::from_secs(600);
/// A shallow sweep finds what is a little late, between complete ones.
const SHALLOW_PERIOD: Duration = Duration::from_secs(30);
const SHALLOW_MIN: Duration = Duration::from_secs(60);
/// Pages that a shallow sweep may take; below the least, the tail's own page is nearly as deep.
const SHALLOW_PAGES_MIN: f64 = 0.5;
const SHALLOW_PAGES_MAX: f64 = 3.0;
/// Alarms can't make sweeps more frequent than this.
const PAUSE: Duration = Duration::from_secs(3);
/// Share of the request budget that sweeps may use.
const BUDGET_SHARE: f64 = 0.125;
/// Rows that a sweep may hold to hand them on oldest first.
const SWEEP_ROWS_MAX: usize = 5_000;
/// How often the floor is written while the tail itself reads deep enough.
const FLOOR_EVERY: Duration = Duration::from_secs(10);

/// Sweeps until nothing can be appended any more.
pub async fn run(session: &Session) -> Halt {
    let mut covered = session.covered.subscribe();
    let mut complete_at: Option<Instant> = None;
    let mut shallow_at = Instant::now();
    let mut floor_at: Option<Instant> = None;
    let mut alarm = session.holes.any_edgeless();
    loop {
        let mut holes_changed = std::pin::pin!(session.holes.changed.notified());
        holes_changed.as_mut().enable();
        if session.holes.any_with_edges() && !session.holes.any_edgeless() {
            // While rows are missing that were there in time, none are looked for that came late.
            holes_changed.await;
            continue;
        }
        let due = complete_at.map_or_else(Instant::now, |at| at + period(session));
        let pending_hole = session.holes.any_edgeless();
        let hole_is_due = pending_hole && complete_at.is_none_or(|at| at.elapsed() > PAUSE);
        if !(alarm || hole_is_due) {
            tokio::select! {
                () = session.sweep_now.notified() => alarm = true,
                () = tokio::time::sleep_until(due.max(Instant::now() + PAUSE)) => {}
                () = tokio::time::sleep_until(shallow_at + SHALLOW_PERIOD) => {}
                () = holes_changed => continue,
                Ok(()) = covered.changed() => {
                    let at = *covered.borrow_and_update();
                    complete_at = Some(Instant::now());
                    if let Some(at) = at
                        && floor_at.is_none_or(|written| written.elapsed() >= FLOOR_EVERY)
                    {
                        floor_at = Some(Instant::now());
                        if let Err(stopped) = raise(session, at).await {
                            return stopped;
                        }
                    }
                    continue;
                }
            }
        }
        let now = Instant::now();
        let result = if alarm || now >= due || session.holes.any_edgeless() {
            alarm = false;
            shallow_at = now;
            complete_at = Some(now);
            complete(session).await
        } else {
            shallow_at = now;
            shallow(session).await
        };
        match result {
            Ok(()) => tokio::time::sleep(PAUSE).await,
            Err(halt @ Halt::Stopped(_)) => return halt,
            Err(halt) => {
                metrics::counter!(names::SWEEPS, "outcome" => "incomplete").increment(1);
                if matches!(halt, Halt::Lost) {
                    session.walk_lost();
                }
                tracing::warn!(error = %halt, "a sweep was not completed; the floor stays");
                // The next one comes soon, since nothing has been proven.
                complete_at = None;
                tokio::time::sleep(session.upstream.jittered(PAUSE * 2)).await;
            }
        }
    }
}

/// Time between complete sweeps, so that they cost their share of the budget: each reads the rows of `lateness` and
/// of the time since the last.
fn period(session: &Session) -> Duration {
    let rate = session.intake.lateness().rate(session.clock.now()) * 60.0;
    let lateness = session.lateness.as_secs_f64();
    let rows_a_minute = f64::from(session.gate.usage().allowance) * BUDGET_SHARE * PAGE_ROWS as f64;
    let spare = rows_a_minute - rate;
    let period =
        if spare <= 0.0 { PERIOD_MAX } else { Duration::from_secs_f64((rate * lateness / spare).min(1e6)) };
    period.clamp(PERIOD_MIN, PERIOD_MAX)
}

async fn raise(session: &Session, floor: Timestamp) -> Result<(), Halt> {
    if !sabotage::on(Bug::FloorBeforeSettle) {
        session.intake.settle().await?;
    }
    session.position.raise_floor(floor).await;
    session.board.update(|status| status.last_sweep = Some(floor));
    Ok(())
}

/// A sweep to the full depth; the floor moves.
async fn complete(session: &Session) -> Result<(), Halt> {
    let mark = session.holes.mark();
    let depth = depth(session).await;
    let class = if session.holes.any_edgeless() { Class::CatchUp } else { Class::Sweep };
    let watch = session.upstream.watch();
    let began = match session.mode() {
        // The tail reads its window wholly, again and again, and tells when it has.
        Mode::Windows if depth >= midnight(day_plus(session.window_day(), 1)) => return Ok(()),
        Mode::Windows => deep_windows(session, depth).await?,
        _ => {
            let order = session.order();
            let Walked { began, sent_at } = walk(session, class, depth).await?;
            if session.order() == order {
                session.has_swept(Swept { sent_at: watch.seen(sent_at), depth });
            }
            began
        }
    };
    let began = watch.seen(began);
    session.walk_done();
    session.begun();
    session.holes.close(mark);
    if !session.has_hole() {
        session.show_backlog(None);
    }
    raise(session, if sabotage::on(Bug::FloorAtEnd) { session.clock.now() } else { began }).await?;
    metrics::counter!(names::SWEEPS, "outcome" => "complete").increment(1);
    Ok(())
}

/// Without order, the tail's window reaches back two days; after a longer outage the days below come first.
async fn deep_windows(session: &Session, depth: Timestamp) -> Result<Timestamp, Halt> {
    let began = session.clock.now();
    let stretch = Stretch { class: Class::CatchUp, via: Via::CatchUp, backfill_before: None };
    let mut day = day_plus(day_of(depth), -1);
    while day <= session.window_day() {
        read_day(session, stretch, day).await?;
        day = day_plus(day, 1);
    }
    read_to_head(session, stretch, midnight(day_plus(session.window_day(), 2))).await?;
    Ok(began)
}

/// A sweep as deep as rows have been late lately, where that is a matter of few pages.
async fn shallow(session: &Session) -> Result<(), Halt> {
    let lateness = session.intake.lateness();
    let now = session.clock.now();
    let reach = lateness.depth(SHALLOW_MIN, session.lateness);
    let pages = lateness.rate(now) * reach.as_secs_f64() / PAGE_ROWS as f64;
    if !(SHALLOW_PAGES_MIN..=SHALLOW_PAGES_MAX).contains(&pages) || session.mode() == Mode::Windows {
        return Ok(());
    }
    let reach = SignedDuration::try_from(reach).unwrap_or(SignedDuration::MAX);
    let depth = now.saturating_sub(reach + lateness.skew()).unwrap_or(Timestamp::MIN);
    walk(session, Class::Sweep, depth).await.map(drop)
}

/// The depth of a complete sweep, allowing for a clock of upstream's that is behind.
pub async fn depth(session: &Session) -> Timestamp {
    let skew = session.intake.lateness().skew();
    session.depth().await.saturating_sub(skew).unwrap_or(Timestamp::MIN)
}

/// When a walk began.
struct Walked {
    /// Not later than by upstream's clock either.
    began: Timestamp,
    /// By ours.
    sent_at: Timestamp,
}

/// Reads from the newest row down to a depth, or from the depth up if that is far.
async fn walk(session: &Session, class: Class, depth: Timestamp) -> Result<Walked, Halt> {
    // Without dates: a row whose time upstream can't read either is in no list by date.
    let window = Window::default();
    let head = head(session, class, &window).await?;
    session.observe(&head);
    let (began, sent_at) = (head.asked_at, head.sent_at);
    let before = session.swept();
    let source = session.source(class, window);
    let down = seek::down(&source, session.order(), head, SWEEP_ROWS_MAX, |rows| seek::passed(rows, depth));
    match down.await? {
        Down::Reached(mut rows) => {
            if let Some(before) = before {
                // Visible then, they would have been read then.
                for slot in rows.iter_mut().filter(|slot| slot.time.is_some_and(|time| time >= before.depth))
                {
                    slot.shown.not_seen_at = Some(before.sent_at);
                }
            }
            let oldest = rows.iter().filter_map(|slot| slot.time).min();
            session.intake.take(rows, Via::Sweep, began, session.past()).await?;
            check_for_gap(session, oldest.unwrap_or(began)).await?;
        }
        Down::TooLong(rows) => {
            // They are read again from below, but are worth most now.
            session.intake.take(rows, Via::CatchUp, began, session.past()).await?;
            let stretch = Stretch { class, via: Via::CatchUp, backfill_before: session.past() };
            far(session, stretch, depth).await?;
            if session.resumed().is_some() || session.holes.any_edgeless() {
                let oldest = gap::oldest(session, Window::default()).await?;
                check_for_gap(session, oldest.unwrap_or(began)).await?;
            }
        }
    }
    Ok(Walked { began, sent_at })
}

/// After a restart or an outage: where the list ends above what was read for certain, upstream may have forgotten what
/// came in between.
///
/// # Errors
/// [`Halt`].
pub async fn check_for_gap(session: &Session, oldest: Timestamp) -> Result<(), Halt> {
    let floor = session.position.get().await.floor;
    let resumed = session.resumed();
    let from = match resumed {
        Some(_) => floor,
        // It stands still since before the hole.
        None if session.has_hole() => session.board.status().seen_until.unwrap_or(floor),
        None => return Ok(()),
    };
    if oldest <= from {
        return Ok(());
    }
    let before = match resumed {
        Some(before) => Some(before),
        None => gap::before(session.intake.log(), session.seq_before_hole(), from).await?,
    };
    if let Some(before) = before
        && !gap::still_shows(session, before).await?
    {
        gap::announce(session, from, oldest).await?;
    }
    Ok(())
}

/// A backlog: closed days one by one, then up to the head.
async fn far(session: &Session, stretch: Stretch, depth: Timestamp) -> Result<(), Halt> {
    let mut day = day_plus(day_of(depth), -1);
    let last = last_closed_day(session.clock.now());
    let mut from = depth;
    while day <= last {
        read_day(session, stretch, day).await?;
        day = day_plus(day, 1);
        from = depth.max(midnight(day_plus(day, -1)));
    }
    read_to_head(session, stretch, from).await
}

/// The beginning of a UTC day.
pub fn midnight(day: jiff::civil::Date) -> Timestamp {
    day.to_zoned_datetime(jiff::tz::TimeZone::UTC).map_or(Timestamp::MIN, |zoned| zoned.timestamp())
}

/// A page at or near the newest rows.
async fn head(session: &Session, class: Class, window: &Window) -> Result<ListPage<Item>, Halt> {
    let first = session.upstream.page(class, window, 0).await?;
    if session.mode() != Mode::OldestFirst {
        return Ok(first);
    }
    let Some(total) = first.total.filter(|total| *total > PAGE_ROWS) else { return Ok(first) };
    Ok(session.upstream.page(class, window, total - PAGE_ROWS / 2).await?)
}

#[cfg(test)]
mod tests;
