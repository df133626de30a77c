//! One accepted connection's bytes, with the deadlines that no HTTP library keeps: a peer that sends nothing, drips
//! its headers, idles, or takes nothing of what is written to it.
//!
//! Reading is limited by [`Phase`], which the connection's service moves on; writing by progress. The permit of the
//! connection cap lives here too, since the socket outlives HTTP when it is upgraded.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;

use super::Deadlines;

/// Silence after which the kernel asks whether the peer is still there, and how often it asks again.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// How much longer than the write deadline the kernel waits for acknowledgements: the peer is then gone, not slow.
const USER_TIMEOUT_SLACK: Duration = Duration::from_secs(10);
/// Bytes of one connection that the kernel may hold unsent: one message. Without it a slow client's buffer grows to
/// megabytes, and what it reads at last is old.
#[cfg(target_os = "linux")]
const UNSENT_MAX: u32 = 256 * 1024;

/// The wire, plain or encrypted.
#[derive(Debug)]
pub enum Wire {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP; boxed, since a session is a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// The TCP connection beneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Makes the close that follows a reset: what the peer did not take is thrown away.
    pub fn reset_on_drop(&self) {
        let _ = self.tcp().set_zero_linger();
    }
}

/// Sets the options of an accepted connection: no delay, and a dead peer is noticed within a minute.
///
/// # Errors
/// Where the peer is gone already.
pub fn prepare(tcp: &TcpStream, deadlines: &Deadlines) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(deadlines.write + USER_TIMEOUT_SLACK))?;
        socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    }
    Ok(())
}

/// What is awaited from the peer. Shared by the socket, which keeps the deadline, and the service, which knows where
/// a request begins and its answer ends.
#[derive(Debug, Clone)]
pub struct Phase(Arc<AtomicU32>);

const FIRST: u32 = 0;
const HEADERS: u32 = 1;
const BUSY: u32 = 2;
const IDLE: u32 = 3;
const PHASES: u32 = 4;

impl Phase {
    /// Awaiting the first byte.
    pub fn new() -> Self {
        Self(Arc::new(AtomicU32::new(FIRST)))
    }

    /// A request is being answered, or the protocol has keep-alives of its own: reads have no deadline.
    pub fn busy(&self) {
        self.enter(BUSY);
    }

    /// The answer is complete: the next request may follow within the idle limit.
    pub fn idle(&self) {
        self.enter(IDLE);
    }

    /// The upper bits count the changes, so that the socket sees one even when it leads to the phase it knew.
    fn enter(&self, phase: u32) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
            Some((old / PHASES).wrapping_add(1).wrapping_mul(PHASES) | phase)
        });
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Phase {
    fn default() -> Self {
        Self::new()
    }
}

/// A connection with its deadlines.
#[derive(Debug)]
pub struct Socket {
    wire: Wire,
    permit: OwnedSemaphorePermit,
    deadlines: Deadlines,
    phase: Phase,
    /// For which value of `phase` `reading` runs.
    reading_for: Option<u32>,
    reading: Option<Pin<Box<Sleep>>>,
    /// Runs while the peer takes nothing.
    writing: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    /// A connection on which nothing was read yet.
    pub fn new(wire: Wire, permit: OwnedSemaphorePermit, deadlines: Deadlines, phase: Phase) -> Self {
        Self { wire, permit, deadlines, phase, reading_for: None, reading: None, writing: None }
    }

    /// The wire without deadlines, for a protocol that keeps its own, and the permit to hold as long as the wire.
    pub fn into_parts(self) -> (Wire, OwnedSemaphorePermit) {
        (self.wire, self.permit)
    }

    fn read_limit(&self, phase: u32) -> Option<Duration> {
        match phase % PHASES {
            FIRST => Some(self.deadlines.first_byte),
            HEADERS => Some(self.deadlines.headers),
            IDLE => Some(self.deadlines.idle),
            _ => None,
        }
    }

    /// Whether the deadline of the current phase has passed; arms it where the phase is new.
    fn poll_read_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let phase = self.phase.get();
        if self.reading_for != Some(phase) {
            self.reading_for = Some(phase);
            let Some(limit) = self.read_limit(phase) else { return Poll::Pending };
            let at = Instant::now() + limit;
            match &mut self.reading {
                Some(sleep) => sleep.as_mut().reset(at),
                None => self.reading = Some(Box::pin(tokio::time::sleep_until(at))),
            }
        }
        match (self.read_limit(phase), &mut self.reading) {
            (Some(_), Some(sleep)) => sleep.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }

    /// Passes on the answer to a write; after the deadline without progress the connection is reset.
    fn watch_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.writing = None;
            return result;
        }
        let limit = self.deadlines.write;
        let sleep = self.writing.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(sleep.as_mut().poll(cx));
        self.wire.reset_on_drop();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.wire).poll_read(cx, buf) {
            let phase = this.phase.get() % PHASES;
            if buf.filled().len() > before && (phase == FIRST || phase == IDLE) {
                this.phase.enter(HEADERS);
            }
            return Poll::Ready(result);
        }
        ready!(this.poll_read_deadline(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer sends nothing, or too slowly")))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.wire).poll_write(cx, buf);
        this.watch_write(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.wire).poll_write_vectored(cx, bufs);
        this.watch_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.wire).poll_flush(cx);
        this.watch_write(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.wire).poll_shutdown(cx);
        this.watch_write(cx, result)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
