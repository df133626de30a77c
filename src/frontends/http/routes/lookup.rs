//! The routes of the documented paths of the API.

use axum::routing::{MethodRouter, get};

use super::{Access, Kind, Parameter, Route, answer, parameter};
use crate::{
    auth::Role,
    frontends::{
        Code, Context,
        http::lookup::{self, LIMIT_DEFAULT, LIMIT_MAX, OFFSET_MAX},
    },
};

const ICCID: &[Parameter] = &[parameter("iccid", Kind::Path, "The SIM, 18 to 22 digits.")];
const DEVICE: &[Parameter] = &[parameter("device_id", Kind::Path, "The device, percent-encoded.")];
const PAGING: &[Parameter] = &[
    parameter("limit", Kind::Number(1, LIMIT_MAX, Some(LIMIT_DEFAULT)), "Most rows of this page."),
    parameter("offset", Kind::Number(0, OFFSET_MAX, Some(0)), "Rows to pass over."),
];
const TYPE: &[Parameter] = &[parameter("event_type", Kind::Text, "Only this type; `all` is no type.")];
const DATES: &[Parameter] = &[
    parameter("start_date", Kind::Text, "From this day, `YYYY-MM-DD`."),
    parameter("end_date", Kind::Text, "To this day, `YYYY-MM-DD`."),
];
const ONE_OF: &[Parameter] = &[
    parameter("iccid", Kind::Text, "Only this SIM."),
    parameter("device_id", Kind::Text, "Only this device."),
];

/// What all of them say of themselves.
macro_rules! description {
    ($first:literal) => {
        concat!(
            $first,
            " Parameters and fields are those of the GlobalSIM API, with `as_of`, `age_seconds` and `source`: \
             `upstream` (asked just now), `cache` (asked before; up to five seconds old, or older where upstream or the \
             budget has nothing to give) or `log` (made of the events kept here: what a token with a filter always gets)."
        )
    };
}

const fn route(
    path: &'static str,
    (id, summary, description): (&'static str, &'static str, &'static str),
    parameters: &'static [&'static [Parameter]],
    schema: &'static str,
    handler: fn() -> MethodRouter<Context>,
) -> Route {
    Route {
        method: "get",
        path,
        id,
        access: Access::Role(Role::Read),
        summary,
        description,
        parameters,
        body: false,
        success: answer(200, schema, "As the API document has it, with its age."),
        errors: &[
            Code::InvalidParameter,
            Code::ForbiddenField,
            Code::NotFound,
            Code::UpstreamBudget,
            Code::Unavailable,
        ],
        handler: Some(handler),
    }
}

pub(super) const ACCOUNT_ACTIVITY: Route = route(
    "/v1/sims/activity",
    ("listActivity", "Activity of all SIMs", description!("A page of activity rows.")),
    &[PAGING, TYPE, ONE_OF, DATES],
    "Activity",
    || get(lookup::account_activity),
);

pub(super) const SIM_ACTIVITY: Route = route(
    "/v1/sims/{iccid}/activity",
    ("listSimActivity", "Activity of one SIM", description!("A page of activity rows, with details.")),
    &[ICCID, PAGING, TYPE],
    "Activity",
    || get(lookup::sim_activity),
);

pub(super) const SIM_SESSIONS: Route = route(
    "/v1/sims/{iccid}/sessions",
    ("listSimSessions", "Sessions of one SIM", description!("A page of sessions and their summary.")),
    &[ICCID, PAGING, DATES],
    "Sessions",
    || get(lookup::sim_sessions),
);

pub(super) const DEVICE_SIM: Route = route(
    "/v1/devices/{device_id}/sim",
    ("getDeviceSim", "The SIM of a device", description!("The device and the SIM in it.")),
    &[DEVICE],
    "DeviceSim",
    || get(lookup::device_sim),
);

pub(super) const DEVICE_ACTIVITY: Route = route(
    "/v1/devices/{device_id}/sim/activity",
    (
        "listDeviceActivity",
        "Activity of a device's SIM",
        description!("A page of activity rows, with details."),
    ),
    &[DEVICE, PAGING, TYPE],
    "Activity",
    || get(lookup::device_activity),
);

pub(super) const DEVICE_SESSIONS: Route = route(
    "/v1/devices/{device_id}/sim/sessions",
    (
        "listDeviceSessions",
        "Sessions of a device's SIM",
        description!("A page of sessions and their summary."),
    ),
    &[DEVICE, PAGING, DATES],
    "Sessions",
    || get(lookup::device_sessions),
);
