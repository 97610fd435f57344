//! `wharf serve --config`: what a file may say, who wins, and how mistakes in it are told.

use rustix::process::Signal;

use crate::process::{Folder, Process, Server, wharf};

#[test]
fn a_file_says_what_the_command_line_leaves_open() {
    let folder = Folder::new("file");
    let file = folder.write(
        "wharf.conf",
        "# Where\nlisten = 127.0.0.1:0\nlisten = 127.0.0.1:0   # and again\n\nidle-timeout = 7s\nnodelay = off\n\
         reuse-port = on\nworkers = 2\nstyle = event\nmax-per-address = 3\n",
    );
    let server = Server::of(wharf(["serve", "echo", "--config", &file]));
    server.next_listener();
    let snapshot = server.snapshot();
    for (name, value) in
        [("deadline.idle", "7s"), ("limit.per_address", "3"), ("connections", "0 of "), ("worker.1", "0")]
    {
        assert!(snapshot.contains(&format!("{name:<22} {value}")), "{name}: {snapshot}");
    }
    assert!(!snapshot.contains("worker.2"), "{snapshot}");
}

#[test]
fn the_command_line_wins() {
    let folder = Folder::new("wins");
    let file = folder.write(
        "wharf.conf",
        "listen = 192.0.2.1:1\nlisten = 192.0.2.1:2\nidle-timeout = 7s\nwrite-timeout = 8s\n",
    );
    let args = ["serve", "echo", "--config", &file, "--listen", "127.0.0.1:0", "--idle-timeout", "60s"];
    let snapshot = Server::of(wharf(args)).snapshot();
    assert!(snapshot.contains(&format!("{:<22} 60s\n", "deadline.idle")), "{snapshot}");
    assert!(snapshot.contains(&format!("{:<22} 8s\n", "deadline.write")), "{snapshot}");
    assert_eq!(snapshot.matches("listener ").count(), 1, "{snapshot}");
}

#[test]
fn a_mistake_is_one_line_with_file_and_line() {
    let folder = Folder::new("mistakes");
    let cases = [
        (
            "idle-timout = 5s",
            "`idle-timout` is not an option that a file can have; did you mean `idle-timeout`?",
        ),
        ("idle-timeout = 3", "invalid value '3' for '--idle-timeout <D>': the unit is missing"),
        ("idle-timeout", "`idle-timeout` is not NAME = VALUE"),
        ("--drain = 3s", "`--drain` stands without its dashes in a file"),
        ("drain =", "`drain` has no value"),
        ("quiet = on", "`quiet` is not an option that a file can have"),
        (
            "over-limit = pray",
            "invalid value 'pray' for '--over-limit <POLICY>' [possible values: queue, close, reset]",
        ),
        ("allow = 10.1.0.0/8", "the address has bits behind the prefix; write 10.0.0.0/8"),
        ("max-connections = 0", "invalid value '0' for '--max-connections <N>': 0 is not in 1.."),
    ];
    for (line, problem) in cases {
        let file = folder.write("wharf.conf", &format!("# first\nlisten = 127.0.0.1:0\n{line}\n"));
        let outcome = Process::run(&mut wharf(["serve", "echo", "--config", &file]), Vec::new());
        assert_eq!(outcome.code, Some(1), "{line}: {outcome:?}");
        assert!(outcome.stderr.starts_with(&format!("wharf: {file}:3: ")), "{line}: {outcome:?}");
        assert!(outcome.stderr.contains(problem), "{line}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{line}: {outcome:?}");
    }
}

#[test]
fn an_option_of_which_there_is_one_stands_in_one_line() {
    let folder = Folder::new("twice");
    let file = folder.write("wharf.conf", "drain = 1s\nidle-timeout = 1s\ndrain = 2s\n");
    let outcome = Process::run(&mut wharf(["serve", "echo", "--config", &file]), Vec::new());
    let problem = "the argument '--drain <D>' cannot be used multiple times";
    assert_eq!(outcome.stderr, format!("wharf: {file}:3: {problem}\n"));
}

#[test]
fn a_mistake_that_the_library_finds_is_told_with_the_file() {
    let folder = Folder::new("found-later");
    for (line, problem) in [
        ("workers = 0", "--workers must be between 1 and 1024, not 0"),
        ("listen = nowhere:x", "listen on nowhere:x: `x` is not a port number (0 to 65535)"),
        ("style = blocking\nworkers = 2", "--style blocking has no workers, and does without --workers"),
    ] {
        let file = folder.write("wharf.conf", &format!("listen = 127.0.0.1:0\n{line}\n"));
        let outcome = Process::run(&mut wharf(["serve", "echo", "--config", &file]), Vec::new());
        let expected = format!("wharf: {problem}, in {file} or on the command line\n");
        assert_eq!((outcome.code, outcome.stderr), (Some(1), expected), "{line}");
    }
}

#[test]
fn a_file_that_cannot_be_read_and_one_without_a_listener_are_told() {
    let folder = Folder::new("unread");
    let missing = folder.path("missing");
    let outcome = Process::run(&mut wharf(["serve", "echo", "--config", &missing]), Vec::new());
    let expected = format!("wharf: read {missing}: no such file or directory\n");
    assert_eq!((outcome.code, outcome.stderr), (Some(1), expected));

    let file = folder.write("wharf.conf", "drain = 1s\n");
    let outcome = Process::run(&mut wharf(["serve", "echo", "--config", &file]), Vec::new());
    let expected = format!("wharf: `listen` is missing, in {file} and on the command line\n");
    assert_eq!((outcome.code, outcome.stderr), (Some(1), expected));
}

#[test]
fn a_drain_in_the_file_holds() {
    let folder = Folder::new("drain");
    let file = folder.write("wharf.conf", "listen = 127.0.0.1:0\ndrain = 3s\n");
    let outcome = Server::of(wharf(["serve", "echo", "--config", &file])).end(Signal::TERM);
    assert!(outcome.stderr.contains("draining 0 connections for at most 3s"), "{outcome:?}");
}
