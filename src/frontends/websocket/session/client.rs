//! What the client sends: credentials and subscriptions.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::{End, Session, Sub, close};
use crate::{
    auth::{Principal, Role},
    event::{Filter, OnExpired, Predicate, Start},
    frontends::{
        ApiError, Code,
        websocket::{
            messages::{self, Ask, Subscribe, message, server},
            wire::Incoming,
        },
    },
    hub::{Encoding, Spec},
};

impl Session {
    /// Greets the client and opens what its URL asked for.
    pub(super) async fn open(&mut self) -> Result<(), End> {
        let context = &self.shared.context;
        let heartbeat = u64::try_from(context.limits.heartbeat.as_millis()).unwrap_or(u64::MAX);
        let text = message(
            &server::WELCOME,
            [
                ("conn", Value::from(self.guard.name())),
                ("server_time", context.clock.now().to_string().into()),
                ("heartbeat_ms", heartbeat.into()),
                ("limits", context.limits.to_json()),
            ],
        );
        self.send(text).await?;
        if self.principal.is_some() {
            self.open_by_url().await?;
        }
        self.arm();
        Ok(())
    }

    async fn open_by_url(&mut self) -> Result<(), End> {
        let Some(subscribe) = self.by_url.take() else { return Ok(()) };
        match self.subscribe(&Value::Null, *subscribe, true).await? {
            Ok(()) => Ok(()),
            // The client asked for nothing else, and may never learn that nothing comes.
            Err(error) => self.fail(&Value::Null, error).await,
        }
    }

    /// Serves what came in.
    pub(super) async fn receive(&mut self, incoming: Incoming) -> Result<(), End> {
        match incoming {
            Incoming::Text(text) => {
                self.count_message().await?;
                self.on_text(text.as_str()).await?;
                self.arm();
                Ok(())
            }
            Incoming::Control => self.count_message().await,
            Incoming::Binary => {
                let error = ApiError::new(Code::InvalidMessage, "messages are text frames");
                self.fail(&Value::Null, error).await
            }
            Incoming::TooLarge => {
                let limits = &self.shared.context.limits;
                let most = match self.principal {
                    Some(_) => limits.message_bytes,
                    None => limits.message_bytes_before_auth,
                };
                let error = ApiError::new(Code::TooLarge, format!("a message has at most {most} bytes"));
                self.send(messages::error(&Value::Null, None, &error)).await?;
                Err(End::Close(close::TOO_BIG, error.code.as_str()))
            }
            Incoming::NotUtf8 => Err(End::Close(close::NOT_UTF8, Code::InvalidMessage.as_str())),
            Incoming::Violation => Err(End::Close(close::PROTOCOL, Code::InvalidMessage.as_str())),
            Incoming::Close => Err(End::Closed),
            Incoming::Gone => Err(End::Gone),
        }
    }

    /// Bounds what a client can make the gateway do.
    async fn count_message(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if now.duration_since(self.heard.0) >= Duration::from_secs(1) {
            self.heard = (now, 0);
        }
        self.heard.1 += 1;
        let most = self.shared.timing.messages_per_second;
        if self.heard.1 <= most {
            return Ok(());
        }
        let error = ApiError::new(Code::RateLimited, format!("at most {most} messages a second are taken"))
            .retry_after(Duration::from_secs(1));
        self.fail(&Value::Null, error).await
    }

    async fn on_text(&mut self, text: &str) -> Result<(), End> {
        let request = match messages::parse(text, &self.shared.context.limits) {
            Ok(request) => request,
            Err(error) => return self.fail(&Value::Null, error).await,
        };
        let id = request.id;
        let result = match request.ask {
            Err(error) => Err(error),
            Ok(Ask::Auth { token }) => return self.authenticate(&id, &token).await,
            Ok(Ask::Ping) => {
                self.send(message(&server::PONG, [("id", id)])).await?;
                return Ok(());
            }
            Ok(_) if self.principal.is_none() => {
                Err(ApiError::new(Code::Unauthorized, "the first message brings the credential")
                    .hint("send {\"type\":\"auth\",\"token\":…}"))
            }
            Ok(Ask::Subscribe(subscribe)) => self.subscribe(&id, *subscribe, false).await?,
            Ok(Ask::Update { sub, filter, warnings }) => self.update(&id, &sub, filter, warnings).await?,
            Ok(Ask::Unsubscribe { sub }) => self.unsubscribe(&id, &sub).await?,
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.send(messages::error(&id, None, &error)).await,
        }
    }

    /// Takes a credential, the first or a new one.
    async fn authenticate(&mut self, id: &Value, token: &str) -> Result<(), End> {
        let found = self.shared.context.auth.authenticate(Some(token));
        let principal = match found.map_err(ApiError::from) {
            Ok(principal) => principal,
            Err(error) => return self.fail(id, error).await,
        };
        if let Err(error) = principal.require(Role::Read) {
            return self.fail(id, error.into()).await;
        }
        self.guard.set_principal(&principal.name);
        self.wire.allow(self.shared.context.limits.message_bytes);
        self.expiry_told = false;
        let before = self.principal.replace(principal);
        if !id.is_null() {
            let left = self.credential_left().map(|left| left.as_secs());
            let fields = [("id", id.clone()), ("expires_in_s", left.map_or(Value::Null, Value::from))];
            self.send(message(&server::AUTHENTICATED, fields)).await?;
        }
        match before {
            None => self.open_by_url().await,
            Some(before) => self.rescope(&before).await,
        }
    }

    /// Holds the subscriptions to a new credential; those that it does not allow end.
    async fn rescope(&mut self, before: &Arc<Principal>) -> Result<(), End> {
        let Some(principal) = self.principal.clone() else { return Ok(()) };
        if principal.scope == before.scope && principal.policy == before.policy {
            return Ok(());
        }
        let mut index = 0;
        while index < self.subs.len() {
            let sub = &mut self.subs[index];
            let result = match principal.predicate(Filter::clone(&sub.filter)) {
                Err(error) => Err(error.into()),
                Ok(predicate) if principal.policy == before.policy => {
                    sub.stream.update(predicate);
                    Ok(())
                }
                Ok(predicate) => {
                    // Other fields are other bytes: opened again where it stands.
                    let start = Start::After(sub.stream.cursor());
                    let spec = spec(&principal, predicate, start, OnExpired::Earliest);
                    match self.shared.context.hub.subscribe(spec).await {
                        Ok(stream) => {
                            sub.stream = stream;
                            Ok(())
                        }
                        Err(error) => Err(ApiError::from(error)),
                    }
                }
            };
            match result {
                Ok(()) => index += 1,
                Err(error) => {
                    let sub = self.subs.remove(index);
                    self.send(messages::error(&Value::Null, Some(&sub.name), &error)).await?;
                }
            }
        }
        Ok(())
    }

    async fn subscribe(
        &mut self,
        id: &Value,
        ask: Subscribe,
        by_url: bool,
    ) -> Result<Result<(), ApiError>, End> {
        let Some(principal) = self.principal.clone() else { return Ok(Ok(())) };
        let Subscribe { sub, filter, warnings, start, on_expired } = ask;
        let predicate = match principal.predicate(filter.clone()) {
            Ok(predicate) => predicate,
            Err(error) => return Ok(Err(error.into())),
        };
        // What the URL opened gives way, but only to a subscription that is in order.
        let replaced = self.find(&sub).filter(|index| self.subs[*index].by_url && !by_url);
        let mut handle = None;
        if replaced.is_none() {
            match self.guard.subscription(&sub, &filter.to_json()) {
                Ok(registered) => handle = Some(registered),
                Err(error) => return Ok(Err(error)),
            }
        }
        let spec = spec(&principal, predicate, start, on_expired);
        let stop = &self.shared.context.stop;
        let opened = tokio::select! {
            opened = self.shared.context.hub.subscribe(spec) => opened,
            () = stop.cancelled() => return Err(End::Gone),
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error.into())),
        };
        if let Some(index) = replaced {
            self.subs.remove(index);
        }
        let handle = match handle.map_or_else(|| self.guard.subscription(&sub, &filter.to_json()), Ok) {
            Ok(handle) => handle,
            Err(error) => return Ok(Err(error)),
        };
        let cursor = stream.opened_at();
        handle.set_position(cursor.seq);
        let sent = Instant::now();
        let fields = answer(id, &sub, cursor.to_string(), warnings);
        self.subs.push(Sub {
            name: sub.into(),
            stream,
            handle,
            filter: Box::new(filter),
            n: 1,
            sent,
            caught_up: false,
            by_url,
        });
        self.send(message(&server::SUBSCRIBED, fields)).await?;
        Ok(Ok(()))
    }

    async fn update(
        &mut self,
        id: &Value,
        name: &str,
        filter: Filter,
        warnings: Vec<String>,
    ) -> Result<Result<(), ApiError>, End> {
        let Some(index) = self.find(name) else { return Ok(Err(unknown_sub(name))) };
        let Some(principal) = &self.principal else { return Ok(Ok(())) };
        let predicate = match principal.predicate(filter.clone()) {
            Ok(predicate) => predicate,
            Err(error) => return Ok(Err(error.into())),
        };
        let sub = &mut self.subs[index];
        sub.stream.update(predicate);
        sub.handle.set_filter(&filter.to_json());
        *sub.filter = filter;
        sub.by_url = false;
        let fields = answer(id, name, sub.stream.cursor().to_string(), warnings);
        self.send(message(&server::UPDATED, fields)).await?;
        Ok(Ok(()))
    }

    async fn unsubscribe(&mut self, id: &Value, name: &str) -> Result<Result<(), ApiError>, End> {
        let Some(index) = self.find(name) else { return Ok(Err(unknown_sub(name))) };
        let sub = self.subs.remove(index);
        self.pinged = Instant::now();
        let cursor = sub.stream.cursor().to_string();
        let fields = [("id", id.clone()), ("sub", name.into()), ("cursor", cursor.into())];
        self.send(message(&server::UNSUBSCRIBED, fields)).await?;
        Ok(Ok(()))
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.subs.iter().position(|sub| *sub.name == *name)
    }
}

fn spec(principal: &Principal, predicate: Predicate, start: Start, on_expired: OnExpired) -> Spec {
    let policy = principal.policy.clone();
    Spec { encoding: Encoding::WebSocket, predicate, policy, start, on_expired }
}

fn answer(id: &Value, sub: &str, cursor: String, warnings: Vec<String>) -> [(&'static str, Value); 4] {
    [("id", id.clone()), ("sub", sub.into()), ("cursor", cursor.into()), ("warnings", warnings.into())]
}

fn unknown_sub(name: &str) -> ApiError {
    ApiError::new(Code::SubUnknown, format!("there is no subscription {name:?}")).field("sub")
}
