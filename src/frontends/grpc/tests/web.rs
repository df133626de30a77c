//! grpc-web as a browser speaks it: HTTP/1.1 written and read by hand, preflight, foreign pages.

use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::*;
use crate::proto::{ListEventsRequest, ListEventsResponse, subscribe_request::Start};

const PAGE: &str = "https://console.example:8443";

fn setup() -> Setup {
    Setup { allowed_origins: vec![PAGE.into()], ..Default::default() }
}

struct Answer {
    stream: BufReader<TcpStream>,
    status: String,
    headers: Vec<(String, String)>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The next piece of a chunked body; None at its end.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = line(&mut self.stream).await;
        let size = usize::from_str_radix(&size, 16).unwrap();
        let mut piece = vec![0; size];
        soon(self.stream.read_exact(&mut piece)).await.unwrap();
        assert_eq!(line(&mut self.stream).await, "");
        (size > 0).then_some(piece)
    }

    async fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(piece) = self.chunk().await {
            body.extend(piece);
        }
        body
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> String {
    let mut text = Vec::new();
    loop {
        let byte = soon(stream.read_u8()).await.unwrap();
        if byte == b'\n' {
            return String::from_utf8(text).unwrap().trim_end().to_owned();
        }
        text.push(byte);
    }
}

async fn send(gateway: &Gateway, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let address = gateway.listen().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let status = line(&mut stream).await;
    let mut answer = Answer { stream, status, headers: Vec::new() };
    loop {
        let text = line(&mut answer.stream).await;
        let Some((name, value)) = text.split_once(':') else { return answer };
        answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn frame(message: &impl prost::Message) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
    frame.extend(message.encode_to_vec());
    frame
}

/// Flag and payload of each frame.
fn frames(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        let len = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
        frames.push((body[0], body[5..5 + len].to_vec()));
        body = &body[5 + len..];
    }
    frames
}

const LIST: &str = "/simcast.v1.EventService/ListEvents";
const SUBSCRIBE: &str = "/simcast.v1.EventService/Subscribe";
const WEB: (&str, &str) = ("content-type", "application/grpc-web+proto");

#[tokio::test]
async fn a_listed_page_reads_messages_and_trailers() {
    let gateway = Gateway::start(setup());
    gateway.append(0..3).await;
    let request = frame(&ListEventsRequest { page_size: 2, ..Default::default() });
    let mut answer =
        send(&gateway, "POST", LIST, &[WEB, ("origin", PAGE), ("x-grpc-web", "1")], &request).await;
    assert_eq!(answer.status, "HTTP/1.1 200 OK");
    assert_eq!(answer.header("content-type"), Some("application/grpc-web+proto"));
    assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        assert!(exposed.contains(name), "{name}");
    }
    let frames = frames(&answer.body().await);
    let [(0, message), (0x80, trailers)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(ListEventsResponse::decode(&message[..]).unwrap().events.len(), 2);
    assert!(String::from_utf8_lossy(trailers).contains("grpc-status:0"), "{trailers:?}");
}

#[tokio::test]
async fn a_page_can_follow_the_stream_over_http_1() {
    let gateway = Gateway::start(setup());
    gateway.append(0..300).await;
    let request = frame(&SubscribeRequest { start: Some(Start::FromEarliest(true)), ..Default::default() });
    let mut answer = send(&gateway, "POST", SUBSCRIBE, &[WEB, ("origin", PAGE)], &request).await;
    let (mut body, mut got, mut live) = (Vec::new(), Vec::new(), false);
    while got.len() < 301 {
        body.extend(answer.chunk().await.expect("the stream has ended"));
        while body.len() >= 5 {
            let len = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
            if body.len() < 5 + len {
                break;
            }
            let rest = body.split_off(5 + len);
            let message = SubscribeResponse::decode(&body[5..]).unwrap();
            got.extend(ids(&message));
            body = rest;
        }
        if got.len() == 300 && !std::mem::replace(&mut live, true) {
            append(gateway.log(), 300..301);
        }
    }
    assert_eq!(got, oracle(gateway.log(), serde_json::json!({}), 0));
    gateway.context.draining.cancel();
    let tail = answer.body().await;
    assert!(String::from_utf8_lossy(&tail).contains("grpc-status:14"), "the status ends the body");
}

#[tokio::test]
async fn text_mode_is_base64_of_the_same() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let gateway = Gateway::start(setup());
    let request = STANDARD.encode(frame(&ListEventsRequest::default()));
    let text = ("content-type", "application/grpc-web-text+proto");
    let headers = [text, ("accept", "application/grpc-web-text+proto"), ("origin", PAGE)];
    let mut answer = send(&gateway, "POST", LIST, &headers, request.as_bytes()).await;
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await {
        body.extend(STANDARD.decode(piece).unwrap());
    }
    let frames = frames(&body);
    assert!(ListEventsResponse::decode(&frames[0].1[..]).unwrap().caught_up);
    assert_eq!(frames[1].0, 0x80);
}

#[tokio::test]
async fn an_error_can_be_read_from_the_headers() {
    let gateway = Gateway::start(setup());
    let request = frame(&ListEventsRequest { page_size: -1, ..Default::default() });
    let answer = send(&gateway, "POST", LIST, &[WEB, ("origin", PAGE)], &request).await;
    assert_eq!(answer.status, "HTTP/1.1 200 OK");
    assert_eq!(answer.header("grpc-status"), Some("3"));
    assert!(answer.header("grpc-status-details-bin").is_some());
}

#[tokio::test]
async fn preflight_is_answered_for_listed_pages_only() {
    let gateway = Gateway::start(setup());
    let ask = |origin: &'static str| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web,authorization"),
        ]
    };
    let answer = send(&gateway, "OPTIONS", LIST, &ask(PAGE), b"").await;
    assert_eq!(answer.status, "HTTP/1.1 204 No Content");
    assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(answer.header("access-control-allow-methods"), Some("POST"));
    let allowed = answer.header("access-control-allow-headers").unwrap();
    for name in ["content-type", "x-grpc-web", "authorization", "grpc-timeout"] {
        assert!(allowed.contains(name), "{name}");
    }
    assert_eq!(answer.header("vary"), Some("origin"));

    for foreign in ["https://evil.example", "https://console.example", "null"] {
        let answer = send(&gateway, "OPTIONS", LIST, &ask(foreign), b"").await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{foreign}");
        let request = frame(&ListEventsRequest::default());
        let answer = send(&gateway, "POST", LIST, &[WEB, ("origin", foreign)], &request).await;
        assert_eq!(answer.header("grpc-status"), Some("7"), "{foreign}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn a_client_that_is_no_page_needs_no_origin() {
    let gateway = Gateway::start(Setup::default());
    let mut answer = send(&gateway, "POST", LIST, &[WEB], &frame(&ListEventsRequest::default())).await;
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(frames(&answer.body().await).len(), 2);
}
