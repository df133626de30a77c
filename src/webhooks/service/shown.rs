//! How endpoints do, as their owner has it in memory or last wrote it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{ServiceError, Shown, Stats, Webhooks};
use crate::{
    auth::Principal,
    webhooks::{
        endpoint::{Condition, Endpoint},
        feed::Saved,
        store::Checkpoint,
    },
};

impl Webhooks {
    /// All endpoints that the caller may know of, by id.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn list(&self, principal: &Principal) -> Result<Vec<Shown>, ServiceError> {
        let endpoints = self.tools.store.endpoints().await?;
        let endpoints: Vec<_> = endpoints.into_iter().filter(|one| Self::may_see(principal, one)).collect();
        let mut shown = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            shown.push(self.shown(Arc::new(endpoint)).await?);
        }
        Ok(shown)
    }

    /// One endpoint.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn get(&self, principal: &Principal, id: &str) -> Result<Shown, ServiceError> {
        let found = self.found(principal, id).await?;
        self.shown(Arc::new(found.value)).await
    }

    pub(super) async fn shown(&self, endpoint: Arc<Endpoint>) -> Result<Shown, ServiceError> {
        let position = self.position(&endpoint.id).await?;
        let (condition, reason) = self.condition(&endpoint, position.as_ref());
        let pending = position.as_ref().map_or(0, |position| events_of(&position.live));
        let cursor = position.map_or_else(String::new, |position| position.cursor);
        Ok(Shown { endpoint, condition, reason, cursor, pending })
    }

    /// Where an endpoint stands: as it is, or as its owner last wrote.
    pub(super) async fn position(&self, id: &str) -> Result<Option<Checkpoint>, ServiceError> {
        if let Some(live) = self.live(id) {
            let (now, wall) = (Instant::now(), self.tools.clock.now());
            let core = live.core.lock();
            let saved = core.live.save(now, wall.as_microsecond());
            return Ok(Some(Checkpoint {
                owner: self.tools.members.me().to_owned(),
                cursor: self.tools.hub.log().cursor_at(saved.cursor).to_string(),
                live: saved,
                seeks: core.seeks,
                failing_since: core.failing_since,
                replays: BTreeMap::new(),
                totals: core.totals.clone(),
            }));
        }
        Ok(self.tools.store.checkpoint(id).await?.map(|at| at.value))
    }

    fn condition(&self, endpoint: &Endpoint, position: Option<&Checkpoint>) -> (Condition, Option<String>) {
        if let Some(disabled) = &endpoint.disabled {
            return (Condition::Disabled, Some(disabled.reason.clone()));
        }
        if endpoint.paused {
            return (Condition::Paused, None);
        }
        if self.tools.auth.named(&endpoint.created_by).is_none() {
            let reason = format!("the token {:?} that made it is no longer valid", endpoint.created_by);
            return (Condition::Suspended, Some(reason));
        }
        // What was allowed when it was made may not be any more.
        if let Err(error) = self.tools.guard.check(&endpoint.url) {
            return (Condition::Suspended, Some(error.to_string()));
        }
        if let Some(position) = position
            && let Some(since) = position.failing_since
        {
            let last = position.totals.last_failure.as_ref().map_or("", |(_, how)| how.as_str());
            return (Condition::Failing, Some(format!("since {since}: {last}")));
        }
        (Condition::Active, None)
    }

    /// How an endpoint is doing.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn stats(&self, principal: &Principal, id: &str) -> Result<Stats, ServiceError> {
        let found = self.found(principal, id).await?;
        let position = self.position(id).await?;
        let (condition, _) = self.condition(&found.value, position.as_ref());
        let Some(position) = position else {
            return Err(ServiceError::NotFound { what: "webhook", id: id.to_owned() });
        };
        let pending = &position.live.pending;
        let settled = pending.first().and_then(|unit| unit.members.first());
        let settled = settled.map_or(position.live.cursor, |first| first.saturating_sub(1));
        let edge = self.tools.hub.edge().seq;
        let oldest = pending.iter().filter_map(|unit| unit.first_attempt_us).min();
        let is_quiet = pending.is_empty() && position.live.cursor >= edge;
        let lag_seconds = match is_quiet {
            true => 0.0,
            false => self.tools.lag_seconds(settled).await.unwrap_or(0.0),
        };
        Ok(Stats {
            condition,
            failing_since: position.failing_since,
            behind: edge.saturating_sub(position.live.cursor),
            pending: events_of(&position.live),
            waiting: pending
                .iter()
                .filter(|unit| unit.attempts > 0)
                .map(|unit| unit.members.len() as u64)
                .sum(),
            lag_seconds,
            oldest_attempt_at: oldest.and_then(|us| Timestamp::from_microsecond(us).ok()),
            totals: position.totals,
            owner: position.owner,
        })
    }
}

fn events_of(saved: &Saved) -> u64 {
    saved.pending.iter().map(|unit| unit.members.len() as u64).sum()
}
