//! From events to cells: which day, hour and kind each belongs to, and what it adds.
//!
//! An event counts once, in the hour of its own time. One that came without details counts as it is, and moves to the
//! network that its completed copy names once that is there. The gateway's own events do not count.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    cells::{Day, Kind, Names, Tally, entry},
    data::Data,
    sessions::Sessions,
    sim::Sim,
};
use crate::{
    event::{Flag, Keys, Network, Session, StoredEvent},
    views::megabytes::Megabytes,
};

/// Microseconds of an hour.
pub const HOUR_US: i64 = 3_600_000_000;

/// Days that are kept, before the newest event.
pub const DAYS_KEPT: i32 = 400;

/// Days that an event may lie in the future of its own appending.
const DAYS_AHEAD: i32 = 2;

/// End of the id of a completed copy.
const COMPLETED: &str = "~details";

/// What could not be counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Positions of the log that could not be read, or were gone before they were.
    pub positions: u64,
    /// Events older than [`DAYS_KEPT`] when they came, or far in the future.
    pub out_of_range: u64,
    /// Readings of sessions of which it is not known any more what was counted.
    pub sessions: u64,
}

/// Counts events, one after the other in the order of the log.
#[derive(Debug, Clone, Default)]
pub struct Counter {
    /// The texts of the cells.
    pub names: Names,
    /// By days since the epoch.
    pub days: BTreeMap<i32, Day>,
    /// What was counted of each session.
    pub sessions: Sessions,
    /// What was not.
    pub skipped: Skipped,
}

#[derive(Deserialize)]
struct Body {
    data: BodyData,
}

#[derive(Deserialize)]
struct BodyData {
    previous_network: Option<Network>,
    session: Option<Session>,
}

impl Counter {
    /// Cells in memory.
    pub fn cells(&self) -> usize {
        self.days.values().map(Day::cells).sum()
    }

    /// Counts an event. `stored` finds an earlier event by its id.
    pub fn count(&mut self, event: &StoredEvent, stored: impl Fn(&str) -> Option<StoredEvent>) {
        let Ok(keys) = event.keys() else { return };
        if keys.gateway {
            return;
        }
        if keys.flags.contains(Flag::Enriched) {
            if let Some(first) = keys.id.strip_suffix(COMPLETED).and_then(&stored)
                && let Ok(first) = first.keys()
            {
                self.complete(&first, &keys);
            }
            return;
        }
        self.add(event, &keys);
    }

    /// Counts an event whatever its flags say; `keys` are its own.
    pub fn add(&mut self, event: &StoredEvent, keys: &Keys<'_>) {
        let Some((day, kind)) = self.place(keys) else { return };
        let mut tally = Tally {
            events: 1,
            late: i64::from(keys.flags.contains(Flag::Late)),
            repaired: i64::from(keys.flags.contains(Flag::Repaired)),
            ..Tally::default()
        };
        let mut change = None;
        if let Some(body) = has_more(keys.event_type).then(|| body(event)).flatten() {
            if let Some(before) = body.previous_network {
                let from = self.names.country(before.country.as_deref(), before.country_code.as_deref());
                change = Some((from, kind.country)).filter(|(from, to)| from != to);
            }
            if let Some(session) = body.session {
                self.session(&session, keys.event_type == "session_ended", &mut tally);
            }
        }
        let cells = self.days.entry(day).or_default();
        cells.kinds.entry(kind).or_default().add(&tally);
        let row = cells.sims.entry(Sim::pack(keys.iccid)).or_default();
        row.late += tally.late;
        row.repaired += tally.repaired;
        row.timed += tally.timed;
        row.seconds = row.seconds.saturating_add(tally.seconds);
        *entry(&mut row.types, kind.event_type) += 1;
        if !tally.data.is_zero() {
            entry(&mut row.data, kind.country).add(tally.data);
        }
        if let Some(change) = change {
            *entry(&mut row.changes, change) += 1;
            *cells.changes.entry(change).or_default() += 1;
        }
    }

    /// Moves an event that was counted without details to where these say that it belongs.
    fn complete(&mut self, first: &Keys<'_>, whole: &Keys<'_>) {
        let Some((day, from)) = self.place(first) else { return };
        let to = Kind {
            country: self.names.country(whole.country, whole.country_code),
            operator: self.names.number(whole.operator),
            network_type: self.names.number(whole.network_type),
            ..from
        };
        // SIMs are not counted by network, except for changes of country, which both copies tell alike.
        let kinds = &mut self.days.entry(day).or_default().kinds;
        for (kind, sign) in [(from, -1), (to, 1)] {
            let tally = Tally {
                events: sign,
                late: sign * i64::from(first.flags.contains(Flag::Late)),
                repaired: sign * i64::from(first.flags.contains(Flag::Repaired)),
                ..Tally::default()
            };
            kinds.entry(kind).or_default().add(&tally);
        }
    }

    fn place(&mut self, keys: &Keys<'_>) -> Option<(i32, Kind)> {
        let (day, observed) = (day_of(keys.time_us), day_of(keys.observed_us));
        if day <= observed - DAYS_KEPT || day > observed + DAYS_AHEAD {
            self.skipped.out_of_range += 1;
            return None;
        }
        let kind = Kind {
            hour: keys.time_us.div_euclid(HOUR_US).rem_euclid(24) as u8,
            event_type: self.names.number(Some(keys.event_type)),
            country: self.names.country(keys.country, keys.country_code),
            operator: self.names.number(keys.operator),
            network_type: self.names.number(keys.network_type),
        };
        Some((day, kind))
    }

    fn session(&mut self, session: &Session, ended: bool, tally: &mut Tally) {
        if let Some(seconds) = session.duration_seconds.filter(|_| ended) {
            tally.timed = 1;
            tally.seconds = seconds;
        }
        let amount = |mb: &Option<serde_json::Number>| mb.as_ref().and_then(Megabytes::of);
        let (upload, download) = (amount(&session.upload_mb), amount(&session.download_mb));
        let [upload, download, total] = match (upload, download, amount(&session.total_mb)) {
            (None, None, None) => return,
            (up, down, total) => {
                let (up, down) = (up.unwrap_or_default(), down.unwrap_or_default());
                [up, down, total.unwrap_or_else(|| up.plus(down))]
            }
        };
        let Some(id) = session.session_id.as_deref() else { return };
        let start = session.start_time.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
        match self.sessions.read(id, start, Data { upload, download, total }) {
            Some(data) => tally.data = data,
            None => self.skipped.sessions += 1,
        }
    }
}

/// Whether an event's body tells more than its keys: only these are parsed.
fn has_more(event_type: &str) -> bool {
    event_type == "network_change" || event_type.starts_with("session_")
}

fn body(event: &StoredEvent) -> Option<BodyData> {
    serde_json::from_slice::<Body>(event.json()).ok().map(|body| body.data)
}

/// Days since the epoch of a time in microseconds.
pub fn day_of(us: i64) -> i32 {
    i32::try_from(us.div_euclid(24 * HOUR_US)).unwrap_or(if us < 0 { i32::MIN } else { i32::MAX })
}
