//! Which personal fields a token may see, and in what form (design section 10).
//!
//! The receiver owns the SIMs, so the default shows everything. A policy rewrites decoded events; readers that
//! share a policy share the rewritten bytes.

use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Cursor, Event, Filter, StoredEvent, json};

/// What happens to one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FieldRule {
    /// Shown as it is.
    #[default]
    Keep,
    /// Null.
    Drop,
    /// The last four characters, the rest as `*`.
    Last4,
    /// `p_` and 16 hex of a keyed hash: equal values stay equal, so that joins work.
    Pseudonym,
}

impl FieldRule {
    /// Reads `keep`, `drop`, `last4` or `pseudonym`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "keep" => Some(Self::Keep),
            "drop" => Some(Self::Drop),
            "last4" => Some(Self::Last4),
            "pseudonym" => Some(Self::Pseudonym),
            _ => None,
        }
    }
}

/// The rules of one token.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldPolicy {
    /// `data.iccid` and `subject`.
    pub iccid: FieldRule,
    /// `data.msisdn`.
    pub msisdn: FieldRule,
    /// `data.session.ip_address`.
    pub ip_address: FieldRule,
    /// Whether `details` is shown although another rule hides something.
    pub details: bool,
    /// Whether `extra` is shown although another rule hides something.
    pub extra: bool,
    /// Key of the pseudonyms.
    pub key: Arc<[u8]>,
}

impl std::fmt::Debug for FieldPolicy {
    /// Without the key: who has it can undo the pseudonyms.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FieldPolicy")
            .field("iccid", &self.iccid)
            .field("msisdn", &self.msisdn)
            .field("ip_address", &self.ip_address)
            .field("details", &self.details)
            .field("extra", &self.extra)
            .finish_non_exhaustive()
    }
}

impl FieldPolicy {
    /// Whether events pass unchanged.
    pub fn keeps_all(&self) -> bool {
        [self.iccid, self.msisdn, self.ip_address].iter().all(|rule| *rule == FieldRule::Keep)
    }

    /// The field of `filter` that this policy hides, if any: filtering on it would reveal it.
    pub fn forbidden_field(&self, filter: &Filter) -> Option<&'static str> {
        (self.iccid != FieldRule::Keep && filter.uses_iccid()).then_some("iccid")
    }

    /// An ICCID as this policy shows it.
    pub fn show_iccid(&self, iccid: &str) -> Option<String> {
        self.rewrite(self.iccid, iccid).map(Cow::into_owned)
    }

    /// A phone number as this policy shows it.
    pub fn show_msisdn(&self, msisdn: &str) -> Option<String> {
        self.rewrite(self.msisdn, msisdn).map(Cow::into_owned)
    }

    /// Rewrites a decoded event. A hidden ICCID leaves the event without `subject`, unless it has a stand-in.
    pub fn apply(&self, event: &mut Event) -> Shown {
        let iccid = event.iccid.take();
        let shown = iccid.as_ref().and_then(|iccid| self.show_iccid(iccid.as_str()));
        if self.iccid == FieldRule::Keep {
            event.iccid = iccid;
        }
        event.msisdn =
            event.msisdn.take().and_then(|text| self.rewrite(self.msisdn, &text).map(Cow::into_owned));
        if let Some(session) = &mut event.session {
            let ip = session.ip_address.take();
            session.ip_address =
                ip.and_then(|text| self.rewrite(self.ip_address, &text).map(Cow::into_owned));
        }
        if !self.keeps_all() {
            if !self.details {
                event.details = None;
            }
            if !self.extra {
                event.extra.clear();
            }
        }
        Shown { iccid: shown }
    }

    fn rewrite<'t>(&self, rule: FieldRule, text: &'t str) -> Option<Cow<'t, str>> {
        match rule {
            FieldRule::Keep => Some(Cow::Borrowed(text)),
            FieldRule::Drop => None,
            FieldRule::Last4 => {
                let hidden = text.chars().count().saturating_sub(4);
                Some(Cow::Owned(
                    text.chars().enumerate().map(|(i, c)| if i < hidden { '*' } else { c }).collect(),
                ))
            }
            FieldRule::Pseudonym => {
                let mut sha = Sha256::new();
                sha.update((self.key.len() as u64).to_be_bytes());
                sha.update(&self.key);
                sha.update(text.as_bytes());
                Some(Cow::Owned(format!("p_{}", hex::encode(&sha.finalize()[..8]))))
            }
        }
    }
}

/// What stands in for the fields that an [`Event`] can't hold in rewritten form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// In place of `data.iccid` and `subject`.
    pub iccid: Option<String>,
}

/// A stored event as JSON with cursor, rewritten.
///
/// # Errors
/// Where the stored JSON can't be read.
pub fn rewrite_json(
    event: &StoredEvent,
    policy: &FieldPolicy,
    cursor: Cursor,
) -> Result<Vec<u8>, serde_json::Error> {
    let (mut decoded, observed_at): (Event, Timestamp) = json::read(event.json())?;
    let shown = policy.apply(&mut decoded);
    let mut bare = Vec::with_capacity(event.json().len());
    json::write(&decoded, observed_at, &mut bare);
    let mut out = Vec::with_capacity(bare.len() + json::CURSOR_BYTES);
    if policy.iccid == FieldRule::Keep {
        json::write_with_cursor(&bare, cursor, &mut out);
        return Ok(out);
    }
    let mut value: serde_json::Value = serde_json::from_slice(&bare)?;
    if let Some(iccid) = shown.iccid {
        value["subject"] = iccid.clone().into();
        value["data"]["iccid"] = iccid.into();
    }
    json::write_with_cursor(&serde_json::to_vec(&value)?, cursor, &mut out);
    Ok(out)
}

/// A stored event as an element of `repeated Event events = 1`, rewritten.
///
/// # Errors
/// Where the stored JSON can't be read.
pub fn rewrite_element(
    event: &StoredEvent,
    policy: &FieldPolicy,
    cursor: Cursor,
) -> Result<Vec<u8>, serde_json::Error> {
    let (mut decoded, observed_at): (Event, Timestamp) = json::read(event.json())?;
    let shown = policy.apply(&mut decoded);
    let mut message = super::protobuf::message(&decoded, observed_at);
    if let Some(iccid) = shown.iccid {
        message.subject.clone_from(&iccid);
        message.iccid = iccid;
    }
    Ok(super::protobuf::element_of(message, cursor))
}
