//! What sessions and devices cost the tail, and how old they are, in a fleet of the size that the product is for.
//!
//! `SIMCAST_FLEET_HOURS=24 cargo test --release --lib fleet -- --nocapture` plays a day of 20,000 SIMs and prints; by
//! itself the test plays eighteen minutes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

use super::rig::Rig;
use crate::{
    event::Predicate,
    globalsim::simulator,
    ingest::sims::record::{self, SimRecord},
    log::{Direction, ReadRequest},
};

const SIMS: usize = 20_000;
/// Each SIM tells of itself once an hour.
const EVENTS_PER_SECOND: f64 = SIMS as f64 / 3_600.0;

/// What is not counted, at the beginning.
const WARM_UP: SignedDuration = SignedDuration::from_mins(3);

/// What a run came to.
struct Figures {
    /// From visible to appended, milliseconds, sorted.
    events_ms: Vec<i64>,
    /// From the start of a session to `session_started`, seconds, sorted.
    starts_s: Vec<i64>,
    /// How long ago the sessions of each SIM were read, seconds, sorted; those never read are counted apart.
    ages_s: Vec<i64>,
    unread: usize,
    requests: u64,
    shown: serde_json::Value,
}

fn percentile(sorted: &[i64], hundredths: usize) -> i64 {
    sorted.get((sorted.len() * hundredths / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

async fn play(with_sessions: bool, length: Duration) -> Figures {
    let config = simulator::Config {
        sims: SIMS,
        events_per_second: EVENTS_PER_SECOND,
        history: Duration::from_secs(600),
        history_events_per_second: EVENTS_PER_SECOND,
        visible_rows: 20_000,
        truth_events: 50_000,
        ..simulator::Config::default()
    };
    let mut rig = Rig::as_delivered(config).await;
    rig.config.sessions = with_sessions;
    // The past is not what is measured.
    rig.config.backfill_days = 0;
    let run = rig.run();
    let mut figures = Figures {
        events_ms: Vec::new(),
        starts_s: Vec::new(),
        ages_s: Vec::new(),
        unread: 0,
        requests: 0,
        shown: serde_json::Value::Null,
    };
    // The probe and the first pages take what they can get.
    let began = rig.clock.now() + WARM_UP;
    let (mut visible, mut last_truth, mut position) = (HashMap::<String, Timestamp>::new(), 0, 0);
    let end = tokio::time::Instant::now() + length;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let truth = rig.sim.truth_after(last_truth, usize::MAX);
        last_truth = truth.last;
        let told = truth.events.into_iter().filter(|event| event.visible_at > began);
        visible.extend(told.filter_map(|event| Some((event.event_id?, event.visible_at))));
        loop {
            let page = rig
                .bus
                .log()
                .read(ReadRequest {
                    from: position,
                    direction: Direction::Forward,
                    predicate: &Predicate::default(),
                    limit: usize::MAX,
                    max_bytes: usize::MAX,
                })
                .unwrap();
            position = page.next;
            for event in &page.events {
                let keys = event.keys().unwrap();
                let observed = Timestamp::from_microsecond(keys.observed_us).unwrap();
                if let Some(visible_at) = visible.remove(keys.id) {
                    figures.events_ms.push(observed.duration_since(visible_at).as_millis() as i64);
                }
                let time = Timestamp::from_microsecond(keys.time_us).unwrap();
                if keys.event_type == "session_started" && time > began {
                    figures.starts_s.push(observed.duration_since(time).as_secs());
                }
            }
            if page.at_end {
                break;
            }
        }
    }
    let now = rig.clock.now();
    let records = record::load_all::<SimRecord>(&rig.attended(), record::SIM).await.unwrap();
    figures.ages_s = records
        .iter()
        .filter_map(|(_, record)| Some(now.duration_since(record.read_at?).as_secs()))
        .collect();
    figures.unread = SIMS - figures.ages_s.len();
    figures.requests = rig.sim.stats().requests as u64;
    figures.shown = run.status.borrow().sims.clone();
    run.stop().await;
    for list in [&mut figures.events_ms, &mut figures.starts_s, &mut figures.ages_s] {
        list.sort_unstable();
    }
    figures
}

#[tokio::test(start_paused = true)]
async fn sessions_cost_the_tail_nothing() {
    let hours: f64 = std::env::var("SIMCAST_FLEET_HOURS").map_or(0.3, |text| text.parse().unwrap());
    let length = Duration::from_secs_f64(hours * 3_600.0);
    let started = Instant::now();
    let without = play(false, length).await;
    let with = play(true, length).await;
    for (name, one) in [("without", &without), ("with", &with)] {
        println!(
            "{name}: {} events, visible to appended p50 {} ms, p99 {} ms; {} requests",
            one.events_ms.len(),
            percentile(&one.events_ms, 50),
            percentile(&one.events_ms, 99),
            one.requests,
        );
    }
    println!(
        "{} sessions started; start to event p50 {} s, p90 {} s, p99 {} s",
        with.starts_s.len(),
        percentile(&with.starts_s, 50),
        percentile(&with.starts_s, 90),
        percentile(&with.starts_s, 99)
    );
    println!(
        "age of what is known of {} SIMs: p10 {} s, p50 {} s, p90 {} s, p99 {} s, most {} s; {} never read; shown {}",
        with.ages_s.len(),
        percentile(&with.ages_s, 10),
        percentile(&with.ages_s, 50),
        percentile(&with.ages_s, 90),
        percentile(&with.ages_s, 99),
        with.ages_s.last().copied().unwrap_or(0),
        with.unread,
        with.shown
    );
    println!("{hours} h of {SIMS} SIMs, twice, in {} s", started.elapsed().as_secs());
    assert!(without.events_ms.len() > 1_000 && with.ages_s.len() > 100);
    for hundredths in [50, 99] {
        let (before, after) =
            (percentile(&without.events_ms, hundredths), percentile(&with.events_ms, hundredths));
        // A tenth, and the grain of the clock.
        assert!(after * 10 <= before * 11 + 20, "p{hundredths}: {before} ms, with sessions {after} ms");
    }
}
