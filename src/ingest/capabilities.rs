//! Watching what upstream is like: changes are announced, and what was found missing is tried again.
//!
//! Pages overturn findings as they come ([`Findings::observe`]). Every few seconds they are compared with what was
//! last said of them; a difference is logged, counted, shown with its time, and appended as
//! `simcast.capability_changed`, at most once a minute for each. What was last said is kept, so that a change during
//! a pause is announced too, and a crash announces nothing twice. Findings that cost something (offsets that are
//! ignored, walks that get lost, a total that does not count) are probed again each ten minutes, more rarely where
//! they turn out wrong again and again, so that the gateway recovers by itself when upstream does.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    findings::Findings,
    names,
    page::PAGE_ROWS,
    probe,
    session::{Halt, Session},
    upstream::Window,
    walk::{Toward, Walker},
};
use crate::{
    bus::{Bucket, NewEvent},
    event::{Event, identity::FieldHasher},
    globalsim::{budget::Class, error::Kind},
};

/// Key in [`Bucket::State`].
const KEY: &str = "capabilities";
/// How often findings are compared with what was said of them.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Announcements of one capability are at least so far apart.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(60);
/// How often what is missing is probed again, at first and at most.
const PROBE_EVERY: Duration = Duration::from_secs(600);
const PROBE_EVERY_MAX: Duration = Duration::from_secs(6 * 3_600);
/// Pages of a walk that must join before paging is trusted again.
const WALK_PAGES: u32 = 4;

/// What was last said of upstream.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Said {
    values: BTreeMap<String, Value>,
    changed_at: BTreeMap<String, Timestamp>,
    /// Changes announced, ever.
    count: u64,
}

/// Watches until nothing can be appended any more.
pub async fn run(session: &Session) -> Halt {
    let mut said = load(session).await;
    session.find(|findings| findings.changed_at.clone_from(&said.changed_at));
    let mut announced: BTreeMap<String, Instant> = BTreeMap::new();
    let mut reprobe = Reprobe { at: Instant::now() + PROBE_EVERY, pause: PROBE_EVERY, recovered: false };
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let result = match compare(session, &mut said, &mut announced).await {
            Ok(()) if reprobe.at <= Instant::now() => reprobe.run(session).await,
            result => result,
        };
        match result {
            Err(halt @ Halt::Stopped(_)) => return halt,
            Err(error) => tracing::debug!(%error, "upstream could not be probed again yet"),
            Ok(()) => {}
        }
    }
}

async fn load(session: &Session) -> Said {
    match session.position.bus().kv_get(Bucket::State, KEY).await {
        Ok(kept) => kept.and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "what was known of upstream can't be read");
            Said::default()
        }
    }
}

/// Announces what differs from what was said.
async fn compare(
    session: &Session,
    said: &mut Said,
    announced: &mut BTreeMap<String, Instant>,
) -> Result<(), Halt> {
    let before = said.clone();
    for (name, value) in session.findings().capabilities() {
        if value.is_null() || said.values.get(name) == Some(&value) {
            continue;
        }
        // What is known for the first time has not changed.
        if let Some(from) = said.values.get(name).cloned() {
            if announced.get(name).is_some_and(|at| at.elapsed() < ANNOUNCE_EVERY) {
                continue;
            }
            announced.insert(name.to_owned(), Instant::now());
            let at = session.clock.now();
            said.count += 1;
            said.changed_at.insert(name.to_owned(), at);
            announce(session, name, (&from, &value), at, said.count).await?;
        }
        said.values.insert(name.to_owned(), value);
    }
    if *said != before {
        session.find(|findings| findings.changed_at.clone_from(&said.changed_at));
        // After the events are durable: a crash in between gives them the same ids again.
        session.intake.settle().await?;
        let value = serde_json::to_vec(said).unwrap_or_default();
        if let Err(error) = session.position.bus().kv_put(Bucket::State, KEY, value.into()).await {
            tracing::warn!(%error, "what is known of upstream can't be written");
        }
    }
    Ok(())
}

async fn announce(
    session: &Session,
    name: &'static str,
    (from, to): (&Value, &Value),
    at: Timestamp,
    count: u64,
) -> Result<(), Halt> {
    metrics::counter!(names::CAPABILITY_CHANGES, "capability" => name).increment(1);
    tracing::warn!(capability = name, %from, %to, "upstream is not what it was");
    let mut hasher = FieldHasher::new("capability");
    for part in [name, &from.to_string(), &to.to_string(), &count.to_string()] {
        hasher.field(Some(part));
    }
    let identity = hasher.finish_u64();
    let extra = json!({"capability": name, "from": from, "to": to, "changed_at": at.to_string()});
    let Value::Object(extra) = extra else { return Ok(()) };
    let event = Event::gateway(format!("cap_{identity:016x}"), "simcast.capability_changed", at, extra);
    session.intake.announce(NewEvent { event, identity, content: 0 }).await?;
    Ok(())
}

/// When to probe again.
struct Reprobe {
    at: Instant,
    pause: Duration,
    /// The last one found that something works again.
    recovered: bool,
}

impl Reprobe {
    async fn run(&mut self, session: &Session) -> Result<(), Halt> {
        let findings = session.findings();
        let incomplete = findings.start_inclusive.is_none() || findings.end_inclusive.is_none();
        let broken = findings.paging_lost
            || findings.offset_honoured == Some(false)
            || findings.offset_refused.is_some()
            || findings.total_exact == Some(false);
        if broken && self.recovered {
            // It was taken for repaired, and was not.
            self.pause = (self.pause * 2).min(PROBE_EVERY_MAX);
        }
        self.recovered = false;
        self.at = Instant::now() + self.pause;
        if !broken && !incomplete {
            return Ok(());
        }
        let window = Window::since(session.window_day());
        let first = session.upstream.page(Class::Sweep, &window, 0).await?;
        let mut fresh = Findings::default();
        probe::probe(&session.upstream, Class::Sweep, &mut fresh, &window, &first).await?;
        let pages =
            findings.paging_lost && fresh.offset_honoured != Some(false) && walks(session, &window).await?;
        let answered = deep_offsets_are_answered(session, &findings, &window).await?;
        self.recovered = pages
            || answered
            || (fresh.offset_honoured == Some(true) && findings.offset_honoured == Some(false))
            || (fresh.total_exact == Some(true) && findings.total_exact == Some(false));
        session.find(|findings| findings.take_probe(&fresh, pages));
        Ok(())
    }
}

/// Whether an offset that was refused is answered now.
async fn deep_offsets_are_answered(
    session: &Session,
    findings: &Findings,
    window: &Window,
) -> Result<bool, Halt> {
    let Some(offset) = findings.offset_refused else { return Ok(false) };
    match session.upstream.page_of(Class::Sweep, window, offset, 1).await {
        Ok(_) => {
            session.upstream.offsets_are_answered();
            session.find(|findings| findings.offset_refused = None);
            Ok(true)
        }
        Err(error) if error.kind() == Kind::Invalid => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a walk can be followed for some pages, or to the end of the list.
async fn walks(session: &Session, window: &Window) -> Result<bool, Halt> {
    let source = session.source(Class::Sweep, window.clone());
    let first = session.upstream.page(Class::Sweep, window, 0).await?;
    if (first.slots.len() as u64) < PAGE_ROWS / 2 {
        return Ok(first.is_whole_list());
    }
    let (mut walker, _) = Walker::start(&source, Toward::End, first);
    for _ in 0..WALK_PAGES {
        match walker.next().await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(super::walk::WalkError::Lost) => return Ok(false),
            Err(super::walk::WalkError::Source(error)) => return Err(error.into()),
        }
    }
    Ok(true)
}
