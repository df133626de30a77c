//! The command line: one file per subcommand, here only what they share.
//!
//! Exit codes: 0 for success, 64 for arguments or a configuration that can't be used, 1 for everything that fails
//! later. Data goes to standard output, everything else to standard error. A reader that goes away (`| head`) is an
//! end, not a failure.

pub mod check;
pub mod completions;
pub mod demo;
pub mod doctor;
pub mod erase;
pub mod gateway;
pub mod listen;
pub mod migrate;
pub mod report;
pub mod serve;
pub mod simulate;
pub mod tail;
pub mod token;
pub mod verify;
pub mod webhooks;
pub mod why;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    clock,
    config::{self, Config, Mistakes, Sources},
};

/// Exit code for arguments or a configuration that can't be used (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Exit code for everything else that fails.
pub const EXIT_FAILURE: u8 = 1;

/// Turns the polled GlobalSIM API into a durable event stream
#[derive(Debug, Parser)]
#[command(name = "simcast", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Serve(serve::Args),
    Simulate(simulate::Args),
    Tail(Box<tail::Args>),
    Report(Box<report::Args>),
    Why(why::Args),
    Erase(erase::Args),
    Webhooks(Box<webhooks::Args>),
    Listen(listen::Args),
    Verify(verify::Args),
    Migrate(migrate::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Token(token::Args),
    Completions(completions::Args),
}

/// Where a command finds its configuration.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConfigArgs {
    /// TOML file; without one, defaults and SIMCAST__SECTION__KEY variables hold
    #[arg(long, short, value_name = "FILE", env = "SIMCAST_CONFIG")]
    pub config: Option<PathBuf>,
}

impl ConfigArgs {
    /// Reads it.
    ///
    /// # Errors
    /// [`Mistakes`], all of them.
    pub fn load(&self) -> Result<Config, Mistakes> {
        self.load_with(&[])
    }

    /// The same with keys that flags set: path, value, flag.
    ///
    /// # Errors
    /// [`Mistakes`], all of them.
    pub fn load_with(&self, flags: &[(&'static str, &str, &'static str)]) -> Result<Config, Mistakes> {
        let mut sources = Sources::of_process(self.config.clone());
        for (path, value, flag) in flags {
            sources.flag(path, value, flag);
        }
        config::load(&sources)
    }
}

/// Why a command failed, for people, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// [`EXIT_USAGE`] or [`EXIT_FAILURE`].
    pub code: u8,
    /// What to print; empty where everything has been said, or where the reader has gone away.
    pub message: String,
}

impl Failure {
    /// A failure at run time.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self { code: EXIT_FAILURE, message: message.into() }
    }

    /// Arguments or a configuration that can't be used.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: EXIT_USAGE, message: message.into() }
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self::usage(mistakes.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { code: 0, message: String::new() };
        }
        Self::runtime(format!("input or output failed: {error}"))
    }
}

/// Runs the command that the arguments name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come as errors too, meant for standard output. If that is closed, so be it.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                // Nothing is left to do where standard error is closed.
                let _ = writeln!(io::stderr(), "simcast: {}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match command {
        Command::Demo(args) => demo::run(args, &mut out).await,
        Command::Serve(args) => serve::run(args, &mut out).await,
        Command::Simulate(args) => {
            drop(out);
            simulate::run(args).await.map_err(|error| Failure::runtime(error.to_string()))
        }
        Command::Tail(args) => tail::run(*args, &mut out).await,
        Command::Report(args) => report::run(&args, clock::system().now(), &mut out).await,
        Command::Why(args) => why::run(&args, &mut out).await,
        Command::Erase(args) => erase::run(&args, &mut out).await,
        Command::Webhooks(args) => webhooks::run(&args, &mut out).await,
        Command::Listen(args) => listen::run(&args, clock::system(), &mut out).await,
        Command::Verify(args) => verify::run(&args, &clock::system(), &mut io::stdin(), &mut out),
        Command::Migrate(args) => migrate::run(args, clock::system(), &mut out).await,
        Command::Check(args) => check::run(&args, &mut out),
        Command::Doctor(args) => doctor::run(args, clock::system(), &mut out).await,
        Command::Token(args) => token::run(args, &clock::system(), &mut out, &mut io::stderr()),
        Command::Completions(args) => completions::run(&args, Cli::command(), &mut out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(gone, Failure { code: 0, message: String::new() });
        assert_eq!(Failure::from(io::Error::other("x")).code, EXIT_FAILURE);
    }
}
