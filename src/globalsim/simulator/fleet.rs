//! The SIMs of the simulated account: who they are and what state they are in. The same seed gives the same fleet.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::operators::{Attachment, NETWORK_TYPES, NetworkShape, OPERATORS, Operator};
use super::sessions::{SessionTruth, Sessions, decimal, rfc3339};

/// Device ids that customers could choose and that break careless code; each gets a number appended.
const ODD_DEVICE_IDS: [&str; 5] = ["kjøleskap nord ", "rig/3/", "søppel*>日本.", "50%2Foff?#", "a b&c="];

/// The device that carries a SIM.
#[derive(Debug, Clone)]
pub(super) struct Device {
    /// As chosen by the customer.
    pub id: Arc<str>,
    name: String,
    linked_at_s: i64,
}

/// One SIM: identity and state.
#[derive(Debug, Clone)]
pub(super) struct Sim {
    /// 19 digits.
    pub iccid: Arc<str>,
    /// E.164.
    pub msisdn: Arc<str>,
    /// None: not linked.
    pub device: Option<Device>,
    /// Home network.
    pub home: &'static Operator,
    /// Travels abroad.
    pub roams: bool,
    /// Where it is registered now.
    pub attachment: Attachment,
    /// Usage of the current month in tenths of a megabyte.
    pub month_tenths: u64,
    /// Year and month that `month_tenths` belongs to; none before the first update.
    pub month: Option<(i16, i8)>,
    /// Data sessions.
    pub sessions: Sessions,
}

/// All SIMs, found by ICCID and by device id.
#[derive(Debug)]
pub(super) struct Fleet {
    sims: Vec<Sim>,
    by_iccid: HashMap<Arc<str>, usize>,
    by_device: HashMap<Arc<str>, usize>,
}

/// One SIM of the fleet, for test drivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct SimInfo {
    /// ICCID.
    pub iccid: String,
    /// MSISDN.
    pub msisdn: String,
    /// Linked device, if any.
    pub device_id: Option<String>,
}

/// The answer of `/devices/{device_id}/sim`.
#[derive(Debug, Serialize)]
pub(super) struct DeviceShape {
    device_id: String,
    device_name: String,
    sim: DeviceSimShape,
}

#[derive(Debug, Serialize)]
struct DeviceSimShape {
    iccid: String,
    status: &'static str,
    msisdn: String,
    current_network: NetworkShape,
    data_usage_mb: f64,
    linked_at: String,
}

/// The Luhn check digit of a string of decimal digits.
pub(super) fn luhn_digit(digits: &str) -> u8 {
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(position, byte)| {
            let digit = u32::from(byte.wrapping_sub(b'0'));
            let doubled = if position % 2 == 0 { digit * 2 } else { digit };
            if doubled > 9 { doubled - 9 } else { doubled }
        })
        .sum();
    ((10 - sum % 10) % 10) as u8
}

/// 89, country, issuer, a running account number, check digit: 19 digits. One in fifty has a wrong check digit.
fn iccid(rng: &mut fastrand::Rng, home: &Operator, number: usize) -> String {
    let prefix = format!("89{:0>2}{:02}", home.calling_code, rng.u8(1..20));
    let room = 18 - prefix.len();
    let account = (number as u64 + 1) * 7_919 % 10u64.pow(room as u32);
    let body = format!("{prefix}{account:0room$}");
    let check = luhn_digit(&body);
    let digit = if rng.u8(..50) == 0 { (check + 5) % 10 } else { check };
    format!("{body}{digit}")
}

fn msisdn(rng: &mut fastrand::Rng, home: &Operator) -> String {
    // National numbers of the North American plan have ten digits, eight will do elsewhere.
    let digits = if home.calling_code == "1" { 9 } else { 7 };
    format!("+{}9{:0digits$}", home.calling_code, rng.u64(..10u64.pow(digits as u32)))
}

fn device(rng: &mut fastrand::Rng, number: usize, linked_at_s: i64) -> Option<Device> {
    if rng.u8(..10) == 0 {
        return None;
    }
    let id = match number % 17 {
        5 => format!("{}{number}", ODD_DEVICE_IDS[(number / 17) % ODD_DEVICE_IDS.len()]),
        _ => format!("iot_dev_{:05x}{number:x}", rng.u32(..0x10_0000)),
    };
    let kinds = ["Temperature Sensor", "Tracker", "Meter", "Gateway", "Camera"];
    let kind = kinds[rng.usize(..kinds.len())];
    Some(Device { id: id.into(), name: format!("{kind} {:02}", number + 1), linked_at_s })
}

// === impl Sim ===

impl Sim {
    fn new(rng: &mut fastrand::Rng, number: usize, now_s: i64) -> Self {
        let home = &OPERATORS[rng.usize(..OPERATORS.len())];
        let linked_at_s = now_s - rng.i64(86_400..86_400 * 300);
        Self {
            iccid: iccid(rng, home, number).into(),
            msisdn: msisdn(rng, home).into(),
            device: device(rng, number, linked_at_s),
            home,
            roams: rng.u8(..4) == 0,
            attachment: Attachment { operator: home, network_type: NETWORK_TYPES[rng.usize(..5)] },
            month_tenths: rng.u64(..5_000),
            month: None,
            sessions: Sessions::default(),
        }
    }

    /// The linked device's id.
    pub(super) fn device_id(&self) -> Option<Arc<str>> {
        self.device.as_ref().map(|device| device.id.clone())
    }

    /// The answer of the device endpoint; none when no device is linked.
    pub(super) fn device_shape(&self) -> Option<DeviceShape> {
        let device = self.device.as_ref()?;
        Some(DeviceShape {
            device_id: device.id.to_string(),
            device_name: device.name.clone(),
            sim: DeviceSimShape {
                iccid: self.iccid.to_string(),
                status: "active",
                msisdn: self.msisdn.to_string(),
                current_network: self.attachment.in_device(),
                data_usage_mb: decimal(self.month_tenths),
                linked_at: rfc3339(device.linked_at_s),
            },
        })
    }
}

// === impl Fleet ===

impl Fleet {
    /// `count` SIMs, at least one.
    pub(super) fn new(rng: &mut fastrand::Rng, count: usize, now_s: i64) -> Self {
        let mut fleet =
            Self { sims: Vec::with_capacity(count), by_iccid: HashMap::new(), by_device: HashMap::new() };
        for number in 0..count.max(1) {
            fleet.add(Sim::new(rng, number, now_s));
        }
        fleet
    }

    fn add(&mut self, sim: Sim) -> usize {
        let at = self.sims.len();
        self.by_iccid.insert(sim.iccid.clone(), at);
        if let Some(device) = sim.device_id() {
            self.by_device.insert(device, at);
        }
        self.sims.push(sim);
        at
    }

    /// How many SIMs there are.
    pub(super) fn len(&self) -> usize {
        self.sims.len()
    }

    /// The SIM at a position that this fleet gave out.
    pub(super) fn get(&self, at: usize) -> &Sim {
        &self.sims[at]
    }

    /// As [`Self::get`], to change its state.
    pub(super) fn get_mut(&mut self, at: usize) -> &mut Sim {
        &mut self.sims[at]
    }

    /// Position by ICCID.
    pub(super) fn by_iccid(&self, iccid: &str) -> Option<usize> {
        self.by_iccid.get(iccid).copied()
    }

    /// Position by the id of the device that is linked now.
    pub(super) fn by_device(&self, device: &str) -> Option<usize> {
        self.by_device.get(device).copied()
    }

    /// Position by ICCID; a SIM that is not there yet joins the fleet, without a device.
    pub(super) fn find_or_add(&mut self, rng: &mut fastrand::Rng, iccid: &str, now_s: i64) -> usize {
        if let Some(at) = self.by_iccid(iccid) {
            return at;
        }
        let fresh = Sim::new(rng, self.sims.len(), now_s);
        self.add(Sim { iccid: iccid.into(), device: None, ..fresh })
    }

    /// Moves a device to another SIM; the SIM's former device is left without one. False: no such SIM.
    pub(super) fn relink(&mut self, device: &str, iccid: &str, now_s: i64) -> bool {
        let Some(to) = self.by_iccid(iccid) else { return false };
        let former = self.by_device.remove(device).and_then(|from| self.sims[from].device.take());
        if let Some(displaced) = self.sims[to].device.take() {
            self.by_device.remove(&displaced.id);
        }
        let id: Arc<str> = device.into();
        let name = former.map_or_else(|| "Device".to_owned(), |former| former.name);
        self.sims[to].device = Some(Device { id: id.clone(), name, linked_at_s: now_s });
        self.by_device.insert(id, to);
        true
    }

    /// The sessions of all SIMs.
    pub(super) fn sessions(&self) -> Vec<SessionTruth> {
        self.sims.iter().flat_map(|sim| sim.sessions.truth(&sim.iccid)).collect()
    }

    /// Everyone, in order of creation.
    pub(super) fn infos(&self) -> Vec<SimInfo> {
        let info = |sim: &Sim| SimInfo {
            iccid: sim.iccid.to_string(),
            msisdn: sim.msisdn.to_string(),
            device_id: sim.device_id().map(|id| id.to_string()),
        };
        self.sims.iter().map(info).collect()
    }
}
