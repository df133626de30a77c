//! `simcast token new`: makes a token, shows it once, and gives the block that lets it in.
//!
//! The block goes to standard output and the token to standard error, so that `>> simcast.toml` adds the one and
//! never stores the other.

use std::io::Write;

use clap::{Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};

use super::Failure;
use crate::{
    auth::{Role, hash_token, new_token},
    clock::SharedClock,
};

/// Make tokens
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Make a token and print the configuration for it
    New(New),
}

#[derive(Debug, Clone, clap::Args)]
struct New {
    /// Name, shown in logs instead of the token
    #[arg(long)]
    name: String,
    /// What it may do; may be repeated
    #[arg(long = "role", value_enum, value_delimiter = ',', default_value = "read")]
    roles: Vec<RoleArg>,
    /// When it stops working: a time such as 2027-01-31T00:00:00Z, or days from now such as 90d
    #[arg(long, value_name = "TIME|DAYS")]
    expires: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    Read,
    Webhooks,
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Read => Self::Read,
            RoleArg::Webhooks => Self::Webhooks,
            RoleArg::Admin => Self::Admin,
        }
    }
}

/// Prints a new token and its TOML block.
///
/// # Errors
/// A name or expiry that can't be used, or no randomness.
pub fn run(args: Args, clock: &SharedClock, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
    let Command::New(new) = args.command;
    if !crate::config::is_name(&new.name) {
        return Err(Failure::usage("--name takes 1 to 64 characters of A-Z a-z 0-9 _ . -"));
    }
    let expires = new.expires.as_deref().map(|text| expiry(text, clock.now())).transpose()?;
    let token = new_token().map_err(|error| Failure::runtime(error.to_string()))?;
    let mut roles: Vec<&str> = Vec::new();
    for role in new.roles {
        let name = Role::from(role).as_str();
        if !roles.contains(&name) {
            roles.push(name);
        }
    }
    writeln!(err, "The token, shown only now, for whoever reads the stream:\n\n  {token}\n")?;
    writeln!(err, "For the gateway's configuration:\n")?;
    err.flush()?;
    writeln!(out, "[[auth.tokens]]\nname = {:?}", new.name)?;
    writeln!(out, "sha256 = \"{}\"\nroles = {roles:?}", hex::encode(hash_token(&token)))?;
    if let Some(expires) = expires {
        writeln!(out, "expires = {expires}")?;
    }
    out.flush()?;
    Ok(())
}

fn expiry(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "--expires takes a time to come such as 2027-01-31T00:00:00Z, or days such as 90d, not {text:?}"
        ))
    };
    let at = match text.strip_suffix('d') {
        Some(days) => {
            let hours = days.parse::<u16>().map_err(|_| wrong())?;
            now.checked_add(SignedDuration::from_hours(i64::from(hours) * 24)).map_err(|_| wrong())?
        }
        None => text.parse().map_err(|_| wrong())?,
    };
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    if whole > now { Ok(whole) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;

    use super::*;
    use crate::{
        auth::Auth,
        clock::TokioClock,
        config::{Sources, load},
    };

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    /// What goes to standard output and to standard error.
    fn print(args: &[&str]) -> Result<(String, String), Failure> {
        let clock: SharedClock = Arc::new(TokioClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap()));
        let args = Alone::try_parse_from([&["token", "new"], args].concat()).unwrap().args;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        run(args, &clock, &mut out, &mut err)?;
        Ok((String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap()))
    }

    #[tokio::test]
    async fn what_is_printed_can_be_pasted_and_lets_the_token_in() {
        let (text, told) =
            print(&["--name", "dash", "--role", "read,admin", "--role", "read", "--expires", "90d"]).unwrap();
        let token = told.lines().map(str::trim).find(|line| line.starts_with("sct_")).unwrap();
        assert!(!text.contains("sct_"), "{text}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("simcast.toml");
        std::fs::write(&file, format!("[upstream]\nbase_url = \"https://x\"\napi_key = \"k\"\n{text}"))
            .unwrap();
        let config = load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        assert_eq!(config.auth.tokens[0].expires, Some("2026-04-01T00:00:00Z".parse().unwrap()));
        let clock: SharedClock = Arc::new(TokioClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap()));
        let principal = Auth::new(config.auth, clock).authenticate(Some(token)).unwrap();
        assert_eq!(
            (principal.name.as_str(), principal.roles.read, principal.roles.webhooks),
            ("dash", true, false)
        );
        assert!(principal.roles.admin);
    }

    #[tokio::test]
    async fn bad_names_and_expiries_are_usage_errors() {
        for args in [
            &["--name", "a b"][..],
            &["--name", "a", "--expires", "soon"],
            &["--name", "a", "--expires", "2025-01-01T00:00:00Z"],
            &["--name", "a", "--expires", "0d"],
        ] {
            assert_eq!(print(args).unwrap_err().code, super::super::EXIT_USAGE, "{args:?}");
        }
    }
}
