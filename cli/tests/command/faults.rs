//! io_uring forbidden, missing, limited and interrupted: strace makes its system calls fail.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::demo::assert_right_on;
use crate::probe::{fact, facts};
use crate::process::{Process, Server, skipped, uring_works, wharf};

/// What a refused io_uring_setup(2) can say, and what the hint has to name then.
const REFUSALS: [(&str, &str, &str); 4] = [
    ("EPERM", "operation not permitted", "io_uring"),
    ("ENOSYS", "function not implemented", "Linux 6.1"),
    ("ENOMEM", "cannot allocate memory", "ulimit -l"),
    ("EINVAL", "invalid argument", "Linux 6.1"),
];

#[test]
fn probe_says_why_and_what_to_do_and_auto_is_readiness() {
    for (errno, cause, hint) in REFUSALS {
        let Some(mut command) = with_fault(&refused(errno), &["probe"]) else { return };
        let outcome = Process::run(&mut command, Vec::new());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{errno}");
        let facts = facts(&outcome);
        assert_eq!(fact(&facts, "auto"), "readiness");
        assert_eq!(fact(&facts, "uring"), format!("no: setting up a ring with buffers: {cause}"));
        assert!(fact(&facts, "uring.hint").contains(hint), "{facts:?}");
        assert!(fact(&facts, "readiness").starts_with("yes"), "{facts:?}");
    }
}

#[test]
fn auto_does_without_io_uring_and_serve_says_so() {
    for (errno, ..) in REFUSALS {
        let fault = refused(errno);
        let Some(mut game) = with_fault(&fault, &["demo", "--duration", "50ms"]) else { return };
        assert_right_on("readiness", &Process::run(&mut game, Vec::new()));

        let serve = ["serve", "echo", "--listen", "127.0.0.1:0", "-v"];
        let Some(command) = with_fault(&fault, &serve) else { return };
        let server = Server::of(command);
        let mut client = server.connect();
        client.write_all(b"still here").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "still here");
        let outcome = server.end(Signal::TERM);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let said = outcome.stderr;
        assert!(
            said.contains("workers on readiness, as io_uring cannot be used: `wharf probe` tells why"),
            "{said}"
        );
        assert_eq!(said.matches("io_uring is not used").count(), 1, "{said}");
    }
}

#[test]
fn uring_by_name_is_refused_in_one_line() {
    let commands: [(&[&str], &str); 3] = [
        (&["serve", "echo", "--listen", "127.0.0.1:0", "--backend", "uring"], "start"),
        (&["demo", "--backend", "uring"], "start"),
        (&["connect", "127.0.0.1:9", "--backend", "uring"], "run"),
    ];
    for (errno, cause, hint) in REFUSALS {
        for (args, operation) in commands {
            let Some(mut command) = with_fault(&refused(errno), args) else { return };
            let outcome = Process::run(&mut command, Vec::new());
            assert_eq!(outcome.code, Some(1), "{args:?}: {outcome:?}");
            let step = "io_uring cannot be used: setting up a ring with buffers";
            let line = format!("wharf: {operation}: {step}: {cause} (");
            assert!(outcome.stderr.starts_with(&line), "{args:?}: {outcome:?}");
            assert!(outcome.stderr[line.len()..].contains(hint), "{args:?}: {outcome:?}");
            assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
            assert_eq!(outcome.stdout, b"", "{args:?}");
        }
    }
}

/// The trial works, and then a limit is reached. Each thread counts its own system calls.
#[test]
fn a_worker_without_a_ring_is_told_of() {
    if !uring_works() {
        return;
    }
    let fault = "inject=io_uring_setup:error=ENOMEM:when=2+";
    let game = ["demo", "--duration", "50ms", "--workers", "2"];
    let Some(mut command) = with_fault(fault, &game) else { return };
    assert_right_on("uring (1) and readiness (1)", &Process::run(&mut command, Vec::new()));

    let named = [&game[..], &["--backend", "uring"]].concat();
    let Some(mut command) = with_fault(fault, &named) else { return };
    let outcome = Process::run(&mut command, Vec::new());
    let line =
        "wharf: start: io_uring cannot be used: setting up the ring of a worker: cannot allocate memory (";
    assert!(outcome.stderr.starts_with(line) && outcome.stderr.lines().count() == 1, "{outcome:?}");
    assert_eq!(outcome.code, Some(1));
}

#[test]
fn an_interrupted_wait_loses_nothing() {
    if !uring_works() {
        return;
    }
    for errno in ["EINTR", "EAGAIN", "EBUSY"] {
        for when in ["3+7", "2+2"] {
            let fault = format!("inject=io_uring_enter:error={errno}:when={when}");
            let game = ["demo", "--duration", "200ms", "--clients", "5", "--backend", "uring"];
            let Some(mut command) = with_fault(&fault, &game) else { return };
            assert_right_on("uring", &Process::run(&mut command, Vec::new()));
        }
    }
}

fn refused(errno: &str) -> String {
    format!("inject=io_uring_setup:error={errno}")
}

/// The command with a fault; `None`, and a word about it, where strace cannot work.
fn with_fault(fault: &str, args: &[&str]) -> Option<Command> {
    traced(&["-o", "/dev/null", "-e", "trace=io_uring_setup,io_uring_enter", "-e", fault], args)
}

/// The command under strace with these options; `None`, and a word about it, where strace cannot work.
///
/// strace watches from aside (-D), so that signals and the exit code are the command's own. Not in the trial: then it would
/// not be seen to fail where it is there and forbidden.
pub(crate) fn traced(options: &[&str], args: &[&str]) -> Option<Command> {
    let mut trial = Command::new("strace");
    trial.args(["-qq", "-o", "/dev/null", "true"]);
    trial.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !trial.status().is_ok_and(|status| status.success()) {
        skipped("strace is not installed, or may not trace");
        return None;
    }
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq"]).args(options).arg(wharf::<&str>([]).get_program()).args(args);
    Some(command)
}
