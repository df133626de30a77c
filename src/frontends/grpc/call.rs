//! What every call has in common before its message is read: who asks, from where, until when.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::Instant;
use tonic::Status;

use super::{request, status::status};
use crate::{
    auth::{Principal, Role},
    frontends::{
        Context,
        registry::{ConnectionGuard, Kind},
    },
};

/// A call of someone who may make it.
#[derive(Debug)]
pub(super) struct Call {
    /// Who.
    pub(super) principal: Arc<Principal>,
    /// Until when, by `grpc-timeout`.
    pub(super) deadline: Option<Instant>,
    peer: Option<SocketAddr>,
}

impl Call {
    /// Checks the credentials of a request.
    ///
    /// # Errors
    /// UNAUTHENTICATED, PERMISSION_DENIED, or UNAVAILABLE while draining.
    pub(super) fn admit<B>(
        context: &Context,
        request: &http::Request<B>,
        role: Role,
    ) -> Result<Self, Status> {
        context.accepting().map_err(|e| status(&e))?;
        let principal = context.authenticate(request.headers()).map_err(|e| status(&e))?;
        principal.require(role).map_err(|e| status(&e.into()))?;
        let peer = request.extensions().get::<axum::extract::ConnectInfo<SocketAddr>>();
        Ok(Self {
            principal,
            deadline: request::timeout(request.headers()).map(|timeout| Instant::now() + timeout),
            peer: peer.map(|info| info.0),
        })
    }

    /// Takes a place among the open streams.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED with a delay when all are taken.
    pub(super) fn connect(&self, context: &Context) -> Result<ConnectionGuard, Status> {
        context.registry.connect(Kind::Grpc, &self.principal.name, self.peer).map_err(|e| status(&e))
    }

    /// Holds a unary call to its deadline.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED, or the call's own.
    pub(super) async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        until(self.deadline, answer).await
    }
}

/// Holds what is done before a stream or an answer begins to a deadline.
///
/// # Errors
/// DEADLINE_EXCEEDED, or what the future itself gives.
pub(super) async fn until<T>(
    deadline: Option<Instant>,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match deadline {
        None => answer.await,
        Some(deadline) => tokio::time::timeout_at(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the deadline of the call has passed"))),
    }
}
