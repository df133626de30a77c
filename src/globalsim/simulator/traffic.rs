//! What SIMs do: they connect, use data, move, roam and disconnect, in an order that makes sense per SIM.
//!
//! Arrivals are a Poisson process over the whole fleet; which SIM acts and what it does next comes from the seed
//! and its state alone, never from the clock, so that one seed tells one story.

use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::faults::Content;
use super::fleet::{Fleet, Sim};
use super::operators::{Attachment, NETWORK_TYPES, OPERATORS, Operator};
use super::row::{Details, Draft, Quirk, Quirks};

/// The documented event types.
pub(super) const EVENT_TYPES: [&str; 5] =
    ["connection", "disconnection", "network_change", "data_usage_update", "location_update"];

/// Event types that upstream might add tomorrow; one has characters that a subject or a type name cannot hold.
const UNKNOWN_TYPES: [&str; 3] = ["sim_swap_detected", "sms_received", "Policy.Alert!"];

/// An event that a test asks for. Absent fields are chosen as the traffic would.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventSpec {
    /// Which SIM; one that is not there yet joins the fleet.
    pub iccid: Option<String>,
    /// Event type, documented or not.
    pub event_type: Option<String>,
    /// When it happened (whole seconds count); default now. In the past = a late arrival.
    pub timestamp: Option<Timestamp>,
    /// Its id; default a fresh one.
    pub event_id: Option<String>,
    /// In place of generated details.
    pub details: Option<Value>,
    /// Laid over the row in both shapes, last.
    pub overlay: Map<String, Value>,
    /// Oddities.
    pub quirks: Vec<Quirk>,
}

/// What a SIM does, before it has an id.
struct Action {
    event_type: Arc<str>,
    network: Option<Attachment>,
    previous: Option<Attachment>,
    details: Details,
}

/// The story teller: seeded choices and fresh ids.
#[derive(Debug)]
pub(super) struct Traffic {
    rng: fastrand::Rng,
    /// Distinguishes ids, drawn from the seed.
    id_salt: u64,
    events: u64,
    /// Timestamps are multiples of this, so that events tie.
    tie_seconds: i64,
    recent_ids: Vec<String>,
}

/// SplitMix64: spreads a counter over 64 bits without collisions.
pub(super) fn spread(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn choose_operator(rng: &mut fastrand::Rng, sim: &Sim, not: Option<&Operator>) -> &'static Operator {
    let abroad = sim.roams && rng.u8(..10) < 4;
    let fits = |operator: &&'static Operator| {
        (operator.country == sim.home.country) != abroad && not != Some(*operator)
    };
    let choices: Vec<&'static Operator> = OPERATORS.iter().filter(fits).collect();
    match choices.len() {
        0 => sim.home,
        n => choices[rng.usize(..n)],
    }
}

fn choose_type(rng: &mut fastrand::Rng, connected: bool) -> &'static str {
    match (connected, rng.u8(..100)) {
        (false, 0..=89) => EVENT_TYPES[0],
        (false, _) => EVENT_TYPES[4],
        (true, 0..=37) => EVENT_TYPES[3],
        (true, 38..=57) => EVENT_TYPES[4],
        (true, 58..=71) => EVENT_TYPES[2],
        (true, _) => EVENT_TYPES[1],
    }
}

fn year_month(at_s: i64) -> (i16, i8) {
    let date =
        Timestamp::from_second(at_s).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned_datetime(TimeZone::UTC).date();
    (date.year(), date.month())
}

/// Moves the SIM to its next state and says what was seen of it.
fn act(rng: &mut fastrand::Rng, sim: &mut Sim, event_type: &str, at_s: i64) -> Action {
    let strength = -rng.i32(50..115);
    let network_type = NETWORK_TYPES[rng.usize(..NETWORK_TYPES.len())];
    let mut previous = None;
    let details = match event_type {
        "connection" => {
            sim.attachment = Attachment { operator: choose_operator(rng, sim, None), network_type };
            sim.sessions.open(rng, at_s, sim.attachment);
            Details::Signal { network_type, strength }
        }
        "disconnection" => {
            sim.sessions.close(at_s);
            let reason = ["user_request", "idle_timeout", "lost_coverage"][rng.usize(..3)];
            Details::Closed { network_type: sim.attachment.network_type, reason }
        }
        "network_change" => {
            let from = sim.attachment;
            let operator = choose_operator(rng, sim, Some(from.operator));
            sim.attachment = Attachment { operator, network_type };
            previous = Some(from);
            let same_country = from.operator.country == operator.country;
            Details::Reason { reason: if same_country { "coverage" } else { "roaming" } }
        }
        "data_usage_update" => {
            let (up, down) = (rng.u64(1..60), rng.u64(1..600));
            sim.sessions.grow(up, down);
            let month = Some(year_month(at_s));
            let is_same_month = sim.month.is_none() || sim.month == month;
            let before = if is_same_month { sim.month_tenths } else { 0 };
            sim.month_tenths = before + up + down;
            sim.month = month;
            Details::Usage { month_tenths: sim.month_tenths }
        }
        _ => Details::Signal { network_type: sim.attachment.network_type, strength },
    };
    let network = (event_type != "data_usage_update").then_some(sim.attachment);
    Action { event_type: event_type.into(), network, previous, details }
}

// === impl Traffic ===

impl Traffic {
    /// Choices from `rng`; timestamps are multiples of `tie_seconds`, at least 1.
    pub(super) fn new(mut rng: fastrand::Rng, tie_seconds: u32) -> Self {
        let id_salt = rng.u64(..);
        Self { rng, id_salt, events: 0, tie_seconds: i64::from(tie_seconds.max(1)), recent_ids: Vec::new() }
    }

    /// Seconds until the next event of a Poisson process with `rate` events per second.
    pub(super) fn wait_s(&mut self, rate: f64) -> f64 {
        -(1.0 - self.rng.f64()).ln() / rate
    }

    fn fresh_id(&mut self) -> String {
        self.events += 1;
        format!("evt_{:016x}", spread(self.id_salt.wrapping_add(self.events)))
    }

    fn content(&mut self, content: &Content) -> (Quirks, Option<String>, Option<&'static str>) {
        let rng = &mut self.rng;
        let odd = [
            (content.missing_id, Quirk::MissingId),
            (content.missing_iccid, Quirk::MissingIccid),
            (content.extra_fields, Quirk::ExtraFields),
            (content.nulls, Quirk::Nulls),
            (content.numbers_as_strings, Quirk::NumbersAsStrings),
        ];
        let mut quirks: Quirks =
            odd.into_iter().filter(|(p, _)| *p > 0.0 && rng.f64() < *p).map(|(_, quirk)| quirk).collect();
        if content.odd_timestamp > 0.0 && rng.f64() < content.odd_timestamp {
            quirks.push(
                [
                    Quirk::TimestampOffset,
                    Quirk::TimestampFraction,
                    Quirk::TimestampEpoch,
                    Quirk::TimestampNull,
                    Quirk::TimestampNonsense,
                ][rng.usize(..5)],
            );
        }
        let reuses_id = content.duplicate_id > 0.0 && rng.f64() < content.duplicate_id;
        let id = match self.recent_ids.len() {
            n if reuses_id && n > 0 => Some(self.recent_ids[rng.usize(..n)].clone()),
            _ => None,
        };
        let is_unknown = content.unknown_type > 0.0 && rng.f64() < content.unknown_type;
        (quirks, id, is_unknown.then(|| UNKNOWN_TYPES[rng.usize(..UNKNOWN_TYPES.len())]))
    }

    fn remember(&mut self, id: &str) {
        const REMEMBERED: usize = 64;
        match self.recent_ids.len() {
            REMEMBERED => self.recent_ids[(self.events % REMEMBERED as u64) as usize] = id.to_owned(),
            _ => self.recent_ids.push(id.to_owned()),
        }
    }

    /// The next event of the fleet, at `at_s`.
    pub(super) fn next(&mut self, fleet: &mut Fleet, content: &Content, at_s: i64) -> Draft {
        let at = self.rng.usize(..fleet.len());
        let (quirks, reused_id, unknown) = self.content(content);
        let event_id = reused_id.unwrap_or_else(|| self.fresh_id());
        self.remember(&event_id);
        let at_s = (at_s + content.clock_skew_s).div_euclid(self.tie_seconds) * self.tie_seconds;
        let sim = fleet.get_mut(at);
        let event_type = unknown.unwrap_or_else(|| choose_type(&mut self.rng, sim.sessions.is_open()));
        let action = act(&mut self.rng, sim, event_type, at_s);
        draft(at, sim, event_id, at_s, action, quirks)
    }

    /// The event that a test asks for.
    pub(super) fn on_request(&mut self, fleet: &mut Fleet, spec: EventSpec, now: Timestamp) -> Draft {
        let at = match &spec.iccid {
            Some(iccid) => fleet.find_or_add(&mut self.rng, iccid, now.as_second()),
            None => self.rng.usize(..fleet.len()),
        };
        let event_id = spec.event_id.unwrap_or_else(|| self.fresh_id());
        let at_s = spec.timestamp.unwrap_or(now).as_second();
        let sim = fleet.get_mut(at);
        let event_type = match &spec.event_type {
            Some(event_type) => event_type,
            None => choose_type(&mut self.rng, sim.sessions.is_open()),
        };
        let mut action = act(&mut self.rng, sim, event_type, at_s);
        if let Some(details) = spec.details {
            action.details = Details::Custom(details);
        }
        let late = now.as_second() - at_s > 1;
        Draft { overlay: spec.overlay, late, ..draft(at, sim, event_id, at_s, action, spec.quirks) }
    }
}

fn draft(at: usize, sim: &Sim, event_id: String, at_s: i64, action: Action, quirks: Quirks) -> Draft {
    Draft {
        event_id,
        sim: at,
        iccid: sim.iccid.clone(),
        msisdn: sim.msisdn.clone(),
        device_id: sim.device_id(),
        event_type: action.event_type,
        at_s,
        network: action.network,
        previous: action.previous,
        details: action.details,
        quirks,
        overlay: Map::new(),
        history: false,
        late: false,
    }
}
