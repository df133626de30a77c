//! The life of one connection: handshake, choice of protocol, requests, drain.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, extract::ConnectInfo};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep, timeout_at},
};
use tower::ServiceExt as _;

use super::{
    Protocol, Serve,
    socket::{Phase, Socket, Wire, prepare},
};

/// What an HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pause before looking again for the rest of a preface of which a part has come.
const PREFACE_PAUSE: Duration = Duration::from_millis(10);
/// Of an HTTP/1.1 request line and headers: a URL of 16 KiB and as much beside it.
const HEADER_BYTES: usize = 32 * 1024;
/// What hyper may buffer of one HTTP/1.1 connection; a chunk larger than it is still written whole.
const HTTP1_BUFFER: usize = 64 * 1024;
const HTTP2_STREAMS: u32 = 100;
const HTTP2_HEADER_BYTES: u32 = 16 * 1024;
const HTTP2_SEND_BUFFER: usize = 64 * 1024;
const HTTP2_PING: Duration = Duration::from_secs(20);

/// Serves one connection to its end. Errors of a connection concern nobody else and are only logged.
pub(super) async fn run(serve: Arc<Serve>, tcp: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
    let deadline = Instant::now() + serve.deadlines.first_byte;
    let opened = tokio::select! {
        () = serve.stop.cancelled() => return,
        opened = timeout_at(deadline, open(&serve, tcp)) => opened,
    };
    let result = match opened {
        Ok(Ok((wire, is_http2))) => {
            let phase = Phase::new();
            let io = TokioIo::new(Socket::new(wire, permit, serve.deadlines, phase.clone()));
            if is_http2 {
                phase.busy();
                serve_http2(&serve, io, peer).await
            } else {
                serve_http1(&serve, io, peer, phase).await
            }
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it said nothing in time".to_owned()),
    };
    if let Err(error) = result {
        tracing::debug!(%peer, error, "connection ended");
    }
}

/// Prepares the socket, does the TLS handshake, and finds out whether HTTP/2 is spoken.
async fn open(serve: &Serve, tcp: TcpStream) -> io::Result<(Wire, bool)> {
    prepare(&tcp, &serve.deadlines)?;
    let both = serve.protocol == Protocol::Http2AndHttp1;
    if let Some(config) = &serve.tls {
        let tls = tokio_rustls::TlsAcceptor::from(Arc::clone(config)).accept(tcp).await?;
        let is_http2 = both && tls.get_ref().1.alpn_protocol() == Some(b"h2");
        return Ok((Wire::Tls(Box::new(tls)), is_http2));
    }
    let is_http2 = both && starts_with_preface(&tcp).await?;
    Ok((Wire::Plain(tcp), is_http2))
}

/// Looks at the first bytes without taking them. The caller's deadline bounds the wait.
async fn starts_with_preface(tcp: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let n = tcp.peek(&mut seen).await?;
        if n == 0 || seen[..n] != PREFACE[..n] {
            return Ok(false);
        }
        if n == PREFACE.len() {
            return Ok(true);
        }
        // The part that came keeps the socket readable, so that readiness can't be awaited.
        sleep(PREFACE_PAUSE).await;
    }
}

async fn serve_http1(
    serve: &Arc<Serve>,
    io: TokioIo<Socket>,
    peer: SocketAddr,
    phase: Phase,
) -> Result<(), String> {
    let body_time = serve.deadlines.body;
    let router = serve.router.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        phase.busy();
        let request = request.map(|body| match body.is_end_stream() {
            true => Body::empty(),
            false => Body::new(TimedBody { body, sleep: Box::pin(sleep(body_time)) }),
        });
        let answer = answer(router.clone(), request, peer);
        let phase = phase.clone();
        async move { answer.await.map(|response| response.map(|body| TrackedBody { body, phase })) }
    });
    let mut builder = http1::Builder::new();
    // The socket keeps sharper deadlines per phase; hyper's own is the net beneath it.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(serve.deadlines.idle.max(serve.deadlines.headers))
        .max_header_size(HEADER_BYTES)
        .max_buf_size(HTTP1_BUFFER);
    let connection = builder.serve_connection(io, service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result.map_err(|e| e.to_string()),
        () = serve.stop.cancelled() => return Ok(()),
        () = serve.draining.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = connection.as_mut() => result.map_err(|e| e.to_string()),
        () = serve.stop.cancelled() => Ok(()),
    }
}

async fn serve_http2(serve: &Arc<Serve>, io: TokioIo<Socket>, peer: SocketAddr) -> Result<(), String> {
    let router = serve.router.clone();
    let service =
        service_fn(move |request: Request<Incoming>| answer(router.clone(), request.map(Body::new), peer));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(HTTP2_HEADER_BYTES)
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING);
    let connection = builder.serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result.map_err(|e| e.to_string()),
        () = serve.stop.cancelled() => return Ok(()),
        () = serve.draining.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = connection.as_mut() => result.map_err(|e| e.to_string()),
        () = serve.stop.cancelled() => Ok(()),
    }
}

async fn answer(
    router: axum::Router,
    mut request: Request<Body>,
    peer: SocketAddr,
) -> Result<Response<Body>, Infallible> {
    request.extensions_mut().insert(ConnectInfo(peer));
    router.oneshot(request).await
}

/// A request body that must be complete within a time.
struct TimedBody {
    body: Incoming,
    sleep: Pin<Box<Sleep>>,
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(self.sleep.as_mut().poll(cx));
        Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, "the body came too slowly").into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response body that tells when it is over, so that the idle limit begins.
struct TrackedBody {
    body: Body,
    phase: Phase,
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.phase.idle();
    }
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
