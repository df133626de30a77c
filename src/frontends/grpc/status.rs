//! Errors as gRPC clients read them: a status code of the shared table, and google.rpc details for programs.
//!
//! Every status carries an `ErrorInfo` whose reason is the code that REST and WebSocket give, in capitals. A cursor
//! that can't be used says in the reason why (retention, another log, a log that went back) and in the metadata what
//! can still be read, so that a client need not parse text.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{event::GapReason, frontends::ApiError, hub};

/// `domain` of every `ErrorInfo`.
pub(super) const DOMAIN: &str = "simcast";

/// Delay in `RetryInfo` where the error gives none.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The status of an error.
pub(super) fn status(error: &ApiError) -> Status {
    build(error, &error.code.as_str().to_ascii_uppercase())
}

/// The status of what the hub refused.
pub(super) fn hub_status(error: hub::Error) -> Status {
    let reason = match &error {
        hub::Error::Expired { reason, .. } => Some(expired_reason(*reason)),
        hub::Error::Unavailable(_) => None,
    };
    let error = ApiError::from(error);
    match reason {
        Some(reason) => build(&error, reason),
        None => status(&error),
    }
}

/// `reason` of the `ErrorInfo` of a cursor that can't be used.
fn expired_reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Incarnation => "CURSOR_OF_ANOTHER_LOG",
        GapReason::Regressed => "CURSOR_REGRESSED",
        GapReason::Retention | GapReason::Upstream | GapReason::Corruption => "CURSOR_EXPIRED",
    }
}

fn build(error: &ApiError, reason: &str) -> Status {
    let code = error.code.grpc();
    let mut message = error.message.to_string();
    if let Some(hint) = &error.hint {
        message.push_str("; ");
        message.push_str(hint);
    }
    let mut metadata = HashMap::new();
    if let Some(range) = &error.range {
        metadata.insert("oldest".to_owned(), range.oldest.to_string());
        metadata.insert("newest".to_owned(), range.newest.to_string());
    }
    if let Some(field) = &error.field {
        metadata.insert("field".to_owned(), field.to_string());
    }
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    if code == Code::InvalidArgument
        && let Some(field) = &error.field
    {
        details.add_bad_request_violation(field.as_ref(), error.message.as_ref());
    }
    if error.retryable() {
        details.set_retry_info(Some(error.retry_after.unwrap_or(RETRY_DELAY)));
    }
    Status::with_error_details(code, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::Cursor, frontends::Code as ApiCode};

    #[test]
    fn a_wrong_field_is_a_violation_and_not_worth_a_retry() {
        let error = ApiError::new(ApiCode::InvalidFilter, "no ICCID").field("filter.iccid").hint("18 digits");
        let status = status(&error);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "no ICCID; 18 digits");
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!((violations.len(), violations[0].field.as_str()), (1, "filter.iccid"));
        assert_eq!(details.error_info().unwrap().reason, "INVALID_FILTER");
        assert!(details.retry_info().is_none());
    }

    #[test]
    fn an_unusable_cursor_says_why_and_what_is_left() {
        let (oldest, newest) =
            (Cursor { incarnation: 1, seq: 2, tag: 3 }, Cursor { incarnation: 1, seq: 9, tag: 3 });
        let reasons = [
            (GapReason::Retention, "CURSOR_EXPIRED"),
            (GapReason::Incarnation, "CURSOR_OF_ANOTHER_LOG"),
            (GapReason::Regressed, "CURSOR_REGRESSED"),
        ];
        for (reason, expected) in reasons {
            let status = hub_status(hub::Error::Expired { oldest, newest, reason });
            assert_eq!(status.code(), Code::OutOfRange);
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (expected, DOMAIN));
            assert_eq!(info.metadata["oldest"], oldest.to_string());
            assert_eq!(info.metadata["newest"], newest.to_string());
        }
    }

    #[test]
    fn what_may_succeed_later_says_when() {
        let status =
            status(&ApiError::new(ApiCode::ConnectionLimit, "full").retry_after(Duration::from_secs(5)));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(5)));
        let status = hub_status(hub::Error::Unavailable("disk".into()));
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.get_details_retry_info().is_some());
    }
}
