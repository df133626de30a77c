//! The API key: where it comes from, how it is sent, and that it can't be printed.
//!
//! The API document says `Authorization: Bearer`; the platform's own clients also send `X-API-Key` (its Python SDK
//! does so for keys that begin `wayscloud_api_`, its Terraform provider always). Which one an account needs is found
//! out by trying, see [`AuthStyle::Auto`].

use std::{fmt, fs, io::Read as _, path::PathBuf};

use http::HeaderValue;

/// The prefix of keys that the platform's Python SDK sends as `X-API-Key`.
pub const X_API_KEY_PREFIX: &str = "wayscloud_api_";

const KEY_BYTES_MAX: u64 = 4096;

/// A text that must never be shown: no `Display`, and `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a key as configured; white space around it is not part of it.
    ///
    /// # Errors
    /// [`KeyError::Empty`], or [`KeyError::Malformed`] where it can't be sent in a header.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() as u64 > KEY_BYTES_MAX || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(KeyError::Malformed);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text with every occurrence of the secret blotted out.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }

    pub(super) fn prefers_x_api_key(&self) -> bool {
        self.0.starts_with(X_API_KEY_PREFIX)
    }

    pub(super) fn header(&self, style: Style) -> Result<HeaderValue, KeyError> {
        let text = match style {
            Style::Bearer => format!("Bearer {}", self.0),
            Style::XApiKey => self.0.clone(),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| KeyError::Malformed)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// Given in the configuration.
    Inline(Secret),
    /// The only line of a file, read again on SIGHUP and after a 401.
    File(PathBuf),
}

impl KeySource {
    /// Reads the key.
    ///
    /// # Errors
    /// [`KeyError`], which names the file and never its contents.
    pub fn load(&self) -> Result<Secret, KeyError> {
        match self {
            Self::Inline(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let unreadable = |error: std::io::Error| KeyError::Unreadable {
                    path: path.clone(),
                    why: error.to_string(),
                };
                let mut text = String::new();
                let file = fs::File::open(path).map_err(unreadable)?;
                file.take(KEY_BYTES_MAX + 2).read_to_string(&mut text).map_err(unreadable)?;
                Secret::new(&text)
            }
        }
    }
}

/// Why there is no usable key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// File.
    #[error("the API key file {} can't be read: {why}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// Nothing there.
    #[error("the API key is empty")]
    Empty,
    /// Not one line of visible ASCII.
    #[error("the API key must be one line of at most {KEY_BYTES_MAX} visible ASCII characters")]
    Malformed,
}

/// How the key is sent, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthStyle {
    /// By the key's prefix first; after a 401 the other way is tried once, and what works is kept.
    #[default]
    Auto,
    /// `Authorization: Bearer <key>`.
    Bearer,
    /// `X-API-Key: <key>`.
    XApiKey,
}

/// How the key is sent in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `Authorization: Bearer <key>`.
    Bearer,
    /// `X-API-Key: <key>`.
    XApiKey,
}

impl Style {
    /// As configured and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::XApiKey => "x-api-key",
        }
    }

    pub(super) fn header_name(self) -> http::HeaderName {
        match self {
            Self::Bearer => http::header::AUTHORIZATION,
            Self::XApiKey => http::HeaderName::from_static("x-api-key"),
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Bearer => Self::XApiKey,
            Self::XApiKey => Self::Bearer,
        }
    }
}

impl AuthStyle {
    pub(super) fn first(self, key: &Secret) -> Style {
        match self {
            Self::Bearer => Style::Bearer,
            Self::XApiKey => Style::XApiKey,
            Self::Auto if key.prefers_x_api_key() => Style::XApiKey,
            Self::Auto => Style::Bearer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new(" wayscloud_pat_topsecret\n").unwrap();
        let shown = format!("{:?} {:?}", secret, KeySource::Inline(secret.clone()));
        assert_eq!(shown, "*** Inline(***)");
        assert_eq!(format!("{:?}", secret.header(Style::Bearer).unwrap()), "Sensitive");
        assert_eq!(secret.redact("bad key wayscloud_pat_topsecret!"), "bad key ***!");
        assert_eq!(secret.header(Style::Bearer).unwrap().as_bytes(), b"Bearer wayscloud_pat_topsecret");
    }

    #[test]
    fn bad_keys_are_refused_without_being_repeated() {
        assert_eq!(Secret::new(" \n"), Err(KeyError::Empty));
        for bad in ["two lines\nof key", "ключ", &"x".repeat(5000)] {
            let error = Secret::new(bad).unwrap_err();
            assert_eq!(error, KeyError::Malformed);
            assert!(!error.to_string().contains(bad));
        }
    }

    #[test]
    fn a_key_file_is_read_trimmed_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "abc\n").unwrap();
        assert_eq!(KeySource::File(path.clone()).load(), Secret::new("abc"));
        fs::write(&path, "x".repeat(1 << 20)).unwrap();
        assert_eq!(KeySource::File(path.clone()).load(), Err(KeyError::Malformed));
        let missing = KeySource::File(dir.path().join("none")).load().unwrap_err();
        assert!(matches!(missing, KeyError::Unreadable { .. }), "{missing}");
    }

    #[test]
    fn the_prefix_chooses_the_first_style() {
        let first = |style: AuthStyle, key: &str| style.first(&Secret::new(key).unwrap());
        assert_eq!(first(AuthStyle::Auto, "wayscloud_api_x"), Style::XApiKey);
        assert_eq!(first(AuthStyle::Auto, "wayscloud_pat_x"), Style::Bearer);
        assert_eq!(first(AuthStyle::Bearer, "wayscloud_api_x"), Style::Bearer);
        assert_eq!(first(AuthStyle::XApiKey, "wayscloud_pat_x"), Style::XApiKey);
    }
}
