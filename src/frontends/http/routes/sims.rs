//! The rows of `/v1/sims`.

use axum::routing::get;

use super::{Access, FILTER, Kind, Parameter, Route, answer, parameter};
use crate::{
    auth::Role,
    frontends::{
        Code,
        http::sims,
        sims::{LIMIT_DEFAULT, LIMIT_MAX},
    },
};

const LISTED: &[Parameter] = &[
    FILTER[0],
    FILTER[1],
    FILTER[3],
    FILTER[4],
    FILTER[5],
    FILTER[6],
    parameter(
        "online",
        Kind::OptionalChoice(&["true", "false", "unknown"]),
        "Whether the newest event that tells says that the SIM is connected; `unknown`: none tells.",
    ),
    parameter("seen_since", Kind::Time, "Only SIMs whose `last_seen` is at or after this."),
    parameter("seen_before", Kind::Time, "Only SIMs whose `last_seen` is before this."),
    parameter("sort", Kind::Choice(&["iccid", "last_seen"]), "By number, or those seen last first."),
    parameter("limit", Kind::Number(1, LIMIT_MAX, Some(LIMIT_DEFAULT)), "Most SIMs of this page."),
    parameter("after", Kind::Text, "`next` of the page before."),
];

const ICCID: &[Parameter] = &[parameter("iccid", Kind::Path, "The SIM's ICCID.")];

/// `GET /v1/sims`.
pub(super) const LIST: Route = Route {
    method: "get",
    path: "/v1/sims",
    id: "listSims",
    access: Access::Role(Role::Read),
    summary: "SIMs that are known",
    description: "From the stream's events and the configuration's list. A SIM is listed if an event that said what \
                  is known of it would match the filter, and the token's. Go on with `after=<next>` until `next` is \
                  null. A token that is limited to some event types sees no SIMs.",
    parameters: &[LISTED],
    body: false,
    success: answer(200, "Sims", "A page."),
    errors: &[Code::InvalidParameter, Code::InvalidFilter, Code::ForbiddenField, Code::Internal],
    handler: Some(|| get(sims::list)),
};

/// `GET /v1/sims/{iccid}`.
pub(super) const GET: Route = Route {
    method: "get",
    path: "/v1/sims/{iccid}",
    id: "getSim",
    access: Access::Role(Role::Read),
    summary: "What is known of a SIM",
    description: "404 as well where the token's filter does not let it through.",
    parameters: &[ICCID],
    body: false,
    success: answer(200, "SimDetails", "The SIM."),
    errors: &[Code::InvalidParameter, Code::NotFound, Code::ForbiddenField, Code::Internal],
    handler: Some(|| get(sims::get)),
};
