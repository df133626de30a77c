//! By which read of upstream an event came: kept with it as long as it is stored, so that anyone may ask later when
//! it was visible and where the time went.

use jiff::Timestamp;

/// Which reader found a row. The numbers lie in stored events: a new one takes the next, none is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Via {
    /// The newest page.
    Tail = 1,
    /// A walk through a backlog.
    CatchUp = 2,
    /// A walk that looks for late rows.
    Sweep = 3,
    /// The first read of the past.
    Backfill = 4,
    /// A row that was completed later.
    Details = 5,
    /// A row that the log had lost.
    Repair = 6,
    /// A closed day whose counts differed.
    Ledger = 7,
    /// A SIM's list of sessions.
    Sessions = 8,
    /// The SIM of a device, looked up.
    Devices = 9,
}

impl Via {
    /// Every reader.
    pub const ALL: [Self; 9] = [
        Self::Tail,
        Self::CatchUp,
        Self::Sweep,
        Self::Backfill,
        Self::Details,
        Self::Repair,
        Self::Ledger,
        Self::Sessions,
        Self::Devices,
    ];

    /// As a metric label, and as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tail => "tail",
            Self::CatchUp => "catch_up",
            Self::Sweep => "sweep",
            Self::Backfill => "backfill",
            Self::Details => "details",
            Self::Repair => "repair",
            Self::Ledger => "ledger",
            Self::Sessions => "sessions",
            Self::Devices => "devices",
        }
    }

    /// The reader of a name; None where no reader has it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|via| via.as_str() == name)
    }

    /// The reader of a number; None where no reader has it.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|via| *via as u8 == code)
    }
}

/// How an event came. All times by the gateway's clock, microseconds since the epoch.
///
/// The event became visible after `not_seen_us`, where that is known, and before `answered_us`. An upstream that
/// answers out of a cache shows rows later than it has them; what is told here is when it showed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provenance {
    /// Who read it first.
    pub via: Via,
    /// When the answer that first showed it was asked for.
    pub asked_us: i64,
    /// When that answer was there.
    pub answered_us: i64,
    /// When the last answer was asked for that would have shown it, and did not.
    pub not_seen_us: Option<i64>,
}

/// Stored in place of `not_seen_us` where there is none.
const NEVER: i64 = i64::MIN;

/// Bytes of the stored form.
pub(super) const BYTES: usize = 25;

impl Provenance {
    /// Out of times.
    pub fn new(
        via: Via,
        asked_at: Timestamp,
        answered_at: Timestamp,
        not_seen_at: Option<Timestamp>,
    ) -> Self {
        Self {
            via,
            asked_us: asked_at.as_microsecond(),
            answered_us: answered_at.as_microsecond(),
            not_seen_us: not_seen_at.map(Timestamp::as_microsecond),
        }
    }

    /// Appends the stored form, little-endian: via u8 (0 for events that were not read), then the three times.
    pub(super) fn encode(provenance: Option<Self>, out: &mut Vec<u8>) {
        let (via, times) = provenance.map_or((0, [0, 0, NEVER]), |known| {
            (known.via as u8, [known.asked_us, known.answered_us, known.not_seen_us.unwrap_or(NEVER)])
        });
        out.push(via);
        for time in times {
            out.extend_from_slice(&time.to_le_bytes());
        }
    }

    /// Reads the stored form; the outer None where it is none.
    pub(super) fn decode(bytes: &[u8; BYTES]) -> Option<Option<Self>> {
        if bytes[0] == 0 {
            return Some(None);
        }
        let time = |at: usize| {
            let slice = bytes.get(at..at + 8)?;
            Some(i64::from_le_bytes(slice.try_into().ok()?))
        };
        Some(Some(Self {
            via: Via::from_code(bytes[0])?,
            asked_us: time(1)?,
            answered_us: time(9)?,
            not_seen_us: time(17).filter(|time| *time != NEVER),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn provenance_survives(
            via in proptest::sample::select(&Via::ALL[..]),
            asked_us: i64,
            answered_us: i64,
            not_seen_us in proptest::option::of(-1_000_000_000_i64..),
            known: bool,
        ) {
            let provenance = known.then_some(Provenance { via, asked_us, answered_us, not_seen_us });
            let mut bytes = Vec::new();
            Provenance::encode(provenance, &mut bytes);
            prop_assert_eq!(Provenance::decode(bytes.as_slice().try_into().unwrap()), Some(provenance));
        }
    }

    #[test]
    fn numbers_and_names_of_readers_are_their_own() {
        for (n, via) in Via::ALL.into_iter().enumerate() {
            assert_eq!(via as usize, n + 1, "{via:?}: stored events hold it");
            assert_eq!(Via::from_code(via as u8), Some(via));
        }
        let names: std::collections::HashSet<_> = Via::ALL.iter().map(|via| via.as_str()).collect();
        assert_eq!(names.len(), Via::ALL.len());
        assert_eq!(Via::from_code(0), None);
        let unknown = [u8::MAX; BYTES];
        assert_eq!(Provenance::decode(&unknown), None);
    }
}
