//! What an operator sees: logs on standard error, metrics as Prometheus text, and the answer to "is it well?".

#[cfg(test)]
pub(crate) mod captured;
pub mod health;
pub mod logs;
pub mod metrics;

pub use health::{Degraded, Readiness};
pub use logs::{LogConfig, LogFormat};
pub use metrics::Metrics;
