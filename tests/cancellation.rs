//! Futures that are dropped at any of their await points: what goes through a connection is the same as if they had not
//! been.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use wharf::{Client, CloseReason, Connection, Limits, Result};

use common::behaviours::*;
use common::*;

/// Polls `future` at most `polls` times and drops it then; `None` if it was not done.
async fn interrupted<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|cx| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        let outcome = future.as_mut().poll(cx);
        if outcome.is_pending() {
            // Nobody else may ever wake us for the next step.
            cx.waker().wake_by_ref();
        }
        outcome.map(Some)
    })
    .await
}

/// Lets others have their turn.
async fn pause(rng: &mut fastrand::Rng) {
    wharf::sleep(Duration::from_micros(rng.u64(0..200))).await;
}

/// Reads the pattern to its end by every operation that reads, most of which are interrupted.
async fn read_interrupted(conn: &mut Connection, rng: &mut fastrand::Rng) -> Result<usize> {
    let mut offset = 0;
    let mut buf = vec![0; 9000];
    loop {
        let polls = rng.usize(0..4);
        let size = rng.usize(1..=buf.len());
        let part = &mut buf[..size];
        let tiny = Duration::from_micros(rng.u64(0..300));
        let n = match rng.u8(0..6) {
            0 => interrupted(polls, conn.recv(part)).await,
            1 => Some(conn.recv(part).within(tiny).await).filter(|outcome| !is_late(outcome)),
            2 => {
                let outcome = interrupted(polls, conn.recv_exact(part)).await;
                outcome.filter(Result::is_ok).map(|outcome| outcome.map(|()| size))
            }
            3 => {
                let outcome = conn.recv_exact(part).within(tiny).await;
                outcome.is_ok().then_some(Ok(size))
            }
            4 => {
                let received = interrupted(polls, conn.recv_chunk()).await;
                received.map(|chunk| copied(chunk, &mut buf))
            }
            _ => {
                let chunk = conn.recv_chunk().within(tiny).await;
                Some(chunk).filter(|outcome| !is_late(outcome)).map(|chunk| copied(chunk, &mut buf))
            }
        };
        match n.transpose()? {
            Some(0) => return Ok(offset),
            Some(n) => {
                assert_pattern(&buf[..n], offset);
                offset += n;
            }
            None => pause(rng).await,
        }
    }
}

fn is_late<T>(outcome: &Result<T>) -> bool {
    outcome.as_ref().is_err_and(wharf::Error::is_timeout)
}

fn copied(chunk: Result<Option<wharf::Chunk>>, buf: &mut Vec<u8>) -> Result<usize> {
    let chunk = chunk?;
    let bytes = chunk.as_deref().unwrap_or_default();
    buf.resize(buf.len().max(bytes.len()), 0);
    buf[..bytes.len()].copy_from_slice(bytes);
    Ok(bytes.len())
}

/// Writes `total` bytes of the pattern by every operation that writes, most of which are interrupted.
async fn write_interrupted(conn: &mut Connection, rng: &mut fastrand::Rng, total: usize) -> Result<()> {
    let mut sent = 0;
    while sent < total {
        let end = total.min(sent + rng.usize(1..8000));
        let message = pattern(sent..end);
        let polls = rng.usize(0..4);
        let tiny = Duration::from_micros(rng.u64(0..300));
        let outcome = match rng.u8(0..5) {
            0 => interrupted(polls, conn.send(&message)).await,
            1 => interrupted(polls, conn.send_owned(message)).await,
            2 => Some(conn.send(&message).within(tiny).await).filter(|outcome| !is_late(outcome)),
            3 => {
                let message = Bytes::from(message);
                Some(conn.send_owned(message).within(tiny).await).filter(|outcome| !is_late(outcome))
            }
            _ => {
                interrupted(polls, conn.flush()).await.transpose()?;
                None
            }
        };
        match outcome.transpose()? {
            Some(()) => sent = end,
            None => pause(rng).await,
        }
    }
    Ok(())
}

const TOTAL: usize = 200_000;

fn give_up_reads(world: &mut World, wire: Wire) {
    let server = world.serve_with(Stream { total: TOTAL, piece: 3000 }, |server| wire.server(server));
    let (address, seed) = (server.local_addr(), world.seed());
    world.run(async move {
        let mut rng = fastrand::Rng::with_seed(seed);
        // A small buffer, so that the flow stops and goes on.
        let limits = Limits::default().receive_buffer(10_000);
        let mut conn = wire.client(address).limits(limits).open().await.unwrap();
        assert_eq!(read_interrupted(&mut conn, &mut rng).await.unwrap(), TOTAL);
    });
    assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
}

scenario! {
    fn reads_given_up_at_any_point_lose_nothing(world) {
        give_up_reads(world, Wire::Plain);
    }
}

/// Polls `future` with a waker of its own each time, as combinators do that poll only what was woken.
async fn with_foreign_wakers<F: Future>(future: F) -> F::Output {
    struct Foreign(Waker);

    impl Wake for Foreign {
        fn wake(self: Arc<Self>) {
            self.0.wake_by_ref();
        }
    }

    let mut future = pin!(future);
    poll_fn(|cx| {
        let waker = Waker::from(Arc::new(Foreign(cx.waker().clone())));
        future.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

scenario! {
    fn futures_are_woken_whoever_polls_them(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            with_foreign_wakers(async move {
                let limits = Limits::default().send_marks(2000, 6000).send_max(10_000);
                let mut conn = Client::new(address).limits(limits).open().await.unwrap();
                for round in 0..10 {
                    wharf::sleep(Duration::from_micros(round)).await;
                    let message = pattern(0..9000);
                    conn.send(&message).await.unwrap();
                    conn.flush().await.unwrap();
                    let mut echo = vec![0; message.len()];
                    conn.recv_exact(&mut echo).within(Duration::from_secs(5)).await.unwrap();
                    assert!(echo == message);
                }
                let told = wharf::spawn(with_foreign_wakers(conn.closed()));
                assert_eq!(with_foreign_wakers(conn.close()).await, CloseReason::Local);
                assert_eq!(told.await.unwrap(), CloseReason::Local);
            })
            .await;
        });
    }
}

fn give_up_sends(world: &mut World, wire: Wire) {
    let server = world.serve_with(Checksum, |server| wire.server(server));
    let (address, seed) = (server.local_addr(), world.seed());
    world.run(async move {
        let mut rng = fastrand::Rng::with_seed(seed);
        let limits = Limits::default().send_marks(2000, 6000).send_max(10_000);
        let mut conn = wire.client(address).limits(limits).open().await.unwrap();
        write_interrupted(&mut conn, &mut rng, TOTAL).await.unwrap();
        while interrupted(rng.usize(0..3), conn.finish()).await.transpose().unwrap().is_none() {
            pause(&mut rng).await;
        }
        assert_eq!(recv_all(&mut conn).await.unwrap(), checksum(&pattern(0..TOTAL)));
    });
    let stats = world.stop(&server);
    assert!(wire.is_count_of(stats.received, TOTAL), "{stats:?}");
    assert_eq!(stats.closed(CloseReason::Peer), 1);
}

scenario! {
    fn sends_given_up_at_any_point_go_out_whole_or_not_at_all(world) {
        give_up_sends(world, Wire::Plain);
    }
}

/// Reads everything, interrupted, then writes as much, interrupted.
#[derive(Clone)]
struct Interrupted(u64);

impl Behaviour for Interrupted {
    type Handler = Discard;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut rng = fastrand::Rng::with_seed(!self.0);
        let total = read_interrupted(&mut conn, &mut rng).await?;
        write_interrupted(&mut conn, &mut rng, total).await
    }

    fn handler(self) -> Discard {
        Discard
    }
}

fn give_up_at_both_ends(world: &mut World, wire: Wire) {
    let limits = Limits::default().receive_buffer(5000).send_marks(2000, 6000).send_max(10_000);
    let server =
        world.serve_with(Interrupted(world.seed()), |server| wire.server(server).limits(limits.clone()));
    let (address, seed) = (server.local_addr(), world.seed());
    world.run(async move {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut conn = wire.client(address).limits(limits).open().await.unwrap();
        write_interrupted(&mut conn, &mut rng, TOTAL / 2).await.unwrap();
        conn.finish().await.unwrap();
        assert_eq!(read_interrupted(&mut conn, &mut rng).await.unwrap(), TOTAL / 2);
    });
    let stats = world.stop(&server);
    assert!(wire.is_count_of(stats.received, TOTAL / 2), "{stats:?}");
    assert!(wire.is_count_of(stats.sent, TOTAL / 2), "{stats:?}");
}

scenario! {
    async fn both_ends_can_give_up_all_the_time(world) {
        give_up_at_both_ends(world, Wire::Plain);
    }
}

fn give_up_connects(world: &mut World, wire: Wire) {
    let server = world.serve_with(Echo, |server| wire.server(server));
    let address = server.local_addr();
    world.run(async move {
        for polls in 0..12 {
            if let Some(conn) = interrupted(polls % 4, wire.client(address).open().into_future()).await {
                drop(conn.unwrap());
            }
            let tiny = Duration::from_micros(50 * polls as u64);
            if let Ok(conn) = wire.client(address).open().within(tiny).await {
                drop(conn);
            }
        }
        let mut conn = wire.client(address).open().await.unwrap();
        conn.send(b"x").await.unwrap();
        conn.recv_exact(&mut [0; 1]).await.unwrap();
    });
}

scenario! {
    fn connects_given_up_at_any_point_leave_nothing(world) {
        give_up_connects(world, Wire::Plain);
    }
}

scenario! {
    fn a_closed_wait_given_up_changes_nothing(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            for polls in 0..4 {
                assert!(interrupted(polls, conn.closed()).await.is_none());
                conn.send(b"x").await.unwrap();
                conn.recv_exact(&mut [0; 1]).await.unwrap();
            }
            for polls in 0..3 {
                // The first call closes, whatever becomes of its future.
                interrupted(polls, conn.close()).await;
            }
            assert_eq!(conn.closed().await, CloseReason::Local);
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

#[cfg(feature = "tls")]
mod over_tls {
    use super::*;

    scenario! {
        fn reads_given_up_lose_nothing(world) {
            give_up_reads(world, Wire::Tls);
        }
    }

    scenario! {
        fn sends_given_up_go_out_whole_or_not_at_all(world) {
            give_up_sends(world, Wire::Tls);
        }
    }

    scenario! {
        async fn both_ends_can_give_up(world) {
            give_up_at_both_ends(world, Wire::Tls);
        }
    }

    scenario! {
        /// Within the handshake, too.
        fn connects_given_up_leave_nothing(world) {
            give_up_connects(world, Wire::Tls);
        }
    }
}
