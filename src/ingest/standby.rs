//! What gateways that do not poll know of the one that does: it tells on the bus, they show it.
//!
//! Their subscribers must tell quiet from blind as well. What is told names the position of the log up to which it
//! holds: a gateway whose own copy is behind shows it when it has come so far.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    board::Board,
    status::{Status, UpstreamState},
};
use crate::{
    bus::{Bucket, Bus},
    clock::SharedClock,
};

/// Key in [`Bucket::State`].
const KEY: &str = "poller";
/// How often it is told, and looked at.
const EVERY: Duration = Duration::from_secs(2);
/// Nobody polls where nothing new was told for so long: longer than a takeover takes.
const SILENT_AFTER: Duration = Duration::from_secs(20);
/// Longest wait for the own copy of the log to come as far as what was told.
const BEHIND_MAX: Duration = Duration::from_secs(10);

/// What is told.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    /// Newest sequence of the log when it was told.
    seq: u64,
    seen_until: Option<Timestamp>,
    /// As `GET /v1/stream` shows it.
    upstream: Value,
}

/// Tells the status of the gateway that polls, again and again.
pub async fn tell(board: &Board, bus: &Arc<dyn Bus>, clock: &SharedClock) -> ! {
    loop {
        // The status first: what it claims lies at or before the sequence read after it.
        let status = board.status();
        let told = Told {
            seen_until: status.seen_until,
            upstream: status.to_json(clock.now()),
            seq: bus.log().bounds().last_seq,
        };
        let value = serde_json::to_vec(&told).unwrap_or_default().into();
        if let Err(error) = bus.kv_put(Bucket::State, KEY, value).await {
            tracing::debug!(%error, "what the poller sees can't be told to other gateways");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Shows what the gateway that polls tells, again and again.
pub async fn follow(board: &Board, bus: &Arc<dyn Bus>) -> ! {
    let mut revision = None;
    let mut news_at = Instant::now();
    loop {
        if let Ok(Some(entry)) = bus.kv_get(Bucket::State, KEY).await
            && revision != Some(entry.revision)
            && let Ok(told) = serde_json::from_slice::<Told>(&entry.value)
        {
            // What was told before this gateway looked may be of long ago.
            let is_news = revision.replace(entry.revision).is_some();
            let mut edge = bus.log().edge();
            let reached = edge.wait_for(|edge| *edge >= told.seq);
            if is_news && tokio::time::timeout(BEHIND_MAX, reached).await.is_ok() {
                news_at = Instant::now();
                board.update(|status| show(status, told));
            }
        }
        if news_at.elapsed() > SILENT_AFTER {
            board.update(|status| {
                status.state = UpstreamState::Stale;
                status.message = Some("no gateway polls".to_owned());
            });
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn show(status: &mut Status, told: Told) {
    let state = told.upstream["state"].as_str();
    let state = UpstreamState::ALL.into_iter().find(|one| Some(one.as_str()) == state);
    status.state = state.unwrap_or(UpstreamState::Stale);
    status.message = told.upstream["message"].as_str().map(str::to_owned);
    status.seen_until = told.seen_until;
    status.elsewhere = Some(told.upstream);
}
