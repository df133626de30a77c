//! `simcast verify`: why does this signature fail?

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;

use super::Failure;
use crate::{
    clock::SharedClock,
    webhooks::diagnosis::{Received, diagnose},
};

/// Most of a file, or of standard input.
const BYTES_MAX: u64 = 16 << 20;

/// Say why the signature of a webhook request fails, or that it does not
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The webhook's secret, whsec_...; other users of this machine see arguments, but neither files nor variables
    #[arg(long, env = "SIMCAST_WEBHOOK_SECRET", hide_env_values = true)]
    pub secret: Option<String>,
    /// File with the secret
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// File with the request's headers, one a line; a body behind an empty line is taken as well
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
    let secret = match (&args.secret_file, &args.secret) {
        (Some(path), _) => String::from_utf8_lossy(&read_file(path)?).trim().to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => {
            let cure = "give the webhook's secret: --secret-file, SIMCAST_WEBHOOK_SECRET or --secret";
            return Err(Failure::usage(cure));
        }
    };
    let (mut id, mut timestamp, mut signature) =
        (args.id.clone(), args.timestamp.clone(), args.signature.clone());
    let mut enclosed = Vec::new();
    if let Some(path) = &args.headers {
        let bytes = read_file(path)?;
        let (head, body) = parted(&bytes);
        let text = String::from_utf8_lossy(head);
        let of = |name: &str| {
            let lines = text.lines().filter_map(|line| line.trim_start_matches("> ").split_once(':'));
            let found = lines.filter(|(one, _)| one.trim().eq_ignore_ascii_case(name));
            // Lines of one name are a list, which this header parts by spaces.
            found.map(|(_, value)| value.trim()).collect::<Vec<_>>().join(" ")
        };
        (id, timestamp, signature) = (of("webhook-id"), of("webhook-timestamp"), of("webhook-signature"));
        enclosed = body.to_vec();
    } else if [&id, &timestamp, &signature].iter().all(|one| one.is_empty()) {
        return Err(Failure::usage("give --headers, or --id, --timestamp and --signature"));
    }
    let body = match &args.body {
        Some(path) => read_file(path)?,
        None if !enclosed.is_empty() => enclosed,
        None => bounded(input).map_err(|why| Failure::usage(format!("standard input: {why}")))?,
    };
    let received = Received { id: &id, timestamp: &timestamp, signature: &signature, body: &body };
    let now = args.at.unwrap_or_else(|| clock.now());
    let found = diagnose(&secret, &received, now, Duration::from_secs(args.tolerance_s));
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

fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let wrong = |why: String| Failure::usage(format!("{}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    bounded(file).map_err(wrong)
}

/// All of it: a body that is cut here would be told to be wrong.
fn bounded(from: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    from.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(format!("it has more than {BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// The headers and what stands behind the empty line that ends them.
fn parted(bytes: &[u8]) -> (&[u8], &[u8]) {
    let ends = [&b"\r\n\r\n"[..], b"\n\n", b"\n> \n"].into_iter().filter_map(|end| {
        let at = memchr::memmem::find(bytes, end)?;
        Some((at, at + end.len()))
    });
    let (head, body) = ends.min().unwrap_or((bytes.len(), bytes.len()));
    (&bytes[..head], &bytes[body..])
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
    #[test]
    fn a_request_may_be_given_in_one_file_and_its_secret_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let secret = file("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n");
        let head = "POST / HTTP/1.1\r\nwebhook-id: msg_p5jXN8AQM9LWM0D4loKWxJek\r\nwebhook-timestamp: 1614265330\r\n\
                    webhook-signature: v1,AAAA\r\n\
                    webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=\r\n";
        let body = r#"{"test": 2432232314}"#;
        let whole = file("whole", &format!("{head}\r\n{body}"));
        let alone = file("alone", &format!("{head}\r\n"));
        let at = ["--at", "2021-02-25T15:02:10Z", "--secret-file", &secret, "--headers"];
        assert_eq!(say(&[&at[..], &[&whole]].concat(), "").1, 0, "the body is in the file");
        assert_eq!(say(&[&at[..], &[&alone]].concat(), body).1, 0, "the body comes by standard input");
        let other = file("other", "{}");
        assert_eq!(say(&[&at[..], &[&whole, &other]].concat(), "").1, 1, "a body that is named counts");
        let usage = super::super::EXIT_USAGE;
        assert_eq!(say(&["--secret-file", &secret], "").1, usage, "no header at all");
        assert_eq!(say(&["--secret-file", "/nonexistent", "--headers", &whole], "").1, usage);
        let long = std::iter::repeat_n('x', BYTES_MAX as usize + 1).collect::<String>();
        assert_eq!(say(&[&at[..], &[&alone]].concat(), &long).1, usage, "never cut without a word");
    }
}
