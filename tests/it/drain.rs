//! SIGTERM: every client is told where to resume, and the process ends in time.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use simcast::proto::{self, event_service_client::EventServiceClient, subscribe_response::Control};

use super::{
    clients::Socket,
    support::{Bus, World, http, on_both_buses},
};

async fn sigterm_tells_every_client_and_ends_within_ten_seconds(bus: Bus) {
    let world = World::quiet_on(bus).await;
    let gateway = world.child();
    let mut socket = Socket::open(gateway.http, "").await.unwrap();
    socket.expect("caught_up").await;
    let mut sse =
        http().get(format!("http://{}/v1/events/sse", gateway.http)).send().await.unwrap().bytes_stream();
    let mut grpc = EventServiceClient::connect(format!("http://{}", gateway.grpc)).await.unwrap();
    let mut stream = grpc.subscribe(proto::SubscribeRequest::default()).await.unwrap().into_inner();
    assert!(matches!(stream.message().await.unwrap().unwrap().control, Some(Control::Opened(_))));

    let started = Instant::now();
    let exit = tokio::task::spawn_blocking(move || gateway.terminate());
    let in_websocket = async {
        let draining = socket.expect("draining").await;
        assert!(draining["reconnect_within_ms"].is_u64(), "{draining}");
        let closed = socket.next().await;
        assert_eq!(
            (closed["type"].as_str(), closed["code"].as_u64()),
            (Some("closed"), Some(4201)),
            "{closed}"
        );
    };
    let in_sse = async {
        let mut text = String::new();
        while let Some(Ok(chunk)) = sse.next().await {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(text.contains("event: draining\n"), "{text}");
    };
    let in_grpc = async {
        let mut draining = false;
        loop {
            match stream.message().await {
                Ok(Some(message)) => draining |= matches!(message.control, Some(Control::Draining(_))),
                Ok(None) => panic!("a stream that drains ends with UNAVAILABLE"),
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
                    break;
                }
            }
        }
        assert!(draining, "a draining message comes before the end");
    };
    tokio::join!(in_websocket, in_sse, in_grpc);
    assert_eq!(exit.await.unwrap(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

on_both_buses!(sigterm_tells_every_client_and_ends_within_ten_seconds);
