//! Several subscriptions on one stream: commands, their own failures, fairness, heartbeats.

use http_body_util::BodyExt as _;
use prost::Message as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::*;
use crate::proto::{
    AddSubscription, InteractRequest, InteractResponse, Ping, RemoveSubscription, UpdateSubscription,
    interact_request::Command, interact_response::Control, subscribe_request::Start,
};

struct Session {
    commands: mpsc::Sender<InteractRequest>,
    responses: tonic::Streaming<InteractResponse>,
}

impl Session {
    async fn open(mut client: EventServiceClient<Channel>) -> Self {
        let (commands, requests) = mpsc::channel(64);
        let responses = soon(client.interact(ReceiverStream::new(requests))).await.unwrap().into_inner();
        Self { commands, responses }
    }

    async fn send(&self, id: &str, command: Command) {
        self.commands.send(InteractRequest { id: id.into(), command: Some(command) }).await.unwrap();
    }

    async fn next(&mut self) -> InteractResponse {
        soon(self.responses.message()).await.unwrap().expect("the stream has ended")
    }

    /// Sends a command and gives its answer; events on the way are dropped.
    async fn ask(&mut self, id: &str, command: Command) -> InteractResponse {
        self.send(id, command).await;
        loop {
            let response = self.next().await;
            if response.request_id == id {
                return response;
            }
        }
    }

    async fn error(&mut self, command: Command) -> (String, String) {
        let response = self.ask("e", command).await;
        let Some(Control::Error(error)) = response.control else { panic!("{response:?}") };
        assert!(!error.message.is_empty());
        (error.code, error.field)
    }
}

fn add(name: &str, types: &[&str], start: Option<Start>) -> Command {
    let event_type = types.iter().map(|t| (*t).to_owned()).collect();
    let filter = Some(proto::Filter { event_type, ..Default::default() });
    let request = Some(SubscribeRequest { filter, start, ..Default::default() });
    Command::Add(AddSubscription { subscription_id: name.into(), request })
}

fn update(name: &str, event_type: &str) -> Command {
    let filter = Some(proto::Filter { event_type: vec![event_type.into()], ..Default::default() });
    Command::Update(UpdateSubscription { subscription_id: name.into(), filter })
}

fn remove(name: &str) -> Command {
    Command::Remove(RemoveSubscription { subscription_id: name.into() })
}

fn ids(response: &InteractResponse) -> Vec<String> {
    response.events.iter().map(|event| event.id.clone()).collect()
}

#[tokio::test]
async fn subscriptions_come_change_and_go() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..6).await;
    let mut session = Session::open(gateway.client().await).await;
    let opened = session.ask("1", add("a", &["connection"], Some(Start::FromEarliest(true)))).await;
    assert_eq!(opened.subscription_id, "a");
    assert_eq!(cursor_of(&opened.cursor).seq, 0);
    assert!(matches!(opened.control, Some(Control::Opened(_))));
    let batch = session.next().await;
    assert_eq!((batch.subscription_id.as_str(), batch.request_id.as_str()), ("a", ""));
    assert_eq!(ids(&batch), ["evt_0", "evt_3"]);
    let caught_up = session.next().await;
    assert!(matches!(caught_up.control, Some(Control::CaughtUp(_))));
    assert_eq!(caught_up.subscription_id, "a");

    let pong = session.ask("2", Command::Ping(Ping {})).await;
    assert!(matches!(pong.control, Some(Control::Pong(_))) && pong.subscription_id.is_empty());

    let updated = session.ask("3", update("a", "sim_swap")).await;
    let Some(Control::Updated(control)) = &updated.control else { panic!("{updated:?}") };
    assert!(control.warnings[0].contains("sim_swap"));
    let updated = session.ask("3", update("a", "disconnection")).await;
    assert!(matches!(updated.control, Some(Control::Updated(_))));
    assert_eq!(cursor_of(&updated.cursor).seq, 6, "in place: nothing of the past comes again");
    gateway.append(6..12).await;
    assert_eq!(ids(&session.next().await), ["evt_7", "evt_10"]);
    let list = gateway.context.registry.list(None, 12, |seq| seq.to_string());
    assert_eq!(list[0]["subscriptions"][0]["sub"], "a");
    assert_eq!(list[0]["subscriptions"][0]["filter"], json!({"event_type": ["disconnection"]}));

    let removed = session.ask("4", remove("a")).await;
    assert!(matches!(removed.control, Some(Control::Removed(_))));
    assert!(cursor_of(&removed.cursor).seq >= 11);
    assert_eq!(session.error(remove("a")).await, ("sub_unknown".into(), "subscription_id".into()));
    drop(session.commands);
    assert!(soon(session.responses.message()).await.unwrap().is_none(), "nothing left: a clean end");
}

#[tokio::test]
async fn what_goes_wrong_is_the_commands_alone() {
    let limits = Limits { subscriptions_per_connection: 2, ..Limits::default() };
    let gateway = Gateway::start(Setup { limits, ..Default::default() });
    let mut session = Session::open(gateway.client().await).await;
    session.ask("1", add("a", &[], None)).await;
    let text = |code: &str, field: &str| (code.to_owned(), field.to_owned());
    assert_eq!(session.error(add("a", &[], None)).await, text("sub_exists", "subscription_id"));
    assert_eq!(
        session.error(add("no spaces", &[], None)).await,
        text("invalid_parameter", "subscription_id")
    );
    assert_eq!(
        session.error(add("b", &[""], None)).await,
        text("invalid_filter", "request.filter.event_type")
    );
    let garbage = Some(Start::After("x".into()));
    assert_eq!(session.error(add("b", &[], garbage)).await, text("invalid_cursor", "request.after"));
    assert_eq!(session.error(update("zzz", "a")).await, text("sub_unknown", "subscription_id"));
    assert_eq!(session.error(update("a", "")).await, text("invalid_filter", "filter.event_type"));
    let foreign = Cursor { incarnation: 1, seq: 1, tag: 1 };
    let expired = session.ask("2", add("b", &[], Some(Start::After(foreign.to_string())))).await;
    let Some(Control::Error(error)) = &expired.control else { panic!("{expired:?}") };
    assert_eq!(error.code, "cursor_expired");
    assert_eq!(expired.cursor, gateway.log().cursor_at(0).to_string(), "where reading can start");
    // None of the refused has taken the second place.
    assert!(matches!(session.ask("3", add("b", &[], None)).await.control, Some(Control::Opened(_))));
    assert_eq!(session.error(add("c", &[], None)).await, text("subscription_limit", "subscription_id"));
    session.commands.send(InteractRequest { id: "4".into(), command: None }).await.unwrap();
    while session.next().await.request_id != "4" {}
    gateway.append(0..1).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let response = session.next().await;
        if !response.events.is_empty() {
            seen.push(response.subscription_id);
        }
    }
    seen.sort();
    assert_eq!(seen, ["a", "b"], "the good ones go on");
}

#[tokio::test]
async fn a_closed_request_side_keeps_what_is_subscribed() {
    let gateway = Gateway::start(Setup::default());
    let mut session = Session::open(gateway.client().await).await;
    session.ask("1", add("a", &[], None)).await;
    drop(session.commands);
    assert!(matches!(
        soon(session.responses.message()).await.unwrap().unwrap().control,
        Some(Control::CaughtUp(_))
    ));
    gateway.append(0..1).await;
    assert_eq!(ids(&soon(session.responses.message()).await.unwrap().unwrap()), ["evt_0"]);
}

#[tokio::test]
async fn subscriptions_take_turns() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..5000).await;
    let mut session = Session::open(gateway.client().await).await;
    let names = ["a", "b", "c"];
    for name in names {
        session.send(name, add(name, &[], Some(Start::FromEarliest(true)))).await;
    }
    let (mut got, mut open) = (std::collections::BTreeMap::<String, Vec<String>>::new(), 3);
    let mut first = None;
    while open > 0 {
        let response = session.next().await;
        open -= usize::from(matches!(response.control, Some(Control::CaughtUp(_))));
        if open == 2 && first.is_none() {
            first = Some(got.clone());
        }
        if !response.events.is_empty() {
            got.entry(response.subscription_id.clone()).or_default().extend(ids(&response));
        }
    }
    let all = oracle(gateway.log(), json!({}), 0);
    for name in names {
        assert_eq!(got[name], all, "{name}");
    }
    // How far each had come by then depends on whose read of the log ended first, so on the machine.
    let served: Vec<_> = first.iter().flatten().map(|(name, ids)| (name.as_str(), ids.len())).collect();
    assert!(served.len() == names.len(), "all were served while the first was: {served:?}");
}

/// Commands and batches that are all ready at once, which a network can't promise: so without one.
#[tokio::test]
async fn commands_and_subscriptions_alternate() {
    let gateway = Gateway::start(Setup::default());
    let mut requests = Vec::new();
    let subscriptions = [add("a", &[], None), add("b", &[], None)];
    for command in subscriptions.into_iter().chain((0..20).map(|_| Command::Ping(Ping {}))) {
        let request = InteractRequest { id: "x".into(), command: Some(command) };
        requests.push(0);
        requests.extend_from_slice(&(request.encoded_len() as u32).to_be_bytes());
        requests.extend(request.encode_to_vec());
    }
    let request = http::Request::new(Body::new(http_body_util::Full::from(requests)));
    let call = Call::admit(&gateway.context, &request, Role::Read).unwrap();
    let requests = frame::requests(request).unwrap();
    let frames = crate::frontends::grpc::interact::open(gateway.context.clone(), call, requests).unwrap();
    let mut body = frame::FrameBody::new(frames);
    let (mut opened, mut pongs, mut a, mut b) = (0, 0_i32, 0_i32, 0_i32);
    while pongs < 20 || a < 20 || b < 20 {
        let piece = soon(body.frame()).await.unwrap().unwrap().into_data().unwrap();
        let response = InteractResponse::decode(&piece[5..]).unwrap();
        match (&response.control, response.subscription_id.as_str()) {
            (Some(Control::Opened(_)), _) => opened += 1,
            (Some(Control::Pong(_)), _) => pongs += 1,
            (None, "a") => a += response.events.len() as i32,
            (None, "b") => b += response.events.len() as i32,
            _ => {}
        }
        if opened == 2 && gateway.log().bounds().last_seq == 0 {
            for event in 0..20 {
                gateway.append(event..event + 1).await;
            }
        }
        assert!((a - b).abs() <= 2, "{a} of a, {b} of b");
        assert!(pongs == 20 || (pongs - a - b).abs() <= 4, "{pongs} pongs, {} events", a + b);
    }
    assert_eq!((opened, pongs, a, b), (2, 20, 20, 20));
}

#[tokio::test(start_paused = true)]
async fn each_subscription_beats_in_its_own_time_and_an_empty_stream_too() {
    let gateway = Gateway::start(Setup::default());
    let mut session = Session::open(gateway.pipe_client().await).await;
    let beat = session.next().await;
    assert!(matches!(beat.control, Some(Control::Heartbeat(_))), "{beat:?}");
    assert!(beat.subscription_id.is_empty() && beat.cursor.is_empty());
    for (name, seconds) in [("slow", 10), ("fast", 2)] {
        let heartbeat_interval = Some(prost_types::Duration { seconds, nanos: 0 });
        let filter = Some(proto::Filter { event_type: vec!["location_update".into()], ..Default::default() });
        let request = Some(SubscribeRequest { filter, heartbeat_interval, ..Default::default() });
        session.ask(name, Command::Add(AddSubscription { subscription_id: name.into(), request })).await;
    }
    gateway.append(0..4).await;
    let (mut fast, mut slow) = (0, 0);
    while slow < 2 {
        let response = session.next().await;
        if let Some(Control::Heartbeat(_)) = response.control {
            assert_eq!(cursor_of(&response.cursor).seq, 4, "evaluated, nothing matched");
            match response.subscription_id.as_str() {
                "fast" => fast += 1,
                "slow" => slow += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!((8..=10).contains(&fast), "{fast} in 20 s");
}

#[tokio::test]
async fn draining_and_tokens_end_the_whole_stream() {
    let gateway = Gateway::start(Setup { tokens: vec![token("good")], ..Default::default() });
    let mut client = gateway.client().await;
    let nothing = || tokio_stream::iter(Vec::<InteractRequest>::new());
    let refused = soon(client.interact(nothing())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let (commands, requests) = mpsc::channel(1);
    let opening = client.interact(authorized(ReceiverStream::new(requests), "good"));
    let mut session = Session { commands, responses: soon(opening).await.unwrap().into_inner() };
    session.ask("1", add("a", &[], None)).await;
    gateway.context.draining.cancel();
    let ended = loop {
        match soon(session.responses.message()).await {
            Ok(Some(response)) => {
                let expected = matches!(response.control, Some(Control::CaughtUp(_) | Control::Draining(_)));
                assert!(expected, "{response:?}");
            }
            Ok(None) => panic!("no status"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
    assert_eq!(gateway.context.registry.connections(), 0);
}
