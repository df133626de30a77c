//! What retention may remove and what it may not, day after day.

use super::*;

const DAY_S: u64 = 24 * 3600;

/// An event observed on a day, which happened `late` days before.
fn on_day(n: u64, day: u64, late: u64) -> Entry {
    let mut event = Event::new(format!("evt_{n}"), Arc::from("/globalsim/test"), "connection");
    event.time = Some(second((day - late) * DAY_S + n));
    let observed = second(day * DAY_S + n);
    Entry { sealed: event.seal(observed, SignedDuration::MAX).unwrap(), identity: n, content: 0 }
}

fn bytes(log: &Log) -> u64 {
    let state = log.state.read();
    state.sealed.iter().map(|segment| segment.summary.bytes).sum::<u64>() + state.active.index.end
}

/// Two days in bytes; ids and counts must last for eight.
#[test]
fn ids_and_counts_outlive_the_bytes_whatever_removed_them() {
    let disk = Arc::new(MemoryDisk::default());
    let options = Options { retention_bytes: 12_000, ..options() };
    let reopen = || Log::open_on(Arc::clone(&disk) as Arc<dyn Disk>, options).unwrap();
    let mut log = reopen();
    let (per_day, first_day) = (12, 10);
    let mut n = 0;
    for day in first_day..first_day + 20 {
        for _ in 0..per_day {
            // A fifth of them happened the day before.
            log.append(vec![on_day(n, day, u64::from(n % 5 == 0))]).unwrap();
            n += 1;
        }
        let now = second(day * DAY_S + DAY_S - 1);
        log.maintain(now).unwrap();
        if day % 3 == 0 {
            // A clean stop, or being killed.
            if day % 2 == 0 {
                log.close().unwrap();
            }
            log = reopen();
            log.maintain(now).unwrap();
        }
        assert!(bytes(&log) <= options.retention_bytes + options.segment_bytes);
        let oldest = (day - first_day).saturating_sub(7) * per_day;
        for id in oldest..n {
            assert!(log.find(&format!("evt_{id}")).is_some(), "day {day}: evt_{id} was forgotten");
        }
        let counts: Vec<u64> = log.day_counts(None).unwrap().into_values().collect();
        let expected =
            |of: u64| (0..n).filter(|n| first_day + n / per_day - u64::from(n % 5 == 0) == of).count() as u64;
        let complete: Vec<u64> = (day.saturating_sub(6).max(first_day)..=day).map(expected).collect();
        assert!(counts.ends_with(&complete), "day {day}: {counts:?}, not {complete:?}");
    }
    let kept = disk.contents().keys().filter(|name| name.ends_with(".ids")).count();
    let a_segment_holds = 4;
    assert!(kept as u64 <= 9 * per_day / a_segment_holds + 2, "{kept} files of ids: none is ever forgotten");
    assert_eq!(log.find("evt_0"), None);
}

#[test]
fn a_holder_is_waited_for_up_to_twice_the_bounds_and_told_what_it_lost() {
    for by_age in [false, true] {
        let options = Options {
            retention_bytes: if by_age { u64::MAX } else { 12_000 },
            retention_days: if by_age { 3 } else { 1_000 },
            ..options()
        };
        let log = Log::in_memory_with(options);
        let held_at = 5;
        let (mut waited, mut let_go) = (false, false);
        for n in 0..120 {
            // Six events a day.
            log.append(vec![on_day(n, 10 + n / 6, 0)]).unwrap();
            let lost = log.hold(Some(held_at.min(n)));
            let first = log.state.read().first_position();
            log.maintain(second((10 + n / 6) * DAY_S + n)).unwrap();
            let gone = log.bounds().first_seq > 1;
            let beyond = if by_age { n / 6 >= 3 } else { bytes(&log) > options.retention_bytes };
            waited |= beyond && log.state.read().first_position() <= held_at + 1;
            assert!(by_age || bytes(&log) <= 2 * options.retention_bytes + options.segment_bytes);
            match lost {
                Some(range) => {
                    assert_eq!(range, (held_at + 1, first - 1));
                    let_go = true;
                }
                None => assert!(first <= held_at + 1 || !gone),
            }
        }
        assert!(waited && let_go, "by age {by_age}: waited {waited}, let go {let_go}");
        log.hold(None);
        log.maintain(second(30 * DAY_S)).unwrap();
        if !by_age {
            assert!(bytes(&log) <= options.retention_bytes);
        }
    }
}
