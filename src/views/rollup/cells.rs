//! What is counted of one UTC day: by hour and kind of event, by change of country, and by SIM.
//!
//! Cells are differences as well as sums: what has been counted since the last commit is a [`Day`] that is added to the
//! one in the day's file. Texts are numbers of a [`Names`] beside them.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::{data::Data, sim::Sim};

/// Different texts of one set of names; more are `(other)`, so that an upstream gone wild can't fill the memory.
pub const NAMES_MAX: usize = 20_000;

/// Bytes of a text that are kept.
pub const NAME_BYTES_MAX: usize = 160;

/// Stands for the texts beyond [`NAMES_MAX`].
pub const OTHER: &str = "(other)";

/// Between name and ISO code of a country, which are one text here.
const SEPARATOR: char = '\u{1f}';

/// A text, by number; 0 is none.
pub type Name = u32;

/// Texts by number and the other way.
#[derive(Debug, Clone, Default)]
pub struct Names {
    texts: Vec<Box<str>>,
    numbers: HashMap<Box<str>, Name>,
}

impl Names {
    /// The number of a text, which it gets if it has none.
    pub fn number(&mut self, text: Option<&str>) -> Name {
        let Some(text) = text else { return 0 };
        let text = text.get(..floor_char(text, NAME_BYTES_MAX)).unwrap_or_default();
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let text = if self.texts.len() >= NAMES_MAX { OTHER } else { text };
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        self.texts.push(text.into());
        let number = self.texts.len() as Name;
        self.numbers.insert(text.into(), number);
        number
    }

    /// The number of a country; none where neither name nor code is known.
    pub fn country(&mut self, name: Option<&str>, code: Option<&str>) -> Name {
        match (name, code) {
            (None, None) => 0,
            (Some(name), None) => self.number(Some(name)),
            (name, Some(code)) => {
                self.number(Some(&format!("{}{SEPARATOR}{code}", name.unwrap_or_default())))
            }
        }
    }

    /// The text of a number.
    pub fn text(&self, name: Name) -> Option<&str> {
        let at = (name as usize).checked_sub(1)?;
        self.texts.get(at).map(AsRef::as_ref)
    }

    /// Name and ISO code of a country.
    pub fn country_of(&self, name: Name) -> (Option<&str>, Option<&str>) {
        match self.text(name).map(|text| (text, text.split_once(SEPARATOR))) {
            None => (None, None),
            Some((text, None)) => (Some(text), None),
            Some((_, Some((name, code)))) => (Some(name).filter(|name| !name.is_empty()), Some(code)),
        }
    }
}

fn floor_char(text: &str, max: usize) -> usize {
    (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default()
}

/// Which events of a day are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// UTC hour, 0 to 23.
    pub hour: u8,
    /// Event type.
    pub event_type: Name,
    /// Country, see [`Names::country`].
    pub country: Name,
    /// Operator.
    pub operator: Name,
    /// Radio access technology.
    pub network_type: Name,
}

/// How much of a kind there was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events, each once.
    pub events: i64,
    /// Those that were late.
    pub late: i64,
    /// Those that were read again after damage.
    pub repaired: i64,
    /// Sessions that ended and told how long they were.
    pub timed: i64,
    /// Seconds of these.
    pub seconds: i64,
    /// What they show beyond what was counted of their sessions before.
    pub data: Data,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.late += other.late;
        self.repaired += other.repaired;
        self.timed += other.timed;
        self.seconds = self.seconds.saturating_add(other.seconds);
        self.data.add(other.data);
    }
}

/// A change of country: from, to.
pub type Change = (Name, Name);

/// One SIM on one day.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SimDay {
    /// Events that were late.
    pub late: i64,
    /// Events that were read again after damage.
    pub repaired: i64,
    /// Sessions that ended and told how long they were.
    pub timed: i64,
    /// Seconds of these.
    pub seconds: i64,
    /// Events by type.
    pub types: SmallVec<[(Name, i64); 4]>,
    /// Data by country.
    pub data: SmallVec<[(Name, Data); 1]>,
    /// Changes of country.
    pub changes: SmallVec<[(Change, i64); 1]>,
}

impl SimDay {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.late += other.late;
        self.repaired += other.repaired;
        self.timed += other.timed;
        self.seconds = self.seconds.saturating_add(other.seconds);
        for (name, count) in &other.types {
            *entry(&mut self.types, *name) += count;
        }
        for (name, data) in &other.data {
            entry(&mut self.data, *name).add(*data);
        }
        for (change, count) in &other.changes {
            *entry(&mut self.changes, *change) += count;
        }
    }

    /// Events of all types.
    pub fn events(&self) -> i64 {
        self.types.iter().map(|(_, count)| count).sum()
    }
}

/// The value of a key in a short list.
pub fn entry<K: PartialEq, V: Default, const N: usize>(list: &mut SmallVec<[(K, V); N]>, key: K) -> &mut V
where
    [(K, V); N]: smallvec::Array<Item = (K, V)>,
{
    let at = list.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
        list.push((key, V::default()));
        list.len() - 1
    });
    &mut list[at].1
}

/// One UTC day, or what has been added to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Day {
    /// By hour and kind.
    pub kinds: HashMap<Kind, Tally>,
    /// Changes of country.
    pub changes: HashMap<Change, i64>,
    /// By SIM.
    pub sims: HashMap<Sim, SimDay>,
}

impl Day {
    /// Adds another of the same day and the same names.
    pub fn add(&mut self, other: &Self) {
        for (kind, tally) in &other.kinds {
            self.kinds.entry(*kind).or_default().add(tally);
        }
        for (change, count) in &other.changes {
            *self.changes.entry(*change).or_default() += count;
        }
        for (sim, day) in &other.sims {
            self.sims.entry(*sim).or_default().add(day);
        }
    }

    /// Cells in it, which is what bounds its memory: less than 300 bytes each.
    pub fn cells(&self) -> usize {
        self.kinds.len() + self.changes.len() + self.sims.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_in_number_and_length() {
        let mut names = Names::default();
        assert_eq!((names.number(None), names.text(0)), (0, None));
        let first = names.number(Some("4G"));
        assert_eq!((first, names.number(Some("4G")), names.text(first)), (1, 1, Some("4G")));
        let long = names.number(Some(&"æ".repeat(500)));
        assert_eq!(names.text(long).map(str::len), Some(NAME_BYTES_MAX));
        for n in 0..NAMES_MAX + 10 {
            names.number(Some(&n.to_string()));
        }
        let other = names.number(Some("one more"));
        assert_eq!((names.text(other), names.texts.len()), (Some(OTHER), NAMES_MAX + 1));
        assert_eq!(names.number(Some("4G")), first);
    }

    #[test]
    fn a_country_is_a_name_a_code_or_both() {
        let mut names = Names::default();
        for country in
            [(Some("Norway"), Some("NO")), (Some("Norway"), None), (None, Some("NO")), (None, None)]
        {
            let number = names.country(country.0, country.1);
            assert_eq!(names.country_of(number), country);
        }
    }
}
