//! What tests of several files need.

use super::{Chance, Config};

/// A stream of its own, with its copy in memory.
pub(crate) fn config(url: String, stream: &str) -> Config {
    Config {
        stream: stream.to_owned(),
        subject_prefix: stream.to_lowercase(),
        // A server lends no more than its disk has.
        retention_bytes: 64 << 20,
        ..Config::new(vec![url], Chance::seeded(fastrand::u64(..)))
    }
}
