//! Names of the poller's metrics, in one place so that dashboards and code can't drift apart. No label ever holds an
//! id, a number of a SIM or a text of upstream's.

/// Requests sent; labels `class`, `outcome` (`ok` or the kind of failure).
pub const REQUESTS: &str = "simcast_upstream_requests_total";
/// Seconds until the whole answer was there, without the wait for a slot; label `class`.
pub const REQUEST_SECONDS: &str = "simcast_upstream_request_seconds";
/// Events appended; label `via` (`tail`, `catch_up`, `sweep`, `backfill`, `details`, `repair`, `ledger`).
pub const EVENTS: &str = "simcast_ingest_events_total";
/// Events appended with a flag; label `flag`.
pub const FLAGGED: &str = "simcast_ingest_flagged_total";
/// Seconds since everything that upstream shows was read.
pub const LAG_SECONDS: &str = "simcast_ingest_lag_seconds";
/// Seconds from an event's own time to its append; not for backfilled ones.
pub const SOURCE_LAG_SECONDS: &str = "simcast_ingest_source_lag_seconds";
/// Seconds from the answer that showed a row to its append.
pub const APPEND_SECONDS: &str = "simcast_ingest_append_seconds";
/// Rows and events that can't be stored; label `what` (`row`, `event`).
pub const QUARANTINED: &str = "simcast_ingest_quarantined_total";
/// Rows seen again with changed content.
pub const REVISED: &str = "simcast_ingest_revised_total";
/// Events whose event_id another event had.
pub const CONFLICTS: &str = "simcast_ingest_conflicts_total";
/// Events that stayed without their details; label `why`.
pub const PARTIAL: &str = "simcast_ingest_partial_total";
/// Rows not appended because they are older than ids are remembered, or than the gateway was asked to read.
pub const TOO_OLD: &str = "simcast_ingest_too_old_total";
/// Appends that had to be tried again.
pub const APPEND_RETRIES: &str = "simcast_ingest_append_retries_total";
/// Sweeps; label `outcome` (`complete`, `incomplete`).
pub const SWEEPS: &str = "simcast_ingest_sweeps_total";
/// Times that a tail page did not join the one before.
pub const HOLES: &str = "simcast_ingest_tail_holes_total";
/// Rises of upstream's total that the tail's rows did not explain.
pub const ALARMS: &str = "simcast_ingest_total_alarms_total";
/// Stretches that upstream forgot before they were read, or read again after the log lost them.
pub const GAPS: &str = "simcast_ingest_gaps_total";
/// Times that the log had lost events that the poller's position counts on.
pub const LOG_REGRESSIONS: &str = "simcast_ingest_log_regressions_total";
/// Walks that could not be finished because the list changed too fast or paging is not honoured.
pub const LOST_WALKS: &str = "simcast_ingest_lost_walks_total";
/// Closed days that are followed; label `state` (`verified`, `pending`, `gap`, `unavailable`).
pub const LEDGER_DAYS: &str = "simcast_ledger_days";
/// Days whose counts differed and that were read again; label `outcome` (`read`, `miscounted`, `too_large`, `failed`).
pub const LEDGER_REPAIRS: &str = "simcast_ledger_repairs_total";
/// Findings about upstream that turned out otherwise; label `capability`.
pub const CAPABILITY_CHANGES: &str = "simcast_upstream_capability_changes_total";
