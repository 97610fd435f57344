//! Connections that come through proxies: what a handler sees of a PROXY header, and what becomes of connections without one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use wharf::event::{self, Flow, Handler};
use wharf::{
    Address, Bound, Client, CloseReason, Connection, Deadline, ErrorKind, Limits, Network, Proxied,
    ProxyProtocol, Result, Rule, Server,
};

use common::behaviours::{Discard, Echo};
use common::proxy_headers::{V1, V2_ENDS, bad_headers, v2};
use common::*;

const ENDS: &str = "192.0.2.7:40000 by Some(192.0.2.7:40000) to Some(198.51.100.1:443)";

/// The same ends, with a value of so many bytes behind them.
fn v2_with_value(bytes: usize) -> Vec<u8> {
    let length = u16::try_from(bytes).unwrap().to_be_bytes();
    let value = [&[2], length.as_slice(), &vec![b'v'; bytes]].concat();
    v2(0x21, 0x11, &[V2_ENDS, &value].concat())
}

/// Says in a line whom the connection is with, then sends back what it receives.
#[derive(Clone)]
struct Tell;

fn line(peer: &Address, proxied: Option<&Proxied>) -> String {
    let proxied = proxied.expect("it comes through a proxy");
    let proxy = proxied.proxy().to_string();
    assert!(
        proxy.starts_with("127.0.0.1:") || proxy.starts_with("10.0.0.2:"),
        "{proxy} is not the proxy itself"
    );
    let shown = |end: Option<&Address>| {
        end.map(ToString::to_string).map_or("None".into(), |end| format!("Some({end})"))
    };
    let value = proxied.tlv(2).map_or(0, <[u8]>::len);
    let is_own = peer == proxied.proxy();
    let peer = if is_own { String::from("itself") } else { peer.to_string() };
    let (source, destination) = (shown(proxied.source()), shown(proxied.destination()));
    format!("v{} {peer} by {source} to {destination} with {value}\n", proxied.version())
}

impl Behaviour for Tell {
    type Handler = Tell;

    async fn run(self, mut conn: Connection) -> Result<()> {
        assert_eq!(conn.remote().peer_addr(), conn.peer_addr());
        let line = line(&conn.peer_addr(), conn.proxied());
        conn.send(line.as_bytes()).await?;
        Echo.run(conn).await
    }

    fn handler(self) -> Tell {
        self
    }
}

impl Handler for Tell {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        let line = line(&conn.peer_addr(), conn.proxied());
        conn.send(line.as_bytes()).unwrap();
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        Echo.received(conn, bytes)
    }

    fn draining(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(b"draining").unwrap();
        Flow::Close
    }
}

fn networks(texts: &[&str]) -> ProxyProtocol {
    ProxyProtocol::from(texts.iter().map(|text| text.parse::<Network>().unwrap()))
}

/// Trusts the clients of the scenarios.
fn trusting() -> ProxyProtocol {
    networks(&["127.0.0.0/8", "10.0.0.2"])
}

fn trusted(server: Server) -> Server {
    server.proxy_protocol(trusting())
}

/// Sends the pieces, each on its way before the next, and ends; returns what came back.
async fn exchange(address: SocketAddr, pieces: &[&[u8]]) -> Vec<u8> {
    let conn = Client::connect(address).await.unwrap();
    let (mut read, mut write) = conn.split();
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let writer = wharf::spawn(async move {
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            write.send(piece).await.unwrap();
            write.flush().await.unwrap();
            wharf::sleep(Duration::from_millis(1)).await;
        }
        write.finish().await.unwrap();
        write
    });
    let mut all = Vec::new();
    while let Some(chunk) = read.recv_chunk().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    drop(writer.await);
    all
}

scenario! {
    /// And what follows it in the same segment is the handler's.
    fn a_header_is_read_wherever_it_is_split(world) {
        let server = world.serve_with(Tell, trusted);
        let address = server.local_addr();
        let real = !world.is_simulated();
        world.run(async move {
            for header in [V1.to_vec(), v2_with_value(4)] {
                let expected = match header[0] {
                    b'P' => format!("v1 {ENDS} with 0\nhello"),
                    _ => format!("v2 {ENDS} with 4\nhello"),
                };
                let sent = [header.as_slice(), b"hello"].concat();
                // One network is enough for all of them, and the simulated one splits by itself too.
                let step = if real { 1 } else { 7 };
                for split in (0..=sent.len()).step_by(step) {
                    let (first, second) = sent.split_at(split);
                    let told = exchange(address, &[first, second]).await;
                    assert_eq!(String::from_utf8(told).unwrap(), expected, "split at {split}");
                }
                let bytes: Vec<&[u8]> = sent.chunks(1).collect();
                assert_eq!(exchange(address, &bytes).await, expected.as_bytes(), "byte for byte");
            }
        });
    }
}

scenario! {
    fn all_that_follows_a_header_reaches_the_handler_in_order(world) {
        const TOTAL: usize = 300_000;
        let server = world.serve_with(Tell, |server| {
            trusted(server).limits(Limits::default().receive_buffer(4096).send_marks(4096, 8192))
        });
        let address = server.local_addr();
        world.run(async move {
            let header = v2_with_value(2048 - 15);
            let sent = [header.as_slice(), &pattern(0..TOTAL)].concat();
            let told = exchange(address, &[&sent]).await;
            let line = format!("v2 {ENDS} with 2033\n");
            let (first, echoed) = told.split_at(line.len());
            assert_eq!(std::str::from_utf8(first).unwrap(), line);
            assert_eq!(echoed.len(), TOTAL);
            assert_pattern(echoed, 0);
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Peer), 1, "{stats:?}");
    }
}

scenario! {
    fn a_proxy_that_speaks_for_itself_is_the_peer(world) {
        let server = world.serve_with(Tell, trusted);
        let address = server.local_addr();
        world.run(async move {
            for (header, version) in [(b"PROXY UNKNOWN\r\n".to_vec(), 1), (v2(0x20, 0, b""), 2), (v2(0x21, 0, b""), 2)] {
                let told = exchange(address, &[&header]).await;
                let expected = format!("v{version} itself by None to None with 0\n");
                assert_eq!(String::from_utf8(told).unwrap(), expected);
            }
        });
    }
}

scenario! {
    fn a_connection_without_a_good_header_is_reset(world) {
        let server = world.serve_with(Tell, trusted);
        let address = server.local_addr();
        let cases = bad_headers();
        let faults = cases.clone().map(|(_, fault)| fault);
        world.run(async move {
            for (bytes, fault) in cases {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(&bytes).await.unwrap();
                let error = conn.recv(&mut [0; 1]).await.unwrap_err();
                assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{fault:?}: {error}");
            }
        });
        let stats = world.stop(&server);
        for fault in faults {
            let count = faults.iter().filter(|each| **each == fault).count() as u64;
            assert_eq!(stats.closed(CloseReason::Proxy(fault)), count, "{fault:?}: {stats:?}");
        }
    }
}

scenario! {
    /// Whatever it sends, and before it sends anything.
    fn a_peer_that_is_not_trusted_is_refused(world) {
        let server = world.serve_with(Tell, |server| {
            server.proxy_protocol(networks(&["192.0.2.0/24", "::/0"]))
        });
        let address = server.local_addr();
        world.run(async move {
            for first in [b"".as_slice(), V1] {
                // The client may not have learned yet that it is connected.
                let error = match Client::connect(address).await {
                    Ok(mut conn) => {
                        drop(conn.send(first).await);
                        conn.recv(&mut [0; 1]).await.unwrap_err()
                    }
                    Err(error) => error,
                };
                assert_eq!(error.kind(), ErrorKind::Peer, "{error}");
            }
        });
        let stats = world.stop(&server);
        assert_eq!((stats.refused_by(Rule::Untrusted), stats.accepted), (2, 0), "{stats:?}");
    }
}

scenario! {
    /// Bytes do not extend it.
    fn a_header_that_takes_too_long_ends_the_connection(world) {
        let (within, pause) = (world.time(4.0), world.time(0.3));
        let server = world.serve_with(Tell, |server| server.proxy_protocol(trusting().within(within)));
        let address = server.local_addr();
        let began = world.now();
        world.run(async move {
            let silent = Client::connect(address).await.unwrap();
            let dripping = Client::connect(address).await.unwrap();
            let (mut read, mut write) = dripping.split();
            let drip = wharf::spawn(async move {
                for byte in b"PROXY UNKNOWN and so on, and on, and on, for longer than anybody waits".chunks(1) {
                    if write.send(byte).await.is_err() {
                        return;
                    }
                    wharf::sleep(pause).await;
                }
                panic!("nobody has ended this");
            });
            let error = read.recv(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
            assert_eq!(silent.closed().await, CloseReason::PeerReset);
            drip.await.unwrap();
        });
        assert!(world.now() - began >= within);
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::ProxyHeader)), 2, "{stats:?}");
    }
}

scenario! {
    /// And not the connection behind it.
    fn the_deadline_is_the_headers_alone(world) {
        let (within, long) = (world.time(4.0), world.time(12.0));
        let server = world.serve_with(Tell, |server| server.proxy_protocol(trusting().within(within)));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(V1).await.unwrap();
            wharf::sleep(long).await;
            conn.send(b"hello").await.unwrap();
            conn.finish().await.unwrap();
            let told = recv_all(&mut conn).await.unwrap();
            assert_eq!(String::from_utf8(told).unwrap(), format!("v1 {ENDS} with 0\nhello"));
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

scenario! {
    fn a_peer_that_ends_before_its_header_has_just_ended(world) {
        let server = world.serve_with(Tell, trusted);
        let address = server.local_addr();
        world.run(async move {
            assert_eq!(exchange(address, &[]).await, b"");
            assert_eq!(exchange(address, &[&V1[..20]]).await, b"");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 2);
    }
}

scenario! {
    fn a_header_larger_than_the_receive_buffer_passes_its_limit(world) {
        let server = world.serve_with(Discard, |server| {
            trusted(server).limits(Limits::default().receive_buffer(30))
        });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            for byte in V1[..40].chunks(1) {
                drop(conn.send(byte).await);
                wharf::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0);
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Limit(Bound::ReceiveBuffer)), 1, "{stats:?}");
    }
}

scenario! {
    fn a_header_that_comes_while_the_server_drains_is_served_and_told(world) {
        let server = world.serve_with(Tell, trusted);
        let (address, draining, long) = (server.local_addr(), server.clone(), world.time(300.0));
        let is_event = world.style() == Style::Event;
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(&V1[..20]).await.unwrap();
            until("it is accepted", || draining.connections() == 1).await;
            draining.drain(long);
            until("it listens no more", || draining.is_stopped() || draining.connections() == 1).await;
            wharf::sleep(Duration::from_millis(20)).await;
            conn.send(&V1[20..]).await.unwrap();
            let line = format!("v1 {ENDS} with 0\n");
            let mut told = vec![0; line.len()];
            conn.recv_exact(&mut told).await.unwrap();
            assert_eq!(String::from_utf8(told).unwrap(), line);
            if is_event {
                assert_eq!(recv_all(&mut conn).await.unwrap(), b"draining");
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::HandlerFailed), 0);
    }
}

#[test]
fn a_deadline_of_zero_is_refused() {
    let server = Server::bind("127.0.0.1:0").workers(1).proxy_protocol(trusting().within(Duration::ZERO));
    let error = server.start(|_: Connection| async { Ok(()) }).unwrap_err();
    assert!(error.to_string().starts_with("start: option `proxy_protocol` "), "{error}");
    assert_eq!(error.kind(), ErrorKind::Caller);
}
