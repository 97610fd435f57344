//! A storm of accepts, receives, sends and connects that are given up after 0 to 2 ms, on both sides: no connection, byte,
//! buffer or descriptor is lost.
//!
//! `WHARF_STORM` says how many operations are raced on each engine; without it a part of what a release has to stand:
//!
//! ```sh
//! WHARF_STORM=100000 cargo test --release --test storm -- --nocapture
//! ```
//!
//! What is checked:
//!
//! * **Bytes.** Each side sends a pattern, by messages that go whole or not at all, and knows how much of it was accepted. What
//!   the other side reads is that pattern, in order; and where the conversation ends in order, all of it.
//! * **Connections.** The server accepts each connection that a client got, and none that nobody asked for; each has one
//!   reason. The listener's queue is longer than what the server may hold, so clients give up while they wait in it.
//! * **Buffers.** There are some hundreds for each worker: were one lost in a hundred operations, the bulk transfer at the end
//!   would find none.
//! * **Descriptors** are as many as before. That is why this file has one test.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and tells its figures"
)]

mod common;

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use wharf::{Backend, CloseReason, Connection, Limits, Result, Server};

use common::*;

/// Operations on each engine, unless `WHARF_STORM` says otherwise.
const OPERATIONS: u64 = 20_000;
/// So many times longer than others is a connect awaited that shakes hands: some succeed, and some are given up.
const HANDSHAKE: u32 = 25;
const CLIENTS: u64 = 48;
/// So many of them are held at once; the others wait in the listener's queue, or give up there.
const CONNECTIONS: usize = 32;
/// The most bytes of one conversation, each way.
const LENGTH_MAX: usize = 20_000;
const MESSAGE_MAX: usize = 9_000;
/// What goes both ways when the storm is over.
const BULK: usize = 8 * 1024 * 1024;
/// A conversation that stands still for so long hangs.
const STANDSTILL: Duration = Duration::from_secs(20);

/// What happened, on both sides together.
#[derive(Default)]
struct Tally {
    operations: AtomicU64,
    given_up: AtomicU64,
    connected: AtomicU64,
    connects_given_up: AtomicU64,
    handlers: AtomicU64,
    /// Conversations whose every byte was seen to arrive, by clients
    complete: AtomicU64,
    /// and by handlers,
    handled: AtomicU64,
    /// who may have seen all before the client broke off.
    broken_off: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}

/// Up to 2 ms, and often much less.
fn moment(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_micros(rng.u64(0..=2000) >> rng.u32(0..8))
}

/// Awaits `future` for a moment, or for a few polls, and drops it then.
async fn raced<F: Future>(tally: &Tally, rng: &mut fastrand::Rng, future: F) -> Option<F::Output> {
    add(&tally.operations);
    let outcome = match rng.u8(0..4) {
        0 => polled(rng.usize(0..4), future).await,
        _ => wharf::within(moment(rng), future).await.ok(),
    };
    if outcome.is_none() {
        add(&tally.given_up);
    }
    outcome
}

async fn polled<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut done = 0;
    poll_fn(|cx| {
        if done == polls {
            return Poll::Ready(None);
        }
        done += 1;
        let outcome = future.as_mut().poll(cx);
        if outcome.is_pending() {
            // Nobody else may ever wake us for the next poll.
            cx.waker().wake_by_ref();
        }
        outcome.map(Some)
    })
    .await
}

/// One side of a conversation.
struct Side<'a> {
    tally: &'a Tally,
    rng: &'a mut fastrand::Rng,
    /// Bytes of the pattern that the connection has accepted, of so many.
    sent: usize,
    length: usize,
    received: usize,
    ended: bool,
}

impl<'a> Side<'a> {
    fn new(tally: &'a Tally, rng: &'a mut fastrand::Rng, length: usize) -> Side<'a> {
        Side { tally, rng, sent: 0, length, received: 0, ended: false }
    }

    /// Sends all, finishes, and receives to the end; every operation may be given up.
    async fn talk(&mut self, conn: &mut Connection) -> Result<()> {
        let mut finished = false;
        let mut since = Instant::now();
        while !finished || !self.ended {
            let before = (self.sent, self.received, finished, self.ended);
            if !self.ended && (finished || self.rng.bool()) {
                self.receive(conn).await?;
            } else if self.sent < self.length {
                self.send(conn).await?;
            } else if !finished {
                finished = raced(self.tally, self.rng, conn.finish()).await.transpose()?.is_some();
            }
            if before != (self.sent, self.received, finished, self.ended) {
                since = Instant::now();
            }
            assert!(since.elapsed() < STANDSTILL, "{before:?} of {}: {:?}", self.length, conn.counts());
        }
        Ok(())
    }

    async fn send(&mut self, conn: &mut Connection) -> Result<()> {
        let end = self.length.min(self.sent + self.rng.usize(1..MESSAGE_MAX));
        let message = pattern(self.sent..end);
        let outcome = match self.rng.u8(0..4) {
            0 => raced(self.tally, self.rng, conn.send(&message)).await,
            1 => raced(self.tally, self.rng, conn.send_owned(message)).await,
            2 => {
                add(&self.tally.operations);
                let outcome = conn.send(&message).within(moment(self.rng)).await;
                self.unless_late(outcome)
            }
            _ => {
                raced(self.tally, self.rng, conn.flush()).await.transpose()?;
                None
            }
        };
        if outcome.transpose()?.is_some() {
            self.sent = end;
        }
        Ok(())
    }

    async fn receive(&mut self, conn: &mut Connection) -> Result<()> {
        let mut buf = vec![0; self.rng.usize(1..=MESSAGE_MAX)];
        let outcome = match self.rng.u8(0..4) {
            0 => raced(self.tally, self.rng, conn.recv(&mut buf)).await,
            1 => {
                add(&self.tally.operations);
                let outcome = conn.recv(&mut buf).within(moment(self.rng)).await;
                self.unless_late(outcome)
            }
            2 => {
                // At the end there may be less than was asked for; then `recv` finds it.
                let exact = raced(self.tally, self.rng, conn.recv_exact(&mut buf)).await;
                exact.filter(Result::is_ok).map(|_| Ok(buf.len()))
            }
            _ => {
                let chunk = raced(self.tally, self.rng, conn.recv_chunk()).await.transpose()?;
                chunk.map(|chunk| {
                    buf = chunk.as_deref().unwrap_or_default().to_vec();
                    Ok(buf.len())
                })
            }
        };
        match outcome.transpose()? {
            Some(0) => self.ended = true,
            Some(n) => {
                assert_pattern(&buf[..n], self.received);
                self.received += n;
            }
            None => {}
        }
        Ok(())
    }

    fn unless_late<T>(&self, outcome: Result<T>) -> Option<Result<T>> {
        if outcome.as_ref().is_err_and(wharf::Error::is_timeout) {
            add(&self.tally.given_up);
            return None;
        }
        Some(outcome)
    }
}

/// So small that everybody has to wait now and then.
fn limits() -> Limits {
    Limits::default().receive_buffer(5_000).send_marks(2_000, 20_000).send_max(100_000)
}

/// Begins to connect, and may give up.
async fn connect(
    wire: Wire,
    tally: &Tally,
    rng: &mut fastrand::Rng,
    address: SocketAddr,
) -> Option<Connection> {
    let client = wire.client(address).limits(limits());
    let patience = moment(rng) * if wire == Wire::Plain { 1 } else { HANDSHAKE };
    let outcome = match rng.u8(0..3) {
        0 => {
            add(&tally.operations);
            Some(client.open().within(patience).await)
        }
        1 if wire != Wire::Plain => {
            add(&tally.operations);
            wharf::within(patience, client.open().into_future()).await.ok()
        }
        _ => raced(tally, rng, client.open().into_future()).await,
    };
    match outcome {
        Some(Ok(conn)) => {
            add(&tally.connected);
            Some(conn)
        }
        Some(Err(error)) => {
            assert!(error.is_timeout(), "{error}");
            add(&tally.connects_given_up);
            None
        }
        None => {
            add(&tally.connects_given_up);
            None
        }
    }
}

/// What a client does until there were enough operations.
async fn client(wire: Wire, tally: Arc<Tally>, seed: u64, address: SocketAddr, enough: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    while count(&tally.operations) < enough {
        let Some(mut conn) = connect(wire, &tally, &mut rng, address).await else { continue };
        match rng.u8(0..8) {
            // Given up while it may wait in the listener's queue.
            0..2 => drop(conn),
            2..4 => drop(conn.reset()),
            kind => converse(&tally, &mut rng, &mut conn, kind == 4).await,
        }
    }
}

/// Says how many bytes each side is to send, and sends them; or breaks off somewhere on the way.
async fn converse(tally: &Tally, rng: &mut fastrand::Rng, conn: &mut Connection, breaks_off: bool) {
    let length = rng.usize(1..LENGTH_MAX);
    conn.send(&(length as u64).to_be_bytes()).await.unwrap();
    let mut side = Side::new(tally, rng, length);
    if breaks_off {
        let after = Duration::from_millis(side.rng.u64(0..10));
        drop(wharf::within(after, side.talk(conn)).await);
        add(&tally.broken_off);
        drop(conn.reset());
        return;
    }
    side.talk(conn).await.unwrap();
    assert_eq!(side.received, length, "all that the server had accepted");
    add(&tally.complete);
}

/// What the server does with a connection.
async fn serve(wire: Wire, tally: Arc<Tally>, mut conn: Connection, address: SocketAddr) -> Result<()> {
    add(&tally.handlers);
    let mut rng = fastrand::Rng::with_seed(conn.peer_addr().port().unwrap_or_default().into());
    let mut length = [0; 8];
    conn.recv_exact(&mut length).await?;
    let length = u64::from_be_bytes(length) as usize;
    if length > LENGTH_MAX {
        return echo(conn, length).await;
    }
    if rng.u8(0..4) == 0 {
        // A handler is a client as well.
        drop(connect(wire, &tally, &mut rng, address).await);
    }
    let mut side = Side::new(&tally, &mut rng, length);
    side.talk(&mut conn).await?;
    assert_eq!(side.received, length, "all that the client had accepted");
    add(&tally.handled);
    Ok(())
}

async fn echo(mut conn: Connection, length: usize) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let Some(chunk) = conn.recv_chunk().await? else { return Ok(()) };
        left -= chunk.len();
        conn.send(&chunk).await?;
    }
    Ok(())
}

/// Much goes both ways at once: there are buffers. And what waited in the listener's queue before it has been accepted.
async fn transfer(wire: Wire, address: SocketAddr) {
    let (mut read, mut write) = wire.client(address).open().await.unwrap().split();
    let sending = wharf::spawn(async move {
        write.send(&(BULK as u64).to_be_bytes()).await.unwrap();
        for offset in (0..BULK).step_by(64 * 1024) {
            write.send(&pattern(offset..offset + 64 * 1024)).await.unwrap();
        }
    });
    let mut received = 0;
    while let Some(chunk) = read.recv_chunk().within(STANDSTILL).await.unwrap() {
        assert_pattern(&chunk, received);
        received += chunk.len();
    }
    assert_eq!(received, BULK);
    sending.await.unwrap();
}

fn storm(wire: Wire, backend: Backend, operations: u64) {
    let began = Instant::now();
    let tally = Arc::new(Tally::default());
    // Its own address is known when it has started, and no connection comes before.
    let address = Arc::new(std::sync::OnceLock::new());
    let limits = limits().connections(CONNECTIONS);
    let server = wire.server(Server::bind("127.0.0.1:0").workers(2).backend(backend).limits(limits));
    let (books, own) = (tally.clone(), address.clone());
    let server = server.start(move |conn| serve(wire, books.clone(), conn, *own.wait())).unwrap();
    let address = *address.get_or_init(|| server.local_addr());

    let books = tally.clone();
    wharf::run_on(backend, async move {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|seed| wharf::spawn(client(wire, books.clone(), seed, address, operations)))
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        transfer(wire, address).await;
    })
    .unwrap();

    let gone = Instant::now();
    // A handler's last connection may be in the listener's queue; and the last client has moved the bulk.
    while server.connections() > 0 || server.stats().accepted <= count(&tally.connected) {
        assert!(gone.elapsed() < STANDSTILL, "{} are left: {:?}", server.connections(), server.stats());
        std::thread::yield_now();
    }
    let stats = server.drain(Duration::from_secs(10)).wait().unwrap();
    let closed: u64 = stats.closes.iter().map(|(_, count)| count).sum();
    assert_eq!((closed, server.connections()), (stats.accepted, 0), "{stats:?}");
    // Who gives up within a handshake has none.
    let ready = if wire == Wire::Plain { stats.accepted } else { stats.handshakes };
    assert_eq!(count(&tally.handlers), ready, "each had a handler: {stats:?}");
    assert_eq!(stats.closed(CloseReason::HandlerPanicked), 0, "{stats:?}");
    let (complete, handled) = (count(&tally.complete), count(&tally.handled));
    let most = complete + count(&tally.broken_off);
    assert!(
        (complete..=most).contains(&handled),
        "{complete} to {most} ended in order, not {handled}: {stats:?}"
    );
    let connected = count(&tally.connected) + 1;
    let tried = connected + count(&tally.connects_given_up);
    assert!((connected..=tried).contains(&stats.accepted), "{connected} to {tried}: {stats:?}");
    eprintln!(
        "{backend}, {wire:?}: {} operations, {} given up; {connected} connected, {} connects given up, {} accepted; {} conversations \
         complete; {stats:?}; {:?}",
        count(&tally.operations),
        count(&tally.given_up),
        count(&tally.connects_given_up),
        stats.accepted,
        complete,
        began.elapsed(),
    );
}

#[test]
fn a_storm_of_operations_given_up_loses_nothing() {
    const NAME: &str = "a_storm_of_operations_given_up_loses_nothing";
    let operations = std::env::var("WHARF_STORM").ok().map_or(OPERATIONS, |number| number.parse().unwrap());
    let _watchdog = Watchdog::patient(NAME, Duration::from_secs(60 + operations / 200));
    raise_descriptor_limit();
    for backend in backends(NAME) {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        storm(Wire::Plain, backend, operations);
        #[cfg(feature = "tls")]
        storm(Wire::Tls, backend, operations / 2);
        let ended = Instant::now();
        while open() != before {
            assert!(ended.elapsed() < STANDSTILL, "{backend}: {} descriptors, and {before} before", open());
        }
    }
}
