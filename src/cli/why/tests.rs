//! `why` against the gateway's own routes over a socket, and its table.

use serde_json::json;

use super::*;
use crate::{
    auth::{Role, TokenConfig},
    event::{Event, Iccid, Provenance, Via},
    frontends::{
        http,
        listener::{Deadlines, Listener, Protocol, Serve},
        tests_support::{Fixture, ICCIDS, at, token},
        websocket,
    },
    log::Entry,
};

/// A served gateway with one event and its completed copy; gives its address.
fn gateway(tokens: Vec<TokenConfig>) -> (Fixture, Url) {
    let fixture = Fixture::new(tokens);
    let mut entries = Vec::new();
    for (id, via, asked, appended) in [("evt_1", Via::Tail, 2, 3), ("evt_1~details", Via::Details, 8, 9)] {
        let mut event = Event::new(id, "/globalsim/default".into(), "connection");
        event.event_id = Some("evt_1".into());
        event.iccid = Iccid::parse(ICCIDS[0]).ok();
        event.time = Some(at(0));
        event.provenance = Some(Provenance::new(via, at(asked), at(appended), Some(at(1))));
        let sealed = event.seal(at(appended), jiff::SignedDuration::MAX).unwrap();
        entries.push(Entry { sealed, identity: 1, content: 0 });
    }
    let context = fixture.context.clone();
    context.hub.log().append(entries).unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "http.listen").unwrap();
    let server = Url::parse(&format!("http://{}", listener.local_addr())).unwrap();
    tokio::spawn(listener.serve(Serve {
        router: http::router(context.clone(), websocket::routes(context.clone()), axum::Router::new()),
        protocol: Protocol::Http1,
        deadlines: Deadlines::default(),
        connections: 10,
        tls: None,
        draining: context.draining.clone(),
        stop: context.stop.clone(),
    }));
    (fixture, server)
}

async fn why(id: &str, server: &Url, token: Option<&str>, json: bool) -> Result<String, Failure> {
    let args = Args { id: id.into(), server: server.clone(), token: token.map(str::to_owned), json };
    let mut out = Vec::new();
    run(&args, &mut out).await.map(|()| String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn a_running_gateway_is_asked_and_its_answer_shown() {
    let (fixture, server) = gateway(vec![]);
    let table = why("evt_1", &server, None, false).await.unwrap();
    let expected = format!(
        "event       evt_1  connection  {}\n\
         happened    2025-10-09T08:53:20Z\n\
         visible     between 2025-10-09T08:53:21Z and 2025-10-09T08:53:23Z (2.0 s apart)\n\
         read        by tail, asked at 2025-10-09T08:53:22Z, 2.0 s after it happened\n\
         appended    2025-10-09T08:53:23Z, 0 ms after the answer\n\
         related     evt_1~details  appended 2025-10-09T08:53:29Z\n",
        ICCIDS[0]
    );
    assert_eq!(table, expected);
    let raw: Value = serde_json::from_str(&why("evt_1~details", &server, None, true).await.unwrap()).unwrap();
    assert_eq!((&raw["read"]["by"], &raw["related"][0]["id"]), (&json!("details"), &json!("evt_1")));
    fixture.context.stop.cancel();
}

#[tokio::test]
async fn what_the_gateway_refuses_is_said_clearly_and_without_the_token() {
    let (fixture, server) = gateway(vec![token("reader", &[Role::Read]), token("hooks", &[Role::Webhooks])]);
    for (id, token, expected) in [
        ("evt_9", Some("sct_reader"), "evt_9: no such event is kept"),
        ("a/b", Some("sct_reader"), "a/b: no such event is kept"),
        ("evt_1", None, "give --token or SIMCAST_TOKEN"),
        ("evt_1", Some("sct_stranger"), "the gateway refuses the token"),
        ("evt_1", Some("sct_hooks"), "the gateway refuses the token"),
    ] {
        let failure = why(id, &server, token, false).await.unwrap_err();
        assert_eq!(failure.code, super::super::EXIT_FAILURE);
        assert!(failure.message.contains(expected), "{token:?}: {}", failure.message);
        assert!(!failure.message.contains("sct_"), "{}", failure.message);
    }
    fixture.context.draining.cancel();
    fixture.context.stop.cancel();
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_said_with_its_address() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let server = Url::parse(&format!("http://{address}")).unwrap();
    let failure = why("evt_1", &server, None, false).await.unwrap_err();
    let said = failure.message;
    assert!(said.contains(&address.to_string()) && said.contains("is the gateway running?"), "{said}");
}

#[test]
fn what_is_not_known_is_said() {
    let trace = json!({"id": "gap_1\u{1b}[31m", "event_type": "simcast.gap", "iccid": null, "time": null,
        "visible": null, "read": null, "appended_at": "2025-10-09T08:53:23Z",
        "lag": {"source_ms": null, "gateway_ms": null}, "flags": ["late", "partial"], "related": []});
    let shown = table(&trace);
    assert!(!shown.contains('\u{1b}'), "{shown}");
    for line in ["flags       late, partial", "it is the gateway's own", "timestamp can't be read"] {
        assert!(shown.contains(line), "{shown}");
    }
    assert_eq!(duration(999), "999 ms");
    assert_eq!(duration(61_500), "1 min 1 s");
    assert_eq!(duration(7_260_000), "2 h 1 min");
    assert_eq!(after_or_before(-1_500), "1.5 s before it happened, by upstream's clock");
}
