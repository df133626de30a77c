//! One attempt: the events at hand or read again, signed, sent, and what came of it written down.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use tokio::time::Duration;

use super::{
    core::FeedKey,
    endpoint::{Endpoint, SettingError},
    guard::CheckedUrl,
    outbound::{Exchange, Outbound},
    signature::{self, Secret},
};
use crate::{
    clock::SharedClock,
    event::FieldPolicy,
    hub::{Hub, frame::Item},
};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const REPLAY: HeaderName = HeaderName::from_static("webhook-replay");

/// An endpoint, made ready for sending: everything that is the same for each of its requests.
pub struct Prepared {
    /// What was asked for.
    pub endpoint: Arc<Endpoint>,
    /// Its receiver, checked.
    pub url: CheckedUrl,
    /// Which fields it sees.
    pub policy: Option<Arc<FieldPolicy>>,
    headers: HeaderMap,
    /// Those without end first, then those that sign longest: the live ones are always the first ones.
    secrets: Vec<Secret>,
    untils: Vec<Option<Timestamp>>,
    outbound: Outbound,
    hub: Hub,
    clock: SharedClock,
}

impl std::fmt::Debug for Prepared {
    /// Without secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("endpoint", &self.endpoint.id).finish_non_exhaustive()
    }
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One event.
    Event,
    /// An array of events.
    Batch,
}

impl Kind {
    fn media_type(self) -> &'static str {
        match self {
            Self::Event => "application/cloudevents+json",
            Self::Batch => "application/cloudevents-batch+json",
        }
    }
}

/// What is to be sent.
#[derive(Debug)]
pub struct Job {
    /// Of which feed.
    pub key: FeedKey,
    /// Sequences; the first names the unit.
    pub members: SmallVec<[u64; 1]>,
    /// The events, if they are at hand.
    pub items: Vec<Item>,
    /// The how manieth attempt, from 1.
    pub attempt: u32,
}

/// What came of it.
#[derive(Debug)]
pub struct Done {
    /// Of which feed.
    pub key: FeedKey,
    /// The unit.
    pub first: u64,
    /// The how manieth attempt, from 1.
    pub attempt: u32,
    /// When it was begun.
    pub at: Timestamp,
    /// The events that were sent.
    pub items: Vec<Item>,
    /// See [`Outcome`].
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// It was made.
    Sent(Exchange),
    /// None of its events is kept any more.
    Gone,
    /// The log can't be read now: nothing was sent.
    Unread(String),
}

impl Prepared {
    /// Makes an endpoint ready.
    ///
    /// # Errors
    /// Where a header or secret of it can't be used, which its creation should have refused.
    pub fn new(
        endpoint: Arc<Endpoint>,
        url: CheckedUrl,
        policy: Option<Arc<FieldPolicy>>,
        outbound: Outbound,
        hub: Hub,
        clock: SharedClock,
    ) -> Result<Self, SettingError> {
        let wrong = |field, message: String| SettingError { field, message };
        let mut headers = HeaderMap::new();
        let agent = concat!("simcast/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in &endpoint.private.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_str(value);
            let (Ok(name), Ok(mut value)) = (name, value) else {
                return Err(wrong("headers", "a header can't be sent".into()));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let mut live: Vec<_> = endpoint.private.secrets.iter().collect();
        live.sort_by_key(|secret| std::cmp::Reverse(secret.until.unwrap_or(Timestamp::MAX)));
        let untils = live.iter().map(|secret| secret.until).collect();
        let secrets = live.iter().map(|secret| Secret::parse(&secret.text)).collect::<Result<_, _>>();
        let secrets = secrets.map_err(|error| wrong("secret", error.to_string()))?;
        Ok(Self { endpoint, url, policy, headers, secrets, untils, outbound, hub, clock })
    }

    /// Sends a body as it is; `id` must not hold a dot.
    pub async fn send(&self, id: &str, kind: Kind, body: Bytes, replay: Option<&str>) -> Exchange {
        let now = self.clock.now();
        let live = self.untils.iter().take_while(|until| until.is_none_or(|until| until > now)).count();
        let signs = self.secrets.get(..live).unwrap_or_default();
        let seconds = now.as_second();
        let mut headers = self.headers.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind.media_type()));
        headers.insert(SIGNATURE, signature::sign(signs, id, seconds, &body));
        headers.insert(TIMESTAMP, HeaderValue::from(seconds));
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert(ID, id);
        }
        if let Some(Ok(replay)) = replay.map(HeaderValue::from_str) {
            headers.insert(REPLAY, replay);
        }
        let timeout = Duration::from_millis(self.endpoint.timeout_ms);
        self.outbound.post(&self.url, headers, body, timeout).await
    }

    /// Makes an attempt.
    pub async fn attempt(self: Arc<Self>, job: Job) -> Done {
        let at = self.clock.now();
        let first = job.members.first().copied().unwrap_or(0);
        let done =
            |items, outcome| Done { key: job.key.clone(), first, attempt: job.attempt, at, items, outcome };
        // What lay ready may have been erased since.
        let ready: Vec<_> =
            job.items.into_iter().filter(|item| !self.hub.log().is_erased(item.event.seq())).collect();
        let items = match ready.len() == job.members.len() {
            true => ready,
            false => match self.hub.items(job.members.to_vec(), self.policy.clone()).await {
                Ok(items) => items.into_iter().flatten().collect(),
                Err(error) => return done(Vec::new(), Outcome::Unread(error.to_string())),
            },
        };
        let Some(head) = items.first() else { return done(items, Outcome::Gone) };
        let replay = match &job.key {
            FeedKey::Live => None,
            FeedKey::Replay(id) => Some(id.as_str()),
        };
        // Members stay together, also where batching was turned off since.
        let exchange = if self.endpoint.batch.is_some() || job.members.len() > 1 {
            self.send(&batch_id(&job.members, &self.hub), Kind::Batch, joined(&items), replay).await
        } else {
            match head.event.keys() {
                Ok(keys) => self.send(keys.id, Kind::Event, head.body.clone(), replay).await,
                Err(_) => return done(items, Outcome::Gone),
            }
        };
        done(items, Outcome::Sent(exchange))
    }
}

/// The id of a batch: of its members alone, so it is the same at each attempt and on each gateway.
fn batch_id(members: &[u64], hub: &Hub) -> String {
    let mut sha = Sha256::new();
    sha.update(hub.log().incarnation().to_be_bytes());
    members.iter().for_each(|seq| sha.update(seq.to_be_bytes()));
    format!("batch_{}", hex::encode(&sha.finalize()[..16]))
}

/// A JSON array of the events.
fn joined(items: &[Item]) -> Bytes {
    let mut body = BytesMut::with_capacity(items.iter().map(|item| item.body.len() + 1).sum::<usize>() + 1);
    for (n, item) in items.iter().enumerate() {
        body.extend_from_slice(if n == 0 { b"[" } else { b"," });
        body.extend_from_slice(&item.body);
    }
    body.extend_from_slice(b"]");
    body.freeze()
}
