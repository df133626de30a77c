//! One subscription of an `Interact` stream, in a form that can be polled beside others.
//!
//! The hub gives deliveries by an async call, and a pending call must be kept to be woken. So the call in progress
//! owns the subscription through a lock that only this feed takes; dropping the call, which loses nothing, gives the
//! subscription back for a change of filter or a look at its position.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

use super::{Frame, Tag, control};
use crate::{
    event::{Cursor, Predicate},
    frontends::registry::SubscriptionHandle,
    hub::{self, Delivery, Subscription},
    ingest::status::Status,
    proto::SubscribeResponse,
};

type Next = Pin<Box<dyn Future<Output = Delivery> + Send>>;

/// See the head of the file.
pub(super) struct Feed {
    name: String,
    tag: Tag,
    subscription: Arc<Mutex<Subscription>>,
    next: Option<Next>,
    /// Last position known; the subscription may be further.
    cursor: Cursor,
    heartbeat: Duration,
    sent_at: Instant,
    handle: SubscriptionHandle,
}

impl Feed {
    pub(super) fn new(
        name: String,
        subscription: Subscription,
        heartbeat: Duration,
        handle: SubscriptionHandle,
    ) -> Self {
        let cursor = subscription.opened_at();
        handle.set_position(cursor.seq);
        Self {
            tag: Tag::new(&name, ""),
            name,
            subscription: Arc::new(Mutex::new(subscription)),
            next: None,
            cursor,
            heartbeat,
            sent_at: Instant::now(),
            handle,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// When its heartbeat is due.
    pub(super) fn beat_at(&self) -> Instant {
        self.sent_at + self.heartbeat
    }

    /// The next delivery.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Delivery> {
        let next = self.next.get_or_insert_with(|| {
            let subscription = Arc::clone(&self.subscription);
            Box::pin(async move { subscription.lock().await.next().await })
        });
        let delivery = ready!(next.as_mut().poll(cx));
        self.next = None;
        Poll::Ready(delivery)
    }

    /// The frame of a delivery.
    ///
    /// # Errors
    /// The subscription's own end.
    pub(super) fn deliver(&mut self, delivery: Delivery) -> Result<Frame, hub::Error> {
        match delivery {
            Delivery::Batch(batch) => {
                self.sent_at = Instant::now();
                self.moved(batch.cursor);
                self.handle.add_delivered(u64::from(batch.count));
                Ok(self.tag.frame(batch.bytes))
            }
            Delivery::CaughtUp(cursor) => {
                self.moved(cursor);
                Ok(self.control(&control::caught_up(cursor)))
            }
            Delivery::Gap(gap) => {
                let cursor = gap.to.unwrap_or_else(|| self.cursor());
                self.moved(cursor);
                Ok(self.control(&control::gap(cursor, &gap)))
            }
            Delivery::Failed(error) => Err(error),
        }
    }

    pub(super) fn heartbeat(&mut self, upstream: &Status) -> Frame {
        let cursor = self.cursor();
        self.control(&control::heartbeat(Some(cursor), upstream))
    }

    /// Changes the filter from here on; gives the position.
    pub(super) fn update(&mut self, predicate: Predicate) -> Cursor {
        self.sent_at = Instant::now();
        self.handle.set_filter(&predicate.filter().to_json());
        self.with(|subscription| subscription.update(predicate));
        self.cursor()
    }

    /// The position up to which the filter has been evaluated.
    pub(super) fn cursor(&mut self) -> Cursor {
        if let Some(cursor) = self.with(|subscription| subscription.cursor()) {
            self.moved(cursor);
        }
        self.cursor
    }

    /// The lock is free once the call in progress is gone: nobody else takes it.
    fn with<T>(&mut self, act: impl FnOnce(&mut Subscription) -> T) -> Option<T> {
        self.next = None;
        self.subscription.try_lock().ok().map(|mut subscription| act(&mut subscription))
    }

    fn moved(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.handle.set_position(cursor.seq);
    }

    fn control(&mut self, message: &SubscribeResponse) -> Frame {
        self.sent_at = Instant::now();
        self.tag.control(message)
    }
}
