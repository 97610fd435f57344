//! What a queue calls: [`QueuedHandler`], and [`Callbacks`] for those who have closures.

use std::fmt;

use bytes::Bytes;

use super::{Flow, SocketHandle, State};

/// What a [`Socket`](crate::event::Socket), or a connection that a server has accepted
/// ([`Server::start_queued`](crate::Server::start_queued)), does on the queue that it was given.
///
/// Calls never overlap and come in order, whichever threads run the queue. A handler may block: it holds up its queue, but no
/// worker; its connection stops receiving meanwhile, so the peer has to wait. One that panics loses its own connection (reset,
/// [`CloseReason::HandlerPanicked`](crate::CloseReason::HandlerPanicked)) and is not called again; the queue goes on.
///
/// ```
/// use bytes::Bytes;
/// use wharf::event::{Flow, QueuedHandler, SocketHandle, State};
///
/// struct Log;
///
/// impl QueuedHandler for Log {
///     fn state(&mut self, _: &SocketHandle, state: &State) {
///         println!("{state}");
///     }
///
///     fn received(&mut self, _: &SocketHandle, bytes: Bytes) -> Flow {
///         println!("{} bytes", bytes.len());
///         Flow::Continue
///     }
/// }
/// ```
pub trait QueuedHandler: Send + 'static {
    /// The socket's state has changed: once for each change, in order, and behind all that came before.
    fn state(&mut self, socket: &SocketHandle, state: &State) {
        let _ = (socket, state);
    }

    /// Bytes have come: all that have since the last call, up to [`Limits::receive_buffer`](crate::Limits::receive_buffer) and
    /// one read.
    ///
    /// [`Flow::Consumed`] consumes the first so many; the rest is offered again in front of what comes next. If the socket has refused
    /// a message that a handler of it sent, with something left, nothing is offered before there is room: then the rest is offered again,
    /// with what has come meanwhile or alone. Until then the peer has to wait, its end is not told, and
    /// [`Deadlines::receive_rate`](crate::Deadlines::receive_rate) stands still. A handler that leaves a whole `receive_buffer`, and
    /// was not refused, loses its connection. Only called if [`receives`](QueuedHandler::receives).
    ///
    /// ```
    /// use bytes::Bytes;
    /// use wharf::event::{Flow, QueuedHandler, SocketHandle};
    ///
    /// struct Echo;
    ///
    /// impl QueuedHandler for Echo {
    ///     fn received(&mut self, socket: &SocketHandle, bytes: Bytes) -> Flow {
    ///         match socket.send(bytes) {
    ///             Ok(()) => Flow::Continue,
    ///             Err(_) => Flow::Consumed(0), // there is no room: offer them again when there is
    ///         }
    ///     }
    /// }
    /// ```
    fn received(&mut self, socket: &SocketHandle, bytes: Bytes) -> Flow {
        let _ = (socket, bytes);
        Flow::Continue
    }

    /// The connection stands, or all that was sent has been handed to the kernel: there is room for more. Only called if
    /// [`produces`](QueuedHandler::produces).
    fn writable(&mut self, socket: &SocketHandle) -> Flow {
        let _ = socket;
        Flow::Continue
    }

    /// The peer has ended its side, behind its last byte: all were offered, those again that had to wait for room. Closes by default;
    /// a handler that still has something to send can go on. Only called if [`receives`](QueuedHandler::receives).
    fn ended(&mut self, socket: &SocketHandle) -> Flow {
        let _ = socket;
        Flow::Close
    }

    /// The server that has accepted the connection drains: it takes no new ones, and will reset what has not ended at its drain
    /// deadline. Goes on by default; never called for a [`Socket`](crate::event::Socket).
    fn draining(&mut self, socket: &SocketHandle) -> Flow {
        let _ = socket;
        Flow::Continue
    }

    /// Whether [`received`](QueuedHandler::received) is to be called with whatever comes. If not, nothing is received but what
    /// [`SocketHandle::receive`] asks for. Asked once, when the socket is made. Default: yes.
    fn receives(&self) -> bool {
        true
    }

    /// Whether [`writable`](QueuedHandler::writable) is to be called. Asked once, when the socket is made. Default: no.
    fn produces(&self) -> bool {
        false
    }
}

/// No handler: the socket receives one piece at a time, as [`SocketHandle::receive`] asks for it.
impl QueuedHandler for () {
    fn receives(&self) -> bool {
        false
    }
}

/// A [`QueuedHandler`] made of closures. What is not set does nothing; without `incoming`, the socket receives as
/// [`SocketHandle::receive`] asks for it.
///
/// ```
/// use wharf::event::{Callbacks, Flow};
///
/// let callbacks = Callbacks::new()
///     .feedback(|_, state| println!("{state}"))
///     .incoming(|socket, bytes| match socket.send(bytes) {
///         Ok(()) => Flow::Continue,
///         Err(_) => Flow::Close,
///     });
/// # let _ = callbacks;
/// ```
#[derive(Default)]
pub struct Callbacks {
    feedback: Option<Box<Feedback>>,
    incoming: Option<Box<Incoming>>,
    outgoing: Option<Box<Outgoing>>,
}

type Feedback = dyn FnMut(&SocketHandle, &State) + Send;
type Incoming = dyn FnMut(&SocketHandle, Bytes) -> Flow + Send;
type Outgoing = dyn FnMut(&SocketHandle) -> Flow + Send;

impl Callbacks {
    /// No callbacks.
    pub fn new() -> Callbacks {
        Callbacks::default()
    }

    /// Sets what is told each change of state; see [`QueuedHandler::state`].
    #[must_use]
    pub fn feedback(mut self, feedback: impl FnMut(&SocketHandle, &State) + Send + 'static) -> Callbacks {
        self.feedback = Some(Box::new(feedback));
        self
    }

    /// Sets what is given the bytes that come; see [`QueuedHandler::received`].
    #[must_use]
    pub fn incoming(
        mut self,
        incoming: impl FnMut(&SocketHandle, Bytes) -> Flow + Send + 'static,
    ) -> Callbacks {
        self.incoming = Some(Box::new(incoming));
        self
    }

    /// Sets what refills the send queue when it is empty; see [`QueuedHandler::writable`].
    #[must_use]
    pub fn outgoing(mut self, outgoing: impl FnMut(&SocketHandle) -> Flow + Send + 'static) -> Callbacks {
        self.outgoing = Some(Box::new(outgoing));
        self
    }
}

impl QueuedHandler for Callbacks {
    fn state(&mut self, socket: &SocketHandle, state: &State) {
        if let Some(feedback) = &mut self.feedback {
            feedback(socket, state);
        }
    }

    fn received(&mut self, socket: &SocketHandle, bytes: Bytes) -> Flow {
        self.incoming.as_mut().map_or(Flow::Continue, |incoming| incoming(socket, bytes))
    }

    fn writable(&mut self, socket: &SocketHandle) -> Flow {
        self.outgoing.as_mut().map_or(Flow::Continue, |outgoing| outgoing(socket))
    }

    fn receives(&self) -> bool {
        self.incoming.is_some()
    }

    fn produces(&self) -> bool {
        self.outgoing.is_some()
    }
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callbacks")
    }
}
