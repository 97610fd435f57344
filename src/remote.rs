//! A handle to one connection for other threads.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use crate::address::Address;
use crate::config::WhenFull;
use crate::engine::Token;
use crate::error::{Bound, Cause, CloseReason, Error, Operation, Result};
use crate::worker::{Message, Post};

/// A handle to a connection that any thread can use: send, close, ask. Cheap to clone; does not keep the connection open.
///
/// Messages of one thread arrive in order. They are sent behind what the connection's own handler has queued when they
/// arrive, with at most one wake of the worker for many of them.
///
/// ```
/// use std::thread;
/// use wharf::{Connection, Server};
///
/// let server = Server::bind("127.0.0.1:0").workers(1).start(|conn: Connection| async move {
///     let client = conn.remote();
///     thread::spawn(move || client.send("from another thread"));
///     conn.closed().await; // the thread may send for as long as the connection stands
///     Ok(())
/// })?;
/// let mut conn = wharf::blocking::connect(server.local_addr())?;
/// conn.recv_exact(&mut [0; 19])?;
/// # drop(conn);
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct Remote {
    state: Arc<RemoteState>,
}

/// What a connection and its remotes share.
pub(crate) struct RemoteState {
    post: Post,
    token: Token,
    peer: Address,
    bound: usize,
    when_full: WhenFull,
    /// The bound was passed, and that is to end the connection.
    overflowed: AtomicBool,
    /// Bytes sent by remotes that the connection's send queue does not hold yet.
    pub(crate) queued: AtomicUsize,
    closed: OnceLock<CloseReason>,
}

impl RemoteState {
    pub(crate) fn new(
        post: Post,
        token: Token,
        peer: Address,
        bound: usize,
        when_full: WhenFull,
    ) -> RemoteState {
        RemoteState {
            post,
            token,
            peer,
            bound,
            when_full,
            overflowed: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            closed: OnceLock::new(),
        }
    }

    /// The connection is closed, or about to: there is no use in sending to it.
    pub(crate) fn close(&self, reason: CloseReason) {
        // The first reason stands, as everywhere.
        let _ = self.closed.set(reason);
    }
}

impl Remote {
    pub(crate) fn new(state: Arc<RemoteState>) -> Remote {
        Remote { state }
    }

    /// Sends `bytes`, whole or not at all. Never waits.
    ///
    /// What arrives after the connection has closed or finished cannot be sent any more; it is counted as
    /// [`Counts::unsent`](crate::Counts::unsent) if the connection is still there to count it.
    ///
    /// # Errors
    /// If the connection is closed; or if its remotes have more than
    /// [`Limits::send_max`](crate::Limits::send_max) bytes on the way, which the send queue has not taken yet: the peer
    /// reads too slowly, and the caller decides whether to wait, to skip, or to [`Remote::reset`] it. With
    /// [`WhenFull::Disconnect`] it is reset in any case.
    pub fn send(&self, bytes: impl Into<Bytes>) -> Result<()> {
        let (state, bytes) = (&self.state, bytes.into());
        let len = bytes.len();
        let failed = |cause| Error::new(Operation::Send, cause).at(&state.peer);
        if let Some(reason) = self.close_reason() {
            return Err(failed(Cause::Closed(reason)));
        }
        if len > state.bound {
            return Err(failed(Cause::TooLarge { bytes: len, bound: state.bound, option: "send_max" }));
        }
        let fits = |queued: usize| (queued + len <= state.bound).then_some(queued + len);
        if let Err(queued) = state.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            self.overflow();
            return Err(failed(Cause::Full { queued, option: "send_max" }));
        }
        let message = Message::Send { token: state.token, bytes };
        state.post.send(message).map_err(|_| failed(Cause::Closed(CloseReason::Shutdown)))
    }

    /// What was sent is more than may be on its way.
    fn overflow(&self) {
        let state = &self.state;
        if state.when_full == WhenFull::Disconnect && !state.overflowed.swap(true, Ordering::Relaxed) {
            self.reset_for(CloseReason::Limit(Bound::SendQueue));
        }
    }

    /// Closes the connection gracefully, behind what was sent.
    pub fn close(&self) {
        drop(self.state.post.send(Message::Close { token: self.state.token }));
    }

    /// Throws the connection away (RST).
    pub fn reset(&self) {
        self.reset_for(CloseReason::LocalReset);
    }

    fn reset_for(&self, reason: CloseReason) {
        drop(self.state.post.send(Message::Reset { token: self.state.token, reason }));
    }

    /// Bytes that remotes have sent and the connection's send queue has not taken yet.
    pub fn queued(&self) -> usize {
        self.state.queued.load(Ordering::Relaxed)
    }

    /// Why the connection ended, or is about to; `None` while it stands.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.state.closed.get().copied()
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Address {
        self.state.peer.clone()
    }
}

impl PartialEq for Remote {
    /// Whether both are handles to the same connection.
    fn eq(&self, other: &Remote) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for Remote {}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("peer", &self.state.peer).finish_non_exhaustive()
    }
}
