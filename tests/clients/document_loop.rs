//! The API document's "Real-time Monitoring Example" once more, as Rust: what `python/document_loop.py` runs word for
//! word, for tests whose clock is paused and in which no other process can take part.
//!
//! It asks for the newest ten rows of one SIM, compares each row with the one printed before it, has no time limit, and
//! ends at the first answer that it can't take, with the exception that ends the Python text. Both are run on the same
//! cases by `tests/it/document.rs`. It names no type of the crate, so that its own tests and those beside it share it.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::DuplexStream;

/// What a line is known by: id and time of the row that it was printed for.
pub type Line = (String, String);

/// What the loop did so far; outside of it, since it may hang and be dropped.
#[derive(Debug, Default)]
pub struct Record {
    /// Lines printed, one for each row that differs from the one before; those for operators are not counted.
    pub lines: Vec<Line>,
    /// Requests sent.
    pub asked: u64,
    /// Answers that came, whole or broken.
    pub answered: u64,
}

/// Why it ended: the name of the exception.
pub type Died = &'static str;

/// Where and what to ask.
#[derive(Debug, Clone)]
pub struct Monitored {
    /// Everything before `/sims`, without scheme and host.
    pub path: String,
    pub key: String,
    pub iccid: String,
}

/// The loop. `sleep` is told after each poll and ends the run by giving false.
pub async fn monitor_sim_activity(
    dial: impl Fn() -> DuplexStream,
    sim: &Monitored,
    record: &mut Record,
    mut sleep: impl AsyncFnMut() -> bool,
) -> Option<Died> {
    let mut last_event_id = None;
    loop {
        record.asked += 1;
        let body = get(dial(), sim).await;
        record.answered += 1;
        let body = match body {
            Ok(body) => body,
            Err(died) => return Some(died),
        };
        // requests.Response.json(): whatever the status and the content type.
        let Ok(answer) = serde_json::from_slice::<Value>(&body) else { return Some("JSONDecodeError") };
        if let Err(died) = print(&answer, &mut last_event_id, record) {
            return Some(died);
        }
        if !sleep().await {
            return None;
        }
    }
}

/// `requests.get` without a session: a new connection each time, and no time limit.
async fn get(stream: DuplexStream, sim: &Monitored) -> Result<Bytes, Died> {
    let refused = |_| "ConnectionError";
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(refused)?;
    tokio::spawn(connection);
    let request = http::Request::get(format!("{}/sims/{}/activity?limit=10", sim.path, sim.iccid))
        .header(http::header::HOST, "simulator")
        .header(http::header::AUTHORIZATION, format!("Bearer {}", sim.key))
        .body(Empty::<Bytes>::new())
        .map_err(|_| "InvalidURL")?;
    let answer = sender.send_request(request).await.map_err(refused)?;
    let body = answer.into_body().collect().await.map_err(|_| "ChunkedEncodingError")?;
    Ok(body.to_bytes())
}

/// `value[name]` of Python.
fn item<'v>(value: &'v Value, name: &str) -> Result<&'v Value, Died> {
    match value {
        Value::Object(fields) => fields.get(name).ok_or("KeyError"),
        _ => Err("TypeError"),
    }
}

fn print(answer: &Value, last_event_id: &mut Option<Value>, record: &mut Record) -> Result<(), Died> {
    let Value::Array(activity) = item(answer, "activity")? else { return Err("TypeError") };
    for event in activity {
        let event_id = item(event, "event_id")?;
        // None, what it begins with, equals null.
        if last_event_id.as_ref().unwrap_or(&Value::Null) == event_id {
            continue;
        }
        let timestamp = item(event, "timestamp")?;
        item(event, "event_type")?;
        record.lines.push((text(event_id), text(timestamp)));
        if event.get("network").is_some() {
            item(item(event, "network")?, "operator")?;
        }
        *last_event_id = Some(event_id.clone());
    }
    Ok(())
}

/// As a row's field is compared with a line: text without quotes.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
