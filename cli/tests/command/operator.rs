//! Signals to a running `wharf serve` besides those that end it: reload, snapshot, suspend.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::thread;

use rustix::process::Signal;

use crate::process::{Folder, LIMIT, Server, assert_echoes, assert_reset, wharf};

#[test]
fn a_snapshot_tells_what_the_server_is_doing_and_has_done() {
    let server = Server::start("echo", "async", &["--workers", "1"]);
    let mut client = server.connect();
    client.write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    let during = server.snapshot();
    let fact = |name: &str, value: &str| format!("{name:<22} {value}");
    for fact in [
        fact("phase", "serving"),
        fact("connections", "1 of "),
        fact("worker.0", "1 on "),
        fact("accepted", "1"),
    ] {
        assert!(during.contains(&fact), "{fact}: {during}");
    }
    assert!(during.contains(&fact("listener", &format!("{} (1 let in)", server.address))), "{during}");
    drop(client);
    while !server.snapshot().contains(&fact("closed", "1 closed by the peer")) {
        thread::yield_now();
    }
    assert!(server.snapshot().contains(&fact("received", "5 bytes")));
}

#[test]
fn a_quiet_server_tells_what_it_is_asked_for() {
    let server = Server::start("echo", "async", &["--quiet"]);
    assert!(server.snapshot().starts_with("phase "));
    let outcome = server.end(Signal::TERM);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_reload_changes_limits_networks_and_deadlines() {
    reload_in("async");
}

#[test]
fn a_reload_changes_the_same_in_blocking_style() {
    reload_in("blocking");
}

fn reload_in(style: &str) {
    let folder = Folder::new(&format!("reload-{style}"));
    let file = folder.write("wharf.conf", "max-connections = 10\nidle-timeout = 1h\n");
    let server = Server::start("echo", style, &["--config", &file, "--write-timeout", "9s"]);
    // What it says at its start is over.
    server.process.await_message("deadlines: ");
    let mut early = server.connect();
    assert_echoes(&mut early);

    folder.write(
        "wharf.conf",
        "max-connections = 20\nmax-per-address = 1\nover-limit = close\nidle-timeout = 2h\nwrite-timeout = 1s\n\
         write-queue = 8KiB\ndrain = 3s\n",
    );
    let said = reload(&server, "reloaded ");
    assert!(said.contains(&file), "{said}");
    let said = server.process.await_message("deadlines: ");
    assert!(said.contains("limits: 20 connections, from --max-connections; 1 of one address\n"), "{said}");
    let snapshot = server.snapshot();
    for (name, value) in [
        ("connections", "1 of 20"),
        ("limit.per_address", "1"),
        ("limit.send_max", "8192 bytes"),
        ("deadline.idle", "7200s"),
        ("deadline.write", "9s"), // the command line wins, again
    ] {
        assert!(snapshot.contains(&format!("{name:<22} {value}")), "{name}: {snapshot}");
    }
    assert_eq!(
        server.connect().read(&mut [0; 1]).expect("it is closed in order"),
        0,
        "one of this address is there"
    );
    assert_echoes(&mut early);

    folder.write("wharf.conf", "deny = 127.0.0.1\nidle-timeout = 50ms\n");
    reload(&server, "deadlines: ");
    assert_reset(server.try_connect());

    folder.write("wharf.conf", "idle-timeout = 50ms\n");
    reload(&server, "deadlines: ");
    assert_eq!(
        server.connect().read(&mut [0; 1]).expect("it is closed in order"),
        0,
        "the idle deadline passes"
    );
    assert_echoes(&mut early);
    let outcome = server.end(Signal::TERM);
    assert!(outcome.stderr.contains("for at most 15s"), "{outcome:?}");
    assert!(outcome.stderr.contains("1 idle deadline passed"), "{outcome:?}");
}

#[test]
fn a_reload_tells_what_it_cannot_change() {
    let folder = Folder::new("fixed");
    let file = folder.write("wharf.conf", "workers = 1\nnodelay = on\nidle-timeout = 5s\n");
    let server = Server::start("echo", "async", &["--config", &file]);
    folder.write("wharf.conf", "nodelay = off\nlisten = 127.0.0.1:1\nidle-timeout = 6s\ndrain = 4s\n");
    let said = reload(&server, "warning");
    // `listen` stands on the command line, which wins.
    let warning = "warning: what cannot change while the server runs stays as it was: nodelay, workers\n";
    assert!(said.contains("idle 6s") && said.contains(warning), "{said}");
    let outcome = server.end(Signal::TERM);
    assert!(outcome.stderr.contains("for at most 4s"), "{outcome:?}");
}

#[test]
fn a_bad_file_changes_nothing() {
    let folder = Folder::new("bad-reload");
    let file = folder.write("wharf.conf", "idle-timeout = 5s\n");
    for quiet in [false, true] {
        let more: &[&str] = if quiet { &["--config", &file, "--quiet"] } else { &["--config", &file] };
        let server = Server::start("echo", "async", more);
        folder.write("wharf.conf", "idle-timeout = 6s\nmax-connections = few\n");
        let said = reload(&server, "reload failed");
        let problem = format!("reload failed, all stays as it was: {file}:2: invalid value 'few'");
        assert!(said.contains(&problem), "{said}");
        assert!(server.snapshot().contains(&format!("{:<22} 5s\n", "deadline.idle")));

        std::fs::remove_file(&file).unwrap();
        let said = reload(&server, "reload failed");
        assert!(said.contains(&format!("read {file}: no such file or directory")), "{said}");
        folder.write("wharf.conf", "idle-timeout = 5s\n");
    }
}

#[test]
fn there_is_nothing_to_reload_without_a_file() {
    let server = Server::start("echo", "async", &[]);
    reload(&server, "SIGHUP: there is nothing to read again without --config");
    assert_echoes(&mut server.connect());
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_end() {
    ["async", "blocking"].into_iter().for_each(tell_manager_in);
}

fn tell_manager_in(style: &str) {
    let folder = Folder::new(&format!("manager-{style}"));
    let manager = UnixDatagram::bind(folder.path("notify")).expect("the folder is new");
    manager.set_read_timeout(Some(LIMIT)).expect("it can");
    let hears = |text: &str| {
        let mut message = [0; 1024];
        let n = manager.recv(&mut message).expect("it is told");
        let message = String::from_utf8_lossy(&message[..n]).into_owned();
        assert!(message.contains(text), "{text}: {message}");
    };
    let file = folder.write("wharf.conf", "listen = 127.0.0.1:0\n");
    let mut command = wharf(["serve", "echo", "--style", style, "--config", &file]);
    command.env("NOTIFY_SOCKET", folder.path("notify"));
    let server = Server::of(command);
    hears("READY=1");
    reload(&server, "reloaded ");
    hears("RELOADING=1");
    hears("READY=1");
    server.process.signal(Signal::TERM);
    hears("STOPPING=1");
}

#[test]
fn a_suspended_server_accepts_nobody_and_keeps_who_is_there() {
    ["async", "blocking"].into_iter().for_each(suspend_in);
}

/// Where no other test takes a port that is closed for a while.
const APART: &str = if cfg!(target_os = "linux") { "127.0.47.12:0" } else { "127.0.0.1:0" };

fn suspend_in(style: &str) {
    let server = Server::of(wharf(["serve", "echo", "--style", style, "--listen", APART]));
    let mut early = server.connect();
    assert_echoes(&mut early);
    server.process.signal(Signal::USR2);
    server.process.await_message("suspended");
    // The message comes about when it is done, and not before.
    let refused = loop {
        match TcpStream::connect(server.address) {
            Ok(_) => thread::yield_now(),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_echoes(&mut early);
    server.process.signal(Signal::USR2);
    server.process.await_message("resumed");
    assert_echoes(&mut server.connect());
    assert_eq!(server.end(Signal::TERM).code, Some(0));
}

fn reload(server: &Server, text: &str) -> String {
    server.process.signal(Signal::HUP);
    server.process.await_message(text)
}
