//! The first read of the past, beside the live tail: day by day, oldest first, resumable, flagged.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    days::{Stretch, read_day, read_to_head},
    intake::Via,
    probe::day_of,
    probe::day_plus,
    session::{Halt, Session},
    status::BackfillState,
    sweep::midnight,
};
use crate::globalsim::budget::Class;

/// Pause before a day that failed is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// Reads what is left of the backfill; comes back when it is done.
pub async fn run(session: &Session) -> Result<(), Halt> {
    loop {
        let position = session.position.get().await;
        let Some(backfill) = position.backfill else { return Ok(()) };
        let done = backfill.days.saturating_sub(days_between(backfill.next_day, backfill.until));
        session.board.update(|status| {
            status.backfill = BackfillState::Running { days_done: done, days_total: backfill.days };
        });
        let stretch =
            Stretch { class: Class::CatchUp, via: Via::Backfill, backfill_before: Some(backfill.until) };
        // The last days have no fixed end yet, whatever zone upstream's days are in: they are read to the head.
        let last = backfill.next_day >= day_plus(day_of(session.clock.now()), -1);
        let read = if last {
            let depth = midnight(backfill.next_day).max(position.origin);
            read_to_head(session, stretch, depth).await
        } else {
            read_day(session, stretch, backfill.next_day).await
        };
        match read {
            Ok(()) => {
                session.intake.settle().await?;
                session
                    .position
                    .change(|position| {
                        if last {
                            position.backfill = None;
                        } else if let Some(backfill) = &mut position.backfill {
                            backfill.next_day = day_plus(backfill.next_day, 1);
                        }
                    })
                    .await;
                if last {
                    session.board.update(|status| {
                        status.backfill = BackfillState::Done { days_total: backfill.days };
                    });
                }
            }
            Err(halt @ Halt::Stopped(_)) => return Err(halt),
            Err(halt) => {
                if matches!(halt, Halt::Lost) {
                    session.walk_lost();
                }
                tracing::warn!(error = %halt, day = %backfill.next_day, "a day of the backfill is read again");
                tokio::time::sleep(session.upstream.jittered(PAUSE)).await;
            }
        }
    }
}

fn days_between(from: jiff::civil::Date, until: Timestamp) -> u32 {
    let days = day_of(until).since(from).map_or(0, |span| span.get_days());
    u32::try_from(days.max(0)).unwrap_or(0)
}
