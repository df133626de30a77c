//! `simcast erase`: what a gateway keeps of one SIM goes.

use std::io::Write;

use http::Method;
use serde_json::{Value, json};

use super::{
    Failure,
    gateway::{Client, ServerArgs},
    tail::show::clean,
};

/// Width of the first column.
const LABEL_WIDTH: usize = 26;

/// Erase everything that is kept of a SIM: events, indexes, webhook attempts, copies of other gateways
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// The SIM; 18 to 22 digits
    #[arg(long)]
    pub iccid: String,
    /// The gateway's answer instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Asks the gateway and prints.
///
/// # Errors
/// What the gateway says, that it can't be reached, or that something is left that an operator must remove.
pub async fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&args.server, "simcast-erase")?;
    let body = json!({ "iccid": args.iccid });
    let answer = client.ask_for(Method::POST, &["v1", "erase"], &[], Some(body)).await?;
    if args.json {
        writeln!(out, "{answer}")?;
    } else {
        out.write_all(table(&answer).as_bytes())?;
    }
    out.flush()?;
    match answer["left"].as_array().map_or(0, Vec::len) {
        0 => Ok(()),
        left => Err(Failure::runtime(format!(
            "{left} things are left that the gateway could not remove; see above"
        ))),
    }
}

/// The answer for people.
fn table(answer: &Value) -> String {
    let mut table = String::new();
    let mut line =
        |label: &str, text: &str| table.push_str(&format!("{label:LABEL_WIDTH$}{}\n", clean(text)));
    for (what, count) in answer["removed"].as_object().into_iter().flatten() {
        line(&format!("{} removed", what.replace('_', " ")), &count.to_string());
    }
    for left in answer["left"].as_array().into_iter().flatten() {
        line("left", left["what"].as_str().unwrap_or_default());
        line("", left["cure"].as_str().unwrap_or_default());
    }
    for what in answer["out_of_reach"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        line("out of reach", what);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_left_and_out_of_reach_is_told() {
        let answer = json!({
            "iccid": "8947000000000000001",
            "removed": { "events": 3, "webhook_attempts": 2 },
            "left": [{ "what": "a message", "cure": "run: \u{1b}nats" }],
            "out_of_reach": ["backups"],
        });
        let lines: Vec<_> = table(&answer).lines().map(str::to_owned).collect();
        assert!(lines[0].starts_with("events removed") && lines[0].ends_with(" 3"), "{lines:?}");
        assert!(lines[1].starts_with("webhook attempts removed") && lines[1].ends_with('2'), "{lines:?}");
        assert!(lines[2].starts_with("left ") && lines[2].ends_with("a message"), "{lines:?}");
        assert!(lines[3].contains("run: ") && !lines[3].contains('\u{1b}'), "{lines:?}");
        assert!(lines[4].starts_with("out of reach") && lines[4].ends_with("backups"), "{lines:?}");
    }
}
