//! What upstream knows of SIMs and devices besides activity: read beside the tail, told as events.
//!
//! One task follows the log, so that it learns of SIMs and devices from whoever found them, and takes turns: it reads
//! the sessions of the SIM that [`schedule`] names, and what is new of them (`diff`) is appended like all else; now
//! and then it looks up which SIM is in a device, and a device that moved to another SIM is told as `sim_linked`. What
//! was told is kept ([`record`]) after it is durable, so a crash repeats a read and never an event.
//!
//! Turns come at a fifth of the allowance (80 of 400 a minute, a quarter of these for devices) while the budget has
//! something to spare (`Gate::has_spare`), else at a tenth, since details of single events would take all there is; and
//! at the floor of the class only ([`FLOOR_PAUSE`]) while rows of activity wait. The tail outranks all of it.

mod devices;
mod diff;
pub mod record;
mod roster;
mod schedule;
mod walk;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use self::{
    devices::Devices,
    diff::{Of, Told, diff},
    roster::Noted,
    schedule::Schedule,
    walk::Walk,
};
pub use self::{
    record::{DeviceRecord, SimRecord},
    roster::Roster,
};
use super::{
    intake::{Stopped, Via},
    page::Shown,
    session::{Halt, Session},
};
use crate::{
    bus::{Bucket, Bus},
    event::{Cursor, Flag, Iccid, Keys, Predicate},
    globalsim::{
        error::{Error, Kind},
        wire::SessionRow,
    },
    log::{ReadPage, follow::Follower},
};

/// Share of the allowance that sessions and devices get together, hundredths: where there is something to spare, and
/// in any case.
const SHARE: u32 = 20;
const SURE_SHARE: u32 = 10;
/// One turn in so many is a device's.
const DEVICE_TURN: u32 = 4;
/// From turn to turn while rows of activity wait; the floor of the class gives as much.
const FLOOR_PAUSE: Duration = Duration::from_secs(12);
/// How often it is looked whether there is something to spare.
const SPARE_LOOK: Duration = Duration::from_millis(250);
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(1);
/// How often the place in the log is noted. What lies behind it is looked through again after a crash.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// Pause before records that can't be read are asked for again.
const PAUSE: Duration = Duration::from_secs(2);
/// Events older than this when they are met change nothing that is not read anyway.
const FRESH: SignedDuration = SignedDuration::from_mins(15);
/// Sessions that began so long before the last read are not looked for again, unless they were open.
const LOOK_BACK: SignedDuration = SignedDuration::from_hours(2);

/// What earlier runs have noted.
#[derive(Debug, Default)]
pub struct Kept {
    /// SIMs, when each was read, and whether it had an open session.
    sims: Vec<(Iccid, Option<Timestamp>, bool)>,
    /// Devices, and when each was looked up.
    devices: Vec<(String, Timestamp)>,
    /// How far the log was looked through.
    place: Option<Cursor>,
}

/// Takes up what is kept, as long as that takes, and what it tells of devices.
pub async fn load(bus: &Arc<dyn Bus>, roster: &Roster) -> Kept {
    let all = || async {
        let sims = record::load_all::<SimRecord>(bus, record::SIM).await?;
        let devices = record::load_all::<DeviceRecord>(bus, record::DEVICE).await?;
        Ok::<_, crate::bus::KvError>((sims, devices, bus.kv_get(Bucket::State, record::PLACE).await?))
    };
    let (sims, devices, place) = loop {
        match all().await {
            Ok(all) => break all,
            Err(error) => {
                tracing::warn!(%error, "what was read of SIMs can't be taken up; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    for (id, DeviceRecord { as_of, iccid, .. }) in &devices {
        if let Some(iccid) = iccid {
            roster.note(iccid, id, as_of.as_microsecond());
        }
    }
    let sim = |(iccid, record): (String, SimRecord)| {
        Some((Iccid::parse(&iccid).ok()?, record.read_at, !record.open.is_empty()))
    };
    Kept {
        sims: sims.into_iter().filter_map(sim).collect(),
        devices: devices.into_iter().map(|(id, record)| (id, record.as_of)).collect(),
        place: place.and_then(|entry| Cursor::parse(std::str::from_utf8(&entry.value).ok()?).ok()),
    }
}

/// Reads sessions and devices until nothing can be appended any more. `more` are SIMs that nobody has told of yet.
pub async fn run(
    session: &Session,
    bus: &Arc<dyn Bus>,
    roster: &Arc<Roster>,
    source: &Arc<str>,
    kept: Kept,
    more: &[Iccid],
    backfill_before: Option<Timestamp>,
) -> Halt {
    let mut task = Task::new(session, bus, roster, source, kept, backfill_before);
    more.iter().for_each(|iccid| task.schedule.know(iccid, None, false));
    loop {
        tokio::select! {
            page = task.follower.next() => match page {
                Ok(page) => task.note(&page),
                Err(error) => {
                    tracing::warn!(%error, "the log can't be looked through for SIMs; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            () = tokio::time::sleep_until(task.next_at) => {
                if let Err(stopped) = task.turn().await {
                    return Halt::Stopped(stopped);
                }
            }
        }
        task.keep_place().await;
    }
}

struct Task<'s> {
    session: &'s Session,
    bus: &'s Arc<dyn Bus>,
    roster: &'s Arc<Roster>,
    source: &'s Arc<str>,
    backfill_before: Option<Timestamp>,
    follower: Follower,
    schedule: Schedule,
    devices: Devices,
    turns: u32,
    next_at: Instant,
    /// When a request was last sent.
    asked_at: Instant,
    /// Place in the log that is noted, and when.
    noted: (u64, Instant),
    /// Reads of sessions, and how many a minute lately, counted from then.
    reads: u32,
    per_minute: f64,
    paced: (Instant, u32),
}

impl<'s> Task<'s> {
    fn new(
        session: &'s Session,
        bus: &'s Arc<dyn Bus>,
        roster: &'s Arc<Roster>,
        source: &'s Arc<str>,
        kept: Kept,
        backfill_before: Option<Timestamp>,
    ) -> Self {
        let Kept { sims, devices, place } = kept;
        let (follower, _) = Follower::new(bus.log(), Predicate::default(), place);
        let mut schedule = Schedule::default();
        for (iccid, read_at, is_open) in &sims {
            schedule.know(iccid, *read_at, *is_open);
        }
        let mut known = Devices::default();
        for (id, as_of) in devices {
            known.know(&id, Some(as_of));
        }
        let now = Instant::now();
        let noted = (follower.position(), now);
        Self {
            session,
            bus,
            roster,
            source,
            backfill_before,
            follower,
            schedule,
            devices: known,
            turns: 0,
            next_at: now + LOOK,
            asked_at: now,
            noted,
            reads: 0,
            per_minute: 0.0,
            paced: (now, 0),
        }
    }

    /// Learns from events which SIMs there are, which of them moved, and in which devices they are.
    fn note(&mut self, page: &ReadPage) {
        let now = self.session.clock.now();
        let keys = page.events.iter().filter_map(|event| event.keys().ok());
        for keys in keys {
            let Some(iccid) = keys.iccid.and_then(|text| Iccid::parse(text).ok()) else { continue };
            if moves(&keys, now) {
                self.schedule.touch(&iccid, now);
            } else {
                self.schedule.know(&iccid, None, false);
            }
            if let Some(device) = keys.device_id.filter(|id| id.len() <= record::DEVICE_ID_BYTES_MAX) {
                match self.roster.note(&iccid, device, keys.time_us) {
                    Noted::Nothing => {}
                    Noted::New => self.devices.know(device, None),
                    Noted::Moved(_) => self.devices.moved(device, now),
                }
            }
        }
    }

    async fn keep_place(&mut self) {
        let position = self.follower.position();
        if position != self.noted.0 && self.noted.1.elapsed() >= NOTE_EVERY {
            self.noted = (position, Instant::now());
            let cursor = self.follower.cursor().to_string();
            if let Err(error) = self.bus.kv_put(Bucket::State, record::PLACE, cursor.into()).await {
                tracing::debug!(%error, "the place in the log is noted later");
            }
        }
    }

    /// From turn to turn at a share of the allowance.
    fn pause(&self, share: u32) -> Duration {
        Duration::from_secs(60) / (self.session.upstream.allowance() * share / 100).max(1)
    }

    /// One request at most, if one is due and may be sent.
    async fn turn(&mut self) -> Result<(), Stopped> {
        let now = self.session.clock.now();
        let is_backlog = self.session.board.status().backlog_rows.is_some();
        let pause = match is_backlog {
            true => FLOOR_PAUSE,
            false if self.session.upstream.has_spare() => self.pause(SHARE),
            false => self.pause(SURE_SHARE),
        };
        let since = self.asked_at.elapsed();
        if since < pause {
            self.next_at = Instant::now() + (pause - since).min(SPARE_LOOK);
            return Ok(());
        }
        self.next_at = Instant::now() + SPARE_LOOK;
        self.turns = self.turns.wrapping_add(1);
        let device = match self.turns.is_multiple_of(DEVICE_TURN) {
            true => self.devices.next(now),
            false => None,
        };
        let sim = if device.is_none() { self.schedule.next(now) } else { None };
        match (device.or_else(|| sim.is_none().then(|| self.devices.next(now)).flatten()), sim) {
            (Some(device), _) => self.look_up(&device).await?,
            (None, Some(iccid)) => self.read_sessions(&iccid).await?,
            (None, None) => self.next_at = Instant::now() + LOOK,
        }
        self.show(now);
        Ok(())
    }

    /// Shows how the fleet stands, at the pace of the last minute or so.
    fn show(&mut self, now: Timestamp) {
        let (since, before) = self.paced;
        let minutes = since.elapsed().as_secs_f64() / 60.0;
        if minutes >= 1.0 {
            self.per_minute = f64::from(self.reads - before) / minutes;
            self.paced = (Instant::now(), self.reads);
        }
        // What could be asked for, where less was due.
        let sure =
            60.0 / self.pause(SURE_SHARE).as_secs_f64() * f64::from(DEVICE_TURN - 1) / f64::from(DEVICE_TURN);
        let mut shown = self.schedule.shown(now, self.per_minute.max(sure));
        shown["devices"] = self.devices.len().into();
        self.session.board.update(|status| status.sims = shown);
    }

    async fn read_sessions(&mut self, iccid: &Iccid) -> Result<(), Stopped> {
        self.asked_at = Instant::now();
        self.reads = self.reads.wrapping_add(1);
        let key = format!("{}{iccid}", record::SIM);
        let before = match record::load::<SimRecord>(self.bus, &key).await {
            Ok(record) => record.unwrap_or_default(),
            Err(error) => {
                tracing::debug!(%error, "a record of a SIM can't be read");
                self.schedule.failed(iccid, self.session.clock.now());
                return Ok(());
            }
        };
        let listed = match self.list(iccid, &before).await {
            Ok(listed) => listed,
            Err(error) if error.kind() == Kind::NotFound => {
                self.schedule.read(iccid, self.session.clock.now(), false);
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(%error, "the sessions of a SIM can't be read; it is tried again");
                self.schedule.failed(iccid, self.session.clock.now());
                return Ok(());
            }
        };
        let of = Of {
            source: self.source,
            iccid,
            device_id: self.roster.device_of(iccid),
            shown: listed.shown,
            oldest_told: self.session.intake.oldest_taken(),
            backfill_before: self.backfill_before,
        };
        let log = self.bus.log();
        let Told { events, open } = diff(&before.open, &listed.rows, listed.is_whole, &of, |id| log.find(id));
        if !events.is_empty() {
            self.session.intake.derive(events, Via::Sessions).await?;
            self.session.intake.settle().await?;
        }
        let read_at = listed.shown.answered_at;
        self.schedule.read(iccid, read_at, !open.is_empty());
        record::save(self.bus, &key, &SimRecord { read_at: Some(read_at), open }).await;
        Ok(())
    }

    /// Reads a SIM's list as far as it can hold something that was not told.
    async fn list(&mut self, iccid: &Iccid, before: &SimRecord) -> Result<Listed, Error> {
        let oldest = before.read_at.and_then(|at| at.checked_sub(LOOK_BACK).ok());
        let oldest = oldest.unwrap_or_else(|| self.session.intake.oldest_taken());
        let mut walk = Walk::new(iccid, &before.open, oldest);
        let mut asked_at = None;
        let mut device = self.roster.device_of(iccid).filter(|id| self.devices.lists(id));
        loop {
            let page = match &device {
                Some(id) => self.page_by_device(id, iccid, walk.offset()).await?,
                None => Some(self.session.upstream.sessions(iccid, walk.offset()).await?.page),
            };
            let Some(page) = page else {
                device = None;
                continue;
            };
            let asked_at = *asked_at.get_or_insert(page.asked_at);
            let count = page.rows.len() as u64;
            if !walk.take(page.rows.into_iter().flatten().collect(), count, page.total) {
                let (rows, is_whole) = walk.end();
                let answered_at = page.answered_at;
                let shown = Shown { asked_at, answered_at, not_seen_at: before.read_at };
                return Ok(Listed { rows, is_whole, shown });
            }
        }
    }
}

/// What was read of a SIM's list.
#[derive(Debug)]
struct Listed {
    rows: Vec<SessionRow>,
    /// It was read to its end.
    is_whole: bool,
    shown: Shown,
}

/// Whether an event tells that the sessions of its SIM changed just now.
fn moves(keys: &Keys<'_>, now: Timestamp) -> bool {
    let is_fresh = Timestamp::from_microsecond(keys.time_us).is_ok_and(|at| now.duration_since(at) < FRESH);
    matches!(keys.event_type, "connection" | "disconnection" | "network_change")
        && is_fresh
        && !keys.flags.contains(Flag::Backfill)
        && !keys.flags.contains(Flag::Enriched)
}
