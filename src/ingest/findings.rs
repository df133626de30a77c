//! What upstream turned out to be like: found by the probe, checked again on every page.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    board::Board,
    page::{ListPage, Order, PAGE_ROWS, order_of},
    status::Mode,
    upstream::Item,
};

/// Pages that must contradict a finding before it is dropped: one may be a mixture of late rows.
const CONTRADICTIONS: u32 = 3;

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
    /// Whether `end_date` includes its day; None until known.
    pub end_inclusive: Option<bool>,
    /// Whether `start_date` includes its day; None until known.
    pub start_inclusive: Option<bool>,
    /// Whether account-wide rows carry details; None until a row is seen.
    pub details_in_list: Option<bool>,
    /// Most rows that an answer held.
    pub page_rows: u64,
    /// Whether walks are lost so often that paging is not trusted.
    pub paging_lost: bool,
    probed_at: Option<Timestamp>,
}

impl Findings {
    /// How to read. The document's example is newest first, so that is assumed until a page tells.
    pub fn mode(&self) -> Mode {
        if self.paging_lost || self.offset_honoured == Some(false) {
            return Mode::Windows;
        }
        match self.order.unwrap_or(Order::NewestFirst) {
            Order::NewestFirst => Mode::NewestFirst,
            Order::OldestFirst => Mode::OldestFirst,
            Order::Unsorted => Mode::Windows,
        }
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
    pub fn observe(&mut self, page: &ListPage<Item>) -> bool {
        let before = self.mode();
        self.page_rows = self.page_rows.max(page.slots.len() as u64);
        let mut rows = page.slots.iter().filter_map(|slot| slot.row.as_ref().ok()).peekable();
        if rows.peek().is_some() {
            let complete = rows.all(|row| row.complete);
            if self.details_in_list == Some(!complete) && complete {
                tracing::info!("account-wide rows carry details now");
            }
            self.details_in_list = Some(complete);
        }
        if page.offset == 0
            && let Some(total) = page.total
        {
            let rows = page.slots.len() as u64;
            if total < rows && self.total_exact != Some(false) {
                tracing::warn!(total, rows, "upstream's total is smaller than a page: it is not trusted");
                self.total_exact = Some(false);
            }
        }
        if let Some(shown) = order_of(&page.slots) {
            self.observe_order(shown);
        }
        self.mode() != before
    }

    fn observe_order(&mut self, shown: Order) {
        match self.order {
            None => self.order = Some(shown),
            Some(order) if order == shown => self.against_order = 0,
            Some(order) => {
                self.against_order += 1;
                if self.against_order >= CONTRADICTIONS {
                    tracing::warn!(
                        believed = order.as_str(),
                        shown = shown.as_str(),
                        "the order of upstream's list is not what it was"
                    );
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
        json!({
            "probed_at": self.probed_at.map(|at| at.to_string()),
            "order": self.order.map(Order::as_str),
            "total_exact": self.total_exact,
            "offset_honoured": self.offset_honoured,
            "start_date_inclusive": self.start_inclusive,
            "end_date_inclusive": self.end_inclusive,
            "details_in_list": self.details_in_list,
            "page_rows": self.page_rows.min(PAGE_ROWS),
            "paging_trusted": !self.paging_lost,
        })
    }
}
