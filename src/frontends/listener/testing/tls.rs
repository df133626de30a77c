//! A certificate for `localhost` that is worth nothing outside the tests, and both ends of TLS with it.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Valid from 2020 to 2120.
const CERTIFICATE: &str = "MIIBXzCCAQSgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAx\
    MDEwMDAwMDBaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBC3HL2zmsxoLuCYS4HNIStm\
    k1mtUGczzQmfptFW+T9ZNaa6lwOvSuQQguSZ+0RZks4tSqN3X2br/6FarvXyCymjRTBDMBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAM\
    BgNVHRMBAf8EAjAAMB0GA1UdDgQWBBT4jj5Zax5z+98Av1ybVcfY83LMczAKBggqhkjOPQQDAgNJADBGAiEA+fA9gV9C9kCGim6y\
    E0TBKSJGsi0QJmrpRKZWuKdvDdQCIQCemceFdsaakyQ7VHcAnl3GpLFTMpdxHRvSFHn7trVcvg==";
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQguFO/V6N0CZTJAC7ciAjh6Tdtbe4oFtMFLA+tAEn3Fr6hRANCAAQQ\
    txy9s5rMaC7gmEuBzSErZpNZrVBnM80Jn6bRVvk/WTWmupcDr0rkEILkmftEWZLOLUqjd19m6/+hWq718gsp";

fn certificate() -> CertificateDer<'static> {
    STANDARD.decode(CERTIFICATE).unwrap().into()
}

/// The server's end.
pub(crate) fn server(alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(STANDARD.decode(KEY).unwrap()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// Connects as a client that trusts it.
pub(crate) async fn connect(addr: std::net::SocketAddr, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let tcp = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}
