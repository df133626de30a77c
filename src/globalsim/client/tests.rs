//! Every way in which an answer can go wrong, over a real socket.

use super::{
    script::{Reply, Server, answer, json},
    *,
};
use crate::{
    clock,
    globalsim::{
        BudgetConfig, Kind, Secret,
        budget::{BURST_MAX, Class},
    },
    observability::captured::Captured,
};

const KEY: &str = "wayscloud_pat_5ecret";
const EMPTY: &str = r#"{"activity":[],"total":0,"limit":100,"offset":0}"#;

fn iccid() -> Iccid {
    Iccid::parse("8901234567890123456").unwrap()
}

fn config(server: &Server) -> Config {
    Config::new(&server.base_url, KeySource::Inline(Secret::new(KEY).unwrap()))
}

fn open(config: Config) -> Client {
    let gate = Gate::open(BudgetConfig::default(), clock::system()).unwrap();
    Client::new(config, gate, clock::system()).unwrap()
}

async fn scripted(replies: impl IntoIterator<Item = Reply>) -> (Server, Client) {
    let server = Server::start(replies).await;
    let client = open(config(&server));
    (server, client)
}

async fn ask(client: &Client) -> Result<Page<Row>, Error> {
    client.activity(Class::Tail, &ActivityQuery { limit: 100, ..ActivityQuery::default() }).await
}

/// The error that one reply leads to.
async fn failure(reply: Reply) -> Error {
    let (_server, client) = scripted([reply]).await;
    ask(&client).await.unwrap_err()
}

fn unauthorized() -> Reply {
    answer("401 Unauthorized", "", r#"{"detail":"Invalid API key"}"#)
}

#[tokio::test]
async fn the_six_requests_are_those_of_the_document() {
    let (activity, sessions) = (json(EMPTY), json(r#"{"sessions":[],"total":0}"#));
    let sim = json(r#"{"device_id":"d","sim":{"iccid":"8901234567890123456"}}"#);
    let replies = [activity.clone(), activity.clone(), sessions.clone(), sim, sessions, activity];
    let (server, client) = scripted(replies).await;
    let all = ActivityQuery {
        limit: 1000,
        offset: 200,
        event_type: Some("sim swap&x=1".into()),
        iccid: Some(iccid()),
        device_id: Some("a b/ø".into()),
        start_date: Some(jiff::civil::date(2025, 11, 4)),
        end_date: Some(jiff::civil::date(2025, 11, 5)),
    };
    client.activity(Class::Tail, &all).await.unwrap();
    let page = PageQuery { limit: 0, offset: 7, event_type: Some("connection".into()) };
    client.sim_activity(Class::Details, &iccid(), &page).await.unwrap();
    let days = SessionQuery { limit: 50, start_date: all.start_date, ..SessionQuery::default() };
    client.sim_sessions(Class::Sessions, &iccid(), &days).await.unwrap();
    client.device_sim(Class::Details, "iot_dev_abc123").await.unwrap();
    client.device_sessions(Class::Sessions, "iot_dev_abc123", &days).await.unwrap();
    client.device_activity(Class::Details, "iot_dev_abc123", &PageQuery::default()).await.unwrap();
    assert_eq!(
        server.targets(),
        [
            "/v1/globalsim/sims/activity?limit=100&offset=200&event_type=sim+swap%26x%3D1&iccid=8901234567890123456\
             &device_id=a+b%2F%C3%B8&start_date=2025-11-04&end_date=2025-11-05",
            "/v1/globalsim/sims/8901234567890123456/activity?limit=1&offset=7&event_type=connection",
            "/v1/globalsim/sims/8901234567890123456/sessions?limit=50&offset=0&start_date=2025-11-04",
            "/v1/globalsim/devices/iot_dev_abc123/sim",
            "/v1/globalsim/devices/iot_dev_abc123/sim/sessions?limit=50&offset=0&start_date=2025-11-04",
            "/v1/globalsim/devices/iot_dev_abc123/sim/activity?limit=1&offset=0",
        ]
    );
    assert_eq!(client.gate().usage().used, [1, 0, 0, 0, 2, 3], "each request takes a slot of its class");
}

#[tokio::test]
async fn the_head_of_a_request_asks_for_a_fresh_uncompressed_answer() {
    let (server, client) = scripted([json(EMPTY)]).await;
    ask(&client).await.unwrap();
    let head = server.seen()[0].to_ascii_lowercase();
    assert!(head.starts_with("get "), "{head}");
    assert!(head.contains("cache-control: no-cache\r\n"), "{head}");
    assert!(head.contains("accept: application/json\r\n"), "{head}");
    assert!(head.contains(&format!("authorization: bearer {KEY}\r\n")), "{head}");
    assert!(head.contains("user-agent: simcast/"), "{head}");
    assert!(!head.contains("accept-encoding") && !head.contains("x-api-key"), "{head}");
}

#[tokio::test]
async fn a_device_id_is_one_segment_whatever_it_holds() {
    for (id, segment) in [
        ("a/b", "a%2Fb"),
        ("../../admin", "..%2F..%2Fadmin"),
        ("100%", "100%25"),
        ("%2e%2e", "%252e%252e"),
        ("rør 7?x#y", "r%C3%B8r%207%3Fx%23y"),
        ("...", "..."),
        ("*>\\", "%2A%3E%5C"),
        ("\u{0}\n", "%00%0A"),
    ] {
        let (server, client) = scripted([json(r#"{"sim":null}"#)]).await;
        client.device_sim(Class::Details, id).await.unwrap();
        assert_eq!(server.targets(), [format!("/v1/globalsim/devices/{segment}/sim")], "{id}");
    }
    let (server, client) = scripted([]).await;
    for id in ["", ".", ".."] {
        let error = client.device_sim(Class::Details, id).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { status: 0, .. }), "{id}: {error}");
    }
    assert_eq!(server.targets().len(), 0);
}

#[tokio::test]
async fn a_page_says_what_upstream_said() {
    let body = r#"{"activity":[{"event_id":"e1","event_type":"connection","timestamp":"2025-11-05T08:00:00Z"},7],
        "total":"41","limit":20,"offset":0}"#;
    let reply = answer("200 OK", "date: Wed, 05 Nov 2025 08:00:01 GMT\r\n", body);
    let (_server, client) = scripted([reply, json("[]"), json("\u{feff}[]")]).await;
    let page = ask(&client).await.unwrap();
    assert_eq!((page.total, page.limit, page.offset), (Some(41), Some(20), Some(0)));
    assert_eq!(page.server_date, "2025-11-05T08:00:01Z".parse().ok());
    assert!(page.asked_at <= page.answered_at);
    assert_eq!(page.rows[0].as_ref().unwrap().event_id(), Some("e1"));
    assert!(page.rows[1].as_ref().unwrap_err().reason.contains("no object"));
    for bare in [ask(&client).await.unwrap(), ask(&client).await.unwrap()] {
        assert_eq!((bare.rows.len(), bare.total), (0, None));
    }
}

#[tokio::test]
async fn a_refused_style_is_replaced_once_and_remembered() {
    let (server, client) = scripted([unauthorized(), json(EMPTY), json(EMPTY)]).await;
    assert_eq!(client.auth_style_in_use(), None);
    ask(&client).await.unwrap();
    assert_eq!(client.auth_style_in_use(), Some(Style::XApiKey));
    ask(&client).await.unwrap();
    let keys: Vec<bool> =
        server.seen().iter().map(|head| head.contains(&format!("x-api-key: {KEY}"))).collect();
    assert_eq!(keys, [false, true, true]);
    assert!(!server.seen()[1].contains("authorization"), "one style at a time");
    assert_eq!(client.gate().usage().used_total, 3, "the second try takes a slot too");
}

#[tokio::test]
async fn a_key_refused_in_both_styles_costs_two_requests_once() {
    let (server, client) = scripted((0..3).map(|_| unauthorized())).await;
    let error = ask(&client).await.unwrap_err();
    assert!(
        matches!(&error, Error::Auth { tried, said } if tried == "bearer and x-api-key" && said == "Invalid API key")
    );
    assert!(!error.retryable());
    assert_eq!(ask(&client).await.unwrap_err().kind(), Kind::Auth);
    assert_eq!(server.targets().len(), 3);
}

/// A style that worked until the key was withdrawn is tried first and not once more after the other.
#[tokio::test(start_paused = true)]
async fn a_key_that_worked_and_is_withdrawn_costs_two_requests_at_most() {
    let (server, client) = scripted([json(EMPTY)].into_iter().chain((0..6).map(|_| unauthorized()))).await;
    ask(&client).await.unwrap();
    for round in 1..=3 {
        assert_eq!(ask(&client).await.unwrap_err().kind(), Kind::Auth);
        assert_eq!(server.targets().len(), 1 + 2 * round);
        tokio::time::advance(Duration::from_secs(60)).await;
    }
}

#[tokio::test]
async fn a_configured_style_and_a_telling_prefix_are_kept_to() {
    let server = Server::start([unauthorized(), json(EMPTY)]).await;
    let client = open(Config { auth: AuthStyle::XApiKey, ..config(&server) });
    assert_eq!(ask(&client).await.unwrap_err().kind(), Kind::Auth);
    let key = KeySource::Inline(Secret::new("wayscloud_api_k").unwrap());
    ask(&open(Config { key, ..config(&server) })).await.unwrap();
    assert!(server.seen().iter().all(|head| head.contains("x-api-key: ")), "{:?}", server.seen());
}

#[tokio::test]
async fn a_key_that_changed_in_its_file_is_tried_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "old\n").unwrap();
    let server = Server::start([json(EMPTY), unauthorized(), json(EMPTY), json(EMPTY)]).await;
    let client = open(Config { key: KeySource::File(file.path().to_owned()), ..config(&server) });
    ask(&client).await.unwrap();
    assert!(!client.reload_key().unwrap());
    std::fs::write(file.path(), "new\n").unwrap();
    ask(&client).await.unwrap();
    std::fs::write(file.path(), "newer\n").unwrap();
    assert!(client.reload_key().unwrap());
    ask(&client).await.unwrap();
    std::fs::write(file.path(), "").unwrap();
    assert_eq!(client.reload_key().unwrap_err().kind(), Kind::Config);
    let keys: Vec<String> = (server.seen().iter())
        .filter_map(|head| head.split("authorization: Bearer ").nth(1)?.lines().next().map(str::to_owned))
        .collect();
    assert_eq!(keys, ["old", "old", "new", "newer"]);
}

#[tokio::test]
async fn a_missing_scope_is_told_apart_from_a_wrong_style() {
    let forbidden = || answer("403 Forbidden", "", r#"{"detail":{"msg":"scope sims:read is missing"}}"#);
    // Before anything was accepted, 403 may mean that the other header was expected.
    let (server, client) = scripted([forbidden(), json(EMPTY), forbidden()]).await;
    ask(&client).await.unwrap();
    let error = ask(&client).await.unwrap_err();
    assert_eq!((error.kind(), server.targets().len()), (Kind::Forbidden, 3));
    assert!(error.to_string().contains("scope sims:read is missing"), "{error}");
    let (_server, client) = scripted([forbidden(), unauthorized()]).await;
    assert_eq!(ask(&client).await.unwrap_err().kind(), Kind::Forbidden);
}

#[tokio::test]
async fn retry_after_is_read_in_both_forms() {
    let date = "date: Wed, 05 Nov 2025 08:00:00 GMT\r\n";
    for (headers, expected) in [
        ("retry-after: 7\r\n".to_owned(), Some(Duration::from_secs(7))),
        ("retry-after: 0.5\r\n".to_owned(), Some(Duration::from_millis(500))),
        (format!("{date}retry-after: Wed, 05 Nov 2025 08:00:42 GMT\r\n"), Some(Duration::from_secs(42))),
        (format!("{date}retry-after: Wed, 05 Nov 2025 07:00:00 GMT\r\n"), Some(Duration::ZERO)),
        ("retry-after: 999999999\r\n".to_owned(), Some(Duration::from_secs(3600))),
        ("retry-after: inf\r\n".to_owned(), Some(Duration::from_secs(3600))),
        ("retry-after: soon\r\n".to_owned(), None),
        (String::new(), None),
    ] {
        let (_server, client) = scripted([answer("429 Too Many Requests", &headers, "slow down")]).await;
        let error = ask(&client).await.unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (Kind::RateLimited, expected), "{headers}");
        assert!(error.retryable());
        let usage = client.gate().usage();
        assert_eq!((usage.allowance, usage.used_total), (200, 1), "a refused request counts");
        assert_eq!(usage.paused_for.is_some(), expected.is_some_and(|wait| !wait.is_zero()), "{headers}");
    }
}

#[tokio::test]
async fn failures_carry_status_and_what_upstream_said() {
    let long = "x".repeat(2000);
    for (status, body, kind, retryable, said) in [
        ("400 Bad Request", r#"{"error":"bad date"}"#, Kind::Invalid, false, "bad date"),
        (
            "422 Unprocessable Content",
            r#"{"detail":[{"loc":["query","limit"],"msg":"too large"},{"msg":"and so on"}]}"#,
            Kind::Invalid,
            false,
            "query.limit: too large; and so on",
        ),
        ("404 Not Found", r#"{"message":"no such SIM"}"#, Kind::NotFound, false, "no such SIM"),
        ("500 Internal Server Error", "", Kind::Server, true, ""),
        (
            "501 Not Implemented",
            r#"{"detail":"not yet available"}"#,
            Kind::Server,
            false,
            "not yet available",
        ),
        ("502 Bad Gateway", "<html>oops</html>", Kind::Server, true, "<html>oops</html>"),
        ("503 Service Unavailable", r#"{"detail":{"code":7}}"#, Kind::Server, true, r#"{"code":7}"#),
        ("504 Gateway Timeout", r#"["late"]"#, Kind::Server, true, r#"["late"]"#),
        ("500 Internal Server Error", &format!(r#"{{"detail":"{long}"}}"#), Kind::Server, true, &long[..500]),
    ] {
        let error = failure(answer(status, "", body)).await;
        assert_eq!((error.kind(), error.retryable()), (kind, retryable), "{status}");
        assert_eq!(error.status().unwrap().to_string(), status[..3]);
        let told = match error {
            Error::Invalid { said, .. } | Error::NotFound { said } | Error::Server { said, .. } => said,
            other => panic!("{other}"),
        };
        assert_eq!(told, said, "{status}");
    }
}

#[tokio::test]
async fn an_answer_of_another_api_is_no_page() {
    for body in [
        "<!doctype html><title>Login</title>",
        "",
        "null",
        "\"ok\"",
        r#"{"items":[],"total":0}"#,
        r#"{"activity":{"a":1}}"#,
        r#"{"activity":null}"#,
        r#"{"detail":"maintenance"}"#,
        r#"{"sessions":[]}"#,
        r#"[{"name":"someone"},{"name":"else"}]"#,
        r#"{"activity":[1,2,3]}"#,
        r#"{"activity":[]} trailing"#,
        &format!("{}1{}", "[".repeat(500), "]".repeat(500)),
    ] {
        let error = failure(json(body)).await;
        assert_eq!((error.kind(), error.status()), (Kind::NotGlobalSim, Some(200)), "{body}: {error}");
    }
    assert!(failure(json(r#"{"detail":"maintenance"}"#)).await.to_string().contains("maintenance"));
    for status in ["204 No Content", "206 Partial Content", "304 Not Modified"] {
        assert_eq!(failure(answer(status, "", "")).await.kind(), Kind::NotGlobalSim, "{status}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (server, client) = scripted([answer("302 Found", "location: /login\r\n", ""), json(EMPTY)]).await;
    let error = ask(&client).await.unwrap_err();
    assert_eq!((error.kind(), server.targets().len()), (Kind::NotGlobalSim, 1));
    assert!(error.to_string().contains("/login"), "{error}");
}

#[tokio::test]
async fn a_cut_answer_is_never_a_page() {
    let cut = |head: &str, body: &str| Reply::Bytes([head.as_bytes(), body.as_bytes()].concat());
    let row = r#"{"event_id":"e","event_type":"connection","timestamp":"2025-11-05T08:00:00Z"}"#;
    for reply in [
        cut("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", &format!(r#"{{"activity":[{row}]}}"#)),
        cut("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", &format!(r#"{{"activity":[{row},"#)),
        cut("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "d\r\n{\"activity\":[\r\n"),
        cut("HTTP/1.1 200 O", ""),
        cut("", ""),
        cut("SSH-2.0-OpenSSH_9.9\r\n", ""),
    ] {
        let error = failure(reply.clone()).await;
        assert_eq!((error.kind(), error.retryable()), (Kind::Transport, true), "{reply:?}: {error}");
    }
}

#[tokio::test]
async fn a_body_without_end_is_cut_off_at_the_bound() {
    let endless = Reply::Endless(b"HTTP/1.1 200 OK\r\n\r\n{".to_vec());
    let announced = Reply::Hang(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n{".to_vec());
    let failed = Reply::Endless(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{".to_vec());
    for (reply, kind) in [(endless, Kind::TooLarge), (announced, Kind::TooLarge), (failed, Kind::Server)] {
        let server = Server::start([reply]).await;
        let client = open(Config { body_bytes_max: 100_000, ..config(&server) });
        let error = ask(&client).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(client.gate().usage().used_total, 1);
    }
}

#[tokio::test]
async fn silence_ends_at_the_deadlines() {
    for (reply, total_ms, body_ms, what) in [
        (Reply::Hang(Vec::new()), 100, 60_000, "answer"),
        (
            Reply::Hang(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec()),
            60_000,
            100,
            "finish its answer",
        ),
    ] {
        let server = Server::start([reply]).await;
        let total_timeout = Duration::from_millis(total_ms);
        let body_timeout = Duration::from_millis(body_ms);
        let client = open(Config { total_timeout, body_timeout, ..config(&server) });
        let error = ask(&client).await.unwrap_err();
        assert!(matches!(&error, Error::Timeout { what: w, after_ms: 100 } if *w == what), "{error}");
        assert!(error.retryable());
    }
}

#[tokio::test]
async fn nobody_there_is_a_transport_error_without_the_url() {
    let (server, client) = scripted([]).await;
    drop(server);
    // Aborting the server's task closes its listener once the task is dropped.
    tokio::task::yield_now().await;
    let error = client.sim_activity(Class::Tail, &iccid(), &PageQuery::default()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Transport, "{error}");
    assert!(!error.to_string().contains("8901234567890123456"), "{error}");
}

#[tokio::test]
async fn a_caller_in_a_hurry_is_told_that_the_budget_is_spent() {
    let (server, client) = scripted([]).await;
    let slots: Vec<_> = (0..BURST_MAX).map_while(|_| client.gate().try_acquire(Class::Tail)).collect();
    let error = ask(&client.with_slot_wait(Duration::ZERO)).await.unwrap_err();
    assert!(matches!(error, Error::BudgetExhausted { waited_ms: 0 }), "{error}");
    assert_eq!((slots.len(), server.targets().len()), (20, 0));
}

#[test]
fn a_bad_base_url_is_refused_without_being_repeated() {
    for (base, why) in [
        ("api.wayscloud.services/v1", "is no URL"),
        ("ftp://api.wayscloud.services", "must be http"),
        ("https://user:hunter2@api.wayscloud.services", "user or password"),
        ("https://api.wayscloud.services?key=hunter2", "query or a fragment"),
    ] {
        let gate = Gate::open(BudgetConfig::default(), clock::system()).unwrap();
        let config = Config::new(base, KeySource::Inline(Secret::new(KEY).unwrap()));
        let error = Client::new(config, gate, clock::system()).unwrap_err();
        let text = error.to_string();
        assert!(error.kind() == Kind::Config && text.contains(why) && !text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn https_is_possible() {
    let gate = Gate::open(BudgetConfig::default(), clock::system()).unwrap();
    let config = Config::new(DEFAULT_BASE_URL, KeySource::Inline(Secret::new(KEY).unwrap()));
    Client::new(config, gate, clock::system()).unwrap();
}

#[tokio::test]
async fn the_key_is_in_no_log_error_or_debug_text() {
    let (logged, _guard) = Captured::start();
    let echo = format!(r#"{{"detail":"key {KEY} is not valid"}}"#);
    let page = format!("<p>{KEY}</p>");
    let (server, client) = scripted([
        answer("401 Unauthorized", "", &echo),
        answer("429 Too Many Requests", "", &echo),
        json(&page),
        answer("302 Found", &format!("location: /?k={KEY}\r\n"), ""),
        json(EMPTY),
    ])
    .await;
    let mut shown = format!("{client:?} {:?}", config(&server));
    for _ in 0..4 {
        match ask(&client).await {
            Err(error) => shown.push_str(&format!("{error} {error:?}")),
            Ok(page) => shown.push_str(&format!("{page:?}")),
        }
    }
    assert!(server.seen().iter().all(|head| head.contains(KEY)), "it is sent");
    assert!(shown.contains("key *** is not valid") && !shown.contains("5ecret"), "{shown}");
    let logged = logged.text();
    assert!(logged.contains("upstream refused a request for its rate"), "{logged}");
    assert!(!logged.contains("5ecret"), "{logged}");
}
