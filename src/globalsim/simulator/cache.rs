//! A caching proxy in front of the API, as a fault: answers that are older than they look.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::response::Response;
use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL};
use http::{HeaderMap, HeaderValue, StatusCode, response};
use tokio::time::Instant;

/// Answers kept; the proxy starts over when it is full.
const ENTRIES_MAX: usize = 256;

/// Whole answers by path and query.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    at: Instant,
    head: response::Parts,
    body: Bytes,
}

/// Whether the client asked for a fresh answer.
pub(super) fn wants_fresh(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    values.into_iter().any(|value| value.contains("no-cache") || value.contains("no-store"))
}

/// The answer, and a copy to keep when it is a success.
pub(super) async fn split(response: Response) -> (Response, Option<(response::Parts, Bytes)>) {
    if response.status() != StatusCode::OK {
        return (response, None);
    }
    let (head, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let copy = (head.clone(), body.clone());
    (Response::from_parts(head, Body::from(body)), Some(copy))
}

// === impl Cache ===

impl Cache {
    /// A kept answer that is not older than `keep`.
    pub(super) fn get(&self, target: &str, keep: Duration) -> Option<Response> {
        let entry = self.0.get(target).filter(|entry| entry.at.elapsed() < keep)?;
        let mut response = Response::from_parts(entry.head.clone(), Body::from(entry.body.clone()));
        response.headers_mut().insert(AGE, HeaderValue::from(entry.at.elapsed().as_secs()));
        Some(response)
    }

    /// Keeps an answer.
    pub(super) fn put(&mut self, target: String, (head, body): (response::Parts, Bytes)) {
        if self.0.len() >= ENTRIES_MAX {
            self.0.clear();
        }
        self.0.insert(target, Entry { at: Instant::now(), head, body });
    }
}
