//! All SIMs, and the position in the log up to which they are known.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    entry::{Entry, Stamp},
    glance::{self, Glance, Link, SeenNetwork},
};
use crate::event::{Iccid, Keys, Network, StoredEvent};

/// Networks that are shared between entries; further ones are kept with each.
const NETWORKS_MAX: usize = 10_000;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) sims: BTreeMap<Iccid, Entry>,
    /// Up to where the log has been read.
    pub(super) position: u64,
    /// `observed_at` of the newest event in it, microseconds since the epoch.
    pub(super) observed_us: Option<i64>,
    /// SIMs whose newest sign says that they are online.
    pub(super) online: usize,
    /// Rises whenever a SIM comes or goes.
    pub(super) generation: u64,
    /// Events of SIMs beyond the most that are kept.
    pub(super) refused: u64,
    sims_max: usize,
    networks: HashMap<u64, Arc<Network>>,
    /// SIMs that were forgotten, and the log's edge at that moment: a page may have been read before.
    forgotten: HashMap<Iccid, u64>,
}

impl State {
    pub(super) fn new(sims_max: usize) -> Self {
        Self { sims_max, ..Self::default() }
    }

    /// Adds SIMs that the configuration names.
    pub(super) fn configure(&mut self, iccids: &[Iccid]) {
        for iccid in iccids {
            if let Some(entry) = self.entry(iccid.as_str()) {
                entry.configured = true;
            }
        }
    }

    /// Puts back what a checkpoint held.
    pub(super) fn restore(&mut self, iccid: Iccid, mut entry: Entry) {
        if self.sims.len() >= self.sims_max {
            return;
        }
        if let Some(network) = &mut entry.network {
            network.value = share(&mut self.networks, glance::hash_of(&network.value), &network.value);
        }
        self.online += usize::from(entry.is_online() == Some(true));
        self.generation += 1;
        self.sims.insert(iccid, entry);
    }

    /// Takes in a page and moves on to where it ends.
    pub(super) fn absorb(&mut self, events: &[StoredEvent], next: u64) {
        for event in events {
            if let Ok(keys) = event.keys() {
                self.observed_us = self.observed_us.max(Some(keys.observed_us));
                self.absorb_event(event, &keys);
            }
        }
        self.position = next;
        self.forgotten.retain(|_, edge| *edge > next);
    }

    fn absorb_event(&mut self, event: &StoredEvent, keys: &Keys<'_>) {
        let Some(iccid) = keys.iccid.filter(|iccid| !keys.gateway && !self.was_forgotten(iccid, event.seq()))
        else {
            return;
        };
        let at = Stamp::of(keys, event.seq());
        let Some(entry) = self.entry(iccid) else {
            self.refused += 1;
            return;
        };
        let was = entry.is_online();
        entry.absorb_keys(keys, at);
        let is = entry.is_online();
        let wants_json = entry.wants_json(keys, at);
        self.online += usize::from(is == Some(true));
        self.online -= usize::from(was == Some(true));
        if wants_json {
            match serde_json::from_slice::<Glance<'_>>(event.json()) {
                Ok(Glance { data }) => {
                    let network = data.network.as_ref().filter(|network| !network.is_empty());
                    let network = network.map(|network| self.network(network));
                    if let Some(entry) = self.sims.get_mut(iccid) {
                        entry.absorb_data(keys, &data, network, at);
                    }
                }
                // What its keys say is in; on NATS others may have written it.
                Err(error) => tracing::warn!(seq = event.seq(), %error, "an event's body can't be read"),
            }
        }
        if keys.event_type == "sim_linked"
            && let Ok(link) = serde_json::from_slice::<Link<'_>>(event.json())
            && let Some(previous) = link.previous_iccid().filter(|previous| *previous != iccid)
            // A SIM that nothing else tells of is not made known by what has left it.
            && let Some(entry) = self.sims.get_mut(previous)
        {
            entry.lose_device(at);
        }
    }

    /// Removes a SIM; events of it that lie in the log up to `edge` are not taken in any more. Gives whether it was
    /// known.
    pub(super) fn forget(&mut self, iccid: &Iccid, edge: u64) -> bool {
        let gone = self.sims.remove(iccid);
        if let Some(entry) = &gone {
            self.online -= usize::from(entry.is_online() == Some(true));
            self.generation += 1;
        }
        if edge > self.position {
            self.forgotten.insert(iccid.clone(), edge);
        }
        gone.is_some()
    }

    fn was_forgotten(&self, iccid: &str, seq: u64) -> bool {
        self.forgotten.get(iccid).is_some_and(|edge| seq <= *edge)
    }

    /// The entry of a SIM, made where there is none; None where no more are kept.
    fn entry(&mut self, iccid: &str) -> Option<&mut Entry> {
        if !self.sims.contains_key(iccid) {
            if self.sims.len() >= self.sims_max {
                return None;
            }
            self.sims.insert(Iccid::parse(iccid).ok()?, Entry::default());
            self.generation += 1;
        }
        self.sims.get_mut(iccid)
    }

    fn network(&mut self, seen: &SeenNetwork<'_>) -> Arc<Network> {
        let hash = seen.hash();
        match self.networks.get(&hash) {
            Some(known) if seen.is(known) => Arc::clone(known),
            _ => share(&mut self.networks, hash, &Arc::new(seen.to_network())),
        }
    }

    /// `observed_at` of the newest event that is in.
    pub(super) fn as_of(&self) -> Option<Timestamp> {
        self.observed_us.and_then(|us| Timestamp::from_microsecond(us).ok())
    }
}

fn share(networks: &mut HashMap<u64, Arc<Network>>, hash: u64, network: &Arc<Network>) -> Arc<Network> {
    match networks.get(&hash) {
        Some(known) if known == network => Arc::clone(known),
        Some(_) => Arc::clone(network),
        None => {
            if networks.len() < NETWORKS_MAX {
                networks.insert(hash, Arc::clone(network));
            }
            Arc::clone(network)
        }
    }
}
