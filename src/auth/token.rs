//! The text form of tokens and other secrets: made here, known elsewhere only by hash.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// What every token begins with, so that secret scanners and people recognize one.
pub const TOKEN_PREFIX: &str = "sct_";

/// The machine gave no randomness; nothing secret can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct EntropyError;

/// A new token: `sct_` and 43 characters of base64url, 256 bits from the operating system.
///
/// # Errors
/// [`EntropyError`].
pub fn new_token() -> Result<String, EntropyError> {
    Ok(format!("{TOKEN_PREFIX}{}", random_text()?))
}

/// SHA-256 of a token's text, as `auth.tokens.sha256` holds it in hex. The token has 256 bits of entropy, so that a
/// slow password hash would add nothing.
pub fn hash_token(token: &str) -> [u8; 32] {
    super::sha256(token.as_bytes())
}

/// 256 random bits as 43 characters of base64url.
///
/// # Errors
/// [`EntropyError`].
pub fn random_text() -> Result<String, EntropyError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| EntropyError)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
