//! A future that is polled only when it was woken.
//!
//! A stream waits for its next events, and beside them for what almost never comes: that the gateway drains, that it
//! stops. Polling a cancellation token takes a lock that all streams share, and polling a set of futures touches half
//! a dozen places in memory; with thousands of streams, each of them is a cache miss for each batch. This asks one
//! flag.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

/// Wakes the task and says that it was this future that did.
#[derive(Debug)]
struct Flag {
    woken: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the task is woken: it must see the flag when it runs.
        self.woken.store(true, Ordering::Release);
        self.task.lock().wake_by_ref();
    }
}

/// The future and its flag.
#[derive(Debug)]
pub(super) struct Latch<F> {
    future: Pin<Box<F>>,
    flag: Arc<Flag>,
    /// Whom the flag wakes, where it costs no lock to compare.
    task: Waker,
}

impl<F: Future> Latch<F> {
    /// Polled for the first time by the first [`Latch::poll`].
    pub(super) fn new(future: F) -> Self {
        let flag = Flag { woken: AtomicBool::new(true), task: Mutex::new(Waker::noop().clone()) };
        Self { future: Box::pin(future), flag: Arc::new(flag), task: Waker::noop().clone() }
    }

    /// As the future's own, which must not be polled again once it is ready.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !self.task.will_wake(cx.waker()) {
            self.task = cx.waker().clone();
            *self.flag.task.lock() = self.task.clone();
            // A wake-up that came before went to the former task.
            self.flag.woken.store(true, Ordering::Relaxed);
        }
        if !self.flag.woken.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Before the poll: a wake-up during it must not be lost.
        self.flag.woken.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.flag));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn wakes_its_task_and_is_ready_once_the_future_is() {
        let token = CancellationToken::new();
        let mut latch = Latch::new(token.clone().cancelled_owned());
        assert!(poll_fn(|cx| Poll::Ready(latch.poll(cx))).await.is_pending());
        let task = tokio::spawn(async move { poll_fn(|cx| latch.poll(cx)).await });
        tokio::task::yield_now().await;
        token.cancel();
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn polls_only_after_a_wake_up() {
        let mut polls = 0;
        let (sender, mut receiver) = tokio::sync::oneshot::channel::<()>();
        let mut latch = Latch::new(poll_fn(|cx| {
            polls += 1;
            Pin::new(&mut receiver).poll(cx)
        }));
        for _ in 0..5 {
            assert!(poll_fn(|cx| Poll::Ready(latch.poll(cx))).await.is_pending());
        }
        sender.send(()).unwrap();
        assert!(poll_fn(|cx| Poll::Ready(latch.poll(cx))).await.is_ready());
        drop(latch);
        assert_eq!(polls, 2);
    }

    #[tokio::test]
    async fn is_ready_where_the_future_was_before_the_first_poll() {
        let token = CancellationToken::new();
        token.cancel();
        let mut latch = Latch::new(token.cancelled_owned());
        poll_fn(|cx| latch.poll(cx)).await;
    }
}
