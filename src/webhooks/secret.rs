//! Secrets of webhooks at rest: encrypted under one key that lies elsewhere.
//!
//! ChaCha20-Poly1305 with a random nonce; the endpoint's id is authenticated with it, so that what lies under one
//! endpoint can't be put under another.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

const KEY_BYTES: usize = 32;
/// Of a key file; a key and white space need less.
const FILE_BYTES_MAX: u64 = 4_096;
/// Begins what is sealed, so that another way can be told later.
const VERSION: &str = "c1.";

/// Seals and opens.
pub struct Sealer(LessSafeKey);

impl std::fmt::Debug for Sealer {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

/// Why a key can't be had, or something can't be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealerError {
    /// Not a key.
    #[error(
        "the key for secrets must be base64 or hex of {KEY_BYTES} bytes; make one with: openssl rand -base64 32"
    )]
    Key,
    /// The file.
    #[error("the key for secrets in {}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        why: io::Error,
    },
    /// Another key, or damage.
    #[error("it was encrypted with another key, or is damaged; start with the key of before")]
    Opened,
    /// No random numbers, or too much to seal.
    #[error("it can't be encrypted on this machine")]
    Sealed,
}

impl Sealer {
    /// Takes a key: base64 or hex of 32 bytes.
    ///
    /// # Errors
    /// [`SealerError::Key`].
    pub fn parse(text: &str) -> Result<Self, SealerError> {
        let text = text.trim();
        let bytes = match text.len() {
            64 => hex::decode(text).ok(),
            _ => STANDARD.decode(text).ok(),
        };
        let bytes = bytes.filter(|bytes| bytes.len() == KEY_BYTES).ok_or(SealerError::Key)?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| SealerError::Key)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Reads the key in a file.
    ///
    /// # Errors
    /// [`SealerError`].
    pub fn from_file(path: &Path) -> Result<Self, SealerError> {
        let read = || {
            let mut text = String::new();
            File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(text)
        };
        Self::parse(&read().map_err(|why| SealerError::File { path: path.to_owned(), why })?)
    }

    /// Reads the key in a file, which is made with a new one where there is none. Only its owner may read it.
    ///
    /// # Errors
    /// [`SealerError`].
    pub fn from_file_or_new(path: &Path) -> Result<Self, SealerError> {
        match Self::from_file(path) {
            Err(SealerError::File { why, .. }) if why.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| SealerError::Sealed)?;
        place(path, &STANDARD.encode(bytes))
            .map_err(|why| SealerError::File { path: path.to_owned(), why })?;
        // Another process may have been first; its key is the one then.
        Self::from_file(path)
    }

    /// Encrypts; `context` must be given again to open.
    ///
    /// # Errors
    /// [`SealerError::Sealed`].
    pub fn seal(&self, plain: &[u8], context: &[u8]) -> Result<String, SealerError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealerError::Sealed)?;
        let mut sealed = plain.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut sealed)
            .map_err(|_| SealerError::Sealed)?;
        Ok(format!("{VERSION}{}", STANDARD.encode([&nonce[..], &sealed].concat())))
    }

    /// Decrypts.
    ///
    /// # Errors
    /// [`SealerError::Opened`].
    pub fn open(&self, sealed: &str, context: &[u8]) -> Result<Vec<u8>, SealerError> {
        let text = sealed.strip_prefix(VERSION).ok_or(SealerError::Opened)?;
        let bytes = STANDARD.decode(text).map_err(|_| SealerError::Opened)?;
        let (nonce, rest) = bytes.split_at_checked(NONCE_LEN).ok_or(SealerError::Opened)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealerError::Opened)?;
        let mut rest = rest.to_vec();
        let plain =
            self.0.open_in_place(nonce, Aad::from(context), &mut rest).map_err(|_| SealerError::Opened)?;
        Ok(plain.to_vec())
    }
}

/// Puts a file where none is, whole or not at all: a key that was cut by a crash would lock everything up, and one that
/// replaces another would too.
fn place(path: &Path, text: &str) -> io::Result<()> {
    let write = |options: &mut OpenOptions, path: &Path| {
        let mut file = options.write(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        // What is sealed with it must not outlive it.
        file.sync_all()
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".new{}", std::process::id()));
    let beside = PathBuf::from(beside);
    write(OpenOptions::new().create(true).truncate(true), &beside)?;
    let linked = fs::hard_link(&beside, path);
    fs::remove_file(&beside)?;
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // Not every file system has links.
        Err(_) => write(OpenOptions::new().create_new(true), path)?,
    }
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_same_key_and_place_open() {
        let (one, other) =
            (Sealer::parse(&"11".repeat(32)).unwrap(), Sealer::parse(&"22".repeat(32)).unwrap());
        let sealed = one.seal(b"whsec_secret", b"whk_1").unwrap();
        assert_eq!(one.open(&sealed, b"whk_1").unwrap(), b"whsec_secret");
        assert_ne!(sealed, one.seal(b"whsec_secret", b"whk_1").unwrap(), "a nonce is never used twice");
        assert!(!sealed.contains("secret"));
        assert!(other.open(&sealed, b"whk_1").is_err());
        assert!(one.open(&sealed, b"whk_2").is_err());
        let mut damaged = sealed.into_bytes();
        let last = damaged.len() - 3;
        damaged[last] ^= 1;
        assert!(one.open(std::str::from_utf8(&damaged).unwrap(), b"whk_1").is_err());
        assert!(one.open("", b"whk_1").is_err() && one.open("c1.AAAA", b"whk_1").is_err());
    }

    #[test]
    fn a_key_file_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let sealed = Sealer::from_file_or_new(&path).unwrap().seal(b"x", b"").unwrap();
        assert_eq!(Sealer::from_file_or_new(&path).unwrap().open(&sealed, b"").unwrap(), b"x");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        place(&path, "another").unwrap();
        assert_eq!(
            Sealer::from_file(&path).unwrap().open(&sealed, b"").unwrap(),
            b"x",
            "the first one stays"
        );
        fs::write(&path, "short").unwrap();
        assert!(matches!(Sealer::from_file_or_new(&path), Err(SealerError::Key)), "never replaced");
        let nowhere = dir.path().join("none/key");
        let error = Sealer::from_file_or_new(&nowhere).unwrap_err().to_string();
        assert!(error.contains("none/key"), "{error}");
    }
}
