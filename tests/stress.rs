//! Many threads at once on real sockets: what only real concurrency can break.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use wharf::{Client, CloseReason, ErrorKind, Limits, Result, Server, ServerHandle};

use common::behaviours::*;
use common::*;

fn start(wire: Wire, style: Style, behaviour: impl Behaviour, limits: Limits) -> ServerHandle {
    let server = wire.server(Server::bind("127.0.0.1:0").workers(3).limits(limits));
    let server = match style {
        Style::Async => server.start(move |conn| behaviour.clone().run(conn)),
        Style::Event => server.start_events(move || behaviour.clone().handler()),
    };
    server.unwrap()
}

/// Waits for the end, and checks the books.
fn end(server: &ServerHandle) -> wharf::Stats {
    let stats = server.wait().unwrap();
    let closed: u64 = stats.closes.iter().map(|(_, count)| count).sum();
    assert_eq!((closed, server.connections()), (stats.accepted, 0), "{stats:?}");
    stats
}

/// One short visit; what it receives has to be right.
async fn visit(wire: Wire, address: std::net::SocketAddr, number: usize) -> Result<()> {
    let mut conn = wire.client(address).open().within(Duration::from_secs(30)).await?;
    let size = 1 + number * 37 % 5000;
    for _ in 0..3 {
        conn.send(&pattern(0..size)).await?;
        let mut echo = vec![0; size];
        conn.recv_exact(&mut echo).within(Duration::from_secs(30)).await?;
        assert_pattern(&echo, 0);
    }
    match number % 3 {
        0 => conn.finish().await,
        1 => {
            drop(conn.reset());
            Ok(())
        }
        _ => Ok(()),
    }
}

#[test]
fn a_server_can_end_at_any_moment_under_load() {
    end_under_load("a_server_can_end_at_any_moment_under_load", Wire::Plain);
}

#[test]
#[cfg(feature = "tls")]
fn a_server_with_tls_can_end_at_any_moment_under_load() {
    end_under_load("a_server_with_tls_can_end_at_any_moment_under_load", Wire::Tls);
}

fn end_under_load(name: &str, wire: Wire) {
    let _watchdog = Watchdog::new(name);
    for round in 0..12 {
        let style = if round % 2 == 0 { Style::Async } else { Style::Event };
        let server = start(wire, style, Echo, Limits::default().connections(1 + round));
        let address = server.local_addr();
        let visited = Arc::new(AtomicU64::new(0));
        let clients: Vec<_> = (0..3)
            .map(|client| {
                let visited = visited.clone();
                thread::spawn(move || {
                    wharf::run(async move {
                        for number in 0.. {
                            // Once the server has ended every visit fails.
                            match visit(wire, address, number * 3 + client).await {
                                Ok(()) => visited.fetch_add(1, Ordering::SeqCst),
                                Err(error) if error.is_refused() => return,
                                Err(error) => {
                                    assert_ne!(error.kind(), ErrorKind::System, "{error}");
                                    continue;
                                }
                            };
                        }
                    })
                    .unwrap();
                })
            })
            .collect();
        while visited.load(Ordering::SeqCst) < 5 + 5 * round as u64 {
            thread::yield_now();
        }
        server.drain(Duration::from_millis(round as u64 % 3 * 10));
        end(&server);
        clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

#[test]
fn clients_above_the_limit_are_all_served_in_the_end() {
    serve_above_the_limit("clients_above_the_limit_are_all_served_in_the_end", Wire::Plain);
}

#[test]
#[cfg(feature = "tls")]
fn clients_with_tls_above_the_limit_are_all_served_in_the_end() {
    serve_above_the_limit("clients_with_tls_above_the_limit_are_all_served_in_the_end", Wire::Tls);
}

fn serve_above_the_limit(name: &str, wire: Wire) {
    let _watchdog = Watchdog::new(name);
    for limit in 1..4 {
        let server = start(wire, Style::Event, Echo, Limits::default().connections(limit));
        let address = server.local_addr();
        let clients: Vec<_> = (0..8)
            .map(|client| {
                thread::spawn(move || {
                    wharf::run(async move {
                        for number in 0..30 {
                            visit(wire, address, client * 100 + number).await.unwrap();
                        }
                    })
                    .unwrap();
                })
            })
            .collect();
        while clients.iter().any(|client| !client.is_finished()) {
            assert!(server.connections() <= limit, "{} of {limit}", server.connections());
            thread::yield_now();
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
        server.drain(Duration::from_secs(5));
        assert_eq!(end(&server).accepted, 8 * 30);
    }
}

#[test]
fn many_threads_send_to_one_connection_and_each_in_its_order() {
    const THREADS: u32 = 4;
    const EACH: u32 = 5_000;
    let _watchdog = Watchdog::new("many_threads_send_to_one_connection_and_each_in_its_order");
    for style in [Style::Async, Style::Event] {
        let (behaviour, notes) = Watched::new(Discard);
        let server =
            start(Wire::Plain, style, behaviour, Limits::default().send_marks(1000, 4000).send_max(8000));
        let address = server.local_addr();
        wharf::run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let senders: Vec<_> = (0..THREADS)
                .map(|sender| {
                    let remote = notes.remotes().remove(0);
                    thread::spawn(move || {
                        for number in 0..EACH {
                            let mut message = [0; 8];
                            message[..4].copy_from_slice(&sender.to_be_bytes());
                            message[4..].copy_from_slice(&number.to_be_bytes());
                            while let Err(error) = remote.send(message.to_vec()) {
                                assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
                                thread::yield_now();
                            }
                        }
                    })
                })
                .collect();
            let mut next = [0; THREADS as usize];
            for _ in 0..THREADS * EACH {
                let mut message = [0; 8];
                conn.recv_exact(&mut message).within(Duration::from_secs(10)).await.unwrap();
                let (sender, number) = message.split_at(4);
                let sender = u32::from_be_bytes(sender.try_into().unwrap()) as usize;
                assert_eq!(u32::from_be_bytes(number.try_into().unwrap()), next[sender]);
                next[sender] += 1;
            }
            senders.into_iter().for_each(|sender| sender.join().unwrap());
        })
        .unwrap();
        server.drain(Duration::from_secs(5));
        assert_eq!(end(&server).closed(CloseReason::Peer), 1);
    }
}

#[test]
fn handles_can_be_used_when_everything_is_over() {
    let _watchdog = Watchdog::new("handles_can_be_used_when_everything_is_over");
    let (behaviour, notes) = Watched::new(Echo);
    let server = start(Wire::Plain, Style::Event, behaviour, Limits::default());
    let address = server.local_addr();
    wharf::run(async move { visit(Wire::Plain, address, 3).await.unwrap() }).unwrap();
    server.drain(Duration::from_secs(5));
    end(&server);
    let remote = notes.remotes().remove(0);
    assert!(remote.send("late").unwrap_err().is_closed());
    remote.close();
    remote.reset();
    assert!(remote.close_reason().is_some());
    server.drain(Duration::ZERO).stop().wait().unwrap();
    assert!(server.is_stopped());
}
