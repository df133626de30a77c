//! Time is a parameter: whatever stamps, expires or schedules asks a [`Clock`] that it was given.
//!
//! Durations and deadlines use tokio's timer, which tests can pause; the wall clock is only for what people and
//! other systems read (event times, token expiry, day windows). [`TokioClock`] joins the two, so that a paused
//! tokio clock moves the wall clock too.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::runtime::Handle;

/// Wall-clock time.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// The current time. May step backwards when the machine's clock is corrected.
    fn now(&self) -> Timestamp;
}

/// Shared by every part of one gateway.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A wall clock that starts at a given time and advances with tokio's timer, paused or not.
#[derive(Debug, Clone)]
pub struct TokioClock {
    base: Timestamp,
    started: tokio::time::Instant,
    /// Whose timer it is: a thread outside any runtime would see real time pass instead.
    runtime: Option<Handle>,
}

impl TokioClock {
    /// Starts at `base`; must be called inside a tokio runtime when its clock is paused.
    pub fn starting_at(base: Timestamp) -> Self {
        let runtime = Handle::try_current().ok();
        Self { base, started: tokio::time::Instant::now(), runtime }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        let outside = Handle::try_current().is_err();
        let _inside = self.runtime.as_ref().filter(|_| outside).map(Handle::enter);
        let elapsed = SignedDuration::try_from(self.started.elapsed()).unwrap_or(SignedDuration::MAX);
        self.base.saturating_add(elapsed).unwrap_or(Timestamp::MAX)
    }
}

/// The machine's clock, shared.
pub fn system() -> SharedClock {
    Arc::new(SystemClock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_is_the_same_for_threads_outside_the_runtime() {
        let clock = TokioClock::starting_at(Timestamp::UNIX_EPOCH);
        tokio::time::advance(std::time::Duration::from_secs(3_600)).await;
        let there = clock.clone();
        let seen = std::thread::spawn(move || there.now()).join().unwrap();
        assert_eq!((seen, clock.now().as_second()), (clock.now(), 3_600));
    }
}
