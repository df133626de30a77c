//! Wrong or surprising content.

use super::faults::{Content, Lists};
use super::*;

/// What every row shows when each event has the given oddity.
async fn all_with(content: Content) -> (Bench, Vec<Value>) {
    let bench = bench(Config { faults: Faults { content, ..Faults::default() }, ..quiet() }).await;
    bench.sim.inject_burst(60);
    let rows = bench.rows("limit=100").await;
    assert_eq!(rows.len(), 60);
    (bench, rows)
}

#[tokio::test]
async fn ids_can_be_missing_or_used_twice() {
    let (bench, rows) = all_with(Content { missing_id: 1.0, ..Content::default() }).await;
    assert!(rows.iter().all(|row| !keys(row).contains("event_id")));
    assert!(bench.sim.truth().iter().all(|event| event.event_id.is_none()));

    let (bench, rows) = all_with(Content { duplicate_id: 0.5, ..Content::default() }).await;
    let distinct: BTreeSet<String> = ids(&rows).into_iter().collect();
    assert!((10..55).contains(&distinct.len()), "{}", distinct.len());
    let truth = bench.sim.truth();
    let differs = |a: &TruthEvent, b: &TruthEvent| a.iccid != b.iccid || a.event_type != b.event_type;
    assert!(truth.iter().any(|a| truth.iter().any(|b| a.event_id == b.event_id && differs(a, b))));
}

#[tokio::test(start_paused = true)]
async fn a_row_can_be_listed_twice() {
    let content = Content { duplicate_row: 1.0, ..Content::default() };
    let faults = Faults { content, ..Faults::default() };
    let bench = bench(Config { faults, ..with_history() }).await;
    let rows = bench.walk("/sims/activity").await;
    assert!(rows.chunks(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(rows.len() as u64, bench.sim.stats().exposed);
}

#[tokio::test]
async fn the_sim_can_be_missing_from_account_rows() {
    let (bench, rows) = all_with(Content { missing_iccid: 1.0, ..Content::default() }).await;
    assert!(rows.iter().all(|row| !keys(row).contains("iccid") && keys(row).contains("msisdn")));
    assert!(bench.sim.truth().iter().all(|event| event.iccid.len() == 19));
}

#[tokio::test]
async fn types_and_fields_can_be_unknown() {
    let (_, rows) = all_with(Content { unknown_type: 1.0, ..Content::default() }).await;
    assert!(rows.iter().all(|row| !traffic::EVENT_TYPES.contains(&row["event_type"].as_str().unwrap())));
    let (_, rows) = all_with(Content { extra_fields: 1.0, ..Content::default() }).await;
    assert!(rows.iter().all(|row| row["severity"] == "info" && row["cell"]["id"] == 4_711));
}

#[tokio::test]
async fn objects_can_be_null_and_numbers_strings() {
    let (bench, rows) = all_with(Content { nulls: 1.0, ..Content::default() }).await;
    assert!(rows.iter().all(|row| row["msisdn"].is_null()));
    assert!(rows.iter().any(|row| row.get("network") == Some(&Value::Null)));
    assert!(bench.sim.truth().iter().all(|event| event.row["details"].is_null()));

    let (bench, _) = all_with(Content { numbers_as_strings: 1.0, ..Content::default() }).await;
    let truth = bench.sim.truth();
    let details =
        |key: &str| truth.iter().filter_map(|event| event.row["details"].get(key)).collect::<Vec<_>>();
    for key in ["signal_strength", "current_usage_mb"] {
        assert!(!details(key).is_empty());
        assert!(details(key).iter().all(|value| value.as_str().unwrap().parse::<f64>().is_ok()), "{key}");
    }
}

#[tokio::test]
async fn timestamps_can_be_odd_and_then_fall_out_of_date_filters() {
    let (bench, rows) = all_with(Content { odd_timestamp: 1.0, ..Content::default() }).await;
    let (mut forms, mut undated) = (BTreeSet::new(), 0);
    for row in &rows {
        let form = match &row["timestamp"] {
            Value::Null => "null",
            Value::Number(seconds) => {
                assert_eq!(seconds.as_i64(), Some(noon().as_second()));
                "epoch"
            }
            text => match text.as_str().unwrap().parse::<Timestamp>() {
                Ok(time) => {
                    assert_eq!(time, noon(), "{text}");
                    if text.as_str().unwrap().contains('.') { "fraction" } else { "offset" }
                }
                Err(_) => "nonsense",
            },
        };
        forms.insert(form);
        undated += u64::from(matches!(form, "null" | "nonsense"));
    }
    assert_eq!(forms.len(), 5, "{forms:?}");
    let today = bench.ok("/sims/activity?start_date=2025-11-05").await;
    assert_eq!(today["total"], 60 - undated);
}

#[tokio::test]
async fn events_can_be_stamped_in_the_future() {
    let (bench, rows) = all_with(Content { clock_skew_s: 600, ..Content::default() }).await;
    assert!(times(&rows).iter().all(|time| time.as_second() == noon().as_second() + 600));
    let reply = bench.get("/sims/activity").await;
    let date = httpdate::parse_http_date(reply.headers["date"].to_str().unwrap()).unwrap();
    assert!(Timestamp::try_from(date).unwrap().as_second() >= noon().as_second() + 600);
}

#[tokio::test]
async fn account_rows_can_carry_details() {
    let bench = bench(quiet()).await;
    let iccid = bench.sim.fleet()[0].iccid.clone();
    bench.sim.inject(spec(&iccid, "connection", 0));
    let lists = Lists { account_details: true, ..Lists::default() };
    bench.sim.set_faults(Faults { lists, ..Faults::default() });
    let row = bench.rows("").await.remove(0);
    assert_eq!(keys(&row["details"]), BTreeSet::from(["network_type", "signal_strength"]));
    assert!(keys(&row["network"]).is_superset(&BTreeSet::from(["network_code", "network_type"])));
    assert_eq!(row["iccid"], iccid);
}

#[tokio::test]
async fn a_row_reads_the_same_every_time() {
    let content = Content {
        nulls: 0.3,
        extra_fields: 0.3,
        numbers_as_strings: 0.3,
        odd_timestamp: 0.3,
        ..Content::default()
    };
    let (bench, rows) = all_with(content).await;
    assert_eq!(bench.rows("limit=100").await, rows);
    bench.sim.set_faults(Faults::default());
    assert_eq!(bench.rows("limit=100").await, rows, "oddities stay with the row");
}
