//! Where every part of the poller writes what the [`Status`] shows.

use std::sync::Arc;

use tokio::sync::watch;

use super::status::{Status, StatusReceiver};

/// Shared writer of the status.
#[derive(Debug)]
pub struct Board {
    sender: watch::Sender<Arc<Status>>,
}

impl Board {
    /// An empty board.
    pub fn new() -> Self {
        Self { sender: watch::Sender::new(Arc::default()) }
    }

    /// A reader.
    pub fn receiver(&self) -> StatusReceiver {
        self.sender.subscribe()
    }

    /// Changes the status and tells the readers.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.sender.send_modify(|status| change(Arc::make_mut(status)));
    }

    /// The status now.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.sender.borrow())
    }
}
