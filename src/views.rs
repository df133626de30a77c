//! What is computed from the log and kept beside it: derived, never asked to be true by anyone who appends.
//!
//! A view reads the log from a position that it has kept ([`Follower`](crate::log::follow::Follower)) and can be made again from what the log still
//! holds. It is each gateway's own, on both buses.

pub mod megabytes;
pub mod registry;
