//! The frontends: thin translations between a wire and the hub, which do not know each other.
//!
//! A frontend reads who is asking ([`auth`]), what for ([`params`] or its own messages), hands both to the
//! [`hub`](crate::hub) and writes what comes back, which is ready-made bytes. What they share lies here: the
//! [`Limits`] that every client is told, one [error] table, the [registry] of who is connected.
//!
//! | wire | where | file |
//! |---|---|---|
//! | REST, OpenAPI, landing page | public listener | `http` |
//! | WebSocket `/v1/events/ws` | public listener | `websocket` |
//! | Server-Sent Events `/v1/events/sse` | public listener | `sse` |
//! | gRPC, grpc-web | gRPC listener | `grpc` |
//! | health, metrics | admin listener | `admin` |

pub mod admin;
pub mod error;
pub mod grpc;
pub mod http;
pub mod info;
pub mod listener;
pub mod params;
pub mod registry;
pub mod sims;
pub mod sse;
pub mod websocket;

mod drain;
mod latch;

#[cfg(test)]
pub(crate) mod tests_support;

use std::{net::SocketAddr, ops::Deref, sync::Arc, time::Duration};

use ::http::{HeaderMap, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{self, Auth, CookieSessions, Principal, Tickets},
    bus::{Bus, Fill},
    clock::SharedClock,
    hub::Hub,
    ingest::StatusReceiver,
    lookup::Lookup,
    views::registry as sim_registry,
    webhooks::{self, Webhooks},
};

pub use error::{ApiError, Code};
pub use registry::Registry;

/// What every frontend works with; clones are the same. The fields are those of [`Parts`].
#[derive(Debug, Clone)]
pub struct Context(Arc<Parts>);

/// The fields of a [`Context`], put together by the composition root.
#[derive(Debug)]
pub struct Parts {
    /// Reading: history, live, by id.
    pub hub: Hub,
    /// Where events are made durable.
    pub bus: Arc<dyn Bus>,
    /// What the poller shows of itself.
    pub status: StatusReceiver,
    /// Endpoints and their deliveries.
    pub webhooks: Webhooks,
    /// What is known of each SIM.
    pub sims: sim_registry::Handle,
    /// Page tokens of lists of SIMs.
    pub sim_tokens: sim_registry::Tokens,
    /// What clients ask of upstream.
    pub lookup: Arc<Lookup>,
    /// Who is asking.
    pub auth: Arc<Auth>,
    /// Single-use tickets for URLs.
    pub tickets: Arc<Tickets>,
    /// Behind the SSE cookie.
    pub sessions: Arc<CookieSessions>,
    /// Wall clock.
    pub clock: SharedClock,
    /// Told to every client.
    pub limits: Limits,
    /// Who is connected.
    pub registry: Registry,
    /// Which names and pages may address this gateway.
    pub web: WebConfig,
    /// Soft stop: accept nothing new, say where to resume.
    pub draining: CancellationToken,
    /// Hard stop: return now.
    pub stop: CancellationToken,
    /// `upstream.name`, the last part of an event's `source`.
    pub source: Arc<str>,
    /// When this process started.
    pub started_at: Timestamp,
}

/// Against DNS rebinding and cross-site requests; checked even where nobody needs a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebConfig {
    /// Addresses that the HTTP and gRPC listeners are bound to.
    pub listen: Vec<SocketAddr>,
    /// `http.allowed_hosts`: names, without port, beside loopback ones and the addresses in `listen`.
    pub allowed_hosts: Vec<String>,
    /// `http.allowed_origins`: `https://host[:port]`, beside the same origin.
    pub allowed_origins: Vec<String>,
}

impl Context {
    /// Shares the parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Who sends these headers: the bearer token of `Authorization`.
    ///
    /// # Errors
    /// [`Code::Unauthorized`] or [`Code::TokenExpired`].
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Principal>, ApiError> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        Ok(self.auth.authenticate(value.and_then(auth::bearer))?)
    }

    /// Refuses new work while the gateway drains.
    ///
    /// # Errors
    /// [`Code::Draining`].
    pub fn staying(&self) -> Result<(), ApiError> {
        if self.draining.is_cancelled() { Err(ApiError::draining()) } else { Ok(()) }
    }

    /// Refuses new work while the gateway drains, or its log is a copy that is not complete yet.
    ///
    /// # Errors
    /// [`Code::Draining`], [`Code::IndexBuilding`].
    pub fn accepting(&self) -> Result<(), ApiError> {
        self.staying()?;
        match *self.bus.fill().borrow() {
            Fill::Filling { upto, of } => Err(ApiError::index_building(upto, of)),
            _ => Ok(()),
        }
    }
}

impl Deref for Context {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What a client may ask of one gateway (design section 4). Shown in `welcome` and `GET /v1/stream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open streams (WebSocket, SSE, gRPC) of all clients together.
    pub connections: usize,
    /// Named subscriptions of one WebSocket or gRPC `Interact` stream.
    pub subscriptions_per_connection: usize,
    /// Values of one filter list in a query or message.
    pub filter_values: usize,
    /// Values of one filter list in a REST body.
    pub filter_values_body: usize,
    /// Bytes of a request target.
    pub url_bytes: usize,
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Events of one message.
    pub batch_events: usize,
    /// Bytes of one message's events; one event larger than this still goes out, alone.
    pub batch_bytes: usize,
    /// Bytes of a WebSocket message before authentication.
    pub message_bytes_before_auth: usize,
    /// Bytes of a WebSocket message.
    pub message_bytes: usize,
    /// How often a quiet stream says that it lives.
    pub heartbeat: Duration,
    /// How long a WebSocket may stay without credential.
    pub auth_timeout: Duration,
    /// How long a client may take nothing before it is closed.
    pub write_timeout: Duration,
    /// Webhook endpoints.
    pub endpoints: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            subscriptions_per_connection: 32,
            filter_values: 1_000,
            filter_values_body: 10_000,
            url_bytes: 16 * 1024,
            body_bytes: 1024 * 1024,
            batch_events: 256,
            batch_bytes: 256 * 1024,
            message_bytes_before_auth: 4 * 1024,
            message_bytes: 64 * 1024,
            heartbeat: Duration::from_secs(15),
            auth_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(30),
            endpoints: webhooks::ENDPOINTS_MAX,
        }
    }
}

impl Limits {
    /// As shown to clients: counts, bytes, and durations in milliseconds.
    pub fn to_json(&self) -> Value {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        json!({
            "connections": self.connections,
            "subscriptions_per_connection": self.subscriptions_per_connection,
            "filter_values": self.filter_values,
            "filter_values_body": self.filter_values_body,
            "url_bytes": self.url_bytes,
            "body_bytes": self.body_bytes,
            "batch_events": self.batch_events,
            "batch_bytes": self.batch_bytes,
            "message_bytes_before_auth": self.message_bytes_before_auth,
            "message_bytes": self.message_bytes,
            "heartbeat_ms": ms(self.heartbeat),
            "auth_timeout_ms": ms(self.auth_timeout),
            "write_timeout_ms": ms(self.write_timeout),
            "endpoints": self.endpoints,
        })
    }
}
