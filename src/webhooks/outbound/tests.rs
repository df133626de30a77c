//! Every way in which a receiver can misbehave, and what each comes to.

use std::sync::atomic::AtomicUsize;

use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use jiff::Timestamp;

use super::*;
use crate::webhooks::{
    guard::{Guard, GuardConfig},
    testing::{Act, Receiver},
    verdict::{Verdict, judge},
};

fn guard() -> Guard {
    Guard::new(GuardConfig { allowed_networks: vec!["127.0.0.0/8".parse().unwrap()] })
}

fn client() -> Outbound {
    Outbound::new(Config::new(guard())).unwrap()
}

async fn post(client: &Outbound, url: &str, timeout_ms: u64) -> Exchange {
    let url = guard().check(url).unwrap();
    client.post(&url, HeaderMap::new(), Bytes::from_static(b"{}"), Duration::from_millis(timeout_ms)).await
}

fn kind(exchange: &Exchange) -> FailureKind {
    exchange.result.as_ref().unwrap_err().kind
}

fn status(exchange: &Exchange) -> u16 {
    exchange.result.as_ref().unwrap().status
}

#[tokio::test]
async fn each_misbehaviour_has_its_outcome() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let failed = |exchange: &Exchange| matches!(judge(exchange, now), Verdict::Failed { .. });
    let client = client();
    let cases: [(Act, &str); 14] = [
        (Act::Status(200), "200"),
        (Act::Status(204), "204"),
        (Act::Status(500), "500"),
        (Act::Status(301), "301"),
        (Act::HangBeforeHead, "timeout"),
        (Act::DripHead, "timeout"),
        (Act::DripBody, "200 truncated"),
        (Act::EndlessBody, "200 truncated"),
        (Act::ResetAtOnce, "reset"),
        (Act::ResetInHead, "reset"),
        (Act::ResetInBody, "200 truncated"),
        (Act::EndlessHead, "protocol"),
        (Act::Garbage, "protocol"),
        (Act::GzipBomb, "200 truncated"),
    ];
    for (act, expected) in cases {
        let receiver = Receiver::start(move |_| act.clone()).await;
        let started = Instant::now();
        let exchange = post(&client, &receiver.url(), 400).await;
        let shown = match &exchange.result {
            Ok(answer) if answer.truncated => format!("{} truncated", answer.status),
            Ok(answer) => answer.status.to_string(),
            Err(failure) => failure.kind.as_str().to_owned(),
        };
        assert_eq!(shown, expected, "{:?}", exchange.result);
        let timings = exchange.timings;
        assert!(exchange.remote.is_some() && timings.connect.is_some(), "{expected}: who it was is known");
        assert_eq!(timings.first_byte.is_some(), exchange.result.is_ok(), "{expected}");
        assert!(started.elapsed() < Duration::from_secs(3), "{expected}: {:?}", started.elapsed());
        if let Ok(answer) = &exchange.result {
            assert!(answer.body.len() <= KEPT_MAX);
        }
        assert_eq!(failed(&exchange), !expected.starts_with('2'), "{expected}");
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_leads_nowhere() {
    let target = Receiver::start(|_| Act::Status(200)).await;
    let to = target.url();
    let receiver = Receiver::start(move |_| {
        Act::Raw(format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"))
    })
    .await;
    assert_eq!(status(&post(&client(), &receiver.url(), 1_000).await), 302);
    assert_eq!((receiver.requests().len(), target.requests().len()), (1, 0));
}

#[tokio::test]
async fn what_a_receiver_wants_is_read() {
    let raw = |head: &str| Act::Raw(format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n"));
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    for (head, expected) in [
        ("429 Slow\r\nretry-after: 120", Some(120)),
        ("429 Slow\r\nretry-after: Thu, 01 Jan 2026 00:05:00 GMT", Some(300)),
        ("503 Later\r\nretry-after: Wed, 31 Dec 2025 23:00:00 GMT", Some(0)),
        ("429 Slow\r\nretry-after: 999999999", Some(86_400)),
        ("429 Slow\r\nretry-after: soon", None),
    ] {
        let act = raw(head);
        let receiver = Receiver::start(move |_| act.clone()).await;
        let exchange = post(&client(), &receiver.url(), 1_000).await;
        let Verdict::Failed { retry_after, .. } = judge(&exchange, now) else { panic!("{head}") };
        assert_eq!(retry_after.map(|wait| wait.as_secs()), expected, "{head}");
    }
    for (head, wanted) in [
        ("410 Gone", "disabled"),
        ("400 Bad\r\nwebhook-delivery: disable", "disabled"),
        ("400 Bad\r\nwebhook-delivery: abort-message", "aborted"),
        ("200 OK\r\nwebhook-delivery: disable", "delivered, disables"),
        ("400 Bad\r\nwebhook-delivery: else", "failed"),
    ] {
        let act = raw(head);
        let receiver = Receiver::start(move |_| act.clone()).await;
        let shown = match judge(&post(&client(), &receiver.url(), 1_000).await, now) {
            Verdict::Delivered { disables: true } => "delivered, disables",
            Verdict::Delivered { .. } => "delivered",
            Verdict::Aborted(_) => "aborted",
            Verdict::Disabled(_) => "disabled",
            Verdict::Failed { .. } => "failed",
        };
        assert_eq!(shown, wanted, "{head}");
    }
}

#[tokio::test]
async fn connections_are_kept_and_one_that_was_closed_meanwhile_is_no_fault() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    // Each connection answers once and then closes while the client believes that it lives.
    let receiver = Receiver::start(move |n| {
        counted.fetch_add(1, Ordering::Relaxed);
        if n == 0 { Act::Status(200) } else { Act::ResetAtOnce }
    })
    .await;
    let client = client();
    for _ in 0..3 {
        let exchange = post(&client, &receiver.url(), 1_000).await;
        assert_eq!(status(&exchange), 200);
    }
    let steady = Receiver::start(|_| Act::Status(200)).await;
    let first = post(&client, &steady.url(), 1_000).await;
    let second = post(&client, &steady.url(), 1_000).await;
    assert!(first.timings.connect.is_some() && second.timings.connect.is_none());
    assert_eq!((steady.connections(), steady.requests().len()), (1, 2));
    assert!(second.remote.is_some());
}

#[tokio::test]
async fn where_nobody_listens_or_may_be_asked_is_told_apart() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let nobody = post(&client(), &format!("http://127.0.0.1:{port}/"), 1_000).await;
    assert_eq!(kind(&nobody), FailureKind::Connect);
    // A name that was fine when it was checked, and leads inside when it is connected to.
    let lookup: crate::webhooks::guard::Lookup =
        Arc::new(|_, port| Box::pin(async move { Ok(vec![([10, 0, 0, 1], port).into()]) }));
    let inside = Guard::with_lookup(GuardConfig::default(), lookup);
    let client = Outbound::new(Config::new(inside.clone())).unwrap();
    let url = inside.check("http://rebind.example/").unwrap();
    let refused = client.post(&url, HeaderMap::new(), Bytes::new(), Duration::from_secs(1)).await;
    assert_eq!(kind(&refused), FailureKind::Refused);
    let lookup: crate::webhooks::guard::Lookup =
        Arc::new(|_, _| Box::pin(async { Err(std::io::Error::other("no such name")) }));
    let client = Outbound::new(Config::new(Guard::with_lookup(GuardConfig::default(), lookup))).unwrap();
    let unknown = client.post(&url, HeaderMap::new(), Bytes::new(), Duration::from_secs(1)).await;
    assert_eq!(kind(&unknown), FailureKind::Dns);
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_and_one_of_a_given_authority_is_not() {
    let (certificate, receiver) = Receiver::start_tls(&["localhost"], |_| Act::Status(200)).await;
    let refused = post(&client(), &receiver.url(), 2_000).await;
    assert_eq!(kind(&refused), FailureKind::Tls, "{:?}", refused.result);
    let mut config = Config::new(guard());
    config.extra_roots = vec![certificate];
    let client = Outbound::new(config).unwrap();
    let taken = post(&client, &receiver.url(), 2_000).await;
    assert_eq!(status(&taken), 200, "{:?}", taken.result);
    assert!(taken.timings.tls.is_some());
    let elsewhere = receiver.url().replace("localhost", "127.0.0.1");
    assert_eq!(kind(&post(&client, &elsewhere, 2_000).await), FailureKind::Tls, "the name counts");
}

#[tokio::test]
async fn the_faults_of_a_proxy_are_not_the_receivers() {
    let receiver = Receiver::start(|_| Act::Status(200)).await;
    let through = |address: String, authorization: Option<HeaderValue>| {
        let mut config = Config::new(guard());
        config.proxy = Some(Proxy { address, authorization });
        Outbound::new(config).unwrap()
    };
    let proxy = Receiver::start(|_| Act::Tunnel { login: "Basic dTpw" }).await;
    let login = Some(HeaderValue::from_static("Basic dTpw"));
    let tunnelled = post(&through(proxy.address(), login), &receiver.url(), 1_000).await;
    assert_eq!(status(&tunnelled), 200, "{:?}", tunnelled.result);
    let locked_out = post(&through(proxy.address(), None), &receiver.url(), 1_000).await;
    assert_eq!(kind(&locked_out), FailureKind::Proxy);
    assert!(locked_out.result.as_ref().unwrap_err().message.contains("407"));
    for (answer, expected) in [
        ("403 No", FailureKind::Refused),
        ("502 Bad Gateway", FailureKind::Connect),
        ("503 Unavailable", FailureKind::Connect),
        ("504 Timeout", FailureKind::ConnectTimeout),
        ("400 Bad", FailureKind::Proxy),
        ("500 Broken", FailureKind::Proxy),
    ] {
        let act = Act::Raw(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n"));
        let proxy = Receiver::start(move |_| act.clone()).await;
        let exchange = post(&through(proxy.address(), None), &receiver.url(), 1_000).await;
        assert_eq!(kind(&exchange), expected, "{answer}");
        let Verdict::Failed { signal, .. } = judge(&exchange, Timestamp::UNIX_EPOCH) else { panic!() };
        assert_eq!(signal.is_none(), expected == FailureKind::Proxy, "{answer}");
    }
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = free.local_addr().unwrap().to_string();
    drop(free);
    let down = post(&through(nowhere, None), &receiver.url(), 1_000).await;
    assert_eq!(kind(&down), FailureKind::Proxy);
    assert!(matches!(judge(&down, Timestamp::UNIX_EPOCH), Verdict::Failed { signal: None, .. }));
    assert_eq!(Proxy::parse("http://u:p@proxy.example:3128").unwrap().authorization.unwrap(), "Basic dTpw");
    assert!(Proxy::parse("https://proxy.example").is_err() && Proxy::parse("proxy").is_err());
}

#[tokio::test]
async fn a_connection_that_is_not_there_in_time_is_no_slow_answer() {
    let stuck: crate::webhooks::guard::Lookup = Arc::new(|_, _| Box::pin(std::future::pending()));
    let client = Outbound::new(Config::new(Guard::with_lookup(GuardConfig::default(), stuck))).unwrap();
    let url = guard().check("http://slow.example/").unwrap();
    let exchange = client.post(&url, HeaderMap::new(), Bytes::new(), Duration::from_millis(100)).await;
    assert_eq!((kind(&exchange), exchange.remote), (FailureKind::ConnectTimeout, None));
}

#[tokio::test]
async fn without_authorities_only_https_is_out_of_reach() {
    let config = Config::new(guard());
    let none = Err(rustls::Error::General("none were loaded".to_owned()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let connector = Connector::with_verifier(&config, provider, none).unwrap();
    let pool = Mutex::new((build(&config, &connector), Instant::now()));
    let client = Outbound(Arc::new(Inner { config, connector, pool, script: None }));
    let plain = Receiver::start(|_| Act::Status(200)).await;
    assert_eq!(status(&post(&client, &plain.url(), 1_000).await), 200);
    let (_, tls) = Receiver::start_tls(&["localhost"], |_| Act::Status(200)).await;
    let refused = post(&client, &tls.url(), 1_000).await;
    assert_eq!(kind(&refused), FailureKind::Tls);
    assert!(refused.result.unwrap_err().message.contains("webhooks.ca_file"));
}

#[tokio::test]
async fn a_name_that_changes_its_mind_after_the_check_is_connected_to_nowhere_else() {
    // The check and the first connection see one answer, the second connection another.
    let asked = Arc::new(AtomicUsize::new(0));
    let inside = Receiver::start(|_| Act::Status(200)).await;
    let port: u16 = inside.address().rsplit(':').next().unwrap().parse().unwrap();
    let counted = asked.clone();
    let lookup: crate::webhooks::guard::Lookup = Arc::new(move |_, _| {
        let n = counted.fetch_add(1, Ordering::Relaxed);
        let ip = if n == 0 { [127, 0, 0, 1] } else { [127, 0, 0, 2] };
        Box::pin(async move { Ok(vec![(ip, port).into()]) })
    });
    let allowed = GuardConfig { allowed_networks: vec!["127.0.0.1/32".parse().unwrap()] };
    let guard = Guard::with_lookup(allowed, lookup);
    let url = guard.check(&format!("http://rebind.example:{port}/")).unwrap();
    let client = Outbound::new(Config::new(guard)).unwrap();
    let post = || client.post(&url, HeaderMap::new(), Bytes::new(), Duration::from_secs(1));
    assert_eq!(status(&post().await), 200);
    assert_eq!(status(&post().await), 200, "the connection that was checked is kept");
    *client.0.pool.lock() = (build(&client.0.config, &client.0.connector), Instant::now());
    assert_eq!(kind(&post().await), FailureKind::Refused);
    assert_eq!((asked.load(Ordering::Relaxed), inside.requests().len()), (2, 2));
}

/// Answers over HTTP/2, on each connection `answers` times; then the connection is silent but stays open.
async fn http2_receiver(answers: usize) -> (CertificateDer<'static>, String, Arc<AtomicUsize>) {
    let (certificate, acceptor) = crate::webhooks::testing::acceptor(&["localhost"], &[b"h2"]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let io = hyper_util::rt::TokioIo::new(acceptor.accept(tcp).await.unwrap());
                let served = AtomicUsize::new(0);
                let service = hyper::service::service_fn(|request: Request<Incoming>| {
                    let is_silent = served.fetch_add(1, Ordering::Relaxed) >= answers;
                    async move {
                        if is_silent {
                            std::future::pending::<()>().await;
                        }
                        assert_eq!(request.version(), http::Version::HTTP_2);
                        let body = request.into_body().collect().await?.to_bytes();
                        Ok::<_, hyper::Error>(Response::new(Full::new(body)))
                    }
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service)
                    .await;
            });
        }
    });
    (certificate, url, connections)
}

#[tokio::test]
async fn http2_is_spoken_where_it_is_offered_and_one_connection_carries_many() {
    let (certificate, url, connections) = http2_receiver(usize::MAX).await;
    let mut config = Config::new(guard());
    config.extra_roots = vec![certificate];
    let client = Outbound::new(config).unwrap();
    assert_eq!(status(&post(&client, &url, 2_000).await), 200);
    let all = futures_util::future::join_all((0..32).map(|_| post(&client, &url, 2_000))).await;
    assert!(all.iter().all(|one| one.result.as_ref().is_ok_and(|answer| answer.body == "{}")));
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_http2_connection_that_has_gone_silent_is_left() {
    let (certificate, url, connections) = http2_receiver(1).await;
    let mut config = Config::new(guard());
    config.extra_roots = vec![certificate];
    let client = Outbound::new(config).unwrap();
    assert_eq!(status(&post(&client, &url, 2_000).await), 200);
    let silent = post(&client, &url, 300).await;
    assert_eq!(kind(&silent), FailureKind::HeaderTimeout);
    assert!(silent.remote.is_some() && silent.timings.connect.is_none(), "a connection of before");
    assert_eq!(status(&post(&client, &url, 2_000).await), 200, "on a new connection");
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}
