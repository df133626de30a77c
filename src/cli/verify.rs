//! `simcast verify`: why does this signature fail?

use std::{
    io::{Read, Write},
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;

use super::Failure;
use crate::{
    clock::SharedClock,
    webhooks::diagnosis::{Received, diagnose},
};

/// Most of a body or a file of headers that is read.
const BYTES_MAX: u64 = 16 << 20;

/// Say why the signature of a webhook request fails, or that it does not
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The webhook's secret, whsec_...
    #[arg(long, env = "SIMCAST_WEBHOOK_SECRET", hide_env_values = true)]
    pub secret: String,
    /// File with the request's headers, one a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["id", "timestamp", "signature"])]
    pub headers: Option<PathBuf>,
    /// Value of webhook-id
    #[arg(long, default_value = "")]
    pub id: String,
    /// Value of webhook-timestamp
    #[arg(long, default_value = "")]
    pub timestamp: String,
    /// Value of webhook-signature
    #[arg(long, default_value = "")]
    pub signature: String,
    /// When it came, such as 2026-11-23T08:00:00Z; now without it
    #[arg(long)]
    pub at: Option<Timestamp>,
    /// How far clocks may be apart, seconds
    #[arg(long, default_value_t = 300)]
    pub tolerance_s: u64,
    /// File with the body as it came; standard input without it
    #[arg(value_name = "BODY")]
    pub body: Option<PathBuf>,
}

/// Looks and says.
///
/// # Errors
/// Where the signature fails (1), or a file can't be read (64).
pub fn run(
    args: &Args,
    clock: &SharedClock,
    input: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut body = Vec::new();
    match &args.body {
        None => input.take(BYTES_MAX).read_to_end(&mut body)?,
        Some(path) => {
            let opened = std::fs::File::open(path);
            let file = opened.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            file.take(BYTES_MAX).read_to_end(&mut body)?
        }
    };
    let (mut id, mut timestamp, mut signature) =
        (args.id.clone(), args.timestamp.clone(), args.signature.clone());
    if let Some(path) = &args.headers {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        let of = |name: &str| {
            let lines = text.lines().filter_map(|line| line.trim_start_matches("> ").split_once(':'));
            let mut found = lines.filter(|(one, _)| one.trim().eq_ignore_ascii_case(name));
            found.next().map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        (id, timestamp, signature) = (of("webhook-id"), of("webhook-timestamp"), of("webhook-signature"));
    }
    let received = Received { id: &id, timestamp: &timestamp, signature: &signature, body: &body };
    let now = args.at.unwrap_or_else(|| clock.now());
    let found = diagnose(&args.secret, &received, now, Duration::from_secs(args.tolerance_s));
    if found.is_empty() {
        writeln!(out, "the signature is right ({} bytes, webhook-id {id})", body.len())?;
        return Ok(out.flush()?);
    }
    for one in &found {
        writeln!(out, "{}\n  {}", one.what, one.cure)?;
    }
    out.flush()?;
    Err(Failure { code: super::EXIT_FAILURE, message: String::new() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::clock;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn say(words: &[&str], body: &str) -> (String, u8) {
        let args = Command::try_parse_from([&["verify"], words].concat()).unwrap().args;
        let mut out = Vec::new();
        let code = run(&args, &clock::system(), &mut body.as_bytes(), &mut out)
            .map_or_else(|failure| failure.code, |()| 0);
        (String::from_utf8(out).unwrap(), code)
    }

    #[test]
    fn a_request_is_told_right_or_why_it_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let headers = dir.path().join("headers");
        std::fs::write(
            &headers,
            "> POST /hook HTTP/1.1\n> Webhook-Id: msg_p5jXN8AQM9LWM0D4loKWxJek\n> webhook-timestamp: 1614265330\n\
             > webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=\n",
        )
        .unwrap();
        let words = [
            "--secret",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "--headers",
            headers.to_str().unwrap(),
            "--at",
            "2021-02-25T15:02:10Z",
        ];
        let (said, code) = say(&words, r#"{"test": 2432232314}"#);
        assert_eq!((said.contains("is right"), code), (true, 0), "{said}");
        let (said, code) = say(&words, "{\"test\": 2432232314}\n");
        assert_eq!((said.contains("a line end was added"), code), (true, 1), "{said}");
        let (said, code) = say(&words[..4], r#"{"test": 2432232314}"#);
        assert_eq!((said.contains("old"), code), (true, 1), "{said}");
    }
}
