//! What the log holds of a span of time: the other side of the ledger's comparison.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    event::{Filter, FilterLimits, Predicate},
    ingest::session::Halt,
    log::Log,
};

/// Events of the log by quarter of an hour.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quarters(BTreeMap<i64, u64>);

impl Quarters {
    /// Events from `from` to before `until`.
    pub fn count(&self, (from, until): (Timestamp, Timestamp)) -> u64 {
        if from >= until {
            return 0;
        }
        self.0.range(from.as_second()..until.as_second()).map(|(_, count)| count).sum()
    }

    /// Beginning of the last quarter of an hour with events that ends before a time, in seconds since the epoch.
    pub fn before(&self, time: Timestamp) -> Option<i64> {
        self.0.range(..=time.as_second() - QUARTER_S).next_back().map(|(quarter, _)| *quarter)
    }

    /// Beginning of the first quarter of an hour with events after a time.
    pub fn after(&self, time: Timestamp) -> Option<i64> {
        self.0.range(time.as_second() + 1..).next().map(|(quarter, _)| *quarter)
    }
}

const QUARTER_S: i64 = 900;

/// Counts all events, or those of a type.
///
/// # Errors
/// [`Halt::Lost`] where the log can't be read.
pub async fn quarters(log: &Arc<Log>, event_type: Option<&str>) -> Result<Quarters, Halt> {
    let event_type = event_type.map(str::to_owned);
    read(log, move |log| log.quarter_counts(event_type.as_deref()).map_err(|error| error.to_string()))
        .await
        .map(Quarters)
}

/// Counts the events of a type in a span, for each SIM; None is no SIM.
///
/// # Errors
/// [`Halt::Lost`] where the log can't be read.
pub async fn by_sim(
    log: &Arc<Log>,
    (from, until): (Timestamp, Timestamp),
    event_type: &str,
) -> Result<BTreeMap<Option<String>, u64>, Halt> {
    let values = [("event_type", vec![event_type.to_owned()])];
    let (filter, _) = Filter::build(values, FilterLimits::default()).map_err(|_| Halt::Lost)?;
    let predicate = Predicate::new(filter, None);
    read(log, move |log| log.count_by_sim(from, until, &predicate).map_err(|error| error.to_string())).await
}

/// Reads the log where that holds up nobody.
async fn read<T: Send + 'static>(
    log: &Arc<Log>,
    work: impl FnOnce(&Log) -> Result<T, String> + Send + 'static,
) -> Result<T, Halt> {
    let log = Arc::clone(log);
    let done = tokio::task::spawn_blocking(move || work(&log)).await;
    done.unwrap_or_else(|error| Err(error.to_string())).map_err(|error| {
        tracing::error!(error, "the log's events can't be counted");
        Halt::Lost
    })
}
