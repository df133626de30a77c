//! The documented paths of the API, asked through the gateway: `/v1/sims/activity`, `/v1/sims/{iccid}/sessions` and
//! `/activity`, `/v1/devices/{device_id}/sim`, its `/sessions` and `/activity`.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use http::{StatusCode, Uri};
use jiff::civil::Date;
use serde_json::Value;

use super::body;
use crate::{
    auth::Principal,
    event::Iccid,
    frontends::{ApiError, Code, Context, params::Params},
    lookup::{AGAIN, Error, Of, Paging, Question, What},
};

/// Rows of one page unless `limit` says otherwise, and at most: as the API document says.
pub const LIMIT_DEFAULT: u32 = 50;
/// Most rows of one page.
pub const LIMIT_MAX: u32 = 100;
/// Deepest offset.
pub const OFFSET_MAX: u32 = 10_000_000;

type OneOf<'p> = Result<Path<String>, PathRejection>;

/// `GET /v1/sims/activity`.
///
/// # Errors
/// As the route table lists.
pub async fn account_activity(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let mut params = Params::parse(uri.query(), &context.limits)?;
    let paging = paging(&mut params, true)?;
    let event_type = event_type(&mut params)?;
    let iccid = params.take("iccid")?.filter(|text| text != "all").map(|text| iccid_of(&text)).transpose()?;
    let device_id = params.take("device_id")?.filter(|text| text != "all");
    params.finish()?;
    let of = Of::Account { iccid, device_id };
    answer(&context, &principal, of, What::Activity(paging, event_type)).await
}

/// `GET /v1/sims/{iccid}/activity`.
///
/// # Errors
/// As the route table lists.
pub async fn sim_activity(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    iccid: OneOf<'_>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let of = Of::Sim(iccid_of(&name(iccid, "iccid")?)?);
    let what = activity(&context, &uri)?;
    answer(&context, &principal, of, what).await
}

/// `GET /v1/sims/{iccid}/sessions`.
///
/// # Errors
/// As the route table lists.
pub async fn sim_sessions(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    iccid: OneOf<'_>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let of = Of::Sim(iccid_of(&name(iccid, "iccid")?)?);
    let what = sessions(&context, &uri)?;
    answer(&context, &principal, of, what).await
}

/// `GET /v1/devices/{device_id}/sim`.
///
/// # Errors
/// As the route table lists.
pub async fn device_sim(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    device_id: OneOf<'_>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Params::parse(uri.query(), &context.limits)?.finish()?;
    let of = Of::Device(name(device_id, "device_id")?);
    answer(&context, &principal, of, What::Sim).await
}

/// `GET /v1/devices/{device_id}/sim/activity`.
///
/// # Errors
/// As the route table lists.
pub async fn device_activity(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    device_id: OneOf<'_>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let of = Of::Device(name(device_id, "device_id")?);
    let what = activity(&context, &uri)?;
    answer(&context, &principal, of, what).await
}

/// `GET /v1/devices/{device_id}/sim/sessions`.
///
/// # Errors
/// As the route table lists.
pub async fn device_sessions(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    device_id: OneOf<'_>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let of = Of::Device(name(device_id, "device_id")?);
    let what = sessions(&context, &uri)?;
    answer(&context, &principal, of, what).await
}

async fn answer(context: &Context, principal: &Principal, of: Of, what: What) -> Result<Response, ApiError> {
    let found = context.lookup.ask(&Question { of, what }, principal).await?;
    Ok(body::json(StatusCode::OK, &Value::Object(found)))
}

fn name(name: OneOf<'_>, field: &'static str) -> Result<String, ApiError> {
    let Path(name) =
        name.map_err(|_| ApiError::new(Code::InvalidParameter, "the id is no UTF-8").field(field))?;
    Ok(name)
}

fn iccid_of(text: &str) -> Result<Iccid, ApiError> {
    Iccid::parse(text)
        .map_err(|error| ApiError::new(Code::InvalidParameter, error.to_string()).field("iccid"))
}

fn activity(context: &Context, uri: &Uri) -> Result<What, ApiError> {
    let mut params = Params::parse(uri.query(), &context.limits)?;
    let paging = paging(&mut params, false)?;
    let event_type = event_type(&mut params)?;
    params.finish()?;
    Ok(What::Activity(paging, event_type))
}

fn sessions(context: &Context, uri: &Uri) -> Result<What, ApiError> {
    let mut params = Params::parse(uri.query(), &context.limits)?;
    let paging = paging(&mut params, true)?;
    params.finish()?;
    Ok(What::Sessions(paging))
}

/// `all` is what the API document calls the default.
fn event_type(params: &mut Params) -> Result<Option<String>, ApiError> {
    Ok(params.take("event_type")?.filter(|text| text != "all"))
}

fn paging(params: &mut Params, has_dates: bool) -> Result<Paging, ApiError> {
    let limit = params.take_number("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
    let offset = params.take_number("offset", 0..=OFFSET_MAX)?.unwrap_or(0);
    let (start_date, end_date) = match has_dates {
        true => (date(params, "start_date")?, date(params, "end_date")?),
        false => (None, None),
    };
    if let (Some(start), Some(end)) = (start_date, end_date)
        && start > end
    {
        return Err(ApiError::new(Code::InvalidParameter, "start_date is after end_date").field("start_date"));
    }
    Ok(Paging { limit, offset, start_date, end_date })
}

fn date(params: &mut Params, name: &'static str) -> Result<Option<Date>, ApiError> {
    let Some(text) = params.take(name)? else { return Ok(None) };
    let shaped = text.len() == 10 && text.bytes().filter(|byte| *byte == b'-').count() == 2;
    text.parse().ok().filter(|_| shaped).map(Some).ok_or_else(|| {
        ApiError::new(Code::InvalidParameter, format!("{name} is a day such as 2025-11-05, not {text:?}"))
            .field(name)
    })
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotFound => Self::not_found(message),
            Error::ForbiddenField(error) => error.into(),
            Error::Budget => Self::new(Code::UpstreamBudget, message)
                .hint("raise upstream.requests_per_minute, or ask less often")
                .retry_after(AGAIN),
            Error::Upstream(_) | Error::Unavailable(_) => {
                Self::new(Code::Unavailable, message).retry_after(AGAIN)
            }
        }
    }
}
