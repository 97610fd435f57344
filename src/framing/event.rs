//! Event style: [`FrameHandler`], which is called with frames, and [`Frames`], which makes a handler of it.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::outgoing::{Body, queue, total};
use super::{Decoded, Framing, decode};
use crate::conn::Room;
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::event::{Connection, Flow, Handler};

/// What a server does with the frames of one connection, in event style: a [`Handler`] whose `received` is
/// [`frame`](FrameHandler::frame). All else is as there.
///
/// ```
/// use wharf::event::Flow;
/// use wharf::framing::{FrameConnection, FrameHandler, Frames, Lines};
///
/// struct Echo;
///
/// impl FrameHandler<Lines> for Echo {
///     fn frame(&mut self, conn: &mut FrameConnection<'_, '_, Lines>, frame: &[u8]) -> Flow {
///         match conn.send_frame(frame) {
///             Ok(()) => Flow::Continue,
///             Err(_) => Flow::Consumed(0), // the queue is full: offer it again when it is not
///         }
///     }
/// }
///
/// let server = wharf::Server::bind("127.0.0.1:0")
///     .workers(1)
///     .start_events(|| Frames::new(Lines::new(), Echo))?;
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub trait FrameHandler<F: Framing>: 'static {
    /// The connection stands.
    fn connected(&mut self, conn: &mut FrameConnection<'_, '_, F>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// A frame has come. [`Flow::Consumed`] with 0 takes nothing: it is offered again when sending is possible again, or when
    /// more has come.
    fn frame(&mut self, conn: &mut FrameConnection<'_, '_, F>, frame: &[u8]) -> Flow;

    /// What came is no frame, or one that is too large, or the peer has ended in mid-frame ([`Error::is_ended`]); the
    /// error names the peer. Nothing more is offered. Closes by default, behind what was sent; can reset instead.
    fn faulted(&mut self, conn: &mut FrameConnection<'_, '_, F>, error: &Error) -> Flow {
        let _ = (conn, error);
        Flow::Close
    }

    /// See [`Handler::writable`].
    fn writable(&mut self, conn: &mut FrameConnection<'_, '_, F>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// The peer has ended its side behind a whole frame. See [`Handler::ended`].
    fn ended(&mut self, conn: &mut FrameConnection<'_, '_, F>) -> Flow {
        let _ = conn;
        Flow::Close
    }

    /// See [`Handler::hung_up`].
    fn hung_up(&mut self, conn: &mut FrameConnection<'_, '_, F>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// See [`Handler::secured`].
    fn secured(&mut self, conn: &mut FrameConnection<'_, '_, F>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// See [`Handler::unsecured`].
    fn unsecured(&mut self, conn: &mut FrameConnection<'_, '_, F>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// See [`Handler::draining`].
    fn draining(&mut self, conn: &mut FrameConnection<'_, '_, F>) -> Flow {
        let _ = conn;
        Flow::Continue
    }

    /// See [`Handler::closed`].
    fn closed(&mut self, conn: &mut FrameConnection<'_, '_, F>, reason: CloseReason) {
        let _ = (conn, reason);
    }
}

/// A connection while its frame handler is being called: what [`Connection`] can do, and sending frames.
pub struct FrameConnection<'a, 'c, F> {
    conn: &'a mut Connection<'c>,
    framing: &'a F,
}

impl<F: Framing> FrameConnection<'_, '_, F> {
    /// Queues `frame` with what goes around it, whole or not at all.
    ///
    /// # Errors
    /// As [`Connection::send`]. If it is larger than the framing allows, or would not be read as one frame.
    pub fn send_frame(&mut self, frame: &[u8]) -> Result<()> {
        let link = self.conn.link();
        let body = Body::Borrowed(frame);
        let failed = |cause| Err(Error::new(Operation::Send, cause).at(link.peer()));
        let envelope = match self.framing.envelope(frame) {
            Ok(envelope) => envelope,
            Err(fault) => return failed(fault.cause()),
        };
        let total = total(&envelope, &body);
        let mut conn = link.conn.borrow_mut();
        let (queued, bound) = (conn.pending(), conn.send_max());
        match conn.room_or_end(total) {
            Ok(Room::Yes) => {
                queue(link, &mut conn, &envelope, &body, (0, total));
                link.sent(&conn);
                Ok(())
            }
            Ok(Room::Later) => failed(Cause::Full { queued, option: "send_marks" }),
            Ok(Room::Never) => failed(Cause::TooLarge { bytes: total, bound, option: "send_max" }),
            Err(reason) => {
                drop(conn);
                link.mark_dirty();
                failed(Cause::Closed(reason))
            }
        }
    }
}

impl<'c, F> Deref for FrameConnection<'_, 'c, F> {
    type Target = Connection<'c>;

    fn deref(&self) -> &Connection<'c> {
        self.conn
    }
}

impl<F> DerefMut for FrameConnection<'_, '_, F> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.conn
    }
}

impl<F> fmt::Debug for FrameConnection<'_, '_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrameConnection").field(&self.conn).finish()
    }
}

/// Makes a [`Handler`] of a framing and a [`FrameHandler`].
///
/// A frame is offered where it lies in what was received. What came of the next one waits in the connection's receive buffer,
/// which may grow to the framing's maximum for it ([`Connection::expect`]), and no further.
#[derive(Debug)]
pub struct Frames<F, H> {
    framing: F,
    handler: H,
    /// How much of a frame has come that is not whole.
    begun: usize,
    faulted: bool,
}

impl<F: Framing, H: FrameHandler<F>> Frames<F, H> {
    /// Offers the frames of `framing` to `handler`.
    pub fn new(framing: F, handler: H) -> Frames<F, H> {
        Frames { framing, handler, begun: 0, faulted: false }
    }

    fn tell(
        &mut self,
        conn: &mut Connection<'_>,
        call: impl FnOnce(&mut H, &mut FrameConnection<'_, '_, F>) -> Flow,
    ) -> Flow {
        call(&mut self.handler, &mut FrameConnection { conn, framing: &self.framing })
    }

    fn fail(&mut self, conn: &mut Connection<'_>, cause: Cause) -> Flow {
        self.faulted = true;
        let error = Error::new(Operation::Receive, cause).at(conn.peer_addr());
        match self.tell(conn, |handler, conn| handler.faulted(conn, &error)) {
            Flow::Reset => Flow::Reset,
            // There is no way to go on.
            _ => Flow::Close,
        }
    }
}

/// Whether the handler may be offered the next frame: it can send, and neither the end nor TLS stands in front of it.
fn goes_on(conn: &Connection<'_>) -> bool {
    let conn = conn.link().conn.borrow();
    conn.is_open() && !conn.is_blocked() && !conn.is_handshaking()
}

impl<F: Framing + 'static, H: FrameHandler<F>> Handler for Frames<F, H> {
    fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        self.begun = 0;
        if self.faulted {
            return Flow::Continue;
        }
        let mut at = 0;
        while at < bytes.len() {
            match decode(&mut self.framing, &bytes[at..]) {
                Ok(Decoded::Frame { frame, consumed }) => {
                    let frame = &bytes[at..][frame];
                    match self.tell(conn, |handler, conn| handler.frame(conn, frame)) {
                        Flow::Consumed(0) => break,
                        Flow::Continue | Flow::Consumed(_) => at += consumed,
                        end => return end,
                    }
                    if !goes_on(conn) {
                        break;
                    }
                }
                Ok(Decoded::More { total }) => {
                    self.begun = bytes.len() - at;
                    conn.expect(total);
                    break;
                }
                Err(fault) => return self.fail(conn, fault.cause()),
            }
        }
        Flow::Consumed(at)
    }

    fn ended(&mut self, conn: &mut Connection<'_>) -> Flow {
        match self.begun {
            0 => self.tell(conn, H::ended),
            received => self.fail(conn, Cause::EndedInFrame { received }),
        }
    }

    fn connected(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.tell(conn, H::connected)
    }

    fn writable(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.tell(conn, H::writable)
    }

    fn hung_up(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.tell(conn, H::hung_up)
    }

    fn secured(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.tell(conn, H::secured)
    }

    fn unsecured(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.tell(conn, H::unsecured)
    }

    fn draining(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.tell(conn, H::draining)
    }

    fn closed(&mut self, conn: &mut Connection<'_>, reason: CloseReason) {
        self.handler.closed(&mut FrameConnection { conn, framing: &self.framing }, reason);
    }
}
