//! `Interact`: several named subscriptions on one stream, changed while it runs.
//!
//! Commands are read one at a time, each after the answer to the one before has been taken by the transport; so are
//! batches, turn by turn between the subscriptions. Nothing is queued: a client that sends without reading is held
//! back by HTTP/2. A client that closes its side keeps what it has subscribed; with nothing subscribed the stream
//! ends.

mod feed;

use std::{future::poll_fn, sync::Arc, task::Poll};

use futures_util::{Stream as _, stream};
use tokio::time::Instant;
use tonic::{Status, codec::Streaming};

use super::{
    call::Call,
    control::{self, Tag},
    frame::{self, Frame},
    lifeline::{Lifeline, Signal},
    request,
    subscribe::Frames,
};
use crate::{
    frontends::{ApiError, Code, Context, registry::ConnectionGuard},
    hub::Delivery,
    proto::{self, InteractRequest, InteractResponse, interact_request::Command, interact_response::Control},
};
use feed::Feed;

/// Opens the stream.
///
/// # Errors
/// The status that answers the call.
pub(super) fn open(
    context: Context,
    call: Call,
    requests: Streaming<InteractRequest>,
) -> Result<Frames, Status> {
    let guard = call.connect(&context)?;
    let session = Session {
        lifeline: Lifeline::new(&context, Arc::clone(&call.principal), call.deadline),
        call,
        requests: Some(requests),
        feeds: Vec::new(),
        turn: 0,
        commands_first: true,
        sent_at: Instant::now(),
        ended: false,
        guard,
        context,
    };
    Ok(Box::pin(stream::unfold(Box::new(session), |mut session| async move {
        let item = session.step().await?;
        Some((item, session))
    })))
}

struct Session {
    context: Context,
    call: Call,
    /// None once the client has closed its side.
    requests: Option<Streaming<InteractRequest>>,
    feeds: Vec<Feed>,
    /// Which feed is asked first.
    turn: usize,
    /// Commands and batches take turns, so that neither can starve the other.
    commands_first: bool,
    /// When the stream itself last spoke, for its heartbeat while nothing is subscribed.
    sent_at: Instant,
    lifeline: Lifeline,
    ended: bool,
    guard: ConnectionGuard,
}

enum Turn {
    Signal(Signal),
    Command(Option<Result<InteractRequest, Status>>),
    Delivery(usize, Delivery),
}

impl Session {
    /// The next frame; None ends the stream.
    async fn step(&mut self) -> Option<Result<Frame, Status>> {
        while !self.ended {
            if self.requests.is_none() && self.feeds.is_empty() {
                return None;
            }
            let turn = self.next_turn().await;
            self.commands_first = !matches!(turn, Turn::Command(_));
            match turn {
                Turn::Delivery(index, delivery) => return Some(Ok(self.deliver(index, delivery))),
                Turn::Command(Some(Ok(request))) => return Some(Ok(self.command(request).await)),
                Turn::Command(Some(Err(status))) => return Some(Err(self.end(frame::refused(status)))),
                Turn::Command(None) => self.requests = None,
                Turn::Signal(Signal::Heartbeat) => return Some(Ok(self.heartbeat())),
                Turn::Signal(Signal::Draining) => {
                    return Some(Ok(Tag::default().control(&control::draining(None))));
                }
                Turn::Signal(Signal::End(status)) => return Some(Err(self.end(status))),
            }
        }
        None
    }

    async fn next_turn(&mut self) -> Turn {
        let beat_at = self.beat_at();
        let Self { lifeline, requests, feeds, turn, commands_first, .. } = self;
        poll_fn(|cx| {
            if let Poll::Ready(signal) = lifeline.poll(cx, beat_at) {
                return Poll::Ready(Turn::Signal(signal));
            }
            for commands in [*commands_first, !*commands_first] {
                if commands {
                    if let Some(requests) = requests
                        && let Poll::Ready(request) = std::pin::Pin::new(requests).poll_next(cx)
                    {
                        return Poll::Ready(Turn::Command(request));
                    }
                } else {
                    for offset in 0..feeds.len() {
                        let index = (*turn + offset) % feeds.len();
                        if let Poll::Ready(delivery) = feeds[index].poll_next(cx) {
                            *turn = index + 1;
                            return Poll::Ready(Turn::Delivery(index, delivery));
                        }
                    }
                }
            }
            Poll::Pending
        })
        .await
    }

    /// When the first heartbeat is due.
    fn beat_at(&self) -> Instant {
        let own = self.sent_at + self.context.limits.heartbeat;
        self.feeds.iter().map(Feed::beat_at).min().unwrap_or(own)
    }

    fn heartbeat(&mut self) -> Frame {
        let upstream = Arc::clone(&self.context.status.borrow());
        match self.feeds.iter_mut().min_by_key(|feed| feed.beat_at()) {
            Some(feed) => feed.heartbeat(&upstream),
            None => {
                self.sent_at = Instant::now();
                Tag::default().control(&control::heartbeat(None, &upstream))
            }
        }
    }

    fn deliver(&mut self, index: usize, delivery: Delivery) -> Frame {
        match self.feeds[index].deliver(delivery) {
            Ok(frame) => frame,
            Err(error) => {
                let feed = self.feeds.remove(index);
                failure(feed.name(), "", &ApiError::from(error))
            }
        }
    }

    /// Obeys a command; gives its answer. What goes wrong is the command's alone.
    async fn command(&mut self, request: InteractRequest) -> Frame {
        self.sent_at = Instant::now();
        let InteractRequest { id, command } = request;
        let name = match &command {
            Some(Command::Add(add)) => add.subscription_id.clone(),
            Some(Command::Update(update)) => update.subscription_id.clone(),
            Some(Command::Remove(remove)) => remove.subscription_id.clone(),
            Some(Command::Ping(_)) | None => String::new(),
        };
        let answer = match command {
            Some(Command::Add(add)) => self.add(&id, add).await,
            Some(Command::Update(update)) => self.update(&id, update),
            Some(Command::Remove(remove)) => self.remove(&id, &remove.subscription_id),
            Some(Command::Ping(_)) => {
                Ok(answer(InteractResponse { request_id: id.clone(), ..of(Control::Pong(proto::Pong {})) }))
            }
            None => {
                Err(ApiError::new(Code::InvalidMessage, "the request holds no command this gateway knows")
                    .field("command"))
            }
        };
        answer.unwrap_or_else(|error| failure(&name, &id, &error))
    }

    async fn add(&mut self, id: &str, add: proto::AddSubscription) -> Result<Frame, ApiError> {
        let name = add.subscription_id;
        request::subscription_id(&name)?;
        let wanted =
            request::wanted(add.request.unwrap_or_default(), &self.call.principal, &self.context.limits)
                .map_err(|mut error| {
                    error.field = error.field.map(|field| format!("request.{field}").into());
                    error
                })?;
        let filter = wanted.spec.predicate.filter().to_json();
        let handle =
            self.guard.subscription(&name, &filter).map_err(|error| error.field("subscription_id"))?;
        let subscription = self.context.hub.subscribe(wanted.spec).await?;
        let opened = control::opened(subscription.opened_at(), wanted.warnings, wanted.heartbeat);
        let frame = Tag::new(&name, id).control(&opened);
        self.feeds.push(Feed::new(name, subscription, wanted.heartbeat, handle));
        Ok(frame)
    }

    fn update(&mut self, id: &str, update: proto::UpdateSubscription) -> Result<Frame, ApiError> {
        let index = self.find(&update.subscription_id)?;
        let (predicate, warnings) =
            request::predicate(update.filter, &self.call.principal, &self.context.limits)?;
        let feed = &mut self.feeds[index];
        let cursor = feed.update(predicate);
        Ok(answer(InteractResponse {
            cursor: cursor.to_string(),
            subscription_id: update.subscription_id,
            request_id: id.to_owned(),
            ..of(Control::Updated(proto::Updated { warnings }))
        }))
    }

    fn remove(&mut self, id: &str, name: &str) -> Result<Frame, ApiError> {
        let index = self.find(name)?;
        let cursor = self.feeds.remove(index).cursor();
        Ok(answer(InteractResponse {
            cursor: cursor.to_string(),
            subscription_id: name.to_owned(),
            request_id: id.to_owned(),
            ..of(Control::Removed(proto::Removed {}))
        }))
    }

    fn find(&self, name: &str) -> Result<usize, ApiError> {
        self.feeds.iter().position(|feed| feed.name() == name).ok_or_else(|| {
            ApiError::new(Code::SubUnknown, format!("no subscription {name:?} on this stream"))
                .field("subscription_id")
        })
    }

    fn end(&mut self, status: Status) -> Status {
        self.ended = true;
        self.feeds.clear();
        self.requests = None;
        status
    }
}

fn of(control: Control) -> InteractResponse {
    InteractResponse { control: Some(control), ..Default::default() }
}

fn answer(message: InteractResponse) -> Frame {
    Frame::message(&message)
}

/// Tells that a command or a subscription failed. Where a cursor can't be used, `cursor` is the oldest that can.
fn failure(subscription_id: &str, request_id: &str, error: &ApiError) -> Frame {
    let mut message = error.message.to_string();
    if let Some(hint) = &error.hint {
        message.push_str("; ");
        message.push_str(hint);
    }
    answer(InteractResponse {
        cursor: error.range.as_ref().map(|range| range.oldest.to_string()).unwrap_or_default(),
        subscription_id: subscription_id.to_owned(),
        request_id: request_id.to_owned(),
        ..of(Control::Error(proto::SubscriptionError {
            code: error.code.as_str().to_owned(),
            message,
            field: error.field.as_deref().unwrap_or_default().to_owned(),
        }))
    })
}
