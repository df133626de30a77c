//! The slots: free, taken by a request on its way, or held for a while after its answer.

use std::{collections::VecDeque, io, time::Duration};

use tokio::time::Instant;

use super::{
    Class, HOLD,
    journal::{Found, Journal},
};
use crate::sabotage::{self, Bug};

#[derive(Debug)]
pub(super) struct Table {
    /// Whose each slot is; None where a predecessor's class is not known, or the slot is free.
    owner: Vec<Option<Class>>,
    free: Vec<u32>,
    /// When each held slot becomes free, in that order.
    held: VecDeque<(Instant, u32)>,
    used: [u32; 6],
    used_total: u32,
    pub journal: Option<Journal>,
}

impl Table {
    /// `found` are the slots that a predecessor left behind, with what is left of their time.
    pub fn new(journal: Option<Journal>, mut found: Vec<Found>, now: Instant) -> Self {
        let len = found.iter().map(|slot| slot.index as usize + 1).max().unwrap_or(0);
        let mut table = Self {
            owner: vec![None; len],
            free: Vec::new(),
            held: VecDeque::new(),
            used: [0; 6],
            used_total: 0,
            journal,
        };
        found.sort_by_key(|slot| slot.left);
        for slot in &found {
            table.count(slot.index, slot.class);
            table.held.push_back((now + slot.left, slot.index));
        }
        let taken: std::collections::HashSet<u32> = found.iter().map(|slot| slot.index).collect();
        table.free.extend((0..len as u32).rev().filter(|index| !taken.contains(index)));
        table
    }

    pub fn used(&self) -> [u32; 6] {
        self.used
    }

    pub fn used_total(&self) -> u32 {
        self.used_total
    }

    /// When the next held slot becomes free.
    pub fn next_free(&self) -> Option<Instant> {
        self.held.front().map(|(at, _)| *at)
    }

    /// Takes a slot, noting it in the journal first.
    pub fn take(&mut self, class: Option<Class>) -> io::Result<u32> {
        let index = self.free.last().copied().unwrap_or(self.owner.len() as u32);
        if let Some(journal) = &mut self.journal
            && !sabotage::on(Bug::JournalAfterAnswer)
        {
            journal.taken(index, class)?;
        }
        if self.free.pop().is_none() {
            self.owner.push(None);
        }
        self.count(index, class);
        Ok(index)
    }

    /// The request of this slot is over: the slot is held from now.
    pub fn answered(&mut self, index: u32, now: Instant) -> io::Result<()> {
        let hold = if sabotage::on(Bug::FreeAtAnswer) { Duration::ZERO } else { HOLD };
        self.held.push_back((now + hold, index));
        let class = self.owner[index as usize];
        self.journal.as_mut().map_or(Ok(()), |journal| journal.answered(index, class))
    }

    /// How long each slot stays taken from now on, where the answer to a request in flight comes now.
    pub fn left(&self, now: Instant) -> impl Iterator<Item = Duration> {
        let in_flight = self.used_total as usize - self.held.len();
        let held = self.held.iter().map(move |(at, _)| at.saturating_duration_since(now));
        held.chain(std::iter::repeat_n(HOLD, in_flight))
    }

    /// Takes slots for requests of another gateway, each for what is left of its time.
    pub fn hold(&mut self, left: impl IntoIterator<Item = Duration>, now: Instant) -> io::Result<()> {
        for left in left {
            let index = self.take(None)?;
            self.held.push_back((now + left, index));
        }
        self.held.make_contiguous().sort_unstable_by_key(|(at, _)| *at);
        Ok(())
    }

    /// Frees the slots of requests that are over and gives what is left of their time, longest first, to be counted
    /// otherwise. For a table without a journal: that would still hold them.
    pub fn take_held(&mut self, now: Instant) -> Vec<Duration> {
        let mut left = Vec::with_capacity(self.held.len());
        while let Some((at, index)) = self.held.pop_back() {
            self.release(index);
            left.push(at.saturating_duration_since(now));
        }
        left
    }

    pub fn expire(&mut self, now: Instant) {
        while let Some((at, index)) = self.held.front().copied()
            && at <= now
        {
            self.held.pop_front();
            self.release(index);
        }
    }

    fn release(&mut self, index: u32) {
        self.used_total -= 1;
        if let Some(class) = self.owner[index as usize].take() {
            self.used[class.index()] -= 1;
        }
        self.free.push(index);
    }

    fn count(&mut self, index: u32, class: Option<Class>) {
        self.owner[index as usize] = class;
        self.used_total += 1;
        if let Some(class) = class {
            self.used[class.index()] += 1;
        }
    }
}
