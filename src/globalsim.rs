//! Upstream: the WAYSCloud GlobalSIM REST API, which can only be polled.
//!
//! What its document promises: six GET endpoints, offset paging with a limit of 1 to 100, filters by event type,
//! ICCID, device and day, and 500 requests a minute per API key. What it does not promise, and what nothing here
//! relies on: an order of rows, a stable order between two pages, an exact `total`, unique event ids, one shape per
//! event (account-wide rows lack details, per-SIM rows lack iccid, msisdn and device_id), whether dates are inclusive
//! and in which zone, errors of one form, or when late rows become visible. Whoever reads pages decides what to
//! believe (see `ingest`); this module only makes each answer whole, typed and paid for:
//!
//! - [`client`] sends one request and gives one whole page or a typed [`Error`], never a part of a page;
//! - [`wire`] turns a row of either shape into an [`Event`](crate::event::Event) without losing a field;
//! - [`budget`] is the gate that every request passes, so that upstream never counts more than it was told;
//! - [`key`] holds the API key so that it can't be printed;
//! - [`simulator`] is an upstream of our own, for tests and trials, that can be made as awkward as all that allows.

pub mod budget;
pub mod client;
pub mod error;
pub mod key;
pub mod simulator;
pub mod wire;

pub use budget::{BudgetConfig, BudgetError, Class, Gate, Slot, Usage};
pub use client::{ActivityQuery, Client, Config, PageQuery, SessionQuery};
pub use error::{Error, Kind};
pub use key::{AuthStyle, KeySource, Secret};
pub use wire::{BadRow, DeviceSim, Page, Row, SessionPage, SessionRow};
