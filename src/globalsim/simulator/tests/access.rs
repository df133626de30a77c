//! Keys, and the limit of requests per key.

use std::time::SystemTime;

use http::header::{DATE, RETRY_AFTER};
use serde_json::json;
use tokio::time::{Instant, advance};

use super::faults::{Errors, RetryAfter};
use super::*;

async fn status(bench: &Bench, header: &str, value: &str) -> StatusCode {
    let url = format!("{}/sims/activity", bench.sim.base_url());
    reply(bench.http.get(url).header(header, value)).await.unwrap().status
}

#[tokio::test]
async fn keys_are_checked_in_the_accepted_styles() {
    let bearer = format!("Bearer {DEFAULT_API_KEY}");
    let both = bench(quiet()).await;
    assert_eq!(status(&both, "authorization", &bearer).await, StatusCode::OK);
    assert_eq!(status(&both, "x-api-key", DEFAULT_API_KEY).await, StatusCode::OK);
    assert_eq!(status(&both, "x-api-key", "wrong").await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&both, "x-other", DEFAULT_API_KEY).await, StatusCode::UNAUTHORIZED);

    let only = bench(Config { auth_styles: vec![AuthStyle::XApiKey], ..quiet() }).await;
    assert_eq!(status(&only, "authorization", &bearer).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&only, "x-api-key", DEFAULT_API_KEY).await, StatusCode::OK);
}

#[tokio::test]
async fn rotated_keys_and_missing_scopes_are_told_apart() {
    let bench = bench(quiet()).await;
    bench.sim.set_api_keys(vec!["next".to_owned()]);
    let refused = bench.get("/sims/activity").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.body["detail"].is_string());
    assert_eq!(status(&bench, "x-api-key", "next").await, StatusCode::OK);
    let errors = Errors { forbidden: true, ..Errors::default() };
    bench.sim.set_faults(Faults { errors, ..Faults::default() });
    assert_eq!(status(&bench, "x-api-key", "next").await, StatusCode::FORBIDDEN);
}

#[tokio::test(start_paused = true)]
async fn the_limit_slides() {
    let mut meter = Meter::default();
    let mut admit = |key: &str| meter.admit(key, 3, Instant::now());
    assert_eq!(admit("a"), Ok(()));
    advance(Duration::from_secs(30)).await;
    assert_eq!((admit("a"), admit("a")), (Ok(()), Ok(())));
    assert_eq!(admit("a"), Err(Duration::from_secs(30)));
    assert_eq!(admit("b"), Ok(()), "another key has its own");
    advance(Duration::from_millis(29_999)).await;
    assert_eq!(admit("a"), Err(Duration::from_millis(1)));
    advance(Duration::from_millis(1)).await;
    // Only the first slot is free; a fixed window would have freed all three.
    assert_eq!(admit("a"), Ok(()));
    assert_eq!(admit("a"), Err(Duration::from_secs(30)));
    assert_eq!(meter.admit("a", 0, Instant::now()), Err(meter::WINDOW));
    assert_eq!(meter.stats().limit_refusals, 4);
}

#[tokio::test(start_paused = true)]
async fn the_most_requests_in_any_60s_are_found_across_minutes() {
    let mut meter = Meter::default();
    let mut arrive = |count: usize| {
        for _ in 0..count {
            meter.arrived(Instant::now(), noon(), "/x", String::new());
        }
        meter.stats().max_requests_in_any_60s
    };
    assert_eq!(arrive(4), 4);
    advance(Duration::from_secs(59)).await;
    assert_eq!(arrive(5), 9);
    advance(Duration::from_secs(1)).await;
    assert_eq!(arrive(2), 9, "the first four are 60 s old");
    advance(Duration::from_secs(58)).await;
    assert_eq!(arrive(6), 13);
    advance(Duration::from_secs(600)).await;
    assert_eq!(arrive(1), 13);
}

#[tokio::test]
async fn more_than_the_limit_is_429_with_retry_after_as_switched() {
    let bench = bench(Config { requests_per_minute: 2, ..quiet() }).await;
    bench.ok("/sims/activity").await;
    bench.ok("/sims/activity").await;
    let refused = bench.get("/sims/activity").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.body["detail"].is_string());
    let seconds: u64 = refused.headers[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");

    let set = |retry_after| {
        let errors = Errors { retry_after, ..Errors::default() };
        bench.sim.set_faults(Faults { errors, ..Faults::default() });
    };
    set(RetryAfter::Date);
    let dated = bench.get("/sims/activity").await;
    let time = |name| httpdate::parse_http_date(dated.headers[name].to_str().unwrap()).unwrap();
    let wait = SystemTime::duration_since(&time(RETRY_AFTER), time(DATE)).unwrap();
    assert!((1..=62).contains(&wait.as_secs()), "{wait:?}");
    set(RetryAfter::Absent);
    assert!(!bench.get("/sims/activity").await.headers.contains_key(RETRY_AFTER));

    let stats = bench.sim.stats();
    assert_eq!((stats.requests, stats.limit_refusals), (5, 3));
    assert_eq!((stats.statuses[&200], stats.statuses[&429]), (2, 3));
    assert_eq!(stats.max_requests_in_any_60s, 5);
}

#[tokio::test]
async fn requests_are_counted_by_pattern_and_control_apart() {
    let bench = bench(quiet()).await;
    let iccid = bench.sim.fleet()[0].iccid.clone();
    bench.ok(&format!("/sims/{iccid}/activity?limit=7")).await;
    bench.ok("/sims/activity").await;
    bench.get("/sims/activity").await;
    bench.control("/stats").await;
    let stats = bench.control("/stats").await;
    assert_eq!(stats["paths"], json!({"/sims/activity": 2, "/sims/{iccid}/activity": 1}));
    assert_eq!((&stats["requests"], &stats["control_requests"]), (&json!(3), &json!(2)));
    let requests = bench.sim.requests();
    assert_eq!(requests[0].target, format!("{API_PATH}/sims/{iccid}/activity?limit=7"));
    assert_eq!(requests[0].status, 200);
}
