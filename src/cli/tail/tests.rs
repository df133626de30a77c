//! `tail` against a scripted gateway: what it asks, what it prints, when it comes back.

use std::sync::Arc;

use futures_util::SinkExt;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::{
    Message,
    handshake::server::{ErrorResponse, Request, Response},
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::*;

/// What one connection does.
enum Scene {
    /// Accepts, sends these, closes with this code.
    Stream(&'static [&'static str], u16),
    /// Answers so.
    Refuse(&'static str),
}

/// Requests as the gateway saw them: target and `Authorization`.
type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

async fn gateway(scenes: Vec<Scene>) -> (Url, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        for scene in scenes {
            let (stream, _) = listener.accept().await.unwrap();
            play(scene, stream, &log).await;
        }
    });
    (url, seen)
}

async fn play(scene: Scene, mut stream: TcpStream, log: &Seen) {
    match scene {
        Scene::Refuse(answer) => {
            let mut request = [0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request[..n]).into_owned();
            log.lock().push((text.split(' ').nth(1).unwrap().to_owned(), None));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        Scene::Stream(messages, code) => {
            #[expect(clippy::result_large_err, reason = "the library's signature")]
            let note = |request: &Request, mut answer: Response| -> Result<Response, ErrorResponse> {
                let token =
                    request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
                log.lock().push((request.uri().to_string(), token));
                let protocol = request.headers()["sec-websocket-protocol"].clone();
                answer.headers_mut().insert("sec-websocket-protocol", protocol);
                Ok(answer)
            };
            let mut socket = tokio_tungstenite::accept_hdr_async(stream, note).await.unwrap();
            for message in messages {
                socket.send(Message::text(*message)).await.unwrap();
            }
            let frame = CloseFrame { code: CloseCode::from(code), reason: "the reason".into() };
            socket.close(Some(frame)).await.unwrap();
        }
    }
}

fn args(server: Url) -> Args {
    Args {
        token: Some("sct_secret".into()),
        event_type: vec!["connection".into(), "disconnection".into()],
        country: vec!["NO & SE".into()],
        from: Some(From::Earliest),
        json: true,
        ..Args::from_now(server)
    }
}

async fn tail(args: &Args) -> (Result<(), Failure>, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut output = Output { out: &mut out, err: &mut err };
    let stop = CancellationToken::new();
    let ended = follow(args, Format::Json, &stop, &mut output, fastrand::Rng::with_seed(1)).await;
    (ended, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[tokio::test]
async fn it_resumes_where_it_was_and_stops_when_told() {
    let (url, seen) = gateway(vec![
        Scene::Stream(
            &[
                r#"{"type":"welcome","heartbeat_ms":15000}"#,
                r#"{"type":"subscribed","sub":"default","cursor":"c0","warnings":[]}"#,
                r#"{"type":"events","sub":"default","n":1,"cursor":"c2","items":[{"id":"a"},{"id":"b"}]}"#,
                r#"{"type":"draining","reconnect_within_ms":0}"#,
            ],
            4201,
        ),
        Scene::Refuse("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"),
        Scene::Stream(
            &[
                r#"{"type":"subscribed","sub":"default","cursor":"c2","warnings":[]}"#,
                r#"{"type":"events","sub":"default","n":1,"cursor":"c3","items":[{"id":"c"}]}"#,
            ],
            4401,
        ),
    ])
    .await;
    let (ended, out, err) = tail(&args(url)).await;
    assert_eq!(out, "{\"id\":\"a\"}\n{\"id\":\"b\"}\n{\"id\":\"c\"}\n");
    assert_eq!(
        ended,
        Err(Failure::runtime(
            "the gateway closed for good (4401): the reason; give --token or set SIMCAST_TOKEN"
        ))
    );
    let filter = "event_type=connection&event_type=disconnection&country=NO+%26+SE";
    let target = |start: &str| format!("/v1/events/ws?{filter}&{start}");
    let seen = seen.lock();
    let bearer = Some("Bearer sct_secret".to_owned());
    assert_eq!(seen[0], (target("from=earliest"), bearer.clone()));
    assert_eq!(seen[1].0, target("after=c2"));
    assert_eq!(seen[2], (target("after=c2"), bearer));
    assert_eq!(err.lines().count(), 2, "{err}");
    assert!(err.contains("(4201)") && err.contains("(503)") && !err.contains("sct_secret"), "{err}");
}

#[tokio::test]
async fn a_refusal_for_good_is_told_in_the_gateways_words() {
    let (url, _) = gateway(vec![Scene::Refuse(
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n{\"error\":{\"code\":\"invalid_filter\",\"message\":\"no such country\",\"hint\":\"try NO\"}}",
    )])
    .await;
    let (ended, ..) = tail(&args(url)).await;
    assert_eq!(ended, Err(Failure::runtime("the gateway refuses (400): no such country; try NO")));
}

#[tokio::test]
async fn what_is_no_websocket_server_is_noticed() {
    let (url, _) = gateway(vec![
        Scene::Refuse("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n"),
        Scene::Refuse("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
    ])
    .await;
    let (ended, _, err) = tail(&args(url)).await;
    assert!(err.contains("does not speak WebSocket"), "{err}");
    assert_eq!(ended, Err(Failure::runtime("the gateway refuses (404): no simcast gateway answers there")));
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (url, _) = gateway(vec![Scene::Stream(
        &[r#"{"type":"events","n":1,"cursor":"c1","items":[{"id":"a"}]}"#],
        4301,
    )])
    .await;
    let mut output = Output { out: &mut Gone, err: &mut Vec::new() };
    let stop = CancellationToken::new();
    let ended =
        follow(&args(url), Format::Json, &stop, &mut output, fastrand::Rng::with_seed(1)).await.unwrap_err();
    assert_eq!(ended.code, 0);
}

#[test]
fn servers_are_addresses_without_query() {
    for (text, expected) in [
        ("http://127.0.0.1:8080", Some("http://127.0.0.1:8080/")),
        ("wss://gw.example/base", Some("https://gw.example/base")),
        ("ws://gw.example", Some("http://gw.example/")),
        ("gw.example:8080", None),
        ("ftp://gw.example", None),
        ("http://gw.example/?token=x", None),
    ] {
        assert_eq!(server_url(text).ok().map(|url| url.to_string()).as_deref(), expected, "{text}");
    }
}
