//! `simcast simulate`: the GlobalSIM simulator alone, to try the gateway without an account.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::clock;
use crate::globalsim::simulator::{self, Config, Faults, InvalidFaults};

/// Run a simulated GlobalSIM API
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// Number of SIMs
    #[arg(long, default_value_t = 100)]
    pub sims: usize,
    /// Seed of fleet, traffic and faults: the same seed tells the same story
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Mean rate of new events
    #[arg(long, default_value_t = 2.0)]
    pub events_per_second: f64,
    /// Hours of history at start
    #[arg(long, default_value_t = 24.0)]
    pub history_hours: f64,
    /// Mean rate of events in the history
    #[arg(long, default_value_t = 0.1)]
    pub history_events_per_second: f64,
    /// Requests per key in any 60 seconds; more are answered 429
    #[arg(long, default_value_t = 500)]
    pub requests_per_minute: usize,
    /// Key that is accepted, as `Authorization: Bearer` and as `X-API-Key`
    #[arg(long, default_value = simulator::DEFAULT_API_KEY)]
    pub api_key: String,
    /// Faults: a JSON object, or a file that holds one
    #[arg(long, value_name = "FILE|JSON")]
    pub faults: Option<String>,
}

/// Why the simulator could not run; none is worth a retry without a change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The faults file cannot be read.
    #[error("faults file {path} cannot be read: {source}", path = path.display())]
    FaultsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The faults are not the JSON that is wanted.
    #[error("faults are not valid: {0}; hint: GET /_sim/faults of a running simulator shows every field")]
    FaultsJson(#[from] serde_json::Error),
    /// A fault has an impossible value.
    #[error(transparent)]
    Faults(#[from] InvalidFaults),
    /// A number that must be finite and not negative is neither.
    #[error("--{flag} is {value}: a finite number of at least 0 is wanted")]
    Number {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: f64,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The terminal or the signal handler failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Error {
    /// Whether trying again unchanged could help.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Runs until interrupted. Prints where it listens and which key it takes, one per line, once it answers.
///
/// # Errors
/// [`Error`] for bad arguments and for an address that is taken.
pub async fn run(args: Args) -> Result<(), Error> {
    let config = config(&args)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|source| Error::Listen { address: args.listen, source })?;
    let handle = simulator::start(config, listener, clock::system());
    let mut out = io::stdout().lock();
    writeln!(out, "base_url {}", handle.base_url())?;
    writeln!(out, "api_key {}", args.api_key)?;
    out.flush()?;
    drop(out);
    interrupted().await?;
    handle.shutdown().await;
    Ok(())
}

fn config(args: &Args) -> Result<Config, Error> {
    let history = number("history-hours", args.history_hours)? * 3_600.0;
    let out_of_range = Error::Number { flag: "history-hours", value: args.history_hours };
    Ok(Config {
        sims: args.sims,
        seed: args.seed,
        events_per_second: number("events-per-second", args.events_per_second)?,
        history: Duration::try_from_secs_f64(history).map_err(|_| out_of_range)?,
        history_events_per_second: number("history-events-per-second", args.history_events_per_second)?,
        requests_per_minute: args.requests_per_minute,
        api_keys: vec![args.api_key.clone()],
        faults: args.faults.as_deref().map(faults).transpose()?.unwrap_or_default(),
        ..Config::default()
    })
}

fn number(flag: &'static str, value: f64) -> Result<f64, Error> {
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(Error::Number { flag, value }) }
}

fn faults(text: &str) -> Result<Faults, Error> {
    let json = if text.trim_start().starts_with('{') {
        text.to_owned()
    } else {
        let path = PathBuf::from(text);
        std::fs::read_to_string(&path).map_err(|source| Error::FaultsFile { path, source })?
    };
    let faults: Faults = serde_json::from_str(&json)?;
    faults.validate()?;
    Ok(faults)
}

#[cfg(unix)]
async fn interrupted() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn interrupted() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}
