//! What makes two rows the same event.
//!
//! Upstream's event_id alone is not trusted: it may be reused or missing, and the same event arrives in two shapes.
//! Identity is (event_id, iccid, event_type, timestamp); msisdn and device_id are joined at read time upstream and
//! are not part of it (design section 3).

use std::{borrow::Borrow, fmt};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest id that is ever emitted, bytes.
pub const ID_BYTES_MAX: usize = 128;

/// A SIM's number: 18 to 22 digits, spaces and a final pad F stripped. The Luhn digit is not enforced, since the
/// API document's own example fails it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Iccid(String);

/// Why a text is no ICCID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an ICCID: 18 to 22 digits are needed, spaces and a final F are allowed")]
pub struct IccidError(pub String);

impl Iccid {
    /// Reads an ICCID as printed, spaced or padded.
    ///
    /// # Errors
    /// [`IccidError`] names the text.
    pub fn parse(text: &str) -> Result<Self, IccidError> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let digits = digits.strip_suffix(['F', 'f']).unwrap_or(&digits);
        if (18..=22).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) {
            Ok(Self(digits.to_owned()))
        } else {
            Err(IccidError(text.chars().take(40).collect()))
        }
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the last digit is the Luhn check digit of the others (ITU-T E.118). A false answer only warns.
    pub fn luhn_ok(&self) -> bool {
        let sum: u32 = (self.0.bytes().rev().enumerate())
            .map(|(i, b)| {
                let digit = u32::from(b - b'0');
                if i % 2 == 0 {
                    digit
                } else if digit > 4 {
                    digit * 2 - 9
                } else {
                    digit * 2
                }
            })
            .sum();
        sum.is_multiple_of(10)
    }
}

/// Tables by ICCID are asked with the text of stored keys. Orders and hashes as its text does.
impl Borrow<str> for Iccid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Iccid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Iccid {
    type Error = IccidError;
    fn try_from(text: String) -> Result<Self, IccidError> {
        Self::parse(&text)
    }
}

impl From<Iccid> for String {
    fn from(iccid: Iccid) -> Self {
        iccid.0
    }
}

/// What tells one event from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Upstream's id, where it gave one.
    pub event_id: Option<&'a str>,
    /// SIM.
    pub iccid: Option<&'a str>,
    /// Type as spelled.
    pub event_type: &'a str,
    /// Timestamp as spelled.
    pub timestamp: Option<&'a str>,
}

impl Identity<'_> {
    /// 64 bits of SHA-256 over the four fields, kept beside every id in the log.
    pub fn hash(&self) -> u64 {
        let mut hasher = FieldHasher::new("identity");
        hasher.field(self.event_id);
        hasher.field(self.iccid);
        hasher.field(Some(self.event_type));
        hasher.field(self.timestamp);
        hasher.finish_u64()
    }

    /// The id for the first event of this identity: event_id, encoded. None where upstream gave none.
    pub fn plain_id(&self) -> Option<String> {
        self.event_id.filter(|id| !id.is_empty()).map(encode_id)
    }

    /// The id for another identity under an event_id already taken: `<event_id>~<8 hex>`.
    pub fn conflict_id(&self) -> Option<String> {
        self.plain_id().map(|id| with_suffix(&id, &format!("~{:08x}", self.hash() >> 32)))
    }
}

/// The id of an event without event_id: `gen_` and 32 hex of SHA-256 over its `content` and its `ordinal` among
/// equal rows of one page, so that reading the page again gives the same ids.
pub fn generated_id(content: &[u8], ordinal: u32) -> String {
    let mut sha = Sha256::new();
    sha.update(b"simcast generated id\0");
    sha.update(ordinal.to_be_bytes());
    sha.update(content);
    format!("gen_{}", hex::encode(&sha.finalize()[..16]))
}

/// The id of the completed copy of an event that was first appended without details.
pub fn details_id(id: &str) -> String {
    with_suffix(id, "~details")
}

/// What [`details_id`] was made from, where `id` looks like one and was short.
pub fn of_details(id: &str) -> Option<&str> {
    id.strip_suffix("~details")
}

/// What [`Identity::conflict_id`] was made from, where `id` looks like one and was short.
pub fn of_conflict(id: &str) -> Option<&str> {
    let (plain, suffix) = id.rsplit_once('~')?;
    let is_hash = suffix.len() == 8 && suffix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_hash.then_some(plain)
}

/// Encodes an upstream id: bytes outside `[A-Za-z0-9_~-]` as `=XX`; longer than [`ID_BYTES_MAX`] becomes `=H` and
/// 32 hex of its SHA-256.
pub fn encode_id(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for byte in raw.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'~' | b'-' => out.push(char::from(byte)),
            _ => out.push_str(&format!("={byte:02X}")),
        }
    }
    if out.len() > ID_BYTES_MAX { hashed(raw) } else { out }
}

fn hashed(text: &str) -> String {
    format!("=H{}", hex::encode(&Sha256::digest(text.as_bytes())[..16]))
}

/// An id with something behind it; one that gets too long is hashed first.
pub fn with_suffix(id: &str, suffix: &str) -> String {
    if id.len() + suffix.len() <= ID_BYTES_MAX {
        format!("{id}{suffix}")
    } else {
        format!("{}{suffix}", hashed(id))
    }
}

/// 128 bits of SHA-256 of an id: what the log's id index holds.
pub fn id_hash(id: &str) -> u128 {
    let digest = Sha256::digest(id.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    u128::from_be_bytes(bytes)
}

/// Hashes optional fields without ambiguity: each is prefixed by its presence and length.
pub struct FieldHasher(Sha256);

impl FieldHasher {
    /// `domain` keeps hashes of different purposes apart.
    pub fn new(domain: &str) -> Self {
        let mut sha = Sha256::new();
        sha.update(domain.as_bytes());
        sha.update([0]);
        Self(sha)
    }

    /// Adds a field.
    pub fn field(&mut self, value: Option<&str>) {
        match value {
            None => self.0.update([0]),
            Some(text) => {
                self.0.update([1]);
                self.0.update((text.len() as u64).to_be_bytes());
                self.0.update(text.as_bytes());
            }
        }
    }

    /// The first 64 bits.
    pub fn finish_u64(self) -> u64 {
        let digest = self.0.finalize();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest[..8]);
        u64::from_be_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iccids_are_cleaned_and_checked() {
        assert_eq!(Iccid::parse("8901 2345 6789 0123 456F").unwrap().as_str(), "8901234567890123456");
        for bad in [
            "",
            "123",
            "89012345678901234567890",
            "8901234567890x23456",
            "８９０１２３４５６７８９０１２３４５６",
        ] {
            assert!(Iccid::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn luhn_agrees_with_the_documents_two_examples() {
        assert!(!Iccid::parse("8901234567890123456").unwrap().luhn_ok());
        assert!(Iccid::parse("8901234567890234567").unwrap().luhn_ok());
    }

    #[test]
    fn ids_are_encoded_within_bounds() {
        assert_eq!(encode_id("evt_abc123"), "evt_abc123");
        assert_eq!(encode_id("a b/ø"), "a=20b=2F=C3=B8");
        let long = encode_id(&"ø".repeat(100));
        assert!(long.starts_with("=H") && long.len() == 34, "{long}");
        assert!(with_suffix(&"x".repeat(125), "~details").len() <= ID_BYTES_MAX);
    }

    #[test]
    fn identity_tells_absent_from_empty_and_fields_apart() {
        let base = Identity { event_id: Some("e"), iccid: Some("1"), event_type: "t", timestamp: None };
        assert_ne!(base.hash(), Identity { timestamp: Some(""), ..base }.hash());
        assert_ne!(base.hash(), Identity { event_id: Some("e1"), iccid: Some(""), ..base }.hash());
        let conflict = base.conflict_id().unwrap();
        assert_eq!((conflict.len(), of_conflict(&conflict)), ("e~".len() + 8, Some("e")));
        assert_eq!(of_details(&details_id(&conflict)), Some(conflict.as_str()));
        assert_eq!(
            (of_details(&conflict), of_conflict("e~details"), of_conflict("e~0123456G")),
            (None, None, None)
        );
    }
}
