//! The servers that the fan-out benchmark starts as children, and what they publish.

pub mod floor;
pub mod gateway;

use simcast::{
    bus::NewEvent,
    event::{Event, Iccid, Network},
};

/// How often a needle lies in a text, without overlap.
pub fn find(text: &[u8], needle: &[u8]) -> usize {
    memchr::memmem::find_iter(text, needle).count()
}

/// An event like the one of the README, about 750 bytes of JSON.
pub fn event(n: u64) -> NewEvent {
    let id = format!("evt_{n:010}");
    let mut event = Event::new(id.clone(), "/globalsim/default".into(), "connection");
    event.event_id = Some(id);
    event.iccid = Iccid::parse(&format!("894708{:013}", n % 1000)).ok();
    event.msisdn = Some(format!("+47{:08}", n % 1000));
    event.device_id = Some(format!("iot_dev_{:06}", n % 1000));
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
    event.details = Some(serde_json::json!({"network_type": "4G", "signal_strength": -65}));
    NewEvent { event, identity: n, content: 0 }
}
