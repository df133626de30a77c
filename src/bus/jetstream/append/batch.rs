//! One batch: up to a thousand messages that the stream takes together or not at all (ADR-50, server 2.12).
//!
//! A batch of one is an ordinary message with the same conditions, which costs the server a write instead of a
//! directory of its own. Conditions of a fence hold for it too: the server takes one message at a time that has one on
//! the same subject, and batches go in one after the other.
//!
//! async-nats 0.51 can't publish one. It is core messages with three headers, sent in order on one connection: the
//! server keeps them aside, checks all conditions when the last one is there, and answers that one. A message that is
//! lost on the way makes the batch incomplete, and a batch without its end is dropped after ten seconds.

use std::{sync::atomic::Ordering, time::Duration};

use async_nats::{Client, HeaderMap, StatusCode};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::Instant;

use super::FencedBy;
use crate::bus::jetstream::message::Draft;

/// The server takes no more (ADR-50).
pub(in crate::bus::jetstream) const BATCH_MESSAGES_MAX: usize = 1_000;
/// How long the answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether the connection was made anew: an answer that was on its way is lost then.
const LINK_EVERY: Duration = Duration::from_millis(100);
/// How long the answer may take from then on: what the client had not sent yet is sent on the new connection.
const ANSWER_TIMEOUT_ANEW: Duration = Duration::from_millis(500);

const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
const EXPECTED_LAST: &str = "Nats-Expected-Last-Sequence";
const EXPECTED_LAST_OF_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence";
const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// Codes of the server (`server/errors.json`): the last sequence of stream or subject is another one, or a check of
/// it is under way.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];
/// An id is in the server's window, or about to be.
const DUPLICATE: [u64; 2] = [10201, 10158];

/// What must hold when the batch goes in. Only the first message may say so.
#[derive(Debug, Clone, Copy)]
pub(in crate::bus::jetstream) struct Condition<'a> {
    pub(in crate::bus::jetstream) stream: &'a str,
    /// The last sequence of the stream.
    pub(in crate::bus::jetstream) last_seq: u64,
    pub(in crate::bus::jetstream) fence: Option<&'a FencedBy>,
}

/// Why a batch did not go in, or may not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bus::jetstream) enum Refusal {
    /// Something else was appended meanwhile, or the fence is an old one.
    Moved(String),
    /// An id is in the server's window.
    Duplicate(String),
    /// The server said no for another reason: nothing was stored.
    Rejected(String),
    /// No answer: it may have been stored.
    Unknown(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    count: u64,
    /// Of an ordinary message only: nothing was stored, `seq` is of the message that has the id.
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Publishes a batch; gives the sequence of its last message, the others have those before.
///
/// # Errors
/// [`Refusal`].
pub(in crate::bus::jetstream) async fn publish(
    client: &Client,
    drafts: Vec<Draft>,
    condition: Condition<'_>,
) -> Result<u64, Refusal> {
    let unknown = |error: &dyn std::fmt::Display| Refusal::Unknown(error.to_string());
    let count = drafts.len();
    let connects = || client.statistics().connects.load(Ordering::Relaxed);
    let connects_before = connects();
    let inbox = client.new_inbox();
    // Its last token is random and long enough; an id may have 64 characters.
    let id = inbox.rsplit('.').next().unwrap_or(&inbox).to_owned();
    let mut answers = client.subscribe(format!("{inbox}.*")).await.map_err(|error| unknown(&error))?;
    for (n, mut draft) in drafts.into_iter().enumerate() {
        let headers = &mut draft.headers;
        if count > 1 {
            headers.insert(BATCH_ID, id.as_str());
            headers.insert(BATCH_SEQUENCE, (n + 1).to_string());
        }
        if n == 0 {
            condition.write(headers);
        }
        let is_last = n + 1 == count;
        if is_last && count > 1 {
            headers.insert(BATCH_COMMIT, "1");
        }
        let sent = if n == 0 || is_last {
            let reply = format!("{inbox}.{}", if is_last { "end" } else { "begin" });
            client.publish_with_reply_and_headers(draft.subject, reply, draft.headers, draft.payload).await
        } else {
            client.publish_with_headers(draft.subject, draft.headers, draft.payload).await
        };
        sent.map_err(|error| unknown(&error))?;
    }
    let mut deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut anew = false;
    loop {
        let look = deadline.min(Instant::now() + LINK_EVERY);
        let Ok(message) = tokio::time::timeout_at(look, answers.next()).await else {
            if Instant::now() >= deadline {
                return Err(Refusal::Unknown("the server did not answer".to_owned()));
            }
            if !anew && connects() != connects_before {
                anew = true;
                deadline = deadline.min(Instant::now() + ANSWER_TIMEOUT_ANEW);
            }
            continue;
        };
        let message = message.ok_or_else(|| Refusal::Unknown("the connection was closed".to_owned()))?;
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(Refusal::Rejected(
                "no stream takes events: it is missing or has no leader".to_owned(),
            ));
        }
        if message.payload.is_empty() {
            // The batch has begun.
            continue;
        }
        let answer: Answer = serde_json::from_slice(&message.payload).map_err(|error| unknown(&error))?;
        match answer.error {
            Some(refused) => return Err(refused.into()),
            None if answer.duplicate => {
                return Err(Refusal::Duplicate(format!("the id is that of message {}", answer.seq)));
            }
            None if count == 1 && answer.seq > 0 => return Ok(answer.seq),
            None if answer.count == count as u64 && answer.seq >= answer.count => return Ok(answer.seq),
            None => {
                return Err(Refusal::Unknown(format!("{} of {count} messages were stored", answer.count)));
            }
        }
    }
}

impl Condition<'_> {
    fn write(&self, headers: &mut HeaderMap) {
        headers.insert(EXPECTED_STREAM, self.stream);
        headers.insert(EXPECTED_LAST, self.last_seq.to_string());
        if let Some(fence) = self.fence {
            headers.insert(EXPECTED_LAST_OF_SUBJECT, fence.seq.to_string());
            headers.insert(EXPECTED_SUBJECT, fence.subject.as_str());
        }
    }
}

impl From<Refused> for Refusal {
    fn from(Refused { err_code, description }: Refused) -> Self {
        let reason = format!("{description} ({err_code})");
        match err_code {
            code if WRONG_LAST_SEQUENCE.contains(&code) => Self::Moved(reason),
            code if DUPLICATE.contains(&code) => Self::Duplicate(reason),
            _ => Self::Rejected(reason),
        }
    }
}
