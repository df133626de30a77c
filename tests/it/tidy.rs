//! What the compiler does not hold the code to: dependencies point one way, and each file says why it exists.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The modules, each of which may use those before it and itself.
const LAYERS: [&str; 18] = [
    "proto",
    "sabotage",
    "clock",
    "event",
    "log",
    "bus",
    "globalsim",
    "ingest",
    "hub",
    "views",
    "auth",
    "lifecycle",
    "observability",
    "webhooks",
    "frontends",
    "config",
    "app",
    "cli",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn layer_of(path: &Path) -> Option<usize> {
    let module = path.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
    LAYERS.iter().position(|layer| *layer == module)
}

/// The code of a file without what is compiled for tests only: those may look wherever they like.
fn product_code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// Top-level modules of this crate that a text names, as `crate::name` or inside `use crate::{...}`.
fn uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            continue;
        };
        let (mut depth, mut word) = (1, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 1 && (c.is_alphanumeric() || c == '_') {
                word.push(c);
            } else if depth == 1 && c == ':' && !word.is_empty() {
                found.push(std::mem::take(&mut word));
                // The path behind the module is not a module of this crate.
                word.push('-');
            } else if c == ',' && depth == 1 {
                found.push(std::mem::take(&mut word));
            }
            if depth == 0 {
                found.push(word);
                break;
            }
        }
    }
    found.retain(|name| !name.is_empty() && !name.contains('-'));
    found
}

#[test]
fn dependencies_point_one_way_and_frontends_do_not_know_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut edges = 0;
    for file in &files {
        let path = file.strip_prefix(&root).unwrap();
        let name = path.to_string_lossy();
        if name.contains("tests") || name.contains("testing") {
            continue;
        }
        let Some(layer) = layer_of(path) else { continue };
        let text = fs::read_to_string(file).unwrap();
        let text: String = product_code(&text)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        for used in uses(&text) {
            let Some(below) = LAYERS.iter().position(|layer| *layer == used) else { continue };
            edges += 1;
            if below > layer {
                wrong.push(format!("{name} uses {used}"));
            }
        }
        if let Some(frontend) = name.strip_prefix("frontends/").and_then(|rest| rest.split(['/', '.']).next())
        {
            for other in ["grpc", "websocket", "sse"].iter().filter(|other| **other != frontend) {
                if text.contains(&format!("frontends::{other}")) || text.contains(&format!("super::{other}"))
                {
                    wrong.push(format!("{name} uses frontend {other}"));
                }
            }
        }
    }
    assert!(edges > 100, "only {edges} uses were found: this test looks at nothing");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_opens_with_why_it_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests", "benches"] {
        sources(&root.join(dir), &mut files);
    }
    let silent: Vec<_> =
        files.into_iter().filter(|file| !fs::read_to_string(file).unwrap().starts_with("//!")).collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

/// Where time and chance come from: who composes the parts, and the name that a new log gives itself.
const SOURCES: [&str; 4] = ["clock.rs", "app.rs", "cli", "bus/embedded.rs"];
/// What would take them from the machine instead; `clippy.toml` forbids its wall clock.
const MACHINE: [&str; 7] = [
    "std::time::Instant",
    "fastrand::Rng::new(",
    "fastrand::u64(",
    "fastrand::usize(",
    "fastrand::f64(",
    "fastrand::shuffle(",
    "thread_rng(",
];

#[test]
fn time_and_chance_are_passed_in() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let (mut wrong, mut there) = (Vec::new(), 0);
    for file in &files {
        let path = file.strip_prefix(&root).unwrap();
        if path.to_string_lossy().contains("tests") {
            continue;
        }
        let text = fs::read_to_string(file).unwrap();
        let code = product_code(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        let found: Vec<_> = code.filter(|line| MACHINE.iter().any(|one| line.contains(one))).collect();
        if SOURCES.iter().any(|source| path.starts_with(source)) {
            there += found.len();
        } else {
            wrong.extend(found.iter().map(|line| format!("{}: {}", path.display(), line.trim())));
        }
        // `use std::time::{Duration, Instant}` is the same.
        for (at, _) in text.match_indices("std::time::{") {
            let group = text[at..].split('}').next().unwrap_or_default();
            if group.contains("Instant") {
                wrong.push(format!("{}: {group}", path.display()));
            }
        }
    }
    assert!(there >= 3, "only {there} are where they may be: this test looks at nothing");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
