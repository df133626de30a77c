//! Which outlets an event goes to: distinct predicates under their most selective term.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Config,
    frame::{self, Encoding, Joiner},
    ring::{Chunk, Outlet},
};
use crate::{
    event::{FieldPolicy, Keys, Predicate, StoredEvent, filter::IndexTerm, filter::fold},
    log::ReadPage,
};

type NodeId = u64;
type OutletKey = (Encoding, Option<Arc<FieldPolicy>>);

/// One distinct predicate and the outlets that want it.
#[derive(Debug)]
struct Node {
    predicate: Predicate,
    outlets: HashMap<OutletKey, (Arc<Outlet>, usize)>,
}

/// All predicates that anybody is subscribed to.
#[derive(Debug, Default)]
pub(super) struct Table {
    next_id: NodeId,
    ids: HashMap<Predicate, NodeId>,
    nodes: HashMap<NodeId, Node>,
    by_iccid: HashMap<String, Vec<NodeId>>,
    by_device: HashMap<String, Vec<NodeId>>,
    by_type: HashMap<String, Vec<NodeId>>,
    unindexed: Vec<NodeId>,
    outlets: usize,
}

impl Table {
    /// Joins the outlet for a spec; makes it, complete from `edge` on, if nobody has it yet.
    pub(super) fn join(
        &mut self,
        predicate: &Predicate,
        encoding: Encoding,
        policy: Option<Arc<FieldPolicy>>,
        edge: u64,
    ) -> Arc<Outlet> {
        let id = match self.ids.get(predicate) {
            Some(id) => *id,
            None => self.insert(predicate),
        };
        let Some(node) = self.nodes.get_mut(&id) else {
            // `ids` and `nodes` change together; an outlet nobody feeds would still be served from the log.
            return Arc::new(Outlet::new(encoding, policy, u64::MAX));
        };
        match node.outlets.entry((encoding, policy.clone())) {
            Entry::Occupied(mut entry) => {
                entry.get_mut().1 += 1;
                entry.get().0.clone()
            }
            Entry::Vacant(entry) => {
                self.outlets += 1;
                let outlet = Arc::new(Outlet::new(encoding, policy, edge));
                entry.insert((outlet.clone(), 1));
                outlet
            }
        }
    }

    /// Leaves an outlet; the last one out removes it.
    pub(super) fn leave(&mut self, predicate: &Predicate, outlet: &Outlet) {
        let Some(id) = self.ids.get(predicate).copied() else { return };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let key = (outlet.encoding, outlet.policy.clone());
        if let Entry::Occupied(mut entry) = node.outlets.entry(key) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
                self.outlets -= 1;
            }
        }
        if node.outlets.is_empty() {
            self.remove(predicate, id);
        }
    }

    /// Distinct predicates and outlets.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        assert_eq!(self.ids.len(), self.nodes.len());
        (self.nodes.len(), self.outlets)
    }

    fn insert(&mut self, predicate: &Predicate) -> NodeId {
        let id = self.next_id;
        self.next_id += 1;
        self.ids.insert(predicate.clone(), id);
        self.nodes.insert(id, Node { predicate: predicate.clone(), outlets: HashMap::new() });
        match predicate.index_term() {
            IndexTerm::Iccid(list) => under(&mut self.by_iccid, list, id),
            IndexTerm::Device(list) => under(&mut self.by_device, list, id),
            IndexTerm::EventType(list) => under(&mut self.by_type, list, id),
            IndexTerm::All => self.unindexed.push(id),
        }
        id
    }

    fn remove(&mut self, predicate: &Predicate, id: NodeId) {
        self.ids.remove(predicate);
        self.nodes.remove(&id);
        match predicate.index_term() {
            IndexTerm::Iccid(list) => not_under(&mut self.by_iccid, list, id),
            IndexTerm::Device(list) => not_under(&mut self.by_device, list, id),
            IndexTerm::EventType(list) => not_under(&mut self.by_type, list, id),
            IndexTerm::All => self.unindexed.retain(|other| *other != id),
        }
    }

    /// Gives every outlet the chunks of a page; returns those that got some, for waking.
    pub(super) fn publish(&mut self, config: &Config, incarnation: u64, page: &ReadPage) -> Vec<Arc<Outlet>> {
        let mut matches: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
        for (i, event) in page.events.iter().enumerate() {
            let Ok(keys) = event.keys() else { continue };
            self.candidates(&keys, |id, node| {
                if node.predicate.matches(&keys) {
                    matches.entry(id).or_default().push(i as u32);
                }
            });
        }
        let bytes_max = (config.ring_bytes_total / self.outlets.max(1)).min(config.ring_bytes);
        let mut encoded = Encoded::new(&page.events, incarnation);
        let mut woken = Vec::new();
        for (id, indices) in matches {
            let Some(node) = self.nodes.get(&id) else { continue };
            for (outlet, _) in node.outlets.values() {
                outlet.push(chunks(config, outlet, &mut encoded, &indices), bytes_max);
                woken.push(outlet.clone());
            }
        }
        woken
    }

    /// Empties every outlet, which is complete again from `edge` on; returns all, for waking.
    pub(super) fn restart(&mut self, edge: u64) -> Vec<Arc<Outlet>> {
        let outlets = self.nodes.values().flat_map(|node| node.outlets.values());
        outlets
            .map(|(outlet, _)| {
                outlet.restart(edge);
                outlet.clone()
            })
            .collect()
    }

    fn candidates(&self, keys: &Keys<'_>, mut visit: impl FnMut(NodeId, &Node)) {
        let none = Vec::new();
        let listed = [
            keys.iccid.and_then(|iccid| self.by_iccid.get(iccid)),
            keys.device_id.and_then(|device| self.by_device.get(fold(device).as_ref())),
            self.by_type.get(fold(keys.event_type).as_ref()),
            Some(&self.unindexed),
        ];
        for id in listed.into_iter().flat_map(|list| list.unwrap_or(&none)) {
            if let Some(node) = self.nodes.get(id) {
                visit(*id, node);
            }
        }
    }
}

fn under(map: &mut HashMap<String, Vec<NodeId>>, terms: &[String], id: NodeId) {
    for term in terms {
        map.entry(term.clone()).or_default().push(id);
    }
}

fn not_under(map: &mut HashMap<String, Vec<NodeId>>, terms: &[String], id: NodeId) {
    for term in terms {
        if let Entry::Occupied(mut entry) = map.entry(term.clone()) {
            entry.get_mut().retain(|other| *other != id);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}

/// The events of a page, each encoded at most once per encoding and policy.
struct Encoded<'p> {
    events: &'p [StoredEvent],
    incarnation: u64,
    cache: HashMap<OutletKey, Vec<Option<Bytes>>>,
}

impl<'p> Encoded<'p> {
    fn new(events: &'p [StoredEvent], incarnation: u64) -> Self {
        Self { events, incarnation, cache: HashMap::new() }
    }

    /// The encodings of one outlet, filled in for `indices`. An event that can't be encoded stays None.
    fn for_outlet(&mut self, outlet: &Outlet, indices: &[u32]) -> &[Option<Bytes>] {
        // A WebSocket and a webhook get the same JSON of an event.
        let encoding = match outlet.encoding {
            Encoding::Items => Encoding::WebSocket,
            other => other,
        };
        let slots = (self.cache.entry((encoding, outlet.policy.clone())))
            .or_insert_with(|| vec![None; self.events.len()]);
        for i in indices {
            let (Some(slot), Some(event)) = (slots.get_mut(*i as usize), self.events.get(*i as usize)) else {
                continue;
            };
            if slot.is_none() {
                match frame::encode(event, self.incarnation, outlet.encoding, outlet.policy.as_deref()) {
                    Ok(bytes) => *slot = Some(bytes),
                    Err(error) => tracing::error!(seq = event.seq(), %error, "stored event can't be encoded"),
                }
            }
        }
        slots
    }
}

fn chunks(config: &Config, outlet: &Outlet, encoded: &mut Encoded<'_>, indices: &[u32]) -> Vec<Chunk> {
    let (events, incarnation) = (encoded.events, encoded.incarnation);
    let slots = encoded.for_outlet(outlet, indices);
    let mut chunks = Vec::new();
    let mut joiner = Joiner::new(outlet.encoding, 0);
    let mut last: Option<&StoredEvent> = None;
    for i in indices {
        let (Some(event), Some(Some(bytes))) = (events.get(*i as usize), slots.get(*i as usize)) else {
            continue;
        };
        let full =
            joiner.starts.len() >= config.batch_events || joiner.len() + bytes.len() > config.batch_bytes;
        if let (true, Some(done)) = (full && !joiner.starts.is_empty(), last) {
            let (batch, starts) = joiner.finish(done.cursor(incarnation));
            chunks.push(Chunk { batch, starts });
            joiner = Joiner::new(outlet.encoding, 0);
        }
        joiner.push(event, bytes);
        last = Some(event);
    }
    if let (false, Some(done)) = (joiner.starts.is_empty(), last) {
        let (batch, starts) = joiner.finish(done.cursor(incarnation));
        chunks.push(Chunk { batch, starts });
    }
    chunks
}
