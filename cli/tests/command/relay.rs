//! `wharf relay`: what goes in at one side comes out at the other.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use rustix::process::Signal;

use crate::process::{Server, assert_reset, backends, listen, wharf};

/// A relay to `target`.
fn relay(target: &str, options: &[&str]) -> Server {
    let mut command = wharf(["relay", "127.0.0.1:0", target]);
    command.args(options);
    Server::of(command)
}

#[test]
fn what_is_sent_through_a_relay_comes_back_whole() {
    for backend in backends() {
        let server = Server::start("echo", "async", &[]);
        let relay = relay(&server.address.to_string(), &["--backend", backend, "--verbose"]);
        let mut stream = relay.connect();
        let mut sent = vec![0; 3 << 20];
        fastrand::fill(&mut sent);
        let mut writer = stream.try_clone().unwrap();
        let written = sent.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&written).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == sent, "{backend}: {} bytes came back", received.len());
        drop(stream);
        let outcome = relay.end(Signal::TERM);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stderr.contains("3145728 bytes there, 3145728 back: ended in order"), "{outcome:?}");
    }
}

#[test]
fn a_target_that_is_not_there_is_told_and_resets_the_peer() {
    // Nobody listens any more at what was just closed.
    let (listener, gone) = listen();
    drop(listener);
    let relay = relay(&gone, &[]);
    assert_reset(relay.try_connect());
    let outcome = relay.end(Signal::INT);
    assert!(outcome.stderr.contains("connection refused"), "{outcome:?}");
}
