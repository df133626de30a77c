//! `simcast doctor`: is what the gateway needs there, and what is the cure where it is not?
//!
//! Costs two requests of the API's budget. Nothing is written but one empty file in the data directory, which is
//! removed again; on NATS nothing is made or changed.

mod nats;

use std::{
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
};

use jiff::{SignedDuration, Timestamp};

use super::{ConfigArgs, Failure};
use crate::{
    clock::SharedClock,
    config::{BusKind, Config, Upstream},
    globalsim::{self, ActivityQuery, BudgetConfig, Class, Client, Gate, Kind, Page, Row},
};

/// Check what the gateway needs: upstream, key, clock, disk, ports, NATS
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Clocks further apart than this make events look late and day windows wrong.
const SKEW_MAX: SignedDuration = SignedDuration::from_secs(5);

/// Less free space than this is worth a warning even where retention asks for less.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// File descriptors beside those of connections: listeners, segments, upstream.
const DESCRIPTORS_BESIDE: u64 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    what: &'static str,
    detail: String,
    cure: String,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { level: Level::Ok, what, detail: detail.into(), cure: String::new() }
    }

    fn warn(what: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { level: Level::Warn, what, detail: detail.into(), cure: cure.into() }
    }

    fn fail(what: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { level: Level::Fail, what, detail: detail.into(), cure: cure.into() }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let level = match self.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        writeln!(out, "{level}  {:16} {}", self.what, self.detail)?;
        if !self.cure.is_empty() {
            writeln!(out, "{:23}-> {}", "", self.cure)?;
        }
        out.flush()
    }
}

/// Prints a line for everything that it looks at.
///
/// # Errors
/// A configuration that can't be used (64), or a finding that keeps the gateway from working (1).
pub async fn run(args: Args, clock: SharedClock, out: &mut dyn Write) -> Result<(), Failure> {
    let config = args.config.load()?;
    Finding::ok("configuration", "valid").print(out)?;
    for warning in &config.warnings {
        Finding::warn("configuration", warning, "").print(out)?;
    }
    let mut failed = 0_u32;
    let data = Data::of(&config);
    let local = [
        data_directory(&data),
        disk_space(&data),
        descriptors(config.limits.connections as u64),
        port("port http", config.http.listen),
        port("port grpc", config.grpc.listen),
        port("port admin", config.admin.listen),
    ];
    let bus = match config.bus {
        BusKind::Embedded => Vec::new(),
        BusKind::Nats => nats::examine(&config, &clock).await,
    };
    let upstream = upstream(&config, clock).await;
    for finding in local.into_iter().chain(bus).chain(upstream) {
        failed += u32::from(finding.level == Level::Fail);
        finding.print(out)?;
    }
    if failed > 0 {
        return Err(Failure::runtime(format!("{failed} of these keep the gateway from working")));
    }
    Ok(())
}

/// What the gateway writes to its disk: the log, or its copy of the stream on NATS.
struct Data<'c> {
    path: &'c Path,
    path_key: &'static str,
    retention_bytes: u64,
    retention_key: &'static str,
}

impl<'c> Data<'c> {
    fn of(config: &'c Config) -> Self {
        match config.bus {
            BusKind::Embedded => Self {
                path: &config.embedded.path,
                path_key: "bus.embedded.path",
                retention_bytes: config.embedded.retention_bytes,
                retention_key: "bus.embedded.retention_bytes",
            },
            BusKind::Nats => Self {
                path: &config.nats.cache_path,
                path_key: "bus.nats.cache_path",
                retention_bytes: config.nats.retention_bytes,
                retention_key: "bus.nats.retention_bytes",
            },
        }
    }
}

fn data_directory(data: &Data<'_>) -> Finding {
    let (what, path) = ("data directory", data.path);
    let cure = format!("give this user the directory, or set {}", data.path_key);
    if let Err(error) = fs::create_dir_all(path) {
        return Finding::fail(what, format!("{} can't be made: {error}", path.display()), cure);
    }
    let probe = path.join(".doctor");
    let written =
        fs::File::create(&probe).and_then(|file| file.sync_all()).and_then(|()| fs::remove_file(&probe));
    match written {
        Ok(()) => Finding::ok(what, format!("{} can be written", path.display())),
        Err(error) => Finding::fail(what, format!("{} can't be written: {error}", path.display()), cure),
    }
}

fn disk_space(data: &Data<'_>) -> Finding {
    let (what, path) = ("disk space", data.path);
    let stat = match rustix::fs::statvfs(path) {
        Ok(stat) => stat,
        Err(error) => {
            return Finding::warn(what, format!("can't be asked for: {error}"), "look at the data directory");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let used = directory_bytes(path, DEPTH);
    let needed = data.retention_bytes.saturating_sub(used).max(FREE_BYTES_MIN);
    let detail = format!("{} MiB free, retention may still take {} MiB", free >> 20, needed >> 20);
    if free >= needed {
        Finding::ok(what, detail)
    } else {
        Finding::warn(
            what,
            detail,
            format!("lower {}, or move {} to a larger disk", data.retention_key, data.path_key),
        )
    }
}

/// Directories below the data directory that the log, or a copy of a stream, uses.
const DEPTH: u32 = 3;

/// Bytes of the files in `path` and as many levels below it.
fn directory_bytes(path: &Path, levels: u32) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(meta) if meta.is_dir() && levels > 0 => directory_bytes(&entry.path(), levels - 1),
        _ => 0,
    });
    sizes.fold(0, u64::saturating_add)
}

fn descriptors(connections: u64) -> Finding {
    let what = "file descriptors";
    let needed = connections + DESCRIPTORS_BESIDE;
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        Some(limit) if limit < needed => Finding::warn(
            what,
            format!("{limit} may be open, limits.connections wants {needed}"),
            format!(
                "raise the limit (ulimit -n {needed}, LimitNOFILE={needed} in systemd), or lower limits.connections"
            ),
        ),
        Some(limit) => Finding::ok(what, format!("{limit} may be open")),
        None => Finding::ok(what, "not limited"),
    }
}

fn port(what: &'static str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(what, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::warn(
            what,
            format!("{address} is in use"),
            "fine if the gateway runs already; else set another address",
        ),
        Err(error) => Finding::fail(
            what,
            format!("{address} can't be listened on: {error}"),
            "set an address of this machine, and a port above 1023 unless you are root",
        ),
    }
}

async fn upstream(config: &Config, clock: SharedClock) -> Vec<Finding> {
    let client = match client(&config.upstream, clock) {
        Ok(client) => client,
        Err(why) => return vec![Finding::fail("upstream", why, "correct [upstream]")],
    };
    let query = ActivityQuery { limit: 100, ..ActivityQuery::default() };
    let page = match client.activity(Class::Tail, &query).await {
        Ok(page) => page,
        Err(error) => return vec![refused(&config.upstream, &error)],
    };
    let style = client.auth_style_in_use().map_or("", |style| style.as_str());
    let mut findings = vec![
        Finding::ok("upstream", format!("{} answers", config.upstream.base_url)),
        Finding::ok("API key", format!("accepted as {style}")),
        skew(&page),
        order(&page),
    ];
    findings.extend(paging(&client, &query, &page).await);
    findings
}

fn client(upstream: &Upstream, clock: SharedClock) -> Result<Client, String> {
    // A budget of its own, without the gateway's journal: two requests are within what requests_per_minute leaves.
    let gate = Gate::open(BudgetConfig::default(), clock.clone()).map_err(|error| error.to_string())?;
    let config = globalsim::Config {
        name: upstream.name.clone(),
        auth: upstream.auth,
        ..globalsim::Config::new(upstream.base_url.clone(), upstream.api_key.clone())
    };
    Client::new(config, gate, clock).map_err(|error| error.to_string())
}

fn refused(upstream: &Upstream, error: &globalsim::Error) -> Finding {
    let (what, cure) = match error.kind() {
        Kind::Auth => {
            ("API key", "check upstream.api_key or api_key_file; make a new key in the provider's console")
        }
        Kind::Forbidden => ("API key", "give the key the scope for GlobalSIM"),
        Kind::RateLimited => {
            ("upstream", "wait a minute; another program uses the same key: lower requests_per_minute")
        }
        Kind::NotGlobalSim | Kind::NotFound => ("upstream", "check upstream.base_url: it ends before /sims"),
        _ => ("upstream", "check upstream.base_url, the network, and whether the API is up"),
    };
    Finding::fail(what, format!("{}: {error}", upstream.base_url), cure)
}

/// The Date header has whole seconds, and the answer took its time: both are allowed for.
fn skew(page: &Page<Row>) -> Finding {
    let what = "clock";
    let Some(date) = page.server_date else {
        return Finding::warn(
            what,
            "upstream sends no Date header to compare with",
            "make sure that NTP runs",
        );
    };
    let early = page.asked_at.duration_since(date) - SignedDuration::from_secs(1);
    let late = date.duration_since(page.answered_at);
    let apart = early.max(late).max(SignedDuration::ZERO);
    if apart > SKEW_MAX {
        let detail = format!("this machine and upstream are {} s apart", apart.as_secs());
        return Finding::warn(what, detail, "run NTP (timedatectl set-ntp true)");
    }
    Finding::ok(what, "agrees with upstream's")
}

fn order(page: &Page<Row>) -> Finding {
    let what = "list order";
    let bad = page.rows.iter().filter(|row| row.is_err()).count();
    let times: Vec<Timestamp> = page.rows.iter().flatten().filter_map(|row| row.event.time).collect();
    if bad > 0 {
        let detail = format!("{bad} of {} rows can't be understood", page.rows.len());
        return Finding::warn(what, detail, "they are quarantined and counted; please report their shape");
    }
    if times.len() < 2 {
        return Finding::ok(what, "too few events to see an order; found out while running");
    }
    if times.is_sorted_by(|a, b| a >= b) {
        Finding::ok(what, "newest first")
    } else if times.is_sorted() {
        Finding::ok(what, "oldest first")
    } else {
        Finding::warn(
            what,
            "the list is not sorted by time",
            "the gateway reads it by day windows instead: slower to notice late events, see /v1/stream",
        )
    }
}

/// Whether `offset` is honoured: the second page must not be the first again.
async fn paging(client: &Client, query: &ActivityQuery, first: &Page<Row>) -> Option<Finding> {
    let what = "paging";
    let length = first.rows.len();
    if length < 2 {
        return None;
    }
    let shifted = ActivityQuery { offset: length as u64 / 2, ..query.clone() };
    let second = match client.activity(Class::Tail, &shifted).await {
        Ok(page) => page,
        Err(error) => return Some(Finding::warn(what, error.to_string(), "run this again")),
    };
    let head = |page: &Page<Row>| page.rows.iter().flatten().next().map(Row::identity_hash);
    Some(if head(&second).is_some() && head(&second) == head(first) {
        Finding::fail(
            what,
            "offset is ignored: only the newest page can be read",
            "ask the provider; events will be lost in bursts",
        )
    } else {
        Finding::ok(what, "offset is honoured")
    })
}

#[cfg(test)]
mod tests;
