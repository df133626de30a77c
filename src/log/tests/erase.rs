//! What is erased is in no file, and nobody who reads can tell that it was there.

use super::*;

const GONE: &str = ICCIDS[1];

fn holds(disk: &MemoryDisk, text: &str) -> Vec<String> {
    let found = |bytes: &[u8]| memchr::memmem::find(bytes, text.as_bytes()).is_some();
    disk.contents().into_iter().filter(|(_, bytes)| found(bytes)).map(|(name, _)| name).collect()
}

/// Sequences of the SIM's events among those of `0..end`, which lie at their number and one.
fn of_sim(end: u64) -> Vec<u64> {
    (0..end).filter(|n| n % 5 != 0 && ICCIDS[*n as usize % 7 % 3] == GONE).map(|n| n + 1).collect()
}

fn others(end: u64) -> Vec<(u64, String)> {
    let gone = of_sim(end);
    (1..=end).filter(|seq| !gone.contains(seq)).map(|seq| (seq, format!("evt_{}", seq - 1))).collect()
}

/// A notice of another SIM that mentions the erased one, in a text and as a number.
fn mention(n: u64) -> Entry {
    let mut event = Event::new(format!("evt_{n}"), Arc::from("/globalsim/test"), "sim_linked");
    event.iccid = Some(Iccid::parse(ICCIDS[0]).unwrap());
    event.extra.insert("previous_iccid".to_owned(), GONE.into());
    event.extra.insert("text".to_owned(), format!("was \\\"{GONE}\\\", not {GONE}5").into());
    event.extra.insert("number".to_owned(), GONE.parse::<u64>().unwrap().into());
    let sealed = event.seal(second(n), SignedDuration::MAX).unwrap();
    Entry { sealed, identity: n * 3, content: n as u32 * 5 }
}

#[test]
fn what_is_erased_leaves_every_file_and_nothing_else_changes() {
    for clean in [true, false] {
        let disk = Arc::new(MemoryDisk::default());
        let log = open(&disk);
        for n in 0..60 {
            log.append(entries([n])).unwrap();
        }
        log.maintain(second(60)).unwrap();
        let cursors: Vec<_> = (0..=60).map(|seq| log.cursor_at(seq)).collect();
        let counts = (log.day_counts(None).unwrap(), log.quarter_counts(Some("connection")).unwrap());
        let known: Vec<_> = (0..60).map(|n| log.find(&format!("evt_{n}"))).collect();
        assert!(!holds(&disk, GONE).is_empty());

        let erased = log.erase(GONE, u64::MAX).unwrap();
        assert_eq!(erased.events.iter().map(|one| one.seq).collect::<Vec<_>>(), of_sim(60));
        assert_eq!(erased.redacted, [0; 0]);
        assert_eq!(holds(&disk, GONE), [""; 0]);
        let check = |log: &Log| {
            assert_eq!(read_all(log), (others(60), vec![]));
            let backward = read_through(log, u64::MAX, Direction::Backward, &Predicate::default(), 7);
            assert_eq!(backward, (others(60).into_iter().rev().collect(), vec![]));
            let filtered =
                |iccid| read_through(log, 0, Direction::Forward, &filter(&[("iccid", &[iccid])]), 100);
            assert_eq!(filtered(GONE), (vec![], vec![]));
            assert!(!filtered(ICCIDS[0]).0.is_empty());
            for seq in of_sim(60) {
                assert_eq!(log.get(seq).unwrap().map(|event| event.seq()), None);
            }
            for (seq, cursor) in cursors.iter().enumerate() {
                assert_eq!((log.check(*cursor), log.cursor_at(seq as u64)), (Ok(seq as u64), *cursor));
            }
            let now = (log.day_counts(None).unwrap(), log.quarter_counts(Some("connection")).unwrap());
            assert_eq!(now, counts);
            for (n, known) in known.iter().enumerate() {
                assert_eq!(log.find(&format!("evt_{n}")), *known, "evt_{n}");
            }
            assert_eq!(log.bounds().events, others(60).len() as u64);
            assert_eq!(log.tombstones().unwrap().iter().map(|one| one.seq).collect::<Vec<_>>(), of_sim(60));
            assert_eq!(log.tombstones().unwrap(), erased.events);
        };
        check(&log);
        assert_eq!(log.erase(GONE, u64::MAX).unwrap(), Erased::default(), "twice is once");
        // Each segment is read through by maintenance: a place that holds nothing is no damage.
        for minute in 0..20 {
            log.maintain(second(100 + 4_000 * minute)).unwrap();
        }
        assert_eq!(log.damage().borrow().len(), 0);
        check(&log);
        if clean {
            log.close().unwrap();
        }
        drop(log);
        check(&open(&disk));
        // Without sidecars all of it follows from the segments.
        for (name, _) in disk.contents().into_iter().filter(|(name, _)| name.ends_with(".idx")) {
            disk.remove(&name).unwrap();
        }
        let log = open(&disk);
        check(&log);
        assert_eq!(log.append(entries([60])).unwrap(), [61]);
        assert_eq!(holds(&disk, GONE), [""; 0]);
    }
}

#[test]
fn who_only_mentions_it_loses_the_digits_and_nothing_else() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    log.append(vec![mention(0), entry(1), mention(2)]).unwrap();
    let longer = format!("{GONE}5");
    assert_eq!(log.erase(GONE, u64::MAX).unwrap().redacted, [1, 3]);
    assert_eq!(log.erase(GONE, u64::MAX).unwrap(), Erased::default());
    let event = log.get(1).unwrap().unwrap();
    let json: serde_json::Value = serde_json::from_slice(event.json()).unwrap();
    let (extra, struck) = (&json["data"]["extra"], "*".repeat(GONE.len()));
    assert_eq!(extra["previous_iccid"], struck.as_str());
    assert_eq!(extra["text"], format!("was \\\"{struck}\\\", not {longer}"), "a longer number is another's");
    assert_eq!(extra["number"], 0);
    assert_eq!((&json["id"], &json["subject"]), (&"evt_0".into(), &ICCIDS[0].into()));
    assert_eq!(log.find("evt_2").map(|known| known.seq), Some(3));
}

#[test]
fn what_lies_in_damaged_bytes_goes_too_and_stays_damage() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    log.append(entries(0..12)).unwrap();
    let gone = of_sim(12);
    super::testing::damage(&disk, &format!("evt_{}", gone[0] - 1));
    let erased = log.erase(GONE, u64::MAX).unwrap();
    assert_eq!(erased.events.iter().map(|one| one.seq).collect::<Vec<_>>(), gone[1..]);
    assert_eq!(holds(&disk, GONE), [""; 0]);
    let hole = Hole { first_seq: gone[0], last_seq: gone[0], reason: GapReason::Corruption };
    assert_eq!(read_all(&log), (others(12), vec![hole]));
    log.close().unwrap();
    for keep in [true, false] {
        if !keep {
            disk.remove(&segment::sidecar_name(1)).unwrap();
        }
        assert_eq!(read_all(&open(&disk)), (others(12), vec![hole]));
    }
}

#[test]
fn a_copy_erases_the_same_positions_and_no_others() {
    let (log, copy) = (Log::in_memory(77), Log::in_memory(77));
    for log in [&log, &copy] {
        log.append(entries(0..30)).unwrap();
    }
    let foretold = log.erasable(GONE, 20).unwrap();
    let erased = log.erase(GONE, 20).unwrap().events;
    assert_eq!((erased.iter().map(|one| one.seq).collect::<Vec<_>>(), &foretold), (of_sim(20), &erased));
    let newer: Vec<_> = log.erasable(GONE, u64::MAX).unwrap().iter().map(|one| one.seq).collect();
    assert_eq!(
        newer,
        of_sim(30).into_iter().filter(|seq| *seq > 20).collect::<Vec<_>>(),
        "what came later stays"
    );
    assert_eq!(Tombstone::decode_all(77, &Tombstone::encode_all(77, &erased)), erased);
    assert_eq!(Tombstone::decode_all(78, &Tombstone::encode_all(77, &erased)), []);
    assert_eq!(copy.erase_at(&erased).unwrap(), BTreeSet::from([GONE.to_owned()]));
    assert_eq!(copy.erase_at(&erased).unwrap(), BTreeSet::new());
    let kept: Vec<_> = (1..=30).filter(|seq| *seq > 20 || !of_sim(20).contains(seq)).collect();
    assert_eq!(read_all(&copy).0.into_iter().map(|(seq, _)| seq).collect::<Vec<_>>(), kept);
    assert_eq!(read_all(&copy).1, []);
    assert_eq!(copy.tombstones().unwrap(), erased);
    assert!((1..=30).all(|seq| copy.is_erased(seq) == of_sim(20).contains(&seq)));
    // Of another history: other events lie there.
    let other = Log::in_memory(77);
    other.append(entries(100..130)).unwrap();
    assert_eq!(other.erase_at(&erased).unwrap(), BTreeSet::new());
}

#[test]
fn a_copy_that_is_filled_later_has_the_places_of_what_was_erased_before() {
    let disk = Arc::new(MemoryDisk::default());
    let (log, copy) = (Log::in_memory(77), open(&disk));
    log.append(entries(0..30)).unwrap();
    let erased = log.erase(GONE, u64::MAX).unwrap().events;
    for n in 0..30 {
        match erased.iter().find(|one| one.seq == n + 1) {
            Some(one) => copy.append_erased(std::slice::from_ref(one)).unwrap(),
            None => copy.append_at(vec![(n + 1, entry(n))]).unwrap(),
        }
    }
    assert!(copy.append_erased(&erased[..1]).is_err(), "not where something lies already");
    for _ in 0..2 {
        let copy = open(&disk);
        assert_eq!(read_all(&copy), (others(30), vec![]));
        assert!((0..=30).all(|seq| copy.cursor_at(seq) == log.cursor_at(seq)));
        assert_eq!(copy.quarter_counts(None).unwrap(), log.quarter_counts(None).unwrap());
        assert!((0..30).all(|n| copy.find(&format!("evt_{n}")) == log.find(&format!("evt_{n}"))));
        assert_eq!(copy.tombstones().unwrap(), erased);
        copy.close().unwrap();
    }
}

#[test]
fn readers_and_writers_that_are_at_work_see_neither_a_gap_nor_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), options()).unwrap();
    log.append(entries(0..100)).unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = || {
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                let (events, holes) = read_all(&log);
                assert_eq!(holes, []);
                let seen: BTreeSet<u64> = events.iter().map(|(seq, _)| *seq).collect();
                assert!(others(100).iter().all(|(seq, _)| seen.contains(seq)));
            }
        };
        let threads = [scope.spawn(reader), scope.spawn(reader)];
        let writer = scope.spawn(|| {
            for n in 100..300 {
                log.append(entries([n])).unwrap();
            }
        });
        log.erase(GONE, u64::MAX).unwrap();
        log.maintain(second(5)).unwrap();
        writer.join().unwrap();
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    log.erase(GONE, u64::MAX).unwrap();
    assert_eq!(read_all(&log), (others(300), vec![]));
}

#[test]
fn power_lost_at_any_step_of_an_erasure_loses_nothing_of_others_and_the_next_one_finishes_it() {
    let prepare = |disk: &Arc<MemoryDisk>| {
        let log = open(disk);
        log.append(entries(0..25)).unwrap();
        log.maintain(second(25)).unwrap();
        log.append(entries(25..30)).unwrap();
        log
    };
    let whole = Arc::new(MemoryDisk::default());
    let log = prepare(&whole);
    let before = whole.steps();
    log.erase(GONE, u64::MAX).unwrap();
    let after = whole.steps();
    assert!(after - before > 20, "{} steps", after - before);
    for step in before..=after {
        for share in [0, 100, 255] {
            let disk = Arc::new(MemoryDisk::default());
            let log = prepare(&disk);
            disk.lose_power_at(step);
            let erased = log.erase(GONE, u64::MAX);
            let disk = Arc::new(disk.after_power_loss(share));
            let log = open(&disk);
            let (events, holes) = read_all(&log);
            assert_eq!(holes, [], "step {step}, share {share}");
            assert!(others(30).iter().all(|one| events.contains(one)), "step {step}, share {share}");
            for n in 0..30 {
                assert_eq!(log.find(&format!("evt_{n}")).map(|known| known.seq), Some(n + 1));
            }
            if erased.is_ok() {
                assert_eq!(holds(&disk, GONE), [""; 0], "step {step}: what was said to be done is");
            }
            log.erase(GONE, u64::MAX).unwrap();
            assert_eq!((read_all(&log), holds(&disk, GONE)), ((others(30), vec![]), vec![]), "step {step}");
            assert_eq!(log.append(entries([30])).unwrap(), [31]);
        }
    }
}

#[test]
fn erased_ids_stay_known_when_retention_removes_their_segment() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    for n in 0..60 {
        log.append(entries([n])).unwrap();
    }
    log.erase(GONE, u64::MAX).unwrap();
    let options = Options { retention_bytes: 4_000, ..options() };
    drop(log);
    let log = Log::open_on(Arc::clone(&disk) as Arc<dyn Disk>, options).unwrap();
    log.maintain(second(60)).unwrap();
    assert!(log.bounds().first_seq > 20);
    assert!(of_sim(60).iter().all(|seq| log.find(&format!("evt_{}", seq - 1)).is_some()));
}
