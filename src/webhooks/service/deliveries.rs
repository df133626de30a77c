//! What became of events: pending and failed ones from where the endpoint stands, dead letters from the stream, the rest
//! from the log of attempts.

use jiff::Timestamp;
use serde_json::Value;

use super::{Deliveries, Delivery, ServiceError, Status, Webhooks};
use crate::{
    auth::Principal,
    event::Predicate,
    log::{Direction, ReadRequest},
    webhooks::{
        attempts::{self, Attempt, Page, Position, Query},
        feed::SavedUnit,
        notices::{self, DeadLetter},
        source::dead_letters,
        store::{Only, Progress, Replay, ReplayState},
    },
};

impl Webhooks {
    /// Deliveries, newest first. Without a status: what was tried, as this gateway wrote it down. Pending and failed
    /// ones come from where the endpoint stands, dead letters from the stream: they are the same on every gateway.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn deliveries(
        &self,
        principal: &Principal,
        id: &str,
        status: Option<Status>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Deliveries, ServiceError> {
        self.found(principal, id).await?;
        match status {
            Some(Status::Pending | Status::Failed) => self.unsettled(id, status, after, limit).await,
            Some(Status::DeadLettered) => self.given_up(id, after, limit).await,
            Some(Status::Delivered) => self.tried(id, Some(attempts::Outcome::Delivered), after, limit).await,
            Some(Status::Skipped) => self.tried(id, Some(attempts::Outcome::Skipped), after, limit).await,
            None => self.tried(id, None, after, limit).await,
        }
    }

    async fn unsettled(
        &self,
        id: &str,
        status: Option<Status>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Deliveries, ServiceError> {
        let before = after.map(parse_seq).transpose()?.unwrap_or(u64::MAX);
        let Some(position) = self.position(id).await? else { return Ok(Deliveries::default()) };
        let mut found = Vec::new();
        for unit in position.live.pending.iter().rev() {
            let is_failed = unit.attempts > 0;
            if is_failed != (status == Some(Status::Failed)) {
                continue;
            }
            let members = unit.members.iter().rev().filter(|seq| **seq < before);
            found.extend(members.map(|seq| (*seq, unit.clone())));
        }
        let more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| more).map(|(seq, _)| seq.to_string());
        let seqs = found.iter().map(|(seq, _)| *seq).collect();
        let items = self.tools.hub.items(seqs, None).await?;
        let deliveries = found.into_iter().zip(items).map(|((seq, unit), item)| {
            let event_id = item.and_then(|item| Some(item.event.keys().ok()?.id.to_owned()));
            unsettled_delivery(seq, &unit, event_id)
        });
        Ok(Deliveries { deliveries: deliveries.collect(), next })
    }

    /// Dead letters, from the stream.
    async fn given_up(
        &self,
        id: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Deliveries, ServiceError> {
        let (log, webhook) = (self.tools.hub.log().clone(), id.to_owned());
        let from = after.map(parse_seq).transpose()?.unwrap_or(u64::MAX);
        let read = tokio::task::spawn_blocking(move || {
            let wanted = dead_letters();
            let mut found = Vec::new();
            let mut position = from;
            // A step looks at 16,384 records at most; after so many the caller gets a place to go on from.
            for _ in 0..64 {
                let page = log
                    .read(ReadRequest {
                        from: position,
                        direction: Direction::Backward,
                        predicate: &wanted,
                        limit: limit - found.len(),
                        max_bytes: 8 << 20,
                    })
                    .map_err(|error| ServiceError::Unavailable(error.to_string()))?;
                found.extend(page.events.iter().filter_map(|event| {
                    let letter =
                        notices::read_dead_letter(event).filter(|letter| letter.webhook == webhook)?;
                    Some(dead_delivery(&letter, Timestamp::from_microsecond(event.keys().ok()?.time_us).ok()))
                }));
                position = page.next;
                if page.at_end {
                    return Ok(Deliveries { deliveries: found, next: None });
                }
                if found.len() >= limit {
                    break;
                }
            }
            Ok(Deliveries { deliveries: found, next: Some(position.to_string()) })
        });
        read.await.unwrap_or_else(|error| Err(ServiceError::Unavailable(error.to_string())))
    }

    async fn tried(
        &self,
        id: &str,
        outcome: Option<attempts::Outcome>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Deliveries, ServiceError> {
        let before = after.map(parse_position).transpose()?;
        let query = Query { webhook: Some(id.to_owned()), outcome, before, limit, ..Query::default() };
        let page = self.attempts(query).await?;
        let deliveries = page.attempts.iter().map(|(_, attempt)| tried_delivery(attempt)).collect();
        Ok(Deliveries { deliveries, next: page.next.map(|next| next.to_string()) })
    }

    async fn attempts(&self, query: Query) -> Result<Page, ServiceError> {
        let read = self.tools.attempts.find(query).await;
        read.map_err(|error| ServiceError::Unavailable(format!("the attempts can't be read: {error}")))
    }

    /// One delivery with its attempts, newest first.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn delivery(
        &self,
        principal: &Principal,
        id: &str,
        delivery: &str,
    ) -> Result<(Delivery, Vec<Attempt>), ServiceError> {
        self.found(principal, id).await?;
        let missing = || ServiceError::NotFound { what: "delivery", id: delivery.to_owned() };
        let seq = seq_of(delivery).ok_or_else(missing)?;
        let items = self.tools.hub.items(vec![seq], None).await?;
        let event_id =
            items.into_iter().flatten().next().and_then(|item| Some(item.event.keys().ok()?.id.to_owned()));
        let mut query = Query { webhook: Some(id.to_owned()), limit: 100, ..Query::default() };
        match &event_id {
            // So that the batches in which it went are found too.
            Some(event_id) => query.event_id = Some(event_id.clone()),
            None => query.seq = Some(seq),
        }
        let attempts: Vec<Attempt> =
            self.attempts(query).await?.attempts.into_iter().map(|(_, attempt)| attempt).collect();
        let position = self.position(id).await?;
        let unit = position
            .as_ref()
            .and_then(|position| position.live.pending.iter().find(|unit| unit.members.contains(&seq)));
        let found = match (unit, attempts.first()) {
            (Some(unit), _) => unsettled_delivery(seq, unit, event_id),
            (None, Some(last)) => Delivery { id: delivery.to_owned(), ..tried_delivery(last) },
            (None, None) => return Err(missing()),
        };
        Ok((found, attempts))
    }

    /// Tries one delivery again at once, whatever has become of it; gives the replay that does it.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn retry(
        &self,
        principal: &Principal,
        id: &str,
        delivery: &str,
    ) -> Result<Replay, ServiceError> {
        let endpoint = self.found(principal, id).await?.value;
        let missing = || ServiceError::NotFound { what: "delivery", id: delivery.to_owned() };
        let seq = seq_of(delivery).ok_or_else(missing)?;
        let item = self.tools.hub.items(vec![seq], None).await?.into_iter().flatten().next();
        let scope = self.tools.auth.named(&endpoint.created_by).and_then(|one| one.scope.clone());
        let predicate = Predicate::new(endpoint.filter.clone(), scope);
        let matches = item.is_some_and(|item| item.event.keys().is_ok_and(|keys| predicate.matches(&keys)));
        if !matches {
            return Err(missing());
        }
        let replay = Replay {
            id: self.tools.new_id("rpl_"),
            webhook: id.to_owned(),
            from: seq - 1,
            to: seq,
            to_cursor: self.tools.hub.log().cursor_at(seq).to_string(),
            filter: Value::Object(Default::default()),
            only: Only::All,
            seq: Some(seq),
            rate_limit_per_second: None,
            count: 1,
            created_at: self.tools.clock.now(),
            state: ReplayState::Running,
            progress: Progress::default(),
            ended_at: None,
        };
        self.begin(&replay).await?;
        Ok(replay)
    }

    /// Every attempt to deliver an event, of all endpoints that the caller may know of, newest first. As this gateway
    /// wrote them down.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn attempts_of_event(
        &self,
        principal: &Principal,
        event_id: &str,
    ) -> Result<Vec<Attempt>, ServiceError> {
        let query = Query { event_id: Some(event_id.to_owned()), limit: 100, ..Query::default() };
        let found = self.attempts(query).await?.attempts;
        let table = self.tools.table.read();
        let may_see = |attempt: &Attempt| {
            table.endpoints.get(&attempt.webhook).is_some_and(|endpoint| Self::may_see(principal, endpoint))
        };
        Ok(found.into_iter().map(|(_, attempt)| attempt).filter(may_see).collect())
    }
}

/// The id of the delivery of an event.
pub fn delivery_id(seq: u64) -> String {
    format!("dlv_{seq}")
}

fn seq_of(delivery: &str) -> Option<u64> {
    delivery.strip_prefix("dlv_")?.parse().ok().filter(|seq| *seq > 0)
}

fn parse_seq(text: &str) -> Result<u64, ServiceError> {
    text.parse().map_err(|_| bad_page())
}

fn parse_position(text: &str) -> Result<Position, ServiceError> {
    text.parse().map_err(|_| bad_page())
}

fn bad_page() -> ServiceError {
    ServiceError::Invalid {
        field: "after".into(),
        message: "after is the next of an answer with the same status, unchanged".into(),
        hint: None,
    }
}

fn unsettled_delivery(seq: u64, unit: &SavedUnit, event_id: Option<String>) -> Delivery {
    let last_error = unit
        .last
        .as_ref()
        .map(|last| last.status.map_or_else(|| last.kind.clone(), |status| status.to_string()));
    Delivery {
        id: delivery_id(seq),
        event_id,
        status: if unit.attempts > 0 { Status::Failed } else { Status::Pending },
        attempts: unit.attempts,
        next_attempt_at: Timestamp::from_microsecond(unit.due_us).ok().filter(|_| unit.due_us > 0),
        last_error,
        last_attempt_at: None,
    }
}

fn dead_delivery(letter: &DeadLetter, at: Option<Timestamp>) -> Delivery {
    Delivery {
        id: letter.seq.map_or_else(|| "range".to_owned(), delivery_id),
        event_id: letter.event_id.clone(),
        status: Status::DeadLettered,
        attempts: letter.attempts,
        next_attempt_at: None,
        last_error: Some(letter.status.map_or_else(|| letter.reason.clone(), |status| status.to_string())),
        last_attempt_at: at,
    }
}

fn tried_delivery(attempt: &Attempt) -> Delivery {
    let status = match attempt.outcome {
        attempts::Outcome::Delivered => Status::Delivered,
        attempts::Outcome::Failed => Status::Failed,
        attempts::Outcome::DeadLettered => Status::DeadLettered,
        attempts::Outcome::Skipped => Status::Skipped,
    };
    let failed = status != Status::Delivered;
    let how = attempt.status.map(|status| status.to_string()).or_else(|| attempt.error_kind.clone());
    Delivery {
        id: if attempt.seq == 0 { attempt.event_id.clone() } else { delivery_id(attempt.seq) },
        event_id: Some(attempt.event_id.clone()),
        status,
        attempts: attempt.attempt,
        next_attempt_at: attempt.next_attempt_at,
        last_error: how.filter(|_| failed),
        last_attempt_at: Some(attempt.at),
    }
}
