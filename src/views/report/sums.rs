//! The sums of a report, cell by cell.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, Hasher},
};

use super::{
    super::rollup::{
        cells::{Change, Name, Names, Tally},
        codec::Cell,
        data::Data,
        sim::Sim,
    },
    Interval, Period, Source,
};
use crate::event::Predicate;

/// What a SIM comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// Its events.
    pub events: i64,
    /// Its data.
    pub data: Data,
}

/// Everything that a report sums up.
#[derive(Debug)]
pub struct Sums {
    period: Period,
    interval: Interval,
    source: Source,
    /// All of it.
    pub total: Tally,
    /// By event type.
    pub types: Vec<Tally>,
    /// By country; of chosen SIMs only the data.
    pub countries: Vec<Tally>,
    /// By operator.
    pub operators: Vec<Tally>,
    /// By radio access technology.
    pub network_types: Vec<Tally>,
    /// By the hour at which a point begins, since the epoch.
    pub series: BTreeMap<i64, Tally>,
    /// Changes of country, by whole days.
    pub changes: BTreeMap<Change, i64>,
    /// By SIM, by whole days.
    pub sims: HashMap<Sim, Row, BuildHasherDefault<SimHasher>>,
}

impl Sums {
    /// Nothing yet.
    pub fn new(period: Period, interval: Interval, source: Source) -> Self {
        Self {
            period,
            interval,
            source,
            total: Tally::default(),
            types: Vec::new(),
            countries: Vec::new(),
            operators: Vec::new(),
            network_types: Vec::new(),
            series: BTreeMap::new(),
            changes: BTreeMap::new(),
            sims: HashMap::default(),
        }
    }

    /// Adds a cell of a day; with a predicate only what is of its SIMs.
    pub fn add(&mut self, day: i32, cell: &Cell<'_>, predicate: Option<&Predicate>) {
        match cell {
            Cell::Kind(kind, tally) if self.source != Source::SimRollup => {
                let hour = i64::from(day) * 24 + i64::from(kind.hour);
                if !(self.period.from_hour..self.period.to_hour).contains(&hour) {
                    return;
                }
                self.total.add(tally);
                at(&mut self.types, kind.event_type).add(tally);
                at(&mut self.countries, kind.country).add(tally);
                at(&mut self.operators, kind.operator).add(tally);
                at(&mut self.network_types, kind.network_type).add(tally);
                self.point(hour).add(tally);
            }
            Cell::Change(change, count) if self.source != Source::SimRollup => {
                *self.changes.entry(*change).or_default() += count;
            }
            Cell::Kind(..) | Cell::Change(..) => {}
            Cell::Sim(sim, row) => {
                if predicate.is_some_and(|predicate| !predicate.matches_sim(sim.text().as_deref())) {
                    return;
                }
                let mut data = Data::default();
                row.data.iter().for_each(|(_, more)| data.add(*more));
                let events = row.events();
                let sum = self.sims.entry(*sim).or_default();
                sum.events += events;
                sum.data.add(data);
                if self.source != Source::SimRollup {
                    return;
                }
                for (name, count) in &row.types {
                    at(&mut self.types, *name).events += count;
                }
                for (name, data) in &row.data {
                    at(&mut self.countries, *name).data.add(*data);
                }
                for (change, count) in &row.changes {
                    *self.changes.entry(*change).or_default() += count;
                }
                let tally = Tally {
                    events,
                    late: row.late,
                    repaired: row.repaired,
                    timed: row.timed,
                    seconds: row.seconds,
                    data,
                };
                self.total.add(&tally);
                self.point(i64::from(day) * 24).add(&tally);
            }
        }
    }

    /// Joins what came with the name of a country alone to what came with its code too: account-wide rows lack the
    /// network's code. A change between the two is none.
    pub fn join_countries(&mut self, names: &Names) {
        let changes = self.changes.keys().flat_map(|(from, to)| [*from, *to]);
        let used: Vec<Name> = (0..self.countries.len() as Name).chain(changes).collect();
        let mut coded = BTreeMap::<&str, Name>::new();
        for name in used.iter().copied() {
            if let (Some(country), Some(code)) = names.country_of(name) {
                let known = coded.entry(country).or_insert(name);
                // Should a name have several codes, the first of the alphabet has what came without.
                if names.country_of(*known).1.is_some_and(|other| code < other) {
                    *known = name;
                }
            }
        }
        let joined = |name: Name| match names.country_of(name) {
            (Some(country), None) => coded.get(country).copied().unwrap_or(name),
            _ => name,
        };
        for (name, tally) in std::mem::take(&mut self.countries).into_iter().enumerate() {
            at(&mut self.countries, joined(name as Name)).add(&tally);
        }
        for ((from, to), count) in std::mem::take(&mut self.changes) {
            let change = (joined(from), joined(to));
            if change.0 != change.1 {
                *self.changes.entry(change).or_default() += count;
            }
        }
    }

    /// The point of the series that an hour belongs to. The first day's begins where the period does.
    fn point(&mut self, hour: i64) -> &mut Tally {
        let begins = match self.interval {
            Interval::Hour => hour,
            Interval::Day => hour.div_euclid(24) * 24,
        };
        self.series.entry(begins.max(self.period.from_hour)).or_default()
    }
}

fn at(list: &mut Vec<Tally>, name: Name) -> &mut Tally {
    let at = name as usize;
    if list.len() <= at {
        list.resize(at + 1, Tally::default());
    }
    &mut list[at]
}

/// Packed ICCIDs differ in their middle bits and come from our own files: mixing them is enough.
#[derive(Debug, Default)]
pub struct SimHasher(u64);

impl Hasher for SimHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn write_u128(&mut self, value: u128) {
        let folded = (value as u64) ^ (value >> 64) as u64;
        let mixed = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_country_without_its_code_is_the_one_with_it() {
        let mut names = Names::default();
        let mut country = |name, code| names.country(name, code);
        let (bare, coded) = (country(Some("Denmark"), None), country(Some("Denmark"), Some("DK")));
        let (other, nameless) = (country(Some("Norway"), None), country(None, Some("DK")));
        let period = Period { from_hour: 0, to_hour: 24 };
        let mut sums = Sums::new(period, Interval::Hour, Source::Rollup);
        for (name, events) in [(bare, 3), (coded, 4), (other, 5), (nameless, 6), (0, 7)] {
            at(&mut sums.countries, name).events = events;
        }
        sums.changes = BTreeMap::from([((bare, coded), 1), ((other, bare), 2), ((other, coded), 3)]);
        sums.join_countries(&names);
        let of = |name: Name| sums.countries.get(name as usize).map_or(0, |tally| tally.events);
        assert_eq!([bare, coded, other, nameless, 0].map(of), [0, 7, 5, 6, 7]);
        assert_eq!(sums.changes, BTreeMap::from([((other, coded), 5)]));
    }
}
