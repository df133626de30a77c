//! Bodies: JSON in, checked and bounded; ready-made bytes out, spliced without a copy.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context as TaskContext, Poll},
};

use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use crate::frontends::{ApiError, Code, Limits};

/// Reads a JSON object; an absent body is an empty object.
///
/// # Errors
/// [`Code::UnsupportedMediaType`], [`Code::TooLarge`], [`Code::InvalidBody`].
pub async fn object(request: Request, limits: &Limits) -> Result<Map<String, Value>, ApiError> {
    let typed = is_json(request.headers());
    let too_large =
        || ApiError::new(Code::TooLarge, format!("the body is larger than {} bytes", limits.body_bytes));
    let limited = Limited::new(request.into_body(), limits.body_bytes);
    let bytes = limited.collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large()
        } else {
            ApiError::new(Code::InvalidBody, "the body ended early")
        }
    })?;
    let bytes = bytes.to_bytes();
    match typed {
        None if bytes.is_empty() => return Ok(Map::new()),
        Some(true) => {}
        None | Some(false) => {
            return Err(ApiError::new(Code::UnsupportedMediaType, "the body must be application/json")
                .field("content-type"));
        }
    }
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::new(Code::InvalidBody, format!("the body is no JSON object: {error}")))
}

/// Whether the content type is JSON; None where there is none.
fn is_json(headers: &HeaderMap) -> Option<bool> {
    let value = headers.get(header::CONTENT_TYPE)?;
    let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    Some(kind.eq_ignore_ascii_case("application/json"))
}

/// An answer of JSON text.
pub fn json(status: StatusCode, value: &Value) -> Response {
    bytes(status, [Bytes::from(value.to_string())])
}

/// An answer of JSON text in pieces, which are sent one after the other.
pub fn bytes(status: StatusCode, pieces: impl IntoIterator<Item = Bytes>) -> Response {
    let pieces: VecDeque<_> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
    let mut response = Response::new(Body::new(Pieces(pieces)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body of known length made of shared slices.
#[derive(Debug)]
struct Pieces(VecDeque<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}
