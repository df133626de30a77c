//! The same lists out of the log: as complete as the log is, as old as it reaches back.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde_json::Value;

use super::{Error, Found, Of, Paging, Question, What};
use crate::{
    event::{Event, Filter, FilterLimits, Predicate, Session, json},
    log::{Direction, Log, ReadError, ReadRequest},
    views::megabytes::Megabytes,
};

/// Events looked through for one answer; what lies deeper is left out, and the answer says so.
const LOOKS_MAX: usize = 20_000;
/// Events and bytes of one page of the log.
const PAGE_EVENTS: usize = 1_000;
const PAGE_BYTES: usize = 1 << 20;
/// What sessions are made of.
const SESSION_TYPES: [&str; 3] = ["session_started", "session_updated", "session_ended"];

/// The events that a question is about.
///
/// # Errors
/// None for what the paths let through.
pub(super) fn filter(question: &Question) -> Result<Filter, Error> {
    let mut lists: Vec<(&str, Vec<String>)> = Vec::new();
    match &question.of {
        Of::Account { iccid, device_id } => {
            lists.extend(iccid.iter().map(|iccid| ("iccid", vec![iccid.to_string()])));
            lists.extend(device_id.iter().map(|id| ("device_id", vec![id.clone()])));
        }
        Of::Sim(iccid) => lists.push(("iccid", vec![iccid.to_string()])),
        Of::Device(id) => lists.push(("device_id", vec![id.clone()])),
    }
    match &question.what {
        What::Activity(_, event_type) => {
            lists.extend(event_type.iter().map(|name| ("event_type", vec![name.clone()])));
            lists.push(("exclude_flags", vec!["derived".to_owned()]));
        }
        What::Sessions(_) => {
            lists.push(("event_type", SESSION_TYPES.map(str::to_owned).to_vec()));
        }
        What::Sim => {}
    }
    let built = Filter::build(lists, FilterLimits { values_per_list: SESSION_TYPES.len() });
    built.map(|(filter, _)| filter).map_err(|error| Error::Unavailable(error.message))
}

/// Reads the answer; None where the log holds nothing of it.
///
/// # Errors
/// Where the disk refuses.
pub(super) fn read(
    log: &Log,
    question: &Question,
    predicate: &Predicate,
) -> Result<Option<Found>, ReadError> {
    let wanted = if question.what == What::Sim { 1 } else { LOOKS_MAX };
    let (events, truncated) = newest_first(log, predicate, wanted)?;
    let Some(first) = events.first() else { return Ok(None) };
    let mut found = Found {
        iccid: first.iccid.clone(),
        truncated: truncated && question.what != What::Sim,
        as_of: log.bounds().last_time.unwrap_or_default(),
        ..Found::default()
    };
    match &question.what {
        What::Activity(paging, _) => page(&mut found, once(events), *paging),
        What::Sessions(paging) => {
            let sessions = sessions(events);
            let within: Vec<_> = sessions.iter().filter(|one| is_within(one, *paging)).collect();
            found.summary = Some(summary(&within));
            page(&mut found, sessions, *paging);
        }
        What::Sim => found.rows = events,
    }
    Ok(Some(found))
}

fn newest_first(log: &Log, predicate: &Predicate, max: usize) -> Result<(Vec<Event>, bool), ReadError> {
    let (mut events, mut from) = (Vec::new(), u64::MAX);
    loop {
        let page = log.read(ReadRequest {
            from,
            direction: Direction::Backward,
            predicate,
            limit: PAGE_EVENTS.min(max - events.len()),
            max_bytes: PAGE_BYTES,
        })?;
        events.extend(
            page.events.iter().filter_map(|event| json::read(event.json()).ok()).map(|(event, _)| event),
        );
        if page.at_end || events.len() >= max {
            return Ok((events, !page.at_end));
        }
        from = page.next;
    }
}

/// Each event once, the complete copy of one that came in two; newest first by when it happened.
fn once(events: Vec<Event>) -> Vec<Event> {
    let mut seen = HashSet::new();
    let mut kept: Vec<_> = events
        .into_iter()
        .filter(|event| {
            let name = crate::event::identity::of_details(&event.id).unwrap_or(&event.id);
            seen.insert(name.to_owned())
        })
        .collect();
    kept.sort_by_key(|event| Reverse(event.time));
    kept
}

/// The last state of each session, newest first by its start.
fn sessions(events: Vec<Event>) -> Vec<Event> {
    let mut sessions: BTreeMap<String, Event> = BTreeMap::new();
    // Oldest first, so that later states lie on top; one that knows nothing of a field takes nothing away.
    for mut event in events.into_iter().rev() {
        let Some(session) = event.session.take() else { continue };
        let Some(id) = session.session_id.clone() else { continue };
        let before = sessions.remove(&id).unwrap_or_else(|| {
            let mut row = Event::new("", "".into(), "session");
            (row.iccid, row.session) = (event.iccid.clone(), Some(Session::default()));
            row
        });
        let merged = merge(before.session.unwrap_or_default(), session);
        let row = Event {
            session: Some(merged),
            network: event.network.or(before.network),
            extra: event.extra,
            ..before
        };
        sessions.insert(id, row);
    }
    let mut rows: Vec<_> = sessions.into_values().collect();
    for row in &mut rows {
        row.time = row
            .session
            .as_ref()
            .and_then(|session| session.start_time.as_deref())
            .and_then(crate::globalsim::wire::time::parse);
    }
    rows.sort_by_key(|row| Reverse(row.time));
    rows
}

fn merge(before: Session, after: Session) -> Session {
    Session {
        session_id: after.session_id,
        start_time: after.start_time.or(before.start_time),
        end_time: after.end_time.or(before.end_time),
        duration_seconds: after.duration_seconds.or(before.duration_seconds),
        upload_mb: after.upload_mb.or(before.upload_mb),
        download_mb: after.download_mb.or(before.download_mb),
        total_mb: after.total_mb.or(before.total_mb),
        ip_address: after.ip_address.or(before.ip_address),
    }
}

fn is_within(row: &Event, paging: Paging) -> bool {
    let day = |time: Timestamp| -> Date { time.to_zoned_datetime(TimeZone::UTC).date() };
    match row.time.map(day) {
        Some(day) => {
            paging.start_date.is_none_or(|start| start <= day) && paging.end_date.is_none_or(|end| day <= end)
        }
        None => paging.start_date.is_none() && paging.end_date.is_none(),
    }
}

fn page(found: &mut Found, rows: Vec<Event>, paging: Paging) {
    let within: Vec<_> = rows.into_iter().filter(|row| is_within(row, paging)).collect();
    found.total = Some(within.len() as u64);
    found.rows = within.into_iter().skip(paging.offset as usize).take(paging.limit as usize).collect();
}

/// `summary` as the API document has it.
fn summary(sessions: &[&Event]) -> Value {
    let of = |row: &&Event| row.session.clone().unwrap_or_default();
    let amounts = sessions.iter().filter_map(|row| Megabytes::of(&of(row).total_mb?));
    let total = amounts.fold(Megabytes::default(), Megabytes::plus).to_number();
    let seconds: i64 = sessions.iter().filter_map(|row| of(row).duration_seconds).sum();
    serde_json::json!({
        "total_sessions": sessions.len(),
        "total_data_mb": total,
        "average_session_duration_seconds": seconds.checked_div(sessions.len() as i64).unwrap_or(0),
    })
}
