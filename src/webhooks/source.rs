//! Where a feed gets its events: the hub, as any subscriber does, by the endpoint's own predicate.
//!
//! So a filter is matched once for all who share it, an event is encoded once for all of a policy, and the way from
//! history to live is the one that every frontend uses.

use std::{collections::VecDeque, sync::Arc};

use super::{
    notices,
    store::{Only, Replay},
};
use crate::{
    event::{Cursor, FieldPolicy, Filter, FilterLimits, Gap, OnExpired, Predicate, Start},
    hub::{Delivery, Encoding, Error, Hub, Spec, Subscription, frame::Item},
};

/// Which events, and how they are shown.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Id of the endpoint, which never gets events about itself.
    pub endpoint: String,
    /// Its filter and that of the token that made it.
    pub predicate: Predicate,
    /// That token's.
    pub policy: Option<Arc<FieldPolicy>>,
}

/// What a source has.
#[derive(Debug)]
pub enum Supply {
    /// Events were staged, or none matched.
    Events,
    /// So many events that a replay knew of are no longer kept; others may have been staged.
    Gone(u64),
    /// A range that can't be read.
    Gap(Gap),
    /// Nothing follows.
    End,
    /// The log can't be read now.
    Failed(Error),
}

#[derive(Debug)]
enum Kind {
    Live,
    /// A replay of everything up to a position that its own filter matches too.
    Range {
        to: u64,
        narrower: Option<Predicate>,
    },
    /// A replay of what was dead-lettered: the subscription reads the notices.
    DeadLetters {
        from: u64,
        to: u64,
        narrower: Option<Predicate>,
        /// Events that notices told of, to be read: kept while `next` waits.
        told: Option<Vec<u64>>,
    },
    /// Just one.
    One {
        seq: u64,
        done: bool,
    },
}

/// See the head of this file.
#[derive(Debug)]
pub struct Source {
    hub: Hub,
    wanted: Wanted,
    kind: Kind,
    subscription: Subscription,
    /// It has given something: a gap at its very beginning would have been told by now.
    has_begun: bool,
    /// Read and not taken up.
    pub staged: VecDeque<Item>,
}

impl Source {
    /// The endpoint's own, behind `cursor`.
    ///
    /// # Errors
    /// Where the log can't be read.
    pub async fn live(hub: &Hub, wanted: Wanted, cursor: Cursor) -> Result<Self, Error> {
        let subscription = open(hub, wanted.predicate.clone(), &wanted, cursor).await?;
        Ok(Self {
            hub: hub.clone(),
            wanted,
            kind: Kind::Live,
            subscription,
            has_begun: false,
            staged: VecDeque::new(),
        })
    }

    /// A replay's, behind the position that it has reached.
    ///
    /// # Errors
    /// Where the log can't be read.
    pub async fn replay(hub: &Hub, wanted: Wanted, replay: &Replay, reached: u64) -> Result<Self, Error> {
        let limits = FilterLimits { values_per_list: usize::MAX };
        let filter = Filter::from_json(&replay.filter, limits).map(|(filter, _)| filter).unwrap_or_default();
        let narrower = (!filter.is_empty()).then(|| Predicate::new(filter, None));
        let (kind, predicate, reached) = match (replay.seq, replay.only) {
            (Some(seq), _) => (Kind::One { seq, done: reached >= seq }, wanted.predicate.clone(), reached),
            (None, Only::All) => (Kind::Range { to: replay.to, narrower }, wanted.predicate.clone(), reached),
            (None, Only::Failed) => {
                let kind = Kind::DeadLetters { from: replay.from, to: replay.to, narrower, told: None };
                (kind, dead_letters(), reached)
            }
        };
        let cursor = hub.log().cursor_at(reached);
        let subscription = open(hub, predicate, &wanted, cursor).await?;
        Ok(Self { hub: hub.clone(), wanted, kind, subscription, has_begun: false, staged: VecDeque::new() })
    }

    /// Position up to which everything has been looked at and staged.
    pub fn position(&self) -> u64 {
        match self.kind {
            Kind::One { seq, done: true } => seq,
            Kind::One { done: false, .. } => 0,
            _ => self.subscription.cursor().seq,
        }
    }

    /// Whether what lies before [`Source::position`] has been staged or told.
    pub fn is_settled(&self) -> bool {
        self.has_begun && !matches!(self.kind, Kind::DeadLetters { told: Some(_), .. })
    }

    /// More events. Cancel-safe.
    pub async fn next(&mut self) -> Supply {
        let supply = self.supply().await;
        self.has_begun = true;
        supply
    }

    async fn supply(&mut self) -> Supply {
        match self.kind {
            Kind::Live => self.read(None).await,
            Kind::Range { to, .. } => self.read(Some(to)).await,
            Kind::DeadLetters { .. } => self.read_dead_letters().await,
            Kind::One { done: true, .. } => Supply::End,
            Kind::One { seq, .. } => match self.hub.items(vec![seq], self.wanted.policy.clone()).await {
                Ok(items) => {
                    self.kind = Kind::One { seq, done: true };
                    let gone = gone(&items);
                    self.staged.extend(items.into_iter().flatten());
                    gone
                }
                Err(error) => Supply::Failed(error),
            },
        }
    }

    async fn read(&mut self, to: Option<u64>) -> Supply {
        // What is looked at before the wait: a replay whose end has been passed waits for nothing.
        if to.is_some_and(|to| self.subscription.cursor().seq >= to) {
            return Supply::End;
        }
        match self.subscription.next().await {
            Delivery::Batch(batch) => {
                let narrower = match &self.kind {
                    Kind::Range { narrower, .. } => narrower.as_ref(),
                    _ => None,
                };
                let fits = |item: &&Item| {
                    to.is_none_or(|to| item.event.seq() <= to)
                        && !notices::is_about(&item.event, &self.wanted.endpoint)
                        && narrower.is_none_or(|narrower| {
                            item.event.keys().is_ok_and(|keys| narrower.matches(&keys))
                        })
                };
                self.staged.extend(batch.items.iter().filter(fits).cloned());
                Supply::Events
            }
            Delivery::Gap(gap) => Supply::Gap(gap),
            Delivery::CaughtUp(cursor) if to.is_some_and(|to| cursor.seq >= to) => Supply::End,
            // Nothing was staged, and the position is known to hold.
            Delivery::CaughtUp(_) => Supply::Events,
            Delivery::Failed(error) => Supply::Failed(error),
        }
    }

    /// Reads notices; stages the events that they tell of. A position here is one of a notice.
    async fn read_dead_letters(&mut self) -> Supply {
        let Kind::DeadLetters { from, to, narrower, told } = &mut self.kind else { return Supply::End };
        if told.is_none() {
            match self.subscription.next().await {
                Delivery::Batch(batch) => {
                    let letters =
                        batch.items.iter().filter_map(|item| notices::read_dead_letter(&item.event));
                    let seqs = letters
                        .filter(|letter| letter.webhook == self.wanted.endpoint)
                        .filter_map(|letter| letter.seq)
                        .filter(|seq| *seq > *from && *seq <= *to);
                    *told = Some(seqs.collect());
                }
                Delivery::Gap(gap) => return Supply::Gap(gap),
                Delivery::CaughtUp(_) => return Supply::End,
                Delivery::Failed(error) => return Supply::Failed(error),
            }
        }
        let Some(seqs) = told.clone() else { return Supply::End };
        match self.hub.items(seqs, self.wanted.policy.clone()).await {
            Ok(items) => {
                let fits = |item: &Item| {
                    item.event.keys().is_ok_and(|keys| {
                        self.wanted.predicate.matches(&keys)
                            && narrower.as_ref().is_none_or(|narrower| narrower.matches(&keys))
                    })
                };
                let gone = gone(&items);
                self.staged.extend(items.into_iter().flatten().filter(fits));
                *told = None;
                gone
            }
            Err(error) => Supply::Failed(error),
        }
    }
}

/// Tells how many of the events asked for are there no more.
fn gone(items: &[Option<Item>]) -> Supply {
    match items.iter().filter(|item| item.is_none()).count() as u64 {
        0 => Supply::Events,
        events => Supply::Gone(events),
    }
}

/// Every dead-letter notice.
pub fn dead_letters() -> Predicate {
    let lists = [("event_type", vec![notices::DEAD_LETTERED.to_owned()])];
    let filter = Filter::build(lists, FilterLimits::default()).map(|(filter, _)| filter);
    Predicate::new(filter.unwrap_or_default(), None)
}

async fn open(
    hub: &Hub,
    predicate: Predicate,
    wanted: &Wanted,
    cursor: Cursor,
) -> Result<Subscription, Error> {
    hub.subscribe(Spec {
        encoding: Encoding::Items,
        predicate,
        policy: wanted.policy.clone(),
        start: Start::After(cursor),
        // Whatever happened to the log: nothing is passed over that is there, and what is not is told.
        on_expired: OnExpired::Earliest,
    })
    .await
}
