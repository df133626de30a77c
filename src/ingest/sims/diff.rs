//! What a list of sessions tells that has not been told: `session_started`, `session_updated`, `session_ended`.
//!
//! Upstream keeps no log of sessions, only their state, so the events are differences. What was told of open sessions is
//! kept ([`SimRecord`](super::record::SimRecord)); of ended ones the log itself knows, by their ids, for as long as it
//! remembers ids, and older ones are not told. So each session starts once and ends once whatever is read twice, in
//! whatever order, over crashes. Upstream gives no time for an update: it happened when it was seen.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    bus::NewEvent,
    event::{
        Event, Flag, Flags, Iccid, Provenance, Session, Via,
        identity::{FieldHasher, encode_id, generated_id, with_suffix},
    },
    globalsim::wire::SessionRow,
    ingest::page::Shown,
    log::KnownId,
};

/// What the events need besides the sessions.
#[derive(Debug, Clone)]
pub struct Of<'a> {
    /// `source` of the events.
    pub source: &'a Arc<str>,
    /// The SIM.
    pub iccid: &'a Iccid,
    /// The device that it is in, as far as known.
    pub device_id: Option<Arc<str>>,
    /// When the list was asked for and there.
    pub shown: Shown,
    /// What ended before this is not told.
    pub oldest_told: Timestamp,
    /// What happened before this is backfill.
    pub backfill_before: Option<Timestamp>,
}

/// What is to be told, oldest first, and the open sessions, each with a hash of what is then told of it.
#[derive(Debug, Default)]
pub struct Told {
    pub events: Vec<NewEvent>,
    pub open: BTreeMap<String, u32>,
}

/// Compares a list with what was told. `is_whole` says that the SIM has no session besides these; `known` is what the
/// log remembers of an id.
pub fn diff(
    told: &BTreeMap<String, u32>,
    rows: &[SessionRow],
    is_whole: bool,
    of: &Of<'_>,
    known: impl Fn(&str) -> Option<KnownId>,
) -> Told {
    let mut out = Told::default();
    let mut seen = std::collections::BTreeSet::new();
    for row in rows {
        let id = session_id(row, of.iccid);
        // A list that moves between two pages may show one twice.
        if !seen.insert(id.clone()) {
            continue;
        }
        let content = content(row);
        let before = told.get(&id);
        if row.is_open() {
            let started = known(&suffixed(&id, "started"));
            match before.copied().or(started.map(|known| known.content)) {
                None => out.push(of.started(&id, row, content)),
                Some(last) if last != content => out.push_new(of.updated(&id, row, content), &known),
                Some(_) => {}
            }
            out.open.insert(id, content);
            continue;
        }
        let ended_at = row.end().or(row.start());
        if before.is_none() && ended_at.is_none_or(|at| at < of.oldest_told) {
            continue;
        }
        if before.is_none() {
            out.push_new(of.started(&id, &at_its_start(row), content), &known);
        }
        match known(&suffixed(&id, "ended")) {
            None => out.push(of.ended(&id, row, content)),
            // Upstream corrected it; the digits of the content keep each correction apart.
            Some(known_end) if known_end.content != content => {
                out.push_new(of.updated(&id, row, content), &known);
            }
            Some(_) => {}
        }
    }
    for id in told.keys().filter(|id| !seen.contains(*id)) {
        if is_whole {
            out.push_new(of.gone(id), &known);
        } else if let Some(last) = told.get(id) {
            out.open.insert(id.clone(), *last);
        }
    }
    out.events.sort_by_key(|new| (new.event.time, new.event.event_type != "session_started"));
    out
}

impl Told {
    fn push(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    fn push_new(&mut self, event: NewEvent, known: impl Fn(&str) -> Option<KnownId>) {
        if known(&event.event.id).is_none() {
            self.push(event);
        }
    }
}

impl Of<'_> {
    fn started(&self, id: &str, row: &SessionRow, content: u32) -> NewEvent {
        let event = self.event(suffixed(id, "started"), "session_started", row);
        self.at(event, row.start(), row.session.start_time.clone(), content)
    }

    fn updated(&self, id: &str, row: &SessionRow, content: u32) -> NewEvent {
        let event = self.event(suffixed(id, &format!("{content:08x}")), "session_updated", row);
        let at = self.shown.answered_at;
        self.at(event, Some(at), Some(at.to_string()), content)
    }

    fn ended(&self, id: &str, row: &SessionRow, content: u32) -> NewEvent {
        let event = self.event(suffixed(id, "ended"), "session_ended", row);
        self.at(event, row.end(), row.session.end_time.clone(), content)
    }

    /// An open session that upstream lists no more: nobody knows when it ended and with what.
    fn gone(&self, id: &str) -> NewEvent {
        let session = Session { session_id: Some(id.to_owned()), ..Session::default() };
        let mut extra = serde_json::Map::new();
        extra.insert("reason".to_owned(), "not_listed".into());
        let row = SessionRow { iccid: None, session, network: None, extra };
        let event = self.event(suffixed(id, "gone"), "session_ended", &row);
        let at = self.shown.answered_at;
        self.at(event, Some(at), Some(at.to_string()), 0)
    }

    fn event(&self, id: String, event_type: &str, row: &SessionRow) -> Event {
        let mut event = Event::new(id, Arc::clone(self.source), event_type);
        event.iccid = Some(self.iccid.clone());
        event.device_id = self.device_id.as_deref().map(str::to_owned);
        event.network = row.network.clone();
        event.session = Some(row.session.clone());
        event.extra = row.extra.clone();
        event
    }

    fn at(
        &self,
        mut event: Event,
        time: Option<Timestamp>,
        spelled: Option<String>,
        content: u32,
    ) -> NewEvent {
        (event.time, event.timestamp) = (time, spelled);
        event.flags = flags(time, self.backfill_before);
        event.provenance = Some(self.provenance(Via::Sessions));
        derived(event, content)
    }

    fn provenance(&self, via: Via) -> Provenance {
        self.shown.by(via)
    }
}

/// A derived event is told apart by its id alone.
pub fn derived(event: Event, content: u32) -> NewEvent {
    let mut hasher = FieldHasher::new("derived");
    hasher.field(Some(&event.id));
    NewEvent { identity: hasher.finish_u64(), content, event }
}

/// The marks of a derived event of a time.
pub fn flags(time: Option<Timestamp>, backfill_before: Option<Timestamp>) -> Flags {
    let is_past = backfill_before.is_some_and(|edge| time.is_none_or(|time| time < edge));
    [Some(Flag::Derived), is_past.then_some(Flag::Backfill)].into_iter().flatten().collect()
}

fn suffixed(id: &str, what: &str) -> String {
    with_suffix(id, &format!("~{what}"))
}

/// Upstream's id; where it gives none, one of what does not change while the session runs.
pub fn session_id(row: &SessionRow, iccid: &Iccid) -> String {
    match row.session.session_id.as_deref().filter(|id| !id.is_empty()) {
        Some(id) => encode_id(id),
        None => {
            let start = row.session.start_time.as_deref().unwrap_or_default();
            generated_id(format!("session {iccid} {start}").as_bytes(), 0)
        }
    }
}

/// What a session was before anything was used.
fn at_its_start(row: &SessionRow) -> SessionRow {
    let session = Session {
        end_time: None,
        duration_seconds: None,
        upload_mb: None,
        download_mb: None,
        total_mb: None,
        ..row.session.clone()
    };
    SessionRow { session, extra: serde_json::Map::new(), ..row.clone() }
}

/// A hash of what may change. The duration of an open session does so all the time and tells nothing.
fn content(row: &SessionRow) -> u32 {
    let Session {
        start_time, end_time, duration_seconds, upload_mb, download_mb, total_mb, ip_address, ..
    } = &row.session;
    let mut hasher = FieldHasher::new("session");
    [start_time, end_time, ip_address].into_iter().for_each(|text| hasher.field(text.as_deref()));
    for amount in [upload_mb, download_mb, total_mb] {
        hasher.field(amount.as_ref().map(ToString::to_string).as_deref());
    }
    let duration = duration_seconds.filter(|_| !row.is_open()).map(|seconds| seconds.to_string());
    hasher.field(duration.as_deref());
    let network = row.network.as_ref().and_then(|network| serde_json::to_string(network).ok());
    hasher.field(network.as_deref());
    hasher.finish_u64() as u32
}

#[cfg(test)]
mod tests;
