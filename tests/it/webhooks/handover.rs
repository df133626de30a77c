//! A gateway that was suspended and does not know it.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use simcast::globalsim::simulator::Config;

use super::{Inbox, ask, receiver};
use crate::support::{Bus, ChildGateway, PATIENCE, World, get, settled, signal};

/// So many that each of two gateways has a share of them, but for one time in five hundred.
const ENDPOINTS: usize = 10;

/// A gateway is stopped while it serves, another takes over, and the first goes on as if no time had passed: what it
/// believes to own is no longer its, and it sends nothing of it. Each event arrives once but for what was on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_suspended_sends_nothing_for_what_another_took_over() {
    let world = World::on(
        Bus::Nats,
        Config { sims: 20, events_per_second: 20.0, history: Duration::ZERO, ..Config::default() },
    )
    .await;
    let gateways =
        [ChildGateway::start(&world.settings_of("one")), ChildGateway::start(&world.settings_of("two"))];
    let mut endpoints = Vec::new();
    for _ in 0..ENDPOINTS {
        let (url, inbox) = receiver().await;
        let made = json!({ "url": url, "from": "earliest", "ordering": "strict" });
        let id = ask(gateways[0].http, "", made).await["id"].as_str().unwrap().to_owned();
        endpoints.push((id, inbox));
    }
    let owner_of = async |gateway: &ChildGateway, id: &str| {
        let (_, stats) = get(gateway.http, &format!("/v1/webhooks/{id}/stats")).await;
        stats["owner"].as_str().unwrap_or_default().to_owned()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // Each has a share: then there are two owners, and the names of both are known.
    let owners_before = loop {
        let mut owners = Vec::new();
        for (id, _) in &endpoints {
            owners.push(owner_of(&gateways[0], id).await);
        }
        let distinct: BTreeSet<&String> = owners.iter().filter(|owner| !owner.is_empty()).collect();
        if distinct.len() == 2 && !owners.contains(&String::new()) {
            break owners;
        }
        assert!(tokio::time::Instant::now() < deadline, "{owners:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let [one, two] = &gateways;
    signal(one.pid(), "STOP");
    // What goes on meanwhile is what the stopped one would send.
    let count = |inbox: &Inbox| inbox.lock().unwrap().len();
    let before: Vec<usize> = endpoints.iter().map(|(_, inbox)| count(inbox)).collect();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while endpoints.iter().zip(&before).any(|((_, inbox), before)| count(inbox) < before + 100) {
        assert!(tokio::time::Instant::now() < deadline, "nobody took over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut taken = 0;
    for ((id, _), was) in endpoints.iter().zip(&owners_before) {
        let is = owner_of(two, id).await;
        taken += usize::from(is != *was);
    }
    assert!(taken > 0, "it had no share");
    let arrived: Vec<usize> = endpoints.iter().map(|(_, inbox)| count(inbox)).collect();
    signal(one.pid(), "CONT");
    // Until it is a member again and has its share back.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut owners = BTreeSet::new();
        for (id, _) in &endpoints {
            owners.insert(owner_of(two, id).await);
        }
        if owners.len() == 2 && !owners.contains("") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{owners:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.sim.pause();
    let events = settled(&world, two.http).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for ((id, inbox), arrived) in endpoints.iter().zip(arrived) {
        let distinct =
            || inbox.lock().unwrap().iter().map(|(id, _)| id.clone()).collect::<BTreeSet<_>>().len();
        while distinct() < events.len() {
            assert!(tokio::time::Instant::now() < deadline, "{} of {}", distinct(), events.len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // A handover between two that live repeats nothing; one may have been on its way when it was stopped.
        let inbox = inbox.lock().unwrap();
        let (before, after) = inbox.split_at(arrived);
        let again: Vec<_> = after.iter().filter(|(id, _)| before.iter().any(|(one, _)| one == id)).collect();
        assert!(again.len() <= 1, "{id}: {} came again when it went on", again.len());
    }
    let [one, two] = gateways;
    assert_eq!((one.terminate(), two.terminate()), (Some(0), Some(0)));
}
