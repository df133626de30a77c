//! Damage is found, its ids are forgotten, and its events can be there once more: once, whatever crashes and whatever
//! the disk gives back later.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::event::identity::id_hash;

const LAST: u64 = 11;

fn some_log(clean: bool) -> Arc<MemoryDisk> {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    for n in 0..LAST {
        log.append(entries([n])).unwrap();
    }
    log.maintain(second(LAST)).unwrap();
    assert_eq!(log.state.read().sealed.len(), 2);
    if clean {
        log.close().unwrap();
    }
    disk
}

fn holding(files: &BTreeMap<String, Vec<u8>>) -> Arc<MemoryDisk> {
    Arc::new(MemoryDisk::holding(files.clone()))
}

/// Positions that the log says are damaged.
fn damaged(log: &Log) -> Vec<u64> {
    log.damage().borrow().iter().flat_map(|one| one.first_seq..=one.last_seq).collect()
}

/// How often each event is delivered; nothing else may be.
fn delivered(log: &Log) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for (_, id) in read_all(log).0 {
        *times.entry(id).or_default() += 1;
    }
    times
}

/// What the poller does with rows that upstream shows again: appends those whose ids are not known.
fn append_unknown(log: &Log) -> Vec<u64> {
    let unknown: Vec<_> = (0..LAST).filter(|n| log.find(&format!("evt_{n}")).is_none()).collect();
    log.append(entries(unknown.iter().copied())).unwrap();
    unknown
}

/// Brings a damaged log to where every event is there once, in spite of restarts of every kind on the way.
fn repair(disk: &Arc<MemoryDisk>, what: &str) -> Vec<u64> {
    let mut disk = Arc::clone(disk);
    let log = open(&disk);
    // What follows the last whole record of a segment without an index can't be told from an unfinished write.
    let (cut, hour) = (LAST - log.bounds().last_seq.min(LAST), 3_600);
    log.maintain(second(LAST + hour)).unwrap();
    let lost = damaged(&log);
    let there = delivered(&log);
    for n in 0..LAST {
        let id = format!("evt_{n}");
        assert_eq!(log.find(&id).is_some(), there.contains_key(&id), "{what}: {id}, lost {lost:?}");
    }
    let missing = LAST - there.len() as u64;
    let mine = lost.iter().filter(|seq| **seq <= LAST).count() as u64;
    assert!(missing == mine + cut || there.len() as u64 == LAST, "{what}: {missing} of {lost:?}, {cut} cut");
    assert_eq!(log.day_counts(None).unwrap().values().sum::<u64>(), LAST - missing, "{what}");
    // A crash before anything was repaired, one after it, and a clean stop: nobody forgets and nobody doubles.
    disk = holding(&disk.contents());
    let log = open(&disk);
    log.maintain(second(LAST + hour)).unwrap();
    assert_eq!(damaged(&log), lost, "{what}");
    assert_eq!(append_unknown(&log).len() as u64, missing, "{what}");
    let check = |log: &Log, when: &str| {
        assert_eq!(append_unknown(log), [0u64; 0], "{what}, {when}");
        let expected: BTreeMap<_, _> = (0..LAST).map(|n| (format!("evt_{n}"), 1)).collect();
        assert_eq!(delivered(log), expected, "{what}, {when}");
        assert_eq!(log.day_counts(None).unwrap().values().sum::<u64>(), LAST, "{what}, {when}");
    };
    check(&log, "repaired");
    disk = holding(&disk.contents());
    let log = open(&disk);
    check(&log, "killed");
    log.maintain(second(LAST + 2 * hour)).unwrap();
    log.close().unwrap();
    let log = open(&disk);
    check(&log, "stopped");
    log.maintain(second(LAST + 3 * hour)).unwrap();
    check(&log, "maintained");
    assert_eq!(damaged(&log), lost, "{what}");
    lost
}

#[test]
fn damage_at_any_byte_is_found_by_maintenance_and_its_event_comes_back_once() {
    for (clean, place) in [(false, 0), (false, 1), (false, 2), (true, 2)] {
        let files = some_log(clean).contents();
        let name = files.keys().filter(|name| name.ends_with(".seg")).nth(place).unwrap();
        for byte in 0..files[name].len() {
            let disk = holding(&files);
            disk.flip(name, byte, 1 << (byte % 8));
            let what = format!("clean {clean}, byte {byte} of {name}");
            let lost = repair(&disk, &what);
            let is_unconfirmed = place == 2 && !clean && lost.is_empty();
            assert!(lost.len() == usize::from(byte >= 40) || is_unconfirmed, "{what}: {lost:?}");
            // The disk gives the record back: it stays lost, since its event is there again.
            let is_there = byte < disk.contents()[name].len();
            if is_there {
                disk.flip(name, byte, 1 << (byte % 8));
            }
            let log = open(&disk);
            log.maintain(second(LAST)).unwrap();
            if place < 2 && !lost.is_empty() {
                assert_eq!(damaged(&log), lost, "{what}");
                assert!(!delivered(&log).contains_key(&format!("evt_{}", lost[0] - 1)), "{what}");
            }
        }
    }
}

#[test]
fn damage_of_an_index_file_loses_nothing_with_or_without_its_segment() {
    let files = some_log(true).contents();
    for name in files.keys().filter(|name| name.ends_with(".idx")) {
        let segment = name.replace(".idx", ".seg");
        for byte in 0..files[name].len() {
            let disk = holding(&files);
            disk.flip(name, byte, 0x41);
            assert_eq!(repair(&disk, &format!("byte {byte} of {name}")), [0u64; 0]);
        }
        for byte in (0..files[&segment].len()).step_by(7) {
            let disk = holding(&files);
            disk.flip(name, byte % files[name].len(), 0x41);
            disk.flip(&segment, byte, 0x10);
            let lost = repair(&disk, &format!("byte {byte} of {segment} and its index"));
            let is_last =
                files.keys().rfind(|name| name.ends_with(".seg")) == Some(&segment) && lost.is_empty();
            assert!(lost.len() == usize::from(byte >= 40) || is_last, "{lost:?}");
        }
    }
}

#[test]
fn damage_says_what_is_known_of_what_was_lost() {
    let files = some_log(true).contents();
    let names: Vec<_> = files.keys().filter(|name| name.ends_with(".seg")).collect();
    let disk = holding(&files);
    disk.flip(names[1], 100, 1);
    disk.flip(names[1], 40 + 900, 1);
    let log = open(&disk);
    let first = log.state.read().sealed[1].summary.base_seq;
    log.maintain(second(LAST)).unwrap();
    let damage = Arc::clone(&log.damage().borrow());
    let [one] = &damage[..] else { panic!("{damage:?}") };
    assert_eq!((one.first_seq, one.last_seq), (first, first + 1));
    let times = [(first - 1) / 2, first / 2].map(second);
    assert_eq!(one.times, (times[0], times[1]));
    let known: Vec<_> = one.records.iter().map(|record| (record.seq, record.id, record.time)).collect();
    let expected = [0, 1].map(|n| (first + n, id_hash(&format!("evt_{}", first - 1 + n)), times[n as usize]));
    assert_eq!(known, expected);
    assert_eq!(log.find_hash(known[0].1).unwrap(), None);

    // Without its index only the records around it tell when its events may have happened.
    let disk = holding(&files);
    disk.flip(names[1], 40 + 900, 1);
    disk.remove(&names[1].replace(".seg", ".idx")).unwrap();
    let log = open(&disk);
    log.maintain(second(LAST)).unwrap();
    let damage = Arc::clone(&log.damage().borrow());
    let [one] = &damage[..] else { panic!("{damage:?}") };
    assert_eq!((one.first_seq, one.last_seq, one.records.len()), (first + 1, first + 1, 0));
    assert!(one.times.0 <= times[1] && times[1] <= one.times.1, "{:?}", one.times);
    assert!(one.times.0 >= second(0) - SignedDuration::from_hours(24), "{:?}", one.times);
    assert_eq!(one.times.1, second(first + 1 + 300), "what lies behind it was observed later");
}

#[test]
fn a_missing_segment_is_damage_and_its_events_come_back() {
    let mut files = some_log(true).contents();
    let name = files.keys().filter(|name| name.ends_with(".seg")).nth(1).unwrap().clone();
    files.remove(&name);
    let lost = repair(&holding(&files), "missing");
    assert!(lost.len() > 3);
}

#[test]
fn damage_under_a_running_log_is_forgotten_once_a_reader_has_met_it() {
    for place in 0..3 {
        let disk = some_log(false);
        let options = Options { recent_bytes: 0, ..options() };
        let log = Log::open_on(Arc::clone(&disk) as Arc<dyn Disk>, options).unwrap();
        log.maintain(second(0)).unwrap();
        assert!(!log.needs_maintenance());
        let name = disk.contents().into_keys().filter(|name| name.ends_with(".seg")).nth(place).unwrap();
        disk.flip(&name, 60, 1);
        let (events, holes) = read_all(&log);
        assert_eq!((events.len() as u64, holes.len()), (LAST - 1, 1));
        let lost = holes[0].first_seq;
        let id = format!("evt_{}", lost - 1);
        assert!(log.get(lost).unwrap().is_none());
        assert!(log.find(&id).is_some(), "nothing is forgotten before it can't be delivered again");
        let cursor = log.cursor_at(lost);
        assert!(log.needs_maintenance());
        let mut damage = log.damage();
        damage.mark_unchanged();
        log.maintain(second(1)).unwrap();
        assert!(damage.has_changed().unwrap());
        assert!(!log.needs_maintenance());
        assert_eq!(damaged(&log), [lost]);
        assert_eq!(log.find(&id), None);
        assert_eq!(log.check(cursor), Ok(lost), "a client that had it goes on behind it");
        assert_eq!(log.bounds().events, LAST - 1);
        assert_eq!(append_unknown(&log), [lost - 1]);
        assert_eq!(read_all(&log).1, holes);
        disk.flip(&name, 60, 1);
        assert_eq!(delivered(&log).get(&id), Some(&1));
        assert!(log.get(lost).unwrap().is_none());
        log.close().unwrap();
        assert_eq!(delivered(&open(&disk)).get(&id), Some(&1));
    }
}

#[test]
fn nothing_is_forgotten_that_could_not_be_noted() {
    let disk = some_log(true);
    let log = open(&disk);
    let name = disk.contents().into_keys().find(|name| name.ends_with(".seg")).unwrap();
    disk.flip(&name, 60, 1);
    disk.leave_space(Some(10));
    assert!(log.maintain(second(LAST)).is_err());
    assert!(log.needs_maintenance(), "it is tried again");
    assert!(log.find("evt_0").is_some());
    assert_eq!(read_all(&log).1.len(), 1, "it is announced all the same");
    disk.leave_space(None);
    log.maintain(second(LAST)).unwrap();
    assert_eq!((damaged(&log), log.find("evt_0")), (vec![1], None));
}

#[test]
fn power_lost_while_damage_is_noted_forgets_and_doubles_nothing() {
    let files = some_log(true).contents();
    let name = files.keys().find(|name| name.ends_with(".seg")).unwrap();
    let run = |disk: &Arc<MemoryDisk>| {
        let Ok(log) = Log::open_on(Arc::clone(disk) as Arc<dyn Disk>, options()) else { return };
        if log.maintain(second(LAST)).is_ok() && log.find("evt_0").is_none() {
            let _ = log.append(entries([0]));
        }
    };
    let whole = holding(&files);
    whole.flip(name, 60, 1);
    run(&whole);
    for step in 0..=whole.steps() {
        let disk = holding(&files);
        disk.flip(name, 60, 1);
        disk.lose_power_at(step);
        run(&disk);
        let disk = Arc::new(disk.after_power_loss(0));
        assert_eq!(repair(&disk, &format!("step {step}")), [1]);
    }
}

#[test]
fn a_sector_that_can_not_be_read_costs_its_records_only() {
    for has_index in [true, false] {
        let files = some_log(true).contents();
        let name = files.keys().filter(|name| name.ends_with(".seg")).nth(1).unwrap();
        for sector in 0..files[name].len() as u64 / 512 {
            let disk = holding(&files);
            if !has_index {
                disk.remove(&name.replace(".seg", ".idx")).unwrap();
            }
            disk.fail_reads(name, sector * 512..sector * 512 + 512);
            let log = open(&disk);
            log.maintain(second(LAST)).unwrap();
            let lost = damaged(&log);
            assert!((1..=2).contains(&lost.len()), "sector {sector}: {lost:?}");
            let (events, holes) = read_all(&log);
            assert_eq!(events.len() + lost.len(), LAST as usize);
            assert_eq!(
                holes.iter().map(|hole| hole.last_seq - hole.first_seq + 1).sum::<u64>(),
                lost.len() as u64
            );
            assert_eq!(append_unknown(&log).len(), lost.len());
        }
    }
}

#[test]
fn the_whole_log_is_read_through_in_turn() {
    let disk = some_log(true);
    let log = open(&disk);
    log.maintain(second(0)).unwrap();
    let name = disk.contents().into_keys().find(|name| name.ends_with(".seg")).unwrap();
    disk.flip(&name, 60, 1);
    log.maintain(second(60)).unwrap();
    assert_eq!(damaged(&log), [0u64; 0], "the last turn is not long ago");
    log.maintain(second(3_600)).unwrap();
    assert_eq!(damaged(&log), [1]);
}

/// Nothing says how old it is; it is as old as what follows it, and goes with that.
#[test]
fn a_segment_of_which_nothing_can_be_read_is_announced_before_retention_takes_it() {
    for place in 0..2 {
        let files = some_log(true).contents();
        let disk = holding(&files);
        let name = files.keys().filter(|name| name.ends_with(".seg")).nth(place).unwrap();
        disk.flip(&name.replace(".seg", ".idx"), 20, 1);
        for byte in 40..files[name].len() {
            disk.flip(name, byte, 1);
        }
        let lost = repair(&disk, name);
        assert!(lost.len() > 1, "{lost:?}");
        let log = open(&disk);
        let days = i64::from(log.options.retention_days);
        log.maintain(second(LAST + days as u64 * 86_400 - 60)).unwrap();
        assert_eq!(damaged(&log), lost);
        log.maintain(second(LAST + days as u64 * 86_400 + 60)).unwrap();
        assert_eq!(damaged(&log), [0u64; 0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_flips_in_any_files_are_survived_told_and_repaired(
        flips in vec((any::<u16>(), any::<u32>(), 1u8..), 1..12),
        clean: bool,
    ) {
        let files = some_log(clean).contents();
        let names: Vec<_> = files.keys().cloned().collect();
        let disk = holding(&files);
        let mut hit = BTreeSet::new();
        for (file, at, mask) in flips {
            let name = &names[usize::from(file) % names.len()];
            // With neither meta nor any header nobody can say whose log it is; that is refused, and tested elsewhere.
            let at = if name.ends_with(".seg") { 40 + at as usize % (files[name].len() - 40) } else { at as usize % files[name].len() };
            disk.flip(name, at, mask);
            hit.insert(name.clone());
        }
        repair(&disk, &format!("{hit:?}"));
    }
}
