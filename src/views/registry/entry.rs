//! One SIM: the newest of each thing that events say of it.
//!
//! Newest is by the time of the event, and among equal times by its place in the log, so an entry does not depend on
//! the order in which late and backfilled events came. An event can't have happened after it was observed: a time in
//! the future counts as the time of observation, else one wrong clock would hold an entry for years.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::{
    glance::Data,
    sessions::{Month, Sessions},
};
use crate::event::{Flag, Flags, Iccid, Keys, Network, json::Text};

/// When something was so, and which event says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Microseconds since the epoch.
    pub(super) us: i64,
    /// Place in the log.
    pub(super) seq: u64,
}

impl Stamp {
    pub(super) fn of(keys: &Keys<'_>, seq: u64) -> Self {
        Self { us: keys.time_us.min(keys.observed_us), seq }
    }
}

/// A value with its stamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct At<T> {
    pub(super) at: Stamp,
    pub(super) value: T,
}

fn is_newer<T>(held: Option<&At<T>>, at: Stamp) -> bool {
    held.is_none_or(|held| held.at < at)
}

fn set<T>(held: &mut Option<At<T>>, at: Stamp, value: T) {
    if is_newer(held.as_ref(), at) {
        *held = Some(At { at, value });
    }
}

/// The newest event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Last {
    pub(super) id: Box<str>,
    pub(super) event_type: Box<str>,
    /// Its time as the event has it.
    pub(super) time_us: i64,
}

/// The newest usage sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) current_usage_mb: Number,
    pub(super) period: Option<Box<str>>,
}

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Entry {
    /// Named by the configuration, which says so anew at each start.
    #[serde(skip)]
    pub(super) configured: bool,
    /// Without the completed copies of partial events.
    pub(super) events: u64,
    pub(super) first_us: Option<i64>,
    pub(super) last: Option<At<Last>>,
    pub(super) msisdn: Option<At<Box<str>>>,
    /// None inside: its device has gone to another SIM.
    pub(super) device: Option<At<Option<Box<str>>>>,
    pub(super) online: Option<At<bool>>,
    #[serde(with = "shared")]
    pub(super) network: Option<At<Arc<Network>>>,
    pub(super) sample: Option<At<Sample>>,
    #[serde(skip_serializing_if = "Sessions::is_empty")]
    pub(super) sessions: Sessions,
}

impl Entry {
    /// Whether the JSON of an event with these keys could change it. Most of what an old event says is known better.
    pub(super) fn wants_json(&self, keys: &Keys<'_>, at: Stamp) -> bool {
        is_newer(self.msisdn.as_ref(), at)
            || is_newer(self.network.as_ref(), at)
            || keys.event_type == "data_usage_update"
            || keys.event_type.starts_with("session_")
    }

    /// Takes in what the keys say.
    pub(super) fn absorb_keys(&mut self, keys: &Keys<'_>, at: Stamp) {
        if !keys.flags.contains(Flag::Enriched) {
            self.events += 1;
        }
        if let Some(device) = keys.device_id {
            set(&mut self.device, at, Some(device.into()));
        }
        // It tells when the device was linked, not that the SIM was seen.
        if keys.event_type == "sim_linked" {
            return;
        }
        self.first_us = Some(self.first_us.map_or(at.us, |first| first.min(at.us)));
        if is_newer(self.last.as_ref(), at) {
            let (id, event_type) = (keys.id.into(), keys.event_type.into());
            self.last = Some(At { at, value: Last { id, event_type, time_us: keys.time_us } });
        }
        match keys.event_type {
            "connection" | "network_change" | "data_usage_update" | "session_started" => {
                set(&mut self.online, at, true);
            }
            "disconnection" => set(&mut self.online, at, false),
            _ => {}
        }
    }

    /// Takes in what only the JSON says; `network` is the event's, where it names one.
    pub(super) fn absorb_data(
        &mut self,
        keys: &Keys<'_>,
        data: &Data<'_>,
        network: Option<Arc<Network>>,
        at: Stamp,
    ) {
        if let Some(msisdn) = Text::of(data.msisdn.as_ref())
            && is_newer(self.msisdn.as_ref(), at)
        {
            self.msisdn = Some(At { at, value: msisdn.into() });
        }
        if let Some(network) = network {
            set(&mut self.network, at, network);
        }
        if keys.event_type == "data_usage_update"
            && let Some(usage) = &data.usage
            && let Some(current) = &usage.current_usage_mb
        {
            let sample =
                Sample { current_usage_mb: current.clone(), period: usage.period.as_deref().map(Into::into) };
            set(&mut self.sample, at, sample);
        }
        if keys.event_type.starts_with("session_")
            && let Some(session) = &data.session
        {
            self.sessions.absorb(keys.event_type, session, at);
        }
    }

    /// Whether no event has said anything of it.
    pub(super) fn is_blank(&self) -> bool {
        *self == Self { configured: self.configured, ..Self::default() }
    }

    /// Its device was linked to another SIM.
    pub(super) fn lose_device(&mut self, at: Stamp) {
        set(&mut self.device, at, None);
    }

    /// Its device, where it has one.
    pub(super) fn device_id(&self) -> Option<&str> {
        self.device.as_ref().and_then(|device| device.value.as_deref())
    }

    /// Time of the newest event, microseconds since the epoch.
    pub(super) fn last_us(&self) -> Option<i64> {
        self.last.as_ref().map(|last| last.at.us)
    }

    pub(super) fn is_online(&self) -> Option<bool> {
        self.online.as_ref().map(|online| online.value)
    }

    /// The keys of an event that would say what the entry says: filters are about events, and this is how they are
    /// about SIMs.
    pub(super) fn keys<'a>(&'a self, iccid: &'a Iccid) -> Keys<'a> {
        let network = self.network.as_ref().map(|network| &*network.value);
        let us = self.last_us().unwrap_or_default();
        Keys {
            flags: Flags::default(),
            gateway: false,
            time_us: us,
            observed_us: us,
            provenance: None,
            id: "",
            event_type: "",
            iccid: Some(iccid.as_str()),
            device_id: self.device_id(),
            country: network.and_then(|network| network.country.as_deref()),
            country_code: network.and_then(|network| network.country_code.as_deref()),
            operator: network.and_then(|network| network.operator.as_deref()),
            network_type: network.and_then(|network| network.network_type.as_deref()),
        }
    }

    /// The newest usage sample, where it is of this month: it counts from the month's beginning.
    pub(super) fn sample_of(&self, month: Month) -> Option<&At<Sample>> {
        self.sample.as_ref().filter(|sample| Month::of_us(sample.at.us) == Some(month))
    }
}

/// Networks are shared in memory and written out one by one.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{At, Network};

    pub(super) fn serialize<S: Serializer>(
        network: &Option<At<Arc<Network>>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        network.as_ref().map(|network| At { at: network.at, value: &*network.value }).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<At<Arc<Network>>>, D::Error> {
        let network = Option::<At<Network>>::deserialize(deserializer)?;
        Ok(network.map(|network| At { at: network.at, value: Arc::new(network.value) }))
    }
}
