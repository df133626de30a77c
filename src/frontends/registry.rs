//! Who is connected, with which filter and how far: the connection cap, and `GET /v1/subscribers`.
//!
//! A connection registers itself and is forgotten when its guard is dropped, however its task ends. Positions are
//! atomics that the frontends store to after each write, so that listing never makes a subscriber wait.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::{
    Limits,
    error::{ApiError, Code},
};
use crate::clock::SharedClock;

/// Values of one filter list that are kept for display.
const SHOWN_VALUES: usize = 20;

/// Which frontend a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `/v1/events/ws`.
    WebSocket,
    /// `/v1/events/sse`.
    Sse,
    /// A gRPC stream.
    Grpc,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::WebSocket, Self::Sse, Self::Grpc];

    /// As shown, and as metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::Grpc => "grpc",
        }
    }
}

/// All live connections of this gateway. Clones share one list.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_connections: usize,
    max_subscriptions: usize,
    clock: SharedClock,
    open: AtomicUsize,
    by_kind: [AtomicUsize; 3],
    next_id: AtomicU64,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    kind: Kind,
    peer: Option<SocketAddr>,
    since: Timestamp,
    principal: Mutex<Arc<str>>,
    subscriptions: Mutex<Vec<Arc<Subscription>>>,
}

#[derive(Debug)]
struct Subscription {
    name: Box<str>,
    filter: Mutex<Box<str>>,
    position: AtomicU64,
    delivered: AtomicU64,
}

impl Registry {
    /// An empty registry with the caps of `limits`.
    pub fn new(limits: &Limits, clock: SharedClock) -> Self {
        Self(Arc::new(Inner {
            max_connections: limits.connections,
            max_subscriptions: limits.subscriptions_per_connection,
            clock,
            open: AtomicUsize::new(0),
            by_kind: Default::default(),
            next_id: AtomicU64::new(1),
            connections: Mutex::default(),
        }))
    }

    /// Registers a connection until the guard is dropped. `principal` may be empty until it is known.
    ///
    /// # Errors
    /// [`Code::ConnectionLimit`] when all are taken.
    pub fn connect(
        &self,
        kind: Kind,
        principal: &str,
        peer: Option<SocketAddr>,
    ) -> Result<ConnectionGuard, ApiError> {
        let inner = &self.0;
        let max = inner.max_connections;
        let taken = inner
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < max).then_some(open + 1));
        if taken.is_err() {
            return Err(ApiError::new(Code::ConnectionLimit, format!("all {max} connections are taken"))
                .hint("raise limits.connections, or use another gateway of the same stream")
                .retry_after(Duration::from_secs(5)));
        }
        inner.by_kind[kind as usize].fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            id: inner.next_id.fetch_add(1, Ordering::Relaxed),
            kind,
            peer,
            since: inner.clock.now(),
            principal: Mutex::new(principal.into()),
            subscriptions: Mutex::default(),
        });
        inner.connections.lock().insert(connection.id, Arc::clone(&connection));
        Ok(ConnectionGuard { registry: self.clone(), connection })
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Open connections of one frontend.
    pub fn connections_of(&self, kind: Kind) -> usize {
        self.0.by_kind[kind as usize].load(Ordering::Relaxed)
    }

    /// The subscribers, by connection id; only those of `principal` where one is given. `edge` is the newest
    /// sequence, from which lag is counted; `cursor_at` gives the text form of a position.
    pub fn list(&self, principal: Option<&str>, edge: u64, cursor_at: impl Fn(u64) -> String) -> Vec<Value> {
        let mut connections: Vec<_> = self.0.connections.lock().values().cloned().collect();
        connections.sort_unstable_by_key(|connection| connection.id);
        connections
            .iter()
            .filter(|connection| principal.is_none_or(|name| **connection.principal.lock() == *name))
            .map(|connection| connection.to_json(edge, &cursor_at))
            .collect()
    }
}

impl Connection {
    fn to_json(&self, edge: u64, cursor_at: &impl Fn(u64) -> String) -> Value {
        let subscriptions: Vec<_> = self.subscriptions.lock().clone();
        let subscriptions: Vec<_> = subscriptions
            .iter()
            .map(|subscription| {
                let position = subscription.position.load(Ordering::Relaxed);
                let filter = subscription.filter.lock().clone();
                json!({
                    "sub": subscription.name,
                    "filter": serde_json::from_str::<Value>(&filter).unwrap_or_default(),
                    "cursor": cursor_at(position),
                    "lag_events": edge.saturating_sub(position),
                    "delivered": subscription.delivered.load(Ordering::Relaxed),
                })
            })
            .collect();
        json!({
            "conn": connection_name(self.id),
            "kind": self.kind.as_str(),
            "principal": &**self.principal.lock(),
            "peer": self.peer.map(|peer| peer.to_string()),
            "connected_at": self.since.to_string(),
            "subscriptions": subscriptions,
        })
    }
}

fn connection_name(id: u64) -> String {
    format!("c{id}")
}

/// A registered connection; dropping it takes it off the list.
#[derive(Debug)]
pub struct ConnectionGuard {
    registry: Registry,
    connection: Arc<Connection>,
}

impl ConnectionGuard {
    /// Name of the connection, as in `welcome` and `GET /v1/subscribers`.
    pub fn name(&self) -> String {
        connection_name(self.connection.id)
    }

    /// Sets who it is, where that is known only after the connection exists.
    pub fn set_principal(&self, name: &str) {
        *self.connection.principal.lock() = name.into();
    }

    /// Lists a subscription until the handle is dropped. `filter` is the JSON form; long lists are cut for display.
    ///
    /// # Errors
    /// [`Code::SubscriptionLimit`] when all of this connection are taken, [`Code::SubExists`] for a name in use.
    pub fn subscription(&self, name: &str, filter: &Value) -> Result<SubscriptionHandle, ApiError> {
        let max = self.registry.0.max_subscriptions;
        let subscription = Arc::new(Subscription {
            name: name.into(),
            filter: Mutex::new(shown(filter)),
            position: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        });
        let mut list = self.connection.subscriptions.lock();
        if list.iter().any(|other| *other.name == *name) {
            return Err(ApiError::new(Code::SubExists, format!("a subscription {name:?} exists"))
                .field("sub")
                .hint("update it, or choose another name"));
        }
        if list.len() >= max {
            return Err(ApiError::new(
                Code::SubscriptionLimit,
                format!("this connection has {max} subscriptions, the most it may have"),
            )
            .field("sub"));
        }
        list.push(Arc::clone(&subscription));
        drop(list);
        Ok(SubscriptionHandle { connection: Arc::clone(&self.connection), subscription })
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let inner = &self.registry.0;
        inner.connections.lock().remove(&self.connection.id);
        inner.by_kind[self.connection.kind as usize].fetch_sub(1, Ordering::Relaxed);
        inner.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A listed subscription; dropping it takes it off the list.
#[derive(Debug)]
pub struct SubscriptionHandle {
    connection: Arc<Connection>,
    subscription: Arc<Subscription>,
}

impl SubscriptionHandle {
    /// Position up to which everything has been handed to the client.
    pub fn set_position(&self, seq: u64) {
        self.subscription.position.store(seq, Ordering::Relaxed);
    }

    /// Counts events that were written to the client.
    pub fn add_delivered(&self, events: u64) {
        self.subscription.delivered.fetch_add(events, Ordering::Relaxed);
    }

    /// Replaces the filter that is shown.
    pub fn set_filter(&self, filter: &Value) {
        *self.subscription.filter.lock() = shown(filter);
    }
}

impl Drop for SubscriptionHandle {
    fn drop(&mut self) {
        self.connection.subscriptions.lock().retain(|other| !Arc::ptr_eq(other, &self.subscription));
    }
}

/// The filter as text, its lists cut to [`SHOWN_VALUES`]: a filter of a thousand ICCIDs is held once by the hub, not
/// again for display. What was cut is said in `omitted`.
fn shown(filter: &Value) -> Box<str> {
    let mut map = Map::new();
    let mut omitted = Map::new();
    for (name, list) in filter.as_object().into_iter().flatten() {
        let values = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let kept = values.len().min(SHOWN_VALUES);
        map.insert(name.clone(), values[..kept].into());
        if kept < values.len() {
            omitted.insert(name.clone(), (values.len() - kept).into());
        }
    }
    if !omitted.is_empty() {
        map.insert("omitted".into(), omitted.into());
    }
    Value::Object(map).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(connections: usize, subscriptions_per_connection: usize) -> Registry {
        let limits = Limits { connections, subscriptions_per_connection, ..Limits::default() };
        Registry::new(&limits, crate::clock::system())
    }

    #[test]
    fn guards_give_their_place_back() {
        let registry = registry(2, 1);
        let first = registry.connect(Kind::WebSocket, "a", None).unwrap();
        let second = registry.connect(Kind::Sse, "b", None).unwrap();
        let error = registry.connect(Kind::Grpc, "c", None).unwrap_err();
        assert_eq!(error.code, Code::ConnectionLimit);
        assert!(error.retry_after.is_some());
        drop(first);
        assert_eq!(registry.connections_of(Kind::WebSocket), 0);
        let third = registry.connect(Kind::Grpc, "c", None).unwrap();
        assert_eq!(registry.connections(), 2);
        drop((second, third));
        assert_eq!(registry.connections(), 0);
        assert!(registry.list(None, 0, |_| String::new()).is_empty());
    }

    #[test]
    fn subscriptions_are_capped_unique_and_removed_on_drop() {
        let registry = registry(1, 2);
        let guard = registry.connect(Kind::WebSocket, "a", None).unwrap();
        let first = guard.subscription("one", &json!({})).unwrap();
        let _second = guard.subscription("two", &json!({})).unwrap();
        assert_eq!(guard.subscription("two", &json!({})).unwrap_err().code, Code::SubExists);
        assert_eq!(guard.subscription("three", &json!({})).unwrap_err().code, Code::SubscriptionLimit);
        drop(first);
        let _third = guard.subscription("three", &json!({})).unwrap();
    }

    #[test]
    fn the_list_shows_filter_position_and_lag_of_the_right_principal() {
        let registry = registry(9, 9);
        let mine = registry.connect(Kind::WebSocket, "", "127.0.0.1:9".parse().ok()).unwrap();
        mine.set_principal("me");
        let _other = registry.connect(Kind::Sse, "other", None).unwrap();
        let handle = mine.subscription("default", &json!({"country": ["no"]})).unwrap();
        handle.set_position(7);
        handle.add_delivered(3);
        let list = registry.list(Some("me"), 10, |seq| format!("at {seq}"));
        assert_eq!(list.len(), 1);
        assert_eq!(list[0]["conn"], mine.name());
        assert_eq!(list[0]["kind"], "websocket");
        assert_eq!(list[0]["peer"], "127.0.0.1:9");
        let expected = json!([{
            "sub": "default", "filter": {"country": ["no"]}, "cursor": "at 7", "lag_events": 3, "delivered": 3
        }]);
        assert_eq!(list[0]["subscriptions"], expected);
        handle.set_filter(&json!({"iccid": vec!["8947000000000000001"; 25]}));
        let list = registry.list(None, 10, |_| String::new());
        assert_eq!(list.len(), 2);
        let filter = &list[0]["subscriptions"][0]["filter"];
        assert_eq!(filter["iccid"].as_array().unwrap().len(), SHOWN_VALUES);
        assert_eq!(filter["omitted"], json!({"iccid": 5}));
    }
}
