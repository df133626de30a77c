//! `tail` against the gateway's own WebSocket, over sockets, with a log that the test fills.

use std::{net::SocketAddr, ops::Range, time::Duration};

use tokio::{sync::watch, task::JoinHandle};

use super::*;
use crate::{
    auth::Role,
    frontends::{
        http,
        listener::{Deadlines, Listener, Protocol, Serve},
        tests_support::{Fixture, ICCIDS, Sample, token},
        websocket,
    },
    hub,
};

/// Serves until the fixture stops.
fn serve(gateway: &Fixture, address: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let context = gateway.context.clone();
    let listener = Listener::bind(address, "http.listen").unwrap();
    let bound = listener.local_addr();
    tokio::spawn(context.hub.clone().run(context.stop.clone()));
    let serve = Serve {
        router: http::router(context.clone(), websocket::routes(context.clone()), axum::Router::new()),
        protocol: Protocol::Http1,
        deadlines: Deadlines::default(),
        connections: 10,
        tls: None,
        draining: context.draining.clone(),
        stop: context.stop.clone(),
    };
    (bound, tokio::spawn(listener.serve(serve)))
}

/// The hard stop, which implies the soft one.
fn halt(gateway: &Fixture) {
    gateway.context.draining.cancel();
    gateway.context.stop.cancel();
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Every third event is of another type.
fn samples(range: Range<i64>) -> Vec<Sample> {
    let kind = |n: i64| if n % 3 == 2 { "disconnection" } else { "connection" };
    range.map(|n| Sample::new(&format!("e{n}"), kind(n), ICCIDS[0], n)).collect()
}

/// Standard output that can be waited on.
#[derive(Clone)]
struct Lines(watch::Sender<String>);

impl Lines {
    fn new() -> Self {
        Self(watch::Sender::new(String::new()))
    }

    async fn reach(&self, id: &str) {
        let last = format!("\"id\":\"{id}\"");
        self.0.subscribe().wait_for(|text| text.contains(&last)).await.unwrap();
    }

    fn ids(&self) -> Vec<String> {
        let event = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        self.0.borrow().lines().map(|line| event(line)["id"].as_str().unwrap().to_owned()).collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_modify(|text| text.push_str(std::str::from_utf8(bytes).unwrap()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn args(address: SocketAddr) -> Args {
    let server = Url::parse(&format!("http://{address}")).unwrap();
    Args {
        event_type: vec!["connection".into()],
        from: Some(From::Earliest),
        json: true,
        ..Args::from_now(server)
    }
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_over_a_restart_of_the_gateway() {
    let first = Fixture::new(Vec::new());
    first.append(&samples(0..4));
    let (address, served) = serve(&first, any_port());
    let (lines, stop) = (Lines::new(), CancellationToken::new());
    let script = async {
        lines.reach("e3").await;
        first.append(&samples(4..7));
        lines.reach("e6").await;
        halt(&first);
        served.await.unwrap();
        first.append(&samples(7..11));
        let log = first.context.hub.log().clone();
        let second =
            Fixture::with(Vec::new(), |parts| parts.hub = hub::Hub::new(hub::Config::default(), log));
        let (_, served) = serve(&second, address);
        lines.reach("e10").await;
        second.append(&samples(11..14));
        lines.reach("e13").await;
        stop.cancel();
        halt(&second);
        served.await.unwrap();
    };
    let mut err = Vec::new();
    let mut out = lines.clone();
    let mut output = Output { out: &mut out, err: &mut err };
    let args = args(address);
    let rng = fastrand::Rng::with_seed(7);
    let (ended, ()) = tokio::join!(follow(&args, Format::Json, &stop, &mut output, rng), script);
    assert_eq!(ended, Ok(()));
    let expected: Vec<_> = (0..14).filter(|n| n % 3 != 2).map(|n| format!("e{n}")).collect();
    assert_eq!(lines.ids(), expected);
    let notes = String::from_utf8(err).unwrap();
    assert!(notes.contains("going on from the last event"), "{notes}");
}

#[tokio::test]
async fn what_the_gateway_will_never_accept_ends_it_with_the_gateways_words() {
    let tokens = vec![token("reader", &[Role::Read]), token("hooks", &[Role::Webhooks])];
    let gateway = Fixture::with(tokens, |parts| parts.limits.auth_timeout = Duration::from_millis(10));
    let (address, served) = serve(&gateway, any_port());
    let stop = CancellationToken::new();
    for (token, country, iccid, expected) in [
        (None, "NO", None, "give --token"),
        (Some("sct_stranger"), "NO", None, "(4401): unauthorized"),
        (Some("sct_hooks"), "NO", None, "(4403): forbidden"),
        (Some("sct_reader"), "NO", Some("12"), "(4400): invalid_filter"),
    ] {
        let args = Args {
            token: token.map(str::to_owned),
            country: vec![country.to_owned()],
            iccid: iccid.into_iter().map(str::to_owned).collect(),
            ..args(address)
        };
        let mut err = Vec::new();
        let mut output = Output { out: &mut Vec::new(), err: &mut err };
        let ended = follow(&args, Format::Json, &stop, &mut output, fastrand::Rng::with_seed(7)).await;
        let failure = ended.unwrap_err();
        assert_eq!(failure.code, super::super::EXIT_FAILURE);
        assert!(failure.message.contains(expected), "{token:?}: {}", failure.message);
        let told = format!("{}{}", failure.message, String::from_utf8(err).unwrap());
        assert!(!told.contains("sct_"), "{told}");
        assert_eq!(iccid.is_some(), told.contains("is not an ICCID"), "{told}");
    }
    halt(&gateway);
    served.await.unwrap();
}
