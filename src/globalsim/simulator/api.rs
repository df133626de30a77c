//! The six documented endpoints.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode, Uri};
use serde_json::json;
use tokio::time::sleep;

use super::Shared;
use super::body::Served;
use super::faults::{Lists, Total};
use super::gate;
use super::index::{Filter, Page};
use super::query::{Params, Refusal, detail};
use super::row::{AccountView, Row};
use super::world::World;

type Answer = Result<Response, Refusal>;

/// The API, behind its gate.
pub(super) fn router(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/sims/activity", get(account_activity))
        .route("/sims/{iccid}/activity", get(sim_activity))
        .route("/sims/{iccid}/sessions", get(sim_sessions))
        .route("/devices/{device_id}/sim", get(device_sim))
        .route("/devices/{device_id}/sim/activity", get(device_activity))
        .route("/devices/{device_id}/sim/sessions", get(device_sessions))
        .fallback(async || detail(StatusCode::NOT_FOUND, &json!("Not Found")))
        .layer(axum::middleware::from_fn_with_state(shared.clone(), gate::gate))
        .with_state(shared.clone())
}

async fn account_activity(State(shared): State<Arc<Shared>>, uri: Uri) -> Answer {
    let (page, views, params, lists) = {
        let mut world = shared.world.lock();
        let now = shared.clock.now();
        let lists = world.faults().lists.clone();
        let params = Params::parse(&uri, &lists)?;
        world.between_pages(now);
        let window = world.window(&params);
        let page = account_page(&mut world, &params, window, &lists);
        let views: Vec<AccountView> = page.rows.iter().map(|row| view(&world, &lists, row)).collect();
        (page, views, params, lists)
    };
    let slow_ms = lists.offset_slow_ms.saturating_mul(params.offset as u64) / 1_000;
    if slow_ms > 0 {
        sleep(Duration::from_millis(slow_ms)).await;
    }
    let mut json = Vec::with_capacity(64 + page.rows.len() * 320);
    open_list(&mut json, None, &lists);
    for (at, (row, view)) in page.rows.iter().zip(&views).enumerate() {
        separate(&mut json, at);
        row.write_account(view, &mut json)?;
    }
    close_list(&mut json, page.total, Some(&params), &lists);
    Ok(list(json, page))
}

fn account_page(world: &mut World, params: &Params, window: (usize, usize), lists: &Lists) -> Page {
    let linked;
    let mut filter = Filter {
        iccid: params.iccid.as_deref(),
        device_id: params.device_id.as_deref(),
        event_type: params.event_type.as_deref(),
        from_s: params.days.from_s,
        until_s: params.days.until_s,
    };
    if let Some(device) = filter.device_id.take_if(|_| lists.joined_at_read) {
        let fleet = world.fleet();
        linked = fleet.by_device(device).map(|at| fleet.get(at).iccid.clone());
        match linked.as_deref() {
            Some(iccid) if filter.iccid.is_none_or(|asked| asked == iccid) => filter.iccid = Some(iccid),
            _ => return Page::default(),
        }
    }
    world.account_page(&filter, window)
}

fn view(world: &World, lists: &Lists, row: &Row) -> AccountView {
    let sim = world.fleet().get(row.draft.sim);
    let identity_now = lists.joined_at_read.then(|| (sim.msisdn.clone(), sim.device_id()));
    AccountView { details: lists.account_details, identity_now }
}

async fn sim_activity(State(shared): State<Arc<Shared>>, Path(iccid): Path<String>, uri: Uri) -> Answer {
    activity_of(&shared, &uri, |world| world.fleet().by_iccid(&iccid).ok_or(Refusal::NotFound("SIM")))
}

async fn device_activity(State(shared): State<Arc<Shared>>, Path(device): Path<String>, uri: Uri) -> Answer {
    activity_of(&shared, &uri, |world| world.fleet().by_device(&device).ok_or(Refusal::NotFound("Device")))
}

/// Documented are `limit`, `offset` and `event_type`; dates and the rest are not, and are not heeded.
fn activity_of(shared: &Shared, uri: &Uri, find: impl FnOnce(&World) -> Result<usize, Refusal>) -> Answer {
    let (page, said, lists) = {
        let mut world = shared.world.lock();
        let lists = world.faults().lists.clone();
        let at = find(&world)?;
        let params = Params::parse(uri, &lists)?;
        let iccid = world.fleet().get(at).iccid.clone();
        let window = world.window(&params);
        let event_type = params.event_type.as_deref();
        let filter = Filter { iccid: Some(&iccid), event_type, ..Filter::default() };
        let page = world.sim_page(&filter, window);
        let said = match world.strikes(lists.envelope_wrong) {
            _ if lists.envelope_absent => None,
            true => Some(world.fleet().get((at + 1) % world.fleet().len()).iccid.clone()),
            false => Some(iccid),
        };
        (page, said, lists)
    };
    let mut json = Vec::with_capacity(64 + page.rows.len() * 320);
    open_list(&mut json, said.as_deref(), &lists);
    for (at, row) in page.rows.iter().enumerate() {
        separate(&mut json, at);
        row.write_sim(&mut json)?;
    }
    close_list(&mut json, page.total, None, &lists);
    Ok(list(json, page))
}

async fn sim_sessions(State(shared): State<Arc<Shared>>, Path(iccid): Path<String>, uri: Uri) -> Answer {
    sessions_of(&shared, &uri, |world| world.fleet().by_iccid(&iccid).ok_or(Refusal::NotFound("SIM")))
}

async fn device_sessions(State(shared): State<Arc<Shared>>, Path(device): Path<String>, uri: Uri) -> Answer {
    sessions_of(&shared, &uri, |world| world.fleet().by_device(&device).ok_or(Refusal::NotFound("Device")))
}

fn sessions_of(shared: &Shared, uri: &Uri, find: impl FnOnce(&World) -> Result<usize, Refusal>) -> Answer {
    let now_s = shared.clock.now().as_second();
    let world = shared.world.lock();
    let lists = &world.faults().lists;
    let sim = world.fleet().get(find(&world)?);
    let params = Params::parse(uri, lists)?;
    let window = params.window(lists);
    let shape = sim.sessions.page(&sim.iccid, now_s, params.days, window, lists.open_end_absent);
    Ok(axum::Json(shape).into_response())
}

async fn device_sim(State(shared): State<Arc<Shared>>, Path(device): Path<String>) -> Answer {
    let world = shared.world.lock();
    let at = world.fleet().by_device(&device).ok_or(Refusal::NotFound("Device"))?;
    let shape = world.fleet().get(at).device_shape().ok_or(Refusal::NotFound("Device"))?;
    Ok(axum::Json(shape).into_response())
}

// === list writing

fn open_list(json: &mut Vec<u8>, iccid: Option<&str>, lists: &Lists) {
    let opening = match (lists.bare_array, iccid) {
        (true, _) => "[".to_owned(),
        (false, Some(iccid)) => format!("{{\"iccid\":{},\"activity\":[", json!(iccid)),
        (false, None) => "{\"activity\":[".to_owned(),
    };
    json.extend_from_slice(opening.as_bytes());
}

fn separate(json: &mut Vec<u8>, at: usize) {
    if at > 0 {
        json.push(b',');
    }
}

/// `echo`: the account-wide list repeats limit and offset.
fn close_list(json: &mut Vec<u8>, total: usize, echo: Option<&Params>, lists: &Lists) {
    json.push(b']');
    if lists.bare_array {
        return;
    }
    let reported = match lists.total {
        Total::Exact => Some(total),
        Total::Capped(cap) => Some(total.min(cap)),
        Total::OffBy(by) => Some(total.saturating_add_signed(by as isize)),
        Total::Absent => None,
    };
    if let Some(total) = reported {
        json.extend_from_slice(format!(",\"total\":{total}").as_bytes());
    }
    if let Some(params) = echo {
        let echo = format!(",\"limit\":{},\"offset\":{}", params.limit, params.offset);
        json.extend_from_slice(echo.as_bytes());
    }
    json.push(b'}');
}

fn list(json: Vec<u8>, page: Page) -> Response {
    let mut response = json.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.extensions_mut().insert(Served(Arc::new(page.rows)));
    response
}
