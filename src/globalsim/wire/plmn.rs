//! What a PLMN code says: mobile country code, mobile network code, country (ITU-T E.212).
//!
//! An MNC has two or three digits and leading zeros count, so 505-57 and 505-057 are two networks. A code of five
//! digits can only be 3 + 2. One of six is split 3 + 3 where the country uses three-digit MNCs; elsewhere upstream
//! must have padded it in a way that can't be undone for sure, and only the MCC is taken.

/// MCC, and MNC where it is certain. Understands `24201`, `310410` and `242-01`.
pub(super) fn split(code: &str) -> Option<(&str, Option<&str>)> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if let Some((mcc, mnc)) = code.split_once(['-', ' ', '/']) {
        let sound = digits(mcc) && digits(mnc) && mcc.len() == 3 && matches!(mnc.len(), 2 | 3);
        return sound.then_some((mcc, Some(mnc)));
    }
    if !digits(code) || !matches!(code.len(), 5 | 6) {
        return None;
    }
    let (mcc, mnc) = code.split_at(3);
    Some((mcc, (mnc.len() == 2 || has_three_digit_mncs(mcc)).then_some(mnc)))
}

/// Countries where three-digit MNCs are assigned, all or some.
fn has_three_digit_mncs(mcc: &str) -> bool {
    matches!(
        mcc,
        "302"
            | "310"
            | "311"
            | "312"
            | "313"
            | "314"
            | "315"
            | "316"
            | "330"
            | "334"
            | "338"
            | "342"
            | "344"
            | "346"
            | "348"
            | "350"
            | "352"
            | "354"
            | "356"
            | "358"
            | "360"
            | "364"
            | "365"
            | "366"
            | "374"
            | "376"
            | "405"
            | "708"
            | "714"
            | "722"
            | "732"
            | "738"
            | "750"
    )
}

/// ISO 3166-1 alpha-2 of an MCC's country; None for shared and unknown codes.
pub(super) fn country_code(mcc: &str) -> Option<&'static str> {
    let mcc: u16 = mcc.parse().ok().filter(|_| mcc.len() == 3)?;
    COUNTRIES.binary_search_by_key(&mcc, |(code, _)| *code).ok().map(|at| COUNTRIES[at].1)
}

/// By MCC. Shared codes (901 and other international ones, 647 for Réunion and Mayotte by its larger part) follow
/// the assignment in ITU's list.
#[rustfmt::skip]
const COUNTRIES: &[(u16, &str)] = &[
    (202, "GR"), (204, "NL"), (206, "BE"), (208, "FR"), (212, "MC"), (213, "AD"), (214, "ES"), (216, "HU"),
    (218, "BA"), (219, "HR"), (220, "RS"), (221, "XK"), (222, "IT"), (225, "VA"), (226, "RO"), (228, "CH"),
    (230, "CZ"), (231, "SK"), (232, "AT"), (234, "GB"), (235, "GB"), (238, "DK"), (240, "SE"), (242, "NO"),
    (244, "FI"), (246, "LT"), (247, "LV"), (248, "EE"), (250, "RU"), (255, "UA"), (257, "BY"), (259, "MD"),
    (260, "PL"), (262, "DE"), (266, "GI"), (268, "PT"), (270, "LU"), (272, "IE"), (274, "IS"), (276, "AL"),
    (278, "MT"), (280, "CY"), (282, "GE"), (283, "AM"), (284, "BG"), (286, "TR"), (288, "FO"), (290, "GL"),
    (292, "SM"), (293, "SI"), (294, "MK"), (295, "LI"), (297, "ME"), (302, "CA"), (308, "PM"), (310, "US"),
    (311, "US"), (312, "US"), (313, "US"), (314, "US"), (315, "US"), (316, "US"), (330, "PR"), (332, "VI"),
    (334, "MX"), (338, "JM"), (340, "GP"), (342, "BB"), (344, "AG"), (346, "KY"), (348, "VG"), (350, "BM"),
    (352, "GD"), (354, "MS"), (356, "KN"), (358, "LC"), (360, "VC"), (362, "CW"), (363, "AW"), (364, "BS"),
    (365, "AI"), (366, "DM"), (368, "CU"), (370, "DO"), (372, "HT"), (374, "TT"), (376, "TC"), (400, "AZ"),
    (401, "KZ"), (402, "BT"), (404, "IN"), (405, "IN"), (406, "IN"), (410, "PK"), (412, "AF"), (413, "LK"),
    (414, "MM"), (415, "LB"), (416, "JO"), (417, "SY"), (418, "IQ"), (419, "KW"), (420, "SA"), (421, "YE"),
    (422, "OM"), (424, "AE"), (425, "IL"), (426, "BH"), (427, "QA"), (428, "MN"), (429, "NP"), (430, "AE"),
    (431, "AE"), (432, "IR"), (434, "UZ"), (436, "TJ"), (437, "KG"), (438, "TM"), (440, "JP"), (441, "JP"),
    (450, "KR"), (452, "VN"), (454, "HK"), (455, "MO"), (456, "KH"), (457, "LA"), (460, "CN"), (461, "CN"),
    (466, "TW"), (467, "KP"), (470, "BD"), (472, "MV"), (502, "MY"), (505, "AU"), (510, "ID"), (514, "TL"),
    (515, "PH"), (520, "TH"), (525, "SG"), (528, "BN"), (530, "NZ"), (536, "NR"), (537, "PG"), (539, "TO"),
    (540, "SB"), (541, "VU"), (542, "FJ"), (543, "WF"), (544, "AS"), (545, "KI"), (546, "NC"), (547, "PF"),
    (548, "CK"), (549, "WS"), (550, "FM"), (551, "MH"), (552, "PW"), (553, "TV"), (554, "TK"), (555, "NU"),
    (602, "EG"), (603, "DZ"), (604, "MA"), (605, "TN"), (606, "LY"), (607, "GM"), (608, "SN"), (609, "MR"),
    (610, "ML"), (611, "GN"), (612, "CI"), (613, "BF"), (614, "NE"), (615, "TG"), (616, "BJ"), (617, "MU"),
    (618, "LR"), (619, "SL"), (620, "GH"), (621, "NG"), (622, "TD"), (623, "CF"), (624, "CM"), (625, "CV"),
    (626, "ST"), (627, "GQ"), (628, "GA"), (629, "CG"), (630, "CD"), (631, "AO"), (632, "GW"), (633, "SC"),
    (634, "SD"), (635, "RW"), (636, "ET"), (637, "SO"), (638, "DJ"), (639, "KE"), (640, "TZ"), (641, "UG"),
    (642, "BI"), (643, "MZ"), (645, "ZM"), (646, "MG"), (647, "RE"), (648, "ZW"), (649, "NA"), (650, "MW"),
    (651, "LS"), (652, "BW"), (653, "SZ"), (654, "KM"), (655, "ZA"), (657, "ER"), (658, "SH"), (659, "SS"),
    (702, "BZ"), (704, "GT"), (706, "SV"), (708, "HN"), (710, "NI"), (712, "CR"), (714, "PA"), (716, "PE"),
    (722, "AR"), (724, "BR"), (730, "CL"), (732, "CO"), (734, "VE"), (736, "BO"), (738, "GY"), (740, "EC"),
    (742, "GF"), (744, "PY"), (746, "SR"), (748, "UY"), (750, "FK"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_split_only_where_it_is_certain() {
        for (code, expected) in [
            ("24201", Some(("242", Some("01")))),
            ("24001", Some(("240", Some("01")))),
            ("310410", Some(("310", Some("410")))),
            ("242001", Some(("242", None))),
            ("242-01", Some(("242", Some("01")))),
            ("505 057", Some(("505", Some("057")))),
            ("2420", None),
            ("2420123", None),
            ("24x01", None),
            ("", None),
            ("٢٤٢٠١", None),
        ] {
            assert_eq!(split(code), expected, "{code}");
        }
    }

    #[test]
    fn countries_follow_the_mcc() {
        assert_eq!(country_code("242"), Some("NO"));
        assert_eq!(country_code("240"), Some("SE"));
        assert_eq!(country_code("901"), None);
        assert_eq!(country_code("0242"), None);
        assert!(COUNTRIES.is_sorted_by_key(|(mcc, _)| *mcc));
    }
}
