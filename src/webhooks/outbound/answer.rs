//! What is read of an answer: its status, what the receiver wants, and the beginning of its body.

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::{Exchange, KEPT_MAX, READ_MAX, Use};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// When the receiver wants to be asked again.
    pub retry_after: Option<RetryAfter>,
    /// What else it wants.
    pub control: Option<Control>,
    /// The first [`KEPT_MAX`] bytes of its body.
    pub body: Bytes,
    /// There was more, or the rest did not come in time.
    pub truncated: bool,
}

/// The header `Retry-After`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// In so many seconds.
    Seconds(u64),
    /// Then.
    At(Timestamp),
}

/// The header `webhook-delivery` of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// No more events.
    Disable,
    /// This event not again.
    AbortMessage,
}

/// Reads what is wanted of an answer.
pub(super) async fn read(response: Response<Incoming>, started: Instant, deadline: Instant) -> Exchange {
    let first_byte = started.elapsed();
    let (mut head, mut incoming) = response.into_parts();
    let made = Use::of(head.extensions.remove());
    let mut body = BytesMut::new();
    let (mut seen, mut truncated) = (0, false);
    loop {
        match timeout_at(deadline, incoming.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                seen += data.len();
                let room = KEPT_MAX - body.len();
                body.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
                truncated |= data.len() > room;
                if seen > READ_MAX {
                    break;
                }
            }
            // The head has said what became of the request.
            Ok(Some(Err(_))) | Err(_) => {
                truncated = true;
                break;
            }
        }
    }
    Exchange {
        result: Ok(Answer {
            status: head.status.as_u16(),
            retry_after: head.headers.get(header::RETRY_AFTER).and_then(retry_after),
            control: head.headers.get(DELIVERY).and_then(control),
            body: body.freeze(),
            truncated,
        }),
        remote: made.as_ref().map(|made| made.made.remote),
        timings: Use::timings(made.as_ref(), Some(first_byte), started),
    }
}

const DELIVERY: HeaderName = HeaderName::from_static("webhook-delivery");

fn retry_after(value: &HeaderValue) -> Option<RetryAfter> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(RetryAfter::Seconds(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Timestamp::try_from(at).ok().map(RetryAfter::At)
}

fn control(value: &HeaderValue) -> Option<Control> {
    match value.to_str().ok()?.trim() {
        "disable" => Some(Control::Disable),
        "abort-message" => Some(Control::AbortMessage),
        _ => None,
    }
}
