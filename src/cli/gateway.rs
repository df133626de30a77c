//! How client commands reach a gateway: its address, an HTTP client for it, what it says when it refuses.

use std::time::Duration;

use reqwest::Url;
use serde_json::Value;

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
