//! Which SIM is in a device: looked up when the device is first met, when events or its sessions show it with another
//! SIM, and once a day. What is told: `sim_linked`, when it is another SIM than the one told or seen before. The
//! sessions of a SIM in a known device are asked for by the device, since that answer names the SIM too: so a move shows
//! at the next read of them, at no request of its own.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    Task,
    diff::{derived, flags},
    record::{self, DeviceRecord},
};
use crate::{
    bus::NewEvent,
    event::{Event, Iccid, Via, identity::FieldHasher},
    globalsim::{
        error::{Error, Kind},
        wire::{DeviceSim, Page, SessionRow, time},
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
    devices: HashMap<String, Device>,
    turns: BTreeSet<(Timestamp, String)>,
}

#[derive(Debug, Default)]
struct Device {
    due: Timestamp,
    failures: u32,
    lists: Lists,
}

/// Whether the sessions of its SIM may be asked for by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Lists {
    #[default]
    Now,
    /// Asking failed. Other answers come first, so that a path that is broken keeps no SIM from being read.
    AfterLookUp,
    /// The answer named another SIM or none, or there is no such path or device.
    AfterMove,
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
        if let Some(device) = self.devices.get_mut(id)
            && device.lists == Lists::AfterLookUp
        {
            device.lists = Lists::Now;
        }
    }

    fn failed(&mut self, id: &str, now: Timestamp) {
        let failures = self.devices.get(id).map_or(0, |device| device.failures);
        let pause = RETRY_MIN.checked_mul(1 << failures.min(16)).unwrap_or(RETRY_MAX).min(RETRY_MAX);
        self.set(id, after(now, pause), failures + 1);
    }

    fn set(&mut self, id: &str, due: Timestamp, failures: u32) {
        let device = self.devices.entry(id.to_owned()).or_default();
        self.turns.remove(&(device.due, id.to_owned()));
        (device.due, device.failures) = (due, failures);
        self.turns.insert((due, id.to_owned()));
    }

    /// Whether the sessions of its SIM may be asked for by its id.
    pub fn lists(&self, id: &str) -> bool {
        self.devices.get(id).is_some_and(|device| device.lists == Lists::Now)
    }

    fn set_lists(&mut self, id: &str, lists: Lists) {
        if let Some(device) = self.devices.get_mut(id) {
            device.lists = lists;
        }
    }
}

fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

impl Task<'_> {
    /// A page of a SIM's sessions by the device that it is in: one request that also says whether it still is. None
    /// where that can't be had this way; then the SIM itself is to be asked, and for some time to come ([`Lists`]).
    pub(super) async fn page_by_device(
        &mut self,
        id: &str,
        iccid: &Iccid,
        offset: u64,
    ) -> Result<Option<Page<SessionRow>>, Error> {
        match self.session.upstream.device_sessions(id, offset).await {
            Ok(answer) if answer.iccid.as_ref() == Some(iccid) => Ok(Some(answer.page)),
            Ok(answer) => {
                self.devices.set_lists(id, Lists::AfterMove);
                if answer.iccid.is_some() {
                    self.devices.moved(id, self.session.clock.now());
                }
                Ok(None)
            }
            // These say nothing about the device.
            Err(error) if matches!(error.kind(), Kind::Auth | Kind::RateLimited | Kind::BudgetExhausted) => {
                Err(error)
            }
            Err(error) if is_unknown(&error) => {
                self.devices.set_lists(id, Lists::AfterMove);
                Ok(None)
            }
            Err(error) => {
                self.devices.set_lists(id, Lists::AfterLookUp);
                Err(error)
            }
        }
    }

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
        // Of a device that upstream does not know, events are all that tells.
        let iccid = match &answer {
            Some(answer) => answer.iccid.clone(),
            None => self.roster.sim_of(id),
        };
        let kept = kept.ok().flatten();
        let last_told = kept.as_ref().map(|record| record.as_of);
        // What was told last; before the first lookup, what events showed.
        let before = match kept {
            Some(record) => record.iccid,
            None => self.roster.sim_of(id),
        };
        if let Some(iccid) = &iccid {
            if let Some(before) = before.filter(|before| before != iccid) {
                let answered_at = answer.as_ref().map_or(now, |answer| answer.answered_at);
                let shown = Shown { asked_at, answered_at, not_seen_at: None };
                let link = Link { id, iccid, before: &before, last_told };
                let event = self.linked(&link, answer.as_ref(), shown);
                self.session.intake.derive(vec![event], Via::Devices).await?;
                self.session.intake.settle().await?;
                self.devices.set_lists(id, Lists::Now);
            }
            if answer.is_some() {
                self.roster.note(iccid, id, now.as_microsecond());
            }
            self.schedule.know(iccid, None, false);
        }
        let answer = answer.map_or(Value::Null, |answer| answer.raw);
        record::save(self.bus, &key, &DeviceRecord { as_of: now, iccid, answer }).await;
        self.devices.looked_up(id, now);
        Ok(())
    }

    fn linked(&self, link: &Link<'_>, answer: Option<&DeviceSim>, shown: Shown) -> NewEvent {
        let Link { id, iccid, before, last_told } = link;
        let linked_at = answer.and_then(|answer| answer.linked_at.as_deref());
        let mut hasher = FieldHasher::new("link");
        hasher.field(Some(id));
        hasher.field(Some(iccid.as_str()));
        hasher.field(Some(before.as_str()));
        // Without a time of its own, a move is told apart from an earlier one of the same kind by what was told before.
        let apart = match linked_at {
            Some(text) => Some(text.to_owned()),
            None => last_told.map(|at| at.to_string()),
        };
        hasher.field(apart.as_deref());
        let name = format!("link_{:016x}", hasher.finish_u64());
        let mut event = Event::new(name, Arc::clone(self.source), "sim_linked");
        event.iccid = Some((*iccid).clone());
        event.device_id = Some((*id).to_owned());
        event.msisdn = answer.and_then(|answer| answer.msisdn.clone());
        event.network = answer.and_then(|answer| answer.current_network.clone());
        let read = linked_at.and_then(time::parse);
        event.time = read.or(Some(shown.answered_at));
        let spelled = linked_at.filter(|_| read.is_some()).map(str::to_owned);
        event.timestamp = spelled.or(Some(shown.answered_at.to_string()));
        event.details = Some(json!({
            "device_name": answer.map(|answer| &answer.device_name),
            "status": answer.map(|answer| &answer.status),
            "linked_at": linked_at,
            "previous_iccid": before.as_str(),
            "data_usage_mb": answer.map(|answer| &answer.data_usage_mb),
        }));
        event.flags = flags(event.time, self.backfill_before);
        event.provenance = Some(shown.by(Via::Devices));
        derived(event, 0)
    }
}

/// A device that is in another SIM's hands.
struct Link<'a> {
    id: &'a str,
    iccid: &'a Iccid,
    before: &'a Iccid,
    /// When the device was looked up before this.
    last_told: Option<Timestamp>,
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

    #[test]
    fn a_device_whose_list_failed_is_asked_again_after_a_look_up_and_one_that_named_another_sim_after_a_move()
    {
        let at = |hours: i64| Timestamp::from_second(1_700_000_000 + hours * 3_600).unwrap();
        let mut devices = Devices::default();
        assert!(!devices.lists("stranger"));
        devices.know("meter", None);
        assert!(devices.lists("meter"));
        devices.set_lists("meter", Lists::AfterLookUp);
        devices.failed("meter", at(0));
        assert!(!devices.lists("meter"));
        devices.looked_up("meter", at(1));
        assert!(devices.lists("meter"));
        devices.set_lists("meter", Lists::AfterMove);
        devices.looked_up("meter", at(2));
        assert!(!devices.lists("meter"));
    }
}
