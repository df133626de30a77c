//! The thread that keeps house in the log, so that appends don't have to: indexes of finished segments, retention.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{clock::SharedClock, log::Log};

/// How often it looks without being asked: retention by age needs no more. While events are appended the writer asks,
/// by the clock that stamps them; this timer is for a log that is quiet.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);

/// The running thread; it ends when every sender of `requests` is gone.
#[derive(Debug)]
pub(in crate::bus) struct Caretaker {
    pub(in crate::bus) requests: mpsc::SyncSender<()>,
    pub(in crate::bus) thread: JoinHandle<()>,
}

impl Caretaker {
    /// Starts the thread.
    pub(in crate::bus) fn start(log: Arc<Log>, clock: SharedClock) -> std::io::Result<Self> {
        let (requests, queue) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("simcast-log-care".into()).spawn(move || {
            loop {
                if let Err(error) = log.maintain(clock.now()) {
                    tracing::warn!(%error, "the log could not be tidied; it is tried again");
                }
                match queue.recv_timeout(INTERVAL) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        })?;
        Ok(Self { requests, thread })
    }
}
