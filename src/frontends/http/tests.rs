//! The router without sockets: what is refused and how, and the documents.

mod document;
mod erase;
mod guard;
mod history;
mod report;
mod sims;
mod trace;

use serde_json::json;

use super::*;
use crate::{
    auth::Role,
    event::{Cursor, FieldPolicy, policy::FieldRule},
    frontends::{
        registry,
        tests_support::{
            Answer, Fixture, ICCIDS, Sample, at, filter, get, get_as, respond, send, send_body, token,
        },
    },
    hub, log,
};

fn filled() -> Fixture {
    let fixture = Fixture::new(vec![]);
    fixture.append(&[
        Sample::new("evt_1", "connection", ICCIDS[0], 1),
        Sample::new("evt_2", "disconnection", ICCIDS[1], 2),
        Sample::new("gw_3", "simcast.gap", "", 3),
    ]);
    fixture
}

#[tokio::test]
async fn every_mistake_in_a_query_is_named() {
    let router = filled().http();
    let zero = Cursor { incarnation: 7, seq: 0, tag: 0 };
    let cases = [
        (
            "/v1/events?iccid=123".to_owned(),
            "invalid_filter",
            "\"123\" is not an ICCID: 18 to 22 digits are needed, spaces and a final F are allowed",
            "iccid",
        ),
        (
            "/v1/events?icid=8947000000000000001".to_owned(),
            "invalid_parameter",
            "\"icid\" is no parameter of this path",
            "icid",
        ),
        (
            "/v1/events?after=nonsense".to_owned(),
            "invalid_cursor",
            "this is no cursor: pass one unchanged as it was received (28 characters)",
            "after",
        ),
        (
            "/v1/events?order=desc&before=nonsense".to_owned(),
            "invalid_cursor",
            "this is no cursor: pass one unchanged as it was received (28 characters)",
            "before",
        ),
        ("/v1/events?order=up".to_owned(), "invalid_parameter", "order is asc or desc, not \"up\"", "order"),
        (
            "/v1/events?limit=0".to_owned(),
            "invalid_parameter",
            "limit is a number from 1 to 1000, not \"0\"",
            "limit",
        ),
        (
            "/v1/events?limit=1001".to_owned(),
            "invalid_parameter",
            "limit is a number from 1 to 1000, not \"1001\"",
            "limit",
        ),
        (
            "/v1/events?until=soon".to_owned(),
            "invalid_parameter",
            "until is a time such as 2025-11-05T08:00:00Z, not \"soon\"",
            "until",
        ),
        (format!("/v1/events?before={zero}"), "invalid_start", "before needs order=desc", "before"),
        (
            format!("/v1/events?order=desc&after={zero}"),
            "invalid_start",
            "after does not go with order=desc, which reads from the newest event down",
            "after",
        ),
        (
            "/v1/events?order=desc&last=3".to_owned(),
            "invalid_start",
            "last does not go with order=desc, which reads from the newest event down",
            "last",
        ),
        (
            "/v1/events?from=now&last=3".to_owned(),
            "invalid_start",
            "from and last exclude each other: give one start",
            "last",
        ),
        ("/v1/stream?x=1".to_owned(), "invalid_parameter", "\"x\" is no parameter of this path", "x"),
    ];
    for (target, code, message, field) in cases {
        let answer = get(&router, &target).await;
        assert_eq!(
            answer.error(),
            (400, code.to_owned(), message.to_owned(), Some(field.to_owned())),
            "{target}"
        );
        assert_eq!(answer.headers["content-type"], "application/json", "{target}");
    }
    let answer = get(&router, "/v1/events?icid=8947000000000000001").await;
    assert_eq!(answer.json()["error"]["hint"], "did you mean iccid?");
}

#[tokio::test]
async fn wrong_methods_paths_and_bodies_are_refused_in_json() {
    let router = filled().http();
    let json_type = ("content-type", "application/json");
    let form = ("content-type", "application/x-www-form-urlencoded");
    let large = format!("{{\"x\":\"{}\"}}", "y".repeat(1024 * 1024));
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);
    let cases: [Case<'_>; 9] = [
        ("GET", "/v2/events", &[], "", 404, "not_found"),
        ("GET", "/v1/events/evt_9", &[], "", 404, "not_found"),
        ("DELETE", "/v1/events", &[], "", 405, "method_not_allowed"),
        ("GET", "/v1/tickets", &[], "", 405, "method_not_allowed"),
        ("POST", "/v1/tickets", &[form], "a=b", 415, "unsupported_media_type"),
        ("POST", "/v1/tickets", &[], "{}", 415, "unsupported_media_type"),
        ("POST", "/v1/tickets", &[json_type], "[", 400, "invalid_body"),
        ("POST", "/v1/tickets", &[json_type], "{\"ttl\":60}", 400, "invalid_body"),
        ("POST", "/v1/tickets", &[json_type], &large, 413, "too_large"),
    ];
    for (method, target, headers, body, status, code) in cases {
        let answer = send_body(&router, method, target, headers, body).await;
        let (got_status, got_code, ..) = answer.error();
        assert_eq!((got_status, got_code.as_str()), (status, code), "{method} {target} {body:.20}");
    }
    let answer = send(&router, "DELETE", "/v1/events", &[]).await;
    assert_eq!(answer.headers["allow"], "GET,HEAD");
    let long = format!("/v1/events?iccid={}", "1".repeat(16 * 1024));
    let (status, code, ..) = get(&router, &long).await.error();
    assert_eq!((status, code.as_str()), (414, "invalid_url"));
}

#[tokio::test]
async fn a_cursor_of_another_log_is_gone_and_says_what_is_kept() {
    let fixture = filled();
    let router = fixture.http();
    let (oldest, newest) = fixture.context.hub.range();
    let wrong = [
        Cursor { incarnation: 8, seq: 1, tag: 0 },
        Cursor { seq: 99, ..newest },
        Cursor { tag: newest.tag ^ 1, ..newest },
    ];
    for cursor in wrong {
        for target in [format!("/v1/events?after={cursor}"), format!("/v1/events?order=desc&before={cursor}")]
        {
            let answer = get(&router, &target).await;
            assert_eq!(answer.status.as_u16(), 410, "{target}: {}", answer.text);
            let error = &answer.json()["error"];
            assert_eq!(error["code"], "cursor_expired");
            assert_eq!(error["oldest"], oldest.to_string());
            assert_eq!(error["newest"], newest.to_string());
        }
        let answer = get(&router, &format!("/v1/events?after={cursor}&on_expired=earliest")).await;
        let page = answer.json();
        assert_eq!(page["events"].as_array().unwrap().len(), 2, "{page}");
        assert!(page["gap"]["reason"].is_string(), "{page}");
    }
}

#[tokio::test]
async fn a_cursor_older_than_what_is_kept_is_gone_unless_asked_otherwise() {
    let options = log::Options {
        incarnation: 7,
        segment_bytes: 3_000,
        retention_bytes: 6_000,
        recent_bytes: 1_500,
        ..log::Options::default()
    };
    let fixture = Fixture::with(vec![], |parts| {
        parts.hub = hub::Hub::new(hub::Config::default(), Arc::new(log::Log::in_memory_with(options)));
    });
    for n in 0..40 {
        fixture.append(&[Sample::new(&format!("evt_{n}"), "connection", ICCIDS[0], n)]);
    }
    let old = fixture.stored(1).cursor(7);
    fixture.context.hub.log().maintain(at(60)).unwrap();
    let first = fixture.context.hub.log().bounds().first_seq;
    assert!(first > 2, "nothing was removed");
    let router = fixture.http();
    let answer = get(&router, &format!("/v1/events?after={old}")).await;
    assert_eq!((answer.status.as_u16(), answer.error().1.as_str()), (410, "cursor_expired"));
    let oldest = answer.json()["error"]["oldest"].as_str().unwrap().to_owned();
    let first_id = format!("evt_{}", first - 1);
    let page = get(&router, &format!("/v1/events?after={oldest}")).await.json();
    assert_eq!(page["events"][0]["id"], first_id);
    let page = get(&router, &format!("/v1/events?after={old}&on_expired=earliest")).await.json();
    assert_eq!(page["events"][0]["id"], first_id);
    assert_eq!((&page["gap"]["reason"], &page["gap"]["lost"]), (&json!("retention"), &json!(first - 2)));
    let page = get(&router, &format!("/v1/events?after={old}&on_expired=latest")).await.json();
    assert_eq!((page["events"].as_array().unwrap().len(), &page["caught_up"]), (0, &json!(true)));
    assert_eq!(get(&router, "/v1/events/evt_0").await.status.as_u16(), 404);
}

#[tokio::test]
async fn tokens_and_roles_are_asked_for() {
    let expired = crate::auth::TokenConfig { expires: Some(at(0)), ..token("old", &[Role::Read]) };
    let fixture = Fixture::new(vec![
        token("reader", &[Role::Read]),
        token("hooks", &[Role::Webhooks]),
        token("boss", &[Role::Admin]),
        expired,
    ]);
    let router = fixture.http();
    let of = |access| routes::TABLE.iter().filter(move |route| route.access == access);
    assert!(of(Access::Public).map(|route| route.path).eq(["/", "/openapi.json", "/asyncapi.json"]));
    assert!(of(Access::Own).map(|route| route.path).eq(["/v1/events/ws", "/v1/events/sse"]));
    for route in routes::TABLE.iter().filter(|route| route.handler.is_some()) {
        let method = route.method.to_uppercase();
        let target = route.path.replace("{id}", "evt_1");
        let answer = send(&router, &method, &target, &[]).await;
        if route.access == Access::Public {
            assert_eq!(answer.status.as_u16(), 200, "{target}");
            continue;
        }
        let (status, code, ..) = answer.error();
        assert_eq!((status, code.as_str()), (401, "unauthorized"), "{target}");
        assert_eq!(answer.headers["www-authenticate"], r#"Bearer realm="simcast""#, "{target}");
        let other = if route.access == Access::Role(Role::Webhooks) { "reader" } else { "hooks" };
        let as_other = [("authorization", &*format!("Bearer sct_{other}"))];
        let (status, code, ..) = send(&router, &method, &target, &as_other).await.error();
        assert_eq!((status, code.as_str()), (403, "forbidden"), "{target}");
    }
    let status_of = |answer: Answer| answer.status.as_u16();
    assert_eq!(status_of(get_as(&router, "reader", "/v1/events").await), 200);
    assert_eq!(status_of(get_as(&router, "boss", "/v1/events").await), 403);
    assert_eq!(status_of(get_as(&router, "boss", "/v1/subscribers").await), 200);
    assert_eq!(status_of(get_as(&router, "nobody", "/v1/events").await), 401);
    let answer = get_as(&router, "old", "/v1/events").await;
    assert_eq!(answer.error().1, "token_expired");
    let challenge = answer.headers["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains(r#"error="invalid_token""#), "{challenge}");
}

#[tokio::test]
async fn one_event_is_the_stored_bytes_with_its_cursor() {
    let fixture = filled();
    let router = fixture.http();
    let answer = get(&router, "/v1/events/evt_2").await;
    assert_eq!(answer.status.as_u16(), 200);
    let expected = crate::event::json::with_cursor(&fixture.stored(2), 7);
    assert_eq!(answer.text.as_bytes(), expected);
    assert_eq!(answer.headers["content-length"], expected.len().to_string().as_str());
    assert_eq!(get(&router, "/v1/events/gw_3").await.json()["type"], "simcast.gap");
    assert_eq!(get(&router, "/v1/events/%ff").await.error().0, 400);
}

#[tokio::test]
async fn a_tokens_scope_and_policy_narrow_every_route() {
    let scoped = crate::auth::TokenConfig {
        filter: Some(filter(&json!({"iccid": [ICCIDS[0]]}))),
        ..token("partner", &[Role::Read])
    };
    let masked = crate::auth::TokenConfig {
        fields: Some(FieldPolicy { iccid: FieldRule::Last4, ..FieldPolicy::default() }),
        ..token("masked", &[Role::Read])
    };
    let fixture = Fixture::new(vec![scoped, masked]);
    fixture.append(&[
        Sample::new("evt_1", "connection", ICCIDS[0], 1),
        Sample::new("evt_2", "connection", ICCIDS[1], 2),
    ]);
    let router = fixture.http();
    for target in
        ["/v1/events", "/v1/events?order=desc", "/v1/events?last=5", "/v1/events?event_type=connection"]
    {
        let page = get_as(&router, "partner", target).await.json();
        let events = page["events"].as_array().unwrap();
        assert_eq!(events.len(), 1, "{target}: {page}");
        assert_eq!(events[0]["id"], "evt_1");
    }
    let other = format!("/v1/events?iccid={}", ICCIDS[1]);
    assert_eq!(get_as(&router, "partner", &other).await.json()["events"], json!([]));
    assert_eq!(get_as(&router, "partner", "/v1/events/evt_1").await.status.as_u16(), 200);
    let hidden = get_as(&router, "partner", "/v1/events/evt_2").await;
    let unknown = get_as(&router, "partner", "/v1/events/evt_9").await;
    assert_eq!((hidden.status.as_u16(), hidden.error()), (404, unknown.error()));
    let page = get_as(&router, "masked", "/v1/events").await;
    assert!(!page.text.contains(ICCIDS[0]), "{}", page.text);
    assert_eq!(page.json()["events"][0]["subject"], "***************0001");
    let answer = get_as(&router, "masked", &other).await;
    let (status, code, _, field) = answer.error();
    assert_eq!((status, code.as_str(), field.as_deref()), (403, "forbidden_field", Some("iccid")));
}

#[tokio::test]
async fn subscribers_are_shown_to_their_own_and_to_admins() {
    let both = [Role::Read, Role::Admin];
    let fixture =
        Fixture::new(vec![token("one", &[Role::Read]), token("two", &[Role::Read]), token("boss", &both)]);
    fixture.append(&[Sample::new("evt_1", "connection", ICCIDS[0], 1)]);
    let registry = &fixture.context.registry;
    let one = registry.connect(registry::Kind::WebSocket, "one", None).unwrap();
    let _two = registry.connect(registry::Kind::Sse, "two", None).unwrap();
    let subscription = one.subscription("default", &json!({"iccid": [ICCIDS[0]]})).unwrap();
    subscription.set_position(1);
    let router = fixture.http();
    let own = get_as(&router, "one", "/v1/subscribers").await.json();
    assert_eq!(own["connections"], 1);
    let shown = &own["subscribers"][0];
    assert_eq!((&shown["principal"], &shown["kind"]), (&json!("one"), &json!("websocket")));
    let cursor = fixture.context.hub.range().1.to_string();
    assert_eq!(shown["subscriptions"][0]["cursor"], cursor);
    assert_eq!(shown["subscriptions"][0]["lag_events"], 0);
    assert_eq!(get_as(&router, "boss", "/v1/subscribers").await.json()["connections"], 2);
}

#[tokio::test]
async fn a_ticket_is_for_its_principal_and_for_once() {
    let fixture = Fixture::new(vec![token("reader", &[Role::Read])]);
    let router = fixture.http();
    let headers = [("authorization", "Bearer sct_reader"), ("content-type", "application/json")];
    for body in ["", "{}"] {
        let answer = send_body(&router, "POST", "/v1/tickets", &headers, body).await;
        assert_eq!(answer.status.as_u16(), 201, "{}", answer.text);
        assert_eq!(answer.headers["cache-control"], "no-store");
        let shown = answer.json();
        assert_eq!(shown["expires_in_s"], 30);
        let ticket = shown["ticket"].as_str().unwrap();
        let principal = fixture.context.tickets.redeem(ticket).unwrap();
        assert_eq!(principal.name, "reader");
        assert!(fixture.context.tickets.redeem(ticket).is_none());
    }
}

#[tokio::test]
async fn the_stream_is_described() {
    let fixture = filled();
    let shown = get(&fixture.http(), "/v1/stream").await.json();
    let (oldest, newest) = fixture.context.hub.range();
    assert_eq!(shown["events"], 3);
    assert_eq!(shown["oldest_cursor"], oldest.to_string());
    assert_eq!(shown["newest_cursor"], newest.to_string());
    assert_eq!(shown["newest_time"], at(3).to_string());
    assert_eq!(shown["incarnation"], "0000000000000007");
    assert_eq!(shown["bus"]["kind"], "embedded");
    assert_eq!(shown["bus"]["writable"], true);
    assert_eq!(shown["upstream"]["state"], "ok");
    assert_eq!(shown["upstream"]["lag_seconds"].as_f64(), Some(10.0));
    assert_eq!(shown["limits"]["connections"], 10_000);
}

#[tokio::test]
async fn the_page_names_only_paths_that_exist() {
    let router = filled().http();
    let page = get(&router, "/").await;
    assert_eq!(page.status.as_u16(), 200);
    assert!(page.text.contains(env!("CARGO_PKG_VERSION")) && !page.text.contains("{{"));
    assert!(page.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    for route in routes::TABLE.iter().filter(|route| route.path != "/") {
        assert!(page.text.contains(route.path), "{}", route.path);
    }
    let mut links = 0;
    for link in page.text.split("href=\"").skip(1) {
        let target = link.split('"').next().unwrap().replace("&amp;", "&");
        assert_eq!(get(&router, &target).await.status.as_u16(), 200, "{target}");
        links += 1;
    }
    assert!(links >= 4);
}
