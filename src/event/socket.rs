//! A connection to a server, again and again, for any thread: [`Socket`].

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::completion::Completion;
use super::service::Service;
use super::strand::{Sending, Strand};
use super::{Disconnect, Queue, QueuedHandler, State};
use crate::address::Address;
use crate::client::Client;
use crate::error::{CloseReason, Error, Operation, Result};

/// A client's end in event style: it connects, tells each change of its [`State`], and may connect again. Made by
/// [`Service::socket`]; what it can do stands at [`SocketHandle`], which it derefs to. A connection that a server has accepted has one
/// if the program wants to own it: [`SocketHandle::own`].
///
/// ```
/// use std::time::Duration;
/// use wharf::event::{Callbacks, Completion, JobQueue, Service};
/// use wharf::Client;
///
/// let service = Service::new();
/// service.start()?;
/// let queue = JobQueue::new("network")?;
/// let states = Callbacks::new().feedback(|_, state| println!("{state}"));
/// let socket = service.socket(&Client::new("127.0.0.1:1"), &queue.queue(), states);
/// let done = Completion::new();
/// socket.connect_with(&done)?; // nobody listens there
/// assert!(done.wait(Duration::from_secs(10)).is_err());
/// assert!(socket.error().expect("it is told why").is_refused());
/// # drop(socket);
/// # service.stop_and_wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// Its handlers run on its [`Queue`], in order and never two at once. What a slow queue has not handled is bounded by
/// [`Limits::receive_buffer`](crate::Limits::receive_buffer) bytes here and as many in the connection; then the peer has to wait.
///
/// # Dropping
/// No handler of it begins after it was dropped, and one that runs on another thread is waited for; so is the handler's
/// destructor. Dropped within a handler, its own or another socket's, or on a worker, it does not wait, so that no two handlers
/// wait for each other; one that runs then is the last. Handlers that were never
/// called are dropped, which a [`Completion`] takes for a failure. The connection is closed behind what was sent; an attempt is given up.
///
/// A socket that its own handler keeps is not dropped by anybody: give handlers [`SocketHandle`]s. (A server's handler that owns its
/// connection is dropped behind the end, and nothing is left.)
pub struct Socket {
    handle: SocketHandle,
    /// Keeps the service going. A server's connection has none.
    _service: Option<Service>,
}

impl Socket {
    pub(super) fn new(
        service: Service,
        client: &Client,
        queue: &Queue,
        handler: Box<dyn QueuedHandler>,
    ) -> Socket {
        let strand = Strand::new(queue.clone(), client.clone(), service.hall().clone(), handler);
        Socket { handle: SocketHandle { strand }, _service: Some(service) }
    }

    /// A handle for other threads, and for handlers. Does not keep the socket.
    pub fn handle(&self) -> SocketHandle {
        self.handle.clone()
    }
}

impl Deref for Socket {
    type Target = SocketHandle;

    fn deref(&self) -> &SocketHandle {
        &self.handle
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.handle.strand.detach();
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

/// What any thread, and any handler, can do with a [`Socket`]. Cheap to clone; none of it ever waits.
#[derive(Clone)]
pub struct SocketHandle {
    strand: Arc<Strand>,
}

impl SocketHandle {
    pub(super) fn of(strand: Arc<Strand>) -> SocketHandle {
        SocketHandle { strand }
    }

    /// Begins to connect: [`State`]s tell how it goes, up to [`State::Connected`] or [`State::Disconnected`].
    ///
    /// # Errors
    /// If it is not disconnected (invalid state); if the client's address or options make no sense; if the service does not run, or has all the
    /// connections that it may. Then nothing has changed.
    pub fn connect(&self) -> Result<()> {
        self.strand.connect(None)
    }

    /// The same; `completion` waits until the connection stands, and is told if it cannot be made.
    ///
    /// # Errors
    /// As [`connect`](SocketHandle::connect); the completion is told too.
    pub fn connect_with(&self, completion: &Completion) -> Result<()> {
        self.strand.connect(Some(completion.add_dependency()))
    }

    /// Makes whoever asks the owner of a connection that a server has accepted
    /// ([`Server::start_queued`](crate::Server::start_queued)): it is closed when the [`Socket`] is dropped, and its handler is called no
    /// more. Without an owner it lives as long as its peer and its handler want. Any thread may ask; before the connection has ended, and
    /// behind that.
    ///
    /// For whatever has a connection for a while: a player of a game, who leaves it together with his connection.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Arc, Mutex};
    /// use wharf::Server;
    /// use wharf::event::{Callbacks, Flow, JobQueue, Socket};
    ///
    /// let players: Arc<Mutex<HashMap<String, Socket>>> = Arc::default();
    /// let game = JobQueue::new("game")?;
    /// let entering = players.clone();
    /// let server = Server::bind("127.0.0.1:0").start_queued(&game.queue(), move |_| {
    ///     let players = entering.clone();
    ///     Callbacks::new().incoming(move |socket, bytes| match socket.own() {
    ///         Ok(owned) => {
    ///             players.lock().expect("nobody panics with it").insert(format!("{bytes:?}"), owned);
    ///             Flow::Continue
    ///         }
    ///         Err(_) => Flow::Continue, // this player is in already
    ///     })
    /// })?;
    /// players.lock().expect("nobody panics with it").remove("jo"); // and out: the connection is closed, if there is one
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    ///
    /// # Errors
    /// If it has an owner: each has one at most. A client's was made with one, by [`Service::socket`].
    pub fn own(&self) -> Result<Socket> {
        self.strand.own()?;
        Ok(Socket { handle: self.clone(), _service: None })
    }

    /// Sends `bytes`, whole or not at all, behind what was sent before. Before the connection stands they are queued for it. If they
    /// cannot be sent after all, that is told by the [`Disconnect`].
    ///
    /// # Errors
    /// If the socket has been disconnected, or is to be. If more than [`Limits::send_max`](crate::Limits::send_max) would wait (its
    /// kind is [`Limit`](crate::ErrorKind::Limit)); each message counts for 64 bytes more than it has. With
    /// [`WhenFull::Disconnect`](crate::WhenFull::Disconnect) the connection is reset then too.
    pub fn send(&self, bytes: impl Into<Bytes>) -> Result<()> {
        let bytes = bytes.into();
        let sending = Sending { bytes: bytes.len(), handler: None, dependency: None };
        self.strand.send(bytes, sending)
    }

    /// The same; `handler` is called once they have been handed to the kernel, or with why they never will be.
    ///
    /// # Errors
    /// As [`send`](SocketHandle::send); the handler is dropped uncalled then. Until it has run, its message counts as waiting.
    pub fn send_then(
        &self,
        bytes: impl Into<Bytes>,
        handler: impl FnOnce(&SocketHandle, Result<()>) + Send + 'static,
    ) -> Result<()> {
        let bytes = bytes.into();
        let sending = Sending { bytes: bytes.len(), handler: Some(Box::new(handler)), dependency: None };
        self.strand.send(bytes, sending)
    }

    /// The same; `completion` waits until they have been handed to the kernel.
    ///
    /// # Errors
    /// As [`send`](SocketHandle::send); the completion is told too.
    pub fn send_with(&self, bytes: impl Into<Bytes>, completion: &Completion) -> Result<()> {
        let bytes = bytes.into();
        let dependency = Some(completion.add_dependency());
        let sending = Sending { bytes: bytes.len(), handler: None, dependency };
        self.strand.send(bytes, sending)
    }

    /// Arms one receive: `handler` is called with the bytes that come next, some of them or all that are there; with none
    /// when the peer has ended its side, or the connection has ended in order.
    ///
    /// While no receive is armed, nothing is taken from the connection, which holds [`Limits::receive_buffer`](crate::Limits::receive_buffer) and one
    /// read at most; then the peer has to wait.
    ///
    /// # Errors
    /// If a receive is armed and its handler has not begun; if the socket's own handler
    /// [receives](QueuedHandler::receives); if the socket was disconnected and nothing is left to read.
    pub fn receive(&self, handler: impl FnOnce(&SocketHandle, Result<Bytes>) + Send + 'static) -> Result<()> {
        self.strand.receive(Box::new(handler))
    }

    /// The same; `completion` waits until `handler` has run, and is told the error that it returns.
    ///
    /// # Errors
    /// As [`receive`](SocketHandle::receive); the completion is told too.
    pub fn receive_with(
        &self,
        completion: &Completion,
        handler: impl FnOnce(&SocketHandle, Result<Bytes>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let strand = Arc::downgrade(&self.strand);
        let obstacle = move || strand.upgrade()?.obstacle();
        let dependency = completion.depend_on_handler(obstacle);
        self.strand.receive(Box::new(move |socket, bytes| dependency.finish(handler(socket, bytes))))
    }

    /// Ends this side's direction (half-close) behind what was sent; receiving goes on. Nothing happens without a connection.
    pub fn finish(&self) {
        self.strand.finish();
    }

    /// Closes the connection gracefully behind what was sent, or gives an attempt at one up, with what was queued for it.
    /// [`State::Disconnected`] tells when that is over; without a connection nothing happens.
    pub fn close(&self) {
        // Only who waits can be one too many.
        drop(self.strand.close(None, None));
    }

    /// The same; `completion` waits until it is over.
    ///
    /// # Errors
    /// If 64 wait for that already; the completion is told too.
    pub fn close_with(&self, completion: &Completion) -> Result<()> {
        self.strand.close(None, Some(completion.add_dependency()))
    }

    /// Throws the connection away (RST), with what is queued.
    pub fn reset(&self) {
        self.strand.reset(CloseReason::LocalReset);
    }

    /// Sets a deadline for what the connection is to do next, say a whole request, or removes it with `None`.
    ///
    /// It is total: no byte extends it, only another call does. When it passes the connection is closed, with
    /// [`Deadline::Handler`](crate::Deadline::Handler) as the reason. It begins when the connection's worker learns of it, which is at once,
    /// or when the connection stands, if it does not yet. Nothing happens without a connection or an attempt at one.
    pub fn set_deadline(&self, after: impl Into<Option<Duration>>) {
        self.strand.set_deadline(after.into());
    }

    /// How far it is. The queue's handlers may be behind.
    pub fn state(&self) -> State {
        self.strand.state()
    }

    /// Why it is not connected, if that is a failure; `None` while it connects or is connected, before, and after an end in order.
    pub fn error(&self) -> Option<Error> {
        match self.state() {
            State::Disconnected(why) if !why.is_graceful() => match why {
                Disconnect::Failed(error) => Some(error),
                why => Some(why.error(Operation::Wait, &self.strand.address)),
            },
            _ => None,
        }
    }

    /// The address of the other end; `None` until the first connection stands, and while another one is made.
    pub fn peer_addr(&self) -> Option<Address> {
        self.strand.info().peer
    }

    /// The address of this end, in the same way.
    pub fn local_addr(&self) -> Option<Address> {
        self.strand.info().local
    }

    /// What was agreed on by TLS, and what is known of the peer, in the same way; `None` without TLS.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> Option<crate::tls::Info> {
        self.strand.info().tls
    }

    /// Bytes sent that have not been handed to the kernel.
    pub fn queued(&self) -> usize {
        self.strand.queued()
    }
}

impl PartialEq for SocketHandle {
    /// Whether both are of the same socket.
    fn eq(&self, other: &SocketHandle) -> bool {
        Arc::ptr_eq(&self.strand, &other.strand)
    }
}

impl Eq for SocketHandle {}

impl fmt::Debug for SocketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("peer", &self.strand.address)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
