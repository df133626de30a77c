//! The configuration as the binary takes it: environment, files, exit codes.
//!
//! Apart from the other tests and by child processes, because the environment belongs to a whole process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::{Command, Output},
};

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn simcast(args: &[&str], env: &[(&str, &str)], dir: &Path) -> Run {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_simcast"))
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .current_dir(dir)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

const ENV: [(&str, &str); 2] = [
    ("SIMCAST__UPSTREAM__BASE_URL", "https://api.example.com/v1/globalsim"),
    ("SIMCAST__UPSTREAM__API_KEY", "topsecret"),
];

#[test]
fn the_environment_alone_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let run = simcast(&["check"], &ENV, dir.path());
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.starts_with("configuration is valid\n"), "{}", run.out);
    assert!(run.out.contains("(SIMCAST__UPSTREAM__BASE_URL)"), "{}", run.out);
    assert!(!run.out.contains("topsecret"), "{}", run.out);
}

#[test]
fn every_mistake_is_told_at_once_with_exit_code_64() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s.toml"), "[http]\nlisten = \"0.0.0.0:80\"\n[htp]\nlisten = 1\n")
        .unwrap();
    let run = simcast(
        &["check"],
        &[
            ("SIMCAST_CONFIG", "s.toml"),
            ("SIMCAST__LOG__LEVEL", "loud"),
            ("SIMCAST__UPSTREAM__API_KEY", "topsecret"),
        ],
        dir.path(),
    );
    assert_eq!((run.code, run.out.as_str()), (64, ""));
    assert!(run.err.starts_with("simcast: the configuration has 4 mistakes:\n"), "{}", run.err);
    for expected in [
        "http.listen (s.toml:2): 0.0.0.0:80 can be reached from other machines",
        "htp (s.toml:3): there is no such key; did you mean [http]?",
        "log.level (SIMCAST__LOG__LEVEL): ",
        "upstream.base_url: the address of the GlobalSIM API is not set",
    ] {
        assert!(run.err.contains(expected), "{expected} is missing in {}", run.err);
    }
    assert!(!run.err.contains("topsecret"), "{}", run.err);
}

#[test]
fn the_environment_wins_over_the_file_and_config_over_its_variable() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.toml"), "[upstream]\nname = \"a\"\n[grpc]\nreflection = false\n")
        .unwrap();
    std::fs::write(dir.path().join("b.toml"), "[upstream]\nname = \"b\"\n").unwrap();
    let env = [&ENV[..], &[("SIMCAST__UPSTREAM__NAME", "env"), ("SIMCAST_CONFIG", "b.toml")]].concat();
    let shown = simcast(&["check", "--config", "a.toml"], &env, dir.path()).out;
    assert!(shown.contains("\"env\"  (SIMCAST__UPSTREAM__NAME)"), "{shown}");
    assert!(shown.contains("false  (a.toml:4)"), "{shown}");
}

#[test]
fn the_printed_defaults_are_a_configuration_file() {
    let dir = tempfile::tempdir().unwrap();
    let printed = simcast(&["check", "--print-defaults"], &[], dir.path());
    assert_eq!(printed.code, 0);
    std::fs::write(dir.path().join("s.toml"), printed.out).unwrap();
    let run = simcast(&["check", "--config", "s.toml"], &ENV, dir.path());
    assert_eq!(run.code, 0, "{}", run.err);
}

#[test]
fn bad_arguments_are_64_and_help_is_0() {
    let dir = tempfile::tempdir().unwrap();
    for args in
        [&["--bogus"][..], &["tail", "--from", "yesterday"], &["tail", "--last", "1", "--from", "now"], &[]]
    {
        let run = simcast(args, &[], dir.path());
        assert_eq!((run.code, run.out.as_str()), (64, ""), "{args:?}");
        assert!(!run.err.is_empty(), "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["tail", "--help"], &["completions", "zsh"]] {
        let run = simcast(args, &[], dir.path());
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{args:?}");
        assert!(!run.out.is_empty(), "{args:?}");
    }
}

#[test]
fn a_token_in_the_environment_is_not_shown_by_help() {
    let dir = tempfile::tempdir().unwrap();
    let run = simcast(&["tail", "--help"], &[("SIMCAST_TOKEN", "sct_secret")], dir.path());
    assert!(run.out.contains("SIMCAST_TOKEN") && !run.out.contains("sct_secret"), "{}", run.out);
}
