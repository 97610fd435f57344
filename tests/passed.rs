//! Sockets that the service manager passed to the process, and what it is told.
//!
//! Both are a process's own, so each test is the parent of another process: itself, with a role in its environment.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wharf::systemd::{self, State};
use wharf::{Backend, Connection, ErrorKind, Handover, Listen, Result, Server, ServerHandle};

const ROLE: &str = "WHARF_TEST_ROLE";

fn is_child() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Runs `test` again as a process of its own that was passed `sockets`, and waits for its end.
///
/// The shell moves them to where they are expected, for it knows the number of the process before that begins.
fn child(test: &str, sockets: [OwnedFd; 2], names: &str, process: &str) {
    let script = format!(
        "exec 3<&0 4<&2 0</dev/null 2>&1; export LISTEN_PID={process} LISTEN_FDS=2 LISTEN_FDNAMES={names}; exec \"$@\""
    );
    let [first, second] = sockets;
    let output = Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, "child")
        .stdin(Stdio::from(first))
        .stderr(Stdio::from(second))
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What a child tells its service manager, each message as a list of its lines.
fn told(test: &str, abstract_name: bool) -> Vec<Vec<String>> {
    let folder = std::env::temp_dir().join(format!("wharf-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (manager, target) = if abstract_name {
        let name = format!("wharf-{test}-{}", std::process::id());
        (
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            format!("@{name}"),
        )
    } else {
        let path = folder.join("notify");
        (UnixDatagram::bind(&path).unwrap(), path.display().to_string())
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, &folder)
        .env("NOTIFY_SOCKET", target)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_dir_all(folder).unwrap();
    manager.set_nonblocking(true).unwrap();
    let mut message = [0; 1024];
    let messages = std::iter::from_fn(|| manager.recv(&mut message).ok().map(|n| message[..n].to_vec()));
    let lines = |message: Vec<u8>| String::from_utf8(message).unwrap().lines().map(String::from).collect();
    messages.map(lines).collect()
}

#[test]
fn the_service_manager_is_told_when_a_server_serves_and_stops() {
    const NAME: &str = "the_service_manager_is_told_when_a_server_serves_and_stops";
    if !is_child() {
        for abstract_name in [false, true] {
            assert_eq!(told(NAME, abstract_name), [["READY=1"], ["STATUS=half way"], ["STOPPING=1"]]);
        }
        return;
    }
    let server = serve(Server::bind("127.0.0.1:0").notify_systemd()).unwrap();
    let silent = serve(Server::bind("127.0.0.1:0")).unwrap();
    assert!(systemd::notify(&[State::Status("half way")]).unwrap());
    for server in [silent, server] {
        server.drain(Duration::from_secs(5)).drain(Duration::ZERO).wait().unwrap();
    }
}

#[test]
fn the_service_manager_follows_a_hand_over() {
    const NAME: &str = "the_service_manager_follows_a_hand_over";
    if !is_child() {
        let mut told = told(NAME, false);
        // Who comes first is open: the new one's word, or the old one's.
        told[1..3].sort_by_key(Vec::len);
        let main = told[1][0].clone();
        assert!(main.starts_with("MAINPID="), "{told:?}");
        assert_eq!(told, [vec!["READY=1"], vec![&main], vec![&main, "READY=1"], vec!["STOPPING=1"]]);
        return;
    }
    let upgrade = std::path::PathBuf::from(std::env::var_os(ROLE).unwrap()).join("upgrade");
    let replaceable = || {
        let server = Server::bind("127.0.0.1:0").notify_systemd();
        serve(server.handover(Handover::at(&upgrade))).unwrap()
    };
    let first = replaceable();
    let second = replaceable();
    first.wait().unwrap();
    second.stop().wait().unwrap();
}

#[test]
fn the_service_manager_is_told_nothing_of_a_start_that_fails() {
    const NAME: &str = "the_service_manager_is_told_nothing_of_a_start_that_fails";
    if !is_child() {
        return assert_eq!(told(NAME, false), [["STATUS=none has started"]]);
    }
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Some of the workers start, and end again for want of descriptors for the others; with one of these limits that
    // leaves a descriptor to tell it by.
    for current in 16..32 {
        setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
        let server = Server::bind("127.0.0.1:0").notify_systemd().workers(16).backend(Backend::Readiness);
        let started = server.start(|mut conn: Connection| async move { conn.send(b"hello").await });
        assert!(started.is_err());
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    systemd::notify(&[State::Status("none has started")]).unwrap();
}

fn tcp() -> OwnedFd {
    TcpListener::bind("127.0.0.1:0").unwrap().into()
}

fn serve(server: Server) -> Result<ServerHandle> {
    server.workers(1).start(|mut conn: Connection| async move { conn.send(b"hello").await })
}

/// The error of a server that listens there.
fn refusal(listen: &str) -> String {
    let error = serve(Server::bind(listen)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::System | ErrorKind::Caller), "{error}");
    error.to_string()
}

fn greets(mut stream: impl Read) {
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "hello");
}

#[test]
fn passed_sockets_are_taken_by_name_by_number_or_all_and_once() {
    const NAME: &str = "passed_sockets_are_taken_by_name_by_number_or_all_and_once";
    if !is_child() {
        let path = std::env::temp_dir().join(format!("wharf-passed-{}", std::process::id()));
        let unix = UnixListener::bind(&path).unwrap();
        child(NAME, [tcp(), unix.into()], "web:admin", "$$");
        assert!(std::fs::exists(&path).unwrap(), "the file is not the server's");
        return std::fs::remove_file(path).unwrap();
    }
    let admin = serve(Server::bind("systemd:admin")).unwrap();
    let path = admin.listeners()[0].address.unix().unwrap().path().unwrap().to_owned();
    assert!(std::env::var_os("LISTEN_FDS").is_none(), "no child is to believe it");
    assert_eq!(refusal("systemd:admin"), "listen on systemd:admin: descriptor 4 is in use already");
    assert_eq!(refusal("fd:4"), "listen on fd:4: descriptor 4 is in use already");
    let none = "no socket of that kind is free; passed were 3 `web`, 4 `admin`";
    assert_eq!(refusal("systemd:mail"), format!("listen on systemd:mail: {none}"));
    assert_eq!(refusal("fd:5"), format!("listen on fd:5: {none}"));
    greets(UnixStream::connect(&path).unwrap());

    let web = serve(Server::bind("fd:3")).unwrap();
    assert_eq!(refusal("systemd"), format!("listen on systemd: {none}"));
    assert!(Listen::from_systemd().unwrap().is_empty());
    greets(TcpStream::connect(web.local_addr()).unwrap());
    let address = web.local_addr();

    // When they are gone, somebody else can have them; threads that have served last a moment longer.
    for server in [admin, web] {
        server.stop().wait().unwrap();
    }
    let mut passed = Vec::new();
    while passed.len() < 2 {
        thread::sleep(Duration::from_millis(1));
        passed.extend(Listen::from_systemd().unwrap());
    }
    drop(passed);
    let both = serve(Server::bind("systemd")).unwrap();
    assert_eq!(both.listeners().len(), 2);
    greets(UnixStream::connect(&path).unwrap());
    greets(TcpStream::connect(address).unwrap());
    // Nobody else could open them again.
    both.suspend();
    let mut waits = TcpStream::connect(address).unwrap();
    both.resume().unwrap();
    waits.write_all(b"x").unwrap();
    greets(waits);
    both.stop().wait().unwrap();
}

#[test]
fn sockets_for_another_process_are_an_error() {
    const NAME: &str = "sockets_for_another_process_are_an_error";
    if !is_child() {
        child(NAME, [tcp(), tcp()], "a:b", "1");
        return child(NAME, [tcp(), tcp()], "a:b", "");
    }
    let problem = match std::env::var("LISTEN_PID").unwrap().as_str() {
        "1" => format!("the sockets are for process 1, and this is {}", std::process::id()),
        _ => String::from("is not set"),
    };
    for listen in ["systemd", "fd:3"] {
        let told = format!("listen on {listen}: environment variable `LISTEN_PID`: {problem}");
        assert_eq!(refusal(listen), told);
    }
    assert!(Listen::from_systemd().is_err());
    assert_eq!(refusal("fd:x"), "listen on fd:x: `x` is not a descriptor's number");
}

#[test]
fn what_does_not_listen_is_an_error_with_its_number() {
    const NAME: &str = "what_does_not_listen_is_an_error_with_its_number";
    if !is_child() {
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        return child(NAME, [datagrams.into(), silent.into()], "a:b", "$$");
    }
    assert_eq!(refusal("fd:3"), "listen on fd:3: descriptor 3 is no listening stream socket");
    assert_eq!(refusal("systemd:b"), "listen on systemd:b: descriptor 4 is no listening stream socket");
}
