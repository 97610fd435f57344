//! tokio's io traits for connections, and its runtime's context around clients: [`run`].
//!
//! [`Connection`] and its halves are `tokio::io::AsyncRead` and `AsyncWrite`, so whatever is written for those
//! works on them. They stay on their worker: what is spawned with them is spawned with [`spawn`](crate::spawn), not `tokio::spawn`.
//!
//! ```
//! use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
//! use wharf::{Buffered, Connection, Server};
//!
//! let server = Server::bind("127.0.0.1:0").workers(1).start(|conn: Connection| async move {
//!     let mut conn = Buffered::new(conn); // shows what came without a copy, where a BufReader copies
//!     let mut line = String::new();
//!     while conn.read_line(&mut line).await? > 0 {
//!         conn.write_all(line.as_bytes()).await?;
//!         line.clear();
//!     }
//!     Ok(())
//! })?;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! What libraries need that live on tokio is its context: timers, sockets, `tokio::spawn`. [`Server::tokio`](crate::Server::tokio)
//! has it on every worker, [`run`] around a client. The runtime's own threads turn its sockets and timers, and wake the worker.
//!
//! # As streams
//!
//! * A write takes what the send queue has room for, and is pending above the high mark. `poll_flush` is done when the kernel
//!   has everything; `poll_shutdown` is [`finish`](crate::Connection::finish), with close_notify under TLS.
//! * A read that is pending waits until bytes come, also when whoever asked has lost interest: nobody is told of that. So
//!   [`Deadlines::idle`](crate::Deadlines::idle) goes on counting; turn it off, or set it higher, where that is not wanted.
//! * Errors are `io::Error`s with an [`Error`](crate::Error) within, and become that again by `?` in a handler.
//! * One task may read and one may write, as anywhere: of two that wait for the same the later one is woken.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use ::tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use ::tokio::runtime::Handle;

use super::Buffered;
use crate::connection::{Connection, ReadHalf, WriteHalf};
use crate::error::Result;

/// [`wharf::run`](crate::run) in the context of a tokio runtime, so that what needs one works within `future`.
///
/// The runtime has to be driven by threads of its own, as a multi-threaded one is. Called in the middle of a task of the runtime
/// it keeps that task's thread until it returns.
///
/// # Errors
/// As [`wharf::run`](crate::run).
///
/// ```
/// use std::time::Duration;
///
/// let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
/// let late = wharf::tokio::run(runtime.handle(), async {
///     tokio::time::timeout(Duration::from_millis(5), std::future::pending::<()>()).await
/// })?;
/// assert!(late.is_err());
/// # Ok::<(), wharf::Error>(())
/// ```
pub fn run<F: Future>(handle: &Handle, future: F) -> Result<F::Output> {
    let _entered = handle.enter();
    crate::run(future)
}

macro_rules! reads {
    ($name:ty) => {
        impl AsyncRead for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                super::poll_read(self.link(), cx, buf.remaining(), |bytes| buf.put_slice(bytes))
                    .map_ok(|_| ())
            }
        }
    };
}

macro_rules! writes {
    ($name:ty) => {
        impl AsyncWrite for $name {
            write_methods!();
        }
    };
}

macro_rules! shows {
    ($name:ty) => {
        impl AsyncRead for Buffered<$name> {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let room = buf.remaining();
                self.get_mut().poll_take(cx, room, |bytes| buf.put_slice(bytes)).map_ok(|_| ())
            }
        }

        impl AsyncBufRead for Buffered<$name> {
            fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
                self.get_mut().poll_show(cx)
            }

            fn consume(self: Pin<&mut Self>, amount: usize) {
                self.get_mut().advance(amount);
            }
        }
    };
}

reads!(Connection);
reads!(ReadHalf);
shows!(Connection);
shows!(ReadHalf);
writes!(Connection);
writes!(WriteHalf);
writes!(Buffered<Connection>);
