//! The head of a text frame: the frame's header and what differs between subscribers, on the stack.

use std::io::Write as _;

use crate::event::Cursor;

/// Of a frame's header: opcode, length, extended length (RFC 6455, section 5.2).
const HEADER_MAX: usize = 10;
/// Bytes of a per-subscriber prefix, at most: 64 of them for the name.
const PREFIX_MAX: usize = 192;

const TEXT: u8 = 0x81;

/// The part of an `events` message that differs between subscribers, with room for the frame's header before it.
pub(in crate::frontends::websocket) struct Prefix {
    bytes: [u8; HEADER_MAX + PREFIX_MAX],
    end: usize,
}

impl Prefix {
    /// Nothing.
    pub(in crate::frontends::websocket) const EMPTY: Self =
        Self { bytes: [0; HEADER_MAX + PREFIX_MAX], end: HEADER_MAX };

    /// Of items that begin with the `n`th of `sub`. The name needs no escaping, see
    /// [`messages`](crate::frontends::websocket::messages).
    pub(in crate::frontends::websocket) fn events(sub: &str, n: u64, cursor: Cursor) -> Self {
        let mut prefix = Self::EMPTY;
        let mut room = &mut prefix.bytes[HEADER_MAX..];
        let cursor = cursor.encode();
        let cursor = std::str::from_utf8(&cursor).unwrap_or_default();
        // PREFIX_MAX holds the longest name and number.
        let written =
            write!(room, r#"{{"type":"events","sub":"{sub}","n":{n},"cursor":"{cursor}","items":["#);
        debug_assert!(written.is_ok());
        prefix.end = HEADER_MAX + PREFIX_MAX - room.len();
        prefix
    }

    /// The head of a text frame with this prefix and a body of `body` bytes.
    pub(super) fn frame(&self, body: usize) -> Head {
        let mut bytes = self.bytes;
        let length = self.end - HEADER_MAX + body;
        let start = match length {
            0..=125 => {
                bytes[8..10].copy_from_slice(&[TEXT, length as u8]);
                8
            }
            126..=0xffff => {
                bytes[6..8].copy_from_slice(&[TEXT, 126]);
                bytes[8..10].copy_from_slice(&(length as u16).to_be_bytes());
                6
            }
            _ => {
                bytes[0..2].copy_from_slice(&[TEXT, 127]);
                bytes[2..10].copy_from_slice(&(length as u64).to_be_bytes());
                0
            }
        };
        Head { bytes, start, end: self.end }
    }
}

/// Ready to be written.
pub(super) struct Head {
    bytes: [u8; HEADER_MAX + PREFIX_MAX],
    start: usize,
    end: usize,
}

impl Head {
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontends::websocket::messages::SUB_MAX;

    #[test]
    fn the_longest_prefix_fits() {
        let cursor = Cursor { incarnation: u64::MAX, seq: u64::MAX, tag: u32::MAX };
        let sub = "s".repeat(SUB_MAX);
        let prefix = Prefix::events(&sub, u64::MAX, cursor);
        let expected =
            format!(r#"{{"type":"events","sub":"{sub}","n":{},"cursor":"{cursor}","items":["#, u64::MAX);
        assert_eq!(&prefix.bytes[HEADER_MAX..prefix.end], expected.as_bytes());
    }

    #[test]
    fn lengths_take_the_shortest_form() {
        for (body, header) in [
            (125, &[0x81, 125][..]),
            (126, &[0x81, 126, 0, 126]),
            (0xffff, &[0x81, 126, 0xff, 0xff]),
            (0x1_0000, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(Prefix::EMPTY.frame(body).as_slice(), header);
        }
    }
}
