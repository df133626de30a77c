//! Each deliberate bug is caught: the test that must notice it fails in a process of its own that has the bug, and
//! nothing but that test ran. That it passes without is what the rest of the suite says.

use std::{collections::HashSet, process::Stdio, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::process::Command;

use super::Bug;

/// Names the bug that is on.
pub(super) const VARIABLE: &str = "SIMCAST_SABOTAGE";

/// Longest that a test with a bug may take; one that hangs has noticed nothing.
const PATIENCE: Duration = Duration::from_secs(100);

/// Children at a time.
const CONCURRENCY: usize = 2;

/// A failed test of the test harness ends its process with this.
const EXIT_FAILED: i32 = 101;

/// Bug, promise of the gateway that it breaks (design section 12), test that notices.
const CAUGHT: &[(Bug, u8, &str)] = &[
    (Bug::SkipSync, 3, "log::tests::power::power_lost_at_any_step_loses_nothing_acknowledged"),
    (Bug::ShowBeforeWrite, 3, "log::tests::power::power_lost_at_any_step_loses_nothing_acknowledged"),
    (
        Bug::FloorBeforeSettle,
        1,
        "ingest::tests::store::a_sweep_moves_no_floor_over_rows_that_are_not_durable",
    ),
    (
        Bug::FloorAtEnd,
        1,
        "ingest::sweep::tests::what_comes_late_behind_a_sweep_on_its_way_is_found_by_the_next",
    ),
    (Bug::NoOverlap, 1, "ingest::walk::tests::reading_down_misses_nothing"),
    (Bug::StopAtKnown, 1, "ingest::tests::edges::a_rise_of_the_total_brings_a_sweep_at_once"),
    (Bug::LoseTies, 1, "ingest::walk::tests::equal_times_at_the_edge_of_a_page_are_all_read"),
    (Bug::TrustTotal, 1, "ingest::walk::tests::a_total_that_is_too_small_ends_no_walk"),
    (Bug::ShortPageEnds, 1, "ingest::walk::tests::reading_down_misses_nothing"),
    (Bug::SweepWithoutLateness, 1, "ingest::tests::edges::a_late_row_that_no_total_tells_of_is_swept_up"),
    (Bug::IgnoreAlarm, 1, "ingest::tests::edges::a_rise_of_the_total_brings_a_sweep_at_once"),
    (
        Bug::DedupeByEventId,
        1,
        "ingest::known::tests::another_event_under_the_same_id_gets_its_own_and_keeps_it",
    ),
    (Bug::BackfillEdge, 1, "ingest::tests::edges::what_appears_while_the_gateway_starts_is_no_backfill"),
    (Bug::TailNamesEnd, 1, "ingest::tests::edges::the_tail_asks_for_rows_without_an_end"),
    (
        Bug::BadEventTakesBatch,
        7,
        "ingest::tests::store::an_event_that_cannot_be_stored_is_counted_and_its_neighbours_are_stored",
    ),
    (Bug::ForgetGap, 1, "ingest::tests::what_upstream_forgot_meanwhile_is_announced"),
    (Bug::FreeAtAnswer, 2, "globalsim::budget::tests::the_receiver_never_counts_more"),
    (
        Bug::JournalAfterAnswer,
        2,
        "globalsim::budget::tests::a_request_without_an_answer_counts_from_the_restart",
    ),
    (Bug::IgnoreRefusal, 2, "globalsim::budget::tests::refusals_halve_the_allowance_and_it_grows_back"),
    (Bug::CutBodyIsWhole, 7, "globalsim::client::tests::a_cut_answer_is_never_a_page"),
    (Bug::SkipChecksum, 4, "log::record::tests::a_frame_survives_and_any_flipped_bit_or_cut_is_noticed"),
    (Bug::CutOneTooMany, 3, "log::tests::a_log_on_disk_goes_on_where_it_stopped"),
    (Bug::StampBackwards, 4, "bus::embedded::tests::a_clock_that_steps_back_does_not_take_the_log_along"),
    (
        Bug::SpliceOffByOne,
        4,
        "hub::tests::resuming_at_a_thousand_random_cut_points_neither_skips_nor_repeats",
    ),
    (Bug::SilentExpiry, 4, "hub::tests::holes::a_reader_overtaken_by_retention_is_told_exactly_what_it_lost"),
    (Bug::HistoryIgnoresScope, 4, "frontends::http::tests::a_tokens_scope_and_policy_narrow_every_route"),
    (Bug::UnboundedPages, 6, "frontends::http::events::tests::pages_take_room_until_their_last_byte_is_gone"),
    (Bug::ForgetErased, 1, "log::tests::erase::what_is_erased_leaves_every_file_and_nothing_else_changes"),
    (
        Bug::KeepOldSidecar,
        4,
        "log::tests::erase::power_lost_at_any_step_of_an_erasure_loses_nothing_of_others_and_the_next_one_finishes_it",
    ),
    (
        Bug::CountRows,
        1,
        "ingest::sims::walk::tests::a_list_that_ignores_offsets_is_never_taken_for_the_whole",
    ),
    (Bug::RollUpInPlace, 1, "views::rollup::tests::whatever_is_killed_everything_is_counted_once"),
    (
        Bug::ForgetOnItsWay,
        5,
        "webhooks::feed::tests::nothing_is_lost_or_sent_again_but_what_was_settled_since_the_last_copy",
    ),
    (
        Bug::OutliveTerm,
        5,
        "webhooks::ownership::tests::who_was_taken_for_dead_owns_nothing_of_before_however_late_it_notices",
    ),
    (Bug::CheckOneAddress, 5, "webhooks::guard::tests::a_name_that_changes_its_mind_leads_nowhere_else"),
];

/// Why a bug counts as not caught.
async fn escape(bug: Bug, test: &str) -> Option<String> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads=1"])
        .env(VARIABLE, bug.name())
        // That it fails is wanted, not the smallest case in which it does.
        .env("PROPTEST_MAX_SHRINK_ITERS", "0")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let Ok(output) = tokio::time::timeout(PATIENCE, child.wait_with_output()).await else {
        return Some(format!("{}: {test} hangs", bug.name()));
    };
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: HashSet<_> = said.lines().map(str::trim).collect();
    let ran = lines.contains("running 1 test");
    let failed = lines.contains(test) && lines.contains("failures:");
    let caught = output.status.code() == Some(EXIT_FAILED) && ran && failed;
    (!caught).then(|| format!("{}: {test}: {}\n{said}", bug.name(), output.status))
}

#[tokio::test]
async fn every_bug_is_caught_by_its_test() {
    let checks = CAUGHT.iter().map(|(bug, _, test)| escape(*bug, test));
    let escaped: Vec<_> =
        stream::iter(checks).buffer_unordered(CONCURRENCY).filter_map(std::future::ready).collect().await;
    assert!(escaped.is_empty(), "{} escaped:\n{}", escaped.len(), escaped.join("\n"));
}

/// A name that no test has, and a bug that is not there, must not count as caught.
#[tokio::test]
async fn what_is_not_caught_is_told() {
    let (bug, _, test) = CAUGHT[0];
    assert!(escape(bug, "log::no_such_test").await.unwrap().contains("running 0 tests"));
    assert!(escape(Bug::UnboundedPages, test).await.unwrap().contains("1 passed"));
}

#[test]
fn every_bug_has_a_test_and_the_documents_tell_the_same() {
    let listed: HashSet<_> = CAUGHT.iter().map(|(bug, ..)| *bug).collect();
    assert_eq!((listed.len(), CAUGHT.len()), (Bug::ALL.len(), Bug::ALL.len()));
    let names: HashSet<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
    assert_eq!(names.len(), Bug::ALL.len());
    let document = include_str!("../../docs/GUARANTEES.md");
    let (_, section) = document.split_once("## Deliberate bugs\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let row = |line: &str| {
        let cells: Vec<_> =
            line.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`').to_owned()).collect();
        (cells.len() == 4).then(|| (cells[0].clone(), cells[2].clone(), cells[3].clone()))
    };
    let told: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).filter_map(row).collect();
    let ours: Vec<_> = CAUGHT
        .iter()
        .map(|(bug, promise, test)| (bug.name().to_owned(), promise.to_string(), (*test).to_owned()))
        .collect();
    assert_eq!(told, ours);
}

/// Backquoted names in a text.
fn names(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The document names tests; each is there, in this binary or in the sources of the whole gateways' tests.
#[tokio::test]
async fn every_test_that_the_promises_name_exists() {
    let listed = Command::new(std::env::current_exe().unwrap()).arg("--list").output().await.unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let here: HashSet<_> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let there = |path: &str| {
        let (module, test) = path.rsplit_once("::").unwrap();
        let file = format!("{}/tests/it/{}.rs", env!("CARGO_MANIFEST_DIR"), module.replace("::", "/"));
        let source = std::fs::read_to_string(&file).unwrap_or_default();
        // This macro makes a test of it for each bus.
        if source.contains(&format!("on_both_buses!({test});")) {
            return true;
        }
        source.split("#[tokio::test").skip(1).any(|one| {
            let head = one.split('{').next().unwrap_or_default();
            head.contains(&format!("fn {test}("))
        })
    };
    let of_module =
        |test: &str, name: &str| test.strip_prefix(name).is_some_and(|rest| rest.starts_with("::"));
    let document = include_str!("../../docs/GUARANTEES.md");
    let named: Vec<_> = names(document).into_iter().filter(|name| name.contains("::")).collect();
    let missing: Vec<_> = named
        .iter()
        .filter(|name| match name.strip_prefix("it::") {
            Some("") => false,
            Some(path) => !there(path),
            // One that runs on several servers is a module with a test for each.
            None => !here.contains(*name) && !here.iter().any(|test| of_module(test, name)),
        })
        .collect();
    assert!(named.len() > 100, "only {} tests are named: this test looks at nothing", named.len());
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Each promise names the bugs that show that its tests can fail, and all tests that catch them.
#[test]
fn each_promise_names_its_bugs_and_the_tests_that_catch_them() {
    let document = include_str!("../../docs/GUARANTEES.md");
    let (_, promises) = document.split_once("## Promises\n").unwrap();
    let promises = promises.split("\n## ").next().unwrap();
    for number in 1..=7_u8 {
        let (_, promise) = promises.split_once(&format!("### {number}. ")).unwrap();
        let promise = promise.split("\n### ").next().unwrap();
        let (tests, bugs) = promise.split_once("\nBugs: ").unwrap_or((promise, ""));
        let ours: Vec<_> = CAUGHT.iter().filter(|(_, of, _)| *of == number).collect();
        let told: HashSet<_> = names(bugs).into_iter().collect();
        assert_eq!(told, ours.iter().map(|(bug, ..)| bug.name()).collect(), "promise {number}");
        let tests: HashSet<_> = names(tests).into_iter().collect();
        let silent: Vec<_> = ours.iter().filter(|(.., test)| !tests.contains(test)).collect();
        assert!(silent.is_empty(), "promise {number} does not name {silent:?}");
    }
}
