//! The routes of `/v1/webhooks`.

use axum::routing::{MethodRouter, delete, get, patch, post};

use super::{Access, Kind, Parameter, Route, Success, answer, parameter};
use crate::{
    auth::Role,
    frontends::{
        Code, Context,
        http::webhooks::{self, DELIVERIES_DEFAULT, DELIVERIES_MAX},
    },
};

type Handler = fn() -> MethodRouter<Context>;

const WEBHOOK: &[Parameter] = &[parameter("id", Kind::Path, "The webhook's `id`.")];
const REPLAY: &[Parameter] = &[parameter("rid", Kind::Path, "The `replay_id`.")];
const DELIVERY: &[Parameter] = &[parameter("did", Kind::Path, "The delivery's `id`.")];
const DELIVERIES: &[Parameter] = &[
    parameter(
        "status",
        Kind::OptionalChoice(&["pending", "delivered", "failed", "dead_lettered", "skipped"]),
        "Deliveries of this status. Without it: attempts, as the gateway that is asked wrote them down.",
    ),
    parameter("after", Kind::Text, "The `next` of the page before."),
    parameter(
        "limit",
        Kind::Number(1, DELIVERIES_MAX, Some(DELIVERIES_DEFAULT)),
        "Most deliveries of this page.",
    ),
];

const READS: &[Code] = &[Code::InvalidParameter, Code::NotFound, Code::Unavailable];
const WRITES: &[Code] = &[
    Code::InvalidParameter,
    Code::InvalidBody,
    Code::InvalidFilter,
    Code::InvalidStart,
    Code::InvalidCursor,
    Code::ForbiddenField,
    Code::NotFound,
    Code::Conflict,
    Code::CursorExpired,
    Code::TooLarge,
    Code::UnsupportedMediaType,
    Code::SubscriptionLimit,
    Code::IndexBuilding,
    Code::Unavailable,
];

#[derive(Clone, Copy)]
struct Call {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
}

const fn call(
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
) -> Call {
    Call { method, path, id, summary, description }
}

const fn route(
    call: Call,
    parameters: &'static [&'static [Parameter]],
    body: bool,
    success: Success,
    handler: Handler,
) -> Route {
    Route {
        method: call.method,
        path: call.path,
        id: call.id,
        access: Access::Role(Role::Webhooks),
        summary: call.summary,
        description: call.description,
        parameters,
        body,
        success,
        errors: if body { WRITES } else { READS },
        handler: Some(handler),
    }
}

pub(super) const CREATE: Route = route(
    call(
        "post",
        "/v1/webhooks",
        "createWebhook",
        "Make a webhook",
        "`url` is required. Optional: `filter`, one of `from` (`now`, the default, or `earliest`), `after`, `since` and \
         `last`, `description`, `headers`, `ordering` (`none`, `per_sim`, `strict`), `max_in_flight`, \
         `rate_limit_per_second`, `batch` (`max_events`, `max_wait_ms`), `timeout_ms`, `retry_schedule` (seconds before \
         each attempt), `secret`. The answer's `secret` is shown this once. Without `exclude_flags` in the filter, events \
         with the flag `backfill` are left out.",
    ),
    &[],
    true,
    answer(201, "WebhookMade", "The webhook and its secret."),
    || post(webhooks::create),
);

pub(super) const LIST: Route = route(
    call(
        "get",
        "/v1/webhooks",
        "listWebhooks",
        "All webhooks",
        "A token that is held to a filter or a field policy sees those that it made.",
    ),
    &[],
    false,
    answer(200, "Webhooks", "Webhooks by id."),
    || get(webhooks::list),
);

pub(super) const GET: Route = route(
    call(
        "get",
        "/v1/webhooks/{id}",
        "getWebhook",
        "One webhook",
        "Values of headers that look like credentials are hidden.",
    ),
    &[WEBHOOK],
    false,
    answer(200, "Webhook", "The webhook."),
    || get(webhooks::get),
);

pub(super) const UPDATE: Route = route(
    call(
        "patch",
        "/v1/webhooks/{id}",
        "updateWebhook",
        "Change a webhook",
        "Fields as for making one but the start and the secret. What is left out stays, null is the default. The position \
         stays too.",
    ),
    &[WEBHOOK],
    true,
    answer(200, "Webhook", "The webhook."),
    || patch(webhooks::update),
);

pub(super) const DELETE: Route = route(
    call(
        "delete",
        "/v1/webhooks/{id}",
        "deleteWebhook",
        "Delete a webhook",
        "With its position, replays and attempts. What the stream was told of it stays there.",
    ),
    &[WEBHOOK],
    false,
    answer(200, "Deleted", "It is gone."),
    || delete(webhooks::delete),
);

pub(super) const PAUSE: Route = route(
    call(
        "post",
        "/v1/webhooks/{id}/pause",
        "pauseWebhook",
        "Send nothing for now",
        "The position stays, and the log keeps what lies behind it (up to twice its retention).",
    ),
    &[WEBHOOK],
    true,
    answer(200, "Webhook", "The webhook."),
    || post(webhooks::pause),
);

pub(super) const RESUME: Route = route(
    call(
        "post",
        "/v1/webhooks/{id}/resume",
        "resumeWebhook",
        "Go on",
        "Where it was paused or disabled; with `from`, `after`, `since` or `last` elsewhere.",
    ),
    &[WEBHOOK],
    true,
    answer(200, "Webhook", "The webhook."),
    || post(webhooks::resume),
);

pub(super) const SEEK: Route = route(
    call(
        "post",
        "/v1/webhooks/{id}/seek",
        "seekWebhook",
        "Go on elsewhere",
        "To `from`, `after`, `since` or `last`. What is pending is not sent any more unless it lies behind the new position.",
    ),
    &[WEBHOOK],
    true,
    answer(200, "Webhook", "The webhook."),
    || post(webhooks::seek),
);

pub(super) const TEST: Route = route(
    call(
        "post",
        "/v1/webhooks/{id}/test",
        "testWebhook",
        "Send a test event now",
        "An event of the type `simcast.test`, signed like any other. Its result moves nothing.",
    ),
    &[WEBHOOK],
    true,
    answer(200, "WebhookTest", "What the receiver answered."),
    || post(webhooks::test),
);

pub(super) const ROTATE: Route = route(
    call(
        "post",
        "/v1/webhooks/{id}/rotate-secret",
        "rotateWebhookSecret",
        "A new secret",
        "It signs from now on; those before go on signing for `overlap_s` (86400; at most 604800), so that every request \
         carries a signature by each. `secret` gives one of your own.",
    ),
    &[WEBHOOK],
    true,
    answer(200, "WebhookMade", "The webhook and its new secret."),
    || post(webhooks::rotate_secret),
);

pub(super) const STATS: Route = route(
    call(
        "get",
        "/v1/webhooks/{id}/stats",
        "getWebhookStats",
        "How a webhook is doing",
        "`behind` counts positions of the log that were not taken up, whether or not they match.",
    ),
    &[WEBHOOK],
    false,
    answer(200, "WebhookStats", "Lag, counts, latency."),
    || get(webhooks::stats),
);

pub(super) const START_REPLAY: Route = route(
    call(
        "post",
        "/v1/webhooks/{id}/replay",
        "replayWebhook",
        "Send stored events again",
        "Those observed from `since` up to `until` that match the webhook's filter and `filter`; with `only: failed` those \
         that were dead-lettered. With its own retries, at most `rate_limit_per_second`; requests carry `webhook-replay`. \
         With `dry_run` they are only counted.",
    ),
    &[WEBHOOK],
    true,
    answer(202, "ReplayStarted", "The replay and how many events it will send."),
    || post(webhooks::replay),
);

pub(super) const REPLAYS: Route = route(
    call(
        "get",
        "/v1/webhooks/{id}/replays",
        "listReplays",
        "Replays of a webhook",
        "Newest first, the last 100.",
    ),
    &[WEBHOOK],
    false,
    answer(200, "Replays", "Replays with their progress."),
    || get(webhooks::replays),
);

pub(super) const GET_REPLAY: Route = route(
    call("get", "/v1/webhooks/{id}/replays/{rid}", "getReplay", "One replay", "With its progress."),
    &[WEBHOOK, REPLAY],
    false,
    answer(200, "Replay", "The replay."),
    || get(webhooks::get_replay),
);

pub(super) const CANCEL_REPLAY: Route = route(
    call(
        "delete",
        "/v1/webhooks/{id}/replays/{rid}",
        "cancelReplay",
        "Cancel a replay",
        "One that has ended is forgotten.",
    ),
    &[WEBHOOK, REPLAY],
    false,
    answer(200, "ReplayCancelled", "It sends nothing more."),
    || delete(webhooks::cancel_replay),
);

pub(super) const LIST_DELIVERIES: Route = route(
    call(
        "get",
        "/v1/webhooks/{id}/deliveries",
        "listDeliveries",
        "What became of events",
        "Newest first. Pending, failed and dead-lettered ones are the same on every gateway; the others are what the \
         gateway that is asked has sent itself.",
    ),
    &[WEBHOOK, DELIVERIES],
    false,
    answer(200, "Deliveries", "A page."),
    || get(webhooks::deliveries),
);

pub(super) const GET_DELIVERY: Route = route(
    call(
        "get",
        "/v1/webhooks/{id}/deliveries/{did}",
        "getDelivery",
        "One delivery",
        "With the attempts that the gateway which is asked has made, newest first.",
    ),
    &[WEBHOOK, DELIVERY],
    false,
    answer(200, "Delivery", "The delivery."),
    || get(webhooks::delivery),
);

pub(super) const RETRY: Route = route(
    call(
        "post",
        "/v1/webhooks/{id}/deliveries/{did}/retry",
        "retryDelivery",
        "Try one delivery again now",
        "Whatever has become of it; one that was delivered is sent again.",
    ),
    &[WEBHOOK, DELIVERY],
    true,
    answer(202, "ReplayStarted", "The replay that does it."),
    || post(webhooks::retry),
);

pub(super) const ERASE: Route = route(
    call(
        "post",
        "/v1/webhooks/erase",
        "eraseAttempts",
        "Forget the attempts of a SIM",
        "Removes what the gateway that is asked wrote down of attempts to deliver events of `iccid`, receivers' answers \
         included. The events themselves stay.",
    ),
    &[],
    true,
    answer(200, "AttemptsErased", "How many attempts were removed."),
    || post(webhooks::erase),
);
