//! Counts by day: right whatever happened to the files, and kept as long as the ids.

use jiff::civil::Date;

use super::*;
use crate::event::Flags;

const DAY_S: i64 = 24 * 3600;

fn day(n: i64) -> Date {
    Timestamp::from_second(n * DAY_S).unwrap().to_zoned_datetime(jiff::tz::TimeZone::UTC).date()
}

/// Event `n` of a type, `day` days after the epoch; None is an event without a readable time.
fn at(n: u64, event_type: &str, day: Option<i64>, flags: &[Flag]) -> Entry {
    let mut event = Event::new(format!("evt_{n}"), Arc::from("/globalsim/test"), event_type);
    event.iccid = Iccid::parse(ICCIDS[n as usize % 3]).ok();
    event.time = day.map(|day| Timestamp::from_second(day * DAY_S + n as i64).unwrap());
    event.flags = flags.iter().copied().collect::<Flags>();
    event.gateway = event_type.starts_with("simcast.");
    Entry { sealed: event.seal(second(n), SignedDuration::MAX).unwrap(), identity: n, content: 0 }
}

/// What is counted: 6 events on day 2 (3 of them of SIM 0), 4 on day 3; and what is not.
fn some_of_everything() -> Vec<Entry> {
    let mut all: Vec<_> = (0..6).map(|n| at(n, "connection", Some(2), &[])).collect();
    all.extend((6..9).map(|n| at(n, "network_change", Some(3), &[Flag::Late, Flag::Partial])));
    all.push(at(9, "connection", Some(3), &[Flag::Conflict, Flag::Backfill, Flag::Repaired]));
    all.push(at(10, "network_change", Some(3), &[Flag::Enriched]));
    all.push(at(11, "session_started", Some(3), &[Flag::Derived]));
    all.push(at(12, "connection", None, &[]));
    all.push(at(13, "simcast.gap", Some(3), &[]));
    all
}

fn check(log: &Log, what: &str) {
    let of = |event_type| log.day_counts(event_type).unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!(of(None), [(day(2), 6), (day(3), 4)], "{what}");
    assert_eq!(of(Some("connection")), [(day(2), 6), (day(3), 1)], "{what}");
    assert_eq!(of(Some("network_change")), [(day(3), 3)], "{what}");
    assert_eq!(of(Some("session_started")), [], "{what}");
}

#[test]
fn only_what_upstream_lists_under_a_day_is_counted() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    for entry in some_of_everything() {
        log.append(vec![entry]).unwrap();
    }
    check(&log, "live");
    log.maintain(second(0)).unwrap();
    assert!(log.state.read().sealed.len() > 1);
    check(&log, "with sidecars");
    let count = |day, predicate: &Predicate| log.count_day(day, predicate).unwrap();
    assert_eq!(count(day(2), &Predicate::default()), 6);
    assert_eq!(count(day(3), &Predicate::default()), 4);
    assert_eq!(count(day(4), &Predicate::default()), 0);
    assert_eq!(count(day(2), &filter(&[("iccid", &[ICCIDS[0]])])), 2);
    assert_eq!(count(day(3), &filter(&[("event_type", &["network_change"])])), 3);
    let by_quarter = log.quarter_counts(Some("connection")).unwrap();
    assert_eq!(by_quarter, [(2 * DAY_S, 6), (3 * DAY_S, 1)].into());
    let connections = filter(&[("event_type", &["connection"])]);
    let quarter_past = Timestamp::from_second(2 * DAY_S + 900).unwrap();
    let by_sim = log.count_by_sim(Timestamp::UNIX_EPOCH, quarter_past, &connections).unwrap();
    assert_eq!(by_sim, ICCIDS[..3].iter().map(|iccid| (Some((*iccid).to_owned()), 2)).collect());
    assert!(log.count_by_sim(quarter_past, second(3 * DAY_S as u64), &connections).unwrap().is_empty());
    log.close().unwrap();
    check(&open(&disk), "after a clean stop");
    let mut files = disk.contents();
    files.retain(|name, _| !name.ends_with(".idx"));
    let killed = Arc::new(MemoryDisk::holding(files));
    check(&open(&killed), "made again");
}

#[test]
fn counts_are_kept_as_long_as_ids_whatever_became_of_the_bytes() {
    for is_full in [false, true] {
        let disk = Arc::new(MemoryDisk::default());
        let log = open(&disk);
        for entry in some_of_everything() {
            log.append(vec![entry]).unwrap();
        }
        log.maintain(second(0)).unwrap();
        disk.leave_space(is_full.then_some(0));
        let later = |days: i64| Timestamp::from_second(days * DAY_S + 60).unwrap();
        log.maintain(later(7)).unwrap();
        assert!(log.bounds().first_seq > 6, "{:?}", log.bounds());
        check(&log, "unlinked");
        assert_eq!(log.count_day(day(2), &Predicate::default()).unwrap(), 0);
        disk.leave_space(None);
        log.close().unwrap();
        let log = open(&disk);
        check(&log, "unlinked, and started again");
        log.maintain(later(8)).unwrap();
        assert!(!log.day_counts(None).unwrap().contains_key(&day(2)), "ids and counts go together");
    }
}
