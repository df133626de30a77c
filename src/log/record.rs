//! How one event lies in a segment: a frame that says where it ends and proves that it is whole.
//!
//! Layout, little-endian: magic (4 bytes), CRC of the header's rest, body length u32, keys length u32, sequence u64,
//! identity u64, content u32, CRC of the body; then the body. Header and body have a CRC each so that a reader which
//! lost its place can look for the next frame without hashing megabytes at every byte. Both are seeded with the
//! log's incarnation, and the magic holds bytes that no UTF-8 text has: bytes inside an event never pass for a frame.
//!
//! A frame can also say that nothing can be read at a range of positions: a copy of a log that was damaged must
//! announce what that one announces. It has no body, [`HOLE`] for a length of keys, the first position in the place of
//! the identity and the last one as its sequence.
//!
//! Nor has a frame of an event that was erased: its length of keys is [`ERASED`], and what lies in the place of the body
//! is a [`Tombstone`], which says what must stay known of it and nothing of whom it told.

use super::index::DayKey;
use crate::{
    event::{Keys, cursor, identity::id_hash},
    sabotage::{self, Bug},
};

/// Bytes in front of a body.
pub(crate) const HEADER_BYTES: usize = 40;
/// Longest body that is stored.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// Length of keys of a frame that is a hole.
const HOLE: u32 = u32::MAX;
/// Length of keys of a frame that holds the place of an erased event.
const ERASED: u32 = u32::MAX - 1;
/// Bytes of what stays of an erased event beside the frame's header.
const TOMBSTONE_BYTES: usize = 49;

const MAGIC: [u8; 4] = [0xFD, b's', 0xFE, 0x01];

/// A whole frame, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) seq: u64,
    pub(crate) identity: u64,
    pub(crate) content: u32,
    pub(crate) keys_len: u32,
    pub(crate) body: &'a [u8],
}

/// What stays of an event that was erased, so that it is not appended again while upstream still shows it, cursors that
/// point at it go on working, and the counts of its day stay as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// Position of the event.
    pub seq: u64,
    /// As it was given to append.
    pub(crate) identity: u64,
    /// As it was given to append.
    pub(crate) content: u32,
    /// [`id_hash`] of its id.
    pub(crate) id: u128,
    /// Of its id, for cursors.
    pub(crate) tag: u32,
    /// When it was appended, microseconds since the epoch.
    pub(crate) observed_us: i64,
    /// When it happened, microseconds since the epoch.
    pub(crate) time_us: i64,
    /// Under what it is counted.
    pub(crate) day: Option<DayKey>,
}

impl Tombstone {
    /// What stays of an event.
    pub(crate) fn of(frame: &Frame<'_>, keys: &Keys<'_>) -> Self {
        Self {
            seq: frame.seq,
            identity: frame.identity,
            content: frame.content,
            id: id_hash(keys.id),
            tag: cursor::tag(keys.id),
            observed_us: keys.observed_us,
            time_us: keys.time_us,
            day: DayKey::of(keys),
        }
    }

    /// Frames of all, for another store of the same history.
    pub(crate) fn encode_all(incarnation: u64, tombstones: &[Self]) -> Vec<u8> {
        let mut out = Vec::with_capacity(tombstones.len() * (HEADER_BYTES + TOMBSTONE_BYTES));
        tombstones.iter().for_each(|one| one.encode(Seed::of(incarnation), &mut out));
        out
    }

    /// What such frames say; those of another history, or cut short, say nothing.
    pub(crate) fn decode_all(incarnation: u64, mut bytes: &[u8]) -> Vec<Self> {
        let mut all = Vec::new();
        while let Ok(frame) = Frame::decode(Seed::of(incarnation), bytes) {
            all.extend(frame.tombstone());
            bytes = &bytes[frame.bytes()..];
        }
        all
    }

    /// Appends its frame.
    pub(crate) fn encode(&self, seed: Seed, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(TOMBSTONE_BYTES);
        body.extend_from_slice(&self.id.to_le_bytes());
        body.extend_from_slice(&self.tag.to_le_bytes());
        body.extend_from_slice(&self.observed_us.to_le_bytes());
        body.extend_from_slice(&self.time_us.to_le_bytes());
        body.push(u8::from(self.day.is_some()));
        let DayKey { quarter, event_type } = self.day.unwrap_or(DayKey { quarter: 0, event_type: 0 });
        body.extend_from_slice(&quarter.to_le_bytes());
        body.extend_from_slice(&event_type.to_le_bytes());
        let Self { seq, identity, content, .. } = *self;
        Frame { seq, identity, content, keys_len: ERASED, body: &body }.encode(seed, out);
    }
}

/// The bytes are no whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged;

/// Ties frames to their log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn of(incarnation: u64) -> Self {
        Self(crc32c::crc32c(&incarnation.to_le_bytes()))
    }
}

impl<'a> Frame<'a> {
    /// Bytes that the frame takes.
    pub(crate) fn bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// Appends the frame.
    pub(crate) fn encode(&self, seed: Seed, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.keys_len.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.identity.to_le_bytes());
        out.extend_from_slice(&self.content.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c_append(seed.0, self.body).to_le_bytes());
        let header_crc = crc32c::crc32c_append(seed.0, &out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&header_crc.to_le_bytes());
        out.extend_from_slice(self.body);
    }

    /// Reads the frame at the start of `bytes`, which may go on behind it.
    ///
    /// # Errors
    /// [`Damaged`] where any bit of it is not as it was written, or it is cut short.
    pub(crate) fn decode(seed: Seed, bytes: &'a [u8]) -> Result<Self, Damaged> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(Damaged)?;
        let body_len = header_body_len(seed, header).ok_or(Damaged)?;
        let body = rest.get(..body_len).ok_or(Damaged)?;
        let wrong = crc32c::crc32c_append(seed.0, body) != u32_at(header, 36);
        if wrong && !sabotage::on(Bug::SkipChecksum) {
            return Err(Damaged);
        }
        Ok(Self {
            seq: u64_at(header, 16),
            identity: u64_at(header, 24),
            content: u32_at(header, 32),
            keys_len: u32_at(header, 12),
            body,
        })
    }

    /// A frame that says of a range of positions, both ends inclusive, that they can't be read.
    pub(crate) fn of_hole((first_seq, last_seq): (u64, u64)) -> Self {
        Self { seq: last_seq, identity: first_seq, content: 0, keys_len: HOLE, body: &[] }
    }

    /// The range that can't be read, where the frame is one that says so.
    pub(crate) fn hole(&self) -> Option<(u64, u64)> {
        let is_hole = self.keys_len == HOLE && self.body.is_empty() && self.identity <= self.seq;
        is_hole.then_some((self.identity, self.seq))
    }

    /// What stays of an event that was erased, where the frame holds its place.
    pub(crate) fn tombstone(&self) -> Option<Tombstone> {
        let Self { seq, identity, content, body, .. } = *self;
        let quarter = u32_at(body, 37) as i32;
        let day = (body.get(36) == Some(&1)).then(|| DayKey { quarter, event_type: u64_at(body, 41) });
        let tombstone = || Tombstone {
            seq,
            identity,
            content,
            id: u128::from(u64_at(body, 0)) | u128::from(u64_at(body, 8)) << 64,
            tag: u32_at(body, 16),
            observed_us: u64_at(body, 20) as i64,
            time_us: u64_at(body, 28) as i64,
            day,
        };
        (self.keys_len == ERASED && body.len() == TOMBSTONE_BYTES).then(tombstone)
    }

    /// The filterable part; a body whose CRC is right and whose keys are not was written by another version.
    pub(crate) fn keys(&self) -> Result<Keys<'a>, Damaged> {
        let keys = self.body.get(..self.keys_len as usize).ok_or(Damaged)?;
        Keys::decode(keys).map_err(|_| Damaged)
    }
}

/// Where the next whole frame begins, at `from` or after it.
pub(crate) fn next_frame(seed: Seed, bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) =
        bytes.get(at..)?.windows(MAGIC.len()).position(|window| window == MAGIC).map(|n| at + n)
    {
        if Frame::decode(seed, &bytes[found..]).is_ok() {
            return Some(found);
        }
        at = found + 1;
    }
    None
}

fn header_body_len(seed: Seed, header: &[u8]) -> Option<usize> {
    let whole = header[..4] == MAGIC && crc32c::crc32c_append(seed.0, &header[8..]) == u32_at(header, 4);
    let body_len = u32_at(header, 8) as usize;
    (whole && body_len <= BODY_BYTES_MAX).then_some(body_len)
}

/// Reads a little-endian word that the caller knows to be there.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Reads a little-endian word that the caller knows to be there.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_and_any_flipped_bit_or_cut_is_noticed() {
        let seed = Seed::of(7);
        let frame = Frame { seq: 5, identity: 6, content: 7, keys_len: 3, body: b"keys and json" };
        let mut bytes = Vec::new();
        frame.encode(seed, &mut bytes);
        assert_eq!(bytes.len(), frame.bytes());
        assert_eq!(Frame::decode(seed, &bytes), Ok(frame));
        assert_eq!(Frame::decode(Seed::of(8), &bytes), Err(Damaged));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::decode(seed, &bytes), Err(Damaged), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for cut in 0..bytes.len() {
            assert_eq!(Frame::decode(seed, &bytes[..cut]), Err(Damaged), "cut at {cut}");
        }
    }

    #[test]
    fn the_next_frame_is_found_behind_garbage_and_half_frames() {
        let seed = Seed::of(7);
        let frame = Frame { seq: 5, identity: 6, content: 7, keys_len: 3, body: b"keys and json" };
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(b"garbage");
        let half = bytes.len();
        frame.encode(seed, &mut bytes);
        bytes.truncate(half + 45);
        let whole = bytes.len();
        frame.encode(seed, &mut bytes);
        assert_eq!(next_frame(seed, &bytes, 0), Some(whole));
        assert_eq!(next_frame(seed, &bytes, whole), Some(whole));
        assert_eq!(next_frame(seed, &bytes, whole + 1), None);
    }
}
