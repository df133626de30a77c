//! The log against a model, and on disks that fail, fill up, lose power or hold flipped bits.

mod copy;
mod damage;
mod days;
mod erase;
mod forget;
mod model;
mod power;
mod retention;

use std::sync::{Arc, LazyLock};

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::event::{Event, Filter, FilterLimits, Flag, Iccid};

pub(super) const ICCIDS: [&str; 3] = ["8947000000000000001", "8947000000000000002", "8946000000000000003"];
pub(super) const DEVICES: [&str; 2] = ["Pump-1", "pump-2"];
pub(super) const TYPES: [&str; 3] = ["connection", "Disconnection", "network_change"];

/// Small segments, so that few events fill many.
pub(super) fn options() -> Options {
    Options { incarnation: 77, segment_bytes: 3_000, recent_bytes: 1_500, ..Options::default() }
}

/// An event observed `n` seconds after the epoch; everything about it follows from `n`.
pub(super) fn entry(n: u64) -> Entry {
    // Made once where a test asks a million times.
    static FIRST: LazyLock<Vec<Entry>> = LazyLock::new(|| (0..400).map(make_entry).collect());
    FIRST.get(n as usize).cloned().unwrap_or_else(|| make_entry(n))
}

fn make_entry(n: u64) -> Entry {
    let mut event = Event::new(format!("evt_{n}"), Arc::from("/globalsim/test"), TYPES[n as usize % 3]);
    event.iccid = (!n.is_multiple_of(5)).then(|| Iccid::parse(ICCIDS[n as usize % 7 % 3]).unwrap());
    event.device_id = n.is_multiple_of(2).then(|| DEVICES[n as usize / 2 % 2].to_owned());
    event.time = Timestamp::from_second(n as i64 / 2).ok();
    if n.is_multiple_of(4) {
        event.flags.insert(Flag::Backfill);
    }
    event.extra.insert("n".to_owned(), n.into());
    let sealed = event.seal(second(n), SignedDuration::MAX).unwrap();
    Entry { sealed, identity: n * 3, content: n as u32 * 5 }
}

pub(super) fn entries(numbers: impl IntoIterator<Item = u64>) -> Vec<Entry> {
    numbers.into_iter().map(entry).collect()
}

pub(super) fn second(n: u64) -> Timestamp {
    Timestamp::from_second(n as i64).unwrap()
}

pub(super) fn open(disk: &Arc<MemoryDisk>) -> Log {
    Log::open_on(Arc::clone(disk) as Arc<dyn Disk>, options()).unwrap()
}

pub(super) fn filter(lists: &[(&str, &[&str])]) -> Predicate {
    let lists = lists.iter().map(|(name, values)| (*name, values.iter().map(|v| (*v).to_owned()).collect()));
    Filter::build(lists, FilterLimits::default()).unwrap().0.into()
}

/// Reads page by page to the end; gives the events as (sequence, id) and the holes. Each page must move on.
pub(super) fn read_through(
    log: &Log,
    from: u64,
    direction: Direction,
    predicate: &Predicate,
    limit: usize,
) -> (Vec<(u64, String)>, Vec<Hole>) {
    let (mut events, mut holes, mut from) = (Vec::new(), Vec::new(), from);
    loop {
        let page = log.read(ReadRequest { from, direction, predicate, limit, max_bytes: 2_000 }).unwrap();
        assert!(page.events.len() <= limit);
        assert!(page.at_end || page.next != from, "a page without progress at {from}");
        for event in &page.events {
            let keys = event.keys().unwrap();
            let n: u64 = keys.id.strip_prefix("evt_").unwrap().parse().unwrap();
            assert_eq!(event.body(), &entry(n).sealed.body, "event {} is not what was appended", event.seq());
            events.push((event.seq(), keys.id.to_owned()));
        }
        holes.extend(page.holes);
        if page.at_end {
            return (events, holes);
        }
        from = page.next;
    }
}

pub(super) fn read_all(log: &Log) -> (Vec<(u64, String)>, Vec<Hole>) {
    let from = log.bounds().first_seq - 1;
    read_through(log, from, Direction::Forward, &Predicate::default(), 100)
}

#[test]
fn a_log_on_disk_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let log = Log::open(dir.path(), options()).unwrap();
        assert_eq!(log.incarnation(), 77);
        assert_eq!(log.append(entries(round * 10..round * 10 + 10)).unwrap()[0], round * 10 + 1);
        assert_eq!(*log.edge().borrow(), round * 10 + 10);
        log.maintain(second(0)).unwrap();
        if round % 2 == 0 {
            log.close().unwrap();
            assert!(log.append(entries([1])).is_err());
        }
        assert_eq!(read_all(&log).0.len() as u64, round * 10 + 10);
    }
    let log = Log::open(dir.path(), options()).unwrap();
    assert!(log.state.read().sealed.len() > 2);
    for n in 0..40 {
        let known = KnownId { seq: n + 1, identity: n * 3, content: n as u32 * 5 };
        assert_eq!(log.find(&format!("evt_{n}")), Some(known));
    }
    assert_eq!(log.find("evt_40"), None);
    assert_eq!(log.event_times(), Some((second(0), second(19))));
}

#[test]
fn files_of_another_log_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    Log::open(dir.path(), options()).unwrap().append(entries(0..40)).unwrap();
    std::fs::remove_file(dir.path().join("meta")).unwrap();
    assert_eq!(Log::open(dir.path(), Options { incarnation: 78, ..options() }).unwrap().incarnation(), 77);
    let other = tempfile::tempdir().unwrap();
    drop(Log::open(other.path(), Options { incarnation: 78, ..options() }).unwrap());
    std::fs::copy(other.path().join("meta"), dir.path().join("meta")).unwrap();
    let error = Log::open(dir.path(), options()).unwrap_err();
    assert!(error.to_string().contains("belongs to another log"), "{error}");
}

#[test]
fn a_log_in_another_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    Log::open(dir.path(), options()).unwrap().append(entries(0..1)).unwrap();
    let path = dir.path().join(segment::segment_name(1));
    let mut bytes = std::fs::read(&path).unwrap();
    for version in [1_u32, 99] {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let error = Log::open(dir.path(), options()).unwrap_err().to_string();
        assert!(error.contains(&format!("has format version {version}, this simcast reads 2")), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn cursors_say_what_is_wrong_with_them() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    log.append(entries(0..10)).unwrap();
    assert_eq!(log.check(log.cursor_at(0)), Ok(0));
    for seq in 1..=10 {
        let cursor = log.cursor_at(seq);
        assert_eq!(cursor, log.get(seq).unwrap().unwrap().cursor(77));
        assert_eq!(log.check(cursor), Ok(seq));
        assert_eq!(log.check(Cursor { tag: cursor.tag ^ 1, ..cursor }), Err(CursorState::Regressed));
        assert_eq!(log.check(Cursor { incarnation: 1, ..cursor }), Err(CursorState::OtherIncarnation));
    }
    assert_eq!(log.check(Cursor { seq: 11, ..log.cursor_at(10) }), Err(CursorState::Regressed));
}

#[test]
fn a_log_may_begin_late_and_what_lies_before_is_gone() {
    let disk = Arc::new(MemoryDisk::default());
    let options = Options { first_seq: 100, ..options() };
    let log = testing::open_on(&disk, options);
    assert_eq!((log.bounds().first_seq, log.bounds().last_seq), (100, 99));
    log.append_at(vec![(103, entry(1)), (107, entry(2))]).unwrap();
    drop(log);
    let log = testing::open_on(&disk, Options { first_seq: 500, ..options });
    assert_eq!((log.bounds().first_seq, log.bounds().last_seq), (103, 107));
    assert!(log.damage().borrow().is_empty());
    assert_eq!(log.check(log.cursor_at(101)), Ok(101));
    assert_eq!(log.check(Cursor { seq: 98, ..log.cursor_at(98) }), Err(CursorState::Expired));
}

#[test]
fn retention_removes_whole_segments_and_remembers_their_ids() {
    let disk = Arc::new(MemoryDisk::default());
    let options = Options { retention_bytes: 10_000, ..options() };
    let day = 24 * 3600;
    let log = Log::open_on(Arc::clone(&disk) as Arc<dyn Disk>, options).unwrap();
    for n in 0..24 {
        log.append(entries([n])).unwrap();
    }
    let old = log.cursor_at(1);
    assert_eq!(log.hold(Some(0)), None);
    let before = log.state.read().sealed.len();
    assert!(before * 2_500 > 10_000 && before * 3_000 < 20_000, "{before} segments");
    log.maintain(second(24)).unwrap();
    assert_eq!(log.state.read().sealed.len(), before, "a held segment was removed");
    log.hold(None);
    log.maintain(second(24)).unwrap();
    let first = log.bounds().first_seq;
    assert!(first > 1 && log.bounds().events == 25 - first, "{:?}", log.bounds());
    assert_eq!(log.bounds().first_time, Some(second(first - 1)));
    assert_eq!(log.check(old), Err(CursorState::Expired));
    assert!(log.check(log.cursor_at(first - 1)).is_ok());
    let request = |from, predicate| ReadRequest {
        from,
        direction: Direction::Forward,
        predicate,
        limit: 10,
        max_bytes: 10_000,
    };
    let all = Predicate::default();
    assert!(
        matches!(log.read(request(0, &all)), Err(ReadError::Expired { first_seq }) if first_seq == first)
    );
    assert_eq!(log.read(request(first - 1, &all)).unwrap().events[0].seq(), first);
    assert_eq!(log.find("evt_0").unwrap().seq, 1);
    log.close().unwrap();

    let log = Log::open_on(Arc::clone(&disk) as Arc<dyn Disk>, options).unwrap();
    assert_eq!(log.find("evt_0"), Some(KnownId { seq: 1, identity: 0, content: 0 }));
    assert_eq!(log.bounds().first_seq, first);
    assert!(disk.contents().keys().any(|name| name.ends_with(".ids")));
    log.maintain(second(7 * day + 25)).unwrap();
    assert_eq!(log.bounds().events, log.state.read().active.index.records.len() as u64);
    assert!(log.find("evt_0").is_some(), "ids are kept longer than events");
    log.maintain(second(8 * day + 25)).unwrap();
    assert_eq!(log.find("evt_0"), None);
    assert!(log.find("evt_23").is_some(), "the active segment is never removed");
    let names: Vec<_> = disk.contents().into_keys().collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_full_disk_is_waited_out() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    log.append(entries(0..3)).unwrap();
    for space in 0..900 {
        disk.leave_space(Some(space));
        assert!(log.append(entries(3..6)).is_err(), "{space} bytes sufficed");
        assert!(log.unwritable().is_some());
        assert_eq!(read_all(&log).0.len(), 3);
    }
    disk.leave_space(None);
    assert_eq!(log.append(entries(3..6)).unwrap(), [4, 5, 6]);
    assert_eq!(log.unwritable(), None);
    assert_eq!(read_all(&log).0.len(), 6);
    assert_eq!(read_all(&open(&disk)), read_all(&log));
}

#[test]
fn retention_makes_room_on_a_full_disk_and_forgets_no_id() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    for n in 0..12 {
        log.append(entries([n])).unwrap();
    }
    log.maintain(second(12)).unwrap();
    let before = log.bounds();
    disk.leave_space(Some(0));
    // The events are kept for 7 days, their ids for 8.
    let later = second(12 + 7 * 24 * 3600 + 3600);
    log.maintain(later).unwrap();
    assert!(log.bounds().first_seq > before.first_seq);
    let known = |log: &Log| (0..12).all(|n| log.find(&format!("evt_{n}")).is_some());
    assert!(known(&log));
    disk.leave_space(None);
    let reopened = open(&disk);
    assert!(known(&reopened));
    assert_eq!(reopened.bounds().first_seq, log.bounds().first_seq);
    assert!(disk.contents().keys().all(|name| !name.ends_with(".tmp")));
}

#[test]
fn positions_that_never_held_anything_are_not_lost() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    let empty = log.cursor_at(0);
    log.append_at((0..12).map(|n| (100 + n * 10, entry(n))).collect()).unwrap();
    assert_eq!(log.check(empty), Ok(0));
    let all = Predicate::default();
    let request =
        |from| ReadRequest { from, direction: Direction::Forward, predicate: &all, limit: 1, max_bytes: 1 };
    assert_eq!(log.read(request(0)).unwrap().events[0].seq(), 100);
    for n in 12..24 {
        log.append_at(vec![(100 + n * 10, entry(n))]).unwrap();
    }
    let cursors: Vec<_> = (0..24).map(|n| log.cursor_at(100 + n * 10)).collect();
    log.maintain(second(7 * 24 * 3600 + 12)).unwrap();
    let first = log.bounds().first_seq;
    assert!(first > 100);
    for cursor in cursors {
        // Behind the last event that is gone, nothing is missing.
        let expected = if cursor.seq + 10 < first { Err(CursorState::Expired) } else { Ok(cursor.seq) };
        assert_eq!(log.check(cursor), expected, "{cursor:?}, first {first}");
        let read = log.read(request(cursor.seq));
        assert_eq!(read.is_err(), expected.is_err());
    }
}

#[test]
fn a_failed_sync_is_final_until_a_restart() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    log.append(entries(0..3)).unwrap();
    disk.fail_sync(true);
    assert!(log.append(entries(3..4)).is_err());
    disk.fail_sync(false);
    let error = log.append(entries(3..4)).unwrap_err();
    assert!(error.to_string().contains("restart"), "{error}");
    assert!(log.unwritable().unwrap().contains("restart"));
    assert_eq!(read_all(&log).0.len(), 3);
    assert_eq!(*log.edge().borrow(), 3);
    let log = open(&disk);
    assert_eq!(log.unwritable(), None);
    let unconfirmed = u64::from(log.find("evt_3").is_some());
    assert_eq!(log.append(entries(10..11)).unwrap(), [4 + unconfirmed]);
}

#[test]
fn a_look_at_many_records_is_bounded_but_moves_on() {
    let log = Log::in_memory(1);
    for start in 0..40 {
        log.append(entries(start * 500..start * 500 + 500)).unwrap();
    }
    let predicate = filter(&[("country", &["Norway"])]);
    let request = ReadRequest {
        from: 0,
        direction: Direction::Forward,
        predicate: &predicate,
        limit: 10,
        max_bytes: 1_000,
    };
    let page = log.read(request).unwrap();
    assert!(page.events.is_empty() && !page.at_end, "{page:?}");
    assert!((16_000..18_000).contains(&page.next), "{}", page.next);
    let indexed = filter(&[("country", &["Norway"]), ("iccid", &["8900000000000000000"])]);
    let page = log.read(ReadRequest { predicate: &indexed, ..request }).unwrap();
    assert!(page.events.is_empty() && page.at_end && page.next == 20_000, "{page:?}");
}

#[test]
fn readers_see_every_event_once_while_segments_come_and_are_finished() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), options()).unwrap();
    let last = 300;
    let follow = |predicate: &Predicate, limit: usize| {
        let mut seen = Vec::new();
        let mut from = 0;
        while from < last {
            let request =
                ReadRequest { from, direction: Direction::Forward, predicate, limit, max_bytes: 10_000 };
            let page = log.read(request).unwrap();
            assert_eq!(page.holes, []);
            seen.extend(page.events.iter().map(StoredEvent::seq));
            from = page.next;
            std::thread::yield_now();
        }
        seen
    };
    let one_type = filter(&[("event_type", &["connection"])]);
    std::thread::scope(|scope| {
        let all = scope.spawn(|| follow(&Predicate::default(), 7));
        let some = scope.spawn(|| follow(&one_type, 3));
        let care = scope.spawn(|| {
            while *log.edge.borrow() < last {
                log.maintain(second(0)).unwrap();
            }
        });
        for n in 0..last / 5 {
            log.append(entries(n * 5..n * 5 + 5)).unwrap();
        }
        care.join().unwrap();
        assert_eq!(all.join().unwrap(), (1..=last).collect::<Vec<_>>());
        let expected: Vec<_> = (1..=last).filter(|seq| (seq - 1) % 3 == 0).collect();
        assert_eq!(some.join().unwrap(), expected);
    });
}
