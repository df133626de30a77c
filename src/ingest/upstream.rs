//! Asking upstream: the client, with what every part of the poller does alike about failures.
//!
//! A page that breaks is asked for again, a bounded number of times. A key that is refused closes the door for all
//! but one request a minute, whoever asks. What happened is put on the board for the operator.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp, civil::Date};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    board::Board,
    names,
    page::{ListPage, PAGE_ROWS, PageSource, ROWS_MAX, Shown, Slot},
    quarantine::{self, RecentKeys},
    status::UpstreamState,
};
use crate::{
    event::{Iccid, identity::FieldHasher},
    globalsim::{
        budget::Class,
        client::{ActivityQuery, Client, PageQuery, SessionQuery},
        error::{Error, Kind},
        wire::{BadRow, DeviceSim, Page, Row, SessionPage},
    },
    sabotage::{self, Bug},
};

/// A row, or what could not be read as one.
pub type Item = Result<Row, BadRow>;

/// Requests for one page before it counts as failed.
const TRIES_MAX: u32 = 5;
/// First and longest pause between them.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Without an answer for so long, the gateway is blind.
const STALE_AFTER: Duration = Duration::from_secs(10);
/// How often a failure that goes on is logged.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// How often a refused key is tried again.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// How often it is looked whether a refused key has been replaced; that costs upstream nothing.
const LOOK_FOR_KEY: Duration = Duration::from_secs(1);

/// Answers over which the clocks are compared.
const BEHIND_OVER: u32 = 1_000;

/// A part of the account-wide list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Window {
    /// First day.
    pub start: Option<Date>,
    /// Last day.
    pub end: Option<Date>,
    /// One type.
    pub event_type: Option<String>,
    /// One SIM.
    pub iccid: Option<Iccid>,
}

impl Window {
    /// From a day on.
    pub fn since(day: Date) -> Self {
        let end = sabotage::on(Bug::TailNamesEnd)
            .then_some(day)
            .and_then(|day| day.tomorrow().ok()?.tomorrow().ok());
        Self { start: Some(day), end, ..Self::default() }
    }
}

/// Upstream as the poller sees it.
#[derive(Debug)]
pub struct Upstream {
    client: Client,
    board: Arc<Board>,
    rng: Mutex<fastrand::Rng>,
    /// When a refused key may be tried again, and which one it is.
    refused: Mutex<Option<(Instant, u64)>>,
    /// When a request last succeeded.
    succeeded: Mutex<Option<Instant>>,
    /// Whether answers are of now.
    freshness: Mutex<Freshness>,
    /// Lowest offset into the account's list that upstream refuses.
    refused_offset: Mutex<Option<u64>>,
    /// Rows of SIMs' lists that were quarantined.
    bad_details: Mutex<RecentKeys>,
    /// Which kind of failure was logged last, and when.
    logged: Mutex<Option<(Kind, Instant)>>,
}

impl Upstream {
    /// Around a client.
    pub fn new(client: Client, board: Arc<Board>, rng_seed: u64) -> Self {
        let rng = Mutex::new(fastrand::Rng::with_seed(rng_seed));
        Self {
            client,
            board,
            rng,
            refused: Mutex::default(),
            succeeded: Mutex::default(),
            freshness: Mutex::default(),
            refused_offset: Mutex::default(),
            bad_details: Mutex::default(),
            logged: Mutex::default(),
        }
    }

    /// A page of the account-wide list, asked for again while that can help.
    ///
    /// # Errors
    /// The last failure.
    pub async fn page(&self, class: Class, window: &Window, offset: u64) -> Result<ListPage<Item>, Error> {
        self.page_of(class, window, offset, PAGE_ROWS as u32).await
    }

    /// As [`page`](Self::page) with fewer rows, where only the count or the order is wanted.
    ///
    /// # Errors
    /// The last failure.
    pub async fn page_of(
        &self,
        class: Class,
        window: &Window,
        offset: u64,
        limit: u32,
    ) -> Result<ListPage<Item>, Error> {
        let query = ActivityQuery {
            limit,
            offset,
            event_type: window.event_type.clone(),
            iccid: window.iccid.clone(),
            device_id: None,
            start_date: window.start,
            end_date: window.end,
        };
        let mut pause = PAUSE_MIN;
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.admitted().await;
            let answer = self.client.activity(class, &query).await;
            self.note(class, &answer);
            match answer {
                Ok(page) => {
                    self.freshness.lock().observe(&page);
                    return Ok(list_page(page, offset));
                }
                // Once may be an accident.
                Err(error) if error.kind() == Kind::Invalid && offset > 0 && attempt == 1 => {
                    tracing::debug!(%error, offset, "upstream refuses an offset; it is asked once more");
                }
                Err(error) if error.retryable() && attempt < TRIES_MAX => {
                    let wait = error.retry_after().unwrap_or_else(|| self.jittered(pause)).min(PAUSE_MAX);
                    tokio::time::sleep(wait).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(error) => {
                    if error.kind() == Kind::Invalid && offset > 0 {
                        let mut refused = self.refused_offset.lock();
                        *refused = Some(refused.map_or(offset, |lowest| lowest.min(offset)));
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The lowest offset that was refused, with any window.
    pub fn refused_offset(&self) -> Option<u64> {
        *self.refused_offset.lock()
    }

    /// That offset is answered again.
    pub fn offsets_are_answered(&self) {
        self.refused_offset.lock().take();
    }

    /// A page of one SIM's list; one try.
    ///
    /// # Errors
    /// The failure.
    pub async fn sim_page(&self, iccid: &Iccid, offset: u64) -> Result<Page<Row>, Error> {
        self.admitted().await;
        let query = PageQuery { limit: PAGE_ROWS as u32, offset, event_type: None };
        let answer = self.client.sim_activity(Class::Details, iccid, &query).await;
        // That one SIM's list can't be had says nothing about the account's; a key that is refused does.
        match &answer {
            Err(error) if !matches!(error.kind(), Kind::Auth | Kind::RateLimited) => {
                self.count(Class::Details, error.kind().as_str());
            }
            _ => self.note(Class::Details, &answer),
        }
        if let Ok(page) = &answer {
            self.quarantine(page);
        }
        answer
    }

    /// A page of one SIM's sessions; one try.
    ///
    /// # Errors
    /// The failure.
    pub async fn sessions(&self, iccid: &Iccid, offset: u64) -> Result<SessionPage, Error> {
        self.admitted().await;
        let answer = self.client.sim_sessions(Class::Sessions, iccid, &session_page(offset)).await;
        self.note_one(Class::Sessions, &answer);
        answer
    }

    /// A page of the sessions of the SIM that is in a device, which the answer names; one try.
    ///
    /// # Errors
    /// The failure.
    pub async fn device_sessions(&self, device_id: &str, offset: u64) -> Result<SessionPage, Error> {
        self.admitted().await;
        let answer = self.client.device_sessions(Class::Sessions, device_id, &session_page(offset)).await;
        self.note_one(Class::Sessions, &answer);
        answer
    }

    /// The SIM of a device; one try.
    ///
    /// # Errors
    /// The failure.
    pub async fn device_sim(&self, device_id: &str) -> Result<DeviceSim, Error> {
        self.admitted().await;
        let answer = self.client.device_sim(Class::Details, device_id).await;
        self.note_one(Class::Details, &answer);
        answer
    }

    /// That one SIM's list can't be had says nothing about the account's; a key that is refused does.
    fn note_one<T>(&self, class: Class, answer: &Result<T, Error>) {
        match answer {
            Err(error) if matches!(error.kind(), Kind::Auth | Kind::RateLimited) => {
                self.count(class, error.kind().as_str());
                self.failed(error);
            }
            Err(error) => self.count(class, error.kind().as_str()),
            Ok(_) => self.count(class, "ok"),
        }
    }

    /// Requests a minute that upstream takes now.
    pub fn allowance(&self) -> u32 {
        self.client.gate().usage().allowance
    }

    /// Notes from now on how old answers are.
    pub fn watch(&self) -> Watch<'_> {
        let mut freshness = self.freshness.lock();
        freshness.last_watch += 1;
        let number = freshness.last_watch;
        freshness.oldest.insert(number, Timestamp::MAX);
        Watch { upstream: self, number }
    }

    /// Keeps for the operator what is wrong with a SIM's list, such as that it says to be another SIM's. One row of each
    /// answer: what is wrong with the whole of it is wrong with each.
    fn quarantine(&self, page: &Page<Row>) {
        let Some(Err(bad)) = page.rows.iter().find(|row| row.is_err()) else { return };
        if !self.bad_details.lock().insert(key_of(bad)) {
            return;
        }
        metrics::counter!(names::QUARANTINED, "what" => "details").increment(1);
        let reason = quarantine::shown(&bad.reason);
        tracing::warn!(reason, "a row of a SIM's list can't be used");
        self.board.update(|status| {
            status.quarantined += 1;
            status.quarantine.add(page.answered_at, "details", &bad.reason, &bad.raw);
        });
    }

    /// Whether a request that nobody waits for may be sent.
    pub fn has_spare(&self) -> bool {
        self.client.gate().has_spare()
    }

    /// Half to the whole of a pause.
    pub fn jittered(&self, pause: Duration) -> Duration {
        pause.mul_f64(0.5 + self.rng.lock().f64() / 2.0)
    }

    /// Waits while the key is refused, then lets one through; all of them once there is another key.
    async fn admitted(&self) {
        loop {
            let until = {
                let mut refused = self.refused.lock();
                match *refused {
                    Some((_, key)) if key != self.client.keys_loaded() => {
                        *refused = None;
                        return;
                    }
                    Some((until, _)) if until > Instant::now() => until,
                    Some((_, key)) => {
                        *refused = Some((Instant::now() + REFUSED_PAUSE, key));
                        return;
                    }
                    None => return,
                }
            };
            tokio::time::sleep_until(until.min(Instant::now() + LOOK_FOR_KEY)).await;
            // A file that can't be read is complained about when the key is refused.
            let _ = self.client.reload_key();
        }
    }

    fn note<T>(&self, class: Class, answer: &Result<Page<T>, Error>) {
        let outcome = answer.as_ref().map_or_else(|error| error.kind().as_str(), |_| "ok");
        self.count(class, outcome);
        match answer {
            Ok(page) => {
                let took = page.answered_at.duration_since(page.asked_at).as_secs_f64().max(0.0);
                metrics::histogram!(names::REQUEST_SECONDS, "class" => class.as_str()).record(took);
                self.accepted(page.answered_at);
            }
            Err(error) => self.failed(error),
        }
    }

    fn count(&self, class: Class, outcome: &'static str) {
        metrics::counter!(names::REQUESTS, "class" => class.as_str(), "outcome" => outcome).increment(1);
    }

    fn accepted(&self, at: Timestamp) {
        let was_refused = self.refused.lock().take().is_some();
        *self.succeeded.lock() = Some(Instant::now());
        self.logged.lock().take();
        if was_refused || self.board.status().state != UpstreamState::Ok {
            tracing::info!("upstream answers again");
        }
        self.board.update(|status| {
            status.state = UpstreamState::Ok;
            status.message = None;
            status.last_success = Some(at);
        });
    }

    fn is_news(&self, kind: Kind) -> bool {
        let mut logged = self.logged.lock();
        let news = logged.is_none_or(|(last, at)| last != kind || at.elapsed() > LOG_EVERY);
        if news {
            *logged = Some((kind, Instant::now()));
        }
        news
    }

    fn failed(&self, error: &Error) {
        let (state, advice) = match error.kind() {
            Kind::Auth => (UpstreamState::AuthFailed, "set upstream.api_key or the file it is read from"),
            Kind::Forbidden => {
                (UpstreamState::AuthFailed, "give the key the scope to read GlobalSIM activity")
            }
            Kind::RateLimited => (UpstreamState::RateLimited, "another program may use the same key"),
            Kind::NotGlobalSim | Kind::NotFound => (UpstreamState::Stale, "check upstream.base_url"),
            _ => (UpstreamState::Stale, "it is tried again"),
        };
        if state == UpstreamState::AuthFailed {
            *self.refused.lock() = Some((Instant::now() + REFUSED_PAUSE, self.client.keys_loaded()));
            tracing::error!(%error, advice, "upstream refuses the API key; nothing is read, the position is kept");
        } else if self.is_news(error.kind()) {
            tracing::warn!(%error, advice, kind = error.kind().as_str(), "requests to upstream fail");
        } else {
            tracing::debug!(%error, "a request to upstream failed");
        }
        // A single broken answer does not make the gateway blind.
        let blind = self.succeeded.lock().is_none_or(|at| at.elapsed() > STALE_AFTER);
        let keeps_ok =
            state == UpstreamState::Stale && !blind && self.board.status().state == UpstreamState::Ok;
        self.board.update(|status| {
            if !keeps_ok {
                status.state = state;
            }
            status.message = Some(format!("{error}; {advice}"));
        });
    }
}

/// Answers may come from the memory of a proxy, whatever is asked of it. Their Date is then further behind than that of
/// others, and what they do not show may have been there long since.
#[derive(Debug, Default)]
struct Freshness {
    /// By how much Date was behind our clock at least, lately and before that.
    least: [Option<SignedDuration>; 2],
    answers: u32,
    /// When the oldest answer was made since each watch began.
    oldest: HashMap<u64, Timestamp>,
    last_watch: u64,
}

impl Freshness {
    fn observe(&mut self, page: &Page<Row>) {
        let made_at = page.server_date.map_or(page.asked_at, |date| {
            let behind = page.asked_at.duration_since(date);
            // Clocks may be set: what they differed by long ago is forgotten.
            self.answers += 1;
            if self.answers.is_multiple_of(BEHIND_OVER) {
                self.least = [None, self.least[0]];
            }
            self.least[0] = Some(self.least[0].map_or(behind, |least| least.min(behind)));
            let least = self.least.into_iter().flatten().min().unwrap_or(behind);
            let age = behind - least;
            // Dates have whole seconds, so that fresh answers differ by one at most.
            if age < DATE_GRAIN {
                page.asked_at
            } else {
                page.asked_at.saturating_sub(age + DATE_GRAIN).unwrap_or(date)
            }
        });
        for oldest in self.oldest.values_mut() {
            *oldest = made_at.min(*oldest);
        }
    }
}

/// How old answers are since it began.
#[derive(Debug)]
pub struct Watch<'u> {
    upstream: &'u Upstream,
    number: u64,
}

impl Watch<'_> {
    /// `began`, or when the oldest answer since was made, if that was earlier: what became visible after it may have
    /// been missed.
    pub fn seen(&self, began: Timestamp) -> Timestamp {
        let oldest = self.upstream.freshness.lock().oldest.get(&self.number).copied();
        oldest.map_or(began, |oldest| oldest.min(began))
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.upstream.freshness.lock().oldest.remove(&self.number);
    }
}

/// What a list window looks like to the walk.
#[derive(Debug)]
pub struct WindowSource<'a> {
    /// Where to ask.
    pub upstream: &'a Upstream,
    /// Which budget pays.
    pub class: Class,
    /// Which part.
    pub window: Window,
}

impl PageSource for WindowSource<'_> {
    type Row = Item;
    type Error = Error;

    async fn fetch(&self, offset: u64) -> Result<ListPage<Item>, Error> {
        self.upstream.page(self.class, &self.window, offset).await
    }
}

/// How far upstream's clock may be behind its Date header, which has whole seconds.
const DATE_GRAIN: SignedDuration = SignedDuration::from_secs(1);

fn list_page(page: Page<Row>, offset: u64) -> ListPage<Item> {
    // Floors are compared with upstream's timestamps, so they must not run ahead of its clock.
    let asked_at = page
        .server_date
        .map_or(page.asked_at, |date| page.asked_at.min(date.checked_sub(DATE_GRAIN).unwrap_or(date)));
    let shown = Shown { asked_at: page.asked_at, answered_at: page.answered_at, not_seen_at: None };
    let any_id = page.rows.iter().flatten().any(|row| row.event_id().is_some());
    let mut slots: Vec<Slot<Item>> = page.rows.into_iter().map(|row| slot(row, any_id, shown)).collect();
    number_equal_rows(&mut slots);
    let total = page.total.filter(|total| *total <= ROWS_MAX);
    ListPage { offset, slots, total, asked_at, sent_at: page.asked_at }
}

/// Where no row of a page has an event_id, the rest of the row has to do to find overlaps by.
fn slot(row: Item, any_id: bool, shown: Shown) -> Slot<Item> {
    match &row {
        Ok(good) => Slot {
            key: row_key(good),
            unique: good.event_id().is_some() || !any_id,
            time: good.event.time,
            ordinal: 0,
            shown,
            row,
        },
        Err(bad) => Slot { key: key_of(bad), unique: true, time: None, ordinal: 0, shown, row },
    }
}

/// What tells a row that can't be read from others.
fn key_of(bad: &BadRow) -> u64 {
    let mut hasher = FieldHasher::new("bad row");
    hasher.field(Some(&bad.raw));
    hasher.finish_u64()
}

/// What a row is recognised by. One without event_id only with its content: rows of one SIM, type and second that differ
/// in nothing else would otherwise be numbered by who stands before whom on the page that shows them, and get other
/// numbers, and so other ids, where a page begins between them or is read from the other end.
fn row_key(row: &Row) -> u64 {
    if row.event_id().is_some() {
        return row.identity_hash();
    }
    let mut hasher = FieldHasher::new("row without id");
    hasher.field(Some(&format!("{:x?}", row.content_key())));
    hasher.finish_u64()
}

/// Counts rows without event_id that are equal to each other. A walk counts those that are not unique anew over all
/// its pages.
fn number_equal_rows(slots: &mut [Slot<Item>]) {
    let mut counts = HashMap::new();
    for slot in slots {
        if slot.row.as_ref().is_ok_and(|row| row.event_id().is_none()) {
            let count = counts.entry(slot.key).or_insert(0);
            slot.ordinal = *count;
            if slot.unique {
                slot.key = slot.key.wrapping_add(u64::from(*count).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            }
            *count += 1;
        }
    }
}

fn session_page(offset: u64) -> SessionQuery {
    SessionQuery { limit: PAGE_ROWS as u32, offset, start_date: None, end_date: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, tests_support::full_event};

    fn ids(contents: &[u32]) -> Vec<String> {
        let row = |content: &u32| {
            Ok(Row { event: Event { event_id: None, ..full_event() }, content: *content, complete: true })
        };
        let page = Page {
            rows: contents.iter().map(row).collect(),
            total: None,
            limit: None,
            offset: None,
            server_date: None,
            asked_at: Timestamp::UNIX_EPOCH,
            answered_at: Timestamp::UNIX_EPOCH,
        };
        let id = |slot: Slot<Item>| slot.row.unwrap().generated_id(slot.ordinal);
        list_page(page, 0).slots.into_iter().map(id).collect()
    }

    #[test]
    fn rows_without_id_keep_their_ids_wherever_a_page_begins_and_whichever_way_it_runs() {
        let [first, second] = ids(&[1, 2]).try_into().unwrap();
        assert_eq!(ids(&[2, 1]), [second.clone(), first]);
        assert_eq!(ids(&[2]), [second]);
        let [one, other] = ids(&[1, 1]).try_into().unwrap();
        assert_ne!(one, other);
    }
}
