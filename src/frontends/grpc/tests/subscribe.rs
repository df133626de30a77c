//! Starts, positions, gaps, refusals.

use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::proto::{OnExpired, subscribe_request::Start, subscribe_response::Control};

fn from(start: Start) -> SubscribeRequest {
    SubscribeRequest { start: Some(start), ..Default::default() }
}

#[tokio::test]
async fn now_is_exact_and_live_follows() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..10).await;
    let mut client = gateway.client().await;
    let filter =
        proto::Filter { event_type: vec!["Connection".into(), "sim_swap".into()], ..Default::default() };
    let request = SubscribeRequest { filter: Some(filter), ..Default::default() };
    let mut responses = subscribe(&mut client, request).await;
    let opened = next(&mut responses).await;
    assert_eq!(cursor_of(&opened.cursor).seq, 10);
    let Some(Control::Opened(control)) = opened.control else { panic!("{opened:?}") };
    assert_eq!(control.warnings.len(), 1, "a type never seen");
    assert!(control.warnings[0].contains("sim_swap"));
    assert_eq!(control.heartbeat_interval.unwrap().seconds, 15);
    assert!(matches!(next(&mut responses).await.control, Some(Control::CaughtUp(_))));
    append(gateway.log(), 10..20);
    let batch = next(&mut responses).await;
    assert_eq!(ids(&batch), ["evt_12", "evt_15", "evt_18"]);
    assert!((19..=20).contains(&cursor_of(&batch.cursor).seq), "at the last match or beyond");
    let event = &batch.events[0];
    assert_eq!((event.iccid.as_str(), event.r#type.as_str()), (iccid(12).as_str(), "globalsim.connection"));
    assert_eq!(cursor_of(&event.cursor).seq, 13);
}

#[tokio::test]
async fn every_start_gives_what_the_log_holds_after_it() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..40).await;
    let mut client = gateway.client().await;
    let log = gateway.log().clone();
    let since = crate::event::protobuf::timestamp(time(15));
    let starts = [
        (Start::FromEarliest(true), 0),
        (Start::FromEarliest(false), 40),
        (Start::After(log.cursor_at(7).to_string()), 7),
        (Start::Since(since), 15),
        // Of the 8 events of this SIM the last 3 are 24, 29, 34, 39 less the first: events 29, 34 and 39.
        (Start::Last(3), 29),
    ];
    for (start, after) in starts {
        let filter = proto::Filter { iccid: vec![iccid(4)], ..Default::default() };
        let request = SubscribeRequest { filter: Some(filter), ..from(start.clone()) };
        let mut responses = subscribe(&mut client, request).await;
        let (got, controls) = history(&mut responses).await;
        assert_eq!(got, oracle(&log, json!({"iccid": [iccid(4)]}), after), "{start:?}");
        assert!(matches!(controls[..], [Control::Opened(_), Control::CaughtUp(_)]), "{controls:?}");
    }
}

#[tokio::test]
async fn history_comes_in_bounded_batches_and_any_of_their_cursors_resumes() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..1000).await;
    let mut client = gateway.client().await;
    let mut responses = subscribe(&mut client, from(Start::FromEarliest(true))).await;
    let (mut got, mut resume) = (Vec::new(), Vec::new());
    loop {
        let response = next(&mut responses).await;
        assert!(response.events.len() <= 256);
        got.extend(ids(&response));
        resume.push((response.cursor.clone(), got.len()));
        if matches!(response.control, Some(Control::CaughtUp(_))) {
            break;
        }
    }
    let all = oracle(gateway.log(), json!({}), 0);
    assert_eq!(got, all);
    assert!(resume.len() >= 1000 / 256);
    for (cursor, done) in resume {
        let mut responses = subscribe(&mut client, from(Start::After(cursor))).await;
        assert_eq!(history(&mut responses).await.0, all[done..]);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_nothing() {
    let gateway = Gateway::start(Setup::default());
    let mut client = gateway.client().await;
    let mut responses = subscribe(&mut client, SubscribeRequest::default()).await;
    // More than rings, windows and buffers hold together.
    for start in (0..30_000).step_by(1000) {
        gateway.append(start..start + 1000).await;
    }
    let mut got = Vec::new();
    while got.len() < 30_000 {
        got.extend(ids(&next(&mut responses).await));
    }
    assert_eq!(got, oracle(gateway.log(), json!({}), 0));
}

#[tokio::test]
async fn a_cursor_out_of_range_fails_with_what_is_left() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..10).await;
    let mut client = gateway.client().await;
    let good = gateway.log().cursor_at(5);
    let cases = [
        (Cursor { incarnation: good.incarnation ^ 1, ..good }, "CURSOR_OF_ANOTHER_LOG"),
        (Cursor { seq: 99, ..good }, "CURSOR_REGRESSED"),
        (Cursor { tag: !good.tag, ..good }, "CURSOR_REGRESSED"),
    ];
    for (cursor, reason) in cases {
        let status = soon(client.subscribe(from(Start::After(cursor.to_string())))).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "simcast"));
        assert_eq!(info.metadata["oldest"], gateway.log().cursor_at(0).to_string());
        assert_eq!(info.metadata["newest"], gateway.log().cursor_at(10).to_string());
        assert!(status.get_details_retry_info().is_none(), "the same request will never succeed");
    }
}

#[tokio::test]
async fn a_cursor_out_of_range_may_start_elsewhere_behind_a_gap() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..10).await;
    let mut client = gateway.client().await;
    let lost = Cursor { incarnation: 1, seq: 3, tag: 0 };
    for (on_expired, after) in [(OnExpired::Earliest, 0), (OnExpired::Latest, 10)] {
        let request =
            SubscribeRequest { on_expired: on_expired.into(), ..from(Start::After(lost.to_string())) };
        let mut responses = subscribe(&mut client, request).await;
        let (got, controls) = history(&mut responses).await;
        let [Control::Opened(_), Control::Gap(gap), Control::CaughtUp(_)] = &controls[..] else {
            panic!("{controls:?}")
        };
        assert_eq!((gap.reason.as_str(), gap.lost), ("incarnation", None));
        assert_eq!(gap.from.as_deref(), Some(lost.to_string().as_str()));
        assert_eq!(gap.to, Some(gateway.log().cursor_at(after).to_string()));
        assert_eq!(got, oracle(gateway.log(), json!({}), after), "{on_expired:?}");
    }
}

#[tokio::test]
async fn mistakes_are_violations_of_a_named_field() {
    let gateway = Gateway::start(Setup::default());
    let mut client = gateway.client().await;
    let wrong_iccid = proto::Filter { iccid: vec!["123".into()], ..Default::default() };
    let cases = [
        (SubscribeRequest { filter: Some(wrong_iccid), ..Default::default() }, "filter.iccid"),
        (from(Start::After("nonsense".into())), "after"),
        (from(Start::Last(0)), "last"),
    ];
    for (request, field) in cases {
        let status = soon(client.subscribe(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].field, field);
    }
    assert_eq!(gateway.context.registry.connections(), 0, "a refused stream takes no place");
}

#[tokio::test]
async fn tokens_bound_what_is_seen() {
    let mut scoped = token("scoped");
    scoped.filter = Some(json_filter(json!({"iccid": [iccid(1)]})));
    let mut hiding = token("hiding");
    hiding.fields = Some(crate::event::FieldPolicy {
        iccid: crate::event::policy::FieldRule::Last4,
        msisdn: crate::event::policy::FieldRule::Drop,
        ..Default::default()
    });
    let mut webhooks = token("webhooks");
    webhooks.roles = Roles { webhooks: true, ..Roles::default() };
    let gateway = Gateway::start(Setup { tokens: vec![scoped, hiding, webhooks], ..Default::default() });
    gateway.append(0..20).await;
    let mut client = gateway.client().await;
    let all = || from(Start::FromEarliest(true));

    assert_eq!(soon(client.subscribe(all())).await.unwrap_err().code(), Code::Unauthenticated);
    let unknown = soon(client.subscribe(authorized(all(), "wrong"))).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unauthenticated);
    assert_eq!(unknown.get_details_error_info().unwrap().reason, "UNAUTHORIZED");
    let role = soon(client.subscribe(authorized(all(), "webhooks"))).await.unwrap_err();
    assert_eq!(role.code(), Code::PermissionDenied);

    let mut responses = soon(client.subscribe(authorized(all(), "scoped"))).await.unwrap().into_inner();
    assert_eq!(history(&mut responses).await.0, oracle(gateway.log(), json!({"iccid": [iccid(1)]}), 0));

    let mut responses = soon(client.subscribe(authorized(all(), "hiding"))).await.unwrap().into_inner();
    next(&mut responses).await;
    let batch = next(&mut responses).await;
    assert_eq!(batch.events.len(), 20);
    assert!(batch.events.iter().all(|event| event.msisdn.is_none() && event.iccid.starts_with("****")));
    let filter = proto::Filter { iccid: vec![iccid(1)], ..Default::default() };
    let peeking = SubscribeRequest { filter: Some(filter), ..all() };
    let status = soon(client.subscribe(authorized(peeking, "hiding"))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.get_details_error_info().unwrap().reason, "FORBIDDEN_FIELD");
}
