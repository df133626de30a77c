//! What benchmarks ask a gateway for.

use std::{error::Error, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// GET, as JSON.
pub async fn get(addr: SocketAddr, path: &str) -> Result<Value, Box<dyn Error + Send + Sync>> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").ok_or("no answer")? + 4;
    Ok(serde_json::from_slice(&answer[body..])?)
}
