//! One suite for every backend: each sentence of the contract at the head of [`bus`](super) is a check here.
//!
//! A backend's tests call [`run_all`] with a closure that makes an empty bus. What a backend promises beyond the
//! contract (what survives a restart, for one) it tests itself.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};

use super::{
    AppendError, Appended, Bucket, Bus, Change, DEVICE_KEY_PREFIX, Fence, KvError, NewEvent, SIM_KEY_PREFIX,
};
use crate::{
    event::{Event, Iccid, Identity, Predicate},
    log::{CursorState, Direction, ReadRequest},
};

/// A promise that was not kept.
#[derive(Debug, thiserror::Error)]
#[error("{promise}: {detail}")]
pub struct Violation {
    /// The promise, shortly.
    pub promise: &'static str,
    /// What was seen instead.
    pub detail: String,
}

type Checked = Result<(), Box<dyn std::error::Error + Send + Sync>>;

macro_rules! ensure {
    ($condition:expr, $($detail:tt)+) => {
        if !$condition {
            return Err(format!($($detail)+).into());
        }
    };
}

/// Runs every check, each on a bus of its own; gives the promises that were kept, which are all.
///
/// # Errors
/// The first [`Violation`].
pub async fn run_all(make: impl AsyncFn() -> Arc<dyn Bus>) -> Result<Vec<&'static str>, Violation> {
    let mut kept = Vec::new();
    macro_rules! run {
        ($($promise:literal => $check:ident),+ $(,)?) => {$(
            let bus = make().await;
            $check(&bus)
                .await
                .map_err(|error| Violation { promise: $promise, detail: error.to_string() })?;
            bus.shutdown().await;
            kept.push($promise);
        )+};
    }
    run! {
        "one answer per event, in order" => answers_in_order,
        "a known id is not stored again" => known_ids_are_not_stored_again,
        "an appended event is readable" => appended_is_readable,
        "observed_at never decreases" => observed_at_never_decreases,
        "a bad event names itself and stores nothing" => bad_events_store_nothing,
        "racing appends store an id once" => racing_appends_store_once,
        "writes are compare-and-set" => writes_are_compare_and_set,
        "revisions are never reused" => revisions_are_never_reused,
        "one racer wins" => one_racer_wins,
        "lists are by prefix and in order" => lists_are_by_prefix,
        "a watch gives a snapshot, then changes" => watch_gives_snapshot_then_changes,
        "a watcher far behind is ended" => watcher_far_behind_is_ended,
        "a lease has one holder" => lease_has_one_holder,
        "an older fence is refused for ever" => older_fences_are_refused,
        "an erased SIM is gone, and nothing else has changed" => erased_is_gone,
        "a closed bus says so" => closed_bus_says_so,
    }
    Ok(kept)
}

/// An event to append, distinct by its id.
pub fn event(id: &str) -> NewEvent {
    let mut event = Event::new(id, Arc::from("/globalsim/test"), "connection");
    event.event_id = Some(id.to_owned());
    event.iccid = crate::event::Iccid::parse("8901234567890123456").ok();
    let identity =
        Identity { event_id: Some(id), iccid: None, event_type: "connection", timestamp: None }.hash();
    NewEvent { event, identity, content: identity as u32 }
}

fn events(prefix: &str, count: usize) -> Vec<NewEvent> {
    (0..count).map(|n| event(&format!("{prefix}{n}"))).collect()
}

async fn erased_is_gone(bus: &Arc<dyn Bus>) -> Checked {
    let of = |id: &str, iccid: &str| {
        let mut new = event(id);
        new.event.iccid = Iccid::parse(iccid).ok();
        new
    };
    let (gone, stays) = (Iccid::parse("8901234567890123456")?, "8901234567890123472");
    let mut mention = of("mention", stays);
    mention.event.extra.insert("previous".to_owned(), gone.as_str().into());
    let batch = vec![of("a", gone.as_str()), of("b", stays), mention, of("c", gone.as_str())];
    let stored = bus.append(batch.clone(), None).await?;
    let last = bus.log().bounds().last_seq;
    let cursors: Vec<_> = (0..=last).map(|seq| bus.log().cursor_at(seq)).collect();
    bus.kv_put(Bucket::State, &format!("{SIM_KEY_PREFIX}{gone}"), Bytes::from_static(b"{}")).await?;
    let named = format!("{{\"iccid\":\"{gone}\"}}");
    bus.kv_put(Bucket::State, &format!("{DEVICE_KEY_PREFIX}its"), named.into()).await?;
    bus.kv_put(Bucket::State, &format!("{DEVICE_KEY_PREFIX}other"), Bytes::from_static(b"{}")).await?;
    let erased = bus.erase(&gone).await?;
    ensure!((erased.events, erased.mentions, erased.keys) == (2, 1, 2), "{erased:?}");
    let devices = bus.kv_list(Bucket::State, DEVICE_KEY_PREFIX).await?;
    ensure!(devices.len() == 1 && devices[0].key.ends_with("other"), "devices left: {devices:?}");
    ensure!(read_ids(bus)? == ["b", "mention"], "left are {:?}", read_ids(bus)?);
    ensure!(bus.kv_list(Bucket::State, SIM_KEY_PREFIX).await?.is_empty(), "the SIM's key is still there");
    let mention = bus.log().find("mention").map(|known| bus.log().get(known.seq)).transpose()?.flatten();
    let mention = mention.ok_or("the mention is gone")?;
    let text = String::from_utf8_lossy(mention.json()).into_owned();
    ensure!(!text.contains(gone.as_str()), "still mentioned: {text}");
    for (seq, cursor) in (0u64..).zip(&cursors).skip(1) {
        let checked = bus.log().check(*cursor);
        ensure!(checked == Ok(seq) || checked == Err(CursorState::Expired), "cursor {seq}: {checked:?}");
    }
    let again = bus.append(batch, None).await?;
    for (stored, again) in stored.iter().zip(&again) {
        let (Appended::Stored(stored), Appended::Known(known)) = (stored, again) else {
            return Err(format!("{stored:?}, then {again:?}").into());
        };
        ensure!(stored == known, "stored at {stored}, known at {known}");
    }
    let later = bus.append(vec![of("later", gone.as_str())], None).await?;
    ensure!(matches!(later[..], [Appended::Stored(_)]), "what comes later answers {later:?}");
    ensure!(read_ids(bus)? == ["b", "mention", "later"], "then {:?}", read_ids(bus)?);
    let erased = bus.erase(&gone).await?;
    ensure!((erased.events, erased.mentions) == (1, 0), "again: {erased:?}");
    let erased = bus.erase(&gone).await?;
    ensure!((erased.events, erased.mentions, erased.keys) == (0, 0, 0), "a third time: {erased:?}");
    Ok(())
}

async fn answers_in_order(bus: &Arc<dyn Bus>) -> Checked {
    ensure!(bus.append(vec![], None).await?.is_empty(), "an empty batch has answers");
    let mut last = 0;
    for round in 0..3 {
        let answers = bus.append(events(&format!("r{round}-"), 20), None).await?;
        ensure!(answers.len() == 20, "{} answers for 20 events", answers.len());
        for answer in answers {
            let Appended::Stored(seq) = answer else { return Err(format!("{answer:?} for a new id").into()) };
            ensure!(seq > last, "sequence {seq} after {last}");
            last = seq;
        }
    }
    Ok(())
}

async fn known_ids_are_not_stored_again(bus: &Arc<dyn Bus>) -> Checked {
    let first = bus.append(events("e", 5), None).await?;
    let again = bus.append(events("e", 5), None).await?;
    for (first, again) in first.iter().zip(&again) {
        let (Appended::Stored(stored), Appended::Known(known)) = (first, again) else {
            return Err(format!("{first:?} then {again:?}").into());
        };
        ensure!(stored == known, "stored at {stored}, known at {known}");
    }
    let mixed = bus.append(vec![event("e3"), event("new"), event("new")], None).await?;
    let [Appended::Known(_), Appended::Stored(stored), Appended::Known(repeat)] = mixed[..] else {
        return Err(format!("known, new and repeated answer {mixed:?}").into());
    };
    ensure!(stored == repeat, "the repeat of {stored} in one batch answers {repeat}");
    ensure!(read_ids(bus)?.len() == 6, "6 ids are {} events", read_ids(bus)?.len());
    Ok(())
}

async fn appended_is_readable(bus: &Arc<dyn Bus>) -> Checked {
    let mut edge = bus.log().edge();
    edge.mark_unchanged();
    let answers = bus.append(events("e", 30), None).await?;
    ensure!(edge.has_changed()?, "the edge did not move");
    for (n, answer) in answers.iter().enumerate() {
        let Appended::Stored(seq) = *answer else { return Err(format!("{answer:?}").into()) };
        ensure!(*edge.borrow() >= seq, "edge {} behind {seq}", *edge.borrow());
        let stored = bus.log().get(seq)?.ok_or("an appended event can't be got")?;
        let id = stored.keys()?.id.to_owned();
        ensure!(id == format!("e{n}"), "{id} at the place of e{n}");
        let known = bus.log().find(&id).ok_or("an appended id is not known")?;
        let new = event(&id);
        ensure!(
            (known.seq, known.identity, known.content) == (seq, new.identity, new.content),
            "{known:?} for {id} at {seq}"
        );
    }
    let expected: Vec<_> = (0..30).map(|n| format!("e{n}")).collect();
    ensure!(read_ids(bus)? == expected, "read {:?}", read_ids(bus)?);
    ensure!(bus.log().bounds().events == 30, "bounds {:?}", bus.log().bounds());
    Ok(())
}

async fn observed_at_never_decreases(bus: &Arc<dyn Bus>) -> Checked {
    for round in 0..5 {
        bus.append(events(&format!("r{round}-"), 3), None).await?;
    }
    let mut last = i64::MIN;
    for stored in read_all(bus)? {
        let observed_us = stored.keys()?.observed_us;
        ensure!(observed_us >= last, "{observed_us} after {last}");
        ensure!(observed_us % 1000 == 0, "{observed_us} is finer than milliseconds");
        last = observed_us;
    }
    Ok(())
}

async fn bad_events_store_nothing(bus: &Arc<dyn Bus>) -> Checked {
    let mut batch = events("e", 3);
    batch[1].event.device_id = Some("x".repeat(70_000));
    match bus.append(batch, None).await {
        Err(error @ AppendError::BadEvent { index: 1, .. }) => {
            ensure!(!error.retryable(), "a bad event is called retryable");
        }
        other => return Err(format!("a bad event at 1 answers {other:?}").into()),
    }
    ensure!(read_ids(bus)?.is_empty(), "its batch was stored: {:?}", read_ids(bus)?);
    let answers = bus.append(events("e", 3), None).await?;
    ensure!(answers.iter().all(|a| matches!(a, Appended::Stored(_))), "then {answers:?}");
    Ok(())
}

async fn racing_appends_store_once(bus: &Arc<dyn Bus>) -> Checked {
    let appends = (0..16).map(|start: usize| {
        let batch: Vec<_> = (start..start + 10).map(|n| event(&format!("e{n}"))).collect();
        bus.append(batch, None)
    });
    let mut stored = BTreeSet::new();
    for answers in join_all(appends).await {
        for answer in answers? {
            if let Appended::Stored(seq) = answer {
                ensure!(stored.insert(seq), "sequence {seq} was given twice");
            }
        }
    }
    let ids: BTreeSet<_> = read_ids(bus)?.into_iter().collect();
    ensure!(stored.len() == 25 && ids.len() == 25, "{} stored, {} ids, not 25", stored.len(), ids.len());
    ensure!(read_ids(bus)?.len() == 25, "an id lies in the log twice");
    Ok(())
}

async fn writes_are_compare_and_set(bus: &Arc<dyn Bus>) -> Checked {
    let bucket = Bucket::State;
    ensure!(bus.kv_get(bucket, "k").await?.is_none(), "an empty bucket has a key");
    let first = bus.kv_create(bucket, "k", Bytes::from_static(b"1")).await?;
    conflict(bus.kv_create(bucket, "k", Bytes::from_static(b"x")).await)?;
    let second = bus.kv_update(bucket, "k", Bytes::from_static(b"2"), first).await?;
    conflict(bus.kv_update(bucket, "k", Bytes::from_static(b"x"), first).await)?;
    conflict(bus.kv_update(bucket, "other", Bytes::from_static(b"x"), 0).await)?;
    conflict(bus.kv_delete(bucket, "k", first).await)?;
    let entry = bus.kv_get(bucket, "k").await?.ok_or("the key is gone")?;
    ensure!((&entry.value[..], entry.revision) == (b"2", second), "a refused write changed {entry:?}");
    ensure!(bus.kv_get(Bucket::Cursors, "k").await?.is_none(), "buckets share keys");
    let third = bus.kv_put(bucket, "k", Bytes::new()).await?;
    ensure!(
        bus.kv_get(bucket, "k").await?.is_some_and(|e| e.value.is_empty()),
        "an empty value is not a value"
    );
    bus.kv_delete(bucket, "k", third).await?;
    ensure!(bus.kv_get(bucket, "k").await?.is_none(), "a deleted key is there");
    conflict(bus.kv_delete(bucket, "k", third).await)
}

async fn revisions_are_never_reused(bus: &Arc<dyn Bus>) -> Checked {
    let mut last = 0;
    for round in 0..4 {
        let created = bus.kv_create(Bucket::Endpoints, "k", Bytes::from_static(b"v")).await?;
        let put = bus.kv_put(Bucket::Endpoints, &format!("k{round}"), Bytes::new()).await?;
        ensure!(created > last && put > created, "revisions {last}, {created}, {put}");
        last = put;
        bus.kv_delete(Bucket::Endpoints, "k", created).await?;
    }
    Ok(())
}

async fn one_racer_wins(bus: &Arc<dyn Bus>) -> Checked {
    let mut revision = bus.kv_create(Bucket::Cursors, "k", Bytes::new()).await?;
    for _ in 0..5 {
        let racers =
            (0..8u8).map(|n| bus.kv_update(Bucket::Cursors, "k", Bytes::copy_from_slice(&[n]), revision));
        let mut won = None;
        for (n, result) in join_all(racers).await.into_iter().enumerate() {
            match result {
                Ok(next) => {
                    ensure!(won.is_none(), "two writers won revision {revision}");
                    won = Some((n as u8, next));
                }
                Err(KvError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (winner, next) = won.ok_or("nobody won")?;
        let entry = bus.kv_get(Bucket::Cursors, "k").await?.ok_or("the key is gone")?;
        ensure!(
            (entry.revision, &entry.value[..]) == (next, &[winner][..]),
            "{winner} won but left {entry:?}"
        );
        revision = next;
    }
    Ok(())
}

async fn lists_are_by_prefix(bus: &Arc<dyn Bus>) -> Checked {
    for key in ["b/2", "a", "b/1", "b", "b/10", "c", "b0"] {
        bus.kv_put(Bucket::State, key, Bytes::copy_from_slice(key.as_bytes())).await?;
    }
    let listed = bus.kv_list(Bucket::State, "b/").await?;
    ensure!(listed.iter().all(|e| e.value == e.key.as_bytes()), "{listed:?}");
    let keys: Vec<_> = listed.into_iter().map(|e| e.key).collect();
    ensure!(keys == ["b/1", "b/10", "b/2"], "prefix b/ gives {keys:?}");
    let all = bus.kv_list(Bucket::State, "").await?;
    ensure!(all.len() == 7 && all.is_sorted_by(|a, b| a.key < b.key), "no prefix gives {all:?}");
    ensure!(bus.kv_list(Bucket::State, "x").await?.is_empty(), "no match gives something");
    Ok(())
}

async fn watch_gives_snapshot_then_changes(bus: &Arc<dyn Bus>) -> Checked {
    let (bucket, value) = (Bucket::Endpoints, Bytes::from_static(b"v"));
    let before = bus.kv_put(bucket, "w/1", value.clone()).await?;
    bus.kv_put(bucket, "x/1", value.clone()).await?;
    bus.kv_put(Bucket::State, "w/9", value.clone()).await?;
    let mut watch = bus.kv_watch(bucket, "w/").await?;
    let added = bus.kv_create(bucket, "w/2", value.clone()).await?;
    bus.kv_put(bucket, "x/2", value.clone()).await?;
    bus.kv_put(Bucket::State, "w/8", value.clone()).await?;
    bus.kv_delete(bucket, "w/1", before).await?;
    let changed = bus.kv_update(bucket, "w/2", Bytes::from_static(b"u"), added).await?;
    let entry = |key: &str, revision, value: &'static [u8]| {
        Change::Put(super::Entry { key: key.to_owned(), revision, value: Bytes::from_static(value) })
    };
    for expected in [
        entry("w/1", before, b"v"),
        Change::Synced,
        entry("w/2", added, b"v"),
        Change::Deleted { key: "w/1".to_owned() },
        entry("w/2", changed, b"u"),
    ] {
        let seen = tokio::time::timeout(Duration::from_secs(30), watch.recv()).await?;
        ensure!(seen.as_ref() == Some(&expected), "{seen:?} instead of {expected:?}");
    }
    Ok(())
}

async fn watcher_far_behind_is_ended(bus: &Arc<dyn Bus>) -> Checked {
    let mut watch = bus.kv_watch(Bucket::Cursors, "").await?;
    let keys: Vec<_> = (0..1_200).map(|n| format!("k{n}")).collect();
    let puts = keys.iter().map(|key| bus.kv_put(Bucket::Cursors, key, Bytes::new()));
    for put in join_all(puts).await {
        put?;
    }
    // A backend may take its time to hand changes on; nobody reads them meanwhile.
    let ended = async {
        while !watch.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await?;
    let mut seen = 0;
    while let Some(_change) = tokio::time::timeout(Duration::from_secs(30), watch.recv()).await? {
        seen += 1;
    }
    ensure!((1_024..1_201).contains(&seen), "ended after {seen} changes");
    let mut again = bus.kv_watch(Bucket::Cursors, "").await?;
    let mut entries = 0;
    while let Some(Change::Put(_)) = again.recv().await {
        entries += 1;
    }
    ensure!(entries == 1_200, "a new watch gives {entries} of 1200 entries");
    Ok(())
}

async fn lease_has_one_holder(bus: &Arc<dyn Bus>) -> Checked {
    let ttl = Duration::from_secs(5);
    let first = bus.lease("poller", ttl).await?;
    let other = bus.lease("other", ttl).await?;
    let mut second = bus.lease("poller", ttl);
    ensure!((&mut second).now_or_never().is_none(), "two hold the lease at once");
    let waited = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
    ensure!(waited.is_err(), "two hold the lease at once");
    ensure!(!*first.lost.borrow(), "the lease was lost while held");
    bus.append(events("held-", 2), Some(first.fence)).await?;
    let fence = first.fence;
    drop(first);
    let second = tokio::time::timeout(Duration::from_secs(30), second).await??;
    ensure!(second.fence > fence, "{:?} after {fence:?}", second.fence);
    ensure!(!*second.lost.borrow(), "the lease was lost when taken");
    bus.append(events("other-", 1), Some(other.fence)).await?;
    Ok(())
}

async fn older_fences_are_refused(bus: &Arc<dyn Bus>) -> Checked {
    let ttl = Duration::from_secs(5);
    let first = bus.lease("poller", ttl).await?.fence;
    let second = bus.lease("poller", ttl).await?;
    fenced(bus, first, "late-0").await?;
    bus.append(vec![event("e1")], Some(second.fence)).await?;
    bus.append(vec![event("e2")], None).await?;
    fenced(bus, first, "late-1").await?;
    fenced(bus, Fence(0), "late-2").await?;
    ensure!(read_ids(bus)? == ["e1", "e2"], "a fenced append was stored: {:?}", read_ids(bus)?);
    Ok(())
}

async fn fenced(bus: &Arc<dyn Bus>, fence: Fence, id: &str) -> Checked {
    match bus.append(vec![event(id)], Some(fence)).await {
        Err(error @ AppendError::Fenced) => {
            ensure!(!error.retryable(), "being fenced is called retryable");
            Ok(())
        }
        other => Err(format!("an append with the old {fence:?} answers {other:?}").into()),
    }
}

async fn closed_bus_says_so(bus: &Arc<dyn Bus>) -> Checked {
    ensure!(bus.health().unwritable.is_none(), "unwritable before anything happened: {:?}", bus.health());
    let lease = bus.lease("poller", Duration::from_secs(5)).await?;
    bus.append(events("e", 2), Some(lease.fence)).await?;
    bus.shutdown().await;
    match bus.append(vec![event("late")], None).await {
        Err(error @ AppendError::Closed) => ensure!(!error.retryable(), "closed is called retryable"),
        other => return Err(format!("an append after shutdown answers {other:?}").into()),
    }
    let mut lost = lease.lost;
    tokio::time::timeout(Duration::from_secs(30), lost.wait_for(|lost| *lost)).await??;
    ensure!(read_ids(bus)?.len() == 2, "reads after shutdown give {:?}", read_ids(bus)?);
    bus.shutdown().await;
    Ok(())
}

fn conflict<T: std::fmt::Debug>(result: Result<T, KvError>) -> Checked {
    match result {
        Err(error @ KvError::Conflict) => {
            ensure!(!error.retryable(), "a conflict is called retryable");
            Ok(())
        }
        other => Err(format!("a lost race answers {other:?}").into()),
    }
}

fn read_all(bus: &Arc<dyn Bus>) -> Result<Vec<crate::event::StoredEvent>, crate::log::ReadError> {
    let predicate = Predicate::default();
    let (mut events, mut from) = (Vec::new(), 0);
    loop {
        let page = bus.log().read(ReadRequest {
            from,
            direction: Direction::Forward,
            predicate: &predicate,
            limit: 7,
            max_bytes: usize::MAX,
        })?;
        events.extend(page.events);
        if page.at_end {
            return Ok(events);
        }
        from = page.next;
    }
}

fn read_ids(bus: &Arc<dyn Bus>) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    let ids = read_all(bus)?.iter().map(|e| e.keys().map(|k| k.id.to_owned())).collect::<Result<_, _>>()?;
    Ok(ids)
}
