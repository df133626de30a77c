//! What a client may know of the stream as a whole: `GET /v1/stream` and gRPC `GetStreamInfo` say the same.

use serde_json::{Value, json};

use super::Context;
use crate::{bus::Fill, log::Damage};

/// The stream: what is kept, how current it is, what an acknowledgement means, the limits. Cursors are text; the
/// incarnation is hex, since JSON numbers do not hold 64 bits everywhere. May read the disk.
pub fn stream(context: &Context) -> Value {
    let bounds = context.hub.log().bounds();
    let (oldest, newest) = context.hub.range();
    let health = context.bus.health();
    let upstream = context.status.borrow().to_json(context.clock.now());
    let filling = match *context.bus.fill().borrow() {
        Fill::Filling { upto, of } => json!({"upto": upto, "of": of}),
        _ => Value::Null,
    };
    let damaged: u64 = context.hub.log().damage().borrow().iter().map(Damage::positions).sum();
    json!({
        "events": bounds.events,
        "damaged": damaged,
        "oldest_cursor": oldest.to_string(),
        "oldest_time": bounds.first_time.map(|time| time.to_string()),
        "newest_cursor": newest.to_string(),
        "newest_time": bounds.last_time.map(|time| time.to_string()),
        "incarnation": format!("{:016x}", bounds.incarnation),
        "bus": {
            "kind": health.kind,
            "durability": health.durability,
            "warning": health.warning,
            "writable": health.unwritable.is_none(),
            "filling": filling,
        },
        "gateway": {
            "version": env!("CARGO_PKG_VERSION"),
            "source": &*context.source,
            "started_at": context.started_at.to_string(),
            "connections": context.registry.connections(),
        },
        "limits": context.limits.to_json(),
        "upstream": upstream,
    })
}
