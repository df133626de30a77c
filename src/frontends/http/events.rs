//! `GET /v1/events`: what is stored, by filter, position and time; `GET /v1/events/{id}` and its
//! `/trace`: one of them, and how it came.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use bytes::Bytes;
use http::{StatusCode, Uri};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{body, trace, webhooks};
use crate::{
    auth::{Principal, Role},
    event::{Cursor, Filter, FilterLimits, OnExpired, Predicate, Start, filter::KNOWN_TYPES},
    frontends::{ApiError, Code, Context, Limits, params::Params},
    hub::{self, Encoding, History, HistoryQuery, HistoryStart, Order},
    sabotage::{self, Bug},
};

/// Events of one page unless `limit` says otherwise.
pub const LIMIT_DEFAULT: u32 = 100;

/// Most events of one page.
pub const LIMIT_MAX: u32 = 1000;

/// Bytes of pages that all clients together may have on their way, beside one page each read of the hub.
const IN_FLIGHT_BYTES: usize = 64 * 1024 * 1024;

/// The pages that are on their way: clients that read slowly must not add up to the memory of the machine.
#[derive(Debug, Clone)]
pub struct InFlight(Arc<Semaphore>);

impl Default for InFlight {
    fn default() -> Self {
        Self::of(IN_FLIGHT_BYTES)
    }
}

/// A page, and the room that it takes until its last byte is gone.
struct Held {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl InFlight {
    /// Room for `bytes`.
    pub fn of(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    /// The same bytes, counted until the last of them has been written or dropped.
    fn hold(&self, bytes: Bytes) -> Result<Bytes, ApiError> {
        let counted = if sabotage::on(Bug::UnboundedPages) { 0 } else { bytes.len() };
        let size = u32::try_from(counted).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.0).try_acquire_many_owned(size).map_err(|_| {
            ApiError::new(Code::RateLimited, "too many pages are on their way to slow clients")
                .hint("ask for a smaller limit, or again later")
                .retry_after(Duration::from_secs(1))
        })?;
        Ok(Bytes::from_owner(Held { bytes, _room: room }))
    }
}

/// `GET /v1/events`.
///
/// # Errors
/// As the route table lists.
pub async fn history(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    Extension(in_flight): Extension<InFlight>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (query, warnings) = parse(uri.query(), &principal, &context)?;
    let start = if query.order == Order::Desc { "before" } else { "after" };
    let mut history = context.hub.history(query).await.map_err(|error| match error {
        hub::Error::Expired { .. } => ApiError::from(error).field(start),
        error => error.into(),
    })?;
    history.bytes = in_flight.hold(history.bytes)?;
    Ok(page(&history, warnings))
}

/// `GET /v1/events/{id}`.
///
/// # Errors
/// As the route table lists.
pub async fn event(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Params::parse(uri.query(), &context.limits)?.finish()?;
    let id = id_of(id)?;
    for predicate in both_kinds(&principal)? {
        let policy = principal.policy.as_ref();
        if let Some(event) = context.hub.event(&id, &predicate, policy, Encoding::WebSocket).await? {
            return Ok(body::bytes(StatusCode::OK, [event]));
        }
    }
    Err(not_found())
}

/// `GET /v1/events/{id}/trace`.
///
/// # Errors
/// As the route table lists.
pub async fn trace(
    State(context): State<Context>,
    Extension(principal): Extension<Arc<Principal>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, ApiError> {
    Params::parse(uri.query(), &context.limits)?.finish()?;
    let id = id_of(id)?;
    for predicate in both_kinds(&principal)? {
        if let Some(trace) = context.hub.trace(&id, &predicate, principal.policy.as_ref()).await? {
            let mut shown = trace::json(&trace);
            // Who may manage webhooks sees what became of the event at those that it may know of.
            if principal.roles.contains(Role::Webhooks) {
                let attempts = context.webhooks.attempts_of_event(&principal, &id).await?;
                shown["webhooks"] = attempts.iter().map(webhooks::shown::attempt).collect();
            }
            return Ok(body::json(StatusCode::OK, &shown));
        }
    }
    Err(not_found())
}

fn id_of(id: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::new(Code::InvalidParameter, "the id is no UTF-8").field("id"))?;
    Ok(id)
}

fn not_found() -> ApiError {
    ApiError::not_found("no such event is kept, or the token may not see it").field("id")
}

/// An empty filter leaves out the gateway's own events; who asks by id has named it, so both kinds are tried.
fn both_kinds(principal: &Principal) -> Result<[Predicate; 2], ApiError> {
    Ok([principal.predicate(Filter::default())?, principal.predicate(gateway_types()?)?])
}

fn gateway_types() -> Result<Filter, ApiError> {
    let own = KNOWN_TYPES.iter().filter(|name| name.starts_with(crate::event::GATEWAY_PREFIX));
    let own = own.map(|name| (*name).to_owned()).collect();
    Ok(Filter::build([("event_type", own)], FilterLimits::default())?.0)
}

/// Reads the query string of a history read; gives the filter's warnings beside it.
fn parse(
    query: Option<&str>,
    principal: &Principal,
    context: &Context,
) -> Result<(HistoryQuery, Vec<String>), ApiError> {
    let limits: &Limits = &context.limits;
    let mut params = Params::parse(query, limits)?;
    let order =
        params.take_choice("order", &[("asc", Order::Asc), ("desc", Order::Desc)])?.unwrap_or_default();
    let limit = params.take_number("limit", 1..=LIMIT_MAX)?;
    let before = params.take("before")?;
    let start = params.take_start()?;
    let on_expired = params.take_on_expired(OnExpired::Fail)?;
    let [until, event_since, event_until] =
        ["until", "event_since", "event_until"].map(|name| params.take_time(name));
    let (filter, warnings) = params.filter(limits)?;
    let position = match order {
        Order::Asc => ascending(start, before.as_deref(), context)?,
        Order::Desc => descending(start, before.as_deref())?,
    };
    let since = match (order, start) {
        (Order::Desc, Some(Start::Since(time))) => Some(time),
        _ => None,
    };
    let limit = match start {
        Some(Start::Last(last)) => limit.unwrap_or(last).min(last),
        _ => limit.unwrap_or(LIMIT_DEFAULT),
    };
    let query = HistoryQuery {
        encoding: Encoding::WebSocket,
        predicate: if sabotage::on(Bug::HistoryIgnoresScope) {
            filter.into()
        } else {
            principal.predicate(filter)?
        },
        policy: principal.policy.clone(),
        position,
        since,
        until: until?,
        event_since: event_since?,
        event_until: event_until?,
        limit,
        order,
        on_expired,
    };
    Ok((query, warnings))
}

fn ascending(
    start: Option<Start>,
    before: Option<&str>,
    context: &Context,
) -> Result<HistoryStart, ApiError> {
    if before.is_some() {
        return Err(ApiError::new(Code::InvalidStart, "before needs order=desc")
            .field("before")
            .hint("with order=asc pass after=<cursor>"));
    }
    Ok(match start {
        None | Some(Start::Earliest) => HistoryStart::Oldest,
        Some(Start::Now) => HistoryStart::After(context.hub.range().1),
        Some(Start::After(cursor)) => HistoryStart::After(cursor),
        Some(Start::Since(time)) => HistoryStart::Since(time),
        Some(Start::Last(n)) => HistoryStart::Last(n),
    })
}

fn descending(start: Option<Start>, before: Option<&str>) -> Result<HistoryStart, ApiError> {
    let wrong = |field: &'static str, hint: &'static str| {
        let message = format!("{field} does not go with order=desc, which reads from the newest event down");
        Err(ApiError::new(Code::InvalidStart, message).field(field).hint(hint))
    };
    let position = match before {
        None => HistoryStart::Newest,
        Some(text) => HistoryStart::Before(
            Cursor::parse(text)
                .map_err(|error| ApiError::new(Code::InvalidCursor, error.to_string()).field("before"))?,
        ),
    };
    match start {
        None | Some(Start::Since(_)) => Ok(position),
        Some(Start::Now) if before.is_none() => Ok(position),
        Some(Start::Now) => wrong("from", "before says where to start"),
        Some(Start::Earliest) => wrong("from", "leave it out to read down to the oldest event"),
        Some(Start::After(_)) => wrong("after", "pass before=<cursor>"),
        Some(Start::Last(_)) => wrong("last", "pass limit=<n>"),
    }
}

/// `{events, next_cursor, caught_up}`, with `gap` and `warnings` where there are any. The events are the hub's bytes.
fn page(history: &History, warnings: Vec<String>) -> Response {
    let mut rest = Map::new();
    rest.insert("next_cursor".into(), history.next.to_string().into());
    rest.insert("caught_up".into(), history.caught_up.into());
    if let Some(gap) = &history.gap {
        rest.insert("gap".into(), Value::Object(gap.to_json()));
    }
    if !warnings.is_empty() {
        rest.insert("warnings".into(), warnings.into());
    }
    let rest = Value::Object(rest).to_string();
    let tail = format!("],{}", rest.strip_prefix('{').unwrap_or(&rest));
    body::bytes(
        StatusCode::OK,
        [Bytes::from_static(br#"{"events":["#), history.bytes.clone(), Bytes::from(tail)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_take_room_until_their_last_byte_is_gone() {
        let in_flight = InFlight::of(10);
        let first = in_flight.hold(Bytes::from_static(b"123456")).unwrap();
        assert_eq!(first.as_ref(), b"123456");
        let refused = in_flight.hold(Bytes::from_static(b"12345")).unwrap_err();
        assert_eq!((refused.code, refused.retryable()), (Code::RateLimited, true));
        let rest = first.slice(5..);
        drop(first);
        assert!(in_flight.hold(Bytes::from_static(b"12345")).is_err());
        drop(rest);
        assert!(in_flight.hold(Bytes::from_static(b"1234567890")).is_ok());
    }
}
