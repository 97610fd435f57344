//! Async style: [`Framed`], its halves, and the futures of receiving and sending a frame.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

use super::assembly::{Assembly, Found, Frame};
use super::outgoing::{Body, queue, total};
use super::{Envelope, Fault, Framing};
use crate::config::WhenFull;
use crate::conn::Conn;
use crate::connection::{Connection, ReadHalf, Reader, WriteHalf};
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::poll;
use crate::runtime::{Late, Within};
use crate::worker::link::Link;

/// A [`Connection`] that speaks in frames.
///
/// What the connection can do besides ([`close`](Connection::close), [`set_deadline`](Connection::set_deadline), who the peer
/// is) is done on [`Framed::get_ref`] and [`Framed::get_mut`].
///
/// ```no_run
/// use std::time::Duration;
/// use wharf::framing::{Framed, LengthPrefixed};
///
/// # async fn example(conn: wharf::Connection) -> wharf::Result<()> {
/// let mut framed = Framed::new(conn, LengthPrefixed::u32().frame_max(64 * 1024));
/// while let Some(request) = framed.recv().within(Duration::from_secs(30)).await? {
///     framed.send(&request).await?;
/// }
/// # Ok(()) }
/// ```
pub struct Framed<F> {
    conn: Connection,
    assembly: Assembly<F>,
}

macro_rules! reading {
    () => {
        /// Receives the next frame; `None` when the peer has ended behind the last one.
        ///
        /// # Errors
        /// As [`Connection::recv`]. If what comes is no frame, or one that is too large: then the stream cannot be
        /// read any further, and every later call tells the same. If the peer ends in mid-frame ([`Error::is_ended`]);
        /// [`Error::partial`] tells how much of it had come.
        ///
        /// # Cancellation
        /// Cancel safe: what has come of a frame is kept.
        pub fn recv(&mut self) -> RecvFrame<'_, F> {
            RecvFrame { reader: Reader::new(self.conn.link()), assembly: &mut self.assembly }
        }
    };
}

macro_rules! writing {
    ($self:ident => $framing:expr) => {
        /// Sends `frame` with what goes around it, as one message: waits while the send queue is above its high mark.
        ///
        /// # Errors
        /// As [`Connection::send`]. If it is larger than the framing allows, or would not be read as one frame: nothing is
        /// sent then.
        ///
        /// # Cancellation
        /// Cancel safe: all of it is queued, or nothing. But a frame that is larger than
        /// [`Limits::send_max`](crate::Limits::send_max) is queued in parts; a call that is dropped after the first of them resets
        /// the connection, for nothing that follows could be told from the rest of the frame.
        pub fn send<'a>(&'a mut $self, frame: &'a [u8]) -> SendFrame<'a> {
            SendFrame::new($self.conn.link(), &$framing, Body::Borrowed(frame))
        }

        /// Sends `frame` without copying it (above 1 KiB). Otherwise like `send`.
        ///
        /// # Errors
        /// As `send`.
        ///
        /// # Cancellation
        /// As `send`.
        pub fn send_owned(&mut $self, frame: impl Into<Bytes>) -> SendFrame<'_> {
            SendFrame::new($self.conn.link(), &$framing, Body::Owned(frame.into()))
        }
    };
}

impl<F: Framing> Framed<F> {
    /// Reads and writes the frames of `framing` on `conn`.
    pub fn new(conn: Connection, framing: F) -> Framed<F> {
        let assembly = Assembly::new(framing, conn.link().conn.borrow().held());
        Framed { conn, assembly }
    }

    reading!();
    writing!(self => self.assembly.framing);

    /// Waits until everything queued has been handed to the kernel: [`Connection::flush`].
    ///
    /// # Errors
    /// If the connection is closed or breaks before.
    ///
    /// # Cancellation
    /// Cancel safe; what is queued stays queued.
    pub async fn flush(&mut self) -> Result<()> {
        self.conn.flush().await
    }

    /// The connection.
    pub fn get_ref(&self) -> &Connection {
        &self.conn
    }

    /// The connection, to be changed. What is received on it by other means is missing in the frames.
    pub fn get_mut(&mut self) -> &mut Connection {
        &mut self.conn
    }

    /// The connection as it is behind the last frame: what came of the next one is the first to be received.
    pub fn into_inner(self) -> Connection {
        put_back(self.conn.link(), &self.assembly);
        self.conn
    }

    /// Splits it, so that one task can receive while another sends. As with [`Connection::split`], dropping the writer finishes
    /// (FIN), and dropping both closes.
    pub fn split(self) -> (FramedReader<F>, FramedWriter<F>)
    where
        F: Clone,
    {
        let framing = self.assembly.framing.clone();
        let (read, write) = self.conn.split();
        (FramedReader { conn: read, assembly: self.assembly }, FramedWriter { conn: write, framing })
    }
}

/// The receiving half of a [`Framed`].
pub struct FramedReader<F> {
    conn: ReadHalf,
    assembly: Assembly<F>,
}

impl<F: Framing> FramedReader<F> {
    reading!();

    /// The half of the connection.
    pub fn get_ref(&self) -> &ReadHalf {
        &self.conn
    }

    /// The half of the connection, as it is behind the last frame.
    pub fn into_inner(self) -> ReadHalf {
        put_back(self.conn.link(), &self.assembly);
        self.conn
    }
}

/// The sending half of a [`Framed`].
pub struct FramedWriter<F> {
    conn: WriteHalf,
    framing: F,
}

impl<F: Framing> FramedWriter<F> {
    writing!(self => self.framing);

    /// The half of the connection: to finish or to flush it.
    pub fn get_mut(&mut self) -> &mut WriteHalf {
        &mut self.conn
    }

    /// The half of the connection.
    pub fn into_inner(self) -> WriteHalf {
        self.conn
    }
}

impl<F> fmt::Debug for Framed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framed").field("peer", &self.conn.peer_addr()).finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for FramedReader<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedReader").field("peer", &self.conn.peer_addr()).finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for FramedWriter<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedWriter").field("peer", &self.conn.peer_addr()).finish_non_exhaustive()
    }
}

/// Gives the connection back what no frame was made of.
fn put_back<F>(link: &Link, assembly: &Assembly<F>) {
    let [first, second] = assembly.unread();
    let mut conn = link.conn.borrow_mut();
    conn.unread_bytes(second);
    conn.unread_bytes(first);
}

/// The future of [`Framed::recv`].
#[must_use = "futures do nothing unless awaited"]
pub struct RecvFrame<'a, F> {
    reader: Reader<'a>,
    assembly: &'a mut Assembly<F>,
}

impl<F: Framing> RecvFrame<'_, F> {
    /// Ends the wait with an error if no frame has come whole `after` this long, counted from its first poll. What has come is kept.
    pub fn within(self, after: Duration) -> Within<Self> {
        Within::new(self, after)
    }
}

impl<F: Framing> Future for RecvFrame<'_, F> {
    type Output = Result<Option<Frame>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let RecvFrame { reader, assembly } = self.get_mut();
        let link = reader.link();
        loop {
            let begun = match assembly.next() {
                Ok(Found::Begun(begun)) => begun,
                Ok(Found::Frame(frame)) => {
                    link.conn.borrow_mut().message_over();
                    return Poll::Ready(Ok(Some(frame)));
                }
                Err(fault) => return Poll::Ready(Err(fault.error(Operation::Receive).at(link.peer()))),
            };
            reader.begun = begun;
            match reader.poll(cx, Conn::take_part) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some(chunk))) => {
                    if let Some(chunk) = chunk {
                        assembly.push(chunk);
                    }
                }
                Poll::Ready(Ok(None)) if begun == 0 => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(None)) => {
                    let cause = Cause::EndedInFrame { received: begun };
                    return Poll::Ready(Err(Error::new(Operation::Receive, cause).at(link.peer())));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<F: Framing> Late for RecvFrame<'_, F> {
    type Value = Option<Frame>;

    fn result(output: Self::Output) -> Result<Option<Frame>> {
        output
    }

    fn late(&self, after: Duration) -> Error {
        Error::new(Operation::Receive, Cause::TimedOut { after }).at(self.reader.link().peer())
    }
}

impl<F> fmt::Debug for RecvFrame<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecvFrame")
    }
}

/// The future of [`Framed::send`] and [`Framed::send_owned`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct SendFrame<'a> {
    link: &'a Rc<Link>,
    envelope: Result<Envelope<'a>, Fault>,
    body: Body<'a>,
    /// How many bytes of the frame, with what is around it, are queued.
    queued: usize,
    total: usize,
}

impl<'a> SendFrame<'a> {
    fn new(link: &'a Rc<Link>, framing: &'a impl Framing, body: Body<'a>) -> SendFrame<'a> {
        let envelope = framing.envelope(body.bytes());
        let total = envelope.as_ref().map_or(0, |envelope| total(envelope, &body));
        SendFrame { link, envelope, body, queued: 0, total }
    }

    /// Sends `body` with an envelope that is known.
    #[cfg(feature = "tokio-util")]
    pub(super) fn owned(link: &'a Rc<Link>, envelope: Envelope<'a>, body: Bytes) -> SendFrame<'a> {
        let body = Body::Owned(body);
        let total = total(&envelope, &body);
        SendFrame { link, envelope: Ok(envelope), body, queued: 0, total }
    }

    /// Ends the wait with an error if the frame is not queued `after` this long, counted from its first poll; nothing of it is
    /// then, unless it is larger than [`Limits::send_max`](crate::Limits::send_max).
    pub fn within(self, after: Duration) -> Within<Self> {
        Within::new(self, after)
    }
}

impl Future for SendFrame<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        let link = this.link;
        let envelope = match &this.envelope {
            Ok(envelope) => envelope,
            Err(fault) => {
                let error = Error::new(Operation::Send, fault.clone().cause());
                return Poll::Ready(Err(error.at(link.peer())));
            }
        };
        loop {
            let left = this.total - this.queued;
            let part = |conn: &Conn| {
                let in_parts = conn.when_full() == WhenFull::Wait && this.total > conn.send_max();
                if in_parts { left.min(conn.send_high()) } else { left }
            };
            let (mut conn, part) = ready!(poll::room(link, cx, part))?;
            queue(link, &mut conn, envelope, &this.body, (this.queued, this.queued + part));
            this.queued += part;
            conn.queued(this.queued == this.total);
            if this.queued == this.total {
                link.sent(&conn);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl Drop for SendFrame<'_> {
    /// Half a frame would make nonsense of all that follows.
    fn drop(&mut self) {
        if (1..self.total).contains(&self.queued) {
            self.link.command(|conn| conn.reset(CloseReason::LocalReset));
        }
    }
}

impl Late for SendFrame<'_> {
    type Value = ();

    fn result(output: Result<()>) -> Result<()> {
        output
    }

    fn late(&self, after: Duration) -> Error {
        Error::new(Operation::Send, Cause::TimedOut { after }).at(self.link.peer())
    }
}
