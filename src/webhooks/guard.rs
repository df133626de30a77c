//! Which receivers may be asked: the only way to a [`CheckedUrl`], and the only lookup of names.
//!
//! Whoever may create a webhook chooses where this gateway connects to, from inside its network. So a URL is read as
//! browsers read it (the WHATWG parser knows every spelling of an address), literal addresses are checked at once, and
//! names are looked up here for each connection, which then goes to an address that was checked: a name that changes
//! its mind between check and connection (DNS rebinding) changes nothing. The way out itself
//! ([`outbound`](super::outbound)) follows no redirects and uses no proxy that is not configured.
//!
//! The table of denied networks follows the IANA special-purpose registries, with the forms of IPv6 that carry an IPv4
//! address inside.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use ipnet::IpNet;
use url::{Host, Url};

use crate::sabotage::{self, Bug};

/// Longest URL.
const URL_BYTES_MAX: usize = 2_048;
/// How long a lookup may take.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// Addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 16;

/// Networks that no receiver may be in.
const DENIED: [&str; 37] = [
    // "This network", private use, shared address space, loopback, link-local with the metadata services of clouds.
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    // Protocol assignments, documentation, 6to4 relays, private use, benchmarks, documentation.
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    // Multicast, reserved, broadcast.
    "224.0.0.0/4",
    "240.0.0.0/4",
    // Unspecified, loopback and IPv4-compatible; mapped ones are checked as what they carry.
    "::/96",
    "::ffff:0:0:0/96",
    // NAT64, discard, protocol assignments with Teredo and ORCHID, documentation, 6to4, SRv6.
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    // Unique local, link-local, site-local, multicast.
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    // All that is not 2000::/3: nothing there is public, and overlay networks use it (Yggdrasil has 200::/7).
    "::/3",
    "4000::/2",
    "8000::/1",
];

static DENIED_NETWORKS: LazyLock<Vec<IpNet>> =
    LazyLock::new(|| DENIED.iter().filter_map(|text| text.parse().ok()).collect());

/// Ports from 1024 up that browsers refuse, since what listens there takes an HTTP request for something else. Below
/// 1024 only 80 and 443 are allowed.
const DENIED_PORTS: [u16; 17] =
    [1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 10080];

/// Looks up a name: host and port give addresses.
pub type Lookup = Arc<
    dyn Fn(String, u16) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync,
>;

/// What is allowed beside what everybody may reach.
#[derive(Debug, Clone, Default)]
pub struct GuardConfig {
    /// `webhooks.allowed_networks`: exceptions to the table, for receivers of one's own.
    pub allowed_networks: Vec<IpNet>,
}

/// A URL that passed the guard. Only it can make one.
#[derive(Clone, PartialEq, Eq)]
pub struct CheckedUrl {
    uri: http::Uri,
    host: Host<String>,
    port: u16,
}

impl fmt::Debug for CheckedUrl {
    /// Host and port alone: paths and queries of receivers hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckedUrl({}:{})", self.host, self.port)
    }
}

impl CheckedUrl {
    /// As it is requested.
    pub fn uri(&self) -> &http::Uri {
        &self.uri
    }
}

/// Why a URL is refused; the text is for whoever gave it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It can't be read as one.
    #[error("this is no URL: {0}")]
    Unreadable(String),
    /// It is longer than any receiver needs.
    #[error("a URL has at most {URL_BYTES_MAX} bytes")]
    TooLong,
    /// Neither http nor https.
    #[error("the scheme must be https or http, not {0:?}")]
    Scheme(String),
    /// A user or a password before the host.
    #[error("put credentials into \"headers\" (for example Authorization), not into the URL")]
    Credentials,
    /// A part that is never sent.
    #[error("leave out the part behind #: it is never sent")]
    Fragment,
    /// No host.
    #[error("the URL names no host")]
    NoHost,
    /// A port of something else.
    #[error("port {0} is not allowed: use 80, 443, or one from 1024 that no other protocol has")]
    Port(u16),
    /// An address or name inside.
    #[error("{0} is an address that only machines of this network can reach")]
    Inside(String),
}

/// Why there is no address to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// All that the name leads to is denied.
    #[error("{host} leads only to addresses that only machines of this network can reach")]
    Denied {
        /// Which name.
        host: String,
    },
    /// It leads nowhere, now.
    #[error("{host} can't be looked up: {reason}")]
    Failed {
        /// Which name.
        host: String,
        /// Why.
        reason: String,
    },
}

impl ResolveError {
    /// Whether trying again is of no use.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { .. })
    }
}

/// See the head of this file; cheap to clone.
#[derive(Clone)]
pub struct Guard {
    allowed: Arc<[IpNet]>,
    lookup: Lookup,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard that looks names up as the system does.
    pub fn new(config: GuardConfig) -> Self {
        Self::with_lookup(
            config,
            Arc::new(|host, port| {
                Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
            }),
        )
    }

    /// A guard that looks names up in its own way.
    pub fn with_lookup(config: GuardConfig, lookup: Lookup) -> Self {
        Self { allowed: config.allowed_networks.into(), lookup }
    }

    /// Whether a receiver may have this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let within = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        within(&self.allowed) || !within(&DENIED_NETWORKS)
    }

    /// Reads a URL and checks all of it that can be checked without looking its name up.
    ///
    /// # Errors
    /// [`UrlError`] says what to change.
    pub fn check(&self, text: &str) -> Result<CheckedUrl, UrlError> {
        if text.len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        let url = Url::parse(text).map_err(|error| UrlError::Unreadable(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(UrlError::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Credentials);
        }
        if url.fragment().is_some() {
            return Err(UrlError::Fragment);
        }
        let host = url.host().ok_or(UrlError::NoHost)?.to_owned();
        let port = url.port_or_known_default().ok_or(UrlError::NoHost)?;
        if !matches!(port, 80 | 443 | 1024..) || DENIED_PORTS.contains(&port) {
            return Err(UrlError::Port(port));
        }
        let is_inside = match &host {
            Host::Ipv4(address) => !self.allows((*address).into()),
            Host::Ipv6(address) => !self.allows((*address).into()),
            Host::Domain(name) => {
                let name = name.trim_end_matches('.');
                if name.is_empty() {
                    return Err(UrlError::NoHost);
                }
                // RFC 6761: these never leave the machine, whatever a resolver says.
                let is_local = name == "localhost" || name.ends_with(".localhost");
                let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
                is_local && !loopback.into_iter().any(|address| self.allows(address))
            }
        };
        if is_inside {
            return Err(UrlError::Inside(host.to_string()));
        }
        let uri = url
            .as_str()
            .parse()
            .map_err(|error: http::uri::InvalidUri| UrlError::Unreadable(error.to_string()))?;
        Ok(CheckedUrl { uri, host, port })
    }

    /// Addresses to connect to, each of them checked.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve(&self, url: &CheckedUrl) -> Result<Vec<SocketAddr>, ResolveError> {
        self.addresses(&url.host, url.port).await
    }

    /// The same for a request's own URI, which has been a [`CheckedUrl`]'s.
    pub(super) async fn resolve_uri(&self, uri: &http::Uri) -> Result<Vec<SocketAddr>, ResolveError> {
        let failed = |reason: &str| ResolveError::Failed {
            host: uri.host().unwrap_or_default().to_owned(),
            reason: reason.to_owned(),
        };
        let host = uri.host().ok_or_else(|| failed("there is no host"))?;
        let host = Host::parse(host).map_err(|error| failed(&error.to_string()))?;
        let port =
            uri.port_u16().unwrap_or(if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 });
        self.addresses(&host, port).await
    }

    async fn addresses(&self, host: &Host<String>, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        let found = match host {
            Host::Ipv4(address) => vec![SocketAddr::from((*address, port))],
            Host::Ipv6(address) => vec![SocketAddr::from((*address, port))],
            Host::Domain(name) => {
                let failed = |reason: String| ResolveError::Failed { host: name.clone(), reason };
                let looked_up = tokio::time::timeout(LOOKUP_MAX, (self.lookup)(name.clone(), port)).await;
                let looked_up =
                    looked_up.map_err(|_| failed("the resolver did not answer in time".into()))?;
                let found = looked_up.map_err(|error| failed(error.to_string()))?;
                if found.is_empty() {
                    return Err(failed("it has no address".into()));
                }
                found
            }
        };
        let one_will_do = sabotage::on(Bug::CheckOneAddress) && found.iter().any(|one| self.allows(one.ip()));
        let is_allowed = |one: &SocketAddr| one_will_do || self.allows(one.ip());
        let allowed: Vec<_> = found.into_iter().filter(is_allowed).take(ADDRESSES_MAX).collect();
        if allowed.is_empty() { Err(ResolveError::Denied { host: host.to_string() }) } else { Ok(allowed) }
    }
}

#[cfg(test)]
mod tests;
