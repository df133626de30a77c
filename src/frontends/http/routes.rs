//! The table of routes. The router is built from it and so is `/openapi.json`: what is documented is what runs.

mod lookup;
mod sims;
mod webhooks;

use axum::routing::{MethodRouter, get, post};

use super::{events, landing, openapi, stream};
use crate::{
    auth::{Forbidden, Principal, Role},
    frontends::{Code, Context},
};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody: it tells nothing about SIMs or events.
    Public,
    /// The handler authenticates by itself, in more ways than a header.
    Own,
    /// The holder of a token with this role.
    Role(Role),
    /// The holder of a token with one of two roles.
    Either(Role, Role),
}

impl Access {
    /// Checks a principal.
    ///
    /// # Errors
    /// [`Forbidden`] names the role that is missing.
    pub fn check(self, principal: &Principal) -> Result<(), Forbidden> {
        match self {
            Self::Public | Self::Own => Ok(()),
            Self::Role(role) => principal.require(role),
            Self::Either(role, other) => principal.require(other).or_else(|_| principal.require(role)),
        }
    }
}

/// One parameter of a route.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// As spelled in the URL.
    pub name: &'static str,
    /// Its shape.
    pub kind: Kind,
    /// For people.
    pub description: &'static str,
}

/// Shape of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Part of the path.
    Path,
    /// Any text.
    Text,
    /// A list of texts, repeated or comma-separated.
    List,
    /// RFC 3339.
    Time,
    /// A cursor.
    Cursor,
    /// A whole number within both ends; the third is the default, where there is one.
    Number(u32, u32, Option<u32>),
    /// One of these words; the first is the default.
    Choice(&'static [&'static str]),
    /// One of these words; without it something else is done.
    OptionalChoice(&'static [&'static str]),
}

/// What a route answers when it succeeds.
#[derive(Debug, Clone, Copy)]
pub struct Success {
    /// HTTP status.
    pub status: u16,
    /// Content type; empty where there is no body.
    pub content_type: &'static str,
    /// Name of a schema in [`openapi`]; empty where the content is no JSON.
    pub schema: &'static str,
    /// For people.
    pub description: &'static str,
}

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Lower case, as OpenAPI spells it.
    pub method: &'static str,
    /// With `{name}` for parameters, in which axum and OpenAPI agree.
    pub path: &'static str,
    /// `operationId`.
    pub id: &'static str,
    /// Who may.
    pub access: Access,
    /// One line.
    pub summary: &'static str,
    /// More, as Markdown.
    pub description: &'static str,
    /// In the order shown.
    pub parameters: &'static [&'static [Parameter]],
    /// Whether a JSON body is read.
    pub body: bool,
    /// What it answers.
    pub success: Success,
    /// What it refuses, beside what every route refuses.
    pub errors: &'static [Code],
    /// None where another frontend serves it.
    pub handler: Option<fn() -> MethodRouter<Context>>,
}

const fn parameter(name: &'static str, kind: Kind, description: &'static str) -> Parameter {
    Parameter { name, kind, description }
}

/// The filter, as in every frontend.
pub const FILTER: &[Parameter] = &[
    parameter("iccid", Kind::List, "Exact ICCIDs, 18 to 22 digits."),
    parameter("device_id", Kind::List, "Exact device ids; case does not count."),
    parameter(
        "event_type",
        Kind::List,
        "Event types such as `connection`. `simcast.*` events match only where they are named.",
    ),
    parameter("iccid_prefix", Kind::List, "Leading digits of an ICCID."),
    parameter("country", Kind::List, "Country name or ISO code; case does not count."),
    parameter("operator", Kind::List, "Operator name; case does not count."),
    parameter("network_type", Kind::List, "Radio access technology such as `4G`; case does not count."),
    parameter("exclude_flags", Kind::List, "Events with one of these flags do not match."),
];

/// The start, as in every frontend. At most one of the first four.
pub const START: &[Parameter] = &[
    parameter("from", Kind::OptionalChoice(&["now", "earliest"]), "The live edge, or the oldest event kept."),
    parameter("after", Kind::Cursor, "After this cursor, exclusive."),
    parameter("since", Kind::Time, "From the first event observed at or after this time."),
    parameter("last", Kind::Number(1, 1000, None), "The last n matching events."),
];

const HISTORY: &[Parameter] = &[
    parameter("order", Kind::Choice(&["asc", "desc"]), "Oldest or newest first."),
    parameter("before", Kind::Cursor, "With `order=desc`: before this cursor, exclusive."),
    parameter("until", Kind::Time, "Only events observed before this time."),
    parameter("event_since", Kind::Time, "Only events whose `time` is at or after this."),
    parameter("event_until", Kind::Time, "Only events whose `time` is before this."),
    parameter(
        "limit",
        Kind::Number(1, events::LIMIT_MAX, Some(events::LIMIT_DEFAULT)),
        "Most events of this page.",
    ),
    parameter(
        "on_expired",
        Kind::Choice(&["fail", "earliest", "latest"]),
        "What a cursor outside the kept range does: 410, or reading from the oldest or newest event with a `gap`.",
    ),
];

const STREAMED: &[Parameter] = &[
    parameter(
        "on_expired",
        Kind::Choice(&["earliest", "latest", "fail"]),
        "What a cursor outside the kept range does.",
    ),
    parameter("ticket", Kind::Text, "A ticket of `POST /v1/tickets`, for clients that can't send headers."),
];

const WEBSOCKET: &[Parameter] = &[parameter(
    "subscribe",
    Kind::Choice(&["default", "none"]),
    "Whether the URL's filter and start open the subscription `default`.",
)];

const SSE: &[Parameter] = &[parameter(
    "named",
    Kind::Choice(&["0", "1", "false", "true"]),
    "Adds an `event:` line with the event type.",
)];

const ID: &[Parameter] = &[parameter("id", Kind::Path, "The event's `id`.")];

const fn answer(status: u16, schema: &'static str, description: &'static str) -> Success {
    Success { status, content_type: "application/json", schema, description }
}

/// Every route of the public listener.
pub const TABLE: &[Route] = &[
    Route {
        method: "get",
        path: "/",
        id: "landing",
        access: Access::Public,
        summary: "What is where",
        description: "A page for people, with examples to copy.",
        parameters: &[],
        body: false,
        success: Success { status: 200, content_type: "text/html", schema: "", description: "The page." },
        errors: &[],
        handler: Some(|| get(landing::page)),
    },
    Route {
        method: "get",
        path: "/openapi.json",
        id: "openapi",
        access: Access::Public,
        summary: "This document",
        description: "Built from the table of routes that the gateway serves.",
        parameters: &[],
        body: false,
        success: answer(200, "", "OpenAPI 3.1."),
        errors: &[],
        handler: Some(|| get(openapi::serve)),
    },
    Route {
        method: "get",
        path: "/asyncapi.json",
        id: "asyncapi",
        access: Access::Public,
        summary: "The WebSocket messages",
        description: "AsyncAPI.",
        parameters: &[],
        body: false,
        success: answer(200, "", "AsyncAPI 3.0."),
        errors: &[],
        handler: None,
    },
    Route {
        method: "get",
        path: "/v1/events",
        id: "listEvents",
        access: Access::Role(Role::Read),
        summary: "Stored events",
        description: "Without a start: from the oldest event kept, or with `order=desc` from the newest down. \
                      Go on with `after=<next_cursor>` (or `before=`) until `caught_up`. A page may hold fewer \
                      events than `limit`, even none, and still not be the last: only `caught_up` says so. \
                      A start by `since` or `last` holds for the first page; later pages take the cursor.",
        parameters: &[FILTER, START, HISTORY],
        body: false,
        success: answer(200, "History", "A page."),
        errors: &[
            Code::InvalidParameter,
            Code::InvalidFilter,
            Code::InvalidStart,
            Code::InvalidCursor,
            Code::ForbiddenField,
            Code::CursorExpired,
            Code::RateLimited,
            Code::Unavailable,
        ],
        handler: Some(|| get(events::history)),
    },
    Route {
        method: "get",
        path: "/v1/events/{id}",
        id: "getEvent",
        access: Access::Role(Role::Read),
        summary: "One event",
        description: "404 as well where the token's filter does not let the event through.",
        parameters: &[ID],
        body: false,
        success: answer(200, "Event", "The event."),
        errors: &[Code::InvalidParameter, Code::NotFound, Code::Unavailable],
        handler: Some(|| get(events::event)),
    },
    Route {
        method: "get",
        path: "/v1/events/{id}/trace",
        id: "traceEvent",
        access: Access::Role(Role::Read),
        summary: "The way of one event",
        description: "Between which times it became visible upstream, by which read it came, when it was appended. \
                      404 as well where the token's filter does not let the event through.",
        parameters: &[ID],
        body: false,
        success: answer(200, "Trace", "The way of the event."),
        errors: &[Code::InvalidParameter, Code::NotFound, Code::Unavailable],
        handler: Some(|| get(events::trace)),
    },
    Route {
        method: "get",
        path: "/v1/events/ws",
        id: "streamWebSocket",
        access: Access::Own,
        summary: "Live events over WebSocket",
        description: "Subprotocol `simcast.v1.json` (optional). One JSON object per text frame; the messages are in \
                      `/asyncapi.json`. The token comes by header, by subprotocol `bearer.<base64url token>`, by \
                      first message or as a ticket. Since browsers show nothing of a refused upgrade, whatever a \
                      client could act on completes it, is said in an `error` message and closes the connection.",
        parameters: &[FILTER, START, STREAMED, WEBSOCKET],
        body: false,
        success: Success { status: 101, content_type: "", schema: "", description: "Switched to WebSocket." },
        errors: &[],
        handler: None,
    },
    Route {
        method: "get",
        path: "/v1/events/sse",
        id: "streamSse",
        access: Access::Own,
        summary: "Live events over Server-Sent Events",
        description: "`Last-Event-ID` wins over the start in the query. Control messages are the named events \
                      `bookmark`, `gap`, `caught_up` and `draining`.",
        parameters: &[FILTER, START, STREAMED, SSE],
        body: false,
        success: Success {
            status: 200,
            content_type: "text/event-stream",
            schema: "",
            description: "`id:` is the cursor, `data:` the event.",
        },
        errors: &[
            Code::InvalidParameter,
            Code::InvalidFilter,
            Code::InvalidStart,
            Code::InvalidCursor,
            Code::ForbiddenField,
            Code::CursorExpired,
            Code::ConnectionLimit,
        ],
        handler: None,
    },
    Route {
        method: "get",
        path: "/v1/stream",
        id: "getStream",
        access: Access::Role(Role::Read),
        summary: "The stream as a whole",
        description: "What is kept, how current it is, what an acknowledgement means, and the limits.",
        parameters: &[],
        body: false,
        success: answer(200, "Stream", "The stream."),
        errors: &[Code::InvalidParameter],
        handler: Some(|| get(stream::stream)),
    },
    Route {
        method: "get",
        path: "/v1/subscribers",
        id: "listSubscribers",
        access: Access::Either(Role::Read, Role::Admin),
        summary: "Who is connected",
        description: "With the role `admin` all connections of this gateway, else those of the same token.",
        parameters: &[],
        body: false,
        success: answer(200, "Subscribers", "Connections with their subscriptions."),
        errors: &[Code::InvalidParameter],
        handler: Some(|| get(stream::subscribers)),
    },
    Route {
        method: "post",
        path: "/v1/tickets",
        id: "createTicket",
        access: Access::Role(Role::Read),
        summary: "A ticket for a URL",
        description: "Single use. For WebSocket and EventSource in browsers, which can't send headers: `?ticket=`.",
        parameters: &[],
        body: true,
        success: answer(201, "Ticket", "The ticket."),
        errors: &[
            Code::InvalidParameter,
            Code::InvalidBody,
            Code::TooLarge,
            Code::UnsupportedMediaType,
            Code::RateLimited,
        ],
        handler: Some(|| post(stream::ticket)),
    },
    sims::LIST,
    sims::GET,
    lookup::ACCOUNT_ACTIVITY,
    lookup::SIM_ACTIVITY,
    lookup::SIM_SESSIONS,
    lookup::DEVICE_SIM,
    lookup::DEVICE_ACTIVITY,
    lookup::DEVICE_SESSIONS,
    webhooks::LIST,
    webhooks::CREATE,
    webhooks::GET,
    webhooks::UPDATE,
    webhooks::DELETE,
    webhooks::PAUSE,
    webhooks::RESUME,
    webhooks::SEEK,
    webhooks::TEST,
    webhooks::ROTATE,
    webhooks::STATS,
    webhooks::START_REPLAY,
    webhooks::REPLAYS,
    webhooks::GET_REPLAY,
    webhooks::CANCEL_REPLAY,
    webhooks::LIST_DELIVERIES,
    webhooks::GET_DELIVERY,
    webhooks::RETRY,
    webhooks::ERASE,
];

/// What every route refuses; those that need a token refuse [`AUTH_ERRORS`] too.
pub const COMMON_ERRORS: &[Code] = &[Code::InvalidUrl, Code::Forbidden, Code::Draining];

/// What routes that need a token refuse.
pub const AUTH_ERRORS: &[Code] = &[Code::Unauthorized, Code::TokenExpired];
