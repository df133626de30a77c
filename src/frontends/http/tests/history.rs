//! `GET /v1/events` against a naive oracle over the list of events: every order, filter and bound, page by page.

use std::collections::HashSet;

use jiff::Timestamp;
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::frontends::tests_support::{BASE, Fixture, ICCIDS, Sample, at, get};

const TYPES: [&str; 4] = ["connection", "disconnection", "network_change", "simcast.gap"];

/// A history read as a client would write it.
#[derive(Debug, Clone)]
struct Query {
    types: Vec<&'static str>,
    iccids: Vec<&'static str>,
    since: Option<i64>,
    until: Option<i64>,
    event_since: Option<i64>,
    event_until: Option<i64>,
    limit: u32,
    descending: bool,
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let one = (select(&TYPES[..]), select(&ICCIDS[..]), 0_i64..3, -5_i64..5);
    vec(one, 0..40).prop_map(|rows| {
        let mut observed = 0;
        rows.into_iter()
            .enumerate()
            .map(|(n, (event_type, iccid, step, offset))| {
                observed += step;
                Sample { id: format!("evt_{n}"), event_type, iccid, observed, time: observed + offset }
            })
            .collect()
    })
}

fn query() -> impl Strategy<Value = Query> {
    let time = || option::weighted(0.4, -3_i64..60);
    let types = vec(select(&TYPES[..]), 0..3);
    let iccids = vec(select(&ICCIDS[..]), 0..3);
    (types, iccids, time(), time(), time(), time(), 1_u32..12, any::<bool>()).prop_map(
        |(types, iccids, since, until, event_since, event_until, limit, descending)| Query {
            types,
            iccids,
            since,
            until,
            event_since,
            event_until,
            limit,
            descending,
        },
    )
}

impl Query {
    /// The contract, the slow way.
    fn oracle(&self, samples: &[Sample]) -> Vec<String> {
        let matches = |sample: &&Sample| {
            let gateway = sample.event_type.starts_with("simcast.");
            (self.types.contains(&sample.event_type) || (self.types.is_empty() && !gateway))
                && (self.iccids.is_empty() || (!gateway && self.iccids.contains(&sample.iccid)))
                && self.since.is_none_or(|since| sample.observed >= since)
                && self.until.is_none_or(|until| sample.observed < until)
                && self.event_since.is_none_or(|since| sample.time >= since)
                && self.event_until.is_none_or(|until| sample.time < until)
        };
        let ids = samples.iter().filter(matches).map(|sample| sample.id.clone());
        if self.descending { ids.rev().collect() } else { ids.collect() }
    }

    fn target(&self, cursor: Option<&str>) -> String {
        let mut target = format!("/v1/events?limit={}", self.limit);
        let mut add = |name: &str, value: &str| target.push_str(&format!("&{name}={value}"));
        if !self.types.is_empty() {
            add("event_type", &self.types.join(","));
        }
        for iccid in &self.iccids {
            add("iccid", iccid);
        }
        let times =
            [("until", self.until), ("event_since", self.event_since), ("event_until", self.event_until)];
        for (name, time) in times {
            if let Some(time) = time {
                add(name, &at(time).to_string());
            }
        }
        if self.descending {
            add("order", "desc");
        }
        // A start by time holds for the first page; going down it is where to end, so it stays.
        if let Some(since) = self.since.filter(|_| self.descending || cursor.is_none()) {
            add("since", &at(since).to_string());
        }
        if let Some(cursor) = cursor {
            add(if self.descending { "before" } else { "after" }, cursor);
        }
        target
    }
}

/// Reads until the answer says that nothing more lies there.
async fn walk(fixture: &Fixture, query: &Query) -> Vec<String> {
    let router = fixture.http();
    let mut ids = Vec::new();
    let mut cursor: Option<String> = None;
    // Each page that is not the last holds an event here, since all fit one read of the log.
    for _ in 0..200 {
        let answer = get(&router, &query.target(cursor.as_deref())).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text);
        let page = answer.json();
        let events = page["events"].as_array().unwrap();
        assert!(events.len() <= query.limit as usize);
        for event in events {
            let seq = crate::event::Cursor::parse(event["cursor"].as_str().unwrap()).unwrap().seq;
            assert_eq!(fixture.stored(seq).keys().unwrap().id, event["id"].as_str().unwrap());
            ids.push(event["id"].as_str().unwrap().to_owned());
        }
        if page["caught_up"].as_bool().unwrap() {
            return ids;
        }
        cursor = Some(page["next_cursor"].as_str().unwrap().to_owned());
    }
    panic!("the end never came: {query:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn pages_to_the_end_equal_the_oracle(samples in samples(), query in query()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let fixture = Fixture::new(vec![]);
        fixture.append(&samples);
        let got = runtime.block_on(walk(&fixture, &query));
        prop_assert_eq!(got, query.oracle(&samples));
    }
}

fn ten() -> Fixture {
    let fixture = Fixture::new(vec![]);
    let samples: Vec<_> =
        (0..10).map(|n| Sample::new(&format!("evt_{n}"), TYPES[n % 2], ICCIDS[n % 3], n as i64)).collect();
    fixture.append(&samples);
    fixture
}

async fn ids(fixture: &Fixture, target: &str) -> Vec<String> {
    let page = get(&fixture.http(), target).await.json();
    let events = page["events"].as_array().unwrap_or_else(|| panic!("{page}"));
    events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_start_is_understood() {
    let fixture = ten();
    let since = |seconds: i64| Timestamp::from_second(BASE + seconds).unwrap();
    assert_eq!(ids(&fixture, "/v1/events?limit=2").await, ["evt_0", "evt_1"]);
    assert_eq!(ids(&fixture, "/v1/events?from=earliest&limit=1").await, ["evt_0"]);
    assert_eq!(ids(&fixture, "/v1/events?order=desc&limit=2").await, ["evt_9", "evt_8"]);
    assert_eq!(ids(&fixture, "/v1/events?from=now").await, [""; 0]);
    assert_eq!(ids(&fixture, &format!("/v1/events?since={}", since(8))).await, ["evt_8", "evt_9"]);
    assert_eq!(ids(&fixture, "/v1/events?last=2").await, ["evt_8", "evt_9"]);
    assert_eq!(ids(&fixture, "/v1/events?last=2&event_type=connection").await, ["evt_6", "evt_8"]);
    let after = fixture.stored(9).cursor(7);
    assert_eq!(ids(&fixture, &format!("/v1/events?after={after}")).await, ["evt_9"]);
    assert_eq!(ids(&fixture, &format!("/v1/events?order=desc&limit=1&before={after}")).await, ["evt_7"]);
}

#[tokio::test]
async fn last_gives_as_many_as_asked_even_above_the_default_limit() {
    let fixture = Fixture::new(vec![]);
    let samples: Vec<_> =
        (0..300).map(|n| Sample::new(&format!("evt_{n}"), TYPES[0], ICCIDS[0], i64::from(n))).collect();
    fixture.append(&samples);
    assert_eq!(ids(&fixture, "/v1/events").await.len(), 100);
    let last = ids(&fixture, "/v1/events?last=250").await;
    assert_eq!((last.len(), last[0].as_str(), last[249].as_str()), (250, "evt_50", "evt_299"));
    assert_eq!(last.iter().collect::<HashSet<_>>().len(), 250);
}

#[tokio::test]
async fn a_page_is_the_stored_bytes_and_says_how_long_it_is() {
    let fixture = ten();
    let answer = get(&fixture.http(), "/v1/events?limit=2").await;
    let event = |seq| {
        let bytes = crate::event::json::with_cursor(&fixture.stored(seq), 7);
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    let next = fixture.stored(2).cursor(7);
    let expected =
        format!(r#"{{"events":[{},{}],"next_cursor":"{next}","caught_up":false}}"#, event(1), event(2));
    assert_eq!(answer.text, expected);
    assert_eq!(answer.headers["content-length"], expected.len().to_string().as_str());
}

#[tokio::test]
async fn values_that_look_like_mistakes_are_warned_of() {
    let fixture = ten();
    let page = get(&fixture.http(), "/v1/events?event_type=conection").await.json();
    assert_eq!(page["events"].as_array().unwrap().len(), 0);
    assert!(page["warnings"][0].as_str().unwrap().contains("conection"), "{page}");
    let page = get(&fixture.http(), "/v1/events?event_type=connection").await.json();
    assert!(page.get("warnings").is_none() && page.get("gap").is_none());
}
