//! Which SIM is in which device, as far as events and lookups have told. Shared with whoever makes events, so that one
//! without a device gets the one that is known.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;

use crate::event::Iccid;

/// SIMs, and devices, that are remembered.
const ENTRIES_MAX: usize = 1_000_000;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Roster(RwLock<Links>);

#[derive(Debug, Default)]
struct Links {
    /// The device of each SIM, and since when (microseconds since the epoch).
    devices: HashMap<Iccid, (Arc<str>, i64)>,
    /// The SIM of each device, and since when.
    sims: HashMap<Arc<str>, (Iccid, i64)>,
}

/// What a note changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// Nothing, or it is older than what is known.
    Nothing,
    /// The device was not known.
    New,
    /// Another SIM was in the device: this one.
    Moved(Iccid),
}

impl Roster {
    /// The device that a SIM is in.
    pub fn device_of(&self, iccid: &Iccid) -> Option<Arc<str>> {
        self.0.read().devices.get(iccid).map(|(device, _)| Arc::clone(device))
    }

    /// The SIM that is in a device.
    pub fn sim_of(&self, device: &str) -> Option<Iccid> {
        self.0.read().sims.get(device).map(|(iccid, _)| iccid.clone())
    }

    /// Notes that a SIM was in a device at a time. What is older than what is known changes nothing: events come late.
    pub fn note(&self, iccid: &Iccid, device: &str, time_us: i64) -> Noted {
        let mut links = self.0.write();
        let known = links.sims.get(device);
        if known.is_some_and(|(_, since)| *since > time_us)
            || (known.is_none() && links.sims.len() >= ENTRIES_MAX)
        {
            return Noted::Nothing;
        }
        let name: Arc<str> = Arc::from(device);
        let before = links.sims.insert(Arc::clone(&name), (iccid.clone(), time_us));
        let is_newer = links.devices.get(iccid).is_none_or(|(_, since)| *since <= time_us);
        if is_newer && (links.devices.len() < ENTRIES_MAX || links.devices.contains_key(iccid)) {
            links.devices.insert(iccid.clone(), (Arc::clone(&name), time_us));
        }
        match before {
            None => Noted::New,
            Some((was, _)) if was == *iccid => Noted::Nothing,
            Some((was, _)) => {
                // A SIM is in one device only; unless something newer said otherwise, the old one is in none now.
                if links.devices.get(&was).is_some_and(|(device, _)| *device == name) {
                    links.devices.remove(&was);
                }
                Noted::Moved(was)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iccid(n: u64) -> Iccid {
        Iccid::parse(&format!("8947{n:015}")).unwrap()
    }

    #[test]
    fn a_move_is_told_once_and_not_by_what_came_late() {
        let roster = Roster::default();
        assert_eq!(roster.note(&iccid(1), "meter", 10), Noted::New);
        assert_eq!(roster.note(&iccid(1), "meter", 20), Noted::Nothing);
        assert_eq!(roster.note(&iccid(2), "meter", 30), Noted::Moved(iccid(1)));
        assert_eq!(roster.note(&iccid(1), "meter", 25), Noted::Nothing, "of before the move");
        assert_eq!(roster.sim_of("meter"), Some(iccid(2)));
        assert_eq!(roster.device_of(&iccid(1)), None);
        assert_eq!(roster.device_of(&iccid(2)).as_deref(), Some("meter"));
        assert_eq!(roster.note(&iccid(1), "gate", 40), Noted::New);
        assert_eq!(roster.device_of(&iccid(1)).as_deref(), Some("gate"));
    }
}
