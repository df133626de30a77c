//! The way of one stored event, for those who ask where it was so long.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Error, Hub};
use crate::{
    event::{
        Cursor, FieldPolicy, Flag, Flags, Keys, Predicate, Provenance, StoredEvent,
        identity::{details_id, of_conflict, of_details},
        json,
    },
    log::Log,
};

/// What is known of an event's way.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The event.
    pub step: Step,
    /// Raw event type.
    pub event_type: String,
    /// SIM, as the policy shows it.
    pub iccid: Option<String>,
    /// When it happened; None where upstream's timestamp could not be read.
    pub time: Option<Timestamp>,
    /// Other events kept that are of the same event of upstream's, in the order in which they were appended.
    pub related: Vec<Step>,
}

/// One event of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its id.
    pub id: String,
    /// The position after it.
    pub cursor: Cursor,
    /// Its marks.
    pub flags: Flags,
    /// How it came; None for the gateway's own.
    pub provenance: Option<Provenance>,
    /// When it was appended.
    pub appended_at: Timestamp,
}

impl Hub {
    /// The way of one stored event. None where [`Hub::event`] gives none.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the log can't be read.
    pub async fn trace(
        &self,
        id: &str,
        predicate: &Predicate,
        policy: Option<&Arc<FieldPolicy>>,
    ) -> Result<Option<Trace>, Error> {
        let (id, predicate, policy) = (id.to_owned(), predicate.clone(), policy.cloned());
        self.read(move |hub| {
            let log = hub.log();
            let Some(event) = visible(log, &id, &predicate)? else { return Ok(None) };
            let Ok(keys) = event.keys() else { return Ok(None) };
            let event_id = event_id(&event);
            let mut related = Vec::new();
            for other in relatives(&id) {
                let other = visible(log, &other, &predicate)?;
                // An id of upstream's may look like one that was made here.
                if let Some(other) = other.filter(|other| self::event_id(other) == event_id) {
                    related.extend(other.keys().ok().map(|keys| step(log, &other, &keys)));
                }
            }
            related.sort_by_key(|step: &Step| step.cursor.seq);
            let show = |iccid: &str| match &policy {
                Some(policy) => policy.show_iccid(iccid),
                None => Some(iccid.to_owned()),
            };
            Ok(Some(Trace {
                step: step(log, &event, &keys),
                event_type: keys.event_type.to_owned(),
                iccid: keys.iccid.and_then(show),
                time: (!keys.flags.contains(Flag::TimeUnknown)).then(|| time_of(keys.time_us)),
                related,
            }))
        })
        .await
    }
}

/// The stored event of an id. None where it is unknown, no longer kept, or outside the predicate, which to the
/// reader must look the same.
pub(super) fn visible(log: &Log, id: &str, predicate: &Predicate) -> Result<Option<StoredEvent>, Error> {
    let Some(known) = log.find(id) else { return Ok(None) };
    let found = log.get(known.seq).map_err(|error| Error::Unavailable(error.to_string()))?;
    Ok(found.filter(|event| event.keys().is_ok_and(|keys| keys.id == id && predicate.matches(&keys))))
}

/// Ids under which the same event of upstream's may be kept too: the completed copy, what it completes, and the event
/// that had the event_id first.
fn relatives(id: &str) -> Vec<String> {
    let base = of_details(id).unwrap_or(id);
    let mut ids = vec![base.to_owned(), details_id(base)];
    if let Some(first) = of_conflict(base) {
        ids.extend([first.to_owned(), details_id(first)]);
    }
    ids.retain(|other| other != id);
    ids
}

/// Upstream's id, where it gave one.
fn event_id(event: &StoredEvent) -> Option<String> {
    json::read(event.json()).ok().and_then(|(event, _)| event.event_id)
}

fn step(log: &Log, event: &StoredEvent, keys: &Keys<'_>) -> Step {
    Step {
        id: keys.id.to_owned(),
        cursor: event.cursor(log.incarnation()),
        flags: keys.flags,
        provenance: keys.provenance,
        appended_at: time_of(keys.observed_us),
    }
}

/// Stored times were times when they were stored.
fn time_of(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or_default()
}
