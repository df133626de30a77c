//! WebSocket `/v1/events/ws`, subprotocol `simcast.v1.json`.
//!
//! One task per connection, no queue per subscriber: the task takes the next delivery from the
//! [hub](crate::hub) only when the socket has taken the last one, so that a slow client costs its place in the log
//! and nothing else.
//!
//! | file | what |
//! |---|---|
//! | [`messages`] | names and shapes of the messages, reading of those that clients send |
//! | `handshake` | the upgrade, and who is asking |
//! | `session` | the life of a connection: subscriptions, deliveries, deadlines |
//! | `wire` | frames: read by tungstenite, written as head and shared body by one vectored write |
//! | [`asyncapi`] | `GET /asyncapi.json` |
//!
//! Host and Origin are checked before, by [`http::guard`](super::http::guard), for every route of the listener.

pub mod asyncapi;
pub mod messages;

mod handshake;
mod session;
mod wire;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    routing::{MethodFilter, get, on},
};

use super::{
    Context,
    drain::{self, Slots},
    registry::Kind,
};

/// Times that are not for operators to choose; tests shorten them.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// How long a close frame is tried before the connection is reset.
    close: Duration,
    /// How long before its end a client hears that its credential ends.
    expiry_notice: Duration,
    /// Within which time of a drain connections are closed, evenly.
    drain: Duration,
    /// Messages of a client within a second, at most.
    messages_per_second: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            close: Duration::from_secs(5),
            expiry_notice: Duration::from_secs(60),
            drain: drain::window(),
            messages_per_second: 200,
        }
    }
}

/// What the connections share.
struct Shared {
    context: Context,
    timing: Timing,
    slots: Slots,
    /// Events written, of all connections.
    delivered: metrics::Counter,
}

/// The routes: the upgrade and `/asyncapi.json`.
pub fn routes(context: Context) -> Router {
    routes_with(context, Timing::default())
}

fn routes_with(context: Context, timing: Timing) -> Router {
    let document = asyncapi::document(&context.limits);
    let delivered = metrics::counter!("simcast_events_delivered_total", "kind" => Kind::WebSocket.as_str());
    let shared = Arc::new(Shared { context, timing, slots: Slots::default(), delivered });
    Router::new()
        .route("/v1/events/ws", on(MethodFilter::GET, handshake::upgrade))
        .with_state(shared)
        .route("/asyncapi.json", get(move || std::future::ready(Json(document.clone()))))
}

#[cfg(test)]
mod tests;
