//! The servers that the fan-out benchmark starts as children, and what they publish.

#[path = "../shared/event.rs"]
mod example;
pub mod floor;
pub mod gateway;

use simcast::bus::NewEvent;

/// How often a needle lies in a text, without overlap.
pub fn find(text: &[u8], needle: &[u8]) -> usize {
    memchr::memmem::find_iter(text, needle).count()
}

/// As the poller hands it on; of a thousand SIMs.
pub fn event(n: u64) -> NewEvent {
    let event = example::event(n, 1_000);
    NewEvent { event, identity: n, content: 0 }
}
