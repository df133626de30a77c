//! The log against a vector: whatever is appended, maintained and reopened, every read gives what a naive scan gives.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// Appends so many events.
    Append(u64),
    /// Appends one event so many positions later.
    Skip(u64),
    Maintain,
    /// Stops cleanly and starts again.
    Restart,
    /// Is killed and starts again.
    Kill,
    /// Is killed, and every sidecar is lost.
    LoseSidecars,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..12).prop_map(Step::Append),
        1 => (1u64..5).prop_map(Step::Skip),
        2 => Just(Step::Maintain),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
        1 => Just(Step::LoseSidecars),
    ]
}

fn any_predicate() -> impl Strategy<Value = Predicate> {
    let some = |values: &'static [&'static str]| vec(select(values), 0..3);
    let lists = (some(&ICCIDS), some(&DEVICES), some(&TYPES), some(&["backfill", "late"]), any::<bool>());
    lists.prop_map(|(iccid, device, event_type, flags, scoped)| {
        let predicate = filter(&[
            ("iccid", &iccid),
            ("device_id", &device),
            ("event_type", &event_type),
            ("exclude_flags", &flags),
        ]);
        let scope = filter(&[("device_id", &["pump-1"])]).filter().clone();
        if scoped { Predicate::new(predicate.filter().clone(), Some(scope)) } else { predicate }
    })
}

/// The log and what should be in it: (sequence, number of the event).
struct Pair {
    disk: Arc<MemoryDisk>,
    log: Log,
    model: Vec<(u64, u64)>,
}

impl Pair {
    fn run(&mut self, step: &Step) {
        let (last, number) = (self.model.last().map_or(0, |(seq, _)| *seq), self.model.len() as u64);
        match step {
            Step::Append(count) => {
                let seqs = self.log.append(entries(number..number + count)).unwrap();
                assert_eq!(seqs, (last + 1..=last + count).collect::<Vec<_>>());
                self.model.extend(seqs.into_iter().zip(number..));
            }
            Step::Skip(by) => {
                self.log.append_at(vec![(last + 1 + by, entry(number))]).unwrap();
                self.model.push((last + 1 + by, number));
            }
            Step::Maintain => self.log.maintain(second(number)).unwrap(),
            Step::Restart => {
                self.log.close().unwrap();
                self.reopen(|_| true);
            }
            Step::Kill => self.reopen(|_| true),
            Step::LoseSidecars => self.reopen(|name| !name.ends_with(".idx")),
        }
    }

    fn reopen(&mut self, kept: impl Fn(&str) -> bool) {
        let mut files = self.disk.contents();
        files.retain(|name, _| kept(name));
        self.disk = Arc::new(MemoryDisk::holding(files));
        self.log = open(&self.disk);
    }

    fn matches(&self, predicate: &Predicate, from: u64, direction: Direction) -> Vec<(u64, String)> {
        let mut matches: Vec<_> = (self.model.iter())
            .filter(|(seq, number)| {
                let sealed = entry(*number).sealed;
                let inside = match direction {
                    Direction::Forward => *seq > from,
                    Direction::Backward => *seq < from,
                };
                inside && predicate.matches(&sealed.at(*seq).keys().unwrap())
            })
            .map(|(seq, number)| (*seq, format!("evt_{number}")))
            .collect();
        if direction == Direction::Backward {
            matches.reverse();
        }
        matches
    }

    fn check(&self, predicate: &Predicate, limit: usize, at: u64) {
        let last = self.model.last().map_or(0, |(seq, _)| *seq);
        let first = self.model.first().map_or(1, |(seq, _)| *seq);
        let bounds = self.log.bounds();
        assert_eq!((bounds.first_seq, bounds.last_seq), (first, last));
        assert_eq!(bounds.events, self.model.len() as u64);
        let at = (first - 1) + at % (last + 2 - first);
        for (from, direction) in [
            (first - 1, Direction::Forward),
            (at, Direction::Forward),
            (at, Direction::Backward),
            (u64::MAX, Direction::Backward),
        ] {
            let (read, holes) = read_through(&self.log, from, direction, predicate, limit);
            assert_eq!(read, self.matches(predicate, from, direction), "{direction:?} from {from}");
            assert_eq!(holes, []);
        }
        for (seq, number) in &self.model {
            assert_eq!(self.log.find(&format!("evt_{number}")).map(|known| known.seq), Some(*seq));
            assert_eq!(self.log.get(*seq).unwrap().unwrap().body(), &entry(*number).sealed.body);
            assert_eq!(self.log.check(self.log.cursor_at(*seq)), Ok(*seq));
            assert_eq!(self.log.position_at(second(*number)).unwrap(), seq - 1);
        }
        assert_eq!(self.log.position_at(second(self.model.len() as u64)).unwrap(), last);
        assert!(self.log.get(last + 1).unwrap().is_none());
        assert_eq!(self.log.find("evt_none"), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn reads_give_what_a_naive_scan_gives(
        steps in vec(any_step(), 1..30),
        predicate in any_predicate(),
        limit in 1usize..20,
        at: u64,
    ) {
        let disk = Arc::new(MemoryDisk::default());
        let mut pair = Pair { log: open(&disk), disk, model: Vec::new() };
        for step in &steps {
            pair.run(step);
        }
        pair.check(&predicate, limit, at);
        pair.run(&Step::Append(3));
        pair.check(&Predicate::default(), limit, at);
    }
}
