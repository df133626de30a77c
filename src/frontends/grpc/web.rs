//! Browsers: which pages may call, and what they may read of the answer.
//!
//! Translation of grpc-web is tonic-web's; this is the part before it. A browser sends `Origin` with every POST, so a
//! request that has one comes from a page, and only pages that are listed may call: else any page that its owner's
//! browser visits could read the gateway through it (by a rebound name even one that looks like the same host).

use std::sync::Arc;

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::status;
use crate::frontends::{ApiError, Code};

/// What a page may send beside the simple headers.
const ALLOWED_HEADERS: &str =
    "authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent,x-request-id,grpc-accept-encoding";

/// What a page may read: without these it can't tell an error from an end.
const EXPOSED_HEADERS: &str = "grpc-status,grpc-message,grpc-status-details-bin";

/// Seconds for which a browser need not ask again; two hours is the most that Chromium takes.
const PREFLIGHT_SECONDS: &str = "7200";

/// The pages that may call.
#[derive(Debug, Clone)]
pub(super) struct Cors {
    origins: Arc<[String]>,
}

impl Cors {
    /// `https://host[:port]` each. No other page may call, not even one of the gateway's own host, since this port
    /// serves none.
    pub(super) fn new(origins: &[String]) -> Self {
        Self { origins: origins.iter().map(|o| o.trim_end_matches('/').to_ascii_lowercase()).collect() }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        self.origins.iter().any(|known| known.eq_ignore_ascii_case(origin))
    }
}

/// Answers preflights, refuses pages that are not listed, and lets the others read the answer.
pub(super) async fn guard(cors: Cors, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return next.run(request).await;
    };
    if !cors.allows(&origin) {
        tracing::debug!(?origin, "page refused");
        let error = ApiError::new(Code::Forbidden, "this page may not call the gateway")
            .hint("list its origin in http.allowed_origins");
        return status::status(&error).into_http::<axum::body::Body>();
    }
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        insert(headers, header::ACCESS_CONTROL_ALLOW_METHODS, "POST");
        insert(headers, header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
        insert(headers, header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
        response
    } else {
        let mut response = next.run(request).await;
        insert(response.headers_mut(), header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    response
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}
