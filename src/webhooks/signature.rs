//! Standard Webhooks: who has the secret can tell that a request came from here and was not changed.
//!
//! Signed is `<webhook-id>.<webhook-timestamp>.<body>` by HMAC-SHA256; the header `webhook-signature` holds `v1,` and
//! base64 for each secret that is live, so that a receiver may change over at its own pace. Source: the specification
//! at standardwebhooks.com, whose vectors are in the tests.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

/// Begins the text of a secret.
pub const PREFIX: &str = "whsec_";
/// Bytes of a secret, as the specification wants them.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;
const NEW_BYTES: usize = 32;

/// A secret, ready to sign. Its bytes are overwritten when it goes; ring does not do so with the key it made of them.
#[derive(Clone)]
pub struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    key: hmac::Key,
}

impl std::fmt::Debug for Secret {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Why a text is no secret, or none can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not base64.
    #[error("a secret is whsec_ and base64 of 24 to 64 bytes; this is no base64")]
    Base64,
    /// Too short or too long.
    #[error("a secret is whsec_ and base64 of 24 to 64 bytes; this one has {0}")]
    Length(usize),
    /// The machine gives no random numbers.
    #[error("this machine gives no random numbers")]
    Random,
}

impl Secret {
    fn new(bytes: Vec<u8>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        Self { bytes: Zeroizing::new(bytes), key }
    }

    /// Reads `whsec_` and base64; the prefix may be missing, as the official libraries have it.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let bytes =
            STANDARD.decode(text.strip_prefix(PREFIX).unwrap_or(text)).map_err(|_| SecretError::Base64)?;
        if !BYTES.contains(&bytes.len()) {
            return Err(SecretError::Length(bytes.len()));
        }
        Ok(Self::new(bytes))
    }

    /// A new one.
    ///
    /// # Errors
    /// [`SecretError::Random`].
    pub fn generate() -> Result<Self, SecretError> {
        let mut bytes = vec![0; NEW_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| SecretError::Random)?;
        Ok(Self::new(bytes))
    }

    /// Its text, to be shown once.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&*self.bytes))
    }

    fn signature(&self, id: &str, timestamp: &str, body: &[u8]) -> hmac::Tag {
        let mut signing = hmac::Context::with_key(&self.key);
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            signing.update(part);
        }
        signing.sign()
    }
}

/// The header `webhook-signature` for a body, by each of the secrets.
pub fn sign(secrets: &[Secret], id: &str, timestamp_unix_s: i64, body: &[u8]) -> HeaderValue {
    let timestamp = timestamp_unix_s.to_string();
    let mut header = String::with_capacity(secrets.len() * 48);
    for secret in secrets {
        if !header.is_empty() {
            header.push(' ');
        }
        header.push_str("v1,");
        STANDARD.encode_string(secret.signature(id, &timestamp, body), &mut header);
    }
    // Base64 is visible text.
    HeaderValue::from_str(&header).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether one of the signatures in a header is by one of the secrets, compared in constant time. The caller checks
/// how old the timestamp is.
pub fn verify(secrets: &[Secret], id: &str, timestamp: &str, header: &str, body: &[u8]) -> bool {
    let given = header.split(' ').filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok());
    let given: Vec<_> = given.collect();
    secrets.iter().any(|secret| {
        let signature = secret.signature(id, timestamp, body);
        given.iter().any(|one| subtle::ConstantTimeEq::ct_eq(signature.as_ref(), one.as_slice()).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the specification's Rust library, and of seven others.
    const VECTORS: [(&str, &str, i64, &str, &str); 2] = [
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
        (
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
    ];

    #[test]
    fn the_vectors_of_the_specification() {
        for (secret, id, at, body, expected) in VECTORS {
            let secret = Secret::parse(secret).unwrap();
            assert_eq!(sign(std::slice::from_ref(&secret), id, at, body.as_bytes()), expected);
            assert!(verify(&[secret], id, &at.to_string(), expected, body.as_bytes()));
        }
    }

    #[test]
    fn what_differs_in_anything_does_not_verify() {
        let (secret, id, at, body, good) = VECTORS[0];
        let secrets = [Secret::parse(secret).unwrap()];
        let (at, body) = (at.to_string(), body.as_bytes());
        let cut = &good[..good.len() - 4];
        for (id, at, header, body) in [
            ("msg_other", at.as_str(), good, body),
            (id, "1649367554", good, body),
            (id, at.as_str(), good, &body[1..]),
            (id, at.as_str(), &good[3..], body),
            (id, at.as_str(), "v1,", body),
            (id, at.as_str(), "", body),
            (id, at.as_str(), cut, body),
            (id, at.as_str(), &good.replace("v1,", "v1a,"), body),
        ] {
            assert!(!verify(&secrets, id, at, header, body), "{header}");
        }
        let other = [Secret::generate().unwrap()];
        assert!(!verify(&other, id, &at, good, body));
    }

    #[test]
    fn each_live_secret_signs() {
        let secrets: Vec<_> = (0..10).map(|_| Secret::generate().unwrap()).collect();
        let header = sign(&secrets, "evt_1", 1_700_000_000, b"{}");
        let header = header.to_str().unwrap();
        assert_eq!(header.split(' ').count(), 10);
        for secret in &secrets {
            assert!(verify(std::slice::from_ref(secret), "evt_1", "1700000000", header, b"{}"));
            assert_eq!(Secret::parse(&secret.reveal()).unwrap().reveal(), secret.reveal());
        }
    }

    #[test]
    fn secrets_of_the_wrong_size_are_refused() {
        assert_eq!(Secret::parse("whsec_AAAA").unwrap_err(), SecretError::Length(3));
        assert_eq!(Secret::parse("whsec_*").unwrap_err(), SecretError::Base64);
        assert_eq!(format!("{:?}", Secret::parse(VECTORS[0].0).unwrap()), "Secret");
    }
}
