//! Members who come, go and are suspended, on one store under a paused clock.

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::*;
use crate::{
    bus::{AppendError, Appended, Change, Entry, Fence, Health, Lease, NewEvent, embedded::Embedded},
    clock,
    log::Log,
};

/// An embedded bus that says it is shared.
#[derive(Debug)]
struct Shared(Arc<Embedded>);

#[async_trait]
impl Bus for Shared {
    async fn append(&self, batch: Vec<NewEvent>, fence: Option<Fence>) -> Result<Vec<Appended>, AppendError> {
        self.0.append(batch, fence).await
    }

    fn log(&self) -> &Arc<Log> {
        self.0.log()
    }

    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<Entry>, KvError> {
        self.0.kv_get(bucket, key).await
    }

    async fn kv_create(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.0.kv_create(bucket, key, value).await
    }

    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, at: u64) -> Result<u64, KvError> {
        self.0.kv_update(bucket, key, value, at).await
    }

    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.0.kv_put(bucket, key, value).await
    }

    async fn kv_delete(&self, bucket: Bucket, key: &str, revision: u64) -> Result<(), KvError> {
        self.0.kv_delete(bucket, key, revision).await
    }

    async fn kv_list(&self, bucket: Bucket, prefix: &str) -> Result<Vec<Entry>, KvError> {
        self.0.kv_list(bucket, prefix).await
    }

    async fn kv_watch(&self, bucket: Bucket, prefix: &str) -> Result<mpsc::Receiver<Change>, KvError> {
        self.0.kv_watch(bucket, prefix).await
    }

    async fn lease(&self, name: &str, ttl: Duration) -> Result<Lease, KvError> {
        self.0.lease(name, ttl).await
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn health(&self) -> Health {
        self.0.health()
    }

    async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

fn seat(bus: &Arc<dyn Bus>, me: &str) -> (Members, Seat) {
    let members = Members::new(bus.clone(), me.to_owned());
    let seat = Seat { me: members.0.clone(), bus: bus.clone(), revision: None, seen: BTreeMap::new() };
    (members, seat)
}

/// Turns of those who are awake, for so long.
async fn pass(time: Duration, seats: &mut [&mut Seat]) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        for seat in seats.iter_mut() {
            seat.turn().await;
        }
        tokio::time::sleep(RENEW).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_taken_for_dead_owns_nothing_of_before_however_late_it_notices() {
    let bus: Arc<dyn Bus> = Arc::new(Shared(Embedded::in_memory(clock::system())));
    let ((a, mut seat_a), (b, mut seat_b)) = (seat(&bus, "a"), seat(&bus, "b"));
    pass(RENEW * 2, &mut [&mut seat_a, &mut seat_b]).await;
    let term = a.term();
    assert!(a.holds(term) && b.valid() && !b.may_take("a").await.unwrap());
    // A moment in which it can't write costs it nothing.
    pass(VALID, &mut [&mut seat_b]).await;
    assert!(!a.holds(term) && !b.may_take("a").await.unwrap(), "it has stopped before anybody follows");
    seat_a.turn().await;
    assert!(a.holds(term));
    // Suspended for longer than it is waited for.
    pass(TTL + RENEW * 2, &mut [&mut seat_b]).await;
    assert!(!a.holds(term) && b.may_take("a").await.unwrap());
    // It is back, and nobody has looked at it meanwhile: what it owned is not its own.
    pass(RENEW * 2, &mut [&mut seat_a]).await;
    assert!(a.valid() && !a.holds(term) && a.holds(a.term()));
    // A stop gives everything up at once.
    seat_b.leave().await;
    assert!(!b.valid());
    seat_a.turn().await;
    assert!(a.may_take("b").await.unwrap());
}

/// It may own something before the others have looked.
#[tokio::test(start_paused = true)]
async fn a_member_who_is_new_is_not_taken_for_one_who_is_gone() {
    let bus: Arc<dyn Bus> = Arc::new(Shared(Embedded::in_memory(clock::system())));
    let ((a, mut seat_a), (_, mut seat_b)) = (seat(&bus, "a"), seat(&bus, "b"));
    seat_a.turn().await;
    assert!(a.may_take("b").await.unwrap());
    seat_b.turn().await;
    assert!(!a.watch().borrow().contains(&"b".to_owned()), "it has not looked since");
    assert!(!a.may_take("b").await.unwrap());
}

#[test]
fn a_member_who_leaves_moves_only_its_own_endpoints() {
    let members = |n: usize| (0..n).map(|n| format!("m{n}")).collect::<Vec<_>>();
    let (four, three) = (members(4), members(3));
    let mut shares = BTreeMap::new();
    for n in 0..4_000 {
        let endpoint = format!("whk_{n}");
        let (before, after) = (choose(&endpoint, &four).unwrap(), choose(&endpoint, &three).unwrap());
        *shares.entry(before.clone()).or_insert(0) += 1;
        if before != "m3" {
            assert_eq!(before, after, "{endpoint}");
        }
    }
    assert!(shares.values().all(|share| (900..1_100).contains(share)), "{shares:?}");
    assert_eq!(choose("whk_1", &[]), None);
}
