//! The file of one day: texts once, then cells in order, SIMs as differences, all as short numbers, with a checksum.
//!
//! A SIM with a few kinds of event takes about 15 bytes, so 100,000 of them for 400 days take well below a gigabyte.

use super::{
    cells::{Day, Kind, Name, Names, SimDay, Tally, entry},
    data::Data,
    sim::Sim,
};
use crate::views::megabytes::Megabytes;

/// First bytes of a day file; the last one is the version.
const MAGIC: &[u8; 8] = b"simcrol\x01";

/// The bytes are no file of that kind: damaged, or of a later version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a file of the roll-ups is damaged")]
pub struct Damaged;

/// One thing that a day file holds.
#[derive(Debug)]
pub enum Cell<'a> {
    /// Events of a kind.
    Kind(Kind, Tally),
    /// Changes of country.
    Change((Name, Name), i64),
    /// A SIM.
    Sim(Sim, &'a SimDay),
}

/// Writes numbers: seven bits a byte, the sign in the lowest bit.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// A file that begins with `magic`.
    pub fn new(magic: &[u8]) -> Self {
        Self(magic.to_vec())
    }

    /// A number.
    pub fn unsigned(&mut self, mut value: u128) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number with a sign.
    pub fn signed(&mut self, value: i64) {
        self.unsigned(u128::from((value << 1 ^ value >> 63) as u64));
    }

    /// A text.
    pub fn text(&mut self, text: &str) {
        self.unsigned(text.len() as u128);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn data(&mut self, data: &Data) {
        [data.upload, data.download, data.total].iter().for_each(|amount| self.signed(amount.millionths()));
    }

    /// The file, with its checksum.
    pub fn finish(mut self) -> Vec<u8> {
        let sum = crc32c::crc32c(&self.0);
        self.0.extend_from_slice(&sum.to_le_bytes());
        self.0
    }
}

/// Reads what a [`Writer`] wrote.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks checksum and beginning.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn new(bytes: &'a [u8], magic: &[u8]) -> Result<Self, Damaged> {
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or(Damaged)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(Damaged);
        }
        body.strip_prefix(magic).map(Self).ok_or(Damaged)
    }

    /// A number.
    ///
    /// # Errors
    /// [`Damaged`], as for all of them.
    pub fn unsigned(&mut self) -> Result<u128, Damaged> {
        let mut value = 0_u128;
        for shift in (0..128).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Damaged)?;
            self.0 = rest;
            value |= u128::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Damaged)
    }

    /// A number that fits 64 bits.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn word(&mut self) -> Result<u64, Damaged> {
        // Almost all numbers of a file are below 128.
        if let Some((byte, rest)) = self.0.split_first()
            && byte & 0x80 == 0
        {
            self.0 = rest;
            return Ok(u64::from(*byte));
        }
        u64::try_from(self.unsigned()?).map_err(|_| Damaged)
    }

    /// How many of something follow.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn count(&mut self) -> Result<usize, Damaged> {
        // Each takes a byte at least.
        usize::try_from(self.word()?).ok().filter(|count| *count <= self.0.len()).ok_or(Damaged)
    }

    /// A number with a sign.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn signed(&mut self) -> Result<i64, Damaged> {
        let value = self.word()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A text.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn text(&mut self) -> Result<&'a str, Damaged> {
        let length = self.count()?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Damaged)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Damaged)
    }

    fn data(&mut self) -> Result<Data, Damaged> {
        let mut amount = || self.signed().map(Megabytes::from_millionths);
        Ok(Data { upload: amount()?, download: amount()?, total: amount()? })
    }
}

/// The file of a day. Cells that came to nothing are left out.
pub fn encode(day: &Day, names: &Names) -> Vec<u8> {
    let mut kinds: Vec<_> = day.kinds.iter().filter(|(_, tally)| **tally != Tally::default()).collect();
    kinds.sort_unstable_by_key(|(kind, _)| **kind);
    let mut changes: Vec<_> = day.changes.iter().filter(|(_, count)| **count != 0).collect();
    changes.sort_unstable();
    let mut sims: Vec<_> = day.sims.iter().collect();
    sims.sort_unstable_by_key(|(sim, _)| **sim);

    let mut used = Used::default();
    let mut body = Writer::default();
    body.unsigned(kinds.len() as u128);
    for (kind, tally) in kinds {
        body.unsigned(u128::from(kind.hour));
        for name in [kind.event_type, kind.country, kind.operator, kind.network_type] {
            body.unsigned(used.number(name));
        }
        for count in [tally.events, tally.late, tally.repaired, tally.timed, tally.seconds] {
            body.signed(count);
        }
        body.data(&tally.data);
    }
    body.unsigned(changes.len() as u128);
    for ((from, to), count) in changes {
        body.unsigned(used.number(*from));
        body.unsigned(used.number(*to));
        body.signed(*count);
    }
    body.unsigned(sims.len() as u128);
    let mut before = 0;
    for (sim, row) in sims {
        body.unsigned(sim.0 - before);
        before = sim.0;
        encode_sim(&mut body, row, &mut used);
    }

    let mut file = Writer::new(MAGIC);
    file.unsigned(used.names.len() as u128);
    used.names.iter().for_each(|name| file.text(names.text(*name).unwrap_or_default()));
    file.0.extend_from_slice(&body.0);
    file.finish()
}

fn encode_sim(body: &mut Writer, row: &SimDay, used: &mut Used) {
    let rare = [row.late, row.repaired, row.timed, row.seconds];
    // Most rows are nothing but types: whether there is more is the lowest bit of how many.
    let has_more = rare.iter().any(|count| *count != 0) || !row.data.is_empty() || !row.changes.is_empty();
    body.unsigned((row.types.len() as u128) << 1 | u128::from(has_more));
    for (name, count) in &row.types {
        body.unsigned(used.number(*name));
        body.signed(*count);
    }
    if !has_more {
        return;
    }
    rare.iter().for_each(|count| body.signed(*count));
    body.unsigned(row.data.len() as u128);
    for (name, data) in &row.data {
        body.unsigned(used.number(*name));
        body.data(data);
    }
    body.unsigned(row.changes.len() as u128);
    for ((from, to), count) in &row.changes {
        body.unsigned(used.number(*from));
        body.unsigned(used.number(*to));
        body.signed(*count);
    }
}

/// The names that a file uses, numbered anew from 1.
#[derive(Default)]
struct Used {
    names: Vec<Name>,
    numbers: std::collections::HashMap<Name, u128>,
}

impl Used {
    fn number(&mut self, name: Name) -> u128 {
        if name == 0 {
            return 0;
        }
        *self.numbers.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() as u128
        })
    }
}

/// Gives every cell of a day file; its texts get numbers of `names`.
///
/// # Errors
/// [`Damaged`]; only a file of another version has given cells before.
pub fn visit(bytes: &[u8], names: &mut Names, mut call: impl FnMut(Cell<'_>)) -> Result<(), Damaged> {
    let mut file = Reader::new(bytes, MAGIC)?;
    let mut numbers = vec![0];
    for _ in 0..file.count()? {
        numbers.push(names.number(Some(file.text()?)));
    }
    let name = |file: &mut Reader<'_>| -> Result<Name, Damaged> {
        numbers.get(file.word()? as usize).copied().ok_or(Damaged)
    };
    for _ in 0..file.count()? {
        let hour = u8::try_from(file.word()?).map_err(|_| Damaged)?;
        let kind = Kind {
            hour,
            event_type: name(&mut file)?,
            country: name(&mut file)?,
            operator: name(&mut file)?,
            network_type: name(&mut file)?,
        };
        let tally = Tally {
            events: file.signed()?,
            late: file.signed()?,
            repaired: file.signed()?,
            timed: file.signed()?,
            seconds: file.signed()?,
            data: file.data()?,
        };
        call(Cell::Kind(kind, tally));
    }
    for _ in 0..file.count()? {
        let change = (name(&mut file)?, name(&mut file)?);
        call(Cell::Change(change, file.signed()?));
    }
    let mut sim = Sim::NONE;
    let mut row = SimDay::default();
    for _ in 0..file.count()? {
        sim = Sim(sim.0.checked_add(file.unsigned()?).ok_or(Damaged)?);
        row.types.clear();
        row.data.clear();
        row.changes.clear();
        [row.late, row.repaired, row.timed, row.seconds] = [0; 4];
        let head = file.word()?;
        for _ in 0..head >> 1 {
            row.types.push((name(&mut file)?, file.signed()?));
        }
        if head & 1 == 1 {
            row.late = file.signed()?;
            row.repaired = file.signed()?;
            row.timed = file.signed()?;
            row.seconds = file.signed()?;
            for _ in 0..file.count()? {
                row.data.push((name(&mut file)?, file.data()?));
            }
            for _ in 0..file.count()? {
                let change = (name(&mut file)?, name(&mut file)?);
                *entry(&mut row.changes, change) += file.signed()?;
            }
        }
        call(Cell::Sim(sim, &row));
    }
    Ok(())
}

impl Day {
    /// Adds a cell of a file.
    pub fn add_cell(&mut self, cell: &Cell<'_>) {
        match cell {
            Cell::Kind(kind, tally) => self.kinds.entry(*kind).or_default().add(tally),
            Cell::Change(change, count) => *self.changes.entry(*change).or_default() += count,
            Cell::Sim(sim, row) => self.sims.entry(*sim).or_default().add(row),
        }
    }

    /// Gives every cell, as [`visit`] does for a file.
    pub fn visit(&self, mut call: impl FnMut(Cell<'_>)) {
        self.kinds.iter().for_each(|(kind, tally)| call(Cell::Kind(*kind, *tally)));
        self.changes.iter().for_each(|(change, count)| call(Cell::Change(*change, *count)));
        self.sims.iter().for_each(|(sim, row)| call(Cell::Sim(*sim, row)));
    }
}
