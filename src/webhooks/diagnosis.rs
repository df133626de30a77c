//! Why a signature fails, for whoever builds a receiver: not that it does, but which of the usual mistakes it is.
//!
//! Most receivers that fail verify a body that is not the one that was sent: parsed and written again, with a line end
//! added, or cut. So the body that is at hand is brought into the forms from which it may have come, and each is tried.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use ring::hmac;
use serde_json::Value;

use super::signature::{PREFIX, Secret, verify};
use crate::event::json;

/// How far clocks may be apart, as every official library has it.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// Timestamps from here on are none in seconds: that would be the year 5138.
const MILLISECONDS_MIN: i64 = 100_000_000_000;
/// Bytes of a signature.
const TAG_BYTES: usize = 32;

/// A request as its receiver has it.
#[derive(Debug, Clone)]
pub struct Received<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// `webhook-timestamp`.
    pub timestamp: &'a str,
    /// `webhook-signature`.
    pub signature: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// One thing that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub cure: &'static str,
}

fn finding(what: impl Into<String>, cure: &'static str) -> Finding {
    Finding { what: what.into(), cure }
}

/// What is wrong with a request; nothing where it verifies.
pub fn diagnose(secret: &str, received: &Received<'_>, now: Timestamp, tolerance: Duration) -> Vec<Finding> {
    let mut found = headers(received);
    if let Some(age) = age(received.timestamp, now)
        && age.unsigned_abs() > tolerance.as_secs()
    {
        let side = if age > 0 { "old" } else { "in the future" };
        found.push(finding(
            format!(
                "the timestamp is {} s {side}; {} s are allowed",
                age.unsigned_abs(),
                tolerance.as_secs()
            ),
            "set this machine's clock, or verify when the request comes: each attempt is signed anew",
        ));
    }
    let parsed = match Secret::parse(secret) {
        Ok(parsed) => parsed,
        Err(error) => {
            found.push(finding(error.to_string(), "use the secret that came with the webhook, whole"));
            return found;
        }
    };
    let secrets = std::slice::from_ref(&parsed);
    let fits = |id: &str, at: &str, signature: &str, body: &[u8]| verify(secrets, id, at, signature, body);
    let Received { id, timestamp, signature, body } = *received;
    if fits(id, timestamp, signature, body) {
        return found;
    }
    for (form, what, cure) in bodies(body) {
        if fits(id, timestamp, signature, &form) {
            found.push(finding(what, cure));
            return found;
        }
    }
    let bare: Vec<String> = signature.split_whitespace().map(|one| format!("v1,{one}")).collect();
    if fits(id, timestamp, &bare.join(" "), body) {
        found.push(finding("the signature lacks its v1,", "pass the whole header webhook-signature on"));
        return found;
    }
    if fits(id.trim(), timestamp.trim(), signature.trim(), body) {
        found.push(finding("a header has spaces around its value", "trim the values of headers"));
        return found;
    }
    if text_as_key(secret).iter().any(|key| fits_key(key, received)) {
        found.push(finding(
            "the signature was made with the secret's text as key",
            "decode the base64 behind whsec_; its bytes are the key",
        ));
        return found;
    }
    found.extend(suspicion(received));
    found.push(finding(
        "no form of this body fits this secret",
        "compare the secret with the webhook's (rotate-secret makes a new one), and keep the body as the bytes that came, \
         before anything parses, decodes or cuts them",
    ));
    found
}

/// What can't be proven, but is plain to see.
fn suspicion(received: &Received<'_>) -> Option<Finding> {
    let length = received.body.len();
    let is_whole = |one: &str| {
        one.strip_prefix("v1,")
            .is_some_and(|tag| STANDARD.decode(tag).is_ok_and(|tag| tag.len() == TAG_BYTES))
    };
    let signature = received.signature.trim();
    if signature.starts_with("v1,") && !signature.split_whitespace().any(is_whole) {
        return Some(finding(
            "webhook-signature is not v1, and base64 of 32 bytes: it may have been cut, or written in hex",
            "pass the header on unchanged",
        ));
    }
    if length == 0 {
        return Some(finding(
            "the body is empty",
            "a body can be read once: take its bytes before the framework does, and hand them on",
        ));
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(received.body) {
        Err(error) if error.is_eof() => Some(finding(
            format!("the body ends in the middle of its JSON, after {length} bytes"),
            "raise the limit on bodies where it was cut, and read as many bytes as content-length says",
        )),
        _ => None,
    }
}

fn headers(received: &Received<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, value) in [
        ("webhook-id", received.id),
        ("webhook-timestamp", received.timestamp),
        ("webhook-signature", received.signature),
    ] {
        if value.trim().is_empty() {
            found.push(finding(
                format!("the header {name} is missing"),
                "let the proxy in front of the receiver pass headers that begin with webhook- on",
            ));
        }
    }
    let timestamp = received.timestamp.trim();
    if timestamp.parse::<i64>().is_ok_and(|at| at >= MILLISECONDS_MIN) {
        let what = format!("webhook-timestamp is {timestamp}, which are milliseconds and not seconds");
        found.push(finding(what, "pass the header on unchanged"));
    }
    if !timestamp.is_empty() && timestamp.parse::<i64>().is_err() {
        let what = format!("webhook-timestamp is {timestamp:?}, not seconds since 1970");
        found.push(finding(what, "pass the header on unchanged"));
    }
    let has_v1 = received.signature.split_whitespace().any(|one| one.starts_with("v1,"));
    if !received.signature.trim().is_empty() && !has_v1 && received.signature.contains(',') {
        found.push(finding(
            "webhook-signature holds no v1 signature",
            "this gateway signs by v1 (HMAC-SHA256)",
        ));
    }
    found
}

/// Seconds since the timestamp; negative where it is in the future. None for milliseconds, which say nothing of clocks.
fn age(timestamp: &str, now: Timestamp) -> Option<i64> {
    let at: i64 = timestamp.trim().parse().ok().filter(|at| *at < MILLISECONDS_MIN)?;
    now.as_second().checked_sub(at)
}

type Form = (Vec<u8>, &'static str, &'static str);

/// What the body may have been before something changed it.
fn bodies(body: &[u8]) -> Vec<Form> {
    const RAW: &str = "verify the bytes that came, before anything parses them (in Express: express.raw; in Flask: \
                       request.get_data(); in Go: io.ReadAll before json.Unmarshal)";
    const LINES: &str = "keep the body as bytes: no text mode, no line-wise reading, no echo";
    let mut forms: Vec<Form> = Vec::new();
    let mut add = |form: Vec<u8>, what, cure| forms.push((form, what, cure));
    for end in [&b"\r\n"[..], b"\n"] {
        if let Some(cut) = body.strip_suffix(end) {
            add(cut.to_vec(), "a line end was added to the body", LINES);
        }
        add([body, end].concat(), "the line end of the body was cut off", LINES);
    }
    if let Some(rest) = body.strip_prefix(b"\xef\xbb\xbf") {
        add(rest.to_vec(), "a byte order mark was put before the body", LINES);
    }
    if let Ok(text) = std::str::from_utf8(body) {
        add(text.replace("\r\n", "\n").into_bytes(), "line ends of the body were changed", LINES);
        add(text.trim().as_bytes().to_vec(), "spaces were added around the body", LINES);
    }
    if let Ok(decoded) = STANDARD.decode(body.trim_ascii()) {
        const CURE: &str =
            "decode it first: some cloud functions hand bodies over as base64 (isBase64Encoded)";
        add(decoded, "the body was encoded as base64", CURE);
    }
    const WRITTEN_ANEW: &str = "the body was parsed and written anew";
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        for form in [serde_json::to_vec(&value).ok(), canonical(&value)].into_iter().flatten() {
            add(form, WRITTEN_ANEW, RAW);
        }
        // A string that holds the body: encoded once too often.
        if let Value::String(inner) = value {
            add(inner.into_bytes(), "the body was encoded as a JSON string", RAW);
        }
    }
    forms
}

/// An event, or an array of them, as this gateway writes it, whatever order its keys and what form its numbers have.
fn canonical(value: &Value) -> Option<Vec<u8>> {
    if let Value::Array(events) = value {
        let events: Vec<Vec<u8>> = events.iter().map(canonical).collect::<Option<_>>()?;
        return Some([b"[", events.join(&b","[..]).as_slice(), b"]"].concat());
    }
    let bytes = serde_json::to_vec(value).ok()?;
    let (event, observed_at) = json::read(&bytes).ok()?;
    let mut plain = Vec::with_capacity(bytes.len());
    json::write(&event, observed_at, &mut plain);
    let Some(cursor) = value.get("cursor").and_then(Value::as_str) else { return Some(plain) };
    let rest = plain.strip_prefix(b"{")?;
    Some([format!("{{\"cursor\":\"{cursor}\",").as_bytes(), rest].concat())
}

/// Keys that a receiver takes who does not decode the secret.
fn text_as_key(secret: &str) -> [Vec<u8>; 2] {
    let bare = secret.trim().strip_prefix(PREFIX).unwrap_or(secret.trim());
    [secret.trim().as_bytes().to_vec(), bare.as_bytes().to_vec()]
}

fn fits_key(key: &[u8], received: &Received<'_>) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let signed = [received.id.as_bytes(), b".", received.timestamp.as_bytes(), b".", received.body].concat();
    let given = received.signature.split_whitespace();
    let mut given = given.filter_map(|one| STANDARD.decode(one.strip_prefix("v1,").unwrap_or(one)).ok());
    given.any(|tag| hmac::verify(&key, &signed, &tag).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::tests_support::full_event, webhooks::signature::sign};

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn sent() -> (Vec<u8>, String) {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let stored = full_event().seal(at, jiff::SignedDuration::MAX).unwrap().at(7);
        let body = json::with_cursor(&stored, 9).to_vec();
        let secret = Secret::parse(SECRET).unwrap();
        let signature = sign(&[secret], "evt_abc123", 1_700_000_000, &body);
        (body, signature.to_str().unwrap().to_owned())
    }

    fn told(secret: &str, body: &[u8], signature: &str, id: &str, timestamp: &str, now: i64) -> Vec<String> {
        let received = Received { id, timestamp, signature, body };
        let now = Timestamp::from_second(now).unwrap();
        diagnose(secret, &received, now, TOLERANCE).into_iter().map(|found| found.what).collect()
    }

    #[test]
    fn each_usual_mistake_is_named() {
        let (body, signature) = sent();
        let (id, at) = ("evt_abc123", "1700000000");
        let of_body = |body: &[u8]| told(SECRET, body, &signature, id, at, 1_700_000_100);
        assert!(of_body(&body).is_empty());
        let value: Value = serde_json::from_slice(&body).unwrap();
        let sorted: std::collections::BTreeMap<String, Value> =
            value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let quoted = serde_json::to_vec(std::str::from_utf8(&body).unwrap()).unwrap();
        for (changed, expected) in [
            ([&body[..], b"\n"].concat(), "a line end was added"),
            ([&body[..], b"\r\n"].concat(), "a line end was added"),
            ([b"\xef\xbb\xbf", &body[..]].concat(), "byte order mark"),
            (serde_json::to_vec_pretty(&value).unwrap(), "written anew"),
            (serde_json::to_vec(&sorted).unwrap(), "written anew"),
            (quoted, "encoded as a JSON string"),
            (STANDARD.encode(&body).into_bytes(), "encoded as base64"),
            (body.to_ascii_uppercase(), "no form of this body"),
        ] {
            let told = of_body(&changed);
            assert!(told.len() == 1 && told[0].contains(expected), "{expected}: {told:?}");
        }
        for (changed, expected) in [(&body[..body.len() - 9], "the middle of its JSON"), (&[], "is empty")] {
            let told = of_body(changed);
            assert!(told.len() == 2 && told[0].contains(expected), "{expected}: {told:?}");
        }
        let cut = &signature[..signature.len() - 4];
        let told_cut = told(SECRET, &body, cut, id, at, 1_700_000_000);
        assert!(told_cut.len() == 2 && told_cut[0].contains("may have been cut"), "{told_cut:?}");
        let in_ms = told(SECRET, &body, &signature, id, "1700000000000", 1_700_000_000);
        assert!(
            in_ms[0].contains("milliseconds") && !in_ms.iter().any(|one| one.contains("future")),
            "{in_ms:?}"
        );
        let other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert!(told(other, &body, &signature, id, at, 1_700_000_000)[0].contains("no form"));
        assert!(told("whsec_*", &body, &signature, id, at, 1_700_000_000)[0].contains("base64"));
        assert!(told(SECRET, &body, &signature[3..], id, at, 1_700_000_000)[0].contains("lacks its v1"));
        assert!(told(SECRET, &body, &signature, id, at, 1_700_000_900)[0].contains("900 s old"));
        assert!(told(SECRET, &body, &signature, id, at, 1_699_999_000)[0].contains("1000 s in the future"));
        assert!(told(SECRET, &body, "", id, at, 1_700_000_000)[0].contains("webhook-signature is missing"));
        assert!(told(SECRET, &body, &signature, id, "2023-11-14", 1_700_000_000)[0].contains("not seconds"));
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let signed = [id.as_bytes(), b".", at.as_bytes(), b".", &body].concat();
        let wrong = format!("v1,{}", STANDARD.encode(hmac::sign(&key, &signed)));
        assert!(told(SECRET, &body, &wrong, id, at, 1_700_000_000)[0].contains("secret's text"));
    }
}
