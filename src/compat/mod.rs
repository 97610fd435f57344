//! Connections as the streams of others: the traits of tokio, futures-io and hyper, one file each, and what they have in common.
//!
//! A stream has no messages and no futures to be dropped: a write takes what fits, and a read that is pending waits until bytes
//! come. Everything else is as in the async style, of which these are the same polls (`poll.rs`).

/// What tokio's trait for writing and hyper's have word for word in common.
#[cfg(any(feature = "hyper", feature = "tokio"))]
macro_rules! write_methods {
    () => {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            crate::compat::poll_write(self.link(), cx, buf)
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            crate::compat::poll_write_vectored(self.link(), cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            crate::compat::poll_flush(self.link(), cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            crate::compat::poll_finish(self.link(), cx)
        }
    };
}

#[cfg(any(feature = "futures-io", feature = "tokio"))]
mod buffered;
#[cfg(feature = "futures-io")]
mod futures;
#[cfg(feature = "hyper")]
pub mod hyper;
#[cfg(feature = "tokio")]
pub mod tokio;

#[cfg(any(feature = "futures-io", feature = "tokio"))]
pub use buffered::Buffered;

use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::conn::Conn;
use crate::engine::buffer::SLICES_MAX;
use crate::error::{Operation, Result};
use crate::poll;
use crate::worker::link::{Link, SMALL_MAX};

/// Moves at most `room` of the bytes received to `put`; nothing after the peer's end.
fn poll_read(
    link: &Rc<Link>,
    cx: &Context<'_>,
    room: usize,
    put: impl FnMut(&[u8]),
) -> Poll<io::Result<usize>> {
    if room == 0 {
        return Poll::Ready(Ok(0));
    }
    let taken = ready!(poll::read(link, cx, 0, |conn| conn.read_with(room, put)))?;
    Poll::Ready(Ok(taken.unwrap_or_default()))
}

/// Sends as much of `bytes` as the kernel takes and the send queue has room for, waiting while it is above its high mark.
fn poll_write(link: &Rc<Link>, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    if bytes.is_empty() {
        return Poll::Ready(Ok(0));
    }
    let (mut conn, part) = ready!(poll::room(link, cx, |conn| part(conn, bytes.len())))?;
    let sent = if part <= SMALL_MAX || conn.is_sealed() {
        // By TLS a large message leaves a buffer at a time, and what is left of it is queued.
        let part = part.min(conn.send_high());
        link.send(&mut conn, &bytes[..part]);
        part
    } else {
        link.send_stream(&mut conn, &[IoSlice::new(&bytes[..part])])
    };
    conn.queued(true);
    link.sent(&conn);
    Poll::Ready(Ok(sent))
}

/// The same of several slices, which leave together.
fn poll_write_vectored(link: &Rc<Link>, cx: &Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
    let mut filled = slices.iter().filter(|slice| !slice.is_empty());
    let (first, second) = (filled.next(), filled.next());
    if second.is_none() {
        return poll_write(link, cx, first.map_or(&[], |slice| slice));
    }
    let filled = slices.iter().filter(|slice| !slice.is_empty()).take(SLICES_MAX);
    let len = filled.fold(0_usize, |len, slice| len.saturating_add(slice.len()));
    let (mut conn, part) = ready!(poll::room(link, cx, |conn| part(conn, len)))?;
    let (parts, count) = cut(slices, part);
    let parts = &parts[..count];
    let sent = if part <= SMALL_MAX {
        // One small message, which may leave at once, and not by the queue.
        let mut message = [0; SMALL_MAX];
        let end = parts.iter().fold(0, |at, part| {
            message[at..at + part.len()].copy_from_slice(part);
            at + part.len()
        });
        link.send(&mut conn, &message[..end]);
        end
    } else {
        link.send_stream(&mut conn, parts)
    };
    conn.queued(true);
    link.sent(&conn);
    Poll::Ready(Ok(sent))
}

/// The first `len` bytes of the slices, without empty ones, and in how many slices these are.
fn cut<'a>(slices: &'a [IoSlice<'_>], len: usize) -> ([IoSlice<'a>; SLICES_MAX], usize) {
    let mut parts = [IoSlice::new(&[]); SLICES_MAX];
    let (mut left, mut count) = (len, 0);
    for (part, slice) in parts.iter_mut().zip(slices.iter().filter(|slice| !slice.is_empty())) {
        if left == 0 {
            break;
        }
        let here = slice.len().min(left);
        *part = IoSlice::new(&slice[..here]);
        left -= here;
        count += 1;
    }
    (parts, count)
}

/// How much of `len` bytes is offered to the queue: no more than it takes at all, for a stream can be cut anywhere.
fn part(conn: &Conn, len: usize) -> usize {
    len.min(conn.send_max().saturating_sub(conn.pending())).max(1)
}

/// Waits until everything queued has been handed to the kernel.
fn poll_flush(link: &Rc<Link>, cx: &Context<'_>) -> Poll<io::Result<()>> {
    poll::flush(link, cx, Operation::Flush).map_err(io::Error::from)
}

/// Ends this side's direction, and waits until all of it has been handed to the kernel.
fn poll_finish(link: &Rc<Link>, cx: &Context<'_>) -> Poll<io::Result<()>> {
    let is_open = link.conn.borrow().writable().is_ok();
    if is_open {
        link.command(Conn::finish);
    }
    let finished: Poll<Result<()>> = poll::flush(link, cx, Operation::Finish);
    finished.map_err(io::Error::from)
}
