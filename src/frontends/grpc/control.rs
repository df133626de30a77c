//! Control messages. `InteractResponse` has the fields of `SubscribeResponse` under the same numbers and three more,
//! so that one encoding serves both: an `Interact` stream puts its own fields in front ([`Tag`]).

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::frame::Frame;
use crate::{
    event::{Cursor, Gap, protobuf::timestamp},
    ingest::status::{Status, UpstreamState},
    proto::{self, SubscribeResponse, subscribe_response::Control},
};

/// Within which a client should come back after [`draining`], at a random moment.
const RECONNECT_WITHIN: Duration = Duration::from_secs(5);

/// What an `Interact` stream adds to a message: the subscription that it is about, the command that it answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Tag(Bytes);

impl Tag {
    /// Either may be empty.
    pub(super) fn new(subscription_id: &str, request_id: &str) -> Self {
        let fields = proto::InteractResponse {
            subscription_id: subscription_id.to_owned(),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        Self(fields.encode_to_vec().into())
    }

    /// A message or batch of `SubscribeResponse` with these fields.
    pub(super) fn frame(&self, body: Bytes) -> Frame {
        Frame::batch(&self.0, body)
    }

    /// A control message with these fields.
    pub(super) fn control(&self, message: &SubscribeResponse) -> Frame {
        self.frame(message.encode_to_vec().into())
    }
}

fn message(cursor: Option<Cursor>, control: Control) -> SubscribeResponse {
    SubscribeResponse {
        events: Vec::new(),
        cursor: cursor.map(|cursor| cursor.to_string()).unwrap_or_default(),
        control: Some(control),
    }
}

/// The subscription stands; everything after `cursor` that matches comes.
pub(super) fn opened(cursor: Cursor, warnings: Vec<String>, heartbeat: Duration) -> SubscribeResponse {
    let heartbeat_interval = Some(duration(heartbeat));
    message(Some(cursor), Control::Opened(proto::Opened { warnings, heartbeat_interval }))
}

/// The seam between history and live.
pub(super) fn caught_up(cursor: Cursor) -> SubscribeResponse {
    message(Some(cursor), Control::CaughtUp(proto::CaughtUp {}))
}

/// Quiet, not blind: how current the poller is. Without cursor where no subscription is meant.
pub(super) fn heartbeat(cursor: Option<Cursor>, status: &Status) -> SubscribeResponse {
    let beat = proto::Heartbeat {
        seen_until: status.seen_until.map(timestamp),
        upstream: upstream(status.state).into(),
    };
    message(cursor, Control::Heartbeat(beat))
}

/// A range that the subscription can't have; reading goes on after `cursor`.
pub(super) fn gap(cursor: Cursor, gap: &Gap) -> SubscribeResponse {
    message(Some(cursor), Control::Gap(wire_gap(gap)))
}

/// A gap as the wire has it.
pub(super) fn wire_gap(gap: &Gap) -> proto::Gap {
    proto::Gap {
        from: gap.from.map(|cursor| cursor.to_string()),
        to: gap.to.map(|cursor| cursor.to_string()),
        from_time: gap.from_time.map(timestamp),
        to_time: gap.to_time.map(timestamp),
        lost: gap.lost,
        reason: gap.reason.as_str().to_owned(),
    }
}

/// The gateway is about to stop.
pub(super) fn draining(cursor: Option<Cursor>) -> SubscribeResponse {
    let reconnect_within = Some(duration(RECONNECT_WITHIN));
    message(cursor, Control::Draining(proto::Draining { reconnect_within }))
}

/// The poller's state as the wire names it.
pub(super) fn upstream(state: UpstreamState) -> proto::UpstreamState {
    match state {
        UpstreamState::Ok => proto::UpstreamState::Ok,
        UpstreamState::Stale => proto::UpstreamState::Stale,
        UpstreamState::AuthFailed => proto::UpstreamState::AuthFailed,
        UpstreamState::RateLimited => proto::UpstreamState::RateLimited,
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    // All durations here are below the 292 billion years that the message holds.
    duration.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::{event::GapReason, proto::interact_response};

    async fn tagged(tag: &Tag, message: &SubscribeResponse) -> proto::InteractResponse {
        let frame = tag.control(message);
        let body = super::super::frame::FrameBody::new(futures_util::stream::iter([Ok(frame)]));
        let bytes = body.collect().await.unwrap().to_bytes();
        proto::InteractResponse::decode(&bytes[5..]).unwrap()
    }

    #[tokio::test]
    async fn every_control_message_means_the_same_on_both_streams() {
        let cursor = Cursor { incarnation: 1, seq: 2, tag: 3 };
        let time = "2025-11-05T08:00:00Z".parse().unwrap();
        let lost = Gap {
            from: None,
            to: Some(cursor),
            from_time: None,
            to_time: Some(time),
            lost: Some(4),
            reason: GapReason::Retention,
        };
        let status = Status { state: UpstreamState::Ok, seen_until: Some(time), ..Status::default() };
        let tag = Tag::new("sub", "req");
        let messages = [
            opened(cursor, vec!["w".into()], Duration::from_secs(15)),
            caught_up(cursor),
            heartbeat(Some(cursor), &status),
            gap(cursor, &lost),
            draining(None),
        ];
        for message in messages {
            let shown = tagged(&tag, &message).await;
            assert_eq!((shown.subscription_id.as_str(), shown.request_id.as_str()), ("sub", "req"));
            assert_eq!(shown.cursor, message.cursor);
            use interact_response::Control as Shown;
            let same = match (shown.control.unwrap(), message.control.unwrap()) {
                (Shown::Opened(a), Control::Opened(b)) => a == b && a.heartbeat_interval.is_some(),
                (Shown::CaughtUp(a), Control::CaughtUp(b)) => a == b,
                (Shown::Heartbeat(a), Control::Heartbeat(b)) => a == b && a.seen_until.is_some(),
                (Shown::Gap(a), Control::Gap(b)) => a == b && a.lost == Some(4),
                (Shown::Draining(a), Control::Draining(b)) => a == b,
                _ => false,
            };
            assert!(same);
        }
    }
}
