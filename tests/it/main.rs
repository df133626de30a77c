//! Whole gateways, in process or as real child processes, against the simulator, on port 0. One binary, because each
//! further one would link everything again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod clients;
mod crash;
mod demo;
mod doctor;
mod document;
mod drain;
mod examples;
mod migrate;
mod nats_accounts;
mod nats_clients;
mod nats_server;
mod replicas;
mod resume;
mod scenario;
mod support;
mod tidy;
mod webhooks;
