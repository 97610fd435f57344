//! What the options of `wharf serve` do, as clients see it; or that they arrive, where only the kernel would show more.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

#[cfg(target_os = "linux")]
use crate::faults::traced;
use crate::process::{Folder, LIMIT, Process, STYLES, Server, assert_echoes, assert_reset, bounded, wharf};
#[cfg(target_os = "linux")]
use crate::process::{inherited, listen as listen_here};

#[test]
fn several_listeners_are_told_in_their_order_and_all_serve() {
    let folder = Folder::new("listeners");
    let unix = format!("unix:{}", folder.path("socket"));
    let server = Server::start("echo", "async", &["--listen", "127.0.0.1:0", "--listen", &unix]);
    let second: SocketAddr = server.next_listener().parse().unwrap();
    assert_eq!(server.next_listener(), unix);
    assert_echoes(&mut server.connect());
    assert_echoes(&mut bounded(TcpStream::connect(second).unwrap()));
    let mut client = UnixStream::connect(folder.path("socket")).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    assert_echoes(&mut client);
    let snapshot = server.snapshot();
    assert!(snapshot.contains(&format!("{unix} (1 let in)")), "{snapshot}");
}

#[test]
fn a_unix_socket_alone_serves_and_connect_reaches_it() {
    let folder = Folder::new("unix-alone");
    let unix = format!("unix:{}", folder.path("socket"));
    for style in STYLES {
        let mut command = wharf(["serve", "echo", "--listen", &unix, "--style", style]);
        let process = Process::start(command.stdout(Stdio::null()));
        process.await_message("deadlines: ");
        let outcome = Process::run(&mut wharf(["connect", &unix]), b"by file".to_vec());
        assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(0), &b"by file"[..]), "{outcome:?}");
        process.signal(Signal::TERM);
        assert_eq!(process.outcome().code, Some(0));
        assert!(!std::fs::exists(folder.path("socket")).unwrap(), "its file goes with it");
    }
    let outcome = Process::run(&mut wharf(["connect", &unix]), Vec::new());
    let expected = format!("wharf: connect to {unix}: no such file or directory\n");
    assert_eq!((outcome.code, outcome.stderr), (Some(1), expected));
}

#[test]
#[cfg(target_os = "linux")]
fn what_the_service_manager_passed_is_served() {
    for listen in ["fd:3", "systemd"] {
        let (listener, address) = listen_here();
        let inherited = inherited(&listener);
        // The shell knows the number of the process before that begins.
        let script = format!("exec 3<&{inherited}; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"");
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &script, "bash"]).arg(wharf::<&str>([]).get_program());
        command.args(["serve", "echo", "--listen", listen]);
        let server = Server::of(command);
        assert_eq!(server.address.to_string(), address);
        assert_echoes(&mut server.connect());
        assert_eq!(server.end(Signal::TERM).code, Some(0));
    }
    let outcome = Process::run(&mut wharf(["serve", "echo", "--listen", "systemd"]), Vec::new());
    assert!(outcome.stderr.starts_with("wharf: listen on systemd: "), "{outcome:?}");
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
}

#[test]
fn the_start_tells_the_bounds_and_where_they_come_from() {
    let outcome = Server::start("echo", "async", &[]).end(Signal::TERM);
    assert!(outcome.stderr.contains("connections, from the descriptor limit\n"), "{outcome:?}");
    let deadlines =
        "deadlines: first byte 30s, idle 60s, receive rate 240 bytes/s after 10s, write 30s, linger 2s\n";
    assert!(outcome.stderr.contains(deadlines), "{outcome:?}");

    let asked = [
        ["--max-connections", "7"],
        ["--max-per-address", "2"],
        ["--accept-rate", "5/9"],
        ["--max-age", "1h"],
        ["--idle-timeout", "none"],
    ];
    let outcome = Server::start("echo", "async", &asked.concat()).end(Signal::TERM);
    let limits = "limits: 7 connections, from --max-connections; 2 of one address; 5 per second, 9 at once\n";
    assert!(outcome.stderr.contains(limits), "{outcome:?}");
    let deadlines = "deadlines: receive rate 240 bytes/s after 10s, write 30s, age 3600s, linger 2s\n";
    assert!(outcome.stderr.contains(deadlines), "{outcome:?}");

    let more = Server::start("echo", "async", &["--max-connections", "4294967295"]).end(Signal::TERM);
    let limits = "from --max-connections, but the process may have only ";
    assert!(more.stderr.contains(limits), "{more:?}");
}

#[test]
fn an_address_has_as_many_places_as_it_may() {
    let server = Server::start("echo", "async", &["--max-per-address", "1"]);
    let mut first = connect_from("127.0.0.2", &server).unwrap();
    assert_echoes(&mut first);
    assert_reset(connect_from("127.0.0.2", &server));
    assert_echoes(&mut connect_from("127.0.0.3", &server).unwrap());
    assert!(server.snapshot().contains("1 connections per address"));
}

#[test]
fn one_too_many_is_reset_or_closed_if_it_is_not_to_wait() {
    for policy in ["reset", "close"] {
        let server = Server::start("echo", "async", &["--max-connections", "1", "--over-limit", policy]);
        let mut first = server.connect();
        assert_echoes(&mut first);
        if policy == "reset" {
            assert_reset(server.try_connect());
        } else {
            assert_eq!(server.connect().read(&mut [0; 1]).unwrap(), 0);
        }
        let outcome = server.end(Signal::TERM);
        assert!(outcome.stderr.contains("served 1 connections"), "{outcome:?}");
    }
}

#[test]
fn who_comes_too_fast_is_refused() {
    let server = Server::start("discard", "async", &["--accept-rate", "1/2", "--over-limit", "reset"]);
    // Two come in at once, and then one in a second: it takes three, on a machine that is not asleep.
    let mut stay = Vec::new();
    while !server.snapshot().contains("accept rate\n") {
        stay.push(server.try_connect());
    }
    assert!(stay.len() > 2, "{} came", stay.len());
}

#[test]
fn networks_are_let_in_or_kept_out() {
    let more = ["--allow", "127.0.0.0/8", "--deny", "127.0.0.2", "--deny", "127.0.0.4/31"];
    let server = Server::start("echo", "async", &more);
    assert_echoes(&mut connect_from("127.0.0.3", &server).unwrap());
    for denied in ["127.0.0.2", "127.0.0.4", "127.0.0.5"] {
        assert_reset(connect_from(denied, &server));
    }
    let elsewhere = Server::start("echo", "async", &["--allow", "192.0.2.0/24"]);
    assert_reset(elsewhere.try_connect());
    assert!(elsewhere.snapshot().contains("1 network"));
}

#[test]
fn deadlines_end_connections_for_their_own_reasons() {
    let cases: [(&str, &[&str], &str); 3] = [
        ("echo", &["--first-byte-timeout", "50ms", "--idle-timeout", "none"], "1 first byte deadline passed"),
        ("echo", &["--max-age", "50ms"], "1 age deadline passed"),
        ("chargen", &["--write-timeout", "50ms"], "1 write deadline passed"),
    ];
    for (service, more, reason) in cases {
        for style in STYLES {
            let server = Server::start(service, style, &[more, &["-vv"]].concat());
            let client = server.connect();
            server.process.await_message("connection closed");
            drop(client);
            let outcome = server.end(Signal::TERM);
            assert!(outcome.stderr.contains(reason), "{style}: {outcome:?}");
        }
    }
}

#[test]
fn a_client_that_does_not_read_meets_the_bound_of_its_queue() {
    let cases = [("async", "disconnect"), ("event", "disconnect"), ("async", "refuse")];
    for (style, policy) in cases {
        let server = Server::start("echo", style, &["--write-queue", "64KiB", "--when-full", policy]);
        let mut client = server.connect();
        // Far more than all the buffers on the way hold together.
        let broke =
            std::iter::repeat_with(|| client.write_all(&[5; 1 << 16])).take(1024).any(|sent| sent.is_err());
        assert!(broke || policy == "refuse", "{style}: nobody minds");
        drop(client);
        let outcome = server.end(Signal::TERM);
        let reason = if policy == "refuse" { "1 handler failed" } else { "1 send queue limit passed" };
        assert!(outcome.stderr.contains(reason), "{style}, {policy}: {outcome:?}");
    }
}

#[test]
fn a_small_queue_loses_nothing() {
    let sent: Vec<u8> = b"ping\n".repeat(1 << 18);
    for style in STYLES {
        for service in ["echo", "pingpong"] {
            let server = Server::start(service, style, &["--write-queue", "8KiB"]);
            let outcome = Process::run(&mut wharf(["connect", &server.address.to_string()]), sent.clone());
            assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{service}, {style}");
            assert_eq!(outcome.stdout.len(), sent.len(), "{service}, {style}");
        }
    }
}

#[test]
fn what_shows_in_the_snapshot_has_arrived() {
    let more = [
        ["--max-per-address", "5"],
        ["--ipv6-prefix", "48"],
        ["--accept-rate", "100/20"],
        ["--over-limit", "close"],
        ["--write-queue", "4MiB"],
        ["--when-full", "refuse"],
        ["--max-memory", "6GiB"],
        ["--first-byte-timeout", "7s"],
        ["--idle-timeout", "8s"],
        ["--min-rate", "1KiB/3s"],
        ["--write-timeout", "9s"],
        ["--max-age", "10h"],
    ];
    let snapshot = Server::start("echo", "async", &more.concat()).snapshot();
    for (name, value) in [
        ("phase", "serving"),
        ("memory", "0 of 6442450944 bytes"),
        ("limit.per_address", "5"),
        ("limit.ipv6_prefix", "48 bits"),
        ("limit.accept_rate", "100 per second, 20 at once"),
        ("limit.over_limit", "close"),
        ("limit.send_max", "4194304 bytes, marks at 65536 and 262144"),
        ("limit.when_full", "refuse"),
        ("deadline.first_byte", "7s"),
        ("deadline.idle", "8s"),
        ("deadline.receive_rate", "1024 bytes/s after 3s"),
        ("deadline.write", "9s"),
        ("deadline.age", "36000s"),
    ] {
        assert!(snapshot.contains(&format!("{name:<22} {value}\n")), "{name}: {snapshot}");
    }
    let off = ["--first-byte-timeout", "--idle-timeout", "--min-rate", "--write-timeout", "--max-age"];
    let more: Vec<_> = off.iter().flat_map(|name| [*name, "none"]).collect();
    let snapshot = Server::start("echo", "async", &more).snapshot();
    assert_eq!(snapshot.matches("deadline.").count(), 1, "all but how long a close lingers: {snapshot}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_is_replaced_while_it_serves() {
    let folder = Folder::new("replaced");
    let path = folder.path("upgrade");
    let first = Server::start("echo", "async", &["--handover", &path]);
    let mut early = first.connect();
    assert_echoes(&mut early);
    let again = wharf(["serve", "echo", "--listen", &first.address.to_string(), "--handover", &path]);
    let second = Server::of(again);
    assert_eq!(second.address, first.address);
    assert_echoes(&mut early);
    drop(early);
    let outcome = first.process.outcome();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("served 1 connections"), "{outcome:?}");
    assert_echoes(&mut second.connect());
}

#[test]
fn a_shared_port_is_for_those_who_share() {
    let first = Server::start("echo", "async", &["--reuse-port"]);
    let address = first.address.to_string();
    let again = |more: &[&str]| {
        let mut command = wharf(["serve", "echo", "--listen", &address]);
        command.args(more);
        command
    };
    assert_eq!(Server::of(again(&["--reuse-port=on"])).address, first.address);
    let outcome = Process::run(&mut again(&[]), Vec::new());
    assert!(outcome.stderr.contains("address already in use"), "{outcome:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn options_of_sockets_reach_the_kernel() {
    let folder = Folder::new("sockets");
    let log = folder.path("calls");
    let more = [
        ["--backlog", "77"],
        ["--nodelay", "off"],
        ["--keepalive", "33s"],
        ["--user-timeout", "44s"],
        ["--dscp", "46"],
        ["--device", "lo"],
        ["--fast-open", "55"],
    ];
    let serve = [&["serve", "echo", "--listen", "127.0.0.1:0"], more.concat().as_slice()].concat();
    let Some(command) = traced(&["-o", &log, "-e", "trace=setsockopt,listen"], &serve) else { return };
    let outcome = Server::of(command).end(Signal::TERM);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let calls = std::fs::read_to_string(&log).unwrap();
    for call in [
        ", 77)",
        "SO_KEEPALIVE, [1]",
        "TCP_KEEPIDLE, [33]",
        "TCP_USER_TIMEOUT, [44000]",
        "IP_TOS, [184]",
        "SO_BINDTODEVICE, \"lo",
        "TCP_FASTOPEN, [55]",
    ] {
        assert!(calls.contains(call), "{call}: {calls}");
    }
    assert!(!calls.contains("TCP_NODELAY, [1]") && !calls.contains("SO_REUSEPORT"), "{calls}");
}

/// Connects from an address of this machine's own choice.
fn connect_from(ip: &str, server: &Server) -> io::Result<TcpStream> {
    let ip: IpAddr = ip.parse().expect("it is an address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are descriptors");
    socket.bind(&SocketAddr::new(ip, 0).into()).expect("the address is local");
    socket.connect(&server.address.into())?;
    Ok(bounded(socket.into()))
}
