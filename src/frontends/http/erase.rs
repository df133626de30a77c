//! `POST /v1/erase`: everything that this gateway keeps of one SIM goes.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use http::StatusCode;

use super::body;
use crate::{
    auth::Principal,
    event::Iccid,
    frontends::{ApiError, Code, Context, params::Params},
};

/// `POST /v1/erase`.
///
/// # Errors
/// As the route table lists.
pub async fn erase(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    request: Request,
) -> Result<Response, ApiError> {
    context.accepting()?;
    Params::parse(request.uri().query(), &context.limits)?.finish()?;
    let mut fields = body::object(request, &context.limits).await?;
    let named = fields.remove("iccid");
    if let Some(unknown) = fields.keys().next() {
        let error = ApiError::new(Code::InvalidParameter, format!("there is no field {unknown:?}"));
        return Err(error.field(unknown.clone()).hint("the body is {\"iccid\": \"…\"}"));
    }
    let iccid = named.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    let iccid = Iccid::parse(iccid)
        .map_err(|error| ApiError::new(Code::InvalidParameter, error.to_string()).field("iccid"))?;
    if principal.scope.is_some() || principal.policy.is_some() {
        let message = "a token with a filter or a field policy may not erase what others may see";
        return Err(ApiError::new(Code::ForbiddenField, message).field("iccid"));
    }
    let report = context.erasure.erase(iccid.clone()).await;
    let report = report.map_err(|error| ApiError::new(Code::Unavailable, error.to_string()))?;
    Ok(body::json(StatusCode::OK, &report.to_json(&iccid)))
}
