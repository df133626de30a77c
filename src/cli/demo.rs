//! `simcast demo`: a simulated fleet and a gateway in one process, the first thing that a newcomer runs.
//!
//! The gateway is the real one with a real log on disk, which a restart continues. The fleet is not: every start
//! simulates a new one, with its own SIMs and a few hours of history, because a fleet that started over under the same
//! event ids would contradict what the log already holds.

use std::{
    io::{self, IsTerminal, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use reqwest::Url;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Failure, serve,
    tail::{self, Output, show::Format},
};
use crate::{
    app::{self, Running},
    clock::{self, SharedClock},
    config::{self, Config, Sources},
    globalsim::simulator::{self, Handle},
    lifecycle,
    observability::{Metrics, logs},
};

/// How much happened before the start.
const HISTORY: Duration = Duration::from_secs(6 * 3600);

/// Events per second in that time: some 2,000 in all, which are read in within a few seconds.
const HISTORY_EVENTS_PER_SECOND: f64 = 0.1;

/// As many as the default request budget completes with details as they come: each costs about one request besides
/// the four a second of the tail.
const EVENTS_PER_SECOND: f64 = 1.5;

/// What would bury the events of the moment: the fleet's past, and copies that only add details.
const NOT_SHOWN: [&str; 3] = ["backfill", "late", "enriched"];

/// Most SIMs and events per second that one process simulates without becoming the bottleneck.
const SIMS_MAX: i64 = 1_000_000;
const EVENTS_PER_SECOND_MAX: f64 = 1_000.0;

/// Run a simulated fleet and a gateway for it, to try everything without an account
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address of REST, WebSocket and Server-Sent Events
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub http: SocketAddr,
    /// Address of gRPC
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "ADDRESS")]
    pub grpc: SocketAddr,
    /// Address of health and metrics
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "ADDRESS")]
    pub admin: SocketAddr,
    /// Directory of the log; a restart continues it
    #[arg(long, default_value = "./simcast-data/demo", value_name = "DIRECTORY")]
    pub data_dir: PathBuf,
    /// SIMs in the fleet
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=SIMS_MAX))]
    pub sims: u32,
    /// Mean rate of new events
    #[arg(long, default_value_t = EVENTS_PER_SECOND, value_name = "RATE", value_parser = rate)]
    pub events_per_second: f64,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=EVENTS_PER_SECOND_MAX).contains(&rate) => Ok(rate),
        _ => Err(format!("give a number from 0 to {EVENTS_PER_SECOND_MAX}")),
    }
}

/// Runs until interrupted, printing events as they come.
///
/// # Errors
/// Addresses that can't be used (64), a start that fails, or a part that gives up (1).
pub async fn run(args: Args, out: &mut dyn Write) -> Result<(), Failure> {
    let clock = clock::system();
    let fleet = simulate(&args, &clock).await?;
    let config = configure(&args, &fleet.base_url())?;
    logs::init(&config.log).map_err(|error| Failure::runtime(error.to_string()))?;
    let metrics = Metrics::install().map_err(|error| Failure::runtime(error.to_string()))?;
    let mut signals = lifecycle::signals()?;
    let running = app::start(config, clock, metrics).await.map_err(|error| {
        Failure::runtime(format!("{error}; --http, --grpc, --admin and --data-dir choose others"))
    })?;
    let (lifecycle, reload) = (running.lifecycle.clone(), running.reloader());
    let obeyed = lifecycle.clone();
    tokio::spawn(async move { obeyed.obey(&mut signals, reload).await });
    let view = View::of(&running);
    let watched = async {
        let watched = view.show(&args, out).await;
        // Whoever no longer reads has seen enough.
        lifecycle.drain();
        watched
    };
    let (watched, ended) = tokio::join!(watched, running.join());
    fleet.shutdown().await;
    serve::outcome(ended).and(watched)
}

async fn simulate(args: &Args, clock: &SharedClock) -> Result<Handle, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let config = simulator::Config {
        sims: args.sims as usize,
        seed: clock.now().as_millisecond().unsigned_abs(),
        events_per_second: args.events_per_second,
        history: HISTORY,
        history_events_per_second: HISTORY_EVENTS_PER_SECOND,
        ..simulator::Config::default()
    };
    Ok(simulator::start(config, listener, clock.clone()))
}

/// The configuration of a gateway for the fleet; the environment is left out, since it is for real gateways.
fn configure(args: &Args, base_url: &str) -> Result<Config, config::Mistakes> {
    let mut sources = Sources::default();
    sources.flag("upstream.name", "demo", "demo");
    sources.flag("upstream.base_url", base_url, "demo");
    sources.flag("upstream.api_key", simulator::DEFAULT_API_KEY, "demo");
    sources.flag("http.listen", args.http, "--http");
    sources.flag("grpc.listen", args.grpc, "--grpc");
    sources.flag("admin.listen", args.admin, "--admin");
    sources.flag("bus.embedded.path", args.data_dir.display(), "--data-dir");
    // Whoever tries a webhook has the receiver on this machine.
    sources.flag("webhooks.allowed_networks", "127.0.0.0/8", "demo");
    // What is of interest here are the events.
    sources.flag("log.level", "warn", "demo");
    config::load(&sources)
}

/// What is shown of a gateway that runs.
struct View {
    http: SocketAddr,
    grpc: SocketAddr,
    admin: SocketAddr,
    kept: u64,
    stop: CancellationToken,
}

impl View {
    fn of(running: &Running) -> Self {
        Self {
            http: running.http,
            grpc: running.grpc,
            admin: running.admin,
            kept: running.bus.log().bounds().events,
            stop: running.lifecycle.draining.clone(),
        }
    }

    /// Says where to look, then prints events by the gateway's own `tail` over its own WebSocket.
    async fn show(&self, args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
        self.introduce(args, out)?;
        let server = Url::parse(&format!("http://{}", self.http))
            .map_err(|error| Failure::runtime(format!("{}: {error}", self.http)))?;
        let exclude_flags = NOT_SHOWN.map(str::to_owned).to_vec();
        let tail = tail::Args { exclude_flags, ..tail::Args::from_now(server) };
        let format = Format::Table { colour: io::stdout().is_terminal() };
        let mut output = Output { out, err: &mut io::stderr() };
        tail::follow(&tail, format, &self.stop, &mut output, fastrand::Rng::new()).await
    }

    fn introduce(&self, args: &Args, out: &mut dyn Write) -> io::Result<()> {
        let Self { http, grpc, admin, kept, .. } = self;
        let place = args.data_dir.display();
        let log = match kept {
            0 => format!("the log is in {place} and is kept"),
            _ => format!(
                "the log in {place} goes on behind {kept} events of earlier starts, whose fleets are gone"
            ),
        };
        let Args { sims, events_per_second, .. } = args;
        write!(
            out,
            "{sims} simulated SIMs, about {events_per_second} events a second\n{log}\n\n  \
             REST, WebSocket, SSE   http://{http}/\n  \
             gRPC                   {grpc}\n  \
             health, metrics        http://{admin}/readyz  http://{admin}/metrics\n\n\
             In another terminal:\n\n  \
             curl -N 'http://{http}/v1/events/sse?last=3'\n  \
             wscat -c 'ws://{http}/v1/events/ws?event_type=network_change'\n  \
             grpcurl -plaintext -d '{{\"last\":3}}' {grpc} simcast.v1.EventService/Subscribe\n\n\
             Events as they come, without the past; Ctrl-C ends.\n\n"
        )?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn args(http: &str) -> Args {
        Args {
            http: http.parse().unwrap(),
            grpc: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            data_dir: "/tmp/x y".into(),
            sims: 3,
            events_per_second: 0.5,
        }
    }

    #[test]
    fn the_demo_is_configured_by_its_flags_alone() {
        let config = configure(&args("127.0.0.1:0"), "http://127.0.0.1:1/v1/globalsim").unwrap();
        assert_eq!(config.upstream.base_url, "http://127.0.0.1:1/v1/globalsim");
        assert_eq!(config.embedded.path, Path::new("/tmp/x y"));
        assert_eq!((config.log.level.as_str(), config.warnings.len()), ("warn", 0));
    }

    #[test]
    fn an_open_demo_stays_on_this_machine() {
        let mistakes = configure(&args("0.0.0.0:8080"), "http://127.0.0.1:1").unwrap_err().to_string();
        assert!(mistakes.contains("http.listen (--http): 0.0.0.0:8080 can be reached"), "{mistakes}");
    }

    #[test]
    fn the_introduction_says_where_to_look() {
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let view = View {
            http: address(1),
            grpc: address(2),
            admin: address(3),
            kept: 0,
            stop: CancellationToken::new(),
        };
        let mut out = Vec::new();
        view.introduce(&args("127.0.0.1:0"), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in [
            "3 simulated SIMs, about 0.5 events a second",
            "  gRPC                   127.0.0.1:2",
            "  curl -N 'http://127.0.0.1:1/v1/events/sse?last=3'",
            "  grpcurl -plaintext -d '{\"last\":3}' 127.0.0.1:2 simcast.v1.EventService/Subscribe",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line:?} is missing in\n{text}");
        }
    }

    #[test]
    fn rates_are_bounded() {
        assert_eq!(rate("2.5"), Ok(2.5));
        for bad in ["-1", "nan", "inf", "1001", "fast"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
