//! What was tried: every attempt of this gateway, for people who ask what happened to an event.
//!
//! Nothing depends on it, so it is not synced (a crash may lose the last second) and a delivery never waits for it: a
//! record goes into a bounded queue, and where that is full it is dropped and counted. One thread takes what has queued
//! up and writes it in one piece, as lines of JSON in files that are removed whole when they are too old or too many.

mod files;

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, mpsc},
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use self::files::Files;
use super::outbound::Exchange;
use crate::clock::SharedClock;

/// Attempts that may wait to be written.
const QUEUE_MAX: usize = 16_384;
/// Dropped because the queue was full.
const DROPPED: &str = "simcast_webhook_attempts_not_logged_total";

/// How attempts are kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of its own, made when missing; None keeps them in memory.
    pub directory: Option<PathBuf>,
    /// How long.
    pub retention: Duration,
    /// How many bytes of them.
    pub retention_bytes: u64,
    /// Size at which a file is closed and the next begun.
    pub segment_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            directory: None,
            retention: Duration::from_secs(7 * 86_400),
            retention_bytes: 1 << 30,
            segment_bytes: 8 << 20,
        }
    }
}

/// What an attempt made of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// They arrived.
    Delivered,
    /// They are tried again.
    Failed,
    /// It was the last attempt.
    DeadLettered,
    /// The receiver does not want them.
    Skipped,
}

fn is_none<T>(value: &Option<T>) -> bool {
    value.is_none()
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it began.
    pub at: Timestamp,
    /// Which endpoint.
    pub webhook: String,
    /// The event; the first of a batch.
    pub event_id: String,
    /// Its position; 0 for a test.
    pub seq: u64,
    /// Events in the request.
    pub members: u32,
    /// Ids of all events of a batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub member_ids: Vec<String>,
    /// SIM of the event.
    #[serde(default, skip_serializing_if = "is_none")]
    pub iccid: Option<String>,
    /// SIMs of all events of a batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub member_iccids: Vec<String>,
    /// The how manieth, from 1.
    pub attempt: u32,
    /// See [`Outcome`].
    pub outcome: Outcome,
    /// Status of the answer.
    #[serde(default, skip_serializing_if = "is_none")]
    pub status: Option<u16>,
    /// What went wrong where there is none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub error_kind: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "is_none")]
    pub error: Option<String>,
    /// Microseconds that the lookup took; this and the next two are missing for a connection that was there already.
    #[serde(default, skip_serializing_if = "is_none")]
    pub dns_us: Option<u64>,
    /// Microseconds that connecting took.
    #[serde(default, skip_serializing_if = "is_none")]
    pub connect_us: Option<u64>,
    /// Microseconds that the TLS handshake took.
    #[serde(default, skip_serializing_if = "is_none")]
    pub tls_us: Option<u64>,
    /// Microseconds to the head of the answer.
    #[serde(default, skip_serializing_if = "is_none")]
    pub first_byte_us: Option<u64>,
    /// Microseconds of all.
    pub total_us: u64,
    /// Who answered.
    #[serde(default, skip_serializing_if = "is_none")]
    pub remote: Option<String>,
    /// Its first 4 KiB.
    #[serde(default, skip_serializing_if = "is_none")]
    pub answer: Option<String>,
    /// There was more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answer_truncated: bool,
    /// It was part of this replay.
    #[serde(default, skip_serializing_if = "is_none")]
    pub replay: Option<String>,
    /// When the next is due.
    #[serde(default, skip_serializing_if = "is_none")]
    pub next_attempt_at: Option<Timestamp>,
}

impl Attempt {
    /// What an exchange tells; whose it was is filled in by the caller.
    pub fn of(exchange: &Exchange, at: Timestamp) -> Self {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let timings = exchange.timings;
        let answer = exchange.result.as_ref().ok();
        let failure = exchange.result.as_ref().err();
        Self {
            at,
            webhook: String::new(),
            event_id: String::new(),
            seq: 0,
            members: 1,
            member_ids: Vec::new(),
            iccid: None,
            member_iccids: Vec::new(),
            attempt: 1,
            outcome: Outcome::Failed,
            status: answer.map(|answer| answer.status),
            error_kind: failure.map(|failure| failure.kind.as_str().to_owned()),
            error: failure.map(|failure| failure.message.clone()),
            dns_us: timings.dns.map(us),
            connect_us: timings.connect.map(us),
            tls_us: timings.tls.map(us),
            first_byte_us: timings.first_byte.map(us),
            total_us: us(timings.total),
            remote: exchange.remote.map(|remote| remote.to_string()),
            answer: answer
                .filter(|answer| !answer.body.is_empty())
                .map(|answer| String::from_utf8_lossy(&answer.body).into_owned()),
            answer_truncated: answer.is_some_and(|answer| answer.truncated),
            replay: None,
            next_attempt_at: None,
        }
    }
}

/// What is looked for; everything that is given must fit.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Of this endpoint.
    pub webhook: Option<String>,
    /// Of the event at this position.
    pub seq: Option<u64>,
    /// Of this event, also inside a batch.
    pub event_id: Option<String>,
    /// That ended so.
    pub outcome: Option<Outcome>,
    /// Older than this.
    pub before: Option<Position>,
    /// At most so many.
    pub limit: usize,
}

/// The place of an attempt; opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    segment: u64,
    offset: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{:x}", self.segment, self.offset)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (segment, offset) = text.split_once('-').ok_or(())?;
        let hex = |text| u64::from_str_radix(text, 16).map_err(|_| ());
        Ok(Self { segment: hex(segment)?, offset: hex(offset)? })
    }
}

/// What was found, newest first.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The attempts.
    pub attempts: Vec<(Position, Attempt)>,
    /// Where to look on; None at the end.
    pub next: Option<Position>,
}

/// What the thread is asked.
enum Ask {
    /// There is something in the queue.
    Write,
    Flush(oneshot::Sender<()>),
    Find(Query, oneshot::Sender<io::Result<Page>>),
    Remove(Remove, oneshot::Sender<io::Result<u64>>),
}

/// Which records go.
#[derive(Debug, Clone)]
enum Remove {
    Sim(String),
    Webhook(String),
}

impl Remove {
    fn takes(&self, attempt: &Attempt) -> bool {
        match self {
            Self::Sim(iccid) => {
                attempt.iccid.as_ref() == Some(iccid) || attempt.member_iccids.contains(iccid)
            }
            Self::Webhook(webhook) => attempt.webhook == *webhook,
        }
    }

    /// What every line that goes must hold.
    fn text(&self) -> &str {
        match self {
            Self::Sim(text) | Self::Webhook(text) => text,
        }
    }
}

/// See the head of this file; cheap to clone. The thread ends with the last handle.
#[derive(Debug, Clone)]
pub struct Attempts {
    queue: Arc<Mutex<VecDeque<Attempt>>>,
    asks: mpsc::SyncSender<Ask>,
}

impl Attempts {
    /// Opens the files and starts the thread.
    ///
    /// # Errors
    /// Where the directory can't be used.
    pub fn open(config: Config, clock: SharedClock) -> io::Result<Self> {
        let mut files = Files::open(config)?;
        let queue = Arc::new(Mutex::new(VecDeque::new()));
        let (asks, asked) = mpsc::sync_channel(1_024);
        let waiting = queue.clone();
        std::thread::Builder::new().name("simcast-attempts".into()).spawn(move || {
            while let Ok(ask) = asked.recv() {
                let batch = std::mem::take(&mut *waiting.lock());
                files.write(&batch, clock.now());
                match ask {
                    Ask::Write => {}
                    Ask::Flush(done) => drop(done.send(())),
                    Ask::Find(query, answer) => drop(answer.send(files.find(&query))),
                    Ask::Remove(which, answer) => drop(answer.send(files.remove(&which))),
                }
            }
            let rest = std::mem::take(&mut *waiting.lock());
            files.write(&rest, clock.now());
        })?;
        Ok(Self { queue, asks })
    }

    /// Writes an attempt down, soon.
    pub fn record(&self, attempt: Attempt) {
        let was_empty = {
            let mut queue = self.queue.lock();
            if queue.len() >= QUEUE_MAX {
                metrics::counter!(DROPPED).increment(1);
                return;
            }
            queue.push_back(attempt);
            queue.len() == 1
        };
        if was_empty {
            // A full channel means that the thread has enough to wake up for.
            let _ = self.asks.try_send(Ask::Write);
        }
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> io::Result<T> {
        let (answer, answered) = oneshot::channel();
        let (asks, ask) = (self.asks.clone(), ask(answer));
        let gone = || io::Error::other("the log of attempts has ended");
        tokio::task::spawn_blocking(move || asks.send(ask))
            .await
            .map_err(io::Error::other)?
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }

    /// Everything recorded before can be found.
    pub async fn flush(&self) {
        // A thread that has ended has written everything.
        let _ = self.ask(Ask::Flush).await;
    }

    /// Looks for attempts, newest first. Looks at a bounded number of bytes: a page may be empty and have a next one.
    ///
    /// # Errors
    /// Where a file can't be read.
    pub async fn find(&self, query: Query) -> io::Result<Page> {
        self.ask(|answer| Ask::Find(query, answer)).await?
    }

    /// Removes everything of a SIM from all files; gives how many attempts that were. Durable when it returns.
    ///
    /// # Errors
    /// Where a file can't be written anew.
    pub async fn erase(&self, iccid: &str) -> io::Result<u64> {
        let which = Remove::Sim(iccid.to_owned());
        self.ask(|answer| Ask::Remove(which, answer)).await?
    }

    /// The same for an endpoint.
    ///
    /// # Errors
    /// Where a file can't be written anew.
    pub async fn forget(&self, webhook: &str) -> io::Result<u64> {
        let which = Remove::Webhook(webhook.to_owned());
        self.ask(|answer| Ask::Remove(which, answer)).await?
    }
}

#[cfg(test)]
mod tests;
