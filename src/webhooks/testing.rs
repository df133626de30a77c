//! A receiver that does what a test says, byte by byte: no HTTP library would let it misbehave so.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What it does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Status(u16),
    /// These bytes.
    Raw(String),
    /// The status after so many milliseconds.
    After(u64, u16),
    HangBeforeHead,
    DripHead,
    DripBody,
    EndlessBody,
    ResetAtOnce,
    ResetInHead,
    Garbage,
    /// A body that says gzip and would be a gigabyte.
    GzipBomb,
    /// The head and half of the body.
    ResetInBody,
    /// Headers without end.
    EndlessHead,
    /// It is a proxy, for those with this login.
    Tunnel {
        login: &'static str,
    },
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub head: String,
    pub body: Vec<u8>,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        lines
            .filter_map(|line| line.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    }
}

type Script = Arc<dyn Fn(usize) -> Act + Send + Sync>;
/// Decides by the request.
type Decide = Arc<dyn Fn(&Got) -> Act + Send + Sync>;

pub(crate) struct Receiver {
    url: String,
    address: String,
    got: Arc<Mutex<Vec<Got>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// `script` is asked with the number of the request on its connection, from 0.
    pub(crate) async fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(script), None, None).await
    }

    /// The same, decided by the request.
    pub(crate) async fn deciding(decide: impl Fn(&Got) -> Act + Send + Sync + 'static) -> Self {
        Self::listen(Arc::new(|_| Act::Status(500)), Some(Arc::new(decide)), None).await
    }

    /// The same behind TLS, with a certificate of its own making.
    pub(crate) async fn start_tls(
        names: &[&str],
        script: impl Fn(usize) -> Act + Send + Sync + 'static,
    ) -> (CertificateDer<'static>, Self) {
        let (certificate, acceptor) = acceptor(names, &[]);
        (certificate, Self::listen(Arc::new(script), None, Some(acceptor)).await)
    }

    async fn listen(script: Script, decide: Option<Decide>, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = match tls {
            None => format!("http://{address}/hook"),
            Some(_) => format!("https://localhost:{}/hook", address.port()),
        };
        let (got, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (seen, counted) = (got.clone(), connections.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                counted.fetch_add(1, Ordering::Relaxed);
                let (script, decide, seen, tls) = (script.clone(), decide.clone(), seen.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, script, decide, seen).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, script, decide, seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, address: address.to_string(), got, connections, task }
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    pub(crate) fn requests(&self) -> Vec<Got> {
        self.got.lock().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// TLS with a certificate of its own making, and that certificate.
pub(crate) fn acceptor(
    names: &[&str],
    alpn: &[&[u8]],
) -> (CertificateDer<'static>, tokio_rustls::TlsAcceptor) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    (certificate, tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

async fn serve(mut stream: impl Wire, script: Script, decide: Option<Decide>, seen: Arc<Mutex<Vec<Got>>>) {
    let mut n = 0;
    while let Some(got) = read(&mut stream).await {
        let act = match &decide {
            Some(decide) => decide(&got),
            None => script(n),
        };
        seen.lock().push(got.clone());
        n += 1;
        if act.perform(&mut stream, &got).await.is_none() {
            return;
        }
    }
}

/// One request, whole.
async fn read(stream: &mut impl Wire) -> Option<Got> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let mut got = Got { head: String::from_utf8_lossy(&head).into_owned(), body: Vec::new() };
    let length = got.header("content-length").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    got.body.resize(length, 0);
    stream.read_exact(&mut got.body).await.ok()?;
    Some(got)
}

impl Act {
    /// None where the connection ends.
    fn perform<'a>(
        self,
        stream: &'a mut (impl Wire + 'a),
        got: &'a Got,
    ) -> Pin<Box<dyn Future<Output = Option<()>> + Send + 'a>> {
        Box::pin(async move {
            let head = |status: u16| format!("HTTP/1.1 {status} Said\r\ncontent-length: 2\r\n\r\nok");
            match self {
                Self::Status(204) => stream.write_all(b"HTTP/1.1 204 No\r\n\r\n").await.ok(),
                Self::Status(status) => stream.write_all(head(status).as_bytes()).await.ok(),
                Self::Raw(text) => stream.write_all(text.as_bytes()).await.ok(),
                Self::After(ms, status) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    stream.write_all(head(status).as_bytes()).await.ok()
                }
                Self::HangBeforeHead => std::future::pending().await,
                Self::DripHead => drip(stream, "HTTP/1.1 200 OK\r\nx: ", "y").await,
                Self::DripBody => drip(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", "y").await,
                Self::EndlessBody => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.ok()?;
                    let chunk = format!("1000\r\n{}\r\n", "z".repeat(0x1000));
                    loop {
                        stream.write_all(chunk.as_bytes()).await.ok()?;
                    }
                }
                Self::ResetAtOnce => None,
                Self::ResetInHead => {
                    stream.write_all(b"HTTP/1.1 200").await.ok()?;
                    None
                }
                Self::ResetInBody => {
                    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf";
                    stream.write_all(head.as_bytes()).await.ok()?;
                    None
                }
                Self::EndlessHead => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\n").await.ok()?;
                    loop {
                        stream.write_all(b"x-padding: 0123456789\r\n").await.ok()?;
                    }
                }
                Self::Garbage => {
                    stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await.ok()?;
                    None
                }
                Self::GzipBomb => {
                    let head = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1000000\r\n\r\n";
                    stream.write_all(head.as_bytes()).await.ok()?;
                    stream.write_all(&vec![0x1f; 1_000_000]).await.ok()
                }
                Self::Tunnel { login } => {
                    if got.header("proxy-authorization") != Some(login) {
                        stream.write_all(b"HTTP/1.1 407 Who\r\ncontent-length: 0\r\n\r\n").await.ok()?;
                        return None;
                    }
                    let target = got.head.split(' ').nth(1)?.to_owned();
                    let mut onward = TcpStream::connect(target).await.ok()?;
                    stream.write_all(b"HTTP/1.1 200 Yes\r\n\r\n").await.ok()?;
                    tokio::io::copy_bidirectional(stream, &mut onward).await.ok()?;
                    None
                }
            }
        })
    }
}

async fn drip(stream: &mut impl Wire, head: &str, more: &str) -> Option<()> {
    stream.write_all(head.as_bytes()).await.ok()?;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(more.as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
    }
}
