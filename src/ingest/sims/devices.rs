//! Which SIM is in a device: looked up when the device is first met, when events show it with another SIM, and once a
//! day. What is told: `sim_linked`, when it is another SIM than the one told or seen before.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    Task,
    diff::{derived, flags},
    record::{self, DeviceRecord},
};
use crate::{
    event::{Event, Iccid, Via, identity::FieldHasher},
    globalsim::{
        error::{Error, Kind},
        wire::{DeviceSim, time},
    },
    ingest::{intake::Stopped, page::Shown},
};

/// How often a device is looked up though nothing told of a change.
const EVERY: SignedDuration = SignedDuration::from_hours(24);
/// Pause before a lookup that failed is tried again; doubles up to the longest.
const RETRY_MIN: SignedDuration = SignedDuration::from_secs(10);
const RETRY_MAX: SignedDuration = SignedDuration::from_secs(3_600);
/// Devices that are followed.
const DEVICES_MAX: usize = 1_000_000;

/// When each device is to be looked up.
#[derive(Debug, Default)]
pub struct Devices {
    devices: HashMap<String, (Timestamp, u32)>,
    turns: BTreeSet<(Timestamp, String)>,
}

impl Devices {
    /// Takes up a device that was looked up then, or never.
    pub fn know(&mut self, id: &str, as_of: Option<Timestamp>) {
        if self.devices.len() < DEVICES_MAX && !self.devices.contains_key(id) {
            self.set(id, as_of.map_or(Timestamp::MIN, |at| after(at, EVERY)), 0);
        }
    }

    /// Events show another SIM in it.
    pub fn moved(&mut self, id: &str, now: Timestamp) {
        self.set(id, now, 0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// The device whose turn it is. It has no other before it was looked up or has failed.
    pub fn next(&mut self, now: Timestamp) -> Option<String> {
        self.turns.first().filter(|(due, _)| *due <= now)?;
        self.turns.pop_first().map(|(_, id)| id)
    }

    fn looked_up(&mut self, id: &str, at: Timestamp) {
        self.set(id, after(at, EVERY), 0);
    }

    fn failed(&mut self, id: &str, now: Timestamp) {
        let failures = self.devices.get(id).map_or(0, |(_, failures)| *failures);
        let pause = RETRY_MIN.checked_mul(1 << failures.min(16)).unwrap_or(RETRY_MAX).min(RETRY_MAX);
        self.set(id, after(now, pause), failures + 1);
    }

    fn set(&mut self, id: &str, due: Timestamp, failures: u32) {
        if let Some((before, _)) = self.devices.insert(id.to_owned(), (due, failures)) {
            self.turns.remove(&(before, id.to_owned()));
        }
        self.turns.insert((due, id.to_owned()));
    }
}

fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

impl Task<'_> {
    /// Looks a device up, tells what changed, and keeps the answer.
    pub(super) async fn look_up(&mut self, id: &str) -> Result<(), Stopped> {
        self.asked_at = tokio::time::Instant::now();
        let asked_at = self.session.clock.now();
        let key = format!("{}{id}", record::DEVICE);
        let kept = record::load::<DeviceRecord>(self.bus, &key).await;
        let answer = match (&kept, self.session.upstream.device_sim(id).await) {
            (Ok(_), Ok(answer)) => Some(answer),
            (Ok(_), Err(error)) if is_unknown(&error) => None,
            (_, result) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a device can't be looked up; it is tried again");
                }
                self.devices.failed(id, self.session.clock.now());
                return Ok(());
            }
        };
        let now = self.session.clock.now();
        let iccid = answer.as_ref().and_then(|answer| answer.iccid.clone());
        // What was told last; before the first lookup, what events showed.
        let before = match kept.ok().flatten() {
            Some(record) => record.iccid,
            None => self.roster.sim_of(id),
        };
        if let (Some(answer), Some(iccid)) = (&answer, &iccid) {
            if before.as_ref().is_some_and(|before| before != iccid) {
                let shown = Shown { asked_at, answered_at: answer.answered_at, not_seen_at: None };
                let event = self.linked(id, iccid, before.as_ref(), answer, shown);
                self.session.intake.derive(vec![event], Via::Devices).await?;
                self.session.intake.settle().await?;
            }
            self.roster.note(iccid, id, now.as_microsecond());
            self.schedule.know(iccid, None, false);
        }
        let answer = answer.map_or(Value::Null, |answer| answer.raw);
        record::save(self.bus, &key, &DeviceRecord { as_of: now, iccid, answer }).await;
        self.devices.looked_up(id, now);
        Ok(())
    }

    fn linked(
        &self,
        id: &str,
        iccid: &Iccid,
        before: Option<&Iccid>,
        answer: &DeviceSim,
        shown: Shown,
    ) -> crate::bus::NewEvent {
        let mut hasher = FieldHasher::new("link");
        hasher.field(Some(id));
        hasher.field(Some(iccid.as_str()));
        hasher.field(before.map(Iccid::as_str));
        hasher.field(answer.linked_at.as_deref());
        let name = format!("link_{:016x}", hasher.finish_u64());
        let mut event = Event::new(name, std::sync::Arc::clone(self.source), "sim_linked");
        event.iccid = Some(iccid.clone());
        event.device_id = Some(id.to_owned());
        event.msisdn = answer.msisdn.clone();
        event.network = answer.current_network.clone();
        let linked_at = answer.linked_at.as_deref().and_then(time::parse);
        event.time = linked_at.or(Some(shown.answered_at));
        event.timestamp =
            answer.linked_at.clone().filter(|_| linked_at.is_some()).or(Some(shown.answered_at.to_string()));
        event.details = Some(json!({
            "device_name": answer.device_name,
            "status": answer.status,
            "linked_at": answer.linked_at,
            "previous_iccid": before.map(Iccid::as_str),
            "data_usage_mb": answer.data_usage_mb,
        }));
        event.flags = flags(event.time, self.backfill_before);
        event.provenance = Some(shown.by(Via::Devices));
        derived(event, 0)
    }
}

/// Upstream has no such device: nothing to be tried again soon.
fn is_unknown(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_comes_when_it_is_new_has_moved_or_is_a_day_old() {
        let at = |hours: i64| Timestamp::from_second(1_700_000_000 + hours * 3_600).unwrap();
        let mut devices = Devices::default();
        devices.know("new", None);
        devices.know("known", Some(at(0)));
        assert_eq!(devices.next(at(1)).as_deref(), Some("new"));
        devices.looked_up("new", at(1));
        assert_eq!(devices.next(at(2)), None);
        devices.moved("known", at(2));
        assert_eq!(devices.next(at(2)).as_deref(), Some("known"));
        devices.failed("known", at(2));
        assert_eq!(devices.next(at(2)), None);
        assert_eq!(devices.next(at(3)).as_deref(), Some("known"), "it failed: soon again");
        devices.looked_up("known", at(3));
        assert_eq!(devices.next(at(24)), None);
        assert_eq!(devices.next(at(25)).as_deref(), Some("new"));
        assert_eq!(devices.len(), 2);
    }
}
