//! The HTTP and WebSocket of `tail`.
//!
//! The upgrade is an ordinary request of the HTTP client, which brings TLS with the system's certificates and gives
//! the gateway's whole answer where it refuses; only what follows the 101 is WebSocket.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{StatusCode, Upgraded, Url, header};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use super::follow::{End, Param};
use crate::cli::gateway::{self, ANSWER_WITHIN, root};

/// Largest message. A gateway's are at most 256 KiB plus one event; more is not a gateway's.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Opens connections to one gateway.
#[derive(Debug)]
pub struct Connector {
    http: reqwest::Client,
    url: Url,
    token: Option<String>,
}

impl Connector {
    /// For the gateway at `server`.
    ///
    /// # Errors
    /// A token that can't be sent, or a client that can't be set up; never contains the token.
    pub fn new(server: &Url, token: Option<String>) -> Result<Self, String> {
        gateway::check_token(token.as_deref())?;
        let mut url = server.clone();
        url.set_path(&format!("{}/v1/events/ws", server.path().trim_end_matches('/')));
        let http = gateway::http_client(server, concat!("simcast-tail/", env!("CARGO_PKG_VERSION")))?;
        Ok(Self { http, url, token })
    }

    /// Connects and asks for a stream.
    ///
    /// # Errors
    /// How it ended instead.
    pub async fn open(&self, query: &[Param]) -> Result<Socket, End> {
        let key = generate_key();
        let mut request = self
            .http
            .get(self.url.clone())
            .query(query)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_PROTOCOL, "simcast.v1.json")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = match tokio::time::timeout(ANSWER_WITHIN, request.send()).await {
            Err(_) => return Err(End::Broken(format!("{} does not answer", self.place()))),
            Ok(Err(error)) => return Err(End::Broken(format!("{}: {}", self.place(), root(&error)))),
            Ok(Ok(answer)) => answer,
        };
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(answer).await);
        }
        let accepted = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accepted.is_none_or(|value| value.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(End::Broken(format!("{} does not speak WebSocket", self.place())));
        }
        let upgraded = answer.upgrade().await.map_err(|error| End::Broken(root(&error)))?;
        let mut config = WebSocketConfig::default();
        config.max_message_size = Some(MESSAGE_BYTES_MAX);
        config.max_frame_size = Some(MESSAGE_BYTES_MAX);
        Ok(Socket(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await))
    }

    fn place(&self) -> String {
        gateway::place(&self.url)
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Socket(WebSocketStream<Upgraded>);

impl Socket {
    /// The next message, waiting at most `silence` for anything to come.
    ///
    /// # Errors
    /// How the connection ended.
    pub async fn next(&mut self, silence: Duration) -> Result<String, End> {
        loop {
            let message = tokio::time::timeout(silence, self.0.next()).await.map_err(|_| End::Silent)?;
            match message {
                Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                Some(Ok(Message::Close(frame))) => {
                    let (code, reason) =
                        frame.map(|frame| (u16::from(frame.code), frame.reason.as_str().to_owned())).unzip();
                    return Err(End::Closed { code, reason: reason.unwrap_or_default() });
                }
                // Pings are answered by the library; anything else is a sign of life.
                Some(Ok(_)) => {}
                Some(Err(tungstenite::Error::ConnectionClosed)) | None => {
                    return Err(End::Closed { code: None, reason: String::new() });
                }
                Some(Err(error)) => return Err(End::Broken(format!("the connection broke: {error}"))),
            }
        }
    }
}

async fn refusal(answer: reqwest::Response) -> End {
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    End::Refused { status, message: gateway::refusal(answer).await, retry_after }
}
