//! `simcast completions`: for the shell.

use std::io::Write;

use clap_complete::Shell;

use super::Failure;

/// Print shell completions
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Shell
    shell: Shell,
}

/// Prints them.
///
/// # Errors
/// Where they can't be written.
pub fn run(args: &Args, mut command: clap::Command, out: &mut dyn Write) -> Result<(), Failure> {
    // Written in one piece, because the generator panics where its writer fails.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "simcast", &mut text);
    out.write_all(&text)?;
    out.flush()?;
    Ok(())
}
