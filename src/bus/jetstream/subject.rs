//! Subjects of the stream, as other NATS clients filter by them (design section 9):
//! `<prefix>.events.<event_type>.<iccid>.<device>`.
//!
//! A token keeps `[A-Za-z0-9_-]`; every other byte of its UTF-8 is `=XX` in upper-case hex, so that nothing upstream
//! or a customer puts into a device's name can add a token, a wildcard or a space. A lone `-` is `=2D`, since `-` alone
//! says that there is none; what would be longer than [`TOKEN_BYTES_MAX`] is `=H` and 32 hex digits of its SHA-256.
//! Subjects are for filtering and are never read back: the event is in the body.

use sha2::{Digest as _, Sha256};

/// A token for what is absent.
const ABSENT: &str = "-";
/// Longer ones are hashed: servers keep every subject in memory.
const TOKEN_BYTES_MAX: usize = 96;

/// Subject of an event.
pub(super) fn event(prefix: &str, event_type: &str, iccid: Option<&str>, device: Option<&str>) -> String {
    let token = |text: Option<&str>| text.map_or_else(|| ABSENT.to_owned(), token);
    format!("{prefix}.events.{}.{}.{}", token(Some(event_type)), token(iccid), token(device))
}

/// What begins the subjects of all events.
pub(super) fn events(prefix: &str) -> String {
    format!("{prefix}.events.")
}

/// Where the holders of a lease announce themselves.
pub(super) fn fence(prefix: &str, lease: &str) -> String {
    format!("{prefix}.ctl.fence.{}", token(lease))
}

/// What stands for a position whose event was lost before it could be copied here ([`standin`](super::standin)).
pub(super) fn lost(prefix: &str) -> String {
    format!("{prefix}.ctl.lost")
}

/// What stands for a position that never held an event.
pub(super) fn unused(prefix: &str) -> String {
    format!("{prefix}.ctl.unused")
}

/// One token.
pub(super) fn token(text: &str) -> String {
    let encoded = match text {
        "" => "=".to_owned(),
        ABSENT => "=2D".to_owned(),
        text => escape(text, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')),
    };
    if encoded.len() <= TOKEN_BYTES_MAX {
        return encoded;
    }
    let hash = Sha256::digest(text.as_bytes());
    format!("=H{}", hex::encode(&hash[..16]))
}

/// Writes the bytes that are not `plain` as `=XX`. `=` itself never is.
pub(super) fn escape(text: &str, plain: impl Fn(u8) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("={byte:02X}"));
        }
    }
    escaped
}

/// The text that was [escaped](escape); None where it was not.
pub(super) fn unescape(escaped: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'=' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subjects_are_as_documented() {
        assert_eq!(
            event("simcast", "network_change", Some("8901234567890123456"), Some("iot_dev-1")),
            "simcast.events.network_change.8901234567890123456.iot_dev-1"
        );
        assert_eq!(event("a.b", "x.y", None, Some("-")), "a.b.events.x=2Ey.-.=2D");
        assert_eq!(token("Målepunkt 7/*>"), "M=C3=A5lepunkt=207=2F=2A=3E");
        let long = "d".repeat(97);
        assert_eq!(token(&long[..96]), long[..96]);
        let hashed = token(&long);
        assert!(hashed.starts_with("=H") && hashed.len() == 34, "{hashed}");
        assert_eq!(fence("simcast", "poller"), "simcast.ctl.fence.poller");
    }

    proptest! {
        #[test]
        fn a_token_is_one_token_and_different_texts_have_different_ones(a in ".{0,60}", b in ".{0,60}") {
            let (one, two) = (token(&a), token(&b));
            prop_assert!(!one.is_empty() && one.len() <= TOKEN_BYTES_MAX && one != ABSENT);
            prop_assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'=')));
            prop_assert_eq!(one == two, a == b);
        }

        #[test]
        fn what_is_escaped_comes_back(text in ".{0,60}") {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'-');
            prop_assert_eq!(unescape(&escape(&text, plain)), Some(text));
        }
    }
}
