//! A receiver that does as little as a receiver can: reads requests, answers 200, counts, and keeps how old each was.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    process::{Child as Process, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::stage::Outcome;

/// What arrived since the last look.
#[derive(Debug, Clone, Copy)]
pub struct Got {
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
}

/// What the receiver keeps.
#[derive(Default)]
struct Seen {
    ages: Vec<u64>,
    /// The newest event of each SIM, and how many came behind a newer one.
    newest: HashMap<u64, u64>,
    disordered: u64,
}

impl Seen {
    fn order(&mut self, body: &[u8]) {
        let Some(number) = number_after(body, b"\"id\":\"evt_") else { return };
        let Some(sim) = number_after(body, b"\"subject\":\"") else { return };
        let newest = self.newest.entry(sim).or_insert(0);
        self.disordered += u64::from(number < *newest);
        *newest = number.max(*newest);
    }
}

/// Runs as a process of its own until it is killed; prints its address.
pub fn run() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let seen = Arc::new(Mutex::new(Seen::default()));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(stream, seen.clone()));
        }
    })
}

/// One connection. Requests are those of the gateway and of wrk: with a content-length, or without a body.
async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Seen>>) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let Some(end) = find(&buffer, b"\r\n\r\n") else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let length = number_after(&buffer[..end], b"content-length: ").unwrap_or(0) as usize;
        while buffer.len() < end + 4 + length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        if buffer.starts_with(b"POST /hang") {
            std::future::pending::<()>().await;
        }
        if buffer.starts_with(b"GET /disordered") {
            let body = seen.lock().expect("no panic holds it").disordered.to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(head.as_bytes()).await?;
        } else if buffer.starts_with(b"GET /take") {
            let mut taken = std::mem::take(&mut seen.lock().expect("no panic holds it").ages);
            taken.sort_unstable();
            let at = |part: f64| taken.get((taken.len() as f64 * part) as usize).copied().unwrap_or(0);
            let body = format!("{} {} {}", taken.len(), at(0.5), at(0.99));
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(head.as_bytes()).await?;
        } else {
            let sent = number_after(&buffer[end..], b"\"sent_us\":").unwrap_or(0);
            let age = now_us().saturating_sub(sent);
            {
                let mut seen = seen.lock().expect("no panic holds it");
                seen.ages.push(age);
                if buffer.starts_with(b"POST /ordered") {
                    seen.order(&buffer[end..end + 4 + length]);
                }
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
        }
        buffer.drain(..end + 4 + length);
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn number_after(bytes: &[u8], wanted: &[u8]) -> Option<u64> {
    let at =
        bytes.windows(wanted.len()).position(|window| window.eq_ignore_ascii_case(wanted))? + wanted.len();
    let digits: Vec<u8> = bytes[at..].iter().copied().take_while(u8::is_ascii_digit).collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

pub fn now_us() -> u64 {
    u64::try_from(simcast::clock::system().now().as_microsecond()).unwrap_or(0)
}

/// The process, ended when dropped.
pub struct Child {
    process: Process,
    address: String,
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Child {
    pub fn start() -> Outcome<Self> {
        let mut process =
            Command::new(std::env::current_exe()?).arg("receiver").stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        BufReader::new(process.stdout.take().ok_or("no output")?).read_line(&mut address)?;
        Ok(Self { process, address: address.trim().to_owned() })
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What arrived since the last look.
    pub async fn take(&self) -> Outcome<Got> {
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(b"GET /take HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await?;
        let text = std::str::from_utf8(&answer[..read])?;
        let body = text.split("\r\n\r\n").nth(1).ok_or("no body")?;
        let numbers: Vec<u64> = body.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [count, p50_us, p99_us] = numbers[..] else { return Err("three numbers are wanted".into()) };
        Ok(Got { count, p50_us, p99_us })
    }

    /// Events that came behind a newer one of their SIM.
    pub async fn disordered(&self) -> Outcome<u64> {
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(b"GET /disordered HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await?;
        let text = std::str::from_utf8(&answer[..read])?;
        Ok(text.split("\r\n\r\n").nth(1).ok_or("no body")?.parse()?)
    }

    /// Requests a second that wrk gets through with the body of an event over 16 connections.
    pub async fn ceiling(&self, seconds: u64) -> Outcome<f64> {
        let script = std::env::temp_dir().join(format!("simcast-bench-{}.lua", std::process::id()));
        let event = super::stage::body(1)?;
        let escaped = event.replace('\\', "\\\\").replace('\'', "\\'");
        std::fs::write(
            &script,
            format!(
                "wrk.method='POST'\nwrk.headers['content-type']='application/cloudevents+json'\nwrk.body='{escaped}'\n"
            ),
        )?;
        let output = Command::new("wrk")
            .args(["-t1", "-c16", &format!("-d{seconds}s"), "-s"])
            .arg(&script)
            .arg(self.url("/ok/0"))
            .output()
            .map_err(|error| format!("wrk is needed (Debian: wrk): {error}"))?;
        std::fs::remove_file(&script)?;
        let text = String::from_utf8(output.stdout)?;
        let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(rate.ok_or("wrk printed no rate")?.trim().parse()?)
    }
}
