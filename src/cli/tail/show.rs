//! Events as lines: a table for people, JSON for programs.

use serde_json::Value;

/// How events are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON event per line, unchanged.
    Json,
    /// Columns.
    Table {
        /// Whether types are coloured.
        colour: bool,
    },
}

const WIDTHS: [usize; 5] = [20, 17, 20, 16, 26];

/// The head of the table.
pub fn header(format: Format) -> Option<String> {
    let names = ["TIME", "TYPE", "ICCID", "DEVICE", "NETWORK"].map(str::to_owned);
    match format {
        Format::Json => None,
        Format::Table { .. } => Some(row(&names, "NOTES", None)),
    }
}

/// One event.
pub fn event(event: &Value, format: Format) -> String {
    let Format::Table { colour } = format else { return event.to_string() };
    let data = &event["data"];
    let kind = data["event_type"].as_str().or_else(|| event["type"].as_str()).unwrap_or("?");
    let columns = [
        time(event["time"].as_str().unwrap_or("-")),
        kind.to_owned(),
        text(&data["iccid"]),
        text(&data["device_id"]),
        network(&data["network"]),
    ];
    row(&columns, &notes(data), colour.then(|| colour_of(kind)))
}

fn row(columns: &[String; 5], notes: &str, colour: Option<&str>) -> String {
    let mut line = String::with_capacity(140);
    for (index, (column, width)) in columns.iter().zip(WIDTHS).enumerate() {
        let cell = format!("{:width$}", clean(column));
        match colour {
            Some(colour) if index == 1 => line.push_str(&format!("{colour}{cell}\x1b[0m")),
            _ => line.push_str(&cell),
        }
        line.push(' ');
    }
    line.push_str(&clean(notes));
    line.truncate(line.trim_end().len());
    line
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// To the second: what upstream gives, and what fits.
fn time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => text.to_owned(),
    }
}

fn network(value: &Value) -> String {
    let country = value["country_code"].as_str().or_else(|| value["country"].as_str());
    let parts = [country, value["operator"].as_str(), value["network_type"].as_str()];
    let known: Vec<_> = parts.into_iter().flatten().collect();
    if known.is_empty() { "-".to_owned() } else { known.join(" ") }
}

fn notes(data: &Value) -> String {
    let mut notes = Vec::new();
    if let Some(signal) = data["signal_strength"].as_i64() {
        notes.push(format!("{signal} dBm"));
    }
    let before = network(&data["previous_network"]);
    if before != "-" {
        notes.push(format!("from {before}"));
    }
    let number = |value: &Value| value.is_number().then(|| value.to_string());
    if let Some(used) = number(&data["usage"]["current_usage_mb"]) {
        notes.push(format!("{used} MB used"));
    }
    if let Some(total) = number(&data["session"]["total_mb"]) {
        notes.push(format!("session {total} MB"));
    }
    if let Some(seconds) = number(&data["session"]["duration_seconds"]) {
        notes.push(format!("{seconds} s"));
    }
    if let Some(flags) = data["flags"].as_array() {
        notes.extend(flags.iter().filter_map(Value::as_str).map(|flag| format!("[{flag}]")));
    }
    notes.join(" ")
}

fn colour_of(kind: &str) -> &'static str {
    match kind {
        "connection" | "session_started" => "\x1b[32m",
        "disconnection" | "session_ended" => "\x1b[31m",
        "network_change" | "location_update" => "\x1b[36m",
        "data_usage_update" | "session_updated" => "\x1b[33m",
        _ => "\x1b[35m",
    }
}

/// Events hold what devices and operators are called: nothing in them may steer the terminal.
pub(in crate::cli) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Format = Format::Table { colour: false };

    fn sample() -> Value {
        json!({"time": "2025-11-05T08:00:00.5Z", "type": "globalsim.connection", "data": {
            "event_type": "connection", "iccid": "8901234567890123456", "device_id": "iot_dev_abc123",
            "network": {"country": "Norway", "country_code": "NO", "operator": "Telenor Norway", "network_type": "4G"},
            "previous_network": null, "signal_strength": -65, "usage": null, "session": null, "flags": ["late"]}})
    }

    #[test]
    fn the_table_lines_up() {
        let line = event(&sample(), PLAIN);
        assert_eq!(
            line,
            "2025-11-05 08:00:00Z connection        8901234567890123456  iot_dev_abc123   NO Telenor Norway 4G       -65 dBm [late]"
        );
        let head = header(PLAIN).unwrap();
        for (column, value) in [
            ("TYPE", "connection"),
            ("ICCID", "8901"),
            ("DEVICE", "iot"),
            ("NETWORK", "NO "),
            ("NOTES", "-65"),
        ] {
            assert_eq!(head.find(column), line.find(value), "{column}");
        }
    }

    #[test]
    fn what_is_absent_is_a_dash_and_amounts_keep_their_digits() {
        let bare: Value = serde_json::from_str(
            r#"{"time":"odd","type":"simcast.gap","data":{"usage":{"current_usage_mb":870.50},"session":{"total_mb":47.80,"duration_seconds":9000},"previous_network":{"country":"Sweden"}}}"#,
        )
        .unwrap();
        let line = event(&bare, PLAIN);
        let cells: Vec<_> = line.split_whitespace().collect();
        assert_eq!(cells[..5], ["odd", "simcast.gap", "-", "-", "-"]);
        assert!(line.ends_with("from Sweden 870.50 MB used session 47.80 MB 9000 s"), "{line}");
    }

    #[test]
    fn nothing_in_an_event_steers_the_terminal() {
        let mut nasty = sample();
        nasty["data"]["device_id"] = "\u{1b}[2J\u{7}x\n".into();
        let line = event(&nasty, PLAIN);
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let coloured = event(&nasty, Format::Table { colour: true });
        assert_eq!(coloured.matches('\u{1b}').count(), 2, "only our own colour: {coloured:?}");
    }

    #[test]
    fn json_is_passed_on_as_it_came() {
        let text = r#"{"cursor":"c","id":"a","data":{"usage":{"current_usage_mb":870.50}}}"#;
        assert_eq!(event(&serde_json::from_str(text).unwrap(), Format::Json), text);
        assert_eq!(header(Format::Json), None);
    }
}
