//! The event that benchmarks store and send.

use serde_json::json;
use simcast::event::{Event, Iccid, Network};

/// An event like the one of the README, about 750 bytes of JSON, of one of so many SIMs.
pub fn event(n: u64, sims: u64) -> Event {
    let id = format!("evt_{n:010}");
    let (mut event, sim) = (Event::new(id.clone(), "/globalsim/default".into(), "connection"), n % sims);
    event.event_id = Some(id);
    event.iccid = Iccid::parse(&format!("894708{sim:013}")).ok();
    event.msisdn = Some(format!("+47{sim:08}"));
    event.device_id = Some(format!("iot_dev_{sim:06}"));
    event.timestamp = Some("2025-11-05T08:00:00Z".into());
    event.time = "2025-11-05T08:00:00Z".parse().ok();
    event.network = Some(Network {
        country: Some("Norway".into()),
        country_code: Some("NO".into()),
        operator: Some("Telenor Norway".into()),
        network_code: Some("24201".into()),
        mcc: Some("242".into()),
        mnc: Some("01".into()),
        network_type: Some("4G".into()),
    });
    event.signal_strength = Some(-65);
    event.details = Some(json!({"network_type": "4G", "signal_strength": -65}));
    event
}
