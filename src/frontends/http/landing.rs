//! The page at `/`: what is where, with examples to copy. One static file, no script, no foreign resource.

use axum::response::{Html, IntoResponse, Response};
use http::{HeaderValue, header};

const PAGE: &str = include_str!("landing.html");

/// `GET /`.
pub async fn page() -> Response {
    let mut response = Html(PAGE.replace("{{version}}", env!("CARGO_PKG_VERSION"))).into_response();
    response.headers_mut().insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
    );
    response
}
