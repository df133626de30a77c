//! Announcing what can't be read any more: upstream forgot rows while nobody polled.
//!
//! How long upstream keeps rows is not documented. It is noticed where it matters: after a restart, or after an outage
//! from which on the newest page does not join the one before, a complete sweep comes to the end of the list above
//! what was read for certain, and the newest event that the log has of before is not shown any more. A fleet that was
//! merely quiet still shows it. What was counted and is gone before it was read, the ledger announces, with how many.

use std::sync::Arc;

use jiff::{Timestamp, civil::Date};

use super::{
    intake::Stopped,
    names,
    page::PAGE_ROWS,
    probe::{day_of, day_plus},
    seek,
    session::{GAPS_MAX, Halt, Session},
    status::Mode,
    upstream::Window,
};
use crate::{
    bus::NewEvent,
    event::{
        Event, Filter, FilterLimits, Flag, Gap, GapReason, Iccid, Predicate, StoredEvent,
        identity::FieldHasher,
    },
    globalsim::budget::Class,
    log::{Damage, Direction, Log, ReadRequest},
    sabotage::{self, Bug},
};

/// Type of the event.
const EVENT_TYPE: &str = "simcast.gap";
/// Events looked at together, newest first, to find one of upstream's with a time before the pause.
const LOOK_BACK: usize = 256;
/// How often: half a million events, 7 hours at 10 a second with a completed copy of each.
const LOOK_BACK_PAGES: usize = 2_048;
/// Of these, events that a list without order is asked for: that one row is gone may be erasure.
const SAMPLES_MAX: usize = 5;
/// Pages of one SIM's rows of three days that are looked through for one of them.
const LOOK_PAGES: u32 = 16;

/// What the log had before a pause, after which upstream may have forgotten rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// Events that the pause can't have hidden lie up to here.
    seq: u64,
    /// Event time of the newest of them of before the pause.
    time: Timestamp,
}

/// What the log has of before `floor` in positions up to `seq`; None where it has nothing.
///
/// However much came after `floor`, it is looked past: after a restart that is what the tail read since the last
/// complete sweep, after an outage what it has read since already.
///
/// # Errors
/// [`Halt::Stopped`].
pub async fn before(log: &Arc<Log>, seq: u64, floor: Timestamp) -> Result<Option<Before>, Halt> {
    let (log, floor_us) = (Arc::clone(log), floor.as_microsecond());
    let found = tokio::task::spawn_blocking(move || {
        let mut newest = None;
        look_back(&log, seq, |page| {
            let times = page.iter().filter_map(|event| Some(event.keys().ok()?.time_us));
            newest = times.filter(|time| *time <= floor_us).max();
            newest.is_some()
        });
        newest
    });
    let newest = found.await.map_err(|_| Stopped)?;
    Ok(newest.and_then(|time| Timestamp::from_microsecond(time).ok()).map(|time| Before { seq, time }))
}

/// Whether upstream still shows anything as old as what is known of before a pause.
///
/// # Errors
/// [`Halt`].
pub async fn still_shows(session: &Session, before: Before) -> Result<bool, Halt> {
    let day = day_of(before.time);
    let window = Window { start: Some(day_plus(day, -1)), end: Some(day_plus(day, 1)), ..Window::default() };
    if session.mode() != Mode::Windows {
        return Ok(oldest(session, window).await?.is_some_and(|shown| shown <= before.time));
    }
    // Without order nobody knows what the oldest row is; but rows that the log has can be asked for.
    let log = Arc::clone(session.intake.log());
    let samples = tokio::task::spawn_blocking(move || samples(&log, before)).await.map_err(|_| Stopped)?;
    if samples.is_empty() {
        return Ok(true);
    }
    for (event_id, iccid, event_type) in samples {
        let window = Window { iccid: Some(iccid), event_type: Some(event_type), ..window.clone() };
        if shows(session, &window, &event_id).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a window shows an event. Where it is too large to be read for that, it is taken to.
async fn shows(session: &Session, window: &Window, event_id: &str) -> Result<bool, Halt> {
    let mut offset = 0;
    for _ in 0..LOOK_PAGES {
        let page = session.upstream.page(Class::CatchUp, window, offset).await?;
        if page.slots.iter().any(|slot| slot.row.as_ref().is_ok_and(|row| row.event_id() == Some(event_id))) {
            return Ok(true);
        }
        if (page.slots.len() as u64) < PAGE_ROWS {
            return Ok(false);
        }
        offset = page.end();
    }
    Ok(true)
}

/// The newest events of before a pause that the log has: id, SIM and type of each, of different SIMs.
fn samples(log: &Log, before: Before) -> Vec<(String, Iccid, String)> {
    let mut found: Vec<(String, Iccid, String)> = Vec::new();
    let mut pages = 0;
    look_back(log, before.seq, |page| {
        for keys in page.iter().filter_map(|event| event.keys().ok()) {
            // Another identity under a known id, and an id that was made here, are not what upstream calls it.
            let named = !keys.flags.contains(Flag::Conflict)
                && !keys.id.starts_with("gen_")
                && !keys.id.contains('~');
            let iccid = keys.iccid.and_then(|iccid| Iccid::parse(iccid).ok());
            if named
                && keys.time_us <= before.time.as_microsecond()
                && let Some(iccid) = iccid
                && found.len() < SAMPLES_MAX
                && found.iter().all(|(_, known, _)| *known != iccid)
            {
                found.push((keys.id.to_owned(), iccid, keys.event_type.to_owned()));
            }
        }
        // A page more for SIMs that the first with any does not have.
        pages += u32::from(!found.is_empty());
        found.len() == SAMPLES_MAX || pages == 2
    });
    found
}

/// Shows upstream's events in positions up to `seq`, newest first and some at a time, until `enough` says so.
fn look_back(log: &Log, seq: u64, mut enough: impl FnMut(&[StoredEvent]) -> bool) {
    let predicate = Predicate::default();
    let mut from = seq.saturating_add(1);
    for _ in 0..LOOK_BACK_PAGES {
        let request = ReadRequest {
            from,
            direction: Direction::Backward,
            predicate: &predicate,
            limit: LOOK_BACK,
            max_bytes: 1 << 20,
        };
        let Ok(page) = log.read(request) else { return };
        if enough(&page.events) || page.at_end {
            return;
        }
        from = page.next;
    }
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
    append(session, (from, to), None, &[]).await
}

/// The same for rows that upstream may still show, but that are older than ids are remembered.
///
/// # Errors
/// [`Halt`].
pub async fn announce_too_old(session: &Session, from: Timestamp, to: Timestamp) -> Result<(), Halt> {
    tracing::error!(%from, %to, "rows of so long ago can't be told from repeats and are not read");
    append(session, (from, to), None, &["too old"]).await
}

/// The same for rows of a closed day that upstream has counted and no longer shows.
///
/// # Errors
/// [`Halt`].
pub async fn announce_lost(
    session: &Session,
    (from, to): (Timestamp, Timestamp),
    day: Date,
    lost: u64,
) -> Result<(), Halt> {
    tracing::error!(%day, lost, "upstream counted rows that it no longer shows and that were never read");
    append(session, (from, to), Some(lost), &["ledger", &day.to_string()]).await
}

/// Stretches that the log says upstream forgot, oldest first, at most [`GAPS_MAX`].
pub fn announced(log: &Log) -> Vec<(Timestamp, Timestamp)> {
    let values = [("event_type", vec![EVENT_TYPE.to_owned()])];
    let Ok((filter, _)) = Filter::build(values, FilterLimits::default()) else { return Vec::new() };
    let predicate = Predicate::new(filter, None);
    let (mut found, mut from) = (Vec::new(), u64::MAX);
    while found.len() < GAPS_MAX {
        let request = ReadRequest {
            from,
            direction: Direction::Backward,
            predicate: &predicate,
            limit: GAPS_MAX,
            max_bytes: 1 << 20,
        };
        let Ok(page) = log.read(request) else { break };
        found.extend(page.events.iter().filter_map(stretch));
        if page.at_end {
            break;
        }
        from = page.next;
    }
    found.reverse();
    found
}

/// What a gap event of the poller's says was lost.
fn stretch(event: &StoredEvent) -> Option<(Timestamp, Timestamp)> {
    let body: serde_json::Value = serde_json::from_slice(event.json()).ok()?;
    let extra = body.get("data")?.get("extra")?;
    let time = |name| extra.get(name)?.as_str()?.parse::<Timestamp>().ok();
    (extra.get("reason")?.as_str()? == GapReason::Upstream.as_str())
        .then(|| time("from_time").zip(time("to_time")))?
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
    append_gap(session, gap, (from, to), &[&places]).await
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

/// `parts`: what tells announcements apart that begin at the same time.
async fn append(
    session: &Session,
    (from, to): (Timestamp, Timestamp),
    lost: Option<u64>,
    parts: &[&str],
) -> Result<(), Halt> {
    session.know_gaps(vec![(from, to)]);
    append_gap(session, Gap { lost, ..between(from, to) }, (from, to), parts).await
}

async fn append_gap(
    session: &Session,
    gap: Gap,
    (from, to): (Timestamp, Timestamp),
    parts: &[&str],
) -> Result<(), Halt> {
    if sabotage::on(Bug::ForgetGap) {
        return Ok(());
    }
    metrics::counter!(names::GAPS).increment(1);
    let mut hasher = FieldHasher::new("gap");
    hasher.field(Some(&from.to_string()));
    parts.iter().for_each(|part| hasher.field(Some(part)));
    let identity = hasher.finish_u64();
    let event = Event::gateway(format!("gap_{identity:016x}"), EVENT_TYPE, to, gap.to_json());
    session.intake.announce(NewEvent { event, identity, content: 0 }).await?;
    Ok(())
}
