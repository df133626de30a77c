//! Rust clients of each transport: they give ids and cursors in the order of arrival.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use simcast::proto::{self, event_service_client::EventServiceClient, subscribe_request::Start};
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use super::support::{PATIENCE, http};

/// What a client saw of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub id: String,
    pub cursor: String,
}

impl Seen {
    pub fn of(event: &Value) -> Self {
        let text =
            |name: &str| event[name].as_str().unwrap_or_else(|| panic!("{name} of {event}")).to_owned();
        Self { id: text("id"), cursor: text("cursor") }
    }
}

/// A WebSocket that checks the ordinals of its one subscription.
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    next_n: u64,
}

impl Socket {
    /// Opens the URL with a query; whatever the query subscribes to is `default`.
    pub async fn open(addr: SocketAddr, query: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        let url = format!("ws://{addr}/v1/events/ws?{query}");
        let (stream, _) =
            client_async(url, stream).await.map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self { stream, next_n: 1 })
    }

    pub async fn send(&mut self, message: Value) {
        self.stream.send(Message::text(message.to_string())).await.unwrap();
    }

    pub async fn send_raw(&mut self, message: Message) {
        self.stream.send(message).await.unwrap();
    }

    /// The next message of the server; a close as `{"type":"closed","code","reason"}`.
    pub async fn next(&mut self) -> Value {
        loop {
            let message =
                tokio::time::timeout(PATIENCE, self.stream.next()).await.expect("the server is silent");
            let value = match message {
                Some(Ok(Message::Text(text))) => serde_json::from_str::<Value>(&text).unwrap(),
                Some(Ok(Message::Close(Some(frame)))) => {
                    json!({"type": "closed", "code": u16::from(frame.code), "reason": frame.reason.as_str()})
                }
                Some(Ok(Message::Close(None)) | Err(_)) | None => json!({"type": "closed", "code": null}),
                Some(Ok(_)) => continue,
            };
            if value["type"] == "events" {
                assert_eq!(value["n"], self.next_n, "the ordinals have a hole");
                self.next_n += value["items"].as_array().unwrap().len() as u64;
            }
            return value;
        }
    }

    /// The next message of a type; others are passed over.
    pub async fn expect(&mut self, kind: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == kind {
                return message;
            }
            assert_ne!(message["type"], "closed", "closed while waiting for {kind}: {message}");
        }
    }

    /// The next events, or None when the connection ends.
    pub async fn events(&mut self) -> Option<Vec<Seen>> {
        loop {
            let message = self.next().await;
            match message["type"].as_str() {
                Some("events") => {
                    return Some(message["items"].as_array().unwrap().iter().map(Seen::of).collect());
                }
                Some("closed") => return None,
                Some("gap" | "error") => panic!("{message}"),
                _ => {}
            }
        }
    }
}

pub async fn websocket(addr: SocketAddr, query: &str, count: usize) -> Vec<Seen> {
    let mut socket = Socket::open(addr, query).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(socket.events().await.expect("closed too early"));
    }
    seen
}

pub async fn sse(addr: SocketAddr, query: &str, count: usize) -> Vec<Seen> {
    let answer = http().get(format!("http://{addr}/v1/events/sse?{query}")).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.bytes_stream();
    let mut text = String::new();
    let mut seen = Vec::new();
    while seen.len() < count {
        let chunk =
            tokio::time::timeout(PATIENCE, body.next()).await.unwrap().expect("ended too early").unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some(end) = text.find("\n\n") {
            let frame: String = text.drain(..end + 2).collect();
            let field =
                |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let (Some(id), Some(data), None) = (field("id: "), field("data: "), field("event: ")) {
                let event = Seen::of(&serde_json::from_str(&data).unwrap());
                assert_eq!(event.cursor, id);
                seen.push(event);
            }
        }
    }
    seen
}

pub async fn grpc(addr: SocketAddr, filter: proto::Filter, start: Option<Start>, count: usize) -> Vec<Seen> {
    let mut client = EventServiceClient::connect(format!("http://{addr}")).await.unwrap();
    let request = proto::SubscribeRequest { filter: Some(filter), start, ..Default::default() };
    let mut stream = client.subscribe(request).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.len() < count {
        let response =
            tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().expect("ended");
        seen.extend(response.events.into_iter().map(|event| Seen { id: event.id, cursor: event.cursor }));
    }
    seen
}

pub async fn rest(addr: SocketAddr, query: &str, after: Option<&str>, count: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut after = after.map(|cursor| format!("&after={cursor}")).unwrap_or_default();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while seen.len() < count {
        assert!(tokio::time::Instant::now() < deadline, "only {} of {count}", seen.len());
        let (status, page) = super::support::get(addr, &format!("/v1/events?limit=53&{query}{after}")).await;
        assert_eq!(status, 200, "{page}");
        seen.extend(page["events"].as_array().unwrap().iter().map(Seen::of));
        after = format!("&after={}", page["next_cursor"].as_str().unwrap());
        if page["caught_up"] == true {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    seen
}
