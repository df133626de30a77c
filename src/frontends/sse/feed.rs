//! One stream: the hub's ready-made chunks as they are, and control messages between them.
//!
//! The body is pulled by hyper, which stops pulling while the socket is full; a client that takes nothing for the
//! listener's write deadline is reset.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{BOOKMARK, CAUGHT_UP, DRAINING, GAP, Shared};
use crate::{
    event::Cursor,
    frontends::{
        latch::Latch,
        registry::{ConnectionGuard, SubscriptionHandle},
    },
    hub::{Delivery, Subscription},
};

/// How long a browser waits before it reconnects.
const RETRY_MS: u32 = 1000;
/// Batches in a row before the stream looks whether anything else has happened.
const STREAK_MAX: u32 = 16;

enum Step {
    Delivery(Delivery),
    Timer,
    Signal,
}

/// A stream of chunks.
pub(super) struct Feed {
    shared: Arc<Shared>,
    subscription: Subscription,
    handle: SubscriptionHandle,
    /// On the list of subscribers as long as the stream lives.
    _guard: ConnectionGuard,
    expires_at: Option<Timestamp>,
    /// What is told before anything else.
    opening: Option<Bytes>,
    /// Draining, then the hard stop.
    signal: Latch<WaitForCancellationFutureOwned>,
    /// Deliveries in a row.
    streak: u32,
    timer: Pin<Box<Sleep>>,
    /// When something was last sent.
    sent: Instant,
    /// When a draining gateway ends this stream.
    close_at: Option<Instant>,
}

impl Feed {
    pub(super) fn new(
        shared: Arc<Shared>,
        subscription: Subscription,
        guard: ConnectionGuard,
        handle: SubscriptionHandle,
        expires_at: Option<Timestamp>,
        warnings: Vec<String>,
    ) -> Self {
        let signal = Latch::new(shared.context.draining.clone().cancelled_owned());
        let now = Instant::now();
        let mut feed = Self {
            shared,
            subscription,
            handle,
            _guard: guard,
            expires_at,
            opening: None,
            signal,
            streak: 0,
            timer: Box::pin(sleep_until(now)),
            sent: now,
            close_at: None,
        };
        // The exact start at once: a client that is cut off before the first event misses nothing when it resumes.
        let mut fields = feed.bookmark(feed.subscription.opened_at());
        if !warnings.is_empty() {
            fields.insert("warnings".into(), warnings.into());
        }
        let first = control(BOOKMARK, Some(feed.subscription.opened_at()), &Value::Object(fields));
        feed.opening = Some([format!("retry: {RETRY_MS}\n\n").as_bytes(), &first].concat().into());
        feed.arm();
        feed
    }

    /// The next chunk; None at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        if let Some(opening) = self.opening.take() {
            return Some(opening);
        }
        loop {
            let chunk = match self.step().await {
                Step::Delivery(delivery) => self.deliver(delivery)?,
                Step::Timer => self.on_time()?,
                Step::Signal => Some(self.on_signal()?),
            };
            if let Some(chunk) = chunk {
                self.sent = Instant::now();
                return Some(chunk);
            }
        }
    }

    async fn step(&mut self) -> Step {
        let Self { subscription, signal, timer, streak, .. } = self;
        let mut delivery = std::pin::pin!(subscription.next());
        let delivery_first = *streak < STREAK_MAX;
        poll_fn(|cx| {
            if delivery_first && let Poll::Ready(delivery) = delivery.as_mut().poll(cx) {
                *streak += 1;
                return Poll::Ready(Step::Delivery(delivery));
            }
            *streak = 0;
            if signal.poll(cx).is_ready() {
                return Poll::Ready(Step::Signal);
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Step::Timer);
            }
            if delivery_first {
                return Poll::Pending;
            }
            delivery.as_mut().poll(cx).map(Step::Delivery)
        })
        .await
    }

    /// The chunk of a delivery; None outside ends the stream.
    fn deliver(&mut self, delivery: Delivery) -> Option<Option<Bytes>> {
        match delivery {
            Delivery::Batch(batch) => {
                self.handle.add_delivered(u64::from(batch.count));
                self.handle.set_position(batch.cursor.seq);
                self.shared.delivered.increment(u64::from(batch.count));
                Some(Some(batch.bytes))
            }
            Delivery::CaughtUp(cursor) => {
                self.handle.set_position(cursor.seq);
                let data = json!({"cursor": cursor.to_string()});
                Some(Some(control(CAUGHT_UP, Some(cursor), &data)))
            }
            Delivery::Gap(gap) => Some(Some(control(GAP, gap.to, &Value::Object(gap.to_json())))),
            Delivery::Failed(error) => {
                // The reconnect is told why by an HTTP status; EventSource reads no error inside a stream.
                tracing::warn!(%error, "a stream ends");
                None
            }
        }
    }

    /// The timer has fired: what is due, if anything. None outside ends the stream.
    fn on_time(&mut self) -> Option<Option<Bytes>> {
        let now = Instant::now();
        let expired = self.expires_at.is_some_and(|at| at <= self.shared.context.clock.now());
        if expired || self.close_at.is_some_and(|at| at <= now) {
            return None;
        }
        let mut chunk = None;
        if now.duration_since(self.sent) >= self.shared.context.limits.heartbeat {
            let cursor = self.subscription.cursor();
            self.handle.set_position(cursor.seq);
            self.sent = now;
            chunk = Some(control(BOOKMARK, Some(cursor), &Value::Object(self.bookmark(cursor))));
        }
        self.arm();
        Some(chunk)
    }

    /// The gateway drains: says so, and ends the stream at its moment. None where it stops.
    fn on_signal(&mut self) -> Option<Bytes> {
        if self.close_at.is_some() {
            return None;
        }
        self.signal = Latch::new(self.shared.context.stop.clone().cancelled_owned());
        self.close_at = Some(Instant::now() + self.shared.slots.next(self.shared.drain));
        self.arm();
        let within = u64::try_from(self.shared.drain.as_millis()).unwrap_or(u64::MAX);
        Some(control(DRAINING, None, &json!({"reconnect_within_ms": within})))
    }

    fn arm(&mut self) {
        let mut next = self.sent + self.shared.context.limits.heartbeat;
        if let Some(at) = self.close_at {
            next = next.min(at);
        }
        if let Some(expires_at) = self.expires_at {
            let left = expires_at.duration_since(self.shared.context.clock.now());
            let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
            // A timer of whole milliseconds may fire a little before the wall clock says the same.
            next = next.min(Instant::now() + left + Duration::from_millis(1));
        }
        self.timer.as_mut().reset(next);
    }

    fn bookmark(&self, cursor: Cursor) -> Map<String, Value> {
        let status = self.shared.context.status.borrow();
        Map::from_iter([
            ("cursor".into(), cursor.to_string().into()),
            ("seen_until".into(), status.seen_until.map_or(Value::Null, |time| time.to_string().into())),
            ("upstream".into(), status.state.as_str().into()),
        ])
    }
}

/// A named message. With `id` a reconnect resumes there.
fn control(name: &str, id: Option<Cursor>, data: &Value) -> Bytes {
    let id = id.map(|cursor| format!("id: {cursor}\n")).unwrap_or_default();
    format!("{id}event: {name}\ndata: {data}\n\n").into()
}
