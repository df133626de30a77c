//! How client commands reach a gateway: its address, an HTTP client for it, what it says when it refuses.

use std::time::Duration;

use reqwest::Url;
use serde_json::Value;

use super::Failure;

/// Until the gateway has answered.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Most of a refusal's body that is read.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Reads the address of a gateway.
///
/// # Errors
/// For people.
pub fn server_url(text: &str) -> Result<Url, String> {
    let text = match text.split_once("://") {
        Some(("ws", rest)) => format!("http://{rest}"),
        Some(("wss", rest)) => format!("https://{rest}"),
        _ => text.to_owned(),
    };
    let url = Url::parse(&text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.query().is_some() {
        return Err("give the gateway's address such as http://127.0.0.1:8080".into());
    }
    Ok(url)
}

/// Checks that a token can be sent.
///
/// # Errors
/// For people; never contains the token.
pub fn check_token(token: Option<&str>) -> Result<(), String> {
    match token {
        Some(token) if !token.bytes().all(|b| b.is_ascii_graphic()) => {
            Err("the token holds characters that no token has".into())
        }
        _ => Ok(()),
    }
}

/// A client for one gateway.
///
/// # Errors
/// For people.
pub fn http_client(server: &Url, user_agent: &str) -> Result<reqwest::Client, String> {
    // An error means that a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(user_agent)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(ANSWER_WITHIN)
        .tcp_nodelay(true);
    if server.scheme() == "http" {
        // Nothing is verified without TLS, and a machine without CA certificates must do.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| format!("no HTTP client can be made: {error}"))
}

/// Host and port, for messages.
pub fn place(server: &Url) -> String {
    let port = server.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", server.host_str().unwrap_or_default())
}

/// What a refusal says: message and hint.
pub async fn refusal(answer: reqwest::Response) -> String {
    let body = body(answer, REFUSAL_BYTES_MAX).await;
    let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |field: &str| parsed["error"][field].as_str();
    match (text("message"), text("hint")) {
        (Some(message), Some(hint)) => format!("{message}; {hint}"),
        (Some(message), None) => message.to_owned(),
        _ => "no simcast gateway answers there".to_owned(),
    }
}

/// The body as far as it came, at most about `bytes_max`.
pub async fn body(mut answer: reqwest::Response, bytes_max: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < bytes_max {
        match tokio::time::timeout(ANSWER_WITHIN, answer.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            _ => break,
        }
    }
    body
}

/// The innermost cause: the outer ones only repeat the URL.
pub fn root(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Where the gateway is and who asks.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Gateway
    #[arg(long, global = true, default_value = "http://127.0.0.1:8080", value_name = "URL", value_parser = server_url)]
    pub server: Url,
    /// Token, where the gateway wants one
    #[arg(long, global = true, env = "SIMCAST_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// Asks one gateway.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    server: Url,
    token: Option<String>,
}

impl Client {
    /// For the gateway that the arguments name; `name` is how it introduces itself.
    ///
    /// # Errors
    /// Arguments that can't be used.
    pub fn new(args: &ServerArgs, name: &str) -> Result<Self, Failure> {
        let token = args.token.clone().filter(|token| !token.is_empty());
        check_token(token.as_deref()).map_err(Failure::usage)?;
        let agent = format!("{name}/{}", env!("CARGO_PKG_VERSION"));
        let http = http_client(&args.server, &agent).map_err(Failure::usage)?;
        Ok(Self { http, server: args.server.clone(), token })
    }

    /// Asks for a path below `/v1/webhooks`; gives the answer's JSON.
    ///
    /// # Errors
    /// What the gateway says, or that it can't be reached.
    pub async fn ask(
        &self,
        method: http::Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Value, Failure> {
        self.ask_for(method, &[&["v1", "webhooks"], path].concat(), query, body).await
    }

    /// Asks for a path; gives the answer's JSON.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn ask_for(
        &self,
        method: http::Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Value, Failure> {
        let mut url = self.server.clone();
        url.path_segments_mut()
            .map_err(|()| Failure::usage("the gateway's address can't have a path"))?
            .pop_if_empty()
            .extend(path);
        let mut request = self.http.request(method, url).query(query);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header(http::header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let place = place(&self.server);
        let answer = match tokio::time::timeout(WEBHOOKS_WITHIN, request.send()).await {
            Err(_) => return Err(Failure::runtime(format!("{place} does not answer"))),
            Ok(Err(error)) => {
                let cause = root(&error);
                return Err(Failure::runtime(format!(
                    "{place}: {cause}; is the gateway running? see --server"
                )));
            }
            Ok(Ok(answer)) => answer,
        };
        let status = answer.status();
        if !status.is_success() {
            let words = refusal(answer).await;
            return Err(Failure::runtime(match status.as_u16() {
                401 if self.token.is_none() => {
                    format!("the gateway wants a token ({words}): give --token or SIMCAST_TOKEN")
                }
                401 | 403 => format!("the gateway refuses the token: {words}"),
                _ => words,
            }));
        }
        let bytes = self::body(answer, WEBHOOKS_BYTES_MAX).await;
        serde_json::from_slice(&bytes).map_err(|_| {
            Failure::runtime(format!("{place}: the answer is no JSON; no simcast gateway answers there"))
        })
    }
}

/// A test waits for the receiver, a count of a replay for the log.
const WEBHOOKS_WITHIN: std::time::Duration = std::time::Duration::from_secs(120);
/// Most of an answer that is read: a thousand endpoints, or a page of deliveries.
const WEBHOOKS_BYTES_MAX: usize = 32 << 20;
