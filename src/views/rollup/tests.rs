//! The roll-ups against a naive count of everything that the log holds, with kills at any step; and what is erased.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::{
    event::{Event, Flag, GapReason, Iccid, Network, Session},
    log::Entry,
};

/// Seconds since the epoch at which the tests play: noon UTC.
const BASE: i64 = 1_762_344_000;

const ICCIDS: [&str; 3] = ["8947000000000000001", "894700000000000002", "8946000000000000000003"];
const TYPES: [&str; 5] = ["connection", "network_change", "session_updated", "session_ended", "simcast.gap"];
const COUNTRIES: [Option<(&str, &str)>; 3] = [None, Some(("Norway", "NO")), Some(("Sweden", "SE"))];

/// One event as a test describes it.
#[derive(Debug, Clone)]
struct Sample {
    event_type: &'static str,
    iccid: Option<&'static str>,
    hours_ago: i64,
    country: Option<(&'static str, &'static str)>,
    from: Option<(&'static str, &'static str)>,
    session: u8,
    hundredths: i64,
    flags: Vec<Flag>,
    /// Followed by a copy with details.
    completed: bool,
}

fn sample() -> impl Strategy<Value = Sample> {
    (
        select(&TYPES[..]),
        option::of(select(&ICCIDS[..])),
        -1..100_i64,
        select(&COUNTRIES[..]),
        select(&COUNTRIES[..]),
        0..4_u8,
        0..5_000_i64,
        vec(select(vec![Flag::Late, Flag::Repaired]), 0..2),
        proptest::bool::weighted(0.2),
    )
        .prop_map(
            |(event_type, iccid, hours_ago, country, from, session, hundredths, flags, completed)| {
                // Sessions are read with everything that there is of them.
                let completed = completed && !event_type.starts_with('s');
                Sample { event_type, iccid, hours_ago, country, from, session, hundredths, flags, completed }
            },
        )
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Sample>),
    Count,
    Commit,
    /// The disk refuses after so many writes, and then the process dies.
    Kill(Option<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => vec(sample(), 1..12).prop_map(Step::Append),
        3 => Just(Step::Count),
        2 => Just(Step::Commit),
        2 => option::of(0..6_usize).prop_map(Step::Kill),
    ]
}

fn network(country: Option<(&str, &str)>, rat: Option<&str>) -> Option<Network> {
    let (name, code) = country?;
    Some(Network {
        country: Some(name.to_owned()),
        country_code: Some(code.to_owned()),
        operator: rat.map(|_| format!("{name} Mobile")),
        network_type: rat.map(str::to_owned),
        ..Network::default()
    })
}

fn events(sample: &Sample, n: u64) -> Vec<Event> {
    let id = format!("evt_{n}");
    let mut event = Event::new(id.clone(), "/globalsim/test".into(), sample.event_type);
    event.gateway = sample.event_type.starts_with("simcast.");
    event.event_id = Some(id);
    event.iccid = sample.iccid.and_then(|iccid| Iccid::parse(iccid).ok());
    event.time = Timestamp::from_second(BASE + n as i64 - sample.hours_ago * 3_600).ok();
    event.flags = sample.flags.iter().copied().collect();
    let rat = Some("4G").filter(|_| !sample.completed);
    event.network = network(sample.country, rat);
    if sample.event_type == "network_change" {
        event.previous_network = network(sample.from, Some("3G"));
    }
    if sample.event_type.starts_with("session_") {
        let total = format!("{}.{:02}", sample.hundredths / 100, sample.hundredths % 100);
        event.session = Some(Session {
            session_id: Some(format!("sess_{}", sample.session)),
            duration_seconds: Some(sample.hundredths),
            total_mb: total.parse().ok(),
            ..Session::default()
        });
    }
    if !sample.completed {
        return vec![event];
    }
    event.flags.insert(Flag::Partial);
    let mut whole = event.clone();
    whole.id.push_str("~details");
    whole.flags = [Flag::Late, Flag::Enriched].into_iter().collect();
    whole.network = network(sample.country, Some("5G"));
    vec![event, whole]
}

/// A process, and what outlives it.
struct Rig {
    log: Arc<Log>,
    directory: TempDir,
    rollup: Rollup,
    follower: Follower,
    appended: u64,
}

impl Rig {
    fn new() -> Self {
        let (log, directory) = (Arc::new(Log::in_memory(1)), TempDir::new().unwrap());
        let (rollup, follower) = Self::start(&log, &directory);
        Self { log, directory, rollup, follower, appended: 0 }
    }

    fn start(log: &Arc<Log>, directory: &TempDir) -> (Rollup, Follower) {
        let config = Config { directory: Some(directory.path().join("rollup")) };
        let rollup = Rollup::open(&config, log).unwrap();
        let follower = rollup.follow().unwrap();
        (rollup, follower)
    }

    fn restart(&mut self) {
        (self.rollup, self.follower) = Self::start(&self.log, &self.directory);
    }

    fn append(&mut self, samples: &[Sample]) {
        for sample in samples {
            self.appended += 1;
            for event in events(sample, self.appended) {
                let at = Timestamp::from_second(BASE + self.appended as i64).unwrap();
                let identity = self.appended;
                let sealed = event.seal(at, jiff::SignedDuration::MAX).unwrap();
                self.log.append(vec![Entry { sealed, identity, content: 0 }]).unwrap();
            }
        }
    }

    fn count(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        while !self.follower.is_at_edge() {
            let page = runtime.block_on(self.follower.next()).unwrap();
            self.rollup.count(&page, self.follower.cursor());
        }
    }

    fn bytes_on_disk(&self) -> Vec<u8> {
        let files = std::fs::read_dir(self.directory.path().join("rollup")).unwrap();
        files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }
}

/// Cells with texts: hour and kind to counts, SIM and day to counts. Nothing that came to nothing.
type Flat = BTreeMap<Vec<String>, i64>;

fn flat(rollup: &Rollup) -> Flat {
    let mut cells = Vec::new();
    let (names, _, damaged) = rollup
        .read(i32::MIN..=i32::MAX, |day, cell| match cell {
            Cell::Kind(kind, tally) => cells.push((day, Some((kind, tally)), None, None)),
            Cell::Change(change, count) => cells.push((day, None, Some((change, count)), None)),
            Cell::Sim(sim, row) => cells.push((day, None, None, Some((sim, row.clone())))),
        })
        .unwrap();
    assert_eq!(damaged, [] as [i32; 0]);
    let text = |name: u32| names.text(name).unwrap_or("-").replace('\u{1f}', "/");
    let mut flat = Flat::new();
    let mut add = |key: Vec<String>, count: i64| *flat.entry(key).or_default() += count;
    for (day, kind, change, sim) in cells {
        let day = day.to_string();
        if let Some((kind, tally)) = kind {
            let names = [kind.event_type, kind.country, kind.operator, kind.network_type].map(text);
            let counts =
                [tally.events, tally.late, tally.repaired, tally.seconds, tally.data.total.millionths()];
            for (what, count) in ["events", "late", "repaired", "seconds", "total"].into_iter().zip(counts) {
                let mut key = vec![what.to_owned(), day.clone(), kind.hour.to_string()];
                key.extend(names.clone());
                add(key, count);
            }
        }
        if let Some(((from, to), count)) = change {
            add(vec!["change".into(), day.clone(), text(from), text(to)], count);
        }
        if let Some((sim, row)) = sim {
            let sim = sim.text().unwrap_or("-".into());
            for (name, count) in &row.types {
                add(vec!["sim".into(), day.clone(), sim.clone(), text(*name)], *count);
            }
            for (name, data) in &row.data {
                add(vec!["sim total".into(), day.clone(), sim.clone(), text(*name)], data.total.millionths());
            }
            let changes = row.changes.iter().map(|(_, count)| count).sum();
            add(vec!["sim changes".into(), day.clone(), sim.clone()], changes);
            add(vec!["sim late".into(), day, sim], row.late);
        }
    }
    flat.retain(|_, count| *count != 0);
    flat
}

/// The same, the slow way, from the JSON of everything in the log.
fn naive(log: &Log) -> Flat {
    let all: Vec<Value> = (1..=log.bounds().last_seq)
        .map(|seq| serde_json::from_slice(log.get(seq).unwrap().unwrap().json()).unwrap())
        .collect();
    let has = |event: &Value, flag: &str| event["data"]["flags"].as_array().unwrap().contains(&flag.into());
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let place = |network: &Value| match (&network["country"], &network["country_code"]) {
        (Value::Null, Value::Null) => "-".to_owned(),
        (name, code) => format!("{}/{}", text(name), text(code)),
    };
    let mut flat = Flat::new();
    let mut add = |key: Vec<String>, count: i64| *flat.entry(key).or_default() += count;
    let mut sessions = BTreeMap::<String, i64>::new();
    for event in all.iter().filter(|event| event["data"]["event_type"] != "simcast.gap") {
        if has(event, "enriched") {
            continue;
        }
        let data = &event["data"];
        let whole = all.iter().find(|other| other["id"] == format!("{}~details", text(&event["id"])));
        let network = &whole.unwrap_or(event)["data"]["network"];
        let time: Timestamp = text(&event["time"]).parse().unwrap();
        let (day, hour) = (time.as_second() / 86_400, time.as_second() / 3_600 % 24);
        let (day, sim, event_type) = (day.to_string(), text(&data["iccid"]), text(&data["event_type"]));
        let late = i64::from(has(event, "late"));
        let (mut total, mut seconds) = (0, 0);
        if let Some(session) = data["session"].as_object() {
            let now = session["total_mb"].to_string();
            let (whole, hundredths) = now.split_once('.').unwrap();
            let now = (whole.parse::<i64>().unwrap() * 100 + hundredths.parse::<i64>().unwrap()) * 10_000;
            total = now - sessions.insert(text(&session["session_id"]), now).unwrap_or_default();
            if event_type == "session_ended" {
                seconds = session["duration_seconds"].as_i64().unwrap();
            }
        }
        for (what, count) in [
            ("events", 1),
            ("late", late),
            ("repaired", i64::from(has(event, "repaired"))),
            ("seconds", seconds),
            ("total", total),
        ] {
            let kind = [place(network), text(&network["operator"]), text(&network["network_type"])];
            let mut key = vec![what.to_owned(), day.clone(), hour.to_string(), event_type.clone()];
            key.extend(kind);
            add(key, count);
        }
        let (from, to) = (place(&data["previous_network"]), place(&data["network"]));
        let changed = event_type == "network_change" && !data["previous_network"].is_null() && from != to;
        add(vec!["change".into(), day.clone(), from, to], i64::from(changed));
        add(vec!["sim".into(), day.clone(), sim.clone(), event_type], 1);
        add(vec!["sim total".into(), day.clone(), sim.clone(), place(&data["network"])], total);
        add(vec!["sim changes".into(), day.clone(), sim.clone()], i64::from(changed));
        add(vec!["sim late".into(), day, sim], late);
    }
    flat.retain(|_, count| *count != 0);
    flat
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_is_killed_everything_is_counted_once(steps in vec(step(), 1..25)) {
        let mut rig = Rig::new();
        for step in steps {
            match step {
                Step::Append(samples) => rig.append(&samples),
                Step::Count => rig.count(),
                Step::Commit => rig.rollup.commit().unwrap(),
                Step::Kill(writes) => {
                    *rig.rollup.0.store.fuse.lock() = Some(writes.unwrap_or_default());
                    if writes.is_some() {
                        let _ = rig.rollup.commit();
                    }
                    rig.restart();
                }
            }
        }
        rig.count();
        prop_assert_eq!(flat(&rig.rollup), naive(&rig.log));
        rig.rollup.commit().unwrap();
        rig.restart();
        prop_assert_eq!(flat(&rig.rollup), naive(&rig.log));
    }
}

fn plain(iccid: &'static str, hours_ago: i64) -> Sample {
    Sample {
        event_type: "connection",
        iccid: Some(iccid),
        hours_ago,
        country: COUNTRIES[1],
        from: None,
        session: 0,
        hundredths: 0,
        flags: vec![],
        completed: false,
    }
}

#[test]
fn a_sim_that_is_forgotten_is_in_no_file_and_the_hours_stay() {
    let mut rig = Rig::new();
    rig.append(&[plain(ICCIDS[0], 0), plain(ICCIDS[0], 50), plain(ICCIDS[1], 0), plain(ICCIDS[2], 72)]);
    rig.count();
    rig.rollup.commit().unwrap();
    rig.append(&[plain(ICCIDS[0], 1)]);
    rig.count();
    let kept = |prefix: &str, rig: &Rig| -> i64 {
        flat(&rig.rollup).iter().filter(|(key, _)| key[0] == prefix).map(|(_, count)| count).sum()
    };
    assert_eq!((kept("sim", &rig), kept("events", &rig)), (5, 5));
    // The first SIM of a day is written in full, so its packed form can be searched for.
    let written = {
        let mut writer = codec::Writer::default();
        writer.unsigned(Sim::pack(Some(ICCIDS[0])).0);
        writer.0
    };
    let is_there = |rig: &Rig| rig.bytes_on_disk().windows(written.len()).any(|bytes| bytes == written);
    assert!(is_there(&rig));
    // Read from the log, but not counted when the erasure comes.
    rig.append(&[plain(ICCIDS[0], 2)]);
    assert_eq!(rig.rollup.forget(ICCIDS[0]).unwrap(), 2);
    rig.count();
    for _ in 0..2 {
        assert!(!is_there(&rig));
        assert_eq!((kept("sim", &rig), kept("events", &rig)), (2, 5));
        assert!(!flat(&rig.rollup).keys().any(|key| key.contains(&ICCIDS[0].to_owned())));
        rig.rollup.commit().unwrap();
        rig.restart();
    }
    assert_eq!(rig.rollup.forget(ICCIDS[0]).unwrap(), 0);
}

#[test]
fn a_log_of_another_history_is_counted_anew_and_a_shortened_one_is_not() {
    let mut rig = Rig::new();
    rig.append(&[plain(ICCIDS[0], 0), plain(ICCIDS[1], 0)]);
    rig.count();
    rig.rollup.commit().unwrap();
    rig.log = Arc::new(Log::in_memory(2));
    rig.append(&[plain(ICCIDS[2], 0)]);
    rig.restart();
    rig.count();
    assert_eq!(flat(&rig.rollup), naive(&rig.log));

    let options = crate::log::Options {
        segment_bytes: 4 << 10,
        retention_bytes: 8 << 10,
        ..crate::log::Options::default()
    };
    let mut rig = Rig::new();
    rig.log = Arc::new(Log::in_memory_with(options));
    rig.restart();
    rig.append(&[plain(ICCIDS[0], 0)]);
    rig.count();
    rig.rollup.commit().unwrap();
    rig.append(&vec![plain(ICCIDS[1], 0); 200]);
    rig.log.maintain(Timestamp::from_second(BASE + 1_000).unwrap()).unwrap();
    let oldest = rig.log.bounds().first_seq;
    rig.restart();
    rig.count();
    let meta = rig.rollup.meta();
    assert_eq!(meta.skipped.positions, oldest - 2);
    let counted: i64 =
        flat(&rig.rollup).iter().filter(|(key, _)| key[0] == "sim").map(|(_, count)| count).sum();
    assert_eq!(counted as u64, 1 + 201 - oldest + 1);
}

#[test]
fn damage_costs_a_day_and_is_said() {
    let mut rig = Rig::new();
    rig.append(&[plain(ICCIDS[0], 0), plain(ICCIDS[0], 48)]);
    rig.count();
    rig.rollup.commit().unwrap();
    let today = day_of(BASE * 1_000_000);
    let path = rig.directory.path().join(format!("rollup/{today}-1.day"));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let days = |rig: &Rig| rig.rollup.read(0..=i32::MAX, |_, _| {}).unwrap().2;
    assert_eq!(days(&rig), [today]);
    rig.append(&[plain(ICCIDS[1], 0)]);
    rig.count();
    rig.rollup.commit().unwrap();
    rig.restart();
    assert_eq!(days(&rig), [today]);
    std::fs::write(rig.directory.path().join("rollup/state"), b"nonsense").unwrap();
    rig.restart();
    rig.count();
    assert_eq!(days(&rig), [] as [i32; 0]);
    assert_eq!(flat(&rig.rollup), naive(&rig.log));
}

#[test]
fn what_is_too_old_or_in_the_future_is_only_numbered() {
    let mut rig = Rig::new();
    rig.append(&[plain(ICCIDS[0], 24 * 401), plain(ICCIDS[0], -24 * 3), plain(ICCIDS[0], 24 * 390)]);
    let page = ReadPage {
        holes: vec![Hole { first_seq: 9, last_seq: 11, reason: GapReason::Corruption }],
        ..ReadPage::default()
    };
    rig.count();
    rig.rollup.count(&page, rig.follower.cursor());
    let skipped = rig.rollup.meta().skipped;
    assert_eq!((skipped.out_of_range, skipped.positions), (2, 3));
    rig.rollup.commit().unwrap();
    rig.restart();
    assert_eq!(rig.rollup.meta().skipped, skipped);
}
