//! A server for tests that says exactly what it is told, byte for byte: what a mocking library would correct for us
//! is what is tested here.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What to do with one request.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// Send these bytes and close.
    Bytes(Vec<u8>),
    /// Send these bytes and then nothing, with the connection open.
    Hang(Vec<u8>),
    /// Send these bytes and then spaces until the other side has enough.
    Endless(Vec<u8>),
}

/// A whole answer with a length.
pub(super) fn answer(status: &str, headers: &str, body: &str) -> Reply {
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    Reply::Bytes([head.as_bytes(), body.as_bytes()].concat())
}

/// 200 with JSON.
pub(super) fn json(body: &str) -> Reply {
    answer("200 OK", "content-type: application/json\r\n", body)
}

#[derive(Debug)]
pub(super) struct Server {
    pub base_url: String,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Answers requests in this order, and 418 to any more.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1/globalsim", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let replies = Arc::new(Mutex::new(replies.into_iter().collect::<VecDeque<_>>()));
        let task = tokio::spawn(serve(listener, Arc::clone(&seen), replies));
        Self { base_url, seen, task }
    }

    /// The heads of the requests so far, lower-cased names and all.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().clone()
    }

    /// The request lines so far without method and version.
    pub fn targets(&self) -> Vec<String> {
        self.seen().iter().filter_map(|head| head.split(' ').nth(1).map(str::to_owned)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, seen: Arc<Mutex<Vec<String>>>, replies: Arc<Mutex<VecDeque<Reply>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(one(stream, Arc::clone(&seen), Arc::clone(&replies)));
    }
}

async fn one(mut stream: TcpStream, seen: Arc<Mutex<Vec<String>>>, replies: Arc<Mutex<VecDeque<Reply>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    seen.lock().push(String::from_utf8_lossy(&head).into_owned());
    let reply =
        replies.lock().pop_front().unwrap_or_else(|| answer("418 I'm a teapot", "", "the script is over"));
    match reply {
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        Reply::Hang(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.read_u8().await;
        }
        Reply::Endless(bytes) => {
            let mut more = stream.write_all(&bytes).await;
            while more.is_ok() {
                more = stream.write_all(&[b' '; 4096]).await;
            }
        }
    }
}
