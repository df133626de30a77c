//! `simcast tail`: follows the stream over WebSocket and prints it, without a hole or a repeat however often the
//! connection or the gateway goes away.
//!
//! What to do next is decided by [`follow::Follow`], which does no I/O; [`connect`] speaks HTTP and WebSocket;
//! [`show`] makes lines.

pub mod connect;
pub mod follow;
pub mod show;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use reqwest::Url;
use tokio_util::sync::CancellationToken;

use self::{
    connect::Connector,
    follow::{End, Follow, Next, Param, Shown},
    show::Format,
};
use super::{Failure, gateway::server_url};

/// Follow the stream and print it
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Gateway
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL", value_parser = server_url)]
    pub server: Url,
    /// Token, where the gateway wants one
    #[arg(long, env = "SIMCAST_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Only these event types
    #[arg(long, value_delimiter = ',', value_name = "TYPE")]
    pub event_type: Vec<String>,
    /// Only these SIMs
    #[arg(long, value_delimiter = ',')]
    pub iccid: Vec<String>,
    /// Only SIMs whose ICCID starts so
    #[arg(long, value_delimiter = ',', value_name = "DIGITS")]
    pub iccid_prefix: Vec<String>,
    /// Only these devices
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub device_id: Vec<String>,
    /// Only these countries, by name or ISO code
    #[arg(long, value_delimiter = ',')]
    pub country: Vec<String>,
    /// Only these operators
    #[arg(long, value_delimiter = ',')]
    pub operator: Vec<String>,
    /// Only these network types, such as 4G
    #[arg(long, value_delimiter = ',', value_name = "TYPE")]
    pub network_type: Vec<String>,
    /// Not events with these flags, such as backfill, late, enriched
    #[arg(long, value_delimiter = ',', value_name = "FLAG")]
    pub exclude_flags: Vec<String>,
    /// Where to start
    #[arg(long, value_enum, group = "start")]
    pub from: Option<From>,
    /// Start after this cursor
    #[arg(long, value_name = "CURSOR", group = "start")]
    pub after: Option<String>,
    /// Start with what was observed since this time, such as 2025-11-05T08:00:00Z
    #[arg(long, value_name = "TIME", group = "start")]
    pub since: Option<String>,
    /// Start with the last N matching events
    #[arg(long, value_name = "N", group = "start")]
    pub last: Option<u32>,
    /// One JSON event per line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Named starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum From {
    /// What happens from now on (default)
    Now,
    /// The oldest event that is kept
    Earliest,
}

impl Args {
    /// Everything from now on, at `server`.
    pub fn from_now(server: Url) -> Self {
        Self {
            server,
            token: None,
            event_type: Vec::new(),
            iccid: Vec::new(),
            iccid_prefix: Vec::new(),
            device_id: Vec::new(),
            country: Vec::new(),
            operator: Vec::new(),
            network_type: Vec::new(),
            exclude_flags: Vec::new(),
            from: None,
            after: None,
            since: None,
            last: None,
            json: false,
        }
    }

    /// Filter and start as the query names them.
    fn query(&self) -> (Vec<Param>, Option<Param>) {
        let lists = [
            ("event_type", &self.event_type),
            ("iccid", &self.iccid),
            ("iccid_prefix", &self.iccid_prefix),
            ("device_id", &self.device_id),
            ("country", &self.country),
            ("operator", &self.operator),
            ("network_type", &self.network_type),
            ("exclude_flags", &self.exclude_flags),
        ];
        let filter =
            lists.into_iter().flat_map(|(name, values)| values.iter().map(move |v| (name, v.clone())));
        let start = if let Some(after) = &self.after {
            Some(("after", after.clone()))
        } else if let Some(since) = &self.since {
            Some(("since", since.clone()))
        } else if let Some(last) = self.last {
            Some(("last", last.to_string()))
        } else {
            self.from.map(|from| ("from", if from == From::Now { "now" } else { "earliest" }.to_owned()))
        };
        (filter.collect(), start)
    }
}

/// Follows until interrupted or told by the gateway not to come back.
///
/// # Errors
/// What the gateway said when it refused for good; exit code 1.
pub async fn run(args: Args, out: &mut dyn Write) -> Result<(), Failure> {
    let format = if args.json {
        Format::Json
    } else {
        let tty =
            io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Format::Table { colour: tty }
    };
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    tokio::spawn(async move {
        // Where the signal can't be awaited, the process still ends by its default action.
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    follow(&args, format, &stop, &mut Output { out, err: &mut io::stderr() }, fastrand::Rng::new()).await
}

/// Where things are printed.
pub struct Output<'o> {
    /// Events.
    pub out: &'o mut dyn Write,
    /// Everything else.
    pub err: &'o mut (dyn Write + Send),
}

impl Output<'_> {
    fn note(&mut self, text: &str) {
        // Notes are a courtesy: where nobody reads them, the stream goes on.
        let _ = writeln!(self.err, "simcast: {text}");
    }

    fn show(&mut self, items: Vec<Shown>, format: Format) -> io::Result<()> {
        for item in items {
            match item {
                Shown::Event(event) => writeln!(self.out, "{}", show::event(&event, format))?,
                Shown::Note(text) => self.note(&text),
            }
        }
        self.out.flush()
    }
}

/// The loop of [`run`], for `demo` and for tests.
///
/// # Errors
/// As [`run`].
pub async fn follow(
    args: &Args,
    format: Format,
    stop: &CancellationToken,
    output: &mut Output<'_>,
    rng: fastrand::Rng,
) -> Result<(), Failure> {
    let token = args.token.clone().filter(|token| !token.is_empty());
    let connector = Connector::new(&args.server, token).map_err(Failure::usage)?;
    let (filter, start) = args.query();
    let mut follow = Follow::new(filter, start, rng);
    if let Some(header) = show::header(format) {
        writeln!(output.out, "{header}")?;
        output.out.flush()?;
    }
    loop {
        let end = tokio::select! {
            // A gateway that stops together with its reader must not be reported as lost.
            biased;
            () = stop.cancelled() => return Ok(()),
            end = session(&connector, &mut follow, format, output) => end?,
        };
        match follow.on_end(end) {
            Next::Stop { message } => return Err(Failure::runtime(message)),
            Next::Reconnect { after, note } => {
                output.note(&note);
                tokio::select! {
                    () = tokio::time::sleep(after) => {}
                    () = stop.cancelled() => return Ok(()),
                }
            }
        }
    }
}

/// One connection, from its request to its end.
async fn session(
    connector: &Connector,
    follow: &mut Follow,
    format: Format,
    output: &mut Output<'_>,
) -> io::Result<End> {
    let mut socket = match connector.open(&follow.query()).await {
        Ok(socket) => socket,
        Err(end) => return Ok(end),
    };
    follow.on_open();
    loop {
        let text = match socket.next(follow.silence()).await {
            Ok(text) => text,
            Err(end) => return Ok(end),
        };
        match follow.on_text(&text) {
            Ok(items) => output.show(items, format)?,
            Err(end) => return Ok(end),
        }
    }
}

#[cfg(test)]
mod gateway_tests;
#[cfg(test)]
mod tests;
