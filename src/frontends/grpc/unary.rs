//! `ListEvents`, `GetEvent` and `GetStreamInfo`: the same reads as `GET /v1/events` and `GET /v1/stream`.

use prost::Message as _;
use tonic::Status;

use super::{
    call::Call,
    control::{upstream, wire_gap},
    frame::Frame,
    request,
    status::{hub_status, status},
};
use crate::{
    event::{Filter, Predicate, protobuf},
    frontends::{ApiError, Code, Context, info},
    hub::{Encoding, HistoryQuery, HistoryStart, Order},
    proto,
};

const PAGE_SIZE_DEFAULT: u32 = 100;
const PAGE_SIZE_MAX: i32 = 1000;

/// `ListEvents`.
///
/// # Errors
/// The status that answers the call.
pub(super) async fn list(
    context: &Context,
    call: &Call,
    request: proto::ListEventsRequest,
) -> Result<Frame, Status> {
    let (query, warnings) = query(context, call, request).map_err(|error| status(&error))?;
    let history = context.hub.history(query).await.map_err(hub_status)?;
    let rest = proto::ListEventsResponse {
        events: Vec::new(),
        next_page_token: history.next.to_string(),
        caught_up: history.caught_up,
        gap: history.gap.as_ref().map(wire_gap),
        warnings,
    };
    Ok(Frame::batch(&rest.encode_to_vec(), history.bytes))
}

fn query(
    context: &Context,
    call: &Call,
    request: proto::ListEventsRequest,
) -> Result<(HistoryQuery, Vec<String>), ApiError> {
    let (predicate, warnings) = request::predicate(request.filter, &call.principal, &context.limits)?;
    let limit = match request.page_size {
        0 => PAGE_SIZE_DEFAULT,
        n @ 1..=PAGE_SIZE_MAX => n.unsigned_abs(),
        n => {
            let message = format!("page_size is a number from 1 to {PAGE_SIZE_MAX}, not {n}");
            return Err(ApiError::new(Code::InvalidParameter, message).field("page_size"));
        }
    };
    let order = match proto::Order::try_from(request.order) {
        Ok(proto::Order::Unspecified | proto::Order::Asc) => Order::Asc,
        Ok(proto::Order::Desc) => Order::Desc,
        Err(_) => {
            let message = format!("order {} is not known", request.order);
            return Err(ApiError::new(Code::InvalidParameter, message).field("order"));
        }
    };
    let time = |time: Option<prost_types::Timestamp>, field| {
        time.map(|time| request::timestamp(&time, field)).transpose()
    };
    let since = time(request.since, "since")?;
    let position = match (request.page_token.as_str(), order) {
        ("", Order::Asc) => since.map_or(HistoryStart::Oldest, HistoryStart::Since),
        ("", Order::Desc) => HistoryStart::Newest,
        (token, Order::Asc) => HistoryStart::After(request::cursor(token, "page_token")?),
        (token, Order::Desc) => HistoryStart::Before(request::cursor(token, "page_token")?),
    };
    let query = HistoryQuery {
        encoding: Encoding::Protobuf,
        predicate,
        policy: call.principal.policy.clone(),
        position,
        since,
        until: time(request.until, "until")?,
        event_since: time(request.event_since, "event_since")?,
        event_until: time(request.event_until, "event_until")?,
        limit,
        order,
        on_expired: request::on_expired(request.on_expired)?,
    };
    Ok((query, warnings))
}

/// `GetEvent`.
///
/// # Errors
/// NOT_FOUND for an event that is unknown, no longer kept, or outside what the token may see.
pub(super) async fn get(
    context: &Context,
    call: &Call,
    request: proto::GetEventRequest,
) -> Result<Frame, Status> {
    if request.id.is_empty() {
        let error = ApiError::new(Code::InvalidParameter, "id is empty").field("id");
        return Err(status(&error));
    }
    let principal = &call.principal;
    // An empty filter would hide the gateway's own events from whoever names one by its id.
    let predicate = match &principal.scope {
        None => Predicate::unfiltered(),
        Some(scope) => Predicate::new(Filter::default(), Some(scope.clone())),
    };
    let found = context
        .hub
        .event(&request.id, &predicate, principal.policy.as_ref(), Encoding::Protobuf)
        .await
        .map_err(hub_status)?;
    match found {
        // An element of `repeated Event events = 1` is the field `Event event = 1`.
        Some(element) => Ok(Frame::batch(&[], element)),
        None => {
            let message = format!("no event {:?} is kept, or none that this token may see", request.id);
            Err(status(&ApiError::not_found(message)))
        }
    }
}

/// `GetStreamInfo`.
///
/// # Errors
/// UNAVAILABLE where the runtime is going down.
pub(super) async fn info(context: Context) -> Result<Frame, Status> {
    // The bounds and their cursors may have to be read from the disk.
    let read = tokio::task::spawn_blocking(move || read_info(&context)).await;
    let info = read.map_err(|error| status(&ApiError::new(Code::Unavailable, error.to_string())))?;
    Ok(Frame::message(&info))
}

fn read_info(context: &Context) -> proto::GetStreamInfoResponse {
    let bounds = context.hub.log().bounds();
    let (oldest, newest) = context.hub.range();
    let health = context.bus.health();
    let poller = context.status.borrow().clone();
    proto::GetStreamInfoResponse {
        events: bounds.events,
        oldest_cursor: oldest.to_string(),
        newest_cursor: newest.to_string(),
        oldest_time: bounds.first_time.map(protobuf::timestamp),
        newest_time: bounds.last_time.map(protobuf::timestamp),
        incarnation: format!("{:016x}", bounds.incarnation),
        bus: health.kind.to_owned(),
        durability: health.durability,
        upstream: upstream(poller.state).into(),
        seen_until: poller.seen_until.map(protobuf::timestamp),
        json: info::stream(context).to_string(),
    }
}
