//! One test for each defect that was found: it stays fixed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::net::IpAddr;
use std::time::Duration;

use futures_lite::FutureExt as _;
use wharf::event::{self, Flow, Handler};
use wharf::sim::Simulation;
use wharf::{Client, CloseReason, Connection, Deadline, Deadlines, Limits, Result, Server};

use common::behaviours::*;
use common::*;

scenario! {
    async fn a_reset_is_seen_although_nobody_reads_and_the_buffer_is_full(world) {
        let (behaviour, notes) = Watched::new(Hold);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(&pattern(0..500_000)).await.unwrap();
            let flushed = conn.flush().within(Duration::from_millis(200)).await;
            assert!(flushed.is_err() || flushed.is_ok(), "as the kernel's buffers have it");
            conn.reset().await;
            until("the server knows", || notes.closed_all() > 0).await;
            assert_eq!(notes.closed(CloseReason::PeerReset), 1);
        });
        world.stop(&server);
    }
}

scenario! {
    fn messages_of_another_thread_go_on_when_the_queue_has_emptied(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let limits = Limits::default().send_marks(10, 1000).send_max(1000);
        let server = world.serve_with(behaviour, |server| server.limits(limits));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            remote.send(pattern(0..1000)).unwrap();
            // It waits for the first one, and nothing but the first one's end is there to move it.
            until("there is room", || remote.send(pattern(1000..2000)).is_ok()).await;
            let mut received = vec![0; 2000];
            conn.recv_exact(&mut received).within(Duration::from_secs(10)).await.unwrap();
            assert_pattern(&received, 0);
        });
    }
}

scenario! {
    fn a_close_by_another_thread_waits_for_the_messages_before_it(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            for part in 0..3 {
                remote.send(pattern(part * 300_000..(part + 1) * 300_000)).unwrap();
            }
            remote.close();
            drop(remote.send("behind the close"));
            let received = recv_all(&mut conn).await.unwrap();
            assert_pattern(&received, 0);
            assert_eq!(received.len(), 900_000);
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

scenario! {
    fn a_handler_whose_connection_was_closed_by_another_thread_has_not_failed(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            notes.remotes()[0].close();
            assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0);
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

/// Takes three bytes at a time, whatever it is offered.
#[derive(Clone)]
struct Nibbler;

impl Behaviour for Nibbler {
    type Handler = Nibbler;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut buf = [0; 3];
        while conn.recv(&mut buf).await? > 0 {}
        Ok(())
    }

    fn handler(self) -> Nibbler {
        self
    }
}

impl Handler for Nibbler {
    fn received(&mut self, _: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        Flow::Consumed(bytes.len().min(3))
    }
}

scenario! {
    fn a_handler_that_takes_a_little_of_a_full_buffer_is_offered_the_rest(world) {
        let limits = Limits::default().receive_buffer(1000);
        let server = world.serve_with(Nibbler, |server| server.limits(limits));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(&pattern(0..100_000)).await.unwrap();
            conn.finish().within(Duration::from_secs(10)).await.unwrap();
            assert_eq!(conn.recv(&mut [0; 1]).within(Duration::from_secs(10)).await.unwrap(), 0);
        });
        assert_eq!(world.stop(&server).received, 100_000);
    }
}

scenario! {
    fn several_tasks_can_wait_for_the_same_close(world) {
        let server = world.serve(EndAfter { delay: world.time(1.0), reset: false });
        let address = server.local_addr();
        world.run(async move {
            let (read, write) = Client::connect(address).await.unwrap().split();
            let waiting: Vec<_> = [read.closed(), write.closed(), read.closed()]
                .into_iter()
                .map(|closed| wharf::spawn(closed.within(Duration::from_secs(10))))
                .collect();
            wharf::sleep(Duration::from_millis(1)).await;
            drop((read, write));
            for task in waiting {
                task.await.unwrap().expect("it is told");
            }
        });
    }
}

/// Awaits the drain in two tasks.
#[derive(Clone)]
struct TwoDrains;

impl Behaviour for TwoDrains {
    type Handler = Discard;

    async fn run(self, conn: Connection) -> Result<()> {
        let other = wharf::spawn(conn.draining());
        conn.draining().await;
        other.await
    }

    fn handler(self) -> Discard {
        Discard
    }
}

scenario! {
    async fn several_tasks_can_wait_for_the_drain(world) {
        let server = world.serve(TwoDrains);
        let address = server.local_addr();
        let (draining, long) = (server.clone(), world.time(100.0));
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            until("the server has it", || draining.connections() == 1).await;
            draining.drain(long);
            assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0);
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

/// Sends a tick now and then, and reads in the same task.
#[derive(Clone)]
struct Ticker(Duration);

impl Behaviour for Ticker {
    type Handler = Discard;

    async fn run(self, conn: Connection) -> Result<()> {
        let (mut read, mut write) = conn.split();
        let ticks = async {
            loop {
                wharf::sleep(self.0).await;
                write.send(b"tick").await?;
            }
        };
        let reads = async {
            while read.recv_chunk().await?.is_some() {}
            Ok(())
        };
        ticks.or(reads).await
    }

    fn handler(self) -> Discard {
        Discard
    }
}

scenario! {
    async fn a_read_that_is_polled_again_does_not_extend_the_idle_deadline(world) {
        let deadlines = Deadlines::default().idle(world.time(10.0));
        let server = world.serve_with(Ticker(world.time(1.0)), |server| server.deadlines(deadlines));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let mut ticks = 0;
            while conn.recv(&mut [0; 4]).await.unwrap() > 0 {
                ticks += 1;
                assert!(ticks < 30, "the peer was silent for long enough");
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Timeout(Deadline::Idle)), 1);
    }
}

/// Waits for a byte for one unit of time, so many times; then works for twenty, and says that it is done.
#[derive(Clone)]
struct Worker {
    unit: Duration,
    waits: usize,
}

impl Behaviour for Worker {
    type Handler = Discard;

    async fn run(self, mut conn: Connection) -> Result<()> {
        for _ in 0..self.waits {
            let outcome = conn.recv(&mut [0; 1]).within(self.unit).await;
            if outcome.as_ref().is_err_and(wharf::Error::is_closed) {
                outcome?;
            }
        }
        wharf::sleep(self.unit * 20).await;
        conn.send(b"done").await
    }

    fn handler(self) -> Discard {
        Discard
    }
}

scenario! {
    async fn a_read_that_was_given_up_does_not_count_as_awaited(world) {
        let deadlines = Deadlines::default().idle(world.time(10.0));
        let behaviour = Worker { unit: world.time(1.0), waits: 2 };
        let server = world.serve_with(behaviour, |server| server.deadlines(deadlines));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"done");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

scenario! {
    async fn reads_that_are_given_up_and_begun_again_add_up_to_the_idle_deadline(world) {
        let deadlines = Deadlines::default().idle(world.time(10.0));
        let behaviour = Worker { unit: world.time(1.0), waits: 100 };
        let server = world.serve_with(behaviour, |server| server.deadlines(deadlines));
        let address = server.local_addr();
        let began = world.now();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0);
        });
        let took = world.now() - began;
        assert!(took < world.time(50.0), "{took:?}");
        assert_eq!(world.stop(&server).closed(CloseReason::Timeout(Deadline::Idle)), 1);
    }
}

/// Reads to the end, and waits for whatever comes then.
#[derive(Clone)]
struct HoldAfterEnd;

impl Behaviour for HoldAfterEnd {
    type Handler = HoldAfterEnd;

    async fn run(self, mut conn: Connection) -> Result<()> {
        while conn.recv_chunk().await?.is_some() {}
        conn.closed().await;
        Ok(())
    }

    fn handler(self) -> HoldAfterEnd {
        self
    }
}

impl Handler for HoldAfterEnd {
    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn ended(&mut self, _: &mut event::Connection<'_>) -> Flow {
        Flow::Continue
    }
}

scenario! {
    fn a_reset_is_seen_after_the_end_of_the_peers_direction(world) {
        let (behaviour, notes) = Watched::new(HoldAfterEnd);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        let pause = world.time(1.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"x").await.unwrap();
            conn.finish().await.unwrap();
            wharf::sleep(pause).await;
            conn.reset().await;
            until("the server knows", || notes.closed_all() > 0).await;
            assert_eq!(notes.closed(CloseReason::PeerReset), 1);
        });
        world.stop(&server);
    }
}

/// Panics where nobody thinks of it: when it is dropped.
#[derive(Clone)]
struct BadDrop;

struct Panics;

impl Drop for Panics {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a destructor that panics");
        }
    }
}

struct HasBadDrop {
    _panics: Panics,
}

impl Behaviour for BadDrop {
    type Handler = HasBadDrop;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.set_data(Panics);
        conn.recv(&mut [0; 1]).await?;
        Ok(())
    }

    fn handler(self) -> HasBadDrop {
        HasBadDrop { _panics: Panics }
    }
}

impl Handler for HasBadDrop {
    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Close
    }
}

scenario! {
    fn a_destructor_that_panics_does_not_take_the_worker_with_it(world) {
        let server = world.serve_with(BadDrop, |server| server.workers(1));
        let address = server.local_addr();
        world.run(async move {
            for _ in 0..3 {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"x").await.unwrap();
                drop(recv_all(&mut conn).await);
            }
        });
        assert_eq!(world.stop(&server).accepted, 3);
    }
}

#[test]
fn a_factory_that_panics_loses_that_connection_only() {
    let _watchdog = Watchdog::new("a_factory_that_panics_loses_that_connection_only");
    let server = Server::bind("127.0.0.1:0").workers(1);
    let count = std::sync::atomic::AtomicUsize::new(0);
    let server = server
        .start_events(move || {
            let first = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            assert!(!first, "the first of them");
            Echo
        })
        .unwrap();
    let address = server.local_addr();
    wharf::run(async move {
        // The reset may come before the connect is over.
        if let Ok(mut conn) = Client::connect(address).await {
            assert!(conn.recv(&mut [0; 1]).await.is_err());
        }
        let mut conn = Client::connect(address).await.unwrap();
        conn.send(b"x").await.unwrap();
        conn.recv_exact(&mut [0; 1]).await.unwrap();
    })
    .unwrap();
    let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
    assert_eq!(stats.closed(CloseReason::HandlerPanicked), 1);
}

#[test]
fn a_connect_outside_a_worker_panics_with_advice() {
    let outside = std::panic::catch_unwind(|| {
        let mut connecting = std::pin::pin!(Client::connect("127.0.0.1:80").into_future());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = connecting.as_mut().poll(&mut context);
    });
    let panic = outside.unwrap_err();
    let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(message.contains("wharf::run"), "{message}");
}

#[test]
fn the_addresses_of_a_name_are_tried_in_turn_within_one_deadline() {
    let mut simulation = Simulation::new(3);
    let dark: IpAddr = "10.0.0.8".parse().unwrap();
    simulation.blackhole(dark);
    simulation.name("many.test", &[dark, "10.0.0.9".parse().unwrap(), "10.0.0.1".parse().unwrap()]);
    let server = simulation.serve_events(Server::bind("10.0.0.1:7"), || Echo).unwrap();
    let outcome = simulation.client("10.0.0.2", async {
        let mut conn = Client::connect("many.test:7").within(Duration::from_secs(3)).await?;
        conn.send(b"hello").await?;
        conn.recv_exact(&mut [0; 5]).await?;
        Ok::<_, wharf::Error>(conn.peer_addr())
    });
    let unknown = simulation.client("10.0.0.3", async { Client::connect("no.test:7").await });
    simulation.run();
    assert_eq!(outcome.take().unwrap().unwrap(), "10.0.0.1:7".parse().unwrap());
    let error = unknown.take().unwrap().unwrap_err();
    assert_eq!((error.operation(), error.kind()), ("connect", wharf::ErrorKind::System));
    assert_eq!(server.stats().accepted, 1);
}

#[test]
fn a_drain_ends_although_a_handler_goes_on_connecting() {
    let mut simulation = Simulation::new(5);
    let server = simulation
        .serve(Server::bind("10.0.0.1:7"), |conn: Connection| async move {
            let _conn = conn;
            loop {
                drop(Client::connect("10.0.0.9:1").await);
            }
        })
        .unwrap();
    let outcome = simulation.client("10.0.0.2", async {
        let mut conn = Client::connect("10.0.0.1:7").await?;
        conn.recv(&mut [0; 1]).await
    });
    simulation.run_for(Duration::from_secs(1));
    server.drain(Duration::from_secs(2));
    simulation.run_for(Duration::from_secs(10));
    assert!(server.is_stopped(), "{:#?}", server.stats());
    assert!(outcome.take().unwrap().is_err());
}

#[test]
fn time_that_was_spent_before_a_deadline_is_set_does_not_count_against_it() {
    let _watchdog = Watchdog::new("time_that_was_spent_before_a_deadline_is_set_does_not_count_against_it");
    let (busy, within) = (Duration::from_millis(60), Duration::from_millis(40));
    wharf::run(async move {
        // A worker that is busy does not look at the clock.
        std::thread::sleep(busy);
        let began = std::time::Instant::now();
        wharf::sleep(within).await;
        assert!(began.elapsed() >= within, "{:?}", began.elapsed());
        std::thread::sleep(busy);
        let began = std::time::Instant::now();
        wharf::within(within, std::future::pending::<()>()).await.unwrap_err();
        assert!(began.elapsed() >= within, "{:?}", began.elapsed());
    })
    .unwrap();
}

#[test]
fn time_that_a_handler_spent_does_not_count_against_the_deadline_that_it_sets() {
    let _watchdog =
        Watchdog::new("time_that_a_handler_spent_does_not_count_against_the_deadline_that_it_sets");
    let (busy, deadline) = (Duration::from_millis(100), Duration::from_millis(80));
    let server = Server::bind("127.0.0.1:0").workers(1).start(move |mut conn| async move {
        conn.recv_exact(&mut [0; 1]).await?;
        std::thread::sleep(busy);
        let began = std::time::Instant::now();
        conn.set_deadline(deadline);
        conn.closed().await;
        assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
        Ok(())
    });
    let server = server.unwrap();
    let address = server.local_addr();
    wharf::run(async move {
        let mut conn = Client::connect(address).await.unwrap();
        conn.send(b"x").await.unwrap();
        assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0, "the deadline closes gracefully");
    })
    .unwrap();
    let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
    assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Handler)), 1, "{stats:?}");
}

#[test]
fn a_run_that_panics_resets_its_connections_and_leaves_the_thread_usable() {
    let _watchdog = Watchdog::new("a_run_that_panics_resets_its_connections_and_leaves_the_thread_usable");
    let server = Server::bind("127.0.0.1:0").workers(1).start(|conn| Echo.run(conn)).unwrap();
    let address = server.local_addr();
    let panicked = std::panic::catch_unwind(|| {
        wharf::run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"x").await.unwrap();
            conn.recv_exact(&mut [0; 1]).await.unwrap();
            let _other = wharf::spawn(async move { Client::connect(address).await.unwrap().closed().await });
            panic!("the client fails");
        })
    });
    assert!(panicked.is_err());
    wharf::run(async move {
        let mut conn = Client::connect(address).await.unwrap();
        conn.send(b"x").await.unwrap();
        conn.recv_exact(&mut [0; 1]).await.unwrap();
    })
    .unwrap();
    let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
    assert_eq!((stats.closed(CloseReason::PeerReset), stats.closed(CloseReason::Peer)), (1, 1), "{stats:?}");
}
