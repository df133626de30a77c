//! `simcast simulate`: the GlobalSIM simulator alone, to try the gateway without an account.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::clock;
use crate::globalsim::simulator::{self, Config, Faults, Handle, InvalidFaults};

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
    announce(&handle, &args.api_key)?;
    interrupted().await?;
    handle.shutdown().await;
    Ok(())
}

fn announce(handle: &Handle, api_key: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "base_url {}\napi_key {api_key}", handle.base_url())?;
    out.flush()
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::globalsim::simulator::faults::Order;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(flags: &[&str]) -> Args {
        Line::try_parse_from(["simulate"].iter().chain(flags)).unwrap().args
    }

    #[test]
    fn flags_become_the_configuration() {
        let args =
            parse(&["--sims", "7", "--seed", "3", "--events-per-second", "0.5", "--history-hours", "1.5"]);
        assert_eq!(args.listen, "127.0.0.1:8090".parse().unwrap());
        let config = config(&args).unwrap();
        assert_eq!((config.sims, config.seed, config.events_per_second), (7, 3, 0.5));
        assert_eq!(config.history, Duration::from_secs(5_400));
        assert_eq!((config.requests_per_minute, config.faults), (500, Faults::default()));
        assert_eq!(config.api_keys, [simulator::DEFAULT_API_KEY]);
    }

    #[test]
    fn faults_come_inline_or_from_a_file() {
        let json = r#"{"order":"oldest","transport":{"reset":0.1}}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        for given in [json, file.path().to_str().unwrap()] {
            let faults = config(&parse(&["--faults", given])).unwrap().faults;
            assert_eq!((faults.order, faults.transport.reset), (Order::Oldest, 0.1));
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            (["--faults", r#"{"oder":"oldest"}"#], "oder"),
            (["--faults", r#"{"transport":{"reset":7}}"#], "transport.reset"),
            (["--faults", "/nowhere/faults.json"], "/nowhere/faults.json"),
            (["--events-per-second", "NaN"], "--events-per-second"),
            (["--history-hours", "inf"], "--history-hours"),
        ];
        for (flags, named) in cases {
            let error = config(&parse(&flags)).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
            assert!(!error.retryable());
        }
    }
}
