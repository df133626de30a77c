//! The switches that make the simulated API as awkward as the real one may be.
//!
//! The API document leaves order, lateness, retention, error shapes and much else unsaid, so the gateway must
//! survive every reading of it. Each field here is one way in which a documented list can differ from what a naive
//! client expects; all are off by default. Probabilities are per request or per event: 0 is never, 1 is always.

use serde::{Deserialize, Serialize};

/// Every switch. As JSON, absent fields have their defaults and unknown fields are errors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Order of the account-wide list.
    pub order: Order,
    /// Order of the per-SIM lists; none = as `order`.
    pub sim_order: Option<Order>,
    /// Order among rows of one second.
    pub tie_order: TieOrder,
    /// Events that become visible later than they happened.
    pub late: Late,
    /// What changes between two list requests.
    pub paging: Paging,
    /// How list parameters and `total` are treated.
    pub lists: Lists,
    /// Wrong or surprising content, decided once per event.
    pub content: Content,
    /// Answers with an error status.
    pub errors: Errors,
    /// Answers that break on the way.
    pub transport: Transport,
    /// Nothing answers at all.
    pub outage: Option<Outage>,
}

/// Order of a list; in each case a row's place relative to the others never changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Newest first, as the examples of the account-wide list suggest.
    #[default]
    Newest,
    /// Oldest first.
    Oldest,
    /// A stable shuffle: new rows appear anywhere.
    Unsorted,
}

/// Order among rows of one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TieOrder {
    /// By arrival.
    #[default]
    Arrival,
    /// Arbitrary but fixed: a new row may land between two that are already listed.
    Random,
}

/// Late arrivals: visible after an exponentially distributed delay, then listed in their sorted place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Late {
    /// Probability per generated event.
    pub probability: f64,
    /// Mean delay in milliseconds.
    pub mean_ms: u64,
    /// Longest delay in milliseconds.
    pub max_ms: u64,
}

impl Default for Late {
    fn default() -> Self {
        Self { probability: 0.0, mean_ms: 30_000, max_ms: 300_000 }
    }
}

/// Changes made just before each account-wide list request is answered, so that they fall between any two pages.
/// Per-SIM requests change nothing: a client that asks for the details of each new row would never come to rest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paging {
    /// New events that become visible.
    pub inserts: u32,
    /// Oldest rows that disappear (retention).
    pub removes_oldest: u32,
    /// Random rows that disappear (erasure).
    pub erases: u32,
    /// Erase only among the first this many rows of a newest-first list; none = among all.
    pub erase_within: Option<usize>,
    /// Erase only rows that were served completely at least once, so that nothing is lost for good.
    pub erase_only_served: bool,
    /// Random rows whose content (not identity) changes.
    pub revisions: u32,
    /// Events that become visible late, in their sorted place.
    pub late: u32,
    /// How late at most, in seconds; every other one is just as late.
    pub late_within_s: u64,
    /// Rows older than this many seconds are not listed any more.
    pub retention_s: Option<u64>,
}

/// How list parameters and `total` are treated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lists {
    /// The reported `total`.
    pub total: Total,
    /// `limit` above 100.
    pub limit_over: LimitOver,
    /// Real page size below the documented 100.
    pub page_cap: Option<usize>,
    /// Every offset answers the first page.
    pub offset_ignored: bool,
    /// Each request sees the account-wide list in another order: rows have no places at all.
    pub reshuffle: bool,
    /// Probability that a page holds fewer rows than were asked for and are there, perhaps none.
    pub short_page: f64,
    /// Delay for each 1,000 rows of offset in the account-wide list, in milliseconds: deep pages are slow.
    pub offset_slow_ms: u64,
    /// Offsets above this are refused with 422.
    pub offset_cap: Option<usize>,
    /// `start_date` excludes its day.
    pub start_date_exclusive: bool,
    /// `end_date` excludes its day.
    pub end_date_exclusive: bool,
    /// Days begin at midnight of this offset from UTC, in minutes.
    pub day_offset_minutes: i32,
    /// Account-wide rows carry `details`, `network_code` and `network_type` too.
    pub account_details: bool,
    /// A bare array instead of the wrapping object.
    pub bare_array: bool,
    /// `msisdn` and `device_id` are those of now, not those of the event's time.
    pub joined_at_read: bool,
    /// Open sessions lack `end_time` instead of showing null.
    pub open_end_absent: bool,
    /// Per-SIM lists do not say whose they are.
    pub envelope_absent: bool,
    /// Probability that a per-SIM list says that it is another SIM's.
    pub envelope_wrong: f64,
}

/// The reported `total`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Total {
    /// The number of rows that match.
    #[default]
    Exact,
    /// Never above this.
    Capped(usize),
    /// Off by this many, never below zero.
    OffBy(i64),
    /// Not there.
    Absent,
}

/// `limit` above 100.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitOver {
    /// 422 with a `detail` list.
    #[default]
    Reject,
    /// Silently cut to 100.
    Cut,
}

/// Probabilities per event of wrong or surprising content. A row keeps its oddity on every read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Content {
    /// The `event_id` of an earlier, different event.
    pub duplicate_id: f64,
    /// The same row listed twice.
    pub duplicate_row: f64,
    /// No `event_id`.
    pub missing_id: f64,
    /// No `iccid` in the account-wide row.
    pub missing_iccid: f64,
    /// An event type that is not documented.
    pub unknown_type: f64,
    /// Fields that are not documented.
    pub extra_fields: f64,
    /// `network`, `details`, `msisdn`, `device_id` null.
    pub nulls: f64,
    /// Numbers as strings.
    pub numbers_as_strings: f64,
    /// A timestamp that is not second-resolution RFC 3339 in UTC: offset, fraction, epoch, null or nonsense.
    pub odd_timestamp: f64,
    /// Added to every new event's timestamp, in seconds: events stamped in the future.
    pub clock_skew_s: i64,
}

/// Answers with an error status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Errors {
    /// Probability that a request begins a burst of 429.
    pub too_many: f64,
    /// Requests per burst, at least 1.
    pub too_many_burst: u32,
    /// `Retry-After` of a burst, in seconds.
    pub too_many_retry_after_s: u64,
    /// How `Retry-After` is written, in bursts and by the real limit.
    pub retry_after: RetryAfter,
    /// Probability of a server error.
    pub server_error: f64,
    /// Statuses to choose from; empty = 500, 502, 503, 504.
    pub server_error_status: Vec<u16>,
    /// Every key answers 403 (scope missing).
    pub forbidden: bool,
}

/// How `Retry-After` is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// Delay in seconds.
    #[default]
    Seconds,
    /// HTTP date.
    Date,
    /// Not sent.
    Absent,
}

/// Probabilities per request of an answer that breaks on the way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transport {
    /// Connection reset before the answer.
    pub reset: f64,
    /// Connection reset in the middle of the body.
    pub reset_in_body: f64,
    /// Body cut, connection closed before the announced length.
    pub truncate: f64,
    /// Body cut, announced length matching: valid HTTP around broken JSON.
    pub truncate_json: f64,
    /// An HTML page with status 200.
    pub html: f64,
    /// Half of the body, then nothing for ever.
    pub hang: f64,
    /// No answer at all, for ever.
    pub hang_before_headers: f64,
    /// Body padded with spaces to `huge_bytes`.
    pub huge: f64,
    /// Size of a padded body in bytes, at most 64 MiB.
    pub huge_bytes: usize,
    /// Slow answer.
    pub slow: f64,
    /// Shortest delay of a slow answer in milliseconds.
    pub slow_min_ms: u64,
    /// Longest delay of a slow answer in milliseconds.
    pub slow_max_ms: u64,
    /// A proxy answers the same request from memory for this long, in milliseconds, unless the client says
    /// `Cache-Control: no-cache`; 0 = no proxy.
    pub cache_ms: u64,
    /// The proxy does not care what the client says.
    pub cache_stubborn: bool,
}

/// Nothing answers, from the moment this is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    /// What a request meets.
    pub mode: OutageMode,
    /// Length in milliseconds; none = until switched off.
    #[serde(default)]
    pub for_ms: Option<u64>,
}

/// What a request meets during an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutageMode {
    /// 503.
    Unavailable,
    /// Connection reset.
    Reset,
}

/// A set of switches that makes no sense; retrying cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fault {field} is {value}: a probability lies between 0 and 1")]
pub struct InvalidFaults {
    field: &'static str,
    value: String,
}

impl InvalidFaults {
    /// Always false.
    pub fn retryable(&self) -> bool {
        false
    }
}

impl Faults {
    /// Refuses probabilities outside 0..=1, naming the field.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), InvalidFaults> {
        let (c, e, t) = (&self.content, &self.errors, &self.transport);
        let probabilities = [
            ("late.probability", self.late.probability),
            ("lists.short_page", self.lists.short_page),
            ("lists.envelope_wrong", self.lists.envelope_wrong),
            ("content.duplicate_id", c.duplicate_id),
            ("content.duplicate_row", c.duplicate_row),
            ("content.missing_id", c.missing_id),
            ("content.missing_iccid", c.missing_iccid),
            ("content.unknown_type", c.unknown_type),
            ("content.extra_fields", c.extra_fields),
            ("content.nulls", c.nulls),
            ("content.numbers_as_strings", c.numbers_as_strings),
            ("content.odd_timestamp", c.odd_timestamp),
            ("errors.too_many", e.too_many),
            ("errors.server_error", e.server_error),
            ("transport.reset", t.reset),
            ("transport.reset_in_body", t.reset_in_body),
            ("transport.truncate", t.truncate),
            ("transport.truncate_json", t.truncate_json),
            ("transport.html", t.html),
            ("transport.hang", t.hang),
            ("transport.hang_before_headers", t.hang_before_headers),
            ("transport.huge", t.huge),
            ("transport.slow", t.slow),
        ];
        match probabilities.into_iter().find(|(_, p)| !(0.0..=1.0).contains(p)) {
            Some((field, value)) => Err(InvalidFaults { field, value: value.to_string() }),
            None => Ok(()),
        }
    }

    /// The order of per-SIM lists.
    pub(super) fn order_of_sims(&self) -> Order {
        self.sim_order.unwrap_or(self.order)
    }

    /// Whether any list needs the shuffled index.
    pub(super) fn any_unsorted(&self) -> bool {
        self.order == Order::Unsorted || self.order_of_sims() == Order::Unsorted
    }
}
