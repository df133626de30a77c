//! `simcast demo` as a newcomer meets it: it says where to look, shows events, ends on Ctrl-C, and keeps its log.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Stdio},
};

use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::timeout,
};

use super::support::{PATIENCE, get, signal, simcast};

/// What the table of events begins with.
const HEAD: &str = "TIME ";

struct Demo {
    child: Child,
    lines: UnboundedReceiver<String>,
    /// Everything before the table.
    introduction: Vec<String>,
}

impl Demo {
    async fn start(data_dir: &Path) -> Self {
        let child = simcast()
            .args(["demo", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--events-per-second", "5", "--data-dir"])
            .arg(data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::unbounded_channel();
        let mut demo = Self { child, lines, introduction: Vec::new() };
        let out = BufReader::new(demo.child.stdout.take().unwrap());
        // Read to the end, so that the pipe never fills; ends with the process.
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok());
        });
        loop {
            let line = demo.line().await;
            if line.starts_with(HEAD) {
                return demo;
            }
            demo.introduction.push(line);
        }
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.recv()).await;
        line.unwrap_or_else(|_| panic!("nothing is shown after {:?}", self.introduction))
            .unwrap_or_else(|| panic!("the demo ended after {:?}", self.introduction))
    }

    /// The line to paste that begins so.
    fn to_paste(&self, command: &str) -> &str {
        let found = self.introduction.iter().map(|line| line.trim()).find(|line| line.starts_with(command));
        found.unwrap_or_else(|| panic!("no line for {command} in {:?}", self.introduction))
    }

    fn http(&self) -> SocketAddr {
        let address = self.to_paste("curl -N 'http://").trim_start_matches("curl -N 'http://");
        address.split('/').next().unwrap().parse().unwrap()
    }

    /// Ctrl-C, then its exit code.
    async fn interrupt(mut self) -> Option<i32> {
        signal(self.child.id(), "INT");
        let ended = tokio::task::spawn_blocking(move || self.child.wait().unwrap().code());
        timeout(PATIENCE, ended).await.expect("it ends").unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Only for tests that fail half-way; a child that has ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_shows_events_ends_on_ctrl_c_and_keeps_its_log() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut first = Demo::start(dir.path()).await;
    let http = first.http();
    assert!(first.to_paste("curl -N ").ends_with("/v1/events/sse?last=3'"), "{:?}", first.introduction);
    assert!(
        first.to_paste("wscat -c ").starts_with(&format!("wscat -c 'ws://{http}/v1/events/ws?")),
        "{:?}",
        first.introduction
    );
    let grpcurl = first.to_paste("grpcurl -plaintext ");
    assert!(grpcurl.ends_with(" simcast.v1.EventService/Subscribe"), "{grpcurl}");
    assert!(!grpcurl.contains(":0 ") && http.port() != 0, "the ports are those that were taken: {grpcurl}");

    let row = first.line().await;
    let mut columns = row.split_whitespace().skip(2);
    let (event_type, iccid) = (columns.next().unwrap(), columns.next().unwrap());
    let types = ["connection", "disconnection", "network_change", "data_usage_update", "location_update"];
    assert!(types.contains(&event_type), "{row}");
    assert!((18..=22).contains(&iccid.len()) && iccid.bytes().all(|b| b.is_ascii_digit()), "{row}");

    let (status, page) =
        get(http, &format!("/v1/events?iccid={iccid}&event_type={event_type}&limit=1")).await;
    assert_eq!(status, 200, "{page}");
    let kept = page["events"][0].clone();
    let id = kept["id"].as_str().unwrap().to_owned();
    assert_eq!(first.interrupt().await, Some(0));

    let second = Demo::start(dir.path()).await;
    let goes_on = second.introduction.iter().any(|line| line.contains("goes on behind"));
    assert!(goes_on, "{:?}", second.introduction);
    let (status, again) = get(second.http(), &format!("/v1/events/{id}")).await;
    assert_eq!((status, &again), (200, &kept), "the same event at the same cursor");
    assert_eq!(second.interrupt().await, Some(0));
}
