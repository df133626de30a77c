//! Each mistake of an operator or client, with its message: what is wrong, where, and what to do.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use serde_json::{Value, json};
use simcast::{
    event::Cursor,
    globalsim::simulator::EventSpec,
    proto::{self, event_service_client::EventServiceClient, subscribe_request::Start},
};
use tokio_tungstenite::tungstenite::Message;
use tonic_types::StatusExt as _;

use super::{
    clients::Socket,
    support::{World, get, run, settled},
};

/// Every text must be in the message; the message is shown when one is missing.
fn says(message: &str, wanted: &[&str]) {
    for text in wanted {
        assert!(message.contains(text), "{text:?} is missing in: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_wrong_name_the_field_and_the_fix() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    world.sim.inject(EventSpec::default());
    settled(&world, gateway.http).await;
    let foreign = Cursor { incarnation: 1, seq: 1, tag: 1 }.to_string();
    let garbage = "AAAA";
    for (path, status, code, field, text) in [
        ("/v1/events?iccid=12345", 400, "invalid_filter", json!("iccid"), "18 to 22 digits"),
        ("/v1/events?iccids=8947080012345678901", 400, "invalid_", json!("iccids"), "iccid"),
        (&format!("/v1/events?after={garbage}"), 400, "invalid_cursor", json!("after"), "unchanged"),
        (&format!("/v1/events?after={foreign}"), 410, "cursor_expired", json!("after"), "oldest"),
        ("/v1/events?limit=0", 400, "invalid_", json!("limit"), "1000"),
        ("/v1/events/no_such_event", 404, "not_found", Value::Null, ""),
        ("/v1/nothing", 404, "not_found", Value::Null, ""),
    ] {
        let (got, body) = get(gateway.http, path).await;
        let error = &body["error"];
        assert_eq!(got, status, "{path}: {body}");
        assert!(error["code"].as_str().unwrap().starts_with(code), "{path}: {body}");
        if !field.is_null() {
            assert_eq!(error["field"], field, "{path}: {body}");
        }
        says(&body.to_string(), &[text]);
        assert!(error["request_id"].is_string(), "{body}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_mistakes_are_answered_on_the_open_connection() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let mut socket = Socket::open(gateway.http, "subscribe=none").await.unwrap();
    socket.expect("welcome").await;
    let foreign = Cursor { incarnation: 1, seq: 1, tag: 1 }.to_string();
    for (message, code, field) in [
        (json!({"type": "dance", "id": "1"}), "invalid_", "type"),
        (
            json!({"type": "subscribe", "id": "2", "sub": "a", "filter": {"iccid": ["1"]}}),
            "invalid_filter",
            "iccid",
        ),
        (
            json!({"type": "subscribe", "id": "3", "sub": "a", "filter": {"icid": ["1"]}}),
            "invalid_filter",
            "icid",
        ),
        (json!({"type": "subscribe", "id": "4", "sub": "a", "after": "AAAA"}), "invalid_cursor", "after"),
        (json!({"type": "subscribe", "id": "5", "sub": "bad name!"}), "invalid_", "sub"),
        (
            json!({"type": "subscribe", "id": "6", "sub": "a", "after": foreign, "on_expired": "fail"}),
            "cursor_expired",
            "after",
        ),
    ] {
        let id = message["id"].clone();
        socket.send(message).await;
        let error = socket.expect("error").await;
        assert_eq!((&error["id"], error["field"].as_str()), (&id, Some(field)), "{error}");
        assert!(error["code"].as_str().unwrap().starts_with(code), "{error}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    socket.send(json!({"type": "subscribe", "id": "7", "sub": "a"})).await;
    socket.expect("subscribed").await;
    socket.send(json!({"type": "subscribe", "id": "8", "sub": "a"})).await;
    assert_eq!(socket.expect("error").await["code"], "sub_exists");
    // By default an unusable cursor is announced and reading goes on at the oldest event.
    socket.send(json!({"type": "subscribe", "id": "9", "sub": "b", "after": foreign})).await;
    let gap = socket.expect("gap").await;
    assert_eq!((gap["sub"].as_str(), gap["reason"].as_str()), (Some("b"), Some("incarnation")), "{gap}");
    socket.send(json!({"type": "ping", "id": "10"})).await;
    assert_eq!(socket.expect("pong").await["id"], "10");
    socket.send_raw(Message::text(format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(70_000)))).await;
    loop {
        let message = socket.next().await;
        if message["type"] == "closed" {
            assert_eq!(message["code"], 1009, "{message}");
            break;
        }
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_mistakes_carry_typed_details() {
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let mut client = EventServiceClient::connect(format!("http://{}", gateway.grpc)).await.unwrap();
    let bad = proto::SubscribeRequest {
        filter: Some(proto::Filter { iccid: vec!["12".into()], ..Default::default() }),
        ..Default::default()
    };
    let status = client.subscribe(bad).await.err().unwrap();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let violation = &status.get_details_bad_request().unwrap().field_violations[0];
    assert_eq!(violation.field, "filter.iccid");
    says(&violation.description, &["18 to 22 digits"]);

    let foreign = Cursor { incarnation: 1, seq: 1, tag: 1 }.to_string();
    let expired = proto::SubscribeRequest { start: Some(Start::After(foreign)), ..Default::default() };
    let status = match client.subscribe(expired).await {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
    };
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    let info = status.get_details_error_info().unwrap();
    assert!(info.metadata.contains_key("oldest") && info.metadata.contains_key("newest"), "{info:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_and_the_wrong_role_are_refused_everywhere() {
    let world = World::quiet().await;
    let config = world.dir.path().join("simcast.toml");
    let mut tokens = Vec::new();
    let mut text = String::new();
    for (name, role) in [("reader", "read"), ("hooks", "webhooks")] {
        let (_, out, told) = run(&["token", "new", "--name", name, "--role", role], &[], world.dir.path());
        let token = told.split_whitespace().find(|word| word.starts_with("sct_"));
        tokens.push(token.unwrap_or_else(|| panic!("{told}")).to_owned());
        assert!(!out.contains(&tokens[tokens.len() - 1]), "what goes into the file is not the secret");
        text.push_str(&out);
    }
    let [token, wrong_role] = &tokens[..] else { panic!("two tokens") };
    fs::write(&config, text).unwrap();
    let sources =
        simcast::config::Sources { file: Some(config), env: world.settings(), ..Default::default() };
    let config = simcast::config::load(&sources).unwrap();
    let metrics = simcast::observability::Metrics::install().unwrap();
    let running = simcast::app::start(config, simcast::clock::system(), metrics).await.unwrap();

    for path in ["/v1/events", "/v1/events/x", "/v1/events/sse", "/v1/stream", "/v1/subscribers"] {
        let (status, body) = get(running.http, path).await;
        assert_eq!(status, 401, "{path}: {body}");
    }
    for path in ["/v1/events", "/v1/events/x", "/v1/events/sse", "/v1/stream", "/v1/subscribers"] {
        let url = format!("http://{}{path}", running.http);
        let answer = super::support::http().get(url).bearer_auth(wrong_role).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{path}");
        says(&answer.text().await.unwrap(), &["forbidden", "read"]);
    }
    let mut socket = Socket::open(running.http, "").await.unwrap();
    socket.send(json!({"type": "auth", "token": wrong_role})).await;
    loop {
        let message = socket.next().await;
        if message["type"] == "closed" {
            assert_eq!(message["code"], 4403, "{message}");
            break;
        }
        assert_ne!(message["type"], "subscribed", "nothing for the wrong role");
    }
    let mut socket = Socket::open(running.http, "").await.unwrap();
    loop {
        let message = socket.next().await;
        if message["type"] == "closed" {
            assert_eq!(message["code"], 4408, "nobody said who they are in time: {message}");
            break;
        }
        assert_ne!(message["type"], "subscribed", "nothing before auth");
    }
    let mut socket = Socket::open(running.http, "").await.unwrap();
    socket.send(json!({"type": "auth", "token": "sct_wrong"})).await;
    loop {
        let message = socket.next().await;
        if message["type"] == "closed" {
            assert_eq!(message["code"], 4401, "{message}");
            break;
        }
    }
    let mut socket = Socket::open(running.http, "").await.unwrap();
    socket.send(json!({"type": "auth", "token": token})).await;
    socket.expect("subscribed").await;

    let mut client = EventServiceClient::connect(format!("http://{}", running.grpc)).await.unwrap();
    let status = client.get_stream_info(proto::GetStreamInfoRequest {}).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    let mut request = tonic::Request::new(proto::GetStreamInfoRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.get_stream_info(request).await.unwrap();
    let mut request = tonic::Request::new(proto::GetStreamInfoRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {wrong_role}").parse().unwrap());
    assert_eq!(client.get_stream_info(request).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    running.lifecycle.drain();
    running.join().await;
}

fn serve(world: &World, args: &[&str], change: &[(&str, &str)]) -> (Option<i32>, String) {
    let env = world.settings_with(change);
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let (code, _, errors) = run(&[&["serve"], args].concat(), &env, world.dir.path());
    (code, errors)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_can_not_start_says_why_and_what_to_do() {
    let world = World::quiet().await;
    let file = world.dir.path().join("bad.toml");
    fs::write(
        &file,
        "[upstream]\nbase_uri = \"x\"\nrequests_per_minute = \"many\"\n[http]\nlisten = \"nowhere\"\n",
    )
    .unwrap();
    let (code, errors) =
        serve(&world, &["--config", file.to_str().unwrap()], &[("SIMCAST__HTTP__LISTEN", "nowhere")]);
    assert_eq!(code, Some(64));
    says(&errors, &["upstream.base_uri", "base_url", "upstream.requests_per_minute", "http.listen"]);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (code, errors) = serve(&world, &[], &[("SIMCAST__HTTP__LISTEN", &addr)]);
    assert_eq!(code, Some(1), "{errors}");
    says(&errors, &[&addr, "http.listen"]);

    let file_in_the_way = world.dir.path().join("file");
    fs::write(&file_in_the_way, "").unwrap();
    let path = file_in_the_way.to_str().unwrap();
    let (code, errors) = serve(&world, &[], &[("SIMCAST__BUS__EMBEDDED__PATH", path)]);
    assert_eq!(code, Some(1), "{errors}");
    says(&errors, &[path, "bus.embedded.path"]);

    let (code, errors) = serve(&world, &[], &[("SIMCAST__HTTP__LISTEN", "0.0.0.0:0")]);
    assert_eq!(code, Some(64), "{errors}");
    says(&errors, &["http.listen", "simcast token new"]);

    let running = world.child();
    let (code, errors) = serve(&world, &[], &[]);
    assert_eq!(code, Some(1), "{errors}");
    says(&errors, &["in use by another"]);
    drop(running);
    let mode = fs::metadata(world.dir.path().join("data")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "the log holds personal data: nobody else reads it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_and_a_wrong_upstream_are_told_apart_while_the_gateway_serves() {
    let world = World::quiet().await;
    let key = [("SIMCAST__UPSTREAM__API_KEY", "wrong-key-0123456789")];
    let gateway = world.gateway_with(&key).await;
    let upstream = wait_for_upstream(gateway.http, |upstream| upstream["state"] == "auth_failed").await;
    says(&upstream.to_string(), &["key"]);
    assert!(!upstream.to_string().contains("wrong-key"), "a key is never shown");
    let (status, ready) = get(gateway.admin, "/readyz").await;
    assert_eq!(status, 200, "what is stored can still be read: {ready}");
    says(&ready.to_string(), &["degraded", "auth_failed"]);
    gateway.stop().await;

    // An HTTP server that is no GlobalSIM: simcast itself, under a path at which it does not answer like one.
    let other = World::quiet().await;
    let stranger = other.gateway().await;
    let base = format!("http://{}/v1/events", stranger.http);
    let gateway = world.gateway_with(&[("SIMCAST__UPSTREAM__BASE_URL", &base)]).await;
    let upstream = wait_for_upstream(gateway.http, |upstream| upstream["message"].is_string()).await;
    assert_eq!(upstream["state"], "stale", "{upstream}");
    says(&upstream["message"].to_string(), &["base_url"]);
    gateway.stop().await;
    stranger.stop().await;
}

async fn wait_for_upstream(addr: std::net::SocketAddr, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + super::support::PATIENCE;
    loop {
        let (_, stream) = get(addr, "/v1/stream").await;
        if done(&stream["upstream"]) {
            return stream["upstream"].clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "{stream}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
