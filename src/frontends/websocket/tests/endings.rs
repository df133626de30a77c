//! How connections begin and end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn only_a_websocket_handshake_is_upgraded() {
    let live = start(vec![]);
    let good =
        "host: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
    let key = "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    for (headers, status) in [
        (format!("{good}{key}"), "101"),
        ("host: localhost\r\n".to_owned(), "426"),
        (good.to_owned(), "426"),
        (format!("{good}sec-websocket-key: short\r\n"), "426"),
        (format!("{}{key}", good.replace("13", "8")), "426"),
        (format!("{good}{key}origin: https://evil.example\r\n"), "403"),
        (format!("{good}{key}origin: https://console.example\r\n"), "101"),
        (format!("{}{key}", good.replace("localhost", "evil.example")), "403"),
    ] {
        let mut stream = TcpStream::connect(live.addr).await.unwrap();
        stream.write_all(format!("GET /v1/events/ws HTTP/1.1\r\n{headers}\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer[9..], status.as_bytes(), "{headers}");
    }
}

#[tokio::test]
async fn a_url_that_asks_for_something_wrong_is_told_so() {
    let live = start(vec![]);
    let foreign = Cursor { incarnation: 99, seq: 1, tag: 0 };
    for (query, code, field) in [
        ("iccid=12", "invalid_filter", Some("iccid")),
        ("event=connection", "invalid_parameter", Some("event")),
        ("after=x", "invalid_cursor", Some("after")),
        ("subscribe=all", "invalid_parameter", Some("subscribe")),
    ] {
        let mut client = Client::open(&live, &format!("/v1/events/ws?{query}"), &[]).await;
        client.expect_error(code, field).await;
        assert_eq!(client.closed().await, (4400, json!({"code": code})), "{query}");
    }
    let path = format!("/v1/events/ws?on_expired=fail&after={foreign}");
    let mut client = Client::greeted(&live, &path, &[]).await;
    client.expect_error("cursor_expired", Some("after")).await;
    assert_eq!(client.closed().await.0, 4400);
}

#[tokio::test]
async fn what_is_no_message_closes() {
    let live = start(vec![]);
    let mut client = Client::bare(&live).await;
    client.raw(Message::binary(vec![1, 2])).await;
    client.expect_error("invalid_message", None).await;
    assert_eq!(client.closed().await, (4400, json!({"code": "invalid_message"})));

    let mut client = Client::bare(&live).await;
    client.raw(Message::text("{")).await;
    client.expect_error("invalid_message", None).await;
    assert_eq!(client.closed().await.0, 4400);

    for (bytes, code) in [
        // Masked by zeros: text that is no UTF-8; a reserved opcode. Not masked at all.
        (&b"\x81\x81\0\0\0\0\xff"[..], 1007),
        (b"\x83\x80\0\0\0\0", 1002),
        (b"\x81\x01a", 1002),
    ] {
        let mut client = Client::bare(&live).await;
        client.stream.get_mut().write_all(bytes).await.unwrap();
        assert_eq!(client.closed().await.0, code, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_flood_of_messages_is_ended() {
    let timing = Timing { messages_per_second: 3, ..patient() };
    let live = start_with(vec![], timing, |_| {});
    let mut client = Client::bare(&live).await;
    // More than two seconds' worth, so that one of them is over.
    for _ in 0..9 {
        client.stream.feed(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
    }
    client.stream.flush().await.unwrap();
    let mut pongs = 0;
    let code = loop {
        let Message::Text(text) = client.stream.next().await.unwrap().unwrap() else { panic!() };
        let message: Value = serde_json::from_str(&text).unwrap();
        match message["type"].as_str().unwrap() {
            "pong" => pongs += 1,
            _ => break message["code"].clone(),
        }
    };
    assert_eq!(code, "rate_limited");
    assert!(pongs >= 3, "{pongs}");
    assert_eq!(client.closed().await.0, 4301);
}

#[tokio::test]
async fn a_full_gateway_says_so() {
    let live = start_with(vec![], patient(), |parts| parts.limits.connections = 1);
    let first = Client::bare(&live).await;
    let mut second = Client::open(&live, "/v1/events/ws", &[]).await;
    second.expect_error("connection_limit", None).await;
    assert_eq!(second.closed().await.0, 4302);
    drop(first);
    live.connections(<[Value]>::is_empty).await;
    Client::bare(&live).await;
}

#[tokio::test]
async fn a_peer_that_closes_is_answered_and_forgotten() {
    let live = start(vec![]);
    let mut client = Client::bare(&live).await;
    let frame = CloseFrame { code: 1000.into(), reason: "done".into() };
    client.raw(Message::Close(Some(frame.clone()))).await;
    assert_eq!(client.stream.next().await.unwrap().unwrap(), Message::Close(Some(frame)));
    assert!(client.stream.next().await.is_none());
    live.connections(<[Value]>::is_empty).await;

    let gone = Client::bare(&live).await;
    drop(gone);
    live.connections(<[Value]>::is_empty).await;
}

#[tokio::test]
async fn a_drain_is_announced_goes_on_delivering_and_ends() {
    let timing = Timing { drain: LONG, ..patient() };
    let live = start_with(vec![], timing, |_| {});
    // The first slot of the window is its beginning, so this one is closed at once.
    let mut first = Client::bare(&live).await;
    let mut second = Client::greeted(&live, "/v1/events/ws", &[]).await;
    second.expect("subscribed").await;
    second.expect("caught_up").await;
    live.fixture.context.draining.cancel();
    let draining = json!({"type": "draining", "reconnect_within_ms": 600_000});
    assert_eq!(first.expect("draining").await, draining);
    assert_eq!(second.expect("draining").await, draining);
    append(&live, 1, 1).await;
    assert_eq!(second.events("default", 1, "e1").await.0, ["e1"]);
    live.fixture.context.stop.cancel();
    assert!(!matches!(second.stream.next().await, Some(Ok(Message::Text(_)))));
}

#[tokio::test]
async fn a_drained_connection_is_closed_with_its_cursor() {
    let timing = Timing { drain: SHORT, ..patient() };
    let mut live = start_with(vec![], timing, |_| {});
    append(&live, 1, 3).await;
    let mut client = Client::greeted(&live, "/v1/events/ws?from=earliest", &[]).await;
    client.expect("subscribed").await;
    let (_, cursor) = client.events("default", 1, "e3").await;
    client.expect("caught_up").await;
    live.fixture.context.draining.cancel();
    client.expect("draining").await;
    assert_eq!(client.closed().await, (4201, json!({"code": "draining", "cursor": cursor})));
    drop(client);
    // Nothing is left to wait for.
    (&mut live.server).await.unwrap();
    assert!(!live.fixture.context.stop.is_cancelled());
}

/// Fills the log with more than two sockets' buffers hold.
async fn fill(live: &Live) {
    for batch in 0..120 {
        append(live, batch * 250 + 1, (batch + 1) * 250).await;
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_told_where_to_resume() {
    let live = start_with(vec![], patient(), |parts| parts.limits.write_timeout = SHORT);
    fill(&live).await;
    let mut client = Client::bare(&live).await;
    client.send(json!({"type": "subscribe", "from": "earliest"})).await;
    live.connections(|list| !list[0]["subscriptions"].as_array().unwrap().is_empty()).await;
    // The subscription ends when the client is given up; the close frame waits behind what it has not taken.
    live.connections(|list| list[0]["subscriptions"].as_array().unwrap().is_empty()).await;
    client.expect("subscribed").await;
    let (mut seen, mut cursor) = (Vec::new(), Value::Null);
    let frame = loop {
        match client.stream.next().await.unwrap().unwrap() {
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(message["n"], seen.len() + 1, "{message}");
                seen.extend(ids(&message["items"]));
                cursor = message["cursor"].clone();
            }
            Message::Close(Some(frame)) => break frame,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(u16::from(frame.code), 4308);
    let reason: Value = serde_json::from_str(&frame.reason).unwrap();
    assert_eq!(reason, json!({"code": "slow", "cursor": cursor}));
    assert_eq!(seen, named(1, seen.len()));
    assert!(seen.len() < 30_000);
}

#[tokio::test]
async fn a_client_that_goes_on_taking_nothing_is_reset() {
    let timing = Timing { close: SHORT, ..patient() };
    let live = start_with(vec![], timing, |parts| parts.limits.write_timeout = SHORT);
    fill(&live).await;
    let mut client = Client::bare(&live).await;
    client.send(json!({"type": "subscribe", "from": "earliest"})).await;
    live.connections(|list| !list[0]["subscriptions"].as_array().unwrap().is_empty()).await;
    live.connections(<[Value]>::is_empty).await;
    let error = loop {
        match client.stream.next().await {
            Some(Ok(Message::Text(_))) => {}
            other => break other,
        }
    };
    assert!(matches!(error, Some(Err(_))), "{error:?}");
}
