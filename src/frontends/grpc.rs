//! gRPC and grpc-web: `simcast.v1.EventService`, `SimService` and `WebhookService`, health, reflection.
//!
//! The event streams are served by hand rather than by generated code, because what they carry is encoded already:
//! the hub's bytes go from the log to every stream as they are ([`frame`]). Requests, control messages and errors
//! are ordinary prost and tonic, so that any gRPC client works, and reflection shows the ordinary proto files.
//!
//! | file | what |
//! |---|---|
//! | `call` | who asks, until when |
//! | `request` | request messages understood |
//! | `subscribe`, `interact` | the streams |
//! | `control`, `lifeline` | their control messages; what ends them |
//! | `unary` | `ListEvents`, `GetEvent`, `GetStreamInfo` |
//! | `sims` | `SimService`, ordinary tonic |
//! | `webhooks` | `WebhookService`, ordinary tonic |
//! | `status` | errors with google.rpc details |
//! | `frame` | gRPC frames over shared bytes |
//! | `health`, `web` | grpc.health.v1; browsers |
//!
//! Two limits of the transport that clients should know: one HTTP/2 connection is served by one task, so that many
//! heavy streams want a connection each; and the client's window bounds what is in flight, so that a firehose wants
//! 2 MiB per stream rather than the default of 64 KiB.

mod call;
mod control;
mod frame;
mod health;
mod interact;
mod lifeline;
mod request;
mod sims;
mod status;
mod subscribe;
mod unary;
mod web;
mod webhooks;

#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    pin::Pin,
    task::{self, Poll},
};

use tonic::{Status, body::Body, server::NamedService, service::Routes};
use tonic_web::GrpcWebLayer;
use tower::Service;

use super::Context;
use crate::{auth::Role, proto};
use call::Call;

/// The section `[grpc]`, as far as it concerns what is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Whether reflection is served, v1 and v1alpha.
    pub reflection: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { reflection: true }
    }
}

/// Why the services can't be built.
#[derive(Debug, thiserror::Error)]
#[error("the descriptors for gRPC reflection can't be read: {0}")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

/// The services behind HTTP/2 and, for grpc-web, HTTP/1.1.
///
/// # Errors
/// [`ReflectionError`], a defect of the build; retrying does not help.
pub fn router(context: Context, config: Config) -> Result<axum::Router, ReflectionError> {
    let mut routes = Routes::new(EventService { context: context.clone() })
        .add_service(sims::service(&context))
        .add_service(webhooks::service(&context))
        .add_service(health::service(&context, &[EventService::NAME, sims::NAME, webhooks::NAME]));
    if config.reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        routes = routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?);
    }
    let web = web::Cors::new(&context.web.allowed_origins);
    Ok(routes
        .into_axum_router()
        .layer(GrpcWebLayer::new())
        .layer(axum::middleware::from_fn(move |request, next| web::guard(web.clone(), request, next))))
}

/// `simcast.v1.EventService`.
#[derive(Debug, Clone)]
struct EventService {
    context: Context,
}

impl NamedService for EventService {
    const NAME: &'static str = "simcast.v1.EventService";
}

type Response = http::Response<Body>;

impl Service<http::Request<Body>> for EventService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let context = self.context.clone();
        Box::pin(async move { Ok(answer(context, request).await.unwrap_or_else(Status::into_http)) })
    }
}

async fn answer(context: Context, request: http::Request<Body>) -> Result<Response, Status> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    let Some(method) = Method::parse(method) else {
        let message = format!("{} has no method {method:?}", EventService::NAME);
        return Err(Status::unimplemented(message));
    };
    let call = Call::admit(&context, &request, Role::Read)?;
    match method {
        Method::Subscribe => {
            let message = call.within(frame::request(request)).await?;
            let deadline = call.deadline;
            let opening = subscribe::open(context, call, message);
            Ok(frame::streaming_response(call::until(deadline, opening).await?))
        }
        Method::Interact => {
            let requests = frame::requests(request)?;
            Ok(frame::streaming_response(interact::open(context, call, requests)?))
        }
        Method::ListEvents => {
            let answer = async { unary::list(&context, &call, frame::request(request).await?).await };
            Ok(frame::unary_response(call.within(answer).await))
        }
        Method::GetEvent => {
            let answer = async { unary::get(&context, &call, frame::request(request).await?).await };
            Ok(frame::unary_response(call.within(answer).await))
        }
        Method::GetStreamInfo => {
            let answer = async {
                let _: proto::GetStreamInfoRequest = frame::request(request).await?;
                unary::info(context).await
            };
            Ok(frame::unary_response(call.within(answer).await))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Subscribe,
    Interact,
    ListEvents,
    GetEvent,
    GetStreamInfo,
}

impl Method {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "Subscribe" => Self::Subscribe,
            "Interact" => Self::Interact,
            "ListEvents" => Self::ListEvents,
            "GetEvent" => Self::GetEvent,
            "GetStreamInfo" => Self::GetStreamInfo,
            _ => return None,
        })
    }
}
