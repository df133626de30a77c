//! Answers that break on the way: bodies that are cut, never end, are too large, or are not JSON at all.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use jiff::Timestamp;

use super::row::Row;
use super::server::Peer;

/// Largest padded body.
const HUGE_MAX: usize = 64 * 1024 * 1024;
const HTML: &str =
    "<!DOCTYPE html><html><head><title>Maintenance</title></head><body>Back soon.</body></html>";

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// As it should.
    Whole,
    /// Connection reset in the middle.
    Reset,
    /// Connection closed in the middle.
    Cut,
    /// Half of the JSON, length matching.
    CutJson,
    /// HTML in its place.
    Html,
    /// Half, then nothing.
    Hang,
    /// Padded to this many bytes.
    Huge(usize),
}

/// The rows in an answer, attached to it so that they are marked as served only if it goes out whole.
#[derive(Debug, Clone)]
pub(super) struct Served(pub Arc<Vec<Arc<Row>>>);

/// Gives the answer its ending.
pub(super) async fn end(mut response: Response, ending: Ending, peer: &Peer, now: Timestamp) -> Response {
    let served = response.extensions_mut().remove::<Served>();
    match ending {
        Ending::Whole => {}
        Ending::Html => {
            return ([(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))], HTML)
                .into_response();
        }
        _ => response = bend(response, ending, peer).await,
    }
    if matches!(ending, Ending::Whole | Ending::Huge(_)) {
        served.iter().flat_map(|served| served.0.iter()).for_each(|row| row.mark_served(now));
    }
    response
}

async fn bend(response: Response, ending: Ending, peer: &Peer) -> Response {
    let (mut head, body) = response.into_parts();
    let whole = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let half = whole.slice(..whole.len() / 2);
    let first = stream::iter([Ok(half.clone())]);
    let mut length = whole.len();
    let body = match ending {
        Ending::Cut => Body::from_stream(first.chain(stream::once(async {
            half_sent().await;
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        }))),
        Ending::Reset => {
            let peer = peer.clone();
            Body::from_stream(first.chain(stream::once(async move {
                half_sent().await;
                peer.reset();
                pending::<io::Result<Bytes>>().await
            })))
        }
        Ending::Hang => Body::from_stream(first.map(|half: io::Result<Bytes>| half).chain(stream::pending())),
        Ending::Huge(bytes) => {
            let mut padded = whole.to_vec();
            padded.resize(bytes.min(HUGE_MAX).max(whole.len()), b' ');
            length = padded.len();
            Body::from(padded)
        }
        Ending::CutJson | Ending::Whole | Ending::Html => {
            length = half.len();
            Body::from_stream(stream::iter([Ok::<_, Infallible>(half)]))
        }
    };
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    Response::from_parts(head, body)
}

/// The connection writes only when its body has nothing ready: without this turn, no half would ever leave.
async fn half_sent() {
    tokio::task::yield_now().await;
}
