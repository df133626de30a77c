//! What a run came to: the truth compared with the log, and with what the document's loop printed.

use std::collections::{BTreeMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::{
    document_loop::{Record, text},
    stage::{Finished, Scenario},
};
use crate::{
    globalsim::simulator::{RequestRecord, TruthEvent},
    ingest::tests::rig::{Key, Logged, Rig, key_of, truth_key},
};

/// ICCID of rows that no reader can take for an event, since it is none.
pub const NO_ICCID: &str = "not an iccid";
/// Requests that the default budget allows in any minute.
const BUDGET: usize = 400;
/// How the document's loop asks; its requests are not the poller's.
const OF_THE_LOOP: &str = "activity?limit=10";
/// Requests that the simulator remembers one by one.
const REQUESTS_REMEMBERED: u64 = 10_000;

/// Figures of one run.
#[derive(Debug)]
pub struct Figures {
    /// Events that upstream showed, each once however often it listed them.
    pub exposed: usize,
    /// Of these, those in the log.
    pub logged: usize,
    /// Of these, those that upstream forgot before they were read, within the bounds of an announced gap.
    pub forgotten: usize,
    /// Entries of the log, other than completed copies.
    pub entries: usize,
    /// Rows that are no events, each put aside and counted.
    pub unusable: usize,
    /// Gaps announced.
    pub gaps: usize,
    /// Most requests of the poller in any 60 s.
    pub worst_minute: usize,
    /// Seconds from visible to stored, half of the events and 99 of 100.
    pub p50_s: f64,
    pub p99_s: f64,
    /// What the document's loop came to.
    pub document: Document,
    /// What must not be, in words.
    wrong: Vec<String>,
}

/// What the document's loop came to.
#[derive(Debug)]
pub struct Document {
    /// Events of its SIM that upstream showed.
    pub shown: usize,
    /// Of these, those it printed.
    pub printed: usize,
    /// Lines it printed for them.
    pub lines: usize,
    /// `ran`, `hung`, or what it died of.
    pub ended: &'static str,
}

/// What became of one event, as far as a reader that trusts no id can tell events apart.
#[derive(Default)]
struct Fate {
    truths: Vec<TruthEvent>,
    stored: Vec<Timestamp>,
}

impl Fate {
    /// Rows without an id may be equal and yet be two events.
    fn wanted(&self, key: &Key) -> usize {
        if key.0.is_some() { self.truths.len().min(1) } else { self.truths.len() }
    }
}

impl Document {
    /// Compares what was printed of a SIM with what was shown of it.
    pub fn of(shown: &[TruthEvent], record: &Record, ended: &'static str) -> Self {
        let known: HashSet<_> =
            shown.iter().map(|truth| (text(&truth.row["event_id"]), text(&truth.row["timestamp"]))).collect();
        let lines: Vec<_> = record.lines.iter().filter(|line| known.contains(line)).collect();
        let printed: HashSet<_> = lines.iter().collect();
        Self { shown: known.len(), printed: printed.len(), lines: lines.len(), ended }
    }

    /// Share of the events that it printed.
    pub fn recall(&self) -> f64 {
        self.printed as f64 / self.shown.max(1) as f64
    }

    /// Lines per event that it printed.
    pub fn lines_each(&self) -> f64 {
        self.lines as f64 / self.printed.max(1) as f64
    }
}

impl Figures {
    /// Compares.
    pub fn of(rig: &Rig, finished: Finished, document: Document) -> Self {
        let quarantined = finished.quarantined;
        let gaps = gaps(&rig.everything());
        let fates = fates(rig);
        let unusable = rig.sim.truth().iter().filter(|truth| is_unusable(truth)).count();
        let entries = fates.values().map(|fate| fate.stored.len()).sum();
        let (mut exposed, mut logged, mut forgotten) = (0, 0, 0);
        let (mut late, mut wrong) = (Vec::new(), Vec::new());
        for (key, fate) in &fates {
            let wanted = fate.wanted(key);
            exposed += wanted;
            logged += fate.stored.len().min(wanted);
            if fate.stored.len() > wanted {
                wrong.push(format!("{} copies of {wanted}: {key:?}", fate.stored.len()));
            }
            for lost in fate.truths.iter().take(wanted.saturating_sub(fate.stored.len())) {
                if lost.removed_at.is_some() && gaps.iter().any(|gap| within(lost.timestamp, *gap)) {
                    forgotten += 1;
                } else {
                    wrong.push(format!("lost and not announced ({gaps:?}): {lost:?}"));
                }
            }
            if let (Some(truth), Some(stored)) = (fate.truths.first(), fate.stored.first())
                && !truth.history
            {
                late.push(stored.duration_since(truth.visible_at).as_secs_f64());
            }
        }
        if (quarantined as usize) < unusable {
            wrong.push(format!("{quarantined} of {unusable} unusable rows are counted"));
        }
        if !finished.said {
            wrong.push("it never said that it had seen everything".to_owned());
        }
        let stats = rig.sim.stats();
        if stats.requests > REQUESTS_REMEMBERED {
            wrong.push(format!("{} requests are more than are remembered", stats.requests));
        }
        late.sort_by(f64::total_cmp);
        wrong.truncate(5);
        Self {
            exposed,
            logged,
            forgotten,
            entries,
            unusable,
            gaps: gaps.len(),
            worst_minute: worst_minute(&rig.sim.requests()),
            p50_s: percentile(&late, 0.5),
            p99_s: percentile(&late, 0.99),
            document,
            wrong,
        }
    }

    /// Share of the events that upstream still showed.
    pub fn recall(&self) -> f64 {
        self.logged as f64 / (self.exposed - self.forgotten) as f64
    }

    /// Entries per event.
    pub fn copies(&self) -> f64 {
        self.entries as f64 / self.logged as f64
    }

    /// What is not as promised.
    pub fn broken(&self, scenario: &Scenario) -> Vec<String> {
        let mut broken = self.wrong.clone();
        let mut check = |holds: bool, what: String| {
            if !holds {
                broken.push(what);
            }
        };
        let forgotten = self.forgotten;
        check(self.logged + forgotten == self.exposed, format!("recall {:.4}", self.recall()));
        check(self.entries == self.logged, format!("copies {:.4}", self.copies()));
        check(self.worst_minute <= BUDGET, format!("{} requests in a minute", self.worst_minute));
        check(self.exposed >= scenario.least_exposed(), format!("only {} exposed", self.exposed));
        let (p50, p99) = scenario.lateness_max_s;
        check(self.p50_s <= p50, format!("p50 {:.2} s, bound {p50} s", self.p50_s));
        check(self.p99_s <= p99, format!("p99 {:.2} s, bound {p99} s", self.p99_s));
        let loops = &self.document;
        if let Some(ends) = scenario.loop_ends {
            check(loops.ended == ends, format!("the document's loop: {}, not {ends}", loops.ended));
        }
        if let Some(recall) = scenario.loop_recall {
            let is = loops.recall();
            check((is - recall).abs() < 1e-9, format!("the document's loop: recall {is}, not {recall}"));
        }
        let named = |what: &String| format!("row {} ({}): {what}", scenario.row, scenario.what);
        broken.iter().map(named).collect()
    }
}

/// Whether a row is no event, whoever reads it.
pub fn is_unusable(truth: &TruthEvent) -> bool {
    truth.account_row["iccid"] == NO_ICCID
}

/// Whether the log has everything that upstream still shows.
pub fn all_stored(rig: &Rig) -> bool {
    fates(rig).iter().all(|(key, fate)| {
        let gone = fate.truths.iter().filter(|truth| truth.removed_at.is_some()).count();
        fate.stored.len() + gone >= fate.wanted(key)
    })
}

/// What became of each event, and of each entry of the log that is none.
fn fates(rig: &Rig) -> BTreeMap<Key, Fate> {
    let mut fates: BTreeMap<Key, Fate> = BTreeMap::new();
    for truth in rig.sim.truth().into_iter().filter(|truth| !is_unusable(truth)) {
        fates.entry(truth_key(&truth)).or_default().truths.push(truth);
    }
    for event in rig.logged().iter().filter(|event| !event.has("enriched")) {
        fates.entry(key_of(event)).or_default().stored.push(event.observed_at);
    }
    fates
}

/// Bounds of the gaps that were announced.
fn gaps(all: &[Logged]) -> Vec<(Timestamp, Timestamp)> {
    let bounds = |event: &Logged| {
        let extra = event.data("extra");
        let time = |name: &str| extra[name].as_str().and_then(|text| text.parse().ok());
        time("from_time").zip(time("to_time")).expect("a gap has bounds")
    };
    all.iter().filter(|event| event.data("event_type") == "simcast.gap").map(bounds).collect()
}

/// Times of events are whole seconds.
fn within(time: Timestamp, (from, to): (Timestamp, Timestamp)) -> bool {
    from - SignedDuration::from_secs(1) < time && time <= to
}

/// Most requests of the poller in any window of 60 s that begins with one of them.
fn worst_minute(requests: &[RequestRecord]) -> usize {
    let ours: Vec<Timestamp> =
        requests.iter().filter(|one| !one.target.ends_with(OF_THE_LOOP)).map(|one| one.at).collect();
    let minute = SignedDuration::from_secs(60);
    let mut first = 0;
    let mut worst = 0;
    for (last, at) in ours.iter().enumerate() {
        while at.duration_since(ours[first]) >= minute {
            first += 1;
        }
        worst = worst.max(last + 1 - first);
    }
    worst
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}
