//! A page of SIMs: which, in which order, from where on.
//!
//! The place of a page is the key of its last SIM, not a number of SIMs: what comes and goes meanwhile shifts nothing.
//! Sorted by ICCID each SIM is shown once; sorted by `last_seen` one that is seen meanwhile moves to the front and may
//! be missed or met again, as in any such list.

use std::{cmp::Reverse, collections::BinaryHeap};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::{Sim, entry::Entry, state::State};
use crate::event::{Cursor, Iccid, Predicate, filter::IndexTerm};

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Shown is a SIM whose entry, taken for an event, matches.
    pub predicate: Predicate,
    /// None: all.
    pub presence: Option<Presence>,
    /// Seen at or after.
    pub seen_since: Option<Timestamp>,
    /// Seen before.
    pub seen_before: Option<Timestamp>,
    /// Order.
    pub sort: Sort,
    /// Behind this place.
    pub after: Option<Place>,
    /// Most SIMs.
    pub limit: usize,
}

/// Whether a SIM is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The newest sign says so.
    Online,
    /// The newest sign says that it is not.
    Offline,
    /// No event tells.
    Unknown,
}

/// Order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// By number.
    #[default]
    Iccid,
    /// Those seen last first, those never seen at the end; by number among equals.
    LastSeen,
}

/// A place in a list: behind one SIM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In order of ICCID.
    Iccid(Iccid),
    /// In order of `last_seen`, microseconds since the epoch.
    LastSeen(Reverse<Option<i64>>, Iccid),
}

impl Place {
    fn of(sort: Sort, iccid: &Iccid, entry: &Entry) -> Self {
        match sort {
            Sort::Iccid => Self::Iccid(iccid.clone()),
            Sort::LastSeen => Self::LastSeen(Reverse(entry.last_us()), iccid.clone()),
        }
    }

    fn iccid(&self) -> &Iccid {
        match self {
            Self::Iccid(iccid) | Self::LastSeen(_, iccid) => iccid,
        }
    }

    /// The order that it is a place of.
    pub fn sort(&self) -> Sort {
        match self {
            Self::Iccid(_) => Sort::Iccid,
            Self::LastSeen(..) => Sort::LastSeen,
        }
    }
}

/// A page.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// In the order asked for.
    pub sims: Vec<Sim>,
    /// Where the next page begins; None where this is the last.
    pub next: Option<Place>,
    /// SIMs that match, on all pages.
    pub total: u64,
    /// Up to where the log is in it.
    pub as_of: Cursor,
    /// `observed_at` of the newest event that is in it.
    pub as_of_time: Option<Timestamp>,
}

/// The SIMs of a page, where the next one begins, and how many match. One pass over all SIMs, or over those that the
/// filter names; it holds `limit` keys beside the answer.
pub(super) fn read(
    state: &State,
    query: &Query,
    show: impl Fn(&Iccid, &Entry) -> Sim,
) -> (Vec<Sim>, Option<Place>, u64) {
    let mut nearest = BinaryHeap::with_capacity(query.limit + 2);
    let (mut total, mut more) = (0, false);
    let mut look = |iccid: &Iccid, entry: &Entry| {
        if !matches(query, iccid, entry) {
            return;
        }
        total += 1;
        let place = Place::of(query.sort, iccid, entry);
        if query.after.as_ref().is_some_and(|after| place <= *after) {
            return;
        }
        // Once the page is full a place behind its last one need not be sorted in.
        if nearest.len() >= query.limit && nearest.peek().is_some_and(|last| *last < place) {
            more = true;
            return;
        }
        nearest.push(place);
        if nearest.len() > query.limit {
            nearest.pop();
            more = true;
        }
    };
    match query.predicate.index_term() {
        IndexTerm::Iccid(named) => {
            let known = named.iter().filter_map(|iccid| state.sims.get_key_value(iccid.as_str()));
            known.for_each(|(iccid, entry)| look(iccid, entry));
        }
        _ => state.sims.iter().for_each(|(iccid, entry)| look(iccid, entry)),
    }
    let places = nearest.into_sorted_vec();
    let sims = places.iter().filter_map(|place| {
        let entry = state.sims.get(place.iccid())?;
        Some(show(place.iccid(), entry))
    });
    let sims = sims.collect();
    (sims, places.last().filter(|_| more).cloned(), total)
}

fn matches(query: &Query, iccid: &Iccid, entry: &Entry) -> bool {
    let seen = entry.last_us();
    let present = |presence| match presence {
        Presence::Online => entry.is_online() == Some(true),
        Presence::Offline => entry.is_online() == Some(false),
        Presence::Unknown => entry.is_online().is_none(),
    };
    query.presence.is_none_or(present)
        && query.seen_since.is_none_or(|since| seen.is_some_and(|us| us >= since.as_microsecond()))
        && query.seen_before.is_none_or(|before| seen.is_some_and(|us| us < before.as_microsecond()))
        && query.predicate.matches(&entry.keys(iccid))
}

const PLAIN: u8 = 1;
const SEALED: u8 = 2;
/// Of a token's text; a longer one is none.
const TOKEN_CHARS_MAX: usize = 256;

/// Turns places into page tokens and back. A place names a SIM, so for readers who may not see ICCIDs it is encrypted
/// with a key of this process: their tokens are good at the gateway that gave them, until it restarts.
pub struct Tokens {
    key: Option<LessSafeKey>,
    /// Nonces are counted, which is safe with a key that only this process has.
    used: std::sync::atomic::AtomicU64,
}

impl std::fmt::Debug for Tokens {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// With a key that is made anew for each process.
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new);
        Self { key, used: 0.into() }
    }

    /// The token of a place, `hidden` from readers who may not see the ICCID in it. None where it can't be encrypted.
    pub fn write(&self, place: &Place, hidden: bool) -> Option<String> {
        let mut bytes = Vec::with_capacity(64);
        match place {
            Place::Iccid(_) => bytes.push(0),
            Place::LastSeen(Reverse(us), _) => {
                bytes.push(1);
                bytes.extend_from_slice(&us.unwrap_or(i64::MIN).to_be_bytes());
            }
        }
        bytes.extend_from_slice(place.iccid().as_str().as_bytes());
        let mut token = vec![if hidden { SEALED } else { PLAIN }];
        if hidden {
            let count = self.used.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut nonce = [0; NONCE_LEN];
            nonce[..8].copy_from_slice(&count.to_be_bytes());
            token.extend_from_slice(&nonce);
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.key.as_ref()?.seal_in_place_append_tag(nonce, Aad::empty(), &mut bytes).ok()?;
        }
        token.extend_from_slice(&bytes);
        Some(URL_SAFE_NO_PAD.encode(token))
    }

    /// The place of a token; None where it is none of this gateway's, or not of this reader's kind.
    pub fn read(&self, token: &str, hidden: bool) -> Option<Place> {
        if token.len() > TOKEN_CHARS_MAX {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let plain = match (*bytes.first()?, hidden) {
            (PLAIN, false) => bytes.get(1..)?,
            (SEALED, true) => {
                let (nonce, sealed) = bytes.get_mut(1..)?.split_at_mut_checked(NONCE_LEN)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
                self.key.as_ref()?.open_in_place(nonce, Aad::empty(), sealed).ok()?
            }
            _ => return None,
        };
        let (sort, rest) = plain.split_first()?;
        let iccid = |bytes: &[u8]| Iccid::parse(std::str::from_utf8(bytes).ok()?).ok();
        match sort {
            0 => Some(Place::Iccid(iccid(rest)?)),
            1 => {
                let (us, rest) = rest.split_at_checked(8)?;
                let us = i64::from_be_bytes(us.try_into().ok()?);
                Some(Place::LastSeen(Reverse((us != i64::MIN).then_some(us)), iccid(rest)?))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_hide_what_must_be_hidden() {
        let tokens = Tokens::new(&[7; 32]);
        let iccid = Iccid::parse("8947000000000000001").unwrap();
        let places = [
            Place::Iccid(iccid.clone()),
            Place::LastSeen(Reverse(Some(-5)), iccid.clone()),
            Place::LastSeen(Reverse(None), iccid.clone()),
        ];
        for place in places {
            let (plain, sealed) = (tokens.write(&place, false).unwrap(), tokens.write(&place, true).unwrap());
            assert_eq!(tokens.read(&plain, false).as_ref(), Some(&place));
            assert_eq!(tokens.read(&sealed, true).as_ref(), Some(&place));
            let shown = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
            assert!(!shown.windows(6).any(|bytes| bytes == b"000000"), "{shown:?}");
            assert_ne!(tokens.write(&place, true).unwrap(), sealed);
            for (token, hidden) in [(&plain, true), (&sealed, false)] {
                assert_eq!(tokens.read(token, hidden), None);
            }
            assert_eq!(Tokens::new(&[8; 32]).read(&sealed, true), None);
        }
        for garbage in ["", "x", "AQ", "Ag", &"A".repeat(300)] {
            assert_eq!((tokens.read(garbage, false), tokens.read(garbage, true)), (None, None), "{garbage}");
        }
    }
}
