//! `GET /v1/report`: periods, what a token sees, what is refused. That the numbers are right is shown with whole
//! gateways, by a program that counts for itself.

use super::*;
use crate::auth::TokenConfig;

/// The hour in which the tests play, and the one behind it.
const HOUR: &str = "from=2025-10-09T08:00:00Z&to=2025-10-09T10:00:00Z";

/// Two events of one SIM, one of another, one of a third two hours before.
async fn counted(tokens: Vec<TokenConfig>) -> Fixture {
    let fixture = Fixture::new(tokens);
    fixture.append(&[
        Sample { time: -7_200, ..Sample::new("evt_0", "connection", ICCIDS[2], 1) },
        Sample::new("evt_1", "connection", ICCIDS[0], 1),
        Sample::new("evt_2", "disconnection", ICCIDS[1], 2),
        Sample::new("evt_3", "network_change", ICCIDS[0], 3),
        Sample::new("gw_4", "simcast.gap", "", 4),
    ]);
    fixture.count().await;
    fixture
}

#[tokio::test]
async fn periods_are_widened_to_whole_hours_and_days_and_say_so() {
    let router = counted(vec![]).await.http();
    let all = get(&router, "/v1/report").await.json();
    assert_eq!((&all["totals"]["events"], &all["totals"]["sims"]), (&json!(4), &json!(3)));
    let newest = get(&router, "/v1/stream").await.json()["newest_cursor"].clone();
    assert_eq!((&all["as_of"], &all["computed_from"]), (&newest, &json!("rollup")));
    assert_eq!(all["rolled_up_since"], at(1).to_string());

    let cases = [
        ("from=2025-10-09T08:53:20Z&to=2025-10-09T08:53:21Z", 3, 3),
        ("from=2025-10-09T10:00:00%2B01:00&to=2025-10-09T11:00:00%2B01:00", 0, 3),
        ("from=2025-10-09T07:00:00%2B00:00&to=2025-10-09T07:00:01Z", 0, 3),
        ("from=2025-10-09T06:59:00Z&to=2025-10-09T07:00:00Z", 1, 3),
        ("from=2025-10-09&to=2025-10-10", 4, 3),
        ("from=2025-10-08&to=2025-10-09", 0, 0),
    ];
    for (query, events, sims) in cases {
        let report = get(&router, &format!("/v1/report?{query}")).await.json();
        let totals = &report["totals"];
        assert_eq!((&totals["events"], &totals["sims"]), (&json!(events), &json!(sims)), "{query}: {report}");
    }
    let report = get(&router, &format!("/v1/report?{HOUR}&top=1&interval=day")).await.json();
    assert_eq!(report["from"], "2025-10-09T08:00:00Z");
    assert_eq!(report["days"], json!({"from": "2025-10-09T00:00:00Z", "to": "2025-10-10T00:00:00Z"}));
    assert_eq!(report["most_active"], json!([{"iccid": ICCIDS[0], "events": 2}]));
    assert_eq!(report["series"].as_array().unwrap().len(), 1);
    assert_eq!(report["series"][0]["time"], "2025-10-09T08:00:00Z");
}

#[tokio::test]
async fn a_token_gets_a_report_about_its_sims_as_its_policy_shows_them() {
    let mut tokens: Vec<_> =
        ["prefix", "typed", "hidden", "all"].map(|name| token(name, &[Role::Read])).into();
    tokens[0].filter = Some(filter(&json!({"iccid_prefix": ["8947"]})));
    tokens[1].filter = Some(filter(&json!({"event_type": ["connection"]})));
    tokens[2].fields = Some(FieldPolicy { iccid: FieldRule::Last4, ..FieldPolicy::default() });
    let router = counted(tokens).await.http();
    let of = async |name: &str, query: &str| get_as(&router, name, &format!("/v1/report?{query}")).await;

    let prefix = of("prefix", "").await.json();
    assert_eq!(prefix["computed_from"], "sim_rollup");
    assert_eq!((&prefix["totals"]["events"], &prefix["totals"]["sims"]), (&json!(3), &json!(2)));
    assert!(!prefix.to_string().contains(ICCIDS[2]));
    assert_eq!(prefix["by_country"], json!(null));
    let foreign = of("prefix", &format!("iccid={}", ICCIDS[2])).await.json();
    assert_eq!((&foreign["totals"]["events"], &foreign["most_active"]), (&json!(0), &json!([])));
    let refused = of("prefix", "interval=hour").await.error();
    assert_eq!((refused.0, refused.3.as_deref()), (400, Some("interval")));

    let typed = of("typed", HOUR).await.json();
    assert_eq!(typed["computed_from"], "log");
    assert_eq!(typed["by_type"], json!([{"event_type": "connection", "events": 1}]));
    assert_eq!(typed["most_active"].as_array().unwrap().len(), 2);
    let both = of("all", &format!("{HOUR}&event_type=connection")).await.json();
    assert_eq!(both["totals"], typed["totals"]);

    let hidden = of("hidden", HOUR).await;
    assert!(ICCIDS.iter().all(|iccid| !hidden.text.contains(iccid)), "{}", hidden.text);
    assert_eq!(hidden.json()["most_active"][0]["iccid"], "***************0001");
    let refused = of("hidden", &format!("iccid={}", ICCIDS[0])).await.error();
    assert_eq!((refused.0, refused.1.as_str()), (403, "forbidden_field"));
}

#[tokio::test]
async fn mistakes_are_named_and_what_is_not_counted_yet_is_no_report() {
    let fixture = filled();
    let router = fixture.http();
    let answer = get(&router, "/v1/report").await;
    assert_eq!((answer.error().0, answer.error().1.as_str()), (503, "index_building"));
    assert!(answer.headers.contains_key("retry-after"));
    // The log answers for itself.
    assert_eq!(get(&router, "/v1/report?country=NO").await.status, 200);
    fixture.count().await;
    assert_eq!(get(&router, "/v1/report").await.status, 200);
    for (query, field) in [
        ("from=2025-10-10&to=2025-10-09", "from"),
        ("from=2024-01-01&to=2025-10-09", "from"),
        ("from=soon", "from"),
        ("to=", "to"),
        ("from=9999-12-31", "from"),
        ("top=0", "top"),
        ("interval=minute", "interval"),
        ("icid=1", "icid"),
    ] {
        let refused = get(&router, &format!("/v1/report?{query}")).await.error();
        assert_eq!((refused.0, refused.3.as_deref()), (400, Some(field)), "{query}: {}", refused.2);
    }
}
