//! What the options say of sockets is what the kernel has of them: of the listener, of the connections that it accepts, and
//! of those that a client makes.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::Socket;
use wharf::{Backend, Client, Connection, ErrorKind, Server, SocketOptions};

/// The sockets of this process, each once more.
fn sockets() -> Vec<Socket> {
    let this: Pid = getpid();
    let this: OwnedFd = pidfd_open(this, PidfdFlags::empty()).unwrap();
    let mut sockets = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let is_socket =
            fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        let Some(fd) = is_socket.then(|| entry.file_name().to_str().unwrap().parse().unwrap()) else {
            continue;
        };
        if let Ok(fd) = pidfd_getfd(&this, fd, PidfdGetfdFlags::empty()) {
            sockets.push(Socket::from(fd));
        }
    }
    sockets
}

fn local(socket: &Socket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket()
}

fn peer(socket: &Socket) -> Option<SocketAddr> {
    socket.peer_addr().ok()?.as_socket()
}

/// The three sockets of a server with one connection: its listener, what it accepted, and the client's.
struct Three {
    listener: Socket,
    accepted: Socket,
    client: Socket,
}

/// Connects to a server with these options by a client with the same, and looks at their sockets.
fn three(
    test: &str,
    backend: Backend,
    listen: &str,
    host: &str,
    options: &SocketOptions,
    check: &impl Fn(&Three),
) {
    if !common::works(backend, test) {
        return;
    }
    let server = Server::bind(listen).workers(1).backend(backend).sockets(options.clone());
    let server = server.start(|mut conn: Connection| async move {
        conn.send(b"x").await?;
        conn.recv(&mut [0; 1]).await.map(drop)
    });
    let server = match server {
        Ok(server) => server,
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::PermissionDenied) => {
            // Straight to the descriptor, for the test harness swallows what is printed.
            let line = format!("\n*** SKIPPED: {test}: {error} ***\n");
            drop(std::io::stderr().write_all(line.as_bytes()));
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let port = server.local_addr().port();
    let client = Client::new(format!("{host}:{port}")).sockets(options.clone());
    // As long as there is a second descriptor, closing the first ends nothing: they are gone before the connection is.
    let look = async move {
        let mut conn = client.open().await.unwrap();
        conn.recv_exact(&mut [0; 1]).await.unwrap();
        let (mut listener, mut accepted, mut client) = (None, None, None);
        for socket in sockets() {
            match (local(&socket), peer(&socket)) {
                (Some(local), None) if local.port() == port => listener = Some(socket),
                (Some(local), Some(_)) if local.port() == port => accepted = Some(socket),
                (_, Some(peer)) if peer.port() == port => client = Some(socket),
                _ => {}
            }
        }
        check(&Three { listener: listener.unwrap(), accepted: accepted.unwrap(), client: client.unwrap() });
    };
    wharf::run_on(backend, look).unwrap();
    server.stop().wait().unwrap();
}

/// Looks at all three on both engines, by IPv4 and by IPv6.
fn on_each(test: &str, options: &SocketOptions, check: impl Fn(&Socket)) {
    let _watchdog = common::Watchdog::new("socket options");
    for backend in [Backend::Readiness, Backend::Uring] {
        for (listen, host) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
            three(test, backend, listen, host, options, &|three| {
                [&three.listener, &three.accepted, &three.client].into_iter().for_each(&check);
            });
        }
    }
}

#[test]
fn the_defaults_are_set() {
    on_each("the_defaults_are_set", &SocketOptions::default(), |socket| {
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
        assert_eq!(socket.linger().unwrap(), None);
        assert!(!socket.reuse_port().unwrap());
        assert_eq!(socket.device().unwrap(), None);
    });
}

#[test]
fn keepalive_is_set_as_a_whole_or_not_at_all() {
    let test = "keepalive_is_set_as_a_whole_or_not_at_all";
    let seconds = Duration::from_secs;
    let options = SocketOptions::default().keepalive(seconds(7)).keepalive_probes(seconds(2), 5);
    on_each(test, &options, |socket| {
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), seconds(7));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), seconds(2));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
    });
    on_each(test, &options.keepalive(None), |socket| assert!(!socket.keepalive().unwrap()));
}

#[test]
fn what_is_turned_off_is_off() {
    let options = SocketOptions::default().nodelay(false).user_timeout(None);
    on_each("what_is_turned_off_is_off", &options, |socket| {
        assert!(!socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    });
}

#[test]
fn buffers_user_timeout_and_linger_are_set() {
    let options = SocketOptions::default()
        .receive_buffer(20_000)
        .send_buffer(30_000)
        .user_timeout(Duration::from_millis(1500))
        .linger(Duration::ZERO);
    on_each("buffers_user_timeout_and_linger_are_set", &options, |socket| {
        // The kernel doubles what it is told (socket(7)).
        assert_eq!(socket.recv_buffer_size().unwrap(), 40_000);
        assert_eq!(socket.send_buffer_size().unwrap(), 60_000);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO));
    });
}

#[test]
fn packets_are_classed_for_both_families() {
    let options = SocketOptions::default().dscp(46);
    on_each("packets_are_classed_for_both_families", &options, |socket| {
        let byte = match local(socket).unwrap() {
            SocketAddr::V4(_) => socket.tos_v4(),
            SocketAddr::V6(_) => socket.tclass_v6(),
        };
        assert_eq!(byte.unwrap() >> 2, 46);
    });
    let test = "packets_are_classed_for_both_families";
    three(test, Backend::Readiness, "[::]:0", "127.0.0.1", &options, &|three| {
        assert_eq!(three.accepted.tos_v4().unwrap() >> 2, 46, "an IPv4 client of a dual-stack listener");
    });
}

#[test]
fn a_device_is_bound_to() {
    let options = SocketOptions::default().device("lo");
    on_each("a_device_is_bound_to", &options, |socket| {
        assert_eq!(socket.device().unwrap().as_deref(), Some(b"lo".as_slice()));
    });
}

#[test]
fn packets_are_marked() {
    let options = SocketOptions::default().mark(0x77);
    on_each("packets_are_marked", &options, |socket| assert_eq!(socket.mark().unwrap(), 0x77));
}

#[test]
fn a_port_is_shared_only_by_those_who_say_so() {
    let start = |address: &str, shared: bool| {
        let options = SocketOptions::default().reuse_port(shared);
        let server = Server::bind(address).workers(1).sockets(options);
        server.start(|_: Connection| async { Ok(()) })
    };
    let first = start("127.0.0.1:0", true).unwrap();
    let address = first.local_addr().to_string();
    let second = start(&address, true).unwrap();
    assert_eq!(start(&address, false).unwrap_err().io_kind(), Some(std::io::ErrorKind::AddrInUse));
    for server in [first, second] {
        server.stop().wait().unwrap();
    }
}

#[test]
fn a_listener_takes_both_families_unless_told_otherwise() {
    let reaches = |only_v6: bool| {
        let server = Server::bind("[::]:0").workers(1).sockets(SocketOptions::default().only_v6(only_v6));
        let server = server.start(|mut conn: Connection| async move { conn.send(b"x").await }).unwrap();
        let port = server.local_addr().port();
        let connect = move |host: &str| {
            let address = format!("{host}:{port}");
            wharf::run(async move { Client::connect(address).await.map(drop) }).unwrap()
        };
        assert!(connect("[::1]").is_ok());
        let reached = connect("127.0.0.1");
        server.stop().wait().unwrap();
        reached
    };
    assert!(reaches(false).is_ok());
    assert!(reaches(true).unwrap_err().is_refused());
}

#[test]
fn an_option_that_the_system_refuses_is_named() {
    let _watchdog = common::Watchdog::new("an_option_that_the_system_refuses_is_named");
    let options = SocketOptions::default().device("no-such-dev0");
    let server = Server::bind("127.0.0.1:0").workers(1).sockets(options.clone());
    let error = server.start(|_: Connection| async { Ok(()) }).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("listen on 127.0.0.1:0: option `device`: "), "{text}");
    assert_eq!(error.kind(), ErrorKind::System);
    for backend in [Backend::Readiness, Backend::Uring] {
        if !common::works(backend, "an_option_that_the_system_refuses_is_named") {
            continue;
        }
        let client = Client::new("127.0.0.1:9").sockets(options.clone());
        let error = wharf::run_on(backend, async move { client.open().await.unwrap_err() }).unwrap();
        let told = error.to_string();
        assert!(told.starts_with("connect to 127.0.0.1:9: option `device`: "), "{told}");
        assert_eq!(error.kind(), ErrorKind::System);
    }
}
