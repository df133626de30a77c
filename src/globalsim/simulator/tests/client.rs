//! The gateway's own client against the simulator: both were written from the API document, so that where they
//! meet, one checks the other.

use std::collections::HashMap;

use super::faults::Content;
use super::*;
use crate::event::Iccid;
use crate::globalsim::{
    self, ActivityQuery, BudgetConfig, Class, Client, Gate, KeySource, Page, PageQuery, Row, Secret,
};

fn client(bench: &Bench) -> Client {
    let clock: clock::SharedClock = Arc::new(TokioClock::starting_at(noon()));
    let budget = BudgetConfig { requests_per_minute: 500, ..BudgetConfig::default() };
    let key = KeySource::Inline(Secret::new(DEFAULT_API_KEY).unwrap());
    let gate = Gate::open(budget, clock.clone()).unwrap();
    Client::new(globalsim::Config::new(bench.sim.base_url(), key), gate, clock).unwrap()
}

async fn account_page(client: &Client) -> Page<Row> {
    let query = ActivityQuery { limit: 100, ..ActivityQuery::default() };
    client.activity(Class::Tail, &query).await.unwrap()
}

#[tokio::test]
async fn both_shapes_of_an_event_are_read_as_one() {
    let bench = bench(quiet()).await;
    let truth: HashMap<String, TruthEvent> = bench
        .sim
        .inject_burst(100)
        .into_iter()
        .map(|event| (event.event_id.clone().unwrap(), event))
        .collect();
    let client = client(&bench);
    let page = account_page(&client).await;
    assert_eq!((page.rows.len(), page.total), (100, Some(100)));
    let mut per_sim = HashMap::new();
    for sim in bench.sim.fleet() {
        let iccid = Iccid::parse(&sim.iccid).unwrap();
        let query = PageQuery { limit: 100, ..PageQuery::default() };
        let page = client.sim_activity(Class::Details, &iccid, &query).await.unwrap();
        let rows = page.rows.into_iter().map(Result::unwrap);
        per_sim.extend(rows.map(|row| (row.event_id().unwrap().to_owned(), row)));
    }
    assert_eq!(per_sim.len(), 100);
    for row in page.rows.into_iter().map(Result::unwrap) {
        let (want, rich) = (&truth[row.event_id().unwrap()], &per_sim[row.event_id().unwrap()]);
        assert_eq!((row.complete, rich.complete), (false, true));
        assert_eq!((row.identity_hash(), row.content), (rich.identity_hash(), rich.content), "{want:?}");
        let event = &row.event;
        assert_eq!(event.event_type, want.event_type);
        assert_eq!(event.iccid.as_ref().map(Iccid::as_str), Some(&*want.iccid));
        assert_eq!(event.device_id.as_deref(), want.device_id.as_deref());
        assert_eq!(event.msisdn.as_deref(), Some(&*want.msisdn));
    }
}

#[tokio::test]
async fn the_client_reaches_every_device() {
    let bench = bench(quiet()).await;
    let client = client(&bench);
    for sim in bench.sim.fleet() {
        let Some(device) = sim.device_id else { continue };
        let found = client.device_sim(Class::Sessions, &device).await.unwrap();
        assert_eq!(found.device_id.as_deref(), Some(&*device));
        assert_eq!(found.iccid.as_ref().map(Iccid::as_str), Some(&*sim.iccid));
    }
}

#[tokio::test]
async fn no_oddity_costs_the_client_a_page() {
    let content = Content {
        duplicate_id: 0.2,
        missing_id: 0.2,
        missing_iccid: 0.2,
        unknown_type: 0.2,
        extra_fields: 0.2,
        nulls: 0.2,
        numbers_as_strings: 0.2,
        odd_timestamp: 0.3,
        ..Content::default()
    };
    let bench = bench(Config { faults: Faults { content, ..Faults::default() }, ..quiet() }).await;
    bench.sim.inject_burst(100);
    let page = account_page(&client(&bench)).await;
    assert_eq!(page.rows.len(), 100);
    let good = page.rows.iter().flatten().count();
    assert!(good >= 80, "{good} rows of 100 were understood");
}
