//! Async style: [`Connection`], its halves, and the futures of its operations.

use std::cell::Ref;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use crate::address::Address;
use crate::conn::{Conn, Counts, Hangup};
use crate::engine::buffer::Chunk;
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::poll::{self, closed};
use crate::proxy::Proxied;
use crate::remote::Remote;
use crate::runtime::{Late, Sleep, Within, sleep};
use crate::worker::link::{ConnectionId, Link};

/// One TCP connection, on a server or a client.
///
/// It belongs to the worker that made it and is not `Send`: nothing on its path is locked or atomic. Other threads
/// reach it by a [`Remote`].
///
/// Every operation has a deadline of its own with `.within(duration)`: a total one, not restarted by each byte.
///
/// # Cancellation
/// Dropping any of its futures loses nothing: bytes that were not returned stay in the connection and are read next, and
/// a message is queued whole or not at all. The one exception is a message larger than
/// [`Limits::send_max`](crate::Limits::send_max), which has to be queued in parts; see [`Connection::send`].
///
/// # Dropping
/// Dropping a connection closes it gracefully, as [`Connection::close`] does; dropping it in a panic resets it.
///
/// ```no_run
/// # async fn ping() -> wharf::Result<()> {
/// use std::time::Duration;
///
/// let mut conn = wharf::Client::connect("127.0.0.1:7788").await?;
/// conn.send(b"ping").await?;
/// let mut pong = [0; 4];
/// conn.recv_exact(&mut pong).within(Duration::from_secs(3)).await?;
/// # Ok(()) }
/// ```
pub struct Connection {
    link: Rc<Link>,
}

/// What both the whole connection and a half of it can do.
macro_rules! common_methods {
    () => {
        pub(crate) fn link(&self) -> &Rc<Link> {
            &self.link
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

        /// Which of its server's listeners it came through, in their order; `None` for a client's connection and an
        /// adopted one.
        pub fn listener(&self) -> Option<usize> {
            self.link.listener()
        }

        /// What was agreed on by TLS, and what is known of the peer; `None` without TLS, before a handshake in mid-stream is over,
        /// and when TLS has been left.
        #[cfg(feature = "tls")]
        pub fn tls(&self) -> Option<crate::tls::Info> {
            self.link.conn.borrow().tls_info().cloned()
        }

        /// Names it for those who look on: [`ServerHandle::list`](crate::ServerHandle::list) shows the label.
        pub fn set_label(&self, label: impl Into<std::sync::Arc<str>>) {
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

        /// Bytes that were sent and that the peer's system has not acknowledged: those queued here, and those in the kernel's
        /// hands. A few too many for a moment, never too few.
        ///
        /// `None` if the connection is closed, or if the operating system does not tell, which Linux does for TCP.
        /// Acknowledged is not read; see [`Connection::delivered`].
        pub fn unacked(&self) -> Option<usize> {
            self.link.unacked().ok()
        }

        /// Why the connection ended, or is about to; `None` while it stands.
        pub fn close_reason(&self) -> Option<CloseReason> {
            self.link.conn.borrow().reason()
        }

        /// Waits until the connection is closed, whoever closes it, and tells why.
        ///
        /// # Cancellation
        /// Cancel safe; it changes nothing.
        pub fn closed(&self) -> Closing {
            Closing { link: self.link.clone() }
        }

        /// Waits until it is known that the peer sends nothing more, without reading: it has ended its side (FIN), or the
        /// connection is closed, or about to be.
        ///
        /// It is told also while bytes are unread, here or in the kernel, and however many those are: so work for a peer that
        /// has gone can be given up before its input is read. Whether the peer has gone for good is another matter. One that
        /// ended its side may go on reading; and one that vanished without a word is told by nothing but deadlines.
        ///
        /// ```no_run
        /// # async fn expensive() -> wharf::Result<Vec<u8>> { Ok(b"42".to_vec()) }
        /// # async fn serve(mut conn: wharf::Connection) -> wharf::Result<()> {
        /// use futures_lite::FutureExt;
        ///
        /// let hangup = conn.hangup();
        /// let gone = async { hangup.await; Err(wharf::Error::other("the client is gone")) };
        /// conn.send(&expensive().or(gone).await?).await
        /// # }
        /// ```
        ///
        /// # Cancellation
        /// Cancel safe; it changes nothing. It holds no borrow of the connection, so it can be awaited beside an operation.
        pub fn hangup(&self) -> HangingUp {
            HangingUp { link: self.link.clone() }
        }

        /// Waits until the peer's system has acknowledged everything that was sent before the call.
        ///
        /// That is TCP's word and nothing more: the bytes have arrived at the peer's kernel. Whether its program reads them,
        /// let alone acts on them, only an answer of its own can tell. What it is good for: to know, before this side forgets a
        /// message or exits, that no failure of the network can lose it any more.
        ///
        /// The system does not tell of an acknowledgement; this looks for it again and again, after 1 ms and then less and
        /// less often, at last every 50 ms.
        ///
        /// # Errors
        /// If the connection ends before; [`Error::undelivered`] tells how many bytes were not acknowledged. If the operating
        /// system does not tell, which Linux does for TCP: [`Error::io_kind`] is `Unsupported`.
        ///
        /// # Cancellation
        /// Cancel safe; it changes nothing. It holds no borrow of the connection, so it can be awaited beside an operation.
        pub fn delivered(&self) -> Delivered {
            Delivered::new(&self.link)
        }

        /// Waits until the server begins to drain, or the connection is closed; on a client, only for the latter.
        ///
        /// It holds no borrow of the connection, so it can be awaited beside an operation:
        ///
        /// ```no_run
        /// # async fn serve(mut conn: wharf::Connection) -> wharf::Result<()> {
        /// use futures_lite::FutureExt;
        ///
        /// let mut buf = [0; 512];
        /// let draining = conn.draining();
        /// let n = async { draining.await; Ok(0) }.or(conn.recv(&mut buf)).await?;
        /// # let _ = n; Ok(()) }
        /// ```
        pub fn draining(&self) -> Draining {
            Draining { link: self.link.clone() }
        }
    };
}

/// The operations that read.
macro_rules! read_methods {
    () => {
        /// Receives what is there, at most `buf.len()` bytes, waiting for the first. Returns 0 after the peer's end.
        ///
        /// On [`Backend::Readiness`](crate::Backend::Readiness) and without TLS the kernel puts the bytes into a buffer of 4 KiB or more
        /// by itself. Everywhere else they are copied, which [`Connection::recv_chunk`] saves.
        ///
        /// # Errors
        /// If the connection is closed or broken and everything received has been read.
        ///
        /// # Cancellation
        /// Cancel safe: bytes are taken only when the future completes.
        pub fn recv<'a>(&'a mut self, buf: &'a mut [u8]) -> Recv<'a> {
            Recv { reader: Reader::new(&self.link), buf }
        }

        /// Receives exactly `buf.len()` bytes.
        ///
        /// # Errors
        /// As [`Connection::recv`]; and if the peer ends before all have come ([`Error::is_ended`]). The bytes that came
        /// can then still be read.
        ///
        /// # Cancellation
        /// Cancel safe: bytes that have come stay in the connection and are read next.
        pub fn recv_exact<'a>(&'a mut self, buf: &'a mut [u8]) -> RecvExact<'a> {
            RecvExact { reader: Reader::new(&self.link), buf, filled: 0 }
        }

        /// Receives a chunk of what is there without copying it; `None` after the peer's end.
        ///
        /// # Errors
        /// As [`Connection::recv`].
        ///
        /// # Cancellation
        /// Cancel safe.
        pub fn recv_chunk(&mut self) -> RecvChunk<'_> {
            RecvChunk { reader: Reader::new(&self.link) }
        }
    };
}

/// The operations that write.
macro_rules! write_methods {
    () => {
        /// Sends `bytes`: waits while the send queue is above its high mark, then queues them.
        ///
        /// They leave at the end of the worker's turn, together with what other connections send; a large message with
        /// nothing queued before it leaves at once. Done means queued; what could not be delivered is counted as
        /// [`Counts::unsent`], and [`Connection::flush`] waits for the kernel.
        ///
        /// # Errors
        /// If the connection is closed, broken or finished. If the queue has no room and
        /// [`Limits::when_full`](crate::Limits::when_full) says not to wait: nothing of the message is queued then
        /// ([`Error::kind`] is [`Limit`](crate::ErrorKind::Limit)), nor of one that is larger than the queue may ever be.
        ///
        /// # Cancellation
        /// Cancel safe up to [`Limits::send_max`](crate::Limits::send_max) (1 MiB by default): either all bytes are
        /// queued or none. A larger message is queued in parts, and a dropped call may have queued a prefix of it.
        pub fn send<'a>(&'a mut self, bytes: &'a [u8]) -> Send<'a> {
            Send { link: &self.link, bytes }
        }

        /// Sends `bytes` without copying them (above 1 KiB). Otherwise like [`Connection::send`]. They are a `Vec<u8>`, a `String`,
        /// [`Bytes`], or what is there for as long as the program: `"ping"`, or `&b"ping"[..]` for bytes.
        ///
        /// # Errors
        /// As [`Connection::send`].
        ///
        /// # Cancellation
        /// As [`Connection::send`].
        pub fn send_owned(&mut self, bytes: impl Into<Bytes>) -> SendOwned<'_> {
            SendOwned { link: &self.link, bytes: bytes.into() }
        }

        /// Waits until everything queued has been handed to the kernel.
        ///
        /// # Errors
        /// If the connection is closed or breaks before.
        ///
        /// # Cancellation
        /// Cancel safe; it changes nothing.
        pub fn flush(&mut self) -> Flush<'_> {
            Flush { link: &self.link, operation: Operation::Flush }
        }

        /// Ends this side's direction (half-close): FIN follows what is queued, and receiving goes on.
        ///
        /// That is arranged by the call itself; the future waits until all of it has been handed to the kernel.
        ///
        /// # Errors
        /// If the connection is closed or breaks before.
        ///
        /// # Cancellation
        /// Cancel safe: the end stays arranged.
        pub fn finish(&mut self) -> Flush<'_> {
            self.link.command(Conn::finish);
            Flush { link: &self.link, operation: Operation::Finish }
        }
    };
}

impl Connection {
    pub(crate) fn new(link: Rc<Link>) -> Connection {
        Connection { link }
    }

    common_methods!();
    read_methods!();
    write_methods!();

    /// Closes gracefully: what is queued goes out, then FIN; what the peer still sends is thrown away until it ends, or
    /// the linger deadline passes.
    ///
    /// That is arranged by the call itself. The future tells when all is over, and may be dropped. Closing twice is
    /// closing once.
    pub fn close(&mut self) -> Closing {
        self.link.command(Conn::close);
        self.closed()
    }

    /// Throws the connection away: the peer gets RST, and nothing that is queued is sent. Arranged by the call itself.
    pub fn reset(&mut self) -> Closing {
        self.link.command(|conn| conn.reset(CloseReason::LocalReset));
        self.closed()
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

    /// Sets a deadline for whatever the connection is used for next, or removes it with `None`.
    ///
    /// When it passes the connection is closed, with [`Deadline::Handler`](crate::Deadline::Handler) as the reason, and
    /// pending operations end with an error. Nothing extends it but another call.
    pub fn set_deadline(&mut self, after: impl Into<Option<Duration>>) {
        let at = after.into().map(|after| self.link.worker.clock().after(after));
        self.link.command(|conn| conn.set_deadline(at));
    }

    /// Keeps a value of the user's own with the connection; replaces an earlier one.
    ///
    /// ```
    /// # async fn serve(mut conn: wharf::Connection) {
    /// struct Player(u32);
    ///
    /// conn.set_data(Player(7));
    /// assert_eq!(conn.data::<Player>().map(|player| player.0), Some(7));
    /// assert!(conn.data::<String>().is_none(), "there is none of this type");
    /// # }
    /// ```
    pub fn set_data<T: 'static>(&mut self, data: T) {
        *self.link.rare().user.borrow_mut() = Some(Box::new(data));
    }

    /// The user's value, if one of this type is kept.
    pub fn data<T: 'static>(&self) -> Option<Ref<'_, T>> {
        let data = self.link.used_rare()?.user.borrow();
        Ref::filter_map(data, |data| data.as_ref()?.downcast_ref::<T>()).ok()
    }

    /// Splits it, so that one task can read while another writes.
    ///
    /// Dropping the writing half finishes (FIN); dropping both halves closes.
    ///
    /// ```
    /// use wharf::{Connection, Server};
    ///
    /// let server = Server::bind("127.0.0.1:0").workers(1).start(|conn: Connection| async move {
    ///     let (mut read, mut write) = conn.split();
    ///     let greeting = wharf::spawn(async move { write.send(b"hello").await });
    ///     while read.recv_chunk().await?.is_some() {} // meanwhile
    ///     greeting.await?
    /// })?;
    /// # let mut conn = wharf::blocking::connect(server.local_addr())?;
    /// # conn.recv_exact(&mut [0; 5])?;
    /// # drop(conn);
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        let whole = Rc::new(self);
        let (link, finishes) = (whole.link.clone(), true);
        (ReadHalf { link: link.clone(), whole: whole.clone() }, WriteHalf { link, whole, finishes })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.link.conn.borrow().is_closed() {
            return;
        }
        if thread::panicking() {
            self.link.command(|conn| conn.reset(CloseReason::HandlerPanicked));
        } else {
            self.link.command(Conn::close);
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.link.peer()).finish_non_exhaustive()
    }
}

/// The reading half of a [`Connection`].
pub struct ReadHalf {
    link: Rc<Link>,
    whole: Rc<Connection>,
}

impl ReadHalf {
    common_methods!();
    read_methods!();

    /// Joins the halves again; gives them back if they are of two connections.
    ///
    /// # Errors
    /// The halves, if they do not belong together.
    pub fn join(self, mut write: WriteHalf) -> Result<Connection, (ReadHalf, WriteHalf)> {
        if !Rc::ptr_eq(&self.whole, &write.whole) {
            return Err((self, write));
        }
        write.finishes = false;
        drop(write);
        Rc::try_unwrap(self.whole).map_err(|_| unreachable!("a connection has two halves"))
    }
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").field("peer", &self.link.peer()).finish_non_exhaustive()
    }
}

/// The writing half of a [`Connection`].
pub struct WriteHalf {
    link: Rc<Link>,
    whole: Rc<Connection>,
    /// Dropping it ends this side's direction.
    finishes: bool,
}

impl WriteHalf {
    common_methods!();
    write_methods!();
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if self.finishes && thread::panicking() {
            // Half a message may be queued: that must not look like an orderly end.
            self.link.command(|conn| conn.reset(CloseReason::HandlerPanicked));
        } else if self.finishes {
            self.link.command(Conn::finish);
        }
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteHalf").field("peer", &self.link.peer()).finish_non_exhaustive()
    }
}

/// Gives a future of an operation its `within`, and says how its error names it.
macro_rules! operation {
    ($(<$life:lifetime>)? $name:ident, $value:ty, $self:ident => $link:expr, $operation:expr) => {
        impl$(<$life>)? $name$(<$life>)? {
            /// Ends the operation with an error if it is not done `after` this long, counted from its first poll.
            ///
            /// # Cancellation
            /// A deadline that passes is like dropping the future: nothing is lost.
            pub fn within(self, after: Duration) -> Within<Self> {
                Within::new(self, after)
            }
        }

        impl$(<$life>)? Late for $name$(<$life>)? {
            type Value = $value;

            fn result(output: Self::Output) -> Result<$value> {
                output.into()
            }

            fn late(&$self, after: Duration) -> Error {
                Error::new($operation, Cause::TimedOut { after }).at($link.peer())
            }
        }
    };
}

operation!(<'a> Recv, usize, self => self.reader.link, Operation::Receive);
operation!(<'a> RecvExact, (), self => self.reader.link, Operation::Receive);
operation!(<'a> RecvChunk, Option<Chunk>, self => self.reader.link, Operation::Receive);
operation!(<'a> Send, (), self => self.link, Operation::Send);
operation!(<'a> SendOwned, (), self => self.link, Operation::Send);
operation!(<'a> Flush, (), self => self.link, self.operation);
operation!(Delivered, (), self => self.link, Operation::Deliver);

/// The future of [`Connection::recv`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Recv<'a> {
    reader: Reader<'a>,
    buf: &'a mut [u8],
}

impl Future for Recv<'_> {
    type Output = Result<usize>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        let Recv { reader, buf } = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if let Some(n) = reader.link.receive_now(buf) {
            reader.waiting = false;
            return Poll::Ready(Ok(n));
        }
        let polled = reader.poll(cx, |conn| conn.read(buf)).map_ok(Option::unwrap_or_default);
        if polled.is_pending() {
            reader.link.await_offer(buf.len());
        }
        polled
    }
}

/// The future of [`Connection::recv_exact`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct RecvExact<'a> {
    reader: Reader<'a>,
    buf: &'a mut [u8],
    filled: usize,
}

impl RecvExact<'_> {
    /// Puts the bytes of an unfinished message back, for whoever reads next.
    fn put_back(&mut self) {
        let filled = std::mem::take(&mut self.filled);
        if filled > 0 && filled < self.buf.len() {
            self.reader.link.conn.borrow_mut().unread_bytes(&self.buf[..filled]);
        }
    }
}

impl Future for RecvExact<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        while this.filled < this.buf.len() {
            let rest = &mut this.buf[this.filled..];
            this.reader.begun = this.filled;
            let failure = match this.reader.poll(cx, |conn| conn.read_part(rest)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some(n))) => {
                    this.filled += n;
                    continue;
                }
                Poll::Ready(Ok(None)) => {
                    let (received, wanted) = (this.filled, this.buf.len());
                    Error::new(Operation::Receive, Cause::Ended { received, wanted })
                        .at(this.reader.link.peer())
                }
                Poll::Ready(Err(error)) => error,
            };
            this.put_back();
            return Poll::Ready(Err(failure));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for RecvExact<'_> {
    fn drop(&mut self) {
        self.put_back();
    }
}

/// The future of [`Connection::recv_chunk`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct RecvChunk<'a> {
    reader: Reader<'a>,
}

impl Future for RecvChunk<'_> {
    type Output = Result<Option<Chunk>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>>> {
        self.reader.poll(cx, Conn::take_chunk).map_ok(Option::flatten)
    }
}

/// What all reads have in common.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    link: &'a Rc<Link>,
    /// It was told that there is nothing yet, and the peer's silence counts.
    waiting: bool,
    /// So many bytes of a message have come, and the rest of it is awaited.
    pub(crate) begun: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(link: &'a Rc<Link>) -> Reader<'a> {
        Reader { link, waiting: false, begun: 0 }
    }

    pub(crate) fn link(&self) -> &'a Rc<Link> {
        self.link
    }

    /// Takes what is there with `take`; `None` after the peer's end.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &Context<'_>,
        take: impl FnOnce(&mut Conn) -> T,
    ) -> Poll<Result<Option<T>>> {
        let polled = poll::read(self.link, cx, self.begun, take);
        self.waiting = polled.is_pending();
        polled
    }
}

impl Drop for Reader<'_> {
    /// A read that is given up waits no longer, so the peer may be silent.
    fn drop(&mut self) {
        if self.waiting {
            self.link.forgo_offer();
            self.link.conn.borrow_mut().give_up_awaiting(self.link.worker.now());
        }
    }
}

/// The future of [`Connection::send`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Send<'a> {
    link: &'a Rc<Link>,
    /// What is not queued yet.
    bytes: &'a [u8],
}

impl Future for Send<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        poll::write(this.link, cx, &mut this.bytes, |conn, bytes, n| {
            let (now, later) = bytes.split_at(n);
            this.link.send(conn, now);
            *bytes = later;
            later.len()
        })
    }
}

/// The future of [`Connection::send_owned`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct SendOwned<'a> {
    link: &'a Rc<Link>,
    /// What is not queued yet.
    bytes: Bytes,
}

impl Future for SendOwned<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        poll::write(this.link, cx, &mut this.bytes, |conn, bytes, n| {
            let now = bytes.split_to(n);
            this.link.send_owned(conn, now);
            bytes.len()
        })
    }
}

/// The future of [`Connection::flush`] and [`Connection::finish`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Flush<'a> {
    link: &'a Rc<Link>,
    operation: Operation,
}

impl Future for Flush<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        poll::flush(self.link, cx, self.operation)
    }
}

/// The future of [`Connection::delivered`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Delivered {
    link: Rc<Link>,
    /// How far the stream has to be acknowledged.
    target: u64,
    pause: Duration,
    sleep: Option<Sleep>,
}

/// How long to wait before the first look for an acknowledgement,
const LOOK_MIN: Duration = Duration::from_millis(1);
/// and between two looks at most.
const LOOK_MAX: Duration = Duration::from_millis(50);

impl Delivered {
    fn new(link: &Rc<Link>) -> Delivered {
        link.await_delivery();
        Delivered { link: link.clone(), target: link.conn.borrow().given(), pause: LOOK_MIN, sleep: None }
    }

    /// What is left to be acknowledged.
    fn left(&self) -> Result<u64> {
        match (self.link.delivered(), self.link.conn.borrow().reason()) {
            (Ok(delivered), _) => Ok(self.target.saturating_sub(delivered)),
            (Err(error), Some(reason)) if error.kind() != io::ErrorKind::Unsupported => {
                Err(closed(&self.link, Operation::Deliver, reason))
            }
            (Err(error), _) => Err(Error::os(Operation::Deliver, error).at(self.link.peer())),
        }
    }
}

impl Future for Delivered {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        loop {
            // While it stands, only time brings news.
            let end = this.link.conn.borrow().final_reason();
            if let Some(sleep) = this.sleep.as_mut().filter(|_| end.is_none())
                && Pin::new(sleep).poll(cx).is_pending()
            {
                this.link.rare().closer.register(&this.link.worker.tasks, cx);
                return Poll::Pending;
            }
            match (this.left(), end) {
                (Ok(0), _) => return Poll::Ready(Ok(())),
                (Ok(bytes), Some(reason)) => {
                    let cause = Cause::Undelivered { reason, bytes };
                    let error = Error::new(Operation::Deliver, cause).at(this.link.peer());
                    return Poll::Ready(Err(error));
                }
                (Ok(_), None) => {}
                (Err(error), _) => return Poll::Ready(Err(error)),
            }
            this.sleep = Some(sleep(this.pause));
            this.pause = LOOK_MAX.min(this.pause * 2);
        }
    }
}

/// The future of [`Connection::close`], [`Connection::reset`] and [`Connection::closed`]: waits for the end and tells why.
///
/// Dropping it changes nothing.
pub struct Closing {
    link: Rc<Link>,
}

impl Closing {
    /// Ends the wait with an error if the connection is not closed `after` this long. The close goes on.
    pub fn within(self, after: Duration) -> Within<Closing> {
        Within::new(self, after)
    }
}

impl Late for Closing {
    type Value = CloseReason;

    fn result(reason: CloseReason) -> Result<CloseReason> {
        Ok(reason)
    }

    fn late(&self, after: Duration) -> Error {
        Error::new(Operation::Wait, Cause::TimedOut { after }).at(self.link.peer())
    }
}

impl Future for Closing {
    type Output = CloseReason;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let conn = self.link.conn.borrow();
        match conn.reason() {
            Some(reason) if conn.is_closed() => Poll::Ready(reason),
            _ => {
                self.link.rare().closer.register(&self.link.worker.tasks, cx);
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing").field("peer", &self.link.peer()).finish_non_exhaustive()
    }
}

/// The future of [`Connection::draining`].
#[must_use = "futures do nothing unless awaited"]
pub struct Draining {
    link: Rc<Link>,
}

impl Future for Draining {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let link = &self.link;
        let member = link.worker.member.borrow();
        let draining = member.as_ref().is_some_and(|member| member.is_draining());
        // Only a connection that was accepted has a place in the server.
        if link.conn.borrow().is_closed() || (draining && link.is_admitted.get()) {
            return Poll::Ready(());
        }
        self.link.rare().drainer.register(&self.link.worker.tasks, cx);
        Poll::Pending
    }
}

impl fmt::Debug for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining").field("peer", &self.link.peer()).finish_non_exhaustive()
    }
}

/// The future of [`Connection::hangup`].
#[must_use = "futures do nothing unless awaited"]
pub struct HangingUp {
    link: Rc<Link>,
}

impl HangingUp {
    /// Ends the wait with an error if the peer has not ended `after` this long.
    pub fn within(self, after: Duration) -> Within<HangingUp> {
        Within::new(self, after)
    }
}

impl Late for HangingUp {
    type Value = Hangup;

    fn result(hangup: Hangup) -> Result<Hangup> {
        Ok(hangup)
    }

    fn late(&self, after: Duration) -> Error {
        Error::new(Operation::Wait, Cause::TimedOut { after }).at(self.link.peer())
    }
}

impl Future for HangingUp {
    type Output = Hangup;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Hangup> {
        if let Some(hangup) = self.link.conn.borrow().hangup() {
            return Poll::Ready(hangup);
        }
        self.link.rare().hangup.register(&self.link.worker.tasks, cx);
        Poll::Pending
    }
}

impl fmt::Debug for HangingUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HangingUp").field("peer", &self.link.peer()).finish_non_exhaustive()
    }
}
