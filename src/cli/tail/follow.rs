//! What `tail` does next: a state machine without I/O.
//!
//! The position moves only with what has been handed out to be printed, so that a resume after it repeats nothing
//! and misses nothing. The gateway's `n` is checked: an ordinal that does not follow means that a frame was lost on
//! the way, and the cure is the same as for a lost connection.

use std::time::Duration;

use serde_json::Value;

/// First and largest base of the back-off.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Longest time that a gateway's wish to be left alone is obeyed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Longest spread of reconnects that a draining gateway can ask for.
const DRAIN_SPREAD_MAX: Duration = Duration::from_secs(30);

/// Heartbeats that may be missed before a connection counts as dead.
const HEARTBEATS_MISSED: u32 = 3;

/// A parameter of the query: name and value.
pub type Param = (&'static str, String);

/// What to do about a refusal for want of a token.
const NEEDS_TOKEN: &str = "; give --token or set SIMCAST_TOKEN";

/// Something to print.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    /// An event, to standard output.
    Event(Value),
    /// Anything else worth knowing, to standard error.
    Note(String),
}

/// How a connection ended or failed to come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By a close frame, or without one.
    Closed {
        /// Close code, if there was one.
        code: Option<u16>,
        /// What the gateway said.
        reason: String,
    },
    /// By an HTTP answer other than an upgrade.
    Refused {
        /// Status.
        status: u16,
        /// What the gateway said.
        message: String,
        /// When it may be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    Broken(String),
    /// Nothing came, not even a heartbeat.
    Silent,
    /// An ordinal was passed over.
    Hole {
        /// The ordinal that should have come.
        expected: u64,
        /// The one that came.
        got: u64,
    },
}

/// What to do after an [`End`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Connect again.
    Reconnect {
        /// After this long.
        after: Duration,
        /// For the user.
        note: String,
    },
    /// Give up: asking again would give the same answer.
    Stop {
        /// For the user.
        message: String,
    },
}

/// The state of one `tail`.
#[derive(Debug)]
pub struct Follow {
    filter: Vec<Param>,
    start: Option<Param>,
    cursor: Option<String>,
    next_ordinal: u64,
    /// Failures since the last sign of progress.
    failures: u32,
    progressed: bool,
    heartbeat: Duration,
    drain_spread: Duration,
    upstream: Option<String>,
    rng: fastrand::Rng,
}

impl Follow {
    /// Nothing received yet.
    pub fn new(filter: Vec<Param>, start: Option<Param>, rng: fastrand::Rng) -> Self {
        Self {
            filter,
            start,
            cursor: None,
            next_ordinal: 1,
            failures: 0,
            progressed: false,
            heartbeat: Duration::from_secs(20),
            drain_spread: Duration::ZERO,
            upstream: None,
            rng,
        }
    }

    /// What to ask for: the filter, and the last position, or before the first one the start.
    pub fn query(&self) -> Vec<Param> {
        let position = match &self.cursor {
            Some(cursor) => Some(("after", cursor.clone())),
            None => self.start.clone(),
        };
        self.filter.iter().cloned().chain(position).collect()
    }

    /// The last position, for the user to come back to.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// How long silence may last.
    pub fn silence(&self) -> Duration {
        self.heartbeat * HEARTBEATS_MISSED
    }

    /// A connection stands.
    pub fn on_open(&mut self) {
        self.progressed = false;
        self.next_ordinal = 1;
        self.drain_spread = Duration::ZERO;
    }

    /// Takes a message.
    ///
    /// # Errors
    /// The [`End`] of a connection that can't be trusted any more.
    pub fn on_text(&mut self, text: &str) -> Result<Vec<Shown>, End> {
        let Ok(mut message) = serde_json::from_str::<Value>(text) else {
            return Err(End::Broken(
                "the server sends something that is not JSON; is it a simcast gateway?".into(),
            ));
        };
        let kind = message.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut shown = Vec::new();
        match kind.as_str() {
            "welcome" => {
                if let Some(ms) = message.get("heartbeat_ms").and_then(Value::as_u64) {
                    self.heartbeat = Duration::from_millis(ms.clamp(1_000, 60_000));
                }
            }
            "subscribed" => {
                self.advance(&message, "cursor");
                let warnings = message.get("warnings").and_then(Value::as_array);
                let texts = warnings.into_iter().flatten().filter_map(Value::as_str);
                shown.extend(texts.map(|text| Shown::Note(format!("warning: {text}"))));
            }
            "events" => shown = self.on_events(&mut message)?,
            "caught_up" => {
                self.progress();
                self.advance(&message, "cursor");
            }
            "bookmark" => {
                self.progress();
                self.advance(&message, "cursor");
                shown.extend(self.on_upstream(&message).map(Shown::Note));
            }
            "gap" => {
                shown.push(Shown::Note(gap(&message)));
                self.advance(&message, "to");
            }
            "auth_expiring" => {
                let seconds = message.get("in_s").map(Value::to_string).unwrap_or_default();
                shown.push(Shown::Note(format!("the token expires in {seconds} s")));
            }
            "draining" => {
                let ms = message.get("reconnect_within_ms").and_then(Value::as_u64).unwrap_or(0);
                self.drain_spread = Duration::from_millis(ms).min(DRAIN_SPREAD_MAX);
            }
            "error" => {
                let text = message.get("message").and_then(Value::as_str).unwrap_or(text);
                shown.push(Shown::Note(format!("the gateway says: {text}")));
            }
            // Whatever a newer gateway adds does not concern this client.
            _ => {}
        }
        Ok(shown)
    }

    fn on_events(&mut self, message: &mut Value) -> Result<Vec<Shown>, End> {
        let got = message.get("n").and_then(Value::as_u64).unwrap_or(0);
        if got != self.next_ordinal {
            return Err(End::Hole { expected: self.next_ordinal, got });
        }
        let items = match message.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        self.next_ordinal += items.len() as u64;
        self.progress();
        self.advance(message, "cursor");
        Ok(items.into_iter().map(Shown::Event).collect())
    }

    /// Says when the gateway stops or begins again to see upstream.
    fn on_upstream(&mut self, message: &Value) -> Option<String> {
        let upstream = message.get("upstream")?;
        let state = upstream.as_str().or_else(|| upstream.get("state")?.as_str())?.to_owned();
        let before = self.upstream.replace(state.clone());
        match before.as_deref() {
            Some(before) if before == state => None,
            None if state == "ok" => None,
            _ if state == "ok" => Some("the gateway sees upstream again".into()),
            _ => Some(format!("the gateway does not see upstream now ({state}): silence does not mean calm")),
        }
    }

    fn advance(&mut self, message: &Value, field: &str) {
        if let Some(cursor) = message.get(field).and_then(Value::as_str) {
            self.cursor = Some(cursor.to_owned());
        }
    }

    fn progress(&mut self) {
        self.progressed = true;
        self.failures = 0;
    }

    /// Decides what follows an end (close codes: design section 6).
    pub fn on_end(&mut self, end: End) -> Next {
        let (what, after) = match end {
            End::Closed { code: Some(code @ 4400..=4499), reason } => {
                let hint = if matches!(code, 4401 | 4408) { NEEDS_TOKEN } else { "" };
                return Next::Stop {
                    message: format!("the gateway closed for good ({code}): {}{hint}", said(&reason)),
                };
            }
            End::Closed { code: Some(code @ 4200..=4299), .. } if self.progressed => {
                (format!("the gateway asks to reconnect ({code})"), self.spread())
            }
            End::Closed { code: Some(code), reason } => {
                (format!("the gateway closed ({code}) {}", said(&reason)), self.back_off())
            }
            End::Closed { code: None, .. } => ("the connection was closed".to_owned(), self.back_off()),
            End::Refused { status, message, retry_after } if is_passing(status) => {
                let wish = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
                (format!("the gateway refuses for now ({status}): {message}"), self.back_off().max(wish))
            }
            End::Refused { status, message, .. } => {
                let hint = if status == 401 { NEEDS_TOKEN } else { "" };
                return Next::Stop { message: format!("the gateway refuses ({status}): {message}{hint}") };
            }
            End::Broken(why) => (why, self.back_off()),
            End::Silent => ("nothing came for too long".to_owned(), self.back_off()),
            End::Hole { expected, got } => {
                (format!("item {expected} was expected, {got} came"), self.back_off())
            }
        };
        let from = if self.cursor.is_some() { " and going on from the last event" } else { "" };
        let what = what.trim_end();
        Next::Reconnect { after, note: format!("{what}; reconnecting in {:.1} s{from}", after.as_secs_f64()) }
    }

    /// Half of it fixed, half random, so that clients that failed together do not come back together.
    fn back_off(&mut self) -> Duration {
        let base = BACKOFF.0.saturating_mul(1 << self.failures.min(10)).min(BACKOFF.1);
        self.failures = self.failures.saturating_add(1);
        base / 2 + (base / 2).mul_f64(self.rng.f64())
    }

    fn spread(&mut self) -> Duration {
        self.drain_spread.mul_f64(self.rng.f64())
    }
}

/// What a close frame says: the gateway's are JSON with a code, and a message where there is room.
fn said(reason: &str) -> String {
    let parsed: Value = serde_json::from_str(reason).unwrap_or_default();
    let text = parsed["message"].as_str().or_else(|| parsed["code"].as_str());
    text.unwrap_or(reason).trim().to_owned()
}

/// Whether an HTTP refusal may be answered otherwise later.
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

fn gap(message: &Value) -> String {
    let text = |field: &str| message.get(field).and_then(Value::as_str);
    let lost = match message.get("lost").and_then(Value::as_u64) {
        Some(n) => format!("{n} log positions"),
        None => "an unknown number of events".to_owned(),
    };
    let reason = text("reason").unwrap_or("unknown");
    let range = match (text("from_time"), text("to_time")) {
        (Some(from), Some(to)) => format!(" between {from} and {to}"),
        (None, Some(to)) => format!(" before {to}"),
        _ => String::new(),
    };
    format!("GAP: {lost}{range} can't be shown ({reason})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow() -> Follow {
        let filter = vec![("event_type", "connection".to_owned())];
        Follow::new(filter, Some(("last", "5".to_owned())), fastrand::Rng::with_seed(1))
    }

    fn pair(name: &'static str, value: &str) -> Param {
        (name, value.to_owned())
    }

    fn ids(shown: Vec<Shown>) -> Vec<String> {
        shown
            .into_iter()
            .map(|item| match item {
                Shown::Event(event) => event["id"].as_str().unwrap().to_owned(),
                Shown::Note(text) => text,
            })
            .collect()
    }

    fn delay(next: Next) -> Duration {
        match next {
            Next::Reconnect { after, .. } => after,
            Next::Stop { message } => panic!("stopped: {message}"),
        }
    }

    #[test]
    fn it_starts_as_asked_and_goes_on_from_the_last_position() {
        let mut follow = follow();
        assert_eq!(follow.query(), [pair("event_type", "connection"), pair("last", "5")]);
        follow.on_open();
        follow.on_text(r#"{"type":"welcome","heartbeat_ms":15000}"#).unwrap();
        assert_eq!(follow.query()[1], pair("last", "5"), "no position is known yet");
        follow.on_text(r#"{"type":"subscribed","sub":"default","cursor":"c0"}"#).unwrap();
        assert_eq!(follow.query(), [pair("event_type", "connection"), pair("after", "c0")]);
        let shown = follow
            .on_text(r#"{"type":"events","n":1,"cursor":"c2","items":[{"id":"a"},{"id":"b"}]}"#)
            .unwrap();
        assert_eq!(ids(shown), ["a", "b"]);
        assert_eq!(follow.cursor(), Some("c2"));
        follow.on_text(r#"{"type":"bookmark","cursor":"c5","upstream":"ok"}"#).unwrap();
        assert_eq!(follow.cursor(), Some("c5"), "what did not match is passed over too");
        assert_eq!(follow.silence(), Duration::from_secs(45));
    }

    #[test]
    fn a_hole_in_the_ordinals_moves_nothing_and_reconnects() {
        let mut follow = follow();
        follow.on_open();
        follow.on_text(r#"{"type":"events","n":1,"cursor":"c1","items":[{"id":"a"}]}"#).unwrap();
        let end =
            follow.on_text(r#"{"type":"events","n":3,"cursor":"c3","items":[{"id":"c"}]}"#).unwrap_err();
        assert_eq!(end, End::Hole { expected: 2, got: 3 });
        assert_eq!(follow.cursor(), Some("c1"));
        delay(follow.on_end(end));
        follow.on_open();
        assert_eq!(
            ids(follow.on_text(r#"{"type":"events","n":1,"cursor":"c2","items":[{"id":"b"}]}"#).unwrap()),
            ["b"]
        );
    }

    #[test]
    fn close_codes_say_whether_to_come_back() {
        let closed = |code| End::Closed { code, reason: "why".into() };
        for (code, hint) in [(4400, ""), (4401, NEEDS_TOKEN), (4403, ""), (4408, NEEDS_TOKEN)] {
            let message = format!("the gateway closed for good ({code}): why{hint}");
            assert_eq!(follow().on_end(closed(Some(code))), Next::Stop { message });
        }
        let coded = End::Closed { code: Some(4403), reason: r#"{"code":"forbidden"}"#.into() };
        let message = "the gateway closed for good (4403): forbidden".to_owned();
        assert_eq!(follow().on_end(coded), Next::Stop { message });
        for code in [Some(4301), Some(4302), Some(4308), Some(1000), Some(1011), None] {
            let mut follow = follow();
            follow.on_text(r#"{"type":"bookmark","cursor":"c1"}"#).unwrap();
            assert!(delay(follow.on_end(closed(code))) >= BACKOFF.0 / 2, "{code:?}");
        }
    }

    #[test]
    fn a_draining_gateway_is_left_at_once_but_not_in_a_loop() {
        let mut follow = follow();
        follow.on_open();
        follow.on_text(r#"{"type":"bookmark","cursor":"c1"}"#).unwrap();
        let drained = || End::Closed { code: Some(4201), reason: String::new() };
        assert_eq!(delay(follow.on_end(drained())), Duration::ZERO);
        follow.on_open();
        assert!(delay(follow.on_end(drained())) >= BACKOFF.0 / 2, "the next one drains too");
        follow.on_open();
        follow.on_text(r#"{"type":"bookmark","cursor":"c1"}"#).unwrap();
        follow.on_text(r#"{"type":"draining","reconnect_within_ms":4000}"#).unwrap();
        assert!(delay(follow.on_end(drained())) <= Duration::from_secs(4));
    }

    #[test]
    fn refusals_stop_or_wait() {
        let refused = |status, retry_after| End::Refused { status, message: "m".into(), retry_after };
        for status in [400, 401, 403, 404, 410, 200, 302] {
            let hint = if status == 401 { NEEDS_TOKEN } else { "" };
            let stop = Next::Stop { message: format!("the gateway refuses ({status}): m{hint}") };
            assert_eq!(follow().on_end(refused(status, None)), stop);
        }
        for status in [429, 502, 503] {
            assert!(delay(follow().on_end(refused(status, None))) <= BACKOFF.0);
        }
        assert_eq!(
            delay(follow().on_end(refused(503, Some(Duration::from_secs(7))))),
            Duration::from_secs(7)
        );
        assert_eq!(delay(follow().on_end(refused(429, Some(Duration::MAX)))), RETRY_AFTER_MAX);
    }

    #[test]
    fn back_off_doubles_within_bounds_and_progress_resets_it() {
        let mut follow = follow();
        for n in 0..40_u32 {
            let base = BACKOFF.0.saturating_mul(1 << n.min(10)).min(BACKOFF.1);
            let after = delay(follow.on_end(End::Broken("refused".into())));
            assert!(base / 2 <= after && after <= base, "attempt {n}: {after:?}");
        }
        follow.on_open();
        follow.on_text(r#"{"type":"subscribed","cursor":"c"}"#).unwrap();
        assert!(delay(follow.on_end(End::Silent)) > BACKOFF.0, "an accepted request alone is no progress");
        follow.on_text(r#"{"type":"caught_up","cursor":"c"}"#).unwrap();
        assert!(delay(follow.on_end(End::Silent)) <= BACKOFF.0);
    }

    #[test]
    fn gaps_warnings_and_blindness_are_told() {
        let mut follow = follow();
        let mut notes = |text: &str| ids(follow.on_text(text).unwrap());
        assert_eq!(
            notes(
                r#"{"type":"gap","from":"a","to":"b","from_time":null,"to_time":"2026-01-01T00:00:00Z","lost":7,"reason":"retention"}"#
            ),
            ["GAP: 7 log positions before 2026-01-01T00:00:00Z can't be shown (retention)"]
        );
        assert_eq!(
            notes(
                r#"{"type":"gap","from":null,"to":null,"from_time":null,"to_time":null,"lost":null,"reason":"regressed"}"#
            ),
            ["GAP: an unknown number of events can't be shown (regressed)"]
        );
        assert_eq!(notes(r#"{"type":"subscribed","cursor":"c","warnings":["odd"]}"#), ["warning: odd"]);
        assert_eq!(notes(r#"{"type":"error","code":"x","message":"no"}"#), ["the gateway says: no"]);
        assert_eq!(notes(r#"{"type":"auth_expiring","in_s":60}"#), ["the token expires in 60 s"]);
        assert!(notes(r#"{"type":"bookmark","cursor":"c","upstream":"ok"}"#).is_empty());
        assert_eq!(notes(r#"{"type":"bookmark","cursor":"c","upstream":{"state":"stale"}}"#).len(), 1);
        assert!(notes(r#"{"type":"bookmark","cursor":"c","upstream":"stale"}"#).is_empty(), "told once");
        assert_eq!(
            notes(r#"{"type":"bookmark","cursor":"c","upstream":"ok"}"#),
            ["the gateway sees upstream again"]
        );
        assert!(notes(r#"{"type":"from_the_future"}"#).is_empty());
        assert_eq!(follow.cursor(), Some("c"));
    }

    #[test]
    fn after_a_gap_it_goes_on_behind_it() {
        let mut follow = follow();
        follow.on_text(r#"{"type":"gap","from":"a","to":"b","lost":1,"reason":"retention"}"#).unwrap();
        assert_eq!(follow.cursor(), Some("b"));
        assert!(matches!(follow.on_text("<html>"), Err(End::Broken(_))));
    }
}
