//! An ICCID as a number that sorts like its text: what day files are sorted by, in a third of the room.

/// Longest ICCID, digits.
const DIGITS: usize = 22;

/// Bits below the digits that hold how many there are.
const LENGTH_BITS: u32 = 5;

/// A packed ICCID; [`Sim::NONE`] stands for events without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sim(pub u128);

impl Sim {
    /// No SIM.
    pub const NONE: Self = Self(0);

    /// Packs an ICCID, or the beginning of one; None is no ICCID. A text that is none is no SIM.
    pub fn pack(iccid: Option<&str>) -> Self {
        let Some(text) = iccid else { return Self::NONE };
        if text.is_empty() || text.len() > DIGITS || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::NONE;
        }
        let digits = text.bytes().map(|byte| u128::from(byte - b'0'));
        let padded = digits.chain(std::iter::repeat_n(0, DIGITS - text.len()));
        let number = padded.fold(0, |number, digit| number * 10 + digit);
        Self(number << LENGTH_BITS | text.len() as u128)
    }

    /// The ICCID; None for no SIM.
    pub fn text(self) -> Option<String> {
        let length = (self.0 & ((1 << LENGTH_BITS) - 1)) as usize;
        let digits = format!("{:0DIGITS$}", self.0 >> LENGTH_BITS);
        if length == 0 { None } else { digits.get(..length).map(str::to_owned) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packed_iccids_come_back_and_sort_like_their_texts(a in "[0-9]{18,22}", b in "[0-9]{18,22}") {
            let (first, second) = (Sim::pack(Some(&a)), Sim::pack(Some(&b)));
            prop_assert_eq!(first.text(), Some(a.clone()));
            prop_assert_eq!(first.cmp(&second), a.cmp(&b));
            prop_assert!(first > Sim::NONE);
        }
    }

    #[test]
    fn no_sim_is_no_text() {
        assert_eq!(Sim::pack(None).text(), None);
        assert_eq!(Sim::pack(Some("not digits")), Sim::NONE);
    }
}
