//! The accept loop, connections that can be reset, and the task that lets time pass.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, sleep_until};

use super::world::World;
use super::{API_PATH, Shared, api, control};

/// Connections at the same time; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 1_024;
/// Pause after a failed accept, which mostly means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes on their way through a connection without sockets.
const PIPE_BYTES: usize = 64 << 10;

/// The means to reset the connection on which a request came.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer(Arc<PeerState>);

#[derive(Debug, Default)]
struct PeerState {
    reset: AtomicBool,
    wake: Notify,
}

/// A TCP stream that closes with RST when its peer was told so, with FIN otherwise.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    peer: Peer,
}

/// Makes connections without sockets: both ends live in one runtime, so that tokio's clock, where it is paused, does
/// not run on while bytes are on their way.
#[derive(Debug, Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
    app: Router,
}

/// Accepts until stopped.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let app = app(&shared);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Some((permit, Ok((stream, _)))) => {
                let connection = connection(shared.clone(), stream, app.clone());
                shared.tasks.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Some((_, Err(error))) => {
                tracing::warn!(%error, "simulator could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
            None => return,
        }
    }
}

fn app(shared: &Arc<Shared>) -> Router {
    Router::new().nest(API_PATH, api::router(shared)).nest("/_sim", control::router(shared))
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, app: Router) {
    // Without this, small answers on a kept-alive connection may wait for the peer's delayed ack.
    let _ = stream.set_nodelay(true);
    let peer = Peer::default();
    converse(shared, Socket { stream, peer: peer.clone() }, peer, app).await;
}

async fn converse(
    shared: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    app: Router,
) {
    let service = TowerToHyperService::new(app.layer(Extension(peer.clone())));
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        result = served => if let Err(error) = result {
            tracing::debug!(%error, "simulator connection ended");
        },
        () = peer.0.wake.notified() => {}
        () = shared.stop.cancelled() => {}
    }
}

/// Lets traffic and late events happen when they are due, until stopped.
pub(super) async fn drive(shared: Arc<Shared>) {
    loop {
        let due = shared.world.lock().next_due();
        let wait = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.changed.notified() => {}
            () = wait => {}
        }
        shared.change(World::run_due);
    }
}

// === impl Dialer ===

impl Dialer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let app = app(&shared);
        Self { shared, app }
    }

    /// A connection; must be called inside a tokio runtime.
    pub fn dial(&self) -> DuplexStream {
        let (ours, theirs) = duplex(PIPE_BYTES);
        let conversation = converse(self.shared.clone(), ours, Peer::default(), self.app.clone());
        self.shared.tasks.spawn(conversation);
        theirs
    }
}

// === impl Peer ===

impl Peer {
    /// Resets the connection as soon as its task runs again.
    pub(super) fn reset(&self) {
        self.0.reset.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }
}

// === impl Socket ===

impl Drop for Socket {
    fn drop(&mut self) {
        if self.peer.0.reset.load(Ordering::Acquire) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
