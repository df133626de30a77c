//! Every way in which a documented list can lose events, one run each, and what the log holds afterwards: the table in
//! `docs/GUARANTEES.md`.
//!
//! Beside the poller, on the same simulator and under the same faults, runs what people would run otherwise: the API
//! document's own monitoring loop, for one SIM. What the document says of a run is compared with the run each time;
//! `SIMCAST_BLESS=1 cargo test --lib adversary` writes it anew.

#[path = "../../../tests/clients/document_loop.rs"]
mod document_loop;
mod figures;
mod rows;
mod stage;
mod table;

use stage::{Scenario, play};

/// Plays the scenarios of one part of the table and holds the document to them.
async fn part(name: &str, scenarios: Vec<Scenario>) {
    let mut lines = Vec::new();
    let mut broken = Vec::new();
    for scenario in scenarios {
        let figures = play(&scenario).await;
        broken.extend(figures.broken(&scenario));
        lines.push(table::Line { row: scenario.row, what: scenario.what, figures });
    }
    for line in &lines {
        println!("{}", line.to_markdown());
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    table::check(name, &lines);
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
