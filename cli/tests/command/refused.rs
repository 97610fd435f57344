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
            [serve("127.0.0.1:0"), vec!["--watchdog", "1ms"]].concat(),
            "option `watchdog` must be at least 10 ms",
        ),
        (
            [serve("127.0.0.1:0"), vec!["--keepalive", "500ms"]].concat(),
            "option `keepalive` must be between 1 s and 32767 s",
        ),
        (
            [serve("127.0.0.1:0"), vec!["--device", "no/device"]].concat(),
            "option `device` must be the name of a network device",
        ),
        (serve("unix:"), "listen on unix:: the path is missing"),
        (serve("unix:/no/such/folder/socket"), "listen on unix:/no/such/folder/socket: no such file"),
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
fn a_value_that_makes_no_sense_is_named_with_its_option() {
    let cases = [
        ("--max-connections", "0", "0 is not in 1.."),
        ("--max-per-address", "few", "invalid digit"),
        ("--ipv6-prefix", "129", "129 is not in 1..=128"),
        ("--accept-rate", "5/0", "must be at least 1"),
        ("--accept-rate", "fast", "`fast` is not a number"),
        ("--over-limit", "pray", "possible values: queue, close, reset"),
        ("--allow", "10.1.0.0/8", "the address has bits behind the prefix; write 10.0.0.0/8"),
        ("--deny", "localhost", "`localhost` is not an IP address"),
        ("--proxy-protocol", "10.0.0.0/33", "`33` is not a number of bits (0 to 32)"),
        ("--first-byte-timeout", "0s", "must be longer than zero; `none` turns it off"),
        ("--idle-timeout", "soon", "expected number at 0"),
        ("--min-rate", "0", "must be at least 1 byte"),
        ("--min-rate", "240/10", "time unit needed"),
        ("--write-timeout", "3", "time unit needed"),
        ("--max-age", "old", "expected number at 0"),
        ("--drain", "none", "expected number at 0"),
        ("--write-queue", "64kB", "`kB` is not a unit; there are B, KiB, MiB and GiB"),
        ("--write-queue", "1KiB", "must be at least 8KiB"),
        ("--max-memory", "1KiB", "must be at least 1024KiB"),
        ("--when-full", "cry", "possible values: wait, refuse, disconnect"),
        ("--backlog", "0", "number would be zero"),
        ("--nodelay", "maybe", "possible values: on, off"),
        ("--keepalive", "never", "expected number at 0"),
        ("--user-timeout", "0s", "must be longer than zero"),
        ("--dscp", "64", "64 is not in 0..=63"),
        ("--mark", "blue", "must be a number of 32 bits, such as 7 or 0x1f"),
        ("--watchdog", "dog", "expected number at 0"),
    ];
    for (option, value, problem) in cases {
        let args = ["serve", "echo", "--listen", "127.0.0.1:0", option, value];
        let outcome = Process::run(&mut wharf(args), Vec::new());
        let stderr = &outcome.stderr;
        assert_eq!(outcome.code, Some(2), "{option} {value}: {stderr}");
        let named = format!("error: invalid value '{value}' for '{option} <");
        assert!(stderr.starts_with(&named) && stderr.contains(problem), "{option} {value}: {stderr}");
    }
}

#[test]
fn help_tells_the_exit_codes() {
    for command in ["demo", "serve", "connect", "cert check", "cert show", "probe"] {
        let outcome = Process::run(wharf(command.split(' ')).arg("--help"), Vec::new());
        let help = String::from_utf8_lossy(&outcome.stdout);
        assert_eq!(outcome.code, Some(0));
        assert!(help.contains("Exit codes:"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}

#[test]
fn the_help_of_serve_has_an_order() {
    let outcome = Process::run(&mut wharf(["serve", "--help"]), Vec::new());
    let help = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let headings =
        ["Listening", "TLS", "Admission", "Deadlines", "Queues", "Sockets", "Running", "The file", "Signals"];
    let at = headings.map(|heading| help.find(&format!("\n{heading}:\n")).expect(heading));
    assert!(at.is_sorted(), "{help}");
}

fn assert_refused(args: &[&str], code: i32, expected: &str) {
    let outcome = Process::run(&mut wharf(args), Vec::new());
    assert_eq!(outcome.code, Some(code), "{args:?}: {outcome:?}");
    assert!(outcome.stderr.contains(expected), "{args:?}: {outcome:?}");
    assert!(outcome.stderr.starts_with("wharf: ") && outcome.stderr.lines().count() == 1, "{outcome:?}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
}
