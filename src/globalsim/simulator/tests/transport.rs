//! Answers with an error status, answers that break on the way, and outages.

use std::io;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::faults::{Errors, Outage, OutageMode, RetryAfter, Transport};
use super::*;

const LIST: &str = "/sims/activity?limit=100";

async fn broken(transport: Transport) -> Bench {
    bench_with(Faults { transport, ..Faults::default() }).await
}

/// What comes back byte for byte, and how the connection ended.
async fn raw(bench: &Bench) -> (String, io::Result<()>) {
    let mut stream = TcpStream::connect(bench.sim.address()).await.unwrap();
    let request =
        format!("GET {API_PATH}{LIST} HTTP/1.1\r\nhost: simulator\r\nx-api-key: {DEFAULT_API_KEY}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await.map(drop);
    (String::from_utf8(bytes).unwrap(), end)
}

/// Announced and received length of the body.
fn lengths(answer: &str) -> (usize, usize) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    (length.parse().unwrap(), body.len())
}

fn is_reset(end: &io::Result<()>) -> bool {
    end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn connections_are_reset_before_an_answer() {
    let bench = broken(Transport { reset: 1.0, ..Transport::default() }).await;
    let (answer, end) = raw(&bench).await;
    assert_eq!(answer, "");
    assert!(is_reset(&end), "{end:?}");
    assert_eq!(bench.struck("reset"), 1);
}

#[tokio::test]
async fn connections_are_reset_in_the_middle() {
    let bench = broken(Transport { reset_in_body: 1.0, ..Transport::default() }).await;
    let (answer, end) = raw(&bench).await;
    assert!(is_reset(&end), "{end:?}");
    if !answer.is_empty() {
        let (announced, received) = lengths(&answer);
        assert!(received < announced);
    }
}

#[tokio::test]
async fn bodies_are_cut_short_of_their_length() {
    let bench = broken(Transport { truncate: 1.0, ..Transport::default() }).await;
    let (answer, end) = raw(&bench).await;
    assert!(end.is_ok(), "{end:?}");
    let (announced, received) = lengths(&answer);
    assert!(received > 0 && received < announced, "{received} of {announced}");
    assert!(bench.try_get(LIST).await.is_err());
    assert!(bench.sim.truth().iter().all(|event| event.first_served_at.is_none()));
}

#[tokio::test]
async fn bodies_are_cut_inside_valid_http() {
    let bench = broken(Transport { truncate_json: 1.0, ..Transport::default() }).await;
    let reply = bench.get(LIST).await;
    assert_eq!(reply.status, StatusCode::OK);
    let text = reply.body.as_str().expect("not JSON");
    assert!(text.starts_with("{\"activity\":["), "{text}");
}

#[tokio::test]
async fn html_comes_with_200() {
    let bench = broken(Transport { html: 1.0, ..Transport::default() }).await;
    let reply = bench.get(LIST).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert!(reply.headers[CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
    assert!(reply.body.as_str().unwrap().starts_with("<!DOCTYPE html>"));
}

#[tokio::test]
async fn huge_bodies_are_padded_json() {
    let bench = broken(Transport { huge: 1.0, huge_bytes: 3_000_000, ..Transport::default() }).await;
    let reply = bench.get(LIST).await;
    assert_eq!(reply.headers["content-length"], "3000000");
    assert_eq!(rows_of(&reply.body).len(), 100);
}

#[tokio::test]
async fn answers_can_never_end() {
    let bench = broken(Transport { hang: 1.0, ..Transport::default() }).await;
    let mut response = bench.request(LIST).send().await.unwrap();
    let length = response.content_length().unwrap() as usize;
    let mut received = 0;
    while let Ok(chunk) = timeout(Duration::from_millis(200), response.chunk()).await {
        received += chunk.unwrap().expect("the body ended").len();
    }
    assert_eq!(received, length / 2);
}

#[tokio::test]
async fn answers_can_never_begin() {
    let bench = broken(Transport { hang_before_headers: 1.0, ..Transport::default() }).await;
    assert!(timeout(Duration::from_millis(300), bench.get(LIST)).await.is_err());
    assert_eq!(bench.struck("hang_before_headers"), 1);
    // The client gave up, and so did the request: it counts as never answered.
    bench.sim.shutdown().await;
    assert_eq!(bench.sim.stats().statuses[&0], 1);
}

#[tokio::test(start_paused = true)]
async fn answers_are_slow_by_the_given_range() {
    let slow = Transport { slow: 1.0, slow_min_ms: 5_000, slow_max_ms: 6_000, ..Transport::default() };
    let bench = broken(slow).await;
    let began = Instant::now();
    bench.ok(LIST).await;
    let took = began.elapsed();
    assert!((5_000..6_100).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn server_errors_have_the_chosen_statuses_and_detail() {
    let bench = bench_with(Faults {
        errors: Errors { server_error: 0.5, server_error_status: vec![502, 504], ..Errors::default() },
        ..Faults::default()
    })
    .await;
    for _ in 0..40 {
        let reply = bench.get(LIST).await;
        assert!(reply.status == 200 || reply.body["detail"].is_string());
    }
    let statuses = bench.sim.stats().statuses;
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [200, 502, 504]);
    assert_eq!(bench.struck("server_error"), 40 - statuses[&200]);
}

#[tokio::test]
async fn bursts_of_429_have_their_length_and_retry_after() {
    let errors = |too_many, retry_after| Errors {
        too_many,
        too_many_burst: 3,
        too_many_retry_after_s: 7,
        retry_after,
        ..Errors::default()
    };
    let bench = bench_with(Faults { errors: errors(1.0, RetryAfter::Seconds), ..Faults::default() }).await;
    let first = bench.get(LIST).await;
    assert_eq!(first.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(first.headers[RETRY_AFTER], "7");
    bench.sim.set_faults(Faults { errors: errors(1.0, RetryAfter::Absent), ..Faults::default() });
    assert!(!bench.get(LIST).await.headers.contains_key(RETRY_AFTER));

    bench.sim.set_faults(Faults { errors: errors(0.1, RetryAfter::Seconds), ..Faults::default() });
    let mut statuses = Vec::new();
    for _ in 0..120 {
        statuses.push(bench.get(LIST).await.status.as_u16());
    }
    let runs: Vec<usize> =
        statuses.split(|status| *status == 200).map(<[u16]>::len).filter(|run| *run > 0).collect();
    assert!(runs.len() > 2, "{runs:?}");
    let whole = &runs[..runs.len() - 1];
    assert!(whole.iter().all(|run| run % 3 == 0), "{runs:?}");
    assert_eq!(bench.sim.stats().limit_refusals, 0, "not the real limit");
}

#[tokio::test(start_paused = true)]
async fn outages_begin_at_once_and_end_by_themselves() {
    let bench = bench(quiet()).await;
    bench.ok(LIST).await;
    let outage = Some(Outage { mode: OutageMode::Unavailable, for_ms: Some(10_000) });
    bench.sim.set_faults(Faults { outage, ..Faults::default() });
    assert_eq!(bench.get(LIST).await.status, StatusCode::SERVICE_UNAVAILABLE);
    sleep(Duration::from_secs(10)).await;
    bench.ok(LIST).await;
    let outage = Some(Outage { mode: OutageMode::Reset, for_ms: None });
    bench.sim.set_faults(Faults { outage, ..Faults::default() });
    assert!(bench.try_get(LIST).await.is_err());
    bench.sim.set_faults(Faults::default());
    bench.ok(LIST).await;
}

#[tokio::test(start_paused = true)]
async fn a_proxy_can_answer_with_old_pages() {
    let bench = broken(Transport { cache_ms: 10_000, ..Transport::default() }).await;
    let first = bench.get(LIST).await;
    sleep(Duration::from_secs(5)).await;
    bench.sim.inject(EventSpec::default());
    let kept = bench.get(LIST).await;
    assert_eq!((kept.body, &kept.headers["date"]), (first.body.clone(), &first.headers["date"]));
    assert_eq!(kept.headers["age"], "5");
    let fresh = reply(bench.request(LIST).header("cache-control", "no-cache")).await.unwrap();
    assert_ne!(fresh.body, first.body);
    assert_ne!(fresh.headers["date"], first.headers["date"]);
    assert_ne!(bench.get("/sims/activity").await.body, first.body, "another request");
    sleep(Duration::from_secs(20)).await;
    bench.sim.inject(EventSpec::default());
    assert_ne!(bench.get(LIST).await.body, fresh.body);
    assert_eq!(bench.struck("cache"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_can_be_deaf_to_what_the_client_wants() {
    let stubborn = Transport { cache_ms: 10_000, cache_stubborn: true, ..Transport::default() };
    let bench = broken(stubborn).await;
    let first = bench.get(LIST).await;
    sleep(Duration::from_secs(5)).await;
    bench.sim.inject(EventSpec::default());
    let kept = reply(bench.request(LIST).header("cache-control", "no-cache")).await.unwrap();
    assert_eq!((kept.body, &kept.headers["date"]), (first.body.clone(), &first.headers["date"]));
    sleep(Duration::from_secs(10)).await;
    assert_ne!(bench.get(LIST).await.body, first.body);
}
