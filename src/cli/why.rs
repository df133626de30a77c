//! `simcast why <event id>`: when an event was visible upstream, by which read it came, and where the time went.

use std::io::Write;

use jiff::Timestamp;
use reqwest::{StatusCode, Url};
use serde_json::Value;

use super::{
    Failure,
    gateway::{self, ANSWER_WITHIN, server_url},
    tail::show::clean,
};

/// Most of an answer that is read; a trace has few fields, each an event's own.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Width of the first column.
const LABEL_WIDTH: usize = 12;

/// Show when an event was visible upstream, which read found it and when it was stored
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The event's id, such as evt_abc123
    #[arg(value_name = "EVENT ID")]
    pub id: String,
    /// Gateway
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL", value_parser = server_url)]
    pub server: Url,
    /// Token, where the gateway wants one
    #[arg(long, env = "SIMCAST_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The gateway's answer instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Asks the gateway and prints.
///
/// # Errors
/// What the gateway says, or that it can't be reached.
pub async fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let token = args.token.as_deref().filter(|token| !token.is_empty());
    gateway::check_token(token).map_err(Failure::usage)?;
    let client = gateway::http_client(&args.server, concat!("simcast-why/", env!("CARGO_PKG_VERSION")))
        .map_err(Failure::usage)?;
    let mut url = args.server.clone();
    url.path_segments_mut()
        .map_err(|()| Failure::usage("the gateway's address can't have a path"))?
        .pop_if_empty()
        .extend(["v1", "events", &args.id, "trace"]);
    let mut request = client.get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let place = gateway::place(&args.server);
    let answer = match tokio::time::timeout(ANSWER_WITHIN, request.send()).await {
        Err(_) => return Err(Failure::runtime(format!("{place} does not answer"))),
        Ok(Err(error)) => {
            let cause = gateway::root(&error);
            return Err(Failure::runtime(format!("{place}: {cause}; is the gateway running? see --server")));
        }
        Ok(Ok(answer)) => answer,
    };
    match answer.status() {
        StatusCode::OK => {}
        status => return Err(refused(status, &args.id, &gateway::refusal(answer).await, token.is_some())),
    }
    let body = gateway::body(answer, ANSWER_BYTES_MAX).await;
    let Ok(trace) = serde_json::from_slice::<Value>(&body) else {
        return Err(Failure::runtime(format!(
            "{place}: the answer is no trace; no simcast gateway answers there"
        )));
    };
    if args.json {
        out.write_all(&body)?;
        writeln!(out)?;
    } else {
        out.write_all(table(&trace).as_bytes())?;
    }
    Ok(out.flush()?)
}

fn refused(status: StatusCode, id: &str, words: &str, has_token: bool) -> Failure {
    let (id, status_code) = (clean(id), status.as_u16());
    Failure::runtime(match status {
        StatusCode::NOT_FOUND => {
            format!("{id}: {words}. Ids come with events, as `id`; retention removes the oldest")
        }
        StatusCode::UNAUTHORIZED if !has_token => {
            format!("the gateway wants a token ({words}): give --token or SIMCAST_TOKEN")
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!("the gateway refuses the token: {words}"),
        _ => format!("the gateway refuses ({status_code}): {words}"),
    })
}

/// The trace for people, a line for each step.
fn table(trace: &Value) -> String {
    let mut table = String::new();
    let mut line = |label: &str, text: String| {
        let text = clean(&text);
        table.push_str(&format!("{label:LABEL_WIDTH$}{text}\n"));
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    line("event", words([text(&trace["id"]), text(&trace["event_type"]), text(&trace["iccid"])]));
    let flags = flags(trace);
    if !flags.is_empty() {
        line("flags", flags);
    }
    line("happened", text(&trace["time"]).unwrap_or_else(|| "upstream's timestamp can't be read".to_owned()));
    let (visible, read) = (&trace["visible"], &trace["read"]);
    if let Some(before) = text(&visible["before"]) {
        let between = match text(&visible["after"]) {
            Some(after) => {
                let width = millis_between(&after, &before).map(|ms| format!(" ({} apart)", duration(ms)));
                format!("between {after} and {before}{}", width.unwrap_or_default())
            }
            None => format!("at {before} at the latest; no earlier read would have shown it"),
        };
        line("visible", between);
        let lag = trace["lag"]["source_ms"].as_i64().map(|ms| format!(", {}", after_or_before(ms)));
        let by = text(&read["by"]).unwrap_or_default();
        let asked_at = text(&read["asked_at"]).unwrap_or_default();
        line("read", format!("by {by}, asked at {asked_at}{}", lag.unwrap_or_default()));
    } else {
        line("read", "not at all: it is the gateway's own".to_owned());
    }
    let lag = trace["lag"]["gateway_ms"].as_i64().map(|ms| format!(", {} after the answer", duration(ms)));
    line(
        "appended",
        format!("{}{}", text(&trace["appended_at"]).unwrap_or_default(), lag.unwrap_or_default()),
    );
    for other in trace["related"].as_array().into_iter().flatten() {
        let appended = text(&other["appended_at"]).map(|at| format!("appended {at}"));
        line("related", words([text(&other["id"]), appended, Some(self::flags(other))]));
    }
    for attempt in trace["webhooks"].as_array().into_iter().flatten() {
        let how = match (&attempt["status"], &attempt["error"]["kind"]) {
            (Value::Number(status), _) => status.to_string(),
            (_, kind) => text(kind).unwrap_or_default(),
        };
        let outcome = text(&attempt["outcome"]).unwrap_or_default();
        let took = attempt["timings_ms"]["total"].as_f64().map(|ms| format!(" after {ms:.1} ms"));
        let what = format!(
            "attempt {} at {}: {outcome} ({how}{})",
            attempt["attempt"],
            text(&attempt["at"]).unwrap_or_default(),
            took.unwrap_or_default()
        );
        line("webhook", words([text(&attempt["webhook_id"]), Some(what), None]));
    }
    table
}

fn words(parts: [Option<String>; 3]) -> String {
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
}

fn flags(step: &Value) -> String {
    let flags = step["flags"].as_array().into_iter().flatten();
    flags.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn after_or_before(ms: i64) -> String {
    let side = if ms < 0 { "before it happened, by upstream's clock" } else { "after it happened" };
    format!("{} {side}", duration(ms.saturating_abs()))
}

fn millis_between(from: &str, to: &str) -> Option<i64> {
    let (from, to): (Timestamp, Timestamp) = (from.parse().ok()?, to.parse().ok()?);
    Some(to.as_millisecond() - from.as_millisecond())
}

/// Milliseconds as a person says them.
fn duration(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

#[cfg(test)]
mod tests;
