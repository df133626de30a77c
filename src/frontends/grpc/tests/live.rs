//! What ends a stream or breaks its silence, and its place in the registry.

use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::{ingest::status::UpstreamState, proto::subscribe_response::Control};

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_beats_with_position_and_upstream() {
    let gateway = Gateway::start(Setup::default());
    let mut client = gateway.pipe_client().await;
    let request = SubscribeRequest {
        filter: Some(proto::Filter { event_type: vec!["location_update".into()], ..Default::default() }),
        heartbeat_interval: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
        ..Default::default()
    };
    let mut responses = subscribe(&mut client, request).await;
    let (_, controls) = history(&mut responses).await;
    let [Control::Opened(opened), Control::CaughtUp(_)] = &controls[..] else { panic!("{controls:?}") };
    assert_eq!(opened.heartbeat_interval.unwrap().seconds, 3);
    let quiet_since = tokio::time::Instant::now();
    gateway.append(0..7).await;
    let seen = Upstream { state: UpstreamState::Ok, seen_until: Some(time(5)), ..Upstream::default() };
    gateway.upstream.send_replace(Arc::new(seen));
    for beat in 1..=3 {
        let response = next(&mut responses).await;
        let Some(Control::Heartbeat(control)) = response.control else { panic!("{response:?}") };
        assert_eq!(cursor_of(&response.cursor).seq, 7, "evaluated although nothing matched");
        assert_eq!(control.upstream(), proto::UpstreamState::Ok);
        assert_eq!(control.seen_until.unwrap().seconds, time(5).as_second());
        let elapsed = quiet_since.elapsed();
        assert!(elapsed >= Duration::from_secs(3 * beat) && elapsed < Duration::from_secs(3 * beat + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn events_are_a_sign_of_life_too() {
    let gateway = Gateway::start(Setup::default());
    let mut client = gateway.pipe_client().await;
    let heartbeat_interval = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let request = SubscribeRequest { heartbeat_interval, ..Default::default() };
    let mut responses = subscribe(&mut client, request).await;
    history(&mut responses).await;
    for n in 0..5 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        gateway.append(n..n + 1).await;
        assert_eq!(ids(&next(&mut responses).await), [format!("evt_{n}")], "no heartbeat in between");
    }
    assert!(matches!(next(&mut responses).await.control, Some(Control::Heartbeat(_))));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_the_call_ends_the_stream() {
    let gateway = Gateway::start(Setup::default());
    let mut client = gateway.pipe_client().await;
    let mut request = tonic::Request::new(SubscribeRequest::default());
    request.set_timeout(Duration::from_secs(40));
    let started = tokio::time::Instant::now();
    let mut responses = soon(client.subscribe(request)).await.unwrap().into_inner();
    let status = failure(&mut responses).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!((40..41).contains(&started.elapsed().as_secs()));
    assert_eq!(gateway.context.registry.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_ends_its_streams() {
    let mut short = token("short");
    short.expires = Some(time(20));
    let gateway = Gateway::start(Setup { tokens: vec![short, token("long")], ..Default::default() });
    let mut client = gateway.pipe_client().await;
    let open = |token| authorized(SubscribeRequest::default(), token);
    let mut ends = soon(client.subscribe(open("short"))).await.unwrap().into_inner();
    let mut stays = soon(client.subscribe(open("long"))).await.unwrap().into_inner();
    let status = failure(&mut ends).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.get_details_error_info().unwrap().reason, "TOKEN_EXPIRED");
    assert!(gateway.context.clock.now() >= time(20));
    history(&mut stays).await;
    gateway.append(0..1).await;
    while next(&mut stays).await.events.is_empty() {}
    let again = soon(client.subscribe(open("short"))).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn draining_says_where_to_resume_then_ends() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..3).await;
    let mut client = gateway.client().await;
    let mut responses = subscribe(&mut client, SubscribeRequest::default()).await;
    history(&mut responses).await;
    gateway.context.draining.cancel();
    let response = next(&mut responses).await;
    let Some(Control::Draining(draining)) = response.control else { panic!("{response:?}") };
    assert!(draining.reconnect_within.unwrap().seconds > 0);
    assert_eq!(cursor_of(&response.cursor).seq, 3);
    let ended = failure(&mut responses).await;
    // On a new connection, which the listener would refuse: the services refuse by themselves.
    let mut client = gateway.pipe_client().await;
    let refused = soon(client.subscribe(SubscribeRequest::default())).await.unwrap_err();
    for status in [ended, refused] {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
        assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
    }
}

#[tokio::test]
async fn a_hard_stop_ends_at_once() {
    let gateway = Gateway::start(Setup::default());
    let mut client = gateway.pipe_client().await;
    let mut responses = subscribe(&mut client, SubscribeRequest::default()).await;
    history(&mut responses).await;
    gateway.context.stop.cancel();
    let status = soon(responses.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn streams_are_listed_with_filter_and_position_and_capped() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let gateway = Gateway::start(Setup { limits, ..Default::default() });
    gateway.append(0..5).await;
    let mut client = gateway.client().await;
    let filter = proto::Filter { country: vec!["NO".into()], ..Default::default() };
    let request = SubscribeRequest { filter: Some(filter), ..Default::default() };
    let mut responses = subscribe(&mut client, request).await;
    history(&mut responses).await;
    let list = gateway.context.registry.list(None, 5, |seq| seq.to_string());
    assert_eq!(list.len(), 1);
    assert_eq!(list[0]["kind"], "grpc");
    assert!(list[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    let listed = &list[0]["subscriptions"][0];
    assert_eq!((&listed["filter"], &listed["cursor"]), (&json!({"country": ["no"]}), &json!("5")));

    let full = soon(client.subscribe(SubscribeRequest::default())).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.get_details_retry_info().unwrap().retry_delay.is_some());

    drop(responses);
    soon(async {
        while gateway.context.registry.connections() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    subscribe(&mut client, SubscribeRequest::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_message_is_not_kept() {
    let gateway = Gateway::start(Setup::default());
    let silent = http_body_util::StreamBody::new(futures_util::stream::pending::<
        Result<http_body::Frame<bytes::Bytes>, std::convert::Infallible>,
    >());
    let request = http::Request::post("http://test/simcast.v1.EventService/Subscribe")
        .version(http::Version::HTTP_2)
        .body(axum::body::Body::new(silent))
        .unwrap();
    let response = soon(tower::ServiceExt::oneshot(gateway.router.clone(), request)).await.unwrap();
    let status = Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}
