//! The halves of a connection, for two threads.
//!
//! They share the line by a lock that nobody holds while he waits.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::connection::Connection;
use super::line::{Line, Step};
use super::remote::Remote;
use crate::address::Address;
use crate::conn::Counts;
use crate::error::{Cause, CloseReason, Operation, Result};

/// The whole connection, which is closed when both halves are dropped.
type Whole = Arc<Mutex<Connection>>;

pub(super) fn of(conn: Connection) -> (ReadHalf, WriteHalf) {
    let whole = Arc::new(Mutex::new(conn));
    (ReadHalf { whole: whole.clone() }, WriteHalf { whole, finishes: true })
}

/// Nothing panics under this lock but what is a defect.
fn lock(whole: &Whole) -> MutexGuard<'_, Connection> {
    whole.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `step` until it is done, and leaves the line to the other half while it waits.
fn drive<T>(whole: &Whole, mut step: impl FnMut(&mut Line) -> Result<Step<T>>) -> Result<T> {
    loop {
        let mut conn = lock(whole);
        let waiting = match step(conn.line())? {
            Step::Done(done) => return Ok(done),
            Step::Wait(wanted) => conn.line().waiting(wanted),
        };
        drop(conn);
        waiting.wait();
    }
}

/// What both halves can do.
macro_rules! common_methods {
    () => {
        /// The address of the other end.
        pub fn peer_addr(&self) -> Address {
            lock(&self.whole).peer_addr()
        }

        /// Bytes that went through so far.
        pub fn counts(&self) -> Counts {
            lock(&self.whole).counts()
        }

        /// Why the connection ended, or is about to; `None` while it stands.
        pub fn close_reason(&self) -> Option<CloseReason> {
            lock(&self.whole).close_reason()
        }

        /// Whether the server that it belongs to drains.
        pub fn is_draining(&self) -> bool {
            lock(&self.whole).is_draining()
        }

        /// A handle by which any thread can end the connection.
        ///
        /// # Errors
        /// If the system has no descriptors for it.
        pub fn remote(&self) -> Result<Remote> {
            lock(&self.whole).remote()
        }
    };
}

/// The reading half of a [`Connection`]; see [`Connection::split`].
pub struct ReadHalf {
    whole: Whole,
}

impl ReadHalf {
    common_methods!();

    /// As [`Connection::recv`].
    ///
    /// # Errors
    /// As there.
    pub fn recv(&mut self, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        drive(&self.whole, |line| line.recv(buf, false, 0, None, false))
    }

    /// As [`Connection::recv_exact`].
    ///
    /// # Errors
    /// As there.
    pub fn recv_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        let (mut filled, wanted) = (0, buf.len());
        while filled < wanted {
            let rest = &mut buf[filled..];
            let received = drive(&self.whole, |line| line.recv(rest, true, filled, None, false));
            if let Ok(n @ 1..) = received {
                filled += n;
                continue;
            }
            let mut conn = lock(&self.whole);
            conn.line().put_back(&buf[..filled]);
            let cause = Cause::Ended { received: filled, wanted };
            return Err(received.err().unwrap_or_else(|| conn.line().failed(Operation::Receive, cause)));
        }
        Ok(())
    }

    /// Joins the halves again; gives them back if they are of two connections.
    ///
    /// # Errors
    /// The halves, if they do not belong together.
    pub fn join(self, mut write: WriteHalf) -> Result<Connection, (ReadHalf, WriteHalf)> {
        if !Arc::ptr_eq(&self.whole, &write.whole) {
            return Err((self, write));
        }
        write.finishes = false;
        drop(write);
        let Ok(whole) = Arc::try_unwrap(self.whole) else { unreachable!("a connection has two halves") };
        Ok(whole.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads as [`ReadHalf::recv`] does; errors keep their kind.
impl Read for ReadHalf {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv(buf)?)
    }
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").field("peer", &self.peer_addr()).finish_non_exhaustive()
    }
}

/// The writing half of a [`Connection`]; see [`Connection::split`]. Dropping it ends this side's direction; in a panic it resets.
///
/// With TLS, what the peer says of TLS itself, new keys and close_notify, is heard by who reads. Who only writes goes on with the keys that
/// it has, and renews its own; a peer that is gone is told by the next send. If the kernel has no room when this is dropped, the
/// reading half sends the end, as soon as it waits for bytes, or the connection's drop does.
pub struct WriteHalf {
    whole: Whole,
    finishes: bool,
}

impl WriteHalf {
    common_methods!();

    /// As [`Connection::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        drive(&self.whole, |line| line.send(&mut bytes, None))
    }

    /// As [`Connection::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&mut self) -> Result<()> {
        drive(&self.whole, |line| line.flush(Operation::Flush, None))
    }

    /// As [`Connection::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(&mut self) -> Result<()> {
        lock(&self.whole).line().finish();
        drive(&self.whole, |line| line.flush(Operation::Finish, None))
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if !self.finishes {
            return;
        }
        let mut conn = lock(&self.whole);
        if thread::panicking() {
            // Half a message may be sent: that must not look like an orderly end.
            conn.line().reset(CloseReason::HandlerPanicked);
        } else {
            conn.line().leave_to_reader();
        }
    }
}

/// Writes as [`WriteHalf::send`] does: all of it or an error.
impl Write for WriteHalf {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(buf)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(WriteHalf::flush(self)?)
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteHalf").field("peer", &self.peer_addr()).finish_non_exhaustive()
    }
}
