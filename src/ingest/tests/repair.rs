//! What a disk loses comes back from upstream, once, and what upstream no longer has is announced, once.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    backfilled,
    rig::{Logged, Rig, Run},
};
use crate::{
    bus::{Bucket, Bus, embedded::Embedded},
    globalsim::simulator::{EventSpec, Faults, faults},
    ingest::{DetailsMode, status::Repair},
    log::{
        Options,
        testing::{MemoryDisk, damage, open_on},
    },
};

/// Small segments, and nothing in memory: what is damaged is met.
fn options() -> Options {
    Options { incarnation: 9, segment_bytes: 20_000, recent_bytes: 0, ..Options::default() }
}

struct Damaged {
    rig: Rig,
    disk: Arc<MemoryDisk>,
}

impl Damaged {
    async fn new(faults: Faults) -> Self {
        let mut rig = Rig::new(faults).await;
        rig.config.details = DetailsMode::Off;
        let disk = Arc::new(MemoryDisk::default());
        rig.bus = Embedded::on_log(open_on(&disk, options()), Arc::clone(&rig.clock));
        Self { rig, disk }
    }

    /// The past and a little of the present are in the log.
    async fn filled(&self) -> Run {
        let mut run = self.rig.run();
        backfilled(&mut run).await;
        for _ in 0..20 {
            self.rig.sim.inject(EventSpec::default());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.rig.settled().await;
        run.seen(self.rig.clock.now()).await;
        run
    }

    /// What the caretaker does in time.
    async fn maintain(&self) {
        let (log, now) = (Arc::clone(self.rig.bus.log()), self.rig.clock.now());
        tokio::task::spawn_blocking(move || log.maintain(now)).await.unwrap().unwrap();
    }

    /// Damages some events, spread over the log; gives their ids.
    fn damage(&self, every: usize) -> BTreeSet<String> {
        let ids: BTreeSet<_> =
            self.rig.logged().iter().skip(3).step_by(every).map(|event| event.id.clone()).collect();
        for id in &ids {
            damage(&self.disk, &format!("\"id\":\"{id}\""));
        }
        ids
    }

    /// Is killed, loses what `lost` says of its files, and starts again with the state of the poller.
    async fn restart(&mut self, lost: impl Fn(&str) -> bool) {
        let mut files = self.disk.contents();
        files.retain(|name, _| !lost(name));
        self.disk = Arc::new(MemoryDisk::holding(files));
        let bus = Embedded::on_log(open_on(&self.disk, options()), Arc::clone(&self.rig.clock));
        for entry in self.rig.bus.kv_list(Bucket::State, "").await.unwrap() {
            bus.kv_put(Bucket::State, &entry.key, entry.value).await.unwrap();
        }
        self.rig.bus = bus;
    }

    fn gaps(&self) -> Vec<Logged> {
        let all = self.rig.everything().into_iter();
        all.filter(|event| event.body["type"] == "simcast.gap").collect()
    }

    /// Ids of events that carry the flag.
    fn repaired(&self) -> BTreeSet<String> {
        let all = self.rig.logged().into_iter();
        all.filter(|event| event.has("repaired")).map(|event| event.id).collect()
    }
}

async fn done(run: &mut Run) -> Repair {
    run.until("repaired", |status| status.repair.damaged > 0 && status.repair.pending == 0).await;
    run.status.borrow().repair
}

/// Damage that a reader meets while everything runs.
async fn comes_back_once(faults: Faults) {
    let it = Damaged::new(faults).await;
    let mut run = it.filled().await;
    let before = it.rig.logged().len();
    let ids = it.damage(40);
    assert!(ids.len() > 5);
    assert_eq!(it.rig.logged().len(), before - ids.len(), "what is damaged is not delivered");
    it.maintain().await;
    let repair = done(&mut run).await;
    let count = ids.len() as u64;
    assert_eq!(repair, Repair { damaged: count, pending: 0, repaired: count, lost: 0 });
    assert_eq!(it.rig.settled().await.len(), before);
    assert_eq!(it.repaired(), ids);
    assert_eq!(it.gaps().len(), 0);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn damaged_events_come_back_once() {
    comes_back_once(Faults::default()).await;
}

#[tokio::test(start_paused = true)]
async fn damaged_events_come_back_from_a_list_without_order() {
    comes_back_once(Faults { order: faults::Order::Unsorted, ..Faults::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn damaged_events_come_back_from_an_upstream_with_days_of_its_own() {
    let lists = faults::Lists {
        day_offset_minutes: 600,
        start_date_exclusive: true,
        end_date_exclusive: true,
        ..faults::Lists::default()
    };
    comes_back_once(Faults { order: faults::Order::Oldest, lists, ..Faults::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn damage_found_at_a_start_is_repaired_though_its_index_is_gone_too() {
    for has_index in [true, false] {
        let mut it = Damaged::new(Faults::default()).await;
        let run = it.filled().await;
        let before = it.rig.logged().len();
        run.stop().await;
        it.maintain().await;
        let ids = it.damage(60);
        it.restart(|name| !has_index && name.ends_with(".idx")).await;
        it.maintain().await;
        let mut run = it.rig.run();
        let repair = done(&mut run).await;
        assert_eq!((repair.repaired, repair.lost), (ids.len() as u64, 0), "index {has_index}");
        assert_eq!(it.rig.settled().await.len(), before);
        // Where ids are lost too, what another reader found first can't be told from a late row.
        let repaired = it.repaired();
        assert!(if has_index { repaired == ids } else { repaired.is_subset(&ids) && !repaired.is_empty() });
        assert_eq!(it.gaps().len(), 0);
        run.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_upstream_forgot_meanwhile_is_announced_once_with_its_bounds() {
    let mut it = Damaged::new(Faults::default()).await;
    let mut run = it.filled().await;
    let all = it.rig.logged();
    let ids = it.damage(30);
    // Upstream forgets the older half.
    let gone = all.len() / 2;
    it.rig.sim.remove_oldest(gone);
    let truth = it.rig.sim.truth();
    let removed: BTreeSet<_> =
        truth.iter().filter(|t| t.removed_at.is_some()).filter_map(|t| t.event_id.clone()).collect();
    let lost: Vec<_> =
        all.iter().filter(|event| ids.contains(&event.id) && removed.contains(&event.id)).collect();
    assert!(lost.len() > 2 && lost.len() < ids.len());
    it.rig.logged();
    it.maintain().await;
    let repair = done(&mut run).await;
    assert_eq!((repair.repaired, repair.lost), ((ids.len() - lost.len()) as u64, lost.len() as u64));
    let expected: BTreeSet<_> = ids.difference(&removed).cloned().collect();
    assert_eq!(it.repaired(), expected);
    let check = |gaps: &[Logged]| {
        let field = |gap: &Logged, name: &str| gap.data("extra")[name].clone();
        let announced: u64 = gaps.iter().map(|gap| field(gap, "lost").as_u64().unwrap()).sum();
        assert_eq!(announced, lost.len() as u64);
        for gap in gaps {
            assert_eq!(field(gap, "reason"), "corruption");
        }
        for event in &lost {
            let time = event.body["time"].as_str().unwrap();
            let within = |gap: &Logged| {
                let bound = |name| field(gap, name).as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
                (bound("from_time")..=bound("to_time")).contains(&time.parse().unwrap())
            };
            assert!(gaps.iter().any(within), "{time}");
        }
    };
    let gaps = it.gaps();
    check(&gaps);
    run.stop().await;

    for _ in 0..2 {
        it.restart(|_| false).await;
        it.maintain().await;
        let state = it.rig.bus.kv_get(Bucket::State, "repair").await.unwrap().unwrap();
        let mut run = it.rig.run();
        assert_eq!(done(&mut run).await.lost, lost.len() as u64);
        run.seen(it.rig.clock.now()).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let after = it.rig.bus.kv_get(Bucket::State, "repair").await.unwrap().unwrap();
        assert_eq!(after.revision, state.revision, "no repair was begun");
        assert_eq!(it.gaps().len(), gaps.len(), "nothing is announced again");
        run.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_was_full_for_a_while_costs_nothing() {
    let it = Damaged::new(Faults::default()).await;
    let mut run = it.filled().await;
    let before = it.rig.logged().len();
    for space in [0, 500, 3_000] {
        it.disk.leave_space(Some(space));
        for _ in 0..15 {
            it.rig.sim.inject(EventSpec::default());
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert!(it.rig.bus.health().unwritable.is_some());
        assert!(it.rig.logged().len() <= before + 45, "reads go on");
        it.disk.leave_space(None);
        it.rig.settled().await;
        assert_eq!(it.rig.bus.health().unwritable, None);
    }
    assert_eq!(it.rig.settled().await.len(), before + 45);
    run.seen(it.rig.clock.now()).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_damage_is_repaired_neither_loses_nor_doubles() {
    for seconds in [0, 1, 2, 3, 5, 8] {
        let mut it = Damaged::new(Faults::default()).await;
        let run = it.filled().await;
        let before = it.rig.logged().len();
        let ids = it.damage(25);
        it.rig.logged();
        it.maintain().await;
        // Long answers, so that there is an in-between.
        let transport =
            faults::Transport { slow: 1.0, slow_min_ms: 400, slow_max_ms: 900, ..Default::default() };
        it.rig.sim.set_faults(Faults { transport, ..Faults::default() });
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        run.stop().await;
        it.restart(|_| false).await;
        it.maintain().await;
        let mut run = it.rig.run();
        let repair = done(&mut run).await;
        assert_eq!((repair.repaired, repair.lost), (ids.len() as u64, 0), "after {seconds} s");
        assert_eq!(it.rig.settled().await.len(), before);
        assert_eq!(it.repaired(), ids);
        assert_eq!(it.gaps().len(), 0);
        run.stop().await;
    }
}
