//! `wharf serve`: what it prints, how it serves, and how it ends.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::process::{Process, Server, all_styles, skipped};

#[test]
fn prints_the_real_port_before_serving() {
    for (backend, style) in all_styles() {
        let server = Server::start("echo", style, &["--backend", backend]);
        assert_ne!(server.address.port(), 0);
        server.connect();
    }
}

#[test]
fn sigterm_drains_and_exits_zero() {
    for (backend, style) in all_styles() {
        let server = Server::start("echo", style, &["--backend", backend]);
        let mut idle = server.connect();
        assert_eq!(answer(&mut idle, b"here I am"), b"here I am");
        server.process.signal(Signal::TERM);
        assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "an idle connection is ended in order");
        drop(idle);
        let outcome = server.process.outcome();
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stderr.contains("draining 1 connections for at most 15s"), "{outcome:?}");
        assert!(outcome.stderr.contains("served 1 connections"), "{outcome:?}");
    }
}

#[test]
fn a_drain_lets_a_busy_connection_end_by_itself() {
    const BYTES: usize = 64 << 20;
    for (backend, style) in all_styles() {
        let server = Server::start("echo", style, &["--backend", backend, "--drain", "1h"]);
        let mut reader = server.connect();
        let mut writer = reader.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            writer.write_all(&vec![3; BYTES]).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        reader.read_exact(&mut [0; 1]).unwrap();
        server.process.signal(Signal::TERM);
        server.process.await_message("draining 1 connections");
        let rest = io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(rest, BYTES as u64 - 1, "{style} on {backend}");
        sending.join().unwrap();
        assert_eq!(server.process.outcome().code, Some(0));
    }
}

#[test]
fn sigint_drains_as_well() {
    let outcome = Server::start("discard", "async", &[]).end(Signal::INT);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("draining 0 connections"), "{outcome:?}");
}

#[test]
fn a_second_signal_stops_at_once() {
    for (backend, style) in all_styles() {
        let server = Server::start("chargen", style, &["--backend", backend, "--drain", "1h"]);
        let stuck = stuck_client(&server);
        server.process.signal(Signal::TERM);
        server.process.await_message("draining 1 connections for at most 1h");
        let outcome = server.end(Signal::TERM);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stderr.contains("stopping at once"), "{outcome:?}");
        assert!(outcome.stderr.contains("1 server shut down"), "{outcome:?}");
        drop(stuck);
    }
}

#[test]
fn the_drain_deadline_ends_a_client_that_does_not_read() {
    for (backend, style) in all_styles() {
        let server = Server::start("chargen", style, &["--backend", backend, "--drain", "50ms"]);
        let stuck = stuck_client(&server);
        let outcome = server.end(Signal::TERM);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stderr.contains("1 server shut down"), "{outcome:?}");
        drop(stuck);
    }
}

#[test]
fn a_draining_server_refuses_new_connections() {
    let server = Server::start("chargen", "event", &["--drain", "1h"]);
    let stuck = stuck_client(&server);
    server.process.signal(Signal::TERM);
    server.process.await_message("draining");
    // The message comes just before the deed; those who were in the backlog are reset.
    let refused = loop {
        match TcpStream::connect(server.address) {
            Ok(_) => std::thread::yield_now(),
            // One of them learns of it before its connect has returned.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    drop(stuck);
}

#[test]
fn quiet_means_not_a_word() {
    let outcome = Server::start("echo", "async", &["--quiet"]).end(Signal::TERM);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

#[test]
fn verbosity_shows_the_librarys_events() {
    let of = |more: &[&str]| {
        let server = Server::start("echo", "async", more);
        assert_eq!(answer(&mut server.connect(), b"x"), b"x");
        server.end(Signal::TERM).stderr
    };
    let (default, info, debug) = (of(&[]), of(&["-v"]), of(&["-vv"]));
    assert!(!default.contains("INFO"), "{default}");
    assert!(info.contains("INFO wharf: listening") && !info.contains("DEBUG"), "{info}");
    assert!(debug.contains("DEBUG wharf: connection accepted"), "{debug}");
}

#[test]
fn a_silent_client_meets_the_idle_timeout() {
    for (backend, style) in all_styles() {
        let server = Server::start("echo", style, &["--backend", backend, "--idle-timeout", "50ms"]);
        assert_eq!(server.connect().read(&mut [0; 1]).unwrap(), 0);
        let outcome = server.end(Signal::TERM);
        assert!(outcome.stderr.contains("1 idle deadline passed"), "{outcome:?}");
    }
}

#[test]
fn one_connection_too_many_is_served_when_another_leaves() {
    let server = Server::start("echo", "async", &["--max-connections", "1"]);
    let mut first = server.connect();
    assert_eq!(answer(&mut first, b"first"), b"first");
    let mut second = server.connect();
    second.write_all(b"second").unwrap();
    drop(first);
    let mut echoed = [0; 6];
    second.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"second");
}

#[test]
fn echo_waits_for_a_client_that_does_not_read_and_loses_nothing() {
    // More than all the buffers on the way hold together.
    let sent: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(32 << 20).collect();
    for (backend, style) in all_styles() {
        let server = Server::start("echo", style, &["--backend", backend]);
        let mut reader = server.connect();
        let mut writer = reader.try_clone().unwrap();
        let mut came = vec![0; sent.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            reader.read_exact(&mut came).unwrap();
        });
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
        assert!(came == sent, "{style} on {backend}: the bytes differ");
    }
}

#[test]
fn discard_takes_everything_and_says_nothing() {
    for (backend, style) in all_styles() {
        let server = Server::start("discard", style, &["--backend", backend]);
        let mut client = server.connect();
        client.write_all(&vec![7; 8 << 20]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        let outcome = server.end(Signal::TERM);
        assert!(outcome.stderr.contains("received 8388608 bytes, sent 0 bytes"), "{outcome:?}");
    }
}

#[test]
fn chargen_sends_its_pattern_until_the_client_ends() {
    for (backend, style) in all_styles() {
        let server = Server::start("chargen", style, &["--backend", backend, "--idle-timeout", "50ms"]);
        let mut client = server.connect();
        let mut lines = vec![0; 20_000 * 74];
        client.read_exact(&mut lines).unwrap();
        assert!(lines.starts_with(b" !\"#$%&'()*+,-./0123456789:;<=>?@ABC"));
        for (line, next) in lines.chunks(74).zip(lines.chunks(74).skip(1)) {
            assert_eq!(line[1..72], next[..71], "each line is one further on");
            assert_eq!(&line[72..], b"\r\n");
        }
        client.shutdown(Shutdown::Write).unwrap();
        // Far more than is on its way.
        let rest = io::copy(&mut (&client).take(1 << 30), &mut io::sink()).unwrap();
        assert!(rest < 1 << 30, "{style} on {backend}: it goes on although the client has ended");
        let outcome = server.end(Signal::TERM);
        assert!(outcome.stderr.contains("1 closed by the peer"), "{outcome:?}");
    }
}

#[test]
fn pingpong_answers_each_ping_and_ends_at_anything_else() {
    for (backend, style) in all_styles() {
        let server = Server::start("pingpong", style, &["--backend", backend]);
        let mut client = server.connect();
        assert_eq!(answer(&mut client, b"ping"), b"pong");
        assert_eq!(answer(&mut client, b"ping\nping\n"), b"pong\npong\n");
        client.write_all(b"pang").unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn echo_works_with_nc() {
    works_with("nc", |host, port| vec![String::from("-N"), host, port]);
}

#[test]
fn echo_works_with_socat() {
    works_with("socat", |host, port| vec![String::from("-"), format!("TCP:{host}:{port}")]);
}

fn works_with(tool: &str, args: impl Fn(String, String) -> Vec<String>) {
    if Command::new(tool).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return skipped(&format!("{tool} is not installed (Debian: socat, netcat-openbsd)"));
    }
    let sent: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
    for (backend, style) in all_styles() {
        let server = Server::start("echo", style, &["--backend", backend]);
        let (host, port) = (server.address.ip().to_string(), server.address.port().to_string());
        let outcome = Process::run(Command::new(tool).args(args(host, port)), sent.clone());
        let came = outcome.stdout;
        assert!(came == sent, "{tool}, {style} on {backend}: {} bytes came back", came.len());
    }
}

/// A client of chargen that reads one byte and no more, until the server's queue stands still.
fn stuck_client(server: &Server) -> TcpStream {
    let mut client = server.connect();
    client.read_exact(&mut [0; 1]).expect("chargen sends");
    client
}

/// Sends `bytes` and reads as many.
fn answer(client: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    client.write_all(bytes).expect("it takes the question");
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer).expect("it answers");
    answer
}

#[test]
fn blocking_style_says_what_it_does_without() {
    for (option, value) in [("--workers", "2"), ("--backend", "readiness"), ("--watchdog", "2s")] {
        let args = ["serve", "echo", "--style", "blocking", "--listen", "127.0.0.1:0", option, value];
        let outcome = Process::run(&mut crate::process::wharf(args), Vec::new());
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        let told = format!("--style blocking has no workers, and does without {option}");
        assert!(outcome.stderr.contains(&told), "{outcome:?}");
    }
}

#[test]
fn blocking_style_has_a_thread_for_each_connection_and_obeys_the_same_signals() {
    let server = Server::start("echo", "blocking", &["--max-connections", "3", "--max-memory", "1GiB"]);
    server.process.await_message("a thread for each connection, 3 at most");
    server.process.await_message("limits: 3 connections, from --max-connections");
    let mut client = server.connect();
    assert_eq!(answer(&mut client, b"here I am"), b"here I am");
    for (signal, told) in
        [(Signal::HUP, "there is nothing to read again"), (Signal::USR1, "connections            1 of 3")]
    {
        server.process.signal(signal);
        server.process.await_message(told);
    }
    server.process.await_message(" of 1073741824 bytes");
    assert_eq!(answer(&mut client, b"still here"), b"still here");
    drop(client);
    assert_eq!(server.end(Signal::TERM).code, Some(0));
}
