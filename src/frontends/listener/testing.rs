//! A gateway in memory behind a real socket, for tests of the streaming frontends.

pub(crate) mod tls;

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use tokio::task::JoinHandle;

use super::{Deadlines, Listener, Protocol, Serve};
use crate::frontends::{http, tests_support::Fixture};

/// A running gateway; dropping it stops it.
pub(crate) struct Live {
    pub fixture: Fixture,
    pub addr: SocketAddr,
    pub server: JoinHandle<()>,
}

impl Live {
    /// Serves the public router with these routes in it.
    pub(crate) fn start(fixture: Fixture, websocket: Router, sse: Router, deadlines: Deadlines) -> Self {
        Self::start_tls(fixture, websocket, sse, deadlines, None)
    }

    /// The same over TLS.
    pub(crate) fn start_tls(
        fixture: Fixture,
        websocket: Router,
        sse: Router,
        deadlines: Deadlines,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let context = fixture.context.clone();
        tokio::spawn(context.hub.clone().run(context.stop.clone()));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "http.listen").unwrap();
        let addr = listener.local_addr();
        let serve = Serve {
            router: http::router(context.clone(), websocket, sse),
            protocol: Protocol::Http1,
            deadlines,
            connections: 1000,
            tls,
            draining: context.draining.clone(),
            stop: context.stop.clone(),
        };
        Self { fixture, addr, server: tokio::spawn(listener.serve(serve)) }
    }

    /// Waits until the registry's list of connections is as `expected` says.
    pub(crate) async fn connections(&self, expected: impl Fn(&[serde_json::Value]) -> bool) {
        while !expected(&self.fixture.context.registry.list(None, 0, |_| String::new())) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.fixture.context.draining.cancel();
        self.fixture.context.stop.cancel();
    }
}
