//! Every way in which a documented list can lose events, one run each, and what the log holds afterwards: the table in
//! `docs/GUARANTEES.md`.
//!
//! Beside the poller, on the same simulator and under the same faults, runs what people would run otherwise: the API
//! document's own monitoring loop, for one SIM. What the document says of a run is compared with the run each time;
//! `SIMCAST_BLESS=1 cargo test --lib adversary` writes it anew.
//!
//! All of them are played on the embedded log, and again on NATS.

#[path = "../../../tests/clients/document_loop.rs"]
mod document_loop;
mod figures;
mod rows;
mod stage;
mod table;

use stage::{Scenario, play};

use super::nats::Nats;

/// Plays the scenarios of one part of the table and holds the document to them.
async fn part(name: &str, scenarios: Vec<Scenario>) {
    table::check(name, &lines(scenarios, None).await);
}

/// Plays the same scenarios on NATS, under the same bounds.
async fn part_on_nats(scenarios: Vec<Scenario>) {
    let nats = Nats::start().await;
    table::check_on_nats(&lines(scenarios, Some(&nats)).await);
}

/// Plays scenarios, each of which must keep what it promises.
async fn lines(scenarios: Vec<Scenario>, nats: Option<&Nats>) -> Vec<table::Line> {
    let mut lines = Vec::new();
    let mut broken = Vec::new();
    for scenario in scenarios {
        let figures = play(&scenario, nats).await;
        broken.extend(figures.broken(&scenario));
        lines.push(table::Line { row: scenario.row, what: scenario.what, figures });
    }
    for line in &lines {
        println!("{}", line.to_markdown());
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    lines
}

#[tokio::test(start_paused = true)]
async fn the_table_of_lists_that_move() {
    part("moving", rows::moving()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_parameters() {
    part("parameters", rows::parameters()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_late_and_forgotten_rows() {
    part("late", rows::late()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_contents() {
    part("content", rows::contents()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_failures() {
    part("failures", rows::failures()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_all_together() {
    part("together", rows::together()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_lists_that_move_on_nats() {
    part_on_nats(rows::moving()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_parameters_on_nats() {
    part_on_nats(rows::parameters()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_late_and_forgotten_rows_on_nats() {
    part_on_nats(rows::late()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_contents_on_nats() {
    part_on_nats(rows::contents()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_failures_on_nats() {
    part_on_nats(rows::failures()).await;
}

#[tokio::test(start_paused = true)]
async fn the_table_of_all_together_on_nats() {
    part_on_nats(rows::together()).await;
}
