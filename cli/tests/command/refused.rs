//! What cannot be done is refused in one clear line.

use std::net::TcpListener;

use crate::process::{Process, listen, wharf};

#[test]
fn what_cannot_be_done_is_one_line_that_names_operation_address_and_cause() {
    let (_taken, taken) = listen();
    let serve = |listen: &'static str| vec!["serve", "echo", "--listen", listen];
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (serve("localhost"), "listen on localhost: the port is missing"),
        (serve("127.0.0.1:http"), "listen on 127.0.0.1:http: `http` is not a port number"),
        (serve("127.0.0.1:70000"), "listen on 127.0.0.1:70000: `70000` is not a port number"),
        (serve("::1:80"), "listen on ::1:80: `::1` is not an IPv6 address"),
        (serve("no-such-host.invalid:80"), "cannot resolve no-such-host.invalid: "),
        (serve("192.0.2.1:7788"), "listen on 192.0.2.1:7788: cannot assign requested address"),
        (vec!["serve", "echo", "--listen", &taken], "address already in use"),
        (
            [serve("127.0.0.1:0"), vec!["--workers", "0"]].concat(),
            "option `workers` must be between 1 and 1024",
        ),
        (
            [serve("127.0.0.1:0"), vec!["--max-connections", "0"]].concat(),
            "option `connections` must be at least 1",
        ),
        (vec!["demo", "--workers", "0"], "option `workers` must be between 1 and 1024"),
        (vec!["connect", "localhost"], "connect to localhost: the port is missing"),
        (vec!["connect", "[::1]:x"], "connect to [::1]:x: `x` is not a port number"),
        (vec!["connect", "no-such-host.invalid:80"], "cannot resolve no-such-host.invalid: "),
    ];
    for (args, expected) in cases {
        assert_refused(&args, 1, expected);
    }
}

#[test]
fn a_port_where_nobody_listens_is_refused_with_its_address() {
    let (listener, address): (TcpListener, String) = listen();
    drop(listener);
    assert_refused(&["connect", &address], 1, &format!("connect to {address}: connection refused"));
}

#[test]
fn input_that_cannot_be_read_is_one_line() {
    let (_listener, address) = listen();
    let directory = std::fs::File::open(".").unwrap();
    let outcome = wharf(["connect", &address]).stdin(directory).output().unwrap();
    let stderr = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(1));
    assert_eq!(stderr, "wharf: read standard input: is a directory\n");
}

#[test]
fn a_command_line_that_makes_no_sense_exits_2() {
    let cases: [(&[&str], &str); 8] = [
        (&[], "Usage: wharf <COMMAND>"),
        (&["fly"], "unrecognized subcommand 'fly'"),
        (&["serve", "echo"], "--listen"),
        (&["serve", "tea", "--listen", "127.0.0.1:0"], "possible values: echo, discard, chargen, pingpong"),
        (&["serve", "echo", "--listen", "127.0.0.1:0", "--idle-timeout", "soon"], "--idle-timeout"),
        (&["serve", "echo", "--listen", "127.0.0.1:0", "--backend", "steam"], "auto, uring, readiness"),
        (&["serve", "echo", "--listen", "127.0.0.1:0", "-q", "-v"], "cannot be used with"),
        (&["demo", "--clients", "0"], "0 is not in 1..=100000"),
    ];
    for (args, expected) in cases {
        let outcome = Process::run(&mut wharf(args), Vec::new());
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains(expected), "{args:?}: {outcome:?}");
        assert!(!outcome.stderr.contains("panicked"), "{args:?}: {outcome:?}");
    }
}

#[test]
fn help_tells_the_exit_codes() {
    for command in ["demo", "serve", "connect", "probe"] {
        let outcome = Process::run(&mut wharf([command, "--help"]), Vec::new());
        let help = String::from_utf8_lossy(&outcome.stdout);
        assert_eq!(outcome.code, Some(0));
        assert!(help.contains("Exit codes:"), "{help}");
    }
}

fn assert_refused(args: &[&str], code: i32, expected: &str) {
    let outcome = Process::run(&mut wharf(args), Vec::new());
    assert_eq!(outcome.code, Some(code), "{args:?}: {outcome:?}");
    assert!(outcome.stderr.contains(expected), "{args:?}: {outcome:?}");
    assert!(outcome.stderr.starts_with("wharf: ") && outcome.stderr.lines().count() == 1, "{outcome:?}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
}
