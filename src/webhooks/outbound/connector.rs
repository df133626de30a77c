//! Connections to checked addresses, directly or through an egress proxy.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{ClientConfig, crypto::CryptoProvider, pki_types::ServerName};
use rustls_platform_verifier::Verifier;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Config, FailureKind, Made, Proxy};
use crate::webhooks::guard::{Guard, ResolveError};

/// Bytes of a proxy's answer to CONNECT.
const PROXY_ANSWER_MAX: usize = 8 * 1024;

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    pub(super) kind: FailureKind,
    pub(super) message: String,
}

fn error(kind: FailureKind, message: impl ToString) -> ConnectError {
    ConnectError { kind, message: message.to_string() }
}

/// Makes connections; cheap to clone.
#[derive(Clone)]
pub struct Connector {
    guard: Guard,
    proxy: Option<Proxy>,
    /// Or why there is none.
    tls: Result<TlsConnector, rustls::Error>,
    timeout: Duration,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("proxy", &self.proxy).finish_non_exhaustive()
    }
}

impl Connector {
    /// A machine without certificate authorities, such as a bare image, can still reach receivers without TLS; those
    /// with it fail, and say why.
    pub(super) fn new(config: &Config) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new_with_extra_roots(config.extra_roots.iter().cloned(), provider.clone());
        if let Err(error) = &verifier {
            tracing::warn!(%error, "webhooks can't be sent over https: install CA certificates, or set webhooks.ca_file");
        }
        Self::with_verifier(config, provider, verifier)
    }

    pub(super) fn with_verifier(
        config: &Config,
        provider: Arc<CryptoProvider>,
        verifier: Result<Verifier, rustls::Error>,
    ) -> Result<Self, rustls::Error> {
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = verifier.map(|verifier| {
            let mut tls = builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_no_client_auth();
            tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            TlsConnector::from(Arc::new(tls))
        });
        Ok(Self {
            guard: config.guard.clone(),
            proxy: config.proxy.clone(),
            tls,
            timeout: config.connect_timeout,
        })
    }

    async fn connect(self, uri: Uri) -> Result<Stream, ConnectError> {
        let started = Instant::now();
        let is_tls = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        if let (true, Err(bad)) = (is_tls, &self.tls) {
            let why = format!("{bad}; set webhooks.ca_file, or install the system's CA certificates");
            return Err(error(FailureKind::Tls, why));
        }
        let connected = match &self.proxy {
            None => self.direct(&uri).await?,
            Some(proxy) => {
                let through = timeout(self.timeout, self.through(proxy, &uri)).await;
                through
                    .map_err(|_| error(FailureKind::Proxy, "the egress proxy did not answer in time"))??
            }
        };
        let Connecting { tcp, remote, dns, connect } = connected;
        // Small requests one after the other: Nagle would hold each back for the answer to the one before.
        let _ = tcp.set_nodelay(true);
        let mut made = Made { remote, dns, connect, tls: None, used: Arc::new(AtomicBool::new(false)) };
        let Some(tls) = self.tls.as_ref().ok().filter(|_| is_tls) else {
            return Ok(Stream { io: Io::Plain(TokioIo::new(tcp)), made });
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|bad| error(FailureKind::Tls, bad))?;
        let begun = Instant::now();
        let left = self.timeout.saturating_sub(started.elapsed());
        let handshake = timeout(left, tls.connect(name, tcp)).await;
        let handshake =
            handshake.map_err(|_| error(FailureKind::ConnectTimeout, "the TLS handshake took too long"))?;
        let tls = handshake.map_err(|bad| error(FailureKind::Tls, bad))?;
        made.tls = Some(begun.elapsed());
        Ok(Stream { io: Io::Tls(Box::new(TokioIo::new(tls))), made })
    }

    async fn direct(&self, uri: &Uri) -> Result<Connecting, ConnectError> {
        let started = Instant::now();
        let addresses = self.guard.resolve_uri(uri).await.map_err(|bad| match &bad {
            ResolveError::Denied { .. } => error(FailureKind::Refused, bad),
            ResolveError::Failed { .. } => error(FailureKind::Dns, bad),
        })?;
        let dns = started.elapsed();
        let (tcp, remote) = self.reach(&addresses, started).await?;
        Ok(Connecting { tcp, remote, dns, connect: started.elapsed() - dns })
    }

    /// The first address that answers.
    async fn reach(
        &self,
        addresses: &[SocketAddr],
        started: Instant,
    ) -> Result<(TcpStream, SocketAddr), ConnectError> {
        let mut last = error(FailureKind::Connect, "there is no address");
        for (n, address) in addresses.iter().enumerate() {
            let left = self.timeout.saturating_sub(started.elapsed());
            // Each gets its share of what is left, so that one that drops packets does not hide the next.
            let share = left / (addresses.len() - n) as u32;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    let peer = tcp.peer_addr().map_err(|bad| error(FailureKind::Connect, bad))?;
                    if !self.guard.allows(peer.ip()) {
                        return Err(error(FailureKind::Refused, "the connection leads inside this network"));
                    }
                    return Ok((tcp, peer));
                }
                Ok(Err(bad)) => last = error(FailureKind::Connect, format!("{address}: {bad}")),
                Err(_) => {
                    last = error(FailureKind::ConnectTimeout, format!("{address} did not accept in time"));
                }
            }
        }
        Err(last)
    }

    /// A tunnel, for http as well: an answer is then the receiver's or the proxy's, never in doubt. Whatever goes wrong
    /// with it is the proxy's fault but what it says of the receiver: 403 it may not be reached, 502, 503 and 504 it
    /// can't be.
    async fn through(&self, proxy: &Proxy, uri: &Uri) -> Result<Connecting, ConnectError> {
        let started = Instant::now();
        let fault =
            |what: &dyn std::fmt::Display| error(FailureKind::Proxy, format!("the egress proxy: {what}"));
        let mut tcp = TcpStream::connect(&proxy.address).await.map_err(|bad| fault(&bad))?;
        let remote = tcp.peer_addr().map_err(|bad| fault(&bad))?;
        let host = uri.host().unwrap_or_default();
        let port =
            uri.port_u16().unwrap_or(if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 });
        let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n").into_bytes();
        if let Some(authorization) = &proxy.authorization {
            request.extend_from_slice(b"proxy-authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        tcp.write_all(&request).await.map_err(|bad| fault(&bad))?;
        let mut answer = Vec::with_capacity(256);
        // Byte by byte: what follows the head belongs to the tunnel.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= PROXY_ANSWER_MAX {
                return Err(fault(&"its answer is too long"));
            }
            answer.push(tcp.read_u8().await.map_err(|bad| fault(&bad))?);
        }
        let status =
            std::str::from_utf8(&answer).ok().and_then(|text| text.split(' ').nth(1)).unwrap_or("nothing");
        if !status.starts_with('2') {
            // What it says of the receiver must count against the receiver, or one that is gone would never be given up.
            let kind = match status {
                "403" => FailureKind::Refused,
                "502" | "503" => FailureKind::Connect,
                "504" => FailureKind::ConnectTimeout,
                _ => FailureKind::Proxy,
            };
            return Err(error(kind, format!("the egress proxy: it answered {status} to CONNECT")));
        }
        Ok(Connecting { tcp, remote, dns: Duration::ZERO, connect: started.elapsed() })
    }
}

struct Connecting {
    tcp: TcpStream,
    remote: SocketAddr,
    dns: Duration,
    connect: Duration,
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection.
pub struct Stream {
    io: Io,
    made: Made,
}

enum Io {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(self.made.clone());
        match &self.io {
            Io::Tls(tls) if tls.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                connected.negotiated_h2()
            }
            _ => connected,
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }
}
