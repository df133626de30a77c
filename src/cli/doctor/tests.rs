//! The doctor against the simulator, healthy and not.

use std::sync::Arc;

use super::*;
use crate::{
    clock,
    config::{Sources, load},
    globalsim::simulator::{self, Handle},
};

struct Clinic {
    simulator: Handle,
    dir: tempfile::TempDir,
}

impl Clinic {
    async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config =
            simulator::Config { sims: 5, history_events_per_second: 0.01, ..simulator::Config::default() };
        Self {
            simulator: simulator::start(config, listener, clock::system()),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self, key: &str) -> Config {
        let mut sources = Sources::default();
        sources.flag("upstream.base_url", self.simulator.base_url(), "test");
        sources.flag("upstream.api_key", key, "test");
        sources.flag("bus.embedded.path", self.dir.path().display(), "test");
        load(&sources).unwrap()
    }

    async fn findings(&self, key: &str) -> Vec<(Level, &'static str, String)> {
        let found = upstream(&self.config(key), clock::system()).await;
        found.into_iter().map(|finding| (finding.level, finding.what, finding.detail)).collect()
    }
}

#[tokio::test]
async fn a_healthy_upstream_is_found_healthy() {
    let clinic = Clinic::new().await;
    let found = clinic.findings(simulator::DEFAULT_API_KEY).await;
    let what: Vec<_> = found.iter().map(|(_, what, _)| *what).collect();
    assert_eq!(what, ["upstream", "API key", "clock", "list order", "paging"]);
    assert!(found.iter().all(|(level, ..)| *level == Level::Ok), "{found:#?}");
    assert_eq!(found[3].2, "newest first");
    clinic.simulator.shutdown().await;
}

#[tokio::test]
async fn a_wrong_key_and_a_dead_upstream_are_failures_with_a_cure() {
    let clinic = Clinic::new().await;
    let found = clinic.findings("wrong").await;
    assert!(
        matches!(&found[..], [(Level::Fail, "API key", detail)] if !detail.contains("wrong")),
        "{found:?}"
    );
    clinic.simulator.shutdown().await;
    let found = clinic.findings("wrong").await;
    assert!(matches!(&found[..], [(Level::Fail, "upstream", _)]), "{found:?}");
}

fn page(times: &[&str], date: Option<&str>) -> Page<Row> {
    let rows = times.iter().map(|time| {
        let mut event = crate::event::Event::new("", Arc::from(""), "connection");
        event.time = Some(time.parse().unwrap());
        Ok(Row { event, content: 0, complete: false })
    });
    let at: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
    Page {
        rows: rows.collect(),
        total: None,
        limit: None,
        offset: None,
        server_date: date.map(|date| date.parse().unwrap()),
        asked_at: at,
        answered_at: at,
    }
}

#[test]
fn order_is_judged_from_the_times() {
    let (a, b, c) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z");
    let judge = |times: &[&str]| (order(&page(times, None)).level, order(&page(times, None)).detail);
    assert_eq!(judge(&[c, b, b, a]), (Level::Ok, "newest first".into()));
    assert_eq!(judge(&[a, b, c]), (Level::Ok, "oldest first".into()));
    assert_eq!(judge(&[b, a, c]), (Level::Warn, "the list is not sorted by time".into()));
    assert_eq!(judge(&[a]).0, Level::Ok);
}

#[test]
fn clocks_may_differ_by_seconds_but_not_more() {
    for (date, level) in [
        (Some("2026-01-01T00:00:10Z"), Level::Ok),
        (Some("2026-01-01T00:00:15Z"), Level::Ok),
        (Some("2026-01-01T00:00:16Z"), Level::Warn),
        (Some("2026-01-01T00:00:04Z"), Level::Ok),
        (Some("2026-01-01T00:00:03Z"), Level::Warn),
        (None, Level::Warn),
    ] {
        assert_eq!(skew(&page(&[], date)).level, level, "{date:?}");
    }
}

fn data(path: &Path, retention_bytes: u64) -> Data<'_> {
    Data { path, path_key: "path", retention_bytes, retention_key: "bytes" }
}

#[test]
fn the_disk_is_tried_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("new");
    assert_eq!(data_directory(&data(&inner, 1)).level, Level::Ok);
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_eq!(data_directory(&data(&file.join("below"), 1)).level, Level::Fail);
    assert_eq!(disk_space(&data(dir.path(), u64::MAX)).level, Level::Warn);
    assert_eq!(directory_bytes(dir.path(), DEPTH), 1);
}

#[test]
fn a_port_in_use_is_a_warning() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(port("port http", taken.local_addr().unwrap()).level, Level::Warn);
    assert_eq!(port("port http", "127.0.0.1:0".parse().unwrap()).level, Level::Ok);
}
