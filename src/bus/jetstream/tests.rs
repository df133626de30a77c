//! The conformance suite on real servers of the oldest and the newest version, and what breaks.

use super::*;
use crate::{
    bus::conformance::{event, run_all},
    clock, guarantees,
};

mod counted;
mod disk;
mod erase;
mod faults;
mod foundation;
mod login;
mod proxy;
#[path = "../../../tests/it/nats_server.rs"]
pub(crate) mod server;

use server::{NEWEST, OLDEST, Server};

/// A test by an async function of the server's version, on both.
macro_rules! on_both {
    ($name:ident, $run:ident) => {
        mod $name {
            use super::*;
            #[tokio::test(flavor = "multi_thread")]
            async fn oldest() {
                $run(OLDEST).await;
            }
            #[tokio::test(flavor = "multi_thread")]
            async fn newest() {
                $run(NEWEST).await;
            }
        }
    };
}
pub(super) use on_both;

fn config(server: &Server, stream: &str) -> Config {
    tests_support::config(server.url(), stream)
}

async fn open(config: Config) -> Arc<JetStream> {
    JetStream::open(config, clock::system()).await.unwrap()
}

async fn conforms(version: &'static str) {
    let server = Server::start(version).await;
    let next = std::cell::Cell::new(0);
    let kept = run_all(async || {
        next.set(next.get() + 1);
        open(config(&server, &format!("S{}", next.get()))).await as Arc<dyn Bus>
    })
    .await
    .unwrap();
    guarantees::conforms(&format!("NATS {version}"), &kept);
}

on_both!(conforms_to_the_contract, conforms);

async fn older_fence(version: &'static str) {
    let server = Server::start(version).await;
    let (one, two) = (open(config(&server, "S")).await, open(config(&server, "S")).await);
    let ttl = Duration::from_secs(5);
    let old = one.lease("poller", ttl).await.unwrap();
    one.append(vec![event("a")], Some(old.fence)).await.unwrap();
    let fence = old.fence;
    drop(old);
    let new = two.lease("poller", ttl).await.unwrap();
    // The first gateway has not noticed yet; the stream refuses it, one message and a batch of them.
    for events in [vec![event("b")], vec![event("c"), event("d")]] {
        let refused = one.append(events.clone(), Some(fence)).await;
        assert!(matches!(refused, Err(AppendError::Fenced)), "{refused:?}");
        let answers = two.append(events, Some(new.fence)).await.unwrap();
        assert!(answers.iter().all(|answer| matches!(answer, Appended::Stored(_))), "{answers:?}");
    }
    for bus in [one, two] {
        bus.shutdown().await;
    }
}

on_both!(the_stream_refuses_an_older_fence, older_fence);
