//! Who gets the next slot. There is no task of its own: whoever waits serves the queue, its own place or another's,
//! whenever a slot may have come free.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    Class, Slot,
    journal::{Found, Journal},
    pace::Pace,
    share::Credit,
    table::Table,
};

/// How long the gate stays shut after the journal could not be written.
const JOURNAL_RETRY: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// One part in so many of the allowance is left to requests that somebody waits for.
const SPARE_SHARE: u32 = 20;

#[derive(Debug)]
pub(super) struct Inner {
    pub requests_per_minute: u32,
    pub state: Mutex<State>,
    /// Tells waiters that the time for which they sleep has changed.
    pub changed: Notify,
    /// Tells whoever notes slots for other gateways that few are left.
    pub credit_is_low: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub table: Table,
    pub pace: Pace,
    waiting: [VecDeque<Waiter>; 6],
    next_ticket: u64,
    /// When each class last got a slot.
    granted_at: [Option<Instant>; 6],
    pub journal_error: Option<String>,
    /// Requests that got a slot, ever.
    pub sent: u64,
    /// What has been noted for other gateways to count; None where there are none.
    pub credit: Option<Credit>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    grant: oneshot::Sender<Slot>,
}

/// Somebody's place in the queue; dropping it leaves the queue.
pub(super) struct Place {
    gate: Arc<Inner>,
    class: Class,
    ticket: u64,
    pub grant: oneshot::Receiver<Slot>,
}

impl Place {
    pub fn queue(gate: &Arc<Inner>, class: Class) -> Self {
        let (sender, grant) = oneshot::channel();
        let mut state = gate.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting[class.index()].push_back(Waiter { ticket, grant: sender });
        Self { gate: Arc::clone(gate), class, ticket, grant }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.waiting[self.class.index()].retain(|waiter| waiter.ticket != self.ticket);
    }
}

impl Inner {
    pub fn new(requests_per_minute: u32, state: State) -> Self {
        Self {
            requests_per_minute,
            state: Mutex::new(state),
            changed: Notify::new(),
            credit_is_low: Notify::new(),
        }
    }

    /// Gives slots to those who wait, as many as there are; says when the next one may be had.
    pub fn serve(self: &Arc<Self>) -> Option<Instant> {
        let now = Instant::now();
        let mut granted = Vec::new();
        let (next, is_low) = {
            let mut state = self.state.lock();
            let next = loop {
                let ready_at = state.ready_at(now);
                if ready_at != Some(now) {
                    break ready_at;
                }
                let Some((class, waiter)) = state.next_waiter(now) else { break state.table.next_free() };
                match state.take(class, now) {
                    Some(index) => granted.push((waiter, Slot { gate: Arc::clone(self), index })),
                    None => state.waiting[class.index()].push_front(waiter),
                }
            };
            (next, state.credit.is_some_and(|credit| credit.is_low(now)))
        };
        if is_low {
            self.credit_is_low.notify_one();
        }
        // Outside the lock: a slot that nobody takes any more is dropped here, and dropping locks.
        for (waiter, slot) in granted {
            let _ = waiter.grant.send(slot);
        }
        next
    }
}

impl State {
    pub fn new(
        requests_per_minute: u32,
        journal: Option<Journal>,
        found: Vec<Found>,
        shared: bool,
        now: Instant,
    ) -> Self {
        Self {
            table: Table::new(journal, found, now),
            pace: Pace::new(requests_per_minute, now),
            waiting: Default::default(),
            next_ticket: 0,
            granted_at: [None; 6],
            journal_error: None,
            sent: 0,
            credit: shared.then(|| Credit::none(now)),
        }
    }

    /// How many wait, by class.
    pub fn waiting(&self) -> [u32; 6] {
        std::array::from_fn(|class| self.waiting[class].len() as u32)
    }

    pub fn advance(&mut self, now: Instant) {
        self.table.expire(now);
        self.pace.advance(now);
    }

    /// `now` where a slot can be taken now, a later time where it is known, None where it depends on an answer.
    pub fn ready_at(&mut self, now: Instant) -> Option<Instant> {
        self.advance(now);
        if self.credit.is_some_and(|credit| !credit.allows(now)) {
            return None;
        }
        let by_pace = self.pace.ready_at(now);
        if self.table.used_total() < self.pace.allowance() {
            return Some(by_pace);
        }
        let by_table = [self.table.next_free(), self.pace.next_raise()].into_iter().flatten().min()?;
        Some(by_table.max(by_pace))
    }

    pub fn has_spare(&mut self, now: Instant) -> bool {
        self.advance(now);
        let allowance = self.pace.allowance();
        self.credit.is_none_or(|credit| credit.allows(now))
            && self.pace.has_spare(now)
            && self.table.used_total() + allowance / SPARE_SHARE < allowance
            && self.waiting.iter().all(VecDeque::is_empty)
    }

    /// Whether a class may have one of the slots that are left: the last ones are not for details, of which a busy fleet
    /// wants more than there are.
    pub fn may_take(&self, class: Class) -> bool {
        let allowance = self.pace.allowance();
        class != Class::Details || self.table.used_total() + allowance / SPARE_SHARE < allowance
    }

    /// By the scheme at the head of [`super`].
    fn next_waiter(&mut self, now: Instant) -> Option<(Class, Waiter)> {
        let (allowance, used) = (self.pace.allowance(), self.table.used());
        // A floor is a pace, not a heap: a class that comes with none of it used does not go first until all is.
        let is_due = |class: Class| {
            let every = MINUTE / class.floor(allowance);
            self.granted_at[class.index()].is_none_or(|at| now.saturating_duration_since(at) >= every)
        };
        let below_floor = |class: Class| used[class.index()] < class.floor(allowance) && is_due(class);
        let heads = Class::ALL.into_iter().filter_map(|class| {
            let head = self.waiting[class.index()].front()?;
            (self.may_take(class) || below_floor(class)).then_some((class, head.ticket))
        });
        // Below a floor the ticket decides, beyond the order of classes.
        let (class, _) = heads.min_by_key(|(class, ticket)| match below_floor(*class) {
            true => (0, *ticket, *class),
            false => (1, 0, *class),
        })?;
        self.waiting[class.index()].pop_front().map(|waiter| (class, waiter))
    }

    pub fn take(&mut self, class: Class, now: Instant) -> Option<u32> {
        match self.table.take(Some(class)) {
            Ok(index) => {
                self.pace.spend();
                self.sent += 1;
                if let Some(credit) = &mut self.credit {
                    credit.spend();
                }
                self.granted_at[class.index()] = Some(now);
                self.journal_error = None;
                Some(index)
            }
            Err(error) => {
                self.journal_failed(now, error);
                None
            }
        }
    }

    /// The answer has arrived.
    pub fn note(&mut self, now: Instant, index: u32) {
        // A slot without a noted end only counts for longer after a restart.
        if let Err(error) = self.table.answered(index, now) {
            self.journal_failed(now, error);
        }
    }

    pub fn journal_failed(&mut self, now: Instant, error: io::Error) {
        if self.journal_error.is_none() {
            tracing::error!(%error, "the budget journal can't be written: no requests are sent until it can");
        }
        self.journal_error = Some(error.to_string());
        self.pace.shut_until(now + JOURNAL_RETRY);
    }
}
