//! Parameters, filters, order and totals.

use serde_json::json;
use tokio::time::Instant;

use super::faults::{LimitOver, Lists, Order, TieOrder, Total};
use super::*;

fn lists(lists: Lists) -> Faults {
    Faults { lists, ..Faults::default() }
}

#[tokio::test]
async fn limit_is_50_by_default_and_100_at_most() {
    let bench = bench(with_history()).await;
    assert!(bench.sim.stats().visible_rows > 200);
    assert_eq!(bench.rows("").await.len(), 50);
    assert_eq!(bench.rows("limit=100").await.len(), 100);
    assert_eq!(bench.rows("limit=1").await.len(), 1);
    for wrong in ["limit=101", "limit=1000", "limit=0", "limit=ten", "offset=-1", "start_date=5.11.2025"] {
        let reply = bench.get(&format!("/sims/activity?{wrong}")).await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}");
        let name = wrong.split('=').next().unwrap();
        assert_eq!(reply.body["detail"][0]["loc"], json!(["query", name]));
        assert!(reply.body["detail"][0]["msg"].is_string());
    }
    bench.sim.set_faults(lists(Lists { limit_over: LimitOver::Cut, ..Lists::default() }));
    assert_eq!(bench.rows("limit=1000").await.len(), 100);
    bench.sim.set_faults(lists(Lists { page_cap: Some(30), ..Lists::default() }));
    assert_eq!(bench.rows("limit=100").await.len(), 30);
}

#[tokio::test]
async fn unknown_things_are_404_with_detail() {
    let bench = bench(quiet()).await;
    let unknown = [
        "/sims/8900000000000000000/activity",
        "/sims/8900000000000000000/sessions",
        "/devices/nobody/sim",
        "/devices/nobody/sim/activity",
        "/devices/nobody/sim/sessions",
        "/nothing",
    ];
    for target in unknown {
        let reply = bench.get(target).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{target}");
        assert!(reply.body["detail"].is_string(), "{target}");
    }
}

#[tokio::test]
async fn filters_show_what_matches_and_nothing_else() {
    let bench = bench(with_history()).await;
    let truth = bench.sim.truth();
    let sim = bench.sim.fleet().into_iter().find(|sim| sim.device_id.is_some()).unwrap();
    let count = |wanted: &dyn Fn(&TruthEvent) -> bool| truth.iter().filter(|event| wanted(event)).count();
    let device = sim.device_id.clone().unwrap();
    let cases = [
        ("event_type=connection".to_owned(), count(&|event| event.event_type == "connection")),
        ("event_type=all".to_owned(), truth.len()),
        ("event_type=unheard_of".to_owned(), 0),
        (format!("iccid={}", sim.iccid), count(&|event| event.iccid == sim.iccid)),
        (format!("device_id={device}"), count(&|event| event.device_id.as_ref() == Some(&device))),
        (
            format!("iccid={}&event_type=connection&device_id={device}", sim.iccid),
            count(&|event| event.iccid == sim.iccid && event.event_type == "connection"),
        ),
        ("start_date=2025-11-05".to_owned(), count(&|event| *event.timestamp.to_string() >= *"2025-11-05")),
        ("end_date=2025-11-04".to_owned(), count(&|event| *event.timestamp.to_string() < *"2025-11-05")),
        ("start_date=2025-11-06".to_owned(), 0),
    ];
    for (query, want) in cases {
        let body = bench.ok(&format!("/sims/activity?limit=100&{query}")).await;
        assert_eq!(body["total"], want, "{query}");
        assert_eq!(rows_of(&body).len(), want.min(100), "{query}");
    }
}

#[tokio::test]
async fn dates_include_both_days_unless_told_otherwise() {
    let bench = bench(quiet()).await;
    let iccid = bench.sim.fleet()[0].iccid.clone();
    // Noon of the 5th, 4th and 3rd, and the last second of the 3rd.
    for ago in [0, 86_400, 2 * 86_400, 86_400 + 43_201] {
        bench.sim.inject(spec(&iccid, "connection", ago));
    }
    let query = "start_date=2025-11-03&end_date=2025-11-04";
    assert_eq!(bench.rows(query).await.len(), 3);
    bench.sim.set_faults(lists(Lists { start_date_exclusive: true, ..Lists::default() }));
    assert_eq!(bench.rows(query).await.len(), 1);
    bench.sim.set_faults(lists(Lists { end_date_exclusive: true, ..Lists::default() }));
    assert_eq!(bench.rows(query).await.len(), 2);
    // Midnight at +01:00 comes an hour earlier: the last second of the 3rd belongs to the 4th.
    bench.sim.set_faults(lists(Lists { day_offset_minutes: 60, ..Lists::default() }));
    assert_eq!(bench.rows("start_date=2025-11-04&end_date=2025-11-04").await.len(), 2);
}

#[tokio::test]
async fn order_is_as_switched_in_every_list() {
    let bench = bench(with_history()).await;
    let newest = bench.walk("/sims/activity").await;
    assert!(times(&newest).is_sorted_by(|a, b| a >= b));
    bench.sim.set_faults(Faults { order: Order::Oldest, ..Faults::default() });
    let oldest = bench.walk("/sims/activity").await;
    assert!(oldest.iter().eq(newest.iter().rev()));

    bench.sim.set_faults(Faults { order: Order::Unsorted, ..Faults::default() });
    let unsorted = bench.walk("/sims/activity").await;
    assert!(!times(&unsorted).is_sorted() && !times(&unsorted).is_sorted_by(|a, b| a >= b));
    assert_eq!(bench.walk("/sims/activity").await, unsorted, "stable");
    let set = |rows: &[Value]| ids(rows).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(set(&unsorted), set(&newest));
    let day = rows_of(&bench.ok("/sims/activity?start_date=2025-11-05&limit=100").await);
    assert!(times(&day).iter().all(|time| *time.to_string() >= *"2025-11-05"));

    let sim_order = Some(Order::Oldest);
    bench.sim.set_faults(Faults { order: Order::Newest, sim_order, ..Faults::default() });
    let path = format!("/sims/{}/activity", newest[0]["iccid"].as_str().unwrap());
    let of_sim = times(&bench.walk(&path).await);
    assert!(of_sim.len() > 1 && of_sim.is_sorted());
    assert_eq!(bench.walk("/sims/activity").await, newest);
}

#[tokio::test]
async fn an_unsorted_list_takes_new_rows_anywhere_but_never_moves_old_ones() {
    let bench = bench_with(Faults { order: Order::Unsorted, ..Faults::default() }).await;
    let before = ids(&bench.walk("/sims/activity").await);
    let new: BTreeSet<String> =
        bench.sim.inject_burst(50).into_iter().filter_map(|event| event.event_id).collect();
    let after = ids(&bench.walk("/sims/activity").await);
    let old: Vec<String> = after.iter().filter(|id| !new.contains(*id)).cloned().collect();
    assert_eq!(old, before);
    assert!(new.contains(&after[0]) as usize + new.contains(&after[after.len() - 1]) as usize <= 1);
    assert!(after[10..after.len() - 10].iter().any(|id| new.contains(id)));
}

#[tokio::test]
async fn ties_are_by_arrival_or_anywhere() {
    let bench = bench(quiet()).await;
    let by_arrival: Vec<String> =
        bench.sim.inject_burst(30).into_iter().filter_map(|event| event.event_id).collect();
    let listed = ids(&bench.rows("limit=100").await);
    assert!(listed.iter().eq(by_arrival.iter().rev()));
    bench.sim.set_faults(Faults { tie_order: TieOrder::Random, ..Faults::default() });
    let shuffled = ids(&bench.rows("limit=100").await);
    assert_ne!(shuffled, listed);
    assert_eq!(shuffled.iter().collect::<BTreeSet<_>>(), listed.iter().collect());
}

#[tokio::test]
async fn total_is_as_switched() {
    let bench = bench(quiet()).await;
    bench.sim.inject_burst(120);
    let cases = [
        (Total::Exact, json!(120)),
        (Total::Capped(100), json!(100)),
        (Total::OffBy(-5), json!(115)),
        (Total::OffBy(-500), json!(0)),
        (Total::Absent, Value::Null),
    ];
    for (total, want) in cases {
        bench.sim.set_faults(lists(Lists { total, ..Lists::default() }));
        let body = bench.ok("/sims/activity").await;
        assert_eq!(body["total"], want, "{total:?}");
        assert_eq!(keys(&body).contains("total"), total != Total::Absent);
    }
}

#[tokio::test]
async fn offsets_can_be_ignored_or_capped_and_lists_bare() {
    let bench = bench(with_history()).await;
    let first = bench.rows("limit=10").await;
    assert_ne!(bench.rows("limit=10&offset=10").await, first);
    bench.sim.set_faults(lists(Lists { offset_ignored: true, ..Lists::default() }));
    assert_eq!(bench.rows("limit=10&offset=10").await, first);
    bench.sim.set_faults(lists(Lists { offset_cap: Some(100), ..Lists::default() }));
    assert_eq!(bench.rows("limit=1&offset=100").await.len(), 1);
    assert_eq!(bench.get("/sims/activity?offset=101").await.status, StatusCode::UNPROCESSABLE_ENTITY);
    bench.sim.set_faults(lists(Lists { bare_array: true, ..Lists::default() }));
    assert_eq!(bench.ok("/sims/activity?limit=10").await, Value::Array(first));
}

#[tokio::test]
async fn pages_can_be_short_of_what_is_there() {
    let bench = bench_with(lists(Lists { short_page: 0.5, ..Lists::default() })).await;
    let mut sizes = BTreeSet::new();
    for _ in 0..40 {
        let body = bench.ok("/sims/activity?limit=10").await;
        assert!(body["total"].as_u64() > Some(1_000) && body["limit"] == 10);
        sizes.insert(rows_of(&body).len());
    }
    assert!(sizes.len() > 3 && sizes.last() == Some(&10), "{sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn deep_pages_can_be_slow() {
    let bench = bench_with(lists(Lists { offset_slow_ms: 10_000, ..Lists::default() })).await;
    let began = Instant::now();
    bench.rows("limit=1&offset=500").await;
    assert_eq!(began.elapsed().as_secs(), 5);
    bench.rows("limit=1").await;
    assert_eq!(began.elapsed().as_secs(), 5);
}
