//! TLS handshakes that do not come to an end, and peers that break the protocol: what becomes of them, and of those beside them.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use wharf::tls::Acceptor;
use wharf::{
    Client, CloseReason, Connection, Deadline, Limits, Listen, Network, ProxyProtocol, Server, SocketOptions,
    TlsFault,
};

use common::behaviours::*;
use common::tls::*;
use common::*;

const TOO_LATE: CloseReason = CloseReason::Timeout(Deadline::Handshake);
const BUSY: CloseReason = CloseReason::Tls(TlsFault::Busy);

fn secure(server: Server) -> Server {
    server.tls(&acceptor())
}

/// A fatal alert that is not protected.
fn alert(kind: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, kind]
}

/// A handshake record that carries `message`.
fn record(version: [u8; 2], kind: u8, message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    let whole = [&[kind], &len[1..], message].concat();
    let len = u16::try_from(whole.len()).unwrap().to_be_bytes();
    [&[22], version.as_slice(), &len, &whole].concat()
}

/// A ClientHello of an old version, without extensions.
fn old_hello(minor: u8) -> Vec<u8> {
    let suites = [0xC0, 0x13, 0xC0, 0x14, 0, 0x2F, 0, 0x35];
    let body = [&[3, minor], [7; 32].as_slice(), &[0], &[0, 8], &suites, &[1, 0]].concat();
    record([3, minor.min(1)], 1, &body)
}

/// The ClientHello of a good client.
fn hello(conn: Connection) -> (ByHand, Vec<u8>) {
    let mut hand = ByHand::over(conn, AUTHORITY.config(&VERSIONS));
    let hello = hand.outgoing();
    (hand, hello)
}

/// Whether the server serves TLS.
async fn is_served(address: SocketAddr) -> bool {
    let Ok(mut conn) = client(address).open().await else { return false };
    conn.send(b"x").await.is_ok() && conn.recv_exact(&mut [0; 1]).await.is_ok()
}

scenario! {
    fn a_silent_peer_has_the_time_of_a_handshake_and_no_more(world) {
        let failures = Failures::default();
        let within = world.time(4.0);
        let acceptor = Acceptor::new(server_tls().handshake_within(within)).unwrap();
        let server = world.serve_with(Echo, |server| failures.watch(server.tls(&acceptor)));
        let address = server.local_addr();
        let began = world.now();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let error = conn.recv(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
        });
        assert!(world.now() - began >= within);
        let stats = world.stop(&server);
        assert_eq!((stats.closed(TOO_LATE), stats.handshakes_failed), (1, 1));
        assert_eq!(failures.all(), [(TOO_LATE, String::new())]);
    }
}

scenario! {
    /// Bytes do not extend the time, and within it any way to divide them will do.
    fn a_hello_that_comes_byte_by_byte_has_the_same_time(world) {
        // Each byte of a large hello takes the time of a way there, on bad days of the simulation several.
        let seconds = if world.is_simulated() { 60.0 } else { 12.0 };
        let (within, pause) = (world.time(seconds), world.time(0.2));
        let server = world.serve_with(Tell, |server| {
            server.tls(&Acceptor::new(server_tls().handshake_within(within)).unwrap())
        });
        let address = server.local_addr();
        let real = !world.is_simulated();
        world.run(async move {
            let (mut hand, hello) = hello(Client::connect(address).await.unwrap());
            // With a key that is safe from quantum computers it is long: each byte gets its share of a third of the time.
            let share = within / 3 / hello.len() as u32;
            for byte in hello.chunks(1) {
                hand.conn.send(byte).await.unwrap();
                if real {
                    hand.conn.flush().await.unwrap();
                } else {
                    wharf::sleep(share).await;
                }
            }
            hand.pull().await.unwrap();
            while hand.tls.is_handshaking() {
                hand.pull().await.unwrap();
            }
            for byte in hand.outgoing().chunks(1) {
                hand.conn.send(byte).await.unwrap();
            }
            hand.recv(5).await;
            hand.conn.reset().await;

            let conn = Client::connect(address).await.unwrap();
            let (mut hand, hello) = self::hello(conn);
            for byte in hello.chunks(1) {
                let ended = hand.conn.hangup().within(pause).await;
                if ended.is_ok() || hand.conn.send(byte).await.is_err() {
                    assert_eq!(hand.conn.closed().await, CloseReason::PeerReset);
                    return;
                }
            }
            panic!("nobody has ended this");
        });
        let stats = world.stop(&server);
        assert_eq!((stats.closed(TOO_LATE), stats.handshakes, stats.handshakes_failed), (1, 1, 1));
    }
}

scenario! {
    fn what_is_no_tls_or_none_of_today_is_refused_by_the_right_alert(world) {
        let ssl2 = [&[0x80, 0x2E, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10], [1; 37].as_slice()].concat();
        let oversized = [&[22, 3, 1, 0xFF, 0xFF], [0; 100].as_slice()].concat();
        let version = TlsFault::Version;
        // What is sent, the alerts that may come back, and what the server makes of it.
        let cases: Vec<(&str, Vec<u8>, &[u8], TlsFault)> = vec![
            ("http", b"GET / HTTP/1.1\r\nHost: server.test\r\n\r\n".to_vec(), &[10], TlsFault::NotTls),
            ("one byte", b"G".to_vec(), &[10], TlsFault::NotTls),
            ("garbage", pattern(3..600), &[10], TlsFault::NotTls),
            ("ssh", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), &[10], TlsFault::NotTls),
            ("ssl 2", ssl2, &[10], TlsFault::NotTls),
            ("ssl 3", old_hello(0), &[70], version),
            ("tls 1.0", old_hello(1), &[70], version),
            ("tls 1.1", old_hello(2), &[70], version),
            ("oversized", oversized, &[22, 50], TlsFault::RecordTooLarge),
            ("application data", [&[23, 3, 3, 0, 4], b"data".as_slice()].concat(), &[10], TlsFault::Misbehaved),
            ("a malformed hello", record([3, 1], 1, &[3, 3, 1, 2, 3]), &[50], TlsFault::Misbehaved),
            ("a server's hello", record([3, 3], 2, &[0; 40]), &[10, 50], TlsFault::Misbehaved),
        ];
        let failures = Failures::default();
        let server = world.serve_with(Echo, |server| failures.watch(secure(server)));
        let address = server.local_addr();
        let sent: Vec<_> = cases.iter().map(|case| (case.0, case.1.clone(), case.2.to_vec())).collect();
        let seen = failures.clone();
        world.run(async move {
            for (turn, (name, bytes, alerts)) in sent.into_iter().enumerate() {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(&bytes).await.unwrap();
                let answer = recv_all(&mut conn).await.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert!(alerts.iter().any(|kind| answer == alert(*kind)), "{name}: {answer:?}");
                conn.close().await;
                until("the server has told it", || seen.all().len() > turn).await;
            }
        });
        let stats = world.stop(&server);
        assert_eq!((stats.handshakes_failed, stats.handshakes), (cases.len() as u64, 0));
        let all = failures.all();
        for ((name, _, _, fault), (reason, detail)) in cases.iter().zip(&all) {
            assert_eq!(*reason, CloseReason::Tls(*fault), "{name}: {detail}");
        }
        assert_eq!(all.len(), cases.len());
    }
}

scenario! {
    fn a_handshake_that_its_peer_leaves_has_failed(world) {
        let failures = Failures::default();
        let server = world.serve_with(Echo, |server| failures.watch(secure(server)));
        let address = server.local_addr();
        let seen = failures.clone();
        world.run(async move {
            let ended = CloseReason::Tls(TlsFault::HandshakeEnded);
            for (turn, resets, sent) in [(1, false, 0), (2, false, 100), (3, true, 100), (4, false, 1000)] {
                let (mut hand, hello) = hello(Client::connect(address).await.unwrap());
                hand.conn.send(&hello[..sent.min(hello.len())]).await.unwrap();
                if sent > hello.len() {
                    // The server has answered.
                    assert!(hand.conn.recv_chunk().await.unwrap().is_some());
                }
                if resets {
                    hand.conn.flush().await.unwrap();
                    hand.conn.reset().await;
                } else {
                    hand.conn.finish().await.unwrap();
                    recv_all(&mut hand.conn).await.unwrap();
                }
                until("the server knows", || seen.all().len() == turn).await;
                let expected = if resets { CloseReason::PeerReset } else { ended };
                assert_eq!(seen.reasons()[turn - 1], expected);
            }
        });
        assert_eq!(world.stop(&server).handshakes_failed, 4);
    }
}

scenario! {
    fn a_peer_that_breaks_the_protocol_is_told_so_behind_what_it_sent_before(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let failures = Failures::default();
        let server = world.serve_with(behaviour, |server| failures.watch(secure(server)));
        let address = server.local_addr();
        world.run(async move {
            for version in VERSIONS {
                for (spoil, alert) in [(0, 20_u8), (1, 22), (2, 10)] {
                    let mut hand = ByHand::connect_by(address, version).await;
                    hand.send(b"good").await;
                    assert_eq!(hand.recv(4).await, b"good");
                    std::io::Write::write_all(&mut hand.tls.writer(), b"bad").unwrap();
                    let mut bytes = hand.outgoing();
                    match spoil {
                        0 => *bytes.last_mut().unwrap() ^= 1,
                        1 => bytes[3..5].copy_from_slice(&[0x60, 0]),
                        _ => bytes[0] = 99,
                    }
                    hand.conn.send(&bytes).await.unwrap();
                    while hand.failure.is_none() && hand.pull().await.unwrap() {}
                    let expected = rustls::Error::AlertReceived(rustls::AlertDescription::from(alert));
                    assert_eq!(hand.failure, Some(expected), "{version:?} {spoil}");
                }
            }
        });
        assert!(failures.all().is_empty(), "the handshakes went well");
        let stats = world.stop(&server);
        for fault in [TlsFault::BadRecord, TlsFault::RecordTooLarge, TlsFault::Misbehaved] {
            let reason = CloseReason::Tls(fault);
            assert_eq!((stats.closed(reason), notes.closed(reason)), (2, 2), "{stats:?}");
        }
    }
}

scenario! {
    /// Whoever has stalled for a second gives way, one by one and the oldest first.
    fn stalled_handshakes_give_way_to_new_ones_where_there_is_no_more_room(world) {
        let failures = Failures::default();
        let acceptor = Acceptor::new(server_tls().handshakes_max(3)).unwrap();
        let server = world.serve_with(Echo, |server| failures.watch(server.tls(&acceptor)).workers(1));
        let address = server.local_addr();
        let before = world.now();
        let seen = failures.clone();
        world.run(async move {
            let mut stalled = Vec::new();
            for _ in 0..3 {
                stalled.push(Client::connect(address).await.unwrap());
                wharf::sleep(Duration::from_millis(10)).await;
            }
            assert!(is_served(address).await);
            until("the first has given way", || stalled[0].close_reason() == Some(CloseReason::PeerReset)).await;
            until("that is told", || seen.all() == [(BUSY, String::new())]).await;
            assert!(stalled[2].close_reason().is_none(), "one is enough");
            // There is room again.
            assert!(is_served(address).await);
        });
        assert!(world.now() - before >= Duration::from_secs(1), "it had its time");
        let stats = world.stop(&server);
        assert_eq!((stats.handshakes, stats.closed(BUSY)), (2, 1), "{stats:?}");
        assert_eq!(stats.handshakes_failed, 3);
    }
}

scenario! {
    fn a_good_client_is_not_delayed_by_a_thousand_that_stall(world) {
        if world.is_simulated() {
            return;
        }
        raise_descriptor_limit();
        // A busy machine takes its time to have a thousand come.
        let patient = Acceptor::new(server_tls().handshake_within(Duration::from_secs(120))).unwrap();
        let server = world.serve_with(Echo, |server| {
            server.tls(&patient).sockets(SocketOptions::default().backlog(2_000)).limits(Limits::default().connections(3_000))
        });
        let address = server.local_addr();
        let counting = server.clone();
        world.run(async move {
            let mut stalled = Vec::new();
            for turn in 0..1_000 {
                let (mut hand, hello) = hello(Client::connect(address).await.unwrap());
                let sent = [0, 1, 5, 100][turn % 4];
                hand.conn.send(&hello[..sent]).await.unwrap();
                stalled.push(hand);
            }
            until("they are there", || counting.connections() == 1_000).await;
            for _ in 0..5 {
                let served = wharf::within(Duration::from_secs(10), is_served(address)).await;
                assert!(served.unwrap(), "it takes too long");
            }
            assert_eq!(stalled.iter().filter(|hand| hand.conn.close_reason().is_some()).count(), 0);
        });
    }
}

scenario! {
    fn a_drain_gives_handshakes_their_time_and_no_more(world) {
        let failures = Failures::default();
        let acceptor = Acceptor::new(server_tls().handshake_within(world.time(300.0))).unwrap();
        let server = world.serve_with(Tell, |server| failures.watch(server.tls(&acceptor)));
        let address = server.local_addr();
        let (draining, within) = (server.clone(), world.time(20.0));
        world.run(async move {
            let silent = Client::connect(address).await.unwrap();
            let (mut hand, hello) = hello(Client::connect(address).await.unwrap());
            hand.conn.send(&hello).await.unwrap();
            while hand.tls.is_handshaking() {
                assert!(hand.pull().await.unwrap());
            }
            draining.drain(within);
            until("it drains", || draining.phase() == wharf::Phase::Draining).await;
            // It is over, and its handler begins: it is not a newcomer.
            hand.push().await.unwrap();
            hand.send(b"x").await;
            assert!(String::from_utf8(hand.recv(5).await).unwrap().starts_with("Tls13"));
            hand.tls.send_close_notify();
            hand.push().await.unwrap();
            hand.conn.finish().await.unwrap();
            hand.recv_all().await;
            assert_eq!(silent.closed().await, CloseReason::PeerReset);
        });
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Shutdown), stats.closed(CloseReason::Peer)), (1, 1), "{stats:?}");
        assert_eq!(failures.reasons(), [CloseReason::Shutdown]);
    }
}

scenario! {
    /// In one segment with it, or behind it.
    fn a_handshake_follows_a_proxy_header(world) {
        let proxies = || {
            let networks = ["127.0.0.0/8", "10.0.0.2"].map(|text| text.parse::<Network>().unwrap());
            ProxyProtocol::from(networks)
        };
        let server = world.serve_with(Tell, |server| secure(server).proxy_protocol(proxies()));
        let failures = Failures::default();
        let strict = world.serve_with(Tell, |server| failures.watch(secure(server)).proxy_protocol(proxies()));
        let addresses = [server.local_addr(), strict.local_addr()];
        world.run(async move {
            let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
            for split in [0, 10, header.len(), header.len() + 1, header.len() + 60, usize::MAX] {
                let (mut hand, hello) = hello(Client::connect(addresses[0]).await.unwrap());
                let all = [header.as_slice(), &hello].concat();
                let (first, second) = all.split_at(split.min(all.len()));
                hand.conn.send(first).await.unwrap();
                hand.conn.flush().await.unwrap();
                wharf::sleep(Duration::from_millis(5)).await;
                hand.conn.send(second).await.unwrap();
                hand.shake().await;
                hand.send(b"!").await;
                let expected = b"Tls13 - server.test new Unasked 0\n!";
                assert_eq!(hand.recv(expected.len()).await, expected, "split at {split}");
            }
            // The header is followed by TLS or by nothing.
            let mut conn = Client::connect(addresses[1]).await.unwrap();
            conn.send(&[header, b"plain text".as_slice()].concat()).await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), alert(10));
        });
        assert_eq!(world.stop(&server).handshakes, 6);
        world.stop(&strict);
        assert_eq!(failures.reasons(), [CloseReason::Tls(TlsFault::NotTls)]);
    }
}

scenario! {
    fn each_listener_has_its_own_way(world) {
        let any = if world.is_simulated() { "10.0.0.1:0" } else { "127.0.0.1:0" };
        let server = world.serve_with(Tell, |server| secure(server).listen(Listen::at(any).plain()));
        let plain = world.serve_with(Tell, |server| server.listen(Listen::at(any).tls(&acceptor())));
        let of = |server: &wharf::ServerHandle| {
            server.listeners().iter().map(|each| (each.address.to_string(), each.is_tls)).collect::<Vec<_>>()
        };
        let addresses = [of(&server), of(&plain)].concat();
        assert_eq!(addresses.iter().map(|each| each.1).collect::<Vec<_>>(), [true, false, false, true]);
        world.run(async move {
            for (address, is_tls) in addresses {
                let (mut conn, expected) = if is_tls {
                    (client(&address).open().await.unwrap(), "Tls13 - server.test new Unasked 0")
                } else {
                    (Client::connect(&address).await.unwrap(), "plain")
                };
                assert_eq!(told(&mut conn).await.unwrap(), expected);
            }
        });
        assert_eq!((world.stop(&server).handshakes, world.stop(&plain).handshakes), (1, 1));
    }
}

scenario! {
    /// With the server's own TLS, for it came through no listener.
    fn an_adopted_connection_begins_with_tls_as_others_do(world) {
        if world.is_simulated() {
            return;
        }
        let server = world.serve_with(Tell, secure);
        let adopting = server.clone();
        world.run(async move {
            let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = elsewhere.local_addr().unwrap();
            let accepting = std::thread::spawn(move || adopting.adopt(elsewhere.accept().unwrap().0).unwrap());
            let mut conn = client(address).open().await.unwrap();
            accepting.join().unwrap();
            assert_eq!(told(&mut conn).await.unwrap(), "Tls13 - server.test new Unasked 0");
        });
        assert_eq!(world.stop(&server).handshakes, 1);
    }
}

scenario! {
    fn a_client_that_finds_no_tls_says_so(world) {
        let server = world.serve(Stream { total: 1_000, piece: 100 });
        let silent = world.serve(Discard);
        let (address, of_silent) = (server.local_addr(), silent.local_addr());
        let moment = world.time(2.0);
        world.run(async move {
            let error = client(address).open().await.unwrap_err();
            assert_eq!(error.tls_fault(), Some(TlsFault::NotTls), "{error}");
            let error = client(of_silent).open().within(moment).await.unwrap_err();
            assert!(error.is_timeout() && error.tls_fault().is_none(), "{error}");
        });
    }
}

scenario! {
    /// What is left of its connection is an alert, and a wait for the peer's end.
    fn a_handshake_that_has_failed_keeps_nobody_out(world) {
        let acceptor = Acceptor::new(server_tls().handshakes_max(1)).unwrap();
        let server = world.serve_with(Echo, |server| server.tls(&acceptor).workers(1));
        let address = server.local_addr();
        world.run(async move {
            let mut foreign = Client::connect(address).await.unwrap();
            foreign.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            assert_eq!(recv_all(&mut foreign).await.unwrap()[0], 21, "an alert, and the end");
            let conn = client(address).connect_within(Duration::from_millis(500)).open().await;
            assert!(conn.is_ok(), "{conn:?}");
        });
        world.stop(&server);
    }
}
