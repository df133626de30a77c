//! `/v1/events/{id}/trace`: what it tells, and to whom.

use serde_json::Value;

use super::*;
use crate::{
    event::{Event, Flag, Iccid, Provenance, Via, tests_support::full_event},
    log::Entry,
};

fn append(fixture: &Fixture, event: Event, appended: i64) {
    let sealed = event.seal(at(appended), jiff::SignedDuration::from_secs(300)).unwrap();
    fixture.context.hub.log().append(vec![Entry { sealed, identity: 1, content: 0 }]).unwrap();
}

/// An event of upstream's that came by `via`, asked for at second 402 and not seen at 401.
fn event(id: &str, via: Via, flags: &[Flag]) -> Event {
    let mut event = full_event();
    event.id = id.to_owned();
    event.iccid = Iccid::parse(ICCIDS[0]).ok();
    event.time = Some(at(0));
    event.provenance = Some(Provenance::new(via, at(402), at(403), (via != Via::Backfill).then(|| at(401))));
    event.flags = flags.iter().copied().collect();
    event
}

#[tokio::test]
async fn the_way_of_an_event_is_told_with_all_that_belongs_to_it() {
    let fixture = filled();
    append(&fixture, event("evt_abc123", Via::Sweep, &[Flag::Partial]), 404);
    append(&fixture, event("evt_abc123~details", Via::Details, &[Flag::Enriched]), 405);
    append(&fixture, event("evt_abc123~0123abcd", Via::Backfill, &[Flag::Conflict]), 406);
    // Its own id, as upstream spelled it, though it looks like one of ours.
    let mut other = event("evt_abc123~0123abcd~details", Via::Tail, &[]);
    other.event_id = Some(other.id.clone());
    append(&fixture, other, 407);
    let router = fixture.http();
    let trace = get(&router, "/v1/events/evt_abc123/trace").await.json();
    let cursor = |seq| fixture.stored(seq).cursor(7).to_string();
    let expected = json!({
        "id": "evt_abc123",
        "cursor": cursor(4),
        "event_type": "connection",
        "iccid": ICCIDS[0],
        "time": at(0).to_string(),
        "visible": {"after": at(401).to_string(), "before": at(403).to_string()},
        "read": {"by": "sweep", "asked_at": at(402).to_string()},
        "appended_at": at(404).to_string(),
        "lag": {"source_ms": 402_000, "gateway_ms": 1_000},
        "flags": ["late", "partial"],
        "related": [{"id": "evt_abc123~details", "cursor": cursor(5), "appended_at": at(405).to_string(),
            "flags": ["late", "enriched"]}],
        "webhooks": [],
    });
    assert_eq!(trace, expected);
    let conflict = get(&router, "/v1/events/evt_abc123~0123abcd/trace").await.json();
    assert_eq!(conflict["visible"]["after"], Value::Null);
    let related: Vec<_> = conflict["related"].as_array().unwrap().iter().map(|step| &step["id"]).collect();
    assert_eq!(related, ["evt_abc123", "evt_abc123~details"]);
    let own = get(&router, "/v1/events/gw_3/trace").await.json();
    assert_eq!((&own["read"], &own["visible"]), (&Value::Null, &Value::Null));
    assert_eq!(own["lag"], json!({"source_ms": null, "gateway_ms": null}));
}

#[tokio::test]
async fn a_time_that_cannot_be_read_is_no_time() {
    let fixture = filled();
    let mut unreadable = event("evt_abc123", Via::Tail, &[]);
    unreadable.time = None;
    append(&fixture, unreadable, 404);
    let trace = get(&fixture.http(), "/v1/events/evt_abc123/trace").await.json();
    assert_eq!((&trace["time"], &trace["lag"]["source_ms"]), (&Value::Null, &Value::Null));
    assert_eq!(trace["flags"], json!(["time_unknown"]));
}

#[tokio::test]
async fn a_trace_tells_a_token_no_more_than_the_event_would() {
    let scoped = crate::auth::TokenConfig {
        filter: Some(filter(&json!({"event_type": ["connection"], "exclude_flags": ["enriched"]}))),
        ..token("partner", &[Role::Read])
    };
    let masked = crate::auth::TokenConfig {
        fields: Some(FieldPolicy { iccid: FieldRule::Last4, ..FieldPolicy::default() }),
        ..token("masked", &[Role::Read])
    };
    let fixture = Fixture::new(vec![scoped, masked, token("hooks", &[Role::Webhooks])]);
    append(&fixture, event("evt_abc123", Via::Tail, &[Flag::Partial]), 404);
    append(&fixture, event("evt_abc123~details", Via::Details, &[Flag::Enriched]), 405);
    let router = fixture.http();
    let of = |name, id: &str| {
        let (router, target) = (router.clone(), format!("/v1/events/{id}/trace"));
        async move { get_as(&router, name, &target).await }
    };
    assert_eq!(of("partner", "evt_abc123").await.json()["related"], json!([]));
    let hidden = of("partner", "evt_abc123~details").await;
    let unknown = of("partner", "evt_9").await;
    assert_eq!((hidden.status.as_u16(), hidden.error()), (404, unknown.error()));
    let shown = of("masked", "evt_abc123").await;
    assert_eq!(shown.json()["iccid"], "***************0001");
    assert!(!shown.text.contains(ICCIDS[0]));
    assert_eq!(of("hooks", "evt_abc123").await.status.as_u16(), 403);
    assert_eq!(get(&router, "/v1/events/evt_abc123/trace").await.status.as_u16(), 401);
    assert_eq!(get_as(&router, "masked", "/v1/events/evt_abc123/trace?a=1").await.error().0, 400);
}
