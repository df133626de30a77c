//! What ends a live stream, or breaks its silence, whatever it carries: the client's deadline, the expiry of its
//! token, draining, stopping, and the heartbeat.
//!
//! tonic enforces `grpc-timeout` only until the first answer, and nothing at all on a stream; so this is here. A
//! stream has one timer, which is moved only when it fires: sending an event costs no timer.

use std::{pin::Pin, sync::Arc, task::Poll, time::Duration};

use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use super::status;
use crate::{
    auth::Principal,
    clock::SharedClock,
    frontends::{ApiError, Code, Context, latch::Latch},
};

/// Longest time between two looks at the wall clock, which may have been corrected meanwhile.
const EXPIRY_CHECK_MAX: Duration = Duration::from_secs(3600);

/// Something other than events.
#[derive(Debug)]
pub(super) enum Signal {
    /// Nothing was sent for a heartbeat interval.
    Heartbeat,
    /// The gateway is about to stop; comes once, [`Signal::End`] follows.
    Draining,
    /// The stream ends with this.
    End(Status),
}

/// Follows them for one stream.
#[derive(Debug)]
pub(super) struct Lifeline {
    deadline: Option<Instant>,
    principal: Arc<Principal>,
    expiry_check: Option<Instant>,
    clock: SharedClock,
    draining: Latch<WaitForCancellationFutureOwned>,
    stopping: Latch<WaitForCancellationFutureOwned>,
    drained: bool,
    timer: Pin<Box<Sleep>>,
}

impl Lifeline {
    /// Starts following; `deadline` is the client's.
    pub(super) fn new(context: &Context, principal: Arc<Principal>, deadline: Option<Instant>) -> Self {
        let mut lifeline = Self {
            deadline,
            principal,
            expiry_check: None,
            clock: Arc::clone(&context.clock),
            draining: Latch::new(context.draining.clone().cancelled_owned()),
            stopping: Latch::new(context.stop.clone().cancelled_owned()),
            drained: false,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        lifeline.expiry_check = lifeline.next_expiry_check();
        lifeline
    }

    /// Waits for the next signal; `beat_at` is when a heartbeat is due.
    pub(super) fn poll(&mut self, cx: &mut std::task::Context<'_>, beat_at: Instant) -> Poll<Signal> {
        if self.drained || self.stopping.poll(cx).is_ready() {
            return Poll::Ready(Signal::End(status::status(&ApiError::draining())));
        }
        if self.draining.poll(cx).is_ready() {
            self.drained = true;
            return Poll::Ready(Signal::Draining);
        }
        loop {
            let now = Instant::now();
            if self.deadline.is_some_and(|at| at <= now) {
                return Poll::Ready(Signal::End(Status::deadline_exceeded(
                    "the deadline of the call has passed; resume after the last cursor",
                )));
            }
            if self.expiry_check.is_some_and(|at| at <= now) {
                if self.principal.expired(self.clock.now()) {
                    let error = ApiError::new(Code::TokenExpired, "the token has expired");
                    return Poll::Ready(Signal::End(status::status(&error)));
                }
                self.expiry_check = self.next_expiry_check();
            }
            if beat_at <= now {
                return Poll::Ready(Signal::Heartbeat);
            }
            let next = [self.deadline, self.expiry_check].into_iter().flatten().fold(beat_at, Instant::min);
            // A timer that fires too early is moved then; one that would fire too late is moved now.
            if self.timer.is_elapsed() || self.timer.deadline() > next {
                self.timer.as_mut().reset(next);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn next_expiry_check(&self) -> Option<Instant> {
        let left = self.principal.expires_at?.duration_since(self.clock.now());
        // At least a moment ahead, so that a clock which stands still can't make the loop spin.
        let left = Duration::try_from(left).unwrap_or_default().max(Duration::from_millis(1));
        Some(Instant::now() + left.min(EXPIRY_CHECK_MAX))
    }
}
