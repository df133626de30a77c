//! Subscriptions: what arrives, in which order, from where.

use tokio_tungstenite::tungstenite::Bytes;

use super::*;
use crate::{
    frontends::{listener::testing::tls, tests_support::at},
    ingest::Status,
};

#[tokio::test]
async fn the_bare_url_follows_everything_from_now() {
    let live = start(vec![]);
    append(&live, 1, 3).await;
    let mut client =
        Client::open(&live, "/v1/events/ws", &[("sec-websocket-protocol", "simcast.v1.json")]).await;
    assert_eq!(client.subprotocol(), Some("simcast.v1.json"));
    let welcome = client.expect("welcome").await;
    assert_eq!(welcome["limits"], live.fixture.context.limits.to_json());
    assert_eq!(welcome["heartbeat_ms"], 600_000);
    let subscribed = client.expect("subscribed").await;
    assert_eq!((&subscribed["sub"], &subscribed["id"]), (&json!("default"), &Value::Null));
    client.expect("caught_up").await;
    append(&live, 4, 5).await;
    assert_eq!(client.events("default", 1, "e5").await.0, named(4, 5));
    append(&live, 6, 6).await;
    let (ids, cursor) = client.events("default", 3, "e6").await;
    assert_eq!(ids, ["e6"]);
    // The exact position of the subscription is a start like any other.
    let path = format!("/v1/events/ws?after={}", subscribed["cursor"].as_str().unwrap());
    let mut again = Client::greeted(&live, &path, &[]).await;
    again.expect("subscribed").await;
    assert_eq!(again.events("default", 1, "e6").await, (named(4, 6), cursor));
}

#[tokio::test]
async fn a_resume_neither_repeats_nor_skips() {
    let live = start(vec![]);
    append(&live, 1, 700).await;
    let mut seen = Vec::new();
    let mut start = json!({"from": "earliest"});
    // Cut off after each batch, while the log goes on growing.
    while seen.len() < 900 {
        let mut client = Client::bare(&live).await;
        let mut subscribe = json!({"type": "subscribe", "sub": "s"});
        subscribe.as_object_mut().unwrap().extend(start.as_object().unwrap().clone());
        client.send(subscribe).await;
        client.expect("subscribed").await;
        let events = client.expect("events").await;
        seen.extend(ids(&events["items"]));
        start = json!({"after": events["cursor"]});
        if seen.len() == 256 {
            append(&live, 701, 900).await;
        }
    }
    assert_eq!(seen, named(1, 900));
}

#[tokio::test]
async fn history_is_followed_by_caught_up_once_and_then_by_what_is_new() {
    let live = start(vec![]);
    append(&live, 1, 300).await;
    let mut client = Client::greeted(&live, "/v1/events/ws?from=earliest", &[]).await;
    client.expect("subscribed").await;
    let (ids, cursor) = client.events("default", 1, "e300").await;
    assert_eq!(ids, named(1, 300));
    assert_eq!(client.expect("caught_up").await["cursor"], *cursor);
    append(&live, 301, 301).await;
    assert_eq!(client.events("default", 301, "e301").await.0, ["e301"]);
}

#[tokio::test]
async fn other_starts_are_exact() {
    let live = start(vec![]);
    append(&live, 1, 20).await;
    for (start, first) in [(json!({"last": 3}), 18), (json!({"since": at(15).to_string()}), 15)] {
        let mut client = Client::bare(&live).await;
        let mut subscribe = json!({"type": "subscribe", "id": 1});
        subscribe.as_object_mut().unwrap().extend(start.as_object().unwrap().clone());
        client.send(subscribe).await;
        assert_eq!(client.expect("subscribed").await["id"], 1);
        assert_eq!(client.events("default", 1, "e20").await.0, named(first, 20));
    }
}

#[tokio::test]
async fn an_update_keeps_the_position() {
    let live = start(vec![]);
    let mut client = Client::greeted(&live, &format!("/v1/events/ws?iccid={}", ICCIDS[1]), &[]).await;
    client.expect("subscribed").await;
    client.expect("caught_up").await;
    append(&live, 1, 4).await;
    assert_eq!(client.events("default", 1, "e4").await.0, ["e1", "e4"]);
    let filter = json!({"iccid": [ICCIDS[2]], "event_type": ["connexion"]});
    client.send(json!({"type": "update", "id": "u", "filter": filter})).await;
    let updated = client.expect("updated").await;
    assert_eq!((&updated["id"], &updated["sub"]), (&json!("u"), &json!("default")));
    assert!(updated["warnings"].to_string().contains("connexion"), "{updated}");
    client.send(json!({"type": "update", "filter": {"iccid": [ICCIDS[2]]}})).await;
    client.expect("updated").await;
    append(&live, 5, 9).await;
    // Neither what the new filter would have matched before, nor what the old one would match now.
    assert_eq!(client.events("default", 3, "e8").await.0, ["e5", "e8"]);
}

#[tokio::test]
async fn subscriptions_of_one_connection_are_served_in_turn() {
    let live = start(vec![]);
    append(&live, 1, 1500).await;
    let mut client = Client::bare(&live).await;
    // In one piece, so that all three are open before any of them is served.
    for sub in ["a", "b", "c"] {
        let subscribe = json!({"type": "subscribe", "sub": sub, "from": "earliest"});
        client.stream.feed(Message::text(subscribe.to_string())).await.unwrap();
    }
    client.stream.flush().await.unwrap();
    let mut got: std::collections::HashMap<String, Vec<String>> = Default::default();
    let mut order = Vec::new();
    while got.len() < 3 || got.values().any(|all| all.len() < 1500) {
        let message = client.stream.next().await.unwrap().unwrap().into_text().unwrap();
        let message: Value = serde_json::from_str(&message).unwrap();
        if message["type"] == "events" {
            let sub = message["sub"].as_str().unwrap().to_owned();
            let all = got.entry(sub.clone()).or_default();
            assert_eq!(message["n"], all.len() as u64 + 1);
            all.extend(ids(&message["items"]));
            order.push(sub);
        }
    }
    let expected = named(1, 1500);
    for (sub, all) in &got {
        assert!(*all == expected, "{sub} has {} events in another order", all.len());
        // It has begun before any other is done.
        let first = order.iter().position(|served| served == sub).unwrap();
        for other in ["a", "b", "c"] {
            assert!(first <= order.iter().rposition(|served| served == other).unwrap(), "{order:?}");
        }
    }
}

#[tokio::test]
async fn an_explicit_subscribe_replaces_what_the_url_opened_and_nothing_else() {
    let live = start(vec![]);
    append(&live, 1, 3).await;
    let mut client = Client::greeted(&live, "/v1/events/ws", &[]).await;
    client.expect("subscribed").await;
    client.expect("caught_up").await;
    let subscribe = json!({"type": "subscribe", "id": "x", "from": "earliest"});
    client.send(subscribe.clone()).await;
    client.expect("subscribed").await;
    assert_eq!(client.events("default", 1, "e3").await.0, named(1, 3));
    client.expect("caught_up").await;
    client.send(subscribe).await;
    assert_eq!(client.expect_error("sub_exists", Some("sub")).await["id"], "x");
    client.send(json!({"type": "unsubscribe", "id": 2})).await;
    assert_eq!(client.expect("unsubscribed").await["id"], 2);
    append(&live, 4, 4).await;
    client.send(json!({"type": "unsubscribe"})).await;
    client.expect_error("sub_unknown", Some("sub")).await;
    client.send(json!({"type": "update", "filter": {}})).await;
    client.expect_error("sub_unknown", Some("sub")).await;
}

#[tokio::test]
async fn a_cursor_of_another_log_leads_to_a_gap_or_to_an_error_as_asked() {
    let live = start(vec![]);
    append(&live, 1, 2).await;
    let foreign = Cursor { incarnation: 99, seq: 1, tag: 0 }.to_string();
    let mut client = Client::bare(&live).await;
    client.send(json!({"type": "subscribe", "sub": "f", "after": foreign, "on_expired": "fail"})).await;
    let error = client.expect_error("cursor_expired", Some("after")).await;
    client.send(json!({"type": "subscribe", "sub": "f", "after": foreign})).await;
    assert_eq!(client.expect("subscribed").await["cursor"], error["oldest"]);
    let gap = client.expect("gap").await;
    assert_eq!(gap["reason"], "incarnation");
    assert_eq!((&gap["from"], &gap["to"]), (&json!(foreign), &error["oldest"]));
    assert_eq!(client.events("f", 1, "e2").await, (named(1, 2), error["newest"].as_str().unwrap().into()));
}

#[tokio::test]
async fn a_quiet_subscription_is_told_how_far_it_is() {
    let live = start_with(vec![], patient(), |parts| parts.limits.heartbeat = SHORT);
    let mut client = Client::greeted(&live, &format!("/v1/events/ws?iccid={}", ICCIDS[0]), &[]).await;
    client.expect("subscribed").await;
    client.expect("caught_up").await;
    append(&live, 1, 2).await;
    let newest = live.fixture.stored(2).cursor(7).to_string();
    let bookmark = loop {
        let bookmark = client.expect("bookmark").await;
        if bookmark["cursor"] == *newest {
            break bookmark;
        }
    };
    let expected = json!({"type": "bookmark", "sub": "default", "cursor": newest,
        "seen_until": at(3590).to_string(), "upstream": "ok"});
    assert_eq!(bookmark, expected);
    live.fixture.upstream.send_replace(Default::default());
    let stale = Status::default();
    loop {
        let bookmark = client.expect("bookmark").await;
        if bookmark["upstream"] == stale.state.as_str() {
            assert_eq!(bookmark["seen_until"], Value::Null);
            break;
        }
    }
}

#[tokio::test]
async fn a_connection_without_subscriptions_is_kept_alive_by_pings() {
    let live = start_with(vec![], patient(), |parts| parts.limits.heartbeat = SHORT);
    let mut client = Client::bare(&live).await;
    let message = client.stream.next().await.unwrap().unwrap();
    assert_eq!(message, Message::Ping(Bytes::new()));
}

#[tokio::test]
async fn pings_are_answered_between_frames() {
    let live = start(vec![]);
    append(&live, 1, 2000).await;
    let mut client = Client::greeted(&live, "/v1/events/ws?from=earliest", &[]).await;
    client.raw(Message::Ping(Bytes::from_static(b"here"))).await;
    client.ping_mixed(2000).await;
}

impl Client {
    /// Takes everything up to event `last`; a pong must be among it, and every frame whole.
    async fn ping_mixed(&mut self, last: usize) {
        let (mut seen, mut pong) = (0, false);
        while seen < last || !pong {
            match self.stream.next().await.unwrap().unwrap() {
                Message::Pong(payload) => {
                    assert_eq!(&payload[..], b"here");
                    pong = true;
                }
                Message::Text(text) => {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    seen += message["items"].as_array().map_or(0, Vec::len);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn frames_are_whole_over_tls() {
    let fixture = Fixture::with(vec![], |parts| parts.limits = patient_limits());
    let websocket = routes_with(fixture.context.clone(), patient());
    let config = tls::server(&[]);
    let live = Live::start_tls(fixture, websocket, Router::new(), Deadlines::default(), Some(config));
    append(&live, 1, 2000).await;
    let request = "wss://localhost/v1/events/ws?from=earliest".into_client_request().unwrap();
    let (mut stream, _) = client_async(request, tls::connect(live.addr, &[]).await).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2000 {
        let Message::Text(text) = stream.next().await.unwrap().unwrap() else { panic!() };
        let message: Value = serde_json::from_str(&text).unwrap();
        if message["type"] == "events" {
            seen.extend(ids(&message["items"]));
        }
    }
    assert_eq!(seen, named(1, 2000));
    // One at a time as well: nothing may wait inside TLS for the next write.
    append(&live, 2001, 2001).await;
    loop {
        let Message::Text(text) = stream.next().await.unwrap().unwrap() else { panic!() };
        let message: Value = serde_json::from_str(&text).unwrap();
        if message["type"] == "events" {
            assert_eq!(ids(&message["items"]), ["e2001"]);
            break;
        }
    }
}

#[tokio::test]
async fn mistakes_are_answered_and_the_connection_stays() {
    let live = start_with(vec![], patient(), |parts| parts.limits.subscriptions_per_connection = 2);
    let mut client = Client::bare(&live).await;
    for (message, code, field) in [
        (json!({"type": "listen", "id": 7}), "invalid_message", Some("type")),
        (json!({"id": 7}), "invalid_message", Some("type")),
        (json!({"type": "subscribe", "id": 7, "sub": "a/b"}), "invalid_message", Some("sub")),
        (json!({"type": "subscribe", "id": 7, "filters": {}}), "invalid_message", Some("filters")),
        (json!({"type": "subscribe", "id": 7, "filter": {"iccid": ["1"]}}), "invalid_filter", Some("iccid")),
        (json!({"type": "subscribe", "id": 7, "after": "x"}), "invalid_cursor", Some("after")),
        (json!({"type": "subscribe", "id": 7, "since": "x"}), "invalid_start", Some("since")),
    ] {
        client.send(message.clone()).await;
        assert_eq!(client.expect_error(code, field).await["id"], 7, "{message}");
    }
    for sub in ["a", "b"] {
        client.send(json!({"type": "subscribe", "sub": sub})).await;
        client.expect("subscribed").await;
        client.expect("caught_up").await;
    }
    client.send(json!({"type": "subscribe", "sub": "c"})).await;
    client.expect_error("subscription_limit", Some("sub")).await;
    client.ping().await;
}

#[tokio::test]
async fn the_asyncapi_document_is_served() {
    let live = start(vec![]);
    let answer = reqwest_get(&live, "/asyncapi.json").await;
    assert_eq!(answer["asyncapi"], "3.0.0");
}

async fn reqwest_get(live: &Live, path: &str) -> Value {
    // Another test may have been first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{}{path}", live.addr)).send().await.unwrap();
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}
