//! Logs: one line per event on standard error, so that standard output stays free for data.

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// `info`, or directives such as `info,simcast::ingest=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

/// Why logs can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is none.
    #[error("{level:?} is no log level: {reason}")]
    Level {
        /// As configured.
        level: String,
        /// What the parser says.
        reason: String,
    },
    /// Somebody else in this process has set up logs before.
    #[error("logs are already set up: {0}")]
    Twice(String),
}

/// Checks a level without using it.
///
/// # Errors
/// [`LogError::Level`].
pub fn check_level(level: &str) -> Result<EnvFilter, LogError> {
    let wrong = |reason: String| LogError::Level { level: level.to_owned(), reason };
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // The parser takes any word for a module's name; a plain word that is no level is a typing mistake here.
    for directive in level.split(',') {
        let bare = !directive.contains(['=', ':', '[']);
        if bare && !LEVELS.contains(&directive.trim().to_ascii_lowercase().as_str()) {
            return Err(wrong(format!("use one of {}", LEVELS.join(", "))));
        }
    }
    EnvFilter::builder().parse(level).map_err(|error| wrong(error.to_string()))
}

/// Sets up logs for the whole process.
///
/// # Errors
/// [`LogError`].
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let builder = fmt().with_env_filter(check_level(&config.level)?).with_writer(std::io::stderr);
    let twice = |error: tracing_subscriber::util::TryInitError| LogError::Twice(error.to_string());
    match config.format {
        LogFormat::Text => builder.with_ansi(false).finish().try_init().map_err(twice),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init().map_err(twice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_checked() {
        for good in ["info", "INFO", "debug,hyper=warn", "simcast::ingest=trace"] {
            assert!(check_level(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "simcast=loud", "info,verbose"] {
            assert!(matches!(check_level(bad), Err(LogError::Level { .. })), "{bad}");
        }
    }
}
