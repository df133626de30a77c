//! The answers of `/healthz` and `/readyz` as data.
//!
//! `/healthz` is 200 as long as the process answers. `/readyz` is 503 only when taking traffic away helps: the log
//! can't be written, the bus is gone, or the gateway drains. A stale upstream is 200 with `degraded`, since every
//! other gateway sees the same upstream and readers can still be served from the log (design section 5).

use serde::Serialize;

use crate::bus;

/// Something that works less well than it should while the gateway serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Degraded {
    /// Which part, such as `upstream`.
    pub part: &'static str,
    /// Its state, such as `stale`, `auth_failed`, `rate_limited`.
    pub state: String,
    /// One sentence for people.
    pub message: String,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether to send traffic here.
    pub ready: bool,
    /// Why not; empty when ready.
    pub reasons: Vec<String>,
    /// What works less well; may be there in either case.
    pub degraded: Vec<Degraded>,
}

impl Readiness {
    /// Judges from the state of the parts.
    pub fn judge(bus: &bus::Health, draining: bool, degraded: Vec<Degraded>) -> Self {
        let mut reasons = Vec::new();
        if draining {
            reasons.push("draining".to_owned());
        }
        if let Some(why) = &bus.unwritable {
            reasons.push(format!("the {} log can't be written: {why}", bus.kind));
        }
        Self { ready: reasons.is_empty(), reasons, degraded }
    }

    /// 200 or 503.
    pub fn status(&self) -> http::StatusCode {
        if self.ready { http::StatusCode::OK } else { http::StatusCode::SERVICE_UNAVAILABLE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unwritable_log_and_a_drain_take_traffic_away() {
        let well =
            bus::Health { kind: "embedded", durability: "fsync".into(), warning: None, unwritable: None };
        let full = bus::Health { unwritable: Some("no space left on device".into()), ..well.clone() };
        let stale = vec![Degraded { part: "upstream", state: "stale".into(), message: "no answer".into() }];
        for (bus, draining, degraded, status, reasons) in [
            (&well, false, vec![], 200, vec![]),
            (&well, false, stale.clone(), 200, vec![]),
            (&well, true, vec![], 503, vec!["draining"]),
            (
                &full,
                false,
                stale.clone(),
                503,
                vec!["the embedded log can't be written: no space left on device"],
            ),
        ] {
            let readiness = Readiness::judge(bus, draining, degraded.clone());
            assert_eq!((readiness.status().as_u16(), &readiness.degraded), (status, &degraded));
            assert_eq!(readiness.reasons, reasons);
        }
    }
}
