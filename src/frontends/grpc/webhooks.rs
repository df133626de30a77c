//! `simcast.v1.WebhookService`: REST's `/v1/webhooks` in protobuf, over the same core.

use std::time::Duration;

use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::{call::until, request, status::status};
use crate::{
    auth::{Principal, Role},
    event::{Filter, Start, position::LAST_MAX, protobuf},
    frontends::{ApiError, Code, Context},
    proto::{
        self,
        webhook_service_server::{WebhookService, WebhookServiceServer},
        webhook_start::Start as WireStart,
    },
    webhooks::{
        attempts::{Attempt, Outcome},
        endpoint::{BatchRule, Ordering, Settings},
        service::{self, OVERLAP, ReplayRequest, Shown, Status as DeliveryStatus},
        store::{self, Only, ReplayState},
    },
};

/// As health checks know it.
pub(super) const NAME: &str = <WebhookServiceServer<Service> as tonic::server::NamedService>::NAME;

/// Deliveries of one page, and the most.
const PAGE_SIZE_DEFAULT: u32 = 100;
const PAGE_SIZE_MAX: u32 = 1_000;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Service {
    context: Context,
}

/// The service; messages are as long as the bodies of REST.
pub(super) fn service(context: &Context) -> WebhookServiceServer<Service> {
    let limit = context.limits.body_bytes;
    WebhookServiceServer::new(Service { context: context.clone() }).max_decoding_message_size(limit)
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Answers a call of someone who may make it, within its deadline.
    async fn answer<T, R>(
        &self,
        request: Request<T>,
        answer: impl AsyncFnOnce(&Principal, T) -> Result<R, ApiError>,
    ) -> Answer<R> {
        let (metadata, _, message) = request.into_parts();
        let headers = metadata.into_headers();
        self.context.accepting().map_err(|error| status(&error))?;
        let principal = self.context.authenticate(&headers).map_err(|error| status(&error))?;
        principal.require(Role::Webhooks).map_err(|error| status(&error.into()))?;
        let deadline = request::timeout(&headers).map(|timeout| tokio::time::Instant::now() + timeout);
        let answered = async { answer(&principal, message).await.map_err(|error| status(&error)) };
        until(deadline, answered).await.map(Response::new)
    }

    fn settings(&self, wire: Option<proto::WebhookSettings>) -> Result<(Settings, Vec<String>), ApiError> {
        let wire = wire.unwrap_or_default();
        if wire.url.is_empty() {
            let message = "settings.url is missing: where events are to be sent";
            return Err(invalid("settings.url", message));
        }
        let (filter, warnings) = filter(wire.filter, self.context.limits.filter_values_body)?;
        let defaults = Settings::new(wire.url, filter);
        let batch = wire.batch.map(|batch| {
            let wait = match batch.max_wait {
                Some(wait) => duration(wait, "settings.batch.max_wait")?,
                None => Duration::from_secs(1),
            };
            Ok::<_, ApiError>(BatchRule {
                max_events: batch.max_events as usize,
                max_wait_ms: milliseconds(wait),
            })
        });
        let timeout = wire.timeout.map(|timeout| duration(timeout, "settings.timeout")).transpose()?;
        let settings = Settings {
            description: wire.description,
            headers: wire.headers.into_iter().collect(),
            ordering: match proto::Ordering::try_from(wire.ordering) {
                Ok(proto::Ordering::Unspecified | proto::Ordering::None) => Ordering::None,
                Ok(proto::Ordering::PerSim) => Ordering::PerSim,
                Ok(proto::Ordering::Strict) => Ordering::Strict,
                Err(_) => {
                    let message = format!("ordering {} is not known", wire.ordering);
                    return Err(invalid("settings.ordering", message));
                }
            },
            max_in_flight: if wire.max_in_flight == 0 { defaults.max_in_flight } else { wire.max_in_flight },
            rate_limit_per_second: (wire.rate_limit_per_second > 0).then_some(wire.rate_limit_per_second),
            batch: batch.transpose()?,
            timeout_ms: timeout.map_or(defaults.timeout_ms, milliseconds),
            retry_schedule: match wire.retry_schedule.is_empty() {
                true => defaults.retry_schedule,
                false => wire.retry_schedule,
            },
            url: defaults.url,
            filter: defaults.filter,
        };
        Ok((settings, warnings))
    }
}

fn invalid(field: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidParameter, message.into()).field(field)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn duration(wire: prost_types::Duration, field: &'static str) -> Result<Duration, ApiError> {
    Duration::try_from(wire).map_err(|_| invalid(field, format!("{field} is no duration: {wire}")))
}

fn time(wire: Option<prost_types::Timestamp>, field: &'static str) -> Result<Option<Timestamp>, ApiError> {
    wire.map(|time| request::timestamp(&time, field)).transpose()
}

/// A filter, without the flag `backfill` where nothing is said of flags.
fn filter(wire: Option<proto::Filter>, values_per_list: usize) -> Result<(Filter, Vec<String>), ApiError> {
    let mut wire = wire.unwrap_or_default();
    if wire.exclude_flags.is_empty() {
        wire.exclude_flags.push("backfill".to_owned());
    }
    request::filter(wire, values_per_list)
}

fn start(wire: Option<proto::WebhookStart>) -> Result<Option<Start>, ApiError> {
    let Some(start) = wire.and_then(|wire| wire.start) else { return Ok(None) };
    Ok(Some(match start {
        WireStart::After(text) => Start::After(request::cursor(&text, "start.after")?),
        WireStart::Since(time) => Start::Since(request::timestamp(&time, "start.since")?),
        WireStart::FromEarliest(true) => Start::Earliest,
        WireStart::FromEarliest(false) => Start::Now,
        WireStart::Last(n) if (1..=LAST_MAX).contains(&n) => Start::Last(n),
        WireStart::Last(n) => {
            let message = format!("last is a number from 1 to {LAST_MAX}, not {n}");
            return Err(ApiError::new(Code::InvalidStart, message).field("start.last"));
        }
    }))
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn wire_filter(filter: &Filter) -> proto::Filter {
    let json = filter.to_json();
    let list = |name: &str| -> Vec<String> {
        let items = json.get(name).and_then(serde_json::Value::as_array);
        items.into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    proto::Filter {
        iccid: list("iccid"),
        device_id: list("device_id"),
        event_type: list("event_type"),
        iccid_prefix: list("iccid_prefix"),
        country: list("country"),
        operator: list("operator"),
        network_type: list("network_type"),
        exclude_flags: list("exclude_flags"),
    }
}

fn wire_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

fn webhook(shown: &Shown) -> proto::Webhook {
    let endpoint = &shown.endpoint;
    let ordering = match endpoint.ordering {
        Ordering::None => proto::Ordering::None,
        Ordering::PerSim => proto::Ordering::PerSim,
        Ordering::Strict => proto::Ordering::Strict,
    };
    proto::Webhook {
        id: endpoint.id.clone(),
        settings: Some(proto::WebhookSettings {
            url: endpoint.url.clone(),
            filter: Some(wire_filter(&endpoint.filter)),
            description: endpoint.description.clone(),
            headers: endpoint.shown_headers().collect(),
            ordering: ordering.into(),
            max_in_flight: endpoint.max_in_flight,
            rate_limit_per_second: endpoint.rate_limit_per_second.unwrap_or(0),
            batch: endpoint.batch.map(|batch| proto::WebhookBatch {
                max_events: batch.max_events as u32,
                max_wait: Some(wire_duration(Duration::from_millis(batch.max_wait_ms))),
            }),
            timeout: Some(wire_duration(Duration::from_millis(endpoint.timeout_ms))),
            retry_schedule: endpoint.retry_schedule.clone(),
        }),
        status: shown.condition.as_str().to_owned(),
        reason: shown.reason.clone().unwrap_or_default(),
        cursor: shown.cursor.clone(),
        pending: shown.pending,
        secrets: endpoint.private.secrets.len() as u32,
        created_at: Some(protobuf::timestamp(endpoint.created_at)),
        updated_at: Some(protobuf::timestamp(endpoint.updated_at)),
        created_by: endpoint.created_by.clone(),
    }
}

fn wire_attempt(attempt: &Attempt) -> proto::WebhookAttempt {
    let outcome = match attempt.outcome {
        Outcome::Delivered => "delivered",
        Outcome::Failed => "failed",
        Outcome::DeadLettered => "dead_lettered",
        Outcome::Skipped => "skipped",
    };
    let kind = attempt.error_kind.as_ref();
    proto::WebhookAttempt {
        at: Some(protobuf::timestamp(attempt.at)),
        attempt: attempt.attempt,
        outcome: outcome.to_owned(),
        status: attempt.status.map_or(0, u32::from),
        error: kind.map_or_else(String::new, |kind| {
            format!("{kind}: {}", attempt.error.as_deref().unwrap_or_default())
        }),
        duration: Some(wire_duration(Duration::from_micros(attempt.total_us))),
        remote: attempt.remote.clone().unwrap_or_default(),
        answer: attempt.answer.clone().unwrap_or_default(),
        events: attempt.members,
        replay_id: attempt.replay.clone().unwrap_or_default(),
        next_attempt_at: attempt.next_attempt_at.map(protobuf::timestamp),
    }
}

fn wire_delivery(delivery: &service::Delivery) -> proto::Delivery {
    proto::Delivery {
        id: delivery.id.clone(),
        event_id: delivery.event_id.clone().unwrap_or_default(),
        status: delivery.status.as_str().to_owned(),
        attempts: delivery.attempts,
        last_attempt_at: delivery.last_attempt_at.map(protobuf::timestamp),
        next_attempt_at: delivery.next_attempt_at.map(protobuf::timestamp),
        last_error: delivery.last_error.clone().unwrap_or_default(),
    }
}

fn wire_replay(replay: &store::Replay) -> proto::Replay {
    let state = match replay.state {
        ReplayState::Running => "running",
        ReplayState::Done => "done",
        ReplayState::Cancelled => "cancelled",
    };
    proto::Replay {
        id: replay.id.clone(),
        state: state.to_owned(),
        count: replay.count,
        delivered: replay.progress.delivered,
        dead_lettered: replay.progress.dead_lettered,
        skipped: replay.progress.skipped,
        created_at: Some(protobuf::timestamp(replay.created_at)),
        ended_at: replay.ended_at.map(protobuf::timestamp),
        lost: replay.progress.lost,
    }
}

#[tonic::async_trait]
impl WebhookService for Service {
    async fn create_webhook(
        &self,
        request: Request<proto::CreateWebhookRequest>,
    ) -> Answer<proto::CreateWebhookResponse> {
        let webhooks = &self.context.webhooks;
        self.answer(request, async |principal, message| {
            let (settings, warnings) = self.settings(message.settings)?;
            let start = start(message.start)?.unwrap_or(Start::Now);
            let (made, secret) = webhooks.create(principal, settings, start, given(message.secret)).await?;
            Ok(proto::CreateWebhookResponse { webhook: Some(webhook(&made)), secret, warnings })
        })
        .await
    }

    async fn list_webhooks(
        &self,
        request: Request<proto::ListWebhooksRequest>,
    ) -> Answer<proto::ListWebhooksResponse> {
        self.answer(request, async |principal, _| {
            let webhooks = self.context.webhooks.list(principal).await?;
            Ok(proto::ListWebhooksResponse { webhooks: webhooks.iter().map(webhook).collect() })
        })
        .await
    }

    async fn get_webhook(
        &self,
        request: Request<proto::GetWebhookRequest>,
    ) -> Answer<proto::GetWebhookResponse> {
        self.answer(request, async |principal, message| {
            let found = self.context.webhooks.get(principal, &message.id).await?;
            Ok(proto::GetWebhookResponse { webhook: Some(webhook(&found)) })
        })
        .await
    }

    async fn update_webhook(
        &self,
        request: Request<proto::UpdateWebhookRequest>,
    ) -> Answer<proto::UpdateWebhookResponse> {
        self.answer(request, async |principal, message| {
            let (settings, warnings) = self.settings(message.settings)?;
            let changed =
                self.context.webhooks.update(principal, &message.id, |_| Ok(settings.clone())).await?;
            Ok(proto::UpdateWebhookResponse { webhook: Some(webhook(&changed)), warnings })
        })
        .await
    }

    async fn delete_webhook(
        &self,
        request: Request<proto::DeleteWebhookRequest>,
    ) -> Answer<proto::DeleteWebhookResponse> {
        self.answer(request, async |principal, message| {
            self.context.webhooks.delete(principal, &message.id).await?;
            Ok(proto::DeleteWebhookResponse {})
        })
        .await
    }

    async fn pause_webhook(
        &self,
        request: Request<proto::PauseWebhookRequest>,
    ) -> Answer<proto::PauseWebhookResponse> {
        self.answer(request, async |principal, message| {
            let changed = self.context.webhooks.pause(principal, &message.id).await?;
            Ok(proto::PauseWebhookResponse { webhook: Some(webhook(&changed)) })
        })
        .await
    }

    async fn resume_webhook(
        &self,
        request: Request<proto::ResumeWebhookRequest>,
    ) -> Answer<proto::ResumeWebhookResponse> {
        let webhooks = &self.context.webhooks;
        self.answer(request, async |principal, message| {
            if let Some(start) = start(message.start)? {
                webhooks.seek(principal, &message.id, start).await?;
            }
            let changed = webhooks.resume(principal, &message.id).await?;
            Ok(proto::ResumeWebhookResponse { webhook: Some(webhook(&changed)) })
        })
        .await
    }

    async fn seek_webhook(
        &self,
        request: Request<proto::SeekWebhookRequest>,
    ) -> Answer<proto::SeekWebhookResponse> {
        self.answer(request, async |principal, message| {
            let start = start(message.start)?.unwrap_or(Start::Now);
            let changed = self.context.webhooks.seek(principal, &message.id, start).await?;
            Ok(proto::SeekWebhookResponse { webhook: Some(webhook(&changed)) })
        })
        .await
    }

    async fn test_webhook(
        &self,
        request: Request<proto::TestWebhookRequest>,
    ) -> Answer<proto::TestWebhookResponse> {
        self.answer(request, async |principal, message| {
            let result = self.context.webhooks.test(principal, &message.id).await?;
            let attempt = Some(wire_attempt(&result.attempt));
            Ok(proto::TestWebhookResponse { event_id: result.id, delivered: result.delivered, attempt })
        })
        .await
    }

    async fn rotate_webhook_secret(
        &self,
        request: Request<proto::RotateWebhookSecretRequest>,
    ) -> Answer<proto::RotateWebhookSecretResponse> {
        let webhooks = &self.context.webhooks;
        self.answer(request, async |principal, message| {
            let overlap = match message.overlap {
                Some(overlap) => duration(overlap, "overlap")?,
                None => OVERLAP,
            };
            let (changed, secret) =
                webhooks.rotate_secret(principal, &message.id, overlap, given(message.secret)).await?;
            Ok(proto::RotateWebhookSecretResponse { webhook: Some(webhook(&changed)), secret })
        })
        .await
    }

    async fn get_webhook_stats(
        &self,
        request: Request<proto::GetWebhookStatsRequest>,
    ) -> Answer<proto::GetWebhookStatsResponse> {
        self.answer(request, async |principal, message| {
            let stats = self.context.webhooks.stats(principal, &message.id).await?;
            let totals = stats.totals;
            let milliseconds = |us: Option<u64>| us.map(|us| us as f64 / 1e3);
            Ok(proto::GetWebhookStatsResponse {
                status: stats.condition.as_str().to_owned(),
                failing_since: stats.failing_since.map(protobuf::timestamp),
                lag_events: stats.behind + stats.pending,
                lag_seconds: stats.lag_seconds,
                pending: stats.pending,
                failed: stats.waiting,
                delivered: totals.delivered,
                dead_lettered: totals.dead_lettered,
                skipped: totals.skipped,
                attempts: totals.attempts.into_iter().collect(),
                latency_p50_ms: milliseconds(totals.latency.quantile(0.5)),
                latency_p99_ms: milliseconds(totals.latency.quantile(0.99)),
                last_delivered_at: totals.last_delivered_at.map(protobuf::timestamp),
                last_failure: totals
                    .last_failure
                    .map_or_else(String::new, |(at, how)| format!("{at}: {how}")),
                owner: stats.owner,
            })
        })
        .await
    }

    async fn replay_webhook(
        &self,
        request: Request<proto::ReplayWebhookRequest>,
    ) -> Answer<proto::ReplayWebhookResponse> {
        self.answer(request, async |principal, message| {
            let values = self.context.limits.filter_values_body;
            let wanted = ReplayRequest {
                since: time(message.since, "since")?,
                until: time(message.until, "until")?,
                filter: request::filter(message.filter.unwrap_or_default(), values)?.0,
                only: if message.only_failed { Only::Failed } else { Only::All },
                rate_limit_per_second: (message.rate_limit_per_second > 0)
                    .then_some(message.rate_limit_per_second),
                dry_run: message.dry_run,
            };
            let replay = self.context.webhooks.replay(principal, &message.id, wanted).await?;
            Ok(proto::ReplayWebhookResponse { replay_id: replay.id, count: replay.count })
        })
        .await
    }

    async fn list_replays(
        &self,
        request: Request<proto::ListReplaysRequest>,
    ) -> Answer<proto::ListReplaysResponse> {
        self.answer(request, async |principal, message| {
            let replays = self.context.webhooks.replays(principal, &message.id).await?;
            Ok(proto::ListReplaysResponse { replays: replays.iter().map(wire_replay).collect() })
        })
        .await
    }

    async fn get_replay(
        &self,
        request: Request<proto::GetReplayRequest>,
    ) -> Answer<proto::GetReplayResponse> {
        self.answer(request, async |principal, message| {
            let replay = self.context.webhooks.get_replay(principal, &message.id, &message.replay_id).await?;
            Ok(proto::GetReplayResponse { replay: Some(wire_replay(&replay)) })
        })
        .await
    }

    async fn cancel_replay(
        &self,
        request: Request<proto::CancelReplayRequest>,
    ) -> Answer<proto::CancelReplayResponse> {
        self.answer(request, async |principal, message| {
            self.context.webhooks.cancel_replay(principal, &message.id, &message.replay_id).await?;
            Ok(proto::CancelReplayResponse {})
        })
        .await
    }

    async fn list_deliveries(
        &self,
        request: Request<proto::ListDeliveriesRequest>,
    ) -> Answer<proto::ListDeliveriesResponse> {
        self.answer(request, async |principal, message| {
            let wanted = given(message.status).map(|text| {
                DeliveryStatus::parse(&text)
                    .ok_or_else(|| invalid("status", format!("status {text:?} is not known")))
            });
            let limit = match message.page_size {
                0 => PAGE_SIZE_DEFAULT,
                n @ 1..=PAGE_SIZE_MAX => n,
                n => return Err(invalid("page_size", format!("page_size is 1 to {PAGE_SIZE_MAX}, not {n}"))),
            };
            let after = given(message.page_token);
            let (wanted, limit) = (wanted.transpose()?, limit as usize);
            let page = self
                .context
                .webhooks
                .deliveries(principal, &message.id, wanted, after.as_deref(), limit)
                .await?;
            Ok(proto::ListDeliveriesResponse {
                deliveries: page.deliveries.iter().map(wire_delivery).collect(),
                next_page_token: page.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn get_delivery(
        &self,
        request: Request<proto::GetDeliveryRequest>,
    ) -> Answer<proto::GetDeliveryResponse> {
        self.answer(request, async |principal, message| {
            let (delivery, attempts) =
                self.context.webhooks.delivery(principal, &message.id, &message.delivery_id).await?;
            Ok(proto::GetDeliveryResponse {
                delivery: Some(wire_delivery(&delivery)),
                attempts: attempts.iter().map(wire_attempt).collect(),
            })
        })
        .await
    }

    async fn retry_delivery(
        &self,
        request: Request<proto::RetryDeliveryRequest>,
    ) -> Answer<proto::RetryDeliveryResponse> {
        self.answer(request, async |principal, message| {
            let replay = self.context.webhooks.retry(principal, &message.id, &message.delivery_id).await?;
            Ok(proto::RetryDeliveryResponse { replay_id: replay.id })
        })
        .await
    }

    async fn erase_attempts(
        &self,
        request: Request<proto::EraseAttemptsRequest>,
    ) -> Answer<proto::EraseAttemptsResponse> {
        self.answer(request, async |principal, message| {
            let attempts_removed = self.context.webhooks.erase(principal, &message.iccid).await?;
            Ok(proto::EraseAttemptsResponse { attempts_removed })
        })
        .await
    }
}
