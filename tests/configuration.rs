//! What is wrong with a configuration is told at the start, by an error that names the operation, what it was about, and
//! the cause.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use wharf::{Backend, Client, Connection, Deadlines, ErrorKind, Limits, ReceiveRate, Server, SocketOptions};

/// The error of a server that must not start.
fn refusal(server: Server) -> wharf::Error {
    let started = server.start(|_: Connection| async { Ok(()) });
    started.expect_err("the server must not start")
}

fn local() -> Server {
    Server::bind("127.0.0.1:0").workers(1)
}

#[test]
fn a_port_in_use_is_named_with_its_cause() {
    let first = Server::bind(format!("{}:0", common::HOST))
        .workers(1)
        .start(|_: Connection| async { Ok(()) })
        .unwrap();
    let address = first.local_addr();
    let error = refusal(Server::bind(address).workers(1));
    assert_eq!(error.to_string(), format!("listen on {address}: address already in use"));
    assert_eq!((error.kind(), error.operation()), (ErrorKind::System, "listen"));
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::AddrInUse));
    first.stop().wait().unwrap();
    // And it is free at once when the first has ended.
    let second = Server::bind(address).workers(1).start(|_: Connection| async { Ok(()) }).unwrap();
    second.stop().wait().unwrap();
}

#[test]
fn an_address_of_another_machine_is_named() {
    let error = refusal(Server::bind("192.0.2.1:80").workers(1));
    assert_eq!(error.kind(), ErrorKind::System);
    assert!(error.to_string().starts_with("listen on 192.0.2.1:80: "), "{error}");
}

#[test]
fn a_spin_longer_than_any_sense_is_refused() {
    let error = refusal(local().spin(Duration::from_secs(1)));
    assert!(error.to_string().contains("`spin`"), "{error}");
}

#[test]
fn a_server_that_spins_serves_on_every_engine() {
    for backend in [Backend::Readiness, Backend::Auto] {
        let server = local().backend(backend).spin(Duration::from_micros(50));
        let server = server
            .start(|mut conn: Connection| async move {
                while let Some(chunk) = conn.recv_chunk().await? {
                    conn.send(&chunk).await?;
                }
                Ok(())
            })
            .unwrap();
        let address = server.local_addr();
        let echoed = wharf::run(async move {
            let mut conn = Client::connect(address).await?;
            let mut echo = [0; 5];
            for _ in 0..100 {
                conn.send(b"hello").await?;
                conn.recv_exact(&mut echo).await?;
            }
            Ok::<_, wharf::Error>(echo)
        });
        assert_eq!(&echoed.unwrap().unwrap(), b"hello");
        server.stop().wait().unwrap();
    }
}

#[test]
fn addresses_that_cannot_be_read_say_why() {
    for (address, word) in [
        ("", "port"),
        ("localhost", "port"),
        ("localhost:", "port"),
        ("localhost:http", "http"),
        ("127.0.0.1:65536", "65536"),
        ("::1:80", "[ADDRESS]:PORT"),
        ("[::1:80", "[ADDRESS]:PORT"),
        ("two words:80", "two words"),
        (":80", "host"),
    ] {
        let error = refusal(Server::bind(address).workers(1));
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Caller, "{text}");
        assert!(text.contains(address) && text.contains(word), "{address}: {text}");
    }
}

#[test]
fn a_name_that_nobody_knows_is_named() {
    let error = refusal(Server::bind("no-such-host.invalid:80").workers(1));
    assert!(error.to_string().starts_with("listen on no-such-host.invalid:80: "), "{error}");
}

#[test]
fn options_that_make_no_sense_are_named() {
    let limits = Limits::default;
    let deadlines = Deadlines::default;
    let sockets = SocketOptions::default;
    let zero = Duration::ZERO;
    for (option, server) in [
        ("workers", local().workers(0)),
        ("workers", local().workers(100_000)),
        ("connections", local().limits(limits().connections(0))),
        ("memory", local().limits(limits().memory((1 << 20) - 1))),
        ("receive_buffer", local().limits(limits().receive_buffer(0))),
        ("send_marks", local().limits(limits().send_marks(10, 10))),
        ("send_marks", local().limits(limits().send_marks(0, 0))),
        ("send_max", local().limits(limits().send_marks(10, 100).send_max(99))),
        ("first_byte", local().deadlines(deadlines().first_byte(zero))),
        ("idle", local().deadlines(deadlines().idle(zero))),
        ("receive_rate", local().deadlines(deadlines().receive_rate(ReceiveRate::new(0)))),
        ("write", local().deadlines(deadlines().write(zero))),
        ("age", local().deadlines(deadlines().age(zero))),
        ("backlog", local().sockets(sockets().backlog(0))),
        ("keepalive", local().sockets(sockets().keepalive(zero))),
        ("user_timeout", local().sockets(sockets().user_timeout(zero))),
        ("keepalive_probes", local().sockets(sockets().keepalive_probes(zero, 3))),
        ("keepalive_probes", local().sockets(sockets().keepalive_probes(Duration::from_secs(1), 0))),
        ("keepalive_probes", local().sockets(sockets().keepalive_probes(Duration::from_secs(1), 128))),
        ("linger", local().sockets(sockets().linger(Duration::from_secs(1)))),
        ("device", local().sockets(sockets().device(""))),
        ("device", local().sockets(sockets().device("longer-than-a-device"))),
        ("device", local().sockets(sockets().device("eth0\0"))),
        ("dscp", local().sockets(sockets().dscp(64))),
    ] {
        let error = refusal(server);
        assert!(error.to_string().starts_with(&format!("start: option `{option}` ")), "{error}");
        assert_eq!(error.kind(), ErrorKind::Caller);
    }
}

#[test]
fn a_client_is_told_the_same() {
    let failure = |client: Client| wharf::run(async move { client.open().await.unwrap_err() }).unwrap();
    let error = failure(Client::new("127.0.0.1:80").limits(Limits::default().send_marks(9, 3)));
    assert!(error.to_string().contains("`send_marks`"), "{error}");
    let error = failure(Client::new("127.0.0.1"));
    assert!(error.to_string().starts_with("connect to 127.0.0.1: the port is missing"), "{error}");
    let error = failure(Client::new("no-such-host.invalid:80"));
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    assert_eq!(error.operation(), "connect");
}

#[test]
fn a_worker_is_not_run_within_another_and_does_not_wait_for_a_server() {
    let server = local().start(|_: Connection| async { Ok(()) }).unwrap();
    let waiting = server.clone();
    wharf::run(async move {
        let nested = wharf::run(async {}).unwrap_err();
        assert_eq!((nested.operation(), nested.kind()), ("run", ErrorKind::Caller));
        let waited = waiting.wait().unwrap_err();
        assert_eq!((waited.operation(), waited.kind()), ("wait", ErrorKind::Caller));
    })
    .unwrap();
    server.stop().wait().unwrap();
    server.stop().wait().expect("stopping twice is stopping once");
}

#[test]
fn both_families_and_a_name_can_be_listened_on() {
    let _watchdog = common::Watchdog::new("both_families_and_a_name_can_be_listened_on");
    for (listen, connect) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("localhost:0", "localhost"),
        ("0.0.0.0:0", "127.0.0.1"),
        ("[::1]:0", "[::1]"),
        ("[::]:0", "127.0.0.1"),
        ("[::]:0", "[::1]"),
    ] {
        let server = Server::bind(listen).workers(1).start(|mut conn: Connection| async move {
            let peer = conn.peer_addr().to_string();
            assert!(conn.local_addr().is_some());
            conn.send(peer.as_bytes()).await
        });
        let Ok(server) = server else {
            assert!(listen.starts_with('['), "{listen}: this machine has no IPv6, but it has IPv4");
            continue;
        };
        let address = format!("{connect}:{}", server.local_addr().port());
        let (told, own) = wharf::run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let own = conn.local_addr().unwrap().to_string();
            (common::recv_all(&mut conn).await.unwrap(), own)
        })
        .unwrap();
        // A peer by IPv4 is one, also for a listener that takes both.
        assert_eq!(String::from_utf8(told).unwrap(), own, "{listen}");
        server.drain(Duration::from_secs(5)).wait().unwrap();
    }
}

#[test]
fn a_connect_to_a_full_backlog_ends_at_its_deadline() {
    let _watchdog = common::Watchdog::new("a_connect_to_a_full_backlog_ends_at_its_deadline");
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    wharf::run(async move {
        let mut waiting = Vec::new();
        let within = Duration::from_millis(100);
        // How many the kernel queues for a backlog of zero is its own business, but it is few.
        let late = loop {
            match Client::connect(address).within(within).await {
                Ok(conn) => waiting.push(conn),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10);
        };
        assert!(late.is_timeout(), "{late}");
        assert_eq!(late.to_string(), format!("connect to {address}: timed out after 100ms"));
        waiting.iter_mut().for_each(|conn| drop(conn.reset()));
    })
    .unwrap();
}

#[test]
fn extreme_numbers_saturate() {
    let limits = Limits::default()
        .connections(usize::MAX)
        .memory(usize::MAX)
        .receive_buffer(usize::MAX)
        .send_marks(usize::MAX - 1, usize::MAX)
        .send_max(usize::MAX);
    let max = Duration::MAX;
    let rate = ReceiveRate::new(u32::MAX).grace(max);
    let deadlines = Deadlines::default().first_byte(max).idle(max).receive_rate(rate);
    let deadlines = deadlines.write(max).age(max).linger(max);
    let server = local().limits(limits.clone()).deadlines(deadlines.clone());
    let server = server
        .start(|mut conn: Connection| async move {
            conn.set_deadline(Duration::MAX);
            conn.close_after(Duration::MAX);
            let mut buf = [0; 5];
            conn.recv_exact(&mut buf).within(Duration::MAX).await?;
            conn.send(&buf).await
        })
        .unwrap();
    let address = server.local_addr();
    wharf::run(async move {
        let client = Client::new(address).limits(limits).deadlines(deadlines).connect_within(Duration::MAX);
        let mut conn = client.open().within(Duration::MAX).await.unwrap();
        conn.send(b"hello").await.unwrap();
        conn.recv_exact(&mut [0; 5]).await.unwrap();
    })
    .unwrap();
    server.drain(Duration::MAX).wait().unwrap();
}

#[test]
fn a_server_tells_what_carries_it() {
    let backends = |backend: Backend| {
        let server = local().workers(2).backend(backend).start(|_: Connection| async { Ok(()) }).unwrap();
        let backends = server.backends();
        server.stop().wait().unwrap();
        backends
    };
    assert_eq!(backends(Backend::Readiness), [Backend::Readiness; 2]);
    let auto = wharf::probe().auto.unwrap();
    assert_eq!(backends(Backend::Auto), [auto; 2]);
    assert_eq!(Backend::Auto.name(), auto.name());
}

#[test]
fn a_backend_that_cannot_run_is_refused_with_a_reason() {
    let Err(refusal) = wharf::probe().uring else { return };
    let server = local().backend(Backend::Uring).start(|_: Connection| async { Ok(()) });
    let ran = wharf::run_on(Backend::Uring, async {});
    for (error, operation) in [(server.unwrap_err(), "start"), (ran.unwrap_err(), "run")] {
        assert_eq!(error.to_string(), format!("{operation}: {refusal}"));
        assert_eq!(error.kind(), ErrorKind::System);
    }
}
