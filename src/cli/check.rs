//! `simcast check`: is the configuration right, and what holds?

use std::io::Write;

use super::{ConfigArgs, Failure};
use crate::config::{Config, default_file};

/// Check the configuration: all mistakes at once, or what holds
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print a configuration file with every key commented out at its default
    #[arg(long, conflicts_with = "config")]
    print_defaults: bool,
}

/// Prints what holds, or what is wrong.
///
/// # Errors
/// The mistakes, exit code 64.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    if args.print_defaults {
        write!(out, "{}", default_file())?;
        return Ok(());
    }
    let config = args.config.load()?;
    show(&config, out)?;
    Ok(())
}

fn show(config: &Config, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "configuration is valid")?;
    let width = config.effective.iter().map(|shown| shown.key.len()).max().unwrap_or(0);
    for shown in &config.effective {
        let value = shown.value.as_deref().unwrap_or("(not set)");
        writeln!(out, "  {:width$}  {value}  ({})", shown.key, shown.origin)?;
    }
    for warning in &config.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn what_holds_is_shown_without_secrets() {
        let mut sources = Sources::default();
        sources.flag("upstream.base_url", "http://api.example.com", "--url");
        sources.flag("upstream.api_key", "topsecret", "--key");
        let mut out = Vec::new();
        show(&load(&sources).unwrap(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("configuration is valid\n"), "{text}");
        assert!(text.contains("\"***\"  (--key)") && !text.contains("topsecret"), "{text}");
        assert!(text.contains("\"127.0.0.1:8080\"  (default)"), "{text}");
        assert!(text.contains("warning: upstream.base_url is plain HTTP"), "{text}");
    }
}
