//! The head of a text frame: the frame's header and what differs between subscribers, on the stack.

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
        // Pieces instead of a format: this is done for each delivery. They fit: see PREFIX_MAX.
        prefix.push(br#"{"type":"events","sub":""#);
        prefix.push(sub.as_bytes());
        prefix.push(br#"","n":"#);
        prefix.push_number(n);
        prefix.push(br#","cursor":""#);
        prefix.push(&cursor.encode());
        prefix.push(br#"","items":["#);
        prefix
    }

    fn push(&mut self, piece: &[u8]) {
        let end = self.end + piece.len();
        debug_assert!(end <= self.bytes.len());
        if let Some(room) = self.bytes.get_mut(self.end..end) {
            room.copy_from_slice(piece);
            self.end = end;
        }
    }

    fn push_number(&mut self, mut n: u64) {
        let mut digits = [0; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                break;
            }
        }
        self.push(&digits[start..]);
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
