//! `simcast report`: what a period looked like, as a table, JSON or CSV.

use std::io::Write;

use reqwest::Url;
use serde_json::Value;

use super::{
    Failure,
    gateway::{self, ANSWER_WITHIN, server_url},
    tail::show::clean,
};

/// Most of an answer that is read: 9,600 hours, 2,000 SIMs and every operator.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Until a report that is counted from the log has come.
const REPORT_WITHIN: std::time::Duration = ANSWER_WITHIN.saturating_mul(4);

/// Width of the first column of a table.
const LABEL_WIDTH: usize = 32;

/// Show totals, the most active SIMs, data and sessions of a period
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Gateway
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL", value_parser = server_url)]
    pub server: Url,
    /// Token, where the gateway wants one
    #[arg(long, env = "SIMCAST_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Beginning: a date, or a time such as 2025-11-05T08:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "days")]
    pub from: Option<String>,
    /// End, exclusive; now unless given
    #[arg(long, value_name = "TIME", conflicts_with = "days")]
    pub to: Option<String>,
    /// The last so many days; 30 unless --from is given
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=400))]
    pub days: Option<u16>,
    /// SIMs of each list, at most 1000
    #[arg(long, value_name = "SIMS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub top: u16,
    /// Points of the series
    #[arg(long, value_enum)]
    pub interval: Option<Interval>,
    /// Only these SIMs; may be repeated
    #[arg(long, value_name = "ICCID")]
    pub iccid: Vec<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Points of the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Interval {
    /// Each hour
    Hour,
    /// Each UTC day
    Day,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people, without the series
    Table,
    /// As the gateway answers
    Json,
    /// One line for each number: section, two labels, what is counted, how much
    Csv,
}

/// Asks the gateway and prints.
///
/// # Errors
/// What the gateway says, or that it can't be reached.
pub async fn run(args: &Args, now: jiff::Timestamp, out: &mut dyn Write) -> Result<(), Failure> {
    let token = args.token.as_deref().filter(|token| !token.is_empty());
    gateway::check_token(token).map_err(Failure::usage)?;
    let agent = concat!("simcast-report/", env!("CARGO_PKG_VERSION"));
    let client = gateway::http_client(&args.server, agent).map_err(Failure::usage)?;
    let mut url = args.server.clone();
    url.path_segments_mut()
        .map_err(|()| Failure::usage("the gateway's address can't have a path"))?
        .pop_if_empty()
        .extend(["v1", "report"]);
    let mut request = client.get(url).query(&query(args, now)?);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let place = gateway::place(&args.server);
    let answer = match tokio::time::timeout(REPORT_WITHIN, request.send()).await {
        Err(_) => return Err(Failure::runtime(format!("{place} does not answer"))),
        Ok(Err(error)) => {
            let cause = gateway::root(&error);
            return Err(Failure::runtime(format!("{place}: {cause}; is the gateway running? see --server")));
        }
        Ok(Ok(answer)) => answer,
    };
    let status = answer.status();
    if !status.is_success() {
        let words = gateway::refusal(answer).await;
        return Err(Failure::runtime(match status.as_u16() {
            401 if token.is_none() => {
                format!("the gateway wants a token ({words}): give --token or SIMCAST_TOKEN")
            }
            401 | 403 => format!("the gateway refuses the token: {words}"),
            _ => words,
        }));
    }
    let body = gateway::body(answer, ANSWER_BYTES_MAX).await;
    let Ok(report) = serde_json::from_slice::<Value>(&body) else {
        return Err(Failure::runtime(format!(
            "{place}: the answer is no report; no simcast gateway answers there"
        )));
    };
    match args.format {
        Format::Json => {
            out.write_all(&body)?;
            writeln!(out)?;
        }
        Format::Table => out.write_all(table(&report).as_bytes())?,
        Format::Csv => out.write_all(csv(&report).as_bytes())?,
    }
    Ok(out.flush()?)
}

fn query(args: &Args, now: jiff::Timestamp) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut query = vec![("top", args.top.to_string())];
    let days = args.days.unwrap_or(30);
    let from = match &args.from {
        Some(from) => Some(from.clone()),
        None if args.to.is_some() => None,
        None => {
            let from = now.checked_sub(jiff::SignedDuration::from_hours(24 * i64::from(days)));
            Some(from.map_err(|_| Failure::usage("--days reaches too far back"))?.to_string())
        }
    };
    query.extend(from.map(|from| ("from", from)));
    query.extend(args.to.clone().map(|to| ("to", to)));
    query
        .extend(args.interval.map(|interval| {
            ("interval", if interval == Interval::Hour { "hour" } else { "day" }.to_owned())
        }));
    query.extend(args.iccid.iter().map(|iccid| ("iccid", iccid.clone())));
    Ok(query)
}

/// A number of a report: section, two labels, what is counted, how much.
type Line = (&'static str, String, String, &'static str, String);

/// A list of the answer: its name, its rows, what labels them, what they count.
type Section<'a> = (&'static str, &'a Value, [&'static str; 2], &'static [&'static str]);

/// Every number that is in lists, in the order of the answer.
fn lines(report: &Value) -> Vec<Line> {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut lines = Vec::new();
    for what in ["events", "sims", "late", "repaired"] {
        lines.push(("totals", String::new(), String::new(), what, text(&report["totals"][what])));
    }
    for what in ["started", "ended", "total_mb", "mean_duration_seconds"] {
        lines.push(("sessions", String::new(), String::new(), what, text(&report["sessions"][what])));
    }
    const AMOUNTS: &[&str] = &["upload_mb", "download_mb", "total_mb"];
    let (data, events) = (&report["data"], &["events"][..]);
    let sections: [Section<'_>; 8] = [
        ("by_type", &report["by_type"], ["event_type", ""], events),
        ("by_country", &report["by_country"], ["country", "country_code"], events),
        ("by_operator", &report["by_operator"], ["operator", ""], events),
        ("by_network_type", &report["by_network_type"], ["network_type", ""], events),
        ("most_active", &report["most_active"], ["iccid", ""], events),
        ("data_by_sim", &data["by_sim"], ["iccid", ""], AMOUNTS),
        ("data_by_country", &data["by_country"], ["country", "country_code"], AMOUNTS),
        ("series", &report["series"], ["time", ""], &["events", "late", "repaired", "total_mb"]),
    ];
    for (section, rows, labels, counts) in sections {
        for row in rows.as_array().into_iter().flatten() {
            let [first, second] = labels.map(|label| text(&row[label]));
            for count in counts {
                lines.push((section, first.clone(), second.clone(), count, text(&row[*count])));
            }
        }
    }
    for row in report["roaming"].as_array().into_iter().flatten() {
        let side = |side: &str| match &row[side]["country"] {
            Value::Null => text(&row[side]["country_code"]),
            name => text(name),
        };
        lines.push(("roaming", side("from"), side("to"), "changes", text(&row["changes"])));
    }
    for (day, verdict) in report["completeness"].as_object().into_iter().flatten() {
        lines.push((
            "completeness",
            day.clone(),
            text(&verdict["state"]),
            "missing",
            text(&verdict["missing"]),
        ));
    }
    lines
}

fn csv(report: &Value) -> String {
    let field = |text: &str| {
        // A spreadsheet takes a cell that begins so for a formula, and operators name themselves.
        let is_formula =
            text.starts_with(['=', '+', '@']) || (text.starts_with('-') && text.parse::<f64>().is_err());
        let text = if is_formula { format!("'{text}") } else { text.to_owned() };
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text
        }
    };
    let mut csv = "section,label,label2,what,value\n".to_owned();
    for (section, first, second, what, value) in lines(report) {
        let row = [section, &first, &second, what, &value].map(field);
        csv.push_str(&row.join(","));
        csv.push('\n');
    }
    csv
}

fn table(report: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut table = String::new();
    let mut line = |label: &str, value: &str| {
        let (label, value) = (clean(label), clean(value));
        table.push_str(&format!("{label:LABEL_WIDTH$}{value}\n"));
    };
    line("period", &format!("{} to {}", text(&report["from"]), text(&report["to"])));
    line("computed from", &text(&report["computed_from"]));
    line("counted since", report["rolled_up_since"].as_str().unwrap_or("nothing was stored yet"));
    let mut before = "";
    for (section, first, second, what, value) in lines(report) {
        if section == "series" || (section == "completeness" && value == "0" && second == "verified") {
            continue;
        }
        if section != before {
            line("", "");
            line(&section.replace('_', " "), "");
            before = section;
        }
        let labels: Vec<_> = [first, second].into_iter().filter(|label| !label.is_empty()).collect();
        let joint = if section == "roaming" { " to " } else { " " };
        let labels = match (labels.join(joint), section) {
            (labels, "totals" | "sessions") => format!("{labels}{what}"),
            (labels, _) if labels.is_empty() => "(none)".to_owned(),
            (labels, _) => labels,
        };
        let value = match (section, value.as_str()) {
            ("totals" | "sessions", "") => "-".to_owned(),
            ("totals" | "sessions", value) => value.to_owned(),
            (_, "") => format!("{what} unknown"),
            (_, value) => format!("{value} {}", what.replace('_', " ")),
        };
        line(&format!("  {labels}"), &value);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Value {
        json!({
            "from": "2025-11-05T08:00:00Z", "to": "2025-11-06T00:00:00Z", "computed_from": "rollup",
            "rolled_up_since": null,
            "totals": {"events": 12, "sims": 2, "late": 1, "repaired": 0},
            "by_type": [{"event_type": "connection", "events": 12}],
            "by_country": [{"country": "Korea, Republic of", "country_code": "KR", "events": 12}],
            "by_operator": [{"operator": "=cmd|'x'\u{1b}", "events": 12}],
            "by_network_type": null,
            "most_active": [{"iccid": "8947000000000000001", "events": 9}],
            "data": {"by_sim": [{"iccid": null, "upload_mb": -1, "download_mb": 0, "total_mb": -0.5}],
                     "by_country": []},
            "series": [{"time": "2025-11-05T08:00:00Z", "events": 12, "late": 1, "repaired": 0, "total_mb": 0.5}],
            "sessions": {"started": 1, "ended": 0, "total_mb": 0.5, "mean_duration_seconds": null},
            "roaming": [{"from": {"country": "Norway", "country_code": "NO"},
                         "to": {"country": null, "country_code": "SE"}, "changes": 3}],
            "completeness": {"2025-11-05": {"state": "gap", "missing": null, "reason": "x"}},
        })
    }

    #[test]
    fn a_line_of_csv_is_one_number_and_no_formula() {
        let csv = csv(&report());
        for line in [
            "totals,,,events,12\n",
            "by_country,\"Korea, Republic of\",KR,events,12\n",
            "by_operator,'=cmd|'x'\u{1b},,events,12\n",
            "data_by_sim,,,upload_mb,-1\n",
            "roaming,Norway,SE,changes,3\n",
            "series,2025-11-05T08:00:00Z,,total_mb,0.5\n",
            "sessions,,,mean_duration_seconds,\n",
        ] {
            assert!(csv.contains(line), "{line} in\n{csv}");
        }
        assert!(
            csv.lines().all(|line| line.split("\",").count() > 1 || line.split(',').count() == 5),
            "{csv}"
        );
    }

    #[test]
    fn the_table_is_for_people_and_their_terminals() {
        let table = table(&report());
        for words in [
            "nothing was stored yet",
            "  Korea, Republic of KR",
            "9 events",
            "Norway to SE",
            "missing unknown",
        ] {
            assert!(table.contains(words), "{words} in\n{table}");
        }
        assert!(!table.contains('\u{1b}'));
        assert!(table.lines().any(|line| line.starts_with("  mean_duration_seconds") && line.ends_with('-')));
    }
}
