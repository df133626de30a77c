//! Amounts of data, added up without a float: upstream's digits are decimal, and so are the sums.

use serde::{Deserialize, Serialize};
use serde_json::Number;

/// Decimals that are kept.
const DECIMALS: i64 = 6;
/// The amount 1 MB.
const ONE: u64 = 1_000_000;
/// More digits than this before the last decimal overflow in any case.
const DIGITS_MAX: i64 = 30;

/// Megabytes in millionths. Digits beyond the sixth decimal are rounded, half away from zero; sums stop at the ends of
/// the range (9.2 million million MB).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Megabytes(i64);

impl Megabytes {
    /// Reads a JSON number as it is spelled; None where it is beyond the range.
    pub fn of(number: &Number) -> Option<Self> {
        Self::parse(&number.to_string())
    }

    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = || whole.bytes().chain(fraction.bytes());
        if digits().next().is_none() || !digits().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let length = i64::try_from(whole.len()).ok()?;
        let kept = length.checked_add(exponent.parse().ok()?)?.checked_add(DECIMALS)?;
        if digits().all(|digit| digit == b'0') || kept < 0 {
            return Some(Self(0));
        }
        if kept > DIGITS_MAX {
            return None;
        }
        let mut values = digits().map(|digit| i128::from(digit - b'0'));
        let mut next = || values.next().unwrap_or(0);
        let millionths = (0..kept).fold(0, |sum, _| sum * 10 + next());
        let rounded = millionths + i128::from(next() >= 5);
        i64::try_from(if negative { -rounded } else { rounded }).ok().map(Self)
    }

    /// So many millionths.
    pub const fn from_millionths(millionths: i64) -> Self {
        Self(millionths)
    }

    /// In millionths.
    pub const fn millionths(self) -> i64 {
        self.0
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What has to be added to `other` to come here.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// As a JSON number, without zeros at its end.
    pub fn to_number(self) -> Number {
        // What is printed here is a JSON number, so it can always be read as one.
        serde_json::from_str(&self.to_string()).unwrap_or_else(|_| Number::from(0))
    }
}

impl std::fmt::Display for Megabytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sign, size) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let (whole, fraction) = (size / ONE, size % ONE);
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        write!(f, "{sign}{whole}.{}", format!("{fraction:06}").trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Option<String> {
        Megabytes::of(&serde_json::from_str(text).unwrap()).map(|amount| amount.to_string())
    }

    #[test]
    fn digits_are_kept_and_the_seventh_decimal_rounds() {
        let cases = [
            ("870.50", "870.5"),
            ("0", "0"),
            ("-0.0", "0"),
            ("1.5e3", "1500"),
            ("15E-1", "1.5"),
            ("0.0000004", "0"),
            ("0.0000005", "0.000001"),
            ("-0.0000005", "-0.000001"),
            ("1e-7", "0"),
            ("5e-7", "0.000001"),
            ("9e-400", "0"),
            ("12345678901.123456499999999999999999", "12345678901.123456"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
        for beyond in ["1e13", "1e99999999999", "99999999999999999999999999999999"] {
            assert_eq!(shown(beyond), None, "{beyond}");
        }
        assert_eq!(shown("0e99"), Some("0".into()));
    }

    #[test]
    fn the_whole_range_is_read() {
        assert_eq!(shown("9223372036854.775807").as_deref(), Some("9223372036854.775807"));
        for beyond in ["9223372036854.775808", "1e300", "-1e2000000000"] {
            assert_eq!(shown(beyond), None, "{beyond}");
        }
    }

    #[test]
    fn tenths_add_up() {
        let tenth = Megabytes::parse("0.1").unwrap();
        let sum = (0..10).fold(Megabytes::default(), |sum, _| sum.plus(tenth));
        assert_eq!(sum.to_number().to_string(), "1");
        assert_eq!(sum.minus(tenth).to_string(), "0.9");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(millionths: i64) {
            let amount = Megabytes(millionths);
            prop_assert_eq!(Megabytes::of(&amount.to_number()), Some(amount));
        }
    }
}
