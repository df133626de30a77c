//! `/v1/sims`: pages, mistakes, and what a token may see.

use super::*;

async fn known(tokens: Vec<crate::auth::TokenConfig>) -> Fixture {
    let fixture = Fixture::new(tokens);
    fixture.append(&[
        Sample::new("evt_1", "connection", ICCIDS[0], 1),
        Sample::new("evt_2", "disconnection", ICCIDS[1], 2),
        Sample::new("evt_3", "location_update", ICCIDS[2], 3),
        // Older than what is known of it already.
        Sample { time: 0, ..Sample::new("evt_4", "disconnection", ICCIDS[0], 4) },
    ]);
    fixture.know_sims().await;
    fixture
}

fn numbers(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let sims = body["sims"].as_array().unwrap_or_else(|| panic!("{body}"));
    sims.iter().map(|sim| sim["iccid"].as_str().unwrap_or("hidden").to_owned()).collect()
}

#[tokio::test]
async fn sims_are_filtered_sorted_and_paged() {
    let fixture = known(vec![]).await;
    let router = fixture.http();
    let cases = [
        ("", vec![ICCIDS[2], ICCIDS[0], ICCIDS[1]]),
        ("?sort=last_seen", vec![ICCIDS[2], ICCIDS[1], ICCIDS[0]]),
        ("?online=true", vec![ICCIDS[0]]),
        ("?online=false", vec![ICCIDS[1]]),
        ("?online=unknown", vec![ICCIDS[2]]),
        ("?iccid_prefix=8947", vec![ICCIDS[0], ICCIDS[1]]),
        ("?iccid=8946000000000000003,8947000000000000002", vec![ICCIDS[2], ICCIDS[1]]),
        ("?country=NO", vec![]),
    ];
    for (query, expected) in cases {
        let answer = get(&router, &format!("/v1/sims{query}")).await;
        assert_eq!(numbers(&answer), expected, "{query}");
        assert_eq!(answer.json()["total"], expected.len(), "{query}");
    }
    let first = get(&router, "/v1/sims?limit=2&sort=last_seen").await;
    let next = first.json()["next"].as_str().unwrap().to_owned();
    let rest = get(&router, &format!("/v1/sims?limit=2&sort=last_seen&after={next}")).await;
    assert_eq!((numbers(&rest), &rest.json()["next"]), (vec![ICCIDS[0].to_owned()], &json!(null)));
    assert_eq!(rest.json()["as_of"], fixture.context.hub.log().cursor_at(4).to_string());
    let other = get(&router, &format!("/v1/sims?after={next}")).await.error();
    assert_eq!((other.0, other.3.as_deref()), (400, Some("after")));

    let one = get(&router, &format!("/v1/sims/{}", ICCIDS[0])).await.json();
    assert_eq!((&one["online"], &one["events"], &one["source"]), (&json!(true), &json!(2), &json!("log")));
    assert_eq!((&one["last_event"]["id"], &one["as_of_time"]), (&json!("evt_1"), &json!(at(4))));
    for (target, status, field) in [
        ("/v1/sims?limit=1001", 400, "limit"),
        ("/v1/sims?online=yes", 400, "online"),
        ("/v1/sims?event_type=connection", 400, "event_type"),
        ("/v1/sims?iccid=12", 400, "iccid"),
        ("/v1/sims?seen_since=x", 400, "seen_since"),
        ("/v1/sims/12", 400, "iccid"),
        ("/v1/sims/8947999999999999999", 404, "iccid"),
    ] {
        let error = get(&router, target).await.error();
        assert_eq!((error.0, error.3.as_deref()), (status, Some(field)), "{target}");
    }
}

#[tokio::test]
async fn a_token_sees_what_its_filter_and_fields_allow() {
    let scoped =
        |name, scope| crate::auth::TokenConfig { filter: Some(filter(&scope)), ..token(name, &[Role::Read]) };
    let rule = |iccid| FieldPolicy { iccid, key: Arc::from(&b"key"[..]), ..FieldPolicy::default() };
    let mut dropped = token("dropped", &[Role::Read]);
    dropped.fields = Some(rule(FieldRule::Drop));
    let tokens = vec![
        scoped("one", json!({"iccid": [ICCIDS[1]]})),
        scoped("typed", json!({"event_type": ["connection"]})),
        dropped,
        token("hooks", &[Role::Webhooks]),
    ];
    let fixture = known(tokens).await;
    let router = fixture.http();
    let one = get_as(&router, "one", "/v1/sims").await;
    assert_eq!((numbers(&one), &one.json()["total"]), (vec![ICCIDS[1].to_owned()], &json!(1)));
    let foreign = get_as(&router, "one", &format!("/v1/sims/{}", ICCIDS[0])).await.error();
    assert_eq!((foreign.0, foreign.1.as_str()), (404, "not_found"));
    assert_eq!(get_as(&router, "typed", "/v1/sims").await.error().1, "forbidden");
    assert_eq!(get_as(&router, "hooks", "/v1/sims").await.error().1, "forbidden");

    for target in ["/v1/sims?iccid_prefix=8947".to_owned(), format!("/v1/sims/{}", ICCIDS[0])] {
        let error = get_as(&router, "dropped", &target).await.error();
        assert_eq!((error.1.as_str(), error.3.as_deref()), ("forbidden_field", Some("iccid")), "{target}");
    }
    let (mut after, mut seen) = (String::new(), 0);
    loop {
        let page = get_as(&router, "dropped", &format!("/v1/sims?limit=1{after}")).await;
        assert!(!page.text.contains("894700") && !page.text.contains("894600"), "{}", page.text);
        seen += numbers(&page).len();
        match page.json()["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, 3, "each is met once, though none is named");
}

#[tokio::test]
async fn a_sim_shows_how_old_its_sessions_are_and_its_device() {
    use crate::{
        event::{Event, Iccid},
        ingest::sims::record::*,
    };

    let fixture = Fixture::new(Vec::new());
    let mut event = Event::new("evt_1", "/globalsim/default".into(), "connection");
    event.iccid = Iccid::parse(ICCIDS[0]).ok();
    event.device_id = Some("meter/7".to_owned());
    event.time = Some(at(1));
    let sealed = event.seal(at(1), jiff::SignedDuration::MAX).unwrap();
    let entry = crate::log::Entry { sealed, identity: 1, content: 0 };
    fixture.context.hub.log().append(vec![entry]).unwrap();
    fixture.know_sims().await;
    let router = fixture.http();
    let target = format!("/v1/sims/{}", ICCIDS[0]);
    let never = get(&router, &target).await.json();
    assert_eq!(never["sessions"], json!({"as_of": null, "age_seconds": null, "stale_after_seconds": null}));
    assert_eq!(never["device"], json!(null));
    let record = SimRecord { read_at: Some(at(3_540)), ..SimRecord::default() };
    let key = format!("{SIM}{}", ICCIDS[0]);
    save(&fixture.context.bus, &key, &record).await;
    fixture.upstream.send_modify(|status| {
        let sims = json!({"stale_seconds": {"after_an_event": 3, "open": 300, "others": 86_400}});
        *status = Arc::new(crate::ingest::Status { sims, ..(**status).clone() });
    });
    let read = get(&router, &target).await.json();
    assert_eq!(read["sessions"]["age_seconds"], 60);
    assert_eq!(read["sessions"]["stale_after_seconds"], 86_400);
    assert_eq!(read["device_id"], "meter/7");
    let device = |iccid: &str| DeviceRecord {
        as_of: at(3_590),
        iccid: Iccid::parse(iccid).ok(),
        answer: json!({"device_name": "Meter 7", "sim": {"status": "active", "data_usage_mb": 1.5}}),
    };
    let key = format!("{DEVICE}meter/7");
    save(&fixture.context.bus, &key, &device(ICCIDS[0])).await;
    let shown = get(&router, &target).await.json();
    assert_eq!(
        (&shown["device"]["device_name"], &shown["device"]["age_seconds"]),
        (&json!("Meter 7"), &json!(10))
    );
    save(&fixture.context.bus, &key, &device(ICCIDS[1])).await;
    assert_eq!(get(&router, &target).await.json()["device"], json!(null), "another SIM's by now");
}
