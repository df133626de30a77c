//! Webhooks of whole gateways: to a receiver here, to the receivers of `docs/WEBHOOKS.md` with the official libraries,
//! and over kills of the real process.

mod document_in_rust;
mod handover;
mod moved;
mod policy;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use serde_json::{Value, json};
use simcast::{globalsim::simulator::Config, proto};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
};

use super::{
    clients::Seen,
    support::{Bus, ChildGateway, PATIENCE, World, http, on_both_buses, settled},
};

/// What a receiver here got: `webhook-id` and body, in order.
type Inbox = Arc<Mutex<Vec<(String, Value)>>>;

/// A receiver that takes everything.
async fn receiver() -> (String, Inbox) {
    let inbox = Inbox::default();
    let take = |State(inbox): State<Inbox>, headers: HeaderMap, body: Bytes| async move {
        let id = headers["webhook-id"].to_str().unwrap().to_owned();
        inbox.lock().unwrap().push((id, serde_json::from_slice(&body).unwrap()));
    };
    let router = Router::new().route("/hook", post(take)).with_state(inbox.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, inbox)
}

async fn ask(gateway: SocketAddr, path: &str, body: Value) -> Value {
    let url = format!("http://{gateway}/v1/webhooks{path}");
    let request = http().post(url).header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Makes a webhook for what matches, from the oldest event on, and waits for the first `count`, in order.
pub async fn received(gateway: SocketAddr, filter: Value, count: usize) -> Vec<Seen> {
    let (url, inbox) = receiver().await;
    let made = json!({ "url": url, "filter": filter, "from": "earliest", "ordering": "strict" });
    ask(gateway, "", made).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let got = inbox.lock().unwrap().clone();
        if got.len() >= count {
            assert!(got.iter().all(|(id, event)| event["id"].as_str() == Some(id)));
            return got.iter().map(|(_, event)| Seen::of(event)).collect();
        }
        assert!(tokio::time::Instant::now() < deadline, "{} of {count}", got.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAAAAA=";

/// The block of code in the document that begins with a line of this language.
fn from_the_document(language: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/WEBHOOKS.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (_, rest) = document.split_once(&format!("```{language}\n")).expect("the document has such a block");
    rest.split_once("```").unwrap().0.to_owned()
}

/// Runs a receiver of the document until it has printed the ids of `count` events.
async fn official(gateway: SocketAddr, program: &str, language: &str, count: usize) -> Vec<String> {
    let variable = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: run tests/run, which installs the clients"))
    };
    // Node looks for modules beside the script.
    let place = match language {
        "js" => PathBuf::from(variable("SIMCAST_TEST_NODE_DIR")),
        _ => std::env::temp_dir(),
    };
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let extension = if language == "js" { "mjs" } else { "py" };
    let script = place.join(format!("simcast-receiver-{port}.{extension}"));
    std::fs::write(&script, from_the_document(language)).unwrap();
    let mut child = Command::new(variable(program))
        .arg(&script)
        .env("SIMCAST_WEBHOOK_SECRET", SECRET)
        .env("PORT", port.to_string())
        .stdout(Stdio::piped())
        // Python's server tells every request there.
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let url = format!("http://127.0.0.1:{port}/hook");
    let made =
        ask(gateway, "", json!({ "url": url, "from": "earliest", "secret": SECRET, "ordering": "strict" }))
            .await;
    // Another key's signature is refused by the library, which is what makes the rest mean something.
    let rotated = json!({ "overlap_s": 0 });
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ids = Vec::new();
    while ids.len() < count {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("the receiver is silent");
        ids.push(line.unwrap().expect("the receiver ended"));
    }
    let id = made["id"].as_str().unwrap();
    ask(gateway, &format!("/{id}/rotate-secret"), rotated).await;
    let refused = ask(gateway, &format!("/{id}/test"), json!({})).await;
    assert_eq!(
        (&refused["delivered"], &refused["attempt"]["status"]),
        (&json!(false), &json!(401)),
        "{refused}"
    );
    std::fs::remove_file(script).unwrap();
    ids
}

async fn official_libraries_verify_what_the_gateway_signs(bus: Bus) {
    let world = World::on(
        bus,
        Config { sims: 20, events_per_second: 20.0, history: Duration::ZERO, ..Config::default() },
    )
    .await;
    let gateway = world.gateway().await;
    let count = 100;
    let (python, node) = tokio::join!(
        official(gateway.http, "SIMCAST_TEST_PYTHON", "python", count),
        official(gateway.http, "SIMCAST_TEST_NODE", "js", count),
    );
    world.sim.pause();
    let events = settled(&world, gateway.http).await;
    let expected: Vec<&str> = events.iter().take(count).map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(python[..count], expected);
    assert_eq!(node[..count], expected);
    gateway.stop().await;
}

on_both_buses!(official_libraries_verify_what_the_gateway_signs);

/// The real process, killed again and again while it delivers: everything arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_no_delivery() {
    let world = World::new(Config {
        sims: 20,
        events_per_second: 20.0,
        history: Duration::ZERO,
        ..Config::default()
    })
    .await;
    let (url, inbox) = receiver().await;
    let first = world.child();
    ask(first.http, "", json!({ "url": url, "from": "earliest", "ordering": "per_sim" })).await;
    let mut gateway: Option<ChildGateway> = Some(first);
    for n in 0..8 {
        tokio::time::sleep(Duration::from_millis(700 + 150 * n)).await;
        gateway.take().unwrap().kill();
        gateway = Some(world.child());
    }
    world.sim.pause();
    let gateway = gateway.unwrap();
    let events = settled(&world, gateway.http).await;
    let wanted: BTreeSet<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let got: BTreeSet<String> = inbox.lock().unwrap().iter().map(|(id, _)| id.clone()).collect();
        if wanted.iter().all(|id| got.contains(*id)) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} of {}", got.len(), wanted.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gateway.kill();
}

/// gRPC and REST are one core.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_grpc_makes_rest_shows() {
    use proto::webhook_service_client::WebhookServiceClient;
    let world = World::quiet().await;
    let gateway = world.gateway().await;
    let (url, _) = receiver().await;
    let mut client = WebhookServiceClient::connect(format!("http://{}", gateway.grpc)).await.unwrap();
    let settings = proto::WebhookSettings {
        url: url.clone(),
        filter: Some(proto::Filter { country: vec!["NO".into()], ..Default::default() }),
        headers: [("Authorization".to_owned(), "Bearer x".to_owned())].into(),
        ordering: proto::Ordering::PerSim.into(),
        batch: Some(proto::WebhookBatch { max_events: 10, max_wait: None }),
        ..Default::default()
    };
    let request =
        proto::CreateWebhookRequest { settings: Some(settings.clone()), start: None, secret: String::new() };
    let made = client.create_webhook(request).await.unwrap().into_inner();
    assert!(made.secret.starts_with("whsec_"));
    let webhook = made.webhook.unwrap();
    let (status, shown) = super::support::get(gateway.http, &format!("/v1/webhooks/{}", webhook.id)).await;
    assert_eq!(status, 200);
    assert_eq!((shown["ordering"].as_str(), shown["url"].as_str()), (Some("per_sim"), Some(url.as_str())));
    assert_eq!(shown["headers"]["Authorization"], "***");
    assert_eq!(shown["batch"], json!({"max_events": 10, "max_wait_ms": 1000}));
    // What is hidden stays when it comes back.
    let mut changed = webhook.settings.unwrap();
    changed.description = "changed".into();
    let update = proto::UpdateWebhookRequest { id: webhook.id.clone(), settings: Some(changed) };
    client.update_webhook(update).await.unwrap();
    let tested =
        client.test_webhook(proto::TestWebhookRequest { id: webhook.id.clone() }).await.unwrap().into_inner();
    assert!(tested.delivered, "{tested:?}");
    let replay = proto::ReplayWebhookRequest { id: webhook.id.clone(), dry_run: true, ..Default::default() };
    assert_eq!(client.replay_webhook(replay).await.unwrap().into_inner().count, 0);
    let stats =
        client.get_webhook_stats(proto::GetWebhookStatsRequest { id: webhook.id.clone() }).await.unwrap();
    assert_eq!(stats.into_inner().status, "active");
    let bad = proto::WebhookSettings { url: "http://10.0.0.1/".into(), ..Default::default() };
    let request = proto::CreateWebhookRequest { settings: Some(bad), start: None, secret: String::new() };
    let refused = client.create_webhook(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    client.delete_webhook(proto::DeleteWebhookRequest { id: webhook.id.clone() }).await.unwrap();
    let gone = client.get_webhook(proto::GetWebhookRequest { id: webhook.id }).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    gateway.stop().await;
}
