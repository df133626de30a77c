//! The upgrade: what must hold before the connection speaks WebSocket, and who is asking.
//!
//! A browser sees nothing of a refused upgrade but that it failed. So everything that a page could act on (a bad
//! token, a bad filter in the URL, a full gateway) completes the upgrade, is said in an `error` message, and closes
//! with a code that says whether to come back.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    Shared,
    messages::{self, BEARER_PROTOCOL, DEFAULT_SUB, SUBPROTOCOL, Subscribe},
    session::Session,
    wire::Wire,
};
use crate::{
    auth::{AuthError, Principal, Role, bearer},
    event::OnExpired,
    frontends::{
        ApiError, Code, Context,
        params::Params,
        registry::{ConnectionGuard, Kind},
    },
};

/// Close code of a request that was wrong from the start.
const BAD_REQUEST: u16 = 4400;

/// What the request leads to.
pub(super) struct Opening {
    /// None until the first message brings a credential.
    pub(super) principal: Option<Arc<Principal>>,
    /// None with `?subscribe=none`.
    pub(super) subscribe: Option<Box<Subscribe>>,
    pub(super) guard: ConnectionGuard,
}

/// `GET /v1/events/ws`.
pub(super) async fn upgrade(State(shared): State<Arc<Shared>>, mut request: Request) -> Response {
    if let Err(error) = shared.context.accepting() {
        return error.into_response();
    }
    let accept = match accept_key(request.headers()) {
        Ok(accept) => accept,
        Err(response) => return *response,
    };
    let offered: Vec<String> = protocols(request.headers()).map(str::to_owned).collect();
    let opening = opening(&shared.context, &request, &offered);
    tokio::spawn(start(shared, hyper::upgrade::on(&mut request), opening));
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if offered.iter().any(|name| name == SUBPROTOCOL) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    response
}

async fn start(shared: Arc<Shared>, upgrade: OnUpgrade, opening: Result<Opening, ApiError>) {
    let upgraded: Upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "upgrade failed"),
    };
    match opening {
        Ok(opening) => Box::new(Session::new(shared, upgraded, opening)).run().await,
        Err(error) => Box::pin(refuse(shared, upgraded, error)).await,
    }
}

async fn refuse(shared: Arc<Shared>, upgraded: Upgraded, error: ApiError) {
    let mut wire = Wire::new(upgraded, shared.context.limits.message_bytes_before_auth);
    let text = messages::error(&Value::Null, None, &error);
    let said = wire.send(text, shared.timing.close).await;
    if said.is_ok() {
        let reason = messages::close_reason(error.code.as_str(), None);
        wire.close(error.code.close().unwrap_or(BAD_REQUEST), &reason, shared.timing.close).await;
    }
}

/// Checks the handshake (RFC 6455, section 4.2.1); gives the value of `Sec-WebSocket-Accept`.
fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, Box<Response>> {
    let refuse = |message: &'static str| {
        let mut response = ApiError::new(Code::InvalidParameter, message)
            .hint("this path speaks WebSocket; for a plain HTTP stream use /v1/events/sse")
            .into_response();
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        Box::new(response)
    };
    if !has_word(headers, header::CONNECTION, "upgrade") || !has_word(headers, header::UPGRADE, "websocket") {
        return Err(refuse("the request does not ask for a WebSocket"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(refuse("the WebSocket version is 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let decoded = base64::engine::general_purpose::STANDARD.decode(key);
    if decoded.is_ok_and(|nonce| nonce.len() == 16)
        && let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key))
    {
        return Ok(accept);
    }
    Err(refuse("Sec-WebSocket-Key is 16 bytes in base64"))
}

fn has_word(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    words(headers, name).any(|found| found.eq_ignore_ascii_case(word))
}

fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    words(headers, header::SEC_WEBSOCKET_PROTOCOL)
}

fn opening(context: &Context, request: &Request, offered: &[String]) -> Result<Opening, ApiError> {
    let mut params = Params::parse(request.uri().query(), &context.limits)?;
    for name in ["token", "access_token"] {
        if params.take(name)?.is_some() {
            return Err(ApiError::new(Code::InvalidParameter, "a token in a URL ends up in logs and histories")
                .field(name)
                .hint(
                    "send it as Authorization header, as subprotocol bearer.<base64url of the token>, as first \
                     message {\"type\":\"auth\",\"token\":…}, or exchange it for a ?ticket= at POST /v1/tickets",
                ));
        }
    }
    let ticket = params.take("ticket")?;
    let subscribe = subscription(params, context)?;
    let principal = principal(context, request.headers(), ticket.as_deref(), offered)?;
    if let Some(principal) = &principal {
        principal.require(Role::Read)?;
    }
    let name = principal.as_ref().map_or("", |principal| principal.name.as_str());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    let guard = context.registry.connect(Kind::WebSocket, name, peer)?;
    Ok(Opening { principal, subscribe, guard })
}

/// What the query subscribes to: everything from now on if it says nothing.
fn subscription(mut params: Params, context: &Context) -> Result<Option<Box<Subscribe>>, ApiError> {
    let none = params.take_choice("subscribe", &[("none", true), (DEFAULT_SUB, false)])?;
    let start = params.take_start()?.unwrap_or_default();
    let on_expired = params.take_on_expired(OnExpired::Earliest)?;
    let (filter, warnings) = params.filter(&context.limits)?;
    if none == Some(true) {
        return Ok(None);
    }
    Ok(Some(Box::new(Subscribe { sub: DEFAULT_SUB.into(), filter, warnings, start, on_expired })))
}

/// Who is asking; None where only the first message can tell.
fn principal(
    context: &Context,
    headers: &HeaderMap,
    ticket: Option<&str>,
    offered: &[String],
) -> Result<Option<Arc<Principal>>, ApiError> {
    if let Some(ticket) = ticket {
        return match context.tickets.redeem(ticket) {
            Some(principal) => Ok(Some(principal)),
            None => Err(ApiError::new(Code::Unauthorized, "the ticket is unknown, used, or too old")
                .field("ticket")
                .hint("get a new one at POST /v1/tickets; each works once, for 30 s")),
        };
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(token) = authorization.and_then(bearer) {
        return Ok(Some(context.auth.authenticate(Some(token))?));
    }
    if let Some(encoded) = offered.iter().find_map(|name| name.strip_prefix(BEARER_PROTOCOL)) {
        let token = URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let token = token.ok_or_else(|| {
            ApiError::new(Code::Unauthorized, "the subprotocol bearer.… is no base64url of a token")
        })?;
        return Ok(Some(context.auth.authenticate(Some(&token))?));
    }
    match context.auth.authenticate(None) {
        Ok(anonymous) => Ok(Some(anonymous)),
        Err(AuthError::Missing) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
