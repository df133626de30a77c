//! What may be asked of the webhooks: one core under REST, gRPC and the command line. Endpoints here, sending again in
//! [`replays`], what became of events in [`deliveries`], how endpoints do in [`shown`].
//!
//! Requests may reach any gateway. They write what is wanted, and whoever serves the endpoint does it; what they show
//! comes from this gateway's memory where it serves the endpoint, else from the last checkpoint (200 ms old).

mod answers;
mod deliveries;
mod replays;
mod shown;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use tokio::time::Duration;

pub use answers::{Deliveries, Delivery, ReplayRequest, ServiceError, Shown, Stats, Status, TestResult};

use super::{
    ENDPOINTS_MAX, Tools,
    attempt::{Kind, Prepared},
    attempts::{self, Attempt},
    courier::Live,
    endpoint::{Endpoint, LiveSecret, Private, SECRETS_MAX, Settings},
    signature::Secret,
    store::{At, Checkpoint, StoreError},
    verdict::{Verdict, judge},
};
use crate::{
    auth::Principal,
    bus::KvError,
    event::{Cursor, Filter, FilterLimits, Iccid, OnExpired, Predicate, Start, json as event_json},
};

/// Times that a change is made anew because somebody else was faster.
const RACES_MAX: u32 = 8;
/// Longest time that a replaced secret goes on signing.
pub const OVERLAP_MAX: Duration = Duration::from_secs(7 * 86_400);
/// How long it does if nobody says otherwise.
pub const OVERLAP: Duration = Duration::from_secs(86_400);

/// Asks; cheap to clone. See the head of this file.
#[derive(Debug, Clone)]
pub struct Webhooks {
    tools: Arc<Tools>,
}

impl Webhooks {
    pub(super) fn new(tools: Arc<Tools>) -> Self {
        Self { tools }
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> super::store::Store {
        self.tools.store.clone()
    }

    #[cfg(test)]
    pub(super) fn live_of(&self, id: &str) -> Option<Arc<Live>> {
        self.live(id)
    }

    /// Endpoints that this gateway serves.
    #[cfg(test)]
    pub(super) fn served(&self) -> usize {
        self.tools.lives.read().len()
    }

    #[cfg(test)]
    pub(super) fn any_live(&self) -> Option<Arc<Live>> {
        self.tools.lives.read().values().next().cloned()
    }

    /// Whether a caller may know of an endpoint: its own, or all if the caller is held to no filter and no field policy.
    fn may_see(principal: &Principal, endpoint: &Endpoint) -> bool {
        endpoint.created_by == principal.name || (principal.scope.is_none() && principal.policy.is_none())
    }

    async fn found(&self, principal: &Principal, id: &str) -> Result<At<Endpoint>, ServiceError> {
        let missing = || ServiceError::NotFound { what: "webhook", id: id.to_owned() };
        if !is_name(id) {
            return Err(missing());
        }
        let found = self.tools.store.endpoint(id).await?.ok_or_else(missing)?;
        if Self::may_see(principal, &found.value) { Ok(found) } else { Err(missing()) }
    }

    fn live(&self, id: &str) -> Option<Arc<Live>> {
        self.tools.lives.read().get(id).cloned()
    }

    async fn check(&self, principal: &Principal, settings: &Settings) -> Result<(), ServiceError> {
        settings.check()?;
        let invalid_url = |message: String| ServiceError::Invalid {
            field: "url".into(),
            message,
            hint: Some("webhooks.allowed_networks in the configuration opens exceptions".into()),
        };
        let url = self.tools.guard.check(&settings.url).map_err(|error| invalid_url(error.to_string()))?;
        // A name that can't be looked up now may be there later; one that leads to a forbidden place is refused now.
        if let Err(error) = self.tools.guard.resolve(&url).await
            && error.is_refusal()
        {
            return Err(invalid_url(error.to_string()));
        }
        principal.predicate(settings.filter.clone()).map_err(|forbidden| ServiceError::ForbiddenField {
            field: forbidden.field.to_owned(),
            message: forbidden.to_string(),
        })?;
        Ok(())
    }

    /// The position of a start.
    async fn resolve(&self, start: Start, predicate: &Predicate) -> Result<Cursor, ServiceError> {
        let spec = crate::hub::Spec {
            encoding: crate::hub::Encoding::Items,
            predicate: predicate.clone(),
            policy: None,
            start,
            on_expired: OnExpired::Fail,
        };
        Ok(self.tools.hub.subscribe(spec).await?.opened_at())
    }

    /// Makes an endpoint; gives it and its secret, which is never shown again.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn create(
        &self,
        principal: &Principal,
        settings: Settings,
        start: Start,
        secret: Option<String>,
    ) -> Result<(Shown, String), ServiceError> {
        if !self.tools.store.can_seal() {
            return Err(ServiceError::Unavailable(
                "no key for secrets is configured: set webhooks.secret_key_file on every gateway".into(),
            ));
        }
        self.check(principal, &settings).await?;
        if self.tools.store.endpoints().await?.len() >= ENDPOINTS_MAX {
            let message = format!("there are {ENDPOINTS_MAX} webhooks, which is the most that is allowed");
            return Err(ServiceError::Limit(message));
        }
        let secret = self.secret(secret)?;
        let predicate = Predicate::new(settings.filter.clone(), principal.scope.clone());
        let cursor = self.resolve(start, &predicate).await?;
        let now = self.tools.clock.now();
        let mut endpoint = Endpoint {
            id: self.tools.new_id("whk_"),
            url: String::new(),
            filter: Filter::default(),
            description: String::new(),
            ordering: Default::default(),
            max_in_flight: 0,
            rate_limit_per_second: None,
            batch: None,
            timeout_ms: 0,
            retry_schedule: Vec::new(),
            created_at: now,
            updated_at: now,
            created_by: principal.name.clone(),
            paused: false,
            disabled: None,
            seeks: 0,
            seek_to: None,
            private: Private {
                secrets: vec![LiveSecret { text: secret.clone(), until: None }],
                headers: BTreeMap::new(),
            },
        };
        endpoint.apply(settings, now);
        let checkpoint = Checkpoint::at(cursor);
        self.tools.store.create(&endpoint, &checkpoint).await?;
        let endpoint = Arc::new(endpoint);
        // The caller finds it at once, before the watch tells of it.
        self.tools.table.write().endpoints.entry(endpoint.id.clone()).or_insert_with(|| endpoint.clone());
        Ok((self.shown(endpoint).await?, secret))
    }

    fn secret(&self, given: Option<String>) -> Result<String, ServiceError> {
        match given {
            Some(text) => {
                let invalid =
                    |message: String| ServiceError::Invalid { field: "secret".into(), message, hint: None };
                Secret::parse(&text).map_err(|error| invalid(error.to_string()))?;
                Ok(text)
            }
            None => Secret::generate()
                .map(|secret| secret.reveal())
                .map_err(|error| ServiceError::Unavailable(error.to_string())),
        }
    }

    /// Changes an endpoint by `change`, which may be called again where somebody else was faster.
    async fn change(
        &self,
        principal: &Principal,
        id: &str,
        mut change: impl FnMut(&mut Endpoint) -> Result<(), ServiceError>,
    ) -> Result<Arc<Endpoint>, ServiceError> {
        for _ in 0..RACES_MAX {
            let At { mut value, revision } = self.found(principal, id).await?;
            change(&mut value)?;
            value.updated_at = self.tools.clock.now();
            match self.tools.store.update(&value, revision).await {
                Ok(_) => {
                    let value = Arc::new(value);
                    let mut table = self.tools.table.write();
                    // The watch may have told of a later change by now; then that one stays.
                    let current = table.endpoints.entry(id.to_owned()).or_insert_with(|| value.clone());
                    if current.updated_at <= value.updated_at {
                        *current = value.clone();
                    }
                    return Ok(value);
                }
                Err(StoreError::Kv(KvError::Conflict)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Kv(KvError::Conflict).into())
    }

    /// Changes settings. The settings are those that `merge` makes of the present ones.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn update(
        &self,
        principal: &Principal,
        id: &str,
        merge: impl Fn(Settings) -> Result<Settings, ServiceError>,
    ) -> Result<Shown, ServiceError> {
        let present = self.found(principal, id).await?;
        let wanted = merge(present.value.settings())?;
        self.check(principal, &wanted).await?;
        let now = self.tools.clock.now();
        let changed = self
            .change(principal, id, |endpoint| {
                let settings = merge(endpoint.settings())?;
                settings.check()?;
                if settings.url != wanted.url || settings.filter != wanted.filter {
                    return Err(ServiceError::Conflict(
                        "somebody else changed it at the same time; try again".into(),
                    ));
                }
                endpoint.apply(settings, now);
                Ok(())
            })
            .await?;
        self.shown(changed).await
    }

    /// Deletes an endpoint with everything about it but what the stream was told.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn delete(&self, principal: &Principal, id: &str) -> Result<(), ServiceError> {
        let found = self.found(principal, id).await?;
        self.tools.store.delete(id, found.revision).await?;
        self.tools.table.write().endpoints.remove(id);
        if let Err(error) = self.tools.attempts.forget(id).await {
            tracing::warn!(%error, id, "the attempts of a deleted webhook could not be removed; they expire");
        }
        Ok(())
    }

    /// Sends nothing until it is resumed; its position stays.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn pause(&self, principal: &Principal, id: &str) -> Result<Shown, ServiceError> {
        let changed = self.change(principal, id, |endpoint| {
            endpoint.paused = true;
            Ok(())
        });
        self.shown(changed.await?).await
    }

    /// Goes on where it was paused or disabled.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn resume(&self, principal: &Principal, id: &str) -> Result<Shown, ServiceError> {
        let changed = self.change(principal, id, |endpoint| {
            (endpoint.paused, endpoint.disabled) = (false, None);
            Ok(())
        });
        self.shown(changed.await?).await
    }

    /// Goes on elsewhere: what is pending is not sent any more, unless it lies behind the new position.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn seek(&self, principal: &Principal, id: &str, start: Start) -> Result<Shown, ServiceError> {
        let found = self.found(principal, id).await?;
        let predicate = Predicate::new(found.value.filter.clone(), principal.scope.clone());
        let cursor = self.resolve(start, &predicate).await?;
        let changed = self.change(principal, id, |endpoint| {
            endpoint.seeks += 1;
            endpoint.seek_to = Some(cursor.to_string());
            Ok(())
        });
        let mut shown = self.shown(changed.await?).await?;
        shown.cursor = cursor.to_string();
        Ok(shown)
    }

    /// A new secret signs from now on; those before go on signing for `overlap`.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn rotate_secret(
        &self,
        principal: &Principal,
        id: &str,
        overlap: Duration,
        secret: Option<String>,
    ) -> Result<(Shown, String), ServiceError> {
        if overlap > OVERLAP_MAX {
            let message = format!("overlap_s is 0 to {}", OVERLAP_MAX.as_secs());
            return Err(ServiceError::Invalid { field: "overlap_s".into(), message, hint: None });
        }
        let secret = self.secret(secret)?;
        let now = self.tools.clock.now();
        let until =
            now.checked_add(jiff::SignedDuration::try_from(overlap).unwrap_or_default()).unwrap_or(now);
        let changed = self.change(principal, id, |endpoint| {
            let secrets = &mut endpoint.private.secrets;
            secrets.retain(|one| one.text != secret && one.until.is_none_or(|until| until > now));
            for old in secrets.iter_mut() {
                old.until = Some(old.until.map_or(until, |earlier| earlier.min(until)));
            }
            secrets.retain(|one| one.until.is_none_or(|until| until > now));
            if secrets.len() >= SECRETS_MAX {
                return Err(ServiceError::Limit(format!(
                    "{SECRETS_MAX} secrets sign at the same time already; wait until one has ended, or rotate with overlap_s 0"
                )));
            }
            secrets.insert(0, LiveSecret { text: secret.clone(), until: None });
            Ok(())
        });
        Ok((self.shown(changed.await?).await?, secret))
    }

    /// Sends one event of the type `simcast.test` now, whatever else the endpoint does; its result moves nothing.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn test(&self, principal: &Principal, id: &str) -> Result<TestResult, ServiceError> {
        let endpoint = Arc::new(self.found(principal, id).await?.value);
        let invalid = |message: String| ServiceError::Invalid { field: "url".into(), message, hint: None };
        let url = self.tools.guard.check(&endpoint.url).map_err(|error| invalid(error.to_string()))?;
        let now = self.tools.clock.now();
        let event_id = self.tools.new_id("test_");
        let mut body = serde_json::Map::new();
        body.insert("webhook_id".into(), json!(endpoint.id));
        body.insert("message".into(), json!("This is a test of a webhook; nothing happened to a SIM."));
        let event = crate::event::Event::gateway(event_id.clone(), "simcast.test", now, body);
        let mut bytes = Vec::new();
        event_json::write(&event, now, &mut bytes);
        let is_batch = endpoint.batch.is_some();
        if is_batch {
            bytes.insert(0, b'[');
            bytes.push(b']');
        }
        let tools = &self.tools;
        let prepared = Prepared::new(
            endpoint.clone(),
            url,
            None,
            tools.outbound.clone(),
            tools.hub.clone(),
            tools.clock.clone(),
        )?;
        let kind = if is_batch { Kind::Batch } else { Kind::Event };
        let exchange = prepared.send(&event_id, kind, bytes.into(), None).await;
        let delivered = matches!(judge(&exchange, tools.clock.now()), Verdict::Delivered { .. });
        let mut attempt = Attempt::of(&exchange, now);
        attempt.webhook.clone_from(&endpoint.id);
        attempt.event_id.clone_from(&event_id);
        attempt.members = 1;
        attempt.attempt = 1;
        attempt.outcome = if delivered { attempts::Outcome::Delivered } else { attempts::Outcome::Failed };
        tools.attempts.record(attempt.clone());
        Ok(TestResult { id: event_id, delivered, attempt })
    }

    /// Removes what this gateway wrote down of attempts to deliver a SIM's events, answers included; gives how many
    /// attempts that were. The events themselves stay in the log.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] for what is no ICCID; a caller that is held to a filter or field policy may not.
    pub async fn erase(&self, principal: &Principal, iccid: &str) -> Result<u64, ServiceError> {
        let invalid = |message: String| ServiceError::Invalid { field: "iccid".into(), message, hint: None };
        let iccid = Iccid::parse(iccid).map_err(|error| invalid(error.to_string()))?;
        if principal.scope.is_some() || principal.policy.is_some() {
            return Err(ServiceError::ForbiddenField {
                field: "iccid".into(),
                message: "a token with a filter or a field policy may not erase what others may see".into(),
            });
        }
        let erased = self.tools.attempts.erase(iccid.as_str()).await;
        erased.map_err(|error| ServiceError::Unavailable(format!("the attempts can't be erased: {error}")))
    }

    /// Reads a filter with the limits of request bodies, and its warnings.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] names the list.
    pub fn filter(value: &Value, limits: FilterLimits) -> Result<(Filter, Vec<String>), ServiceError> {
        Filter::from_json(value, limits).map_err(|error| ServiceError::Invalid {
            field: error.field,
            message: error.message,
            hint: error.hint,
        })
    }
}

fn is_name(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
