//! Sending: slot, key, request, answer; and once more where only the key was wrong.

use std::sync::Arc;

use http::{HeaderValue, Method, header};
use jiff::Timestamp;
use reqwest::{Request, Url};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Config,
    answer::{self, Reader},
    auth::{Auth, Credentials},
    transport::Transport,
};
use crate::{
    clock::SharedClock,
    globalsim::{
        budget::{Class, Gate, Slot},
        error::Error,
    },
};

/// As given, changed in its file, the other style: no request is sent oftener.
const ATTEMPTS_MAX: usize = 3;

/// What all clones of a client share.
#[derive(Debug)]
pub(super) struct Exchange {
    pub transport: Transport,
    pub gate: Gate,
    pub clock: SharedClock,
    pub auth: Auth,
}

/// One whole answer.
pub(super) struct Answer {
    pub body: Value,
    pub server_date: Option<Timestamp>,
    pub asked_at: Timestamp,
    pub answered_at: Timestamp,
    reader: Reader,
}

impl Answer {
    /// The error for a body that is JSON of another shape.
    pub fn wrong_shape(&self, reason: &str) -> Error {
        self.reader.wrong_shape(reason)
    }
}

impl Exchange {
    pub async fn get(&self, config: &Arc<Config>, class: Class, url: Url) -> Result<Answer, Error> {
        let mut credentials = self.auth.current();
        let (mut tried, mut refused) = (Vec::new(), Vec::new());
        let mut refusal: Option<Error> = None;
        for _ in 0..ATTEMPTS_MAX {
            let slot = self.slot(config, class).await?;
            let result = self.attempt(config, url.clone(), &credentials, slot).await;
            tried.push(credentials.style.as_str());
            match result {
                Err(error) if self.auth.in_doubt(&error) => refusal = Some(stronger(refusal, error)),
                Err(error) => {
                    if matches!(error, Error::NotFound { .. } | Error::Invalid { .. }) {
                        self.auth.accepted(&credentials);
                    }
                    return Err(error);
                }
                Ok(answer) => {
                    self.auth.accepted(&credentials);
                    return Ok(answer);
                }
            }
            match self.auth.after_refusal(&credentials) {
                // What upstream accepted before and has just refused is not sent again.
                Some(next) if next != credentials && !refused.contains(&next) => {
                    refused.push(std::mem::replace(&mut credentials, next));
                }
                _ => break,
            }
        }
        Err(match refusal {
            Some(Error::Auth { said, .. }) => {
                tried.dedup();
                Error::Auth { tried: tried.join(" and "), said }
            }
            Some(other) => other,
            None => Error::Transport("no attempt was made".to_owned()),
        })
    }

    async fn slot(&self, config: &Config, class: Class) -> Result<Slot, Error> {
        match config.slot_wait {
            None => Ok(self.gate.acquire(class).await),
            Some(wait) => timeout(wait, self.gate.acquire(class)).await.map_err(|_| Error::BudgetExhausted {
                waited_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    async fn attempt(
        &self,
        config: &Arc<Config>,
        url: Url,
        credentials: &Credentials,
        slot: Slot,
    ) -> Result<Answer, Error> {
        let key = credentials.secret.header(credentials.style)?;
        let mut request = Request::new(Method::GET, url);
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(credentials.style.header_name(), key);
        let asked_at = self.clock.now();
        let deadline = Instant::now() + config.total_timeout;
        let reader = Reader {
            config: Arc::clone(config),
            secret: credentials.secret.clone(),
            deadline,
            now: asked_at,
        };
        let response = timeout_at(deadline, self.transport.send(request, config))
            .await
            .map_err(|_| answer::timeout("answer", config.total_timeout))??;
        let result = reader.read(response).await;
        if let Err(Error::RateLimited { retry_after, .. }) = &result {
            self.gate.on_rate_limited(*retry_after);
        }
        slot.finish();
        let (head, body) = result?;
        Ok(Answer { body, server_date: head.server_date, asked_at, answered_at: self.clock.now(), reader })
    }
}

/// 403 tells more than 401: that key was recognised.
fn stronger(first: Option<Error>, second: Error) -> Error {
    match (first, second) {
        (Some(first @ Error::Forbidden { .. }), Error::Auth { .. }) => first,
        (_, second) => second,
    }
}
