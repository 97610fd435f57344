//! A handle to a connection of the blocking style for other threads.

use std::fmt;
use std::sync::Arc;

use super::line::Watch;
use crate::address::Address;
use crate::error::CloseReason;

/// A handle by which any thread can end a connection, also while its own thread waits in an operation of it. Cheap to clone; does not
/// keep the connection open.
///
/// ```
/// use std::time::Duration;
/// use wharf::blocking::{self, Listener};
/// use wharf::CloseReason;
///
/// let mut listener = Listener::bind("127.0.0.1:0")?;
/// let mut conn = blocking::connect(listener.local_addr())?;
/// let _peer = listener.accept()?;
/// let remote = conn.remote()?;
/// let other = std::thread::spawn(move || remote.reset());
/// let error = conn.recv(&mut [0; 16]).unwrap_err();
/// assert_eq!(error.close_reason(), Some(CloseReason::LocalReset));
/// # other.join().unwrap();
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct Remote {
    watch: Arc<Watch>,
    peer: Address,
}

impl Remote {
    pub(super) fn new(watch: Arc<Watch>, peer: Address) -> Remote {
        Remote { watch, peer }
    }

    /// Closes the connection gracefully. Its own thread does that: at once if it waits in an operation, which then fails, and
    /// otherwise with the next one.
    pub fn close(&self) {
        self.watch.close();
    }

    /// Throws the connection away (RST), as soon as its own thread waits in an operation or begins one.
    pub fn reset(&self) {
        self.watch.reset();
    }

    /// Why the connection was closed; `None` while it is not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.watch.reason()
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> Address {
        self.peer.clone()
    }
}

impl PartialEq for Remote {
    /// Whether both are handles to the same connection.
    fn eq(&self, other: &Remote) -> bool {
        Arc::ptr_eq(&self.watch, &other.watch)
    }
}

impl Eq for Remote {}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("peer", &self.peer).finish_non_exhaustive()
    }
}
