//! The least that fan-out can cost: one thread, ready-made bytes, one vectored write per connection and batch.

use std::{
    error::Error,
    io::{BufRead as _, IoSlice, Write as _},
    net::{TcpListener, TcpStream},
};

use jiff::{SignedDuration, Timestamp};
use simcast::event::json;

/// Serves as many connections as the second argument says, a batch per line of standard input.
pub fn run() -> Result<(), Box<dyn Error>> {
    let subscribers: usize = std::env::args().nth(2).ok_or("how many subscribers?")?.parse()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let mut sockets = Vec::with_capacity(subscribers);
    for _ in 0..subscribers {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    let observed: Timestamp = "2025-11-05T08:00:00.412Z".parse()?;
    let mut n = 0;
    for line in std::io::stdin().lock().lines() {
        let size: u64 = line?.trim().parse()?;
        if size == 0 {
            println!("ready");
            continue;
        }
        let mut chunk = Vec::new();
        for i in n..n + size {
            let sealed = super::event(i).event.seal(observed, SignedDuration::from_secs(300))?;
            chunk.extend_from_slice(&json::with_cursor(&sealed.at(i + 1), 1));
            chunk.push(b',');
        }
        for (i, socket) in sockets.iter_mut().enumerate() {
            let prefix = format!(
                r#"????{{"type":"events","sub":"default","n":{},"cursor":"AQAAAAAAAAAJAAAAAAAAAAe2Xc3s","items":["#,
                n * 1000 + i as u64
            );
            write_both(socket, prefix.as_bytes(), &chunk)?;
        }
        n += size;
    }
    Ok(())
}

fn write_both(socket: &mut TcpStream, prefix: &[u8], chunk: &[u8]) -> std::io::Result<()> {
    let mut slices = [IoSlice::new(prefix), IoSlice::new(chunk)];
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = socket.write_vectored(rest)?;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
