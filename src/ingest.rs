//! The poller: turns a rate-limited, offset-paged list that changes while it is read into events appended exactly
//! once, or into a hole that is announced.

pub mod status;

pub use status::{BackfillState, DayState, Mode, Status, StatusReceiver, UpstreamState};
