//! Lists against the log read one by one, single events, the description of the stream.

use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    event::protobuf::timestamp,
    ingest::status::UpstreamState,
    proto::{GetEventRequest, GetStreamInfoRequest, ListEventsRequest, Order},
};

/// All pages; each but the last must be full.
async fn pages(client: &mut EventServiceClient<Channel>, mut request: ListEventsRequest) -> Vec<String> {
    let mut got = Vec::new();
    loop {
        let page = soon(client.list_events(request.clone())).await.unwrap().into_inner();
        assert!(page.events.len() <= request.page_size as usize);
        assert!(page.caught_up || page.events.len() == request.page_size as usize);
        got.extend(page.events.into_iter().map(|event| event.id));
        if page.caught_up {
            return got;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn paging_gives_what_the_log_holds_in_both_orders() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..57).await;
    let mut client = gateway.client().await;
    let filters = [
        (proto::Filter::default(), json!({})),
        (
            proto::Filter { event_type: vec!["connection".into()], ..Default::default() },
            json!({"event_type": ["connection"]}),
        ),
    ];
    for (filter, same) in filters {
        let mut expected = oracle(gateway.log(), same, 0);
        for page_size in [1, 7, 19, 57, 1000] {
            let request = ListEventsRequest { filter: Some(filter.clone()), page_size, ..Default::default() };
            assert_eq!(pages(&mut client, request.clone()).await, expected);
            expected.reverse();
            let request = ListEventsRequest { order: Order::Desc.into(), ..request };
            assert_eq!(pages(&mut client, request).await, expected);
            expected.reverse();
        }
    }
}

#[tokio::test]
async fn time_bounds_hold_in_both_orders_and_a_list_can_be_followed() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..30).await;
    let mut client = gateway.client().await;
    let between = |from: usize, to: usize| oracle(gateway.log(), json!({}), 0)[from..to].to_vec();
    for order in [Order::Asc, Order::Desc] {
        let bounds = [
            ListEventsRequest {
                since: Some(timestamp(time(10))),
                until: Some(timestamp(time(20))),
                ..Default::default()
            },
            ListEventsRequest {
                event_since: Some(timestamp(time(10))),
                event_until: Some(timestamp(time(20))),
                ..Default::default()
            },
        ];
        for bound in bounds {
            let request = ListEventsRequest { page_size: 3, order: order.into(), ..bound };
            let mut got = pages(&mut client, request).await;
            if order == Order::Desc {
                got.reverse();
            }
            assert_eq!(got, between(10, 20), "{order:?}");
        }
    }
    let page = soon(client.list_events(ListEventsRequest::default())).await.unwrap().into_inner();
    assert!(page.caught_up && page.events.len() == 30, "100 a page when nothing is said");
    gateway.append(30..33).await;
    let more = ListEventsRequest { page_token: page.next_page_token, ..Default::default() };
    let more = soon(client.list_events(more)).await.unwrap().into_inner();
    let got: Vec<_> = more.events.into_iter().map(|event| event.id).collect();
    assert_eq!(got, between(30, 33));
}

#[tokio::test]
async fn a_list_refuses_what_it_does_not_understand() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..3).await;
    let mut client = gateway.client().await;
    let cases = [
        (ListEventsRequest { page_size: 1001, ..Default::default() }, "page_size"),
        (ListEventsRequest { page_size: -1, ..Default::default() }, "page_size"),
        (ListEventsRequest { page_token: "x".into(), ..Default::default() }, "page_token"),
        (ListEventsRequest { order: 7, ..Default::default() }, "order"),
        (ListEventsRequest { on_expired: 7, ..Default::default() }, "on_expired"),
    ];
    for (request, field) in cases {
        let status = soon(client.list_events(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    let foreign = Cursor { incarnation: 1, seq: 1, tag: 1 }.to_string();
    let request = ListEventsRequest { page_token: foreign, ..Default::default() };
    let status = soon(client.list_events(request.clone())).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(status.get_details_error_info().unwrap().reason, "CURSOR_OF_ANOTHER_LOG");
    let request = ListEventsRequest { on_expired: proto::OnExpired::Earliest.into(), ..request };
    let page = soon(client.list_events(request)).await.unwrap().into_inner();
    assert_eq!((page.events.len(), page.gap.unwrap().reason.as_str()), (3, "incarnation"));
    let filter = Some(proto::Filter { event_type: vec!["conection".into()], ..Default::default() });
    let request = ListEventsRequest { filter, ..Default::default() };
    let page = soon(client.list_events(request)).await.unwrap().into_inner();
    assert!(page.warnings[0].contains("conection") && page.gap.is_none());
}

#[tokio::test]
async fn the_gateways_own_events_are_found_by_id() {
    let gateway = Gateway::start(Setup::default());
    let event = Event::gateway("gw_1", "simcast.gap", time(1), serde_json::Map::new());
    let sealed = event.seal(time(1), SignedDuration::MAX).unwrap();
    gateway.log().append(vec![Entry { sealed, identity: 1, content: 0 }]).unwrap();
    let mut client = gateway.client().await;
    let found = soon(client.get_event(GetEventRequest { id: "gw_1".into() })).await.unwrap().into_inner();
    assert_eq!(found.event.unwrap().r#type, "simcast.gap");
    let page = soon(client.list_events(ListEventsRequest::default())).await.unwrap().into_inner();
    assert!(page.events.is_empty(), "an empty filter does not name it");
}

#[tokio::test]
async fn one_event_by_id_within_what_the_token_may_see() {
    let mut scoped = token("scoped");
    scoped.filter = Some(json_filter(json!({"iccid": [iccid(1)]})));
    let gateway = Gateway::start(Setup { tokens: vec![scoped, token("all")], ..Default::default() });
    gateway.append(0..5).await;
    let mut client = gateway.client().await;
    let get = |id: &str, token: &str| authorized(GetEventRequest { id: id.into() }, token);
    let event = soon(client.get_event(get("evt_2", "all"))).await.unwrap().into_inner().event.unwrap();
    assert_eq!((event.id.as_str(), event.iccid.as_str()), ("evt_2", iccid(2).as_str()));
    assert_eq!(event.cursor, gateway.log().cursor_at(3).to_string());
    soon(client.get_event(get("evt_1", "scoped"))).await.unwrap();
    for (id, token) in [("evt_2", "scoped"), ("evt_99", "all")] {
        let status = soon(client.get_event(get(id, token))).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{id}");
    }
    let status = soon(client.get_event(get("", "all"))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn the_stream_describes_itself_as_rest_does() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..5).await;
    let seen =
        Upstream { state: UpstreamState::RateLimited, seen_until: Some(time(3)), ..Upstream::default() };
    gateway.upstream.send_replace(Arc::new(seen));
    let mut client = gateway.client().await;
    let info = soon(client.get_stream_info(GetStreamInfoRequest {})).await.unwrap().into_inner();
    assert_eq!((info.events, info.bus.as_str()), (5, "embedded"));
    assert_eq!(cursor_of(&info.oldest_cursor).seq, 0);
    assert_eq!(cursor_of(&info.newest_cursor).seq, 5);
    assert_eq!(info.newest_time.unwrap().seconds, time(4).as_second());
    assert_eq!(info.upstream(), proto::UpstreamState::RateLimited);
    assert_eq!(info.seen_until.unwrap().seconds, time(3).as_second());
    let json: serde_json::Value = serde_json::from_str(&info.json).unwrap();
    assert_eq!(
        json,
        serde_json::from_str::<serde_json::Value>(
            &crate::frontends::info::stream(&gateway.context).to_string()
        )
        .unwrap()
    );
    assert_eq!(json["newest_cursor"], info.newest_cursor);
}
