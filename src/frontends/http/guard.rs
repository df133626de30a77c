//! What is checked before any handler, with or without tokens, and what every answer carries.
//!
//! A gateway on loopback without tokens is still reachable from every web page that its user opens: by DNS rebinding
//! (a foreign name that resolves to 127.0.0.1) and by cross-site requests. Hence `Host` must be a name of ours, and
//! an `Origin`, where there is one, must be the same or listed. Answers can't be framed, sniffed or embedded by others.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{self, HOST, ORIGIN},
    uri::Authority,
};

use crate::frontends::{ApiError, Code, Context, WebConfig, params};

/// Told to the client with every answer, and in errors.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken over from a client.
const REQUEST_ID_MAX: usize = 64;

/// The checks with what they need, made once.
#[derive(Debug)]
pub struct Guard {
    context: Context,
    names: Names,
    id_prefix: u32,
    next_id: AtomicU64,
}

/// Which hosts and origins are ours.
#[derive(Debug)]
struct Names {
    hosts: Vec<String>,
    addresses: Vec<IpAddr>,
    any_address: bool,
    origins: Vec<String>,
}

impl Guard {
    /// Takes what is allowed from the context.
    pub fn new(context: Context) -> Self {
        // Two processes that follow each other must not number alike; the low half of the start time tells them apart.
        let id_prefix = context.started_at.as_millisecond() as u32;
        Self { names: Names::new(&context.web), context, id_prefix, next_id: AtomicU64::new(1) }
    }

    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        let given = headers.get(REQUEST_ID).filter(|value| {
            (1..=REQUEST_ID_MAX).contains(&value.len())
                && value.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        });
        let made = || {
            let id = format!("{:08x}-{}", self.id_prefix, self.next_id.fetch_add(1, Ordering::Relaxed));
            HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unknown"))
        };
        given.cloned().unwrap_or_else(made)
    }

    /// Everything that is refused before routing; gives the origin that CORS headers are for.
    fn check(&self, request: &Request) -> Result<Option<HeaderValue>, ApiError> {
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if target > self.context.limits.url_bytes {
            return Err(params::url_too_long(&self.context.limits));
        }
        let host = host_of(request.uri(), request.headers())?;
        if !self.names.host_allowed(&host) {
            return Err(ApiError::new(Code::Forbidden, "the Host header names none of this gateway's names")
                .field("host")
                .hint("add the name to http.allowed_hosts"));
        }
        let cors = self.names.origin_allowed(&host, request.headers())?;
        // What the gateway is and how far its copy is can be asked meanwhile.
        let path = request.uri().path();
        match path.starts_with("/v1/") && path != "/v1/stream" {
            true => self.context.accepting()?,
            false => self.context.staying()?,
        }
        Ok(cors)
    }
}

impl Names {
    fn new(web: &WebConfig) -> Self {
        let plain = |text: &String| text.trim_end_matches(['.', '/']).to_ascii_lowercase();
        Self {
            hosts: web.allowed_hosts.iter().map(plain).collect(),
            addresses: web.listen.iter().map(SocketAddr::ip).collect(),
            any_address: web.listen.iter().any(|listen| listen.ip().is_unspecified()),
            origins: web.allowed_origins.iter().map(plain).collect(),
        }
    }

    /// Loopback, an address that is listened on, or a configured name; ports do not count, since forwarding changes
    /// them. An address can't be rebound, so any is taken where the gateway listens on all.
    fn host_allowed(&self, host: &Authority) -> bool {
        let name = host.host().trim_end_matches('.').to_ascii_lowercase();
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
        let listed = self.hosts.contains(&name) || name == "localhost" || name.ends_with(".localhost");
        listed
            || bare.parse::<IpAddr>().is_ok_and(|address| {
                self.any_address
                    || address.to_canonical().is_loopback()
                    || self.addresses.contains(&address.to_canonical())
            })
    }

    fn origin_allowed(&self, host: &Authority, headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
        let mut origins = headers.get_all(ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(None) };
        let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        if origins.next().is_none() {
            if same_origin(&text, host) {
                return Ok(None);
            }
            if self.origins.contains(&text) {
                return Ok(Some(origin.clone()));
            }
        }
        Err(ApiError::new(Code::Forbidden, "pages of this origin may not use this gateway")
            .field("origin")
            .hint("add the origin to http.allowed_origins"))
    }
}

/// Whether an origin is the one that the request was sent to. The scheme is taken from the origin: behind a proxy
/// that ends TLS the gateway can't know it.
fn same_origin(origin: &str, host: &Authority) -> bool {
    let (authority, default) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(authority), _) => (authority, 80),
        (_, Some(authority)) => (authority, 443),
        _ => return false,
    };
    authority.parse::<Authority>().is_ok_and(|authority| {
        let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
        authority.host().eq_ignore_ascii_case(host.host()) && port(&authority) == port(host)
    })
}

fn host_of(uri: &Uri, headers: &HeaderMap) -> Result<Authority, ApiError> {
    if let Some(authority) = uri.authority() {
        return Ok(authority.clone());
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none());
    host.and_then(|host| host.to_str().ok())
        .and_then(|host| host.parse().ok())
        .ok_or_else(|| ApiError::new(Code::InvalidParameter, "one Host header is needed").field("host"))
}

/// The outermost layer of the public router.
pub async fn run(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let id = guard.request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let started = tokio::time::Instant::now();
    let checked = guard.check(&request);
    let (mut response, cors) = match checked {
        Err(error) => (error.into_response(), None),
        Ok(Some(origin)) if is_preflight(&request) => (StatusCode::NO_CONTENT.into_response(), Some(origin)),
        Ok(cors) => (next.run(request).await, cors),
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = name_request(response, &error, &id);
    }
    let preflight = method == Method::OPTIONS && response.status() == StatusCode::NO_CONTENT;
    dress(response.headers_mut(), id, cors, preflight);
    record(route.as_deref(), &method, response.status(), started.elapsed());
    response
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The same answer with the request id in its body; headers that inner layers added stay.
fn name_request(response: Response, error: &ApiError, id: &HeaderValue) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = error.response(id.to_str().ok()).into_body();
    Response::from_parts(parts, body)
}

fn dress(headers: &mut HeaderMap, id: HeaderValue, cors: Option<HeaderValue>, preflight: bool) {
    headers.insert(REQUEST_ID, id);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let Some(origin) = cors else { return };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "x-request-id, retry-after"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if preflight {
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PATCH, DELETE"),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, last-event-id, x-request-id",
            ),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}

/// Counts by route pattern, never by path: paths hold ids.
fn record(route: Option<&str>, method: &Method, status: StatusCode, took: std::time::Duration) {
    let route = route.unwrap_or("none").to_owned();
    // Any token is a method to HTTP; only those that exist become a label.
    let method = match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::HEAD => "HEAD",
        _ => "other",
    };
    let labels = [("route", route.clone()), ("method", method.into()), ("status", status.as_str().into())];
    metrics::counter!("simcast_http_requests_total", &labels).increment(1);
    metrics::histogram!("simcast_http_request_seconds", "route" => route.clone()).record(took);
    if status.is_server_error() {
        tracing::warn!(route, method, status = status.as_u16(), "request failed");
    } else {
        tracing::debug!(route, method, status = status.as_u16(), "request");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(listen: &str, hosts: &[&str]) -> Names {
        Names::new(&WebConfig {
            listen: vec![listen.parse().unwrap()],
            allowed_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            allowed_origins: vec!["https://console.example".into()],
        })
    }

    #[test]
    fn only_names_of_ours_are_hosts() {
        let cases = [
            ("127.0.0.1:8080", "localhost:8080", true),
            ("127.0.0.1:8080", "LOCALHOST", true),
            ("127.0.0.1:8080", "app.localhost:1", true),
            ("127.0.0.1:8080", "127.0.0.2", true),
            ("127.0.0.1:8080", "[::1]:8080", true),
            ("127.0.0.1:8080", "gateway.example.:443", true),
            ("127.0.0.1:8080", "evil.example", false),
            ("127.0.0.1:8080", "localhost.evil.example", false),
            ("127.0.0.1:8080", "127.0.0.1.evil.example", false),
            ("127.0.0.1:8080", "10.0.0.7", false),
            ("10.0.0.7:8080", "10.0.0.7:9999", true),
            ("10.0.0.7:8080", "10.0.0.8", false),
            ("0.0.0.0:8080", "10.0.0.8", true),
            ("[::]:8080", "[2001:db8::1]", true),
            ("0.0.0.0:8080", "evil.example", false),
        ];
        for (listen, host, allowed) in cases {
            let names = names(listen, &["Gateway.example"]);
            assert_eq!(names.host_allowed(&host.parse().unwrap()), allowed, "{host} at {listen}");
        }
    }

    #[test]
    fn only_the_same_or_a_listed_origin_passes() {
        let cases = [
            ("http://localhost:8080", "localhost:8080", Some(false)),
            ("https://gateway.example", "gateway.example", Some(false)),
            ("https://gateway.example", "gateway.example:443", Some(false)),
            ("http://gateway.example", "gateway.example:443", None),
            ("http://localhost:8081", "localhost:8080", None),
            ("https://console.example", "localhost:8080", Some(true)),
            ("http://console.example", "localhost:8080", None),
            ("null", "localhost:8080", None),
            ("", "localhost:8080", None),
        ];
        for (origin, host, expected) in cases {
            let names = names("127.0.0.1:8080", &[]);
            let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
            let found = names.origin_allowed(&host.parse().unwrap(), &headers);
            assert_eq!(found.ok().map(|cors| cors.is_some()), expected, "{origin} at {host}");
        }
    }
}
