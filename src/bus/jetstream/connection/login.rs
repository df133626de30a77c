//! What the gateway shows a server to be let in: a file of keys, or what an address holds.
//!
//! Files are read anew for each connection, so that rotating them needs no restart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_nats::{Auth, AuthError, ConnectOptions};

use super::super::{Config, OpenError};

/// Options of a connection that logs in as configured.
///
/// # Errors
/// [`OpenError::Key`] where a file can't be used.
pub(super) async fn options(config: &Config) -> Result<ConnectOptions, OpenError> {
    Ok(match (&config.credentials_file, &config.nkey_file) {
        (Some(path), _) => {
            // A file that can't be read now would fail in the background, again and again.
            credentials(path).await?;
            with_keys(path.clone(), |path, nonce| async move {
                let (jwt, pair) = credentials(&path).await.map_err(AuthError::new)?;
                let mut auth = Auth::new();
                auth.jwt = Some(jwt);
                auth.signature = Some(pair.sign(&nonce).map_err(AuthError::new)?);
                Ok(auth)
            })
        }
        (None, Some(path)) => {
            nkey(path).await?;
            with_keys(path.clone(), |path, nonce| async move {
                let pair = nkey(&path).await.map_err(AuthError::new)?;
                let mut auth = Auth::new();
                auth.nkey = Some(pair.public_key());
                auth.signature = Some(pair.sign(&nonce).map_err(AuthError::new)?);
                Ok(auth)
            })
        }
        // The client itself does not look for them in an address (0.51, `connector.rs`).
        (None, None) => match config.urls.iter().find_map(|url| in_address(url)) {
            Some(InAddress::User(user, password)) => ConnectOptions::with_user_and_password(user, password),
            Some(InAddress::Token(token)) => ConnectOptions::with_token(token),
            None => ConnectOptions::new(),
        },
    })
}

/// What is wrong with the login, as a sentence about the key of the configuration that it comes from.
pub(super) async fn cure(config: &Config) -> String {
    if let Some(path) = &config.credentials_file {
        return format!(
            "bus.nats.credentials_file ({}): its JWT has expired or was revoked, or is of another operator; give a new one",
            path.display()
        );
    }
    if let Some(path) = &config.nkey_file {
        let public = nkey(path).await.map_or_else(|_| "its key".to_owned(), |pair| pair.public_key());
        return format!(
            "bus.nats.nkey_file ({}): the server does not know {public}; add it to the server's users, or give another seed",
            path.display()
        );
    }
    match config.urls.iter().find_map(|url| in_address(url)) {
        Some(InAddress::User(user, _)) => {
            format!("bus.nats.urls: correct the password of {user:?} there, or the user")
        }
        Some(InAddress::Token(_)) => {
            "bus.nats.urls: correct the token there; a user takes the form user:password@".to_owned()
        }
        None => "set bus.nats.credentials_file or bus.nats.nkey_file, or put user:password@ or token@ before the host in bus.nats.urls".to_owned(),
    }
}

/// What stands before the host of an address.
#[derive(Debug, PartialEq, Eq)]
enum InAddress {
    User(String, String),
    /// Something without a colon, as NATS' own tools have it.
    Token(String),
}

fn in_address(url: &str) -> Option<InAddress> {
    let (_, rest) = url.split_once("://")?;
    let (login, _) = rest.rsplit_once('@')?;
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some(match login.split_once(':') {
        Some((user, password)) => InAddress::User(plain(user), plain(password)),
        None => InAddress::Token(plain(login)),
    })
}

fn with_keys<F, Fut>(path: PathBuf, answer: F) -> ConnectOptions
where
    F: Fn(Arc<Path>, Vec<u8>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Auth, AuthError>> + Send + Sync + 'static,
{
    let path: Arc<Path> = path.into();
    ConnectOptions::with_auth_callback(move |nonce| answer(Arc::clone(&path), nonce))
}

/// JWT and key of a credentials file. Reads the disk in place: callbacks of async-nats must be `Sync`, which tokio's
/// file operations are not, and the file has a few lines.
async fn credentials(path: &Path) -> Result<(String, nkeys::KeyPair), OpenError> {
    let unusable =
        |reason: String| OpenError::Key { key: "bus.nats.credentials_file", path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let block = |name: &str| {
        let (_, rest) = text.split_once(&format!("BEGIN {name}"))?;
        rest.lines().skip(1).map(str::trim).find(|line| !line.is_empty() && !line.starts_with('-'))
    };
    let jwt = block("NATS USER JWT").ok_or_else(|| unusable("it holds no user JWT".to_owned()))?;
    let seed = block("USER NKEY SEED").ok_or_else(|| unusable("it holds no nkey seed".to_owned()))?;
    let pair = nkeys::KeyPair::from_seed(seed).map_err(|error| unusable(error.to_string()))?;
    Ok((jwt.to_owned(), pair))
}

/// Key of a file whose first line that is no comment is a seed.
async fn nkey(path: &Path) -> Result<nkeys::KeyPair, OpenError> {
    let unusable =
        |reason: String| OpenError::Key { key: "bus.nats.nkey_file", path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let seed = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with(['#', '-']));
    let seed = seed.ok_or_else(|| unusable("it holds no nkey seed".to_owned()))?;
    nkeys::KeyPair::from_seed(seed).map_err(|error| unusable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_in_addresses() {
        let user = |user: &str, password: &str| Some(InAddress::User(user.to_owned(), password.to_owned()));
        assert_eq!(in_address("nats://me:p%40ss@one:4222"), user("me", "p@ss"));
        assert_eq!(in_address("tls://me:@one"), user("me", ""));
        assert_eq!(in_address("tls://s%3Acret@one"), Some(InAddress::Token("s:cret".to_owned())));
        assert_eq!(in_address("nats://one:4222"), None);
    }
}
