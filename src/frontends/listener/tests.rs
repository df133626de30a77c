//! The accept loop against raw sockets: each deadline, the cap, draining.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ConnectInfo,
    routing::{get, post},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::*;

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(40);

fn patient() -> Deadlines {
    Deadlines { first_byte: LONG, headers: LONG, body: LONG, idle: LONG, write: LONG }
}

struct Server {
    addr: SocketAddr,
    draining: CancellationToken,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn start(router: Router, protocol: Protocol, deadlines: Deadlines, connections: usize) -> Server {
    start_tls(router, protocol, deadlines, connections, None)
}

fn start_tls(
    router: Router,
    protocol: Protocol,
    deadlines: Deadlines,
    connections: usize,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Server {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "http.listen").unwrap();
    let addr = listener.local_addr();
    let (draining, stop) = (CancellationToken::new(), CancellationToken::new());
    let serve = Serve {
        router,
        protocol,
        deadlines,
        connections,
        tls,
        draining: draining.clone(),
        stop: stop.clone(),
    };
    Server { addr, draining, stop, task: tokio::spawn(listener.serve(serve)) }
}

fn hello() -> Router {
    Router::new()
        .route("/", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }))
        .route("/echo", post(|body: Bytes| async move { body }))
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }
}

/// Reads until the server closes or resets; gives what came before.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n) = stream.read(&mut chunk).await {
        if n == 0 {
            break;
        }
        all.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads one answer of `hello`, which ends with this end's address.
async fn read_answer(stream: &mut TcpStream) {
    let me = stream.local_addr().unwrap().to_string();
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).ends_with(&me) {
        assert_ne!(stream.read_buf(&mut all).await.unwrap(), 0, "closed after {all:?}");
    }
}

#[tokio::test]
async fn answers_and_names_the_peer() {
    let server = start(hello(), Protocol::Http1, patient(), 10);
    let mut stream = server.connect().await;
    let me = stream.local_addr().unwrap().to_string();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with(&me), "{answer}");
}

#[tokio::test]
async fn a_used_port_is_named_with_its_key() {
    let first = Listener::bind("127.0.0.1:0".parse().unwrap(), "http.listen").unwrap();
    let error = Listener::bind(first.local_addr(), "http.listen").unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&first.local_addr().to_string()), "{text}");
    assert!(text.contains("set http.listen to another port"), "{text}");
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let server = start(hello(), Protocol::Http1, Deadlines { first_byte: SHORT, ..patient() }, 10);
    assert_eq!(read_to_end(&mut server.connect().await).await, "");
}

#[tokio::test]
async fn a_silent_grpc_connection_is_closed() {
    let deadlines = Deadlines { first_byte: SHORT, ..patient() };
    let server = start(hello(), Protocol::Http2AndHttp1, deadlines, 10);
    let mut stream = server.connect().await;
    stream.write_all(b"PRI *").await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "");
}

#[tokio::test]
async fn dripped_headers_are_cut() {
    let server = start(hello(), Protocol::Http1, Deadlines { headers: SHORT, ..patient() }, 10);
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let drip = tokio::spawn(async move {
        while writer.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    drip.await.unwrap();
}

#[tokio::test]
async fn a_dripped_body_is_cut() {
    let server = start(hello(), Protocol::Http1, Deadlines { body: SHORT, ..patient() }, 10);
    let mut stream = server.connect().await;
    stream.write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nab").await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test]
async fn an_idle_connection_is_closed_but_a_busy_one_is_not() {
    let router = hello().route(
        "/slow",
        get(|| async {
            tokio::time::sleep(SHORT * 3).await;
            "slow"
        }),
    );
    let server = start(router, Protocol::Http1, Deadlines { idle: SHORT, headers: SHORT, ..patient() }, 10);
    let mut stream = server.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.ends_with("slow"), "{answer}");
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_reset() {
    let endless = || async {
        let chunks = futures_util::stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from(vec![0; 65_536])));
        Body::from_stream(chunks)
    };
    let router = Router::new().route("/", get(endless));
    let server = start(router, Protocol::Http1, Deadlines { write: SHORT, ..patient() }, 1);
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.draining.cancel();
    // The connection counts until it is gone, so this ends only if the writer was cut.
    server.task.await.unwrap();
    assert!(!server.stop.is_cancelled());
}

#[tokio::test]
async fn connections_beyond_the_cap_are_told() {
    let server = start(hello(), Protocol::Http1, patient(), 1);
    let mut first = server.connect().await;
    first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_answer(&mut first).await;
    let mut second = server.connect().await;
    let answer = read_to_end_after_shutdown(&mut second).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 5"), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["code"], "connection_limit");
    drop(first);
    // The place is free once the server has seen the end of the first.
    loop {
        let mut third = server.connect().await;
        third.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        if read_to_end(&mut third).await.starts_with("HTTP/1.1 200") {
            break;
        }
    }
}

async fn read_to_end_after_shutdown(stream: &mut TcpStream) -> String {
    stream.shutdown().await.unwrap();
    read_to_end(stream).await
}

#[tokio::test]
async fn drain_lets_requests_finish_and_closes_idle_connections() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (entered, mut handlers) = tokio::sync::mpsc::channel(1);
    let router = hello().route(
        "/held",
        get(move || {
            let (mut released, entered) = (released.clone(), entered.clone());
            async move {
                entered.send(()).await.unwrap();
                released.wait_for(|released| *released).await.unwrap();
                "finished"
            }
        }),
    );
    let server = start(router, Protocol::Http1, patient(), 10);
    let mut idle = server.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_answer(&mut idle).await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    handlers.recv().await.unwrap();
    server.draining.cancel();
    assert_eq!(read_to_end(&mut idle).await, "");
    assert!(!server.task.is_finished());
    release.send_replace(true);
    assert!(read_to_end(&mut busy).await.ends_with("finished"));
    server.task.await.unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test]
async fn the_hard_stop_ends_what_does_not_end_itself() {
    let router = Router::new().route("/", get(std::future::pending::<String>));
    let server = start(router, Protocol::Http1, patient(), 10);
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.draining.cancel();
    server.stop.cancel();
    server.task.await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "");
}

#[tokio::test]
async fn one_port_speaks_http2_and_http1() {
    let server = start(hello(), Protocol::Http2AndHttp1, patient(), 10);
    let mut old = server.connect().await;
    old.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut old).await.starts_with("HTTP/1.1 200 OK"));
    // Another test may have been first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{}/", server.addr)).send().await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    assert!(answer.text().await.unwrap().starts_with("127.0.0.1:"));
    // A preface that comes in pieces is still one.
    let mut dripped = server.connect().await;
    for part in [&b"PRI * HT"[..], b"TP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\x04\0\0\0\0\0"] {
        dripped.write_all(part).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut settings = [0; 9];
    dripped.read_exact(&mut settings).await.unwrap();
    assert_eq!(settings[3], 4, "the answer to a preface is a SETTINGS frame: {settings:?}");
}

#[tokio::test]
async fn tls_speaks_what_was_agreed() {
    let protocols: [&[u8]; 2] = [b"h2", b"http/1.1"];
    let config = testing::tls::server(&protocols);
    let server = start_tls(hello(), Protocol::Http2AndHttp1, patient(), 10, Some(config));
    let mut old = testing::tls::connect(server.addr, &protocols[1..]).await;
    old.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    old.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    let mut new = testing::tls::connect(server.addr, &protocols).await;
    assert_eq!(new.get_ref().1.alpn_protocol(), Some(protocols[0]));
    new.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut settings = [0; 9];
    new.read_exact(&mut settings).await.unwrap();
    assert_eq!(settings[3], 4, "the answer to a preface is a SETTINGS frame: {settings:?}");
}

#[tokio::test]
async fn a_tls_handshake_must_come_in_time() {
    let deadlines = Deadlines { first_byte: SHORT, ..patient() };
    let server = start_tls(hello(), Protocol::Http1, deadlines, 10, Some(testing::tls::server(&[])));
    let mut stream = server.connect().await;
    stream.write_all(&[0x16, 3, 1]).await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "");
}
