//! `simcast migrate --to nats`: takes an embedded log to NATS JetStream, so that several gateways can share it and
//! readers keep their cursors.
//!
//! What is composed here beside the copy itself: the parts of the small state that mean something else on the other
//! bus. The journal of the request budget lies beside the embedded log and on NATS in a bucket; and an embedded log
//! may know ids whose events retention has removed, which a stream does not.

use std::{
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{ConfigArgs, Failure};
use crate::{
    app,
    bus::{
        Bucket,
        embedded::snapshot::{Snapshot, SnapshotError},
        jetstream::migrate::{Found, MigrateError, Migration, Progress, Report, Survey},
    },
    clock::SharedClock,
    config::Config,
    globalsim::budget,
    ingest,
};

/// Copy the embedded log to NATS: same sequences, so cursors go on working
///
/// Reads the log at bus.embedded.path, which is not changed, and makes the stream and the buckets of [bus.nats]. Stop
/// the gateway first. What was interrupted can be run again and goes on where it stopped; until all is copied and
/// checked no gateway uses the stream. Events whose bytes are lost stay gaps.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where to
    #[arg(long, value_enum)]
    to: Target,
    /// Read the log and look at the target, print what would be copied, and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// NATS JetStream, as [bus.nats] says
    Nats,
}

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        Self::runtime(error.to_string())
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        Self::runtime(error.to_string())
    }
}

/// Copies, checks, and says what to change in the configuration.
///
/// # Errors
/// A configuration that can't be used (64), or a copy that failed (1).
pub async fn run(args: Args, clock: SharedClock, out: &mut dyn Write) -> Result<(), Failure> {
    // Whatever the file says: what holds afterwards must be right now.
    let Target::Nats = args.to;
    let config = args.config.load_with(&[("bus.kind", "nats", "--to nats")])?;
    for warning in &config.warnings {
        writeln!(std::io::stderr(), "warning: {warning}")?;
    }
    let path = config.embedded.path.clone();
    let opened = {
        let (config, path) = (config.clone(), path.clone());
        tokio::task::spawn_blocking(move || snapshot(&config, &path, &clock)).await
    };
    let snapshot = opened.map_err(|error| Failure::runtime(error.to_string()))??;
    let incarnation = snapshot.log().incarnation();
    let stream = config.nats.stream.clone();
    let migration =
        Migration::open(app::jetstream_config(&config), snapshot, path.clone(), Arc::new(teller())).await?;
    let begun = match *migration.found() {
        Found::Complete { upto } => {
            writeln!(
                out,
                "already done: stream {stream} holds the log of {} up to sequence {upto}; nothing was changed",
                path.display()
            )?;
            return Ok(advise(out)?);
        }
        Found::Begun { upto, .. } => format!("stream {stream}, begun and filled up to sequence {upto}"),
        Found::Nothing => format!("stream {stream}, to be made"),
    };
    let survey = migration.survey().await?;
    writeln!(out, "log          {} (incarnation {incarnation:016x})", path.display())?;
    writeln!(out, "target       {begun}")?;
    show(&survey, out)?;
    if args.dry_run {
        writeln!(out, "nothing was written (--dry-run)")?;
        return Ok(out.flush()?);
    }
    out.flush()?;
    let report = migration.run(&survey).await?;
    finished(&survey, &report, out)?;
    Ok(advise(out)?)
}

/// The log, and the small state as it must be on NATS.
fn snapshot(config: &Config, path: &Path, clock: &SharedClock) -> Result<Snapshot, Failure> {
    let mut snapshot = Snapshot::open(path)?;
    let journal = path.join(app::BUDGET_JOURNAL);
    let spent = budget::noted_in(&journal, config.upstream.requests_per_minute, clock).map_err(|error| {
        Failure::runtime(format!(
            "{} can't be read: {error}; run this as the user that the gateway runs as",
            journal.display()
        ))
    })?;
    if let Some(spent) = spent {
        let value = serde_json::to_vec(&spent).unwrap_or_default();
        snapshot.replace(Bucket::State, ingest::BUDGET_KEY, value.into());
    }
    let position = snapshot.get(Bucket::State, ingest::POSITION_KEY).map(|entry| entry.value.clone());
    if let (Some(position), Some(until)) = (position, snapshot.log().retired_until())
        && let Some(changed) = ingest::forgetting(&position, until, snapshot.log())
    {
        snapshot.replace(Bucket::State, ingest::POSITION_KEY, changed.into());
    }
    Ok(snapshot)
}

/// Tells how far it is: each part as it begins, then once a second.
fn teller() -> impl Fn(Progress) + Send + Sync + 'static {
    let last = Mutex::new(None::<(std::mem::Discriminant<Progress>, Instant)>);
    move |progress| {
        let part = std::mem::discriminant(&progress);
        {
            let mut last = last.lock();
            if last.is_some_and(|(before, at)| before == part && at.elapsed() < TELL_EVERY) {
                return;
            }
            *last = Some((part, Instant::now()));
        }
        let (what, seq) = match progress {
            Progress::Read(seq) => ("read the log", seq),
            Progress::Copied(seq) => ("copied", seq),
            Progress::Checked(seq) => ("checked", seq),
        };
        // Nobody may be looking.
        let _ = writeln!(std::io::stderr(), "{what} up to sequence {seq}");
    }
}

fn show(survey: &Survey, out: &mut dyn Write) -> std::io::Result<()> {
    let Survey { first_seq, last_seq, events, lost, unused, bytes, keys, .. } = survey;
    match first_seq <= last_seq {
        true => writeln!(out, "sequences    {first_seq} to {last_seq}")?,
        false => writeln!(out, "sequences    none; the next one is {first_seq}")?,
    }
    writeln!(out, "events       {events} ({:.1} MiB as messages)", *bytes as f64 / f64::from(1 << 20))?;
    if *lost > 0 {
        writeln!(out, "unreadable   {lost}; readers are told, as on the log")?;
    }
    if *unused > 0 {
        writeln!(out, "unused       {unused}")?;
    }
    writeln!(out, "state        {keys} keys")
}

fn finished(survey: &Survey, report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    let rate = |count: u64, took: Duration| count as f64 / took.as_secs_f64().max(0.001);
    let Report { copied, copying, checking } = *report;
    writeln!(
        out,
        "copied       {copied} in {:.1} s ({:.0} a second), checked in {:.1} s ({:.0} a second)",
        copying.as_secs_f64(),
        rate(copied, copying),
        checking.as_secs_f64(),
        rate(survey.messages(), checking),
    )?;
    writeln!(out, "the stream gives back what lies in the log: SHA-256 {}", survey.digest)
}

fn advise(out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "\nIn the configuration of every gateway, set:\n\n  [bus]\n  kind = \"nats\"\n\nand start them. Don't start a gateway on the old log again: what it appends would only be there."
    )?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_copied_is_shown() {
        let text = |lost, last_seq| {
            let mut survey = Survey::sample(40, last_seq);
            survey.lost = lost;
            let mut out = Vec::new();
            show(&survey, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let all = text(2, 50);
        assert!(all.contains("sequences    40 to 50\n") && all.contains("unreadable   2;"), "{all}");
        let none = text(0, 39);
        assert!(none.contains("none; the next one is 40") && !none.contains("unreadable"), "{none}");
    }
}
