//! The registry against a plain fold of the same events, over restarts; what is forgotten stays so.

use std::{collections::BTreeMap, sync::atomic::AtomicI64, sync::atomic::Ordering};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    clock::Clock,
    event::{Event, Flag, Network, Session, Usage},
    log::Entry as LogEntry,
};

const BASE: i64 = 1_763_000_000;
const SIMS: [&str; 3] = ["8947000000000000001", "8947000000000000002", "8946000000000000003"];
const TYPES: [&str; 9] = [
    "connection",
    "disconnection",
    "network_change",
    "data_usage_update",
    "location_update",
    "session_started",
    "session_updated",
    "session_ended",
    "sim_linked",
];

/// Seconds after [`BASE`], set by the test.
#[derive(Debug, Default)]
struct SetClock(AtomicI64);

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(BASE + self.0.load(Ordering::Relaxed)).unwrap()
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(BASE + seconds).unwrap()
}

/// One event, small numbers for everything.
#[derive(Debug, Clone)]
struct Spec {
    sim: usize,
    kind: usize,
    /// Seconds; beyond the time of observation for some.
    time: i64,
    device: Option<u8>,
    msisdn: Option<u8>,
    network: Option<u8>,
    /// Session and its amount in hundredths.
    session: (u8, u32),
    enriched: bool,
}

fn spec() -> impl Strategy<Value = Spec> {
    let small = || proptest::option::of(0..3_u8);
    let tuple = (0..3_usize, 0..9_usize, -400..1_200_i64, small(), small(), small(), (0..4_u8, 0..999_u32));
    (tuple, any::<bool>()).prop_map(|((sim, kind, time, device, msisdn, network, session), enriched)| Spec {
        sim,
        kind,
        time,
        device,
        msisdn,
        network,
        session,
        enriched,
    })
}

fn hundredths(n: u32) -> serde_json::Number {
    serde_json::from_str(&format!("{}.{:02}", n / 100, n % 100)).unwrap()
}

impl Spec {
    /// When it is observed: the log stamps in order.
    fn observed(n: usize) -> Timestamp {
        at(i64::try_from(n).unwrap() * 3)
    }

    fn event(&self, n: usize) -> Event {
        let mut event = Event::new(format!("evt_{n}"), "/globalsim/test".into(), TYPES[self.kind]);
        event.iccid = Iccid::parse(SIMS[self.sim]).ok();
        event.time = Some(at(self.time));
        event.device_id = self.device.map(|n| format!("dev_{n}"));
        event.msisdn = self.msisdn.map(|n| format!("+479000000{n}"));
        event.network = self.network.map(|n| Network {
            country: Some("Norway".into()),
            country_code: Some("NO".into()),
            network_code: Some(format!("2420{n}")),
            ..Network::default()
        });
        match TYPES[self.kind] {
            "data_usage_update" => {
                let current_usage_mb = Some(hundredths(self.session.1));
                event.usage = Some(Usage { current_usage_mb, period: Some("current_month".into()) });
            }
            kind if kind.starts_with("session_") => {
                event.session = Some(Session {
                    session_id: Some(format!("s{}", self.session.0)),
                    start_time: Some(at(i64::from(self.session.0)).to_string()),
                    total_mb: Some(hundredths(self.session.1)),
                    ..Session::default()
                });
            }
            "sim_linked" => {
                let previous = SIMS[usize::from(self.session.0) % 3];
                event.details = Some(json!({ "previous_iccid": previous }));
            }
            _ => {}
        }
        if self.enriched {
            event.flags.insert(Flag::Enriched);
        }
        event
    }

    fn entry(&self, n: usize) -> LogEntry {
        let sealed = self.event(n).seal(Self::observed(n), SignedDuration::MAX).unwrap();
        LogEntry { sealed, identity: n as u64, content: 0 }
    }
}

/// What the registry must say of one SIM, made from all of its events without any cleverness.
fn plain(specs: &[Spec], sim: usize) -> Value {
    let when = |n: usize| at(specs[n].time).min(Spec::observed(n));
    let mine = |n: &usize| specs[*n].sim == sim;
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|n| (when(*n), *n));
    let newest =
        |test: &dyn Fn(&Spec) -> bool| order.iter().copied().filter(mine).rfind(|n| test(&specs[*n]));
    let kind = |spec: &Spec| TYPES[spec.kind];
    let last = newest(&|spec| kind(spec) != "sim_linked");
    let online = newest(&|spec| {
        ["connection", "disconnection", "network_change", "data_usage_update", "session_started"]
            .contains(&kind(spec))
    });
    // A link takes the device from the SIM of before, where that one is known by then.
    let known_at = |n: usize| specs[..n].iter().any(|spec| spec.sim == sim);
    let taken = |n: usize| {
        let spec = &specs[n];
        let previous = usize::from(spec.session.0) % 3;
        kind(spec) == "sim_linked" && spec.sim != sim && previous == sim && known_at(n)
    };
    let device = order.iter().copied().rfind(|n| (mine(n) && specs[*n].device.is_some()) || taken(*n));
    let device = device.filter(mine).and_then(|n| Some((n, specs[n].device?)));
    let msisdn = newest(&|spec| spec.msisdn.is_some());
    let network = newest(&|spec| spec.network.is_some());
    let reported = newest(&|spec| kind(spec) == "data_usage_update");
    let mut sessions = BTreeMap::new();
    for n in (0..specs.len()).filter(mine).filter(|n| kind(&specs[*n]).starts_with("session_")) {
        let session = sessions.entry(specs[n].session.0).or_insert((0, false));
        session.0 = specs[n].session.1;
        session.1 |= kind(&specs[n]) == "session_ended";
    }
    let sum: u32 = sessions.values().map(|session| session.0).sum();
    let open = sessions.iter().rfind(|(_, session)| !session.1);
    let mut derived = Vec::new();
    let sources = [("device_id", device.map(|found| found.0)), ("msisdn", msisdn), ("network", network)];
    derived.extend(sources.iter().filter(|(_, n)| n.is_some() && *n != last).map(|(name, _)| *name));
    json!({
        "device_id": device.map(|(_, n)| format!("dev_{n}")),
        "msisdn": msisdn.map(|n| format!("+479000000{}", specs[n].msisdn.unwrap())),
        "network_code": network.map(|n| format!("2420{}", specs[n].network.unwrap())),
        "derived": derived,
        "online": online.map(|n| kind(&specs[n]) != "disconnection"),
        "last": last.map(|n| json!([format!("evt_{n}"), kind(&specs[n]), when(n), at(specs[n].time)])),
        "first": (0..specs.len()).filter(mine).filter(|n| kind(&specs[*n]) != "sim_linked").map(when).min(),
        "events": (0..specs.len()).filter(mine).filter(|n| !specs[*n].enriched).count(),
        "reported": reported.map(|n| hundredths(specs[n].session.1)),
        "sessions": [sessions.len(), Megabytes::of(&hundredths(sum)).unwrap().to_number()],
        "open": open.map(|(id, session)| json!([format!("s{id}"), Megabytes::of(&hundredths(session.0)).unwrap().to_number()])),
    })
}

fn shown(sim: &Sim) -> Value {
    json!({
        "device_id": sim.device_id,
        "msisdn": sim.msisdn,
        "network_code": sim.network.as_ref().and_then(|network| network.network_code.clone()),
        "derived": sim.derived,
        "online": sim.online,
        "last": sim.last_event.as_ref().map(|last| json!([last.id, last.event_type, sim.last_seen, last.time])),
        "first": sim.first_seen,
        "events": sim.events,
        "reported": sim.usage.reported.as_ref().map(|reported| reported.current_usage_mb.clone()),
        "sessions": [sim.usage.sessions, sim.usage.sessions_mb],
        "open": sim.open_session.as_ref().map(|session| json!([session.session_id, session.total_mb])),
    })
}

fn config(directory: Option<&std::path::Path>) -> Config {
    Config { directory: directory.map(Into::into), ..Config::default() }
}

/// Reads to the edge, without the task.
async fn catch_up(registry: &mut Registry) {
    while !registry.follower.is_at_edge() {
        let page = registry.follower.next().await.unwrap();
        registry.shared.absorb(&page);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn known(handle: &Handle) -> Vec<(String, Value)> {
    handle.iccids().iter().map(|iccid| (iccid.to_string(), shown(&handle.get(iccid).unwrap()))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Batches of events in any order of their times; after each batch nothing, a checkpoint, an end with a checkpoint,
    /// or a crash, which loses what came after the last checkpoint.
    #[test]
    fn it_is_the_fold_of_the_log_whatever_comes_late_and_wherever_it_is_killed(
        batches in proptest::collection::vec((proptest::collection::vec(spec(), 1..12), 0..4_u8), 1..8),
    ) {
        runtime().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let clock: SharedClock = Arc::new(SetClock::default());
            let log = Arc::new(Log::in_memory(5));
            let open = || super::open(config(Some(directory.path())), &log, Arc::clone(&clock));
            let (mut handle, mut registry) = open();
            let mut specs: Vec<Spec> = Vec::new();
            for (batch, then) in batches {
                log.append(batch.iter().enumerate().map(|(n, spec)| spec.entry(specs.len() + n)).collect()).unwrap();
                specs.extend(batch);
                catch_up(&mut registry).await;
                if then == 1 || then == 2 {
                    registry.shared.checkpoint().unwrap();
                }
                if then >= 2 {
                    (handle, registry) = open();
                    catch_up(&mut registry).await;
                }
            }
            let expected: BTreeMap<_, _> = (0..SIMS.len())
                .filter(|sim| specs.iter().any(|spec| spec.sim == *sim))
                .map(|sim| (SIMS[sim].to_owned(), plain(&specs, sim)))
                .collect();
            assert_eq!(known(&handle), expected.into_iter().collect::<Vec<_>>());
            let online = handle.iccids().iter().filter(|iccid| handle.get(iccid).unwrap().online == Some(true)).count();
            assert_eq!(registry.shared.state.read().online, online);

            let (rebuilt, mut registry) = super::open(config(None), &log, clock);
            catch_up(&mut registry).await;
            assert_eq!(known(&rebuilt), known(&handle));
        });
    }
}

fn simple(sim: usize, kind: usize, time: i64) -> Spec {
    Spec { sim, kind, time, device: None, msisdn: None, network: None, session: (0, 150), enriched: false }
}

#[tokio::test]
async fn a_checkpoint_that_is_damaged_or_of_another_log_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let clock: SharedClock = Arc::new(SetClock::default());
    let log = Arc::new(Log::in_memory(5));
    log.append(vec![simple(0, 0, 1).entry(0), simple(1, 1, 2).entry(1)]).unwrap();
    let (first, mut registry) = open(config(Some(directory.path())), &log, Arc::clone(&clock));
    catch_up(&mut registry).await;
    registry.shared.checkpoint().unwrap();
    let path = directory.path().join(checkpoint::NAME);
    let good = std::fs::read(&path).unwrap();
    let (kept, _registry) = open(config(Some(directory.path())), &log, Arc::clone(&clock));
    assert_eq!((kept.lag(), known(&kept)), (0, known(&first)), "without reading the log");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let (handle, mut registry) = open(config(Some(directory.path())), &log, Arc::clone(&clock));
        // Beside what the checksum guards, the line of the checksum itself may be spelled otherwise.
        assert!(handle.is_empty() || at > good.len() - 30, "byte {at} is damaged");
        catch_up(&mut registry).await;
        assert_eq!(known(&handle), known(&first), "byte {at} is damaged");
    }
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(open(config(Some(directory.path())), &log, Arc::clone(&clock)).0.is_empty());
    std::fs::write(&path, &good).unwrap();
    let other = Arc::new(Log::in_memory(6));
    let (handle, _registry) = open(config(Some(directory.path())), &other, clock);
    assert!(handle.is_empty());
}

#[tokio::test]
async fn what_is_forgotten_is_gone_from_memory_and_disk_and_does_not_come_back_from_a_page() {
    let directory = tempfile::tempdir().unwrap();
    let clock: SharedClock = Arc::new(SetClock::default());
    let log = Arc::new(Log::in_memory(5));
    let iccid = Iccid::parse(SIMS[0]).unwrap();
    log.append(vec![simple(0, 0, 1).entry(0), simple(1, 0, 2).entry(1)]).unwrap();
    let (handle, mut registry) = open(config(Some(directory.path())), &log, Arc::clone(&clock));
    catch_up(&mut registry).await;
    log.append(vec![simple(0, 0, 3).entry(2)]).unwrap();
    let page = registry.follower.next().await.unwrap();
    assert!(handle.forget(&iccid).await.unwrap());
    registry.shared.absorb(&page);
    assert_eq!((handle.get(&iccid), handle.len(), handle.iccids().len()), (None, 1, 1));
    let file = std::fs::read_to_string(directory.path().join(checkpoint::NAME)).unwrap();
    assert!(!file.contains(SIMS[0]) && file.contains(SIMS[1]), "{file}");
    assert!(!handle.forget(&iccid).await.unwrap(), "it is not known any more");

    log.append(vec![simple(0, 0, 4).entry(3)]).unwrap();
    catch_up(&mut registry).await;
    assert_eq!(handle.get(&iccid).unwrap().events, 1, "what comes later is a SIM like any other");
}

#[tokio::test]
async fn the_month_ends_by_the_clock() {
    let clock = Arc::new(SetClock::default());
    let log = Arc::new(Log::in_memory(5));
    log.append(vec![simple(0, 3, 1).entry(0), simple(0, 7, 2).entry(1)]).unwrap();
    let (handle, mut registry) = open(config(None), &log, clock.clone());
    catch_up(&mut registry).await;
    let iccid = Iccid::parse(SIMS[0]).unwrap();
    let usage = |second: &str| {
        let time: Timestamp = second.parse().unwrap();
        clock.0.store(time.as_second() - BASE, Ordering::Relaxed);
        let usage = handle.get(&iccid).unwrap().usage;
        (usage.month, usage.reported.is_some(), usage.sessions_mb.to_string(), usage.sessions)
    };
    assert_eq!(usage("2025-11-30T23:59:59Z"), ("2025-11".into(), true, "1.5".into(), 1));
    assert_eq!(usage("2025-12-01T00:00:00Z"), ("2025-12".into(), false, "0".into(), 0));
}

#[tokio::test]
async fn the_configuration_names_sims_and_no_more_are_kept_than_may_be() {
    let clock: SharedClock = Arc::new(SetClock::default());
    let log = Arc::new(Log::in_memory(5));
    log.append(vec![simple(0, 0, 1).entry(0), simple(1, 0, 2).entry(1)]).unwrap();
    let iccids = vec![Iccid::parse(SIMS[2]).unwrap()];
    let (handle, mut registry) =
        open(Config { iccids: iccids.clone(), sims_max: 2, ..config(None) }, &log, clock);
    let configured = handle.get(&iccids[0]).unwrap();
    assert_eq!((configured.source, configured.online, configured.last_event), (Source::Config, None, None));
    catch_up(&mut registry).await;
    assert_eq!((handle.len(), registry.shared.state.read().refused), (2, 1));
    log.append(vec![simple(2, 1, 3).entry(2)]).unwrap();
    catch_up(&mut registry).await;
    let seen = handle.get(&iccids[0]).unwrap();
    assert_eq!((seen.source, seen.online), (Source::Log, Some(false)));
}

#[tokio::test]
async fn it_follows_the_log_and_leaves_a_checkpoint_when_it_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let clock: SharedClock = Arc::new(SetClock::default());
    let log = Arc::new(Log::in_memory(5));
    let (handle, registry) = open(config(Some(directory.path())), &log, Arc::clone(&clock));
    let stop = CancellationToken::new();
    let running = tokio::spawn(registry.run(stop.clone()));
    log.append(vec![simple(0, 0, 1).entry(0)]).unwrap();
    let caught_up = async {
        while handle.lag() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), caught_up).await.unwrap();
    stop.cancel();
    running.await.unwrap();
    let (again, _registry) = open(config(Some(directory.path())), &log, clock);
    assert_eq!((again.lag(), again.len()), (0, 1));
}

#[tokio::test]
async fn pages_cover_all_sims_once_in_both_orders() {
    let clock: SharedClock = Arc::new(SetClock::default());
    let log = Arc::new(Log::in_memory(5));
    let entry = |n: usize| {
        let mut event = simple(0, n % 2, i64::try_from((n * 37) % 50).unwrap()).event(n);
        event.iccid = Iccid::parse(&format!("8947{n:015}")).ok();
        let sealed = event.seal(at(1_000), SignedDuration::MAX).unwrap();
        LogEntry { sealed, identity: n as u64, content: 0 }
    };
    log.append((0..50).map(entry).collect()).unwrap();
    let silent = Iccid::parse("8999000000000000001").unwrap();
    let (handle, mut registry) = open(Config { iccids: vec![silent], ..config(None) }, &log, clock);
    catch_up(&mut registry).await;
    let all: Vec<Sim> = handle.iccids().iter().map(|iccid| handle.get(iccid).unwrap()).collect();
    for sort in [Sort::Iccid, Sort::LastSeen] {
        for presence in [None, Some(Presence::Online), Some(Presence::Unknown)] {
            let mut expected = all.clone();
            expected.retain(|sim| match presence {
                None => true,
                Some(Presence::Unknown) => sim.online.is_none(),
                Some(wanted) => sim.online == Some(wanted == Presence::Online),
            });
            if sort == Sort::LastSeen {
                expected.sort_by_key(|sim| (std::cmp::Reverse(sim.last_seen), sim.iccid.clone()));
            }
            for limit in [1, 7, 51, 1_000] {
                let mut query = Query { sort, presence, limit, ..Query::default() };
                let mut got = Vec::new();
                loop {
                    let page = handle.list(&query);
                    assert_eq!(page.total, expected.len() as u64);
                    got.extend(page.sims);
                    query.after = page.next;
                    if query.after.is_none() {
                        break;
                    }
                }
                assert_eq!(got, expected, "{sort:?} {presence:?} {limit}");
            }
        }
    }
    let page = handle.list(&Query {
        seen_since: Some(at(10)),
        seen_before: Some(at(20)),
        limit: 100,
        ..Query::default()
    });
    assert_eq!((page.total, page.as_of_time), (10, Some(at(1_000))));
}
