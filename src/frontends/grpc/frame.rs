//! gRPC frames over bytes that are already encoded, and reading the requests.
//!
//! tonic's own encoder copies every message into a buffer of the stream and keeps the last buffer while the stream
//! is idle, which for batches of up to 256 KiB would be most of the gateway's memory. Here a large batch goes out as
//! the very bytes that the hub shares among all subscribers, behind five bytes of frame header; a small one is
//! copied once into an exact piece, which is freed when it is written. Frames are sent uncompressed: compressing
//! shared bytes once per subscriber would cost more than all else together.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes};
use futures_util::Stream;
use http::{HeaderMap, HeaderValue};
use http_body::Body;
use prost::Message;
use tonic::{
    Code, Status,
    codec::{BufferSettings, CompressionEncoding, DecodeBuf, Decoder, Streaming},
};

use crate::frontends::ApiError;

/// Flag and length in front of each gRPC message.
const HEADER_BYTES: usize = 5;

/// Up to this size a batch is copied behind its header, so that it is one HTTP/2 DATA frame (16 KiB by default)
/// and one write; beyond it, copying costs more than the extra frame.
const COPY_MAX: usize = 16 * 1024 - HEADER_BYTES;

/// Largest request message, decompressed.
pub(super) const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// How long the message of a call may take to come; a stream that opens and says nothing would stay for ever.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// What a request decoder holds per stream while it waits.
const REQUEST_BUFFER: usize = 512;

/// One gRPC message, ready for the wire.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    head: Bytes,
    shared: Option<Bytes>,
}

impl Frame {
    /// A message encoded here: control messages, small and rare.
    pub(super) fn message(message: &impl Message) -> Self {
        let len = message.encoded_len();
        let mut out = header(len, len);
        // A Vec grows as needed: encoding into it can't run out of room.
        let _ = message.encode(&mut out);
        Self { head: out.into(), shared: None }
    }

    /// A message whose body is ready but for `fields`, encoded fields of the same message that go in front: the
    /// order of fields does not matter to a protobuf reader.
    pub(super) fn batch(fields: &[u8], body: Bytes) -> Self {
        let len = fields.len() + body.len();
        if len > COPY_MAX {
            let mut head = header(len, fields.len());
            head.put_slice(fields);
            return Self { head: head.into(), shared: Some(body) };
        }
        let mut out = header(len, len);
        out.put_slice(fields);
        out.put_slice(&body);
        Self { head: out.into(), shared: None }
    }
}

fn header(message_bytes: usize, room: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + room);
    out.put_u8(0);
    // Batches end at 256 KiB and one event is far below 4 GiB: the log refuses longer bodies.
    out.put_u32(u32::try_from(message_bytes).unwrap_or(u32::MAX));
    out
}

/// The body of a streamed answer: frames, then the status as trailers.
#[derive(Debug)]
pub(super) struct FrameBody<S> {
    frames: Option<S>,
    shared: Option<Bytes>,
}

impl<S> FrameBody<S> {
    pub(super) fn new(frames: S) -> Self {
        Self { frames: Some(frames), shared: None }
    }
}

impl<S: Stream<Item = Result<Frame, Status>> + Unpin> Body for FrameBody<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        if let Some(shared) = self.shared.take() {
            return Poll::Ready(Some(Ok(http_body::Frame::data(shared))));
        }
        let Some(frames) = &mut self.frames else { return Poll::Ready(None) };
        let status = match std::task::ready!(Pin::new(frames).poll_next(cx)) {
            Some(Ok(frame)) => {
                self.shared = frame.shared;
                return Poll::Ready(Some(Ok(http_body::Frame::data(frame.head))));
            }
            Some(Err(status)) => status,
            None => Status::new(Code::Ok, ""),
        };
        // The subscription and its place in the registry end here, not when the peer has read the trailers.
        self.frames = None;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
        }
        Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_none() && self.shared.is_none()
    }
}

/// The answer of a unary method.
pub(super) fn unary_response(answer: Result<Frame, Status>) -> http::Response<tonic::body::Body> {
    match answer {
        Ok(frame) => streaming_response(futures_util::stream::iter([Ok(frame)])),
        Err(status) => status.into_http(),
    }
}

/// The answer of a streaming method.
pub(super) fn streaming_response<S>(frames: S) -> http::Response<tonic::body::Body>
where
    S: Stream<Item = Result<Frame, Status>> + Send + Unpin + 'static,
{
    let mut response = http::Response::new(tonic::body::Body::new(FrameBody::new(frames)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The messages of a request.
///
/// # Errors
/// UNIMPLEMENTED for a compression other than gzip.
pub(super) fn requests<M: Message + Default + 'static>(
    request: http::Request<tonic::body::Body>,
) -> Result<Streaming<M>, Status> {
    let encoding = match request.headers().get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => None,
        Some(b"gzip") => Some(CompressionEncoding::Gzip),
        Some(_) => {
            let mut status = Status::unimplemented("requests are taken uncompressed or as gzip");
            status
                .metadata_mut()
                .insert("grpc-accept-encoding", tonic::metadata::MetadataValue::from_static("identity,gzip"));
            return Err(status);
        }
    };
    let decoder = MessageDecoder(std::marker::PhantomData);
    Ok(Streaming::new_request(decoder, request.into_body(), encoding, Some(REQUEST_BYTES_MAX)))
}

/// The one message of a request.
///
/// # Errors
/// INVALID_ARGUMENT where there is none, RESOURCE_EXHAUSTED where it is too long, DEADLINE_EXCEEDED where it does not
/// come, otherwise as [`requests`].
pub(super) async fn request<M: Message + Default + 'static>(
    request: http::Request<tonic::body::Body>,
) -> Result<M, Status> {
    let mut messages = requests(request)?;
    let message = tokio::time::timeout(REQUEST_TIME, messages.message())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no message came within {REQUEST_TIME:?}")))?
        .map_err(refused)?;
    message.ok_or_else(|| Status::invalid_argument("the request message is missing"))
}

/// tonic answers OUT_OF_RANGE for a message that is too long; here that code means a cursor that can't be used.
pub(super) fn refused(status: Status) -> Status {
    if status.code() != Code::OutOfRange {
        return status;
    }
    let message = format!("a request message holds at most {REQUEST_BYTES_MAX} bytes");
    super::status::status(&ApiError::new(crate::frontends::Code::TooLarge, message))
}

/// prost, with a small buffer.
#[derive(Debug)]
pub(super) struct MessageDecoder<M>(std::marker::PhantomData<fn() -> M>);

impl<M: Message + Default> Decoder for MessageDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        // Not INTERNAL: it is the client's message that can't be read.
        M::decode(buffer)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("the message can't be decoded: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(REQUEST_BUFFER, COPY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::proto;

    async fn pieces(frames: Vec<Result<Frame, Status>>) -> (Vec<Bytes>, HeaderMap) {
        let mut body = FrameBody::new(stream::iter(frames));
        let (mut pieces, mut trailers) = (Vec::new(), HeaderMap::new());
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(data) => pieces.push(data),
                Err(frame) => trailers = frame.into_trailers().unwrap(),
            }
        }
        assert!(body.is_end_stream());
        (pieces, trailers)
    }

    fn decode(frame: &[u8]) -> proto::InteractResponse {
        assert_eq!(frame[0], 0, "uncompressed");
        assert_eq!(u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize, frame.len() - 5);
        proto::InteractResponse::decode(&frame[5..]).unwrap()
    }

    #[tokio::test]
    async fn small_batches_are_one_piece_and_large_ones_are_not_copied() {
        let fields = proto::InteractResponse { subscription_id: "s".into(), ..Default::default() };
        let fields = fields.encode_to_vec();
        let body = |len: usize| {
            let events = vec![proto::Event { id: "x".repeat(len), ..Default::default() }];
            Bytes::from(
                proto::InteractResponse { events, cursor: "c".into(), ..Default::default() }.encode_to_vec(),
            )
        };
        let large = body(COPY_MAX);
        let frames = vec![Ok(Frame::batch(&fields, body(100))), Ok(Frame::batch(&fields, large.clone()))];
        let (pieces, trailers) = pieces(frames).await;
        assert_eq!(pieces.len(), 3);
        let small = decode(&pieces[0]);
        assert_eq!((small.subscription_id.as_str(), small.events[0].id.len()), ("s", 100));
        assert_eq!(pieces[2].as_ptr(), large.as_ptr(), "the shared bytes themselves");
        let whole = decode(&pieces[1..].concat());
        assert_eq!((whole.cursor.as_str(), whole.events[0].id.len()), ("c", COPY_MAX));
        assert_eq!(trailers["grpc-status"], "0");
    }

    #[tokio::test]
    async fn an_error_ends_the_body_with_its_status_in_the_trailers() {
        let message = Frame::message(&proto::InteractResponse::default());
        let frames = vec![Ok(message.clone()), Err(Status::out_of_range("gone")), Ok(message)];
        let (pieces, trailers) = pieces(frames).await;
        assert_eq!(pieces, [Bytes::from_static(&[0; HEADER_BYTES])]);
        assert_eq!(trailers["grpc-status"], "11");
        assert_eq!(trailers["grpc-message"], "gone");
    }
}
