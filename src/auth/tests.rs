//! Tokens, tickets and sessions, with a clock that the test moves.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::*;
use crate::{
    clock::Clock,
    event::{FilterLimits, policy::FieldRule},
};

/// As the contract says; not the constant, so that changing that one fails here.
const TICKET_LASTS: i64 = 30;

#[derive(Debug)]
struct HandClock(Mutex<Timestamp>);

impl HandClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new("2026-01-01T00:00:00Z".parse().unwrap())))
    }

    fn advance(&self, seconds: i64) {
        let mut now = self.0.lock();
        *now = now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        *self.0.lock()
    }
}

fn token(name: &str, text: &str) -> TokenConfig {
    TokenConfig {
        name: name.into(),
        sha256: hash_token(text),
        roles: Roles { read: true, ..Roles::default() },
        filter: None,
        fields: None,
        expires: None,
    }
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::build([(name, vec![value.to_owned()])], FilterLimits::default()).unwrap().0
}

#[test]
fn without_tokens_everybody_is_anonymous_and_may_do_all() {
    let auth = Auth::new(Config::default(), HandClock::new());
    assert!(auth.open());
    let principal = auth.authenticate(None).unwrap();
    assert_eq!(*principal, Principal::anonymous());
    assert!(Role::ALL.iter().all(|role| principal.require(*role).is_ok()));
    assert_eq!(auth.authenticate(Some("anything")).unwrap().name, "anonymous");
}

#[test]
fn tokens_are_told_apart_and_end_when_they_say() {
    let clock = HandClock::new();
    let expires = Some(clock.now().checked_add(SignedDuration::from_secs(60)).unwrap());
    let config = Config { tokens: vec![token("a", "sct_a"), TokenConfig { expires, ..token("b", "sct_b") }] };
    let auth = Auth::new(config, Arc::clone(&clock) as SharedClock);
    assert!(!auth.open());
    let check = |bearer: Option<&str>| auth.authenticate(bearer).map(|principal| principal.name.clone());
    assert_eq!(check(None), Err(AuthError::Missing));
    assert_eq!(check(Some("")), Err(AuthError::Unknown));
    assert_eq!(check(Some("sct_A")), Err(AuthError::Unknown));
    assert_eq!(check(Some("sct_a")), Ok("a".into()));
    assert_eq!(check(Some("sct_b")), Ok("b".into()));
    let held = auth.authenticate(Some("sct_b")).unwrap();
    clock.advance(59);
    assert!(!held.expired(clock.now()));
    clock.advance(1);
    assert!(held.expired(clock.now()));
    assert_eq!(check(Some("sct_b")), Err(AuthError::Expired));
    assert_eq!(check(Some("sct_a")), Ok("a".into()));
}

#[test]
fn roles_do_not_imply_each_other() {
    for granted in Role::ALL {
        let principal = Principal { roles: [granted].into_iter().collect(), ..Principal::anonymous() };
        for asked in Role::ALL {
            let expected = if asked == granted { Ok(()) } else { Err(Forbidden { role: asked }) };
            assert_eq!(principal.require(asked), expected);
        }
    }
}

#[test]
fn a_filter_is_bound_to_the_tokens_own_and_may_not_reveal_what_is_hidden() {
    let fields = FieldPolicy { iccid: FieldRule::Last4, ..FieldPolicy::default() };
    let config = TokenConfig {
        filter: Some(filter("country", "NO")),
        fields: Some(fields),
        ..token("partner", "sct_partner")
    };
    let auth = Auth::new(Config { tokens: vec![config] }, HandClock::new());
    let principal = auth.authenticate(Some("sct_partner")).unwrap();
    let wanted = filter("event_type", "connection");
    assert_eq!(
        principal.predicate(wanted.clone()),
        Ok(Predicate::new(wanted, Some(filter("country", "NO"))))
    );
    for hidden in [filter("iccid", "8901234567890234567"), filter("iccid_prefix", "8901")] {
        assert_eq!(principal.predicate(hidden), Err(ForbiddenField { field: "iccid" }));
    }
}

#[test]
fn a_policy_that_hides_nothing_costs_nothing() {
    let config = TokenConfig { fields: Some(FieldPolicy::default()), ..token("a", "sct_a") };
    let auth = Auth::new(Config { tokens: vec![config] }, HandClock::new());
    assert_eq!(auth.authenticate(Some("sct_a")).unwrap().policy, None);
}

#[test]
fn the_bearer_is_found_in_the_header() {
    for (header, expected) in [
        ("Bearer sct_x", Some("sct_x")),
        ("bearer  sct_x ", Some("sct_x")),
        ("Basic sct_x", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
    ] {
        assert_eq!(bearer(header), expected, "{header:?}");
    }
}

#[test]
fn new_tokens_have_the_documented_form_and_differ() {
    let (one, two) = (new_token().unwrap(), new_token().unwrap());
    for text in [&one, &two] {
        let secret = text.strip_prefix("sct_").unwrap();
        assert_eq!(secret.len(), 43);
        assert!(secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
    }
    assert_ne!(one, two);
}

#[test]
fn a_ticket_works_once_and_not_for_long() {
    let clock = HandClock::new();
    let tickets = Tickets::new(Arc::clone(&clock) as SharedClock);
    let principal = Arc::new(Principal::anonymous());
    let ticket = tickets.issue(Arc::clone(&principal)).unwrap();
    assert_eq!(tickets.redeem("nonsense"), None);
    assert_eq!(tickets.redeem(&ticket), Some(Arc::clone(&principal)));
    assert_eq!(tickets.redeem(&ticket), None);
    let late = tickets.issue(principal).unwrap();
    clock.advance(TICKET_LASTS);
    assert_eq!(tickets.redeem(&late), None);
}

#[test]
fn tickets_are_bounded_and_the_room_comes_back() {
    let clock = HandClock::new();
    let tickets = Tickets::new(Arc::clone(&clock) as SharedClock);
    let principal = Arc::new(Principal::anonymous());
    for _ in 0..pass::KEPT_MAX {
        tickets.issue(Arc::clone(&principal)).unwrap();
    }
    assert_eq!(tickets.issue(Arc::clone(&principal)), Err(IssueError::Full));
    clock.advance(TICKET_LASTS);
    assert!(tickets.issue(principal).is_ok());
}

#[test]
fn a_session_lasts_an_hour_but_never_longer_than_its_token() {
    let clock = HandClock::new();
    let sessions = CookieSessions::new(Arc::clone(&clock) as SharedClock);
    let hour = sessions.create(Arc::new(Principal::anonymous())).unwrap();
    assert_eq!(hour.max_age_seconds, 3600);
    let expires_at = clock.now().checked_add(SignedDuration::from_secs(600)).ok();
    let short = Arc::new(Principal { expires_at, ..Principal::anonymous() });
    let bound = sessions.create(Arc::clone(&short)).unwrap();
    assert_eq!(bound.max_age_seconds, 600);
    clock.advance(599);
    assert!(sessions.lookup(&hour.value).is_some() && sessions.lookup(&bound.value).is_some());
    clock.advance(1);
    assert!(sessions.lookup(&bound.value).is_none());
    assert_eq!(sessions.create(short), Err(IssueError::Expired));
    clock.advance(2999);
    assert!(sessions.lookup(&hour.value).is_some());
    clock.advance(1);
    assert!(sessions.lookup(&hour.value).is_none());
}
