//! A position in the log that a client can keep: opaque, exclusive, the same in every frontend.
//!
//! It carries the log's incarnation, so that a cursor of another log is noticed, and a tag of the event at that
//! position, so that a log which went back in time and gave a sequence to another event is noticed too.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// Characters of the text form.
pub const CURSOR_CHARS: usize = 28;

const VERSION: u8 = 1;

/// "After this position". The text form is base64url of version, incarnation, sequence and tag (21 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Random identity of the log, made when it is created.
    pub incarnation: u64,
    /// Sequence of the last event before the position; 0 before all.
    pub seq: u64,
    /// [`tag`] of the id of the last event at or before `seq`; 0 where there is none.
    pub tag: u32,
}

/// Why a text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// Not made by simcast, or damaged on the way.
    #[error("this is no cursor: pass one unchanged as it was received ({CURSOR_CHARS} characters)")]
    Garbage,
    /// Made by a version that this one does not know.
    #[error("cursor version {0} is unknown to this gateway")]
    Version(u8),
}

impl Cursor {
    /// Reads the text form.
    ///
    /// # Errors
    /// [`CursorError`]; retrying with the same text does not help.
    pub fn parse(text: &str) -> Result<Self, CursorError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Garbage)?;
        let bytes: [u8; 21] = bytes.try_into().map_err(|_| CursorError::Garbage)?;
        if bytes[0] != VERSION {
            return Err(CursorError::Version(bytes[0]));
        }
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[1..9]);
        let incarnation = u64::from_be_bytes(word);
        word.copy_from_slice(&bytes[9..17]);
        let seq = u64::from_be_bytes(word);
        let mut tag = [0; 4];
        tag.copy_from_slice(&bytes[17..]);
        Ok(Self { incarnation, seq, tag: u32::from_be_bytes(tag) })
    }

    /// The text form, without allocating.
    pub fn encode(&self) -> [u8; CURSOR_CHARS] {
        let mut raw = [0; 21];
        raw[0] = VERSION;
        raw[1..9].copy_from_slice(&self.incarnation.to_be_bytes());
        raw[9..17].copy_from_slice(&self.seq.to_be_bytes());
        raw[17..].copy_from_slice(&self.tag.to_be_bytes());
        let mut text = [b'A'; CURSOR_CHARS];
        // 21 bytes are exactly 28 characters of base64 without padding, so this can't fail.
        let _ = URL_SAFE_NO_PAD.encode_slice(raw, &mut text);
        text
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.encode();
        f.write_str(std::str::from_utf8(&text).map_err(|_| std::fmt::Error)?)
    }
}

/// Tag of an event id: CRC32C, which damage and chance rarely fool and nobody has a reason to forge.
pub fn tag(id: &str) -> u32 {
    crc32c::crc32c(id.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn survives_the_text_form(incarnation: u64, seq: u64, tag: u32) {
            let cursor = Cursor { incarnation, seq, tag };
            let text = cursor.to_string();
            prop_assert_eq!(text.len(), CURSOR_CHARS);
            prop_assert_eq!(Cursor::parse(&text), Ok(cursor));
        }

        #[test]
        fn garbage_never_panics(text in ".{0,40}") {
            let _ = Cursor::parse(&text);
        }
    }

    #[test]
    fn other_versions_are_named() {
        let mut raw = [0; 21];
        raw[0] = 9;
        assert_eq!(Cursor::parse(&URL_SAFE_NO_PAD.encode(raw)), Err(CursorError::Version(9)));
        assert_eq!(Cursor::parse("nonsense"), Err(CursorError::Garbage));
    }
}
