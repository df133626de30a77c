//! `simcast.v1.SimService`: REST's `/v1/sims` in protobuf, over the same core.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{call::until, request, status::status};
use crate::{
    auth::{Principal, Role},
    event::protobuf::timestamp,
    frontends::{
        ApiError, Code, Context,
        sims::{self, LIMIT_DEFAULT, LIMIT_MAX},
    },
    proto::{
        self,
        sim_service_server::{SimService, SimServiceServer},
    },
    views::registry::{self, Sim, Sort},
};

/// As health checks know it.
pub(super) const NAME: &str = <SimServiceServer<Service> as tonic::server::NamedService>::NAME;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Service {
    context: Context,
}

/// The service.
pub(super) fn service(context: &Context) -> SimServiceServer<Service> {
    let limit = context.limits.message_bytes;
    SimServiceServer::new(Service { context: context.clone() }).max_decoding_message_size(limit)
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Answers a call of someone who may make it, within its deadline.
    async fn answer<T, R>(
        &self,
        request: Request<T>,
        answer: impl AsyncFnOnce(&Arc<Principal>, T) -> Result<R, ApiError>,
    ) -> Answer<R> {
        let (metadata, _, message) = request.into_parts();
        let headers = metadata.into_headers();
        self.context.accepting().map_err(|error| status(&error))?;
        let principal = self.context.authenticate(&headers).map_err(|error| status(&error))?;
        principal.require(Role::Read).map_err(|error| status(&error.into()))?;
        let deadline = request::timeout(&headers).map(|timeout| tokio::time::Instant::now() + timeout);
        let answered = async { answer(&principal, message).await.map_err(|error| status(&error)) };
        until(deadline, answered).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl SimService for Service {
    async fn list_sims(&self, request: Request<proto::ListSimsRequest>) -> Answer<proto::ListSimsResponse> {
        let context = &self.context;
        self.answer(request, async |principal, message| {
            let (request, warnings) = wanted(message, context)?;
            let page = sims::list(context, principal, request).await?;
            Ok(proto::ListSimsResponse {
                sims: page.sims.into_iter().map(sim).collect(),
                next_page_token: page.next.unwrap_or_default(),
                total: page.total,
                as_of: page.as_of,
                as_of_time: page.as_of_time.map(timestamp),
                warnings,
            })
        })
        .await
    }

    async fn get_sim(&self, request: Request<proto::GetSimRequest>) -> Answer<proto::GetSimResponse> {
        let context = &self.context;
        self.answer(request, async |principal, message| {
            let found = sims::find(context, principal, &message.iccid).await?;
            Ok(proto::GetSimResponse {
                sim: Some(sim(found.sim)),
                as_of: found.as_of.to_string(),
                as_of_time: found.as_of_time.map(timestamp),
            })
        })
        .await
    }
}

fn wanted(
    message: proto::ListSimsRequest,
    context: &Context,
) -> Result<(sims::Request, Vec<String>), ApiError> {
    let invalid =
        |field: &'static str, what: String| ApiError::new(Code::InvalidParameter, what).field(field);
    let wire = message.filter.unwrap_or_default();
    for (field, list) in
        [("filter.event_type", &wire.event_type), ("filter.exclude_flags", &wire.exclude_flags)]
    {
        if !list.is_empty() {
            return Err(invalid(field, format!("{field} says nothing of a SIM: leave it empty")));
        }
    }
    let (filter, warnings) = request::filter(wire, context.limits.filter_values)?;
    let presence = match proto::Presence::try_from(message.presence) {
        Ok(proto::Presence::Unspecified) => None,
        Ok(proto::Presence::Online) => Some(registry::Presence::Online),
        Ok(proto::Presence::Offline) => Some(registry::Presence::Offline),
        Ok(proto::Presence::Unknown) => Some(registry::Presence::Unknown),
        Err(_) => return Err(invalid("presence", format!("presence {} is not known", message.presence))),
    };
    let sort = match proto::SimOrder::try_from(message.order) {
        Ok(proto::SimOrder::Unspecified | proto::SimOrder::Iccid) => Sort::Iccid,
        Ok(proto::SimOrder::LastSeen) => Sort::LastSeen,
        Err(_) => return Err(invalid("order", format!("order {} is not known", message.order))),
    };
    let limit = match u32::try_from(message.page_size) {
        Ok(0) => LIMIT_DEFAULT,
        Ok(n) if n <= LIMIT_MAX => n,
        _ => {
            let what = format!("page_size is a number from 1 to {LIMIT_MAX}, not {}", message.page_size);
            return Err(invalid("page_size", what));
        }
    };
    let time = |time: Option<prost_types::Timestamp>, field| {
        time.map(|time| request::timestamp(&time, field)).transpose()
    };
    let request = sims::Request {
        filter,
        presence,
        seen_since: time(message.seen_since, "seen_since")?,
        seen_before: time(message.seen_before, "seen_before")?,
        sort,
        token: (!message.page_token.is_empty()).then_some((message.page_token, "page_token")),
        limit,
    };
    Ok((request, warnings))
}

fn sim(sim: Sim) -> proto::Sim {
    let presence = match sim.online {
        Some(true) => proto::Presence::Online,
        Some(false) => proto::Presence::Offline,
        None => proto::Presence::Unknown,
    };
    let reported_at = sim.usage.reported.as_ref().map(|reported| timestamp(reported.time));
    proto::Sim {
        iccid: sim.iccid.unwrap_or_default(),
        msisdn: sim.msisdn,
        device_id: sim.device_id,
        derived: sim.derived.into_iter().map(str::to_owned).collect(),
        presence: presence.into(),
        network: sim.network.as_ref().map(Into::into),
        first_seen: sim.first_seen.map(timestamp),
        last_seen: sim.last_seen.map(timestamp),
        last_event: sim.last_event.map(|last| proto::SimEvent {
            id: last.id,
            event_type: last.event_type,
            time: Some(timestamp(last.time)),
            cursor: last.cursor,
        }),
        open_session: sim.open_session.map(|session| proto::OpenSession {
            session_id: session.session_id,
            started_at: Some(timestamp(session.started_at)),
            updated_at: Some(timestamp(session.updated_at)),
            upload_mb: session.upload_mb.map(|amount| amount.to_string()),
            download_mb: session.download_mb.map(|amount| amount.to_string()),
            total_mb: session.total_mb.map(|amount| amount.to_string()),
        }),
        usage: Some(proto::MonthUsage {
            month: sim.usage.month,
            reported: sim.usage.reported.map(|reported| proto::Usage {
                current_usage_mb: Some(reported.current_usage_mb.to_string()),
                period: reported.period,
            }),
            reported_at,
            sessions_mb: sim.usage.sessions_mb.to_string(),
            sessions: sim.usage.sessions,
        }),
        events: sim.events,
        source: sim.source.as_str().to_owned(),
    }
}
