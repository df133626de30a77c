//! `/v1/webhooks`: endpoints, what becomes of their events, replays.
//!
//! Reads requests, asks [`Webhooks`](crate::webhooks::Webhooks), shows what it says. What a body may hold is in
//! [`settings`], what is shown in [`shown`].

mod settings;
pub mod shown;

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, Request, State},
    response::Response,
};
use http::{StatusCode, Uri};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::settings::{Fields, start_of};
use super::body;
use crate::{
    auth::Principal,
    event::{Cursor, FilterLimits, Start, filter::FIELDS},
    frontends::{ApiError, Code, Context, params::Params},
    webhooks::{
        ServiceError,
        endpoint::Settings,
        service::{OVERLAP, ReplayRequest, Status},
        store::Only,
    },
};

/// Deliveries of one page, at most, and if nobody says otherwise.
pub const DELIVERIES_MAX: u32 = 1_000;
/// See [`DELIVERIES_MAX`].
pub const DELIVERIES_DEFAULT: u32 = 100;

type Answer = Result<Response, ApiError>;

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        match error {
            ServiceError::NotFound { .. } => Self::not_found(message),
            ServiceError::Invalid { field, hint, .. } => {
                let code = if FIELDS.contains(&field.as_str()) {
                    Code::InvalidFilter
                } else {
                    Code::InvalidParameter
                };
                let error = Self::new(code, message).field(field);
                match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                }
            }
            ServiceError::ForbiddenField { field, .. } => {
                Self::new(Code::ForbiddenField, message).field(field)
            }
            ServiceError::Conflict(_) => Self::new(Code::Conflict, message),
            ServiceError::Expired { oldest, newest, .. } => {
                match (Cursor::parse(&oldest), Cursor::parse(&newest)) {
                    (Ok(oldest), Ok(newest)) => Self::cursor_expired(message, oldest, newest).field("after"),
                    _ => Self::new(Code::CursorExpired, message).field("after"),
                }
            }
            ServiceError::Limit(_) => Self::new(Code::SubscriptionLimit, message),
            ServiceError::Unavailable(_) => {
                Self::new(Code::Unavailable, message).retry_after(std::time::Duration::from_secs(1))
            }
        }
    }
}

async fn fields(context: &Context, request: Request) -> Result<Fields, ApiError> {
    Params::parse(request.uri().query(), &context.limits)?.finish()?;
    Ok(Fields::new(body::object(request, &context.limits).await?))
}

fn limits(context: &Context) -> FilterLimits {
    FilterLimits { values_per_list: context.limits.filter_values_body }
}

fn no_parameters(context: &Context, uri: &Uri) -> Result<(), ApiError> {
    Params::parse(uri.query(), &context.limits)?.finish()
}

/// `POST /v1/webhooks`.
///
/// # Errors
/// As the route table lists.
pub async fn create(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    request: Request,
) -> Answer {
    context.accepting()?;
    let mut fields = fields(&context, request).await?;
    let Some(url) = fields.text("url")? else {
        let error = ApiError::new(Code::InvalidParameter, "url is missing: where events are to be sent");
        return Err(error.field("url").hint(r#"{"url":"https://example.com/hook"}"#));
    };
    let start = start_of(&mut fields)?.unwrap_or(Start::Now);
    let secret = fields.text("secret")?;
    let mut settings = Settings::new(url, Default::default());
    let warnings = settings::apply(&mut fields, &mut settings, limits(&context), true)?;
    fields.finish()?;
    let (endpoint, secret) = context.webhooks.create(&principal, settings, start, secret).await?;
    let mut shown = shown::endpoint(&endpoint);
    shown.insert("secret".into(), secret.into());
    if !warnings.is_empty() {
        shown.insert("warnings".into(), warnings.into());
    }
    Ok(body::json(StatusCode::CREATED, &Value::Object(shown)))
}

/// `GET /v1/webhooks`.
///
/// # Errors
/// As the route table lists.
pub async fn list(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    uri: Uri,
) -> Answer {
    no_parameters(&context, &uri)?;
    let endpoints = context.webhooks.list(&principal).await?;
    let endpoints: Vec<_> = endpoints.iter().map(|one| Value::Object(shown::endpoint(one))).collect();
    Ok(body::json(StatusCode::OK, &json!({ "webhooks": endpoints })))
}

/// `GET /v1/webhooks/{id}`.
///
/// # Errors
/// As the route table lists.
pub async fn get(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    no_parameters(&context, &uri)?;
    let endpoint = context.webhooks.get(&principal, &id).await?;
    Ok(body::json(StatusCode::OK, &Value::Object(shown::endpoint(&endpoint))))
}

/// `PATCH /v1/webhooks/{id}`: what is left out stays as it is, null is the default.
///
/// # Errors
/// As the route table lists.
pub async fn update(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer {
    let fields = fields(&context, request).await?;
    let limits = limits(&context);
    let merge = |mut settings: Settings| {
        let mut fields = fields.clone();
        let merged = fields
            .text("url")
            .and_then(|url| {
                settings.url = url.unwrap_or(std::mem::take(&mut settings.url));
                settings::apply(&mut fields, &mut settings, limits, false)
            })
            .and_then(|warnings| fields.finish().map(|()| warnings));
        merged.map(|warnings| (settings, warnings))
    };
    // Once for the answer's own errors, which tell more than the service's.
    let current = context.webhooks.get(&principal, &id).await?;
    let (_, warnings) = merge(current.endpoint.settings())?;
    let merged = |settings| {
        merge(settings).map(|(settings, _)| settings).map_err(|error| ServiceError::Invalid {
            field: error.field.clone().unwrap_or_default().into_owned(),
            message: error.message.into_owned(),
            hint: None,
        })
    };
    let endpoint = context.webhooks.update(&principal, &id, merged).await?;
    let mut shown = shown::endpoint(&endpoint);
    if !warnings.is_empty() {
        shown.insert("warnings".into(), warnings.into());
    }
    Ok(body::json(StatusCode::OK, &Value::Object(shown)))
}

/// `DELETE /v1/webhooks/{id}`.
///
/// # Errors
/// As the route table lists.
pub async fn delete(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    no_parameters(&context, &uri)?;
    context.webhooks.delete(&principal, &id).await?;
    Ok(body::json(StatusCode::OK, &json!({ "id": id, "deleted": true })))
}

/// `POST /v1/webhooks/{id}/pause`.
///
/// # Errors
/// As the route table lists.
pub async fn pause(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer {
    fields(&context, request).await?.finish()?;
    let endpoint = context.webhooks.pause(&principal, &id).await?;
    Ok(body::json(StatusCode::OK, &Value::Object(shown::endpoint(&endpoint))))
}

/// `POST /v1/webhooks/{id}/resume`: where it stopped, or elsewhere.
///
/// # Errors
/// As the route table lists.
pub async fn resume(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer {
    let mut fields = fields(&context, request).await?;
    let start = start_of(&mut fields)?;
    fields.finish()?;
    if let Some(start) = start {
        context.webhooks.seek(&principal, &id, start).await?;
    }
    let endpoint = context.webhooks.resume(&principal, &id).await?;
    Ok(body::json(StatusCode::OK, &Value::Object(shown::endpoint(&endpoint))))
}

/// `POST /v1/webhooks/{id}/seek`.
///
/// # Errors
/// As the route table lists.
pub async fn seek(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer {
    context.accepting()?;
    let mut fields = fields(&context, request).await?;
    let Some(start) = start_of(&mut fields)? else {
        let error = ApiError::new(Code::InvalidStart, "where to is missing: from, after, since or last");
        return Err(error.field("from"));
    };
    fields.finish()?;
    let endpoint = context.webhooks.seek(&principal, &id, start).await?;
    Ok(body::json(StatusCode::OK, &Value::Object(shown::endpoint(&endpoint))))
}

/// `POST /v1/webhooks/{id}/test`.
///
/// # Errors
/// As the route table lists.
pub async fn test(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer {
    fields(&context, request).await?.finish()?;
    let result = context.webhooks.test(&principal, &id).await?;
    let attempt = shown::attempt(&result.attempt);
    let shown = json!({ "id": result.id, "delivered": result.delivered, "attempt": attempt });
    Ok(body::json(StatusCode::OK, &shown))
}

/// `POST /v1/webhooks/{id}/rotate-secret`.
///
/// # Errors
/// As the route table lists.
pub async fn rotate_secret(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer {
    let mut fields = fields(&context, request).await?;
    let overlap = fields.number("overlap_s")?.map_or(OVERLAP, std::time::Duration::from_secs);
    let secret = fields.text("secret")?;
    fields.finish()?;
    let (endpoint, secret) = context.webhooks.rotate_secret(&principal, &id, overlap, secret).await?;
    let mut shown = shown::endpoint(&endpoint);
    shown.insert("secret".into(), secret.into());
    Ok(body::json(StatusCode::OK, &Value::Object(shown)))
}

/// `GET /v1/webhooks/{id}/stats`.
///
/// # Errors
/// As the route table lists.
pub async fn stats(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    no_parameters(&context, &uri)?;
    let stats = context.webhooks.stats(&principal, &id).await?;
    Ok(body::json(StatusCode::OK, &shown::stats(&stats)))
}

/// `POST /v1/webhooks/{id}/replay`.
///
/// # Errors
/// As the route table lists.
pub async fn replay(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    request: Request,
) -> Answer {
    context.accepting()?;
    let mut fields = fields(&context, request).await?;
    let filter = fields.take("filter").unwrap_or(Value::Null);
    let (filter, warnings) = crate::webhooks::Webhooks::filter(&filter, limits(&context))?;
    let only = match fields.text("only")?.as_deref() {
        None | Some("all") => Only::All,
        Some("failed") => Only::Failed,
        Some(other) => {
            let message = format!("only is all or failed, not {other:?}");
            return Err(ApiError::new(Code::InvalidParameter, message).field("only"));
        }
    };
    let request = ReplayRequest {
        since: fields.time("since")?,
        until: fields.time("until")?,
        filter,
        only,
        rate_limit_per_second: fields.small("rate_limit_per_second")?,
        dry_run: fields.flag("dry_run")?.unwrap_or(false),
    };
    fields.finish()?;
    let replay = context.webhooks.replay(&principal, &id, request).await?;
    let replay_id = (!replay.id.is_empty()).then_some(replay.id.as_str());
    let status = if replay_id.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    let mut shown = Map::new();
    shown.insert("replay_id".into(), json!(replay_id));
    shown.insert("count".into(), json!(replay.count));
    if !warnings.is_empty() {
        shown.insert("warnings".into(), warnings.into());
    }
    Ok(body::json(status, &Value::Object(shown)))
}

/// `GET /v1/webhooks/{id}/replays`.
///
/// # Errors
/// As the route table lists.
pub async fn replays(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    no_parameters(&context, &uri)?;
    let replays = context.webhooks.replays(&principal, &id).await?;
    let replays: Vec<_> = replays.iter().map(shown::replay).collect();
    Ok(body::json(StatusCode::OK, &json!({ "replays": replays })))
}

/// `GET /v1/webhooks/{id}/replays/{rid}`.
///
/// # Errors
/// As the route table lists.
pub async fn get_replay(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path((id, replay)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    no_parameters(&context, &uri)?;
    let replay = context.webhooks.get_replay(&principal, &id, &replay).await?;
    Ok(body::json(StatusCode::OK, &shown::replay(&replay)))
}

/// `DELETE /v1/webhooks/{id}/replays/{rid}`.
///
/// # Errors
/// As the route table lists.
pub async fn cancel_replay(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path((id, replay)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    no_parameters(&context, &uri)?;
    context.webhooks.cancel_replay(&principal, &id, &replay).await?;
    Ok(body::json(StatusCode::OK, &json!({ "replay_id": replay, "cancelled": true })))
}

/// `GET /v1/webhooks/{id}/deliveries`.
///
/// # Errors
/// As the route table lists.
pub async fn deliveries(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    let mut params = Params::parse(uri.query(), &context.limits)?;
    let choices = Status::ALL.map(|status| (status.as_str(), status));
    let status = params.take_choice("status", &choices)?;
    let after = params.take("after")?;
    let limit = params.take_number("limit", 1..=DELIVERIES_MAX)?.unwrap_or(DELIVERIES_DEFAULT);
    params.finish()?;
    let page = context.webhooks.deliveries(&principal, &id, status, after.as_deref(), limit as usize).await?;
    let deliveries: Vec<_> = page.deliveries.iter().map(shown::delivery).collect();
    Ok(body::json(StatusCode::OK, &json!({ "deliveries": deliveries, "next": page.next })))
}

/// `GET /v1/webhooks/{id}/deliveries/{did}`.
///
/// # Errors
/// As the route table lists.
pub async fn delivery(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path((id, delivery)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    no_parameters(&context, &uri)?;
    let (delivery, attempts) = context.webhooks.delivery(&principal, &id, &delivery).await?;
    let mut shown = shown::delivery(&delivery);
    shown["history"] = attempts.iter().map(shown::attempt).collect();
    Ok(body::json(StatusCode::OK, &shown))
}

/// `POST /v1/webhooks/{id}/deliveries/{did}/retry`.
///
/// # Errors
/// As the route table lists.
pub async fn retry(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Path((id, delivery)): Path<(String, String)>,
    request: Request,
) -> Answer {
    fields(&context, request).await?.finish()?;
    let replay = context.webhooks.retry(&principal, &id, &delivery).await?;
    Ok(body::json(StatusCode::ACCEPTED, &json!({ "replay_id": replay.id, "count": 1 })))
}

/// `POST /v1/webhooks/erase`.
///
/// # Errors
/// As the route table lists.
pub async fn erase(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    request: Request,
) -> Answer {
    let mut fields = fields(&context, request).await?;
    let iccid = fields.text("iccid")?.unwrap_or_default();
    fields.finish()?;
    let removed = context.webhooks.erase(&principal, &iccid).await?;
    Ok(body::json(StatusCode::OK, &json!({ "iccid": iccid, "attempts_removed": removed })))
}

fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}
