//! The binary: arguments in, exit code out. Everything else is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    simcast::cli::main(std::env::args_os())
}
