//! What is due when: credential, heartbeats, drain.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{End, Session};
use crate::frontends::{
    ApiError, Code,
    latch::Latch,
    websocket::messages::{message, server},
};

impl Session {
    /// The timer has fired: does what is due, and sets it to what is due next.
    pub(super) async fn on_time(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.close_at.is_some_and(|at| at <= now) {
            let code = Code::Draining;
            return Err(End::Close(code.close().unwrap_or_default(), code.as_str()));
        }
        if self.principal.is_none() && self.auth_deadline() <= now {
            let error = ApiError::new(Code::AuthTimeout, "no credential came in time")
                .hint("send {\"type\":\"auth\",\"token\":…} first, or an Authorization header");
            return self.fail(&Value::Null, error).await;
        }
        if let Some(left) = self.credential_left() {
            if left.is_zero() {
                let error = ApiError::new(Code::TokenExpired, "the token has expired");
                return self.fail(&Value::Null, error).await;
            }
            if left <= self.shared.timing.expiry_notice && !self.expiry_told {
                self.expiry_told = true;
                let fields = [("in_s", Value::from(left.as_secs()))];
                self.send(message(&server::AUTH_EXPIRING, fields)).await?;
            }
        }
        self.heartbeat(now).await?;
        self.arm();
        Ok(())
    }

    /// The gateway drains, or stops.
    pub(super) async fn on_signal(&mut self) -> Result<(), End> {
        if self.close_at.is_some() {
            return Err(End::Gone);
        }
        self.signal = Latch::new(self.shared.context.stop.clone().cancelled_owned());
        self.close_at = Some(Instant::now() + self.shared.slots.next(self.shared.timing.drain));
        let within = u64::try_from(self.shared.timing.drain.as_millis()).unwrap_or(u64::MAX);
        self.send(message(&server::DRAINING, [("reconnect_within_ms", Value::from(within))])).await?;
        self.arm();
        Ok(())
    }

    /// Sets the timer to what is due next. To be called after anything that may bring that forward.
    pub(super) fn arm(&mut self) {
        let heartbeat = self.shared.context.limits.heartbeat;
        let quiet_since = self.subs.iter().map(|sub| sub.sent).min().unwrap_or(self.pinged);
        let mut next = quiet_since + heartbeat;
        if self.principal.is_none() {
            next = next.min(self.auth_deadline());
        }
        if let Some(at) = self.close_at {
            next = next.min(at);
        }
        if let Some(left) = self.credential_left() {
            let notice = left.saturating_sub(self.shared.timing.expiry_notice);
            let due = if self.expiry_told { left } else { notice };
            // A timer of whole milliseconds may fire a little before the wall clock says the same.
            next = next.min(Instant::now() + due + Duration::from_millis(1));
        }
        self.timer.as_mut().reset(next);
    }

    fn auth_deadline(&self) -> Instant {
        self.opened + self.shared.context.limits.auth_timeout
    }

    /// How long the credential still holds; None for ever.
    pub(super) fn credential_left(&self) -> Option<Duration> {
        let expires_at = self.principal.as_ref()?.expires_at?;
        let left = expires_at.duration_since(self.shared.context.clock.now());
        Some(left.try_into().unwrap_or(Duration::ZERO))
    }

    /// A bookmark for each subscription that was quiet for a while; a ping where there is none.
    async fn heartbeat(&mut self, now: Instant) -> Result<(), End> {
        let due = now.checked_sub(self.shared.context.limits.heartbeat);
        let is_due = |sent: Instant| due.is_some_and(|due| sent <= due);
        if self.subs.is_empty() && is_due(self.pinged) {
            self.pinged = now;
            let limit = self.shared.context.limits.write_timeout;
            return Ok(self.wire.ping(limit).await?);
        }
        for index in 0..self.subs.len() {
            let sub = &mut self.subs[index];
            if !is_due(sub.sent) {
                continue;
            }
            sub.sent = now;
            let cursor = sub.stream.cursor();
            sub.handle.set_position(cursor.seq);
            let status = self.shared.context.status.borrow().clone();
            let text = message(
                &server::BOOKMARK,
                [
                    ("sub", Value::from(&*sub.name)),
                    ("cursor", cursor.to_string().into()),
                    ("seen_until", status.seen_until.map_or(Value::Null, |time| time.to_string().into())),
                    ("upstream", status.state.as_str().into()),
                ],
            );
            self.send(text).await?;
        }
        Ok(())
    }
}
