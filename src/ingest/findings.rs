//! What upstream turned out to be like: found by the probe, checked again on every page.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    board::Board,
    page::{ListPage, Order, order_of},
    status::Mode,
    upstream::Item,
};

/// Pages that must contradict a finding before it is dropped: one may be a mixture of late rows.
const CONTRADICTIONS: u32 = 3;
/// Pages in a row that must be cut short before pages are taken to be shorter: an answer may be cut by accident.
const SHORT_PAGES: u32 = 10;

/// The findings. Each starts as what the API document suggests.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Findings {
    /// Order of the account-wide list; None until a page shows one.
    pub order: Option<Order>,
    against_order: u32,
    /// Whether `total` counts the rows; None until known.
    pub total_exact: Option<bool>,
    /// Whether `offset` does anything; None until known.
    pub offset_honoured: Option<bool>,
    /// Lowest offset that is refused; None while none is known.
    pub offset_refused: Option<u64>,
    /// Whether `end_date` includes its day; None until known.
    pub end_inclusive: Option<bool>,
    /// Whether `start_date` includes its day; None until known.
    pub start_inclusive: Option<bool>,
    /// Whether account-wide rows carry details; None until a row is seen.
    pub details_in_list: Option<bool>,
    against_details: u32,
    /// Rows of a full answer; None until one is seen that upstream says is not all.
    pub page_rows: Option<u64>,
    /// Full answers in a row with fewer rows, and most rows that one of them had.
    shorter: (u32, u64),
    /// Whether walks are lost so often that paging is not trusted.
    pub paging_lost: bool,
    probed_at: Option<Timestamp>,
    /// When what was believed of a capability last changed.
    pub changed_at: BTreeMap<String, Timestamp>,
    /// By when after midnight UTC upstream's days begin at the latest, in seconds; None while nobody knows.
    pub day_starts_s: Option<i64>,
}

impl Findings {
    /// How to read. The document's example is newest first, so that is assumed until a page tells.
    pub fn mode(&self) -> Mode {
        if self.paging_lost || self.offset_honoured == Some(false) || self.offset_refused.is_some() {
            return Mode::Windows;
        }
        match self.order.unwrap_or(Order::NewestFirst) {
            Order::NewestFirst => Mode::NewestFirst,
            Order::OldestFirst => Mode::OldestFirst,
            Order::Unsorted => Mode::Windows,
        }
    }

    /// Whether a list can be read by offset.
    pub fn pages(&self) -> bool {
        !self.paging_lost && self.offset_honoured != Some(false) && self.offset_refused.is_none()
    }

    /// Order to walk in.
    pub fn walk_order(&self) -> Order {
        self.order.unwrap_or(Order::NewestFirst)
    }

    /// The probe is through.
    pub fn probed(&mut self, at: Timestamp) {
        self.probed_at = Some(at);
    }

    /// Checks a page of the account-wide list against what is believed; true if the way to read changes.
    pub fn observe(&mut self, page: &ListPage<Item>, offset_refused: Option<u64>) -> bool {
        let before = self.mode();
        self.offset_refused = offset_refused;
        self.observe_page_rows(page);
        let mut rows = page.slots.iter().filter_map(|slot| slot.row.as_ref().ok()).peekable();
        if rows.peek().is_some() {
            let complete = rows.all(|row| row.complete);
            self.against_details = if self.details_in_list.is_some_and(|known| known != complete) {
                self.against_details + 1
            } else {
                0
            };
            if self.details_in_list.is_none() || self.against_details >= CONTRADICTIONS {
                (self.details_in_list, self.against_details) = (Some(complete), 0);
            }
        }
        if page.offset == 0
            && let Some(total) = page.total
        {
            let rows = page.slots.len() as u64;
            if total < rows && self.total_exact != Some(false) {
                tracing::debug!(total, rows, "upstream's total is smaller than a page");
                self.total_exact = Some(false);
            }
        }
        if let Some(shown) = order_of(&page.slots) {
            self.observe_order(shown);
        }
        self.mode() != before
    }

    /// Upstream may cut pages shorter than asked.
    fn observe_page_rows(&mut self, page: &ListPage<Item>) {
        let rows = page.slots.len() as u64;
        if rows == 0 || page.total.is_none_or(|total| total <= page.end()) {
            return;
        }
        match self.page_rows {
            Some(known) if rows < known => {
                self.shorter = (self.shorter.0 + 1, self.shorter.1.max(rows));
                if self.shorter.0 >= SHORT_PAGES {
                    (self.page_rows, self.shorter) = (Some(self.shorter.1), (0, 0));
                }
            }
            _ => (self.page_rows, self.shorter) = (Some(rows), (0, 0)),
        }
    }

    /// Takes over what a later probe found to be otherwise. `pages`: a walk could be followed.
    pub fn take_probe(&mut self, fresh: &Self, pages: bool) {
        if pages {
            self.paging_lost = false;
        }
        self.offset_honoured = fresh.offset_honoured.or(self.offset_honoured);
        self.total_exact = fresh.total_exact.or(self.total_exact);
        self.start_inclusive = fresh.start_inclusive.or(self.start_inclusive);
        self.end_inclusive = fresh.end_inclusive.or(self.end_inclusive);
        self.probed_at = fresh.probed_at.or(self.probed_at);
    }

    /// What can change, as shown.
    pub fn capabilities(&self) -> [(&'static str, Value); 9] {
        [
            ("order", json!(self.order.map(Order::as_str))),
            ("total_exact", json!(self.total_exact)),
            ("offset_honoured", json!(self.offset_honoured)),
            ("offset_refused_from", json!(self.offset_refused)),
            ("start_date_inclusive", json!(self.start_inclusive)),
            ("end_date_inclusive", json!(self.end_inclusive)),
            ("details_in_list", json!(self.details_in_list)),
            ("page_rows", json!(self.page_rows)),
            ("paging_trusted", json!(!self.paging_lost)),
        ]
    }

    fn observe_order(&mut self, shown: Order) {
        match self.order {
            None => self.order = Some(shown),
            Some(order) if order == shown => self.against_order = 0,
            Some(_) => {
                self.against_order += 1;
                if self.against_order >= CONTRADICTIONS {
                    (self.order, self.against_order) = (Some(shown), 0);
                }
            }
        }
    }

    /// Puts the findings on the board.
    pub fn show(&self, board: &Board, horizon_s: u64) {
        let probe = self.to_json();
        let mode = self.mode();
        board.update(|status| {
            (status.probe, status.mode, status.horizon_s) = (probe, mode, horizon_s);
        });
    }

    fn to_json(&self) -> Value {
        let mut shown = serde_json::Map::new();
        shown.insert("probed_at".to_owned(), json!(self.probed_at.map(|at| at.to_string())));
        shown.extend(self.capabilities().map(|(name, value)| (name.to_owned(), value)));
        let times = self.changed_at.iter().map(|(name, at)| (name.clone(), json!(at.to_string())));
        shown.insert("changed_at".to_owned(), Value::Object(times.collect()));
        Value::Object(shown)
    }
}
