//! Lists of sessions against a naive account of what was told.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use serde_json::{Number, json};

use super::*;
use crate::event::Network;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn number(tenths: u64) -> Option<Number> {
    serde_json::from_str(&format!("{}.{}", tenths / 10, tenths % 10)).ok()
}

fn row(id: &str, start: i64, end: Option<i64>, tenths: u64) -> SessionRow {
    let session = Session {
        session_id: Some(id.to_owned()),
        start_time: Some(at(start).to_string()),
        end_time: end.map(|end| at(end).to_string()),
        duration_seconds: Some(end.unwrap_or(1_000_000) - start),
        total_mb: number(tenths),
        ..Session::default()
    };
    let network = Some(Network { country: Some("Norway".into()), ..Network::default() });
    SessionRow { iccid: None, session, network, extra: serde_json::Map::new() }
}

/// What a log and the kept record come to.
#[derive(Default)]
struct Gateway {
    log: HashMap<String, u32>,
    told: Vec<(String, String, Option<String>)>,
    open: BTreeMap<String, u32>,
}

impl Gateway {
    /// Reads a list. `crash` loses what was noted of it.
    fn read(&mut self, rows: &[SessionRow], is_whole: bool, now: i64, crash: bool) {
        let (source, iccid) = (Arc::from("/globalsim/test"), Iccid::parse("8947000000000000001").unwrap());
        let shown = Shown { asked_at: at(now), answered_at: at(now), not_seen_at: None };
        let of = Of {
            source: &source,
            iccid: &iccid,
            device_id: Some("meter".into()),
            shown,
            oldest_told: at(0),
            backfill_before: None,
        };
        let known =
            |id: &str| self.log.get(id).map(|content| KnownId { seq: 1, identity: 0, content: *content });
        let Told { events, open } = diff(&self.open, rows, is_whole, &of, known);
        for NewEvent { event, content, .. } in events {
            assert!(self.log.insert(event.id.clone(), content).is_none(), "{} is told twice", event.id);
            assert!(event.flags.contains(Flag::Derived));
            assert_eq!(event.device_id.as_deref(), Some("meter"));
            let total = event.session.and_then(|session| session.total_mb).map(|mb| mb.to_string());
            self.told.push((event.id, event.event_type, total));
        }
        if !crash {
            self.open = open;
        }
    }

    fn types(&self) -> Vec<&str> {
        self.told.iter().map(|(_, event_type, _)| event_type.as_str()).collect()
    }
}

#[test]
fn a_session_starts_once_grows_and_ends_once() {
    let mut gateway = Gateway::default();
    gateway.read(&[row("ses_1", 10, None, 5)], true, 20, false);
    gateway.read(&[row("ses_1", 10, None, 5)], true, 30, false);
    gateway.read(&[row("ses_1", 10, None, 8)], true, 40, false);
    gateway.read(&[row("ses_2", 60, None, 1), row("ses_1", 10, Some(50), 9)], true, 70, false);
    gateway.read(&[row("ses_2", 60, None, 1), row("ses_1", 10, Some(50), 9)], true, 80, false);
    assert_eq!(
        gateway.types(),
        ["session_started", "session_updated", "session_ended", "session_started"],
        "what only got longer is no news"
    );
    assert_eq!(gateway.told[2], ("ses_1~ended".into(), "session_ended".into(), Some("0.9".into())));
}

#[test]
fn what_was_never_seen_open_starts_with_nothing_used() {
    let mut gateway = Gateway::default();
    gateway.read(&[row("ses_1", 10, Some(20), 9)], true, 30, false);
    let told: Vec<_> =
        gateway.told.iter().map(|(_, kind, total)| (kind.as_str(), total.as_deref())).collect();
    assert_eq!(told, [("session_started", None), ("session_ended", Some("0.9"))]);
}

#[test]
fn a_correction_after_the_end_is_told_and_what_ended_too_long_ago_is_not() {
    let mut gateway = Gateway::default();
    gateway.read(&[row("ses_1", 10, Some(20), 9)], true, 30, false);
    gateway.read(&[row("ses_1", 10, Some(20), 11)], true, 40, false);
    gateway.read(&[row("ses_1", 10, Some(20), 11), row("ses_0", -90, Some(-50), 7)], true, 50, false);
    assert_eq!(gateway.types(), ["session_started", "session_ended", "session_updated"]);
    assert_eq!(gateway.told[2].2.as_deref(), Some("1.1"));
}

#[test]
fn an_open_session_that_is_listed_no_more_is_ended_by_a_whole_list_only() {
    let mut gateway = Gateway::default();
    gateway.read(&[row("ses_1", 10, None, 5)], true, 20, false);
    gateway.read(&[], false, 30, false);
    assert_eq!(gateway.types(), ["session_started"]);
    gateway.read(&[], true, 40, false);
    assert_eq!(gateway.told[1], ("ses_1~gone".into(), "session_ended".into(), None));
    assert!(gateway.open.is_empty());
}

#[test]
fn sessions_without_an_id_and_lists_that_show_one_twice() {
    let mut gateway = Gateway::default();
    let mut nameless = row("", 10, None, 5);
    nameless.session.session_id = None;
    gateway.read(&[nameless.clone(), nameless.clone()], true, 20, false);
    nameless.session.end_time = Some(at(30).to_string());
    gateway.read(&[nameless], true, 40, false);
    assert_eq!(gateway.types(), ["session_started", "session_ended"]);
    assert!(gateway.told[0].0.starts_with("gen_"));
}

#[test]
fn extra_fields_stay() {
    let mut odd = row("ses_1", 10, None, 5);
    odd.extra.insert("apn".into(), json!("iot.example"));
    let (source, iccid) = (Arc::from("/globalsim/test"), Iccid::parse("8947000000000000001").unwrap());
    let shown = Shown { asked_at: at(20), answered_at: at(20), not_seen_at: None };
    let of = Of {
        source: &source,
        iccid: &iccid,
        device_id: None,
        shown,
        oldest_told: at(0),
        backfill_before: Some(at(15)),
    };
    let told = diff(&BTreeMap::new(), &[odd], true, &of, |_| None);
    assert_eq!(told.events[0].event.extra["apn"], "iot.example");
    assert!(told.events[0].event.flags.contains(Flag::Backfill), "it began before the gateway did");
}

proptest! {
    /// Whatever is read when, with crashes that lose the record: each session starts once and ends once, its end after
    /// its start, and the last amount told is the true one.
    #[test]
    fn each_session_is_told_once(
        steps in prop::collection::vec((0..4_u8, 0..6_usize, 1..50_u64, any::<bool>(), any::<bool>()), 1..60)
    ) {
        let mut gateway = Gateway::default();
        let mut truth: Vec<SessionRow> = Vec::new();
        let mut now = 10;
        for (what, which, by, crash, is_whole) in steps {
            now += 10;
            match what {
                0 if truth.len() < 6 => truth.insert(0, row(&format!("ses_{}", truth.len()), now, None, by)),
                1 => if let Some(one) = truth.get_mut(which).filter(|one| one.is_open()) {
                    let tenths = one.session.total_mb.as_ref().unwrap().as_f64().unwrap() * 10.0;
                    one.session.total_mb = number(tenths.round() as u64 + by);
                },
                2 => if let Some(one) = truth.get_mut(which).filter(|one| one.is_open()) {
                    one.session.end_time = Some(at(now).to_string());
                },
                _ => gateway.read(&truth, is_whole, now, crash),
            }
        }
        gateway.read(&truth, true, now + 1, false);
        for session in &truth {
            let id = session.session.session_id.clone().unwrap();
            let of: Vec<_> = gateway.told.iter().filter(|(told, ..)| told.starts_with(&format!("{id}~"))).collect();
            prop_assert_eq!(&of[0].1, "session_started");
            let last = of.iter().rev().find_map(|(_, _, total)| total.clone());
            prop_assert_eq!(last, session.session.total_mb.as_ref().map(ToString::to_string));
            let ends = of.iter().filter(|(_, kind, _)| kind == "session_ended").count();
            prop_assert_eq!(ends, usize::from(!session.is_open()));
        }
    }
}
