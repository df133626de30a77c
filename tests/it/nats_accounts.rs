//! With exactly the permissions of deploy/nats/accounts.conf the gateway does all it has to, and a reader reads and
//! does nothing else.

use std::time::Duration;

use async_nats::{ConnectOptions, jetstream, jetstream::consumer::pull};
use simcast::globalsim::simulator::EventSpec;

use super::{
    nats_clients::{expected, reader, without_subject},
    nats_server::{NEWEST, OLDEST, Options, Server},
    support::{ChildGateway, PATIENCE, World, get, run, settled},
};

const ACCOUNTS: &str = include_str!("../../deploy/nats/accounts.conf");

/// How long a request that must not be answered is given.
const SILENCE: Duration = Duration::from_millis(500);

async fn server(version: &'static str) -> Server {
    let more =
        ACCOUNTS.replace("$SIMCAST_NATS_PASSWORD", "p1").replace("$SIMCAST_NATS_READER_PASSWORD", "p2");
    assert!(more.contains("password: p1") && more.contains("password: p2"), "{more}");
    let options = Options { more, login: "nats://simcast:p1@".to_owned(), ..Options::new(version) };
    Server::start_with(options).await
}

async fn client(server: &Server, user: &str, password: &str) -> async_nats::Client {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    options.connect(server.socket().to_string()).await.unwrap()
}

/// None of these is answered, by whom ever they are asked.
async fn refused(client: &async_nats::Client, subjects: &[&str]) {
    let ask = |subject: &str| {
        let subject = subject.to_owned();
        async move {
            let answer = tokio::time::timeout(SILENCE, client.request(subject.clone(), "{}".into())).await;
            assert!(!matches!(answer, Ok(Ok(_))), "{subject}: {answer:?}");
        }
    };
    futures_util::future::join_all(subjects.iter().copied().map(ask)).await;
}

async fn with_the_documented_permissions(version: &'static str) {
    let mut world = World::quiet().await;
    world.nats = Some(server(version).await);
    let server = world.nats.as_ref().unwrap();
    let start = |name: &str| ChildGateway::start(&world.settings_of(name));
    let (one, two) = (start("one"), start("two"));
    for _ in 0..5 {
        world.sim.inject(EventSpec::default());
    }
    settled(&world, one.http).await;
    // The one that polls stops, and the other follows: leases, fences and the poller's notes.
    let polls = |addr| async move { get(addr, "/v1/stream").await.1["upstream"]["polled_here"] == true };
    let (poller, other) = if polls(one.http).await { (one, two) } else { (two, one) };
    assert_eq!(poller.terminate(), Some(0));
    for _ in 0..5 {
        world.sim.inject(EventSpec::default());
    }
    let events = settled(&world, other.http).await;
    assert_eq!(events.len(), 10);
    assert!(polls(other.http).await);
    // The doctor asks for nothing that the gateway may not.
    let (env, dir) = (world.settings_of("two"), world.dir.path().to_owned());
    let examine = move || {
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        run(&["doctor"], &env, &dir)
    };
    let (code, said, _) = tokio::task::spawn_blocking(examine).await.unwrap();
    assert!(code == Some(0) && said.contains("polls, and renewed its lease"), "{said}");
    let log = std::fs::read_to_string(server.directory().join("log")).unwrap();
    assert!(!log.contains(" Violation"), "{log}");

    // What it may not do, so that a stolen password takes nothing away.
    let gateway = client(server, "simcast", "p1").await;
    refused(
        &gateway,
        &[
            "$JS.API.STREAM.PURGE.SIMCAST",
            "$JS.API.STREAM.DELETE.SIMCAST",
            "$JS.API.STREAM.UPDATE.SIMCAST",
            "$JS.API.STREAM.MSG.DELETE.SIMCAST",
            "$JS.API.STREAM.DELETE.KV_SIMCAST_state",
        ],
    )
    .await;

    // The consumer that deploy/README.md has an operator make, as this user.
    let context = jetstream::new(gateway);
    let config = pull::Config {
        durable_name: Some("reader".to_owned()),
        filter_subject: "simcast.events.>".to_owned(),
        ..pull::Config::default()
    };
    let stream = context.get_stream("SIMCAST").await.unwrap();
    stream.create_consumer(config).await.unwrap();
    let url = format!("nats://reader:p2@{}", server.socket());
    let lines = reader("python", &url, 7, &["--consumer", "reader"]).await;
    let wanted: Vec<_> = events.into_iter().take(7).map(expected).collect();
    assert_eq!(lines.into_iter().map(without_subject).collect::<Vec<_>>(), wanted);

    let before = context.get_stream("SIMCAST").await.unwrap().cached_info().state.clone();
    let intruder = client(server, "reader", "p2").await;
    refused(
        &intruder,
        &[
            "simcast.events.connection.-.-",
            "simcast.ctl.fence.poller",
            "$KV.SIMCAST_lease.poller",
            "$JS.API.STREAM.PURGE.SIMCAST",
            "$JS.API.STREAM.DELETE.SIMCAST",
            "$JS.API.STREAM.MSG.GET.SIMCAST",
            "$JS.API.CONSUMER.CREATE.SIMCAST.mine",
            "$JS.API.CONSUMER.DELETE.SIMCAST.reader",
        ],
    )
    .await;
    // An answer sent to a subject of the stream would be appended, if it were sent in the stream's account.
    let next = "$JS.API.CONSUMER.MSG.NEXT.SIMCAST.reader";
    intruder.publish_with_reply(next, "simcast.events.connection.-.-", "1".into()).await.unwrap();
    intruder.flush().await.unwrap();
    tokio::time::sleep(SILENCE).await;
    let after = context.get_stream("SIMCAST").await.unwrap().cached_info().state.clone();
    assert_eq!((after.last_sequence, after.messages), (before.last_sequence, before.messages));
    assert_eq!(other.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_with_the_documented_permissions_on_the_oldest() {
    with_the_documented_permissions(OLDEST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_with_the_documented_permissions_on_the_newest() {
    with_the_documented_permissions(NEWEST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_ends_the_start_and_names_the_key() {
    let mut world = World::quiet().await;
    world.nats = Some(server(NEWEST).await);
    let (env, dir) = (world.settings(), world.dir.path().to_owned());
    let start = move || {
        let wrong = |value: &String| value.replace("simcast:p1@", "simcast:wr0ng@");
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), wrong(value))).collect();
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        run(&["serve"], &env, &dir)
    };
    let ended = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(start));
    let (code, _, errors) = ended.await.expect("it does not end").unwrap();
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("bus.nats.urls") && errors.contains("\"simcast\""), "{errors}");
    assert!(!errors.contains("wr0ng"), "{errors}");
}
