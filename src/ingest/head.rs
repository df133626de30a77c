//! The newest page of a moment ago: what a new page is joined to, and the proof that a row was not visible then.

use std::collections::HashSet;

use jiff::{Timestamp, civil::Date};

use super::{
    page::{ListPage, Order, Slot},
    probe::day_plus,
    session::{Swept, keys},
    sweep::midnight,
    upstream::{Item, Window},
};

/// What is remembered of a page.
#[derive(Debug)]
pub struct Head {
    keys: HashSet<u64>,
    /// When it was asked, by our clock.
    pub sent_at: Timestamp,
    /// First day of its window.
    start: Option<Date>,
    /// Whether it began with the newest row.
    newest: bool,
    /// Whether it showed all that its window has.
    whole: bool,
}

impl Head {
    /// Of a page of `window`, the list being in `order`; None where that is not known.
    pub fn of(page: &ListPage<Item>, window: &Window, order: Option<Order>) -> Self {
        Self {
            keys: keys(&page.slots),
            sent_at: page.sent_at,
            start: window.start,
            newest: page.offset == 0 && order == Some(Order::NewestFirst),
            whole: page.is_whole_list(),
        }
    }

    /// Whether it showed the row.
    pub fn has(&self, slot: &Slot<Item>) -> bool {
        self.keys.contains(&slot.key)
    }

    /// Whether it showed no row that can be recognised.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether both begin with the newest row of a list in one order.
    pub fn leads_to(&self, later: &Self) -> bool {
        self.newest && later.newest
    }

    /// What reading it proved, where it reaches down to `depth`.
    pub fn swept(&self, depth: Timestamp) -> Option<Swept> {
        (self.newest || self.whole).then_some(Swept { sent_at: self.sent_at, depth })
    }

    /// Of rows that stand in the list from `later` down, newest first: the keys of those above a row that this page
    /// showed. It began with the newest row, so visible then they would have been on it.
    pub fn above(&self, later: &Self, rows: &[Slot<Item>]) -> HashSet<u64> {
        let above = match rows.iter().rposition(|slot| self.has(slot)) {
            _ if self.whole => rows.len(),
            Some(joint) if self.leads_to(later) => joint,
            _ => 0,
        };
        keys(&rows[..above])
    }

    /// Whether a row of the window of `later` is in the window of this page too.
    pub fn would_show(&self, later: &Self, slot: &Slot<Item>) -> bool {
        let Some(start) = self.start else { return true };
        // Whatever the zone of upstream's days, and whether the first is included, this is in the window.
        let within = midnight(day_plus(start, 2));
        later.start.is_some_and(|later| start <= later) || slot.time.is_some_and(|time| time >= within)
    }
}
