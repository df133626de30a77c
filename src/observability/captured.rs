//! What is logged while a test runs, for tests that look at it.

use std::{
    io,
    sync::{Arc, LazyLock},
};

use parking_lot::Mutex;
use tracing::{Dispatch, Level, subscriber::DefaultGuard};

/// Everything that is logged on this thread; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// Captures at every level until the guard is dropped.
    ///
    /// While there is one subscriber only, a place in the code that logs for the first time asks the subscriber of its own
    /// thread whether anybody listens (`has_just_one` in tracing-core 0.1.36), and keeps the answer for all threads. Another
    /// test's thread has none, and this one would then hear nothing from there. So a second subscriber stays for good, and
    /// all places are asked again once both are there.
    pub(crate) fn start() -> (Self, DefaultGuard) {
        static SECOND: LazyLock<Dispatch> =
            LazyLock::new(|| Dispatch::new(tracing::subscriber::NoSubscriber::new()));
        LazyLock::force(&SECOND);
        let captured = Self::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        tracing::callsite::rebuild_interest_cache();
        (captured, guard)
    }

    /// What was logged so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_another_thread_came_to_first_is_heard() {
        let place = || tracing::info!("a place in the code");
        let (captured, _guard) = Captured::start();
        std::thread::spawn(place).join().unwrap();
        assert_eq!(captured.text(), "");
        place();
        assert!(captured.text().contains("a place in the code"));
    }
}
