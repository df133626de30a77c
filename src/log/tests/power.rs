//! Power is lost at every single disk operation: what was acknowledged is there afterwards, once; without syncs, the
//! beginning of it.

use super::*;

/// Appends, maintains, rolls, retires and closes until the power goes; gives how many events were acknowledged.
fn run(disk: &Arc<MemoryDisk>, syncs: bool) -> u64 {
    let options = Options { retention_bytes: 9_000, syncs, ..options() };
    let Ok(log) = Log::open_on(Arc::clone(disk) as Arc<dyn Disk>, options) else { return 0 };
    let mut acknowledged = 0;
    for round in 0..12 {
        let batch = acknowledged..acknowledged + 1 + round % 4;
        let end = batch.end;
        if log.append(entries(batch)).is_err() {
            return acknowledged;
        }
        acknowledged = end;
        if round % 3 == 2 {
            // What it could not do is found again after the restart.
            let _ = log.maintain(second(round));
        }
    }
    let _ = log.close();
    acknowledged
}

#[test]
fn power_lost_at_any_step_loses_nothing_acknowledged() {
    power_lost_at_any_step(true);
}

#[test]
fn power_lost_without_syncs_leaves_a_beginning_and_nothing_else() {
    power_lost_at_any_step(false);
}

fn power_lost_at_any_step(syncs: bool) {
    let whole = Arc::new(MemoryDisk::default());
    let all = run(&whole, syncs);
    assert!(whole.steps() > 40, "{} steps", whole.steps());
    for step in 0..=whole.steps() {
        for share in [0, 100, 255] {
            let disk = Arc::new(MemoryDisk::default());
            disk.lose_power_at(step);
            let acknowledged = run(&disk, syncs);
            assert!(acknowledged <= all && (step > 0 || acknowledged == 0));
            let disk = Arc::new(disk.after_power_loss(share));
            let log = open(&disk);
            let last = log.bounds().last_seq;
            assert!(last >= acknowledged || !syncs, "step {step}: {last} of {acknowledged}");
            for n in 0..last {
                let known = log.find(&format!("evt_{n}"));
                assert_eq!(known.map(|known| known.seq), Some(n + 1), "step {step}, share {share}: evt_{n}");
            }
            let (events, holes) = read_all(&log);
            let expected: Vec<_> =
                (log.bounds().first_seq..=last).map(|seq| (seq, format!("evt_{}", seq - 1))).collect();
            assert_eq!((events, holes), (expected, vec![]), "step {step}, share {share}");
            assert_eq!(log.append(entries([last])).unwrap(), [last + 1]);
            log.maintain(second(last)).unwrap();
            log.close().unwrap();
            assert_eq!(open(&disk).bounds().last_seq, last + 1);
        }
    }
}
