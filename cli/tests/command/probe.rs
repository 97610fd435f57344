//! `wharf probe`: one fact on a line, whatever this machine offers; and the environment variable that decides.

use crate::demo::assert_right_on;
use crate::process::{Outcome, Process, wharf};

#[test]
fn each_line_is_a_name_and_a_fact() {
    let outcome = Process::run(&mut wharf(["probe"]), Vec::new());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    let facts = facts(&outcome);
    let names: Vec<_> = facts.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["kernel", "processors", "auto", "uring", "readiness", "descriptors", "locked_memory"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    assert!(facts.iter().all(|(_, fact)| !fact.is_empty()), "{facts:?}");
    assert!(fact(&facts, "processors").parse::<usize>().is_ok_and(|n| n > 0), "{facts:?}");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    if let Ok(release) = kernel {
        assert_eq!(fact(&facts, "kernel"), format!("Linux {}", release.trim()));
    }
}

#[test]
fn what_does_not_work_has_a_hint() {
    let facts = facts(&Process::run(&mut wharf(["probe"]), Vec::new()));
    for (name, _) in facts.iter().filter(|(_, fact)| fact.starts_with("no")) {
        assert!(!fact(&facts, &format!("{name}.hint")).is_empty(), "{name}: {facts:?}");
    }
}

#[test]
fn the_variable_decides_what_auto_is_and_nothing_else() {
    let with = |value: &str, args: &[&str]| Process::run(wharf(args).env("WHARF_BACKEND", value), Vec::new());
    let found = facts(&with("readiness", &["probe"]));
    assert_eq!(fact(&found, "WHARF_BACKEND"), "readiness");
    assert_eq!(fact(&found, "auto"), "readiness");

    let game = ["demo", "--duration", "20ms"];
    assert_right_on("readiness", &with("readiness", &game));
    assert_right_on(fact(&facts(&with("", &["probe"])), "auto"), &with("", &game));
    let named = [&game[..], &["--backend", "readiness"]].concat();
    assert_right_on("readiness", &with("uring", &named));
    assert_right_on("readiness", &with("steam", &named));
}

#[test]
fn a_variable_that_makes_no_sense_is_one_line_at_the_start() {
    let problem = "environment variable `WHARF_BACKEND`: `steam` is none of auto, uring, readiness";
    let commands: [(&[&str], &str); 3] = [
        (&["demo"], "start"),
        (&["serve", "echo", "--listen", "127.0.0.1:0"], "start"),
        (&["connect", "127.0.0.1:9"], "start"),
    ];
    for (args, operation) in commands {
        let outcome = Process::run(wharf(args).env("WHARF_BACKEND", "steam"), Vec::new());
        let line = format!("wharf: {operation}: {problem}\n");
        assert_eq!((outcome.code, outcome.stderr), (Some(1), line), "{args:?}");
    }
    let outcome = Process::run(wharf(["probe"]).env("WHARF_BACKEND", "steam"), Vec::new());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(fact(&facts(&outcome), "auto"), format!("no: start: {problem}"));
}

/// The names and facts that `wharf probe` printed.
pub(crate) fn facts(outcome: &Outcome) -> Vec<(String, String)> {
    let text = std::str::from_utf8(&outcome.stdout).expect("facts are text");
    let split = |line: &str| {
        let (name, fact) = line.split_once("  ").unwrap_or_else(|| panic!("{line:?} has no fact"));
        (name.to_owned(), fact.trim_start().to_owned())
    };
    text.lines().map(split).collect()
}

/// The fact with this name.
pub(crate) fn fact<'a>(facts: &'a [(String, String)], name: &str) -> &'a str {
    let found = facts.iter().find(|(each, _)| each == name);
    &found.unwrap_or_else(|| panic!("{name} is not among {facts:?}")).1
}
