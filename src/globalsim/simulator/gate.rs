//! What each API request passes before a handler sees it: counting, outage, key, limit, and the faults that
//! strike by chance.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, DATE, InvalidHeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::SignedDuration;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::body::{self, Ending};
use super::cache;
use super::faults::{OutageMode, RetryAfter};
use super::query::detail;
use super::server::Peer;
use super::world::World;
use super::{API_PATH, AuthStyle, Shared};

const SERVER_ERRORS: [u16; 4] = [500, 502, 503, 504];

/// What happens to a request.
enum Verdict {
    /// This, at once.
    Answer(Box<Response>),
    /// Connection reset.
    Reset,
    /// Nothing, ever.
    Silence,
    /// A handler's answer, after a delay, ending in some way.
    Serve(Duration, Ending),
}

/// Notes how a request ended, also when its connection goes away first.
struct Arrival<'a> {
    shared: &'a Shared,
    number: u64,
    status: u16,
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.shared.meter.lock().answered(self.number, self.status);
    }
}

/// The middleware around the API.
pub(super) async fn gate(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let mut arrival = shared.arrived(&request);
    let mut response = match shared.judge(request.headers()) {
        Verdict::Answer(response) => *response,
        Verdict::Reset => {
            peer.reset();
            return pending().await;
        }
        Verdict::Silence => return pending().await,
        Verdict::Serve(delay, ending) => {
            // Half of it on the way back: a slow answer is old when it arrives.
            let way = delay / 2;
            if !way.is_zero() {
                sleep(way).await;
            }
            let response = shared.through_proxy(request, next).await;
            if !way.is_zero() {
                sleep(way).await;
            }
            body::end(response, ending, &peer, shared.clock.now()).await
        }
    };
    if let (false, Ok(date)) = (response.headers().contains_key(DATE), shared.date()) {
        response.headers_mut().insert(DATE, date);
    }
    arrival.status = response.status().as_u16();
    response
}

/// The pattern of a path, so that counts do not grow with ids.
fn pattern(path: &str) -> &'static str {
    let segments: Vec<&str> = path.trim_start_matches(API_PATH).trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["sims", "activity"] => "/sims/activity",
        ["sims", _, "activity"] => "/sims/{iccid}/activity",
        ["sims", _, "sessions"] => "/sims/{iccid}/sessions",
        ["devices", _, "sim"] => "/devices/{device_id}/sim",
        ["devices", _, "sim", "activity"] => "/devices/{device_id}/sim/activity",
        ["devices", _, "sim", "sessions"] => "/devices/{device_id}/sim/sessions",
        _ => "other",
    }
}

fn sent_key(headers: &HeaderMap, styles: &[AuthStyle]) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = || {
        let (scheme, key) = text(AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
    };
    styles.iter().find_map(|style| match style {
        AuthStyle::Bearer => bearer(),
        AuthStyle::XApiKey => text("x-api-key").map(str::to_owned),
    })
}

fn plain(status: StatusCode, text: &str) -> Verdict {
    Verdict::Answer(Box::new(detail(status, &json!(text))))
}

// === impl Shared ===

impl Shared {
    fn arrived(&self, request: &Request) -> Arrival<'_> {
        // Nesting strips the prefix from the request's own URI; clients know only the original one.
        let original = request.extensions().get::<axum::extract::OriginalUri>().map(|uri| &uri.0);
        let uri = original.unwrap_or_else(|| request.uri());
        let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let (instant, now) = (Instant::now(), self.clock.now());
        let number = self.meter.lock().arrived(instant, now, pattern(uri.path()), target);
        Arrival { shared: self, number, status: 0 }
    }

    /// The simulated server's wall clock.
    fn wall(&self, ahead: Duration) -> SystemTime {
        let skew = SignedDuration::from_secs(self.world.lock().faults().content.clock_skew_s);
        let now = self.clock.now().saturating_add(skew).unwrap_or_else(|_| self.clock.now());
        SystemTime::try_from(now).unwrap_or(SystemTime::UNIX_EPOCH) + ahead
    }

    fn date(&self) -> Result<HeaderValue, InvalidHeaderValue> {
        HeaderValue::try_from(httpdate::fmt_http_date(self.wall(Duration::ZERO)))
    }

    /// The handler's answer, or an earlier one when the caching proxy is switched on.
    async fn through_proxy(&self, request: Request, next: Next) -> Response {
        let (keep, stubborn) = {
            let world = self.world.lock();
            let transport = &world.faults().transport;
            (Duration::from_millis(transport.cache_ms), transport.cache_stubborn)
        };
        if keep.is_zero() {
            return next.run(request).await;
        }
        let target = request.uri().to_string();
        let kept = self.cache.lock().get(&target, keep);
        if let Some(kept) = kept.filter(|_| stubborn || !cache::wants_fresh(request.headers())) {
            self.meter.lock().struck("cache");
            return kept;
        }
        let mut response = next.run(request).await;
        if let Ok(date) = self.date() {
            response.headers_mut().insert(DATE, date);
        }
        let (response, copy) = cache::split(response).await;
        if let Some(copy) = copy {
            self.cache.lock().put(target, copy);
        }
        response
    }

    fn judge(&self, headers: &HeaderMap) -> Verdict {
        let outage = self.world.lock().outage();
        match outage {
            Some(OutageMode::Reset) => return self.struck("outage", Verdict::Reset),
            Some(OutageMode::Unavailable) => {
                let answer = plain(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable");
                return self.struck("outage", answer);
            }
            None => {}
        }
        match self.authorise(headers) {
            Ok(()) => self.roll_dice(),
            Err(verdict) => verdict,
        }
    }

    fn struck(&self, fault: &str, verdict: Verdict) -> Verdict {
        self.meter.lock().struck(fault);
        verdict
    }

    fn authorise(&self, headers: &HeaderMap) -> Result<(), Verdict> {
        let (key, is_valid, per_minute) = {
            let access = self.access.lock();
            let key = sent_key(headers, &access.styles);
            let is_valid = key.as_ref().is_some_and(|key| access.keys.contains(key));
            (key, is_valid, access.per_minute)
        };
        let Some(key) = key.filter(|_| is_valid) else {
            let mut response = detail(StatusCode::UNAUTHORIZED, &json!("Invalid or missing API key"));
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Err(Verdict::Answer(Box::new(response)));
        };
        if self.world.lock().faults().errors.forbidden {
            let answer = plain(StatusCode::FORBIDDEN, "Missing scope globalsim:read");
            return Err(self.struck("forbidden", answer));
        }
        let admitted = self.meter.lock().admit(&key, per_minute, Instant::now());
        admitted.map_err(|wait| self.too_many(wait))
    }

    fn too_many(&self, wait: Duration) -> Verdict {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let style = self.world.lock().faults().errors.retry_after;
        let value = match style {
            RetryAfter::Seconds => Some(seconds.to_string()),
            // A date has whole seconds: one more, or it would fall before the slot is free.
            RetryAfter::Date => {
                Some(httpdate::fmt_http_date(self.wall(Duration::from_secs(seconds.saturating_add(1)))))
            }
            RetryAfter::Absent => None,
        };
        let mut response = detail(StatusCode::TOO_MANY_REQUESTS, &json!("Rate limit exceeded"));
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        Verdict::Answer(Box::new(response))
    }

    fn roll_dice(&self) -> Verdict {
        let mut world = self.world.lock();
        let faults = world.faults().clone();
        if world.in_burst() {
            drop(world);
            let wait = Duration::from_secs(faults.errors.too_many_retry_after_s);
            let answer = self.too_many(wait);
            return self.struck("too_many", answer);
        }
        if world.strikes(faults.errors.server_error) {
            let statuses = match faults.errors.server_error_status.as_slice() {
                [] => &SERVER_ERRORS[..],
                some => some,
            };
            let status = statuses[world.between(0, statuses.len() as u64 - 1) as usize];
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return self.struck("server_error", plain(status, "Something went wrong"));
        }
        if world.strikes(faults.transport.reset) {
            return self.struck("reset", Verdict::Reset);
        }
        if world.strikes(faults.transport.hang_before_headers) {
            return self.struck("hang_before_headers", Verdict::Silence);
        }
        let slow = &faults.transport;
        let is_slow = world.strikes(slow.slow);
        let delay_ms = if is_slow { world.between(slow.slow_min_ms, slow.slow_max_ms) } else { 0 };
        let (name, ending) = choose_ending(&mut world);
        let mut meter = self.meter.lock();
        [is_slow.then_some("slow"), name].into_iter().flatten().for_each(|name| meter.struck(name));
        Verdict::Serve(Duration::from_millis(delay_ms), ending)
    }
}

fn choose_ending(world: &mut World) -> (Option<&'static str>, Ending) {
    let transport = world.faults().transport.clone();
    let endings = [
        (transport.reset_in_body, "reset_in_body", Ending::Reset),
        (transport.truncate, "truncate", Ending::Cut),
        (transport.truncate_json, "truncate_json", Ending::CutJson),
        (transport.html, "html", Ending::Html),
        (transport.hang, "hang", Ending::Hang),
        (transport.huge, "huge", Ending::Huge(transport.huge_bytes)),
    ];
    let struck = endings.into_iter().find(|(probability, ..)| world.strikes(*probability));
    struck.map_or((None, Ending::Whole), |(_, name, ending)| (Some(name), ending))
}
