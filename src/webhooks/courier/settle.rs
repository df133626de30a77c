//! What an attempt comes to: the event settled, tried again or given up, the receiver's pace changed, the attempt written
//! down.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::time::{Duration, Instant};

use super::{Courier, HASTE, TROUBLE};
use crate::webhooks::{
    attempt::{Done, Outcome},
    attempts::{self, Attempt},
    core::{Core, End, FeedKey},
    errand,
    feed::LastFailure,
    names, notices,
    outbound::Exchange,
    pace::{Signal, Turn, spread},
    verdict::{Verdict, judge},
};

impl Courier {
    /// An attempt has ended.
    pub(super) fn finish(&mut self, done: Done) {
        let now = Instant::now();
        let wall = self.tools.clock.now();
        let live = self.live.clone();
        let mut core = live.core.lock();
        let exchange = match &done.outcome {
            Outcome::Sent(exchange) => exchange,
            Outcome::Unread(reason) => {
                if let Some(feed) = core.feed(&done.key) {
                    feed.give_back(done.first, now + TROUBLE);
                }
                drop(core);
                self.trouble(reason);
                return;
            }
            Outcome::Gone if self.was_erased(&mut core, &done) => {
                let unit = core.feed(&done.key).and_then(|feed| feed.arrived(done.first));
                if let Some(unit) = unit {
                    core.count(&done.key, &unit, End::Skipped);
                }
                core.changed = true;
                drop(core);
                if let FeedKey::Replay(_) = done.key {
                    self.close_replays();
                }
                return;
            }
            Outcome::Gone => {
                let failure = LastFailure { status: None, kind: "gone".to_owned() };
                if let Some(feed) = core.feed(&done.key) {
                    feed.bury(done.first, failure);
                }
                drop(core);
                self.announce(done.key, done.first);
                return;
            }
        };
        let verdict = judge(exchange, wall);
        let outcome = outcome_name(&verdict);
        metrics::counter!(names::ATTEMPTS, "outcome" => outcome.clone()).increment(1);
        *core.totals.attempts.entry(outcome).or_default() += 1;
        core.changed = true;
        let mut next = None;
        let mut ended = attempts::Outcome::Failed;
        let mut turn = Turn::Same;
        match verdict.clone() {
            Verdict::Delivered { disables } => {
                ended = attempts::Outcome::Delivered;
                turn = core.pace.answered(Signal::Ok, None, self.tools.chance(), now);
                let unit = core.feed(&done.key).and_then(|feed| feed.arrived(done.first));
                if let Some(unit) = unit {
                    core.count(&done.key, &unit, End::Delivered);
                }
                core.totals.last_delivered_at = Some(wall);
                if done.key == FeedKey::Live && done.attempt == 1 {
                    let observed =
                        done.items.first().and_then(|item| Some(item.event.keys().ok()?.observed_us));
                    let took =
                        wall.as_microsecond().saturating_sub(observed.unwrap_or(wall.as_microsecond()));
                    core.totals.latency.add(took.max(0) as u64);
                }
                if disables {
                    self.disable("the receiver answered webhook-delivery: disable", wall);
                }
            }
            Verdict::Aborted(failure) => {
                ended = attempts::Outcome::Skipped;
                turn = core.pace.answered(Signal::Ok, None, self.tools.chance(), now);
                core.totals.last_failure = Some((wall, describe(&failure)));
                let unit = core.feed(&done.key).and_then(|feed| feed.arrived(done.first));
                if let Some(unit) = unit {
                    core.count(&done.key, &unit, End::Skipped);
                }
            }
            Verdict::Disabled(failure) => {
                core.totals.last_failure = Some((wall, describe(&failure)));
                let reason = match failure.status {
                    Some(410) => "the receiver answered 410 Gone".to_owned(),
                    _ => "the receiver answered webhook-delivery: disable".to_owned(),
                };
                // It waits for whoever resumes the endpoint, with all its attempts but this one.
                if let Some(feed) = core.feed(&done.key) {
                    feed.retry(done.first, now, failure, false);
                }
                self.disable(&reason, wall);
            }
            Verdict::Failed { failure, signal, retry_after } => {
                core.totals.last_failure = Some((wall, describe(&failure)));
                if let Some(signal) = signal {
                    turn = core.pace.answered(signal, retry_after, self.tools.chance(), now);
                }
                let schedule = &self.current.endpoint.retry_schedule;
                let counts = signal.is_some();
                let made = core
                    .feed(&done.key)
                    .and_then(|feed| feed.get(done.first))
                    .map_or(0, |unit| unit.attempts);
                let wait = schedule.get(made as usize + 1).copied();
                match (wait, counts) {
                    (None, true) => {
                        ended = attempts::Outcome::DeadLettered;
                        if let Some(feed) = core.feed(&done.key) {
                            feed.bury(done.first, failure);
                        }
                        self.announce(done.key.clone(), done.first);
                    }
                    (wait, _) => {
                        let by_schedule =
                            spread(Duration::from_secs(wait.unwrap_or(0).into()), self.tools.chance());
                        let pause = match (retry_after, counts) {
                            (Some(after), _) => after,
                            (None, true) => by_schedule,
                            (None, false) => spread(TROUBLE, self.tools.chance()),
                        };
                        if let Some(feed) = core.feed(&done.key) {
                            feed.retry(done.first, now + pause, failure, counts);
                        }
                        next =
                            wall.checked_add(jiff::SignedDuration::try_from(pause).unwrap_or_default()).ok();
                    }
                }
            }
        }
        self.turned(&mut core, turn, &verdict, now, wall);
        drop(core);
        self.write_down(&done, exchange, ended, next);
        if let FeedKey::Replay(_) = done.key {
            self.close_replays();
        }
    }

    /// Whether there is nothing to send because a SIM was erased: nobody has lost anything then.
    fn was_erased(&self, core: &mut Core, done: &Done) -> bool {
        let log = self.tools.hub.log();
        let unit = core.feed(&done.key).and_then(|feed| feed.get(done.first));
        unit.is_some_and(|unit| unit.members.iter().all(|seq| log.is_erased(*seq)))
    }

    fn turned(&mut self, core: &mut Core, turn: Turn, verdict: &Verdict, now: Instant, wall: Timestamp) {
        match turn {
            Turn::Same => {}
            Turn::Opened => {
                core.failing_since = Some(wall);
                core.live.shed();
                let endpoint = &self.current.endpoint;
                tracing::warn!(webhook = endpoint.id, "the receiver of a webhook fails; it is only probed");
                if let Verdict::Failed { failure, .. } = verdict {
                    let told = notices::failing(endpoint, failure, wall);
                    self.errands.push(errand::tell(self.tools.clone(), vec![told]).boxed());
                }
            }
            Turn::Closed => {
                // What waits for hours because the receiver was away need not wait any more.
                core.live.hasten(now, HASTE);
                core.replays.values_mut().for_each(|running| running.feed.hasten(now, HASTE));
                if let Some(since) = core.failing_since.take() {
                    tracing::info!(webhook = self.current.endpoint.id, %since, "the receiver of a webhook is back");
                    let told = notices::recovered(&self.current.endpoint, since, wall);
                    self.errands.push(errand::tell(self.tools.clone(), vec![told]).boxed());
                }
            }
        }
    }

    fn disable(&mut self, reason: &str, at: Timestamp) {
        if !std::mem::replace(&mut self.disabling, true) {
            let (tools, endpoint) = (self.tools.clone(), self.current.endpoint.clone());
            self.errands.push(errand::disable(tools, endpoint, reason.to_owned(), at).boxed());
        }
    }

    fn write_down(
        &self,
        done: &Done,
        exchange: &Exchange,
        outcome: attempts::Outcome,
        next_attempt_at: Option<Timestamp>,
    ) {
        let Some(head) = done.items.first() else { return };
        let Ok(keys) = head.event.keys() else { return };
        let members = done.items.len() as u32;
        let replay = match &done.key {
            FeedKey::Live => None,
            FeedKey::Replay(id) => Some(id.clone()),
        };
        let mut attempt = Attempt::of(exchange, done.at);
        attempt.webhook.clone_from(&self.current.endpoint.id);
        attempt.event_id = keys.id.to_owned();
        attempt.seq = head.event.seq();
        attempt.members = members;
        attempt.iccid = keys.iccid.map(str::to_owned);
        attempt.attempt = done.attempt;
        attempt.outcome = outcome;
        attempt.replay = replay;
        attempt.next_attempt_at = next_attempt_at;
        if members > 1 {
            let ids = done.items.iter().filter_map(|item| Some(item.event.keys().ok()?.id.to_owned()));
            attempt.member_ids = ids.collect();
            let sims = done.items.iter().filter_map(|item| item.event.keys().ok()?.iccid.map(str::to_owned));
            attempt.member_iccids = sims.collect::<BTreeSet<_>>().into_iter().collect();
        }
        self.tools.attempts.record(attempt);
    }
}

/// A label of few values.
fn outcome_name(verdict: &Verdict) -> String {
    let failure = match verdict {
        Verdict::Delivered { .. } => return "2xx".to_owned(),
        Verdict::Aborted(failure) | Verdict::Disabled(failure) | Verdict::Failed { failure, .. } => failure,
    };
    match failure.status {
        Some(status) => format!("{}xx", status / 100),
        None => failure.kind.clone(),
    }
}

fn describe(failure: &LastFailure) -> String {
    failure.status.map_or_else(|| failure.kind.clone(), |status| status.to_string())
}
