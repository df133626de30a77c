//! Reflection, health, and what is refused before a method is reached.

use bytes::Bytes;
use http_body_util::Full;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{
    v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
    v1alpha,
};
use tonic_types::StatusExt as _;
use tower::ServiceExt as _;

use super::*;

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let gateway = Gateway::start(Setup { reflection: true, ..Default::default() });
    let channel = gateway.channel().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel.clone());
    let responses = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let response = soon(responses.into_inner().message()).await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = response.message_response else { panic!() };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in [
        "simcast.v1.EventService",
        "simcast.v1.SimService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }

    use v1alpha::server_reflection_request::MessageRequest as AlphaRequest;
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(AlphaRequest::FileContainingSymbol("simcast.v1.Event".into())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let responses = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let response = soon(responses.into_inner().message()).await.unwrap().unwrap();
    use v1alpha::server_reflection_response::MessageResponse as AlphaResponse;
    let Some(AlphaResponse::FileDescriptorResponse(files)) = response.message_response else { panic!() };
    assert!(!files.file_descriptor_proto.is_empty());
}

#[tokio::test]
async fn reflection_can_be_turned_off() {
    let gateway = Gateway::start(Setup { reflection: false, ..Default::default() });
    let mut client = ServerReflectionClient::new(gateway.channel().await);
    let request = ServerReflectionRequest::default();
    let status = soon(client.server_reflection_info(tokio_stream::iter([request]))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn health_turns_when_draining_begins() {
    let gateway = Gateway::start(Setup::default());
    let mut client = HealthClient::new(gateway.channel().await);
    let of = |service: &str| HealthCheckRequest { service: service.into() };
    let mut watch = soon(client.watch(of(""))).await.unwrap().into_inner();
    let status = |response: Option<tonic_health::pb::HealthCheckResponse>| response.unwrap().status();
    assert_eq!(status(soon(watch.message()).await.unwrap()), ServingStatus::Serving);
    let mut unknown = soon(client.watch(of("nobody"))).await.unwrap().into_inner();
    assert_eq!(status(soon(unknown.message()).await.unwrap()), ServingStatus::ServiceUnknown);
    for service in ["", "simcast.v1.EventService", "simcast.v1.SimService"] {
        let response = soon(client.check(of(service))).await.unwrap().into_inner();
        assert_eq!(response.status(), ServingStatus::Serving, "{service:?}");
    }
    assert_eq!(soon(client.check(of("nobody"))).await.unwrap_err().code(), Code::NotFound);

    let mut late = HealthClient::new(gateway.pipe_channel().await);
    gateway.context.draining.cancel();
    assert_eq!(status(soon(watch.message()).await.unwrap()), ServingStatus::NotServing);
    assert_eq!(soon(watch.message()).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(soon(unknown.message()).await.unwrap_err().code(), Code::Unavailable);
    for service in ["", "simcast.v1.EventService"] {
        let response = soon(late.check(of(service))).await.unwrap().into_inner();
        assert_eq!(response.status(), ServingStatus::NotServing, "{service:?}");
    }
}

/// Calls the router without a network; gives the status from the headers.
async fn call(gateway: &Gateway, method: &str, headers: &[(&str, &str)], body: Bytes) -> Status {
    let mut request = http::Request::post(format!("http://test/simcast.v1.EventService/{method}"))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(axum::body::Body::new(Full::new(body))).unwrap();
    let response = gateway.router.clone().oneshot(request).await.unwrap();
    Status::from_header_map(response.headers()).expect("a status in the headers")
}

#[tokio::test]
async fn broken_requests_are_the_clients_fault() {
    let gateway = Gateway::start(Setup::default());
    let frame = |payload: &[u8]| {
        let mut frame = vec![0];
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        Bytes::from(frame)
    };
    assert_eq!(call(&gateway, "Nothing", &[], frame(b"")).await.code(), Code::Unimplemented);
    assert_eq!(call(&gateway, "Subscribe", &[], Bytes::new()).await.code(), Code::InvalidArgument);
    assert_eq!(call(&gateway, "Subscribe", &[], frame(b"\xff\xff")).await.code(), Code::InvalidArgument);
    let huge = call(&gateway, "ListEvents", &[], frame(&vec![0; 64 * 1024 + 1])).await;
    assert_eq!(huge.code(), Code::ResourceExhausted, "OUT_OF_RANGE would mean a cursor");
    assert_eq!(huge.get_details_error_info().unwrap().reason, "TOO_LARGE");
    let zstd = call(&gateway, "Subscribe", &[("grpc-encoding", "zstd")], frame(b"")).await;
    assert_eq!(zstd.code(), Code::Unimplemented);
    assert_eq!(zstd.metadata().get("grpc-accept-encoding").unwrap(), "identity,gzip");
}

#[tokio::test]
async fn requests_may_be_compressed() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..3).await;
    let mut client = gateway.client().await.send_compressed(tonic::codec::CompressionEncoding::Gzip);
    let request = proto::ListEventsRequest { page_size: 2, ..Default::default() };
    let page = soon(client.list_events(request)).await.unwrap().into_inner();
    assert_eq!(page.events.len(), 2);
}
