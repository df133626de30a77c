//! Hours and days, in moments: the clock is paused and receivers are a function.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::rig::Rig;
use crate::{
    event::Filter,
    webhooks::{
        endpoint::{SCHEDULE_S, Settings},
        outbound::Script,
        service::{ReplayRequest, Status},
        store::Only,
    },
};

fn settings() -> Settings {
    Settings::new("http://127.0.0.1:9999/hook", Filter::default())
}

#[tokio::test(start_paused = true)]
async fn the_whole_schedule_of_75_hours() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let rig = Rig::scripted(Script(Arc::new(move |headers, _| {
        seen.lock()
            .push((Instant::now(), headers["webhook-timestamp"].to_str().unwrap().parse::<i64>().unwrap()));
        assert_eq!(headers["webhook-id"], "e0");
        503
    })));
    let (shown, _) = rig.create(settings()).await;
    let gateway = rig.serve();
    rig.append(0..1).await;
    let begun = Instant::now();
    rig.eventually(|| rig.any_live().is_some_and(|live| live.core.lock().totals.dead_lettered == 1)).await;
    let times = times.lock().clone();
    assert_eq!(times.len(), SCHEDULE_S.len());
    let mut before = begun;
    for ((at, stamp), planned) in times.iter().zip(SCHEDULE_S) {
        let waited = at.duration_since(before).as_secs_f64();
        let planned = f64::from(planned);
        assert!(waited >= planned * 0.8 - 0.1 && waited <= planned * 1.2 + 0.5, "{waited} for {planned}");
        let passed = at.duration_since(begun).as_secs() as i64;
        assert!((stamp - 1_760_000_000 - passed).abs() <= 2, "each attempt has its own timestamp");
        before = *at;
    }
    let hours = before.duration_since(begun).as_secs_f64() / 3_600.0;
    assert!((60.0..=91.0).contains(&hours), "{hours}");
    let (delivery, attempts) = rig.webhooks.delivery(&rig.admin, &shown.endpoint.id, "dlv_1").await.unwrap();
    assert_eq!((delivery.status, attempts.len()), (Status::DeadLettered, 10));
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_down_for_four_days_gets_all_of_it_by_one_call() {
    const EVENTS: u64 = 4 * 24 * 6;
    let down = Arc::new(AtomicBool::new(true));
    let got = Arc::new(Mutex::new(BTreeSet::new()));
    let (is_down, arrived) = (down.clone(), got.clone());
    let rig = Rig::scripted(Script(Arc::new(move |headers, _| {
        if is_down.load(Ordering::Relaxed) {
            return 503;
        }
        arrived.lock().insert(headers["webhook-id"].to_str().unwrap().to_owned());
        200
    })));
    let (shown, _) = rig.create(settings()).await;
    let id = shown.endpoint.id.clone();
    let gateway = rig.serve();
    for n in 0..EVENTS {
        rig.append(n..n + 1).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    let totals = || rig.any_live().map(|live| live.core.lock().totals.clone()).unwrap_or_default();
    let dead = totals().dead_lettered;
    assert!((10..EVENTS).contains(&dead) && totals().delivered == 0, "{:?}", totals());
    let pending = rig.webhooks.stats(&rig.admin, &id).await.unwrap();
    assert!(pending.failing_since.is_some() && pending.lag_seconds > 3600.0, "{pending:?}");
    down.store(false, Ordering::Relaxed);
    let back = Instant::now();
    rig.eventually(|| totals().delivered + totals().dead_lettered == EVENTS).await;
    assert!(back.elapsed() < Duration::from_secs(1_200), "what waited comes soon: {:?}", back.elapsed());
    // Visible, and sent by one call.
    let mut seen = 0;
    let mut after = None;
    loop {
        let page =
            rig.webhooks.deliveries(&rig.admin, &id, Some(Status::DeadLettered), after.as_deref(), 100);
        let page = page.await.unwrap();
        seen += page.deliveries.len() as u64;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, totals().dead_lettered);
    let failed = ReplayRequest { only: Only::Failed, ..ReplayRequest::default() };
    let replay = rig.webhooks.replay(&rig.admin, &id, failed).await.unwrap();
    assert_eq!(replay.count, seen);
    rig.eventually(|| got.lock().len() as u64 == EVENTS).await;
    gateway.stop().await;
}
