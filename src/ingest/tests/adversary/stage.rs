//! One run: a fleet with live traffic, a poller as it is delivered, the document's loop beside it, and what goes wrong
//! at which second.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until};

use super::{
    document_loop::{Monitored, Record, monitor_sim_activity},
    figures::{Document, Figures, NO_ICCID, all_stored, is_unusable},
    rows::LATENESS_MAX_S,
};
use crate::{
    bus::Bus,
    globalsim::{
        key::KeySource,
        simulator::{self, API_PATH, DEFAULT_API_KEY, EventSpec, Faults, faults::Paging},
    },
    ingest::tests::{
        backfilled,
        nats::{Nats, Stream},
        rig::{Rig, Run, quiet},
    },
};

/// Key of the document's loop, so that it takes nothing of the poller's budget.
const LOOP_KEY: &str = "wayscloud_api_loop";
/// Key that replaces the poller's own.
const NEW_KEY: &str = "wayscloud_api_rotated";
/// The SIM that the document's loop watches; it joins the fleet with its first events.
const WATCHED: &str = "89450000000000009996";
/// Seconds between two polls of the loop, as its text says where it is called.
const LOOP_PERIOD_S: u64 = 30;
/// Events of a burst.
const BURST: usize = 20;
/// Longest that the end of a run is waited for.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// What happens at some second of a run.
#[derive(Debug, Clone)]
pub enum Act {
    /// All switches anew.
    Switch(Box<Faults>),
    /// The poller stops, as asked.
    Stop,
    /// The poller crashes: nothing is finished or written down.
    Crash,
    /// It starts again.
    Start,
    /// A second poller on the same log, as a second gateway of the account.
    Second,
    /// The key is withdrawn.
    Withdraw,
    /// Its file holds the new one.
    Rotate,
    /// Upstream allows so many requests a minute.
    Limit(usize),
    /// So many events at once.
    Burst(usize),
    /// An event that happened so many seconds ago.
    Late(u64),
    /// A row that is no event.
    Unusable,
    /// Devices change their SIMs.
    Relink,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Row of the list of ways to fail, with a letter for each variant.
    pub row: &'static str,
    /// What is done, in the names of the simulator's switches.
    pub what: &'static str,
    pub faults: Faults,
    pub acts: Vec<(u64, Act)>,
    /// Events per second.
    pub rate: f64,
    /// Seconds that it goes on.
    pub seconds: u64,
    pub tie_seconds: u32,
    /// Most that half of the events, and 99 of 100, may be late.
    pub lateness_max_s: (f64, f64),
    /// How the document's loop must end, where the scenario decides that.
    pub loop_ends: Option<&'static str>,
    /// The same of its recall.
    pub loop_recall: Option<f64>,
}

impl Scenario {
    /// A run under these switches from the first second on.
    pub fn new(row: &'static str, what: &'static str, faults: Faults) -> Self {
        let later = LATENESS_MAX_S.iter().find(|(name, _)| *name == row);
        Self {
            row,
            what,
            faults,
            acts: Vec::new(),
            rate: 3.0,
            seconds: 300,
            tie_seconds: 1,
            lateness_max_s: later.map_or((2.0, 10.0), |(_, bounds)| *bounds),
            loop_ends: None,
            loop_recall: None,
        }
    }

    /// Something happens at a second.
    pub fn at(mut self, second: u64, act: Act) -> Self {
        self.acts.push((second, act));
        self
    }

    /// How the document's loop ends.
    pub fn ends(self, how: &'static str) -> Self {
        Self { loop_ends: Some(how), ..self }
    }

    /// Events that there are at least, or the run shows nothing.
    pub fn least_exposed(&self) -> usize {
        // The rate is that of a Poisson process; the SIM that is watched has its bursts.
        (self.rate * self.seconds as f64 * 0.7) as usize + BURST * (self.seconds / LOOP_PERIOD_S) as usize
    }
}

/// What the poller said at the end.
pub struct Finished {
    /// Whether it said that it had seen everything.
    pub said: bool,
    /// How many rows it put aside.
    pub quarantined: u64,
}

struct Stage<'a> {
    rig: Rig,
    /// Where the rig's log is, where that is on NATS.
    stream: Option<Stream<'a>>,
    run: Option<Run>,
    second: Option<(Run, Arc<dyn Bus>)>,
    /// Rows that pollers put aside which run no more: each counts its own.
    quarantined: u64,
    key_file: std::path::PathBuf,
    _dir: TempDir,
}

/// Plays a scenario to its end, on a log in memory or on NATS.
pub async fn play(scenario: &Scenario, nats: Option<&Nats>) -> Figures {
    let mut stage = Stage::set(scenario, nats).await;
    let sim = Monitored { path: API_PATH.to_owned(), key: LOOP_KEY.to_owned(), iccid: WATCHED.to_owned() };
    let dialer = stage.rig.sim.dialer();
    let began = Instant::now();
    let over = began + Duration::from_secs(scenario.seconds);
    let mut record = Record::default();
    let document = async {
        let mut polls = 0;
        let sleep = async || {
            polls += 1;
            let next = began + Duration::from_secs(LOOP_PERIOD_S * polls);
            if next > over {
                return false;
            }
            sleep_until(next).await;
            true
        };
        let watching = monitor_sim_activity(|| dialer.dial(), &sim, &mut record, sleep);
        // A little past its last poll.
        match tokio::time::timeout_at(over + Duration::from_secs(1), watching).await {
            Ok(Some(died)) => died,
            Ok(None) => "ran",
            Err(_) => "hung",
        }
    };
    let (ended, ()) = tokio::join!(document, stage.drive(scenario, began));
    // The loop's last poll was at the last second; what was shown since it could not print.
    let last = stage.rig.sim.stats().exposed;
    stage.rig.sim.pause();
    let finished = stage.finish().await;
    let mut shown = stage.rig.sim.truth();
    shown.retain(|truth| truth.n <= last && truth.iccid == WATCHED && !is_unusable(truth));
    let figures = Figures::of(&stage.rig, finished, Document::of(&shown, &record, ended));
    stage.rig.bus.shutdown().await;
    figures
}

impl<'a> Stage<'a> {
    /// The fleet with its past, and a poller that has read it.
    async fn set(scenario: &Scenario, nats: Option<&'a Nats>) -> Self {
        // What was taken away before there was a poller is no loss of the poller's.
        let faults = Faults { paging: Paging::default(), ..scenario.faults.clone() };
        let config = simulator::Config {
            faults,
            tie_seconds: scenario.tie_seconds,
            api_keys: vec![DEFAULT_API_KEY.to_owned(), LOOP_KEY.to_owned()],
            sims: 40,
            ..quiet()
        };
        let mut rig = Rig::as_delivered(config).await;
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("key");
        std::fs::write(&key_file, DEFAULT_API_KEY).unwrap();
        rig.key = KeySource::File(key_file.clone());
        let stream = nats.map(|nats| nats.stream(Arc::clone(&rig.clock)));
        if let Some(stream) = &stream {
            rig.bus = stream.gateway().await;
        }
        let mut run = rig.run();
        backfilled(&mut run).await;
        if rig.sim.faults() != scenario.faults {
            rig.sim.set_faults(scenario.faults.clone());
        }
        let stage = Self { rig, stream, run: Some(run), second: None, quarantined: 0, key_file, _dir: dir };
        stage.burst_of_watched();
        stage.rig.sim.set_rate(scenario.rate);
        stage
    }

    /// The bus of a gateway that starts. In memory there is but one.
    async fn gateway(&self) -> Arc<dyn Bus> {
        match &self.stream {
            Some(stream) => stream.gateway().await,
            None => Arc::clone(&self.rig.bus),
        }
    }

    fn burst_of_watched(&self) {
        for _ in 0..BURST {
            let iccid = Some(WATCHED.to_owned());
            self.rig.sim.inject(EventSpec { iccid, ..EventSpec::default() });
        }
    }

    async fn drive(&mut self, scenario: &Scenario, began: Instant) {
        for second in 1..=scenario.seconds {
            sleep_until(began + Duration::from_secs(second)).await;
            // Between two polls of the loop.
            if second % LOOP_PERIOD_S == LOOP_PERIOD_S / 2 {
                self.burst_of_watched();
            }
            if second % 50 == 25 && scenario.rate > 0.0 {
                self.rig.sim.inject_burst(BURST);
            }
            for (_, act) in scenario.acts.iter().filter(|(at, _)| *at == second) {
                self.act(act).await;
            }
        }
    }

    fn end(&mut self) -> Run {
        let run = self.run.take().expect("it runs");
        self.quarantined += run.status.borrow().quarantined;
        // What goes on being filled is the log of who goes on.
        if let Some((_, bus)) = &self.second {
            self.rig.bus = Arc::clone(bus);
        }
        run
    }

    async fn act(&mut self, act: &Act) {
        let sim = &self.rig.sim;
        match act {
            Act::Switch(faults) => sim.set_faults((**faults).clone()),
            Act::Stop => self.end().stop().await,
            Act::Crash => drop(self.end()),
            Act::Start => {
                self.rig.bus = self.gateway().await;
                self.run = Some(self.rig.run());
            }
            Act::Second => {
                let bus = self.gateway().await;
                self.second = Some((self.rig.run_on(Arc::clone(&bus)), bus));
            }
            Act::Withdraw => sim.set_api_keys(vec![NEW_KEY.to_owned()]),
            Act::Rotate => std::fs::write(&self.key_file, NEW_KEY).unwrap(),
            Act::Limit(per_minute) => sim.set_requests_per_minute(*per_minute),
            Act::Burst(count) => drop(sim.inject_burst(*count)),
            Act::Late(seconds) => {
                let timestamp = self.rig.clock.now() - Duration::from_secs(*seconds);
                sim.inject(EventSpec { timestamp: Some(timestamp), ..EventSpec::default() });
            }
            Act::Unusable => {
                let overlay = json!({"iccid": NO_ICCID}).as_object().unwrap().clone();
                sim.inject(EventSpec { overlay, ..EventSpec::default() });
            }
            Act::Relink => {
                let fleet = sim.fleet();
                let devices: Vec<String> = fleet.iter().filter_map(|one| one.device_id.clone()).collect();
                for (device, to) in devices.iter().zip(fleet.iter().skip(3)).step_by(5) {
                    sim.relink(device, &to.iccid);
                }
            }
        }
    }

    /// Waits until everything has been read that can be.
    async fn finish(&mut self) -> Finished {
        let sim = &self.rig.sim;
        // A list that changes at each request has no end that could be compared.
        let mut faults = sim.faults();
        let paging = &mut faults.paging;
        (paging.inserts, paging.removes_oldest, paging.erases, paging.revisions) = (0, 0, 0, 0);
        if faults != sim.faults() {
            sim.set_faults(faults);
        }
        let deadline = Instant::now() + PATIENCE;
        while sim.stats().held_back > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut edge = self.rig.bus.log().edge();
        loop {
            edge.borrow_and_update();
            if all_stored(&self.rig) {
                break;
            }
            if tokio::time::timeout_at(deadline, edge.changed()).await.is_err() {
                break;
            }
        }
        // What is late for a copy, a gap or the quarantine has come by then.
        let run = self.run.as_mut().or(self.second.as_mut().map(|(run, _)| run)).expect("one runs");
        // It says so by upstream's clock where that is behind.
        let behind = SignedDuration::from_secs(self.rig.sim.faults().content.clock_skew_s.min(0));
        let now = self.rig.clock.now() + behind;
        let seen = run.status.wait_for(|status| status.seen_until.is_some_and(|seen| seen > now));
        let said = tokio::time::timeout(PATIENCE, seen).await.is_ok();
        let quarantined = self.quarantined + run.status.borrow().quarantined;
        let (second, bus) = self.second.take().unzip();
        for run in [self.run.take(), second].into_iter().flatten() {
            run.stop().await;
        }
        // Each gateway has the same log, whoever polls.
        if let (Some(stream), Some(bus)) = (&self.stream, bus) {
            let bounds = self.rig.bus.log().bounds();
            stream.reached(&bus, bounds.last_seq).await;
            assert_eq!(bus.log().bounds().events, bounds.events);
            bus.shutdown().await;
        }
        Finished { said, quarantined }
    }
}
