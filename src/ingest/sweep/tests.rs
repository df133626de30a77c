//! Sweeps, and nothing but sweeps, against a list in memory that changes between any two requests: rows come at the
//! head and, late, anywhere in the depth of the lateness allowed; rows go; rows change. Whatever a sweep that came to
//! its end had to find is then in the log once.
//!
//! What it had to find is what the argument at the head of [`super`] says: every row that was visible when it began,
//! still is, and was not later than allowed; also where the sweep that should have found it was lost on its way, and
//! where the list is that long that it is read from below.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    globalsim::simulator::{self, Faults, faults},
    ingest::{
        DetailsMode,
        board::Board,
        findings::Findings,
        intake::{Intake, IntakeConfig, Limits},
        position::{Position, PositionStore},
        probe,
        tests::rig::{Rig, quiet},
        upstream::Upstream,
    },
};

/// What a row may be late by.
const LATENESS: Duration = Duration::from_secs(600);
/// Sweeps that may be lost on their way, one after the other.
const LOST_MAX: u32 = 5;

#[derive(Debug, Clone)]
struct Story {
    order: faults::Order,
    ties: faults::TieOrder,
    paging: faults::Paging,
    total: faults::Total,
    page_cap: Option<usize>,
    /// How long an answer takes, in milliseconds.
    answer_ms: u64,
    /// Seconds before each sweep, and rows that come at once meanwhile.
    pauses: Vec<(u64, usize)>,
    seed: u64,
}

fn story() -> impl Strategy<Value = Story> {
    let order = prop_oneof![2 => Just(faults::Order::Newest), 1 => Just(faults::Order::Oldest)];
    let ties = prop_oneof![Just(faults::TieOrder::Arrival), Just(faults::TieOrder::Random)];
    let paging = (0_u32..20, 0_u32..5, 0_u32..4, 0_u32..3, 0_u32..2);
    let paging = paging.prop_map(|(inserts, late, erases, removes_oldest, revisions)| faults::Paging {
        inserts,
        late,
        late_within_s: LATENESS.as_secs(),
        erases,
        removes_oldest,
        revisions,
        ..faults::Paging::default()
    });
    let total = prop_oneof![
        3 => Just(faults::Total::Exact),
        1 => Just(faults::Total::Absent),
        1 => (-9_i64..9).prop_map(faults::Total::OffBy)
    ];
    let burst = prop_oneof![40 => 0_usize..250, 1 => Just(SWEEP_ROWS_MAX + 300)];
    let pauses = proptest::collection::vec((1_u64..900, burst), 3..7);
    let page_cap = proptest::option::weighted(0.2, 40_usize..100);
    (order, ties, paging, total, page_cap, 0_u64..3_000, pauses, any::<u64>()).prop_map(
        |(order, ties, paging, total, page_cap, answer_ms, pauses, seed)| Story {
            // Going backwards needs to know how long the list is.
            total: if order == faults::Order::Oldest { faults::Total::Exact } else { total },
            page_cap: page_cap.filter(|_| order == faults::Order::Newest),
            order,
            ties,
            paging,
            answer_ms,
            pauses,
            seed,
        },
    )
}

impl Story {
    fn faults(&self) -> Faults {
        Faults {
            order: self.order,
            tie_order: self.ties,
            lists: faults::Lists { total: self.total, page_cap: self.page_cap, ..Default::default() },
            transport: faults::Transport {
                slow: 1.0,
                slow_min_ms: self.answer_ms / 2,
                slow_max_ms: self.answer_ms,
                ..Default::default()
            },
            ..Faults::default()
        }
    }
}

/// A session without any reader, on the rig's log; what it needs runs in the tasks.
async fn session(rig: &Rig, tasks: &mut JoinSet<()>) -> Session {
    let board = Arc::new(Board::new());
    let client = rig.client();
    let gate = client.gate().clone();
    let upstream = Arc::new(Upstream::new(client, Arc::clone(&board), 1));
    let mut findings = Findings::default();
    let window = Window::default();
    let first = upstream.page(Class::Tail, &window, 0).await.unwrap();
    probe::probe(&upstream, Class::Tail, &mut findings, &window, &first).await.unwrap();
    let bus = rig.attended();
    let origin = first.asked_at - SignedDuration::from_hours(24);
    let config = IntakeConfig {
        source: "/globalsim/test".into(),
        details: DetailsMode::Off,
        details_wait: Duration::ZERO,
        limits: Limits { origin, ids_kept: SignedDuration::from_hours(24 * 7) },
        stopping: CancellationToken::new(),
        fence: None,
        roster: Arc::default(),
    };
    let clock = Arc::clone(&rig.clock);
    let (intake, details, writer) =
        Intake::new(config, Arc::clone(&upstream), Arc::clone(&bus), Arc::clone(&board), clock);
    tasks.spawn(details);
    tasks.spawn(async move { writer.await.unwrap() });
    let position = Position { floor: first.asked_at, origin, backfill: None, log: None };
    let store = PositionStore::new(bus, Arc::clone(&board), position);
    Session::new(upstream, intake, board, store, Arc::clone(&rig.clock), gate, LATENESS, findings)
}

/// Sweeps until one comes to its end, as the poller does.
async fn swept(session: &Session) -> Result<Timestamp, TestCaseError> {
    for _ in 0..LOST_MAX {
        let began = session.clock.now();
        match complete(session).await {
            Ok(()) => return Ok(began),
            Err(Halt::Lost) => {}
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }
    Err(TestCaseError::fail("no sweep came to its end"))
}

/// Everything that was visible before `began` and still is, and was not there from the first, is in the log; and
/// nothing is there twice.
fn check(rig: &Rig, began: Timestamp) -> Result<(), TestCaseError> {
    let mut copies: BTreeMap<String, usize> = BTreeMap::new();
    for event in rig.logged() {
        let id = event.data("event_id").as_str().unwrap_or_default().to_owned();
        *copies.entry(id).or_default() += 1;
    }
    prop_assert!(copies.values().all(|count| *count == 1), "twice in the log");
    let had_to_come = |truth: &simulator::TruthEvent| {
        !truth.history && truth.visible_at < began && truth.removed_at.is_none()
    };
    let truth = rig.sim.truth();
    let lost = truth.iter().filter(|truth| had_to_come(truth)).find(|truth| {
        let id = truth.event_id.as_deref().unwrap_or_default();
        !copies.contains_key(id)
    });
    prop_assert!(lost.is_none(), "lost by a sweep that began at {}: {:?}", began, lost);
    Ok(())
}

async fn told(story: Story) -> Result<(), TestCaseError> {
    let config = simulator::Config { faults: story.faults(), seed: story.seed, ..quiet() };
    let rig = Rig::with(config).await;
    let mut tasks = JoinSet::new();
    let session = session(&rig, &mut tasks).await;
    rig.sim.set_faults(Faults { paging: story.paging.clone(), ..story.faults() });
    for (pause_s, burst) in &story.pauses {
        tokio::time::sleep(Duration::from_secs(*pause_s)).await;
        rig.sim.inject_burst(*burst);
        rig.sim.erase(burst / 20);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = swept(&session).await?;
        check(&rig, began)?;
    }
    drop(session);
    tasks.shutdown().await;
    rig.sim.shutdown().await;
    Ok(())
}

/// A sweep takes a while, and a row that comes late meanwhile, where it has read already, is not in it. Only because the
/// floor is when the sweep began, the next one reads that far down.
#[tokio::test(start_paused = true)]
async fn what_comes_late_behind_a_sweep_on_its_way_is_found_by_the_next() {
    let mut rig = Rig::with(simulator::Config { history_events_per_second: 0.0, ..quiet() }).await;
    rig.config.lateness = LATENESS;
    let mut tasks = JoinSet::new();
    let session = session(&rig, &mut tasks).await;
    tokio::time::sleep(Duration::from_secs(1_500)).await;
    // Prompt ones, or upstream's clock would be taken to be behind; some pages of rows about as old as a row may be
    // late, and many that are older.
    rig.sim.inject_burst(30);
    let ages = (0..600).map(|n| 500 + n / 6).chain((0..2_000).map(|n| 620 + n / 3));
    for age in ages {
        let timestamp = Some(rig.clock.now() - SignedDuration::from_secs(age));
        rig.sim.inject(simulator::EventSpec { timestamp, ..Default::default() });
    }
    let transport =
        faults::Transport { slow: 1.0, slow_min_ms: 2_900, slow_max_ms: 2_900, ..Default::default() };
    rig.sim.set_faults(Faults { transport, ..Faults::default() });
    let sim = rig.sim.clone();
    let clock = Arc::clone(&rig.clock);
    let comes_late = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        let late = SignedDuration::try_from(LATENESS).unwrap();
        sim.inject(simulator::EventSpec { timestamp: Some(clock.now() - late), ..Default::default() })
    };
    let (began, (swept, late)) = (rig.clock.now(), tokio::join!(complete(&session), comes_late));
    swept.unwrap();
    let took = rig.clock.now().duration_since(began).as_secs();
    assert!(took > 60, "the sweep took {took} s");
    let id = late.event_id.unwrap();
    let log = rig.bus.log();
    assert!(log.find(&id).is_none(), "the row came behind the walk");
    complete(&session).await.unwrap();
    assert!(log.find(&id).is_some(), "the next sweep did not look for it");
    drop(session);
    tasks.shutdown().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sweep_that_comes_to_its_end_has_found_everything_it_had_to(story in story()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(told(story))?;
    }
}
