//! `wharf demo`: it plays, it checks, and it ends.

use crate::process::{Outcome, Process, backends, combinations, skipped, wharf};

#[test]
fn a_short_demo_finds_every_message_right() {
    for (backend, style) in combinations() {
        // Those who send much are few: its end waits ten seconds for them, and a busy machine seals slowly.
        for (size, clients) in [("1", "5"), ("1000", "5"), ("3000000", "2")] {
            let game = ["demo", "--duration", "200ms", "--clients", clients, "--size", size];
            let args = ["--style", style, "--backend", backend];
            assert_right_on(backend, &Process::run(wharf(game).args(args), Vec::new()));
        }
    }
}

#[test]
fn every_engine_and_number_of_workers_plays() {
    for backend in backends() {
        for workers in ["1", "3"] {
            let args = ["demo", "--duration", "50ms", "--backend", backend, "--workers", workers];
            assert_right_on(backend, &Process::run(&mut wharf(args), Vec::new()));
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn sigint_ends_a_demo_early_and_cleanly() {
    use std::process::Stdio;

    let process = Process::start(wharf(["demo", "--duration", "1h"]).stdout(Stdio::piped()));
    // It watches for signals before its clients begin.
    process.await_thread("clients-");
    process.signal(rustix::process::Signal::INT);
    assert_right(&process.outcome());
}

#[test]
fn more_clients_than_descriptors_are_refused_at_once() {
    let outcome = Process::run(&mut wharf(["demo", "--clients", "100000"]), Vec::new());
    if outcome.code == Some(0) {
        return skipped("this process may open more than 200,000 descriptors");
    }
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.starts_with("wharf: 100000 clients need too many descriptors"), "{outcome:?}");
}

pub(crate) fn assert_right_on(backend: &str, outcome: &Outcome) {
    assert_right(outcome);
    let stdout = String::from_utf8_lossy(&outcome.stdout);
    let first = stdout.lines().next().unwrap_or_default();
    assert!(first.starts_with("ping-pong  plain: "), "{stdout}");
    assert!(stdout.contains("\nping-pong  TLS 1.3, TLS13_"), "{stdout}");
    assert!(first.ends_with(&format!(" style on {backend}")), "{stdout}");
}

fn assert_right(outcome: &Outcome) {
    let stdout = String::from_utf8_lossy(&outcome.stdout);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(stdout.ends_with("\nevery message came back right\n"), "{stdout}");
}
