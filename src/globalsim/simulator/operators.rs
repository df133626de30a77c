//! Mobile networks of the simulated world: real countries, operators and PLMN codes, so that what the gateway
//! derives from a PLMN (country code, MCC, MNC of two or three digits) can be checked against something true.

use serde::Serialize;

/// One mobile network.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Operator {
    /// Country as the API spells it.
    pub country: &'static str,
    /// ISO 3166 alpha-2; the API shows it in sessions only.
    pub country_code: &'static str,
    /// Operator as the API spells it.
    pub name: &'static str,
    /// PLMN: MCC and MNC, leading zeros count.
    pub plmn: &'static str,
    /// E.164 country calling code, which is also the country part of an ICCID.
    pub calling_code: &'static str,
}

/// Radio access technologies, as the API spells them.
pub(super) const NETWORK_TYPES: [&str; 5] = ["4G", "4G", "5G", "LTE-M", "NB-IoT"];

macro_rules! operators {
    ($($country:literal $code:literal $calling:literal { $($name:literal $plmn:literal),+ $(,)? })+) => {
        /// Every network, grouped by country.
        pub(super) static OPERATORS: &[Operator] = &[$($(Operator {
            country: $country,
            country_code: $code,
            name: $name,
            plmn: $plmn,
            calling_code: $calling,
        }),+),+];
    };
}

operators! {
    "Norway" "NO" "47" { "Telenor Norway" "24201", "Telia Norway" "24202", "Ice Norway" "24214" }
    "Sweden" "SE" "46" { "Telia Sweden" "24001", "Tre Sweden" "24002", "Tele2 Sweden" "24007", "Telenor Sweden" "24008" }
    "Denmark" "DK" "45" { "TDC Denmark" "23801", "Telenor Denmark" "23802", "3 Denmark" "23806" }
    "Finland" "FI" "358" { "Elisa Finland" "24405", "DNA Finland" "24412", "Telia Finland" "24491" }
    "Germany" "DE" "49" { "Telekom Germany" "26201", "Vodafone Germany" "26202", "O2 Germany" "26203" }
    "United Kingdom" "GB" "44" { "EE UK" "23430", "Vodafone UK" "23415", "O2 UK" "23410", "Three UK" "23420" }
    "Netherlands" "NL" "31" { "KPN Netherlands" "20408", "Vodafone Netherlands" "20404", "Odido Netherlands" "20416" }
    "Poland" "PL" "48" { "Plus Poland" "26001", "T-Mobile Poland" "26002", "Orange Poland" "26003", "Play Poland" "26006" }
    "United States" "US" "1" { "AT&T US" "310410", "T-Mobile US" "310260" }
}

/// Where a SIM is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attachment {
    /// The network.
    pub operator: &'static Operator,
    /// One of [`NETWORK_TYPES`].
    pub network_type: &'static str,
}

/// A network as the API shows it; which fields appear depends on the endpoint.
#[derive(Debug, Serialize)]
pub(super) struct NetworkShape {
    country: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    country_code: Option<&'static str>,
    operator: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_type: Option<&'static str>,
}

impl Attachment {
    fn shape(self) -> NetworkShape {
        NetworkShape {
            country: self.operator.country,
            country_code: None,
            operator: self.operator.name,
            network_code: None,
            network_type: None,
        }
    }

    /// Account-wide activity: country and operator only.
    pub(super) fn in_account_row(self) -> NetworkShape {
        self.shape()
    }

    /// Per-SIM activity: with `network_code`.
    pub(super) fn in_sim_row(self) -> NetworkShape {
        NetworkShape { network_code: Some(self.operator.plmn), ..self.shape() }
    }

    /// Per-SIM form with `network_type`: what an account-wide list that carries details would show.
    pub(super) fn in_sim_row_with_type(self) -> NetworkShape {
        NetworkShape { network_type: Some(self.network_type), ..self.in_sim_row() }
    }

    /// Device information: with `network_type`.
    pub(super) fn in_device(self) -> NetworkShape {
        NetworkShape { network_type: Some(self.network_type), ..self.shape() }
    }

    /// Sessions: everything.
    pub(super) fn in_session(self) -> NetworkShape {
        NetworkShape {
            country_code: Some(self.operator.country_code),
            network_code: Some(self.operator.plmn),
            network_type: Some(self.network_type),
            ..self.shape()
        }
    }
}
