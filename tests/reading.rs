//! Reading to large buffers of the reader's own: bytes may go there past every queue, and nobody can tell.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::time::Duration;

use wharf::{Client, CloseReason, Connection, Deadlines, Limits, Result};

use common::*;

/// Polls `future` so many times, with a turn of the others in between, and gives it up if it is not done then.
async fn poll_for<F: Future>(times: u8, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for time in 0..times {
        if time > 0 {
            futures_lite::future::yield_now().await;
        }
        if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Some(output);
        }
    }
    None
}

/// Reads the pattern to its end: now to a large buffer, now to a small one, now by chunks, or a whole message; and gives reads up.
async fn read_by_turns(conn: &mut Connection, rng: &mut fastrand::Rng) -> Result<usize> {
    let mut offset = 0;
    let mut buf = vec![0; 20_000];
    loop {
        let n = match rng.u8(0..11) {
            0..4 => {
                let size = rng.usize(4096..=buf.len());
                conn.recv(&mut buf[..size]).await?
            }
            4 => conn.recv(&mut buf[..100]).await?,
            // What is left at the end may be less.
            5 => match conn.recv_exact(&mut buf[..6000]).await {
                Err(error) if error.is_ended() => continue,
                outcome => outcome.map(|()| 6000)?,
            },
            6 => {
                let chunk = conn.recv_chunk().await?;
                let bytes = chunk.as_deref().unwrap_or_default();
                assert_pattern(bytes, offset);
                buf.resize(buf.len().max(bytes.len()), 0);
                buf[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
            7 => {
                futures_lite::future::yield_now().await;
                continue;
            }
            // A read that is given up, at once or after some time, has taken bytes only if it says so.
            8 => {
                let size = rng.usize(4096..=buf.len());
                let looks = rng.u8(1..4);
                match poll_for(looks, conn.recv(&mut buf[..size])).await {
                    Some(received) => received?,
                    None => continue,
                }
            }
            // One that is forgotten for a while has what came meanwhile.
            9 => {
                let size = rng.usize(4096..=buf.len());
                let mut recv = pin!(conn.recv(&mut buf[..size]));
                match poll_for(1, recv.as_mut()).await {
                    Some(received) => received?,
                    None => {
                        for _ in 0..rng.u8(0..4) {
                            futures_lite::future::yield_now().await;
                        }
                        recv.await?
                    }
                }
            }
            _ => match poll_for(1, conn.recv_exact(&mut buf[..6000])).await {
                Some(Err(error)) if error.is_ended() => continue,
                Some(received) => received.map(|()| 6000)?,
                None => continue,
            },
        };
        if n == 0 {
            return Ok(offset);
        }
        assert_pattern(&buf[..n], offset);
        offset += n;
    }
}

fn read_in_all_ways(world: &mut World, limits: &Limits) {
    const TOTAL: usize = 1 << 20;
    let (seed, limits) = (world.seed(), limits.clone());
    let server = world.serve_async(
        |server| server.limits(limits),
        move |mut conn: Connection| async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let read = read_by_turns(&mut conn, &mut rng).await?;
            assert_eq!((read, conn.counts().received), (TOTAL, TOTAL as u64));
            conn.send(b"all").await
        },
    );
    let address = server.local_addr();
    world.run(async move {
        let mut rng = fastrand::Rng::with_seed(!seed);
        let mut conn = Client::connect(address).await.unwrap();
        let mut sent = 0;
        while sent < TOTAL {
            let most = if rng.bool() { 200_000 } else { 2000 };
            let end = TOTAL.min(sent + rng.usize(1..most));
            conn.send(&pattern(sent..end)).await.unwrap();
            sent = end;
        }
        conn.finish().await.unwrap();
        let mut answer = [0; 3];
        conn.recv_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"all");
        assert_eq!(conn.recv(&mut [0; 8]).await.unwrap(), 0);
    });
    let stats = world.stop(&server);
    assert_eq!((stats.received, stats.panics), (TOTAL as u64, 0));
}

scenario! {
    async fn a_stream_is_the_same_however_it_is_read(world) {
        read_in_all_ways(world, &Limits::default());
    }
}

scenario! {
    /// What does not fit the reader's buffer fills the receive buffer at once, and the peer is made to wait.
    async fn a_stream_is_the_same_when_the_receive_buffer_is_full_all_the_time(world) {
        read_in_all_ways(world, &Limits::default().receive_buffer(1000));
    }
}

scenario! {
    /// A read that waits, and is not polled, keeps nobody from noticing what comes.
    async fn a_read_that_nobody_polls_hides_neither_bytes_nor_the_end(world) {
        const LEN: usize = 5000;
        let server = world.serve_async(
            |server| server,
            |conn| async move {
                let (mut read, mut write) = conn.split();
                let mut buf = vec![0; 16 * 1024];
                {
                    let mut recv = pin!(read.recv(&mut buf));
                    let polled = poll_fn(|cx| Poll::Ready(recv.as_mut().poll(cx))).await;
                    assert!(polled.is_pending(), "the client says nothing before it is greeted");
                    write.send(b"go").await?;
                    while write.counts().received < LEN as u64 {
                        wharf::sleep(Duration::from_millis(1)).await;
                    }
                    write.send(b"on").await?;
                    write.hangup().await;
                    assert_eq!(recv.await?, LEN);
                }
                assert_pattern(&buf[..LEN], 0);
                assert_eq!(read.recv(&mut buf).await?, 0);
                write.send(b"ok").await
            },
        );
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let mut word = [0; 2];
            conn.recv_exact(&mut word).await.unwrap();
            conn.send(&pattern(0..LEN)).await.unwrap();
            conn.recv_exact(&mut word).await.unwrap();
            conn.finish().await.unwrap();
            conn.recv_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"ok");
        });
        assert_eq!(world.stop(&server).panics, 0);
    }
}

scenario! {
    /// The handler is woken for bytes, looks at none, and reads otherwise, or later.
    async fn a_read_that_is_dropped_once_it_was_woken_leaves_all_bytes(world) {
        const LEN: usize = 100;
        const ROUNDS: usize = 20;
        let server = world.serve_async(
            |server| server,
            |mut conn: Connection| async move {
                let mut buf = vec![0; 8192];
                for round in 0..ROUNDS {
                    conn.send(&[1]).await?;
                    {
                        let mut recv = pin!(conn.recv(&mut buf));
                        let mut polls = 0;
                        // Done when it was woken, which may have been for something else.
                        poll_fn(|cx| {
                            polls += 1;
                            if polls == 2 { Poll::Ready(()) } else { recv.as_mut().poll(cx).map(drop) }
                        })
                        .await;
                        assert_eq!(polls, 2, "the peer sends nothing unasked");
                    }
                    let bytes = &mut buf[..LEN];
                    match round % 3 {
                        0 => conn.recv_exact(bytes).await?,
                        1 => {
                            let mut n = 0;
                            while n < LEN {
                                n += conn.recv(&mut bytes[n..]).await?;
                            }
                        }
                        _ => {
                            let mut n = 0;
                            while n < LEN {
                                let chunk = conn.recv_chunk().await?.unwrap();
                                bytes[n..n + chunk.len()].copy_from_slice(&chunk);
                                n += chunk.len();
                            }
                        }
                    }
                    assert_pattern(bytes, round * LEN);
                }
                Ok(())
            },
        );
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            for round in 0..ROUNDS {
                conn.recv_exact(&mut [0; 1]).await.unwrap();
                conn.send(&pattern(round * LEN..(round + 1) * LEN)).await.unwrap();
            }
            assert_eq!(conn.recv(&mut [0; 1]).await.unwrap(), 0);
        });
        assert_eq!(world.stop(&server).panics, 0);
    }
}

scenario! {
    async fn what_came_before_a_reset_is_read_and_then_the_reset_is_told(world) {
        const LEN: usize = 30_000;
        let server = world.serve_async(
            |server| server,
            |mut conn: Connection| async move {
                let mut buf = vec![0; 16 * 1024];
                let mut offset = 0;
                loop {
                    match conn.recv(&mut buf).await {
                        Ok(n) => {
                            assert!(n > 0, "it was no end in order");
                            assert_pattern(&buf[..n], offset);
                            if offset < LEN && offset + n >= LEN {
                                conn.send(b"+").await?;
                            }
                            offset += n;
                        }
                        Err(error) => {
                            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
                            assert!(offset >= LEN, "what was answered had come");
                            return Ok(());
                        }
                    }
                }
            },
        );
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(&pattern(0..LEN)).await.unwrap();
            conn.recv_exact(&mut [0; 1]).await.unwrap();
            conn.send(&pattern(LEN..2 * LEN)).await.unwrap();
            conn.reset().await;
        });
        world.wait_until("the server knows", || server.stats().closed(CloseReason::PeerReset) == 1);
        assert_eq!(world.stop(&server).panics, 0);
    }
}

/// A worker is kept busy for longer than a peer may be silent, and the peer's bytes come meanwhile. When the worker looks again,
/// something else has its turn before the read.
fn a_peer_is_not_silent_whose_bytes_wait_for_a_busy_worker(world: &mut World) {
    const IDLE: Duration = Duration::from_millis(50);
    const LEN: usize = 5000;
    let (wait, waits) = mpsc::channel();
    let (arrived, has_arrived) = mpsc::channel();
    let has_arrived = Arc::new(Mutex::new(has_arrived));
    let server = world.serve_async(
        |server| server.deadlines(Deadlines::default().idle(IDLE)),
        move |conn| {
            let (wait, has_arrived) = (wait.clone(), has_arrived.clone());
            async move {
                let (mut read, mut write) = conn.split();
                let mut buf = [0; 2 * LEN];
                {
                    let mut recv = pin!(read.recv(&mut buf));
                    assert!(
                        poll_for(1, recv.as_mut()).await.is_none(),
                        "nothing is said before this side waits"
                    );
                    // No deadline is looked at from here on until the bytes are there.
                    wait.send(()).unwrap();
                    has_arrived.lock().unwrap().recv().unwrap();
                    std::thread::sleep(2 * IDLE);
                    while write.counts().received < LEN as u64 {
                        futures_lite::future::yield_now().await;
                    }
                    assert_eq!(recv.await?, LEN);
                }
                assert_pattern(&buf[..LEN], 0);
                write.send(b"ok").await
            }
        },
    );
    let address = server.local_addr();
    world.run(async move {
        let mut conn = Client::connect(address).await.unwrap();
        let mut word = [0; 2];
        waits.recv().unwrap();
        conn.send(&pattern(0..LEN)).await.unwrap();
        conn.delivered().await.unwrap();
        arrived.send(()).unwrap();
        conn.recv_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ok");
    });
    assert_eq!(world.stop(&server).panics, 0);
}

#[test]
fn a_peer_is_not_silent_whose_bytes_wait_for_a_busy_worker_on_readiness() {
    on_readiness("busy_worker", Style::Async, a_peer_is_not_silent_whose_bytes_wait_for_a_busy_worker);
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "io_uring is a part of Linux")]
fn a_peer_is_not_silent_whose_bytes_wait_for_a_busy_worker_on_uring() {
    on_uring("busy_worker", Style::Async, a_peer_is_not_silent_whose_bytes_wait_for_a_busy_worker);
}
