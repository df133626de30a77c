//! Bytes that are not what was written: nothing wrong is ever delivered, and what is missing is said.

use std::collections::BTreeMap;

use super::*;

type Files = BTreeMap<String, Vec<u8>>;

/// Two finished segments and an active one, as a stop leaves them, clean or not.
fn three_segments(clean: bool) -> (Files, u64) {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    for n in 0..11 {
        log.append(entries([n])).unwrap();
    }
    log.maintain(second(11)).unwrap();
    assert_eq!(log.state.read().sealed.len(), 2);
    if clean {
        log.close().unwrap();
    }
    (disk.contents(), 11)
}

fn opened(files: &Files) -> io::Result<Log> {
    Log::open_on(Arc::new(MemoryDisk::holding(files.clone())), options())
}

/// Everything delivered is right; every position up to the edge is delivered or announced; both ways agree.
fn check_honest(log: &Log, what: &str) -> u64 {
    let (events, holes) = read_all(log);
    let mut covered: Vec<u64> = events.iter().map(|(seq, _)| *seq).collect();
    for (seq, id) in &events {
        assert_eq!(*id, format!("evt_{}", seq - 1), "{what}");
    }
    for hole in &holes {
        assert_eq!(hole.reason, GapReason::Corruption);
        covered.extend(hole.first_seq..=hole.last_seq);
    }
    covered.sort_unstable();
    let bounds = log.bounds();
    let expected: Vec<u64> = (bounds.first_seq..=bounds.last_seq).collect();
    assert_eq!(covered, expected, "{what}: {holes:?}");
    let (mut back, mut back_holes) =
        read_through(log, u64::MAX, Direction::Backward, &Predicate::default(), 100);
    back.reverse();
    back_holes.reverse();
    let span = |holes: &[Hole]| -> u64 { holes.iter().map(|h| h.last_seq - h.first_seq + 1).sum() };
    assert_eq!((back, span(&back_holes)), (events, span(&holes)), "{what}");
    span(&holes)
}

#[test]
fn no_flipped_bit_of_a_segment_gets_through() {
    // A finished segment, and the last one after a crash and after a clean stop.
    for (clean, place) in [(false, 1), (false, 2), (true, 2)] {
        let (files, last) = three_segments(clean);
        let segments: Vec<_> = files.keys().filter(|name| name.ends_with(".seg")).cloned().collect();
        for name in &segments[place..=place] {
            for bit in 0..files[name].len() * 8 {
                let mut files = files.clone();
                files.get_mut(name).unwrap()[bit / 8] ^= 1 << (bit % 8);
                let what = format!("clean {clean}, bit {bit} of {name}");
                let log = opened(&files).unwrap();
                let lost = check_honest(&log, &what);
                let is_tail = !clean && place == 2;
                let kept = log.bounds().last_seq;
                assert!(kept == last || (is_tail && kept == last - 1), "{what}: kept {kept}");
                let harmless = bit / 8 < 40;
                assert_eq!(lost + (last - kept), u64::from(!harmless), "{what}");
            }
        }
    }
}

#[test]
fn no_flipped_byte_of_a_sidecar_or_of_meta_changes_anything() {
    let (files, last) = three_segments(true);
    for name in files.keys().filter(|name| !name.ends_with(".seg")) {
        for byte in 0..files[name].len() {
            let mut files = files.clone();
            files.get_mut(name).unwrap()[byte] ^= 0x41;
            let what = format!("byte {byte} of {name}");
            let log = opened(&files).unwrap();
            assert_eq!(check_honest(&log, &what), 0, "{what}");
            assert_eq!(log.bounds().last_seq, last, "{what}");
            assert_eq!(log.incarnation(), 77, "{what}");
            for n in 0..last {
                assert_eq!(log.find(&format!("evt_{n}")).map(|known| known.seq), Some(n + 1), "{what}");
            }
        }
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let (files, last) = three_segments(false);
    let (name, bytes) = files.iter().rfind(|(name, _)| name.ends_with(".seg")).unwrap();
    let whole = record::HEADER_BYTES + entry(last - 1).sealed.body.len();
    for cut in 1..=whole {
        for garbage in [false, true] {
            let mut files = files.clone();
            let torn = files.get_mut(name).unwrap();
            torn.truncate(bytes.len() - cut);
            if garbage {
                torn.resize(bytes.len(), 0);
            }
            let log = opened(&files).unwrap();
            assert_eq!(log.bounds().last_seq, last - 1, "cut {cut}");
            assert_eq!(check_honest(&log, "torn"), 0);
            assert_eq!(log.append(entries([last - 1])).unwrap(), [last]);
            assert_eq!(check_honest(&log, "appended after a cut"), 0);
        }
    }
}

/// A crash while a batch of three is being written behind three acknowledged records, with every part of the file
/// there and whatever a file system leaves behind it.
#[test]
fn a_write_torn_at_any_byte_leaves_what_came_before_and_no_part_of_a_record() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    let acknowledged = 3;
    log.append(entries(0..1)).unwrap();
    log.append(entries(1..3)).unwrap();
    let name = segment::segment_name(1);
    let safe = disk.contents()[&name].len();
    log.append(entries(3..4)).unwrap();
    let end = disk.contents()[&name].len();
    let files = disk.contents();
    // Most of a record that lay there before, with its header whole.
    let half = files[&name][40..safe / 2].to_vec();
    let mut random = vec![0; 700];
    fastrand::Rng::with_seed(1).fill(&mut random);
    let behind = [vec![], vec![0; 700], vec![0xFF; 700], random, half];
    for cut in 0..=files[&name].len() {
        for garbage in &behind {
            let mut files = files.clone();
            let torn = files.get_mut(&name).unwrap();
            torn.truncate(cut);
            torn.extend_from_slice(garbage);
            let disk = Arc::new(MemoryDisk::holding(files));
            let what = format!("cut at {cut}, {} bytes behind it", garbage.len());
            let log = open(&disk);
            let whole = if cut >= end { acknowledged + 1 } else { acknowledged };
            let last = log.bounds().last_seq;
            if cut >= safe {
                assert_eq!(last, whole, "{what}");
            } else {
                assert!(last < acknowledged, "{what}");
            }
            assert_eq!(check_honest(&log, &what), 0, "{what}");
            // What a reader may have seen keeps its place; what comes next goes on behind it.
            assert_eq!(log.append(entries([last, last + 1])).unwrap(), [last + 1, last + 2], "{what}");
            drop(log);
            let log = open(&disk);
            assert_eq!(log.bounds().last_seq, last + 2, "{what}");
            assert_eq!(check_honest(&log, &what), 0, "{what}");
        }
    }
}

#[test]
fn a_clean_log_that_lost_its_end_says_so() {
    let (files, last) = three_segments(true);
    let name = files.keys().rfind(|name| name.ends_with(".seg")).unwrap();
    for cut in 1..files[name].len() - 40 {
        let mut files = files.clone();
        let len = files[name].len() - cut;
        files.get_mut(name).unwrap().truncate(len);
        let log = opened(&files).unwrap();
        assert_eq!(log.bounds().last_seq, last, "a sequence would be given twice");
        assert!(check_honest(&log, "shortened") > 0);
        assert_eq!(log.append(entries([last])).unwrap(), [last + 1]);
        check_honest(&log, "appended after a loss");
        log.close().unwrap();
    }
}

#[test]
fn a_missing_segment_is_a_hole() {
    let (mut files, last) = three_segments(true);
    let name = files.keys().filter(|name| name.ends_with(".seg")).nth(1).unwrap().clone();
    files.remove(&name);
    let log = opened(&files).unwrap();
    let lost = check_honest(&log, "missing");
    assert!(lost > 3);
    assert_eq!(log.bounds().events, last - lost);
    let (_, holes) = read_all(&log);
    let inside = Cursor { incarnation: 77, seq: holes[0].first_seq, tag: 1 };
    assert_eq!(log.check(inside), Ok(inside.seq), "a client in a hole goes on behind it");
}

#[test]
fn an_index_spares_readers_holes_that_do_not_concern_them() {
    let (mut files, _) = three_segments(true);
    let name = files.keys().find(|name| name.ends_with(".seg")).unwrap().clone();
    let damaged = 40 + 50;
    files.get_mut(&name).unwrap()[damaged] ^= 1;
    let log = opened(&files).unwrap();
    let concerned = filter(&[("event_type", &["connection"])]);
    let other = filter(&[("event_type", &["disconnection"])]);
    assert_eq!(read_through(&log, 0, Direction::Forward, &concerned, 10).1.len(), 1);
    assert_eq!(read_through(&log, 0, Direction::Forward, &other, 10).1.len(), 0);
}

#[test]
fn text_that_looks_like_a_frame_is_not_taken_for_one() {
    let disk = Arc::new(MemoryDisk::default());
    let log = open(&disk);
    let forged = {
        let inner = entry(100);
        let frame = record::Frame {
            seq: 2,
            identity: 0,
            content: 0,
            keys_len: inner.sealed.keys_len,
            body: &inner.sealed.body,
        };
        let mut bytes = Vec::new();
        frame.encode(record::Seed::of(1), &mut bytes);
        bytes
    };
    let mut outer = entry(0);
    let body = [&outer.sealed.body[..], &forged[..]].concat();
    outer.sealed.body = body.into();
    log.append(vec![outer]).unwrap();
    log.append(entries([1, 2])).unwrap();
    let mut files = disk.contents();
    let segment = files.values_mut().find(|bytes| bytes.len() > 100).unwrap();
    segment[60] ^= 1;
    let log = opened(&files).unwrap();
    let (events, holes) = read_all(&log);
    assert_eq!(events, [(2, "evt_1".to_owned()), (3, "evt_2".to_owned())]);
    assert_eq!(holes, [Hole { first_seq: 1, last_seq: 1, reason: GapReason::Corruption }]);
}
