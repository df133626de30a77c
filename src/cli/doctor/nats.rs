//! The part of the doctor that looks at NATS: server, room, stream and buckets, durability, who polls, the copy.

use std::time::Duration;

use jiff::SignedDuration;

use super::{Finding, SKEW_MAX};
use crate::{
    app::jetstream_config,
    bus::jetstream::inspect::{Holder, Inspection, StreamSeen, inspect},
    clock::SharedClock,
    config::Config,
    ingest::LEASE,
};

/// Round trips longer than this make each append slow.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(100);
/// How long a running gateway may take to say how far its copy is.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// A copy is given so long to come as far as the stream was when that was asked for.
const CATCH_UP: Duration = Duration::from_secs(3);
const CATCH_UP_LOOK: Duration = Duration::from_millis(200);
/// More of a gateway's metrics is not read.
const METRICS_BYTES_MAX: usize = 4 << 20;

/// What there is to say.
pub(super) async fn examine(config: &Config, clock: &SharedClock) -> Vec<Finding> {
    let found = match inspect(&jetstream_config(config), LEASE, clock).await {
        Ok(found) => found,
        Err(error) => {
            let (detail, cure) = split(&error.to_string());
            return vec![Finding::fail("NATS", detail, cure)];
        }
    };
    let mut findings = vec![server(&found)];
    findings.extend(room(&found));
    findings.push(stream(config, &found));
    findings.extend(settings(&found));
    if let Some(durability) = &found.durability {
        findings.push(match &durability.warning {
            None => Finding::ok("NATS durability", &durability.says),
            Some(warning) => {
                let (detail, cure) = split(warning);
                Finding::warn("NATS durability", format!("{}: {detail}", durability.says), cure)
            }
        });
    }
    if let Some(seen) = &found.stream {
        findings.push(poller(found.holder.as_ref()));
        findings.push(copy(config, &found, seen).await);
    }
    findings.extend(found.ahead.map(apart));
    findings
}

/// Errors and warnings of the bus say what is wrong, a semicolon, and what to do.
fn split(text: &str) -> (String, String) {
    let (detail, cure) = text.split_once("; ").unwrap_or((text, ""));
    (detail.to_owned(), cure.to_owned())
}

fn server(found: &Inspection) -> Finding {
    let ms = found.round_trip.as_secs_f64() * 1e3;
    let detail = format!("server {} ({}) answers in {ms:.1} ms", found.server, found.version);
    if found.round_trip > ROUND_TRIP_MAX {
        return Finding::warn(
            "NATS",
            detail,
            "put the gateway nearer to its servers: each append waits for one answer",
        );
    }
    Finding::ok("NATS", detail)
}

fn room(found: &Inspection) -> Vec<Finding> {
    let what = "NATS account";
    if found.room.is_empty() {
        return vec![Finding::ok(what, &found.account)];
    }
    found.room.iter().map(|(problem, cure)| Finding::fail(what, problem, cure)).collect()
}

fn stream(config: &Config, found: &Inspection) -> Finding {
    let what = "NATS stream";
    let name = &config.nats.stream;
    let Some(seen) = &found.stream else {
        if found.missing.len() <= 1 {
            return Finding::warn(
                what,
                format!("{name} is missing, but its buckets are there: it was deleted"),
                "if that was meant, delete the buckets too (nats kv del): the poller's notes in them are of another stream",
            );
        }
        return Finding::ok(
            what,
            format!("not there yet: {}; the first start makes them", found.missing.join(", ")),
        );
    };
    if !found.missing.is_empty() {
        return Finding::warn(
            what,
            format!("missing, so deleted: {}", found.missing.join(", ")),
            "the next start makes it anew; what it held (floors, endpoints or cursors) is lost",
        );
    }
    let (replicas, leader) = &seen.replicas;
    let led = leader.as_ref().map_or(String::new(), |leader| format!(", leader {leader}"));
    let servers = if *replicas == 1 { "one server".to_owned() } else { format!("{replicas} servers") };
    let detail = format!("{name}: {} messages, {} MiB, on {servers}{led}", seen.messages, seen.bytes >> 20);
    if *replicas > 1 && leader.is_none() {
        return Finding::fail(
            what,
            format!("{name} has no leader"),
            "start the servers that are down: most must be up",
        );
    }
    if seen.behind.is_empty() {
        return Finding::ok(what, detail);
    }
    Finding::warn(
        what,
        format!("{detail}; not up to date: {}", seen.behind.join(", ")),
        "look at those servers: while they are out, fewer may fail",
    )
}

fn settings(found: &Inspection) -> Vec<Finding> {
    let what = "NATS settings";
    if found.drift.is_empty() {
        let said = if found.stream.is_some() { "as they should be" } else { return Vec::new() };
        return vec![Finding::ok(what, said)];
    }
    let told = found.drift.iter().map(|drift| {
        let detail = format!("{}: {} is {}, not {}", drift.object, drift.field, drift.have, drift.want);
        match drift.harmful {
            true => Finding::fail(what, detail, &drift.cure),
            false => Finding::warn(what, detail, &drift.cure),
        }
    });
    told.collect()
}

fn poller(holder: Option<&Holder>) -> Finding {
    let what = "NATS poller";
    let Some(Holder { name, renewed, ttl }) = holder else {
        return Finding::ok(what, "no gateway polls; the first that starts will");
    };
    let ago = format!("{:.1} s", renewed.as_secs_f64());
    if renewed > ttl {
        return Finding::warn(
            what,
            format!("gateway {name} polled, but has not renewed its lease of {} s for {ago}", ttl.as_secs()),
            "fine if no gateway runs: the next one takes over; else look at their logs",
        );
    }
    Finding::ok(what, format!("gateway {name} polls, and renewed its lease of {} s {ago} ago", ttl.as_secs()))
}

/// How far the copy of the gateway that has this configuration is, where it runs; else whether its copy can be used.
async fn copy(config: &Config, found: &Inspection, seen: &StreamSeen) -> Finding {
    let what = "NATS copy";
    let last = seen.last_event.unwrap_or(0);
    let mut looks = CATCH_UP.as_millis() / CATCH_UP_LOOK.as_millis();
    while let Some(reached) = reached(config).await {
        if reached >= last {
            return Finding::ok(what, "the running gateway has every event of the stream");
        }
        if looks == 0 {
            return Finding::warn(
                what,
                format!("the running gateway has event {reached}, the stream {last}"),
                "wait if it has just been started; else look at its log and its disk",
            );
        }
        looks -= 1;
        tokio::time::sleep(CATCH_UP_LOOK).await;
    }
    match (found.copy, seen.incarnation) {
        (Some(copy), Some(stream)) if copy == stream => {
            Finding::ok(what, "there, and of this stream; the gateway does not run")
        }
        (Some(_), _) => {
            Finding::ok(what, "of another stream that had this name; the next start fills it anew")
        }
        (None, _) => Finding::ok(what, "not there; the next start fills it"),
    }
}

/// Sequence of the newest event that the gateway at the admin address has; None where none answers.
async fn reached(config: &Config) -> Option<u64> {
    // Fails only where one is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(ASK_TIMEOUT).no_proxy().build().ok()?;
    let url = format!("http://{}/metrics", config.admin.listen);
    let answer = client.get(url).send().await.ok()?.error_for_status().ok()?;
    let body = super::super::gateway::body(answer, METRICS_BYTES_MAX).await;
    let text = String::from_utf8_lossy(&body);
    let value = text.lines().find_map(|line| line.strip_prefix("simcast_log_last_sequence "))?;
    // Written as any number of a metric: exact up to 2^53.
    value.trim().parse::<f64>().ok().map(|value| value as u64)
}

fn apart(ahead: SignedDuration) -> Finding {
    let what = "NATS clock";
    if ahead.abs() > SKEW_MAX {
        let side = if ahead.is_negative() { "behind" } else { "ahead of" };
        let detail = format!("the stream's leader is {} s {side} this machine", ahead.abs().as_secs());
        return Finding::warn(what, detail, "run NTP on both (timedatectl set-ntp true)");
    }
    Finding::ok(what, "agrees with this machine's")
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn a_lease_is_judged_by_its_time_to_live() {
        let holder = |renewed| Holder {
            name: "7f".to_owned(),
            renewed: Duration::from_secs(renewed),
            ttl: Duration::from_secs(10),
        };
        assert_eq!(poller(Some(&holder(3))).level, Level::Ok);
        assert_eq!(poller(Some(&holder(11))).level, Level::Warn);
        assert_eq!(poller(None).level, Level::Ok);
    }

    #[test]
    fn clocks_may_differ_by_seconds_to_both_sides() {
        let judged = |seconds| apart(SignedDuration::from_secs(seconds));
        assert_eq!((judged(5).level, judged(-5).level), (Level::Ok, Level::Ok));
        assert!(judged(6).level == Level::Warn && judged(6).detail.contains("6 s ahead of"));
        assert!(judged(-6).level == Level::Warn && judged(-6).detail.contains("6 s behind"));
    }
}
