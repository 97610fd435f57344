//! What the operations of the async style do each time they are polled. Their futures share it with the traits of others (`compat/`).
//!
//! Knows nothing of what a future remembers between two polls: a future passes that in, and a trait has nothing to remember.

use std::cell::RefMut;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::config::WhenFull;
use crate::conn::{Conn, Readable, Room};
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::worker::link::Link;

/// Takes what has been received with `take`; `None` after the peer's end. Of the message that is read `begun` bytes came before.
#[inline]
pub(crate) fn read<T>(
    link: &Rc<Link>,
    cx: &Context<'_>,
    begun: usize,
    take: impl FnOnce(&mut Conn) -> T,
) -> Poll<Result<Option<T>>> {
    read_what_is_awaited(link, cx, Some(begun), take)
}

/// The same for one who lets the peer be silent for as long as it likes.
pub(crate) fn read_patiently<T>(
    link: &Rc<Link>,
    cx: &Context<'_>,
    take: impl FnOnce(&mut Conn) -> T,
) -> Poll<Result<Option<T>>> {
    read_what_is_awaited(link, cx, None, take)
}

#[inline]
fn read_what_is_awaited<T>(
    link: &Rc<Link>,
    cx: &Context<'_>,
    begun: Option<usize>,
    take: impl FnOnce(&mut Conn) -> T,
) -> Poll<Result<Option<T>>> {
    let mut conn = link.conn.borrow_mut();
    match conn.readable() {
        Ok(Readable::Bytes(_)) => {
            let taken = take(&mut conn);
            conn.stop_awaiting();
            if conn.is_paused() {
                drop(conn);
                link.mark_dirty();
            }
            Poll::Ready(Ok(Some(taken)))
        }
        Ok(Readable::Ended) => Poll::Ready(Ok(None)),
        Ok(Readable::NotYet) => {
            let mut urgent = None;
            if let Some(begun) = begun {
                let now = link.worker.now();
                conn.await_reading(now);
                if begun > 0 {
                    conn.await_rest(begun, now);
                }
                urgent = conn.take_urgent_deadline();
            }
            drop(conn);
            link.reader.register(&link.worker.tasks, cx);
            if let Some(at) = urgent {
                link.worker.retime(link, at);
            }
            Poll::Pending
        }
        Err(reason) => Poll::Ready(Err(closed(link, Operation::Receive, reason))),
    }
}

/// Sends `bytes` with `send`, which is told how many and returns how many are left: all at once, unless they are more
/// than the queue may ever hold.
#[inline]
pub(crate) fn write<B: AsRef<[u8]>>(
    link: &Rc<Link>,
    cx: &Context<'_>,
    bytes: &mut B,
    mut send: impl FnMut(&mut Conn, &mut B, usize) -> usize,
) -> Poll<Result<()>> {
    loop {
        let part = |conn: &Conn| {
            let len = bytes.as_ref().len();
            let divided = conn.when_full() == WhenFull::Wait && len > conn.send_max();
            if divided { conn.send_high() } else { len }
        };
        let (mut conn, part) = ready!(room(link, cx, part))?;
        let left = send(&mut conn, bytes, part);
        conn.queued(left == 0);
        if left == 0 {
            link.sent(&conn);
            return Poll::Ready(Ok(()));
        }
    }
}

/// Waits until the queue has room for as many bytes as `part` says. An error if it has none and is not to be waited for.
#[inline]
pub(crate) fn room<'a>(
    link: &'a Rc<Link>,
    cx: &Context<'_>,
    part: impl FnOnce(&Conn) -> usize,
) -> Poll<Result<(RefMut<'a, Conn>, usize)>> {
    let mut conn = link.conn.borrow_mut();
    let part = part(&conn);
    match conn.room_or_end(part) {
        Ok(Room::Yes) => Poll::Ready(Ok((conn, part))),
        Ok(room) if conn.when_full() != WhenFull::Wait => {
            let cause = match room {
                Room::Never => Cause::TooLarge { bytes: part, bound: conn.send_max(), option: "send_max" },
                _ => Cause::Full { queued: conn.pending(), option: "send_marks" },
            };
            Poll::Ready(Err(Error::new(Operation::Send, cause).at(link.peer())))
        }
        Ok(_) => {
            drop(conn);
            link.rare().writer.register(&link.worker.tasks, cx);
            link.mark_dirty();
            Poll::Pending
        }
        Err(reason) => {
            // It may be a part of this message that found the connection broken.
            drop(conn);
            link.mark_dirty();
            Poll::Ready(Err(closed(link, Operation::Send, reason)))
        }
    }
}

/// Waits until everything queued has been handed to the kernel, and FIN if this side has finished.
pub(crate) fn flush(link: &Rc<Link>, cx: &Context<'_>, operation: Operation) -> Poll<Result<()>> {
    let mut conn = link.conn.borrow_mut();
    if conn.is_flushed() {
        return Poll::Ready(Ok(()));
    }
    if let Some(reason) = conn.final_reason() {
        return Poll::Ready(Err(closed(link, operation, reason)));
    }
    conn.await_flush();
    link.rare().writer.register(&link.worker.tasks, cx);
    Poll::Pending
}

/// The error of an operation on a connection that has ended.
pub(crate) fn closed(link: &Link, operation: Operation, reason: CloseReason) -> Error {
    Error::new(operation, Cause::Closed(reason)).at(link.peer())
}
