//! `wharf connect`: a pipe that loses nothing, stalls nobody, and knows when to end.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::Stdio;
use std::thread;

use rustix::process::Signal;

#[cfg(target_os = "linux")]
use crate::faults::traced;
#[cfg(target_os = "linux")]
use crate::process::backends;
use crate::process::{Folder, Process, Server, accept, combinations, listen, skipped, wharf};

#[test]
fn many_bytes_through_echo_come_back_unchanged() {
    let mut sent = vec![0; 64 << 20];
    fastrand::fill(&mut sent);
    for (backend, style) in combinations() {
        let server = Server::start("echo", style, &["--backend", backend]);
        let args = ["connect", &server.address.to_string(), "--backend", backend];
        let outcome = Process::run(&mut wharf(args), sent.clone());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
        assert!(outcome.stdout == sent, "{style} on {backend}: {} bytes came back", outcome.stdout.len());
    }
}

#[test]
fn a_name_is_looked_up() {
    let server = Server::start("echo", "async", &[]);
    let target = format!("localhost:{}", server.address.port());
    let outcome = Process::run(&mut wharf(["connect", &target]), b"by name".to_vec());
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(0), &b"by name"[..]), "{outcome:?}");
}

/// Each call is paid for by each connect of a relay: one asks whether it is over, and one whether it met itself.
#[test]
#[cfg(target_os = "linux")]
fn a_connect_that_goes_well_asks_the_kernel_nothing_twice() {
    let server = Server::start("echo", "async", &[]);
    for backend in backends() {
        let trace = "trace=connect,getpeername,getsockname,getsockopt";
        let args = ["connect", &server.address.to_string(), "--backend", backend];
        let Some(mut command) = traced(&["-e", trace], &args) else { return };
        let outcome = Process::run(&mut command, b"hello".to_vec());
        assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(0), &b"hello"[..]), "{outcome:?}");
        let calls = |name: &str| outcome.stderr.matches(&format!("{name}(")).count();
        assert_eq!(calls("getsockname"), 1, "{outcome:?}");
        if *backend == "readiness" {
            let asked = (calls("connect"), calls("getpeername"), calls("getsockopt"));
            assert_eq!(asked, (1, 1, 0), "{outcome:?}");
        }
    }
}

#[test]
fn the_end_of_input_is_passed_on_and_the_answer_awaited() {
    let (listener, address) = listen();
    let mut process = start(&address);
    let mut peer = accept(listener);
    process.stdin().write_all(b"question").unwrap();
    let mut question = Vec::new();
    peer.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    peer.write_all(b"answer").unwrap();
    drop(peer);
    let outcome = process.outcome();
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(0), &b"answer"[..]), "{outcome:?}");
}

#[test]
fn what_comes_is_shown_at_once() {
    let (listener, address) = listen();
    let mut process = start(&address);
    let mut peer = accept(listener);
    peer.write_all(b"prompt> ").unwrap();
    let mut prompt = [0; 8];
    process.stdout().read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"prompt> ");
}

#[test]
fn ends_when_the_peer_has_ended_although_input_is_open() {
    let (listener, address) = listen();
    let mut process = start(&address);
    let input = process.stdin();
    let mut peer = accept(listener);
    peer.write_all(b"bye").unwrap();
    drop(peer);
    let outcome = process.outcome();
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(0), &b"bye"[..]), "{outcome:?}");
    drop(input);
}

#[test]
fn a_peer_that_only_reads_gets_all_of_the_input() {
    // More than is on its way before the peer ends; and in a file, so that it never has to be waited for.
    const BYTES: usize = 32 << 20;
    let folder = Folder::new("only-reads");
    let input = folder.path("input");
    std::fs::write(&input, vec![5; BYTES]).unwrap();
    let (listener, address) = listen();
    let process = Process::fed_by(File::open(input).unwrap(), &mut wharf(["connect", &address]));
    let mut peer = accept(listener);
    peer.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), BYTES);
    assert_eq!(process.outcome().code, Some(0));
}

#[test]
fn a_reader_that_stands_still_does_not_stop_the_other_direction() {
    const BYTES: usize = 32 << 20;
    let (listener, address) = listen();
    let mut process = start(&address);
    let mut peer = accept(listener);
    let mut to_it = peer.try_clone().unwrap();
    // Nobody reads the command's output for now, so this has to wait.
    let sending = thread::spawn(move || {
        to_it.write_all(&vec![1; BYTES]).unwrap();
        to_it.shutdown(Shutdown::Write).unwrap();
    });
    let mut input = process.stdin();
    let feeding = thread::spawn(move || input.write_all(&vec![2; BYTES]).unwrap());
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), BYTES);
    assert!(!sending.is_finished(), "all of it was taken although nobody reads it");
    let outcome = process.outcome();
    assert_eq!((outcome.code, outcome.stdout.len()), (Some(0), BYTES));
    sending.join().unwrap();
    feeding.join().unwrap();
}

#[test]
fn a_reset_is_one_line_and_exit_code_1() {
    let (listener, address) = listen();
    let mut process = start(&address);
    let mut input = process.stdin();
    input.write_all(b"unread").unwrap();
    let peer = accept(listener);
    peer.peek(&mut [0; 1]).unwrap();
    // Closing a socket with unread input resets.
    drop(peer);
    let outcome = process.outcome();
    assert_eq!(outcome.code, Some(1));
    let expected = format!("wharf: receive from {address}: connection is closed: reset by the peer\n");
    assert_eq!(outcome.stderr, expected);
    drop(input);
}

#[test]
fn a_peer_that_is_killed_is_no_reason_to_hang() {
    for (backend, style) in combinations() {
        let server = Server::start("echo", style, &["--backend", backend]);
        let mut process = start(&server.address.to_string());
        let (mut input, mut output) = (process.stdin(), process.stdout());
        input.write_all(b"x").unwrap();
        output.read_exact(&mut [0; 1]).unwrap();
        server.process.signal(Signal::KILL);
        assert_eq!(process.outcome().code, Some(0), "the kernel ends the connection in order");
        drop(input);
    }
}

#[test]
fn a_broken_pipe_on_stdout_is_quiet() {
    for (backend, style) in combinations() {
        let server = Server::start("chargen", style, &["--backend", backend]);
        let mut process = start(&server.address.to_string());
        let input = process.stdin();
        let mut output = process.stdout();
        output.read_exact(&mut [0; 10]).unwrap();
        drop(output);
        let outcome = process.outcome();
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(141), ""));
        drop(input);
    }
}

#[test]
fn a_full_disk_is_one_line_and_exit_code_1() {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        return skipped("there is no /dev/full");
    };
    let server = Server::start("chargen", "async", &[]);
    let mut command = wharf(["connect", &server.address.to_string()]);
    let mut process = Process::start(command.stdout(full));
    let input = process.stdin();
    let outcome = process.outcome();
    let expected = "wharf: write standard output: no space left on device\n";
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), expected));
    drop(input);
}

#[test]
fn sigint_exits_130() {
    let (listener, address) = listen();
    let mut process = start(&address);
    let input = process.stdin();
    let peer = accept(listener);
    process.signal(Signal::INT);
    let outcome = process.outcome();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(130), ""));
    drop((input, peer));
}

/// Whoever ends the process does not ask the thread that is shaking hands, which goes on for as long as there is a process.
#[test]
#[cfg(target_os = "linux")]
fn sigint_amid_a_handshake_exits_130() {
    let server = Server::start("echo", "async", &["--tls-self-signed"]);
    let address = server.address.to_string();
    for _ in 0..20 {
        let mut process = Process::start(&mut wharf(["connect", &address, "--tls", "--insecure"]));
        let input = process.stdin();
        // From then on the signal is watched for; before it would end the process by itself.
        process.await_thread("signals");
        process.signal(Signal::INT);
        assert_eq!(process.outcome().code, Some(130));
        drop(input);
    }
}

fn start(address: &str) -> Process {
    Process::start(wharf(["connect", address]).stdout(Stdio::piped()))
}

#[test]
fn it_connects_from_the_address_that_it_is_given() {
    let (listener, address) = listen();
    let mut process = Process::start(&mut wharf(["connect", &address, "--bind", "127.0.0.9"]));
    let mut peer = accept(listener);
    assert_eq!(peer.peer_addr().unwrap().ip().to_string(), "127.0.0.9");
    process.stdin().write_all(b"x").unwrap();
    peer.read_exact(&mut [0; 1]).unwrap();
    drop(peer);
    process.outcome();
    let outcome = Process::run(&mut wharf(["connect", &address, "--bind", "here"]), Vec::new());
    let expected =
        "error: --bind is `here`; it must be ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT, of this machine\n";
    assert!(outcome.code == Some(2) && outcome.stderr.starts_with(expected), "{outcome:?}");
    let outcome = Process::run(&mut wharf(["connect", "[::1]:1", "--bind", "127.0.0.1"]), Vec::new());
    assert!(outcome.stderr.starts_with("error: --bind is an IPv4 address"), "{outcome:?}");
}

/// A proxy for one connection: takes a SOCKS5 client that is `user` with `secret`, and then speaks as the target.
fn socks5(listener: TcpListener) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut peer = accept(listener);
        let mut expect = |expected: &[u8], answer: &[u8]| {
            let mut told = vec![0; expected.len()];
            peer.read_exact(&mut told).expect("the client speaks");
            assert_eq!(told, expected);
            peer.write_all(answer).expect("the client listens");
        };
        expect(b"\x05\x02\x00\x02", b"\x05\x02");
        expect(b"\x01\x04user\x06secret", b"\x01\x00");
        expect(b"\x05\x01\x00\x03\x0bhidden.test\x12\x67", b"\x05\x00\x00\x01\0\0\0\0\0\0through");
        let mut input = Vec::new();
        peer.read_to_end(&mut input).expect("the client ends");
        input
    })
}

#[test]
fn it_goes_through_a_proxy() {
    let (listener, address) = listen();
    let proxy = socks5(listener);
    let url = format!("socks5h://user:secret@{address}");
    let outcome =
        Process::run(&mut wharf(["connect", "hidden.test:4711", "--proxy", &url]), b"input".to_vec());
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(0), &b"through"[..]), "{outcome:?}");
    assert_eq!(proxy.join().unwrap(), b"input");
    // What refuses is told, and which proxy that is; who we are is not.
    let outcome = Process::run(&mut wharf(["connect", "hidden.test:4711", "--proxy", &url]), Vec::new());
    let expected =
        format!("wharf: connect to hidden.test:4711 through socks5h://{address}: connection refused\n");
    assert_eq!((outcome.code, outcome.stderr), (Some(1), expected));
    let outcome =
        Process::run(&mut wharf(["connect", "a.test:1", "--proxy", "ftp://user:secret@b.test"]), Vec::new());
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("--proxy must be socks5h://"), "{outcome:?}");
    assert!(!outcome.stderr.contains("secret"), "{outcome:?}");
}
