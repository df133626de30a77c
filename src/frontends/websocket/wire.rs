//! The WebSocket wire: frames in by tungstenite, frames out by a path of our own.
//!
//! Frames that a server sends are not masked, so the bytes of a batch are the same for every subscriber. A frame goes
//! out as two slices, a head on the stack (frame header and per-subscriber prefix) and the shared body, by one
//! vectored write; tungstenite would copy each message into a buffer per connection that never shrinks. What the
//! socket does not take at once is kept (a reference to the shared bytes, not a copy) until it does.
//!
//! Reading stays with tungstenite. The pongs and close replies that it wants to send are collected and go out
//! between frames.

mod frame;
mod sink;

use std::{
    future::{Future as _, poll_fn},
    io::{self, IoSlice, Read, Write},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::tungstenite::{
    self, Message, Utf8Bytes,
    error::ProtocolError,
    protocol::{Role, WebSocketConfig, WebSocketContext},
};

use crate::frontends::listener::socket::{self, Socket};

pub(super) use frame::Prefix;
use sink::Io;

/// Bytes of what is read at once, allocated per connection.
const READ_BUFFER: usize = 2 * 1024;
/// Bytes of pongs that wait for a frame to end; tungstenite keeps the newest beyond that.
const CONTROL_MAX: usize = 512;
/// How long a peer may take to answer a close frame.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of a close frame's reason (RFC 6455, section 5.5).
const REASON_MAX: usize = 123;

const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A whole text message.
    Text(Utf8Bytes),
    /// A whole binary message.
    Binary,
    /// A ping or pong, taken care of.
    Control,
    /// The peer closes; its close frame is being answered.
    Close,
    /// Longer than allowed.
    TooLarge,
    /// Text that is no UTF-8.
    NotUtf8,
    /// The peer broke the protocol.
    Violation,
    /// The connection is gone.
    Gone,
}

/// Why a write failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteError {
    /// The peer took nothing for too long.
    Stalled,
    /// The connection is gone.
    Gone,
}

/// Bytes that the socket has not taken yet.
struct Pending {
    head: Bytes,
    body: Bytes,
}

/// An upgraded connection.
pub(super) struct Wire {
    io: Io,
    context: WebSocketContext,
    control: Vec<u8>,
    pending: Option<Box<Pending>>,
    /// Written but not flushed: only TLS keeps bytes back.
    unflushed: bool,
    /// All that was read has been handed out, and the socket had no more.
    drained: bool,
}

impl Wire {
    /// Takes over an upgraded connection; messages may have `message_bytes` until [`Wire::allow`].
    pub(super) fn new(upgraded: Upgraded, message_bytes: usize) -> Self {
        let (io, read) = match upgraded.downcast::<TokioIo<Socket>>() {
            Ok(parts) => {
                let (wire, permit) = parts.io.into_inner().into_parts();
                (Io::Direct { wire, _permit: permit }, parts.read_buf.to_vec())
            }
            Err(upgraded) => (Io::Hyper(Box::new(TokioIo::new(upgraded))), Vec::new()),
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(2 * CONTROL_MAX)
            .max_message_size(Some(message_bytes))
            .max_frame_size(Some(message_bytes));
        let context = WebSocketContext::from_partially_read(read, Role::Server, Some(config));
        Self { io, context, control: Vec::new(), pending: None, unflushed: false, drained: false }
    }

    /// Changes how long a message may be.
    pub(super) fn allow(&mut self, message_bytes: usize) {
        self.context.set_config(|config| {
            config.max_message_size = Some(message_bytes);
            config.max_frame_size = Some(message_bytes);
        });
    }

    /// The next message. After anything but `Text`, `Binary` and `Control` nothing more comes.
    pub(super) fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        // tungstenite clears its buffer before each read; most wake-ups are for something to write.
        if let (true, Io::Direct { wire: socket::Wire::Plain(tcp), .. }) = (self.drained, &self.io)
            && tcp.poll_read_ready(cx).is_pending()
        {
            return Poll::Pending;
        }
        let mut adapter = Adapter { io: &mut self.io, control: &mut self.control, cx };
        let read = self.context.read(&mut adapter);
        self.drained =
            matches!(&read, Err(tungstenite::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock);
        match read {
            Ok(Message::Text(text)) => Poll::Ready(Incoming::Text(text)),
            Ok(Message::Binary(_)) => Poll::Ready(Incoming::Binary),
            Ok(Message::Close(_)) => {
                // Lets tungstenite queue its answer; it says that the connection is closed, which is meant.
                let _ = self.context.flush(&mut adapter);
                Poll::Ready(Incoming::Close)
            }
            Ok(_) => {
                let _ = self.context.flush(&mut adapter);
                Poll::Ready(Incoming::Control)
            }
            Err(_) if self.drained => Poll::Pending,
            Err(tungstenite::Error::Capacity(_)) => Poll::Ready(Incoming::TooLarge),
            Err(tungstenite::Error::Utf8(_)) => Poll::Ready(Incoming::NotUtf8),
            Err(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                Poll::Ready(Incoming::Gone)
            }
            Err(tungstenite::Error::Protocol(_)) => Poll::Ready(Incoming::Violation),
            Err(_) => Poll::Ready(Incoming::Gone),
        }
    }

    /// Whether everything given to it has left, so that a frame can be sent.
    pub(super) fn is_clear(&self) -> bool {
        self.pending.is_none() && self.control.is_empty() && !self.unflushed
    }

    /// Sends a text frame: one vectored write; what the socket does not take is kept for [`Wire::flush`]. The wire
    /// must be clear.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        prefix: &Prefix,
        body: &Bytes,
    ) -> io::Result<()> {
        debug_assert!(self.is_clear());
        let frame = prefix.frame(body.len());
        self.poll_start(cx, frame.as_slice(), body)
    }

    fn poll_start(&mut self, cx: &mut Context<'_>, head: &[u8], body: &Bytes) -> io::Result<()> {
        let mut done = 0;
        while done < head.len() + body.len() {
            let rest = [
                IoSlice::new(&head[done.min(head.len())..]),
                IoSlice::new(&body[done.saturating_sub(head.len())..]),
            ];
            match Pin::new(&mut self.io).poll_write_vectored(cx, &rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => done += n,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.pending = Some(Box::new(Pending {
                        head: Bytes::copy_from_slice(&head[done.min(head.len())..]),
                        body: body.slice(done.saturating_sub(head.len())..),
                    }));
                    return Ok(());
                }
            }
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => {
                self.unflushed = true;
                Ok(())
            }
        }
    }

    /// Sends what is left of a frame, then pongs, until the wire is clear.
    ///
    /// # Errors
    /// [`WriteError::Stalled`] when the peer took nothing for `limit`; what is left stays.
    pub(super) async fn flush(&mut self, limit: Duration) -> Result<(), WriteError> {
        let mut stall = std::pin::pin!(sleep(limit));
        poll_fn(|cx| {
            loop {
                match self.poll_some(cx) {
                    Poll::Ready(Ok(true)) => stall.as_mut().reset(Instant::now() + limit),
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(WriteError::Gone)),
                    Poll::Pending => {
                        ready!(stall.as_mut().poll(cx));
                        return Poll::Ready(Err(WriteError::Stalled));
                    }
                }
            }
        })
        .await
    }

    /// Writes a part of what waits; false when nothing does.
    fn poll_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.pending.is_none() && !self.control.is_empty() {
            let head = Bytes::from(std::mem::take(&mut self.control));
            self.pending = Some(Box::new(Pending { head, body: Bytes::new() }));
        }
        let Some(pending) = &mut self.pending else {
            if self.unflushed {
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                self.unflushed = false;
            }
            return Poll::Ready(Ok(false));
        };
        let rest = [IoSlice::new(&pending.head), IoSlice::new(&pending.body)];
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &rest))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_head = n.min(pending.head.len());
        pending.head.advance(of_head);
        pending.body.advance(n - of_head);
        if pending.head.is_empty() && pending.body.is_empty() {
            self.pending = None;
            self.unflushed = true;
        }
        Poll::Ready(Ok(true))
    }

    /// Sends a text frame whole.
    pub(super) async fn send(&mut self, text: String, limit: Duration) -> Result<(), WriteError> {
        self.flush(limit).await?;
        let body = Bytes::from(text);
        poll_fn(|cx| Poll::Ready(self.poll_send(cx, &Prefix::EMPTY, &body)))
            .await
            .map_err(|_| WriteError::Gone)?;
        self.flush(limit).await
    }

    /// Sends a ping, which keeps proxies from taking a silent connection for a dead one.
    pub(super) async fn ping(&mut self, limit: Duration) -> Result<(), WriteError> {
        self.control.extend_from_slice(&[PING, 0]);
        self.flush(limit).await
    }

    /// Ends the connection: finishes the frame under way, says why, waits for the peer to go. Where that does not
    /// succeed within `limit` the connection is reset. `reason` is ASCII and cut to what a close frame holds.
    pub(super) async fn close(mut self, code: u16, reason: &str, limit: Duration) {
        let said = timeout(limit, async {
            self.flush(limit).await?;
            let reason = &reason.as_bytes()[..reason.len().min(REASON_MAX)];
            self.control.extend_from_slice(&[CLOSE, 2 + reason.len() as u8]);
            self.control.extend_from_slice(&code.to_be_bytes());
            self.control.extend_from_slice(reason);
            self.flush(limit).await
        });
        let said = matches!(said.await, Ok(Ok(())));
        self.end(said).await;
    }

    /// Ends the connection after the peer's close frame.
    pub(super) async fn answer_close(mut self, limit: Duration) {
        let answered = self.flush(limit).await.is_ok();
        self.end(answered).await;
    }

    /// Ends the connection at once; what the peer did not take is lost.
    pub(super) fn reset(self) {
        if let Io::Direct { wire, .. } = &self.io {
            wire.reset_on_drop();
        }
    }

    async fn end(mut self, orderly: bool) {
        if !orderly {
            return self.reset();
        }
        // Closing with unread bytes would reset the connection, and the close frame may be lost with it.
        let _ = timeout(LINGER, async {
            self.io.shutdown().await?;
            let mut ignored = [0; 512];
            loop {
                let mut buf = ReadBuf::new(&mut ignored);
                poll_fn(|cx| Pin::new(&mut self.io).poll_read(cx, &mut buf)).await?;
                if buf.filled().is_empty() {
                    return io::Result::Ok(());
                }
            }
        })
        .await;
    }
}

/// The socket as tungstenite wants it: it reads from the socket, and writes to `control`.
struct Adapter<'a, 'b> {
    io: &'a mut Io,
    control: &'a mut Vec<u8>,
    cx: &'a mut Context<'b>,
}

impl Read for Adapter<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(into);
        match Pin::new(&mut *self.io).poll_read(self.cx, &mut buf) {
            Poll::Ready(result) => result.map(|()| buf.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Adapter<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.control.len() + bytes.len() > CONTROL_MAX {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.control.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
