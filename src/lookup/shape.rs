//! The fields of the API document, out of the gateway's own model: what is shown is the same wherever it is from.

use serde_json::{Map, Value, json};

use super::{Found, Of, Question, What};
use crate::event::{Event, FieldPolicy, Iccid, Network, Session, policy::Shown};

/// Fields of a network in an activity row, and in a session.
const IN_ACTIVITY: &[&str] = &["country", "operator", "network_code"];
const IN_SESSION: &[&str] = &["country", "country_code", "operator", "network_code", "network_type"];
const IN_DEVICE: &[&str] = &["country", "operator", "network_type"];

/// The answer to a question, without where it is from.
pub(super) fn answer(question: &Question, found: &Found, policy: Option<&FieldPolicy>) -> Map<String, Value> {
    let mut out = Map::new();
    let is_account = matches!(question.of, Of::Account { .. });
    let envelope = match &question.of {
        Of::Sim(iccid) => Some(iccid),
        Of::Device(_) | Of::Account { .. } => found.iccid.as_ref(),
    };
    let rows = found.rows.iter();
    match &question.what {
        What::Sim => {
            if let Some(Value::Object(device)) = &found.device {
                out = device.clone();
                hide_device(&mut out, policy);
            }
        }
        What::Activity(paging, _) => {
            if !is_account {
                out.insert("iccid".into(), iccid(envelope, policy));
            }
            out.insert("activity".into(), rows.map(|row| activity(row, is_account, policy)).collect());
            out.insert("total".into(), found.total.into());
            if is_account {
                out.insert("limit".into(), paging.limit.into());
                out.insert("offset".into(), paging.offset.into());
            }
        }
        What::Sessions(_) => {
            out.insert("iccid".into(), iccid(envelope, policy));
            out.insert("sessions".into(), rows.map(|row| session(row, policy)).collect());
            out.insert("total".into(), found.total.into());
            out.insert("summary".into(), found.summary.clone().unwrap_or_default());
        }
    }
    out
}

fn iccid(iccid: Option<&Iccid>, policy: Option<&FieldPolicy>) -> Value {
    match (iccid, policy) {
        (Some(iccid), Some(policy)) => policy.show_iccid(iccid.as_str()).into(),
        (iccid, _) => iccid.map(Iccid::as_str).into(),
    }
}

fn seen(row: &Event, policy: Option<&FieldPolicy>) -> (Event, Value) {
    let mut row = row.clone();
    let shown = match policy {
        Some(policy) => policy.apply(&mut row),
        None => Shown { iccid: row.iccid.as_ref().map(|iccid| iccid.as_str().to_owned()) },
    };
    (row, shown.iccid.into())
}

fn activity(row: &Event, is_account: bool, policy: Option<&FieldPolicy>) -> Value {
    let (row, iccid) = seen(row, policy);
    let mut out = Map::new();
    out.insert("event_id".into(), row.event_id.clone().into());
    if is_account {
        out.insert("iccid".into(), iccid);
        out.insert("msisdn".into(), row.msisdn.into());
        out.insert("device_id".into(), row.device_id.into());
    }
    out.insert("event_type".into(), row.event_type.clone().into());
    out.insert("timestamp".into(), row.timestamp.into());
    let change = row.event_type == "network_change" && !row.extra.contains_key("network");
    if let Some(network) = row.network.as_ref() {
        let name = if change { "current_network" } else { "network" };
        out.insert(name.into(), fields(network, IN_ACTIVITY));
    }
    if let Some(network) = row.previous_network.as_ref() {
        out.insert("previous_network".into(), fields(network, IN_ACTIVITY));
    }
    if let Some(details) = row.details {
        out.insert("details".into(), details);
    }
    add(&mut out, row.extra);
    Value::Object(out)
}

fn session(row: &Event, policy: Option<&FieldPolicy>) -> Value {
    let (row, _) = seen(row, policy);
    let session = row.session.unwrap_or_default();
    let Session {
        session_id,
        start_time,
        end_time,
        duration_seconds,
        upload_mb,
        download_mb,
        total_mb,
        ip_address,
    } = session;
    let Value::Object(mut out) = json!({
        "session_id": session_id,
        "start_time": start_time,
        "end_time": end_time,
        "duration_seconds": duration_seconds,
        "network": row.network.as_ref().map(|network| fields(network, IN_SESSION)),
        "data_usage": {"upload_mb": upload_mb, "download_mb": download_mb, "total_mb": total_mb},
        "ip_address": ip_address,
    }) else {
        return Value::Null;
    };
    add(&mut out, row.extra);
    Value::Object(out)
}

/// What events tell of a device where nobody has looked it up.
pub(super) fn device(row: &Event) -> Value {
    json!({
        "device_id": row.device_id,
        "device_name": null,
        "sim": {
            "iccid": row.iccid.as_ref().map(Iccid::as_str),
            "status": null,
            "msisdn": row.msisdn,
            "current_network": row.network.as_ref().map(|network| fields(network, IN_DEVICE)),
            "data_usage_mb": null,
            "linked_at": null,
        },
    })
}

/// Shows of a device what the policy leaves of it. What it does not name is not shown to who may not see all.
fn hide_device(out: &mut Map<String, Value>, policy: Option<&FieldPolicy>) {
    let Some(policy) = policy else { return };
    out.retain(|name, _| ["device_id", "device_name", "sim"].contains(&name.as_str()));
    let Some(Value::Object(sim)) = out.get_mut("sim") else { return };
    let known = ["iccid", "status", "msisdn", "current_network", "data_usage_mb", "linked_at"];
    sim.retain(|name, _| known.contains(&name.as_str()));
    let text =
        |sim: &Map<String, Value>, name: &str| sim.get(name).and_then(Value::as_str).map(str::to_owned);
    let mut event = Event::new("", "".into(), "device");
    (event.iccid, event.msisdn) =
        (text(sim, "iccid").and_then(|text| Iccid::parse(&text).ok()), text(sim, "msisdn"));
    let shown = policy.apply(&mut event);
    sim.insert("iccid".into(), shown.iccid.into());
    sim.insert("msisdn".into(), event.msisdn.into());
}

/// The fields of a network that there are, by name.
fn fields(network: &Network, names: &[&str]) -> Value {
    let Ok(Value::Object(mut all)) = serde_json::to_value(network) else { return Value::Null };
    all.retain(|name, value| names.contains(&name.as_str()) && !value.is_null());
    Value::Object(all)
}

/// What upstream sent and the model does not name; not the gateway's own mark.
fn add(out: &mut Map<String, Value>, extra: Map<String, Value>) {
    for (name, value) in extra {
        if name != "derived" {
            out.insert(name, value);
        }
    }
}
