//! Names of the metrics of the webhooks.

/// Attempts to deliver, by `outcome`: `2xx` to `5xx`, or what went wrong on the way to an answer.
pub const ATTEMPTS: &str = "simcast_webhook_attempts_total";
/// Events that were given up, with those of ranges that were gone.
pub const DEAD_LETTERED: &str = "simcast_webhook_dead_lettered_total";
/// Ranges of the log that were gone before an endpoint could be served.
pub const GAPS: &str = "simcast_webhook_gaps_total";
/// Endpoints that this gateway serves.
pub const OWNED: &str = "simcast_webhook_endpoints_owned";
/// Of these, endpoints whose receiver fails.
pub const FAILING: &str = "simcast_webhook_endpoints_failing";
/// The largest lag of an endpoint that this gateway serves, seconds since the oldest event that is not settled.
pub const LAG_SECONDS: &str = "simcast_webhook_lag_seconds";
/// Checkpoints written.
pub const CHECKPOINTS: &str = "simcast_webhook_checkpoints_total";
