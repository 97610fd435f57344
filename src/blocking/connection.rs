//! [`Connection`]: the operations of the blocking style, and [`Within`], which gives them a deadline.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::halves::{ReadHalf, WriteHalf};
use super::line::{Line, Until};
use super::linger;
use super::remote::Remote;
use crate::address::Address;
use crate::conn::{Conn, Counts, Hangup};
use crate::engine::buffer::Block;
#[allow(unused_imports, reason = "documentation names it")]
use crate::error::Error;
use crate::error::{Cause, CloseReason, Operation, Result};
#[cfg(feature = "tls")]
use crate::tls::{Acceptor, Connector, Info, Session};

/// One connection of the blocking style, TCP or Unix, on a server or a client. It can go to another thread.
///
/// Each operation waits on the caller's thread, at most by the connection's [`Deadlines`](crate::Deadlines);
/// [`Connection::within`] sets one for a single exchange. One that is late loses nothing: bytes that came stay in the
/// connection and are read next, and [`Error::unsent`] tells what of a message was not sent.
///
/// # Dropping
/// Dropping a connection closes it gracefully, and does not wait: FIN goes out behind what was sent, and until the peer has ended too,
/// for [`Deadlines::linger`](crate::Deadlines::linger) at most, a thread that all connections share throws away what still comes.
/// It waits for up to 1,024 of them; with more than that a drop waits itself. A process that ends does not wait for that thread: who has to be sure that
/// the peer has read the last words calls [`Connection::close`], which waits and tells. Dropping a connection in a panic resets it.
///
/// # Examples
/// ```no_run
/// use std::time::Duration;
/// use wharf::blocking;
///
/// let mut conn = blocking::connect("127.0.0.1:7788")?;
/// conn.send(b"ping")?;
/// let mut pong = [0; 4];
/// conn.within(Duration::from_secs(3)).recv_exact(&mut pong)?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct Connection {
    // Boxed, for it is large and is moved often. There until this is dropped.
    line: Option<Box<Line>>,
}

impl Connection {
    pub(crate) fn new(line: Line) -> Connection {
        Connection { line: Some(Box::new(line)) }
    }

    /// Connects to `address` with the options of [`Client`](crate::Client) by default; see [`connect`](super::connect).
    ///
    /// # Errors
    /// See [`Client::open_blocking`](crate::Client::open_blocking).
    pub fn connect(address: impl fmt::Display) -> Result<Connection> {
        super::connect(address)
    }

    #[inline]
    pub(super) fn line(&mut self) -> &mut Line {
        self.line.as_mut().expect("it is there until this is dropped")
    }

    pub(super) fn seen(&self) -> &Line {
        self.line.as_ref().expect("it is there until this is dropped")
    }

    /// Gives all that is done through what it returns one total deadline, counted from this call.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # let mut conn = wharf::blocking::connect("127.0.0.1:7788")?;
    /// // Question and answer have three seconds together.
    /// let mut timed = conn.within(Duration::from_secs(3));
    /// timed.send(b"time?")?;
    /// let mut answer = [0; 8];
    /// timed.recv_exact(&mut answer)?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn within(&mut self, after: Duration) -> Within<'_> {
        // What is further away than time reaches is no deadline.
        let until = Instant::now().checked_add(after).map(|at| Until { at, after });
        Within { line: self.line(), until }
    }

    #[inline]
    fn untimed(&mut self) -> Within<'_> {
        Within { line: self.line(), until: None }
    }

    /// Receives what is there, at most `buf.len()` bytes, waiting for the first. Returns 0 after the peer's end.
    ///
    /// # Errors
    /// If the connection is closed or broken and everything received has been read, or one of its deadlines passes.
    #[inline]
    pub fn recv(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.untimed().recv(buf)
    }

    /// Receives exactly `buf.len()` bytes.
    ///
    /// # Errors
    /// As [`Connection::recv`]; and if the peer ends before all have come ([`Error::is_ended`]). The bytes that came can then still
    /// be read.
    pub fn recv_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        self.untimed().recv_exact(buf)
    }

    /// Receives what is there as bytes of its own; `None` after the peer's end.
    ///
    /// # Errors
    /// As [`Connection::recv`].
    pub fn recv_chunk(&mut self) -> Result<Option<Bytes>> {
        self.untimed().recv_chunk()
    }

    /// Waits until there is something to read: bytes, the peer's end, or a failure. `false` if the server begins to drain before,
    /// and nothing has come: a handler between two requests can then end.
    ///
    /// ```no_run
    /// # use wharf::blocking::Connection;
    /// fn serve(conn: &mut Connection) -> wharf::Result<()> {
    ///     let mut request = [0; 64];
    ///     while conn.ready()? {
    ///         conn.recv_exact(&mut request)?;
    ///         conn.send(&request)?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`Connection::recv`].
    pub fn ready(&mut self) -> Result<bool> {
        self.untimed().ready()
    }

    /// Sends `bytes`, and returns when all of them are the kernel's.
    ///
    /// There is no queue to be full: a send waits while the kernel has no room, and
    /// [`Limits::when_full`](crate::Limits::when_full) says nothing here.
    ///
    /// # Errors
    /// If the connection is closed, broken or finished, or a deadline passes. [`Error::unsent`] tells how many bytes at the end of
    /// the message were not sent. With TLS, those before them may still be queued here, sealed; they leave with the next
    /// operation, whatever it is.
    #[inline]
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.untimed().send(bytes)
    }

    /// Sends `bytes`; like [`Connection::send`], which does not copy them either.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn send_owned(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        self.untimed().send(&bytes.into())
    }

    /// Waits until everything that was sent has been handed to the kernel. Only a send that was late leaves something to wait for.
    ///
    /// # Errors
    /// If the connection is closed or breaks before, or a deadline passes.
    pub fn flush(&mut self) -> Result<()> {
        self.untimed().flush()
    }

    /// Ends this side's direction (half-close): FIN follows what was sent, and receiving goes on.
    ///
    /// # Errors
    /// If the connection is closed or breaks before. If a deadline passes; the end stays arranged.
    pub fn finish(&mut self) -> Result<()> {
        self.untimed().finish()
    }

    /// Closes gracefully: what was sent goes out, then FIN; what the peer still sends is thrown away until it ends, or
    /// [`Deadlines::linger`](crate::Deadlines::linger) has passed. Tells why the connection ended. Closing twice is closing once.
    pub fn close(&mut self) -> CloseReason {
        self.line().close();
        self.end()
    }

    /// Throws the connection away: the peer gets RST. Tells why the connection ended, which may be an earlier reason.
    pub fn reset(&mut self) -> CloseReason {
        self.line().reset(CloseReason::LocalReset);
        self.end()
    }

    /// Closes gracefully and does not wait for the peer: where no other thread can, it is reset.
    pub(crate) fn part(mut self) {
        if let Some(line) = self.line.take() {
            linger::part(line);
        }
    }

    pub(super) fn end(&mut self) -> CloseReason {
        let ended = self.line().drive(|line| Ok(line.end()));
        ended.unwrap_or(CloseReason::Local)
    }

    /// Closes gracefully after `delay`, unless it is closed before. That is looked at when the connection is used, and while it
    /// waits.
    pub fn close_after(&mut self, delay: Duration) {
        self.line().with_clock(|conn, now| conn.close_after(delay, now));
    }

    /// Resets after `delay`, unless it is closed before. That is looked at when the connection is used, and while it waits.
    pub fn reset_after(&mut self, delay: Duration) {
        self.line().with_clock(|conn, now| conn.reset_after(delay, now));
    }

    /// Sets a deadline for whatever the connection is used for next, or removes it with `None`.
    ///
    /// When it passes the connection is closed, with [`Deadline::Handler`](crate::Deadline::Handler) as the reason. Nothing extends it
    /// but another call.
    pub fn set_deadline(&mut self, after: impl Into<Option<Duration>>) {
        let after = after.into();
        self.line().with_clock(|conn: &mut Conn<Block>, now| {
            conn.set_deadline(after.map(|after| now.after(after)));
        });
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Address {
        self.seen().peer().clone()
    }

    /// The address of this end; `None` if the operating system no longer tells it.
    pub fn local_addr(&mut self) -> Option<Address> {
        self.line().local()
    }

    /// Bytes that went through so far.
    pub fn counts(&self) -> Counts {
        self.seen().conn().counts()
    }

    /// Bytes that were sent and that the peer's system has not acknowledged. A few too many for a moment, never too few.
    ///
    /// `None` if the connection is closed, or if the operating system does not tell, which Linux does for TCP. Acknowledged is
    /// not read.
    pub fn unacked(&self) -> Option<usize> {
        self.seen().unacked()
    }

    /// Waits until the peer's system has acknowledged everything that was sent before the call.
    ///
    /// That is TCP's word and nothing more: the bytes have arrived at the peer's kernel. The system does not tell of an
    /// acknowledgement; this looks for it again and again, after 1 ms and then less and less often, at last every 50 ms.
    ///
    /// # Errors
    /// If the connection ends before; [`Error::undelivered`] tells how many bytes were not acknowledged. If the operating system
    /// does not tell: [`Error::io_kind`] is `Unsupported`.
    pub fn delivered(&mut self) -> Result<()> {
        self.untimed().delivered()
    }

    /// Why the connection ended, or is about to; `None` while it stands.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.seen().conn().reason()
    }

    /// Whether it is known that the peer sends nothing more: it has ended its side (FIN), or the connection is closed. Does not
    /// wait.
    ///
    /// On Linux it is told also while bytes are unread. Elsewhere only when they have been read.
    pub fn hangup(&mut self) -> Option<Hangup> {
        self.line().hangup()
    }

    /// Whether the server that it belongs to drains.
    pub fn is_draining(&self) -> bool {
        self.seen().place().is_some_and(|place| place.is_draining())
    }

    /// A handle for other threads, by which they can end the connection.
    ///
    /// From then on its operations wait in poll(2), which costs two more system calls for a message that has to be waited for.
    ///
    /// # Errors
    /// If the system has no descriptors for it.
    pub fn remote(&mut self) -> Result<Remote> {
        let line = self.line();
        let watch = line.watch().map_err(|error| line.failed(Operation::Handle, Cause::Os(error)))?;
        Ok(Remote::new(watch, self.peer_addr()))
    }

    /// Splits it, so that one thread can read while another writes. A TLS handshake that is under way is waited for.
    ///
    /// Dropping the writing half finishes (FIN); dropping both closes.
    ///
    /// # Errors
    /// If the handshake fails, or the system has no descriptors for it.
    pub fn split(mut self) -> Result<(ReadHalf, WriteHalf)> {
        self.secure()?;
        self.remote()?;
        Ok(super::halves::of(self))
    }

    /// Waits until a TLS handshake that is under way is over. Reading and sending do that by themselves; here its failure is
    /// told for itself. Without TLS nothing happens.
    ///
    /// # Errors
    /// If the handshake fails or is late, which also ends the connection; [`Error::tls_fault`] tells why it failed.
    pub fn secure(&mut self) -> Result<()> {
        self.untimed().secure()
    }
}

/// TLS, from the beginning or in mid-stream.
#[cfg(feature = "tls")]
impl Connection {
    /// What was agreed on by TLS, and what is known of the peer; `None` without TLS, before a handshake is over, and when
    /// TLS has been left.
    pub fn tls(&self) -> Option<Info> {
        self.seen().conn().tls_info().cloned()
    }

    /// Begins TLS in mid-stream, as the server (STARTTLS): behind what was sent, and in front of what is unread. Waits for the
    /// handshake, for the acceptor's deadline at most
    /// ([`ServerTls::handshake_within`](crate::tls::ServerTls::handshake_within)).
    ///
    /// What came before the peer could know of TLS is taken for TLS, and refused.
    ///
    /// # Errors
    /// If this side has finished, if there is TLS already, or if the handshake fails or is late, which also ends the connection.
    pub fn accept_tls(&mut self, acceptor: &Acceptor) -> Result<()> {
        self.begin_accept(acceptor)?;
        self.secure()
    }

    /// The same without waiting: the first operation does that.
    pub(super) fn begin_accept(&mut self, acceptor: &Acceptor) -> Result<()> {
        let session = self.session(Session::accept(acceptor))?;
        self.line().begin_tls(session, Some(acceptor.current().within))
    }

    /// Begins TLS in mid-stream, as the client, with a server that has to be `host`: a DNS name, which the server is also told
    /// (SNI), or an address. Waits for the handshake, which has no deadline of its own; [`Connection::within`] sets one.
    ///
    /// # Errors
    /// As [`Connection::accept_tls`]; and if `host` is neither a name nor an address and the connector has none either, which
    /// leaves the connection as it was.
    pub fn connect_tls(&mut self, connector: &Connector, host: &str) -> Result<()> {
        self.untimed().connect_tls(connector, host)
    }

    /// Ends TLS and not the connection: close_notify follows what was sent, and when the peer has said it too, bytes are plain.
    ///
    /// What comes before the peer's close_notify is kept, and can be read afterwards, in front of what is plain.
    ///
    /// # Errors
    /// If the connection ends before. If the peer sends more than is kept before its close_notify
    /// ([`Limits::receive_buffer`](crate::Limits::receive_buffer)): that has to be read first, and TLS ends behind it.
    pub fn leave_tls(&mut self) -> Result<()> {
        self.untimed().leave_tls()
    }

    fn session(&self, session: Result<Session<Block>, crate::tls::Failure>) -> Result<Session<Block>> {
        session_of(self.seen(), session)
    }
}

#[cfg(feature = "tls")]
fn session_of(line: &Line, session: Result<Session<Block>, crate::tls::Failure>) -> Result<Session<Block>> {
    session.map_err(|crate::tls::Failure { fault, detail }| {
        line.failed(Operation::Secure, Cause::Tls { fault, detail })
    })
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", self.seen().peer()).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            linger::leave(line);
        }
    }
}

/// Reads as [`Connection::recv`] does; errors keep their kind.
impl Read for Connection {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv(buf)?)
    }
}

/// Writes as [`Connection::send`] does: all of it or an error.
impl Write for Connection {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(buf)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(Connection::flush(self)?)
    }
}

/// A [`Connection`] whose operations have one deadline together; see [`Connection::within`].
///
/// One that is late fails with an error whose kind is [`Timeout`](crate::ErrorKind::Timeout). The connection stands.
#[must_use = "it does nothing by itself"]
pub struct Within<'a> {
    line: &'a mut Line,
    until: Option<Until>,
}

impl Within<'_> {
    /// As [`Connection::recv`].
    ///
    /// # Errors
    /// As there; and if the deadline passes.
    #[inline]
    pub fn recv(&mut self, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let until = self.until;
        self.line.drive(|line| line.recv(buf, false, 0, until, true))
    }

    /// As [`Connection::recv_exact`].
    ///
    /// # Errors
    /// As there; and if the deadline passes. The bytes that came can then still be read.
    pub fn recv_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        let until = self.until;
        let (mut filled, wanted) = (0, buf.len());
        while filled < wanted {
            let rest = &mut buf[filled..];
            let failure = match self.line.drive(|line| line.recv(rest, true, filled, until, true)) {
                Ok(0) => self.line.failed(Operation::Receive, Cause::Ended { received: filled, wanted }),
                Ok(n) => {
                    filled += n;
                    continue;
                }
                Err(error) => error,
            };
            self.line.put_back(&buf[..filled]);
            return Err(failure);
        }
        Ok(())
    }

    /// What was read too far is read next.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.line.put_back(bytes);
    }

    /// As [`Connection::recv_chunk`].
    ///
    /// # Errors
    /// As there; and if the deadline passes.
    pub fn recv_chunk(&mut self) -> Result<Option<Bytes>> {
        let until = self.until;
        let block = self.line.drive(|line| line.recv_block(until, true))?;
        Ok(block.map(Block::into_bytes))
    }

    /// As [`Connection::ready`].
    ///
    /// # Errors
    /// As there; and if the deadline passes.
    pub fn ready(&mut self) -> Result<bool> {
        let until = self.until;
        self.line.drive(|line| line.ready(until, true))
    }

    /// As [`Connection::send`].
    ///
    /// # Errors
    /// As there; and if the deadline passes.
    #[inline]
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        let until = self.until;
        self.line.drive(|line| line.send(&mut bytes, until))
    }

    /// As [`Connection::send_owned`].
    ///
    /// # Errors
    /// As there; and if the deadline passes.
    pub fn send_owned(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        self.send(&bytes.into())
    }

    /// As [`Connection::flush`].
    ///
    /// # Errors
    /// As there; and if the deadline passes.
    pub fn flush(&mut self) -> Result<()> {
        let until = self.until;
        self.line.drive(|line| line.flush(Operation::Flush, until))
    }

    /// As [`Connection::finish`].
    ///
    /// # Errors
    /// As there; and if the deadline passes.
    pub fn finish(&mut self) -> Result<()> {
        let until = self.until;
        self.line.finish();
        self.line.drive(|line| line.flush(Operation::Finish, until))
    }

    /// As [`Connection::delivered`].
    ///
    /// # Errors
    /// As there; and if the deadline passes.
    pub fn delivered(&mut self) -> Result<()> {
        let until = self.until;
        let (target, mut looked) = (self.line.await_delivery(), 0);
        self.line.drive(|line| line.delivered(target, &mut looked, until))
    }

    /// As [`Connection::secure`].
    ///
    /// # Errors
    /// As there; and if the deadline passes. The handshake is not given up by that.
    pub fn secure(&mut self) -> Result<()> {
        let until = self.until;
        self.line.drive(|line| line.secure(until))
    }

    /// As [`Connection::connect_tls`].
    ///
    /// # Errors
    /// As there; and if the deadline passes. The handshake is not given up by that.
    #[cfg(feature = "tls")]
    pub fn connect_tls(&mut self, connector: &Connector, host: &str) -> Result<()> {
        self.begin_connect(connector, Some(host))?;
        self.secure()
    }

    /// The same with a server whose name may be the connector's to know, and without waiting.
    #[cfg(feature = "tls")]
    pub(crate) fn begin_connect(&mut self, connector: &Connector, host: Option<&str>) -> Result<()> {
        let session = session_of(self.line, Session::connect(connector, host))?;
        self.line.begin_tls(session, None)
    }

    /// As [`Connection::leave_tls`].
    ///
    /// # Errors
    /// As there; and if the deadline passes. This side has said close_notify all the same.
    #[cfg(feature = "tls")]
    pub fn leave_tls(&mut self) -> Result<()> {
        let until = self.until;
        self.line.leave_tls();
        self.line.drive(|line| line.left_tls(until))
    }
}

impl fmt::Debug for Within<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Within").field("peer", self.line.peer()).field("until", &self.until).finish()
    }
}
