//! Several gateways, one key: whoever polls, upstream counts no more than one may send.

use super::{super::share::KEY, *};
use crate::bus::Bucket;

async fn rig(budget: u32) -> Rig {
    let mut rig = Rig::new(Faults::default()).await;
    (rig.budget, rig.config.shared) = (budget, true);
    rig
}

#[tokio::test(start_paused = true)]
async fn gateways_that_take_turns_send_no_more_than_one() {
    let rig = rig(240).await;
    let mut rng = fastrand::Rng::with_seed(5);
    for turn in 0..40 {
        rig.sim.inject_burst(30);
        let run = rig.run();
        tokio::time::sleep(Duration::from_millis(rng.u64(1..12_000))).await;
        match turn % 2 {
            0 => run.kill().await,
            _ => run.stop().await,
        }
    }
    let most = rig.sim.max_requests_in_any_60s();
    assert!((120..=240).contains(&most), "{most}");
    let mut run = rig.run();
    rig.settled().await;
    run.seen(rig.clock.now()).await;
    assert!(rig.sim.max_requests_in_any_60s() <= 240);
    run.stop().await;
}

/// It was stopped with requests noted, another took over, and it goes on.
#[tokio::test(start_paused = true)]
async fn what_another_noted_meanwhile_is_found_out_before_anything_is_sent() {
    let rig = rig(400).await;
    let mut run = rig.run();
    backfilled(&mut run).await;
    run.seen(rig.clock.now()).await;
    let value = serde_json::json!({"by": "another", "reserve": 34, "taken": [[60, 100]]}).to_string();
    let value: bytes::Bytes = value.into();
    loop {
        // It notes again and again; one write comes in between.
        let entry = rig.bus.kv_get(Bucket::State, KEY).await.unwrap().unwrap();
        let written = rig.bus.kv_update(Bucket::State, KEY, value.clone(), entry.revision).await;
        if written.is_ok() {
            break;
        }
    }
    run.until("it takes the turn again and counts", |status| {
        status.budget["used"].as_u64().is_some_and(|used| used >= 134)
    })
    .await;
    rig.sim.inject_burst(3);
    rig.settled().await;
    assert!(rig.sim.max_requests_in_any_60s() <= 400);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_understood_costs_a_minute() {
    let rig = rig(400).await;
    rig.bus.kv_put(Bucket::State, KEY, "?".into()).await.unwrap();
    let began = rig.clock.now();
    let mut run = rig.run();
    run.seen(began).await;
    assert!(rig.clock.now().duration_since(began).as_secs() >= 60);
    run.stop().await;
}
