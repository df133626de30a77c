//! Amounts of data, exactly: whole bytes, of which upstream's megabyte has a million.
//!
//! Upstream writes megabytes as decimals. They are read and shown as such, and added as integers in between: a float
//! would make the sum of a month depend on the order of its events.

use std::fmt;

use serde_json::Number;

/// Decimals of a megabyte that are kept; what lies behind them is cut.
const DECIMALS: i32 = 6;

/// Bytes; negative where upstream corrected an amount downwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub i64);

impl Bytes {
    /// Reads megabytes; None where the number is out of range, 9.2 million terabytes.
    pub fn from_mb(number: &Number) -> Option<Self> {
        let text = number.to_string();
        let (negative, text) = text.strip_prefix('-').map_or((false, text.as_str()), |rest| (true, rest));
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let point = i32::try_from(whole.len()).ok()?.checked_add(exponent)?.checked_add(DECIMALS)?;
        let mut bytes = 0_i64;
        let mut digits = whole.bytes().chain(fraction.bytes());
        for _ in 0..point {
            // Behind the last digit nothing but zeros follows, of which a zero needs none.
            let digit = match digits.next() {
                Some(digit) => i64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?),
                None if bytes == 0 => break,
                None => 0,
            };
            bytes = bytes.checked_mul(10)?.checked_add(digit)?;
        }
        Some(Self(if negative { -bytes } else { bytes }))
    }

    /// The megabytes, as a JSON number without superfluous zeros.
    pub fn to_mb(self) -> Number {
        // The text is a JSON number by its making.
        self.to_string().parse().unwrap_or_else(|_| Number::from(0))
    }

    /// The sum, at most what an `i64` holds.
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Bytes {
    /// Megabytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, rest) = (self.0.unsigned_abs() / 1_000_000, self.0.unsigned_abs() % 1_000_000);
        let decimals = format!("{rest:06}");
        match decimals.trim_end_matches('0') {
            "" => write!(f, "{sign}{whole}"),
            decimals => write!(f, "{sign}{whole}.{decimals}"),
        }
    }
}

/// What a session or a group of them moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Data {
    /// From the SIM.
    pub upload: Bytes,
    /// To the SIM.
    pub download: Bytes,
    /// As upstream says; not always the sum of the two.
    pub total: Bytes,
}

impl Data {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.upload = self.upload.plus(other.upload);
        self.download = self.download.plus(other.download);
        self.total = self.total.plus(other.total);
    }

    /// What is more than in an earlier reading.
    pub fn since(self, earlier: Self) -> Self {
        let minus = |a: Bytes, b: Bytes| Bytes(a.0.saturating_sub(b.0));
        Self {
            upload: minus(self.upload, earlier.upload),
            download: minus(self.download, earlier.download),
            total: minus(self.total, earlier.total),
        }
    }

    /// Whether nothing was moved.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Option<i64> {
        Bytes::from_mb(&serde_json::from_str(text).unwrap()).map(|bytes| bytes.0)
    }

    #[test]
    fn decimals_are_read_exactly_and_cut_behind_the_sixth() {
        let cases = [
            ("0", 0),
            ("870.50", 870_500_000),
            ("0.1", 100_000),
            ("0.0000019", 1),
            ("-1.25", -1_250_000),
            ("1.5e3", 1_500_000_000),
            ("15E-1", 1_500_000),
            ("1e-9", 0),
            ("0e9999", 0),
            ("9223372036854.775807", i64::MAX),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["9223372036854.775808", "1e300", "-1e2000000000"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_what_was_read() {
        for text in ["0", "0.3", "870.5", "-1.25", "12", "0.000001"] {
            assert_eq!(Bytes(bytes(text).unwrap()).to_mb().to_string(), text);
        }
    }
}
