//! The memory budget of a server: used stays near it, nobody stands still for it, and nothing is left behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use wharf::{Client, CloseReason, Connection, Limits, Server, ServerHandle, SocketOptions};

use common::behaviours::*;
use common::*;

const BUDGET: usize = 1 << 20;
/// Peers that do not read.
const SLOW: usize = 24;
/// A read, the message that is made of it, and the rounding up of both to buffers.
const EACH: usize = 2 * 65 * 1024 + 2 * 32 * 1024;

/// Bounds under which a single connection may hold more than the budget.
fn generous() -> Limits {
    Limits::default().receive_buffer(1 << 20).send_marks(1 << 19, 1 << 20).send_max(2 << 20)
}

fn frugal(server: Server) -> Server {
    let sockets = SocketOptions::default().send_buffer(16 * 1024).receive_buffer(16 * 1024);
    server.limits(generous().memory(BUDGET)).sockets(sockets)
}

/// Opens the connections of those who will not read. Once memory is short nobody comes in, to shake hands say.
async fn open_slow(wire: Wire, address: SocketAddr) -> Vec<Connection> {
    let sockets = SocketOptions::default().send_buffer(16 * 1024).receive_buffer(16 * 1024);
    let mut conns = Vec::new();
    for _ in 0..SLOW {
        conns.push(wire.client(address).sockets(sockets.clone()).open().await.unwrap());
    }
    conns
}

/// Sends a lot, which the server reads while it may and cannot send back.
async fn does_not_read(mut conn: Connection, within: Duration) -> Connection {
    let _ = conn.send(&vec![b'x'; 1 << 20]).within(within).await;
    conn
}

/// Watches the memory of a server until it is told to stop, and tells the most that it saw.
async fn most_used(server: ServerHandle, stop: Rc<Cell<bool>>) -> usize {
    let mut most = 0;
    while !stop.get() {
        most = most.max(server.memory_used());
        wharf::sleep(Duration::from_millis(1)).await;
    }
    most
}

fn do_not_read(world: &mut World, wire: Wire) {
    let server = world.serve_with(Echo, |server| frugal(wire.server(server)));
    let address = server.local_addr();
    let watched = server.clone();
    let wait = world.time(10.0);
    world.run(async move {
        let stop = Rc::new(Cell::new(false));
        let watch = wharf::spawn(most_used(watched.clone(), stop.clone()));
        // It is there before memory is short: nobody comes in then.
        let mut good = wire.client(address).open().await.unwrap();
        good.send(b"x").await.unwrap();
        good.recv_exact(&mut [0; 1]).await.unwrap();
        let mut slow = Vec::new();
        for conn in open_slow(wire, address).await {
            slow.push(wharf::spawn(does_not_read(conn, wait)));
        }
        let mut conns = Vec::new();
        for sender in slow {
            conns.push(sender.await.unwrap());
        }
        for round in 0..20 {
            let message = pattern(round..round + 1000);
            good.send(&message).await.unwrap();
            let mut echo = vec![0; 1000];
            good.recv_exact(&mut echo).await.unwrap();
            assert!(echo == message);
        }
        stop.set(true);
        let most = watch.await.unwrap();
        assert!(most <= BUDGET + (SLOW + 1) * EACH, "{most} bytes");
        for mut conn in conns {
            drop(conn.reset());
        }
        until("memory is there again", || !watched.memory_is_short() && watched.connections() <= 1).await;
        assert!(watched.memory_used() <= BUDGET, "{} bytes", watched.memory_used());
    });
    let stats = world.stop(&server);
    assert_eq!(stats.closed(CloseReason::Peer), 1, "{stats:?}");
    assert_eq!(server.memory_used(), 0, "a server that has ended holds nothing");
}

scenario! {
    fn many_who_do_not_read_cost_about_the_budget_and_a_good_one_gets_through(world) {
        do_not_read(world, Wire::Plain);
    }
}

fn transfer(world: &mut World, wire: Wire) {
    const TOTAL: usize = 300_000;
    let server = world.serve_with(Echo, |server| frugal(wire.server(server)));
    let address = server.local_addr();
    world.run(async move {
        let mut transfers = Vec::new();
        for _ in 0..16 {
            transfers.push(wharf::spawn(async move {
                let (mut read, mut write) = wire.client(address).open().await.unwrap().split();
                let writer = wharf::spawn(async move {
                    for from in (0..TOTAL).step_by(30_000) {
                        write.send(&pattern(from..from + 30_000)).await.unwrap();
                    }
                    write.finish().await.unwrap();
                });
                let mut received = 0;
                while let Some(chunk) = read.recv_chunk().await.unwrap() {
                    assert_pattern(&chunk, received);
                    received += chunk.len();
                }
                assert_eq!(received, TOTAL);
                writer.await.unwrap();
            }));
        }
        for transfer in transfers {
            transfer.await.unwrap();
        }
    });
    assert_eq!(world.stop(&server).closed(CloseReason::Peer), 16);
    assert_eq!(server.memory_used(), 0);
}

scenario! {
    fn transfers_finish_though_memory_is_short(world) {
        transfer(world, Wire::Plain);
    }
}

fn send_large_messages(world: &mut World, wire: Wire) {
    // Together they are several times the budget, and none is any use before its last byte.
    const LEN: usize = 400_000;
    let server = world.serve_with(Frames, |server| frugal(wire.server(server)));
    let address = server.local_addr();
    world.run(async move {
        let mut requests = Vec::new();
        for _ in 0..12 {
            requests.push(wharf::spawn(async move {
                let mut conn = wire.client(address).open().await.unwrap();
                let message = [&(LEN as u32).to_be_bytes()[..], &pattern(0..LEN)].concat();
                let (first, second) = message.split_at(LEN / 2);
                conn.send(first).await.unwrap();
                conn.flush().await.unwrap();
                conn.send(second).await.unwrap();
                let mut echo = vec![0; message.len()];
                conn.recv_exact(&mut echo).await.unwrap();
                assert!(echo == message);
            }));
        }
        for request in requests {
            request.await.unwrap();
        }
    });
    assert_eq!(world.stop(&server).closed(CloseReason::Peer), 12);
    assert_eq!(server.memory_used(), 0);
}

scenario! {
    fn large_messages_come_whole_though_memory_is_short(world) {
        send_large_messages(world, Wire::Plain);
    }
}

scenario! {
    fn messages_of_remotes_count_and_are_given_back(world) {
        let (behaviour, notes) = Watched::new(Discard);
        let server = world.serve_with(behaviour, frugal);
        let address = server.local_addr();
        let watched = server.clone();
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let mut conn = Client::new(address).sockets(sockets).open().await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            for _ in 0..20 {
                remote.send(vec![b'x'; 100_000]).unwrap();
            }
            until("they count", || watched.memory_is_short()).await;
            let mut received = 0;
            while received < 2_000_000 {
                received += conn.recv_chunk().await.unwrap().unwrap().len();
            }
            until("they are gone", || watched.memory_used() < BUDGET / 2).await;
            assert!(!watched.memory_is_short());
        });
        assert_eq!(world.stop(&server).unsent, 0);
    }
}

scenario! {
    fn without_a_budget_memory_is_told_and_never_short(world) {
        let server = world.serve_with(Echo, |server| frugal(server).limits(generous()));
        let address = server.local_addr();
        let watched = server.clone();
        let wait = world.time(10.0);
        world.run(async move {
            let mut slow = Vec::new();
            for conn in open_slow(Wire::Plain, address).await {
                slow.push(wharf::spawn(does_not_read(conn, wait)));
            }
            // What the budget of the first scenario prevents.
            until("all of them hold a lot", || watched.memory_used() > BUDGET + (SLOW + 1) * EACH).await;
            assert_eq!(watched.memory_max(), None);
            assert!(!watched.memory_is_short());
            for conn in slow {
                drop(conn.await.unwrap().reset());
            }
        });
    }
}

#[cfg(feature = "tls")]
mod over_tls {
    use std::io::Write as _;

    use super::*;
    use crate::common::tls::ByHand;

    scenario! {
        fn many_who_do_not_read_cost_about_the_budget(world) {
            do_not_read(world, Wire::Tls);
        }
    }

    scenario! {
        fn transfers_finish_though_memory_is_short(world) {
            transfer(world, Wire::Tls);
        }
    }

    scenario! {
        fn large_messages_come_whole_though_memory_is_short(world) {
            send_large_messages(world, Wire::Tls);
        }
    }

    scenario! {
        fn a_record_begun_counts_and_an_idle_connection_holds_nothing(world) {
            const RECORD: usize = 16_000;
            /// Each of them begins a record, which takes a buffer of 32 KiB.
            const PEERS: usize = BUDGET / (2 * RECORD) + 8;
            let server = world.serve_with(Echo, |server| frugal(Wire::Tls.server(server)));
            let address = server.local_addr();
            let watched = server.clone();
            world.run(async move {
                let mut peers = Vec::new();
                for _ in 0..PEERS {
                    peers.push(ByHand::connect(address).await);
                }
                until("what handshakes took is free", || !watched.memory_is_short()).await;
                let mut rests = Vec::new();
                for peer in &mut peers {
                    peer.tls.writer().write_all(&pattern(0..RECORD)).unwrap();
                    let record = peer.outgoing();
                    let (begun, rest) = record.split_at(RECORD / 2);
                    peer.conn.send(begun).await.unwrap();
                    rests.push(rest.to_vec());
                }
                until("what was begun counts", || watched.memory_used() >= PEERS * 2 * RECORD).await;
                until("memory is short", || watched.memory_is_short()).await;
                for (peer, rest) in peers.iter_mut().zip(rests) {
                    peer.conn.send(&rest).await.unwrap();
                    assert_pattern(&peer.recv(RECORD).await, 0);
                }
                until("memory is there again", || !watched.memory_is_short()).await;
                assert!(watched.memory_used() < BUDGET, "{} bytes", watched.memory_used());
                assert_eq!(watched.connections(), PEERS);
            });
            world.stop(&server);
            assert_eq!(server.memory_used(), 0);
        }
    }
}
