//! `SimService` against the registry: pages, mistakes, what a token may see.

use tonic_types::StatusExt as _;

use super::*;
use crate::proto::{
    GetSimRequest, ListSimsRequest, Presence, SimOrder, sim_service_client::SimServiceClient,
};

async fn known(gateway: &Gateway) {
    let caught_up = async {
        while gateway.context.sims.lag() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HANG, caught_up).await.unwrap();
}

#[tokio::test]
async fn sims_are_listed_in_pages_and_given_one_by_one() {
    let gateway = Gateway::start(Setup::default());
    gateway.append(0..30).await;
    known(&gateway).await;
    let mut client = SimServiceClient::new(gateway.channel().await);
    for order in [SimOrder::Iccid, SimOrder::LastSeen] {
        let mut request = ListSimsRequest { page_size: 2, order: order.into(), ..Default::default() };
        let mut got = Vec::new();
        loop {
            let page = client.list_sims(request.clone()).await.unwrap().into_inner();
            assert_eq!((page.total, page.as_of.as_str()), (5, &*gateway.log().cursor_at(30).to_string()));
            got.extend(page.sims.into_iter().map(|sim| sim.iccid));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        let mut expected: Vec<_> = (0..5).map(iccid).collect();
        if order == SimOrder::LastSeen {
            expected.reverse();
        }
        assert_eq!(got, expected);
    }
    let found = client.get_sim(GetSimRequest { iccid: iccid(4) }).await.unwrap().into_inner().sim.unwrap();
    // The last one of it is event 29, a network_change.
    assert_eq!((found.events, found.presence()), (6, Presence::Online));
    assert_eq!(found.last_event.unwrap().id, "evt_29");
    assert_eq!(found.msisdn.as_deref(), Some("+4791234567"));

    let refused = |request: ListSimsRequest| {
        let mut client = client.clone();
        async move {
            let status = client.list_sims(request).await.unwrap_err();
            (
                status.code(),
                status.get_error_details().bad_request().unwrap().field_violations[0].field.clone(),
            )
        }
    };
    let filter = Some(proto::Filter { event_type: vec!["connection".into()], ..Default::default() });
    let cases = [
        (ListSimsRequest { filter, ..Default::default() }, "filter.event_type"),
        (ListSimsRequest { page_size: 1_001, ..Default::default() }, "page_size"),
        (ListSimsRequest { presence: 9, ..Default::default() }, "presence"),
        (ListSimsRequest { page_token: "x".into(), ..Default::default() }, "page_token"),
    ];
    for (request, field) in cases {
        assert_eq!(refused(request).await, (tonic::Code::InvalidArgument, field.to_owned()));
    }
    let unknown = client.get_sim(GetSimRequest { iccid: "8947999999999999999".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_token_sees_the_sims_of_its_filter() {
    let scope = json_filter(serde_json::json!({"iccid": [iccid(1)]}));
    let tokens = vec![TokenConfig { filter: Some(scope), ..token("one") }];
    let gateway = Gateway::start(Setup { tokens, ..Default::default() });
    gateway.append(0..10).await;
    known(&gateway).await;
    let mut client = SimServiceClient::new(gateway.channel().await);
    let anonymous = client.list_sims(ListSimsRequest::default()).await.unwrap_err();
    assert_eq!(anonymous.code(), tonic::Code::Unauthenticated);
    let with_token = |message| {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", "Bearer one".parse().unwrap());
        request
    };
    let page = client.list_sims(with_token(ListSimsRequest::default())).await.unwrap().into_inner();
    assert_eq!((page.total, page.sims[0].iccid.clone()), (1, iccid(1)));
    let mut request = tonic::Request::new(GetSimRequest { iccid: iccid(2) });
    request.metadata_mut().insert("authorization", "Bearer one".parse().unwrap());
    assert_eq!(client.get_sim(request).await.unwrap_err().code(), tonic::Code::NotFound);
}
