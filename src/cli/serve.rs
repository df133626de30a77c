//! `simcast serve`: the gateway.

use std::io::Write;

use super::{ConfigArgs, Failure};
use crate::{
    app, clock,
    lifecycle::{self, Ended},
    observability::{Metrics, logs},
};

/// Run the gateway
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs until a signal. Prints where it listens, one line per listener, once it does.
///
/// # Errors
/// A configuration that can't be used (64), a start that fails, or a part that gives up (1).
pub async fn run(args: Args, out: &mut dyn Write) -> Result<(), Failure> {
    let config = args.config.load()?;
    logs::init(&config.log).map_err(|error| Failure::runtime(error.to_string()))?;
    let metrics = Metrics::install().map_err(|error| Failure::runtime(error.to_string()))?;
    // Before the start, so that a supervisor that changes its mind is heard as soon as the start is over.
    let mut signals = lifecycle::signals()?;
    loop {
        let running = app::start(config.clone(), clock::system(), metrics.clone())
            .await
            .map_err(|error| Failure::runtime(error.to_string()))?;
        let (lifecycle, reload) = (running.lifecycle.clone(), running.reloader());
        let told = writeln!(out, "http {}\ngrpc {}\nadmin {}", running.http, running.grpc, running.admin)
            .and_then(|()| out.flush());
        if let Err(error) = told {
            tracing::debug!(%error, "nobody reads standard output");
        }
        let (told_to_stop, ended) = tokio::join!(lifecycle.obey(&mut signals, reload), running.join());
        let again = ended.restart.is_some() && !told_to_stop;
        outcome(ended)?;
        if !again {
            return Ok(());
        }
    }
}

/// Exit code of a gateway that has ended.
///
/// # Errors
/// The part that gave up, or that did not stop in time.
pub fn outcome(ended: Ended) -> Result<(), Failure> {
    match ended {
        Ended { failure: Some(failure), .. } => Err(Failure::runtime(failure)),
        Ended { left: 0, .. } => Ok(()),
        Ended { left, .. } => Err(Failure::runtime(format!("{left} tasks did not stop in time"))),
    }
}
