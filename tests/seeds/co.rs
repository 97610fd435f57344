//! The coroutine toolkit: a task for each connection, clients that connect when they are used, pools.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wharf::blocking::Listener;
use wharf::framing::{Delimited, Framed, LengthPrefixed};
use wharf::pool::{self, Pool, PoolOptions};
use wharf::tls::{Acceptor, ClientTls, Connector, Identity};
use wharf::{
    CertificateFault, Client, CloseReason, Connection, Deadline, Error, ErrorKind, Listen, Result, Server,
    ServerHandle, SocketOptions, TlsFault, Whom,
};

use super::{Script, WIRES, echoed, let_in};
use crate::common::behaviours::{Discard, Echo, Hold};
use crate::common::tls::{AUTHORITY, Authority, NAME, acceptor, client_tls, connector, server_tls};
use crate::common::{Watchdog, Wire, assert_pattern, backends, pattern, recv_all, until};

scenario! {
    /// After `close` every call but `close` and `reset` was undefined.
    async fn c1_one_type_for_plain_and_tls_closes_when_dropped_and_refuses_use_after_close(world) {
        for wire in WIRES {
            let server = world.serve_with(Echo, |server| wire.server(server));
            let address = server.local_addr();
            world.run(async move {
                let mut conn: Connection = wire.client(address).open().await.unwrap();
                echoed(&mut conn, b"hello").await;
                let watched = conn.remote();
                drop(conn);
                until("dropping it has closed it", || watched.close_reason().is_some()).await;
                assert_eq!(watched.close_reason(), Some(CloseReason::Local));

                let mut conn = wire.client(address).open().await.unwrap();
                let moved = { echoed(&mut conn, b"x").await; conn };
                let mut conn = moved;
                assert_eq!(conn.close().await, CloseReason::Local);
                let error = conn.send(b"x").await.unwrap_err();
                assert_eq!(error.close_reason(), Some(CloseReason::Local), "{error}");
                // The server has ended its side too, so there is an end to be read, and no more than that.
                assert!(!conn.recv(&mut [0; 1]).await.is_ok_and(|n| n > 0));
                assert!(conn.recv_exact(&mut [0; 1]).await.is_err());
                assert_eq!(conn.close().await, CloseReason::Local);
                assert_eq!(conn.reset().await, CloseReason::Local);
            });
        }
    }
}

scenario! {
    async fn c2_recv_returns_what_is_there_0_at_the_end_and_an_error_when_it_is_late(world) {
        for wire in WIRES {
            let patience = world.time(2.0);
            let server = world.serve_with(
                Script(move |mut conn: Connection| async move {
                    conn.send(b"abc").await?;
                    conn.recv_exact(&mut [0; 2]).await // what the client says when it has waited in vain
                }),
                |server| wire.server(server),
            );
            let address = server.local_addr();
            let client = wire.client(address);
            let began = world.now();
            world.run(async move {
                let mut conn = client.open().await.unwrap();
                let (mut buf, mut got) = ([0; 8], Vec::new());
                while got.len() < 3 {
                    let n = conn.recv(&mut buf).await.unwrap();
                    assert!(n > 0, "0 is the end alone");
                    got.extend_from_slice(&buf[..n]);
                }
                assert_eq!(got, b"abc");
                let late = conn.recv(&mut buf).within(patience).await.unwrap_err();
                assert!(late.is_timeout() && late.close_reason().is_none(), "{late}");
                conn.send(b"go").await.unwrap();
                assert_eq!(conn.recv(&mut buf).await.unwrap(), 0);
            });
            assert!(world.now() - began >= patience);
        }
    }
}

scenario! {
    /// Its peer's end in mid-message was told as an end, with the bytes lost, and each byte began its timeout anew.
    async fn c3_recv_exact_has_a_total_deadline_tells_an_end_in_mid_message_and_loses_nothing(world) {
        let (pace, patience) = (world.time(1.0), world.time(4.0));
        let server = world.serve(Script(move |mut conn: Connection| async move {
            for byte in b"0123456789" {
                conn.send(&[*byte]).await?;
                wharf::sleep(pace).await;
            }
            Ok(())
        }));
        let address = server.local_addr();
        let began = world.now();
        let read = world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let mut buf = [0; 20];
            let late = conn.recv_exact(&mut buf).within(patience).await.unwrap_err();
            assert!(late.is_timeout(), "{late}");
            // What came meanwhile is there; it may be read at once, or with the rest.
            let cut = conn.recv_exact(&mut buf).await.unwrap_err();
            assert!(cut.is_ended(), "{cut}");
            assert_eq!(cut.partial(), Some(10));
            recv_all(&mut conn).await.unwrap()
        });
        assert_eq!(read, b"0123456789");
        assert!(world.now() - began >= patience);
    }
}

scenario! {
    /// Each byte that the peer took began its timeout anew.
    async fn c4_send_sends_all_and_its_deadline_is_total(world) {
        const MUCH: usize = 6 << 20;
        let pace = world.time(0.2);
        let small = SocketOptions::default().receive_buffer(16 << 10).send_buffer(64 << 10);
        let theirs = small.clone();
        let server = world.serve_with(
            Script(move |mut conn: Connection| async move {
                let mut how = [0; 1];
                conn.recv_exact(&mut how).await?;
                if how == *b"f" {
                    let all = recv_all(&mut conn).await?;
                    assert_pattern(&all, 0);
                    return conn.send(&all.len().to_be_bytes()).await;
                }
                // It takes a little again and again, and so never lets its sender wait for long.
                while conn.recv(&mut [0; 4096]).await? > 0 {
                    wharf::sleep(pace).await;
                }
                Ok(())
            }),
            |server| server.sockets(theirs),
        );
        let client = Client::new(server.local_addr()).sockets(small);
        let (patience, began) = (world.time(5.0), world.now());
        world.run(async move {
            let message = pattern(0..MUCH);
            let mut conn = client.open().await.unwrap();
            conn.send(b"f").await.unwrap();
            conn.send(&message).await.unwrap();
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), MUCH.to_be_bytes());

            let mut conn = client.open().await.unwrap();
            conn.send(b"s").await.unwrap();
            let late = conn.send(&message).within(patience).await.unwrap_err();
            assert!(late.is_timeout() && late.close_reason().is_none(), "{late}");
            let counts = conn.counts();
            assert!((1..MUCH as u64).contains(&counts.sent), "it takes some, and not all: {counts:?}");
            conn.reset().await;
            assert!(conn.counts().unsent > 0, "what was queued and never sent is told");
        });
        assert!(world.now() - began >= patience);
    }
}

/// Does it on another thread, where there are threads.
fn elsewhere(is_simulated: bool, what: impl FnOnce() + Send + 'static) {
    match is_simulated {
        true => what(),
        false => std::thread::spawn(what).join().unwrap(),
    }
}

scenario! {
    /// With TLS it aborted outside of a coroutine.
    async fn c5_close_sends_what_is_queued_may_be_called_anywhere_and_late_and_twice(world) {
        for wire in WIRES {
            let (delay, is_simulated) = (world.time(3.0), world.is_simulated());
            let server = world.serve_with(
                Script(move |mut conn: Connection| async move {
                    let mut how = [0; 1];
                    conn.recv_exact(&mut how).await?;
                    conn.send(&pattern(0..100_000)).await?;
                    match &how {
                        b"n" => drop(conn.close()),
                        b"l" => conn.close_after(delay),
                        _ => {
                            let remote = conn.remote();
                            elsewhere(is_simulated, move || {
                                remote.close();
                                remote.close();
                            });
                        }
                    }
                    conn.closed().await;
                    conn.close().await;
                    Ok(())
                }),
                |server| wire.server(server),
            );
            let client = wire.client(server.local_addr());
            for how in [b"n", b"l", b"e"] {
                let (client, began) = (client.clone(), world.now());
                world.run(async move {
                    let mut conn = client.open().await.unwrap();
                    conn.send(how).await.unwrap();
                    // With TLS the end is the peer's close_notify: without it this would be an error.
                    let all = recv_all(&mut conn).await.unwrap();
                    assert_pattern(&all, 0);
                    assert_eq!(all.len(), 100_000);
                });
                assert!(how != b"l" || world.now() - began >= delay);
            }
            assert_eq!(world.stop(&server).closed(CloseReason::Local), 3);
        }
    }
}

scenario! {
    /// It had to be called in the thread that did the I/O.
    async fn c6_reset_throws_away_leaves_no_time_wait_and_may_be_called_anywhere_and_late(world) {
        let (delay, is_simulated) = (world.time(3.0), world.is_simulated());
        let server = world.serve(Script(move |mut conn: Connection| async move {
            let mut how = [0; 1];
            conn.recv_exact(&mut how).await?;
            match &how {
                b"n" => drop(conn.reset()),
                b"l" => conn.reset_after(delay),
                _ => {
                    let remote = conn.remote();
                    elsewhere(is_simulated, move || remote.reset());
                }
            }
            assert_eq!(conn.closed().await, CloseReason::LocalReset);
            Ok(())
        }));
        let address = server.local_addr();
        for how in [b"n", b"l", b"e"] {
            let began = world.now();
            let ours = world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                let ours = conn.local_addr().unwrap();
                conn.send(how).await.unwrap();
                let error = conn.recv(&mut [0; 1]).await.unwrap_err();
                assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
                ours.port().unwrap()
            });
            assert!(how != b"l" || world.now() - began >= delay);
            assert!(is_simulated || !lies_in_time_wait(ours, address.port()));
        }
        assert_eq!(world.stop(&server).closed(CloseReason::LocalReset), 3);
    }
}

/// Whether the system keeps a connection between these ports in TIME_WAIT.
fn lies_in_time_wait(one: u16, other: u16) -> bool {
    // proc(5): the second and the third column are the addresses, the fourth is the state; 6 is TIME_WAIT.
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let between = |local: &str, remote: &str, [one, other]: [u16; 2]| {
        local.ends_with(&format!(":{one:04X}")) && remote.ends_with(&format!(":{other:04X}"))
    };
    table.lines().skip(1).any(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let (local, remote) = (columns[1], columns[2]);
        columns[3] == "06" && (between(local, remote, [one, other]) || between(local, remote, [other, one]))
    })
}

scenario! {
    /// Asking for the socket of a closed connection read through a null pointer.
    async fn c7_a_closed_connection_still_tells_who_it_was_with_and_why_it_ended(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = let_in(address).await;
            assert_eq!(conn.close_reason(), None);
            let (id, ours) = (conn.id(), conn.local_addr());
            assert!(ours.is_some());
            conn.close().await;
            assert_eq!((conn.id(), conn.peer_addr().socket()), (id, Some(address)));
            assert_eq!(conn.close_reason(), Some(CloseReason::Local));
            assert_eq!(conn.unacked(), None);
            let error = conn.send(b"x").await.unwrap_err();
            assert_eq!(error.to_string(), format!("send to {address}: connection is closed: closed by this side"));
            assert_eq!((error.operation(), error.kind()), ("send", ErrorKind::Caller));
        });
    }
}

/// What handlers of all three forms do: they greet by the name of their form, and wait for the client's end.
async fn greet(mut conn: Connection, name: &str) -> Result<()> {
    conn.send(name.as_bytes()).await?;
    recv_all(&mut conn).await.map(drop)
}

async fn function(conn: Connection) -> Result<()> {
    greet(conn, "function").await
}

struct Object {
    name: String,
}

impl Object {
    async fn method(&self, conn: Connection) -> Result<()> {
        greet(conn, &self.name).await
    }
}

scenario! {
    /// A server without a handler aborted; here there is no server without one.
    async fn c8_on_connection_is_a_function_a_closure_or_a_method_and_runs_once_for_each_connection(world) {
        let (name, object) = (Arc::new(String::from("closure")), Arc::new(Object { name: "method".into() }));
        let servers = [
            world.serve(Script(function)),
            world.serve(Script(move |conn| {
                let name = name.clone();
                async move { greet(conn, &name).await }
            })),
            world.serve(Script(move |conn| {
                let object = object.clone();
                async move { object.method(conn).await }
            })),
        ];
        for (server, name) in servers.iter().zip(["function", "closure", "method"]) {
            let address = server.local_addr();
            world.run(async move {
                // All at the same time: none of their handlers ends before its client does.
                let mut conns = Vec::new();
                for _ in 0..3 {
                    let mut conn = Client::connect(address).await.unwrap();
                    let mut greeting = vec![0; name.len()];
                    conn.recv_exact(&mut greeting).await.unwrap();
                    assert_eq!(greeting, name.as_bytes());
                    conns.push(conn);
                }
            });
            assert_eq!(world.stop(server).accepted, 3);
        }
    }
}

scenario! {
    async fn c9_on_exit_runs_once_when_the_last_connection_has_ended_and_a_panic_does_not_keep_it(world) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let (ended, at_exit) = (told.clone(), told.clone());
        let server = world.serve_with(
            Script(move |mut conn: Connection| {
                let ended = ended.clone();
                async move {
                    let mut how = [0; 1];
                    conn.recv_exact(&mut how).await?;
                    let slow = how == *b"s";
                    assert!(slow, "a defect of the handler, on purpose");
                    conn.draining().await;
                    wharf::sleep(Duration::from_millis(50)).await;
                    ended.lock().unwrap().push(String::from("connection"));
                    Ok(())
                }
            }),
            |server| server.on_exit(move |stats| at_exit.lock().unwrap().push(format!("exit {}", stats.accepted))),
        );
        let (address, handle) = (server.local_addr(), server.clone());
        let seen = told.clone();
        world.run(async move {
            let mut slow = Client::connect(address).await.unwrap();
            slow.send(b"s").await.unwrap();
            let mut bad = Client::connect(address).await.unwrap();
            bad.send(b"p").await.unwrap();
            assert!(bad.recv(&mut [0; 1]).await.is_err(), "its connection is reset");
            assert!(seen.lock().unwrap().is_empty(), "the server runs");
            handle.drain(Duration::from_secs(10));
            recv_all(&mut slow).await.unwrap();
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::HandlerPanicked), 1);
        assert_eq!(*told.lock().unwrap(), ["connection", "exit 2"]);
    }
}

scenario! {
    async fn c10_conn_num_is_the_number_of_connections_at_this_moment(world) {
        let server = world.serve(Echo);
        let (address, handle) = (server.local_addr(), server.clone());
        world.run(async move {
            assert_eq!(handle.connections(), 0);
            let mut conns = Vec::new();
            for count in 1..=5 {
                conns.push(let_in(address).await);
                assert_eq!(handle.connections(), count);
            }
            conns.truncate(2);
            until("three have left", || handle.connections() == 2).await;
            assert_eq!(handle.connections_by_worker().iter().sum::<usize>(), 2);
            drop(conns);
            until("all have left", || handle.connections() == 0).await;
        });
    }
}

/// The process was aborted when the port was taken or a file of the certificate was bad.
#[test]
fn c11_start_does_not_block_takes_both_families_outlives_its_object_and_its_failures_are_errors() {
    for backend in backends("c11") {
        let ends: Arc<std::sync::OnceLock<ServerHandle>> = Arc::default();
        let end = ends.clone();
        let (exited, exit) = std::sync::mpsc::channel();
        let server =
            Server::bind("[::]:0").backend(backend).workers(1).on_exit(move |_| exited.send(()).unwrap());
        let server = server.start(move |mut conn: Connection| {
            let end = end.clone();
            async move {
                while let Some(chunk) = conn.recv_chunk().await? {
                    if chunk[..] == *b"exit" {
                        end.get().expect("it was set before").drain(Duration::ZERO);
                    }
                    conn.send(&chunk).await?;
                }
                Ok(())
            }
        });
        let server = server.unwrap();
        let address = server.local_addr();
        assert!(address.port() > 0);
        // The program keeps nothing of it.
        ends.set(server).unwrap();
        drop(ends);
        wharf::run_on(backend, async move {
            let_in((std::net::Ipv4Addr::LOCALHOST, address.port()).into()).await;
            let_in((std::net::Ipv6Addr::LOCALHOST, address.port()).into()).await;
            let taken =
                Server::bind(address).backend(backend).start(|_: Connection| async { Ok(()) }).unwrap_err();
            assert_eq!(
                (taken.kind(), taken.io_kind()),
                (ErrorKind::System, Some(std::io::ErrorKind::AddrInUse))
            );
            assert_eq!(taken.operation(), "listen");
            let mut last = let_in((std::net::Ipv4Addr::LOCALHOST, address.port()).into()).await;
            last.send(b"exit").await.unwrap();
            last.closed().await;
        })
        .unwrap();
        exit.recv().unwrap();

        let missing = Identity::from_files("/nonexistent/chain.pem", "/nonexistent/key.pem").unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/"), "{missing}");
        let empty = Identity::from_pem("", "").unwrap_err();
        assert_eq!((empty.operation(), empty.kind()), ("load", ErrorKind::Caller), "{empty}");
    }
}

/// It ended its accept loop by a connection to itself, and waited for that in a loop.
#[test]
fn c12_exit_closes_the_listener_at_once_by_no_connection_and_leaves_those_that_stand() {
    for backend in backends("c12") {
        let server = Server::bind("127.0.0.1:0").backend(backend).workers(2);
        let server = server.start(|mut conn: Connection| async move {
            while let Some(chunk) = conn.recv_chunk().await? {
                conn.send(&chunk).await?;
            }
            Ok(())
        });
        let server = server.unwrap();
        let (address, handle) = (server.local_addr(), server.clone());
        wharf::run_on(backend, async move {
            let mut conn = let_in(address).await;
            handle.suspend();
            until("newcomers are refused", || {
                let newcomer = std::net::TcpStream::connect(address);
                newcomer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            })
            .await;
            // One that came just before the end may still be on its way out.
            until("nobody but the one who stays is left", || handle.connections() == 1).await;
            echoed(&mut conn, b"still here").await;
            handle.drain(Duration::from_secs(10));
            echoed(&mut conn, b"and here").await;
        })
        .unwrap();
        let stats = server.wait().unwrap();
        // Whoever was connected before the listener was closed was let in, and has left.
        assert_eq!((stats.closed(CloseReason::Peer), stats.drain.reset), (stats.accepted, 0), "{stats:?}");
    }
}

scenario! {
    /// Its timeout began anew with each byte.
    async fn c13_the_handshake_has_a_total_deadline_and_its_client_holds_up_nobody(world) {
        let (patience, pace) = (world.time(5.0), world.time(0.5));
        let tls = Acceptor::new(server_tls().handshake_within(patience)).unwrap();
        let server = world.serve_with(Echo, |server| server.tls(&tls).workers(1));
        let address = server.local_addr();
        let began = world.now();
        world.run(async move {
            let drips = wharf::spawn(async move {
                let mut slow = Client::connect(address).await.unwrap();
                // The beginning of a hello of 508 bytes.
                slow.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
                while slow.send(b"r").await.is_ok() {
                    wharf::sleep(pace).await;
                }
                slow.closed().await
            });
            let mut good = Wire::Tls.client(address).open().await.unwrap();
            echoed(&mut good, b"served meanwhile").await;
            assert_eq!(drips.await.unwrap(), CloseReason::PeerReset);
        });
        assert!(world.now() - began >= patience);
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Handshake)), 1, "{stats:?}");
    }
}

scenario! {
    /// It tried the first address alone, looked names up outside of its timeout, and took any certificate.
    async fn c14_a_client_connects_when_it_is_used_again_when_it_has_to_and_a_copy_is_a_target(world) {
        let server = world.serve(Echo);
        let (address, handle) = (server.local_addr(), server.clone());
        world.run(async move {
            let mut lazy = Client::new(address).lazy();
            assert!(!lazy.is_connected());
            lazy.disconnect();
            assert_eq!(handle.stats().accepted, 0, "nothing happens before it is used");
            let first = {
                let conn = lazy.connected().await.unwrap();
                echoed(conn, b"ping").await;
                conn.local_addr()
            };
            assert!(lazy.is_connected());
            let again = lazy.connected().await.unwrap();
            assert_eq!(again.local_addr(), first, "connecting when connected is nothing");

            let mut copy = lazy.clone();
            assert!(!copy.is_connected(), "a copy has the target alone");
            echoed(copy.connected().await.unwrap(), b"ping").await;
            assert_eq!(handle.stats().accepted, 2);
            lazy.disconnect();
            lazy.disconnect();
            assert!(!lazy.is_connected() && copy.is_connected());

            // Check, connect, use: that is how it comes back when the server has sent it away.
            handle.disconnect(copy.connected().await.unwrap().local_addr().unwrap().ip().unwrap());
            until("it is known to have ended", || !copy.is_connected()).await;
            echoed(copy.connected().await.unwrap(), b"ping").await;
            assert_eq!(handle.stats().accepted, 3);
        });
        world.stop(&server);
        world.run(async move {
            let mut lazy = Client::new(address).lazy();
            assert!(lazy.connected().await.unwrap_err().is_refused());
            assert!(!lazy.is_connected());
        });
    }
}

/// The rest of that row, on real addresses.
#[test]
fn c14_a_client_has_a_source_address_tries_all_addresses_and_looks_names_up_within_its_deadline() {
    for backend in backends("c14") {
        let server = Server::bind("127.0.0.3:0").backend(backend).workers(1).start(greeted).unwrap();
        let port = server.local_addr().port();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = Mutex::new(held);
        wharf::run_on(backend, async move {
            let conn = Client::new(format!("127.0.0.3:{port}")).bind("127.0.0.9").open().await;
            assert_eq!(conn.unwrap().local_addr().unwrap().ip(), Some([127, 0, 0, 9].into()));

            // Nobody ever listens at the first two.
            let three = |_: &str| Ok([97, 98, 3].map(|last| [127, 0, 0, last].into()).to_vec());
            let named = Client::new(format!("three.test:{port}")).resolver(three);
            assert_eq!(named.open().await.unwrap().peer_addr().socket(), Some(server.local_addr()));

            let hangs = Client::new("hangs.test:1").connect_within(Duration::from_millis(100));
            let hangs = hangs.resolver(move |_| {
                // It returns when the test is over.
                assert!(held.lock().unwrap().recv().is_err());
                Ok(Vec::new())
            });
            let late = hangs.open().await.unwrap_err();
            assert!(late.is_timeout(), "{late}");
            drop(release);
            server.drain(Duration::from_secs(10));
            server
        })
        .unwrap()
        .wait()
        .unwrap();
    }
}

async fn greeted(mut conn: Connection) -> Result<()> {
    conn.send(b"hello").await
}

scenario! {
    async fn c15_a_timeout_is_told_from_every_other_failure(world) {
        let moment = world.time(1.0);
        let server = world.serve(Hold);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let late = conn.recv(&mut [0; 1]).within(moment).await.unwrap_err();
            assert!(late.is_timeout() && !late.is_closed() && !late.is_ended() && !late.is_refused(), "{late}");
            let late: Error = wharf::within(moment, conn.closed()).await.unwrap_err();
            assert_eq!(std::io::Error::from(late).kind(), std::io::ErrorKind::TimedOut);
            conn.reset().await;
            let closed = conn.recv(&mut [0; 1]).within(moment).await.unwrap_err();
            assert!(closed.is_closed() && !closed.is_timeout(), "{closed}");
        });
        world.stop(&server);
        let refused = world.run(async move { Client::connect(address).await.unwrap_err() });
        assert!(refused.is_refused() && !refused.is_timeout(), "{refused}");
    }
}

/// What its functions for sockets do, in the style that they are of.
#[test]
fn c16_the_socket_functions_are_those_of_the_blocking_style() {
    let _watchdog = Watchdog::new("c16");
    // tcp_socket, bind, listen, accept, connect, and the address as text.
    let options =
        SocketOptions::default().send_buffer(128 << 10).receive_buffer(128 << 10).nodelay(true).backlog(16);
    let mut listener = Listener::bind(Listen::at("127.0.0.1:0").sockets(options.clone())).unwrap();
    let client = Client::new(listener.local_addr()).sockets(options).connect_within(Duration::from_secs(3));
    let mut ours = client.open_blocking().unwrap();
    let mut theirs = listener.accept().unwrap();
    assert_eq!(Some(theirs.peer_addr()), ours.local_addr());
    assert!(listener.accept_within(Duration::ZERO).unwrap().is_none(), "accept would block");
    // send, recv, recvn, with a time and without.
    ours.send(b"hello").unwrap();
    let mut buf = [0; 5];
    theirs.recv_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"hello");
    let late = theirs.within(Duration::from_millis(20)).recv(&mut buf).unwrap_err();
    assert!(late.is_timeout(), "{late}");
    // shutdown 'w': the other direction goes on.
    ours.finish().unwrap();
    assert_eq!(theirs.recv(&mut buf).unwrap(), 0);
    theirs.send(b"still").unwrap();
    ours.recv_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"still");
    // shutdown 'b', and close.
    assert_eq!(theirs.close(), CloseReason::Peer);
    assert_eq!(ours.recv(&mut buf).unwrap(), 0);
    assert!(ours.send(b"x").is_err());
    // An option that cannot be is refused, by its name.
    let bad = SocketOptions::default().send_buffer(0);
    let refused = Listener::bind(Listen::at("127.0.0.1:0").sockets(bad)).unwrap_err();
    assert!(refused.to_string().contains("send_buffer"), "{refused}");
}

scenario! {
    /// Its clients looked at no certificate and asked for no name.
    async fn c17_tls_begins_and_ends_on_any_connection_with_deadlines_and_its_files_are_checked(world) {
        let moment = world.time(1.0);
        let acceptor = acceptor();
        let server = world.serve(Script(move |mut conn: Connection| {
            let acceptor = acceptor.clone();
            async move {
                conn.recv_exact(&mut [0; 1]).await?;
                conn.accept_tls(&acceptor).await?;
                let mut word = [0; 4];
                conn.recv_exact(&mut word).await?;
                conn.send(&word).await?;
                conn.leave_tls().await?;
                conn.send(b"plain").await
            }
        }));
        let (address, silent) = (server.local_addr(), world.serve(Hold).local_addr());
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let mut mute = Client::connect(silent).await.unwrap();
            let late = mute.connect_tls(&connector(), NAME).within(moment).await.unwrap_err();
            assert!(late.is_timeout(), "{late}");
            // Its server waits for an end, and a drain for its server.
            mute.reset().await;

            conn.send(b"T").await.unwrap();
            conn.connect_tls(&connector(), NAME).await.unwrap();
            assert_eq!(conn.tls().unwrap().server_name(), Some(NAME));
            echoed(&mut conn, b"word").await;
            conn.leave_tls().await.unwrap();
            assert!(conn.tls().is_none());
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"plain");
        });

        let (chain, _) = AUTHORITY.issue(NAME, |_| {});
        let (_, key_of_another) = AUTHORITY.issue(NAME, |_| {});
        let mismatch = Identity::from_pem(chain, key_of_another).unwrap_err();
        assert_eq!(mismatch.kind(), ErrorKind::Caller, "{mismatch}");

        let server = world.serve_with(Discard, |server| Wire::Tls.server(server));
        let (address, stranger) = (server.local_addr(), Authority::new("a stranger"));
        world.run(async move {
            for (tls, fault) in [
                (client_tls().server_name("another.test"), CertificateFault::WrongName),
                (ClientTls::new().trust(stranger.trust()).server_name(NAME), CertificateFault::UnknownIssuer),
            ] {
                let connector = Connector::new(tls).unwrap();
                let error = Client::new(address).tls(&connector).open().await.unwrap_err();
                assert_eq!(error.tls_fault(), Some(TlsFault::Certificate(fault)), "{error}");
            }
        });
    }
}

scenario! {
    /// It had no bound, was one for each thread alone, and handed out what had died in it.
    async fn c18_a_pool_makes_what_it_has_not_keeps_what_comes_back_and_is_bounded(world) {
        let server = world.serve(Echo);
        let (address, handle) = (server.local_addr(), server.clone());
        let moment = world.time(1.0);
        world.run(async move {
            let pool = Pool::new(Client::new(address), PoolOptions::default().size(3)).unwrap();
            assert_eq!(pool.stats().created, 0, "nothing is made ahead");
            let (mut one, mut two) = (pool.get().await.unwrap(), pool.get().await.unwrap());
            echoed(&mut one, b"one").await;
            echoed(&mut two, b"two").await;
            let last = two.local_addr();
            drop(one);
            drop(two);
            let stats = pool.stats();
            assert_eq!((stats.created, stats.idle, stats.in_use), (2, 2, 0));
            let mut again = pool.get().await.unwrap();
            assert_eq!(again.local_addr(), last, "the one that came back last");
            echoed(&mut again, b"again").await;
            assert_eq!((pool.stats().created, pool.stats().reused), (2, 1));

            // Three at most; who comes fourth waits, and gets what comes back.
            let others = (pool.get().await.unwrap(), pool.get().await.unwrap());
            let late = pool.get().within(moment).await.unwrap_err();
            assert!(late.is_timeout(), "{late}");
            assert_eq!(handle.connections(), 3);
            let waits = wharf::spawn({
                let pool = pool.clone();
                async move { echoed(&mut pool.get().await.unwrap(), b"waited").await }
            });
            again.discard();
            waits.await.unwrap();
            assert_eq!(pool.stats().discarded.by(pool::Discard::Asked), 1);
            drop(others);

            // What the server has ended meanwhile is not handed out.
            handle.disconnect(Whom::All);
            until("all have gone", || handle.connections() == 0).await;
            echoed(&mut pool.get().await.unwrap(), b"fresh").await;

            // Clear.
            pool.close();
            pool.emptied().await;
            assert!(pool.get().await.is_err());
            until("the server has none of them", || handle.connections() == 0).await;
        });
    }
}

/// What its HTTP server bounds: 4096 bytes of a header, and the time in which one has to come.
async fn serve_http(conn: Connection, patience: Duration) -> Result<()> {
    let mut requests = Framed::new(conn, Delimited::by("\r\n\r\n").frame_max(4096));
    while let Some(header) = requests.recv().within(patience).await? {
        let line = String::from_utf8_lossy(&header).lines().next().unwrap_or_default().to_owned();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
        requests.get_mut().send(answer.as_bytes()).await?;
    }
    Ok(())
}

scenario! {
    /// Who was idle was ended only if there were more than 128 connections.
    async fn c19_an_http_server_s_bounds_hold_for_each_connection_however_many_there_are(world) {
        let patience = world.time(3.0);
        let server = world.serve(Script(move |conn| serve_http(conn, patience)));
        let address = server.local_addr();
        let began = world.now();
        world.run(async move {
            // Kept alive, and several requests at once.
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\n\r\n").await.unwrap();
            let answer = |n| format!("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nGET /{n} HTTP/1.1");
            let answers: String = (1..=3).map(answer).collect();
            let mut got = vec![0; answers.len()];
            conn.recv_exact(&mut got).await.unwrap();
            assert_eq!(String::from_utf8(got).unwrap(), answers);

            let mut long = Client::connect(address).await.unwrap();
            long.send(&[b'x'; 5000]).await.unwrap();
            assert!(!long.recv(&mut [0; 1]).await.is_ok_and(|n| n > 0), "its header is too long");
            // Silent now, and one of one.
            assert!(!conn.recv(&mut [0; 1]).await.is_ok_and(|n| n > 0));
        });
        assert!(world.now() - began >= patience);
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Handler)), 1, "{stats:?}");
    }
}

/// The protocol of its calls: flags and a magic number, then the length, then so many bytes.
fn calls() -> LengthPrefixed {
    LengthPrefixed::u32().magic(&[0, 0, 0x77, 0x77])
}

/// Answers calls and HTTP on one port: what the first bytes are decides.
async fn serve_calls(mut conn: Connection) -> Result<()> {
    let mut first = [0; 4];
    conn.recv_exact(&mut first).await?;
    if first == *b"POST" {
        let mut request = Vec::from(first);
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0; 1];
            conn.recv_exact(&mut byte).await?;
            request.push(byte[0]);
        }
        return conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong").await;
    }
    // What was looked at is the first call's magic number: the others come with theirs.
    if first != [0, 0, 0x77, 0x77] {
        return Err(Error::other("neither a call nor HTTP"));
    }
    let mut len = [0; 4];
    conn.recv_exact(&mut len).await?;
    let mut call = vec![0; u32::from_be_bytes(len).min(64) as usize];
    conn.recv_exact(&mut call).await?;
    let mut conn = Framed::new(conn, calls());
    let mut next = Some(call);
    while let Some(call) = next {
        conn.send(if call == b"ping" { b"pong" } else { &call }).await?;
        next = conn.recv().await?.map(|call| call.to_vec());
    }
    Ok(())
}

scenario! {
    async fn c20_calls_are_frames_of_8_mib_at_most_with_a_magic_number_and_share_their_port_with_http(world) {
        const MAX: usize = 8 << 20;
        let server = world.serve(Script(serve_calls));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Framed::new(Client::connect(address).await.unwrap(), calls());
            for _ in 0..3 {
                conn.send(b"ping").await.unwrap();
                assert_eq!(&conn.recv().await.unwrap().unwrap()[..], b"pong");
            }
            let large = pattern(0..MAX);
            let (mut reader, mut writer) = conn.split();
            let sent = wharf::spawn(async move {
                writer.send(&large).await.unwrap();
                let error = writer.send(&vec![0; MAX + 1]).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
            });
            let back = reader.recv().await.unwrap().unwrap();
            assert_eq!(back.len(), MAX);
            assert_pattern(&back, 0);
            sent.await.unwrap();

            // One that says it will be a byte longer is not waited for, and a wrong number is no call.
            for bad in [&[0, 0, 0x77, 0x77, 0, 0x80, 0, 1][..], &[0, 0, 0x78, 0x77, 0, 0, 0, 4]] {
                let mut conn = Framed::new(Client::connect(address).await.unwrap(), calls());
                conn.send(b"ping").await.unwrap();
                conn.recv().await.unwrap();
                conn.get_mut().send(bad).await.unwrap();
                assert!(!matches!(conn.recv().await, Ok(Some(_))));
            }

            let mut http = Client::connect(address).await.unwrap();
            http.send(b"POST /ping HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
            assert!(recv_all(&mut http).await.unwrap().ends_with(b"\r\n\r\npong"));
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::HandlerFailed), 2, "{stats:?}");
    }
}

scenario! {
    async fn c21_tasks_run_beside_each_other_on_one_thread_and_a_panic_is_told_to_who_waits(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        let moment = world.time(1.0);
        world.run(async move {
            // What a connection's task starts stays on its thread: nothing that they share needs a lock.
            let turns = Rc::new(Cell::new(0));
            let tasks: Vec<_> = (0..8)
                .map(|task: u8| {
                    let turns = turns.clone();
                    wharf::spawn(async move {
                        let mut conn = let_in(address).await;
                        for _ in 0..4 {
                            echoed(&mut conn, &[task; 100]).await;
                            turns.set(turns.get() + 1);
                        }
                        task
                    })
                })
                .collect();
            for (task, number) in tasks.into_iter().zip(0..) {
                assert_eq!(task.await.unwrap(), number);
            }
            assert_eq!(turns.get(), 32);
            let late = wharf::within(moment, std::future::pending::<()>()).await.unwrap_err();
            assert!(late.is_timeout());
            let panics = wharf::spawn(async { panic!("on purpose") }).await.unwrap_err();
            assert_eq!(panics.kind(), ErrorKind::Caller, "{panics}");
        });
    }
}
