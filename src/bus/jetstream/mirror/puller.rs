//! The one consumer of a process: every message of the stream from a sequence on, in order, none twice and none
//! missing, or an error that says it must be begun again.
//!
//! async-nats has an ordered consumer, but it begins at the first message of the stream when it is reset before the
//! first delivery, whatever start was asked for (0.51, `consumer/pull.rs`, `recreate_consumer_stream`). Here nothing
//! is mended: a gap in the consumer's own numbering, silence, a consumer that is gone or an unknown status end it, and
//! the owner begins a new one behind what it has. So there is one way in which messages come, and one start.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use async_nats::{
    Client, HeaderMap, StatusCode, Subscriber,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, pull},
    },
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

/// Messages asked for at once, and their bytes: with as much again asked for when half has come, that is what may be
/// on its way to this process.
const PULL_MESSAGES: usize = 4_096;
const PULL_BYTES: usize = 8 << 20;
/// How long a request for messages stands.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often the server says that it is there while it has nothing to send.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Silence after which the consumer counts as lost: two heartbeats and a little.
const SILENCE: Duration = Duration::from_secs(12);
/// A consumer that nobody reads is removed by the server after so long.
const INACTIVE: Duration = Duration::from_secs(30);

/// A message of the stream.
#[derive(Debug)]
pub(in crate::bus::jetstream) struct Pulled {
    pub(in crate::bus::jetstream) seq: u64,
    pub(in crate::bus::jetstream) headers: Option<HeaderMap>,
    pub(in crate::bus::jetstream) payload: Bytes,
    /// Of the subject as well.
    pub(super) bytes: usize,
    pub(in crate::bus::jetstream) subject: async_nats::Subject,
}

/// The consumer must be begun again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::bus::jetstream) struct Broken(pub(in crate::bus::jetstream) String);

impl Broken {
    pub(in crate::bus::jetstream) fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(in crate::bus::jetstream) struct Puller {
    client: Client,
    consumer: String,
    requests: String,
    inbox: String,
    messages: Subscriber,
    /// Messages asked for that have neither come nor been given up.
    wanted: usize,
    /// Of the last message, by the consumer's own count.
    delivered: u64,
    heard: Instant,
    /// Connections that the client had made when this began.
    connects: u64,
    ready: VecDeque<Pulled>,
    /// Messages that lay behind the start when the consumer was made.
    pub(super) pending: u64,
}

impl Puller {
    /// A new consumer that begins at a sequence.
    ///
    /// # Errors
    /// [`Broken`].
    pub(in crate::bus::jetstream) async fn begin(
        client: &Client,
        stream: &jetstream::stream::Stream,
        api_prefix: &str,
        start: u64,
    ) -> Result<Self, Broken> {
        // Before anything is asked for, so that a connection lost on the way is noticed too.
        let connects = client.statistics().connects.load(Ordering::Relaxed);
        let name = format!("mirror_{}", client.new_inbox().rsplit('.').next().unwrap_or("x"));
        let config = pull::Config {
            name: Some(name),
            description: Some("fills the local copy of a simcast gateway".to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: start.max(1) },
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(Broken::of)?;
        let info = consumer.cached_info();
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await.map_err(Broken::of)?;
        Ok(Self {
            client: client.clone(),
            requests: format!("{api_prefix}.CONSUMER.MSG.NEXT.{}.{}", info.stream_name, info.name),
            consumer: info.name.clone(),
            inbox,
            messages,
            wanted: 0,
            delivered: 0,
            heard: Instant::now(),
            connects,
            ready: VecDeque::new(),
            pending: info.num_pending,
        })
    }

    /// Whether the connection is still the one on which this began.
    pub(super) fn is_connected(&self) -> bool {
        self.client.statistics().connects.load(Ordering::Relaxed) == self.connects
    }

    /// The consumer's name.
    pub(super) fn name(&self) -> &str {
        &self.consumer
    }

    /// Of the last message received, by the consumer's own count.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The next message. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// [`Broken`].
    pub(in crate::bus::jetstream) async fn next(&mut self) -> Result<Pulled, Broken> {
        loop {
            if let Some(pulled) = self.ready.pop_front() {
                return Ok(pulled);
            }
            self.ask().await?;
            let until = self.heard + SILENCE;
            let message = tokio::time::timeout_at(until, self.messages.next()).await;
            let message = message.map_err(|_| Broken("the server went silent".to_owned()))?;
            self.take(message.ok_or_else(|| Broken("the connection was closed".to_owned()))?)?;
        }
    }

    /// The next message, if it is here already.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) async fn next_ready(&mut self) -> Result<Option<Pulled>, Broken> {
        loop {
            if let Some(pulled) = self.ready.pop_front() {
                return Ok(Some(pulled));
            }
            self.ask().await?;
            match self.messages.next().now_or_never() {
                None => return Ok(None),
                Some(None) => return Err(Broken("the connection was closed".to_owned())),
                Some(Some(message)) => self.take(message)?,
            }
        }
    }

    async fn ask(&mut self) -> Result<(), Broken> {
        if self.wanted > PULL_MESSAGES / 2 {
            return Ok(());
        }
        let request = serde_json::json!({
            "batch": PULL_MESSAGES,
            // The server ends a request whose next message does not fit, so the largest must.
            "max_bytes": PULL_BYTES.max(2 * self.client.max_payload()),
            "expires": PULL_EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        let request = request.to_string().into();
        self.client
            .publish_with_reply(self.requests.clone(), self.inbox.clone(), request)
            .await
            .map_err(Broken::of)?;
        self.wanted += PULL_MESSAGES;
        Ok(())
    }

    /// Files a message, or takes note of what the server says instead of one.
    fn take(&mut self, message: async_nats::Message) -> Result<(), Broken> {
        self.heard = Instant::now();
        match message.status {
            None | Some(StatusCode::OK) => {}
            Some(StatusCode::IDLE_HEARTBEAT) => return Ok(()),
            Some(status) => return self.ended(status, &message),
        }
        let reply = message.reply.as_ref().map(|reply| reply.as_str()).unwrap_or_default();
        let (seq, delivered) = places(reply)
            .ok_or_else(|| Broken(format!("a message came with the reply subject {reply:?}")))?;
        if delivered != self.delivered + 1 {
            return Err(Broken(format!("message {delivered} of the consumer came after {}", self.delivered)));
        }
        self.delivered = delivered;
        self.wanted = self.wanted.saturating_sub(1);
        self.ready.push_back(Pulled {
            seq,
            bytes: message.length,
            headers: message.headers,
            payload: message.payload,
            subject: message.subject,
        });
        Ok(())
    }

    /// A request has ended. What it still had open is said in a header (ADR-13, "Pull requests").
    fn ended(&mut self, status: StatusCode, message: &async_nats::Message) -> Result<(), Broken> {
        let description = message.description.as_deref().unwrap_or_default();
        let open = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
        let open = open.and_then(|open| open.as_str().parse::<usize>().ok());
        let is_over = status == StatusCode::TIMEOUT
            || status == StatusCode::NOT_FOUND
            || (status == StatusCode::REQUEST_TERMINATED && open.is_some());
        if !is_over {
            return Err(Broken(format!("the server ended the consumer: {status} {description}")));
        }
        self.wanted = self.wanted.saturating_sub(open.unwrap_or(PULL_MESSAGES));
        Ok(())
    }

    /// Removes the consumer, so that those of a link that breaks often do not add up; the server would do it later.
    pub(in crate::bus::jetstream) async fn end(self, stream: &jetstream::stream::Stream) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let _ = tokio::time::timeout(PATIENCE, stream.delete_consumer(&self.consumer)).await;
    }
}

/// Sequences in stream and consumer, out of the subject on which a message is acknowledged: nine tokens up to server
/// 2.14, eleven or more since 2.15 (ADR-15).
fn places(reply: &str) -> Option<(u64, u64)> {
    let tokens: Vec<_> = reply.split('.').collect();
    if tokens.get(..2) != Some(&["$JS", "ACK"]) {
        return None;
    }
    let at = match tokens.len() {
        9 => 5,
        11.. => 7,
        _ => return None,
    };
    Some((tokens[at].parse().ok()?, tokens[at + 1].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_found_in_both_forms_of_the_reply() {
        assert_eq!(places("$JS.ACK.S.mirror_x.1.100.7.1790230470084404000.42"), Some((100, 7)));
        assert_eq!(places("$JS.ACK._.hash.S.mirror_x.1.100.7.1790230470084404000.42"), Some((100, 7)));
        assert_eq!(places("$JS.ACK._.hash.S.mirror_x.1.100.7.1790230470084404000.42.token"), Some((100, 7)));
        for bad in ["", "$JS.ACK.S.c.1.100.7.9", "_INBOX.1.2.3.4.5.6.7.8", "$JS.ACK.S.c.1.x.7.1.1"] {
            assert_eq!(places(bad), None, "{bad}");
        }
    }
}
