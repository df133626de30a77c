//! Appends on each backend: how many a second in pages, and how long one takes until a reader of the hub has it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use simcast::{
    bus::{
        Bus, Fence,
        embedded::{self, Embedded},
    },
    clock,
    event::{OnExpired, Predicate, Start},
    hub::{self, Delivery, Encoding, Hub, Spec, Subscription},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    nats_server::{NEWEST, Options, Server},
    support::{Outcome, PAGE, event, jetstream, quantile, setting},
};

/// The pages whose rate is measured, after some that are not.
const PAGES: u64 = 400;
const WARM_UP: u64 = 20;
/// Events a second, and for how many seconds.
const RATES: [(f64, f64); 2] = [(10.0, 30.0), (200.0, 10.0)];
/// How long the last events of a rate may take.
const LAST_MAX: Duration = Duration::from_secs(20);
const SIMS: u64 = 20_000;
/// Before the id in the JSON of an event, once in each.
const NEEDLE: &[u8] = br#""id":"evt_"#;
const ID_DIGITS: usize = 10;

#[derive(Clone, Copy)]
enum Place {
    Embedded,
    One { always: bool },
    Three { always: bool },
}

const PLACES: [(&str, Place); 5] = [
    ("embedded", Place::Embedded),
    ("NATS, default sync", Place::One { always: false }),
    ("NATS, sync always", Place::One { always: true }),
    ("NATS R3, default sync", Place::Three { always: false }),
    ("NATS R3, sync always", Place::Three { always: true }),
];

pub async fn measure() -> Outcome<()> {
    println!("batches of {PAGE}: events/s; one at a time, Poisson: append to hub reader, milliseconds");
    print!("{:<22} {:>9}", "", "events/s");
    for (rate, _) in RATES {
        print!(" {:>10} {:>7} {:>7}", format!("{rate}/s: p50"), "p99", "max");
    }
    println!();
    for (name, place) in PLACES {
        let directory = TempDir::new()?;
        let (bus, _servers) = open(place, &directory).await?;
        // As the poller appends.
        let lease = bus.lease("poller", Duration::from_secs(10)).await?;
        let mut next = 0;
        let throughput = throughput(&*bus, lease.fence, &mut next).await?;
        print!("{name:<22} {throughput:>9.0}");
        for (rate, seconds) in RATES {
            let sorted = latency(&bus, lease.fence, &mut next, rate, seconds).await?;
            let ms = [0.5, 0.99, 1.0].map(|q| quantile(&sorted, q) * 1e3);
            print!(" {:>10.2} {:>7.2} {:>7.2}", ms[0], ms[1], ms[2]);
        }
        println!();
        drop(lease);
        bus.shutdown().await;
    }
    Ok(())
}

async fn open(place: Place, directory: &TempDir) -> Outcome<(Arc<dyn Bus>, Vec<Server>)> {
    let path = directory.path().join("data");
    let (servers, replicas) = match place {
        Place::Embedded => {
            let config = embedded::Config { path: Some(path), ..embedded::Config::default() };
            return Ok((Embedded::open(config, clock::system())?, Vec::new()));
        }
        Place::One { always } => (vec![Server::start_with(options(always)).await], 1),
        Place::Three { always } => (Server::cluster_with(options(always)).await.into(), 3),
    };
    Ok((jetstream(servers[0].url(), Some(&path), replicas).await?, servers))
}

fn options(sync_always: bool) -> Options {
    Options { sync_always, ..Options::new(NEWEST) }
}

async fn throughput(bus: &dyn Bus, fence: Fence, next: &mut u64) -> Outcome<f64> {
    let mut page = || {
        let page = (*next..*next + PAGE).map(|n| event(n, SIMS)).collect::<Vec<_>>();
        *next += PAGE;
        page
    };
    let warm_up: Vec<_> = (0..WARM_UP).map(|_| page()).collect();
    let counted: Vec<_> = (0..(PAGES as f64 * setting("SCALE", 1.0)) as u64).map(|_| page()).collect();
    let events = counted.len() as f64 * PAGE as f64;
    for batch in warm_up {
        bus.append(batch, Some(fence)).await?;
    }
    let started = Instant::now();
    for batch in counted {
        bus.append(batch, Some(fence)).await?;
    }
    Ok(events / started.elapsed().as_secs_f64())
}

/// Seconds from each append's call until a reader of the hub has the event, ascending.
async fn latency(
    bus: &Arc<dyn Bus>,
    fence: Fence,
    next: &mut u64,
    rate: f64,
    seconds: f64,
) -> Outcome<Vec<f64>> {
    let count = (rate * seconds * setting("SCALE", 1.0)).max(1.0) as usize;
    let first = *next;
    *next += count as u64;
    let stop = CancellationToken::new();
    let hub = Hub::new(hub::Config::default(), bus.log().clone());
    let subscription = hub.subscribe(Spec {
        encoding: Encoding::WebSocket,
        predicate: Predicate::unfiltered(),
        policy: None,
        start: Start::Now,
        on_expired: OnExpired::Fail,
    });
    let subscription = subscription.await?;
    tokio::spawn(hub.run(stop.clone()));
    let reader = tokio::spawn(read(subscription, first, count));
    let began = Arc::new(Mutex::new(vec![None; count]));
    // The same arrivals on each backend.
    let mut chance = fastrand::Rng::with_seed(7);
    let mut due = tokio::time::Instant::now();
    let mut appends = Vec::with_capacity(count);
    for nth in 0..count {
        due += Duration::from_secs_f64(-(1.0 - chance.f64()).ln() / rate);
        tokio::time::sleep_until(due).await;
        let (bus, began, batch) =
            (Arc::clone(bus), Arc::clone(&began), vec![event(first + nth as u64, SIMS)]);
        appends.push(tokio::spawn(async move {
            began.lock()[nth] = Some(Instant::now());
            bus.append(batch, Some(fence)).await
        }));
    }
    for append in appends {
        append.await??;
    }
    let seen =
        tokio::time::timeout(LAST_MAX, reader).await.map_err(|_| "not every event was delivered")???;
    stop.cancel();
    let began = began.lock();
    let mut taken: Vec<f64> = (began.iter().zip(seen))
        .filter_map(|(began, seen)| Some(seen.duration_since((*began)?).as_secs_f64()))
        .collect();
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

/// When each of `count` events came, by its number.
async fn read(mut subscription: Subscription, first: u64, count: usize) -> Outcome<Vec<Instant>> {
    let mut seen = vec![None; count];
    let mut missing = count;
    while missing > 0 {
        let batch = match subscription.next().await {
            Delivery::Batch(batch) => batch,
            Delivery::CaughtUp(_) => continue,
            Delivery::Gap(_) | Delivery::Failed(_) => return Err("the reader lost its place".into()),
        };
        let at = Instant::now();
        for place in memchr::memmem::find_iter(&batch.bytes, NEEDLE) {
            let digits = place + NEEDLE.len()..place + NEEDLE.len() + ID_DIGITS;
            let n: u64 = std::str::from_utf8(&batch.bytes[digits])?.parse()?;
            let slot = n.checked_sub(first).and_then(|nth| seen.get_mut(nth as usize));
            if let Some(slot @ None) = slot {
                *slot = Some(at);
                missing -= 1;
            }
        }
    }
    Ok(seen.into_iter().flatten().collect())
}
