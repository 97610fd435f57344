//! What cannot be done is refused in one clear line.

use std::net::TcpListener;

use crate::process::{Process, listen, wharf};

#[test]
fn what_cannot_be_done_is_one_line_that_names_operation_address_and_cause() {
    let (_taken, taken) = listen();
    let serve = |listen: &'static str| vec!["serve", "echo", "--listen", listen];
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (serve("no-such-host.invalid:80"), "cannot resolve no-such-host.invalid: "),
        (serve("192.0.2.1:7788"), "listen on 192.0.2.1:7788: cannot assign requested address"),
        (vec!["serve", "echo", "--listen", &taken], "address already in use"),
        (serve("unix:/no/such/folder/socket"), "listen on unix:/no/such/folder/socket: no such file"),
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
        (
            &["serve", "echo", "--listen", "127.0.0.1:0", "--backend", "steam"],
            "must be auto, uring or readiness",
        ),
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

/// Also where only the library knows.
#[test]
fn an_address_and_a_value_that_the_library_refuses_make_no_sense_either() {
    let serve = |option: &'static str, value: &'static str| {
        vec!["serve", "echo", "--listen", "127.0.0.1:0", option, value]
    };
    let relay = |target: &'static str| vec!["relay", "127.0.0.1:0", target];
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (serve("--listen", ""), "listen on : the port is missing; write HOST:PORT"),
        (serve("--listen", "localhost"), "listen on localhost: the port is missing"),
        (serve("--listen", "127.0.0.1:http"), "listen on 127.0.0.1:http: `http` is not a port number"),
        (serve("--listen", "127.0.0.1:70000"), "listen on 127.0.0.1:70000: `70000` is not a port number"),
        (serve("--listen", "::1:80"), "listen on ::1:80: `::1` is not an IPv6 address"),
        (serve("--listen", "unix:"), "listen on unix:: the path is missing"),
        (serve("--workers", "0"), "--workers must be between 1 and 1024, not 0"),
        (serve("--spin", "1s"), "--spin must be at most 10 ms"),
        (serve("--watchdog", "1ms"), "--watchdog must be at least 10 ms"),
        (serve("--keepalive", "500ms"), "--keepalive must be between 1 s and 32767 s"),
        (serve("--user-timeout", "1us"), "--user-timeout must be between 1 ms and"),
        (serve("--device", "no/device"), "--device must be the name of a network device"),
        (
            [serve("--style", "blocking"), vec!["--watchdog", "1s"]].concat(),
            "--style blocking has no workers, and does without --watchdog",
        ),
        (vec!["demo", "--workers", "0"], "--workers must be between 1 and 1024"),
        (vec!["demo", "--style", "blocking"], "--style blocking is for `wharf serve` only"),
        (vec!["connect", "localhost"], "connect to localhost: the port is missing"),
        (vec!["connect", "[::1]:x"], "connect to [::1]:x: `x` is not a port number"),
        (vec!["connect", "127.0.0.1:0"], "connect to 127.0.0.1:0: nobody listens at port 0"),
        (vec!["connect", "127.0.0.1:1", "--tls", "--servername", "-"], "--servername: `-` is neither"),
        (vec!["cert", "check", "localhost"], "connect to localhost: the port is missing"),
        (vec!["relay", "localhost", "127.0.0.1:1"], "listen on localhost: the port is missing"),
        // At the start, and not when the first client comes.
        (relay("localhost"), "connect to localhost: the port is missing"),
        (relay("127.0.0.1:0"), "connect to 127.0.0.1:0: nobody listens at port 0"),
    ];
    for (args, expected) in cases {
        let outcome = Process::run(&mut wharf(&args), Vec::new());
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.starts_with(&format!("error: {expected}")), "{args:?}: {outcome:?}");
        assert_eq!(outcome.stdout, b"", "{args:?}: {outcome:?}");
    }
}

#[test]
fn a_time_in_which_nothing_can_happen_is_refused() {
    let cases: [(&[&str], &str); 5] = [
        (&["connect", "127.0.0.1:1"], "--timeout"),
        (&["cert", "check", "127.0.0.1:1"], "--timeout"),
        (&["relay", "127.0.0.1:0", "127.0.0.1:1"], "--timeout"),
        (&["relay", "127.0.0.1:0", "127.0.0.1:1"], "--idle"),
        (&["relay", "127.0.0.1:0", "127.0.0.1:1"], "--half-closed-idle"),
    ];
    for (args, option) in cases {
        let outcome = Process::run(wharf(args).args([option, "0s"]), Vec::new());
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        let named = format!("error: invalid value '0s' for '{option} <D>': must be longer than zero");
        assert!(outcome.stderr.starts_with(&named), "{outcome:?}");
    }
}

#[test]
fn a_file_without_an_end_is_read_no_further_than_a_bound() {
    let cases: [(&[&str], &str); 2] = [
        (&["serve", "echo", "--config", "/dev/zero"], "wharf: read /dev/zero: it is larger than 1 MiB\n"),
        (&["cert", "show", "/dev/zero"], "wharf: read /dev/zero: it is larger than 64 MiB\n"),
    ];
    for (args, expected) in cases {
        let outcome = Process::run(&mut wharf(args), Vec::new());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), expected), "{args:?}");
    }
    let outcome =
        Process::run(&mut wharf(["connect", "127.0.0.1:1", "--tls", "--ca", "/dev/zero"]), Vec::new());
    assert_eq!(outcome.stderr, "wharf: --ca: load /dev/zero: is larger than 64 MiB\n");
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
        ("--idle-timeout", "soon", "must be a number with its unit, such as 500ms, 30s or 2m"),
        ("--min-rate", "0", "must be at least 1 byte"),
        ("--min-rate", "240/10", "the unit is missing; write 500ms, 30s or 2m"),
        ("--write-timeout", "3", "the unit is missing; write 500ms, 30s or 2m"),
        ("--max-age", "3parsecs", "`parsecs` is not a unit; there are ms, s, m, h and d"),
        ("--max-age", "99999999999999999999s", "is longer than can be waited for"),
        ("--max-age", "old", "must be a number with its unit, such as 500ms, 30s or 2m"),
        ("--drain", "none", "must be a number with its unit, such as 500ms, 30s or 2m"),
        ("--write-queue", "64kB", "`kB` is not a unit; there are B, KiB, MiB and GiB"),
        ("--write-queue", "1KiB", "must be at least 8KiB"),
        ("--max-memory", "1KiB", "must be at least 1024KiB"),
        ("--when-full", "cry", "possible values: wait, refuse, disconnect"),
        ("--backlog", "0", "0 is not in 1..=2147483647"),
        ("--nodelay", "maybe", "possible values: on, off"),
        ("--keepalive", "never", "must be a number with its unit, such as 500ms, 30s or 2m"),
        ("--user-timeout", "0s", "must be longer than zero"),
        ("--dscp", "64", "64 is not in 0..=63"),
        ("--mark", "blue", "must be a number of 32 bits, such as 7 or 0x1f"),
        ("--watchdog", "dog", "must be a number with its unit, such as 500ms, 30s or 2m"),
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
    for command in ["demo", "serve", "connect", "relay", "cert check", "cert show", "probe"] {
        let outcome = Process::run(wharf(command.split(' ')).arg("--help"), Vec::new());
        let help = String::from_utf8_lossy(&outcome.stdout);
        assert_eq!(outcome.code, Some(0));
        assert!(help.contains("Exit codes:"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        assert_eq!(help.contains(" <D>"), help.contains("Durations (D) are written as"), "{help}");
        assert_eq!(help.contains(" <BYTES"), help.contains("Sizes (BYTES) as"), "{help}");
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
