//! Sending again what is stored.

use jiff::Timestamp;

use super::{ReplayRequest, ServiceError, Webhooks, is_name};
use crate::{
    auth::Principal,
    event::Predicate,
    log::{Direction, ReadRequest},
    webhooks::{
        endpoint::check_rate,
        notices,
        source::dead_letters,
        store::{At, Only, Progress, Replay, ReplayState},
    },
};

/// Replays of one endpoint that are kept, ended or not.
const REPLAYS_MAX: usize = 100;
/// Events that a count of a replay looks at in one step.
const COUNT_STEP: usize = 1_000;

impl Webhooks {
    /// Asks for a replay; gives it with its count. With `dry_run` nothing is sent and the replay has no id.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn replay(
        &self,
        principal: &Principal,
        id: &str,
        request: ReplayRequest,
    ) -> Result<Replay, ServiceError> {
        let endpoint = self.found(principal, id).await?.value;
        let invalid = |field: &str, message: String| ServiceError::Invalid {
            field: field.to_owned(),
            message,
            hint: None,
        };
        if let (Some(since), Some(until)) = (request.since, request.until)
            && since >= until
        {
            return Err(invalid("until", "until must be after since".into()));
        }
        check_rate(request.rate_limit_per_second)?;
        let log = self.tools.hub.log().clone();
        let position_at = |time: Timestamp| {
            let log = log.clone();
            async move {
                let read = tokio::task::spawn_blocking(move || log.position_at(time)).await;
                match read {
                    Ok(Ok(seq)) => Ok(seq),
                    Ok(Err(error)) => Err(ServiceError::Unavailable(error.to_string())),
                    Err(error) => Err(ServiceError::Unavailable(error.to_string())),
                }
            }
        };
        let from = match request.since {
            Some(time) => position_at(time).await?,
            None => log.begins_at().saturating_sub(1),
        };
        let edge = self.tools.hub.edge().seq;
        let to = match request.until {
            Some(time) => position_at(time).await?.min(edge),
            None => edge,
        };
        let principal_of = self.tools.auth.named(&endpoint.created_by);
        let scope = principal_of.and_then(|one| one.scope.clone());
        let predicate = Predicate::new(endpoint.filter.clone(), scope);
        let narrower = (!request.filter.is_empty()).then(|| Predicate::new(request.filter.clone(), None));
        let count = self.count(&endpoint.id, from, to, predicate, narrower, request.only).await?;
        let mut replay = Replay {
            id: String::new(),
            webhook: endpoint.id.clone(),
            from,
            to,
            to_cursor: log.cursor_at(to).to_string(),
            filter: request.filter.to_json(),
            only: request.only,
            seq: None,
            rate_limit_per_second: request.rate_limit_per_second,
            count,
            created_at: self.tools.clock.now(),
            state: ReplayState::Running,
            progress: Progress::default(),
            ended_at: None,
        };
        if request.dry_run {
            return Ok(replay);
        }
        replay.id = self.tools.new_id("rpl_");
        self.begin(&replay).await?;
        Ok(replay)
    }

    pub(super) async fn begin(&self, replay: &Replay) -> Result<(), ServiceError> {
        let mut kept = self.tools.store.replays(&replay.webhook).await?;
        kept.sort_by_key(|at| (at.value.state == ReplayState::Running, at.value.created_at));
        if kept.len() >= REPLAYS_MAX {
            match kept.first().filter(|oldest| oldest.value.state != ReplayState::Running) {
                Some(oldest) => self.tools.store.delete_replay(oldest).await?,
                None => {
                    let message =
                        format!("{REPLAYS_MAX} replays of this webhook are under way; cancel one, or wait");
                    return Err(ServiceError::Limit(message));
                }
            }
        }
        self.tools.store.create_replay(replay).await?;
        let mut table = self.tools.table.write();
        table.replays.entry(replay.webhook.clone()).or_default().insert(replay.id.clone(), replay.clone());
        Ok(())
    }

    /// Events that a replay would send. Reads the whole range, a bounded step at a time.
    async fn count(
        &self,
        webhook: &str,
        from: u64,
        to: u64,
        predicate: Predicate,
        narrower: Option<Predicate>,
        only: Only,
    ) -> Result<u64, ServiceError> {
        let (log, webhook) = (self.tools.hub.log().clone(), webhook.to_owned());
        let counted = tokio::task::spawn_blocking(move || {
            let wanted = if only == Only::Failed { dead_letters() } else { predicate.clone() };
            let fits = |event: &crate::event::StoredEvent| {
                event
                    .keys()
                    .is_ok_and(|keys| narrower.as_ref().is_none_or(|narrower| narrower.matches(&keys)))
            };
            let (mut count, mut position) = (0, from);
            loop {
                let page = match log.read(ReadRequest {
                    from: position,
                    direction: Direction::Forward,
                    predicate: &wanted,
                    limit: COUNT_STEP,
                    max_bytes: 8 << 20,
                }) {
                    Ok(page) => page,
                    Err(crate::log::ReadError::Expired { first_seq }) => {
                        position = first_seq.saturating_sub(1);
                        continue;
                    }
                    Err(error) => return Err(ServiceError::Unavailable(error.to_string())),
                };
                for event in &page.events {
                    if only == Only::Failed {
                        let letter =
                            notices::read_dead_letter(event).filter(|letter| letter.webhook == webhook);
                        let seq =
                            letter.and_then(|letter| letter.seq).filter(|seq| *seq > from && *seq <= to);
                        let Some(seq) = seq else { continue };
                        let kept = log.get(seq).ok().flatten();
                        let matches = |event: &crate::event::StoredEvent| {
                            event.keys().is_ok_and(|keys| predicate.matches(&keys)) && fits(event)
                        };
                        count += u64::from(kept.as_ref().is_some_and(matches));
                    } else {
                        let counts = event.seq() <= to && fits(event) && !notices::is_about(event, &webhook);
                        count += u64::from(counts);
                    }
                }
                let passed = only == Only::All && page.next >= to;
                if page.at_end || passed {
                    return Ok(count);
                }
                position = page.next;
            }
        });
        counted.await.unwrap_or_else(|error| Err(ServiceError::Unavailable(error.to_string())))
    }

    /// The replays of an endpoint, newest first.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn replays(&self, principal: &Principal, id: &str) -> Result<Vec<Replay>, ServiceError> {
        self.found(principal, id).await?;
        let mut replays: Vec<_> =
            self.tools.store.replays(id).await?.into_iter().map(|at| at.value).collect();
        for replay in &mut replays {
            replay.progress = self.progress(replay).await?;
        }
        replays.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(replays)
    }

    async fn progress(&self, replay: &Replay) -> Result<Progress, ServiceError> {
        if replay.ended_at.is_some() {
            return Ok(replay.progress);
        }
        if let Some(live) = self.live(&replay.webhook) {
            let core = live.core.lock();
            return Ok(core.replays.get(&replay.id).map_or(replay.progress, |running| running.progress));
        }
        let position = self.tools.store.checkpoint(&replay.webhook).await?;
        let progress = position.and_then(|at| Some(at.value.replays.get(&replay.id)?.progress));
        Ok(progress.unwrap_or(replay.progress))
    }

    async fn replay_at(
        &self,
        principal: &Principal,
        id: &str,
        replay: &str,
    ) -> Result<At<Replay>, ServiceError> {
        self.found(principal, id).await?;
        let missing = || ServiceError::NotFound { what: "replay", id: replay.to_owned() };
        if !is_name(replay) {
            return Err(missing());
        }
        self.tools.store.replay(id, replay).await?.ok_or_else(missing)
    }

    /// One replay with its progress.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn get_replay(
        &self,
        principal: &Principal,
        id: &str,
        replay: &str,
    ) -> Result<Replay, ServiceError> {
        let mut found = self.replay_at(principal, id, replay).await?.value;
        found.progress = self.progress(&found).await?;
        Ok(found)
    }

    /// Cancels a replay that goes on; forgets one that has ended.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn cancel_replay(
        &self,
        principal: &Principal,
        id: &str,
        replay: &str,
    ) -> Result<(), ServiceError> {
        let mut found = self.replay_at(principal, id, replay).await?;
        if found.value.state != ReplayState::Running {
            self.tools.store.delete_replay(&found).await?;
            return Ok(());
        }
        found.value.progress = self.progress(&found.value).await?;
        found.value.state = ReplayState::Cancelled;
        self.tools.store.update_replay(&found.value, found.revision).await?;
        Ok(())
    }
}
