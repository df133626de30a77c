//! `Subscribe`: one filter, one direction.
//!
//! The stream pulls its next delivery only when the HTTP/2 layer has taken the last one, so a slow client holds one
//! batch and the transport's window, and is served from the log when it comes back. There is no task and no queue.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::time::Instant;
use tonic::Status;

use super::{
    call::Call,
    control::{self, Tag},
    frame::Frame,
    lifeline::{Lifeline, Signal},
    request,
    status::{hub_status, status},
};
use crate::{
    frontends::{
        Context,
        registry::{ConnectionGuard, SubscriptionHandle},
    },
    hub::{Delivery, Subscription},
    proto::{SubscribeRequest, SubscribeResponse},
};

/// Frames until the stream ends.
pub(super) type Frames = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

/// How the subscription is called in `GET /v1/subscribers`, as on a WebSocket.
const NAME: &str = "default";

/// Batches in a row before the stream looks whether anything else has happened.
const STREAK_MAX: u32 = 16;

/// Opens the stream.
///
/// # Errors
/// The status that answers the call.
pub(super) async fn open(context: Context, call: Call, request: SubscribeRequest) -> Result<Frames, Status> {
    let guard = call.connect(&context)?;
    let wanted = request::wanted(request, &call.principal, &context.limits).map_err(|e| status(&e))?;
    let filter = wanted.spec.predicate.filter().to_json();
    let handle = guard.subscription(NAME, &filter).map_err(|e| status(&e))?;
    let subscription = context.hub.subscribe(wanted.spec).await.map_err(hub_status)?;
    let live = Live {
        lifeline: Lifeline::new(&context, Arc::clone(&call.principal), call.deadline),
        opened: Some(wanted.warnings),
        ended: false,
        heartbeat: wanted.heartbeat,
        sent_at: Instant::now(),
        streak: 0,
        context,
        subscription,
        handle,
        _guard: guard,
    };
    Ok(Box::pin(stream::unfold(Box::new(live), |mut live| async move {
        let item = live.step().await?;
        Some((item, live))
    })))
}

struct Live {
    context: Context,
    subscription: Subscription,
    lifeline: Lifeline,
    /// Warnings, until the first message has been sent.
    opened: Option<Vec<String>>,
    ended: bool,
    heartbeat: Duration,
    sent_at: Instant,
    /// Deliveries in a row.
    streak: u32,
    handle: SubscriptionHandle,
    _guard: ConnectionGuard,
}

enum Turn {
    Signal(Signal),
    Delivery(Delivery),
}

impl Live {
    /// The next frame; after an error None.
    async fn step(&mut self) -> Option<Result<Frame, Status>> {
        if self.ended {
            return None;
        }
        if let Some(warnings) = self.opened.take() {
            let cursor = self.subscription.opened_at();
            self.handle.set_position(cursor.seq);
            return Some(self.send(&control::opened(cursor, warnings, self.heartbeat)));
        }
        match self.turn().await {
            Turn::Delivery(delivery) => Some(self.deliver(delivery)),
            Turn::Signal(Signal::Heartbeat) => {
                let cursor = self.subscription.cursor();
                self.handle.set_position(cursor.seq);
                let upstream = Arc::clone(&self.context.status.borrow());
                Some(self.send(&control::heartbeat(Some(cursor), &upstream)))
            }
            Turn::Signal(Signal::Draining) => {
                let cursor = self.subscription.cursor();
                Some(self.send(&control::draining(Some(cursor))))
            }
            Turn::Signal(Signal::End(status)) => Some(self.end(status)),
        }
    }

    async fn turn(&mut self) -> Turn {
        let beat_at = self.sent_at + self.heartbeat;
        let Self { lifeline, subscription, streak, .. } = self;
        let mut next = pin!(subscription.next());
        let delivery_first = *streak < STREAK_MAX;
        poll_fn(|cx| {
            if delivery_first && let Poll::Ready(delivery) = next.as_mut().poll(cx) {
                *streak += 1;
                return Poll::Ready(Turn::Delivery(delivery));
            }
            *streak = 0;
            if let Poll::Ready(signal) = lifeline.poll(cx, beat_at) {
                return Poll::Ready(Turn::Signal(signal));
            }
            if delivery_first {
                return Poll::Pending;
            }
            next.as_mut().poll(cx).map(Turn::Delivery)
        })
        .await
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<Frame, Status> {
        match delivery {
            Delivery::Batch(batch) => {
                self.sent_at = Instant::now();
                self.handle.set_position(batch.cursor.seq);
                self.handle.add_delivered(u64::from(batch.count));
                Ok(Frame::batch(&[], batch.bytes))
            }
            Delivery::CaughtUp(cursor) => {
                self.handle.set_position(cursor.seq);
                self.send(&control::caught_up(cursor))
            }
            Delivery::Gap(gap) => {
                let cursor = gap.to.unwrap_or_else(|| self.subscription.cursor());
                self.handle.set_position(cursor.seq);
                self.send(&control::gap(cursor, &gap))
            }
            Delivery::Failed(error) => self.end(hub_status(error)),
        }
    }

    fn send(&mut self, message: &SubscribeResponse) -> Result<Frame, Status> {
        self.sent_at = Instant::now();
        Ok(Tag::default().control(message))
    }

    fn end(&mut self, status: Status) -> Result<Frame, Status> {
        self.ended = true;
        Err(status)
    }
}
