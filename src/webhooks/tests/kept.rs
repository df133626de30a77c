//! What retention leaves for a webhook that is behind, and what it tells of the rest.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::rig::Rig;
use crate::{
    bus::{
        Bus,
        embedded::{self, Embedded},
    },
    clock::{self, SharedClock, TokioClock},
    webhooks::{
        endpoint::Condition,
        notices,
        service::ReplayRequest,
        store::Only,
        testing::{Act, Receiver},
    },
};

/// A log of small segments, so that retention goes by few events.
fn config() -> embedded::Config {
    embedded::Config {
        segment_bytes: 2_000,
        retention_bytes: 40_000,
        has_reader: true,
        ..embedded::Config::default()
    }
}

fn numbers(receiver: &Receiver) -> Vec<u64> {
    let ids = receiver.requests();
    ids.iter().map(|got| got.header("webhook-id").unwrap()[1..].parse().unwrap()).collect()
}

#[tokio::test]
async fn retention_waits_for_a_webhook_up_to_twice_its_size_and_tells_what_it_passed() {
    const FIRST: u64 = 30;
    let clock = clock::system();
    let bus = Embedded::open(config(), clock.clone()).unwrap();
    let rig = Rig::on(bus.clone(), Vec::new(), clock.clone(), None);
    let log = bus.log();
    let tidy = || log.maintain(clock.now()).unwrap();
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let (shown, _) = rig.create(rig.settings(&receiver)).await;
    let id = shown.endpoint.id.clone();
    let gateway = rig.serve();
    rig.append(0..FIRST).await;
    rig.until("the first arrived", || receiver.requests().len() as u64 == FIRST).await;
    rig.webhooks.pause(&rig.admin, &id).await.unwrap();
    rig.until_condition(&id, Condition::Paused).await;
    let mut appended = FIRST;
    // Room is made where the webhook has been, once the supervisor has said how far that is, and only there.
    while log.begins_at() == 1 {
        assert!(appended < 1_000, "retention removes nothing at all");
        rig.append(appended..appended + 5).await;
        appended += 5;
        tokio::time::sleep(Duration::from_millis(20)).await;
        tidy();
    }
    while log.begins_at() <= FIRST + 1 {
        assert!(appended < 1_000, "retention waits for ever");
        rig.append(appended..appended + 5).await;
        appended += 5;
        tidy();
    }
    let (begins_at, kept_when_passed) = (log.begins_at(), log.bounds().events);
    // What the hub had in memory for it is gone with the process.
    gateway.kill().await;
    rig.reopen();
    let gateway = rig.serve();
    rig.webhooks.resume(&rig.admin, &id).await.unwrap();
    let rest = || numbers(&receiver).split_off(FIRST as usize);
    rig.until("the rest arrived", || rest().len() as u64 > appended - begins_at).await;
    // Event n has sequence n + 1.
    let mut arrived = rest();
    arrived.sort_unstable();
    assert_eq!(arrived, (begins_at - 1..appended).collect::<Vec<_>>());
    let told: Vec<_> = (begins_at..=log.bounds().last_seq)
        .filter_map(|seq| notices::read_dead_letter(&log.get(seq).unwrap()?))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].lost, told[0].reason.as_str()), (Some(begins_at - 1 - FIRST), "retention"));
    assert_eq!(rig.types().iter().filter(|one| *one == "simcast.gap").count(), 1);
    // Who has caught up holds nothing.
    let before = log.bounds().events;
    rig.until("retention goes by its own size again", || {
        tidy();
        log.bounds().events < before
    })
    .await;
    let kept = log.bounds().events;
    let factor = kept_when_passed as f64 / kept as f64;
    assert!((1.7..=2.2).contains(&factor), "{kept_when_passed} were kept while it waited, {kept} without");
    gateway.stop().await;
}

/// The first turn of retention comes before anybody could say what is still to be sent.
#[tokio::test]
async fn a_restart_days_later_removes_nothing_that_is_still_to_be_sent() {
    let dir = tempfile::tempdir().unwrap();
    let config = || embedded::Config { path: Some(dir.path().to_owned()), ..config() };
    let on_day = |day: i64| -> SharedClock {
        Arc::new(TokioClock::starting_at(Timestamp::from_second(1_760_000_000 + day * 86_400).unwrap()))
    };
    let clock = on_day(0);
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let id = {
        let rig = Rig::on(Embedded::open(config(), clock.clone()).unwrap(), Vec::new(), clock.clone(), None);
        let (shown, _) = rig.create(rig.settings(&receiver)).await;
        rig.webhooks.pause(&rig.admin, &shown.endpoint.id).await.unwrap();
        rig.append(0..60).await;
        rig.bus().shutdown().await;
        shown.endpoint.id.clone()
    };
    let clock = on_day(8);
    let bus = Embedded::open(config(), clock.clone()).unwrap();
    bus.log().maintain(clock.now()).unwrap();
    let rig = Rig::on(bus.clone(), Vec::new(), clock.clone(), None);
    let gateway = rig.serve();
    rig.webhooks.resume(&rig.admin, &id).await.unwrap();
    rig.until("all arrived", || receiver.requests().len() == 60).await;
    gateway.stop().await;
    bus.log().hold(None);
    bus.log().maintain(clock.now()).unwrap();
    assert!(bus.log().begins_at() > 1, "all of it was older than is kept");
}

/// What a replay passes over is counted: one event that was asked for by its id, and positions of what is read in order,
/// events or notices.
#[tokio::test]
async fn a_replay_of_what_is_gone_says_how_much_of_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let config = || embedded::Config { path: Some(dir.path().to_owned()), ..config() };
    let clock = clock::system();
    let receiver = Receiver::deciding(|got| match got.header("webhook-id") {
        Some("e0") => Act::Status(500),
        _ => Act::Status(200),
    })
    .await;
    let bus = Embedded::open(config(), clock.clone()).unwrap();
    let rig = Rig::on(bus.clone(), Vec::new(), clock.clone(), None);
    let mut settings = rig.settings(&receiver);
    settings.retry_schedule = vec![0];
    let (shown, _) = rig.create(settings).await;
    let id = shown.endpoint.id.clone();
    let gateway = rig.serve();
    let settled = |count: u64| {
        rig.any_live().is_some_and(|live| {
            let totals = live.core.lock().totals.clone();
            totals.delivered + totals.dead_lettered == count
        })
    };
    rig.append(0..10).await;
    rig.until("the first are settled", || settled(10)).await;
    rig.append(10..100).await;
    rig.until("all are settled", || settled(100)).await;
    gateway.stop().await;
    // Asked for before, done after: as a replay that waits for its turn, or for a gateway.
    let all = rig.webhooks.replay(&rig.admin, &id, ReplayRequest::default()).await.unwrap();
    let failed = ReplayRequest { only: Only::Failed, ..ReplayRequest::default() };
    let failed = rig.webhooks.replay(&rig.admin, &id, failed).await.unwrap();
    let one = rig.webhooks.retry(&rig.admin, &id, "dlv_1").await.unwrap();
    assert_eq!((all.count, failed.count, one.count), (100, 1, 1));
    let log = bus.log();
    log.hold(None);
    log.maintain(clock.now()).unwrap();
    let (begins_at, last) = (log.begins_at(), log.bounds().last_seq);
    assert!((15..80).contains(&begins_at), "the notice is gone, and some of the rest: {begins_at}");
    // Not from memory either.
    bus.shutdown().await;
    drop((rig, bus));
    let rig = Rig::on(Embedded::open(config(), clock.clone()).unwrap(), Vec::new(), clock.clone(), None);
    let gateway = rig.serve();
    let mut ended = Vec::new();
    for replay in [&all, &failed, &one] {
        rig.until_replayed(&id, &replay.id).await;
        let done = rig.webhooks.get_replay(&rig.admin, &id, &replay.id).await.unwrap();
        ended.push((done.progress.delivered, done.progress.skipped, done.progress.lost));
    }
    assert_eq!(ended, [(last + 1 - begins_at, 0, begins_at - 1), (0, 0, begins_at - 1), (0, 1, 0)]);
    gateway.stop().await;
}
