//! One error for every frontend, and the one table that says what it is on each wire.
//!
//! REST, SSE, WebSocket and gRPC refuse the same mistakes with the same code and the same words; only the envelope
//! differs. The table is here so that no frontend can drift: HTTP status, gRPC code and WebSocket close code of a
//! [`Code`] are columns of one row.

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value};

use crate::{
    auth::{AuthError, Forbidden, ForbiddenField, IssueError},
    event::{Cursor, FilterError, position::StartError},
    hub,
};

/// What went wrong, as clients may branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A parameter is unknown, repeated or out of range.
    InvalidParameter,
    /// A filter names an unknown list or holds a malformed value.
    InvalidFilter,
    /// The start of a read can't be understood.
    InvalidStart,
    /// The text is no cursor.
    InvalidCursor,
    /// The body is no JSON of the wanted shape.
    InvalidBody,
    /// A WebSocket message is no JSON of the wanted shape, or of an unknown type.
    InvalidMessage,
    /// The URL is too long or can't be decoded.
    InvalidUrl,
    /// No credential, or one that is not known.
    Unauthorized,
    /// The credential has expired.
    TokenExpired,
    /// No credential came in time.
    AuthTimeout,
    /// Known, but not allowed: role, Host or Origin.
    Forbidden,
    /// The filter looks at a field that the token may not see.
    ForbiddenField,
    /// No such thing, or outside what the token may see.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// It exists already, or changed meanwhile.
    Conflict,
    /// A subscription of that name exists on this connection.
    SubExists,
    /// No subscription of that name exists on this connection.
    SubUnknown,
    /// The cursor lies outside what is kept.
    CursorExpired,
    /// The body or message is too big.
    TooLarge,
    /// The body is of another type than `application/json`.
    UnsupportedMediaType,
    /// Too many requests.
    RateLimited,
    /// All connections are taken.
    ConnectionLimit,
    /// All subscriptions of this connection are taken.
    SubscriptionLimit,
    /// The client took nothing for too long.
    Slow,
    /// The gateway is stopping; another try reaches its successor.
    Draining,
    /// The local copy of the stream is not complete yet.
    IndexBuilding,
    /// What upstream allows is spent.
    UpstreamBudget,
    /// The log can't be read or the bus can't be reached.
    Unavailable,
    /// A defect of the gateway.
    Internal,
}

/// A [`Code`] on each wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// The row's key.
    pub code: Code,
    /// Spelling in JSON and in gRPC error details.
    pub name: &'static str,
    /// HTTP status.
    pub http: u16,
    /// gRPC status.
    pub grpc: tonic::Code,
    /// WebSocket close code, where the error ends the connection: 42xx reconnect now, 43xx back off, 44xx do not.
    pub close: Option<u16>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

const fn row(
    code: Code,
    name: &'static str,
    http: u16,
    grpc: tonic::Code,
    close: Option<u16>,
    retryable: bool,
) -> Wire {
    Wire { code, name, http, grpc, close, retryable }
}

/// The table, one row a code.
pub const TABLE: [Wire; 29] = {
    use tonic::Code as Grpc;
    [
        row(Code::InvalidParameter, "invalid_parameter", 400, Grpc::InvalidArgument, None, false),
        row(Code::InvalidFilter, "invalid_filter", 400, Grpc::InvalidArgument, None, false),
        row(Code::InvalidStart, "invalid_start", 400, Grpc::InvalidArgument, None, false),
        row(Code::InvalidCursor, "invalid_cursor", 400, Grpc::InvalidArgument, None, false),
        row(Code::InvalidBody, "invalid_body", 400, Grpc::InvalidArgument, None, false),
        row(Code::InvalidMessage, "invalid_message", 400, Grpc::InvalidArgument, Some(4400), false),
        row(Code::InvalidUrl, "invalid_url", 414, Grpc::InvalidArgument, None, false),
        row(Code::Unauthorized, "unauthorized", 401, Grpc::Unauthenticated, Some(4401), false),
        row(Code::TokenExpired, "token_expired", 401, Grpc::Unauthenticated, Some(4401), false),
        row(Code::AuthTimeout, "auth_timeout", 401, Grpc::Unauthenticated, Some(4408), false),
        row(Code::Forbidden, "forbidden", 403, Grpc::PermissionDenied, Some(4403), false),
        row(Code::ForbiddenField, "forbidden_field", 403, Grpc::PermissionDenied, None, false),
        row(Code::NotFound, "not_found", 404, Grpc::NotFound, None, false),
        row(Code::MethodNotAllowed, "method_not_allowed", 405, Grpc::Unimplemented, None, false),
        row(Code::Conflict, "conflict", 409, Grpc::Aborted, None, false),
        row(Code::SubExists, "sub_exists", 409, Grpc::AlreadyExists, None, false),
        row(Code::SubUnknown, "sub_unknown", 404, Grpc::NotFound, None, false),
        row(Code::CursorExpired, "cursor_expired", 410, Grpc::OutOfRange, None, false),
        row(Code::TooLarge, "too_large", 413, Grpc::ResourceExhausted, Some(4400), false),
        row(Code::UnsupportedMediaType, "unsupported_media_type", 415, Grpc::InvalidArgument, None, false),
        row(Code::RateLimited, "rate_limited", 429, Grpc::ResourceExhausted, Some(4301), true),
        row(Code::ConnectionLimit, "connection_limit", 429, Grpc::ResourceExhausted, Some(4302), true),
        row(Code::SubscriptionLimit, "subscription_limit", 429, Grpc::ResourceExhausted, None, false),
        row(Code::Slow, "slow", 429, Grpc::ResourceExhausted, Some(4308), true),
        row(Code::Draining, "draining", 503, Grpc::Unavailable, Some(4201), true),
        row(Code::IndexBuilding, "index_building", 503, Grpc::Unavailable, None, true),
        row(Code::UpstreamBudget, "upstream_budget", 503, Grpc::Unavailable, None, true),
        row(Code::Unavailable, "unavailable", 503, Grpc::Unavailable, None, true),
        row(Code::Internal, "internal", 500, Grpc::Internal, None, true),
    ]
};

impl Code {
    /// The row of the table. The rows lie in the order of the variants, which a test checks.
    pub const fn wire(self) -> Wire {
        TABLE[self as usize]
    }

    /// Spelling in JSON and in gRPC error details.
    pub const fn as_str(self) -> &'static str {
        self.wire().name
    }

    /// HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.wire().http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// gRPC status.
    pub const fn grpc(self) -> tonic::Code {
        self.wire().grpc
    }

    /// WebSocket close code, where the error ends the connection.
    pub const fn close(self) -> Option<u16> {
        self.wire().close
    }
}

/// An error as a client sees it. Clones are cheap enough for an error path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct ApiError {
    /// What went wrong.
    pub code: Code,
    /// One sentence: what is wrong and what would be right.
    pub message: Cow<'static, str>,
    /// Parameter, filter list, header or body field at fault.
    pub field: Option<Cow<'static, str>>,
    /// What to do.
    pub hint: Option<Cow<'static, str>>,
    /// How long to wait before trying again.
    pub retry_after: Option<Duration>,
    /// With [`Code::CursorExpired`]: the position before the oldest event kept, and the live edge. Boxed, since it
    /// is rare and results carry the error by value.
    pub range: Option<Box<Range>>,
}

/// What can still be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Reading after this gives the oldest event kept.
    pub oldest: Cursor,
    /// The live edge.
    pub newest: Cursor,
}

impl ApiError {
    /// An error with a code and a message.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), field: None, hint: None, retry_after: None, range: None }
    }

    /// The parameter at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// What to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// When to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// A cursor outside what is kept.
    pub fn cursor_expired(message: impl Into<Cow<'static, str>>, oldest: Cursor, newest: Cursor) -> Self {
        Self {
            range: Some(Box::new(Range { oldest, newest })),
            ..Self::new(Code::CursorExpired, message).hint(
                "start after the oldest cursor given here, or pass on_expired=earliest or on_expired=latest",
            )
        }
    }

    /// The gateway is stopping.
    pub fn draining() -> Self {
        Self::new(Code::Draining, "the gateway is stopping").retry_after(Duration::from_secs(1))
    }

    /// The copy of the stream that reads use is being filled.
    pub fn index_building(upto: u64, of: u64) -> Self {
        Self::new(
            Code::IndexBuilding,
            format!("this gateway is copying the stream: it has read up to sequence {upto} of {of}"),
        )
        .hint("try again in a moment, or ask another gateway")
        .retry_after(Duration::from_secs(1))
    }

    /// Nothing lies there, or nothing that the token may see.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        self.code.wire().retryable
    }

    /// The fields of the `error` object; `request_id` is null where none is known. A WebSocket error message has the
    /// same fields beside its own.
    pub fn to_json(&self, request_id: Option<&str>) -> Map<String, Value> {
        let text = |text: &Option<Cow<'static, str>>| text.as_deref().map_or(Value::Null, Value::from);
        let mut map = Map::new();
        map.insert("code".into(), self.code.as_str().into());
        map.insert("message".into(), self.message.as_ref().into());
        map.insert("field".into(), text(&self.field));
        map.insert("hint".into(), text(&self.hint));
        map.insert("request_id".into(), request_id.map_or(Value::Null, Value::from));
        if let Some(range) = &self.range {
            map.insert("oldest".into(), range.oldest.to_string().into());
            map.insert("newest".into(), range.newest.to_string().into());
        }
        map
    }

    /// The HTTP answer. [`IntoResponse`] can't know the request id; the outermost layer of the router builds the
    /// answer again with it, from the copy of the error that the answer carries as an extension.
    pub fn response(&self, request_id: Option<&str>) -> Response {
        let body = Value::Object(Map::from_iter([("error".into(), Value::Object(self.to_json(request_id)))]));
        let mut response = (
            self.code.status(),
            [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
            body.to_string(),
        )
            .into_response();
        let headers = response.headers_mut();
        if self.code.status() == StatusCode::UNAUTHORIZED {
            let challenge = if self.code == Code::TokenExpired {
                r#"Bearer realm="simcast", error="invalid_token""#
            } else {
                r#"Bearer realm="simcast""#
            };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: a client that obeys must not come too early.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self.clone());
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.response(None)
    }
}

impl From<FilterError> for ApiError {
    fn from(error: FilterError) -> Self {
        let mut out = Self::new(Code::InvalidFilter, error.message).field(error.field);
        out.hint = error.hint.map(Cow::Owned);
        out
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        let code = if error.field == "after" { Code::InvalidCursor } else { Code::InvalidStart };
        Self::new(code, error.message).field(error.field)
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        let code = if error == AuthError::Expired { Code::TokenExpired } else { Code::Unauthorized };
        Self::new(code, error.to_string())
    }
}

impl From<Forbidden> for ApiError {
    fn from(error: Forbidden) -> Self {
        Self::new(Code::Forbidden, error.to_string())
    }
}

impl From<ForbiddenField> for ApiError {
    fn from(error: ForbiddenField) -> Self {
        Self::new(Code::ForbiddenField, error.to_string()).field(error.field)
    }
}

impl From<hub::Error> for ApiError {
    fn from(error: hub::Error) -> Self {
        let message = error.to_string();
        match error {
            // Whether it was asked for by `after` or reached by reading: that position is what is gone.
            hub::Error::Expired { oldest, newest, .. } => {
                Self::cursor_expired(message, oldest, newest).field("after")
            }
            hub::Error::Unavailable(_) => {
                Self::new(Code::Unavailable, message).retry_after(Duration::from_secs(1))
            }
        }
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Full => {
                Self::new(Code::RateLimited, error.to_string()).retry_after(Duration::from_secs(5))
            }
            IssueError::Expired => Self::new(Code::TokenExpired, error.to_string()),
            IssueError::Entropy(_) => Self::new(Code::Internal, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
