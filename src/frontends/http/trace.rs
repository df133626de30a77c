//! The answer of `GET /v1/events/{id}/trace`, described in [`openapi`](super::openapi) as `Trace`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    event::{Flag, Provenance},
    hub::{Step, Trace},
};

/// As JSON.
pub fn json(trace: &Trace) -> Value {
    let Trace { step, event_type, iccid, time, related } = trace;
    let Step { provenance, appended_at, .. } = step;
    let mut shown = head(step);
    let asked_at = provenance.map(|known| at(known.asked_us));
    let read = provenance.map(|Provenance { via, .. }| json!({"by": via.as_str(), "asked_at": asked_at}));
    let visible = provenance.map(|Provenance { answered_us, not_seen_us, .. }| {
        json!({"after": not_seen_us.map(at), "before": at(answered_us)})
    });
    let lag = json!({
        "source_ms": asked_at.zip(*time).map(|(asked_at, time)| millis(time, asked_at)),
        // Stamps have whole milliseconds, reads have finer ones.
        "gateway_ms": provenance.map(|known| millis(at(known.answered_us), *appended_at).max(0)),
    });
    shown.extend([
        ("event_type".to_owned(), event_type.as_str().into()),
        ("iccid".to_owned(), iccid.as_deref().into()),
        ("time".to_owned(), json!(time)),
        ("visible".to_owned(), json!(visible)),
        ("read".to_owned(), json!(read)),
        ("lag".to_owned(), lag),
        ("related".to_owned(), related.iter().map(|step| Value::Object(head(step))).collect()),
    ]);
    Value::Object(shown)
}

fn head(step: &Step) -> Map<String, Value> {
    Map::from_iter([
        ("id".to_owned(), step.id.as_str().into()),
        ("cursor".to_owned(), step.cursor.to_string().into()),
        ("appended_at".to_owned(), json!(step.appended_at)),
        ("flags".to_owned(), step.flags.iter().map(Flag::as_str).collect()),
    ])
}

fn at(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or_default()
}

fn millis(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millisecond() - from.as_millisecond()
}
