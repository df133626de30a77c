//! What an answer means: the contract with receivers, in one place.
//!
//! | answer | what becomes of the event |
//! |---|---|
//! | 2xx | delivered, whatever the body is or does afterwards |
//! | 3xx | a failure; redirects are never followed |
//! | 410 | the endpoint is disabled; the event waits |
//! | any, with `webhook-delivery: disable` | the endpoint is disabled |
//! | a failure with `webhook-delivery: abort-message` | skipped: not tried again |
//! | any other, or none | tried again by the schedule, or exactly when `Retry-After` says (at most 24 h) |
//!
//! The egress proxy's own faults are not the receiver's: they use up no attempt and do not open its breaker.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    feed::LastFailure,
    outbound::{Control, Exchange, FailureKind, RetryAfter},
    pace::Signal,
};

/// `Retry-After` is obeyed up to here.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// What becomes of an event by an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has arrived.
    Delivered {
        /// The receiver wants no more.
        disables: bool,
    },
    /// The receiver does not want this one.
    Aborted(LastFailure),
    /// The receiver wants no more; this one has not arrived.
    Disabled(LastFailure),
    /// Another attempt may follow.
    Failed {
        /// How.
        failure: LastFailure,
        /// What it says of the receiver; None where it says nothing.
        signal: Option<Signal>,
        /// When the receiver wants it again.
        retry_after: Option<Duration>,
    },
}

/// Judges an exchange that ended at `now`.
pub fn judge(exchange: &Exchange, now: Timestamp) -> Verdict {
    let answer = match &exchange.result {
        Ok(answer) => answer,
        Err(failure) => {
            let signal = match failure.kind {
                FailureKind::Proxy => None,
                FailureKind::ConnectTimeout | FailureKind::HeaderTimeout => Some(Signal::Congested),
                _ => Some(Signal::Failed),
            };
            let failure = LastFailure { status: None, kind: failure.kind.as_str().to_owned() };
            return Verdict::Failed { failure, signal, retry_after: None };
        }
    };
    let disables = answer.control == Some(Control::Disable);
    if (200..300).contains(&answer.status) {
        return Verdict::Delivered { disables };
    }
    let failure = LastFailure { status: Some(answer.status), kind: "status".to_owned() };
    if answer.status == 410 || disables {
        return Verdict::Disabled(failure);
    }
    if answer.control == Some(Control::AbortMessage) {
        return Verdict::Aborted(failure);
    }
    let signal = match answer.status {
        429 | 502..=504 => Signal::Congested,
        _ => Signal::Failed,
    };
    let retry_after = answer.retry_after.map(|after| match after {
        RetryAfter::Seconds(seconds) => Duration::from_secs(seconds),
        RetryAfter::At(at) => Duration::try_from(at.duration_since(now)).unwrap_or_default(),
    });
    let retry_after = retry_after.map(|wait| wait.min(RETRY_AFTER_MAX));
    Verdict::Failed { failure, signal: Some(signal), retry_after }
}
