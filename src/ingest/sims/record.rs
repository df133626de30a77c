//! What is kept of each SIM and device in [`Bucket::State`], so that neither a restart nor another gateway that takes
//! over tells anything twice.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    bus::{self, Bucket, Bus, KvError},
    event::Iccid,
};

/// Before the ICCID in the key of a [`SimRecord`].
pub const SIM: &str = bus::SIM_KEY_PREFIX;
/// Before the device id in the key of a [`DeviceRecord`].
pub const DEVICE: &str = bus::DEVICE_KEY_PREFIX;
/// Key of the position up to which the log was looked through for SIMs: a cursor.
pub const PLACE: &str = "sims";
/// Longer device ids are not looked up: they could not be keys of every store.
pub const DEVICE_ID_BYTES_MAX: usize = 256;

/// What was read of a SIM's sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimRecord {
    /// When the list was last read.
    pub read_at: Option<Timestamp>,
    /// Open sessions that were told, by id, each with a hash of what was told last.
    #[serde(default)]
    pub open: BTreeMap<String, u32>,
}

/// The last answer about a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// When it was there.
    pub as_of: Timestamp,
    /// The SIM that was in the device.
    pub iccid: Option<Iccid>,
    /// The answer as received; null for a device that upstream does not know.
    pub answer: Value,
}

/// Reads a record; None where there is none, or one that can't be understood.
///
/// # Errors
/// The store can't be read.
pub async fn load<T: DeserializeOwned>(bus: &Arc<dyn Bus>, key: &str) -> Result<Option<T>, KvError> {
    Ok(bus.kv_get(Bucket::State, key).await?.and_then(|entry| read(key, &entry.value)))
}

/// Reads all records under a prefix, each with what follows the prefix in its key.
///
/// # Errors
/// The store can't be read.
pub async fn load_all<T: DeserializeOwned>(
    bus: &Arc<dyn Bus>,
    prefix: &str,
) -> Result<Vec<(String, T)>, KvError> {
    let entries = bus.kv_list(Bucket::State, prefix).await?;
    let read = |entry: crate::bus::Entry| {
        let name = entry.key.strip_prefix(prefix)?.to_owned();
        Some((name, read(&entry.key, &entry.value)?))
    };
    Ok(entries.into_iter().filter_map(read).collect())
}

/// Writes a record. A failure costs no event: what is not noted is read again, and known ids keep it from being told
/// again.
pub async fn save<T: Serialize + Sync>(bus: &Arc<dyn Bus>, key: &str, record: &T) {
    let value = serde_json::to_vec(record).unwrap_or_default().into();
    if let Err(error) = bus.kv_put(Bucket::State, key, value).await {
        tracing::warn!(%error, "what was read of a SIM can't be noted; it is read again");
    }
}

fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    match serde_json::from_slice(value) {
        Ok(record) => Some(record),
        Err(error) => {
            // The key may hold a SIM's number.
            let kind = key.split('/').next().unwrap_or_default();
            tracing::warn!(%error, kind, "a record of a SIM or device can't be understood; it is made again");
            None
        }
    }
}
