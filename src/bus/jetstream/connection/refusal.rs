//! Why a server can't be talked to, told by which key of the configuration is the cure.

use std::error::Error;

use async_nats::{ConnectError, ConnectErrorKind};
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::{
    super::{Config, OpenError},
    login, shown,
};

/// The error of a failed attempt to connect.
pub(super) async fn of(config: &Config, error: &ConnectError) -> OpenError {
    let urls = shown(&config.urls);
    let reason = error.to_string();
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            OpenError::Login { urls, cure: login::cure(config).await }
        }
        // Files and names that TLS can't begin with.
        ConnectErrorKind::Tls => OpenError::Tls {
            urls,
            reason,
            cure: "check the files bus.nats.tls_ca, tls_cert and tls_key, and the host in bus.nats.urls"
                .to_owned(),
        },
        _ => match tls_error(error) {
            Some(tls) => OpenError::Tls { urls, cure: tls_cure(config, tls), reason: tls.to_string() },
            None => OpenError::Unreachable { urls, reason },
        },
    }
}

/// What TLS said, however deep it lies.
fn tls_error(error: &ConnectError) -> Option<&TlsError> {
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<TlsError>() {
            return Some(tls);
        }
        // An I/O error shows what is inside it, not itself, as its source.
        let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}

fn tls_cure(config: &Config, error: &TlsError) -> String {
    let certificate_wanted = |alert: &AlertDescription| {
        matches!(
            alert,
            AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::HandshakeFailure
        )
    };
    match error {
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "the server's certificate is of another name: give that name as host in bus.nats.urls".to_owned()
        }
        TlsError::InvalidCertificate(_) => match &config.tls_ca {
            Some(path) => format!(
                "the server's certificate is not signed by what bus.nats.tls_ca ({}) holds, or has expired",
                path.display()
            ),
            None => {
                "the server's certificate is signed by nobody that this system trusts: set bus.nats.tls_ca"
                    .to_owned()
            }
        },
        TlsError::AlertReceived(alert) if certificate_wanted(alert) => match &config.tls_client {
            Some((certificate, _)) => format!(
                "the server does not take the client certificate bus.nats.tls_cert ({}): give one that its CA has signed",
                certificate.display()
            ),
            None => {
                "the server wants a client certificate: set bus.nats.tls_cert and bus.nats.tls_key".to_owned()
            }
        },
        _ => "check bus.nats.urls (does that port speak TLS?), tls_ca, tls_cert and tls_key".to_owned(),
    }
}
