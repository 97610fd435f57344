//! One test for each defect that was found: it stays fixed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_lite::FutureExt as _;
use rustix::time::{ClockId, clock_gettime};
use wharf::event::{self, Flow, Handler};
use wharf::sim::{Faults, Simulation};
use wharf::{
    Backend, Client, CloseReason, Connection, Deadline, Deadlines, ErrorKind, Limits, Result, Server,
};
use wharf::{Handover, Network, Phase, ProxyProtocol, ServerEvent, ServerHandle, SocketOptions};

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
    let count = AtomicUsize::new(0);
    let server = server
        .start_events(move || {
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
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
        let mut context = std::task::Context::from_waker(Waker::noop());
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
    let expected: std::net::SocketAddr = "10.0.0.1:7".parse().unwrap();
    assert_eq!(outcome.take().unwrap().unwrap(), expected);
    let error = unknown.take().unwrap().unwrap_err();
    assert_eq!((error.operation(), error.kind()), ("connect", ErrorKind::System));
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
        wharf::within(within, pending::<()>()).await.unwrap_err();
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

// Tasks: how they end, and when they are polled.

/// Wakes other tasks and spawns one more when it is dropped.
struct Stirs {
    others: Rc<RefCell<Vec<Waker>>>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Stirs {
    fn drop(&mut self) {
        self.others.borrow().iter().for_each(Waker::wake_by_ref);
        let late = Dropped(self.dropped.clone());
        drop(wharf::spawn(async move {
            let _late = late;
            pending::<()>().await;
        }));
        // Only if none of that has panicked.
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts its own end.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What [`leave_stirring_tasks`] adds to its count when all is over: each of two, and the task that each spawns.
const STIRRED: usize = 4;

/// Leaves tasks that never end, some of which stir the others when they are dropped.
fn leave_stirring_tasks(dropped: &Arc<AtomicUsize>) {
    let others = Rc::new(RefCell::new(Vec::new()));
    let waits = |others: Rc<RefCell<Vec<Waker>>>| {
        poll_fn(move |cx| {
            others.borrow_mut().push(cx.waker().clone());
            Poll::<()>::Pending
        })
    };
    drop(wharf::spawn(waits(others.clone())));
    for _ in 0..2 {
        let stirs = Stirs { others: others.clone(), dropped: dropped.clone() };
        drop(wharf::spawn(async move {
            let _stirs = stirs;
            pending::<()>().await;
        }));
    }
    drop(wharf::spawn(waits(others)));
}

#[test]
fn tasks_that_are_dropped_when_run_ends_can_wake_and_spawn_others() {
    let _watchdog = Watchdog::new("tasks_that_are_dropped_when_run_ends_can_wake_and_spawn_others");
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = dropped.clone();
    wharf::run(async move {
        leave_stirring_tasks(&count);
        wharf::sleep(Duration::from_millis(1)).await;
    })
    .unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), STIRRED);
}

/// Leaves stirring tasks with its worker, and waits.
#[derive(Clone)]
struct LeavesTasks(Arc<AtomicUsize>);

impl Behaviour for LeavesTasks {
    type Handler = LeavesTasks;

    async fn run(self, mut conn: Connection) -> Result<()> {
        leave_stirring_tasks(&self.0);
        conn.send(b"left").await?;
        conn.closed().await;
        Ok(())
    }

    fn handler(self) -> LeavesTasks {
        self
    }
}

impl Handler for LeavesTasks {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        leave_stirring_tasks(&self.0);
        conn.send(b"left").unwrap();
        Flow::Continue
    }

    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }
}

scenario! {
    fn tasks_that_are_dropped_when_a_server_stops_can_wake_and_spawn_others(world) {
        let dropped = Arc::new(AtomicUsize::new(0));
        let server = world.serve(LeavesTasks(dropped.clone()));
        let (address, stopping) = (server.local_addr(), server.clone());
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.recv_exact(&mut [0; 4]).await.unwrap();
            stopping.stop();
            assert!(conn.recv(&mut [0; 1]).await.is_err(), "a stop resets");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Shutdown), 1);
        assert_eq!(dropped.load(Ordering::SeqCst), STIRRED);
    }
}

#[test]
fn a_task_in_the_place_of_one_that_ended_awake_is_polled_only_when_woken() {
    let _watchdog = Watchdog::new("a_task_in_the_place_of_one_that_ended_awake_is_polled_only_when_woken");
    let polls = Rc::new(Cell::new(0));
    let count = polls.clone();
    wharf::run(async move {
        drop(wharf::spawn(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Ready(())
        })));
        // Runs behind it in the same turn, so what this spawns takes its place.
        drop(wharf::spawn(async move {
            drop(wharf::spawn(poll_fn(move |_| {
                count.set(count.get() + 1);
                Poll::<()>::Pending
            })));
        }));
        wharf::sleep(Duration::from_millis(5)).await;
    })
    .unwrap();
    assert_eq!(polls.get(), 1);
}

/// The processor time that this thread has used.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

#[test]
fn a_run_that_waits_for_its_closes_sleeps_although_a_read_was_given_up() {
    let _watchdog = Watchdog::new("a_run_that_waits_for_its_closes_sleeps_although_a_read_was_given_up");
    // A peer that does not end: the kernel connects, and nobody accepts.
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = peer.local_addr().unwrap();
    let linger = Duration::from_millis(300);
    let (began, used) = (std::time::Instant::now(), processor_time());
    wharf::run(async move {
        let client = Client::new(address).deadlines(Deadlines::default().linger(linger));
        let mut conn = client.open().await.unwrap();
        let late = conn.recv(&mut [0; 4]).within(Duration::from_millis(5)).await;
        assert!(late.unwrap_err().is_timeout());
    })
    .unwrap();
    assert!(began.elapsed() >= linger, "it has waited for the peer: {:?}", began.elapsed());
    let used = processor_time() - used;
    assert!(used < linger / 3, "{used:?} of work in {linger:?} of waiting");
}

// Drains and stops.

scenario! {
    fn a_stop_after_a_drain_ends_at_once_although_the_first_worker_has_ended(world) {
        let server = world.serve_with(Echo, |server| server.workers(2));
        let (address, stopping) = (server.local_addr(), server.clone());
        let (long, pause) = (world.time(300.0), world.time(2.0));
        let began = world.now();
        world.run(async move {
            let mut conns = Vec::new();
            for _ in 0..2 {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"x").await.unwrap();
                conn.recv_exact(&mut [0; 1]).await.unwrap();
                conns.push(conn);
            }
            // The first worker has the first of them.
            conns.remove(0).close().await;
            until("one is left", || stopping.connections() == 1).await;
            stopping.drain(long);
            // Time for the first worker to end.
            wharf::sleep(pause).await;
            stopping.stop();
            assert!(conns[0].recv(&mut [0; 1]).await.is_err(), "a stop resets");
        });
        let took = world.now() - began;
        assert!(took < world.time(100.0), "{took:?}");
        assert_eq!(world.stop(&server).closed(CloseReason::Shutdown), 1);
    }
}

/// Awaits the drain and nothing else, and counts the handlers that got there.
#[derive(Clone)]
struct AwaitsDrain(Arc<AtomicUsize>);

impl Behaviour for AwaitsDrain {
    type Handler = Discard;

    async fn run(self, conn: Connection) -> Result<()> {
        conn.draining().await;
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn handler(self) -> Discard {
        Discard
    }
}

scenario! {
    async fn who_waits_for_a_drain_goes_on_when_the_connection_is_closed(world) {
        let went_on = Arc::new(AtomicUsize::new(0));
        let server = world.serve(AwaitsDrain(went_on.clone()));
        let address = server.local_addr();
        let (connections, long) = (server.clone(), world.time(100.0));
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let draining = conn.draining();
            until("the server has it", || connections.connections() == 1).await;
            conn.reset().await;
            wharf::within(long, draining).await.expect("a client goes on as well");
            until("the handler has gone on", || went_on.load(Ordering::SeqCst) == 1).await;
        });
        assert_eq!(world.stop(&server).closed(CloseReason::PeerReset), 1);
    }
}

/// Connects to another server, and when its own drains tells whether that connection was told so as well.
#[derive(Clone)]
struct ConnectsOn {
    to: std::net::SocketAddr,
    pause: Duration,
}

impl Behaviour for ConnectsOn {
    type Handler = Discard;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let onward = Client::connect(self.to).await?;
        conn.send(b"ready").await?;
        conn.draining().await;
        let told = wharf::within(self.pause, onward.draining()).await.is_ok();
        conn.send(if told { b"told" } else { b"kept" }).await
    }

    fn handler(self) -> Discard {
        Discard
    }
}

scenario! {
    async fn a_drain_is_not_told_to_the_connections_that_its_handlers_made(world) {
        let other = world.serve(Echo);
        let behaviour = ConnectsOn { to: other.local_addr(), pause: world.time(1.0) };
        let server = world.serve(behaviour);
        let (address, draining, long) = (server.local_addr(), server.clone(), world.time(300.0));
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.recv_exact(&mut [0; 5]).await.unwrap();
            draining.drain(long);
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"kept");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

// Event style: full queues and full inboxes.

/// Has so much to send at first that it reads nothing; later it reads everything.
#[derive(Clone)]
struct FullAtFirst {
    filled: bool,
}

impl Behaviour for FullAtFirst {
    type Handler = FullAtFirst;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.send(&[7; 400_000]).await?;
        conn.flush().await?;
        while conn.recv_chunk().await?.is_some() {}
        Ok(())
    }

    fn handler(self) -> FullAtFirst {
        self
    }
}

impl Handler for FullAtFirst {
    fn received(&mut self, conn: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        if self.filled {
            return Flow::Continue;
        }
        self.filled = true;
        while conn.send(&[7; 4000]).is_ok() {}
        Flow::Consumed(0)
    }
}

scenario! {
    fn a_connection_with_a_full_inbox_receives_again_when_its_handler_takes_what_is_there(world) {
        // The queue has to be empty before the handler is offered anything: nothing else moves the connection then.
        let limits = Limits::default().send_marks(0, 400_000).send_max(800_000);
        let small = SocketOptions::default().send_buffer(64 * 1024).receive_buffer(64 * 1024);
        let sockets = small.clone();
        let server = world.serve_with(FullAtFirst { filled: false }, |server| server.limits(limits).sockets(sockets));
        let (address, pause) = (server.local_addr(), world.time(2.0));
        world.run(async move {
            let (mut read, mut write) = Client::new(address).sockets(small).open().await.unwrap().split();
            let writing = wharf::spawn(async move {
                write.send(&vec![1; 4_000_000]).within(Duration::from_secs(15)).await?;
                write.finish().within(Duration::from_secs(15)).await
            });
            wharf::sleep(pause).await;
            let mut received = 0;
            while let Some(chunk) = read.recv_chunk().within(Duration::from_secs(10)).await.unwrap() {
                received += chunk.len();
            }
            assert_eq!(received, 400_000);
            writing.await.unwrap().unwrap();
        });
        let stats = world.stop(&server);
        assert_eq!((stats.received, stats.closed(CloseReason::Peer)), (4_000_000, 1), "{stats:?}");
    }
}

scenario! {
    fn a_silent_peer_is_not_idle_while_it_reads_what_fills_the_queue(world) {
        const TOTAL: usize = 2 << 20;
        let deadlines = Deadlines::default().idle(world.time(4.0));
        let server = world.serve_with(Stream { total: TOTAL, piece: 4096 }, |server| {
            let sockets = SocketOptions::default().send_buffer(16 * 1024);
            server.deadlines(deadlines).sockets(sockets)
        });
        let (address, pause) = (server.local_addr(), world.time(0.25));
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let mut conn = Client::new(address).sockets(sockets).open().await.unwrap();
            let (mut buf, mut received) = (vec![0; 32 * 1024], 0);
            while received < TOTAL {
                let n = conn.recv(&mut buf).await.unwrap();
                assert!(n > 0, "the server has ended after {received} bytes");
                assert_pattern(&buf[..n], received);
                received += n;
                wharf::sleep(pause).await;
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

// Ends and their reasons.

/// Ends its direction at once, and waits for the other.
#[derive(Clone)]
struct FinishesFirst;

impl Behaviour for FinishesFirst {
    type Handler = FinishesFirst;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.finish().await?;
        conn.closed().await;
        Ok(())
    }

    fn handler(self) -> FinishesFirst {
        self
    }
}

impl Handler for FinishesFirst {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.finish();
        Flow::Continue
    }

    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }
}

scenario! {
    fn a_close_by_another_thread_closes_although_its_messages_came_after_the_end(world) {
        let (behaviour, notes) = Watched::new(FinishesFirst);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        let unsent = world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0, "the handler has finished");
            let remote = notes.remotes().remove(0);
            remote.send(vec![0; 1000]).unwrap();
            remote.close();
            // Whether the close was faster is open.
            let behind = if remote.send(vec![0; 5000]).is_ok() { 5000 } else { 0 };
            until("the connection closes", || remote.close_reason().is_some()).await;
            until("nothing is on its way", || remote.queued() == 0).await;
            assert_eq!(remote.close_reason(), Some(CloseReason::Local));
            drop(conn);
            until("the handler is told", || notes.closed(CloseReason::Local) == 1).await;
            1000 + behind
        });
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Local), stats.unsent), (1, unsent), "{stats:?}");
    }
}

/// Tells the test that a byte has come, and ends when the test says so; its worker has to wait for that.
#[derive(Clone)]
struct Busy {
    came: mpsc::Sender<()>,
    go_on: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Busy {
    fn work(&self) {
        self.came.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
    }
}

impl Behaviour for Busy {
    type Handler = Busy;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.recv_exact(&mut [0; 1]).await?;
        self.work();
        Ok(())
    }

    fn handler(self) -> Busy {
        self
    }
}

impl Handler for Busy {
    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        self.work();
        Flow::Close
    }
}

/// Starts a server with [`Busy`], resets its connection while the handler is at work, and returns why it ended.
fn reset_while_busy(start: impl FnOnce(Server, Busy) -> Result<ServerHandle>) -> wharf::Stats {
    let (came, coming) = mpsc::channel();
    let (going_on, go_on) = mpsc::channel();
    let busy = Busy { came, go_on: Arc::new(Mutex::new(go_on)) };
    let server = start(Server::bind("127.0.0.1:0").workers(1), busy).unwrap();
    let address = server.local_addr();
    wharf::run(async move {
        let mut conn = Client::connect(address).await.unwrap();
        conn.send(b"x").await.unwrap();
        conn.flush().await.unwrap();
        // The other worker has a thread of its own.
        wharf::sleep(Duration::ZERO).await;
        coming.recv().unwrap();
        conn.reset().await;
        // So that the reset is there before the handler ends.
        wharf::sleep(Duration::from_millis(20)).await;
        going_on.send(()).unwrap();
    })
    .unwrap();
    server.drain(Duration::from_secs(5)).wait().unwrap()
}

#[test]
fn a_reset_before_the_handlers_own_end_is_told_as_one_async() {
    let _watchdog = Watchdog::new("a_reset_before_the_handlers_own_end_is_told_as_one_async");
    let stats = reset_while_busy(|server, busy| server.start(move |conn| busy.clone().run(conn)));
    assert_eq!(stats.closed(CloseReason::PeerReset), 1, "{stats:?}");
}

#[test]
fn a_reset_before_the_handlers_own_end_is_told_as_one_event() {
    let _watchdog = Watchdog::new("a_reset_before_the_handlers_own_end_is_told_as_one_event");
    let busy_of = |busy: Busy| {
        let busy = Mutex::new(busy);
        move || busy.lock().unwrap().clone()
    };
    let stats = reset_while_busy(|server, busy| server.start_events(busy_of(busy)));
    assert_eq!(stats.closed(CloseReason::PeerReset), 1, "{stats:?}");
}

/// Answers a byte with the first half of a message, in a task that panics before the second.
#[derive(Clone)]
struct HalfAMessage;

impl Behaviour for HalfAMessage {
    type Handler = Discard;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.recv_exact(&mut [0; 1]).await?;
        let (mut read, mut write) = conn.split();
        drop(wharf::spawn(async move {
            write.send(b"half a").await.unwrap();
            panic!("before the other half");
        }));
        while read.recv_chunk().await?.is_some() {}
        Ok(())
    }

    fn handler(self) -> Discard {
        Discard
    }
}

scenario! {
    async fn a_panic_of_the_task_that_writes_does_not_look_like_an_orderly_end(world) {
        let server = world.serve(HalfAMessage);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"x").await.unwrap();
            let error = recv_all(&mut conn).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::HandlerPanicked), 1);
    }
}

/// The server closes behind bytes that count as sent and turn out not to be.
#[test]
fn the_linger_time_begins_behind_bytes_that_bounced() {
    let faults = Faults::none().handed_sends(1.0).window(10);
    let mut simulation = Simulation::with_faults(1, faults);
    let address = "10.0.0.1:7";
    let handler = |mut conn: Connection| async move { conn.send(&pattern(0..100)).await };
    let server = simulation.serve(Server::bind(address), handler).unwrap();
    let received = simulation.client("10.0.0.2", async move {
        let mut conn = Client::new(address).limits(Limits::default().receive_buffer(10)).open().await?;
        // Longer than the linger time.
        wharf::sleep(Duration::from_secs(5)).await;
        recv_all(&mut conn).await
    });
    simulation.run();
    assert_pattern(&received.take().unwrap().unwrap(), 0);
    let stats = server.stats();
    assert_eq!((stats.sent, stats.unsent), (100, 0), "{stats:?}");
}

// Options.

#[test]
fn socket_options_that_the_kernel_cannot_hold_are_refused_by_name() {
    let _watchdog = Watchdog::new("socket_options_that_the_kernel_cannot_hold_are_refused_by_name");
    let too_large = i32::MAX as usize + 1;
    let sockets = SocketOptions::default;
    for (option, sockets) in [
        ("keepalive", sockets().keepalive(Duration::from_secs(40_000))),
        ("user_timeout", sockets().user_timeout(Duration::MAX)),
        ("receive_buffer", sockets().receive_buffer(too_large)),
        ("send_buffer", sockets().send_buffer(too_large)),
    ] {
        let server = Server::bind("127.0.0.1:0").workers(1).sockets(sockets.clone());
        let refused = server.start_events(|| Echo).map(|server| server.stop().wait());
        let client = Client::new("127.0.0.1:1").sockets(sockets);
        let refusals =
            [refused.unwrap_err(), wharf::run(async { client.open().await.unwrap_err() }).unwrap()];
        for error in refusals {
            assert_eq!(error.kind(), ErrorKind::Caller, "{error}");
            assert!(error.to_string().contains(&format!("option `{option}` ")), "{error}");
        }
    }
}

// Servers.

/// What a server has told whoever watches it, of the kinds that `pick` picks.
fn told(server: Server, pick: fn(&ServerEvent<'_>) -> Option<String>) -> (Server, Arc<Mutex<Vec<String>>>) {
    let told = Arc::<Mutex<Vec<String>>>::default();
    let tell = told.clone();
    let server = server.watch(move |event| tell.lock().unwrap().extend(pick(event)));
    (server, told)
}

#[test]
fn resuming_right_after_suspending_finds_its_addresses_free() {
    let name = "resuming_right_after_suspending_finds_its_addresses_free";
    let _watchdog = Watchdog::new(name);
    for backend in backends(name) {
        let any = format!("{HOST}:0");
        let server = Server::bind(&any).listen(&*any).workers(2).backend(backend);
        let server = server.start_events(|| Echo).unwrap();
        for round in 0..300u32 {
            server.suspend();
            (0..round % 20 * 100).for_each(|_| std::hint::spin_loop());
            server.resume().unwrap();
        }
        for listener in server.listeners() {
            let mut client = TcpStream::connect(listener.address.socket().unwrap()).unwrap();
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0; 1]).unwrap();
        }
        server.stop().wait().unwrap();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_that_cannot_resume_keeps_nobody_waiting() {
    let _watchdog = Watchdog::new("a_server_that_cannot_resume_keeps_nobody_waiting");
    let path = std::env::temp_dir().join(format!("wharf-cannot-resume-{}", std::process::id()));
    let any = format!("{HOST}:0");
    let server = Server::bind(&any).listen(&*any).workers(1).handover(Handover::at(&path));
    let (server, told) =
        told(server, |event| matches!(event, ServerEvent::Suspended { .. }).then(String::new));
    let server = server.start_events(|| Echo).unwrap();
    let addresses: Vec<_> =
        server.listeners().iter().map(|listener| listener.address.socket().unwrap()).collect();
    server.suspend();
    while told.lock().unwrap().is_empty() {}
    let other = TcpListener::bind(addresses[1]).unwrap();
    assert!(server.resume().is_err());
    assert!(server.is_suspended());
    assert!(TcpStream::connect(addresses[0]).is_err(), "nobody accepts there");
    drop(other);
    server.resume().unwrap();
    for address in addresses {
        TcpStream::connect(address).unwrap();
    }
    server.stop().wait().unwrap();
}

#[test]
fn a_suspended_server_that_ends_leaves_no_file() {
    let _watchdog = Watchdog::new("a_suspended_server_that_ends_leaves_no_file");
    let path = std::env::temp_dir().join(format!("wharf-suspended-{}", std::process::id()));
    let server = Server::bind(format!("unix:{}", path.display())).workers(1).start_events(|| Echo).unwrap();
    assert!(path.exists());
    server.suspend().stop().wait().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_server_without_listeners_still_tells_of_its_drain() {
    let _watchdog = Watchdog::new("a_server_without_listeners_still_tells_of_its_drain");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::on(listener.try_clone().unwrap()).workers(1);
    let (server, told) = told(server, |event| match event {
        ServerEvent::ListenerLost { .. } => Some(String::from("lost")),
        ServerEvent::Draining { .. } => Some(String::from("draining")),
        _ => None,
    });
    let server = server.start_events(|| Echo).unwrap();
    socket2::SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
    while told.lock().unwrap().is_empty() {}
    server.stop().wait().unwrap();
    assert_eq!(*told.lock().unwrap(), ["lost", "draining"]);
}

#[test]
fn a_proxied_connection_is_told_as_closed_if_and_as_it_was_told_as_opened() {
    let _watchdog = Watchdog::new("a_proxied_connection_is_told_as_closed_if_and_as_it_was_told_as_opened");
    let proxies = ProxyProtocol::from(["127.0.0.0/8".parse::<Network>().unwrap()]);
    let server = Server::bind("127.0.0.1:0").workers(1).proxy_protocol(proxies);
    let (server, told) = told(server, |event| match event {
        ServerEvent::Opened { peer, .. } => Some(format!("opened {peer}")),
        ServerEvent::Closed { peer, .. } => Some(format!("closed {peer}")),
        _ => None,
    });
    let server = server.start_events(|| Echo).unwrap();
    for header in ["PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n", "GET / HTTP/1.1\r\n\r\n"] {
        let mut client = TcpStream::connect(server.local_addr()).unwrap();
        client.write_all(header.as_bytes()).unwrap();
        // The server may have reset it already.
        drop(client.shutdown(Shutdown::Write));
        drop(client.read_to_end(&mut Vec::new()));
    }
    let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
    assert_eq!(stats.accepted, 2, "{stats:?}");
    assert_eq!(*told.lock().unwrap(), ["opened 192.0.2.7:40000", "closed 192.0.2.7:40000"]);
}

#[test]
fn a_closed_connection_still_knows_its_listener() {
    let _watchdog = Watchdog::new("a_closed_connection_still_knows_its_listener");
    let (tell, told) = mpsc::channel();
    let server = Server::bind("127.0.0.1:0").listen("127.0.0.1:0").workers(1);
    let server = server.start(move |mut conn: Connection| {
        let tell = tell.clone();
        async move {
            conn.remote().reset();
            conn.recv(&mut [0; 1]).await.unwrap_err();
            wharf::sleep(Duration::from_millis(20)).await;
            tell.send(conn.listener()).unwrap();
            Ok(())
        }
    });
    let server = server.unwrap();
    // The reset may come before the connect is over.
    let _client = TcpStream::connect(server.listeners()[1].address.socket().unwrap());
    assert_eq!(told.recv().unwrap(), Some(1));
    server.stop().wait().unwrap();
}

#[test]
fn waiting_in_on_exit_is_an_error_and_no_standstill() {
    let _watchdog = Watchdog::new("waiting_in_on_exit_is_an_error_and_no_standstill");
    let (give, given) = mpsc::channel::<ServerHandle>();
    let (tell, told) = mpsc::channel();
    let server = Server::bind("127.0.0.1:0").workers(2).on_exit(move |_| {
        tell.send(given.recv().unwrap().wait().map(drop)).unwrap();
    });
    let server = server.start_events(|| Echo).unwrap();
    give.send(server.clone()).unwrap();
    server.stop().wait().unwrap();
    assert_eq!(told.recv().unwrap().unwrap_err().kind(), ErrorKind::Caller);
}

#[test]
fn a_worker_that_a_task_has_blocked_gets_connections_again() {
    let _watchdog = Watchdog::new("a_worker_that_a_task_has_blocked_gets_connections_again");
    let server = Server::bind("127.0.0.1:0").workers(2).watchdog(Duration::from_millis(250));
    let (server, told) = told(server, |event| match event {
        ServerEvent::WorkerBlocked { .. } => Some(String::from("worker")),
        ServerEvent::HandlerBlocked { .. } => Some(String::from("handler")),
        _ => None,
    });
    let server = server.start(|mut conn: Connection| async move {
        if conn.recv(&mut [0; 1]).await? == 1 {
            drop(wharf::spawn(async { std::thread::sleep(Duration::from_millis(750)) }));
        }
        Ok(())
    });
    let server = server.unwrap();
    let mut client = TcpStream::connect(server.local_addr()).unwrap();
    client.write_all(b"x").unwrap();
    while told.lock().unwrap().is_empty() {}
    drop(client);
    while server.connections() > 0 || !server.snapshot().blocked_workers.is_empty() {}
    let _clients = [(); 2].map(|()| TcpStream::connect(server.local_addr()).unwrap());
    while server.connections() < 2 {}
    assert_eq!(server.connections_by_worker(), [1, 1]);
    server.stop().wait().unwrap();
    assert!(told.lock().unwrap().iter().all(|blocked| blocked == "worker"), "no handler was to blame");
}

scenario! {
    fn a_shortage_of_memory_has_the_next_ones_wait_and_resets_nobody(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let limits = Limits::default().memory(1 << 20).send_max(4 << 20);
        let sockets = SocketOptions::default().send_buffer(16 * 1024).receive_buffer(16 * 1024);
        let server = world.serve_with(behaviour, |server| server.limits(limits).sockets(sockets.clone()));
        let (address, watched) = (server.local_addr(), server.clone());
        let wait = world.time(3.0);
        world.run(async move {
            let limits = Limits::default().receive_buffer(16 * 1024);
            let mut slow = Client::new(address).sockets(sockets).limits(limits).open().await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            for _ in 0..35 {
                remote.send(vec![b'x'; 100_000]).unwrap();
            }
            until("memory is short", || watched.memory_is_short()).await;
            // One worker finds out, another accepts, and may do so until it has heard of it.
            let mut let_in = Vec::new();
            let mut next = loop {
                let mut next = Client::connect(address).await.unwrap();
                next.send(b"x").await.unwrap();
                match next.recv(&mut [0; 1]).within(wait).await {
                    Ok(_) => let_in.push(next),
                    Err(early) => {
                        assert!(early.is_timeout(), "{early}");
                        break next;
                    }
                }
                assert!(let_in.len() < 3, "it accepts although memory is short");
            };
            slow.reset().await;
            next.recv_exact(&mut [0; 1]).await.unwrap();
        });
        let stats = world.stop(&server);
        assert_eq!(stats.refusals(), 0, "{stats:?}");
    }
}

#[test]
fn only_a_stream_socket_is_adopted_and_only_while_the_server_accepts() {
    let _watchdog = Watchdog::new("only_a_stream_socket_is_adopted_and_only_while_the_server_accepts");
    let server = Server::bind("127.0.0.1:0").workers(1).start(|_: Connection| pending()).unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.connect(server.local_addr()).unwrap();
    let error = server.adopt(datagrams).unwrap_err();
    assert!(error.to_string().contains("no stream socket"), "{error}");

    let client = TcpStream::connect(server.local_addr()).unwrap();
    while server.connections() == 0 {}
    server.drain(Duration::from_secs(60));
    while server.phase() != Phase::Draining {}
    let (_near, far) = UnixStream::pair().unwrap();
    let error = server.adopt(far).unwrap_err();
    assert!(error.to_string().contains("drains"), "{error}");
    drop(client);
    assert_eq!(server.stop().wait().unwrap().accepted, 1);
}

#[test]
fn a_listing_in_a_simulation_that_does_not_run_is_an_error_and_no_standstill() {
    let _watchdog =
        Watchdog::new("a_listing_in_a_simulation_that_does_not_run_is_an_error_and_no_standstill");
    let mut simulation = Simulation::new(1);
    let server = simulation.serve_events(Server::bind("10.0.0.1:7"), || Echo).unwrap();
    assert_eq!(server.list().wait().unwrap_err().kind(), ErrorKind::Caller);
    let listing = server.list();
    simulation.run();
    assert!(listing.wait().unwrap().is_empty());
}

#[test]
fn a_connection_that_cannot_be_opened_is_counted_with_its_reason() {
    let mut simulation = Simulation::new(1);
    let server = simulation.serve_events(Server::bind("10.0.0.1:7"), || Echo).unwrap();
    // A socket of the system has no place on a simulated network.
    let (near, _far) = UnixStream::pair().unwrap();
    server.adopt(near).unwrap();
    simulation.run();
    let stats = server.stats();
    assert_eq!((stats.accepted, stats.accept_errors, server.connections()), (1, 1, 0));
    assert_eq!(stats.closes, [(CloseReason::Network(std::io::ErrorKind::InvalidInput), 1)]);
}

/// Bytes whose owner panics when it is dropped.
struct Grenade(Vec<u8>);

impl AsRef<[u8]> for Grenade {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("as told by the test");
    }
}

/// A server with two workers and a connection on each, after the worker `index` has crashed.
fn crashed(index: usize, backend: Backend) -> (ServerHandle, [TcpStream; 2]) {
    let (behaviour, notes) = Watched::new(Echo);
    let server = Server::bind("127.0.0.1:0").workers(2).backend(backend);
    let server = server.start_events(move || behaviour.clone().handler()).unwrap();
    let streams = [0, 1].map(|nth| {
        let mut stream = TcpStream::connect(server.local_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        assert_eq!(server.connections_by_worker(), [1, nth]);
        stream
    });
    notes.remotes()[index].send(bytes::Bytes::from_owner(Grenade(pattern(0..10_000)))).unwrap();
    // It ends the connection of the one that crashed, in whichever way.
    let ended = (&streams[index]).read_to_end(&mut Vec::new());
    assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock));
    (server, streams)
}

fn echoes(mut stream: &TcpStream) {
    stream.write_all(b"y").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_worker_that_crashes_keeps_nobody_waiting() {
    let _watchdog = Watchdog::new("a_worker_that_crashes_keeps_nobody_waiting");
    for backend in [Backend::Readiness, Backend::Auto] {
        let (server, streams) = crashed(1, backend);
        echoes(&streams[0]);
        assert_eq!(server.list().wait().unwrap().len(), 1);
        // Who comes now goes to the one that is left.
        let next = TcpStream::connect(server.local_addr()).unwrap();
        next.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        echoes(&next);
        drop((streams, next));
        server.drain(Duration::from_secs(5));
        assert!(server.wait().unwrap_err().to_string().contains("crashed"));
        assert_eq!(server.connections(), 0);
    }
}

#[test]
fn without_the_worker_that_accepts_the_others_go_on_and_drain() {
    let _watchdog = Watchdog::new("without_the_worker_that_accepts_the_others_go_on_and_drain");
    for backend in [Backend::Readiness, Backend::Auto] {
        let (server, streams) = crashed(0, backend);
        echoes(&streams[1]);
        assert_eq!(server.list().wait().unwrap().len(), 1);
        assert!(server.listeners()[0].lost);
        assert!(TcpStream::connect(server.local_addr()).is_err(), "nobody waits in vain");
        server.drain(Duration::ZERO);
        assert!(server.wait().unwrap_err().to_string().contains("crashed"));
        assert_eq!(server.connections(), 0);
        assert_eq!(server.stats().closed(CloseReason::Shutdown), 2);
    }
}

#[test]
fn a_simulation_that_is_dropped_ends_its_servers() {
    let ends: Arc<Mutex<Vec<_>>> = Arc::default();
    let mut simulation = Simulation::new(1);
    let [stopped, running] = ["10.0.0.1:7", "10.0.0.2:7"].map(|address| {
        let ends = ends.clone();
        let on_exit = move |stats: &wharf::Stats| ends.lock().unwrap().push((address, stats.accepted));
        simulation.serve_events(Server::bind(address).workers(2).on_exit(on_exit), || Echo).unwrap()
    });
    stopped.stop();
    let conn = simulation.client("10.0.0.3", async { Client::connect("10.0.0.2:7").await });
    simulation.run();
    let ended = || ends.lock().unwrap().clone();
    assert_eq!(ended(), [("10.0.0.1:7", 0)]);
    assert!(!running.is_stopped());
    drop(simulation);
    assert_eq!(ended(), [("10.0.0.1:7", 0), ("10.0.0.2:7", 1)], "each of them once");
    assert_eq!(running.wait().unwrap().accepted, 1);
    drop(conn);
}

#[cfg(feature = "tls")]
mod tls {
    use common::tls::{acceptor, client};

    use super::*;

    scenario! {
        /// It was said to be cut off: the peer's close_notify came when nobody wanted its bytes any more.
        fn who_closes_first_by_tls_has_closed_in_order(world) {
            let server = world.serve_with(ReplyThenClose(Arc::from(*b"bye")), |server| server.tls(&acceptor()));
            let address = server.local_addr();
            world.run(async move {
                let mut conn = client(address).open().await.unwrap();
                conn.send(b"x").await.unwrap();
                assert_eq!(recv_all(&mut conn).await.unwrap(), b"bye");
                assert_eq!(conn.close().await, CloseReason::Peer);
            });
            let stats = world.stop(&server);
            assert_eq!(stats.closed(CloseReason::Local), 1, "{stats:?}");
        }
    }
}
