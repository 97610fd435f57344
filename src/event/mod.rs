//! Event style: handlers that are called when something happens to their connection.
//!
//! Where they are called is the program's choice:
//!
//! * **On the worker**: a [`Handler`]. It is the engine's own shape with nothing in between: received bytes are borrowed from
//!   the engine's buffer, nothing is allocated for a message, and one handler at a time is called on a worker. Servers have it
//!   by [`Server::start_events`](crate::Server::start_events), outgoing connections by [`Service::connect`].
//! * **On a queue**: a [`QueuedHandler`] of a [`Socket`], called with owned bytes. The queue is a thread with a name
//!   ([`JobQueue`]), one that the program's own loop polls ([`PollQueue`]), or any [`Executor`].
//!
//! A [`Service`] has the threads that carry outgoing connections. A [`Completion`] waits for many operations at once.

mod completion;
mod drive;
mod handler;
mod job_queue;
mod jobs;
mod members;
mod places;
mod poll_queue;
mod queue;
mod service;
mod socket;
mod state;
mod strand;

pub use completion::{Completion, Dependency, Failures};
pub use handler::{Callbacks, QueuedHandler};
pub use job_queue::JobQueue;
pub use poll_queue::PollQueue;
pub use queue::{Executor, Job, Queue};
pub use service::Service;
pub use socket::{Socket, SocketHandle};
pub use state::{Disconnect, State};
pub(crate) use {drive::accept, places::Places, strand::Maker};

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::address::Address;
use crate::conn::{Conn, Counts, Room};
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::proxy::Proxied;
use crate::remote::Remote;
#[cfg(feature = "tls")]
use crate::tls;
use crate::worker::link::{ConnectionId, Link};

/// What a server does with one connection, in event style.
///
/// The life of a connection:
///
/// 1. [`connected`](Handler::connected), once.
/// 2. [`received`](Handler::received) whenever bytes have come; [`writable`](Handler::writable) when sending is possible
///    again after [`Connection::send`] refused; [`draining`](Handler::draining) once, if the server drains;
///    [`secured`](Handler::secured) and [`unsecured`](Handler::unsecured), if the handler begins and ends TLS in mid-stream.
/// 3. [`hung_up`](Handler::hung_up) at most once, if the peer's end is known before all of its bytes could be offered;
///    [`ended`](Handler::ended), if the peer ends its side, after its last byte.
/// 4. [`closed`](Handler::closed), exactly once and last, with the reason.
///
/// Calls never overlap. A handler must not block: it holds up every connection of its worker. One that panics loses its
/// own connection (reset, [`CloseReason::HandlerPanicked`]) and no other.
///
/// ```
/// use wharf::event::{Connection, Flow, Handler};
///
/// struct Echo;
///
/// impl Handler for Echo {
///     fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
///         match conn.send(bytes) {
///             Ok(()) => Flow::Continue,
///             Err(_) => Flow::Consumed(0), // the queue is full: offer them again when it is not
///         }
///     }
/// }
///
/// let server = wharf::Server::bind("127.0.0.1:0").workers(1).start_events(|| Echo)?;
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub trait Handler: 'static {
    /// The connection stands.
    fn connected(&mut self, conn: &mut Connection<'_>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// Bytes have come. [`Flow::Continue`] consumes all of them, [`Flow::Consumed`] the first so many.
    ///
    /// What is not consumed is offered again, in front of what comes next: take all complete messages, and leave the
    /// beginning of the next one. While [`Connection::send`] refuses, nothing is offered, and the peer has to wait. If the connection
    /// ends for a fault of TLS meanwhile, what came before the fault is offered once more, when nothing can be sent any more.
    fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow;

    /// The send queue has fallen to its low mark after a send was refused. What `received` left was offered again
    /// before.
    ///
    /// It is also called if it was a message of a [`Remote`] that had to wait. A handler that produces by itself sends
    /// until it is refused, here and in `connected`; one that never was refused is not called.
    fn writable(&mut self, conn: &mut Connection<'_>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// The peer has ended its side, and all of its bytes were offered. Closes by default; a handler that still has
    /// something to send can go on.
    fn ended(&mut self, conn: &mut Connection<'_>) -> Flow {
        let _ = conn;
        Flow::Close
    }

    /// The peer has ended its side, and there are bytes of it that were not offered yet, because [`Connection::send`] refuses.
    ///
    /// Called at most once, and only then: otherwise [`ended`](Handler::ended) is the first to tell. It still follows, behind
    /// the last byte. A handler that makes something expensive for a peer that may be gone can stop here. Goes on by default:
    /// a peer that has ended its side may well wait for the answer.
    fn hung_up(&mut self, conn: &mut Connection<'_>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// TLS stands, which the handler began by [`Connection::accept_tls`]: what comes, and what is sent, is protected from here
    /// on. Not called for a listener's own TLS, which stands before [`connected`](Handler::connected). Goes on by default.
    fn secured(&mut self, conn: &mut Connection<'_>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// TLS has ended and the connection goes on, after [`Connection::leave_tls`], once the peer has said close_notify too: what
    /// comes, and what is sent, is plain from here on. Goes on by default.
    fn unsecured(&mut self, conn: &mut Connection<'_>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// The server stops accepting and will reset what has not ended at its drain deadline. Goes on by default.
    fn draining(&mut self, conn: &mut Connection<'_>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// The connection that [`Service::connect`] was to make does not stand, and nothing else is called. Does nothing by default.
    ///
    /// It is told on the service's worker; `error` says what failed, as [`Client::open`](crate::Client::open) does.
    fn connect_failed(&mut self, error: Error) {
        let _ = error;
    }

    /// The connection is closed. Nothing is called after this.
    fn closed(&mut self, conn: &mut Connection<'_>, reason: CloseReason) {
        let _ = (conn, reason);
    }
}

/// What a handler decides.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flow {
    /// Go on; in [`Handler::received`], all bytes are consumed.
    Continue,
    /// Go on; of the offered bytes the first so many are consumed. Only [`Handler::received`] consumes; elsewhere it
    /// means [`Flow::Continue`].
    Consumed(usize),
    /// Close gracefully: send what is queued, then end.
    Close,
    /// Throw the connection away (RST).
    Reset,
}

/// A connection while its handler is being called.
pub struct Connection<'a> {
    link: &'a Rc<Link>,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(link: &'a Rc<Link>) -> Connection<'a> {
        Connection { link }
    }

    pub(crate) fn link(&self) -> &'a Rc<Link> {
        self.link
    }

    /// Queues `bytes` whole or not at all. What one call of the handler sends leaves together when it has returned; a large
    /// message with nothing queued before it leaves at once.
    ///
    /// # Errors
    /// If the queue is above its high mark ([`Error::kind`] is [`Limit`](crate::ErrorKind::Limit)): then
    /// [`Handler::writable`] is called when it has fallen to its low mark; with
    /// [`WhenFull::Disconnect`](crate::WhenFull::Disconnect) the connection is reset instead. If the message is larger than
    /// the queue may ever be. If the connection is closed or finished.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.queue(bytes.len(), |link, conn| link.send(conn, bytes))
    }

    /// Sends `bytes` without copying them (above 1 KiB). Otherwise like [`Connection::send`].
    ///
    /// # Errors
    /// As [`Connection::send`]; the bytes are dropped then, so keep a clone of what must not be lost.
    pub fn send_owned(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        let bytes = bytes.into();
        self.queue(bytes.len(), |link, conn| link.send_owned(conn, bytes))
    }

    fn queue(&mut self, len: usize, send: impl FnOnce(&Link, &mut Conn)) -> Result<()> {
        let mut conn = self.link.conn.borrow_mut();
        let cause = match conn.room_or_end(len) {
            Ok(Room::Yes) => {
                send(self.link, &mut conn);
                self.link.sent(&conn);
                return Ok(());
            }
            Ok(Room::Later) => Cause::Full { queued: conn.pending(), option: "send_marks" },
            Ok(Room::Never) => Cause::TooLarge { bytes: len, bound: conn.send_max(), option: "send_max" },
            Err(reason) => {
                // It may be this message that ended it.
                drop(conn);
                self.link.mark_dirty();
                Cause::Closed(reason)
            }
        };
        Err(Error::new(Operation::Send, cause).at(self.link.peer()))
    }

    /// Tells, in [`Handler::received`], that what is left is the beginning of a message of at least `bytes` bytes: so much of it
    /// is received even if [`Limits::receive_buffer`](crate::Limits::receive_buffer) is less. Holds until the handler is
    /// offered more.
    ///
    /// Memory grows with what has come, and not with what is said here. But the peer decides how much comes: bound it before.
    pub fn expect(&mut self, bytes: usize) {
        self.link.conn.borrow_mut().expect(bytes);
    }

    /// Bytes queued and not yet handed to the kernel.
    pub fn queued(&self) -> usize {
        self.link.conn.borrow().pending()
    }

    /// Bytes that were sent and that the peer's system has not acknowledged: those [`queued`](Connection::queued), and those in
    /// the kernel's hands. A few too many for a moment, never too few.
    ///
    /// `None` if the connection is closed, or if the operating system does not tell, which Linux does for TCP. Acknowledged
    /// means that the peer's system has them, not that its program has read them.
    pub fn unacked(&self) -> Option<usize> {
        self.link.unacked().ok()
    }

    /// Ends this side's direction (half-close): FIN follows what is queued, and receiving goes on.
    pub fn finish(&mut self) {
        self.link.command(Conn::finish);
    }

    /// What was agreed on by TLS, and what is known of the peer; `None` without it, before its handshake is over, and when TLS
    /// has been left.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> Option<tls::Info> {
        self.link.conn.borrow().tls_info().cloned()
    }

    /// Begins TLS in mid-stream, as the server (STARTTLS): behind what was sent, and in front of what the handler does not
    /// consume. [`Handler::secured`] is called when it stands; until then [`send`](Connection::send) refuses.
    ///
    /// The handshake has the acceptor's deadline
    /// ([`ServerTls::handshake_within`](crate::tls::ServerTls::handshake_within)). If it fails, the connection ends with
    /// [`CloseReason::Tls`]; if it is late, it is reset for [`Deadline::Handshake`](crate::Deadline::Handshake).
    ///
    /// # Errors
    /// If this side has finished, if there is TLS already, or if the acceptor's configuration cannot be used.
    ///
    /// # Examples
    /// ```
    /// use wharf::event::{Connection, Flow, Handler};
    /// use wharf::tls::Acceptor;
    ///
    /// struct Mail(Acceptor);
    ///
    /// impl Handler for Mail {
    ///     fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
    ///         let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Flow::Consumed(0) };
    ///         if bytes.starts_with(b"STARTTLS") && conn.tls().is_none() {
    ///             let begun = conn.send(b"220 go ahead\r\n").and_then(|()| conn.accept_tls(&self.0));
    ///             if begun.is_err() {
    ///                 return Flow::Reset;
    ///             }
    ///         }
    ///         Flow::Consumed(end + 1) // what follows is TLS's
    ///     }
    ///
    ///     fn secured(&mut self, conn: &mut Connection<'_>) -> Flow {
    ///         match conn.send(b"220 protected\r\n") {
    ///             Ok(()) => Flow::Continue,
    ///             Err(_) => Flow::Close,
    ///         }
    ///     }
    /// }
    /// ```
    #[cfg(feature = "tls")]
    pub fn accept_tls(&mut self, acceptor: &tls::Acceptor) -> Result<()> {
        self.link.worker.accept_tls(self.link, acceptor)
    }

    /// Ends TLS and not the connection: close_notify follows what was sent. When the peer has said it too, what comes and what
    /// is sent is plain, which [`Handler::unsecured`] tells; until then nothing can be sent, and what the peer still says by TLS
    /// is offered although a send was refused.
    ///
    /// The protocol has to say that TLS ends here. A peer that ends TLS by itself ends the stream. Without TLS nothing happens.
    #[cfg(feature = "tls")]
    pub fn leave_tls(&mut self) {
        let now = self.link.worker.clock();
        self.link.command(|conn| {
            conn.leave_tls();
            conn.await_reading(now);
        });
    }

    /// Closes gracefully after `delay`, unless it is closed before.
    pub fn close_after(&mut self, delay: Duration) {
        let now = self.link.worker.clock();
        self.link.command(|conn| conn.close_after(delay, now));
    }

    /// Resets after `delay`, unless it is closed before.
    pub fn reset_after(&mut self, delay: Duration) {
        let now = self.link.worker.clock();
        self.link.command(|conn| conn.reset_after(delay, now));
    }

    /// Sets a deadline for what the connection is to do next, say a whole request, or removes it with `None`.
    ///
    /// It is total: no byte extends it, only another call does. When it passes the connection is closed, with
    /// [`Deadline::Handler`](crate::Deadline::Handler) as the reason.
    pub fn set_deadline(&mut self, after: impl Into<Option<Duration>>) {
        let at = after.into().map(|after| self.link.worker.clock().after(after));
        self.link.command(|conn| conn.set_deadline(at));
    }

    /// The address of the other end; behind a proxy that tells it, the one that the proxy tells.
    pub fn peer_addr(&self) -> Address {
        self.link.peer()
    }

    /// What the proxy told that the connection came through. `None` if the server expects no proxies
    /// ([`Server::proxy_protocol`](crate::Server::proxy_protocol)), and on a client.
    pub fn proxied(&self) -> Option<&Proxied> {
        self.link.proxied()
    }

    /// The address of this end; `None` if the operating system no longer tells it.
    pub fn local_addr(&self) -> Option<Address> {
        self.link.local_addr()
    }

    /// Names the connection among all that its server ever has.
    pub fn id(&self) -> ConnectionId {
        self.link.id()
    }

    /// Which of its server's listeners it came through, in their order; `None` for an adopted one.
    pub fn listener(&self) -> Option<usize> {
        self.link.listener()
    }

    /// Names it for those who look on: [`ServerHandle::list`](crate::ServerHandle::list) shows the label.
    pub fn set_label(&mut self, label: impl Into<std::sync::Arc<str>>) {
        *self.link.rare().label.borrow_mut() = Some(label.into());
    }

    /// A handle to this connection for other threads.
    pub fn remote(&self) -> Remote {
        Remote::new(self.link.remote())
    }

    /// Bytes that went through so far.
    pub fn counts(&self) -> Counts {
        self.link.conn.borrow().counts()
    }
}

impl fmt::Debug for Connection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.link.peer()).finish_non_exhaustive()
    }
}
