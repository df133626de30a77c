//! `simcast webhooks …`: everything that `/v1/webhooks` offers, from a terminal.
//!
//! Answers are printed as they come, as JSON for people (indented) or with `--json` on one line; lists as tables. What
//! the command line adds is only how to say it.

use std::io::Write;

use clap::{Subcommand, ValueEnum};
use http::Method;
use serde_json::{Map, Value, json};

use super::{
    Failure,
    gateway::{Client, ServerArgs},
    tail::show::clean,
};

/// Manage webhooks: who is sent which events, how that goes, sending again
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// The gateway's answer on one line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// All webhooks
    List,
    /// Make a webhook; prints its secret, which is never shown again
    Create(Box<Create>),
    /// One webhook
    Get(One),
    /// Change settings; what is not given stays
    Update(Box<Update>),
    /// Delete a webhook with its position, replays and attempts
    Delete(One),
    /// Send nothing for now; the position stays
    Pause(One),
    /// Go on where it was paused or disabled, or elsewhere
    Resume(At),
    /// Go on elsewhere: --from, --after, --since or --last
    Seek(At),
    /// Send a test event now and show what the receiver answers
    Test(One),
    /// Make a new secret; the old one goes on signing for a while
    RotateSecret(Rotate),
    /// Lag, counts, latency
    Stats(One),
    /// What became of events, newest first
    Deliveries(Deliveries),
    /// One delivery with its attempts
    Delivery(Delivery),
    /// Try one delivery again now
    Retry(Delivery),
    /// Send stored events again
    Replay(Replay),
    /// Replays with their progress
    Replays(One),
    /// Cancel a replay
    CancelReplay(CancelReplay),
    /// Forget what the gateway wrote down of attempts to deliver a SIM's events
    Erase {
        /// The SIM
        iccid: String,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct One {
    /// The webhook's id
    id: String,
}

#[derive(Debug, Clone, Default, clap::Args)]
struct Start {
    /// `now` or `earliest`
    #[arg(long, value_parser = ["now", "earliest"])]
    from: Option<String>,
    /// After a cursor
    #[arg(long, conflicts_with = "from")]
    after: Option<String>,
    /// First event observed at or after a time, such as 2026-11-23T08:00:00Z
    #[arg(long, conflicts_with_all = ["from", "after"])]
    since: Option<String>,
    /// The last so many matches
    #[arg(long, conflicts_with_all = ["from", "after", "since"])]
    last: Option<u32>,
}

#[derive(Debug, Clone, clap::Args)]
struct At {
    /// The webhook's id
    id: String,
    #[command(flatten)]
    start: Start,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Order {
    None,
    PerSim,
    Strict,
}

#[derive(Debug, Clone, Default, clap::Args)]
struct Settings {
    /// Filter as JSON, such as {"event_type":["connection"],"country":["NO"]}
    #[arg(long, value_name = "JSON", value_parser = object)]
    filter: Option<Value>,
    /// For people
    #[arg(long)]
    description: Option<String>,
    /// A header sent with every request, NAME: VALUE; may be repeated
    #[arg(long = "header", value_name = "HEADER", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Which events wait for which
    #[arg(long, value_enum)]
    ordering: Option<Order>,
    /// Requests on their way at the same time
    #[arg(long)]
    max_in_flight: Option<u32>,
    /// Requests begun in a second
    #[arg(long)]
    rate_limit_per_second: Option<u32>,
    /// Up to so many events in one request
    #[arg(long)]
    batch_events: Option<u32>,
    /// How long the first of a batch waits for more, milliseconds
    #[arg(long, requires = "batch_events")]
    batch_wait_ms: Option<u64>,
    /// How long an answer may take, milliseconds
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// Seconds before each attempt, comma-separated
    #[arg(long, value_delimiter = ',')]
    retry_schedule: Vec<u32>,
}

#[derive(Debug, Clone, clap::Args)]
struct Create {
    /// Where events are to be sent
    url: String,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    start: Start,
}

#[derive(Debug, Clone, clap::Args)]
struct Update {
    /// The webhook's id
    id: String,
    /// Where events are to be sent
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Clone, clap::Args)]
struct Rotate {
    /// The webhook's id
    id: String,
    /// How long the old secret goes on signing, seconds
    #[arg(long)]
    overlap_s: Option<u64>,
}

#[derive(Debug, Clone, clap::Args)]
struct Deliveries {
    /// The webhook's id
    id: String,
    /// Only these
    #[arg(long, value_parser = ["pending", "delivered", "failed", "dead_lettered", "skipped"])]
    status: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// The `next` of the page before
    #[arg(long)]
    after: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
struct Delivery {
    /// The webhook's id
    id: String,
    /// The delivery's id, such as dlv_42
    delivery: String,
}

#[derive(Debug, Clone, clap::Args)]
struct Replay {
    /// The webhook's id
    id: String,
    /// First event observed at or after a time
    #[arg(long)]
    since: Option<String>,
    /// Only events observed before a time
    #[arg(long)]
    until: Option<String>,
    /// Filter as JSON, beside the webhook's own
    #[arg(long, value_name = "JSON", value_parser = object)]
    filter: Option<Value>,
    /// Only what was dead-lettered
    #[arg(long)]
    failed: bool,
    /// Requests begun in a second
    #[arg(long)]
    rate_limit_per_second: Option<u32>,
    /// Only count
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct CancelReplay {
    /// The webhook's id
    id: String,
    /// The replay's id
    replay: String,
}

fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("give an object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("give it as NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

impl Start {
    fn put(&self, body: &mut Map<String, Value>) {
        put(body, "from", &self.from);
        put(body, "after", &self.after);
        put(body, "since", &self.since);
        put(body, "last", &self.last);
    }
}

impl Settings {
    fn put(&self, body: &mut Map<String, Value>) {
        put(body, "filter", &self.filter);
        put(body, "description", &self.description);
        if !self.headers.is_empty() {
            let headers: Map<_, _> =
                self.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
            body.insert("headers".into(), headers.into());
        }
        let ordering = self.ordering.map(|order| match order {
            Order::None => "none",
            Order::PerSim => "per_sim",
            Order::Strict => "strict",
        });
        put(body, "ordering", &ordering);
        put(body, "max_in_flight", &self.max_in_flight);
        put(body, "rate_limit_per_second", &self.rate_limit_per_second);
        if let Some(events) = self.batch_events {
            let mut batch = json!({ "max_events": events });
            if let Some(wait) = self.batch_wait_ms {
                batch["max_wait_ms"] = wait.into();
            }
            body.insert("batch".into(), batch);
        }
        put(body, "timeout_ms", &self.timeout_ms);
        if !self.retry_schedule.is_empty() {
            body.insert("retry_schedule".into(), json!(self.retry_schedule));
        }
    }
}

fn put(body: &mut Map<String, Value>, name: &str, value: &Option<impl serde::Serialize>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), json!(value));
    }
}

/// Asks and prints.
///
/// # Errors
/// What the gateway says, or that it can't be reached.
pub async fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&args.server, "simcast-webhooks")?;
    let answer = ask(&client, &args.action).await?;
    if args.json {
        writeln!(out, "{answer}")?;
    } else {
        out.write_all(shown(&args.action, &answer).as_bytes())?;
    }
    Ok(out.flush()?)
}

async fn ask(client: &Client, action: &Action) -> Result<Value, Failure> {
    let mut body = Map::new();
    match action {
        Action::List => get(client, &[]).await,
        Action::Create(create) => {
            body.insert("url".into(), json!(create.url));
            create.settings.put(&mut body);
            create.start.put(&mut body);
            client.ask(Method::POST, &[], &[], Some(body.into())).await
        }
        Action::Get(One { id }) => get(client, &[id]).await,
        Action::Update(update) => {
            put(&mut body, "url", &update.url);
            update.settings.put(&mut body);
            client.ask(Method::PATCH, &[&update.id], &[], Some(body.into())).await
        }
        Action::Delete(One { id }) => client.ask(Method::DELETE, &[id], &[], None).await,
        Action::Pause(One { id }) => post(client, &[id, "pause"], body).await,
        Action::Resume(at) => {
            at.start.put(&mut body);
            post(client, &[&at.id, "resume"], body).await
        }
        Action::Seek(at) => {
            at.start.put(&mut body);
            post(client, &[&at.id, "seek"], body).await
        }
        Action::Test(One { id }) => post(client, &[id, "test"], body).await,
        Action::RotateSecret(rotate) => {
            put(&mut body, "overlap_s", &rotate.overlap_s);
            post(client, &[&rotate.id, "rotate-secret"], body).await
        }
        Action::Stats(One { id }) => get(client, &[id, "stats"]).await,
        Action::Deliveries(wanted) => {
            let limit = wanted.limit.to_string();
            let mut query = vec![("limit", limit.as_str())];
            query.extend(wanted.status.as_deref().map(|status| ("status", status)));
            query.extend(wanted.after.as_deref().map(|after| ("after", after)));
            client.ask(Method::GET, &[&wanted.id, "deliveries"], &query, None).await
        }
        Action::Delivery(Delivery { id, delivery }) => get(client, &[id, "deliveries", delivery]).await,
        Action::Retry(Delivery { id, delivery }) => {
            post(client, &[id, "deliveries", delivery, "retry"], body).await
        }
        Action::Replay(replay) => {
            put(&mut body, "since", &replay.since);
            put(&mut body, "until", &replay.until);
            put(&mut body, "filter", &replay.filter);
            put(&mut body, "rate_limit_per_second", &replay.rate_limit_per_second);
            body.insert("only".into(), json!(if replay.failed { "failed" } else { "all" }));
            body.insert("dry_run".into(), json!(replay.dry_run));
            post(client, &[&replay.id, "replay"], body).await
        }
        Action::Replays(One { id }) => get(client, &[id, "replays"]).await,
        Action::Erase { iccid } => {
            body.insert("iccid".into(), json!(iccid));
            post(client, &["erase"], body).await
        }
        Action::CancelReplay(CancelReplay { id, replay }) => {
            client.ask(Method::DELETE, &[id, "replays", replay], &[], None).await
        }
    }
}

async fn get(client: &Client, path: &[&str]) -> Result<Value, Failure> {
    client.ask(Method::GET, path, &[], None).await
}

async fn post(client: &Client, path: &[&str], body: Map<String, Value>) -> Result<Value, Failure> {
    client.ask(Method::POST, path, &[], Some(body.into())).await
}

/// An answer for people.
fn shown(action: &Action, answer: &Value) -> String {
    let (list, columns): (&str, &[&str]) = match action {
        Action::List => ("webhooks", &["id", "status", "pending", "ordering", "url"]),
        Action::Deliveries(_) => {
            ("deliveries", &["id", "status", "attempts", "last_error", "next_attempt_at", "event_id"])
        }
        Action::Replays(_) => (
            "replays",
            &["replay_id", "state", "count", "delivered", "dead_lettered", "skipped", "lost", "created_at"],
        ),
        _ => {
            let mut text = serde_json::to_string_pretty(answer).unwrap_or_default();
            text.push('\n');
            return text;
        }
    };
    let rows = answer[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut text = table(rows, columns);
    if let Some(next) = answer["next"].as_str() {
        text.push_str(&format!("more: --after {next}\n"));
    }
    text
}

fn table(rows: &[Value], columns: &[&str]) -> String {
    let cell = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => clean(text),
        other => other.to_string(),
    };
    let head: Vec<String> = columns.iter().map(|name| name.to_uppercase()).collect();
    let lines: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|name| cell(&row[*name])).collect()).collect();
    let width = |n: usize| lines.iter().chain([&head]).map(|line| line[n].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in [&head].into_iter().chain(&lines) {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::frontends::{
        listener::{Deadlines, testing::Live},
        tests_support::Fixture,
    };

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    async fn say(server: &str, words: &[&str]) -> Result<String, Failure> {
        let mut all = vec!["webhooks", "--server", server];
        all.extend(words);
        let args = Command::try_parse_from(all).map_err(|error| Failure::usage(error.to_string()))?.args;
        let mut out = Vec::new();
        run(&args, &mut out).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn a_webhook_from_its_making_to_its_end() {
        let live =
            Live::start(Fixture::system(), axum::Router::new(), axum::Router::new(), Deadlines::default());
        live.fixture.serve_webhooks();
        let receiver =
            crate::webhooks::testing::Receiver::start(|_| crate::webhooks::testing::Act::Status(200)).await;
        let server = format!("http://{}", live.addr);
        let made = say(
            &server,
            &[
                "--json",
                "create",
                &receiver.url(),
                "--filter",
                r#"{"country":["NO"]}"#,
                "--header",
                "X-Env: test",
                "--ordering",
                "per_sim",
                "--batch-events",
                "5",
                "--retry-schedule",
                "0,1,2",
                "--from",
                "earliest",
            ],
        )
        .await
        .unwrap();
        let made: Value = serde_json::from_str(&made).unwrap();
        let id = made["id"].as_str().unwrap().to_owned();
        assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
        assert_eq!((&made["ordering"], &made["batch"]["max_events"]), (&json!("per_sim"), &json!(5)));
        assert_eq!(made["filter"], json!({"country": ["no"], "exclude_flags": ["backfill"]}));
        let list = say(&server, &["list"]).await.unwrap();
        assert!(list.contains(&id) && list.contains("active") && list.starts_with("ID"), "{list}");
        let tested: Value = serde_json::from_str(&say(&server, &["test", &id]).await.unwrap()).unwrap();
        assert_eq!((&tested["delivered"], &tested["attempt"]["status"]), (&json!(true), &json!(200)));
        assert!(receiver.requests()[0].header("x-env") == Some("test"));
        for (words, expected) in [
            (vec!["pause", &*id], r#""status": "paused""#),
            (vec!["resume", &*id], r#""status": "active""#),
            (vec!["seek", &*id, "--last", "1"], r#""id""#),
            (vec!["update", &*id, "--description", "for the night"], "for the night"),
            (vec!["rotate-secret", &*id, "--overlap-s", "60"], r#""secrets": 2"#),
            (vec!["stats", &*id], r#""lag_events""#),
            (vec!["deliveries", &*id], "delivered"),
            (vec!["replay", &*id, "--failed", "--dry-run"], r#""count": 0"#),
            (vec!["replays", &*id], "REPLAY_ID"),
            (vec!["get", &*id], "for the night"),
            (vec!["erase", "8947000000000000001"], r#""attempts_removed": 0"#),
            (vec!["delete", &*id], r#""deleted": true"#),
        ] {
            let said = say(&server, &words).await.unwrap();
            assert!(said.contains(expected), "{words:?}: {said}");
        }
        let gone = say(&server, &["get", &id]).await.unwrap_err();
        assert!(gone.message.contains("there is no webhook"), "{gone:?}");
        let wrong = say(&server, &["create", "http://10.0.0.1/"]).await.unwrap_err();
        assert!(wrong.message.contains("allowed_networks"), "{wrong:?}");
    }
}
