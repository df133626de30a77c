//! Which gateway serves an endpoint: one at a time, chosen without anybody in the middle.
//!
//! A gateway is a member while its key `gateway/<id>` in the bucket of leases is written anew every [`RENEW`]. Clocks
//! of machines are never compared: a member whose key has stood at one revision for [`TTL`] by the watcher's own
//! monotonic clock is dead, and the watcher deletes its key on the condition of that revision. A member counts itself
//! out earlier, [`VALID`] after the start of its last write that succeeded, so it has stopped before anybody follows,
//! also when it was suspended meanwhile: its clock runs on. Whoever was deleted comes back as a member of a new term, in
//! which it owns nothing until it has taken it over again.
//!
//! Each endpoint belongs to the member with the highest hash of both (rendezvous hashing), so that a member who comes
//! or goes moves only its own share. Belonging is a wish; owning is an entry: the [`Checkpoint`](super::store::Checkpoint)
//! of the endpoint names its owner, every write of it is a compare-and-set, and it is taken over only when its owner
//! has given it up or is no member any more. Whoever loses such a write has lost the endpoint.
//!
//! A bus that no other gateway shares (the embedded log) has one member, and what an earlier process left is free.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    bus::{Bucket, Bus, KvError},
    event::identity::FieldHasher,
    sabotage::{self, Bug},
};

/// How often a member writes its key.
pub const RENEW: Duration = Duration::from_secs(2);
/// A member whose key stands still for so long is dead.
pub const TTL: Duration = Duration::from_secs(8);
/// A member trusts its last write for so long.
pub const VALID: Duration = Duration::from_secs(6);

const PREFIX: &str = "gateway/";

/// The gateways that serve endpoints; cheap to clone.
#[derive(Debug, Clone)]
pub struct Members(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    me: String,
    /// None where nobody else can be.
    bus: Option<Arc<dyn Bus>>,
    /// Members as this gateway sees them, itself included while it is one.
    alive: watch::Sender<Arc<Vec<String>>>,
    /// The start of the last write that succeeded.
    renewed: Mutex<Option<Instant>>,
    /// Times that its key was created.
    term: AtomicU64,
}

impl Members {
    /// Becomes a member when [`Members::run`] runs. `me` must be no other gateway's, of now or before.
    pub fn new(bus: Arc<dyn Bus>, me: String) -> Self {
        let alone = !bus.is_shared();
        let alive = if alone { vec![me.clone()] } else { Vec::new() };
        let bus = (!alone).then_some(bus);
        Self(Arc::new(Inner {
            me,
            bus,
            alive: watch::Sender::new(Arc::new(alive)),
            renewed: Mutex::new(None),
            term: AtomicU64::new(0),
        }))
    }

    /// This gateway.
    pub fn me(&self) -> &str {
        &self.0.me
    }

    /// Changes when somebody comes or goes.
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<String>>> {
        self.0.alive.subscribe()
    }

    /// The present membership. Another means that somebody may have taken over what was owned before.
    pub fn term(&self) -> u64 {
        self.0.term.load(Ordering::Acquire)
    }

    /// Whether this gateway may act on what it took over in a term.
    pub fn holds(&self, term: u64) -> bool {
        self.valid() && (self.term() == term || sabotage::on(Bug::OutliveTerm))
    }

    /// Whether this gateway is a member.
    pub fn valid(&self) -> bool {
        self.0.bus.is_none() || self.0.renewed.lock().is_some_and(|at| at.elapsed() < VALID)
    }

    /// When that ends unless its key is written again; None where it never does.
    pub fn valid_until(&self) -> Option<Instant> {
        self.0.bus.as_ref()?;
        Some(self.0.renewed.lock().map_or_else(Instant::now, |at| at + VALID))
    }

    /// Whether an endpoint belongs to this gateway.
    pub fn is_mine(&self, endpoint: &str) -> bool {
        let alive = self.0.alive.borrow();
        choose(endpoint, &alive).is_some_and(|owner| *owner == self.0.me)
    }

    /// Whether a checkpoint that names this owner may be taken over; to be asked after it was read.
    ///
    /// # Errors
    /// Where the store can't be asked.
    pub async fn may_take(&self, owner: &str) -> Result<bool, KvError> {
        let Some(bus) = &self.0.bus else { return Ok(true) };
        if owner.is_empty() || owner == self.0.me {
            return Ok(true);
        }
        if !self.valid() || self.0.alive.borrow().iter().any(|one| one == owner) {
            return Ok(false);
        }
        // Nobody owns anything before its key is there, so one who is not known is new if it has a key, and else gone:
        // it deleted the key itself, or whoever saw it stand still for the whole time to live.
        Ok(bus.kv_get(Bucket::Lease, &key_of(owner)).await?.is_none())
    }

    /// Stays a member until `stop`, then leaves.
    pub async fn run(self, stop: CancellationToken) {
        let Some(bus) = self.0.bus.clone() else { return stop.cancelled().await };
        let mut seat = Seat { me: self.0.clone(), bus, revision: None, seen: BTreeMap::new() };
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = seat.turn() => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(RENEW) => {}
            }
        }
        seat.leave().await;
    }
}

fn key_of(member: &str) -> String {
    format!("{PREFIX}{member}")
}

/// The member that an endpoint belongs to.
fn choose<'m>(endpoint: &str, members: &'m [String]) -> Option<&'m String> {
    members.iter().max_by_key(|member| {
        let mut hasher = FieldHasher::new("owner");
        hasher.field(Some(endpoint));
        hasher.field(Some(member));
        (hasher.finish_u64(), *member)
    })
}

/// What the loop of a member keeps.
struct Seat {
    me: Arc<Inner>,
    bus: Arc<dyn Bus>,
    revision: Option<u64>,
    /// Revision of each other's key, and since when it has stood.
    seen: BTreeMap<String, (u64, Instant)>,
}

impl Seat {
    /// Writes the own key, looks at the others'.
    async fn turn(&mut self) {
        let started = Instant::now();
        match tokio::time::timeout(TTL, self.renew()).await {
            Ok(Ok(())) => *self.me.renewed.lock() = Some(started),
            Ok(Err(error)) => tracing::warn!(%error, "this gateway's membership could not be renewed"),
            Err(_) => tracing::warn!("this gateway's membership could not be renewed in time"),
        }
        match tokio::time::timeout(TTL, self.look()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the other gateways can't be looked at"),
            Err(_) => tracing::debug!("the other gateways can't be looked at in time"),
        }
    }

    fn key(&self) -> String {
        key_of(&self.me.me)
    }

    async fn renew(&mut self) -> Result<(), KvError> {
        let value: Bytes = json!({ "gateway": self.me.me, "ttl_s": TTL.as_secs() }).to_string().into();
        let written = match self.revision {
            Some(revision) => self.bus.kv_update(Bucket::Lease, &self.key(), value, revision).await,
            None => {
                let created = self.bus.kv_create(Bucket::Lease, &self.key(), value).await;
                if created.is_ok() {
                    self.me.term.fetch_add(1, Ordering::AcqRel);
                }
                created
            }
        };
        match written {
            Ok(revision) => {
                self.revision = Some(revision);
                Ok(())
            }
            // Nobody else writes this key: a write whose answer was lost, or somebody took us for dead.
            Err(KvError::Conflict) => {
                self.revision =
                    self.bus.kv_get(Bucket::Lease, &self.key()).await?.map(|entry| entry.revision);
                Err(KvError::Conflict)
            }
            Err(error) => Err(error),
        }
    }

    async fn look(&mut self) -> Result<(), KvError> {
        let now = Instant::now();
        let listed = self.bus.kv_list(Bucket::Lease, PREFIX).await?;
        let mut seen = BTreeMap::new();
        for entry in listed {
            let Some(member) = entry.key.strip_prefix(PREFIX).map(str::to_owned) else { continue };
            let since = match self.seen.get(&member) {
                Some((revision, since)) if *revision == entry.revision => *since,
                _ => now,
            };
            let is_other = member != self.me.me;
            if is_other && now.duration_since(since) >= TTL {
                match self.bus.kv_delete(Bucket::Lease, &entry.key, entry.revision).await {
                    Ok(()) => {
                        tracing::warn!(member, "a gateway is gone; its endpoints are taken over");
                        continue;
                    }
                    // It lives after all.
                    Err(KvError::Conflict) => {}
                    Err(error) => return Err(error),
                }
            }
            seen.insert(member, (entry.revision, since));
        }
        self.seen = seen;
        let alive: Vec<String> = self.seen.keys().cloned().collect();
        self.me.alive.send_if_modified(|current| {
            let changed = **current != alive;
            if changed {
                *current = Arc::new(alive);
            }
            changed
        });
        Ok(())
    }

    /// So that nobody has to wait until the time has run out.
    async fn leave(&mut self) {
        *self.me.renewed.lock() = None;
        if let Some(revision) = self.revision {
            let key = self.key();
            let left = self.bus.kv_delete(Bucket::Lease, &key, revision);
            if let Ok(Err(error)) = tokio::time::timeout(RENEW, left).await {
                tracing::debug!(%error, "the membership was not given up; it runs out");
            }
        }
    }
}

#[cfg(test)]
mod tests;
