//! Timestamps in every spelling that JSON APIs are known to use.

use jiff::{Timestamp, civil::DateTime, tz::Offset};

/// Understands a timestamp: RFC 3339 with its usual liberties (lower-case letters, space for `T`, no seconds, no
/// zone = UTC, offsets with or without colon), or seconds, milliseconds, microseconds or nanoseconds since the epoch.
pub fn parse(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if !text.is_ascii() || text.len() > 64 {
        return None;
    }
    epoch(text).or_else(|| calendar(text))
}

/// The unit is told by the size: seconds until the year 5138, then milli-, micro- and nanoseconds.
fn epoch(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: i128 = whole.parse().ok()?;
    let nanos_per_unit: i128 = match number {
        0..100_000_000_000 => 1_000_000_000,
        100_000_000_000..100_000_000_000_000 => 1_000_000,
        100_000_000_000_000..100_000_000_000_000_000 => 1_000,
        _ => 1,
    };
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let part: i128 = digits.parse().ok()?;
    let nanos = number.checked_mul(nanos_per_unit)? + part * nanos_per_unit / 1_000_000_000;
    Timestamp::from_nanosecond(nanos).ok()
}

fn calendar(text: &str) -> Option<Timestamp> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' ', '_'])?;
    let (clock, zone) = match rest.find(['Z', 'z', '+', '-', ' ', 'U', 'u', 'G', 'g']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let offset = offset(zone.trim())?;
    let local: DateTime = format!("{date}T{}", clock_of(clock)?).parse().ok()?;
    offset.to_timestamp(local).ok()
}

/// Hours and minutes, perhaps seconds, perhaps a fraction of any length.
fn clock_of(clock: &str) -> Option<String> {
    let (time, fraction) = clock.split_once(['.', ',']).unwrap_or((clock, ""));
    let mut parts = time.split(':');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next().unwrap_or("00"));
    let two = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
    let sound = two(hour) && two(minute) && two(second) && parts.next().is_none();
    if !sound || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction: String = fraction.chars().take(9).collect();
    let dot = if fraction.is_empty() { "" } else { "." };
    Some(format!("{hour}:{minute}:{second}{dot}{fraction}"))
}

fn offset(zone: &str) -> Option<Offset> {
    if ["", "z", "utc", "gmt"].iter().any(|name| zone.eq_ignore_ascii_case(name)) {
        return Some(Offset::UTC);
    }
    let (sign, digits) = match zone.as_bytes().first()? {
        b'+' => (1, &zone[1..]),
        b'-' => (-1, &zone[1..]),
        _ => return None,
    };
    let digits: String = digits.split(':').collect();
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let hours: i32 = digits[..2].parse().ok()?;
    let minutes: i32 = digits.get(2..4).unwrap_or_default().parse().unwrap_or(0);
    if minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_known_spelling_means_the_same_instant() {
        for text in [
            "2025-11-05T08:00:00Z",
            "2025-11-05t08:00:00z",
            "2025-11-05 08:00:00Z",
            "2025-11-05 08:00:00 UTC",
            "2025-11-05T08:00:00",
            "2025-11-05T08:00",
            "2025-11-05 08:00",
            "2025-11-05T08:00Z",
            "2025-11-05T09:00:00+01:00",
            "2025-11-05T09:00:00+0100",
            "2025-11-05T09:00:00 +01",
            "2025-11-05T03:30:00.000-04:30",
            "2025-11-05T08:00:00.000000000000Z",
            " 2025-11-05T08:00:00,0Z ",
            "1762329600",
            "1762329600.000",
            "1762329600000",
            "1762329600000000",
            "1762329600000000000",
        ] {
            let time = parse(text).map(|t| t.to_string());
            assert_eq!(time.as_deref(), Some("2025-11-05T08:00:00Z"), "{text}");
        }
    }

    #[test]
    fn fractions_are_kept() {
        for (text, nanos) in [
            ("2025-11-05T08:00:00.123456789Z", 123_456_789),
            ("2025-11-05T08:00:00.1234567899Z", 123_456_789),
            ("1762329600.25", 250_000_000),
            ("1762329600250", 250_000_000),
        ] {
            assert_eq!(parse(text).unwrap().subsec_nanosecond(), nanos, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "yesterday",
            "2025-11-05",
            "2025-13-05T08:00:00Z",
            "2025-11-05T25:00:00Z",
            "2025-11-05T08Z",
            "2025-11-05T08:00:00+99:99",
            "2025-11-05T08:00:00 CET",
            "05.11.2025 08:00",
            "-1",
            "1e9",
            "99999999999999999999999999999999999999999",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,70}", spelled in "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.,]{0,20}[Zz+0-9: -]{0,8}") {
            let _ = (parse(&text), parse(&spelled));
        }

        #[test]
        fn what_jiff_prints_is_read_back(seconds in -62_135_596_800i64..253_402_300_800, nanos in 0i32..1_000_000_000) {
            let time = Timestamp::new(seconds, nanos).unwrap();
            if time.to_string().starts_with(|c: char| c.is_ascii_digit()) {
                prop_assert_eq!(parse(&time.to_string()), Some(time));
            }
        }
    }
}
