//! The free alarm: upstream counts its rows, so a rise of the count that the rows read do not explain means that
//! something was inserted deeper than the tail reads.

use jiff::civil::Date;

/// Alarms in a row that no row explained, after which the count is not trusted.
const FRUITLESS_MAX: u32 = 8;

/// What a count says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All rows counted have been read, as far as can be told.
    Explained,
    /// So many have not.
    Missing(u64),
    /// It has cried wolf too often.
    Untrusted,
}

/// The count before, and what had been read then.
#[derive(Debug, Default)]
pub struct Totals {
    base: Option<(Option<Date>, u64, u64)>,
    /// Rows read, and rows that the ledger had found, when the last alarm was raised.
    alarmed: Option<(u64, u64)>,
    fruitless: u32,
}

impl Totals {
    /// Compares the rise of `total` of the window beginning at `start` with that of `read`, the rows read so far.
    /// `deep`: rows that the ledger has found so far; they explain alarms, but no rise, since theirs is long past.
    pub fn check(&mut self, start: Option<Date>, total: Option<u64>, read: u64, deep: u64) -> Verdict {
        let Some(total) = total else { return Verdict::Explained };
        let Some((_, base_total, base_read)) =
            self.base.replace((start, total, read)).filter(|b| b.0 == start)
        else {
            return Verdict::Explained;
        };
        let rise = total.saturating_sub(base_total);
        let explained = read - base_read;
        if rise <= explained {
            return Verdict::Explained;
        }
        // Rows of a sweep that ran between are read before they are counted: their alarm is the last one's answer.
        let fruitless = self.alarmed.replace((read, deep)) == Some((read, deep));
        self.fruitless = if fruitless { self.fruitless + 1 } else { 0 };
        if self.fruitless >= FRUITLESS_MAX {
            self.fruitless = 0;
            return Verdict::Untrusted;
        }
        Verdict::Missing(rise - explained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unexplained_rise_is_an_alarm() {
        let mut totals = Totals::default();
        let day = Some("2025-11-05".parse().unwrap());
        let mut check = |total, read| totals.check(day, Some(total), read, 0);
        assert_eq!(check(1_000, 10), Verdict::Explained);
        assert_eq!(check(1_003, 13), Verdict::Explained);
        assert_eq!(check(1_005, 14), Verdict::Missing(1));
        assert_eq!(check(1_005, 15), Verdict::Explained);
        assert_eq!(check(990, 15), Verdict::Explained);
    }

    #[test]
    fn another_day_is_another_count() {
        let mut totals = Totals::default();
        let days = ["2025-11-05", "2025-11-06"].map(|day| Some(day.parse().unwrap()));
        totals.check(days[0], Some(1_000), 0, 0);
        assert_eq!(totals.check(days[1], Some(5_000), 0, 0), Verdict::Explained);
        assert_eq!(totals.check(days[1], Some(5_001), 0, 0), Verdict::Missing(1));
    }

    #[test]
    fn a_count_that_rises_by_itself_is_found_out() {
        let mut totals = Totals::default();
        let verdicts = (0..12).map(|i| totals.check(None, Some(i), 0, 0));
        assert!(verdicts.collect::<Vec<_>>().contains(&Verdict::Untrusted));
    }

    #[test]
    fn rows_that_the_ledger_finds_clear_the_count_of_suspicion_and_hide_no_other() {
        let mut totals = Totals::default();
        totals.check(None, Some(0), 0, 0);
        for i in 1..40 {
            assert_eq!(totals.check(None, Some(i), 0, i), Verdict::Missing(1));
        }
        assert_eq!(totals.check(None, Some(39), 0, 50), Verdict::Explained);
    }

    /// Retention at the far end hides what is inserted at the same time: that is left to sweep and ledger.
    #[test]
    fn a_removal_hides_an_insertion_but_spoils_no_later_alarm() {
        let mut totals = Totals::default();
        totals.check(None, Some(100), 0, 0);
        assert_eq!(totals.check(None, Some(100), 0, 0), Verdict::Explained, "one came, one went");
        assert_eq!(totals.check(None, Some(95), 0, 0), Verdict::Explained, "one came, six went");
        assert_eq!(totals.check(None, Some(96), 0, 0), Verdict::Missing(1));
    }
}
