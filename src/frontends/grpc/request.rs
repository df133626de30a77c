//! From request messages to what the hub understands, with errors that name the field by its path.

use std::{borrow::Cow, time::Duration};

use jiff::Timestamp;

use crate::{
    auth::Principal,
    event::{Cursor, Filter, FilterLimits, OnExpired, Predicate, Start, position::LAST_MAX, protobuf},
    frontends::{ApiError, Code, Limits},
    hub,
    proto::{self, subscribe_request},
};

/// Shortest heartbeat interval.
pub(super) const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
/// Longest heartbeat interval.
pub(super) const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// A subscription as asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// What, from where.
    pub(super) spec: hub::Spec,
    /// Legal values that look like mistakes.
    pub(super) warnings: Vec<String>,
    /// Longest silence.
    pub(super) heartbeat: Duration,
}

/// Reads a subscription request.
///
/// # Errors
/// [`ApiError`] naming the field.
pub(super) fn wanted(
    request: proto::SubscribeRequest,
    principal: &Principal,
    limits: &Limits,
) -> Result<Wanted, ApiError> {
    let (predicate, warnings) = predicate(request.filter, principal, limits)?;
    let spec = hub::Spec {
        encoding: hub::Encoding::Protobuf,
        predicate,
        policy: principal.policy.clone(),
        start: start(request.start)?,
        on_expired: on_expired(request.on_expired)?,
    };
    Ok(Wanted { spec, warnings, heartbeat: heartbeat(request.heartbeat_interval, limits)? })
}

/// Reads a filter, within what the principal may see.
///
/// # Errors
/// [`Code::InvalidFilter`] and [`Code::ForbiddenField`], naming the list.
pub(super) fn predicate(
    filter: Option<proto::Filter>,
    principal: &Principal,
    limits: &Limits,
) -> Result<(Predicate, Vec<String>), ApiError> {
    let (filter, warnings) = self::filter(filter.unwrap_or_default(), limits.filter_values)?;
    let predicate = principal.predicate(filter).map_err(|error| in_filter(ApiError::from(error)))?;
    Ok((predicate, warnings))
}

/// Reads a filter by itself.
///
/// # Errors
/// [`Code::InvalidFilter`], naming the list.
pub(super) fn filter(
    filter: proto::Filter,
    values_per_list: usize,
) -> Result<(Filter, Vec<String>), ApiError> {
    let lists = [
        ("iccid", filter.iccid),
        ("device_id", filter.device_id),
        ("event_type", filter.event_type),
        ("iccid_prefix", filter.iccid_prefix),
        ("country", filter.country),
        ("operator", filter.operator),
        ("network_type", filter.network_type),
        ("exclude_flags", filter.exclude_flags),
    ];
    let limits = FilterLimits { values_per_list };
    Filter::build(lists, limits).map_err(|error| in_filter(ApiError::from(error)))
}

/// BadRequest wants the path from the request message.
fn in_filter(mut error: ApiError) -> ApiError {
    error.field = error.field.map(|field| Cow::Owned(format!("filter.{field}")));
    error
}

fn start(start: Option<subscribe_request::Start>) -> Result<Start, ApiError> {
    use subscribe_request::Start as Wire;
    Ok(match start {
        None | Some(Wire::FromEarliest(false)) => Start::Now,
        Some(Wire::FromEarliest(true)) => Start::Earliest,
        Some(Wire::After(text)) => Start::After(cursor(&text, "after")?),
        Some(Wire::Since(time)) => Start::Since(timestamp(&time, "since")?),
        Some(Wire::Last(n)) if (1..=LAST_MAX).contains(&n) => Start::Last(n),
        Some(Wire::Last(n)) => {
            let message = format!("last is a number from 1 to {LAST_MAX}, not {n}");
            return Err(ApiError::new(Code::InvalidStart, message).field("last"));
        }
    })
}

/// Reads a cursor.
///
/// # Errors
/// [`Code::InvalidCursor`].
pub(super) fn cursor(text: &str, field: &'static str) -> Result<Cursor, ApiError> {
    Cursor::parse(text).map_err(|error| ApiError::new(Code::InvalidCursor, error.to_string()).field(field))
}

/// Reads a time.
///
/// # Errors
/// [`Code::InvalidParameter`] outside the years that the gateway's times hold.
pub(super) fn timestamp(time: &prost_types::Timestamp, field: &'static str) -> Result<Timestamp, ApiError> {
    protobuf::from_timestamp(time).filter(|_| (0..1_000_000_000).contains(&time.nanos)).ok_or_else(|| {
        let message = format!("{field} is no time: seconds {}, nanos {}", time.seconds, time.nanos);
        ApiError::new(Code::InvalidParameter, message).field(field)
    })
}

/// Reads what an unusable cursor does; the default is to fail.
///
/// # Errors
/// [`Code::InvalidStart`] for a number without meaning.
pub(super) fn on_expired(number: i32) -> Result<OnExpired, ApiError> {
    match proto::OnExpired::try_from(number) {
        Ok(proto::OnExpired::Unspecified | proto::OnExpired::Fail) => Ok(OnExpired::Fail),
        Ok(proto::OnExpired::Earliest) => Ok(OnExpired::Earliest),
        Ok(proto::OnExpired::Latest) => Ok(OnExpired::Latest),
        Err(_) => Err(ApiError::new(Code::InvalidStart, format!("on_expired {number} is not known"))
            .field("on_expired")),
    }
}

fn heartbeat(interval: Option<prost_types::Duration>, limits: &Limits) -> Result<Duration, ApiError> {
    let Some(interval) = interval else { return Ok(limits.heartbeat) };
    Duration::try_from(interval).ok().filter(|d| (HEARTBEAT_MIN..=HEARTBEAT_MAX).contains(d)).ok_or_else(
        || {
            let message =
                format!("heartbeat_interval is {HEARTBEAT_MIN:?} to {HEARTBEAT_MAX:?}, not {interval}");
            ApiError::new(Code::InvalidParameter, message).field("heartbeat_interval")
        },
    )
}

/// The deadline that a client sets in `grpc-timeout`: at most eight digits and a unit
/// (gRPC over HTTP/2, "Timeout"). None where there is none or it can't be read, which is what grpc-go and C core do.
pub(super) fn timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(n * 3600),
        'M' => Duration::from_secs(n * 60),
        'S' => Duration::from_secs(n),
        'm' => Duration::from_millis(n),
        'u' => Duration::from_micros(n),
        'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Reads the name of a subscription.
///
/// # Errors
/// [`Code::InvalidParameter`].
pub(super) fn subscription_id(id: &str) -> Result<(), ApiError> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if (1..=64).contains(&id.len()) && id.bytes().all(ok) {
        return Ok(());
    }
    Err(ApiError::new(Code::InvalidParameter, "subscription_id is 1 to 64 of A-Z a-z 0-9 _ . -")
        .field("subscription_id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: proto::SubscribeRequest) -> Result<Wanted, ApiError> {
        wanted(request, &Principal::anonymous(), &Limits::default())
    }

    fn refused(request: proto::SubscribeRequest) -> (Code, String) {
        let error = read(request).unwrap_err();
        (error.code, error.field.unwrap().into_owned())
    }

    #[test]
    fn nothing_given_is_now_fail_and_the_default_heartbeat() {
        let wanted = read(proto::SubscribeRequest::default()).unwrap();
        assert_eq!((wanted.spec.start, wanted.spec.on_expired), (Start::Now, OnExpired::Fail));
        assert_eq!(wanted.heartbeat, Duration::from_secs(15));
        assert!(wanted.spec.predicate.is_empty() && wanted.warnings.is_empty());
    }

    #[test]
    fn mistakes_name_their_field() {
        use subscribe_request::Start as Wire;
        let start = |start| proto::SubscribeRequest { start: Some(start), ..Default::default() };
        assert_eq!(refused(start(Wire::After("x".into()))), (Code::InvalidCursor, "after".into()));
        assert_eq!(refused(start(Wire::Last(0))), (Code::InvalidStart, "last".into()));
        assert_eq!(refused(start(Wire::Last(1001))), (Code::InvalidStart, "last".into()));
        let far = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        assert_eq!(refused(start(Wire::Since(far))), (Code::InvalidParameter, "since".into()));
        let odd = prost_types::Timestamp { seconds: 0, nanos: -1 };
        assert_eq!(refused(start(Wire::Since(odd))), (Code::InvalidParameter, "since".into()));
        let request = proto::SubscribeRequest { on_expired: 9, ..Default::default() };
        assert_eq!(refused(request), (Code::InvalidStart, "on_expired".into()));
        let filter = proto::Filter { iccid: vec!["12".into()], ..Default::default() };
        let request = proto::SubscribeRequest { filter: Some(filter), ..Default::default() };
        assert_eq!(refused(request), (Code::InvalidFilter, "filter.iccid".into()));
        for (seconds, nanos) in [(0, 999_999_999), (60, 1), (-1, 0)] {
            let heartbeat_interval = Some(prost_types::Duration { seconds, nanos });
            let request = proto::SubscribeRequest { heartbeat_interval, ..Default::default() };
            assert_eq!(refused(request), (Code::InvalidParameter, "heartbeat_interval".into()));
        }
    }

    #[test]
    fn timeouts_follow_the_grammar() {
        let of = |text: &str| {
            timeout(&http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-timeout"),
                text.parse().unwrap(),
            )]))
        };
        assert_eq!(of("100m"), Some(Duration::from_millis(100)));
        assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(of("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "1", "-1S", "123456789S", "1x", "1 S"] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
        assert_eq!(timeout(&http::HeaderMap::new()), None);
    }

    #[test]
    fn names_of_subscriptions_are_short_and_plain() {
        for good in ["a", "A.b-c_9", &"x".repeat(64)] {
            assert!(subscription_id(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "é", &"x".repeat(65)] {
            assert!(subscription_id(bad).is_err(), "{bad}");
        }
    }
}
