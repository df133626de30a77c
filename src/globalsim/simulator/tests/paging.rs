//! What changes between two list requests, and what becomes visible late.

use tokio::time::sleep;

use super::faults::{Late, Paging};
use super::*;

fn paging(paging: Paging) -> Faults {
    Faults { paging, ..Faults::default() }
}

#[tokio::test]
async fn rows_inserted_while_paging_shift_the_pages() {
    let bench = bench_with(paging(Paging { inserts: 3, ..Paging::default() })).await;
    let before = bench.sim.stats().exposed;
    let first = ids(&bench.rows("limit=10").await);
    let second = ids(&bench.rows("limit=10&offset=10").await);
    assert_eq!(bench.sim.stats().exposed, before + 6);
    assert_eq!(first[7..], second[..3], "the last three come again");
}

#[tokio::test]
async fn rows_can_come_late_between_two_pages_and_stand_where_they_belong() {
    let late = Paging { late: 4, late_within_s: 600, ..Paging::default() };
    let bench = bench_with(paging(late)).await;
    let before = bench.sim.stats().exposed;
    let rows = bench.rows("limit=100").await;
    let came: Vec<_> = bench.sim.truth().into_iter().filter(|event| event.n > before).collect();
    assert!(came.len() == 4 && came.iter().all(|event| event.late));
    let age = |event: &TruthEvent| event.visible_at.as_second() - event.timestamp.as_second();
    assert!(came.iter().all(|event| (0..=600).contains(&age(event))));
    assert!(came.iter().filter(|event| age(event) == 600).count() >= 2, "every other one is just as late");
    assert!(times(&rows).is_sorted_by(|a, b| a >= b));
}

#[tokio::test]
async fn rows_erased_while_paging_make_a_naive_walk_skip() {
    let erases = Paging { erases: 4, erase_within: Some(10), erase_only_served: true, ..Paging::default() };
    let bench = bench(with_history()).await;
    let all = ids(&bench.rows("limit=100").await);
    bench.sim.set_faults(paging(erases));
    // Erased before each request, among the ten newest: each has been served, so none is lost for good.
    let second = ids(&bench.rows("limit=10&offset=10").await);
    assert!(all[11..15].contains(&second[0]), "page two begins below the row that was eleventh");
    let truth = bench.sim.truth();
    let removed: Vec<_> = truth.iter().filter(|event| event.removed_at.is_some()).collect();
    assert!(!removed.is_empty() && removed.len() <= 4);
    assert!(removed.iter().all(|event| event.first_served_at.is_some()));
}

#[tokio::test]
async fn unserved_rows_are_not_erased_when_so_switched() {
    let bench = bench_with(paging(Paging { erase_only_served: true, ..Paging::default() })).await;
    bench.sim.erase(50);
    assert_eq!(bench.sim.stats().removed, 0);
    bench.sim.set_faults(Faults::default());
    bench.sim.erase(50);
    assert_eq!(bench.sim.stats().removed, 50);
}

#[tokio::test]
async fn retention_takes_the_oldest() {
    let bench = bench_with(paging(Paging { removes_oldest: 5, ..Paging::default() })).await;
    let truth = bench.sim.truth();
    bench.rows("").await;
    let total = bench.ok("/sims/activity").await["total"].as_u64().unwrap();
    assert_eq!(total, truth.len() as u64 - 10);
    let gone: Vec<u64> =
        bench.sim.truth().iter().filter(|event| event.removed_at.is_some()).map(|event| event.n).collect();
    assert_eq!(gone, (1..=10).collect::<Vec<u64>>());

    bench.sim.set_faults(paging(Paging { retention_s: Some(3_600), ..Paging::default() }));
    let oldest = times(&bench.walk("/sims/activity").await).into_iter().min().unwrap();
    assert!(oldest.as_second() >= noon().as_second() - 3_600, "{oldest}");
}

#[tokio::test]
async fn revisions_change_content_and_keep_identity() {
    let bench = bench(quiet()).await;
    let iccid = bench.sim.fleet()[0].iccid.clone();
    for event_type in ["connection", "disconnection", "network_change", "data_usage_update"] {
        bench.sim.inject(spec(&iccid, event_type, 0));
    }
    let path = format!("/sims/{iccid}/activity");
    let before = rows_of(&bench.ok(&path).await);
    bench.sim.set_faults(paging(Paging { revisions: 60, ..Paging::default() }));
    bench.rows("").await;
    let after = rows_of(&bench.ok(&path).await);
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before["details"], after["details"]);
        let identity =
            |row: &Value| (row["event_id"].clone(), row["event_type"].clone(), row["timestamp"].clone());
        assert_eq!(identity(before), identity(after));
    }
    assert!(bench.sim.truth().iter().all(|event| event.revision > 0));
}

#[tokio::test(start_paused = true)]
async fn late_events_become_visible_later_in_their_sorted_place() {
    let late = Late { probability: 0.5, mean_ms: 60_000, max_ms: 200_000 };
    let faults = Faults { late, ..Faults::default() };
    let bench = bench(Config { events_per_second: 2.0, faults, ..quiet() }).await;
    sleep(Duration::from_secs(100)).await;
    bench.sim.pause();
    let stats = bench.sim.stats();
    assert!(stats.held_back > 10, "{}", stats.held_back);
    let exposed: Vec<_> = bench.sim.truth().into_iter().map(|event| event.event_id).collect();
    sleep(Duration::from_secs(201)).await;
    assert_eq!(bench.sim.stats().held_back, 0, "none is later than the longest delay");

    let truth = bench.sim.truth();
    let delay = |event: &TruthEvent| event.visible_at.as_second() - event.timestamp.as_second();
    assert!(truth.iter().all(|event| if event.late { delay(event) <= 202 } else { delay(event) == 0 }));
    assert!(truth.iter().any(|event| delay(event) > 60));
    let rows = bench.walk("/sims/activity").await;
    assert_eq!(rows.len(), truth.len());
    assert!(times(&rows).is_sorted_by(|a, b| a >= b));
    // Some that came out after the pause lie below rows that were visible before it.
    let is_new = |id: &String| !exposed.contains(&Some(id.clone()));
    let listed = ids(&rows);
    let first_old = listed.iter().position(|id| !is_new(id)).unwrap();
    assert!(listed[first_old..].iter().any(is_new));
}
