//! The stream over real sockets, against a log that the tests fill.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::Router;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
};

use super::*;
use crate::{
    auth::TokenConfig,
    clock::TokioClock,
    event::policy::{FieldPolicy, FieldRule},
    frontends::{
        Limits, Parts, Registry,
        listener::{Deadlines, testing::Live},
        tests_support::{Fixture, ICCIDS, Sample, at, token},
    },
};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(40);

fn start_with(
    tokens: Vec<TokenConfig>,
    drain: Duration,
    deadlines: Deadlines,
    adjust: impl FnOnce(&mut Parts),
) -> Live {
    let fixture = Fixture::with(tokens, |parts| {
        parts.limits = Limits { heartbeat: LONG, ..Limits::default() };
        adjust(parts);
        parts.registry = Registry::new(&parts.limits, parts.clock.clone());
    });
    let sse = routes_with(fixture.context.clone(), drain);
    Live::start(fixture, Router::new(), sse, deadlines)
}

fn start(tokens: Vec<TokenConfig>) -> Live {
    start_with(tokens, LONG, Deadlines::default(), |_| {})
}

async fn append(live: &Live, first: usize, last: usize) {
    let samples: Vec<_> = (first..=last)
        .map(|n| Sample::new(&format!("e{n}"), "connection", ICCIDS[n % 3], n as i64))
        .collect();
    live.fixture.append(&samples);
    // Live as well: where a subscription starts and catches up does not depend on the hub's pace then.
    while live.fixture.context.hub.edge().seq < last as u64 {
        tokio::task::yield_now().await;
    }
}

/// One event as a browser sees it.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    event: Option<String>,
    id: Option<String>,
    data: Option<Value>,
}

struct Client {
    status: u16,
    headers: HashMap<String, String>,
    lines: Lines<BufReader<TcpStream>>,
}

impl Client {
    /// Speaks HTTP/1.0, so that the body comes without chunks.
    async fn open(live: &Live, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut stream = TcpStream::connect(live.addr).await.unwrap();
        let mut request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next_line().await.unwrap().unwrap()[9..12].parse().unwrap();
        let mut found = HashMap::new();
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            let Some((name, value)) = line.split_once(": ") else { break };
            found.insert(name.to_owned(), value.to_owned());
        }
        Self { status, headers: found, lines }
    }

    /// Opens a stream and takes its first message; gives where it begins.
    async fn stream(live: &Live, path: &str, headers: &[(&str, &str)]) -> (Self, String) {
        let mut client = Self::open(live, path, headers).await;
        assert_eq!(client.status, 200);
        let first = client.expect("bookmark").await;
        (client, first.id.unwrap())
    }

    /// The next event that has data; None at the end.
    async fn next(&mut self) -> Option<Seen> {
        let mut seen = Seen::default();
        loop {
            let line = self.lines.next_line().await.ok()??;
            match line.split_once(": ") {
                _ if line.is_empty() && seen.data.is_some() => return Some(seen),
                Some(("event", name)) => seen.event = Some(name.to_owned()),
                Some(("id", id)) => seen.id = Some(id.to_owned()),
                Some(("data", data)) => seen.data = Some(serde_json::from_str(data).unwrap()),
                _ => {}
            }
        }
    }

    async fn expect(&mut self, name: &str) -> Seen {
        let seen = self.next().await.unwrap();
        assert_eq!(seen.event.as_deref(), Some(name), "{seen:?}");
        seen
    }

    /// Takes events `e<first>` to `e<last>`; gives the last cursor.
    async fn events(&mut self, first: usize, last: usize) -> String {
        let mut cursor = String::new();
        for n in first..=last {
            let seen = self.next().await.unwrap();
            let data = seen.data.as_ref().unwrap();
            assert_eq!((data["id"].as_str(), &seen.event), (Some(format!("e{n}").as_str()), &None));
            cursor = seen.id.unwrap();
            assert_eq!(data["cursor"], *cursor);
        }
        cursor
    }

    /// Code and field of a refusal.
    async fn refused(self) -> (u16, String, Option<String>) {
        let mut body = String::new();
        self.lines.into_inner().read_to_string(&mut body).await.unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        let text = |name: &str| body["error"][name].as_str().map(str::to_owned);
        (self.status, text("code").unwrap(), text("field"))
    }
}

#[tokio::test]
async fn events_have_ids_and_no_names() {
    let live = start(vec![]);
    append(&live, 1, 2).await;
    let (mut client, opened_at) = Client::stream(&live, "/v1/events/sse", &[]).await;
    assert_eq!(client.headers["content-type"], "text/event-stream");
    assert_eq!(client.headers["cache-control"], "no-store");
    assert_eq!(client.headers["x-accel-buffering"], "no");
    let caught_up = client.expect("caught_up").await;
    assert_eq!(caught_up.data.unwrap(), json!({"cursor": opened_at}));
    append(&live, 3, 5).await;
    client.events(3, 5).await;
}

#[tokio::test]
async fn the_last_event_id_wins_and_is_exact() {
    let live = start(vec![]);
    append(&live, 1, 600).await;
    let (mut client, _) = Client::stream(&live, "/v1/events/sse?from=earliest", &[]).await;
    let cursor = client.events(1, 300).await;
    drop(client);
    let headers = [("last-event-id", cursor.as_str())];
    let (mut client, opened_at) = Client::stream(&live, "/v1/events/sse?from=earliest", &headers).await;
    assert_eq!(opened_at, cursor);
    client.events(301, 600).await;
    client.expect("caught_up").await;
    append(&live, 601, 601).await;
    client.events(601, 601).await;
}

#[tokio::test]
async fn names_are_given_where_asked_for() {
    let live = start(vec![]);
    append(&live, 1, 1).await;
    let (mut client, _) = Client::stream(&live, "/v1/events/sse?named=1&last=1", &[]).await;
    assert_eq!(client.expect("connection").await.data.unwrap()["id"], "e1");
}

#[tokio::test]
async fn a_quiet_stream_has_bookmarks_that_can_be_resumed_from() {
    let live = start_with(vec![], LONG, Deadlines::default(), |parts| parts.limits.heartbeat = SHORT);
    let path = format!("/v1/events/sse?iccid={}", ICCIDS[0]);
    let (mut client, _) = Client::stream(&live, &path, &[]).await;
    client.expect("caught_up").await;
    append(&live, 1, 2).await;
    let newest = live.fixture.stored(2).cursor(7).to_string();
    let bookmark = loop {
        let bookmark = client.expect("bookmark").await;
        if bookmark.id.as_ref() == Some(&newest) {
            break bookmark.data.unwrap();
        }
    };
    assert_eq!(bookmark, json!({"cursor": newest, "seen_until": at(3590).to_string(), "upstream": "ok"}));
    append(&live, 3, 3).await;
    loop {
        let seen = client.next().await.unwrap();
        if seen.event.is_none() {
            assert_eq!(seen.data.unwrap()["id"], "e3");
            break;
        }
    }
}

#[tokio::test]
async fn a_cursor_of_another_log_leads_to_a_gap() {
    let live = start(vec![]);
    append(&live, 1, 2).await;
    let foreign = Cursor { incarnation: 99, seq: 1, tag: 0 }.to_string();
    let headers = [("last-event-id", foreign.as_str())];
    let (mut client, opened_at) = Client::stream(&live, "/v1/events/sse", &headers).await;
    let gap = client.expect("gap").await;
    assert_eq!(gap.id, Some(opened_at));
    let data = gap.data.unwrap();
    assert_eq!((&data["from"], &data["reason"]), (&json!(foreign), &json!("incarnation")));
    client.events(1, 2).await;
    let refused = Client::open(&live, "/v1/events/sse?on_expired=fail", &headers).await;
    assert_eq!(refused.refused().await, (410, "cursor_expired".into(), Some("after".into())));
}

#[tokio::test]
async fn mistakes_are_refused_by_status() {
    let fields = FieldPolicy { iccid: FieldRule::Drop, ..FieldPolicy::default() };
    let blind = TokenConfig { fields: Some(fields), ..token("blind", &[Role::Read]) };
    let live = start(vec![token("a", &[Role::Read]), token("hooks", &[Role::Webhooks]), blind]);
    let by_sim = format!("?iccid={}", ICCIDS[0]);
    for (query, name, status, code, field) in [
        ("", "", 401, "unauthorized", None),
        ("", "b", 401, "unauthorized", None),
        ("?ticket=x", "", 401, "unauthorized", None),
        ("", "hooks", 403, "forbidden", None),
        (by_sim.as_str(), "blind", 403, "forbidden_field", Some("iccid")),
        ("?iccid=12", "a", 400, "invalid_filter", Some("iccid")),
        ("?after=x", "a", 400, "invalid_cursor", Some("after")),
        ("?named=yes", "a", 400, "invalid_parameter", Some("named")),
        ("?evnt_type=x", "a", 400, "invalid_parameter", Some("evnt_type")),
        ("?token=sct_a", "", 400, "invalid_parameter", Some("token")),
    ] {
        let value = format!("Bearer sct_{name}");
        let headers = if name.is_empty() { vec![] } else { vec![("authorization", value.as_str())] };
        let client = Client::open(&live, &format!("/v1/events/sse{query}"), &headers).await;
        assert_eq!(client.refused().await, (status, code.into(), field.map(str::to_owned)), "{query} {name}");
    }
    let headers = [("authorization", "Bearer sct_a"), ("last-event-id", "x")];
    let client = Client::open(&live, "/v1/events/sse", &headers).await;
    assert_eq!(client.refused().await, (400, "invalid_cursor".into(), Some("Last-Event-ID".into())));
}

#[tokio::test]
async fn a_ticket_becomes_a_cookie_that_reconnects_bring() {
    let live = start(vec![token("a", &[Role::Read])]);
    let principal = live.fixture.context.auth.authenticate(Some("sct_a")).unwrap();
    let ticket = live.fixture.context.tickets.issue(principal).unwrap();
    let path = format!("/v1/events/sse?ticket={ticket}");
    let (client, _) = Client::stream(&live, &path, &[]).await;
    let cookie = &client.headers["set-cookie"];
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Max-Age=3600; Path=/v1/events; HttpOnly; SameSite=Strict");
    // The URL is the same again, its ticket used up.
    let pair = format!("other=1; {pair}");
    let (again, _) = Client::stream(&live, &path, &[("cookie", &pair)]).await;
    assert!(!again.headers.contains_key("set-cookie"));
    let refused = Client::open(&live, &path, &[]).await;
    assert_eq!(refused.refused().await.0, 401);
}

#[tokio::test]
async fn a_drain_is_announced_and_ends_the_stream() {
    let mut live = start_with(vec![], SHORT, Deadlines::default(), |_| {});
    let (mut client, _) = Client::stream(&live, "/v1/events/sse", &[]).await;
    client.expect("caught_up").await;
    live.fixture.context.draining.cancel();
    let draining = client.expect("draining").await;
    assert_eq!((draining.id, draining.data), (None, Some(json!({"reconnect_within_ms": 40}))));
    assert_eq!(client.next().await, None);
    (&mut live.server).await.unwrap();
    assert!(!live.fixture.context.stop.is_cancelled());
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let ends = TokenConfig { expires: Some(at(3600) + SHORT), ..token("ends", &[Role::Read]) };
    let live = start_with(vec![ends], LONG, Deadlines::default(), |parts| {
        parts.clock = Arc::new(TokioClock::starting_at(at(3600)));
    });
    let headers = [("authorization", "Bearer sct_ends")];
    let (mut client, _) = Client::stream(&live, "/v1/events/sse", &headers).await;
    client.expect("caught_up").await;
    assert_eq!(client.next().await, None);
    live.connections(<[Value]>::is_empty).await;
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut() {
    let deadlines = Deadlines { write: SHORT, ..Deadlines::default() };
    let live = start_with(vec![], LONG, deadlines, |_| {});
    for batch in 0..120 {
        append(&live, batch * 250 + 1, (batch + 1) * 250).await;
    }
    let (client, _) = Client::stream(&live, "/v1/events/sse?from=earliest", &[]).await;
    live.connections(<[Value]>::is_empty).await;
    drop(client);
}
