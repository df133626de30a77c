//! The protocol over real sockets, against a log that the tests fill.

mod auth;
mod endings;
mod streams;

use std::time::Duration;

use axum::Router;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        handshake::client::Response,
        http::{HeaderName, HeaderValue},
        protocol::CloseFrame,
    },
};

use super::{Timing, routes_with};
use crate::{
    auth::TokenConfig,
    event::Cursor,
    frontends::{
        Limits, Parts, Registry,
        listener::{Deadlines, testing::Live},
        tests_support::{Fixture, ICCIDS, Sample},
    },
};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(40);

/// Nothing happens by itself.
fn patient() -> Timing {
    Timing { close: LONG, drain: LONG, ..Timing::default() }
}

fn patient_limits() -> Limits {
    Limits { heartbeat: LONG, auth_timeout: LONG, write_timeout: LONG, ..Limits::default() }
}

fn start_with(tokens: Vec<TokenConfig>, timing: Timing, adjust: impl FnOnce(&mut Parts)) -> Live {
    let fixture = Fixture::with(tokens, |parts| {
        parts.limits = patient_limits();
        adjust(parts);
        parts.registry = Registry::new(&parts.limits, parts.clock.clone());
    });
    let websocket = routes_with(fixture.context.clone(), timing);
    Live::start(fixture, websocket, Router::new(), Deadlines::default())
}

fn start(tokens: Vec<TokenConfig>) -> Live {
    start_with(tokens, patient(), |_| {})
}

/// Events `e<first>` to `e<last>`, over the three SIMs in turn.
async fn append(live: &Live, first: usize, last: usize) {
    let samples: Vec<_> = (first..=last)
        .map(|n| Sample::new(&format!("e{n}"), "connection", ICCIDS[n % 3], n as i64))
        .collect();
    live.fixture.append(&samples);
    // Live as well: where a subscription starts and catches up does not depend on the hub's pace then.
    while live.fixture.context.hub.edge().seq < last as u64 {
        tokio::task::yield_now().await;
    }
}

fn ids(items: &Value) -> Vec<String> {
    items.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

fn named(first: usize, last: usize) -> Vec<String> {
    (first..=last).map(|n| format!("e{n}")).collect()
}

fn seq(cursor: &str) -> u64 {
    Cursor::parse(cursor).unwrap().seq
}

struct Client {
    stream: WebSocketStream<TcpStream>,
    response: Response,
}

impl Client {
    async fn try_open(live: &Live, path: &str, headers: &[(&str, &str)]) -> Result<Self, Error> {
        let mut request = format!("ws://{}{path}", live.addr).into_client_request().unwrap();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        }
        let tcp = TcpStream::connect(live.addr).await.unwrap();
        let (stream, response) = client_async(request, tcp).await?;
        Ok(Self { stream, response })
    }

    async fn open(live: &Live, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::try_open(live, path, headers).await.unwrap()
    }

    /// Opens and takes the greeting.
    async fn greeted(live: &Live, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut client = Self::open(live, path, headers).await;
        client.expect("welcome").await;
        client
    }

    /// Opens without a subscription.
    async fn bare(live: &Live) -> Self {
        Self::greeted(live, "/v1/events/ws?subscribe=none", &[]).await
    }

    async fn send(&mut self, message: Value) {
        self.raw(Message::text(message.to_string())).await;
    }

    async fn raw(&mut self, message: Message) {
        self.stream.send(message).await.unwrap();
    }

    /// The next message, which must be of this type.
    async fn expect(&mut self, name: &str) -> Value {
        let message = self.stream.next().await.unwrap().unwrap();
        let Message::Text(text) = &message else { panic!("{message:?} instead of {name}") };
        let message: Value = serde_json::from_str(text).unwrap();
        assert_eq!(message["type"], name, "{message}");
        message
    }

    async fn expect_error(&mut self, code: &str, field: Option<&str>) -> Value {
        let message = self.expect("error").await;
        assert_eq!((message["code"].as_str(), message["field"].as_str()), (Some(code), field), "{message}");
        message
    }

    /// Takes `events` of `sub` until `last` has come; checks the ordinals; gives the ids and the last cursor.
    async fn events(&mut self, sub: &str, first_n: u64, last: &str) -> (Vec<String>, String) {
        let (mut all, mut n) = (Vec::new(), first_n);
        loop {
            let message = self.expect("events").await;
            assert_eq!((message["sub"].as_str(), message["n"].as_u64()), (Some(sub), Some(n)));
            let ids = ids(&message["items"]);
            let cursor = message["cursor"].as_str().unwrap().to_owned();
            let items = message["items"].as_array().unwrap();
            let last_item = items.last().unwrap()["cursor"].as_str().unwrap();
            assert!(
                seq(last_item) <= seq(&cursor),
                "a batch is evaluated beyond its last event, never less far"
            );
            n += ids.len() as u64;
            all.extend(ids);
            if all.last().is_some_and(|id| id == last) {
                return (all, cursor);
            }
        }
    }

    /// The close frame, which must come next.
    async fn closed(&mut self) -> (u16, Value) {
        let message = self.stream.next().await.unwrap().unwrap();
        let Message::Close(Some(CloseFrame { code, reason })) = message else { panic!("{message:?}") };
        (code.into(), serde_json::from_str(&reason).unwrap_or(Value::Null))
    }

    /// Shows that the connection is still served.
    async fn ping(&mut self) {
        self.send(json!({"type": "ping", "id": "still there"})).await;
        assert_eq!(self.expect("pong").await["id"], "still there");
    }

    fn subprotocol(&self) -> Option<&str> {
        self.response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap())
    }
}
