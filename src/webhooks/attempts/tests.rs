//! What is found, what goes, what a crash leaves.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::{
    clock::TokioClock,
    webhooks::outbound::{Failure, FailureKind, Timings},
};

fn attempt(n: u64, webhook: &str, iccid: &str) -> Attempt {
    let failure = Failure { kind: FailureKind::Connect, message: format!("SIM {iccid} told me") };
    let exchange = Exchange { result: Err(failure), remote: None, timings: Timings::default() };
    let mut attempt = Attempt::of(&exchange, Timestamp::UNIX_EPOCH);
    (attempt.seq, attempt.event_id) = (n, format!("evt_{n}"));
    attempt.webhook = webhook.to_owned();
    attempt.iccid = Some(iccid.to_owned());
    attempt
}

fn config(directory: Option<PathBuf>) -> Config {
    Config { directory, segment_bytes: 2_000, ..Config::default() }
}

async fn all(attempts: &Attempts, query: Query) -> Vec<u64> {
    let mut found = Vec::new();
    let mut before = None;
    loop {
        let page = attempts.find(Query { before, limit: 7, ..query.clone() }).await.unwrap();
        found.extend(page.attempts.iter().map(|(_, attempt)| attempt.seq));
        before = page.next;
        if before.is_none() {
            return found;
        }
    }
}

fn of(webhook: &str) -> Query {
    Query { webhook: Some(webhook.to_owned()), ..Query::default() }
}

#[tokio::test]
async fn attempts_are_found_newest_first_over_files_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    for directory in [None, Some(dir.path().join("attempts"))] {
        let clock: SharedClock = Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH));
        let mut attempts = Attempts::open(config(directory.clone()), clock.clone()).unwrap();
        for n in 1..=60 {
            attempts.record(attempt(n, if n % 2 == 0 { "even" } else { "odd" }, "89"));
            if n % 10 == 0 {
                attempts.flush().await;
            }
            if let (30, Some(directory)) = (n, &directory) {
                // A crash in the middle of a line.
                drop(attempts);
                std::thread::sleep(Duration::from_millis(50));
                let mut files: Vec<_> =
                    std::fs::read_dir(directory).unwrap().map(|one| one.unwrap().path()).collect();
                files.sort();
                let torn = files.last().unwrap();
                assert_eq!(std::fs::metadata(torn).unwrap().permissions().mode() & 0o777, 0o600);
                let bytes = std::fs::read(torn).unwrap();
                std::fs::write(torn, &bytes[..bytes.len() - 20]).unwrap();
                attempts = Attempts::open(config(Some(directory.clone())), clock.clone()).unwrap();
            }
        }
        let expected: Vec<u64> =
            (1..=60).rev().filter(|n| n % 2 == 0 && (*n != 30 || directory.is_none())).collect();
        assert_eq!(all(&attempts, of("even")).await, expected);
        let one = Query { event_id: Some("evt_7".into()), ..Query::default() };
        assert_eq!(all(&attempts, one).await, [7]);
        assert!(all(&attempts, of("none")).await.is_empty());
    }
}

#[tokio::test]
async fn what_is_erased_is_in_no_file_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let clock = crate::clock::system();
    let attempts = Attempts::open(config(Some(dir.path().to_owned())), clock).unwrap();
    for n in 1..=40 {
        attempts.record(attempt(
            n,
            "w",
            if n % 4 == 0 { "8900000000000000001" } else { "8900000000000000002" },
        ));
    }
    assert_eq!(attempts.erase("8900000000000000001").await.unwrap(), 10);
    attempts.record(attempt(41, "w", "8900000000000000002"));
    let seqs: Vec<u64> = (1..=41).rev().filter(|n| n % 4 != 0).collect();
    assert_eq!(all(&attempts, of("w")).await, seqs);
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(memchr::memmem::find(&bytes, b"8900000000000000001").is_none());
    }
    assert_eq!(attempts.forget("w").await.unwrap(), 31);
    assert!(all(&attempts, of("w")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn files_go_when_they_are_too_old_or_too_many() {
    let clock: SharedClock = Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH));
    let kept = Config { retention_bytes: 6_000, ..config(None) };
    let attempts = Attempts::open(kept, clock.clone()).unwrap();
    for n in 1..=200 {
        attempts.record(attempt(n, "w", "89"));
        attempts.flush().await;
    }
    let found = all(&attempts, of("w")).await;
    assert!(found.len() > 5 && found.len() < 50 && found[0] == 200, "{found:?}");
    tokio::time::advance(Duration::from_secs(8 * 86_400)).await;
    for n in 201..=220 {
        attempts.record(attempt(n, "w", "89"));
        attempts.flush().await;
    }
    assert!(all(&attempts, of("w")).await.iter().all(|n| *n > 195));
}
