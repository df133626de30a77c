//! The route of the report.

use axum::routing::get;

use super::{Access, FILTER, Kind, Parameter, Route, answer, parameter};
use crate::{
    auth::Role,
    frontends::{
        Code,
        http::report::{self, TOP_DEFAULT, TOP_MAX},
    },
};

const PERIOD: &[Parameter] = &[
    parameter(
        "from",
        Kind::Text,
        "Beginning of the period: a time, or a date for its beginning in UTC. Rounded down to a whole UTC hour. \
         Without it 30 days before `to`.",
    ),
    parameter("to", Kind::Text, "End of the period, exclusive, rounded up. Without it now."),
    parameter(
        "top",
        Kind::Number(1, TOP_MAX, Some(TOP_DEFAULT)),
        "Most SIMs of `most_active` and `data.by_sim`.",
    ),
    parameter(
        "interval",
        Kind::OptionalChoice(&["hour", "day"]),
        "Points of `series`. Without it hours, and days where `computed_from` is `sim_rollup`, which knows no hours.",
    ),
];

pub(super) const REPORT: Route = Route {
    method: "get",
    path: "/v1/report",
    id: "getReport",
    access: Access::Role(Role::Read),
    summary: "What a period looked like",
    description: "Events count once, in the hour of their own `time`; `most_active`, `data.by_sim`, `roaming` and \
                  `totals.sims` are by whole UTC days (`days`). Without a filter, its own or the token's, everything \
                  is `computed_from` the roll-ups, which reach back 400 days or to `rolled_up_since`. With nothing \
                  but `iccid` and `iccid_prefix` it comes from those by SIM (`sim_rollup`): whole days, and null for \
                  `by_country`, `by_operator` and `by_network_type`. With any other filter it is counted from the \
                  events that the log still holds (`log`), of which the oldest was stored at `rolled_up_since`. \
                  503 `index_building` while a gateway that was just started has not counted up to `to`.",
    parameters: &[PERIOD, FILTER],
    body: false,
    success: answer(200, "Report", "The report."),
    errors: &[
        Code::InvalidParameter,
        Code::InvalidFilter,
        Code::ForbiddenField,
        Code::RateLimited,
        Code::IndexBuilding,
        Code::Unavailable,
    ],
    handler: Some(|| get(report::report)),
};
