//! Who is asking, and until when.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::*;
use crate::{
    auth::Role,
    clock::TokioClock,
    event::policy::{FieldPolicy, FieldRule},
    frontends::tests_support::{at, filter, token},
};

fn reader(name: &str) -> TokenConfig {
    token(name, &[Role::Read])
}

fn of_sim(name: &str, iccid: &str) -> TokenConfig {
    TokenConfig { filter: Some(filter(&json!({"iccid": [iccid]}))), ..reader(name) }
}

fn protocol(name: &str) -> String {
    format!("bearer.{}", URL_SAFE_NO_PAD.encode(format!("sct_{name}")))
}

#[tokio::test]
async fn four_ways_lead_in() {
    let live = start(vec![reader("a")]);
    let mut client = Client::greeted(&live, "/v1/events/ws", &[("authorization", "Bearer sct_a")]).await;
    client.expect("subscribed").await;

    let offered = format!("{}, simcast.v1.json", protocol("a"));
    let mut client = Client::greeted(&live, "/v1/events/ws", &[("sec-websocket-protocol", &offered)]).await;
    assert_eq!(client.subprotocol(), Some("simcast.v1.json"));
    client.expect("subscribed").await;

    let mut client = Client::greeted(&live, "/v1/events/ws", &[]).await;
    client.send(json!({"type": "auth", "token": "sct_a"})).await;
    client.expect("subscribed").await;

    let principal = live.fixture.context.auth.authenticate(Some("sct_a")).unwrap();
    let path = format!("/v1/events/ws?ticket={}", live.fixture.context.tickets.issue(principal).unwrap());
    Client::greeted(&live, &path, &[]).await.expect("subscribed").await;
    let mut again = Client::open(&live, &path, &[]).await;
    again.expect_error("unauthorized", Some("ticket")).await;
    assert_eq!(again.closed().await, (4401, json!({"code": "unauthorized"})));
}

#[tokio::test]
async fn a_bearer_subprotocol_is_never_echoed() {
    let live = start(vec![reader("a")]);
    // The client library refuses an answer without subprotocol, as browsers do.
    let refused =
        Client::try_open(&live, "/v1/events/ws", &[("sec-websocket-protocol", &protocol("a"))]).await;
    assert!(matches!(refused, Err(Error::Protocol(_))));
}

#[tokio::test]
async fn bad_credentials_are_said_and_closed() {
    let live = start(vec![reader("a"), token("hooks", &[Role::Webhooks])]);
    for (headers, code, close) in [
        (("authorization", "Bearer sct_b".to_owned()), "unauthorized", 4401),
        (("sec-websocket-protocol", format!("simcast.v1.json, {}", protocol("b"))), "unauthorized", 4401),
        (("sec-websocket-protocol", "simcast.v1.json, bearer.???".to_owned()), "unauthorized", 4401),
        (("authorization", "Bearer sct_hooks".to_owned()), "forbidden", 4403),
    ] {
        let mut client = Client::open(&live, "/v1/events/ws", &[(headers.0, &headers.1)]).await;
        client.expect_error(code, None).await;
        assert_eq!(client.closed().await, (close, json!({"code": code})));
    }
    for (token, code, close) in [("sct_b", "unauthorized", 4401), ("sct_hooks", "forbidden", 4403)] {
        let mut client = Client::greeted(&live, "/v1/events/ws", &[]).await;
        client.send(json!({"type": "auth", "id": 1, "token": token})).await;
        assert_eq!(client.expect_error(code, None).await["id"], 1);
        assert_eq!(client.closed().await.0, close);
    }
}

#[tokio::test]
async fn tokens_in_urls_are_refused_with_an_explanation() {
    let live = start(vec![reader("a")]);
    for name in ["token", "access_token"] {
        let mut client = Client::open(&live, &format!("/v1/events/ws?{name}=sct_a"), &[]).await;
        let error = client.expect_error("invalid_parameter", Some(name)).await;
        assert!(error["hint"].as_str().unwrap().contains("/v1/tickets"), "{error}");
        assert_eq!(client.closed().await.0, 4400);
    }
}

#[tokio::test]
async fn nothing_but_a_credential_counts_before_it() {
    let live = start(vec![reader("a")]);
    let mut client = Client::greeted(&live, "/v1/events/ws?from=earliest", &[]).await;
    client.send(json!({"type": "subscribe", "id": 3})).await;
    assert_eq!(client.expect_error("unauthorized", None).await["id"], 3);
    client.ping().await;
    append(&live, 1, 2).await;
    client.send(json!({"type": "auth", "id": 4, "token": "sct_a"})).await;
    let answer = client.expect("authenticated").await;
    assert_eq!(answer, json!({"type": "authenticated", "id": 4, "expires_in_s": null}));
    client.expect("subscribed").await;
    assert_eq!(client.events("default", 1, "e2").await.0, named(1, 2));
    live.connections(|list| list[0]["principal"] == "a").await;
}

#[tokio::test]
async fn messages_are_short_before_a_credential_and_longer_after_it() {
    let live = start(vec![reader("a")]);
    let long = json!({"type": "ping", "id": "x", "pad": "y".repeat(5000)});
    let mut client = Client::greeted(&live, "/v1/events/ws?subscribe=none", &[]).await;
    client.send(long.clone()).await;
    client.expect_error("too_large", None).await;
    assert_eq!(client.closed().await.0, 1009);

    let headers = [("authorization", "Bearer sct_a")];
    let mut client = Client::greeted(&live, "/v1/events/ws?subscribe=none", &headers).await;
    client.send(long).await;
    client.expect_error("invalid_message", Some("pad")).await;
    client.send(json!({"type": "ping", "pad": "y".repeat(70_000)})).await;
    client.expect_error("too_large", None).await;
    assert_eq!(client.closed().await.0, 1009);

    let mut client = Client::greeted(&live, "/v1/events/ws?subscribe=none", &[]).await;
    client.send(json!({"type": "auth", "token": "sct_a"})).await;
    client.send(json!({"type": "ping", "pad": "y".repeat(5000)})).await;
    client.expect_error("invalid_message", Some("pad")).await;
}

#[tokio::test]
async fn a_credential_must_come_in_time() {
    let live = start_with(vec![reader("a")], patient(), |parts| parts.limits.auth_timeout = SHORT);
    let mut client = Client::greeted(&live, "/v1/events/ws", &[]).await;
    client.expect_error("auth_timeout", None).await;
    assert_eq!(client.closed().await.0, 4408);
}

#[tokio::test]
async fn a_token_filters_whatever_is_asked_for() {
    let live = start(vec![of_sim("one", ICCIDS[1])]);
    append(&live, 1, 6).await;
    let headers = [("authorization", "Bearer sct_one")];
    let mut client = Client::greeted(&live, "/v1/events/ws?from=earliest", &headers).await;
    client.expect("subscribed").await;
    assert_eq!(client.events("default", 1, "e4").await.0, ["e1", "e4"]);
    client.expect("caught_up").await;
    client.send(json!({"type": "update", "filter": {"iccid": [ICCIDS[2], ICCIDS[1]]}})).await;
    client.expect("updated").await;
    append(&live, 7, 10).await;
    assert_eq!(client.events("default", 3, "e10").await.0, ["e7", "e10"]);
}

#[tokio::test]
async fn hidden_fields_are_hidden_and_cannot_be_filtered_on() {
    let fields = FieldPolicy { iccid: FieldRule::Drop, ..FieldPolicy::default() };
    let live = start(vec![TokenConfig { fields: Some(fields), ..reader("blind") }]);
    append(&live, 1, 1).await;
    let headers = [("authorization", "Bearer sct_blind")];
    let path = format!("/v1/events/ws?iccid={}", ICCIDS[0]);
    let mut client = Client::greeted(&live, &path, &headers).await;
    client.expect_error("forbidden_field", Some("iccid")).await;
    assert_eq!(client.closed().await.0, 4400);
    let mut client = Client::greeted(&live, "/v1/events/ws?from=earliest", &headers).await;
    client.expect("subscribed").await;
    let events = client.expect("events").await;
    assert_eq!(events["items"][0]["data"]["iccid"], Value::Null);
    assert!(!events.to_string().contains(ICCIDS[1]));
}

#[tokio::test]
async fn an_ending_token_is_announced_and_closed() {
    let ends = TokenConfig { expires: Some(at(3600) + SHORT), ..reader("ends") };
    let live = start_with(vec![ends], patient(), |parts| {
        parts.clock = Arc::new(TokioClock::starting_at(at(3600)));
    });
    let headers = [("authorization", "Bearer sct_ends")];
    let mut client = Client::greeted(&live, "/v1/events/ws?subscribe=none", &headers).await;
    assert_eq!(client.expect("auth_expiring").await, json!({"type": "auth_expiring", "in_s": 0}));
    client.expect_error("token_expired", None).await;
    assert_eq!(client.closed().await.0, 4401);
}

#[tokio::test]
async fn a_renewed_token_holds_the_subscriptions_to_its_own_scope() {
    let ends = TokenConfig { expires: Some(at(3660)), ..reader("ends") };
    let narrow = of_sim("narrow", ICCIDS[1]);
    let hides = FieldPolicy { iccid: FieldRule::Last4, ..FieldPolicy::default() };
    let blind = TokenConfig { fields: Some(hides), ..reader("blind") };
    let live = start(vec![ends, narrow, blind]);
    let headers = [("authorization", "Bearer sct_ends")];
    let mut client = Client::greeted(&live, "/v1/events/ws", &headers).await;
    client.expect("subscribed").await;
    client.expect("caught_up").await;
    assert_eq!(client.expect("auth_expiring").await["in_s"], 60);
    append(&live, 1, 3).await;
    assert_eq!(client.events("default", 1, "e3").await.0, named(1, 3));
    client.send(json!({"type": "subscribe", "sub": "one", "filter": {"iccid": [ICCIDS[0]]}})).await;
    client.expect("subscribed").await;
    client.expect("caught_up").await;

    client.send(json!({"type": "auth", "id": 1, "token": "sct_narrow"})).await;
    client.expect("authenticated").await;
    append(&live, 4, 7).await;
    assert_eq!(client.events("default", 4, "e7").await.0, ["e4", "e7"]);

    // A policy that hides what one of them filters on ends that one.
    client.send(json!({"type": "auth", "id": 2, "token": "sct_blind"})).await;
    client.expect("authenticated").await;
    assert_eq!(client.expect_error("forbidden_field", Some("iccid")).await["sub"], "one");
    append(&live, 8, 8).await;
    let events = client.expect("events").await;
    assert_eq!((&events["sub"], &events["n"]), (&json!("default"), &json!(6)));
    assert_eq!(ids(&events["items"]), ["e8"]);
    assert_eq!(events["items"][0]["data"]["iccid"], format!("{}0003", "*".repeat(15)));
}
