//! Webhooks from end to end: a log, a hub, the real way out, receivers that misbehave.

mod gateways;
mod kept;
mod long;
mod positions;
mod rig;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering as Atomic},
    time::Duration,
};

use serde_json::Value;

use super::{
    endpoint::{BatchRule, Condition, Ordering},
    service::{ReplayRequest, Status},
    store::{Only, ReplayState},
    testing::{Act, Receiver},
    *,
};
use crate::{
    event::Start,
    webhooks::signature::{Secret, verify},
};
use rig::{Rig, filter};

#[tokio::test]
async fn events_arrive_once_signed_and_with_their_ids() {
    let rig = Rig::new();
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let (shown, secret) = rig.create(rig.settings(&receiver)).await;
    let gateway = rig.serve();
    rig.append(0..300).await;
    rig.until("all arrived", || receiver.requests().len() >= 300).await;
    let got = receiver.requests();
    assert_eq!(got.len(), 300);
    let secrets = [Secret::parse(&secret).unwrap()];
    let mut ids = Vec::new();
    for request in &got {
        let id = request.header("webhook-id").unwrap();
        let at = request.header("webhook-timestamp").unwrap();
        assert!(verify(&secrets, id, at, request.header("webhook-signature").unwrap(), &request.body));
        assert_eq!(request.header("content-type"), Some("application/cloudevents+json"));
        assert!(request.header("user-agent").unwrap().starts_with("simcast/"));
        let event: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(event["id"], id);
        ids.push(id.to_owned());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 300);
    rig.until("counted", || {
        rig.live(&shown.endpoint.id).is_some_and(|live| live.core.lock().totals.delivered == 300)
    })
    .await;
    let stats = rig.webhooks.stats(&rig.admin, &shown.endpoint.id).await.unwrap();
    assert_eq!((stats.behind, stats.pending, stats.totals.delivered), (0, 0, 300));
    assert_eq!(stats.totals.attempts, BTreeMap::from([("2xx".to_owned(), 300)]));
    assert!(stats.totals.latency.quantile(0.5).is_some());
    gateway.stop().await;
}

#[tokio::test]
async fn a_gateway_that_is_killed_sends_again_at_most_what_was_settled_since_the_last_copy() {
    let rig = Rig::new();
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let (shown, _) = rig.create(rig.settings(&receiver)).await;
    let id = shown.endpoint.id.clone();
    let mut appended = 0;
    // What each copy that a kill left behind held to be settled, and how many requests had been seen by then.
    let mut copies: Vec<(usize, std::collections::BTreeSet<String>)> = Vec::new();
    for round in 0..8 {
        let gateway = rig.serve();
        rig.append(appended..appended + 120).await;
        appended += 120;
        rig.until("some arrived", || receiver.requests().len() as u64 > round * 60).await;
        tokio::time::sleep(Duration::from_millis(75 * round)).await;
        gateway.kill().await;
        let saved = rig.store().checkpoint(&id).await.unwrap().unwrap().value.live;
        let pending: Vec<u64> = saved.pending.iter().flat_map(|unit| unit.members.iter().copied()).collect();
        // Event n has sequence n + 1.
        let settled =
            (1..=saved.cursor).filter(|seq| !pending.contains(seq)).map(|seq| format!("e{}", seq - 1));
        copies.push((receiver.requests().len(), settled.collect()));
        rig.reopen();
    }
    let gateway = rig.serve();
    let ids = || -> Vec<String> {
        receiver.requests().iter().map(|got| got.header("webhook-id").unwrap().to_owned()).collect()
    };
    let distinct = || ids().into_iter().collect::<std::collections::BTreeSet<_>>().len() as u64;
    rig.until("all arrived", || distinct() == appended).await;
    let ids = ids();
    for (seen, settled) in &copies {
        let again: Vec<_> = ids[*seen..].iter().filter(|id| settled.contains(*id)).collect();
        assert!(again.is_empty(), "sent although a copy held them to be settled: {again:?}");
    }
    // Those who lived for more than the window left such a copy.
    assert!(copies.last().unwrap().1.len() as u64 >= appended - 120, "{:?}", copies.last().unwrap().1.len());
    assert!(ids.len() as u64 > appended, "some was sent again");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let saved = rig.store().checkpoint(&shown.endpoint.id).await.unwrap().unwrap().value;
    assert_eq!((saved.live.cursor, saved.live.pending.len()), (appended, 0));
    gateway.stop().await;
    let released = rig.store().checkpoint(&shown.endpoint.id).await.unwrap().unwrap().value;
    assert_eq!(released.owner, "");
}

#[tokio::test]
async fn order_is_kept_per_sim_and_strictly_while_attempts_fail() {
    for ordering in [Ordering::PerSim, Ordering::Strict] {
        let rig = Rig::new();
        let n = AtomicUsize::new(0);
        // Every third request fails.
        let receiver = Receiver::start(move |_| match n.fetch_add(1, Atomic::Relaxed) % 3 {
            2 => Act::Status(500),
            _ => Act::After(2, 200),
        })
        .await;
        let mut settings = rig.settings(&receiver);
        (settings.ordering, settings.retry_schedule) = (ordering, vec![0; 20]);
        rig.create(settings).await;
        let gateway = rig.serve();
        rig.append(0..200).await;
        let delivered = || rig.any_live().is_some_and(|live| live.core.lock().totals.delivered == 200);
        rig.until("all delivered", delivered).await;
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        for request in receiver.requests() {
            let event: Value = serde_json::from_slice(&request.body).unwrap();
            let sim = event["subject"].as_str().unwrap().to_owned();
            let lane = if ordering == Ordering::Strict { String::new() } else { sim };
            let number: u64 = event["id"].as_str().unwrap().trim_start_matches('e').parse().unwrap();
            let before = last.insert(lane, number);
            assert!(before.is_none_or(|before| before <= number), "{number} after {before:?}");
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn batches_go_as_arrays_under_one_id_that_stays() {
    let rig = Rig::new();
    let failed = AtomicBool::new(false);
    let receiver = Receiver::start(move |_| match failed.swap(true, Atomic::Relaxed) {
        false => Act::Status(503),
        true => Act::Status(200),
    })
    .await;
    let mut settings = rig.settings(&receiver);
    settings.batch = Some(BatchRule { max_events: 10, max_wait_ms: 200 });
    settings.retry_schedule = vec![0, 0, 0];
    settings.max_in_flight = 1;
    rig.create(settings).await;
    let gateway = rig.serve();
    rig.append(0..25).await;
    rig.until("all delivered", || rig.any_live().is_some_and(|live| live.core.lock().totals.delivered == 25))
        .await;
    let got = receiver.requests();
    let mut by_id: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for request in got {
        assert_eq!(request.header("content-type"), Some("application/cloudevents-batch+json"));
        let events: Vec<Value> = serde_json::from_slice(&request.body).unwrap();
        assert!(events.len() <= 10);
        by_id.entry(request.header("webhook-id").unwrap().to_owned()).or_default().push(request.body);
    }
    assert!(by_id.keys().all(|id| id.starts_with("batch_")));
    assert!(by_id.values().any(|bodies| bodies.len() == 2), "one was sent again");
    assert!(
        by_id.values().all(|bodies| bodies.windows(2).all(|pair| pair[0] == pair[1])),
        "with the same members"
    );
    let events: usize =
        by_id.values().map(|bodies| serde_json::from_slice::<Vec<Value>>(&bodies[0]).unwrap().len()).sum();
    assert_eq!(events, 25);
    gateway.stop().await;
}

#[tokio::test]
async fn what_fails_for_good_is_dead_lettered_seen_and_replayed() {
    let rig = Rig::new();
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let receiver = Receiver::deciding(move |got| {
        let event: Value = serde_json::from_slice(&got.body).unwrap();
        let number: u64 = event["id"].as_str().unwrap().trim_start_matches('e').parse().unwrap_or(1);
        if is_broken.load(Atomic::Relaxed) && number.is_multiple_of(10) {
            Act::Status(500)
        } else {
            Act::Status(200)
        }
    })
    .await;
    let mut settings = rig.settings(&receiver);
    settings.retry_schedule = vec![0, 0];
    let (shown, _) = rig.create(settings).await;
    let id = shown.endpoint.id.clone();
    let gateway = rig.serve();
    rig.append(0..100).await;
    let totals = || rig.any_live().map(|live| live.core.lock().totals.clone()).unwrap_or_default();
    rig.until("all settled", || totals().delivered == 90 && totals().dead_lettered == 10).await;
    let dead = rig.webhooks.deliveries(&rig.admin, &id, Some(Status::DeadLettered), None, 4).await.unwrap();
    assert_eq!(dead.deliveries.len(), 4);
    let more = rig
        .webhooks
        .deliveries(&rig.admin, &id, Some(Status::DeadLettered), dead.next.as_deref(), 100)
        .await
        .unwrap();
    assert_eq!((more.deliveries.len(), more.next), (6, None));
    assert!(dead.deliveries.iter().all(|one| one.attempts == 2 && one.last_error.as_deref() == Some("500")));
    let (one, attempts) = rig.webhooks.delivery(&rig.admin, &id, &dead.deliveries[0].id).await.unwrap();
    assert_eq!((one.status, attempts.len()), (Status::DeadLettered, 2));
    // Counted, then replayed by one call.
    let failed = ReplayRequest { only: Only::Failed, dry_run: true, ..ReplayRequest::default() };
    assert_eq!(rig.webhooks.replay(&rig.admin, &id, failed.clone()).await.unwrap().count, 10);
    broken.store(false, Atomic::Relaxed);
    let replay =
        rig.webhooks.replay(&rig.admin, &id, ReplayRequest { dry_run: false, ..failed }).await.unwrap();
    rig.until_replayed(&id, &replay.id).await;
    let done = rig.webhooks.get_replay(&rig.admin, &id, &replay.id).await.unwrap();
    assert_eq!(
        (done.state, done.progress.delivered, done.progress.dead_lettered),
        (ReplayState::Done, 10, 0)
    );
    let replayed: Vec<_> =
        receiver.requests().into_iter().filter(|got| got.header("webhook-replay").is_some()).collect();
    assert_eq!(replayed.len(), 10);
    assert!(replayed.iter().all(|got| got.header("webhook-replay") == Some(replay.id.as_str())));
    // All, by filter, and one alone.
    let only_one_sim = ReplayRequest {
        filter: filter(&serde_json::json!({"iccid": [rig::ICCIDS[0]]})),
        ..ReplayRequest::default()
    };
    let part = rig.webhooks.replay(&rig.admin, &id, only_one_sim).await.unwrap();
    rig.until_replayed(&id, &part.id).await;
    let part = rig.webhooks.get_replay(&rig.admin, &id, &part.id).await.unwrap();
    assert_eq!((part.count, part.progress.delivered), (34, 34));
    let again = rig.webhooks.retry(&rig.admin, &id, &dead.deliveries[0].id).await.unwrap();
    rig.until_replayed(&id, &again.id).await;
    assert_eq!(
        receiver
            .requests()
            .iter()
            .filter(|got| got.header("webhook-replay") == Some(again.id.as_str()))
            .count(),
        1
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_disables_its_endpoint_and_nothing_is_lost() {
    let rig = Rig::new();
    let gone = Arc::new(AtomicBool::new(true));
    let is_gone = gone.clone();
    let receiver =
        Receiver::deciding(
            move |_| if is_gone.load(Atomic::Relaxed) { Act::Status(410) } else { Act::Status(200) },
        )
        .await;
    let (shown, _) = rig.create(rig.settings(&receiver)).await;
    let id = shown.endpoint.id.clone();
    let gateway = rig.serve();
    rig.append(0..50).await;
    rig.until_condition(&id, Condition::Disabled).await;
    let tried = receiver.requests().len();
    assert!((1..=16).contains(&tried), "{tried}");
    rig.append(50..60).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(receiver.requests().len(), tried, "nothing is sent");
    assert!(rig.types().contains(&notices::DISABLED.to_owned()));
    gone.store(false, Atomic::Relaxed);
    rig.webhooks.resume(&rig.admin, &id).await.unwrap();
    rig.until("all delivered", || rig.any_live().is_some_and(|live| live.core.lock().totals.delivered == 60))
        .await;
    gateway.stop().await;
}

#[tokio::test]
async fn pausing_seeking_and_changing_lose_and_repeat_nothing_else() {
    let rig = Rig::new();
    let (one, two) =
        (Receiver::start(|_| Act::Status(200)).await, Receiver::start(|_| Act::Status(200)).await);
    let (shown, first) = rig.create(rig.settings(&one)).await;
    let id = shown.endpoint.id.clone();
    let gateway = rig.serve();
    rig.append(0..20).await;
    rig.until("delivered", || one.requests().len() == 20).await;
    rig.webhooks.pause(&rig.admin, &id).await.unwrap();
    rig.until_condition(&id, Condition::Paused).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.append(20..40).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(one.requests().len(), 20);
    // Another receiver, one more secret, fewer events; then on.
    let url = two.url();
    let merged = rig.webhooks.update(&rig.admin, &id, |mut settings| {
        settings.url.clone_from(&url);
        settings.filter = filter(&serde_json::json!({"iccid": [rig::ICCIDS[0]]}));
        Ok(settings)
    });
    merged.await.unwrap();
    let (_, second) = rig.webhooks.rotate_secret(&rig.admin, &id, service::OVERLAP, None).await.unwrap();
    rig.webhooks.resume(&rig.admin, &id).await.unwrap();
    let expected = (20..40).filter(|n| n % 3 == 0).count();
    rig.until("the rest delivered", || two.requests().len() == expected).await;
    for request in two.requests() {
        let (id, at) = (request.header("webhook-id").unwrap(), request.header("webhook-timestamp").unwrap());
        for secret in [&first, &second] {
            let secrets = [Secret::parse(secret).unwrap()];
            assert!(verify(&secrets, id, at, request.header("webhook-signature").unwrap(), &request.body));
        }
    }
    // Back to the beginning.
    rig.webhooks.seek(&rig.admin, &id, Start::Earliest).await.unwrap();
    let all = (0..40).filter(|n| n % 3 == 0).count();
    rig.until("all of it again", || two.requests().len() == expected + all).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((one.requests().len(), two.requests().len()), (20, expected + all));
    let test = rig.webhooks.test(&rig.admin, &id).await.unwrap();
    assert!(test.delivered && test.attempt.status == Some(200));
    rig.webhooks.delete(&rig.admin, &id).await.unwrap();
    rig.until("cleared away", || rig.any_live().is_none()).await;
    rig.append(40..50).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(two.requests().len(), expected + all + 1);
    let left = rig.store().checkpoint(&id).await.unwrap();
    assert!(left.is_none(), "{left:?}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_receiver_that_hangs_is_probed_and_hurts_nobody() {
    let rig = Rig::new();
    let hanging = Receiver::start(|_| Act::HangBeforeHead).await;
    let healthy = Receiver::start(|_| Act::Status(200)).await;
    let mut slow = rig.settings(&hanging);
    slow.timeout_ms = 200;
    let (slow, _) = rig.create(slow).await;
    rig.create(rig.settings(&healthy)).await;
    let gateway = rig.serve();
    for n in 0..20 {
        rig.append(n * 10..n * 10 + 10).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.until("the healthy one has all", || healthy.requests().len() == 200).await;
    rig.until_condition(&slow.endpoint.id, Condition::Failing).await;
    assert!(hanging.requests().len() <= 32, "{}", hanging.requests().len());
    assert!(rig.types().contains(&notices::FAILING.to_owned()));
    let stats = rig.webhooks.stats(&rig.admin, &slow.endpoint.id).await.unwrap();
    assert!(stats.pending <= 96 && stats.behind > 100 && stats.lag_seconds > 0.0, "{stats:?}");
    gateway.stop().await;
}

#[tokio::test]
async fn what_an_endpoint_is_told_of_itself_stays_away_from_it() {
    let rig = Rig::new();
    let receiver = Receiver::start(|_| Act::Status(500)).await;
    let other = Receiver::start(|_| Act::Status(200)).await;
    let wanted = serde_json::json!({"event_type": ["connection", "simcast.webhook.dead_lettered"]});
    let mut own = rig.settings(&receiver);
    (own.filter, own.retry_schedule) = (filter(&wanted), vec![0]);
    rig.create(own).await;
    let mut watcher = rig.settings(&other);
    watcher.filter = filter(&serde_json::json!({"event_type": ["simcast.webhook.dead_lettered"]}));
    rig.create(watcher).await;
    let gateway = rig.serve();
    rig.append(0..5).await;
    rig.until("the other is told", || other.requests().len() == 5).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(receiver.requests().len(), 5, "five events, no notice");
    gateway.stop().await;
}

#[tokio::test]
async fn secrets_and_what_a_token_may_not_see() {
    let rig = Rig::with_tokens();
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let scoped = rig.principal("scoped");
    let mut settings = rig.settings(&receiver);
    settings.headers.insert("Authorization".into(), "Bearer receiver-secret".into());
    let (shown, secret) = rig.webhooks.create(&scoped, settings, Start::Earliest, None).await.unwrap();
    let id = shown.endpoint.id.clone();
    let entry =
        rig.store().bus().kv_get(crate::bus::Bucket::Endpoints, &store::key_of(&id)).await.unwrap().unwrap();
    let stored = String::from_utf8(entry.value.to_vec()).unwrap();
    assert!(!stored.contains(&secret[6..]) && !stored.contains("receiver-secret"), "{stored}");
    let gateway = rig.serve();
    rig.append(0..30).await;
    rig.until("its own SIM's", || receiver.requests().len() == 10).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(receiver.requests().len(), 10, "the token's filter holds");
    assert!(
        receiver.requests().iter().all(|got| got.header("authorization") == Some("Bearer receiver-secret"))
    );
    assert!(rig.webhooks.get(&rig.principal("other"), &id).await.is_err(), "another scoped token");
    assert!(rig.webhooks.get(&rig.admin, &id).await.is_ok());
    assert_eq!(rig.webhooks.list(&rig.principal("other")).await.unwrap().len(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn mistakes_are_told_with_their_field() {
    let rig = Rig::new();
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let good = || rig.settings(&receiver);
    let cases: Vec<(&str, endpoint::Settings)> = vec![
        ("url", endpoint::Settings { url: "http://10.0.0.1/".into(), ..good() }),
        ("url", endpoint::Settings { url: "ftp://example.com/".into(), ..good() }),
        ("max_in_flight", endpoint::Settings { max_in_flight: 0, ..good() }),
        ("timeout_ms", endpoint::Settings { timeout_ms: 5, ..good() }),
        ("retry_schedule", endpoint::Settings { retry_schedule: vec![], ..good() }),
        ("retry_schedule", endpoint::Settings { retry_schedule: vec![0; 21], ..good() }),
        ("rate_limit_per_second", endpoint::Settings { rate_limit_per_second: Some(0), ..good() }),
        (
            "batch.max_events",
            endpoint::Settings { batch: Some(BatchRule { max_events: 101, max_wait_ms: 0 }), ..good() },
        ),
        (
            "headers",
            endpoint::Settings { headers: BTreeMap::from([("webhook-id".into(), "x".into())]), ..good() },
        ),
        (
            "headers",
            endpoint::Settings { headers: BTreeMap::from([("x".into(), "a\r\nb: c".into())]), ..good() },
        ),
    ];
    for (field, settings) in cases {
        match rig.webhooks.create(&rig.admin, settings, Start::Now, None).await {
            Err(ServiceError::Invalid { field: told, .. }) => assert_eq!(told, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    let bad = rig.webhooks.create(&rig.admin, good(), Start::Now, Some("whsec_short".into())).await;
    assert!(matches!(bad, Err(ServiceError::Invalid { field, .. }) if field == "secret"));
}

#[tokio::test]
async fn a_replay_keeps_its_rate_survives_a_crash_and_can_be_cancelled() {
    let rig = Rig::new();
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let (shown, _) = rig.create(rig.settings(&receiver)).await;
    let id = shown.endpoint.id.clone();
    let gateway = rig.serve();
    rig.append(0..200).await;
    rig.until("all arrived", || receiver.requests().len() == 200).await;
    let slow = ReplayRequest { rate_limit_per_second: Some(100), ..ReplayRequest::default() };
    let replay = rig.webhooks.replay(&rig.admin, &id, slow.clone()).await.unwrap();
    let replayed = || {
        let got = receiver.requests();
        got.iter().filter(|got| got.header("webhook-replay") == Some(replay.id.as_str())).count()
    };
    let begun = std::time::Instant::now();
    rig.until("some replayed", || replayed() >= 60).await;
    let rate = replayed() as f64 / begun.elapsed().as_secs_f64();
    assert!(rate < 200.0, "{rate} a second");
    // A copy of where it stands, then the end of the process.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = replayed();
    gateway.kill().await;
    rig.reopen();
    let gateway = rig.serve();
    rig.until("the rest replayed", || {
        let ids: std::collections::BTreeSet<String> = (receiver.requests().iter())
            .filter(|got| got.header("webhook-replay") == Some(replay.id.as_str()))
            .map(|got| got.header("webhook-id").unwrap().to_owned())
            .collect();
        ids.len() == 200
    })
    .await;
    // At most what was settled in a window of 200 ms, at this rate, comes again.
    assert!(replayed() <= 200 + 60, "{} after {before}", replayed());
    rig.until_replayed(&id, &replay.id).await;
    // Another, cancelled on its way.
    let other = rig.webhooks.replay(&rig.admin, &id, slow).await.unwrap();
    let of_other = || {
        let got = receiver.requests();
        got.iter().filter(|got| got.header("webhook-replay") == Some(other.id.as_str())).count()
    };
    rig.until("the other begun", || of_other() >= 10).await;
    rig.webhooks.cancel_replay(&rig.admin, &id, &other.id).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = of_other();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(of_other(), sent, "nothing more is sent");
    assert!(sent < 200, "{sent}");
    let ended = rig.webhooks.get_replay(&rig.admin, &id, &other.id).await.unwrap();
    assert_eq!((ended.state, ended.ended_at.is_some()), (ReplayState::Cancelled, true));
    // What was written down of a SIM is forgotten on demand.
    let erased = rig.webhooks.erase(&rig.admin, rig::ICCIDS[0]).await.unwrap();
    assert!(erased >= 67, "{erased}");
    assert_eq!(rig.webhooks.erase(&rig.admin, rig::ICCIDS[0]).await.unwrap(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_replay_of_another_history_is_cancelled() {
    let rig = Rig::new();
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let (shown, _) = rig.create(rig.settings(&receiver)).await;
    let id = shown.endpoint.id.clone();
    let gateway = rig.serve();
    rig.append(0..5).await;
    rig.until("all arrived", || receiver.requests().len() == 5).await;
    let dry = ReplayRequest { dry_run: true, ..ReplayRequest::default() };
    let mut replay = rig.webhooks.replay(&rig.admin, &id, dry).await.unwrap();
    let mut cursor = crate::event::Cursor::parse(&replay.to_cursor).unwrap();
    cursor.incarnation ^= 1;
    (replay.id, replay.to_cursor) = ("rpl_foreign".to_owned(), cursor.to_string());
    rig.store().create_replay(&replay).await.unwrap();
    rig.until_replayed(&id, &replay.id).await;
    let ended = rig.webhooks.get_replay(&rig.admin, &id, &replay.id).await.unwrap();
    assert_eq!((ended.state, ended.ended_at.is_some()), (ReplayState::Cancelled, true));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(receiver.requests().len(), 5, "nothing of it was sent");
    gateway.stop().await;
}

/// The log is not the one of the checkpoint: what is missing is told on the stream, and all that is kept is sent.
#[tokio::test]
async fn what_was_gone_before_it_was_sent_is_told_and_the_rest_is_sent() {
    let rig = Rig::new();
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let (shown, _) = rig.create(rig.settings(&receiver)).await;
    let id = shown.endpoint.id.clone();
    rig.append(0..5).await;
    let store = rig.store();
    let mut found = store.checkpoint(&id).await.unwrap().unwrap();
    let mut cursor = crate::event::Cursor::parse(&found.value.cursor).unwrap();
    (cursor.incarnation, cursor.seq) = (cursor.incarnation ^ 1, 1_000);
    (found.value.cursor, found.value.live.cursor) = (cursor.to_string(), cursor.seq);
    store.save(&id, &found.value, found.revision).await.unwrap();
    let gateway = rig.serve();
    rig.until("all that is kept arrived", || receiver.requests().len() == 5).await;
    let types = rig.types();
    let count = |wanted: &str| types.iter().filter(|one| *one == wanted).count();
    assert_eq!((count(notices::DEAD_LETTERED), count("simcast.gap")), (1, 1), "{types:?}");
    gateway.stop().await;
}
