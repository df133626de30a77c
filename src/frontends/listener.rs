//! The accept loop of all three listeners (HTTP, gRPC, admin), with the deadlines that `axum::serve` lacks.
//!
//! `axum::serve` installs no timer, so a client that drips its headers, or opens a connection and says nothing, keeps
//! it for ever; nor has it a cap on connections or a deadline on writes. Here every phase of a connection has a
//! limit ([`Deadlines`]), accept errors back off instead of spinning, and connections beyond the cap are told so.
//!
//! A connection counts until its socket is dropped, also after a WebSocket upgrade: the permit travels inside
//! [`socket::Socket`]. [`Listener::serve`] returns when all have ended, or soon after the hard stop.

pub mod socket;

mod connection;

#[cfg(test)]
pub(crate) mod testing;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

/// Connections that may wait to be accepted: a whole fleet that comes back after a restart.
const BACKLOG: u32 = 4096;
/// First and last pause after an accept error that will repeat, such as running out of file descriptors.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Connections beyond the cap that are told so at the same time; others are closed without a word.
const FAREWELLS: usize = 64;
/// How long such a farewell may take, and how long sockets may take to close after the hard stop.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

const FULL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\nconnection: close\r\n",
    "content-length: 162\r\n\r\n",
    r#"{"error":{"code":"connection_limit","message":"the gateway has as many connections as it takes","field":null,"hint":"retry in a few seconds","request_id":null}}"#,
    "\r\n",
);

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with upgrades.
    Http1,
    /// HTTP/2 by prior knowledge or ALPN, else HTTP/1.1 (grpc-web).
    Http2AndHttp1,
}

/// How long each phase of a connection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From accept to the first byte, and to the end of a TLS handshake.
    pub first_byte: Duration,
    /// From the first byte of a request to the end of its headers.
    pub headers: Duration,
    /// For the whole body of a request (HTTP/1.1 only: HTTP/2 streams live long).
    pub body: Duration,
    /// Between two requests of a connection.
    pub idle: Duration,
    /// Without the peer taking a single byte that was written.
    pub write: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(5),
            headers: Duration::from_secs(10),
            body: Duration::from_secs(30),
            idle: Duration::from_secs(75),
            write: Duration::from_secs(30),
        }
    }
}

/// Why an address can't be listened on. Trying again helps only after somebody changed something.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {addr} ({key}): {source}; {hint}")]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    /// The configuration key that names it.
    pub key: &'static str,
    /// What to do.
    pub hint: String,
    /// What the system said.
    pub source: io::Error,
}

impl BindError {
    /// Never: somebody must free the address or choose another.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// What is served on a listener, and until when.
#[derive(Clone)]
pub struct Serve {
    /// Answers requests. Each carries [`ConnectInfo`](axum::extract::ConnectInfo) of the peer's [`SocketAddr`].
    pub router: Router,
    /// What is spoken.
    pub protocol: Protocol,
    /// Limits in time.
    pub deadlines: Deadlines,
    /// Connections at the same time.
    pub connections: usize,
    /// TLS, where configured; its ALPN list must fit `protocol`.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Stop accepting and end connections as their requests end.
    pub draining: CancellationToken,
    /// End everything now.
    pub stop: CancellationToken,
}

/// A bound address.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    addr: SocketAddr,
}

impl Listener {
    /// Binds `addr`, which the configuration key `key` (such as `http.listen`) names. Port 0 takes a free one.
    ///
    /// # Errors
    /// [`BindError`] says what to do about it.
    pub fn bind(addr: SocketAddr, key: &'static str) -> Result<Self, BindError> {
        let open = || -> io::Result<(TcpListener, SocketAddr)> {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // Without it a restart fails for a minute on connections that linger in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            socket.bind(addr)?;
            let inner = socket.listen(BACKLOG)?;
            let addr = inner.local_addr()?;
            Ok((inner, addr))
        };
        open().map(|(inner, addr)| Self { inner, addr }).map_err(|source| {
            let hint = bind_hint(&source, addr, key);
            BindError { addr, key, hint, source }
        })
    }

    /// Where it listens, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts until `serve.draining`, then waits for the connections to end, at most until `serve.stop`.
    pub async fn serve(self, serve: Serve) {
        let permits = serve.connections.min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(permits));
        let farewells = Arc::new(Semaphore::new(FAREWELLS));
        let serve = Arc::new(serve);
        let mut pause = ACCEPT_PAUSE.0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = serve.draining.cancelled() => break,
                () = serve.stop.cancelled() => break,
                accepted = self.inner.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = ACCEPT_PAUSE.0;
                    admit(&serve, &room, &farewells, stream, peer);
                }
                Err(error) if is_peers_fault(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, listen = %self.addr, "connections can't be accepted for a moment");
                    tokio::select! {
                        () = serve.draining.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                }
            }
        }
        drop(self.inner);
        let all = u32::try_from(permits).unwrap_or(u32::MAX);
        tokio::select! {
            _ = room.acquire_many(all) => return,
            () = serve.stop.cancelled() => {}
        }
        if tokio::time::timeout(FAREWELL_TIME, room.acquire_many(all)).await.is_err() {
            let left = permits - room.available_permits();
            tracing::warn!(connections = left, listen = %self.addr, "connections outlived the hard stop");
        }
    }
}

/// Gives a connection its task, or turns it away.
fn admit(
    serve: &Arc<Serve>,
    room: &Arc<Semaphore>,
    farewells: &Arc<Semaphore>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    if let Ok(permit) = Arc::clone(room).try_acquire_owned() {
        tokio::spawn(connection::run(Arc::clone(serve), stream, peer, permit));
        return;
    }
    tracing::debug!(%peer, connections = serve.connections, "connection refused: the cap is reached");
    // Over TLS or HTTP/2 the text would not be understood.
    let understood = serve.protocol == Protocol::Http1 && serve.tls.is_none();
    if let (true, Ok(permit)) = (understood, Arc::clone(farewells).try_acquire_owned()) {
        tokio::spawn(say_full(stream, permit));
    }
}

async fn say_full(mut stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let farewell = async {
        stream.write_all(FULL.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with unread bytes resets the connection, and the answer may be lost with it.
        let mut ignored = [0; 512];
        while stream.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(FAREWELL_TIME, farewell).await;
}

/// Errors that concern only the connection that failed; the next accept may succeed at once.
fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

fn bind_hint(error: &io::Error, addr: SocketAddr, key: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("port {} is in use: stop the other process or set {key} to another port", addr.port())
        }
        io::ErrorKind::PermissionDenied => {
            format!("set {key} to a port above 1023, or give the process the right to bind low ports")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("set {key} to an address of this machine; 0.0.0.0 takes all of them")
        }
        _ => format!("check {key}"),
    }
}

#[cfg(test)]
mod tests;
