//! The configuration as the binary takes it: environment, files, exit codes.
//!
//! Apart from the other tests and by child processes, because the environment belongs to a whole process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
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

/// Files that are deployed, with their text.
fn deployed(dir: &Path, found: &mut Vec<(std::path::PathBuf, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            deployed(&path, found);
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

#[test]
fn variables_in_deploy_exist() {
    let defaults = simcast(&["check", "--print-defaults"], &[], Path::new(".")).out;
    let names = |text: &str| -> BTreeSet<String> {
        let of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        text.split(|c| !of_name(c)).filter(|word| word.starts_with("SIMCAST__")).map(str::to_owned).collect()
    };
    let mut known = names(&defaults);
    known.insert("SIMCAST__AUTH__TOKENS".to_owned());
    let mut files = Vec::new();
    deployed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy"), &mut files);
    let mut used = 0;
    for (path, text) in files {
        for name in names(&text) {
            used += 1;
            assert!(known.contains(&name), "{} uses {name}, which is no key", path.display());
        }
    }
    assert!(used > 5, "{used}");
}

/// Checks a deployed file with variables and with a key and a token in the place of what is to be replaced.
fn check_deployed(file: &str, env: &[(&str, &str)]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    let text = std::fs::read_to_string(source).unwrap().replace("REPLACE-BY-64-HEX-DIGITS", &"a".repeat(64));
    std::fs::write(dir.path().join("simcast.toml"), text).unwrap();
    std::fs::write(dir.path().join("key"), "topsecret\n").unwrap();
    let env = [&[("SIMCAST__UPSTREAM__API_KEY_FILE", "key")], env].concat();
    simcast(&["check", "--config", "simcast.toml"], &env, dir.path())
}

/// The token of the example of secrets for Kubernetes.
fn deployed_tokens() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/secrets.example.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once("auth-tokens: '").unwrap();
    rest.split_once('\'').unwrap().0.replace("REPLACE-BY-64-HEX-DIGITS", &"a".repeat(64))
}

#[test]
fn deployed_files_are_valid_with_a_token_and_refused_without() {
    let tokens = deployed_tokens();
    for (file, env) in
        [("systemd/simcast.toml", None), ("simcast.toml", Some(("SIMCAST__AUTH__TOKENS", tokens.as_str())))]
    {
        let run = check_deployed(file, &env.into_iter().collect::<Vec<_>>());
        assert_eq!(run.code, 0, "{file}: {}", run.err);
        assert!(!run.out.contains("warning:"), "{file}: {}", run.out);
    }
    let open = check_deployed("simcast.toml", &[]);
    assert_eq!(open.code, 64);
    assert!(open.err.contains("nobody needs a token"), "{}", open.err);
}

#[test]
fn the_deployed_gateway_on_nats_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/gateway.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    // "- name: VARIABLE" with "value: ..." on the next line.
    let pairs = text.lines().zip(text.lines().skip(1)).filter_map(|(name, value)| {
        let name = name.trim().strip_prefix("- name: ")?;
        let value = value.trim().strip_prefix("value: ")?.trim_matches('"');
        // The directory of the container is made for its user; here it might be nobody's to write.
        let value = if name.ends_with("CACHE_PATH") { "copy" } else { value };
        name.starts_with("SIMCAST__BUS__").then(|| (name, value.replace("$(NATS_PASSWORD)", "p1")))
    });
    let pairs: Vec<_> = pairs.collect();
    assert!(pairs.len() >= 4, "{pairs:?}");
    let tokens = deployed_tokens();
    let mut env = vec![("SIMCAST__AUTH__TOKENS", tokens.as_str())];
    env.extend(pairs.iter().map(|(name, value)| (*name, value.as_str())));
    let run = check_deployed("simcast.toml", &env);
    assert_eq!(run.code, 0, "{}", run.err);
    for (name, value) in &pairs {
        assert!(run.out.contains(&format!("({name})")), "{name} = {value}: {}", run.out);
    }
}
