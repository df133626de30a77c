//! What is checked before routing, and what every answer carries.

use super::*;

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused_on_every_path() {
    let router = filled().http();
    for (host, expected) in
        [("localhost:8080", 200), ("gateway.example", 200), ("evil.example", 403), ("", 400)]
    {
        let answer = send(&router, "GET", "/v1/stream", &[("host", host)]).await;
        assert_eq!(answer.status.as_u16(), expected, "{host:?}: {}", answer.text);
        if expected != 200 {
            assert_eq!(answer.error().3.as_deref(), Some("host"));
        }
    }
    for (method, target) in
        [("GET", "/"), ("GET", "/v1/events"), ("POST", "/v1/tickets"), ("GET", "/nothing")]
    {
        let answer = send(&router, method, target, &[("origin", "https://evil.example")]).await;
        let (status, code, _, field) = answer.error();
        assert_eq!((status, code.as_str(), field.as_deref()), (403, "forbidden", Some("origin")), "{target}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{target}");
    }
    let same = [("origin", "http://localhost:8080")];
    let answer = send(&router, "POST", "/v1/tickets", &same).await;
    assert_eq!(answer.status.as_u16(), 201);
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn listed_origins_get_cors_headers_and_a_preflight() {
    let fixture = Fixture::new(vec![token("reader", &[Role::Read])]);
    let router = fixture.http();
    let origin = ("origin", "https://console.example");
    let asked = ("access-control-request-method", "GET");
    let answer = send(&router, "OPTIONS", "/v1/events", &[origin, asked]).await;
    assert_eq!(answer.status.as_u16(), 204);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://console.example");
    assert!(answer.headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert!(answer.headers["vary"].to_str().unwrap().contains("origin"));
    let answer = send(&router, "GET", "/v1/events", &[origin]).await;
    assert_eq!(answer.status.as_u16(), 401, "a preflight does not replace the token");
    assert_eq!(answer.headers["access-control-allow-origin"], "https://console.example");
    let evil = [("origin", "https://evil.example"), asked];
    assert_eq!(send(&router, "OPTIONS", "/v1/events", &evil).await.status.as_u16(), 403);
}

#[tokio::test]
async fn a_draining_gateway_says_when_to_come_back() {
    let fixture = filled();
    let router = fixture.http();
    fixture.context.draining.cancel();
    let answer = get(&router, "/v1/events").await;
    assert_eq!((answer.status.as_u16(), answer.error().1.as_str()), (503, "draining"));
    assert_eq!(answer.headers["retry-after"], "1");
}

#[tokio::test]
async fn requests_have_ids_that_errors_repeat() {
    let router = filled().http();
    let answer = get(&router, "/nothing").await;
    let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.json()["error"]["request_id"], id.as_str());
    assert_ne!(get(&router, "/nothing").await.headers["x-request-id"], id.as_str());
    let answer = send(&router, "GET", "/nothing", &[("x-request-id", "mine-1")]).await;
    assert_eq!(answer.json()["error"]["request_id"], "mine-1");
    let answer = send(&router, "GET", "/v1/stream", &[("x-request-id", "a b\"<")]).await;
    assert_ne!(answer.headers["x-request-id"], "a b\"<");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
}
