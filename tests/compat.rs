//! Connections under code that knows only the io traits of tokio and futures-io; and tokio's context on workers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::runtime::{Builder, Runtime};
use wharf::{
    Buffered, Client, CloseReason, Connection, Deadline, Deadlines, Error, Limits, Result, Server, WhenFull,
};

use common::*;

/// More than all queues and windows between two ends, so that both have to wait.
const LONG: usize = 3 << 20;

/// Answers each line with itself.
async fn echo_lines(mut conn: impl AsyncBufRead + AsyncWrite + Unpin) -> Result<()> {
    let mut line = String::new();
    while conn.read_line(&mut line).await? > 0 {
        conn.write_all(line.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

fn exchange_lines<S>(world: &mut World, wire: Wire, buffered: fn(Connection) -> S)
where
    S: AsyncBufRead + AsyncWrite + Unpin + 'static,
{
    let server = world.serve_async(|server| wire.server(server), move |conn| echo_lines(buffered(conn)));
    let client = wire.client(server.local_addr());
    world.run(async move {
        let mut conn = buffered(client.open().await.unwrap());
        for line in ["one\n", "\n", "a longer line, in two parts\n"] {
            let (first, second) = line.split_at(line.len() / 2);
            conn.write_all(first.as_bytes()).await.unwrap();
            conn.flush().await.unwrap();
            conn.write_all(second.as_bytes()).await.unwrap();
            let mut answer = String::new();
            conn.read_line(&mut answer).await.unwrap();
            assert_eq!(answer, line);
        }
        conn.shutdown().await.unwrap();
        assert_eq!(conn.read_line(&mut String::new()).await.unwrap(), 0);
    });
}

scenario! {
    async fn lines_go_through_buffered_streams_of_tokio(world) {
        exchange_lines(world, Wire::Plain, BufReader::new);
    }
}

scenario! {
    async fn lines_are_read_where_they_were_received(world) {
        exchange_lines(world, Wire::Plain, Buffered::new);
    }
}

#[cfg(feature = "tls")]
scenario! {
    async fn lines_are_read_where_they_were_received_under_tls(world) {
        exchange_lines(world, Wire::Tls, Buffered::new);
    }
}

scenario! {
    async fn what_is_shown_and_not_consumed_is_shown_again_and_stays_with_the_connection(world) {
        let server = world.serve(behaviours::Echo);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Buffered::new(Client::connect(address).await.unwrap());
            assert_eq!(conn.unread(), b"");
            conn.get_mut().send(b"one two three four").await.unwrap();
            assert!(conn.fill_buf().await.unwrap().starts_with(b"o"));
            conn.consume(0);
            let mut word = Vec::new();
            assert_eq!(conn.read_until(b' ', &mut word).await.unwrap(), 4);
            assert_eq!(word, b"one ");
            // As another library's trait shows it, and as a plain read takes it.
            word.clear();
            assert_eq!(futures_lite::AsyncBufReadExt::read_until(&mut conn, b' ', &mut word).await.unwrap(), 4);
            assert_eq!(word, b"two ");
            let mut three = [0; 3];
            conn.read_exact(&mut three).await.unwrap();
            assert_eq!(&three, b"thr");
            assert!(conn.fill_buf().await.unwrap().starts_with(b"e"));
            // Not all of it need have come before.
            let mut conn = conn.into_inner();
            let mut rest = [0; 7];
            conn.recv_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"ee four");

            conn.finish().await.unwrap();
            let (read, _write) = conn.split();
            let mut read = Buffered::new(read);
            assert_eq!(read.fill_buf().await.unwrap(), b"");
            assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0);
            read.consume(5);
            assert_eq!(read.unread(), b"");
        });
    }
}

#[cfg(feature = "tls")]
scenario! {
    async fn lines_go_through_buffered_streams_of_tokio_under_tls(world) {
        exchange_lines(world, Wire::Tls, BufReader::new);
    }
}

/// Copies what comes back, as tokio does it.
async fn copy_by_tokio(conn: Connection) -> Result<()> {
    let (mut read, mut write) = conn.split();
    let copied = tokio::io::copy(&mut read, &mut write).await?;
    assert_eq!(copied, LONG as u64);
    write.shutdown().await?;
    Ok(())
}

/// The same of what is shown to it, of which nothing is consumed but what was sent.
async fn copy_what_is_shown_by_futures(conn: Connection) -> Result<()> {
    let (read, mut write) = conn.split();
    let mut read = Buffered::new(read);
    loop {
        let shown = futures_lite::AsyncBufReadExt::fill_buf(&mut read).await?;
        if shown.is_empty() {
            break;
        }
        let sent = futures_lite::AsyncWriteExt::write(&mut write, shown).await?;
        futures_lite::AsyncBufReadExt::consume(&mut read, sent);
    }
    futures_lite::AsyncWriteExt::close(&mut write).await?;
    Ok(())
}

/// The same as futures-lite does it.
async fn copy_by_futures(conn: Connection) -> Result<()> {
    let (mut read, mut write) = conn.split();
    let copied = futures_lite::io::copy(&mut read, &mut write).await?;
    assert_eq!(copied, LONG as u64);
    futures_lite::AsyncWriteExt::close(&mut write).await?;
    Ok(())
}

fn copy_a_long_stream<Fut>(world: &mut World, wire: Wire, copy: fn(Connection) -> Fut)
where
    Fut: Future<Output = Result<()>> + 'static,
{
    let server = world.serve_async(|server| wire.server(server), copy);
    let client = wire.client(server.local_addr());
    world.run(async move {
        let (mut read, mut write) = client.open().await.unwrap().split();
        let writing = wharf::spawn(async move {
            write.write_all(&pattern(0..LONG)).await.unwrap();
            write.shutdown().await.unwrap();
            write
        });
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), LONG);
        assert_pattern(&received, 0);
        drop(writing.await.unwrap());
    });
}

scenario! {
    async fn tokio_copies_a_long_stream_both_ways(world) {
        copy_a_long_stream(world, Wire::Plain, copy_by_tokio);
    }
}

scenario! {
    async fn futures_io_copies_a_long_stream_both_ways(world) {
        copy_a_long_stream(world, Wire::Plain, copy_by_futures);
    }
}

scenario! {
    async fn futures_io_copies_a_long_stream_that_is_shown_to_it(world) {
        copy_a_long_stream(world, Wire::Plain, copy_what_is_shown_by_futures);
    }
}

#[cfg(feature = "tls")]
scenario! {
    async fn tokio_copies_a_long_stream_both_ways_under_tls(world) {
        copy_a_long_stream(world, Wire::Tls, copy_by_tokio);
    }
}

scenario! {
    /// Small, middling and large, with empty ones in between, and many: what arrives is all of them in order.
    async fn slices_arrive_as_one_stream(world) {
        let server = world.serve_async(|server| server, |mut conn: Connection| async move {
            let mut received = Vec::new();
            conn.read_to_end(&mut received).await?;
            assert_pattern(&received, 0);
            conn.write_u64(received.len() as u64).await?;
            Ok(())
        });
        let (address, seed) = (server.local_addr(), world.seed());
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            assert!(conn.is_write_vectored());
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut end = 0;
            for _ in 0..200 {
                let sizes: Vec<usize> =
                    (0..[rng.usize(0..5), rng.usize(60..80)][usize::from(rng.u8(0..10) == 0)]).map(|_| {
                        let below = [2, 300, 9_000, 70_000][rng.usize(0..4)];
                        rng.usize(0..below)
                    }).collect();
                let total: usize = sizes.iter().sum();
                let bytes = pattern(end..end + total);
                let mut rest = &bytes[..];
                let slices: Vec<IoSlice<'_>> = sizes.iter().map(|size| {
                    let (slice, behind) = rest.split_at(*size);
                    rest = behind;
                    IoSlice::new(slice)
                }).collect();
                let n = conn.write_vectored(&slices).await.unwrap();
                assert!(n <= total && (n > 0 || total == 0), "{n} of {total}");
                end += n;
            }
            conn.shutdown().await.unwrap();
            assert_eq!(conn.read_u64().await.unwrap(), end as u64);
        });
    }
}

/// Writes until that is pending, or refused.
async fn fill(conn: &mut Connection) -> (usize, std::io::Result<()>) {
    let bytes = pattern(0..LONG * 8);
    let mut written = 0;
    let outcome = poll_fn(|cx| {
        while written < bytes.len() {
            match Pin::new(&mut *conn).poll_write(cx, &bytes[written..]) {
                Poll::Ready(Ok(n)) => written += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
        panic!("the queue takes everything");
    })
    .await;
    (written, outcome)
}

scenario! {
    async fn a_write_waits_above_the_high_mark_until_the_peer_reads(world) {
        let (reads, ready) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (shared, told) = (reads.clone(), ready);
        let server = world.serve_async(|server| server, move |mut conn: Connection| {
            let reads = shared.clone();
            async move {
                until("the client wants it read", || reads.load(Ordering::SeqCst)).await;
                let mut received = Vec::new();
                conn.read_to_end(&mut received).await?;
                assert_pattern(&received, 0);
                conn.write_u64(received.len() as u64).await?;
                Ok(())
            }
        });
        let address = server.local_addr();
        world.run(async move {
            let limits = Limits::default().send_marks(10_000, 50_000).send_max(60_000);
            let mut conn = Client::new(address).limits(limits).open().await.unwrap();
            let (mut written, outcome) = fill(&mut conn).await;
            outcome.unwrap();
            let queued = written as u64 - conn.counts().sent;
            assert!((50_000..=60_000).contains(&queued), "{queued}");
            assert!(!told.load(Ordering::SeqCst));
            reads.store(true, Ordering::SeqCst);
            written += conn.write(&pattern(written..written + 1000)).await.unwrap();
            conn.shutdown().await.unwrap();
            assert_eq!(conn.read_u64().await.unwrap(), written as u64);
        });
    }
}

scenario! {
    async fn a_full_queue_that_is_not_waited_for_is_an_error_of_the_write(world) {
        let server = world.serve_async(|server| server, |conn: Connection| async move {
            conn.closed().await;
            Ok(())
        });
        let address = server.local_addr();
        world.run(async move {
            let limits = Limits::default().send_marks(10_000, 50_000).send_max(60_000).when_full(WhenFull::Refuse);
            let mut conn = Client::new(address).limits(limits).open().await.unwrap();
            let (written, outcome) = fill(&mut conn).await;
            let error: Error = outcome.unwrap_err().into();
            assert_eq!(error.kind(), wharf::ErrorKind::Limit, "{error}");
            assert!(written > 0);
            conn.reset().await;
        });
    }
}

scenario! {
    async fn flushed_is_what_the_kernel_has(world) {
        let server = world.serve_async(|server| server, |mut conn: Connection| async move {
            let mut received = Vec::new();
            conn.read_to_end(&mut received).await?;
            Ok(())
        });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            for size in [1, 100, 5_000, 200_000] {
                let before = conn.counts().sent;
                conn.write_all(&pattern(0..size)).await.unwrap();
                AsyncWriteExt::flush(&mut conn).await.unwrap();
                assert_eq!(conn.counts().sent - before, size as u64);
            }
        });
    }
}

scenario! {
    async fn shutdown_ends_one_direction_and_a_write_behind_it_is_a_broken_pipe(world) {
        let server = world.serve_async(|server| server, |mut conn: Connection| async move {
            let mut question = String::new();
            conn.read_to_string(&mut question).await?;
            assert_eq!(question, "what is six by seven?");
            conn.write_all(b"42").await?;
            Ok(())
        });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.write_all(b"what is six by seven?").await.unwrap();
            conn.shutdown().await.unwrap();
            conn.shutdown().await.unwrap();
            let error = conn.write_all(b"?").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
            let mut answer = String::new();
            conn.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "42");
            assert_eq!(conn.closed().await, CloseReason::Local);
        });
    }
}

scenario! {
    async fn a_reset_is_an_io_error_with_the_whole_error_within(world) {
        let server = world.serve_async(|server| server, |mut conn: Connection| async move {
            conn.read_u8().await?;
            conn.reset().await;
            Ok(())
        });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.write_u8(1).await.unwrap();
            let error = conn.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            let error: Error = error.downcast().unwrap();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset));
        });
    }
}

scenario! {
    async fn a_pending_read_has_the_idle_deadline(world) {
        let idle = world.time(2.0);
        let deadlines = Deadlines::default().idle(idle);
        let server = world.serve_async(|server| server.deadlines(deadlines), |mut conn: Connection| async move {
            conn.read_u8().await?;
            let error = conn.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            Err(error.into())
        });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.write_u8(1).await.unwrap();
            assert_eq!(conn.read(&mut [0]).await.unwrap(), 0);
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Idle)), 1, "{stats:?}");
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn what_lives_on_tokio_works_inside_handlers() {
    let name = "what_lives_on_tokio_works_inside_handlers";
    let runtime = runtime();
    for backend in backends(name) {
        let _watchdog = Watchdog::new(name);
        let behind = Server::bind("127.0.0.1:0").backend(backend).workers(1);
        let behind = behind.start(|conn| echo_lines(Buffered::new(conn))).unwrap();
        let address = behind.local_addr().to_string();
        let front = Server::bind("127.0.0.1:0").backend(backend).workers(2).tokio(runtime.handle().clone());
        let front = front.start(move |mut conn: Connection| {
            let address = address.clone();
            async move {
                // Its reactor and its timers are turned by another thread, which wakes the worker.
                tokio::time::sleep(Duration::from_millis(2)).await;
                let mut behind = tokio::net::TcpStream::connect(address).await?;
                tokio::io::copy_bidirectional(&mut conn, &mut behind).await?;
                let sum = tokio::spawn(async { 1 + 1 }).await.map_err(Error::other)?;
                assert_eq!(sum, 2);
                Ok(())
            }
        });
        let front = front.unwrap();
        let address = front.local_addr().to_string();
        wharf::run_on(backend, async move {
            for round in 0..20 {
                let mut conn = BufReader::new(Client::connect(&address).await.unwrap());
                let line = format!("round {round}\n");
                conn.write_all(line.as_bytes()).await.unwrap();
                let mut answer = String::new();
                conn.read_line(&mut answer).await.unwrap();
                assert_eq!(answer, line);
                conn.shutdown().await.unwrap();
                assert_eq!(conn.read_line(&mut answer).await.unwrap(), 0);
            }
        })
        .unwrap();
        let stats = front.stop().wait().unwrap();
        assert_eq!(stats.panics, 0, "{stats:?}");
        assert_eq!(stats.closed(CloseReason::HandlerFailed), 0, "{stats:?}");
        behind.stop().wait().unwrap();
    }
}

#[test]
fn a_worker_on_the_calling_thread_has_the_context_too_and_leaves_it() {
    let runtime = runtime();
    let server = Server::bind("127.0.0.1:0").workers(1).tokio(runtime.handle().clone());
    let handler = |_: Connection| async { Ok(()) };
    server
        .run(handler, |server| {
            server.stop();
        })
        .unwrap();
    assert!(tokio::runtime::Handle::try_current().is_err(), "the context is left with the server");
}

#[test]
fn a_client_runs_in_the_context_of_a_runtime() {
    let runtime = runtime();
    let late = wharf::tokio::run(runtime.handle(), async {
        tokio::time::timeout(Duration::from_millis(5), wharf::sleep(Duration::from_secs(60))).await
    });
    assert!(late.unwrap().is_err());
    assert!(tokio::runtime::Handle::try_current().is_err());
}

#[test]
fn a_runtime_is_refused_on_a_simulated_network() {
    let runtime = runtime();
    let mut simulation = wharf::sim::Simulation::new(1);
    let server = Server::bind("10.0.0.1:7").tokio(runtime.handle().clone());
    let error = simulation.serve(server, |_: Connection| async { Ok(()) }).unwrap_err();
    assert!(error.to_string().contains("`tokio`"), "{error}");
}
