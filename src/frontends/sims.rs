//! What is known of SIMs, within what a reader may see: the core of `/v1/sims` and of gRPC's `SimService`.
//!
//! A SIM is shown to a reader if an event that said what its entry says would pass the reader's filter and its token's.
//! An entry is made of events of all types, so a token that is limited to some types sees none.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    auth::Principal,
    event::{Filter, Iccid, policy::FieldRule},
    frontends::{ApiError, Code, Context},
    ingest::sims::record::{self, DeviceRecord, SimRecord},
    views::registry::{Found, Place, Presence, Query, Sim, Sort},
};

/// SIMs of one page unless it is said otherwise, and the most.
pub const LIMIT_DEFAULT: u32 = 100;
/// See [`LIMIT_DEFAULT`].
pub const LIMIT_MAX: u32 = 1_000;

/// The lists of a filter that an entry has something for.
pub const FIELDS: [&str; 6] = ["iccid", "device_id", "iccid_prefix", "country", "operator", "network_type"];

/// A request for a page, as read from a wire.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Only lists of [`FIELDS`].
    pub filter: Filter,
    /// None: all.
    pub presence: Option<Presence>,
    /// Seen at or after.
    pub seen_since: Option<jiff::Timestamp>,
    /// Seen before.
    pub seen_before: Option<jiff::Timestamp>,
    /// Order.
    pub sort: Sort,
    /// A page token with the name of its field.
    pub token: Option<(String, &'static str)>,
    /// Most SIMs.
    pub limit: u32,
}

/// A page, as the reader may see it.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order asked for.
    pub sims: Vec<Sim>,
    /// Token of the next page; None where this is the last.
    pub next: Option<String>,
    /// SIMs that match, on all pages.
    pub total: u64,
    /// Cursor up to which the log is in it.
    pub as_of: String,
    /// `observed_at` of the newest event that is in it.
    pub as_of_time: Option<jiff::Timestamp>,
}

/// A page of SIMs.
///
/// # Errors
/// [`Code::Forbidden`], [`Code::ForbiddenField`], or [`Code::InvalidParameter`] for a page token of elsewhere.
pub async fn list(context: &Context, principal: &Arc<Principal>, request: Request) -> Result<Page, ApiError> {
    may_see(principal)?;
    let hidden = hides_iccid(principal);
    let query = Query {
        predicate: principal.predicate(request.filter)?,
        presence: request.presence,
        seen_since: request.seen_since,
        seen_before: request.seen_before,
        sort: request.sort,
        after: place(context, request.token, request.sort, hidden)?,
        limit: request.limit as usize,
    };
    let (context, principal) = (context.clone(), Arc::clone(principal));
    blocking(move || {
        let listing = context.sims.list(&query);
        let shown = |sim: Sim| sim.under(principal.policy.as_deref());
        Page {
            sims: listing.sims.into_iter().map(shown).collect(),
            next: listing.next.and_then(|place| context.sim_tokens.write(&place, hidden)),
            total: listing.total,
            as_of: listing.as_of.to_string(),
            as_of_time: listing.as_of_time,
        }
    })
    .await
}

/// One SIM.
///
/// # Errors
/// [`Code::InvalidParameter`], [`Code::Forbidden`], [`Code::ForbiddenField`], or [`Code::NotFound`], also where the token
/// may not see it.
pub async fn find(context: &Context, principal: &Arc<Principal>, iccid: &str) -> Result<Found, ApiError> {
    may_see(principal)?;
    let iccid = Iccid::parse(iccid)
        .map_err(|error| ApiError::new(Code::InvalidParameter, error.to_string()).field("iccid"))?;
    // To ask by a number is to filter on it.
    let lists = [("iccid", vec![iccid.as_str().to_owned()])];
    let predicate = principal.predicate(Filter::build(lists, Default::default())?.0)?;
    let sims = context.sims.clone();
    let found = blocking(move || sims.find(&iccid, &predicate)).await?;
    let mut found = found.ok_or_else(|| {
        ApiError::not_found("no such SIM is known, or the token may not see it").field("iccid")
    })?;
    found.sim = found.sim.under(principal.policy.as_deref());
    Ok(found)
}

/// How old what is known of a SIM's sessions is, and how old it may become; its device, as it was last looked up. As
/// the gateway that polls has noted it.
///
/// # Errors
/// [`Code::Unavailable`].
pub async fn looked_up(context: &Context, iccid: &str, sim: &Sim) -> Result<Value, ApiError> {
    let key = format!("{}{iccid}", record::SIM);
    let read = record::load::<SimRecord>(&context.bus, &key);
    let device = async {
        match &sim.device_id {
            Some(id) => record::load::<DeviceRecord>(&context.bus, &format!("{}{id}", record::DEVICE)).await,
            None => Ok(None),
        }
    };
    let (read, device) = tokio::try_join!(read, device)
        .map_err(|error| ApiError::new(Code::Unavailable, format!("the store can't be read: {error}")))?;
    let read_at = read.and_then(|record| record.read_at);
    let age = |at: Timestamp| context.clock.now().duration_since(at).as_secs().max(0);
    let status = context.status.borrow().clone();
    let shown = status.elsewhere.as_ref().map_or(&status.sims, |elsewhere| &elsewhere["sims"]);
    let bound = if sim.open_session.is_some() { "open" } else { "others" };
    // Of a device that is with another SIM by now, nothing is this SIM's.
    let device = device.filter(|record| record.iccid.as_ref().is_some_and(|one| one.as_str() == iccid));
    Ok(json!({
        "sessions": {
            "as_of": read_at,
            "age_seconds": read_at.map(age),
            "stale_after_seconds": shown["stale_seconds"][bound],
        },
        "device": device.map(|DeviceRecord { as_of, answer, .. }| json!({
            "device_name": answer["device_name"],
            "status": answer["sim"]["status"],
            "linked_at": answer["sim"]["linked_at"],
            "data_usage_mb": answer["sim"]["data_usage_mb"],
            "as_of": as_of,
            "age_seconds": age(as_of),
        })),
    }))
}

fn may_see(principal: &Principal) -> Result<(), ApiError> {
    if !principal.scope.as_ref().is_some_and(Filter::names_types) {
        return Ok(());
    }
    let message =
        "the token is limited to some event types, and what is known of a SIM comes from all of them";
    Err(ApiError::new(Code::Forbidden, message).hint("use a token whose filter has no event_type"))
}

fn hides_iccid(principal: &Principal) -> bool {
    principal.policy.as_ref().is_some_and(|policy| policy.iccid != FieldRule::Keep)
}

fn place(
    context: &Context,
    token: Option<(String, &'static str)>,
    sort: Sort,
    hidden: bool,
) -> Result<Option<Place>, ApiError> {
    let Some((token, field)) = token else { return Ok(None) };
    let wrong = |message: &'static str| {
        ApiError::new(Code::InvalidParameter, message)
            .field(field)
            .hint("pass the token of the page before unchanged, or none to begin again")
    };
    let place = context.sim_tokens.read(&token, hidden).ok_or_else(|| wrong("this is no page token"))?;
    if place.sort() == sort { Ok(Some(place)) } else { Err(wrong("the page token is of another order")) }
}

/// The registry may look at a million SIMs, and at the disk for a cursor.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a request handler failed");
        ApiError::new(Code::Internal, "the gateway failed to answer")
    })
}
