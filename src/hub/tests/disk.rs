//! What subscribers see of a disk that fills up or does not confirm: nothing that was not durable, and after a full disk
//! everything once.

use super::*;
use crate::{
    bus::{AppendError, Appended, Bus, NewEvent, conformance::event, embedded::Embedded},
    clock,
    log::{
        Options,
        testing::{MemoryDisk, open_on},
    },
    observability::health::Readiness,
};

struct Gateway {
    disk: Arc<MemoryDisk>,
    bus: Arc<Embedded>,
    live: Subscription,
    _stop: CancellationToken,
}

async fn gateway() -> Gateway {
    let disk = Arc::new(MemoryDisk::default());
    let options = Options { incarnation: 7, segment_bytes: 3_000, recent_bytes: 1_000, ..Options::default() };
    let bus = Embedded::on_log(open_on(&disk, options), clock::system());
    let (hub, _stop) = start_hub(Config::default(), bus.log());
    let live = hub.subscribe(spec(Encoding::WebSocket, json!({}), Start::Now)).await.unwrap();
    Gateway { disk, bus, live, _stop }
}

fn batch(numbers: std::ops::Range<u64>) -> Vec<NewEvent> {
    numbers.map(|n| event(&format!("evt_{n}"))).collect()
}

fn names(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| format!("evt_{n}")).collect()
}

impl Gateway {
    fn status(&self) -> u16 {
        Readiness::judge(&self.bus.health(), false, Vec::new()).status().as_u16()
    }

    /// What the live subscriber gets within a moment.
    async fn delivered(&mut self) -> Vec<String> {
        let mut got = Vec::new();
        while let Ok(delivery) =
            tokio::time::timeout(std::time::Duration::from_millis(30), self.live.next()).await
        {
            match delivery {
                Delivery::Batch(batch) => got.extend(ids(&batch)),
                Delivery::CaughtUp(_) => {}
                other => panic!("{other:?}"),
            }
        }
        got
    }

    /// Reads everything from the log, as history does.
    fn stored(&self) -> Vec<String> {
        expected(self.bus.log(), &predicate(json!({})), 0)
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_everything_is_delivered_once_when_there_is_room() {
    let mut it = gateway().await;
    it.bus.append(batch(0..3), None).await.unwrap();
    assert_eq!((it.delivered().await, it.status()), (names(0..3), 200));
    // Room for nothing, for half of a record, for one of two records, and for a new segment's header.
    for space in [0, 100, 700, 1_200] {
        it.disk.leave_space(Some(space));
        let refused = it.bus.append(batch(3..9), None).await.unwrap_err();
        assert!(matches!(refused, AppendError::Unavailable(_)) && refused.retryable(), "{refused}");
        assert_eq!(it.status(), 503, "{:?}", it.bus.health());
        assert_eq!(it.stored(), names(0..3), "what is stored can be read");
        assert_eq!(it.bus.append(batch(0..3), None).await.unwrap().len(), 3, "what is known needs no room");
        assert_eq!(it.delivered().await, [""; 0]);
    }
    it.disk.leave_space(None);
    assert!(
        it.bus.append(batch(3..9), None).await.unwrap().iter().all(|one| matches!(one, Appended::Stored(_)))
    );
    assert_eq!((it.delivered().await, it.stored()), (names(3..9), names(0..9)));
    assert_eq!((it.status(), it.bus.health().unwritable), (200, None));
    assert!(
        it.bus.append(batch(3..9), None).await.unwrap().iter().all(|one| matches!(one, Appended::Known(_)))
    );
}

#[tokio::test]
async fn what_the_disk_did_not_confirm_is_never_delivered_and_nothing_is_written_after_it() {
    let mut it = gateway().await;
    it.bus.append(batch(0..3), None).await.unwrap();
    assert_eq!(it.delivered().await, names(0..3));
    it.disk.fail_sync(true);
    assert!(it.bus.append(batch(3..6), None).await.is_err());
    it.disk.fail_sync(false);
    for _ in 0..3 {
        let refused = it.bus.append(batch(6..7), None).await.unwrap_err();
        assert!(refused.to_string().contains("restart"), "{refused}");
    }
    assert_eq!(it.status(), 503);
    assert!(it.bus.health().unwritable.unwrap().contains("restart"));
    assert_eq!(it.delivered().await, [""; 0], "a live reader saw what was never confirmed");
    assert_eq!((it.stored(), *it.bus.log().edge().borrow()), (names(0..3), 3), "reads go on");
    // After the restart it is there or not, and each is there once.
    let log = open_on(&it.disk, Options { incarnation: 7, segment_bytes: 3_000, ..Options::default() });
    let bus = Embedded::on_log(log, clock::system());
    bus.append(batch(3..7), None).await.unwrap();
    let mut stored = expected(bus.log(), &predicate(json!({})), 0);
    stored.sort_unstable();
    assert_eq!(stored, names(0..7));
}
