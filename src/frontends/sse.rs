//! Server-Sent Events `/v1/events/sse`: the stream for browsers' `EventSource` and for `curl`.
//!
//! Events have `id:` = cursor and no `event:` line, so that `onmessage` sees them (`?named=1` adds one). Control
//! messages are named ([`CONTROL`]). `Last-Event-ID`, which `EventSource` sends when it reconnects, wins over the
//! start in the URL, which it sends again unchanged; for the same reason a cursor that is no longer kept leads to a
//! `gap` and the oldest event, not to an error that nobody could act on.
//!
//! `EventSource` can't send headers: a `?ticket=` is exchanged for a cookie, which later reconnects bring.
//! Host and Origin are checked before, by [`http::guard`](super::http::guard), for every route of the listener.

mod feed;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State},
    response::Response,
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, header};

use super::{
    ApiError, Code, Context,
    drain::{self, Slots},
    params::Params,
    registry::Kind,
};
use crate::{
    auth::{CookieSession, Principal, Role, bearer},
    event::{Cursor, OnExpired, Start},
    hub::{Encoding, Spec},
};
use feed::Feed;

/// Names of the control messages.
pub const CONTROL: [&str; 4] = [BOOKMARK, GAP, CAUGHT_UP, DRAINING];
/// Heartbeat; carries `id:`.
pub const BOOKMARK: &str = "bookmark";
/// A range that can't be delivered.
pub const GAP: &str = "gap";
/// History is done.
pub const CAUGHT_UP: &str = "caught_up";
/// The gateway stops.
pub const DRAINING: &str = "draining";

/// Name of the cookie that a ticket is exchanged for.
pub const COOKIE: &str = "simcast_session";

const LAST_EVENT_ID: &str = "last-event-id";

/// What the streams share.
struct Shared {
    context: Context,
    slots: Slots,
    /// Within which time of a drain streams are ended.
    drain: Duration,
    /// Events written, of all streams.
    delivered: metrics::Counter,
}

/// The route.
pub fn routes(context: Context) -> Router {
    routes_with(context, drain::window())
}

fn routes_with(context: Context, drain: Duration) -> Router {
    let delivered = metrics::counter!("simcast_events_delivered_total", "kind" => Kind::Sse.as_str());
    let shared = Arc::new(Shared { context, slots: Slots::default(), drain, delivered });
    Router::new().route("/v1/events/sse", get(open)).with_state(shared)
}

async fn open(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    let context = &shared.context;
    context.accepting()?;
    let mut params = Params::parse(request.uri().query(), &context.limits)?;
    let ticket = params.take("ticket")?;
    let flag = [("1", true), ("true", true), ("0", false), ("false", false)];
    let named = params.take_choice("named", &flag)?.unwrap_or(false);
    let start = params.take_start()?.unwrap_or_default();
    let on_expired = params.take_on_expired(OnExpired::Earliest)?;
    let (filter, warnings) = params.filter(&context.limits)?;
    let start = last_event_id(request.headers())?.map_or(start, Start::After);
    let (principal, session) = principal(context, request.headers(), ticket.as_deref())?;
    principal.require(Role::Read)?;
    let predicate = principal.predicate(filter.clone())?;
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    let guard = context.registry.connect(Kind::Sse, &principal.name, peer)?;
    let handle = guard.subscription("default", &filter.to_json())?;
    let policy = principal.policy.clone();
    let spec = Spec { encoding: Encoding::Sse { named }, predicate, policy, start, on_expired };
    let subscription = context.hub.subscribe(spec).await?;
    let feed = Feed::new(Arc::clone(&shared), subscription, guard, handle, principal.expires_at, warnings);
    let chunks = stream::unfold(Box::new(feed), |mut feed| async move {
        let chunk = feed.next().await?;
        Some((Ok::<Bytes, Infallible>(chunk), feed))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if let Some(cookie) = session.as_ref().and_then(set_cookie) {
        headers.insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Cursor>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return Ok(None) };
    let refuse = |message: String| ApiError::new(Code::InvalidCursor, message).field("Last-Event-ID");
    let text = value.to_str().map_err(|_| refuse("this is no cursor".into()))?;
    Cursor::parse(text).map(Some).map_err(|error| refuse(error.to_string()))
}

/// Who is asking, and the session to set a cookie for where a ticket was redeemed.
fn principal(
    context: &Context,
    headers: &HeaderMap,
    ticket: Option<&str>,
) -> Result<(Arc<Principal>, Option<CookieSession>), ApiError> {
    let has_token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| bearer(value).is_some());
    if has_token || context.auth.open() {
        return Ok((context.authenticate(headers)?, None));
    }
    if let Some(principal) = ticket.and_then(|ticket| context.tickets.redeem(ticket)) {
        let session = context.sessions.create(Arc::clone(&principal))?;
        return Ok((principal, Some(session)));
    }
    // A reconnect repeats the ticket, which is used up by then, and brings the cookie.
    if let Some(principal) = cookies(headers, COOKIE).find_map(|value| context.sessions.lookup(value)) {
        return Ok((principal, None));
    }
    let message = match ticket {
        Some(_) => "the ticket is unknown, used, or too old",
        None => "a token is needed",
    };
    Err(ApiError::new(Code::Unauthorized, message).hint(
        "send \"Authorization: Bearer <token>\", or, from a browser's EventSource, the ?ticket= that POST \
         /v1/tickets gives",
    ))
}

fn cookies<'h>(headers: &'h HeaderMap, name: &'h str) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(move |(found, _)| *found == name).map(|(_, value)| value)
}

fn set_cookie(session: &CookieSession) -> Option<HeaderValue> {
    let CookieSession { value, max_age_seconds } = session;
    let text =
        format!("{COOKIE}={value}; Max-Age={max_age_seconds}; Path=/v1/events; HttpOnly; SameSite=Strict");
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;
