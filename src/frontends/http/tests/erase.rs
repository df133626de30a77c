//! `/v1/erase`: who may, what it answers, and what is there afterwards.

use serde_json::Value;

use super::*;
use crate::auth::TokenConfig;

const JSON: (&str, &str) = ("content-type", "application/json");

async fn erase(router: &Router, body: &Value) -> Answer {
    send_body(router, "POST", "/v1/erase", &[JSON], &body.to_string()).await
}

#[tokio::test]
async fn what_is_erased_is_said_and_found_no_more() {
    let fixture = filled();
    let router = fixture.http();
    let all = get(&router, "/v1/events?limit=1000").await.json();
    let of_sim = |page: &Value, iccid: &str| {
        page["events"].as_array().unwrap().iter().filter(|event| event["subject"] == iccid).count()
    };
    let (gone, stays) = (of_sim(&all, ICCIDS[0]), of_sim(&all, ICCIDS[1]));
    assert!(gone > 0 && stays > 0);
    let answer = erase(&router, &json!({ "iccid": ICCIDS[0] })).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text);
    let shown = answer.json();
    let document = openapi::document();
    document::check(&document, &document["components"]["schemas"]["SimErased"], &shown, "SimErased");
    assert_eq!((&shown["iccid"], &shown["removed"]["events"]), (&json!(ICCIDS[0]), &json!(gone)));
    assert_eq!(shown["left"], json!([]));
    let left = get(&router, "/v1/events?limit=1000").await.json();
    assert_eq!((of_sim(&left, ICCIDS[0]), of_sim(&left, ICCIDS[1])), (0, stays));
    assert!(left["gap"].is_null());
    let erased =
        all["events"].as_array().unwrap().iter().find(|event| event["subject"] == ICCIDS[0]).unwrap();
    let (id, cursor) = (erased["id"].as_str().unwrap(), erased["cursor"].as_str().unwrap());
    for path in ["", "/trace"] {
        assert_eq!(get(&router, &format!("/v1/events/{id}{path}")).await.status.as_u16(), 404);
    }
    assert_eq!(get(&router, &format!("/v1/events?after={cursor}")).await.status.as_u16(), 200);
    let again = erase(&router, &json!({ "iccid": ICCIDS[0] })).await.json();
    assert_eq!(again["removed"]["events"], 0);
}

#[tokio::test]
async fn a_webhook_that_names_the_sim_is_said_to_be_left() {
    let fixture = filled();
    let router = fixture.http();
    let made = json!({ "url": "https://93.184.216.34/x", "filter": { "iccid": [ICCIDS[0]] } });
    let made = send_body(&router, "POST", "/v1/webhooks", &[JSON], &made.to_string()).await;
    let id = made.json()["id"].as_str().unwrap_or_else(|| panic!("{}", made.text)).to_owned();
    let left = erase(&router, &json!({ "iccid": ICCIDS[0] })).await.json()["left"].clone();
    assert!(left[0]["what"].as_str().unwrap().contains(&id), "{left}");
    assert_eq!(left.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn mistakes_are_told_and_who_sees_a_part_may_not() {
    let masked = TokenConfig {
        filter: Some(filter(&json!({ "iccid": [ICCIDS[0]] }))),
        ..token("scoped", &[Role::Admin])
    };
    let fixture = Fixture::new(vec![masked, token("boss", &[Role::Admin])]);
    let router = fixture.http();
    let as_token = async |name: &str, body: &str| {
        let value = format!("Bearer sct_{name}");
        send_body(&router, "POST", "/v1/erase", &[JSON, ("authorization", &value)], body).await.error()
    };
    for body in ["", "{}", r#"{"iccid": 7}"#, r#"{"iccid": "12"}"#] {
        let (status, code, message, field) = as_token("boss", body).await;
        assert_eq!(
            (status, code.as_str(), field.as_deref()),
            (400, "invalid_parameter", Some("iccid")),
            "{message}"
        );
    }
    let (status, _, _, field) = as_token("boss", r#"{"iccid": "8947000000000000001", "all": true}"#).await;
    assert_eq!((status, field.as_deref()), (400, Some("all")));
    let (status, code, ..) = as_token("scoped", r#"{"iccid": "8947000000000000001"}"#).await;
    assert_eq!((status, code.as_str()), (403, "forbidden_field"));
}
