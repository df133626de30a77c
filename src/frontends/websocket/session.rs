//! The life of a connection: one loop that serves the client's messages, its subscriptions in turn, and a timer.
//!
//! Memory is what counts here, since most connections are idle: whatever happens rarely (messages, control answers,
//! a socket that is full) runs in a boxed future, so that the loop's own future stays small, and the timer is set to
//! the next thing that is due instead of one timer for each.

mod client;
mod timing;

use std::{
    future::{Future, pending, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::upgrade::Upgraded;
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    Shared,
    handshake::Opening,
    messages::{self, server},
    wire::{Incoming, Prefix, Wire, WriteError},
};
use crate::{
    auth::Principal,
    event::{Cursor, Filter},
    frontends::{
        ApiError, Code,
        latch::Latch,
        registry::{ConnectionGuard, SubscriptionHandle},
    },
    hub::{self, Batch, Delivery},
};

/// Close codes of RFC 6455, section 7.4.1.
mod close {
    pub(super) const PROTOCOL: u16 = 1002;
    pub(super) const NOT_UTF8: u16 = 1007;
    pub(super) const TOO_BIG: u16 = 1009;
}

/// A named subscription.
struct Sub {
    name: Box<str>,
    stream: hub::Subscription,
    handle: SubscriptionHandle,
    /// The reader's own filter, to evaluate again when its credential changes.
    filter: Box<Filter>,
    /// Ordinal of the next item.
    n: u64,
    /// When something was last sent.
    sent: Instant,
    caught_up: bool,
    /// Opened by the URL: an explicit subscribe of the same name replaces it.
    by_url: bool,
}

/// How a connection ends.
enum End {
    /// The peer has closed.
    Closed,
    /// It is gone, or to be dropped at once.
    Gone,
    /// With this close code and reason.
    Close(u16, &'static str),
    /// It takes nothing.
    Slow,
}

impl From<WriteError> for End {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stalled => Self::Slow,
            WriteError::Gone => Self::Gone,
        }
    }
}

/// What the loop does next.
enum Step {
    Incoming(Incoming),
    Delivery(usize, Delivery),
    Timer,
    /// Draining at first, then the hard stop.
    Signal,
}

/// Batches in a row before the loop looks whether anything else has happened.
const STREAK_MAX: u32 = 16;

/// A connection.
pub(super) struct Session {
    shared: Arc<Shared>,
    wire: Wire,
    guard: ConnectionGuard,
    principal: Option<Arc<Principal>>,
    /// Opened by the URL once it is known who asks.
    by_url: Option<Box<messages::Subscribe>>,
    subs: Vec<Sub>,
    /// Whose turn it is.
    turn: usize,
    /// Draining, then the hard stop.
    signal: Latch<WaitForCancellationFutureOwned>,
    /// Deliveries in a row.
    streak: u32,
    timer: Pin<Box<Sleep>>,
    opened: Instant,
    /// When anything was last sent while there is no subscription.
    pinged: Instant,
    expiry_told: bool,
    /// When a draining gateway closes this connection.
    close_at: Option<Instant>,
    /// Second in which messages are counted, and their number.
    heard: (Instant, u32),
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, upgraded: Upgraded, opening: Opening) -> Self {
        let limits = &shared.context.limits;
        let allowed = match opening.principal {
            Some(_) => limits.message_bytes,
            None => limits.message_bytes_before_auth,
        };
        let now = Instant::now();
        let signal = Latch::new(shared.context.draining.clone().cancelled_owned());
        Self {
            wire: Wire::new(upgraded, allowed),
            guard: opening.guard,
            principal: opening.principal,
            by_url: opening.subscribe,
            subs: Vec::new(),
            turn: 0,
            signal,
            streak: 0,
            timer: Box::pin(sleep_until(now)),
            opened: now,
            pinged: now,
            expiry_told: false,
            close_at: None,
            heard: (now, 0),
            shared,
        }
    }

    /// Serves the connection to its end.
    pub(super) async fn run(mut self: Box<Self>) {
        let end = match Box::pin(self.open()).await {
            Ok(()) => self.serve().await,
            Err(end) => end,
        };
        Box::pin(self.end(end)).await;
    }

    async fn serve(&mut self) -> End {
        loop {
            let result = match self.step().await {
                Step::Delivery(index, Delivery::Batch(batch)) => self.send_batch(index, batch).await,
                Step::Delivery(index, delivery) => Box::pin(self.send_other(index, delivery)).await,
                Step::Incoming(incoming) => Box::pin(self.receive(incoming)).await,
                Step::Timer => Box::pin(self.on_time()).await,
                Step::Signal => Box::pin(self.on_signal()).await,
            };
            if let Err(end) = result {
                return end;
            }
            // Pongs go out between frames, and nothing is sent while a frame is under way.
            if !self.wire.is_clear()
                && let Err(end) = Box::pin(self.flush()).await
            {
                return end;
            }
        }
    }

    /// Waits for the next thing to do. Cancel-safe: what is not returned is not lost.
    async fn step(&mut self) -> Step {
        let Self { wire, subs, turn, signal, timer, streak, .. } = self;
        let mut delivery = std::pin::pin!(next_delivery(subs, *turn));
        // Mostly it is a delivery that woke us; the rest is looked at once per wake-up, not once per step.
        let delivery_first = *streak < STREAK_MAX;
        poll_fn(|cx| {
            if delivery_first && let Poll::Ready((index, delivery)) = delivery.as_mut().poll(cx) {
                *streak += 1;
                return Poll::Ready(Step::Delivery(index, delivery));
            }
            *streak = 0;
            if signal.poll(cx).is_ready() {
                return Poll::Ready(Step::Signal);
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Step::Timer);
            }
            if let Poll::Ready(incoming) = wire.poll_incoming(cx) {
                return Poll::Ready(Step::Incoming(incoming));
            }
            if delivery_first {
                return Poll::Pending;
            }
            delivery.as_mut().poll(cx).map(|(index, delivery)| Step::Delivery(index, delivery))
        })
        .await
    }

    /// The hot path: one vectored write.
    async fn send_batch(&mut self, index: usize, batch: Batch) -> Result<(), End> {
        self.turn = index + 1;
        let Some(sub) = self.subs.get_mut(index) else { return Ok(()) };
        let prefix = Prefix::events(&sub.name, sub.n, batch.cursor);
        let wire = &mut self.wire;
        poll_fn(|cx| Poll::Ready(wire.poll_send(cx, &prefix, &batch.bytes))).await.map_err(|_| End::Gone)?;
        sub.n += u64::from(batch.count);
        sub.sent = Instant::now();
        sub.handle.add_delivered(u64::from(batch.count));
        sub.handle.set_position(batch.cursor.seq);
        self.shared.delivered.increment(u64::from(batch.count));
        Ok(())
    }

    async fn send_other(&mut self, index: usize, delivery: Delivery) -> Result<(), End> {
        self.turn = index + 1;
        let Some(sub) = self.subs.get_mut(index) else { return Ok(()) };
        sub.sent = Instant::now();
        let text = match delivery {
            Delivery::Batch(_) => return Ok(()),
            Delivery::CaughtUp(_) if sub.caught_up => return Ok(()),
            Delivery::CaughtUp(cursor) => {
                sub.caught_up = true;
                sub.handle.set_position(cursor.seq);
                let cursor = cursor.to_string();
                let fields = [("sub", Value::from(&*sub.name)), ("cursor", cursor.into())];
                messages::message(&server::CAUGHT_UP, fields)
            }
            Delivery::Gap(gap) => messages::gap(&sub.name, &gap),
            Delivery::Failed(error) => {
                let sub = self.subs.remove(index);
                messages::error(&Value::Null, Some(&sub.name), &error.into())
            }
        };
        self.send(text).await
    }

    /// Sends a control message.
    async fn send(&mut self, text: String) -> Result<(), End> {
        let limit = self.shared.context.limits.write_timeout;
        let stop = &self.shared.context.stop;
        tokio::select! {
            sent = self.wire.send(text, limit) => Ok(sent?),
            () = stop.cancelled() => Err(End::Gone),
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        let limit = self.shared.context.limits.write_timeout;
        let stop = &self.shared.context.stop;
        tokio::select! {
            flushed = self.wire.flush(limit) => Ok(flushed?),
            () = stop.cancelled() => Err(End::Gone),
        }
    }

    /// An error that ends the connection: said, then closed with its code.
    async fn fail(&mut self, id: &Value, error: ApiError) -> Result<(), End> {
        self.send(messages::error(id, None, &error)).await?;
        let code = error.code.close().unwrap_or(Code::InvalidMessage.close().unwrap_or(close::PROTOCOL));
        Err(End::Close(code, error.code.as_str()))
    }

    async fn end(self: Box<Self>, end: End) {
        let cursor = self.last_cursor();
        let Self { wire, shared, guard, subs, .. } = *self;
        drop(subs);
        let (limit, stop) = (shared.timing.close, &shared.context.stop);
        let (code, reason) = match end {
            End::Gone => return wire.reset(),
            End::Closed => {
                tokio::select! {
                    () = wire.answer_close(limit) => {}
                    () = stop.cancelled() => {}
                }
                return;
            }
            End::Close(code, reason) => (code, reason),
            End::Slow => {
                tracing::debug!(conn = guard.name(), "a slow client is closed");
                (Code::Slow.close().unwrap_or(close::PROTOCOL), Code::Slow.as_str())
            }
        };
        metrics::counter!("simcast_websocket_closes_total", "code" => code.to_string()).increment(1);
        let reason = messages::close_reason(reason, cursor);
        tokio::select! {
            () = wire.close(code, &reason, limit) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Where all subscriptions can be resumed: a client that reads the close frame has read all before it.
    fn last_cursor(&self) -> Option<Cursor> {
        self.subs.iter().map(|sub| sub.stream.cursor()).min_by_key(|cursor| cursor.seq)
    }
}

/// The next delivery of any subscription, that of `turn` first where several have one.
async fn next_delivery(subs: &mut [Sub], turn: usize) -> (usize, Delivery) {
    match subs {
        [] => pending().await,
        [one] => (0, one.stream.next().await),
        many => Box::pin(next_of_many(many, turn)).await,
    }
}

async fn next_of_many(subs: &mut [Sub], turn: usize) -> (usize, Delivery) {
    let turn = turn % subs.len();
    let (before, after) = subs.split_at_mut(turn);
    let after = after.iter_mut().zip(turn..);
    let in_turn = after.chain(before.iter_mut().zip(0..));
    // Polled in the order in which they were put in.
    let mut next: FuturesUnordered<_> =
        in_turn.map(|(sub, index)| async move { (index, sub.stream.next().await) }).collect();
    match next.next().await {
        Some(delivery) => delivery,
        None => pending().await,
    }
}
