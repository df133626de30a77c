//! The stream as a whole, who is connected, and tickets for clients that can't send headers.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use http::{StatusCode, Uri};
use serde_json::json;

use super::body;
use crate::{
    auth::{Principal, Role, pass::TICKET_SECONDS},
    frontends::{ApiError, Code, Context, info, params::Params},
};

/// `GET /v1/stream`.
///
/// # Errors
/// As the route table lists.
pub async fn stream(State(context): State<Context>, uri: Uri) -> Result<Response, ApiError> {
    Params::parse(uri.query(), &context.limits)?.finish()?;
    let shown = blocking(move || info::stream(&context)).await?;
    Ok(body::json(StatusCode::OK, &shown))
}

/// `GET /v1/subscribers`: all of them for an admin, for others their own.
///
/// # Errors
/// As the route table lists.
pub async fn subscribers(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Params::parse(uri.query(), &context.limits)?.finish()?;
    let shown = blocking(move || {
        let own = (!principal.roles.contains(Role::Admin)).then_some(principal.name.as_str());
        let log = context.hub.log();
        let edge = log.bounds().last_seq;
        let subscribers = context.registry.list(own, edge, |seq| log.cursor_at(seq).to_string());
        json!({"connections": subscribers.len(), "subscribers": subscribers})
    })
    .await?;
    Ok(body::json(StatusCode::OK, &shown))
}

/// `POST /v1/tickets`.
///
/// # Errors
/// As the route table lists.
pub async fn ticket(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    request: Request,
) -> Result<Response, ApiError> {
    Params::parse(request.uri().query(), &context.limits)?.finish()?;
    let body = body::object(request, &context.limits).await?;
    if let Some(name) = body.keys().next() {
        let shown: String = name.chars().take(64).collect();
        return Err(ApiError::new(Code::InvalidBody, format!("{shown:?} is no field of a ticket request"))
            .field(shown)
            .hint("send no body, or {}"));
    }
    let ticket = context.tickets.issue(principal)?;
    Ok(body::json(StatusCode::CREATED, &json!({"ticket": ticket, "expires_in_s": TICKET_SECONDS})))
}

/// Runs what may read the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a request handler failed");
        ApiError::new(Code::Internal, "the gateway failed to answer")
    })
}
