//! What a courier has done beside its deliveries: writes to the stream and the store, each repeated until it is there.
//!
//! They end with the courier, which begins them again where the checkpoint says that they are not done.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Duration;

use super::{
    Tools,
    core::FeedKey,
    courier::Live,
    endpoint::{Disabled, Endpoint},
    names, notices,
    pace::spread,
    store::{Progress, Replay, ReplayState, StoreError},
};
use crate::{
    bus::{AppendError, NewEvent},
    event::{Cursor, Gap},
    log::CursorState,
};

/// Pause before the second try of a write, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// An errand that is done.
#[derive(Debug)]
pub enum Errand {
    /// A notice is on the stream.
    Told,
    /// That of a gap is.
    GapTold,
    /// That of a unit which was given up is.
    Buried {
        /// Its feed.
        key: FeedKey,
        /// The unit.
        first: u64,
    },
    /// The endpoint is disabled.
    Disabled,
    /// A replay that was asked for has not ended yet.
    ReplayBegins(Box<Replay>),
    /// The end of a replay is written.
    ReplayClosed {
        /// Which.
        id: String,
    },
}

/// Appends notices.
pub async fn tell(tools: Arc<Tools>, events: Vec<NewEvent>) -> Errand {
    append(&tools, events).await;
    Errand::Told
}

/// Tells of a range that is gone.
pub async fn gap(tools: Arc<Tools>, endpoint: Arc<Endpoint>, gap: Gap) -> Errand {
    metrics::counter!(names::DEAD_LETTERED).increment(gap.lost.unwrap_or(0));
    append(&tools, notices::lost(&endpoint, &gap, tools.clock.now())).await;
    Errand::GapTold
}

/// Tells of a unit that was given up.
pub async fn bury(
    tools: Arc<Tools>,
    live: Arc<Live>,
    endpoint: Arc<Endpoint>,
    key: FeedKey,
    first: u64,
) -> Errand {
    let unit = live.core.lock().feed(&key).and_then(|feed| feed.get(first).cloned());
    let Some(unit) = unit.filter(|unit| unit.dead) else { return Errand::Buried { key, first } };
    let incarnation = tools.hub.log().incarnation();
    let mut pauses = Pauses::new(&tools);
    let items = loop {
        match tools.hub.items(unit.members.to_vec(), None).await {
            Ok(items) => break items,
            Err(error) => pauses.after(error).await,
        }
    };
    let at = tools.clock.now();
    let told = unit.members.iter().zip(items).map(|(seq, item)| {
        let event = item.as_ref().map(|item| &item.event);
        notices::dead_lettered(&endpoint, *seq, incarnation, event, &unit, at)
    });
    let told: Vec<_> = told.collect();
    metrics::counter!(names::DEAD_LETTERED).increment(told.len() as u64);
    append(&tools, told).await;
    Errand::Buried { key, first }
}

/// Writes that the receiver wants no more, then tells it.
pub async fn disable(tools: Arc<Tools>, endpoint: Arc<Endpoint>, reason: String, at: Timestamp) -> Errand {
    tracing::warn!(webhook = endpoint.id, reason, "a webhook was disabled by its receiver");
    let mut pauses = Pauses::new(&tools);
    loop {
        let written = async {
            let Some(mut found) = tools.store.endpoint(&endpoint.id).await? else { return Ok(()) };
            if found.value.disabled.is_none() {
                found.value.disabled = Some(Disabled { at, reason: reason.clone() });
                found.value.updated_at = at;
                tools.store.update(&found.value, found.revision).await?;
            }
            Ok::<_, StoreError>(())
        };
        match written.await {
            Ok(()) => break,
            Err(error) => pauses.after(error).await,
        }
    }
    append(&tools, vec![notices::disabled(&endpoint, &reason, at)]).await;
    Errand::Disabled
}

/// Looks whether a replay still is to begin.
pub async fn begin_replay(tools: Arc<Tools>, webhook: String, id: String) -> Errand {
    let mut pauses = Pauses::new(&tools);
    loop {
        match tools.store.replay(&webhook, &id).await {
            Ok(Some(found)) if found.value.state == ReplayState::Running => {
                // Positions of another history mean other events, or none.
                if !is_of_this_log(&tools, &found.value) {
                    tracing::warn!(
                        webhook,
                        id,
                        "a replay is cancelled: the log is no longer the one that it was of"
                    );
                    return close_replay(
                        tools.clone(),
                        webhook,
                        id,
                        found.value.progress,
                        ReplayState::Cancelled,
                    )
                    .await;
                }
                return Errand::ReplayBegins(Box::new(found.value));
            }
            Ok(_) => return Errand::Told,
            Err(error) => pauses.after(error).await,
        }
    }
}

fn is_of_this_log(tools: &Tools, replay: &Replay) -> bool {
    let cursor = Cursor::parse(&replay.to_cursor);
    cursor.is_ok_and(|cursor| {
        !matches!(tools.hub.log().check(cursor), Err(CursorState::OtherIncarnation | CursorState::Regressed))
    })
}

/// Writes how a replay ended.
pub async fn close_replay(
    tools: Arc<Tools>,
    webhook: String,
    id: String,
    progress: Progress,
    state: ReplayState,
) -> Errand {
    let mut pauses = Pauses::new(&tools);
    loop {
        let written = async {
            let Some(mut found) = tools.store.replay(&webhook, &id).await? else { return Ok(()) };
            found.value.progress = progress;
            found.value.ended_at = Some(tools.clock.now());
            if found.value.state == ReplayState::Running {
                found.value.state = state;
            }
            tools.store.update_replay(&found.value, found.revision).await
        };
        match written.await {
            Ok(()) => return Errand::ReplayClosed { id },
            Err(error) => pauses.after(error).await,
        }
    }
}

/// Appends until it is stored, or can't be ever.
async fn append(tools: &Tools, events: Vec<NewEvent>) {
    let mut pauses = Pauses::new(tools);
    loop {
        match tools.store.bus().append(events.clone(), None).await {
            Ok(_) => return,
            Err(error @ AppendError::BadEvent { .. }) => {
                tracing::error!(%error, "a notice can't be stored; it is left out");
                return;
            }
            Err(error) => pauses.after(error).await,
        }
    }
}

/// Ever longer pauses.
struct Pauses<'t> {
    tools: &'t Tools,
    next: Duration,
}

impl<'t> Pauses<'t> {
    fn new(tools: &'t Tools) -> Self {
        Self { tools, next: PAUSE_FIRST }
    }

    async fn after(&mut self, error: impl std::fmt::Display) {
        tracing::debug!(%error, "a write of the webhooks is tried again");
        tokio::time::sleep(spread(self.next, self.tools.chance())).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
    }
}
