//! `GET /v1/sims` and `GET /v1/sims/{iccid}`: what is known of SIMs.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::body;
use crate::{
    auth::Principal,
    frontends::{
        ApiError, Code, Context,
        params::Params,
        sims::{self, FIELDS, LIMIT_DEFAULT, LIMIT_MAX},
    },
    views::registry::{Found, Presence, Sort},
};

/// `GET /v1/sims`.
///
/// # Errors
/// As the route table lists.
pub async fn list(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (request, warnings) = parse(uri.query(), &context)?;
    let page = sims::list(&context, &principal, request).await?;
    let mut shown = json!({
        "sims": page.sims,
        "next": page.next,
        "total": page.total,
        "as_of": page.as_of,
        "as_of_time": page.as_of_time,
    });
    if !warnings.is_empty() {
        shown["warnings"] = warnings.into();
    }
    Ok(body::json(StatusCode::OK, &shown))
}

/// `GET /v1/sims/{iccid}`.
///
/// # Errors
/// As the route table lists.
pub async fn get(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    iccid: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Params::parse(uri.query(), &context.limits)?.finish()?;
    let Path(iccid) =
        iccid.map_err(|_| ApiError::new(Code::InvalidParameter, "the ICCID is no UTF-8").field("iccid"))?;
    let found = sims::find(&context, &principal, &iccid).await?;
    // Only who may see the number comes here, so it is shown.
    let looked_up =
        sims::looked_up(&context, found.sim.iccid.as_deref().unwrap_or(&iccid), &found.sim).await?;
    Ok(body::json(StatusCode::OK, &one(&found, looked_up)))
}

/// The SIM's fields, and beside them what was looked up and up to where the log is in them.
fn one(found: &Found, mut looked_up: Value) -> Value {
    let mut shown = json!(found.sim);
    shown["sessions"] = looked_up["sessions"].take();
    shown["device"] = looked_up["device"].take();
    shown["as_of"] = found.as_of.to_string().into();
    shown["as_of_time"] = json!(found.as_of_time);
    shown
}

fn parse(query: Option<&str>, context: &Context) -> Result<(sims::Request, Vec<String>), ApiError> {
    let mut params = Params::parse(query, &context.limits)?;
    let presence = params.take_choice(
        "online",
        &[("true", Presence::Online), ("false", Presence::Offline), ("unknown", Presence::Unknown)],
    )?;
    let seen_since = params.take_time("seen_since")?;
    let seen_before = params.take_time("seen_before")?;
    let sort = params.take_choice("sort", &[("iccid", Sort::Iccid), ("last_seen", Sort::LastSeen)])?;
    let limit = params.take_number("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
    let token = params.take("after")?.map(|token| (token, "after"));
    let (filter, warnings) = params.filter_of(&FIELDS, &context.limits)?;
    let sort = sort.unwrap_or_default();
    Ok((sims::Request { filter, presence, seen_since, seen_before, sort, token, limit }, warnings))
}
