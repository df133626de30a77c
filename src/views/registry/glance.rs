//! What the registry wants of an event beyond its keys, read without making texts of the rest.

use serde::Deserialize;

use crate::event::{Network, Session, Usage, json::Text};

/// The part of an event's JSON that is looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Glance<'a> {
    #[serde(borrow)]
    pub(super) data: Data<'a>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Data<'a> {
    #[serde(borrow)]
    pub(super) msisdn: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) network: Option<SeenNetwork<'a>>,
    pub(super) usage: Option<Usage>,
    pub(super) session: Option<Session>,
}

/// A [`Network`], borrowed: nearly always it is one that is known already.
#[derive(Debug, Deserialize)]
pub(super) struct SeenNetwork<'a> {
    #[serde(borrow, default)]
    country: Option<Text<'a>>,
    #[serde(borrow, default)]
    country_code: Option<Text<'a>>,
    #[serde(borrow, default)]
    operator: Option<Text<'a>>,
    #[serde(borrow, default)]
    network_code: Option<Text<'a>>,
    #[serde(borrow, default)]
    mcc: Option<Text<'a>>,
    #[serde(borrow, default)]
    mnc: Option<Text<'a>>,
    #[serde(borrow, default)]
    network_type: Option<Text<'a>>,
}

impl SeenNetwork<'_> {
    fn texts(&self) -> [Option<&str>; 7] {
        [
            &self.country,
            &self.country_code,
            &self.operator,
            &self.network_code,
            &self.mcc,
            &self.mnc,
            &self.network_type,
        ]
        .map(|text| Text::of(text.as_ref()))
    }

    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.texts().iter().all(Option::is_none)
    }

    /// Whether it is this one.
    pub(super) fn is(&self, other: &Network) -> bool {
        self.texts() == texts(other)
    }

    /// Equal networks have equal hashes.
    pub(super) fn hash(&self) -> u64 {
        hash(&self.texts())
    }

    /// As a network of its own.
    pub(super) fn to_network(&self) -> Network {
        let [country, country_code, operator, network_code, mcc, mnc, network_type] =
            self.texts().map(|text| text.map(str::to_owned));
        Network { country, country_code, operator, network_code, mcc, mnc, network_type }
    }
}

fn texts(network: &Network) -> [Option<&str>; 7] {
    [
        &network.country,
        &network.country_code,
        &network.operator,
        &network.network_code,
        &network.mcc,
        &network.mnc,
        &network.network_type,
    ]
    .map(|text| text.as_deref())
}

/// The hash of a network, as [`SeenNetwork::hash`] has it.
pub(super) fn hash_of(network: &Network) -> u64 {
    hash(&texts(network))
}

fn hash(texts: &[Option<&str>; 7]) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    // Fixed keys: what is hashed are the networks of this gateway's own SIMs, in a table that is bounded.
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    hasher.finish()
}

/// The part of a `sim_linked` that says which SIM the device left.
#[derive(Debug, Deserialize)]
pub(super) struct Link<'a> {
    #[serde(borrow)]
    data: LinkData<'a>,
}

#[derive(Debug, Deserialize)]
struct LinkData<'a> {
    #[serde(borrow)]
    details: Option<LinkDetails<'a>>,
}

#[derive(Debug, Deserialize)]
struct LinkDetails<'a> {
    #[serde(borrow, default)]
    previous_iccid: Option<Text<'a>>,
}

impl Link<'_> {
    /// The SIM that the device left.
    pub(super) fn previous_iccid(&self) -> Option<&str> {
        self.data.details.as_ref().and_then(|details| Text::of(details.previous_iccid.as_ref()))
    }
}
