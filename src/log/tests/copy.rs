//! Copies of a log: every position in its place, and the log that is copied left as it is.

use std::path::Path;

use super::*;

/// Everything from the beginning, as (first, last, id); each page must move on.
fn copied(log: &Log) -> Vec<(u64, u64, Option<String>)> {
    let (mut all, mut after) = (Vec::new(), log.begins_at() - 1);
    loop {
        let page = log.copy_after(after).unwrap();
        for item in &page.items {
            assert!(item.first_seq() > after && item.last_seq() <= page.next);
            let id = match item {
                Copied::Event(seq, entry) => {
                    let known = log.find(&entry.sealed.id).unwrap();
                    assert_eq!(
                        (known.seq, known.identity, known.content),
                        (*seq, entry.identity, entry.content)
                    );
                    assert_eq!(entry.sealed.clone().at(*seq).body(), log.get(*seq).unwrap().unwrap().body());
                    Some(entry.sealed.id.clone())
                }
                Copied::Hole(..) => None,
            };
            all.push((item.first_seq(), item.last_seq(), id));
        }
        if page.at_end {
            return all;
        }
        assert!(page.next > after);
        after = page.next;
    }
}

fn event_at(seq: u64, n: u64) -> (u64, u64, Option<String>) {
    (seq, seq, Some(format!("evt_{n}")))
}

fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn holes_that_are_told_of_are_holes_for_good() {
    for clean in [true, false] {
        let disk = Arc::new(MemoryDisk::default());
        let beginning = Options { first_seq: 40, ..options() };
        let log = Log::open_on(Arc::clone(&disk) as Arc<dyn Disk>, beginning).unwrap();
        log.append_hole(40, 41).unwrap();
        log.append_hole(42, 44).unwrap();
        log.append_at(vec![(45, entry(0)), (46, entry(1))]).unwrap();
        log.append_hole(47, 47).unwrap();
        for n in 2..12 {
            log.append_at(vec![(46 + n, entry(n))]).unwrap();
        }
        log.append_hole(60, 62).unwrap();
        assert!(log.append_hole(62, 63).is_err() && log.append_hole(64, 63).is_err());
        assert!(log.append_at(vec![(62, entry(12))]).is_err());
        log.maintain(second(12)).unwrap();
        assert!(!log.state.read().sealed.is_empty());
        let check = |log: &Log| {
            let expected = [(40, 44), (47, 47), (60, 62)];
            for predicate in
                [Predicate::default(), filter(&[("iccid", &[ICCIDS[0]])]), Predicate::unfiltered()]
            {
                let (events, holes) = read_through(log, 39, Direction::Forward, &predicate, 3);
                let spans: Vec<_> = holes.iter().map(|hole| (hole.first_seq, hole.last_seq)).collect();
                assert_eq!(spans, expected);
                let (back, mut holes) = read_through(log, u64::MAX, Direction::Backward, &predicate, 3);
                holes.reverse();
                let spans: Vec<_> = holes.iter().map(|hole| (hole.first_seq, hole.last_seq)).collect();
                assert_eq!((spans.as_slice(), back.len()), (&expected[..], events.len()));
            }
            assert_eq!((log.begins_at(), log.bounds().last_seq, log.bounds().events), (40, 62, 12));
            // Whatever the log that was copied tagged it with.
            assert_eq!(log.check(Cursor { incarnation: 77, seq: 47, tag: 9 }), Ok(47));
            let damage = log.damage().borrow().clone();
            assert!(damage.iter().all(|one| one.records.is_empty()));
            assert_eq!(damage.iter().map(Damage::positions).sum::<u64>(), 9);
        };
        check(&log);
        if clean {
            log.close().unwrap();
        }
        let log = open(&Arc::new(MemoryDisk::holding(disk.contents())));
        log.maintain(second(12)).unwrap();
        check(&log);
        // Indexes are made again from the segments.
        let bare = disk.contents().into_iter().filter(|(name, _)| !name.ends_with(".idx")).collect();
        let log = open(&Arc::new(MemoryDisk::holding(bare)));
        log.maintain(second(12)).unwrap();
        check(&log);
        let mut all = vec![(40, 44, None), event_at(45, 0), event_at(46, 1), (47, 47, None)];
        all.extend((2..12).map(|n| event_at(46 + n, n)));
        all.push((60, 62, None));
        assert_eq!(copied(&log), all);
    }
}

#[test]
fn a_copy_has_every_position_and_a_damaged_one_is_a_hole() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    for n in 0..11 {
        log.append(entries([n])).unwrap();
    }
    log.maintain(second(11)).unwrap();
    testing::damage(&disk, "\"evt_3\"");
    let log = open(&disk);
    let mut expected: Vec<_> = (0..11).map(|n| event_at(n + 1, n)).collect();
    expected[3].2 = None;
    assert_eq!(copied(&log), expected);
    // Once it is known to be damaged as well.
    log.maintain(second(11)).unwrap();
    assert_eq!(copied(&log), expected);
}

#[test]
fn a_log_that_is_looked_at_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    assert!(Log::open_untouched(&directory.path().join("none")).is_err());
    let log = Log::open(directory.path(), options()).unwrap();
    for n in 0..11 {
        log.append(entries([n])).unwrap();
    }
    // As a crash leaves it: no sidecar of the last segment, and half a write at its end.
    drop(log);
    let last = files(directory.path()).into_iter().rfind(|(name, _)| name.ends_with(".seg"));
    let last = directory.path().join(last.unwrap().0);
    let mut bytes = std::fs::read(&last).unwrap();
    bytes.extend_from_within(40..90);
    std::fs::write(&last, bytes).unwrap();
    let before = files(directory.path());
    let log = Log::open_untouched(directory.path()).unwrap();
    let expected: Vec<_> = (0..11).map(|n| event_at(n + 1, n)).collect();
    assert_eq!((copied(&log), log.incarnation(), log.bounds().last_seq), (expected.clone(), 77, 11));
    drop(log);
    assert_eq!(files(directory.path()), before);
    // A segment whose only write was torn.
    std::fs::write(&last, [&std::fs::read(&last).unwrap()[..40], b"half"].concat()).unwrap();
    let before = files(directory.path());
    let log = Log::open_untouched(directory.path()).unwrap();
    assert_eq!(copied(&log), expected[..copied(&log).len()]);
    drop(log);
    assert_eq!(files(directory.path()), before);
    // A clean stop, and a disk that is opened for good afterwards.
    Log::open(directory.path(), options()).unwrap().close().unwrap();
    let before = files(directory.path());
    drop(Log::open_untouched(directory.path()).unwrap());
    assert_eq!(files(directory.path()), before);
}
