//! Messages that stand in the stream where a copied log has no event to give, so that all others keep their
//! sequences: the stream numbers what it is given without a gap.
//!
//! A position that can't be read any more is `<prefix>.ctl.lost`; every mirror makes it a hole, which readers are told
//! as on the log that was copied. Its body names the whole stretch, so that one look at its beginning tells a hole of
//! the stream from damage of a mirror. A position that never held anything is `<prefix>.ctl.unused`, and is passed over
//! like a fence.

use async_nats::{
    HeaderMap,
    jetstream::stream::{RawMessageErrorKind, Stream},
};
use serde::{Deserialize, Serialize};

use super::{message::Draft, subject};

/// Body of what stands for a lost event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lost {
    /// The stretch, both ends inclusive.
    first_seq: u64,
    last_seq: u64,
}

/// Stands for one position of a stretch that was lost.
pub(super) fn lost(prefix: &str, (first_seq, last_seq): (u64, u64)) -> Draft {
    let body = serde_json::to_vec(&Lost { first_seq, last_seq }).unwrap_or_default();
    Draft { subject: subject::lost(prefix), headers: HeaderMap::new(), payload: body.into() }
}

/// Stands for a position that never held an event.
pub(super) fn unused(prefix: &str) -> Draft {
    Draft { subject: subject::unused(prefix), headers: HeaderMap::new(), payload: bytes::Bytes::new() }
}

/// Whether the stream says of a range of sequences, as far as it reaches back, that nothing is left of it. `subject`
/// is that of [`lost`].
///
/// # Errors
/// What the server says.
pub(super) async fn is_told(
    stream: &Stream,
    (first, last): (u64, u64),
    subject: &str,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let first = first.max(stream.get_info().await?.state.first_sequence);
    if first > last {
        // The stream does not have it any more, so a copy made anew would not either.
        return Ok(true);
    }
    match stream.get_raw_message(first).await {
        Ok(message) if message.subject.as_str() == subject => {
            let told = serde_json::from_slice::<Lost>(&message.payload);
            Ok(told.is_ok_and(|told| told.first_seq <= first && last <= told.last_seq))
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}
