//! Start, drain, stop: the two tokens that every part listens to, and the tracker that knows which parts still run.
//!
//! Draining is *soft*: listeners stop accepting, streams say where to resume, what is in flight finishes. Stopping is
//! *hard*: everything returns at its next await. A first signal drains, a second stops, and a drain that takes longer
//! than [`DRAIN_SOFT`] becomes a stop. A [`Lifecycle`] is a value, so that two gateways in one test process stop apart.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long streams and requests may finish by themselves after a drain began.
pub const DRAIN_SOFT: Duration = Duration::from_secs(8);

/// How long tasks may take to return after a hard stop; soft and hard together are the 10 s that supervisors give.
pub const DRAIN_HARD: Duration = Duration::from_secs(2);

/// Shared by all parts of one gateway; clones are the same lifecycle.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    /// Soft: accept nothing new, finish what is in flight.
    pub draining: CancellationToken,
    /// Hard: return now. Implies draining.
    pub stop: CancellationToken,
    /// Tasks that end by themselves once the gateway drains: listeners, streams, the poller.
    pub tasks: TaskTracker,
    /// Tasks that the others need to the last, and that end at the hard stop.
    background: TaskTracker,
    failure: Arc<OnceLock<String>>,
    restart: Arc<OnceLock<String>>,
}

/// What a process is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// How a gateway ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Tasks that had not returned by the deadline.
    pub left: usize,
    /// The first part that failed, where that was the cause.
    pub failure: Option<String>,
    /// Why a new gateway should take its place, where that was the cause.
    pub restart: Option<String>,
}

impl Lifecycle {
    /// A gateway that runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to drain. Calling it again changes nothing.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Stops at once.
    pub fn stop(&self) {
        self.draining.cancel();
        self.stop.cancel();
    }

    /// Whether a drain or a stop has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Gives up for `reason`: drains, and makes the process end with a failure.
    pub fn fail(&self, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::error!(reason, "the gateway gives up");
        // Only the first failure is the cause, later ones are consequences.
        let _ = self.failure.set(reason);
        self.drain();
    }

    /// Drains for a new gateway that takes this one's place in the same process.
    pub fn restart(&self, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::warn!(reason, "the gateway begins anew");
        let _ = self.restart.set(reason);
        self.drain();
    }

    /// Runs a task that must live until the gateway drains and then ends by itself: a panic, or an end before, takes
    /// the gateway down instead of leaving it half alive.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.clone().watched(name, task));
    }

    /// The same for a task that other tasks need while they drain, and that ends at [`Lifecycle::stop`] only. The
    /// drain does not wait for it.
    pub fn spawn_background(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.background.spawn(self.clone().watched(name, task));
    }

    async fn watched(self, name: &'static str, task: impl Future<Output = ()> + Send) {
        match AssertUnwindSafe(task).catch_unwind().await {
            Err(_) => self.fail(format!("{name} panicked")),
            Ok(()) if !self.is_draining() => self.fail(format!("{name} ended by itself")),
            Ok(()) => tracing::debug!(task = name, "ended"),
        }
    }

    /// Obeys signals until a hard stop: the first [`Signal::Stop`] drains, the second stops, [`Signal::Reload`]
    /// calls `reload`. True where one said to stop.
    pub async fn obey(&self, signals: &mut mpsc::Receiver<Signal>, reload: impl Fn()) -> bool {
        let mut told = false;
        loop {
            let signal = tokio::select! {
                signal = signals.recv() => signal,
                () = self.stop.cancelled() => return told,
            };
            told |= signal == Some(Signal::Stop);
            match signal {
                None => return told,
                Some(Signal::Reload) => reload(),
                Some(Signal::Stop) if self.is_draining() => {
                    tracing::warn!("second signal: stopping at once");
                    self.stop();
                }
                Some(Signal::Stop) => {
                    tracing::info!(
                        deadline_s = DRAIN_SOFT.as_secs(),
                        "draining; signal again to stop at once"
                    );
                    self.drain();
                }
            }
        }
    }

    /// Waits for a drain to begin and for all tasks to return, stopping hard when they have or at the deadline.
    pub async fn join(&self) -> Ended {
        self.draining.cancelled().await;
        self.tasks.close();
        self.background.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(DRAIN_SOFT) => {
                tracing::warn!(tasks = self.tasks.len(), "the drain took too long: stopping");
            }
        }
        self.stop();
        let all = async {
            self.tasks.wait().await;
            self.background.wait().await;
        };
        // On a timeout the tasks that are left are counted, and end with the process.
        let _ = tokio::time::timeout(DRAIN_HARD, all).await;
        let left = self.tasks.len() + self.background.len();
        Ended { left, failure: self.failure.get().cloned(), restart: self.restart.get().cloned() }
    }
}

/// Listens for SIGTERM, SIGINT and SIGHUP of this process.
///
/// # Errors
/// Where the handlers can't be installed.
pub fn signals() -> std::io::Result<mpsc::Receiver<Signal>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = terminate.recv() => Signal::Stop,
                _ = interrupt.recv() => Signal::Stop,
                _ = hangup.recv() => Signal::Reload,
                () = sender.closed() => return,
            };
            // A full queue means that four are waiting; one more would say nothing new.
            let _ = sender.try_send(signal);
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_tasks_and_no_longer() {
        let lifecycle = Lifecycle::new();
        let draining = lifecycle.draining.clone();
        lifecycle.spawn("polite", async move {
            draining.cancelled().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        let started = tokio::time::Instant::now();
        lifecycle.drain();
        assert_eq!(lifecycle.join().await, Ended { left: 0, failure: None, restart: None });
        assert_eq!(started.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_works_in_the_background_outlives_the_drain_but_does_not_prolong_it() {
        let lifecycle = Lifecycle::new();
        let (draining, stop) = (lifecycle.draining.clone(), lifecycle.stop.clone());
        let stopped = stop.clone();
        lifecycle.spawn_background("hub", async move { stop.cancelled().await });
        lifecycle.spawn("listener", async move {
            draining.cancelled().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!stopped.is_cancelled(), "the hub is still there");
        });
        let started = tokio::time::Instant::now();
        lifecycle.drain();
        assert_eq!(lifecycle.join().await, Ended { left: 0, failure: None, restart: None });
        assert_eq!(started.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_takes_too_long_becomes_a_stop() {
        let lifecycle = Lifecycle::new();
        let stop = lifecycle.stop.clone();
        lifecycle.spawn("needs the hard stop", async move { stop.cancelled().await });
        lifecycle.spawn("ignores all", std::future::pending());
        lifecycle.spawn_background("ignores all too", std::future::pending());
        let started = tokio::time::Instant::now();
        lifecycle.drain();
        assert_eq!(lifecycle.join().await, Ended { left: 2, failure: None, restart: None });
        assert_eq!(started.elapsed(), DRAIN_SOFT + DRAIN_HARD);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_drains_the_second_stops_and_hup_reloads() {
        let lifecycle = Lifecycle::new();
        let (sender, receiver) = mpsc::channel(4);
        let reloads = AtomicUsize::new(0);
        let mut receiver = receiver;
        let obey = lifecycle.obey(&mut receiver, || {
            reloads.fetch_add(1, Ordering::Relaxed);
        });
        let outside = async {
            sender.send(Signal::Reload).await.unwrap();
            sender.send(Signal::Stop).await.unwrap();
            lifecycle.draining.cancelled().await;
            assert!(!lifecycle.stop.is_cancelled());
            sender.send(Signal::Stop).await.unwrap();
            lifecycle.stop.cancelled().await;
        };
        tokio::join!(obey, outside);
        assert_eq!(reloads.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_dies_takes_the_gateway_down() {
        let panicking = async { panic!("boom") };
        let ending = async {};
        for (task, failure) in
            [(panicking.boxed(), "part panicked"), (ending.boxed(), "part ended by itself")]
        {
            let lifecycle = Lifecycle::new();
            lifecycle.spawn("part", task);
            assert_eq!(
                lifecycle.join().await,
                Ended { left: 0, failure: Some(failure.into()), restart: None }
            );
        }
    }

    #[tokio::test]
    async fn two_lifecycles_stop_apart() {
        let (one, two) = (Lifecycle::new(), Lifecycle::new());
        one.stop();
        assert!(one.is_draining() && !two.is_draining());
    }
}
