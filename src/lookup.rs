//! What clients ask of the API through the gateway: the six documented paths, with the same parameters and fields.
//!
//! ```text
//! asked a moment ago -> upstream (budget class details) -> asked some time ago -> what the log holds -> refused
//! ```
//!
//! So a dashboard that asks again and again costs a request every few seconds, nobody who asks costs the tail anything
//! (his class comes last), and when the budget is spent or upstream is away there is an answer all the same, which says
//! how old it is. Whoever may see some SIMs only gets what the log holds: upstream can't count for him.

mod shape;
mod stored;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp, civil::Date};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::{
    auth::{ForbiddenField, Principal},
    bus::{Bus, KvError},
    clock::SharedClock,
    event::{Event, Iccid},
    globalsim::{
        budget::Class,
        client::{ActivityQuery, Client, PageQuery, SessionQuery},
        error::{Error as UpstreamError, Kind},
        wire::{Page, Row, SessionPage, SessionRow},
    },
    ingest::{
        StatusReceiver,
        sims::record::{self, DeviceRecord},
    },
    log::ReadError,
};

/// An answer this young is given again without asking.
const FRESH: SignedDuration = SignedDuration::from_secs(5);
/// Longest wait for the budget.
const SLOT_WAIT: Duration = Duration::from_millis(1_000);
/// Answers that are kept; the oldest goes first.
const KEPT_MAX: usize = 1_000;
/// Requests on their way at the same time; more wait.
const CONCURRENCY: usize = 4;
/// When to come again where the budget is spent.
pub const AGAIN: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// Of whom.
    pub of: Of,
    /// Which list, and which part of it.
    pub what: What,
}

/// Of whom something is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Of {
    /// All SIMs.
    Account {
        /// Only this one.
        iccid: Option<Iccid>,
        /// Only this device.
        device_id: Option<String>,
    },
    /// One SIM.
    Sim(Iccid),
    /// The SIM that is in a device.
    Device(String),
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    /// A page of activity.
    Activity(Paging, Option<String>),
    /// A page of sessions.
    Sessions(Paging),
    /// The SIM of a device.
    Sim,
}

/// A page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Paging {
    /// Rows wanted, 1 to 100.
    pub limit: u32,
    /// Rows to pass over.
    pub offset: u32,
    /// From this day, UTC.
    pub start_date: Option<Date>,
    /// To this day, inclusive.
    pub end_date: Option<Date>,
}

/// Where an answer is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Asked for just now.
    Upstream,
    /// Asked for before.
    Cache,
    /// Made of the events that the log holds.
    Log,
}

impl Source {
    /// As clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Cache => "cache",
            Self::Log => "log",
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing of that name, or nothing that the token may see.
    #[error("upstream knows no such SIM or device, or the token may not see it")]
    NotFound,
    /// The token may not ask by this field.
    #[error(transparent)]
    ForbiddenField(#[from] ForbiddenField),
    /// The budget is spent, and nothing older is known.
    #[error("the requests that upstream allows are spent, and nothing older is known")]
    Budget,
    /// Upstream fails, and nothing older is known.
    #[error("upstream can't be asked, and nothing older is known: {0}")]
    Upstream(UpstreamError),
    /// The log or the store can't be read.
    #[error("the log can't be read: {0}")]
    Unavailable(String),
}

/// What was found, before it is shown to anyone.
#[derive(Debug, Clone, Default)]
struct Found {
    iccid: Option<Iccid>,
    rows: Vec<Event>,
    total: Option<u64>,
    summary: Option<Value>,
    /// The whole answer about a device.
    device: Option<Value>,
    /// The list may go on beyond what was looked at.
    truncated: bool,
    as_of: Timestamp,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Lookup {
    client: Client,
    bus: Arc<dyn Bus>,
    status: StatusReceiver,
    clock: SharedClock,
    kept: Mutex<Kept>,
    asking: Semaphore,
}

#[derive(Debug, Default)]
struct Kept {
    answers: HashMap<Question, Arc<Found>>,
    /// In the order in which they came.
    order: VecDeque<Question>,
}

impl Kept {
    fn put(&mut self, question: Question, found: Arc<Found>) {
        if self.answers.insert(question.clone(), found).is_some() {
            self.order.retain(|one| *one != question);
        }
        self.order.push_back(question);
        if self.order.len() > KEPT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }
}

impl Lookup {
    /// Asks with a client of the gateway's one budget.
    pub fn new(client: &Client, bus: Arc<dyn Bus>, status: StatusReceiver, clock: SharedClock) -> Self {
        Self {
            client: client.with_slot_wait(SLOT_WAIT),
            bus,
            status,
            clock,
            kept: Mutex::default(),
            asking: Semaphore::new(CONCURRENCY),
        }
    }

    /// Forgets what is kept of a SIM.
    pub fn forget(&self, iccid: &Iccid) {
        let mut kept = self.kept.lock();
        let Kept { answers, order } = &mut *kept;
        answers.retain(|_, found| {
            found.iccid.as_ref() != Some(iccid)
                && found.rows.iter().all(|row| row.iccid.as_ref() != Some(iccid))
        });
        order.retain(|question| answers.contains_key(question));
    }

    /// Answers, as the principal may see it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ask(&self, question: &Question, principal: &Principal) -> Result<Map<String, Value>, Error> {
        // Also refuses an ICCID in the path to who may not see any.
        let predicate = principal.predicate(stored::filter(question)?)?;
        let (found, source) = match principal.scope {
            None => self.find(question).await?,
            Some(_) => (self.stored(question, predicate).await?.ok_or(Error::NotFound)?, Source::Log),
        };
        let mut shown = shape::answer(question, &found, principal.policy.as_deref());
        let age = self.clock.now().duration_since(found.as_of).as_millis().max(0) as f64 / 1e3;
        shown.insert("as_of".into(), found.as_of.to_string().into());
        shown.insert("age_seconds".into(), age.into());
        shown.insert("source".into(), source.as_str().into());
        if found.truncated {
            shown.insert("truncated".into(), true.into());
        }
        Ok(shown)
    }

    /// For who may see everything.
    async fn find(&self, question: &Question) -> Result<(Arc<Found>, Source), Error> {
        let kept = self.kept.lock().answers.get(question).cloned();
        let now = self.clock.now();
        if let Some(found) = kept.as_ref().filter(|found| now.duration_since(found.as_of) <= FRESH) {
            return Ok((Arc::clone(found), Source::Cache));
        }
        let error = match self.ask_upstream(question).await {
            Ok(found) => {
                let found = Arc::new(found);
                self.kept.lock().put(question.clone(), Arc::clone(&found));
                return Ok((found, Source::Upstream));
            }
            Err(error) if error.kind() == Kind::NotFound => return Err(Error::NotFound),
            Err(error) => error,
        };
        if let Some(found) = kept {
            return Ok((found, Source::Cache));
        }
        if let Some(found) = self.device_record(question).await? {
            return Ok((Arc::new(found), Source::Cache));
        }
        let predicate = stored::filter(question)?.into();
        match self.stored(question, predicate).await? {
            Some(found) => Ok((found, Source::Log)),
            None if matches!(error.kind(), Kind::BudgetExhausted | Kind::RateLimited) => Err(Error::Budget),
            None => Err(Error::Upstream(error)),
        }
    }

    async fn ask_upstream(&self, question: &Question) -> Result<Found, UpstreamError> {
        // Never closed.
        let _permit = self.asking.acquire().await;
        let (client, class) = (&self.client, Class::Details);
        match (&question.of, &question.what) {
            (Of::Account { iccid, device_id }, What::Activity(paging, event_type)) => {
                let query = ActivityQuery {
                    limit: paging.limit,
                    offset: paging.offset.into(),
                    event_type: event_type.clone(),
                    iccid: iccid.clone(),
                    device_id: device_id.clone(),
                    start_date: paging.start_date,
                    end_date: paging.end_date,
                };
                client.activity(class, &query).await.map(activity)
            }
            (Of::Sim(iccid), What::Activity(paging, event_type)) => {
                client.sim_activity(class, iccid, &page_query(*paging, event_type)).await.map(activity)
            }
            (Of::Device(id), What::Activity(paging, event_type)) => {
                client.device_activity(class, id, &page_query(*paging, event_type)).await.map(activity)
            }
            (Of::Sim(iccid), What::Sessions(paging)) => {
                let page = client.sim_sessions(class, iccid, &session_query(*paging)).await?;
                Ok(Found { iccid: Some(iccid.clone()), ..sessions(page) })
            }
            (Of::Device(id), What::Sessions(paging)) => {
                client.device_sessions(class, id, &session_query(*paging)).await.map(sessions)
            }
            (Of::Device(id), What::Sim) => {
                let answer = client.device_sim(class, id).await?;
                Ok(Found {
                    iccid: answer.iccid,
                    device: Some(answer.raw),
                    as_of: answer.answered_at,
                    ..Found::default()
                })
            }
            (Of::Account { .. }, What::Sessions(_) | What::Sim) | (Of::Sim(_), What::Sim) => {
                Err(UpstreamError::Invalid { status: 0, said: "there is no such path".to_owned() })
            }
        }
    }

    /// What the poller has looked up of a device.
    async fn device_record(&self, question: &Question) -> Result<Option<Found>, Error> {
        let (Of::Device(id), What::Sim) = (&question.of, &question.what) else { return Ok(None) };
        let key = format!("{}{id}", record::DEVICE);
        let found = record::load::<DeviceRecord>(&self.bus, &key).await.map_err(unavailable)?;
        Ok(found.filter(|record| !record.answer.is_null()).map(|record| Found {
            iccid: record.iccid,
            device: Some(record.answer),
            as_of: record.as_of,
            ..Found::default()
        }))
    }

    /// What the log holds; None where that is nothing.
    async fn stored(
        &self,
        question: &Question,
        predicate: crate::event::Predicate,
    ) -> Result<Option<Arc<Found>>, Error> {
        let log = Arc::clone(self.bus.log());
        let asked = question.clone();
        let seen_until = self.status.borrow().seen_until;
        let read = tokio::task::spawn_blocking(move || stored::read(&log, &asked, &predicate));
        let found: Result<_, ReadError> =
            read.await.map_err(|error| Error::Unavailable(error.to_string()))?;
        let Some(mut found) = found.map_err(|error| Error::Unavailable(error.to_string()))? else {
            return Ok(None);
        };
        found.as_of = seen_until.unwrap_or(found.as_of);
        if let (Of::Device(id), What::Sim) = (&question.of, &question.what) {
            // The record has more to say, if it is about the SIM that may be seen.
            let key = format!("{}{id}", record::DEVICE);
            let kept = record::load::<DeviceRecord>(&self.bus, &key).await.map_err(unavailable)?;
            match kept.filter(|record| record.iccid.is_some() && record.iccid == found.iccid) {
                Some(record) => (found.device, found.as_of) = (Some(record.answer), record.as_of),
                None => found.device = found.rows.first().map(shape::device),
            }
        }
        Ok(Some(Arc::new(found)))
    }
}

fn unavailable(error: KvError) -> Error {
    Error::Unavailable(error.to_string())
}

fn page_query(paging: Paging, event_type: &Option<String>) -> PageQuery {
    PageQuery { limit: paging.limit, offset: paging.offset.into(), event_type: event_type.clone() }
}

fn session_query(paging: Paging) -> SessionQuery {
    SessionQuery {
        limit: paging.limit,
        offset: paging.offset.into(),
        start_date: paging.start_date,
        end_date: paging.end_date,
    }
}

fn activity(page: Page<Row>) -> Found {
    let rows: Vec<_> = page.rows.into_iter().flatten().map(|row| row.event).collect();
    let iccid = rows.first().and_then(|row| row.iccid.clone());
    Found { iccid, rows, total: page.total, as_of: page.answered_at, ..Found::default() }
}

fn sessions(SessionPage { page, iccid, summary }: SessionPage) -> Found {
    let rows = page.rows.into_iter().flatten().map(session).collect();
    Found { iccid, rows, total: page.total, summary, as_of: page.answered_at, ..Found::default() }
}

/// A session in the place of an event, so that one set of rules shows both.
fn session(row: SessionRow) -> Event {
    let mut event = Event::new("", "".into(), "session");
    event.time = row.start();
    event.iccid = row.iccid;
    event.network = row.network;
    event.session = Some(row.session);
    event.extra = row.extra;
    event
}

#[cfg(test)]
mod tests;
