//! `simcast listen`: a receiver for whoever develops one.
//!
//! It registers itself with the gateway, verifies what comes, prints it, and hands it on byte for byte with the headers
//! that sign it; what the program behind answers goes back to the gateway. When it ends, its webhook is deleted.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use reqwest::Url;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};

use super::{
    Failure,
    gateway::{Client, ServerArgs, http_client},
    tail::show::clean,
};
use crate::{
    clock::SharedClock,
    lifecycle,
    webhooks::diagnosis::{Received, TOLERANCE, diagnose},
};

/// Largest request: a batch of the largest events.
const BODY_BYTES_MAX: usize = 64 << 20;
/// How long the program behind may take.
const FORWARD_WITHIN: Duration = Duration::from_secs(60);
/// Requests that may wait to be printed.
const LINES_MAX: usize = 1_024;

/// Receive webhooks here: register, verify, print and, if asked, forward
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// Port to listen on; 0 is any
    #[arg(long, default_value_t = 9999)]
    pub port: u16,
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
    /// How the gateway reaches this, where it is not on the same machine
    #[arg(long, value_name = "URL")]
    pub public_url: Option<Url>,
    /// Hand requests on to a program of yours; its answer goes back to the gateway
    #[arg(long, value_name = "URL")]
    pub forward_to: Option<Url>,
    /// Filter as JSON, such as {"event_type":["connection"]}
    #[arg(long, value_name = "JSON")]
    pub filter: Option<String>,
    /// Use an existing webhook's secret and register nothing
    #[arg(long, env = "SIMCAST_WEBHOOK_SECRET", hide_env_values = true)]
    pub secret: Option<String>,
    /// Print whole events instead of a line each
    #[arg(long)]
    pub json: bool,
}

/// What every request needs.
struct Receiver {
    secret: String,
    forward: Option<(reqwest::Client, Url)>,
    clock: SharedClock,
    json: bool,
    lines: mpsc::Sender<String>,
}

/// Runs until interrupted.
///
/// # Errors
/// A port that is taken, a gateway that refuses or can't be reached.
pub async fn run(args: &Args, clock: SharedClock, out: &mut dyn Write) -> Result<(), Failure> {
    let mut signals = lifecycle::signals()?;
    let ended = async {
        loop {
            match signals.recv().await {
                Some(lifecycle::Signal::Reload) => {}
                _ => return,
            }
        }
    };
    serve(args, clock, out, ended).await
}

async fn serve(
    args: &Args,
    clock: SharedClock,
    out: &mut dyn Write,
    ended: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let listener = TcpListener::bind(SocketAddr::new(args.address, args.port)).await.map_err(|error| {
        Failure::usage(format!("{}:{} can't be listened on: {error}; see --port", args.address, args.port))
    })?;
    let address = listener.local_addr()?;
    let forward = match &args.forward_to {
        None => None,
        Some(url) => Some((http_client(url, "simcast-listen").map_err(Failure::usage)?, url.clone())),
    };
    let client = Client::new(&args.server, "simcast-listen")?;
    let registered = match &args.secret {
        Some(secret) => (None, secret.clone()),
        None => {
            let url = args.public_url.as_ref().map_or_else(|| format!("http://{address}/"), Url::to_string);
            let (id, secret) = register(&client, args, &url).await?;
            (Some(id), secret)
        }
    };
    let (id, secret) = registered;
    match &id {
        Some(id) => writeln!(out, "listening on {address} as {id}, until Ctrl-C")?,
        None => writeln!(out, "listening on {address}, until Ctrl-C")?,
    }
    out.flush()?;
    let (lines, mut printed) = mpsc::channel(LINES_MAX);
    let receiver = std::sync::Arc::new(Receiver { secret, forward, clock, json: args.json, lines });
    let accepting = tokio::spawn(accept(listener, receiver));
    let printing = async {
        while let Some(line) = printed.recv().await {
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        Ok::<_, io::Error>(())
    };
    let shown = tokio::select! {
        () = ended => Ok(()),
        shown = printing => shown,
    };
    accepting.abort();
    if let Some(id) = id {
        client.ask(Method::DELETE, &[&id], &[], None).await?;
    }
    Ok(shown?)
}

async fn register(client: &Client, args: &Args, url: &str) -> Result<(String, String), Failure> {
    let mut body = json!({ "url": url, "description": "simcast listen", "retry_schedule": [0, 1, 5, 30] });
    if let Some(filter) = &args.filter {
        let filter: Value =
            serde_json::from_str(filter).map_err(|error| Failure::usage(format!("--filter: {error}")))?;
        body["filter"] = filter;
    }
    let made = client.ask(Method::POST, &[], &[], Some(body)).await?;
    match (made["id"].as_str(), made["secret"].as_str()) {
        (Some(id), Some(secret)) => Ok((id.to_owned(), secret.to_owned())),
        _ => Err(Failure::runtime("the gateway's answer holds no webhook")),
    }
}

async fn accept(listener: TcpListener, receiver: std::sync::Arc<Receiver>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let receiver = receiver.clone();
        let service = service_fn(move |request| {
            let receiver = receiver.clone();
            async move { Ok::<_, std::convert::Infallible>(receiver.answer(request).await) }
        });
        let connection =
            http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

impl Receiver {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let plain = |status: StatusCode, text: String| {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = status;
            response
        };
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "webhooks come by POST".to_owned());
        }
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large".to_owned());
            }
            Err(_) => return plain(StatusCode::BAD_REQUEST, "the body ended early".to_owned()),
        };
        let of =
            |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let received = Received {
            id: of("webhook-id"),
            timestamp: of("webhook-timestamp"),
            signature: of("webhook-signature"),
            body: &body,
        };
        let wrong = diagnose(&self.secret, &received, self.clock.now(), TOLERANCE);
        if let Some(first) = wrong.first() {
            self.say(format!("refused {}: {}; {}", clean(received.id), first.what, first.cure)).await;
            return plain(StatusCode::UNAUTHORIZED, first.what.clone());
        }
        let answer = match &self.forward {
            None => Ok((StatusCode::NO_CONTENT, Bytes::new())),
            Some((client, url)) => forward(client, url, &head.headers, body.clone()).await,
        };
        let (status, text) = answer.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, Bytes::from(error)));
        let what = if self.json {
            String::from_utf8_lossy(&body).into_owned()
        } else {
            summary(&body, of("webhook-replay"))
        };
        let shown = match &self.forward {
            None => what,
            Some(_) => format!("{what} -> {status}"),
        };
        self.say(shown).await;
        let mut response = Response::new(Full::new(text));
        *response.status_mut() = status;
        response
    }

    async fn say(&self, line: String) {
        // Whoever no longer prints is about to end.
        let _ = self.lines.send(line).await;
    }
}

/// Hands a request on with what signs it.
async fn forward(
    client: &reqwest::Client,
    url: &Url,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Bytes), String> {
    let mut request = client.post(url.clone()).timeout(FORWARD_WITHIN).body(body);
    for (name, value) in headers {
        if name == http::header::CONTENT_TYPE
            || name == http::header::USER_AGENT
            || name.as_str().starts_with("webhook-")
        {
            request = request.header(name, value);
        }
    }
    let answer = request.send().await.map_err(|error| super::gateway::root(&error))?;
    let status = answer.status();
    Ok((status, Bytes::from(super::gateway::body(answer, 16 << 10).await)))
}

/// A line for each event.
fn summary(body: &[u8], replay: &str) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let events = value.as_array().cloned().unwrap_or_else(|| vec![value]);
    let text = |value: &Value| clean(value.as_str().unwrap_or("-"));
    let lines = events.iter().map(|event| {
        let replay = if replay.is_empty() { String::new() } else { format!("  [replay {}]", clean(replay)) };
        let data = &event["data"];
        format!(
            "{}  {}  {}  {}{replay}",
            text(&event["time"]),
            text(&data["event_type"]),
            text(&data["iccid"]),
            text(&event["id"])
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        clock,
        frontends::{
            listener::{Deadlines, testing::Live},
            tests_support::{Fixture, ICCIDS, Sample},
        },
        webhooks::testing::{Act, Receiver as Behind},
    };

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    /// Printed lines, and when so many have come.
    struct Screen(mpsc::UnboundedSender<String>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn it_registers_verifies_prints_forwards_and_leaves() {
        let live =
            Live::start(Fixture::system(), axum::Router::new(), axum::Router::new(), Deadlines::default());
        live.fixture.serve_webhooks();
        let behind = Behind::start(|_| Act::Status(202)).await;
        let server = format!("http://{}", live.addr);
        let forward = behind.url();
        let words = ["listen", "--server", &server, "--port", "0", "--forward-to", &forward];
        let args = Command::try_parse_from(words).unwrap().args;
        let (sender, mut screen) = mpsc::unbounded_channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let ended = async {
            let _ = stopped.await;
        };
        let mut sink = Screen(sender);
        let listening = serve(&args, clock::system(), &mut sink, ended);
        let watching = async {
            let mut seen = String::new();
            while !seen.contains("until Ctrl-C") {
                seen.push_str(&screen.recv().await.unwrap());
            }
            live.fixture.append(&[Sample::new("e1", "connection", ICCIDS[0], 1)]);
            while !seen.contains("e1 -> 202") {
                seen.push_str(&screen.recv().await.unwrap());
            }
            let got = behind.requests();
            assert!(got[0].header("webhook-signature").unwrap().starts_with("v1,"));
            assert_eq!(got[0].header("content-type"), Some("application/cloudevents+json"));
            stop.send(()).unwrap();
        };
        let (listened, ()) = tokio::join!(listening, watching);
        listened.unwrap();
        let list = live.fixture.context.webhooks.list(&crate::auth::Principal::anonymous()).await.unwrap();
        assert!(list.is_empty());
    }
}
