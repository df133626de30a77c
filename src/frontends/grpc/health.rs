//! grpc.health.v1: SERVING until the gateway drains.
//!
//! It is derived from the draining token at each look, so that there is no state which could be forgotten. A stale
//! upstream is no reason for NOT_SERVING: the gateway still serves its log, and says in heartbeats and
//! `GetStreamInfo` how current that is.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use super::status;
use crate::frontends::{ApiError, Context};

/// The service; knows the server as a whole (`""`) and `names`.
pub(super) fn service(context: &Context, names: &[&'static str]) -> HealthServer<Service> {
    let names = std::iter::once("").chain(names.iter().copied()).collect();
    HealthServer::new(Service { names, draining: context.draining.clone() })
}

/// See [`service`].
#[derive(Debug)]
pub(super) struct Service {
    names: Vec<&'static str>,
    draining: CancellationToken,
}

impl Service {
    fn status(&self, name: &str) -> Option<ServingStatus> {
        self.names.contains(&name).then(|| {
            if self.draining.is_cancelled() { ServingStatus::NotServing } else { ServingStatus::Serving }
        })
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = &request.get_ref().service;
        let status =
            self.status(name).ok_or_else(|| Status::not_found(format!("no service {name:?} here")))?;
        Ok(Response::new(response(status)))
    }

    /// The status now, then NOT_SERVING when draining begins; then it ends, so that a watcher does not hold the
    /// connection that is to be closed. An unknown service is SERVICE_UNKNOWN, as the protocol asks.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.status(&request.get_ref().service);
        let now = stream::iter([Ok(response(known.unwrap_or(ServingStatus::ServiceUnknown)))]);
        let draining = self.draining.clone();
        let mut last = Vec::new();
        if known == Some(ServingStatus::Serving) {
            last.push(Ok(response(ServingStatus::NotServing)));
        }
        last.push(Err(status::status(&ApiError::draining())));
        let drained = stream::once(draining.cancelled_owned()).flat_map(move |()| stream::iter(last.clone()));
        Ok(Response::new(Box::pin(now.chain(drained))))
    }
}
