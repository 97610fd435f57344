//! The acceptance scenarios: what others test of their toolkits, and what their users have reported, shown to hold here.
//!
//! docs/ACCEPTANCE.md has the whole list, with the tests elsewhere that show the rest of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wharf::event::{self, Flow, Handler};
use wharf::{Client, CloseReason, Connection, Deadline, Deadlines, Limits, OverLimit, Result, SocketOptions};

use common::behaviours::*;
use common::*;

/// Sends `message` and gets it back.
async fn echoed(conn: &mut Connection, message: &[u8]) {
    conn.send(message).await.unwrap();
    let mut echo = vec![0; message.len()];
    conn.recv_exact(&mut echo).await.unwrap();
    assert!(echo == message, "what came back is not what was sent");
}

/// A client whose message has come back: the server has let it in.
async fn let_in(address: SocketAddr) -> Connection {
    let mut conn = Client::connect(address).await.unwrap();
    echoed(&mut conn, b"x").await;
    conn
}

/// From the coroutine toolkit.
mod coroutines {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Answers each `ping` with `pong`, and resets whoever says anything else a while later.
    #[derive(Clone)]
    struct PingPong {
        grudge: Duration,
    }

    impl Behaviour for PingPong {
        type Handler = PingPong;

        async fn run(self, mut conn: Connection) -> Result<()> {
            let mut word = [0; 4];
            loop {
                match conn.recv_exact(&mut word).await {
                    Ok(()) if word == *b"ping" => conn.send(b"pong").await?,
                    Ok(()) => conn.reset_after(self.grudge),
                    Err(error) if error.partial() == Some(0) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        }

        fn handler(self) -> PingPong {
            self
        }
    }

    impl Handler for PingPong {
        fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
            let Some(word) = bytes.first_chunk::<4>() else { return Flow::Consumed(0) };
            if word == b"ping" {
                conn.send(b"pong").expect("an empty queue takes it");
            } else {
                conn.reset_after(self.grudge);
            }
            Flow::Consumed(4)
        }
    }

    scenario! {
        /// tcp.cc
        fn each_ping_is_answered_and_an_error_is_a_reset_a_while_later(world) {
            let (grudge, began) = (world.time(3.0), world.now());
            let server = world.serve(PingPong { grudge });
            let address = server.local_addr();
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                for _ in 0..3 {
                    let mut answer = [0; 4];
                    conn.send(b"ping").await.unwrap();
                    conn.recv_exact(&mut answer).await.unwrap();
                    assert_eq!(&answer, b"pong");
                }
                conn.finish().await.unwrap();
                assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0);
                let mut rude = Client::connect(address).await.unwrap();
                rude.send(b"oops").await.unwrap();
                let error = rude.recv(&mut [0; 1]).await.unwrap_err();
                assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
            });
            assert!(world.now() - began >= grudge);
            let stats = world.stop(&server);
            assert_eq!((stats.closed(CloseReason::Peer), stats.closed(CloseReason::LocalReset)), (1, 1), "{stats:?}");
        }
    }

    /// Echoes, and looks whether it is to stop when nothing has come for a while.
    #[derive(Clone)]
    struct LooksUp {
        after: Duration,
        stop: Arc<AtomicBool>,
    }

    impl Behaviour for LooksUp {
        type Handler = Discard;

        async fn run(self, mut conn: Connection) -> Result<()> {
            let mut buf = [0; 64];
            loop {
                match conn.recv(&mut buf).within(self.after).await {
                    Ok(0) => return Ok(()),
                    Ok(n) => conn.send(&buf[..n]).await?,
                    Err(error) if error.close_reason().is_some() => return Err(error),
                    Err(error) if !error.is_timeout() => return Err(error),
                    Err(_) if self.stop.load(Ordering::SeqCst) => {
                        conn.reset().await;
                        return Ok(());
                    }
                    Err(_) => {}
                }
            }
        }

        fn handler(self) -> Discard {
            Discard
        }
    }

    scenario! {
        /// tcp2.cc
        async fn handlers_that_look_up_at_each_timeout_end_soon_and_the_drain_ends_the_others(world) {
            let stop = Arc::new(AtomicBool::new(false));
            let server = world.serve(LooksUp { after: world.time(10.0), stop: stop.clone() });
            let (address, stopping, within, every) =
                (server.local_addr(), server.clone(), world.time(40.0), world.time(0.5));
            world.run(async move {
                let mut silent = [let_in(address).await, let_in(address).await];
                let mut talking = let_in(address).await;
                let talk = wharf::spawn(async move {
                    let mut talked = 0;
                    while talking.send(b"x").await.is_ok() && talking.recv(&mut [0; 1]).await.is_ok_and(|n| n > 0) {
                        talked += 1;
                        wharf::sleep(every).await;
                    }
                    talked
                });
                stop.store(true, Ordering::SeqCst);
                stopping.drain(within);
                for conn in &mut silent {
                    let error = conn.recv(&mut [0; 1]).await.unwrap_err();
                    assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
                }
                assert!(!stopping.is_stopped(), "one still talks");
                assert!(talk.await.unwrap() > 0);
                until("the server has ended", || stopping.is_stopped()).await;
            });
            let stats = world.stop(&server);
            let (looked_up, drained) = (stats.closed(CloseReason::LocalReset), stats.closed(CloseReason::Shutdown));
            assert_eq!((looked_up, drained), (2, 1), "{stats:?}");
        }
    }

    scenario! {
        /// echo.cc
        fn a_hundred_and_twenty_eight_clients_get_each_kibibyte_back(world) {
            const CLIENTS: usize = 128;
            const ROUNDS: usize = 3;
            let server = world.serve(Echo);
            let address = server.local_addr();
            world.run(async move {
                let clients = (0..CLIENTS).map(|client| {
                    wharf::spawn(async move {
                        let mut conn = Client::connect(address).await.unwrap();
                        for round in 0..ROUNDS {
                            let at = (client * ROUNDS + round) * 1024;
                            echoed(&mut conn, &pattern(at..at + 1024)).await;
                        }
                    })
                });
                for client in clients.collect::<Vec<_>>() {
                    client.await.unwrap();
                }
            });
            let stats = world.stop(&server);
            let bytes = (CLIENTS * ROUNDS * 1024) as u64;
            assert_eq!((stats.accepted, stats.received, stats.sent), (CLIENTS as u64, bytes, bytes));
        }
    }

    scenario! {
        /// One byte per (timeout - 1 ms)
        fn a_byte_just_before_each_timeout_does_not_extend_the_whole(world) {
            let within = world.time(5.0);
            let server = world.serve(Request { bytes: 100, within });
            let (address, began) = (server.local_addr(), world.now());
            world.run(async move {
                let (mut read, mut write) = Client::connect(address).await.unwrap().split();
                let _drip = wharf::spawn(async move {
                    while write.send(b"x").await.is_ok() {
                        wharf::sleep(within.checked_sub(Duration::from_millis(1)).unwrap()).await;
                    }
                });
                assert_eq!(read.recv(&mut [0; 8]).await.unwrap(), 0, "the server says nothing and ends");
            });
            let took = world.now() - began;
            assert!(took >= within && took < 2 * within + Duration::from_millis(500), "{took:?}");
            let stats = world.stop(&server);
            assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Handler)), 1, "{stats:?}");
        }
    }
}

/// From the event toolkit.
mod events {
    use super::*;

    /// Notes what it is told, in order.
    #[derive(Clone, Default)]
    struct Diary(Arc<Mutex<Vec<&'static str>>>);

    impl Diary {
        fn note(&self, what: &'static str) {
            self.0.lock().expect("nobody panics under this lock").push(what);
        }
    }

    impl Behaviour for Diary {
        type Handler = Diary;

        async fn run(self, mut conn: Connection) -> Result<()> {
            self.note("connected");
            conn.recv_exact(&mut [0; 5]).await?;
            self.note("received");
            assert_eq!(conn.recv(&mut [0; 1]).await?, 0);
            self.note("ended");
            conn.close().await;
            self.note("closed");
            Ok(())
        }

        fn handler(self) -> Diary {
            self
        }
    }

    impl Handler for Diary {
        fn connected(&mut self, _: &mut event::Connection<'_>) -> Flow {
            self.note("connected");
            Flow::Continue
        }

        fn received(&mut self, _: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
            if bytes.len() < 5 {
                return Flow::Consumed(0);
            }
            self.note("received");
            Flow::Continue
        }

        fn ended(&mut self, _: &mut event::Connection<'_>) -> Flow {
            self.note("ended");
            Flow::Close
        }

        fn closed(&mut self, _: &mut event::Connection<'_>, _: CloseReason) {
            self.note("closed");
        }
    }

    scenario! {
        /// ConnectionStates
        fn a_connections_states_are_told_once_and_in_order(world) {
            let diary = Diary::default();
            let watching = diary.clone();
            let server = world.serve_with(diary.clone(), |server| {
                server.watch(move |event| match event {
                    wharf::ServerEvent::Opened { .. } => watching.note("opened"),
                    wharf::ServerEvent::Closed { .. } => watching.note("over"),
                    _ => {}
                })
            });
            let address = server.local_addr();
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                assert_eq!(conn.close_reason(), None);
                conn.send(b"hello").await.unwrap();
                conn.finish().await.unwrap();
                assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0);
                let reason = conn.close().await;
                assert_eq!(conn.close_reason(), Some(reason));
            });
            world.stop(&server);
            let mut told = diary.0.lock().unwrap().clone();
            if world.style() == Style::Async {
                // There both learn of the end at the same time.
                let last = told.len() - 2;
                told[last..].sort_unstable();
            }
            assert_eq!(told, ["opened", "connected", "received", "ended", "closed", "over"]);
        }
    }

    scenario! {
        /// MultipleConnections
        fn five_clients_with_three_messages_each_are_counted_exactly(world) {
            let server = world.serve(Echo);
            let address = server.local_addr();
            world.run(async move {
                let clients = (0..5u8).map(|client| {
                    wharf::spawn(async move {
                        let mut conn = Client::connect(address).await.unwrap();
                        for message in 0..3u8 {
                            echoed(&mut conn, &[client, message, 0, 0, 0, 0, 0]).await;
                        }
                    })
                });
                for client in clients.collect::<Vec<_>>() {
                    client.await.unwrap();
                }
            });
            let stats = world.stop(&server);
            assert_eq!((stats.accepted, stats.received, stats.sent), (5, 5 * 3 * 7, 5 * 3 * 7), "{stats:?}");
            assert_eq!(stats.closed(CloseReason::Peer), 5, "{stats:?}");
        }
    }

    scenario! {
        /// ConnectionIsolation
        fn what_one_client_sends_no_other_receives(world) {
            let server = world.serve(Echo);
            let address = server.local_addr();
            world.run(async move {
                let mut conns = Vec::new();
                for _ in 0..3 {
                    conns.push(Client::connect(address).await.unwrap());
                }
                for round in 1..=10usize {
                    // All of them have spoken before the first one listens.
                    for (own, conn) in (b'a'..).zip(&mut conns) {
                        conn.send(&vec![own; 100 * round]).await.unwrap();
                    }
                    for (own, conn) in (b'a'..).zip(&mut conns) {
                        let mut echo = vec![0; 100 * round];
                        conn.recv_exact(&mut echo).await.unwrap();
                        assert!(echo.iter().all(|byte| *byte == own));
                    }
                }
                for conn in &mut conns {
                    conn.finish().await.unwrap();
                    assert_eq!(recv_all(conn).await.unwrap(), b"", "and nothing more");
                }
            });
        }
    }

    scenario! {
        /// BufferOverflowHandling
        fn more_than_all_buffers_hold_reaches_a_slow_reader_whole(world) {
            let max = 32 * 1024;
            let (behaviour, notes) = Watched::new(Stream { total: 10 * 18_000, piece: 18_000 });
            let server = world.serve_with(behaviour, |server| {
                let limits = Limits::default().send_marks(8 * 1024, 16 * 1024).send_max(max);
                server.limits(limits).sockets(SocketOptions::default().send_buffer(16 * 1024))
            });
            let (address, stall) = (server.local_addr(), world.time(1.0));
            world.run(async move {
                let sockets = SocketOptions::default().receive_buffer(16 * 1024);
                let limits = Limits::default().receive_buffer(4096);
                let mut conn = Client::new(address).sockets(sockets).limits(limits).open().await.unwrap();
                let mut received = 0;
                while let Some(chunk) = conn.recv_chunk().await.unwrap() {
                    assert_pattern(&chunk, received);
                    received += chunk.len();
                    drop(chunk);
                    if received < 20_000 {
                        wharf::sleep(stall / 4).await;
                    }
                }
                assert_eq!(received, 180_000);
            });
            assert!(notes.look(|noted| noted.pending_max) <= max + 32 * 1024);
            let stats = world.stop(&server);
            assert_eq!((stats.sent, stats.unsent, stats.closed(CloseReason::Local)), (180_000, 0, 1), "{stats:?}");
        }
    }

    scenario! {
        /// RapidAcceptBurst
        fn thirty_two_clients_at_once_are_all_accepted(world) {
            let server = world.serve(Echo);
            let address = server.local_addr();
            world.run(async move {
                let clients = (0..32u8).map(|client| {
                    wharf::spawn(async move {
                        let mut conn = Client::connect(address).await.unwrap();
                        echoed(&mut conn, &[client]).await;
                        conn
                    })
                });
                let mut conns = Vec::new();
                for client in clients.collect::<Vec<_>>() {
                    conns.push(client.await.unwrap());
                }
            });
            assert_eq!(world.stop(&server).accepted, 32);
        }
    }

    scenario! {
        /// LargeTCPReceive
        fn two_mebibytes_are_received_whole(world) {
            const TOTAL: usize = 2 << 20;
            let server = world.serve(Checksum);
            let address = server.local_addr();
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                let data = pattern(0..TOTAL);
                conn.send_owned(data.clone()).await.unwrap();
                conn.finish().await.unwrap();
                assert_eq!(recv_all(&mut conn).await.unwrap(), checksum(&data));
            });
            assert_eq!(world.stop(&server).received, TOTAL as u64);
        }
    }

    scenario! {
        /// MessageThroughput
        fn a_thousand_messages_are_answered_one_by_one(world) {
            let server = world.serve(Echo);
            let address = server.local_addr();
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                for message in 0..1000u32 {
                    echoed(&mut conn, &message.to_be_bytes()).await;
                }
            });
            let stats = world.stop(&server);
            assert_eq!((stats.received, stats.sent), (4000, 4000));
        }
    }

    scenario! {
        /// ConnectionScaling
        fn twenty_connections_are_held_and_then_none(world) {
            let server = world.serve(Echo);
            let (address, watched) = (server.local_addr(), server.clone());
            world.run(async move {
                let mut conns = Vec::new();
                for held in 1..=20 {
                    conns.push(let_in(address).await);
                    assert_eq!(watched.connections(), held);
                    for conn in &mut conns {
                        echoed(conn, b"still here").await;
                    }
                }
                drop(conns);
                until("they are gone", || watched.connections() == 0).await;
            });
            assert_eq!(world.stop(&server).closed(CloseReason::Peer), 20);
        }
    }

    scenario! {
        /// WriteQueuePerformance
        fn five_hundred_messages_queued_at_once_come_in_order(world) {
            let server = world.serve(Echo);
            let address = server.local_addr();
            world.run(async move {
                let (mut read, mut write) = Client::connect(address).await.unwrap().split();
                let writer = wharf::spawn(async move {
                    for message in 0..500 {
                        write.send(&pattern(100 * message..100 * (message + 1))).await.unwrap();
                    }
                    write
                });
                let mut echo = vec![0; 50_000];
                read.recv_exact(&mut echo).await.unwrap();
                assert_pattern(&echo, 0);
                writer.await.unwrap();
            });
            assert_eq!(world.stop(&server).sent, 50_000);
        }
    }
}

/// From the blocking toolkits.
mod blocking {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::{self, ThreadId};

    use wharf::Server;

    use super::*;

    /// Tells its peer who that is.
    #[derive(Clone)]
    struct TellsYou;

    impl Behaviour for TellsYou {
        type Handler = TellsYou;

        async fn run(self, mut conn: Connection) -> Result<()> {
            let peer = conn.peer_addr().to_string();
            conn.send(peer.as_bytes()).await
        }

        fn handler(self) -> TellsYou {
            self
        }
    }

    impl Handler for TellsYou {
        fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
            let peer = conn.peer_addr().to_string();
            conn.send(peer.as_bytes()).expect("an empty queue takes it");
            Flow::Close
        }

        fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
            Flow::Continue
        }
    }

    scenario! {
        /// The six steps of a connect, with the peer's address printed
        fn both_ends_print_the_same_two_addresses(world) {
            let server = world.serve(TellsYou);
            let address = server.local_addr();
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                assert_eq!(conn.peer_addr().to_string(), address.to_string());
                let own = conn.local_addr().unwrap().to_string();
                assert_eq!(recv_all(&mut conn).await.unwrap(), own.as_bytes());
            });
        }
    }

    /// Start twice
    #[test]
    fn the_same_server_started_twice_finds_its_port_taken() {
        let _watchdog = Watchdog::new("the_same_server_started_twice_finds_its_port_taken");
        let echo = |server: Server| server.start(|conn| Echo.run(conn));
        let first = echo(Server::bind(format!("{HOST}:0")).workers(1)).unwrap();
        let same = Server::bind(first.local_addr()).workers(1);
        let error = echo(same.clone()).unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::AddrInUse), "{error}");
        let address = first.local_addr();
        wharf::run(async move { drop(let_in(address).await) }).unwrap();
        first.stop().wait().unwrap();
        // And when it has ended the same description starts.
        let again = echo(same).unwrap();
        assert_eq!(again.local_addr(), address);
        again.stop().wait().unwrap();
    }

    scenario! {
        /// Stop twice
        fn stopping_twice_is_stopping_once(world) {
            let exits = Arc::new(AtomicUsize::new(0));
            let counting = exits.clone();
            let server = world.serve_with(Echo, |server| {
                server.on_exit(move |_| {
                    counting.fetch_add(1, Ordering::SeqCst);
                })
            });
            let (address, stopping) = (server.local_addr(), server.clone());
            world.run(async move {
                let mut conn = let_in(address).await;
                stopping.stop().stop().drain(Duration::from_secs(60)).suspend();
                assert!(conn.recv(&mut [0; 1]).await.is_err());
                until("it has ended", || stopping.is_stopped()).await;
                stopping.stop().drain(Duration::MAX).suspend();
                drop(stopping.resume());
            });
            let stats = world.stop(&server);
            assert_eq!((stats.closed(CloseReason::Shutdown), exits.load(Ordering::SeqCst)), (1, 1), "{stats:?}");
        }
    }

    /// Which handlers are being called on which thread.
    type Calls = Arc<Mutex<HashMap<ThreadId, usize>>>;

    /// Echoes, and asserts that nobody else is called on its thread meanwhile.
    #[derive(Clone)]
    struct Alone {
        calls: Calls,
        home: Option<ThreadId>,
    }

    impl Alone {
        fn call(&mut self, work: impl FnOnce()) {
            let thread = thread::current().id();
            assert_eq!(*self.home.get_or_insert(thread), thread, "a connection stays on its thread");
            let mut calls = self.calls.lock().unwrap();
            assert_eq!(calls.insert(thread, 1).unwrap_or_default(), 0, "calls overlap");
            drop(calls);
            work();
            self.calls.lock().unwrap().insert(thread, 0);
        }
    }

    impl Behaviour for Alone {
        type Handler = Alone;

        async fn run(mut self, mut conn: Connection) -> Result<()> {
            while let Some(chunk) = conn.recv_chunk().await? {
                self.call(|| {});
                conn.send(&chunk).await?;
            }
            Ok(())
        }

        fn handler(self) -> Alone {
            self
        }
    }

    impl Handler for Alone {
        fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
            self.call(|| conn.send(bytes).expect("the queue has room for a few bytes"));
            Flow::Continue
        }
    }

    scenario! {
        /// Handlers on the chosen queue, never concurrent
        fn the_handlers_of_a_thread_are_called_one_at_a_time(world) {
            let calls = Calls::default();
            let server = world.serve(Alone { calls: calls.clone(), home: None });
            let address = server.local_addr();
            world.run(async move {
                let clients = (0..10).map(|_| {
                    wharf::spawn(async move {
                        let mut conn = Client::connect(address).await.unwrap();
                        for _ in 0..20 {
                            echoed(&mut conn, b"in turn").await;
                        }
                    })
                });
                for client in clients.collect::<Vec<_>>() {
                    client.await.unwrap();
                }
            });
            assert_eq!(world.stop(&server).panics, 0);
            assert!((1..=2).contains(&calls.lock().unwrap().len()));
        }
    }
}

mod thousand_island {
    use wharf::sim::{Faults, Simulation};
    use wharf::{Server, ServerEvent, Stats};

    use super::*;

    scenario! {
        /// Limit 1, never freed
        fn who_waits_in_vain_gives_up_and_harms_neither_the_first_nor_the_third(world) {
            for policy in [OverLimit::Queue, OverLimit::Close, OverLimit::Reset] {
                let limits = Limits::default().connections(1).over_limit(policy);
                let server = world.serve_with(Echo, |server| server.limits(limits));
                let (address, watched, patience) = (server.local_addr(), server.clone(), world.time(2.0));
                world.run(async move {
                    let mut first = let_in(address).await;
                    let in_vain = async {
                        let mut second = Client::connect(address).await?;
                        second.send(b"x").await?;
                        second.recv_exact(&mut [0; 1]).within(patience).await
                    };
                    let error = in_vain.await.unwrap_err();
                    let waited = policy == OverLimit::Queue;
                    assert_eq!(error.is_timeout(), waited, "{policy:?}: {error}");
                    echoed(&mut first, b"still here").await;
                    drop(first);
                    until("it is gone", || watched.connections() == 0 || waited).await;
                    drop(let_in(address).await);
                });
                world.stop(&server);
            }
        }
    }

    scenario! {
        /// Works after suspend and resume
        fn a_drain_after_suspend_and_resume_lets_finish_and_refuses_newcomers(world) {
            let (behaviour, notes) = Watched::new(Echo);
            let server = world.serve(behaviour);
            let (address, changing, long) = (server.local_addr(), server.clone(), world.time(300.0));
            world.run(async move {
                let mut old = let_in(address).await;
                changing.suspend();
                changing.resume().unwrap();
                let mut new = let_in(address).await;
                changing.drain(long);
                until("both are told", || notes.draining() == 2).await;
                let error = Client::connect(address).await.unwrap_err();
                assert!(error.is_refused(), "{error}");
                for conn in [&mut old, &mut new] {
                    echoed(conn, b"unfinished work").await;
                }
                drop((old, new));
                until("it has ended", || changing.is_stopped()).await;
            });
            let stats = world.stop(&server);
            assert_eq!((stats.drain.finished, stats.drain.reset), (2, 0), "{stats:?}");
        }
    }

    scenario! {
        /// The timer runs from the last client byte
        fn a_silence_is_counted_from_the_last_byte_of_the_peer(world) {
            let idle = world.time(6.0);
            let server = world.serve_with(Echo, |server| server.deadlines(Deadlines::default().idle(idle)));
            let (address, pause) = (server.local_addr(), world.time(4.0));
            world.run(async move {
                let mut conn = let_in(address).await;
                wharf::sleep(pause).await;
                echoed(&mut conn, b"the last word").await;
                assert_eq!(conn.recv(&mut [0; 1]).within(idle * 20).await.unwrap(), 0);
            });
            let took = world.now();
            assert!(took >= pause + idle, "{took:?}");
            assert!(took < pause + idle + world.time(4.0) + Duration::from_millis(500), "{took:?}");
            assert_eq!(world.stop(&server).closed(CloseReason::Timeout(Deadline::Idle)), 1);
        }
    }

    scenario! {
        /// Exactly one start and one stop event per connection
        fn every_connection_begins_once_and_ends_once_however_it_ends(world) {
            let told = Arc::new(Mutex::new(Vec::new()));
            let telling = told.clone();
            let deadlines = Deadlines::default().idle(world.time(3.0));
            let server = world.serve_with(Moody, |server| {
                server.deadlines(deadlines).watch(move |event| match event {
                    ServerEvent::Opened { id, .. } => telling.lock().unwrap().push((*id, None)),
                    ServerEvent::Closed { id, reason, .. } => telling.lock().unwrap().push((*id, Some(*reason))),
                    _ => {}
                })
            });
            let (address, stopping) = (server.local_addr(), server.clone());
            world.run(async move {
                drop(let_in(address).await);
                let_in(address).await.reset().await;
                for word in [b"p", b"f", b"r"] {
                    let mut conn = let_in(address).await;
                    conn.send(word).await.unwrap();
                    drop(recv_all(&mut conn).await);
                }
                let mut silent = let_in(address).await;
                assert_eq!(recv_all(&mut silent).await.unwrap(), b"");
                let mut late = let_in(address).await;
                stopping.stop();
                assert!(recv_all(&mut late).await.is_err());
            });
            let stats = world.stop(&server);
            assert_eq!((stats.accepted, stats.panics), (7, 1), "{stats:?}");
            let told = told.lock().unwrap();
            for (id, _) in told.iter().filter(|(_, end)| end.is_none()) {
                let of_it: Vec<_> = told.iter().filter(|(each, _)| each == id).collect();
                assert_eq!(of_it.len(), 2, "{told:?}");
                assert!(of_it[0].1.is_none() && of_it[1].1.is_some(), "{told:?}");
            }
            assert_eq!(told.len(), 14);
        }
    }

    /// A server that has one connection, then meets `faults` at its door while twenty more want in. Each asks again
    /// when it is sent away.
    fn at_a_bad_door(style: Style, seed: u64, faults: Faults) -> Stats {
        let mut simulation = Simulation::with_faults(seed, Faults::default());
        let server = Server::bind("10.0.0.1:7").workers(2);
        let server = match style {
            Style::Async => simulation.serve(server, |conn| Echo.run(conn)),
            Style::Event => simulation.serve_events(server, || Echo),
        };
        let (server, address) = (server.unwrap(), "10.0.0.1:7".parse().unwrap());
        let ready = Arc::new(Mutex::new(false));
        let is_ready = ready.clone();
        let old = simulation.client("10.0.0.2", async move {
            let mut conn = let_in(address).await;
            *ready.lock().unwrap() = true;
            for _ in 0..100 {
                wharf::sleep(Duration::from_millis(10)).await;
                echoed(&mut conn, b"not concerned").await;
            }
        });
        assert!(simulation.run_until(|| *is_ready.lock().unwrap()));
        simulation.set_faults(faults);
        let ask = move || async move {
            let mut conn = Client::connect(address).await?;
            conn.send(b"x").await?;
            conn.recv_exact(&mut [0; 1]).await
        };
        let new: Vec<_> = (0..20)
            .map(|_| simulation.client("10.0.0.3", async move { while ask().await.is_err() {} }))
            .collect();
        // Until all of them are through.
        assert!(simulation.run_until(|| server.stats().accepted == 21 && server.connections() == 0));
        server.drain(Duration::from_secs(1));
        simulation.run();
        old.take().expect("the old connection was not concerned");
        assert!(new.iter().all(|client| client.take().is_some()));
        server.wait().unwrap()
    }

    /// Injected EMFILE and ENFILE
    #[test]
    fn accepts_that_fail_for_want_of_descriptors_cost_time_and_nobody() {
        for style in [Style::Async, Style::Event] {
            for seed in seeds(10) {
                let stats = at_a_bad_door(style, seed, Faults::default().exhausted_accepts(0.8));
                assert!(stats.accept_errors > 5, "seed {seed}: {stats:?}");
                assert_eq!(stats.closed(CloseReason::Peer), 21, "seed {seed}: {stats:?}");
            }
        }
    }

    /// Ten transient errors in a row
    #[test]
    fn connections_that_are_gone_before_they_are_accepted_do_no_harm_to_others() {
        for style in [Style::Async, Style::Event] {
            for seed in seeds(10) {
                let stats = at_a_bad_door(style, seed, Faults::default().aborted_accepts(0.9));
                assert!(stats.accept_errors > 20, "seed {seed}: {stats:?}");
                assert_eq!(stats.closed(CloseReason::Peer), 21, "seed {seed}: {stats:?}");
            }
        }
    }
}

/// From the issues of other projects.
mod issues {
    use std::mem;
    use std::task::{Context, Waker};

    use super::*;

    scenario! {
        /// poem#843
        fn handlers_that_panic_do_not_keep_a_drain_from_ending(world) {
            let (behaviour, notes) = Watched::new(Moody);
            let server = world.serve(behaviour);
            let (address, draining, long) = (server.local_addr(), server.clone(), world.time(300.0));
            let began = world.now();
            world.run(async move {
                let mut before = let_in(address).await;
                before.send(b"p").await.unwrap();
                assert!(recv_all(&mut before).await.is_err());
                let mut meanwhile = let_in(address).await;
                until("the first one is gone", || notes.closed_all() == 1 && draining.connections() == 1).await;
                // In async style the end of the first one may have counted as a drain: it is what the future waits for too.
                let told = notes.draining();
                draining.drain(long);
                until("the handler is told", || notes.draining() > told).await;
                meanwhile.send(b"p").await.unwrap();
                assert!(recv_all(&mut meanwhile).await.is_err());
                until("it has ended", || draining.is_stopped()).await;
            });
            assert!(world.now() - began < long, "nobody waits for the deadline");
            let stats = world.stop(&server);
            assert_eq!((stats.panics, stats.closed(CloseReason::HandlerPanicked)), (2, 2), "{stats:?}");
        }
    }

    /// Polls a future once and forgets it.
    fn forget<T>(future: impl Future<Output = T> + 'static) {
        let mut future = Box::pin(future);
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        mem::forget(future);
    }

    scenario! {
        /// rio RUSTSEC-2020-0021
        async fn futures_that_are_forgotten_leak_and_do_nothing_worse(world) {
            let server = world.serve(Echo);
            let address = server.local_addr();
            world.run(async move {
                forget(async move { Client::connect(address).await });
                let mut conn = let_in(address).await;
                {
                    let mut buf = vec![0; 4096];
                    let mut read = mem::ManuallyDrop::new(Box::pin(conn.recv_exact(&mut buf)));
                    assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                }
                // The buffer is gone, and what comes belongs to the next reader.
                echoed(&mut conn, &pattern(0..10_000)).await;
                forget(wharf::sleep(Duration::from_millis(1)));
                forget(async move {
                    let mut conn = let_in(address).await;
                    conn.recv(&mut [0; 64]).await
                });
                echoed(&mut conn, &pattern(0..10_000)).await;
            });
            world.stop(&server);
        }
    }

    /// Forgets its connection.
    #[derive(Clone)]
    struct Forgetful;

    impl Behaviour for Forgetful {
        type Handler = Discard;

        async fn run(self, mut conn: Connection) -> Result<()> {
            conn.recv_exact(&mut [0; 1]).await?;
            mem::forget(conn);
            Ok(())
        }

        fn handler(self) -> Discard {
            Discard
        }
    }

    scenario! {
        /// `mem::forget` of a connection
        async fn a_connection_that_its_handler_forgets_ends_with_the_drain(world) {
            let server = world.serve(Forgetful);
            let (address, draining, soon) = (server.local_addr(), server.clone(), world.time(2.0));
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"x").await.unwrap();
                draining.drain(soon);
                drop(recv_all(&mut conn).await);
                until("it has ended", || draining.is_stopped()).await;
            });
            world.stop(&server);
        }
    }
}
