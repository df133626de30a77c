//! Answers against the simulator's own, and what is left of them when upstream is away.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::*;
use crate::{
    auth::{Role, Roles},
    event::{FieldPolicy, Filter, FilterLimits, policy::FieldRule},
    globalsim::simulator::{
        self, EventSpec, Faults,
        faults::{Outage, OutageMode},
    },
    ingest::tests::rig::{Rig, Run, quiet},
};

struct Stage {
    rig: Rig,
    lookup: Lookup,
    iccid: Iccid,
    device: String,
    run: Run,
}

/// A gateway that has read everything of a SIM with sessions.
async fn stage() -> Stage {
    let mut rig = Rig::with(simulator::Config { faults: Faults::default(), ..quiet() }).await;
    rig.config.sessions = true;
    let sim = rig.sim.fleet().into_iter().find(|sim| sim.device_id.is_some()).unwrap();
    let mut run = rig.run();
    for n in 0..7 {
        for event_type in ["connection", "data_usage_update", "disconnection"] {
            if n < 6 || event_type != "disconnection" {
                let iccid = Some(sim.iccid.clone());
                let event_type = Some(event_type.to_owned());
                rig.sim.inject(EventSpec { iccid, event_type, ..EventSpec::default() });
            }
        }
    }
    run.seen(rig.clock.now()).await;
    // Until the log tells of each session what is true of it now.
    let truth = |rig: &Rig| -> BTreeMap<String, (u64, bool)> {
        let own = rig.sim.sessions().into_iter().filter(|one| one.iccid == sim.iccid);
        own.map(|one| (one.session_id, (one.total_tenths, one.end_time.is_some()))).collect()
    };
    let told = |rig: &Rig| {
        let mut told: BTreeMap<String, (u64, bool)> = BTreeMap::new();
        for event in rig.logged().iter().filter(|event| event.data("iccid") == sim.iccid.as_str()) {
            let session = event.data("session");
            let Some(id) = session["session_id"].as_str() else { continue };
            let one = told.entry(id.to_owned()).or_default();
            one.0 = session["total_mb"].as_f64().map_or(one.0, |mb| (mb * 10.0).round() as u64);
            one.1 |= event.data("event_type") == "session_ended";
        }
        told
    };
    let key = format!("{}{}", record::DEVICE, sim.device_id.as_deref().unwrap());
    while told(&rig) != truth(&rig)
        || record::load::<DeviceRecord>(&rig.attended(), &key).await.unwrap().is_none()
    {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let lookup = Lookup::new(&rig.client(), rig.attended(), run.status.clone(), Arc::clone(&rig.clock));
    let (iccid, device) = (Iccid::parse(&sim.iccid).unwrap(), sim.device_id.unwrap());
    Stage { rig, lookup, iccid, device, run }
}

fn away() -> Faults {
    let outage = Some(Outage { mode: OutageMode::Unavailable, for_ms: None });
    Faults { outage, ..Faults::default() }
}

const PAGE: Paging = Paging { limit: 5, offset: 1, start_date: None, end_date: None };

fn question(of: Of, what: What) -> Question {
    Question { of, what }
}

impl Stage {
    async fn ask(&self, question: &Question) -> Value {
        Value::Object(self.lookup.ask(question, &Principal::anonymous()).await.unwrap())
    }

    fn questions(&self) -> Vec<Question> {
        let (sim, device) = (Of::Sim(self.iccid.clone()), Of::Device(self.device.clone()));
        let account = Of::Account { iccid: Some(self.iccid.clone()), device_id: None };
        vec![
            question(account, What::Activity(PAGE, None)),
            question(sim.clone(), What::Activity(PAGE, Some("connection".into()))),
            question(sim, What::Sessions(PAGE)),
            question(device.clone(), What::Activity(PAGE, None)),
            question(device.clone(), What::Sessions(PAGE)),
            question(device, What::Sim),
        ]
    }
}

/// Without what tells how old it is, and without the durations of open sessions, which grow.
fn bare(mut answer: Value) -> Value {
    let object = answer.as_object_mut().unwrap();
    for name in ["as_of", "age_seconds", "source"] {
        object.remove(name);
    }
    for session in object.get_mut("sessions").and_then(Value::as_array_mut).into_iter().flatten() {
        if session["end_time"].is_null() {
            session["duration_seconds"] = Value::Null;
        }
    }
    answer
}

fn ids(answer: &Value) -> Vec<String> {
    let rows = answer.get("activity").or(answer.get("sessions")).and_then(Value::as_array);
    let id =
        |row: &Value| row.get("event_id").or(row.get("session_id")).unwrap().as_str().unwrap().to_owned();
    rows.into_iter().flatten().map(id).collect()
}

#[tokio::test(start_paused = true)]
async fn answers_have_the_fields_of_the_document() {
    let stage = stage().await;
    let activity = stage.ask(&stage.questions()[0]).await;
    assert_eq!(
        (&activity["source"], &activity["limit"], &activity["offset"]),
        (&json!("upstream"), &json!(5), &json!(1))
    );
    let row = &activity["activity"][0];
    for field in ["event_id", "iccid", "msisdn", "device_id", "event_type", "timestamp"] {
        assert!(row[field].is_string(), "{field}: {row}");
    }
    let sessions = stage.ask(&stage.questions()[2]).await;
    let row = &sessions["sessions"][0];
    for field in
        ["session_id", "start_time", "end_time", "duration_seconds", "network", "data_usage", "ip_address"]
    {
        assert!(!row[field].is_null(), "{field}: {row}");
    }
    for field in ["total_sessions", "total_data_mb", "average_session_duration_seconds"] {
        assert!(sessions["summary"][field].is_number(), "{sessions}");
    }
    let device = stage.ask(&stage.questions()[5]).await;
    assert_eq!(device["device_id"], stage.device.as_str());
    assert_eq!(device["sim"]["iccid"], stage.iccid.as_str());
    stage.run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_a_moment_ago_costs_no_request_and_its_age_is_told() {
    let stage = stage().await;
    for question in stage.questions() {
        let first = stage.ask(&question).await;
        stage.rig.sim.set_faults(away());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let again = stage.ask(&question).await;
        assert_eq!(again["source"], "cache", "{question:?}");
        assert!(again["age_seconds"].as_f64().unwrap() >= 3.0);
        assert_eq!(bare(again), bare(first.clone()));
        // Later it is asked, and since upstream is away, given as old as it is.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let old = stage.ask(&question).await;
        assert_eq!(old["source"], "cache");
        assert!(old["age_seconds"].as_f64().unwrap() >= 60.0);
        assert_eq!(bare(old), bare(first));
        stage.rig.sim.set_faults(Faults::default());
    }
    stage.run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_never_asked_comes_from_the_log_when_upstream_is_away() {
    let stage = stage().await;
    let mut asked = Vec::new();
    for question in stage.questions() {
        asked.push(stage.ask(&question).await);
    }
    stage.rig.sim.set_faults(away());
    let fresh = Lookup::new(
        &stage.rig.client(),
        stage.rig.attended(),
        stage.run.status.clone(),
        Arc::clone(&stage.rig.clock),
    );
    for (question, upstream) in stage.questions().iter().zip(asked) {
        let stored = Value::Object(fresh.ask(question, &Principal::anonymous()).await.unwrap());
        let of_a_device = question.what == What::Sim;
        assert_eq!(stored["source"], if of_a_device { "cache" } else { "log" }, "{question:?}");
        assert_eq!(ids(&stored).len(), ids(&upstream).len(), "{question:?}");
        match &question.what {
            // The simulator's order of events of one second is not the log's.
            What::Activity(..) => assert_eq!(stored["total"], upstream["total"], "{question:?}"),
            What::Sessions(_) => {
                assert_eq!(stored["total"], upstream["total"]);
                assert_eq!(
                    stored["summary"]["total_data_mb"].as_f64(),
                    upstream["summary"]["total_data_mb"].as_f64()
                );
            }
            What::Sim => assert_eq!(stored["sim"]["iccid"], upstream["sim"]["iccid"]),
        }
    }
    let unknown = question(Of::Sim(Iccid::parse("8900000000000000000").unwrap()), What::Sessions(PAGE));
    let error = fresh.ask(&unknown, &Principal::anonymous()).await.unwrap_err();
    assert!(matches!(error, Error::Upstream(_)), "{error}");
    stage.run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_may_see_some_sims_gets_no_others_and_hidden_fields_are_hidden() {
    let stage = stage().await;
    let other = stage.rig.sim.fleet().into_iter().find(|sim| sim.iccid != stage.iccid.as_str()).unwrap();
    let scope =
        |iccid: &str| Filter::from_json(&json!({"iccid": [iccid]}), FilterLimits::default()).unwrap().0;
    let principal = |scope: Option<Filter>, policy: Option<FieldPolicy>| Principal {
        name: "test".into(),
        roles: [Role::Read].into_iter().collect::<Roles>(),
        scope,
        policy: policy.map(Arc::new),
        expires_at: None,
    };
    let theirs = principal(Some(scope(&other.iccid)), None);
    for question in stage.questions() {
        let error = stage.lookup.ask(&question, &theirs).await.unwrap_err();
        assert!(matches!(error, Error::NotFound), "{question:?}: {error}");
    }
    let ours = principal(Some(scope(stage.iccid.as_str())), None);
    for question in stage.questions() {
        let answer = stage.lookup.ask(&question, &ours).await.unwrap();
        assert_eq!(answer["source"], "log");
    }
    let hiding = FieldPolicy {
        iccid: FieldRule::Drop,
        msisdn: FieldRule::Last4,
        ip_address: FieldRule::Drop,
        ..FieldPolicy::default()
    };
    let hidden = principal(None, Some(hiding));
    let of_sim = question(Of::Sim(stage.iccid.clone()), What::Sessions(PAGE));
    assert!(matches!(stage.lookup.ask(&of_sim, &hidden).await, Err(Error::ForbiddenField(_))));
    for question in &stage.questions()[3..] {
        let text = Value::Object(stage.lookup.ask(question, &hidden).await.unwrap()).to_string();
        assert!(!text.contains(stage.iccid.as_str()), "{text}");
        assert!(!text.contains("\"ip_address\":\"10."), "{text}");
        let msisdn =
            stage.rig.sim.fleet().into_iter().find(|sim| sim.iccid == stage.iccid.as_str()).unwrap().msisdn;
        assert!(!text.contains(&msisdn), "{text}");
    }
    stage.run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_bounded_and_can_be_forgotten() {
    let mut kept = Kept::default();
    let iccid = |n: usize| Iccid::parse(&format!("8947{n:015}")).unwrap();
    let of = |n: usize| question(Of::Sim(iccid(n)), What::Sessions(PAGE));
    for n in 0..KEPT_MAX + 10 {
        kept.put(of(n), Arc::new(Found { iccid: Some(iccid(n)), ..Found::default() }));
        kept.put(of(n), Arc::new(Found { iccid: Some(iccid(n)), ..Found::default() }));
    }
    assert_eq!((kept.answers.len(), kept.order.len()), (KEPT_MAX, KEPT_MAX));
    assert!(!kept.answers.contains_key(&of(9)) && kept.answers.contains_key(&of(10)));
    let stage = stage().await;
    let asked = stage.questions().remove(2);
    stage.ask(&asked).await;
    stage.lookup.forget(&stage.iccid);
    assert!(stage.lookup.kept.lock().answers.is_empty());
    stage.run.stop().await;
}
